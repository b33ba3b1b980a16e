//! Packs sealed frames into a group, ready for one disk write (format.md §3).
//!
//! Promise: `finish` gives a block-aligned, padded image whose header, checksums and directory describe exactly the frames
//! that were added. Called by: `vault::log`. Cannot fail; whoever adds has asked `fits`.

use super::SegmentContext;
use crate::backing::AlignedBuf;
use crate::base::choice::Codec;
use crate::base::id::{KeyNumber, Slot};
use crate::base::limits::{GROUP_BYTES_MAX, TAG_BYTES};
use crate::format::frame::{DIRECTORY_SLOTS, Kind};
use crate::format::group::{
    Entry, GROUP_VERSION, GROUP_VERSION_KEYED, GROUP_VERSION_SNAPSHOT, HEADER_BYTES, Header, block_crc, crc_seed,
    encode_directory, table_crc, table_len_bytes,
};

/// Most bytes of a directory entry (format.md §3).
const ENTRY_BYTES_MAX: usize = 1 + 5 + 5 + 5 + 10 + 10;

/// Frames sealed together: one or more, whose bytes follow each other.
pub struct SealedFrames {
    /// What each is.
    pub entries: Vec<Entry>,
    /// Their ciphertexts and tags.
    pub bytes: Vec<u8>,
}

impl SealedFrames {
    /// The tags, in order, each with its slot.
    pub fn tags(&self) -> impl Iterator<Item = (Slot, &[u8; TAG_BYTES])> {
        let mut end = 0;
        self.entries.iter().map(move |e| {
            end += e.sealed_len_bytes as usize;
            let tag = self.bytes[end - TAG_BYTES..end].try_into().expect("a sealed frame ends in a tag");
            (e.slot, tag)
        })
    }
}

/// A group being filled.
pub struct GroupBuilder {
    buf: AlignedBuf,
    entries: Vec<Entry>,
    /// What its checksums begin from.
    seed: u32,
}

impl GroupBuilder {
    /// An empty group of the segment, in a buffer of at least a group's capacity.
    #[must_use]
    pub fn new(context: &SegmentContext, mut buf: AlignedBuf) -> Self {
        buf.set_len(HEADER_BYTES);
        GroupBuilder { buf, entries: Vec::new(), seed: crc_seed(&context.salt) }
    }

    /// Whether nothing has been added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes so far.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.buf.len()
    }

    /// Bytes of the frames so far.
    #[must_use]
    pub fn frames_bytes(&self) -> usize {
        self.buf.len() - HEADER_BYTES
    }

    /// Whether frames of so many sealed bytes still fit, directory and table included.
    #[must_use]
    pub fn fits(&self, count: usize, sealed_bytes: usize) -> bool {
        let directory = 10 + (self.entries.len() + count) * ENTRY_BYTES_MAX + TAG_BYTES;
        let before = self.buf.len() + sealed_bytes + directory;
        before + table_len_bytes(before) <= GROUP_BYTES_MAX
    }

    /// Adds frames; gives the position of the first one in the group.
    pub fn add(&mut self, frames: &SealedFrames) -> u64 {
        let at = self.buf.len() as u64;
        self.buf.extend_from_slice(&frames.bytes);
        self.entries.extend_from_slice(&frames.entries);
        at
    }

    /// Seals the directory, adds the table of the blocks' checksums, writes the header and pads to whole blocks.
    #[must_use]
    pub fn finish(mut self, context: &SegmentContext, group: u32) -> AlignedBuf {
        let mut directory = encode_directory(&self.entries);
        let table_start = self.buf.len() + directory.len() + TAG_BYTES;
        let len_bytes = (table_start + table_len_bytes(table_start)) as u32;
        let version = match context.key_number {
            _ if context.of_snapshot => GROUP_VERSION_SNAPSHOT,
            KeyNumber(0) => GROUP_VERSION,
            _ => GROUP_VERSION_KEYED,
        };
        let mut header = Header {
            version,
            flags: 0,
            segment: context.id,
            epoch: context.epoch,
            group,
            len_bytes,
            directory_len_bytes: (directory.len() + TAG_BYTES) as u32,
            body_crc: 0,
            salt: context.salt,
            key: context.key_number,
        };
        let (slot, (ino, offset)) = (Slot(DIRECTORY_SLOTS + group), header.bound());
        let at = context.address(slot, Kind::Directory, Codec::Raw, directory.len(), ino, offset);
        context.key.seal(&at, &mut directory, 0);
        self.buf.extend_from_slice(&directory);
        for block in 0..header.blocks() {
            let crc = block_crc(&self.buf, block, table_start, self.seed);
            self.buf.extend_from_slice(&crc.to_le_bytes());
        }
        header.body_crc = table_crc(&self.buf[table_start..], self.seed);
        self.buf[..HEADER_BYTES].copy_from_slice(&header.encode());
        self.buf.pad();
        self.buf
    }
}
