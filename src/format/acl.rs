//! Access control lists as stored (format.md §5), which is as Linux hands them over.
//!
//! Promise: a list that was read makes sense, and encoded again is the same bytes. Called by: `fs`.

use super::wire::{Malformed, Reader, malformed};

/// The one version of the bytes there is.
pub const VERSION: u32 = 2;
/// The identity of entries that name nobody.
pub const NOBODY: u32 = u32::MAX;

/// Whom an entry speaks of, in the order in which entries stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tag {
    /// The file's owner.
    Owner = 0x01,
    /// A user by number.
    User = 0x02,
    /// The file's group.
    OwnerGroup = 0x04,
    /// A group by number.
    Group = 0x08,
    /// The most that all but owner and others may do.
    Mask = 0x10,
    /// Everybody else.
    Other = 0x20,
}

impl Tag {
    fn from_u16(n: u16) -> Option<Tag> {
        [Tag::Owner, Tag::User, Tag::OwnerGroup, Tag::Group, Tag::Mask, Tag::Other].into_iter().find(|t| *t as u16 == n)
    }
    /// Whether entries of this kind name somebody.
    #[must_use]
    pub fn is_named(self) -> bool {
        matches!(self, Tag::User | Tag::Group)
    }
}

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Who.
    pub tag: Tag,
    /// Read 4, write 2, execute 1.
    pub may: u16,
    /// The user or group of a named entry.
    pub id: u32,
}

/// A list that makes sense: owner, owner's group and others once each, a mask where somebody is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// Reads a list.
    pub fn decode(bytes: &[u8]) -> Result<Acl, Malformed> {
        let mut r = Reader::new(bytes);
        if r.u32("list version")? != VERSION {
            return malformed("list version");
        }
        let (entries, []) = r.rest().as_chunks::<8>() else { return malformed("list length") };
        let entries: Option<Vec<Entry>> = entries.iter().map(entry).collect();
        match entries.map(Acl).filter(Acl::makes_sense) {
            Some(acl) => Ok(acl),
            None => malformed("list entries"),
        }
    }

    /// The stored value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = VERSION.to_le_bytes().to_vec();
        for e in &self.0 {
            b.extend_from_slice(&(e.tag as u16).to_le_bytes());
            b.extend_from_slice(&e.may.to_le_bytes());
            b.extend_from_slice(&e.id.to_le_bytes());
        }
        b
    }

    fn makes_sense(&self) -> bool {
        let count = |tag| self.0.iter().filter(|e| e.tag == tag).count();
        let once = [Tag::Owner, Tag::OwnerGroup, Tag::Other].into_iter().all(|tag| count(tag) == 1);
        let named = self.0.iter().any(|e| e.tag.is_named());
        let masks = count(Tag::Mask);
        // Named entries stand in any order among themselves, and Linux does not mind one that is there twice.
        once && masks <= 1 && (masks == 1 || !named) && self.0.is_sorted_by_key(|e| e.tag)
    }

    /// The entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// Changes what each may do; who is listed stays.
    pub fn change(&mut self, change: impl Fn(&Entry) -> u16) {
        for e in &mut self.0 {
            e.may = change(e) & 7;
        }
    }
}

fn entry(bytes: &[u8; 8]) -> Option<Entry> {
    let [t0, t1, m0, m1, id @ ..] = *bytes;
    let tag = Tag::from_u16(u16::from_le_bytes([t0, t1]))?;
    let (may, id) = (u16::from_le_bytes([m0, m1]), u32::from_le_bytes(id));
    (may <= 7 && tag.is_named() == (id != NOBODY)).then_some(Entry { tag, may, id })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut b = 2u32.to_le_bytes().to_vec();
        for (tag, may, id) in entries {
            b.extend([tag.to_le_bytes(), may.to_le_bytes()].concat());
            b.extend(id.to_le_bytes());
        }
        b
    }

    const NAMED: [(u16, u16, u32); 5] =
        [(1, 7, NOBODY), (2, 6, 1000), (4, 5, NOBODY), (16, 7, NOBODY), (32, 4, NOBODY)];

    #[test]
    fn golden_list() {
        let stored = Acl::decode(&bytes(&NAMED)).map(|acl| acl.encode());
        let wanted = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x06\0\xe8\x03\0\0\x04\0\x05\0\xff\xff\xff\xff\
              \x10\0\x07\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
        assert_eq!(stored.as_deref(), Ok(&wanted[..]));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let n = NOBODY;
        for wrong in [
            &[][..],
            &[(1, 7, n)],                                               // no group, no others
            &[(1, 8, n), (4, 5, n), (32, 4, n)],                        // a permission there is none of
            &[(4, 5, n), (1, 7, n), (32, 4, n)],                        // out of order
            &[(1, 7, n), (1, 7, n), (4, 5, n), (32, 4, n)],             // two owners
            &[(1, 7, n), (2, 7, 5), (4, 5, n), (32, 4, n)],             // someone named and no mask
            &[(1, 7, n), (2, 7, n), (4, 5, n), (16, 7, n), (32, 4, n)], // nobody named
            &[(1, 7, 5), (4, 5, n), (32, 4, n)],                        // an owner with a number
            &[(1, 7, n), (4, 5, n), (64, 4, n)],                        // an unknown tag
        ] {
            assert!(Acl::decode(&bytes(wrong)).is_err(), "{wrong:?}");
        }
        for wrong in [&b"\x02\0"[..], b"\x01\0\0\0", &[&bytes(&NAMED)[..], &[0]].concat()] {
            assert!(Acl::decode(wrong).is_err());
        }
    }
}
