//! The two places a log may lie in: the backing directory and the emergency directory.
//!
//! Promise: a segment has the same number and the same bytes wherever it lies, for its frames are bound to its number and
//! not to a place; so what was written in the emergency directory is brought home by copying it. For readers the two are
//! one directory (`Everywhere`). What a newer state of the vault has left in the emergency directory is left alone, and one
//! mount at a time uses that directory. Called by: `open`, `segments`, `recover` (reading), `writer`, `home` (writing).
//! On failure: the `io::Error` as it came; an emergency directory that is not there is looked for again at each use.

use crate::backing::{AlignedBuf, Backing, BackingFile, Cache, Open, ShadowBacking, Space};
use crate::base::id::{Epoch, SegmentId, VaultId};
use crate::base::limits::BLOCK_BYTES;
use crate::base::lock::Held;
use crate::segment::{file_name, first_header, parse_file_name, path};
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

/// Opens the emergency directory's part for this vault, making it if need be.
pub type Reach = Arc<dyn Fn(VaultId) -> io::Result<Arc<dyn Backing>> + Send + Sync>;

/// Where the emergency directory is.
#[derive(Clone)]
pub struct EmergencyDir {
    /// Its path, as a person would type it.
    pub path: String,
    /// How to get at it.
    pub reach: Reach,
    /// Whether its changes stay in memory, so that it may be looked at beside another mount.
    pub is_shadow: bool,
}

impl EmergencyDir {
    /// The same directory, whose changes stay in memory.
    #[must_use]
    pub fn shadow(self) -> EmergencyDir {
        let under = self.reach;
        // One shadow for all who reach it, so that they see each other's changes.
        let made: Mutex<Option<Arc<dyn Backing>>> = Mutex::new(None);
        let reach = move |vault| -> io::Result<Arc<dyn Backing>> {
            let mut made = made.held();
            if let Some(known) = &*made {
                return Ok(Arc::clone(known));
            }
            let new: Arc<dyn Backing> = Arc::new(ShadowBacking::new(under(vault)?));
            *made = Some(Arc::clone(&new));
            Ok(new)
        };
        EmergencyDir { path: self.path, reach: Arc::new(reach), is_shadow: true }
    }
}

impl std::fmt::Debug for EmergencyDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EmergencyDir({})", self.path)
    }
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The backing directory.
    Primary,
    /// The emergency directory.
    Emergency,
}

impl Place {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Place {
        match self {
            Place::Primary => Place::Emergency,
            Place::Emergency => Place::Primary,
        }
    }

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Place::Primary => "backing directory",
            Place::Emergency => "emergency directory",
        }
    }
}

/// Both places.
pub struct Places {
    primary: Arc<dyn Backing>,
    emergency: Option<EmergencyDir>,
    vault: VaultId,
    reached: Mutex<Option<Reached>>,
    /// The segments that lie in the emergency directory: it is asked for no other, so that it may be sick or slow without harm.
    lying_away: Mutex<BTreeSet<SegmentId>>,
    /// Segments there that a newer state of the vault has written, of which this is an older copy.
    foreign: Mutex<BTreeSet<SegmentId>>,
}

/// The emergency directory's part for this vault, and what keeps other mounts out of it.
struct Reached {
    backing: Arc<dyn Backing>,
    _lock: Option<Box<dyn Send + Sync>>,
}

impl Places {
    /// A backing directory, and perhaps an emergency directory.
    pub fn new(primary: Arc<dyn Backing>, emergency: Option<EmergencyDir>, vault: VaultId) -> Places {
        let (reached, lying_away, foreign) = (Mutex::new(None), Mutex::default(), Mutex::default());
        Places { primary, emergency, vault, reached, lying_away, foreign }
    }

    /// Whether there is a second place at all.
    pub fn has(&self, place: Place) -> bool {
        place == Place::Primary || self.emergency.is_some()
    }

    /// The path of the emergency directory; empty if there is none.
    pub fn emergency_path(&self) -> &str {
        self.emergency.as_ref().map_or("", |e| &e.path)
    }

    /// The directory of a place.
    pub fn of(&self, place: Place) -> io::Result<Arc<dyn Backing>> {
        let Place::Emergency = place else { return Ok(Arc::clone(&self.primary)) };
        let Some(emergency) = &self.emergency else { return Err(io::ErrorKind::NotFound.into()) };
        // The lock is free while the disk is asked: two who reach the directory at once reach the same one.
        let known = self.reached.held().as_ref().map(|reached| Arc::clone(&reached.backing));
        // A handle to a directory that was taken away stays open for ever: look whether it still answers.
        if let Some(known) = known
            && known.space().is_ok()
        {
            return Ok(known);
        }
        *self.reached.held() = None;
        let new = (emergency.reach)(self.vault)?;
        let lock = if emergency.is_shadow { None } else { Some(lock_away(&*new)?) };
        match new.make_dir(SEGMENTS) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        match new.open(ARMED, Open::Create, Cache::Buffered) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            Err(_) => {}
            Ok(file) => file.sync_data()?,
        }
        new.sync_dir("")?;
        *self.reached.held() = Some(Reached { backing: Arc::clone(&new), _lock: lock });
        Ok(new)
    }

    /// Whether the emergency directory is one that this vault has used: an empty place where it should be mounted is not.
    /// Makes nothing.
    pub fn was_armed(&self) -> io::Result<bool> {
        let Some(emergency) = &self.emergency else { return Ok(false) };
        match (emergency.reach)(self.vault)?.open(ARMED, Open::Read, Cache::Buffered) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Looks which segments lie in the emergency directory, and which of them were written under leases that are not ours. (A
    /// root is durable before anything is written under the lease that it names: a greater one is not ours either.)
    pub fn look_away(&self, is_ours: &dyn Fn(Epoch) -> bool) -> io::Result<()> {
        let away = self.of(Place::Emergency)?;
        let all = away.list(SEGMENTS)?.into_iter().filter_map(|name| parse_file_name(&name));
        let is_foreign = |id: &SegmentId| {
            let header = away.open(&path(*id), Open::Read, Cache::Direct).and_then(|file| first_header(&*file, *id));
            // What cannot be read is for its readers to find.
            header.ok().flatten().is_some_and(|header| !is_ours(header.epoch))
        };
        (*self.foreign.held(), *self.lying_away.held()) = all.partition(is_foreign);
        Ok(())
    }

    /// The segments in the emergency directory that a newer state of the vault has written, in order: nobody reads them,
    /// brings them home, or writes over them.
    pub fn foreign(&self) -> Vec<SegmentId> {
        self.foreign.held().iter().copied().collect()
    }

    /// The segments that lie in the emergency directory, in order.
    pub fn away(&self) -> Vec<SegmentId> {
        self.lying_away.held().iter().copied().collect()
    }

    /// Whether a segment lies in the emergency directory.
    pub fn is_away(&self, id: SegmentId) -> bool {
        self.lying_away.held().contains(&id)
    }

    /// Bytes of the segments that lie in the emergency directory.
    pub fn away_bytes(&self) -> u64 {
        let Ok(away) = self.of(Place::Emergency) else { return 0 };
        let len = |id| away.open(&path(id), Open::Read, Cache::Buffered).and_then(|file| file.len()).unwrap_or(0);
        self.away().into_iter().map(len).sum()
    }

    /// A segment is begun in the emergency directory.
    pub fn goes_away(&self, id: SegmentId) {
        self.lying_away.held().insert(id);
    }

    /// A segment does not lie in the emergency directory any more.
    pub fn came_home(&self, id: SegmentId) {
        self.lying_away.held().remove(&id);
    }

    /// Whether a place has so many bytes free, as far as its filesystem says. A backing directory that does not answer may be one that was
    /// unplugged: a test write tells more.
    pub fn has_room(&self, place: Place, bytes: u64) -> bool {
        match self.of(place).and_then(|backing| backing.space()) {
            Ok(space) => space.is_none_or(|space| space.free_bytes >= bytes),
            Err(_) => place == Place::Primary,
        }
    }

    /// Makes one real test write in a place, flushes it, and reads it back from the device.
    pub fn probe(&self, place: Place) -> io::Result<()> {
        let try_it = || {
            let backing = self.of(place)?;
            remove_if_there(&*backing, PROBE)?;
            let file = backing.open(PROBE, Open::Create, Cache::Direct)?;
            let tried = probe_file(&*file);
            remove_if_there(&*backing, PROBE)?;
            tried
        };
        match try_it() {
            // What was reached may have been pulled and plugged in again since.
            Err(_) if place == Place::Emergency => {
                self.look_again(place);
                try_it().inspect_err(|_| self.look_again(place))
            }
            tried => tried,
        }
    }

    /// A place that failed is looked for again by its path: what the handle leads to may be a disk that was pulled, while
    /// the path leads to the same disk, plugged in again.
    pub fn look_again(&self, place: Place) {
        if place == Place::Emergency {
            *self.reached.held() = None;
        }
    }
}

/// Keeps other mounts out of an emergency directory, also those of another copy of the vault.
fn lock_away(backing: &dyn Backing) -> io::Result<Box<dyn Send + Sync>> {
    backing.lock(LOCK).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => {
            io::Error::new(io::ErrorKind::ResourceBusy, "another mount of this vault, or of a copy of it, uses it now")
        }
        _ => e,
    })
}

/// Holds the lock of an open vault; in an emergency directory, that of the mount that uses it.
pub const LOCK: &str = "lock";
const SEGMENTS: &str = "segments";
const PROBE: &str = "probe.new";
/// Stands in an emergency directory since a vault was opened with it: before any root names it.
const ARMED: &str = "armed";

fn probe_file(file: &dyn BackingFile) -> io::Result<()> {
    let mut out = AlignedBuf::with_capacity(BLOCK_BYTES);
    out.set_len(BLOCK_BYTES);
    out.fill(0x5a);
    file.write_all_at(&out, 0)?;
    file.sync_data()?;
    let mut back = AlignedBuf::with_capacity(BLOCK_BYTES);
    back.set_len(BLOCK_BYTES);
    if file.read_device(&mut back, 0)? != BLOCK_BYTES || back[..] != out[..] {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a test write did not read back as it was written"));
    }
    Ok(())
}

/// Opens a file to read it past all caches; `None` if there is none: segments and snapshots may go between listing and opening.
pub fn open_if_there(backing: &dyn Backing, path: &str) -> io::Result<Option<Arc<dyn BackingFile>>> {
    match backing.open(path, Open::Read, Cache::Direct) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Removes a file; that there is none is as good.
pub fn remove_if_there(backing: &dyn Backing, path: &str) -> io::Result<()> {
    match backing.remove(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Both places as one directory to read from. What lies in both is the same, or the backing directory's was prepared and
/// never begun: so the emergency directory's counts, and if it does not answer, no other is taken for it.
pub struct Everywhere(pub Arc<Places>);

impl Backing for Everywhere {
    fn open(&self, path: &str, how: Open, cache: Cache) -> io::Result<Arc<dyn BackingFile>> {
        let id = path.strip_prefix(SEGMENTS).and_then(|p| parse_file_name(p.strip_prefix('/')?));
        let place = if id.is_some_and(|id| self.0.is_away(id)) { Place::Emergency } else { Place::Primary };
        match self.0.of(place)?.open(path, how, cache) {
            // Brought home this moment.
            Err(e) if e.kind() == io::ErrorKind::NotFound && id.is_some_and(|id| !self.0.is_away(id)) => {
                self.0.primary.open(path, how, cache)
            }
            other => other,
        }
    }
    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.0.primary.make_dir(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = self.0.primary.list(path)?;
        if path == SEGMENTS {
            names.extend(self.0.away().into_iter().map(file_name));
            names.sort_unstable();
            names.dedup();
        }
        Ok(names)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.primary.rename(from, to)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.0.primary.remove(path)
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.0.primary.sync_dir(path)
    }
    fn space(&self) -> io::Result<Option<Space>> {
        self.0.primary.space()
    }
    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.0.primary.lock(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::MemoryBacking;

    #[test]
    fn an_emergency_directory_that_comes_late_is_found() {
        let (home, away) = (MemoryBacking::default(), MemoryBacking::default());
        home.make_dir(SEGMENTS).unwrap();
        let there = Arc::new(Mutex::new(false));
        let (seen, dir) = (Arc::clone(&there), away.clone());
        let reach: Reach = Arc::new(move |_| match *seen.held() {
            true => Ok(Arc::new(dir.clone())),
            false => Err(io::ErrorKind::NotFound.into()),
        });
        let emergency = EmergencyDir { path: "/e".to_owned(), reach, is_shadow: false };
        let places = Arc::new(Places::new(Arc::new(home.clone()), Some(emergency), VaultId([0; 16])));
        assert!(places.probe(Place::Emergency).is_err() && places.probe(Place::Primary).is_ok());
        *there.held() = true;
        places.probe(Place::Emergency).expect("it is there now");
        assert!(
            away.list("").unwrap() == [ARMED, LOCK, SEGMENTS] && home.list("").unwrap() == [SEGMENTS],
            "the probes are gone"
        );

        let put = |b: &MemoryBacking, id: &str, byte: u8| {
            let f = b.open(&format!("segments/{id}"), Open::Create, Cache::Direct).unwrap();
            f.write_all_at(&[byte], 0).unwrap();
        };
        put(&home, "0000000000000001", 1);
        put(&away, "0000000000000002", 2);
        put(&home, "0000000000000002", 0);
        places.look_away(&|_| true).unwrap();
        let both = Everywhere(places);
        assert_eq!(both.list(SEGMENTS).unwrap(), ["0000000000000001", "0000000000000002"]);
        for (id, byte) in [("0000000000000001", 1), ("0000000000000002", 2)] {
            let path = format!("segments/{id}");
            assert_eq!(crate::backing::read_file(&both, &path, 9).unwrap(), [byte]);
        }
    }
}
