//! Extended attributes.
//!
//! Promise: the names of a file's attributes are in memory once someone asked, so that the kernel's question for
//! `security.capability` costs nothing. Namespaces: user, trusted, security; who may use which, the kernel checks.
//! Called by: `fuse`, tests. On failure: nothing was changed.

use super::node::Node;
use super::storage::is_storage;
use super::{FileSystem, FsFault};
use crate::base::id::Ino;
use crate::base::limits::{NAME_BYTES_MAX, XATTR_LIST_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use crate::format::key;

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

fn check(name: &[u8]) -> Result<(), FsFault> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsFault::Range);
    }
    let known = [&b"user."[..], b"trusted.", b"security."];
    match known.iter().find_map(|space| name.strip_prefix(*space)) {
        Some([]) => Err(FsFault::Invalid),
        Some(_) => Ok(()),
        None => Err(FsFault::Unsupported),
    }
}

impl FileSystem {
    fn has_xattr(&self, node: &Node, name: &[u8]) -> Result<bool, FsFault> {
        self.load_xattrs(node)?;
        Ok(node.state().xattrs.as_ref().is_some_and(|names| names.contains(name)))
    }

    /// An attribute's value; `room` 0 asks for its length.
    pub fn getxattr(&self, ino: Ino, name: &[u8], room: u32) -> Result<XattrReply, FsFault> {
        check(name)?;
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
        self.listxattr_for(ino, room, true)
    }

    /// The same for somebody who may not see the `trusted` ones, where so asked; the kernel hides their values and not their names.
    pub fn listxattr_for(&self, ino: Ino, room: u32, trusted: bool) -> Result<XattrReply, FsFault> {
        if is_storage(ino) {
            return reply(Vec::new(), room);
        }
        let pin = self.pin(ino)?;
        self.load_xattrs(&pin)?;
        let mut list = Vec::new();
        for name in pin.state().xattrs.iter().flatten() {
            if !trusted && name.starts_with(b"trusted.") {
                continue;
            }
            list.extend_from_slice(name);
            list.push(0);
        }
        reply(list, room)
    }

    /// Sets an attribute.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], how: XattrHow) -> Result<(), FsFault> {
        check(name)?;
        if is_storage(ino) {
            return Err(FsFault::NotPermitted);
        }
        self.writable()?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(FsFault::ValueTooLarge);
        }
        let pin = self.pin(ino)?;
        self.load_xattrs(&pin)?;
        self.vault.admit(0)?;
        let now = self.now();
        let mut state = pin.state();
        let names = state.xattrs.as_mut().expect("load_xattrs made them known, and they stay known");
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
        Ok(())
    }

    /// Removes an attribute.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), FsFault> {
        check(name)?;
        if is_storage(ino) {
            return Err(FsFault::NoAttribute);
        }
        self.writable()?;
        let pin = self.pin(ino)?;
        self.load_xattrs(&pin)?;
        let now = self.now();
        let mut state = pin.state();
        if !state.xattrs.as_mut().is_some_and(|names| names.remove(name)) {
            return Err(FsFault::NoAttribute);
        }
        state.inode.ctime = now;
        let mut op = self.vault.begin();
        op.delete(key::xattr(ino, name));
        Self::store(&mut op, ino, &state);
        op.commit();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_kept() {
        assert!(check(b"user.a").is_ok() && check(b"security.capability").is_ok());
        assert_eq!(check(b"system.posix_acl_access").map_err(|e| e.errno()), Err(libc::EOPNOTSUPP));
        assert_eq!(check(b"user.").map_err(|e| e.errno()), Err(libc::EINVAL));
    }

    #[test]
    fn a_buffer_too_small_is_told() {
        assert_eq!(reply(vec![1, 2], 0).map_err(|e| e.errno()), Ok(XattrReply::Length(2)));
        assert_eq!(reply(vec![1, 2], 1).map_err(|e| e.errno()), Err(libc::ERANGE));
        assert_eq!(reply(vec![1, 2], 2).map_err(|e| e.errno()), Ok(XattrReply::Bytes(vec![1, 2])));
    }
}
