//! The vault's own settings, as stored (format.md §5).
//!
//! Promise: fixed lengths, refused unless every byte is accounted for. Called by: `vault`. On failure: `Malformed`, which
//! names the field.

use super::wire::{Malformed, Reader, malformed};
use crate::base::id::Ino;

/// The name of the setting that a `ScrubMark` is.
pub const SCRUB: &str = "scrub";

/// How far a scrub of a mounted vault has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubMark {
    /// Whether one was begun and has not come to its end.
    pub under_way: bool,
    /// The file that is next …
    pub ino: Ino,
    /// … from this byte on.
    pub offset_bytes: u64,
    /// Bytes of files read.
    pub done_bytes: u64,
    /// Ranges among them that did not read.
    pub damaged: u64,
    /// When the last one came to its end, in seconds since 1970; 0 for never.
    pub finished_s: i64,
}

impl ScrubMark {
    /// The stored value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = vec![u8::from(self.under_way)];
        for n in [self.ino.0, self.offset_bytes, self.done_bytes, self.damaged] {
            b.extend_from_slice(&n.to_le_bytes());
        }
        b.extend_from_slice(&self.finished_s.to_le_bytes());
        b
    }

    /// Reads a value.
    pub fn decode(bytes: &[u8]) -> Result<ScrubMark, Malformed> {
        let mut r = Reader::new(bytes);
        let under_way = match r.u8("scrub state")? {
            0 => false,
            1 => true,
            _ => return malformed("scrub state"),
        };
        let mark = ScrubMark {
            under_way,
            ino: Ino(r.u64("scrub inode")?),
            offset_bytes: r.u64("scrub offset")?,
            done_bytes: r.u64("scrub bytes")?,
            damaged: r.u64("scrub damage")?,
            finished_s: r.u64("scrub time")? as i64,
        };
        r.end("scrub tail")?;
        Ok(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_scrub_mark() {
        let (ino, offset_bytes, done_bytes, damaged, finished_s) = (Ino(2), 3, 4, 5, -1);
        let mark = ScrubMark { under_way: true, ino, offset_bytes, done_bytes, damaged, finished_s };
        let want = b"\x01\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!(mark.encode(), want, "on-disk bytes changed: bump FORMAT_VERSION and add a vault to tests/vaults/");
        assert_eq!(ScrubMark::decode(want), Ok(mark));
        assert!(ScrubMark::decode(&want[1..]).is_err() && ScrubMark::decode(&[&[2], &want[1..]].concat()).is_err());
    }
}
