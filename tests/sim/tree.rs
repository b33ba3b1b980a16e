//! The reference: what the filesystem should be, as a tree of which a copy costs a counter for each inode.
//!
//! Promise: it says for each operation what POSIX says, errno included, without looking at the vault; only what POSIX
//! leaves to the filesystem (inode numbers, times) is taken from what the running filesystem showed.

use super::program::Step;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use strongroom::backing::mix;
use strongroom::base::id::{Ino, ROOT_INO};
use strongroom::base::world::Time;

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    File(Vec<u8>),
    Link(Vec<u8>),
    Dir(BTreeMap<String, Ino>),
}

/// An inode.
#[derive(Debug, Clone)]
pub struct Thing {
    pub body: Body,
    pub nlink: u32,
    pub mode: u32,
    pub mtime: Time,
    pub ctime: Time,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Its hash, once someone asked.
    hash: OnceLock<u64>,
}

impl Thing {
    pub fn new(body: Body, mode: u32) -> Thing {
        let nlink = if matches!(body, Body::Dir(_)) { 2 } else { 1 };
        let (mtime, ctime) = (Time::default(), Time::default());
        Thing { body, nlink, mode, mtime, ctime, xattrs: BTreeMap::new(), hash: OnceLock::new() }
    }
    fn hash(&self, ino: Ino) -> u64 {
        *self.hash.get_or_init(|| {
            let mut h = Hash(ino.0);
            h.add(u64::from(self.nlink) << 32 | u64::from(self.mode));
            for t in [self.mtime, self.ctime] {
                h.add(t.seconds as u64);
                h.add(u64::from(t.nanos));
            }
            match &self.body {
                Body::File(data) => h.bytes(1, data),
                Body::Link(to) => h.bytes(2, to),
                Body::Dir(names) => names.iter().for_each(|(name, ino)| {
                    h.bytes(3, name.as_bytes());
                    h.add(ino.0);
                }),
            }
            for (name, value) in &self.xattrs {
                h.bytes(4, name.as_bytes());
                h.bytes(5, value);
            }
            h.0
        })
    }
    fn say(&self) -> String {
        let body = match &self.body {
            Body::File(data) => format!("file of {} bytes, {:016x}", data.len(), Hash::of(data)),
            Body::Link(to) => format!("link to {}", String::from_utf8_lossy(to)),
            Body::Dir(names) => format!("directory {names:?}"),
        };
        let xattrs: Vec<_> = self.xattrs.iter().map(|(k, v)| format!("{k}={}", String::from_utf8_lossy(v))).collect();
        format!(
            "{body}, mode {:o}, {} links, mtime {}.{:09}, ctime {}.{:09}, {xattrs:?}",
            self.mode, self.nlink, self.mtime.seconds, self.mtime.nanos, self.ctime.seconds, self.ctime.nanos
        )
    }
}

struct Hash(u64);

impl Hash {
    fn add(&mut self, n: u64) {
        self.0 = mix(self.0.rotate_left(5) ^ n);
    }
    fn bytes(&mut self, tag: u64, bytes: &[u8]) {
        self.add(tag << 56 | bytes.len() as u64);
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            let word = u64::from_le_bytes(word.try_into().unwrap());
            self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        let mut last = [0; 8];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        self.add(u64::from_le_bytes(last));
    }
    fn of(bytes: &[u8]) -> u64 {
        let mut h = Hash(0);
        h.bytes(0, bytes);
        h.0
    }
}

/// Everything that has a name, or is held open.
#[derive(Debug, Clone, Default)]
pub struct Tree(BTreeMap<Ino, Arc<Thing>>);

impl Tree {
    /// A new filesystem.
    pub fn new() -> Tree {
        let root = Thing::new(Body::Dir(BTreeMap::new()), libc::S_IFDIR | 0o755);
        Tree(BTreeMap::from([(ROOT_INO, Arc::new(root))]))
    }
    pub fn put(&mut self, ino: Ino, thing: Thing) {
        self.0.insert(ino, Arc::new(thing));
    }
    pub fn get(&self, ino: Ino) -> Option<&Thing> {
        self.0.get(&ino).map(|t| &**t)
    }
    /// To be changed.
    pub fn at(&mut self, ino: Ino) -> &mut Thing {
        let thing = Arc::make_mut(self.0.get_mut(&ino).expect("the reference knows the inode"));
        thing.hash = OnceLock::new();
        thing
    }
    pub fn inos(&self) -> Vec<Ino> {
        self.0.keys().copied().collect()
    }
    /// Inodes with a name.
    pub fn named(&self) -> usize {
        self.0.values().filter(|t| t.nlink > 0).count()
    }
    /// The hash of everything that has a name.
    pub fn hash(&self) -> u64 {
        let named = self.0.iter().filter(|(_, t)| t.nlink > 0);
        named.fold(0, |h, (ino, t)| h ^ mix(t.hash(*ino)))
    }

    fn names(&self, dir: Ino) -> Result<&BTreeMap<String, Ino>, i32> {
        match &self.0[&dir].body {
            Body::Dir(names) => Ok(names),
            _ => Err(libc::ENOTDIR),
        }
    }
    fn names_mut(&mut self, dir: Ino) -> &mut BTreeMap<String, Ino> {
        match &mut self.at(dir).body {
            Body::Dir(names) => names,
            _ => panic!("a directory was looked up"),
        }
    }
    pub fn is_dir(&self, ino: Ino) -> bool {
        matches!(self.0[&ino].body, Body::Dir(_))
    }
    /// Directory and last name of a path.
    pub fn place<'p>(&self, path: &'p str) -> Result<(Ino, &'p str), i32> {
        match path.rsplit_once('/') {
            None => Ok((ROOT_INO, path)),
            Some((dir, name)) => {
                let dir = self.find(dir)?;
                if self.is_dir(dir) { Ok((dir, name)) } else { Err(libc::ENOTDIR) }
            }
        }
    }
    pub fn find(&self, path: &str) -> Result<Ino, i32> {
        let (dir, name) = self.place(path)?;
        self.names(dir)?.get(name).copied().ok_or(libc::ENOENT)
    }
    fn file(&self, path: &str) -> Result<Ino, i32> {
        let ino = self.find(path)?;
        match self.0[&ino].body {
            Body::File(_) => Ok(ino),
            Body::Dir(_) => Err(libc::EISDIR),
            Body::Link(_) => Err(libc::EINVAL),
        }
    }
    fn content(&mut self, ino: Ino) -> &mut Vec<u8> {
        match &mut self.at(ino).body {
            Body::File(data) => data,
            _ => panic!("a file was looked up"),
        }
    }

    /// Takes a name away.
    fn drop_name(&mut self, path: &str) -> Result<(), i32> {
        let (dir, name) = self.place(path)?;
        let ino = self.names_mut(dir).remove(name).ok_or(libc::ENOENT)?;
        if self.is_dir(ino) {
            self.at(ino).nlink = 0;
            self.at(dir).nlink -= 1;
        } else {
            self.at(ino).nlink -= 1;
        }
        Ok(())
    }
    fn set_name(&mut self, path: &str, ino: Ino) -> Result<(), i32> {
        let (dir, name) = self.place(path)?;
        self.names_mut(dir).insert(name.to_owned(), ino);
        if self.is_dir(ino) {
            self.at(dir).nlink += 1;
        }
        Ok(())
    }
    fn take(&mut self, path: &str) -> Result<Ino, i32> {
        let (dir, name) = self.place(path)?;
        let ino = self.names_mut(dir).remove(name).ok_or(libc::ENOENT)?;
        if self.is_dir(ino) {
            self.at(dir).nlink -= 1;
        }
        Ok(ino)
    }

    /// What an operation comes to; `made` is the number that a new inode got, `held` the file that is open.
    pub fn step(&mut self, step: &Step, made: Option<Ino>, held: Option<Ino>) -> Result<(), i32> {
        match step {
            Step::Create(path) => self.make(path, made, Thing::new(Body::File(Vec::new()), libc::S_IFREG | 0o644)),
            Step::Mkdir(path) => self.make(path, made, Thing::new(Body::Dir(BTreeMap::new()), libc::S_IFDIR | 0o755)),
            Step::Symlink(path, to) => {
                self.make(path, made, Thing::new(Body::Link(to.clone().into_bytes()), libc::S_IFLNK | 0o777))
            }
            Step::Write(path, offset, data) => {
                let ino = self.file(path)?;
                self.write(ino, *offset, &data.make());
                Ok(())
            }
            Step::WriteHeld(offset, data) => {
                self.write(held.ok_or(libc::EBADF)?, *offset, &data.make());
                Ok(())
            }
            Step::Truncate(path, len) => {
                let ino = self.file(path)?;
                self.content(ino).resize(*len as usize, 0);
                Ok(())
            }
            Step::Punch(path, from, len) => {
                let ino = self.file(path)?;
                let data = self.content(ino);
                let (from, to) = ((*from as usize).min(data.len()), ((from + len) as usize).min(data.len()));
                data[from..to].fill(0);
                Ok(())
            }
            Step::Copy(from, at, to, offset, _) => {
                let (source, target) = (self.file(from)?, self.file(to)?);
                let len = self.copied_len(step);
                if source == target && *at < offset + len && *offset < at + len {
                    return Err(libc::EINVAL);
                }
                if len > 0 {
                    let bytes = self.content(source)[*at as usize..(at + len) as usize].to_vec();
                    self.write(target, *offset, &bytes);
                }
                Ok(())
            }
            Step::Link(old, new) => {
                let ino = self.find(old)?;
                let (dir, name) = self.place(new)?;
                if self.names(dir)?.contains_key(name) {
                    return Err(libc::EEXIST);
                }
                if self.is_dir(ino) {
                    return Err(libc::EPERM);
                }
                self.at(ino).nlink += 1;
                self.set_name(new, ino)
            }
            Step::Unlink(path) => {
                let ino = self.find(path)?;
                if self.is_dir(ino) { Err(libc::EISDIR) } else { self.drop_name(path) }
            }
            Step::Rmdir(path) => {
                let ino = self.find(path)?;
                if !self.names(ino)?.is_empty() {
                    return Err(libc::ENOTEMPTY);
                }
                self.drop_name(path)
            }
            Step::Rename(old, new) => self.rename(old, new),
            Step::Exchange(a, b) => {
                let (x, y) = (self.find(a)?, self.find(b)?);
                if x == y {
                    return Ok(());
                }
                if self.is_dir(x) && within(b, a) || self.is_dir(y) && within(a, b) {
                    return Err(libc::EINVAL);
                }
                self.take(a)?;
                self.take(b)?;
                self.set_name(a, y)?;
                self.set_name(b, x)
            }
            Step::SetXattr(path, name, value) => {
                let ino = self.find(path)?;
                self.at(ino).xattrs.insert(name.clone(), value.clone().into_bytes());
                Ok(())
            }
            Step::RemoveXattr(path, name) => {
                let ino = self.find(path)?;
                self.at(ino).xattrs.remove(name).map(|_| ()).ok_or(libc::ENODATA)
            }
            Step::Chmod(path, mode) => {
                let ino = self.find(path)?;
                let thing = self.at(ino);
                thing.mode = thing.mode & libc::S_IFMT | mode;
                Ok(())
            }
            Step::Hold(path) => self.file(path).map(|_| ()),
            Step::Release
            | Step::Fsync
            | Step::SyncSoon
            | Step::Checkpoint
            | Step::Reopen
            | Step::Kill
            | Step::Wait(_) => Ok(()),
        }
    }

    fn make(&mut self, path: &str, made: Option<Ino>, thing: Thing) -> Result<(), i32> {
        let (dir, name) = self.place(path)?;
        if self.names(dir)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        let ino = made.expect("what the reference allows was made");
        assert!(!self.0.contains_key(&ino), "inode numbers are not used again");
        self.put(ino, thing);
        self.set_name(path, ino)
    }

    /// How many bytes a copy moves: those that are there.
    pub fn copied_len(&self, step: &Step) -> u64 {
        let Step::Copy(from, at, _, _, len) = step else { return 0 };
        match self.find(from).map(|ino| &self.0[&ino].body) {
            Ok(Body::File(data)) => (*len).min((data.len() as u64).saturating_sub(*at)),
            _ => 0,
        }
    }

    fn write(&mut self, ino: Ino, offset: u64, new: &[u8]) {
        let data = self.content(ino);
        let (from, to) = (offset as usize, offset as usize + new.len());
        if data.len() < to {
            data.resize(to, 0);
        }
        data[from..to].copy_from_slice(new);
    }

    fn rename(&mut self, old: &str, new: &str) -> Result<(), i32> {
        let source = self.find(old)?;
        let (dir, name) = self.place(new)?;
        let target = self.names(dir)?.get(name).copied();
        if target == Some(source) {
            return Ok(());
        }
        if self.is_dir(source) && within(new, old) {
            return Err(libc::EINVAL);
        }
        if let Some(target) = target {
            match (self.is_dir(source), self.is_dir(target)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.names(target)?.is_empty() => return Err(libc::ENOTEMPTY),
                _ => self.drop_name(new)?,
            }
        }
        self.take(old)?;
        self.set_name(new, source)
    }

    /// Lets go of what has no name and is not held.
    pub fn bury(&mut self, held: Option<Ino>) {
        self.0.retain(|ino, t| t.nlink > 0 || held == Some(*ino));
    }

    /// What differs, for a person.
    pub fn differences(&self, found: &Tree) -> String {
        let mut out = String::new();
        let named = |t: &Tree| t.0.iter().filter(|(_, t)| t.nlink > 0).map(|(i, _)| *i).collect::<Vec<_>>();
        let all: std::collections::BTreeSet<Ino> = named(self).into_iter().chain(named(found)).collect();
        for ino in all {
            let (want, have) = (self.get(ino).filter(|t| t.nlink > 0), found.get(ino));
            if want.map(|t| t.hash(ino)) == have.map(|t| t.hash(ino)) {
                continue;
            }
            let say = |t: Option<&Thing>| t.map_or("nothing".to_owned(), Thing::say);
            let _ = write!(out, "\n    {ino}: should be {}\n    {ino}: found     {}", say(want), say(have));
            if let (Some(Body::File(a)), Some(Body::File(b))) = (want.map(|t| &t.body), have.map(|t| &t.body)) {
                let at = a.iter().zip(b).position(|(x, y)| x != y);
                let _ = write!(out, " (first difference at {at:?})");
            }
        }
        out
    }
}

/// Whether `path` lies in `dir`, or is it.
fn within(path: &str, dir: &str) -> bool {
    path == dir || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}
