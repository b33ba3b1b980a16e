//! Opens a vault: lock, key, lease, index, recovery, threads.
//!
//! Promise: one writer at a time (the lock), and a lease of its own (the epoch, durable before anything is written); the
//! vault that comes out holds the newest commit that holds, and has a checkpoint of it. Called by: `cli::mount`.
//! On failure: an `OpenFault` that says in a sentence why not; nothing was changed that would matter.

use super::header_file::OpenedHeader;
use super::pin::{PinStore, Pins, Remembered};
use super::place::{EmergencyDir, Everywhere, LOCK, Place, Places, open_if_there, remove_if_there};
use super::rebuild::{Anew, Sources, make_anew};
use super::recover::{From, Recovered, recover};
use super::reopen::Home;
use super::reserve::RESERVE;
use super::shared::Shares;
use super::start::start;
use super::writer::is_full;
use super::{HeaderTexts, OpenFault, OpenOptions, Vault, apply, header_file, root, snapshot};
use crate::backing::{Backing, Replaceable, ShadowBacking, read_file};
use crate::base::id::{CommitSeq, Epoch, Generation, SegmentId, VaultId};
use crate::base::limits::{BUDGET_BYTES_MIN, SEGMENT_NUMBER_MAX};
use crate::base::world::World;
use crate::format::root::Root;
use crate::format::segment::{Covered, LogPosition, SegmentInfo};
use crate::format::{FORMAT_VERSION, key};
use crate::index::{Index, IndexFault, RedbTable};
use crate::seal::{Header, MasterKey, Unlock, VaultKeys, header_mark, write_header};
use crate::segment::{Walk, first_header, path};
use std::io;
use std::sync::Arc;

/// Segments that an emergency directory which is left behind may hold, at the very most.
const LEFT_BEHIND_SEGMENTS: u64 = 1 << 32;

/// A vault that nobody else can open while this lives, and that has not been unlocked yet.
pub struct Locked {
    pub(super) backing: Arc<dyn Backing>,
    pub(super) headers: HeaderTexts,
    pub(super) lock: Box<dyn Send + Sync>,
    pub(super) remembered: Remembered,
    find: Option<Find>,
    /// The emergency directory, unless the options name one; and whether to do without one.
    emergency: (Option<EmergencyDir>, bool),
    /// Nothing of it is to be changed: not the pins either.
    looking: bool,
}

/// Gives the emergency directory that lies at a path, if there is one.
pub type Find = fn(&str) -> Option<EmergencyDir>;

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
            return Err(OpenFault::InUse { holder: first_line(&holder) });
        }
        other => other?,
    };
    let remembered = Remembered::default();
    Ok(Locked { backing, headers, lock, remembered, find: None, emergency: (None, false), looking: false })
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
        Locked { backing: Arc::new(ShadowBacking::new(self.backing).but(LOCK)), looking: true, ..self }
    }

    /// The same vault, to be opened only if it is not behind what these pins remember of it, or is of the accepted generation.
    #[must_use]
    pub fn remembered(self, pins: Vec<PinStore>, accepted: Option<Generation>) -> Locked {
        Locked { remembered: Remembered { pins, accepted, only_looks: self.remembered.only_looks }, ..self }
    }

    /// The same vault, to be looked at although it may be an older copy: that is reported, and not refused. Nothing is
    /// written, neither to the vault nor to a pin.
    #[must_use]
    pub fn showing_older(self) -> Locked {
        let locked = self.shadow();
        Locked { remembered: Remembered { only_looks: true, ..locked.remembered }, ..locked }
    }

    /// The same vault; if it needs the emergency directory that it was last used with, and none is named, it is looked for.
    #[must_use]
    pub fn finding(self, find: Find) -> Locked {
        Locked { find: Some(find), ..self }
    }

    /// The path of the emergency directory that `open` will look for, unless one is named or it is to do without: for whoever
    /// must say beforehand what may be opened. Of what lies on disk, only what opens under the key is read.
    pub fn needs(&self, unlock: &Unlock) -> Result<Option<String>, OpenFault> {
        let opened = self.opened(unlock)?;
        Ok(needed(&*self.backing, &opened.keys, opened.header.vault)?)
    }

    /// The same vault, with an emergency directory, or without the one that it may need.
    #[must_use]
    pub fn beside(self, emergency: Option<EmergencyDir>, without: bool) -> Locked {
        Locked { emergency: (emergency, without), ..self }
    }

    /// Opens it for use.
    pub fn open(self, unlock: &Unlock, options: &OpenOptions, world: Arc<dyn World>) -> Result<Arc<Vault>, OpenFault> {
        let opened = self.opened(unlock)?;
        let mut options = options.clone();
        options.emergency = options.emergency.or(self.emergency.0);
        options.without_emergency |= self.emergency.1;
        options.leave_away |= self.looking;
        let vault = opened.header.vault;
        let root_holds = root::read_or_say(&*self.backing, &opened.keys, vault)?.is_some();
        self.headers.mend(&*self.backing, &opened, root_holds);
        if options.emergency.is_none()
            && !options.without_emergency
            && let Some(path) = needed(&*self.backing, &opened.keys, vault)?
        {
            options.emergency = self.find.and_then(|find| find(&path));
        }
        if self.looking {
            options.emergency = options.emergency.map(EmergencyDir::shadow);
        }
        let remembered = self.remembered.and_in(options.emergency.as_ref(), vault);
        let remembered = if self.looking { remembered.read_only() } else { remembered };
        let pins = Pins::read(remembered, &opened.keys, vault);
        let unread = self.headers.into_unread();
        bring_up(self.backing, self.lock, pins, opened.header, opened.keys, &options, world).map_err(|fault| {
            // The other file, which could not be read, may be the newer one.
            match (fault, unread) {
                (OpenFault::HeaderPutBack { .. } | OpenFault::OlderKey { .. }, Some(e)) => OpenFault::Backing(e),
                (fault, _) => fault,
            }
        })
    }

    /// Unlocks the header. Where one of its files could not be read and the other does not open, the error of the disk is what counts.
    pub(super) fn opened(&self, unlock: &Unlock) -> Result<OpenedHeader, OpenFault> {
        self.headers.open(unlock).map_err(|fault| self.headers.or_unread(fault))
    }
}

/// What stands behind it is of an earlier holder, who wrote more.
fn first_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).lines().next().unwrap_or_default().trim().to_owned()
}

/// The path of the emergency directory that a vault may need: it was armed, and the vault was not closed with all at home.
fn needed(backing: &dyn Backing, keys: &VaultKeys, vault: VaultId) -> io::Result<Option<String>> {
    let root = root::read(backing, keys, vault)?;
    Ok(root.filter(|r| !r.clean && !r.emergency.is_empty()).map(|r| r.emergency))
}

/// Everything after the key.
fn bring_up(
    backing: Arc<dyn Backing>,
    lock: Box<dyn Send + Sync>,
    pins: Pins,
    mut header: Header,
    keys: VaultKeys,
    options: &OpenOptions,
    world: Arc<dyn World>,
) -> Result<Arc<Vault>, OpenFault> {
    let vault = header.vault;
    // Whoever leaves it as it is has nothing to go on with.
    let home = options.home.clone().filter(|_| !options.read_only && !options.leave_away);
    let (backing, home): (Arc<dyn Backing>, _) = match home {
        None => (backing, None),
        Some(dir) => {
            let replaceable = Replaceable::new(backing);
            (Arc::clone(&replaceable) as _, Some(Home::new(dir, replaceable)))
        }
    };
    let held = root::read_or_say(&*backing, &keys, vault)?;
    let anew = held.is_none();
    let mut root = match held {
        Some(root) => root,
        None if options.rebuild_roots => root::rebuild(&*backing, &keys, header.suite, vault)?,
        None => return Err(OpenFault::RootsLost),
    };
    if !anew {
        pins.judge(&root)?;
    }
    judge_header(&root, &header, keys.current())?;
    let known_leases = if anew { Epoch(u64::MAX) } else { root.epoch };
    pins.raise(&mut root);
    if root.epoch > known_leases {
        // A newer state of the vault has given them out, which this one was copied before.
        root.other_leases.add(known_leases, root.epoch);
    }
    let places = Arc::new(Places::new(Arc::clone(&backing), options.emergency.clone(), vault));
    let emergency = {
        // A root made anew does not know.
        let is_ours = |lease: Epoch| anew || lease <= root.epoch && !root.other_leases.contains(lease);
        emergency_in_force(&root, &is_ours, &places, options)?
    };
    let foreign = places.foreign();
    let everywhere: Arc<dyn Backing> = Arc::new(Everywhere(Arc::clone(&places)));
    test_write(&*backing, &places, options)?;
    let shares = Shares::of(options.budget_bytes.max(BUDGET_BYTES_MIN));
    let old_index = root.index_file;
    let from = Sources {
        backing: &backing,
        everywhere: &everywhere,
        header: &header,
        keys: &keys,
        root: &root.clone(),
        root_is_new: anew,
        salvage: options.salvage,
        whole_log: options.whole_log,
    };
    let opened = open_index(&from, &mut root, &world, shares.index_cache_bytes, options);
    let opened = opened.inspect_err(|_| {
        // Nothing is in it, and it must not be taken for the newest by whoever has lost the roots.
        if old_index != root.index_file {
            let _ = backing.remove(&index_path(root.index_file));
        }
    })?;
    let OpenedIndex { index, found, lost: index_lost, spared, made } = opened;
    if spared && !options.salvage && found.lost_records > 0 {
        let _ = backing.remove(&index_path(root.index_file));
        return Err(OpenFault::Damaged("the log has lost what the index still knows, so the index stays".to_owned()));
    }
    if anew {
        pins.judge_log(found.position.seq)?;
    }
    upgrade(&*backing, &mut header, keys.current())?;
    let mut found = found;
    if !root.clean && !root.emergency.is_empty() && options.without_emergency {
        // What was left behind may come back one day: its numbers must never be those of what is written from now on.
        let skipped = found.newest_segment.0.checked_add(LEFT_BEHIND_SEGMENTS).filter(|n| *n <= SEGMENT_NUMBER_MAX);
        let used_up = || OpenFault::Damaged("the numbers of segments are used up".to_owned());
        found.newest_segment.0 = skipped.ok_or_else(used_up)?;
    }
    // Nor those of what a newer state of the vault has left there.
    found.newest_segment = found.newest_segment.max(foreign.last().copied().unwrap_or_default());
    // The lease, before anything is written under it.
    root.epoch = Epoch(root.epoch.0.max(found.newest_epoch.0) + 1);
    root.generation = Generation(root.generation.0 + 1);
    let was_clean = root.clean;
    root.clean = false;
    root.emergency = emergency;
    root.header = Some(header_mark(&header, keys.current()));
    root::write(&*backing, &root, &keys, vault, &*world)?;
    pins.remember(&root);
    pins.keep_header(&write_header(&header, keys.current())?);
    if !options.read_only {
        match snapshot::make_ready(&*backing, found.position.seq) {
            // It takes a mount to delete something.
            Err(e) if is_full(&e) => log::warn!("the directory of snapshots: {e}"),
            other => other?,
        }
    }
    for id in &found.empty_segments {
        // Where it was seen empty, and nowhere else.
        if places.is_away(*id) {
            remove_if_there(&*places.of(Place::Emergency)?, &path(*id))?;
            places.came_home(*id);
        } else {
            remove_if_there(&*backing, &path(*id))?;
        }
    }
    // Only now that the log gave another: what it replaces may know of segments that are lost.
    if old_index != root.index_file && old_index > 0 {
        match backing.remove(&index_path(old_index)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    let allocated = apply::read_u64(&index, &key::total("bytes"))?;
    let parts = Parts {
        backing,
        home,
        places,
        world,
        header,
        keys,
        root,
        pins,
        index,
        index_lost,
        shares,
        found,
        allocated,
        was_clean,
        made,
    };
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
    header.revision += 1;
    let text = write_header(header, master)?;
    Ok(header_file::store(backing, &text)?)
}

/// Refuses a header that is older than the one that the root names, or another one of the same revision: it was put back.
/// One that is newer is right: a crash came between the two.
pub(super) fn judge_header(root: &Root, header: &Header, master: &MasterKey) -> Result<(), OpenFault> {
    let (Some(known), found) = (root.header, header_mark(header, master)) else { return Ok(()) };
    if found.revision < known.revision || found.revision == known.revision && found.mac != known.mac {
        return Err(OpenFault::HeaderPutBack { known: known.revision, found: found.revision });
    }
    Ok(())
}

/// What opening has found and made, before anything runs.
pub(super) struct Parts {
    pub backing: Arc<dyn Backing>,
    pub home: Option<Home>,
    pub places: Arc<Places>,
    pub world: Arc<dyn World>,
    pub header: Header,
    pub keys: VaultKeys,
    pub root: Root,
    pub pins: Pins,
    pub index: Index,
    pub index_lost: Option<String>,
    pub shares: Shares,
    pub found: Recovered,
    pub allocated: u64,
    pub was_clean: bool,
    /// How the index was made anew, if it was.
    pub made: Option<Made>,
}

/// The path of the emergency directory that this opening arms. One that the vault may have been using when it last ended
/// must be there: it may hold what was acknowledged.
fn emergency_in_force(
    root: &Root,
    is_ours: &dyn Fn(Epoch) -> bool,
    places: &Places,
    options: &OpenOptions,
) -> Result<String, OpenFault> {
    let path = places.emergency_path().to_owned();
    if root.clean || root.emergency.is_empty() || options.without_emergency {
        if let Err(e) = places.has(Place::Emergency).then(|| places.look_away(is_ours)).transpose() {
            log::warn!("the emergency directory {path}: {e}; it is looked for again when it is needed");
        }
        return Ok(path);
    }
    let needed = || OpenFault::EmergencyNeeded { path: root.emergency.clone() };
    if path.is_empty() {
        return Err(needed());
    }
    // Moved, perhaps: what stands in it says that this vault has used it. An equal path says nothing, for what should be
    // mounted there may not be.
    match places.was_armed() {
        Ok(true) => {
            places.look_away(is_ours).map_err(|e| match e.kind() {
                io::ErrorKind::ResourceBusy => OpenFault::Backing(io::Error::new(
                    e.kind(),
                    format!("emergency directory {}: {e}", places.emergency_path()),
                )),
                _ => needed(),
            })?;
            match places.away().len() {
                0 => {
                    log::warn!("{path} holds no segment of the vault: if the last mount wrote there, that data is gone")
                }
                1 => log::warn!("{path} holds 1 segment of the vault"),
                n => log::warn!("{path} holds {n} segments of the vault"),
            }
            Ok(path)
        }
        Ok(false) | Err(_) => Err(needed()),
    }
}

/// One real test write, verified: a vault that cannot be written to had better be found out now. A full disk is no reason
/// not to open: it takes a mount to delete something.
fn test_write(backing: &dyn Backing, places: &Places, options: &OpenOptions) -> Result<(), OpenFault> {
    if options.read_only {
        return Ok(());
    }
    match places.probe(Place::Primary) {
        Err(e) if is_full(&e) => Ok(remove_if_there(backing, RESERVE)?),
        other => Ok(other?),
    }
}

pub(super) fn index_path(number: u64) -> String {
    format!("index/{number:016x}")
}

/// An index, with what the log says beyond its checkpoint.
struct OpenedIndex {
    index: Index,
    found: Recovered,
    /// Why it had to be begun anew, if there was one that should have been good.
    lost: Option<String>,
    /// Whether there is one that is good, and was put aside on request.
    spared: bool,
    /// How it was made anew, if it was.
    made: Option<Made>,
}

/// How an index was made anew.
pub(super) struct Made {
    /// From this snapshot; else from the beginning of the log.
    pub snapshot: Option<CommitSeq>,
    /// What is to be told of the snapshots that did not serve.
    pub said: Vec<String>,
}

/// The index as it was checkpointed, and the log behind it taken in; or, if it cannot be trusted or is not wanted, one that is
/// made anew. The old one stays until that is done.
fn open_index(
    from: &Sources<'_>,
    root: &mut Root,
    world: &Arc<dyn World>,
    cache_bytes: usize,
    options: &OpenOptions,
) -> Result<OpenedIndex, OpenFault> {
    let (backing, header) = (from.backing, from.header);
    let key = || from.keys.current().pages(header.vault, "index", &[0; 16]);
    let (mut lost, mut spared) = (None, false);
    if root.index_file > 0 {
        let path = index_path(root.index_file);
        let why = match RedbTable::open(backing, &path, key(), Arc::clone(world), cache_bytes) {
            Ok(table) => {
                let index = Index::new(Box::new(table));
                match covered(&index, root) {
                    Ok(Some(at)) if !options.rebuild_index => {
                        let at = From { salvage: options.salvage, ..at };
                        let found = keys_learnt(&index, from.everywhere, header, from.keys).and_then(|()| {
                            recover(from.everywhere, from.keys, header.suite, header.vault, &index, &at)
                        });
                        match found {
                            Ok(found) => return Ok(OpenedIndex { index, found, lost, spared, made: None }),
                            // A page that taking the log in needs.
                            Err(OpenFault::Index(why)) => Some(why),
                            Err(fault) => return Err(fault),
                        }
                    }
                    Ok(Some(_)) => {
                        spared = true;
                        None
                    }
                    Ok(None) => Some("it is older than the root".to_owned()),
                    // A crash before its first checkpoint: nothing was ever in it.
                    Err(NotCovered::Nothing) => None,
                    Err(NotCovered::Doubt(why)) => Some(why),
                    Err(NotCovered::Unread(_)) if options.rebuild_index => {
                        spared = true;
                        None
                    }
                    Err(NotCovered::Unread(fault)) => return Err(fault),
                }
            }
            // It may know of more than the log does, so it is put aside only for a log that has lost nothing.
            Err(IndexFault::Io(e)) if options.rebuild_index => {
                log::error!("{path} could not be read: {e}");
                spared = true;
                None
            }
            Err(IndexFault::Io(e)) => return Err(OpenFault::Backing(e)),
            Err(IndexFault::Damaged(why)) => Some(why),
        };
        let shown = why.as_deref().unwrap_or(if spared { "asked to" } else { "it covers nothing yet" });
        log::warn!("the index is not used ({shown}): rebuilding it from the log");
        lost = why.filter(|_| !options.rebuild_index);
    }
    root.index_file += 1;
    let path = index_path(root.index_file);
    match backing.make_dir("index") {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e.into()),
        // Somebody has removed it.
        Ok(()) => backing.sync_dir("")?,
        Err(_) => {}
    }
    let new_table =
        || RedbTable::create(backing, &path, key(), Arc::clone(world), cache_bytes).map_err(OpenFault::from);
    let Anew { index, found, snapshot, said } = make_anew(from, &new_table)?;
    Ok(OpenedIndex { index, found, lost, spared, made: Some(Made { snapshot, said }) })
}

/// Why an index does not say where to go on.
pub(super) enum NotCovered {
    /// It never had a checkpoint.
    Nothing,
    /// What it says cannot be relied on.
    Doubt(String),
    /// The disk did not give it: it may be as good as ever.
    Unread(OpenFault),
}

/// Where a rekey was stopped between giving a segment that it sealed anew its name and telling the index: the index learns it.
pub(super) fn keys_learnt(
    index: &Index,
    backing: &Arc<dyn Backing>,
    header: &Header,
    keys: &VaultKeys,
) -> Result<(), OpenFault> {
    if keys.old().next().is_none() { Ok(()) } else { learn_keys(index, backing, header, keys) }
}

/// The same, whether the header has old keys or not: a snapshot may be of before the last segment was sealed anew.
pub(super) fn learn_keys(
    index: &Index,
    backing: &Arc<dyn Backing>,
    header: &Header,
    keys: &VaultKeys,
) -> Result<(), OpenFault> {
    let mut next = vec![key::SEGMENT];
    loop {
        let page = index.scan(&[key::SEGMENT], &next, 512)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        next = [&last[..], &[0]].concat();
        let mut learnt = Vec::new();
        for (k, value) in &page {
            let (Ok((_, id, _)), Ok(known)) = (key::split(k), SegmentInfo::decode(value)) else { continue };
            if known.key == keys.number() {
                continue;
            }
            let Some(file) = open_if_there(&**backing, &path(SegmentId(id)))? else { continue };
            // Most are as they were.
            let first = twice(|| first_header(&*file, SegmentId(id)));
            if let Ok(Some(h)) = &first
                && (h.epoch, h.salt, h.key) == (known.epoch, known.salt, known.key)
            {
                continue;
            }
            let mut walk = Walk::new(file, SegmentId(id), header.suite, header.vault);
            if let Err(e) = twice(|| walk.next(keys)) {
                // A bad block must not keep the whole vault closed: most such segments are as the index knows them.
                log::error!("segment {id} may have been sealed anew, and cannot be read: {e}");
                continue;
            }
            // What is damaged is for its readers to find.
            if let Some(found) = walk.context().map(|context| context.info()).filter(|info| info.key == keys.number()) {
                let SegmentInfo { data_bytes, live_bytes, .. } = known;
                learnt.push((k.clone(), Some(SegmentInfo { data_bytes, live_bytes, ..found }.encode())));
            }
        }
        index.change(learnt);
    }
}

/// Tries once more what failed: a disk may err once.
fn twice<T, E>(mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    attempt().or_else(|_| attempt())
}

/// What the index says it covers; `None` if the root knows of a newer checkpoint.
pub(super) fn covered(index: &Index, root: &Root) -> Result<Option<From>, NotCovered> {
    let value = index.get(&key::total("log")).map_err(|e| match e {
        IndexFault::Damaged(why) => NotCovered::Doubt(why),
        IndexFault::Io(e) => NotCovered::Unread(e.into()),
    })?;
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
    let (trusted, salvage, rebuilding) = (root.covered, false, false);
    let from = From { covered: position, replay_from, counters, trusted, salvage, rebuilding };
    Ok((position.seq >= root.covered.seq).then_some(from))
}
