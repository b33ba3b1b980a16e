//! A directory whose place another one can take: the same vault, on a disk that was unplugged and came back.
//!
//! Promise: every call goes to the directory that is in force when it begins. Files that are open stay those of the directory that they
//! were opened in. Called by: `vault::reopen`, and everyone who uses the backing directory. On failure: as the directory says.

use super::{Backing, BackingFile, Cache, Open, Space};
use crate::base::lock::Shared;
use std::io;
use std::sync::{Arc, RwLock};

/// The directory in force.
pub struct Replaceable {
    now: RwLock<Arc<dyn Backing>>,
}

impl Replaceable {
    /// Begins with a directory.
    #[must_use]
    pub fn new(first: Arc<dyn Backing>) -> Arc<Replaceable> {
        Arc::new(Replaceable { now: RwLock::new(first) })
    }

    /// The directory in force.
    pub fn now(&self) -> Arc<dyn Backing> {
        Arc::clone(&self.now.shared())
    }

    /// Puts another in its place; gives the one of before.
    pub fn replace(&self, next: Arc<dyn Backing>) -> Arc<dyn Backing> {
        std::mem::replace(&mut *self.now.alone(), next)
    }
}

impl Backing for Replaceable {
    fn open(&self, path: &str, how: Open, cache: Cache) -> io::Result<Arc<dyn BackingFile>> {
        self.now().open(path, how, cache)
    }
    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.now().make_dir(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.now().list(path)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.now().rename(from, to)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.now().remove(path)
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.now().sync_dir(path)
    }
    fn space(&self) -> io::Result<Option<Space>> {
        self.now().space()
    }
    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.now().lock(path)
    }
    fn identity(&self) -> io::Result<Option<(u64, u64)>> {
        self.now().identity()
    }
}
