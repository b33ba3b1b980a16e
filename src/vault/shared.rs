//! What all threads of an open vault share.
//!
//! Promise: locks are taken in this order, and never while waiting for the disk: gate, a file's, batch, progress.
//! Called by: every file of `vault`. On failure: `nowhere` stops acknowledging until the log finds a place again, `give_up`
//! until the vault is opened anew; buffers and reads stay.

use super::ahead::Wishes;
use super::batch::Batch;
use super::cache::FrameCache;
use super::handover::InForce;
use super::moves::Moves;
use super::pin::Pins;
use super::place::{Place, Places};
use super::progress::{Progress, Reached, Stop};
use super::quota::Quotas;
use super::reopen::Home;
use super::reserve::Reserve;
use super::room::RoomWatch;
use super::sealer::{Cursor, Job, Sealed};
use super::segments::Segments;
use super::snapshot::Kept;
use super::space::{Room, SpaceWatch};
use super::state::{Event, Machine, State};
use super::stats::Stats;
use super::step::Stepper;
use super::totals::Totals;
use super::trouble::{Kind, Trouble};
use super::window::Windows;
use super::{VaultFault, reserve_bytes};
use crate::backing::{AlignedBuf, Backing};
use crate::base::choice::{Compression, Verify};
use crate::base::id::{Generation, Ino, SegmentId};
use crate::base::limits::{AWAY_RESERVE_BYTES, CHECKPOINT_IDLE};
use crate::base::lock::Held;
use crate::base::world::World;
use crate::buffer::{Budget, FileBuffer, Pool};
use crate::format::root::Root;
use crate::format::segment::LogPosition;
use crate::index::Index;
use crossbeam_channel::{Receiver, Sender};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, Weak};
use std::time::Duration;

/// Called with the outcome of a sync, on whatever thread finds it out.
pub type SyncReply = Box<dyn FnOnce(Result<(), VaultFault>) + Send>;

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
    /// Sealed frames that are not yet in a group.
    pub sealed_bytes: u64,
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
            sealed_bytes: (budget_bytes / 16).min(8 << 20),
        }
    }

    /// Buffers that groups ever need at once: those that wait for the verifier, the one that it has, the one that the log waits
    /// to hand over, and the one being filled.
    pub fn group_buffers(&self) -> usize {
        self.verify_lag_groups + 3
    }

    /// Unused vectors that stay when nothing has been done for a while.
    pub fn idle_pool_bytes(&self) -> u64 {
        self.dirty_bytes / 4
    }
}

/// Longest wait of a writer for a disk to say how much room it has.
pub const SPACE_PATIENCE: Duration = Duration::from_secs(5);

/// Fewest files among which those that have gone are looked for.
pub const FILES_LOOK_MIN: usize = 1024;

/// The buffers of files that anyone holds, and of some that nobody holds any more.
pub struct Files {
    pub by_ino: HashMap<Ino, Weak<FileBuffer>>,
    /// With so many, those that have gone are taken out.
    pub look_at: usize,
}

impl Default for Files {
    fn default() -> Files {
        Files { by_ino: HashMap::new(), look_at: FILES_LOOK_MIN }
    }
}

/// The shared state.
pub struct Shared {
    pub world: Arc<dyn World>,
    /// The backing directory.
    pub backing: Arc<dyn Backing>,
    /// Where it can be opened anew, if it fails.
    pub home: Option<Home>,
    /// Keeps others out of the vault.
    pub lock: Mutex<Option<Box<dyn Send + Sync>>>,
    /// It and the emergency directory.
    pub places: Arc<Places>,
    /// The actors, where there are no threads.
    pub stepper: Option<Stepper>,
    pub stats: Stats,
    pub index: Index,
    pub segments: Segments,
    pub compression: Compression,
    pub verify: Verify,
    /// Whether the segment being written is open for direct I/O.
    pub direct: AtomicBool,
    /// Of a hundred groups read back, so many are also opened and compared with the plaintext.
    pub verify_open_percent: u32,
    pub flush_interval: Duration,
    /// A flush that takes longer makes the log go on in the emergency directory, if there is one.
    pub flush_deadline: Duration,
    pub read_only: bool,
    /// Bring nothing home.
    pub leave_away: bool,
    pub shares: Shares,
    pub quota_bytes: Option<u64>,
    pub quota_inodes: Option<u64>,
    /// Trees, users and groups.
    pub quotas: Quotas,

    /// Number of the batch that is filling; operations hold it shared, a cut alone.
    pub gate: RwLock<u64>,
    pub batch: Mutex<Batch>,
    /// Frames at rest that are being sealed again elsewhere.
    pub moves: Moves,
    pub progress: Progress,
    /// Files with a layer of a batch that was cut and is not yet retired: they stay, whatever fails.
    pub in_flight: Mutex<BTreeMap<u64, Vec<Arc<FileBuffer>>>>,
    pub next_ino: AtomicU64,
    pub next_cookie: AtomicU64,
    pub inodes: AtomicI64,
    /// Bytes of files that are not holes, as of the newest retired batch.
    pub allocated: AtomicU64,
    /// Bytes of files that copies were promised and that are not in `allocated` yet, at most.
    pub copied: AtomicU64,

    pub dirty: Budget,
    /// Held by the one writer that counts exactly because the quota is near; the disk may be waited for meanwhile.
    pub near_quota: Mutex<()>,
    /// Held while a segment's file is made or opened for writing.
    pub making_segment: Mutex<()>,
    /// Bytes of records at which a cut is due.
    pub records_limit: usize,
    pub pool: Pool,
    pub sealed_pool: Pool,
    /// What workers have sealed, or are about to, and the log has not put into a group.
    pub sealed: Arc<Budget>,
    pub group_buffers: Mutex<Vec<AlignedBuf>>,
    pub cache: FrameCache,
    pub windows: Windows,
    /// What readers will want next.
    pub wishes: Wishes,
    pub files: Mutex<Files>,

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
    pub verifying: AtomicU64,
    pub last_op_ms: AtomicU64,
    /// The newest commit written.
    pub committed: Mutex<LogPosition>,
    /// The newest segment that has a group.
    pub newest_begun: AtomicU64,
    pub log_since_checkpoint: AtomicU64,

    /// Ranges that no extent names any more, not yet covered by a checkpoint.
    pub dead: Mutex<Vec<DeadRange>>,
    /// Held by whoever writes a root, the header or the pins; `root` only for a moment in memory.
    pub header: Mutex<InForce>,
    pub root: Mutex<Root>,
    pub pins: Pins,
    /// The room of the backing directory, and of the emergency directory.
    pub space: Arc<SpaceWatch>,
    pub space_away: Arc<SpaceWatch>,

    /// The snapshots of the index that lie in the backing directory, the newest first.
    pub snapshots: Mutex<Vec<Kept>>,
    /// Whether the next checkpoint is to be followed by one.
    pub snapshot_wanted: AtomicBool,

    /// Room kept for when there is none.
    pub reserve: Reserve,
    /// What is known about room beside the free bytes.
    pub room: RoomWatch,
    pub machine: Mutex<Machine>,
    /// Whether statistics and history are to go into the next batch.
    pub totals_wanted: AtomicBool,
    /// What earlier mounts counted.
    pub earlier: Totals,
    /// Whether the log has ended: nothing more comes to rest.
    pub log_ended: AtomicBool,
    /// When closing began.
    pub closing_since: Mutex<Option<Duration>>,
    /// What stops the generation being written, until the log has taken it up.
    pub trouble: Mutex<Option<Trouble>>,
    /// Counts the restarts of the log.
    pub generation: AtomicU64,
    /// Whether the log lies in the emergency directory at the moment.
    pub away: AtomicBool,
    /// Whether it is there only for want of room: the index at home can still be written, from the reserve.
    pub away_for_room: AtomicBool,
    /// Whether the backing directory is well again.
    pub home_wanted: AtomicBool,
    /// Whether segments that the log has left behind in the emergency directory are to be brought home.
    pub bring_home: AtomicBool,
    /// What there must be to gain for old segments to be cleaned; `None` if they are not.
    pub clean_bytes: Option<u64>,
    /// Whether old segments are to be cleaned now, however little there is to gain.
    pub clean_wanted: AtomicBool,
    /// Segments below this number that lie in the emergency directory are not written to any more.
    pub home_below: AtomicU64,
    /// The greatest segment number for which a file may have been prepared.
    pub prepared: AtomicU64,
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

    /// Whether nothing has been changed for a while.
    pub fn is_idle(&self) -> bool {
        let last = Duration::from_millis(self.last_op_ms.load(Relaxed));
        self.world.elapsed().saturating_sub(last) >= CHECKPOINT_IDLE
    }

    /// Asks for a checkpoint.
    pub fn want_checkpoint(&self) {
        self.checkpoint_wanted.store(true, SeqCst);
        self.wake_log();
    }

    /// Something was put into the batch that fills: the first of it, if that is so. `pressed` has it cut soon.
    pub fn filled(&self, first: bool, pressed: bool) {
        if first {
            self.happened(Event::Changed, "");
        }
        if pressed && !self.pressed.swap(true, Relaxed) || first {
            self.wake_log();
        }
    }

    /// Something happened that may change the state; `why` is for the history. An event that the state refuses changes nothing.
    pub fn happened(&self, event: Event, why: &str) {
        let taken = self.machine.held().take(event, self.world.elapsed());
        match taken {
            Ok(Some((before, after))) if !(before.is_work() && after.is_work()) => {
                let colon = if why.is_empty() { "" } else { ": " };
                self.stats.event(self.world.now(), format!("{after}{colon}{why}"));
                // Opening and closing store a checkpoint anyway.
                if before != State::Init && after != State::Closed {
                    self.totals_wanted.store(true, SeqCst);
                }
            }
            Ok(_) => {}
            // Late news of a vault that is closed or being opened.
            Err(refused) => log::debug!("state: {refused}"),
        }
    }

    /// Stops the generation being written: the log begins anew elsewhere. The first trouble counts.
    pub fn raise(&self, trouble: Trouble) {
        let mut known = self.trouble.held();
        let worse = known.as_ref().is_none_or(|k| trouble.kind == Kind::Stalled && k.kind != Kind::Stalled);
        // Compared under the lock that a new generation begins under: old news must not stop it.
        if trouble.generation == self.generation.load(SeqCst) && worse {
            *known = Some(trouble);
        }
        drop(known);
        self.wake_log();
        self.progress.notify();
    }

    /// A new generation of the log begins; what stopped the one before is taken up.
    pub fn begin_generation(&self, generation: u64) {
        let mut trouble = self.trouble.held();
        self.generation.store(generation, SeqCst);
        *trouble = None;
    }

    /// Stops acknowledging until a place takes the log again: what is buffered stays readable, every waiter is told.
    /// `for_room`: only room is wanting.
    pub fn nowhere(&self, why: &str, for_room: bool) {
        self.stop(why, if for_room { Stop::NoRoom } else { Stop::ForNow });
    }

    /// The same until the vault is opened anew.
    pub fn give_up(&self, why: &str) {
        self.stop(why, Stop::ForGood);
    }

    fn stop(&self, why: &str, how: Stop) {
        let (first, waiters) = self.progress.stop(why, how, &self.dirty);
        if first {
            self.stats.error(self.world.now(), format!("writing stopped: {why}"));
        }
        self.happened(if how == Stop::NoRoom { Event::NoRoom } else { Event::Nowhere }, why);
        for w in waiters {
            let fault = self.progress.check().err();
            (w.reply)(Err(fault.unwrap_or_else(|| VaultFault::Stopped(why.into()))));
        }
    }

    /// Acknowledges again: a batch has come to rest.
    pub fn well_again(&self) {
        if self.progress.go_on(&self.dirty) {
            if self.away.load(SeqCst) {
                self.happened(Event::Away, "the emergency directory takes the log");
            } else {
                self.happened(Event::Back, "the backing directory takes the log again");
                self.bring_home.store(true, SeqCst);
            }
        }
    }

    /// Promises the reserve to the next segment, for the log found the disk full; false if it was given before.
    pub fn promise_reserve(&self) -> bool {
        self.reserve.promise(&*self.backing)
    }

    /// Frees the reserve for a write beside the log that found the disk full; false if it was given before.
    pub fn release_reserve(&self) -> bool {
        let released = self.reserve.release(&*self.backing);
        self.space.forget();
        released
    }

    /// Takes the reserve again, if there is room.
    pub fn refill_reserve(&self) {
        if !self.read_only && !self.progress.is_stopped() && !self.away.load(SeqCst) {
            self.reserve.refill(&*self.backing);
        }
    }

    /// Whether checkpoints can be stored, as far as anyone knows: their index lies in the backing directory.
    pub fn takes_checkpoints(&self) -> bool {
        !self.away.load(SeqCst) || self.away_for_room.load(SeqCst)
    }

    /// Where the log lies.
    pub fn place(&self) -> Place {
        if self.away.load(SeqCst) { Place::Emergency } else { Place::Primary }
    }

    /// Waits for progress, for `most` at the longest; without threads, lets another actor work meanwhile.
    pub fn await_progress<'a>(&'a self, held: MutexGuard<'a, Reached>, most: Duration) -> MutexGuard<'a, Reached> {
        match &self.stepper {
            None => self.progress.wait(held, most),
            Some(_) => {
                drop(held);
                self.pause(most);
                self.progress.held()
            }
        }
    }

    /// Lets others work, or time pass.
    pub fn pause(&self, most: Duration) {
        if !self.stepper.as_ref().is_some_and(Stepper::step) {
            self.world.sleep(most);
        }
    }

    /// Whether neither place has room for `bytes` more, beside what each keeps back.
    pub fn is_full(&self, bytes: u64) -> bool {
        self.is_full_by(bytes, SpaceWatch::room)
    }

    /// Whether neither place has room for `bytes` more, or cannot say so at once: for data that is taken in by the answer.
    pub fn is_full_or_unsure(&self, bytes: u64) -> bool {
        self.is_full_by(bytes, |watch| watch.fresh_room().unwrap_or(Room::Unreachable))
    }

    /// Answers `is_full` by what the disks say now: for a writer that may wait for them.
    pub fn is_full_now(&self, bytes: u64) -> bool {
        self.is_full_by(bytes, SpaceWatch::settled_room)
            && self.is_full_by(bytes, |watch| watch.room_now(SPACE_PATIENCE))
    }

    fn is_full_by(&self, bytes: u64, room: impl Fn(&SpaceWatch) -> Room) -> bool {
        // Read before the room: what leaves the buffers in between counts as written.
        let need = bytes.saturating_add(self.dirty.used_bytes());
        let kept = |total: u64| reserve_bytes(total) + self.reserve.missing_bytes();
        let at_home = |total: u64| need.saturating_add(kept(total));
        // While the log is away, it does not matter what the backing directory says.
        let home = !self.away.load(SeqCst) && !self.room.is_refused() && room(&self.space).fits(at_home);
        // What the backing directory cannot take, the emergency directory does.
        let away = || room(&self.space_away).fits(|_| need.saturating_add(AWAY_RESERVE_BYTES));
        !(home || self.places.has(Place::Emergency) && away())
    }

    /// The log has written so many bytes, in whichever place.
    pub fn wrote(&self, bytes: u64) {
        self.space.wrote(bytes);
        self.space_away.wrote(bytes);
    }

    /// The root to be written next, one generation further: for who holds the header's lock. The root's own lock is free while the
    /// disk writes it, for whoever looks at the numbers takes that. A root whose writing fails has used its generation up.
    pub fn next_root(&self, change: impl FnOnce(&mut Root)) -> Root {
        let mut root = self.root.held();
        root.generation = Generation(root.generation.0 + 1);
        change(&mut root);
        root.clone()
    }

    /// Answers everyone who waited for a batch up to `batch`.
    pub fn answer(&self, batch: u64) {
        let due = self.progress.durable_to(batch);
        self.well_again();
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

    /// What the vault is doing.
    pub fn state(&self) -> State {
        self.machine.held().state()
    }
}
