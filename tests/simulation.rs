//! Method: one seed is one world: a random program on the filesystem and on a reference, on a disk that loses, tears or keeps
//! each unsynced change as the seed says. The power is cut after every call of the disk, index included; the vault is opened, compared,
//! checked, and goes on, through a second cut.
//! Promise: it always opens, by itself; what it holds is one state of the reference, whole, not older than the last
//! acknowledged sync; `check` finds nothing.
//! `STRONGROOM_SIM_CUTS=n` makes so many cuts, `STRONGROOM_SIM_WORLDS=n` at most so many worlds, from `STRONGROOM_SIM_SEED=s` on,
//! with `STRONGROOM_SIM_FATES=n` fates for each cut; a failure prints the one line that shows it again.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may")]

mod sim;

use sim::from_environment;
use sim::place::{MOVED, Manner, REMOVED};
use sim::run::{Plant, REBUILT_FROM_SNAPSHOTS, USUAL, World, caught, on_every_core, play, play_on_failing_disk, sound};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Instant;
use strongroom::backing::{Effect, Fault, Kind, MemoryBacking, SYNCS};
use strongroom::base::choice::Verify;

/// Plays a world and cuts it everywhere; gives the cuts made.
fn cut_everywhere(seed: u64, plant: Plant<'_>, fates: u64) -> Result<u64, String> {
    let mut world = caught(|| play(seed, plant)).map_err(|e| format!("seed {seed}, before any cut: {e}"))?;
    world.judge_all(fates, USUAL).map_err(|e| e.to_string())
}

/// The same on a disk that fails now and then.
fn cut_everywhere_on_failing_disk(seed: u64, fates: u64) -> Result<u64, String> {
    let world = caught(|| play_on_failing_disk(seed));
    let mut world = world.map_err(|e| format!("seed {seed} on a failing disk, before any cut: {e}"))?;
    world.judge_all(fates, USUAL).map_err(|e| format!("on a failing disk (STRONGROOM_SIM_FAILING=1), {e}"))
}

/// Cuts worlds on every core until there were enough cuts, and says how many of both.
fn soak_and_say(what: &str, cuts_usual: u64, cut_one: &(dyn Fn(u64, u64) -> Result<u64, String> + Sync)) {
    let first = from_environment("STRONGROOM_SIM_SEED").unwrap_or(1);
    let worlds_max = from_environment("STRONGROOM_SIM_WORLDS").unwrap_or(u64::MAX);
    let cuts_min = from_environment("STRONGROOM_SIM_CUTS").unwrap_or(cuts_usual);
    let fates = from_environment("STRONGROOM_SIM_FATES").unwrap_or(1);
    let began = Instant::now();
    let (worlds, cuts) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = on_every_core(worlds_max, &|| cuts.load(SeqCst) >= cuts_min, &|n| {
        cuts.fetch_add(cut_one(first + n, fates)?, SeqCst);
        worlds.fetch_add(1, SeqCst);
        Ok(())
    });
    let (worlds, cuts) = (worlds.into_inner(), cuts.into_inner());
    let seconds = began.elapsed().as_secs_f64();
    let rebuilt = REBUILT_FROM_SNAPSHOTS.load(SeqCst);
    eprintln!("{cuts} power cuts in {worlds} worlds{what}, seeds from {first}, in {seconds:.0} s");
    eprintln!("{rebuilt} indices made from a snapshot until now were those that the log makes");
    let (moved, removed) = (MOVED.load(SeqCst), REMOVED.load(SeqCst));
    eprintln!("{moved} bytes moved out of old segments, and {removed} of these removed");
    assert_eq!(failed, None);
    assert!(rebuilt > cuts / 200, "snapshots are taken, and used");
    assert!(worlds >= 1 && cuts >= worlds);
}

#[test]
fn every_power_cut_leaves_a_vault_that_opens_with_one_allowed_state() {
    soak_and_say("", 20_000, &|seed, fates| cut_everywhere(seed, &sound, fates));
}

#[test]
fn what_was_acknowledged_on_a_failing_disk_survives_every_power_cut() {
    soak_and_say(" on failing disks", 5_000, &cut_everywhere_on_failing_disk);
}

#[test]
fn one_seed_is_one_world_to_the_last_call_of_the_disk() {
    for seed in 1..=from_environment("STRONGROOM_SIM_WORLDS").unwrap_or(20).min(200) {
        for play in [&(|seed| play(seed, &sound)) as &dyn Fn(u64) -> Result<World, String>, &play_on_failing_disk] {
            let (one, other) = (play(seed).unwrap(), play(seed).unwrap());
            let calls = |w: &World| w.cuts.calls().iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(calls(&one), calls(&other), "seed {seed}");
            assert_eq!(one.cuts.hash(), other.cuts.hash(), "seed {seed}: the calls are the same, and not the bytes");
        }
    }
}

#[test]
#[ignore = "shows one failure again: STRONGROOM_SIM_SEED, and if it is known _CUT and _FATE"]
fn one_world_again() {
    let seed = from_environment("STRONGROOM_SIM_SEED").expect("STRONGROOM_SIM_SEED says which");
    let failing = from_environment("STRONGROOM_SIM_FAILING").is_some();
    let mut world: World = if failing { play_on_failing_disk(seed) } else { play(seed, &sound) }.unwrap();
    for (i, state) in world.history.states.iter().enumerate() {
        eprintln!("state {i}, begun at call {}: {}", state.begun, state.said);
    }
    eprintln!("acknowledged (state, call): {:?}", world.history.acknowledged.lock().unwrap());
    for (i, call) in world.cuts.calls().iter().enumerate() {
        eprintln!("call {i}: {call}");
    }
    match from_environment("STRONGROOM_SIM_CUT") {
        None => assert!(world.judge_all(1, USUAL).map_err(|e| eprintln!("{e}")).is_ok()),
        Some(cut) => {
            while (world.cuts.cut() as u64) < cut && world.cuts.advance() {}
            let fate = from_environment("STRONGROOM_SIM_FATE").unwrap_or(0);
            let judged = world.judge(fate, USUAL);
            assert!(judged.map_err(|e| eprintln!("{e}")).is_ok());
        }
    }
}

/// Worlds until the harness notices what was planted; the seed and what it saw.
fn worlds_until_caught(plant: Plant<'_>) -> (u64, String) {
    let most = from_environment("STRONGROOM_SIM_WORLDS").unwrap_or(1000);
    let caught = (1..=most).find_map(|seed| cut_everywhere(seed, plant, 1).err().map(|why| (seed, why)));
    caught.unwrap_or_else(|| panic!("{most} worlds passed, and none showed what was planted"))
}

/// What a vault on a disk that breaks its word comes to: what was acknowledged is gone, or does not read, or cannot be found.
const LOST: [&str; 4] = ["was acknowledged", "does not open", "none of the states", "Damaged {"];

/// The harness notices the planted fault, and for the reason that it should.
fn is_caught(name: &str, plant: Plant<'_>) {
    let (worlds, why) = worlds_until_caught(plant);
    eprintln!("{name}: caught in world {worlds}: {}", why.lines().next().unwrap_or_default());
    assert!(LOST.iter().any(|sign| why.contains(sign)), "{why}");
}

#[test]
fn a_disk_that_lies_about_every_sync_is_caught() {
    is_caught("every sync lies", &|disk, _| disk.lie_about_sync());
}

#[test]
fn a_disk_that_lies_about_segments_only_is_caught() {
    let plant = |disk: &MemoryBacking, _: &mut Manner| {
        disk.plant(Fault::of(&[Kind::SyncData], Effect::Lie).on("segments/"));
    };
    is_caught("syncs of segments lie", &plant);
}

#[test]
fn a_disk_that_lies_about_index_and_roots_only_is_caught() {
    let plant = |disk: &MemoryBacking, _: &mut Manner| {
        disk.plant(Fault::of(SYNCS, Effect::Lie).on("index"));
        disk.plant(Fault::of(SYNCS, Effect::Lie).on("root"));
    };
    is_caught("syncs of index and roots lie", &plant);
}

/// Not a mutant but a promise: the index is a cache of the log.
#[test]
fn a_disk_that_lies_about_only_the_index_loses_nothing() {
    let plant = |disk: &MemoryBacking, _: &mut Manner| {
        disk.plant(Fault::of(SYNCS, Effect::Lie).on("index"));
    };
    for seed in 1..=from_environment("STRONGROOM_SIM_WORLDS").unwrap_or(6) {
        let cut = cut_everywhere(seed, &plant, 1);
        assert!(cut.is_ok(), "{}", cut.unwrap_err());
    }
}

#[test]
fn a_disk_that_lies_about_directories_is_caught() {
    let plant = |disk: &MemoryBacking, _: &mut Manner| {
        disk.plant(Fault::of(&[Kind::SyncDir], Effect::Lie));
    };
    is_caught("syncs of directories lie", &plant);
}

#[test]
fn writes_that_are_spoiled_and_not_verified_are_caught() {
    let plant = |disk: &MemoryBacking, manner: &mut Manner| {
        manner.verify = Verify::Off;
        disk.plant(Fault::of(&[Kind::Write], Effect::Spoil).on("segments/").after(3).times(1));
    };
    is_caught("spoiled, unverified writes", &plant);
}
