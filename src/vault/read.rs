//! Reads: buffers first, then what the index says lies at rest.
//!
//! Promise: every byte handed out comes from a buffer, from a frame that opened under its own address, or is a zero of a
//! hole; anything else is a fault. Why a moving index does no harm: a range that leaves a buffer is in the index before
//! that, and a frame that cannot be had is looked up again before it is called damaged (the extent may just have been
//! replaced, and its segment removed). A fault of the index itself is final. Called by: `fs`, `ahead`. Takes: no lock
//! while reading. On failure: the fault is noted in the error list; damage is counted.

use super::cache::{FrameCache, FrameKey, Plain};
use super::shared::Shared;
use super::window::{Advice, WINDOW_BYTES};
use super::{VaultFault, segment_info_if_known, unknown_segment};
use crate::backing::AlignedBuf;
use crate::base::id::{Ino, SegmentId};
use crate::base::limits::{BLOCK_BYTES, CHUNK_BYTES};
use crate::buffer::{FileBuffer, Rest};
use crate::format::extent::Extent;
use crate::format::key;
use crate::segment::{FrameAt, blocks_of, open_frames};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// Longest span of a segment read at once.
const SPAN_BYTES: u64 = 1 << 20;
/// Shortest buffer to read into.
const SCRATCH_MIN: usize = 128 << 10;
/// Dead bytes between two frames that are read along rather than making a second read.
const GAP_BYTES: u64 = 32 << 10;
/// Extents looked up at a time.
const SCAN_MOST: usize = 512;

thread_local! {
    /// What is read from the disk; each thread has its own, kept at the size of the longest span so far.
    static SCRATCH: RefCell<Option<AlignedBuf>> = const { RefCell::new(None) };
}

/// A frame that a read needs, and what of it.
struct Wanted {
    key: FrameKey,
    at: FrameAt,
    /// Bytes of its plaintext: from, to.
    part: (usize, usize),
    /// Where they go in the reader's buffer.
    to: usize,
}

/// Why frames could not be had.
enum Unread {
    /// The frames, their segment or its file: the extents may have been replaced since they were looked up.
    PerhapsReplaced(VaultFault),
    /// The index, which is not replaced by anything.
    Index(VaultFault),
}

impl Unread {
    fn into_fault(self) -> VaultFault {
        match self {
            Unread::PerhapsReplaced(fault) | Unread::Index(fault) => fault,
        }
    }
}

/// Fills `out` with the file's bytes from `offset`.
pub fn read(shared: &Shared, file: &Arc<FileBuffer>, offset: u64, out: &mut [u8]) -> Result<(), VaultFault> {
    out.fill(0);
    shared.wishes.note(file, offset, out.len());
    let sequential = offset > 0 && file.read_ahead.load(Relaxed) > offset + out.len() as u64;
    let mut tries_left = 2;
    loop {
        let Rest { gaps, copied } = file.read(offset, out);
        let mut fill = |at: u64, len: usize, wanted: &[Wanted]| {
            let start = (at - offset) as usize;
            fetch(shared, file.ino, wanted, &mut out[start..start + len], sequential)
        };
        let planned =
            |(at, len)| plan(shared, file.ino, at, len).map(|wanted| (at, len, wanted)).map_err(Unread::Index);
        let result = gaps.into_iter().map(planned).try_for_each(|planned| {
            let (at, len, wanted) = planned?;
            fill(at, len, &wanted)
        });
        let result = result.and_then(|()| {
            copied.into_iter().try_for_each(|(at, len, extent, skip)| {
                let (mut wanted, part) = (Vec::new(), extent.part(skip, len));
                want(file.ino, at, &part, at, at + u64::from(len), &mut wanted).map_err(Unread::Index)?;
                fill(at, len as usize, &wanted)
            })
        });
        match result {
            Ok(()) => break,
            // If the extents were replaced, the buffers or the index have the newer ones now.
            Err(Unread::PerhapsReplaced(_)) if tries_left > 0 => tries_left -= 1,
            Err(unread) => {
                let fault = unread.into_fault();
                note(shared, &fault);
                return Err(fault);
            }
        }
        out.fill(0);
    }
    shared.stats.read_bytes.add(out.len() as u64);
    Ok(())
}

fn note(shared: &Shared, fault: &VaultFault) {
    // An error of the disk is no damage: it is told, and not counted as such.
    if !matches!(fault, VaultFault::Backing(_)) {
        shared.stats.damaged_frames.add(1);
    }
    shared.stats.error(shared.world.now(), format!("read: {fault}"));
}

/// The frames that hold a range of a file, as of one moment.
///
/// The look-ups it takes are several moments, and a commit between two of them may have moved data from a key not yet seen
/// to one already passed. So where something seems to be a hole, it looks until it sees the same twice.
fn plan(shared: &Shared, ino: Ino, offset: u64, len: usize) -> Result<Vec<Wanted>, VaultFault> {
    let mut wanted = look(shared, ino, offset, len)?;
    while wanted.iter().map(|w| w.part.1 - w.part.0).sum::<usize>() != len {
        let again = look(shared, ino, offset, len)?;
        let same = again.iter().map(|w| (w.key, w.part)).eq(wanted.iter().map(|w| (w.key, w.part)));
        wanted = again;
        if same {
            break;
        }
    }
    Ok(wanted)
}

/// The frames that hold a range of a file, each look-up as of its own moment.
fn look(shared: &Shared, ino: Ino, offset: u64, len: usize) -> Result<Vec<Wanted>, VaultFault> {
    let (end, mut wanted) = (offset + len as u64, Vec::new());
    each_extent(shared, ino, offset, end, |at, extent| want(ino, at, &extent, offset, end, &mut wanted))?;
    Ok(wanted)
}

/// Hands the extents over that touch a range of a file, in order.
fn each_extent(
    shared: &Shared,
    ino: Ino,
    from: u64,
    to: u64,
    mut each: impl FnMut(u64, Extent) -> Result<(), VaultFault>,
) -> Result<(), VaultFault> {
    let prefix = key::prefix(key::EXTENT, ino.0);
    if let Some((k, v)) = shared.index.scan_last_before(&prefix, &key::extent(ino, from))? {
        let (at, extent) = (key::tail_u64(key::split(&k)?.2)?, Extent::decode(&v)?);
        if at.saturating_add(u64::from(extent.len_bytes)) > from {
            each(at, extent)?;
        }
    }
    let (mut next, end) = (key::extent(ino, from), key::extent(ino, to));
    let limit = SCAN_MOST.min((to - from) as usize / CHUNK_BYTES + 2);
    loop {
        let found = shared.index.scan_below(&prefix, &next, Some(&end), limit)?;
        let full = found.len() == limit;
        for (k, v) in found {
            let at = key::tail_u64(key::split(&k)?.2)?;
            if at >= to {
                return Ok(());
            }
            each(at, Extent::decode(&v)?)?;
            next = [&k[..], &[0]].concat();
        }
        if !full {
            return Ok(());
        }
    }
}

/// The extents that touch a range of a file, as of one moment: as in `plan`, where something seems to be a hole, or is there
/// twice, it looks until it sees the same twice.
pub fn extents(shared: &Shared, ino: Ino, from: u64, to: u64) -> Result<Vec<(u64, Extent)>, VaultFault> {
    let look = || {
        let mut all: Vec<(u64, Extent)> = Vec::new();
        each_extent(shared, ino, from, to, |at, extent| {
            all.push((at, extent));
            Ok(())
        })?;
        Ok::<_, VaultFault>(all)
    };
    let mut all = look()?;
    while !is_seamless(&all, from, to) {
        let again = look()?;
        if again == all {
            break;
        }
        all = again;
    }
    Ok(all)
}

/// Whether a range is covered without holes and nothing of it twice. A commit that gives an extent's beginning to another moves
/// its rest to a higher key: seen before under the one, and then under the other.
fn is_seamless(extents: &[(u64, Extent)], from: u64, to: u64) -> bool {
    let ends = |(at, e): &(u64, Extent)| at.saturating_add(u64::from(e.len_bytes));
    let begins = extents.first().map_or(to, |(at, _)| *at);
    begins <= from
        && extents.windows(2).all(|w| ends(&w[0]) == w[1].0)
        && extents.last().is_some_and(|last| ends(last) >= to)
}

/// Adds the frames of an extent at `at` that `[from, to)` needs.
fn want(ino: Ino, at: u64, extent: &Extent, from: u64, to: u64, wanted: &mut Vec<Wanted>) -> Result<(), VaultFault> {
    let (origin, end) = (extent.origin(ino, at), at.checked_add(u64::from(extent.len_bytes)));
    let (Some(origin), Some(end)) = (origin, end) else {
        let why = format!("inode {ino}: an extent at byte {at} lies outside of what a file can be");
        return Err(VaultFault::Index(why.into()));
    };
    let (a, b) = (at.max(from), end.min(to));
    if a >= b {
        return Ok(());
    }
    // Bytes of the run, which may have been sealed for another place than this.
    let in_run = |n: u64| n - at + u64::from(extent.skip_bytes);
    let (a, b) = (in_run(a), in_run(b));
    for f in extent.run.frames() {
        let frame_from = u64::from(f.plain_start_bytes);
        let (x, y) = (a.max(frame_from), b.min(frame_from + u64::from(f.plain_len_bytes)));
        if x < y {
            let frame = FrameAt {
                position_bytes: f.position_bytes,
                sealed_len_bytes: f.sealed_len_bytes,
                slot: f.slot,
                codec: f.codec,
                plain_len_bytes: f.plain_len_bytes,
                ino: origin.ino,
                offset_bytes: origin.start_bytes + frame_from,
            };
            wanted.push(Wanted {
                key: FrameKey::of(extent.run.segment, &frame),
                at: frame,
                part: ((x - frame_from) as usize, (y - frame_from) as usize),
                to: (at + x - u64::from(extent.skip_bytes) - from) as usize,
            });
        }
    }
    Ok(())
}

/// Frames claimed from the cache, released however the loading ends.
struct Claim<'a> {
    cache: &'a FrameCache,
    keys: &'a [FrameKey],
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.cache.release(self.keys);
    }
}

/// Gets the wanted frames, from the cache or the disk, and copies their parts out.
fn fetch(shared: &Shared, ino: Ino, wanted: &[Wanted], out: &mut [u8], sequential: bool) -> Result<(), Unread> {
    let keys: Vec<FrameKey> = wanted.iter().map(|w| w.key).collect();
    let mut got: Vec<Option<Plain>> = vec![None; keys.len()];
    let mut missed = 0;
    loop {
        let mine = shared.cache.claim(&keys, &mut got);
        if mine.is_empty() {
            break;
        }
        missed += mine.len();
        let claim = Claim { cache: &shared.cache, keys: &mine };
        let result = load(shared, ino, wanted, &mine, |key, plain| {
            for (_, place) in keys.iter().zip(&mut got).filter(|(k, _)| **k == key) {
                *place = Some(Arc::clone(&plain));
            }
        });
        drop(claim);
        result?;
    }
    shared.stats.cache_hits.add(keys.len().saturating_sub(missed) as u64);
    shared.stats.cache_misses.add(missed as u64);
    for (w, plain) in wanted.iter().zip(&got) {
        let plain = plain.as_ref().expect("every frame was had or claimed");
        let (from, to) = w.part;
        out[w.to..w.to + (to - from)].copy_from_slice(&plain[from..to]);
        // The kernel keeps what it read; a frame read to its end has done its work.
        if sequential && to == plain.len() {
            shared.cache.forget(&w.key);
        }
    }
    Ok(())
}

/// Reads the claimed frames from the disk, those next to each other at once, and keeps them.
fn load(
    shared: &Shared,
    ino: Ino,
    wanted: &[Wanted],
    mine: &[FrameKey],
    mut each: impl FnMut(FrameKey, Plain),
) -> Result<(), Unread> {
    let began = Instant::now();
    let mut frames: Vec<(SegmentId, FrameAt)> =
        wanted.iter().filter(|w| mine.contains(&w.key)).map(|w| (w.key.segment(), w.at)).collect();
    frames.sort_unstable_by_key(|(segment, at)| (*segment, at.position_bytes));
    frames.dedup_by_key(|(segment, at)| FrameKey::of(*segment, at));
    let mut fault = None;
    let mut rest = &frames[..];
    while let Some(((id, first), _)) = rest.split_first() {
        let mut end = first.position_bytes;
        let fits = |(segment, at): &&(SegmentId, FrameAt)| {
            let ends = at.position_bytes + u64::from(at.sealed_len_bytes);
            let joins = segment == id
                && at.position_bytes <= end + GAP_BYTES
                && ends - first.position_bytes <= SPAN_BYTES - 2 * BLOCK_BYTES as u64;
            if joins {
                end = ends;
            }
            joins
        };
        let count = rest.iter().take_while(fits).count();
        let (span, more) = rest.split_at(count.max(1));
        rest = more;
        let span: Vec<FrameAt> = span.iter().map(|(_, at)| *at).collect();
        let result = read_span(shared, ino, *id, &span, |at, plain| {
            let (key, plain) = (FrameKey::of(*id, at), Arc::new(plain));
            shared.cache.keep(key, Arc::clone(&plain));
            each(key, plain);
        });
        fault = fault.or(result.err());
    }
    shared.stats.frame_read.record(began.elapsed());
    match fault {
        Some(fault) => Err(fault),
        None => Ok(()),
    }
}

fn read_span(
    shared: &Shared,
    ino: Ino,
    id: SegmentId,
    span: &[FrameAt],
    mut each: impl FnMut(&FrameAt, Vec<u8>),
) -> Result<(), Unread> {
    let mut from_index = false;
    let info = || {
        let info = segment_info_if_known(shared, id).inspect_err(|_| from_index = true)?;
        info.ok_or_else(|| unknown_segment(id))
    };
    let segment = shared.segments.get(id, info).map_err(|fault| match from_index {
        true => Unread::Index(fault),
        false => Unread::PerhapsReplaced(fault),
    })?;
    let (from, to) = blocks_of(span);
    let mut advice = shared.windows.advise(id, from, to);
    loop {
        let mut damage = None;
        SCRATCH
            .with_borrow_mut(|scratch| -> std::io::Result<()> {
                let scratch = long_enough(scratch, (to - from) as usize);
                if let Advice::Fill = advice {
                    let mut bytes = shared.windows.buffer();
                    bytes.set_len(WINDOW_BYTES);
                    let got = segment.file.read_at(&mut bytes, from)?;
                    bytes.set_len(got);
                    if from + got as u64 >= to {
                        advice = Advice::Have(shared.windows.keep(id, from, bytes));
                    }
                }
                let len = match &advice {
                    Advice::Have(window) => {
                        scratch.copy_from_slice(window.part(from, to));
                        scratch.len()
                    }
                    Advice::Fill | Advice::Plain => segment.file.read_at(scratch, from)?,
                };
                open_frames(&segment.context, span, from, &mut scratch[..len], |at, plain| match plain {
                    Ok(plain) => each(at, plain),
                    Err(_) => damage = damage.or(Some(at.position_bytes)),
                });
                Ok(())
            })
            .map_err(|e| Unread::PerhapsReplaced(e.into()))?;
        match (damage, &advice) {
            (None, _) => return Ok(()),
            // The window may be older than the frame.
            (Some(_), Advice::Have(window)) => shared.windows.forget(window),
            (Some(position_bytes), _) => {
                return Err(Unread::PerhapsReplaced(VaultFault::Damaged { ino, segment: id, position_bytes }));
            }
        }
        advice = Advice::Plain;
    }
}

/// The scratch at a length; one that is too short is let go of, and the next one is a power of two: so there are few of them.
fn long_enough(scratch: &mut Option<AlignedBuf>, len: usize) -> &mut AlignedBuf {
    if scratch.as_ref().is_none_or(|s| s.capacity() < len) {
        *scratch = None;
    }
    let scratch = scratch.get_or_insert_with(|| AlignedBuf::with_capacity(len.next_power_of_two().max(SCRATCH_MIN)));
    scratch.set_len(len);
    scratch
}

/// Brings a range into the cache for a sequential reader; what fails here fails again, and is told, when it is read.
pub fn ahead(shared: &Shared, file: &FileBuffer, from: u64, to: u64) {
    let Ok(wanted) = plan(shared, file.ino, from, (to - from) as usize) else { return };
    let keys: Vec<FrameKey> = wanted.iter().map(|w| w.key).collect();
    let mine = shared.cache.claim_missing(&keys);
    if !mine.is_empty() {
        let claim = Claim { cache: &shared.cache, keys: &mine };
        let result = load(shared, file.ino, &wanted, &mine, |_, _| ());
        drop(claim);
        if result.is_ok() {
            shared.stats.prefetched.add(mine.len() as u64);
        }
    }
}

/// Bytes of a range that are not holes, at rest.
pub fn allocated_between(shared: &Shared, ino: Ino, from: u64, to: u64) -> Result<u64, VaultFault> {
    let wanted = plan(shared, ino, from, (to - from) as usize)?;
    Ok(wanted.iter().map(|w| (w.part.1 - w.part.0) as u64).sum())
}
