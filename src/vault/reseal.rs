//! Seals one segment anew under the key in force, beside the old one and then in its place.
//!
//! Promise: a segment gets its name only after all of it was written, flushed, read back from the device and opened, and every
//! frame that anybody needs was found to hold what it held. Until then the old one is untouched, and a crash leaves it or the
//! new one, whole. Frames that no extent needs become zeros; room that they alone took becomes a hole.
//! Why no nonce meets a key twice (I1): each try draws a salt, so it has a key of its own, and a slot is sealed once in it.
//! Called by: `rekey`. On failure: what does not open is told and the segment stays as it is; an error of the old file is
//! damage, an error of the new one ends it all.

use super::place::remove_if_there;
use crate::backing::{AlignedBuf, Backing, BackingFile, Cache, Open};
use crate::base::id::{CommitSeq, SegmentId, Slot};
use crate::base::limits::{BLOCK_BYTES, GROUP_BYTES_MAX};
use crate::base::world::World;
use crate::format::frame::Kind;
use crate::format::group::Entry;
use crate::format::record::Commit;
use crate::format::segment::{SegmentInfo, Start};
use crate::seal::{Header, VaultKeys, decompress};
use crate::segment::{SegmentContext, Unreadable, Walk, WalkedFrame, is_same, path, seal_anew};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

/// What a segment must keep.
pub struct Wanted<'a> {
    /// Its frames of data that an extent needs.
    pub alive: &'a BTreeSet<Slot>,
    /// Their sealed bytes, as the index counts them beside the extents: where the two disagree, nobody knows what is needed.
    pub live_bytes: u64,
    /// The newest commit that counts in it: what follows was dropped when its lease died, and need not open.
    pub last: CommitSeq,
    /// Whether what is damaged may be left out: it is zeros then, and as lost as before.
    pub leave_out_damage: bool,
}

/// What does not open in a segment, of what it must keep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hurt {
    /// Frames of data that an extent needs.
    pub data: BTreeSet<Slot>,
    /// Frames of the log itself, and groups that are missing.
    pub log: u64,
    /// Why the disk did not give it, if it did not.
    pub unread: Option<String>,
    /// Whether the index counts other data in it than extents name: what is missing among these may be needed.
    pub miscounted: bool,
}

impl Hurt {
    fn is_none(&self) -> bool {
        *self == Hurt::default()
    }
}

/// What became of a segment.
pub enum Resealed {
    /// It is under the key in force now; what was left out of it.
    Done(SegmentInfo, Hurt),
    /// It stays as it is.
    Stays(Hurt),
}

/// The bytes of the new file are not what they should be.
fn not_same(id: SegmentId) -> io::Error {
    let why = format!("segment {id}, sealed anew, does not read back as it was sealed; the old one stays");
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Seals a segment anew.
pub fn reseal(
    backing: &dyn Backing,
    (header, keys): (&Header, &VaultKeys),
    id: SegmentId,
    wanted: &Wanted<'_>,
    world: &dyn World,
) -> io::Result<Resealed> {
    let temporary = format!("{}.new", path(id));
    let mut tries = 2;
    loop {
        remove_if_there(backing, &temporary)?;
        let old = backing.open(&path(id), Open::Read, Cache::Direct)?;
        let walk = || Walk::new(Arc::clone(&old), id, header.suite, header.vault);
        let new = backing.open(&temporary, Open::Create, Cache::Direct)?;
        let sealed = write(&mut walk(), keys, header, wanted, &*new, world);
        tries -= 1;
        // Twice: a disk may err once.
        let written = match sealed {
            Ok(written) if written.hurt.is_none() || wanted.leave_out_damage && !written.hurt.miscounted => written,
            Ok(_) | Err(Fault::Old(_)) if tries > 0 => continue,
            Ok(Written { hurt, .. }) => {
                remove_if_there(backing, &temporary)?;
                return Ok(Resealed::Stays(hurt));
            }
            Err(Fault::Old(e)) => {
                remove_if_there(backing, &temporary)?;
                return Ok(Resealed::Stays(Hurt { unread: Some(e.to_string()), ..Hurt::default() }));
            }
            Err(Fault::New(e)) => {
                // It takes room that is wanted now, and is nothing; that it cannot be removed is less than what happened.
                let _ = remove_if_there(backing, &temporary);
                return Err(e);
            }
        };
        new.sync_data()?;
        let mut sealed = Walk::new(Arc::clone(&new), id, header.suite, header.vault);
        if !holds_the_same(&mut walk(), &mut sealed, keys, wanted, &written)? {
            return Err(not_same(id));
        }
        backing.rename(&temporary, &path(id))?;
        backing.sync_dir("segments")?;
        return Ok(Resealed::Done(written.info, written.hurt));
    }
}

enum Fault {
    Old(Unreadable),
    New(io::Error),
}

/// A new file, written.
struct Written {
    /// What the index is to say of it.
    info: SegmentInfo,
    /// What did not open of what must be kept.
    hurt: Hurt,
    /// All that did not open.
    unopened: BTreeSet<Slot>,
}

/// Writes the new file.
fn write(
    old: &mut Walk,
    keys: &VaultKeys,
    header: &Header,
    wanted: &Wanted<'_>,
    new: &dyn BackingFile,
    world: &dyn World,
) -> Result<Written, Fault> {
    let mut salt = [0; 16];
    world.fill(&mut salt);
    let mut to: Option<SegmentContext> = None;
    let mut out = AlignedBuf::with_capacity(GROUP_BYTES_MAX);
    let (mut hurt, mut seen, mut unopened) = (Hurt::default(), BTreeSet::new(), BTreeSet::new());
    // How far the log has come: behind the last commit that counts, nothing need open.
    let mut reached = CommitSeq(0);
    let (mut end, mut gaps, mut seen_bytes) = (0, 0, 0);
    while let Some(group) = old.next(keys).map_err(Fault::Old)? {
        gaps += u64::from(group.gap_before.is_some() && reached < wanted.last);
        let context = to.get_or_insert_with(|| {
            let info = SegmentInfo::empty(group.header.epoch, salt, keys.number());
            SegmentContext::new(keys, header.suite, header.vault, group.header.segment, &info)
                .expect("the key in force is there")
        });
        seal_anew(
            old,
            &group,
            context,
            &mut out,
            |entry| is_wanted(entry, wanted),
            |frame, body| {
                if body.is_none() {
                    unopened.insert(frame.entry.slot);
                }
                match (frame.entry.kind, body) {
                    (Kind::Data, Some(_)) => {
                        seen_bytes += u64::from(frame.entry.sealed_len_bytes);
                        seen.insert(frame.entry.slot);
                    }
                    (Kind::Data, None) => {
                        hurt.data.insert(frame.entry.slot);
                    }
                    (_, Some(body)) => reached = reached.max(commit_of(frame, body)),
                    (_, None) => hurt.log += u64::from(reached < wanted.last),
                }
            },
        );
        end = group.position_bytes + out.len() as u64;
        write_sparse(new, &out, group.position_bytes).map_err(Fault::New)?;
    }
    hurt.log += gaps;
    // In groups that are missing, or behind the last one that holds.
    hurt.data.extend(wanted.alive.difference(&seen));
    hurt.miscounted = hurt.data.is_empty() && seen_bytes != wanted.live_bytes;
    new.set_len(end).map_err(Fault::New)?;
    match to {
        Some(context) => Ok(Written { info: context.info(), hurt, unopened }),
        None => Err(Fault::Old(Unreadable::Damaged { position_bytes: 0, what: "the segment" })),
    }
}

fn is_wanted(entry: &Entry, wanted: &Wanted<'_>) -> bool {
    entry.kind != Kind::Data || wanted.alive.contains(&entry.slot)
}

/// The commit that a frame says the log has come to.
fn commit_of(frame: &WalkedFrame, body: &[u8]) -> CommitSeq {
    let mut plain = Vec::new();
    let e = &frame.entry;
    if !matches!(e.kind, Kind::Start | Kind::Commit)
        || decompress(e.codec, body, e.plain_len_bytes as usize, &mut plain).is_err()
    {
        return CommitSeq(0);
    }
    match e.kind {
        Kind::Start => Start::decode(&plain).map_or(CommitSeq(0), |start| start.after.seq),
        _ => Commit::decode(&plain).map_or(CommitSeq(0), |commit| commit.seq),
    }
}

/// Writes a group without its blocks of zeros: what nobody needs takes no room.
fn write_sparse(file: &dyn BackingFile, group: &[u8], at: u64) -> io::Result<()> {
    let is_empty = |block: &&[u8]| block.iter().all(|byte| *byte == 0);
    let blocks: Vec<&[u8]> = group.chunks(BLOCK_BYTES).collect();
    let mut from = 0;
    for run in blocks.chunk_by(|a, b| is_empty(a) == is_empty(b)) {
        let len = run.len() * BLOCK_BYTES;
        if !is_empty(&run[0]) {
            file.write_all_at(&group[from..from + len], at + from as u64)?;
        }
        from += len;
    }
    Ok(())
}

/// Reads both from the device, and compares group by group what is to be kept.
fn holds_the_same(
    old: &mut Walk,
    new: &mut Walk,
    keys: &VaultKeys,
    wanted: &Wanted<'_>,
    written: &Written,
) -> io::Result<bool> {
    let error = |e| match e {
        Unreadable::Io(e) => e,
        Unreadable::Damaged { .. } => io::Error::other(e.to_string()),
    };
    loop {
        match (old.next(keys).map_err(error)?, new.next(keys).map_err(error)?) {
            (None, None) => return Ok(true),
            (Some(was), Some(now)) => {
                let needed = |entry: &Entry| is_wanted(entry, wanted) && !written.unopened.contains(&entry.slot);
                if !is_same((old, &was), (new, &now), needed) {
                    return Ok(false);
                }
            }
            _ => return Ok(false),
        }
    }
}
