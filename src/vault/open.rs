//! Opens a vault: lock, key, lease, index, recovery, threads.
//!
//! Promise: one writer at a time (the lock), and a lease of its own (the epoch, durable before anything is written); the
//! vault that comes out holds the newest commit that holds, and has a checkpoint of it. Called by: `cli::mount`.
//! On failure: an `OpenFault` that says in a sentence why not; nothing was changed that would matter.

use super::log::Log;
use super::pin::{PinStore, Pins, Remembered};
use super::recover::{From, Recovered, recover};
use super::sealer::{self, Cursor};
use super::segments::Segments;
use super::shared::{Progress, Shared, Shares};
use super::window::Windows;
use super::{
    HeaderTexts, OpenFault, OpenOptions, Vault, apply, cache, checkpoint, flusher, header_file, root, stats, verifier,
};
use crate::backing::{Backing, ShadowBacking, read_file};
use crate::base::id::{Epoch, Generation, SegmentId};
use crate::base::limits::{BUDGET_BYTES_MIN, CHUNK_BYTES};
use crate::base::lock::Held;
use crate::base::world::World;
use crate::buffer::{Budget, Pool};
use crate::format::record::Counters;
use crate::format::root::Root;
use crate::format::segment::{Covered, LogPosition};
use crate::format::{FORMAT_VERSION, key};
use crate::index::{Index, IndexFault, RedbTable};
use crate::seal::{Header, MasterKey, Unlock, write_header};
use crate::segment::{SegmentContext, path};
use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, OnceLock, RwLock};

/// Holds the lock of an open vault.
pub const LOCK: &str = "lock";

/// A vault that nobody else can open while this lives, and that has not been unlocked yet.
pub struct Locked {
    backing: Arc<dyn Backing>,
    headers: HeaderTexts,
    lock: Box<dyn Send + Sync>,
    remembered: Remembered,
    /// Nothing of it is to be changed: not the pins either.
    looking: bool,
}

/// Opens a vault for use.
pub fn open(
    backing: Arc<dyn Backing>,
    unlock: &Unlock,
    options: &OpenOptions,
    world: Arc<dyn World>,
) -> Result<Arc<Vault>, OpenFault> {
    lock(backing)?.open(unlock, options, world)
}

/// Takes a vault's lock: the first half of `open`, for whoever derives the key between the two.
pub fn lock(backing: Arc<dyn Backing>) -> Result<Locked, OpenFault> {
    let headers = HeaderTexts::read(&*backing)?.ok_or(OpenFault::NotAVault)?;
    let lock = match backing.lock(LOCK) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            let holder = read_file(&*backing, LOCK, 64).unwrap_or_default();
            return Err(OpenFault::InUse { holder: String::from_utf8_lossy(&holder).trim().to_owned() });
        }
        other => other?,
    };
    Ok(Locked { backing, headers, lock, remembered: Remembered::default(), looking: false })
}

impl Locked {
    /// The texts of the header and its copy.
    pub fn headers(&self) -> &HeaderTexts {
        &self.headers
    }

    /// Where the vault lies.
    pub fn backing(&self) -> &Arc<dyn Backing> {
        &self.backing
    }

    /// The same vault, to be looked at: everything that opening and closing write stays in memory.
    #[must_use]
    pub fn shadow(self) -> Locked {
        Locked { backing: Arc::new(ShadowBacking::new(self.backing)), looking: true, ..self }
    }

    /// The same vault, to be opened only if it is not behind what these pins remember of it, or is of the accepted generation.
    #[must_use]
    pub fn remembered(self, pins: Vec<PinStore>, accepted: Option<Generation>) -> Locked {
        Locked { remembered: Remembered { pins, accepted }, ..self }
    }

    /// Opens it for use.
    pub fn open(self, unlock: &Unlock, options: &OpenOptions, world: Arc<dyn World>) -> Result<Arc<Vault>, OpenFault> {
        let opened = self.headers.open(unlock)?;
        self.headers.mend(&*self.backing, &opened);
        let remembered = if self.looking { self.remembered.read_only() } else { self.remembered };
        let pins = Pins::read(remembered, &opened.master, opened.header.vault);
        bring_up(self.backing, self.lock, pins, opened.header, opened.master, options, world)
    }
}

/// Everything after the key.
fn bring_up(
    backing: Arc<dyn Backing>,
    lock: Box<dyn Send + Sync>,
    pins: Pins,
    mut header: Header,
    master: MasterKey,
    options: &OpenOptions,
    world: Arc<dyn World>,
) -> Result<Arc<Vault>, OpenFault> {
    let vault = header.vault;
    let held = root::read(&*backing, &master, vault)?;
    let anew = held.is_none();
    let mut root = match held {
        Some(root) => root,
        None if options.rebuild_roots => root::rebuild(&*backing, &master, header.suite, vault)?,
        None => return Err(OpenFault::RootsLost),
    };
    if !anew {
        pins.judge(&root)?;
    }
    pins.raise(&mut root);
    let shares = Shares::of(options.budget_bytes.max(BUDGET_BYTES_MIN));
    let old_index = root.index_file;
    let opened = open_index(&backing, &master, &header, &mut root, &world, shares.index_cache_bytes, options)?;
    let OpenedIndex { index, from, lost: index_lost } = opened;
    let found = recover(&backing, &master, header.suite, vault, &index, &from).inspect_err(|_| {
        // Nothing is in it, and it must not be taken for the newest by whoever has lost the roots.
        if old_index != root.index_file {
            let _ = backing.remove(&index_path(root.index_file));
        }
    })?;
    if anew {
        pins.judge_log(found.position.seq)?;
    }
    upgrade(&*backing, &mut header, &master)?;
    // The lease, before anything is written under it.
    root.epoch = Epoch(root.epoch.0.max(found.newest_epoch.0) + 1);
    root.generation = Generation(root.generation.0 + 1);
    let was_clean = root.clean;
    root.clean = false;
    root::write(&*backing, &root, &master, vault, &*world)?;
    pins.remember(&root);
    for id in &found.empty_segments {
        backing.remove(&path(*id))?;
    }
    // Only now that the log gave another: what it replaces may know of segments that are lost.
    if old_index != root.index_file && old_index > 0 {
        match backing.remove(&index_path(old_index)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    let allocated = apply::read_u64(&index, &key::total("bytes")).map_err(|e| OpenFault::Damaged(e.to_string()))?;
    let parts =
        Parts { backing, world, header, master, root, pins, index, index_lost, shares, found, allocated, was_clean };
    start(parts, options, lock)
}

/// Makes a vault of an older format one of ours, before anything is written that an older strongroom would misread: it
/// refuses the whole vault then, in one sentence.
fn upgrade(backing: &dyn Backing, header: &mut Header, master: &MasterKey) -> Result<(), OpenFault> {
    if header.format == FORMAT_VERSION {
        return Ok(());
    }
    log::info!("the vault is of format {}: it becomes one of format {FORMAT_VERSION}", header.format);
    header.format = FORMAT_VERSION;
    let text = write_header(header, master)?;
    Ok(header_file::store(backing, &text)?)
}

struct Parts {
    backing: Arc<dyn Backing>,
    world: Arc<dyn World>,
    header: Header,
    master: MasterKey,
    root: Root,
    pins: Pins,
    index: Index,
    index_lost: Option<String>,
    shares: Shares,
    found: Recovered,
    allocated: u64,
    was_clean: bool,
}

fn index_path(number: u64) -> String {
    format!("index/{number:016x}")
}

/// An index, and where the log goes on from it.
struct OpenedIndex {
    index: Index,
    from: From,
    /// Why it had to be begun anew, if there was one that should have been good.
    lost: Option<String>,
}

/// The index as it was checkpointed; or, if it cannot be trusted or is not wanted, an empty one and the whole log to fill
/// it. The old one stays until that is done.
fn open_index(
    backing: &Arc<dyn Backing>,
    master: &MasterKey,
    header: &Header,
    root: &mut Root,
    world: &Arc<dyn World>,
    cache_bytes: usize,
    options: &OpenOptions,
) -> Result<OpenedIndex, OpenFault> {
    let key = || master.pages(header.vault, "index", &[0; 16]);
    let mut lost = None;
    if root.index_file > 0 && !options.rebuild_index {
        let path = index_path(root.index_file);
        let why = match RedbTable::open(backing, &path, key(), Arc::clone(world), cache_bytes) {
            Ok(table) => {
                let index = Index::new(Box::new(table));
                match covered(&index, root) {
                    Ok(Some(from)) => return Ok(OpenedIndex { index, from, lost }),
                    Ok(None) => Some("it is older than the root".to_owned()),
                    // A crash before its first checkpoint: nothing was ever in it.
                    Err(NotCovered::Nothing) => None,
                    Err(NotCovered::Doubt(why)) => Some(why),
                }
            }
            Err(IndexFault::Io(e)) => return Err(OpenFault::Backing(e)),
            Err(IndexFault::Damaged(why)) => Some(why),
        };
        let shown = why.as_deref().unwrap_or("it covers nothing yet");
        log::warn!("the index cannot be used ({shown}): rebuilding it from the log");
        lost = why;
    }
    root.index_file += 1;
    let path = index_path(root.index_file);
    let table = RedbTable::create(backing, &path, key(), Arc::clone(world), cache_bytes).map_err(index_fault)?;
    // Inode 1 is the root directory; cookies 0 to 2 mean "start", "." and "..".
    let counters = Counters { next_ino: 2, next_cookie: 3, inodes: 0 };
    let trusted = root.covered;
    let from = From { covered: LogPosition::START, replay_from: SegmentId(0), counters, trusted };
    Ok(OpenedIndex { index: Index::new(Box::new(table)), from, lost })
}

fn index_fault(e: IndexFault) -> OpenFault {
    match e {
        IndexFault::Io(e) => OpenFault::Backing(e),
        IndexFault::Damaged(why) => OpenFault::Damaged(why),
    }
}

/// Why an index does not say where to go on.
enum NotCovered {
    Nothing,
    Doubt(String),
}

/// What the index says it covers; `None` if the root knows of a newer checkpoint.
fn covered(index: &Index, root: &Root) -> Result<Option<From>, NotCovered> {
    let value = index.get(&key::total("log")).map_err(|e| NotCovered::Doubt(e.to_string()))?;
    let Some(value) = value else {
        // With a checkpoint of the root's it should say so.
        let never = root.covered == LogPosition::START;
        return Err(if never { NotCovered::Nothing } else { NotCovered::Doubt("it covers nothing".to_owned()) });
    };
    let covered = Covered::decode(&value).map_err(|e| NotCovered::Doubt(e.to_string()))?;
    let Covered { position, counters, replay_from } = covered;
    if position.seq == root.covered.seq && position != root.covered {
        return Err(NotCovered::Doubt("it covers another history of the same length".to_owned()));
    }
    let from = From { covered: position, replay_from, counters, trusted: root.covered };
    Ok((position.seq >= root.covered.seq).then_some(from))
}

fn start(parts: Parts, options: &OpenOptions, lock: Box<dyn Send + Sync>) -> Result<Arc<Vault>, OpenFault> {
    let Parts { backing, world, header, master, root, pins, index, index_lost, shares, found, allocated, was_clean } =
        parts;
    let (suite, vault, epoch) = (header.suite, header.vault, root.epoch);
    let fresh = {
        let (master, world) = (master.clone(), Arc::clone(&world));
        move |id| {
            let mut salt = [0; 16];
            world.fill(&mut salt);
            SegmentContext::new(&master, suite, vault, epoch, id, salt)
        }
    };
    let first = SegmentId(found.newest_segment.0 + 1);
    // A worker's job or a reader's look-ahead each holds bytes of the budget, so this queue is bounded by it.
    let (jobs_in, jobs) = crossbeam_channel::unbounded();
    let (sealed_in, sealed) = crossbeam_channel::bounded(32);
    let (wake_in, wake) = crossbeam_channel::bounded(1);
    let (verify_in, verify) = crossbeam_channel::bounded(shares.verify_lag_groups);
    let (house_in, house) = crossbeam_channel::bounded(4);
    let (prepare_in, prepare) = crossbeam_channel::bounded(1);
    let (flush_in, flushes) = crossbeam_channel::bounded(1);
    let shared = Arc::new(Shared {
        stats: stats::Stats::default(),
        segments: Segments::new(Arc::clone(&backing), master, suite, vault),
        world,
        backing,
        index,
        compression: options.compression.unwrap_or(header.compression),
        verify: options.verify,
        flush_interval: options.flush_interval,
        read_only: options.read_only,
        shares,
        quota_bytes: header.quota_bytes,
        quota_inodes: header.quota_inodes,
        gate: RwLock::new(1),
        batch: Mutex::default(),
        progress: Mutex::new(Progress { durable: 0, retired: 0, waiters: Vec::new() }),
        progressed: Condvar::new(),
        in_flight: Mutex::default(),
        next_ino: found.counters.next_ino.into(),
        next_cookie: found.counters.next_cookie.into(),
        inodes: (found.counters.inodes as i64).into(),
        allocated: allocated.into(),
        dirty: Budget::new(shares.dirty_bytes),
        near_quota: Mutex::default(),
        making_segment: Mutex::default(),
        cut_at_bytes: shares.dirty_bytes / 2,
        records_limit: (shares.budget_bytes / 32).clamp(1 << 20, 8 << 20) as usize,
        pool: Pool::new(CHUNK_BYTES, shares.dirty_bytes / 4),
        sealed_pool: Pool::new(CHUNK_BYTES + 4096, 8 << 20),
        group_buffers: Mutex::default(),
        cache: cache::FrameCache::new(shares.cache_bytes),
        windows: Windows::new(shares.cache_bytes / 8),
        files: Mutex::new(HashMap::new()),
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
        committing: false.into(),
        verifying: 0.into(),
        last_op_ms: 0.into(),
        committed: Mutex::new(found.position),
        newest_begun: found.newest_segment.0.into(),
        log_since_checkpoint: 0.into(),
        dead: Mutex::new(found.dead.clone()),
        root: Mutex::new(root),
        pins,
        space: Mutex::new(None),
        failed: OnceLock::new(),
    });
    let now = shared.world.now();
    shared.stats.event(
        now,
        if was_clean {
            "init: closed cleanly before".to_owned()
        } else {
            let Recovered { commits, dropped_frames, rotten_commits, .. } = &found;
            format!(
                "recovering: {commits} commits taken in ({rotten_commits} with damage), {dropped_frames} frames dropped"
            )
        },
    );
    if found.lost_records > 0 {
        let lost = found.lost_records;
        shared.stats.error(
            now,
            format!(
                "recovery: {lost} frames or groups of the log are damaged that held changes of names and attributes: \
                 these changes are lost; strongroom check says what they left behind"
            ),
        );
    }
    // What was recovered is checkpointed before anything new, so that the old tail is never walked again.
    shared.index.seal_direct();
    shared.index.seal_derived();
    checkpoint::store(&shared, found.position, found.counters, first, false)
        .map_err(|e| OpenFault::Damaged(format!("the first checkpoint: {e}")))?;
    shared.stats.event(shared.world.now(), "ready".to_owned());

    let mut threads = Vec::new();
    let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
        let (shared, what) = (Arc::clone(&shared), name.to_owned());
        let guarded = move || {
            // A thread that is gone acknowledges nothing more: that must be said, not waited for.
            if catch_unwind(AssertUnwindSafe(body)).is_err() {
                shared.fail(&format!("the {what} thread panicked"));
            }
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(guarded).map_err(OpenFault::Backing)
    };
    let workers = options.workers.max(1);
    for i in 0..workers {
        let shared = Arc::clone(&shared);
        threads.push(spawn(&format!("seal-{i}"), Box::new(move || sealer::work(&shared)))?);
    }
    let log = Log::new(Arc::clone(&shared), sealed, wake, verify_in, prepare_in, flush_in, found.position);
    let log_thread = spawn("log", Box::new(move || log.run()))?;
    let s = Arc::clone(&shared);
    let flush_thread = spawn("flush", Box::new(move || flusher::run(&s, &flushes)))?;
    let s = Arc::clone(&shared);
    let to_house = house_in.clone();
    let verify_thread = spawn("verify", Box::new(move || verifier::run(&s, &verify, &to_house)))?;
    let s = Arc::clone(&shared);
    let house_thread = spawn("housekeeper", Box::new(move || checkpoint::run(&s, &house, &prepare)))?;
    let running = super::Running {
        workers: threads,
        log: log_thread,
        flush: flush_thread,
        verify: verify_thread,
        house: house_thread,
        house_in,
    };
    let (running, lock) = (Mutex::new(Some(running)), Mutex::new(Some(lock)));
    let vault = Vault { shared, running, lock, workers, suite, index_lost };
    debug_assert!(vault.running.held().is_some());
    Ok(Arc::new(vault))
}
