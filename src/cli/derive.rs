//! Derives the master key in a short-lived process of its own.
//!
//! Promise: the memory that a passphrase costs (up to gigabytes) is never this process's: it is given back whole before
//! the vault opens. The key comes over a pipe that only the two processes know; it is in no argument and no environment.
//! Why a process: memory that a daemon has once had counts as its high water for ever, and the allocator may keep it.
//! Called by: `mount`, `check`, while there is one thread and the vault's lock is held.
//! On failure: the code and sentence that deriving it here would have had; if the process was killed, how much memory it
//! needed.

use super::daemon;
use super::exit::{Exit, Failure};
use super::key;
use crate::base::secret::Secret;
use crate::seal::{self, MasterKey, SlotKind, Unlock};
use crate::vault::HeaderTexts;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use zeroize::Zeroizing;

/// Most that is read of an answer: a code, then a key or a sentence with a path in it.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// The master key that `unlock` opens the header or its copy for; the passphrase or key file is wiped.
pub fn master_key(vault: &Path, headers: &HeaderTexts, unlock: Unlock) -> Result<Unlock, Failure> {
    let refused = |fault: seal::HeaderFault| {
        let failure = Failure::open(vault, &headers.or_unread(fault));
        match &unlock {
            Unlock::KeyFile(key) if failure.exit == Exit::WrongKey => {
                let rule = "every byte of a key file counts, also a newline at its end";
                Failure::new(
                    failure.exit,
                    format!("{}: this one has {} bytes, and {rule}", failure.sentence, key.0.len()),
                )
            }
            _ => failure,
        }
    };
    let costs = headers.all_shown().flat_map(|header| header.slots).filter_map(|slot| match slot.kind {
        SlotKind::Passphrase { memory_kib, .. } => Some(memory_kib),
        SlotKind::KeyFile | SlotKind::RecoveryKey => None,
    });
    let work = || headers.open(&unlock).map(|opened| opened.master).map_err(refused);
    let master = match (&unlock, costs.max()) {
        (Unlock::Passphrase(_), Some(memory_kib)) => in_child(work).unwrap_or_else(|lost| {
            let (at, need_mib) = (vault.display(), memory_kib.div_ceil(1024));
            let sentence = format!("{at}: deriving the key needs {need_mib} MiB of memory; {lost}");
            Err(Failure::new(Exit::Unexpected, sentence))
        }),
        // Nothing slow to do.
        (Unlock::Passphrase(_) | Unlock::KeyFile(_) | Unlock::Recovery(_) | Unlock::Master(_), _) => work(),
    };
    master.map(Unlock::Master)
}

/// What `work` gives, done in a child; or what became of a child that gave nothing, for the end of a sentence.
fn in_child(work: impl FnOnce() -> Result<MasterKey, Failure>) -> Result<Result<MasterKey, Failure>, String> {
    let failed = |what: &str, e: io::Error| format!("a process for it could not be had: {what}: {e}");
    let (reader, writer) = daemon::pipe().map_err(|e| failed("pipe", e))?;
    // SAFETY: only asks, and cannot fail.
    let parent = unsafe { libc::getpid() };
    // SAFETY: there is one thread, so no lock is held for ever in the child, which may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(failed("fork", io::Error::last_os_error())),
        0 => be_the_child(parent, writer, work),
        child => {
            drop(writer);
            let answer = read_answer(reader);
            let end = wait_for(child);
            let answer = answer.map_err(|e| failed("reading its answer", e))?;
            understood(&answer).ok_or(end)
        }
    }
}

fn be_the_child(parent: i32, mut writer: File, work: impl FnOnce() -> Result<MasterKey, Failure>) -> ! {
    // SAFETY: plain settings of this process. A signal from the terminal goes to the parent too, which has its own way to
    // end; a parent that is gone takes the child with it, also if it went before the child could say so.
    unsafe {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::signal(signal, libc::SIG_IGN);
        }
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if libc::getppid() != parent {
            daemon::leave(Exit::Unexpected);
        }
    }
    key::forbid_dumps();
    // The vault's lock among them: it must not outlive the parent. Their owners are never dropped here.
    daemon::close_all_but(&[writer.as_raw_fd()]);
    // A panic must not run on into what the parent was doing; it has been printed.
    let answer = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(master)) => {
            let mut answer = Zeroizing::new(vec![Exit::Ok as u8; 33]);
            answer[1..].copy_from_slice(&master.secret()[..]);
            answer
        }
        Ok(Err(failure)) => Zeroizing::new([&[failure.exit as u8], failure.sentence.as_bytes()].concat()),
        Err(_) => daemon::leave(Exit::Unexpected),
    };
    match writer.write_all(&answer) {
        Ok(()) => {
            drop(answer);
            daemon::leave(Exit::Ok)
        }
        Err(_) => daemon::leave(Exit::Unexpected),
    }
}

/// Everything up to the end of the pipe, in memory that does not move: growing would leave the key behind.
fn read_answer(mut reader: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut answer = Zeroizing::new(vec![0; ANSWER_BYTES_MAX]);
    let mut len = 0;
    while len < answer.len() {
        match reader.read(&mut answer[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    answer.truncate(len);
    Ok(answer)
}

/// `None` if the child did not come to its end.
fn understood(answer: &[u8]) -> Option<Result<MasterKey, Failure>> {
    let (code, rest) = answer.split_first()?;
    match Exit::from_u8(*code)? {
        // Whether it is the vault's key, opening the header decides.
        Exit::Ok => Some(Ok(MasterKey::from_secret(Secret::copy_of(rest.try_into().ok()?)))),
        exit => Some(Err(Failure::new(exit, String::from_utf8_lossy(rest)))),
    }
}

/// Waits for the child's end and says how it came.
fn wait_for(child: i32) -> String {
    let mut status = 0;
    loop {
        // SAFETY: the child is ours, and `status` lives.
        if unsafe { libc::waitpid(child, &mut status, 0) } >= 0 {
            break;
        }
        // Where children are not waited for (SIGCHLD ignored by whoever started us) it is gone all the same.
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    match libc::WIFSIGNALED(status) {
        true => format!("the process that did it was killed (signal {})", libc::WTERMSIG(status)),
        false => "the process that did it ended without an answer".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret_of(answer: Result<MasterKey, Failure>) -> [u8; 32] {
        **answer.unwrap().secret()
    }

    #[test]
    fn the_key_comes_home_and_so_does_a_refusal() {
        let key = in_child(|| Ok(MasterKey::from_secret(Secret::from([0xC3; 32]))));
        assert_eq!(secret_of(key.unwrap()), [0xC3; 32]);
        let refused = in_child(|| Err(Failure::new(Exit::WrongKey, "/v: no"))).unwrap().unwrap_err();
        assert_eq!((refused.exit, refused.sentence.as_str()), (Exit::WrongKey, "/v: no"));
    }

    #[test]
    fn a_child_that_is_killed_says_by_what() {
        let lost = in_child(|| {
            // SAFETY: it ends this process, which is the child.
            unsafe { libc::raise(libc::SIGKILL) };
            Err(Failure::new(Exit::Unexpected, "it outlived SIGKILL"))
        });
        assert_eq!(lost.unwrap_err(), "the process that did it was killed (signal 9)");
    }

    #[test]
    fn an_answer_comes_in_pieces_and_with_interruptions() {
        struct Pieces(Vec<u8>, bool);
        impl Read for Pieces {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                self.1 = !self.1;
                if self.1 {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let n = self.0.len().min(5);
                buf[..n].copy_from_slice(&self.0[..n]);
                self.0.drain(..n);
                Ok(n)
            }
        }
        let whole = [&[0][..], &[7; 32]].concat();
        let answer = read_answer(Pieces(whole, false)).unwrap();
        assert_eq!(secret_of(understood(&answer).unwrap()), [7; 32]);
    }

    #[test]
    fn half_an_answer_is_none() {
        for half in [&[][..], &[0], &[0; 32], &[0; 34], &[99, b'x']] {
            assert!(understood(half).is_none(), "{half:?}");
        }
    }
}
