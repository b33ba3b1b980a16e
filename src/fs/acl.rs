//! POSIX access control lists: judged, inherited, and kept in agreement with the permission bits.
//!
//! Promise: what is stored is a list that ext4 would have stored for the same calls, entry for entry; one that says no
//! more than the permission bits is not stored but put into them. So `mode` never contradicts the list: its group bits
//! are the mask. The rules are those of POSIX.1e draft 17 (23.1 to 23.5) as Linux applies them.
//! A list is stored as the extended attribute that programs know it by (format.md §5), in the bytes the kernel hands over.
//! Called by: the rest of `fs`. Takes: nothing. On failure: `Invalid` for a list that makes no sense.

use super::FsFault;
use crate::format::acl::{Acl, Tag, VERSION};

/// The attribute that holds the list of who may do what.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds what a directory gives to what is made in it.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";
/// Longest list in bytes: the kernel reads it into one page.
pub(super) const BYTES_MAX: usize = 4096;
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

/// Reads what a program sets; `None` for a list of nothing, which removes what is stored.
pub(super) fn read(bytes: &[u8]) -> Result<Option<Acl>, FsFault> {
    let (version, entries) = bytes.split_first_chunk().ok_or(FsFault::Invalid)?;
    if u32::from_le_bytes(*version) != VERSION {
        return Err(FsFault::Unsupported);
    }
    if entries.is_empty() {
        return Ok(None);
    }
    Acl::decode(bytes).map(Some).map_err(|_| FsFault::Invalid)
}

impl Acl {
    fn may(&self, tag: Tag) -> Option<u32> {
        self.entries().iter().find(|e| e.tag == tag).map(|e| u32::from(e.may))
    }

    /// The entry whose permissions are the group's bits of the mode.
    fn group(&self) -> Tag {
        if self.may(Tag::Mask).is_some() { Tag::Mask } else { Tag::OwnerGroup }
    }

    /// The permission bits that go with the list; with a mask the group's are the mask.
    fn permissions(&self) -> u32 {
        let may = |tag| self.may(tag).unwrap_or(0);
        may(Tag::Owner) << 6 | may(self.group()) << 3 | may(Tag::Other)
    }

    /// Whether the permission bits say all of it.
    fn is_plain(&self) -> bool {
        self.entries().iter().all(|e| !e.tag.is_named() && e.tag != Tag::Mask)
    }

    /// The mode that setting the list gives, and the list if the mode does not say all of it.
    pub(super) fn set_on(self, mode: u32) -> (u32, Option<Acl>) {
        let mode = mode & !0o777 | self.permissions();
        let kept = (!self.is_plain()).then_some(self);
        (mode, kept)
    }

    /// The list after `chmod`: the group's bits go to the mask, and what is named stays.
    pub(super) fn chmod(&mut self, mode: u32) {
        self.meet(mode, |_, asked| asked);
    }

    /// Puts together, for whom the mode speaks of, what the list says and what the mode does.
    fn meet(&mut self, mode: u32, together: impl Fn(u16, u16) -> u16) {
        let group = self.group();
        self.change(|e| match e.tag {
            Tag::Owner => together(e.may, (mode >> 6) as u16 & 7),
            Tag::Other => together(e.may, mode as u16 & 7),
            tag if tag == group => together(e.may, (mode >> 3) as u16 & 7),
            Tag::User | Tag::OwnerGroup | Tag::Group | Tag::Mask => e.may,
        });
    }
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
    access.meet(mode, |given, asked| given & asked);
    let (mode, access) = access.set_on(mode);
    let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
    Inherited { mode, access, default: is_dir.then(|| default.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::acl::NOBODY;

    fn bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut b = 2u32.to_le_bytes().to_vec();
        for (tag, may, id) in entries {
            b.extend([tag.to_le_bytes(), may.to_le_bytes()].concat());
            b.extend(id.to_le_bytes());
        }
        b
    }

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        read(&bytes(entries)).expect("it makes sense").expect("it says something")
    }

    const NAMED: [(u16, u16, u32); 5] =
        [(1, 7, NOBODY), (2, 6, 1000), (4, 5, NOBODY), (16, 7, NOBODY), (32, 4, NOBODY)];

    #[test]
    fn what_makes_no_sense_is_refused_as_ext4_does() {
        let refused = |bytes: &[u8]| read(bytes).expect_err("it makes no sense").errno();
        assert_eq!(refused(b"\x02\0"), libc::EINVAL);
        assert_eq!(refused(b"\x01\0\0\0"), libc::EOPNOTSUPP);
        assert_eq!(refused(&bytes(&NAMED[1..])), libc::EINVAL);
        assert_eq!(read(&bytes(&[])).expect("it says nothing"), None);
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
