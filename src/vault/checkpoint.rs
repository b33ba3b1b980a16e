//! The housekeeper: stores checkpoints, gives dead space back, prepares segments.
//!
//! Promise (I3): a checkpoint covers only log that is synced and verified, for it is told of a commit only after that.
//! (I10): a hole is punched only once a durable checkpoint no longer names the bytes. Nothing here is on an operation's
//! path. Called by: its own thread, fed by `verifier` and `log`. Takes: the root's lock.
//! On failure: a checkpoint that cannot be stored is reported and tried again with the next one; the log still has it all.

use super::VaultFault;
use super::root;
use super::shared::{DeadRange, Shared};
use crate::backing::{BackingFile, Cache, Open};
use crate::base::id::{Generation, SegmentId};
use crate::base::limits::{ALLOCATE_STEP_BYTES, BLOCK_BYTES, CHECKPOINT_IDLE};
use crate::base::lock::Held;
use crate::format::key;
use crate::format::record::Counters;
use crate::format::segment::{Covered, LogPosition};
use crate::segment::path;
use crossbeam_channel::{Receiver, RecvTimeoutError, select};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

/// What the housekeeper is told.
pub enum ToHousekeeper {
    /// Both overlays are sealed at this commit.
    Checkpoint { position: LogPosition, counters: Counters, replay_from: SegmentId, dead: Vec<DeadRange> },
    /// Nothing more will come.
    Stop,
}

/// The housekeeper's life.
pub fn run(shared: &Arc<Shared>, told: &Receiver<ToHousekeeper>, prepare: &Receiver<SegmentId>) {
    let mut dead = Vec::new();
    let (mut prepare, no_more) = (prepare, crossbeam_channel::never());
    loop {
        let item = select! {
            recv(prepare) -> id => {
                match id.map(|id| prepare_segment(shared, id)) {
                    Ok(Ok(())) => {}
                    // The log will try by itself, and fail with more reason.
                    Ok(Err(e)) => log::warn!("preparing a segment: {e}"),
                    // The log has ended; a closed queue would answer at once for ever.
                    Err(_) => prepare = &no_more,
                }
                continue;
            }
            recv(told) -> item => item.map_err(|_| RecvTimeoutError::Disconnected),
            default(Duration::from_secs(1)) => Err(RecvTimeoutError::Timeout),
        };
        match item {
            Err(RecvTimeoutError::Timeout) => ask_when_idle(shared),
            Ok(ToHousekeeper::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(ToHousekeeper::Checkpoint { position, counters, replay_from, dead: mut more }) => {
                dead.append(&mut more);
                let began = shared.world.elapsed();
                match store(shared, position, counters, replay_from, false) {
                    Ok(()) => {
                        shared.stats.checkpoints.add(1);
                        shared.stats.checkpoint.record(shared.world.elapsed().saturating_sub(began));
                        shared.log_since_checkpoint.store(0, Relaxed);
                        punch(shared, std::mem::take(&mut dead));
                    }
                    Err(e) => {
                        shared.stats.checkpoint_failures.add(1);
                        shared.stats.error(shared.world.now(), format!("checkpoint: {e}"));
                    }
                }
                shared.checkpoint_running.store(false, SeqCst);
                shared.progressed.notify_all();
            }
        }
    }
}

/// After a while without operations, what the overlay holds is stored, so that a crash then has nothing to replay.
fn ask_when_idle(shared: &Shared) {
    let last = Duration::from_millis(shared.last_op_ms.load(Relaxed));
    let idle = shared.world.elapsed().saturating_sub(last) >= CHECKPOINT_IDLE;
    if idle && shared.index.overlay_entries() > 0 && shared.failed.get().is_none() {
        shared.checkpoint_wanted.store(true, SeqCst);
        shared.wake_log();
    }
}

/// Stores both sealed overlays with the position they cover, then the root that names it.
pub fn store(
    shared: &Shared,
    position: LogPosition,
    counters: Counters,
    replay_from: SegmentId,
    clean: bool,
) -> Result<(), VaultFault> {
    let covered = Covered { position, counters, replay_from };
    shared.index.apply_sealed(&[(key::total("log"), covered.encode())])?;
    let mut root = shared.root.held();
    root.generation = Generation(root.generation.0 + 1);
    (root.covered, root.clean) = (position, clean);
    let (master, vault) = (&shared.segments.master, shared.segments.vault);
    root::write(&*shared.backing, &root, master, vault, &*shared.world)?;
    // Not under the lock, which whoever looks at the numbers takes: pins lie on another filesystem, and it may be slow.
    let written = root.clone();
    drop(root);
    shared.pins.remember(&written);
    Ok(())
}

/// The last checkpoint of a mount: covers everything, frees what is dead, and says that the close was clean.
pub fn close(shared: &Shared, position: LogPosition, counters: Counters, next: SegmentId) -> Result<(), VaultFault> {
    store(shared, position, counters, next, true)?;
    punch(shared, std::mem::take(&mut *shared.dead.held()));
    // Prepared, and not begun.
    match shared.backing.remove(&path(next)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

fn prepare_segment(shared: &Shared, id: SegmentId) -> std::io::Result<()> {
    let _making = shared.making_segment.held();
    if id.0 <= shared.newest_begun.load(SeqCst) {
        return Ok(());
    }
    let file = shared.backing.open(&path(id), Open::Create, Cache::Direct)?;
    file.preallocate(ALLOCATE_STEP_BYTES)?;
    file.sync_data()?;
    shared.backing.sync_dir("segments")
}

/// Gives the whole blocks inside dead ranges back to the filesystem.
fn punch(shared: &Shared, mut dead: Vec<DeadRange>) {
    dead.sort_unstable_by_key(|d| (d.segment, d.from));
    let mut merged: Vec<DeadRange> = Vec::with_capacity(dead.len());
    for d in dead {
        match merged.last_mut() {
            Some(last) if last.segment == d.segment && last.to >= d.from => last.to = last.to.max(d.to),
            _ => merged.push(d),
        }
    }
    let block = BLOCK_BYTES as u64;
    let mut open: Option<(SegmentId, Arc<dyn BackingFile>)> = None;
    for d in merged {
        let (from, to) = (d.from.next_multiple_of(block), d.to / block * block);
        if from >= to {
            continue;
        }
        let file = match &open {
            Some((id, file)) if *id == d.segment => Ok(Arc::clone(file)),
            _ => shared.backing.open(&path(d.segment), Open::Write, Cache::Buffered),
        };
        let punched = file.and_then(|file| {
            file.punch(from, to - from)?;
            open = Some((d.segment, file));
            Ok(())
        });
        match punched {
            Ok(()) => shared.stats.punched_bytes.add(to - from),
            Err(e) => {
                // Only space is lost by it.
                log::warn!("segment {}: giving back bytes {from} to {to}: {e}", d.segment);
                return;
            }
        }
    }
}
