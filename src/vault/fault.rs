//! What can go wrong inside an open vault; `fs::errno` decides what a program sees of it.
//!
//! Promise: the evidence stays inside (which segment, which error), and no variant carries names, plaintext or keys.
//! Called by: everything in `vault`, `fs`, `check`.

use crate::base::id::{Ino, SegmentId};
use crate::format::Malformed;
use std::fmt;
use std::io;
use std::sync::Arc;

/// A refusal or failure of the vault.
#[derive(Debug, Clone)]
pub enum VaultFault {
    /// The vault's own byte quota is reached.
    QuotaBytes,
    /// The vault's own inode quota is reached.
    QuotaInodes,
    /// The backing filesystem has no room beside the reserve.
    BackingFull,
    /// Bytes of this file lie in a frame that does not open.
    Damaged {
        /// The file.
        ino: Ino,
        /// Where the frame lies.
        segment: SegmentId,
        /// Its byte position there.
        position_bytes: u64,
    },
    /// The index holds something that cannot be, or cannot be read.
    Index(Arc<str>),
    /// The backing directory answered a read or write with an error.
    Backing(Arc<io::Error>),
    /// An earlier write failed for good: nothing more is acknowledged until the vault is mounted again.
    Failed(Arc<str>),
    /// The vault is mounted for reading only.
    ReadOnly,
    /// The vault is being closed.
    Closed,
}

impl fmt::Display for VaultFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VaultFault::QuotaBytes => f.write_str("the vault's quota of bytes is reached"),
            VaultFault::QuotaInodes => f.write_str("the vault's quota of inodes is reached"),
            VaultFault::BackingFull => f.write_str("the filesystem of the backing directory is full"),
            VaultFault::Damaged { ino, segment, position_bytes } => {
                write!(f, "inode {ino}: the frame at segment {segment}, byte {position_bytes} does not open")
            }
            VaultFault::Index(why) => write!(f, "index: {why}"),
            VaultFault::Backing(e) => write!(f, "backing directory: {e}"),
            VaultFault::Failed(why) => write!(f, "writing stopped: {why}"),
            VaultFault::ReadOnly => f.write_str("the vault is mounted for reading only"),
            VaultFault::Closed => f.write_str("the vault is being closed"),
        }
    }
}

impl std::error::Error for VaultFault {}

impl From<io::Error> for VaultFault {
    fn from(e: io::Error) -> Self {
        VaultFault::Backing(Arc::new(e))
    }
}

impl From<Malformed> for VaultFault {
    fn from(e: Malformed) -> Self {
        VaultFault::Index(e.what.into())
    }
}
