//! Makes an index anew: from a snapshot and the log behind it, or from the log alone.
//!
//! Promise: what comes out is what the log makes of all its commits, byte for byte (but for the counters and the history that people
//! are shown), whichever snapshot it was made from; one that is not whole, or that the log does not continue, is passed over and
//! said, for the next older one, and at last for the beginning of the log. While the disk does not give a snapshot, nothing is passed over as lost. What no snapshot has and the log has lost is not left
//! out in silence: then the vault is refused, unless whoever asks has come to mend.
//! Called by: `open`, where the index is lost or not wanted. On failure: `Damaged`, in one sentence.

use super::OpenFault;
use super::open::learn_keys;
use super::recover::{From, Recovered, recover};
use super::snapshot::{self, read_whole};
use crate::backing::Backing;
use crate::base::id::{CommitSeq, SegmentId};
use crate::format::record::Counters;
use crate::format::root::Root;
use crate::format::segment::{Covered, LogPosition};
use crate::index::{Entry, Index, RedbTable, Table};
use crate::seal::{Header, VaultKeys};
use crate::segment::{Unreadable, snapshot_path};
use std::io;
use std::sync::Arc;

/// Bytes of entries that are put into the new table in one transaction.
const LOADED_BYTES: usize = 4 << 20;

/// What an index is made from.
pub struct Sources<'a> {
    /// Where snapshots lie.
    pub backing: &'a Arc<dyn Backing>,
    /// Where segments lie.
    pub everywhere: &'a Arc<dyn Backing>,
    pub header: &'a Header,
    pub keys: &'a VaultKeys,
    pub root: &'a Root,
    /// Whether the root was made anew: then it vouches for no commit, and forbids no snapshot.
    pub root_is_new: bool,
    /// Whether to pass over what contradicts itself.
    pub salvage: bool,
    /// Whether the log alone is asked first, and believed if it has lost nothing.
    pub whole_log: bool,
}

/// An index that was made anew.
pub struct Anew {
    pub index: Index,
    pub found: Recovered,
    /// The snapshot that it was made from, if one served.
    pub snapshot: Option<CommitSeq>,
    /// What is to be told of the snapshots that did not serve.
    pub said: Vec<String>,
}

/// Why a snapshot does not serve, or why nothing will.
enum Unfit {
    /// It is not whole.
    Spoiled(String),
    /// The log does not continue it.
    Refused(String),
    /// The disk did not give it: it may be as good as ever.
    Unread(io::Error),
    Fault(OpenFault),
}

/// Makes one; `new_table` gives an empty table, each time in place of the one before.
pub fn make_anew(
    sources: &Sources<'_>,
    new_table: &dyn Fn() -> Result<RedbTable, OpenFault>,
) -> Result<Anew, OpenFault> {
    if sources.whole_log {
        match from_beginning(sources, new_table()?, false) {
            Ok((index, found)) if found.lost_records == 0 => {
                return Ok(Anew { index, found, snapshot: None, said: Vec::new() });
            }
            Ok(_) | Err(OpenFault::Damaged(_) | OpenFault::Index(_)) => {}
            Err(fault) => return Err(fault),
        }
    }
    let all = snapshot::list(&**sources.backing)?;
    let covers = |number: &CommitSeq| sources.root_is_new || *number <= sources.root.covered.seq;
    let (fit, beyond): (Vec<CommitSeq>, Vec<CommitSeq>) = all.into_iter().partition(covers);
    let mut said: Vec<String> =
        beyond.iter().map(|n| format!("the snapshot of commit {n} is not used: it is newer than the root")).collect();
    let (mut unfit, mut unread) = (false, None);
    // The gentlest means first: what contradicts one snapshot may agree with the next.
    for salvage in [false, true] {
        // Nothing is passed over as lost while something that may have it was not read.
        if salvage && (!sources.salvage || unread.is_some()) {
            break;
        }
        for number in &fit {
            match from_snapshot(sources, new_table()?, *number, salvage) {
                Ok((index, found)) => {
                    return Ok(Anew { index, found, snapshot: Some(*number), said });
                }
                Err(Unfit::Fault(fault)) => return Err(fault),
                Err(Unfit::Unread(e)) => {
                    unfit = true;
                    let why = format!("{} could not be read: {e}", snapshot_path(*number));
                    unread = Some(io::Error::new(e.kind(), why.clone()));
                    tell(&mut said, why);
                }
                Err(Unfit::Spoiled(why)) => {
                    unfit = true;
                    tell(&mut said, format!("the snapshot of commit {number} does not hold: {why}"));
                }
                Err(Unfit::Refused(why)) => {
                    unfit = true;
                    tell(&mut said, format!("the log does not continue the snapshot of commit {number}: {why}"));
                }
            }
        }
        match from_beginning(sources, new_table()?, salvage) {
            // Segments that a snapshot made dispensable are gone, and it does not serve: what they said is nowhere else.
            Ok((_, found)) if found.lost_records > 0 && unfit && !salvage => {
                said.push("without them the log has lost changes of names and attributes".to_owned());
            }
            Ok((index, found)) => return Ok(Anew { index, found, snapshot: None, said }),
            Err(OpenFault::Damaged(why) | OpenFault::Index(why)) => said.push(why),
            Err(fault) => return Err(fault),
        }
    }
    said.iter().for_each(|line| log::error!("{line}"));
    if let Some(e) = unread {
        return Err(OpenFault::Backing(e));
    }
    Err(OpenFault::Damaged(said.join("; ")))
}

fn tell(said: &mut Vec<String>, line: String) {
    if !said.contains(&line) {
        said.push(line);
    }
}

fn from_snapshot(
    sources: &Sources<'_>,
    table: RedbTable,
    number: CommitSeq,
    salvage: bool,
) -> Result<(Index, Recovered), Unfit> {
    let covered = load(sources, &table, number)?;
    let index = Index::new(Box::new(table));
    // Segments may have been sealed anew since.
    learn_keys(&index, sources.everywhere, sources.header, sources.keys).map_err(Unfit::Fault)?;
    let Covered { position, counters, replay_from } = covered;
    let trusted = sources.root.covered;
    let from = From { covered: position, replay_from, counters, trusted, salvage, rebuilding: true };
    match replay(sources, &index, &from) {
        Ok(found) => Ok((index, found)),
        Err(OpenFault::Damaged(why) | OpenFault::Index(why)) => Err(Unfit::Refused(why)),
        Err(fault) => Err(Unfit::Fault(fault)),
    }
}

fn from_beginning(sources: &Sources<'_>, table: RedbTable, salvage: bool) -> Result<(Index, Recovered), OpenFault> {
    let index = Index::new(Box::new(table));
    // Inode 1 is the root directory; cookies 0 to 2 mean "start", "." and "..".
    let counters = Counters { next_ino: 2, next_cookie: 3, inodes: 0 };
    let (covered, replay_from, trusted) = (LogPosition::START, SegmentId(0), sources.root.covered);
    let from = From { covered, replay_from, counters, trusted, salvage, rebuilding: true };
    let found = replay(sources, &index, &from)?;
    Ok((index, found))
}

fn replay(sources: &Sources<'_>, index: &Index, from: &From) -> Result<Recovered, OpenFault> {
    let Header { suite, vault, .. } = *sources.header;
    recover(sources.everywhere, sources.keys, suite, vault, index, from)
}

/// Fills an empty table from a snapshot. The position is not among its entries: until a checkpoint is stored, the table says of
/// itself that it covers nothing, however far this came.
fn load(sources: &Sources<'_>, table: &RedbTable, number: CommitSeq) -> Result<Covered, Unfit> {
    let of = (sources.header.suite, sources.header.vault);
    let (mut gathered, mut bytes, mut failed) = (Vec::<Entry>::new(), 0, None);
    let mut store = |gathered: &mut Vec<Entry>| {
        let changes = gathered.iter().map(|(k, v)| (k.as_slice(), Some(v.as_slice())));
        if failed.is_none() {
            failed = table.apply(&mut { changes }).err();
        }
        gathered.clear();
    };
    let read = read_whole(&**sources.backing, sources.keys, of, number, &mut |k, v| {
        gathered.push((k.to_vec(), v.to_vec()));
        bytes += k.len() + v.len();
        if bytes >= LOADED_BYTES {
            store(&mut gathered);
            bytes = 0;
        }
    });
    store(&mut gathered);
    match (failed, read) {
        (Some(fault), _) => Err(Unfit::Fault(fault.into())),
        (None, Ok(whole)) => Ok(whole.covered),
        (None, Err(Unreadable::Io(e))) => Err(Unfit::Unread(e)),
        (None, Err(e)) => Err(Unfit::Spoiled(e.to_string())),
    }
}
