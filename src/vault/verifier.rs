//! Reads back what the log wrote, and retires what is proven.
//!
//! Promise (I2): a batch is acknowledged, and its extents named by the index, only after each of its groups was read back
//! from the device and found equal to what was sent there, and the device was flushed. In log order, so batches retire in
//! order. Called by: its own thread, fed by `log`. Takes: nothing while reading.
//! On failure: a group that differs or cannot be read fails the vault; nothing is acknowledged from then on.

use super::apply::apply;
use super::checkpoint::ToHousekeeper;
use super::flusher::Outcome;
use super::segments::OpenSegment;
use super::shared::Shared;
use super::{VaultFault, segment_info};
use crate::backing::AlignedBuf;
use crate::base::choice::Verify;
use crate::base::id::SegmentId;
use crate::base::limits::GROUP_BYTES_MAX;
use crate::base::lock::Held;
use crate::format::record::Counters;
use crate::format::segment::LogPosition;
use crossbeam_channel::{Receiver, Sender};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// What the log hands over, in its order.
pub enum ToVerify {
    /// A group just written.
    Group { segment: Arc<OpenSegment>, position: u64, image: AlignedBuf },
    /// A commit whose groups precede it here.
    Commit(Box<Commit>),
    /// Nothing more will come.
    Stop,
}

/// A commit on its way to retirement.
pub struct Commit {
    pub number: u64,
    pub position: LogPosition,
    pub counters: Counters,
    pub derived: Vec<u8>,
    /// Its device flush.
    pub flushed: Arc<Outcome>,
    /// Set when the direct overlay was sealed at its cut: the first segment to replay after the checkpoint.
    pub checkpoint: Option<SegmentId>,
    pub began: Duration,
}

/// The verifier's life.
pub fn run(shared: &Arc<Shared>, from_log: &Receiver<ToVerify>, housekeeper: &Sender<ToHousekeeper>) {
    let mut back = AlignedBuf::with_capacity(GROUP_BYTES_MAX);
    for item in from_log {
        match item {
            ToVerify::Stop => return,
            ToVerify::Group { segment, position, image } => {
                if let Err(why) = check_group(shared, &segment, position, &image, &mut back) {
                    shared.fail(&why);
                }
                shared.verifying.fetch_sub(1, Relaxed);
                let mut spare = shared.group_buffers.held();
                if spare.len() < shared.shares.verify_lag_groups {
                    spare.push(image);
                }
            }
            ToVerify::Commit(commit) => {
                // After a failure nothing is acknowledged; the buffers stay, and reads show them.
                if shared.failed.get().is_none()
                    && let Err(fault) = retire(shared, *commit, housekeeper)
                {
                    shared.fail(&fault.to_string());
                }
            }
        }
    }
}

fn check_group(
    shared: &Shared,
    segment: &OpenSegment,
    position: u64,
    image: &AlignedBuf,
    back: &mut AlignedBuf,
) -> Result<(), String> {
    let began = Instant::now();
    back.set_len(image.len());
    let got = match shared.verify {
        Verify::Off => return Ok(()),
        Verify::Device => segment.file.read_device(back, position),
        Verify::Cache => segment.file.read_at(back, position),
    };
    let id = segment.context.id;
    let got = got.map_err(|e| format!("segment {id}, byte {position}: reading back: {e}"))?;
    shared.stats.verify.record(began.elapsed());
    if got != image.len() || back[..] != image[..] {
        shared.stats.verify_mismatches.add(1);
        return Err(format!("segment {id}, byte {position}: what was read back is not what was written"));
    }
    shared.stats.verified_bytes.add(got as u64);
    Ok(())
}

fn retire(shared: &Arc<Shared>, commit: Commit, housekeeper: &Sender<ToHousekeeper>) -> Result<(), VaultFault> {
    commit.flushed.wait().map_err(VaultFault::Failed)?;
    shared.stats.commit.record(shared.world.elapsed().saturating_sub(commit.began));
    // Durable and verified: answer first, the bookkeeping is ours alone.
    shared.answer(commit.number);
    let mut dead = Vec::new();
    let sum = apply(&shared.index, &|id| segment_info(shared, id), &commit.derived, &mut dead)?;
    shared.allocated.fetch_add(sum as u64, Relaxed);
    if !dead.is_empty() {
        shared.dead.held().append(&mut dead);
    }
    let touched = shared.in_flight.held().remove(&commit.number).unwrap_or_default();
    let freed: u64 = touched.iter().map(|file| file.retire(commit.number)).sum();
    shared.dirty.give_back(freed);
    if let Some(replay_from) = commit.checkpoint {
        shared.index.seal_derived();
        let dead = std::mem::take(&mut *shared.dead.held());
        let (position, counters) = (commit.position, commit.counters);
        // The housekeeper outlives the verifier; see `Vault::close`.
        let _ = housekeeper.send(ToHousekeeper::Checkpoint { position, counters, replay_from, dead });
    }
    shared.progress.held().retired = commit.number;
    shared.progressed.notify_all();
    Ok(())
}
