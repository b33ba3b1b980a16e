//! What operations have done since the last cut: records to be logged and files to be flushed.
//!
//! Promise (I4): an operation's records and data lie in one batch, whole: it holds the gate, shared, from its begin to its
//! commit, and the log takes the gate alone to cut. Called by: `op` (adds), `log` (cuts). Cannot fail.

use crate::base::limits::RECORDS_FRAME_BYTES;
use crate::buffer::FileBuffer;
use crate::format::record::Record;
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
