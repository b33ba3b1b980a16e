//! Method: run a random program on the filesystem and on a reference that keeps nothing but sizes, owners, names and which tree
//! each inode is in, with limits set and removed, the vault closed and opened again in between; after each step compare the
//! errno and every account's count. Then the same program on a disk whose power is cut.
//! Promise: EDQUOT and EXDEV come exactly where the reference says, what is refused changed nothing, and every count is the sum
//! over the inodes: after each step, after each reopening, after each power cut.
//! `STRONGROOM_QUOTA_STEPS=n` makes n steps a seed, `STRONGROOM_SEEDS=n` runs n seeds, `STRONGROOM_SEED=s` one,
//! `STRONGROOM_QUOTA_CUTS=n` makes so many power cuts.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may")]

#[path = "common/rng.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod rng;

use rng::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use strongroom::backing::{Backing, Fate, MemoryBacking};
use strongroom::base::id::{Ino, ROOT_INO};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::check::{Finding, Share, check};
use strongroom::format::key;
use strongroom::format::quota::{Account, Limits};
use strongroom::fs::{
    Caller, Fallocate, FileSystem, FsFault, FsOptions, LimitChange, LimitOf, RenameHow, SetAttr, WriteHow,
};
use strongroom::seal::Unlock;
use strongroom::vault::{self, CreateOptions, OpenOptions};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const IDS: [u32; 3] = [0, 1, 2];

/// A number from the environment.
fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().expect("a number"))
}

// ---------------------------------------------------------------------------------------------------------------------
// The reference.

#[derive(Debug, Clone)]
struct Thing {
    /// Of a directory.
    names: Option<BTreeMap<String, Ino>>,
    parent: Ino,
    /// What it is charged with.
    size: u64,
    uid: u32,
    gid: u32,
    /// The tree that it is in.
    tree: u32,
    nlink: u32,
    held: bool,
}

#[derive(Debug, Clone, Copy)]
struct Tree {
    root: Ino,
    parent: u32,
    limits: Limits,
}

#[derive(Debug, Clone)]
struct Model {
    things: BTreeMap<Ino, Thing>,
    trees: BTreeMap<u32, Tree>,
    next_tree: u32,
    owners: Option<BTreeMap<Account, Limits>>,
}

type Counts = BTreeMap<Account, (u128, u64)>;

impl Model {
    fn new() -> Model {
        let root = thing(Some(BTreeMap::new()), ROOT_INO, 0, 0, 0, 0);
        Model { things: BTreeMap::from([(ROOT_INO, root)]), trees: BTreeMap::new(), next_tree: 1, owners: None }
    }

    fn around(&self, tree: u32) -> Vec<u32> {
        let (mut at, mut all) = (tree, Vec::new());
        while at != 0 {
            all.push(at);
            at = self.trees[&at].parent;
        }
        all
    }

    /// By adding up, from nothing.
    fn counts(&self) -> Counts {
        let mut all = Counts::new();
        for t in self.things.values() {
            let owners = self.owners.as_ref().map(|_| [Account::User(t.uid), Account::Group(t.gid)]);
            for account in self.around(t.tree).into_iter().map(Account::Tree).chain(owners.into_iter().flatten()) {
                let count = all.entry(account).or_default();
                count.0 += u128::from(t.size);
                count.1 += 1;
            }
        }
        all
    }

    fn limits(&self, account: Account) -> Limits {
        match account {
            Account::Tree(n) => self.trees[&n].limits,
            other => self.owners.as_ref().and_then(|all| all.get(&other).copied()).unwrap_or_default(),
        }
    }

    /// Whether a change is over a limit that it makes worse.
    fn admits(&self, change: impl FnOnce(&mut Model)) -> bool {
        let mut after = self.clone();
        change(&mut after);
        let (before, then) = (self.counts(), after.counts());
        then.iter().all(|(account, then)| {
            let (was, limits) = (before.get(account).copied().unwrap_or_default(), self.limits(*account));
            let fits =
                |was: u128, then: u128, limit: Option<u64>| then <= was || limit.is_none_or(|l| then <= u128::from(l));
            fits(was.0, then.0, limits.bytes) && fits(was.1.into(), then.1.into(), limits.inodes)
        })
    }

    /// Changes it, if limits allow.
    fn change(&mut self, change: impl Fn(&mut Model)) -> Result<(), i32> {
        if !self.admits(&change) {
            return Err(libc::EDQUOT);
        }
        change(self);
        Ok(())
    }

    fn at(&mut self, ino: Ino) -> &mut Thing {
        self.things.get_mut(&ino).unwrap()
    }
    fn is_dir(&self, ino: Ino) -> bool {
        self.things[&ino].names.is_some()
    }
    fn names(&mut self, dir: Ino) -> &mut BTreeMap<String, Ino> {
        self.at(dir).names.as_mut().unwrap()
    }
    fn dirs(&self) -> Vec<Ino> {
        self.things.iter().filter(|(_, t)| t.names.is_some() && t.nlink > 0).map(|(i, _)| *i).collect()
    }
    fn files(&self) -> Vec<Ino> {
        self.things
            .iter()
            .filter(|(_, t)| t.names.is_none() && t.nlink + u32::from(t.held) > 0)
            .map(|(i, _)| *i)
            .collect()
    }
    fn is_within(&self, dir: Ino, ancestor: Ino) -> bool {
        dir == ancestor || dir != ROOT_INO && self.is_within(self.things[&dir].parent, ancestor)
    }
    fn begun_at(&self, dir: Ino) -> Option<u32> {
        self.trees.iter().find(|(_, t)| t.root == dir).map(|(n, _)| *n)
    }
    /// Whether an inode may have a name in a directory.
    fn may_come(&self, ino: Ino, dir: Ino) -> bool {
        let (tree, there) = (self.things[&ino].tree, self.things[&dir].tree);
        tree == there || self.begun_at(ino).is_some_and(|n| self.trees[&n].parent == there)
    }

    fn drop_name(&mut self, dir: Ino, name: &str) {
        let ino = self.names(dir).remove(name).unwrap();
        if self.is_dir(ino) {
            if let Some(n) = self.begun_at(ino) {
                let tree = self.trees.get_mut(&n).unwrap();
                (tree.root, tree.limits) = (Ino(0), Limits::default());
            }
            self.at(ino).nlink = 0;
        } else {
            self.at(ino).nlink -= 1;
        }
        self.bury();
    }
    fn bury(&mut self) {
        self.things.retain(|_, t| t.nlink > 0 || t.held);
        // A tree that has ended goes with the last that is charged to it.
        let counts = self.counts();
        self.trees.retain(|n, t| t.root != Ino(0) || counts.contains_key(&Account::Tree(*n)));
    }

    /// Inodes that lie below a directory, itself included, down to where other trees begin; and those trees.
    fn below(&self, dir: Ino) -> (Vec<Ino>, Vec<u32>) {
        let (mut inodes, mut inner, mut todo) = (vec![dir], Vec::new(), vec![dir]);
        while let Some(dir) = todo.pop() {
            for ino in self.things[&dir].names.as_ref().unwrap().values() {
                match self.begun_at(*ino) {
                    Some(n) => inner.push(n),
                    None => {
                        inodes.push(*ino);
                        todo.extend(self.is_dir(*ino).then_some(*ino));
                    }
                }
            }
        }
        (inodes, inner)
    }
    /// Whether some file below has a name elsewhere, so that it would depend on the order.
    fn is_entangled(&self, dir: Ino) -> bool {
        let (inodes, _) = self.below(dir);
        inodes.iter().any(|ino| {
            let names = inodes.iter().filter(|i| **i == *ino).count() as u32;
            !self.is_dir(*ino) && self.things[ino].nlink > names
        })
    }

    fn limit_tree(&mut self, dir: Ino, limits: Limits) {
        if let Some(n) = self.begun_at(dir) {
            self.trees.get_mut(&n).unwrap().limits = limits;
            if limits.is_none() {
                let parent = self.trees[&n].parent;
                self.things.values_mut().filter(|t| t.tree == n).for_each(|t| t.tree = parent);
                self.trees.values_mut().filter(|t| t.parent == n).for_each(|t| t.parent = parent);
                self.trees.remove(&n);
            }
            return;
        }
        if limits.is_none() {
            return;
        }
        let (inodes, inner) = self.below(dir);
        let (n, parent) = (self.next_tree, self.things[&dir].tree);
        self.next_tree += 1;
        self.trees.insert(n, Tree { root: dir, parent, limits });
        inodes.into_iter().for_each(|ino| self.at(ino).tree = n);
        inner.into_iter().for_each(|i| self.trees.get_mut(&i).unwrap().parent = n);
    }
}

fn thing(names: Option<BTreeMap<String, Ino>>, parent: Ino, size: u64, uid: u32, gid: u32, tree: u32) -> Thing {
    Thing { names, parent, size, uid, gid, tree, nlink: 1, held: false }
}

// ---------------------------------------------------------------------------------------------------------------------
// Both, side by side.

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![7; 64]))
}

fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

fn opened(disk: &MemoryBacking) -> FileSystem {
    let options = OpenOptions {
        budget_bytes: 16 << 20,
        workers: 1,
        flush_interval: Duration::from_millis(20),
        ..OpenOptions::default()
    };
    let vault = vault::open(Arc::new(disk.clone()), &unlock(), &options, world()).unwrap();
    FileSystem::new(vault, FsOptions { nodes_max: Some(100), ..FsOptions::default() }).unwrap()
}

fn closed(fs: FileSystem) {
    let vault = Arc::clone(fs.vault());
    drop(fs);
    vault.close().unwrap();
}

fn fresh() -> MemoryBacking {
    let disk = MemoryBacking::default();
    vault::create(&(Arc::new(disk.clone()) as Arc<dyn Backing>), &unlock(), &CreateOptions::default(), &world())
        .unwrap();
    disk
}

fn counts(fs: &FileSystem) -> Counts {
    let all = fs.vault().accounts();
    let used = all.into_iter().map(|a| (a.account, (a.used.bytes, a.used.inodes)));
    used.filter(|(_, used)| *used != (0, 0)).collect()
}

/// What drifted, by a count of all inodes; and what `check` says of the vault on a disk.
fn is_right(fs: &FileSystem, say: &str) {
    assert_eq!(fs.vault().recount_quotas().unwrap(), [], "{say}");
}

fn no_findings(disk: &MemoryBacking, say: &str) {
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    let mut found = check(&backing, &unlock(), &world(), Share::Nothing, &|_, _| ()).unwrap();
    // Of what is kept twice, a power cut may take one.
    found.retain(|f| !matches!(f, Finding::CopySpoiled { .. }));
    assert_eq!(found, [], "{say}");
}

fn errno<T>(result: Result<T, FsFault>) -> Result<T, i32> {
    result.map_err(|fault| fault.errno())
}

struct Both {
    fs: FileSystem,
    model: Model,
    rng: Rng,
    /// How often which refusal was seen.
    refused: BTreeMap<i32, u64>,
}

impl Both {
    fn below(&mut self, n: u64) -> u64 {
        self.rng.below(n)
    }
    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.rng.below(of.len() as u64) as usize].clone()
    }
    fn limit(&mut self, most: u64) -> Option<u64> {
        if self.below(3) == 0 { None } else { Some(self.below(most)) }
    }
    /// A directory and a name in it that is taken, or is not.
    fn place(&mut self, taken: bool) -> Option<(Ino, String, Option<Ino>)> {
        for _ in 0..20 {
            let dirs = self.model.dirs();
            let (dir, name) = (self.pick(&dirs), self.pick(&NAMES).to_owned());
            let found = self.model.names(dir).get(&name).copied();
            if found.is_some() == taken {
                return Some((dir, name, found));
            }
        }
        None
    }

    fn step(&mut self) -> String {
        let caller = Caller { uid: self.pick(&IDS), gid: self.pick(&IDS), umask: 0 };
        let what = self.below(40);
        let (said, got, want) = match what {
            0..=9 => {
                let Some((dir, name, _)) = self.place(false) else { return String::new() };
                let is_dir = what < 3;
                let target = vec![b't'; 1 + self.below(300) as usize];
                let size = if what == 3 { target.len() as u64 } else { 0 };
                let made = match what {
                    0..=2 => self.fs.mkdir(&caller, dir, name.as_bytes(), 0o755),
                    3 => self.fs.symlink(&caller, dir, name.as_bytes(), &target),
                    _ => self.fs.mknod(&caller, dir, name.as_bytes(), 0o644, 0),
                };
                let ino = made.as_ref().map_or(Ino(u64::MAX), |a| a.ino);
                let tree = self.model.things[&dir].tree;
                let want = self.model.change(|m| {
                    let names = is_dir.then(BTreeMap::new);
                    m.things.insert(ino, thing(names, dir, size, caller.uid, caller.gid, tree));
                    m.names(dir).insert(name.clone(), ino);
                });
                if made.is_ok() {
                    self.fs.forget(ino, 1);
                }
                (format!("make {name} in {dir} as {ino}"), errno(made.map(|_| ())), want)
            }
            10..=19 => {
                let files: Vec<Ino> = self.model.files();
                if files.is_empty() {
                    return String::new();
                }
                let ino = self.pick(&files);
                if !self.is_regular(ino) {
                    return String::new();
                }
                let (offset, len) = (self.below(9000), 1 + self.below(5000));
                let (got, to) = match what {
                    10..=13 => {
                        let data = vec![b'x'; len as usize];
                        (self.fs.write(ino, offset, &data, WriteHow::default()), offset + len)
                    }
                    14 | 15 => (
                        self.fs.setattr(&caller, ino, &SetAttr { size: Some(len), ..SetAttr::default() }).map(drop),
                        len,
                    ),
                    16 => (self.fs.fallocate(ino, offset, len, Fallocate::Extend), offset + len),
                    17 => (self.fs.fallocate(ino, offset, len, Fallocate::KeepSize), 0),
                    18 => (self.fs.fallocate(ino, offset, len, Fallocate::ZeroRange), offset + len),
                    _ => {
                        let from = self.pick(&files);
                        if !self.is_regular(from) {
                            return String::new();
                        }
                        let there = self.model.things[&from].size.min(len);
                        let far = offset + 20_000;
                        let copied = self.fs.copy_file_range(from, 0, ino, far, len, WriteHow::default());
                        (copied.map(|n| assert_eq!(n, there)), if there == 0 { 0 } else { far + there })
                    }
                };
                let cuts = matches!(what, 14 | 15);
                let want = self.model.change(|m| {
                    let t = m.at(ino);
                    t.size = if cuts { to } else { t.size.max(to) };
                });
                (format!("size of {ino} to {to} ({what})"), errno(got), want)
            }
            20..=22 => {
                let Some((dir, name, Some(ino))) = self.place(true) else { return String::new() };
                let is_dir = self.model.is_dir(ino);
                if is_dir && !self.model.names(ino).is_empty() {
                    return String::new();
                }
                let name_bytes = name.as_bytes();
                let got = if is_dir { self.fs.rmdir(dir, name_bytes) } else { self.fs.unlink(dir, name_bytes) };
                self.model.drop_name(dir, &name);
                (format!("remove {name} in {dir}"), errno(got), Ok(()))
            }
            23 => {
                let Some((dir, name, _)) = self.place(false) else { return String::new() };
                let files: Vec<Ino> =
                    self.model.files().into_iter().filter(|i| self.model.things[i].nlink > 0).collect();
                if files.is_empty() {
                    return String::new();
                }
                let ino = self.pick(&files);
                let got = self.fs.link(ino, dir, name.as_bytes()).map(|a| self.fs.forget(a.ino, 1));
                let want = if self.model.may_come(ino, dir) {
                    self.model.names(dir).insert(name.clone(), ino);
                    self.model.at(ino).nlink += 1;
                    Ok(())
                } else {
                    Err(libc::EXDEV)
                };
                (format!("link {ino} to {name} in {dir}"), errno(got), want)
            }
            24..=28 => return self.rename(what),
            29 | 30 => {
                let all: Vec<Ino> = self.model.things.keys().copied().collect();
                let (ino, uid, gid) = (self.pick(&all), self.pick(&IDS), self.pick(&IDS));
                let set = SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
                let got = self.fs.setattr(&caller, ino, &set).map(drop);
                let want = self.model.change(|m| (m.at(ino).uid, m.at(ino).gid) = (uid, gid));
                (format!("chown {ino} to {uid}:{gid}"), errno(got), want)
            }
            31 | 32 => {
                let all: Vec<Ino> = self.model.things.keys().copied().filter(|i| *i != ROOT_INO).collect();
                if all.is_empty() {
                    return String::new();
                }
                let ino = self.pick(&all);
                if self.model.things[&ino].held {
                    self.fs.forget(ino, 1);
                    self.model.at(ino).held = false;
                    self.model.bury();
                } else if self.fs.lookup(ino, b".").is_ok() {
                    self.model.at(ino).held = true;
                }
                (format!("hold or release {ino}"), Ok(()), Ok(()))
            }
            33..=35 => {
                let dirs = self.model.dirs();
                let dir = self.pick(&dirs);
                let new = self.model.begun_at(dir).is_none();
                if new && (self.model.is_entangled(dir) || self.model.trees.len() > 6) {
                    return String::new();
                }
                let limits = match self.below(3) {
                    0 => Limits::default(),
                    _ => Limits { bytes: self.limit(90_000), inodes: self.limit(40), ..Limits::default() },
                };
                let got = self.fs.set_limits(LimitOf::Tree(dir), &to(limits));
                self.model.limit_tree(dir, limits);
                (format!("limit directory {dir} to {limits:?}"), errno(got), Ok(()))
            }
            36 | 37 => {
                let (id, user) = (self.pick(&IDS), self.below(2) == 0);
                let limits = Limits { bytes: self.limit(300_000), inodes: self.limit(90), ..Limits::default() };
                let (of, account) = match user {
                    true => (LimitOf::User(id), Account::User(id)),
                    false => (LimitOf::Group(id), Account::Group(id)),
                };
                let got = self.fs.set_limits(of, &to(limits));
                self.model.owners.get_or_insert_default().insert(account, limits);
                (format!("limit {account:?} to {limits:?}"), errno(got), Ok(()))
            }
            38 => {
                let got = self.fs.sync_wait();
                (String::from("sync"), errno(got), Ok(()))
            }
            _ => {
                is_right(&self.fs, "in between");
                (String::from("recount"), Ok(()), Ok(()))
            }
        };
        self.same(&said, got, want);
        said
    }

    fn is_regular(&self, ino: Ino) -> bool {
        self.fs.getattr(ino).is_ok_and(|a| a.mode & libc::S_IFMT == libc::S_IFREG)
    }

    fn same(&mut self, said: &str, got: Result<(), i32>, want: Result<(), i32>) {
        assert_eq!(got, want, "{said}\n{:?}", self.model.trees);
        if let Err(errno) = got {
            *self.refused.entry(errno).or_default() += 1;
        }
    }

    fn rename(&mut self, what: u64) -> String {
        let Some((dir, name, Some(ino))) = self.place(true) else { return String::new() };
        let exchange = what == 28;
        let Some((to_dir, new, target)) = self.place(exchange || what == 27) else { return String::new() };
        if target == Some(ino) || self.model.is_dir(ino) && self.model.is_within(to_dir, ino) {
            return String::new();
        }
        if let Some(target) = target {
            let whole = self.model.is_dir(target) && !self.model.names(target).is_empty();
            let mixed = self.model.is_dir(target) != self.model.is_dir(ino);
            if self.model.is_within_dir(dir, target) || !exchange && (whole || mixed) {
                return String::new();
            }
        }
        let how = if exchange { RenameHow::Exchange } else { RenameHow::Replace };
        let got = errno(self.fs.rename(dir, name.as_bytes(), to_dir, new.as_bytes(), how));
        let comes = dir == to_dir
            || self.model.may_come(ino, to_dir) && (!exchange || self.model.may_come(target.unwrap(), dir));
        let want = if comes { Ok(()) } else { Err(libc::EXDEV) };
        let said = format!("rename {name} in {dir} to {new} in {to_dir} ({what})");
        self.same(&said, got, want);
        if want.is_ok() {
            self.model.names(dir).remove(&name);
            if let Some(target) = target {
                if exchange {
                    self.model.names(to_dir).remove(&new);
                    self.model.names(dir).insert(name, target);
                    self.model.at(target).parent = dir;
                } else {
                    self.model.drop_name(to_dir, &new);
                }
            }
            self.model.names(to_dir).insert(new, ino);
            self.model.at(ino).parent = to_dir;
        }
        said
    }
}

impl Model {
    fn is_within_dir(&self, dir: Ino, ancestor: Ino) -> bool {
        self.is_dir(ancestor) && self.is_within(dir, ancestor)
    }
}

fn to(limits: Limits) -> LimitChange {
    LimitChange { bytes: Some(limits.bytes), inodes: Some(limits.inodes), ..LimitChange::default() }
}

/// So many steps on a disk, with a sync after one in so many.
fn run(disk: &MemoryBacking, seed: u64, steps: u64, sync_one_in: u64) -> BTreeMap<i32, u64> {
    let mut both = Both { fs: opened(disk), model: Model::new(), rng: Rng(seed), refused: BTreeMap::new() };
    for n in 0..steps {
        let said = both.step();
        assert_eq!(counts(&both.fs), both.model.counts(), "seed {seed}, step {n}: {said}");
        if n % sync_one_in == 0 {
            both.fs.sync_wait().unwrap();
        }
        if n % 1000 == 999 {
            // What was held is let go of with the mount.
            both.model.things.values_mut().for_each(|t| t.held = false);
            both.model.bury();
            closed(both.fs);
            no_findings(disk, &format!("seed {seed}, step {n}"));
            both.fs = opened(disk);
            assert_eq!(counts(&both.fs), both.model.counts(), "seed {seed}, opened after step {n}");
            is_right(&both.fs, &format!("seed {seed}, step {n}"));
        }
    }
    closed(both.fs);
    no_findings(disk, &format!("seed {seed}"));
    both.refused
}

fn seeds(usual: u64) -> Vec<u64> {
    match from_environment("STRONGROOM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=from_environment("STRONGROOM_SEEDS").unwrap_or(usual)).collect(),
    }
}

#[test]
fn ten_thousand_random_operations_leave_counts_and_refusals_that_the_reference_agrees_with() {
    let steps = from_environment("STRONGROOM_QUOTA_STEPS").unwrap_or(10_000);
    let mut refused = BTreeMap::new();
    for seed in seeds(1) {
        for (errno, n) in run(&fresh(), seed, steps, 50) {
            *refused.entry(errno).or_insert(0) += n;
        }
    }
    eprintln!("refused: {refused:?}");
    // It would prove nothing if limits were never met.
    for errno in [libc::EDQUOT, libc::EXDEV] {
        assert!(refused.get(&errno).is_some_and(|n| *n > steps / 100), "{refused:?}");
    }
}

#[test]
fn every_power_cut_leaves_counts_that_are_the_sums() {
    let cuts_wanted = from_environment("STRONGROOM_QUOTA_CUTS").unwrap_or(100);
    for seed in seeds(1) {
        let disk = fresh();
        disk.record();
        run(&disk, seed, 1500, 3);
        let (mut cuts, mut rng) = (disk.cuts(), Rng(seed));
        let every = (cuts.calls().len() as u64 / cuts_wanted).max(1);
        let (mut made, mut counted) = (0u64, 0u64);
        loop {
            if (cuts.cut() as u64).is_multiple_of(every) {
                let coins = rng.next();
                let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
                let say = format!("seed {seed}, cut {} of {}", cuts.cut(), cuts.calls().len());
                no_findings(&after, &say);
                let fs = opened(&after);
                is_right(&fs, &say);
                assert!(
                    fs.vault().trees().iter().all(|(_, t)| t.walk == Default::default()),
                    "{say}: walks are finished"
                );
                counted += counts(&fs).len() as u64;
                closed(fs);
                made += 1;
            }
            if !cuts.advance() {
                break;
            }
        }
        eprintln!("seed {seed}: {made} power cuts, {counted} counts");
        assert!(made >= cuts_wanted.min(100) && counted > made);
    }
}

#[test]
fn a_charge_that_was_forgotten_is_caught() {
    let disk = fresh();
    let fs = opened(&disk);
    fs.set_limits(LimitOf::Tree(ROOT_INO), &LimitChange { bytes: Some(Some(1 << 20)), ..LimitChange::default() })
        .unwrap();
    let caller = Caller::default();
    let ino = fs.mknod(&caller, ROOT_INO, b"file", 0o644, 0).unwrap().ino;
    is_right(&fs, "before");
    // An inode that changes its size without a charge.
    let stored = fs.vault().get(&key::inode(ino)).unwrap().unwrap();
    let mut inode = strongroom::format::inode::Inode::decode(&stored).unwrap();
    inode.size = 5000;
    let mut op = fs.vault().begin();
    op.put(key::inode(ino), inode.encode());
    op.commit();
    let drift = fs.vault().recount_quotas().unwrap();
    assert_eq!(drift.iter().map(|d| (d.0, d.1.bytes, d.2.bytes)).collect::<Vec<_>>(), [(Account::Tree(1), 0, 5000)]);
    closed(fs);
    let backing: Arc<dyn Backing> = Arc::new(disk);
    let found = check(&backing, &unlock(), &world(), Share::Nothing, &|_, _| ()).unwrap();
    assert!(found.iter().any(|f| f.kind() == "quota-count"), "{found:?}");
}
