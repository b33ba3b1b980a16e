//! A group: the frames that go to disk in one write, with their encrypted directory and the table of their blocks'
//! checksums (format.md §3).
//!
//! Promise: a header that decodes was written as a header (magic and CRC), and its lengths lie within a group's bounds;
//! a directory that decodes accounts for every byte between header and directory; a table has one entry for each block.
//! Called by: `segment`. On failure: `Malformed`, which names the field.

use super::frame::Kind;
use super::wire::{Malformed, Reader, Write, malformed};
use crate::base::choice::Codec;
use crate::base::id::{Epoch, Ino, KeyNumber, SegmentId, Slot};
use crate::base::limits::{BLOCK_BYTES, GROUP_BYTES_MAX, TAG_BYTES};
use std::ops::Range;

/// Length of the header, which is in the clear.
pub const HEADER_BYTES: usize = 64;
/// First bytes of a group.
pub const MAGIC: [u8; 4] = *b"SRG1";
/// The version that is written under a vault's first master key: with a table of the blocks' checksums.
pub const GROUP_VERSION: u16 = 2;
/// The version that is written under every later one: it names the key.
pub const GROUP_VERSION_KEYED: u16 = 3;
/// The version of a group of a snapshot: it names the key, also the first.
pub const GROUP_VERSION_SNAPSHOT: u16 = 4;
/// The version before: one checksum over the whole body, which a punched hole breaks.
pub const GROUP_VERSION_1: u16 = 1;
/// Flag of a group that `rekey` sealed anew: a checkpoint covered what it holds then, so the chain of its commits need not hold.
pub const SEALED_ANEW: u16 = 1;
/// Flag of a group sealed anew that has no table, for it was of version 1 before.
pub const NO_TABLE: u16 = 2;
/// Bytes of one entry of the table.
pub const TABLE_ENTRY_BYTES: usize = 4;

/// The clear header of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// `GROUP_VERSION`, `GROUP_VERSION_1`, `GROUP_VERSION_KEYED` or `GROUP_VERSION_SNAPSHOT`.
    pub version: u16,
    /// `SEALED_ANEW`, perhaps with `NO_TABLE`; 0 in other versions than `GROUP_VERSION_KEYED`.
    pub flags: u16,
    /// The segment it belongs to, a recycled file's old groups name another; of a snapshot, the commit that it covers.
    pub segment: SegmentId,
    /// The lease it was written under.
    pub epoch: Epoch,
    /// Its number in the segment, from 0; also the nonce of its directory.
    pub group: u32,
    /// Bytes from the header's first to the table's last (in version 1: to the directory's); padding to a block follows.
    pub len_bytes: u32,
    /// Sealed bytes of the directory, the last ones before the table.
    pub directory_len_bytes: u32,
    /// CRC-32 of the table (in version 1: of everything after the header), begun from the CRC-32 of the salt.
    pub body_crc: u32,
    /// The segment's salt, again in each group: one bad sector must not cost a segment.
    pub salt: [u8; 16],
    /// The master key that the segment's key is derived from: in `GROUP_VERSION_KEYED` never 0, in older ones always.
    pub key: KeyNumber,
}

impl Header {
    /// The bytes on disk.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut b = [0; HEADER_BYTES];
        b[0..4].copy_from_slice(&MAGIC);
        b[4..6].copy_from_slice(&self.version.to_le_bytes());
        b[6..8].copy_from_slice(&self.flags.to_le_bytes());
        b[8..16].copy_from_slice(&self.segment.0.to_le_bytes());
        b[16..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        b[24..28].copy_from_slice(&self.group.to_le_bytes());
        b[28..32].copy_from_slice(&self.len_bytes.to_le_bytes());
        b[32..36].copy_from_slice(&self.directory_len_bytes.to_le_bytes());
        b[36..40].copy_from_slice(&self.body_crc.to_le_bytes());
        b[40..56].copy_from_slice(&self.salt);
        b[56..58].copy_from_slice(&self.key.0.to_le_bytes());
        let crc = crc32fast::hash(&b[..60]);
        b[60..64].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Reads a header; refuses a wrong magic, version, checksum, reserved byte or impossible length.
    pub fn decode(bytes: &[u8]) -> Result<Header, Malformed> {
        let Some(head) = bytes.get(..HEADER_BYTES) else { return malformed("group header length") };
        let mut r = Reader::new(head);
        if r.array::<4>("group magic")? != MAGIC {
            return malformed("group magic");
        }
        let version = r.u16("group version")?;
        let (keyed, snapshot) = (version == GROUP_VERSION_KEYED, version == GROUP_VERSION_SNAPSHOT);
        if !keyed && !snapshot && version != GROUP_VERSION && version != GROUP_VERSION_1 {
            return malformed("group version");
        }
        let flags = r.u16("group flags")?;
        if flags != 0 && !(keyed && (flags == SEALED_ANEW || flags == SEALED_ANEW | NO_TABLE)) {
            return malformed("group flags");
        }
        let header = Header {
            version,
            flags,
            segment: SegmentId(r.u64("group segment")?),
            epoch: Epoch(r.u64("group epoch")?),
            group: r.u32("group number")?,
            len_bytes: r.u32("group length")?,
            directory_len_bytes: r.u32("group directory length")?,
            body_crc: r.u32("group body checksum")?,
            salt: r.array("group salt")?,
            key: KeyNumber(r.u16("group key")?),
        };
        if !snapshot && (header.key != KeyNumber(0)) != keyed {
            return malformed("group key");
        }
        if r.u16("group reserved")? != 0 {
            return malformed("group reserved");
        }
        if r.u32("group header checksum")? != crc32fast::hash(&head[..60]) {
            return malformed("group header checksum");
        }
        let (len, directory) = (header.len_bytes as usize, header.directory_len_bytes as usize);
        if len > GROUP_BYTES_MAX || directory <= TAG_BYTES || len < HEADER_BYTES + directory + header.table_len_bytes()
        {
            return malformed("group length");
        }
        Ok(header)
    }

    /// Blocks that the group touches; each but in version 1 has an entry in the table.
    #[must_use]
    pub fn blocks(&self) -> usize {
        (self.len_bytes as usize).div_ceil(BLOCK_BYTES)
    }

    /// Whether there is a table of the blocks' checksums, and not one checksum over the whole body.
    #[must_use]
    pub fn has_table(&self) -> bool {
        self.version != GROUP_VERSION_1 && self.flags & NO_TABLE == 0
    }

    /// Whether it is a group of a snapshot, and not of a segment.
    #[must_use]
    pub fn is_of_snapshot(&self) -> bool {
        self.version == GROUP_VERSION_SNAPSHOT
    }

    /// Whether `rekey` sealed it anew.
    #[must_use]
    pub fn is_sealed_anew(&self) -> bool {
        self.flags & SEALED_ANEW != 0
    }

    fn table_len_bytes(&self) -> usize {
        if self.has_table() { self.blocks() * TABLE_ENTRY_BYTES } else { 0 }
    }

    /// Where the table begins in the group, and the directory ends.
    #[must_use]
    pub fn table_start(&self) -> usize {
        self.len_bytes as usize - self.table_len_bytes()
    }

    /// Where the directory lies in the group.
    #[must_use]
    pub fn directory(&self) -> Range<usize> {
        self.table_start() - self.directory_len_bytes as usize..self.table_start()
    }

    /// What stands in the directory's address in the place of inode and offset: flags and length, so that the header fits its
    /// directory or that does not open.
    #[must_use]
    pub fn bound(&self) -> (Ino, u64) {
        (Ino(u64::from(self.flags)), u64::from(self.len_bytes))
    }
}

/// The CRC that a body's CRC starts from: stale groups of a recycled segment fail under another salt.
#[must_use]
pub fn crc_seed(salt: &[u8; 16]) -> u32 {
    crc32fast::hash(salt)
}

/// The table's length for a group whose header, frames and directory have so many bytes: one entry for each block that
/// they and the table touch.
#[must_use]
pub fn table_len_bytes(before_bytes: usize) -> usize {
    before_bytes.div_ceil(BLOCK_BYTES - TABLE_ENTRY_BYTES) * TABLE_ENTRY_BYTES
}

/// The checksum of a block of a group: of those of its bytes that lie behind the header and before the table, begun from
/// the CRC-32 of the salt (which is what a block without such bytes has). `group` begins at the header.
#[must_use]
pub fn block_crc(group: &[u8], block: usize, table_start: usize, seed: u32) -> u32 {
    let from = (block * BLOCK_BYTES).max(HEADER_BYTES).min(table_start);
    let to = ((block + 1) * BLOCK_BYTES).min(table_start);
    let mut crc = crc32fast::Hasher::new_with_initial(seed);
    crc.update(&group[from..to.max(from)]);
    crc.finalize()
}

/// The checksum of a table, which the header holds.
#[must_use]
pub fn table_crc(table: &[u8], seed: u32) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(seed);
    crc.update(table);
    crc.finalize()
}

/// One frame in a group's directory; frames lie one after the other behind the header, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What the frame holds.
    pub kind: Kind,
    /// How it is compressed.
    pub codec: Codec,
    /// Its slot.
    pub slot: Slot,
    /// Ciphertext and tag.
    pub sealed_len_bytes: u32,
    /// After decompression.
    pub plain_len_bytes: u32,
    /// The inode whose data it holds, else 0.
    pub ino: Ino,
    /// The data's offset in the file, else 0.
    pub offset_bytes: u64,
}

/// Encodes a directory.
#[must_use]
pub fn encode_directory(entries: &[Entry]) -> Vec<u8> {
    let mut b = Vec::with_capacity(entries.len() * 16 + 4);
    b.varint(entries.len() as u64);
    for e in entries {
        b.push(e.kind as u8 | (e.codec as u8) << 4);
        b.varint(u64::from(e.slot.0));
        b.varint(u64::from(e.sealed_len_bytes));
        b.varint(u64::from(e.plain_len_bytes));
        if e.kind == Kind::Data {
            b.varint(e.ino.0);
            b.varint(e.offset_bytes);
        }
    }
    b
}

/// Reads a directory; `frames_len_bytes` is what its frames must add up to.
pub fn decode_directory(bytes: &[u8], frames_len_bytes: usize) -> Result<Vec<Entry>, Malformed> {
    let mut r = Reader::new(bytes);
    let count = r.varint("directory count")?;
    if count > bytes.len() as u64 / 4 {
        return malformed("directory count");
    }
    let mut entries = Vec::with_capacity(count as usize);
    let mut sum = 0usize;
    for _ in 0..count {
        let kc = r.u8("directory kind")?;
        let kind = Kind::from_u8(kc & 15)?;
        // It describes the frames before it, never itself.
        if kind == Kind::Directory {
            return malformed("directory kind");
        }
        let Some(codec) = Codec::from_u8(kc >> 4) else { return malformed("directory codec") };
        let mut e = Entry {
            kind,
            codec,
            slot: Slot(r.varint_u32("directory slot")?),
            sealed_len_bytes: r.varint_u32("directory sealed length")?,
            plain_len_bytes: r.varint_u32("directory plain length")?,
            ino: Ino(0),
            offset_bytes: 0,
        };
        if kind == Kind::Data {
            e.ino = Ino(r.varint("directory inode")?);
            e.offset_bytes = r.varint("directory offset")?;
        }
        if (e.sealed_len_bytes as usize) < TAG_BYTES {
            return malformed("directory sealed length");
        }
        sum += e.sealed_len_bytes as usize;
        entries.push(e);
    }
    r.end("directory tail")?;
    if sum != frames_len_bytes {
        return malformed("directory sum");
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN_TABLE: [u32; 3] = [0x815c_d4f6, 0x753c_6d57, 0x7ab7_4b2c];
    const GOLDEN_TABLE_CRC: u32 = 0xbb09_c7fe;

    fn header() -> Header {
        Header {
            version: GROUP_VERSION,
            flags: 0,
            segment: SegmentId(7),
            epoch: Epoch(2),
            group: 3,
            len_bytes: 500,
            directory_len_bytes: 40,
            body_crc: 0x0102_0304,
            salt: *b"0123456789abcdef",
            key: KeyNumber(0),
        }
    }

    #[test]
    fn golden_group_header() {
        let bytes = header().encode();
        assert_eq!(
            bytes[..60],
            *b"SRG1\x02\0\0\0\x07\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\xf4\x01\0\0\x28\0\0\0\x04\x03\x02\x01\
               0123456789abcdef\0\0\0\0",
            "on-disk bytes changed: bump FORMAT_VERSION and add a vault to tests/vaults/"
        );
        assert_eq!(Header::decode(&bytes), Ok(header()));
        assert_eq!((header().directory(), header().table_start(), header().blocks()), (456..496, 496, 1));
    }

    #[test]
    fn golden_group_header_of_version_1() {
        let header = Header { version: GROUP_VERSION_1, ..header() };
        let bytes = header.encode();
        assert_eq!(bytes[..8], *b"SRG1\x01\0\0\0", "old vaults must open for ever");
        assert_eq!(Header::decode(&bytes), Ok(header));
        assert_eq!((header.directory(), header.table_start()), (460..500, 500));
        for version in [0, 5] {
            let bytes = Header { version, ..header }.encode();
            assert_eq!(Header::decode(&bytes), malformed("group version"));
        }
    }

    #[test]
    fn golden_group_header_that_names_its_key() {
        let header = Header { version: GROUP_VERSION_KEYED, flags: SEALED_ANEW, key: KeyNumber(258), ..header() };
        let bytes = header.encode();
        assert_eq!(bytes[..8], *b"SRG1\x03\0\x01\0", "on-disk bytes changed: bump FORMAT_VERSION");
        assert_eq!(bytes[40..60], *b"0123456789abcdef\x02\x01\0\0");
        assert_eq!(Header::decode(&bytes), Ok(header));
        assert_eq!((header.directory(), header.bound()), (456..496, (Ino(1), 500)));
        let bare = Header { flags: SEALED_ANEW | NO_TABLE, ..header };
        assert_eq!(Header::decode(&bare.encode()), Ok(bare));
        assert_eq!((bare.directory(), bare.table_start()), (460..500, 500), "as in version 1");
        for (wrong, what) in [
            (Header { key: KeyNumber(0), ..header }, "group key"),
            (Header { version: GROUP_VERSION, ..header }, "group flags"),
            (Header { version: GROUP_VERSION, flags: 0, ..header }, "group key"),
            (Header { version: GROUP_VERSION_1, flags: 0, ..header }, "group key"),
            (Header { flags: NO_TABLE, ..header }, "group flags"),
            (Header { flags: 4, ..header }, "group flags"),
        ] {
            assert_eq!(Header::decode(&wrong.encode()), malformed(what), "{wrong:?}");
        }
    }

    #[test]
    fn golden_group_header_of_a_snapshot() {
        for (key, stored) in [(0, [0, 0]), (258, [2, 1])] {
            let header = Header { version: GROUP_VERSION_SNAPSHOT, key: KeyNumber(key), ..header() };
            let bytes = header.encode();
            assert_eq!(bytes[..8], *b"SRG1\x04\0\0\0", "on-disk bytes changed: bump FORMAT_VERSION");
            assert_eq!(bytes[56..60], [stored[0], stored[1], 0, 0]);
            assert_eq!(Header::decode(&bytes), Ok(header));
            assert!(header.is_of_snapshot() && header.has_table() && !header.is_sealed_anew());
            let flagged = Header { flags: SEALED_ANEW, ..header };
            assert_eq!(Header::decode(&flagged.encode()), malformed("group flags"));
        }
        assert!(!header().is_of_snapshot());
    }

    #[test]
    fn golden_table() {
        // 64 of header, 8,200 of frames and directory, an entry for each of three blocks.
        let before = HEADER_BYTES + 8200;
        assert_eq!(table_len_bytes(before), 12);
        let group: Vec<u8> = (0..before).map(|i| i as u8).collect();
        let seed = crc_seed(b"0123456789abcdef");
        let table: Vec<u32> = (0..3).map(|block| block_crc(&group, block, before, seed)).collect();
        assert_eq!(table, GOLDEN_TABLE, "on-disk bytes changed: bump FORMAT_VERSION and add a vault to tests/vaults/");
        let bytes: Vec<u8> = table.iter().flat_map(|crc| crc.to_le_bytes()).collect();
        assert_eq!(table_crc(&bytes, seed), GOLDEN_TABLE_CRC);
        // A block with nothing before the table has the seed's own value.
        assert_eq!((seed, block_crc(&group[..4092], 1, 4092, seed)), (crc32fast::hash(b"0123456789abcdef"), seed));
    }

    #[test]
    fn the_table_has_an_entry_for_each_block_that_the_group_with_it_touches() {
        for before in (HEADER_BYTES + 17..20_000).chain(GROUP_BYTES_MAX - 5000..GROUP_BYTES_MAX) {
            let len_bytes = (before + table_len_bytes(before)) as u32;
            let header = Header { len_bytes, directory_len_bytes: 17, ..header() };
            assert_eq!(header.table_start(), before, "the reader finds the table where the writer began it");
        }
    }

    #[test]
    fn any_flipped_bit_of_a_header_is_refused() {
        let good = header().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn golden_directory_and_its_sum() {
        let e = Entry {
            kind: Kind::Data,
            codec: Codec::Lz4,
            slot: Slot(300),
            sealed_len_bytes: 100,
            plain_len_bytes: 200,
            ino: Ino(5),
            offset_bytes: 131_072,
        };
        let bytes = encode_directory(&[e]);
        assert_eq!(bytes, b"\x01\x11\xac\x02\x64\xc8\x01\x05\x80\x80\x08");
        assert_eq!(decode_directory(&bytes, 100), Ok(vec![e]));
        assert_eq!(decode_directory(&bytes, 99), malformed("directory sum"));
    }
}
