//! Method: one promise of quotas at a time, on the filesystem without a mount; threads at the limit and in a walk's way; a crash in
//! the middle of a walk; a drift planted and mended.
//! Promise: what `docs/semantics.md` says of quotas. Random programs are `quota_model.rs`, the kernel's part is `mount_quota.rs`.
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/rng.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod rng;

use rng::Rng;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use strongroom::backing::{Backing, Cache, MemoryBacking, Open};
use strongroom::base::id::{Ino, ROOT_INO};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::check::{Finding, Owner, Share, check, repair};
use strongroom::format::inode::Inode;
use strongroom::format::key;
use strongroom::format::quota::{Account, Used, Walk};
use strongroom::fs::{
    Caller, Fallocate, FileSystem, FsFault, FsOptions, LimitChange, LimitOf, RenameHow, SetAttr, WriteHow,
};
use strongroom::seal::Unlock;
use strongroom::vault::{self, Admit, CreateOptions, OpenOptions, lock};

const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0 };

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![7; 64]))
}

fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

fn fresh() -> MemoryBacking {
    let disk = MemoryBacking::default();
    vault::create(&(Arc::new(disk.clone()) as Arc<dyn Backing>), &unlock(), &CreateOptions::default(), &world())
        .unwrap();
    disk
}

fn opened_with(disk: &MemoryBacking, unlock: &Unlock) -> FileSystem {
    let options = OpenOptions { budget_bytes: 16 << 20, workers: 1, ..OpenOptions::default() };
    let vault = vault::open(Arc::new(disk.clone()), unlock, &options, world()).unwrap();
    FileSystem::new(vault, FsOptions::default()).unwrap()
}

fn opened(disk: &MemoryBacking) -> FileSystem {
    opened_with(disk, &unlock())
}

fn closed(fs: FileSystem) {
    let vault = Arc::clone(fs.vault());
    drop(fs);
    vault.close().unwrap();
}

fn found(disk: &MemoryBacking) -> Vec<Finding> {
    check(&(Arc::new(disk.clone()) as Arc<dyn Backing>), &unlock(), &world(), Share::Nothing, &|_, _| ()).unwrap()
}

fn dir(fs: &FileSystem, parent: Ino, name: &str) -> Ino {
    let ino = fs.mkdir(&ROOT, parent, name.as_bytes(), 0o755).unwrap().ino;
    fs.forget(ino, 1);
    ino
}

fn made(fs: &FileSystem, parent: Ino, name: &str, len: u64) -> Result<Ino, FsFault> {
    let ino = fs.mknod(&ROOT, parent, name.as_bytes(), 0o644, 0)?.ino;
    fs.forget(ino, 1);
    if len > 0 {
        fs.write(ino, 0, &vec![b'x'; len as usize], WriteHow::default())?;
    }
    Ok(ino)
}

fn file(fs: &FileSystem, parent: Ino, name: &str, len: u64) -> Ino {
    made(fs, parent, name, len).unwrap()
}

fn errno<T>(result: Result<T, FsFault>) -> Result<(), i32> {
    result.map(drop).map_err(|fault| fault.errno())
}

fn bytes(n: u64) -> LimitChange {
    LimitChange { bytes: Some(Some(n)), ..LimitChange::default() }
}

fn inodes(n: u64) -> LimitChange {
    LimitChange { inodes: Some(Some(n)), ..LimitChange::default() }
}

const NONE: LimitChange =
    LimitChange { bytes: Some(None), inodes: Some(None), soft_bytes: Some(None), soft_inodes: Some(None) };

fn limit(fs: &FileSystem, dir: Ino, change: &LimitChange) {
    fs.set_limits(LimitOf::Tree(dir), change).unwrap();
}

fn used(fs: &FileSystem, account: Account) -> (u128, u64) {
    let all = fs.vault().accounts();
    all.iter().find(|a| a.account == account).map_or((0, 0), |a| (a.used.bytes, a.used.inodes))
}

fn nothing_drifted(fs: &FileSystem) {
    assert_eq!(fs.vault().recount_quotas().unwrap(), []);
}

#[test]
fn what_is_charged_to_a_tree_is_charged_to_all_around_it() {
    let disk = fresh();
    let fs = opened(&disk);
    let outer = dir(&fs, ROOT_INO, "outer");
    let inner = dir(&fs, outer, "inner");
    file(&fs, outer, "a", 1000);
    let b = file(&fs, inner, "b", 2000);
    // The inner one first: the outer one takes it in.
    limit(&fs, inner, &bytes(5000));
    limit(&fs, outer, &bytes(6000));
    assert_eq!(used(&fs, Account::Tree(1)), (2000, 2));
    assert_eq!(used(&fs, Account::Tree(2)), (3000, 4));
    assert_eq!(fs.vault().tree(1).unwrap().parent, 2);
    // The outer limit binds what comes into the inner one, and the inner its own.
    file(&fs, outer, "c", 2500);
    assert_eq!(errno(fs.write(b, 2000, &[1; 501], WriteHow::default())), Err(libc::EDQUOT));
    fs.write(b, 2000, &[1; 500], WriteHow::default()).unwrap();
    limit(&fs, outer, &bytes(1 << 20));
    assert_eq!(errno(fs.write(b, 2500, &[1; 2501], WriteHow::default())), Err(libc::EDQUOT));
    fs.write(b, 2500, &[1; 2500], WriteHow::default()).unwrap();
    assert_eq!(used(&fs, Account::Tree(1)), (5000, 2));
    assert_eq!(used(&fs, Account::Tree(2)), (8500, 5));
    // A number is not given out twice, and an inner tree outlives the one around it.
    limit(&fs, outer, &NONE);
    fs.sync_wait().unwrap();
    assert_eq!(fs.vault().trees().iter().map(|(n, t)| (*n, t.parent)).collect::<Vec<_>>(), [(1, 0)]);
    assert_eq!(used(&fs, Account::Tree(1)), (5000, 2));
    limit(&fs, outer, &inodes(9));
    assert_eq!(fs.vault().trees().iter().map(|(n, t)| (*n, t.parent)).collect::<Vec<_>>(), [(1, 3), (3, 0)]);
    nothing_drifted(&fs);
    closed(fs);
    assert_eq!(found(&disk), []);
}

#[test]
fn sparse_files_count_whole_links_by_their_target_and_copies_each() {
    let fs = opened(&fresh());
    let t = dir(&fs, ROOT_INO, "t");
    limit(&fs, t, &bytes(10 << 20));
    let a = file(&fs, t, "a", 0);
    fs.setattr(&ROOT, a, &SetAttr { size: Some(4 << 20), ..SetAttr::default() }).unwrap();
    fs.symlink(&ROOT, t, b"l", &[b't'; 100]).unwrap();
    assert_eq!(used(&fs, Account::Tree(1)), ((4 << 20) + 100, 3));
    let b = file(&fs, t, "b", 0);
    assert_eq!(fs.copy_file_range(a, 0, b, 0, 4 << 20, WriteHow::default()).unwrap(), 4 << 20);
    assert_eq!(used(&fs, Account::Tree(1)), ((8 << 20) + 100, 4));
    // Room is not charged, size is; a hole gives nothing back.
    fs.fallocate(b, 0, 9 << 20, Fallocate::KeepSize).unwrap();
    fs.fallocate(b, 0, 4 << 20, Fallocate::PunchHole).unwrap();
    assert_eq!(used(&fs, Account::Tree(1)), ((8 << 20) + 100, 4));
    let c = file(&fs, t, "c", 0);
    let over = fs.copy_file_range(a, 0, c, 0, 4 << 20, WriteHow::default());
    assert_eq!(errno(over), Err(libc::EDQUOT));
    assert_eq!(errno(fs.fallocate(c, 0, 4 << 20, Fallocate::Extend)), Err(libc::EDQUOT));
    let grown = SetAttr { size: Some(4 << 20), ..SetAttr::default() };
    assert_eq!(errno(fs.setattr(&ROOT, c, &grown)), Err(libc::EDQUOT));
    assert_eq!(fs.getattr(c).unwrap().size, 0, "what was refused changed nothing");
    nothing_drifted(&fs);
}

#[test]
fn nothing_comes_into_another_tree_by_name_and_a_trees_root_moves_within_the_tree_around_it() {
    let fs = opened(&fresh());
    let (t, u, plain) = (dir(&fs, ROOT_INO, "t"), dir(&fs, ROOT_INO, "u"), dir(&fs, ROOT_INO, "plain"));
    limit(&fs, t, &bytes(1 << 20));
    limit(&fs, u, &bytes(1 << 20));
    let f = file(&fs, ROOT_INO, "f", 10);
    file(&fs, t, "in", 10);
    let refused = Err(libc::EXDEV);
    let replace = RenameHow::Replace;
    assert_eq!(errno(fs.rename(ROOT_INO, b"f", t, b"f", replace)), refused);
    assert_eq!(errno(fs.rename(t, b"in", ROOT_INO, b"in", replace)), refused);
    assert_eq!(errno(fs.rename(t, b"in", u, b"in", replace)), refused);
    assert_eq!(errno(fs.rename(t, b"in", ROOT_INO, b"f", RenameHow::Exchange)), refused);
    assert_eq!(errno(fs.link(f, t, b"f")), refused);
    assert_eq!(errno(fs.rename(ROOT_INO, b"plain", t, b"plain", replace)), refused);
    assert_eq!(errno(fs.rename(ROOT_INO, b"u", t, b"u", replace)), refused, "a tree's root, into another tree");
    // Within: the directory around it may change, as long as it is in the same tree.
    fs.rename(ROOT_INO, b"t", plain, b"t2", replace).unwrap();
    fs.rename(t, b"in", t, b"in2", replace).unwrap();
    fs.rename(plain, b"t2", ROOT_INO, b"u", RenameHow::Exchange).unwrap();
    // A whiteout stays behind in the tree, and is charged.
    let how = RenameHow::Whiteout { by: ROOT, replace: false };
    fs.rename(t, b"in2", t, b"in3", how).unwrap();
    assert_eq!(used(&fs, Account::Tree(1)), (10, 3));
    limit(&fs, t, &inodes(3));
    assert_eq!(errno(fs.rename(t, b"in3", t, b"in4", how)), Err(libc::EDQUOT));
    assert_eq!(fs.lookup(t, b"in3").map(|a| a.size).unwrap(), 10, "what was refused changed nothing");
    nothing_drifted(&fs);
}

#[test]
fn owners_are_charged_what_they_own_whoever_writes() {
    let disk = fresh();
    let fs = opened(&disk);
    let caller = Caller { uid: 5, gid: 6, umask: 0 };
    let mine = fs.mknod(&caller, ROOT_INO, b"mine", 0o644, 0).unwrap().ino;
    fs.write(mine, 0, &[1; 3000], WriteHow::default()).unwrap();
    // Counting begins with what is there.
    fs.set_limits(LimitOf::User(5), &bytes(4000)).unwrap();
    assert_eq!((used(&fs, Account::User(5)), used(&fs, Account::Group(6))), ((3000, 1), (3000, 1)));
    assert_eq!(used(&fs, Account::User(0)), (0, 1));
    // Root writes, and its owner is charged; root is not exempt as an owner either.
    assert_eq!(errno(fs.write(mine, 3000, &[1; 1001], WriteHow::default())), Err(libc::EDQUOT));
    fs.set_limits(LimitOf::User(0), &inodes(1)).unwrap();
    assert_eq!(errno(fs.mknod(&ROOT, ROOT_INO, b"r", 0o644, 0)), Err(libc::EDQUOT));
    fs.set_limits(LimitOf::User(0), &NONE).unwrap();
    // A change of owner moves the charge, and the new one must have room.
    let r = file(&fs, ROOT_INO, "r", 2000);
    let to = |uid| SetAttr { uid: Some(uid), ..SetAttr::default() };
    assert_eq!(errno(fs.setattr(&ROOT, r, &to(5))), Err(libc::EDQUOT));
    assert_eq!(fs.getattr(r).unwrap().uid, 0);
    fs.setattr(&ROOT, mine, &to(7)).unwrap();
    fs.setattr(&ROOT, r, &to(5)).unwrap();
    assert_eq!((used(&fs, Account::User(5)), used(&fs, Account::User(7))), ((2000, 1), (3000, 1)));
    assert_eq!(used(&fs, Account::Group(6)), (3000, 1));
    nothing_drifted(&fs);
    closed(fs);
    let fs = opened(&disk);
    assert_eq!((used(&fs, Account::User(5)), used(&fs, Account::User(7))), ((2000, 1), (3000, 1)));
    closed(fs);
    assert_eq!(found(&disk), []);
}

#[test]
fn what_is_open_stays_charged_until_it_is_let_go_of_and_a_tree_ends_with_it() {
    let disk = fresh();
    let fs = opened(&disk);
    let t = dir(&fs, ROOT_INO, "t");
    limit(&fs, t, &bytes(5000));
    file(&fs, t, "f", 4000);
    let f = fs.lookup(t, b"f").unwrap().ino;
    fs.unlink(t, b"f").unwrap();
    assert_eq!(used(&fs, Account::Tree(1)), (4000, 2));
    assert_eq!(errno(made(&fs, t, "g", 2000)), Err(libc::EDQUOT));
    fs.unlink(t, b"g").unwrap();
    fs.rmdir(ROOT_INO, b"t").unwrap();
    fs.sync_wait().unwrap();
    assert_eq!(used(&fs, Account::Tree(1)), (4000, 1));
    assert_eq!(fs.vault().tree(1).unwrap().root, Ino(0));
    // A crash now: the next mount lets go of it, and of the tree.
    let cut = disk.crash(|_, _| true);
    assert!(found(&cut).iter().all(|f| matches!(f, Finding::CopySpoiled { .. })), "{:?}", found(&cut));
    let later = opened(&cut);
    later.sync_wait().unwrap();
    assert_eq!(later.vault().trees(), []);
    closed(later);
    fs.forget(f, 1);
    fs.sync_wait().unwrap();
    assert_eq!((fs.vault().trees(), fs.vault().accounts()), (vec![], vec![]));
    closed(fs);
    assert_eq!(found(&disk), []);
}

#[test]
fn a_file_with_names_inside_and_outside_belongs_where_it_was_met_and_is_named() {
    let disk = fresh();
    let fs = opened(&disk);
    let t = dir(&fs, ROOT_INO, "t");
    let f = file(&fs, t, "inside", 100);
    fs.link(f, ROOT_INO, b"outside").unwrap();
    limit(&fs, t, &bytes(5000));
    assert_eq!(used(&fs, Account::Tree(1)), (100, 2));
    let checked = fs.check_quotas().unwrap();
    assert!(checked.is_clean() && checked.strays.len() == 1, "{checked:?}");
    assert_eq!((checked.strays[0].ino, checked.strays[0].dir), (f, ROOT_INO));
    // It goes by the tree that it is charged to.
    assert_eq!(errno(fs.link(f, ROOT_INO, b"more")), Err(libc::EXDEV));
    fs.link(f, t, b"more").unwrap();
    fs.rename(ROOT_INO, b"outside", ROOT_INO, b"elsewhere", RenameHow::Replace).unwrap();
    fs.unlink(t, b"inside").unwrap();
    fs.unlink(t, b"more").unwrap();
    assert_eq!(used(&fs, Account::Tree(1)), (100, 2), "its last name is outside now");
    closed(fs);
    assert_eq!(found(&disk), [], "which is no damage");
    // With the limit gone, so is the tree: it is looked for by its number, not by names.
    let fs = opened(&disk);
    limit(&fs, t, &NONE);
    fs.sync_wait().unwrap();
    assert_eq!(fs.vault().accounts(), []);
    assert_eq!(fs.check_quotas().unwrap().strays, []);
    closed(fs);
    assert_eq!(found(&disk), []);
}

/// Gives an inode a tree's number as a walk does: with its charge, in an operation of its own.
fn retag(fs: &FileSystem, ino: Ino, tree: u32) {
    let stored = Inode::decode(&fs.vault().get(&key::inode(ino)).unwrap().unwrap()).unwrap();
    let after = Inode { tree, ..stored };
    let mut op = fs.vault().begin();
    op.charge(ino, Some(&stored), Some(&after), Admit::Always).unwrap();
    op.put(key::inode(ino), after.encode());
    op.commit();
}

#[test]
fn a_walk_that_was_cut_off_is_right_where_it_stopped_and_is_finished_by_the_next_mount() {
    let disk = fresh();
    let fs = opened(&disk);
    let t = dir(&fs, ROOT_INO, "t");
    let inner = dir(&fs, t, "inner");
    file(&fs, inner, "x", 50);
    limit(&fs, inner, &bytes(1000));
    let mut all = vec![t];
    for n in 0..40 {
        let parent = all[n / 8 * 8];
        let name = format!("n{n}");
        all.push(if n % 8 == 7 { dir(&fs, parent, &name) } else { file(&fs, parent, &name, 10) });
    }
    closed(fs);
    let (whole, begun) = ((35 * 10 + 50, 43), all.len());
    for done in [0, 1, 2, 9, 25, begun] {
        for walk in [Walk::Tagging, Walk::Untagging] {
            let disk = disk.copy();
            let fs = opened(&disk);
            if walk == Walk::Untagging {
                limit(&fs, t, &bytes(1 << 20));
                assert_eq!(used(&fs, Account::Tree(2)), whole);
            }
            let mut op = fs.vault().begin();
            match walk {
                Walk::Untagging => op.change_tree(2, |tree| tree.walk = walk),
                _ => assert_eq!(op.begin_tree(t, 0, strongroom::format::quota::Limits::default()).unwrap(), 2),
            }
            op.commit();
            // Names are walked from above, numbers in no order that matters.
            let to = if walk == Walk::Tagging { 2 } else { 0 };
            all.iter().take(done).for_each(|ino| retag(&fs, *ino, to));
            fs.sync_wait().unwrap();
            let cut = disk.crash(|_, _| true);
            closed(fs);
            let say = format!("{walk:?}, {done} of {begun}");
            let damage: Vec<_> =
                found(&cut).into_iter().filter(|f| !matches!(f, Finding::CopySpoiled { .. })).collect();
            assert_eq!(damage, [], "{say}");
            let vault = vault::open(Arc::new(cut.clone()), &unlock(), &OpenOptions::default(), world()).unwrap();
            assert_eq!(vault.tree(2).map(|tree| tree.walk), Some(walk), "{say}");
            assert_eq!(vault.recount_quotas().unwrap(), [], "{say}: before the walk goes on");
            let fs = FileSystem::new(vault, FsOptions::default()).unwrap();
            fs.sync_wait().unwrap();
            let checked = fs.check_quotas().unwrap();
            assert!(checked.is_clean() && checked.strays.is_empty(), "{say}: {checked:?}");
            let trees: Vec<(u32, u32, Walk)> = fs.vault().trees().iter().map(|(n, t)| (*n, t.parent, t.walk)).collect();
            if walk == Walk::Tagging {
                assert_eq!(trees, [(1, 2, Walk::Done), (2, 0, Walk::Done)], "{say}");
                assert_eq!(used(&fs, Account::Tree(2)), whole, "{say}");
            } else {
                assert_eq!(trees, [(1, 0, Walk::Done)], "{say}");
            }
            assert_eq!(used(&fs, Account::Tree(1)), (50, 2), "{say}");
            closed(fs);
            assert_eq!(found(&cut), [], "{say}");
        }
    }
}

/// Ends the others' work with its own, also where that ends in a failure.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn what_moves_while_a_tree_is_begun_is_charged_where_it_is() {
    let fs = opened(&fresh());
    let t = dir(&fs, ROOT_INO, "t");
    let mut dirs = vec![t];
    for n in 0..60 {
        dirs.push(dir(&fs, dirs[n / 4], &format!("d{n}")));
        for m in 0..20 {
            file(&fs, *dirs.last().unwrap(), &format!("f{m}"), 1);
        }
    }
    let (ended, refused) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|s| {
        for thread in 0..3u64 {
            let (fs, ended, refused, dirs) = (&fs, &ended, &refused, &dirs);
            s.spawn(move || {
                let mut rng = Rng(thread);
                while !ended.load(SeqCst) {
                    let (from, to) = (*rng.pick(dirs), if rng.below(5) == 0 { ROOT_INO } else { *rng.pick(dirs) });
                    let (name, new) = (format!("f{}", rng.below(20)), format!("f{}", rng.below(20)));
                    match errno(fs.rename(from, name.as_bytes(), to, new.as_bytes(), RenameHow::Replace)) {
                        Err(libc::EXDEV) => drop(refused.fetch_add(1, SeqCst)),
                        other => assert!(matches!(other, Ok(()) | Err(libc::ENOENT)), "{other:?}"),
                    }
                    let _ = made(fs, *rng.pick(dirs), &format!("f{}", rng.below(20)), 1);
                }
            });
        }
        let _ends = Ends(&ended);
        for round in 0..8 {
            limit(&fs, t, &bytes(1 << 20));
            let checked = fs.check_quotas().unwrap();
            assert!(checked.drift.is_empty() && checked.strays.is_empty(), "round {round}: {checked:?}");
            limit(&fs, t, &NONE);
            let checked = fs.check_quotas().unwrap();
            assert!(checked.drift.is_empty() && checked.strays.is_empty(), "round {round}, removed: {checked:?}");
        }
    });
    assert!(refused.load(SeqCst) > 0, "nothing was in anyone's way");
}

#[test]
fn eight_threads_at_the_limit_never_exceed_it() {
    const LIMIT: u64 = 200_000;
    let fs = opened(&fresh());
    let t = dir(&fs, ROOT_INO, "t");
    limit(&fs, t, &LimitChange { bytes: Some(Some(LIMIT)), inodes: Some(Some(30)), ..LimitChange::default() });
    let (refused, most) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|s| {
        for thread in 0..8u64 {
            let (fs, most, refused) = (&fs, &most, &refused);
            s.spawn(move || {
                let mut rng = Rng(thread);
                for n in 0..400 {
                    let name = format!("{thread}-{}", n % 6);
                    let done = match rng.below(4) {
                        0 => fs.unlink(t, name.as_bytes()).or(Ok(())),
                        _ => fs.lookup(t, name.as_bytes()).map(|a| a.ino).or_else(|_| made(fs, t, &name, 0)).and_then(
                            |ino| {
                                let len = 1 + rng.below(9000) as usize;
                                fs.write(ino, rng.below(30_000), &vec![1; len], WriteHow::default())
                            },
                        ),
                    };
                    match errno(done) {
                        Err(libc::EDQUOT) => drop(refused.fetch_add(1, SeqCst)),
                        other => assert_eq!(other, Ok(())),
                    }
                    let (bytes, inodes) = used(fs, Account::Tree(1));
                    assert!(bytes <= u128::from(LIMIT) && inodes <= 30, "{bytes} {inodes}");
                    most.fetch_max(bytes as u64, SeqCst);
                }
            });
        }
    });
    assert!(refused.load(SeqCst) > 100 && most.load(SeqCst) > LIMIT * 9 / 10, "{refused:?} {most:?}");
    nothing_drifted(&fs);
}

#[test]
fn counting_begins_beside_whatever_is_at_work() {
    let disk = fresh();
    let fs = opened(&disk);
    let t = dir(&fs, ROOT_INO, "t");
    for n in 0..3000 {
        file(&fs, t, &format!("old{n}"), 0);
    }
    let ended = AtomicU64::new(0);
    std::thread::scope(|s| {
        for thread in 0..4u32 {
            let (fs, ended) = (&fs, &ended);
            s.spawn(move || {
                let mut rng = Rng(thread.into());
                for n in 0..1500 {
                    let caller = Caller { uid: thread % 3, gid: n % 2, umask: 0 };
                    let name = format!("{thread}-{}", rng.below(40));
                    if let Ok(a) = fs.mknod(&caller, t, name.as_bytes(), 0o644, 0) {
                        fs.write(a.ino, 0, &vec![1; 1 + rng.below(3000) as usize], WriteHow::default()).unwrap();
                    }
                    let old = fs.lookup(t, format!("old{}", rng.below(3000)).as_bytes()).unwrap();
                    fs.setattr(&ROOT, old.ino, &SetAttr { uid: Some(n % 5), ..SetAttr::default() }).unwrap();
                    if n % 3 == 0 {
                        let _ = fs.unlink(t, format!("{thread}-{}", rng.below(40)).as_bytes());
                    }
                }
                ended.fetch_add(1, SeqCst);
            });
        }
        fs.set_limits(LimitOf::User(9), &bytes(1)).unwrap();
        let mut looks = 0;
        while ended.load(SeqCst) < 4 || looks == 0 {
            nothing_drifted(&fs);
            looks += 1;
        }
        assert!(looks > 1, "a second count agreed while others were at work");
    });
    nothing_drifted(&fs);
    closed(fs);
    assert_eq!(found(&disk), []);
}

/// Changes what is stored, past all that counts.
fn plant(fs: &FileSystem, ino: Ino, change: impl FnOnce(&mut Inode)) {
    let mut inode = Inode::decode(&fs.vault().get(&key::inode(ino)).unwrap().unwrap()).unwrap();
    change(&mut inode);
    let mut op = fs.vault().begin();
    op.put(key::inode(ino), inode.encode());
    op.commit();
}

#[test]
fn a_planted_drift_and_a_wrong_number_are_found_and_mended() {
    let disk = fresh();
    let fs = opened(&disk);
    let t = dir(&fs, ROOT_INO, "t");
    let (sub, f) = (dir(&fs, t, "sub"), file(&fs, t, "f", 100));
    limit(&fs, t, &bytes(5000));
    fs.set_limits(LimitOf::User(0), &inodes(100)).unwrap();
    plant(&fs, sub, |i| i.tree = 0);
    plant(&fs, f, |i| (i.uid, i.tree) = (3, 77));
    let checked = fs.check_quotas().unwrap();
    let drifted: Vec<Account> = checked.drift.iter().map(|d| d.0).collect();
    assert_eq!(drifted, [Account::Tree(1), Account::Tree(77), Account::User(0), Account::User(3)]);
    assert_eq!(checked.strays.iter().map(|s| (s.ino, s.is_dir)).collect::<Vec<_>>(), [(f, false), (sub, true)]);
    assert!(!checked.is_clean());
    closed(fs);
    let kinds: Vec<&str> = found(&disk).iter().map(Finding::kind).collect();
    assert_eq!(kinds, ["tree-number", "tree-number", "quota-count", "quota-count", "quota-count"]);
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    let again = || lock(Arc::clone(&backing));
    let owner = Owner::default();
    let repaired = repair(again().unwrap(), &again, &unlock(), &world(), owner, Share::Nothing, &|_, _| ()).unwrap();
    assert_eq!(repaired.left, []);
    assert!(repaired.mended.len() >= 4, "{:?}", repaired.mended);
    assert_eq!(found(&disk), []);
    let fs = opened(&disk);
    assert_eq!((used(&fs, Account::Tree(1)), used(&fs, Account::User(3))), ((100, 3), (100, 1)));
    assert!(fs.check_quotas().unwrap().is_clean());
    nothing_drifted(&fs);
}

#[test]
fn what_repair_finds_and_shortens_is_counted_right() {
    let disk = fresh();
    let fs = opened(&disk);
    let t = dir(&fs, ROOT_INO, "t");
    let (lost, short) = (file(&fs, t, "lost", 100), file(&fs, t, "short", 5000));
    limit(&fs, t, &bytes(50_000));
    fs.sync_wait().unwrap();
    // A name gone, and a size that its data is beyond.
    let mut op = fs.vault().begin();
    op.delete(key::name(t, b"lost"));
    op.commit();
    plant(&fs, short, |i| i.size = 10);
    closed(fs);
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    let again = || lock(Arc::clone(&backing));
    let repaired =
        repair(again().unwrap(), &again, &unlock(), &world(), Owner::default(), Share::Nothing, &|_, _| ()).unwrap();
    assert_eq!(repaired.left, []);
    assert_eq!(found(&disk), []);
    let fs = opened(&disk);
    nothing_drifted(&fs);
    assert!(fs.getattr(lost).is_ok());
    assert_eq!(
        used(&fs, Account::Tree(1)).0,
        5100,
        "the file in lost+found is charged where it was, and the size is right"
    );
}

#[test]
fn free_room_is_what_the_tightest_of_the_trees_leaves() {
    let fs = opened(&fresh());
    let t = dir(&fs, ROOT_INO, "t");
    let inner = dir(&fs, t, "inner");
    limit(&fs, t, &LimitChange { bytes: Some(Some(1 << 20)), inodes: Some(Some(50)), ..LimitChange::default() });
    limit(&fs, inner, &bytes(8 << 20));
    let f = file(&fs, t, "f", 256 << 10);
    let whole = fs.statfs_at(ROOT_INO).unwrap();
    assert_eq!(whole, fs.statfs().unwrap(), "outside, the vault counts");
    for ino in [t, inner, f] {
        let space = fs.statfs_at(ino).unwrap();
        assert_eq!((space.blocks, space.blocks_free), (256, 192), "{ino}");
        assert_eq!((space.inodes, space.inodes_free), (50, 47), "{ino}");
    }
    // Over the limit already: nothing is left, and it is no more than it is.
    limit(&fs, t, &bytes(4096));
    let space = fs.statfs_at(f).unwrap();
    assert_eq!((space.blocks, space.blocks_free), (64, 0));
}

#[test]
fn soft_limits_are_told_and_metrics_carry_no_names() {
    let fs = opened(&fresh());
    let t = dir(&fs, ROOT_INO, "secret name");
    let soft = LimitChange { soft_bytes: Some(Some(1000)), ..LimitChange::default() };
    limit(&fs, t, &soft);
    let text = |name: &str| {
        let dir = fs.lookup(ROOT_INO, b".storage").unwrap().ino;
        let file = fs.lookup(dir, name.as_bytes()).unwrap().ino;
        let mut out = Vec::new();
        fs.read(file, 0, 1 << 20, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert!(!text("status").contains("soft"), "{}", text("status"));
    file(&fs, t, "f", 1001);
    assert!(text("status").contains("tree 1 is over its soft limit: 1001 bytes (soft 1000, hard none)"));
    let quota = text("quota");
    assert!(quota.contains("kind=tree id=1 bytes=1001 inodes=2 hard_bytes=none"), "{quota}");
    assert!(quota.contains("over=soft") && quota.contains("path=/secret name\n"), "{quota}");
    let metrics = text("metrics");
    for line in [
        "strongroom_quota_used_bytes{kind=\"tree\",id=\"1\"} 1001",
        "strongroom_quota_limit_bytes{kind=\"tree\",id=\"1\",limit=\"soft\"} 1000",
        "strongroom_quota_over_soft{kind=\"tree\",id=\"1\"} 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in {metrics}");
    }
    assert!(!metrics.contains("secret"));
    // By orders, as the command gives them.
    let control = fs.lookup(fs.lookup(ROOT_INO, b".storage").unwrap().ino, b"control").unwrap().ino;
    let order = |text: &str| errno(fs.write(control, 0, text.as_bytes(), WriteHow::default()));
    assert_eq!(order(&format!("quota set tree {t} bytes=1001 inodes=none")), Ok(()));
    assert_eq!(errno(made(&fs, t, "g", 1)), Err(libc::EDQUOT));
    assert_eq!(order("quota set tree 999 bytes=1"), Err(libc::ENOENT));
    assert_eq!(order("quota set tree 1 size=1"), Err(libc::EINVAL));
    assert_eq!(order("quota check"), Ok(()));
    assert!(text("quota").contains("drift=0 strays=0"), "{}", text("quota"));
    assert!(text("status").contains("tree 1 is full"), "{}", text("status"));
}

#[test]
fn a_vault_of_format_3_takes_quotas_and_is_none_of_format_3_any_more() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vaults");
    let unlock = Unlock::KeyFile(Passphrase(std::fs::read(from.join("key")).unwrap()));
    let disk = MemoryBacking::default();
    for dir in ["segments", "index", ""] {
        if !dir.is_empty() {
            disk.make_dir(dir).unwrap();
        }
        for entry in std::fs::read_dir(from.join("v3-aes").join(dir)).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                let path = Path::new(dir).join(entry.file_name());
                let file = disk.open(path.to_str().unwrap(), Open::Create, Cache::Buffered).unwrap();
                file.write_all_at(&std::fs::read(entry.path()).unwrap(), 0).unwrap();
            }
        }
    }
    let fs = opened_with(&disk, &unlock);
    assert_eq!(fs.vault().accounts(), []);
    let docs = fs.lookup(ROOT_INO, b"docs").unwrap().ino;
    limit(&fs, docs, &bytes(1 << 20));
    // words.txt and hard.bin, which has a name outside.
    assert_eq!(used(&fs, Account::Tree(1)), (204_800 + 40_960, 3));
    fs.set_limits(LimitOf::Group(100), &inodes(500)).unwrap();
    assert_eq!(used(&fs, Account::Group(100)).1, 12);
    nothing_drifted(&fs);
    closed(fs);
    let header = strongroom::backing::read_file(&disk, "vault.toml", 1 << 16).unwrap();
    assert!(header.starts_with(b"format = 5\n"));
    let fs = opened_with(&disk, &unlock);
    assert_eq!(used(&fs, Account::Tree(1)), (204_800 + 40_960, 3));
    std::thread::sleep(Duration::from_millis(1));
    nothing_drifted(&fs);
}

#[test]
fn counts_survive_a_rebuild_from_the_log() {
    let disk = fresh();
    let fs = opened(&disk);
    let t = dir(&fs, ROOT_INO, "t");
    limit(&fs, t, &bytes(1 << 20));
    fs.set_limits(LimitOf::User(0), &inodes(100)).unwrap();
    file(&fs, t, "f", 12_345);
    closed(fs);
    for name in disk.list("index").unwrap() {
        disk.remove(&format!("index/{name}")).unwrap();
    }
    let fs = opened(&disk);
    assert!(fs.vault().index_lost().is_some());
    assert_eq!((used(&fs, Account::Tree(1)), used(&fs, Account::User(0))), ((12_345, 2), (12_345, 3)));
    let all = fs.vault().accounts();
    let limits: Vec<_> = all.iter().map(|a| (a.account, a.limits.bytes, a.limits.inodes)).collect();
    let want =
        [(Account::Tree(1), Some(1 << 20), None), (Account::User(0), None, Some(100)), (Account::Group(0), None, None)];
    assert_eq!(limits, want);
    assert_eq!(all[0].used, Used { bytes: 12_345, inodes: 2 });
    nothing_drifted(&fs);
}

#[test]
fn what_an_operation_charged_and_did_not_do_is_given_back() {
    let fs = opened(&fresh());
    let t = dir(&fs, ROOT_INO, "t");
    limit(&fs, t, &bytes(1000));
    let f = file(&fs, t, "f", 100);
    let stored = Inode::decode(&fs.vault().get(&key::inode(f)).unwrap().unwrap()).unwrap();
    let grown = |size| Inode { size, ..stored };
    let mut op = fs.vault().begin();
    op.charge(f, Some(&stored), Some(&grown(900)), Admit::WithinLimits).unwrap();
    let over = op.charge(f, Some(&grown(900)), Some(&grown(1001)), Admit::WithinLimits).unwrap_err();
    assert_eq!(over.account, Account::Tree(1));
    assert_eq!(used(&fs, Account::Tree(1)), (900, 2));
    drop(op);
    assert_eq!(used(&fs, Account::Tree(1)), (100, 2));
    nothing_drifted(&fs);
}

#[test]
fn a_file_renamed_behind_the_walk_is_charged_too() {
    // The walk goes by the names of a directory; whatever thread it meets, `a…` comes before `z…`.
    let fs = opened(&fresh());
    let t = dir(&fs, ROOT_INO, "t");
    for n in 0..3000 {
        file(&fs, t, &format!("z{n:04}"), 1);
    }
    let deep = dir(&fs, t, "zz");
    file(&fs, deep, "inside", 1);
    let ended = AtomicBool::new(false);
    std::thread::scope(|s| {
        let (fs, ended) = (&fs, &ended);
        s.spawn(move || {
            let names = ["zz".to_owned()].into_iter().chain((0..3000).rev().map(|n| format!("z{n:04}")));
            for name in names {
                fs.rename(t, name.as_bytes(), t, format!("a{name}").as_bytes(), RenameHow::Replace).unwrap();
                if ended.load(SeqCst) {
                    break;
                }
            }
        });
        let _ends = Ends(ended);
        limit(fs, t, &bytes(1 << 20));
    });
    let checked = fs.check_quotas().unwrap();
    assert!(checked.drift.is_empty() && checked.strays.is_empty(), "{checked:?}");
    assert_eq!(used(&fs, Account::Tree(1)), (3001, 3003));
}
