//! Brings segments home from the emergency directory.
//!
//! Promise: a segment is removed from the emergency directory only after its copy in the backing directory was flushed, read
//! back from the device and found equal, and its name was made durable. The copy is byte for byte, under a
//! temporary name until it is whole; a crash at any moment leaves one whole segment at least, and two are the same.
//! Called by: `checkpoint` (the housekeeper and the last one of a mount), while the log writes in the backing directory.
//! On failure: the disk's error; what is home stays, the rest is tried again.

use super::place::{Place, remove_if_there};
use super::shared::Shared;
use crate::backing::{AlignedBuf, Backing, BackingFile, Cache, Open};
use crate::base::limits::{BLOCK_BYTES, GROUP_BYTES_MAX};
use crate::format::group::HEADER_BYTES;
use crate::segment::path;
use std::io;
use std::sync::atomic::Ordering::SeqCst;

/// Brings every segment home that lies in the emergency directory and is finished; gives how many. One that the log begins
/// there meanwhile has a greater number.
pub fn bring_all(shared: &Shared) -> io::Result<usize> {
    let below = shared.home_below.load(SeqCst);
    let ids: Vec<_> = shared.places.away().into_iter().filter(|id| id.0 < below).collect();
    if shared.leave_away || ids.is_empty() {
        return Ok(0);
    }
    let (from, to) = (shared.places.of(Place::Emergency)?, shared.places.of(Place::Primary)?);
    for id in &ids {
        refuse_another(&*from, &*to, &path(*id))?;
        copy(&*from, &*to, &path(*id))?;
        shared.stats.segments_home.add(1);
    }
    to.sync_dir("segments")?;
    for id in &ids {
        // Readers open it at home from now on; who has it open still reads what is removed.
        remove_if_there(&*from, &path(*id))?;
        shared.places.came_home(*id);
        shared.segments.forget(*id);
    }
    from.sync_dir("segments")?;
    Ok(ids.len())
}

/// Refuses to lay a segment over another one that has its number: what was prepared and never begun is none.
fn refuse_another(from: &dyn Backing, to: &dyn Backing, name: &str) -> io::Result<()> {
    let head = |backing: &dyn Backing| -> io::Result<Vec<u8>> {
        let mut block = AlignedBuf::with_capacity(BLOCK_BYTES);
        block.set_len(BLOCK_BYTES);
        let got = match backing.open(name, Open::Read, Cache::Direct) {
            Ok(file) => file.read_at(&mut block, 0)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(e),
        };
        Ok(block[..got.min(HEADER_BYTES)].to_vec())
    };
    let (theirs, ours) = (head(from)?, head(to)?);
    if ours.iter().all(|b| *b == 0) || ours == theirs {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} is another segment here than there; both stay")))
}

fn copy(from: &dyn Backing, to: &dyn Backing, name: &str) -> io::Result<()> {
    copy_file(&*from.open(name, Open::Read, Cache::Direct)?, to, name)
}

/// Copies an open segment to a name in a directory: flushed, read back from the device and compared before it has the name.
pub fn copy_file(source: &dyn BackingFile, to: &dyn Backing, name: &str) -> io::Result<()> {
    let temporary = format!("{name}.new");
    remove_if_there(to, &temporary)?;
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
                    target.preallocate(at + whole as u64)?;
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
