//! A real directory on Linux.
//!
//! Promise: every path is opened beneath one directory descriptor; direct I/O where the filesystem takes it, decided per
//! file when it is opened. Called by: `vault` and `check` through the trait. On failure: the `io::Error` as it came.

use super::{Backing, BackingFile, Cache, Open, Space};
use crate::base::limits::BLOCK_BYTES;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// A directory, held open.
pub struct DirBacking {
    dir: OwnedFd,
}

impl DirBacking {
    /// Opens an existing directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(DirBacking { dir: file.into() })
    }

    fn open_fd(&self, path: &str, flags: i32) -> io::Result<File> {
        let name = CString::new(path)?;
        let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
        // SAFETY: the descriptor is ours and `name` is a terminated string.
        let fd = unsafe { libc::openat(self.dir.as_raw_fd(), name.as_ptr(), flags, 0o600) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor.
        Ok(unsafe { File::from_raw_fd(fd) })
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Backing for DirBacking {
    fn open(&self, path: &str, how: Open, cache: Cache) -> io::Result<Arc<dyn BackingFile>> {
        let flags = match how {
            Open::Read => libc::O_RDONLY,
            Open::Write => libc::O_RDWR,
            Open::Create => libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
        };
        if cache == Cache::Direct {
            match self.open_fd(path, flags | libc::O_DIRECT) {
                Ok(file) => return Ok(Arc::new(DirFile { file, direct: true })),
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
        let file = self.open_fd(path, flags)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path} is not a regular file")));
        }
        Ok(Arc::new(DirFile { file, direct: false }))
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        let name = CString::new(path)?;
        // SAFETY: the descriptor is ours and `name` is a terminated string.
        check(unsafe { libc::mkdirat(self.dir.as_raw_fd(), name.as_ptr(), 0o700) })
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let dir = self.open_fd(if path.is_empty() { "." } else { path }, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let through_proc = format!("/proc/self/fd/{}", dir.as_raw_fd());
        let mut names = Vec::new();
        for entry in std::fs::read_dir(through_proc)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to, dir) = (CString::new(from)?, CString::new(to)?, self.dir.as_raw_fd());
        // SAFETY: the descriptor is ours and both names are terminated strings.
        check(unsafe { libc::renameat(dir, from.as_ptr(), dir, to.as_ptr()) })
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let name = CString::new(path)?;
        // SAFETY: the descriptor is ours and `name` is a terminated string.
        check(unsafe { libc::unlinkat(self.dir.as_raw_fd(), name.as_ptr(), 0) })
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.open_fd(if path.is_empty() { "." } else { path }, libc::O_RDONLY | libc::O_DIRECTORY)?.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let mut s = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: the descriptor is ours and the kernel fills `s`.
        check(unsafe { libc::fstatvfs(self.dir.as_raw_fd(), s.as_mut_ptr()) })?;
        // SAFETY: the call succeeded, so it is filled.
        let s = unsafe { s.assume_init() };
        Ok(Space { total_bytes: s.f_blocks * s.f_frsize, free_bytes: s.f_bavail * s.f_frsize })
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        let (file, writable) = match self.open_fd(path, libc::O_RDWR | libc::O_CREAT) {
            // On a medium that nobody can write to, the lock keeps out whoever reads it as we do; it cannot name us.
            Err(e) if e.raw_os_error() == Some(libc::EROFS) => (self.open_fd(path, libc::O_RDONLY)?, false),
            file => (file?, true),
        };
        // SAFETY: the descriptor is ours.
        check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })?;
        if !writable {
            return Ok(Box::new(file));
        }
        let holder = format!("{}\n", std::process::id());
        // Written over before it is cut, so that a full disk has the block that it needs.
        file.write_all_at(holder.as_bytes(), 0)?;
        file.set_len(holder.len() as u64)?;
        Ok(Box::new(file))
    }
}

struct DirFile {
    file: File,
    direct: bool,
}

impl BackingFile for DirFile {
    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while !buf.is_empty() {
            match self.file.read_at(buf, offset) {
                Ok(0) => break,
                Ok(n) => {
                    done += n;
                    offset += n as u64;
                    buf = &mut buf[n..];
                    // Direct I/O cannot go on from the middle of a block: only the end of the file stops there.
                    if self.direct && n % BLOCK_BYTES != 0 {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn read_device(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.direct {
            self.file.sync_data()?;
            let (from, len) = (offset as libc::off_t, buf.len() as libc::off_t);
            // SAFETY: the descriptor is ours.
            let e = unsafe { libc::posix_fadvise(self.file.as_raw_fd(), from, len, libc::POSIX_FADV_DONTNEED) };
            if e != 0 {
                return Err(io::Error::from_raw_os_error(e));
            }
        }
        self.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        // SAFETY: the descriptor is ours.
        match check(unsafe { libc::fallocate(self.file.as_raw_fd(), 0, 0, len as libc::off_t) }) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the descriptor is ours.
        check(unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) })
    }

    fn is_direct(&self) -> bool {
        self.direct
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
    fn a_second_lock_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let b = DirBacking::open(dir.path()).unwrap();
        let held = b.lock("lock").unwrap();
        assert_eq!(b.lock("lock").err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        assert!(b.lock("lock").is_ok());
    }

    #[test]
    fn a_symlink_in_place_of_a_file_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("x")).unwrap();
        let b = DirBacking::open(dir.path()).unwrap();
        assert!(b.open("x", Open::Read, Cache::Buffered).is_err());
    }
}
