//! Reads every block of a vault's files and compares it with its checksum; with the key, opens the frames of the log, too.
//!
//! Promise: nothing is written. Without a key, a hole that was punched is told from rot (not in groups of version 1, which
//! are counted as untold); with it, every directory and every frame of records, of a commit or of a Start that recovery could
//! need is opened. What a writer that was interrupted left at the end of a segment is no damage, and is counted.
//! Called by: `cli::scrub`, tests. Takes: nothing; the caller holds the vault's lock.
//! On failure: the disk's error: then nothing is known.

use super::damage::Damage;
use crate::backing::{AlignedBuf, Backing, BackingFile, Cache, Open};
use crate::base::id::{CommitSeq, SegmentId};
use crate::base::limits::BLOCK_BYTES;
use crate::format::FORMAT_VERSION_OLDEST;
use crate::format::frame::Kind;
use crate::format::group::{HEADER_BYTES, Header as GroupHeader};
use crate::format::root::{MAGIC, ROOT_BYTES, ROOT_VERSION, ROOT_VERSION_1};
use crate::seal::{Header, VaultKeys, read_header};
use crate::segment::{Body, Shapes, SnapshotReader, Unreadable, Walk, parse_file_name, path};
use crate::vault::{HEADER, HEADER_COPY, ROOTS, list_snapshots_open};
use std::io;
use std::sync::Arc;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What was found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Media {
    /// Segments read.
    pub segments: u64,
    /// Snapshots of the index read.
    pub snapshots: u64,
    /// Groups in them.
    pub groups: u64,
    /// Their bytes, padding included.
    pub bytes: u64,
    /// Bytes of them that are holes: punched, or never written.
    pub hole_bytes: u64,
    /// Groups of version 1 whose one checksum does not hold: a hole or rot, which cannot be told without the key.
    pub untold_groups: u64,
    /// Segments that end in a write that was interrupted.
    pub unfinished_segments: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
}

/// A segment under way.
struct Segment {
    id: SegmentId,
    file: Arc<dyn BackingFile>,
    /// Damage since the last commit (without a key: since the last whole group): it may be an interrupted write.
    pending: Vec<Damage>,
    /// Damage between that commit and the one before: the last one of a segment may have been interrupted.
    suspect: Vec<Damage>,
}

/// Reads everything; `key` opens the log. `progress` is told bytes read of bytes in all.
pub fn scrub_media(
    backing: &Arc<dyn Backing>,
    key: Option<(&Header, &VaultKeys)>,
    progress: &dyn Fn(u64, u64),
) -> io::Result<Media> {
    let mut media = Media::default();
    media.outer_shapes(&**backing)?;
    let names = backing.list("segments")?;
    let mut files = Vec::new();
    let mut total = 0;
    for id in names.iter().filter_map(|name| parse_file_name(name)) {
        let file = backing.open(&path(id), Open::Read, Cache::Direct)?;
        total += file.len()?;
        files.push((id, file));
    }
    let snapshots = list_snapshots_open(&**backing)?;
    for (_, file) in &snapshots {
        total += file.len()?;
    }
    let mut done = 0;
    for (commit, file) in snapshots.into_iter().rev() {
        let len = file.len()?;
        let damage = match key {
            None => media.snapshot_shapes(file, commit)?,
            Some((header, keys)) => media.snapshot(file, commit, header, keys)?,
        };
        media.damage.extend(damage.map(|why| Damage::Snapshot { commit, why }));
        media.snapshots += 1;
        done += len;
        progress(done, total);
    }
    for (id, file) in files {
        let len = file.len()?;
        let mut segment = Segment { id, file, pending: Vec::new(), suspect: Vec::new() };
        let tell = |position: u64| progress(done + position.min(len), total);
        let end = match key {
            None => media.shapes(&mut segment, &tell)?,
            Some((header, keys)) => media.walk(&mut segment, header, keys, &tell)?,
        };
        media.end_of_segment(segment, end, len)?;
        media.segments += 1;
        done += len;
        progress(done, total);
    }
    Ok(media)
}

impl Media {
    /// A snapshot by what is in the clear; what is wrong with it. It was read back whole before it got its name, so nothing of it
    /// is an interrupted write.
    fn snapshot_shapes(&mut self, file: Arc<dyn BackingFile>, commit: CommitSeq) -> io::Result<Option<String>> {
        let len = file.len()?;
        let mut shapes = Shapes::of_snapshot(file, SegmentId(commit.0));
        while let Some(shape) = shapes.next(|_, _| true)? {
            self.groups += 1;
            self.bytes += shape.header.blocks() as u64 * BLOCK;
            if let Some(gap) = shape.gap_before {
                return Ok(Some(format!("the group that lay at byte {} cannot be read", gap.from_bytes)));
            }
            if shape.body != Body::Holds {
                return Ok(Some(format!("the checksums of the group at byte {} do not hold", shape.position_bytes)));
            }
        }
        let end = shapes.position_bytes();
        Ok((end != len || end == 0).then(|| format!("the group that lay at byte {end} cannot be read")))
    }

    /// The same with the key, to its last frame.
    fn snapshot(
        &mut self,
        file: Arc<dyn BackingFile>,
        commit: CommitSeq,
        header: &Header,
        keys: &VaultKeys,
    ) -> io::Result<Option<String>> {
        let mut reader = SnapshotReader::new(file, commit, header.suite, header.vault);
        loop {
            let before = reader.walk().position_bytes();
            let read = reader.next(keys, &mut |_, _| ());
            self.groups += 1;
            self.bytes += reader.walk().position_bytes() - before;
            match read {
                Ok(None) => {}
                Ok(Some(whole)) if whole.checksums_hold => return Ok(None),
                Ok(Some(_)) => return Ok(Some("its checksums do not hold, though it opens".to_owned())),
                Err(Unreadable::Io(e)) => return Err(e),
                Err(e) => return Ok(Some(e.to_string())),
            }
        }
    }

    /// Header, roots and their copies: what can be said of them without a key.
    fn outer_shapes(&mut self, backing: &dyn Backing) -> io::Result<()> {
        let read = |name: &str| match crate::backing::read_file(backing, name, 64 << 10) {
            Ok(bytes) => Ok(Ok(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Err("it is missing".to_owned())),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Ok(Err(e.to_string())),
            Err(e) => Err(e),
        };
        let shape = |text: Vec<u8>| read_header(&text).map_err(|e| e.to_string());
        let (header, copy) = (read(HEADER)?.and_then(shape), read(HEADER_COPY)?.and_then(shape));
        // Format 1 knew no copy.
        let copied = header.as_ref().is_ok_and(|h| h.format > FORMAT_VERSION_OLDEST);
        self.damage.extend(header.err().map(|why| Damage::File { name: HEADER, why }));
        self.damage.extend(copy.err().filter(|_| copied).map(|why| Damage::File { name: HEADER_COPY, why }));
        for name in ROOTS {
            let judged = read(name)?.and_then(|b| if is_root(&b) { Ok(()) } else { Err("it is no root".to_owned()) });
            self.damage.extend(judged.err().map(|why| Damage::File { name, why }));
        }
        Ok(())
    }

    /// A segment by what is in the clear; where its last group ends.
    fn shapes(&mut self, segment: &mut Segment, tell: &dyn Fn(u64)) -> io::Result<u64> {
        let mut shapes = Shapes::new(Arc::clone(&segment.file), segment.id);
        while let Some(shape) = shapes.next(|_, _| true)? {
            segment.gap(shape.gap_before.map(|gap| (gap.from_bytes, gap.to_bytes)));
            self.group(segment, &shape.header, shape.position_bytes, &shape.body);
            // Something whole lies behind it: without the key, that is as good as it gets.
            if !matches!(&shape.body, Body::Blocks { table_holds, rotten, .. } if !table_holds || !rotten.is_empty()) {
                self.damage.append(&mut segment.pending);
            }
            tell(shapes.position_bytes());
        }
        Ok(shapes.position_bytes())
    }

    /// A segment with the key, likewise.
    fn walk(
        &mut self,
        segment: &mut Segment,
        header: &Header,
        keys: &VaultKeys,
        tell: &dyn Fn(u64),
    ) -> io::Result<u64> {
        let mut walk = Walk::new(Arc::clone(&segment.file), segment.id, header.suite, header.vault);
        let mut plain = Vec::new();
        while let Some(group) = walk.next(keys).map_err(io_error)? {
            segment.gap(group.gap_before.map(|gap| (gap.from_bytes, gap.to_bytes)));
            self.group(segment, &group.header, group.position_bytes, &group.body);
            for frame in group.frames.iter().filter(|f| f.entry.kind != Kind::Data) {
                plain.clear();
                match walk.open(frame, &mut plain) {
                    Err(_) => segment
                        .pending
                        .push(Damage::LogRotten { segment: segment.id, position_bytes: frame.position_bytes }),
                    // A commit is written only after the one before was flushed and read back.
                    Ok(()) if frame.entry.kind == Kind::Commit => {
                        self.damage.append(&mut segment.suspect);
                        segment.suspect.append(&mut segment.pending);
                    }
                    Ok(()) => {}
                }
            }
            tell(walk.position_bytes());
        }
        let missing = walk.missing_key().map(|key| Damage::KeyMissing { segment: segment.id, key });
        self.damage.extend(missing);
        Ok(walk.position_bytes())
    }

    /// What the checksums of a group say.
    fn group(&mut self, segment: &mut Segment, header: &GroupHeader, position: u64, body: &Body) {
        self.groups += 1;
        self.bytes += header.blocks() as u64 * BLOCK;
        match body {
            Body::Holds => {}
            Body::Unknown => self.untold_groups += 1,
            Body::Blocks { table_holds, empty, rotten } => {
                if !table_holds {
                    // Which blocks hold cannot be said, then.
                    let damage = Damage::TableRotten { segment: segment.id, position_bytes: position };
                    return segment.pending.push(damage);
                }
                self.hole_bytes += empty.len() as u64 * BLOCK;
                for run in rotten.chunk_by(|a, b| a + 1 == *b) {
                    let from_bytes = position + u64::from(run[0]) * BLOCK;
                    let to_bytes = from_bytes + run.len() as u64 * BLOCK;
                    segment.pending.push(Damage::BlocksRotten { segment: segment.id, from_bytes, to_bytes });
                }
            }
        }
    }

    /// What lies behind the last group, and what became of damage that nothing whole follows.
    fn end_of_segment(&mut self, mut segment: Segment, end: u64, len: u64) -> io::Result<()> {
        segment.suspect.append(&mut segment.pending);
        if end >= len {
            // Ended, and cut to its length: nothing of it was under way.
            self.damage.append(&mut segment.suspect);
            return Ok(());
        }
        let mut block = AlignedBuf::with_capacity(BLOCK_BYTES);
        block.set_len(BLOCK_BYTES);
        let got = segment.file.read_at(&mut block, end)?;
        let head = &block[..got.min(HEADER_BYTES)];
        let written = head.iter().any(|b| *b != 0);
        // A group's first sector is written whole or not at all: it is zeros, or a header; and of a segment that was ended, the
        // last group ends with the file.
        let damaged = match GroupHeader::decode(head) {
            Err(_) => written,
            Ok(header) => end + header.blocks() as u64 * BLOCK == len,
        };
        if damaged {
            segment.suspect.push(Damage::GroupsMissing { segment: segment.id, from_bytes: end, to_bytes: None });
            self.damage.append(&mut segment.suspect);
        } else if !segment.suspect.is_empty() || written {
            self.unfinished_segments += 1;
        }
        Ok(())
    }
}

impl Segment {
    fn gap(&mut self, gap: Option<(u64, u64)>) {
        let damage = |(from_bytes, to)| Damage::GroupsMissing { segment: self.id, from_bytes, to_bytes: Some(to) };
        self.pending.extend(gap.map(damage));
    }
}

fn is_root(bytes: &[u8]) -> bool {
    let version = bytes.get(4..6).map(|v| u16::from_le_bytes([v[0], v[1]]));
    let known = version.is_some_and(|v| (ROOT_VERSION_1..=ROOT_VERSION).contains(&v));
    bytes.len() == ROOT_BYTES && bytes.starts_with(&MAGIC) && known
}

fn io_error(e: Unreadable) -> io::Error {
    match e {
        Unreadable::Io(e) => e,
        Unreadable::Damaged { .. } => io::Error::other(e.to_string()),
    }
}
