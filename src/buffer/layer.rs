//! One batch's layer of a file: spans that do not overlap, each over whatever an older layer or the index has there.
//!
//! Promise: a span shows what was put there last, in this batch; cutting keeps what sticks out on either side. Everything that
//! takes memory is charged. A copied span names frames that are at rest, and has no bytes of its own.
//! Called by: `file`, which holds the lock. Cannot fail.

use super::Pool;
use super::chunk::{Chunk, Of};
use crate::base::limits::CHUNK_BYTES;
use crate::format::extent::Extent;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bookkeeping bytes charged for each piece beside its data.
const PIECE_OVERHEAD_BYTES: u64 = 256;
/// A first write this long gets a whole chunk's room at once.
const WHOLE_CHUNK_FROM: usize = CHUNK_BYTES / 2;

pub(super) enum Source {
    Hole,
    /// Still growing; never crosses a chunk's boundary.
    Open(Vec<u8>),
    /// On its way; the piece begins this many bytes into the chunk.
    Sealed(Arc<Chunk>, u32),
    /// At rest, under another address; the piece begins this many bytes into the extent.
    Copied(Arc<Extent>, u32),
}

pub(super) struct Span {
    pub(super) len: u64,
    pub(super) source: Source,
}

/// A layer.
pub(super) struct Layer {
    pub(super) batch: u64,
    pub(super) spans: BTreeMap<u64, Span>,
    pub(super) charged: u64,
    /// Bytes of the file that copied spans were laid over, at most; for the quota.
    pub(super) copied: u64,
}

impl Layer {
    pub(super) fn new(batch: u64) -> Layer {
        Layer { batch, spans: BTreeMap::new(), charged: 0, copied: 0 }
    }

    /// Spans that touch `[from, to)`.
    pub(super) fn overlapping(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, &Span)> {
        let first = match self.spans.range(..=from).next_back() {
            Some((&at, span)) if at.saturating_add(span.len) > from => at,
            _ => from,
        };
        self.spans.range(first..to).map(|(&at, span)| (at, span))
    }

    /// Copies data in; adds the chunks that are full by it.
    pub(super) fn write(&mut self, of: Of, mut offset: u64, mut data: &[u8], pool: &Pool, full: &mut Vec<Arc<Chunk>>) {
        while !data.is_empty() {
            let chunk_end = (offset / CHUNK_BYTES as u64 + 1) * CHUNK_BYTES as u64;
            let (part, rest) = data.split_at(data.len().min((chunk_end - offset) as usize));
            let start = self.write_part(offset, part, pool);
            if self.spans[&start].len == CHUNK_BYTES as u64 {
                full.push(self.seal(of, start, pool));
            }
            offset += part.len() as u64;
            data = rest;
        }
    }

    /// Makes a range a hole.
    pub(super) fn punch(&mut self, from: u64, to: u64) {
        self.cut(from, to);
        self.spans.insert(from, Span { len: to - from, source: Source::Hole });
        self.charged += PIECE_OVERHEAD_BYTES;
    }

    /// Lays a piece of an extent, from `skip` bytes into it.
    pub(super) fn copy(&mut self, offset: u64, len: u64, extent: Arc<Extent>, skip: u32) {
        self.cut(offset, offset + len);
        self.charged += copied_piece_bytes(&extent);
        self.copied += len;
        self.spans.insert(offset, Span { len, source: Source::Copied(extent, skip) });
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
                Source::Copied(extent, skip) => {
                    if right > 0 {
                        self.charged += copied_piece_bytes(&extent);
                        let skip = skip + (to - start) as u32;
                        self.spans.insert(to, Span { len: right, source: Source::Copied(Arc::clone(&extent), skip) });
                    }
                    if left > 0 {
                        self.spans.insert(start, Span { len: left, source: Source::Copied(extent, skip) });
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

    pub(super) fn seal(&mut self, of: Of, start: u64, pool: &Pool) -> Arc<Chunk> {
        let span = self.spans.get_mut(&start).expect("the caller has seen the span");
        let Source::Open(v) = std::mem::replace(&mut span.source, Source::Hole) else {
            unreachable!("only open spans are sealed")
        };
        let chunk = Arc::new(Chunk::new(of, start, v, pool));
        span.source = Source::Sealed(Arc::clone(&chunk), 0);
        chunk
    }

    /// Open spans that touch each other within a chunk become one: one run, one extent.
    pub(super) fn join_neighbours(&mut self, pool: &Pool) {
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

/// What a piece of an extent is charged.
pub(super) fn copied_piece_bytes(extent: &Extent) -> u64 {
    PIECE_OVERHEAD_BYTES + 4 * extent.run.sealed_lens.len() as u64
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
