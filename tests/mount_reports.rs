//! Faults that users of other filesystems reported, tried on the mount with the programs that met them.
//!
//! Method: each test repeats one kind of report: a database, a disk image, a repository, a share, an unusual mount.
//! The judge is the program's own checker, or ext4 where only the behavior counts. `reports/mod.rs` lists the kinds.
//! Promise: no kind that is listed there is a fault of the mount.
//! `STRONGROOM_SUBDIRECTORIES` asks for more of them in one directory.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;
mod reports;
