//! Keeps threads that serve requests free of operations that may wait.
//!
//! Promise: of the threads that serve requests, two never run an operation that may wait for the disk, for the byte budget or
//! for room; so what needs none of these is answered while the disk hangs, however many programs read and write.
//! How: so many operations of this kind as leave two threads run where they came in; the others run on threads of this file,
//! which are started when they are needed and end when they are not. Reads do not queue behind writes.
//! Called by: `requests`. On failure (no thread can be had): the operation runs where it came in.

use crate::base::lock::Held;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Threads that serve requests and never wait.
const FREE_THREADS: usize = 2;
/// Most threads of one kind; what comes beyond that waits for one of them.
const THREADS_MAX: usize = 64;
/// How long a thread waits for more before it ends.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// Where operations that may wait run.
pub(super) struct Spare {
    /// How many may still run on the threads that serve requests.
    left: AtomicUsize,
    reads: Arc<Pool>,
    changes: Arc<Pool>,
}

/// Whether an operation reads or changes something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    Reading,
    Changing,
}

/// Lets an operation that may wait run on a thread that serves requests.
pub(super) struct Permit<'a>(&'a AtomicUsize);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Spare {
    /// Beside so many threads that serve requests.
    pub(super) fn new(threads: usize) -> Spare {
        let left = AtomicUsize::new(threads.saturating_sub(FREE_THREADS));
        Spare { left, reads: Pool::new("read"), changes: Pool::new("change") }
    }

    /// Lets the caller run an operation that may wait, if enough other threads do not.
    pub(super) fn permit(&self) -> Option<Permit<'_>> {
        let taken = self.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        taken.is_ok().then(|| Permit(&self.left))
    }

    /// Runs an operation on a thread of its own.
    pub(super) fn hand_over(&self, waits: Waits, job: impl FnOnce() + Send + 'static) {
        let pool = if waits == Waits::Reading { &self.reads } else { &self.changes };
        pool.take(Box::new(job));
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.reads.close();
        self.changes.close();
    }
}

struct Pool {
    name: &'static str,
    work: Mutex<Work>,
    came: Condvar,
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    is_closed: bool,
}

impl Pool {
    fn new(name: &'static str) -> Arc<Pool> {
        Arc::new(Pool { name, work: Mutex::default(), came: Condvar::new() })
    }

    fn take(self: &Arc<Pool>, job: Job) {
        let mut work = self.work.held();
        work.jobs.push_back(job);
        if work.jobs.len() <= work.idle || work.threads >= THREADS_MAX {
            self.came.notify_one();
            return;
        }
        let pool = Arc::clone(self);
        work.threads += 1;
        let started = thread::Builder::new().name(self.name.to_owned()).spawn(move || pool.serve());
        if started.is_err() {
            work.threads -= 1;
            // Those that there are will come to it.
            let alone = if work.threads == 0 { work.jobs.pop_back() } else { None };
            drop(work);
            if let Some(job) = alone {
                job();
            }
        }
    }

    /// The life of a thread.
    fn serve(&self) {
        let mut work = self.work.held();
        loop {
            if let Some(job) = work.jobs.pop_front() {
                drop(work);
                job();
                work = self.work.held();
                continue;
            }
            if work.is_closed {
                break;
            }
            work.idle += 1;
            let waited = self.came.wait_timeout(work, IDLE).unwrap_or_else(PoisonError::into_inner);
            work = waited.0;
            work.idle -= 1;
            if waited.1.timed_out() && work.jobs.is_empty() {
                break;
            }
        }
        work.threads -= 1;
    }

    fn close(&self) {
        self.work.held().is_closed = true;
        self.came.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn what_waits_leaves_two_threads_and_reads_do_not_queue_behind_changes() {
        let spare = Spare::new(FREE_THREADS + 3);
        let permits: Vec<_> = (0..3).map(|_| spare.permit().unwrap()).collect();
        assert!(spare.permit().is_none());
        let (gate, done) = (Arc::new((Mutex::new(false), Condvar::new())), channel());
        for n in 0..THREADS_MAX + 10 {
            let (gate, done) = (Arc::clone(&gate), done.0.clone());
            spare.hand_over(Waits::Changing, move || {
                let mut is_open = gate.0.lock().unwrap();
                while !*is_open {
                    is_open = gate.1.wait(is_open).unwrap();
                }
                done.send(n).unwrap();
            });
        }
        let (read, reads) = channel();
        spare.hand_over(Waits::Reading, move || read.send(thread::current().id()).unwrap());
        let ran_on = reads.recv_timeout(Duration::from_secs(60)).expect("a read waits for none of the changes");
        assert_ne!(ran_on, thread::current().id());
        assert!(done.1.try_recv().is_err(), "they wait");
        assert!(spare.changes.work.held().threads <= THREADS_MAX);
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        let mut all: Vec<_> =
            (0..THREADS_MAX + 10).map(|_| done.1.recv_timeout(Duration::from_secs(60)).unwrap()).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..THREADS_MAX + 10), "each ran once");
        drop(permits);
        assert!(spare.permit().is_some(), "the next runs where it came in");
    }
}
