//! Decides what becomes of the set-id bits of a file that somebody changes.
//!
//! Promise: a change of content takes them unless the task has CAP_FSETID; `chown` takes them, also one that changes no
//! owner, unless overlayfs ends the copy of a file by it.
//! Why overlayfs can be told from `chown`: it sets mode and then owner, with no request in between. `chown` makes the
//! kernel ask for `security.capability` first. Both come as the same SETATTR, for which the kernel asks to take the bits.
//! Called by: `requests`. On failure: the bits go.

use super::privileges;
use crate::base::id::Ino;
use crate::base::lock::Held;
use crate::fs::{Attr, FileSystem, SetAttr};
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Modes with set-id bits that are remembered at a time; then all are forgotten.
const PENDING_MAX: usize = 1024;

/// The set-id modes that were set last, each with the task that did it.
#[derive(Default)]
pub(super) struct SetIds {
    pending: Mutex<HashMap<Ino, u32>>,
    /// Whether there may be any, so that other requests need no lock.
    any: AtomicBool,
}

/// Whether a task that changes a file's content takes its set-id bits, where the request does not say.
pub(super) fn dropped_by(fs: &FileSystem, task: u32, ino: Ino) -> bool {
    fs.has_set_id(ino) && !privileges::may_keep_set_id(task)
}

impl SetIds {
    /// Decides for a change of attributes, before it is made.
    pub(super) fn decide(&self, fs: &FileSystem, writeback: bool, task: u32, ino: Ino, set: &mut SetAttr) {
        let times = set.atime.is_some() || set.mtime.is_some();
        // The kernel asks for no change at all where it removes privileges before a write, also one through overlayfs,
        // and for `chown` to nobody. `chown` takes the bits also from a task that a write would let keep them, and that
        // task's writes ask for nothing.
        let no_change = set.mode.is_none() && set.uid.is_none() && set.gid.is_none() && set.size.is_none();
        // Where the kernel owns the times, `chown` comes with a change time, and a write does not. Elsewhere the two look alike.
        let is_write = writeback && set.ctime.is_none();
        let takes_from_all = no_change && !times && !is_write;
        let asks_the_task = no_change && !times || set.size.is_some();
        set.drop_set_id = takes_from_all || asks_the_task && dropped_by(fs, task, ino);
        let ends_copy = self.ends_copy(ino, task);
        set.keep_set_id = ends_copy && set.mode.is_none() && set.size.is_none();
    }

    /// Remembers a mode with set-id bits after it was set.
    pub(super) fn note(&self, task: u32, set: &SetAttr, after: &Attr) {
        // Task 0 stands for every task outside of the mount's PID namespace.
        if set.mode.is_none() || after.mode & (libc::S_ISUID | libc::S_ISGID) == 0 || task == 0 {
            return;
        }
        let mut pending = self.pending.held();
        if pending.len() >= PENDING_MAX {
            pending.clear();
        }
        pending.insert(after.ino, task);
        self.any.store(true, SeqCst);
    }

    /// Forgets the mode: something was asked about the inode.
    pub(super) fn interrupt(&self, ino: Ino) {
        if self.any.load(SeqCst) {
            self.take(ino);
        }
    }

    /// Whether this task has set the mode and nothing was asked about the inode since. Asking is something, too.
    fn ends_copy(&self, ino: Ino, task: u32) -> bool {
        self.any.load(SeqCst) && self.take(ino).is_some_and(|by| by == task)
    }

    fn take(&self, ino: Ino) -> Option<u32> {
        let mut pending = self.pending.held();
        let task = pending.remove(&ino);
        if pending.is_empty() {
            self.any.store(false, SeqCst);
        }
        task
    }
}

#[cfg(test)]
mod tests {
    use super::super::attr::no_attr;
    use super::*;

    fn set_mode(all: &SetIds, ino: Ino, task: u32, mode: u32) {
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        all.note(task, &set, &Attr { ino, mode: libc::S_IFREG | mode, ..no_attr() });
    }

    #[test]
    fn only_the_very_next_request_of_the_same_task_ends_a_copy() {
        let (all, file, other) = (SetIds::default(), Ino(7), Ino(8));
        assert!(!all.ends_copy(file, 1), "no mode was set");
        set_mode(&all, file, 1, 0o4755);
        assert!(all.ends_copy(file, 1));
        assert!(!all.ends_copy(file, 1), "once");
        set_mode(&all, file, 1, 0o2755);
        assert!(!all.ends_copy(file, 2), "by somebody else");
        assert!(!all.ends_copy(file, 1), "somebody else was in between");
        set_mode(&all, file, 1, 0o4755);
        all.interrupt(other);
        assert!(all.any.load(SeqCst));
        all.interrupt(file);
        assert!(!all.ends_copy(file, 1) && !all.any.load(SeqCst), "it was asked about");
        set_mode(&all, file, 0, 0o4755);
        assert!(!all.ends_copy(file, 0), "nobody knows who");
        set_mode(&all, file, 1, 0o755);
        assert!(!all.ends_copy(file, 1), "there are no bits to keep");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let all = SetIds::default();
        for ino in 0..3 * PENDING_MAX as u64 {
            set_mode(&all, Ino(ino), 1, 0o4755);
        }
        assert!(all.pending.held().len() <= PENDING_MAX);
    }
}
