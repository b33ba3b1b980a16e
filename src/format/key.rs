//! Keys of the index (format.md §5): one ordered space, its first byte the kind.
//!
//! Promise: keys order as their fields do, so ranges are prefixes. Called by: `fs`, `vault`, `check`.

use super::wire::{Malformed, malformed};
use crate::base::id::{Ino, SegmentId};

/// Inode: its attributes.
pub const INODE: u8 = b'I';
/// Name in a directory: cookie and inode.
pub const NAME: u8 = b'N';
/// Cookie in a directory: inode and name, in order of creation.
pub const COOKIE: u8 = b'C';
/// Extended attribute.
pub const XATTR: u8 = b'X';
/// Target of a symbolic link.
pub const TARGET: u8 = b'L';
/// Inode without a name that was still in use.
pub const ORPHAN: u8 = b'O';
/// The vault's own settings.
pub const SETTING: u8 = b'V';
/// Quotas: trees, limits, and what accounts have used (`format::quota`).
pub const QUOTA: u8 = b'Q';
/// Extent (derived: changed only by applying commits).
pub const EXTENT: u8 = b'E';
/// Bytes of a file that are not holes (derived).
pub const ALLOCATED: u8 = b'A';
/// Segment (derived).
pub const SEGMENT: u8 = b'S';
/// Holders of a shared run (derived).
pub const HOLDERS: u8 = b'H';
/// Totals (derived).
pub const TOTAL: u8 = b'T';

fn of(kind: u8, n: u64, rest: &[u8]) -> Vec<u8> {
    let mut k = Vec::with_capacity(9 + rest.len());
    k.push(kind);
    k.extend_from_slice(&n.to_be_bytes());
    k.extend_from_slice(rest);
    k
}

/// Whether a key is changed only by applying commits.
#[must_use]
pub fn is_derived(key: &[u8]) -> bool {
    matches!(key.first(), Some(&(EXTENT | ALLOCATED | SEGMENT | HOLDERS | TOTAL)))
}

/// Key of an inode's attributes.
#[must_use]
pub fn inode(ino: Ino) -> Vec<u8> {
    of(INODE, ino.0, &[])
}
/// Key of a name in a directory.
#[must_use]
pub fn name(parent: Ino, name: &[u8]) -> Vec<u8> {
    of(NAME, parent.0, name)
}
/// Key of a cookie in a directory.
#[must_use]
pub fn cookie(parent: Ino, cookie: u64) -> Vec<u8> {
    of(COOKIE, parent.0, &cookie.to_be_bytes())
}
/// Key of an extended attribute.
#[must_use]
pub fn xattr(ino: Ino, name: &[u8]) -> Vec<u8> {
    of(XATTR, ino.0, name)
}
/// Key of a symbolic link's target.
#[must_use]
pub fn target(ino: Ino) -> Vec<u8> {
    of(TARGET, ino.0, &[])
}
/// Key of an inode that has no name any more.
#[must_use]
pub fn orphan(ino: Ino) -> Vec<u8> {
    of(ORPHAN, ino.0, &[])
}
/// Key of a setting.
#[must_use]
pub fn setting(name: &str) -> Vec<u8> {
    [&[SETTING], name.as_bytes()].concat()
}
/// Key of something about quotas.
#[must_use]
pub fn quota(number: u32, what: &[u8]) -> Vec<u8> {
    of(QUOTA, u64::from(number), what)
}
/// Key of an extent.
#[must_use]
pub fn extent(ino: Ino, offset_bytes: u64) -> Vec<u8> {
    of(EXTENT, ino.0, &offset_bytes.to_be_bytes())
}
/// Key of a file's allocated bytes.
#[must_use]
pub fn allocated(ino: Ino) -> Vec<u8> {
    of(ALLOCATED, ino.0, &[])
}
/// Key of a segment.
#[must_use]
pub fn segment(id: SegmentId) -> Vec<u8> {
    of(SEGMENT, id.0, &[])
}
/// Key of the holders of the run that begins at `position_bytes` of a segment.
#[must_use]
pub fn holders(id: SegmentId, position_bytes: u64) -> Vec<u8> {
    of(HOLDERS, id.0, &position_bytes.to_be_bytes())
}
/// Key of a total.
#[must_use]
pub fn total(name: &str) -> Vec<u8> {
    [&[TOTAL], name.as_bytes()].concat()
}

/// The prefix that all keys of `kind` for the number `n` (inode, segment) share.
#[must_use]
pub fn prefix(kind: u8, n: u64) -> Vec<u8> {
    of(kind, n, &[])
}

/// Splits a key of any numbered kind into kind, number and rest.
pub fn split(key: &[u8]) -> Result<(u8, u64, &[u8]), Malformed> {
    match key.split_at_checked(9) {
        Some((head, rest)) => {
            Ok((head[0], u64::from_be_bytes(head[1..9].try_into().expect("nine bytes were split off")), rest))
        }
        None => malformed("index key"),
    }
}

/// The number at the end of an extent's or a cookie's key.
pub fn tail_u64(rest: &[u8]) -> Result<u64, Malformed> {
    rest.try_into().map(u64::from_be_bytes).map_err(|_| Malformed { what: "index key tail" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_keys() {
        assert_eq!(name(Ino(1), b"a"), b"N\0\0\0\0\0\0\0\x01a");
        assert_eq!(extent(Ino(258), 4096), b"E\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\x10\0");
        assert_eq!(holders(SegmentId(3), 64), b"H\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x40");
        assert_eq!(total("bytes"), b"Tbytes");
        assert_eq!(split(&cookie(Ino(3), 9)), Ok((b'C', 3, &[0, 0, 0, 0, 0, 0, 0, 9][..])));
    }
}
