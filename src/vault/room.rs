//! Room on a full disk: who may still take it, who is refused, and what is given back before anybody is.
//!
//! Promise: new data of a program is refused only after everything deleted before it was given back to the
//! filesystem, which takes a checkpoint (I10), and while there is still room for what the kernel's write-back
//! cache has accepted already.
//! Called by: `Vault` (reserve, admit), `checkpoint` (its tick), `failover` (a write that was refused), `fs`.
//! Takes: the lock of whoever counts exactly, so that one checkpoint serves all who wait.
//! On failure: `BackingFull`; a checkpoint that cannot be stored gives nothing back.

use super::shared::{SPACE_PATIENCE, Shared};
use super::state::{Event, State};
use super::{Reservation, Vault, VaultFault, read, reserve_bytes};
use crate::backing::Space;
use crate::base::limits::{ALLOCATE_STEP_BYTES, CHECKPOINT_LOG_BYTES, FULL_REPORT_PAUSE, kernel_room_bytes};
use crate::base::lock::Held;
use crate::buffer::FileBuffer;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// A checkpoint may have begun before the last deletion: the next one covers it.
const CHECKPOINTS_MOST: usize = 2;

/// The vault is called full when it has not even room for this much: one request.
const FULL_BYTES: u64 = 1 << 20;
/// Deletions of so many bytes have a checkpoint stored to give them back, …
const MUCH_DELETED_BYTES: u64 = 16 << 20;
/// … if the free room is no more than so many times as much, …
const MUCH_DELETED_ONE_IN: u64 = 16;
/// … and no more often than this: a program may go on to overwrite its files.
const GIVE_BACK_PAUSE: Duration = Duration::from_secs(1);
/// With so much free, a write of ours that finds no room is refused for another reason.
const SHOWN_ROOM_BYTES: u64 = 2 * ALLOCATE_STEP_BYTES;

/// What the vault knows about room beside the number of free bytes.
#[derive(Default)]
pub struct RoomWatch {
    /// Bytes kept for what the kernel has accepted from programs and not yet handed over.
    kernel_bytes: AtomicU64,
    /// Whether something was deleted that no checkpoint has given back yet.
    is_freed: AtomicBool,
    /// Bytes that commits have left dead since the last checkpoint.
    dead_bytes: AtomicU64,
    /// When a checkpoint was last asked for because much was deleted.
    gave_back_at: Mutex<Option<Duration>>,
    /// Whether the backing filesystem refused a write for want of room although `statfs` showed some: it has a quota
    /// of its own, or no inode left.
    is_refused: AtomicBool,
    /// When the error list was last told that there is no room.
    reported_at: Mutex<Option<Duration>>,
}

impl RoomWatch {
    /// Notes that something was deleted.
    pub fn note_freed(&self) {
        // A plain store would move the cache line with each deletion.
        if !self.is_freed.load(SeqCst) {
            self.is_freed.store(true, SeqCst);
        }
    }

    /// Notes that a commit has left so many bytes dead.
    pub fn note_dead(&self, bytes: u64) {
        self.dead_bytes.fetch_add(bytes, SeqCst);
    }

    /// Notes that a checkpoint has begun, which gives all dead bytes back.
    pub fn clear_dead(&self) {
        self.dead_bytes.store(0, SeqCst);
    }

    /// Notes that the backing filesystem made a new file, and took as much again as the reserve holds.
    pub fn clear_refused(&self) {
        self.is_refused.store(false, SeqCst);
    }

    /// Whether the backing filesystem refuses more than `statfs` tells.
    pub fn is_refused(&self) -> bool {
        self.is_refused.load(SeqCst)
    }
}

impl Shared {
    /// Whether there is no room for `bytes` more of a program's data, beside what the kernel may hand over.
    pub fn is_short(&self, bytes: u64) -> bool {
        self.is_full(bytes.saturating_add(self.room.kernel_bytes.load(SeqCst)))
    }

    /// Answers `is_short` by what the disks say now: for a writer that would be refused otherwise.
    fn is_short_now(&self, bytes: u64) -> bool {
        self.is_full_now(bytes.saturating_add(self.room.kernel_bytes.load(SeqCst)))
    }

    /// Notes that the backing filesystem refused a write or a new file for want of room. Where `statfs` says the same
    /// nothing needs to be remembered.
    pub fn note_refusal(&self) {
        let shows_room = self.backing.space().ok().flatten().is_some_and(|space| {
            space.free_inodes == 0 || space.free_bytes >= (reserve_bytes(space.total_bytes) / 2).max(SHOWN_ROOM_BYTES)
        });
        if shows_room {
            self.room.is_refused.store(true, SeqCst);
        }
    }

    /// Enters or leaves the state `full`, and reports it.
    pub fn watch_room(&self) {
        // Then the log says when it goes on, and where.
        if self.progress.is_stopped() {
            return;
        }
        if self.is_short(FULL_BYTES) {
            // What is buffered counts twice while it is on its way to the log. Whoever is refused reports it anyway.
            if self.pending_bytes() == 0 {
                self.report_full();
            }
        } else if self.state() == State::Full {
            self.happened(Event::Room, "");
            if self.pending_bytes() > 0 {
                self.happened(Event::Changed, "");
            }
        }
    }

    /// Enters the state `full`; the error list and the log get one line for it.
    fn report_full(&self) {
        if !self.state().is_work() {
            return;
        }
        let why = if self.room.is_refused() {
            "the backing filesystem refuses new data though it shows free space (a quota, or no inodes left)"
        } else {
            "the backing filesystem has no room for new data"
        };
        self.happened(Event::NoRoom, why);
        let now = self.world.elapsed();
        let mut reported = self.room.reported_at.held();
        // At the border a vault may enter and leave the state many times.
        if reported.is_none_or(|at| now.saturating_sub(at) >= FULL_REPORT_PAUSE) {
            *reported = Some(now);
            self.stats.error(
                self.world.now(),
                format!("{why}: writers get ENOSPC. Delete files, or make room on the backing filesystem."),
            );
        }
    }

    /// Asks for the checkpoint that gives back what was deleted, if anything was.
    pub fn give_back_deleted(&self) -> bool {
        let holds = self.takes_checkpoints() && !self.progress.is_stopped() && self.holds_deleted();
        if holds {
            self.room.is_freed.store(false, SeqCst);
            self.want_checkpoint();
            if self.room.is_refused() {
                // A quota may count a segment in which little is alive as a whole: btrfs keeps all of an extent.
                self.clean_wanted.store(true, SeqCst);
            }
        }
        holds
    }

    /// Bytes that the log may take of the backing filesystem before it needs them. Waits for the disk.
    pub fn spare_bytes(&self) -> u64 {
        // Exactly: the last answer may be from before the last megabytes were taken.
        let Ok(Some(space)) = self.backing.space() else { return u64::MAX };
        space.free_bytes.saturating_sub(reserve_bytes(space.total_bytes) + self.reserve.missing_bytes())
    }

    /// Asks for that checkpoint if what was deleted is much beside what is free: `df` is to show it within two seconds.
    pub fn give_back_much(&self) {
        let dead = self.room.dead_bytes.load(SeqCst);
        if dead < MUCH_DELETED_BYTES {
            return;
        }
        let is_much = self.space.room().space().is_some_and(|space| dead >= space.free_bytes / MUCH_DELETED_ONE_IN);
        if !is_much && dead < CHECKPOINT_LOG_BYTES {
            return;
        }
        let now = self.world.elapsed();
        let mut last = self.room.gave_back_at.held();
        if last.is_none_or(|at| now.saturating_sub(at) >= GIVE_BACK_PAUSE) && self.give_back_deleted() {
            *last = Some(now);
        }
    }

    fn holds_deleted(&self) -> bool {
        self.room.is_freed.load(SeqCst) || !self.dead.held().is_empty()
    }
}

impl Vault {
    /// Keeps room for what the kernel's write-back cache accepts from programs before we see it.
    pub fn keep_room_for_kernel(&self) {
        let s = &self.shared;
        // What cannot be asked now is asked again with each write; without an answer nothing is kept.
        let total = s.space.room_now(SPACE_PATIENCE).space().map_or(0, |space| space.total_bytes);
        s.room.kernel_bytes.store(kernel_room_bytes(total), SeqCst);
    }

    /// Waits until there is room for `bytes` more of a program's data, as far as a checkpoint can make some. Call it
    /// with no lock held.
    pub fn make_room(&self, bytes: u64) -> Result<(), VaultFault> {
        if self.make_room_until(|s| s.is_short_now(bytes)) { Ok(()) } else { Err(self.refuse_for_room()) }
    }

    /// Room for a write that the kernel's cache hands over, for which room was kept when a program made it. Waits for
    /// deleted room to be given back only if `patient`. While no place takes the log, the byte budget alone decides.
    pub fn reserve_from_kernel(
        &self,
        file: &FileBuffer,
        offset: u64,
        bytes: u64,
        patient: bool,
    ) -> Result<Reservation<'_>, VaultFault> {
        match self.admit_change() {
            Err(VaultFault::Stopped(why)) => return self.reserve_while_stopped(bytes).ok_or(VaultFault::Stopped(why)),
            admitted => admitted?,
        }
        if patient {
            self.make_room_for_kernel(bytes)?;
        } else {
            self.admit_from_kernel(bytes)?;
        }
        self.reserve_within_quota(file, offset, bytes)
    }

    /// Room in the byte budget while no place takes the log, if there is some. A program was told that these bytes are
    /// written, so memory keeps them until a place takes the log again. Never waits.
    fn reserve_while_stopped(&self, bytes: u64) -> Option<Reservation<'_>> {
        let s = &self.shared;
        let is_refused = s.closing.load(SeqCst) || s.read_only || self.is_far_ahead();
        let is_over_quota = s.quota_bytes.is_some_and(|quota| self.used_bytes().saturating_add(bytes) > quota);
        if is_refused || is_over_quota { None } else { s.dirty.take_while_closed(bytes).map(Reservation) }
    }

    /// Waits until there is room for `bytes` that the kernel hands over: they were accepted from a program before.
    fn make_room_for_kernel(&self, bytes: u64) -> Result<(), VaultFault> {
        if self.make_room_until(|s| s.is_full_now(bytes)) {
            return Ok(());
        }
        self.shared.report_full();
        Err(VaultFault::BackingFull)
    }

    fn make_room_until(&self, is_short: impl Fn(&Shared) -> bool) -> bool {
        let s = &self.shared;
        if !is_short(s) {
            return true;
        }
        let _alone = s.near_quota.held();
        for _ in 0..CHECKPOINTS_MOST {
            if !is_short(s) {
                return true;
            }
            let deleted = s.takes_checkpoints() && s.holds_deleted();
            // What is buffered counts as it is; in the log it may be compressed, or found deleted.
            if !deleted && s.pending_bytes() == 0 {
                break;
            }
            s.room.is_freed.store(false, SeqCst);
            let done = if deleted { self.checkpoint() } else { self.sync_and_retire() };
            if done.is_err() {
                break;
            }
            // The room is given back after the checkpoint is stored.
            let mut progress = s.progress.held();
            while s.checkpoint_running.load(SeqCst) && !s.progress.is_stopped() && !s.closing.load(SeqCst) {
                progress = s.await_progress(progress, Duration::from_millis(50));
            }
            drop(progress);
            s.space.forget();
        }
        !is_short(s)
    }

    /// Refuses if there is no room at all; then what was deleted is asked for, for whoever tries again.
    pub(super) fn admit_room(&self) -> Result<(), VaultFault> {
        let s = &self.shared;
        if !s.is_short(0) {
            return Ok(());
        }
        s.give_back_deleted();
        Err(self.refuse_for_room())
    }

    /// Refuses `bytes` that the kernel hands over if there is no room for them now, or nobody knows. Never waits.
    fn admit_from_kernel(&self, bytes: u64) -> Result<(), VaultFault> {
        if self.shared.is_full_or_unsure(bytes) { Err(VaultFault::BackingFull) } else { Ok(()) }
    }

    /// Refuses a range of a file that could not be written as things are: beside the bytes that the file has there
    /// already, there is no room for it, or the vault's quota does not allow it. Call it with no lock held.
    pub fn admit_range(&self, file: &FileBuffer, from: u64, to: u64) -> Result<(), VaultFault> {
        let s = &self.shared;
        let over_quota = |need: u64| s.quota_bytes.is_some_and(|quota| self.used_bytes().saturating_add(need) > quota);
        let len = to.saturating_sub(from);
        if !s.is_short_now(len) && !over_quota(len) {
            return Ok(());
        }
        // Exactly: what is buffered may lie in this very range.
        self.sync_and_retire()?;
        let need = len.saturating_sub(read::allocated_between(s, file.ino, from, to)?);
        if over_quota(need) {
            return Err(VaultFault::QuotaBytes);
        }
        self.make_room(need)
    }

    /// Whether programs will soon be refused: within what the kernel's cache may hold.
    pub fn is_nearly_full(&self) -> bool {
        let s = &self.shared;
        let kernel_bytes = s.room.kernel_bytes.load(SeqCst);
        kernel_bytes > 0 && s.is_full(2 * kernel_bytes)
    }

    /// Bytes that programs may still write, of those that the backing filesystem has.
    pub(super) fn room_bytes(&self, space: Space) -> u64 {
        let s = &self.shared;
        if s.room.is_refused() {
            return 0;
        }
        let kept = reserve_bytes(space.total_bytes) + s.reserve.missing_bytes() + s.room.kernel_bytes.load(SeqCst);
        space.free_bytes.saturating_sub(kept + s.dirty.used_bytes())
    }

    fn refuse_for_room(&self) -> VaultFault {
        let s = &self.shared;
        s.stats.refused_for_room.add(1);
        // One that asks for much finds no room in a vault that is not full.
        if s.is_short(FULL_BYTES) {
            s.report_full();
        }
        VaultFault::BackingFull
    }
}
