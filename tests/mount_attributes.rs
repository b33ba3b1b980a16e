//! Attributes that change unasked: set-id bits that a write takes away, and everything else that `stat` shows.
//!
//! Method: one thread takes on the rights of each person (Linux keeps rights per thread), changes a set-user-ID program in
//! each way there is, and the program is run afterwards: what it says about its user is compared with ext4. A second test
//! compares, after each operation, what the kernel shows with what it is told when it must ask.
//! Promise: a program that a stranger has changed runs as the stranger, and the kernel shows no stale attribute. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::disk::Disk;
use common::{TestVault, needs_root, run, shell};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

const NO_ARGUMENTS: [&str; 0] = [];
/// One test at a time: a program that another thread of this process has open for writing cannot be run.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    needs_root("act as other users");
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Who changes the program.
#[derive(Debug, Clone, Copy)]
struct Person {
    name: &'static str,
    uid: u32,
    gid: u32,
    /// Root without the right to leave set-id bits on what it changes.
    without_fsetid: bool,
}

const ROOT: Person = Person { name: "root", uid: 0, gid: 0, without_fsetid: false };
const CONFINED: Person = Person { name: "root without CAP_FSETID", uid: 0, gid: 0, without_fsetid: true };
const MEMBER: Person = Person { name: "member of the group", uid: 1001, gid: 2000, without_fsetid: false };
const STRANGER: Person = Person { name: "stranger", uid: 65534, gid: 65534, without_fsetid: false };

/// Does something with a person's rights.
fn acting_as<T: Send>(person: Person, what: impl FnOnce() -> T + Send) -> T {
    let act = || {
        take_rights(person);
        what()
    };
    std::thread::scope(|s| s.spawn(act).join().unwrap())
}

/// By system call, since the C library's functions change every thread of the process.
fn take_rights(person: Person) {
    #[repr(C)]
    struct Header(u32, i32);
    const CAP_FSETID: u32 = 4;
    let done = |result: i64| assert_eq!(result, 0, "{person:?}: {}", io::Error::last_os_error());
    let (uid, gid) = (person.uid, person.gid);
    // SAFETY: numbers, an empty list, and a header and two sets of three words that live through the calls.
    unsafe {
        done(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()));
        done(libc::syscall(libc::SYS_setresgid, gid, gid, gid));
        done(libc::syscall(libc::SYS_setresuid, uid, uid, uid));
        if person.without_fsetid {
            let (header, mut sets) = (Header(0x2008_0522, 0), [[0u32; 3]; 2]);
            done(libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()));
            sets[0].iter_mut().for_each(|set| *set &= !(1 << CAP_FSETID));
            done(libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()));
        }
    }
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// Behind the program there is room that it does not read.
const ROOM: u64 = 1 << 20;
const BLOCK: usize = 4096;

#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

type Change = (&'static str, fn(&Path) -> io::Result<()>);

fn writable(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn allocate(path: &Path, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    let file = writable(path)?;
    // SAFETY: a descriptor that lives through the call, and numbers.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Every way to change a file's content.
const CHANGES: [Change; 13] = [
    ("write", |p| writable(p)?.write_all_at(b"y", ROOM)),
    ("append", |p| OpenOptions::new().append(true).open(p)?.write_all(b"y")),
    ("synchronous write", |p| {
        OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(p)?.write_all_at(b"y", ROOM)
    }),
    ("direct write", |p| {
        let block = Aligned([b'z'; BLOCK]);
        OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(p)?.write_all_at(&block.0, ROOM)
    }),
    ("truncate", |p| writable(p)?.set_len(ROOM + 77)),
    ("truncate by path", |p| {
        // SAFETY: a terminated string.
        match unsafe { libc::truncate(c(p).as_ptr(), ROOM as i64 + 99) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }),
    ("fallocate", |p| allocate(p, 0, ROOM, 2 * ROOM)),
    ("fallocate, size kept", |p| allocate(p, libc::FALLOC_FL_KEEP_SIZE, ROOM, 2 * ROOM)),
    ("punch", |p| allocate(p, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, ROOM, BLOCK as u64)),
    ("zero", |p| allocate(p, libc::FALLOC_FL_ZERO_RANGE, ROOM, 2 * ROOM)),
    ("zero, size kept", |p| allocate(p, libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, ROOM, BLOCK as u64)),
    ("copy_file_range", |p| {
        let (from, to) = (File::open(p.with_file_name("source"))?, writable(p)?);
        let mut at = ROOM as i64;
        // SAFETY: two descriptors and an offset that live through the call.
        let copied = unsafe {
            libc::copy_file_range(from.as_raw_fd(), std::ptr::null_mut(), to.as_raw_fd(), &raw mut at, BLOCK, 0)
        };
        if copied > 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }),
    ("nothing", |_| Ok(())),
];

fn statx(path: &Path, how: i32, wanted: u32) -> libc::statx {
    let at = c(path);
    let mut out = MaybeUninit::<libc::statx>::zeroed();
    let flags = how | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: a terminated string, and room for the answer.
    let done = unsafe { libc::statx(libc::AT_FDCWD, at.as_ptr(), flags, wanted, out.as_mut_ptr()) };
    assert_eq!(done, 0, "{}: {}", path.display(), io::Error::last_os_error());
    // SAFETY: the call filled it.
    unsafe { out.assume_init() }
}

/// What became of the program, in a line for each change by each person.
fn after_each_change(dir: &Path) -> Vec<String> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(dir.join("source"), [b's'; 2 * BLOCK]).unwrap();
    let content = fs::read("/usr/bin/id").unwrap();
    let program = dir.join("program");
    let mut lines = Vec::new();
    for (person, modes) in [
        (ROOT, &[0o6777][..]),
        (CONFINED, &[0o6777, 0o2777]),
        (MEMBER, &[0o6775, 0o4775]),
        (STRANGER, &[0o6777, 0o4777, 0o2777]),
    ] {
        for (&mode, (name, change)) in modes.iter().flat_map(|mode| CHANGES.iter().map(move |change| (mode, change))) {
            let _ = fs::remove_file(&program);
            fs::write(&program, &content).unwrap();
            writable(&program).unwrap().set_len(ROOM).unwrap();
            chown(&program, Some(0), Some(2000)).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
            // From now on the kernel knows the mode.
            assert_eq!(fs::metadata(&program).unwrap().mode() & 0o7777, mode);
            let done = acting_as(person, || change(&program));
            let by_itself = statx(&program, 0, libc::STATX_MODE).stx_mode & 0o7777;
            let runs_as =
                run(Command::new("setpriv").args(["--reuid=1001", "--regid=1001", "--clear-groups"]).arg(&program));
            let mode_after = fs::metadata(&program).unwrap().mode() & 0o7777;
            assert_eq!(u32::from(by_itself), mode_after, "{name} by {}: the mode alone is stale", person.name);
            lines.push(format!(
                "{name} by {} of {mode:o}: {:?}, {mode_after:o}, {runs_as}",
                person.name,
                done.map_err(|e| e.raw_os_error())
            ));
        }
    }
    lines
}

fn in_all_ways(v: &TestVault) {
    let disk = Disk::ext4(64);
    let (ours, theirs) = (after_each_change(&v.mnt), after_each_change(&disk.at));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "as on ext4");
    }
    let still_roots = ours.iter().filter(|line| line.contains("euid=0")).collect::<Vec<_>>();
    // Root's own changes leave the bits, and so does no change at all; the control that such a program runs as its owner.
    assert_eq!(still_roots.len(), CHANGES.len() + 5, "{still_roots:#?}");
    v.umount();
    v.check();
}

fn keyed(options: &[&str]) -> TestVault {
    let mut v = TestVault::init_keyed();
    v.options = options.iter().map(|&o| o.to_owned()).collect();
    v.mount();
    v
}

/// Where a quota limits bytes, the kernel keeps no writes.
fn without_write_back() -> TestVault {
    let v = keyed(&[]);
    fs::create_dir(v.path("limited")).unwrap();
    run(Command::new(common::strongroom())
        .args(["quota", "set"])
        .arg(&v.mnt)
        .args(["--tree", "limited", "--bytes", "1G"]));
    v.remount();
    assert!(v.storage("quota").contains("write_back    off\n"), "{}", v.storage("quota"));
    v
}

fn again(mut v: TestVault, options: &[&str]) -> TestVault {
    v.umount();
    v.options = options.iter().map(|&o| o.to_owned()).collect();
    v.mount();
    v
}

#[test]
fn a_program_that_a_stranger_has_changed_runs_as_the_stranger() {
    let _alone = alone();
    in_all_ways(&keyed(&["suid", "allow_other"]));
}

#[test]
fn a_program_that_a_stranger_has_changed_runs_as_the_stranger_without_write_back_too() {
    let _alone = alone();
    in_all_ways(&again(without_write_back(), &["suid", "allow_other"]));
}

/// What `stat` shows of every file; blocks of a file that is open are counted at its close (`docs/semantics.md`).
fn shown(v: &TestVault, how: i32) -> Vec<String> {
    let time = |t: libc::statx_timestamp| format!("{}.{:09}", t.tv_sec, t.tv_nsec);
    let line = |path: PathBuf| {
        let s = statx(&path, how, libc::STATX_BASIC_STATS);
        format!(
            "{}: {:o} links {} owner {}:{} size {} atime {} mtime {} ctime {}",
            path.strip_prefix(&v.mnt).unwrap().display(),
            s.stx_mode,
            s.stx_nlink,
            s.stx_uid,
            s.stx_gid,
            s.stx_size,
            time(s.stx_atime),
            time(s.stx_mtime),
            time(s.stx_ctime),
        )
    };
    let mut all: Vec<_> = walk(&v.mnt);
    all.sort();
    all.into_iter().map(line).collect()
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if fs::symlink_metadata(&path).unwrap().is_dir() { all.extend(walk(&path)) } else { all.push(path) }
    }
    all
}

fn stays_true(v: &TestVault, operations: &[(&str, &dyn Fn())]) {
    for (name, operation) in operations {
        // The kernel knows everything before …
        shown(v, libc::AT_STATX_SYNC_AS_STAT);
        operation();
        // … and, asked afterwards, shows what it is told when it must ask. A listing reads directories, so it comes first.
        walk(&v.mnt);
        let by_itself = shown(v, libc::AT_STATX_SYNC_AS_STAT);
        let asked = shown(v, libc::AT_STATX_FORCE_SYNC);
        assert_eq!(by_itself, asked, "after {name}");
    }
    // The look itself moves the access times of directories.
    let without_atime = || {
        let mut all = shown(v, libc::AT_STATX_FORCE_SYNC);
        for line in &mut all {
            let (rest, times) = line.split_once(" atime ").unwrap();
            *line = format!("{rest} {}", times.split_once(' ').unwrap().1);
        }
        all
    };
    let before = without_atime();
    v.remount();
    assert_eq!(without_atime(), before, "after a remount");
}

fn shows_the_truth(v: &TestVault) {
    let at = |name: &str| v.path(name);
    fs::create_dir_all(at("dir/inner")).unwrap();
    for name in ["file", "source", "dir/other", "over", "mapped"] {
        fs::write(at(name), [7; 3 * BLOCK]).unwrap();
    }
    fs::set_permissions(at("file"), fs::Permissions::from_mode(0o6777)).unwrap();
    // So that access times may move again, by `relatime`.
    let old = libc::timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
    for name in ["source", "file"] {
        // SAFETY: a terminated string and two times.
        assert_eq!(unsafe { libc::utimensat(libc::AT_FDCWD, c(&at(name)).as_ptr(), [old, old].as_ptr(), 0) }, 0);
    }
    v.remount();
    let file = at("file");
    let changes = CHANGES.map(|(name, change)| {
        let file = &file;
        (name, move || {
            fs::set_permissions(file, fs::Permissions::from_mode(0o6777)).unwrap();
            fs::metadata(file).unwrap();
            acting_as(CONFINED, || change(file)).unwrap();
        })
    });
    let flags = |from: &str, to: &str, flags: u32| {
        let (from, to) = (c(&at(from)), c(&at(to)));
        // SAFETY: terminated strings.
        let done = unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    };
    let mnt = &v.mnt;
    let lines = |line: &'static str| move || drop(shell(mnt, line, &NO_ARGUMENTS));
    let mut all: Vec<(&str, &dyn Fn())> = changes.iter().map(|(name, change)| (*name, change as &dyn Fn())).collect();
    let others: [(&str, &dyn Fn()); 22] = [
        ("read", &|| drop(fs::read(at("source")).unwrap())),
        ("readdir", &|| drop(walk(&at("dir")))),
        ("link", &|| fs::hard_link(at("file"), at("dir/link")).unwrap()),
        ("unlink", &|| fs::remove_file(at("dir/link")).unwrap()),
        ("link again", &|| fs::hard_link(at("over"), at("dir/link")).unwrap()),
        ("rename over one of two names", &|| fs::rename(at("dir/other"), at("over")).unwrap()),
        ("exchange", &|| flags("dir/inner", "file", libc::RENAME_EXCHANGE)),
        ("exchange back", &|| flags("dir/inner", "file", libc::RENAME_EXCHANGE)),
        ("whiteout", &|| flags("over", "dir/white", libc::RENAME_WHITEOUT)),
        ("mkdir", &|| fs::create_dir(at("dir/new")).unwrap()),
        ("mkdir below", &|| fs::create_dir(at("dir/new/er")).unwrap()),
        ("rename of a directory", &|| fs::rename(at("dir/new/er"), at("er")).unwrap()),
        ("rmdir", &|| fs::remove_dir(at("er")).unwrap()),
        ("symlink", &|| symlink("file", at("link")).unwrap()),
        ("readlink", &|| drop(fs::read_link(at("link")).unwrap())),
        ("mknod", &lines("mkfifo fifo")),
        ("chmod", &lines("chmod 4711 file")),
        ("chown", &lines("chown 5:6 file")),
        ("setxattr", &lines("setfattr -n user.a -v b file dir")),
        ("removexattr", &lines("setfattr -x user.a file dir")),
        ("a list", &lines("setfacl -m u:77:rwx,m::rwx file dir")),
        ("no list", &lines("setfacl -b file dir; chmod u+s file; truncate -s 5 file")),
    ];
    all.extend(others);
    stays_true(v, &all);
    v.umount();
    v.check();
}

#[test]
fn what_stat_shows_is_what_the_vault_has() {
    let _alone = alone();
    // Where root mounts for root, the kernel takes no part in access control lists.
    for options in [&["suid"][..], &["suid", "allow_other"], &["suid", "strictatime"]] {
        shows_the_truth(&keyed(options));
    }
    shows_the_truth(&again(without_write_back(), &["suid"]));
}
