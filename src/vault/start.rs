//! Starts an opened vault: what its threads share, its first checkpoint, its threads.
//!
//! Promise: nothing is served before the first checkpoint is stored, so the old tail of the log is never walked again; a
//! thread that panics stops all acknowledging, and says so. Without threads (`OpenOptions::stepped`) the same actors run
//! inline. Called by: `open`. On failure: an `OpenFault`; what runs already ends with the value it was to be part of.

use super::ahead::{Prefetcher, Wishes};
use super::checkpoint::{self, Housekeeper};
use super::cleaner::Cleaner;
use super::fault::names_of;
use super::flusher::{Flusher, Flushes};
use super::handover::InForce;
use super::holes::Maps;
use super::log::{Ends, Log};
use super::moves::Moves;
use super::open::Parts;
use super::place::{Everywhere, Place};
use super::progress::Progress;
use super::quota::Quotas;
use super::recover::Recovered;
use super::reserve::Reserve;
use super::room::RoomWatch;
use super::scrub::Scrub;
use super::sealer::{Cursor, Worker};
use super::segments::{Keyring, Segments};
use super::shared::Shared;
use super::space::SpaceWatch;
use super::state::{Event, Machine};
use super::step::{Actor, Stepper};
use super::verifier::Verifier;
use super::window::Windows;
use super::{OpenFault, OpenOptions, Running, Vault, cache, presence, snapshot, stats, totals};
use crate::backing::Backing;
use crate::base::id::SegmentId;
use crate::base::limits::CHUNK_BYTES;
use crate::buffer::{Budget, Pool};
use crate::format::segment::SegmentInfo;
use crate::segment::SegmentContext;
use crossbeam_channel::{Receiver, Sender};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;

/// A queue of so many; without threads of any length, for nobody could wait there.
fn queue<T>(stepped: bool, most: usize) -> (Sender<T>, Receiver<T>) {
    if stepped { crossbeam_channel::unbounded() } else { crossbeam_channel::bounded(most) }
}

/// Starts it.
pub(super) fn start(parts: Parts, options: &OpenOptions, lock: Box<dyn Send + Sync>) -> Result<Arc<Vault>, OpenFault> {
    let Parts { backing, home, places, world, header, keys, root, pins, index, index_lost, .. } = parts;
    let Parts { shares, found, allocated, was_clean, made, .. } = parts;
    let (suite, vault, epoch) = (header.suite, header.vault, root.epoch);
    let keyring = Arc::new(Keyring::new(keys));
    let fresh = {
        let (keyring, world) = (Arc::clone(&keyring), Arc::clone(&world));
        move |id| {
            let (mut salt, keys) = ([0; 16], keyring.keys());
            world.fill(&mut salt);
            let info = SegmentInfo::empty(epoch, salt, keys.number());
            SegmentContext::new(&keys, suite, vault, id, &info).expect("the key in force is there")
        }
    };
    let first = SegmentId(found.newest_segment.0 + 1);
    let stepped = options.stepped.is_some();
    let places_count = if places.has(Place::Emergency) { 2 } else { 1 };
    // A worker's job holds bytes of the budget, so this queue is bounded by it.
    let (jobs_in, jobs) = crossbeam_channel::unbounded();
    let (sealed_in, sealed) = queue(stepped, 32);
    let (wake_in, wake) = crossbeam_channel::bounded(1);
    let (verify, to_verify) = queue(stepped, shares.verify_lag_groups);
    let (house_in, house) = queue(stepped, 4);
    let (prepare, to_prepare) = crossbeam_channel::bounded(1);
    let everywhere: Arc<dyn Backing> = Arc::new(Everywhere(Arc::clone(&places)));
    let stats = stats::Stats::default();
    // One question at a time.
    let (ask, asked) = queue(stepped, 1);
    let (ask_away, asked_away) = queue(stepped, 1);
    let watch = |place, ask| SpaceWatch::new(place, Arc::clone(&places), Arc::clone(&world), ask);
    let space = watch(Place::Primary, (!stepped).then_some(ask));
    let space_away = watch(Place::Emergency, (!stepped && places.has(Place::Emergency)).then_some(ask_away));
    space.look();
    let snapshots = snapshot::found(&*backing).unwrap_or_else(|e| {
        log::warn!("the snapshots of the index: {e}");
        Vec::new()
    });
    // What is damaged is not cleaned away: it is evidence, and may be wanted yet.
    let is_sound = found.rotten_commits == 0 && found.lost_records == 0 && !options.salvage;
    let writes = !options.read_only && !options.leave_away;
    let shared = Arc::new(Shared {
        segments: Segments::new(everywhere, keyring, suite, vault),
        reserve: Reserve::take(&*backing, !options.read_only),
        room: RoomWatch::default(),
        machine: Mutex::new(Machine::new(world.elapsed())),
        stepper: options.stepped.clone().map(Stepper::new),
        earlier: totals::load(&index, &stats)?,
        quotas: Quotas::load(&index)?,
        stats,
        world,
        backing,
        home,
        lock: Mutex::new(Some(lock)),
        places,
        index,
        compression: options.compression.unwrap_or(header.compression),
        verify: options.verify,
        direct: true.into(),
        verify_open_percent: options.verify_open_percent.min(100),
        flush_deadline: options.flush_deadline,
        flush_interval: options.flush_interval,
        read_only: options.read_only,
        leave_away: options.leave_away,
        shares,
        quota_bytes: header.quota_bytes,
        quota_inodes: header.quota_inodes,
        gate: RwLock::new(1),
        batch: Mutex::default(),
        moves: Moves::default(),
        progress: Progress::default(),
        in_flight: Mutex::default(),
        next_ino: found.counters.next_ino.into(),
        next_cookie: found.counters.next_cookie.into(),
        inodes: (found.counters.inodes as i64).into(),
        allocated: allocated.into(),
        copied: 0.into(),
        dirty: Budget::new(shares.dirty_bytes),
        near_quota: Mutex::default(),
        making_segment: Mutex::default(),
        records_limit: (shares.budget_bytes / 32).clamp(1 << 20, 8 << 20) as usize,
        pool: Pool::new(CHUNK_BYTES, shares.dirty_bytes),
        sealed_pool: Pool::new(CHUNK_BYTES + 4096, shares.sealed_bytes),
        // Without threads nobody could wait for it.
        sealed: Arc::new(Budget::new(if stepped { u64::MAX } else { shares.sealed_bytes })),
        group_buffers: Mutex::default(),
        cache: cache::FrameCache::new(shares.cache_bytes),
        windows: Windows::new(shares.cache_bytes / 8),
        wishes: Wishes::new(shares.cache_bytes),
        files: Mutex::default(),
        cursor: Cursor::new(first, Box::new(fresh)),
        pick: Mutex::default(),
        jobs,
        jobs_in: Mutex::new(Some(jobs_in)),
        sealed_in,
        wake_in,
        cut_wanted: false.into(),
        pressed: false.into(),
        checkpoint_wanted: false.into(),
        checkpoint_running: false.into(),
        closing: false.into(),
        verifying: 0.into(),
        last_op_ms: 0.into(),
        committed: Mutex::new(found.position),
        newest_begun: found.newest_segment.0.into(),
        log_since_checkpoint: 0.into(),
        dead: Mutex::new(found.dead.clone()),
        header: Mutex::new(InForce::new(header)),
        root: Mutex::new(root),
        pins,
        space,
        space_away,
        snapshots: Mutex::new(snapshots),
        snapshot_wanted: false.into(),
        totals_wanted: false.into(),
        log_ended: false.into(),
        closing_since: Mutex::default(),
        trouble: Mutex::default(),
        generation: 0.into(),
        away: false.into(),
        away_for_room: false.into(),
        home_wanted: false.into(),
        bring_home: false.into(),
        clean_bytes: options.clean_bytes.filter(|_| is_sound && writes),
        clean_wanted: false.into(),
        home_below: first.0.into(),
        prepared: 0.into(),
    });
    let is_away = !shared.places.away().is_empty();
    let Recovered { commits, dropped_frames, rotten_commits, .. } = &found;
    let before = if was_clean {
        "init: closed cleanly before".to_owned()
    } else {
        format!("init: {commits} commits taken in ({rotten_commits} with damage), {dropped_frames} frames dropped")
    };
    let how = made.as_ref().map_or(String::new(), |made| match made.snapshot {
        Some(commit) => format!("; the index was made anew from the snapshot of commit {commit} and the log behind it"),
        None => "; the index was made anew from the beginning of the log".to_owned(),
    });
    shared.stats.event(shared.world.now(), before + &how);
    for line in made.into_iter().flat_map(|made| made.said) {
        shared.stats.error(shared.world.now(), line);
    }
    let foreign = shared.places.foreign();
    if !foreign.is_empty() {
        let line = format!(
            "in the emergency directory {} lies what a newer state of this vault has written (segments: {}): it is left alone, and \
             comes home when that newer vault is mounted",
            shared.places.emergency_path(),
            foreign.len()
        );
        shared.stats.error(shared.world.now(), line);
    }
    if found.lost_records > 0 {
        let lost = found.lost_records;
        let said = format!(
            "recovery: {lost} frames or groups of the log are damaged that held changes of names and attributes: \
             these changes are lost; strongroom check says what they left behind"
        );
        shared.stats.error(shared.world.now(), said);
    }
    // What was recovered is checkpointed before anything new, so that the old tail is never walked again.
    shared.index.seal_direct();
    shared.index.seal_derived();
    checkpoint::store(&shared, found.position, found.counters, first, false)
        .inspect_err(|e| log::error!("what was recovered could not be stored in the first checkpoint: {e}"))?;
    let absent = presence::note_present(&shared).unwrap_or_else(|fault| {
        log::warn!("the segments cannot be looked for: {fault}");
        Vec::new()
    });
    if !absent.is_empty() {
        let names = names_of(&absent);
        let said = format!(
            "missing from the vault, so that the data in there cannot be read: {names}. Put this back from a copy, \
             or restore the files that strongroom check names"
        );
        shared.stats.error(shared.world.now(), said);
    }
    if is_away {
        shared.happened(Event::OpenedAway, "segments lie in the emergency directory");
        shared.bring_home.store(true, std::sync::atomic::Ordering::SeqCst);
    } else {
        shared.happened(Event::Opened, "");
    }

    let workers = options.workers.max(1);
    let sealers: Vec<Worker> = (0..workers).map(|_| Worker::new(Arc::clone(&shared))).collect();
    let prefetchers: Vec<Prefetcher> = (0..workers).map(|_| Prefetcher::new(Arc::clone(&shared))).collect();
    let verifier = Verifier::new(Arc::clone(&shared), to_verify, house_in.clone());
    let cleaner = shared.clean_bytes.map(|bytes| Cleaner::new(Arc::clone(&shared), bytes));
    let keeper = Housekeeper::new(Arc::clone(&shared), house, to_prepare);
    let log = |flushes| {
        let ends = Ends { sealed, wake, verify, prepare, flushes };
        Log::new(Arc::clone(&shared), ends, found.position)
    };
    let running = if let Some(stepper) = &shared.stepper {
        let (to, flushes) = crossbeam_channel::unbounded();
        sealers.into_iter().for_each(|worker| stepper.add(Box::new(worker)));
        prefetchers.into_iter().for_each(|prefetcher| stepper.add(Box::new(prefetcher)));
        let others: [Box<dyn Actor>; 4] = [
            Box::new(log(Flushes::to(to))),
            Box::new(Flusher::new(Arc::clone(&shared), flushes)),
            Box::new(verifier),
            Box::new(keeper),
        ];
        others.into_iter().for_each(|actor| stepper.add(actor));
        if let Some(cleaner) = cleaner {
            stepper.add(Box::new(cleaner));
        }
        Running {
            workers: Vec::new(),
            log: None,
            verify: None,
            house: None,
            house_in,
            space: Vec::new(),
            cleaner: None,
        }
    } else {
        let s = Arc::clone(&shared);
        let flushes = Flushes::spawned(Box::new(move |flushes| {
            let flusher = Flusher::new(Arc::clone(&s), flushes);
            // A thread that cannot be had drops the queue: every flush then answers that it was given up.
            let _ = spawn(&s, "flush", move || flusher.run());
        }));
        let log = log(flushes);
        let mut space = Vec::new();
        for (watch, asked, name) in [(&shared.space, asked, "space"), (&shared.space_away, asked_away, "space-away")]
            .into_iter()
            .take(places_count)
        {
            let watch = Arc::clone(watch);
            space.push(spawn(&shared, name, move || watch.answer(&asked))?);
        }
        let mut threads = Vec::new();
        for (i, worker) in sealers.into_iter().enumerate() {
            threads.push(spawn(&shared, &format!("seal-{i}"), move || worker.run())?);
        }
        for (i, prefetcher) in prefetchers.into_iter().enumerate() {
            threads.push(spawn(&shared, &format!("ahead-{i}"), move || prefetcher.run())?);
        }
        Running {
            workers: threads,
            log: Some(spawn(&shared, "log", move || log.run())?),
            verify: Some(spawn(&shared, "verify", move || verifier.run())?),
            house: Some(spawn(&shared, "housekeeper", move || keeper.run())?),
            house_in,
            space,
            cleaner: match cleaner {
                None => None,
                Some(cleaner) => {
                    let (wake, woken) = crossbeam_channel::bounded(1);
                    Some((wake, spawn(&shared, "cleaner", move || cleaner.run(&woken))?))
                }
            },
        }
    };
    let running = Mutex::new(Some(running));
    let (lost_records, scrub) = (found.lost_records, Arc::new(Scrub::new(options.scrub_rate_bytes)));
    let left_to_rekey = Arc::default();
    let maps = Maps::default();
    let vault = Vault { shared, running, workers, suite, index_lost, lost_records, left_to_rekey, scrub, maps };
    // Their first answers take the disk: begun and waited for here, where everything waits for it.
    vault.left_to_rekey();
    if let Err(fault) = vault.scrub_report() {
        log::warn!("how far the last scrub came cannot be read: {fault}");
    }
    Ok(Arc::new(vault))
}

fn spawn(shared: &Arc<Shared>, name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenFault> {
    let (shared, what) = (Arc::clone(shared), name.to_owned());
    let guarded = move || {
        // A thread that is gone acknowledges nothing more: that must be said, not waited for.
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            shared.give_up(&format!("the {what} thread panicked"));
        }
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(guarded).map_err(OpenFault::Backing)
}
