//! Watches the end of a mount's daemon, and learns how it closed the vault.
//!
//! Promise: a word is given only where the daemon gave it: over its mounter (`last_word`), or, where that cannot be reached (another
//! network namespace), in the vault's lock file. That counts only if it is the very file that held the daemon's number before the
//! unmount: a vault that was removed, replaced or cannot be written to proves nothing.
//! Called by: `umount`; `mounted` asks who holds a lock. On failure: no word.

use super::last_word::{LastWord, Stage, Witness};
use super::mounts::Mount;
use super::taker::{End, Process};
use super::{exit::Exit, reach, status};
use crate::backing::{DirBacking, read_file};
use crate::vault::LOCK;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Most that is read of a lock file: a word, and what earlier holders left behind it.
const LOCK_BYTES_MAX: usize = 4096;
/// How long the backing directory may take to answer.
const LOOK_WAIT: Duration = Duration::from_secs(2);
/// How long a daemon that has said its last word may take to be gone.
const EXIT_WAIT: Duration = Duration::from_secs(10);

/// Everything that tells of the end of a daemon.
pub struct Ending {
    /// The daemon.
    pub pid: Option<i32>,
    process: Option<Process>,
    witness: Option<Witness>,
    vault: Option<PathBuf>,
    lock: Option<LockFile>,
}

impl Ending {
    /// That of a mount's daemon. The backing directory is asked, and not waited for.
    pub fn of(mount: &Mount) -> Ending {
        Ending::with(Some(mount), Witness::of(mount))
    }

    /// That of a daemon which takes no requests any more; `None` if it has ended.
    pub fn of_cut_off(mount: &Mount) -> Option<Ending> {
        Witness::of_cut_off(mount).map(|witness| Ending::with(None, Some(witness)))
    }

    /// That of a daemon whose mount is gone from its place, and the mount's device number.
    pub fn left_behind(mountpoint: &Path) -> Option<(Ending, String)> {
        let witness = Witness::left_behind(mountpoint)?;
        let device = witness.device.clone();
        Some((Ending::with(None, Some(witness)), device))
    }

    fn with(mount: Option<&Mount>, witness: Option<Witness>) -> Ending {
        let pid = witness.as_ref().and_then(|witness| witness.daemon);
        let mut ending = Ending { pid: None, process: None, witness, vault: None, lock: None };
        ending.learn(pid);
        if let Some(mount) = mount
            && is_there(&mount.source.join(LOCK))
            && let Some(vault) = mount.vault()
        {
            (ending.vault, ending.lock) = (Some(vault.to_owned()), LockFile::open(vault));
        }
        ending
    }

    /// Takes in the daemon's number, as the mount or the lock file tells it.
    pub fn learn(&mut self, pid: Option<i32>) {
        if self.pid.is_none() {
            self.pid = pid.or_else(|| self.lock.as_ref()?.before.trim().parse().ok());
            self.process = self.pid.and_then(Process::of);
        }
    }

    /// The end of a mount, for whoever waits while it is unmounted.
    pub fn end_of<'a>(&'a self, mount: &'a Mount) -> Option<End<'a>> {
        self.process.as_ref().map(|daemon| End { mount, daemon })
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.process.as_ref().ok_or(io::ErrorKind::NotFound)?.signal(signal)
    }

    /// Has the daemon flush, close the vault and end.
    pub fn tell_to_end(&self) -> io::Result<()> {
        self.signal(libc::SIGTERM)?;
        self.signal(libc::SIGCONT)
    }

    /// How far the end has come; waits for news as long as it is told.
    pub fn stage(&mut self, wait: Duration) -> Stage {
        if let Some(witness) = &mut self.witness {
            match witness.stage(wait) {
                // The mounter may have been killed, and the daemon not.
                Stage::Ended(None) if self.process.as_ref().is_some_and(|p| !p.has_ended(LOOK_WAIT)) => {
                    self.witness = None;
                }
                Stage::Ended(word) => {
                    if let Some(process) = &self.process {
                        process.has_ended(EXIT_WAIT);
                    }
                    return Stage::Ended(word.or_else(|| self.lock.as_ref()?.word()));
                }
                other => return other,
            }
        }
        let has_ended = match (&self.process, &self.vault) {
            (Some(process), _) => process.has_ended(wait),
            // The daemon holds the lock as long as the vault is open.
            (None, Some(vault)) if status::is_locked(vault).is_ok_and(|locked| locked) => {
                thread::sleep(wait);
                false
            }
            (None, _) => true,
        };
        let lock = self.lock.as_ref();
        match has_ended {
            true => Stage::Ended(lock.and_then(LockFile::word)),
            false if lock.is_some_and(|lock| lock.text().trim() == "closing") => Stage::Closing,
            false => Stage::Serving,
        }
    }
}

/// Whether a file is there, on a disk that may not answer.
fn is_there(path: &Path) -> bool {
    let look = || File::open(path).map(|_| Vec::new());
    reach::within(LOOK_WAIT, &[], look, || ()).is_ok_and(|found| found.is_some_and(|found| found.is_ok()))
}

/// A vault's lock file, as it was when the mount was there.
struct LockFile {
    file: File,
    before: String,
}

impl LockFile {
    fn open(vault: &Path) -> Option<LockFile> {
        // Whatever was put in its place is not waited for.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(vault.join(LOCK)).ok()?;
        let lock = LockFile { file, before: String::new() };
        let before = lock.text();
        Some(LockFile { before, ..lock })
    }

    fn text(&self) -> String {
        let read = || {
            let mut text = vec![0; LOCK_BYTES_MAX];
            let len = self.file.read_at(&mut text, 0)?;
            text.truncate(len);
            Ok(text)
        };
        let text = reach::within(LOOK_WAIT, &[self.file.as_raw_fd()], read, || ());
        text.ok().flatten().and_then(Result::ok).and_then(|text| String::from_utf8(text).ok()).unwrap_or_default()
    }

    /// What its holder wrote since: the daemon, for its number stood there before.
    fn word(&self) -> Option<LastWord> {
        self.before.trim().parse::<i32>().ok()?;
        word_of_lock(&self.text())
    }
}

/// What a word in the lock file says of how the vault was closed.
fn word_of_lock(text: &str) -> Option<LastWord> {
    let word = |exit, line: Option<String>| Some(LastWord { exit, lines: line.into_iter().collect() });
    match text.lines().next().unwrap_or_default().trim() {
        "closed" => word(Exit::Ok, None),
        "away" => {
            let line = "everything is safe, but part of it is in the emergency directory until the next mount";
            word(Exit::Away, Some(line.to_owned()))
        }
        line => {
            let why = line.strip_prefix("failed: ")?;
            word(Exit::FlushFailed, Some(format!("not everything could be brought to rest: {why}")))
        }
    }
}

/// Who holds the vault's lock, as the holder wrote into it.
pub fn holder(vault: &Path) -> Option<i32> {
    let text = read_file(&DirBacking::open(vault).ok()?, LOCK, LOCK_BYTES_MAX).ok()?;
    String::from_utf8(text).ok()?.trim().parse().ok()
}

/// The value of the key `pid`, however the line separates the two.
pub fn pid(config: &str) -> Option<i32> {
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
    fn the_lock_file_speaks_for_the_daemon_that_held_it_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let write = |text: &str| std::fs::write(dir.path().join(LOCK), text).unwrap();
        let exit = |lock: &LockFile| lock.word().map(|word| word.exit);
        write("42\n");
        let held = LockFile::open(dir.path()).unwrap();
        assert_eq!(exit(&held), None, "it was killed");
        for (text, means) in [
            ("closing\n", None),
            ("closed\n", Some(Exit::Ok)),
            ("away\n", Some(Exit::Away)),
            ("failed: no space\n", Some(Exit::FlushFailed)),
            ("", None),
        ] {
            write(text);
            assert_eq!(exit(&held), means, "{text}");
        }
        write("closed\n");
        assert_eq!(exit(&LockFile::open(dir.path()).unwrap()), None, "an earlier mount closed it");
        write("42\n");
        let held = LockFile::open(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join(LOCK)).unwrap();
        write("closed\n");
        assert_eq!(exit(&held), None, "another file lies in its place");
    }
}
