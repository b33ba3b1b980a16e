//! What one file has that is not yet at rest: a layer per batch, newest on top.
//!
//! Promise: `read` shows every write and hole of every layer, later ones over earlier ones, and names the gaps that only
//! the index can fill. A layer of a batch that was cut never changes in what it shows: sealing its open pieces keeps their
//! bytes. It goes only when `retire` is told that the index shows the same.
//! Called by: `vault` (op, log, read, verifier). Takes: its own lock, nothing else inside. Cannot fail.

use super::Pool;
use crate::base::id::Ino;
use crate::base::limits::CHUNK_BYTES;
use crate::base::lock::Held;
use crate::base::sync::{AtomicU64, Mutex};
use crate::format::extent::Run;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Bookkeeping bytes charged for each piece beside its data.
const PIECE_OVERHEAD_BYTES: u64 = 256;
/// A first write this long gets a whole chunk's room at once.
const WHOLE_CHUNK_FROM: usize = CHUNK_BYTES / 2;

/// Data on its way to the disk: it does not change any more.
pub struct Chunk {
    /// The file.
    pub ino: Ino,
    /// Offset of the first byte.
    pub offset_bytes: u64,
    data: Vec<u8>,
    pool: Pool,
    placed: Mutex<Placement>,
}

/// Where a chunk is in the log.
enum Placement {
    /// With the workers, or on its way to the log.
    OnItsWay,
    /// In the log.
    At(Run),
    /// It was in a segment that failed, or on its way there.
    Lost,
}

impl Chunk {
    /// The bytes.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }
    /// Says where the log put it.
    pub fn place(&self, run: Run) {
        let before = std::mem::replace(&mut *self.placed.held(), Placement::At(run));
        debug_assert!(matches!(before, Placement::OnItsWay), "only what is on its way arrives");
    }
    /// Where the log put it.
    #[must_use]
    pub fn placed(&self) -> Option<Run> {
        match &*self.placed.held() {
            Placement::At(run) => Some(run.clone()),
            Placement::OnItsWay | Placement::Lost => None,
        }
    }
    /// It did not arrive, or where it arrived has failed.
    pub fn lose(&self) {
        *self.placed.held() = Placement::Lost;
    }
    /// Sends it on its way again, if it is not on its way already; says whether it is to be sent.
    pub fn send_again(&self) -> bool {
        let mut placed = self.placed.held();
        let gone = !matches!(*placed, Placement::OnItsWay);
        *placed = Placement::OnItsWay;
        gone
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.data));
    }
}

enum Source {
    Hole,
    /// Still growing; never crosses a chunk's boundary.
    Open(Vec<u8>),
    /// On its way; the piece begins this many bytes into the chunk.
    Sealed(Arc<Chunk>, u32),
}

struct Span {
    len: u64,
    source: Source,
}

/// What a cut layer shows of a range, for the commit.
pub enum Piece {
    /// A hole, from the first to before the second.
    Hole(u64, u64),
    /// Data: offset, length, chunk, bytes of the chunk before it.
    Data(u64, u32, Arc<Chunk>, u32),
}

struct Layer {
    batch: u64,
    spans: BTreeMap<u64, Span>,
    charged: u64,
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
    /// Where a sequential reader would read next.
    pub read_next: AtomicU64,
    /// How far has been read ahead for it.
    pub read_ahead: AtomicU64,
}

impl FileBuffer {
    /// No layers.
    #[must_use]
    pub fn new(ino: Ino) -> Self {
        FileBuffer { ino, layers: Mutex::default(), read_next: AtomicU64::new(0), read_ahead: AtomicU64::new(0) }
    }

    /// Whether anything is buffered.
    pub fn is_empty(&self) -> bool {
        self.layers.held().is_empty()
    }

    /// Copies data in as part of `batch`.
    pub fn write(&self, batch: u64, mut offset: u64, mut data: &[u8], pool: &Pool) -> Written {
        let mut layers = self.layers.held();
        let mut done = Written { first: top(&mut layers, batch), ..Written::default() };
        let layer = layers.back_mut().expect("top made one");
        let before = layer.charged;
        while !data.is_empty() {
            let chunk_end = (offset / CHUNK_BYTES as u64 + 1) * CHUNK_BYTES as u64;
            let (part, rest) = data.split_at(data.len().min((chunk_end - offset) as usize));
            let start = layer.write_part(offset, part, pool);
            if layer.spans[&start].len == CHUNK_BYTES as u64 {
                done.full.push(layer.seal(self.ino, start, pool));
            }
            offset += part.len() as u64;
            data = rest;
        }
        done.grown_bytes = layer.charged - before;
        done
    }

    /// Makes a range a hole as part of `batch`.
    pub fn punch(&self, batch: u64, from: u64, to: u64) -> Written {
        let mut layers = self.layers.held();
        let first = top(&mut layers, batch);
        let layer = layers.back_mut().expect("top made one");
        let before = layer.charged;
        layer.cut(from, to);
        layer.spans.insert(from, Span { len: to - from, source: Source::Hole });
        layer.charged += PIECE_OVERHEAD_BYTES;
        Written { grown_bytes: layer.charged - before, first, full: Vec::new() }
    }

    /// Seals what is still open in the layer of `batch`; neighbours within a chunk become one.
    pub fn seal_open(&self, batch: u64, pool: &Pool) -> Vec<Arc<Chunk>> {
        let mut layers = self.layers.held();
        let Some(layer) = layers.iter_mut().find(|l| l.batch == batch) else { return Vec::new() };
        layer.join_neighbours(pool);
        let open: Vec<u64> =
            layer.spans.iter().filter(|(_, s)| matches!(s.source, Source::Open(_))).map(|(&at, _)| at).collect();
        open.into_iter().map(|start| layer.seal(self.ino, start, pool)).collect()
    }

    /// What the layer of `batch` shows, in order; nothing in it is open any more.
    pub fn pieces(&self, batch: u64) -> Vec<Piece> {
        let layers = self.layers.held();
        let Some(layer) = layers.iter().find(|l| l.batch == batch) else { return Vec::new() };
        let piece = |(&at, span): (&u64, &Span)| match &span.source {
            Source::Hole => Some(Piece::Hole(at, at.saturating_add(span.len))),
            Source::Sealed(chunk, skip) => Some(Piece::Data(at, span.len as u32, Arc::clone(chunk), *skip)),
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

    /// Fills `out` (zeroed) with what the layers show from `offset`; gives the gaps as (offset, length).
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Vec<(u64, usize)> {
        let layers = self.layers.held();
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
                        Source::Open(v) => place.copy_from_slice(&v[skip..skip + place.len()]),
                        Source::Sealed(c, s) => {
                            let skip = skip + *s as usize;
                            place.copy_from_slice(&c.data[skip..skip + place.len()]);
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
        gaps.into_iter().map(|(a, b)| (a, (b - a) as usize)).collect()
    }

    /// What the layers show of `[from, to)`: ranges of data, and the gaps that only the index can fill; neither in order.
    pub fn cover(&self, from: u64, to: u64) -> (Vec<(u64, u64)>, Vec<(u64, u64)>) {
        let layers = self.layers.held();
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
        (data, gaps)
    }

    /// Bytes charged in all layers: at least what is buffered.
    pub fn charged_bytes(&self) -> u64 {
        self.layers.held().iter().map(|l| l.charged).sum()
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
        layers.push_back(Layer { batch, spans: BTreeMap::new(), charged: 0 });
    }
    new
}

impl Layer {
    /// Spans that touch `[from, to)`.
    fn overlapping(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, &Span)> {
        let first = match self.spans.range(..=from).next_back() {
            Some((&at, span)) if at.saturating_add(span.len) > from => at,
            _ => from,
        };
        self.spans.range(first..to).map(|(&at, span)| (at, span))
    }

    /// Writes within one chunk; gives the start of the span that now holds the data.
    fn write_part(&mut self, offset: u64, data: &[u8], pool: &Pool) -> u64 {
        let end = offset + data.len() as u64;
        // A neighbour that is still open and of the same chunk takes the data in.
        if let Some((&start, span)) = self.spans.range_mut(..=offset).next_back()
            && start.saturating_add(span.len) >= offset
            && start / CHUNK_BYTES as u64 == offset / CHUNK_BYTES as u64
            && let Source::Open(v) = &mut span.source
        {
            let at = (offset - start) as usize;
            if end <= start + span.len {
                v[at..at + data.len()].copy_from_slice(data);
                return start;
            }
            let (old_end, old_capacity) = (start + span.len, v.capacity());
            let keep = v.len() - at;
            v[at..].copy_from_slice(&data[..keep]);
            grow(v, data.len() - keep, pool);
            v.extend_from_slice(&data[keep..]);
            span.len = v.len() as u64;
            self.charged += (v.capacity() - old_capacity) as u64;
            let span = self.spans.remove(&start).expect("just seen");
            self.cut(old_end, end);
            self.spans.insert(start, span);
            return start;
        }
        self.cut(offset, end);
        let mut v = if data.len() >= WHOLE_CHUNK_FROM { pool.take() } else { Vec::with_capacity(data.len()) };
        v.extend_from_slice(data);
        self.charged += v.capacity() as u64 + PIECE_OVERHEAD_BYTES;
        self.spans.insert(offset, Span { len: data.len() as u64, source: Source::Open(v) });
        offset
    }

    /// Removes whatever covers `[from, to)`, keeping what sticks out on either side.
    fn cut(&mut self, from: u64, to: u64) {
        let hit: Vec<u64> = self.overlapping(from, to).map(|(at, _)| at).collect();
        for start in hit {
            let span = self.spans.remove(&start).expect("just listed");
            let end = start.saturating_add(span.len);
            let (left, right) = (from.saturating_sub(start), end.saturating_sub(to));
            match span.source {
                Source::Hole => {
                    if left > 0 {
                        self.spans.insert(start, Span { len: left, source: Source::Hole });
                    }
                    if right > 0 {
                        self.spans.insert(to, Span { len: right, source: Source::Hole });
                    }
                }
                Source::Open(mut v) => {
                    if right > 0 {
                        let tail = v[(to - start) as usize..].to_vec();
                        self.charged += tail.capacity() as u64 + PIECE_OVERHEAD_BYTES;
                        self.spans.insert(to, Span { len: right, source: Source::Open(tail) });
                    }
                    if left > 0 {
                        v.truncate(left as usize);
                        self.spans.insert(start, Span { len: left, source: Source::Open(v) });
                    }
                }
                Source::Sealed(chunk, skip) => {
                    if right > 0 {
                        let skip = skip + (to - start) as u32;
                        self.spans.insert(to, Span { len: right, source: Source::Sealed(Arc::clone(&chunk), skip) });
                    }
                    if left > 0 {
                        self.spans.insert(start, Span { len: left, source: Source::Sealed(chunk, skip) });
                    }
                }
            }
        }
    }

    fn seal(&mut self, ino: Ino, start: u64, pool: &Pool) -> Arc<Chunk> {
        let span = self.spans.get_mut(&start).expect("the caller has seen the span");
        let Source::Open(v) = std::mem::replace(&mut span.source, Source::Hole) else {
            unreachable!("only open spans are sealed")
        };
        let chunk = Arc::new(Chunk {
            ino,
            offset_bytes: start,
            data: v,
            pool: pool.clone(),
            placed: Mutex::new(Placement::OnItsWay),
        });
        span.source = Source::Sealed(Arc::clone(&chunk), 0);
        chunk
    }

    /// Open spans that touch each other within a chunk become one: one run, one extent.
    fn join_neighbours(&mut self, pool: &Pool) {
        let mut joins: Vec<(u64, Vec<u64>)> = Vec::new();
        let mut end_of_last = None;
        for (&at, span) in &self.spans {
            if !matches!(span.source, Source::Open(_)) {
                end_of_last = None;
                continue;
            }
            match joins.last_mut() {
                Some((start, more))
                    if end_of_last == Some(at) && *start / CHUNK_BYTES as u64 == at / CHUNK_BYTES as u64 =>
                {
                    more.push(at);
                }
                _ => joins.push((at, Vec::new())),
            }
            end_of_last = Some(at + span.len);
        }
        for (start, more) in joins.into_iter().filter(|(_, more)| !more.is_empty()) {
            let all = || std::iter::once(start).chain(more.iter().copied());
            let total: u64 = all().map(|at| self.spans[&at].len).sum();
            let total = total as usize;
            let mut whole = if total >= WHOLE_CHUNK_FROM { pool.take() } else { Vec::with_capacity(total) };
            for at in all() {
                if let Some(Span { source: Source::Open(v), .. }) = self.spans.remove(&at) {
                    whole.extend_from_slice(&v);
                }
            }
            self.spans.insert(start, Span { len: whole.len() as u64, source: Source::Open(whole) });
        }
    }
}

/// Makes room for `more` bytes: a quarter ahead while small, then a pool vector of a whole chunk.
fn grow(v: &mut Vec<u8>, more: usize, pool: &Pool) {
    let want = v.len() + more;
    if want <= v.capacity() {
        return;
    }
    if want >= WHOLE_CHUNK_FROM {
        let mut whole = pool.take();
        whole.extend_from_slice(v);
        *v = whole;
    } else {
        v.reserve_exact((want * 2).min(CHUNK_BYTES) - v.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool::new(CHUNK_BYTES, 1 << 20)
    }

    /// What the layers show of the first `n` bytes, with gaps as `None`.
    fn shown(f: &FileBuffer, n: usize) -> Vec<Option<u8>> {
        let mut out = vec![0; n];
        let gaps = f.read(0, &mut out);
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
