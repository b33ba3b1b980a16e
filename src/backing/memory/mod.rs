//! A cruel disk in memory, under everything, for tests: it forgets what was not synced, fails when told to, and writes down
//! every call that changes it, so that the power can be cut after each of them.
//!
//! Promise: what it gives back after a power cut is something that a disk and a filesystem may leave (`media` says what that
//! is), chosen by whoever asks; nothing is chosen by chance here. Room is counted, if it is limited: blocks written or taken in
//! advance, of files that have a name.
//! Called by: tests of every layer above. Takes: one lock, for the length of a call.
//! On failure: errors planted with `plant`, ENOSPC where room is limited, else those that a directory would give.

mod blocks;
mod cuts;
mod faults;
mod media;
#[cfg(test)]
mod tests;

pub use cuts::{Call, Cuts};
pub use faults::{Effect, Fault, Kind, MUTATING, SYNCS};
pub use media::{Fate, Unsynced, mix};

use super::direct::Directness;
use super::{Backing, BackingFile, Cache, Open, Space};
use crate::base::limits::BLOCK_BYTES;
use crate::base::lock::Held;
use blocks::Blocks;
use faults::Faults;
use media::{Change, FileId, Media, Node, parent};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Room where it is not limited.
const UNLIMITED: Space = Space { total_bytes: 1 << 40, free_bytes: 1 << 40, free_inodes: u64::MAX };

struct File {
    /// What it was called last.
    path: Arc<str>,
    /// Through the page cache.
    bytes: Blocks,
    /// Whether a sync failed, so that the device may hold something else.
    doubtful: bool,
}

/// The calls since the journal was begun, and the disk before them.
struct Journal {
    before: Media,
    calls: Vec<Call>,
}

#[derive(Default)]
struct Disk {
    names: BTreeMap<String, Node>,
    files: BTreeMap<FileId, File>,
    media: Media,
    calls: usize,
    next_file: FileId,
    journal: Option<Journal>,
    faults: Faults,
    capacity_bytes: Option<u64>,
    /// Whether reads of files that were opened for direct I/O are refused.
    refuses_direct_reads: bool,
    /// Whether it does not say how much room there is.
    is_silent_about_room: bool,
}

/// The directory.
#[derive(Default, Clone)]
pub struct MemoryBacking {
    disk: Arc<Mutex<Disk>>,
    locked: Arc<AtomicBool>,
    /// Whether direct I/O was refused.
    refused: Arc<AtomicBool>,
}

impl MemoryBacking {
    /// Plants a fault; gives the number to lift it with.
    pub fn plant(&self, fault: Fault) -> u64 {
        self.disk.held().faults.plant(fault)
    }

    /// Lifts one planted fault.
    pub fn lift(&self, number: u64) {
        self.disk.held().faults.lift(number);
    }

    /// Lifts all planted faults.
    pub fn lift_all(&self) {
        self.disk.held().faults.lift_all();
    }

    /// Calls that faults have struck.
    pub fn struck(&self) -> u64 {
        self.disk.held().faults.struck
    }

    /// From now on, syncs do nothing and say that they did.
    pub fn lie_about_sync(&self) {
        self.plant(Fault::of(SYNCS, Effect::Lie));
    }

    /// The next `n` writes fail with EIO.
    pub fn fail_next_writes(&self, n: u64) {
        let mut disk = self.disk.held();
        disk.faults.lift_all();
        disk.faults.plant(Fault::of(&[Kind::Write], Effect::Error(libc::EIO)).times(n));
    }

    /// The next `n` writes store something else than they were given, and say that they did not.
    pub fn spoil_next_writes(&self, n: u64) {
        self.plant(Fault::of(&[Kind::Write], Effect::Spoil).times(n));
    }

    /// Limits the room to so many bytes in all; `None` for no limit.
    pub fn limit(&self, capacity_bytes: Option<u64>) {
        self.disk.held().capacity_bytes = capacity_bytes;
    }

    /// Refuses from now on to read a file that was opened for direct I/O, with EINVAL; opening one goes on to succeed.
    pub fn refuse_direct_reads(&self) {
        self.disk.held().refuses_direct_reads = true;
    }

    /// Does not say from now on how much room there is, as a filesystem whose `statfs` is all zeros.
    pub fn be_silent_about_room(&self) {
        self.disk.held().is_silent_about_room = true;
    }

    /// Flips one bit of a file at rest.
    pub fn flip_bit(&self, path: &str, bit: u64) {
        let mut disk = self.disk.held();
        if let Some(Node::File(file)) = disk.names.get(path).copied() {
            let (byte, mask) = (bit / 8, 1 << (bit % 8));
            if let Some(f) = disk.files.get_mut(&file) {
                f.bytes.flip(byte, mask);
            }
            disk.made(Kind::Write, path, Change::Flip { file, byte, mask });
        }
    }

    /// What a power cut now leaves; `keep` decides for each unsynced change of each file whether it reached the disk.
    /// Names that were not synced are lost.
    #[must_use]
    pub fn crash(&self, mut keep: impl FnMut(&str, usize) -> bool) -> MemoryBacking {
        self.cut(&mut |u| if !u.of_names && keep(u.path, u.call) { Fate::Kept } else { Fate::Lost })
    }

    /// What a power cut now leaves, with the given fate for each change that was not synced.
    #[must_use]
    pub fn cut(&self, fate: &mut dyn FnMut(&Unsynced<'_>) -> Fate) -> MemoryBacking {
        MemoryBacking::image(&self.disk.held().media, fate)
    }

    /// A copy, all of it at rest.
    #[must_use]
    pub fn copy(&self) -> MemoryBacking {
        let disk = self.disk.held();
        let files = disk.files.iter().map(|(id, f)| (*id, f.bytes.clone())).collect();
        MemoryBacking::holding(disk.names.clone(), files)
    }

    /// The disk as a process leaves it that is killed: unsynced changes are still on their way, the journal goes on, the lock is
    /// free. Whatever the dead process yet does happens to the disk that it had.
    #[must_use]
    pub fn fork(&self) -> MemoryBacking {
        let disk = self.disk.held();
        let file = |f: &File| File { path: Arc::clone(&f.path), bytes: f.bytes.clone(), doubtful: f.doubtful };
        let disk = Disk {
            names: disk.names.clone(),
            files: disk.files.iter().map(|(id, f)| (*id, file(f))).collect(),
            media: disk.media.clone(),
            calls: disk.calls,
            next_file: disk.next_file,
            journal: disk.journal.as_ref().map(|j| Journal { before: j.before.clone(), calls: j.calls.clone() }),
            faults: disk.faults.clone(),
            capacity_bytes: disk.capacity_bytes,
            refuses_direct_reads: disk.refuses_direct_reads,
            is_silent_about_room: disk.is_silent_about_room,
        };
        MemoryBacking { disk: Arc::new(Mutex::new(disk)), locked: Arc::default(), refused: Arc::default() }
    }

    /// Begins to write every change down, from now on.
    pub fn record(&self) {
        let mut disk = self.disk.held();
        let before = disk.media.clone();
        (disk.calls, disk.journal) = (0, Some(Journal { before, calls: Vec::new() }));
    }

    /// Calls that changed something, or were to, since `record`.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.disk.held().calls
    }

    /// The cuts of the journal so far, from before its first call.
    ///
    /// # Panics
    /// If `record` was not called.
    #[must_use]
    pub fn cuts(&self) -> Cuts {
        let disk = self.disk.held();
        let journal = disk.journal.as_ref().expect("a disk whose calls are recorded");
        Cuts::new(journal.before.clone(), journal.calls.clone().into())
    }

    /// What a power cut right after call number `cut` (or in the midst of it) may leave. For one cut after the other,
    /// `cuts` is quicker.
    #[must_use]
    pub fn image_after(&self, cut: usize, fate: &mut dyn FnMut(&Unsynced<'_>) -> Fate) -> MemoryBacking {
        let mut cuts = self.cuts();
        while cuts.cut() < cut && cuts.advance() {}
        cuts.image(fate)
    }

    fn image(media: &Media, fate: &mut dyn FnMut(&Unsynced<'_>) -> Fate) -> MemoryBacking {
        let (names, files) = media.after(fate);
        MemoryBacking::holding(names, files)
    }

    fn holding(names: BTreeMap<String, Node>, blocks: BTreeMap<FileId, Blocks>) -> MemoryBacking {
        let path_of = |id: FileId| {
            let named = names.iter().find(|(_, node)| **node == Node::File(id));
            Arc::from(named.map_or("", |(path, _)| path.as_str()))
        };
        let next_file = blocks.last_key_value().map_or(0, |(id, _)| id + 1);
        let files = blocks
            .iter()
            .map(|(id, b)| (*id, File { path: path_of(*id), bytes: b.clone(), doubtful: false }))
            .collect();
        let media = Media::at_rest(names.clone(), blocks);
        let disk = Disk { names, files, media, next_file, ..Disk::default() };
        MemoryBacking { disk: Arc::new(Mutex::new(disk)), locked: Arc::default(), refused: Arc::default() }
    }

    fn file(&self, id: FileId, cache: Cache) -> Arc<dyn BackingFile> {
        Arc::new(MemoryFile {
            disk: Arc::clone(&self.disk),
            id,
            directness: Directness::new(cache == Cache::Direct, &self.refused),
        })
    }
}

impl Disk {
    /// A call was made.
    fn made(&mut self, kind: Kind, path: &str, change: Change) {
        self.media.advance(self.calls, &change);
        if let Some(journal) = &mut self.journal {
            journal.calls.push(Call { kind, path: path.into(), change });
        }
        self.calls += 1;
    }

    /// Takes a call in: what strikes it, and if it is to fail, the error.
    fn strike(&mut self, kind: Kind, path: &str) -> io::Result<Option<Effect>> {
        let effect = self.faults.strike(kind, path);
        let errno = match effect {
            Some(Effect::Error(errno)) => errno,
            Some(Effect::Short { errno, .. }) if kind != Kind::Write => errno,
            _ => return Ok(effect),
        };
        if MUTATING.contains(&kind) && kind != Kind::SyncData {
            self.made(kind, path, Change::Nothing);
        }
        Err(io::Error::from_raw_os_error(errno))
    }

    fn node(&self, path: &str) -> io::Result<Node> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn file_at(&self, path: &str) -> io::Result<FileId> {
        match self.node(path)? {
            Node::File(id) => Ok(id),
            Node::Dir => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// Changes names, at once. A file without a name stays, for whoever has it open.
    fn name(&mut self, kind: Kind, now: Vec<(String, Option<Node>)>) {
        for (path, node) in &now {
            match node {
                Some(node) => self.names.insert(path.clone(), *node),
                None => self.names.remove(path),
            };
            if let Some(Node::File(id)) = node
                && let Some(file) = self.files.get_mut(id)
            {
                file.path = path.as_str().into();
            }
        }
        let dirs: BTreeSet<String> = now.iter().map(|(path, _)| parent(path).to_owned()).collect();
        let path = now.last().map(|(path, _)| path.clone()).unwrap_or_default();
        self.made(kind, &path, Change::Names { dirs, now });
    }

    fn create(&mut self, kind: Kind, path: &str) -> io::Result<FileId> {
        let dir = parent(path);
        if !dir.is_empty() && self.names.get(dir) != Some(&Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let id = self.next_file;
        self.next_file += 1;
        self.files.insert(id, File { path: path.into(), bytes: Blocks::default(), doubtful: false });
        self.name(kind, vec![(path.to_owned(), Some(Node::File(id)))]);
        Ok(id)
    }

    fn space(&self) -> Space {
        let Some(total_bytes) = self.capacity_bytes else { return UNLIMITED };
        let named = self.names.values().filter_map(|node| match node {
            Node::File(id) => self.files.get(id),
            Node::Dir => None,
        });
        let used: u64 = named.map(|f| f.bytes.held_bytes()).sum();
        Space { total_bytes, free_bytes: total_bytes.saturating_sub(used), free_inodes: u64::MAX }
    }

    /// Refuses to hold more blocks of a file than there is room for.
    fn admit(&self, id: FileId, from: u64, to: u64) -> io::Result<()> {
        let needs = |f: &File| f.bytes.missing_bytes(from / BLOCK, to.div_ceil(BLOCK));
        if self.capacity_bytes.is_some() && self.files.get(&id).is_some_and(|f| needs(f) > self.space().free_bytes) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }

    fn write(&mut self, id: FileId, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let end = offset + buf.len() as u64;
        self.admit(id, offset, end)?;
        let Some(file) = self.files.get_mut(&id) else { return Err(io::ErrorKind::NotFound.into()) };
        let patches = file.bytes.put(offset, buf).into();
        file.bytes.grow(end);
        let path = Arc::clone(&file.path);
        self.made(Kind::Write, &path, Change::Write { file: id, patches, end });
        Ok(())
    }

    /// Another file in the directory of this one; itself, if it is alone.
    fn neighbour(&self, id: FileId) -> FileId {
        let Some(file) = self.files.get(&id) else { return id };
        let beside = |(path, node): (&String, &Node)| match node {
            Node::File(other) if *other != id && parent(path) == parent(&file.path) => Some(*other),
            _ => None,
        };
        self.names.iter().rev().find_map(beside).unwrap_or(id)
    }
}

impl Backing for MemoryBacking {
    fn open(&self, path: &str, how: Open, cache: Cache) -> io::Result<Arc<dyn BackingFile>> {
        let mut disk = self.disk.held();
        let kind = if how == Open::Create { Kind::Create } else { Kind::Open };
        disk.strike(kind, path)?;
        let id = match (disk.file_at(path), how) {
            (Ok(_), Open::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Ok(id), Open::Read | Open::Write | Open::WriteUnshared) => id,
            (Err(e), Open::Create) if e.kind() == io::ErrorKind::NotFound => disk.create(kind, path)?,
            (Err(e), _) => return Err(e),
        };
        drop(disk);
        Ok(self.file(id, cache))
    }
    fn make_dir(&self, path: &str) -> io::Result<()> {
        let mut disk = self.disk.held();
        disk.strike(Kind::MakeDir, path)?;
        if disk.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !parent(path).is_empty() && disk.node(parent(path))? != Node::Dir {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        disk.name(Kind::MakeDir, vec![(path.to_owned(), Some(Node::Dir))]);
        Ok(())
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut disk = self.disk.held();
        disk.strike(Kind::List, path)?;
        if !path.is_empty() && disk.node(path)? != Node::Dir {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let all = disk.names.keys().filter(|p| parent(p) == path);
        let mut names: Vec<String> = all.map(|p| p.rsplit('/').next().unwrap_or(p).to_owned()).collect();
        names.sort_unstable();
        Ok(names)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk.held();
        disk.strike(Kind::Rename, to)?;
        let id = disk.file_at(from)?;
        if from != to {
            disk.name(Kind::Rename, vec![(from.to_owned(), None), (to.to_owned(), Some(Node::File(id)))]);
        }
        Ok(())
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        let mut disk = self.disk.held();
        disk.strike(Kind::Remove, path)?;
        disk.file_at(path)?;
        disk.name(Kind::Remove, vec![(path.to_owned(), None)]);
        Ok(())
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let mut disk = self.disk.held();
        let change = match disk.strike(Kind::SyncDir, path)? {
            Some(Effect::Lie) => Change::Nothing,
            _ if path.is_empty() || disk.node(path)? == Node::Dir => Change::SyncDir { path: path.to_owned() },
            _ => return Err(io::ErrorKind::NotADirectory.into()),
        };
        disk.made(Kind::SyncDir, path, change);
        Ok(())
    }
    fn space(&self) -> io::Result<Option<Space>> {
        let mut disk = self.disk.held();
        disk.strike(Kind::Space, "")?;
        Ok(if disk.is_silent_about_room { None } else { Some(disk.space()) })
    }
    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        struct Unlock(Arc<AtomicBool>);
        impl Drop for Unlock {
            fn drop(&mut self) {
                self.0.store(false, SeqCst);
            }
        }
        let mut disk = self.disk.held();
        disk.strike(Kind::Lock, path)?;
        let id = match disk.file_at(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => disk.create(Kind::Lock, path)?,
            other => other?,
        };
        if self.locked.swap(true, SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let held = Unlock(Arc::clone(&self.locked));
        disk.set_len(id, 0);
        // Not the process's number: one program must make one journal.
        disk.write(id, b"1\n", 0)?;
        Ok(Box::new(held))
    }
}

impl Disk {
    fn set_len(&mut self, id: FileId, len: u64) {
        if let Some(file) = self.files.get_mut(&id) {
            file.bytes.set_len(len);
            let path = Arc::clone(&file.path);
            self.made(Kind::SetLen, &path, Change::SetLen { file: id, len });
        }
    }
}

struct MemoryFile {
    disk: Arc<Mutex<Disk>>,
    id: FileId,
    directness: Directness,
}

impl MemoryFile {
    /// The disk, its file's name, and what strikes the call.
    fn call(&self, kind: Kind) -> io::Result<(std::sync::MutexGuard<'_, Disk>, Arc<str>, Option<Effect>)> {
        let mut disk = self.disk.held();
        let path = disk.files.get(&self.id).map(|f| Arc::clone(&f.path)).unwrap_or_default();
        let effect = disk.strike(kind, &path);
        if kind == Kind::SyncData && effect.is_err() {
            let coins = mix(disk.calls as u64);
            if let Some(file) = disk.files.get_mut(&self.id) {
                file.doubtful = true;
            }
            disk.made(kind, &path, Change::SyncFailed { file: self.id, coins });
        }
        let effect = effect?;
        Ok((disk, path, effect))
    }
}

impl MemoryFile {
    /// Reads what the page cache shows, or what is on the device.
    fn read(&self, buf: &mut [u8], offset: u64, of_device: impl Fn(bool) -> bool) -> io::Result<usize> {
        let read = |direct| -> io::Result<usize> {
            let (disk, ..) = self.call(Kind::Read)?;
            if direct && disk.refuses_direct_reads {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            Ok(disk.files.get(&self.id).map_or(0, |f| match f.doubtful && of_device(direct) {
                true => disk.media.on_device(self.id).read(buf, offset),
                false => f.bytes.read(buf, offset),
            }))
        };
        self.directness.attempt(read, || Ok(()))
    }
}

impl BackingFile for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read(buf, offset, |direct| direct)
    }
    fn read_device(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read(buf, offset, |_| true)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let (mut disk, _, effect) = self.call(Kind::Write)?;
        match effect {
            None | Some(Effect::Lie | Effect::Error(_)) => disk.write(self.id, buf, offset),
            Some(Effect::Short { bytes, errno }) => {
                disk.write(self.id, &buf[..bytes.min(buf.len())], offset)?;
                Err(io::Error::from_raw_os_error(errno))
            }
            Some(Effect::Astray { by_bytes }) => disk.write(self.id, buf, offset.saturating_add_signed(by_bytes)),
            Some(Effect::AstrayFile) => {
                let other = disk.neighbour(self.id);
                disk.write(other, buf, offset)
            }
            Some(Effect::Spoil) => {
                let mut buf = buf.to_vec();
                let at = buf.len().saturating_sub(1).min(100);
                if let Some(byte) = buf.get_mut(at) {
                    *byte ^= 1;
                }
                disk.write(self.id, &buf, offset)
            }
        }
    }
    fn sync_data(&self) -> io::Result<()> {
        let (mut disk, path, effect) = self.call(Kind::SyncData)?;
        let change = if effect == Some(Effect::Lie) { Change::Nothing } else { Change::SyncData { file: self.id } };
        disk.made(Kind::SyncData, &path, change);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.held().files.get(&self.id).map_or(0, |f| f.bytes.len()))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let (mut disk, ..) = self.call(Kind::SetLen)?;
        disk.set_len(self.id, len);
        Ok(())
    }
    fn preallocate(&self, len: u64) -> io::Result<()> {
        let (mut disk, path, _) = self.call(Kind::Preallocate)?;
        let from = disk.files.get(&self.id).map_or(0, |file| file.bytes.len());
        disk.admit(self.id, from.min(len), len)?;
        if let Some(file) = disk.files.get_mut(&self.id) {
            file.bytes.preallocate(len);
        }
        disk.made(Kind::Preallocate, &path, Change::Preallocate { file: self.id, len });
        Ok(())
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let (mut disk, path, _) = self.call(Kind::Punch)?;
        if !offset.is_multiple_of(BLOCK) || !len.is_multiple_of(BLOCK) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (from_block, to_block) = (offset / BLOCK, (offset + len) / BLOCK);
        if let Some(file) = disk.files.get_mut(&self.id) {
            file.bytes.punch(from_block, to_block);
        }
        disk.made(Kind::Punch, &path, Change::Punch { file: self.id, from_block, to_block });
        Ok(())
    }
    fn taken_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.held().files.get(&self.id).map_or(0, |f| f.bytes.held_bytes()))
    }
    fn links(&self) -> io::Result<u64> {
        Ok(self.disk.held().names.values().filter(|node| **node == Node::File(self.id)).count() as u64)
    }
    fn identity(&self) -> io::Result<Option<(u64, u64)>> {
        Ok(Some((0, self.id)))
    }
    fn is_direct(&self) -> bool {
        !self.directness.has_refused()
    }
}
