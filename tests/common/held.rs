//! A disk whose calls can be held up by the test.
//!
//! Promise: every call reaches the disk below, in the calling thread, once `before` has returned. Included by its path.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use strongroom::backing::{Backing, BackingFile, Cache, MemoryBacking, Open, Space};

/// What is about to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Open,
    Create,
    Read,
    ReadDevice,
    Write,
    Sync,
    Len,
    SetLen,
    Preallocate,
    Punch,
    MakeDir,
    List,
    Rename,
    Remove,
    SyncDir,
    Space,
}

/// Every one of them.
pub const CALLS: [Call; 16] = [
    Call::Open,
    Call::Create,
    Call::Read,
    Call::ReadDevice,
    Call::Write,
    Call::Sync,
    Call::Len,
    Call::SetLen,
    Call::Preallocate,
    Call::Punch,
    Call::MakeDir,
    Call::List,
    Call::Rename,
    Call::Remove,
    Call::SyncDir,
    Call::Space,
];

type Before = Arc<dyn Fn(Call, &str) + Send + Sync>;

/// The disk; `before` is told of each call, with the path (of a rename the new one).
#[derive(Clone)]
pub struct HeldDisk {
    disk: MemoryBacking,
    before: Before,
}

struct HeldFile {
    file: Arc<dyn BackingFile>,
    path: String,
    before: Before,
}

impl HeldDisk {
    pub fn new(disk: &MemoryBacking, before: impl Fn(Call, &str) + Send + Sync + 'static) -> HeldDisk {
        HeldDisk { disk: disk.clone(), before: Arc::new(before) }
    }
}

/// Where calls stop while it is shut.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    shut: bool,
    waiting: usize,
}

impl Gate {
    /// Waits until it is open.
    pub fn pass(&self) {
        let mut state = self.0.0.lock().unwrap();
        state.waiting += 1;
        self.0.1.notify_all();
        while state.shut {
            state = self.0.1.wait(state).unwrap();
        }
        state.waiting -= 1;
    }

    fn set(&self, shut: bool) {
        self.0.0.lock().unwrap().shut = shut;
        self.0.1.notify_all();
    }

    /// Shut until what is given back is dropped.
    pub fn shut(&self) -> Shut {
        self.set(true);
        Shut(self.clone())
    }

    /// Waits until somebody waits for it to open; false if nobody comes for so long.
    pub fn has_visitor(&self, most: Duration) -> bool {
        let state = self.0.0.lock().unwrap();
        !self.0.1.wait_timeout_while(state, most, |s| s.waiting == 0).unwrap().1.timed_out()
    }

    /// Waits until so many wait for it to open.
    pub fn wait_for(&self, waiting: usize) {
        let (state, limit) = (self.0.0.lock().unwrap(), Duration::from_secs(30));
        let (state, late) = self.0.1.wait_timeout_while(state, limit, |s| s.waiting < waiting).unwrap();
        assert!(!late.timed_out(), "{} wait at the gate after {limit:?}, and not {waiting}", state.waiting);
    }
}

pub struct Shut(Gate);

impl Drop for Shut {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Backing for HeldDisk {
    fn open(&self, path: &str, how: Open, cache: Cache) -> io::Result<Arc<dyn BackingFile>> {
        (self.before)(if how == Open::Create { Call::Create } else { Call::Open }, path);
        let file = self.disk.open(path, how, cache)?;
        Ok(Arc::new(HeldFile { file, path: path.to_owned(), before: Arc::clone(&self.before) }))
    }
    fn make_dir(&self, path: &str) -> io::Result<()> {
        (self.before)(Call::MakeDir, path);
        self.disk.make_dir(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        (self.before)(Call::List, path);
        self.disk.list(path)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        (self.before)(Call::Rename, to);
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        (self.before)(Call::Remove, path);
        self.disk.remove(path)
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        (self.before)(Call::SyncDir, path);
        self.disk.sync_dir(path)
    }
    fn space(&self) -> io::Result<Option<Space>> {
        (self.before)(Call::Space, "");
        self.disk.space()
    }
    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.disk.lock(path)
    }
}

impl BackingFile for HeldFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (self.before)(Call::Read, &self.path);
        self.file.read_at(buf, offset)
    }
    fn read_device(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (self.before)(Call::ReadDevice, &self.path);
        self.file.read_device(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        (self.before)(Call::Write, &self.path);
        self.file.write_all_at(buf, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        (self.before)(Call::Sync, &self.path);
        self.file.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        (self.before)(Call::Len, &self.path);
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        (self.before)(Call::SetLen, &self.path);
        self.file.set_len(len)
    }
    fn preallocate(&self, len: u64) -> io::Result<()> {
        (self.before)(Call::Preallocate, &self.path);
        self.file.preallocate(len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        (self.before)(Call::Punch, &self.path);
        self.file.punch(offset, len)
    }
    fn links(&self) -> io::Result<u64> {
        self.file.links()
    }
    fn identity(&self) -> io::Result<Option<(u64, u64)>> {
        self.file.identity()
    }
    fn is_direct(&self) -> bool {
        true
    }
}
