//! A directory in memory that forgets what was not synced: for tests.
//!
//! Promise: `crash` gives what a power cut may leave: every synced byte, and of the unsynced writes those that the given
//! function keeps; names likewise. `lie_about_sync` makes it the disk that every crash test must catch.
//! Called by: tests of every layer above. On failure: errors planted with `fail_next_writes`.

use super::{Backing, BackingFile, Cache, Open, Space};
use crate::base::lock::Held;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

#[derive(Default, Clone)]
struct Contents {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync, in order.
    unsynced: Vec<(u64, Vec<u8>)>,
}

#[derive(Default)]
struct Tree {
    files: BTreeMap<String, Arc<Mutex<Contents>>>,
    durable: BTreeMap<String, Arc<Mutex<Contents>>>,
    dirs: Vec<String>,
}

/// The directory.
#[derive(Default, Clone)]
pub struct MemoryBacking {
    tree: Arc<Mutex<Tree>>,
    locked: Arc<AtomicBool>,
    knobs: Arc<Knobs>,
}

#[derive(Default)]
struct Knobs {
    lie: AtomicBool,
    fail_writes: AtomicU64,
    spoil_writes: AtomicU64,
}

impl MemoryBacking {
    /// From now on, syncs do nothing and say that they did.
    pub fn lie_about_sync(&self) {
        self.knobs.lie.store(true, SeqCst);
    }

    /// The next `n` writes fail with EIO.
    pub fn fail_next_writes(&self, n: u64) {
        self.knobs.fail_writes.store(n, SeqCst);
    }

    /// The next `n` writes store something else than they were given, and say that they did not.
    pub fn spoil_next_writes(&self, n: u64) {
        self.knobs.spoil_writes.store(n, SeqCst);
    }

    /// What a power cut now leaves; `keep` decides for each unsynced write of each file whether it reached the disk.
    #[must_use]
    pub fn crash(&self, mut keep: impl FnMut(&str, usize) -> bool) -> MemoryBacking {
        let tree = self.tree.held();
        let mut after = Tree { dirs: tree.dirs.clone(), ..Tree::default() };
        for (path, file) in &tree.durable {
            let file = file.held();
            let mut bytes = file.durable.clone();
            for (i, (offset, data)) in file.unsynced.iter().enumerate() {
                if keep(path, i) {
                    put(&mut bytes, *offset, data);
                }
            }
            let contents = Contents { now: bytes.clone(), durable: bytes, unsynced: Vec::new() };
            after.files.insert(path.clone(), Arc::new(Mutex::new(contents)));
        }
        after.durable = after.files.clone();
        MemoryBacking { tree: Arc::new(Mutex::new(after)), ..MemoryBacking::default() }
    }

    /// Flips one bit of a file at rest.
    pub fn flip_bit(&self, path: &str, bit: u64) {
        if let Some(f) = self.tree.held().files.get(path) {
            let mut f = f.held();
            let (byte, mask) = ((bit / 8) as usize, 1 << (bit % 8));
            f.now[byte] ^= mask;
            f.durable[byte] ^= mask;
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (from, to) = (offset as usize, offset as usize + data.len());
    if bytes.len() < to {
        bytes.resize(to, 0);
    }
    bytes[from..to].copy_from_slice(data);
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Backing for MemoryBacking {
    fn open(&self, path: &str, how: Open, _cache: Cache) -> io::Result<Arc<dyn BackingFile>> {
        let mut tree = self.tree.held();
        let contents = match (tree.files.get(path), how) {
            (Some(_), Open::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, Open::Read | Open::Write) => return Err(io::ErrorKind::NotFound.into()),
            (Some(c), Open::Read | Open::Write) => Arc::clone(c),
            (None, Open::Create) => {
                let dir = parent(path);
                if !dir.is_empty() && !tree.dirs.iter().any(|d| d == dir) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let c = Arc::new(Mutex::new(Contents::default()));
                tree.files.insert(path.to_owned(), Arc::clone(&c));
                c
            }
        };
        Ok(Arc::new(MemoryFile { contents, knobs: Arc::clone(&self.knobs) }))
    }
    fn make_dir(&self, path: &str) -> io::Result<()> {
        let mut tree = self.tree.held();
        if tree.dirs.iter().any(|d| d == path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        tree.dirs.push(path.to_owned());
        Ok(())
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let tree = self.tree.held();
        let all = tree.files.keys().chain(&tree.dirs);
        let mut names: Vec<String> =
            all.filter(|p| parent(p) == path).map(|p| p.rsplit('/').next().unwrap_or(p).to_owned()).collect();
        names.sort_unstable();
        Ok(names)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut tree = self.tree.held();
        let file = tree.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        tree.files.insert(to.to_owned(), file);
        Ok(())
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.tree.held().files.remove(path).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        if self.knobs.lie.load(SeqCst) {
            return Ok(());
        }
        let mut tree = self.tree.held();
        let tree = &mut *tree;
        tree.durable.retain(|p, _| parent(p) != path || tree.files.contains_key(p));
        for (p, f) in &tree.files {
            if parent(p) == path {
                tree.durable.insert(p.clone(), Arc::clone(f));
            }
        }
        Ok(())
    }
    fn space(&self) -> io::Result<Space> {
        Ok(Space { total_bytes: 1 << 40, free_bytes: 1 << 40 })
    }
    fn lock(&self, _path: &str) -> io::Result<Box<dyn Send + Sync>> {
        struct Unlock(Arc<AtomicBool>);
        impl Drop for Unlock {
            fn drop(&mut self) {
                self.0.store(false, SeqCst);
            }
        }
        if self.locked.swap(true, SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Unlock(Arc::clone(&self.locked))))
    }
}

struct MemoryFile {
    contents: Arc<Mutex<Contents>>,
    knobs: Arc<Knobs>,
}

impl BackingFile for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let c = self.contents.held();
        let from = (offset as usize).min(c.now.len());
        let n = buf.len().min(c.now.len() - from);
        buf[..n].copy_from_slice(&c.now[from..from + n]);
        Ok(n)
    }
    fn read_device(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let left = &self.knobs.fail_writes;
        if left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let mut buf = buf.to_vec();
        let spoil = self.knobs.spoil_writes.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
        if let Some(byte) = buf.get_mut(100).filter(|_| spoil) {
            *byte ^= 1;
        }
        let mut c = self.contents.held();
        put(&mut c.now, offset, &buf);
        c.unsynced.push((offset, buf));
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.knobs.lie.load(SeqCst) {
            return Ok(());
        }
        let mut c = self.contents.held();
        c.durable = c.now.clone();
        c.unsynced.clear();
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.contents.held().now.len() as u64)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.contents.held().now.resize(len as usize, 0);
        Ok(())
    }
    fn preallocate(&self, len: u64) -> io::Result<()> {
        let mut c = self.contents.held();
        if c.now.len() < len as usize {
            c.now.resize(len as usize, 0);
        }
        Ok(())
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut c = self.contents.held();
        let end = c.now.len().min((offset + len) as usize);
        if let Some(range) = c.now.get_mut(offset as usize..end) {
            range.fill(0);
        }
        Ok(())
    }
    fn is_direct(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_takes_what_was_not_synced_and_only_that() {
        let b = MemoryBacking::default();
        let f = b.open("f", Open::Create, Cache::Direct).unwrap();
        b.sync_dir("").unwrap();
        f.write_all_at(b"old", 0).unwrap();
        f.sync_data().unwrap();
        f.write_all_at(b"new", 0).unwrap();
        let read = |b: &MemoryBacking| super::super::read_file(b, "f", 100).unwrap();
        assert_eq!(read(&b.crash(|_, _| false)), b"old");
        assert_eq!(read(&b.crash(|_, _| true)), b"new");
        assert!(b.open("g", Open::Create, Cache::Direct).is_ok());
        assert!(b.crash(|_, _| true).open("g", Open::Read, Cache::Direct).is_err(), "its name was never synced");
    }

    #[test]
    fn the_lying_disk_loses_what_it_said_was_safe() {
        let b = MemoryBacking::default();
        let f = b.open("f", Open::Create, Cache::Direct).unwrap();
        b.sync_dir("").unwrap();
        b.lie_about_sync();
        f.write_all_at(b"x", 0).unwrap();
        f.sync_data().unwrap();
        assert_eq!(super::super::read_file(&b.crash(|_, _| false), "f", 9).unwrap(), b"");
    }
}
