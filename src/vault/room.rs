//! Room on a full disk: what was deleted is given back before anything is refused.
//!
//! Promise: a write is refused for want of room only when everything deleted before it has been given back to the
//! filesystem, which takes a checkpoint (I10). Called by: `Vault::reserve` (waits, with no lock of the caller's held),
//! `Vault::admit` (only asks). Takes: the lock of whoever counts exactly, so that one checkpoint serves all who wait.
//! On failure: `BackingFull`; a checkpoint that cannot be stored gives nothing back.

use super::{Vault, VaultFault};
use crate::base::lock::Held;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// A checkpoint may have begun before the last deletion: the next one covers it.
const CHECKPOINTS_MOST: usize = 2;

impl Vault {
    /// Refuses if there is no room for `bytes` more, after what was deleted has been given back.
    pub(super) fn make_room(&self, bytes: u64) -> Result<(), VaultFault> {
        let s = &self.shared;
        if !s.is_full_now(bytes) {
            return Ok(());
        }
        let _alone = s.near_quota.held();
        for _ in 0..CHECKPOINTS_MOST {
            if !s.is_full_now(bytes) {
                return Ok(());
            }
            if !self.holds_deleted() || self.checkpoint().is_err() {
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
        if s.is_full_now(bytes) { Err(VaultFault::BackingFull) } else { Ok(()) }
    }

    /// Refuses if there is no room at all; then what was deleted is asked for, for whoever tries again.
    pub(super) fn admit_room(&self) -> Result<(), VaultFault> {
        let s = &self.shared;
        if !s.is_full(0) {
            return Ok(());
        }
        if self.holds_deleted() {
            s.want_checkpoint();
        }
        Err(VaultFault::BackingFull)
    }

    /// Whether there may be something that a checkpoint gives back.
    fn holds_deleted(&self) -> bool {
        let s = &self.shared;
        s.takes_checkpoints()
            && (!s.dead.held().is_empty() || !s.batch.held().is_empty() || !s.in_flight.held().is_empty())
    }
}
