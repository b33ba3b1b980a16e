//! What all threads of an open vault share.
//!
//! Promise: locks are taken in this order, and never while waiting for the disk: gate, a file's, batch, progress.
//! Called by: every file of `vault`. On failure: `fail` stops acknowledging for good; buffers and reads stay.

use super::VaultFault;
use super::batch::Batch;
use super::cache::FrameCache;
use super::pin::Pins;
use super::sealer::{Cursor, Job, Sealed};
use super::segments::Segments;
use super::stats::Stats;
use super::window::Windows;
use crate::backing::{AlignedBuf, Backing, Space};
use crate::base::choice::{Compression, Verify};
use crate::base::id::{Ino, SegmentId};
use crate::base::lock::Held;
use crate::base::world::World;
use crate::buffer::{Budget, FileBuffer, Pool};
use crate::format::root::Root;
use crate::format::segment::LogPosition;
use crate::index::Index;
use crossbeam_channel::{Receiver, Sender};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, OnceLock, RwLock, Weak};
use std::time::Duration;

/// Called with the outcome of a sync, on whatever thread finds it out.
pub type SyncReply = Box<dyn FnOnce(Result<(), VaultFault>) + Send>;

/// Someone who waits for a batch to be durable.
pub struct Waiter {
    pub batch: u64,
    pub since: Duration,
    pub reply: SyncReply,
}

/// How far the log has come.
pub struct Progress {
    /// Newest batch on stable media, verified.
    pub durable: u64,
    /// Newest batch whose buffers are free again.
    pub retired: u64,
    pub waiters: Vec<Waiter>,
}

/// How the byte budget is divided.
#[derive(Debug, Clone, Copy)]
pub struct Shares {
    pub budget_bytes: u64,
    /// Unsaved data.
    pub dirty_bytes: u64,
    /// Decoded frames.
    pub cache_bytes: u64,
    /// Index changes that no checkpoint holds yet.
    pub overlay_bytes: u64,
    /// Pages of the index.
    pub index_cache_bytes: usize,
    /// Groups written and not yet verified.
    pub verify_lag_groups: usize,
}

impl Shares {
    /// Half for unsaved data, the rest for the copies that sealing, writing and verifying make of it, and for caches.
    pub fn of(budget_bytes: u64) -> Shares {
        Shares {
            budget_bytes,
            dirty_bytes: budget_bytes / 2,
            cache_bytes: budget_bytes / 8,
            overlay_bytes: (budget_bytes / 8).min(64 << 20),
            index_cache_bytes: (budget_bytes / 16) as usize,
            verify_lag_groups: (budget_bytes / 16 / (1 << 20)).clamp(2, 64) as usize,
        }
    }
}

/// The shared state.
pub struct Shared {
    pub world: Arc<dyn World>,
    pub backing: Arc<dyn Backing>,
    pub stats: Stats,
    pub index: Index,
    pub segments: Segments,
    pub compression: Compression,
    pub verify: Verify,
    pub flush_interval: Duration,
    pub read_only: bool,
    pub shares: Shares,
    pub quota_bytes: Option<u64>,
    pub quota_inodes: Option<u64>,

    /// Number of the batch that is filling; operations hold it shared, a cut alone.
    pub gate: RwLock<u64>,
    pub batch: Mutex<Batch>,
    pub progress: Mutex<Progress>,
    pub progressed: Condvar,
    /// Files with a layer of a batch that was cut and is not yet retired: they stay, whatever fails.
    pub in_flight: Mutex<BTreeMap<u64, Vec<Arc<FileBuffer>>>>,
    pub next_ino: AtomicU64,
    pub next_cookie: AtomicU64,
    pub inodes: AtomicI64,
    /// Bytes of files that are not holes, as of the newest retired batch.
    pub allocated: AtomicU64,

    pub dirty: Budget,
    /// Held by the one writer that counts exactly because the quota is near; the disk may be waited for meanwhile.
    pub near_quota: Mutex<()>,
    /// Held while a segment's file is made or opened for writing.
    pub making_segment: Mutex<()>,
    /// Unsaved bytes at which a cut is due.
    pub cut_at_bytes: u64,
    /// Bytes of records at which a cut is due.
    pub records_limit: usize,
    pub pool: Pool,
    pub sealed_pool: Pool,
    pub group_buffers: Mutex<Vec<AlignedBuf>>,
    pub cache: FrameCache,
    pub windows: Windows,
    pub files: Mutex<HashMap<Ino, Weak<FileBuffer>>>,

    pub cursor: Cursor,
    /// Held by the worker that is picking up a job.
    pub pick: Mutex<()>,
    pub jobs: Receiver<Job>,
    pub jobs_in: Mutex<Option<Sender<Job>>>,
    pub sealed_in: Sender<Sealed>,
    pub wake_in: Sender<()>,
    pub cut_wanted: AtomicBool,
    pub pressed: AtomicBool,
    pub checkpoint_wanted: AtomicBool,
    pub checkpoint_running: AtomicBool,
    pub closing: AtomicBool,
    pub committing: AtomicBool,
    pub verifying: AtomicU64,
    pub last_op_ms: AtomicU64,
    /// The newest commit written.
    pub committed: Mutex<LogPosition>,
    /// The newest segment that has a group.
    pub newest_begun: AtomicU64,
    pub log_since_checkpoint: AtomicU64,

    /// Ranges that no extent names any more, not yet covered by a checkpoint.
    pub dead: Mutex<Vec<DeadRange>>,
    pub root: Mutex<Root>,
    pub pins: Pins,
    pub space: Mutex<Option<(Duration, Space)>>,
    pub failed: OnceLock<Arc<str>>,
}

/// Bytes of a segment that nothing names any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadRange {
    pub segment: SegmentId,
    pub from: u64,
    pub to: u64,
}

impl Shared {
    /// Hands a job to the workers. The queue is bounded by the byte budget: a job holds charged bytes.
    pub fn to_sealers(&self, job: Job) {
        if let Some(jobs) = &*self.jobs_in.held() {
            // The workers outlive the queue's open side, so a send only fails while closing, when nothing is pending.
            let _ = jobs.send(job);
        }
    }

    /// Hands sealed frames to the log, waiting while its queue is full.
    pub fn to_log(&self, sealed: Sealed) {
        // The log outlives the workers; see `Vault::close`.
        let _ = self.sealed_in.send(sealed);
    }

    /// Makes the log look whether a cut is due. Never blocks: one wake-up waiting is as good as many.
    pub fn wake_log(&self) {
        let _ = self.wake_in.try_send(());
    }

    /// Stops acknowledging: what is buffered stays readable, every waiter is told.
    pub fn fail(&self, why: &str) {
        let first = self.failed.set(why.into()).is_ok();
        if first {
            self.stats.error(self.world.now(), format!("writing stopped: {why}"));
            self.stats.event(self.world.now(), "error".to_owned());
        }
        self.dirty.close();
        let waiters = std::mem::take(&mut self.progress.held().waiters);
        self.progressed.notify_all();
        for w in waiters {
            (w.reply)(Err(VaultFault::Failed(why.into())));
        }
    }

    /// Refuses if the vault has failed.
    pub fn check_failed(&self) -> Result<(), VaultFault> {
        match self.failed.get() {
            Some(why) => Err(VaultFault::Failed(Arc::clone(why))),
            None => Ok(()),
        }
    }

    /// Room on the backing filesystem, at most 50 ms old.
    pub fn space(&self) -> Result<Space, VaultFault> {
        let now = self.world.elapsed();
        let mut cached = self.space.held();
        match *cached {
            Some((at, space)) if now.saturating_sub(at) < Duration::from_millis(50) => Ok(space),
            _ => {
                let space = self.backing.space()?;
                *cached = Some((now, space));
                Ok(space)
            }
        }
    }

    /// Answers everyone who waited for a batch up to `batch`.
    pub fn answer(&self, batch: u64) {
        let due: Vec<Waiter> = {
            let mut progress = self.progress.held();
            progress.durable = progress.durable.max(batch);
            let (due, later) = std::mem::take(&mut progress.waiters).into_iter().partition(|w| w.batch <= batch);
            progress.waiters = later;
            due
        };
        self.progressed.notify_all();
        for w in due {
            self.stats.fsyncs.add(1);
            self.stats.fsync.record(self.world.elapsed().saturating_sub(w.since));
            (w.reply)(Ok(()));
        }
    }

    /// Bytes acknowledged and not yet safe.
    pub fn pending_bytes(&self) -> u64 {
        self.dirty.used_bytes() + self.batch.held().records_bytes as u64
    }

    /// One word for what the vault is doing.
    pub fn state(&self) -> &'static str {
        if self.failed.get().is_some() {
            "error"
        } else if self.closing.load(SeqCst) {
            "closed"
        } else if self.committing.load(Relaxed) {
            "flushing"
        } else if self.verifying.load(Relaxed) > 0 {
            "verifying"
        } else if !self.batch.held().is_empty() {
            "writing"
        } else {
            "ready"
        }
    }
}
