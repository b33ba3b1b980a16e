//! Errors in the system calls of a running daemon, by `strace`.
//!
//! Promise: when `begin` returns every thread of the daemon is traced, when `lift` returns none is; `lift` says how many
//! calls were answered with something else than the kernel's answer, so that a test can tell that it tried anything.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use super::eventually;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What is being done to a daemon.
pub struct Injection {
    strace: Child,
    log: PathBuf,
}

/// A system call, and what is done to it, as `strace -e inject=` says it.
pub type Calls = &'static [(&'static str, &'static str)];

/// Every write and every flush fails.
pub const EIO: Calls = &[("pwrite64", "error=EIO"), ("fdatasync", "error=EIO"), ("fsync", "error=EIO")];
/// Every write finds the disk full.
pub const ENOSPC: Calls = &[("pwrite64", "error=ENOSPC"), ("fallocate", "error=ENOSPC")];
/// Every flush fails.
pub const FLUSH: Calls = &[("fdatasync", "error=EIO")];
/// Every write takes its time.
pub const SLOW: Calls = &[("pwrite64", "delay_enter=300000")];

impl Injection {
    /// Begins; with `only`, calls on those paths alone.
    pub fn begin(pid: i32, calls: Calls, only: &[PathBuf], log: PathBuf) -> Injection {
        let names: Vec<&str> = calls.iter().map(|c| c.0).collect();
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-p", &pid.to_string(), "-o"]).arg(&log);
        command.arg("-e").arg(format!("trace={}", names.join(",")));
        for (call, what) in calls {
            command.arg("-e").arg(format!("inject={call}:{what}"));
        }
        for path in only {
            command.arg("-P").arg(path);
        }
        let said = fs::File::create(log.with_extension("said")).unwrap();
        let strace = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn();
        let injection = Injection { strace: strace.expect("strace is installed (see .ci/setup)"), log };
        eventually("strace has every thread", Duration::from_secs(20), || {
            traced(pid).is_some_and(|all| !all.is_empty() && all.iter().all(|t| *t))
        });
        injection
    }

    /// Ends it; gives how many calls were meddled with.
    pub fn lift(mut self) -> usize {
        self.stop();
        let log = fs::read_to_string(&self.log).unwrap();
        log.lines().filter(|l| l.contains("(INJECTED)") || l.contains("(DELAYED)")).count()
    }

    fn stop(&mut self) {
        // SAFETY: a signal to a child that was not waited for yet, so that its number is its own.
        unsafe { libc::kill(self.strace.id() as i32, libc::SIGINT) };
        let _ = self.strace.wait();
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        if matches!(self.strace.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

/// Of each thread, whether it is traced.
fn traced(pid: i32) -> Option<Vec<bool>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let one = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        Some(!status.lines().find(|l| l.starts_with("TracerPid:"))?.ends_with("\t0"))
    };
    tasks.flatten().map(one).collect()
}

/// Every file of a backing directory that is written to, those of segments to come included.
pub fn files_of(vault: &Path) -> Vec<PathBuf> {
    let mut all = vec![vault.to_owned()];
    let mut dirs = vec![vault.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            if entry.path().is_dir() {
                dirs.push(entry.path());
            }
            all.push(entry.path());
        }
    }
    all.extend(["probe.new", "reserve"].map(|name| vault.join(name)));
    all.extend((0..200).map(|n| vault.join(format!("segments/{n:016x}"))));
    all.sort();
    all.dedup();
    all
}

/// The copies that segments come home to.
pub fn copies_of(vault: &Path) -> Vec<PathBuf> {
    (0..200).map(|n| vault.join(format!("segments/{n:016x}.new"))).collect()
}
