//! The same program on the mount and on the disk's own filesystem: every answer must be the same.
//!
//! Method: a seed gives a program of system calls over a few names, so that they collide; each is made on both trees,
//! results and errno are compared at once, whole trees (contents, types, modes, owners, links, attributes) in the
//! middle and at the end, each time also after the vault was mounted anew. Files stay open across unlink and rename.
//! Promise: a program cannot tell the mount from an ordinary filesystem by what its calls answer.
//! `STRONGROOM_SEEDS=5,6` and `STRONGROOM_STEPS=10000` run other and longer programs.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::rng::Rng;
use common::{TestVault, is_root, setting, walk};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const NAMES: [&str; 6] = ["a", "b", "c", "dir", "other", "a longer name"];
const ATTRIBUTES: [&str; 3] = ["user.one", "user.two", "user.three"];

/// One system call on names below a root.
#[derive(Debug, Clone)]
enum Call {
    Make { path: String, mode: u32, exclusive: bool, truncate: bool },
    Write { path: String, at: u64, len: usize, seed: u64 },
    Append { path: String, len: usize, seed: u64 },
    Read { path: String, at: u64, len: usize },
    Truncate { path: String, len: u64 },
    Copy { from: String, at: u64, to: String, offset: u64, len: usize },
    Mkdir { path: String, mode: u32 },
    Mkfifo { path: String, mode: u32 },
    Rmdir { path: String },
    Unlink { path: String },
    Rename { from: String, to: String, flags: u32 },
    Link { from: String, to: String },
    Symlink { target: String, path: String },
    Readlink { path: String },
    Chmod { path: String, mode: u32 },
    Chown { path: String, uid: u32, gid: u32 },
    SetTimes { path: String, seconds: i64, nanos: i64 },
    Stat { path: String },
    List { path: String },
    SetXattr { path: String, name: usize, len: usize, seed: u64, flags: i32 },
    GetXattr { path: String, name: usize },
    RemoveXattr { path: String, name: usize },
    ListXattr { path: String },
    Open { slot: usize, path: String },
    WriteOpen { slot: usize, at: u64, len: usize, seed: u64 },
    ReadOpen { slot: usize, at: u64, len: usize },
    TruncateOpen { slot: usize, len: u64 },
    StatOpen { slot: usize },
    SyncOpen { slot: usize },
    Close { slot: usize },
}

/// What a call answered: bytes that describe the result, or errno.
type Answer = Result<Vec<u8>, i32>;

/// Most names lie near the root, and inner ones are those that `Mkdir` mostly makes: else most calls say ENOENT.
fn path(rng: &mut Rng) -> String {
    let depth = [0, 0, 0, 1, 1, 2][rng.below(6) as usize];
    let mut parts: Vec<&str> = (0..depth).map(|_| *rng.pick(&["dir", "other"])).collect();
    parts.push(*rng.pick(&NAMES));
    parts.join("/")
}

fn directory(rng: &mut Rng) -> String {
    let depth = rng.below(3);
    let mut parts: Vec<&str> = (0..depth).map(|_| *rng.pick(&["dir", "other"])).collect();
    parts.push(if rng.below(8) == 0 { *rng.pick(&NAMES) } else { *rng.pick(&["dir", "other"]) });
    parts.join("/")
}

fn offset(rng: &mut Rng) -> u64 {
    match rng.below(4) {
        0 => 0,
        1 => rng.below(5000),
        2 => rng.below(600_000),
        _ => rng.below(8) << 16,
    }
}

fn length(rng: &mut Rng) -> usize {
    match rng.below(4) {
        0 => rng.below(10) as usize,
        1 => 4096,
        2 => rng.below(20_000) as usize,
        _ => rng.below(200_000) as usize,
    }
}

fn call(rng: &mut Rng) -> Call {
    let (p, q) = (path(rng), path(rng));
    let (at, len, seed, slot, name) =
        (offset(rng), length(rng), rng.next(), rng.below(4) as usize, rng.below(3) as usize);
    // The owner keeps all rights, so that a run without root gets anywhere.
    let mode = 0o700 | (rng.below(0o10000) as u32);
    match rng.below(64) {
        0..6 => Call::Make { path: p, mode: mode & 0o777, exclusive: seed & 1 == 0, truncate: seed & 2 == 0 },
        6..14 => Call::Write { path: p, at, len, seed },
        14..17 => Call::Append { path: p, len, seed },
        17..21 => Call::Read { path: p, at, len },
        21..24 => Call::Truncate { path: p, len: at },
        24..29 => Call::Mkdir { path: directory(rng), mode: mode & 0o777 },
        29 => Call::Mkfifo { path: p, mode: mode & 0o777 },
        30 => Call::Rmdir { path: p },
        31..34 => Call::Unlink { path: p },
        34..38 => Call::Rename { from: p, to: q, flags: [0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE][slot] },
        38..40 => Call::Link { from: p, to: q },
        40 => Call::Symlink { target: q, path: p },
        41 => Call::Readlink { path: p },
        42 => Call::Chmod { path: p, mode },
        43 => Call::Chown { path: p, uid: rng.below(3) as u32, gid: rng.below(3) as u32 },
        44 => Call::SetTimes {
            path: p,
            seconds: rng.below(1 << 31) as i64 - (1 << 30),
            nanos: rng.below(1_000_000_000) as i64,
        },
        45 => Call::Stat { path: p },
        46 => Call::List { path: p },
        47 => Call::SetXattr {
            path: p,
            name,
            len: len % 200,
            seed,
            flags: [0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE][slot],
        },
        48 => Call::GetXattr { path: p, name },
        49 => Call::RemoveXattr { path: p, name },
        50 => Call::ListXattr { path: p },
        51 | 52 => Call::Open { slot, path: p },
        53..55 => Call::WriteOpen { slot, at, len, seed },
        55 => Call::ReadOpen { slot, at, len },
        56 => Call::TruncateOpen { slot, len: at },
        57 => Call::StatOpen { slot },
        58 => Call::SyncOpen { slot },
        60..64 => Call::Copy { from: p, at, to: q, offset: offset(rng), len: len * 4 },
        _ => Call::Close { slot },
    }
}

fn errno(e: &io::Error) -> i32 {
    e.raw_os_error().unwrap_or(-1)
}

fn done(result: i32) -> Answer {
    if result < 0 { Err(errno(&io::Error::last_os_error())) } else { Ok(Vec::new()) }
}

/// What `stat` tells that must be the same everywhere: a directory's size and links are each filesystem's own.
fn facts(m: &fs::Metadata) -> Vec<u8> {
    let (len, links) = if m.is_dir() { (0, 0) } else { (m.len(), m.nlink()) };
    format!("mode {:o} uid {} gid {} len {len} links {links}", m.mode(), m.uid(), m.gid()).into_bytes()
}

/// A tree that calls are made on, with its open files.
struct Tree {
    root: PathBuf,
    open: BTreeMap<usize, File>,
}

impl Tree {
    fn c(&self, path: &str) -> CString {
        CString::new(self.root.join(path).as_os_str().as_bytes()).unwrap()
    }

    fn make(&mut self, call: &Call) -> Answer {
        self.try_make(call).unwrap_or_else(|e| Err(errno(&e)))
    }

    fn try_make(&mut self, call: &Call) -> io::Result<Answer> {
        let at = |p: &String| self.root.join(p);
        let data = |seed: u64, len: usize| if seed & 4 == 0 { Rng(seed).bytes(len) } else { Rng(seed).text(len) };
        let nothing = Ok(Ok(Vec::new()));
        match call {
            Call::Make { path, mode, exclusive, truncate } => {
                let mut how = OpenOptions::new();
                how.write(true).mode(*mode).truncate(*truncate && !exclusive);
                if *exclusive {
                    how.create_new(true)
                } else {
                    how.create(true)
                };
                how.custom_flags(libc::O_NONBLOCK).open(at(path))?;
                nothing
            }
            Call::Write { path, at: offset, len, seed } => {
                let f = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(at(path))?;
                f.write_all_at(&data(*seed, *len), *offset)?;
                nothing
            }
            Call::Append { path, len, seed } => {
                let mut f = OpenOptions::new().append(true).custom_flags(libc::O_NONBLOCK).open(at(path))?;
                io::Write::write_all(&mut f, &data(*seed, *len))?;
                nothing
            }
            Call::Read { path, at: offset, len } => {
                let f = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(at(path))?;
                let mut b = vec![0; *len];
                let n = read_full(&f, &mut b, *offset)?;
                b.truncate(n);
                Ok(Ok(b))
            }
            Call::Truncate { path, len } => {
                // SAFETY: a terminated string.
                Ok(done(unsafe { libc::truncate(self.c(path).as_ptr(), *len as libc::off_t) }))
            }
            Call::Copy { from, at: offset_in, to, offset, len } => {
                let source = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(at(from))?;
                let target = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(at(to))?;
                let (mut from, mut to, mut left) = (*offset_in as i64, *offset as i64, *len);
                while left > 0 {
                    // SAFETY: two open files, and two offsets that are ours.
                    let n = unsafe {
                        libc::copy_file_range(source.as_raw_fd(), &mut from, target.as_raw_fd(), &mut to, left, 0)
                    };
                    match n {
                        0 => break,
                        1.. => left -= n as usize,
                        _ => return Err(io::Error::last_os_error()),
                    }
                }
                Ok(Ok((len - left).to_string().into_bytes()))
            }
            // SAFETY: a terminated string that lives through the call; so in the ones that follow.
            Call::Mkdir { path, mode } => Ok(done(unsafe { libc::mkdir(self.c(path).as_ptr(), *mode) })),
            // SAFETY: as above.
            Call::Mkfifo { path, mode } => Ok(done(unsafe { libc::mkfifo(self.c(path).as_ptr(), *mode) })),
            // SAFETY: as above.
            Call::Rmdir { path } => Ok(done(unsafe { libc::rmdir(self.c(path).as_ptr()) })),
            // SAFETY: as above.
            Call::Unlink { path } => Ok(done(unsafe { libc::unlink(self.c(path).as_ptr()) })),
            Call::Rename { from, to, flags } => {
                let (from, to, here) = (self.c(from), self.c(to), libc::AT_FDCWD);
                // SAFETY: as above.
                Ok(done(unsafe { libc::renameat2(here, from.as_ptr(), here, to.as_ptr(), *flags) }))
            }
            // SAFETY: as above.
            Call::Link { from, to } => Ok(done(unsafe { libc::link(self.c(from).as_ptr(), self.c(to).as_ptr()) })),
            Call::Symlink { target, path } => {
                let target = CString::new(target.as_str())?;
                // SAFETY: as above.
                Ok(done(unsafe { libc::symlink(target.as_ptr(), self.c(path).as_ptr()) }))
            }
            Call::Readlink { path } => Ok(Ok(fs::read_link(at(path))?.as_os_str().as_bytes().to_vec())),
            // SAFETY: as above.
            Call::Chmod { path, mode } => Ok(done(unsafe { libc::chmod(self.c(path).as_ptr(), *mode) })),
            Call::Chown { path, uid, gid } => {
                // SAFETY: as above.
                Ok(done(unsafe { libc::lchown(self.c(path).as_ptr(), *uid, *gid) }))
            }
            Call::SetTimes { path, seconds, nanos } => {
                let t = libc::timespec { tv_sec: *seconds, tv_nsec: *nanos };
                let p = self.c(path);
                // SAFETY: as above; two times, as the call wants.
                let r =
                    unsafe { libc::utimensat(libc::AT_FDCWD, p.as_ptr(), [t, t].as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
                if r < 0 {
                    return Err(io::Error::last_os_error());
                }
                let m = fs::symlink_metadata(at(path))?;
                Ok(Ok(format!("{}.{:09}", m.mtime(), m.mtime_nsec()).into_bytes()))
            }
            Call::Stat { path } => Ok(Ok(facts(&fs::symlink_metadata(at(path))?))),
            Call::List { path } => {
                let names: io::Result<BTreeSet<_>> =
                    fs::read_dir(at(path))?.map(|e| e.map(|e| e.file_name().as_bytes().to_vec())).collect();
                Ok(Ok(names?.into_iter().collect::<Vec<_>>().join(&b'/')))
            }
            Call::SetXattr { path, name, len, seed, flags } => {
                let (p, name, value) = (self.c(path), CString::new(ATTRIBUTES[*name])?, data(*seed, *len));
                // SAFETY: as above; the value's length is given.
                let r =
                    unsafe { libc::lsetxattr(p.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), *flags) };
                Ok(done(r))
            }
            Call::GetXattr { path, name } => xattr(&self.c(path), ATTRIBUTES[*name]),
            Call::RemoveXattr { path, name } => {
                let name = CString::new(ATTRIBUTES[*name])?;
                // SAFETY: as above.
                Ok(done(unsafe { libc::lremovexattr(self.c(path).as_ptr(), name.as_ptr()) }))
            }
            Call::ListXattr { path } => Ok(Ok(xattr_names(&self.c(path))?.join(&b' '))),
            Call::Open { slot, path } => {
                let how = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(at(path));
                let file = how?;
                if !file.metadata()?.is_file() {
                    return nothing;
                }
                self.open.insert(*slot, file);
                nothing
            }
            Call::WriteOpen { slot, at, len, seed } => {
                if let Some(f) = self.open.get(slot) {
                    f.write_all_at(&data(*seed, *len), *at)?;
                }
                nothing
            }
            Call::ReadOpen { slot, at, len } => {
                let Some(f) = self.open.get(slot) else { return nothing };
                let mut b = vec![0; *len];
                let n = read_full(f, &mut b, *at)?;
                b.truncate(n);
                Ok(Ok(b))
            }
            Call::TruncateOpen { slot, len } => {
                if let Some(f) = self.open.get(slot) {
                    f.set_len(*len)?;
                }
                nothing
            }
            Call::StatOpen { slot } => {
                let Some(f) = self.open.get(slot) else { return nothing };
                Ok(Ok(facts(&f.metadata()?)))
            }
            Call::SyncOpen { slot } => {
                if let Some(f) = self.open.get(slot) {
                    f.sync_all()?;
                }
                nothing
            }
            Call::Close { slot } => {
                self.open.remove(slot);
                nothing
            }
        }
    }
}

fn read_full(f: &File, b: &mut [u8], at: u64) -> io::Result<usize> {
    let mut n = 0;
    while n < b.len() {
        match f.read_at(&mut b[n..], at + n as u64)? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}

fn xattr(path: &CString, name: &str) -> io::Result<Answer> {
    let name = CString::new(name)?;
    let mut b = vec![0u8; 4096];
    // SAFETY: terminated strings, and a buffer of the length given.
    let n = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), b.as_mut_ptr().cast(), b.len()) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    b.truncate(n as usize);
    Ok(Ok(b))
}

/// The `user.` attributes a file has, in order; others (security labels) are the system's.
fn xattr_names(path: &CString) -> io::Result<Vec<Vec<u8>>> {
    let mut b = vec![0u8; 4096];
    // SAFETY: a terminated string, and a buffer of the length given.
    let n = unsafe { libc::llistxattr(path.as_ptr(), b.as_mut_ptr().cast(), b.len()) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut names: Vec<Vec<u8>> =
        b[..n as usize].split(|&c| c == 0).filter(|n| n.starts_with(b"user.")).map(<[u8]>::to_vec).collect();
    names.sort();
    Ok(names)
}

/// The first difference between two whole trees.
fn difference(a: &Path, b: &Path) -> Option<String> {
    let (left, right) = (walk(a).unwrap(), walk(b).unwrap());
    if left != right {
        let (l, r): (BTreeSet<_>, BTreeSet<_>) = (left.iter().collect(), right.iter().collect());
        return Some(format!("paths on one side only: {:?}", l.symmetric_difference(&r).collect::<Vec<_>>()));
    }
    for path in left {
        let (x, y) = (a.join(&path), b.join(&path));
        let (mx, my) = (x.symlink_metadata().unwrap(), y.symlink_metadata().unwrap());
        let text = |m: &fs::Metadata| String::from_utf8(facts(m)).unwrap();
        if facts(&mx) != facts(&my) {
            return Some(format!("{}: {} and {}", path.display(), text(&mx), text(&my)));
        }
        if mx.is_symlink() && fs::read_link(&x).unwrap() != fs::read_link(&y).unwrap() {
            return Some(format!("{}: symlink", path.display()));
        }
        if mx.is_file() && fs::read(&x).unwrap() != fs::read(&y).unwrap() {
            return Some(format!("{}: contents", path.display()));
        }
        let (cx, cy) =
            (CString::new(x.as_os_str().as_bytes()).unwrap(), CString::new(y.as_os_str().as_bytes()).unwrap());
        let (nx, ny) = (xattr_names(&cx).unwrap(), xattr_names(&cy).unwrap());
        let values = |c: &CString, names: &[Vec<u8>]| -> Vec<Answer> {
            names.iter().map(|n| xattr(c, std::str::from_utf8(n).unwrap()).unwrap()).collect()
        };
        if nx != ny || values(&cx, &nx) != values(&cy, &ny) {
            return Some(format!("{}: attributes", path.display()));
        }
    }
    None
}

fn program(seed: u64, steps: u64) {
    let v = TestVault::mounted();
    let plain = v.outside("plain");
    let inside = v.path("tree");
    fs::create_dir(&plain).unwrap();
    fs::create_dir(&inside).unwrap();
    let mut here = Tree { root: plain.clone(), open: BTreeMap::new() };
    let mut there = Tree { root: inside.clone(), open: BTreeMap::new() };
    let mut rng = Rng(seed);
    let mut succeeded = 0;
    let same = |when: &str| {
        if let Some(what) = difference(&plain, &inside) {
            panic!("seed {seed}, {when}: {what}");
        }
    };
    for step in 0..steps {
        let call = call(&mut rng);
        if matches!(call, Call::Chown { .. }) && !is_root() {
            continue;
        }
        let (want, got) = (here.make(&call), there.make(&call));
        succeeded += u64::from(want.is_ok());
        let short = |a: &Answer| match a {
            Ok(b) if b.len() > 120 => format!("{} bytes, crc {:08x}", b.len(), crc32fast::hash(b)),
            Ok(b) => format!("{:?}", String::from_utf8_lossy(b)),
            Err(e) => io::Error::from_raw_os_error(*e).to_string(),
        };
        assert!(
            want == got,
            "seed {seed}, step {step}, {call:?}: the disk {}, the mount {}",
            short(&want),
            short(&got)
        );
        if step == steps / 2 {
            same("in the middle");
            here.open.clear();
            there.open.clear();
            v.remount();
            same("in the middle, mounted anew");
        }
    }
    assert!(succeeded > steps / 4, "a program of which most fails says little");
    same("at the end");
    here.open.clear();
    there.open.clear();
    v.remount();
    same("at the end, mounted anew");
}

fn seeds() -> Vec<u64> {
    match std::env::var("STRONGROOM_SEEDS") {
        Ok(s) => s.split(',').map(|n| n.trim().parse().unwrap_or_else(|_| panic!("no number: {n}"))).collect(),
        Err(_) => vec![1, 2, 3],
    }
}

#[test]
fn the_mount_answers_as_the_disk_does() {
    for seed in seeds() {
        program(seed, setting("STRONGROOM_STEPS", 4000, 2500));
    }
}

#[test]
fn the_comparison_sees_every_kind_of_difference() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let changes = [
        "printf y >> b/x",
        "chmod 600 b/x",
        "ln b/x b/y",
        "ln b/x b-link",
        "ln -sfn elsewhere b/link",
        "setfattr -n user.one -v 2 b/x",
        "rm b/x",
    ];
    for change in changes {
        common::shell(
            dir.path(),
            "rm -rf a b b-link; mkdir a; echo x > a/x; chmod 644 a/x; ln -s x a/link; setfattr -n user.one -v 1 a/x; cp -a a b",
            &[""; 0],
        );
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        assert_eq!(difference(&a, &b), None);
        common::shell(dir.path(), change, &[""; 0]);
        assert!(difference(&a, &b).is_some(), "{change}");
    }
}

#[test]
fn the_same_program_on_two_plain_directories_agrees() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut trees = ["a", "b"].map(|n| {
        let root = dir.path().join(n);
        fs::create_dir(&root).unwrap();
        Tree { root, open: BTreeMap::new() }
    });
    let mut rng = Rng(9);
    let mut succeeded = 0;
    for step in 0..1500 {
        let call = call(&mut rng);
        let [a, b] = &mut trees;
        let answer = a.make(&call);
        succeeded += usize::from(answer.is_ok());
        assert_eq!(answer, b.make(&call), "step {step}: {call:?}: the harness itself is not repeatable");
    }
    assert!(succeeded > 500, "a program of which most fails says little: {succeeded} of 1500");
    assert_eq!(difference(&trees[0].root, &trees[1].root), None);
}
