//! Opens frames that the index names.
//!
//! Promise: every plaintext handed out was authenticated under the address it was asked for. Called by: `vault::read`, `check`. On failure: `Unreadable::Damaged` at the frame's position.

use super::{SegmentContext, Unreadable};
use crate::base::choice::Codec;
use crate::base::id::{Ino, Slot};
use crate::base::limits::{BLOCK_BYTES, TAG_BYTES};
use crate::format::frame::Kind;
use crate::seal::decompress;

/// A data frame to read: where it lies and what it must be.
#[derive(Debug, Clone, Copy)]
pub struct FrameAt {
    /// Byte position in the segment.
    pub position_bytes: u64,
    /// Ciphertext and tag.
    pub sealed_len_bytes: u32,
    /// Its slot.
    pub slot: Slot,
    /// How it is compressed.
    pub codec: Codec,
    /// After decompression.
    pub plain_len_bytes: u32,
    /// The file it was written for.
    pub ino: Ino,
    /// Its offset in that file.
    pub offset_bytes: u64,
}

impl FrameAt {
    fn end(&self) -> u64 {
        self.position_bytes + u64::from(self.sealed_len_bytes)
    }

    /// Opens the frame from its sealed bytes (which it overwrites), appending the plaintext to `out`.
    pub fn open(&self, context: &SegmentContext, sealed: &mut [u8], out: &mut Vec<u8>) -> Result<(), Unreadable> {
        let plain_len = self.plain_len_bytes as usize;
        let damaged = |what| Unreadable::Damaged { position_bytes: self.position_bytes, what };
        let at = context.address(self.slot, Kind::Data, self.codec, plain_len, self.ino, self.offset_bytes);
        let plain = context.key.open(&at, sealed).map_err(|_| damaged("the frame's tag"))?;
        decompress(self.codec, plain, plain_len, out).map_err(|_| damaged("the frame's compression"))
    }
}

/// The whole blocks that some frames in order of position lie in.
#[must_use]
pub fn blocks_of(frames: &[FrameAt]) -> (u64, u64) {
    let (from, to) = (frames.first().map_or(0, |f| f.position_bytes), frames.last().map_or(0, FrameAt::end));
    (from - from % BLOCK_BYTES as u64, to.next_multiple_of(BLOCK_BYTES as u64))
}

/// Opens frames out of sealed bytes that begin at `from` (which it overwrites), and hands each plaintext, or its fault, over.
pub fn open_frames(
    context: &SegmentContext,
    frames: &[FrameAt],
    from: u64,
    sealed: &mut [u8],
    mut each: impl FnMut(&FrameAt, Result<Vec<u8>, Unreadable>),
) {
    for frame in frames {
        let (start, end) = ((frame.position_bytes - from) as usize, (frame.end() - from) as usize);
        let mut plain = Vec::with_capacity(frame.plain_len_bytes as usize);
        let result = if end <= sealed.len() && end - start >= TAG_BYTES {
            frame.open(context, &mut sealed[start..end], &mut plain)
        } else {
            Err(Unreadable::Damaged { position_bytes: frame.position_bytes, what: "the frame's end" })
        };
        each(frame, result.map(|()| plain));
    }
}
