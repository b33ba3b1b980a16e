//! Takes snapshots and looks at those that are there, a piece at a time, between the housekeeper's other work.
//!
//! Promise: a snapshot is begun right after a checkpoint, of one frozen moment of the table, and goes on being of that moment
//! whatever the vault does; no piece of work takes long, and the pauses are three times as long as the work. What an earlier mount
//! left counts only when all of it was read. Called by: `checkpoint` (the housekeeper), `Vault` (asks for one), `check`.
//! On failure: what was begun is removed, it is counted, and the next checkpoint begins another; never from the reserve, and not
//! while the log is away.

use super::place::{open_if_there, remove_if_there};
use super::recover::list_segments;
use super::shared::Shared;
use super::snapshot::{Kept, Known, Making, list, replay_from_all};
use super::writer::is_full;
use super::{Vault, VaultFault, reserve_bytes};
use crate::backing::{Cache, Open};
use crate::base::id::{CommitSeq, SegmentId};
use crate::base::limits::{SNAPSHOT_LOG_BYTES_MIN, SNAPSHOT_LOG_TIMES, SNAPSHOT_RATE_BYTES, SNAPSHOTS_KEPT};
use crate::base::lock::Held;
use crate::format::key;
use crate::format::segment::Covered;
use crate::index::Frozen;
use crate::segment::{SNAPSHOTS, SnapshotReader, Unreadable, WholeSnapshot, path, snapshot_path};
use std::io;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// Entries of the table that are looked up at a time: a few MiB, if each were as large as an extended attribute may be.
const SCAN: usize = 64;
/// After a piece of work there is at least so many times as long a pause as it took.
const PAUSES: u32 = 3;

/// What the housekeeper does about snapshots.
pub struct Keeper {
    doing: Doing,
    /// When the next piece is due.
    next_at: Duration,
    /// Bytes of log behind the newest snapshot when the mount began; not known until that was looked at.
    log_before: Option<u64>,
    /// What the counter of log bytes stood at when the newest was begun.
    log_at: u64,
}

enum Doing {
    Nothing,
    /// Reads one that an earlier mount took.
    Looking(CommitSeq, Box<SnapshotReader>),
    Taking(Box<Taking>),
}

/// One being taken.
struct Taking {
    making: Making,
    frozen: Box<dyn Frozen>,
    next: Vec<u8>,
    /// Once all is written.
    reading: Option<SnapshotReader>,
    log_at: u64,
}

/// What came of a piece of work.
enum Piece {
    /// So many bytes were written or read, and there is more.
    More(u64),
    Done(WholeSnapshot),
}

impl Keeper {
    /// One with nothing to do.
    pub fn new() -> Keeper {
        Keeper { doing: Doing::Nothing, next_at: Duration::ZERO, log_before: None, log_at: 0 }
    }

    /// How long until a piece of work is due; nothing if there is none.
    pub fn due_in(&self, shared: &Shared) -> Option<Duration> {
        let idle = matches!(self.doing, Doing::Nothing) && first_unseen(shared).is_none();
        (!idle && may_work(shared)).then(|| self.next_at.saturating_sub(shared.world.elapsed()))
    }

    /// A checkpoint was stored, and nothing has changed the table since: begins a snapshot of it, if one is wanted or due.
    pub fn after_checkpoint(&mut self, shared: &Shared, covered: &Covered) {
        if matches!(self.doing, Doing::Taking(_)) || !may_work(shared) {
            return;
        }
        if !shared.snapshot_wanted.load(SeqCst) && !self.log_has_grown(shared) {
            return;
        }
        shared.snapshot_wanted.store(false, SeqCst);
        match Taking::begin(shared, covered) {
            Ok(taking) => self.doing = Doing::Taking(Box::new(taking)),
            Err(fault) => self.failed(shared, &fault),
        }
    }

    /// Does a piece of work, if one is due; says whether.
    pub fn step(&mut self, shared: &Shared) -> bool {
        if !may_work(shared) {
            if let Doing::Taking(_) = std::mem::replace(&mut self.doing, Doing::Nothing) {
                shared.snapshot_wanted.store(true, SeqCst);
            }
            return false;
        }
        let began = shared.world.elapsed();
        if began < self.next_at {
            return false;
        }
        let keys = &shared.segments.keys();
        match std::mem::replace(&mut self.doing, Doing::Nothing) {
            Doing::Nothing => {
                let Some(number) = first_unseen(shared) else { return false };
                match shared.backing.open(&snapshot_path(number), Open::Read, Cache::Direct) {
                    Ok(file) => {
                        let (suite, vault) = (shared.segments.suite, shared.segments.vault);
                        let reader = SnapshotReader::new(file, number, suite, vault);
                        self.doing = Doing::Looking(number, Box::new(reader));
                    }
                    Err(e) => learn_unread(shared, number, &e),
                }
            }
            Doing::Looking(number, mut reader) => {
                let before = reader.walk().position_bytes();
                match reader.next(keys, &mut |_, _| ()) {
                    Ok(None) => {
                        self.wait(shared, reader.walk().position_bytes() - before, began);
                        self.doing = Doing::Looking(number, reader);
                    }
                    Ok(Some(whole)) => {
                        learn(shared, number, Known::Whole { replay_from: whole.covered.replay_from });
                    }
                    Err(Unreadable::Io(e)) => learn_unread(shared, number, &e),
                    Err(e) => learn(shared, number, Known::Spoiled(e.to_string())),
                }
            }
            Doing::Taking(mut taking) => match taking.piece(shared) {
                Ok(Piece::More(bytes)) => {
                    self.wait(shared, bytes, began);
                    self.doing = Doing::Taking(taking);
                }
                Ok(Piece::Done(read)) => {
                    let Taking { making, log_at, .. } = *taking;
                    match making.give_name(&read) {
                        Ok(kept) => {
                            (self.log_before, self.log_at) = (Some(0), log_at);
                            take_in(shared, kept);
                            // Counted when it is among those kept: who waits for one would ask for another otherwise.
                            shared.stats.snapshots.add(1);
                            shared.progress.notify();
                        }
                        Err(e) => self.failed(shared, &e.into()),
                    }
                }
                Err(fault) => {
                    // What was begun goes first: it may be the room that is wanting.
                    drop(taking);
                    self.failed(shared, &fault);
                }
            },
        }
        true
    }

    fn wait(&mut self, shared: &Shared, bytes: u64, began: Duration) {
        let (pause, now) = (Duration::from_secs_f64(bytes as f64 / SNAPSHOT_RATE_BYTES as f64), shared.world.elapsed());
        self.next_at = now + pause.max(now.saturating_sub(began) * PAUSES);
    }

    fn failed(&mut self, shared: &Shared, fault: &VaultFault) {
        self.doing = Doing::Nothing;
        shared.snapshot_wanted.store(true, SeqCst);
        shared.stats.snapshot_failures.add(1);
        match fault {
            VaultFault::BackingFull => log::info!("no snapshot of the index for now: the backing filesystem is full"),
            VaultFault::Backing(e) if is_full(e) => log::info!("no snapshot of the index for now: {e}"),
            other => shared.stats.error(shared.world.now(), format!("snapshot of the index: {other}")),
        }
        shared.progress.notify();
    }

    /// Whether so much was logged since the newest that replaying it would take much longer than reading a snapshot.
    fn log_has_grown(&mut self, shared: &Shared) -> bool {
        let newest = shared.snapshots.held().first().cloned();
        let before = match (self.log_before, &newest) {
            (Some(before), _) => before,
            (None, None) => *self.log_before.insert(log_from(shared, SegmentId(0))),
            (None, Some(Kept { known: Known::Whole { replay_from }, .. })) => {
                *self.log_before.insert(log_from(shared, *replay_from))
            }
            // Until it was looked at nobody knows; and what does not hold is replaced anyway.
            (None, Some(_)) => return false,
        };
        let grown = before + shared.stats.log_bytes.get() - self.log_at;
        grown >= SNAPSHOT_LOG_BYTES_MIN.max(newest.map_or(0, |kept| SNAPSHOT_LOG_TIMES * kept.len_bytes))
    }
}

impl Taking {
    fn begin(shared: &Shared, covered: &Covered) -> Result<Taking, VaultFault> {
        let log_at = shared.stats.log_bytes.get();
        let last = shared.snapshots.held().first().map_or(0, |kept| kept.len_bytes);
        room_for(shared, last)?;
        let frozen = shared.index.freeze()?;
        let position = key::total("log");
        let stored = frozen.scan(&position, 1)?.into_iter().next().filter(|(key, _)| *key == position);
        if stored.is_none_or(|(_, value)| value != covered.encode()) {
            return Err(VaultFault::Unfinished("the table of the index is not the one that was checkpointed".into()));
        }
        let epoch = shared.root.held().epoch;
        let segments = &shared.segments;
        let of = (segments.suite, segments.vault);
        let making = Making::begin(&shared.backing, &segments.keys(), of, epoch, covered, &*shared.world)?;
        Ok(Taking { making, frozen, next: Vec::new(), reading: None, log_at })
    }

    /// Writes a group or so, or reads one back.
    fn piece(&mut self, shared: &Shared) -> Result<Piece, VaultFault> {
        let room = |bytes| room_for(shared, bytes);
        if let Some(reader) = &mut self.reading {
            let before = reader.walk().position_bytes();
            return match reader.next(&shared.segments.keys(), &mut |_, _| ()) {
                Ok(Some(whole)) => Ok(Piece::Done(whole)),
                Ok(None) => Ok(Piece::More(reader.walk().position_bytes() - before)),
                Err(Unreadable::Io(e)) => Err(e.into()),
                Err(e) => Err(VaultFault::Log(format!("a snapshot did not read back as it was written: {e}").into())),
            };
        }
        loop {
            let page = self.frozen.scan(&self.next, SCAN)?;
            let Some((last, _)) = page.last() else {
                let written = self.making.end(&room)?;
                self.reading = Some(self.making.reader());
                return Ok(Piece::More(written));
            };
            self.next = [&last[..], &[0]].concat();
            page.iter().for_each(|(key, value)| self.making.add(key, value));
            let written = self.making.write(&room)?;
            if written > 0 {
                return Ok(Piece::More(written));
            }
        }
    }
}

/// Whether snapshots are a matter at all, now: they lie at home, and nothing of them may keep the vault from closing.
fn may_work(shared: &Shared) -> bool {
    !shared.read_only && !shared.away.load(SeqCst) && !shared.closing.load(SeqCst) && !shared.progress.is_stopped()
}

/// Whether there is room for so many bytes beside all that is kept for the vault's other writes.
fn room_for(shared: &Shared, bytes: u64) -> Result<(), VaultFault> {
    let beside = bytes + shared.reserve.missing_bytes() + shared.dirty.used_bytes();
    let fits = shared.space.room_beside_log().fits(|total| beside + reserve_bytes(total));
    if fits { Ok(()) } else { Err(VaultFault::BackingFull) }
}

/// Bytes of the log from a segment on.
fn log_from(shared: &Shared, from: SegmentId) -> u64 {
    let everywhere = &*shared.segments.everywhere;
    let len = |id| everywhere.open(&path(id), Open::Read, Cache::Buffered).and_then(|file| file.len()).unwrap_or(0);
    list_segments(everywhere).unwrap_or_default().into_iter().filter(|id| *id >= from).map(len).sum()
}

fn first_unseen(shared: &Shared) -> Option<CommitSeq> {
    let kept = shared.snapshots.held();
    kept.iter().take(SNAPSHOTS_KEPT).find(|kept| kept.known == Known::Nothing).map(|kept| kept.number)
}

/// Notes that the disk did not give a snapshot. Another one is taken, so that there are two that can be read.
fn learn_unread(shared: &Shared, number: CommitSeq, e: &io::Error) {
    let line = format!("{} could not be read: {e}; another snapshot is taken", snapshot_path(number));
    shared.stats.error(shared.world.now(), line);
    shared.snapshot_wanted.store(true, SeqCst);
    learn(shared, number, Known::Unread);
}

/// Notes what a look at a snapshot has shown.
fn learn(shared: &Shared, number: CommitSeq, known: Known) {
    if let Known::Spoiled(why) = &known {
        let said = format!("the snapshot of commit {number} does not hold: {why}; another one is taken");
        shared.stats.error(shared.world.now(), said);
        shared.snapshot_wanted.store(true, SeqCst);
    }
    // One that was given up meanwhile stays given up, however it reads.
    let is_it = |kept: &&mut Kept| kept.number == number && kept.known == Known::Nothing;
    if let Some(kept) = shared.snapshots.held().iter_mut().find(is_it) {
        kept.known = known;
    }
}

/// A new snapshot is durable: of the others the newest one that holds is kept, and the rest goes.
fn take_in(shared: &Shared, new: Kept) {
    let others = || shared.snapshots.held().clone().into_iter().filter(|other| other.number != new.number);
    let first = |known: fn(&Known) -> bool| others().find(|other| known(&other.known));
    let whole = first(|known| matches!(known, Known::Whole { .. }));
    let stays = whole.or_else(|| first(|known| *known == Known::Nothing)).map(|other| other.number);
    for old in others().filter(|other| Some(other.number) != stays) {
        let removed = remove_if_there(&*shared.backing, &snapshot_path(old.number));
        if let Err(e) = removed.and_then(|()| shared.backing.sync_dir(SNAPSHOTS)) {
            // Only room is lost by it.
            log::warn!("the snapshot of commit {}: {e}", old.number);
        }
    }
    // Told only now: whoever waits for it finds what is kept, and nothing else.
    let mut kept = shared.snapshots.held();
    kept.retain(|other| Some(other.number) == stays);
    kept.insert(0, new);
}

/// A snapshot that does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoiledSnapshot {
    /// The commit that it covers.
    pub number: CommitSeq,
    /// What is wrong with it, or what the disk said.
    pub why: String,
    /// Whether the disk did not give it: then it may be as good as ever.
    pub is_unread: bool,
}

impl Vault {
    /// The snapshots that are kept, the newest first.
    pub fn snapshots(&self) -> Vec<Kept> {
        self.shared.snapshots.held().clone()
    }

    /// The first segment that making an index anew may need: 0 unless two snapshots were read whole in this mount.
    pub fn index_needs_from(&self) -> SegmentId {
        replay_from_all(&self.shared)
    }

    /// Looks at all snapshots and gives those that do not serve; `whole` reads all of them, else only their beginning is looked at.
    pub fn spoiled_snapshots(&self, whole: bool) -> Result<Vec<SpoiledSnapshot>, VaultFault> {
        let s = &self.shared;
        let (keys, of) = (&s.segments.keys(), (s.segments.suite, s.segments.vault));
        let newest = s.committed.held().seq;
        let mut spoiled = Vec::new();
        for number in list(&*s.backing)? {
            let unread = |e: io::Error| SpoiledSnapshot { number, why: e.to_string(), is_unread: true };
            let file = match open_if_there(&*s.backing, &snapshot_path(number)) {
                Ok(Some(file)) => file,
                // It has just been replaced.
                Ok(None) => continue,
                Err(e) => {
                    spoiled.push(unread(e));
                    continue;
                }
            };
            let mut reader = SnapshotReader::new(file, number, of.0, of.1);
            let why = loop {
                match reader.next(keys, &mut |_, _| ()) {
                    Ok(_) if number > newest => {
                        break Some("it is of a commit that the vault does not have".to_owned());
                    }
                    Ok(None) if whole => {}
                    Ok(Some(read)) if whole && !read.checksums_hold => {
                        break Some("its checksums do not hold, though it opens".to_owned());
                    }
                    Ok(_) => break None,
                    Err(Unreadable::Io(e)) => {
                        spoiled.push(unread(e));
                        break None;
                    }
                    Err(e) => break Some(e.to_string()),
                }
            };
            spoiled.extend(why.map(|why| SpoiledSnapshot { number, why, is_unread: false }));
        }
        Ok(spoiled)
    }

    /// Reads all snapshots, takes another one, and removes those that do not hold; with `all` every other one.
    pub fn replace_snapshots(&self, all: bool) -> Result<(), VaultFault> {
        let spoiled = self.spoiled_snapshots(true)?;
        for kept in self.shared.snapshots.held().iter_mut() {
            if all {
                kept.known = Known::Spoiled("the index was mended since".to_owned());
            }
            if let Some(it) = spoiled.iter().find(|it| it.number == kept.number && !it.is_unread) {
                kept.known = Known::Spoiled(it.why.clone());
            }
        }
        // One of a commit that was covered already would be taken for it.
        let wanted = self.shared.committed.held().seq;
        self.take_snapshot(wanted)
    }

    /// Takes a snapshot of all that is committed by now, and waits for it.
    pub fn snapshot(&self) -> Result<(), VaultFault> {
        self.sync_wait()?;
        let wanted = self.shared.committed.held().seq;
        self.take_snapshot(wanted)
    }

    /// Has one taken that covers the commit and holds.
    fn take_snapshot(&self, wanted: CommitSeq) -> Result<(), VaultFault> {
        let s = &self.shared;
        if s.read_only {
            return Err(VaultFault::ReadOnly);
        }
        let failures = s.stats.snapshot_failures.get();
        let done = || {
            let newest = s.snapshots.held().first().cloned();
            newest.is_some_and(|kept| kept.number >= wanted && matches!(kept.known, Known::Whole { .. }))
        };
        let taken = || s.stats.snapshots.get();
        while !done() {
            // One that is under way already may be of before.
            let before = taken();
            s.snapshot_wanted.store(true, SeqCst);
            self.checkpoint()?;
            let mut progress = s.progress.held();
            while !done() && taken() == before && s.stats.snapshot_failures.get() == failures {
                if s.progress.is_stopped() || !s.takes_checkpoints() || s.closing.load(SeqCst) {
                    drop(progress);
                    s.progress.check()?;
                    return Err(VaultFault::Unfinished(
                        "no snapshot of the index can be taken while the backing directory fails".into(),
                    ));
                }
                progress = s.await_progress(progress, Duration::from_millis(20));
            }
            drop(progress);
            if s.stats.snapshot_failures.get() > failures {
                return Err(VaultFault::Unfinished(
                    "no snapshot of the index could be taken; see the error list and the log".into(),
                ));
            }
        }
        Ok(())
    }
}
