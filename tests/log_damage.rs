//! Method: write a log of commits, small and large, in two leases; then flip one bit of it, in turn in every group's header,
//! directory and table and in a frame of every kind, and open the vault: with its index, without it, after a crash.
//! Promise: damage costs what it hit. Every other commit is there, whole; what of the hit one cannot be read is said; and
//! only what no later commit proves to have been whole, the newest commit of a crashed lease, may be gone: then all of it.
#![allow(clippy::unwrap_used)] // tests may

use std::sync::Arc;
use strongroom::backing::{AlignedBuf, Backing, Cache, Fate, MemoryBacking, Open};
use strongroom::base::id::{Ino, SegmentId};
use strongroom::base::limits::BLOCK_BYTES;
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::format::frame::Kind;
use strongroom::format::key;
use strongroom::seal::{Unlock, VaultKeys, open_header};
use strongroom::segment::{Body, Walk, WalkedGroup, path};
use strongroom::vault::{CreateOptions, OpenFault, OpenOptions, Vault, create, open};

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![7; 64]))
}

fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

fn opened(disk: &MemoryBacking) -> Result<Arc<Vault>, OpenFault> {
    open(Arc::new(disk.clone()), &unlock(), &OpenOptions::default(), world())
}

/// Bytes without pattern (SplitMix64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed << 32;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// How many changes of metadata a commit makes: small ones fit in a block, large ones take several groups.
fn changes(commit: u64) -> u64 {
    if commit.is_multiple_of(3) { 1300 } else { 5 }
}

fn change(commit: u64, i: u64) -> (Vec<u8>, Vec<u8>) {
    (key::inode(Ino(commit * 100_000 + i)), noise(commit * 100_000 + i, if changes(commit) > 5 { 1000 } else { 88 }))
}

fn data(commit: u64) -> Vec<u8> {
    noise(commit, 3000)
}

/// Makes that commit: its metadata, and a file of its own.
fn commit(vault: &Vault, commit: u64) {
    let file = vault.file(Ino(commit));
    let room = vault.reserve(&file, 0, 3000).unwrap();
    let mut op = vault.begin();
    op.write(&file, 0, &data(commit), room);
    for i in 0..changes(commit) {
        let (key, value) = change(commit, i);
        op.put(key, value);
    }
    op.commit();
    vault.sync_wait().unwrap();
}

/// How many of a commit's changes are there, and its data.
struct Seen {
    changes: u64,
    data: bool,
}

fn seen(vault: &Vault, commit: u64) -> Seen {
    let there = |i: &u64| {
        let (key, value) = change(commit, *i);
        let got = vault.get(&key).unwrap();
        assert!(got.is_none() || got == Some(value), "an invented value");
        got.is_some()
    };
    let mut out = Vec::new();
    let read = vault.read(&vault.file(Ino(commit)), 0, 3000, &mut out);
    let right = read.is_ok() && out == data(commit);
    assert!(right || read.is_err() || out == [0; 3000], "invented bytes");
    Seen { changes: (0..changes(commit)).filter(there).count() as u64, data: right }
}

fn whole(vault: &Vault, number: u64) -> bool {
    let Seen { changes: there, data } = seen(vault, number);
    data && there == changes(number)
}

/// A vault of two leases with commits 1 to 7 and 8 to 12, as a power cut with everything synced leaves it.
struct Log {
    disk: MemoryBacking,
    commits: u64,
}

const FIRST_LEASE: u64 = 7;

fn two_leases() -> Log {
    let disk = MemoryBacking::default();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    create(&backing, &unlock(), &CreateOptions::default(), &world()).unwrap();
    let vault = opened(&disk).unwrap();
    (1..=FIRST_LEASE).for_each(|n| commit(&vault, n));
    let disk = disk.crash(|_, _| true);
    let vault = opened(&disk).unwrap();
    assert!(vault.stats().errors().is_empty());
    (FIRST_LEASE + 1..=12).for_each(|n| commit(&vault, n));
    Log { disk: disk.crash(|_, _| true), commits: 12 }
}

fn one_lease() -> Log {
    let disk = MemoryBacking::default();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    create(&backing, &unlock(), &CreateOptions::default(), &world()).unwrap();
    let vault = opened(&disk).unwrap();
    (1..=FIRST_LEASE).for_each(|n| commit(&vault, n));
    Log { disk: disk.crash(|_, _| true), commits: FIRST_LEASE }
}

/// A place to flip a bit, and the commit that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Place {
    what: &'static str,
    segment: SegmentId,
    byte: u64,
    commit: u64,
}

fn segments(disk: &MemoryBacking) -> Vec<SegmentId> {
    disk.list("segments").unwrap().iter().map(|n| strongroom::segment::parse_file_name(n).unwrap()).collect()
}

fn walk(disk: &MemoryBacking, id: SegmentId, mut each: impl FnMut(&mut Walk, &WalkedGroup)) {
    let text = strongroom::backing::read_file(disk, "vault.toml", 1 << 16).unwrap();
    let (header, master) = open_header(&text, &unlock()).unwrap();
    let file = disk.open(&path(id), Open::Read, Cache::Direct).unwrap();
    let mut walk = Walk::new(file, id, header.suite, header.vault);
    let keys = VaultKeys::of(&header, &master).unwrap();
    while let Some(group) = walk.next(&keys).unwrap() {
        each(&mut walk, &group);
    }
}

fn places(disk: &MemoryBacking) -> Vec<Place> {
    let (mut all, mut commit) = (Vec::new(), 1);
    for segment in segments(disk) {
        walk(disk, segment, |_, group| {
            assert!(group.checksum_holds && group.gap_before.is_none());
            let mut place = |what, byte: u64| all.push(Place { what, segment, byte, commit });
            let mut committed = false;
            place("header", group.position_bytes + 20);
            place("directory", group.position_bytes + group.header.directory().start as u64 + 1);
            place("table", group.position_bytes + group.header.table_start() as u64 + 1);
            for frame in &group.frames {
                let what = match frame.entry.kind {
                    Kind::Data => "data",
                    Kind::Records => "records",
                    Kind::Commit => "commit",
                    Kind::Start => "start",
                    Kind::Directory => unreachable!("no frame of a directory names one"),
                    Kind::Covered | Kind::Entries | Kind::End => unreachable!("no segment has one"),
                };
                place(what, frame.position_bytes + 3);
                committed |= frame.entry.kind == Kind::Commit;
            }
            commit += u64::from(committed);
        });
    }
    all
}

fn flipped(log: &Log, place: Place) -> MemoryBacking {
    let disk = log.disk.copy();
    disk.flip_bit(&path(place.segment), place.byte * 8 + 3);
    disk
}

/// What must hold of a vault that opened although `place` is damaged; `newest` is the one commit that may be gone.
fn judge(vault: &Vault, log: &Log, place: Place, newest: Option<u64>) {
    // Before anything is read, which says what it finds.
    let said = !vault.stats().errors().is_empty();
    for n in (1..=log.commits).filter(|n| *n != place.commit) {
        assert!(whole(vault, n), "{place:?}: commit {n} was not hit");
    }
    let Seen { changes: there, data } = seen(vault, place.commit);
    let all = changes(place.commit);
    if newest == Some(place.commit) {
        assert!(there == 0 && !data || there == all && data, "{place:?}: {there} of {all} changes of the torn commit");
        return;
    }
    match place.what {
        "header" | "directory" => assert!(said && there < all || there == all, "{place:?}: lost, and not said"),
        "table" => assert!(there == all && data && !said, "{place:?}: nothing is lost with the checksums"),
        "data" => assert!(there == all && !data && !said, "{place:?}: only the file's bytes are lost"),
        "records" => assert!(said && data && 0 < there && there < all, "{place:?}: {there} of {all}"),
        "commit" => assert!(said && !data && there < all, "{place:?}: what the commit itself held is lost"),
        "start" => assert!(there == all && data, "{place:?}: it held nothing of the commit"),
        other => panic!("{other}"),
    }
    // And the vault goes on.
    commit(vault, 900);
    assert!(whole(vault, 900));
}

/// Every kind of place, and not each of the many alike of a large commit.
fn sampled(all: &[Place]) -> Vec<Place> {
    let mut some: Vec<Place> = Vec::new();
    for place in all {
        let alike = |p: &&Place| p.commit == place.commit && p.what == place.what && p.what == "records";
        if some.iter().filter(alike).count() < 3 {
            some.push(*place);
        }
    }
    some
}

#[test]
fn damage_anywhere_in_the_tail_costs_what_it_hit() {
    let log = one_lease();
    let places = sampled(&places(&log.disk));
    for what in ["header", "directory", "table", "data", "records", "commit", "start"] {
        assert!(places.iter().any(|p| p.what == what), "the log has no {what}");
    }
    for place in places {
        let vault = opened(&flipped(&log, place)).unwrap();
        judge(&vault, &log, place, Some(log.commits));
    }
}

#[test]
fn damage_anywhere_in_an_older_lease_costs_what_it_hit_when_the_index_is_rebuilt() {
    let log = two_leases();
    // Each place opens the vault twice from the log alone: by default every second one, all with STRONGROOM_DAMAGE_STEP=1.
    let step = std::env::var("STRONGROOM_DAMAGE_STEP").map_or(2, |n| n.parse().unwrap());
    for place in sampled(&places(&log.disk)).into_iter().step_by(step) {
        let disk = flipped(&log, place);
        for name in disk.list("index").unwrap() {
            disk.remove(&format!("index/{name}")).unwrap();
        }
        let vault = opened(&disk).unwrap();
        judge(&vault, &log, place, Some(log.commits));
        vault.close().unwrap();
        drop(vault);
        // What was rebuilt is what stays, and a second rebuild gives the same.
        for name in disk.list("index").unwrap() {
            disk.remove(&format!("index/{name}")).unwrap();
        }
        let vault = opened(&disk).unwrap();
        for n in (1..=log.commits).filter(|n| *n != place.commit) {
            assert!(whole(&vault, n), "{place:?}: commit {n}, the second time");
        }
    }
}

#[test]
fn a_torn_tail_is_not_taken_for_rot() {
    let disk = MemoryBacking::default();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    create(&backing, &unlock(), &CreateOptions::default(), &world()).unwrap();
    let vault = opened(&disk).unwrap();
    disk.record();
    let mut answered = Vec::new();
    for n in 1..=6 {
        commit(&vault, n);
        answered.push(disk.calls());
    }
    let worlds = std::env::var("STRONGROOM_TEARS").map_or(4, |n| n.parse().unwrap());
    let (mut cuts, mut partly) = (disk.cuts(), 0);
    loop {
        let durable = answered.iter().filter(|calls| **calls <= cuts.cut()).count() as u64;
        for coins in 0..worlds {
            let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 4096, coins });
            let vault = opened(&after).unwrap();
            let at = format!("cut {} coins {coins}: ", cuts.cut());
            assert!(vault.stats().errors().is_empty(), "{at}nothing that was answered is damaged");
            let history: Vec<_> = vault.stats().history().into_iter().map(|l| l.text).collect();
            assert!(
                history.iter().all(|l| !l.contains("taken in") || l.contains("(0 with damage)")),
                "{at}{history:?}"
            );
            let mut gone = false;
            for n in 1..=6 {
                let Seen { changes: there, data } = seen(&vault, n);
                let is_whole = there == changes(n) && data;
                assert!(is_whole || there == 0 && !data, "{at}half of commit {n}");
                assert!(is_whole || n > durable, "{at}commit {n} was answered");
                assert!(!(gone && is_whole), "{at}commit {n} without the one before");
                gone |= !is_whole;
            }
            partly += u64::from(gone);
        }
        if !cuts.advance() {
            break;
        }
    }
    assert!(partly > 20, "the cuts tore something: {partly}");
}

#[test]
fn a_lost_segment_costs_what_lay_in_it_even_with_the_index() {
    let log = two_leases();
    let disk = log.disk.copy();
    disk.remove(&path(segments(&disk)[0])).unwrap();
    for name in disk.list("index").unwrap() {
        disk.remove(&format!("index/{name}")).unwrap();
    }
    // It cannot be told from one that a snapshot made dispensable, so nobody goes without it unasked.
    let Err(OpenFault::Damaged(why)) = opened(&disk).map(|_| ()) else { panic!("it opened") };
    assert!(why.starts_with("the log begins with segment 3, behind commit 7"), "{why}");
    let mending = OpenOptions { salvage: true, ..OpenOptions::default() };
    let vault = open(Arc::new(disk.clone()), &unlock(), &mending, world()).unwrap();
    for n in FIRST_LEASE + 1..=log.commits {
        assert!(whole(&vault, n), "commit {n} lies in the other segment");
    }
    assert!(!vault.stats().errors().is_empty(), "what is lost is said");
}

#[test]
fn two_bits_in_neighbouring_commits_cost_these_two() {
    let log = one_lease();
    let all = places(&log.disk);
    for (first, second) in [("header", "header"), ("commit", "commit"), ("commit", "header"), ("records", "commit")] {
        let (a, b) = if first == "records" { (3, 4) } else { (4, 5) };
        let hit: Vec<Place> = [(first, a), (second, b)]
            .map(|(what, n)| *all.iter().find(|p| (p.what, p.commit) == (what, n)).unwrap())
            .into();
        let disk = flipped(&log, hit[0]);
        disk.flip_bit(&path(hit[1].segment), hit[1].byte * 8);
        let vault = opened(&disk).unwrap();
        for n in (1..=log.commits).filter(|n| ![a, b].contains(n)) {
            assert!(whole(&vault, n), "{hit:?}: commit {n} was not hit");
        }
        assert!(!vault.stats().errors().is_empty(), "{hit:?}: what is lost is said");
    }
}

#[test]
fn a_walk_goes_on_behind_damage_and_says_what_is_missing() {
    let log = one_lease();
    let id = segments(&log.disk)[0];
    let mut positions = Vec::new();
    walk(&log.disk, id, |_, g| positions.push(g.position_bytes));
    assert!(positions.len() > 8, "{positions:?}");
    for i in 0..positions.len() {
        let disk = log.disk.copy();
        disk.flip_bit(&path(id), (positions[i] + 61) * 8);
        let (mut got, mut gaps) = (Vec::new(), Vec::new());
        walk(&disk, id, |_, g| {
            got.push(g.position_bytes);
            gaps.extend(g.gap_before);
        });
        let rest: Vec<u64> = positions.iter().copied().filter(|p| *p != positions[i]).collect();
        assert_eq!(got, rest);
        match positions.get(i + 1) {
            Some(next) => {
                let [gap] = gaps[..] else { panic!("{gaps:?}") };
                assert_eq!((gap.from_bytes, gap.to_bytes, gap.groups_missing), (positions[i], *next, 1));
            }
            None => assert!(gaps.is_empty(), "behind the last group there is nothing to find"),
        }
    }
}

#[test]
fn the_table_says_which_block_is_rotten_and_which_a_hole() {
    let log = one_lease();
    let id = segments(&log.disk)[0];
    let (mut position, mut blocks) = (0, 0);
    walk(&log.disk, id, |_, g| {
        if g.header.blocks() > 100 && blocks == 0 {
            (position, blocks) = (g.position_bytes, g.header.blocks());
        }
    });
    let file = log.disk.open(&path(id), Open::Write, Cache::Direct).unwrap();
    file.punch(position + 20 * BLOCK_BYTES as u64, 2 * BLOCK_BYTES as u64).unwrap();
    log.disk.flip_bit(&path(id), (position + 50 * BLOCK_BYTES as u64 + 7) * 8);
    log.disk.flip_bit(&path(id), (position + 64) * 8);
    let mut judged = 0;
    walk(&log.disk, id, |_, g| {
        if g.position_bytes != position {
            assert!(g.checksum_holds && g.frames.iter().all(|f| g.frame_holds(f) == Some(true)));
            return;
        }
        assert!(!g.checksum_holds);
        let want = Body::Blocks { table_holds: true, empty: vec![20, 21], rotten: vec![0, 50] };
        assert_eq!(g.body, want);
        for f in &g.frames {
            let at = f.position_bytes - position;
            let touched = at / 4096..(at + u64::from(f.entry.sealed_len_bytes)).div_ceil(4096);
            let hurt = [0, 20, 21, 50].iter().any(|b| touched.contains(b));
            assert_eq!(g.frame_holds(f), Some(!hurt), "{:?} at {at}", f.entry.kind);
            judged += 1;
        }
    });
    assert!(judged > 4, "the group has frames");
}

#[test]
fn a_long_tail_of_zeros_and_foreign_groups_are_the_end() {
    let log = one_lease();
    let id = segments(&log.disk)[0];
    let (mut groups, mut last) = (0, 0);
    walk(&log.disk, id, |w, _| (groups, last) = (groups + 1, w.position_bytes()));
    let file = log.disk.open(&path(id), Open::Write, Cache::Direct).unwrap();
    // The same groups again, farther on: their numbers were used.
    let mut copy = AlignedBuf::with_capacity(last as usize);
    copy.set_len(last as usize);
    file.read_at(&mut copy, 0).unwrap();
    file.write_all_at(&copy, last + 3 * BLOCK_BYTES as u64).unwrap();
    let mut again = 0;
    walk(&log.disk, id, |_, g| {
        assert!(g.gap_before.is_none());
        again += 1;
    });
    assert_eq!(again, groups);
}
