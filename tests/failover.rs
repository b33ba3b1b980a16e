//! A vault whose backing directory fails, with an emergency directory beside it.
//!
//! Method: two test disks, faults planted in the one or the other, with threads and without. Promise: what sync
//! acknowledged is there after a power cut that meets both disks, wherever it lay; the vault comes home by itself, and what
//! it left in the emergency directory is removed only then; the history says what happened, in order.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/held.rs"]
mod held;

use held::{Call, Gate, HeldDisk};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use strongroom::backing::{Backing, Effect, Fault, MUTATING, MemoryBacking, read_file};
use strongroom::base::id::Ino;
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, Time, World};
use strongroom::check::{Share, check_locked};
use strongroom::format::key;
use strongroom::seal::Unlock;
use strongroom::vault::{
    Choose, CreateOptions, EmergencyDir, HomeDir, OpenFault, OpenOptions, State, Vault, VaultFault, create, lock, open,
};

/// A clock that moves when it is waited for, and scripted entropy.
struct Script {
    now: Mutex<Duration>,
    state: AtomicU64,
}

impl Script {
    fn new(seed: u64) -> Arc<Script> {
        Arc::new(Script { now: Mutex::new(Duration::ZERO), state: AtomicU64::new(seed) })
    }

    fn next(&self) -> u64 {
        let mut z = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl World for Script {
    fn now(&self) -> Time {
        Time { seconds: self.elapsed().as_secs() as i64, nanos: 0 }
    }
    fn elapsed(&self) -> Duration {
        *self.now.lock().unwrap()
    }
    fn fill(&self, out: &mut [u8]) {
        out.iter_mut().for_each(|b| *b = self.next() as u8);
    }
    fn sleep(&self, time: Duration) {
        *self.now.lock().unwrap() += time;
    }
}

/// Two disks and a vault on them.
struct Pair {
    home: MemoryBacking,
    away: MemoryBacking,
    reachable: Arc<AtomicBool>,
    world: Arc<dyn World>,
    stepped: Option<Choose>,
}

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(b"a key file of thirty-two bytes, or more".to_vec()))
}

impl Pair {
    fn new() -> Pair {
        Self::with(Arc::new(RealWorld::default()), None)
    }

    fn stepped(seed: u64) -> Pair {
        let world = Script::new(seed);
        let chance = Script::new(seed ^ 77);
        Self::with(world, Some(Arc::new(move |n| (chance.next() % n as u64) as usize)))
    }

    fn with(world: Arc<dyn World>, stepped: Option<Choose>) -> Pair {
        let (home, away) = (MemoryBacking::default(), MemoryBacking::default());
        let backing: Arc<dyn Backing> = Arc::new(home.clone());
        create(&backing, &unlock(), &CreateOptions::default(), &world).unwrap();
        Pair { home, away, reachable: Arc::new(AtomicBool::new(true)), world, stepped }
    }

    fn options(&self) -> OpenOptions {
        let (away, reachable) = (self.away.clone(), Arc::clone(&self.reachable));
        let reach = move |_| match reachable.load(SeqCst) {
            true => Ok(Arc::new(away.clone()) as Arc<dyn Backing>),
            false => Err(std::io::ErrorKind::NotFound.into()),
        };
        let emergency = Some(EmergencyDir { path: "/emergency".to_owned(), reach: Arc::new(reach), is_shadow: false });
        OpenOptions { emergency, stepped: self.stepped.clone(), budget_bytes: 32 << 20, ..OpenOptions::default() }
    }

    fn open(&self) -> Arc<Vault> {
        self.try_open(&self.options()).unwrap_or_else(|e| panic!("{e}"))
    }

    fn try_open(&self, options: &OpenOptions) -> Result<Arc<Vault>, OpenFault> {
        open(Arc::new(self.home.clone()), &unlock(), options, Arc::clone(&self.world))
    }

    /// Both disks as a power cut leaves them that takes everything unsynced.
    fn cut(&self) -> Pair {
        let (home, away) = (self.home.crash(|_, _| false), self.away.crash(|_, _| false));
        let (world, stepped) = (Arc::clone(&self.world), self.stepped.clone());
        Pair { home, away, reachable: Arc::new(AtomicBool::new(true)), world, stepped }
    }

    fn fail_home(&self, errno: i32) {
        self.home.plant(Fault::of(MUTATING, Effect::Error(errno)));
    }

    fn segments_away(&self) -> usize {
        self.away.list("segments").map_or(0, |names| names.len())
    }

    fn wait(&self, vault: &Vault, what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..900 {
            if holds() {
                return;
            }
            if self.stepped.is_none() || !vault.step() {
                self.world.sleep(Duration::from_millis(20));
            }
        }
        panic!("{what}: not in time; history: {:?}; errors: {:?}", history(vault), vault.stats().errors());
    }
}

/// A disk whose flushes do not end while the gate is shut.
fn stalling(disk: &MemoryBacking) -> (HeldDisk, Gate) {
    let gate = Gate::default();
    let passing = gate.clone();
    let before = move |call, _: &str| {
        if call == Call::Sync {
            passing.pass();
        }
    };
    (HeldDisk::new(disk, before), gate)
}

#[test]
fn a_flush_that_does_not_end_makes_the_log_go_away() {
    let pair = Pair::new();
    let (home, gate) = stalling(&pair.home);
    let options = OpenOptions { flush_deadline: Duration::from_millis(300), ..pair.options() };
    let vault = open(Arc::new(home), &unlock(), &options, Arc::clone(&pair.world)).unwrap();
    let data = noise(8, 200_000);
    write(&vault, 10, 0, &data).unwrap();
    vault.sync_wait().unwrap();
    let stalled = gate.shut();
    write(&vault, 11, 0, &data).unwrap();
    vault.sync_wait().expect("the emergency directory takes it");
    assert_eq!(vault.state(), State::Backup);
    assert_eq!(read(&pair.cut().open(), 11, 200_000), data, "after a power cut, from the emergency directory");
    write(&vault, 12, 0, &data).unwrap();
    vault.sync_wait().unwrap();
    drop(stalled);
    pair.wait(&vault, "coming home", || pair.segments_away() == 0 && vault.state() != State::Recovering);
    vault.close().unwrap();
    let vault = pair.open();
    for ino in 10..13 {
        assert_eq!(read(&vault, ino, 200_000), data);
    }
}

#[test]
fn while_the_disk_stalls_no_more_is_sealed_than_there_is_room_for() {
    let pair = Pair::new();
    let (home, gate) = stalling(&pair.home);
    let options = OpenOptions { budget_bytes: 16 << 20, ..OpenOptions::default() };
    let vault = open(Arc::new(home), &unlock(), &options, Arc::clone(&pair.world)).unwrap();
    // The log gets no further than the file of its first segment. A test that fails must not wait for it.
    let stalled = gate.shut();
    let data = noise(9, 7 << 20);
    write(&vault, 10, 0, &data).unwrap();
    let room = options.budget_bytes / 16;
    let sealed = || vault.gauges().in_flight_bytes;
    pair.wait(&vault, "sealing", || sealed() + (256 << 10) > room);
    // Time enough for workers that do not wait.
    pair.world.sleep(Duration::from_millis(300));
    assert!(sealed() <= room, "{} bytes are sealed", sealed());
    assert_eq!(read(&vault, 10, 7 << 20), data, "reading goes on");
    drop(stalled);
    vault.sync_wait().unwrap();
    assert_eq!(read(&vault, 10, 7 << 20), data);
    assert_eq!(sealed(), 0, "and all of the room came back");
    vault.close().unwrap();
}

fn write(vault: &Vault, ino: u64, offset: u64, data: &[u8]) -> Result<(), VaultFault> {
    let file = vault.file(Ino(ino));
    let room = vault.reserve(&file, offset, data.len() as u64)?;
    let mut op = vault.begin();
    op.write(&file, offset, data, room);
    op.put(key::inode(Ino(ino)), data.len().to_le_bytes().to_vec());
    op.commit();
    Ok(())
}

fn read(vault: &Vault, ino: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    vault.read(&vault.file(Ino(ino)), 0, len, &mut out).unwrap();
    out
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let chance = Script::new(seed);
    (0..len).map(|_| chance.next() as u8).collect()
}

fn history(vault: &Vault) -> Vec<String> {
    let word = |l: strongroom::vault::Line| l.text.split(':').next().unwrap_or_default().to_owned();
    vault.stats().history().into_iter().map(word).collect()
}

fn goes_away_and_comes_home(pair: &Pair, errno: i32) {
    let vault = pair.open();
    let before = noise(1, 300_000);
    write(&vault, 10, 0, &before).unwrap();
    vault.sync_wait().unwrap();
    // Some of the next batch is in the failing segment already.
    let after = noise(2, 700_000);
    write(&vault, 11, 0, &after).unwrap();
    pair.fail_home(errno);
    write(&vault, 12, 0, b"small").unwrap();
    vault.sync_wait().expect("the emergency directory takes it");
    assert_eq!(vault.state(), State::Backup);
    assert!(pair.segments_away() > 0 && vault.is_away());
    assert_eq!((read(&vault, 10, 300_000), read(&vault, 11, 700_000)), (before.clone(), after.clone()));
    // A power cut while it is away.
    let cut = pair.cut();
    {
        let again = cut.open();
        assert_eq!((read(&again, 10, 300_000), read(&again, 11, 700_000)), (before.clone(), after.clone()));
        assert_eq!(read(&again, 12, 5), b"small");
        cut.wait(&again, "coming home after the cut", || cut.segments_away() == 0);
        cut.wait(&again, "ready after the cut", || again.state() != State::Recovering);
        assert_eq!(read(&again, 11, 700_000), after);
        again.close().unwrap();
    }
    // And more while it is away.
    write(&vault, 13, 0, &before).unwrap();
    vault.sync_wait().unwrap();
    pair.home.lift_all();
    pair.wait(&vault, "coming home", || pair.segments_away() == 0 && vault.state() != State::Recovering);
    let lines: Vec<String> = history(&vault).into_iter().filter(|l| l != "init").collect();
    assert_eq!(lines, ["ready", "backup", "recovering", "ready"]);
    write(&vault, 14, 0, b"home again").unwrap();
    vault.sync_wait().unwrap();
    for (ino, want) in [(10, &before[..]), (11, &after), (12, b"small"), (13, &before), (14, b"home again")] {
        assert_eq!(read(&vault, ino, want.len()), want);
    }
    vault.close().unwrap();
    drop(vault);
    pair.reachable.store(false, SeqCst);
    let vault = pair.open();
    assert_eq!((read(&vault, 13, 300_000), read(&vault, 14, 10)), (before, b"home again".to_vec()));
    assert!(vault.totals()["state_backup_entered"] >= 1, "statistics outlive the mount");
    assert!(history(&vault).iter().any(|l| l == "backup"), "and so does the history");
    vault.close().unwrap();
}

#[test]
fn with_errors_at_home_the_log_goes_away_and_comes_back() {
    for errno in [libc::EIO, libc::ENOSPC, libc::EROFS, libc::ENODEV] {
        goes_away_and_comes_home(&Pair::new(), errno);
    }
}

#[test]
fn the_same_without_threads_is_the_same_each_time() {
    for seed in 1..=8 {
        let pair = Pair::stepped(seed);
        goes_away_and_comes_home(&pair, libc::EIO);
        let twin = Pair::stepped(seed);
        goes_away_and_comes_home(&twin, libc::EIO);
        assert_eq!(pair.world.elapsed(), twin.world.elapsed(), "seed {seed}");
        assert_eq!(pair.home.calls(), twin.home.calls(), "seed {seed}");
    }
}

#[test]
fn a_vault_that_needs_its_emergency_directory_says_where_it_was() {
    let pair = Pair::new();
    let vault = pair.open();
    pair.fail_home(libc::EIO);
    write(&vault, 10, 0, b"far away").unwrap();
    vault.sync_wait().unwrap();
    let cut = pair.cut();
    cut.reachable.store(false, SeqCst);
    for options in [cut.options(), OpenOptions { emergency: None, ..cut.options() }] {
        match cut.try_open(&options) {
            Err(OpenFault::EmergencyNeeded { path }) => assert_eq!(path, "/emergency"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it opened without what it had acknowledged"),
        }
    }
    cut.reachable.store(true, SeqCst);
    let again = cut.open();
    assert_eq!(read(&again, 10, 8), b"far away");
    again.close().unwrap();
    // Whoever says so goes without.
    let other = pair.cut();
    let without = OpenOptions { emergency: None, without_emergency: true, ..other.options() };
    let again = other.try_open(&without).unwrap();
    assert_eq!(again.get(&key::inode(Ino(10))).unwrap(), None);
    again.close().unwrap();
}

#[test]
fn when_both_places_fail_nothing_is_lost_and_both_heal() {
    for stepped in [false, true] {
        let pair = if stepped { Pair::stepped(5) } else { Pair::new() };
        let vault = pair.open();
        pair.fail_home(libc::EIO);
        pair.away.plant(Fault::of(MUTATING, Effect::Error(libc::ENOSPC)));
        let data = noise(3, 400_000);
        write(&vault, 10, 0, &data).unwrap();
        assert!(vault.sync_wait().is_err(), "nobody has it");
        assert_eq!(vault.state(), State::Error);
        assert_eq!(read(&vault, 10, 400_000), data, "its buffers do");
        assert!(matches!(write(&vault, 11, 0, b"x"), Err(VaultFault::Stopped(_))));
        assert_eq!(vault.unsaved(), [Ino(10)]);
        // First the emergency directory heals, then the backing directory.
        pair.away.lift_all();
        pair.wait(&vault, "the emergency directory takes it", || vault.state() == State::Backup);
        assert_eq!(read(&pair.cut().open(), 10, 400_000), data);
        pair.home.lift_all();
        pair.wait(&vault, "home", || pair.segments_away() == 0 && vault.state() != State::Recovering);
        let lines: Vec<String> = history(&vault).into_iter().filter(|l| l != "init").collect();
        assert_eq!(lines, ["ready", "backup", "error", "backup", "recovering", "ready"], "stepped: {stepped}");
        vault.close().unwrap();
        assert_eq!(read(&pair.open(), 10, 400_000), data);
    }
}

#[test]
fn closing_while_away_leaves_everything_safe_and_the_next_opening_brings_it_home() {
    let pair = Pair::new();
    let vault = pair.open();
    pair.fail_home(libc::EIO);
    write(&vault, 10, 0, b"unsynced").unwrap();
    // The last checkpoint cannot be stored; what was written is in the emergency directory.
    let _ = vault.close();
    assert!(vault.unsaved().is_empty() && vault.is_away());
    drop(vault);
    pair.home.lift_all();
    let vault = pair.open();
    assert_eq!(read(&vault, 10, 8), b"unsynced");
    pair.wait(&vault, "coming home", || pair.segments_away() == 0);
    vault.close().unwrap();
}

#[test]
fn an_emergency_directory_that_was_taken_away_is_used_when_it_is_back() {
    let pair = Pair::new();
    pair.reachable.store(false, SeqCst);
    let vault = pair.open();
    pair.fail_home(libc::EIO);
    write(&vault, 10, 0, b"patience").unwrap();
    assert!(vault.sync_wait().is_err());
    pair.reachable.store(true, SeqCst);
    pair.wait(&vault, "the emergency directory takes it", || vault.state() == State::Backup);
    assert_eq!(read(&pair.cut().open(), 10, 8), b"patience");
}

/// Every file of a disk but the lock, whole.
fn files(disk: &MemoryBacking) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for dir in ["", "segments/", "index/", "snapshots/"] {
        for name in disk.list(dir.trim_end_matches('/')).unwrap_or_default() {
            if !["lock", "segments", "index", "snapshots"].contains(&name.as_str()) {
                let path = format!("{dir}{name}");
                let bytes = read_file(disk, &path, 1 << 30).unwrap();
                all.push((path, bytes));
            }
        }
    }
    all
}

#[test]
fn a_look_sees_what_is_away_and_touches_neither_place() {
    let pair = Pair::new();
    let vault = pair.open();
    write(&vault, 10, 0, &[1; 50_000]).unwrap();
    vault.sync_wait().unwrap();
    pair.fail_home(libc::EIO);
    write(&vault, 11, 0, &[2; 50_000]).unwrap();
    vault.sync_wait().unwrap();
    assert!(pair.segments_away() > 0);
    let cut = pair.cut();
    let before = (files(&cut.home), files(&cut.away));
    let locked = || lock(Arc::new(cut.home.clone())).unwrap();
    let look = |locked| check_locked(locked, &unlock(), &cut.world, Share::All, &|_, _| ());
    assert!(matches!(look(locked()), Err(OpenFault::EmergencyNeeded { .. })));
    let found = look(locked().beside(cut.options().emergency, false)).unwrap();
    // What these tests store for inodes is no inode; of the segments nothing is missing.
    let lost: Vec<_> = found.iter().filter(|f| f.is_loss() || f.kind().starts_with("segment")).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert!((files(&cut.home), files(&cut.away)) == before);
    // Without the second place it would be found missing.
    let without = look(locked().beside(None, true)).unwrap();
    assert_ne!(without, found, "what is away was not looked at");
    assert!((files(&cut.home), files(&cut.away)) == before);
    let vault = cut.open();
    cut.wait(&vault, "home again", || cut.segments_away() == 0);
}

#[test]
fn what_was_left_behind_is_never_mixed_with_what_came_after() {
    let pair = Pair::new();
    let vault = pair.open();
    write(&vault, 9, 0, b"at home").unwrap();
    vault.sync_wait().unwrap();
    pair.fail_home(libc::EIO);
    write(&vault, 10, 0, b"far away").unwrap();
    vault.sync_wait().unwrap();
    // Killed, and opened without what it holds there; that goes on for a while.
    let cut = pair.cut();
    let without = OpenOptions { emergency: None, without_emergency: true, ..cut.options() };
    let data = noise(4, 300_000);
    for ino in 20..23 {
        let again = cut.try_open(&without).unwrap();
        write(&again, ino, 0, &data).unwrap();
        again.sync_wait().unwrap();
        again.close().unwrap();
    }
    // The old directory comes back: what it holds is of a history that was left.
    for rebuild_index in [false, true] {
        let again = cut.try_open(&OpenOptions { rebuild_index, ..cut.options() }).unwrap();
        cut.wait(&again, "nothing lies away any more", || again.state() != State::Recovering);
        for ino in 20..23 {
            assert_eq!(read(&again, ino, 300_000), data, "rebuilt: {rebuild_index}");
        }
        assert_eq!(read(&again, 9, 7), b"at home");
        assert_eq!(again.get(&key::inode(Ino(10))).unwrap(), None, "rebuilt: {rebuild_index}");
        again.close().unwrap();
    }
}

/// Opens an older copy as a person does who restores it.
fn restored(copy: &Pair) -> Arc<Vault> {
    let Err(OpenFault::RolledBack { to: found, .. }) = copy.try_open(&copy.options()).map(|_| ()) else {
        panic!("the pin in the emergency directory tells");
    };
    let locked = lock(Arc::new(copy.home.clone())).unwrap().remembered(Vec::new(), Some(found));
    locked.open(&unlock(), &copy.options(), Arc::clone(&copy.world)).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn an_older_copy_leaves_alone_what_the_newer_vault_has_in_the_emergency_directory() {
    let pair = Pair::new();
    let vault = pair.open();
    write(&vault, 9, 0, b"before").unwrap();
    vault.close().unwrap();
    drop(vault);
    let copy = Pair { home: pair.home.crash(|_, _| true), away: pair.away.clone(), ..pair.cut() };
    let vault = pair.open();
    write(&vault, 10, 0, b"at home").unwrap();
    vault.sync_wait().unwrap();
    pair.fail_home(libc::EIO);
    write(&vault, 11, 0, b"far away").unwrap();
    vault.sync_wait().unwrap();
    let _ = vault.close();
    assert!(vault.is_away() && vault.unsaved().is_empty());
    drop(vault);
    let segments = || files(&pair.away).into_iter().filter(|(name, _)| name.starts_with("segments/"));
    let theirs: Vec<_> = segments().collect();
    assert!(!theirs.is_empty());

    // The copy neither shows it, nor takes it home, nor writes over it when it needs the directory itself.
    for round in 0..2 {
        let vault = if round == 0 { restored(&copy) } else { copy.open() };
        assert!(vault.stats().errors().iter().any(|line| line.text.contains("newer state")), "it is told");
        for ino in [10, 11] {
            assert_eq!(vault.get(&key::inode(Ino(ino))).unwrap(), None);
        }
        assert_eq!(read(&vault, 9, 6), b"before");
        assert!(!vault.is_away(), "nothing of it is there");
        write(&vault, 20 + round, 0, b"restored").unwrap();
        vault.sync_wait().unwrap();
        if round == 1 {
            copy.fail_home(libc::EIO);
            write(&vault, 22, 0, b"restored").unwrap();
            vault.sync_wait().unwrap();
            assert!(vault.is_away());
        }
        let _ = vault.close();
        drop(vault);
        let now: Vec<_> = segments().collect();
        assert!(theirs.iter().all(|file| now.contains(file)), "what the newer vault wrote is as it was");
        assert_eq!(now.len() > theirs.len(), round == 1);
    }

    // Both histories are whole, each without the other.
    pair.home.lift_all();
    copy.home.lift_all();
    let vault = restored(&pair);
    pair.wait(&vault, "coming home", || !vault.is_away());
    for (ino, data) in [(9, &b"before"[..]), (10, b"at home"), (11, b"far away")] {
        assert_eq!(read(&vault, ino, data.len()), data);
    }
    assert_eq!(vault.get(&key::inode(Ino(22))).unwrap(), None);
    vault.close().unwrap();
    drop(vault);
    let vault = restored(&copy);
    copy.wait(&vault, "coming home", || copy.segments_away() == 0);
    assert_eq!(read(&vault, 22, 8), b"restored");
    assert_eq!(vault.get(&key::inode(Ino(11))).unwrap(), None);
    vault.close().unwrap();
}

#[test]
fn one_mount_at_a_time_uses_an_emergency_directory() {
    let pair = Pair::new();
    let vault = pair.open();
    write(&vault, 9, 0, b"before").unwrap();
    vault.sync_wait().unwrap();
    let copy = Pair { home: pair.home.crash(|_, _| true), away: pair.away.clone(), ..pair.cut() };
    pair.fail_home(libc::EIO);
    write(&vault, 10, 0, b"far away").unwrap();
    vault.sync_wait().unwrap();
    let segments =
        || files(&pair.away).into_iter().filter(|(name, _)| name.starts_with("segments/")).collect::<Vec<_>>();
    let before = segments();
    // It was copied while it was in use, and may need what is there.
    let Err(refused) = copy.try_open(&copy.options()).map(|_| ()) else { panic!("it opens") };
    assert!(refused.to_string().contains("another mount of this vault"), "{refused}");
    let without = OpenOptions { emergency: None, without_emergency: true, ..copy.options() };
    let other = copy.try_open(&without).unwrap();
    write(&other, 11, 0, b"the copy's").unwrap();
    other.close().unwrap();
    drop(other);
    // Closed, it needs nothing: it does without as long as the other one lives.
    let other = copy.open();
    copy.fail_home(libc::EIO);
    write(&other, 12, 0, b"nowhere").unwrap();
    assert!(other.sync_wait().is_err());
    assert!(segments() == before, "nothing there was touched");
    assert_eq!(read(&vault, 10, 8), b"far away");
    let _ = vault.close();
    drop(vault);
    copy.wait(&other, "the emergency directory is free", || other.sync_wait().is_ok());
    assert!(other.is_away());
}

#[test]
fn an_empty_place_where_the_emergency_directory_should_be_is_not_taken_for_it() {
    let pair = Pair::new();
    let vault = pair.open();
    pair.fail_home(libc::EIO);
    write(&vault, 10, 0, b"far away").unwrap();
    vault.sync_wait().unwrap();
    let cut = pair.cut();
    // Its filesystem is not mounted: the path leads to an empty directory.
    let empty = Pair { away: MemoryBacking::default(), ..cut.cut() };
    assert!(matches!(empty.try_open(&empty.options()), Err(OpenFault::EmergencyNeeded { .. })));
    assert_eq!(read(&cut.open(), 10, 8), b"far away");
}

/// A vault without an emergency directory, whose path leads to whatever disk the slot holds.
fn replaceable(pair: &Pair) -> (Arc<Vault>, Arc<Mutex<Option<MemoryBacking>>>) {
    let there: Arc<Mutex<Option<MemoryBacking>>> = Arc::default();
    let seen = Arc::clone(&there);
    let reopen = move || match &*seen.lock().unwrap() {
        Some(disk) => Ok(Arc::new(disk.clone()) as Arc<dyn Backing>),
        None => Err(std::io::ErrorKind::NotFound.into()),
    };
    let home = Some(HomeDir { path: "/vault".to_owned(), reopen: Arc::new(reopen) });
    (pair.try_open(&OpenOptions { home, emergency: None, ..pair.options() }).unwrap(), there)
}

/// The errors that say what lies where the vault should be.
fn refusals(vault: &Vault) -> Vec<String> {
    let all = vault.stats().errors().into_iter().map(|line| line.text);
    all.filter(|text| text.starts_with("/vault: ")).collect()
}

#[test]
fn a_disk_that_was_unplugged_and_comes_back_takes_the_log_again() {
    let pair = Pair::new();
    let (vault, there) = replaceable(&pair);
    let data = noise(21, 900_000);
    write(&vault, 10, 0, &data).unwrap();
    vault.sync_wait().unwrap();
    let older = pair.home.crash(|_, _| false);
    vault.checkpoint().unwrap();
    write(&vault, 11, 0, &data).unwrap();
    vault.sync_wait().unwrap();
    write(&vault, 12, 0, &data).unwrap();
    // Unplugged: what was synced is on it, the rest in memory, and what is open is dead.
    let unplugged = pair.home.crash(|_, _| false);
    pair.home.plant(Fault::of(&[], Effect::Error(libc::EIO)));
    assert!(vault.sync_wait().is_err());
    assert_eq!((vault.state(), read(&vault, 12, 900_000)), (State::Error, data.clone()));
    // Something else lies there first: none of it is touched.
    let other = Pair::new().home;
    let elsewhere = unplugged.copy();
    open(Arc::new(elsewhere.clone()), &unlock(), &OpenOptions::default(), Arc::clone(&pair.world))
        .unwrap()
        .close()
        .unwrap();
    let busy = unplugged.copy();
    let _lock = busy.lock("lock").unwrap();
    for (what, disk, why) in [
        ("another vault", &other, "another vault lies there"),
        ("an older copy", &older, "an older copy of the vault lies there"),
        ("one that was used elsewhere", &elsewhere, "used elsewhere meanwhile"),
        ("one that is open", &busy, "another process has it open"),
    ] {
        let (before, calls) = (refusals(&vault).len(), disk.calls());
        *there.lock().unwrap() = Some(disk.clone());
        pair.wait(&vault, what, || refusals(&vault).len() > before);
        let said = refusals(&vault).pop().unwrap();
        assert!(said.contains(why), "{what}: {said}");
        assert_eq!((disk.calls(), vault.state()), (calls, State::Error), "{what} was changed");
        *there.lock().unwrap() = None;
    }
    // And then it.
    *there.lock().unwrap() = Some(unplugged.clone());
    pair.wait(&vault, "going on", || vault.state() != State::Error);
    vault.sync_wait().expect("it takes the log again");
    write(&vault, 13, 0, &data).unwrap();
    vault.checkpoint().expect("and the index");
    for ino in 10..14 {
        assert_eq!(read(&vault, ino, 900_000), data, "{ino}");
    }
    assert!(unplugged.lock("lock").is_err(), "and is locked again");
    let cut = Pair { home: unplugged.crash(|_, _| false), ..pair.cut() };
    let again = cut.try_open(&OpenOptions { emergency: None, ..cut.options() }).unwrap();
    for ino in 10..14 {
        assert_eq!(read(&again, ino, 900_000), data, "{ino}, after a power cut");
    }
    vault.close().unwrap();
    let again = open(Arc::new(unplugged), &unlock(), &OpenOptions::default(), Arc::clone(&pair.world)).unwrap();
    for ino in 10..14 {
        assert_eq!(read(&again, ino, 900_000), data, "{ino}, after it was closed");
    }
    again.close().unwrap();
}

#[test]
fn segments_that_another_program_removes_from_the_emergency_directory_are_written_again() {
    let pair = Pair::new();
    let vault = pair.open();
    let data = noise(3, 300_000);
    write(&vault, 10, 0, &data).unwrap();
    vault.sync_wait().unwrap();
    pair.fail_home(libc::EIO);
    write(&vault, 11, 0, &data).unwrap();
    vault.sync_wait().unwrap();
    assert_eq!(vault.state(), State::Backup);
    let remove_all = || {
        for name in pair.away.list("segments").unwrap() {
            pair.away.remove(&format!("segments/{name}")).unwrap();
        }
    };
    remove_all();
    write(&vault, 12, 0, &data).unwrap();
    vault.sync_wait().unwrap();
    assert!(read(&pair.cut().open(), 12, data.len()) == data, "synced after the removal");
    let is_restored = || vault.stats().errors().iter().any(|l| l.text.contains("written again from the open file"));
    pair.wait(&vault, "writing it again", is_restored);
    let cut = pair.cut().open();
    assert!(read(&cut, 11, data.len()) == data && read(&cut, 12, data.len()) == data);
    // With nothing written since, closing is what notices.
    remove_all();
    let _ = vault.close();
    drop(vault);
    pair.home.lift_all();
    let vault = pair.open();
    pair.wait(&vault, "coming home", || pair.segments_away() == 0 && vault.state() != State::Recovering);
    for ino in 10..13 {
        assert!(read(&vault, ino, data.len()) == data, "file {ino}: {:?}", vault.stats().errors());
    }
    vault.close().unwrap();
}

#[test]
fn header_files_that_are_removed_below_an_open_vault_are_written_again() {
    for closed in [true, false] {
        let pair = Pair::new();
        let vault = pair.open();
        write(&vault, 9, 0, b"kept").unwrap();
        for name in ["vault.toml", "vault.toml.copy"] {
            pair.home.remove(name).unwrap();
        }
        if closed {
            vault.close().unwrap();
        } else {
            vault.sync_wait().unwrap();
            vault.checkpoint().unwrap();
        }
        assert!(vault.stats().errors().iter().any(|line| line.text.contains("vault.toml was gone")));
        assert_eq!(read(&pair.cut().open(), 9, 4), b"kept", "closed: {closed}");
    }
}
