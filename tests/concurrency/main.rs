//! Buffers, caches and waits under every order of their threads that a scheduler thinks of.
//!
//! Method: the library's own source files are compiled here once more, over locks, condition variables and threads that run
//! one at a time and whose next step a seeded scheduler chooses (shuttle: random, and PCT, which finds bugs that need few
//! preemptions). A wait in them never times out, so a wake-up that is lost is a deadlock, and a deadlock is a failure.
//! Promise: see each file here; each harness must also catch planted faults, as condition variables that wake nobody.
//! Sizes: `STRONGROOM_SCHEDULES` (per harness and scheduler; default 1000), `STRONGROOM_SEEDS` (the seed of the first one).
//! A failure prints its schedule; the seed gives it again.
// Tests may unwrap; and the library's files bring unit tests along that are not run here.
#![allow(clippy::unwrap_used, dead_code, unused_imports, missing_docs)]

mod explore;
pub mod sync;

/// What the sources below find as `crate::base`: the library's, but for the locks.
#[path = "."]
mod base {
    pub use crate::sync;
    pub use strongroom::base::{choice, id, limits};
    #[path = "../../src/base/lock.rs"]
    pub mod lock;
}
mod format {
    pub use strongroom::format::extent;
}
mod segment {
    pub use strongroom::segment::FrameAt;
}
#[path = "../../src/buffer/mod.rs"]
mod buffer;
#[path = "."]
mod vault {
    pub use strongroom::vault::{SyncReply, VaultFault};
    #[path = "../../src/vault/cache.rs"]
    pub mod cache;
    #[path = "../../src/vault/outcome.rs"]
    pub mod outcome;
    #[path = "../../src/vault/progress.rs"]
    pub mod progress;
}

mod budget;
mod file;
mod frames;
mod outcomes;
mod waiters;

use explore::Harness;
use libtest_mimic::{Arguments, Trial};

fn main() {
    explore::be_quiet_about_planted_faults();
    let all: Vec<Harness> = [budget::ALL, file::ALL, frames::ALL, outcomes::ALL, waiters::ALL].concat();
    let trials = all.into_iter().flat_map(|h| {
        let promise = Trial::test(h.name, move || explore::holds(&h));
        let faults = h.faults.iter().map(move |&fault| {
            Trial::test(format!("{}_catches_{fault:?}", h.name), move || explore::catches(&h, fault))
        });
        std::iter::once(promise).chain(faults)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
