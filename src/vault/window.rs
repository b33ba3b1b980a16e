//! Stretches of segments read ahead for readers of many small files.
//!
//! Promise: only speed depends on it: a frame that does not open out of a window is read again from the disk. Why it
//! pays: files written one after the other lie one after the other in the log, and directories list in order of creation,
//! so reading a tree walks the log forwards in steps of a few KiB; a disk read of 512 KiB costs little more than one of 8.
//! Called by: `read`. Takes: its own lock, never across a read. Cannot fail.

use crate::backing::AlignedBuf;
use crate::base::id::SegmentId;
use crate::base::lock::Held;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// Length of a window.
pub const WINDOW_BYTES: usize = 512 << 10;
/// Reads longer than this do not need one.
const SMALL_BYTES: u64 = 128 << 10;
/// How far ahead of the last read another still counts as going forwards.
const NEAR_BYTES: u64 = 256 << 10;
/// Forward steps before a window is worth its read.
const STEPS: u32 = 2;
/// Readers told apart.
const READERS: usize = 4;

/// Buffers of windows that are gone, to be used again: one that is freed leaves a hole in the heap which smaller blocks spoil for
/// the next, so that the heap grows by what passes through it (measured: 70 holes of half a MiB with twelve readers).
#[derive(Clone)]
struct Spare {
    buffers: Arc<Mutex<Vec<AlignedBuf>>>,
    most: usize,
}

impl Spare {
    fn put(&self, buffer: AlignedBuf) {
        let mut buffers = self.buffers.held();
        if buffers.len() < self.most {
            buffers.push(buffer);
        }
    }
}

/// Bytes of a segment.
pub struct Window {
    segment: SegmentId,
    from: u64,
    /// Always there, but for the moment of its end.
    bytes: Option<AlignedBuf>,
    spare: Spare,
}

impl Window {
    /// The bytes from `from` to `to`.
    pub fn part(&self, from: u64, to: u64) -> &[u8] {
        &self.bytes()[(from - self.from) as usize..(to - self.from) as usize]
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            self.spare.put(bytes);
        }
    }
}

#[derive(Default)]
struct State {
    windows: VecDeque<Arc<Window>>,
    /// Where recent small reads ended, and how often each reader went forwards.
    readers: VecDeque<(SegmentId, u64, u32)>,
}

/// What to do for a read.
pub enum Advice {
    /// This window has it.
    Have(Arc<Window>),
    /// Read a whole window from where the read begins, and keep it.
    Fill,
    /// Just read.
    Plain,
}

/// The windows kept.
pub struct Windows {
    most: usize,
    spare: Spare,
    state: Mutex<State>,
}

impl Windows {
    /// Keeps as many as fit in `bytes`.
    pub fn new(bytes: u64) -> Self {
        let most = ((bytes as usize) / WINDOW_BYTES).clamp(1, 16);
        // Beside those kept, some that are still read from when the next takes their place.
        Windows { most, spare: Spare { buffers: Arc::default(), most: most + READERS }, state: Mutex::default() }
    }

    /// What to do for a read of whole blocks.
    pub fn advise(&self, segment: SegmentId, from: u64, to: u64) -> Advice {
        if to - from > SMALL_BYTES {
            return Advice::Plain;
        }
        let mut state = self.state.held();
        let has = |w: &&Arc<Window>| w.segment == segment && w.from <= from && to <= w.from + w.bytes().len() as u64;
        let found = state.windows.iter().find(has).cloned();
        let near = |r: &(SegmentId, u64, u32)| r.0 == segment && from + NEAR_BYTES >= r.1 && from <= r.1 + NEAR_BYTES;
        let steps = match state.readers.iter().position(near) {
            Some(i) => state.readers.remove(i).map_or(0, |r| r.2 + 1),
            None => 0,
        };
        state.readers.push_back((segment, to, steps));
        if state.readers.len() > READERS {
            state.readers.pop_front();
        }
        match found {
            Some(window) => Advice::Have(window),
            None if steps >= STEPS => Advice::Fill,
            None => Advice::Plain,
        }
    }

    /// A buffer for a window.
    pub fn buffer(&self) -> AlignedBuf {
        let spare = self.spare.buffers.held().pop();
        spare.unwrap_or_else(|| AlignedBuf::with_capacity(WINDOW_BYTES))
    }

    /// Keeps a window.
    pub fn keep(&self, segment: SegmentId, from: u64, bytes: AlignedBuf) -> Arc<Window> {
        let window = Arc::new(Window { segment, from, bytes: Some(bytes), spare: self.spare.clone() });
        let mut state = self.state.held();
        state.windows.push_back(Arc::clone(&window));
        if state.windows.len() > self.most {
            state.windows.pop_front();
        }
        window
    }

    /// Forgets a window that did not hold what it should: it was read before the bytes were written.
    pub fn forget(&self, window: &Arc<Window>) {
        self.state.held().windows.retain(|w| !Arc::ptr_eq(w, window));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reader_that_goes_forwards_gets_a_window() {
        let windows = Windows::new(4 << 20);
        let id = SegmentId(1);
        for i in 0..20 {
            let at = (i * 7919 % 100) * 1_000_000 / 4096 * 4096;
            assert!(matches!(windows.advise(id, at, at + 4096), Advice::Plain), "random reads stay as they are");
        }
        let advice: Vec<_> = (0..5).map(|i| windows.advise(id, i * 8192, i * 8192 + 8192)).collect();
        assert!(matches!(advice[4], Advice::Fill));
        let mut bytes = windows.buffer();
        bytes.set_len(WINDOW_BYTES);
        let window = windows.keep(id, 0, bytes);
        assert!(matches!(windows.advise(id, 40_960, 49_152), Advice::Have(_)));
        windows.forget(&window);
        assert!(matches!(windows.advise(id, 49_152, 53_248), Advice::Fill));
    }

    #[test]
    fn the_buffer_of_a_window_that_is_gone_is_used_again_and_not_before() {
        let windows = Windows::new(0);
        let at = |bytes: &[u8]| bytes.as_ptr() as usize;
        let filled = || {
            let mut bytes = windows.buffer();
            bytes.set_len(WINDOW_BYTES);
            bytes
        };
        let first = windows.keep(SegmentId(1), 0, filled());
        let place = at(first.part(0, 1));
        let second = windows.keep(SegmentId(1), WINDOW_BYTES as u64, filled());
        assert_ne!(at(second.bytes()), place, "the first is still read from");
        drop(first);
        assert_eq!(at(&filled()), place);
        for _ in 0..3 * READERS {
            windows.spare.put(AlignedBuf::with_capacity(WINDOW_BYTES));
        }
        assert_eq!(windows.spare.buffers.held().len(), 1 + READERS, "no more than are ever needed at once");
    }
}
