//! An extent: a range of a file and the run of frames that holds it (format.md §6).
//!
//! Promise: an extent that decodes lies inside its run, and its run inside a chunk's bounds, here or, if it was copied, in the
//! file that it was sealed for. Called by: `buffer`, `vault`, `check`.

use super::wire::{Malformed, Reader, Write, malformed};
use crate::base::choice::Codec;
use crate::base::id::{Ino, SegmentId, Slot};
use crate::base::limits::{CHUNK_BYTES, FILE_BYTES_MAX, TAG_BYTES};

/// Set in the first byte, beside the codec, of an extent that was copied.
const COPIED: u8 = 0x80;

/// A run of consecutive frames: how one chunk's worth of data was sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The segment it lies in.
    pub segment: SegmentId,
    /// Byte position in the segment of its first frame.
    pub position_bytes: u64,
    /// Slot of its first frame; the others follow by one.
    pub slot: Slot,
    /// Codec of the frames that got shorter; the others are raw.
    pub codec: Codec,
    /// Plaintext bytes of each frame but the last, as a power of two.
    pub unit_log2: u8,
    /// Plaintext bytes of the whole run.
    pub plain_len_bytes: u32,
    /// Ciphertext and tag of each frame.
    pub sealed_lens: Vec<u32>,
}

/// One frame of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunFrame {
    /// Byte position in the segment.
    pub position_bytes: u64,
    /// Its slot.
    pub slot: Slot,
    /// Ciphertext and tag.
    pub sealed_len_bytes: u32,
    /// Plaintext bytes.
    pub plain_len_bytes: u32,
    /// Where its plaintext begins in the run's.
    pub plain_start_bytes: u32,
    /// How it is compressed.
    pub codec: Codec,
}

impl Run {
    /// All sealed bytes.
    #[must_use]
    pub fn sealed_len_bytes(&self) -> u64 {
        self.sealed_lens.iter().map(|&n| u64::from(n)).sum()
    }

    /// Its frames, in order.
    pub fn frames(&self) -> impl Iterator<Item = RunFrame> + '_ {
        let unit = 1u32 << self.unit_log2;
        let mut position = self.position_bytes;
        self.sealed_lens.iter().enumerate().map(move |(i, &sealed)| {
            let start = i as u32 * unit;
            let plain = unit.min(self.plain_len_bytes - start);
            let frame = RunFrame {
                position_bytes: position,
                slot: Slot(self.slot.0 + i as u32),
                sealed_len_bytes: sealed,
                plain_len_bytes: plain,
                plain_start_bytes: start,
                codec: frame_codec(self.codec, sealed, plain),
            };
            position += u64::from(sealed);
            frame
        })
    }
}

/// A frame of a run is raw unless compressing made it shorter.
#[must_use]
pub fn frame_codec(run: Codec, sealed_len_bytes: u32, plain_len_bytes: u32) -> Codec {
    if sealed_len_bytes < plain_len_bytes + TAG_BYTES as u32 { run } else { Codec::Raw }
}

/// Which file a run was sealed for, and where in it: its frames open under that address and no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The file.
    pub ino: Ino,
    /// Offset of the run's first byte in it.
    pub start_bytes: u64,
}

/// A range of a file inside a run; the offset in the file is the extent's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of the file it covers.
    pub len_bytes: u32,
    /// Plaintext bytes of the run before its first.
    pub skip_bytes: u32,
    /// The run.
    pub run: Run,
    /// Set if a copy laid it here: the run was sealed for this address, and not for the one it has here.
    pub copied: Option<Origin>,
}

/// Whether the encoded extent is one that was copied.
#[must_use]
pub fn is_copied(encoded: &[u8]) -> bool {
    encoded.first().is_some_and(|first| first & COPIED != 0)
}

impl Extent {
    /// The address that its run was sealed for, of an extent at `offset_bytes` of `ino`; `None` if its run would begin before
    /// its file.
    #[must_use]
    pub fn origin(&self, ino: Ino, offset_bytes: u64) -> Option<Origin> {
        let own = || offset_bytes.checked_sub(u64::from(self.skip_bytes));
        self.copied.or_else(|| own().map(|start_bytes| Origin { ino, start_bytes }))
    }

    /// The frames of its run that it lies in, a bit each.
    #[must_use]
    pub fn frames_touched(&self) -> u32 {
        let first = self.skip_bytes >> self.run.unit_log2;
        let last = (self.skip_bytes + self.len_bytes - 1) >> self.run.unit_log2;
        (first..=last).fold(0, |mask, i| mask | 1 << i)
    }

    /// The part of it that begins `from_bytes` into it and is `len_bytes` long.
    #[must_use]
    pub fn part(&self, from_bytes: u32, len_bytes: u32) -> Extent {
        let skip_bytes = self.skip_bytes + from_bytes;
        Extent { len_bytes, skip_bytes, run: self.run.clone(), copied: self.copied }
    }

    /// The stored value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let r = &self.run;
        let mut b = Vec::with_capacity(24 + 3 * r.sealed_lens.len());
        b.push(r.codec as u8 | if self.copied.is_some() { COPIED } else { 0 });
        b.push(r.unit_log2);
        b.varint(u64::from(self.len_bytes));
        b.varint(u64::from(self.skip_bytes));
        b.varint(r.segment.0);
        b.varint(r.position_bytes);
        b.varint(u64::from(r.slot.0));
        b.varint(u64::from(r.plain_len_bytes));
        if r.codec != Codec::Raw {
            r.sealed_lens.iter().for_each(|&n| b.varint(u64::from(n)));
        }
        if let Some(origin) = self.copied {
            b.varint(origin.ino.0);
            b.varint(origin.start_bytes);
        }
        b
    }

    /// Reads a value; refuses unknown codecs, units over a chunk, and extents outside their run.
    pub fn decode(bytes: &[u8]) -> Result<Extent, Malformed> {
        let mut r = Reader::new(bytes);
        let e = Self::take(&mut r)?;
        r.end("extent tail")?;
        Ok(e)
    }

    fn take(r: &mut Reader<'_>) -> Result<Extent, Malformed> {
        let first = r.u8("extent codec")?;
        let Some(codec) = Codec::from_u8(first & !COPIED) else { return malformed("extent codec") };
        let unit_log2 = r.u8("extent unit")?;
        let len_bytes = r.varint_u32("extent length")?;
        let skip_bytes = r.varint_u32("extent skip")?;
        let segment = SegmentId(r.varint("extent segment")?);
        let position_bytes = r.varint("extent position")?;
        let slot = Slot(r.varint_u32("extent slot")?);
        let plain = r.varint_u32("extent run length")?;
        if !(12..=17).contains(&unit_log2) || plain == 0 || plain as usize > CHUNK_BYTES {
            return malformed("extent run length");
        }
        if len_bytes == 0 || u64::from(skip_bytes) + u64::from(len_bytes) > u64::from(plain) {
            return malformed("extent length");
        }
        let unit = 1u32 << unit_log2;
        let count = plain.div_ceil(unit);
        let mut sealed_lens = Vec::with_capacity(count as usize);
        for i in 0..count {
            let most = unit.min(plain - i * unit) + TAG_BYTES as u32;
            let sealed = if codec == Codec::Raw { most } else { r.varint_u32("extent frame length")? };
            if sealed > most || sealed < TAG_BYTES as u32 {
                return malformed("extent frame length");
            }
            sealed_lens.push(sealed);
        }
        if slot.0.checked_add(count).is_none() || position_bytes > u64::MAX / 2 {
            return malformed("extent position");
        }
        let mut copied = None;
        if first & COPIED != 0 {
            let (ino, start_bytes) = (Ino(r.varint("extent origin")?), r.varint("extent origin")?);
            let room = CHUNK_BYTES as u64 - start_bytes % CHUNK_BYTES as u64;
            if u64::from(plain) > room || start_bytes > FILE_BYTES_MAX - u64::from(plain) {
                return malformed("extent origin");
            }
            copied = Some(Origin { ino, start_bytes });
        }
        let run = Run { segment, position_bytes, slot, codec, unit_log2, plain_len_bytes: plain, sealed_lens };
        Ok(Extent { len_bytes, skip_bytes, run, copied })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent() -> Extent {
        let run = Run {
            segment: SegmentId(9),
            position_bytes: 4096,
            slot: Slot(2),
            codec: Codec::Zstd,
            unit_log2: 16,
            plain_len_bytes: 100_000,
            sealed_lens: vec![1000, 34_480],
        };
        Extent { len_bytes: 50, skip_bytes: 65_530, run, copied: None }
    }

    #[test]
    fn golden_extent() {
        let bytes = extent().encode();
        assert_eq!(bytes, b"\x02\x10\x32\xfa\xff\x03\x09\x80\x20\x02\xa0\x8d\x06\xe8\x07\xb0\x8d\x02");
        assert_eq!(Extent::decode(&bytes), Ok(extent()));
        let frames: Vec<_> = extent().run.frames().collect();
        assert_eq!((frames[0].codec, frames[1].codec), (Codec::Zstd, Codec::Raw));
        assert_eq!((frames[1].position_bytes, frames[1].plain_len_bytes), (5096, 34_464));
    }

    #[test]
    fn golden_copied_extent() {
        let copied = Some(Origin { ino: Ino(300), start_bytes: 131_072 });
        let e = Extent { copied, ..extent() };
        let bytes = e.encode();
        assert_eq!(
            bytes, b"\x82\x10\x32\xfa\xff\x03\x09\x80\x20\x02\xa0\x8d\x06\xe8\x07\xb0\x8d\x02\xac\x02\x80\x80\x08",
            "on-disk bytes changed: bump FORMAT_VERSION and add a vault to tests/vaults/"
        );
        assert_eq!(Extent::decode(&bytes), Ok(e.clone()));
        assert_eq!((is_copied(&bytes), is_copied(&extent().encode())), (true, false));
        assert_eq!((e.origin(Ino(7), 0), extent().origin(Ino(7), 0)), (copied, None));
    }

    #[test]
    fn a_copied_extent_whose_run_was_sealed_nowhere_is_refused() {
        for start_bytes in [131_072 + 31_073, FILE_BYTES_MAX - 99_999, u64::MAX] {
            let copied = Some(Origin { ino: Ino(3), start_bytes });
            assert_eq!(Extent::decode(&Extent { copied, ..extent() }.encode()), malformed("extent origin"));
        }
    }

    #[test]
    fn an_extent_outside_its_run_is_refused() {
        let mut e = extent();
        e.len_bytes = 40_000;
        assert_eq!(Extent::decode(&e.encode()), malformed("extent length"));
    }
}
