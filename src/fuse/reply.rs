//! Sends the outcome of an operation as the reply of its kind.
//!
//! Promise: each reply is sent once. Called by: `requests`. On failure: the errno of the outcome.

use super::operation::Answer;
use crate::fs::{Space, XattrReply};
use fuser::{ReplyEmpty, ReplyStatfs, ReplyWrite, ReplyXattr};

/// Sends that it is done.
pub(super) fn empty(reply: ReplyEmpty, done: Answer<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

/// Sends how many bytes were written.
pub(super) fn written(reply: ReplyWrite, len: u32, done: Answer<()>) {
    match done {
        Ok(()) => reply.written(len),
        Err(e) => reply.error(e),
    }
}

/// Sends an extended attribute, or how long it is.
pub(super) fn xattr(reply: ReplyXattr, found: Answer<XattrReply>) {
    match found {
        Ok(XattrReply::Length(n)) => reply.size(n),
        Ok(XattrReply::Bytes(bytes)) => reply.data(&bytes),
        Err(e) => reply.error(e),
    }
}

/// Sends how much room there is.
pub(super) fn statfs(reply: ReplyStatfs, room: Answer<Space>) {
    match room {
        Ok(s) => reply.statfs(
            s.blocks,
            s.blocks_free,
            s.blocks_free,
            s.inodes,
            s.inodes_free,
            s.block_bytes,
            s.name_bytes_max,
            s.block_bytes,
        ),
        Err(e) => reply.error(e),
    }
}
