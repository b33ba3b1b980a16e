//! Brings all that was written to a mount to rest, before it is unmounted.
//!
//! Promise: after `Flushed::Everything` all that was written before the call is in the vault and verified.
//! How: the kernel's dirty pages are pushed out (`syncfs`), `control` flushes the vault and answers with an error if it could not,
//! and both are done again until a round finds nothing to do (`Rounds`). Another process looks at the numbers meanwhile, so a
//! daemon that stands still and a disk that takes nothing are told apart, and reported within a second.
//! Called by: `umount`. On failure: `Exit::FlushFailed`, or `Exit::NoAnswer` where the daemon does not answer. Nothing is changed:
//! whether the mount stays is for the caller to decide, and to say.

use super::exit::{Exit, Failure};
use super::last_word::readable;
use super::mounted;
use super::mounts::{self, Mount};
use super::print::{self, Progress};
use super::reach::{self, Errand, NOTICE_AFTER};
use super::size;
use crate::base::world::{RealWorld, World};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// How often the numbers are looked at.
const GLANCE: Duration = Duration::from_millis(100);
/// Between two rounds of which the first changed nothing, and yet something is under way.
const PAUSE: Duration = Duration::from_millis(5);
/// How long something may be under way between two rounds with no progress at all.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the daemon may give no sign.
pub const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// How long the vault may take nothing within a round: longer than the daemon gives a disk before it goes to another.
const STUCK_WAIT: Duration = Duration::from_secs(60);
/// The last word of whoever flushes; what else it says is a warning.
const DONE: &str = "done";
/// Begins the reason why it could not.
const FAILED: &str = "failed: ";
/// After this many rounds that each found something new, other programs are writing: whether they use the mount is for
/// the kernel to say.
const ROUNDS_MAX: u32 = 8;

/// A mount that is to be brought to rest.
pub struct Ground<'a> {
    /// Where it is mounted.
    pub path: &'a Path,
    /// The mount.
    pub mount: &'a Mount,
    /// Its daemon.
    pub daemon: Option<i32>,
    /// Writes that its vault had refused before.
    pub refused_before: Option<u64>,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Everything is at rest.
    Everything,
    /// Somebody else unmounted it meanwhile: the daemon's last word tells.
    Vanished,
}

impl Ground<'_> {
    /// Where its own files are.
    pub fn storage(&self) -> PathBuf {
        mounts::storage(self.path)
    }

    /// Whether the mount is still in its place.
    pub fn is_there(&self) -> bool {
        mounts::places_of(&self.mount.device).is_ok_and(|places| places.iter().any(|place| place == self.path))
    }

    fn failed(&self, exit: Exit, why: &str) -> Failure {
        Failure::new(exit, format!("{}: {why}", self.path.display()))
    }
}

/// Writes that the vault of a mount has refused so far; `None` if it does not say.
pub fn refused(mountpoint: &Path) -> Option<u64> {
    let stats = mounts::storage(mountpoint).join("stats.json");
    let look = reach::within(ANSWER_WAIT, &[], || Ok(Look::at(&stats).line().into_bytes()), || ());
    let line = look.ok().flatten()?.ok()?;
    Look::of_line(str::from_utf8(&line).ok()?).refused
}

/// Brings everything to rest.
pub fn flush(ground: &Ground<'_>) -> Result<Flushed, Failure> {
    let no_process = |e| ground.failed(Exit::FlushFailed, &format!("no process to flush with: {e}"));
    let mut rounds = {
        let (path, storage) = (ground.path, ground.storage());
        Errand::start(&[], |tell| report(tell, bring_to_rest(path, &storage, ground.refused_before, tell)))
    }
    .map_err(no_process)?;
    let stats = ground.storage().join("stats.json");
    let mut looks = match Errand::start(&[], |tell| watch(tell, &stats)) {
        Ok(looks) => looks,
        Err(e) => {
            rounds.abandon();
            return Err(no_process(e));
        }
    };
    match wait_for(ground, &mut rounds, &mut looks) {
        Ok(()) => {
            // Neither may have a file open when the mount is taken away.
            rounds.join();
            looks.join();
            Ok(Flushed::Everything)
        }
        Err(failure) => {
            rounds.abandon();
            looks.abandon();
            // What fails after somebody else took the mount away tells nothing.
            if ground.is_there() { Err(failure) } else { Ok(Flushed::Vanished) }
        }
    }
}

/// The last line of whoever flushes.
fn report(mut tell: &File, result: Result<(), (&'static str, io::Error)>) {
    let line = match result {
        Ok(()) => format!("{DONE}\n"),
        Err((what, e)) => format!("{FAILED}{what}: {e}\n"),
    };
    let _ = tell.write_all(line.as_bytes());
}

/// Tells the numbers again and again, until nobody hears them.
fn watch(mut tell: &File, stats: &Path) {
    // A pipe whose reader has gone reads as ready.
    while readable(&[tell.as_raw_fd()], Some(GLANCE)).is_empty() {
        if tell.write_all(format!("{}\n", Look::at(stats).line()).as_bytes()).is_err() {
            return;
        }
    }
}

fn wait_for(ground: &Ground<'_>, rounds: &mut Errand, looks: &mut Errand) -> Result<(), Failure> {
    let world = RealWorld::default();
    let progress = Progress::new("flushing");
    let (mut answered_at, mut moved_at) = (Duration::ZERO, Duration::ZERO);
    let (mut last, mut most_bytes) = (Look::default(), 0);
    let (mut said, mut seen) = (Vec::new(), Vec::new());
    let (mut noticed, mut has_looks) = (false, true);
    let at = ground.path.display();
    loop {
        let watched = [rounds.descriptor(), looks.descriptor()];
        let ready = readable(&watched[..1 + usize::from(has_looks)], Some(GLANCE));
        if ready.contains(&0) {
            let more = rounds.take_in(&mut said);
            while let Some(line) = next_line(&mut said) {
                if line == DONE {
                    return Ok(());
                }
                match line.strip_prefix(FAILED) {
                    Some(why) => return Err(ground.failed(Exit::FlushFailed, why)),
                    None => print::complain(&line),
                }
            }
            if !more {
                return Err(ground.failed(Exit::FlushFailed, "flushing: the process that did it has died"));
            }
        }
        if ready.contains(&1) {
            has_looks = looks.take_in(&mut seen);
            while let Some(line) = next_line(&mut seen) {
                let look = Look::of_line(&line);
                answered_at = world.elapsed();
                if look != last {
                    (last, moved_at) = (look, answered_at);
                }
                let left = look.pending_bytes.unwrap_or(0);
                most_bytes = most_bytes.max(left);
                progress.at(most_bytes - left, most_bytes);
            }
        }
        let now = world.elapsed();
        let (silent, stuck) = (now.saturating_sub(answered_at), now.saturating_sub(moved_at));
        let left = size::show(last.pending_bytes.unwrap_or(0));
        if silent >= ANSWER_WAIT {
            return Err(ground.failed(Exit::NoAnswer, &silence(ground.daemon)));
        }
        if stuck >= STUCK_WAIT {
            let why =
                format!("flushing: the disk took nothing for {} s, {left} are not yet safe", STUCK_WAIT.as_secs());
            return Err(ground.failed(Exit::FlushFailed, &why));
        }
        if !noticed && silent >= NOTICE_AFTER {
            noticed = true;
            print::complain(&format!("{at}: waiting: {}", reach::obstacle(ground.daemon)));
        } else if !noticed && stuck >= NOTICE_AFTER {
            noticed = true;
            let daemon = ground.daemon.map_or(String::new(), |pid| format!(" (process {pid})"));
            print::complain(&format!("{at}: waiting for the daemon{daemon} to flush: {left} not yet safe"));
        }
    }
}

/// Why nothing is done to a mount whose daemon does not answer.
pub fn silence(daemon: Option<i32>) -> String {
    let seconds = ANSWER_WAIT.as_secs();
    format!("no answer for {seconds} s: {}; umount --force ends it all the same", reach::obstacle(daemon))
}

/// Takes the first whole line out of what was told.
fn next_line(told: &mut Vec<u8>) -> Option<String> {
    let end = told.iter().position(|&b| b == b'\n')?;
    let line: Vec<u8> = told.drain(..=end).collect();
    Some(String::from_utf8_lossy(&line[..end]).into_owned())
}

/// Pushes and flushes until there is nothing left to push. One `syncfs` is not enough: on Linux 6.18 it hands FUSE's
/// dirty pages to the daemon's queue and returns, and what became of them is told by a later one. The order to `control`
/// goes through the same queue, behind them; when it is answered, the daemon has all of them in its hands or done.
fn bring_to_rest(
    path: &Path,
    storage: &Path,
    refused_before: Option<u64>,
    tell: &File,
) -> Result<(), (&'static str, io::Error)> {
    let pushing = |e| ("writing back the kernel's pages", e);
    let stats = storage.join("stats.json");
    // Opened once: the kernel tells each descriptor of each error since it was opened, and of earlier ones nobody saw.
    let top = File::open(path).map_err(pushing)?;
    let world = RealWorld::default();
    let mut rounds = Rounds::new(Look::at(&stats), world.elapsed());
    loop {
        if let Err(e) = push_pages(&top) {
            let warning = judge_push(path, e, refused_before, Look::at(&stats).refused).map_err(pushing)?;
            let mut tell = tell;
            let _ = tell.write_all(format!("{warning}\n").as_bytes());
            rounds.go_on();
        }
        ask(path).map_err(|e| ("flushing", e))?;
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
fn judge_push(path: &Path, e: io::Error, refused_before: Option<u64>, refused: Option<u64>) -> io::Result<String> {
    if refused_before.is_none() || refused != refused_before {
        return Err(e);
    }
    Ok(format!("warning: {}: {}: {e}", path.display(), earlier_error(refused)))
}

fn earlier_error(refused: Option<u64>) -> &'static str {
    match refused {
        Some(0) => "the kernel keeps an error of an earlier call, but the vault refused no write since it was mounted",
        _ => {
            "an earlier write failed and is not in the vault (if no fsync has told its program, its file is named at the end)"
        }
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
    /// Bytes written to the disk and read back so far.
    verified_bytes: Option<u64>,
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
            verified_bytes: stats["counters"]["verified_bytes"].as_u64(),
        }
    }

    /// All numbers on one line, `-` for one that is not said.
    fn line(&self) -> String {
        let all = [self.written_bytes, self.refused, self.under_way, self.pending_bytes, self.verified_bytes];
        all.map(|n| n.map_or("-".to_owned(), |n| n.to_string())).join(" ")
    }

    fn of_line(line: &str) -> Look {
        let mut numbers = line.split(' ').map(|n| n.parse().ok());
        let mut next = || numbers.next().flatten();
        Look {
            written_bytes: next(),
            refused: next(),
            under_way: next(),
            pending_bytes: next(),
            verified_bytes: next(),
        }
    }

    /// What a round is judged by: reading back goes on behind it.
    fn of_writers(self) -> Look {
        Look { verified_bytes: None, ..self }
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
        Rounds { last: before.of_writers(), progress_at: now, count: 0, with_news: 0, go_on: false }
    }

    /// This round is not the last, whatever it leaves.
    fn go_on(&mut self) {
        self.go_on = true;
    }

    fn after(&mut self, look: Look, now: Duration) -> Next {
        let look = look.of_writers();
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

fn ask(path: &Path) -> io::Result<()> {
    match mounted::order(path, b"flush") {
        // A mount for reading only has nothing to flush.
        Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Look =
        Look { written_bytes: None, refused: None, under_way: None, pending_bytes: None, verified_bytes: None };
    const CLEAN: Look =
        Look { written_bytes: Some(7), refused: Some(0), under_way: Some(0), pending_bytes: Some(0), ..NOTHING };

    #[test]
    fn numbers_go_through_a_line() {
        for look in [CLEAN, NOTHING, Look { verified_bytes: Some(u64::MAX), ..NOTHING }] {
            assert_eq!(Look::of_line(&look.line()), look);
        }
        let mut told = b"one\ntwo\nthr".to_vec();
        let lines: Vec<_> = std::iter::from_fn(|| next_line(&mut told)).collect();
        assert_eq!((lines, told), (vec!["one".to_owned(), "two".to_owned()], b"thr".to_vec()));
    }

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
}
