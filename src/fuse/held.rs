//! Holds writes of the kernel's cache that the vault cannot take yet, tries them again, and refuses them after a deadline.
//!
//! Promise: a program's accepted bytes are dropped only after the deadline. An error line then names the file.
//! Why it holds: the kernel keeps the pages until a held write is answered. No thread that serves requests waits for it.
//! Who is told: `mark` makes the kernel ask before the next `write` to a file, and `ask` answers with the fault.
//! Called by: `requests`, `writes`. On failure: the errno that `fs::errno` decided.

use super::attr::file_attr;
use super::background::Background;
use super::operation::Asker;
use super::seek::Kernel;
use crate::base::id::Ino;
use crate::base::limits::{FULL_DEADLINES_MOST, QUOTA_DEADLINE};
use crate::base::lock::Held as _;
use crate::fs::{Attr, AttributeCache, FsFault, OpKind, WriteHow};
use crate::vault::VaultFault;
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

/// A write of the kernel's cache that the vault cannot take yet.
pub(super) struct HeldWrite {
    pub ino: Ino,
    pub offset: u64,
    pub data: Vec<u8>,
    pub how: WriteHow,
    pub fault: FsFault,
    pub reply: ReplyWrite,
    /// When the request came. It counts as under way since then.
    pub since: Duration,
}

enum Order {
    Hold(Box<HeldWrite>),
    /// Make the kernel ask before the next write to a file.
    Mark(Ino),
    /// Answer the kernel, which asks whether a program may write to a marked file.
    Ask(Box<Attr>, Duration, ReplyAttr),
}

/// Takes writes in. Its thread ends when this value is dropped.
pub(super) struct Holder {
    asker: Asker,
    orders: Sender<Order>,
    marked: Arc<Marked>,
    background: Background,
}

/// The marked files, and whether any write is held. The kernel asks before the next `write` to a marked file.
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
        // The kernel bounds this queue: it has so many requests under way, and each program that asks waits.
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
            refusal: None,
        };
        thread::Builder::new().name("held".to_owned()).spawn(move || keeper.serve(&ordered))?;
        Ok(Holder { asker, orders, marked, background })
    }

    /// The kernel's limit of background requests. It is wider while writes are held.
    pub(super) fn background(&self) -> Background {
        self.background.clone()
    }

    /// Holds a write. The thread lives as long as this value; a reply that is dropped answers EIO.
    pub(super) fn hold(&self, write: HeldWrite) {
        self.asker.unwritten().hold(write.ino, write.data.len() as u64);
        let _ = self.orders.send(Order::Hold(Box::new(write)));
    }

    /// Whether writes are held. The kernel may then have more requests under way than there are threads.
    pub(super) fn is_holding(&self) -> bool {
        self.marked.is_holding.load(SeqCst)
    }

    /// Makes the kernel ask before the next `write` to a file.
    pub(super) fn mark(&self, ino: Ino) {
        let _ = self.orders.send(Order::Mark(ino));
    }

    /// Whether a file is marked. The kernel forgets a mark when it gets the file's attributes: then `mark` it again.
    pub(super) fn is_marked(&self, ino: Ino) -> bool {
        self.marked.has(ino)
    }

    /// Answers with a marked file's attributes if a program may write to it, and with the fault otherwise.
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

/// The result of trying a held write.
enum Tried {
    Answered,
    /// The vault cannot take it yet.
    Kept(Waiting),
}

struct Keeper {
    asker: Asker,
    kernel: Kernel,
    background: Background,
    deadline: Duration,
    marked: Arc<Marked>,
    held: VecDeque<Waiting>,
    /// Bytes refused since the last report, by file.
    refused_files: HashMap<Ino, u64>,
    /// The thread that writes the last report.
    reporter: Option<JoinHandle<()>>,
    /// When a file's bytes were last refused. The rest of its bytes is not held for another deadline.
    refused_at: HashMap<Ino, Duration>,
    /// When the first was held since the vault last took a held write.
    first_held: Option<Duration>,
    /// Why the vault takes no held write of any file, as of the last round of tries.
    refusal: Option<VaultFault>,
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
        // The thread that sent it did not wait for a fresh answer from the disk.
        let tried = if self.refusal.is_some() { self.keep(waiting) } else { self.attempt(waiting) };
        let Tried::Kept(waiting) = tried else { return };
        if self.held.is_empty() {
            self.marked.is_holding.store(true, SeqCst);
            self.background.widen();
        }
        self.first_held.get_or_insert(now);
        self.mark(waiting.write.ino);
        self.held.push_back(waiting);
    }

    /// Keeps a write without a try: the last one was refused for a reason that holds for every file.
    fn keep(&self, mut waiting: Waiting) -> Tried {
        if let Some(fault) = &self.refusal {
            waiting.write.fault = FsFault::Vault(fault.clone());
        }
        Tried::Kept(waiting)
    }

    /// Writes what is held and answers, if the vault takes it now.
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
            Err(fault) if fault.may_pass() => {
                // A read that fails concerns one file; so does a quota of a tree, a user or a group.
                if let FsFault::Vault(fault) = &fault
                    && !matches!(fault, VaultFault::Backing(_))
                {
                    self.refusal = Some(fault.clone());
                }
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
        // Without a file's attributes, the kernel asks for its mode before it takes a write into its cache. Only `write`
        // asks with a file handle.
        self.kernel.discard(ino);
    }

    /// Whether a program may write to a marked file. If so, this removes the mark; the kernel forgets it with the answer.
    fn may_write(&self, ino: Ino) -> Result<(), FsFault> {
        if let Some(waiting) = self.held.iter().find(|waiting| waiting.write.ino == ino) {
            return Err(waiting.write.fault.clone());
        }
        self.asker.admit_write()?;
        let mut files = self.marked.files.held();
        files.remove(&ino);
        if files.len() > MARKED_MOST {
            // The kernel still asks for the forgotten files, and the answer is yes.
            files.clear();
        }
        self.marked.is_any.store(!files.is_empty(), SeqCst);
        Ok(())
    }

    /// Tries the held writes again, the oldest first. Refuses those that were held for the deadline.
    fn try_again(&mut self) {
        self.refusal = None;
        for waiting in std::mem::take(&mut self.held) {
            // There is one disk, but there are many quotas.
            let is_refused = self.refusal.is_some() && matches!(waiting.write.fault, FsFault::Vault(_));
            match if is_refused { self.keep(waiting) } else { self.attempt(waiting) } {
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
            (self.first_held, self.refusal) = (None, None);
            let now = self.asker.elapsed();
            self.refused_at.retain(|_, at| now.saturating_sub(*at) < self.deadline);
            self.report();
        }
    }

    /// Starts a thread that reports the files whose bytes were refused, unless one runs. Nothing here may wait for it.
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

    /// Moves held bytes of a file to the refused ones. They are in at least one of the two lists all the time.
    fn lack(&self, ino: Ino, offset: u64, bytes: u64) {
        self.asker.unwritten().refuse(ino, offset, bytes);
        self.asker.unwritten().let_go(ino, bytes);
    }

    fn end_or_keep(&mut self, waiting: Waiting) {
        let is_over_quota = waiting.write.fault.is_over_quota();
        let deadline = if is_over_quota { self.deadline.min(QUOTA_DEADLINE) } else { self.deadline };
        // An fsync waits for all that the kernel queued before it, so the deadlines must not add up.
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
