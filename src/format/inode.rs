//! Inode attributes and directory entries as stored (format.md §5).
//!
//! Promise: fixed length, refused unless every byte is accounted for. Called by: `fs`, `check`.

use super::wire::{Malformed, Reader, malformed};
use crate::base::id::Ino;
use crate::base::world::Time;

/// Attributes of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names, plus for a directory its own `.` and each subdirectory's `..`.
    pub nlink: u32,
    /// Device number of a special file, as in `st_rdev`.
    pub rdev: u32,
    /// Length of a file or of a link's target in bytes; of a directory: its number of entries.
    pub size: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of content.
    pub mtime: Time,
    /// Last change of attributes.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
    /// A directory's parent; 0 for others.
    pub parent: Ino,
    /// The quota tree that it is charged to; 0 for none.
    pub tree: u32,
}

/// Length of a stored inode.
pub const INODE_BYTES: usize = 88;

impl Inode {
    /// The stored value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(INODE_BYTES);
        for n in [self.mode, self.uid, self.gid, self.nlink, self.rdev, self.tree] {
            b.extend_from_slice(&n.to_le_bytes());
        }
        b.extend_from_slice(&self.size.to_le_bytes());
        b.extend_from_slice(&self.parent.0.to_le_bytes());
        for t in [self.atime, self.mtime, self.ctime, self.btime] {
            b.extend_from_slice(&t.seconds.to_le_bytes());
            b.extend_from_slice(&t.nanos.to_le_bytes());
        }
        b
    }

    /// Reads a value.
    pub fn decode(bytes: &[u8]) -> Result<Inode, Malformed> {
        let mut r = Reader::new(bytes);
        let mut n = [0; 6];
        for slot in &mut n {
            *slot = r.u32("inode")?;
        }
        let (size, parent) = (r.u64("inode size")?, Ino(r.u64("inode parent")?));
        let mut t = [Time::default(); 4];
        for time in &mut t {
            time.seconds = r.u64("inode time")? as i64;
            time.nanos = r.u32("inode time")?;
            if time.nanos >= 1_000_000_000 {
                return malformed("inode time");
            }
        }
        r.end("inode tail")?;
        let [mode, uid, gid, nlink, rdev, tree] = n;
        let [atime, mtime, ctime, btime] = t;
        Ok(Inode { mode, uid, gid, nlink, rdev, size, atime, mtime, ctime, btime, parent, tree })
    }
}

/// What a name leads to (value of a NAME key).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameEntry {
    /// The inode.
    pub ino: Ino,
    /// Its place in the directory's order.
    pub cookie: u64,
    /// The file type bits of its mode, shifted down by 12 (as `d_type`).
    pub kind: u8,
}

impl NameEntry {
    /// The stored value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(17);
        b.extend_from_slice(&self.ino.0.to_le_bytes());
        b.extend_from_slice(&self.cookie.to_le_bytes());
        b.push(self.kind);
        b
    }
    /// Reads a value.
    pub fn decode(bytes: &[u8]) -> Result<NameEntry, Malformed> {
        let mut r = Reader::new(bytes);
        let e = NameEntry { ino: Ino(r.u64("name inode")?), cookie: r.u64("name cookie")?, kind: r.u8("name kind")? };
        r.end("name tail")?;
        Ok(e)
    }
}

/// What a cookie stands for (value of a COOKIE key).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieEntry {
    /// The inode.
    pub ino: Ino,
    /// As in `NameEntry`.
    pub kind: u8,
    /// The name.
    pub name: Vec<u8>,
}

impl CookieEntry {
    /// The stored value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(9 + self.name.len());
        b.extend_from_slice(&self.ino.0.to_le_bytes());
        b.push(self.kind);
        b.extend_from_slice(&self.name);
        b
    }
    /// Reads a value.
    pub fn decode(bytes: &[u8]) -> Result<CookieEntry, Malformed> {
        let mut r = Reader::new(bytes);
        Ok(CookieEntry { ino: Ino(r.u64("cookie inode")?), kind: r.u8("cookie kind")?, name: r.rest().to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_inode() {
        let t = |s| Time { seconds: s, nanos: 5 };
        let i = Inode {
            mode: 0o100_644,
            uid: 1,
            gid: 2,
            nlink: 3,
            rdev: 4,
            size: 5,
            atime: t(6),
            mtime: t(-1),
            ctime: t(8),
            btime: t(9),
            parent: Ino(0),
            tree: 0x0102,
        };
        let bytes = i.encode();
        assert_eq!(
            bytes,
            b"\xa4\x81\0\0\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0\x02\x01\0\0\x05\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
              \x06\0\0\0\0\0\0\0\x05\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x05\0\0\0\x08\0\0\0\0\0\0\0\x05\0\0\0\x09\0\0\0\0\0\0\0\x05\0\0\0"
        );
        assert_eq!(bytes.len(), INODE_BYTES);
        assert_eq!(Inode::decode(&bytes), Ok(i));
        assert!(Inode::decode(&bytes[..87]).is_err());
    }

    #[test]
    fn golden_entries() {
        let n = NameEntry { ino: Ino(2), cookie: 3, kind: 8 };
        assert_eq!(n.encode(), b"\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x08");
        assert_eq!(NameEntry::decode(&n.encode()), Ok(n));
        let c = CookieEntry { ino: Ino(2), kind: 8, name: b"x".to_vec() };
        assert_eq!(c.encode(), b"\x02\0\0\0\0\0\0\0\x08x");
        assert_eq!(CookieEntry::decode(&c.encode()), Ok(c));
    }
}
