//! What the simulation found, each reduced to the few calls that it takes and named after what went wrong.
//!
//! Promise: none of it comes back.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may")]

mod sim;

use sim::place::{Manner, Place};
use sim::player::Player;
use sim::program::{Data, Step};
use sim::tree::Tree;
use sim::world::Simulated;
use std::sync::Arc;
use strongroom::backing::{Effect, Fate, Fault, Kind, MemoryBacking};
use strongroom::base::choice::{Compression, SuiteId, Verify};

const MANNER: Manner =
    Manner { suite: SuiteId::Aes256Gcm, compression: Compression::None, verify: Verify::Device, clean_bytes: None };

fn opened(disk: &MemoryBacking) -> (Arc<Simulated>, Place) {
    let world = Arc::new(Simulated::new(disk.calls() as u64));
    let place = Place::open(disk, &world, &MANNER).expect("the vault opens");
    (world, place)
}

/// A vault that was filled with one file, and opened again.
fn player() -> (MemoryBacking, Player) {
    let disk = MemoryBacking::default();
    MANNER.create(&disk, &Arc::new(Simulated::new(1))).unwrap();
    disk.record();
    let (world, place) = opened(&disk);
    let mut player = Player::new(&disk, &world, MANNER, place, Tree::new());
    for step in [Step::Create("a".into()), write("a", 1), Step::Reopen] {
        player.step(&step).unwrap();
    }
    (disk, player)
}

fn write(path: &str, seed: u64) -> Step {
    write_long(path, seed, 700)
}

fn write_long(path: &str, seed: u64, len: usize) -> Step {
    Step::Write(path.into(), 0, Data { seed, len, noise: true })
}

/// The Start frame lies right behind the header of a segment's first group; a flipped bit in it made the whole vault refuse.
#[test]
fn a_lease_whose_first_group_was_stored_wrong_does_not_shut_the_vault() {
    let (disk, mut player) = player();
    let before = player.tree.hash();
    player.faulty = true;
    disk.plant(Fault::of(&[Kind::Write], Effect::Spoil).on("segments/"));
    player.step(&write("a", 2)).unwrap();
    player.step(&Step::Fsync).unwrap();
    let image = disk.cut(&mut |_| Fate::Kept);
    disk.lift_all();
    let (_world, place) = opened(&image);
    let found = place.observe().unwrap().hash();
    assert!([before, player.tree.hash()].contains(&found), "what was acknowledged, or all of what was begun");
}

/// The Start frame was stored wrong, and a power cut tore the rest of its group. That the frame is lost made recovery forget that
/// the group's checksums do not hold: it took the commit for a sound one behind rot, and with it frames that do not read. (Found as
/// failing-disk world 400087, and first blamed on the segment's removal, which only moved the cut.)
#[test]
fn a_torn_first_group_is_not_taken_in_for_its_lost_start_frame() {
    let (disk, mut player) = player();
    let before = player.tree.hash();
    player.faulty = true;
    disk.plant(Fault::of(&[Kind::Write], Effect::Spoil).on("segments/").times(1));
    let from = disk.calls();
    player.step(&write_long("a", 2, 60_000)).unwrap();
    player.step(&Step::Fsync).unwrap();
    assert_eq!(disk.struck(), 1);
    let mut cuts = disk.cuts();
    while cuts.cut() < from {
        assert!(cuts.advance());
    }
    let mut torn = 0;
    loop {
        for coins in 0..32 {
            let image =
                cuts.image(&mut |u| if u.is_write { Fate::Torn { unit_bytes: 4096, coins } } else { Fate::Kept });
            let (_world, place) = opened(&image);
            let found = place.observe().expect("what was not acknowledged is there whole, or not at all").hash();
            assert!([before, player.tree.hash()].contains(&found), "cut {}, coins {coins}", cuts.cut());
            torn += usize::from(found == before);
        }
        if !cuts.advance() {
            break;
        }
    }
    assert!(torn > 0, "some cuts tear the group");
}

#[test]
fn a_rotten_start_frame_costs_no_commit_of_its_lease() {
    let (disk, mut player) = player();
    for seed in 3..6 {
        player.step(&write("a", seed)).unwrap();
        player.step(&Step::Fsync).unwrap();
    }
    let image = disk.cut(&mut |_| Fate::Lost);
    image.flip_bit("segments/0000000000000002", 100 * 8);
    let (_world, place) = opened(&image);
    assert_eq!(place.observe().unwrap().hash(), player.tree.hash());
}

/// A sync that failed leaves a root that only the page cache holds. It read as well as the other, so the other was written
/// first; a power cut then tore that one, and neither held.
#[test]
fn a_root_whose_sync_failed_is_not_relied_on() {
    for name in ["root.a", "root.b"] {
        let (disk, mut player) = player();
        player.faulty = true;
        disk.plant(Fault::of(&[Kind::SyncData], Effect::Error(libc::EIO)).on(name).times(1));
        // Whatever comes of closing and of the checkpoint: the disk is well again after one failure.
        let from = disk.calls();
        player.step(&Step::Reopen).unwrap();
        assert_eq!(disk.struck(), 1);
        let mut cuts = disk.cuts();
        loop {
            for coins in if cuts.cut() < from { 0..0 } else { 0..8 } {
                let image = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
                let (_world, place) = opened(&image);
                assert_eq!(place.observe().unwrap().hash(), player.tree.hash(), "{name}, cut {}", cuts.cut());
            }
            if !cuts.advance() {
                break;
            }
        }
    }
}

/// A killed process leaves a last batch that reads well and was never flushed, or whose flush failed. Recovery took it in, and
/// stored a checkpoint that names it, without making it durable; a power cut then took the frames away from under the index.
#[test]
fn what_a_killed_process_left_is_made_durable_before_it_is_relied_on() {
    for flush_fails in [false, true] {
        let (disk, mut player) = player();
        player.faulty = true;
        player.step(&write("a", 2)).unwrap();
        player.step(&Step::Fsync).unwrap();
        // The next batch is written, and either not flushed or in vain.
        let effect = if flush_fails { Effect::Error(libc::EIO) } else { Effect::Lie };
        disk.plant(Fault::of(&[Kind::SyncData], effect).on("segments/"));
        player.step(&write("a", 3)).unwrap();
        player.step(&Step::Fsync).unwrap();
        assert!(disk.struck() > 0);
        disk.lift_all();
        let after = disk.fork();
        drop(opened(&after));
        let image = after.cut(&mut |_| Fate::Lost);
        let (_world, place) = opened(&image);
        let found = place.observe().expect("the index names nothing that is gone");
        assert!(player.history.states.iter().any(|s| s.hash == found.hash()));
    }
}
