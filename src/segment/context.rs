//! What it takes to seal and open the frames of one segment, or of one snapshot.
//!
//! Promise (I1): a slot is given out once in the life of the segment's key, which is the life of this value: the salt is
//! new for each segment, and a segment is never resumed. Called by: `vault` (sealer, log, read, recover), `check`.

use crate::base::choice::{Codec, SuiteId};
use crate::base::id::{Epoch, Ino, KeyNumber, SegmentId, Slot, VaultId};
use crate::format::frame::{Address, DIRECTORY_SLOTS, Kind, WRITER_SLOTS};
use crate::format::segment::SegmentInfo;
use crate::seal::{SegmentKey, VaultKeys};
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
    /// The number of the master key that its own is derived from.
    pub key_number: KeyNumber,
    /// Whether it is a snapshot that is sealed so, and not a segment; its number is then that of the commit it covers.
    pub of_snapshot: bool,
    /// Its key.
    pub key: SegmentKey,
    data_slots: AtomicU32,
    writer_slots: AtomicU32,
}

impl SegmentContext {
    /// Derives the key; `None` if the header does not have the master key that it is derived from. For writing, the salt must
    /// be fresh and the key the one in force.
    pub fn new(
        keys: &VaultKeys,
        suite: SuiteId,
        vault: VaultId,
        id: SegmentId,
        info: &SegmentInfo,
    ) -> Option<SegmentContext> {
        let key = keys.get(info.key)?.segment(suite, vault, info.epoch, id, &info.salt);
        Some(SegmentContext::under(key, false, vault, id, info))
    }

    /// The same of a snapshot.
    pub fn of_snapshot(
        keys: &VaultKeys,
        suite: SuiteId,
        vault: VaultId,
        id: SegmentId,
        info: &SegmentInfo,
    ) -> Option<SegmentContext> {
        let key = keys.get(info.key)?.snapshot(suite, vault, info.epoch, id, &info.salt);
        Some(SegmentContext::under(key, true, vault, id, info))
    }

    fn under(key: SegmentKey, of_snapshot: bool, vault: VaultId, id: SegmentId, info: &SegmentInfo) -> SegmentContext {
        let SegmentInfo { epoch, salt, key: key_number, .. } = *info;
        let (data_slots, writer_slots) = (0.into(), WRITER_SLOTS.into());
        SegmentContext { vault, epoch, id, salt, key_number, of_snapshot, key, data_slots, writer_slots }
    }

    /// What the index says of it while nothing in it is counted.
    #[must_use]
    pub fn info(&self) -> SegmentInfo {
        SegmentInfo::empty(self.epoch, self.salt, self.key_number)
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
