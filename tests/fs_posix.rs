//! What POSIX and Linux ask of a filesystem beside names and bytes, asked of `fs` with no mount between.
//!
//! Method: the vault lies on a disk in memory; each promise is put to the filesystem's own face and, where it must outlive a
//! mount, asked again after the vault was closed and opened.
//! Promise: access control lists agree with modes and are given on; holes are where nothing was written; a number leads to
//! its inode; what is shown instead of owners changes nothing that is stored.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/rng.rs"]
#[allow(dead_code, reason = "each test binary uses its part")]
mod rng;

use rng::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;
use strongroom::backing::{Backing, MemoryBacking};
use strongroom::base::id::{Ino, ROOT_INO};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, Time, World};
use strongroom::fs::{
    Atime, Attr, Caller, Fallocate, FileSystem, FsFault, FsOptions, RenameHow, STORAGE_INO, Seek, SetAttr, SetTime,
    Shown, WriteHow, XattrHow, XattrReply,
};
use strongroom::seal::Unlock;
use strongroom::vault::{self, CreateOptions, OpenOptions};

const CALLER: Caller = Caller { uid: 7, gid: 8, umask: 0o027 };
const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const NOBODY: u32 = u32::MAX;

struct Disk(Arc<dyn Backing>);

impl Disk {
    fn new() -> Disk {
        Disk::of(None)
    }
    fn of(capacity_bytes: Option<u64>) -> Disk {
        let memory = MemoryBacking::default();
        memory.limit(capacity_bytes);
        let disk = Disk(Arc::new(memory));
        let world: Arc<dyn World> = Arc::new(RealWorld::default());
        vault::create(&disk.0, &unlock(), &CreateOptions::default(), &world).unwrap();
        disk
    }
    fn fs(&self, options: FsOptions) -> FileSystem {
        self.fs_in(Arc::new(RealWorld::default()), options)
    }
    fn fs_in(&self, world: Arc<dyn World>, options: FsOptions) -> FileSystem {
        let vault = vault::open(Arc::clone(&self.0), &unlock(), &OpenOptions::default(), world).unwrap();
        FileSystem::new(vault, options).unwrap()
    }
}

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(b"thirty-two bytes, or some more than that".to_vec()))
}

fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut b = 2u32.to_le_bytes().to_vec();
    for (tag, may, id) in entries {
        b.extend([tag.to_le_bytes(), may.to_le_bytes()].concat());
        b.extend(id.to_le_bytes());
    }
    b
}

/// Owner, user 1000, group, mask, others.
fn named(owner: u16, user: u16, group: u16, mask: u16, others: u16) -> Vec<u8> {
    list(&[(1, owner, NOBODY), (2, user, 1000), (4, group, NOBODY), (16, mask, NOBODY), (32, others, NOBODY)])
}

fn get(fs: &FileSystem, ino: Ino, name: &[u8]) -> Result<Vec<u8>, i32> {
    match fs.getxattr(ino, name, 65_536).map_err(|e| e.errno())? {
        XattrReply::Bytes(bytes) => Ok(bytes),
        XattrReply::Length(_) => panic!("the value was asked for"),
    }
}

fn mode(fs: &FileSystem, ino: Ino) -> u32 {
    fs.getattr(ino).unwrap().mode & 0o7777
}

fn no<T: std::fmt::Debug>(result: Result<T, FsFault>) -> i32 {
    result.expect_err("it is refused").errno()
}

#[test]
fn lists_and_modes_agree_and_are_given_on() {
    let disk = Disk::new();
    let fs = disk.fs(FsOptions::default());
    let file = fs.mknod(&CALLER, ROOT_INO, b"f", libc::S_IFREG | 0o666, 0).unwrap().ino;
    assert_eq!(mode(&fs, file), 0o640, "the umask counts where there is no list");
    fs.setxattr(file, ACCESS, &named(6, 7, 4, 6, 0), XattrHow::Set).unwrap();
    assert_eq!(mode(&fs, file), 0o660);
    let chmod = |mode| fs.setattr(&CALLER, file, &SetAttr { mode: Some(mode), ..SetAttr::default() }).unwrap();
    chmod(0o751);
    assert_eq!(get(&fs, file, ACCESS), Ok(named(7, 7, 4, 5, 1)));
    let plain = list(&[(1, 6, NOBODY), (4, 4, NOBODY), (32, 4, NOBODY)]);
    fs.setxattr(file, ACCESS, &plain, XattrHow::Set).unwrap();
    assert_eq!((mode(&fs, file), get(&fs, file, ACCESS)), (0o644, Err(libc::ENODATA)));
    fs.removexattr(file, ACCESS).expect("one that is not there is gone already");

    let dir = fs.mkdir(&CALLER, ROOT_INO, b"d", 0o750).unwrap().ino;
    fs.setxattr(dir, DEFAULT, &named(7, 7, 5, 7, 0), XattrHow::Set).unwrap();
    let within = fs.mknod(&CALLER, dir, b"f", libc::S_IFREG | 0o666, 0).unwrap();
    let below = fs.mkdir(&CALLER, dir, b"d", 0o777).unwrap();
    let link = fs.symlink(&CALLER, dir, b"l", b"nowhere").unwrap();
    fs.vault().close().unwrap();
    drop(fs);
    let fs = disk.fs(FsOptions::default());
    assert_eq!((within.mode & 0o777, get(&fs, within.ino, ACCESS)), (0o660, Ok(named(6, 7, 5, 6, 0))));
    assert_eq!(get(&fs, within.ino, DEFAULT), Err(libc::ENODATA));
    assert_eq!((below.mode & 0o777, get(&fs, below.ino, ACCESS)), (0o770, Ok(named(7, 7, 5, 7, 0))));
    assert_eq!(get(&fs, below.ino, DEFAULT), Ok(named(7, 7, 5, 7, 0)));
    assert_eq!(fs.listxattr(below.ino, 100).unwrap(), XattrReply::Bytes([ACCESS, b"\0", DEFAULT, b"\0"].concat()));
    assert_eq!((link.mode & 0o777, get(&fs, link.ino, ACCESS)), (0o777, Err(libc::ENODATA)));
    assert_eq!(fs.vault().usage().inodes, 6);
}

#[test]
fn lists_that_ext4_would_not_take_are_refused() {
    let fs = Disk::new().fs(FsOptions::default());
    let file = fs.mknod(&CALLER, ROOT_INO, b"f", libc::S_IFREG | 0o640, 0).unwrap().ino;
    let link = fs.symlink(&CALLER, ROOT_INO, b"l", b"f").unwrap().ino;
    let set = |ino, name, value: &[u8]| fs.setxattr(ino, name, value, XattrHow::Set);
    let good = named(6, 6, 6, 6, 6);
    assert_eq!(no(set(file, ACCESS, b"\x02")), libc::EINVAL);
    assert_eq!(no(set(file, ACCESS, b"\x01\0\0\0")), libc::EOPNOTSUPP);
    assert_eq!(no(set(file, ACCESS, &list(&[(1, 7, NOBODY)]))), libc::EINVAL);
    assert_eq!(no(set(file, ACCESS, &list(&[(1, 7, NOBODY); 600]))), libc::E2BIG);
    assert_eq!(no(set(file, DEFAULT, &good)), libc::EACCES);
    assert_eq!(no(set(link, ACCESS, &good)), libc::EOPNOTSUPP);
    set(file, DEFAULT, &list(&[])).expect("nothing is taken away from nothing");
    assert_eq!(mode(&fs, file), 0o640);
    let without = Disk::new().fs(FsOptions { acl: false, ..FsOptions::default() });
    let file = without.mknod(&CALLER, ROOT_INO, b"f", libc::S_IFREG | 0o640, 0).unwrap().ino;
    assert_eq!(no(without.setxattr(file, ACCESS, &good, XattrHow::Set)), libc::EOPNOTSUPP);
}

#[test]
fn a_list_set_by_someone_outside_the_group_takes_the_set_group_id_bit() {
    let fs = Disk::new().fs(FsOptions::default());
    let file = fs.mknod(&CALLER, ROOT_INO, b"f", libc::S_IFREG | 0o640, 0).unwrap().ino;
    for (member, kept) in [(true, 0o2000), (false, 0)] {
        fs.setattr(&CALLER, file, &SetAttr { mode: Some(0o2750), ..SetAttr::default() }).unwrap();
        let in_group = |gid| {
            assert_eq!(gid, 8, "the file's group is asked for");
            member
        };
        fs.setxattr_by(file, ACCESS, &named(7, 7, 5, 7, 0), XattrHow::Set, in_group).unwrap();
        assert_eq!(mode(&fs, file), kept | 0o770);
    }
}

#[test]
fn holes_are_told_from_buffers_and_from_what_is_at_rest() {
    let fs = Disk::new().fs(FsOptions::default());
    let file = fs.mknod(&CALLER, ROOT_INO, b"f", libc::S_IFREG | 0o640, 0).unwrap().ino;
    let seek = |at, what| fs.seek(file, at, what).unwrap().found().map_err(|e| e.errno());
    assert_eq!(seek(0, Seek::Hole), Err(libc::ENXIO), "an empty file has no byte");
    let write = |at: u64, data: &[u8]| fs.write(file, at, data, WriteHow::default()).unwrap();
    write(100_000, b"x");
    write(5 << 20, &[1; 300_000]);
    fs.setattr(&CALLER, file, &SetAttr { size: Some(1 << 40), ..SetAttr::default() }).unwrap();
    for round in ["in the buffers", "at rest", "half and half"] {
        match round {
            "at rest" => fs.sync_wait().unwrap(),
            "half and half" => write((5 << 20) + 4096, b"again"),
            _ => {}
        }
        assert_eq!(seek(0, Seek::Data), Ok(98_304), "{round}");
        assert_eq!(seek(100_001, Seek::Data), Ok(100_001), "{round}: the rest of its block is data");
        assert_eq!(seek(98_304, Seek::Hole), Ok(102_400), "{round}");
        assert_eq!(seek(102_400, Seek::Data), Ok(5 << 20), "{round}");
        assert_eq!(seek(5 << 20, Seek::Hole), Ok((5 << 20) + 303_104), "{round}");
        assert_eq!(seek(6 << 20, Seek::Data), Err(libc::ENXIO), "{round}");
        assert_eq!(seek((1 << 40) - 1, Seek::Hole), Ok((1 << 40) - 1), "{round}");
        assert_eq!(seek(1 << 40, Seek::Hole), Err(libc::ENXIO), "{round}");
    }
    fs.fallocate(file, 5 << 20, 1 << 20, Fallocate::PunchHole).unwrap();
    assert_eq!(seek(102_400, Seek::Data), Err(libc::ENXIO), "a hole in a buffer covers data at rest");
    // What may be wrong for what a kernel has not yet told is said with the answer.
    assert_eq!(fs.seek(file, 98_304, Seek::Data).unwrap().rests_on, None);
    assert_eq!(fs.seek(file, 0, Seek::Data).unwrap().rests_on, Some((0, 98_304)));
}

#[test]
fn data_and_holes_agree_with_a_plain_array_whatever_was_asked_before() {
    const BLOCK: u64 = 4096;
    const BLOCKS: u64 = 3000;
    for seed in 1..=2 {
        let (fs, mut rng) = (Disk::new().fs(FsOptions::default()), Rng(seed));
        let file = fs.mknod(&CALLER, ROOT_INO, b"f", libc::S_IFREG | 0o640, 0).unwrap().ino;
        let (mut size, mut data) = (0, [false; BLOCKS as usize]);
        let (mut found_data, mut found_holes) = (0, 0);
        for step in 0..2000 {
            let at = rng.below(BLOCKS - 8);
            match rng.below(60) {
                0 => fs.sync_wait().unwrap(),
                // Islands at first; then holes and long stretches, too.
                what if what > 20 || step < 1500 => {
                    let len = 1 + rng.below(if what < 30 { 8 * BLOCK } else { BLOCK });
                    fs.write(file, at * BLOCK, &vec![1; len as usize], WriteHow::default()).unwrap();
                    data[at as usize..at as usize + len.div_ceil(BLOCK) as usize].fill(true);
                    size = size.max(at * BLOCK + len);
                }
                1 => {
                    let set = SetAttr { size: Some(at * BLOCK), ..SetAttr::default() };
                    fs.setattr(&CALLER, file, &set).unwrap();
                    data[at as usize..].fill(false);
                    size = at * BLOCK;
                }
                _ => {
                    let len = 1 + rng.below(8);
                    fs.fallocate(file, at * BLOCK, len * BLOCK, Fallocate::PunchHole).unwrap();
                    data[at as usize..(at + len) as usize].fill(false);
                }
            }
            let ask = |at: u64, what| {
                let from = (at / BLOCK..BLOCKS).find(|&b| data[b as usize] == (what == Seek::Data));
                let from = from.map_or(u64::MAX, |b| (b * BLOCK).max(at));
                let want = match what {
                    _ if at >= size => Err(libc::ENXIO),
                    Seek::Data => Some(from).filter(|&from| from < size).ok_or(libc::ENXIO),
                    Seek::Hole => Ok(from.min(size)),
                };
                let found = fs.seek(file, at, what).unwrap().found().map_err(|e| e.errno());
                assert_eq!(found, want, "seed {seed}, step {step}: {what:?} from {at} of {size}");
                found
            };
            // A few in a row from anywhere, and now and then through the whole file.
            let (mut at, mut left) = (rng.below(size + 2), 3);
            if step % 250 == 249 {
                (at, left) = (0, u64::MAX);
            }
            while left > 0
                && let Ok(start) = ask(at, Seek::Data)
            {
                found_data += 1;
                at = ask(start, Seek::Hole).unwrap();
                found_holes += u64::from(at < size);
                left -= 1;
            }
        }
        assert!(found_data > 5000 && found_holes > 5000, "{found_data}, {found_holes}");
    }
}

#[test]
fn an_inode_is_found_by_its_number_alone() {
    let disk = Disk::new();
    let fs = disk.fs(FsOptions::default());
    let dir = fs.mkdir(&CALLER, ROOT_INO, b"d", 0o755).unwrap().ino;
    let file = fs.mknod(&CALLER, dir, b"f", libc::S_IFREG | 0o640, 0).unwrap().ino;
    fs.vault().close().unwrap();
    drop(fs);
    let fs = disk.fs(FsOptions::default());
    for ino in [dir, file] {
        assert_eq!(fs.lookup(ino, b".").unwrap().ino, ino);
        fs.forget(ino, 1);
    }
    assert_eq!(fs.lookup(dir, b"..").unwrap().ino, ROOT_INO);
    fs.forget(ROOT_INO, 1);
    assert_eq!(no(fs.lookup(file, b"..")), libc::ENOTDIR);
    fs.unlink(dir, b"f").unwrap();
    assert_eq!(no(fs.lookup(file, b".")), libc::ENOENT);
}

#[test]
fn a_whiteout_stays_where_a_name_was() {
    let disk = Disk::new();
    let fs = disk.fs(FsOptions::default());
    let dir = fs.mkdir(&CALLER, ROOT_INO, b"d", 0o755).unwrap().ino;
    fs.mknod(&CALLER, ROOT_INO, b"f", libc::S_IFREG | 0o640, 0).unwrap();
    let how = |replace| RenameHow::Whiteout { by: CALLER, replace };
    fs.rename(ROOT_INO, b"f", dir, b"g", how(true)).unwrap();
    fs.rename(dir, b"g", dir, b"h", how(false)).unwrap();
    assert_eq!(no(fs.rename(dir, b"h", dir, b"g", how(false))), libc::EEXIST);
    fs.vault().close().unwrap();
    drop(fs);
    let fs = disk.fs(FsOptions::default());
    for (parent, name) in [(ROOT_INO, &b"f"[..]), (dir, b"g")] {
        let left = fs.lookup(parent, name).unwrap();
        assert_eq!((left.mode, left.rdev, left.nlink, left.uid, left.gid), (libc::S_IFCHR, 0, 1, 7, 8));
    }
    let mut names = Vec::new();
    fs.readdir(dir, 0, |e| {
        names.push(e.name.clone());
        true
    })
    .unwrap();
    names.sort();
    assert_eq!(names, [&b"."[..], b"..", b"g", b"h"]);
    assert_eq!(fs.vault().usage().inodes, 5, "root, directory, file, two whiteouts");
}

#[test]
fn what_is_shown_instead_of_owners_changes_nothing_stored() {
    let disk = Disk::new();
    let shown = Shown { uid: Some(1), gid: Some(2), file_mask: Some(0o133), dir_mask: Some(0o022) };
    let fs = disk.fs(FsOptions { shown, acl: false, ..FsOptions::default() });
    let seen = |a: Attr| (a.uid, a.gid, a.mode);
    let made = fs.mknod(&CALLER, ROOT_INO, b"f", libc::S_IFREG | 0o4600, 0).unwrap();
    assert_eq!(seen(made), (1, 2, libc::S_IFREG | 0o644));
    assert_eq!(seen(fs.getattr(ROOT_INO).unwrap()), (1, 2, libc::S_IFDIR | 0o755));
    fs.vault().close().unwrap();
    drop(fs);
    let stored = disk.fs(FsOptions::default()).lookup(ROOT_INO, b"f").unwrap();
    assert_eq!(seen(stored), (7, 8, libc::S_IFREG | 0o4600));
}

#[test]
fn reading_moves_the_access_time_as_told() {
    for (atime, first, again) in
        [(Atime::Never, false, false), (Atime::Relative, true, false), (Atime::Always, true, true)]
    {
        let fs = Disk::new().fs(FsOptions { atime, ..FsOptions::default() });
        let file = fs.mknod(&CALLER, ROOT_INO, b"f", libc::S_IFREG | 0o640, 0).unwrap().ino;
        fs.write(file, 0, b"content", WriteHow { stamp: true, drop_set_id: false }).unwrap();
        for moves in [first, again] {
            let before = fs.getattr(file).unwrap().atime;
            std::thread::sleep(std::time::Duration::from_millis(2));
            fs.read(file, 0, 10, &mut Vec::new()).unwrap();
            assert_eq!(fs.getattr(file).unwrap().atime > before, moves, "{atime:?}");
        }
    }
}

#[test]
fn every_kind_of_allocation_moves_the_times_and_ends_where_it_should() {
    let fs = Disk::new().fs(FsOptions::default());
    let file = fs.mknod(&CALLER, ROOT_INO, b"f", libc::S_IFREG | 0o640, 0).unwrap().ino;
    fs.write(file, 0, &[1; 10_000], WriteHow::default()).unwrap();
    for (what, size) in [
        (Fallocate::KeepSize, 10_000),
        (Fallocate::PunchHole, 10_000),
        (Fallocate::ZeroKeepSize, 10_000),
        (Fallocate::Extend, 50_000),
        (Fallocate::ZeroRange, 60_000),
    ] {
        let before = fs.getattr(file).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        fs.fallocate(file, if what == Fallocate::ZeroRange { 50_000 } else { 40_000 }, 10_000, what).unwrap();
        let after = fs.getattr(file).unwrap();
        assert_eq!(after.size, size, "{what:?}");
        assert!(after.mtime > before.mtime && after.ctime > before.ctime, "{what:?}");
    }
    let mut all = Vec::new();
    fs.read(file, 0, 60_000, &mut all).unwrap();
    assert!(all[..10_000].iter().all(|&b| b == 1) && all[10_000..].iter().all(|&b| b == 0));
    assert_eq!(no(fs.fallocate(file, 0, 0, Fallocate::Extend)), libc::EINVAL);
    assert_eq!(no(fs.fallocate(file, i64::MAX as u64, 1, Fallocate::Extend)), libc::EFBIG);
}

#[test]
fn what_is_shown_fits_into_32_bits() {
    let disk = Disk::of(Some(4 << 40));
    let fs = disk.fs(FsOptions { show_storage: true, ..FsOptions::default() });
    for name in [&b"a"[..], b"b", b"c"] {
        fs.mknod(&CALLER, ROOT_INO, name, libc::S_IFREG | 0o644, 0).unwrap();
    }
    let space = fs.statfs().unwrap();
    assert!(space.blocks_free * u64::from(space.block_bytes) / 256 > u64::from(u32::MAX), "there is room for more");
    assert!(space.inodes <= u64::from(u32::MAX) && space.inodes_free < space.inodes, "{space:?}");
    let mut all = Vec::new();
    // One at a time, so that each offset is come back to.
    let mut offset = 0;
    loop {
        let mut next = None;
        fs.readdir(ROOT_INO, offset, |entry| {
            next.get_or_insert(entry.clone());
            false
        })
        .unwrap();
        let Some(entry) = next else { break };
        assert!(u32::try_from(entry.ino.0).is_ok() && i32::try_from(entry.offset).is_ok(), "{entry:?}");
        assert!(entry.offset > offset, "{entry:?}");
        offset = entry.offset;
        all.push(entry.name);
    }
    assert_eq!(all, [&b"."[..], b"..", b".storage", b"a", b"b", b"c"]);
    let status = fs.lookup(STORAGE_INO, b"status").unwrap();
    assert!(u32::try_from(status.ino.0).is_ok(), "{status:?}");
}

#[test]
fn a_change_of_owner_takes_set_id_bits_unless_they_are_to_stay() {
    let disk = Disk::new();
    let fs = disk.fs(FsOptions::default());
    let file = fs.mknod(&CALLER, ROOT_INO, b"f", libc::S_IFREG | 0o755, 0).unwrap().ino;
    let chmod = || fs.setattr(&CALLER, file, &SetAttr { mode: Some(0o6755), ..SetAttr::default() }).unwrap();
    let owned = SetAttr { uid: Some(9), gid: Some(9), ..SetAttr::default() };
    chmod();
    assert!(fs.has_set_id(file) && !fs.has_set_id(ROOT_INO) && !fs.has_set_id(STORAGE_INO));
    assert_eq!(fs.setattr(&CALLER, file, &owned).unwrap().mode & 0o7777, 0o755);
    assert!(!fs.has_set_id(file));
    chmod();
    let kept = fs.setattr(&CALLER, file, &SetAttr { keep_set_id: true, ..owned }).unwrap();
    assert_eq!((kept.mode & 0o7777, kept.uid), (0o6755, 9));
    let dropped = fs.setattr(&CALLER, file, &SetAttr { drop_set_id: true, ..SetAttr::default() }).unwrap();
    assert_eq!(dropped.mode & 0o7777, 0o755);
}

/// A world that counts how often the time for a change is read: each costs two system calls.
#[derive(Default)]
struct Counting(RealWorld, AtomicU32);

impl World for Counting {
    fn now(&self) -> Time {
        self.0.now()
    }
    fn stamp(&self) -> Time {
        self.1.fetch_add(1, SeqCst);
        self.0.stamp()
    }
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
    fn fill(&self, out: &mut [u8]) {
        self.0.fill(out);
    }
}

#[test]
fn a_change_reads_the_time_once_and_not_where_the_kernel_tells_it() {
    let (disk, world) = (Disk::new(), Arc::new(Counting::default()));
    let fs = disk.fs_in(world.clone(), FsOptions::default());
    let stamps = |change: &dyn Fn()| {
        let before = world.1.load(SeqCst);
        change();
        world.1.load(SeqCst) - before
    };
    let file = fs.mknod(&CALLER, ROOT_INO, b"f", libc::S_IFREG | 0o640, 0).unwrap().ino;
    let set = |set: SetAttr| stamps(&|| assert_eq!(fs.setattr(&CALLER, file, &set).unwrap().ino, file));
    let told = Time { seconds: 1_700_000_000, nanos: 1 };
    let flushed = SetAttr { mtime: Some(SetTime::At(told)), ctime: Some(told), ..SetAttr::default() };
    assert_eq!(set(flushed), 0, "as the kernel does before it removes a file");
    assert_eq!(set(SetAttr { size: Some(5), ..flushed }), 0);
    let attr = fs.getattr(file).unwrap();
    assert_eq!((attr.mtime, attr.ctime, attr.size), (told, told, 5));
    let touched = SetAttr { atime: Some(SetTime::Now), mtime: Some(SetTime::Now), ..SetAttr::default() };
    assert_eq!(set(touched), 1);
    let attr = fs.getattr(file).unwrap();
    assert!(attr.mtime == attr.atime && attr.mtime == attr.ctime && attr.mtime > told);
    assert_eq!(set(SetAttr { size: Some(0), ..SetAttr::default() }), 1);
    assert!(fs.getattr(file).unwrap().mtime > attr.mtime);
    assert_eq!(stamps(&|| assert!(fs.mkdir(&CALLER, ROOT_INO, b"d", 0o755).is_ok())), 1);
    assert_eq!(stamps(&|| fs.rename(ROOT_INO, b"f", ROOT_INO, b"g", RenameHow::Replace).unwrap()), 1);
    assert_eq!(stamps(&|| fs.unlink(ROOT_INO, b"g").unwrap()), 1);
}

/// A world in which a while passes between a look at the clock and the use of what it showed.
struct Hesitant(RealWorld);

impl World for Hesitant {
    fn now(&self) -> Time {
        self.0.now()
    }
    fn stamp(&self) -> Time {
        let stamp = self.0.stamp();
        std::thread::sleep(Duration::from_micros(200));
        stamp
    }
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
    fn fill(&self, out: &mut [u8]) {
        self.0.fill(out);
    }
}

#[test]
fn threads_move_no_time_back() {
    let disk = Disk::new();
    let fs = disk.fs_in(Arc::new(Hesitant(RealWorld::default())), FsOptions::default());
    let dir = fs.mkdir(&CALLER, ROOT_INO, b"dir", 0o755).unwrap().ino;
    let moves = AtomicU32::new(0);
    std::thread::scope(|s| {
        for thread in 0..3 {
            let (fs, moves) = (&fs, &moves);
            s.spawn(move || {
                let mut last = fs.getattr(dir).unwrap();
                for n in 0..300 {
                    match thread {
                        0 => drop(fs.mknod(&CALLER, dir, format!("{n}").as_bytes(), libc::S_IFREG | 0o644, 0).unwrap()),
                        1 => fs.setxattr(dir, b"user.n", b"1", XattrHow::Set).unwrap(),
                        _ => drop(
                            fs.setattr(&CALLER, dir, &SetAttr { mode: Some(0o755), ..SetAttr::default() }).unwrap(),
                        ),
                    }
                    let now = fs.getattr(dir).unwrap();
                    assert!(last.mtime <= now.mtime && last.ctime <= now.ctime, "{last:?} then {now:?}");
                    moves.fetch_add(u32::from(last.ctime < now.ctime), SeqCst);
                    last = now;
                }
            });
        }
    });
    assert!(moves.load(SeqCst) > 100, "nothing moved");
}
