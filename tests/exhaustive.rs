//! Method: all sequences of two operations over two files and two directories, with every placement of fsync behind them, on a
//! disk whose power is cut after every call, and where all that is unsynced is lost, or kept, or torn.
//! Promise: the vault opens, with one state of the reference, whole, not older than the last acknowledged sync. Short programs
//! find most of what a file system can get wrong in a crash (Mohan and others, OSDI 2018); here they are all there, none by chance.
//! `STRONGROOM_SIM_LENGTH=3` takes sequences of three, and `STRONGROOM_SIM_EVERY=n` each n-th of them only.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may")]

mod sim;

use sim::from_environment;
use sim::judge::Fates;
use sim::place::{Manner, Place};
use sim::player::Player;
use sim::program::{Data, Step};
use sim::run::{Depth, World, caught, on_every_core};
use sim::tree::Tree;
use sim::world::Simulated;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use strongroom::backing::MemoryBacking;
use strongroom::base::choice::{Compression, SuiteId, Verify};

const MANNER: Manner =
    Manner { suite: SuiteId::Aes256Gcm, compression: Compression::Auto, verify: Verify::Device, clean_bytes: None };
const DEPTH: Depth = Depth { check_one_in: 16, go_on_one_in: 32 };
/// All lost, all kept, torn in sectors.
const FATES: [u64; 3] = [0, 1, 4];

fn data(seed: u64, len: usize) -> Data {
    Data { seed, len, noise: true }
}

/// The operations, on `A/x` and `B/y`, of which the first is there.
fn operations() -> Vec<Step> {
    let s = |text: &str| text.to_owned();
    vec![
        Step::Create(s("B/y")),
        Step::Write(s("A/x"), 0, data(1, 5000)),
        Step::Write(s("A/x"), 4096, data(2, 9000)),
        Step::Write(s("B/y"), 0, data(3, 300)),
        Step::Truncate(s("A/x"), 100),
        Step::Truncate(s("A/x"), 20_000),
        Step::Punch(s("A/x"), 0, 4096),
        Step::Copy(s("A/x"), 1000, s("B/y"), 0, 9000),
        Step::Copy(s("A/x"), 0, s("A/x"), 10_000, 5000),
        Step::Link(s("A/x"), s("B/y")),
        Step::Unlink(s("A/x")),
        Step::Unlink(s("B/y")),
        Step::Rename(s("A/x"), s("B/y")),
        Step::Rename(s("B/y"), s("A/x")),
        Step::Rename(s("A/x"), s("A/z")),
        Step::Exchange(s("A/x"), s("B/y")),
        Step::Rename(s("A"), s("C")),
        Step::Rename(s("B"), s("A")),
        Step::Rmdir(s("B")),
        Step::Mkdir(s("A/d")),
        Step::Symlink(s("B/y"), s("../A/x")),
        Step::SetXattr(s("A/x"), s("user.k"), s("value")),
        Step::Chmod(s("A/x"), 0o600),
    ]
}

/// A vault in which the first file and both directories are at rest.
fn prepared() -> (MemoryBacking, Tree) {
    let (disk, world) = (MemoryBacking::default(), Arc::new(Simulated::new(1)));
    MANNER.create(&disk, &world).unwrap();
    let place = Place::open(&disk, &world, &MANNER).unwrap();
    let mut player = Player::new(&disk, &world, MANNER, place, Tree::new());
    let s = |text: &str| text.to_owned();
    for step in [
        Step::Mkdir(s("A")),
        Step::Mkdir(s("B")),
        Step::Create(s("A/x")),
        Step::Write(s("A/x"), 0, data(9, 6000)),
        Step::Fsync,
    ] {
        player.step(&step).unwrap();
    }
    player.close().unwrap();
    (disk.copy(), player.tree)
}

/// One sequence, cut everywhere; gives the cuts.
fn attack(base: &MemoryBacking, tree: &Tree, steps: &[Step], number: u64) -> Result<u64, String> {
    let world = Arc::new(Simulated::new(number));
    let disk = base.copy();
    let place = Place::open(&disk, &world, &MANNER).map_err(|e| format!("{e:?}"))?;
    disk.record();
    let mut player = Player::new(&disk, &world, MANNER, place, tree.clone());
    player.history.acknowledge(0, 0);
    for step in steps {
        player.step(step)?;
    }
    // What nobody synced is flushed by age.
    player.step(&Step::Wait(Duration::from_secs(6)))?;
    player.compare()?;
    let history = player.history.clone();
    let mut world = World { seed: number, manner: MANNER, history, made_at: 0, cuts: disk.cuts() };
    let mut cuts = 0;
    loop {
        for fates in FATES {
            let judged = world.judge_fates(Fates(fates), DEPTH);
            judged.map_err(|e| format!("cut {}, fates {fates}: {e}", world.cuts.cut()))?;
            cuts += 1;
        }
        if !world.cuts.advance() {
            return Ok(cuts);
        }
    }
}

#[test]
fn every_short_sequence_survives_every_power_cut() {
    let length = from_environment("STRONGROOM_SIM_LENGTH").unwrap_or(2) as u32;
    let every = from_environment("STRONGROOM_SIM_EVERY").unwrap_or(1).max(1);
    let operations = operations();
    let (base, tree) = prepared();
    let kinds = operations.len() as u64;
    let placements = 1u64 << length;
    let sequences = kinds.pow(length) * placements;
    let (cuts, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = on_every_core(sequences.div_ceil(every), &|| false, &|n| {
        let number = n * every;
        let (mut which, synced) = (number / placements, number % placements);
        let mut steps = Vec::new();
        for i in 0..length {
            steps.push(operations[(which % kinds) as usize].clone());
            which /= kinds;
            if synced & 1 << i != 0 {
                steps.push(Step::Fsync);
            }
        }
        let attacked = caught(|| attack(&base, &tree, &steps, number));
        cuts.fetch_add(attacked.map_err(|e| format!("sequence {number}, {steps:?}: {e}"))?, SeqCst);
        done.fetch_add(1, SeqCst);
        Ok(())
    });
    let (cuts, done) = (cuts.into_inner(), done.into_inner());
    eprintln!("{cuts} power cuts in {done} sequences of {length} operations");
    assert_eq!(failed, None);
    assert!(done == sequences.div_ceil(every) && cuts > 3 * done);
}

/// The disk that lies must be caught here too.
#[test]
fn a_disk_that_lies_about_sync_is_caught_by_a_short_sequence() {
    let (base, tree) = prepared();
    base.lie_about_sync();
    let caught = operations().iter().find_map(|step| {
        let disk = base.fork();
        attack_lying(&disk, &tree, &[step.clone(), Step::Fsync]).err()
    });
    let why = caught.expect("some sequence shows it");
    assert!(why.contains("was acknowledged") || why.contains("does not open"), "{why}");
}

fn attack_lying(disk: &MemoryBacking, tree: &Tree, steps: &[Step]) -> Result<(), String> {
    let world = Arc::new(Simulated::new(7));
    let place = Place::open(disk, &world, &MANNER).map_err(|e| format!("{e:?}"))?;
    disk.record();
    let mut player = Player::new(disk, &world, MANNER, place, tree.clone());
    for step in steps {
        player.step(step)?;
    }
    let (history, mut cuts) = (player.history.clone(), disk.cuts());
    while cuts.advance() {}
    World { seed: 7, manner: MANNER, history, made_at: 0, cuts }.judge_fates(Fates(0), DEPTH)
}
