//! What only whoever repairs a vault may do: set derived keys, raise numbers, look at copies.
//!
//! Promise: derived keys are set as I5 would have them or not at all: a caller gives what the extents in the index add up to,
//! and a mark where an extent itself made no sense; a rebuild from the log, where it is possible, comes first and makes
//! all this needless. What is set is in the next checkpoint or nowhere, so a crash leaves the vault as it was.
//! Called by: `check::repair`, and by tests that plant damage. Takes: the gate alone, for memory work only.
//! On failure: the vault's fault; nothing was set.

use super::header_file::Spoiled;
use super::place::{Everywhere, open_if_there};
use super::{Locked, OpenFault, Vault, VaultFault, apply, root};
use crate::backing::{Backing, Cache, Open};
use crate::base::choice::Codec;
use crate::base::id::{Epoch, KeyNumber, SegmentId, Slot};
use crate::base::limits::{CHUNK_BYTES, SEGMENT_NUMBER_MAX, TAG_BYTES};
use crate::base::lock::Shared as _;
use crate::format::extent::{Extent, Run};
use crate::format::key::{self, is_derived};
use crate::format::segment::SegmentInfo;
use crate::seal::Unlock;
use crate::segment::{Walk, parse_number, path};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The segment that nobody ever writes: an extent in it stands for bytes that are lost, and reading it is an error.
pub const NOWHERE: SegmentId = SegmentId(0);

/// The extent that stands for `len_bytes` lost bytes at `offset_bytes` of a file; they must lie within one chunk.
#[must_use]
pub fn lost_extent(offset_bytes: u64, len_bytes: u32) -> Extent {
    let unit = 1u32 << UNIT_LOG2;
    let sealed_lens =
        (0..len_bytes.div_ceil(unit)).map(|i| unit.min(len_bytes - i * unit) + TAG_BYTES as u32).collect();
    let run = Run {
        segment: NOWHERE,
        // Told apart from others of its chunk, as runs are by where they lie.
        position_bytes: offset_bytes % CHUNK_BYTES as u64,
        slot: Slot(0),
        codec: Codec::Raw,
        unit_log2: UNIT_LOG2,
        plain_len_bytes: len_bytes,
        sealed_lens,
    };
    Extent { len_bytes, skip_bytes: 0, run, copied: None }
}

const UNIT_LOG2: u8 = 16;

impl Vault {
    /// Sets (`Some`) and removes (`None`) derived keys, all at once, and stores a checkpoint with them. Nobody else may be
    /// at work. What the log covers cannot be set.
    pub fn set_derived(&self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<(), VaultFault> {
        if let Some((k, _)) = changes.iter().find(|(k, _)| !is_derived(k) || *k == key::total("log")) {
            return Err(VaultFault::Unfinished(format!("the key {k:?} is not for a repair to set").into()));
        }
        self.sync_and_retire()?;
        let s = &self.shared;
        {
            let _gate = s.gate.alone();
            s.index.change(changes);
            s.allocated.store(apply::read_u64(&s.index, &key::total("bytes")).unwrap_or(0), Relaxed);
        }
        self.checkpoint()
    }

    /// From now on inode numbers and cookies above these are given out.
    pub fn raise_numbers(&self, ino: u64, cookie: u64) {
        self.shared.next_ino.fetch_max(ino.saturating_add(1), Relaxed);
        self.shared.next_cookie.fetch_max(cookie.saturating_add(1), Relaxed);
    }

    /// The length of a segment's file, wherever it lies.
    pub fn segment_len_bytes(&self, id: SegmentId) -> std::io::Result<u64> {
        Everywhere(Arc::clone(&self.shared.places)).open(&path(id), Open::Read, Cache::Buffered)?.len()
    }

    /// Lists the files that have the name of a segment or an index with a number that none of ours can have; they are ignored.
    pub fn stray_files(&self) -> Result<Vec<String>, VaultFault> {
        let mut stray = Vec::new();
        for dir in ["segments", "index"] {
            let beyond = |name: &String| parse_number(name).is_some_and(|number| number > SEGMENT_NUMBER_MAX);
            let names = self.shared.backing.list(dir)?;
            stray.extend(names.into_iter().filter(beyond).map(|name| format!("{dir}/{name}")));
        }
        Ok(stray)
    }

    /// The number of the master key that a segment is under, as the index (`known`) or its first group says, if the header does
    /// not have it.
    pub fn missing_key(&self, id: SegmentId, known: KeyNumber) -> Result<Option<KeyNumber>, VaultFault> {
        let s = &self.shared.segments;
        let keys = s.keys();
        if keys.get(known).is_none() || keys.number() == KeyNumber(0) {
            return Ok(Some(known).filter(|key| keys.get(*key).is_none()));
        }
        let everywhere = Everywhere(Arc::clone(&self.shared.places));
        let file = everywhere.open(&path(id), Open::Read, Cache::Direct)?;
        let mut walk = Walk::new(file, id, self.suite, s.vault);
        // What else is wrong with it, its readers find.
        walk.next(&keys)?;
        Ok(walk.missing_key())
    }

    /// Reads what the index should say of a segment of which it says nothing: epoch and salt as its first group has them, or
    /// zeros if the file is missing or holds no group (then nothing in it can be read). Nothing is counted in it.
    pub fn segment_as_found(&self, id: SegmentId) -> Result<SegmentInfo, VaultFault> {
        let s = &self.shared.segments;
        let nothing = SegmentInfo::empty(Epoch(0), [0; 16], KeyNumber(0));
        let everywhere = Everywhere(Arc::clone(&self.shared.places));
        let Some(file) = open_if_there(&everywhere, &path(id))? else { return Ok(nothing) };
        let mut walk = Walk::new(file, id, self.suite, s.vault);
        walk.next(&s.keys())?;
        Ok(walk.context().map_or(nothing, |context| context.info()))
    }
}

impl Locked {
    /// Looks at the files that are kept twice, and gives those that are missing, do not hold or could not be read. Opening the vault
    /// writes the roots anew, and a header that is damaged.
    pub fn spoiled_copies(&self, unlock: &Unlock) -> Result<Vec<Spoiled>, OpenFault> {
        let opened = self.opened(unlock)?;
        let roots = root::spoiled(&**self.backing(), &opened.keys, opened.header.vault);
        Ok(roots.into_iter().chain(self.headers().spoiled(&opened)).collect())
    }
}
