//! What the index knows of a segment, and a segment's first frame (format.md §3, §5).
//!
//! Promise: fixed lengths, refused unless every byte is accounted for. Called by: `vault`, `check`.

use super::record::Counters;
use super::wire::{Malformed, Reader, malformed};
use crate::base::id::{CommitSeq, Epoch, KeyNumber, SegmentId};

/// A place in the log: everything before it has been taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition {
    /// The newest commit taken in; 0 before the first.
    pub seq: CommitSeq,
    /// The chain value after it: what the next commit's chain starts from.
    pub chain: [u8; 32],
}

impl LogPosition {
    /// Before the first commit.
    pub const START: LogPosition = LogPosition { seq: CommitSeq(0), chain: [0; 32] };

    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> [u8; 40] {
        let mut b = [0; 40];
        b[..8].copy_from_slice(&self.seq.0.to_le_bytes());
        b[8..].copy_from_slice(&self.chain);
        b
    }

    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<LogPosition, Malformed> {
        let mut r = Reader::new(bytes);
        let p = LogPosition { seq: CommitSeq(r.u64("log position")?), chain: r.array("log position")? };
        r.end("log position")?;
        Ok(p)
    }
}

/// The plaintext of a segment's first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The newest commit when the segment was begun.
    pub after: LogPosition,
    /// Whether whatever the log holds behind that commit in earlier segments is void: it failed, and is written again here.
    pub restarts: bool,
}

impl Start {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = self.after.encode().to_vec();
        b.push(u8::from(self.restarts));
        b
    }

    /// Reads the stored form; in format 1 it is the position alone.
    pub fn decode(bytes: &[u8]) -> Result<Start, Malformed> {
        let mut r = Reader::new(bytes);
        let after = LogPosition::decode(r.take(40, "segment start")?)?;
        let restarts = match r.rest() {
            [] | [0] => false,
            [1] => true,
            _ => return malformed("segment start"),
        };
        Ok(Start { after, restarts })
    }
}

/// The value of the total "log": what a checkpoint covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Covered {
    /// The newest commit taken in.
    pub position: LogPosition,
    /// The counters after it.
    pub counters: Counters,
    /// The first segment that may hold commits after it.
    pub replay_from: SegmentId,
}

impl Covered {
    /// The stored value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = self.position.encode().to_vec();
        let c = self.counters;
        for n in [c.next_ino, c.next_cookie, c.inodes, self.replay_from.0] {
            b.extend_from_slice(&n.to_le_bytes());
        }
        b
    }
    /// Reads a value.
    pub fn decode(bytes: &[u8]) -> Result<Covered, Malformed> {
        let mut r = Reader::new(bytes);
        let position = LogPosition::decode(r.take(40, "covered position")?)?;
        let (next_ino, next_cookie) = (r.u64("covered counters")?, r.u64("covered counters")?);
        let (inodes, replay_from) = (r.u64("covered counters")?, SegmentId(r.u64("covered segment")?));
        r.end("covered tail")?;
        Ok(Covered { position, counters: Counters { next_ino, next_cookie, inodes }, replay_from })
    }
}

/// The value of a SEGMENT key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentInfo {
    /// The lease it was written under.
    pub epoch: Epoch,
    /// Its salt.
    pub salt: [u8; 16],
    /// The master key that its own key is derived from.
    pub key: KeyNumber,
    /// Sealed bytes of data ever put there.
    pub data_bytes: u64,
    /// Sealed bytes of data that an extent still needs.
    pub live_bytes: u64,
}

impl SegmentInfo {
    /// A segment in which nothing is counted.
    #[must_use]
    pub fn empty(epoch: Epoch, salt: [u8; 16], key: KeyNumber) -> SegmentInfo {
        SegmentInfo { epoch, salt, key, data_bytes: 0, live_bytes: 0 }
    }

    /// The stored value; the number of the first key is left out.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(42);
        b.extend_from_slice(&self.epoch.0.to_le_bytes());
        b.extend_from_slice(&self.salt);
        b.extend_from_slice(&self.data_bytes.to_le_bytes());
        b.extend_from_slice(&self.live_bytes.to_le_bytes());
        if self.key != KeyNumber(0) {
            b.extend_from_slice(&self.key.0.to_le_bytes());
        }
        b
    }
    /// Reads a value.
    pub fn decode(bytes: &[u8]) -> Result<SegmentInfo, Malformed> {
        let mut r = Reader::new(bytes);
        let (epoch, salt) = (Epoch(r.u64("segment epoch")?), r.array("segment salt")?);
        let (data_bytes, live_bytes) = (r.u64("segment data")?, r.u64("segment live")?);
        let key = if r.is_empty() { KeyNumber(0) } else { KeyNumber(r.u16("segment key")?) };
        r.end("segment tail")?;
        let info = SegmentInfo { epoch, salt, key, data_bytes, live_bytes };
        // One spelling: the first key is not named.
        if info.encode().len() == bytes.len() { Ok(info) } else { malformed("segment key") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_segment_info_and_position() {
        let none = SegmentInfo::empty(Epoch(1), *b"0123456789abcdef", KeyNumber(0));
        let s = SegmentInfo { data_bytes: 2, live_bytes: 3, ..none };
        assert_eq!(s.encode(), b"\x01\0\0\0\0\0\0\x000123456789abcdef\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0");
        assert_eq!(SegmentInfo::decode(&s.encode()), Ok(s));
        let keyed = SegmentInfo { key: KeyNumber(258), ..s };
        assert_eq!(keyed.encode(), [&s.encode()[..], b"\x02\x01"].concat());
        assert_eq!(SegmentInfo::decode(&keyed.encode()), Ok(keyed));
        assert_eq!(SegmentInfo::decode(&[&s.encode()[..], b"\0\0"].concat()), malformed("segment key"));
        let p = LogPosition { seq: CommitSeq(9), chain: [7; 32] };
        let mut want = b"\x09\0\0\0\0\0\0\0".to_vec();
        want.extend_from_slice(&[7; 32]);
        assert_eq!(p.encode()[..], want[..]);
        assert_eq!(LogPosition::decode(&want), Ok(p));
    }

    #[test]
    fn golden_start() {
        let after = LogPosition { seq: CommitSeq(9), chain: [7; 32] };
        let old = after.encode();
        for restarts in [false, true] {
            let start = Start { after, restarts };
            assert_eq!(start.encode(), [&old[..], &[u8::from(restarts)]].concat());
            assert_eq!(Start::decode(&start.encode()), Ok(start));
        }
        assert_eq!(Start::decode(&old), Ok(Start { after, restarts: false }), "format 1");
        assert!(Start::decode(&[&old[..], &[2]].concat()).is_err() && Start::decode(&old[1..]).is_err());
    }

    #[test]
    fn golden_covered() {
        let covered = Covered {
            position: LogPosition { seq: CommitSeq(9), chain: [7; 32] },
            counters: Counters { next_ino: 1, next_cookie: 2, inodes: 3 },
            replay_from: SegmentId(4),
        };
        let mut want = covered.position.encode().to_vec();
        want.extend_from_slice(b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0");
        assert_eq!(covered.encode(), want);
        assert_eq!(Covered::decode(&want), Ok(covered));
    }
}
