//! Room that is kept for the moment when there is none: so that deleting, truncating, commits and checkpoints always work.
//!
//! Promise: a file of zeros in the backing directory takes the room, really. When the log meets a full disk, the file itself becomes
//! the next segment: another program that fills the disk gets nothing of that half. The rest is freed for the index. It grows
//! again when there is enough; while it is not whole, new data is not admitted. Called by: `failover`, `writer` (the log),
//! `checkpoint` (release, refill), `Vault` (asks). Takes: its own lock.
//! On failure: what cannot be reserved is not there: writes are then refused earlier.

use super::writer::is_full;
use crate::backing::{AlignedBuf, Backing, BackingFile, Cache, Open};
use crate::base::limits::{BLOCK_BYTES, RESERVE_FILE_BYTES, RESERVE_FILE_SHARE};
use crate::base::lock::Held;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// Its name.
pub const RESERVE: &str = "reserve";

/// The reserve.
pub struct Reserve {
    /// Bytes it is meant to hold.
    wanted: u64,
    /// Bytes it holds. Admission reads it, so no lock is held over the disk that it would have to wait for.
    held: AtomicU64,
    /// Set until the next segment is made of the file.
    is_promised: AtomicBool,
    /// Held while the file is grown, renamed or removed.
    changing: Mutex<()>,
}

/// Left free when the rest is taken: for names, and for what the filesystem needs itself.
const LEFT_BYTES: u64 = 256 << 10;

impl Reserve {
    /// Takes the room, if there is four times as much; what cannot be had is looked for again later. Whoever only reads
    /// needs none.
    pub fn take(backing: &dyn Backing, writes: bool) -> Reserve {
        // A filesystem that does not say how large it is does not say when it has plenty either: nothing is taken.
        let total = backing.space().ok().flatten().map_or(0, |space| space.total_bytes);
        let wanted = (total / RESERVE_FILE_SHARE).min(RESERVE_FILE_BYTES);
        let held = AtomicU64::new(if writes { 0 } else { wanted });
        let reserve = Reserve { wanted, held, is_promised: AtomicBool::new(false), changing: Mutex::new(()) };
        reserve.refill(backing);
        reserve
    }

    /// What it lacks.
    pub fn missing_bytes(&self) -> u64 {
        self.wanted.saturating_sub(self.held.load(SeqCst))
    }

    /// Gives the room, and the inode, to whoever needs it now; false if it has been given before.
    pub fn release(&self, backing: &dyn Backing) -> bool {
        let _changing = self.changing.held();
        self.held.store(0, SeqCst);
        // An empty one still has an inode to give.
        backing.remove(RESERVE).is_ok()
    }

    /// Promises the file to the next segment; false if the room has been given before.
    pub fn promise(&self, backing: &dyn Backing) -> bool {
        let _changing = self.changing.held();
        let is_there = backing.open(RESERVE, Open::Read, Cache::Buffered).is_ok();
        self.is_promised.store(is_there, SeqCst);
        is_there
    }

    /// Makes the file the segment `path`, if it was promised: with the inode and with half of the room, which nobody else can
    /// take in between. The other half is free for what the index needs.
    pub fn become_segment(&self, backing: &dyn Backing, path: &str) -> io::Result<Option<Arc<dyn BackingFile>>> {
        if !self.is_promised.swap(false, SeqCst) {
            return Ok(None);
        }
        let _changing = self.changing.held();
        match backing.rename(RESERVE, path) {
            // Released meanwhile, for the index.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            // Before Linux 5.19, Landlock lets nobody rename from one directory to another: then the room is freed.
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                self.held.store(0, SeqCst);
                return backing.remove(RESERVE).map(|()| None);
            }
            renamed => renamed?,
        }
        self.held.store(0, SeqCst);
        let file = backing.open(path, Open::Write, Cache::Direct)?;
        let half = file.len()? / 2;
        file.set_len(half - half % BLOCK_BYTES as u64)?;
        Ok(Some(file))
    }

    /// The directory was opened anew: what the file holds there is for the next `refill` to find.
    pub fn look_again(&self) {
        self.held.store(0, SeqCst);
    }

    /// Takes the room again, if there is plenty.
    pub fn refill(&self, backing: &dyn Backing) {
        self.fill(backing, false);
    }

    /// Takes what room there is, though it be less than wanted: at the end of a mount, so that the next one can delete,
    /// whoever fills the disk meanwhile.
    pub fn take_what_is_left(&self, backing: &dyn Backing) {
        self.fill(backing, true);
    }

    fn fill(&self, backing: &dyn Backing, all: bool) {
        let _changing = self.changing.held();
        if self.held.load(SeqCst) < self.wanted {
            match fill(backing, self.wanted, all) {
                Ok(now) => self.held.store(now, SeqCst),
                // It is looked for again every second.
                Err(e) if is_full(&e) => log::debug!("the reserve: {e}"),
                Err(e) => log::warn!("the reserve: {e}"),
            }
        }
    }
}

/// Makes the file as long as there is room for; gives its length.
fn fill(backing: &dyn Backing, wanted: u64, all: bool) -> io::Result<u64> {
    let (file, known) = match backing.open(RESERVE, Open::Write, Cache::Buffered) {
        Ok(file) => {
            let len = file.len()?;
            (Some(file), len)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => (None, 0),
        Err(e) => return Err(e),
    };
    let free = backing.space()?.map_or(0, |space| space.free_bytes);
    let target = if known + free >= 4 * wanted {
        wanted
    } else if all {
        wanted.min(known + free.saturating_sub(LEFT_BYTES))
    } else {
        known
    };
    if let Some(file) = &file
        && known > wanted
    {
        // From when the filesystem was larger.
        file.set_len(wanted)?;
        return Ok(wanted);
    }
    if target <= known {
        return Ok(known);
    }
    let file = match file {
        Some(file) => file,
        None => backing.open(RESERVE, Open::Create, Cache::Buffered)?,
    };
    match grow(&*file, known, target) {
        // It holds what it got.
        Err(e) if is_full(&e) => file.len(),
        other => other.map(|()| target),
    }
}

fn grow(file: &dyn BackingFile, known: u64, target: u64) -> io::Result<()> {
    // Where room cannot be taken in advance, the file only grows: then the zeros are written.
    file.preallocate(target)?;
    if file.len()? < target {
        let mut zeros = AlignedBuf::with_capacity(1 << 20);
        zeros.set_len(1 << 20);
        let mut at = known;
        while at < target {
            let n = (target - at).min(zeros.len() as u64) as usize;
            file.write_all_at(&zeros[..n], at)?;
            at += n as u64;
        }
    }
    Ok(())
}
