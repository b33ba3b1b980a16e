//! Who holds a run that more than one place shares (format.md §5).
//!
//! Promise: holders that decode are in order, none twice, each with at least one frame; so equal holders are equal bytes.
//! Called by: `vault`, `check`.

use super::extent::{Extent, Origin};
use super::wire::{Malformed, Reader, Write, malformed};
use crate::base::id::Ino;
use crate::base::limits::CHUNK_BYTES;

/// A place that shares a run: a file, and where the run lies in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The file.
    pub ino: Ino,
    /// Where the run's first byte would lie in the file, and 131,072: a copy may leave out the beginning of a run, so that
    /// it would begin before its file.
    pub place: u64,
}

impl Holder {
    /// That of an extent at `offset_bytes` of a file.
    #[must_use]
    pub fn of(ino: Ino, offset_bytes: u64, extent: &Extent) -> Holder {
        Holder { ino, place: offset_bytes.saturating_add(CHUNK_BYTES as u64 - u64::from(extent.skip_bytes)) }
    }

    /// That of the place which a run was sealed for.
    #[must_use]
    pub fn at(origin: Origin) -> Holder {
        Holder { ino: origin.ino, place: origin.start_bytes.saturating_add(CHUNK_BYTES as u64) }
    }

    /// The range of its file in which extents of a run of `run_len_bytes` begin.
    #[must_use]
    pub fn range(&self, run_len_bytes: u32) -> (u64, u64) {
        let before = CHUNK_BYTES as u64;
        let end = self.place.saturating_add(u64::from(run_len_bytes));
        (self.place.saturating_sub(before), end.saturating_sub(before))
    }
}

/// All holders of a shared run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holders {
    /// What the run was sealed for; it need not be a holder any more.
    pub origin: Origin,
    /// Each with the frames of the run that its extents lie in, a bit each.
    pub all: Vec<(Holder, u32)>,
}

impl Holders {
    /// Frames that anyone holds.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.all.iter().fold(0, |frames, (_, held)| frames | held)
    }

    /// Whether a place other than the one it was sealed for holds the run: only then are holders on record.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.all.iter().any(|(holder, _)| *holder != Holder::at(self.origin))
    }

    /// Says which frames a holder holds; 0 for none any more.
    pub fn set(&mut self, holder: Holder, frames: u32) {
        match (self.all.binary_search_by_key(&holder, |(h, _)| *h), frames) {
            (Ok(i), 0) => drop(self.all.remove(i)),
            (Ok(i), _) => self.all[i].1 = frames,
            (Err(_), 0) => {}
            (Err(i), _) => self.all.insert(i, (holder, frames)),
        }
    }

    /// The stored value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(12 + 12 * self.all.len());
        b.varint(self.origin.ino.0);
        b.varint(self.origin.start_bytes);
        for (holder, frames) in &self.all {
            b.varint(holder.ino.0);
            b.varint(holder.place);
            b.varint(u64::from(*frames));
        }
        b
    }

    /// Reads a value; refuses holders out of order, and those that hold nothing.
    pub fn decode(bytes: &[u8]) -> Result<Holders, Malformed> {
        let mut r = Reader::new(bytes);
        let origin = Origin { ino: Ino(r.varint("holders")?), start_bytes: r.varint("holders")? };
        let mut all: Vec<(Holder, u32)> = Vec::new();
        while !r.is_empty() {
            let holder = Holder { ino: Ino(r.varint("holders")?), place: r.varint("holders")? };
            let frames = r.varint_u32("holders")?;
            if frames == 0 || all.last().is_some_and(|(last, _)| *last >= holder) {
                return malformed("holders");
            }
            all.push((holder, frames));
        }
        Ok(Holders { origin, all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_holders() {
        let origin = Origin { ino: Ino(5), start_bytes: 131_072 };
        let mut holders = Holders { origin, all: Vec::new() };
        holders.set(Holder { ino: Ino(300), place: 1 }, 2);
        holders.set(Holder::at(origin), 3);
        assert!(holders.is_shared());
        let bytes = holders.encode();
        assert_eq!(
            bytes, b"\x05\x80\x80\x08\x05\x80\x80\x10\x03\xac\x02\x01\x02",
            "on-disk bytes changed: bump FORMAT_VERSION and add a vault to tests/vaults/"
        );
        assert_eq!(Holders::decode(&bytes), Ok(holders.clone()));
        holders.set(Holder { ino: Ino(300), place: 1 }, 0);
        assert!(!holders.is_shared() && holders.frames() == 3);
    }

    #[test]
    fn holders_out_of_order_twice_or_of_nothing_are_refused() {
        for bytes in [&b"\x05\0\x06\x01\x01\x05\x01\x01"[..], b"\x05\0\x06\x01\x01\x06\x01\x01", b"\x05\0\x06\x01\0"] {
            assert_eq!(Holders::decode(bytes), malformed("holders"));
        }
    }
}
