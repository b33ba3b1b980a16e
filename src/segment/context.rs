//! What it takes to seal and open the frames of one segment.
//!
//! Promise (I1): a slot is given out once in the life of the segment's key, which is the life of this value: the salt is
//! new for each segment, and a segment is never resumed. Called by: `vault` (sealer, log, read, recover), `check`.

use crate::base::choice::{Codec, SuiteId};
use crate::base::id::{Epoch, Ino, SegmentId, Slot, VaultId};
use crate::format::frame::{Address, DIRECTORY_SLOTS, Kind, WRITER_SLOTS};
use crate::seal::{MasterKey, SegmentKey};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A segment's key and identity.
pub struct SegmentContext {
    /// The vault.
    pub vault: VaultId,
    /// The lease it is written under.
    pub epoch: Epoch,
    /// The segment.
    pub id: SegmentId,
    /// Its salt.
    pub salt: [u8; 16],
    /// Its key.
    pub key: SegmentKey,
    data_slots: AtomicU32,
    writer_slots: AtomicU32,
}

impl SegmentContext {
    /// Derives the key. For writing, `salt` must be fresh.
    pub fn new(
        master: &MasterKey,
        suite: SuiteId,
        vault: VaultId,
        epoch: Epoch,
        id: SegmentId,
        salt: [u8; 16],
    ) -> SegmentContext {
        let key = master.segment(suite, vault, epoch, id, &salt);
        SegmentContext { vault, epoch, id, salt, key, data_slots: 0.into(), writer_slots: WRITER_SLOTS.into() }
    }

    /// `count` consecutive slots for a worker; the first of them.
    pub fn take_data_slots(&self, count: u32) -> Slot {
        let first = self.data_slots.fetch_add(count, Relaxed);
        assert!(first < WRITER_SLOTS - count, "a segment ends long before its slots do");
        Slot(first)
    }

    /// One slot for the log writer.
    pub fn take_writer_slot(&self) -> Slot {
        let slot = self.writer_slots.fetch_add(1, Relaxed);
        assert!(slot < DIRECTORY_SLOTS, "a segment ends long before its slots do");
        Slot(slot)
    }

    /// The address of a frame here.
    #[must_use]
    pub fn address(&self, slot: Slot, kind: Kind, codec: Codec, plain_len: usize, ino: Ino, offset: u64) -> Address {
        let (vault, epoch, segment, plain_len_bytes) = (self.vault, self.epoch, self.id, plain_len as u32);
        Address { vault, epoch, segment, slot, kind, codec, plain_len_bytes, ino, offset_bytes: offset }
    }
}
