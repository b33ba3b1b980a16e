//! A vault on the faulty disk and the filesystem in it: does a step, and shows everything there is.

use super::program::Step;
use super::tree::{Body, Thing, Tree};
use super::world::Simulated;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use strongroom::backing::{Backing, MemoryBacking};
use strongroom::base::choice::{Compression, SuiteId, Verify};
use strongroom::base::id::{Ino, ROOT_INO};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::World;
use strongroom::format::key;
use strongroom::fs::{
    Atime, Attr, Caller, Fallocate, FileSystem, FsFault, FsOptions, RenameHow, SetAttr, WriteHow, XattrHow, XattrReply,
};
use strongroom::seal::Unlock;
use strongroom::segment::SNAPSHOTS;
use strongroom::vault::{self, Choose, CreateOptions, OpenFault, OpenOptions, Vault};

const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };
const STAMPED: WriteHow = WriteHow { drop_set_id: false, stamp: true };

/// How a world's vault is made and opened.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    pub suite: SuiteId,
    pub compression: Compression,
    pub verify: Verify,
    /// Bytes to be gained for which old segments are cleaned.
    pub clean_bytes: Option<u64>,
}

/// Bytes that the cleaner moved, in all places that were closed or given up …
pub static MOVED: AtomicU64 = AtomicU64::new(0);
/// … and segments that it removed.
pub static REMOVED: AtomicU64 = AtomicU64::new(0);

pub fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(b"thirty-two bytes, or some more than that".to_vec()))
}

impl Manner {
    pub fn create(&self, disk: &MemoryBacking, world: &Arc<Simulated>) -> Result<(), OpenFault> {
        let options =
            CreateOptions { suite: Some(self.suite), compression: self.compression, ..CreateOptions::default() };
        let backing: Arc<dyn Backing> = Arc::new(disk.clone());
        vault::create(&backing, &unlock(), &options, &(world.clone() as Arc<dyn World>))
    }

    /// Without threads: who works when is chance of the world.
    fn options(&self, world: &Arc<Simulated>) -> OpenOptions {
        let world = world.clone();
        let stepped: Choose = Arc::new(move |of| world.choose(of));
        let (stepped, verify) = (Some(stepped), self.verify);
        let clean_bytes = self.clean_bytes;
        OpenOptions { budget_bytes: 16 << 20, workers: 2, verify, stepped, clean_bytes, ..OpenOptions::default() }
    }
}

/// An open vault.
pub struct Place {
    pub vault: Arc<Vault>,
    pub fs: FileSystem,
}

/// All entries of the index but counters and history, which people are shown and nothing depends on.
fn entries(place: &Place) -> Result<Vec<(Vec<u8>, Vec<u8>)>, String> {
    let mut all = place.vault.scan(&[], &[], usize::MAX).map_err(|e| e.to_string())?;
    all.retain(|(k, _)| *k != key::setting("totals") && *k != key::setting("history"));
    Ok(all)
}

/// Loses the index and makes it anew, from a snapshot if there is one, and from the log alone: both must be the same. Where the cleaner
/// has taken away parts of the log, the lost index itself is what is compared with. Gives whether there was a snapshot.
pub fn rebuilt_both_ways(disk: &MemoryBacking, world: &Arc<Simulated>, manner: &Manner) -> Result<bool, String> {
    let is_cleaned = manner.clean_bytes.is_some();
    let manner = &Manner { clean_bytes: None, ..*manner };
    let made = |snapshots: bool| {
        let disk = disk.copy();
        let lost = match (snapshots, is_cleaned) {
            (true, _) => &["index"][..],
            (false, true) => &[],
            (false, false) => &["index", SNAPSHOTS],
        };
        for dir in lost {
            // A vault whose making was cut short has none.
            for name in disk.list(dir).unwrap_or_default() {
                disk.remove(&format!("{dir}/{name}")).map_err(|e| e.to_string())?;
            }
        }
        let place = Place::open(&disk, world, manner).map_err(|e| format!("{e:?}, with snapshots: {snapshots}"))?;
        let errors = place.vault.stats().errors();
        if !errors.is_empty() {
            return Err(format!("a rebuild, with snapshots: {snapshots}, says {errors:?}"));
        }
        let history = place.vault.stats().history();
        let used = history.iter().any(|line| line.text.contains("made anew from the snapshot"));
        let mut all = entries(&place)?;
        if is_cleaned {
            // The index knows of segments that were begun, failed and were removed: whatever is next, its number was not in use.
            let log = all.iter_mut().find(|(k, _)| *k == key::total("log")).expect("it covers something");
            log.1.truncate(64);
        }
        Ok((used, all))
    };
    let there = disk.list(SNAPSHOTS).unwrap_or_default().iter().any(|name| !name.ends_with(".new"));
    let ((used, by_snapshot), (_, by_log)) = (made(true)?, made(false)?);
    if used != there {
        return Err(format!("a snapshot is there: {there}; it was used: {used}"));
    }
    let differs = by_snapshot.iter().zip(&by_log).find(|(a, b)| a != b);
    match differs {
        None if by_snapshot.len() == by_log.len() => Ok(used),
        _ => Err(format!("the index by the snapshot is not the one by the log: {differs:?}")),
    }
}

/// Why there is no place.
#[derive(Debug)]
pub enum NoPlace {
    NotAVault,
    Other(String),
}

impl Place {
    pub fn open(disk: &MemoryBacking, world: &Arc<Simulated>, manner: &Manner) -> Result<Place, NoPlace> {
        let opened = vault::open(Arc::new(disk.clone()), &unlock(), &manner.options(world), world.clone());
        let vault = opened.map_err(|e| match e {
            OpenFault::NotAVault => NoPlace::NotAVault,
            other => NoPlace::Other(format!("the vault does not open: {other}")),
        })?;
        let options = FsOptions { atime: Atime::Never, ..FsOptions::default() };
        let fs = FileSystem::new(vault.clone(), options);
        let fs = fs.map_err(|e| NoPlace::Other(format!("the filesystem does not start: {e}")))?;
        Ok(Place { vault, fs })
    }

    /// Counts what its cleaner did.
    pub fn count(&self) {
        MOVED.fetch_add(self.vault.stats().moved_bytes.get(), SeqCst);
        REMOVED.fetch_add(self.vault.stats().segments_removed.get(), SeqCst);
    }

    pub fn close(self) -> Result<(), String> {
        self.count();
        drop(self.fs);
        self.vault.close().map_err(|e| format!("the vault does not close: {e}"))
    }

    /// Does a step of the filesystem; gives the inode that it made. What path look-up refuses, the tree says.
    pub fn perform(&self, step: &Step, tree: &Tree, held: Option<Ino>) -> Result<Option<Ino>, i32> {
        let fs = &self.fs;
        let done = |result: Result<(), FsFault>| result.map(|()| None).map_err(|e| e.errno());
        let made = |result: Result<Attr, FsFault>| {
            let ino = result.map_err(|e| e.errno())?.ino;
            fs.forget(ino, 1);
            Ok(Some(ino))
        };
        let at = |path: &str| tree.place(path).map(|(dir, name)| (dir, name.as_bytes().to_vec()));
        match step {
            Step::Create(path) => {
                let (dir, name) = at(path)?;
                made(fs.mknod(&CALLER, dir, &name, libc::S_IFREG | 0o644, 0))
            }
            Step::Mkdir(path) => {
                let (dir, name) = at(path)?;
                made(fs.mkdir(&CALLER, dir, &name, 0o755))
            }
            Step::Symlink(path, to) => {
                let (dir, name) = at(path)?;
                made(fs.symlink(&CALLER, dir, &name, to.as_bytes()))
            }
            Step::Write(path, offset, data) => done(fs.write(tree.find(path)?, *offset, &data.make(), STAMPED)),
            Step::WriteHeld(offset, data) => done(fs.write(held.ok_or(libc::EBADF)?, *offset, &data.make(), STAMPED)),
            Step::Truncate(path, size) => {
                let set = SetAttr { size: Some(*size), ..SetAttr::default() };
                done(fs.setattr(&CALLER, tree.find(path)?, &set).map(|_| ()))
            }
            Step::Punch(path, from, len) => done(fs.fallocate(tree.find(path)?, *from, *len, Fallocate::PunchHole)),
            Step::Copy(from, at, to, offset, len) => {
                let (source, target) = (tree.find(from)?, tree.find(to)?);
                let copied = fs.copy_file_range(source, *at, target, *offset, *len, STAMPED).map_err(|e| e.errno())?;
                // Nothing here is so large that it may be cut short, and half of it would be two operations.
                if copied == tree.copied_len(step) { Ok(None) } else { Err(libc::EDOM) }
            }
            Step::Link(old, new) => {
                let ino = tree.find(old)?;
                let (dir, name) = at(new)?;
                done(fs.link(ino, dir, &name).map(|attr| fs.forget(attr.ino, 1)))
            }
            Step::Unlink(path) => {
                let (dir, name) = at(path)?;
                done(fs.unlink(dir, &name))
            }
            Step::Rmdir(path) => {
                let (dir, name) = at(path)?;
                done(fs.rmdir(dir, &name))
            }
            Step::Rename(old, new) => {
                let ((dir, name), (to, new)) = (at(old)?, at(new)?);
                done(fs.rename(dir, &name, to, &new, RenameHow::Replace))
            }
            Step::Exchange(a, b) => {
                let ((dir, name), (to, new)) = (at(a)?, at(b)?);
                done(fs.rename(dir, &name, to, &new, RenameHow::Exchange))
            }
            Step::SetXattr(path, name, value) => {
                done(fs.setxattr(tree.find(path)?, name.as_bytes(), value.as_bytes(), XattrHow::Set))
            }
            Step::RemoveXattr(path, name) => done(fs.removexattr(tree.find(path)?, name.as_bytes())),
            Step::Chmod(path, mode) => {
                let set = SetAttr { mode: Some(*mode), ..SetAttr::default() };
                done(fs.setattr(&CALLER, tree.find(path)?, &set).map(|_| ()))
            }
            Step::Hold(path) => {
                let (dir, name) = at(path)?;
                fs.lookup(dir, &name).map(|attr| Some(attr.ino)).map_err(|e| e.errno())
            }
            Step::Release => {
                if let Some(ino) = held {
                    fs.forget(ino, 1);
                }
                Ok(None)
            }
            Step::Fsync | Step::SyncSoon | Step::Checkpoint | Step::Reopen | Step::Kill | Step::Wait(_) => {
                unreachable!("the player does these")
            }
        }
    }

    /// Takes the times, which are the filesystem's to choose, over into the tree.
    pub fn show_times(&self, tree: &mut Tree) {
        for ino in tree.inos() {
            if let Ok(attr) = self.fs.getattr(ino) {
                let old = tree.get(ino).map(|t| (t.mtime, t.ctime));
                if old != Some((attr.mtime, attr.ctime)) {
                    let thing = tree.at(ino);
                    (thing.mtime, thing.ctime) = (attr.mtime, attr.ctime);
                }
            }
        }
    }

    /// Everything that has a name.
    pub fn observe(&self) -> Result<Tree, String> {
        let fs = &self.fs;
        let say = |what: &str, ino: Ino, e: FsFault| format!("{what} of {ino}: {e:?}");
        let mut tree = Tree::default();
        let root = fs.getattr(ROOT_INO).map_err(|e| say("attributes", ROOT_INO, e))?;
        let mut todo = vec![root];
        while let Some(attr) = todo.pop() {
            let ino = attr.ino;
            if tree.get(ino).is_some() {
                continue;
            }
            let body = match attr.mode & libc::S_IFMT {
                libc::S_IFDIR => {
                    let mut names = BTreeMap::new();
                    let mut found = Vec::new();
                    let listed = fs.readdirplus(ino, 0, |e| {
                        if e.name != b"." && e.name != b".." {
                            let name = String::from_utf8_lossy(&e.name).into_owned();
                            names.insert(name, e.ino);
                            found.extend(e.attr);
                        }
                        true
                    });
                    listed.map_err(|e| say("listing", ino, e))?;
                    found.iter().for_each(|a| fs.forget(a.ino, 1));
                    todo.extend(found);
                    Body::Dir(names)
                }
                libc::S_IFLNK => Body::Link(fs.readlink(ino).map_err(|e| say("target", ino, e))?),
                _ => {
                    let mut data = Vec::with_capacity(attr.size as usize);
                    fs.read(ino, 0, attr.size as usize, &mut data).map_err(|e| say("content", ino, e))?;
                    Body::File(data)
                }
            };
            let mut thing = Thing::new(body, attr.mode);
            (thing.nlink, thing.mtime, thing.ctime) = (attr.nlink, attr.mtime, attr.ctime);
            if let XattrReply::Bytes(list) = fs.listxattr(ino, 1 << 16).map_err(|e| say("attribute names", ino, e))? {
                for name in list.split(|b| *b == 0).filter(|n| !n.is_empty()) {
                    let value = fs.getxattr(ino, name, 1 << 16).map_err(|e| say("an attribute", ino, e))?;
                    if let XattrReply::Bytes(value) = value {
                        thing.xattrs.insert(String::from_utf8_lossy(name).into_owned(), value);
                    }
                }
            }
            tree.put(ino, thing);
        }
        Ok(tree)
    }
}
