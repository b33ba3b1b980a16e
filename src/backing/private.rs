//! Replaces a file that has other names by a copy of its own, so that what is written to it changes nothing elsewhere.
//!
//! Promise: the other names keep what they have, byte for byte; under this name lies the old content at every moment, also
//! after a crash; nothing is ever written to a file with two names. Holes stay holes. A file that somebody holds the lock of
//! is not replaced, or two would hold it.
//! Why it is needed: backups by hard links (`cp -al`, rsnapshot, timeshift) share every file with the vault.
//! Called by: `dir`. On failure: a sentence that names the file and the way out; the copy that was begun is removed.

use super::beneath::{self, Use};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Bytes copied at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Gives the file at `path` an inode of its own.
pub(super) fn unshare(top: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let source = beneath::file(top, path, libc::O_RDONLY, Use::Read)?;
    if !try_lock(&source)? {
        return Err(io::Error::other(format!(
            "{path} has other names (hard links), and is locked: it is left as it is"
        )));
    }
    let copied = replace(top, path, |target| copy(&source, target)).map(drop);
    copied.map_err(|e| {
        let len = source.metadata().map_or(0, |meta| meta.len());
        let way = "make room, or take the other names away (a backup with cp -a has none)";
        io::Error::new(
            e.kind(),
            format!("{path} has other names (hard links), and a copy of its {len} bytes could not be made: {e}; {way}"),
        )
    })?;
    log::info!(
        "{path} had other names, as after a backup by hard links: it was replaced by a copy, and they are as they were"
    );
    Ok(())
}

/// Puts a new file in the place of `path`, once it has been filled and is durable; returns it, open and locked.
pub(super) fn replace(top: BorrowedFd<'_>, path: &str, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<File> {
    let temporary = format!("{path}.private");
    let (dir, old) = beneath::parent(top, &temporary)?;
    let new = beneath::parent(top, path)?.1;
    let at = dir.as_ref().map_or(top.as_raw_fd(), AsRawFd::as_raw_fd);
    // What a crash left, if anything.
    remove(at, &old);
    let target = beneath::file(top, &temporary, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, Use::Write)?;
    let made = || {
        if !try_lock(&target)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        fill(&target)?;
        target.sync_all()?;
        // SAFETY: the descriptor is open and both names are terminated.
        match unsafe { libc::renameat(at, old.as_ptr(), at, new.as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    if let Err(e) = made() {
        remove(at, &old);
        return Err(e);
    }
    match &dir {
        Some(dir) => dir.sync_all()?,
        None => beneath::directory(top, "")?.sync_all()?,
    }
    Ok(target)
}

fn remove(dir: i32, name: &CString) {
    // SAFETY: the descriptor is open and the name terminated. One that is not there needs no removing.
    unsafe { libc::unlinkat(dir, name.as_ptr(), 0) };
}

/// Takes a file's lock; false if somebody else has it.
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is ours.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        e => Err(e),
    }
}

/// Whether a path still names this file.
pub(super) fn is_at(top: BorrowedFd<'_>, path: &str, file: &File) -> io::Result<bool> {
    let now = match beneath::file(top, path, libc::O_RDONLY, Use::Read) {
        Ok(now) => now.metadata()?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let held = file.metadata()?;
    Ok((now.dev(), now.ino()) == (held.dev(), held.ino()))
}

fn copy(source: &File, target: &File) -> io::Result<()> {
    let len = source.metadata()?.len();
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    while at < len {
        // Without either word for holes all of it is data.
        let from = seek(source, at, libc::SEEK_DATA).unwrap_or(Some(at));
        let Some(from) = from.filter(|from| *from < len) else { break };
        let to = seek(source, from, libc::SEEK_HOLE).ok().flatten().unwrap_or(len).min(len);
        at = from;
        while at < to {
            let want = piece.len().min((to - at) as usize);
            let got = match source.read_at(&mut piece[..want], at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            target.write_all_at(&piece[..got], at)?;
            at += got as u64;
        }
    }
    target.set_len(len)
}

/// The next byte of a kind; `None` if there is none.
fn seek(file: &File, from: u64, what: i32) -> io::Result<Option<u64>> {
    // SAFETY: the descriptor is ours; nothing else goes by its position.
    match unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, what) } {
        -1 => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            e => Err(e),
        },
        at => Ok(Some(at as u64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_other_name_keeps_its_bytes_and_the_copy_its_holes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("s")).unwrap();
        let (ours, theirs) = (dir.path().join("s/1"), dir.path().join("theirs"));
        let file = File::create(&ours).unwrap();
        file.write_all_at(&[7; 5000], 0).unwrap();
        file.write_all_at(&[8; 3 << 20], 8 << 20).unwrap();
        file.set_len(64 << 20).unwrap();
        std::fs::hard_link(&ours, &theirs).unwrap();
        std::fs::write(dir.path().join("s/1.private"), "of a crash").unwrap();
        let before = std::fs::read(&theirs).unwrap();
        let top = File::open(dir.path()).unwrap();
        unshare(top.as_fd(), "s/1").unwrap();
        let (mine, other) = (std::fs::metadata(&ours).unwrap(), std::fs::metadata(&theirs).unwrap());
        assert!(mine.ino() != other.ino() && (mine.nlink(), other.nlink()) == (1, 1));
        assert!(std::fs::read(&ours).unwrap() == before && std::fs::read(&theirs).unwrap() == before);
        assert!(mine.blocks() * 512 < 8 << 20, "holes stay holes: {} blocks", mine.blocks());
        assert_eq!(std::fs::read_dir(dir.path().join("s")).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn what_is_locked_is_not_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (ours, theirs) = (dir.path().join("lock"), dir.path().join("theirs"));
        std::fs::write(&ours, "1").unwrap();
        std::fs::hard_link(&ours, &theirs).unwrap();
        let held = File::open(&theirs).unwrap();
        assert!(try_lock(&held).unwrap());
        let top = File::open(dir.path()).unwrap();
        let said = unshare(top.as_fd(), "lock").unwrap_err().to_string();
        assert!(said.contains("locked"), "{said}");
        assert!(is_at(top.as_fd(), "lock", &held).unwrap());
    }
}
