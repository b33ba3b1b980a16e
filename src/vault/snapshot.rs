//! Snapshots: copies of all that the index's table holds as of a checkpoint, each in a file of its own (format.md §13).
//!
//! Promise (I12): a snapshot gets its name only after all of it was written, flushed, read back from the device, opened and
//! counted. So where two are kept, the log before the one that is second newest is not needed to make an index anew:
//! `replay_from_all` says from which segment on it is.
//! Called by: `snapshot_keeper` and `reseal_snapshots` (make them), `rebuild` (loads one), `open`.
//! On failure: the disk's error; what was begun goes with the value that makes it.

use super::VaultFault;
use super::place::{open_if_there, remove_if_there};
use super::shared::Shared;
use crate::backing::{Backing, BackingFile, Cache, Open};
use crate::base::choice::SuiteId;
use crate::base::id::{CommitSeq, Epoch, SegmentId, VaultId};
use crate::base::limits::SNAPSHOTS_KEPT;
use crate::base::lock::Held;
use crate::base::world::World;
use crate::format::segment::{Covered, SegmentInfo};
use crate::format::snapshot::{End, holds};
use crate::seal::VaultKeys;
use crate::segment::{
    SNAPSHOTS, SegmentContext, SnapshotReader, SnapshotWriter, Unreadable, WholeSnapshot, parse_snapshot_name,
    snapshot_path,
};
use std::io;
use std::sync::Arc;

/// A snapshot that lies in the backing directory.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The commit that it covers.
    pub number: CommitSeq,
    /// Length of its file.
    pub len_bytes: u64,
    /// What this mount knows of it.
    pub known: Known,
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Nobody has looked.
    Nothing,
    /// All of it was read in this mount, and is whole.
    Whole {
        /// The first segment that may hold later commits.
        replay_from: SegmentId,
    },
    /// It does not hold, and why.
    Spoiled(String),
    /// The disk did not give it.
    Unread,
}

/// The numbers of the snapshots that lie there, the newest first.
pub fn list(backing: &dyn Backing) -> io::Result<Vec<CommitSeq>> {
    let names = match backing.list(SNAPSHOTS) {
        // A vault of before format 5.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let mut all: Vec<CommitSeq> = names.iter().filter_map(|name| parse_snapshot_name(name)).collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    Ok(all)
}

/// The same, open to be read; one that goes meanwhile is none.
pub fn list_open(backing: &dyn Backing) -> io::Result<Vec<(CommitSeq, Arc<dyn BackingFile>)>> {
    let open = |number| Ok(open_if_there(backing, &snapshot_path(number))?.map(|file| (number, file)));
    list(backing)?.into_iter().filter_map(|number| open(number).transpose()).collect()
}

/// What a mount begins with.
pub fn found(backing: &dyn Backing) -> io::Result<Vec<Kept>> {
    let kept =
        |(number, file): (_, Arc<dyn BackingFile>)| Ok(Kept { number, len_bytes: file.len()?, known: Known::Nothing });
    list_open(backing)?.into_iter().map(kept).collect()
}

/// Makes the directory ready for a mount that writes: it is there, nothing half made is in it, and nothing of commits that the
/// vault does not have: such a snapshot is of a history that was given up, and one day the numbers would be those of other commits.
pub fn make_ready(backing: &dyn Backing, newest: CommitSeq) -> io::Result<()> {
    make_dir(backing)?;
    for name in backing.list(SNAPSHOTS)? {
        if name.ends_with(".new") || parse_snapshot_name(&name).is_some_and(|number| number > newest) {
            log::info!("{SNAPSHOTS}/{name} is removed: it was never finished, or is of another history");
            remove_if_there(backing, &format!("{SNAPSHOTS}/{name}"))?;
        }
    }
    Ok(())
}

fn make_dir(backing: &dyn Backing) -> io::Result<()> {
    match backing.list(SNAPSHOTS) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            backing.make_dir(SNAPSHOTS)?;
            backing.sync_dir("")
        }
        other => other.map(drop),
    }
}

/// Reads a snapshot to its end; `each` gets its entries, which count only if it is whole.
pub fn read_whole(
    backing: &dyn Backing,
    keys: &VaultKeys,
    (suite, vault): (SuiteId, VaultId),
    number: CommitSeq,
    each: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<WholeSnapshot, Unreadable> {
    let file = backing.open(&snapshot_path(number), Open::Read, Cache::Direct)?;
    let mut reader = SnapshotReader::new(file, number, suite, vault);
    loop {
        if let Some(whole) = reader.next(keys, each)? {
            return Ok(whole);
        }
    }
}

/// The first segment that making an index anew may need, by the snapshots that are kept; 0 unless two of them were read whole in
/// this mount. What lies before it is needed for data alone.
pub fn replay_from_all(shared: &Shared) -> SegmentId {
    let kept = shared.snapshots.held();
    let mut from = Vec::new();
    for snapshot in kept.iter() {
        match snapshot.known {
            Known::Whole { replay_from } => from.push(replay_from),
            Known::Nothing | Known::Spoiled(_) | Known::Unread => return SegmentId(0),
        }
    }
    if from.len() < SNAPSHOTS_KEPT { SegmentId(0) } else { from.into_iter().min().unwrap_or_default() }
}

/// A snapshot being made, under a temporary name; gone with this value unless it got its own.
pub struct Making {
    backing: Arc<dyn Backing>,
    file: Arc<dyn BackingFile>,
    of: (SuiteId, VaultId),
    covered: Covered,
    writer: SnapshotWriter,
    len_bytes: u64,
    end: Option<End>,
    named: bool,
}

impl Making {
    /// Begins one, under the key in force.
    pub fn begin(
        backing: &Arc<dyn Backing>,
        keys: &VaultKeys,
        (suite, vault): (SuiteId, VaultId),
        epoch: Epoch,
        covered: &Covered,
        world: &dyn World,
    ) -> io::Result<Making> {
        make_dir(&**backing)?;
        let temporary = temporary(covered);
        remove_if_there(&**backing, &temporary)?;
        let file = backing.open(&temporary, Open::Create, Cache::Direct)?;
        let mut salt = [0; 16];
        world.fill(&mut salt);
        let info = SegmentInfo::empty(epoch, salt, keys.number());
        let id = SegmentId(covered.position.seq.0);
        let context = SegmentContext::of_snapshot(keys, suite, vault, id, &info).expect("the key in force is there");
        let (writer, backing) = (SnapshotWriter::new(context, covered), Arc::clone(backing));
        let (of, covered) = ((suite, vault), *covered);
        Ok(Making { backing, file, of, covered, writer, len_bytes: 0, end: None, named: false })
    }

    /// Adds an entry, in order; what does not belong into a snapshot is passed over.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        if holds(key) {
            self.writer.add(key, value);
        }
    }

    /// Writes what is full, where `room` lets so many bytes pass; gives how many that were.
    pub fn write(&mut self, room: &dyn Fn(u64) -> Result<(), VaultFault>) -> Result<u64, VaultFault> {
        let mut written = 0;
        while let Some(group) = self.writer.take_group() {
            let len = group.image.len() as u64;
            room(len)?;
            self.file.write_all_at(&group.image, group.position_bytes)?;
            written += len;
        }
        self.len_bytes += written;
        Ok(written)
    }

    /// There are no more entries: writes the rest and flushes all of it.
    pub fn end(&mut self, room: &dyn Fn(u64) -> Result<(), VaultFault>) -> Result<u64, VaultFault> {
        self.end = Some(self.writer.end());
        let written = self.write(room)?;
        self.file.sync_data()?;
        Ok(written)
    }

    /// Reads it back; to be called until it says that this was all.
    pub fn reader(&self) -> SnapshotReader {
        let (suite, vault) = self.of;
        SnapshotReader::new(Arc::clone(&self.file), self.covered.position.seq, suite, vault)
    }

    /// What was read back is what was to be written: gives it its name, durably.
    pub fn give_name(mut self, read: &WholeSnapshot) -> io::Result<Kept> {
        let Making { covered, len_bytes, .. } = self;
        let written = self.end.map(|end| WholeSnapshot { covered, end, len_bytes, checksums_hold: true });
        if written.as_ref() != Some(read) || self.file.len()? != len_bytes {
            let why = "what was read back of a snapshot is not what was written";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let number = covered.position.seq;
        self.backing.rename(&temporary(&covered), &snapshot_path(number))?;
        self.named = true;
        self.backing.sync_dir(SNAPSHOTS)?;
        Ok(Kept { number, len_bytes, known: Known::Whole { replay_from: covered.replay_from } })
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if !self.named {
            // It takes room, and is nothing; the next mount or attempt removes it otherwise.
            let _ = remove_if_there(&*self.backing, &temporary(&self.covered));
        }
    }
}

fn temporary(covered: &Covered) -> String {
    format!("{}.new", snapshot_path(covered.position.seq))
}
