//! POSIX access control lists: read, judged, inherited, and kept in agreement with the permission bits.
//!
//! Promise: what is stored is a list that ext4 would have stored for the same calls, entry for entry; one that says no
//! more than the permission bits is not stored but put into them. So `mode` never contradicts the list: its group bits
//! are the mask. The rules are those of POSIX.1e draft 17 (23.1 to 23.5) as Linux applies them.
//! A list is stored as the extended attribute that programs know it by (format.md §5), in the bytes the kernel hands over.
//! Called by: the rest of `fs`. Takes: nothing. On failure: `Invalid` for a list that makes no sense.

use super::FsFault;

/// The attribute that holds the list of who may do what.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds what a directory gives to what is made in it.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";
/// Longest list in bytes: the kernel reads it into one page.
pub(super) const BYTES_MAX: usize = 4096;
/// The one version of the attribute's bytes there is.
const VERSION: u32 = 2;
/// The identity of entries that name nobody.
const NOBODY: u32 = u32::MAX;

/// Which of a file's two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Who may do what with it.
    Access,
    /// What is made in it gets this; directories only.
    Default,
}

impl Which {
    /// By the attribute's name.
    pub(super) fn of(name: &[u8]) -> Option<Which> {
        match name {
            ACCESS => Some(Which::Access),
            DEFAULT => Some(Which::Default),
            _ => None,
        }
    }
}

/// Whom an entry speaks of, in the order in which entries stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    Owner = 0x01,
    User = 0x02,
    OwnerGroup = 0x04,
    Group = 0x08,
    Mask = 0x10,
    Other = 0x20,
}

impl Tag {
    fn from_u16(n: u16) -> Option<Tag> {
        [Tag::Owner, Tag::User, Tag::OwnerGroup, Tag::Group, Tag::Mask, Tag::Other].into_iter().find(|t| *t as u16 == n)
    }
    fn is_named(self) -> bool {
        matches!(self, Tag::User | Tag::Group)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    /// Read 4, write 2, execute 1.
    may: u16,
    /// The user or group of a named entry.
    id: u32,
}

/// A list that makes sense: owner, owner's group and others once each, a mask where somebody is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// Reads an attribute's bytes; `None` for a list of nothing, which removes what is stored.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Acl>, FsFault> {
        let (version, rest) = bytes.split_first_chunk().ok_or(FsFault::Invalid)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(FsFault::Unsupported);
        }
        let (entries, []) = rest.as_chunks::<8>() else { return Err(FsFault::Invalid) };
        if entries.is_empty() {
            return Ok(None);
        }
        let entries: Option<Vec<Entry>> = entries.iter().map(entry).collect();
        let acl = Acl(entries.ok_or(FsFault::Invalid)?);
        if acl.makes_sense() { Ok(Some(acl)) } else { Err(FsFault::Invalid) }
    }

    /// The attribute's bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
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

    fn may(&self, tag: Tag) -> Option<u32> {
        self.0.iter().find(|e| e.tag == tag).map(|e| u32::from(e.may))
    }

    /// The permission bits that go with the list; with a mask the group's are the mask.
    fn permissions(&self) -> u32 {
        let group = self.may(Tag::Mask).or(self.may(Tag::OwnerGroup)).unwrap_or(0);
        self.may(Tag::Owner).unwrap_or(0) << 6 | group << 3 | self.may(Tag::Other).unwrap_or(0)
    }

    /// Whether the permission bits say all of it.
    fn is_plain(&self) -> bool {
        self.0.iter().all(|e| !e.tag.is_named() && e.tag != Tag::Mask)
    }

    /// The mode that setting the list gives, and the list if the mode does not say all of it.
    pub(super) fn set_on(self, mode: u32) -> (u32, Option<Acl>) {
        let mode = mode & !0o777 | self.permissions();
        let kept = (!self.is_plain()).then_some(self);
        (mode, kept)
    }

    /// The list after `chmod`: the group's bits go to the mask, and what is named stays.
    pub(super) fn chmod(&mut self, mode: u32) {
        let group = if self.may(Tag::Mask).is_some() { Tag::Mask } else { Tag::OwnerGroup };
        self.each(&[(Tag::Owner, mode >> 6), (group, mode >> 3), (Tag::Other, mode)], |_, bits| bits);
    }

    fn each(&mut self, bits: &[(Tag, u32)], change: impl Fn(u16, u16) -> u16) {
        for e in &mut self.0 {
            if let Some((_, bits)) = bits.iter().find(|(tag, _)| *tag == e.tag) {
                e.may = change(e.may, (bits & 7) as u16);
            }
        }
    }
}

fn entry(bytes: &[u8; 8]) -> Option<Entry> {
    let [t0, t1, m0, m1, id @ ..] = *bytes;
    let tag = Tag::from_u16(u16::from_le_bytes([t0, t1]))?;
    let may = u16::from_le_bytes([m0, m1]);
    // What stands there for nobody in particular is not looked at, and not kept.
    let id = if tag.is_named() { u32::from_le_bytes(id) } else { NOBODY };
    (may <= 7 && (!tag.is_named() || id != NOBODY)).then_some(Entry { tag, may, id })
}

/// What something new gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inherited {
    /// Its mode.
    pub(super) mode: u32,
    /// Its list, where the mode does not say all of it.
    pub(super) access: Option<Acl>,
    /// What it gives on, if it is a directory.
    pub(super) default: Option<Acl>,
}

/// What something made with `mode` gets in a directory with this default list. With one, the caller's umask counts for
/// nothing, and nothing is allowed that the call did not ask for.
pub(super) fn inherit(default: Option<&Acl>, mode: u32, umask: u32) -> Inherited {
    let is_link = mode & libc::S_IFMT == libc::S_IFLNK;
    let Some(default) = default.filter(|_| !is_link) else {
        let mode = if is_link { mode } else { mode & !(umask & 0o777) };
        return Inherited { mode, access: None, default: None };
    };
    let mut access = default.clone();
    let group = if access.may(Tag::Mask).is_some() { Tag::Mask } else { Tag::OwnerGroup };
    access.each(&[(Tag::Owner, mode >> 6), (group, mode >> 3), (Tag::Other, mode)], |given, asked| given & asked);
    let (mode, access) = access.set_on(mode);
    let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
    Inherited { mode, access, default: is_dir.then(|| default.clone()) }
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

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl::decode(&bytes(entries)).expect("it makes sense").expect("it says something")
    }

    const NAMED: [(u16, u16, u32); 5] =
        [(1, 7, NOBODY), (2, 6, 1000), (4, 5, NOBODY), (16, 7, NOBODY), (32, 4, NOBODY)];

    #[test]
    fn golden_list() {
        let stored = acl(&NAMED).encode();
        assert_eq!(
            stored,
            b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x06\0\xe8\x03\0\0\x04\0\x05\0\xff\xff\xff\xff\
              \x10\0\x07\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff"
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |bytes: &[u8]| Acl::decode(bytes).expect_err("it makes no sense").errno();
        assert_eq!(refused(b"\x02\0"), libc::EINVAL);
        assert_eq!(refused(b"\x01\0\0\0"), libc::EOPNOTSUPP);
        assert_eq!(refused(&[&bytes(&NAMED)[..], &[0]].concat()), libc::EINVAL);
        let n = NOBODY;
        for wrong in [
            &[(1, 7, n)][..],                                           // no group, no others
            &[(1, 8, n), (4, 5, n), (32, 4, n)],                        // a permission there is none of
            &[(4, 5, n), (1, 7, n), (32, 4, n)],                        // out of order
            &[(1, 7, n), (1, 7, n), (4, 5, n), (32, 4, n)],             // two owners
            &[(1, 7, n), (2, 7, 5), (4, 5, n), (32, 4, n)],             // someone named and no mask
            &[(1, 7, n), (2, 7, n), (4, 5, n), (16, 7, n), (32, 4, n)], // nobody named
            &[(1, 7, n), (4, 5, n), (64, 4, n)],                        // an unknown tag
        ] {
            assert_eq!(refused(&bytes(wrong)), libc::EINVAL, "{wrong:?}");
        }
        assert_eq!(Acl::decode(&bytes(&[])).expect("it says nothing"), None);
    }

    #[test]
    fn a_list_that_says_no_more_than_the_mode_is_not_kept() {
        let plain = acl(&[(1, 6, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY)]);
        assert_eq!(plain.set_on(0o104_777), (0o104_640, None));
        let (mode, kept) = acl(&NAMED).set_on(0o100_600);
        assert_eq!((mode, kept), (0o100_774, Some(acl(&NAMED))));
        let masked = acl(&[(1, 6, NOBODY), (4, 4, NOBODY), (16, 2, NOBODY), (32, 0, NOBODY)]);
        assert_eq!(
            masked.clone().set_on(0o100_000),
            (0o100_620, Some(masked)),
            "a mask alone is more than the mode says"
        );
    }

    #[test]
    fn chmod_sets_the_mask_and_leaves_who_is_named() {
        let mut a = acl(&NAMED);
        a.chmod(0o640);
        assert_eq!(a, acl(&[(1, 6, NOBODY), (2, 6, 1000), (4, 5, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY)]));
    }

    #[test]
    fn what_is_new_gets_what_was_asked_for_and_given() {
        let default = acl(&NAMED);
        let file = inherit(Some(&default), libc::S_IFREG | 0o640, 0o077);
        assert_eq!(file.mode, libc::S_IFREG | 0o640, "the umask counts for nothing");
        let shown = acl(&[(1, 6, NOBODY), (2, 6, 1000), (4, 5, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY)]);
        assert_eq!((file.access, file.default), (Some(shown), None));
        let dir = inherit(Some(&default), libc::S_IFDIR | 0o777, 0o022);
        assert_eq!((dir.mode, dir.default), (libc::S_IFDIR | 0o774, Some(default.clone())));
        let plain = acl(&[(1, 7, NOBODY), (4, 5, NOBODY), (32, 0, NOBODY)]);
        let file = inherit(Some(&plain), libc::S_IFREG | 0o666, 0o022);
        assert_eq!((file.mode, file.access), (libc::S_IFREG | 0o640, None));
        let link = inherit(Some(&default), libc::S_IFLNK | 0o777, 0o022);
        assert_eq!(link, Inherited { mode: libc::S_IFLNK | 0o777, access: None, default: None });
        assert_eq!(inherit(None, libc::S_IFREG | 0o666, 0o022).mode, libc::S_IFREG | 0o644);
    }
}
