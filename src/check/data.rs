//! Data: extents, the counts made of them, the segments they lie in, and, if asked to, every byte.
//!
//! Promise: the counters are compared with what `vault::apply` would have made of these extents (a frame counts once per
//! run, however many files share it, I5); a file that lost data with a segment is named. Holes are not read: there is nothing in them.
//! Called by: `survey`, after the table of inodes is full. On failure: the vault's fault; a read that fails is a finding.

use super::finding::{Finding, Place};
use super::nodes::REGULAR;
use super::survey::Survey;
use crate::base::id::{Ino, KeyNumber, SegmentId};
use crate::base::limits::{CHUNK_BYTES, UNIT_RAW_BYTES};
use crate::buffer::FileBuffer;
use crate::format::extent::{Extent, Origin, Run};
use crate::format::holders::Holder;
use crate::format::key;
use crate::format::segment::SegmentInfo;
use crate::segment::path;
use crate::vault::{NOWHERE, VaultFault};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

/// Bytes of a file read at a time.
const STEP_BYTES: u64 = 1 << 20;
const COUNT: &str = "a count is not eight bytes";

/// What extents need of a segment.
#[derive(Debug, Default)]
pub struct Needed {
    /// Sealed bytes of the frames.
    live_bytes: u64,
    /// Where the last of them ends.
    end_bytes: u64,
}

/// What extents need of all segments.
pub type Segments = BTreeMap<SegmentId, Needed>;

/// A run that extents of the file at hand lie in, and the frames they touch, a bit each.
struct OpenRun {
    holder: Holder,
    copied: Option<Origin>,
    run: Run,
    touched: u32,
}

/// The file whose extents are being looked at.
#[derive(Default)]
struct File {
    ino: Ino,
    /// Of a regular file.
    size: Option<u64>,
    at_rest: u64,
    /// Where the extents so far end.
    end: u64,
    runs: Vec<OpenRun>,
    /// An extent could not be counted.
    doubtful: bool,
}

impl Survey<'_> {
    /// Looks at all extents and the counts of bytes at rest; gives what is needed of the segments.
    pub fn extents(&mut self) -> Result<Segments, VaultFault> {
        let mut needed = Segments::new();
        let mut open: Option<File> = None;
        self.each(key::EXTENT, |s, number, rest, value| {
            let ino = Ino(number);
            if let Some(before) = open.take_if(|file| file.ino != ino) {
                s.end_file(&before, &mut needed)?;
            }
            let file = open.get_or_insert_with(|| s.begin_file(ino));
            match key::tail_u64(rest) {
                Ok(offset) => s.extent(file, offset, value, &mut needed),
                Err(e) => {
                    s.stray(&[&key::prefix(key::EXTENT, number), rest].concat(), e.what);
                    Ok(())
                }
            }
        })?;
        if let Some(last) = open {
            self.end_file(&last, &mut needed)?;
        }
        self.allocated()?;
        Ok(needed)
    }

    fn begin_file(&mut self, ino: Ino) -> File {
        self.belongs(ino, "data", REGULAR);
        if let Some(node) = self.nodes.get_mut(ino) {
            node.has_extents = true;
        }
        let size = self.nodes.get(ino).filter(|n| n.kind == REGULAR).map(|n| n.size);
        File { ino, size, ..File::default() }
    }

    fn extent(&mut self, file: &mut File, offset: u64, value: &[u8], needed: &mut Segments) -> Result<(), VaultFault> {
        let at = Place::of(file.ino);
        let extent = match Extent::decode(value) {
            Ok(extent) => extent,
            Err(e) => {
                file.doubtful = true;
                self.found(Finding::ExtentMalformed { at, offset_bytes: offset, why: e.what });
                return Ok(());
            }
        };
        let placed = extent.origin(file.ino, offset).is_some_and(|Origin { start_bytes: start, .. }| {
            let room = CHUNK_BYTES as u64 - start % CHUNK_BYTES as u64;
            u64::from(extent.run.plain_len_bytes) <= room
                && start.checked_add(CHUNK_BYTES as u64).is_some()
                && offset.checked_add(CHUNK_BYTES as u64).is_some()
        });
        if !placed {
            file.doubtful = true;
            if let Some(node) = self.nodes.get_mut(file.ino) {
                node.misplaced = true;
            }
            self.found(Finding::ExtentMisplaced { at, offset_bytes: offset });
            return Ok(());
        }
        let end = offset + u64::from(extent.len_bytes);
        if offset < file.end {
            self.found(Finding::ExtentsOverlap { at: at.clone(), offset_bytes: offset });
        }
        if let Some(size_bytes) = file.size.filter(|&size| end > size) {
            self.found(Finding::ExtentBeyondEnd { at, end_bytes: end, size_bytes });
        }
        file.at_rest += u64::from(extent.len_bytes);
        file.end = file.end.max(end);
        let (touched, holder) = (extent.frames_touched(), Holder::of(file.ino, offset, &extent));
        let same = |r: &&mut OpenRun| {
            (r.holder, r.run.segment, r.run.position_bytes) == (holder, extent.run.segment, extent.run.position_bytes)
        };
        if let Some(open) = file.runs.iter_mut().find(same) {
            open.touched |= touched;
            open.copied = open.copied.or(extent.copied);
            return Ok(());
        }
        // Extents come in order: none that follows lies in a run that ends before this one.
        let ends_before = |r: &mut OpenRun| r.holder.range(r.run.plain_len_bytes).1 <= offset;
        let ended: Vec<OpenRun> = file.runs.extract_if(.., ends_before).collect();
        file.runs.push(OpenRun { holder, copied: extent.copied, run: extent.run, touched });
        ended.iter().try_for_each(|r| self.count_run(r, needed))
    }

    fn count_run(&mut self, open: &OpenRun, needed: &mut Segments) -> Result<(), VaultFault> {
        let OpenRun { holder, copied, run, touched } = open;
        let own = self.own_frames((run.segment, run.position_bytes), *holder, *copied, *touched)?;
        let need = needed.entry(run.segment).or_default();
        for (i, frame) in run.frames().enumerate() {
            if own & (1 << i) != 0 {
                need.live_bytes += u64::from(frame.sealed_len_bytes);
            }
            if touched & (1 << i) != 0 {
                need.end_bytes = need.end_bytes.max(frame.position_bytes + u64::from(frame.sealed_len_bytes));
            }
        }
        Ok(())
    }

    fn end_file(&mut self, file: &File, needed: &mut Segments) -> Result<(), VaultFault> {
        file.runs.iter().try_for_each(|r| self.count_run(r, needed))?;
        if file.doubtful {
            return Ok(());
        }
        let stored = self.number(&key::allocated(file.ino))?;
        if stored != file.at_rest {
            self.found(Finding::Allocated { at: Place::of(file.ino), stored, counted: file.at_rest });
        }
        Ok(())
    }

    /// A stored count; 0 where there is none.
    pub fn number(&mut self, key: &[u8]) -> Result<u64, VaultFault> {
        let value = self.vault.get(key)?;
        match value.as_deref().map(<[u8; 8]>::try_from) {
            None => Ok(0),
            Some(Ok(bytes)) => Ok(u64::from_le_bytes(bytes)),
            Some(Err(_)) => {
                self.stray(key, COUNT);
                Ok(0)
            }
        }
    }

    /// Counts of bytes at rest where no extents are, and their total.
    fn allocated(&mut self) -> Result<(), VaultFault> {
        let mut sum = 0u64;
        self.each(key::ALLOCATED, |s, number, _, value| {
            let ino = Ino(number);
            let has_extents = s.nodes.get(ino).is_some_and(|n| n.has_extents);
            let Ok(stored) = value.try_into().map(u64::from_le_bytes) else {
                // Told with the extents, if there are any.
                if !has_extents {
                    s.stray(&key::allocated(ino), COUNT);
                }
                return Ok(());
            };
            sum = sum.saturating_add(stored);
            match s.nodes.get(ino) {
                Some(_) if has_extents => {}
                Some(_) => s.found(Finding::Allocated { at: Place::of(ino), stored, counted: 0 }),
                // Told already if extents are there, too.
                None if !s.vault.scan(&key::prefix(key::EXTENT, number), &[], 1)?.is_empty() => {}
                None => s.found(Finding::WithoutInode { ino, what: "bytes at rest" }),
            }
            Ok(())
        })?;
        let stored = self.number(&key::total("bytes"))?;
        if stored != sum {
            self.found(Finding::TotalBytes { stored, counted: sum });
        }
        Ok(())
    }

    /// Compares the segments with what is needed of them, and names the files that lost data with one.
    pub fn segments(&mut self, mut needed: Segments) -> Result<(), VaultFault> {
        // How far a segment that is not whole can be read.
        let mut broken: BTreeMap<SegmentId, u64> = BTreeMap::new();
        self.each(key::SEGMENT, |s, number, rest, value| {
            let segment = SegmentId(number);
            let info = match SegmentInfo::decode(value) {
                Ok(info) if rest.is_empty() => info,
                Ok(_) | Err(_) => {
                    s.stray(&[&key::segment(segment), rest].concat(), "segment");
                    return Ok(());
                }
            };
            let need = needed.remove(&segment).unwrap_or_default();
            if info.live_bytes != need.live_bytes {
                let (stored, counted) = (info.live_bytes, need.live_bytes);
                s.found(Finding::SegmentLive { segment, stored, counted });
            }
            if info.live_bytes > info.data_bytes {
                let (live_bytes, data_bytes) = (info.live_bytes, info.data_bytes);
                s.found(Finding::SegmentOverfull { segment, live_bytes, data_bytes });
            }
            if segment == NOWHERE {
                // Not a file that anyone could bring back: the files are told.
                broken.insert(segment, 0);
            } else if need.end_bytes > 0
                && let Some(readable) = s.segment_file(segment, info.key, need.end_bytes)
            {
                broken.insert(segment, readable);
            }
            Ok(())
        })?;
        for segment in needed.into_keys() {
            self.found(Finding::SegmentUnknown { segment });
            broken.insert(segment, 0);
        }
        if broken.is_empty() { Ok(()) } else { self.lost(&broken) }
    }

    /// Looks at a segment's file; gives how far it can be read if that is not far enough.
    fn segment_file(&mut self, segment: SegmentId, key: KeyNumber, needed_bytes: u64) -> Option<u64> {
        let len = self.vault.segment_len_bytes(segment).map_err(VaultFault::from);
        let looked = len.and_then(|len| Ok((len, self.vault.missing_key(segment, key)?)));
        match looked {
            Ok((_, Some(key))) => {
                let why = format!("it is under key {key}, which the header does not have");
                self.found(Finding::SegmentMissing { segment, why });
                Some(0)
            }
            Ok((len_bytes, None)) if len_bytes >= needed_bytes => None,
            Ok((len_bytes, None)) => {
                self.found(Finding::SegmentShort { segment, len_bytes, needed_bytes });
                Some(len_bytes)
            }
            Err(VaultFault::Backing(e)) if e.kind() == io::ErrorKind::NotFound => {
                self.found(Finding::SegmentMissing { segment, why: e.to_string() });
                Some(0)
            }
            // Nothing is known of what lies in it, so no file is told to have lost anything.
            Err(fault) => {
                self.found(Finding::FileUnread { file: path(segment), why: fault.to_string() });
                None
            }
        }
    }

    fn lost(&mut self, broken: &BTreeMap<SegmentId, u64>) -> Result<(), VaultFault> {
        // Of the file at hand.
        let (mut at, mut told) = (None, BTreeSet::new());
        self.each(key::EXTENT, |s, number, _, value| {
            if at != Some(number) {
                (at, told) = (Some(number), BTreeSet::new());
            }
            if let Ok(Extent { run, .. }) = Extent::decode(value)
                && broken.get(&run.segment).is_some_and(|&len| run.position_bytes + run.sealed_len_bytes() > len)
                && told.insert(run.segment)
            {
                s.found(Finding::DataLost { at: Place::of(Ino(number)), segment: run.segment });
            }
            Ok(())
        })
    }

    /// Reads the chosen share of the bytes that are not holes.
    pub fn read_data(&mut self) -> Result<(), VaultFault> {
        let mut file: Option<Arc<FileBuffer>> = None;
        let mut next_step = 0;
        self.each(key::EXTENT, |s, number, rest, value| {
            let ino = Ino(number);
            // What cannot be made sense of was told, and cannot be read.
            let Some(size) = s.nodes.get(ino).filter(|n| n.kind == REGULAR && !n.misplaced).map(|n| n.size) else {
                return Ok(());
            };
            let (Ok(offset), Ok(extent)) = (key::tail_u64(rest), Extent::decode(value)) else { return Ok(()) };
            let file = match &file {
                Some(file) if file.ino == ino => file,
                _ => {
                    next_step = 0;
                    file.insert(s.vault.file(ino))
                }
            };
            let end = (offset + u64::from(extent.len_bytes)).min(size);
            for step in (offset / STEP_BYTES).max(next_step)..end.div_ceil(STEP_BYTES) {
                if s.chosen.has(ino, step) {
                    s.read_step(file, step * STEP_BYTES, ((step + 1) * STEP_BYTES).min(size));
                }
                next_step = step + 1;
            }
            if s.chosen.has(ino, offset / STEP_BYTES) {
                s.read(u64::from(extent.len_bytes));
            }
            Ok(())
        })
    }

    fn read_step(&mut self, file: &Arc<FileBuffer>, from: u64, to: u64) {
        let mut out = Vec::with_capacity((to - from) as usize);
        if self.vault.read(file, from, (to - from) as usize, &mut out).is_ok() {
            return;
        }
        // What of it does not read, as closely as frames are small.
        let mut bad: Option<(u64, u64, VaultFault)> = None;
        let mut at = from;
        while at < to {
            let end = to.min(at + UNIT_RAW_BYTES as u64);
            out.clear();
            match (self.vault.read(file, at, (end - at) as usize, &mut out), &mut bad) {
                (Err(fault), Some((_, bad_to, before))) if is_of_disk(&fault) == is_of_disk(before) => *bad_to = end,
                (Err(fault), _) => {
                    let before = bad.replace((at, end, fault));
                    self.unreadable(file.ino, before);
                }
                (Ok(()), _) => self.unreadable(file.ino, bad.take()),
            }
            at = end;
        }
        self.unreadable(file.ino, bad);
    }

    fn unreadable(&mut self, ino: Ino, bad: Option<(u64, u64, VaultFault)>) {
        let Some((from_bytes, to_bytes, fault)) = bad else { return };
        let (at, why) = (Place::of(ino), fault.to_string());
        self.found(match is_of_disk(&fault) {
            true => Finding::RangeUnread { at, from_bytes, to_bytes, why },
            false => Finding::Unreadable { at, from_bytes, to_bytes, why },
        });
    }
}

/// Whether the disk did not give something, as opposed to giving something else. A file that is not there is lost.
fn is_of_disk(fault: &VaultFault) -> bool {
    matches!(fault, VaultFault::Backing(e) if e.kind() != io::ErrorKind::NotFound)
}
