//! Finds out whether the segments that the vault needs still have their names, and writes those again that do not.
//!
//! Promise: a segment that somebody removed while the vault is open is written again from its open file, read back and
//! compared. If that is impossible, the segment is reported once, and `Segments::lost` names it until its file is back.
//! Why it holds: the needed segments are compared with one listing of each directory, after each checkpoint and at the
//! end. Once a second the number of names of each open segment is asked as well.
//! Called by: `checkpoint` (the housekeeper), `Vault::close`. On failure: a directory that cannot be listed proves nothing.

use super::VaultFault;
use super::home::copy_file;
use super::place::{Everywhere, Place};
use super::recover::list_segments;
use super::shared::Shared;
use crate::backing::{Backing, Cache, Open};
use crate::base::id::SegmentId;
use crate::format::key;
use crate::format::segment::SegmentInfo;
use crate::segment::{parse_file_name, path};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

const SEGMENTS: &str = "segments";

/// Segments whose data the index names, and those that this mount has begun and not removed.
fn needed(shared: &Shared) -> Result<BTreeSet<SegmentId>, VaultFault> {
    let mut needed = shared.segments.begun();
    let mut next = vec![key::SEGMENT];
    loop {
        let page = shared.index.scan(&[key::SEGMENT], &next, 512)?;
        let Some((last, _)) = page.last() else { return Ok(needed) };
        next = [&last[..], &[0]].concat();
        for (k, value) in &page {
            if SegmentInfo::decode(value)?.live_bytes > 0 {
                needed.insert(SegmentId(key::split(k)?.1));
            }
        }
    }
}

/// The segments that a place should hold and does not.
fn absent(shared: &Shared, place: Place) -> Result<Vec<SegmentId>, VaultFault> {
    if place == Place::Emergency && shared.places.away().is_empty() {
        return Ok(Vec::new());
    }
    let dir = shared.places.of(place)?;
    let there: BTreeSet<_> = match dir.list(SEGMENTS) {
        Ok(names) => names.iter().filter_map(|name| parse_file_name(name)).collect(),
        // The directory itself was removed.
        Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
        Err(e) => return Err(e.into()),
    };
    // The index lies in the backing directory, which may have failed while the log is away.
    let wanted = || match place {
        Place::Primary => needed(shared),
        Place::Emergency => Ok(shared.places.away().into_iter().collect()),
    };
    let belongs = |id: &SegmentId| shared.places.is_away(*id) == (place == Place::Emergency);
    let suspects: Vec<_> = wanted()?.into_iter().filter(|id| belongs(id) && !there.contains(id)).collect();
    if suspects.is_empty() {
        return Ok(suspects);
    }
    // The cleaner may have removed one meanwhile, and the log may have begun one.
    let still = wanted()?;
    let is_absent = |id: &SegmentId| {
        let opened = dir.open(&path(*id), Open::Read, Cache::Buffered);
        still.contains(id) && belongs(id) && opened.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    };
    Ok(suspects.into_iter().filter(is_absent).collect())
}

/// Takes note of the segments that are there when the vault is opened, and gives those that are needed and absent.
pub fn note_present(shared: &Shared) -> Result<Vec<SegmentId>, VaultFault> {
    let everywhere = Everywhere(Arc::clone(&shared.places));
    shared.segments.set_present_before(list_segments(&everywhere)?.into_iter().collect());
    absent(shared, Place::Primary)
}

/// Looks for every segment that is needed. What is gone is written again from its open file, or reported as lost.
pub fn look(shared: &Shared) {
    if shared.read_only {
        return;
    }
    let mut found_any = restore_replaced(shared);
    // A segment that is lost in the emergency directory is looked for in the backing directory from then on.
    for place in [Place::Emergency, Place::Primary] {
        let absent = match absent(shared, place) {
            Ok(absent) => absent,
            Err(fault) => {
                log::debug!("the segments in the {} cannot be looked for: {fault}", place.name());
                continue;
            }
        };
        if place == Place::Primary {
            shared.segments.keep_lost(|id| absent.contains(&id));
        }
        for id in absent {
            let is_news = !shared.segments.is_known_absent(id);
            // One that could not be written again for want of room may fit now.
            if !is_news && shared.segments.known(id).is_none() {
                continue;
            }
            found_any |= is_news;
            let gone =
                format!("{}: {} was removed by another program while the vault is mounted", place.name(), path(id));
            let said = match write_again(shared, place, id) {
                Ok(()) => format!("{gone}; it was written again from the open file, and read back"),
                Err(_) if !is_news => continue,
                Err(why) => {
                    shared.segments.lose(id);
                    shared.places.came_home(id);
                    let way = "Put the file back, or restore the files that strongroom check names";
                    format!("{gone}, and it cannot be written again ({why}): the data in it is lost. {way}")
                }
            };
            shared.stats.error(shared.world.now(), said);
        }
    }
    // The names and attributes in the lost part of the log are still in memory: a checkpoint saves them.
    if found_any && shared.takes_checkpoints() {
        shared.want_checkpoint();
    }
}

/// Writes segments again whose names lead to other files; says whether there was one. The open file is the segment.
fn restore_replaced(shared: &Shared) -> bool {
    let mut found_any = false;
    for id in shared.segments.take_suspects() {
        let place = if shared.places.is_away(id) { Place::Emergency } else { Place::Primary };
        let there = shared.places.of(place).and_then(|dir| dir.open(&path(id), Open::Read, Cache::Buffered));
        let Some(open) = shared.segments.known(id) else { continue };
        if there.is_err() || open.keeps_name(|| shared.places.of(place), true) {
            continue;
        }
        found_any = true;
        let replaced =
            format!("{}: {} was replaced by another file while the vault is mounted", place.name(), path(id));
        let said = match write_again(shared, place, id) {
            Ok(()) => format!("{replaced}; it was written again from the open file, and read back"),
            Err(e) => {
                shared.segments.lose_to_another(id);
                format!("{replaced}, and it cannot be written again ({e}): the data in it is lost")
            }
        };
        shared.stats.error(shared.world.now(), said);
    }
    found_any
}

/// Closes the vault with `store`, after a last look; a segment that is lost makes it fail. No other thread runs any more.
pub fn close(shared: &Shared, store: impl FnOnce() -> Result<(), VaultFault>) -> Result<(), VaultFault> {
    look(shared);
    let stored = store();
    if let Err(fault) = &stored {
        shared.stats.error(shared.world.now(), format!("closing: {fault}"));
    }
    let lost = shared.segments.lost();
    if lost.is_empty() { stored } else { Err(VaultFault::SegmentsLost(lost.into())) }
}

/// Writes a segment again from its file, which is open and has lost its name.
fn write_again(shared: &Shared, place: Place, id: SegmentId) -> io::Result<()> {
    let open = shared.segments.known(id).ok_or_else(|| io::Error::other("its file was not open"))?;
    let dir = shared.places.of(place)?;
    make_segments_dir(&*dir)?;
    copy_file(&*open.file, &*dir, &path(id))?;
    dir.sync_dir(SEGMENTS)?;
    // Readers use the new file; the log finds that the old one has no name, and begins another segment.
    shared.segments.go_over_to(&open, dir.open(&path(id), Open::Read, Cache::Direct)?);
    Ok(())
}

fn make_segments_dir(dir: &dyn Backing) -> io::Result<()> {
    match dir.make_dir(SEGMENTS) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
        Ok(()) => dir.sync_dir(""),
    }
}
