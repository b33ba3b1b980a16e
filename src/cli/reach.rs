//! Asks a mount that may not answer, and reports what keeps its daemon.
//!
//! Promise: no call waits longer than it is told, whatever the mount does. A call into a mount whose daemon stands still cannot be
//! taken back: its thread stays in it, and ends with the process or with the mount.
//! Called by: `umount`, `flush`, `status`. On failure: `None` where there was no answer in time.

use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// After so long without an answer a person is told what is waited for.
pub const NOTICE_AFTER: Duration = Duration::from_millis(700);

/// Runs `work`, on a thread of its own, and waits for it so long; `notice` runs once if it takes a while.
pub fn within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
    notice: impl FnOnce(),
) -> io::Result<Option<T>> {
    let (tell, told) = mpsc::channel();
    let work = move || {
        // Nobody listens any more if it took too long.
        let _ = tell.send(work());
    };
    thread::Builder::new().name("ask".to_owned()).spawn(work)?;
    let soon = NOTICE_AFTER.min(patience);
    match told.recv_timeout(soon) {
        Ok(answer) => return Ok(Some(answer)),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            return Err(io::Error::other("the thread that asked has panicked"));
        }
        Err(mpsc::RecvTimeoutError::Timeout) => notice(),
    }
    Ok(told.recv_timeout(patience - soon).ok())
}

/// What keeps a daemon from answering, and what a person can do about it.
pub fn obstacle(daemon: Option<i32>) -> String {
    let Some(pid) = daemon else { return "its daemon does not answer".to_owned() };
    match state(format!("/proc/{pid}/stat")) {
        None | Some('Z' | 'X') => format!("its daemon (process {pid}) has ended"),
        Some('T' | 't') => format!("its daemon (process {pid}) is stopped; kill -CONT {pid} lets it go on"),
        Some(_) if waits_for_disk(pid) => format!("its daemon (process {pid}) waits for the disk of the vault"),
        Some(_) => format!("its daemon (process {pid}) does not answer"),
    }
}

/// Whether a signal stopped a process.
pub fn is_stopped(pid: i32) -> bool {
    matches!(state(format!("/proc/{pid}/stat")), Some('T' | 't'))
}

/// Whether a thread of it is in a call that nothing interrupts.
fn waits_for_disk(pid: i32) -> bool {
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

    #[test]
    fn an_answer_is_waited_for_and_silence_is_not() {
        let noticed = Cell::new(false);
        let notice = || noticed.set(true);
        assert_eq!(within(Duration::from_secs(60), || 7, notice).unwrap(), Some(7));
        assert!(!noticed.get());
        let (keep, hang) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(50), move || hang.recv().is_ok(), notice).unwrap(), None);
        assert!(noticed.get());
        drop(keep);
        assert!(within(Duration::from_secs(60), || panic!("as told"), || ()).is_err());
    }

    #[test]
    fn a_stopped_process_is_named_with_what_lets_it_go_on() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep runs");
        let pid = child.id() as i32;
        assert_eq!(obstacle(Some(pid)), format!("its daemon (process {pid}) does not answer"));
        // SAFETY: a signal to a child that was not waited for.
        unsafe { libc::kill(pid, libc::SIGSTOP) };
        while !is_stopped(pid) {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(obstacle(Some(pid)).contains(&format!("kill -CONT {pid}")));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(obstacle(Some(pid)).ends_with("has ended"));
    }
}
