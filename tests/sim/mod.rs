//! The simulation: a program of file-system operations runs beside a reference, and the power is cut after every call that the
//! program makes the disk do.
//!
//! `tree` is the reference and its history, `program` the operations, `world` clock and chance, `place` a vault on the
//! faulty disk, `judge` what may be found after a cut, `run` one world from its seed to its verdict.

#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may")]

pub mod judge;
pub mod place;
pub mod player;
pub mod program;
pub mod run;
pub mod tree;
pub mod world;

/// A number from the environment.
pub fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}
