//! The durable table: redb over encrypted pages.
//!
//! Promise: what `apply` acknowledged is there after a power cut, an apply cut short is there whole or not at all, and
//! no answer ever comes from a page that is not what was written.
//! Why it holds: two-phase commits, an atomic header page, and pages bound to their place (`pages`). A panic inside the
//! database (it trusts what it reads) is caught, and the table says `Damaged` from then on.
//! Called by: `Index`. Takes: the writer's lock for the length of an apply; readers share one snapshot, renewed by each
//! apply, and hold no lock of ours while they read.
//! On failure: a failed write leaves the snapshot readable and the file as it was; the next apply opens the file anew.

use super::pages::{Durable, Pages, Storage};
use super::table::{Changes, Entry, Frozen, IndexFault, Table, not_beyond};
use crate::backing::{Backing, BackingFile, Cache, Open};
use crate::base::lock::{Held, Shared};
use crate::base::world::World;
use crate::seal::PageKey;
use redb::{Database, ReadOnlyTable, ReadableDatabase, TableDefinition};
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, RwLock};

const ENTRIES: TableDefinition<&[u8], &[u8]> = TableDefinition::new("entries");

type Snapshot = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// One moment of the table, and the file it is read from.
struct View {
    snapshot: Snapshot,
    pages: Arc<Pages>,
}

/// The database; a panic while it is put away must not take the process along.
struct Live {
    database: Option<Database>,
    pages: Arc<Pages>,
}

impl Drop for Live {
    fn drop(&mut self) {
        let database = self.database.take();
        // What it would write now is only convenience: every apply is durable already.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }
}

/// The table.
pub struct RedbTable {
    backing: Arc<dyn Backing>,
    path: String,
    file: Mutex<Arc<dyn BackingFile>>,
    key: Arc<PageKey>,
    world: Arc<dyn World>,
    cache_bytes: usize,
    live: Mutex<Live>,
    view: RwLock<Arc<View>>,
}

impl RedbTable {
    /// Makes an empty table, in place of whatever has its name: under a temporary name first, so that a power cut
    /// leaves the old file or the new one, whole.
    pub fn create(
        backing: &Arc<dyn Backing>,
        path: &str,
        key: PageKey,
        world: Arc<dyn World>,
        cache_bytes: usize,
    ) -> Result<Self, IndexFault> {
        let temporary = format!("{path}.new");
        match backing.remove(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        let file = backing.open(&temporary, Open::Create, Cache::Buffered)?;
        let key = Arc::new(key);
        let pages = Arc::new(Pages::create(Arc::clone(&file), Arc::clone(&key), Arc::clone(&world))?);
        let live = begin(&pages, cache_bytes, true)?;
        let view = snapshot(&live)?;
        file.sync_data()?;
        backing.rename(&temporary, path)?;
        backing.sync_dir(path.rsplit_once('/').map_or("", |(dir, _)| dir))?;
        Ok(RedbTable::of(backing, path, file, key, world, cache_bytes, live, view))
    }

    /// Opens a table; `Damaged` if it is missing or anything about it cannot be trusted.
    pub fn open(
        backing: &Arc<dyn Backing>,
        path: &str,
        key: PageKey,
        world: Arc<dyn World>,
        cache_bytes: usize,
    ) -> Result<Self, IndexFault> {
        let file = match backing.open(path, Open::Write, Cache::Buffered) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(IndexFault::Damaged("there is no index file".to_owned()));
            }
            other => other?,
        };
        let key = Arc::new(key);
        let (live, view) = load(&file, &key, &world, cache_bytes, None)?;
        Ok(RedbTable::of(backing, path, file, key, world, cache_bytes, live, view))
    }

    #[allow(clippy::too_many_arguments, reason = "its fields, each once")]
    fn of(
        backing: &Arc<dyn Backing>,
        path: &str,
        file: Arc<dyn BackingFile>,
        key: Arc<PageKey>,
        world: Arc<dyn World>,
        cache_bytes: usize,
        live: Live,
        view: Arc<View>,
    ) -> RedbTable {
        let (backing, path, file) = (Arc::clone(backing), path.to_owned(), Mutex::new(file));
        RedbTable { backing, path, file, key, world, cache_bytes, live: Mutex::new(live), view: RwLock::new(view) }
    }

    /// Runs one look at the newest snapshot.
    fn read<T>(&self, look: impl Fn(&Snapshot) -> Result<T, redb::Error>) -> Result<T, IndexFault> {
        loop {
            let view = Arc::clone(&self.view.shared());
            match guarded(&view.pages, || look(&view.snapshot)) {
                Ok(found) => return Ok(found),
                Err(Trouble::Fault(fault)) => return Err(fault),
                // An earlier read failed, or this snapshot has been put away: go on with what the file gives now.
                Err(Trouble::Closed) => self.begin_again_after(&view)?,
            }
        }
    }

    /// Opens the file anew, unless somebody has done so since `old` was taken.
    fn begin_again_after(&self, old: &Arc<View>) -> Result<(), IndexFault> {
        let mut live = self.live.held();
        if !Arc::ptr_eq(&self.view.shared().pages, &old.pages) {
            return Ok(());
        }
        self.begin_again(&mut live)
    }

    fn begin_again(&self, live: &mut Live) -> Result<(), IndexFault> {
        // Two databases on one file: the old one must never write again.
        live.pages.leave_alone();
        let durable = Some(live.pages.durable());
        let file = Arc::clone(&self.file.held());
        let (new, view) = load(&file, &self.key, &self.world, self.cache_bytes, durable)?;
        *self.view.alone() = view;
        *live = new;
        Ok(())
    }
}

impl Table for RedbTable {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexFault> {
        self.read(|snapshot| Ok(snapshot.get(key)?.map(|value| value.value().to_vec())))
    }

    fn scan(&self, prefix: &[u8], from: &[u8], limit_count: usize) -> Result<Vec<Entry>, IndexFault> {
        self.read(|snapshot| scan(snapshot, prefix, from, limit_count))
    }

    fn scan_last_before(&self, prefix: &[u8], before: &[u8]) -> Result<Option<Entry>, IndexFault> {
        let before = not_beyond(prefix, before);
        if before.as_slice() <= prefix {
            return Ok(None);
        }
        self.read(|snapshot| {
            let range = (Bound::Included(prefix), Bound::Excluded(before.as_slice()));
            let last = snapshot.range::<&[u8]>(range)?.next_back().transpose()?;
            Ok(last.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())))
        })
    }

    fn freeze(&self) -> Result<Box<dyn Frozen>, IndexFault> {
        Ok(Box::new(FrozenView(Arc::clone(&self.view.shared()))))
    }

    fn apply(&self, changes: &mut Changes<'_>) -> Result<(), IndexFault> {
        let mut live = self.live.held();
        if live.pages.failure().is_some() {
            self.begin_again(&mut live)?;
        }
        let done = guarded(&live.pages, || commit(&live, changes));
        // The database was not told that a write failed; what it calls done is only done if none did.
        if let Some(cause) = live.pages.failure() {
            return Err(IndexFault::Io(cause));
        }
        match done {
            Ok(()) => {}
            Err(Trouble::Fault(fault)) => return Err(fault),
            Err(Trouble::Closed) => {
                live.pages.leave_alone();
                return Err(IndexFault::Io(io::Error::other("an earlier read of the index failed")));
            }
        }
        let view = snapshot(&live)?;
        *self.view.alone() = view;
        Ok(())
    }

    fn reopen(&self) -> Result<(), IndexFault> {
        let file = self.backing.open(&self.path, Open::Write, Cache::Buffered)?;
        let mut live = self.live.held();
        *self.file.held() = file;
        self.begin_again(&mut live)
    }

    fn put_away(&self) {
        let mut live = self.live.held();
        let database = live.database.take();
        // It writes when it is dropped: now, while the file is ours.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }
}

/// A moment that stays: the database gives none of its pages away while a snapshot of it is held.
struct FrozenView(Arc<View>);

impl Frozen for FrozenView {
    fn scan(&self, from: &[u8], limit_count: usize) -> Result<Vec<Entry>, IndexFault> {
        let found =
            guarded(&self.0.pages, || scan(&self.0.snapshot, &[], from, limit_count)).map_err(Trouble::fault)?;
        // Where a write or read failed the table is opened anew, and knows nothing of who reads an old moment: from then on pages
        // of it may be written over. Asked afterwards, so that all that was read was read before.
        match self.0.pages.failure() {
            None => Ok(found),
            Some(cause) => Err(IndexFault::Io(cause)),
        }
    }
}

fn scan(snapshot: &Snapshot, prefix: &[u8], from: &[u8], limit_count: usize) -> Result<Vec<Entry>, redb::Error> {
    let mut found = Vec::new();
    let from = Bound::Included(from.max(prefix));
    for entry in snapshot.range::<&[u8]>((from, Bound::Unbounded))?.take(limit_count) {
        let (key, value) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        found.push((key.value().to_vec(), value.value().to_vec()));
    }
    Ok(found)
}

/// Opens the database that a file holds.
fn load(
    file: &Arc<dyn BackingFile>,
    key: &Arc<PageKey>,
    world: &Arc<dyn World>,
    cache_bytes: usize,
    durable: Option<Durable>,
) -> Result<(Live, Arc<View>), IndexFault> {
    let pages = Arc::new(Pages::open(Arc::clone(file), Arc::clone(key), Arc::clone(world), durable)?);
    let live = begin(&pages, cache_bytes, false)?;
    let view = snapshot(&live)?;
    Ok((live, view))
}

fn begin(pages: &Arc<Pages>, cache_bytes: usize, new: bool) -> Result<Live, IndexFault> {
    let open = || {
        let database =
            Database::builder().set_cache_size(cache_bytes).create_with_backend(Storage(Arc::clone(pages)))?;
        Ok(Live { database: Some(database), pages: Arc::clone(pages) })
    };
    let live = guarded(pages, open).map_err(Trouble::fault)?;
    if new {
        guarded(pages, || commit(&live, &mut std::iter::empty())).map_err(Trouble::fault)?;
    }
    match pages.failure() {
        Some(cause) => Err(cause.into()),
        None => Ok(live),
    }
}

/// One durable transaction.
fn commit(live: &Live, changes: &mut Changes<'_>) -> Result<(), redb::Error> {
    let database = live.database.as_ref().ok_or(redb::Error::DatabaseClosed)?;
    let mut transaction = database.begin_write()?;
    // Both are needed: the first so that only a whole commit is ever looked at, the second so that opening after a
    // crash takes a millisecond.
    transaction.set_two_phase_commit(true);
    transaction.set_quick_repair(true);
    {
        let mut table = transaction.open_table(ENTRIES)?;
        for (key, value) in changes {
            match value {
                Some(value) => drop(table.insert(key, value)?),
                None => drop(table.remove(key)?),
            }
            if live.pages.has_failed() {
                // Given up by being dropped; the caller sees the failure.
                return Ok(());
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

fn snapshot(live: &Live) -> Result<Arc<View>, IndexFault> {
    let look = || {
        let database = live.database.as_ref().ok_or(redb::Error::DatabaseClosed)?;
        Ok(database.begin_read()?.open_table(ENTRIES)?)
    };
    let snapshot = guarded(&live.pages, look).map_err(Trouble::fault)?;
    Ok(Arc::new(View { snapshot, pages: Arc::clone(&live.pages) }))
}

/// What came of asking the database.
enum Trouble {
    Fault(IndexFault),
    /// It has stopped answering; the file may be as good as ever.
    Closed,
}

impl Trouble {
    fn fault(self) -> IndexFault {
        match self {
            Trouble::Fault(fault) => fault,
            Trouble::Closed => IndexFault::Io(io::Error::other("the index has been closed")),
        }
    }
}

/// Asks the database something, and believes the answer only if every page it came from was what had been written.
fn guarded<T>(pages: &Pages, ask: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Trouble> {
    let damaged = |what: String| Err(Trouble::Fault(IndexFault::Damaged(what)));
    let answer = if pages.is_forged() { None } else { catch_unwind(AssertUnwindSafe(ask)).ok() };
    if pages.is_forged() {
        return damaged("a page is not what was written".to_owned());
    }
    match answer {
        None => match pages.failure().or_else(|| pages.read_error()) {
            Some(cause) => Err(Trouble::Fault(IndexFault::Io(cause))),
            None => {
                pages.distrust();
                damaged("the database stumbled over its own pages".to_owned())
            }
        },
        Some(Ok(answer)) => Ok(answer),
        // The database's word about what it read, not the disk's.
        Some(Err(redb::Error::Io(e))) if e.raw_os_error().is_none() && e.kind() == io::ErrorKind::InvalidData => {
            pages.distrust();
            damaged(e.to_string())
        }
        Some(Err(redb::Error::Io(e))) => Err(Trouble::Fault(IndexFault::Io(e))),
        Some(Err(redb::Error::PreviousIo | redb::Error::DatabaseClosed)) => Err(Trouble::Closed),
        Some(Err(other)) => match pages.read_error() {
            Some(cause) => Err(Trouble::Fault(IndexFault::Io(cause))),
            None => damaged(other.to_string()),
        },
    }
}
