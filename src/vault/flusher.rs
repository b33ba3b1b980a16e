//! Flushes the device for commits that no one waits for, while the log goes on writing.
//!
//! Promise (I6): an outcome is set once, by whoever ran the flush, and only after every segment written since the last one
//! was synced. A failed flush is never tried again on the same file: its outcome is the failure, for good.
//! Called by: its own thread, fed by `log`; by `log` itself where an fsync waits. `log` and `verifier` wait for outcomes.
//! On failure: the reason, to all who wait.

use super::segments::OpenSegment;
use super::shared::Shared;
use crate::base::lock::Held;
use crossbeam_channel::Receiver;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// How a flush ended, for all who wait for it.
#[derive(Default)]
pub struct Outcome {
    result: Mutex<Option<Result<(), Arc<str>>>>,
    set: Condvar,
}

impl Outcome {
    /// Waits for the end.
    pub fn wait(&self) -> Result<(), Arc<str>> {
        let mut result = self.result.held();
        loop {
            if let Some(result) = &*result {
                return result.clone();
            }
            result = self.set.wait(result).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn tell(&self, told: Result<(), Arc<str>>) {
        self.result.held().get_or_insert(told);
        self.set.notify_all();
    }
}

/// A flush to be run.
pub struct Flush {
    segments: Vec<(Arc<OpenSegment>, Option<u64>)>,
    /// How it ended.
    pub outcome: Arc<Outcome>,
}

impl Flush {
    /// Of these segments; those with a length are full and are cut to it.
    pub fn of(segments: Vec<(Arc<OpenSegment>, Option<u64>)>) -> Flush {
        Flush { segments, outcome: Arc::default() }
    }

    /// Runs it.
    pub fn run(&self, shared: &Shared) {
        let run = || {
            for (segment, full) in &self.segments {
                let began = Instant::now();
                segment.file.sync_data()?;
                shared.stats.device_flush.record(began.elapsed());
                shared.stats.device_flushes.add(1);
                if let Some(len) = full {
                    segment.file.set_len(*len)?;
                }
            }
            Ok(())
        };
        self.outcome.tell(run().map_err(|e: std::io::Error| format!("flushing a segment: {e}").into()));
    }
}

impl Drop for Flush {
    /// Whoever waits must not wait for a flush that nobody will run.
    fn drop(&mut self) {
        self.outcome.tell(Err("a flush was given up".into()));
    }
}

/// The flusher's life.
pub fn run(shared: &Shared, flushes: &Receiver<Flush>) {
    for flush in flushes {
        flush.run(shared);
    }
}
