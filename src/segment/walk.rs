//! Walks the groups of a segment from its start, as recovery and `check` do.
//!
//! Promise: a group is handed out only if its header and its directory hold; what its checksums say is told with it,
//! because ranges of old groups are punched out when their data is dead. Damage in a header or directory is a gap, which is
//! told with the next group behind it; the walk ends where no group of this segment follows.
//! Called by: `vault::recover`, `check`. On failure: `Io` only; damage is told or an end, not an error.

use super::shape::{Body, Gap, Shape, Shapes};
use super::{SegmentContext, Unreadable};
use crate::backing::BackingFile;
use crate::base::choice::{Codec, SuiteId};
use crate::base::id::{KeyNumber, SegmentId, Slot, VaultId};
use crate::base::limits::TAG_BYTES;
use crate::format::frame::{DIRECTORY_SLOTS, Kind};
use crate::format::group::{Entry, HEADER_BYTES, Header, decode_directory};
use crate::format::segment::SegmentInfo;
use crate::seal::{VaultKeys, decompress};
use std::ops::Range;
use std::sync::Arc;

/// A frame of a walked group.
#[derive(Debug, Clone, Copy)]
pub struct WalkedFrame {
    /// What the directory says.
    pub entry: Entry,
    /// Byte position in the segment.
    pub position_bytes: u64,
    start: usize,
}

impl WalkedFrame {
    pub(super) fn bytes(&self) -> Range<usize> {
        self.start..self.start + self.entry.sealed_len_bytes as usize
    }
}

/// A group that holds.
pub struct WalkedGroup {
    /// Its header.
    pub header: Header,
    /// Byte position in the segment.
    pub position_bytes: u64,
    /// Its frames.
    pub frames: Vec<WalkedFrame>,
    /// Whether all checksums over its body hold.
    pub checksum_holds: bool,
    /// What each of them says.
    pub body: Body,
    /// What is missing between it and the group handed out before.
    pub gap_before: Option<Gap>,
}

impl WalkedGroup {
    /// Whether all blocks that a frame of it touches hold; `None` if that cannot be said (a group of version 1).
    #[must_use]
    pub fn frame_holds(&self, frame: &WalkedFrame) -> Option<bool> {
        self.body.holds(&frame.bytes())
    }
}

/// A walk through one segment.
pub struct Walk {
    shapes: Shapes,
    id: SegmentId,
    of_snapshot: bool,
    suite: SuiteId,
    vault: VaultId,
    context: Option<Arc<SegmentContext>>,
    missing_key: Option<KeyNumber>,
}

impl Walk {
    /// Begins at the segment's first group.
    #[must_use]
    pub fn new(file: Arc<dyn BackingFile>, id: SegmentId, suite: SuiteId, vault: VaultId) -> Walk {
        let shapes = Shapes::new(file, id);
        Walk { shapes, id, of_snapshot: false, suite, vault, context: None, missing_key: None }
    }

    /// The same through a snapshot, whose number is that of the commit it covers.
    #[must_use]
    pub fn of_snapshot(file: Arc<dyn BackingFile>, id: SegmentId, suite: SuiteId, vault: VaultId) -> Walk {
        let shapes = Shapes::of_snapshot(file, id);
        Walk { shapes, id, of_snapshot: true, suite, vault, context: None, missing_key: None }
    }

    /// The segment's key, known once a group was found.
    #[must_use]
    pub fn context(&self) -> Option<&Arc<SegmentContext>> {
        self.context.as_ref()
    }

    /// The number of a master key that a group names and the header does not have: such a group counts as none, and so may
    /// what follows. Anybody can write a header that names one: who relies on where the segment ends must ask.
    #[must_use]
    pub fn missing_key(&self) -> Option<KeyNumber> {
        self.missing_key
    }

    /// Where the next group would begin.
    #[must_use]
    pub fn position_bytes(&self) -> u64 {
        self.shapes.position_bytes()
    }

    /// The next group, or `None` where the segment ends.
    pub fn next(&mut self, keys: &VaultKeys) -> Result<Option<WalkedGroup>, Unreadable> {
        let (id, suite, vault, known) = (self.id, self.suite, self.vault, &mut self.context);
        let context_of = if self.of_snapshot { SegmentContext::of_snapshot } else { SegmentContext::new };
        let (mut entries, missing_key) = (Vec::new(), &mut self.missing_key);
        let shape = self.shapes.next(|header, group| {
            let info = SegmentInfo::empty(header.epoch, header.salt, header.key);
            let new = || context_of(keys, suite, vault, id, &info).map(Arc::new);
            let Some(context) = known.clone().or_else(new) else {
                missing_key.get_or_insert(header.key);
                return false;
            };
            let Some(found) = open_directory(&context, header, group) else { return false };
            entries = found;
            *known = Some(context);
            true
        })?;
        let Some(Shape { header, position_bytes, body, gap_before }) = shape else { return Ok(None) };
        let mut start = HEADER_BYTES;
        let frame = |entry: Entry| {
            let f = WalkedFrame { entry, position_bytes: position_bytes + start as u64, start };
            start += entry.sealed_len_bytes as usize;
            f
        };
        let frames = entries.into_iter().map(frame).collect();
        let checksum_holds = body == Body::Holds;
        Ok(Some(WalkedGroup { header, position_bytes, frames, checksum_holds, body, gap_before }))
    }

    /// The tag of a frame of the group that `next` gave last.
    #[must_use]
    pub fn tag(&self, frame: &WalkedFrame) -> [u8; TAG_BYTES] {
        let end = frame.bytes().end;
        self.shapes.bytes()[end - TAG_BYTES..end].try_into().expect("a directory entry is at least a tag long")
    }

    /// Opens a frame of the group that `next` gave last; each frame once.
    pub fn open(&mut self, frame: &WalkedFrame, out: &mut Vec<u8>) -> Result<(), Unreadable> {
        let e = frame.entry;
        let damaged = |what| Unreadable::Damaged { position_bytes: frame.position_bytes, what };
        let body = self.open_body(frame)?;
        decompress(e.codec, body, e.plain_len_bytes as usize, out).map_err(|_| damaged("the frame's compression"))
    }

    /// The same, left compressed as it was sealed.
    pub fn open_body(&mut self, frame: &WalkedFrame) -> Result<&[u8], Unreadable> {
        let e = &frame.entry;
        let damaged = |what| Unreadable::Damaged { position_bytes: frame.position_bytes, what };
        let context = self.context.as_ref().ok_or(damaged("the segment"))?;
        let at = context.address(e.slot, e.kind, e.codec, e.plain_len_bytes as usize, e.ino, e.offset_bytes);
        let sealed = &mut self.shapes.bytes_mut()[frame.bytes()];
        context.key.open(&at, sealed).map_err(|_| damaged("the frame's tag"))
    }
}

/// Opens a group's directory in its place; `None` if it does not hold.
fn open_directory(context: &SegmentContext, header: &Header, group: &mut [u8]) -> Option<Vec<Entry>> {
    let directory = header.directory();
    let (slot, plain_len) = (Slot(DIRECTORY_SLOTS + header.group), directory.len() - TAG_BYTES);
    let (ino, offset) = header.bound();
    let at = context.address(slot, Kind::Directory, Codec::Raw, plain_len, ino, offset);
    let frames_len = directory.start - HEADER_BYTES;
    let plain = context.key.open(&at, &mut group[directory]).ok()?;
    let entries = decode_directory(plain, frames_len).ok()?;
    // Each kind of frame has its kind of file.
    entries.iter().all(|entry| entry.kind.is_of_snapshots() == context.of_snapshot).then_some(entries)
}
