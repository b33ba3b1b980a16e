//! Writes and reads a snapshot: groups like a segment's, in a file of their own, under a key of their own (format.md §13).
//!
//! Promise: what a reader calls whole was sealed with the vault's key as a snapshot of that number, has every frame from the first
//! to the last in order, and the entries that were added, no more and no fewer. A file that was cut off anywhere is not whole.
//! Called by: `vault::snapshot` (writes, looks, loads), `check`. On failure: `Unreadable`, which says where; a writer cannot fail.

use super::{GroupBuilder, SealedFrames, SegmentContext, Unreadable, Walk, WalkedFrame};
use crate::backing::{AlignedBuf, BackingFile};
use crate::base::choice::{Codec, SuiteId};
use crate::base::id::{CommitSeq, Ino, SegmentId, VaultId};
use crate::base::limits::{GROUP_BYTES_MAX, TAG_BYTES};
use crate::format::frame::Kind;
use crate::format::group::Entry;
use crate::format::segment::Covered;
use crate::format::snapshot::{DIGEST_TEXT, End, Entries, PIECE_BYTES, push_entry};
use crate::seal::{Compressor, Digest, VaultKeys};
use std::collections::VecDeque;
use std::sync::Arc;

/// The directory that snapshots lie in.
pub const SNAPSHOTS: &str = "snapshots";
/// What is shorter is not compressed.
const COMPRESSED_MIN: usize = 256;

/// The path of the snapshot of a commit.
#[must_use]
pub fn snapshot_path(number: CommitSeq) -> String {
    format!("{SNAPSHOTS}/{}", super::file_name(SegmentId(number.0)))
}

/// The commit whose snapshot has a file name, if it is one.
#[must_use]
pub fn parse_snapshot_name(name: &str) -> Option<CommitSeq> {
    super::parse_number(name).map(CommitSeq)
}

/// A group of a snapshot, to be written where it says.
pub struct SnapshotGroup {
    /// Byte position in the file.
    pub position_bytes: u64,
    /// Whole blocks.
    pub image: AlignedBuf,
}

/// A snapshot being written: entries go in, in order, and groups come out.
pub struct SnapshotWriter {
    context: SegmentContext,
    compressor: Compressor,
    digest: Digest,
    /// Entries that fill no frame yet.
    plain: Vec<u8>,
    entries: u64,
    builder: GroupBuilder,
    next_group: u32,
    position: u64,
    full: VecDeque<SnapshotGroup>,
}

fn empty_group(context: &SegmentContext) -> GroupBuilder {
    GroupBuilder::new(context, AlignedBuf::with_capacity(GROUP_BYTES_MAX))
}

impl SnapshotWriter {
    /// Begins with what it covers. The context is one of a snapshot, with a salt that was drawn for it.
    #[must_use]
    pub fn new(context: SegmentContext, covered: &Covered) -> SnapshotWriter {
        debug_assert!(
            context.of_snapshot && context.id.0 == covered.position.seq.0,
            "a snapshot has its commit's number"
        );
        let (builder, digest) = (empty_group(&context), Digest::begun_with(&DIGEST_TEXT));
        let (compressor, full) = (Compressor::new(), VecDeque::new());
        let (plain, entries, next_group, position) = (Vec::new(), 0, 0, 0);
        let mut writer =
            SnapshotWriter { context, compressor, digest, plain, entries, builder, next_group, position, full };
        writer.frame(Kind::Covered, &covered.encode());
        writer
    }

    /// Adds an entry; its key is above that of the one before.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        push_entry(&mut self.plain, key, value);
        self.entries += 1;
        while self.plain.len() >= PIECE_BYTES {
            let rest = self.plain.split_off(PIECE_BYTES);
            let piece = std::mem::replace(&mut self.plain, rest);
            self.frame(Kind::Entries, &piece);
        }
    }

    /// The next group that is full.
    pub fn take_group(&mut self) -> Option<SnapshotGroup> {
        self.full.pop_front()
    }

    /// Ends it: what is left comes out as groups; gives what its last frame says.
    pub fn end(&mut self) -> End {
        let rest = std::mem::take(&mut self.plain);
        if !rest.is_empty() {
            self.frame(Kind::Entries, &rest);
        }
        let end = End { entries: self.entries, digest: self.digest.value() };
        self.frame(Kind::End, &end.encode());
        self.close_group();
        end
    }

    fn frame(&mut self, kind: Kind, plain: &[u8]) {
        self.digest.add(plain);
        let mut bytes = Vec::with_capacity(plain.len() + TAG_BYTES);
        let shorter = plain.len() > COMPRESSED_MIN && self.compressor.compress(Codec::Zstd, plain, &mut bytes);
        let codec = if shorter { Codec::Zstd } else { Codec::Raw };
        if !shorter {
            bytes.extend_from_slice(plain);
        }
        let slot = self.context.take_data_slots(1);
        let at = self.context.address(slot, kind, codec, plain.len(), Ino(0), 0);
        self.context.key.seal(&at, &mut bytes, 0);
        if !self.builder.fits(1, bytes.len()) {
            self.close_group();
        }
        let (sealed_len_bytes, plain_len_bytes) = (bytes.len() as u32, plain.len() as u32);
        let entry = Entry { kind, codec, slot, sealed_len_bytes, plain_len_bytes, ino: Ino(0), offset_bytes: 0 };
        self.builder.add(&SealedFrames { entries: vec![entry], bytes });
    }

    fn close_group(&mut self) {
        let done = std::mem::replace(&mut self.builder, empty_group(&self.context));
        let image = done.finish(&self.context, self.next_group);
        let position_bytes = self.position;
        self.position += image.len() as u64;
        self.next_group += 1;
        self.full.push_back(SnapshotGroup { position_bytes, image });
    }
}

/// What was read of a snapshot that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeSnapshot {
    /// What it covers.
    pub covered: Covered,
    /// What its last frame says.
    pub end: End,
    /// Bytes of its groups.
    pub len_bytes: u64,
    /// Whether the checksums of every group hold, too: who has no key goes by these.
    pub checksums_hold: bool,
}

/// A snapshot being read, from the device, group by group.
pub struct SnapshotReader {
    walk: Walk,
    number: CommitSeq,
    digest: Digest,
    entries: Entries,
    next_slot: u32,
    covered: Option<Covered>,
    checksums_hold: bool,
}

impl SnapshotReader {
    /// Begins at the first group.
    #[must_use]
    pub fn new(file: Arc<dyn BackingFile>, number: CommitSeq, suite: SuiteId, vault: VaultId) -> SnapshotReader {
        let walk = Walk::of_snapshot(file, SegmentId(number.0), suite, vault);
        let (digest, entries) = (Digest::begun_with(&DIGEST_TEXT), Entries::default());
        SnapshotReader { walk, number, digest, entries, next_slot: 0, covered: None, checksums_hold: true }
    }

    /// What it covers, known once the first group was read.
    #[must_use]
    pub fn covered(&self) -> Option<&Covered> {
        self.covered.as_ref()
    }

    /// The walk through its groups.
    #[must_use]
    pub fn walk(&self) -> &Walk {
        &self.walk
    }

    /// Reads the next group and hands its entries over; gives what there was when that was the last one. Until then nobody knows
    /// whether there are more.
    pub fn next(
        &mut self,
        keys: &VaultKeys,
        each: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<Option<WholeSnapshot>, Unreadable> {
        let at = self.walk.position_bytes();
        let Some(group) = self.walk.next(keys)? else {
            let what = if self.walk.missing_key().is_some() { "the key" } else { "the end of the snapshot" };
            return Err(Unreadable::Damaged { position_bytes: at, what });
        };
        if let Some(gap) = group.gap_before {
            return Err(Unreadable::Damaged { position_bytes: gap.from_bytes, what: "a group" });
        }
        self.checksums_hold &= group.checksum_holds;
        for (i, frame) in group.frames.iter().enumerate() {
            if let Some(end) = self.frame(frame, each)? {
                if i + 1 != group.frames.len() {
                    return Err(damaged(frame, "the last frame"));
                }
                let covered = self.covered.ok_or(damaged(frame, "the first frame"))?;
                let (len_bytes, checksums_hold) = (self.walk.position_bytes(), self.checksums_hold);
                return Ok(Some(WholeSnapshot { covered, end, len_bytes, checksums_hold }));
            }
        }
        Ok(None)
    }

    fn frame(&mut self, frame: &WalkedFrame, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<Option<End>, Unreadable> {
        let mut plain = Vec::new();
        self.walk.open(frame, &mut plain)?;
        if frame.entry.slot.0 != self.next_slot || (self.next_slot == 0) != (frame.entry.kind == Kind::Covered) {
            return Err(damaged(frame, "the order of frames"));
        }
        self.next_slot += 1;
        match frame.entry.kind {
            Kind::End => {
                let end = End::decode(&plain).map_err(|e| damaged(frame, e.what))?;
                let entries = self.entries.end().map_err(|e| damaged(frame, e.what))?;
                if (End { entries, digest: self.digest.value() }) != end {
                    return Err(damaged(frame, "the digest of the entries"));
                }
                return Ok(Some(end));
            }
            Kind::Entries => self.entries.take(&plain, each).map_err(|e| damaged(frame, e.what))?,
            _ => {
                let covered = Covered::decode(&plain).map_err(|e| damaged(frame, e.what))?;
                if covered.position.seq != self.number {
                    return Err(damaged(frame, "the number of the commit"));
                }
                self.covered = Some(covered);
            }
        }
        self.digest.add(&plain);
        Ok(None)
    }
}

fn damaged(frame: &WalkedFrame, what: &'static str) -> Unreadable {
    Unreadable::Damaged { position_bytes: frame.position_bytes, what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::{Backing, Cache, MemoryBacking, Open, read_file};
    use crate::base::id::{Epoch, KeyNumber};
    use crate::base::secret::Secret;
    use crate::format::record::Counters;
    use crate::format::segment::{LogPosition, SegmentInfo};
    use crate::seal::MasterKey;

    const VAULT: VaultId = VaultId([7; 16]);
    const NUMBER: CommitSeq = CommitSeq(9);

    type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

    fn keys() -> VaultKeys {
        VaultKeys::first(MasterKey::from_secret(Secret::from([5; 32])))
    }

    fn covered() -> Covered {
        let counters = Counters { next_ino: 1, next_cookie: 2, inodes: 3 };
        Covered { position: LogPosition { seq: NUMBER, chain: [7; 32] }, counters, replay_from: SegmentId(4) }
    }

    fn info() -> SegmentInfo {
        SegmentInfo::empty(Epoch(2), [0x55; 16], KeyNumber(0))
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| (crate::backing::mix((seed << 32) | (i / 8)) >> (i % 8 * 8)) as u8).collect()
    }

    /// Small entries, one that needs several frames, and one that needs several groups.
    fn pairs(small: u64) -> Pairs {
        let mut all: Pairs = (0..small).map(|i| (format!("I{i:08}").into_bytes(), noise(i, 88))).collect();
        all.push((b"J".to_vec(), noise(1, 200_000)));
        all.push((b"K".to_vec(), noise(2, 2_500_000)));
        all.push((b"L".to_vec(), Vec::new()));
        all
    }

    fn written(pairs: &Pairs) -> (MemoryBacking, End) {
        let context = SegmentContext::of_snapshot(&keys(), SuiteId::Aes256Gcm, VAULT, SegmentId(9), &info()).unwrap();
        let disk = MemoryBacking::default();
        let file = disk.open("s", Open::Create, Cache::Direct).unwrap();
        let mut writer = SnapshotWriter::new(context, &covered());
        let write = |writer: &mut SnapshotWriter| {
            while let Some(group) = writer.take_group() {
                file.write_all_at(&group.image, group.position_bytes).unwrap();
            }
        };
        for (key, value) in pairs {
            writer.add(key, value);
            write(&mut writer);
        }
        let end = writer.end();
        write(&mut writer);
        (disk, end)
    }

    fn read_as(disk: &MemoryBacking, number: CommitSeq) -> Result<(Pairs, WholeSnapshot), String> {
        let file = disk.open("s", Open::Read, Cache::Direct).unwrap();
        let (mut reader, mut found) = (SnapshotReader::new(file, number, SuiteId::Aes256Gcm, VAULT), Pairs::new());
        loop {
            let whole = reader.next(&keys(), &mut |k, v| found.push((k.to_vec(), v.to_vec())));
            if let Some(whole) = whole.map_err(|e| e.to_string())? {
                return Ok((found, whole));
            }
        }
    }

    #[test]
    fn what_was_written_is_read_back_whatever_its_size() {
        for small in [0, 1, 700, 20_000] {
            let (disk, end) = written(&pairs(small));
            let (found, whole) = read_as(&disk, NUMBER).unwrap();
            assert!(found == pairs(small) && end.entries == small + 3);
            let len_bytes = disk.open("s", Open::Read, Cache::Direct).unwrap().len().unwrap();
            assert_eq!(whole, WholeSnapshot { covered: covered(), end, len_bytes, checksums_hold: true });
        }
        let (disk, end) = written(&Pairs::new());
        assert_eq!((read_as(&disk, NUMBER).unwrap().0, end.entries), (Pairs::new(), 0));
    }

    #[test]
    fn golden_snapshot() {
        let (disk, end) = written(&vec![(b"Ia".to_vec(), b"one".to_vec())]);
        let text = [&DIGEST_TEXT[..], &covered().encode(), b"\x02Ia\x03one"].concat();
        assert_eq!(end.digest, Digest::begun_with(&text).value(), "the digest is over what the frames hold");
        let bytes = read_file(&disk, "s", 1 << 20).unwrap();
        assert_eq!(bytes.len(), 4096);
        // Header; frames of 72, 7 and 40 bytes and their tags; the directory 1 + 3 * 4 + 16; the table of one block.
        let len = 64 + 88 + 23 + 56 + 29 + 4;
        assert_eq!(bytes[..32], *b"SRG1\x04\0\0\0\x09\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\x08\x01\0\0");
        assert_eq!(len, 0x108);
        assert_eq!(bytes[32..36], [29, 0, 0, 0]);
        assert_eq!(bytes[40..56], [0x55; 16]);
        let sum = Digest::begun_with(&bytes).value();
        let hex: String = sum.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN_SHA256, "on-disk bytes changed: bump FORMAT_VERSION and add a vault to tests/vaults/");
    }

    const GOLDEN_SHA256: &str = "f3d2eb3566dcf7b399ad08089af2e930f120faac5c9e9feda60bf92d76b41768";

    #[test]
    fn what_is_cut_off_changed_or_of_another_number_is_not_whole() {
        let (disk, _) = written(&pairs(700));
        let len = disk.open("s", Open::Read, Cache::Direct).unwrap().len().unwrap();
        for cut in (0..len).step_by(4096) {
            let disk = disk.copy();
            disk.open("s", Open::Write, Cache::Buffered).unwrap().set_len(cut).unwrap();
            assert!(read_as(&disk, NUMBER).is_err(), "cut at {cut}");
        }
        let mut opened = Vec::new();
        for block in 0..len / 4096 {
            for byte in [70, 900, 4000].map(|at| block * 4096 + at) {
                let disk = disk.copy();
                disk.flip_bit("s", byte * 8 + 3);
                match read_as(&disk, NUMBER) {
                    Ok((found, _)) => {
                        assert!(found == pairs(700), "byte {byte}: other entries");
                        opened.push(byte);
                    }
                    Err(e) => assert!(e.contains("does not hold"), "{e}"),
                }
            }
        }
        // The last two blocks of each of three groups may hold its table, which nobody needs who has the key, or nothing at all.
        assert!(opened.len() <= 12, "what does not open is not whole: {opened:?}");
        assert!(read_as(&disk, CommitSeq(10)).is_err(), "its number is sealed into it");
    }

    #[test]
    fn a_snapshot_is_no_segment_and_a_segment_no_snapshot() {
        let (disk, _) = written(&pairs(10));
        let file = || disk.open("s", Open::Read, Cache::Direct).unwrap();
        let mut walk = Walk::new(file(), SegmentId(9), SuiteId::Aes256Gcm, VAULT);
        assert!(
            walk.next(&keys()).unwrap().is_none()
                && super::super::first_header(&*file(), SegmentId(9)).unwrap().is_none()
        );
        let keys = keys();
        let segment = SegmentContext::new(&keys, SuiteId::Aes256Gcm, VAULT, SegmentId(9), &info()).unwrap();
        let mut builder = empty_group(&segment);
        let (mut bytes, slot) = (covered().encode(), segment.take_data_slots(1));
        let at = segment.address(slot, Kind::Records, Codec::Raw, bytes.len(), Ino(0), 0);
        segment.key.seal(&at, &mut bytes, 0);
        let (sealed_len_bytes, plain_len_bytes) = (bytes.len() as u32, bytes.len() as u32 - 16);
        let (kind, codec, ino) = (Kind::Records, Codec::Raw, Ino(0));
        let entry = Entry { kind, codec, slot, sealed_len_bytes, plain_len_bytes, ino, offset_bytes: 0 };
        builder.add(&SealedFrames { entries: vec![entry], bytes });
        let image = builder.finish(&segment, 0);
        let disk = MemoryBacking::default();
        disk.open("s", Open::Create, Cache::Direct).unwrap().write_all_at(&image, 0).unwrap();
        let file = || disk.open("s", Open::Read, Cache::Direct).unwrap();
        let mut walk = Walk::new(file(), SegmentId(9), SuiteId::Aes256Gcm, VAULT);
        assert!(walk.next(&keys).unwrap().is_some());
        let mut walk = Walk::of_snapshot(file(), SegmentId(9), SuiteId::Aes256Gcm, VAULT);
        assert!(walk.next(&keys).unwrap().is_none(), "whoever knows the version only");
        assert!(SnapshotReader::new(file(), NUMBER, SuiteId::Aes256Gcm, VAULT).next(&keys, &mut |_, _| ()).is_err());
        // Under one number, lease and salt, the two keys are two.
        let other = SegmentContext::of_snapshot(&keys, SuiteId::Aes256Gcm, VAULT, SegmentId(9), &info()).unwrap();
        let seal = |context: &SegmentContext| {
            let mut bytes = b"hello".to_vec();
            context.key.seal(&context.address(slot, Kind::Data, Codec::Raw, 5, Ino(1), 0), &mut bytes, 0);
            bytes
        };
        assert_ne!(seal(&segment), seal(&other));
    }

    #[test]
    fn names_are_one_to_one() {
        assert_eq!(snapshot_path(CommitSeq(255)), "snapshots/00000000000000ff");
        assert_eq!(parse_snapshot_name("00000000000000ff"), Some(CommitSeq(255)));
        assert!(parse_snapshot_name("00000000000000ff.new").is_none());
    }
}
