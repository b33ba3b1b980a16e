//! Finds the groups of a segment by what is in the clear: headers and checksums; past damage, too.
//!
//! Promise: a group is handed out only if its header holds and the caller accepts it; which of its blocks do not hold is
//! said with it. Where a group should be and is none, the segment is looked through block by block for the next one of the
//! same segment, lease and salt: what lies between is a `Gap`, and is said with the group behind it. It reads the device: what
//! only the page cache holds is not there.
//! Called by: `walk`, and by whoever has no key. On failure: the disk's error; damage is told, or is the end.

use crate::backing::{AlignedBuf, BackingFile};
use crate::base::id::{Epoch, KeyNumber, SegmentId};
use crate::base::limits::{BLOCK_BYTES, GROUP_BYTES_MAX};
use crate::format::group::{HEADER_BYTES, Header, MAGIC, TABLE_ENTRY_BYTES, block_crc, crc_seed, table_crc};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Where groups should be, and none holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Byte position of the first block that is no group's beginning.
    pub from_bytes: u64,
    /// Byte position of the group behind it.
    pub to_bytes: u64,
    /// Groups that are missing, as their numbers say.
    pub groups_missing: u32,
}

/// What the checksums of a group say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Everything holds.
    Holds,
    /// No table: somewhere, something does not; it may be a hole that was punched.
    Unknown,
    /// Which blocks do not hold.
    Blocks {
        /// Whether the table itself does. If not, blocks named below may be well, those not named are.
        table_holds: bool,
        /// Blocks of nothing but zeros, counted from the group's first: holes that were punched, or never written.
        empty: Vec<u32>,
        /// Blocks with other bytes than were written.
        rotten: Vec<u32>,
    },
}

impl Body {
    /// Whether all blocks that a range of the group's bytes touches hold; `None` if that cannot be said.
    #[must_use]
    pub fn holds(&self, bytes: &Range<usize>) -> Option<bool> {
        match self {
            Body::Holds => Some(true),
            Body::Unknown => None,
            Body::Blocks { empty, rotten, .. } => {
                let blocks = bytes.start / BLOCK_BYTES..bytes.end.div_ceil(BLOCK_BYTES);
                Some(!empty.iter().chain(rotten).any(|b| blocks.contains(&(*b as usize))))
            }
        }
    }
}

/// A group whose header holds.
pub struct Shape {
    /// Its header.
    pub header: Header,
    /// Byte position in the segment.
    pub position_bytes: u64,
    /// What its checksums say.
    pub body: Body,
    /// What is missing before it.
    pub gap_before: Option<Gap>,
}

/// A walk through one segment by its headers.
pub struct Shapes {
    file: Arc<dyn BackingFile>,
    id: SegmentId,
    /// Whether its groups are those of a snapshot.
    of_snapshot: bool,
    /// The lease, salt and key that a group must have, known from the first one.
    life: Option<(Epoch, [u8; 16], KeyNumber)>,
    position: u64,
    next_group: u32,
    /// Bytes of what had a header that holds, and was no group.
    rejected_bytes: u64,
    /// The group that `next` gave last.
    buf: AlignedBuf,
}

impl Shapes {
    /// Begins at the segment's first group.
    #[must_use]
    pub fn new(file: Arc<dyn BackingFile>, id: SegmentId) -> Shapes {
        let buf = AlignedBuf::with_capacity(GROUP_BYTES_MAX);
        Shapes { file, id, of_snapshot: false, life: None, position: 0, next_group: 0, rejected_bytes: 0, buf }
    }

    /// The same of a snapshot, whose number is that of the commit it covers.
    #[must_use]
    pub fn of_snapshot(file: Arc<dyn BackingFile>, id: SegmentId) -> Shapes {
        Shapes { of_snapshot: true, ..Shapes::new(file, id) }
    }

    /// Where the next group would begin.
    #[must_use]
    pub fn position_bytes(&self) -> u64 {
        self.position
    }

    /// The bytes of the group that `next` gave last.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buf
    }

    /// The same, for who decrypts in place.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buf
    }

    /// The next group that `accept` takes (it sees the group's bytes and may decrypt its directory there, no more), or
    /// `None` where the segment ends: nothing behind is a group of it.
    pub fn next(&mut self, mut accept: impl FnMut(&Header, &mut [u8]) -> bool) -> io::Result<Option<Shape>> {
        let (from, first) = (self.position, self.next_group);
        if let Some(shape) = self.group_at(from, first, &mut accept)? {
            return Ok(Some(shape));
        }
        let mut piece = AlignedBuf::with_capacity(GROUP_BYTES_MAX);
        piece.set_len(GROUP_BYTES_MAX);
        let mut at = from + BLOCK_BYTES as u64;
        loop {
            let got = self.file.read_device(&mut piece, at)?;
            for (i, block) in piece[..got].chunks(BLOCK_BYTES).enumerate() {
                // Most blocks are not, so that a long tail of zeros costs no more than reading it.
                if !block.starts_with(&MAGIC) {
                    continue;
                }
                let Ok(header) = Header::decode(block) else { continue };
                let to = at + (i * BLOCK_BYTES) as u64;
                let groups_missing = header.group.saturating_sub(first);
                // Groups lie without gaps, each at least a block and at most a whole write.
                let (least, most) = (BLOCK_BYTES as u64, GROUP_BYTES_MAX as u64);
                let room = u64::from(groups_missing) * least..=u64::from(groups_missing) * most;
                if groups_missing == 0 || !room.contains(&(to - from)) {
                    continue;
                }
                if let Some(shape) = self.group_at(to, header.group, &mut accept)? {
                    let gap_before = Some(Gap { from_bytes: from, to_bytes: to, groups_missing });
                    return Ok(Some(Shape { gap_before, ..shape }));
                }
            }
            if got < piece.len() {
                return Ok(None);
            }
            at += got as u64;
        }
    }

    /// The group with that number at that place, if it is one and is accepted.
    fn group_at(
        &mut self,
        position: u64,
        group: u32,
        accept: &mut impl FnMut(&Header, &mut [u8]) -> bool,
    ) -> io::Result<Option<Shape>> {
        self.buf.set_len(BLOCK_BYTES);
        if self.file.read_device(&mut self.buf, position)? < HEADER_BYTES {
            return Ok(None);
        }
        let Ok(header) = Header::decode(&self.buf) else { return Ok(None) };
        let life = (header.epoch, header.salt, header.key);
        let is_ours = header.segment == self.id && header.is_of_snapshot() == self.of_snapshot;
        if !is_ours || header.group != group || self.life.is_some_and(|known| known != life) {
            return Ok(None);
        }
        let len = header.len_bytes as usize;
        // Groups do not overlap, so what damage makes of them is no longer than the file. More are headers that somebody made up,
        // to have a whole group read for each.
        if self.rejected_bytes > 0 && self.rejected_bytes + len as u64 > self.file.len()? + GROUP_BYTES_MAX as u64 {
            return Ok(None);
        }
        self.buf.set_len(len.next_multiple_of(BLOCK_BYTES));
        if self.file.read_device(&mut self.buf, position)? < len {
            self.rejected_bytes += len as u64;
            return Ok(None);
        }
        // Before anything is decrypted in its place.
        let body = body(&header, &self.buf);
        if !accept(&header, &mut self.buf) {
            self.rejected_bytes += len as u64;
            return Ok(None);
        }
        self.life = Some(life);
        self.position = position + len.next_multiple_of(BLOCK_BYTES) as u64;
        self.next_group = group.saturating_add(1);
        Ok(Some(Shape { header, position_bytes: position, body, gap_before: None }))
    }
}

/// The header of a segment's first group, if its block can be read: a look that costs one block. Anybody can have written it.
pub fn first_header(file: &dyn BackingFile, id: SegmentId) -> io::Result<Option<Header>> {
    let mut block = AlignedBuf::with_capacity(BLOCK_BYTES);
    block.set_len(BLOCK_BYTES);
    let got = file.read_at(&mut block, 0)?;
    Ok(Header::decode(&block[..got])
        .ok()
        .filter(|header| (header.segment, header.group) == (id, 0) && !header.is_of_snapshot()))
}

/// Compares a group with its checksums.
fn body(header: &Header, group: &[u8]) -> Body {
    let (seed, table_start) = (crc_seed(&header.salt), header.table_start());
    if !header.has_table() {
        let holds = table_crc(&group[HEADER_BYTES..header.len_bytes as usize], seed) == header.body_crc;
        return if holds { Body::Holds } else { Body::Unknown };
    }
    let table = &group[table_start..header.len_bytes as usize];
    let table_holds = table_crc(table, seed) == header.body_crc;
    let (mut empty, mut rotten) = (Vec::new(), Vec::new());
    for (i, entry) in table.chunks(TABLE_ENTRY_BYTES).enumerate() {
        if block_crc(group, i, table_start, seed).to_le_bytes() != *entry {
            let block = &group[i * BLOCK_BYTES..group.len().min((i + 1) * BLOCK_BYTES)];
            if block.iter().all(|b| *b == 0) { &mut empty } else { &mut rotten }.push(i as u32);
        }
    }
    if table_holds && empty.is_empty() && rotten.is_empty() {
        return Body::Holds;
    }
    Body::Blocks { table_holds, empty, rotten }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::{Backing, Cache, MemoryBacking, Open};
    use crate::format::group::GROUP_VERSION;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    /// A file that counts what is read of it.
    struct Counted(Arc<dyn BackingFile>, AtomicU64);

    impl BackingFile for Counted {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.read_at(buf, offset)
        }
        fn read_device(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.1.fetch_add(buf.len() as u64, Relaxed);
            self.0.read_device(buf, offset)
        }
        fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            self.0.write_all_at(buf, offset)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn preallocate(&self, len: u64) -> io::Result<()> {
            self.0.preallocate(len)
        }
        fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
            self.0.punch(offset, len)
        }
        fn is_direct(&self) -> bool {
            self.0.is_direct()
        }
    }

    #[test]
    fn headers_that_somebody_made_up_cost_no_more_than_reading_the_file_a_few_times() {
        const LEN: u64 = 6 << 20;
        let (disk, id) = (MemoryBacking::default(), SegmentId(1));
        let file = disk.open("s", Open::Create, Cache::Direct).unwrap();
        file.set_len(LEN).unwrap();
        for block in 0..LEN / BLOCK_BYTES as u64 {
            let header = Header {
                version: GROUP_VERSION,
                flags: 0,
                segment: id,
                epoch: Epoch(1),
                group: block as u32,
                len_bytes: GROUP_BYTES_MAX as u32,
                directory_len_bytes: 1000,
                body_crc: 0,
                salt: [7; 16],
                key: KeyNumber(0),
            };
            file.write_all_at(&header.encode(), block * BLOCK_BYTES as u64).unwrap();
        }
        let counted = Arc::new(Counted(file, AtomicU64::new(0)));
        let mut shapes = Shapes::new(Arc::clone(&counted) as Arc<dyn BackingFile>, id);
        let mut asked = 0;
        let found = shapes.next(|_, _| {
            asked += 1;
            false
        });
        assert!(found.unwrap().is_none() && asked > 2, "{asked} were looked at");
        let read = counted.1.load(Relaxed);
        assert!(read < 5 * LEN, "{read} bytes were read of a file of {LEN}");
    }
}
