//! Reads all live data of an open vault from the device, frame by frame, and names what does not open.
//!
//! Promise: every frame that an extent needed from the beginning of a pass to its end was read past all caches and
//! authenticated, or is counted: as damaged if it did not open, as unread if the disk did not give it. At most `rate` bytes a second
//! are read. A pass that was stopped goes on where its mark says, which is an ordinary setting of the index.
//! Memory and lines in the error list are bounded, however much is damaged.
//! Called by: `fs::storage` and `Vault::close`; runs on a thread of its own. Takes: its own lock, for memory only.
//! On failure: an index that cannot be read, or a panic, ends the pass as `Failed`, with a line in the error list.

use super::op::Op;
use super::paths;
use super::shared::Shared;
use super::{VaultFault, segment_info};
use crate::backing::AlignedBuf;
use crate::base::id::{Ino, SegmentId};
use crate::base::limits::{CHUNK_BYTES, HISTORY_LINES_MAX};
use crate::base::lock::Held;
use crate::base::world::Time;
use crate::format::extent::{Extent, Origin};
use crate::format::key;
use crate::format::setting::{SCRUB, ScrubMark};
use crate::segment::{FrameAt, blocks_of, open_frames};
use std::collections::BTreeSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Extents looked up at a time.
const SCAN: usize = 64;
/// The mark is stored this often, so that a crash costs no more than so much reading.
const MARK_EVERY: Duration = Duration::from_secs(30);
/// Longest sleep between two looks at whether the pass is to stop.
const NAP: Duration = Duration::from_millis(500);
/// Frames remembered, so that each is counted once: of the file at hand, and of all since the mount. What comes beyond is counted
/// each time that it is met.
const FRAMES_REMEMBERED_MAX: usize = 1 << 16;
/// Lines that a pass adds to the error list; the rest is counted, and told in one line at its end.
const LINES_MAX: u64 = 50;

/// How a scrub is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ScrubState {
    /// None was begun.
    #[default]
    Idle,
    /// A pass is under way.
    Running,
    /// A pass was begun and stopped; it goes on when it is asked for.
    Paused,
    /// The last pass came to its end.
    Done,
    /// The last pass could not go on; the error list says why.
    Failed,
}

impl ScrubState {
    /// One word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            ScrubState::Idle => "idle",
            ScrubState::Running => "running",
            ScrubState::Paused => "paused",
            ScrubState::Done => "done",
            ScrubState::Failed => "failed",
        }
    }
}

/// A range of a file that does not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hurt {
    /// The file.
    pub ino: Ino,
    /// One of its paths, from the root; known when a pass has stopped, if it has one.
    pub path: Option<Vec<u8>>,
    /// First byte.
    pub from_bytes: u64,
    /// First byte after.
    pub to_bytes: u64,
    /// Whether the disk did not give it. Then nothing is known of it, and nothing is called damaged.
    pub is_unread: bool,
}

/// What `/.storage/scrub` shows.
#[derive(Debug, Clone, Default)]
pub struct ScrubReport {
    /// How it is doing.
    pub state: ScrubState,
    /// Where it is, and what it found.
    pub mark: ScrubMark,
    /// Bytes of files at rest.
    pub total_bytes: u64,
    /// Most bytes read in a second; 0 for no limit.
    pub rate_bytes: u64,
    /// Frames that the disk did not give, in this pass since the mount.
    pub unread: u64,
    /// What does not read, as far as it was found since the mount; no more than `HISTORY_LINES_MAX` ranges.
    pub hurt: Vec<Hurt>,
}

struct Inner {
    /// Whether the mark was read from the index.
    known: bool,
    state: ScrubState,
    mark: ScrubMark,
    rate_bytes: u64,
    hurt: Vec<Hurt>,
    /// Frames of the file at hand that were counted in this pass.
    found: (Ino, BTreeSet<(SegmentId, u64)>),
    /// Frames counted as damaged since the mount, for each file that shares them.
    reported: BTreeSet<(SegmentId, u64, Ino)>,
    /// Frames that the disk did not give, in this pass.
    unread: u64,
    /// Lines that this pass has added to the error list, or would have.
    lines: u64,
    stop: bool,
    thread: Option<JoinHandle<()>>,
}

/// The scrub of an open vault.
pub struct Scrub {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Scrub {
    /// With nothing under way; reads at that rate unless told otherwise.
    pub fn new(rate_bytes: u64) -> Scrub {
        let inner = Inner {
            known: false,
            state: ScrubState::Idle,
            mark: ScrubMark::default(),
            rate_bytes,
            hurt: Vec::new(),
            found: Default::default(),
            reported: BTreeSet::new(),
            unread: 0,
            lines: 0,
            stop: false,
            thread: None,
        };
        Scrub { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Begins a pass, or goes on with the one that was stopped; one under way only takes the new rate.
    pub fn begin(self: &Arc<Self>, shared: &Arc<Shared>, rate_bytes: Option<u64>) -> Result<(), VaultFault> {
        self.load(shared)?;
        let mut inner = self.inner.held();
        inner.rate_bytes = rate_bytes.unwrap_or(inner.rate_bytes);
        if inner.state == ScrubState::Running {
            self.changed.notify_all();
            return Ok(());
        }
        if !inner.mark.under_way {
            inner.mark = ScrubMark { under_way: true, finished_s: inner.mark.finished_s, ..ScrubMark::default() };
            inner.hurt.clear();
            (inner.found, inner.unread, inner.lines) = (Default::default(), 0, 0);
        }
        let before = inner.thread.take();
        (inner.state, inner.stop) = (ScrubState::Running, false);
        let (scrub, shared) = (Arc::clone(self), Arc::clone(shared));
        let body = move || {
            // It has ended: its last act was to leave the state that we found.
            before.map(JoinHandle::join);
            if catch_unwind(AssertUnwindSafe(|| scrub.work(&shared))).is_err() {
                shared.stats.error(shared.world.now(), "scrub: its thread panicked; the pass is given up".to_owned());
                scrub.inner.held().state = ScrubState::Failed;
            }
        };
        match std::thread::Builder::new().name("scrub".to_owned()).spawn(body) {
            Ok(thread) => inner.thread = Some(thread),
            Err(e) => {
                inner.state = ScrubState::Paused;
                return Err(e.into());
            }
        }
        Ok(())
    }

    /// Stops a pass and waits until it stands; its mark is stored.
    pub fn stop(&self) {
        let thread = {
            let mut inner = self.inner.held();
            inner.stop = true;
            self.changed.notify_all();
            inner.thread.take()
        };
        if let Some(thread) = thread {
            // A thread that panicked has said so, and holds nothing up.
            let _ = thread.join();
        }
    }

    /// How it is doing.
    pub fn report(&self, shared: &Shared) -> Result<ScrubReport, VaultFault> {
        self.load(shared)?;
        let inner = self.inner.held();
        Ok(ScrubReport {
            state: inner.state,
            mark: inner.mark,
            total_bytes: shared.allocated.load(Relaxed).max(inner.mark.done_bytes),
            rate_bytes: inner.rate_bytes,
            unread: inner.unread,
            hurt: inner.hurt.clone(),
        })
    }

    /// Takes the mark of an earlier mount in.
    fn load(&self, shared: &Shared) -> Result<(), VaultFault> {
        if self.inner.held().known {
            return Ok(());
        }
        let stored = shared.index.get(&key::setting(SCRUB))?;
        let mark = match stored.map(|v| ScrubMark::decode(&v)) {
            Some(mark) => mark?,
            None => ScrubMark::default(),
        };
        let mut inner = self.inner.held();
        if !inner.known {
            (inner.known, inner.mark) = (true, mark);
            inner.state = match mark {
                ScrubMark { under_way: true, .. } => ScrubState::Paused,
                ScrubMark { finished_s: 0, .. } => ScrubState::Idle,
                _ => ScrubState::Done,
            };
        }
        Ok(())
    }

    fn work(&self, shared: &Shared) {
        let state = match self.pass(shared) {
            Ok(true) => ScrubState::Done,
            Ok(false) => ScrubState::Paused,
            Err(fault) => {
                shared.stats.error(shared.world.now(), format!("scrub: {fault}"));
                ScrubState::Failed
            }
        };
        if state == ScrubState::Done {
            let mut inner = self.inner.held();
            (inner.mark.under_way, inner.mark.finished_s) = (false, shared.world.now().seconds);
            let (lines, damaged, unread) = (inner.lines, inner.mark.damaged, inner.unread);
            drop(inner);
            if lines > LINES_MAX {
                let text = format!(
                    "scrub: {} more ranges do not read than are listed: the pass has met {damaged} damaged frames, and {unread} \
                     that the disk did not give",
                    lines - LINES_MAX
                );
                shared.stats.error(shared.world.now(), text);
            }
        }
        self.store(shared);
        let named = self.name(shared);
        let mut inner = self.inner.held();
        if let Some(hurt) = named {
            inner.hurt = hurt;
        }
        inner.state = state;
    }

    /// Reads on from the mark; whether it came to the end.
    fn pass(&self, shared: &Shared) -> Result<bool, VaultFault> {
        let mut buf = AlignedBuf::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 4);
        let mut next = {
            let mark = self.inner.held().mark;
            key::extent(mark.ino, mark.offset_bytes)
        };
        let mut stored = shared.world.elapsed();
        let mut pace = Pace { since: stored, bytes: 0, rate: 0 };
        loop {
            let found = shared.index.scan(&[key::EXTENT], &next, SCAN)?;
            if found.is_empty() {
                return Ok(true);
            }
            for (k, v) in found {
                let (_, ino, rest) = key::split(&k)?;
                let (ino, offset) = (Ino(ino), key::tail_u64(rest)?);
                let extent = Extent::decode(&v)?;
                let read = self.extent(shared, &mut buf, ino, offset, (&k, &v), &extent);
                next = [&k[..], &[0]].concat();
                {
                    let mut inner = self.inner.held();
                    inner.mark.done_bytes = inner.mark.done_bytes.saturating_add(u64::from(extent.len_bytes));
                    (inner.mark.ino, inner.mark.offset_bytes) = (ino, offset.saturating_add(1));
                }
                if !self.rest(shared, &mut pace, read) {
                    return Ok(false);
                }
                if shared.world.elapsed().saturating_sub(stored) >= MARK_EVERY {
                    self.store(shared);
                    stored = shared.world.elapsed();
                }
            }
        }
    }

    /// Waits as long as the rate demands after `bytes` were read; false if the pass is to stop.
    fn rest(&self, shared: &Shared, pace: &mut Pace, bytes: u64) -> bool {
        let mut inner = self.inner.held();
        if inner.rate_bytes != pace.rate {
            *pace = Pace { since: shared.world.elapsed(), bytes: 0, rate: inner.rate_bytes };
        }
        pace.bytes += bytes;
        while !inner.stop {
            let due = match pace.rate {
                0 => Duration::ZERO,
                rate => Duration::from_micros(pace.bytes.saturating_mul(1_000_000) / rate),
            };
            let wait = (pace.since + due).saturating_sub(shared.world.elapsed());
            if wait.is_zero() || inner.rate_bytes != pace.rate {
                return true;
            }
            inner = self.changed.wait_timeout(inner, wait.min(NAP)).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    /// Reads the frames that an extent needs; gives the bytes read.
    fn extent(
        &self,
        shared: &Shared,
        buf: &mut AlignedBuf,
        ino: Ino,
        offset: u64,
        entry: (&[u8], &[u8]),
        extent: &Extent,
    ) -> u64 {
        let (skip, end) = (extent.skip_bytes, extent.skip_bytes + extent.len_bytes);
        // One that cannot be placed was sealed nowhere: its frames do not open.
        let origin = extent.origin(ino, offset).unwrap_or(Origin { ino, start_bytes: 0 });
        let needed =
            extent.run.frames().filter(|f| f.plain_start_bytes < end && f.plain_start_bytes + f.plain_len_bytes > skip);
        let frames: Vec<FrameAt> = needed
            .map(|f| FrameAt {
                position_bytes: f.position_bytes,
                sealed_len_bytes: f.sealed_len_bytes,
                slot: f.slot,
                codec: f.codec,
                plain_len_bytes: f.plain_len_bytes,
                ino: origin.ino,
                offset_bytes: origin.start_bytes + u64::from(f.plain_start_bytes),
            })
            .collect();
        let id = extent.run.segment;
        let (from, to) = blocks_of(&frames);
        // Twice: a disk may err once, and an extent may be replaced between two looks.
        let mut bad = Vec::new();
        for _ in 0..2 {
            bad = unreadable(shared, buf, id, &frames);
            if bad.is_empty() {
                return to - from;
            }
        }
        // If it was replaced meanwhile, its bytes may have been given back.
        if shared.index.get(entry.0).is_ok_and(|now| now.as_deref() == Some(entry.1)) {
            for (frame, error) in bad {
                // Bytes of the run, and of it only what the extent has; then where these are in this file.
                let from = frame.offset_bytes - origin.start_bytes;
                let to = (from + u64::from(frame.plain_len_bytes)).min(u64::from(end));
                let from = from.max(u64::from(skip));
                let here = |at: u64| offset + (at - u64::from(skip));
                let (from_bytes, to_bytes, is_unread) = (here(from), here(to), error.is_some());
                let hurt = Hurt { ino, path: None, from_bytes, to_bytes, is_unread };
                self.note(shared, (id, frame.position_bytes), hurt, error);
            }
        }
        to - from
    }

    /// Counts a frame of a file that does not open, or that the disk did not give (`error`), and adds a line to the error list.
    fn note(&self, shared: &Shared, (id, position): (SegmentId, u64), hurt: Hurt, error: Option<String>) {
        let Hurt { ino, from_bytes, to_bytes, .. } = hurt;
        let mut inner = self.inner.held();
        // Extents come file by file, so what was met in another file is not met again.
        if inner.found.0 != ino || inner.found.1.len() >= FRAMES_REMEMBERED_MAX {
            inner.found = (ino, BTreeSet::new());
        }
        if !inner.found.1.insert((id, position)) {
            return;
        }
        if inner.hurt.len() < HISTORY_LINES_MAX {
            inner.hurt.push(hurt);
        }
        let new = match error {
            None => {
                inner.mark.damaged = inner.mark.damaged.saturating_add(1);
                let full = inner.reported.len() >= FRAMES_REMEMBERED_MAX;
                let frame = (id, position, ino);
                !inner.reported.contains(&frame) && (full || inner.reported.insert(frame))
            }
            Some(_) => {
                inner.unread += 1;
                true
            }
        };
        if !new {
            return;
        }
        inner.lines += 1;
        let line = inner.lines;
        drop(inner);
        if error.is_none() {
            shared.stats.damaged_frames.add(1);
        }
        if line > LINES_MAX {
            return;
        }
        let why = error.map_or("do not read".to_owned(), |e| format!("could not be read: {e}"));
        let place = format!("segment {id}, byte {position}");
        let text = format!("scrub: inode {ino}: bytes {from_bytes} to {to_bytes} {why} ({place})");
        shared.stats.error(shared.world.now(), text);
    }

    /// Stores the mark, as an operation like any other.
    fn store(&self, shared: &Shared) {
        if shared.read_only {
            return;
        }
        let mark = self.inner.held().mark;
        let mut op = Op::begin(shared);
        op.put(key::setting(SCRUB), mark.encode());
        op.commit();
    }

    /// What is hurt, each with a path; `None` if there is nothing to name or the index cannot be read.
    fn name(&self, shared: &Shared) -> Option<Vec<Hurt>> {
        let mut hurt = self.inner.held().hurt.clone();
        let inos: BTreeSet<Ino> = hurt.iter().filter(|h| h.path.is_none()).map(|h| h.ino).collect();
        if inos.is_empty() {
            return None;
        }
        let paths = paths::of(&shared.index, &inos).ok()?;
        for h in hurt.iter_mut().filter(|h| h.path.is_none()) {
            h.path = paths.get(&h.ino).cloned();
        }
        Some(hurt)
    }
}

/// How much was read since when.
struct Pace {
    since: Duration,
    bytes: u64,
    rate: u64,
}

/// Reads some frames of a segment from the device, and gives those that do not open, each with the disk's error if there was one.
fn unreadable(
    shared: &Shared,
    buf: &mut AlignedBuf,
    id: SegmentId,
    frames: &[FrameAt],
) -> Vec<(FrameAt, Option<String>)> {
    let mut bad = Vec::new();
    let segment = match shared.segments.get(id, || segment_info(shared, id)) {
        Ok(segment) => segment,
        Err(fault) => {
            // A file that is not there is lost; one that the disk does not open may be as good as ever.
            let of_disk = matches!(&fault, VaultFault::Backing(e) if e.kind() != io::ErrorKind::NotFound);
            let error = of_disk.then(|| fault.to_string());
            return frames.iter().map(|frame| (*frame, error.clone())).collect();
        }
    };
    // One by one: a block that the disk cannot read costs the frames in it, not their neighbours.
    for frame in frames {
        let (from, to) = blocks_of(std::slice::from_ref(frame));
        let len = (to - from) as usize;
        if len > buf.capacity() {
            bad.push((*frame, None));
            continue;
        }
        buf.set_len(len);
        match segment.file.read_device(buf, from) {
            Ok(got) => {
                open_frames(&segment.context, std::slice::from_ref(frame), from, &mut buf[..got], |at, plain| {
                    if plain.is_err() {
                        bad.push((*at, None));
                    }
                })
            }
            Err(e) => bad.push((*frame, Some(e.to_string()))),
        }
    }
    bad
}

impl ScrubReport {
    /// When the last pass came to its end, if one did.
    #[must_use]
    pub fn finished(&self) -> Option<Time> {
        (self.mark.finished_s != 0).then_some(Time { seconds: self.mark.finished_s, nanos: 0 })
    }
}
