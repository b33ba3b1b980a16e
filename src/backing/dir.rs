//! A real directory on Linux.
//!
//! Promise: every path is opened beneath one directory descriptor, and nothing but regular files and directories (`beneath`);
//! direct I/O where the filesystem takes it, decided per file when it is opened. Called by: `vault` and `check` through the
//! trait, `cli` to begin with. On failure: the `io::Error` as it came.

use super::beneath::{self, Use};
use super::direct::Directness;
use super::{Backing, BackingFile, Cache, Open, Space, private};
use crate::base::limits::BLOCK_BYTES;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

/// How often the lock is tried where others replace its file meanwhile.
const LOCK_TRIES: usize = 100;
/// How often a lock that somebody has is waited for, for this long each. One that was given up may last a moment longer: a process
/// that was just being started has a copy of the open file until it executes its program.
const LOCK_WAITS: u32 = 50;
const LOCK_WAIT: Duration = Duration::from_millis(5);

/// A directory, held open.
pub struct DirBacking {
    dir: OwnedFd,
    /// Whether a file here was opened for direct I/O and then refused it.
    refuses_direct: Arc<AtomicBool>,
}

impl DirBacking {
    /// Opens an existing directory, by a path that a person chose: its links are followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let dir = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)?;
        Ok(DirBacking::of(dir.into()))
    }

    /// Opens a directory in this one; a link in its place is refused.
    pub fn inside(&self, name: &str) -> io::Result<Self> {
        Ok(DirBacking::of(beneath::directory(self.top(), name)?.into()))
    }

    fn of(dir: OwnedFd) -> DirBacking {
        DirBacking { dir, refuses_direct: Arc::default() }
    }

    pub(super) fn top(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Calls with the directory that a path's last part lies in, and that part.
    fn in_parent(&self, path: &str, call: impl FnOnce(i32, &CString) -> i32) -> io::Result<()> {
        let (dir, name) = beneath::parent(self.top(), path)?;
        check(call(dir.as_ref().map_or(self.dir.as_raw_fd(), AsRawFd::as_raw_fd), &name))
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks for some of a file's attributes. Not for its times: after those of a file that is being written were asked for, the
/// kernel gives the next change a time from its fine clock, and its coarse clock follows on every filesystem. Then each write
/// through the mount has another time, which the kernel hands over before each fsync (measured: a request more for each).
fn look(file: &File, what: u32) -> io::Result<libc::statx> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is the file's, the path is terminated, and the kernel fills `found`.
    check(unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, what, found.as_mut_ptr()) })?;
    // SAFETY: it was filled, and zeros are a value of it.
    Ok(unsafe { found.assume_init() })
}

impl DirBacking {
    /// Opens a file, and says whether for direct I/O. One that has other names is replaced by a copy before it is written to.
    pub(super) fn open_file(&self, path: &str, how: Open, cache: Cache) -> io::Result<(File, bool)> {
        match self.open_as(path, how, cache) {
            Err(e) if how == Open::Write && beneath::is_shared(&e) => {
                private::unshare(self.top(), path)?;
                self.open_as(path, how, cache)
            }
            Err(e) if how == Open::WriteUnshared && beneath::is_shared(&e) => {
                // A number, which also comes through where another process opens the file.
                Err(io::Error::from_raw_os_error(libc::EBUSY))
            }
            opened => opened,
        }
    }

    fn open_as(&self, path: &str, how: Open, cache: Cache) -> io::Result<(File, bool)> {
        let (flags, use_of) = match how {
            Open::Read => (libc::O_RDONLY, Use::Read),
            Open::Write | Open::WriteUnshared => (libc::O_RDWR, Use::Write),
            Open::Create => (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, Use::Write),
        };
        if cache == Cache::Direct && !self.refuses_direct.load(SeqCst) {
            match beneath::file(self.top(), path, flags | libc::O_DIRECT, use_of) {
                Ok(file) => return Ok((file, true)),
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
                Err(e) => return Err(e),
            }
            // A filesystem without O_DIRECT may have made the file before it refused.
            if how == Open::Create {
                match self.remove(path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        }
        Ok((beneath::file(self.top(), path, flags, use_of)?, false))
    }

    /// Takes the lock file in the name of a process; the lock lives as long as the file is open.
    pub(super) fn lock_file(&self, path: &str, process: u32) -> io::Result<File> {
        for _ in 0..LOCK_TRIES {
            let open = |flags, use_of| beneath::file(self.top(), path, flags, use_of);
            let (file, state) = match open(libc::O_RDWR | libc::O_CREAT, Use::Write) {
                // On a medium that nobody can write to, or in a vault that may only be read, the lock keeps out whoever
                // reads it as we do; it cannot name us.
                Err(e) if matches!(e.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) => {
                    (open(libc::O_RDONLY, Use::Read).map_err(|_| e)?, LockFile::ReadOnly)
                }
                Err(e) if beneath::is_shared(&e) => (open(libc::O_RDONLY, Use::Read)?, LockFile::Shared),
                file => (file?, LockFile::Own),
            };
            let mut waits = LOCK_WAITS;
            while !private::try_lock(&file)? {
                waits = waits.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
                std::thread::sleep(LOCK_WAIT);
            }
            // Somebody may have put another file there between the two calls; then that one counts.
            if !private::is_at(self.top(), path, &file)? {
                continue;
            }
            return match state {
                LockFile::ReadOnly => Ok(file),
                LockFile::Own => name_holder(file, process),
                // A backup by hard links has the same file, and its lock is not ours.
                LockFile::Shared => match private::replace(self.top(), path, |_| Ok(())) {
                    Ok(file) => name_holder(file, process),
                    Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(file),
                    Err(e) => Err(e),
                },
            };
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// What a lock can be taken of.
enum LockFile {
    /// A file of this vault alone, which names its holder.
    Own,
    /// One that only can be read.
    ReadOnly,
    /// One that has other names.
    Shared,
}

/// Writes into a lock that is held who holds it.
fn name_holder(file: File, process: u32) -> io::Result<File> {
    let holder = format!("{}\n", process);
    // Written over before it is cut, so that a full disk has the block that it needs.
    file.write_all_at(holder.as_bytes(), 0)?;
    file.set_len(holder.len() as u64)?;
    Ok(file)
}

/// Room on the filesystem of a directory.
pub(super) fn space_of(dir: BorrowedFd<'_>) -> io::Result<Option<Space>> {
    let mut s = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the descriptor is open and the kernel fills `s`.
    check(unsafe { libc::fstatvfs(dir.as_raw_fd(), s.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it is filled.
    let s = unsafe { s.assume_init() };
    let space = Space {
        total_bytes: s.f_blocks * s.f_frsize,
        free_bytes: s.f_bavail * s.f_frsize,
        free_inodes: if s.f_files > 0 { s.f_favail } else { u64::MAX },
    };
    // A filesystem without blocks is none that is full: FUSE filesystems without a `statfs` answer so.
    Ok((space.total_bytes > 0).then_some(space))
}

/// The device and inode of a directory.
pub(super) fn identity_of(dir: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let meta = File::from(dir.try_clone_to_owned()?).metadata()?;
    Ok((meta.dev(), meta.ino()))
}

impl Backing for DirBacking {
    fn open(&self, path: &str, how: Open, cache: Cache) -> io::Result<Arc<dyn BackingFile>> {
        let (file, direct) = self.open_file(path, how, cache)?;
        Ok(Arc::new(DirFile::new(file, direct, &self.refuses_direct)))
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        // SAFETY: the descriptor is open and the name terminated.
        self.in_parent(path, |dir, name| unsafe { libc::mkdirat(dir, name.as_ptr(), 0o700) })
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = beneath::names(beneath::directory(self.top(), path)?)?;
        names.sort_unstable();
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (to_dir, to) = beneath::parent(self.top(), to)?;
        let to_fd = to_dir.as_ref().map_or(self.dir.as_raw_fd(), AsRawFd::as_raw_fd);
        // SAFETY: both descriptors are open and both names terminated.
        self.in_parent(from, |dir, from| unsafe { libc::renameat(dir, from.as_ptr(), to_fd, to.as_ptr()) })
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        // SAFETY: the descriptor is open and the name terminated.
        self.in_parent(path, |dir, name| unsafe { libc::unlinkat(dir, name.as_ptr(), 0) })
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        beneath::directory(self.top(), path)?.sync_all()
    }

    fn space(&self) -> io::Result<Option<Space>> {
        space_of(self.top())
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        Ok(Box::new(self.lock_file(path, std::process::id())?))
    }

    fn identity(&self) -> io::Result<Option<(u64, u64)>> {
        identity_of(self.top()).map(Some)
    }
}

/// An open file of a directory.
pub(super) struct DirFile {
    file: File,
    directness: Directness,
}

impl DirFile {
    pub(super) fn new(file: File, direct: bool, refused: &Arc<AtomicBool>) -> DirFile {
        DirFile { file, directness: Directness::new(direct, refused) }
    }

    /// Makes a read or write, through the page cache if the filesystem refuses to do it directly.
    fn attempt<T>(&self, call: impl FnMut(bool) -> io::Result<T>) -> io::Result<T> {
        // SAFETY: the descriptor is ours, and the flag may be cleared at any time.
        self.directness.attempt(call, || check(unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETFL, 0) }))
    }

    fn read_all(&self, mut buf: &mut [u8], mut offset: u64, direct: bool) -> io::Result<usize> {
        let mut done = 0;
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    offset += n as u64;
                    buf = &mut buf[n..];
                    // Direct I/O cannot go on from the middle of a block: only the end of the file stops there.
                    if direct && n % BLOCK_BYTES != 0 {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

impl BackingFile for DirFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.attempt(|direct| self.read_all(buf, offset, direct))
    }

    fn read_device(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.attempt(|direct| {
            if !direct {
                self.file.sync_data()?;
                let (from, len) = (offset as libc::off_t, buf.len() as libc::off_t);
                // SAFETY: the descriptor is ours.
                let e = unsafe { libc::posix_fadvise(self.file.as_raw_fd(), from, len, libc::POSIX_FADV_DONTNEED) };
                if e != 0 {
                    return Err(io::Error::from_raw_os_error(e));
                }
            }
            self.read_all(buf, offset, direct)
        })
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.attempt(|_| self.file.write_all_at(buf, offset))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(look(&self.file, libc::STATX_SIZE)?.stx_size)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        // Only what it lacks: XFS asks for as much free space as the range has bytes, also where the file has them
        // already, and what was punched is not to be taken again.
        let from = self.file.metadata()?.len();
        if from >= len {
            return Ok(());
        }
        let (at, more) = (from as libc::off_t, (len - from) as libc::off_t);
        // SAFETY: the descriptor is ours.
        match check(unsafe { libc::fallocate(self.file.as_raw_fd(), 0, at, more) }) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is ours.
        check(unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) })
    }

    fn taken_bytes(&self) -> io::Result<u64> {
        // In units of 512 bytes, whatever the filesystem's block.
        Ok(look(&self.file, libc::STATX_BLOCKS)?.stx_blocks * 512)
    }

    fn links(&self) -> io::Result<u64> {
        Ok(look(&self.file, libc::STATX_NLINK)?.stx_nlink.into())
    }

    fn identity(&self) -> io::Result<Option<(u64, u64)>> {
        let found = look(&self.file, libc::STATX_INO)?;
        Ok(Some((libc::makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino)))
    }

    fn is_direct(&self) -> bool {
        self.directness.is_direct()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::AlignedBuf;

    #[test]
    fn what_is_written_directly_is_read_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let b = DirBacking::open(dir.path()).unwrap();
        b.make_dir("s").unwrap();
        let f = b.open("s/1", Open::Create, Cache::Direct).unwrap();
        f.preallocate(1 << 20).unwrap();
        let mut out = AlignedBuf::with_capacity(8192);
        out.extend_from_slice(&[7; 5000]);
        out.pad();
        f.write_all_at(&out, 4096).unwrap();
        f.sync_data().unwrap();
        let mut back = AlignedBuf::with_capacity(8192);
        back.set_len(8192);
        assert_eq!(f.read_device(&mut back, 4096).unwrap(), 8192);
        assert_eq!(back[..], out[..]);
        assert_eq!(b.list("s").unwrap(), ["1"]);
        assert_eq!(b.open("s/1", Open::Create, Cache::Direct).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn taking_more_room_does_not_take_again_what_was_given_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let b = DirBacking::open(dir.path()).unwrap();
        let f = b.open("f", Open::Create, Cache::Buffered).unwrap();
        f.preallocate(2 << 20).unwrap();
        f.punch(0, 1 << 20).unwrap();
        f.preallocate(3 << 20).unwrap();
        assert_eq!((f.len().unwrap(), f.taken_bytes().unwrap() >> 20), (3 << 20, 2));
    }

    #[test]
    fn a_second_lock_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let b = DirBacking::open(dir.path()).unwrap();
        let held = b.lock("lock").unwrap();
        assert_eq!(b.lock("lock").err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        assert!(b.lock("lock").is_ok());
    }

    #[test]
    fn what_lies_behind_a_link_is_neither_listed_nor_removed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let other = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(other.path().join("x"), "theirs").unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("segments")).unwrap();
        let b = DirBacking::open(dir.path()).unwrap();
        b.open("here", Open::Create, Cache::Buffered).unwrap();
        assert!(b.open("segments/x", Open::Read, Cache::Buffered).is_err());
        assert!(b.remove("segments/x").is_err() && b.rename("here", "segments/x").is_err());
        assert!(b.list("segments").is_err() && b.sync_dir("segments").is_err() && b.make_dir("segments/d").is_err());
        assert!(b.inside("segments").is_err());
        assert_eq!(std::fs::read(other.path().join("x")).unwrap(), b"theirs");
        b.remove("segments").expect("the link itself may go");
    }
}
