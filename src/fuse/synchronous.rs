//! Operations that are answered only when they are durable: `-o sync`, `-o dirsync`, and direct writes with `O_DSYNC`.
//!
//! Promise: where the mount asks for it, an operation that was answered without an error survives a crash of the daemon and
//! a power cut. Each waits for one commit of the vault, which it shares with those that wait at the same time.
//! With `sync` the kernel itself sends FSYNC after each `write`, but not after other changes, and not after asynchronous
//! direct writes. `dirsync` is unknown to it. Called by: `requests`. On failure: the errno of a failed fsync.

use super::attr::{GENERATION, file_attr, ttl};
use super::operation::Answer;
use super::reply::empty;
use crate::base::id::Ino;
use crate::fs::{Attr, FileSystem, FsFault, OpKind};
use fuser::{Errno, INodeNo, OpenFlags, ReplyEmpty, ReplyEntry};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Which operations wait until they are durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Synchronous {
    /// Every change.
    pub(super) changes: bool,
    /// Changes of directories.
    pub(super) names: bool,
}

impl Synchronous {
    /// As the words of mount(8) say.
    pub(super) fn of(words: &[String]) -> Synchronous {
        let says = |word: &str| words.iter().any(|w| w == word);
        Synchronous { changes: says("sync"), names: says("sync") || says("dirsync") }
    }

    /// Whether a direct write on a file that was opened with `flags` waits.
    pub(super) fn direct_write(self, flags: OpenFlags) -> bool {
        // O_SYNC contains this bit.
        self.changes || flags.0 & libc::O_DSYNC != 0
    }
}

/// Runs `answer`: at once, or when everything that was acknowledged so far is durable.
pub(super) fn when_durable(
    wait: bool,
    fs: &Arc<FileSystem>,
    kind: OpKind,
    ino: Ino,
    answer: impl FnOnce(Answer<()>) + Send + 'static,
) {
    if !wait {
        return answer(Ok(()));
    }
    let inner = Arc::clone(fs);
    let begun = catch_unwind(AssertUnwindSafe(|| {
        fs.sync(Box::new(move |result| {
            let fault = |fault| Errno::from_i32(inner.answer(kind, ino, &FsFault::Vault(fault)));
            answer(result.map_err(fault));
        }));
    }));
    if begun.is_err() {
        // The reply, dropped, answers EIO.
        log::error!("waiting until {} on inode {ino} is durable panicked", kind.name());
    }
}

/// Answers FSYNC or FSYNCDIR when everything acknowledged so far is durable; no thread waits meanwhile.
pub(super) fn sync(fs: &Arc<FileSystem>, kind: OpKind, ino: Ino, reply: ReplyEmpty) {
    let inner = Arc::clone(fs);
    let start = fs.vault().world().elapsed();
    fs.ops().begin(kind);
    when_durable(true, fs, kind, ino, move |durable| {
        inner.ops().record(kind, inner.vault().world().elapsed().saturating_sub(start), durable.is_err());
        empty(reply, durable);
    });
}

/// Answers a change: at once, or when it is durable.
pub(super) fn changed(
    fs: &Arc<FileSystem>,
    wait: bool,
    kind: OpKind,
    ino: INodeNo,
    reply: ReplyEmpty,
    done: Answer<()>,
) {
    match done {
        Ok(()) => when_durable(wait, fs, kind, Ino(ino.0), move |durable| empty(reply, durable)),
        Err(e) => reply.error(e),
    }
}

/// Answers with an entry that was made in a directory: never with the root, whose attributes may not be kept.
pub(super) fn entry(fs: &Arc<FileSystem>, wait: bool, kind: OpKind, reply: ReplyEntry, made: Answer<Attr>) {
    let a = match made {
        Ok(a) => a,
        Err(e) => return reply.error(e),
    };
    let above = Arc::clone(fs);
    when_durable(wait, fs, kind, a.ino, move |durable| match durable {
        Ok(()) => reply.entry(&ttl(&a), &file_attr(&a), GENERATION),
        Err(e) => {
            // The kernel never hears of it, so it will not forget it.
            above.forget(a.ino, 1);
            reply.error(e);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_mount_decide() {
        let of = |words: &[&str]| Synchronous::of(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["nodev", "noatime"]), Synchronous::default());
        assert_eq!(of(&["dirsync"]), Synchronous { changes: false, names: true });
        assert_eq!(of(&["nodev", "sync"]), Synchronous { changes: true, names: true });
        assert!(of(&[]).direct_write(OpenFlags(libc::O_DSYNC)) && of(&[]).direct_write(OpenFlags(libc::O_SYNC)));
        assert!(of(&["sync"]).direct_write(OpenFlags(0)) && !of(&["dirsync"]).direct_write(OpenFlags(libc::O_DIRECT)));
    }
}
