//! Asks a mount, or a disk, that may never answer, and reports what keeps its daemon.
//!
//! Promise: no call waits longer than it is told, and this process can end at any time.
//! Why processes: a request that the daemon has taken and does not answer holds its caller in the kernel, where not even SIGKILL
//! reaches it, and a process ends only when all of its threads have. So each errand is a process that nobody waits for.
//! It holds nothing of its parent's: no descriptors, no directory. There must be one thread, for a child has no other.
//! Called by: `umount`, `flush`, `ending`, `status`. On failure: `None` where there was no answer in time.

use super::daemon;
use super::exit::Exit;
use super::last_word::readable;
use crate::base::world::{RealWorld, World};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

/// After so long without an answer a person is told what is waited for.
pub const NOTICE_AFTER: Duration = Duration::from_millis(700);

/// Begins an answer.
const ANSWER: u8 = b'+';
/// Begins an error: the system's number or 0, and a sentence.
const ERROR: u8 = b'-';

/// A process that does something for this one, and may hang.
pub struct Errand {
    pipe: File,
    child: libc::pid_t,
}

impl Errand {
    /// Starts one; it writes what it has to tell into the pipe that it is given. Of its parent's descriptors it has those in `kept`.
    pub fn start(kept: &[RawFd], work: impl FnOnce(&File)) -> io::Result<Errand> {
        let (pipe, tell) = daemon::pipe()?;
        let null = daemon::open_null()?;
        // SAFETY: there is one thread, so no lock is held for ever in the child, which may do anything.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                for fd in 0..=2 {
                    // SAFETY: the descriptor is open; what stands in its place is nobody's but the parent's.
                    unsafe { libc::dup2(null.as_raw_fd(), fd) };
                }
                daemon::close_all_but(&[kept, &[tell.as_raw_fd()]].concat());
                let _ = std::env::set_current_dir("/");
                // A panic must not run on into what the parent does.
                let _ = catch_unwind(AssertUnwindSafe(|| work(&tell)));
                daemon::leave(Exit::Ok)
            }
            child => Ok(Errand { pipe, child }),
        }
    }

    /// What becomes readable when there is something to take in.
    pub fn descriptor(&self) -> RawFd {
        self.pipe.as_raw_fd()
    }

    /// Takes in what was told; false once that was all.
    pub fn take_in(&mut self, told: &mut Vec<u8>) -> bool {
        let mut chunk = [0; 4096];
        loop {
            match self.pipe.read(&mut chunk) {
                Ok(n) => {
                    told.extend_from_slice(&chunk[..n]);
                    return n > 0;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    /// Waits for its end; nobody hears it from now on.
    pub fn join(self) {
        drop(self.pipe);
        let mut status = 0;
        // SAFETY: the child is ours and was not waited for, and `status` lives.
        unsafe { libc::waitpid(self.child, &mut status, 0) };
    }

    /// Ends it, or leaves it behind where it cannot be ended.
    pub fn abandon(self) {
        // SAFETY: a signal to a child that was not waited for.
        unsafe { libc::kill(self.child, libc::SIGKILL) };
    }
}

/// Has `work` done by another process, and waits for its answer so long; `notice` runs once if it takes a while.
pub fn within(
    patience: Duration,
    kept: &[RawFd],
    work: impl FnOnce() -> io::Result<Vec<u8>>,
    notice: impl FnOnce(),
) -> io::Result<Option<io::Result<Vec<u8>>>> {
    let errand = begin(kept, work)?;
    finish(errand, patience, notice)
}

/// Begins what `finish` ends, for whoever asks several at once.
pub fn begin(kept: &[RawFd], work: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<Errand> {
    Errand::start(kept, |mut tell| {
        let told = match work() {
            Ok(answer) => [&[ANSWER][..], &answer].concat(),
            Err(e) => {
                let code = e.raw_os_error().unwrap_or(0);
                [&[ERROR][..], &code.to_le_bytes(), e.to_string().as_bytes()].concat()
            }
        };
        let _ = tell.write_all(&told);
    })
}

/// Waits for the answer.
pub fn finish(
    mut errand: Errand,
    patience: Duration,
    notice: impl FnOnce(),
) -> io::Result<Option<io::Result<Vec<u8>>>> {
    let world = RealWorld::default();
    let (mut told, mut notice) = (Vec::new(), Some(notice));
    loop {
        let waited = world.elapsed();
        if waited >= patience {
            errand.abandon();
            return Ok(None);
        }
        let until = if notice.is_some() { NOTICE_AFTER.min(patience) } else { patience };
        if readable(&[errand.descriptor()], Some(until.saturating_sub(waited))).is_empty() {
            if world.elapsed() >= NOTICE_AFTER
                && let Some(notice) = notice.take()
            {
                notice();
            }
        } else if !errand.take_in(&mut told) {
            errand.join();
            return decode(&told).map(Some);
        }
    }
}

fn decode(told: &[u8]) -> io::Result<io::Result<Vec<u8>>> {
    match told {
        [ANSWER, answer @ ..] => Ok(Ok(answer.to_vec())),
        [ERROR, a, b, c, d, sentence @ ..] => Ok(Err(match i32::from_le_bytes([*a, *b, *c, *d]) {
            0 => io::Error::other(String::from_utf8_lossy(sentence).into_owned()),
            code => io::Error::from_raw_os_error(code),
        })),
        _ => Err(io::Error::other("the process that asked has died")),
    }
}

/// What keeps a daemon from answering, and what a person can do about it.
pub fn obstacle(daemon: Option<i32>) -> String {
    let Some(pid) = daemon else { return "its daemon does not answer".to_owned() };
    match state(format!("/proc/{pid}/stat")) {
        None | Some('Z' | 'X') => format!("its daemon (process {pid}) has ended"),
        Some('T' | 't') => format!("its daemon (process {pid}) is stopped; kill -CONT {pid} lets it go on"),
        Some(_) if is_uninterruptible(pid) => {
            let why = "a thread of it waits in the kernel (state D), as for a disk that does not answer";
            format!("its daemon (process {pid}) does not answer; {why}")
        }
        Some(_) => format!("its daemon (process {pid}) does not answer"),
    }
}

/// Whether a signal stopped a process.
pub fn is_stopped(pid: i32) -> bool {
    matches!(state(format!("/proc/{pid}/stat")), Some('T' | 't'))
}

/// Whether a thread of it is in a call that nothing interrupts.
fn is_uninterruptible(pid: i32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    tasks.is_ok_and(|tasks| tasks.flatten().any(|task| state(task.path().join("stat")) == Some('D')))
}

/// `12 (a name) S …`
fn state(stat: impl AsRef<Path>) -> Option<char> {
    let text = std::fs::read_to_string(stat).ok()?;
    text.rsplit(')').next()?.trim_start().chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::process::Command;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn an_answer_is_waited_for_and_silence_is_not() {
        let noticed = Cell::new(false);
        let notice = || noticed.set(true);
        let answer = within(LONG, &[], || Ok(b"seven".to_vec()), notice).unwrap().unwrap();
        assert_eq!(answer.unwrap(), b"seven");
        assert!(!noticed.get());
        // What hangs holds nothing of ours: the reader sees the end of this pipe as soon as we let go.
        let (mut reader, writer) = daemon::pipe().unwrap();
        let hang = || {
            std::thread::sleep(LONG);
            Ok(Vec::new())
        };
        assert!(within(NOTICE_AFTER * 2, &[], hang, notice).unwrap().is_none());
        assert!(noticed.get());
        drop(writer);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn an_error_comes_as_it_was_and_a_death_is_one() {
        let gone = within(LONG, &[], || Err(io::Error::from_raw_os_error(libc::ENOTCONN)), || ()).unwrap().unwrap();
        assert_eq!(gone.unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
        let other = within(LONG, &[], || Err(io::Error::other("a sentence")), || ()).unwrap().unwrap();
        assert_eq!(other.unwrap_err().to_string(), "a sentence");
        assert!(within(LONG, &[], || daemon::leave(Exit::Unexpected), || ()).is_err());
    }

    #[test]
    fn a_stopped_process_is_named_with_what_lets_it_go_on() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep runs");
        let pid = child.id() as i32;
        assert_eq!(obstacle(Some(pid)), format!("its daemon (process {pid}) does not answer"));
        // SAFETY: a signal to a child that was not waited for.
        unsafe { libc::kill(pid, libc::SIGSTOP) };
        while !is_stopped(pid) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(obstacle(Some(pid)).contains(&format!("kill -CONT {pid}")));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(obstacle(Some(pid)).ends_with("has ended"));
    }
}
