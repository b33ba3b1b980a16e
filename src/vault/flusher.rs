//! Flushes the device for commits that no one waits for, while the log goes on writing.
//!
//! Promise (I6): an outcome is set once, by whoever ran the flush, and only after every segment written since the last one
//! was synced and found to have its name still. A failed flush is never tried again on the same file: its outcome is the failure, for good; so is one that
//! was not over within its deadline, whatever comes of it later (`outcome`).
//! Called by: its own thread, fed by `log`; by `log` itself where an fsync waits. `log` and `verifier` wait for outcomes.
//! On failure: the trouble, to all who wait.

use super::outcome::Outcome;
use super::place::Place;
use super::segments::OpenSegment;
use super::shared::Shared;
use super::step::Actor;
use super::trouble::{Kind, Trouble, kind_of};
use crate::segment::path;
use crossbeam_channel::{Receiver, Sender};
use std::sync::Arc;
use std::time::Instant;

/// How a flush ended, for all who wait for it.
pub type Flushed = Outcome<Trouble>;

/// A flush to be run.
pub struct Flush {
    segments: Vec<(Arc<OpenSegment>, Option<u64>)>,
    /// Segments flushed before that hold data of this commit.
    left: Vec<Arc<OpenSegment>>,
    /// Whether names are looked up by their path.
    by_path: bool,
    generation: u64,
    place: Place,
    /// How it ended.
    pub outcome: Arc<Flushed>,
}

impl Flush {
    /// Of these segments; those with a length are full and are cut to it.
    pub fn of(segments: Vec<(Arc<OpenSegment>, Option<u64>)>, generation: u64, place: Place) -> Flush {
        Flush { segments, left: Vec::new(), by_path: false, generation, place, outcome: Arc::default() }
    }

    /// Makes it the flush of a commit that has data in these segments as well. With `by_path`, each name must be found to
    /// lead to the open file; without, the file must have a name.
    #[must_use]
    pub fn and_names_of(mut self, left: Vec<Arc<OpenSegment>>, by_path: bool) -> Flush {
        (self.left, self.by_path) = (left, by_path);
        self
    }

    /// Runs it.
    pub fn run(&mut self, shared: &Shared) {
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
        let flushed = run().map_err(|e: std::io::Error| self.trouble(kind_of(&e), &format!("flushing a segment: {e}")));
        self.outcome.tell(flushed.and_then(|()| self.find_names(shared)));
    }

    /// Refuses a commit in a file that the next mount would not find: another program may have removed it.
    fn find_names(&self, shared: &Shared) -> Result<(), Trouble> {
        let mut all = self.segments.iter().map(|(segment, _)| segment).chain(&self.left);
        match all.find(|segment| !segment.keeps_name(|| shared.places.of(self.place), self.by_path)) {
            None => Ok(()),
            Some(segment) => {
                let name = path(segment.context.id);
                shared.segments.suspect(segment.context.id);
                let why = format!(
                    "{name} was removed or replaced by another program while the vault is mounted; \
                     what is not durable yet is written to a new segment"
                );
                Err(self.trouble(Kind::Failed, &why))
            }
        }
    }

    fn trouble(&self, kind: Kind, why: &str) -> Trouble {
        Trouble { generation: self.generation, place: self.place, kind, why: why.into() }
    }
}

impl Drop for Flush {
    /// Whoever waits must not wait for a flush that nobody will run.
    fn drop(&mut self) {
        self.outcome.tell(Err(self.trouble(Kind::Failed, "a flush was given up")));
    }
}

/// Starts a flusher's thread.
pub type Spawn = Box<dyn Fn(Receiver<Flush>) + Send>;

/// The way to the flusher; to a new one if the one before is stuck.
pub struct Flushes {
    to: Sender<Flush>,
    spawn: Option<Spawn>,
}

impl Flushes {
    /// To a flusher of its own thread.
    pub fn spawned(spawn: Spawn) -> Flushes {
        let (to, from) = crossbeam_channel::bounded(1);
        spawn(from);
        Flushes { to, spawn: Some(spawn) }
    }

    /// To an actor.
    pub fn to(to: Sender<Flush>) -> Flushes {
        Flushes { to, spawn: None }
    }

    /// Hands a flush over.
    pub fn send(&self, flush: Flush) {
        // A flusher that has gone answers by dropping it.
        let _ = self.to.send(flush);
    }

    /// Leaves a flusher that is stuck behind: its thread ends when it is not stuck any more.
    pub fn begin_anew(&mut self) {
        if let Some(spawn) = &self.spawn {
            let (to, from) = crossbeam_channel::bounded(1);
            spawn(from);
            self.to = to;
        }
    }
}

/// The flusher.
pub struct Flusher {
    shared: Arc<Shared>,
    flushes: Receiver<Flush>,
}

impl Flusher {
    /// One with nothing to do.
    pub fn new(shared: Arc<Shared>, flushes: Receiver<Flush>) -> Flusher {
        Flusher { shared, flushes }
    }

    /// Its life.
    pub fn run(self) {
        for mut flush in &self.flushes {
            flush.run(&self.shared);
        }
    }
}

impl Actor for Flusher {
    fn step(&mut self) -> bool {
        let Ok(mut flush) = self.flushes.try_recv() else { return false };
        flush.run(&self.shared);
        true
    }
}
