//! Method: fill a vault, delete some of it so that holes are punched, close it; then flip one bit in turn of a header, a
//! directory, a table, a frame of data, of records and of a commit, and scrub: without the key, with it, and mounted.
//! Promise: a vault that is well is clean, holes and all, and nothing is written to it; each planted bit is found, where it is; and
//! with the key the file that it hurts is named.
#![allow(clippy::unwrap_used)] // tests may

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use strongroom::backing::{Backing, Cache, DirBacking, Effect, Fault, Kind as Call, MemoryBacking, Open, read_file};
use strongroom::base::id::{Ino, ROOT_INO, SegmentId};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, Time, World};
use strongroom::check::{Damage, Finding, Media, check, scrub_media};
use strongroom::format::frame::Kind;
use strongroom::fs::{Caller, FileSystem, FsOptions, WriteHow};
use strongroom::seal::{Unlock, VaultKeys, open_header};
use strongroom::segment::{Walk, path};
use strongroom::vault::{self, CreateOptions, OpenOptions, ScrubReport, ScrubState, Vault};

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![7; 32]))
}

fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

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

fn opened(disk: &MemoryBacking) -> FileSystem {
    let options = OpenOptions { flush_interval: Duration::from_secs(3600), ..OpenOptions::default() };
    let vault = vault::open(Arc::new(disk.clone()), &unlock(), &options, world()).unwrap();
    FileSystem::new(vault, FsOptions::default()).unwrap()
}

fn file(fs: &FileSystem, name: &str, data: &[u8]) -> Ino {
    let ino = fs.mknod(&Caller::default(), ROOT_INO, name.as_bytes(), 0o644, 0).unwrap().ino;
    fs.write(ino, 0, data, WriteHow::default()).unwrap();
    ino
}

/// A vault with four files that stay and a hole where a fifth was, closed.
fn punched() -> MemoryBacking {
    let disk = MemoryBacking::default();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    vault::create(&backing, &unlock(), &CreateOptions::default(), &world()).unwrap();
    let fs = opened(&disk);
    file(&fs, "first", &noise(1, 100_000));
    let gone = file(&fs, "gone", &noise(2, 500_000));
    file(&fs, "second", &noise(3, 100_000));
    fs.sync_wait().unwrap();
    // Enough names for frames of records of their own.
    for n in 0..3000 {
        file(&fs, &format!("small {n} {:x?}", &noise(n, 30)), &[]);
    }
    fs.sync_wait().unwrap();
    file(&fs, "third", &noise(4, 100_000));
    fs.sync_wait().unwrap();
    fs.unlink(ROOT_INO, b"gone").unwrap();
    fs.forget(gone, 1);
    file(&fs, "fourth", &noise(5, 100_000));
    fs.vault().close().unwrap();
    drop(fs);
    disk
}

fn keyless(disk: &MemoryBacking) -> Media {
    scrub_media(&(Arc::new(disk.clone()) as Arc<dyn Backing>), None, &|_, _| {}).unwrap()
}

fn keyed(disk: &MemoryBacking) -> Media {
    let (header, master) = open_header(&read_file(disk, "vault.toml", 1 << 16).unwrap(), &unlock()).unwrap();
    scrub_media(
        &(Arc::new(disk.clone()) as Arc<dyn Backing>),
        Some((&header, &VaultKeys::of(&header, &master).unwrap())),
        &|_, _| {},
    )
    .unwrap()
}

/// Byte positions in segment 1 of: a group's header, directory, table, and a frame of each kind.
fn places(disk: &MemoryBacking) -> Vec<(&'static str, u64)> {
    let (header, master) = open_header(&read_file(disk, "vault.toml", 1 << 16).unwrap(), &unlock()).unwrap();
    let file = disk.open(&path(SegmentId(1)), Open::Read, Cache::Direct).unwrap();
    let mut walk = Walk::new(file, SegmentId(1), header.suite, header.vault);
    let (mut all, keys) = (Vec::new(), VaultKeys::of(&header, &master).unwrap());
    while let Some(group) = walk.next(&keys).unwrap() {
        let at = group.position_bytes;
        all.push(("header", at + 30));
        all.push(("directory", at + group.header.directory().start as u64));
        all.push(("table", at + group.header.table_start() as u64));
        for frame in group.frames.iter().filter(|f| group.frame_holds(f) == Some(true)) {
            let what = match frame.entry.kind {
                Kind::Data => "data",
                Kind::Records => "records",
                Kind::Commit => "commit",
                Kind::Start => "start",
                Kind::Directory => unreachable!("no frame of a directory names one"),
                Kind::Covered | Kind::Entries | Kind::End => unreachable!("no segment has one"),
            };
            all.push((what, frame.position_bytes));
        }
    }
    all
}

#[test]
fn a_vault_with_holes_is_clean_with_and_without_the_key() {
    let disk = punched();
    for media in [keyless(&disk), keyed(&disk)] {
        assert_eq!(media.damage, []);
        assert!(media.hole_bytes > 400_000, "what was deleted is a hole: {media:?}");
        assert_eq!((media.untold_groups, media.unfinished_segments, media.segments), (0, 0, 1));
        assert!(media.groups > 3 && media.bytes > 1 << 20);
    }
}

#[test]
fn every_planted_bit_is_found_where_it_is() {
    let disk = punched();
    let all = places(&disk);
    for what in ["header", "directory", "table", "data", "records", "commit", "start"] {
        assert!(all.iter().any(|p| p.0 == what), "the vault has no {what}");
    }
    for (what, byte) in all {
        let hurt = disk.copy();
        hurt.flip_bit(&path(SegmentId(1)), byte * 8 + 1);
        let block = byte / 4096 * 4096;
        let (without, with) = (keyless(&hurt).damage, keyed(&hurt).damage);
        let segment = SegmentId(1);
        match what {
            "header" => {
                let [Damage::GroupsMissing { from_bytes, .. }] = without[..] else { panic!("{without:?}") };
                assert_eq!((from_bytes, &with), (block, &without));
            }
            "table" => {
                let [Damage::TableRotten { position_bytes, .. }] = without[..] else { panic!("{what}: {without:?}") };
                assert!(position_bytes <= byte && byte < position_bytes + (1 << 20));
                assert_eq!(with, without);
            }
            _ => {
                let rotten = Damage::BlocksRotten { segment, from_bytes: block, to_bytes: block + 4096 };
                assert_eq!(without, std::slice::from_ref(&rotten), "{what} at {byte}");
                match what {
                    "directory" => assert!(matches!(with[..], [Damage::GroupsMissing { .. }]), "{with:?}"),
                    "data" => assert_eq!(with, [rotten]),
                    _ => assert_eq!(with, [rotten, Damage::LogRotten { segment, position_bytes: byte }], "{what}"),
                }
            }
        }
    }
}

#[test]
fn a_rotten_frame_of_data_is_named_by_its_path() {
    let disk = punched();
    let first = places(&disk).into_iter().find(|p| p.0 == "data").unwrap();
    disk.flip_bit(&path(SegmentId(1)), first.1 * 8);
    let backing: Arc<dyn Backing> = Arc::new(disk);
    let found = check(&backing, &unlock(), &world(), true, &|_, _| {}).unwrap();
    let [Finding::Unreadable { at, from_bytes: 0, .. }] = &found[..] else { panic!("{found:?}") };
    assert_eq!(at.path.as_deref(), Some(&b"/first"[..]));
}

#[test]
fn a_missing_or_misshapen_file_is_named() {
    for name in ["vault.toml", "vault.toml.copy", "root.a", "root.b"] {
        let disk = punched();
        disk.remove(name).unwrap();
        let [Damage::File { name: found, .. }] = &keyless(&disk).damage[..] else { panic!("{name}") };
        assert_eq!(*found, name);
    }
    let disk = punched();
    disk.flip_bit("root.a", 3);
    assert!(matches!(keyless(&disk).damage[..], [Damage::File { name: "root.a", .. }]));
}

#[test]
fn an_interrupted_write_is_no_damage_and_rot_before_it_is() {
    let disk = MemoryBacking::default();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    vault::create(&backing, &unlock(), &CreateOptions::default(), &world()).unwrap();
    let fs = opened(&disk);
    for n in 0..4 {
        file(&fs, &format!("file {n}"), &noise(n, 50_000));
        fs.sync_wait().unwrap();
    }
    let crashed = disk.crash(|_, _| true);
    assert_eq!((keyless(&crashed).damage, keyed(&crashed).damage), (vec![], vec![]));
    let frames: Vec<_> = places(&crashed).into_iter().filter(|p| p.0 == "data").collect();
    let torn = crashed.copy();
    torn.flip_bit(&path(SegmentId(1)), frames.last().unwrap().1 * 8);
    for media in [keyless(&torn), keyed(&torn)] {
        assert_eq!((media.damage, media.unfinished_segments), (vec![], 1), "the last write may be torn");
    }
    crashed.flip_bit(&path(SegmentId(1)), frames[0].1 * 8);
    for media in [keyless(&crashed), keyed(&crashed)] {
        assert!(matches!(media.damage[..], [Damage::BlocksRotten { .. }]), "what whole writes follow was whole");
    }
}

fn frozen(name: &str) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&to).unwrap();
                copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vaults").join(name), dir.path());
    dir
}

fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            all.extend(contents(&entry.path()));
        } else {
            all.push((entry.path(), fs::read(entry.path()).unwrap()));
        }
    }
    all.sort();
    all
}

#[test]
fn a_vault_of_format_1_is_read_as_it_is_and_what_cannot_be_told_is_counted() {
    let dir = frozen("v1-aes");
    let before = contents(dir.path());
    let backing: Arc<dyn Backing> = Arc::new(DirBacking::open(dir.path()).unwrap());
    let media = scrub_media(&backing, None, &|_, _| {}).unwrap();
    assert_eq!((&media.damage[..], media.untold_groups), (&[][..], 1), "it has a punched segment");
    assert!(contents(dir.path()) == before, "scrub writes nothing");
}

/// Waits until the scrub stands; how it then is.
fn stands(vault: &Vault) -> ScrubReport {
    loop {
        let report = vault.scrub_report().unwrap();
        if report.state != ScrubState::Running {
            return report;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_mounted_vault_is_read_past_its_caches_and_what_is_hurt_is_named_once() {
    let disk = punched();
    let frames: Vec<u64> = places(&disk).into_iter().filter(|p| p.0 == "data").map(|p| p.1).collect();
    let fs = opened(&disk);
    let vault = fs.vault();
    assert_eq!(vault.scrub_report().unwrap().state, ScrubState::Idle);
    vault.scrub(Some(0)).unwrap();
    let clean = stands(vault);
    assert_eq!((clean.state, clean.mark.damaged, clean.hurt.len()), (ScrubState::Done, 0, 0));
    assert_eq!((clean.mark.done_bytes, clean.total_bytes), (400_000, 400_000), "all live data, and the deleted not");
    assert!(clean.finished().is_some());
    // Read it all into the cache, then turn a bit on the disk.
    let first = fs.lookup(ROOT_INO, b"first").unwrap().ino;
    let mut out = Vec::new();
    fs.read(first, 0, 100_000, &mut out).unwrap();
    disk.flip_bit(&path(SegmentId(1)), frames[0] * 8 + 5);
    for _ in 0..2 {
        vault.scrub(Some(0)).unwrap();
        let report = stands(vault);
        assert_eq!((report.state, report.mark.damaged), (ScrubState::Done, 1));
        let [hurt] = &report.hurt[..] else { panic!("{report:?}") };
        assert_eq!((hurt.ino, hurt.path.as_deref()), (first, Some(&b"/first"[..])));
        assert_eq!((hurt.from_bytes, hurt.to_bytes), (0, 16_384));
    }
    let errors = vault.stats().errors();
    assert!(errors.iter().all(|l| !l.text.contains("first")), "no names in the error list: {errors:?}");
    assert_eq!((errors.len(), vault.stats().damaged_frames.get()), (1, 1), "told and counted once: {errors:?}");
    // A copy is written over it: the scrub finds nothing any more.
    fs.write(first, 0, &noise(1, 100_000), WriteHow::default()).unwrap();
    fs.sync_wait().unwrap();
    // Answered once it is at rest; the index takes it in a moment later, and names the old frames until then.
    while vault.pending_bytes() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    vault.scrub(None).unwrap();
    assert_eq!(stands(vault).mark.damaged, 0);
}

#[test]
fn a_scrub_that_was_stopped_goes_on_in_the_next_mount() {
    let disk = punched();
    let fs = opened(&disk);
    // Slow enough that it stands at its first extents until it is stopped.
    fs.vault().scrub(Some(1000)).unwrap();
    while fs.vault().scrub_report().unwrap().mark.done_bytes == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    fs.vault().close().unwrap();
    assert!(fs.vault().scrub(None).is_err(), "a closed vault begins nothing");
    drop(fs);
    let fs = opened(&disk);
    let before = fs.vault().scrub_report().unwrap();
    assert_eq!(before.state, ScrubState::Paused);
    assert!(0 < before.mark.done_bytes && before.mark.done_bytes < 400_000, "{before:?}");
    fs.vault().scrub(Some(0)).unwrap();
    let after = stands(fs.vault());
    assert_eq!((after.state, after.mark.done_bytes), (ScrubState::Done, 400_000), "nothing twice, nothing left out");
    fs.vault().close().unwrap();
    drop(fs);
    assert_eq!(opened(&disk).vault().scrub_report().unwrap().state, ScrubState::Done);
}

#[test]
fn a_scrub_is_paused_and_hurried_by_order() {
    let disk = punched();
    let fs = opened(&disk);
    fs.vault().scrub(Some(1000)).unwrap();
    fs.vault().scrub_pause();
    assert_eq!(fs.vault().scrub_report().unwrap().state, ScrubState::Paused);
    fs.vault().scrub(Some(1000)).unwrap();
    fs.vault().scrub(Some(0)).unwrap();
    assert_eq!(stands(fs.vault()).mark.done_bytes, 400_000);
}

#[test]
fn writers_go_on_while_a_scrub_reads_and_nothing_seems_damaged() {
    let disk = punched();
    let fs = opened(&disk);
    let ino = fs.lookup(ROOT_INO, b"second").unwrap().ino;
    for round in 0..30 {
        fs.vault().scrub(Some(0)).unwrap();
        fs.write(ino, 0, &noise(100 + round, 100_000), WriteHow::default()).unwrap();
        fs.sync_wait().unwrap();
        if round % 5 == 0 {
            fs.vault().checkpoint().unwrap();
        }
    }
    assert_eq!(stands(fs.vault()).mark.damaged, 0);
    assert!(fs.vault().stats().errors().is_empty());
}

#[test]
fn a_disk_that_gives_nothing_costs_a_bounded_number_of_lines_and_is_not_called_damaged() {
    let disk = MemoryBacking::default();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    vault::create(&backing, &unlock(), &CreateOptions::default(), &world()).unwrap();
    file(&opened(&disk), "large", &noise(1, 3_000_000));
    let fs = opened(&disk);
    let fault = disk.plant(Fault::of(&[Call::Read], Effect::Error(libc::EIO)).on("segments/"));
    fs.vault().scrub(Some(0)).unwrap();
    let report = stands(fs.vault());
    assert_eq!((report.state, report.mark.damaged), (ScrubState::Done, 0));
    assert!(report.unread > 100 && report.hurt.iter().all(|hurt| hurt.is_unread), "{report:?}");
    let errors = fs.vault().stats().errors();
    assert!((50..60).contains(&errors.len()), "{} lines for {} frames", errors.len(), report.unread);
    let last = &errors.last().unwrap().text;
    assert!(last.contains("more ranges"), "{last}");
    disk.lift(fault);
    fs.vault().scrub(Some(0)).unwrap();
    let report = stands(fs.vault());
    assert_eq!((report.state, report.unread, report.mark.damaged, report.hurt), (ScrubState::Done, 0, 0, Vec::new()));
}

/// A world whose clock panics in the scrub's thread while it is told to.
struct Panics(RealWorld, Arc<AtomicBool>);

impl World for Panics {
    fn now(&self) -> Time {
        self.0.now()
    }
    fn elapsed(&self) -> Duration {
        let is_scrub = std::thread::current().name() == Some("scrub");
        assert!(!(is_scrub && self.1.load(SeqCst)), "planted");
        self.0.elapsed()
    }
    fn fill(&self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }
    fn sleep(&self, duration: Duration) {
        self.0.sleep(duration);
    }
}

#[test]
fn a_panic_in_the_scrub_ends_it_as_failed() {
    let (disk, panics) = (punched(), Arc::new(AtomicBool::new(true)));
    let world = Arc::new(Panics(RealWorld::default(), Arc::clone(&panics)));
    let vault = vault::open(Arc::new(disk.clone()), &unlock(), &OpenOptions::default(), world).unwrap();
    vault.scrub(Some(0)).unwrap();
    assert_eq!(stands(&vault).state, ScrubState::Failed);
    assert!(vault.stats().errors().iter().any(|line| line.text.contains("panicked")));
    panics.store(false, SeqCst);
    vault.scrub(Some(0)).unwrap();
    assert_eq!(stands(&vault).state, ScrubState::Done, "it can be asked for again");
    vault.close().unwrap();
}
