//! The chain: a running SHA-256 over the frames since a commit.
//!
//! Promise: two chains have the same value only if they began at the same value and took the same frames (segment, slot
//! and tag, and through the tag every bound and sealed byte) in the same order. Called by: `vault`. Cannot fail.

use crate::base::id::{SegmentId, Slot};
use crate::base::limits::TAG_BYTES;
use aws_lc_rs::digest::{Context, SHA256};

/// SHA-256("SRC1" | value before | (segment, slot, tag) of each frame).
#[derive(Clone)]
pub struct Chain(Context);

impl Chain {
    /// Begins after a commit whose chain value was `previous`.
    #[must_use]
    pub fn after(previous: &[u8; 32]) -> Self {
        let mut hash = Context::new(&SHA256);
        hash.update(b"SRC1");
        hash.update(previous);
        Chain(hash)
    }

    /// Takes in one frame.
    pub fn add(&mut self, segment: SegmentId, slot: Slot, tag: &[u8; TAG_BYTES]) {
        let mut link = [0; 28];
        link[..8].copy_from_slice(&segment.0.to_le_bytes());
        link[8..12].copy_from_slice(&slot.0.to_le_bytes());
        link[12..].copy_from_slice(tag);
        self.0.update(&link);
    }

    /// The value over everything so far; more frames may follow.
    #[must_use]
    pub fn value(&self) -> [u8; 32] {
        self.0.clone().finish().as_ref().try_into().expect("SHA-256 gives 32 bytes")
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chain(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::digest::digest;

    #[test]
    fn the_value_is_the_hash_of_the_written_down_bytes() {
        let mut chain = Chain::after(&[1; 32]);
        let mut text = b"SRC1".to_vec();
        text.extend_from_slice(&[1; 32]);
        assert_eq!(chain.value(), digest(&SHA256, &text).as_ref());
        chain.add(SegmentId(2), Slot(3), &[4; 16]);
        chain.add(SegmentId(2), Slot(4), &[5; 16]);
        text.extend_from_slice(
            b"\x02\0\0\0\0\0\0\0\x03\0\0\0\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04\x04",
        );
        text.extend_from_slice(
            b"\x02\0\0\0\0\0\0\0\x04\0\0\0\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05\x05",
        );
        assert_eq!(chain.value(), digest(&SHA256, &text).as_ref());
        assert_eq!(chain.value(), chain.value(), "taking the value changes nothing");
    }

    #[test]
    fn order_and_place_count() {
        let value = |frames: &[(u64, u32, u8)]| {
            let mut chain = Chain::after(&[0; 32]);
            frames.iter().for_each(|&(segment, slot, tag)| chain.add(SegmentId(segment), Slot(slot), &[tag; 16]));
            chain.value()
        };
        let base = value(&[(1, 1, 1), (1, 2, 2)]);
        for other in [&[(1, 2, 2), (1, 1, 1)][..], &[(1, 1, 1)], &[(1, 1, 1), (2, 2, 2)], &[(1, 1, 1), (1, 2, 3)]] {
            assert_ne!(value(other), base);
        }
    }
}
