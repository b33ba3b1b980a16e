//! Compression: zstd frames and lz4 blocks, or nothing where it does not pay.
//!
//! Promise: what `compress` appended, `decompress` gives back; hostile bytes give a refusal, never a panic nor more
//! memory than the length asked for. Called by: `vault`'s workers, `segment`, `check`. On failure: `Malformed`.

use crate::base::choice::Codec;
use crate::format::Malformed;
use crate::format::wire::malformed;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use std::cell::RefCell;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, find_frame_compressed_size};

/// How every zstd frame begins; skippable frames, which hold nothing, begin otherwise.
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// Compresses; one per worker thread, because it keeps its tables and scratch between calls.
pub struct Compressor {
    zstd: CCtx<'static>,
    lz4: CompressTable,
    scratch: Vec<u8>,
}

impl Default for Compressor {
    fn default() -> Self {
        Compressor::new()
    }
}

impl Compressor {
    /// Sets up the contexts (about 1.5 MiB once zstd has been used).
    #[must_use]
    pub fn new() -> Self {
        let mut zstd = CCtx::create();
        // The length is in the address, integrity in the tag: the smallest frame has neither again.
        for parameter in [
            CParameter::CompressionLevel(1),
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
            CParameter::DictIdFlag(false),
        ] {
            zstd.set_parameter(parameter).expect("zstd knows level 1 and its own frame flags");
        }
        Compressor { zstd, lz4: CompressTable::large(), scratch: Vec::new() }
    }

    /// Appends `plain` compressed and gives true if that saves at least a sixteenth; else `out` stays as it was.
    pub fn compress(&mut self, codec: Codec, plain: &[u8], out: &mut Vec<u8>) -> bool {
        let most = plain.len() - plain.len().div_ceil(16);
        let made = match codec {
            Codec::Raw => None,
            Codec::Lz4 => self.lz4(plain),
            Codec::Zstd => self.zstd(plain, most),
        };
        match made {
            Some(n) if n <= most => {
                out.extend_from_slice(&self.scratch[..n]);
                true
            }
            _ => false,
        }
    }

    /// Compresses into the scratch; gives the length.
    fn lz4(&mut self, plain: &[u8]) -> Option<usize> {
        self.grow_scratch(get_maximum_output_size(plain.len()));
        compress_into_with_table(plain, &mut self.scratch, &mut self.lz4).ok()
    }

    /// Compresses into the scratch; gives the length, or `None` once it would be more than `most`.
    fn zstd(&mut self, plain: &[u8], most: usize) -> Option<usize> {
        self.grow_scratch(most);
        self.zstd.compress2(&mut self.scratch[..most], plain).ok()
    }

    fn grow_scratch(&mut self, len: usize) {
        if self.scratch.len() < len {
            self.scratch.resize(len, 0);
        }
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}

thread_local! {
    /// Setting one up costs more than decompressing a frame with it.
    static ZSTD: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// Appends exactly `plain_len` bytes, or refuses and leaves `out` as it was.
pub fn decompress(codec: Codec, bytes: &[u8], plain_len: usize, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let start = out.len();
    if codec == Codec::Raw {
        if bytes.len() != plain_len {
            return malformed("raw frame's length");
        }
        out.extend_from_slice(bytes);
        return Ok(());
    }
    // Exactly one frame: zstd itself would take several, and skippable ones.
    if codec == Codec::Zstd
        && (!bytes.starts_with(&ZSTD_MAGIC) || find_frame_compressed_size(bytes).ok() != Some(bytes.len()))
    {
        return malformed("zstd frame");
    }
    out.resize(start + plain_len, 0);
    let to = &mut out[start..];
    let made = match codec {
        Codec::Zstd => ZSTD.with_borrow_mut(|zstd| zstd.decompress(to, bytes).ok()),
        Codec::Lz4 | Codec::Raw => decompress_into(bytes, to).ok(),
    };
    if made == Some(plain_len) {
        return Ok(());
    }
    out.truncate(start);
    malformed(if codec == Codec::Zstd { "zstd frame" } else { "lz4 block" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes without pattern, the same each time (SplitMix64).
    pub(super) fn noise(len: usize) -> Vec<u8> {
        let mut state = 0u64;
        let words = std::iter::repeat_with(|| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (z ^ (z >> 31)).to_le_bytes()
        });
        words.flatten().take(len).collect()
    }

    fn text(len: usize) -> Vec<u8> {
        (0u32..)
            .flat_map(|i| format!("line {i}: the quick brown fox {}\n", i * 7919 % 1000).into_bytes())
            .take(len)
            .collect()
    }

    #[test]
    fn what_shrinks_comes_back_and_is_appended() {
        let mut compressor = Compressor::new();
        for codec in [Codec::Lz4, Codec::Zstd] {
            for len in [64, 1000, 4096, 16 << 10, 65_534, 65_535, 64 << 10, 128 << 10] {
                let plain = text(len);
                let mut out = b"before".to_vec();
                assert!(compressor.compress(codec, &plain, &mut out) || len < 100, "{codec:?} of {len}");
                if out.len() > 6 {
                    assert!(out.len() - 6 <= len / 16 * 15);
                    let mut back = b"kept".to_vec();
                    decompress(codec, &out[6..], len, &mut back).unwrap();
                    assert_eq!((&out[..6], &back[..4], &back[4..]), (&b"before"[..], &b"kept"[..], &plain[..]));
                }
            }
        }
    }

    #[test]
    fn what_does_not_shrink_is_left_alone() {
        let mut compressor = Compressor::new();
        let mut out = b"before".to_vec();
        for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
            for len in [0, 1, 15, 16, 17, 1000, 16 << 10, 128 << 10] {
                assert!(!compressor.compress(codec, &noise(len), &mut out), "{codec:?} of {len}");
                assert_eq!(out, b"before");
            }
        }
        assert!(!compressor.compress(Codec::Raw, &[0; 4096], &mut out));
    }

    #[test]
    fn a_wrong_length_is_refused_and_nothing_appended() {
        let mut compressor = Compressor::new();
        let plain = text(10_000);
        for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
            let mut packed = Vec::new();
            if !compressor.compress(codec, &plain, &mut packed) {
                packed.clone_from(&plain);
            }
            for wrong in [0, 1, 9_999, 10_001, 200_000] {
                let mut out = b"kept".to_vec();
                assert!(decompress(codec, &packed, wrong, &mut out).is_err(), "{codec:?} as {wrong}");
                assert_eq!(out, b"kept");
            }
            assert!(decompress(codec, &packed[..packed.len() - 1], 10_000, &mut Vec::new()).is_err());
        }
    }

    #[test]
    fn zstd_frames_come_one_at_a_time_and_are_small() {
        let mut compressor = Compressor::new();
        let (mut one, skippable) = (Vec::new(), b"\x50\x2A\x4D\x18\0\0\0\0");
        assert!(compressor.compress(Codec::Zstd, &[7; 1000], &mut one));
        assert_eq!(one[4] & 0b1111_0111, 0, "no content size, no checksum, no dictionary id");
        let mut out = Vec::new();
        decompress(Codec::Zstd, &one, 1000, &mut out).unwrap();
        assert!(decompress(Codec::Zstd, &[&one[..], &one].concat(), 2000, &mut out).is_err());
        assert!(decompress(Codec::Zstd, &[&one[..], skippable].concat(), 1000, &mut out).is_err());
        assert!(decompress(Codec::Zstd, &[skippable, &one[..]].concat(), 1000, &mut out).is_err());
        assert!(decompress(Codec::Zstd, skippable, 0, &mut out).is_err());
        assert!(decompress(Codec::Zstd, b"", 0, &mut out).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_or_give_exactly_the_length(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), magic: bool, len in 0usize..2000,
        ) {
            let bytes = if magic { [&ZSTD_MAGIC[..], &bytes].concat() } else { bytes };
            for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
                let mut out = vec![1, 2, 3];
                let made = decompress(codec, &bytes, len, &mut out);
                prop_assert_eq!(out.len(), if made.is_ok() { 3 + len } else { 3 });
            }
        }

        #[test]
        fn a_damaged_frame_never_panics(len in 1usize..20_000, flips in proptest::collection::vec(any::<(u16, u8)>(), 1..5)) {
            let mut compressor = Compressor::new();
            for codec in [Codec::Lz4, Codec::Zstd] {
                let mut packed = Vec::new();
                if compressor.compress(codec, &text(len), &mut packed) {
                    for &(at, bits) in &flips {
                        let at = usize::from(at) % packed.len();
                        packed[at] ^= bits;
                    }
                    let _ = decompress(codec, &packed, len, &mut Vec::new());
                }
            }
        }
    }
}
