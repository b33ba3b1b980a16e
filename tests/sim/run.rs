//! One world, from its seed to its verdict.
//!
//! Method: a player does the steps of a random program. Then the power is cut after every call of the disk: the vault must
//! open, hold one allowed state, whole, survive a check, and go on working, through a second cut too.

use super::judge::{Fates, History};
use super::place::{Manner, NoPlace, Place, rebuilt_both_ways, unlock};
use super::player::Player;
use super::program::{Dice, Habits, Step};
use super::tree::Tree;
use super::world::{DOING, Simulated};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use strongroom::backing::{Backing, Cuts, Effect, Fault, Kind, MUTATING, MemoryBacking, SYNCS, mix};
use strongroom::base::choice::{Compression, SuiteId, Verify};
use strongroom::base::id::ROOT_INO;
use strongroom::base::world::World as Clock;
use strongroom::check::check;
use strongroom::fs::{LimitChange, LimitOf};

/// Indices that were made from a snapshot and compared with what the log alone makes.
pub static REBUILT_FROM_SNAPSHOTS: AtomicU64 = AtomicU64::new(0);

/// A run to be cut.
pub struct World {
    pub seed: u64,
    pub manner: Manner,
    pub history: History,
    /// Calls after which the vault had been made.
    pub made_at: usize,
    pub cuts: Cuts,
}

/// What is planted in a world that must be caught.
pub type Plant<'a> = &'a dyn Fn(&MemoryBacking, &mut Manner);

/// Nothing.
pub fn sound(_: &MemoryBacking, _: &mut Manner) {}

/// The manner of a seed.
fn manner(seed: u64, dice: &mut Dice) -> Manner {
    Manner {
        suite: *dice.pick(&[SuiteId::Aes256Gcm, SuiteId::ChaCha20Poly1305]),
        compression: *dice.pick(&[Compression::Auto, Compression::Lz4, Compression::None]),
        verify: Verify::Device,
        // Beside the dice, so that earlier seeds are the worlds that they were.
        clean_bytes: mix(seed ^ 0xc1ea).is_multiple_of(2).then_some(4 << 10),
    }
}

/// In one world of three everything is counted for quotas, with no limit that refuses: `check` compares the counts with the inodes
/// after every cut.
fn count_quotas(seed: u64, place: &Place) -> Result<(), String> {
    if mix(seed ^ 0x0907a).is_multiple_of(3) {
        let told = LimitChange { soft_inodes: Some(Some(3)), ..LimitChange::default() };
        for of in [LimitOf::Tree(ROOT_INO), LimitOf::User(0)] {
            place.fs.set_limits(of, &told).map_err(|e| format!("{e:?}"))?;
        }
    }
    Ok(())
}

/// Plays the world of a seed; `plant` hurts disk or vault once the vault is made.
pub fn play(seed: u64, plant: Plant<'_>) -> Result<World, String> {
    DOING.set(format!("seed {seed}, before any cut"));
    let mut dice = Dice(mix(seed));
    let disk = MemoryBacking::default();
    let world = Arc::new(Simulated::new(seed));
    let mut manner = manner(seed, &mut dice);
    // In some worlds the power is cut while the vault is being made.
    let from_nothing = dice.one_in(8);
    if from_nothing {
        disk.record();
    }
    manner.create(&disk, &world).map_err(|e| e.to_string())?;
    let made_at = disk.calls();
    if !from_nothing {
        disk.record();
    }
    plant(&disk, &mut manner);
    let place = Place::open(&disk, &world, &manner).map_err(|e| format!("{e:?}"))?;
    count_quotas(seed, &place)?;
    let mut player = Player::new(&disk, &world, manner, place, Tree::new());
    let habits = Habits::of(&mut dice);
    for _ in 0..4 + dice.below(24) {
        world.pass(Duration::from_millis(dice.below(20)));
        let step = habits.step(&mut dice, &player.tree, player.held());
        player.step(&step)?;
    }
    player.compare()?;
    if dice.one_in(2) {
        player.close()?;
    }
    let cuts = player.disk.cuts();
    let history = player.history.clone();
    let made_at = if from_nothing { made_at } else { 0 };
    Ok(World { seed, manner, history, made_at, cuts })
}

/// A disk error of some kind, from some call on, for some time.
fn any_fault(dice: &mut Dice) -> Fault {
    let errno = *dice.pick(&[libc::EIO, libc::ENOSPC, libc::EROFS]);
    let place = *dice.pick(&["", "segments/", "segments/", "index/", "root"]);
    let fault = match dice.below(12) {
        0 => Fault::of(&[], Effect::Error(errno)),
        1 | 2 => Fault::of(MUTATING, Effect::Error(errno)),
        3 | 4 => Fault::of(&[Kind::Write], Effect::Error(errno)),
        5 => Fault::of(&[Kind::SyncData], Effect::Error(errno)),
        6 => Fault::of(SYNCS, Effect::Error(errno)),
        7 => Fault::of(&[Kind::Create, Kind::Preallocate], Effect::Error(errno)),
        8 => Fault::of(&[Kind::Write], Effect::Short { bytes: dice.below(9000) as usize, errno }),
        // Only what is verified can be trusted on a disk that stores other bytes than it was given.
        9 | 10 => return Fault::of(&[Kind::Write], Effect::Spoil).on("segments/").times(1 + dice.below(3)),
        _ => {
            let by_bytes = 4096 * (1 + dice.below(300) as i64);
            return Fault::of(&[Kind::Write], Effect::Astray { by_bytes }).on("segments/").times(1 + dice.below(3));
        }
    };
    fault.on(place).after(dice.below(6)).times(*dice.pick(&[1, 2, 10, u64::MAX]))
}

/// Plays a world whose disk fails now and then, and is well again at the end; gives what it said when it had healed.
pub fn play_on_failing_disk(seed: u64) -> Result<World, String> {
    DOING.set(format!("seed {seed} on a failing disk, before any cut"));
    let mut dice = Dice(mix(seed ^ 0xfa17));
    let disk = MemoryBacking::default();
    let world = Arc::new(Simulated::new(seed));
    let manner = manner(seed, &mut dice);
    manner.create(&disk, &world).map_err(|e| e.to_string())?;
    disk.record();
    let place = Place::open(&disk, &world, &manner).map_err(|e| format!("{e:?}"))?;
    let mut player = Player::new(&disk, &world, manner, place, Tree::new());
    // A root directory that was never durable is made anew at the next opening, with other times.
    player.step(&Step::Fsync)?;
    count_quotas(seed, player.place())?;
    player.faulty = true;
    let habits = Habits::of(&mut dice);
    let mut failing = false;
    for _ in 0..8 + dice.below(24) {
        world.pass(Duration::from_millis(dice.below(20)));
        if failing && dice.one_in(5) {
            player.tell("lifted");
            player.disk.lift_all();
            failing = false;
        } else if !failing && dice.one_in(5) {
            let fault = any_fault(&mut dice);
            player.tell(&format!("planted {fault:?}"));
            player.disk.plant(fault);
            failing = true;
        }
        let step = habits.step(&mut dice, &player.tree, player.held());
        player.step(&step)?;
    }
    // The disk is well again: the vault heals by itself, nothing that it took in is lost, and it acknowledges again.
    player.disk.lift_all();
    player.faulty = false;
    for _ in 0..20 {
        player.step(&Step::Wait(Duration::from_secs(5)))?;
    }
    player.step(&Step::Fsync).map_err(|e| format!("after the disk is well again: {e}"))?;
    player.compare()?;
    player.step(&Step::Checkpoint).map_err(|e| format!("after the disk is well again: {e}"))?;
    player.close()?;
    let history = player.history.clone();
    Ok(World { seed, manner, history, made_at: 0, cuts: player.disk.cuts() })
}

/// Lets the allocator keep what it got: each opening takes and gives back the same large buffers, and the kernel would clear
/// their pages each time.
pub fn keep_memory() {
    // SAFETY: both calls only set parameters of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
    }
}

/// Runs `one` for the numbers from 0 on, on every core, until it was done `most` times, `enough` says so, or one fails.
pub fn on_every_core(
    most: u64,
    enough: &(dyn Fn() -> bool + Sync),
    one: &(dyn Fn(u64) -> Result<(), String> + Sync),
) -> Option<String> {
    keep_memory();
    let (next, failed) = (AtomicU64::new(0), Mutex::new(None));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !enough() && failed.lock().unwrap().is_none() {
                    let n = next.fetch_add(1, SeqCst);
                    if n >= most {
                        return;
                    }
                    if let Err(why) = one(n) {
                        eprintln!("{why}");
                        failed.lock().unwrap().get_or_insert(why);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap()
}

/// What is done at each cut beside opening and comparing: one cut in so many.
#[derive(Debug, Clone, Copy)]
pub struct Depth {
    pub check_one_in: u64,
    pub go_on_one_in: u64,
}

pub const USUAL: Depth = Depth { check_one_in: 16, go_on_one_in: 16 };

/// A cut that the vault did not survive.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    pub cut: usize,
    pub fate: u64,
    pub why: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Failure { seed, cut, fate, why } = self;
        write!(
            f,
            "seed {seed}, cut {cut}, fate {fate}: {why}\n    again: STRONGROOM_SIM_SEED={seed} STRONGROOM_SIM_CUT={cut} \
             STRONGROOM_SIM_FATE={fate} cargo test --test simulation one_world_again -- --nocapture --ignored"
        )
    }
}

/// Turns a panic into words.
pub fn caught<T>(body: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

impl World {
    /// Cuts the power here and judges what is left.
    pub fn judge(&self, fate: u64, depth: Depth) -> Result<(), Failure> {
        let cut = self.cuts.cut();
        let number = mix(self.seed ^ mix(cut as u64) ^ fate.rotate_left(48));
        let failed = |why| Failure { seed: self.seed, cut, fate, why };
        DOING.set(failed(String::new()).to_string());
        self.judge_fates(Fates(number), depth).map_err(failed)
    }

    /// The same with these fates.
    pub fn judge_fates(&self, fates: Fates, depth: Depth) -> Result<(), String> {
        let cut = self.cuts.cut();
        let image = self.cuts.image(&mut |u| fates.of(u, cut));
        caught(|| {
            let mut dice = Dice(mix(fates.0 ^ cut as u64));
            let before = Before { history: &self.history, cut, made: cut >= self.made_at };
            before.survive(&image, self.manner, &mut dice, depth, 2)
        })
    }

    /// Cuts after every call, with so many fates each; gives how many cuts that were.
    pub fn judge_all(&mut self, fates: u64, depth: Depth) -> Result<u64, Failure> {
        let mut done = 0;
        loop {
            for fate in 0..fates {
                self.judge(fate, depth)?;
                done += 1;
            }
            if !self.cuts.advance() {
                return Ok(done);
            }
        }
    }
}

/// What went before a cut.
struct Before<'a> {
    history: &'a History,
    cut: usize,
    made: bool,
}

impl Before<'_> {
    /// The vault of an image opens, holds what it may hold, and, where chance says so, goes on.
    fn survive(
        &self,
        image: &MemoryBacking,
        manner: Manner,
        dice: &mut Dice,
        depth: Depth,
        lives: u32,
    ) -> Result<(), String> {
        let world = Arc::new(Simulated::new(dice.next()));
        let goes_on = lives > 0 && dice.one_in(depth.go_on_one_in);
        if goes_on {
            image.record();
        }
        let place = match Place::open(image, &world, &manner) {
            Ok(place) => place,
            Err(NoPlace::NotAVault) if !self.made => return Ok(()),
            Err(e) => return Err(format!("{e:?}")),
        };
        let found = place.observe()?;
        let state = self.history.judge(&found, self.cut)?;
        let mut last = image.clone();
        if !goes_on {
            drop(place);
        } else {
            let mut player = Player::new(image, &world, manner, place, found);
            player.history.acknowledge(0, 0);
            let habits = Habits::of(dice);
            world.pass(Duration::from_secs(60));
            for _ in 0..dice.below(8) {
                let step = habits.step(dice, &player.tree, player.held());
                player.step(&step).map_err(|e| format!("going on from state {state}: {e}"))?;
            }
            player.step(&Step::Fsync)?;
            player.step(&Step::Reopen)?;
            player.close()?;
            // And the power is cut again, in the midst of opening perhaps.
            last = player.disk.clone();
            let mut cuts = last.cuts();
            let cut = dice.below(cuts.calls().len() as u64 + 1) as usize;
            while cuts.cut() < cut && cuts.advance() {}
            let fates = Fates(dice.next());
            let again = cuts.image(&mut |u| fates.of(u, cut));
            let before = Before { history: &player.history, cut, made: true };
            let survived = before.survive(&again, manner, dice, depth, lives - 1);
            survived.map_err(|e| format!("cut again at {cut} after going on from state {state}: {e}"))?;
        }
        if dice.one_in(depth.check_one_in) {
            let used = rebuilt_both_ways(&last, &world, &manner)?;
            REBUILT_FROM_SNAPSHOTS.fetch_add(u64::from(used), SeqCst);
            let backing: Arc<dyn Backing> = Arc::new(last);
            let clock: Arc<dyn Clock> = world;
            let findings = check(&backing, &unlock(), &clock, true, &|_, _| {}).map_err(|e| format!("check: {e}"))?;
            if !findings.is_empty() {
                return Err(format!("check found {findings:?}"));
            }
        }
        Ok(())
    }
}
