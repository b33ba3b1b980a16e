//! Frees this process from the limits and habits of its caller.
//!
//! Promise: files are made for their owner alone, whatever the caller's umask; a file-size limit that can be raised is
//! raised, and one that cannot is an error of the write (EFBIG) and never a signal; as many files may be open, and as much
//! memory be had, as the system allows. A daemon knows when the terminal of its foreground is gone.
//! Called by: `cli::run`, first; `mount`. On failure: what cannot be raised stays, and `mount` names it.

use super::exit::{Exit, Failure};
use super::size;
use std::io::{self, IsTerminal};
use std::path::Path;

/// The largest file that a vault needs: a segment, and an index of some million files.
const FILE_BYTES_MIN: u64 = 1 << 30;
/// Files that a mount has open at once: one per thread for the kernel's device, the log, the index, and segments being
/// read, with much to spare.
const FILES_MIN: u64 = 128;
/// Memory that a mount has beside its budget, most of it addresses that are never touched: stacks and holes of the allocator.
const MEMORY_BESIDE_BUDGET_BYTES: u64 = 512 << 20;

/// Prepares this process, before anything is opened or made.
pub fn prepare() {
    // SAFETY: plain settings of this process, before any other thread exists. What is refused stays as it was.
    unsafe {
        libc::umask(0o077);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    for limit in [libc::RLIMIT_FSIZE, libc::RLIMIT_NOFILE, libc::RLIMIT_AS, libc::RLIMIT_DATA] {
        let Some(mut now) = limit_of(limit) else { continue };
        // SAFETY: only asks, and cannot fail.
        if limit != libc::RLIMIT_NOFILE && unsafe { libc::geteuid() } == 0 {
            now.rlim_max = libc::RLIM_INFINITY;
        }
        now.rlim_cur = now.rlim_max;
        // SAFETY: a plain setting; `now` lives.
        unsafe { libc::setrlimit(limit, &now) };
    }
}

/// Refuses to mount where a limit of the caller would make the vault fail later.
pub fn refuse_narrow(vault: &Path, budget_bytes: u64) -> Result<(), Failure> {
    let below = |limit, least: u64| limit_of(limit).map(|now| now.rlim_cur).filter(|most| *most < least);
    let refuse = |what: String| Err(Failure::new(Exit::Unexpected, format!("{}: {what}", vault.display())));
    if let Some(most) = below(libc::RLIMIT_FSIZE, FILE_BYTES_MIN) {
        let (most, least) = (size::show(most), size::show(FILE_BYTES_MIN));
        return refuse(format!(
            "files of this process may have {most} at most (ulimit -H -f), and those of a vault grow to {least}: raise the limit"
        ));
    }
    if let Some(most) = below(libc::RLIMIT_NOFILE, FILES_MIN) {
        return refuse(format!(
            "this process may open {most} files at most (ulimit -H -n), and a mount needs {FILES_MIN}: raise the limit"
        ));
    }
    let least = budget_bytes.saturating_add(MEMORY_BESIDE_BUDGET_BYTES);
    for (limit, letter) in [(libc::RLIMIT_AS, 'v'), (libc::RLIMIT_DATA, 'd')] {
        if let Some(most) = below(limit, least) {
            let (most, least) = (size::show(most), size::show(least));
            return refuse(format!(
                "this process may have {most} of memory at most (ulimit -H -{letter}), and a mount with this budget needs {least}: \
                 raise the limit, or name a smaller budget (-o budget=)"
            ));
        }
    }
    Ok(())
}

fn limit_of(limit: libc::__rlimit_resource_t) -> Option<libc::rlimit> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills `now`.
    (unsafe { libc::getrlimit(limit, &mut now) } == 0).then_some(now)
}

/// The terminals that this process was started on.
#[derive(Debug, Default)]
pub struct Terminals(Vec<i32>);

impl Terminals {
    /// Those among the first three descriptors.
    pub fn of_this_process() -> Terminals {
        let is_terminal = [io::stdin().is_terminal(), io::stdout().is_terminal(), io::stderr().is_terminal()];
        Terminals((0..).zip(is_terminal).filter(|(_, is)| *is).map(|(fd, _)| fd).collect())
    }

    /// Whether one of them was closed or has hung up: a SIGHUP then means that nobody is there any more.
    pub fn are_gone(&self) -> bool {
        self.0.iter().any(|&fd| {
            let mut asked = libc::pollfd { fd, events: 0, revents: 0 };
            // SAFETY: `asked` is one entry and lives.
            unsafe { libc::poll(&mut asked, 1, 0) > 0 && asked.revents & (libc::POLLHUP | libc::POLLNVAL) != 0 }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_s_limits_are_lifted() {
        prepare();
        let files = limit_of(libc::RLIMIT_NOFILE).expect("every system has this limit");
        assert_eq!(files.rlim_cur, files.rlim_max);
        refuse_narrow(Path::new("/v"), 1 << 30).expect("this machine lets a vault be mounted");
    }
}
