//! The segment that the log is writing: its file, the room taken for it, and the group being filled.
//!
//! Promise (I9): a segment is begun once, written by this value alone, and after a failed write never written to again:
//! whoever gets an error drops the writer. Groups begin on blocks and follow each other without gaps.
//! Called by: `log`. On failure: the disk's error; what was written of the group is not named by anything.

use super::VaultFault;
use super::place::Place;
use super::segments::OpenSegment;
use super::shared::Shared;
use super::space::SpaceWatch;
use super::verifier::{Sample, ToVerify};
use crate::backing::{AlignedBuf, BackingFile, Cache, Open};
use crate::base::id::SegmentId;
use crate::base::limits::{
    ALLOCATE_STEP_BYTES, BLOCK_BYTES, GROUP_BYTES_MAX, SEGMENT_BYTES, ZERO_STEP_BYTES, ZERO_STEP_COMMITS,
};
use crate::base::lock::Held;
use crate::segment::{GroupBuilder, SealedFrames, SegmentContext, path};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Instant;

/// A segment being written.
pub struct Writer {
    /// The segment.
    pub segment: Arc<OpenSegment>,
    /// Whether the filesystem tells by its path that the file is the one that is open.
    pub is_comparable: bool,
    /// Where its next group goes.
    pub position: u64,
    /// Commits since the last look at how small they are.
    pub step_commits: u32,
    /// Room taken for the file so far, as it was asked for.
    allocated: u64,
    /// The same as the filesystem tells: where it takes none in advance, it is less.
    taken: u64,
    /// Told of the room that is taken and not written to; only at home.
    watch: Option<Arc<SpaceWatch>>,
    /// Where the next look is due.
    step_end: u64,
    next_group: u32,
    builder: GroupBuilder,
    samples: Vec<Sample>,
}

/// A group on its way to the verifier.
pub struct Written {
    pub position: u64,
    pub image: AlignedBuf,
    pub samples: Vec<Sample>,
}

impl Writer {
    /// Makes or takes over the segment's file. `step_commits` is what the segment before had.
    pub fn begin(
        shared: &Shared,
        context: &Arc<SegmentContext>,
        place: Place,
        step_commits: u32,
    ) -> Result<Writer, VaultFault> {
        // The housekeeper may be making this very file.
        let making = (place == Place::Primary).then(|| shared.making_segment.held());
        if place == Place::Emergency {
            shared.places.goes_away(context.id);
        }
        let (file, allocated) = match open_file(shared, place, &path(context.id)) {
            // There may be no inode left: the reserve's is for this. Where there is another place, the log goes there.
            Err(e) if is_full(&e) && place == Place::Primary && !shared.places.has(Place::Emergency) => {
                if !shared.promise_reserve() {
                    return Err(e.into());
                }
                shared.note_refusal();
                open_file(shared, place, &path(context.id))?
            }
            opened => opened?,
        };
        // It is this one, or there will be no other under its number.
        shared.space.set_prepared(0);
        drop(making);
        let segment = Arc::new(OpenSegment { context: Arc::clone(context), file });
        let is_comparable = segment.keeps_name(|| shared.places.of(place), true);
        let builder = GroupBuilder::new(context, spare_buffer(shared));
        let (position, step_end, next_group, samples) = (0, 0, 0, Vec::new());
        let (taken, watch) = (0, (place == Place::Primary).then(|| Arc::clone(&shared.space)));
        let mut writer = Writer {
            segment,
            is_comparable,
            position,
            step_commits,
            allocated,
            taken,
            watch,
            step_end,
            next_group,
            builder,
            samples,
        };
        writer.look_what_is_taken();
        Ok(writer)
    }

    /// Asks how much room the file takes.
    fn look_what_is_taken(&mut self) {
        if self.watch.is_some() {
            self.taken = self.segment.file.taken_bytes().unwrap_or(0).min(self.allocated);
            self.tell_ahead();
        }
    }

    fn tell_ahead(&self) {
        if let Some(watch) = &self.watch {
            let rest = SEGMENT_BYTES.saturating_sub(self.taken.max(self.position));
            watch.set_open_ahead(self.taken.saturating_sub(self.position), rest);
        }
    }

    /// Whether frames still fit into the group being filled.
    pub fn fits(&self, frames: &SealedFrames) -> bool {
        self.builder.fits(frames.entries.len(), frames.bytes.len())
    }

    /// Adds frames to the group being filled; gives their position in the segment.
    pub fn add(&mut self, frames: &SealedFrames) -> u64 {
        self.position + self.builder.add(frames)
    }

    /// Has the verifier open what it reads back and compare it with this.
    pub fn sample(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Writes the group being filled, if there is anything in it.
    pub fn write_group(&mut self, shared: &Shared) -> Result<Option<Written>, VaultFault> {
        if self.builder.is_empty() {
            return Ok(None);
        }
        let context = &self.segment.context;
        let frames = self.builder.frames_bytes() as u64;
        let next = GroupBuilder::new(context, spare_buffer(shared));
        let image = std::mem::replace(&mut self.builder, next).finish(context, self.next_group);
        let (position, len) = (self.position, image.len() as u64);
        let began = Instant::now();
        self.make_room(shared, len)?;
        self.segment.file.write_all_at(&image, position)?;
        shared.stats.log_write.record(began.elapsed());
        shared.stats.log_bytes.add(len);
        self.position += len;
        self.tell_ahead();
        shared.wrote(len);
        shared.log_since_checkpoint.fetch_add(len, Relaxed);
        shared.cursor.settle(self.segment.context.id, 0, len - frames);
        self.next_group += 1;
        debug_assert_eq!(self.position % BLOCK_BYTES as u64, 0, "groups begin on blocks");
        Ok(Some(Written { position, image, samples: std::mem::take(&mut self.samples) }))
    }

    /// Takes room for a group of `len` bytes; where commits are small, fills it with zeros.
    fn make_room(&mut self, shared: &Shared, len: u64) -> Result<(), VaultFault> {
        let end = self.position + len;
        let file = Arc::clone(&self.segment.file);
        if end <= self.step_end {
            return Ok(());
        }
        self.step_end = end.max(self.position + ZERO_STEP_BYTES);
        while self.allocated < self.step_end {
            // What else is free is for the index.
            if self.watch.is_some() && shared.space.prepared_bytes() > 0 && shared.spare_bytes() < ALLOCATE_STEP_BYTES {
                give_prepared_back(shared);
            }
            match file.preallocate(self.allocated + ALLOCATE_STEP_BYTES) {
                Ok(()) => self.allocated += ALLOCATE_STEP_BYTES,
                // On a disk that is nearly full, what is needed must do.
                Err(e) if is_full(&e) => {
                    file.preallocate(end)?;
                    (self.allocated, self.step_end) = (end, end);
                    self.look_what_is_taken();
                    return Ok(());
                }
                Err(e) => return Err(e.into()),
            }
        }
        self.take_room_ahead(shared);
        self.look_what_is_taken();
        if self.step_commits >= ZERO_STEP_COMMITS {
            let mut zeros = AlignedBuf::with_capacity((self.step_end - self.position) as usize);
            zeros.set_len(zeros.capacity());
            file.write_all_at(&zeros, self.position)?;
            file.sync_data()?;
        }
        self.step_commits = 0;
        Ok(())
    }

    /// Takes room for what is buffered, as far as it will lie in this segment: a quota of the backing filesystem is met
    /// while little is on its way, so that the reserve is enough for that.
    fn take_room_ahead(&mut self, shared: &Shared) {
        let ahead = (self.position + shared.dirty.used_bytes()).min(SEGMENT_BYTES);
        // Where little is free, what is there must do for the index, too.
        let mut spare = if self.watch.is_some() { shared.spare_bytes() } else { u64::MAX };
        while self.allocated + ALLOCATE_STEP_BYTES <= ahead && spare >= ALLOCATE_STEP_BYTES {
            spare -= ALLOCATE_STEP_BYTES;
            match self.segment.file.preallocate(self.allocated + ALLOCATE_STEP_BYTES) {
                Ok(()) => self.allocated += ALLOCATE_STEP_BYTES,
                // Writing what must be written will tell of all other faults.
                Err(e) => {
                    if is_full(&e) {
                        shared.note_refusal();
                    }
                    return;
                }
            }
        }
    }

    /// The group as the verifier wants it.
    pub fn to_verify(&self, generation: u64, written: Written) -> ToVerify {
        let Written { position, image, samples } = written;
        ToVerify::Group { generation, segment: Arc::clone(&self.segment), position, image, samples }
    }
}

impl Drop for Writer {
    /// Nothing more is written to the file.
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.set_open_ahead(0, 0);
        }
    }
}

/// Gives back the room that was taken for the next segment: the one being written needs it first. Its file, and so an
/// inode for it, stays.
fn give_prepared_back(shared: &Shared) {
    let _making = shared.making_segment.held();
    let next = SegmentId(shared.newest_begun.load(SeqCst) + 1);
    let cut = shared.backing.open(&path(next), Open::Write, Cache::Buffered).and_then(|file| file.set_len(0));
    if let Err(e) = cut {
        log::debug!("giving back the room of segment {next}: {e}");
    }
    // What could not be given back cannot be counted on.
    shared.space.set_prepared(0);
    shared.space.forget();
}

/// Whether an error says that there is no room.
pub fn is_full(e: &io::Error) -> bool {
    super::trouble::kind_of(e) == super::trouble::Kind::Full
}

/// A group's buffer, used before if there is one.
fn spare_buffer(shared: &Shared) -> AlignedBuf {
    let spare = shared.group_buffers.held().pop();
    spare.unwrap_or_else(|| AlignedBuf::with_capacity(GROUP_BYTES_MAX))
}

/// Refuses to write over a segment that somebody has begun: another copy of the vault, in an emergency directory that
/// could not be looked at when this one was opened.
fn refuse_begun(file: &dyn BackingFile, name: &str) -> io::Result<()> {
    let mut block = AlignedBuf::with_capacity(BLOCK_BYTES);
    block.set_len(BLOCK_BYTES);
    let got = file.read_at(&mut block, 0)?;
    if block[..got].iter().all(|b| *b == 0) {
        return Ok(());
    }
    let why = format!("{name} is there already, and another copy of this vault has written it: it stays as it is");
    Err(io::Error::new(io::ErrorKind::AlreadyExists, why))
}

/// The file of a segment, and the room it has.
fn open_file(shared: &Shared, place: Place, name: &str) -> io::Result<(Arc<dyn BackingFile>, u64)> {
    let backing = shared.places.of(place)?;
    if place == Place::Primary
        && let Some(file) = shared.reserve.become_segment(&*backing, name)?
    {
        shared.space.forget();
        file.sync_data()?;
        backing.sync_dir("")?;
        backing.sync_dir("segments")?;
        let len = file.len()?;
        return Ok((file, len));
    }
    match backing.open(name, Open::Write, Cache::Direct) {
        // Prepared by the housekeeper, who may have failed after making it.
        Ok(file) => {
            refuse_begun(&*file, name)?;
            backing.sync_dir("segments")?;
            let len = file.len()?;
            Ok((file, len))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let file = backing.open(name, Open::Create, Cache::Direct)?;
            let allocated = match file.preallocate(ALLOCATE_STEP_BYTES) {
                Ok(()) => ALLOCATE_STEP_BYTES,
                Err(e) if is_full(&e) => 0,
                Err(e) => return Err(e),
            };
            file.sync_data()?;
            backing.sync_dir("segments")?;
            Ok((file, allocated))
        }
        Err(e) => Err(e),
    }
}
