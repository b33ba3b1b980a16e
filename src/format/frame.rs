//! What a frame is and what its encryption binds (format.md §4).
//!
//! Promise: two frames that differ in any of vault, epoch, segment, slot, kind, codec, length, inode or offset have
//! different associated data, so one never opens in place of the other. Called by: `seal`, `segment`.

use super::wire::{Malformed, malformed};
use crate::base::choice::Codec;
use crate::base::id::{Epoch, Ino, SegmentId, Slot, VaultId};

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes of a file.
    Data = 1,
    /// Records of metadata changes, made visible by the next commit.
    Records = 2,
    /// A commit.
    Commit = 3,
    /// The directory of a group.
    Directory = 4,
    /// The first frame of a segment: what the segment continues.
    Start = 5,
    /// The first frame of a snapshot: what it covers.
    Covered = 6,
    /// A piece of a snapshot's entries.
    Entries = 7,
    /// The last frame of a snapshot: it is whole.
    End = 8,
}

impl Kind {
    /// The kind of a stored number.
    pub fn from_u8(n: u8) -> Result<Kind, Malformed> {
        match n {
            1 => Ok(Kind::Data),
            2 => Ok(Kind::Records),
            3 => Ok(Kind::Commit),
            4 => Ok(Kind::Directory),
            5 => Ok(Kind::Start),
            6 => Ok(Kind::Covered),
            7 => Ok(Kind::Entries),
            8 => Ok(Kind::End),
            _ => malformed("frame kind"),
        }
    }

    /// Whether it stands in snapshots; the others stand in segments, and a directory in both.
    #[must_use]
    pub fn is_of_snapshots(self) -> bool {
        matches!(self, Kind::Covered | Kind::Entries | Kind::End)
    }
}

/// Slots below this number are taken by the workers, from 0 upwards.
pub const WRITER_SLOTS: u32 = 0x4000_0000;
/// Slots from here on belong to group directories: this plus the group's number.
pub const DIRECTORY_SLOTS: u32 = 0x8000_0000;

/// Where and what a frame is: everything its encryption binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The vault.
    pub vault: VaultId,
    /// The writer's lease under which the segment was written.
    pub epoch: Epoch,
    /// The segment.
    pub segment: SegmentId,
    /// The frame's nonce in that segment.
    pub slot: Slot,
    /// What it holds.
    pub kind: Kind,
    /// How it is compressed.
    pub codec: Codec,
    /// Plaintext bytes after decompression.
    pub plain_len_bytes: u32,
    /// The inode whose data it holds; 0 for other kinds.
    pub ino: Ino,
    /// Offset in that file of its first byte; 0 for other kinds.
    pub offset_bytes: u64,
}

/// Length of the associated data.
pub const AAD_BYTES: usize = 64;

impl Address {
    /// The associated data.
    #[must_use]
    pub fn aad(&self) -> [u8; AAD_BYTES] {
        let mut a = [0; AAD_BYTES];
        a[0..4].copy_from_slice(b"SRF1");
        a[4..20].copy_from_slice(&self.vault.0);
        a[20..28].copy_from_slice(&self.epoch.0.to_le_bytes());
        a[28..36].copy_from_slice(&self.segment.0.to_le_bytes());
        a[36..40].copy_from_slice(&self.slot.0.to_le_bytes());
        a[40] = self.kind as u8;
        a[41] = self.codec as u8;
        a[44..48].copy_from_slice(&self.plain_len_bytes.to_le_bytes());
        a[48..56].copy_from_slice(&self.ino.0.to_le_bytes());
        a[56..64].copy_from_slice(&self.offset_bytes.to_le_bytes());
        a
    }
    /// The nonce: the slot number, then zeros. Unique because the key is the segment's own and a slot is used once.
    #[must_use]
    pub fn nonce(&self) -> [u8; 12] {
        let mut n = [0; 12];
        n[..4].copy_from_slice(&self.slot.0.to_le_bytes());
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_associated_data() {
        let a = Address {
            vault: VaultId([0xAA; 16]),
            epoch: Epoch(2),
            segment: SegmentId(3),
            slot: Slot(4),
            kind: Kind::Data,
            codec: Codec::Zstd,
            plain_len_bytes: 5,
            ino: Ino(6),
            offset_bytes: 7,
        };
        assert_eq!(
            a.aad(),
            *b"SRF1\xAA\xAA\xAA\xAA\xAA\xAA\xAA\xAA\xAA\xAA\xAA\xAA\xAA\xAA\xAA\xAA\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\
              \x04\0\0\0\x01\x02\0\0\x05\0\0\0\x06\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0",
            "bound bytes changed: bump FORMAT_VERSION and add a vault to tests/vaults/"
        );
        assert_eq!(a.nonce(), *b"\x04\0\0\0\0\0\0\0\0\0\0\0");
    }
}
