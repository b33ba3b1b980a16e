//! What a vault is made and opened with, and what it answers about how full it is.
//!
//! Promise: every choice is here, with what it is unless told. Called by: `cli`, `check`, tests (fill them in), `create` and
//! `open` (read them). Cannot fail.

use super::place::EmergencyDir;
use super::reopen::HomeDir;
use super::step::Choose;
use crate::backing::Space;
use crate::base::choice::{Compression, SuiteId, Verify};
use crate::base::limits::{
    BUDGET_BYTES_DEFAULT, FLUSH_DEADLINE, FLUSH_INTERVAL, SCRUB_RATE_BYTES, VERIFY_OPEN_PERCENT,
};
use crate::seal::RecoveryKey;
use std::time::Duration;

/// What `create` needs beside a key.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// The cipher; `None` takes what is fastest here.
    pub suite: Option<SuiteId>,
    /// The compression unless a mount says otherwise.
    pub compression: Compression,
    /// Most bytes of files.
    pub quota_bytes: Option<u64>,
    /// Most inodes.
    pub quota_inodes: Option<u64>,
    /// Argon2id memory in KiB, passes, lanes; `None` calibrates.
    pub argon2: Option<(u32, u32, u32)>,
    /// A recovery key that opens the vault, too.
    pub recovery: Option<RecoveryKey>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        let (suite, quota_bytes, quota_inodes, argon2) = (None, None, None, None);
        CreateOptions { suite, compression: Compression::Auto, quota_bytes, quota_inodes, argon2, recovery: None }
    }
}

/// How to run an open vault.
#[derive(Clone)]
pub struct OpenOptions {
    /// The byte budget.
    pub budget_bytes: u64,
    /// Overrides the vault's own.
    pub compression: Option<Compression>,
    /// Where verification reads from.
    pub verify: Verify,
    /// Oldest that unsaved data gets.
    pub flush_interval: Duration,
    /// Of a hundred groups read back, so many are also opened and compared with the plaintext.
    pub verify_open_percent: u32,
    /// Threads that compress and encrypt.
    pub workers: usize,
    /// Where the log goes on when the backing directory fails.
    pub emergency: Option<EmergencyDir>,
    /// How to open the backing directory anew, when it fails: a disk may be unplugged and come back.
    pub home: Option<HomeDir>,
    /// Go without an emergency directory that may hold acknowledged data.
    pub without_emergency: bool,
    /// A flush that takes longer counts as a failure, if there is an emergency directory.
    pub flush_deadline: Duration,
    /// Run no threads: every activity takes place inside the calls that wait for it, in the order chosen here. For tests.
    pub stepped: Option<Choose>,
    /// Refuse every change.
    pub read_only: bool,
    /// Most bytes that a scrub reads in a second unless told otherwise; 0 for no limit.
    pub scrub_rate_bytes: u64,
    /// Pass over what in the log contradicts itself, and count it as lost: for whoever was asked to mend.
    pub salvage: bool,
    /// Leave the index aside, and make another from the log; the old one is removed when that is done.
    pub rebuild_index: bool,
    /// Make it from the whole log, if that has lost nothing, though there are snapshots: they may have taken over what is wrong.
    pub whole_log: bool,
    /// Where both roots are lost, make one from the log: for whoever was asked to mend.
    pub rebuild_roots: bool,
    /// Old segments are cleaned when they take so many bytes more than what is alive in them; `None` never cleans, which is right for
    /// whoever only looks, mends or comes by.
    pub clean_bytes: Option<u64>,
    /// Bring nothing home from the emergency directory: what a look writes stays in memory, and segments are many and large.
    pub leave_away: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            budget_bytes: BUDGET_BYTES_DEFAULT,
            compression: None,
            verify: Verify::Device,
            flush_interval: FLUSH_INTERVAL,
            verify_open_percent: VERIFY_OPEN_PERCENT,
            emergency: None,
            home: None,
            without_emergency: false,
            flush_deadline: FLUSH_DEADLINE,
            stepped: None,
            workers: std::thread::available_parallelism().map_or(2, usize::from),
            read_only: false,
            scrub_rate_bytes: SCRUB_RATE_BYTES,
            salvage: false,
            rebuild_index: false,
            whole_log: false,
            rebuild_roots: false,
            clean_bytes: None,
            leave_away: false,
        }
    }
}

/// What the vault holds against what it may hold.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Bytes of files that are not holes, buffered ones included (an upper bound while they are buffered).
    pub bytes: u64,
    /// Most that they may be.
    pub quota_bytes: Option<u64>,
    /// Inodes in being, the root directory included.
    pub inodes: u64,
    /// Most that there may be.
    pub quota_inodes: Option<u64>,
    /// Room on the backing filesystem, the reserve taken off, and its size; `None` where it does not say.
    pub backing: Option<Space>,
}

/// How full everything is at the moment.
#[derive(Debug, Clone, Copy)]
pub struct Gauges {
    /// The byte budget.
    pub budget_bytes: u64,
    /// Unsaved bytes in buffers.
    pub dirty_bytes: u64,
    /// Most that they may be.
    pub dirty_limit_bytes: u64,
    /// Bytes sealed and not yet written, and of groups written and not yet verified, at most.
    pub in_flight_bytes: u64,
    /// Decoded frames kept.
    pub cache_bytes: u64,
    /// Most that they may be. It and that of buffers are less while memory is short.
    pub cache_limit_bytes: u64,
    /// Index changes that no checkpoint holds.
    pub overlay_entries: u64,
    /// Their bytes.
    pub overlay_bytes: u64,
    /// Writers waiting for the budget.
    pub waiting_writers: u64,
    /// Bytes given back to the byte budget that had not been taken; any are a fault of ours.
    pub over_returned_bytes: u64,
    /// Jobs waiting for a worker.
    pub sealer_queue: u64,
    /// Pieces of files waiting to be read ahead.
    pub ahead_queue: u64,
    /// Sealed frames waiting for the log.
    pub log_queue: u64,
    /// Groups waiting for the verifier.
    pub verify_queue: u64,
    /// Worker threads.
    pub workers: u64,
    /// The segment being written.
    pub segments: u64,
    /// This mount's lease.
    pub epoch: u64,
    /// The newest root.
    pub generation: u64,
    /// The newest batch that is durable, counted from the mount.
    pub commit_seq: u64,
    /// The commit that the newest snapshot of the index covers; 0 for none.
    pub snapshot_commit: u64,
    /// Its bytes.
    pub snapshot_bytes: u64,
    /// Snapshots that are kept.
    pub snapshots_kept: u64,
}
