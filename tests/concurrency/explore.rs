//! Runs a harness under many orders of its threads, with and without planted faults.
//!
//! Promise: `holds` fails if any order breaks the harness's assertions or leaves a thread waiting; `catches` fails if none
//! does although a fault is planted. Both repeat for the same seed. Called by: `main`.

use libtest_mimic::Failed;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A fault that a harness must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `notify_all` does nothing.
    WakesNobody,
    /// `notify_all` wakes one: seen where the one that is woken may have to wait again, or wakes nobody else.
    WakesOne,
    /// A writer that takes its room without being admitted.
    NotAdmitted,
    /// A writer that looks for room by itself instead of queueing.
    JumpsTheQueue,
    /// A write in two halves.
    Halves,
    /// A layer is retired before the index shows it.
    RetiredTooEarly,
    /// A reader that loads what it has not claimed.
    IgnoresClaims,
    /// A loader that keeps its claim when it fails.
    KeepsItsClaim,
    /// Who has waited too long says so, but does not make it the outcome.
    KeepsItsTrouble,
    /// The budget is opened after the decision to go on, and not with it.
    OpensLate,
    /// Who stops does not tell those who wait.
    TellsNobody,
}

/// A promise and the faults that would break it.
#[derive(Clone, Copy)]
pub struct Harness {
    pub name: &'static str,
    pub run: fn(),
    pub faults: &'static [Fault],
}

thread_local! {
    static PLANTED: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// The fault to commit now.
pub fn planted() -> Option<Fault> {
    PLANTED.get()
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().expect("a number"))
}

fn explore(run: fn(), scheduler: impl Scheduler + 'static, persistence: FailurePersistence) {
    let mut config = Config::new();
    config.stack_size = 256 << 10;
    config.failure_persistence = persistence;
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(run);
}

/// Both schedulers, so many orders each.
fn all_orders(run: fn(), count: usize, seed: u64, persistence: impl Fn() -> FailurePersistence) {
    explore(run, RandomScheduler::new_from_seed(seed, count), persistence());
    explore(run, PctScheduler::new_from_seed(seed, 3, count), persistence());
}

/// The promise holds under every order that is tried.
pub fn holds(harness: &Harness) -> Result<(), Failed> {
    let count = from_environment("STRONGROOM_SCHEDULES", 1000) as usize;
    let seed = from_environment("STRONGROOM_SEEDS", 1);
    PLANTED.set(None);
    all_orders(harness.run, count, seed, || FailurePersistence::Print);
    Ok(())
}

/// The planted fault shows within the orders that are tried by default.
pub fn catches(harness: &Harness, fault: Fault) -> Result<(), Failed> {
    PLANTED.set(Some(fault));
    let caught = catch_unwind(AssertUnwindSafe(|| all_orders(harness.run, 1000, 1, || FailurePersistence::None)));
    PLANTED.set(None);
    if caught.is_err() { Ok(()) } else { Err(format!("{fault:?} went unseen").into()) }
}

/// The panics of planted faults are wanted, and not worth a page.
pub fn be_quiet_about_planted_faults() {
    // The scheduler sets a hook of its own at its first run.
    explore(|| (), RandomScheduler::new(1), FailurePersistence::Print);
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if planted().is_none() {
            tell(panic);
        }
    }));
}
