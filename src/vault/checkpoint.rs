//! The housekeeper: stores checkpoints, gives dead space back, prepares segments, has snapshots taken.
//!
//! Promise (I3): a checkpoint covers only log that is synced and verified, for it is told of a commit only after that.
//! (I10): a hole is punched only once a durable checkpoint no longer names the bytes. Nothing here is on an operation's
//! path. Called by: its own thread, fed by `verifier` and `log`. Takes: the header's lock, then the root's.
//! On failure: a checkpoint that cannot be stored is reported and tried again with the next one; the log still has it all.

use super::new_key::NewKey;
use super::place::{Place, remove_if_there};
use super::pressure::Pressure;
use super::shared::{DeadRange, Shared};
use super::snapshot_keeper::Keeper;
use super::state::{Event, State};
use super::step::Actor;
use super::writer::is_full;
use super::{VaultFault, home, presence, reserve_bytes, root, totals};
use crate::backing::{BackingFile, Cache, Open};
use crate::base::id::SegmentId;
use crate::base::limits::{ALLOCATE_STEP_BYTES, BLOCK_BYTES, SEGMENT_BYTES, SPARE_INODES};
use crate::base::lock::Held;
use crate::format::key;
use crate::format::record::Counters;
use crate::format::segment::{Covered, LogPosition};
use crate::index::IndexFault;
use crate::segment::path;
use crossbeam_channel::{Receiver, select};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

/// What the housekeeper is told.
pub enum ToHousekeeper {
    /// Both overlays are sealed at this commit.
    Checkpoint { position: LogPosition, counters: Counters, replay_from: SegmentId, dead: Vec<DeadRange> },
    /// The vault is to go over to another master key, between two checkpoints.
    NewKey(Box<NewKey>),
    /// Nothing more will come.
    Stop,
}

/// The housekeeper.
pub struct Housekeeper {
    shared: Arc<Shared>,
    told: Receiver<ToHousekeeper>,
    prepare: Receiver<SegmentId>,
    /// Died in commits of checkpoints that could not be stored.
    dead: Vec<DeadRange>,
    /// When bringing segments home may be tried again.
    home_at: Duration,
    probe_at: Duration,
    probe_wait: Duration,
    ticked: Duration,
    looked_for_room: Duration,
    pressure: Pressure,
    snapshots: Keeper,
    ended: bool,
}

/// Time between two looks at what nobody tells of.
const TICK: Duration = Duration::from_secs(1);
/// The same while there is no room: whoever deletes something waits for what it gives back.
const FULL_TICK: Duration = Duration::from_millis(250);
/// Longest wait between two probes of a backing directory that has failed.
const PROBE_MOST: Duration = Duration::from_secs(30);
/// Segments in which giving back may fail before the rest waits for the next checkpoint.
const PUNCH_FAILURES_MAX: u32 = 3;
/// Dead ranges that wait because they could not be given back.
const DEAD_KEPT_MAX: usize = 1 << 16;

impl Housekeeper {
    /// One with nothing to do.
    pub fn new(shared: Arc<Shared>, told: Receiver<ToHousekeeper>, prepare: Receiver<SegmentId>) -> Housekeeper {
        let (home_at, probe_at, probe_wait, ticked) = (Duration::ZERO, Duration::ZERO, TICK, shared.world.elapsed());
        let (dead, pressure, snapshots) = (Vec::new(), Pressure::none(), Keeper::new());
        let (looked_for_room, ended) = (ticked, false);
        Housekeeper {
            shared,
            told,
            prepare,
            dead,
            home_at,
            probe_at,
            probe_wait,
            ticked,
            looked_for_room,
            pressure,
            snapshots,
            ended,
        }
    }

    /// Its life.
    pub fn run(mut self) {
        let told = self.told.clone();
        let (mut prepare, no_more) = (self.prepare.clone(), crossbeam_channel::never());
        while !self.ended {
            let most = if self.shared.state() == State::Full { FULL_TICK } else { TICK };
            let next = self.snapshots.due_in(&self.shared).map_or(most, |due| due.min(most));
            select! {
                recv(prepare) -> id => match id {
                    Ok(id) => self.prepare(id),
                    // The log has ended; a closed queue would answer at once for ever.
                    Err(_) => prepare = no_more.clone(),
                },
                recv(told) -> item => self.take(item.unwrap_or(ToHousekeeper::Stop)),
                default(next) => {}
            }
            self.tick();
        }
    }

    fn prepare(&self, id: SegmentId) {
        match prepare_segment(&self.shared, id) {
            Ok(()) => {}
            // While there is one segment left: from now on programs are refused, and what is on its way fits.
            Err(e) if is_full(&e) => self.shared.note_refusal(),
            // The log will try by itself, and fail with more reason.
            Err(e) => log::warn!("preparing a segment: {e}"),
        }
    }

    fn take(&mut self, item: ToHousekeeper) {
        let shared = Arc::clone(&self.shared);
        let (position, counters, replay_from, mut more) = match item {
            ToHousekeeper::Checkpoint { position, counters, replay_from, dead } => {
                (position, counters, replay_from, dead)
            }
            ToHousekeeper::NewKey(next) => return next.put_in_force(&shared),
            ToHousekeeper::Stop => {
                self.ended = true;
                return;
            }
        };
        if shared.progress.has_given_up() {
            return;
        }
        self.dead.append(&mut more);
        let began = shared.world.elapsed();
        match store(&shared, position, counters, replay_from, false) {
            Ok(()) => {
                shared.stats.checkpoints.add(1);
                shared.stats.checkpoint.record(shared.world.elapsed().saturating_sub(began));
                shared.log_since_checkpoint.store(0, Relaxed);
                punch(&shared, std::mem::take(&mut self.dead));
                presence::look(&shared);
                self.snapshots.after_checkpoint(&shared, &Covered { position, counters, replay_from });
            }
            Err(e) => {
                shared.stats.checkpoint_failures.add(1);
                shared.stats.error(shared.world.now(), format!("checkpoint: {e}"));
            }
        }
        shared.checkpoint_running.store(false, SeqCst);
        shared.progress.notify();
    }

    /// What is done from time to time, and what nobody waits for.
    fn tick(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let now = shared.world.elapsed();
        let due = now.saturating_sub(self.ticked) >= TICK;
        if due {
            self.ticked = now;
            // Wherever the log lies.
            self.pressure.mind(&shared);
            if shared.segments.needs_look() {
                presence::look(&shared);
            }
        }
        self.mind_room(now);
        if shared.away.load(SeqCst) {
            self.snapshots.step(&shared);
            return self.probe();
        }
        (self.probe_at, self.probe_wait) = (Duration::ZERO, TICK);
        if shared.bring_home.load(SeqCst) && now >= self.home_at {
            self.bring_home(now);
            return true;
        }
        if due {
            shared.refill_reserve();
            look_for_refused_room(&shared);
            ask_when_idle(&shared);
        }
        self.snapshots.step(&shared)
    }

    /// Gives back what was deleted while there is no room, and looks whether there is some again.
    fn mind_room(&mut self, now: Duration) {
        let shared = &self.shared;
        let is_full = shared.state() == State::Full;
        if shared.read_only || now.saturating_sub(self.looked_for_room) < if is_full { FULL_TICK } else { TICK } {
            return;
        }
        self.looked_for_room = now;
        if is_full {
            shared.give_back_deleted();
        } else {
            shared.give_back_much();
        }
        shared.watch_room();
    }

    /// Looks whether the backing directory is well again; less often each time it is not.
    fn probe(&mut self) -> bool {
        let shared = &self.shared;
        let now = shared.world.elapsed();
        if now < self.probe_at || shared.home_wanted.load(SeqCst) {
            return false;
        }
        let first = self.probe_at == Duration::ZERO;
        (self.probe_at, self.probe_wait) = (now + self.probe_wait, (self.probe_wait * 2).min(PROBE_MOST));
        // It has only just failed.
        if first {
            return false;
        }
        // What was deleted since is given back by a checkpoint, and by nothing else.
        if shared.away_for_room.load(SeqCst) && shared.index.overlay_entries() > 0 {
            shared.want_checkpoint();
        }
        // What lies away is to have room, too.
        let need = |total: u64| reserve_bytes(total) + shared.reserve.missing_bytes() + shared.places.away_bytes();
        if shared.space.look().fits(need) && shared.probe(Place::Primary).is_ok() {
            shared.home_wanted.store(true, SeqCst);
            shared.wake_log();
            return true;
        }
        false
    }

    fn bring_home(&mut self, now: Duration) {
        let shared = &self.shared;
        shared.bring_home.store(false, SeqCst);
        match home::bring_all(shared) {
            Ok(0) => shared.happened(Event::Home, ""),
            Ok(count) => shared.happened(Event::Home, &format!("{count} segments came home")),
            Err(e) => {
                shared.stats.error(shared.world.now(), format!("bringing segments home: {e}"));
                shared.places.look_again(Place::Emergency);
                shared.bring_home.store(true, SeqCst);
                self.home_at = now + TICK;
            }
        }
    }
}

impl Actor for Housekeeper {
    fn step(&mut self) -> bool {
        if self.ended {
            return false;
        }
        if let Ok(id) = self.prepare.try_recv() {
            self.prepare(id);
            return true;
        }
        match self.told.try_recv() {
            Ok(item) => {
                self.take(item);
                true
            }
            Err(_) => self.tick(),
        }
    }
}

/// After a while without operations, what the overlay holds is stored, so that a crash then has nothing to replay.
fn ask_when_idle(shared: &Shared) {
    if shared.is_idle() && shared.index.overlay_entries() > 0 && !shared.progress.is_stopped() {
        shared.want_checkpoint();
    }
}

/// Stores both sealed overlays with the position they cover, then the root that names it.
pub fn store(
    shared: &Shared,
    position: LogPosition,
    counters: Counters,
    replay_from: SegmentId,
    clean: bool,
) -> Result<(), VaultFault> {
    let covered = Covered { position, counters, replay_from };
    let mut extra = totals::entries(shared);
    extra.push((key::total("log"), covered.encode()));
    match shared.index.apply_sealed(&extra) {
        Err(IndexFault::Io(e)) if is_full(&e) && shared.release_reserve() => shared.index.apply_sealed(&extra)?,
        other => other?,
    }
    let mut header = shared.header.held();
    header.settle(shared)?;
    let next = shared.next_root(|root| (root.covered, root.clean) = (position, clean));
    let (keys, vault) = (shared.segments.keys(), shared.segments.vault);
    root::write(&*shared.backing, &next, &keys, vault, &*shared.world)?;
    shared.pins.remember(&next);
    drop(header);
    Ok(())
}

/// The last checkpoint of a mount: covers everything, frees what is dead, and says that the close was clean.
pub fn close(shared: &Shared, position: LogPosition, counters: Counters, next: SegmentId) -> Result<(), VaultFault> {
    // What is not home yet must be looked for by the next mount.
    let away = shared.away.load(SeqCst) || home::bring_all(shared).is_err();
    store(shared, position, counters, next, !away)?;
    // Taken first: what cannot be given back is put there again.
    let dead = std::mem::take(&mut *shared.dead.held());
    punch(shared, dead);
    // Prepared, and not begun.
    for id in next.0..=shared.prepared.load(SeqCst) {
        remove_if_there(&*shared.backing, &path(SegmentId(id)))?;
    }
    shared.reserve.take_what_is_left(&*shared.backing);
    Ok(())
}

/// Finds out whether the backing filesystem takes new files and data again that it refused although `statfs` showed
/// room, and whether one with hardly any inode refuses them.
fn look_for_refused_room(shared: &Shared) {
    if shared.read_only || shared.progress.is_stopped() {
        return;
    }
    let takes_files = || match shared.places.probe(Place::Primary) {
        Ok(()) => true,
        Err(e) => !is_full(&e),
    };
    if !shared.room.is_refused() {
        let has_few_inodes = shared.space.room().space().is_some_and(|space| space.free_inodes < SPARE_INODES);
        if has_few_inodes && !takes_files() {
            shared.note_refusal();
        }
        return;
    }
    // The reserve is whole only if it was taken anew, and so as much room is really there.
    if shared.reserve.missing_bytes() == 0
        && takes_files()
        && prepare_segment(shared, SegmentId(shared.newest_begun.load(SeqCst) + 1)).is_ok()
    {
        shared.room.clear_refused();
    }
}

fn prepare_segment(shared: &Shared, id: SegmentId) -> std::io::Result<()> {
    let _making = shared.making_segment.held();
    if id.0 <= shared.newest_begun.load(SeqCst) {
        return Ok(());
    }
    shared.prepared.fetch_max(id.0, SeqCst);
    let file = match shared.backing.open(&path(id), Open::Create, Cache::Direct) {
        // One that was made and got no room.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            shared.backing.open(&path(id), Open::Write, Cache::Direct)?
        }
        made => made?,
    };
    // More, if more is on its way than the segment before it can take, and there is room for the rest of that one, too.
    let spare = shared.spare_bytes().saturating_sub(shared.space.rest_bytes());
    let beyond = shared.dirty.used_bytes().saturating_sub(SEGMENT_BYTES);
    let wanted = ALLOCATE_STEP_BYTES.max(beyond.min(SEGMENT_BYTES).min(spare));
    match file.preallocate(wanted) {
        // The log has taken the room meanwhile.
        Err(e) if is_full(&e) => file.preallocate(ALLOCATE_STEP_BYTES)?,
        other => other?,
    }
    shared.space.set_prepared(file.taken_bytes()?.min(wanted));
    file.sync_data()?;
    shared.backing.sync_dir("segments")
}

/// Gives the whole blocks inside dead ranges back to the filesystem. Ranges that it could not give back wait for the next checkpoint.
fn punch(shared: &Shared, mut dead: Vec<DeadRange>) {
    dead.sort_unstable_by_key(|d| (d.segment, d.from));
    let mut merged: Vec<DeadRange> = Vec::with_capacity(dead.len());
    for d in dead {
        match merged.last_mut() {
            Some(last) if last.segment == d.segment && last.to >= d.from => last.to = last.to.max(d.to),
            _ => merged.push(d),
        }
    }
    let block = BLOCK_BYTES as u64;
    let mut open: Option<(SegmentId, Arc<dyn BackingFile>)> = None;
    let (mut kept, mut failures, mut failed) = (Vec::new(), 0, None);
    // What lies away comes home whole.
    for d in merged.into_iter().filter(|d| !shared.places.is_away(d.segment)) {
        let (from, to) = (d.from.next_multiple_of(block), d.to / block * block);
        if from >= to {
            continue;
        }
        if failures >= PUNCH_FAILURES_MAX || failed == Some(d.segment) {
            kept.push(d);
            continue;
        }
        let file = match &open {
            Some((id, file)) if *id == d.segment => Ok(Arc::clone(file)),
            _ => shared.backing.open(&path(d.segment), Open::WriteUnshared, Cache::Buffered),
        };
        let punched = file.and_then(|file| {
            file.punch(from, to - from)?;
            open = Some((d.segment, file));
            Ok(())
        });
        match punched {
            Ok(()) => shared.stats.punched_bytes.add(to - from),
            // The cleaner has removed it, and given all of it back.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            // The filesystem knows no holes.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return,
            // A backup by hard links has it too, and keeps the room.
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => {}
            Err(e) => {
                log::warn!("segment {}: giving back bytes {from} to {to}: {e}", d.segment);
                kept.push(d);
                (failures, failed) = (failures + 1, Some(d.segment));
            }
        }
    }
    // Only space is lost with those beyond, until the segment is cleaned.
    kept.truncate(DEAD_KEPT_MAX);
    shared.dead.held().append(&mut kept);
}
