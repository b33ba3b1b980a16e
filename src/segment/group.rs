//! Packs sealed frames into a group, ready for one disk write (format.md §3).
//!
//! Promise: `finish` gives a block-aligned, padded image whose header, checksum and directory describe exactly the frames
//! that were added. Called by: `vault::log`. Cannot fail; whoever adds has asked `fits`.

use super::SegmentContext;
use crate::backing::AlignedBuf;
use crate::base::choice::Codec;
use crate::base::id::{Ino, Slot};
use crate::base::limits::{GROUP_BYTES_MAX, TAG_BYTES};
use crate::format::frame::{DIRECTORY_SLOTS, Kind};
use crate::format::group::{Entry, HEADER_BYTES, Header, crc_seed, encode_directory};

/// Most bytes of a directory entry (format.md §3).
const ENTRY_BYTES_MAX: usize = 1 + 5 + 5 + 5 + 10 + 10;

/// Frames sealed together: one or more, whose bytes follow each other.
pub struct SealedFrames {
    /// What each is.
    pub entries: Vec<Entry>,
    /// Their ciphertexts and tags.
    pub bytes: Vec<u8>,
    /// CRC-32 of `bytes`, begun from nothing, to be combined.
    pub crc: crc32fast::Hasher,
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
    crc: crc32fast::Hasher,
}

impl GroupBuilder {
    /// An empty group of the segment, in a buffer of at least a group's capacity.
    #[must_use]
    pub fn new(context: &SegmentContext, mut buf: AlignedBuf) -> Self {
        buf.set_len(HEADER_BYTES);
        let crc = crc32fast::Hasher::new_with_initial(crc_seed(&context.salt));
        GroupBuilder { buf, entries: Vec::new(), crc }
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

    /// Whether frames of so many sealed bytes still fit, directory included.
    #[must_use]
    pub fn fits(&self, count: usize, sealed_bytes: usize) -> bool {
        let directory = 10 + (self.entries.len() + count) * ENTRY_BYTES_MAX + TAG_BYTES;
        self.buf.len() + sealed_bytes + directory <= GROUP_BYTES_MAX
    }

    /// Adds frames; gives the position of the first one in the group.
    pub fn add(&mut self, frames: &SealedFrames) -> u64 {
        let at = self.buf.len() as u64;
        self.buf.extend_from_slice(&frames.bytes);
        self.entries.extend_from_slice(&frames.entries);
        self.crc.combine(&frames.crc);
        at
    }

    /// Seals the directory, writes the header and pads to whole blocks.
    #[must_use]
    pub fn finish(mut self, context: &SegmentContext, group: u32) -> AlignedBuf {
        let mut directory = encode_directory(&self.entries);
        let len_bytes = (self.buf.len() + directory.len() + TAG_BYTES) as u32;
        let slot = Slot(DIRECTORY_SLOTS + group);
        // The offset binds the group's length.
        let at = context.address(slot, Kind::Directory, Codec::Raw, directory.len(), Ino(0), u64::from(len_bytes));
        context.key.seal(&at, &mut directory, 0);
        self.crc.update(&directory);
        self.buf.extend_from_slice(&directory);
        let header = Header {
            segment: context.id,
            epoch: context.epoch,
            group,
            len_bytes,
            directory_len_bytes: directory.len() as u32,
            body_crc: self.crc.finalize(),
            salt: context.salt,
        };
        self.buf[..HEADER_BYTES].copy_from_slice(&header.encode());
        self.buf.pad();
        self.buf
    }
}
