//! Where log lines go: a file, or stderr.
//!
//! Promise: one line per record, never plaintext, names or keys (whoever logs sees to that); a line that cannot be
//! written is dropped, for a log must not stop a flush. Level: `STRONGROOM_LOG` = off, error, warn (unless told), info,
//! debug, trace. Called by: `mount`, before any thread starts. On failure: the file is named.

use super::exit::{Exit, Failure};
use super::print;
use crate::base::lock::Held;
use crate::base::world::{RealWorld, World};
use log::{LevelFilter, Log, Metadata, Record};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;

struct Lines {
    file: Option<Mutex<File>>,
    world: RealWorld,
}

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true // `log::max_level` has decided already.
    }

    fn log(&self, record: &Record<'_>) {
        // Other crates' chatter below warnings is nobody's business here.
        if !record.target().starts_with("strongroom") && record.level() > log::Level::Warn {
            return;
        }
        let line = format!("{} {} {}\n", print::utc(self.world.now()), record.level(), record.args());
        let _ = match &self.file {
            Some(file) => file.held().write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

/// Starts the log; once per process.
pub fn start(file: Option<&Path>) -> Result<(), Failure> {
    let told = std::env::var("STRONGROOM_LOG").ok();
    let level = level(told.as_deref())?;
    let file = match file {
        None => None,
        Some(path) => Some(Mutex::new(
            OpenOptions::new().create(true).append(true).open(path).map_err(|e| Failure::io(path, &e))?,
        )),
    };
    // A second start can only be a test in the same process: the first log stays.
    if log::set_boxed_logger(Box::new(Lines { file, world: RealWorld::default() })).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
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
}
