//! A vault on a disk in memory that has lived, for tests that give it a new master key.
//!
//! Promise: `made` gives a vault with holes punched, copies that share frames, removed files, several leases, and the slots
//! `first`, `second` and a recovery key; `holds_all` fails the test unless every file of it is there, byte for byte, and `check`
//! finds nothing; `rekeyed` does what the command does.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::{Arc, OnceLock};
use strongroom::backing::{Backing, Cache, MemoryBacking, Open, read_file};
use strongroom::base::id::{Ino, ROOT_INO};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::check::check;
use strongroom::fs::{Caller, Fallocate, FileSystem, FsOptions, WriteHow};
use strongroom::seal::{MasterKey, Unlock};
use strongroom::segment::SNAPSHOTS;
use strongroom::vault::{
    CreateOptions, HEADER, HeaderTexts, OpenFault, OpenOptions, PinStore, Rekey, RekeyFault, RekeyReport, create, lock,
};

pub const ROOTS: [&str; 2] = ["root.a", "root.b"];

pub fn key_file(byte: u8) -> Unlock {
    Unlock::KeyFile(Passphrase(vec![byte; 40]))
}

pub fn first() -> Unlock {
    key_file(1)
}

pub fn second() -> Unlock {
    key_file(2)
}

pub fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

pub fn noise(seed: u64, len: u64) -> Vec<u8> {
    (0..len).map(|i| (strongroom::backing::mix((seed << 32) | (i / 8)) >> ((i % 8) * 8)) as u8).collect()
}

pub fn words(len: usize) -> Vec<u8> {
    (0..).flat_map(|n| format!("line {n} of a text that compresses well\n").into_bytes()).take(len).collect()
}

/// The files of `made`, by name.
pub fn files() -> Vec<(&'static str, Vec<u8>)> {
    let mut over = noise(3, 90_000);
    over[10..21].copy_from_slice(b"overwritten");
    over[20_000..70_000].fill(0);
    let mut copy = vec![0; 777];
    copy.extend_from_slice(&words(70_000)[5_000..55_000]);
    vec![
        ("text", words(70_000)),
        ("random", noise(1, 60_000)),
        ("over", over),
        ("copy", copy),
        ("copy-of-gone", noise(2, 50_000)[10_000..].to_vec()),
        ("empty", Vec::new()),
        ("small", b"three bytes and some".to_vec()),
    ]
}

pub fn mounted(disk: &MemoryBacking, unlock: &Unlock) -> Result<FileSystem, OpenFault> {
    let options = OpenOptions { workers: 1, ..OpenOptions::default() };
    let vault = lock(Arc::new(disk.clone()))?.open(unlock, &options, world())?;
    Ok(FileSystem::new(vault, FsOptions { uid: 1000, gid: 100, ..FsOptions::default() }).unwrap())
}

pub fn find(fs: &FileSystem, name: &str) -> Option<Ino> {
    fs.lookup(ROOT_INO, name.as_bytes()).ok().map(|attr| attr.ino)
}

pub fn read(fs: &FileSystem, name: &str) -> Option<Vec<u8>> {
    let (ino, mut out) = (find(fs, name)?, Vec::new());
    fs.read(ino, 0, 1 << 20, &mut out).ok().map(|()| out)
}

pub fn write(fs: &FileSystem, name: &str, at: u64, body: &[u8]) -> Ino {
    let new = || fs.mknod(&Caller { uid: 1000, gid: 100, umask: 0 }, ROOT_INO, name.as_bytes(), 0o644, 0).unwrap().ino;
    let ino = find(fs, name).unwrap_or_else(new);
    fs.write(ino, at, body, WriteHow::default()).unwrap();
    ino
}

pub fn closed(fs: FileSystem) {
    fs.vault().close().unwrap();
}

/// The same vault each time.
pub fn made() -> MemoryBacking {
    static MADE: OnceLock<MemoryBacking> = OnceLock::new();
    MADE.get_or_init(make).copy()
}

fn make() -> MemoryBacking {
    let disk = MemoryBacking::default();
    create(&(Arc::new(disk.clone()) as Arc<dyn Backing>), &first(), &CreateOptions::default(), &world()).unwrap();
    lock(Arc::new(disk.clone())).unwrap().slots(&first(), world()).unwrap().add(&second(), "second", None).unwrap();
    let fs = mounted(&disk, &first()).unwrap();
    for (name, body) in files().iter().filter(|(name, _)| !name.starts_with("copy") && *name != "over") {
        write(&fs, name, 0, body);
        fs.sync_wait().unwrap();
    }
    let gone = write(&fs, "gone", 0, &noise(2, 50_000));
    let over = write(&fs, "over", 0, &noise(3, 90_000));
    fs.sync_wait().unwrap();
    let copy = write(&fs, "copy-of-gone", 0, b"");
    fs.copy_file_range(gone, 10_000, copy, 0, 40_000, WriteHow::default()).unwrap();
    fs.fallocate(over, 20_000, 50_000, Fallocate::PunchHole).unwrap();
    fs.vault().snapshot().unwrap();
    closed(fs);
    let fs = mounted(&disk, &first()).unwrap();
    write(&fs, "over", 10, b"overwritten");
    let (text, copy) = (find(&fs, "text").unwrap(), write(&fs, "copy", 0, b""));
    fs.copy_file_range(text, 5_000, copy, 777, 50_000, WriteHow::default()).unwrap();
    fs.unlink(ROOT_INO, b"gone").unwrap();
    fs.vault().snapshot().unwrap();
    closed(fs);
    // What died is punched out once a checkpoint does not name it.
    closed(mounted(&disk, &first()).unwrap());
    disk
}

/// All that `made` has, in a vault that may have more by now.
pub fn holds_all(disk: &MemoryBacking, unlock: &Unlock) {
    let fs = mounted(disk, unlock).unwrap_or_else(|fault| panic!("{fault}"));
    for (name, body) in files() {
        assert!(read(&fs, name).as_ref() == Some(&body), "{name}");
    }
    assert!(fs.vault().stats().errors().is_empty() && fs.vault().index_lost().is_none());
    closed(fs);
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    assert_eq!(check(&backing, unlock, &world(), true, &|_, _| {}).unwrap(), []);
}

/// Opens the vault to be given a new key, as the command does: used and closed first.
pub fn opened(disk: &MemoryBacking, unlock: &Unlock, pins: &[PinStore]) -> Result<Rekey, RekeyFault> {
    let locked = || Ok::<_, RekeyFault>(lock(Arc::new(disk.clone()))?.remembered(pins.to_vec(), None));
    let vault = locked()?.open(unlock, &OpenOptions { workers: 1, ..OpenOptions::default() }, world())?;
    vault.close().map_err(OpenFault::from)?;
    drop(vault);
    locked()?.rekey(unlock, world())
}

/// Gives the vault a new key, or goes on with that; `first` stays, the other slots go.
pub fn rekeyed_with(disk: &MemoryBacking, pins: &[PinStore], leave_out: bool) -> Result<RekeyReport, RekeyFault> {
    rekeyed_telling(disk, &first(), pins, leave_out, &|_, _| {})
}

/// The same of any vault, and of how far it is.
pub fn rekeyed_telling(
    disk: &MemoryBacking,
    unlock: &Unlock,
    pins: &[PinStore],
    leave_out: bool,
    tell: &dyn Fn(u64, u64),
) -> Result<RekeyReport, RekeyFault> {
    let mut rekey = opened(disk, unlock, pins)?;
    if !rekey.is_unfinished() && rekey.header().key.0 == 0 {
        let plan = rekey.plan(std::slice::from_ref(unlock), true)?;
        rekey.begin(&plan, None, None)?;
    }
    rekey.run(leave_out, tell)
}

pub fn rekeyed(disk: &MemoryBacking) -> Result<RekeyReport, RekeyFault> {
    rekeyed_with(disk, &[], false)
}

pub fn master(disk: &MemoryBacking) -> MasterKey {
    HeaderTexts::read(disk).unwrap().unwrap().open(&first()).unwrap().master
}

/// The number of the key that the header names.
pub fn key_number(disk: &MemoryBacking) -> u16 {
    HeaderTexts::read(disk).unwrap().unwrap().open(&first()).unwrap().header.key.0
}

pub fn bytes(disk: &MemoryBacking, path: &str) -> Vec<u8> {
    read_file(disk, path, 1 << 30).unwrap()
}

pub fn put(disk: &MemoryBacking, path: &str, bytes: &[u8]) {
    let _ = disk.remove(path);
    let file = disk.open(path, Open::Create, Cache::Buffered).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(path.rsplit_once('/').map_or("", |(dir, _)| dir)).unwrap();
}

/// The paths of a vault's files, but the lock.
pub fn all_files(disk: &MemoryBacking) -> Vec<String> {
    let below = |dir: &'static str| disk.list(dir).unwrap().into_iter().map(move |name| format!("{dir}/{name}"));
    let top = [HEADER.to_owned(), format!("{HEADER}.copy")].into_iter().chain(ROOTS.map(str::to_owned));
    let snapshots = disk.list(SNAPSHOTS).unwrap_or_default().into_iter().map(|name| format!("{SNAPSHOTS}/{name}"));
    top.chain(below("segments")).chain(below("index")).chain(snapshots).collect()
}
