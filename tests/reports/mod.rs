//! The kinds of reports, one file for each subject.
//!
//! Some kinds have a test elsewhere: truncated and rewritten files in `mount_fsx.rs` and `mount_differential.rs`, a
//! forced unmount in `mount_crash.rs` and `cli.rs`, saved mail and edited texts in `mount_habits.rs`, PostgreSQL in
//! `mount_postgres.rs`.

mod behind_the_end;
mod databases;
mod files;
mod images;
mod load;
mod mounts;
mod overlays;
mod repositories;
mod share;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Tells threads to stop when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
