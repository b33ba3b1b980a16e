//! Holds what answering a request needs, on whatever thread it is answered.
//!
//! Promise: an operation runs only for somebody who was let in.
//! Called by: `requests`, `listing`. On failure: the errno that `fs::errno` decided.

use super::attr::ttl;
use super::operation::{Answer, run};
use super::seek::Seeker;
use super::set_id::SetIds;
use super::spare::Spare;
use super::writes::Writes;
use crate::base::id::{Ino, ROOT_INO};
use crate::fs::{Attr, FileSystem, FsFault, OpKind};
use fuser::{INodeNo, ReplyData};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

thread_local! {
    /// What a READ answers with; each thread has its own, kept at the size of the largest so far.
    static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What answering a request needs.
pub(super) struct Ground {
    pub(super) fs: Arc<FileSystem>,
    pub(super) seeker: Seeker,
    pub(super) writes: Arc<Writes>,
    /// Where operations run that may wait.
    pub(super) spare: Arc<Spare>,
    pub(super) set_ids: SetIds,
    pub(super) has_door: bool,
}

impl Ground {
    /// Runs an operation for whoever was let in.
    pub(super) fn run<T>(
        &self,
        admitted: Answer<()>,
        kind: OpKind,
        ino: INodeNo,
        call: impl FnOnce(&FileSystem, Ino) -> Result<T, FsFault>,
    ) -> Answer<T> {
        admitted?;
        run(&self.fs, kind, ino, call)
    }

    /// Answers with bytes of a file.
    pub(super) fn read(&self, admitted: Answer<()>, ino: INodeNo, offset: u64, size: usize, reply: ReplyData) {
        READ.with_borrow_mut(|out| {
            out.clear();
            match self.run(admitted, OpKind::Read, ino, |fs, ino| fs.read(ino, offset, size, out)) {
                Ok(()) => reply.data(out),
                Err(e) => reply.error(e),
            }
        });
    }

    /// How long the kernel may keep attributes. With a door it must ask for the root's at each step through it, so that every
    /// path is walked past the door, also to what the kernel has in its caches.
    pub(super) fn ttl(&self, a: &Attr) -> Duration {
        if self.has_door && a.ino == ROOT_INO { Duration::ZERO } else { ttl(a) }
    }
}
