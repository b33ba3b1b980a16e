//! Leaves a daemon behind, and tells the caller how it went.
//!
//! Promise: the caller's process ends only when the daemon has said that the mount is live, or why it is not; so an error
//! reaches the caller's stderr, and the exit code is right. The process is split before any thread exists, for a child
//! has only the thread that split it, with every lock the others held held for ever.
//! Called by: `mount`. On failure: `Exit::Unexpected` with the system's error.

use super::exit::{Exit, Failure};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const LIVE: &[u8] = b"live";

/// Which of the two one is.
pub enum Side {
    /// The process that the person started: it waits.
    Caller(Caller),
    /// The daemon: it works, and answers once.
    Daemon(Answer),
}

/// The caller's end of the pipe.
pub struct Caller(File);

/// The daemon's end of the pipe; nobody waits in the foreground.
pub struct Answer(Option<File>);

/// Splits off a daemon: two forks, so that it is no session leader and can never get a terminal.
pub fn split() -> Result<Side, Failure> {
    let (reader, writer) = pipe().map_err(|e| failed("pipe", &e))?;
    // SAFETY: no thread exists yet (`mount` calls this first), so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(failed("fork", &io::Error::last_os_error())),
        0 => {
            drop(reader);
            // SAFETY: a plain call; a child that was just forked leads no group, so it cannot fail.
            unsafe { libc::setsid() };
            // SAFETY: as above, there is one thread.
            match unsafe { libc::fork() } {
                0 => {
                    close_all_but(&writer);
                    Ok(Side::Daemon(Answer(Some(writer))))
                }
                -1 => {
                    let failure = failed("fork", &io::Error::last_os_error());
                    Answer(Some(writer)).failed(&failure);
                    leave(Exit::Unexpected)
                }
                _ => leave(Exit::Ok),
            }
        }
        child => {
            drop(writer);
            let mut status = 0;
            // SAFETY: `child` is ours, and `status` lives. It ends at once: only its own child stays.
            unsafe { libc::waitpid(child, &mut status, 0) };
            Ok(Side::Caller(Caller(reader)))
        }
    }
}

/// Lets go of whatever the caller had open (a passphrase's pipe, a script's lock), or it would stay open as long as the
/// mount. Standard input to error are left for now: an error before the mount is live must reach the caller.
pub fn close_all_but(kept: &File) {
    let kept = kept.as_raw_fd() as libc::c_uint;
    for (first, last) in [(3, kept.saturating_sub(1)), (kept.max(2) + 1, libc::c_uint::MAX)] {
        if first <= last {
            // SAFETY: there is one thread, and whatever owns another descriptor neither uses nor drops it again. An old
            // kernel refuses, and the descriptors stay open, which harms only tidiness.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

/// Ends without running what the other process will run too (buffers, destructors).
pub fn leave(exit: Exit) -> ! {
    // SAFETY: it does not return, and touches nothing.
    unsafe { libc::_exit(exit as i32) }
}

fn failed(what: &str, e: &io::Error) -> Failure {
    Failure::new(Exit::Unexpected, format!("cannot leave a daemon behind: {what}: {e}"))
}

/// A pipe's reading and writing end; no program that is run inherits them.
pub fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: the kernel fills two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us both.
    Ok(unsafe { (File::from(OwnedFd::from_raw_fd(ends[0])), File::from(OwnedFd::from_raw_fd(ends[1]))) })
}

impl Caller {
    /// Waits for the daemon's answer.
    pub fn wait(mut self) -> Result<(), Failure> {
        let mut told = Vec::new();
        self.0.read_to_end(&mut told).map_err(|e| failed("reading its answer", &e))?;
        match told.as_slice() {
            LIVE => Ok(()),
            [code, sentence @ ..] if Exit::from_u8(*code).is_some() => {
                let exit = Exit::from_u8(*code).unwrap_or(Exit::Unexpected);
                Err(Failure::new(exit, String::from_utf8_lossy(sentence)))
            }
            _ => Err(Failure::new(Exit::Unexpected, "the daemon died before the mount was live")),
        }
    }
}

impl Answer {
    /// An answer that nobody waits for: the mount stays in the foreground.
    pub fn nobody() -> Answer {
        Answer(None)
    }

    /// Says that the mount is live, and lets go of the terminal and of the working directory.
    pub fn live(self) -> io::Result<()> {
        let Some(mut pipe) = self.0 else { return Ok(()) };
        let null = open_null()?;
        for fd in 0..=2 {
            // SAFETY: both descriptors are open; the standard three are nobody's but ours.
            if unsafe { libc::dup2(null, fd) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if null > 2 {
            // SAFETY: ours, and not used again.
            unsafe { libc::close(null) };
        }
        std::env::set_current_dir("/")?;
        pipe.write_all(LIVE)
    }

    /// Says why there is no mount. A caller that has gone away needs no answer.
    pub fn failed(self, failure: &Failure) {
        if let Some(mut pipe) = self.0 {
            let mut told = vec![failure.exit as u8];
            told.extend_from_slice(failure.sentence.as_bytes());
            let _ = pipe.write_all(&told);
        }
    }
}

fn open_null() -> io::Result<i32> {
    const NULL: &CStr = c"/dev/null";
    // SAFETY: a terminated string.
    match unsafe { libc::open(NULL.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        fd => Ok(fd),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_reaches_the_caller() {
        let (reader, writer) = pipe().unwrap();
        Answer(Some(writer)).failed(&Failure::new(Exit::WrongKey, "/v: no"));
        let failure = Caller(reader).wait().unwrap_err();
        assert_eq!((failure.exit, failure.sentence.as_str()), (Exit::WrongKey, "/v: no"));
    }

    #[test]
    fn a_daemon_that_dies_silently_is_an_error() {
        let (reader, writer) = pipe().unwrap();
        drop(writer);
        assert_eq!(Caller(reader).wait().unwrap_err().exit, Exit::Unexpected);
    }

    #[test]
    fn live_is_no_error() {
        let (reader, mut writer) = pipe().unwrap();
        writer.write_all(LIVE).unwrap();
        drop(writer);
        Caller(reader).wait().unwrap();
        assert!(Exit::from_u8(LIVE[0]).is_none(), "the word must not begin like a code");
    }
}
