//! The workers: chunks and records in, sealed frames out.
//!
//! Promise (I1): a job takes its place in the log and its slots from the cursor when a worker picks it up, so no slot is
//! given out twice, and the log can put jobs in order. Called by: `op`, `log` and the cleaner through the queue; calls `log`.
//! On failure: nothing here fails; a job whose data no one needs any more is dropped unsealed.

use super::shared::Shared;
use super::stats::Stats;
use super::step::Actor;
use crate::base::choice::{Codec, Compression};
use crate::base::id::{Ino, SegmentId, Slot};
use crate::base::limits::{CHUNK_FRAMES_MAX, SEGMENT_BYTES, TAG_BYTES, UNIT_COMPRESSED_BYTES, UNIT_RAW_BYTES};
use crate::base::lock::Held;
use crate::buffer::{Budget, Chunk, Pool};
use crate::format::extent::Run;
use crate::format::frame::Kind;
use crate::format::group::Entry;
use crate::seal::Compressor;
use crate::segment::{SealedFrames, SegmentContext};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// Work for the pool.
pub enum Job {
    /// Seal a chunk of a batch.
    Chunk { chunk: Arc<Chunk>, outstanding: Arc<AtomicU64> },
    /// Seal a piece of a batch's records.
    Records { bytes: Arc<Vec<u8>>, outstanding: Arc<AtomicU64> },
}

/// What a worker gives to the log.
pub struct Sealed {
    /// The restarts of the log when it took its place: of an earlier one it is void.
    pub generation: u64,
    /// Its place in the log's order.
    pub turn: u64,
    /// The segment whose key sealed it.
    pub context: Arc<SegmentContext>,
    /// The frames.
    pub frames: SealedFrames,
    /// Bytes the cursor had set aside for it.
    pub set_aside: u64,
    /// What it takes of the room for sealed frames, unless the log sealed it itself.
    pub room: Option<SealedRoom>,
    /// Which chunk the frames hold, and its run but for the position.
    pub chunk: Option<(Arc<Chunk>, Run)>,
    /// The batch's count of jobs on their way.
    pub outstanding: Arc<AtomicU64>,
}

/// Room for sealed frames, given back when dropped.
pub struct SealedRoom {
    budget: Arc<Budget>,
    bytes: u64,
}

impl SealedRoom {
    /// Waits for it. Taken before the place in the log: so who has the place that the log waits for never waits here.
    fn take(shared: &Shared, bytes: u64) -> Option<SealedRoom> {
        // Nobody closes this budget.
        shared.sealed.take(bytes, || ())?.spend(bytes);
        Some(SealedRoom { budget: Arc::clone(&shared.sealed), bytes })
    }
}

impl Drop for SealedRoom {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

struct Place {
    context: Arc<SegmentContext>,
    /// Of the segment's room: by groups that are written, and by frames that are to be.
    taken_bytes: u64,
    next_turn: u64,
    generation: u64,
}

/// Where the next job goes.
pub struct Cursor {
    place: Mutex<Place>,
    fresh: Box<dyn Fn(SegmentId) -> SegmentContext + Send + Sync>,
}

/// What the cursor gives a job.
pub struct Ticket {
    pub generation: u64,
    pub turn: u64,
    pub context: Arc<SegmentContext>,
    pub slot: Slot,
}

impl Cursor {
    /// Begins with segment `first`; `fresh` makes a segment with a new salt.
    pub fn new(first: SegmentId, fresh: Box<dyn Fn(SegmentId) -> SegmentContext + Send + Sync>) -> Self {
        let place = Place { context: Arc::new(fresh(first)), taken_bytes: 0, next_turn: 0, generation: 0 };
        Cursor { place: Mutex::new(place), fresh }
    }

    fn take(&self, slots: u32, bytes: u64) -> Ticket {
        let mut place = self.place.held();
        if place.taken_bytes + bytes > SEGMENT_BYTES {
            self.roll(&mut place);
        }
        place.taken_bytes += bytes;
        place.next_turn += 1;
        let slot = place.context.take_data_slots(slots);
        let (generation, turn) = (place.generation, place.next_turn - 1);
        Ticket { generation, turn, context: Arc::clone(&place.context), slot }
    }

    /// Begins a new generation with a new segment, beyond `above` too; gives both.
    pub fn restart(&self, above: SegmentId) -> (u64, SegmentId) {
        let mut place = self.place.held();
        let id = SegmentId(place.context.id.max(above).0 + 1);
        place.context = Arc::new((self.fresh)(id));
        (place.taken_bytes, place.next_turn) = (0, 0);
        place.generation += 1;
        (place.generation, id)
    }

    fn roll(&self, place: &mut Place) {
        place.context = Arc::new((self.fresh)(SegmentId(place.context.id.0 + 1)));
        place.taken_bytes = 0;
    }

    /// What is sealed from now on goes into a segment after the one that is given back, as if that were full.
    pub fn leave_segment(&self) -> SegmentId {
        let mut place = self.place.held();
        // So much that what was set aside and not used does not make room again.
        place.taken_bytes = u64::MAX / 2;
        place.context.id
    }

    /// A job turned out to take `used` of the bytes set aside for it; of what a group has beside its frames nothing was.
    pub fn settle(&self, segment: SegmentId, set_aside: u64, used: u64) {
        let mut place = self.place.held();
        if place.context.id == segment {
            place.taken_bytes = place.taken_bytes.saturating_sub(set_aside) + used;
        }
    }

    /// For the log's own frames: the segment to write them in when `turn` is the next it waits for. Begins a new segment
    /// when this one is full and nothing sealed for it is still on its way.
    pub fn for_writer(&self, turn: u64) -> Arc<SegmentContext> {
        let mut place = self.place.held();
        if place.taken_bytes >= SEGMENT_BYTES && place.next_turn == turn {
            self.roll(&mut place);
        }
        Arc::clone(&place.context)
    }

    /// How many turns have been given out.
    pub fn turns_taken(&self) -> u64 {
        self.place.held().next_turn
    }

    /// The newest segment.
    pub fn segment(&self) -> SegmentId {
        self.place.held().context.id
    }
}

/// A worker.
pub struct Worker {
    shared: Arc<Shared>,
    compressor: Compressor,
}

impl Worker {
    /// One that has not worked yet.
    pub fn new(shared: Arc<Shared>) -> Worker {
        Worker { shared, compressor: Compressor::new() }
    }

    /// Its life: until the queue closes.
    pub fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            // One at a time from picking up to taking a place, so that the log's order is the queue's.
            let picker = shared.pick.held();
            let Ok(job) = shared.jobs.recv() else { return };
            self.work(job, picker);
        }
    }

    fn work(&mut self, job: Job, picker: MutexGuard<'_, ()>) {
        let shared = &self.shared;
        match job {
            Job::Chunk { chunk, outstanding } => {
                // The last holder is this job: overwritten or deleted since.
                if Arc::strong_count(&chunk) == 1 {
                    drop(picker);
                    outstanding.fetch_sub(1, SeqCst);
                    shared.wake_log();
                    return;
                }
                let set_aside = worst_bytes(chunk.data().len());
                let room = SealedRoom::take(shared, set_aside);
                let ticket = shared.cursor.take(CHUNK_FRAMES_MAX, set_aside);
                drop(picker);
                let sealed = seal_chunk(shared, &mut self.compressor, ticket, set_aside, chunk, outstanding);
                shared.to_log(Sealed { room, ..sealed });
            }
            Job::Records { bytes, outstanding } => {
                let set_aside = worst_bytes(bytes.len());
                let room = SealedRoom::take(shared, set_aside);
                let Ticket { generation, turn, context, slot } = shared.cursor.take(1, set_aside);
                drop(picker);
                let stats = &shared.stats;
                let frames = seal_metadata(&context, &mut self.compressor, Kind::Records, slot, &bytes, stats);
                let chunk = None;
                shared.to_log(Sealed { generation, turn, context, frames, set_aside, room, chunk, outstanding });
            }
        }
    }
}

impl Actor for Worker {
    fn step(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let picker = shared.pick.held();
        let Ok(job) = shared.jobs.try_recv() else { return false };
        self.work(job, picker);
        true
    }
}

/// Seals a chunk on the calling thread, taking its place like a worker would (used by the log for small commits).
pub fn seal_here(
    shared: &Shared,
    compressor: &mut Compressor,
    chunk: Arc<Chunk>,
    outstanding: Arc<AtomicU64>,
) -> Sealed {
    let set_aside = worst_bytes(chunk.data().len());
    let ticket = shared.cursor.take(CHUNK_FRAMES_MAX, set_aside);
    seal_chunk(shared, compressor, ticket, set_aside, chunk, outstanding)
}

fn worst_bytes(plain: usize) -> u64 {
    (plain + plain.div_ceil(UNIT_RAW_BYTES) * TAG_BYTES) as u64
}

/// The codec for a chunk: its file's own choice, if it has one.
fn codec_now(shared: &Shared, chunk: &Chunk) -> Codec {
    match chunk.compression.unwrap_or(shared.compression) {
        Compression::None => Codec::Raw,
        Compression::Lz4 => Codec::Lz4,
        Compression::Zstd => Codec::Zstd,
        // Three quarters full means that the workers do not keep up.
        Compression::Auto if shared.dirty.used_bytes() > shared.dirty.limit_bytes() / 4 * 3 => Codec::Lz4,
        Compression::Auto => Codec::Zstd,
    }
}

fn seal_chunk(
    shared: &Shared,
    compressor: &mut Compressor,
    ticket: Ticket,
    set_aside: u64,
    chunk: Arc<Chunk>,
    outstanding: Arc<AtomicU64>,
) -> Sealed {
    let Ticket { generation, turn, context, slot } = ticket;
    let codec = codec_now(shared, &chunk);
    let (frames, run) = seal_data(
        &context,
        compressor,
        slot,
        codec,
        chunk.ino,
        chunk.offset_bytes,
        chunk.data(),
        &shared.sealed_pool,
        &shared.stats,
    );
    Sealed { generation, turn, context, frames, set_aside, room: None, chunk: Some((chunk, run)), outstanding }
}

/// Compresses and encrypts a chunk's data as frames of one run.
fn seal_data(
    context: &SegmentContext,
    compressor: &mut Compressor,
    first: Slot,
    mut codec: Codec,
    ino: Ino,
    offset: u64,
    data: &[u8],
    pool: &Pool,
    stats: &Stats,
) -> (SealedFrames, Run) {
    let began = Instant::now();
    let mut bytes = pool.take();
    let mut unit = UNIT_COMPRESSED_BYTES;
    // What does not shrink at its beginning is stored raw, in small frames that are cheap to read at random.
    let head_shrank = codec != Codec::Raw && compressor.compress(codec, &data[..data.len().min(unit)], &mut bytes);
    if !head_shrank {
        (codec, unit) = (Codec::Raw, UNIT_RAW_BYTES);
    }
    let mut compress_time = began.elapsed();
    let (mut encrypt_time, mut entries) = (std::time::Duration::ZERO, Vec::with_capacity(data.len().div_ceil(unit)));
    let mut from = 0;
    for (i, plain) in data.chunks(unit).enumerate() {
        let began = Instant::now();
        let shrank = match i {
            0 => head_shrank,
            _ => codec != Codec::Raw && compressor.compress(codec, plain, &mut bytes),
        };
        if !shrank {
            bytes.extend_from_slice(plain);
        }
        let compressed = Instant::now();
        let (slot, codec) = (Slot(first.0 + i as u32), if shrank { codec } else { Codec::Raw });
        let at = offset + (i * unit) as u64;
        context.key.seal(&context.address(slot, Kind::Data, codec, plain.len(), ino, at), &mut bytes, from);
        encrypt_time += compressed.elapsed();
        compress_time += compressed - began;
        let (sealed_len_bytes, plain_len_bytes) = ((bytes.len() - from) as u32, plain.len() as u32);
        entries.push(Entry { kind: Kind::Data, codec, slot, sealed_len_bytes, plain_len_bytes, ino, offset_bytes: at });
        from = bytes.len();
    }
    stats.compress.record(compress_time);
    stats.encrypt.record(encrypt_time);
    stats.sealed_plain_bytes.add(data.len() as u64);
    stats.sealed_bytes.add(bytes.len() as u64);
    stats.codec_chunks[match codec {
        Codec::Zstd => 0,
        Codec::Lz4 => 1,
        Codec::Raw => 2,
    }]
    .add(1);
    let run = Run {
        segment: context.id,
        position_bytes: 0,
        slot: first,
        codec,
        unit_log2: unit.trailing_zeros() as u8,
        plain_len_bytes: data.len() as u32,
        sealed_lens: entries.iter().map(|e| e.sealed_len_bytes).collect(),
    };
    (SealedFrames { entries, bytes }, run)
}

/// Compresses and encrypts records or a commit as one frame.
pub fn seal_metadata(
    context: &SegmentContext,
    compressor: &mut Compressor,
    kind: Kind,
    slot: Slot,
    plain: &[u8],
    stats: &Stats,
) -> SealedFrames {
    let mut bytes = Vec::with_capacity(plain.len() + TAG_BYTES);
    // Below this there is nothing to gain.
    let shrank = plain.len() > 256 && compressor.compress(Codec::Zstd, plain, &mut bytes);
    if !shrank {
        bytes.extend_from_slice(plain);
    }
    let codec = if shrank { Codec::Zstd } else { Codec::Raw };
    context.key.seal(&context.address(slot, kind, codec, plain.len(), Ino(0), 0), &mut bytes, 0);
    stats.sealed_plain_bytes.add(plain.len() as u64);
    stats.sealed_bytes.add(bytes.len() as u64);
    let (sealed_len_bytes, plain_len_bytes) = (bytes.len() as u32, plain.len() as u32);
    let entry = Entry { kind, codec, slot, sealed_len_bytes, plain_len_bytes, ino: Ino(0), offset_bytes: 0 };
    SealedFrames { entries: vec![entry], bytes }
}
