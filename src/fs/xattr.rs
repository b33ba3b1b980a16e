//! Extended attributes, access control lists among them.
//!
//! Promise: the names of a file's attributes, and its access control lists, are in memory once someone asked, so that the
//! kernel's question for `security.capability` costs nothing, nor does a look for what a directory gives on.
//! Namespaces: user, trusted, security, and of system the two lists (`acl`); who may use which, the kernel checks.
//! One attribute is ours: `user.strongroom.compression`, of which only values that mean something are taken.
//! Called by: `fuse`, tests; `node` and `attr` for the lists; `data` and `copy` before they write. On failure: nothing was changed.

use super::acl::{self, Which};
use super::attribute_cache::Discarded;
use super::node::{Node, State, is};
use super::storage::is_storage;
use super::{FileSystem, FsFault};
use crate::base::choice::Compression;
use crate::base::id::Ino;
use crate::base::limits::{NAME_BYTES_MAX, XATTR_LIST_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use crate::format::acl::Acl;
use crate::format::key;
use crate::vault::Op;
use std::collections::BTreeSet;

/// How what is written in a file is compressed; what a directory has, what is made in it gets. Stored as any other.
pub(super) const COMPRESSION: &[u8] = b"user.strongroom.compression";

/// What there is of an inode's extended attributes: all names, and those as they are stored that mean something to us.
#[derive(Default)]
pub(super) struct Xattrs {
    names: BTreeSet<Vec<u8>>,
    compression: Option<Compression>,
    access: Option<Acl>,
    default: Option<Acl>,
}

impl Xattrs {
    /// The names, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.names.iter()
    }

    /// What a directory gives on.
    pub(super) fn given_on(&self) -> Option<&Acl> {
        self.default.as_ref()
    }

    /// The choice of compression.
    pub(super) fn compression(&self) -> Option<Compression> {
        self.compression
    }

    /// Stores the choice of the directory that the inode is made in.
    pub(super) fn inherit_compression(&mut self, op: &mut Op<'_>, ino: Ino, how: Compression) {
        self.names.insert(COMPRESSION.to_vec());
        self.compression = Some(how);
        op.put(key::xattr(ino, COMPRESSION), how.to_string().into_bytes());
    }

    /// Stores a list, or removes it.
    pub(super) fn set_acl(&mut self, op: &mut Op<'_>, ino: Ino, which: Which, acl: Option<Acl>) {
        let (name, place) = match which {
            Which::Access => (acl::ACCESS, &mut self.access),
            Which::Default => (acl::DEFAULT, &mut self.default),
        };
        match &acl {
            Some(acl) => {
                self.names.insert(name.to_vec());
                op.put(key::xattr(ino, name), acl.encode());
            }
            None if self.names.remove(name) => op.delete(key::xattr(ino, name)),
            None => {}
        }
        *place = acl;
    }

    /// Brings the list of who may do what into agreement with a mode that was set.
    pub(super) fn chmod(&mut self, op: &mut Op<'_>, ino: Ino, mode: u32) {
        if let Some(mut acl) = self.access.take() {
            acl.chmod(mode);
            self.set_acl(op, ino, Which::Access, Some(acl));
        }
    }
}

/// What `setxattr` makes of an attribute that is, or is not, there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrHow {
    /// Either way it is set.
    Set,
    /// It must not exist.
    Create,
    /// It must exist.
    Replace,
}

impl XattrHow {
    /// Reads the flags of the system call.
    #[must_use]
    pub fn from_flags(flags: i32) -> Option<XattrHow> {
        match flags {
            0 => Some(XattrHow::Set),
            libc::XATTR_CREATE => Some(XattrHow::Create),
            libc::XATTR_REPLACE => Some(XattrHow::Replace),
            _ => None,
        }
    }
}

/// An answer to a caller who may only have asked for its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum XattrReply {
    /// The length in bytes.
    Length(u32),
    /// The bytes.
    Bytes(Vec<u8>),
}

fn reply(bytes: Vec<u8>, room: u32) -> Result<XattrReply, FsFault> {
    match room {
        0 => Ok(XattrReply::Length(bytes.len() as u32)),
        _ if bytes.len() > room as usize => Err(FsFault::Range),
        _ => Ok(XattrReply::Bytes(bytes)),
    }
}

/// The choice that a value is, if it is one.
fn choice(value: &[u8]) -> Option<Compression> {
    str::from_utf8(value).ok()?.parse().ok()
}

fn check(name: &[u8], acls: bool) -> Result<(), FsFault> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsFault::Range);
    }
    if Which::of(name).is_some() {
        return if acls { Ok(()) } else { Err(FsFault::Unsupported) };
    }
    let known = [&b"user."[..], b"trusted.", b"security."];
    match known.iter().find_map(|space| name.strip_prefix(*space)) {
        Some([]) => Err(FsFault::Invalid),
        Some(_) => Ok(()),
        None => Err(FsFault::Unsupported),
    }
}

impl FileSystem {
    /// Makes the names of an inode's extended attributes and its lists known; may read the index.
    pub(super) fn load_xattrs(&self, node: &Node) -> Result<(), FsFault> {
        if node.state().xattrs.is_some() {
            return Ok(());
        }
        let prefix = key::prefix(key::XATTR, node.ino.0);
        let mut found = Xattrs::default();
        self.scan_all(&prefix, |key, value| {
            let name = &key[prefix.len()..];
            // One that makes no sense gives nothing on, and must keep nobody from deleting the file; the kernel, which reads it
            // by itself, lets nobody in by it.
            match Which::of(name) {
                Some(Which::Access) => found.access = Acl::decode(value).ok(),
                Some(Which::Default) => found.default = Acl::decode(value).ok(),
                // One that another strongroom knew, and this one does not, counts as none.
                None if name == COMPRESSION => found.compression = choice(value),
                None => {}
            }
            found.names.insert(name.to_vec());
            Ok(())
        })?;
        // Whoever changes attributes has loaded them first, so a list read beside a change is never the first.
        node.state().xattrs.get_or_insert(found);
        Ok(())
    }

    fn has_xattr(&self, node: &Node, name: &[u8]) -> Result<bool, FsFault> {
        self.load_xattrs(node)?;
        Ok(node.state().xattrs.as_ref().is_some_and(|all| all.names.contains(name)))
    }

    /// An attribute's value; `room` 0 asks for its length.
    pub fn getxattr(&self, ino: Ino, name: &[u8], room: u32) -> Result<XattrReply, FsFault> {
        check(name, self.options.acl)?;
        if is_storage(ino) {
            return Err(FsFault::NoAttribute);
        }
        let pin = self.pin(ino)?;
        if !self.has_xattr(&pin, name)? {
            return Err(FsFault::NoAttribute);
        }
        reply(self.vault.get(&key::xattr(ino, name))?.ok_or(FsFault::NoAttribute)?, room)
    }

    /// The names of all attributes, each with a zero byte behind it; `room` 0 asks for their length.
    pub fn listxattr(&self, ino: Ino, room: u32) -> Result<XattrReply, FsFault> {
        self.listxattr_for(ino, room, || true)
    }

    /// The names of the attributes that somebody may see, each with a zero byte behind it; `room` 0 asks for their length.
    /// `sees_trusted` is asked only if there are `trusted` ones: the kernel hides their values and not their names.
    pub fn listxattr_for(
        &self,
        ino: Ino,
        room: u32,
        sees_trusted: impl FnOnce() -> bool,
    ) -> Result<XattrReply, FsFault> {
        if is_storage(ino) {
            return reply(Vec::new(), room);
        }
        let pin = self.pin(ino)?;
        self.load_xattrs(&pin)?;
        let is_trusted = |name: &[u8]| name.starts_with(b"trusted.");
        // Whoever asks may be slow to look up, so before the lock.
        let has_trusted = pin.state().xattrs.iter().flat_map(Xattrs::names).any(|name| is_trusted(name));
        let trusted = has_trusted && sees_trusted();
        let mut list = Vec::new();
        for name in pin.state().xattrs.iter().flat_map(Xattrs::names) {
            if Which::of(name).is_some() && !self.options.acl || !trusted && is_trusted(name) {
                continue;
            }
            list.extend_from_slice(name);
            list.push(0);
        }
        reply(list, room)
    }

    /// Sets an attribute on behalf of someone who may keep a file's set-group-ID bit.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], how: XattrHow) -> Result<(), FsFault> {
        self.setxattr_by(ino, name, value, how, |_| true)
    }

    /// Sets an attribute. `in_group` says whether the caller belongs to a group or need not; it is asked only where that
    /// matters: a list set by someone else takes the set-group-ID bit away, as `chmod` by them would.
    pub fn setxattr_by(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        how: XattrHow,
        in_group: impl FnOnce(u32) -> bool,
    ) -> Result<(), FsFault> {
        check(name, self.options.acl)?;
        if is_storage(ino) {
            return Err(FsFault::NotPermitted);
        }
        self.writable()?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(FsFault::ValueTooLarge);
        }
        if let Some(which) = Which::of(name) {
            return self.set_acl(ino, which, value, in_group);
        }
        let chosen = (name == COMPRESSION).then(|| choice(value).ok_or(FsFault::Invalid)).transpose()?;
        let pin = self.pin(ino)?;
        self.load_xattrs(&pin)?;
        self.vault.admit(0)?;
        let mut state = pin.state();
        let now = self.now();
        let names = &mut known(&mut state.xattrs).names;
        match (how, names.contains(name)) {
            (XattrHow::Create, true) => return Err(FsFault::Exists),
            (XattrHow::Replace, false) => return Err(FsFault::NoAttribute),
            (XattrHow::Set | XattrHow::Replace, true) => {}
            (XattrHow::Set | XattrHow::Create, false) => {
                let listed: usize = names.iter().map(|n| n.len() + 1).sum();
                if listed + name.len() + 1 > XATTR_LIST_BYTES_MAX {
                    return Err(FsFault::TooManyAttributes);
                }
                names.insert(name.to_vec());
            }
        }
        state.inode.ctime = now;
        let mut op = self.vault.begin();
        op.put(key::xattr(ino, name), value.to_vec());
        Self::store(&mut op, ino, &state);
        op.commit();
        if chosen.is_some() {
            self.choose_compression(&pin, &mut state, chosen);
        }
        Ok(())
    }

    fn choose_compression(&self, node: &Node, state: &mut State, how: Option<Compression>) {
        known(&mut state.xattrs).compression = how;
        if is(&state.inode, libc::S_IFREG) {
            node.file(&self.vault).compress(how);
        }
    }

    /// Before the first write to a file: how it is to be compressed. A choice that cannot be read keeps nobody from writing.
    pub(super) fn decide_compression(&self, node: &Node) {
        let file = node.file(&self.vault);
        if file.is_compression_undecided() && self.load_xattrs(node).is_ok() {
            // With the state held, so that a choice that is just being made is the later one.
            file.compress(known(&mut node.state().xattrs).compression);
        }
    }

    fn set_acl(&self, ino: Ino, which: Which, value: &[u8], in_group: impl FnOnce(u32) -> bool) -> Result<(), FsFault> {
        if value.len() > acl::BYTES_MAX {
            return Err(FsFault::ValueTooLarge);
        }
        let acl = acl::read(value)?;
        let pin = self.pin(ino)?;
        let inode = pin.inode();
        if is(&inode, libc::S_IFLNK) {
            return Err(FsFault::Unsupported);
        }
        if which == Which::Default && !is(&inode, libc::S_IFDIR) {
            return if acl.is_some() { Err(FsFault::Denied) } else { Ok(()) };
        }
        // Whoever asks may be slow to find out about, so before the lock; the owner can only change to a group of theirs.
        let keeps_set_gid = which == Which::Default || inode.mode & libc::S_ISGID == 0 || in_group(inode.gid);
        self.load_xattrs(&pin)?;
        self.vault.admit(0)?;
        let mut state = pin.state();
        let now = self.now();
        let State { inode, xattrs } = &mut *state;
        let before = *inode;
        let kept = match (which, acl) {
            (Which::Access, Some(acl)) => {
                let (mode, kept) = acl.set_on(inode.mode);
                inode.mode = if keeps_set_gid { mode } else { mode & !libc::S_ISGID };
                kept
            }
            (Which::Access | Which::Default, acl) => acl,
        };
        let mut op = self.vault.begin();
        known(xattrs).set_acl(&mut op, ino, which, kept);
        inode.ctime = now;
        let after = *inode;
        Self::store(&mut op, ino, &state);
        op.commit();
        drop(state);
        self.settle(ino, &before, &after, Discarded::ChangeTime);
        Ok(())
    }

    /// Removes an attribute; of the lists also one that is not there.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), FsFault> {
        check(name, self.options.acl)?;
        if is_storage(ino) {
            return Err(FsFault::NoAttribute);
        }
        self.writable()?;
        let pin = self.pin(ino)?;
        self.load_xattrs(&pin)?;
        let mut state = pin.state();
        let now = self.now();
        let all = known(&mut state.xattrs);
        if !all.names.contains(name) {
            return if Which::of(name).is_some() { Ok(()) } else { Err(FsFault::NoAttribute) };
        }
        let mut op = self.vault.begin();
        match Which::of(name) {
            Some(which) => all.set_acl(&mut op, ino, which, None),
            None => {
                all.names.remove(name);
                op.delete(key::xattr(ino, name));
            }
        }
        state.inode.ctime = now;
        Self::store(&mut op, ino, &state);
        op.commit();
        if name == COMPRESSION {
            self.choose_compression(&pin, &mut state, None);
        }
        Ok(())
    }
}

/// What `load_xattrs` has made known.
pub(super) fn known(xattrs: &mut Option<Xattrs>) -> &mut Xattrs {
    xattrs.as_mut().expect("load_xattrs made them known, and they stay known")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_kept() {
        assert!(check(b"user.a", true).is_ok() && check(b"security.capability", true).is_ok());
        assert!(check(acl::ACCESS, true).is_ok());
        assert_eq!(check(acl::ACCESS, false).map_err(|e| e.errno()), Err(libc::EOPNOTSUPP));
        assert_eq!(check(b"system.other", true).map_err(|e| e.errno()), Err(libc::EOPNOTSUPP));
        assert_eq!(check(b"user.", true).map_err(|e| e.errno()), Err(libc::EINVAL));
    }

    #[test]
    fn a_choice_is_one_of_four_words() {
        assert_eq!(choice(b"none"), Some(Compression::None));
        assert_eq!(Compression::ALL.iter().filter(|c| choice(c.to_string().as_bytes()) == Some(**c)).count(), 4);
        for wrong in [&b""[..], b"None", b"zstd\n", b"zstd\0", b"gzip", b"\xff"] {
            assert_eq!(choice(wrong), None);
        }
    }

    #[test]
    fn a_buffer_too_small_is_told() {
        assert_eq!(reply(vec![1, 2], 0).map_err(|e| e.errno()), Ok(XattrReply::Length(2)));
        assert_eq!(reply(vec![1, 2], 1).map_err(|e| e.errno()), Err(libc::ERANGE));
        assert_eq!(reply(vec![1, 2], 2).map_err(|e| e.errno()), Ok(XattrReply::Bytes(vec![1, 2])));
    }
}
