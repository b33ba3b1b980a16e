//! Opens what lies beneath one directory, and only what a vault has there: regular files and directories.
//!
//! Promise: whoever can change the backing directory gets no byte of ours written, read or removed outside it, and cannot
//! make us wait: a symbolic link is not followed, in no part of a path; a FIFO, a socket or a device is not opened; a file that has a
//! second name is not written to (`private` replaces it). Each is refused by one sentence that names it.
//! Why it holds: the kernel resolves (`openat2`, beneath the descriptor, no links); what a name is, is asked before the open
//! (opening some devices already does something) and of the descriptor after it (the name may have been exchanged since).
//! A kernel without `openat2` is walked part by part to the same end, and that is logged.
//! Called by: `dir`. On failure: the `io::Error` as it came, or the sentence.

use std::ffi::{CStr, CString};
use std::fmt;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Whether the kernel was found to have no `openat2`, or a filter around us to refuse it.
static WALKING: AtomicBool = AtomicBool::new(false);

/// What may be done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Reading only: what other names it has is nobody's business.
    Read,
    /// Writing too: what has another name would change there as well.
    Write,
}

/// A file that has other names, which a backup by hard links makes: writing to it would change the backup.
#[derive(Debug)]
pub(super) struct Shared {
    path: String,
    names: u64,
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { path, names } = self;
        write!(
            f,
            "{path} has {names} names (hard links), so that what is written to it would change elsewhere too: refused"
        )
    }
}

impl std::error::Error for Shared {}

/// Whether opening failed because the file has other names.
pub(super) fn is_shared(e: &io::Error) -> bool {
    e.get_ref().is_some_and(|cause| cause.is::<Shared>())
}

/// Opens a regular file; `flags` as for open(2), `use_of` is what they come to.
pub(super) fn file(top: BorrowedFd<'_>, path: &str, flags: i32, use_of: Use) -> io::Result<File> {
    // What is to be made has no kind yet; anything in its place is EEXIST.
    if flags & libc::O_EXCL == 0 {
        match kind(top, path) {
            Ok(kind) => regular(path, kind)?,
            // To be made, perhaps; else opening it says so.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(explained(top, path, e)),
        }
    }
    // Not even a FIFO that was put there this moment makes us wait, nor a terminal ours.
    let opened = open(top, path, flags | libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = opened.map_err(|e| if use_of == Use::Write { unwritable(path, e) } else { e })?;
    let meta = file.metadata()?;
    regular(path, std::os::unix::fs::MetadataExt::mode(&meta) & libc::S_IFMT)?;
    let names = std::os::unix::fs::MetadataExt::nlink(&meta);
    if use_of == Use::Write && names > 1 {
        return Err(io::Error::other(Shared { path: path.to_owned(), names }));
    }
    // Of a regular file it should mean nothing; what a network filesystem makes of it need not be learnt.
    // SAFETY: the descriptor is ours, and these flags may be set at any time.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & libc::O_DIRECT) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// The sentence for a file or directory without the right to write: what it is, and the way out.
fn unwritable(path: &str, e: io::Error) -> io::Error {
    if e.kind() != io::ErrorKind::PermissionDenied {
        return e;
    }
    let out = "give its owner the right to write (chmod u+w), or mount with -o ro";
    io::Error::new(e.kind(), format!("{path} in the vault may not be written to: {e}; {out}"))
}

/// Opens a directory; `""` is the top.
pub(super) fn directory(top: BorrowedFd<'_>, path: &str) -> io::Result<File> {
    open(top, if path.is_empty() { "." } else { path }, libc::O_RDONLY | libc::O_DIRECTORY)
}

/// The directory that a path's last part lies in (`None`: the top), and that part.
pub(super) fn parent(top: BorrowedFd<'_>, path: &str) -> io::Result<(Option<File>, CString)> {
    let (dir, name) = match path.rsplit_once('/') {
        None => (None, path),
        Some((dir, name)) => (Some(directory(top, dir)?), name),
    };
    Ok((dir, part(name)?))
}

/// The names in a directory, those that are not UTF-8 left out: they are none of ours.
pub(super) fn names(dir: File) -> io::Result<Vec<String>> {
    let fd = dir.into_raw_fd();
    // SAFETY: the descriptor is a directory's and ours alone; the stream owns it from here on.
    let stream = unsafe { libc::fdopendir(fd) };
    if stream.is_null() {
        let e = io::Error::last_os_error();
        // SAFETY: no stream took it, so it is still ours.
        drop(unsafe { File::from_raw_fd(fd) });
        return Err(e);
    }
    let mut names = Vec::new();
    let read = loop {
        // SAFETY: errno is this thread's own. Only it tells the end from an error.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: the stream is open, and used by this thread only.
        let entry = unsafe { libc::readdir64(stream) };
        if entry.is_null() {
            let e = io::Error::last_os_error();
            break if e.raw_os_error() == Some(0) { Ok(()) } else { Err(e) };
        }
        // SAFETY: an entry's name is terminated, and stays until the next is read.
        let name = unsafe { CStr::from_ptr((*entry).d_name.as_ptr()) };
        match name.to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    };
    // SAFETY: the stream is open, and not used again.
    unsafe { libc::closedir(stream) };
    read.map(|()| names)
}

/// Opens by a path of which no part is a link.
fn open(top: BorrowedFd<'_>, path: &str, flags: i32) -> io::Result<File> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    let opened = if WALKING.load(Relaxed) {
        walk(top, path, flags)
    } else {
        match resolve(top, path, flags) {
            // No such call; or a filter around us that does not know it (which an immutable file looks like, too).
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                let walked = walk(top, path, flags);
                if walked.is_ok() && !WALKING.swap(true, Relaxed) {
                    log::warn!("openat2: {e}: paths of the vault are walked part by part instead");
                }
                walked
            }
            opened => opened,
        }
    };
    opened.map_err(|e| explained(top, path, e))
}

fn resolve(top: BorrowedFd<'_>, path: &str, flags: i32) -> io::Result<File> {
    let path = CString::new(path)?;
    // SAFETY: plain numbers, for which zero is a value.
    let mut how: libc::open_how = unsafe { MaybeUninit::zeroed().assume_init() };
    how.flags = flags as u64;
    how.mode = if flags & libc::O_CREAT == 0 { 0 } else { 0o600 };
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;
    again(|| {
        // SAFETY: the descriptor is open, the path terminated, and `how` lives with its true size.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                top.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        fd as i32
    })
}

fn walk(top: BorrowedFd<'_>, path: &str, flags: i32) -> io::Result<File> {
    let mut at: Option<File> = None;
    let mut parts = path.split('/').peekable();
    while let Some(name) = parts.next() {
        let last = parts.peek().is_none();
        // The top itself, and nothing else that is not a plain name.
        let name = if path == "." { c".".to_owned() } else { part(name)? };
        let here = at.as_ref().map_or(top.as_raw_fd(), AsRawFd::as_raw_fd);
        let way = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let flags = if last { flags } else { way };
        // SAFETY: the descriptor is open and the name terminated.
        at = Some(again(|| unsafe { libc::openat(here, name.as_ptr(), flags, 0o600) })?);
    }
    at.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Calls until no signal interrupts.
fn again(mut call: impl FnMut() -> i32) -> io::Result<File> {
    loop {
        match call() {
            -1 => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
            // SAFETY: the kernel just gave us this descriptor.
            fd => return Ok(unsafe { File::from_raw_fd(fd) }),
        }
    }
}

/// One part of a path, which leads nowhere else.
fn part(name: &str) -> io::Result<CString> {
    match name {
        "" | "." | ".." => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("'{name}' is no name in a vault"))),
        name => Ok(CString::new(name)?),
    }
}

/// The file type of what a path names; a link is a link.
fn kind(top: BorrowedFd<'_>, path: &str) -> io::Result<u32> {
    let path = CString::new(path)?;
    let mut meta = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the descriptor is open, the path terminated, and the kernel fills `meta`.
    if unsafe { libc::fstatat(top.as_raw_fd(), path.as_ptr(), meta.as_mut_ptr(), libc::AT_SYMLINK_NOFOLLOW) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it is filled.
    Ok(unsafe { meta.assume_init() }.st_mode & libc::S_IFMT)
}

fn regular(path: &str, kind: u32) -> io::Result<()> {
    match kind {
        libc::S_IFREG => Ok(()),
        kind => Err(stranger(path, kind)),
    }
}

fn stranger(path: &str, kind: u32) -> io::Error {
    let what = match kind {
        libc::S_IFLNK => "a symbolic link",
        libc::S_IFIFO => "a FIFO",
        libc::S_IFSOCK => "a socket",
        libc::S_IFCHR | libc::S_IFBLK => "a device",
        libc::S_IFDIR => "a directory",
        _ => "no regular file",
    };
    io::Error::other(format!("{path} is {what}, which a vault does not have there: refused"))
}

/// An error that comes of something planted in the way, as the sentence that names it.
fn explained(top: BorrowedFd<'_>, path: &str, e: io::Error) -> io::Error {
    if !matches!(e.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR | libc::ENXIO)) {
        return e;
    }
    let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
    for end in ends {
        match kind(top, &path[..end]) {
            Ok(libc::S_IFDIR) => {}
            Ok(libc::S_IFREG) if end == path.len() => {}
            Ok(kind) => return stranger(&path[..end], kind),
            Err(_) => break,
        }
    }
    e
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::path::Path;

    fn plant(dir: &Path) {
        let at = |name: &str| dir.join(name);
        std::fs::create_dir(at("s")).unwrap();
        for name in ["s/good", "s/first"] {
            std::fs::write(at(name), "text").unwrap();
        }
        std::fs::hard_link(at("s/first"), at("s/second")).unwrap();
        std::os::unix::fs::symlink("good", at("s/link")).unwrap();
        std::os::unix::fs::symlink("s", at("way")).unwrap();
        std::os::unix::fs::symlink("/etc", at("out")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(at("s/socket")).unwrap();
        drop(socket);
        let fifo = CString::new(at("s/fifo").to_str().unwrap()).unwrap();
        // SAFETY: a terminated string.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    }

    #[test]
    fn what_is_planted_is_refused_by_name_with_and_without_openat2() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        plant(temporary.path());
        let top = File::open(temporary.path()).unwrap();
        let look = |path: &str, use_of| match use_of {
            Use::Read => file(top.as_fd(), path, libc::O_RDONLY, use_of),
            Use::Write => file(top.as_fd(), path, libc::O_RDWR, use_of),
        };
        for walking in [false, true] {
            WALKING.store(walking, Relaxed);
            for use_of in [Use::Read, Use::Write] {
                look("s/good", use_of).expect("an honest file");
                for (path, what) in [
                    ("s/link", "s/link is a symbolic link"),
                    ("way/good", "way is a symbolic link"),
                    ("out/passwd", "out is a symbolic link"),
                    ("s/fifo", "s/fifo is a FIFO"),
                    ("s/socket", "s/socket is a socket"),
                    ("s", "s is a directory"),
                    ("s/good/x", "s/good is no regular file"),
                ] {
                    let said = look(path, use_of).expect_err(path).to_string();
                    let named = said.starts_with(what) || path == "s/good/x";
                    assert!(named, "walking {walking}: {path}: {said}");
                }
            }
            assert!(look("s/second", Use::Read).is_ok(), "reading harms no other name");
            let said = look("s/second", Use::Write).expect_err("two names").to_string();
            assert!(said.starts_with("s/second has 2 names"), "{said}");
            let gone = look("s/none", Use::Read).expect_err("nothing is there");
            assert_eq!(gone.kind(), io::ErrorKind::NotFound);
            for outside in ["../x", "/etc/passwd", "s/../../x", ""] {
                assert!(look(outside, Use::Read).is_err(), "walking {walking}: {outside}");
            }
            assert!(directory(top.as_fd(), "way").is_err() && parent(top.as_fd(), "way/good").is_err());
            assert_eq!(names(directory(top.as_fd(), "").unwrap()).unwrap().len(), 3);
        }
        WALKING.store(false, Relaxed);
    }
}
