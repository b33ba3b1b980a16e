//! Leaves a daemon behind, and tells the caller how it went.
//!
//! Promise: the caller's process ends only when the daemon has said that the mount is live, or why it is not; so an error
//! reaches the caller's stderr, and the exit code is right. The process is split before any thread exists, for a child
//! has only the thread that split it, with every lock the others held held for ever; and before the key is read, for the daemon
//! splits again, into itself and a process that must never have seen a key (`mounter`). The caller reads it, and hands it over.
//! Called by: `mount`. On failure: `Exit::Unexpected` with the system's error.

use super::exit::{Exit, Failure};
use super::key;
use crate::seal::Unlock;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const LIVE: &[u8] = b"live";

/// Which of the two one is.
pub enum Side {
    /// The process that the person started: it waits.
    Caller(Caller),
    /// The daemon: it works, and answers once. The key comes through the file.
    Daemon(Answer, File),
}

/// The caller's ends: where the answer comes from, and where the key goes.
pub struct Caller {
    answer: File,
    key: File,
}

/// The daemon's end of the pipe, and what takes the terminal's place once it has answered; nobody waits in the foreground.
pub struct Answer(Option<(File, File)>);

/// Splits off a daemon: two forks, so that it is no session leader and can never get a terminal.
pub fn split() -> Result<Side, Failure> {
    let (reader, writer) = pipe().map_err(|e| failed("pipe", &e))?;
    let (key, key_in) = pipe().map_err(|e| failed("pipe", &e))?;
    // SAFETY: no thread exists yet (`mount` calls this first), so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(failed("fork", &io::Error::last_os_error())),
        0 => {
            drop((reader, key_in));
            // SAFETY: a plain call; a child that was just forked leads no group, so it cannot fail.
            unsafe { libc::setsid() };
            // SAFETY: as above, there is one thread.
            match unsafe { libc::fork() } {
                0 => {
                    close_all_but(&[writer.as_raw_fd(), key.as_raw_fd()]);
                    match open_null() {
                        Ok(null) => Ok(Side::Daemon(Answer(Some((writer, null))), key)),
                        Err(e) => refuse(writer, &failed("/dev/null", &e)),
                    }
                }
                -1 => refuse(writer, &failed("fork", &io::Error::last_os_error())),
                _ => leave(Exit::Ok),
            }
        }
        child => {
            drop((writer, key));
            let mut status = 0;
            // SAFETY: `child` is ours, and `status` lives. It ends at once: only its own child stays.
            unsafe { libc::waitpid(child, &mut status, 0) };
            Ok(Side::Caller(Caller { answer: reader, key: key_in }))
        }
    }
}

/// Lets go of whatever the caller had open (a passphrase's pipe, a script's lock), or it would stay open as long as the
/// mount. Standard input to error are left for now: an error before the mount is live must reach the caller.
pub fn close_all_but(kept: &[RawFd]) {
    let mut kept: Vec<libc::c_uint> = kept.iter().filter(|fd| **fd > 2).map(|fd| *fd as libc::c_uint).collect();
    kept.sort_unstable();
    let mut first = 3;
    for next in kept.into_iter().map(Some).chain([None]) {
        let last = next.map_or(libc::c_uint::MAX, |next| next - 1);
        if first <= last {
            // SAFETY: there is one thread, and whatever owns another descriptor neither uses nor drops it again. An old
            // kernel refuses, and the descriptors stay open, which harms only tidiness.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
        first = next.map_or(first, |next| next + 1);
    }
}

/// Ends without running what the other process will run too (buffers, destructors).
pub fn leave(exit: Exit) -> ! {
    // SAFETY: it does not return, and touches nothing.
    unsafe { libc::_exit(exit as i32) }
}

/// The answer of a daemon that does not come to be.
fn refuse(writer: File, failure: &Failure) -> ! {
    tell(writer, failure);
    leave(failure.exit)
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
    /// Gives the key to the daemon and waits for its answer; the key is wiped here, not when the mount is live.
    pub fn hand_over(mut self, unlock: Unlock) -> Result<(), Failure> {
        // A daemon that has gone has said why.
        let _ = key::hand_over(&unlock, &mut self.key);
        drop(unlock);
        self.wait()
    }

    fn wait(self) -> Result<(), Failure> {
        let Caller { mut answer, key } = self;
        // Its end is the key's end.
        drop(key);
        let mut told = Vec::new();
        answer.read_to_end(&mut told).map_err(|e| failed("reading its answer", &e))?;
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
        let Some((mut pipe, null)) = self.0 else { return Ok(()) };
        for fd in 0..=2 {
            // SAFETY: both descriptors are open; the standard three are nobody's but ours.
            if unsafe { libc::dup2(null.as_raw_fd(), fd) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        std::env::set_current_dir("/")?;
        pipe.write_all(LIVE)
    }

    /// Says why there is no mount. A caller that has gone away needs no answer.
    pub fn failed(self, failure: &Failure) {
        if let Some((pipe, _)) = self.0 {
            tell(pipe, failure);
        }
    }
}

fn tell(mut pipe: File, failure: &Failure) {
    let mut told = vec![failure.exit as u8];
    told.extend_from_slice(failure.sentence.as_bytes());
    let _ = pipe.write_all(&told);
}

/// What reads as nothing and takes everything. Opened long before it is needed: the sandbox opens no devices. Its number is
/// above 2, for Rust's start fills the first three if the caller has left one free.
pub fn open_null() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/null")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Passphrase;

    /// A caller, and where its daemon writes.
    fn caller() -> (Caller, File) {
        let (answer, writer) = pipe().unwrap();
        let (_, key) = pipe().unwrap();
        (Caller { answer, key }, writer)
    }

    #[test]
    fn the_answer_reaches_the_caller() {
        let (caller, writer) = caller();
        Answer(Some((writer, open_null().unwrap()))).failed(&Failure::new(Exit::WrongKey, "/v: no"));
        let failure = caller.wait().unwrap_err();
        assert_eq!((failure.exit, failure.sentence.as_str()), (Exit::WrongKey, "/v: no"));
    }

    #[test]
    fn a_daemon_that_dies_silently_is_an_error() {
        let (caller, writer) = caller();
        drop(writer);
        assert_eq!(caller.wait().unwrap_err().exit, Exit::Unexpected);
    }

    #[test]
    fn a_daemon_that_refuses_before_it_has_the_key_is_heard() {
        let (caller, writer) = caller();
        tell(writer, &Failure::new(Exit::Fuse, "no"));
        // Nobody reads the key.
        let failure = caller.hand_over(Unlock::Passphrase(Passphrase(b"x".to_vec()))).unwrap_err();
        assert_eq!(failure.exit, Exit::Fuse);
    }

    #[test]
    fn live_is_no_error() {
        let (caller, mut writer) = caller();
        writer.write_all(LIVE).unwrap();
        drop(writer);
        caller.wait().unwrap();
        assert!(Exit::from_u8(LIVE[0]).is_none(), "the word must not begin like a code");
    }

    #[test]
    fn only_what_is_to_be_kept_stays_open() {
        let (kept, closed) = (pipe().unwrap(), pipe().unwrap());
        // SAFETY: a child that only closes, asks and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            close_all_but(&[kept.1.as_raw_fd(), kept.0.as_raw_fd()]);
            // SAFETY: only asks.
            let open = |file: &File| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFD) } >= 0;
            let right = open(&kept.0) && open(&kept.1) && !open(&closed.0) && !open(&closed.1);
            leave(if right { Exit::Ok } else { Exit::Unexpected });
        }
        let mut status = 0;
        // SAFETY: the child is ours, and `status` lives.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
    }
}
