//! Walks the groups of a segment from its start, as recovery and `check` do.
//!
//! Promise: a group is handed out only if its header and its directory hold; whether its body's checksum holds is said
//! with it, because ranges of old groups are punched out when their data is dead. The walk ends at the first block that is
//! no group of this segment. Called by: `vault::recover`, `check`. On failure: `Io` only; damage is an end, not an error.

use super::{SegmentContext, Unreadable};
use crate::backing::{AlignedBuf, BackingFile};
use crate::base::choice::{Codec, SuiteId};
use crate::base::id::{Ino, SegmentId, Slot, VaultId};
use crate::base::limits::{BLOCK_BYTES, GROUP_BYTES_MAX, TAG_BYTES};
use crate::format::frame::{DIRECTORY_SLOTS, Kind};
use crate::format::group::{Entry, HEADER_BYTES, Header, crc_seed, decode_directory};
use crate::seal::{MasterKey, decompress};
use std::sync::Arc;

/// A frame of a walked group.
#[derive(Debug, Clone, Copy)]
pub struct WalkedFrame {
    /// What the directory says.
    pub entry: Entry,
    /// Byte position in the segment.
    pub position_bytes: u64,
    start: usize,
}

/// A group that holds.
pub struct WalkedGroup {
    /// Its header.
    pub header: Header,
    /// Byte position in the segment.
    pub position_bytes: u64,
    /// Its frames.
    pub frames: Vec<WalkedFrame>,
    /// Whether the checksum over its body holds.
    pub checksum_holds: bool,
}

/// A walk through one segment.
pub struct Walk {
    file: Arc<dyn BackingFile>,
    id: SegmentId,
    suite: SuiteId,
    vault: VaultId,
    context: Option<Arc<SegmentContext>>,
    position: u64,
    next_group: u32,
    buf: AlignedBuf,
}

impl Walk {
    /// Begins at the segment's first group.
    #[must_use]
    pub fn new(file: Arc<dyn BackingFile>, id: SegmentId, suite: SuiteId, vault: VaultId) -> Walk {
        let buf = AlignedBuf::with_capacity(GROUP_BYTES_MAX);
        Walk { file, id, suite, vault, context: None, position: 0, next_group: 0, buf }
    }

    /// The segment's key, known once a group was found.
    #[must_use]
    pub fn context(&self) -> Option<&Arc<SegmentContext>> {
        self.context.as_ref()
    }

    /// Where the next group would begin.
    #[must_use]
    pub fn position_bytes(&self) -> u64 {
        self.position
    }

    /// The next group, or `None` where the segment ends.
    pub fn next(&mut self, master: &MasterKey) -> Result<Option<WalkedGroup>, Unreadable> {
        self.buf.set_len(BLOCK_BYTES);
        if self.file.read_at(&mut self.buf, self.position)? < HEADER_BYTES {
            return Ok(None);
        }
        let Ok(header) = Header::decode(&self.buf) else { return Ok(None) };
        if header.segment != self.id || header.group != self.next_group {
            return Ok(None);
        }
        let context = match &self.context {
            Some(c) if c.salt != header.salt || c.epoch != header.epoch => return Ok(None),
            Some(c) => Arc::clone(c),
            None => {
                let (epoch, salt) = (header.epoch, header.salt);
                Arc::new(SegmentContext::new(master, self.suite, self.vault, epoch, self.id, salt))
            }
        };
        let len = header.len_bytes as usize;
        self.buf.set_len(len.next_multiple_of(BLOCK_BYTES));
        if self.file.read_at(&mut self.buf, self.position)? < len {
            return Ok(None);
        }
        let mut crc = crc32fast::Hasher::new_with_initial(crc_seed(&header.salt));
        crc.update(&self.buf[HEADER_BYTES..len]);
        let directory_at = len - header.directory_len_bytes as usize;
        let (slot, plain_len) = (Slot(DIRECTORY_SLOTS + header.group), header.directory_len_bytes as usize - TAG_BYTES);
        let at = context.address(slot, Kind::Directory, Codec::Raw, plain_len, Ino(0), len as u64);
        let Ok(directory) = context.key.open(&at, &mut self.buf[directory_at..len]) else { return Ok(None) };
        let Ok(entries) = decode_directory(directory, directory_at - HEADER_BYTES) else { return Ok(None) };
        let mut start = HEADER_BYTES;
        let frame = |entry: Entry| {
            let f = WalkedFrame { entry, position_bytes: self.position + start as u64, start };
            start += entry.sealed_len_bytes as usize;
            f
        };
        let group = WalkedGroup {
            header,
            position_bytes: self.position,
            frames: entries.into_iter().map(frame).collect(),
            checksum_holds: crc.finalize() == header.body_crc,
        };
        self.context = Some(context);
        self.position += len.next_multiple_of(BLOCK_BYTES) as u64;
        self.next_group += 1;
        Ok(Some(group))
    }

    /// The tag of a frame of the group that `next` gave last.
    #[must_use]
    pub fn tag(&self, frame: &WalkedFrame) -> [u8; TAG_BYTES] {
        let end = frame.start + frame.entry.sealed_len_bytes as usize;
        self.buf[end - TAG_BYTES..end].try_into().expect("a directory entry is at least a tag long")
    }

    /// Opens a frame of the group that `next` gave last; each frame once.
    pub fn open(&mut self, frame: &WalkedFrame, out: &mut Vec<u8>) -> Result<(), Unreadable> {
        let e = &frame.entry;
        let damaged = |what| Unreadable::Damaged { position_bytes: frame.position_bytes, what };
        let context = self.context.as_ref().ok_or(damaged("the segment"))?;
        let at = context.address(e.slot, e.kind, e.codec, e.plain_len_bytes as usize, e.ino, e.offset_bytes);
        let sealed = &mut self.buf[frame.start..frame.start + e.sealed_len_bytes as usize];
        let plain = context.key.open(&at, sealed).map_err(|_| damaged("the frame's tag"))?;
        decompress(e.codec, plain, e.plain_len_bytes as usize, out).map_err(|_| damaged("the frame's compression"))
    }
}
