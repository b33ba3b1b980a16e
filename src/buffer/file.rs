//! What one file has that is not yet at rest: a layer per batch, newest on top.
//!
//! Promise: `read` shows every write and hole of every layer, later ones over earlier ones, and names the gaps that only
//! the index can fill. A layer of a batch that was cut never changes in what it shows: sealing its open pieces keeps their
//! bytes. It goes only when `retire` is told that the index shows the same.
//! Called by: `vault` (op, log, read, verifier). Takes: its own lock, nothing else inside. Cannot fail.

use super::Pool;
use super::chunk::{Chunk, Of};
use super::layer::{Layer, Source, Span, copied_piece_bytes};
use crate::base::choice::Compression;
use crate::base::id::Ino;
use crate::base::lock::Held;
use crate::base::sync::{AtomicU64, Mutex};
use crate::format::extent::Extent;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What a cut layer shows of a range, for the commit.
pub enum Piece {
    /// A hole, from the first to before the second.
    Hole(u64, u64),
    /// Data: offset, length, chunk, bytes of the chunk before it.
    Data(u64, u32, Arc<Chunk>, u32),
    /// A copy of what is at rest elsewhere: offset, extent.
    Copied(u64, Extent),
}

/// What only the index and the disk can fill of a read.
#[derive(Default)]
pub struct Rest {
    /// What the index knows: offset, length.
    pub gaps: Vec<(u64, usize)>,
    /// What a copy shows: offset, length, extent, bytes of the extent before it.
    pub copied: Vec<(u64, u32, Arc<Extent>, u32)>,
}

/// What a file shows of a range.
pub enum Shown {
    /// What the index says.
    AtRest,
    /// Zeros.
    Hole,
    /// These bytes.
    Bytes(Vec<u8>),
    /// Bytes, of which there were enough already.
    More,
    /// What is at rest elsewhere, from so many bytes into the extent.
    Copied(Arc<Extent>, u32),
}

/// A range of a file and what it shows.
pub struct Part {
    /// First byte.
    pub from: u64,
    /// First byte after.
    pub to: u64,
    /// What it shows.
    pub shown: Shown,
}

impl Part {
    /// What it will be charged when it is laid into a layer, at most.
    #[must_use]
    pub fn charge_bytes(&self) -> u64 {
        match &self.shown {
            Shown::Copied(extent, _) => copied_piece_bytes(extent),
            // With the room that it may grow into.
            Shown::Bytes(bytes) => 2 * bytes.len() as u64 + 512,
            Shown::AtRest | Shown::More | Shown::Hole => 512,
        }
    }
}

/// What a write did.
#[derive(Default)]
pub struct Written {
    /// Bytes by which the buffers grew.
    pub grown_bytes: u64,
    /// Whether this is the file's first change in the batch.
    pub first: bool,
    /// Chunks that are full and may go to the workers.
    pub full: Vec<Arc<Chunk>>,
}

/// The layers of one file.
pub struct FileBuffer {
    /// The file.
    pub ino: Ino,
    layers: Mutex<VecDeque<Layer>>,
    /// Changes of what the layers show, but for retirements; moves under their lock.
    changes: AtomicU64,
    /// Where a sequential reader would read next.
    pub read_next: AtomicU64,
    /// How far has been read ahead for it.
    pub read_ahead: AtomicU64,
    /// How what is written to it is compressed: `UNDECIDED`, `AS_THE_VAULT`, or from there on the choices in their order.
    compression: AtomicU64,
}

const UNDECIDED: u64 = 0;
const AS_THE_VAULT: u64 = 1;

impl FileBuffer {
    /// No layers.
    #[must_use]
    pub fn new(ino: Ino) -> Self {
        FileBuffer {
            ino,
            layers: Mutex::default(),
            changes: AtomicU64::new(0),
            read_next: AtomicU64::new(0),
            read_ahead: AtomicU64::new(0),
            compression: AtomicU64::new(UNDECIDED),
        }
    }

    /// Decides how what is written from now on is compressed; `None`: as the vault is.
    pub fn compress(&self, how: Option<Compression>) {
        let place = |how| Compression::ALL.iter().position(|c| *c == how).expect("every choice is among all");
        self.compression.store(how.map_or(AS_THE_VAULT, |how| AS_THE_VAULT + 1 + place(how) as u64), Relaxed);
    }

    /// Whether nobody has decided that yet.
    pub fn is_compression_undecided(&self) -> bool {
        self.compression.load(Relaxed) == UNDECIDED
    }

    fn of(&self) -> Of {
        let place = self.compression.load(Relaxed).checked_sub(AS_THE_VAULT + 1);
        let compression = place.and_then(|place| Compression::ALL.get(place as usize).copied());
        Of { ino: self.ino, compression }
    }

    /// Whether anything is buffered.
    pub fn is_empty(&self) -> bool {
        self.layers.held().is_empty()
    }

    /// Copies data in as part of `batch`.
    pub fn write(&self, batch: u64, offset: u64, data: &[u8], pool: &Pool) -> Written {
        self.change(batch, |layer, full| layer.write(self.of(), offset, data, pool, full))
    }

    /// Makes a range a hole as part of `batch`.
    pub fn punch(&self, batch: u64, from: u64, to: u64) -> Written {
        self.change(batch, |layer, _| layer.punch(from, to))
    }

    /// Lays what another range shows, `shift` bytes (modulo 2^64) further on, as part of `batch`. All of that must be known.
    pub fn lay(&self, batch: u64, parts: &[Part], shift: u64, pool: &Pool) -> Written {
        self.change(batch, |layer, full| {
            for part in parts {
                let (from, to) = (part.from.wrapping_add(shift), part.to.wrapping_add(shift));
                match &part.shown {
                    Shown::Hole => layer.punch(from, to),
                    Shown::Bytes(bytes) => layer.write(self.of(), from, bytes, pool, full),
                    Shown::Copied(extent, skip) => layer.copy(from, to - from, Arc::clone(extent), *skip),
                    Shown::AtRest | Shown::More => debug_assert!(false, "what is laid is known"),
                }
            }
        })
    }

    fn change(&self, batch: u64, change: impl FnOnce(&mut Layer, &mut Vec<Arc<Chunk>>)) -> Written {
        let mut layers = self.layers.held();
        self.changes.fetch_add(1, Relaxed);
        let mut done = Written { first: top(&mut layers, batch), ..Written::default() };
        let layer = layers.back_mut().expect("top made one");
        let before = layer.charged;
        change(layer, &mut done.full);
        done.grown_bytes = layer.charged - before;
        done
    }

    /// What the file shows of a range, in order, and a number that another change makes another. At most `bytes_max` bytes are
    /// copied out; the rest of them is `More`.
    pub fn parts(&self, from: u64, to: u64, mut bytes_max: u64) -> (Vec<Part>, u64) {
        let layers = self.layers.held();
        let changes = self.changes.load(Relaxed);
        let mut parts = vec![Part { from, to, shown: Shown::AtRest }];
        for layer in layers.iter().rev() {
            let mut next = Vec::new();
            for part in parts {
                if !matches!(part.shown, Shown::AtRest) {
                    next.push(part);
                    continue;
                }
                let mut at = part.from;
                for (start, span) in layer.overlapping(part.from, part.to) {
                    let (a, b) = (start.max(part.from), start.saturating_add(span.len).min(part.to));
                    if a > at {
                        next.push(Part { from: at, to: a, shown: Shown::AtRest });
                    }
                    next.push(Part { from: a, to: b, shown: span.shown(a - start, b - a, &mut bytes_max) });
                    at = b;
                }
                if at < part.to {
                    next.push(Part { from: at, to: part.to, shown: Shown::AtRest });
                }
            }
            parts = next;
        }
        (parts, changes)
    }

    /// Whether nothing has changed since `parts` or `cover` gave that number.
    pub fn is_unchanged(&self, changes: u64) -> bool {
        let _layers = self.layers.held();
        self.changes.load(Relaxed) == changes
    }

    /// Seals what is still open in the layer of `batch`; neighbours within a chunk become one.
    pub fn seal_open(&self, batch: u64, pool: &Pool) -> Vec<Arc<Chunk>> {
        let mut layers = self.layers.held();
        let Some(layer) = layers.iter_mut().find(|l| l.batch == batch) else { return Vec::new() };
        layer.join_neighbours(pool);
        let open: Vec<u64> =
            layer.spans.iter().filter(|(_, s)| matches!(s.source, Source::Open(_))).map(|(&at, _)| at).collect();
        open.into_iter().map(|start| layer.seal(self.of(), start, pool)).collect()
    }

    /// What the layer of `batch` shows, in order; nothing in it is open any more.
    pub fn pieces(&self, batch: u64) -> Vec<Piece> {
        let layers = self.layers.held();
        let Some(layer) = layers.iter().find(|l| l.batch == batch) else { return Vec::new() };
        let piece = |(&at, span): (&u64, &Span)| match &span.source {
            Source::Hole => Some(Piece::Hole(at, at.saturating_add(span.len))),
            Source::Sealed(chunk, skip) => Some(Piece::Data(at, span.len as u32, Arc::clone(chunk), *skip)),
            Source::Copied(extent, skip) => Some(Piece::Copied(at, extent.part(*skip, span.len as u32))),
            Source::Open(_) => None,
        };
        layer.spans.iter().filter_map(piece).collect()
    }

    /// The chunks that the layer of `batch` holds, each once.
    pub fn chunks(&self, batch: u64) -> Vec<Arc<Chunk>> {
        let layers = self.layers.held();
        let spans = layers.iter().filter(|l| l.batch == batch).flat_map(|l| l.spans.values());
        let mut all: Vec<Arc<Chunk>> = Vec::new();
        for span in spans {
            // The pieces of a chunk lie within its 128 KiB, so near each other.
            if let Source::Sealed(chunk, _) = &span.source
                && !all.iter().rev().take(64).any(|c| Arc::ptr_eq(c, chunk))
            {
                all.push(Arc::clone(chunk));
            }
        }
        all
    }

    /// Drops the layer of `batch`, and gives the bytes it was charged: the index shows the same by now.
    pub fn retire(&self, batch: u64) -> u64 {
        let mut layers = self.layers.held();
        match layers.front() {
            Some(layer) if layer.batch == batch => layers.pop_front().map_or(0, |l| l.charged),
            _ => 0,
        }
    }

    /// Fills `out` (zeroed) with what the layers show from `offset`; gives what they do not hold.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Rest {
        let layers = self.layers.held();
        let mut copied = Vec::new();
        let mut gaps = vec![(offset, offset + out.len() as u64)];
        for layer in layers.iter().rev() {
            if gaps.is_empty() {
                break;
            }
            let mut left = Vec::new();
            for (from, to) in gaps {
                let mut at = from;
                for (start, span) in layer.overlapping(from, to) {
                    let (a, b) = (start.max(from), start.saturating_add(span.len).min(to));
                    if a > at {
                        left.push((at, a));
                    }
                    let place = &mut out[(a - offset) as usize..(b - offset) as usize];
                    let skip = (a - start) as usize;
                    match &span.source {
                        Source::Hole => {}
                        Source::Copied(extent, s) => {
                            copied.push((a, place.len() as u32, Arc::clone(extent), *s + skip as u32));
                        }
                        Source::Open(v) => place.copy_from_slice(&v[skip..skip + place.len()]),
                        Source::Sealed(c, s) => {
                            let skip = skip + *s as usize;
                            place.copy_from_slice(&c.data()[skip..skip + place.len()]);
                        }
                    }
                    at = b;
                }
                if at < to {
                    left.push((at, to));
                }
            }
            gaps = left;
        }
        Rest { gaps: gaps.into_iter().map(|(a, b)| (a, (b - a) as usize)).collect(), copied }
    }

    /// Says what the layers show of `[from, to)`: ranges of data, and the gaps that only the index can fill, neither in order,
    /// and a number that another change makes another.
    pub fn cover(&self, from: u64, to: u64) -> (Vec<(u64, u64)>, Vec<(u64, u64)>, u64) {
        let layers = self.layers.held();
        let changes = self.changes.load(Relaxed);
        let (mut data, mut gaps) = (Vec::new(), vec![(from, to)]);
        for layer in layers.iter().rev() {
            let mut left = Vec::new();
            for (from, to) in gaps {
                let mut at = from;
                for (start, span) in layer.overlapping(from, to) {
                    let (a, b) = (start.max(from), start.saturating_add(span.len).min(to));
                    if a > at {
                        left.push((at, a));
                    }
                    if !matches!(span.source, Source::Hole) {
                        data.push((a, b));
                    }
                    at = b;
                }
                if at < to {
                    left.push((at, to));
                }
            }
            gaps = left;
        }
        (data, gaps, changes)
    }

    /// Bytes charged in all layers: at least what is buffered.
    pub fn charged_bytes(&self) -> u64 {
        self.layers.held().iter().map(|l| l.charged).sum()
    }

    /// Bytes that copies in the layer of `batch` cover, at most.
    pub fn copied_bytes(&self, batch: u64) -> u64 {
        self.layers.held().iter().filter(|l| l.batch == batch).map(|l| l.copied).sum()
    }

    /// Bytes that the file may have in its layers, those of copies counted.
    pub fn promised_bytes(&self) -> u64 {
        self.layers.held().iter().map(|l| l.charged + l.copied).sum()
    }

    /// Notes a read, and says how far to read ahead: a range, if the reader goes on where it was.
    pub fn reads_ahead(&self, offset: u64, len: usize, window: u64) -> Option<(u64, u64)> {
        let end = offset + len as u64;
        let sequential = self.read_next.swap(end, Relaxed) == offset && offset > 0;
        if !sequential {
            self.read_ahead.store(end, Relaxed);
            return None;
        }
        let ahead = self.read_ahead.load(Relaxed).max(end);
        // Half the window is left: top it up in one go rather than by slivers.
        if ahead >= end + window / 2 {
            return None;
        }
        self.read_ahead.store(end + window, Relaxed);
        Some((ahead, end + window))
    }
}

/// Makes sure that the newest layer is the batch's; says whether it had to be made.
fn top(layers: &mut VecDeque<Layer>, batch: u64) -> bool {
    let new = layers.back().is_none_or(|l| l.batch != batch);
    if new {
        layers.push_back(Layer::new(batch));
    }
    new
}

impl Span {
    /// What `len` bytes of it show, from `from` bytes into it; bytes come off `bytes_max`.
    fn shown(&self, from: u64, len: u64, bytes_max: &mut u64) -> Shown {
        let mut bytes = |all: &[u8], from: usize| {
            if len > *bytes_max {
                return Shown::More;
            }
            *bytes_max -= len;
            Shown::Bytes(all[from..from + len as usize].to_vec())
        };
        match &self.source {
            Source::Hole => Shown::Hole,
            Source::Open(v) => bytes(v, from as usize),
            Source::Sealed(chunk, skip) => bytes(chunk.data(), *skip as usize + from as usize),
            Source::Copied(extent, skip) => Shown::Copied(Arc::clone(extent), *skip + from as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::CHUNK_BYTES;

    fn pool() -> Pool {
        Pool::new(CHUNK_BYTES, 1 << 20)
    }

    /// What the layers show of the first `n` bytes, with gaps as `None`.
    fn shown(f: &FileBuffer, n: usize) -> Vec<Option<u8>> {
        let mut out = vec![0; n];
        let gaps = f.read(0, &mut out).gaps;
        let mut all: Vec<_> = out.into_iter().map(Some).collect();
        for (at, len) in gaps {
            all[at as usize..at as usize + len].fill(None);
        }
        all
    }

    #[test]
    fn random_writes_holes_cuts_and_retirements_match_a_plain_array() {
        const N: usize = 400_000;
        for seed in 1..40u64 {
            let mut state = seed;
            let mut random = move |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let (f, pool) = (FileBuffer::new(Ino(2)), pool());
            let mut model: Vec<Option<(u8, u64)>> = vec![None; N];
            let (mut batch, mut oldest) = (1, 1);
            for step in 0..120u64 {
                let from = random(N as u64 - 1);
                let most = if random(3) == 0 { 200_000 } else { 9000 };
                let len = (1 + random(most)).min(N as u64 - from);
                let range = from as usize..(from + len) as usize;
                match random(10) {
                    0..=5 => {
                        let data: Vec<u8> = (0..len).map(|i| (i + step) as u8).collect();
                        f.write(batch, from, &data, &pool);
                        model[range].iter_mut().zip(&data).for_each(|(m, &d)| *m = Some((d, batch)));
                    }
                    6 | 7 => {
                        f.punch(batch, from, from + len);
                        model[range].fill(Some((0, batch)));
                    }
                    8 => {
                        f.seal_open(batch, &pool);
                        batch += 1;
                    }
                    _ if oldest < batch => {
                        f.retire(oldest);
                        model.iter_mut().filter(|m| m.is_some_and(|(_, b)| b <= oldest)).for_each(|m| *m = None);
                        oldest += 1;
                    }
                    _ => {}
                }
                let want: Vec<_> = model.iter().map(|m| m.map(|(d, _)| d)).collect();
                assert!(shown(&f, N) == want, "seed {seed}, step {step}");
            }
        }
    }

    #[test]
    fn a_full_chunk_is_handed_over_and_stays_readable() {
        let f = FileBuffer::new(Ino(2));
        let w = f.write(1, 0, &vec![7; 2 * CHUNK_BYTES + 5], &pool());
        assert_eq!((w.full.len(), w.first), (2, true));
        assert_eq!(w.full[1].offset_bytes, CHUNK_BYTES as u64);
        assert!(shown(&f, 2 * CHUNK_BYTES + 5).iter().all(|b| *b == Some(7)));
        assert!(!f.write(1, 9, b"x", &pool()).first);
    }

    #[test]
    fn neighbours_written_in_any_order_are_sealed_as_one() {
        let f = FileBuffer::new(Ino(2));
        for at in [8192, 0, 4096] {
            f.write(1, at, &[1; 4096], &pool());
        }
        let sealed = f.seal_open(1, &pool());
        assert_eq!((sealed.len(), sealed[0].data().len()), (1, 12_288));
        assert!(f.seal_open(1, &pool()).is_empty());
        assert!(matches!(&f.pieces(1)[..], [Piece::Data(0, 12_288, _, 0)]));
    }

    #[test]
    fn everything_charged_is_given_back() {
        let f = FileBuffer::new(Ino(2));
        let grown: u64 =
            [0u64, 100, 50_000, 20].iter().map(|&at| f.write(1, at, &[1; 3000], &pool()).grown_bytes).sum();
        let grown = grown + f.punch(1, 1000, 2000).grown_bytes;
        let charged = f.charged_bytes();
        assert_eq!(charged, grown);
        assert_eq!(f.retire(1), charged);
        assert!(f.is_empty());
    }
}
