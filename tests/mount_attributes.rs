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

/// Nanoseconds since 1970 of the last change of content.
fn mtime(path: &Path) -> i128 {
    let m = fs::symlink_metadata(path).unwrap();
    i128::from(m.mtime()) * 1_000_000_000 + i128::from(m.mtime_nsec())
}

fn ctime(path: &Path) -> i128 {
    let m = fs::symlink_metadata(path).unwrap();
    i128::from(m.ctime()) * 1_000_000_000 + i128::from(m.ctime_nsec())
}

/// Whatever other filesystem is at work: one of the kernel's own that gives fine stamps and holds all others to them.
fn look_elsewhere(file: &File) {
    for _ in 0..2 {
        file.write_all_at(b"x", 0).unwrap();
        file.metadata().unwrap();
    }
}

/// Things done one after the other are stamped in that order, whoever gives the stamp.
fn in_one_order(v: &TestVault, others: impl Fn()) {
    for n in 0..100 {
        let at = |name: &str| v.path(format!("{name}{n}"));
        let mut stamps: Vec<(&str, i128)> = Vec::new();
        let mut note = |what, stamp| stamps.push((what, stamp));
        File::create(at("empty")).unwrap();
        note("an empty file", mtime(&at("empty")));
        others();
        let f = File::create(at("file")).unwrap();
        note("a file made", mtime(&at("file")));
        f.write_all_at(b"x", 0).unwrap();
        note("the file written", mtime(&at("file")));
        others();
        f.write_all_at(b"y", 0).unwrap();
        note("the file written again", mtime(&at("file")));
        drop(f);
        note("the file closed", mtime(&at("file")));
        fs::create_dir(at("dir")).unwrap();
        note("a directory made", mtime(&at("dir")));
        fs::set_permissions(at("file"), fs::Permissions::from_mode(0o600)).unwrap();
        note("the file's mode set", ctime(&at("file")));
        symlink("x", at("link")).unwrap();
        note("a link made", mtime(&at("link")));
        others();
        OpenOptions::new().write(true).truncate(true).open(at("file")).unwrap();
        note("the file cut", mtime(&at("file")));
        fs::hard_link(at("file"), at("dir").join("name")).unwrap();
        note("a name made in the directory", mtime(&at("dir")));
        fs::rename(at("link"), at("dir").join("link")).unwrap();
        note("a link moved into the directory", mtime(&at("dir")));
        note("which is the link's change, too", ctime(&at("dir").join("link")));
        fs::copy(at("file"), at("copy")).unwrap();
        note("a copy made", mtime(&at("copy")));
        fs::remove_dir_all(at("dir")).unwrap();
        note("the root changed", mtime(&v.mnt));
        assert!(stamps.is_sorted_by_key(|(_, stamp)| *stamp), "{stamps:#?}");
    }
}

#[test]
fn times_are_in_the_order_of_what_was_done() {
    let _alone = alone();
    let elsewhere = tempfile::tempfile_in("/dev/shm").unwrap();
    let v = keyed(&[]);
    in_one_order(&v, || ());
    fs::create_dir(v.path("make")).unwrap();
    let makefile = "out: stamp\n\techo x >out\nstamp:\n\t: >stamp\n";
    fs::write(v.path("make/Makefile"), makefile).unwrap();
    let line = "for _ in $(seq 20); do rm -f stamp out; make -s; make -q || echo again; done";
    assert_eq!(shell(&v.path("make"), line, &NO_ARGUMENTS), "", "make is not done when it is done");
    // Order outlives a remount, and so do the times: what was made before is not younger than what is made after.
    let before: Vec<_> = walk(&v.mnt).iter().map(|path| (path.clone(), mtime(path), ctime(path))).collect();
    v.remount();
    fs::write(v.path("after"), "x").unwrap();
    for (path, content, change) in before.into_iter().filter(|(path, ..)| *path != v.mnt) {
        assert_eq!((mtime(&path), ctime(&path)), (content, change), "{}", path.display());
        assert!(change.max(content) <= mtime(&v.path("after")), "{}", path.display());
    }
    drop(v);
    for v in [keyed(&[]), without_write_back()] {
        in_one_order(&v, || look_elsewhere(&elsewhere));
    }
}

/// Set-id bits below an overlay whose upper directory is `dir`; what containers do with programs of their images.
const OVERLAY: &str = r#"
    set -eu; rm -rf u w m l; mkdir u w m l; chmod 755 . u m
    for f in touched written renamed linked owned moved both strange punched; do cp "$(command -v id)" l/$f; chmod 4755 l/$f; done
    cp l/touched l/group; chmod 2755 l/group; cp l/touched l/locked; chmod 2745 l/locked; chown 7:8 l/owned l/group; chmod 4755 l/owned; chmod 2755 l/group
    chmod 4777 l/strange l/punched; truncate -s 1M l/punched
    mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none m
    touch m/touched m/group m/locked; printf x >> m/written; mv m/renamed m/renamed2; ln m/linked m/linked2; touch m/owned
    chown 9:9 m/moved
    chmod 4711 m/both; chown 5:5 m/both
    stranger() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
    stranger dd if=/dev/zero of=m/strange bs=1 seek=9 count=1 conv=notrunc status=none
    stranger fallocate -p -o 900K -l 4K m/punched
    stat -c '%n %a %u:%g' m/*; stranger m/touched; stranger m/strange; stranger m/punched
    # The same on the filesystem itself: whoever sets mode and owner, in this order, keeps no bits.
    cp u/touched own; chmod 4755 own; perl -e 'chmod 04755, "own"; chown 3, 3, "own"'; stat -c '%n %a' own
    chmod 6755 own; chown 4:4 own; stat -c '%n %a' own; chmod 6755 own; chgrp 5 own; stat -c '%n %a' own
    umount m; rm -rf u w m l own
"#;

#[test]
fn containers_keep_and_lose_set_id_bits_as_on_ext4() {
    let _alone = alone();
    let (v, disk) = (keyed(&["suid", "dev", "allow_other"]), Disk::ext4(64));
    let on = |dir: &Path| {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        shell(dir, OVERLAY, &NO_ARGUMENTS)
    };
    let (ours, theirs) = (on(&v.mnt), on(&disk.at));
    assert_eq!(ours, theirs);
    for kept in ["touched 4755", "written 4755", "renamed2 4755", "linked2 4755", "group 2755", "owned 4755"] {
        assert!(ours.contains(kept), "{kept} in\n{ours}");
    }
    for lost in ["moved 755 9:9", "both 711 5:5", "strange 777", "punched 777", "own 755"] {
        assert!(ours.contains(lost), "{lost} in\n{ours}");
    }
}

#[test]
fn a_copy_up_for_a_user_leaves_trusted_attributes_behind() {
    let _alone = alone();
    let (v, disk) = (keyed(&["allow_other"]), Disk::ext4(64));
    let copied = |dir: &Path, who: &str| {
        let lines = r#"
            chmod 755 .; rm -rf l u w m; mkdir l u w m; echo x > l/f; chmod 666 l/f
            setfattr -n trusted.a -v b l/f; setfattr -n user.c -v d l/f
            mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none m
            $0 sh -c 'echo y >> m/f'; umount m; getfattr -m '^(user|trusted\.a)' u/f
        "#;
        let out = common::output(Command::new("bash").args(["-euc", lines, who]).current_dir(dir));
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap().contains("trusted.a")
    };
    const USER: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    assert_eq!((copied(&disk.at, USER), copied(&disk.at, "env")), (true, true), "ext4");
    assert_eq!((copied(&v.mnt, USER), copied(&v.mnt, "env")), (false, true), "if both: the page is out of date");
}

/// A user namespace whose users are 100,000 higher outside, for as long as this lives.
struct Elsewhere(std::process::Child);

impl Elsewhere {
    fn new() -> Elsewhere {
        let child = Command::new("unshare").args(["-U", "sleep", "100"]).spawn().unwrap();
        let ns = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        let id = child.id().to_string();
        common::eventually("it has a namespace", std::time::Duration::from_secs(20), || ns(&id) != ns("self"));
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{id}/{map}"), "0 100000 65536").unwrap();
        }
        Elsewhere(child)
    }

    /// Shows `from` at `to` with those owners.
    fn shows(&self, from: &Path, to: &Path) -> io::Result<()> {
        const OPEN_TREE_CLONE: i32 = 1;
        const MOVE_MOUNT_F_EMPTY_PATH: i32 = 4;
        const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
        let users = File::open(format!("/proc/{}/ns/user", self.0.id())).unwrap();
        let done = |result: i64| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) };
        let attributes = [MOUNT_ATTR_IDMAP, 0, 0, users.as_raw_fd() as u64];
        // SAFETY: terminated strings, descriptors that live through the calls, and four words.
        unsafe {
            let here = libc::AT_FDCWD;
            let tree = done(libc::syscall(libc::SYS_open_tree, here, c(from).as_ptr(), OPEN_TREE_CLONE))?;
            let tree = <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(tree);
            let (fd, none) = (tree.as_raw_fd(), c"".as_ptr());
            let size = size_of_val(&attributes);
            done(libc::syscall(libc::SYS_mount_setattr, fd, none, libc::AT_EMPTY_PATH, attributes.as_ptr(), size))?;
            done(libc::syscall(libc::SYS_move_mount, fd, none, here, c(to).as_ptr(), MOVE_MOUNT_F_EMPTY_PATH))?;
        }
        Ok(())
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is made and changed through a directory that is shown with other owners, by its root there and by a stranger.
const THROUGH: &str = r#"
    as() { setpriv --reuid="$1" --regid="$1" --clear-groups "${@:2}"; }
    as 100000 sh -c 'echo x > t/new; mkdir t/dir; mkfifo t/fifo; echo y >> t/f; chmod 640 t/f; ln -s f t/link; mv t/new t/newer'
    as 100000 sh -c 'setfacl -m u:100007:rwx,m::rwx t/dir; setfattr -n user.a -v b t/f; fallocate -l 64K t/f; truncate -s 5 t/f'
    as 100001 sh -c 'echo x > t/strange' 2>/dev/null || echo refused
    as 100000 sh -c 'cp "$(command -v id)" t/program; chmod 4777 t/program'
    as 65534 fallocate -p -o 0 -l 1 t/program || true
    stat -c '%n %F %u:%g %a' t/* d/*
    getfacl -nc d/dir; getfattr -m- t/f; as 100000 getfattr -m- t/f
"#;

#[test]
fn a_directory_may_be_shown_with_other_owners() {
    let _alone = alone();
    let elsewhere = Elsewhere::new();
    let (v, disk) = (keyed(&["allow_other"]), Disk::ext4(64));
    let show = |dir: &Path| {
        shell(dir, "chmod 755 .; mkdir d t; echo x > d/f; chmod 755 d; setfattr -n trusted.a -v b d/f", &NO_ARGUMENTS);
        elsewhere.shows(&dir.join("d"), &dir.join("t"))
    };
    let on = |dir: &Path| {
        show(dir).unwrap();
        let said = shell(dir, THROUGH, &NO_ARGUMENTS);
        run(Command::new("umount").arg(dir.join("t")));
        said
    };
    let (ours, theirs) = (on(&v.mnt), on(&disk.at));
    assert_eq!(ours, theirs);
    for shown in
        ["t/f regular file 100000:100000 640", "d/f regular file 0:0 640", "d/newer regular file 0:0", "refused"]
    {
        assert!(ours.contains(shown), "{shown} in\n{ours}");
    }
    v.umount();
    v.check();
    // With a list of who is let in, each request must name its user, and so this is refused.
    let v = keyed(&["allow_users=1001"]);
    assert_eq!(show(&v.mnt).expect_err("it is refused").raw_os_error(), Some(libc::EINVAL));
}

/// A system call as a program of 32 bits makes it, with up to two arguments below 4 GiB.
#[cfg(target_arch = "x86_64")]
fn call_with_32_bits(number: u64, one: u64, two: u64, three: u64) -> i32 {
    let answer: u64;
    // SAFETY: the caller's addresses are those of a mapping that is large enough; rbx, which cannot be named, is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {one}", "int 0x80", "xchg rbx, {one}",
            one = inout(reg) one => _, inlateout("rax") number => answer, in("rcx") two, in("rdx") three,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    answer as i32
}

/// What a program of 32 bits gets from `statfs`, `stat` and, until there is no more, `getdents`; and the names it lists.
#[cfg(target_arch = "x86_64")]
fn with_32_bits(path: &Path) -> (i32, i32, i32, Vec<String>) {
    const OPEN: u64 = 5;
    const CLOSE: u64 = 6;
    const STATFS: u64 = 99;
    const STAT: u64 = 106;
    const GETDENTS: u64 = 141;
    const BYTES: usize = 64 << 10;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let how = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
    // SAFETY: a new mapping.
    let room = unsafe { libc::mmap(std::ptr::null_mut(), 2 * BYTES, protection, how, -1, 0) };
    assert_ne!(room, libc::MAP_FAILED);
    let name = c(path);
    // SAFETY: the mapping is longer than any path, and nobody else has it.
    unsafe { name.as_ptr().copy_to(room.cast(), name.as_bytes_with_nul().len()) };
    let (name, out) = (room as u64, room as u64 + BYTES as u64);
    let (statfs, stat) = (call_with_32_bits(STATFS, name, out, 0), call_with_32_bits(STAT, name, out, 0));
    let dir = call_with_32_bits(OPEN, name, libc::O_DIRECTORY as u64, 0);
    let mut names = Vec::new();
    let end = loop {
        // Room for few, so that offsets are come back to.
        let filled = if dir < 0 { dir } else { call_with_32_bits(GETDENTS, dir as u64, out, 64) };
        if filled <= 0 {
            break filled;
        }
        // SAFETY: the kernel filled so many bytes of the mapping.
        let entries = unsafe { std::slice::from_raw_parts(out as *const u8, filled as usize) };
        let mut at = 0;
        while at < entries.len() {
            let len = u16::from_le_bytes([entries[at + 8], entries[at + 9]]) as usize;
            let name = entries[at + 10..].split(|&b| b == 0).next().unwrap();
            names.push(String::from_utf8_lossy(name).into_owned());
            at += len;
        }
    };
    if dir >= 0 {
        call_with_32_bits(CLOSE, dir as u64, 0, 0);
    }
    // SAFETY: nothing points into it any more.
    unsafe { libc::munmap(room, 2 * BYTES) };
    names.sort();
    (statfs, stat, end, names)
}

#[test]
#[cfg(target_arch = "x86_64")]
fn programs_of_32_bits_get_answers() {
    let _alone = alone();
    let v = keyed(&["show-storage"]);
    for name in ["one", "two", "three", "four"] {
        File::create(v.path(name)).unwrap();
    }
    let expected = [".", "..", ".storage", "four", "one", "three", "two"];
    let (statfs, stat, end, names) = with_32_bits(&v.mnt);
    if statfs == -libc::ENOSYS {
        // This kernel runs no programs of 32 bits.
        return;
    }
    assert_eq!((statfs, stat, end), (0, 0, 0));
    assert_eq!(names, expected);
    let (statfs, stat, end, names) = with_32_bits(&v.path(".storage"));
    assert_eq!((statfs, stat, end), (0, 0, 0));
    assert!(names.len() > 10 && names.contains(&"status".to_owned()), "{names:?}");
    assert_eq!(with_32_bits(&v.path(".storage/status")).1, 0);
    let number = fs::metadata(v.path(".storage/status")).unwrap().ino();
    assert!(u32::try_from(number).is_ok(), "{number}");
    // A listing that goes on after each entry gives the same.
    let mut listed: Vec<_> = fs::read_dir(&v.mnt).unwrap().map(|e| e.unwrap().file_name()).collect();
    listed.sort();
    assert_eq!(listed, expected[2..]);
}

/// Changes the owner of a program as each of these does, and shows what is left of its mode.
fn modes_after_chown(dir: &Path) -> Vec<String> {
    const KEEP: u32 = u32::MAX;
    let mut all = Vec::new();
    for person in [ROOT, CONFINED, MEMBER] {
        for mode in [0o6755, 0o2745, 0o2644, 0o4755, 0o6777] {
            for (uid, gid) in [(KEEP, KEEP), (person.uid, KEEP), (KEEP, person.gid), (person.uid, person.gid)] {
                for is_dir in [false, true] {
                    let path = dir.join("changed");
                    if is_dir {
                        fs::create_dir(&path).unwrap()
                    } else {
                        fs::write(&path, b"x").unwrap()
                    }
                    chown(&path, Some(person.uid), Some(person.gid)).unwrap();
                    fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
                    // SAFETY: a terminated string, and numbers.
                    let done = acting_as(person, || unsafe { libc::chown(c(&path).as_ptr(), uid, gid) });
                    let after = fs::metadata(&path).unwrap().mode() & 0o7777;
                    let (name, what) = (person.name, if is_dir { "directory" } else { "file" });
                    all.push(format!("{name} sets {uid}:{gid} on a {what} {mode:o}: {done}, {after:o}"));
                    if is_dir { fs::remove_dir(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
                }
            }
        }
    }
    all
}

#[test]
fn chown_takes_set_id_bits_as_on_ext4_also_where_it_changes_no_owner() {
    let _alone = alone();
    let disk = Disk::ext4(16);
    fs::set_permissions(&disk.at, PermissionsExt::from_mode(0o777)).unwrap();
    let expected = modes_after_chown(&disk.at);
    for v in [keyed(&["suid", "allow_other"]), again(without_write_back(), &["suid", "allow_other"])] {
        fs::set_permissions(&v.mnt, PermissionsExt::from_mode(0o777)).unwrap();
        assert_eq!(modes_after_chown(&v.mnt), expected);
    }
}

/// Modes after root has written to a file that has capabilities, which a write takes, and whether these are gone.
fn modes_after_write(dir: &Path) -> Vec<(u32, bool)> {
    // CAP_NET_RAW, permitted.
    let capability: Vec<u8> = [0x0200_0001u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let one = |mode: u32| {
        let path = dir.join(format!("capable-{mode:o}"));
        fs::write(&path, b"before").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        let at = CString::new(path.as_os_str().as_bytes()).unwrap();
        let (name, value) = (c"security.capability".as_ptr(), capability.as_ptr().cast());
        // SAFETY: terminated strings, and as many bytes as are named.
        assert_eq!(unsafe { libc::setxattr(at.as_ptr(), name, value, capability.len(), 0) }, 0);
        File::options().write(true).open(&path).unwrap().write_all(b"after").unwrap();
        // SAFETY: terminated strings; only the length is asked for.
        let has = unsafe { libc::getxattr(at.as_ptr(), name, std::ptr::null_mut(), 0) } >= 0;
        (fs::metadata(&path).unwrap().mode() & 0o7777, has)
    };
    [0o777, 0o6777, 0o6766, 0o2766, 0o4755].map(one).to_vec()
}

#[test]
fn a_write_by_root_takes_capabilities_and_leaves_set_id_bits_as_on_ext4() {
    let _alone = alone();
    needs_root("set capabilities");
    let disk = Disk::ext4(16);
    let expected = modes_after_write(&disk.at);
    assert!(expected.contains(&(0o6777, false)), "{expected:?}");
    let v = keyed(&["suid"]);
    assert_eq!(modes_after_write(&v.mnt), expected);
}
