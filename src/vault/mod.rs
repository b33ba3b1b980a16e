//! The vault: an encrypted store that takes operations in and makes them durable.
//!
//! Promise: DESIGN's table, as far as one directory goes: an answered sync is on stable media, verified; a crash leaves an
//! atomic prefix of the operations; a frame that does not open is a fault, never wrong bytes. The files of this folder:
//! `create`, `open`, `recover` begin; `op` and `batch` take in; `sealer`, `log`, `verifier` bring to rest; `apply` and
//! `checkpoint` keep the index, `snapshot_keeper` copies it and `rebuild` makes it anew; `read` and `cache` give back; `quota`
//! counts. Called by: `fs`, `check`, `cli`.
//! On failure: `VaultFault` while running, `OpenFault` before.

mod ahead;
mod alive;
mod apply;
mod batch;
mod cache;
mod checkpoint;
mod cleaner;
mod commit;
mod copy;
mod create;
mod failover;
mod fault;
mod flusher;
mod handover;
mod header_file;
mod holes;
mod home;
mod log;
mod mend;
mod moved;
mod moves;
mod new_key;
mod occupants;
mod op;
mod open;
mod options;
mod outcome;
mod paths;
mod pin;
mod place;
mod presence;
mod pressure;
mod progress;
mod quota;
mod read;
mod rebuild;
mod recover;
mod rekey;
mod reopen;
mod report;
mod reseal;
mod reseal_snapshots;
mod reserve;
mod room;
mod root;
mod scrub;
mod sealer;
mod segments;
mod shared;
mod sharing;
mod slots;
mod snapshot;
mod snapshot_keeper;
mod space;
mod start;
mod state;
mod stats;
mod step;
mod totals;
mod trouble;
mod unwritten;
mod verifier;
mod window;
mod writer;

pub use crate::buffer::FileBuffer;
pub use copy::{Content, CopyRoom};
pub use create::create;
pub use fault::{HeaderRefused, OpenFault, VaultFault};
pub use header_file::{HEADER, HEADER_COPY, HeaderTexts, Spoiled};
pub use mend::{NOWHERE, lost_extent};
pub use op::{Op, Reservation};
pub use open::{Find, Locked, lock, open};
pub use options::{CreateOptions, Gauges, OpenOptions, Usage};
pub use pin::PinStore;
pub use place::{EmergencyDir, LOCK, Reach};
pub use quota::{AccountReport, Admit, OverQuota};
pub use rekey::{Plan, Rekey, RekeyFault, RekeyReport, under_old_keys};
pub use reopen::{HomeDir, Reopen};
pub use root::NAMES as ROOTS;
pub use scrub::{Hurt, ScrubReport, ScrubState};
pub use shared::SyncReply;
pub use slots::{HandOver, Import, SlotFault, Slots};
pub use snapshot::{Kept as KeptSnapshot, Known as KnownSnapshot, list_open as list_snapshots_open};
pub use snapshot_keeper::SpoiledSnapshot;
pub use state::{Held as HeldState, State};
pub use stats::{Line, Stats};
pub use step::Choose;
pub use totals::Totals;
pub use unwritten::Unwritten;

use crate::backing::{Cache, Open};
use crate::base::choice::SuiteId;
use crate::base::id::{Ino, SegmentId};
use crate::base::limits::{CLOSE_DEADLINE, FREE_INOS, RESERVE_BYTES};
use crate::base::lock::{Held, Shared as _};
use crate::base::world::World;
use crate::buffer::Room;
use crate::format::key;
use crate::format::record::Counters;
use crate::format::segment::SegmentInfo;
use checkpoint::ToHousekeeper;
use crossbeam_channel::Sender;
use progress::Waiter;
use shared::{FILES_LOOK_MIN, Shared};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

struct Running {
    workers: Vec<JoinHandle<()>>,
    log: Option<JoinHandle<()>>,
    verify: Option<JoinHandle<()>>,
    house: Option<JoinHandle<()>>,
    house_in: Sender<ToHousekeeper>,
    /// Those that ask how much room there is.
    space: Vec<JoinHandle<()>>,
    /// Ends when the first goes; `None` if nothing is cleaned.
    cleaner: Option<(Sender<()>, JoinHandle<()>)>,
}

/// An open vault.
pub struct Vault {
    shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
    workers: usize,
    suite: SuiteId,
    index_lost: Option<String>,
    lost_records: u64,
    left_to_rekey: Arc<report::LeftToRekey>,
    scrub: Arc<scrub::Scrub>,
    maps: holes::Maps,
}

/// Epoch and salt of a segment that is named somewhere.
fn segment_info(shared: &Shared, id: SegmentId) -> Result<SegmentInfo, VaultFault> {
    segment_info_if_known(shared, id)?.ok_or_else(|| unknown_segment(id))
}

fn unknown_segment(id: SegmentId) -> VaultFault {
    VaultFault::Index(format!("segment {id} is named but not known").into())
}

/// Epoch and salt of a segment: from the index, or from the segment that is being written. `None` if it was removed.
fn segment_info_if_known(shared: &Shared, id: SegmentId) -> Result<Option<SegmentInfo>, VaultFault> {
    Ok(match apply::known_segment(&shared.index, id)? {
        Some(info) => Some(info),
        None => shared.segments.written(id),
    })
}

impl Vault {
    /// The vault's clock and entropy.
    pub fn world(&self) -> &dyn World {
        &*self.shared.world
    }

    /// Counters and histograms.
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// Runs one step of one activity of a vault without threads; false if there was nothing to do.
    pub fn step(&self) -> bool {
        self.shared.stepper.as_ref().is_some_and(step::Stepper::step)
    }

    /// Bytes taken from writers and not yet safe, those that are held until there is room included.
    pub fn pending_bytes(&self) -> u64 {
        self.shared.pending_bytes() + self.shared.stats.unwritten.held_bytes()
    }

    /// Why the index had to be rebuilt from the log when the vault was opened, if it had to be.
    pub fn index_lost(&self) -> Option<&str> {
        self.index_lost.as_deref()
    }

    /// Frames of records and commits that were found lost when the vault was opened: what they changed is lost.
    pub fn lost_records(&self) -> u64 {
        self.lost_records
    }

    /// Value of a key as of now.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, VaultFault> {
        Ok(self.shared.index.get(key)?)
    }

    /// Up to `limit` entries whose keys begin with `prefix` and are not below `from`, in order.
    pub fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>, VaultFault> {
        Ok(self.shared.index.scan(prefix, from, limit)?)
    }

    /// A new inode number.
    pub fn next_ino(&self) -> Ino {
        loop {
            let ino = self.shared.next_ino.fetch_add(1, Relaxed);
            if !FREE_INOS.contains(&ino) {
                return Ino(ino);
            }
            self.shared.next_ino.fetch_max(FREE_INOS.end, Relaxed);
        }
    }

    /// A new directory cookie.
    pub fn next_cookie(&self) -> u64 {
        self.shared.next_cookie.fetch_add(1, Relaxed)
    }

    /// Refuses if nothing at all may be changed. Waits, with no lock of the caller's held, while metadata is far ahead of
    /// the log or of the checkpoints.
    pub fn admit_change(&self) -> Result<(), VaultFault> {
        let s = &self.shared;
        if self.is_far_ahead() {
            let mut progress = s.progress.held();
            while self.is_far_ahead() && !s.progress.is_stopped() && !s.closing.load(SeqCst) {
                if s.away.load(SeqCst) && s.batch.held().records_bytes <= 4 * s.records_limit {
                    // Nothing is stored in the index until the backing directory is well again.
                    return Err(VaultFault::BackingFull);
                }
                s.pressed.store(true, Relaxed);
                s.wake_log();
                progress = s.await_progress(progress, Duration::from_millis(50));
            }
        }
        self.admitted()
    }

    /// Whether metadata is far ahead of the log or of the checkpoints.
    fn is_far_ahead(&self) -> bool {
        let s = &self.shared;
        s.batch.held().records_bytes > 4 * s.records_limit
            || s.index.overlay_bytes() as u64 > 4 * s.shares.overlay_bytes
    }

    /// Whether no place takes the log at present.
    pub fn is_stopped(&self) -> bool {
        self.shared.progress.is_stopped()
    }

    fn admitted(&self) -> Result<(), VaultFault> {
        let s = &self.shared;
        s.progress.check()?;
        if s.closing.load(SeqCst) {
            return Err(VaultFault::Closed);
        }
        if s.read_only { Err(VaultFault::ReadOnly) } else { Ok(()) }
    }

    /// Refuses if `inodes` more may not be made now; with 0, if nothing at all may be changed.
    pub fn admit(&self, inodes: u64) -> Result<(), VaultFault> {
        self.admitted()?;
        let s = &self.shared;
        if inodes > 0 {
            let now = s.inodes.load(Relaxed).max(0) as u64;
            if s.quota_inodes.is_some_and(|quota| now.saturating_add(inodes) > quota) {
                return Err(VaultFault::QuotaInodes);
            }
            self.admit_room()?;
        }
        Ok(())
    }

    /// Room for a write: waits while the budget is used up (hold no lock), refuses over the quota or when the backing
    /// filesystem is full.
    pub fn reserve(&self, file: &FileBuffer, offset: u64, bytes: u64) -> Result<Reservation<'_>, VaultFault> {
        self.admit_change()?;
        self.make_room(bytes)?;
        self.reserve_within_quota(file, offset, bytes)
    }

    fn reserve_within_quota(&self, file: &FileBuffer, offset: u64, bytes: u64) -> Result<Reservation<'_>, VaultFault> {
        let s = &self.shared;
        let room = self.take_room(bytes)?;
        let Some(quota) = s.quota_bytes.filter(|&quota| self.used_bytes() > quota) else {
            return Ok(Reservation(room));
        };
        // Buffers count for more than they hold, and overwrites as new: flush, then count exactly, one writer at a time.
        drop(room);
        let _alone = s.near_quota.held();
        self.sync_and_retire()?;
        let new = bytes.saturating_sub(read::allocated_between(s, file.ino, offset, offset + bytes)?);
        if self.used_bytes() + new > quota {
            return Err(VaultFault::QuotaBytes);
        }
        Ok(Reservation(self.take_room(bytes)?))
    }

    /// Room in the byte budget, waited for if need be.
    fn take_room(&self, bytes: u64) -> Result<Room<'_>, VaultFault> {
        let s = &self.shared;
        let began = s.world.elapsed();
        let mut waited = false;
        let mut press = || {
            waited = true;
            s.pressed.store(true, Relaxed);
            s.wake_log();
        };
        let room = if s.stepper.is_none() {
            s.dirty.take(bytes, press)
        } else {
            loop {
                match s.dirty.try_take(bytes) {
                    None if !s.progress.is_stopped() && !s.closing.load(SeqCst) => {
                        press();
                        s.pause(Duration::from_millis(10));
                    }
                    room => break room,
                }
            }
        };
        if waited {
            s.stats.writer_waits.add(1);
            s.stats.writer_wait.record(s.world.elapsed().saturating_sub(began));
        }
        // Unused vectors of chunks lie in the room that the budget has left; what small buffers take, they give up. As much again
        // as a write has reserved and will take out of the pool stays.
        s.pool.leave(s.dirty.left_bytes() + s.dirty.limit_bytes() / 8);
        // The budget closes when the log stops and when the vault closes. The log may have gone on since.
        let went_on = || VaultFault::Stopped("the log had stopped for a moment".into());
        room.ok_or_else(|| self.admitted().err().unwrap_or_else(went_on))
    }

    /// The buffers of a file: the same value for everyone while anyone holds it.
    pub fn file(&self, ino: Ino) -> Arc<FileBuffer> {
        let mut files = self.shared.files.held();
        if let Some(file) = files.by_ino.get(&ino).and_then(std::sync::Weak::upgrade) {
            return file;
        }
        if files.by_ino.len() >= files.look_at {
            // Each look through all pays for itself: as many have come since the last as had stayed then.
            files.by_ino.retain(|_, f| f.strong_count() > 0);
            files.look_at = FILES_LOOK_MIN.max(2 * files.by_ino.len());
        }
        let file = Arc::new(FileBuffer::new(ino));
        files.by_ino.insert(ino, Arc::downgrade(&file));
        file
    }

    /// Begins an operation: all that is done to it becomes part of one batch, so that a crash shows all of it or nothing.
    /// Memory only between `begin` and `commit`: no reads of the index, no waiting, no second `begin` on the same thread.
    pub fn begin(&self) -> Op<'_> {
        Op::begin(&self.shared)
    }

    /// Appends `len` bytes from `offset` to `out`; holes are zeros; the caller has clipped to the file's size.
    pub fn read(&self, file: &Arc<FileBuffer>, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<(), VaultFault> {
        let start = out.len();
        out.resize(start + len, 0);
        let result = read::read(&self.shared, file, offset, &mut out[start..]);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    /// Bytes of the file that are not holes, buffered ones counted (an upper bound while they are buffered).
    pub fn allocated(&self, file: &FileBuffer) -> Result<u64, VaultFault> {
        Ok(apply::read_u64(&self.shared.index, &key::allocated(file.ino))?.saturating_add(file.promised_bytes()))
    }

    /// Makes everything acknowledged before this call durable and verified; `done` runs on another thread, or at once
    /// when nothing is pending.
    pub fn sync(&self, done: SyncReply) {
        let s = &self.shared;
        if let Err(fault) = s.progress.check() {
            return done(Err(fault));
        }
        let (filling, target) = {
            // One hold for both looks: a cut between them would take the batch away, and "empty" would be about the next.
            let gate = s.gate.shared();
            (*gate, if s.batch.held().is_empty() { *gate - 1 } else { *gate })
        };
        let waiter = Waiter { batch: target, since: s.world.elapsed(), reply: done };
        if let Some((waiter, answer)) = s.progress.enlist(waiter) {
            if answer.is_ok() {
                s.stats.fsyncs.add(1);
            }
            return (waiter.reply)(answer);
        }
        if target == filling {
            s.cut_wanted.store(true, SeqCst);
            s.wake_log();
        }
    }

    /// The same, waiting.
    pub fn sync_wait(&self) -> Result<(), VaultFault> {
        let (tell, told) = crossbeam_channel::bounded(1);
        self.sync(Box::new(move |result| {
            // The other end waits below until it is told.
            let _ = tell.send(result);
        }));
        if self.shared.stepper.is_some() {
            loop {
                match told.try_recv() {
                    Ok(result) => return result,
                    Err(_) => self.shared.pause(Duration::from_millis(10)),
                }
            }
        }
        told.recv().unwrap_or(Err(VaultFault::Closed))
    }

    /// Waits until all that is pending is durable and its buffers are free.
    fn sync_and_retire(&self) -> Result<(), VaultFault> {
        self.sync_wait()?;
        let s = &self.shared;
        let until = s.world.elapsed() + CLOSE_DEADLINE;
        let mut progress = s.progress.held();
        while progress.retired < progress.durable && !s.progress.is_stopped() && !s.away.load(SeqCst) {
            if s.world.elapsed() > until {
                // All of it is in the log.
                return Err(VaultFault::Unfinished(
                    "the index does not take in what the log holds; see the error list".into(),
                ));
            }
            progress = s.await_progress(progress, Duration::from_millis(100));
        }
        drop(progress);
        s.progress.check()
    }

    /// Stores a checkpoint now, and waits for it. What was acknowledged before is at rest then, also if the one waited for had been begun
    /// earlier, by the cleaner or for any other reason (simulated world 500316, cut 368).
    pub fn checkpoint(&self) -> Result<(), VaultFault> {
        let s = &self.shared;
        self.sync_wait()?;
        let attempts = || s.stats.checkpoints.get() + s.stats.checkpoint_failures.get();
        let (before, failures) = (attempts(), s.stats.checkpoint_failures.get());
        s.want_checkpoint();
        let mut progress = s.progress.held();
        while attempts() == before && !s.progress.is_stopped() && s.takes_checkpoints() && !s.closing.load(SeqCst) {
            progress = s.await_progress(progress, Duration::from_millis(100));
        }
        drop(progress);
        s.progress.check()?;
        if attempts() == before {
            return Err(VaultFault::Unfinished("no checkpoint can be stored while the backing directory fails".into()));
        }
        if s.stats.checkpoint_failures.get() > failures {
            return Err(VaultFault::Unfinished("the checkpoint could not be stored; see the error list".into()));
        }
        Ok(())
    }

    /// Begins to read all data in the background, or goes on with it; at most so many bytes a second, 0 for no limit.
    pub fn scrub(&self, rate_bytes: Option<u64>) -> Result<(), VaultFault> {
        self.shared.progress.check()?;
        if self.running.held().is_none() {
            return Err(VaultFault::Closed);
        }
        self.scrub.begin(&self.shared, rate_bytes)
    }

    /// Stops that reading for now.
    pub fn scrub_pause(&self) {
        self.scrub.stop();
    }

    /// Has old segments cleaned, however little there is to gain.
    pub fn clean(&self) {
        self.shared.clean_wanted.store(true, SeqCst);
        if let Some(Running { cleaner: Some((wake, _)), .. }) = &*self.running.held() {
            let _ = wake.try_send(());
        }
    }

    /// How that reading is doing.
    pub fn scrub_report(&self) -> Result<ScrubReport, VaultFault> {
        self.scrub.report(&self.shared)
    }

    /// Flushes, stores a last checkpoint, stops the threads and lets go of the lock. A second call does nothing.
    pub fn close(&self) -> Result<(), VaultFault> {
        self.close_after(|| ())
    }

    /// The same; `last` runs when nothing more comes to rest and everything can still be read.
    pub fn close_after(&self, last: impl FnOnce()) -> Result<(), VaultFault> {
        let Some(running) = self.running.held().take() else { return Ok(()) };
        // Its last act is an operation.
        self.scrub.stop();
        if let Some((wake, thread)) = running.cleaner {
            drop(wake);
            let _ = thread.join();
        }
        let s = &self.shared;
        self.say("closing");
        *s.closing_since.held() = Some(s.world.elapsed());
        let mut flushed = self.sync_and_retire();
        s.closing.store(true, SeqCst);
        s.progress.close(&s.dirty);
        s.wishes.close();
        // The log first, for it may still need the workers; it tells the verifier, and that the housekeeper.
        s.wake_log();
        if let Some(stepper) = &s.stepper {
            while stepper.step() || !s.log_ended.load(SeqCst) {
                if !s.log_ended.load(SeqCst) {
                    s.world.sleep(Duration::from_millis(1));
                }
            }
            s.jobs_in.held().take();
            stepper.clear();
        }
        let join = |thread: Option<JoinHandle<()>>| thread.is_none_or(|t| t.join().is_ok());
        join(running.log);
        s.jobs_in.held().take();
        for worker in running.workers {
            let _ = worker.join();
        }
        join(running.verify);
        // An operation that began before we closed may wait for a log that never saw it.
        for waiter in s.progress.end() {
            (waiter.reply)(Err(VaultFault::Closed));
        }
        let _ = running.house_in.send(ToHousekeeper::Stop);
        join(running.house);
        self.left_to_rekey.close();
        // One that waits for a disk which does not answer is left behind.
        let answered = [&s.space, &s.space_away].map(|watch| watch.close());
        for (thread, answered) in running.space.into_iter().zip(answered) {
            join(answered.then_some(thread));
        }
        // While it failed, the log went on trying until the deadline, and may have found a place.
        if flushed.is_err() && !s.progress.is_stopped() && s.batch.held().is_empty() && s.in_flight.held().is_empty() {
            flushed = Ok(());
        }
        let closed = presence::close(s, || flushed.and_then(|()| s.progress.check()).and_then(|()| self.store_last()));
        s.happened(state::Event::Close, "");
        match &closed {
            Ok(()) if !self.refused().is_empty() => self.say("failed: bytes of the kernel's cache were refused"),
            _ if self.is_away() && self.unsaved().is_empty() => self.say("away"),
            Ok(()) => self.say("closed"),
            Err(fault) => self.say(&format!("failed: {fault}")),
        }
        last();
        // Whoever is changing the header comes to the end of it, and nobody begins any more.
        drop(s.header.held());
        // The database writes when it is dropped, and this value may outlive the lock.
        s.index.put_away();
        s.lock.held().take();
        closed
    }

    /// Writes into the lock file how far closing has come: `closing` for whoever waits for the vault, then `closed`, `away` (safe, but
    /// in part in the emergency directory) or `failed: why` for whoever unmounted it. A file that cannot be written proves nothing
    /// to its reader; the lock itself counts.
    fn say(&self, word: &str) {
        let line = format!("{word}\n");
        let file = self.shared.backing.open(LOCK, Open::Write, Cache::Buffered);
        // Written over before it is cut, so that a full disk has the block that it needs.
        let _ = file.and_then(|f| f.write_all_at(line.as_bytes(), 0).and_then(|()| f.set_len(line.len() as u64)));
    }

    /// The last checkpoint: everything is retired, no thread runs.
    fn store_last(&self) -> Result<(), VaultFault> {
        let s = &self.shared;
        // An operation that came while we closed was never logged: storing its keys without its data would be half of it.
        let _gate = s.gate.alone();
        if !s.batch.held().is_empty() {
            return Err(VaultFault::Closed);
        }
        // It is in the log, and the next opening takes it in; a checkpoint must not say that it covers it.
        if !s.in_flight.held().is_empty() {
            return Err(VaultFault::Unfinished("what the log holds could not be taken into the index".into()));
        }
        s.index.seal_direct();
        s.index.seal_derived();
        let counters = Counters {
            next_ino: s.next_ino.load(Relaxed),
            next_cookie: s.next_cookie.load(Relaxed),
            inodes: s.inodes.load(Relaxed).max(0) as u64,
        };
        let position = *s.committed.held();
        let next = SegmentId(s.newest_begun.load(SeqCst) + 1);
        checkpoint::close(s, position, counters, next)
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        if let Err(fault) = self.close() {
            ::log::error!("closing the vault: {fault}");
        }
    }
}

/// What ordinary writes may not take of the backing filesystem.
fn reserve_bytes(total: u64) -> u64 {
    RESERVE_BYTES.min(total / 16)
}
