//! The power cuts of a recorded run, one after the other.
//!
//! Promise: going from one cut to the next costs one call, an image costs its files and what is unsynced, whatever the length of
//! the run. Called by: `MemoryBacking::cuts` and the tests that use it. Cannot fail.

use super::media::{Change, Fate, Media, Unsynced, mix};
use super::{Kind, MemoryBacking};
use std::fmt;
use std::sync::Arc;

/// A call as it was recorded.
#[derive(Debug, Clone)]
pub struct Call {
    /// Which.
    pub kind: Kind,
    /// On what.
    pub path: Arc<str>,
    pub(super) change: Change,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.kind, &*self.path)?;
        match &self.change {
            Change::Write { patches, end, .. } => {
                let first = patches.first().map_or(0, |p| p.block);
                write!(f, ": {} blocks from {first}, to byte {end}", patches.len())
            }
            Change::SetLen { len, .. } | Change::Preallocate { len, .. } => write!(f, ": {len} bytes"),
            Change::Punch { from_block, to_block, .. } => write!(f, ": blocks {from_block} to {to_block}"),
            Change::Nothing => f.write_str(": nothing came of it"),
            Change::SyncFailed { .. } => f.write_str(": it failed"),
            Change::Flip { byte, mask, .. } => write!(f, ": byte {byte} changed by {mask:#04x}"),
            Change::SyncData { .. } | Change::Names { .. } | Change::SyncDir { .. } => Ok(()),
        }
    }
}

/// A run, stopped at a cut.
pub struct Cuts {
    media: Media,
    calls: Arc<[Call]>,
    cut: usize,
}

impl Cuts {
    pub(super) fn new(before: Media, calls: Arc<[Call]>) -> Cuts {
        Cuts { media: before, calls, cut: 0 }
    }

    /// Calls made so far.
    #[must_use]
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// The calls of the run.
    #[must_use]
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// Makes one more call; false if there is none.
    pub fn advance(&mut self) -> bool {
        let Some(call) = self.calls.get(self.cut) else { return false };
        self.media.advance(self.cut, &call.change);
        self.cut += 1;
        true
    }

    /// What a power cut here may leave.
    #[must_use]
    pub fn image(&self, fate: &mut dyn FnMut(&Unsynced<'_>) -> Fate) -> MemoryBacking {
        MemoryBacking::image(&self.media, fate)
    }

    /// A hash of all calls and all that they wrote: equal for equal runs.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut h = 0;
        let mut add = |n: u64| h = mix(h ^ n);
        for call in &*self.calls {
            add(call.kind as u64);
            call.path.bytes().for_each(|b| add(u64::from(b)));
            if let Change::Write { patches, end, .. } = &call.change {
                add(*end);
                for patch in &**patches {
                    add(patch.block << 8 | u64::from(patch.sectors));
                    let words = patch.after.iter().flat_map(|block| block.chunks_exact(8));
                    words.for_each(|w| add(u64::from_le_bytes(w.try_into().expect("chunks of eight bytes"))));
                }
            }
            if let Change::SetLen { len, .. } | Change::Preallocate { len, .. } = &call.change {
                add(*len);
            }
        }
        h
    }
}
