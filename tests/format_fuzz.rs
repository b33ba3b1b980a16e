//! Method: hand everything that reads from disk (`fuzz/entries.rs`, which the fuzz targets share) random bytes, and valid
//! bytes with a change; where a decoder accepts, encode what it gave and compare with what it was given. Segments, index and
//! whole vaults are damaged in any of their files, opened, and read in full.
//! Promise: nothing panics, runs for ever or takes more memory than its like needs; no decoder takes bytes that it does not
//! account for, each value has one spelling, and what opens is what was written.
//! Sizes: `STRONGROOM_DAMAGED_VAULTS` (damaged segments, indexes and vaults each; default 60).
#![allow(clippy::unwrap_used)] // tests may

#[path = "fuzz/entries.rs"]
mod entries;

use entries::{ENTRIES, entry};
use proptest::collection::vec;
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use strongroom::base::choice::{Codec, Compression, SuiteId};
use strongroom::base::id::{CommitSeq, Epoch, Generation, Ino, KeyNumber, SegmentId, Slot, VaultId};
use strongroom::base::world::Time;
use strongroom::format::extent::{Extent, Origin, Run};
use strongroom::format::frame::Kind;
use strongroom::format::group::{self, Entry, HEADER_BYTES, decode_directory, encode_directory};
use strongroom::format::header::{Header, KEYS_FORMAT, KeySlot, OLD_KEYS_MAX, OldKey, REVISION_FORMAT, SlotKind};
use strongroom::format::inode::{CookieEntry, Inode, NameEntry};
use strongroom::format::leases::Leases;
use strongroom::format::pin::{Moved, Pin, parse_moved};
use strongroom::format::quota::{Limits, QuotaState, Tree, Used, Walk};
use strongroom::format::record::{Commit, Counters, Record};
use strongroom::format::root::{HeaderMark, Root};
use strongroom::format::segment::{Covered, LogPosition, SegmentInfo, Start};
use strongroom::format::setting::ScrubMark;
use strongroom::format::snapshot::{holds, push_entry};
use strongroom::seal::Compressor;

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

/// What every small decoder owes to any bytes; says who took them.
fn judge(bytes: &[u8]) -> Vec<&'static str> {
    ENTRIES.iter().filter(|(name, _)| !DEEP.contains(name)).filter(|(_, entry)| entry(bytes)).map(|(n, _)| *n).collect()
}

/// Those that take edits, and open an index or a whole vault each time.
const DEEP: [&str; 5] = ["walk", "index", "values", "vault", "snapshot"];

fn codec() -> impl Strategy<Value = Codec> {
    prop_oneof![Just(Codec::Raw), Just(Codec::Lz4), Just(Codec::Zstd)]
}

/// Small and large numbers alike.
fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64u32).prop_map(|(n, shift)| n >> shift)
}

fn extent() -> impl Strategy<Value = Extent> {
    let lens = (12u8..=17, 1u32..=131_072, any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let copied = proptest::option::of((number(), 0u64..1 << 45));
    (codec(), number(), number(), 0u32..1 << 30, lens, any::<u64>(), copied).prop_map(
        |(codec, segment, position, slot, (unit_log2, plain, a, b), seed, copied)| {
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
            let len_bytes = 1 + b.index((plain - skip_bytes) as usize) as u32;
            let copied = copied.map(|(ino, chunk)| Origin { ino: Ino(ino), start_bytes: chunk << 17 });
            Extent { len_bytes, skip_bytes, run, copied }
        },
    )
}

fn directory() -> impl Strategy<Value = Vec<Entry>> {
    let of_snapshots = [Kind::Covered, Kind::Entries, Kind::End];
    let kind = prop_oneof![Just(Kind::Data), Just(Kind::Records), Just(Kind::Commit), Just(Kind::Start)];
    let kind = prop_oneof![4 => kind, 1 => prop::sample::select(of_snapshots.to_vec())];
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
        (number(), number(), 0..32u32, extent()).prop_map(|(segment, position_bytes, first_frame, extent)| {
            let (segment, extent) = (SegmentId(segment), extent.encode());
            encoded(&Record::Move { segment, position_bytes, first_frame, extent: &extent })
        }),
        number().prop_map(|segment| encoded(&Record::Forget { segment: SegmentId(segment) })),
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
    let mark = (number(), 1u8..).prop_map(|(revision, mac)| HeaderMark { revision, mac: [mac; 32] });
    let mark = proptest::option::of(mark);
    (position(), number(), number(), number(), any::<bool>(), mark, "\\PC{0,20}", leases()).prop_map(
        |(covered, g, e, index_file, clean, header, emergency, other_leases)| Root {
            generation: Generation(g),
            epoch: Epoch(e),
            covered,
            index_file,
            clean,
            header,
            emergency,
            other_leases,
        },
    )
}

fn leases() -> impl Strategy<Value = Leases> {
    proptest::collection::vec((0..400u64, 1..400u64), 0..5).prop_map(|steps| {
        let (mut all, mut newest) = (Leases::default(), 0);
        for (gap, many) in steps {
            all.add(Epoch(newest + gap), Epoch(newest + gap + many));
            newest += gap + many;
        }
        all
    })
}

/// An access control list: owner, user 1000, group, mask, others.
const LIST: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x06\0\xe8\x03\0\0\x04\0\x05\0\xff\xff\xff\xff\
    \x10\0\x07\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

fn inode() -> impl Strategy<Value = Inode> {
    let time = (any::<i64>(), 0..1_000_000_000u32).prop_map(|(seconds, nanos)| Time { seconds, nanos });
    (any::<[u32; 6]>(), number(), number(), [time.clone(), time.clone(), time.clone(), time]).prop_map(
        |([mode, uid, gid, nlink, rdev, tree], size, parent, [atime, mtime, ctime, btime])| {
            let parent = Ino(parent);
            Inode { mode, uid, gid, nlink, rdev, size, atime, mtime, ctime, btime, parent, tree }
        },
    )
}

fn quota() -> impl Strategy<Value = Vec<u8>> {
    let limits = || {
        let limit = || proptest::option::of(any::<u64>());
        (limit(), limit(), limit(), limit()).prop_map(|(bytes, inodes, soft_bytes, soft_inodes)| Limits {
            bytes,
            inodes,
            soft_bytes,
            soft_inodes,
        })
    };
    let walk = prop_oneof![Just(Walk::Done), Just(Walk::Tagging), Just(Walk::Untagging)];
    prop_oneof![
        (any::<u128>(), number()).prop_map(|(bytes, inodes)| Used { bytes, inodes }.encode()),
        limits().prop_map(|limits| limits.encode()),
        (limits(), number(), any::<u32>(), walk).prop_map(|(limits, root, parent, walk)| Tree {
            limits,
            root: Ino(root),
            parent,
            walk
        }
        .encode()),
        (any::<bool>(), 1u32..).prop_map(|(owners, next_tree)| QuotaState { owners, next_tree }.encode()),
    ]
}

fn group_header() -> impl Strategy<Value = group::Header> {
    let lens = (17u32..5000, 0u32..1_000_000);
    let version = prop::sample::select(vec![
        (group::GROUP_VERSION_1, 0, 0),
        (group::GROUP_VERSION, 0, 0),
        (group::GROUP_VERSION_KEYED, 0, 1),
        (group::GROUP_VERSION_KEYED, group::SEALED_ANEW, u16::MAX),
        (group::GROUP_VERSION_KEYED, group::SEALED_ANEW | group::NO_TABLE, 300),
    ]);
    (version, number(), number(), any::<u32>(), lens, any::<u32>(), any::<[u8; 16]>()).prop_map(
        |((version, flags, key), segment, epoch, group, (directory_len_bytes, frames), body_crc, salt)| {
            let (segment, epoch) = (SegmentId(segment), Epoch(epoch));
            let before = HEADER_BYTES as u32 + frames + directory_len_bytes;
            let has_table = version != group::GROUP_VERSION_1 && flags & group::NO_TABLE == 0;
            let table = if has_table { group::table_len_bytes(before as usize) } else { 0 };
            let len_bytes = before + table as u32;
            let key = KeyNumber(key);
            group::Header { version, flags, segment, epoch, group, len_bytes, directory_len_bytes, body_crc, salt, key }
        },
    )
}

fn vault_toml() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        Just(SlotKind::KeyFile),
        Just(SlotKind::RecoveryKey),
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
    let old_keys = (1u16..20, vec((0u16..20, any::<[u8; 24]>()), 0..=OLD_KEYS_MAX));
    (1u16..=4, 0..=i64::MAX as u64, top, vec(slot, 1..4), old_keys).prop_map(
        |(
            format,
            revision,
            (vault, suite, compression, quota_bytes, quota_inodes, created_s, mac),
            slots,
            (key, old),
        )| {
            let slots =
                slots.into_iter().zip(1..).map(|((kind, label, created_s, (salt, nonce, commitment), w), id)| {
                    KeySlot { id, kind, label, created_s, salt, nonce, commitment, wrapped: [w; 48] }
                });
            let vault = VaultId(vault);
            let slots = slots.collect();
            let revision = if format < REVISION_FORMAT { 0 } else { revision };
            let may_name_keys = format >= KEYS_FORMAT && revision > 0;
            let key = KeyNumber(if may_name_keys { key } else { 0 });
            let mut old_keys: Vec<OldKey> = (old.into_iter().map(|(number, nonce)| (KeyNumber(number), nonce)))
                .filter(|(number, _)| *number < key)
                .map(|(number, nonce)| OldKey { number, nonce, wrapped: [7; 48] })
                .collect();
            old_keys.sort_by_key(|old| old.number);
            old_keys.dedup_by_key(|old| old.number);
            let header = Header {
                format,
                revision,
                vault,
                suite,
                compression,
                quota_bytes,
                quota_inodes,
                created_s,
                slots,
                key,
                old_keys,
            };
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
        Just(LIST.to_vec()),
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
        (number(), any::<[u8; 16]>(), 0u16..3, number(), number()).prop_map(
            |(epoch, salt, key, data_bytes, live_bytes)| {
                SegmentInfo { epoch: Epoch(epoch), salt, key: KeyNumber(key), data_bytes, live_bytes }.encode()
            }
        ),
        group_header().prop_map(|v| v.encode().to_vec()),
        quota(),
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
        prop_assert!(!judge(&bytes).is_empty());
        judge(&changed(bytes, &changes));
    }

    #[test]
    fn a_pin_is_read_back_and_has_one_spelling(
        vault in any::<[u8; 16]>(), numbers in (number(), number(), number()), mac in any::<[u8; 32]>(),
        changes in vec(change(), 1..4), digits in "[0-9 \\n]{0,6}", at in any::<prop::sample::Index>(),
        keys in prop::collection::btree_set(any::<u16>(), 0..5),
    ) {
        let (generation, epoch, commit) = (Generation(numbers.0), Epoch(numbers.1), CommitSeq(numbers.2));
        let pin = Pin { vault: VaultId(vault), generation, epoch, commit };
        let moved: String = keys.iter().map(|key| Moved { key: KeyNumber(*key), mac }.to_line()).collect();
        let text = (pin.to_text(&mac) + &moved).into_bytes();
        prop_assert_eq!(Pin::parse(&text), Ok((pin, mac)));
        prop_assert_eq!(parse_moved(&text).map(|read| read.len()), Ok(keys.len()));
        let mut more = text.clone();
        let at = at.index(text.len());
        more.splice(at..at, digits.bytes());
        entry("pin")(&more);
        entry("pin")(&changed(text, &changes));
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
        let info = SegmentInfo { data_bytes: 3, ..SegmentInfo::empty(Epoch(1), [2; 16], KeyNumber(7)) };
        prop_assert!(SegmentInfo::decode(&behind(&info.encode())).is_err());
        // The first key has no number there: what stands in its place names another one, or nothing that counts.
        let first = SegmentInfo { key: KeyNumber(0), ..info };
        let read = SegmentInfo::decode(&behind(&first.encode()));
        prop_assert!(read.is_err() || read.is_ok_and(|other| other != first && tail.len() == 2 && tail != [0, 0]));
    }

    #[test]
    fn a_directory_accounts_for_every_byte(entries in directory(), changes in vec(change(), 1..4)) {
        let bytes = encode_directory(&entries);
        let sum = entries.iter().map(|e| e.sealed_len_bytes as usize).sum();
        prop_assert_eq!(decode_directory(&bytes, sum), Ok(entries));
        prop_assert!(decode_directory(&[&bytes[..], &[0]].concat(), sum).is_err());
        prop_assert!(decode_directory(&bytes, sum + 1).is_err());
        let sum = (sum as u32).to_le_bytes();
        entry("directory")(&[&sum[..3], &changed(bytes, &changes)].concat());
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
        prop_assert!(judge(&text).contains(&"vault_toml"));
        judge(&changed(text, &changes));
    }

    #[test]
    fn a_compressed_frame_comes_back_and_changed_ones_are_judged(
        plain in vec(0u8..4, 0..3000), changes in vec(change(), 1..4), lz4 in any::<bool>(), claim in any::<u16>(),
    ) {
        let mut packed = Vec::new();
        let codec = if lz4 { Codec::Lz4 } else { Codec::Zstd };
        let shrunk = Compressor::new().compress(codec, &plain, &mut packed);
        let (codec, packed) = if shrunk { (codec, &packed[..]) } else { (Codec::Raw, &plain[..]) };
        let framed = |len: usize, packed: &[u8]| [&[codec as u8, len as u8, (len >> 8) as u8, 0], packed].concat();
        prop_assert!(entry("frame")(&framed(plain.len(), packed)));
        entry("frame")(&framed(plain.len(), &changed(packed.to_vec(), &changes)));
        entry("frame")(&framed(usize::from(claim), packed));
    }

    #[test]
    fn entries_of_a_snapshot_come_back_however_they_are_cut_and_changed_ones_are_judged(
        pairs in proptest::collection::btree_map(vec(any::<u8>(), 0..20), vec(any::<u8>(), 0..300), 0..12),
        piece in any::<u8>(), changes in vec(change(), 1..4),
    ) {
        let mut stream = vec![piece];
        for (key, value) in pairs.iter().filter(|(key, _)| holds(key)) {
            push_entry(&mut stream, key, value);
        }
        prop_assert!(entry("snapshot_entries")(&stream));
        entry("snapshot_entries")(&changed(stream, &changes));
    }

    #[test]
    fn groups_of_any_numbers_and_places_are_walked_to_an_end(bytes in vec(any::<[u8; 8]>(), 0..40)) {
        entry("shapes")(bytes.as_flattened());
    }

    #[test]
    fn groups_that_may_follow_each_other_are_walked_to_an_end(groups in vec((0u8..4, 0u8..9, 1u8..40, 0u8..20), 0..40)) {
        let group = |(i, &(kind, number, len, skip)): (usize, &(u8, u8, u8, u8))| {
            [kind & 1, number, 0, len, 32, 0, 0, (i as u8).wrapping_add(skip)]
        };
        let bytes: Vec<_> = groups.iter().enumerate().map(group).collect();
        entry("shapes")(bytes.as_flattened());
    }
}

/// Edits of stored files; see `entries::Edits`.
fn edits() -> impl Strategy<Value = Vec<u8>> {
    // Wherever, and near the beginning, where headers are.
    let place = prop_oneof![any::<[u8; 3]>(), (any::<u8>(), 0u8..4).prop_map(|(a, b)| [a, b, 0])];
    let one = (any::<[u8; 2]>(), place, any::<[u8; 3]>());
    vec(one.prop_map(|(a, b, c)| [&a[..], &b, &c].concat()), 0..9).prop_map(|all| all.concat())
}

/// How often a harness that opens whole vaults is run.
fn deep_cases() -> u32 {
    std::env::var("STRONGROOM_DAMAGED_VAULTS").ok().map_or(60, |n| n.parse().expect("a number"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: deep_cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_of_damaged_segments_open_to_what_was_sealed_or_not_at_all(edits in edits()) {
        entry("walk")(&edits);
    }

    #[test]
    fn a_damaged_snapshot_is_what_was_written_or_an_error(edits in edits()) {
        entry("snapshot")(&edits);
    }

    #[test]
    fn a_damaged_index_gives_what_was_stored_or_an_error(edits in edits()) {
        entry("index")(&edits);
    }

    #[test]
    fn settings_and_extents_of_any_bytes_do_no_harm_to_the_rest(
        bytes in prop_oneof![
            vec(any::<u8>(), 0..100),
            "([a-z_]{0,9} [0-9]{0,21}\\n?){0,5}".prop_map(String::into_bytes),
            extent().prop_map(|e| e.encode()),
        ],
    ) {
        entry("values")(&bytes);
    }

    #[test]
    fn a_vault_with_damage_in_any_file_gives_the_right_bytes_or_an_error(which in any::<u8>(), edits in edits()) {
        entry("vault")(&[&[which], &edits[..]].concat());
    }
}

#[test]
fn each_entry_has_a_fuzz_target_and_each_target_an_entry() {
    let manifest: toml::Table = include_str!("fuzz/Cargo.toml").parse().unwrap();
    let targets = manifest["bin"].as_array().unwrap();
    assert!(targets.iter().all(|t| t["path"].as_str() == Some("target.rs")));
    let mut targets: Vec<_> = targets.iter().map(|t| t["name"].as_str().unwrap()).collect();
    let mut entries: Vec<_> = ENTRIES.iter().map(|(name, _)| *name).collect();
    targets.sort_unstable();
    entries.sort_unstable();
    assert_eq!(targets, entries);
}

/// Refuses single pieces of memory, and sums of them, that nothing here has a use for: then the process ends, and says so.
struct Bounded;

const PIECE_BYTES_MAX: usize = 64 << 20;
const ALL_BYTES_MAX: usize = 1 << 30;
static HELD_BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed to the system's allocator as it comes, or refused as an allocator may.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > PIECE_BYTES_MAX || HELD_BYTES.load(Relaxed) + layout.size() > ALL_BYTES_MAX {
            return std::ptr::null_mut();
        }
        HELD_BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD_BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: it came from `alloc` above, with this layout, and so from the system's allocator.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static MEMORY: Bounded = Bounded;

#[test]
fn memory_without_bounds_is_refused_here() {
    let mut much: Vec<u8> = Vec::new();
    assert!(much.try_reserve_exact(PIECE_BYTES_MAX + 1).is_err());
    assert!(much.try_reserve_exact(PIECE_BYTES_MAX).is_ok());
}

#[test]
fn a_vault_that_gives_a_wrong_byte_is_caught() {
    let disk = entries::vault_with_a_wrong_byte();
    let caught = std::panic::catch_unwind(|| entries::judge_vault(&disk, false)).expect_err("one byte is wrong");
    let said = caught.downcast_ref::<String>().unwrap();
    assert_eq!(said, "file 3 is neither what was written nor an error");
}

#[test]
fn an_extent_that_begins_before_its_file_is_an_error_and_no_panic() {
    assert!(Extent::decode(&[0, 12, 2, 1, 0, 0, 0, 3]).is_ok_and(|e| e.skip_bytes > 0));
    assert!(!entry("values")(&[0, 12, 2, 1, 0, 0, 0, 3]));
}

#[test]
fn whole_vaults_and_files_without_edits_are_taken() {
    for (name, bytes) in [("walk", &[][..]), ("index", &[]), ("snapshot", &[]), ("vault", &[0]), ("vault", &[1])] {
        assert!(entry(name)(bytes), "{name}");
    }
}
