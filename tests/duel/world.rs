//! A directory tree on some filesystem, in which calls are made by threads that stand in it.
//!
//! Promise: an answer holds what must be the same on every filesystem and nothing else: no inode numbers, no sizes of directories,
//! no times but those that were asked for. What is a filesystem's own, where data lies and where holes, is judged
//! by whether it agrees with what is read.

use super::calls::{ATTRIBUTES, Call, Step};
use crate::common::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a call answered: a description, or errno.
pub type Answer = Result<String, i32>;

/// A lie that a world tells from a certain call on, for tests of the comparison.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// A write says that it was done, and was not.
    LostWrite,
    /// Its last byte is another.
    WrongByte,
    /// A rename leaves nothing.
    LostRename,
    /// Modes are not kept.
    LostMode,
    /// Another errno.
    WrongErrno,
    /// A name is left out of listings.
    LostName,
    /// An attribute is not kept.
    LostAttribute,
    /// A truncation leaves the bytes.
    LostTruncation,
    /// Owners are not kept.
    LostOwner,
}

/// Users and groups by number; the last two share a group, and one is in the other's.
const WHO: [(u32, u32, &[u32]); 3] = [(0, 0, &[0]), (1001, 1001, &[2000]), (1002, 1002, &[2000, 1001])];

/// Standing for the filesystem's clock to have moved on: its tick is 1 to 10 ms.
const TICK: Duration = Duration::from_millis(12);

pub struct World {
    pub root: PathBuf,
    dir: Mutex<Option<Arc<File>>>,
    open: Mutex<BTreeMap<usize, Arc<OwnedFd>>>,
    pub fault: Option<Fault>,
}

fn last() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(-1)
}

/// The result of a call, -1 being errno's.
fn done<T: Into<i64>>(result: T) -> Result<i64, i32> {
    let result = result.into();
    if result < 0 { Err(last()) } else { Ok(result) }
}

fn told<T: Into<i64>>(result: T) -> Answer {
    done(result).map(|n| n.to_string())
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn data(seed: u64, len: usize) -> Vec<u8> {
    match seed % 8 {
        0 => vec![0; len],
        1..4 => Rng(seed).text(len),
        _ => Rng(seed).bytes(len),
    }
}

fn bytes(b: &[u8]) -> String {
    format!("{} bytes, crc {:08x}", b.len(), crc32fast::hash(b))
}

/// Acts as a user until dropped: this thread only, for the calls are the kernel's, not the C library's.
struct As;

impl As {
    fn user(who: usize) -> As {
        let (uid, gid, groups) = WHO[who];
        // SAFETY: the kernel's calls on this thread's credentials; the list lives through its call.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), 0);
            assert_eq!(libc::syscall(libc::SYS_setresgid, u32::MAX, gid, u32::MAX), 0);
            assert_eq!(libc::syscall(libc::SYS_setresuid, u32::MAX, uid, u32::MAX), 0);
        }
        As
    }
}

impl Drop for As {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            libc::syscall(libc::SYS_setresuid, u32::MAX, 0, u32::MAX);
            libc::syscall(libc::SYS_setresgid, u32::MAX, 0, u32::MAX);
        }
    }
}

/// Gives this thread a working directory of its own.
pub fn stand_alone() {
    // SAFETY: takes a flag only.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_FS) }, 0, "a thread's own working directory");
}

fn status(at: RawFd, path: &CStr, flags: i32) -> Result<libc::stat, i32> {
    let mut s = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: a terminated string, and room for the answer.
    done(unsafe { libc::fstatat(at, path.as_ptr(), s.as_mut_ptr(), flags) })?;
    // SAFETY: the call succeeded, so it is filled.
    Ok(unsafe { s.assume_init() })
}

/// What `stat` tells that must be the same everywhere.
pub fn facts(s: &libc::stat) -> String {
    let kind = s.st_mode & libc::S_IFMT;
    let mut text = format!("mode {:o} owner {}:{}", s.st_mode, s.st_uid, s.st_gid);
    if kind != libc::S_IFDIR {
        text += &format!(" links {} size {}", s.st_nlink, s.st_size);
    }
    if kind == libc::S_IFCHR || kind == libc::S_IFBLK {
        text += &format!(" device {:x}", s.st_rdev);
    }
    text
}

impl World {
    pub fn new(root: PathBuf) -> World {
        World { root, dir: Mutex::default(), open: Mutex::default(), fault: None }
    }

    /// Where the threads stand from now on, in the world's root.
    pub fn enter(&self) {
        *self.dir.lock().unwrap() = Some(Arc::new(File::open(&self.root).unwrap()));
    }

    /// Closes everything.
    pub fn leave(&self) {
        self.open.lock().unwrap().clear();
        *self.dir.lock().unwrap() = None;
    }

    fn fd(&self, slot: usize) -> Result<Arc<OwnedFd>, i32> {
        self.open.lock().unwrap().get(&slot).cloned().ok_or(-1)
    }

    /// Makes a call below a directory of the root, as a user.
    pub fn make(&self, below: &str, step: &Step) -> Answer {
        let dir = Arc::clone(self.dir.lock().unwrap().as_ref().expect("the world was entered"));
        let below = c(below);
        // SAFETY: a descriptor that lives, a terminated string.
        unsafe {
            assert_eq!(libc::fchdir(dir.as_raw_fd()), 0);
            assert_eq!(libc::chdir(below.as_ptr()), 0, "{below:?}: {}", io::Error::last_os_error());
        }
        let _as = As::user(step.who);
        self.timed(&step.call)
    }

    fn timed(&self, call: &Call) -> Answer {
        let Call::Timed { call, watched } = call else { return self.lied(call) };
        let times = |path: &String| {
            let s = status(libc::AT_FDCWD, &c(path), libc::AT_SYMLINK_NOFOLLOW)?;
            Ok::<_, i32>((s.st_ino, (s.st_mtime, s.st_mtime_nsec), (s.st_ctime, s.st_ctime_nsec)))
        };
        let before: Vec<_> = watched.iter().map(times).collect();
        std::thread::sleep(TICK);
        let answer = self.lied(call);
        let mut moved = String::new();
        for (path, before) in watched.iter().zip(before) {
            moved += &match (before, times(path)) {
                (Ok((i, m, c)), Ok((j, n, d))) if i == j => {
                    format!(" {path}: {}{}", u8::from(m != n), u8::from(c != d))
                }
                (before, after) => format!(" {path}: {} {}", before.is_ok(), after.is_ok()),
            };
        }
        match answer {
            Ok(text) => Ok(format!("{text}; moved{moved}")),
            Err(e) => Ok(format!("errno {e}; moved{moved}")),
        }
    }

    /// Makes the call, unless this world lies about it.
    fn lied(&self, call: &Call) -> Answer {
        match (self.fault, call) {
            (Some(Fault::LostWrite), Call::Pwrite { slot, len, .. } | Call::Write { slot, len, .. }) if *len > 0 => {
                self.fd(*slot)?;
                Ok(len.to_string())
            }
            (Some(Fault::WrongByte), Call::Pwrite { slot, at, len, seed }) if *len > 0 => {
                let answer = self.call(call)?;
                let wrong = !data(*seed, *len)[len - 1];
                let fd = self.fd(*slot)?;
                // SAFETY: one byte that lives.
                unsafe { libc::pwrite(fd.as_raw_fd(), [wrong].as_ptr().cast(), 1, (*at + *len as u64 - 1) as i64) };
                Ok(answer)
            }
            (Some(Fault::LostRename), Call::Rename { from, .. }) => {
                let answer = self.call(call);
                // SAFETY: a terminated string.
                unsafe { libc::unlink(c(from).as_ptr()) };
                answer
            }
            (Some(Fault::LostMode), Call::Chmod { path, .. }) => {
                status(libc::AT_FDCWD, &c(path), 0).map(|_| "0".to_owned())
            }
            (Some(Fault::LostOwner), Call::Chown { path, .. }) => {
                status(libc::AT_FDCWD, &c(path), libc::AT_SYMLINK_NOFOLLOW).map(|_| "0".to_owned())
            }
            (Some(Fault::WrongErrno), _) => self.call(call).map_err(|e| if e == libc::ENOENT { libc::EIO } else { e }),
            (Some(Fault::LostName), Call::List { .. }) => {
                self.call(call).map(|l| l.split_once('|').map_or(String::new(), |(_, rest)| rest.to_owned()))
            }
            (Some(Fault::LostAttribute), Call::SetXattr { path, .. }) => {
                status(libc::AT_FDCWD, &c(path), 0).map(|_| "0".to_owned())
            }
            (Some(Fault::LostTruncation), Call::Ftruncate { slot, .. }) => self.fd(*slot).map(|_| "0".to_owned()),
            _ => self.call(call),
        }
    }

    fn call(&self, call: &Call) -> Answer {
        let here = libc::AT_FDCWD;
        // SAFETY: of every call below: strings are terminated and live through it, descriptors are held, and buffers are as
        // long as they are said to be.
        unsafe {
            match call {
                Call::Open { slot, path, flags, mode } => {
                    let fd = done(libc::open(c(path).as_ptr(), *flags | libc::O_CLOEXEC, *mode))?;
                    let fd = OwnedFd::from_raw_fd(fd as RawFd);
                    // Devices and pipes are made and looked at, not used.
                    let kind = status(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH)?.st_mode & libc::S_IFMT;
                    if kind == libc::S_IFREG || kind == libc::S_IFDIR {
                        self.open.lock().unwrap().insert(*slot, Arc::new(fd));
                    }
                    Ok(format!("{kind:o}"))
                }
                Call::Close { slot } => Ok(self.open.lock().unwrap().remove(slot).is_some().to_string()),
                Call::Dup { from, to } => {
                    let fd = done(libc::fcntl(self.fd(*from)?.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0))?;
                    self.open.lock().unwrap().insert(*to, Arc::new(OwnedFd::from_raw_fd(fd as RawFd)));
                    Ok(String::new())
                }
                Call::Pread { slot, at, len } => {
                    let mut b = vec![0u8; *len];
                    let n =
                        done(libc::pread(self.fd(*slot)?.as_raw_fd(), b.as_mut_ptr().cast(), *len, *at as i64) as i64)?;
                    Ok(bytes(&b[..n as usize]))
                }
                Call::Readv { slot, at, lens } => {
                    let mut parts = lens.map(|n| vec![0u8; n]);
                    let io: Vec<_> = parts
                        .iter_mut()
                        .map(|p| libc::iovec { iov_base: p.as_mut_ptr().cast(), iov_len: p.len() })
                        .collect();
                    let fd = self.fd(*slot)?;
                    let n = done(libc::preadv(fd.as_raw_fd(), io.as_ptr(), io.len() as i32, *at as i64) as i64)?;
                    Ok(bytes(&parts.concat()[..n as usize]))
                }
                Call::Read { slot, len } => {
                    let mut b = vec![0u8; *len];
                    let n = done(libc::read(self.fd(*slot)?.as_raw_fd(), b.as_mut_ptr().cast(), *len) as i64)?;
                    Ok(bytes(&b[..n as usize]))
                }
                Call::Pwrite { slot, at, len, seed } => {
                    let b = data(*seed, *len);
                    told(libc::pwrite(self.fd(*slot)?.as_raw_fd(), b.as_ptr().cast(), *len, *at as i64) as i64)
                }
                Call::Write { slot, len, seed } => {
                    let b = data(*seed, *len);
                    told(libc::write(self.fd(*slot)?.as_raw_fd(), b.as_ptr().cast(), *len) as i64)
                }
                Call::Seek { slot, offset, whence } => {
                    let fd = self.fd(*slot)?;
                    // Where a directory ends is each filesystem's own.
                    let s = status(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH)?;
                    if s.st_mode & libc::S_IFMT == libc::S_IFDIR {
                        return Ok("a directory".into());
                    }
                    told(libc::lseek(fd.as_raw_fd(), *offset, *whence))
                }
                Call::Holes { slot } => holes(self.fd(*slot)?.as_raw_fd()),
                Call::Ftruncate { slot, len } => told(libc::ftruncate(self.fd(*slot)?.as_raw_fd(), *len as i64)),
                Call::Fallocate { slot, mode, at, len } => {
                    told(libc::fallocate(self.fd(*slot)?.as_raw_fd(), *mode, *at as i64, *len as i64))
                }
                Call::CopyRange { from, at, to, to_at, len } => {
                    let (from, to) = (self.fd(*from)?, self.fd(*to)?);
                    let (mut at, mut to_at, mut total) = (*at as i64, *to_at as i64, 0);
                    // A filesystem may copy less than it was asked for.
                    while total < *len as i64 {
                        let left = *len - total as usize;
                        match done(libc::copy_file_range(
                            from.as_raw_fd(),
                            &raw mut at,
                            to.as_raw_fd(),
                            &raw mut to_at,
                            left,
                            0,
                        ) as i64)
                        {
                            Ok(0) => break,
                            Ok(n) => total += n,
                            Err(e) => return Ok(format!("{total}, then errno {e}")),
                        }
                    }
                    Ok(total.to_string())
                }
                Call::MapWrite { slot, at, len, seed, sync } => map(&*self.fd(*slot)?, *at, *len, |m| {
                    m.copy_from_slice(&data(*seed, m.len()));
                    if *sync {
                        let page = m.as_ptr() as usize & !4095;
                        let end = m.as_ptr() as usize + m.len();
                        libc::msync(page as *mut libc::c_void, end - page, libc::MS_SYNC);
                    }
                }),
                Call::MapRead { slot, at, len } => map(&*self.fd(*slot)?, *at, *len, |_| {}),
                Call::Fsync { slot, data_only } => {
                    let fd = self.fd(*slot)?;
                    told(if *data_only { libc::fdatasync(fd.as_raw_fd()) } else { libc::fsync(fd.as_raw_fd()) })
                }
                Call::Fstat { slot } => Ok(facts(&status(self.fd(*slot)?.as_raw_fd(), c"", libc::AT_EMPTY_PATH)?)),
                Call::Fchmod { slot, mode } => told(libc::fchmod(self.fd(*slot)?.as_raw_fd(), *mode)),
                Call::Fchown { slot, uid, gid } => told(libc::fchown(self.fd(*slot)?.as_raw_fd(), *uid, *gid)),
                Call::Truncate { path, len } => told(libc::truncate(c(path).as_ptr(), *len as i64)),
                Call::Mkdir { path, mode } => told(libc::mkdir(c(path).as_ptr(), *mode)),
                Call::Mknod { path, mode, device } => told(libc::mknod(c(path).as_ptr(), *mode, *device)),
                Call::Unlink { path } => told(libc::unlink(c(path).as_ptr())),
                Call::Rmdir { path } => told(libc::rmdir(c(path).as_ptr())),
                Call::Rename { from, to, flags } => {
                    told(libc::renameat2(here, c(from).as_ptr(), here, c(to).as_ptr(), *flags))
                }
                Call::Link { from, to, follow } => {
                    let flags = if *follow { libc::AT_SYMLINK_FOLLOW } else { 0 };
                    told(libc::linkat(here, c(from).as_ptr(), here, c(to).as_ptr(), flags))
                }
                Call::Symlink { target, path } => told(libc::symlink(c(target).as_ptr(), c(path).as_ptr())),
                Call::Readlink { path } => {
                    let mut b = vec![0u8; 5000];
                    let n = done(libc::readlink(c(path).as_ptr(), b.as_mut_ptr().cast(), b.len()) as i64)?;
                    Ok(String::from_utf8_lossy(&b[..n as usize]).into_owned())
                }
                Call::Chmod { path, mode } => told(libc::chmod(c(path).as_ptr(), *mode)),
                Call::Chown { path, uid, gid } => told(libc::lchown(c(path).as_ptr(), *uid, *gid)),
                Call::Times { path, times } => {
                    let spec = times.map(|(s, n)| libc::timespec { tv_sec: s, tv_nsec: n });
                    done(libc::utimensat(here, c(path).as_ptr(), spec.as_ptr(), libc::AT_SYMLINK_NOFOLLOW))?;
                    let s = status(here, &c(path), libc::AT_SYMLINK_NOFOLLOW)?;
                    let set = |(_, n): (i64, i64), s, nsec| {
                        if [libc::UTIME_NOW, libc::UTIME_OMIT].contains(&n) {
                            String::new()
                        } else {
                            format!("{s}.{nsec:09}")
                        }
                    };
                    Ok(set(times[0], s.st_atime, s.st_atime_nsec) + " " + &set(times[1], s.st_mtime, s.st_mtime_nsec))
                }
                Call::Stat { path, follow } => {
                    let flags = if *follow { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
                    Ok(facts(&status(here, &c(path), flags)?))
                }
                Call::Access { path, mask } => told(libc::faccessat(here, c(path).as_ptr(), *mask, libc::AT_EACCESS)),
                Call::List { path } => list(path),
                Call::SetXattr { path, name, len, seed, flags } => {
                    let value = data(*seed, *len);
                    let (path, name) = (c(path), c(ATTRIBUTES[*name]));
                    told(libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), *len, *flags))
                }
                Call::GetXattr { path, name } => {
                    let mut b = vec![0u8; 4096];
                    let (path, name) = (c(path), c(ATTRIBUTES[*name]));
                    let n = done(libc::lgetxattr(path.as_ptr(), name.as_ptr(), b.as_mut_ptr().cast(), b.len()) as i64)?;
                    Ok(bytes(&b[..n as usize]))
                }
                Call::RemoveXattr { path, name } => {
                    told(libc::lremovexattr(c(path).as_ptr(), c(ATTRIBUTES[*name]).as_ptr()))
                }
                Call::ListXattr { path } => {
                    let mut b = vec![0u8; 4096];
                    let n = done(libc::llistxattr(c(path).as_ptr(), b.as_mut_ptr().cast(), b.len()) as i64)?;
                    let names = String::from_utf8_lossy(&b[..n as usize]).into_owned();
                    // Labels are the system's.
                    let names: BTreeSet<_> =
                        names.split('\0').filter(|n| n.starts_with("user.") || n.starts_with("trusted.")).collect();
                    Ok(names.into_iter().collect::<Vec<_>>().join(" "))
                }
                Call::Timed { .. } => unreachable!("it was taken apart"),
            }
        }
    }
}

/// Names and types in a directory, in order.
fn list(path: &str) -> Answer {
    let errno = |e: io::Error| e.raw_os_error().unwrap_or(-1);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(path).map_err(errno)? {
        let entry = entry.map_err(errno)?;
        let kind = entry.file_type().map_err(errno)?;
        names.insert(format!("{:?} {:?}", entry.file_name(), kind));
    }
    Ok(names.into_iter().collect::<Vec<_>>().join("|"))
}

/// A shared mapping of what of the range lies in the file, and what is in it after `then`.
fn map(fd: &OwnedFd, at: u64, len: usize, then: impl FnOnce(&mut [u8])) -> Answer {
    let s = status(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH)?;
    let len = (len as u64).min((s.st_size as u64).saturating_sub(at)) as usize;
    if s.st_mode & libc::S_IFMT != libc::S_IFREG || len == 0 {
        return Ok("nothing to map".into());
    }
    let skip = (at % 4096) as usize;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of a range of a file, which nobody makes shorter meanwhile.
    let whole = unsafe {
        libc::mmap(std::ptr::null_mut(), skip + len, both, libc::MAP_SHARED, fd.as_raw_fd(), (at - skip as u64) as i64)
    };
    if whole == libc::MAP_FAILED {
        return Err(last());
    }
    // SAFETY: inside of it.
    let part = unsafe { std::slice::from_raw_parts_mut(whole.cast::<u8>().add(skip), len) };
    then(part);
    let text = bytes(part);
    // SAFETY: the mapping just made; nothing refers to it any more.
    unsafe { libc::munmap(whole, skip + len) };
    Ok(text)
}

/// Where data and holes lie may differ; what is called a hole must read as zeros, and the parts must add up.
fn holes(fd: RawFd) -> Answer {
    let s = status(fd, c"", libc::AT_EMPTY_PATH)?;
    if s.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Ok("no file".into());
    }
    // SAFETY: of these calls: they take numbers, or a buffer as long as it is said to be.
    unsafe {
        let before = done(libc::lseek(fd, 0, libc::SEEK_CUR))?;
        let (mut at, mut told) = (0, String::from("agree"));
        while at < s.st_size {
            let data = match done(libc::lseek(fd, at, libc::SEEK_DATA)) {
                Ok(n) => n,
                Err(libc::ENXIO) => s.st_size,
                Err(e) => return Err(e),
            };
            let mut hole = vec![1u8; (data - at) as usize];
            // A file that was opened for writing only cannot be read.
            let n = libc::pread(fd, hole.as_mut_ptr().cast(), hole.len(), at);
            if n >= 0 && (n as usize != hole.len() || hole.iter().any(|b| *b != 0)) {
                told = format!("a hole from {at} to {data} does not read as zeros");
            }
            if data >= s.st_size {
                break;
            }
            at = done(libc::lseek(fd, data, libc::SEEK_HOLE))?;
            if at <= data || at > s.st_size {
                told = format!("data at {data} has its next hole at {at} of {}", s.st_size);
                break;
            }
        }
        if done(libc::lseek(fd, s.st_size, libc::SEEK_DATA)) != Err(libc::ENXIO) {
            told = "there is data at the end".into();
        }
        libc::lseek(fd, before, libc::SEEK_SET);
        Ok(told)
    }
}

/// Everything of a tree that must be the same everywhere, a line for each name.
pub fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for path in crate::common::walk(root).unwrap_or_else(|e| panic!("{}: {e}", root.display())) {
        let at = root.join(&path);
        let text = at.to_str().unwrap();
        let s = status(libc::AT_FDCWD, &c(text), libc::AT_SYMLINK_NOFOLLOW).unwrap();
        let mut line = facts(&s);
        match s.st_mode & libc::S_IFMT {
            libc::S_IFREG => {
                let content = std::fs::read(&at).unwrap_or_else(|e| panic!("{text}: {e}"));
                line += &format!(" {}", bytes(&content));
            }
            libc::S_IFLNK => line += &format!(" to {:?}", std::fs::read_link(&at).unwrap()),
            _ => {}
        }
        let world = World::new(root.to_owned());
        for (name, attribute) in ATTRIBUTES.iter().enumerate() {
            if let Ok(value) = world.call(&Call::GetXattr { path: text.to_owned(), name }) {
                line += &format!(" {attribute}={value}");
            }
        }
        found.insert(path.to_str().unwrap().to_owned(), line);
    }
    found
}
