//! Reading ahead of sequential readers, in threads of its own.
//!
//! Promise: what is written waits in no queue behind what is read ahead, however slow the disk is; no more waits to be read
//! ahead than half of what the cache holds. Why it holds: no worker takes a wish, and one that finds the queue full is
//! dropped: the reader then reads it itself. Called by: `read` (puts wishes in). Takes: its own lock for a moment.
//! Cannot fail: what fails here fails again, and is told, when it is read.

use super::read;
use super::shared::Shared;
use super::step::Actor;
use crate::base::lock::Held;
use crate::buffer::FileBuffer;
use crossbeam_channel::{Receiver, Sender};
use std::sync::{Arc, Mutex};

/// How far ahead of a reader.
const AHEAD_BYTES: u64 = 2 << 20;
/// How much of that is read in one go.
const PIECE_BYTES: u64 = 512 << 10;

/// A part of a file that will be read soon.
struct Wish {
    file: Arc<FileBuffer>,
    from: u64,
    to: u64,
}

/// What is to be read ahead.
pub struct Wishes {
    put: Mutex<Option<Sender<Wish>>>,
    take: Receiver<Wish>,
}

impl Wishes {
    /// None yet; what is read ahead goes into a cache of so many bytes.
    pub fn new(cache_bytes: u64) -> Wishes {
        let (put, take) = crossbeam_channel::bounded((cache_bytes / 2 / PIECE_BYTES).max(1) as usize);
        Wishes { put: Mutex::new(Some(put)), take }
    }

    /// A reader is about to read `len` bytes at `offset`: what it will want next is read meanwhile, if it goes forwards.
    pub fn note(&self, file: &Arc<FileBuffer>, offset: u64, len: usize) {
        let Some((mut from, end)) = file.reads_ahead(offset, len, AHEAD_BYTES) else { return };
        let put = self.put.held();
        let Some(put) = &*put else { return };
        while from < end {
            let to = end.min((from / PIECE_BYTES + 1) * PIECE_BYTES);
            if put.try_send(Wish { file: Arc::clone(file), from, to }).is_err() {
                return;
            }
            from = to;
        }
    }

    /// Pieces that nobody has taken up yet.
    pub fn waiting(&self) -> usize {
        self.take.len()
    }

    /// Nothing is read ahead any more, and who did it ends.
    pub fn close(&self) {
        self.put.held().take();
        while self.take.try_recv().is_ok() {}
    }
}

/// One who reads ahead.
pub struct Prefetcher {
    shared: Arc<Shared>,
}

impl Prefetcher {
    /// One that has not worked yet.
    pub fn new(shared: Arc<Shared>) -> Prefetcher {
        Prefetcher { shared }
    }

    /// Its life: until the wishes are closed.
    pub fn run(self) {
        while let Ok(wish) = self.shared.wishes.take.recv() {
            self.fulfil(&wish);
        }
    }

    fn fulfil(&self, wish: &Wish) {
        read::ahead(&self.shared, &wish.file, wish.from, wish.to);
    }
}

impl Actor for Prefetcher {
    fn step(&mut self) -> bool {
        let Ok(wish) = self.shared.wishes.take.try_recv() else { return false };
        self.fulfil(&wish);
        true
    }
}
