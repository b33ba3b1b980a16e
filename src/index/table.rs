//! What the index asks of whatever keeps it on disk: ordered keys, one durable transaction at a time.
//!
//! Promise of every table: `apply` makes all of its changes durable and visible, or none; readers go on meanwhile and
//! see the state before or after. Called by: `index::Index`. On failure: `IndexFault` says whether the disk failed (the
//! table holds what it held, try later) or the table cannot be trusted (throw it away, rebuild it from the log).

use std::{fmt, io};

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Changes in ascending order of their keys: a value to put, or `None` to remove.
pub type Changes<'a> = dyn Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + 'a;

/// Why the index could not answer.
#[derive(Debug)]
pub enum IndexFault {
    /// What is stored cannot be trusted; the index must be rebuilt from the log.
    Damaged(String),
    /// The disk refused; what is stored is as good as before.
    Io(io::Error),
}

impl fmt::Display for IndexFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IndexFault::Damaged(what) => write!(f, "the index is damaged and must be rebuilt: {what}"),
            IndexFault::Io(cause) => write!(f, "the index could not be read or written: {cause}"),
        }
    }
}

impl std::error::Error for IndexFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            IndexFault::Damaged(_) => None,
            IndexFault::Io(cause) => Some(cause),
        }
    }
}

impl From<io::Error> for IndexFault {
    fn from(cause: io::Error) -> Self {
        IndexFault::Io(cause)
    }
}

/// An ordered space of keys that survives a power cut.
pub trait Table: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexFault>;

    /// Entries whose keys begin with `prefix` and are not below `from`, ascending, at most `limit_count`.
    fn scan(&self, prefix: &[u8], from: &[u8], limit_count: usize) -> Result<Vec<Entry>, IndexFault>;

    /// The entry with the greatest key below `before` that begins with `prefix`.
    fn scan_last_before(&self, prefix: &[u8], before: &[u8]) -> Result<Option<Entry>, IndexFault>;

    /// The table as it is at this moment, to be read while it goes on.
    fn freeze(&self) -> Result<Box<dyn Frozen>, IndexFault>;

    /// Makes all changes durable at once; they come in ascending order, each key once.
    fn apply(&self, changes: &mut Changes<'_>) -> Result<(), IndexFault>;

    /// Goes on with the file that its path leads to now: the directory was opened anew. It must be as it was left by the newest
    /// `apply` that was acknowledged.
    fn reopen(&self) -> Result<(), IndexFault> {
        Ok(())
    }

    /// Writes nothing any more, not even when it is dropped: the file may be another's from now on.
    fn put_away(&self) {}
}

/// One moment of a table. Whoever holds it keeps room in the table's file that is free otherwise.
pub trait Frozen: Send {
    /// Entries whose keys are not below `from`, ascending, at most `limit_count`.
    fn scan(&self, from: &[u8], limit_count: usize) -> Result<Vec<Entry>, IndexFault>;
}

/// The first key beyond every key with `prefix`; `None` if there is no such key.
fn beyond(prefix: &[u8]) -> Option<Vec<u8>> {
    let keep = prefix.iter().rposition(|&b| b != 0xff)?;
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    Some(end)
}

/// `before`, but not above the keys with `prefix`: so that going down from it meets them first.
pub(super) fn not_beyond(prefix: &[u8], before: &[u8]) -> Vec<u8> {
    match beyond(prefix) {
        Some(end) if end.as_slice() < before => end,
        _ => before.to_vec(),
    }
}
