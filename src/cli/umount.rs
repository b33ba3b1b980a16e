//! Flushes and unmounts, and returns once everything is at rest.
//!
//! Promise: 0 means that all data is in the vault and verified, the daemon is gone, and the vault may be copied or mounted
//! again. Why it holds: everything is brought to rest (`flush`), then the kernel unmounts (`taker`), then the daemon's end is
//! waited for (`ending`), and its last word must say that it closed the vault: silence is a failure.
//! Data is given up only with `--discard` or `--force`, after what is lost was named and a person agreed, or `--yes` was given.
//! Called by: a person, systemd. On failure: what is still mounted stays so, except a mount whose daemon is dead.

use super::emergency::{NOT_SAVED, REFUSED_WHY};
use super::ending::{self, Ending};
use super::exit::{Exit, Failure};
use super::flush::{self, ANSWER_WAIT, Flushed, Ground};
use super::holders::Holders;
use super::last_word::{LastWord, Stage};
use super::mounts::{self, Mount};
use super::print::{self, Progress};
use super::taker::{self, End};
use super::{reach, refused};
use crate::base::world::{RealWorld, World};
use crate::fs::{RefusedFile, named};
use std::collections::{HashMap, HashSet};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

/// How often the daemon's end is looked for.
const GLANCE: Duration = Duration::from_millis(100);
/// First pause between two attempts to unmount; doubled up to twice a glance.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a mount may be busy: files of a program that has just ended are let go a little later.
const BUSY: Duration = Duration::from_secs(2);
/// How long after the unmount a daemon may go on serving before those are looked for who hold the filesystem.
const HELD_AFTER: Duration = Duration::from_secs(2);
/// How long it may go on though nobody is found.
const HELD_MOST: Duration = Duration::from_secs(30);
/// How long programs are looked for that open files for a moment at a time.
const MOMENTS: Duration = Duration::from_secs(2);
/// How long the search for them may take.
const SEARCH: Duration = Duration::from_secs(20);
/// How long an answer is waited for where force was asked for.
const FORCE_AFTER: Duration = Duration::from_secs(5);
/// How long closing the vault may take where what cannot be saved was given up; else it takes as long as the disk does.
const CLOSE_WAIT: Duration = Duration::from_secs(90);
/// How long a daemon that was told to end may take, before it is killed (`--force`).
const END_WAIT: Duration = Duration::from_secs(40);
/// How long the list of them may take: the names of a large vault are many.
const UNSAVED_WAIT: Duration = Duration::from_secs(10);
/// Most unsaved files that are named; the rest is counted.
const UNSAVED_LINES_MAX: usize = 100;

/// What is known of a mount whose daemon is still there, and which cannot be seen at its path.
const GONE: &str = "nothing is mounted there in this mount namespace";

/// Flush and unmount; returns once everything is durable.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the vault is mounted
    mountpoint: PathBuf,
    /// End the mount also while it is in use, here or in another mount namespace, and if its daemon does not answer
    #[arg(long)]
    force: bool,
    /// Give up what cannot be saved (a mount in state error or full): names it, and asks
    #[arg(long)]
    discard: bool,
    /// Do not ask before data is given up
    #[arg(long)]
    yes: bool,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let path = mounts::whole_path(&args.mountpoint).map_err(|e| Failure::io(&args.mountpoint, &e))?;
    let exit = end_mount(args, &path)?;
    if args.json {
        print::json(&serde_json::json!({ "ok": true, "mountpoint": path.to_string_lossy() }))?;
    }
    Ok(exit)
}

fn end_mount(args: &Args, path: &Path) -> Result<Exit, Failure> {
    let Some(mount) = found(path)? else { return follow_up(args, path) };
    // The directory that this command was started in must not be what keeps the mount.
    let _ = std::env::set_current_dir("/");
    let mut ending = Ending::of(&mount);
    if args.force {
        let_go_on(path, &ending)?;
    }
    let config = match look(args, path, &ending)? {
        Some(Ok(config)) => config,
        Some(Err(e)) if mounts::daemon_died(&e) => return bury(path, &mount),
        // The kernel keeps root out of a user's mount; as that user the command may end it.
        Some(Err(e)) if e.raw_os_error() == Some(libc::EACCES) && mount.act_as_owner() => return end_mount(args, path),
        Some(Err(e)) => return Err(Failure::io(&path.join(".storage"), &e)),
        None if args.force => return end_by_force(args, path, &mount, ending),
        None => {
            let why = flush::silence(ending.pid);
            return Err(Failure::new(Exit::NoAnswer, format!("{}: {why}; it stays mounted", path.display())));
        }
    };
    // Known while the process surely is the daemon: its number may be another's a moment after it ended.
    ending.learn(ending::pid(&config));
    // Counted from here, so that what is refused between two attempts is not taken for an earlier write.
    let refused_before = flush::refused(path);
    let ground = Ground { path, mount: &mount, daemon: ending.pid, refused_before };
    let given_up = match flush_and_unmount(args, &ground, &ending) {
        Ok(()) => None,
        Err(failure) if failure.exit == Exit::FlushFailed && args.discard => {
            Some(give_up(args, &ground, &ending, failure)?)
        }
        Err(failure) if failure.exit == Exit::FlushFailed => return Err(with_the_way_out(path, failure)),
        Err(failure) if failure.exit == Exit::NoAnswer && args.force => {
            return end_by_force(args, path, &mount, ending);
        }
        Err(failure) if failure.exit == Exit::NoAnswer => {
            return Err(Failure::new(failure.exit, format!("{}; it stays mounted", failure.sentence)));
        }
        Err(failure) => return Err(failure),
    };
    let done = match given_up {
        None => "unmounted here, and flushed",
        Some(_) => "unmounted here",
    };
    let word = await_end(args, path, done, &mount.device, &mut ending)?;
    match given_up {
        Some(loss) => Err(discarded(path, &loss, word)),
        None => judge(path, word),
    }
}

/// The mount at a path: one of ours, or one that has our files though its kind does not tell.
fn found(path: &Path) -> Result<Option<Mount>, Failure> {
    if let Some(mount) = mounts::at(path)? {
        mount.must_be_whole()?;
        return Ok(Some(mount));
    }
    let top = mounts::topmost(path).map_err(|e| Failure::io(path, &e))?;
    let version = mounts::storage(path).join("version");
    let is_ours =
        top.is_some() && matches!(reach::within(ANSWER_WAIT, &[], || std::fs::read(version), || ()), Ok(Some(Ok(_))));
    Ok(top.filter(|_| is_ours))
}

/// Reads the mount's settings; `None` if there is no answer.
fn look(args: &Args, path: &Path, ending: &Ending) -> Result<Option<io::Result<String>>, Failure> {
    let config = mounts::storage(path).join("config");
    let notice = || print::complain(&format!("{}: waiting: {}", path.display(), reach::obstacle(ending.pid)));
    let patience = if args.force { FORCE_AFTER } else { ANSWER_WAIT };
    let read = reach::within(patience, &[], || std::fs::read(config), notice).map_err(|e| Failure::io(path, &e))?;
    Ok(read.map(|read| read.map(|text| String::from_utf8_lossy(&text).into_owned())))
}

/// Follows the end of a mount that is gone: the program that unmounted it may not have waited for the vault to be closed.
fn follow_up(args: &Args, path: &Path) -> Result<Exit, Failure> {
    let at = path.display();
    let elsewhere = |what: &str, place: &Path| {
        let place = place.display();
        Failure::new(Exit::NotMounted, format!("{at}: {what} is mounted at {place}: strongroom umount {place}"))
    };
    if let Some(mount) = mounts::strongrooms()?.into_iter().rfind(|mount| mount.source == path) {
        return Err(elsewhere("this is a vault, which", &mount.mountpoint));
    }
    let Some((mut ending, device)) = Ending::left_behind(path) else {
        return Err(Failure::new(Exit::NotMounted, format!("{at}: no strongroom is mounted there")));
    };
    let places = mounts::places_of(&device).unwrap_or_default();
    if let (Some(place), false) = (places.first(), args.force) {
        return Err(elsewhere("nothing is mounted there any more; what was", place));
    }
    // It may never have been mounted in this mount namespace, so nothing is said of an unmount.
    let word = await_end(args, path, GONE, &device, &mut ending)?;
    judge(path, word)
}

/// A mount that no daemon serves any more: it is taken away. The daemon may have closed the vault all the same, where somebody
/// aborted the connection.
fn bury(path: &Path, mount: &Mount) -> Result<Exit, Failure> {
    let at = path.display();
    let ending = Ending::of_cut_off(mount);
    if !unmount(path, true, None)? {
        return Err(Failure::new(
            Exit::Busy,
            format!("{at}: its daemon has died, and something still uses it (EBUSY)"),
        ));
    }
    let word = ending.and_then(|mut ending| ended_within(&mut ending, END_WAIT).flatten());
    Err(match word {
        Some(LastWord { exit: Exit::Ok, .. }) => {
            let lost = "what the kernel had not handed to it is lost";
            let sentence =
                format!("{at}: somebody cut it off from its daemon, which closed the vault; unmounted, but {lost}");
            Failure::new(Exit::FlushFailed, sentence)
        }
        Some(word) => return judge(path, Some(word)),
        None => {
            let lost = "what was not yet flushed is lost, the vault recovers at its next mount";
            Failure::new(Exit::FlushFailed, format!("{at}: its daemon had died; unmounted, but {lost}"))
        }
    })
}

/// The last word of a daemon that ends within a while.
fn ended_within(ending: &mut Ending, wait: Duration) -> Option<Option<LastWord>> {
    let world = RealWorld::default();
    while world.elapsed() < wait {
        if let Stage::Ended(word) = ending.stage(GLANCE) {
            return Some(word);
        }
    }
    None
}

/// Unmounts what is at rest. Busy may be for a moment only, and whoever held it may have left pages behind: so each new
/// attempt is preceded by a new flush.
fn flush_and_unmount(args: &Args, ground: &Ground<'_>, ending: &Ending) -> Result<(), Failure> {
    let world = RealWorld::default();
    let end = ending.end_of(ground.mount);
    let mut busy_since = None;
    let mut pause = PAUSE;
    let mut has_asked = false;
    loop {
        if flush::flush(ground)? == Flushed::Vanished {
            return Ok(());
        }
        if !std::mem::replace(&mut has_asked, true) {
            refused::ask_the_kernel(ground.path);
        }
        if take_away(ground, false, end.as_ref())? {
            return Ok(());
        }
        let since = *busy_since.get_or_insert_with(|| world.elapsed());
        if world.elapsed().saturating_sub(since) >= BUSY {
            return detach_if_forced(args, ground, end.as_ref());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(GLANCE * 2);
    }
}

/// A busy mount stays, unless force was asked for; both name who uses it.
fn detach_if_forced(args: &Args, ground: &Ground<'_>, end: Option<&End<'_>>) -> Result<(), Failure> {
    let at = ground.path.display();
    let users = who_keeps_it_busy(&ground.mount.device, &format!("it is mounted at {at}"));
    if !args.force {
        let known = "what was written before is flushed; it stays mounted";
        return Err(Failure::new(Exit::Busy, format!("{at}: something still uses it (EBUSY): {users}; {known}")));
    }
    print::complain(&format!("warning: {at}: taken away from those who use it: {users}"));
    match take_away(ground, true, end)? {
        true => Ok(()),
        false => Err(Failure::new(Exit::Busy, format!("{at}: something still uses it (EBUSY): {users}"))),
    }
}

/// Unmounts; true also where somebody else did it first. False while something uses it (EBUSY).
fn take_away(ground: &Ground<'_>, detach: bool, end: Option<&End<'_>>) -> Result<bool, Failure> {
    match unmount(ground.path, detach, end) {
        Err(_) | Ok(false) if !ground.is_there() => Ok(true),
        other => other,
    }
}

/// Who holds a filesystem, but for the mount that is known anyway.
fn who_holds(device: &str, but: &str) -> Holders {
    let found = reach::within(SEARCH, &[], || Ok(Holders::of(device).encode()), || ());
    let mut holders = match found {
        Ok(Some(Ok(found))) => Holders::decode(&found),
        // It took too long.
        _ => Holders { all: Vec::new(), some_unseen: true },
    };
    holders.all.retain(|holder| holder != but);
    holders
}

/// The programs that keep a mount busy, in words. A program that opens files for a moment at a time is looked for again.
fn who_keeps_it_busy(device: &str, but: &str) -> String {
    let world = RealWorld::default();
    loop {
        let holders = who_holds(device, but);
        if !holders.all.is_empty() {
            return holders.phrase();
        }
        if world.elapsed() >= MOMENTS {
            let who = "a program that opens files there for a moment at a time";
            let unseen = if holders.some_unseen { ", or one that this user may not look at" } else { "" };
            return format!("{who}{unseen}");
        }
    }
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

/// Waits until the daemon has ended; gives its last word, or `None` if it ended without one. `done` says what was achieved.
fn await_end(
    args: &Args,
    path: &Path,
    done: &str,
    device: &str,
    ending: &mut Ending,
) -> Result<Option<LastWord>, Failure> {
    let world = RealWorld::default();
    let progress = Progress::new("waiting for the vault to close");
    let at = path.display();
    let (mut noticed, mut ordered_at) = (false, None);
    loop {
        let stage = ending.stage(GLANCE);
        let waited = world.elapsed();
        match stage {
            Stage::Ended(word) => return Ok(word),
            Stage::Closing if waited >= CLOSE_WAIT && (args.force || args.discard) => {
                let why = reach::obstacle(ending.pid);
                let sentence = format!("{at}: unmounted, but {why}: the vault is locked until it has ended");
                return Err(Failure::new(Exit::NoAnswer, sentence));
            }
            Stage::Closing => {}
            Stage::Serving if waited < HELD_AFTER => {}
            Stage::Serving if args.force => {
                let since = *ordered_at.get_or_insert(waited);
                if since == waited {
                    print::complain(&format!("{at}: telling the daemon to end, though the filesystem is held"));
                    ending.tell_to_end().map_err(|e| Failure::new(Exit::Held, format!("{at}: the daemon: {e}")))?;
                }
                if waited.saturating_sub(since) >= END_WAIT {
                    let why = reach::obstacle(ending.pid);
                    return Err(Failure::new(Exit::NoAnswer, format!("{at}: unmounted here, but {why}")));
                }
            }
            Stage::Serving => {
                let holders = who_holds(device, "");
                if !holders.all.is_empty() || waited >= HELD_MOST {
                    let (who, force) = (holders.phrase(), format!("strongroom umount --force {at}"));
                    let sentence = format!(
                        "{at}: {done}, but the vault stays open, for it is still in use: {who}. \
                         It is closed when that ends; {force} closes it now"
                    );
                    return Err(Failure::new(Exit::Held, sentence));
                }
            }
        }
        if !noticed && waited >= reach::NOTICE_AFTER {
            noticed = true;
            let daemon = ending.pid.map_or("the daemon".to_owned(), |pid| format!("the daemon (process {pid})"));
            let done = if done == GONE { GONE } else { "unmounted" };
            print::complain(&format!("{at}: {done}; waiting for {daemon} to close the vault"));
        }
        progress.at(0, 0);
    }
}

/// What the daemon said of its end: data written between the flush and the unmount came to rest only if it closed the vault.
fn judge(path: &Path, word: Option<LastWord>) -> Result<Exit, Failure> {
    let at = path.display();
    let Some(word) = word else {
        let why = "its daemon ended without a word that it closed the vault: what was not yet safe is lost";
        let sentence = format!("{at}: unmounted, but {why}; the vault recovers at its next mount");
        return Err(Failure::new(Exit::FlushFailed, sentence));
    };
    let (first, rest) = word.lines.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    rest.iter().for_each(|line| print::complain(line));
    match word.exit {
        Exit::Ok => Ok(Exit::Ok),
        Exit::Away => Err(Failure::new(Exit::Away, format!("{at}: unmounted: {first}"))),
        _ => Err(Failure::new(word.exit, format!("{at}: unmounted, but {first}"))),
    }
}

/// A mount whose vault cannot be flushed: what a person can do.
fn with_the_way_out(path: &Path, failure: Failure) -> Failure {
    let at = path.display();
    let ways = format!(
        "{at}/.storage/errors says why, {at}/.storage/unsaved lists what is not saved. It is saved as soon as the disk takes it; \
         strongroom umount --discard {at} gives it up"
    );
    Failure::new(failure.exit, format!("{}; it stays mounted. {ways}", failure.sentence))
}

/// Unmounts although not everything is durable, once the loss was listed and a person agreed. Returns the loss.
fn give_up(args: &Args, ground: &Ground<'_>, ending: &Ending, failure: Failure) -> Result<Loss, Failure> {
    print::complain(&failure.sentence);
    let loss = name_unsaved(ground.path, UNSAVED_WAIT);
    if !is_agreed(args, &format!("Unmount {} and lose {}?", ground.path.display(), loss.summary))? {
        return Err(Failure::new(
            failure.exit,
            format!("{}: nothing was given up; it stays mounted", ground.path.display()),
        ));
    }
    let (world, end) = (RealWorld::default(), ending.end_of(ground.mount));
    while !take_away(ground, false, end.as_ref())? {
        // The flush that failed may still have files open for a moment, as any program that has just ended.
        if world.elapsed() >= BUSY {
            detach_if_forced(args, ground, end.as_ref())?;
            break;
        }
        thread::sleep(GLANCE);
    }
    Ok(loss)
}

/// Data that is given up.
struct Loss {
    /// What it is in all, for a question.
    summary: String,
    /// The lines that named the files.
    lines: Vec<String>,
}

/// Prints the path of each file that is not saved.
fn name_unsaved(path: &Path, wait: Duration) -> Loss {
    let unsaved = mounts::storage(path).join("unsaved");
    let read = reach::within(wait, &[], || std::fs::read(unsaved), || ());
    match read {
        Ok(Some(Ok(text))) => {
            let text = String::from_utf8_lossy(&text);
            let mut lines = one_for_each_file(text.lines().map(|line| format!("{NOT_SAVED}{line}")));
            let count = lines.len();
            lines.truncate(UNSAVED_LINES_MAX);
            if count > UNSAVED_LINES_MAX {
                lines.push(format!("{NOT_SAVED}{} more", count - UNSAVED_LINES_MAX));
            }
            lines.iter().for_each(|line| print::complain(line));
            let summary = match count {
                0 => "nothing that the daemon knows of".to_owned(),
                1 => "what was written to 1 file and is not saved".to_owned(),
                n => format!("what was written to {n} files and is not saved"),
            };
            Loss { summary, lines }
        }
        _ => {
            let what = "what was written since the last fsync, which cannot be listed, for the daemon does not answer";
            Loss { summary: what.to_owned(), lines: Vec::new() }
        }
    }
}

/// The file that a line names.
fn file_of(line: &str) -> Option<String> {
    let file = line.strip_prefix(NOT_SAVED)?;
    let refused = RefusedFile::read(file).map(|refused| named(refused.ino, refused.path.as_deref()));
    Some(refused.unwrap_or_else(|| file.to_owned()))
}

/// Of several lines that name the same file, the last one: it says how many bytes were refused.
fn one_for_each_file(lines: impl Iterator<Item = String>) -> Vec<String> {
    let lines: Vec<String> = lines.collect();
    let last: HashMap<_, _> = lines.iter().enumerate().map(|(at, line)| (file_of(line), at)).collect();
    let is_last = |at: usize, line: &str| last.get(&file_of(line)) == Some(&at);
    lines.iter().enumerate().filter(|(at, line)| is_last(*at, line)).map(|(_, line)| line.clone()).collect()
}

/// The lines of a last word that name no file, or one that was not listed before.
fn news<'a>(lines: &'a [String], listed: &[String]) -> Vec<&'a str> {
    let listed: HashSet<_> = listed.iter().filter_map(|line| file_of(line)).collect();
    let is_news = |line: &&str| file_of(line).is_none_or(|file| !listed.contains(&file));
    let mut news: Vec<&str> = lines.iter().map(String::as_str).filter(is_news).collect();
    let is_refused = |line: &&str| line.strip_prefix(NOT_SAVED).and_then(RefusedFile::read).is_some();
    if !news.iter().any(is_refused) {
        news.retain(|line| *line != REFUSED_WHY);
    }
    news
}

/// Asks on the terminal; where there is none, `--yes` must have been given.
fn is_agreed(args: &Args, question: &str) -> Result<bool, Failure> {
    if args.yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let sentence = format!("{question} There is no terminal to ask on: --yes says so");
        return Err(Failure::new(Exit::Usage, sentence));
    }
    print::complain(&format!("{question} (yes/no)"));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|e| Failure::new(Exit::Io, format!("the terminal: {e}")))?;
    Ok(matches!(answer.trim(), "yes" | "y"))
}

/// Lets a daemon that a signal stopped go on: it can then save everything.
fn let_go_on(path: &Path, ending: &Ending) -> Result<(), Failure> {
    let Some(pid) = ending.pid.filter(|&pid| reach::is_stopped(pid)) else { return Ok(()) };
    let at = path.display();
    print::complain(&format!("{at}: its daemon (process {pid}) was stopped: it is let go on"));
    ending.signal(libc::SIGCONT).map_err(|e| Failure::new(Exit::NoAnswer, format!("{at}: process {pid}: {e}")))
}

/// Ends a mount whose daemon does not answer, once it was agreed to lose what is not saved.
fn end_by_force(args: &Args, path: &Path, mount: &Mount, mut ending: Ending) -> Result<Exit, Failure> {
    let at = path.display();
    let loss = name_unsaved(path, HELD_AFTER);
    if !is_agreed(args, &format!("Unmount {at} by force and lose {}?", loss.summary))? {
        return Err(Failure::new(Exit::NoAnswer, format!("{at}: nothing was given up; it stays mounted")));
    }
    let ground = Ground { path, mount, daemon: ending.pid, refused_before: None };
    // Whoever waits for the daemon gets an error; where that is refused, they wait until it has ended.
    let _ = taker::take_away(path, libc::UMOUNT_NOFOLLOW | libc::MNT_FORCE, None);
    take_away(&ground, true, None)?;
    let _ = ending.tell_to_end();
    if let Some(word) = ended_within(&mut ending, END_WAIT) {
        return Err(discarded(path, &loss, word));
    }
    let _ = ending.signal(libc::SIGKILL);
    if let Some(word) = ended_within(&mut ending, HELD_AFTER) {
        return Err(discarded(path, &loss, word));
    }
    let why = reach::obstacle(ending.pid);
    Err(Failure::new(Exit::NoAnswer, format!("{at}: unmounted, but {why}: the vault is locked until it has ended")))
}

/// The end of a mount of which data was given up. A file that was listed before is not listed again.
fn discarded(path: &Path, loss: &Loss, word: Option<LastWord>) -> Failure {
    let at = path.display();
    let end = match &word {
        Some(word) if word.exit == Exit::Ok => "the vault is closed".to_owned(),
        Some(word) => {
            news(&word.lines, &loss.lines).into_iter().for_each(print::complain);
            "the vault recovers at its next mount".to_owned()
        }
        None => "its daemon was killed, the vault recovers at its next mount".to_owned(),
    };
    Failure::new(Exit::Discarded, format!("{at}: unmounted; what could not be saved is given up; {end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_vault_that_was_closed_is_success() {
        let exit = |word: Option<LastWord>| judge(Path::new("/m"), word).unwrap_or_else(|failure| failure.exit);
        let word = |exit| Some(LastWord { exit, lines: vec!["why".to_owned()] });
        assert_eq!(exit(word(Exit::Ok)), Exit::Ok);
        assert_eq!(exit(None), Exit::FlushFailed, "silence");
        for code in Exit::ALL.iter().filter(|code| **code != Exit::Ok) {
            assert_eq!(exit(word(*code)), *code);
        }
        let told = judge(Path::new("/m"), word(Exit::Away)).unwrap_err();
        assert_eq!(told.sentence, "/m: unmounted: why");
    }

    #[test]
    fn what_was_given_up_is_never_success() {
        let word = |exit| Some(LastWord { exit, lines: Vec::new() });
        for word in [None, word(Exit::Ok), word(Exit::FlushFailed)] {
            let loss = Loss { summary: String::new(), lines: Vec::new() };
            assert_eq!(discarded(Path::new("/m"), &loss, word).exit, Exit::Discarded);
        }
    }

    #[test]
    fn a_file_is_listed_once_whatever_is_said_of_it() {
        let own = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
        let (unsaved, refused) = ("not saved: /a", "not saved: /a (inode 7): 5 bytes were refused");
        assert_eq!(
            one_for_each_file(own(&[unsaved, "not saved: /b", refused]).into_iter()),
            ["not saved: /b", refused]
        );
        let more = "not saved: /a (inode 7): 9 bytes were refused";
        assert_eq!(news(&own(&["why", REFUSED_WHY, more]), &own(&[refused])), ["why"]);
        assert_eq!(news(&own(&[REFUSED_WHY, more]), &own(&["not saved: /b"])), [REFUSED_WHY, more]);
    }

    #[test]
    fn without_a_terminal_nothing_is_given_up_unless_it_was_said() {
        let args = |yes| Args { mountpoint: "/m".into(), force: false, discard: true, yes, json: false };
        assert!(is_agreed(&args(true), "Lose it?").unwrap());
        if !io::stdin().is_terminal() {
            assert_eq!(is_agreed(&args(false), "Lose it?").unwrap_err().exit, Exit::Usage);
        }
    }

    #[test]
    fn where_nothing_is_mounted_nothing_is_unmounted() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let args = Args { mountpoint: dir.path().to_owned(), force: false, discard: false, yes: false, json: false };
        assert_eq!(run(&args).err().unwrap().exit, Exit::NotMounted);
    }
}
