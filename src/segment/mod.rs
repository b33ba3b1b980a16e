//! Frames at rest: packing them into groups, reading them back, walking a segment from its start.
//!
//! Promise: a frame is handed up only if it opens under its own address; a group only if its header and directory hold,
//! with what its checksums say. Called by: `vault` (log, read, recover), `check`. On failure: `Unreadable`, which says where.

mod context;
mod group;
mod read;
mod reseal;
mod shape;
mod snapshot;
mod walk;

pub use context::SegmentContext;
pub use group::{GroupBuilder, SealedFrames};
pub use read::{FrameAt, blocks_of, open_frames};
pub use reseal::{is_same, seal_anew};
pub use shape::{Body, Gap, Shape, Shapes, first_header};
pub use snapshot::{
    SNAPSHOTS, SnapshotGroup, SnapshotReader, SnapshotWriter, WholeSnapshot, parse_snapshot_name, snapshot_path,
};
pub use walk::{Walk, WalkedFrame, WalkedGroup};

use crate::base::id::SegmentId;
use crate::base::limits::SEGMENT_NUMBER_MAX;
use std::fmt;
use std::io;

/// The file name of a segment, below `segments/`.
#[must_use]
pub fn file_name(id: SegmentId) -> String {
    format!("{:016x}", id.0)
}

/// The path of a segment in the backing directory.
#[must_use]
pub fn path(id: SegmentId) -> String {
    format!("segments/{}", file_name(id))
}

/// The segment that a file name stands for, if it is one. A number beyond `SEGMENT_NUMBER_MAX` is none of ours: anybody can plant such
/// a file, and counting on from it would leave no numbers.
#[must_use]
pub fn parse_file_name(name: &str) -> Option<SegmentId> {
    parse_number(name).filter(|n| *n <= SEGMENT_NUMBER_MAX).map(SegmentId)
}

/// The number that a file name of sixteen digits stands for.
#[must_use]
pub fn parse_number(name: &str) -> Option<u64> {
    let number = u64::from_str_radix(name, 16).ok()?;
    (file_name(SegmentId(number)) == name).then_some(number)
}

/// Why frames could not be had.
#[derive(Debug)]
pub enum Unreadable {
    /// The disk answered with an error.
    Io(io::Error),
    /// What the disk gave is not what was written there.
    Damaged {
        /// Byte position in the segment of what does not hold.
        position_bytes: u64,
        /// What does not hold.
        what: &'static str,
    },
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Io(e) => write!(f, "{e}"),
            Unreadable::Damaged { position_bytes, what } => write!(f, "{what} at byte {position_bytes} does not hold"),
        }
    }
}

impl std::error::Error for Unreadable {}

impl From<io::Error> for Unreadable {
    fn from(e: io::Error) -> Self {
        Unreadable::Io(e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_to_one() {
        assert_eq!(file_name(SegmentId(255)), "00000000000000ff");
        assert_eq!(parse_file_name("00000000000000ff"), Some(SegmentId(255)));
        assert_eq!(parse_file_name("00000000000000FF"), None);
        assert_eq!(parse_file_name("ff"), None);
        assert_eq!(parse_file_name("0001000000000000"), Some(SegmentId(1 << 48)));
        assert_eq!(parse_file_name("0001000000000001"), None, "nothing could be counted on from a planted number");
        assert_eq!(parse_number("ffffffffffffffff"), Some(u64::MAX), "commits have no such bound");
    }
}
