//! Random system calls, as data: one seed, one program.
//!
//! Promise: a call says everything that it does, so that it can be made on two filesystems and printed; names and ranges are
//! few, so that calls collide.

use crate::common::rng::Rng;

/// Threads of a program.
pub const THREADS: usize = 3;

/// Users that calls are made as: root, and two who share a group.
pub const USERS: usize = 3;

/// Slots for open files that each thread has for itself.
pub const SLOTS: usize = 4;

pub const ATTRIBUTES: [&str; 4] = ["user.a", "user.b", "trusted.c", "user.a longer name of an attribute"];

/// A call by a user.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub who: usize,
    pub call: Call,
}

/// A system call on names below the directory that the thread stands in, or on open files.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    Open {
        slot: usize,
        path: String,
        flags: i32,
        mode: u32,
    },
    Close {
        slot: usize,
    },
    Dup {
        from: usize,
        to: usize,
    },
    Pread {
        slot: usize,
        at: u64,
        len: usize,
    },
    Readv {
        slot: usize,
        at: u64,
        lens: [usize; 3],
    },
    Read {
        slot: usize,
        len: usize,
    },
    Pwrite {
        slot: usize,
        at: u64,
        len: usize,
        seed: u64,
    },
    Write {
        slot: usize,
        len: usize,
        seed: u64,
    },
    Seek {
        slot: usize,
        offset: i64,
        whence: i32,
    },
    /// Data and holes of the whole file are asked for, and must agree with what is read.
    Holes {
        slot: usize,
    },
    Ftruncate {
        slot: usize,
        len: u64,
    },
    Fallocate {
        slot: usize,
        mode: i32,
        at: u64,
        len: u64,
    },
    CopyRange {
        from: usize,
        at: u64,
        to: usize,
        to_at: u64,
        len: usize,
    },
    MapWrite {
        slot: usize,
        at: u64,
        len: usize,
        seed: u64,
        sync: bool,
    },
    MapRead {
        slot: usize,
        at: u64,
        len: usize,
    },
    Fsync {
        slot: usize,
        data_only: bool,
    },
    Fstat {
        slot: usize,
    },
    Fchmod {
        slot: usize,
        mode: u32,
    },
    Fchown {
        slot: usize,
        uid: u32,
        gid: u32,
    },
    Truncate {
        path: String,
        len: u64,
    },
    Mkdir {
        path: String,
        mode: u32,
    },
    Mknod {
        path: String,
        mode: u32,
        device: u64,
    },
    Unlink {
        path: String,
    },
    Rmdir {
        path: String,
    },
    Rename {
        from: String,
        to: String,
        flags: u32,
    },
    Link {
        from: String,
        to: String,
        follow: bool,
    },
    Symlink {
        target: String,
        path: String,
    },
    Readlink {
        path: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    Chown {
        path: String,
        uid: u32,
        gid: u32,
    },
    /// Access and modification time; `UTIME_NOW` and `UTIME_OMIT` stand in the nanoseconds.
    Times {
        path: String,
        times: [(i64, i64); 2],
    },
    Stat {
        path: String,
        follow: bool,
    },
    Access {
        path: String,
        mask: i32,
    },
    List {
        path: String,
    },
    SetXattr {
        path: String,
        name: usize,
        len: usize,
        seed: u64,
        flags: i32,
    },
    GetXattr {
        path: String,
        name: usize,
    },
    RemoveXattr {
        path: String,
        name: usize,
    },
    ListXattr {
        path: String,
    },
    /// Makes a call, and says whether it moved the times of these.
    Timed {
        call: Box<Call>,
        watched: Vec<String>,
    },
}

const UNSET: u32 = u32::MAX;

const NAMES: [&str; 8] = ["a", "b", "c", "dir", "dir", "other", "link", "ünïcode ☃"];

fn name(rng: &mut Rng) -> &'static str {
    const LONG: &str = match std::str::from_utf8(&[b'n'; 256]) {
        Ok(s) => s,
        Err(_) => "",
    };
    match rng.below(80) {
        0 => ".",
        1 => "..",
        2 => LONG,
        3 => &LONG[..255],
        _ => NAMES[rng.below(NAMES.len() as u64) as usize],
    }
}

fn path(rng: &mut Rng) -> String {
    let depth = [0, 0, 0, 1, 1, 2][rng.below(6) as usize];
    let mut parts: Vec<&str> = (0..depth).map(|_| *rng.pick(&["dir", "other", "link"])).collect();
    parts.push(name(rng));
    let mut path = parts.join("/");
    match rng.below(50) {
        0 => path.push('/'),
        1 => path.push_str("/."),
        _ => {}
    }
    // Nothing is done to the directory that all stand in, or above it.
    if path.split('/').all(|p| [".", "..", ""].contains(&p)) || path.contains("..") { "a".into() } else { path }
}

fn offset(rng: &mut Rng) -> u64 {
    match rng.below(5) {
        0 => 0,
        1 => rng.below(5000),
        2 => rng.below(400_000),
        3 => rng.below(100) << 12,
        _ => rng.below(6) << 16,
    }
}

fn length(rng: &mut Rng) -> usize {
    match rng.below(6) {
        0 => rng.below(10) as usize,
        1 => 4096,
        2 => 65536,
        3 => rng.below(150_000) as usize,
        _ => rng.below(12_000) as usize,
    }
}

fn flags(rng: &mut Rng) -> i32 {
    // Never waits for the other end of a pipe.
    let mut flags =
        *rng.pick(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR, libc::O_RDWR]) | libc::O_NONBLOCK;
    if rng.below(4) > 0 {
        flags |= libc::O_CREAT;
    }
    for (flag, one_in) in [
        (libc::O_EXCL, 15),
        (libc::O_TRUNC, 8),
        (libc::O_APPEND, 5),
        (libc::O_NOFOLLOW, 8),
        (libc::O_DIRECTORY, 40),
        (libc::O_PATH, 50),
        (libc::O_DSYNC, 20),
        (libc::O_NOATIME, 20),
    ] {
        if rng.below(one_in) == 0 {
            flags |= flag;
        }
    }
    flags
}

fn mode(rng: &mut Rng) -> u32 {
    let any = rng.below(0o10000) as u32;
    match rng.below(4) {
        // A difference from ext4 that docs/semantics.md states.
        0 if any & libc::S_ISGID != 0 => any | libc::S_IXGRP,
        0 => any,
        1 => 0o600 | rng.below(0o1000) as u32,
        _ => 0o777,
    }
}

/// A user and a group, or one of them. Neither is no change at all, which ext4 refuses to who may not take away the
/// set-user-ID bit that it would take away; through FUSE the kernel does not come so far.
fn owners(rng: &mut Rng) -> (u32, u32) {
    let (uid, gid) = (*rng.pick(&[0, 1001, 1002, UNSET]), *rng.pick(&[0, 1001, 1002, 2000, UNSET]));
    (if gid == UNSET && uid == UNSET { 1001 } else { uid }, gid)
}

fn time(rng: &mut Rng) -> (i64, i64) {
    match rng.below(5) {
        0 => (0, libc::UTIME_NOW),
        1 => (0, libc::UTIME_OMIT),
        // As far back and forth as ext4 can say.
        2 => (rng.below(1 << 34) as i64 - (1 << 31), rng.below(1_000_000_000) as i64),
        3 => (1_000_000, 2_000_000_000),
        _ => (rng.below(1 << 31) as i64, rng.below(1_000_000_000) as i64),
    }
}

/// A call whose slots are among `slots`.
fn call(rng: &mut Rng, slots: &[usize]) -> Call {
    use libc::{FALLOC_FL_KEEP_SIZE as KEEP, FALLOC_FL_PUNCH_HOLE as PUNCH, FALLOC_FL_ZERO_RANGE as ZERO};
    let (p, q) = (path(rng), path(rng));
    let (slot, other) = (*rng.pick(slots), *rng.pick(slots));
    let (at, to_at, len, seed) = (offset(rng), offset(rng), length(rng), rng.next());
    let attribute = rng.below(ATTRIBUTES.len() as u64) as usize;
    match rng.below(100) {
        0..16 => Call::Open { slot, path: p, flags: flags(rng), mode: mode(rng) },
        16..18 => Call::Close { slot },
        18 => Call::Dup { from: slot, to: other },
        19..22 => Call::Pread { slot, at, len },
        22 => Call::Readv { slot, at, lens: [len / 3, 1, len / 2] },
        23 => Call::Read { slot, len },
        24..31 => Call::Pwrite { slot, at, len, seed },
        31..34 => Call::Write { slot, len, seed },
        34 => {
            let whence = *rng.pick(&[libc::SEEK_SET, libc::SEEK_CUR, libc::SEEK_END]);
            Call::Seek { slot, offset: at as i64 - if rng.below(3) == 0 { 100_000 } else { 0 }, whence }
        }
        35 => Call::Holes { slot },
        36..39 => Call::Ftruncate { slot, len: at },
        39..42 => Call::Fallocate {
            slot,
            mode: *rng.pick(&[0, KEEP, PUNCH | KEEP, PUNCH | KEEP, ZERO, ZERO | KEEP, PUNCH]),
            at,
            len: len as u64,
        },
        42..44 => Call::CopyRange { from: slot, at, to: other, to_at, len },
        44..47 => Call::MapWrite { slot, at, len, seed, sync: seed & 8 == 0 },
        47 => Call::MapRead { slot, at, len },
        48 => Call::Fsync { slot, data_only: seed & 1 == 0 },
        49 => Call::Fstat { slot },
        50 => Call::Fchmod { slot, mode: mode(rng) },
        51 => {
            let (uid, gid) = owners(rng);
            Call::Fchown { slot, uid, gid }
        }
        52 => Call::Truncate { path: p, len: at },
        53..58 => Call::Mkdir { path: if seed & 3 == 0 { p } else { directory(rng) }, mode: mode(rng) | 0o700 },
        58 => {
            let (kind, device) = *rng.pick(&[
                (libc::S_IFIFO, 0),
                (libc::S_IFSOCK, 0),
                (libc::S_IFREG, 0),
                (libc::S_IFCHR, libc::makedev(1, 3)),
                (libc::S_IFBLK, libc::makedev(240, 7)),
            ]);
            Call::Mknod { path: p, mode: kind | mode(rng), device }
        }
        59..62 => Call::Unlink { path: p },
        62 => Call::Rmdir { path: p },
        63..69 => {
            let flags = *rng.pick(&[0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE]);
            Call::Rename { from: p, to: q, flags }
        }
        69..72 => Call::Link { from: p, to: q, follow: seed & 3 == 0 },
        72..74 => Call::Symlink {
            target: if seed & 1 == 0 { (*rng.pick(&["dir", "a", "../other", "link"])).into() } else { q },
            path: if seed & 6 == 0 { p } else { "link".into() },
        },
        74 => Call::Readlink { path: p },
        75..78 => Call::Chmod { path: p, mode: mode(rng) },
        78..81 => {
            let (uid, gid) = owners(rng);
            Call::Chown { path: p, uid, gid }
        }
        81 => Call::Times { path: p, times: [time(rng), time(rng)] },
        82..84 => Call::Stat { path: p, follow: seed & 1 == 0 },
        84 => Call::Access { path: p, mask: rng.below(8) as i32 },
        85..87 => Call::List { path: if seed & 1 == 0 { p } else { ".".into() } },
        87..89 => {
            let flags = *rng.pick(&[0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE]);
            Call::SetXattr { path: p, name: attribute, len: len % 300, seed, flags }
        }
        89 => Call::GetXattr { path: p, name: attribute },
        90 => Call::RemoveXattr { path: p, name: attribute },
        91 => Call::ListXattr { path: p },
        _ => {
            let mut inner = call(rng, slots);
            while untimed(&inner) {
                inner = call(rng, slots);
            }
            Call::Timed { call: Box::new(inner), watched: vec![p, q, ".".into(), "dir".into()] }
        }
    }
}

/// Whether a call is not asked what it did to times: it does nothing, or how soon is not said. A `truncate` to the length that a file
/// has moves them on ext4; with its write-back cache FUSE keeps those it has.
fn untimed(call: &Call) -> bool {
    matches!(
        call,
        Call::Timed { .. } | Call::Close { .. } | Call::List { .. } | Call::MapWrite { .. } | Call::Truncate { .. }
    )
}

fn directory(rng: &mut Rng) -> String {
    let depth = rng.below(2);
    (0..=depth).map(|_| *rng.pick(&["dir", "other"])).collect::<Vec<_>>().join("/")
}

/// The first steps of a phase: directories, a link between them, and an open file in each slot.
pub fn begin(slots: &[usize], n: usize) -> Option<Step> {
    let call = match n {
        0 | 1 => Call::Mkdir { path: ["dir", "other"][n].into(), mode: 0o777 },
        2 => Call::Chmod { path: "dir".into(), mode: 0o1777 },
        3 => Call::Symlink { target: "dir".into(), path: "link".into() },
        _ => {
            let flags = libc::O_RDWR | libc::O_CREAT | libc::O_NONBLOCK;
            let path = ["a", "b", "dir/a", "other/c"][n % 4].into();
            Call::Open { slot: *slots.get(n - 4)?, path, flags, mode: 0o666 }
        }
    };
    Some(Step { who: 0, call })
}

/// A step whose slots are among `slots`.
pub fn step(rng: &mut Rng, slots: &[usize]) -> Step {
    let who = if rng.below(3) == 0 { 1 + rng.below(USERS as u64 - 1) as usize } else { 0 };
    Step { who, call: call(rng, slots) }
}
