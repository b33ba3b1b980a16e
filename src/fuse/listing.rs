//! Answers READDIR and READDIRPLUS.
//!
//! Promise: as many entries as the kernel has room for, each with the offset where the next call goes on; the kernel forgets
//! each inode that it was given, and no other.
//! Called by: `requests`. On failure: the errno that `fs::errno` decided.

use super::attr::{GENERATION, file_attr, file_type};
use super::ground::Ground;
use super::operation::Answer;
use crate::fs::OpKind;
use fuser::{INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Answers with the names in a directory.
pub(super) fn names(ground: &Ground, admitted: Answer<()>, ino: INodeNo, offset: u64, mut reply: ReplyDirectory) {
    let listed = ground.run(admitted, OpKind::Readdir, ino, |fs, ino| {
        fs.readdir(ino, offset, |e| {
            !reply.add(INodeNo(fs.shown_ino(e.ino).0), e.offset, file_type(e.kind), OsStr::from_bytes(&e.name))
        })
    });
    match listed {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

/// Answers with the names in a directory and the attributes of what they name.
pub(super) fn entries(ground: &Ground, admitted: Answer<()>, ino: INodeNo, offset: u64, mut reply: ReplyDirectoryPlus) {
    let mut given = Vec::new();
    let listed = ground.run(admitted, OpKind::Readdirplus, ino, |fs, ino| {
        fs.readdirplus(ino, offset, |e| {
            let Some(a) = e.attr else { return false };
            let name = OsStr::from_bytes(&e.name);
            let ino = INodeNo(fs.shown_ino(e.ino).0);
            let full = reply.add(ino, e.offset, name, &ground.ttl(&a), &file_attr(&a), GENERATION);
            if !full && !matches!(&*e.name, b"." | b"..") {
                given.push(e.ino);
            }
            !full
        })
    });
    match listed {
        Ok(()) => reply.ok(),
        Err(e) => {
            // The kernel never hears of these, so it will not forget them.
            given.into_iter().for_each(|ino| ground.fs.forget(ino, 1));
            reply.error(e);
        }
    }
}
