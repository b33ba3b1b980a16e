//! Answers WRITE requests: of programs, and of the kernel's cache.
//!
//! Promise: a write is answered once its bytes are in the vault's buffers (on stable media, where the mount or the file asks for
//! that), and no cached page then shows what a direct write replaced. A write of the kernel's cache that the vault may take
//! later is handed to `held`.
//! Called by: `requests`. On failure: the errno that `fs::errno` decided.

use super::held::{HeldWrite, Holder};
use super::operation::{Written, run_write};
use super::page_cache::PageCache;
use super::reply::written;
use super::spare::{Spare, Waits};
use super::synchronous::{Synchronous, when_durable};
use crate::base::id::Ino;
use crate::base::limits::FREE_INOS;
use crate::fs::{FileSystem, FsFault, OpKind, WriteFrom, WriteHow};
use crate::vault::VaultFault;
use fuser::{OpenFlags, ReplyWrite};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What answering a write needs.
pub(super) struct Writes {
    pub fs: Arc<FileSystem>,
    /// Whether the kernel caches writes, and with them owns the times.
    pub writeback: AtomicBool,
    pub page_cache: PageCache,
    pub synchronous: Synchronous,
    /// Writes of the kernel's cache that wait for room, or for the backing directory.
    pub holder: Holder,
    /// Where a write waits for the byte budget, for room, or for the disk.
    pub spare: Arc<Spare>,
}

/// A write as the kernel asks for it.
pub(super) struct WriteRequest<'a> {
    pub ino: Ino,
    pub offset: u64,
    pub data: &'a [u8],
    /// Whether it comes from the kernel's cache.
    pub cached: bool,
    /// Whether it goes past the kernel's cache.
    pub direct: bool,
    pub drop_set_id: bool,
    pub open_flags: OpenFlags,
    pub reply: ReplyWrite,
}

impl Writes {
    /// Answers a write of somebody who is let in, on this thread if enough others are left.
    pub(super) fn write(self: &Arc<Self>, request: WriteRequest<'_>) {
        if let Some(_permit) = self.spare.permit() {
            return self.answer(request);
        }
        let WriteRequest { ino, offset, data, cached, direct, drop_set_id, open_flags, reply } = request;
        let (writes, data) = (Arc::clone(self), data.to_vec());
        self.spare.hand_over(Waits::Changing, move || {
            writes.answer(WriteRequest { ino, offset, data: &data, cached, direct, drop_set_id, open_flags, reply });
        });
    }

    fn answer(&self, request: WriteRequest<'_>) {
        let WriteRequest { ino, offset, data, cached, direct, drop_set_id, open_flags, reply } = request;
        if !direct {
            self.page_cache.filled(ino, offset, data.len());
        }
        // An order to `control` takes no room, and must come through when there is none.
        let cached = cached && !FREE_INOS.contains(&ino.0);
        let from = if cached { WriteFrom::Cache } else { WriteFrom::Program };
        let how = WriteHow { drop_set_id, stamp: !self.writeback.load(Relaxed) };
        let written_now = run_write(&self.fs, ino, cached, |fs| {
            // While the kernel may hand over more at once than there are threads, none of them waits for the byte budget.
            if cached && self.holder.is_holding() {
                return Err(FsFault::Vault(VaultFault::BackingFull));
            }
            fs.write_from(from, ino, offset, data, how)
        });
        match written_now {
            Ok(Written::Now) => self.fs.vault().stats().unwritten.wrote(ino, offset, data.len() as u64),
            Ok(Written::NotYet { fault, since }) => {
                let data = data.to_vec();
                return self.holder.hold(HeldWrite { ino, offset, data, how, fault, reply, since });
            }
            Err(e) => {
                if cached {
                    self.fs.vault().stats().unwritten.refuse(ino, offset, data.len() as u64);
                }
                return reply.error(e);
            }
        }
        // The next `write` of a program to this file is told.
        let will_refuse = || self.fs.vault().is_stopped() || self.fs.vault().is_nearly_full();
        if cached && will_refuse() && !self.holder.is_marked(ino) {
            self.holder.mark(ino);
        }
        let len = data.len();
        if !direct {
            return reply.written(len as u32);
        }
        let (fs, wait) = (Arc::clone(&self.fs), self.synchronous.direct_write(open_flags));
        let answer = move || {
            when_durable(wait, &fs, OpKind::Write, ino, move |durable| {
                written(reply, len as u32, durable);
            });
        };
        // Where direct writes come one by one, the kernel drops the pages itself.
        if how.stamp { answer() } else { self.page_cache.written_past(ino, offset, len, answer) }
    }
}
