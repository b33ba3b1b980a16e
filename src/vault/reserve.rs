//! Room that is kept for the moment when there is none: so that deleting, truncating, commits and checkpoints always work.
//!
//! Promise: a file of zeros in the backing directory takes the room, really; when a write of ours meets a full disk it is
//! cut to nothing and the write gets its room; it grows again when there is enough. While it is not whole, new data is not
//! admitted. Called by: `failover` and `checkpoint` (release), `checkpoint` (refill), `Vault` (asks). Takes: its own lock.
//! On failure: what cannot be reserved is not there: writes are then refused earlier.

use super::place::remove_if_there;
use crate::backing::{AlignedBuf, Backing, Cache, Open};
use crate::base::limits::{RESERVE_FILE_BYTES, RESERVE_FILE_SHARE};
use crate::base::lock::Held;
use std::io;
use std::sync::Mutex;

/// Its name.
pub const RESERVE: &str = "reserve";

/// The reserve.
pub struct Reserve {
    /// Bytes it is meant to hold.
    wanted: u64,
    whole: Mutex<bool>,
}

impl Reserve {
    /// Takes the room, if there is four times as much; what cannot be had is looked for again later. Whoever only reads
    /// needs none.
    pub fn take(backing: &dyn Backing, writes: bool) -> Reserve {
        let total = backing.space().map_or(0, |s| s.total_bytes);
        let wanted = (total / RESERVE_FILE_SHARE).min(RESERVE_FILE_BYTES);
        let reserve = Reserve { wanted, whole: Mutex::new(!writes) };
        reserve.refill(backing);
        reserve
    }

    /// What it lacks.
    pub fn missing_bytes(&self) -> u64 {
        if *self.whole.held() { 0 } else { self.wanted }
    }

    /// Gives the room to whoever needs it now; false if it has been given before.
    pub fn release(&self, backing: &dyn Backing) -> bool {
        let mut whole = self.whole.held();
        if !std::mem::take(&mut *whole) {
            return false;
        }
        remove_if_there(backing, RESERVE).is_ok()
    }

    /// Takes the room again, if there is plenty.
    pub fn refill(&self, backing: &dyn Backing) {
        let mut whole = self.whole.held();
        if *whole {
            return;
        }
        match fill(backing, self.wanted) {
            Ok(done) => *whole = done,
            Err(e) => log::warn!("the reserve: {e}"),
        }
    }
}

fn fill(backing: &dyn Backing, wanted: u64) -> io::Result<bool> {
    let known = match backing.open(RESERVE, Open::Read, Cache::Buffered) {
        Ok(file) => file.len()?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        Err(e) => return Err(e),
    };
    if known == wanted {
        return Ok(true);
    }
    remove_if_there(backing, RESERVE)?;
    if backing.space()?.free_bytes < 4 * wanted {
        return Ok(false);
    }
    let file = backing.open(RESERVE, Open::Create, Cache::Buffered)?;
    // Where room cannot be taken in advance, the file only grows: then the zeros are written.
    file.preallocate(wanted)?;
    if file.len()? < wanted {
        let mut zeros = AlignedBuf::with_capacity(1 << 20);
        zeros.set_len(1 << 20);
        let mut at = 0;
        while at < wanted {
            let n = (wanted - at).min(zeros.len() as u64) as usize;
            file.write_all_at(&zeros[..n], at)?;
            at += n as u64;
        }
    }
    Ok(true)
}
