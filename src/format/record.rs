//! Records, and the commit that makes them visible (format.md §4).
//!
//! Promise: a stream of records decodes whole or is refused whole. Called by: `vault` (log and recovery), `check`.

use super::wire::{Malformed, Reader, Write, malformed};
use crate::base::id::{CommitSeq, Ino, SegmentId};

/// One change of metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record<'a> {
    /// Sets a key of the index.
    Put {
        /// The key.
        key: &'a [u8],
        /// Its new value.
        value: &'a [u8],
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// Lays an extent over whatever the range held.
    Install {
        /// The file.
        ino: Ino,
        /// Where the extent begins.
        offset_bytes: u64,
        /// The extent, encoded.
        extent: &'a [u8],
    },
    /// Makes a range a hole.
    Punch {
        /// The file.
        ino: Ino,
        /// First byte.
        from_bytes: u64,
        /// First byte after; `u64::MAX` for all that follows.
        to_bytes: u64,
    },
    /// Frames of a run were sealed again elsewhere: what lies in them lies there from now on, whoever holds it.
    Move {
        /// The segment of the run they were in …
        segment: SegmentId,
        /// … and its position there.
        position_bytes: u64,
        /// The first of them, counted from the run's first.
        first_frame: u32,
        /// The whole of the new run, encoded as an extent that was copied from where it was sealed for.
        extent: &'a [u8],
    },
    /// A segment that nothing lies in any more is about to be removed.
    Forget {
        /// The segment.
        segment: SegmentId,
    },
}

impl Record<'_> {
    /// Appends the stored form.
    pub fn encode_to(&self, out: &mut Vec<u8>) {
        match *self {
            Record::Put { key, value } => {
                out.push(1);
                out.counted(key);
                out.counted(value);
            }
            Record::Delete { key } => {
                out.push(2);
                out.counted(key);
            }
            Record::Install { ino, offset_bytes, extent } => {
                out.push(3);
                out.varint(ino.0);
                out.varint(offset_bytes);
                out.counted(extent);
            }
            Record::Punch { ino, from_bytes, to_bytes } => {
                out.push(4);
                out.varint(ino.0);
                out.varint(from_bytes);
                out.varint(to_bytes);
            }
            Record::Move { segment, position_bytes, first_frame, extent } => {
                out.push(5);
                out.varint(segment.0);
                out.varint(position_bytes);
                out.varint(u64::from(first_frame));
                out.counted(extent);
            }
            Record::Forget { segment } => {
                out.push(6);
                out.varint(segment.0);
            }
        }
    }

    /// Takes one record off a stream.
    pub fn decode<'a>(r: &mut Reader<'a>) -> Result<Record<'a>, Malformed> {
        match r.u8("record tag")? {
            1 => Ok(Record::Put { key: r.counted("record key")?, value: r.counted("record value")? }),
            2 => Ok(Record::Delete { key: r.counted("record key")? }),
            3 => Ok(Record::Install {
                ino: Ino(r.varint("record inode")?),
                offset_bytes: r.varint("record offset")?,
                extent: r.counted("record extent")?,
            }),
            4 => {
                let (ino, from_bytes) = (Ino(r.varint("record inode")?), r.varint("record offset")?);
                let to_bytes = r.varint("record end")?;
                if from_bytes >= to_bytes {
                    return malformed("record end");
                }
                Ok(Record::Punch { ino, from_bytes, to_bytes })
            }
            5 => {
                let (segment, position_bytes) = (SegmentId(r.varint("record segment")?), r.varint("record position")?);
                let first_frame = r.varint("record frame")?;
                // A run has no more frames than a mask of them has bits.
                let Some(first_frame) = u32::try_from(first_frame).ok().filter(|n| *n < u32::BITS) else {
                    return malformed("record frame");
                };
                Ok(Record::Move { segment, position_bytes, first_frame, extent: r.counted("record extent")? })
            }
            6 => Ok(Record::Forget { segment: SegmentId(r.varint("record segment")?) }),
            _ => malformed("record tag"),
        }
    }
}

/// Numbers that only grow, and the inode count: stored with each commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// The next inode number to give out.
    pub next_ino: u64,
    /// The next directory cookie to give out.
    pub next_cookie: u64,
    /// Inodes in being, the root directory included.
    pub inodes: u64,
}

/// A commit: everything since the one before becomes visible, as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit<'a> {
    /// Its number; one more than the commit before.
    pub seq: CommitSeq,
    /// Frames (directories apart) since the commit before, that one excluded.
    pub frames: u32,
    /// SHA-256 chain over all frames since and including the commit before (format.md §4).
    pub chain: [u8; 32],
    /// The counters after it.
    pub counters: Counters,
    /// Its own records; those of earlier `Records` frames come first.
    pub records: &'a [u8],
}

impl Commit<'_> {
    /// The plaintext of the commit frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(68 + self.records.len());
        b.extend_from_slice(&self.seq.0.to_le_bytes());
        b.extend_from_slice(&self.frames.to_le_bytes());
        b.extend_from_slice(&self.chain);
        for n in [self.counters.next_ino, self.counters.next_cookie, self.counters.inodes] {
            b.extend_from_slice(&n.to_le_bytes());
        }
        b.extend_from_slice(self.records);
        b
    }

    /// Reads a commit frame.
    pub fn decode(bytes: &[u8]) -> Result<Commit<'_>, Malformed> {
        let mut r = Reader::new(bytes);
        Ok(Commit {
            seq: CommitSeq(r.u64("commit number")?),
            frames: r.u32("commit frame count")?,
            chain: r.array("commit chain")?,
            counters: Counters {
                next_ino: r.u64("commit counters")?,
                next_cookie: r.u64("commit counters")?,
                inodes: r.u64("commit counters")?,
            },
            records: r.rest(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_records() {
        let all = [
            Record::Put { key: b"k", value: b"vv" },
            Record::Delete { key: b"k" },
            Record::Install { ino: Ino(300), offset_bytes: 4, extent: b"e" },
            Record::Punch { ino: Ino(1), from_bytes: 0, to_bytes: u64::MAX },
            Record::Move { segment: SegmentId(300), position_bytes: 5, first_frame: 31, extent: b"ee" },
            Record::Forget { segment: SegmentId(7) },
        ];
        let mut bytes = Vec::new();
        all.iter().for_each(|r| r.encode_to(&mut bytes));
        assert_eq!(
            bytes,
            b"\x01\x01k\x02vv\x02\x01k\x03\xac\x02\x04\x01e\x04\x01\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\
              \x05\xac\x02\x05\x1f\x02ee\x06\x07"
        );
        let mut r = Reader::new(&bytes);
        for want in &all {
            assert_eq!(Record::decode(&mut r).as_ref(), Ok(want));
        }
        assert!(r.is_empty());
        assert!(Record::decode(&mut Reader::new(b"\x05\x01\x05\x20\0")).is_err(), "no run has a frame 32");
    }

    #[test]
    fn golden_commit() {
        let c = Commit {
            seq: CommitSeq(1),
            frames: 2,
            chain: [3; 32],
            counters: Counters { next_ino: 4, next_cookie: 5, inodes: 6 },
            records: b"rr",
        };
        let mut want = b"\x01\0\0\0\0\0\0\0\x02\0\0\0".to_vec();
        want.extend_from_slice(&[3; 32]);
        want.extend_from_slice(b"\x04\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0rr");
        assert_eq!(c.encode(), want);
        assert_eq!(Commit::decode(&want), Ok(c));
    }
}
