//! Writes of the kernel's cache for which there is no room: held, tried again, and refused after a deadline.
//!
//! Promise: bytes that `write` accepted are dropped only after they were held for the deadline, with a line in the error
//! list, and are then named at the end of the mount unless `fsync` said so; until then whoever makes room saves them. No thread that serves requests waits for it. A program that writes on
//! is told: its next `write` to such a file asks here first, and gets the fault.
//! Why it holds: a held request keeps its pages in the kernel's dirty limit for this mount, and `mark` makes the kernel
//! ask for a file's mode before it takes a write into its cache (only `write` asks for the mode with a file handle).
//! `background` lets the kernel read meanwhile. Called by: `requests`. On failure: the errno that `fs::errno` decided.

use super::attr::file_attr;
use super::background::Background;
use super::operation::Asker;
use super::seek::Kernel;
use crate::base::id::Ino;
use crate::base::limits::{FULL_DEADLINES_MOST, QUOTA_DEADLINE};
use crate::base::lock::Held as _;
use crate::fs::{Attr, AttributeCache, FsFault, OpKind, WriteHow};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use fuser::{ReplyAttr, ReplyWrite};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Most files that are remembered as marked.
const MARKED_MOST: usize = 64 << 10;
/// Time between two tries.
const RETRY: Duration = Duration::from_millis(100);

/// A write of the kernel's cache that found no room.
pub(super) struct HeldWrite {
    pub ino: Ino,
    pub offset: u64,
    pub data: Vec<u8>,
    pub how: WriteHow,
    pub fault: FsFault,
    pub reply: ReplyWrite,
    /// When it came. It was counted as begun then.
    pub since: Duration,
}

enum Order {
    Hold(Box<HeldWrite>),
    /// Make the kernel ask before the next write to a file.
    Mark(Ino),
    /// The kernel asks whether a program may write to a marked file.
    Ask(Box<Attr>, Duration, ReplyAttr),
}

/// Takes writes in; its thread ends when this goes.
pub(super) struct Holder {
    asker: Asker,
    orders: Sender<Order>,
    marked: Arc<Marked>,
    background: Background,
}

/// The files before whose next write the kernel asks, and whether anything is held.
#[derive(Default)]
struct Marked {
    is_holding: AtomicBool,
    is_any: AtomicBool,
    files: Mutex<HashSet<Ino>>,
}

impl Marked {
    fn has(&self, ino: Ino) -> bool {
        self.is_any.load(SeqCst) && self.files.held().contains(&ino)
    }
}

impl Holder {
    /// Starts the thread.
    pub(super) fn start(asker: Asker, kernel: Kernel, deadline: Duration) -> io::Result<Holder> {
        // Bounded by the kernel: it has so many requests under way, and each program that asks waits.
        let (orders, ordered) = crossbeam_channel::unbounded();
        let (marked, background) = (Arc::new(Marked::default()), Background::default());
        let mut keeper = Keeper {
            asker: asker.clone(),
            kernel,
            background: background.clone(),
            deadline,
            marked: Arc::clone(&marked),
            held: VecDeque::new(),
            refused_files: HashMap::new(),
            reporter: None,
            refused_at: HashMap::new(),
            first_held: None,
            is_full: false,
        };
        thread::Builder::new().name("held".to_owned()).spawn(move || keeper.serve(&ordered))?;
        Ok(Holder { asker, orders, marked, background })
    }

    /// The kernel's limit of background requests, which is wider while writes are held.
    pub(super) fn background(&self) -> Background {
        self.background.clone()
    }

    /// Holds a write. Dropped, the reply answers EIO; the thread lives as long as we do.
    pub(super) fn hold(&self, write: HeldWrite) {
        self.asker.unwritten().hold(write.ino, write.data.len() as u64);
        let _ = self.orders.send(Order::Hold(Box::new(write)));
    }

    /// Whether writes are held, so that the kernel may have more requests under way than there are threads.
    pub(super) fn is_holding(&self) -> bool {
        self.marked.is_holding.load(SeqCst)
    }

    /// Has the kernel ask before the next write to a file.
    pub(super) fn mark(&self, ino: Ino) {
        let _ = self.orders.send(Order::Mark(ino));
    }

    /// Whether a file is marked. An answer with its attributes takes the mark away in the kernel: `mark` it again.
    pub(super) fn is_marked(&self, ino: Ino) -> bool {
        self.marked.has(ino)
    }

    /// Answers with the attributes of a marked file if a program may write to it, and else with the fault.
    pub(super) fn ask(&self, attr: Attr, ttl: Duration, reply: ReplyAttr) {
        let _ = self.orders.send(Order::Ask(Box::new(attr), ttl, reply));
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.background.disconnect();
    }
}

struct Waiting {
    write: HeldWrite,
    since: Duration,
}

/// What became of a held write when it was tried.
enum Tried {
    Answered,
    /// There is no room for it yet.
    Kept(Waiting),
}

struct Keeper {
    asker: Asker,
    kernel: Kernel,
    background: Background,
    deadline: Duration,
    marked: Arc<Marked>,
    held: VecDeque<Waiting>,
    /// Files of which bytes were refused: how many since the last report.
    refused_files: HashMap<Ino, u64>,
    /// Who writes the last report.
    reporter: Option<JoinHandle<()>>,
    /// When something was last refused to a file: what it has more is not held as long again.
    refused_at: HashMap<Ino, Duration>,
    /// When the first was held since room was last found.
    first_held: Option<Duration>,
    /// Whether the disk had no room when something was last tried.
    is_full: bool,
}

impl Keeper {
    fn serve(&mut self, ordered: &Receiver<Order>) {
        let mut next_try = self.asker.elapsed();
        loop {
            let order = if self.held.is_empty() && self.refused_files.is_empty() {
                ordered.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                ordered.recv_timeout(next_try.saturating_sub(self.asker.elapsed()))
            };
            match order {
                Ok(Order::Hold(write)) => self.hold(*write),
                Ok(Order::Mark(ino)) => self.mark(ino),
                Ok(Order::Ask(attr, ttl, reply)) => match self.may_write(attr.ino) {
                    Ok(()) => reply.attr(&ttl, &file_attr(&attr)),
                    Err(fault) => reply.error(self.asker.errno(OpKind::Write, attr.ino, &fault)),
                },
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.refuse_all(),
            }
            if self.asker.elapsed() >= next_try {
                self.try_again();
                next_try = self.asker.elapsed() + RETRY;
            }
        }
    }

    fn hold(&mut self, write: HeldWrite) {
        let now = self.asker.elapsed();
        let waiting = Waiting { write, since: now };
        // Whoever sent it could not wait to be sure that there is no room.
        let tried = if self.is_full { Tried::Kept(waiting) } else { self.attempt(waiting) };
        let Tried::Kept(waiting) = tried else { return };
        if self.held.is_empty() {
            self.marked.is_holding.store(true, SeqCst);
            self.background.widen();
        }
        self.first_held.get_or_insert(now);
        self.mark(waiting.write.ino);
        self.held.push_back(waiting);
    }

    /// Writes what is held if there is room now, and answers.
    fn attempt(&mut self, mut waiting: Waiting) -> Tried {
        let write = &mut waiting.write;
        match self.asker.write_held(write.ino, write.offset, &write.data, write.how) {
            Ok(()) => {
                self.asker.end_held(self.asker.elapsed().saturating_sub(write.since), false);
                let HeldWrite { ino, offset, data, reply, .. } = waiting.write;
                self.asker.unwritten().wrote(ino, offset, data.len() as u64);
                self.asker.unwritten().let_go(ino, data.len() as u64);
                reply.written(data.len() as u32);
                Tried::Answered
            }
            Err(fault) if fault.is_no_room() => {
                self.is_full |= matches!(fault, FsFault::Vault(_));
                write.fault = fault;
                Tried::Kept(waiting)
            }
            Err(fault) => {
                self.asker.end_held(self.asker.elapsed().saturating_sub(write.since), true);
                let HeldWrite { ino, offset, data, reply, .. } = waiting.write;
                self.lack(ino, offset, data.len() as u64);
                reply.error(self.asker.errno(OpKind::Write, ino, &fault));
                Tried::Answered
            }
        }
    }

    fn mark(&self, ino: Ino) {
        self.marked.files.held().insert(ino);
        self.marked.is_any.store(true, SeqCst);
        // It asks for the attributes that it was made to discard.
        self.kernel.discard(ino);
    }

    /// Whether a program may write to a marked file. If so, it is marked no more, and the answer tells the kernel.
    fn may_write(&self, ino: Ino) -> Result<(), FsFault> {
        if let Some(waiting) = self.held.iter().find(|waiting| waiting.write.ino == ino) {
            return Err(waiting.write.fault.clone());
        }
        self.asker.admit_write()?;
        let mut files = self.marked.files.held();
        files.remove(&ino);
        if files.len() > MARKED_MOST {
            // The kernel asks all the same, and is told yes.
            files.clear();
        }
        self.marked.is_any.store(!files.is_empty(), SeqCst);
        Ok(())
    }

    /// Tries what is held again, the oldest first, and refuses what was held for the deadline.
    fn try_again(&mut self) {
        self.is_full = false;
        for waiting in std::mem::take(&mut self.held) {
            // There is one disk, but there are many quotas.
            if self.is_full && matches!(waiting.write.fault, FsFault::Vault(_)) {
                self.end_or_keep(waiting);
                continue;
            }
            match self.attempt(waiting) {
                Tried::Answered => {
                    self.first_held = Some(self.asker.elapsed());
                    self.refused_at.clear();
                }
                Tried::Kept(waiting) => self.end_or_keep(waiting),
            }
        }
        if self.held.is_empty() {
            self.background.narrow();
            self.marked.is_holding.store(false, SeqCst);
            (self.first_held, self.is_full) = (None, false);
            let now = self.asker.elapsed();
            self.refused_at.retain(|_, at| now.saturating_sub(*at) < self.deadline);
            self.report();
        }
    }

    /// Has a thread of its own name the files that were refused bytes, since nobody may wait for that; one at a time.
    fn report(&mut self) {
        if self.refused_files.is_empty() || self.reporter.as_ref().is_some_and(|reporter| !reporter.is_finished()) {
            return;
        }
        let (asker, mut files) = (self.asker.clone(), self.refused_files.drain().collect::<Vec<_>>());
        files.sort_unstable();
        let report = move || asker.report_refused(&files);
        match thread::Builder::new().name("refused".to_owned()).spawn(report) {
            Ok(reporter) => self.reporter = Some(reporter),
            Err(e) => {
                log::error!("no thread to name the files that were refused bytes: {e}; /.storage/unsaved lists them")
            }
        }
    }

    /// Notes that a file lacks what was held. Noted as refused before it is held no more, so that it is always in one of the lists.
    fn lack(&self, ino: Ino, offset: u64, bytes: u64) {
        self.asker.unwritten().refuse(ino, offset, bytes);
        self.asker.unwritten().let_go(ino, bytes);
    }

    fn end_or_keep(&mut self, waiting: Waiting) {
        let deadline = match waiting.write.fault {
            FsFault::Vault(crate::vault::VaultFault::BackingFull) => self.deadline,
            _ => self.deadline.min(QUOTA_DEADLINE),
        };
        // An fsync waits for all that the kernel queued before it.
        let now = self.asker.elapsed();
        let since = |at: Duration| now.saturating_sub(at);
        let is_long = self.first_held.is_some_and(|first| since(first) >= deadline * FULL_DEADLINES_MOST);
        let is_lost = self.refused_at.get(&waiting.write.ino).is_some_and(|at| since(*at) < deadline);
        if since(waiting.since) < deadline && !is_long && !is_lost {
            return self.held.push_back(waiting);
        }
        self.refuse(waiting);
    }

    fn refuse(&mut self, waiting: Waiting) {
        let HeldWrite { ino, offset, data, fault, reply, since, .. } = waiting.write;
        self.lack(ino, offset, data.len() as u64);
        self.asker.end_held(self.asker.elapsed().saturating_sub(since), true);
        self.asker.count_refused(data.len() as u64);
        *self.refused_files.entry(ino).or_default() += data.len() as u64;
        self.refused_at.insert(ino, self.asker.elapsed());
        reply.error(self.asker.errno(OpKind::Write, ino, &fault));
    }

    fn refuse_all(&mut self) {
        for waiting in std::mem::take(&mut self.held) {
            self.refuse(waiting);
        }
    }
}
