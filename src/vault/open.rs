//! Opens a vault: lock, key, lease, index, recovery, threads.
//!
//! Promise: one writer at a time (the lock), and a lease of its own (the epoch, durable before anything is written); the
//! vault that comes out holds the newest commit that holds, and has a checkpoint of it. Called by: `cli::mount`.
//! On failure: an `OpenFault` that says in a sentence why not; nothing was changed that would matter.

use super::place::{Everywhere, Place, Places, remove_if_there};
use super::recover::{From, Recovered, recover};
use super::reserve::RESERVE;
use super::shared::Shares;
use super::start::start;
use super::writer::is_full;
use super::{HEADER, OpenFault, OpenOptions, Vault, apply, root};
use crate::backing::{Backing, read_file};
use crate::base::id::{Epoch, Generation, SegmentId};
use crate::base::limits::BUDGET_BYTES_MIN;
use crate::base::world::World;
use crate::format::key;
use crate::format::record::Counters;
use crate::format::root::Root;
use crate::format::segment::{Covered, LogPosition};
use crate::index::{Index, IndexFault, RedbTable};
use crate::seal::{Header, MasterKey, Unlock, open_header};
use crate::segment::path;
use std::io;
use std::sync::Arc;

/// Largest header that is read.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Holds the lock of an open vault.
pub const LOCK: &str = "lock";

/// A vault that nobody else can open while this lives, and that has not been unlocked yet.
pub struct Locked {
    backing: Arc<dyn Backing>,
    header: Vec<u8>,
    lock: Box<dyn Send + Sync>,
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
    let header = match read_file(&*backing, HEADER, HEADER_BYTES_MAX) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(OpenFault::NotAVault),
        other => other?,
    };
    let lock = match backing.lock(LOCK) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            let holder = read_file(&*backing, LOCK, 64).unwrap_or_default();
            return Err(OpenFault::InUse { holder: String::from_utf8_lossy(&holder).trim().to_owned() });
        }
        other => other?,
    };
    Ok(Locked { backing, header, lock })
}

impl Locked {
    /// The text of the header.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Where the vault lies.
    pub fn backing(&self) -> &Arc<dyn Backing> {
        &self.backing
    }

    /// Opens it for use.
    pub fn open(self, unlock: &Unlock, options: &OpenOptions, world: Arc<dyn World>) -> Result<Arc<Vault>, OpenFault> {
        let (header, master) = open_header(&self.header, unlock)?;
        bring_up(self.backing, self.lock, header, master, options, world)
    }
}

/// Everything after the key.
fn bring_up(
    backing: Arc<dyn Backing>,
    lock: Box<dyn Send + Sync>,
    header: Header,
    master: MasterKey,
    options: &OpenOptions,
    world: Arc<dyn World>,
) -> Result<Arc<Vault>, OpenFault> {
    let vault = header.vault;
    let mut root = match root::read(&*backing, &master, vault)? {
        Some(root) => root,
        None if options.rebuild_roots => root::rebuild(&*backing, &master, header.suite, vault, Generation(0))?,
        None => return Err(OpenFault::RootsLost),
    };
    let places = Arc::new(Places::new(Arc::clone(&backing), options.emergency.clone(), vault));
    let emergency = emergency_in_force(&root, &places, options)?;
    let everywhere: Arc<dyn Backing> = Arc::new(Everywhere(Arc::clone(&places)));
    test_write(&*backing, &places, options)?;
    let shares = Shares::of(options.budget_bytes.max(BUDGET_BYTES_MIN));
    let (index, from) = open_index(&backing, &master, &header, &mut root, &world, shares.index_cache_bytes)?;
    let found = recover(&everywhere, &master, header.suite, vault, &index, &from)?;
    // The lease, before anything is written under it.
    root.epoch = Epoch(root.epoch.0.max(found.newest_epoch.0) + 1);
    root.generation = Generation(root.generation.0 + 1);
    let was_clean = root.clean;
    root.clean = false;
    root.emergency = emergency;
    root::write(&*backing, &root, &master, vault, &*world)?;
    for id in &found.empty_segments {
        remove_if_there(&*backing, &path(*id))?;
        if let Ok(away) = places.of(Place::Emergency) {
            remove_if_there(&*away, &path(*id))?;
        }
    }
    let allocated = apply::read_u64(&index, &key::total("bytes")).map_err(|e| OpenFault::Damaged(e.to_string()))?;
    let parts = Parts { backing, places, world, header, master, root, index, shares, found, allocated, was_clean };
    start(parts, options, lock)
}

/// What opening has found and made, before anything runs.
pub(super) struct Parts {
    pub backing: Arc<dyn Backing>,
    pub places: Arc<Places>,
    pub world: Arc<dyn World>,
    pub header: Header,
    pub master: MasterKey,
    pub root: Root,
    pub index: Index,
    pub shares: Shares,
    pub found: Recovered,
    pub allocated: u64,
    pub was_clean: bool,
}

/// The path of the emergency directory that this opening arms. One that the vault may have been using when it last ended
/// must be there: it may hold what was acknowledged.
fn emergency_in_force(root: &Root, places: &Places, options: &OpenOptions) -> Result<String, OpenFault> {
    let path = places.emergency_path().to_owned();
    if root.clean || root.emergency.is_empty() || options.without_emergency {
        return Ok(path);
    }
    let needed = || OpenFault::EmergencyNeeded { path: root.emergency.clone() };
    if path.is_empty() {
        return Err(needed());
    }
    match places.away() {
        // Moved, perhaps: what it holds of this vault says that it is the one.
        Ok(names) if path == root.emergency || !names.is_empty() => Ok(path),
        Ok(_) | Err(_) => Err(needed()),
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

fn index_path(number: u64) -> String {
    format!("index/{number:016x}")
}

/// The index as it was checkpointed; or, if it cannot be trusted, an empty one and the whole log to fill it.
fn open_index(
    backing: &Arc<dyn Backing>,
    master: &MasterKey,
    header: &Header,
    root: &mut Root,
    world: &Arc<dyn World>,
    cache_bytes: usize,
) -> Result<(Index, From), OpenFault> {
    let key = || master.pages(header.vault, "index", &[0; 16]);
    if root.index_file > 0 {
        let path = index_path(root.index_file);
        match RedbTable::open(backing, &path, key(), Arc::clone(world), cache_bytes) {
            Ok(table) => {
                let index = Index::new(Box::new(table));
                match covered(&index, root) {
                    Ok(Some(from)) => return Ok((index, from)),
                    Ok(None) => log::warn!("the index is older than the root: rebuilding it from the log"),
                    Err(why) => log::warn!("the index cannot be used ({why}): rebuilding it from the log"),
                }
            }
            Err(IndexFault::Io(e)) => return Err(OpenFault::Backing(e)),
            Err(IndexFault::Damaged(why)) => {
                log::warn!("the index cannot be used ({why}): rebuilding it from the log");
            }
        }
    }
    let old = root.index_file;
    root.index_file += 1;
    let path = index_path(root.index_file);
    let table = RedbTable::create(backing, &path, key(), Arc::clone(world), cache_bytes).map_err(index_fault)?;
    if old > 0 {
        match backing.remove(&index_path(old)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
    }
    // Inode 1 is the root directory; cookies 0 to 2 mean "start", "." and "..".
    let counters = Counters { next_ino: 2, next_cookie: 3, inodes: 0 };
    let trusted = root.covered;
    let from = From { covered: LogPosition::START, replay_from: SegmentId(0), counters, trusted };
    Ok((Index::new(Box::new(table)), from))
}

fn index_fault(e: IndexFault) -> OpenFault {
    match e {
        IndexFault::Io(e) => OpenFault::Backing(e),
        IndexFault::Damaged(why) => OpenFault::Damaged(why),
    }
}

/// What the index says it covers; `None` if the root knows of a newer checkpoint.
fn covered(index: &Index, root: &Root) -> Result<Option<From>, String> {
    let value = index.get(&key::total("log")).map_err(|e| e.to_string())?;
    let Some(value) = value else { return Err("it covers nothing".to_owned()) };
    let Covered { position, counters, replay_from } = Covered::decode(&value).map_err(|e| e.to_string())?;
    if position.seq == root.covered.seq && position != root.covered {
        return Err("it covers another history of the same length".to_owned());
    }
    let from = From { covered: position, replay_from, counters, trusted: root.covered };
    Ok((position.seq >= root.covered.seq).then_some(from))
}
