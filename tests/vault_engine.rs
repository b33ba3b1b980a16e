//! Method: drive the vault's own face (no fs, no mount) on a disk in memory that forgets what was not synced.
//! Promise: what was synced is there after a power cut, whole; what was not may be missing, never invented; reads show
//! buffers, frames at rest and holes alike.

#[path = "common/held.rs"]
mod held;

use held::{Call, Gate, HeldDisk};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use strongroom::backing::{Backing, Cache, Effect, Fault, Kind, MemoryBacking, Open};
use strongroom::base::choice::Compression;
use strongroom::base::id::Ino;
use strongroom::base::limits::{GROUP_BYTES_MAX, SEGMENT_BYTES};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::format::key;
use strongroom::seal::Unlock;
use strongroom::vault::{CreateOptions, OpenOptions, State, Vault, VaultFault, create, open};

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![7; 64]))
}

fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

fn fresh(disk: &MemoryBacking) {
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    create(&backing, &unlock(), &CreateOptions::default(), &world()).expect("an empty directory takes a vault");
}

fn opened(disk: &MemoryBacking, options: &OpenOptions) -> Arc<Vault> {
    open(Arc::new(disk.clone()), &unlock(), options, world()).expect("a vault that was made opens")
}

fn write(vault: &Vault, ino: u64, offset: u64, data: &[u8]) {
    let file = vault.file(Ino(ino));
    let room = vault.reserve(&file, offset, data.len() as u64).expect("there is room");
    let mut op = vault.begin();
    op.write(&file, offset, data, room);
    op.put(key::inode(Ino(ino)), data.len().to_le_bytes().to_vec());
    op.commit();
}

fn punch(vault: &Vault, ino: u64, from: u64, to: u64) {
    let mut op = vault.begin();
    op.punch(&vault.file(Ino(ino)), from, to);
    op.commit();
}

fn read(vault: &Vault, ino: u64, offset: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    vault.read(&vault.file(Ino(ino)), offset, len, &mut out).expect("what was written opens");
    out
}

struct Random(u64);
impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        // Half of the time compressible.
        if self.below(2) == 0 {
            let b = self.below(256) as u8;
            (0..len).map(|i| b.wrapping_add((i / 100) as u8)).collect()
        } else {
            (0..len).map(|_| self.below(256) as u8).collect()
        }
    }
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut random = Random(99);
    (0..len).map(|_| random.below(256) as u8).collect()
}

#[test]
fn what_is_written_is_read_back_now_after_sync_and_after_reopening() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    let data: Vec<u8> = (0..1_000_000u32).map(|i| (i / 7) as u8).collect();
    write(&vault, 5, 0, &data);
    write(&vault, 6, 300, b"small");
    assert_eq!(read(&vault, 5, 0, data.len()), data);
    vault.sync_wait().expect("the disk is well");
    assert_eq!(vault.pending_bytes() > 0, vault.state() != State::Ready || vault.pending_bytes() > 0);
    assert_eq!(read(&vault, 5, 1000, 200_000), data[1000..201_000]);
    assert_eq!(read(&vault, 6, 298, 7), b"\0\0small");
    vault.close().expect("the disk is well");
    drop(vault);
    let vault = opened(&disk, &OpenOptions::default());
    assert_eq!(read(&vault, 5, 0, data.len()), data);
    assert_eq!(read(&vault, 6, 300, 5), b"small");
    assert_eq!(vault.get(&key::inode(Ino(6))).unwrap(), Some(5usize.to_le_bytes().to_vec()));
    assert!(vault.stats().errors().is_empty());
}

#[test]
fn random_writes_and_holes_match_a_model_through_syncs_checkpoints_and_reopenings() {
    for seed in 1..=12u64 {
        let disk = MemoryBacking::default();
        fresh(&disk);
        let small = OpenOptions { budget_bytes: 16 << 20, ..OpenOptions::default() };
        let mut vault = opened(&disk, &small);
        let mut random = Random(seed * 7919);
        const N: usize = 1_500_000;
        let mut model = vec![vec![0u8; N]; 3];
        for step in 0..150 {
            let which = random.below(3) as usize;
            let at = random.below(N as u64 - 1);
            let most = if random.below(4) == 0 { 400_000 } else { 6000 };
            let len = (1 + random.below(most)).min(N as u64 - at);
            match random.below(20) {
                0..=12 => {
                    let data = random.bytes(len as usize);
                    write(&vault, 10 + which as u64, at, &data);
                    model[which][at as usize..(at + len) as usize].copy_from_slice(&data);
                }
                13 | 14 => {
                    punch(&vault, 10 + which as u64, at, at + len);
                    model[which][at as usize..(at + len) as usize].fill(0);
                }
                15 => {
                    punch(&vault, 10 + which as u64, at, u64::MAX);
                    model[which][at as usize..].fill(0);
                }
                16 => vault.sync_wait().expect("the disk is well"),
                17 => vault.checkpoint().expect("the disk is well"),
                18 => {
                    vault.close().expect("the disk is well");
                    vault = opened(&disk, &small);
                }
                _ => {
                    let got = read(&vault, 10 + which as u64, at, len as usize);
                    assert!(got == model[which][at as usize..(at + len) as usize], "seed {seed}, step {step}");
                }
            }
        }
        vault.close().expect("the disk is well");
        vault = opened(&disk, &small);
        for (which, want) in model.iter().enumerate() {
            assert!(read(&vault, 10 + which as u64, 0, N) == *want, "seed {seed}, file {which}");
        }
        assert!(vault.stats().errors().is_empty(), "seed {seed}: {:?}", vault.stats().errors());
    }
}

/// Runs synced and unsynced writes, cuts the power, and gives the vault that opens after, with what was synced.
fn cut(seed: u64, lie: bool) -> (Arc<Vault>, u64, u64) {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions { budget_bytes: 16 << 20, ..OpenOptions::default() });
    if lie {
        disk.lie_about_sync();
    }
    let mut random = Random(seed);
    let steps = 5 + random.below(20);
    let mut synced = 0;
    // Step n makes file 10 hold n as its first number, and file 11 the same: an operation across two files.
    for n in 1..=steps {
        let (a, b) = (vault.file(Ino(10)), vault.file(Ino(11)));
        let mut body = n.to_le_bytes().to_vec();
        let len = 1 + random.below(60_000) as usize;
        body.extend(random.bytes(len));
        let rooms = [vault.reserve(&a, 0, 99).expect("room"), vault.reserve(&b, 0, 99).expect("room")];
        let mut op = vault.begin();
        for (file, room) in [&a, &b].into_iter().zip(rooms) {
            op.write(file, 0, &body, room);
        }
        op.put(key::inode(Ino(10)), n.to_le_bytes().to_vec());
        op.commit();
        if random.below(3) == 0 {
            vault.sync_wait().expect("the disk is well");
            synced = n;
        }
        if random.below(8) == 0 {
            vault.checkpoint().expect("the disk is well");
            synced = n;
        }
    }
    let mut keep = Random(seed * 31 + 1);
    let after = disk.crash(|_, _| keep.below(2) == 0);
    (opened(&after, &OpenOptions::default()), synced, steps)
}

fn survived(vault: &Vault, synced: u64, steps: u64) -> Result<(), String> {
    let number = |ino| {
        let mut out = Vec::new();
        vault.read(&vault.file(Ino(ino)), 0, 8, &mut out).map_err(|e| e.to_string())?;
        Ok::<u64, String>(u64::from_le_bytes(out.try_into().expect("eight bytes were asked for")))
    };
    let of_key = match vault.get(&key::inode(Ino(10))).map_err(|e| e.to_string())? {
        Some(v) => u64::from_le_bytes(v.try_into().map_err(|_| "a value of another length".to_owned())?),
        None => 0,
    };
    let (a, b) = (number(10)?, number(11)?);
    if a != b || a != of_key {
        return Err(format!("half an operation: {a}, {b}, {of_key}"));
    }
    if a < synced || a > steps {
        return Err(format!("step {a} survived, {synced} was synced, {steps} were made"));
    }
    Ok(())
}

#[test]
fn after_a_power_cut_the_synced_is_there_and_nothing_is_half() {
    for seed in 1..=60 {
        let (vault, synced, steps) = cut(seed, false);
        survived(&vault, synced, steps).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn a_disk_that_lies_about_sync_is_caught() {
    let caught = (1..=20).any(|seed| {
        std::panic::catch_unwind(|| {
            let (vault, synced, steps) = cut(seed, true);
            survived(&vault, synced, steps).is_err()
        })
        .unwrap_or(true)
    });
    assert!(caught, "the harness would not notice lost data");
}

#[test]
fn a_lost_index_is_rebuilt_from_the_log() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    let data = Random(3).bytes(700_000);
    for round in 0..4u8 {
        write(&vault, 20, 0, &data);
        write(&vault, 21, 0, &[round; 5000]);
        vault.checkpoint().expect("the disk is well");
    }
    vault.close().expect("the disk is well");
    drop(vault);
    for name in disk.list("index").expect("the directory is there") {
        disk.remove(&format!("index/{name}")).expect("it was listed");
    }
    let vault = opened(&disk, &OpenOptions::default());
    assert_eq!(read(&vault, 20, 0, data.len()), data);
    assert_eq!(read(&vault, 21, 0, 5000), [3; 5000]);
}

#[test]
fn rot_in_the_tail_costs_what_it_hit_and_no_later_commit() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    // Incompressible, so that the flipped bit hits this file's frames and nothing else.
    let data = noise(400_000);
    write(&vault, 50, 0, &data);
    vault.sync_wait().expect("the disk is well");
    for ino in 51..60 {
        write(&vault, ino, 0, b"later");
        vault.sync_wait().expect("the disk is well");
    }
    // Power cut with everything synced, then a bit of the first file's data turns.
    let after = disk.crash(|_, _| true);
    after.flip_bit("segments/0000000000000001", 8 * 100_000);
    let vault = opened(&after, &OpenOptions::default());
    for ino in 51..60 {
        assert_eq!(read(&vault, ino, 0, 5), b"later", "an acknowledged commit after the damage");
    }
    let mut out = Vec::new();
    let whole = vault.read(&vault.file(Ino(50)), 0, data.len(), &mut out);
    assert!(whole.is_err(), "the damaged frame is a fault");
    let history: Vec<_> = vault.stats().history().into_iter().map(|l| l.text).collect();
    assert!(history.iter().any(|l| l.contains("1 with damage")), "{history:?}");
}

#[test]
fn a_torn_last_commit_is_dropped_whole() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    write(&vault, 50, 0, b"first");
    vault.sync_wait().expect("the disk is well");
    let data = noise(300_000);
    write(&vault, 50, 0, b"again");
    write(&vault, 51, 0, &data);
    vault.sync_wait().expect("the disk is well");
    let after = disk.crash(|_, _| true);
    after.flip_bit("segments/0000000000000001", 8 * 100_000);
    let vault = opened(&after, &OpenOptions::default());
    assert_eq!(read(&vault, 50, 0, 5), b"first", "the commit that was torn shows nothing of itself");
    assert_eq!(read(&vault, 51, 0, 4), [0; 4]);
}

#[test]
fn a_torn_first_commit_of_a_lease_is_dropped_whole() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    write(&vault, 50, 0, &noise(300_000));
    write(&vault, 51, 0, b"together");
    vault.sync_wait().expect("the disk is well");
    let after = disk.crash(|_, _| true);
    after.flip_bit("segments/0000000000000001", 8 * 100_000);
    let vault = opened(&after, &OpenOptions::default());
    assert_eq!(read(&vault, 51, 0, 8), [0; 8], "half of the first commit showed");
}

/// A vault's history since it was opened, without times and reasons.
fn history(vault: &Vault) -> Vec<String> {
    let word = |l: strongroom::vault::Line| l.text.split(':').next().unwrap_or_default().to_owned();
    vault.stats().history().into_iter().map(word).collect()
}

#[test]
fn after_a_failed_write_everything_is_written_again_in_a_new_segment() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    write(&vault, 30, 0, b"safe");
    vault.sync_wait().expect("the disk is well");
    let data = noise(900_000);
    write(&vault, 31, 0, &data);
    write(&vault, 30, 4, b"more");
    disk.fail_next_writes(1);
    vault.sync_wait().expect("one bad write is survived");
    assert_eq!(vault.stats().segments_abandoned.get(), 1);
    assert_eq!(history(&vault), ["init", "ready"], "it was never in trouble as far as anyone could see");
    let after = disk.crash(|_, _| false);
    let again = opened(&after, &OpenOptions::default());
    assert_eq!(read(&again, 30, 0, 8), b"safemore");
    assert_eq!(read(&again, 31, 0, data.len()), data);
    vault.close().expect("the disk is well");
}

#[test]
fn while_no_place_takes_the_log_reads_go_on_and_it_heals_by_itself() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    write(&vault, 30, 0, b"safe");
    vault.sync_wait().expect("the disk is well");
    write(&vault, 30, 4, b"more");
    disk.fail_next_writes(u64::MAX);
    assert!(vault.sync_wait().is_err(), "a write that failed is not acknowledged");
    assert_eq!(vault.state(), State::Error);
    assert_eq!(read(&vault, 30, 0, 8), b"safemore");
    assert!(vault.sync_wait().is_err(), "nor later");
    assert!(vault.reserve(&vault.file(Ino(30)), 0, 10).is_err(), "a writer is told at once");
    disk.fail_next_writes(0);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while vault.sync_wait().is_err() {
        assert!(std::time::Instant::now() < until, "it does not heal");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    write(&vault, 30, 8, b"still");
    vault.sync_wait().expect("the disk is well again");
    while vault.state() == State::Recovering {
        assert!(std::time::Instant::now() < until, "it does not come home");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(history(&vault), ["init", "ready", "error", "recovering", "ready"]);
    let again = opened(&disk.crash(|_, _| false), &OpenOptions::default());
    assert_eq!(read(&again, 30, 0, 13), b"safemorestill");
    vault.close().expect("the disk is well again");
}

#[test]
fn changes_go_on_while_another_program_takes_all_room_that_is_freed() {
    let disk = MemoryBacking::default();
    disk.limit(Some(256 << 20));
    fresh(&disk);
    // Another program that takes every block as soon as it is free.
    let (competes, taken_from) = (Arc::new(AtomicBool::new(false)), disk.clone());
    let competing = Arc::clone(&competes);
    let take_all = move |_: Call, _: &str| {
        if competing.load(SeqCst) {
            let space = taken_from.space().unwrap().unwrap();
            taken_from.limit(Some(space.total_bytes - space.free_bytes));
        }
    };
    let held = HeldDisk::new(&disk, take_all);
    let vault = open(Arc::new(held), &unlock(), &OpenOptions::default(), world()).expect("a vault that was made opens");
    competes.store(true, SeqCst);
    let value = noise(2000);
    for ino in 100..200 {
        let mut op = vault.begin();
        op.put(key::inode(Ino(ino)), value.clone());
        op.commit();
        vault.sync_wait().unwrap_or_else(|e| panic!("change {ino}: {e}"));
    }
    assert!(vault.reserve(&vault.file(Ino(30)), 0, 10).is_err(), "new data finds no room");
    let again = opened(&disk.crash(|_, _| false), &OpenOptions::default());
    for ino in 100..200 {
        assert!(
            again.get(&key::inode(Ino(ino))).unwrap().as_ref() == Some(&value),
            "change {ino} was synced and is gone"
        );
    }
    drop(again);
    competes.store(false, SeqCst);
    disk.limit(Some(512 << 20));
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while vault.reserve(&vault.file(Ino(30)), 0, 10).is_err() {
        assert!(std::time::Instant::now() < until, "there is room again, and new data is refused");
        std::thread::sleep(Duration::from_millis(20));
    }
    vault.close().expect("there is room again");
}

#[test]
fn what_does_not_read_back_is_written_again_elsewhere() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    write(&vault, 70, 0, b"version one");
    vault.sync_wait().expect("the disk is well");
    disk.spoil_next_writes(1);
    write(&vault, 70, 0, b"version two");
    vault.sync_wait().expect("it was written again");
    assert_eq!((vault.stats().verify_mismatches.get(), vault.stats().segments_abandoned.get()), (1, 1));
    assert_eq!(read(&vault, 70, 0, 11), b"version two");
    // The spoiled commit lies in the log, and must not be taken for one that was once whole.
    let again = opened(&disk.crash(|_, _| true), &OpenOptions::default());
    assert_eq!(read(&again, 70, 0, 11), b"version two");
    drop(again);
    let mut op = vault.begin();
    op.put(key::inode(Ino(71)), vec![1]);
    op.commit();
    vault.close().expect("the disk is well");
    drop(vault);
    // A rebuild walks the abandoned segment, too.
    let indexes = disk.list("index").unwrap();
    indexes.iter().for_each(|name| disk.remove(&format!("index/{name}")).unwrap());
    let vault = opened(&disk, &OpenOptions::default());
    assert_eq!(read(&vault, 70, 0, 11), b"version two");
    assert_eq!(vault.get(&key::inode(Ino(71))).unwrap(), Some(vec![1]));
}

#[test]
fn a_disk_that_spoils_everything_is_not_believed() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    write(&vault, 70, 0, b"version one");
    vault.sync_wait().expect("the disk is well");
    disk.spoil_next_writes(u64::MAX);
    write(&vault, 70, 0, b"version two");
    assert!(vault.sync_wait().is_err(), "the groups on the disk are not those that were sent");
    assert_eq!(read(&vault, 70, 0, 11), b"version two", "its buffer is kept");
    disk.spoil_next_writes(0);
    let vault = opened(&disk.crash(|_, _| true), &OpenOptions::default());
    assert_eq!(read(&vault, 70, 0, 11), b"version one", "what was acknowledged before");
}

#[test]
fn an_operation_that_comes_while_closing_is_not_stored_by_half() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    write(&vault, 80, 0, &[7; 50_000]);
    vault.sync_wait().expect("the disk is well");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            // A truncate and a longer size, always together, until after the end.
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                let mut op = vault.begin();
                op.punch(&vault.file(Ino(80)), 10, u64::MAX);
                op.put(key::inode(Ino(80)), b"cut".to_vec());
                op.commit();
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(30));
        // Clean or refused; never by half.
        let _ = vault.close();
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    drop(vault);
    let vault = opened(&disk, &OpenOptions::default());
    let cut = vault.get(&key::inode(Ino(80))).expect("the index is well") == Some(b"cut".to_vec());
    let byte = read(&vault, 80, 40_000, 1)[0];
    assert_eq!(byte == 0, cut, "the size says {cut}, the byte is {byte}");
}

#[test]
fn quotas_refuse_what_is_too_much_and_take_what_fits_again() {
    let disk = MemoryBacking::default();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    let options =
        CreateOptions { quota_bytes: Some(1 << 20), compression: Compression::None, ..CreateOptions::default() };
    create(&backing, &unlock(), &options, &world()).expect("an empty directory takes a vault");
    let vault = opened(&disk, &OpenOptions::default());
    for i in 0..4 {
        write(&vault, 40, i * 250_000, &[1; 250_000]);
    }
    let file = vault.file(Ino(41));
    assert!(vault.reserve(&file, 0, 250_000).is_err(), "a million bytes and a quarter exceed the quota");
    let same = vault.file(Ino(40));
    drop(vault.reserve(&same, 0, 250_000).expect("an overwrite takes no room"));
    punch(&vault, 40, 0, u64::MAX);
    vault.sync_wait().expect("the disk is well");
    drop(vault.reserve(&file, 0, 250_000).expect("what was deleted is free again"));
}

#[test]
fn a_torn_commit_whose_number_was_given_out_again_stays_dropped_when_the_index_is_rebuilt() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    write(&vault, 5, 0, b"before");
    vault.sync_wait().expect("the disk is well");
    let mut random = Random(11);
    let noise: Vec<u8> = (0..2_500_000).map(|_| random.below(256) as u8).collect();
    write(&vault, 6, 0, &noise);
    vault.sync_wait().expect("the disk is well");
    // As a power cut may leave it: a group with header and directory and without its middle, and the commit behind it.
    let torn = disk.crash(|_, _| true);
    torn.flip_bit("segments/0000000000000001", 500_000 * 8);
    drop(vault);

    let vault = opened(&torn, &OpenOptions::default());
    assert_eq!(vault.get(&key::inode(Ino(6))).unwrap(), None, "its commit does not hold");
    write(&vault, 7, 0, b"after");
    vault.close().expect("the disk is well");
    drop(vault);

    let indexes = torn.list("index").unwrap();
    indexes.iter().for_each(|name| torn.remove(&format!("index/{name}")).unwrap());
    let vault = opened(&torn, &OpenOptions::default());
    assert_eq!(vault.get(&key::inode(Ino(6))).unwrap(), None);
    assert_eq!((read(&vault, 5, 0, 6), read(&vault, 7, 0, 5)), (b"before".to_vec(), b"after".to_vec()));
    assert!(vault.stats().errors().is_empty());
}

/// A group has a header, a directory and padding to whole blocks beside its frames: with small commits that is more than they are.
#[test]
fn a_segment_is_as_long_as_it_should_be_also_if_commits_are_small() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    let files = || disk.list("segments").unwrap().into_iter().map(|name| format!("segments/{name}"));
    let len = |path: String| disk.open(&path, Open::Read, Cache::Buffered).unwrap().len().unwrap();
    let mut noise = Random(9);
    // The first, the second, and one that lies ready behind it.
    while files().count() < 3 {
        let data: Vec<u8> = (0..512).flat_map(|_| noise.below(u64::MAX).to_le_bytes()).collect();
        write(&vault, 10, noise.below(100) * 4096, &data);
        vault.sync_wait().unwrap();
    }
    vault.close().unwrap();
    let longest = files().map(len).max().unwrap();
    let around = SEGMENT_BYTES - GROUP_BYTES_MAX as u64..=SEGMENT_BYTES + GROUP_BYTES_MAX as u64;
    assert!(around.contains(&longest), "the longest segment has {longest} bytes");
}

#[test]
fn what_is_written_does_not_wait_behind_what_is_read_ahead() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let gate = Gate::default();
    let passing = gate.clone();
    let reader = std::thread::current().id();
    // Only the reader and the verifier get anything from this disk while the gate is shut.
    let before = move |call, path: &str| {
        let me = std::thread::current();
        if call == Call::Read && path.starts_with("segments/") && me.id() != reader && me.name() != Some("verify") {
            passing.pass();
        }
    };
    let options = OpenOptions { workers: 2, ..OpenOptions::default() };
    let vault = open(Arc::new(HeldDisk::new(&disk, before)), &unlock(), &options, world()).expect("it opens");
    let data = noise(4 << 20);
    write(&vault, 10, 0, &data);
    vault.sync_wait().expect("nothing fails");
    // It goes on where it was only as long as somebody has the file open.
    let file = vault.file(Ino(10));
    let shut = gate.shut();
    for at in [0, 1 << 17] {
        assert_eq!(read(&vault, 10, at, 1 << 17), data[at as usize..][..1 << 17], "the reader itself gets on");
    }
    gate.wait_for(2);
    write(&vault, 11, 0, &data);
    let (done, answer) = std::sync::mpsc::channel();
    vault.sync(Box::new(move |result| done.send(result.is_ok()).expect("it is waited for")));
    assert_eq!(
        answer.recv_timeout(Duration::from_secs(30)),
        Ok(true),
        "both workers wait for the disk with the readers"
    );
    drop((shut, file));
    vault.close().expect("all is written");
}

#[test]
fn a_panic_half_way_through_an_operation_stops_the_vault_and_no_sync_answers_for_it() {
    let half_way: [(&str, fn(&Vault)); 4] = [
        ("a write", |vault| {
            let file = vault.file(Ino(5));
            let room = vault.reserve(&file, 0, 5000).unwrap();
            let mut op = vault.begin();
            op.write(&file, 0, &[7; 5000], room);
            panic!("planted: the write is in the buffers, and the batch does not know");
        }),
        ("a hole", |vault| {
            let mut op = vault.begin();
            op.punch(&vault.file(Ino(5)), 0, 5000);
            panic!("planted: the hole is in the buffers, and the batch does not know");
        }),
        ("a key", |vault| {
            let mut op = vault.begin();
            op.put(key::inode(Ino(5)), vec![1; 8]);
            panic!("planted: what goes with the key may have been changed");
        }),
        ("nothing but a word too few", |vault| {
            let file = vault.file(Ino(5));
            let room = vault.reserve(&file, 0, 5000).unwrap();
            let mut op = vault.begin();
            op.write(&file, 0, &[7; 5000], room);
        }),
    ];
    for (what, half) in half_way {
        let disk = MemoryBacking::default();
        fresh(&disk);
        let vault = opened(&disk, &OpenOptions { flush_interval: Duration::from_secs(3600), ..OpenOptions::default() });
        write(&vault, 5, 0, &noise(20_000));
        vault.sync_wait().unwrap();
        let _ = catch_unwind(AssertUnwindSafe(|| half(&vault)));
        let file = vault.file(Ino(5));
        let refused = vault.reserve(&file, 5000, 100).map(|_| ());
        assert!(matches!(refused, Err(VaultFault::Failed(_))), "{what}: the next write says {refused:?}");
        let synced = vault.sync_wait();
        assert!(matches!(synced, Err(VaultFault::Failed(_))), "{what}: fsync says {synced:?}");
        let errors = vault.stats().errors();
        let named = errors.iter().any(|line| line.text.contains("an operation") && line.text.contains("half-way"));
        assert!(named, "{what}: {errors:?}");
        assert!(vault.close().is_err(), "{what}: closing says that something was lost");
        drop(vault);
        let vault = opened(&disk, &OpenOptions::default());
        assert_eq!(read(&vault, 5, 0, 20_000), noise(20_000), "{what}: nothing of the half came into the log");
    }
    // Whoever gives an operation up before it changed anything harms nothing.
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    let mut op = vault.begin();
    op.put(key::inode(Ino(5)), vec![1; 8]);
    drop(op);
    write(&vault, 5, 0, b"as ever");
    vault.sync_wait().unwrap();
    vault.close().unwrap();
}

#[test]
fn room_that_could_not_be_given_back_is_given_back_later() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    write(&vault, 5, 0, &noise(1 << 20));
    write(&vault, 6, 0, &noise(1 << 20));
    vault.sync_wait().unwrap();
    vault.checkpoint().unwrap();
    let fault = disk.plant(Fault::of(&[Kind::Punch], Effect::Error(libc::EIO)));
    punch(&vault, 5, 0, u64::MAX);
    vault.sync_wait().unwrap();
    // The first covers the hole, so the next one may give back.
    (0..3).for_each(|_| vault.checkpoint().unwrap());
    assert_eq!(vault.stats().punched_bytes.get(), 0, "the disk refuses");
    disk.lift(fault);
    write(&vault, 7, 0, b"so that there is something to store");
    vault.checkpoint().unwrap();
    vault.close().unwrap();
    let given = vault.stats().punched_bytes.get();
    assert!(given > 1_000_000, "{given} bytes were given back of a hole of a mebibyte");
}

/// Room that a vault shows, in KiB.
fn free_kib(vault: &Vault) -> u64 {
    vault.usage().backing.expect("the disk says how much there is").free_bytes >> 10
}

#[test]
fn the_room_that_is_shown_is_what_can_be_written() {
    const MIB: usize = 1 << 20;
    let disk = MemoryBacking::default();
    disk.limit(Some(200 << 20));
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    // An answer may be 50 ms old.
    let settle = || std::thread::sleep(Duration::from_millis(100));
    settle();
    let (empty, data) = (free_kib(&vault), noise(MIB));
    // Two segments, the second hardly begun; what is buffered at the time has room taken ahead.
    for piece in 0..70 {
        write(&vault, 5, piece * MIB as u64, &data);
    }
    vault.checkpoint().unwrap();
    settle();
    let shown = free_kib(&vault);
    assert!(shown + 72 * 1024 > empty, "{empty} KiB at first, and after 70 MiB {shown}");
    // Never more than can be written.
    let mut written = 0;
    while vault.make_room(MIB as u64).is_ok() && written < 200 {
        write(&vault, 6, written * MIB as u64, &data);
        written += 1;
    }
    vault.sync_wait().unwrap();
    assert!(written * 1024 + 3 * 1024 > shown, "{shown} KiB were shown, {written} MiB could be written");
    vault.close().unwrap();
}

#[test]
fn much_that_was_deleted_is_given_back_soon_although_nobody_needs_the_room() {
    const MIB: usize = 1 << 20;
    let disk = MemoryBacking::default();
    disk.limit(Some(200 << 20));
    fresh(&disk);
    let (vault, data) = (opened(&disk, &OpenOptions::default()), noise(MIB));
    for piece in 0..70 {
        write(&vault, 5, piece * MIB as u64, &data);
    }
    vault.checkpoint().unwrap();
    // An answer may be 50 ms old.
    std::thread::sleep(Duration::from_millis(100));
    let (begun, before) = (std::time::Instant::now(), free_kib(&vault));
    punch(&vault, 5, 0, u64::MAX);
    vault.sync_wait().unwrap();
    while free_kib(&vault) < before + 68 * 1024 {
        let free = free_kib(&vault);
        assert!(begun.elapsed() < Duration::from_secs(15), "{before} KiB, and after 70 MiB were deleted {free}");
        std::thread::sleep(Duration::from_millis(20));
    }
    vault.close().unwrap();
}

#[test]
fn a_disk_that_refuses_direct_reads_is_read_through_the_cache() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    disk.refuse_direct_reads();
    let data = noise(3 << 20);
    {
        let vault = opened(&disk, &OpenOptions::default());
        write(&vault, 10, 0, &data);
        vault.sync_wait().expect("what is written is read back through the cache");
        assert!(!vault.verify_source().contains("by direct"), "{}", vault.verify_source());
        let cut = disk.crash(|_, _| false);
        cut.refuse_direct_reads();
        let again = opened(&cut, &OpenOptions::default());
        assert_eq!(read(&again, 10, 0, data.len()), data, "after a crash, for which the log is read");
        assert!(again.stats().errors().is_empty());
        again.close().expect("all is written");
    }
}

#[test]
fn a_disk_that_does_not_say_how_much_room_it_has_is_not_full() {
    let disk = MemoryBacking::default();
    disk.be_silent_about_room();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    let data = noise(3 << 20);
    write(&vault, 10, 0, &data);
    vault.sync_wait().expect("there is room");
    vault.admit(1).expect("for a name as well");
    assert_eq!(vault.usage().backing, None);
    assert_eq!(read(&vault, 10, 0, data.len()), data);
    vault.close().expect("all is written");
}

fn segments(disk: &MemoryBacking) -> Vec<String> {
    let names = disk.list("segments").expect("a vault has this directory");
    names.into_iter().map(|name| format!("segments/{name}")).collect()
}

fn has_error(vault: &Vault, words: &str) -> bool {
    vault.stats().errors().iter().any(|line| line.text.contains(words))
}

/// Waits until an error line has these words.
fn await_error(vault: &Vault, words: &str) {
    let began = Instant::now();
    while !has_error(vault, words) {
        assert!(began.elapsed() < Duration::from_secs(30), "no error says {words}: {:?}", vault.stats().errors());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_segment_that_another_program_removes_is_written_again_and_what_comes_later_lies_elsewhere() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    let (before, after) = (noise(300_000), noise(500_000));
    write(&vault, 5, 0, &before);
    vault.sync_wait().unwrap();
    for name in segments(&disk) {
        disk.remove(&name).unwrap();
    }
    write(&vault, 6, 0, &after);
    vault.sync_wait().expect("another segment takes it");
    // What a power cut leaves now has all that was acknowledged after the removal.
    let cut = opened(&disk.crash(|_, _| false), &OpenOptions::default());
    assert_eq!(read(&cut, 6, 0, after.len()), after, "synced after the removal");
    assert!(has_error(&vault, "was removed or replaced by another program"), "{:?}", vault.stats().errors());
    await_error(&vault, "it was written again from the open file");
    assert_eq!((read(&vault, 5, 0, before.len()), read(&vault, 6, 0, after.len())), (before.clone(), after.clone()));
    vault.close().expect("all of it is there");
    drop(vault);
    let vault = opened(&disk, &OpenOptions::default());
    assert_eq!((read(&vault, 5, 0, before.len()), read(&vault, 6, 0, after.len())), (before, after));
    assert!(vault.stats().errors().iter().all(|line| !line.text.contains("missing")));
    vault.close().unwrap();
}

#[test]
fn a_segment_that_is_renamed_or_replaced_is_noticed_by_the_next_checkpoint() {
    for replaced in [false, true] {
        let disk = MemoryBacking::default();
        fresh(&disk);
        let vault = opened(&disk, &OpenOptions::default());
        let (before, after) = (noise(300_000), noise(500_000));
        write(&vault, 5, 0, &before);
        vault.sync_wait().unwrap();
        let name = &segments(&disk)[0];
        disk.rename(name, "segments/elsewhere").unwrap();
        if replaced {
            disk.open(name, Open::Create, Cache::Buffered).unwrap().write_all_at(b"another file", 0).unwrap();
        }
        write(&vault, 6, 0, &after);
        vault.checkpoint().unwrap();
        assert!(has_error(&vault, "was removed or replaced by another program"), "{:?}", vault.stats().errors());
        await_error(&vault, "it was written again from the open file");
        vault.close().expect("all of it is there");
        drop(vault);
        let vault = opened(&disk, &OpenOptions::default());
        assert_eq!(read(&vault, 6, 0, after.len()), after);
        assert_eq!(read(&vault, 5, 0, before.len()), before);
        vault.close().unwrap();
    }
}

#[test]
fn a_removed_segment_that_nobody_has_open_makes_closing_fail_until_its_file_is_back() {
    let disk = MemoryBacking::default();
    fresh(&disk);
    let vault = opened(&disk, &OpenOptions::default());
    let data = noise(300_000);
    write(&vault, 5, 0, &data);
    vault.close().unwrap();
    drop(vault);
    let (name, elsewhere) = (segments(&disk).remove(0), "elsewhere");
    // Removed and put back while the vault is open.
    let vault = opened(&disk, &OpenOptions::default());
    disk.rename(&name, elsewhere).unwrap();
    vault.checkpoint().unwrap();
    await_error(&vault, "cannot be written again");
    write(&vault, 6, 0, b"later");
    vault.sync_wait().unwrap();
    disk.rename(elsewhere, &name).unwrap();
    vault.close().expect("it is back");
    drop(vault);
    // Removed for good.
    let vault = opened(&disk, &OpenOptions::default());
    assert_eq!(read(&vault, 6, 0, 5), b"later");
    drop(vault);
    let vault = opened(&disk, &OpenOptions::default());
    disk.remove(&name).unwrap();
    let fault = vault.close().unwrap_err();
    assert!(matches!(&fault, VaultFault::SegmentsLost(lost) if lost.len() == 1), "{fault}");
    assert!(fault.to_string().contains(&name), "{fault}");
    drop(vault);
    // The next mount reports it, and does not count it as its own loss.
    let vault = opened(&disk, &OpenOptions::default());
    assert!(has_error(&vault, "missing from the vault"), "{:?}", vault.stats().errors());
    assert_eq!(read(&vault, 6, 0, 5), b"later");
    vault.close().expect("nothing was lost in this mount");
}
