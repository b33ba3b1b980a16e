//! Brings segments home from the emergency directory.
//!
//! Promise: a segment is removed from the emergency directory only after its copy in the backing directory was flushed, read
//! back from the device and found equal, has its name, and a checkpoint was stored since. The copy is byte for byte, under a
//! temporary name until it is whole; a crash at any moment leaves one whole segment at least, and two are the same.
//! Called by: `checkpoint` (the housekeeper), while the log writes in the backing directory.
//! On failure: the disk's error; what is home stays, the rest is tried again.

use super::place::{Place, remove_if_there};
use super::shared::Shared;
use crate::backing::{AlignedBuf, Backing, Cache, Open};
use crate::base::limits::{ALLOCATE_STEP_BYTES, BLOCK_BYTES, GROUP_BYTES_MAX};
use crate::base::lock::Held;
use crate::segment::{parse_file_name, path};
use std::io;
use std::sync::Arc;

/// Copies every segment that lies in the emergency directory and is not being written; gives their names.
pub fn copy_all(shared: &Arc<Shared>) -> io::Result<Vec<String>> {
    let names = shared.places.away()?;
    if names.is_empty() {
        return Ok(names);
    }
    let (from, to) = (shared.places.of(Place::Emergency)?, shared.places.of(Place::Primary)?);
    for name in &names {
        let Some(id) = parse_file_name(name) else { continue };
        // The housekeeper itself makes files of later numbers only.
        let _making = shared.making_segment.held();
        copy(&*from, &*to, &path(id))?;
        shared.stats.segments_home.add(1);
    }
    to.sync_dir("segments")?;
    Ok(names)
}

/// Removes them from the emergency directory: they are home, and a checkpoint was stored since.
pub fn remove_all(shared: &Shared, names: &[String]) -> io::Result<()> {
    let from = shared.places.of(Place::Emergency)?;
    for id in names.iter().filter_map(|n| parse_file_name(n)) {
        // Readers open it at home from now on; who has it open still reads what is removed.
        shared.segments.forget(id);
        remove_if_there(&*from, &path(id))?;
    }
    from.sync_dir("segments")
}

fn copy(from: &dyn Backing, to: &dyn Backing, name: &str) -> io::Result<()> {
    let temporary = format!("{name}.new");
    remove_if_there(to, &temporary)?;
    let source = from.open(name, Open::Read, Cache::Direct)?;
    let target = to.open(&temporary, Open::Create, Cache::Direct)?;
    let len = source.len()?;
    let (mut out, mut back) = (AlignedBuf::with_capacity(GROUP_BYTES_MAX), AlignedBuf::with_capacity(GROUP_BYTES_MAX));
    let mut each = |write: bool| -> io::Result<()> {
        let mut at = 0;
        while at < len {
            out.set_len((len - at).next_multiple_of(BLOCK_BYTES as u64).min(GROUP_BYTES_MAX as u64) as usize);
            let whole = out.len();
            let got = source.read_at(&mut out, at)?;
            out[got..].fill(0);
            if write {
                // Room taken in advance and never used stays a hole.
                if out.iter().any(|b| *b != 0) {
                    target.preallocate((at + whole as u64).next_multiple_of(ALLOCATE_STEP_BYTES).min(len.max(at + whole as u64)))?;
                    target.write_all_at(&out, at)?;
                }
            } else {
                back.set_len(whole);
                let n = target.read_device(&mut back, at)?;
                back[n..].fill(0);
                if back[..] != out[..] {
                    let why = format!("{name}, byte {at}: the copy does not read back as it was written");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
            }
            at += whole as u64;
        }
        Ok(())
    };
    each(true)?;
    target.set_len(len)?;
    target.sync_data()?;
    each(false)?;
    to.rename(&temporary, name)
}
