//! What operations have done since the last cut: records to be logged and files to be flushed.
//!
//! Promise (I4): an operation's records and data lie in one batch, whole: it holds the gate, shared, from its begin to its
//! commit, and the log takes the gate alone to cut. A batch that was cut is kept whole until it is at rest.
//! Called by: `op` (adds), `log` (cuts). Cannot fail.

use super::moves::Cleaned;
use super::state::BatchState;
use crate::base::id::SegmentId;
use crate::base::limits::RECORDS_FRAME_BYTES;
use crate::buffer::FileBuffer;
use crate::format::record::{Counters, Record};
use crate::format::segment::LogPosition;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// The batch that is filling.
#[derive(Default)]
pub struct Batch {
    /// Records, in order, in pieces that end between records.
    pub records: Vec<Vec<u8>>,
    /// Bytes of all pieces.
    pub records_bytes: usize,
    /// Files with a layer of this batch.
    pub touched: Vec<Arc<FileBuffer>>,
    /// What the cleaner has put into it.
    pub cleaned: Cleaned,
    /// Chunks handed to the workers and not yet in the log.
    pub outstanding: Arc<AtomicU64>,
    /// When its first change came.
    pub began: Option<Duration>,
}

impl Batch {
    /// Whether nothing has happened in it.
    pub fn is_empty(&self) -> bool {
        self.began.is_none()
    }

    /// Something happens in it, at `now`; says whether it is the first.
    pub fn begin(&mut self, now: Duration) -> bool {
        let first = self.is_empty();
        self.began.get_or_insert(now);
        first
    }

    /// Appends a record.
    pub fn record(&mut self, record: &Record<'_>) {
        if self.records.last().is_none_or(|last| last.len() >= RECORDS_FRAME_BYTES) {
            self.records.push(Vec::new());
        }
        let last = self.records.last_mut().expect("one was just pushed");
        let before = last.len();
        record.encode_to(last);
        self.records_bytes += last.len() - before;
    }
}

/// A batch that was cut, until it is at rest.
pub struct Cut {
    /// Its number.
    pub number: u64,
    /// What is true of it.
    pub state: BatchState,
    /// Its records, in pieces.
    pub records: Vec<Arc<Vec<u8>>>,
    /// Files with a layer of it.
    pub touched: Vec<Arc<FileBuffer>>,
    /// What the cleaner has put into it.
    pub cleaned: Cleaned,
    /// Jobs of it with the workers.
    pub outstanding: Arc<AtomicU64>,
    /// The counters after it.
    pub counters: Counters,
    /// Whether a checkpoint is to follow it.
    pub checkpoint: bool,
    /// Whether someone waits for it.
    pub urgent: bool,
    /// When it was cut.
    pub began: Duration,
    /// The log's position after it; known once it is written.
    pub position: LogPosition,
    /// The segment that its commit is in; known once it is written.
    pub segment: SegmentId,
    /// Where that segment ended then.
    pub end_bytes: u64,
}
