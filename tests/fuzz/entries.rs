//! One function for each thing that is read from disk: what it owes to any bytes at all.
//!
//! Promise: an error or a value, never a panic, an endless loop, gigabytes of memory or wrong plaintext; and a value accounts
//! for the bytes that it was read from: encoded again, it is the same bytes.
//! How: small decoders take the bytes themselves. What lies behind checksums and keys takes them as a list of edits of a
//! healthy file, index or vault (`Edits`), for random bytes would not come past the door.
//! Called by: `tests/format_fuzz.rs` with random and with changed valid bytes, and by the fuzz targets, one for each entry.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use strongroom::backing::{Backing, BackingFile, Cache, MemoryBacking, Open};
use strongroom::base::choice::{Codec, SuiteId};
use strongroom::base::id::{CommitSeq, Epoch, Ino, KeyNumber, SegmentId, VaultId};
use strongroom::base::limits::{BLOCK_BYTES, GROUP_BYTES_MAX};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::format::acl::Acl;
use strongroom::format::extent::Extent;
use strongroom::format::group::{self, HEADER_BYTES, decode_directory, encode_directory};
use strongroom::format::header::Header;
use strongroom::format::holders::Holders;
use strongroom::format::inode::{CookieEntry, Inode, NameEntry};
use strongroom::format::key;
use strongroom::format::pin::{Moved, Pin, parse_moved};
use strongroom::format::quota::{Account, Entry as Quota, state_key};
use strongroom::format::record::{Commit, Counters, Record};
use strongroom::format::root::Root;
use strongroom::format::segment::{Covered, LogPosition, SegmentInfo, Start};
use strongroom::format::setting::ScrubMark;
use strongroom::format::snapshot::{End, Entries, holds, push_entry};
use strongroom::format::wire::{Reader, Write as _};
use strongroom::index::{Changes, IndexFault, RedbTable, Table};
use strongroom::seal::{MasterKey, Unlock, VaultKeys, decompress, open_header, open_pin, read_header};
use strongroom::segment::{
    SNAPSHOTS, SegmentContext, Shapes, SnapshotReader, SnapshotWriter, Unreadable, Walk, parse_file_name, path,
};
use strongroom::vault::{CreateOptions, OpenOptions, Vault, create, open};

/// Judges some bytes; says whether they were taken for a value.
pub type Entry = fn(&[u8]) -> bool;

/// Everything that is read from disk. `tests/fuzz/Cargo.toml` has a target of the same name for each.
pub const ENTRIES: &[(&str, Entry)] = &[
    ("vault_toml", vault_toml),
    ("pin", pin),
    ("root", root),
    ("position", position),
    ("inode", inode),
    ("acl", acl),
    ("extent", extent),
    ("key", index_key),
    ("records", records),
    ("commit", commit),
    ("group", group_header),
    ("directory", directory),
    ("frame", frame),
    ("shapes", shapes),
    ("walk", walk),
    ("index", index),
    ("values", values),
    ("vault", vault),
    ("snapshot_entries", snapshot_entries),
    ("snapshot", snapshot),
];

/// The one of that name.
pub fn entry(name: &str) -> Entry {
    ENTRIES.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no entry is called {name}")).1
}

/// A value encoded again is the bytes that it was read from.
fn same<E>(read: Result<Vec<u8>, E>, bytes: &[u8], what: &str) -> bool {
    let Ok(again) = read else { return false };
    assert!(again == bytes, "{what} has two spellings, or left bytes unread");
    true
}

fn vault_toml(bytes: &[u8]) -> bool {
    let read = Header::parse(bytes);
    if let Ok((header, mac)) = &read {
        let text = header.to_text(mac).expect("what was parsed can be written");
        let (again, code) = Header::parse(&text).expect("what was written can be parsed");
        assert_eq!((again.canonical(), code), (header.canonical(), *mac));
        assert_eq!(again, *header);
    }
    // Costs beyond the ceiling are refused before they are paid; a key file pays none.
    let _ = read_header(bytes);
    assert!(bytes == base().toml || open_header(bytes, &unlock()).is_err(), "a header that nobody wrote was believed");
    read.is_ok()
}

fn pin(bytes: &[u8]) -> bool {
    let text = Pin::parse(bytes).and_then(|(pin, mac)| {
        let moved: String = parse_moved(bytes)?.iter().map(Moved::to_line).collect();
        Ok((pin.to_text(&mac) + &moved).into_bytes())
    });
    let read = same(text, bytes, "pin");
    let (vault, master) = (VaultId([1; 16]), MasterKey::from_secret(strongroom::base::secret::Secret::from([2; 32])));
    assert!(open_pin(bytes, vault, &master).is_err(), "a pin that nobody wrote was believed");
    read
}

fn root(bytes: &[u8]) -> bool {
    let read = same(Root::decode(bytes).map(|v| v.encode()), bytes, "root");
    if let Ok(root) = Root::decode_2(bytes) {
        let written = Root::decode(&root.encode());
        assert!(root.header.is_none() && written == Ok(root), "a root of version 2 can be written");
    }
    let Ok(root) = Root::decode_1(bytes) else { return read };
    assert!(
        root.emergency.is_empty() && Root::decode(&root.encode()) == Ok(root),
        "a root of version 1 can be written"
    );
    true
}

fn position(bytes: &[u8]) -> bool {
    let reads = [
        same(LogPosition::decode(bytes).map(|v| v.encode().to_vec()), bytes, "log position"),
        same(Covered::decode(bytes).map(|v| v.encode()), bytes, "covered"),
        same(SegmentInfo::decode(bytes).map(|v| v.encode()), bytes, "segment info"),
        // In format 1 a segment's start is the position alone.
        Start::decode(bytes).is_ok_and(|start| {
            assert!(start.encode() == bytes || start.encode() == [bytes, &[0]].concat(), "segment start");
            true
        }),
        // The names of segments and of index files.
        str::from_utf8(bytes).ok().and_then(parse_file_name).is_some_and(|id| {
            assert_eq!(strongroom::segment::file_name(id).as_bytes(), bytes);
            true
        }),
    ];
    reads.contains(&true)
}

fn inode(bytes: &[u8]) -> bool {
    let reads = [
        same(Inode::decode(bytes).map(|v| v.encode()), bytes, "inode"),
        same(NameEntry::decode(bytes).map(|v| v.encode()), bytes, "name entry"),
        same(CookieEntry::decode(bytes).map(|v| v.encode()), bytes, "cookie entry"),
        same(ScrubMark::decode(bytes).map(|v| v.encode()), bytes, "scrub mark"),
        same(Quota::decode(&state_key(), bytes).map(encoded), bytes, "quota state"),
        same(Quota::decode(&Account::Tree(1).limits_key(), bytes).map(encoded), bytes, "quota tree"),
        same(Quota::decode(&Account::User(1).limits_key(), bytes).map(encoded), bytes, "quota limits"),
        same(Quota::decode(&Account::Group(1).used_key(), bytes).map(encoded), bytes, "quota use"),
        same(Holders::decode(bytes).map(|v| v.encode()), bytes, "holders"),
    ];
    reads.contains(&true)
}

fn acl(bytes: &[u8]) -> bool {
    same(Acl::decode(bytes).map(|v| v.encode()), bytes, "acl")
}

fn extent(bytes: &[u8]) -> bool {
    let Ok(extent) = Extent::decode(bytes) else { return false };
    assert!(extent.encode() == bytes, "extent has two spellings, or left bytes unread");
    let frames: u64 = extent.run.frames().map(|f| u64::from(f.plain_len_bytes)).sum();
    assert_eq!(frames, u64::from(extent.run.plain_len_bytes), "the frames of a run are all of it");
    true
}

fn index_key(bytes: &[u8]) -> bool {
    let read = key::split(bytes);
    if let Ok((kind, n, rest)) = read {
        assert_eq!([&key::prefix(kind, n)[..], rest].concat(), bytes, "key");
        if let Ok(tail) = key::tail_u64(rest) {
            assert_eq!(tail.to_be_bytes(), rest, "key tail");
        }
    }
    let mut r = Reader::new(bytes);
    if let Ok(n) = r.varint("n") {
        let mut out = Vec::new();
        out.varint(n);
        assert_eq!(out, bytes[..bytes.len() - r.rest().len()], "varint");
    }
    read.is_ok()
}

fn records(bytes: &[u8]) -> bool {
    let mut r = Reader::new(bytes);
    let mut out = Vec::new();
    while !r.is_empty() {
        let before = r.rest().len();
        let Ok(record) = Record::decode(&mut r) else { return false };
        assert!(r.rest().len() < before, "a record takes bytes");
        record.encode_to(&mut out);
    }
    assert!(out == bytes, "records have two spellings");
    true
}

fn commit(bytes: &[u8]) -> bool {
    same(Commit::decode(bytes).map(|v| v.encode()), bytes, "commit")
}

fn group_header(bytes: &[u8]) -> bool {
    let judge = |bytes: &[u8]| {
        let Ok(header) = group::Header::decode(bytes) else { return false };
        assert_eq!(header.encode(), bytes[..HEADER_BYTES], "group header");
        let directory = header.directory();
        assert!(HEADER_BYTES <= directory.start && directory.end == header.table_start(), "group header");
        assert!(header.table_start() <= header.len_bytes as usize, "group header");
        assert!(header.len_bytes as usize <= GROUP_BYTES_MAX, "group header");
        true
    };
    let read = judge(bytes);
    // And with a checksum that is right.
    let mut head = bytes.to_vec();
    head.resize(HEADER_BYTES, 0);
    head[..4].copy_from_slice(&group::MAGIC);
    let crc = crc32fast::hash(&head[..60]);
    head[60..].copy_from_slice(&crc.to_le_bytes());
    judge(&head) || read
}

fn directory(bytes: &[u8]) -> bool {
    let judge = |bytes: &[u8], sum: usize| {
        let Ok(entries) = decode_directory(bytes, sum) else { return false };
        assert_eq!(encode_directory(&entries), bytes, "directory");
        assert_eq!(entries.iter().map(|e| e.sealed_len_bytes as usize).sum::<usize>(), sum);
        true
    };
    // With any claim of what the frames add up to, and with one of the bytes' own choice.
    let mut read = [0, 16, bytes.len(), 1 << 20].map(|sum| judge(bytes, sum)).contains(&true);
    if let Some((claim, rest)) = bytes.split_first_chunk::<3>() {
        read |= judge(rest, usize::from(claim[0]) | usize::from(claim[1]) << 8 | usize::from(claim[2]) << 16);
    }
    read
}

/// First byte: the codec; then three of the length that is claimed; then what was compressed.
fn frame(bytes: &[u8]) -> bool {
    let Some((head, packed)) = bytes.split_first_chunk::<4>() else { return false };
    let codec = [Codec::Raw, Codec::Lz4, Codec::Zstd][usize::from(head[0]) % 3];
    let claim = u32::from_le_bytes([head[1], head[2], head[3], 0]) as usize;
    [claim, claim % 4096]
        .map(|plain_len| {
            let mut out = b"before".to_vec();
            let read = decompress(codec, packed, plain_len, &mut out);
            assert!(out.starts_with(b"before"));
            assert_eq!(out.len(), 6 + if read.is_ok() { plain_len } else { 0 }, "exactly what was claimed, or nothing");
            read.is_ok()
        })
        .contains(&true)
}

/// Edits of stored bytes: 8 bytes each.
pub struct Edits<'a>(pub &'a [u8]);

impl Edits<'_> {
    /// Applies them to files, each found by the first byte of an edit; more than 16 are not.
    fn apply(&self, disk: &MemoryBacking, names: &[String]) {
        for e in self.0.chunks_exact(8).take(16) {
            let name = &names[usize::from(e[0]) % names.len()];
            // Gone already.
            let Ok(file) = disk.open(name, Open::Write, Cache::Buffered) else { continue };
            edit(disk, name, &*file, e).expect("a disk in memory does not fail");
        }
    }
}

fn edit(disk: &MemoryBacking, name: &str, file: &dyn BackingFile, e: &[u8]) -> std::io::Result<()> {
    let len = file.len()?;
    let place = u64::from(u32::from_le_bytes([e[2], e[3], e[4], 0])) * 8;
    let (at, block) = (place % len.max(1), BLOCK_BYTES as u64);
    let copy = |from: u64, to: u64| {
        let mut bytes = vec![0; BLOCK_BYTES];
        let got = file.read_at(&mut bytes, from)?;
        file.write_all_at(&bytes[..got], to)
    };
    let blocks = (len / block).max(1);
    match e[1] % 8 {
        // A bit, a few bytes, a block of zeros.
        0 if len > 0 => disk.flip_bit(name, (at + u64::from(e[5])).min(len - 1) * 8 + u64::from(e[6] % 8)),
        1 | 2 => file.write_all_at(&e[5..8], at)?,
        3 => file.write_all_at(&vec![0; BLOCK_BYTES], at / block * block)?,
        // One block in another's place: each of them is whole.
        4 => copy(at / block * block, u64::from(e[5]) % blocks * block)?,
        5 => copy(at / block * block, (at / block + 1) * block)?,
        6 => file.set_len(at + u64::from(e[5]))?,
        7 if e[5] == 0 => disk.remove(name)?,
        _ => file.write_all_at(&[e[5]; 64], at)?,
    }
    Ok(())
}

/// Groups of the bytes' own making, with checksums that are right: 8 bytes each.
fn shapes(bytes: &[u8]) -> bool {
    let disk = MemoryBacking::default();
    let file = disk.open("s", Open::Create, Cache::Buffered).expect("a disk in memory does not fail");
    for g in bytes.chunks_exact(8).take(64) {
        let (version, flags, key) = match g[6] & 7 {
            flags @ (0 | 1 | 3) => (group::GROUP_VERSION_KEYED, u16::from(flags), KeyNumber(u16::from(g[4] & 1) + 1)),
            _ if g[0] & 1 == 0 => (group::GROUP_VERSION, 0, KeyNumber(0)),
            _ => (group::GROUP_VERSION_1, 0, KeyNumber(0)),
        };
        let header = group::Header {
            version,
            flags,
            segment: SegmentId(u64::from(g[0] >> 1 & 1)),
            epoch: Epoch(u64::from(g[0] >> 2 & 1)),
            group: if g[1] == 255 { u32::MAX } else { u32::from(g[1]) },
            len_bytes: (u32::from(g[2]) | u32::from(g[3]) << 8) << 4 | u32::from(g[0] >> 4),
            directory_len_bytes: u32::from(g[4]) | u32::from(g[5]) << 8,
            body_crc: u32::from(g[6]),
            salt: [g[0] >> 3 & 1; 16],
            key,
        };
        let at = u64::from(g[7]) * BLOCK_BYTES as u64;
        file.write_all_at(&header.encode(), at).expect("a disk in memory does not fail");
    }
    let refused = bytes.first().map_or(0, |b| u32::from(*b));
    let mut all = Shapes::new(Arc::clone(&file), SegmentId(0));
    let (mut count, mut end) = (0, 0);
    while let Some(shape) = all.next(|h, _| h.group != refused).expect("a disk in memory does not fail") {
        assert!(shape.position_bytes >= end && all.position_bytes() > shape.position_bytes, "it goes on");
        end = all.position_bytes();
        count += 1;
    }
    assert!(count <= 256 && end <= file.len().expect("a disk in memory does not fail") + BLOCK_BYTES as u64);
    count > 0
}

/// What a frame is sealed as: its segment, slot, inode and offset. Not its place in the segment: a group is good wherever the
/// walk finds it.
type Sealed = (u64, u32, u64, u64);

/// What the healthy vault was made from, and what it is on disk.
struct Base {
    /// As a clean end leaves it.
    closed: MemoryBacking,
    /// As a power cut leaves it, everything synced: with a log to replay.
    cut: MemoryBacking,
    toml: Vec<u8>,
    master: MasterKey,
    header: Header,
    /// Plaintext of each frame.
    frames: BTreeMap<Sealed, Vec<u8>>,
}

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![7; 64]))
}

fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

fn opened(disk: &MemoryBacking) -> Result<Arc<Vault>, strongroom::vault::OpenFault> {
    let mut state = 1usize;
    let next = move |n: usize, state: &mut usize| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) % n
    };
    let chooser = std::sync::Mutex::new(move |n| next(n, &mut state));
    let stepped = Arc::new(move |n| (chooser.lock().expect("it does not panic"))(n));
    let options = OpenOptions { budget_bytes: 8 << 20, workers: 1, stepped: Some(stepped), ..OpenOptions::default() };
    open(Arc::new(disk.clone()), &unlock(), &options, world())
}

/// Files, and the commit that each came with.
const FILES: u64 = 8;

fn data(n: u64) -> Vec<u8> {
    let line = |i: u64| format!("file {n}, line {i}: {}\n", (i * 7919 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let len = if n.is_multiple_of(3) { 150_000 } else { 3000 };
    (0..).flat_map(|i| line(i).into_bytes()).take(len).collect()
}

fn value(n: u64) -> Vec<u8> {
    vec![n as u8; 90]
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let disk = MemoryBacking::default();
        let backing: Arc<dyn Backing> = Arc::new(disk.clone());
        create(&backing, &unlock(), &CreateOptions::default(), &world()).expect("an empty directory takes a vault");
        let vault = opened(&disk).expect("a new vault opens");
        for n in 0..FILES {
            let (file, bytes) = (vault.file(Ino(1000 + n)), data(n));
            let room = vault.reserve(&file, 0, bytes.len() as u64).expect("there is room");
            let mut op = vault.begin();
            op.write(&file, 0, &bytes, room);
            op.put(key::inode(Ino(1000 + n)), value(n));
            op.commit();
            vault.sync_wait().expect("a disk in memory does not fail");
            if n == FILES / 4 {
                vault.snapshot().expect("a disk in memory does not fail");
            }
            if n == FILES / 2 {
                vault.checkpoint().expect("a disk in memory does not fail");
            }
        }
        let cut = trimmed(disk.crash(|_, _| true));
        vault.close().expect("a disk in memory does not fail");
        let closed = trimmed(disk.crash(|_, _| true));
        let toml = strongroom::backing::read_file(&closed, "vault.toml", 1 << 20).expect("it has a header");
        let (header, master) = open_header(&toml, &unlock()).expect("it was just made");
        let mut base = Base { closed, cut, toml, master, header, frames: BTreeMap::new() };
        base.frames = [&base.closed, &base.cut].into_iter().flat_map(|disk| frames(disk, &base)).collect();
        assert!(base.frames.len() > 20, "the healthy vault has frames");
        assert!([&base.closed, &base.cut].into_iter().all(|disk| judge_vault(&disk.crash(|_, _| true), true)));
        base
    })
}

/// Without the room that segments were given in advance: copies are faster so.
fn trimmed(disk: MemoryBacking) -> MemoryBacking {
    for name in segments(&disk) {
        let file = disk.open(&name, Open::Write, Cache::Buffered).expect("it was listed");
        let mut bytes = vec![0; file.len().expect("it is open") as usize];
        file.read_at(&mut bytes, 0).expect("it is open");
        let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
        file.set_len(used.next_multiple_of(BLOCK_BYTES) as u64).expect("it is open");
        file.sync_data().expect("it is open");
    }
    disk
}

fn segments(disk: &MemoryBacking) -> Vec<String> {
    let names = disk.list("segments").expect("a vault has segments");
    names.iter().filter_map(|n| parse_file_name(n)).map(path).collect()
}

/// Every frame of every segment that opens.
fn frames(disk: &MemoryBacking, base: &Base) -> Vec<(Sealed, Vec<u8>)> {
    let mut all = Vec::new();
    for name in disk.list("segments").expect("a vault has segments") {
        let Some(id) = parse_file_name(&name) else { continue };
        let Ok(file) = disk.open(&path(id), Open::Read, Cache::Buffered) else { continue };
        let mut walk = Walk::new(Arc::clone(&file), id, base.header.suite, base.header.vault);
        let (mut end, keys) = (0, VaultKeys::first(base.master.clone()));
        while let Some(group) = walk.next(&keys).expect("a disk in memory does not fail") {
            assert!(group.position_bytes >= end && walk.position_bytes() > group.position_bytes, "it goes on");
            end = walk.position_bytes();
            for frame in &group.frames {
                let mut plain = Vec::new();
                let e = frame.entry;
                match walk.open(frame, &mut plain) {
                    Ok(()) => all.push(((id.0, e.slot.0, e.ino.0, e.offset_bytes), plain)),
                    Err(Unreadable::Damaged { .. }) => {}
                    Err(Unreadable::Io(e)) => panic!("a disk in memory does not fail: {e}"),
                }
            }
        }
    }
    all
}

/// Whole segments with edits: what opens is what was sealed there.
fn walk(bytes: &[u8]) -> bool {
    let base = base();
    let mut seen = 0;
    for whole in [&base.closed, &base.cut] {
        let disk = whole.crash(|_, _| true);
        Edits(bytes).apply(&disk, &segments(&disk));
        for (at, plain) in frames(&disk, base) {
            assert!(base.frames.get(&at) == Some(&plain), "a frame opens to what was never sealed in it");
            seen += 1;
        }
    }
    seen > 0
}

const INDEX_ENTRIES: u64 = 500;

fn page_key() -> strongroom::seal::PageKey {
    let master = MasterKey::from_secret(strongroom::base::secret::Secret::from([5; 32]));
    master.pages(VaultId([1; 16]), "index", &[0; 16])
}

/// An index file with edits: each value is right, or not there, or an error is told.
fn index(bytes: &[u8]) -> bool {
    static INDEX: OnceLock<MemoryBacking> = OnceLock::new();
    let whole = INDEX.get_or_init(|| {
        let disk = MemoryBacking::default();
        let backing: Arc<dyn Backing> = Arc::new(disk.clone());
        let table = RedbTable::create(&backing, "i", page_key(), world(), 1 << 20).expect("there is nothing yet");
        let all: Vec<_> = (0..INDEX_ENTRIES).map(|n| (key::inode(Ino(n)), value(n))).collect();
        let changes: &mut Changes<'_> = &mut all.iter().map(|(k, v)| (&k[..], Some(&v[..])));
        table.apply(changes).expect("a disk in memory does not fail");
        drop(table);
        disk.crash(|_, _| true)
    });
    let disk = whole.crash(|_, _| true);
    Edits(bytes).apply(&disk, &["i".to_owned()]);
    let backing: Arc<dyn Backing> = Arc::new(disk);
    let table = match RedbTable::open(&backing, "i", page_key(), world(), 1 << 20) {
        Ok(table) => table,
        Err(IndexFault::Damaged(_)) => {
            assert!(!bytes.is_empty(), "a healthy index opens");
            return false;
        }
        Err(IndexFault::Io(e)) => panic!("damage is no failure of the disk: {e}"),
    };
    for n in 0..INDEX_ENTRIES {
        if let Ok(found) = table.get(&key::inode(Ino(n))) {
            assert!(found.is_none_or(|v| v == value(n)), "a value that nobody stored");
        }
    }
    if let Ok(all) = table.scan(&[], &[], INDEX_ENTRIES as usize * 2) {
        assert!(all.iter().all(|(k, v)| key::split(k).is_ok_and(|(_, n, _)| *v == value(n))));
    }
    true
}

/// A stream of entries, cut into pieces as its first byte says: what it gives, written again, is what was read.
fn snapshot_entries(bytes: &[u8]) -> bool {
    if let Ok(end) = End::decode(bytes) {
        assert!(end.encode() == bytes, "the end of a snapshot has two spellings");
    }
    let Some((piece, stream)) = bytes.split_first() else { return false };
    let (mut entries, mut again, mut last) = (Entries::default(), Vec::new(), None);
    for piece in stream.chunks(1 + usize::from(*piece)) {
        let taken = entries.take(piece, &mut |k, v| {
            assert!(last.as_deref().is_none_or(|last: &[u8]| last < k) && holds(k), "it is in order");
            last = Some(k.to_vec());
            push_entry(&mut again, k, v);
        });
        if taken.is_err() {
            assert!(stream.starts_with(&again), "what came before the damage is what was read");
            return false;
        }
    }
    same(entries.end().map(|_| again), stream, "a snapshot's entries")
}

const SNAPSHOT: CommitSeq = CommitSeq(9);

fn snapshot_keys() -> VaultKeys {
    VaultKeys::first(MasterKey::from_secret(strongroom::base::secret::Secret::from([5; 32])))
}

/// A snapshot with edits: it is what was written, whole, or an error is told.
fn snapshot(bytes: &[u8]) -> bool {
    static DISK: OnceLock<MemoryBacking> = OnceLock::new();
    let (suite, vault, all) = (SuiteId::Aes256Gcm, VaultId([1; 16]), 0..4000);
    let whole = DISK.get_or_init(|| {
        let (number, info) = (SegmentId(SNAPSHOT.0), SegmentInfo::empty(Epoch(1), [3; 16], KeyNumber(0)));
        let context =
            SegmentContext::of_snapshot(&snapshot_keys(), suite, vault, number, &info).expect("the first key");
        let position = LogPosition { seq: SNAPSHOT, chain: [7; 32] };
        let counters = Counters { next_ino: 1, next_cookie: 2, inodes: 3 };
        let mut writer = SnapshotWriter::new(context, &Covered { position, counters, replay_from: SegmentId(4) });
        all.clone().for_each(|n| writer.add(&key::inode(Ino(n)), &value(n)));
        writer.end();
        let disk = MemoryBacking::default();
        let file = disk.open("s", Open::Create, Cache::Buffered).expect("there is nothing yet");
        while let Some(group) = writer.take_group() {
            file.write_all_at(&group.image, group.position_bytes).expect("a disk in memory does not fail");
        }
        file.sync_data().expect("a disk in memory does not fail");
        disk.sync_dir("").expect("a disk in memory does not fail");
        disk
    });
    let disk = whole.crash(|_, _| true);
    Edits(bytes).apply(&disk, &["s".to_owned()]);
    let file = disk.open("s", Open::Read, Cache::Buffered).expect("it is there");
    let (mut reader, mut next) = (SnapshotReader::new(file, SNAPSHOT, suite, vault), 0);
    loop {
        let read = reader.next(&snapshot_keys(), &mut |k, v| {
            assert!(k == key::inode(Ino(next)) && v == value(next), "an entry that nobody wrote");
            next += 1;
        });
        match read {
            Ok(None) => {}
            Ok(Some(read)) => {
                assert!(next == all.end && read.end.entries == all.end, "it calls itself whole, and is not");
                return true;
            }
            Err(Unreadable::Damaged { .. }) => {
                assert!(!bytes.is_empty(), "a healthy snapshot is whole");
                return false;
            }
            Err(Unreadable::Io(e)) => panic!("damage is no failure of the disk: {e}"),
        }
    }
}

/// A whole vault with edits of any of its files: it opens or says why not, and what it gives is what was written.
fn vault(bytes: &[u8]) -> bool {
    let base = base();
    let Some((which, edits)) = bytes.split_first() else { return false };
    let whole = if which & 1 == 0 { &base.closed } else { &base.cut };
    let disk = whole.crash(|_, _| true);
    let mut names = segments(&disk);
    for (dir, name) in
        ["", "index", SNAPSHOTS].into_iter().flat_map(|d| disk.list(d).into_iter().flatten().map(move |n| (d, n)))
    {
        let name = if dir.is_empty() { name } else { format!("{dir}/{name}") };
        if disk.open(&name, Open::Read, Cache::Buffered).is_ok() && name != strongroom::vault::LOCK {
            names.push(name);
        }
    }
    Edits(edits).apply(&disk, &names);
    judge_vault(&disk, false)
}

/// A healthy vault in which a file has other bytes than it was given: what `judge_vault` must not let pass.
#[allow(dead_code, reason = "the fuzz targets plant no faults")]
pub fn vault_with_a_wrong_byte() -> MemoryBacking {
    let disk = base().closed.crash(|_, _| true);
    let vault = opened(&disk).expect("a healthy vault opens");
    let file = vault.file(Ino(1003));
    let room = vault.reserve(&file, 70_000, 1).expect("there is room");
    let mut op = vault.begin();
    op.write(&file, 70_000, b"\0", room);
    op.commit();
    vault.close().expect("a disk in memory does not fail");
    disk
}

/// What is stored as a setting, and as an extent of a file, is whatever it is: it does not keep a vault from being used.
fn values(bytes: &[u8]) -> bool {
    let disk = base().closed.crash(|_, _| true);
    let vault = opened(&disk).expect("a healthy vault opens");
    let mut op = vault.begin();
    for name in ["totals", "history", "scrub"] {
        op.put(key::setting(name), bytes.to_vec());
    }
    op.commit();
    vault.set_derived(vec![(key::extent(Ino(1001), 0), Some(bytes.to_vec()))]).expect("a disk in memory does not fail");
    vault.close().expect("a disk in memory does not fail");
    drop(vault);
    let vault = opened(&disk).expect("settings do not keep a vault from opening");
    let _ = (vault.totals(), vault.stats().history(), vault.scrub_report());
    let mut out = Vec::new();
    let read = vault.read(&vault.file(Ino(1001)), 0, 200_000, &mut out).is_ok();
    let (want, mut got) = (data(2), Vec::new());
    vault.read(&vault.file(Ino(1002)), 0, want.len(), &mut got).expect("another file is well");
    assert!(got == want, "another file is what it was");
    vault.close().expect("a disk in memory does not fail");
    read
}

/// All that a vault gives is right, and if it is healthy, it gives everything.
pub fn judge_vault(disk: &MemoryBacking, healthy: bool) -> bool {
    let vault = match opened(disk) {
        Ok(vault) => vault,
        Err(fault) => {
            assert!(!healthy, "a healthy vault opens: {fault}");
            return false;
        }
    };
    let said = !vault.stats().errors().is_empty() || vault.index_lost().is_some() || vault.lost_records() > 0;
    // What of each commit is there: its inode, its data; `None` for an error.
    let mut there = Vec::new();
    for n in 0..FILES {
        let found = vault.get(&key::inode(Ino(1000 + n))).ok();
        assert!(found.iter().flatten().all(|v| *v == value(n)), "inode {n} is not what was stored");
        there.push(found.map(|v| v.is_some()));
        let (want, mut got) = (data(n), Vec::new());
        let read = vault.read(&vault.file(Ino(1000 + n)), 0, want.len(), &mut got).ok().map(|()| got == want);
        // Where its commit is lost, nothing of it is there; holes are for what was never written.
        let hole = got.iter().all(|&b| b == 0);
        assert!(read != Some(false) || hole, "file {n} is neither what was written nor an error");
        there.push(read);
    }
    assert!(!healthy || there.iter().all(|t| *t == Some(true)), "a healthy vault has everything");
    // The end of a log may be cut off without a trace. What is missing before something that is there was damaged, and said.
    let newest = there.iter().rposition(|t| *t == Some(true)).unwrap_or(0);
    assert!(said || !there[..newest].contains(&Some(false)), "something is missing, and nothing is said: {there:?}");
    // What it opened to can be written to and closed, or it says why not.
    let _ = vault.close();
    true
}

/// A quota's entry as it is stored.
fn encoded(entry: Quota) -> Vec<u8> {
    match entry {
        Quota::State(state) => state.encode(),
        Quota::Tree(_, tree) => tree.encode(),
        Quota::Limits(_, limits) => limits.encode(),
        Quota::Used(_, used) => used.encode(),
    }
}
