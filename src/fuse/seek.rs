//! `lseek` for data and holes, with a kernel above that holds what it has not written back.
//!
//! Promise: what a program wrote before it asked is never called a hole, wherever it is by then.
//! Why it holds: an answer that rests on a hole is given only after the kernel was made to let go of its pages of that hole,
//! which writes back those that are dirty, and the filesystem, asked again, still says the same. Only pages of holes are let
//! go: of a file without holes at most the last one.
//! On a thread of its own: letting go waits for writes to be answered, which takes the other threads.
//! Called by: `requests`. On failure: after a few rounds with a writer that is always faster, the last answer.

use super::requests::Asker;
use crate::base::id::Ino;
use crate::base::lock::Held;
use crate::fs::{FsFault, Seek, Sought};
use crossbeam_channel::{Receiver, Sender};
use fuser::{Errno, INodeNo, Notifier, ReplyLseek};
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;

/// How often an answer is looked at again.
const ROUNDS: usize = 8;

/// A question whose answer rests on a hole.
struct Ask {
    ino: Ino,
    offset: u64,
    what: Seek,
    first: Sought,
    reply: ReplyLseek,
}

/// Takes questions; the thread ends when the last of these goes.
pub(super) struct Seeker {
    asks: Sender<Ask>,
    kernel: Kernel,
}

/// The way to the kernel, once the mount is live.
#[derive(Clone, Default)]
pub(super) struct Kernel(Arc<Mutex<Option<Notifier>>>);

impl Kernel {
    /// The mount is live.
    pub(super) fn connect(&self, notifier: Notifier) {
        *self.0.held() = Some(notifier);
    }

    /// The mount is gone: what is kept of the connection would keep it open.
    fn disconnect(&self) {
        self.0.held().take();
    }

    /// The way, while the mount is live.
    pub(super) fn notifier(&self) -> Option<Notifier> {
        self.0.held().clone()
    }

    fn let_go_of(&self, ino: Ino, (from, to): (u64, u64)) {
        let Some(notifier) = self.notifier() else { return };
        // 0 stands for "to the end".
        let len = i64::try_from(to - from).ok().filter(|_| to < i64::MAX as u64).unwrap_or(0);
        // An inode it does not know has no pages; pages that became busy meanwhile are why there are several rounds.
        if let Err(e) = notifier.inval_inode(INodeNo(ino.0), from.min(i64::MAX as u64) as i64, len) {
            log::debug!("inode {ino}: the kernel did not let go of bytes {from} to {to}: {e}");
        }
    }
}

impl Seeker {
    /// Starts the thread.
    pub(super) fn start(asker: Asker, kernel: Kernel) -> io::Result<Seeker> {
        // Bounded by the programs that ask, each of which waits; a bounded queue would stop threads that serve writes.
        let (asks, asked) = crossbeam_channel::unbounded();
        let to_kernel = kernel.clone();
        thread::Builder::new().name("seek".to_owned()).spawn(move || serve(&asked, &asker, &to_kernel))?;
        Ok(Seeker { asks, kernel })
    }

    /// Answers once it is sure; `first` is what the filesystem said.
    pub(super) fn answer(&self, ino: Ino, offset: u64, what: Seek, first: Sought, reply: ReplyLseek) {
        // Dropped, the reply answers EIO; the thread lives as long as we do.
        let _ = self.asks.send(Ask { ino, offset, what, first, reply });
    }
}

impl Drop for Seeker {
    fn drop(&mut self) {
        self.kernel.disconnect();
    }
}

fn serve(asked: &Receiver<Ask>, asker: &Asker, kernel: &Kernel) {
    for Ask { ino, offset, what, first, reply } in asked {
        let sure = settle(first, |range| kernel.let_go_of(ino, range), || asker.seek(ino, offset, what));
        match sure.and_then(|sought| sought.found().map_err(|fault| asker.errno(ino, &fault))) {
            Ok(at) => reply.offset(at as i64),
            Err(e) => reply.error(e),
        }
    }
}

/// Looks again until the answer stays.
fn settle(
    mut sought: Sought,
    mut let_go_of: impl FnMut((u64, u64)),
    mut again: impl FnMut() -> Result<Sought, Errno>,
) -> Result<Sought, Errno> {
    for _ in 0..ROUNDS {
        let Some(range) = sought.rests_on else { break };
        let_go_of(range);
        let now = again()?;
        if now == sought {
            break;
        }
        sought = now;
    }
    Ok(sought)
}

/// The answer that needs no second look, if it is one.
pub(super) fn sure(sought: &Sought) -> Option<Result<u64, FsFault>> {
    sought.rests_on.is_none().then(|| sought.found())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_given_when_it_stays() {
        let hole = |at| Sought { at: Some(at), rests_on: Some((at, at + 1)) };
        let mut answers = vec![hole(30), hole(30), hole(20)];
        let mut let_go = Vec::new();
        let sure =
            settle(hole(10), |range| let_go.push(range), || Ok(answers.pop().expect("asked no more than needed")));
        assert_eq!(sure.map(|s| s.at).ok(), Some(Some(30)));
        assert_eq!(let_go, [(10, 11), (20, 21), (30, 31)]);
    }

    #[test]
    fn a_writer_that_is_always_faster_does_not_hold_the_answer_for_ever() {
        let mut at = 0;
        let sure = settle(
            Sought { at: Some(0), rests_on: Some((0, 1)) },
            |_| (),
            || {
                at += 1;
                Ok(Sought { at: Some(at), rests_on: Some((at, at + 1)) })
            },
        );
        assert_eq!(sure.map(|s| s.at).ok(), Some(Some(ROUNDS as u64)));
    }
}
