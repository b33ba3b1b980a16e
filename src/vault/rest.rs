//! Makes what recovery took in durable, before anything relies on it.
//!
//! Promise (I3): when `settle` returned, the newest batch is at rest. A process that was killed, and not the power, leaves a last
//! batch that reads well and may never have been flushed; worse, a flush of it may have failed, and then a later one that succeeds
//! says nothing about it. So its groups are written once more, the same bytes in the same place, which harm nothing however
//! they are torn, and flushed. Earlier batches need none of it: a commit is written only after the one before was flushed (I6).
//! Called by: `open`, after recovery and before the lease. On failure: the disk's error; nothing was changed.

use crate::backing::{AlignedBuf, Backing, Cache, Open};
use crate::base::id::SegmentId;
use crate::base::limits::GROUP_BYTES_MAX;
use crate::segment::path;
use std::io;
use std::ops::Range;

/// Groups of the newest batch, in order.
#[derive(Debug, Default)]
pub struct LastBatch {
    /// Of the newest commit taken in.
    groups: Vec<(SegmentId, Range<u64>)>,
    /// Behind it.
    open: Vec<(SegmentId, Range<u64>)>,
}

impl LastBatch {
    /// A group was walked; it ends in a commit, or not.
    pub fn walked(&mut self, id: SegmentId, group: Range<u64>, commits: bool) {
        match self.open.last_mut() {
            Some((last, range)) if *last == id && range.end == group.start => range.end = group.end,
            _ => self.open.push((id, group)),
        }
        if commits {
            self.groups = std::mem::take(&mut self.open);
        }
    }

    /// Nothing of it is in doubt: a checkpoint covers it.
    pub fn covered(&mut self) {
        self.groups.clear();
    }
}

/// Writes the groups once more, and flushes them.
pub fn settle(backing: &dyn Backing, batch: &LastBatch) -> io::Result<()> {
    let longest = batch.groups.iter().map(|(_, range)| range.end - range.start).max().unwrap_or(0);
    let mut buffer = AlignedBuf::with_capacity(longest.min(GROUP_BYTES_MAX as u64) as usize);
    for (id, range) in &batch.groups {
        let file = backing.open(&path(*id), Open::Write, Cache::Direct)?;
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(GROUP_BYTES_MAX as u64) as usize;
            buffer.set_len(len);
            let got = file.read_at(&mut buffer, at)?;
            if got < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all_at(&buffer, at)?;
            at += len as u64;
        }
        file.sync_data()?;
    }
    Ok(())
}
