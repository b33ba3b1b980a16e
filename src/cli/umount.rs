//! Flushes and unmounts, and returns once everything is at rest.
//!
//! Promise: 0 means that all data is in the vault and verified, the daemon is gone, and the vault may be copied or mounted
//! again. Why it holds: the kernel's dirty pages are pushed out (`syncfs`), `control` flushes the vault and answers with an
//! error if it could not, and both are done again until a round finds nothing to do (`Rounds`); then the kernel unmounts (`taker`),
//! then the daemon's end is waited for, and what it wrote last into the vault's lock file is read.
//! Called by: a person, systemd. On failure: what is still mounted stays so, except a mount whose daemon is dead.

use super::exit::{Exit, Failure};
use super::mounts;
use super::print::{self, Progress};
use super::status;
use super::taker::{self, End, Process};
use crate::backing::{DirBacking, read_file};
use crate::base::world::{RealWorld, World};
use crate::vault::LOCK;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Most that is read of a lock file: a word, and what earlier holders left behind it.
const LOCK_BYTES_MAX: usize = 4096;

/// How often what is left is looked at.
const GLANCE: Duration = Duration::from_millis(100);
/// Between two rounds of which the first changed nothing, and yet something is under way.
const PAUSE: Duration = Duration::from_millis(5);
/// How long something may be under way with no progress at all.
const PATIENCE: Duration = Duration::from_secs(30);
/// After this many rounds that each found something new, other programs are writing: whether they use the mount is for
/// the kernel to say.
const ROUNDS_MAX: u32 = 8;
/// How long a mount may be busy: files of a program that has just ended are let go a little later.
const BUSY: Duration = Duration::from_secs(2);

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
    let daemon = pid.and_then(Process::of);
    let end = mount.as_ref().zip(daemon.as_ref()).map(|(mount, daemon)| End { mount, daemon });
    flush_and_unmount(&path, &storage, end.as_ref())?;
    wait_for_end(daemon, vault)?;
    let last_word = vault.and_then(lock_text);
    judge_end(&path, last_word.as_deref(), pid)?;
    Ok(Exit::Ok)
}

/// A mount whose daemon has died: nothing can be flushed any more, so it is only taken away, and said.
fn bury(path: &Path) -> Result<Exit, Failure> {
    let at = path.display();
    if !unmount(path, true, None)? {
        return Err(Failure::new(
            Exit::Busy,
            format!("{at}: its daemon has died, and something still uses it (EBUSY)"),
        ));
    }
    let lost = "what was not yet flushed is lost, the vault recovers at its next mount";
    Err(Failure::new(Exit::FlushFailed, format!("{at}: its daemon had died; unmounted, but {lost}")))
}

/// Unmounts what is at rest. Busy may be for a moment only, and whoever held it may have left pages behind: so each new
/// attempt is preceded by a new flush.
fn flush_and_unmount(path: &Path, storage: &Path, end: Option<&End<'_>>) -> Result<(), Failure> {
    let world = RealWorld::default();
    let mut busy_since = None;
    // Counted from here, so that what is refused between two attempts is not taken for an earlier write.
    let refused_before = Look::at(&storage.join("stats.json")).refused;
    let mut pause = PAUSE;
    loop {
        flush(path, storage, refused_before)?;
        if unmount(path, false, end)? {
            return Ok(());
        }
        let since = *busy_since.get_or_insert_with(|| world.elapsed());
        if world.elapsed().saturating_sub(since) >= BUSY {
            let known = "what was written before is flushed; it stays mounted";
            let at = path.display();
            return Err(Failure::new(Exit::Busy, format!("{at}: something still uses it (EBUSY); {known}")));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(GLANCE * 2);
    }
}

fn flush(path: &Path, storage: &Path, refused_before: Option<u64>) -> Result<(), Failure> {
    let failed = |what: &str, e: &io::Error| {
        Failure::new(Exit::FlushFailed, format!("{}: {what}: {e}; it stays mounted", path.display()))
    };
    let (tell, told) = mpsc::channel();
    let (top, below) = (path.to_owned(), storage.to_owned());
    let work = move || {
        // Nobody listens any more only if the command was ended.
        let _ = tell.send(bring_to_rest(&top, &below, refused_before));
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

/// Pushes and flushes until there is nothing left to push. One `syncfs` is not enough: on Linux 6.18 it hands FUSE's
/// dirty pages to the daemon's queue and returns, and what became of them is told by a later one. The order to `control`
/// goes through the same queue, behind them; when it is answered, the daemon has all of them in its hands or done.
fn bring_to_rest(path: &Path, storage: &Path, refused_before: Option<u64>) -> Result<(), (&'static str, io::Error)> {
    let pushing = |e| ("writing back the kernel's pages", e);
    let (control, stats) = (storage.join("control"), storage.join("stats.json"));
    // Opened once: the kernel tells each descriptor of each error since it was opened, and of earlier ones nobody saw.
    let top = File::open(path).map_err(pushing)?;
    let world = RealWorld::default();
    let mut rounds = Rounds::new(Look::at(&stats), world.elapsed());
    loop {
        if let Err(e) = push_pages(&top) {
            judge_push(path, e, refused_before, Look::at(&stats).refused).map_err(pushing)?;
            rounds.go_on();
        }
        ask(&control).map_err(|e| ("flushing", e))?;
        match rounds.after(Look::at(&stats), world.elapsed()) {
            Next::Round => {}
            Next::Wait => thread::sleep(PAUSE),
            Next::Done => return Ok(()),
            Next::GiveUp { still } => return Err(("flushing", no_progress(still))),
        }
    }
}

fn no_progress(still: Look) -> io::Error {
    let (writes, bytes) = (still.under_way.unwrap_or(0), still.pending_bytes.unwrap_or(0));
    let seconds = PATIENCE.as_secs();
    io::Error::other(format!(
        "no progress for {seconds} s, with {writes} writes under way and {bytes} bytes not yet safe"
    ))
}

/// An error of `syncfs`. The kernel also keeps an earlier one (a file that did not fit, deleted long ago) for whoever syncs
/// next, once; the writer was told of it at fsync or close, and its pages are gone: that one is passed on as a warning. An
/// error of a page that was dirty until now has been told to nobody else, and is ours. Where the vault refused no write at
/// all, it has everything that it was given.
fn judge_push(path: &Path, e: io::Error, refused_before: Option<u64>, refused: Option<u64>) -> io::Result<()> {
    if refused_before.is_none() || refused != refused_before {
        return Err(e);
    }
    print::complain(&format!("warning: {}: {}: {e}", path.display(), earlier_error(refused)));
    Ok(())
}

fn earlier_error(refused: Option<u64>) -> &'static str {
    match refused {
        Some(0) => "the kernel keeps an error of an earlier call, but the vault refused no write since it was mounted",
        _ => "an earlier write failed and is not in the vault (fsync or close said so to its program)",
    }
}

/// What the daemon says of writing; `None` is what it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Look {
    /// Bytes taken from writers so far; orders to `control` do not count.
    written_bytes: Option<u64>,
    /// Writes answered with an error so far.
    refused: Option<u64>,
    /// Writes it has in its hands.
    under_way: Option<u64>,
    /// Bytes taken and not yet safe.
    pending_bytes: Option<u64>,
}

impl Look {
    fn at(stats: &Path) -> Look {
        let text = std::fs::read_to_string(stats).unwrap_or_default();
        let stats: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let write = &stats["operations"]["write"];
        Look {
            written_bytes: stats["counters"]["written_bytes"].as_u64(),
            refused: write["failures"].as_u64(),
            under_way: write["under_way"].as_u64(),
            pending_bytes: stats["gauges"]["pending_bytes"].as_u64(),
        }
    }

    fn is_at_rest(&self) -> bool {
        self.under_way.unwrap_or(0) == 0 && self.pending_bytes.unwrap_or(0) == 0
    }
}

/// Counts rounds of push and flush. Done when one that was not the first changed nothing and left nothing under way: the
/// first may have returned before its pages were even begun with, the second would have met them.
struct Rounds {
    last: Look,
    progress_at: Duration,
    count: u32,
    with_news: u32,
    go_on: bool,
}

/// What follows a round.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Another one, at once.
    Round,
    /// Another one, in a moment.
    Wait,
    /// Everything that was written before the first round is at rest.
    Done,
    /// Something does not move.
    GiveUp { still: Look },
}

impl Rounds {
    fn new(before: Look, now: Duration) -> Rounds {
        Rounds { last: before, progress_at: now, count: 0, with_news: 0, go_on: false }
    }

    /// This round is not the last, whatever it leaves.
    fn go_on(&mut self) {
        self.go_on = true;
    }

    fn after(&mut self, look: Look, now: Duration) -> Next {
        let told = std::mem::take(&mut self.go_on);
        let news = told || look != self.last;
        self.last = look;
        self.count += 1;
        if news {
            self.progress_at = now;
            self.with_news += 1;
            return if self.with_news < ROUNDS_MAX { Next::Round } else { Next::Done };
        }
        match look.is_at_rest() {
            true if self.count > 1 => Next::Done,
            true => Next::Round,
            false if now.saturating_sub(self.progress_at) >= PATIENCE => Next::GiveUp { still: look },
            false => Next::Wait,
        }
    }
}

fn push_pages(top: &File) -> io::Result<()> {
    // SAFETY: the descriptor is ours.
    if unsafe { libc::syncfs(top.as_raw_fd()) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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

/// False while something uses it (EBUSY).
fn unmount(path: &Path, detach: bool, end: Option<&End<'_>>) -> Result<bool, Failure> {
    let flags = libc::UMOUNT_NOFOLLOW | if detach { libc::MNT_DETACH } else { 0 };
    match taker::take_away(path, flags, end) {
        Ok(()) => return Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Ok(false),
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
        Err(e) => return Err(Failure::new(Exit::Fuse, format!("{}: {e}", path.display()))),
    }
    let mut helper = Command::new("fusermount3");
    helper.arg("-u").args(detach.then_some("-z")).arg("--").arg(path).env("LC_ALL", "C");
    let output = taker::run_until(&mut helper, end);
    let Some(output) = output.map_err(|e| Failure::new(Exit::Fuse, format!("fusermount3: {e}")))? else {
        return Ok(true);
    };
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(true),
        false if said.contains("busy") => Ok(false),
        false => Err(Failure::new(Exit::Fuse, said.trim().to_owned())),
    }
}

fn wait_for_end(daemon: Option<Process>, vault: Option<&Path>) -> Result<(), Failure> {
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
pub(super) fn holder(vault: &Path) -> Option<i32> {
    lock_text(vault)?.trim().parse().ok()
}

/// What stands in the vault's lock file; nothing that is not one is read, nor waited for.
fn lock_text(vault: &Path) -> Option<String> {
    let text = read_file(&DirBacking::open(vault).ok()?, LOCK, LOCK_BYTES_MAX).ok()?;
    String::from_utf8(text).ok()
}

/// The value of the key `pid`, however the line separates the two.
pub(super) fn pid(config: &str) -> Option<i32> {
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

    const CLEAN: Look = Look { written_bytes: Some(7), refused: Some(0), under_way: Some(0), pending_bytes: Some(0) };

    #[test]
    fn a_clean_mount_takes_two_rounds_and_no_pause() {
        for look in [CLEAN, Look::default()] {
            let mut rounds = Rounds::new(look, Duration::ZERO);
            assert_eq!(rounds.after(look, Duration::ZERO), Next::Round);
            assert_eq!(rounds.after(look, Duration::ZERO), Next::Done);
        }
    }

    #[test]
    fn rounds_go_on_until_one_changes_nothing_and_leaves_nothing() {
        let under_way = Look { under_way: Some(3), ..CLEAN };
        let came_in = Look { written_bytes: Some(9), pending_bytes: Some(2), ..CLEAN };
        let at_rest = Look { pending_bytes: Some(0), ..came_in };
        let mut rounds = Rounds::new(CLEAN, Duration::ZERO);
        for (look, next) in [
            (under_way, Next::Round),
            (under_way, Next::Wait),
            (came_in, Next::Round),
            (came_in, Next::Wait),
            (at_rest, Next::Round),
        ] {
            assert_eq!(rounds.after(look, Duration::ZERO), next, "{look:?}");
        }
        rounds.go_on();
        assert_eq!(rounds.after(at_rest, Duration::ZERO), Next::Round, "an error was told in this round");
        assert_eq!(rounds.after(at_rest, Duration::ZERO), Next::Done);
    }

    #[test]
    fn rounds_end_though_something_stands_still_or_never_ends() {
        let stuck = Look { under_way: Some(1), ..CLEAN };
        let mut rounds = Rounds::new(stuck, Duration::ZERO);
        assert_eq!(rounds.after(stuck, PATIENCE - PAUSE), Next::Wait);
        assert_eq!(rounds.after(stuck, PATIENCE), Next::GiveUp { still: stuck });
        let mut rounds = Rounds::new(CLEAN, Duration::ZERO);
        let busy = |n| Look { written_bytes: Some(n), ..stuck };
        let count = (8..).take_while(|&n| rounds.after(busy(n), Duration::ZERO) != Next::Done).count();
        assert_eq!(count + 1, ROUNDS_MAX as usize);
    }

    #[test]
    fn an_error_of_writing_back_is_ours_if_writes_were_refused_meanwhile() {
        let judge = |before, after| judge_push(Path::new("/m"), io::Error::other("full"), before, after);
        assert!(judge(Some(3), Some(3)).is_ok(), "an earlier one is a warning");
        for (before, after) in [(Some(3), Some(4)), (None, Some(3)), (Some(3), None), (None, None)] {
            assert!(judge(before, after).is_err(), "{before:?} {after:?}");
        }
    }

    #[test]
    fn where_no_write_was_refused_none_is_said_to_be_missing() {
        assert!(earlier_error(Some(0)).ends_with("the vault refused no write since it was mounted"));
        assert!(earlier_error(Some(1)).starts_with("an earlier write failed"));
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
