//! Recovery: takes in the commits that the newest checkpoint does not cover.
//!
//! Promise: commits are taken in chain order, each only if every frame since the one before is there and its checksum
//! holds; what a lease leaves behind the last of them is dropped and counted. A later commit of the same lease proves that
//! what precedes the commit before it was once whole: damage there is rot and not a torn tail, and costs what it hit, which
//! is counted and said. An earlier lease's commits that a later segment does not continue from are not mistaken for the
//! tail (format.md §4).
//! Called by: `open`, before any thread runs. On failure: `Damaged`, if the log contradicts itself; I/O errors as they are.

use super::apply::apply;
use super::place::open_if_there;
use super::shared::DeadRange;
use super::{OpenFault, VaultFault};
use crate::backing::{AlignedBuf, Backing, Cache, Open};
use crate::base::choice::SuiteId;
use crate::base::id::{CommitSeq, Epoch, KeyNumber, SegmentId, VaultId};
use crate::base::limits::{BLOCK_BYTES, SEGMENT_NUMBER_MAX};
use crate::format::frame::Kind;
use crate::format::inode::NameEntry;
use crate::format::key::{self, is_derived};
use crate::format::record::{Commit, Counters, Record};
use crate::format::segment::{LogPosition, SegmentInfo, Start};
use crate::format::wire::Reader;
use crate::index::Index;
use crate::seal::{Chain, VaultKeys};
use crate::segment::{Walk, WalkedFrame, WalkedGroup, parse_file_name, path};
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
    /// Commits taken in although something of theirs is damaged: reading what it held is a fault.
    pub rotten_commits: u64,
    /// Frames of records, commits and whole groups that are missing from them: what these changed is lost.
    pub lost_records: u64,
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
    /// Whether what contradicts itself is passed over and counted, and not refused.
    salvage: bool,
    /// Whether the index is being made anew: then nothing is lost if it is stored half-way, and memory stays small.
    rebuilding: bool,
    /// Commits up to this one are authenticated by a root or checkpoint: their chain need not hold, for dead frames of
    /// theirs may have been given back.
    trusted: LogPosition,
    position: LogPosition,
    counters: Counters,
    chain: Chain,
    /// False until the commit that the checkpoint covers went by.
    joined: bool,
    /// Whether the lease holds another commit with the number of the covered one.
    astray: bool,
    /// Records since the last commit, as far as they could be read.
    records: Vec<u8>,
    /// What there is since the last break: the last commit, or something lost in whose place one may have been.
    since: Since,
    /// What was lost between the last commit and the last break; nothing if the break is that commit.
    missing: u64,
    /// Length of the records at the first such loss: these are of one commit.
    sure: Option<usize>,
    /// The newest commit, if what lies between it and the one before is damaged: a torn tail, unless a later commit of the
    /// lease proves that it was once whole.
    suspect: Option<Suspect>,
    rotten: u64,
    lost: u64,
    epoch: Epoch,
    /// The newest commit that later segments continue from: what a lease left beyond it was dropped when it died, and its
    /// number given out again.
    last: CommitSeq,
    commits: u64,
    dropped: u64,
}

/// What follows a break.
struct Since {
    frames: u32,
    /// Whether the checksums of every group hold.
    whole: bool,
    /// Whether a group among them was sealed anew, which changes tags and not the commits that chain them.
    sealed_anew: bool,
    /// Frames of records that could not be opened.
    lost: u64,
}

impl Since {
    const BREAK: Since = Since { frames: 0, whole: true, sealed_anew: false, lost: 0 };
}

/// A commit that is damaged, and not taken in.
struct Suspect {
    records: Vec<u8>,
    /// How many commits it stands for: those before it may be lost.
    commits: u64,
    /// How many of these are damaged.
    rotten: u64,
    /// What is lost of it and of those.
    lost: u64,
    /// Where the log stands without it.
    before: (LogPosition, Counters),
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
    /// Whether to pass over what contradicts itself, and to count it as lost: for whoever was asked to mend.
    pub salvage: bool,
    /// Whether the index is being made anew, from nothing or from a snapshot.
    pub rebuilding: bool,
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
    keys: &VaultKeys,
    suite: SuiteId,
    vault: VaultId,
    index: &Index,
    from: &From,
) -> Result<Recovered, OpenFault> {
    let all = list_segments(&**backing)?;
    let look_up = |id: SegmentId| {
        let life = match open_if_there(&**backing, &path(id))? {
            None => None,
            Some(file) => {
                let mut walk = Walk::new(file, id, suite, vault);
                walk.next(keys)?;
                walk.context().map(|context| context.info())
            }
        };
        // Lost: what lay in it cannot be read, the rest of the vault can.
        Ok(life.unwrap_or_else(|| {
            log::error!("segment {id} is named, but is missing or holds no group that can be read");
            SegmentInfo::empty(Epoch(0), [0; 16], KeyNumber(0))
        }))
    };
    let mut tail = Tail {
        index,
        segments: RefCell::default(),
        look_up: &look_up,
        dead: Vec::new(),
        salvage: from.salvage,
        rebuilding: from.rebuilding,
        trusted: from.trusted,
        position: from.covered,
        counters: from.counters,
        chain: Chain::after(&from.covered.chain),
        joined: from.covered == LogPosition::START,
        astray: false,
        records: Vec::new(),
        since: Since::BREAK,
        missing: 0,
        sure: None,
        suspect: None,
        rotten: 0,
        lost: 0,
        epoch: Epoch(0),
        last: CommitSeq(u64::MAX),
        commits: 0,
        dropped: 0,
    };
    let mut empty_segments = Vec::new();
    let walked = &all[all.partition_point(|id| *id < from.replay_from)..];
    if from.rebuilding
        && !from.salvage
        && let Some(first) = walked.first()
    {
        let after = start_of(backing, keys, suite, vault, *first)?.map_or(CommitSeq(0), |start| start.after.seq);
        // Segments before it were dispensable while there was a snapshot; or they are lost. What they said is nowhere else.
        if after > from.covered.seq {
            return Err(OpenFault::Damaged(format!(
                "the log begins with segment {first}, behind commit {after}; what was changed between commit {} and that one is gone",
                from.covered.seq
            )));
        }
    }
    // What a killed process left reads well, and may never have been flushed: it is, before anything relies on it. After that
    // it is read from the device: where a flush had failed before, only the page cache may hold it (I3).
    for id in walked {
        backing.open(&path(*id), Open::Read, Cache::Direct)?.sync_data()?;
    }
    let mut before = None;
    for (&id, last) in walked.iter().zip(last_commits(backing, keys, suite, vault, walked)?) {
        tail.last = last;
        if before.replace(id).is_some_and(|before| before.0 + 1 != id.0) {
            // If a segment is lost, what follows need not be of the commit that was begun.
            tail.sure.get_or_insert(tail.records.len());
        }
        let file = backing.open(&path(id), Open::Read, Cache::Direct)?;
        let mut walk = Walk::new(file, id, suite, vault);
        while let Some(group) = walk.next(keys)? {
            let context = Arc::clone(walk.context().expect("a walk that gave a group knows its segment"));
            tail.segments.borrow_mut().insert(id, context.info());
            tail.group(&mut walk, &group)?;
        }
        if let Some(key) = walk.missing_key() {
            // It would be taken for the end of the log, and what follows be dropped, though another header may open it: so
            // not even whoever was asked to mend passes over it.
            return Err(OpenFault::KeyMissing { segment: id, key });
        }
        if walk.position_bytes() == 0 && never_begun(&**backing, index, id)? {
            empty_segments.push(id);
        }
    }
    tail.drop_pending();
    tail.refuse_other_history()?;
    if tail.position.seq < from.trusted.seq && from.salvage {
        tail.joined = true;
        tail.jump(from.trusted)?;
    }
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
        lost_records: tail.lost,
        newest_segment: newest_segment(index, from, &all)?,
        empty_segments,
        newest_epoch: tail.epoch,
    })
}

/// The greatest segment number ever used, as far as anything knows. A file may be lost: what the index says of its epoch
/// and salt must not be taken for those of a new segment with its number.
fn newest_segment(index: &Index, from: &From, present: &[SegmentId]) -> Result<SegmentId, OpenFault> {
    let known = index.scan_last_before(&[key::SEGMENT], &key::segment(SegmentId(u64::MAX)))?;
    let known = match known {
        Some((k, _)) => key::split(&k)?.1,
        None => 0,
    };
    let present = present.last().copied().unwrap_or_default();
    let newest = present.max(SegmentId(known)).max(SegmentId(from.replay_from.0.saturating_sub(1)));
    if newest.0 > SEGMENT_NUMBER_MAX {
        return Err(OpenFault::Damaged(format!("segment {newest} is named, beyond the greatest number of a segment")));
    }
    Ok(newest)
}

/// For each segment the newest commit that can count in it: none beyond what a later segment says it continues.
pub(super) fn last_commits(
    backing: &Arc<dyn Backing>,
    keys: &VaultKeys,
    suite: SuiteId,
    vault: VaultId,
    segments: &[SegmentId],
) -> Result<Vec<CommitSeq>, OpenFault> {
    let mut last = vec![CommitSeq(u64::MAX); segments.len()];
    for i in (1..segments.len()).rev() {
        let start = start_of(backing, keys, suite, vault, segments[i])?;
        last[i - 1] = last[i].min(start.map_or(CommitSeq(u64::MAX), |s| s.after.seq));
    }
    Ok(last)
}

/// What a segment's first frame says that it continues, if that can be read.
fn start_of(
    backing: &Arc<dyn Backing>,
    keys: &VaultKeys,
    suite: SuiteId,
    vault: VaultId,
    id: SegmentId,
) -> Result<Option<Start>, OpenFault> {
    let mut walk = Walk::new(backing.open(&path(id), Open::Read, Cache::Direct)?, id, suite, vault);
    let mut plain = Vec::new();
    let group = walk.next(keys)?;
    let start = group.and_then(|g| g.frames.first().copied()).filter(|f| f.entry.kind == Kind::Start);
    Ok(start.and_then(|f| walk.open(&f, &mut plain).ok()).and_then(|()| Start::decode(&plain).ok()))
}

/// Whether a segment without a group was only prepared. One whose first block rotted may hold data yet: it stays.
fn never_begun(backing: &dyn Backing, index: &Index, id: SegmentId) -> Result<bool, OpenFault> {
    let mut block = AlignedBuf::with_capacity(BLOCK_BYTES);
    block.set_len(BLOCK_BYTES);
    let got = backing.open(&path(id), Open::Read, Cache::Direct)?.read_at(&mut block, 0)?;
    let known = index.get(&key::segment(id))?.is_some();
    Ok(!known && block[..got].iter().all(|b| *b == 0))
}

impl Tail<'_> {
    fn group(&mut self, walk: &mut Walk, group: &WalkedGroup) -> Result<(), OpenFault> {
        if let Some(gap) = group.gap_before {
            let id = group.header.segment;
            log::error!("segment {id}: no group can be read from byte {} to {}", gap.from_bytes, gap.to_bytes);
            self.break_off(u64::from(gap.groups_missing));
        }
        let first = group.frames.first().map(|f| f.entry.kind);
        if first != Some(Kind::Start) && group.header.epoch != self.epoch {
            // The beginning of the lease is lost; what it continues from is seen at its commits.
            self.epoch = group.header.epoch;
            self.begin_lease(None, group)?;
        }
        self.since.whole &= group.checksum_holds;
        self.since.sealed_anew |= group.header.is_sealed_anew();
        for frame in &group.frames {
            // Before it is opened, which overwrites it.
            let tag = walk.tag(frame);
            match frame.entry.kind {
                Kind::Start => self.start(walk, group, frame)?,
                Kind::Records => {
                    if walk.open(frame, &mut self.records).is_err() {
                        self.sure.get_or_insert(self.records.len());
                        self.since.lost += 1;
                    }
                }
                Kind::Commit => {
                    self.commit(walk, frame, tag)?;
                    // It is a link of the next one's chain.
                    self.since.sealed_anew |= group.header.is_sealed_anew();
                    continue;
                }
                // The last three stand in no segment: a walk gives none.
                Kind::Data | Kind::Directory | Kind::Covered | Kind::Entries | Kind::End => {}
            }
            self.chain.add(group.header.segment, frame.entry.slot, &tag);
            self.since.frames += 1;
        }
        Ok(())
    }

    /// A segment begins: in the same lease, under a new one, or anew after a failure, which is like a new lease.
    fn start(&mut self, walk: &mut Walk, group: &WalkedGroup, frame: &WalkedFrame) -> Result<(), OpenFault> {
        let mut plain = Vec::new();
        let opened = walk.open(frame, &mut plain).ok().and_then(|()| Start::decode(&plain).ok());
        let (epoch, old) = (group.header.epoch, self.epoch);
        self.epoch = epoch;
        if epoch == old && !opened.is_some_and(|s| s.restarts) {
            return Ok(());
        }
        self.begin_lease(opened.map(|s| s.after), group)
    }

    /// A new lease begins with this group. What the old one left after its last commit is dropped, but for what the new one
    /// says it continues from: that was taken in when it began, so it was whole then.
    fn begin_lease(&mut self, after: Option<LogPosition>, group: &WalkedGroup) -> Result<(), OpenFault> {
        if let Some(after) = after.filter(|after| after.seq >= self.position.seq) {
            self.settle()?;
            if after.seq > self.position.seq {
                self.jump(after)?;
            }
        }
        self.drop_pending();
        self.astray = false;
        // The reset is about what came before this group.
        (self.since.whole, self.since.sealed_anew) = (group.checksum_holds, group.header.is_sealed_anew());
        match after {
            Some(after) if after == self.position => self.joined = true,
            // Its beginning is older than the checkpoint: the commit covered is still to come.
            Some(after) if after.seq < self.position.seq && !self.joined => {}
            // The frame that says it is lost, and perhaps commits are. The rest of its group is no more whole for that.
            None => {
                self.break_off(1);
                (self.since.whole, self.since.sealed_anew) = (group.checksum_holds, group.header.is_sealed_anew());
            }
            Some(_) if self.salvage => {
                log::error!("segment {} belongs to another history: it is passed over", group.header.segment);
                (self.astray, self.lost) = (true, self.lost + 1);
            }
            Some(_) => {
                return Err(OpenFault::Damaged(format!(
                    "segment {} does not continue the log at commit {}",
                    group.header.segment, self.position.seq
                )));
            }
        }
        Ok(())
    }

    /// The commits up to this one are lost, although they were durable. What was read before the first loss is of the next
    /// one; of the rest, nobody can say.
    fn jump(&mut self, to: LogPosition) -> Result<(), OpenFault> {
        self.refuse_other_history()?;
        let mut records = std::mem::take(&mut self.records);
        if let Some(sure) = self.sure {
            records.truncate(sure);
        }
        if self.joined {
            self.take_in(&records)?;
        }
        let commits = to.seq.0 - self.position.seq.0;
        self.commits += commits;
        self.rotten += commits;
        self.lost += commits + self.missing + self.since.lost;
        self.position = to;
        self.counters = at_least(self.counters, &records)?;
        Ok(())
    }

    /// A snapshot is of another history if the log has another commit with the number of the one that it covers.
    fn refuse_other_history(&self) -> Result<(), OpenFault> {
        if self.rebuilding && self.astray && !self.salvage {
            let commit = self.position.seq;
            return Err(OpenFault::Damaged(format!("the log has another commit {commit}: this is another history")));
        }
        Ok(())
    }

    /// What lies between here and the last commit is not all there, and a commit may be among what is missing.
    fn break_off(&mut self, lost: u64) {
        self.sure.get_or_insert(self.records.len());
        self.missing += lost + self.since.lost;
        self.since = Since::BREAK;
        if !self.joined {
            // They may be older than the checkpoint; those behind the break are not, if a newer commit follows.
            self.records.clear();
        }
    }

    fn drop_pending(&mut self) {
        if let Some(suspect) = self.suspect.take() {
            self.dropped += suspect.commits;
            // But for the last one, they were durable.
            self.lost += if suspect.commits > 1 { suspect.lost } else { 0 };
            (self.position, self.counters) = suspect.before;
        }
        self.dropped += u64::from(self.since.frames);
        self.begin_after();
    }

    /// Takes the suspect in.
    fn settle(&mut self) -> Result<(), OpenFault> {
        let Some(Suspect { records, commits, rotten, lost, .. }) = self.suspect.take() else { return Ok(()) };
        self.take_in(&records)?;
        self.commits += commits;
        self.rotten += rotten;
        self.lost += lost;
        Ok(())
    }

    fn commit(&mut self, walk: &mut Walk, frame: &WalkedFrame, tag: [u8; 16]) -> Result<(), OpenFault> {
        let segment = walk.context().expect("a walk that gave a group knows its segment").id;
        let mut plain = Vec::new();
        if walk.open(frame, &mut plain).is_err() {
            self.break_off(1);
            return Ok(());
        }
        let Ok(commit) = Commit::decode(&plain) else {
            if self.salvage {
                self.break_off(1);
                return Ok(());
            }
            return Err(OpenFault::Damaged(format!("segment {segment}: a commit that makes no sense")));
        };
        if !self.joined && commit.seq <= self.position.seq {
            self.joined = commit.seq == self.position.seq && commit.chain == self.position.chain;
            // Another commit with that number: what follows it is another history, until a lease joins ours.
            self.astray = commit.seq == self.position.seq && !self.joined;
            self.begin_after();
            self.chain.add(segment, frame.entry.slot, &tag);
            return Ok(());
        }
        if self.astray || commit.seq <= self.position.seq || commit.seq > self.last {
            // Dropped when its lease died, and its number given out again.
            self.since.frames += 1;
            return Ok(());
        }
        let passed = !std::mem::replace(&mut self.joined, true);
        // A commit is written only after the one before was flushed and read back right.
        self.settle()?;
        let commits = commit.seq.0 - self.position.seq.0;
        let trusted = commit.seq <= self.trusted.seq;
        let complete = commit.frames == self.since.frames && self.since.lost == 0;
        let continues = commits == 1 && self.missing == 0;
        // Where a group does not hold, a tag may be what rotted: the chain of the next commit goes on from this one's value.
        // And whoever sealed a segment anew had a checkpoint that covers it: the chain has done its work.
        let chained = !self.since.whole || self.since.sealed_anew || commit.chain == self.chain.value();
        let mut records = std::mem::take(&mut self.records);
        records.extend_from_slice(commit.records);
        let before = (self.position, self.counters);
        self.position = LogPosition { seq: commit.seq, chain: commit.chain };
        self.counters = commit.counters;
        if continues && complete && (trusted || self.since.whole && chained) {
            self.take_in(&records)?;
            self.commits += 1;
        } else {
            let sound = !continues && complete && self.since.whole;
            // Of a commit that went by unseen, its own records are lost; unless it is the covered one, which the index has.
            let before_it = if self.missing == 0 || passed { commits - 1 } else { self.missing };
            let miscounted = u64::from(!sound && self.since.lost == 0 && commit.frames != self.since.frames);
            let lost = before_it + self.since.lost + miscounted;
            self.suspect = Some(Suspect { records, commits, rotten: commits - u64::from(sound), lost, before });
            // What is damaged lies before it, and so was durable; or is vouched for.
            if trusted || sound {
                self.settle()?;
            }
        }
        self.begin_after();
        self.chain.add(segment, frame.entry.slot, &tag);
        Ok(())
    }

    /// Nothing is pending behind the position.
    fn begin_after(&mut self) {
        (self.since, self.missing, self.sure) = (Since::BREAK, 0, None);
        self.records.clear();
        self.chain = Chain::after(&self.position.chain);
    }

    /// Applies records to the index: keys in order, then the data records.
    fn take_in(&mut self, records: &[u8]) -> Result<(), OpenFault> {
        Ok(self.apply(records)?)
    }

    fn apply(&mut self, records: &[u8]) -> Result<(), VaultFault> {
        let mut r = Reader::new(records);
        let mut changes = Vec::new();
        while !r.is_empty() {
            match Record::decode(&mut r)? {
                // It would undo what the log itself makes of its records.
                Record::Put { key, .. } | Record::Delete { key } if is_derived(key) && self.salvage => self.lost += 1,
                Record::Put { key, .. } | Record::Delete { key } if is_derived(key) => {
                    return Err(VaultFault::Log("a record sets a derived key".into()));
                }
                Record::Put { key, value } => changes.push((key.to_vec(), Some(value.to_vec()))),
                Record::Delete { key } => changes.push((key.to_vec(), None)),
                Record::Install { .. } | Record::Punch { .. } | Record::Move { .. } | Record::Forget { .. } => {}
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

/// The counters of a commit that is lost, as far as its records show: no number that they use is given out again.
fn at_least(mut counters: Counters, records: &[u8]) -> Result<Counters, OpenFault> {
    let mut r = Reader::new(records);
    while !r.is_empty() {
        let (ino, cookie) = match Record::decode(&mut r)? {
            Record::Put { key, value } => match key::split(key) {
                Ok((key::NAME, ..)) => NameEntry::decode(value).map_or((0, 0), |entry| (entry.ino.0, entry.cookie)),
                Ok((key::INODE, ino, _)) => (ino, 0),
                Ok(_) | Err(_) => (0, 0),
            },
            Record::Install { ino, .. } => (ino.0, 0),
            Record::Delete { .. } | Record::Punch { .. } | Record::Move { .. } | Record::Forget { .. } => (0, 0),
        };
        counters.next_ino = counters.next_ino.max(ino.saturating_add(1));
        counters.next_cookie = counters.next_cookie.max(cookie.saturating_add(1));
    }
    Ok(counters)
}
