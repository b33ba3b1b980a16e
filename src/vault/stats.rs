//! Numbers about the work done since the mount.
//!
//! Promise: every number only grows, except the gauges, and none is estimated. Called by: the whole of `vault` while it
//! works; `fs::storage` when someone reads `/.storage`. Cannot fail.

use super::unwritten::Unwritten;
use crate::base::histogram::{Counter, Histogram};
use crate::base::limits::HISTORY_LINES_MAX;
use crate::base::lock::Held;
use crate::base::world::Time;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

/// An error is counted in one line with an earlier one if it is among so many of the newest lines: faults come in turns, as where a
/// disk fails and several threads try it again.
const JOINED_LINES: usize = 8;
/// An error that comes again is logged again after so long.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// Counters and latencies of the vault's own work.
#[derive(Debug, Default)]
pub struct Stats {
    /// Plaintext bytes taken from writers.
    pub written_bytes: Counter,
    /// Plaintext bytes given to readers.
    pub read_bytes: Counter,
    /// Plaintext bytes sealed.
    pub sealed_plain_bytes: Counter,
    /// The same after compression and encryption.
    pub sealed_bytes: Counter,
    /// Bytes written to segments, with headers, directories and padding.
    pub log_bytes: Counter,
    /// Bytes read back and found right.
    pub verified_bytes: Counter,
    /// Groups that did not read back as written.
    pub verify_mismatches: Counter,
    /// Chunks opened again after the read-back and compared with their plaintext.
    pub opened_chunks: Counter,
    /// Segments given up because a write, flush or read-back failed.
    pub segments_abandoned: Counter,
    /// Times the log began anew after that.
    pub restarts: Counter,
    /// Segments brought home from the emergency directory.
    pub segments_home: Counter,
    /// Frames that did not open when read.
    pub damaged_frames: Counter,
    /// Commits.
    pub commits: Counter,
    /// fsyncs answered.
    pub fsyncs: Counter,
    /// Device flushes.
    pub device_flushes: Counter,
    /// Checkpoints.
    pub checkpoints: Counter,
    /// Checkpoints that could not be stored.
    pub checkpoint_failures: Counter,
    /// Snapshots of the index taken.
    pub snapshots: Counter,
    /// Snapshots of the index that could not be taken.
    pub snapshot_failures: Counter,
    /// Bytes given back by punching holes.
    pub punched_bytes: Counter,
    /// Plaintext bytes that the cleaner moved out of old segments.
    pub moved_bytes: Counter,
    /// Old segments removed.
    pub segments_removed: Counter,
    /// Bytes given back by that.
    pub removed_bytes: Counter,
    /// Reads answered from the cache of decoded frames.
    pub cache_hits: Counter,
    /// Frames that had to be read from the disk.
    pub cache_misses: Counter,
    /// Frames read ahead of a sequential reader.
    pub prefetched: Counter,
    /// Chunks compressed with zstd, with lz4, stored raw.
    pub codec_chunks: [Counter; 3],
    /// Writes, new files and other requests refused for want of room on the backing filesystem.
    pub refused_for_room: Counter,
    /// Bytes of the kernel's cache that were held, and refused after the deadline.
    pub refused_cached_bytes: Counter,
    /// What the kernel's cache handed over and the vault does not have.
    pub unwritten: Unwritten,
    /// Times a writer had to wait for the byte budget.
    pub writer_waits: Counter,
    /// How long they waited.
    pub writer_wait: Histogram,
    /// Compressing one chunk.
    pub compress: Histogram,
    /// Encrypting one chunk.
    pub encrypt: Histogram,
    /// One disk write of the log.
    pub log_write: Histogram,
    /// One device flush.
    pub device_flush: Histogram,
    /// Reading back one group.
    pub verify: Histogram,
    /// From the start of a commit to its durability.
    pub commit: Histogram,
    /// From an fsync's arrival to its answer.
    pub fsync: Histogram,
    /// One checkpoint.
    pub checkpoint: Histogram,
    /// Reading and opening frames for a reader.
    pub frame_read: Histogram,
    errors: Mutex<VecDeque<Line>>,
    history: Mutex<VecDeque<Line>>,
}

/// One line of the error list or the state history.
#[derive(Debug, Clone)]
pub struct Line {
    /// When.
    pub at: Time,
    /// What; never a name, a key or plaintext.
    pub text: String,
    /// How often the same text came again while it was among the newest lines, and when last.
    pub repeats: Option<Repeats>,
    /// When it was last logged.
    logged: Time,
}

/// Repetitions of one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeats {
    /// How many, beside the first.
    pub count: u64,
    /// When the last one came.
    pub last: Time,
}

impl Line {
    /// A line that came once.
    #[must_use]
    pub fn new(at: Time, text: String) -> Line {
        Line { at, text, repeats: None, logged: at }
    }

    /// How often it came.
    #[must_use]
    pub fn times(&self) -> u64 {
        1 + self.repeats.map_or(0, |repeats| repeats.count)
    }

    /// When it came last.
    #[must_use]
    pub fn last(&self) -> Time {
        self.repeats.map_or(self.at, |repeats| repeats.last)
    }
}

fn push(lines: &mut VecDeque<Line>, line: Line) {
    if lines.len() == HISTORY_LINES_MAX {
        lines.pop_front();
    }
    lines.push_back(line);
}

/// Adds a line, or counts it where one of the newest lines has the same text, which is then the newest. Returns what is to be logged.
fn push_or_count(lines: &mut VecDeque<Line>, at: Time, text: String) -> Option<String> {
    let newest = lines.len().saturating_sub(JOINED_LINES)..lines.len();
    let Some(place) = newest.rev().find(|&place| lines[place].text == text) else {
        push(lines, Line::new(at, text.clone()));
        return Some(text);
    };
    let mut line = lines.remove(place)?;
    line.repeats = Some(Repeats { count: line.times(), last: at });
    // A clock that was set back must not keep it out of the log.
    let is_due = line.logged.seconds.abs_diff(at.seconds) >= LOG_AGAIN.as_secs();
    let logged = is_due.then(|| format!("{text} ({} times)", line.times()));
    if is_due {
        line.logged = at;
    }
    lines.push_back(line);
    logged
}

impl Stats {
    /// Every counter: its name, what it counts, and how much since the mount.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
        let n = Counter::get;
        vec![
            ("written_bytes", "Plaintext bytes taken from writers.", n(&self.written_bytes)),
            ("read_bytes", "Plaintext bytes given to readers.", n(&self.read_bytes)),
            ("sealed_plain_bytes", "Plaintext bytes sealed.", n(&self.sealed_plain_bytes)),
            ("sealed_bytes", "Bytes after compression and encryption.", n(&self.sealed_bytes)),
            ("log_bytes", "Bytes written to segments.", n(&self.log_bytes)),
            ("verified_bytes", "Bytes read back and found right.", n(&self.verified_bytes)),
            ("verify_mismatches", "Groups that did not read back as written.", n(&self.verify_mismatches)),
            (
                "opened_chunks",
                "Chunks opened after the read-back and compared with their plaintext.",
                n(&self.opened_chunks),
            ),
            ("segments_abandoned", "Segments given up after a failure.", n(&self.segments_abandoned)),
            ("restarts", "Times the log began anew after a failure.", n(&self.restarts)),
            ("segments_home", "Segments brought home from the emergency directory.", n(&self.segments_home)),
            ("damaged_frames", "Frames that did not open when read.", n(&self.damaged_frames)),
            ("commits", "Commits.", n(&self.commits)),
            ("fsyncs", "fsyncs answered.", n(&self.fsyncs)),
            ("device_flushes", "Device flushes.", n(&self.device_flushes)),
            ("checkpoints", "Checkpoints.", n(&self.checkpoints)),
            ("checkpoint_failures", "Checkpoints that could not be stored.", n(&self.checkpoint_failures)),
            ("punched_bytes", "Bytes given back by punching holes.", n(&self.punched_bytes)),
            ("moved_bytes", "Plaintext bytes moved out of old segments.", n(&self.moved_bytes)),
            ("segments_removed", "Old segments removed.", n(&self.segments_removed)),
            ("removed_bytes", "Bytes given back by removing segments.", n(&self.removed_bytes)),
            ("cache_hits", "Reads answered from decoded frames.", n(&self.cache_hits)),
            ("cache_misses", "Frames read from the disk.", n(&self.cache_misses)),
            ("prefetched", "Frames read ahead.", n(&self.prefetched)),
            ("chunks_zstd", "Chunks compressed with zstd.", n(&self.codec_chunks[0])),
            ("chunks_lz4", "Chunks compressed with lz4.", n(&self.codec_chunks[1])),
            ("chunks_raw", "Chunks stored as they are.", n(&self.codec_chunks[2])),
            ("snapshots", "Snapshots of the index taken.", n(&self.snapshots)),
            ("snapshot_failures", "Snapshots of the index that could not be taken.", n(&self.snapshot_failures)),
            ("refused_for_room", "Requests refused for want of room.", n(&self.refused_for_room)),
            (
                "refused_cached_bytes",
                "Bytes of the kernel's cache refused for want of room after the deadline.",
                n(&self.refused_cached_bytes),
            ),
            ("writer_waits", "Times a writer waited for the byte budget.", n(&self.writer_waits)),
        ]
    }

    /// Notes what earlier mounts left in the history.
    pub fn remember(&self, lines: Vec<Line>) {
        lines.into_iter().for_each(|l| push(&mut self.history.held(), l));
    }

    /// Notes an error for `/.storage/errors`, and logs it; one that comes again and again, once a minute.
    pub fn error(&self, at: Time, text: String) {
        let logged = push_or_count(&mut self.errors.held(), at, text);
        if let Some(text) = logged {
            log::error!("{text}");
        }
    }
    /// Notes a change of state for `/.storage/history`.
    pub fn event(&self, at: Time, text: String) {
        push(&mut self.history.held(), Line::new(at, text));
    }
    /// How many errors the list holds, each repetition counted.
    pub fn error_count(&self) -> u64 {
        self.errors.held().iter().map(Line::times).sum()
    }
    /// The newest errors, oldest first.
    pub fn errors(&self) -> Vec<Line> {
        self.errors.held().iter().cloned().collect()
    }
    /// The newest changes of state, oldest first.
    pub fn history(&self) -> Vec<Line> {
        self.history.held().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_come_in_turns_are_counted_in_one_line_each() {
        let (stats, at) = (Stats::default(), |seconds| Time { seconds, nanos: 0 });
        for (second, text) in [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "b")] {
            stats.error(at(second), text.to_owned());
            stats.event(at(second), text.to_owned());
        }
        let told = || {
            let errors = stats.errors();
            errors.into_iter().map(|l| (l.text.clone(), l.times(), l.at, l.last())).collect::<Vec<_>>()
        };
        assert_eq!(
            told(),
            [("a".to_owned(), 3, at(1), at(4)), ("b".to_owned(), 2, at(3), at(5))],
            "the newest is last"
        );
        assert_eq!(stats.error_count(), 5);
        assert_eq!(stats.history().len(), 5, "a state that comes again is a change");
        (0..JOINED_LINES).for_each(|n| stats.error(at(6), n.to_string()));
        stats.error(at(7), "a".to_owned());
        assert_eq!(told().last(), Some(&("a".to_owned(), 1, at(7), at(7))), "many others came between");
    }

    #[test]
    fn an_error_that_comes_again_and_again_is_logged_once_a_minute() {
        let (mut lines, at) = (VecDeque::new(), |seconds| Time { seconds, nanos: 0 });
        let mut log = |second: i64, text: &str| push_or_count(&mut lines, at(second), text.to_owned());
        assert_eq!(log(0, "a").as_deref(), Some("a"));
        assert_eq!((log(1, "a"), log(59, "a")), (None, None));
        assert_eq!(log(2, "b").as_deref(), Some("b"));
        assert_eq!(log(60, "a").as_deref(), Some("a (4 times)"));
        assert_eq!(log(119, "a"), None);
        assert_eq!(log(-1000, "a").as_deref(), Some("a (6 times)"), "the clock was set back");
    }
}
