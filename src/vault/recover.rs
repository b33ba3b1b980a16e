//! Recovery: takes in the commits that the newest checkpoint does not cover.
//!
//! Promise: commits are taken in chain order, each only if every frame since the one before is there and its checksum
//! holds; the first that does not hold ends the tail, and what came after is dropped and counted. Damage that valid commits
//! follow is bit rot and not a torn tail: those commits are taken in, and what the damage hit cannot be read. An earlier
//! lease's commits that a later segment does not continue from are not mistaken for the tail (format.md §4).
//! Called by: `open`, before any thread runs. On failure: `Damaged`, if the log contradicts itself; I/O errors as they are.

use super::apply::apply;
use super::shared::DeadRange;
use super::{OpenFault, VaultFault};
use crate::backing::{AlignedBuf, Backing, Cache, Open};
use crate::base::choice::SuiteId;
use crate::base::id::{CommitSeq, Epoch, SegmentId, VaultId};
use crate::base::limits::BLOCK_BYTES;
use crate::format::frame::Kind;
use crate::format::key::{self, is_derived};
use crate::format::record::{Commit, Counters, Record};
use crate::format::segment::{LogPosition, SegmentInfo, Start};
use crate::format::wire::Reader;
use crate::index::Index;
use crate::seal::{Chain, MasterKey};
use crate::segment::{Unreadable, Walk, WalkedFrame, WalkedGroup, parse_file_name, path};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// Changes that a rebuild gathers before it stores them.
const REBUILD_OVERLAY_BYTES: usize = 32 << 20;

/// What recovery found.
pub struct Recovered {
    /// The newest commit, taken in.
    pub position: LogPosition,
    /// The counters after it.
    pub counters: Counters,
    /// Commits taken in.
    pub commits: u64,
    /// Frames after the last commit that were dropped: operations that were never acknowledged as durable.
    pub dropped_frames: u64,
    /// Commits taken in although a group of theirs is damaged: reading what it held is a fault.
    pub rotten_commits: u64,
    /// Ranges that died in the commits taken in.
    pub dead: Vec<DeadRange>,
    /// The greatest segment number in use.
    pub newest_segment: SegmentId,
    /// Segments without a single group: prepared, never begun.
    pub empty_segments: Vec<SegmentId>,
    /// The greatest lease seen in the log.
    pub newest_epoch: Epoch,
}

struct Tail<'a> {
    index: &'a Index,
    segments: RefCell<HashMap<SegmentId, SegmentInfo>>,
    /// Epoch and salt of a segment before those walked, from its first group: one that held only records when the
    /// checkpoint was stored is not in the index.
    look_up: &'a dyn Fn(SegmentId) -> Result<SegmentInfo, VaultFault>,
    dead: Vec<DeadRange>,
    /// Whether the index began empty: then nothing is lost if it is stored half-way, and memory stays small.
    rebuilding: bool,
    /// Commits up to this one are authenticated by a root or checkpoint: their chain need not hold, for dead frames of
    /// theirs may have been given back.
    trusted: LogPosition,
    position: LogPosition,
    counters: Counters,
    chain: Chain,
    frames: u32,
    records: Vec<u8>,
    /// False until the commit that the checkpoint covers was seen.
    joined: bool,
    /// Whether every group since the last commit holds.
    whole: bool,
    /// Whether records or a commit since then could not be opened.
    broken: bool,
    /// Commits whose groups do not all hold, in order: a torn tail, unless a later commit holds. The log writes a commit
    /// only after the flush of the one before, so what a later commit follows was once whole: then it is bit rot, and
    /// costs only what the damaged frames hold.
    suspects: Vec<Vec<u8>>,
    /// Where the first suspect began.
    before_suspects: (LogPosition, Counters),
    rotten: u64,
    epoch: Epoch,
    /// The newest commit that later segments continue from: what a lease left beyond it was dropped when it died, and its
    /// number given out again.
    last: CommitSeq,
    commits: u64,
    dropped: u64,
}

/// Where to begin.
pub struct From {
    /// What the index covers.
    pub covered: LogPosition,
    /// The first segment that may hold later commits.
    pub replay_from: SegmentId,
    /// The counters as of `covered`.
    pub counters: Counters,
    /// The newest commit that a root vouches for.
    pub trusted: LogPosition,
}

/// The segments in the backing directory, in order.
pub fn list_segments(backing: &dyn Backing) -> std::io::Result<Vec<SegmentId>> {
    let mut all: Vec<_> = backing.list("segments")?.iter().filter_map(|n| parse_file_name(n)).collect();
    all.sort_unstable();
    Ok(all)
}

/// Walks the log's tail and applies what holds to the index's overlay.
pub fn recover(
    backing: &Arc<dyn Backing>,
    master: &MasterKey,
    suite: SuiteId,
    vault: VaultId,
    index: &Index,
    from: &From,
) -> Result<Recovered, OpenFault> {
    let all = list_segments(&**backing)?;
    let look_up = |id: SegmentId| {
        let unknown = || VaultFault::Index(format!("segment {id} is named but was not found").into());
        let file = backing.open(&path(id), Open::Read, Cache::Direct).map_err(|_| unknown())?;
        let mut walk = Walk::new(file, id, suite, vault);
        walk.next(master).map_err(|_| unknown())?;
        let context = walk.context().ok_or_else(unknown)?;
        Ok(SegmentInfo { epoch: context.epoch, salt: context.salt, data_bytes: 0, live_bytes: 0 })
    };
    let mut tail = Tail {
        index,
        segments: RefCell::default(),
        look_up: &look_up,
        dead: Vec::new(),
        rebuilding: from.covered == LogPosition::START,
        trusted: from.trusted,
        position: from.covered,
        counters: from.counters,
        chain: Chain::after(&from.covered.chain),
        frames: 0,
        records: Vec::new(),
        joined: from.covered == LogPosition::START,
        whole: true,
        broken: false,
        suspects: Vec::new(),
        before_suspects: (from.covered, from.counters),
        rotten: 0,
        epoch: Epoch(0),
        last: CommitSeq(u64::MAX),
        commits: 0,
        dropped: 0,
    };
    let mut empty_segments = Vec::new();
    let walked = &all[all.partition_point(|id| *id < from.replay_from)..];
    for (&id, last) in walked.iter().zip(last_commits(backing, master, suite, vault, walked)?) {
        tail.last = last;
        let file = backing.open(&path(id), Open::Read, Cache::Direct)?;
        let mut walk = Walk::new(file, id, suite, vault);
        while let Some(group) = walk.next(master).map_err(unreadable)? {
            let context = Arc::clone(walk.context().expect("a walk that gave a group knows its segment"));
            let info = SegmentInfo { epoch: context.epoch, salt: context.salt, data_bytes: 0, live_bytes: 0 };
            tail.segments.borrow_mut().insert(id, info);
            tail.group(&mut walk, &group)?;
        }
        if walk.position_bytes() == 0 && never_begun(&**backing, index, id)? {
            empty_segments.push(id);
        }
    }
    tail.drop_pending();
    if tail.position.seq < from.trusted.seq {
        return Err(OpenFault::Damaged(format!(
            "the log ends at commit {}, but commit {} was acknowledged",
            tail.position.seq, from.trusted.seq
        )));
    }
    Ok(Recovered {
        position: tail.position,
        counters: tail.counters,
        commits: tail.commits,
        dead: tail.dead,
        dropped_frames: tail.dropped,
        rotten_commits: tail.rotten,
        newest_segment: newest_segment(index, from, &all)?,
        empty_segments,
        newest_epoch: tail.epoch,
    })
}

/// The greatest segment number ever used, as far as anything knows. A file may be lost: what the index says of its epoch
/// and salt must not be taken for those of a new segment with its number.
fn newest_segment(index: &Index, from: &From, present: &[SegmentId]) -> Result<SegmentId, OpenFault> {
    let damaged = |e: &dyn std::fmt::Display| OpenFault::Damaged(e.to_string());
    let known = index.scan_last_before(&[key::SEGMENT], &key::segment(SegmentId(u64::MAX))).map_err(|e| damaged(&e))?;
    let known = match known {
        Some((k, _)) => key::split(&k).map_err(|e| damaged(&e))?.1,
        None => 0,
    };
    let present = present.last().copied().unwrap_or_default();
    Ok(present.max(SegmentId(known)).max(SegmentId(from.replay_from.0.saturating_sub(1))))
}

/// For each segment the newest commit that can count in it: none beyond what a later segment says it continues.
fn last_commits(
    backing: &Arc<dyn Backing>,
    master: &MasterKey,
    suite: SuiteId,
    vault: VaultId,
    segments: &[SegmentId],
) -> Result<Vec<CommitSeq>, OpenFault> {
    let mut last = vec![CommitSeq(u64::MAX); segments.len()];
    for i in (1..segments.len()).rev() {
        let mut walk =
            Walk::new(backing.open(&path(segments[i]), Open::Read, Cache::Direct)?, segments[i], suite, vault);
        let mut plain = Vec::new();
        let group = walk.next(master).map_err(unreadable)?;
        let start = group.and_then(|g| g.frames.first().copied()).filter(|f| f.entry.kind == Kind::Start);
        let start = start.and_then(|f| walk.open(&f, &mut plain).ok()).and_then(|()| Start::decode(&plain).ok());
        last[i - 1] = last[i].min(start.map_or(CommitSeq(u64::MAX), |s| s.after.seq));
    }
    Ok(last)
}

/// Whether a segment without a group was only prepared. One whose first block rotted may hold data yet: it stays.
fn never_begun(backing: &dyn Backing, index: &Index, id: SegmentId) -> Result<bool, OpenFault> {
    let mut block = AlignedBuf::with_capacity(BLOCK_BYTES);
    block.set_len(BLOCK_BYTES);
    let got = backing.open(&path(id), Open::Read, Cache::Direct)?.read_at(&mut block, 0)?;
    let known = index.get(&key::segment(id)).map_err(|e| OpenFault::Damaged(e.to_string()))?.is_some();
    Ok(!known && block[..got].iter().all(|b| *b == 0))
}

fn unreadable(e: Unreadable) -> OpenFault {
    match e {
        Unreadable::Io(e) => OpenFault::Backing(e),
        Unreadable::Damaged { .. } => OpenFault::Damaged(e.to_string()),
    }
}

impl Tail<'_> {
    fn group(&mut self, walk: &mut Walk, group: &WalkedGroup) -> Result<(), OpenFault> {
        self.whole &= group.checksum_holds;
        for frame in &group.frames {
            // Before it is opened, which overwrites it.
            let tag = walk.tag(frame);
            match frame.entry.kind {
                Kind::Start => self.start(walk, group, frame)?,
                Kind::Records => {
                    if self.joined && walk.open(frame, &mut self.records).is_err() {
                        self.broken = true;
                    }
                }
                Kind::Commit => {
                    self.commit(walk, frame, tag)?;
                    continue;
                }
                Kind::Data | Kind::Directory => {}
            }
            self.chain.add(group.header.segment, frame.entry.slot, &tag);
            self.frames += 1;
        }
        Ok(())
    }

    /// A segment begins. If it begins a new lease, or begins anew after a failure, what was left after the last commit that
    /// it continues from is dropped.
    fn start(&mut self, walk: &mut Walk, group: &WalkedGroup, frame: &WalkedFrame) -> Result<(), OpenFault> {
        let mut plain = Vec::new();
        let opened = walk.open(frame, &mut plain).ok().and_then(|()| Start::decode(&plain).ok());
        let (epoch, old) = (group.header.epoch, self.epoch);
        self.epoch = epoch;
        if epoch == old && !opened.is_some_and(|s| s.restarts) {
            return Ok(());
        }
        self.drop_pending();
        // The reset is about what came before this group.
        self.whole = group.checksum_holds;
        match opened.map(|s| s.after) {
            Some(after) if after == self.position => self.joined = true,
            // Its beginning is older than the checkpoint: the commit covered is still to come.
            Some(after) if after.seq < self.position.seq && !self.joined => {}
            _ => {
                return Err(OpenFault::Damaged(format!(
                    "segment {} does not continue the log at commit {}",
                    group.header.segment, self.position.seq
                )));
            }
        }
        Ok(())
    }

    fn drop_pending(&mut self) {
        if !self.suspects.is_empty() {
            self.dropped += self.suspects.len() as u64;
            self.suspects.clear();
            (self.position, self.counters) = self.before_suspects;
        }
        self.dropped += u64::from(self.frames);
        (self.frames, self.whole, self.broken) = (0, true, false);
        self.records.clear();
        self.chain = Chain::after(&self.position.chain);
    }

    fn commit(&mut self, walk: &mut Walk, frame: &WalkedFrame, tag: [u8; 16]) -> Result<(), OpenFault> {
        let segment = walk.context().expect("a walk that gave a group knows its segment").id;
        let mut plain = Vec::new();
        if walk.open(frame, &mut plain).is_err() {
            self.broken = true;
            self.frames += 1;
            return Ok(());
        }
        let Ok(commit) = Commit::decode(&plain) else {
            return Err(OpenFault::Damaged(format!("segment {segment}: a commit that makes no sense")));
        };
        if !self.joined {
            if commit.seq == self.position.seq && commit.chain == self.position.chain {
                self.joined = true;
                self.begin_after(segment, frame, tag);
            }
            return Ok(());
        }
        let trusted = commit.seq <= self.trusted.seq;
        let next = commit.seq.0 == self.position.seq.0 + 1 && commit.seq <= self.last;
        let next = next && commit.frames == self.frames && !self.broken;
        // Where a group does not hold, a tag may be what rotted: the chain of the next commit goes on from this one's value.
        if !next || !trusted && self.whole && commit.chain != self.chain.value() {
            self.broken = true;
            self.frames += 1;
            return Ok(());
        }
        let mut records = std::mem::take(&mut self.records);
        records.extend_from_slice(commit.records);
        if self.suspects.is_empty() {
            self.before_suspects = (self.position, self.counters);
        }
        self.suspects.push(records);
        self.position = LogPosition { seq: commit.seq, chain: commit.chain };
        self.counters = commit.counters;
        if self.whole || trusted {
            self.rotten += self.suspects.len() as u64 - 1;
            for records in std::mem::take(&mut self.suspects) {
                self.take_in(&records).map_err(|e| OpenFault::Damaged(e.to_string()))?;
                self.commits += 1;
            }
        }
        self.begin_after(segment, frame, tag);
        Ok(())
    }

    /// The next commit's chain begins with the one just passed.
    fn begin_after(&mut self, segment: SegmentId, frame: &WalkedFrame, tag: [u8; 16]) {
        (self.frames, self.whole, self.broken) = (0, true, false);
        self.records.clear();
        self.chain = Chain::after(&self.position.chain);
        self.chain.add(segment, frame.entry.slot, &tag);
    }

    /// Applies one commit's records to the index: keys in order, then the data records.
    fn take_in(&mut self, records: &[u8]) -> Result<(), VaultFault> {
        let mut r = Reader::new(records);
        let mut changes = Vec::new();
        while !r.is_empty() {
            match Record::decode(&mut r)? {
                Record::Put { key, .. } | Record::Delete { key } if is_derived(key) => {
                    return Err(VaultFault::Index("a record sets a derived key".into()));
                }
                Record::Put { key, value } => changes.push((key.to_vec(), Some(value.to_vec()))),
                Record::Delete { key } => changes.push((key.to_vec(), None)),
                Record::Install { .. } | Record::Punch { .. } => {}
            }
        }
        self.index.change(changes);
        let new_segment = |id: SegmentId| {
            let known = self.segments.borrow().get(&id).copied();
            let info = known.map_or_else(|| (self.look_up)(id), Ok)?;
            self.segments.borrow_mut().insert(id, info);
            Ok(info)
        };
        apply(self.index, &new_segment, records, &mut self.dead)?;
        if self.rebuilding && self.index.overlay_bytes() > REBUILD_OVERLAY_BYTES {
            self.index.seal_direct();
            self.index.seal_derived();
            self.index.apply_sealed(&[])?;
        }
        Ok(())
    }
}
