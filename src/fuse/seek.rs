//! `lseek` for data and holes, where the kernel may hold dirty pages.
//!
//! Promise: bytes that a program wrote before it asked are never reported as a hole.
//! Why it holds: an answer that rests on a hole is given only after the kernel invalidated its pages of that hole, which
//! writes back the dirty ones, and the filesystem, asked again, still rests on invalidated bytes alone.
//! Invalidating waits for WRITE requests, so at most one thread that serves requests does it; the others pass their
//! question to a thread of this file. Called by: `requests`. On failure: the answer that names no hole.

use super::operation::Asker;
use crate::base::id::Ino;
use crate::base::limits::FILE_BYTES_MAX;
use crate::base::lock::Held;
use crate::fs::{FsFault, OpKind, Seek, Sought};
use crossbeam_channel::Sender;
use fuser::{Errno, INodeNo, Notifier, ReplyLseek};
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;

/// Bytes invalidated in the first round, at most. A hole that is clean costs one round, whatever its length below this.
const FIRST_BYTES: u64 = 1 << 20;
/// Each further round invalidates so many times more, up to everything that follows.
const GROWTH: u64 = 16;
/// More rounds than growth needs to cover the longest file. Only a writer through a mapping can use them up.
const ROUNDS: usize = 24;
/// Threads that must serve requests for one of them to wait on the others.
const THREADS_MIN: usize = 4;

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
    work: Arc<Work>,
    /// Held by the one thread serving requests that may settle a question itself, which saves two switches of threads.
    inline: Option<Mutex<()>>,
}

/// What settling a question needs.
struct Work {
    asker: Asker,
    kernel: Kernel,
}

/// The way to the kernel, once the mount is live.
#[derive(Clone, Default)]
pub(super) struct Kernel(Arc<Mutex<Option<Notifier>>>);

impl Kernel {
    /// Takes the way to the kernel of a mount that is live.
    pub(super) fn connect(&self, notifier: Notifier) {
        *self.0.held() = Some(notifier);
    }

    /// Gives up the way, for a copy of the connection would keep it open after the mount is gone.
    fn disconnect(&self) {
        self.0.held().take();
    }

    /// The way, while the mount is live.
    pub(super) fn notifier(&self) -> Option<Notifier> {
        self.0.held().clone()
    }

    /// Makes the kernel write back and drop its pages of a range; says whether it has. It waits for WRITE and READ
    /// requests under way, so a thread that serves requests may call it only where others are left to serve those.
    pub(super) fn invalidate(&self, ino: Ino, (from, to): (u64, u64)) -> bool {
        let Some(notifier) = self.notifier() else { return false };
        // 0 stands for "to the end".
        let len = i64::try_from(to - from).ok().filter(|_| to < i64::MAX as u64).unwrap_or(0);
        // An inode that the kernel does not know has no pages: `fuser` reports that as success.
        match notifier.inval_inode(INodeNo(ino.0), from.min(i64::MAX as u64) as i64, len) {
            Ok(()) => true,
            // A page was changed again meanwhile, or is in use.
            Err(e) => {
                log::debug!("inode {ino}: the kernel did not drop bytes {from} to {to}: {e}");
                false
            }
        }
    }
}

impl Seeker {
    /// Starts the thread; `threads` serve requests.
    pub(super) fn start(asker: Asker, kernel: Kernel, threads: usize) -> io::Result<Seeker> {
        // Bounded by the programs that ask, each of which waits; a bounded queue would stop threads that serve writes.
        let (asks, asked) = crossbeam_channel::unbounded::<Ask>();
        let work = Arc::new(Work { asker, kernel });
        let inside = Arc::clone(&work);
        thread::Builder::new()
            .name("seek".to_owned())
            .spawn(move || asked.iter().for_each(|ask| inside.answer(ask)))?;
        Ok(Seeker { asks, work, inline: (threads >= THREADS_MIN).then(Mutex::default) })
    }

    /// Answers once it is sure; `first` is what the filesystem said.
    pub(super) fn answer(&self, ino: Ino, offset: u64, what: Seek, first: Sought, reply: ReplyLseek) {
        let ask = Ask { ino, offset, what, first, reply };
        if let Some(_only) = self.inline.as_ref().and_then(|only| only.try_lock().ok()) {
            self.work.answer(ask);
        } else {
            // Dropped, the reply answers EIO; the thread lives as long as we do.
            let _ = self.asks.send(ask);
        }
    }
}

impl Drop for Seeker {
    fn drop(&mut self) {
        self.work.kernel.disconnect();
    }
}

impl Work {
    fn answer(&self, Ask { ino, offset, what, first, reply }: Ask) {
        let again = || self.asker.seek(ino, offset, what);
        let invalidate = |range| {
            self.kernel.invalidate(ino, range);
        };
        let sure = settle(first, invalidate, again);
        match sure.and_then(|sought| sought.found().map_err(|fault| self.asker.errno(OpKind::Lseek, ino, &fault))) {
            Ok(at) => reply.offset(at as i64),
            Err(e) => reply.error(e),
        }
    }
}

/// Invalidates and asks again until the answer rests on invalidated bytes alone.
fn settle(
    mut sought: Sought,
    mut invalidate: impl FnMut((u64, u64)),
    mut again: impl FnMut() -> Result<Sought, Errno>,
) -> Result<Sought, Errno> {
    // Invalidated before the answer was given: from, to before.
    let mut gone = (0, 0);
    let mut most = FIRST_BYTES;
    for round in 0..ROUNDS {
        let Some((from, to)) = sought.rests_on else { return Ok(sought) };
        if gone.0 <= from && to <= gone.1 {
            return Ok(sought);
        }
        let start = if (gone.0..gone.1).contains(&from) { gone.1 } else { from };
        let end = start.saturating_add(most).min(FILE_BYTES_MAX);
        // At first no page is dropped but those of the hole. If that was none, whole stretches are written back at once.
        let end = if round == 0 { end.min(to) } else { end };
        if round > 0 {
            most = most.saturating_mul(GROWTH);
        }
        invalidate((start, end));
        gone = if start == gone.1 { (gone.0, end) } else { (start, end) };
        sought = again()?;
    }
    Ok(Sought { at: sought.without_holes, ..sought })
}

/// The answer that needs no second look, if it is one.
pub(super) fn sure(sought: &Sought) -> Option<Result<u64, FsFault>> {
    sought.rests_on.is_none().then(|| sought.found())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    const PAGE: u64 = 4096;

    /// A file of which the kernel has dirty pages; all in pages, but for the size.
    struct File {
        size: u64,
        data: BTreeSet<u64>,
        dirty: BTreeSet<u64>,
        dropped: u64,
    }

    impl File {
        fn new(data: &[u64], dirty: impl Iterator<Item = u64>) -> File {
            let data = BTreeSet::from_iter(data.iter().copied());
            let size = data.last().map_or(0, |last| (last + 1) * PAGE).max(4 << 20);
            File { size, data, dirty: dirty.collect(), dropped: 0 }
        }

        fn seek(&self, offset: u64, what: Seek) -> Sought {
            let end = Sought { at: None, rests_on: Some((offset, FILE_BYTES_MAX)), without_holes: None };
            if offset >= self.size {
                return end;
            }
            let mut at = offset;
            while at < self.size && self.data.contains(&(at / PAGE)) != (what == Seek::Data) {
                at = (at / PAGE + 1) * PAGE;
            }
            let without_holes = Some(if what == Seek::Data { offset } else { self.size });
            match what {
                Seek::Data if at >= self.size => Sought { without_holes, ..end },
                Seek::Data => Sought { at: Some(at), rests_on: (at > offset).then_some((offset, at)), without_holes },
                Seek::Hole => {
                    let at = at.min(self.size);
                    let to = if at < self.size { at + 1 } else { FILE_BYTES_MAX };
                    Sought { at: Some(at), rests_on: Some((at, to)), without_holes }
                }
            }
        }

        fn invalidate(&mut self, (from, to): (u64, u64)) {
            assert!(from < to);
            let pages = from / PAGE..(to - 1) / PAGE + 1;
            self.dropped += pages.end - pages.start;
            for page in self.dirty.range(pages.clone()) {
                self.data.insert(*page);
                self.size = self.size.max((page + 1) * PAGE);
            }
            self.dirty.retain(|page| !pages.contains(page));
        }
    }

    fn ask(file: File, offset: u64, what: Seek) -> (Option<u64>, File) {
        let file = RefCell::new(file);
        let first = file.borrow().seek(offset, what);
        let again = || Ok(file.borrow().seek(offset, what));
        let sure = settle(first, |range| file.borrow_mut().invalidate(range), again).unwrap();
        (sure.at, file.into_inner())
    }

    #[test]
    fn dirty_pages_are_data_wherever_they_lie() {
        // Within what the filesystem knows, and behind its end; clean data before, between and behind them.
        for (first, count) in [(0, 1), (0, 8), (0, 9), (2, 256), (256, 300), (1000, 200), (2000, 100_000)] {
            for clean in [vec![], vec![first + count / 2], vec![first + count]] {
                let end = if clean.contains(&(first + count)) { first + count + 1 } else { first + count };
                let file = || File::new(&clean, (first..first + count).filter(|p| !clean.contains(p)));
                assert_eq!(ask(file(), first * PAGE, Seek::Hole).0, Some(end * PAGE), "{first} {count} {clean:?}");
                assert_eq!(ask(file(), 0, Seek::Data).0, Some(first * PAGE), "{first} {count} {clean:?}");
            }
        }
    }

    #[test]
    fn of_a_clean_file_only_pages_of_the_hole_are_dropped() {
        let file = || File::new(&[0, 100], std::iter::empty());
        let (at, file_after) = ask(file(), 0, Seek::Hole);
        assert_eq!((at, file_after.dropped), (Some(PAGE), 1));
        let (at, file_after) = ask(file(), PAGE, Seek::Data);
        assert_eq!((at, file_after.dropped), (Some(100 * PAGE), 99));
    }

    #[test]
    fn a_writer_that_is_always_faster_gets_no_hole_reported() {
        let mut at = 0;
        let sure = settle(
            Sought { at: Some(0), rests_on: Some((1 << 60, (1 << 60) + 1)), without_holes: Some(7) },
            |_| (),
            || {
                at += 1;
                Ok(Sought { at: Some(at), rests_on: Some(((1 << 60) - at, 1 << 60)), without_holes: Some(7) })
            },
        );
        assert_eq!(sure.map(|s| s.at).ok(), Some(Some(7)));
    }
}
