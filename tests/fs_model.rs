//! Method: run a random program on the filesystem and on a map in memory, side by side, with the vault closed and
//! opened again in between; compare every result, every errno and, at each reopening, everything there is.
//! Promise: names, attributes, content, extended attributes and what unlinked but open files hold are as POSIX says;
//! nothing is leaked: the vault counts exactly the inodes that the map holds.
//! `STRONGROOM_SEEDS=n` runs n programs, `STRONGROOM_SEED=s` replays one.
#![allow(clippy::unwrap_used)] // tests may

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use strongroom::backing::{Backing, MemoryBacking};
use strongroom::base::id::{Ino, ROOT_INO};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, Time, World};
use strongroom::fs::{
    Caller, Fallocate, FileSystem, FsFault, FsOptions, RenameHow, SetAttr, SetTime, WriteHow, XattrHow, XattrReply,
};
use strongroom::seal::Unlock;
use strongroom::vault::{self, CreateOptions, OpenOptions, Vault};

const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "name with spaces", "ünï\u{1f512}"];
const XATTRS: [&str; 3] = ["user.one", "user.two", "trusted.three"];
const CALLER: Caller = Caller { uid: 7, gid: 8, umask: 0o022 };

/// splitmix64.
struct Dice(u64);
impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
    /// Small mostly, across chunks sometimes.
    fn offset(&mut self) -> u64 {
        let most = *self.pick(&[100, 5000, 70_000, 400_000]);
        self.below(most) as u64
    }
    fn bytes(&mut self) -> Vec<u8> {
        let most = *self.pick(&[1, 100, 5000, 150_000]);
        let len = 1 + self.below(most);
        // Half of it compresses.
        if self.below(2) == 0 { vec![self.next() as u8; len] } else { (0..len).map(|_| self.next() as u8).collect() }
    }
}

enum Body {
    File(Vec<u8>),
    Link(Vec<u8>),
    Dir { names: BTreeMap<String, Ino>, parent: Ino },
    Fifo,
}

struct Thing {
    body: Body,
    nlink: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Option<Time>,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Look-ups not yet forgotten.
    held: u64,
}

/// What the filesystem should be.
struct Model(BTreeMap<Ino, Thing>);

impl Model {
    fn new() -> Model {
        let body = Body::Dir { names: BTreeMap::new(), parent: ROOT_INO };
        Model(BTreeMap::from([(ROOT_INO, thing(body, 0o40_755, 2, 0, 0))]))
    }
    fn at(&mut self, ino: Ino) -> &mut Thing {
        self.0.get_mut(&ino).expect("the model knows the inode")
    }
    fn names(&mut self, dir: Ino) -> &mut BTreeMap<String, Ino> {
        match &mut self.at(dir).body {
            Body::Dir { names, .. } => names,
            _ => panic!("not a directory"),
        }
    }
    fn is_dir(&self, ino: Ino) -> bool {
        matches!(self.0[&ino].body, Body::Dir { .. })
    }
    /// Directories that have a name, and the root.
    fn dirs(&self) -> Vec<Ino> {
        self.0.iter().filter(|(_, t)| matches!(t.body, Body::Dir { .. }) && t.nlink > 0).map(|(i, _)| *i).collect()
    }
    /// What may be used: it has a name or is held.
    fn usable(&self, which: impl Fn(&Thing) -> bool) -> Vec<Ino> {
        self.0.iter().filter(|(_, t)| (t.nlink > 0 || t.held > 0) && which(t)).map(|(i, _)| *i).collect()
    }
    fn unlink(&mut self, dir: Ino, name: &str) {
        let ino = self.names(dir).remove(name).expect("the name is there");
        if self.is_dir(ino) {
            self.at(ino).nlink = 0;
            self.at(dir).nlink -= 1;
        } else {
            self.at(ino).nlink -= 1;
        }
        self.bury();
    }
    fn bury(&mut self) {
        self.0.retain(|_, t| t.nlink > 0 || t.held > 0);
    }
    fn put(&mut self, dir: Ino, name: &str, ino: Ino) {
        self.names(dir).insert(name.to_owned(), ino);
        if let Body::Dir { parent, .. } = &mut self.at(ino).body {
            *parent = dir;
            self.at(dir).nlink += 1;
        }
    }
    fn take(&mut self, dir: Ino, name: &str) -> Ino {
        let ino = self.names(dir).remove(name).expect("the name is there");
        if self.is_dir(ino) {
            self.at(dir).nlink -= 1;
        }
        ino
    }
    fn is_within(&self, dir: Ino, ancestor: Ino) -> bool {
        let mut at = dir;
        loop {
            if at == ancestor {
                return true;
            }
            match &self.0[&at].body {
                Body::Dir { parent, .. } if at != ROOT_INO => at = *parent,
                _ => return false,
            }
        }
    }

    fn rename(&mut self, from: Ino, name: &str, to: Ino, new: &str, how: RenameHow) -> Result<(), i32> {
        let source = *self.names(from).get(name).ok_or(libc::ENOENT)?;
        let target = self.names(to).get(new).copied();
        match (how, target) {
            (RenameHow::NoReplace, Some(_)) => return Err(libc::EEXIST),
            (RenameHow::Exchange, None) => return Err(libc::ENOENT),
            (_, Some(t)) if t == source => return Ok(()),
            _ => {}
        }
        if self.is_dir(source) && self.is_within(to, source) {
            return Err(libc::EINVAL);
        }
        if how == RenameHow::Exchange {
            let target = target.expect("checked");
            if self.is_dir(target) && self.is_within(from, target) {
                return Err(libc::EINVAL);
            }
            self.take(from, name);
            self.take(to, new);
            self.put(from, name, target);
            self.put(to, new, source);
            return Ok(());
        }
        if let Some(target) = target {
            match (self.is_dir(source), self.is_dir(target)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.names(target).is_empty() => return Err(libc::ENOTEMPTY),
                _ => self.unlink(to, new),
            }
        }
        self.take(from, name);
        self.put(to, new, source);
        Ok(())
    }
}

fn thing(body: Body, mode: u32, nlink: u32, uid: u32, gid: u32) -> Thing {
    Thing { body, nlink, mode, uid, gid, mtime: None, xattrs: BTreeMap::new(), held: 0 }
}

/// A vault on a disk in memory, and the filesystem in it.
struct Place {
    backing: Arc<dyn Backing>,
    world: Arc<dyn World>,
    vault: Arc<Vault>,
    fs: FileSystem,
    nodes_max: Option<usize>,
}

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(b"thirty-two bytes, or some more than that".to_vec()))
}

fn open(backing: &Arc<dyn Backing>, world: &Arc<dyn World>, nodes_max: Option<usize>) -> (Arc<Vault>, FileSystem) {
    let vault = vault::open(backing.clone(), &unlock(), &OpenOptions::default(), world.clone()).expect("it opens");
    let options = FsOptions { nodes_max, ..FsOptions::default() };
    let fs = FileSystem::new(vault.clone(), options).expect("the filesystem starts");
    (vault, fs)
}

impl Place {
    fn new() -> Place {
        Place::holding(None)
    }
    /// With so many inodes in memory at most.
    fn holding(nodes_max: Option<usize>) -> Place {
        let backing: Arc<dyn Backing> = Arc::new(MemoryBacking::default());
        let world: Arc<dyn World> = Arc::new(RealWorld::default());
        vault::create(&backing, &unlock(), &CreateOptions::default(), &world).expect("a new vault");
        let (vault, fs) = open(&backing, &world, nodes_max);
        Place { backing, world, vault, fs, nodes_max }
    }
    fn reopen(self) -> Place {
        let Place { backing, world, vault, fs, nodes_max } = self;
        drop(fs);
        vault.close().expect("it closes");
        drop(vault);
        let (vault, fs) = open(&backing, &world, nodes_max);
        Place { backing, world, vault, fs, nodes_max }
    }
}

fn errno<T>(result: Result<T, FsFault>) -> Result<T, i32> {
    result.map_err(|fault| fault.errno())
}

fn read_all(fs: &FileSystem, ino: Ino, len: u64) -> Vec<u8> {
    let mut out = Vec::new();
    fs.read(ino, 0, len as usize + 10, &mut out).expect("a file reads");
    out
}

fn listing(fs: &FileSystem, dir: Ino) -> BTreeMap<String, Ino> {
    // In pieces of a few entries, as a small buffer would.
    let (mut offset, mut all, mut dots) = (0, BTreeMap::new(), BTreeSet::new());
    loop {
        let mut taken = 0;
        fs.readdir(dir, offset, |e| {
            if taken == 3 {
                return false;
            }
            taken += 1;
            offset = e.offset;
            let name = String::from_utf8(e.name.clone()).unwrap();
            let new = if name.starts_with('.') { dots.insert(name) } else { all.insert(name, e.ino).is_none() };
            assert!(new, "an entry appeared twice");
            true
        })
        .expect("a directory lists");
        if taken == 0 {
            assert_eq!(dots.len(), 2);
            return all;
        }
    }
}

/// Everything that has a name, compared; `settled` if no bytes are on their way to rest.
fn compare(fs: &FileSystem, vault: &Vault, model: &mut Model, settled: bool, say: &str) {
    let mut todo = vec![ROOT_INO];
    while let Some(dir) = todo.pop() {
        let names = model.names(dir).clone();
        assert_eq!(listing(fs, dir), names, "{say}: names in {dir}");
        let mut seen = BTreeMap::new();
        fs.readdirplus(dir, 0, |e| {
            if e.offset > 2 {
                seen.insert(String::from_utf8(e.name.clone()).unwrap(), e.attr.unwrap());
            }
            true
        })
        .expect("a directory lists with attributes");
        for (name, ino) in names {
            let attr = fs.lookup(dir, name.as_bytes()).expect("a listed name is there");
            let plus = seen[&name];
            // The access time may have moved: another name of the same file was read meanwhile. While bytes come to rest,
            // those that overwrite others are counted beside them for a moment.
            let blocks = if settled { plus.blocks } else { attr.blocks };
            let plus = strongroom::fs::Attr { atime: attr.atime, blocks, ..plus };
            assert_eq!((attr.ino, attr), (ino, plus), "{say}: {name}");
            fs.forget(ino, 2);
            compare_one(fs, model, ino, say);
            if model.is_dir(ino) {
                todo.push(ino);
            }
        }
    }
    for ino in model.usable(|t| t.nlink == 0) {
        compare_one(fs, model, ino, say);
    }
    assert_eq!(vault.usage().inodes, model.0.len() as u64, "{say}: inodes counted");
}

fn compare_one(fs: &FileSystem, model: &mut Model, ino: Ino, say: &str) {
    let t = model.at(ino);
    let attr = fs.getattr(ino).expect("attributes");
    assert_eq!((attr.nlink, attr.mode, attr.uid, attr.gid), (t.nlink, t.mode, t.uid, t.gid), "{say}: {ino}");
    assert!(t.mtime.is_none_or(|m| m == attr.mtime), "{say}: mtime of {ino}");
    match &t.body {
        Body::File(data) => {
            assert_eq!(attr.size, data.len() as u64, "{say}: size of {ino}");
            assert!(read_all(fs, ino, attr.size) == *data, "{say}: content of {ino}");
        }
        Body::Link(target) => assert_eq!(&fs.readlink(ino).expect("a link"), target),
        Body::Dir { .. } | Body::Fifo => {}
    }
    let mut list = Vec::new();
    for (name, value) in &t.xattrs {
        list.extend_from_slice(name.as_bytes());
        list.push(0);
        assert_eq!(
            errno(fs.getxattr(ino, name.as_bytes(), 1 << 16)),
            Ok(match value.len() {
                0 => XattrReply::Bytes(Vec::new()),
                _ => XattrReply::Bytes(value.clone()),
            }),
            "{say}"
        );
    }
    assert_eq!(errno(fs.listxattr(ino, 1 << 16)), Ok(XattrReply::Bytes(list)), "{say}");
}

fn run(seed: u64, steps: usize) {
    let mut dice = Dice(seed);
    // In every second world what nobody is at work on is let go of at once.
    let mut place = Place::holding((seed % 2 == 1).then_some(0));
    let mut model = Model::new();
    for step in 0..steps {
        let say = format!("seed {seed}, step {step}");
        if dice.below(60) == 0 {
            compare(&place.fs, &place.vault, &mut model, false, &say);
            // What only open handles kept goes with them, whether the kernel forgot it in time or not.
            for ino in model.usable(|t| t.held > 0) {
                let held = std::mem::take(&mut model.at(ino).held);
                if dice.below(2) == 0 {
                    place.fs.forget(ino, held);
                }
            }
            model.bury();
            place = place.reopen();
            compare(&place.fs, &place.vault, &mut model, true, &say);
            continue;
        }
        one(&mut dice, &place, &mut model, &say);
    }
    compare(&place.fs, &place.vault, &mut model, false, &format!("seed {seed}, end"));
    place.vault.close().expect("it closes");
}

/// One random operation on both.
fn one(dice: &mut Dice, place: &Place, model: &mut Model, say: &str) {
    let fs = &place.fs;
    let dir = *dice.pick(&model.dirs());
    let name = *dice.pick(&NAMES);
    let files = model.usable(|t| matches!(t.body, Body::File(_)));
    match dice.below(27) {
        kind @ 0..=5 => {
            let target = format!("to/{}", dice.next()).into_bytes();
            let mode = *dice.pick(&[0o644, 0o600, 0o4755, 0o777]);
            let (made, body, mode) = match kind {
                0..=2 => {
                    let made = fs.mknod(&CALLER, dir, name.as_bytes(), libc::S_IFREG | mode, 0);
                    (made, Body::File(Vec::new()), libc::S_IFREG | (mode & !0o022))
                }
                3 => {
                    let names = BTreeMap::new();
                    let made = fs.mkdir(&CALLER, dir, name.as_bytes(), mode & 0o777);
                    (made, Body::Dir { names, parent: dir }, libc::S_IFDIR | (mode & 0o755))
                }
                4 => {
                    let made = fs.symlink(&CALLER, dir, name.as_bytes(), &target);
                    (made, Body::Link(target), libc::S_IFLNK | 0o777)
                }
                _ => {
                    let made = fs.mknod(&CALLER, dir, name.as_bytes(), libc::S_IFIFO | mode, 0);
                    (made, Body::Fifo, libc::S_IFIFO | (mode & !0o022))
                }
            };
            if model.names(dir).contains_key(name) {
                assert_eq!(errno(made), Err(libc::EEXIST), "{say}: make");
                return;
            }
            let ino = made.expect("a free name can be made").ino;
            let nlink = if matches!(body, Body::Dir { .. }) { 2 } else { 1 };
            let old = model.0.insert(ino, thing(body, mode, nlink, CALLER.uid, CALLER.gid));
            assert!(old.is_none(), "{say}: inode numbers are not used again");
            model.put(dir, name, ino);
            if dice.below(3) == 0 {
                model.at(ino).held = 1;
            } else {
                fs.forget(ino, 1);
            }
        }
        6..=9 if !files.is_empty() => {
            let ino = *dice.pick(&files);
            let (offset, data) = (dice.offset(), dice.bytes());
            let kill = dice.below(4) == 0;
            fs.write(ino, offset, &data, WriteHow { drop_set_id: kill, stamp: false }).expect("a write");
            let t = model.at(ino);
            if kill {
                t.mode &= !libc::S_ISUID;
            }
            let Body::File(content) = &mut t.body else { panic!("a file") };
            let end = offset as usize + data.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[offset as usize..end].copy_from_slice(&data);
        }
        10 | 11 if !files.is_empty() => {
            let ino = *dice.pick(&files);
            let size = dice.offset();
            let set = SetAttr { size: Some(size), ..SetAttr::default() };
            let attr = fs.setattr(&Caller::default(), ino, &set).expect("a truncation");
            assert_eq!(attr.size, size, "{say}");
            let t = model.at(ino);
            t.mtime = None;
            let Body::File(content) = &mut t.body else { panic!("a file") };
            content.resize(size as usize, 0);
        }
        12 if !files.is_empty() => {
            let ino = *dice.pick(&files);
            let (offset, len) = (dice.offset(), dice.offset() as usize);
            let mut got = Vec::new();
            fs.read(ino, offset, len, &mut got).expect("a read");
            let Body::File(content) = &model.at(ino).body else { panic!("a file") };
            let start = content.len().min(offset as usize);
            assert!(got == content[start..content.len().min(start + len)], "{say}: read of {ino}");
        }
        13 if !files.is_empty() => {
            let ino = *dice.pick(&files);
            let (from, len) = (dice.offset(), 1 + dice.offset());
            let what = *dice.pick(&[
                Fallocate::Extend,
                Fallocate::KeepSize,
                Fallocate::PunchHole,
                Fallocate::ZeroRange,
                Fallocate::ZeroKeepSize,
            ]);
            fs.fallocate(ino, from, len, what).expect("fallocate");
            let t = model.at(ino);
            t.mtime = None;
            let Body::File(content) = &mut t.body else { panic!("a file") };
            let end = (from + len) as usize;
            if matches!(what, Fallocate::Extend | Fallocate::ZeroRange) && content.len() < end {
                content.resize(end, 0);
            }
            if matches!(what, Fallocate::PunchHole | Fallocate::ZeroRange | Fallocate::ZeroKeepSize) {
                let cut = |n: usize, content: &Vec<u8>| n.min(content.len());
                let (a, b) = (cut(from as usize, content), cut(end, content));
                content[a..b].fill(0);
            }
        }
        24..27 if !files.is_empty() => {
            let (from, to) = (*dice.pick(&files), *dice.pick(&files));
            let (at, offset, len) = (dice.offset(), dice.offset(), 1 + dice.offset());
            let kill = dice.below(4) == 0;
            let did = errno(fs.copy_file_range(from, at, to, offset, len, WriteHow { drop_set_id: kill, stamp: true }));
            let Body::File(source) = &model.at(from).body else { panic!("a file") };
            let len = len.min((source.len() as u64).saturating_sub(at));
            if from == to && at < offset + len && offset < at + len {
                assert_eq!(did, Err(libc::EINVAL), "{say}: the ranges overlap");
                return;
            }
            assert_eq!(did, Ok(len), "{say}: copied");
            if len == 0 {
                return;
            }
            let bytes = source[at as usize..(at + len) as usize].to_vec();
            let t = model.at(to);
            t.mtime = None;
            if kill {
                t.mode &= !libc::S_ISUID;
            }
            let Body::File(content) = &mut t.body else { panic!("a file") };
            let end = (offset + len) as usize;
            if content.len() < end {
                content.resize(end, 0);
            }
            content[offset as usize..end].copy_from_slice(&bytes);
        }
        14 | 15 => {
            let want_dir = dice.below(3) == 0;
            let done = if want_dir { fs.rmdir(dir, name.as_bytes()) } else { fs.unlink(dir, name.as_bytes()) };
            let expected = match model.names(dir).get(name).copied() {
                None => Err(libc::ENOENT),
                Some(ino) => match (model.is_dir(ino), want_dir) {
                    (true, false) => Err(libc::EISDIR),
                    (false, true) => Err(libc::ENOTDIR),
                    (true, true) if !model.names(ino).is_empty() => Err(libc::ENOTEMPTY),
                    _ => {
                        model.unlink(dir, name);
                        Ok(())
                    }
                },
            };
            assert_eq!(errno(done), expected, "{say}: remove");
        }
        16 | 17 => {
            let (to, new) = (*dice.pick(&model.dirs()), *dice.pick(&NAMES));
            let how = *dice.pick(&[RenameHow::Replace, RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange]);
            let done = errno(fs.rename(dir, name.as_bytes(), to, new.as_bytes(), how));
            assert_eq!(done, model.rename(dir, name, to, new, how), "{say}: rename {how:?}");
        }
        18 => {
            let things = model.usable(|_| true);
            let ino = *dice.pick(&things);
            let done = errno(fs.link(ino, dir, name.as_bytes())).map(|attr| attr.ino);
            let expected = if model.names(dir).contains_key(name) {
                Err(libc::EEXIST)
            } else if model.is_dir(ino) {
                Err(libc::EPERM)
            } else if model.at(ino).nlink == 0 {
                Err(libc::ENOENT)
            } else {
                Ok(ino)
            };
            assert_eq!(done, expected, "{say}: link");
            if done.is_ok() {
                fs.forget(ino, 1);
                model.at(ino).nlink += 1;
                model.put(dir, name, ino);
            }
        }
        19 | 20 => {
            let things = model.usable(|_| true);
            let (ino, xattr) = (*dice.pick(&things), *dice.pick(&XATTRS));
            let t = model.at(ino);
            let there = t.xattrs.contains_key(xattr);
            if dice.below(3) == 0 {
                let done = errno(fs.removexattr(ino, xattr.as_bytes()));
                assert_eq!(done, if there { Ok(()) } else { Err(libc::ENODATA) }, "{say}: removexattr");
                t.xattrs.remove(xattr);
                return;
            }
            let how = *dice.pick(&[XattrHow::Set, XattrHow::Create, XattrHow::Replace]);
            let value = format!("value {}", dice.next()).into_bytes();
            let done = errno(fs.setxattr(ino, xattr.as_bytes(), &value, how));
            let expected = match how {
                XattrHow::Create if there => Err(libc::EEXIST),
                XattrHow::Replace if !there => Err(libc::ENODATA),
                XattrHow::Set | XattrHow::Create | XattrHow::Replace => Ok(()),
            };
            assert_eq!(done, expected, "{say}: setxattr");
            if done.is_ok() {
                t.xattrs.insert(xattr.to_owned(), value);
            }
        }
        21 => {
            let things = model.usable(|_| true);
            let ino = *dice.pick(&things);
            let at = Time { seconds: dice.next() as i64 >> 20, nanos: 5 };
            let uid = dice.below(1000) as u32;
            let set = SetAttr { mtime: Some(SetTime::At(at)), uid: Some(uid), ..SetAttr::default() };
            fs.setattr(&Caller::default(), ino, &set).expect("setattr");
            let t = model.at(ino);
            t.uid = uid;
            if !matches!(t.body, Body::Dir { .. }) {
                t.mode &= !libc::S_ISUID;
                t.mtime = Some(at);
            }
        }
        22 => {
            let held = model.usable(|t| t.held > 0);
            if let Some(&ino) = held.first() {
                fs.forget(ino, std::mem::take(&mut model.at(ino).held));
                model.bury();
            }
        }
        _ => fs.sync_wait().expect("a sync"),
    }
}

#[test]
fn random_programs_do_what_the_model_does() {
    if let Ok(seed) = std::env::var("STRONGROOM_SEED") {
        return run(seed.parse().expect("STRONGROOM_SEED is a number"), 600);
    }
    let seeds = std::env::var("STRONGROOM_SEEDS").ok().map_or(12, |n| n.parse().expect("STRONGROOM_SEEDS is a number"));
    (0..seeds).for_each(|seed| run(seed, 600));
}

/// The kernel remembers what it looked up for as long as it likes; nothing of it is lost, nor kept after it has forgotten.
#[test]
fn inodes_that_are_let_go_of_come_back_as_they_were() {
    let place = Place::holding(Some(64));
    let fs = &place.fs;
    let count = 1000u64;
    let inos: Vec<Ino> = (0..count)
        .map(|i| fs.mknod(&CALLER, ROOT_INO, format!("f{i}").as_bytes(), libc::S_IFREG | 0o600, 0).unwrap().ino)
        .collect();
    let how = WriteHow { drop_set_id: false, stamp: true };
    for (i, ino) in inos.iter().enumerate() {
        fs.write(*ino, 0, format!("content {i}").as_bytes(), how).unwrap();
        fs.setxattr(*ino, b"user.number", i.to_string().as_bytes(), XattrHow::Create).unwrap();
    }
    // Half lose their name, and are still held by the kernel.
    (0..count).step_by(2).for_each(|i| fs.unlink(ROOT_INO, format!("f{i}").as_bytes()).unwrap());
    for (i, ino) in inos.iter().enumerate() {
        let text = format!("content {i}");
        assert_eq!(read_all(fs, *ino, 100), text.as_bytes());
        let attr = fs.getattr(*ino).unwrap();
        assert_eq!((attr.size, attr.nlink), (text.len() as u64, u32::from(i % 2 == 1)));
        assert_eq!(fs.getxattr(*ino, b"user.number", 99).unwrap(), XattrReply::Bytes(i.to_string().into_bytes()));
    }
    assert_eq!(place.vault.usage().inodes, count + 1);
    inos.iter().for_each(|ino| fs.forget(*ino, 1));
    assert_eq!(place.vault.usage().inodes, count / 2 + 1, "those without a name went with the kernel's look-ups");
    for (i, ino) in inos.iter().enumerate() {
        let found = errno(fs.getattr(*ino)).map(|a| a.nlink);
        assert_eq!(found, if i % 2 == 1 { Ok(1) } else { Err(libc::ENOENT) });
    }
    place.vault.close().unwrap();
}

#[test]
fn many_threads_leave_a_tree_that_adds_up() {
    let place = Place::holding(Some(0));
    let fs = &place.fs;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut dice = Dice(thread);
                for _ in 0..2000 {
                    let (name, other) = (dice.pick(&NAMES).as_bytes(), dice.pick(&NAMES).as_bytes());
                    let result = match dice.below(6) {
                        0 => fs.mknod(&CALLER, ROOT_INO, name, libc::S_IFREG | 0o644, 0).map(|a| fs.forget(a.ino, 1)),
                        1 => fs.unlink(ROOT_INO, name),
                        2 => fs.rename(ROOT_INO, name, ROOT_INO, other, RenameHow::Replace),
                        3 => fs.lookup(ROOT_INO, name).and_then(|a| {
                            let written = fs.write(a.ino, 0, name, WriteHow::default());
                            fs.forget(a.ino, 1);
                            written
                        }),
                        4 => fs.lookup(ROOT_INO, name).and_then(|a| {
                            let linked = fs.link(a.ino, ROOT_INO, other).map(|a| fs.forget(a.ino, 1));
                            fs.forget(a.ino, 1);
                            linked
                        }),
                        _ => fs.rename(ROOT_INO, name, ROOT_INO, other, RenameHow::Exchange),
                    };
                    let allowed = [libc::EEXIST, libc::ENOENT];
                    assert!(errno(result).err().is_none_or(|e| allowed.contains(&e)), "only races of names may fail");
                }
            });
        }
    });
    let names = listing(fs, ROOT_INO);
    let inodes: BTreeSet<Ino> = names.values().copied().collect();
    for &ino in &inodes {
        let links = names.values().filter(|&&i| i == ino).count();
        assert_eq!(fs.getattr(ino).expect("attributes").nlink as usize, links, "names of {ino}");
    }
    assert_eq!(place.vault.usage().inodes, inodes.len() as u64 + 1, "inodes counted");
}

#[test]
fn a_listing_shows_each_entry_once_while_names_change() {
    let place = Place::new();
    let fs = &place.fs;
    for i in 0..500 {
        fs.mknod(&CALLER, ROOT_INO, format!("f{i}").as_bytes(), libc::S_IFREG, 0).expect("a file");
    }
    let (mut offset, mut seen, mut round) = (0, BTreeSet::new(), 0);
    loop {
        let mut batch = Vec::new();
        fs.readdir(ROOT_INO, offset, |e| {
            batch.push(e.clone());
            batch.len() < 7
        })
        .expect("it lists");
        let Some(last) = batch.last() else { break };
        offset = last.offset;
        for e in &batch {
            assert!(seen.insert(e.name.clone()), "{:?} twice", String::from_utf8_lossy(&e.name));
            if e.name.starts_with(b"f") {
                // Renaming what was seen must not bring it back.
                let new = [b"seen-", &*e.name].concat();
                fs.rename(ROOT_INO, &e.name, ROOT_INO, &new, RenameHow::Replace).expect("a rename");
            }
        }
        round += 1;
        assert!(round < 200, "the listing ends");
    }
    assert_eq!(seen.len(), 502);
}

#[test]
fn what_has_no_meaning_is_refused() {
    let Place { fs, .. } = &Place::new();
    let no = |e: Result<(), FsFault>| errno(e).expect_err("it is refused");
    let make = |dir, name: &[u8]| fs.mknod(&CALLER, dir, name, libc::S_IFREG | 0o644, 0);
    let file = make(ROOT_INO, b"f").expect("a file").ino;
    assert_eq!(errno(make(ROOT_INO, &[b'n'; 256])).map(|_| ()), Err(libc::ENAMETOOLONG));
    assert_eq!(errno(fs.lookup(ROOT_INO, &[b'n'; 256])).map(|_| ()), Err(libc::ENAMETOOLONG));
    assert_eq!(errno(make(file, b"x")).map(|_| ()), Err(libc::ENOTDIR));
    assert_eq!(errno(make(ROOT_INO, b"a/b")).map(|_| ()), Err(libc::EINVAL));
    assert_eq!(errno(fs.readlink(file)), Err(libc::EINVAL));
    assert_eq!(no(fs.write(file, i64::MAX as u64 - 2, b"over", WriteHow::default())), libc::EFBIG);
    assert_eq!(no(fs.write(ROOT_INO, 0, b"x", WriteHow::default())), libc::EISDIR);
    assert_eq!(no(fs.readdir(file, 0, |_| true)), libc::ENOTDIR);
    assert_eq!(no(fs.setxattr(file, b"system.nfs4_acl", b"", XattrHow::Set)), libc::EOPNOTSUPP);
    assert_eq!(no(fs.setxattr(file, b"user.big", &vec![0; (64 << 10) + 1], XattrHow::Set)), libc::E2BIG);
    fs.setxattr(file, b"user.x", b"12345", XattrHow::Set).expect("an attribute");
    assert_eq!(errno(fs.getxattr(file, b"user.x", 0)), Ok(XattrReply::Length(5)));
    assert_eq!(errno(fs.getxattr(file, b"user.x", 4)), Err(libc::ERANGE));
    // A directory that was removed while in use takes no new names.
    let dir = fs.mkdir(&CALLER, ROOT_INO, b"d", 0o755).expect("a directory").ino;
    fs.rmdir(ROOT_INO, b"d").expect("it is empty");
    assert_eq!(errno(make(dir, b"x")).map(|_| ()), Err(libc::ENOENT));
    assert_eq!(no(fs.rename(ROOT_INO, b"f", dir, b"f", RenameHow::Replace)), libc::ENOENT);
}

#[test]
fn a_set_gid_directory_hands_its_group_down() {
    let Place { fs, .. } = &Place::new();
    let dir = fs.mkdir(&CALLER, ROOT_INO, b"shared", 0o755).expect("a directory").ino;
    let set = SetAttr { gid: Some(99), mode: Some(0o2775), ..SetAttr::default() };
    fs.setattr(&Caller::default(), dir, &set).expect("setattr");
    let file = fs.mknod(&CALLER, dir, b"f", libc::S_IFREG | 0o644, 0).expect("a file");
    let below = fs.mkdir(&CALLER, dir, b"d", 0o755).expect("a directory");
    assert_eq!((file.gid, file.mode & 0o7777), (99, 0o644));
    assert_eq!((below.gid, below.mode & 0o7777), (99, 0o2755));
}

#[test]
fn storage_is_reachable_and_left_alone() {
    let place = Place::new();
    let fs = &place.fs;
    assert!(!listing(fs, ROOT_INO).contains_key(".storage"), "recursive tools must not trip over it");
    let dir = fs.lookup(ROOT_INO, b".storage").expect("by name");
    assert_eq!(dir.mode, libc::S_IFDIR | 0o700);
    let text = |name: &str| {
        let attr = fs.lookup(dir.ino, name.as_bytes()).expect("a file of .storage");
        assert!(!attr.cacheable);
        let content = String::from_utf8(read_all(fs, attr.ino, attr.size)).unwrap();
        assert_eq!(content.len() as u64, attr.size, "{name}: its length is exact");
        fs.forget(attr.ino, 1);
        assert_eq!(errno(fs.getattr(attr.ino)).map(|_| ()), Err(libc::ENOENT), "{name}: gone when forgotten");
        content
    };
    for name in listing(fs, dir.ino).keys() {
        let content = text(name);
        assert!(content.is_empty() || content.ends_with('\n'), "{name}");
    }
    assert!(!text("state").trim().contains(char::is_whitespace));
    text("pending").trim().parse::<u64>().expect("one number");
    let json: serde_json::Value = serde_json::from_str(&text("stats.json")).expect("valid JSON");
    assert!(json["counters"]["written_bytes"].is_u64() && json["operations"]["read"]["count"].is_u64());
    check_metrics(&text("metrics"));

    let control = fs.lookup(dir.ino, b"control").expect("control");
    assert_eq!(control.mode & 0o777, 0o600);
    for order in ["flush\n", "verify", "checkpoint\n"] {
        fs.write(control.ino, 0, order.as_bytes(), WriteHow::default()).expect(order);
    }
    assert_eq!(errno(fs.write(control.ino, 0, b"explode", WriteHow::default())), Err(libc::EINVAL));

    let eperm = |e: Result<(), FsFault>| assert_eq!(errno(e), Err(libc::EPERM));
    eperm(fs.mkdir(&CALLER, ROOT_INO, b".storage", 0o755).map(|_| ()));
    eperm(fs.unlink(dir.ino, b"state"));
    eperm(fs.rename(dir.ino, b"state", ROOT_INO, b"x", RenameHow::Replace));
    let state = fs.lookup(dir.ino, b"state").expect("state");
    let set = SetAttr { mode: Some(0o777), ..SetAttr::default() };
    eperm(fs.setattr(&CALLER, state.ino, &set).map(|_| ()));

    // What a program makes there lies beside ours, and takes nothing of ours away.
    let own = fs.mknod(&CALLER, dir.ino, b"x", libc::S_IFREG | 0o600, 0).expect("a file of its own");
    assert_eq!(fs.lookup(dir.ino, b"x").expect("its file").ino, own.ino);
    assert_eq!(errno(fs.rmdir(ROOT_INO, b".storage")), Err(libc::ENOTEMPTY));
    fs.unlink(dir.ino, b"x").expect("its own to remove");
    assert!(!text("state").is_empty());
    fs.rmdir(ROOT_INO, b".storage").expect("its own to remove");
    eperm(fs.rmdir(ROOT_INO, b".storage"));
    assert!(!text("state").is_empty(), "ours stays");
}

/// Every sample has its HELP and TYPE before it; buckets grow and end in the count.
fn check_metrics(text: &str) {
    let (mut kind, mut last_bucket) = (("", ""), 0u64);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            kind = rest.split_once(' ').expect("a name and a type");
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect("a sample and its value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert!(sample.starts_with(kind.0) && sample.starts_with("strongroom_"), "{line} under {}", kind.0);
        if kind.1 == "histogram" {
            let rest = &sample[kind.0.len()..];
            if rest.starts_with("_bucket") {
                let n = value.parse().expect("a count");
                assert!(rest.contains("le=\"0.000001\"") || n >= last_bucket, "{line}: buckets are cumulative");
                last_bucket = n;
            } else if rest.starts_with("_count") {
                assert_eq!(value.parse::<u64>(), Ok(last_bucket), "{line}: the last bucket holds all");
            }
        }
    }
}

/// Reads race with what brings bytes to rest: commits that split extents, checkpoints that move them into the table.
#[test]
fn bytes_read_while_others_sync_are_those_written() {
    let place = Place::new();
    let fs = &place.fs;
    let steps =
        std::env::var("STRONGROOM_STEPS").ok().map_or(1500, |n| n.parse().expect("STRONGROOM_STEPS is a number"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    fs.sync_wait().expect("a sync");
                }
            });
        }
        let writers: Vec<_> = (0..4u64)
            .map(|thread| {
                scope.spawn(move || {
                    let mut dice = Dice(thread + 100);
                    let ino =
                        fs.mknod(&CALLER, ROOT_INO, format!("f{thread}").as_bytes(), 0o100_644, 0).expect("a file").ino;
                    let mut model: Vec<u8> = Vec::new();
                    for step in 0..steps {
                        // Whole pages, as a kernel writes them.
                        let at = dice.below(64) * 4096;
                        let len = (1 + dice.below(8)) * 4096;
                        match dice.below(8) {
                            0 => {
                                let size = dice.below(300_000);
                                let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
                                fs.setattr(&CALLER, ino, &set).expect("a truncation");
                                model.resize(size, 0);
                            }
                            1..=3 => {
                                let data: Vec<u8> = (0..len).map(|_| dice.next() as u8 | 1).collect();
                                fs.write(ino, at as u64, &data, WriteHow::default()).expect("a write");
                                model.resize(model.len().max(at + len), 0);
                                model[at..at + len].copy_from_slice(&data);
                            }
                            _ => {
                                let mut out = Vec::new();
                                fs.read(ino, at as u64, len, &mut out).expect("a read");
                                let (from, to) = (at.min(model.len()), (at + len).min(model.len()));
                                let wrong = out.iter().zip(&model[from..to]).position(|(a, b)| a != b);
                                assert!(
                                    out.len() == to - from && wrong.is_none(),
                                    "thread {thread}, step {step}: {} of {} bytes from {at:#x}, wrong from {wrong:x?}",
                                    out.len(),
                                    to - from
                                );
                            }
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok), "a reader saw what was not written");
    });
}
