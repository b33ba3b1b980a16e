//! The cleaner: gives back the room of old segments, whose metadata nobody needs and in which little or nothing is alive.
//!
//! Promise: a segment is removed only if nothing is alive in it, by the index's count and by going through it, as of a durable
//! checkpoint; if no buffer can name it any more; and if two snapshots stand behind all of its metadata, so that an index can be
//! made anew without it (I10). What is alive is moved out before, sealed again and verified like any write.
//! How: it looks how much the segments take and how much is alive in them. If that is too much, it asks for snapshots, then moves
//! what is alive out of the worst segments: their frames are opened, given to the workers as chunks of the batch that fills, and
//! the batch's commit says where they went (`moved`). After a checkpoint, segments that count nothing alive are gone through,
//! forgotten by a record, and after another checkpoint removed.
//! After a change of key it goes on until nothing is under an old one, and has the header forget these.
//! Called by: its own thread. Takes: the gate, as an operation does; waits for nothing. Works while the log is at home and well.
//! On failure: what does not open stays, and with it its segment, and is told; other faults are told, and it tries again later.

use super::apply::known_segment;
use super::moves::{Cleaned, Moving, ranges};
use super::new_key::forget_old_keys;
use super::occupants::{Occupant, Occupants};
use super::place::remove_if_there;
use super::recover::list_segments;
use super::rekey::snapshots_under_old_keys;
use super::sealer::Job;
use super::shared::Shared;
use super::step::Actor;
use super::{VaultFault, snapshot};
use crate::backing::{Cache, Open};
use crate::base::choice::{Codec, Compression};
use crate::base::id::SegmentId;
use crate::base::limits::{
    CLEAN_ALIVE_PERCENT_MAX, CLEAN_ONE_IN, CLEAN_ORDERED_ALIVE_PERCENT_MAX, CLEAN_RATE_BYTES, CLEAN_SHORT_ONE_IN,
    CLEAN_STEP_BYTES, SNAPSHOTS_KEPT,
};
use crate::base::lock::{Held, Shared as _};
use crate::buffer::Chunk;
use crate::format::key;
use crate::segment::path;
use crossbeam_channel::{Receiver, Select};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// Time between two looks whether there is something to do …
const IDLE: Duration = Duration::from_millis(500);
/// … and while there is, and it may not go on yet.
const BUSY: Duration = Duration::from_millis(20);

/// Rest after a failure.
const REST: Duration = Duration::from_secs(10);
/// How often a segment is emptied before it is left alone.
const EMPTIED_MOST: u32 = 2;

/// What decides which segments may go: checkpoints so far, and the first segment that the snapshots need.
type Known = (u64, SegmentId);

fn known(shared: &Shared) -> Known {
    (shared.stats.checkpoints.get(), snapshot::replay_from_all(shared))
}

/// A segment and what it takes.
struct Taken {
    id: SegmentId,
    taken_bytes: u64,
    live_bytes: u64,
}

/// What is done to a segment.
struct Task {
    occupants: Occupants,
    /// Whether what is alive is moved out; else there should be nothing.
    empties: bool,
    /// What could not be moved.
    stays: u64,
}

/// Snapshots, asked for one after the other.
struct Asked {
    left: usize,
    /// Those taken and those failed when the last was asked for.
    since: Option<(u64, u64)>,
    /// Those that had failed at the beginning.
    failures: u64,
}

impl Asked {
    /// Both generations, so that what lies before now is before either.
    fn for_both(shared: &Shared) -> Asked {
        Asked { left: SNAPSHOTS_KEPT, since: None, failures: shared.stats.snapshot_failures.get() }
    }

    /// Asks for the next when the last was taken; says whether it did; `None` when there is nothing more to wait for.
    fn next(&mut self, shared: &Shared) -> Option<bool> {
        let (taken, failed) = (shared.stats.snapshots.get(), shared.stats.snapshot_failures.get());
        match self.since {
            Some((before, _)) if taken > before => {}
            Some((_, before)) if failed > before => return None,
            Some(_) => return Some(false),
            None => {}
        }
        self.left = self.left.checked_sub(1)?;
        self.since = Some((taken, failed));
        shared.snapshot_wanted.store(true, SeqCst);
        shared.want_checkpoint();
        Some(true)
    }
}

/// The cleaner.
pub struct Cleaner {
    shared: Arc<Shared>,
    clean_bytes: u64,
    /// The first segment of this mount.
    first: SegmentId,
    /// Segments to be emptied, …
    victims: VecDeque<SegmentId>,
    /// … and to be gone through, for they count nothing alive.
    empty: VecDeque<SegmentId>,
    task: Option<Task>,
    /// Found to hold nothing, to be forgotten.
    forgotten: Vec<SegmentId>,
    /// Not touched again in this mount: what they hold could not be moved, or is more than the index counts.
    left: BTreeSet<SegmentId>,
    /// How often each was emptied.
    emptied: BTreeMap<SegmentId, u32>,
    /// Snapshots that are waited for.
    snapshots: Option<Asked>,
    /// Whether it was asked to clean what there is …
    ordered: bool,
    /// … and does not rest meanwhile.
    hurried: bool,
    /// What was known when it last looked what is under old keys.
    rekeyed: Option<Known>,
    /// Bytes of log at which it looks again.
    look_at: u64,
    /// What was known when it last swept.
    swept: Known,
    /// The batch that filled when a sweep was due.
    sweep_after: Option<u64>,
    /// When it may go on.
    rest_until: Duration,
}

impl Cleaner {
    /// One that has not looked yet; cleans when so much is to be gained.
    pub fn new(shared: Arc<Shared>, clean_bytes: u64) -> Cleaner {
        let (rest_until, first) = (shared.world.elapsed(), shared.cursor.segment());
        Cleaner {
            shared,
            clean_bytes,
            first,
            victims: VecDeque::new(),
            empty: VecDeque::new(),
            task: None,
            forgotten: Vec::new(),
            left: BTreeSet::new(),
            emptied: BTreeMap::new(),
            snapshots: None,
            ordered: false,
            hurried: false,
            rekeyed: None,
            look_at: 0,
            swept: (0, SegmentId(0)),
            sweep_after: None,
            rest_until,
        }
    }

    /// Its life; ends when the other side of `wake` goes.
    pub fn run(mut self, wake: &Receiver<()>) {
        loop {
            let did = self.turn();
            let rest = self.rest_until.saturating_sub(self.shared.world.elapsed());
            let wait = match did {
                true => rest,
                false if self.is_idle() => IDLE,
                false => rest.max(BUSY),
            };
            // As `recv_timeout`, which however yields the processor eight times before it gives up: where others want it, each
            // look of an idle vault would be nine switches of threads.
            let mut woken = Select::new();
            woken.recv(wake);
            if woken.select_timeout(wait).is_ok_and(|it| it.recv(wake).is_err()) {
                return;
            }
        }
    }

    fn is_idle(&self) -> bool {
        let nothing_begun = self.task.is_none() && self.victims.is_empty() && self.empty.is_empty();
        nothing_begun && self.snapshots.is_none() && self.swept == known(&self.shared)
    }

    /// One piece of work; says whether there was one.
    fn turn(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let now = shared.world.elapsed();
        if now < self.rest_until || shared.closing.load(SeqCst) {
            return false;
        }
        // What lies away comes home first, and what has failed must not be given more to do.
        if shared.away.load(SeqCst) || shared.progress.is_stopped() || !shared.places.away().is_empty() {
            return false;
        }
        let did = self.try_turn(&shared, now);
        did.unwrap_or_else(|fault| {
            shared.stats.error(shared.world.now(), format!("cleaning: {fault}"));
            if let Some(task) = self.task.take() {
                self.left.insert(task.occupants.segment());
            }
            self.rest_until = now + REST;
            false
        })
    }

    fn try_turn(&mut self, shared: &Arc<Shared>, now: Duration) -> Result<bool, VaultFault> {
        if let Some(task) = self.task.take() {
            return self.go_on(shared, task, now);
        }
        if let Some(id) = self.empty.pop_front() {
            self.begin(shared, id, false)?;
            return Ok(true);
        }
        if let Some(id) = self.victims.pop_front() {
            self.begin(shared, id, true)?;
            return Ok(true);
        }
        if !self.forgotten.is_empty() {
            let forgotten = std::mem::take(&mut self.forgotten);
            put(shared, Cleaned { moving: Vec::new(), forgotten });
            // Removed once a checkpoint has it.
            shared.want_checkpoint();
            return Ok(true);
        }
        if let Some(asked) = &mut self.snapshots {
            match asked.next(shared) {
                None => {
                    if shared.stats.snapshot_failures.get() > asked.failures {
                        self.rest_until = now + REST;
                    }
                    // Whatever came of it: now with what there is.
                    (self.snapshots, self.rekeyed) = (None, None);
                    return self.look(shared, false);
                }
                Some(new) => return Ok(new),
            }
        }
        let now_known = known(shared);
        if now_known != self.swept && self.is_quiet(shared) {
            self.swept = now_known;
            self.sweep_after = None;
            return self.sweep(shared);
        }
        if shared.segments.has_old_keys() && self.rekeyed != Some(self.swept) {
            self.rekeyed = Some(self.swept);
            return self.rekey(shared);
        }
        let ordered = shared.clean_wanted.swap(false, SeqCst);
        self.ordered |= ordered;
        if ordered || shared.stats.log_bytes.get() >= self.look_at {
            return self.look(shared, true);
        }
        Ok(false)
    }

    fn begin(&mut self, shared: &Shared, id: SegmentId, empties: bool) -> Result<(), VaultFault> {
        let occupants = Occupants::of(shared, id).inspect_err(|_| {
            self.left.insert(id);
        })?;
        self.task = Some(Task { occupants, empties, stays: 0 });
        Ok(())
    }

    /// Goes on with a segment.
    fn go_on(&mut self, shared: &Arc<Shared>, mut task: Task, now: Duration) -> Result<bool, VaultFault> {
        // Writers go first.
        if task.empties && shared.dirty.is_half_full() || shared.dirty.waiting() > 0 {
            self.task = Some(task);
            return Ok(false);
        }
        let id = task.occupants.segment();
        if task.empties && shared.is_full_now(CLEAN_STEP_BYTES) {
            // It was not its fault.
            self.emptied.remove(&id);
            self.victims.clear();
            self.rest_until = now + REST;
            return Ok(false);
        }
        let (mut moving, mut bytes, mut read, mut ended) = (Vec::new(), 0, 0, false);
        // Groups may be as small as a block, and hold nothing that is alive.
        while bytes < CLEAN_STEP_BYTES && read < CLEAN_STEP_BYTES {
            match task.occupants.next(shared) {
                Ok(None) => {
                    ended = true;
                    break;
                }
                Ok(Some(None)) => read += task.occupants.read_bytes(),
                Ok(Some(Some(_))) if !task.empties => {
                    let why =
                        format!("cleaning: segment {id} counts nothing alive and holds something: check the vault");
                    shared.stats.error(shared.world.now(), why);
                    self.left.insert(id);
                    return Ok(true);
                }
                Ok(Some(Some(occupant))) => {
                    let before = moving.len();
                    let whole = take_out(shared, &mut task.occupants, &occupant, &mut moving);
                    task.stays += u64::from(!whole);
                    bytes +=
                        moving[before..].iter().map(|one: &Arc<Moving>| one.chunk.data().len() as u64).sum::<u64>();
                }
                Err(fault) => {
                    self.left.insert(id);
                    return Err(fault);
                }
            }
        }
        read += task.occupants.read_bytes();
        if !self.hurried {
            self.rest_until = now + Duration::from_micros(read.saturating_mul(1_000_000) / CLEAN_RATE_BYTES);
        }
        if !moving.is_empty() {
            shared.stats.moved_bytes.add(bytes);
            put(shared, Cleaned { moving, forgotten: Vec::new() });
        }
        match (ended, task.empties) {
            (false, _) => self.task = Some(task),
            (true, false) => self.forgotten.push(id),
            (true, true) => {
                if task.stays > 0 {
                    let why = format!("cleaning: segment {id} stays, {} pieces of data in it do not open", task.stays);
                    shared.stats.error(shared.world.now(), why);
                    self.left.insert(id);
                }
                if self.victims.is_empty() {
                    shared.want_checkpoint();
                }
            }
        }
        Ok(true)
    }

    /// Whether everything that was under way when a checkpoint had been stored has come to rest: what names a segment that the
    /// cursor left before is in the index then.
    fn is_quiet(&mut self, shared: &Shared) -> bool {
        let retired = shared.progress.held().retired;
        let after = match self.sweep_after {
            Some(after) => after,
            None => {
                let filling = *shared.gate.shared();
                self.sweep_after = Some(filling);
                filling
            }
        };
        if retired >= after {
            return true;
        }
        // No operation is under way while it is held alone, and none has been since.
        let gate = shared.gate.alone();
        *gate == after && shared.batch.held().is_empty() && retired + 1 == after
    }

    /// Looks for segments that are to be gone through, and for those that are forgotten already.
    fn sweep(&mut self, shared: &Shared) -> Result<bool, VaultFault> {
        let floor = snapshot::replay_from_all(shared);
        let mut removed = false;
        for id in list_segments(&*shared.backing)?.into_iter().take_while(|id| *id < floor) {
            let k = key::segment(id);
            match known_segment(&shared.index, id)? {
                Some(info) if info.live_bytes == 0 && !self.left.contains(&id) => self.empty.push_back(id),
                Some(_) => {}
                // A crash must not leave a checkpoint that knows a segment that is not there.
                None if shared.index.stored(&k)?.is_none() => {
                    let taken = taken_bytes(shared, id)?;
                    shared.segments.forget_removed(id);
                    remove_if_there(&*shared.backing, &path(id))?;
                    // A reader may have opened it meanwhile.
                    shared.segments.forget(id);
                    shared.stats.segments_removed.add(1);
                    shared.stats.removed_bytes.add(taken);
                    removed = true;
                }
                None => {}
            }
        }
        if removed {
            shared.backing.sync_dir("segments")?;
            shared.space.forget();
        }
        Ok(removed || !self.empty.is_empty())
    }

    /// Has segments emptied that are under an old key; forgets the key when there is none.
    fn rekey(&mut self, shared: &Shared) -> Result<bool, VaultFault> {
        let (floor, now) = (snapshot::replay_from_all(shared), shared.segments.keys().number());
        let (mut behind, mut any) = (false, false);
        for id in list_segments(&*shared.backing)? {
            let info = known_segment(&shared.index, id)?;
            let is_old = match info {
                Some(info) => info.key != now,
                None => shared.segments.is_under_old_key(id)?,
            };
            if !is_old {
                continue;
            }
            any = true;
            behind |= id >= floor;
            // What holds nothing alive is swept.
            if id < floor && info.is_some_and(|info| info.live_bytes > 0) && !self.left.contains(&id) {
                self.empty_again(id);
            }
        }
        behind |= !snapshots_under_old_keys(&*shared.backing, now)?.is_empty();
        if behind {
            self.snapshots = Some(Asked::for_both(shared));
            return Ok(true);
        }
        if !any && forget_old_keys(shared)? {
            shared.stats.event(shared.world.now(), "rekey: nothing is under an old key any more".to_owned());
        }
        Ok(!self.victims.is_empty())
    }

    /// Has a segment emptied, unless that was done often enough: what it counts and does not hold stays.
    fn empty_again(&mut self, id: SegmentId) {
        let times = self.emptied.entry(id).or_default();
        *times += 1;
        if *times > EMPTIED_MOST {
            self.left.insert(id);
        } else {
            self.victims.push_back(id);
        }
    }

    /// Looks what there is to gain, and begins to gain it; asks for snapshots before, if that may be.
    fn look(&mut self, shared: &Shared, may_ask: bool) -> Result<bool, VaultFault> {
        // The one that is written, or will be.
        let now = SegmentId(shared.newest_begun.load(SeqCst)).max(self.first);
        let mut all = Vec::new();
        for id in list_segments(&*shared.backing)?.into_iter().take_while(|id| *id < now) {
            let info = known_segment(&shared.index, id)?;
            let live_bytes = info.map_or(0, |info| info.live_bytes);
            all.push(Taken { id, taken_bytes: taken_bytes(shared, id)?, live_bytes });
        }
        let live: u64 = all.iter().map(|t| t.live_bytes).sum();
        let gain = |t: &Taken| t.taken_bytes.saturating_sub(t.live_bytes);
        let all_gain: u64 = all.iter().map(gain).sum();
        let space = shared.space.look().space();
        let is_short = space.is_some_and(|space| space.free_bytes < space.total_bytes / CLEAN_SHORT_ONE_IN);
        let least = if is_short { self.clean_bytes / 4 } else { self.clean_bytes.max(live / CLEAN_ONE_IN) };
        self.look_at = shared.stats.log_bytes.get() + least / 4;
        let ordered = std::mem::take(&mut self.ordered);
        if all_gain < least && !ordered {
            return Ok(false);
        }
        let floor = snapshot::replay_from_all(shared);
        let below: u64 = all.iter().filter(|t| t.id < floor).map(gain).sum();
        // Both generations must stand behind what is to go.
        let too_early = below < all_gain / 2 || ordered && all.last().is_some_and(|t| t.id >= floor);
        if may_ask && too_early {
            (self.snapshots, self.ordered) = (Some(Asked::for_both(shared)), ordered);
            return Ok(true);
        }
        let percent = if ordered { CLEAN_ORDERED_ALIVE_PERCENT_MAX } else { CLEAN_ALIVE_PERCENT_MAX };
        let worth = |t: &&Taken| {
            t.id < floor
                && t.live_bytes > 0
                && t.live_bytes.saturating_mul(100) <= t.taken_bytes.saturating_mul(percent)
                && !self.left.contains(&t.id)
        };
        let mut worst: Vec<&Taken> = all.iter().filter(worth).collect();
        // Least alive for what it takes first.
        worst.sort_by_key(|t| t.live_bytes.saturating_mul(1 << 20) / t.taken_bytes.max(1));
        let mut left = all_gain;
        for t in worst {
            if left < least / 2 && !ordered {
                break;
            }
            left = left.saturating_sub(gain(t));
            self.empty_again(t.id);
        }
        self.hurried = ordered;
        Ok(!self.victims.is_empty())
    }
}

impl Actor for Cleaner {
    fn step(&mut self) -> bool {
        self.turn()
    }
}

fn taken_bytes(shared: &Shared, id: SegmentId) -> Result<u64, VaultFault> {
    Ok(shared.backing.open(&path(id), Open::Read, Cache::Buffered)?.taken_bytes()?)
}

/// Opens what is held of an occupant, as moves; false if something of it does not open, and stays.
fn take_out(shared: &Shared, occupants: &mut Occupants, occupant: &Occupant, moving: &mut Vec<Arc<Moving>>) -> bool {
    let (run, origin) = (&occupant.run, occupant.origin);
    let compression = match run.codec {
        Codec::Raw => Compression::None,
        Codec::Lz4 => Compression::Lz4,
        Codec::Zstd => Compression::Zstd,
    };
    let mut whole = true;
    for frames in ranges(occupant.frames) {
        let first_frame = frames.start;
        let Some(plain) = occupants.open(occupant, frames) else {
            whole = false;
            continue;
        };
        let offset_bytes = origin.start_bytes + (u64::from(first_frame) << run.unit_log2);
        let chunk = Arc::new(Chunk::again(origin.ino, offset_bytes, plain, compression, &shared.pool));
        moving.push(Arc::new(Moving { from: (run.segment, run.position_bytes), first_frame, chunk }));
    }
    whole
}

/// Puts something into the batch that fills, as an operation.
fn put(shared: &Shared, cleaned: Cleaned) {
    let gate = shared.gate.shared();
    shared.dirty.add(cleaned.bytes());
    shared.moves.begin(*gate, &cleaned.moving);
    let mut batch = shared.batch.held();
    let first = batch.begin(shared.world.elapsed());
    let outstanding = Arc::clone(&batch.outstanding);
    outstanding.fetch_add(cleaned.moving.len() as u64, SeqCst);
    let chunks: Vec<Arc<Chunk>> = cleaned.chunks().collect();
    batch.cleaned.moving.extend(cleaned.moving);
    batch.cleaned.forgotten.extend(cleaned.forgotten);
    drop(batch);
    for chunk in chunks {
        shared.to_sealers(Job::Chunk { chunk, outstanding: Arc::clone(&outstanding) });
    }
    drop(gate);
    shared.filled(first, shared.dirty.is_half_full());
}
