//! strongroom: an encrypted, verified, crash-safe filesystem in a directory.
//!
//! Layers, each importing only what lies below it (`tests/tidy.rs` keeps the arrows): `cli` → `fuse` → `fs`, `check` →
//! `vault` → `buffer` → `segment`, `index` → `seal`, `backing`, `confine` → `format`, `base`. `docs/architecture.md` has the
//! invariants, `docs/format.md` the bytes, `docs/durability.md` the promise.

pub mod backing;
pub mod base;
pub mod buffer;
pub mod check;
pub mod cli;
pub mod confine;
pub mod format;
pub mod fs;
pub mod fuse;
pub mod index;
pub mod seal;
pub mod segment;
pub mod vault;
