//! Flushes and unmounts, and returns once everything is at rest.
//!
//! Promise: 0 means that all data is in the vault and verified, the daemon is gone, and the vault may be copied or mounted
//! again. Why it holds: the kernel's dirty pages are pushed out first (`syncfs`), then `control` flushes the vault and
//! answers with an error if it could not, then the kernel unmounts, then the daemon's end is waited for, and what it wrote
//! last into the vault's lock file is read.
//! Called by: a person, systemd. On failure: what is still mounted stays so, except a mount whose daemon is dead.

use super::exit::{Exit, Failure};
use super::mounts;
use super::print::{self, Progress};
use super::status;
use crate::vault::LOCK;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How often what is left is looked at.
const GLANCE: Duration = Duration::from_millis(100);

/// Flush and unmount; returns once everything is at rest.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the vault is mounted
    mountpoint: PathBuf,
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let path = mounts::whole_path(&args.mountpoint).map_err(|e| Failure::io(&args.mountpoint, &e))?;
    let mount = mounts::at(&path)?;
    let storage = path.join(".storage");
    match std::fs::metadata(storage.join("version")) {
        Ok(_) => {}
        Err(e) if mount.is_some() && e.raw_os_error() == Some(libc::ENOTCONN) => return bury(&path),
        Err(e) if mount.is_some() => return Err(Failure::io(&storage, &e)),
        Err(_) => {
            return Err(Failure::new(Exit::NotMounted, format!("{}: no strongroom is mounted there", path.display())));
        }
    }
    let config =
        std::fs::read_to_string(storage.join("config")).map_err(|e| Failure::io(&storage.join("config"), &e))?;
    // Opened while the process surely is the daemon: its number may be another's a moment after it ended.
    let vault = mount.as_ref().and_then(|m| m.vault());
    let pid = pid(&config).or_else(|| holder(vault?));
    let daemon = pid.and_then(Daemon::of);
    flush(&path, &storage)?;
    unmount(&path, false)?;
    wait_for_end(daemon, vault)?;
    let last_word = vault.and_then(|v| std::fs::read_to_string(v.join(LOCK)).ok());
    judge_end(&path, last_word.as_deref(), pid)?;
    Ok(Exit::Ok)
}

/// A mount whose daemon has died: nothing can be flushed any more, so it is only taken away, and said.
fn bury(path: &Path) -> Result<Exit, Failure> {
    unmount(path, true)?;
    let at = path.display();
    let lost = "what was not yet flushed is lost, the vault recovers at its next mount";
    Err(Failure::new(Exit::FlushFailed, format!("{at}: its daemon had died; unmounted, but {lost}")))
}

fn flush(path: &Path, storage: &Path) -> Result<(), Failure> {
    let failed = |what: &str, e: &io::Error| {
        Failure::new(Exit::FlushFailed, format!("{}: {what}: {e}; it stays mounted", path.display()))
    };
    let (tell, told) = mpsc::channel();
    let (top, control, stats) = (path.to_owned(), storage.join("control"), storage.join("stats.json"));
    let work = move || {
        let result = push_all_pages(&top, &stats).map_err(|e| ("writing back the kernel's pages", e));
        // Nobody listens any more only if the command was ended.
        let _ = tell.send(result.and_then(|()| ask(&control).map_err(|e| ("flushing", e))));
    };
    thread::Builder::new().name("flush".to_owned()).spawn(work).map_err(|e| failed("no thread", &e))?;
    let progress = Progress::new("flushing");
    let mut most_bytes = 0;
    loop {
        match told.recv_timeout(GLANCE) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err((what, e))) => return Err(failed(what, &e)),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let left = pending_bytes(storage).unwrap_or(0);
                most_bytes = most_bytes.max(left);
                progress.at(most_bytes - left, most_bytes);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(failed("flushing", &io::Error::other("the thread ended without a word")));
            }
        }
    }
}

/// Writes back what the kernel still holds. The kernel also keeps an earlier error (a file that did not fit, deleted long
/// ago) for whoever syncs next, once; the writer was told of it at fsync or close, and its pages are gone: that one is
/// passed on as a warning. An error of a page that was dirty until now has been told to nobody else, and is ours.
fn push_all_pages(path: &Path, stats: &Path) -> io::Result<()> {
    let refused_before = refused_writes(stats);
    let Err(e) = push_pages(path) else { return Ok(()) };
    if refused_before.is_none() || refused_writes(stats) != refused_before {
        return Err(e);
    }
    push_pages(path)?;
    let what = "an earlier write failed and is not in the vault (fsync or close said so to its program)";
    print::complain(&format!("warning: {}: {what}: {e}", path.display()));
    Ok(())
}

/// How many of the kernel's writes were answered with an error so far.
fn refused_writes(stats: &Path) -> Option<u64> {
    let stats: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(stats).ok()?).ok()?;
    stats["operations"]["write"]["failures"].as_u64()
}

fn push_pages(path: &Path) -> io::Result<()> {
    let dir = File::open(path)?;
    // SAFETY: the descriptor is ours.
    if unsafe { libc::syncfs(dir.as_raw_fd()) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn ask(control: &Path) -> io::Result<()> {
    let order = |mut file: File| {
        file.write_all(b"flush\n")?;
        // Where the kernel holds writes back, the answer comes only here.
        file.sync_all()
    };
    match OpenOptions::new().write(true).open(control).and_then(order) {
        // A mount for reading only has nothing to flush.
        Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        other => other,
    }
}

fn pending_bytes(storage: &Path) -> Option<u64> {
    std::fs::read_to_string(storage.join("pending")).ok()?.trim().parse().ok()
}

fn unmount(path: &Path, detach: bool) -> Result<(), Failure> {
    let busy = || {
        let at = path.display();
        Failure::new(
            Exit::Busy,
            format!("{at}: something still uses it (EBUSY); all data is flushed, it stays mounted"),
        )
    };
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| Failure::io(path, &e.into()))?;
    let flags = libc::UMOUNT_NOFOLLOW | if detach { libc::MNT_DETACH } else { 0 };
    // SAFETY: a terminated string.
    if unsafe { libc::umount2(name.as_ptr(), flags) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::EBUSY) => return Err(busy()),
        e if e.raw_os_error() == Some(libc::EPERM) => {}
        e => return Err(Failure::new(Exit::Fuse, format!("{}: {e}", path.display()))),
    }
    let mut helper = Command::new("fusermount3");
    helper.arg("-u").args(detach.then_some("-z")).arg("--").arg(path).env("LC_ALL", "C");
    let output = helper.output().map_err(|e| Failure::new(Exit::Fuse, format!("fusermount3: {e}")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(busy()),
        false => Err(Failure::new(Exit::Fuse, said.trim().to_owned())),
    }
}

/// The daemon, held by a descriptor that becomes readable when it has ended.
struct Daemon(OwnedFd);

impl Daemon {
    /// `None` where it cannot be seen (another process namespace, an old kernel).
    fn of(pid: i32) -> Option<Daemon> {
        // SAFETY: a plain call with two numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        // SAFETY: the kernel just gave us this descriptor, and descriptors fit.
        (fd >= 0).then(|| Daemon(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    fn has_ended(&self, wait: Duration) -> bool {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which lives.
        unsafe { libc::poll(&mut poll, 1, wait.as_millis() as i32) > 0 }
    }
}

fn wait_for_end(daemon: Option<Daemon>, vault: Option<&Path>) -> Result<(), Failure> {
    let progress = Progress::new("waiting for the vault to close");
    if let Some(daemon) = daemon {
        while !daemon.has_ended(GLANCE) {
            progress.at(0, 0);
        }
        return Ok(());
    }
    // The daemon holds the lock as long as the vault is open.
    if let Some(vault) = vault {
        while status::is_locked(vault)? {
            progress.at(0, 0);
            thread::sleep(GLANCE);
        }
    }
    Ok(())
}

/// What the daemon said of its end, in the lock file: data written between the flush and the unmount came to rest only if
/// it closed the vault.
fn judge_end(path: &Path, last_word: Option<&str>, daemon: Option<i32>) -> Result<(), Failure> {
    let failed = |why: &str| Err(Failure::new(Exit::FlushFailed, format!("{}: unmounted, but {why}", path.display())));
    let word = last_word.unwrap_or_default().trim();
    if let Some(why) = word.strip_prefix("failed: ") {
        return failed(&format!("not everything could be brought to rest: {why}"));
    }
    if word == "closing" || daemon.is_some_and(|pid| word == pid.to_string()) {
        return failed("its daemon ended before the vault was closed; the vault recovers at its next mount");
    }
    // `closed`; or a vault we cannot look into; or one that the next mount has taken already.
    Ok(())
}

/// Who holds the vault's lock, as the holder wrote into it.
fn holder(vault: &Path) -> Option<i32> {
    std::fs::read_to_string(vault.join(LOCK)).ok()?.trim().parse().ok()
}

/// The value of the key `pid`, however the line separates the two.
fn pid(config: &str) -> Option<i32> {
    config.lines().find_map(|line| {
        let (key, value) = line.trim().split_once(|c: char| c.is_whitespace() || c == ':' || c == '=')?;
        let value = value.trim_start_matches(|c: char| c.is_whitespace() || c == ':' || c == '=');
        (key == "pid").then(|| value.trim().parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_is_named_in_the_config() {
        for config in ["budget 1\npid 42\n", "pid: 42", "a=1\npid = 42\nb=2", "pid\t42"] {
            assert_eq!(pid(config), Some(42), "{config}");
        }
        for config in ["", "pids 42", "pid x", "pid"] {
            assert_eq!(pid(config), None, "{config}");
        }
    }

    #[test]
    fn a_process_that_ends_is_noticed() {
        let mut child = Command::new("sleep").arg("0.2").spawn().expect("sleep runs");
        let daemon = Daemon::of(child.id() as i32).expect("it is there");
        assert!(!daemon.has_ended(Duration::ZERO));
        while !daemon.has_ended(Duration::from_secs(5)) {}
        child.wait().unwrap();
    }

    #[test]
    fn the_daemons_last_word_is_judged() {
        let exit = |word| judge_end(Path::new("/m"), word, Some(42)).err().map(|failure| failure.exit);
        for well in [None, Some(""), Some("closed\n"), Some("43\n")] {
            assert_eq!(exit(well), None, "{well:?}");
        }
        for ill in ["closing\n", "42\n", "failed: backing directory: no space\n"] {
            assert_eq!(exit(Some(ill)), Some(Exit::FlushFailed), "{ill}");
        }
        let told = judge_end(Path::new("/m"), Some("failed: the disk is gone\n"), None).unwrap_err();
        assert_eq!(told.sentence, "/m: unmounted, but not everything could be brought to rest: the disk is gone");
    }

    #[test]
    fn where_nothing_is_mounted_nothing_is_unmounted() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let failure = run(&Args { mountpoint: dir.path().to_owned() }).err().unwrap();
        assert_eq!(failure.exit, Exit::NotMounted);
    }
}
