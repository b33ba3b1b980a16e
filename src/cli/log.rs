//! Writes log lines to the system log, to a file, or to stderr.
//!
//! Promise: one line per record, never plaintext, names or keys; a line that cannot be written at once is dropped, for
//! a log must not stop a flush. A daemon is heard by syslog or the journal unless it has a file. Until the mount is live
//! its warnings also reach the caller's stderr. Level: `STRONGROOM_LOG` = off, error, warn (unless told), info, debug, trace.
//! Called by: `mount`, before any thread starts and before the sandbox. On failure: the file is named.

use super::exit::{Exit, Failure};
use super::print;
use crate::base::lock::Held;
use crate::base::world::{RealWorld, World};
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

/// Where syslog and the journal listen.
const SYSTEM_LOG: &str = "/dev/log";
/// The facility of daemons, in the place where a message has it.
const FACILITY_DAEMON: u8 = 3 << 3;
/// What every listener takes in one message.
const MESSAGE_BYTES_MAX: usize = 2048;

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// To stderr: somebody is watching.
    Stderr,
    /// To this file.
    File(PathBuf),
    /// To the system log.
    System,
}

enum Sink {
    Stderr,
    File(Mutex<File>),
    /// A socket with no fixed peer: each message names it, so a system log that was restarted is reached again.
    System(UnixDatagram),
}

struct Lines {
    sink: Sink,
    /// Whether warnings also go to stderr, which is the caller's until the mount is live, and then nobody's.
    warns_caller: bool,
    /// The vault, for whoever reads the log of several.
    about: String,
    world: RealWorld,
}

/// The log of this process, once it was started.
static LINES: OnceLock<&'static Lines> = OnceLock::new();

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true // `log::max_level` has decided already.
    }

    fn log(&self, record: &Record<'_>) {
        // Other crates' chatter below warnings is nobody's business here.
        if !record.target().starts_with("strongroom") && record.level() > Level::Warn {
            return;
        }
        let text = record.args().to_string();
        let line = || format!("{} {} {text}\n", print::utc(self.world.now()), record.level());
        let _ = match &self.sink {
            Sink::Stderr => io::stderr().write_all(line().as_bytes()),
            Sink::File(file) => file.held().write_all(line().as_bytes()),
            Sink::System(socket) => {
                let message = message(record.level(), std::process::id(), &self.about, &text);
                socket.send_to(&message, SYSTEM_LOG).map(drop)
            }
        };
        if self.warns_caller && record.level() <= Level::Warn {
            print::complain(&format!("warning: {text}"));
        }
    }

    fn flush(&self) {}
}

/// A message as syslog(3) sends it, without a time: the receiver has one.
fn message(level: Level, pid: u32, about: &str, text: &str) -> Vec<u8> {
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let about = if about.is_empty() || text.starts_with(about) { String::new() } else { format!("{about}: ") };
    let mut message = format!("<{}>strongroom[{pid}]: {about}{text}", FACILITY_DAEMON | severity).into_bytes();
    // A line break would begin another message where the listener splits by lines.
    message.iter_mut().filter(|byte| byte.is_ascii_control()).for_each(|byte| *byte = b' ');
    message.truncate(MESSAGE_BYTES_MAX);
    message
}

/// Starts the log, once per process; `about` is the vault.
pub fn start(place: &Place, is_daemon: bool, about: &Path) -> Result<(), Failure> {
    let told = std::env::var("STRONGROOM_LOG").ok();
    let level = level(told.as_deref())?;
    let sink = match place {
        Place::Stderr => Sink::Stderr,
        Place::File(path) => Sink::File(Mutex::new(open(path).map_err(|e| unusable(path, &e))?)),
        Place::System => match system() {
            Ok(socket) => Sink::System(socket),
            // Without a socket there is no system log for anybody.
            Err(_) => Sink::Stderr,
        },
    };
    let warns_caller = is_daemon && !matches!(sink, Sink::Stderr);
    let about = about.display().to_string();
    let lines: &'static Lines = Box::leak(Box::new(Lines { sink, warns_caller, about, world: RealWorld::default() }));
    // A second start can only be a test in the same process: the first log stays.
    if log::set_logger(lines).is_ok() {
        log::set_max_level(level);
        let _ = LINES.set(lines);
    }
    Ok(())
}

/// A log file that could not be opened.
fn unusable(path: &Path, e: &io::Error) -> Failure {
    let at = path.display();
    let sentence = match (e.kind(), path.parent()) {
        (io::ErrorKind::NotFound, Some(dir)) => {
            let dir = dir.display();
            format!(
                "the log file {at} cannot be made: its directory {dir} does not exist. Make it first: mkdir -p {dir}"
            )
        }
        _ => format!("the log file {at} cannot be opened: {e}; name another with log=FILE"),
    };
    Failure::new(Exit::Io, sentence)
}

/// Opens a log file for appending.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// A socket that waits for nobody: a full system log must not hold the daemon up.
fn system() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Goes on in the file of that name as it is now, where there is a file: whoever rotates logs has moved the old one away.
/// A file that cannot be opened is reported, and the old one is used on.
pub fn reopen(open: impl FnOnce() -> io::Result<File>) {
    let Some(Lines { sink: Sink::File(file), .. }) = LINES.get() else { return };
    match open() {
        Ok(now) => *file.held() = now,
        Err(e) => log::error!("the log could not be opened anew, and goes on in the old file: {e}"),
    }
}

fn level(told: Option<&str>) -> Result<LevelFilter, Failure> {
    match told {
        None | Some("") => Ok(LevelFilter::Warn),
        Some(text) => text.parse().map_err(|_| {
            let words = "off, error, warn, info, debug, trace";
            Failure::new(Exit::Usage, format!("STRONGROOM_LOG is '{text}': use one of {words}"))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_a_word() {
        assert_eq!(level(None).unwrap(), LevelFilter::Warn);
        assert_eq!(level(Some("debug")).unwrap(), LevelFilter::Debug);
        assert_eq!(level(Some("loud")).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn a_log_that_cannot_be_opened_says_what_to_do() {
        let said = |kind: io::ErrorKind| unusable(Path::new("/none/log"), &kind.into()).sentence;
        assert!(said(io::ErrorKind::NotFound).ends_with("mkdir -p /none"));
        assert!(said(io::ErrorKind::PermissionDenied).contains("/none/log cannot be opened"));
    }

    #[test]
    fn a_message_names_facility_severity_program_and_vault() {
        let text = |level, text: &str| String::from_utf8(message(level, 42, "/v", text)).unwrap();
        assert_eq!(text(Level::Warn, "a\nb"), "<28>strongroom[42]: /v: a b");
        assert_eq!(text(Level::Error, "/v: the disk"), "<27>strongroom[42]: /v: the disk");
        assert_eq!(text(Level::Info, &"x".repeat(9999)).len(), MESSAGE_BYTES_MAX);
    }
}
