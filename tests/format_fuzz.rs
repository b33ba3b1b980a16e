//! Method: hand every decoder of `format` random bytes, and valid bytes with a change; where one accepts, encode what it
//! gave and compare with what it was given.
//! Promise: no decoder panics, none takes bytes that it does not account for, and each value has one spelling.
#![allow(clippy::unwrap_used)] // tests may

use proptest::collection::vec;
use proptest::prelude::*;
use strongroom::base::choice::{Codec, Compression, SuiteId};
use strongroom::base::id::{CommitSeq, Epoch, Generation, Ino, SegmentId, Slot, VaultId};
use strongroom::base::world::Time;
use strongroom::format::extent::{Extent, Run};
use strongroom::format::frame::Kind;
use strongroom::format::group::{self, Entry, HEADER_BYTES, decode_directory, encode_directory};
use strongroom::format::header::{Header, KeySlot, SlotKind};
use strongroom::format::inode::{CookieEntry, Inode, NameEntry};
use strongroom::format::key;
use strongroom::format::pin::Pin;
use strongroom::format::record::{Commit, Counters, Record};
use strongroom::format::root::Root;
use strongroom::format::segment::{Covered, LogPosition, SegmentInfo, Start};
use strongroom::format::setting::ScrubMark;
use strongroom::format::wire::{Reader, Write as _};

/// One change of some bytes.
#[derive(Debug, Clone)]
enum Change {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, u8),
    Remove(prop::sample::Index),
    Append(Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    use prop::sample::Index;
    prop_oneof![
        3 => (any::<Index>(), any::<u8>()).prop_map(|(at, b)| Change::Set(at, b)),
        1 => any::<Index>().prop_map(Change::Cut),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(at, b)| Change::Insert(at, b)),
        1 => any::<Index>().prop_map(Change::Remove),
        1 => vec(any::<u8>(), 1..9).prop_map(Change::Append),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for c in changes {
        let room = bytes.len() + 1;
        match c {
            Change::Append(more) => bytes.extend_from_slice(more),
            Change::Insert(at, b) => bytes.insert(at.index(room), *b),
            Change::Cut(at) => bytes.truncate(at.index(room)),
            Change::Set(at, b) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *b;
            }
            Change::Remove(at) if !bytes.is_empty() => {
                bytes.remove(at.index(bytes.len()));
            }
            Change::Set(..) | Change::Remove(_) => {}
        }
    }
    bytes
}

/// A decoder, then the encoder of what it gave; `None` for a refusal.
type Again = fn(&[u8]) -> Option<Vec<u8>>;

/// Every decoder that takes a whole value.
const WHOLE: [(&str, Again); 11] = [
    ("extent", |b| Extent::decode(b).ok().map(|v| v.encode())),
    ("root", |b| Root::decode(b).ok().map(|v| v.encode())),
    ("log position", |b| LogPosition::decode(b).ok().map(|v| v.encode().to_vec())),
    ("covered", |b| Covered::decode(b).ok().map(|v| v.encode())),
    ("segment info", |b| SegmentInfo::decode(b).ok().map(|v| v.encode())),
    ("inode", |b| Inode::decode(b).ok().map(|v| v.encode())),
    ("name entry", |b| NameEntry::decode(b).ok().map(|v| v.encode())),
    ("cookie entry", |b| CookieEntry::decode(b).ok().map(|v| v.encode())),
    ("scrub mark", |b| ScrubMark::decode(b).ok().map(|v| v.encode())),
    ("commit", |b| Commit::decode(b).ok().map(|v| v.encode())),
    ("records", |b| {
        let (mut r, mut out) = (Reader::new(b), Vec::new());
        while !r.is_empty() {
            Record::decode(&mut r).ok()?.encode_to(&mut out);
        }
        Some(out)
    }),
];

/// What every decoder owes to any bytes.
fn judge(bytes: &[u8]) {
    for (what, again) in WHOLE {
        if let Some(encoded) = again(bytes) {
            assert_eq!(encoded, bytes, "{what} has two spellings, or left bytes unread");
        }
    }
    if let Ok(header) = group::Header::decode(bytes) {
        assert_eq!(header.encode(), bytes[..HEADER_BYTES], "group header");
        let directory = header.directory();
        assert!(HEADER_BYTES <= directory.start && directory.end == header.table_start(), "group header");
        assert!(header.table_start() <= header.len_bytes as usize && header.len_bytes <= 1 << 20, "group header");
    }
    if let Ok((kind, n, rest)) = key::split(bytes) {
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
    if let Ok(start) = Start::decode(bytes) {
        // Format 1 had the position alone.
        let first = start.after.encode() == bytes;
        assert!(first && !start.restarts || start.encode() == bytes, "start");
    }
    if let Ok(root) = Root::decode_1(bytes) {
        assert!(bytes.len() == 73 && root.emergency.is_empty(), "root of version 1");
    }
    // With any claim of what the frames add up to.
    for sum in [0, 16, bytes.len(), 1 << 20] {
        judge_directory(bytes, sum);
    }
    judge_pin(bytes);
    if let Ok((header, mac)) = Header::parse(bytes) {
        let text = header.to_text(&mac).expect("what was parsed can be written");
        let (read, code) = Header::parse(&text).expect("what was written can be parsed");
        assert_eq!((read.canonical(), code), (header.canonical(), mac), "vault.toml");
        assert_eq!(read, header, "vault.toml");
    }
}

/// A pin is text.
fn judge_pin(bytes: &[u8]) -> bool {
    let read = Pin::parse(bytes);
    if let Ok((pin, mac)) = &read {
        assert_eq!(pin.to_text(mac).as_bytes(), bytes, "pin");
    }
    read.is_ok()
}

fn judge_directory(bytes: &[u8], sum: usize) {
    if let Ok(entries) = decode_directory(bytes, sum) {
        assert_eq!(encode_directory(&entries), bytes, "directory");
        assert_eq!(entries.iter().map(|e| e.sealed_len_bytes as usize).sum::<usize>(), sum);
    }
}

fn codec() -> impl Strategy<Value = Codec> {
    prop_oneof![Just(Codec::Raw), Just(Codec::Lz4), Just(Codec::Zstd)]
}

/// Small and large numbers alike.
fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64u32).prop_map(|(n, shift)| n >> shift)
}

fn extent() -> impl Strategy<Value = Extent> {
    let lens = (12u8..=17, 1u32..=131_072, any::<prop::sample::Index>(), any::<prop::sample::Index>());
    (codec(), number(), number(), 0u32..1 << 30, lens, any::<u64>()).prop_map(
        |(codec, segment, position, slot, (unit_log2, plain, a, b), seed)| {
            let unit = 1u32 << unit_log2;
            let sealed = |i: u32| {
                let most = unit.min(plain - i * unit) + 16;
                if codec == Codec::Raw { most } else { 16 + (seed.rotate_left(i) as u32) % (most - 15) }
            };
            let run = Run {
                segment: SegmentId(segment),
                position_bytes: position >> 1,
                slot: Slot(slot),
                codec,
                unit_log2,
                plain_len_bytes: plain,
                sealed_lens: (0..plain.div_ceil(unit)).map(sealed).collect(),
            };
            let skip_bytes = a.index(plain as usize) as u32;
            Extent { len_bytes: 1 + b.index((plain - skip_bytes) as usize) as u32, skip_bytes, run }
        },
    )
}

fn directory() -> impl Strategy<Value = Vec<Entry>> {
    let kind = prop_oneof![Just(Kind::Data), Just(Kind::Records), Just(Kind::Commit), Just(Kind::Start)];
    let entry = (kind, codec(), any::<u32>(), 16u32..200_000, number(), number(), number());
    vec(
        entry.prop_map(|(kind, codec, slot, sealed_len_bytes, plain, ino, offset)| {
            let data = kind == Kind::Data;
            Entry {
                kind,
                codec,
                slot: Slot(slot),
                sealed_len_bytes,
                plain_len_bytes: plain as u32,
                ino: Ino(if data { ino } else { 0 }),
                offset_bytes: if data { offset } else { 0 },
            }
        }),
        0..12,
    )
}

fn records() -> impl Strategy<Value = Vec<u8>> {
    let bytes = || vec(any::<u8>(), 0..40);
    let one = prop_oneof![
        (bytes(), bytes()).prop_map(|(key, value)| encoded(&Record::Put { key: &key, value: &value })),
        bytes().prop_map(|key| encoded(&Record::Delete { key: &key })),
        (number(), number(), extent()).prop_map(|(ino, offset_bytes, extent)| {
            encoded(&Record::Install { ino: Ino(ino), offset_bytes, extent: &extent.encode() })
        }),
        (number(), 0..u64::MAX).prop_map(|(ino, from_bytes)| {
            encoded(&Record::Punch { ino: Ino(ino), from_bytes, to_bytes: u64::MAX })
        }),
    ];
    vec(one, 0..6).prop_map(|all| all.concat())
}

fn encoded(record: &Record<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    record.encode_to(&mut out);
    out
}

fn position() -> impl Strategy<Value = LogPosition> {
    (number(), any::<[u8; 32]>()).prop_map(|(seq, chain)| LogPosition { seq: CommitSeq(seq), chain })
}

fn start() -> impl Strategy<Value = Vec<u8>> {
    (position(), any::<bool>()).prop_map(|(after, restarts)| Start { after, restarts }.encode())
}

fn counters() -> impl Strategy<Value = Counters> {
    (number(), number(), number()).prop_map(|(next_ino, next_cookie, inodes)| Counters {
        next_ino,
        next_cookie,
        inodes,
    })
}

fn commit() -> impl Strategy<Value = Vec<u8>> {
    (position(), any::<u32>(), counters(), records()).prop_map(|(p, frames, counters, records)| {
        Commit { seq: p.seq, frames, chain: p.chain, counters, records: &records }.encode()
    })
}

fn root() -> impl Strategy<Value = Root> {
    (position(), number(), number(), number(), any::<bool>(), "\\PC{0,20}").prop_map(
        |(covered, g, e, index_file, clean, emergency)| Root {
            generation: Generation(g),
            epoch: Epoch(e),
            covered,
            index_file,
            clean,
            emergency,
        },
    )
}

fn inode() -> impl Strategy<Value = Inode> {
    let time = (any::<i64>(), 0..1_000_000_000u32).prop_map(|(seconds, nanos)| Time { seconds, nanos });
    (any::<[u32; 5]>(), number(), number(), [time.clone(), time.clone(), time.clone(), time]).prop_map(
        |([mode, uid, gid, nlink, rdev], size, parent, [atime, mtime, ctime, btime])| {
            let parent = Ino(parent);
            Inode { mode, uid, gid, nlink, rdev, size, atime, mtime, ctime, btime, parent }
        },
    )
}

fn group_header() -> impl Strategy<Value = group::Header> {
    let lens = (17u32..5000, 0u32..1_000_000);
    let version = prop::sample::select(vec![group::GROUP_VERSION_1, group::GROUP_VERSION]);
    (version, number(), number(), any::<u32>(), lens, any::<u32>(), any::<[u8; 16]>()).prop_map(
        |(version, segment, epoch, group, (directory_len_bytes, frames), body_crc, salt)| {
            let (segment, epoch) = (SegmentId(segment), Epoch(epoch));
            let before = HEADER_BYTES as u32 + frames + directory_len_bytes;
            let table = if version == group::GROUP_VERSION { group::table_len_bytes(before as usize) } else { 0 };
            let len_bytes = before + table as u32;
            group::Header { version, segment, epoch, group, len_bytes, directory_len_bytes, body_crc, salt }
        },
    )
}

fn vault_toml() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        Just(SlotKind::KeyFile),
        (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(memory_kib, passes, lanes)| SlotKind::Passphrase {
            memory_kib,
            passes,
            lanes
        }),
    ];
    let slot = (kind, "\\PC{0,20}", any::<i64>(), any::<([u8; 16], [u8; 24], [u8; 32])>(), any::<u8>());
    let quota = || proptest::option::of(0..=i64::MAX as u64);
    let suite = prop_oneof![Just(SuiteId::Aes256Gcm), Just(SuiteId::ChaCha20Poly1305)];
    let compression = prop::sample::select(Compression::ALL);
    let top = (any::<[u8; 16]>(), suite, compression, quota(), quota(), any::<i64>(), any::<[u8; 32]>());
    (1u16..=2, top, vec(slot, 1..4)).prop_map(
        |(format, (vault, suite, compression, quota_bytes, quota_inodes, created_s, mac), slots)| {
            let slots =
                slots.into_iter().zip(1..).map(|((kind, label, created_s, (salt, nonce, commitment), w), id)| {
                    KeySlot { id, kind, label, created_s, salt, nonce, commitment, wrapped: [w; 48] }
                });
            let vault = VaultId(vault);
            let slots = slots.collect();
            let header = Header { format, vault, suite, compression, quota_bytes, quota_inodes, created_s, slots };
            header.to_text(&mac).expect("valid values can be written")
        },
    )
}

/// Valid bytes of one kind or another.
fn valid() -> impl Strategy<Value = Vec<u8>> {
    let name = (number(), number(), any::<u8>());
    prop_oneof![
        extent().prop_map(|v| v.encode()),
        records(),
        commit(),
        root().prop_map(|v| v.encode()),
        position().prop_map(|v| v.encode().to_vec()),
        start(),
        (position(), counters(), number())
            .prop_map(|(position, counters, s)| { Covered { position, counters, replay_from: SegmentId(s) }.encode() }),
        inode().prop_map(|v| v.encode()),
        name.prop_map(|(ino, cookie, kind)| NameEntry { ino: Ino(ino), cookie, kind }.encode()),
        (number(), any::<u8>(), vec(any::<u8>(), 0..20)).prop_map(|(ino, kind, name)| CookieEntry {
            ino: Ino(ino),
            kind,
            name
        }
        .encode()),
        (any::<bool>(), number(), number(), number(), any::<i64>()).prop_map(
            |(under_way, ino, n, damaged, finished_s)| {
                let (ino, offset_bytes, done_bytes) = (Ino(ino), n, n / 2);
                ScrubMark { under_way, ino, offset_bytes, done_bytes, damaged, finished_s }.encode()
            }
        ),
        (number(), any::<[u8; 16]>(), number(), number()).prop_map(|(epoch, salt, data_bytes, live_bytes)| {
            SegmentInfo { epoch: Epoch(epoch), salt, data_bytes, live_bytes }.encode()
        }),
        group_header().prop_map(|v| v.encode().to_vec()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_a_value_or_a_refusal(bytes in vec(any::<u8>(), 0..200)) {
        judge(&bytes);
    }

    #[test]
    fn bytes_of_few_values_reach_deeper_and_are_judged_alike(bytes in vec(0u8..6, 0..120)) {
        judge(&bytes);
    }

    #[test]
    fn valid_bytes_are_accepted_by_someone_and_changed_ones_never_twice_spelt(
        bytes in valid(),
        changes in vec(change(), 1..4),
    ) {
        let accepted = WHOLE.iter().any(|(_, again)| again(&bytes).is_some());
        prop_assert!(accepted || group::Header::decode(&bytes).is_ok());
        judge(&bytes);
        judge(&changed(bytes, &changes));
    }

    #[test]
    fn a_pin_is_read_back_and_has_one_spelling(
        vault in any::<[u8; 16]>(), numbers in (number(), number(), number()), mac in any::<[u8; 32]>(),
        changes in vec(change(), 1..4), digits in "[0-9 \\n]{0,6}", at in any::<prop::sample::Index>(),
    ) {
        let (generation, epoch, commit) = (Generation(numbers.0), Epoch(numbers.1), CommitSeq(numbers.2));
        let pin = Pin { vault: VaultId(vault), generation, epoch, commit };
        let text = pin.to_text(&mac).into_bytes();
        prop_assert_eq!(Pin::parse(&text), Ok((pin, mac)));
        let mut more = text.clone();
        let at = at.index(text.len());
        more.splice(at..at, digits.bytes());
        judge_pin(&more);
        judge_pin(&changed(text, &changes));
    }

    #[test]
    fn bytes_behind_a_value_of_known_length_are_refused(
        extent in extent(), root in root(), inode in inode(), position in position(), tail in vec(any::<u8>(), 1..20),
    ) {
        let behind = |bytes: &[u8]| [bytes, &tail].concat();
        prop_assert!(Extent::decode(&extent.encode()).is_ok() && Extent::decode(&behind(&extent.encode())).is_err());
        prop_assert!(Root::decode(&root.encode()).is_ok() && Root::decode(&behind(&root.encode())).is_err());
        prop_assert!(Inode::decode(&inode.encode()).is_ok() && Inode::decode(&behind(&inode.encode())).is_err());
        prop_assert!(LogPosition::decode(&behind(&position.encode())).is_err());
        let covered = Covered { position, counters: Counters::default(), replay_from: SegmentId(1) };
        prop_assert_eq!(Covered::decode(&covered.encode()), Ok(covered));
        prop_assert!(Covered::decode(&behind(&covered.encode())).is_err());
        let name = NameEntry { ino: Ino(1), cookie: 3, kind: 8 };
        prop_assert!(NameEntry::decode(&behind(&name.encode())).is_err());
        let info = SegmentInfo { epoch: Epoch(1), salt: [2; 16], data_bytes: 3, live_bytes: 4 };
        prop_assert!(SegmentInfo::decode(&behind(&info.encode())).is_err());
    }

    #[test]
    fn a_directory_accounts_for_every_byte(entries in directory(), changes in vec(change(), 1..4)) {
        let bytes = encode_directory(&entries);
        let sum = entries.iter().map(|e| e.sealed_len_bytes as usize).sum();
        prop_assert_eq!(decode_directory(&bytes, sum), Ok(entries));
        prop_assert!(decode_directory(&[&bytes[..], &[0]].concat(), sum).is_err());
        prop_assert!(decode_directory(&bytes, sum + 1).is_err());
        judge_directory(&changed(bytes, &changes), sum);
    }

    #[test]
    fn a_group_header_with_a_right_checksum_is_still_judged(header in group_header(), changes in vec(change(), 1..4)) {
        let mut bytes = changed(header.encode().to_vec(), &changes);
        bytes.resize(HEADER_BYTES, 0);
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        judge(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_vault_header_is_read_as_it_was_written_and_changed_ones_are_judged(
        text in vault_toml(),
        changes in vec(change(), 1..4),
    ) {
        prop_assert!(Header::parse(&text).is_ok());
        prop_assert!(Header::parse(&[&text[..], b"x"].concat()).is_err(), "text behind it");
        judge(&text);
        judge(&changed(text, &changes));
    }
}
