//! The root: which generation, which lease, which checkpoint (format.md §2).
//!
//! Promise: a root that decodes was written whole by someone with the key (the sealing is `vault::root`'s).
//! Called by: `vault`.

use super::segment::LogPosition;
use super::wire::{Malformed, Reader, malformed};
use crate::base::id::{Epoch, Generation, SegmentId};

/// Length of a root file.
pub const ROOT_BYTES: usize = 4096;
/// First bytes of a root file.
pub const MAGIC: [u8; 4] = *b"SRR1";
/// The root's own version; it is not the vault's.
pub const ROOT_VERSION: u16 = 1;

/// The plaintext of a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// Grows by one with each root.
    pub generation: Generation,
    /// The newest lease given out.
    pub epoch: Epoch,
    /// What the newest checkpoint covers.
    pub covered: LogPosition,
    /// The first segment that may hold commits after `covered`.
    pub replay_from: SegmentId,
    /// The file in `index/` that is the newest checkpoint.
    pub index_file: u64,
    /// Whether the vault was closed with nothing pending.
    pub clean: bool,
}

/// Length of a root's plaintext.
pub const PLAIN_BYTES: usize = 73;

impl Root {
    /// The plaintext.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(PLAIN_BYTES);
        b.extend_from_slice(&self.generation.0.to_le_bytes());
        b.extend_from_slice(&self.epoch.0.to_le_bytes());
        b.extend_from_slice(&self.covered.encode());
        b.extend_from_slice(&self.replay_from.0.to_le_bytes());
        b.extend_from_slice(&self.index_file.to_le_bytes());
        b.push(u8::from(self.clean));
        b
    }
    /// Reads the plaintext.
    pub fn decode(bytes: &[u8]) -> Result<Root, Malformed> {
        let mut r = Reader::new(bytes);
        let root = Root {
            generation: Generation(r.u64("root generation")?),
            epoch: Epoch(r.u64("root epoch")?),
            covered: LogPosition::decode(r.take(40, "root position")?)?,
            replay_from: SegmentId(r.u64("root segment")?),
            index_file: r.u64("root index")?,
            clean: match r.u8("root clean")? {
                0 => false,
                1 => true,
                _ => return malformed("root clean"),
            },
        };
        r.end("root tail")?;
        Ok(root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::CommitSeq;

    #[test]
    fn golden_root() {
        let root = Root {
            generation: Generation(1),
            epoch: Epoch(2),
            covered: LogPosition { seq: CommitSeq(3), chain: [4; 32] },
            replay_from: SegmentId(5),
            index_file: 6,
            clean: true,
        };
        let mut want = b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0".to_vec();
        want.extend_from_slice(&[4; 32]);
        want.extend_from_slice(b"\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x01");
        assert_eq!(root.encode(), want);
        assert_eq!(want.len(), PLAIN_BYTES);
        assert_eq!(Root::decode(&want), Ok(root));
    }
}
