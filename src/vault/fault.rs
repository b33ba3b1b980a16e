//! What can go wrong inside an open vault; `fs::errno` decides what a program sees of it.
//!
//! Promise: the evidence stays inside (which segment, which error), and no variant carries names, plaintext or keys.
//! Called by: everything in `vault`, `fs`, `check`.

use crate::base::id::{Generation, Ino, KeyNumber, SegmentId, VaultId};
use crate::format::Malformed;
use crate::index::IndexFault;
use crate::seal::HeaderFault;
use crate::segment::{Unreadable, path};
use std::fmt;
use std::io;
use std::sync::Arc;

/// Most segments that one sentence names.
const SEGMENTS_NAMED_MAX: usize = 10;

/// A refusal or failure of the vault.
#[derive(Debug, Clone)]
pub enum VaultFault {
    /// The vault's own byte quota is reached.
    QuotaBytes,
    /// The vault's own inode quota is reached.
    QuotaInodes,
    /// The backing filesystem has no room beside the reserve.
    BackingFull,
    /// Bytes of this file lie in a frame that does not open.
    Damaged {
        /// The file.
        ino: Ino,
        /// Where the frame lies.
        segment: SegmentId,
        /// Its byte position there.
        position_bytes: u64,
    },
    /// The index holds something that cannot be, or its pages are not the ones that were written.
    Index(Arc<str>),
    /// The log, or a snapshot, holds something that cannot be, or that does not open.
    Log(Arc<str>),
    /// A segment is under a master key that the header does not have.
    KeyMissing {
        /// The segment.
        segment: SegmentId,
        /// The number of the key.
        key: KeyNumber,
    },
    /// A checkpoint, a snapshot or another step that was waited for did not come about. The text says which.
    Unfinished(Arc<str>),
    /// An operation panicked. If it had begun to change something, the vault has stopped acknowledging as well.
    Panicked,
    /// The backing directory answered a read or write with an error.
    Backing(Arc<io::Error>),
    /// No place takes the log at present: nothing is acknowledged until one does.
    Stopped(Arc<str>),
    /// An earlier write failed for good: nothing more is acknowledged until the vault is mounted again.
    Failed(Arc<str>),
    /// Another program removed these segments while the vault was open, and they could not be written again.
    SegmentsLost(Arc<[SegmentId]>),
    /// The vault is mounted for reading only.
    ReadOnly,
    /// The vault is being closed.
    Closed,
    /// What was to be its next header is not.
    Header(HeaderRefused),
}

/// Why a header that was handed to an open vault is not its next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderRefused {
    /// It is no header.
    Malformed,
    /// It is of another vault.
    OtherVault(VaultId),
    /// Whoever made it does not know the master key in force.
    OtherKey,
    /// It was made from another header than the one in force.
    NotNext {
        /// The revision in force.
        in_force: u64,
        /// Its own.
        given: u64,
    },
    /// It differs in more than key slots.
    MoreThanSlots,
    /// It cannot be stored as the vault is now; some words say why.
    NotNow(&'static str),
}

impl fmt::Display for HeaderRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderRefused::Malformed => f.write_str("it is no header"),
            HeaderRefused::OtherVault(theirs) => write!(f, "it is of another vault, {theirs}"),
            HeaderRefused::OtherKey => f.write_str("it was not made with the master key in force"),
            HeaderRefused::NotNext { in_force, given } => {
                write!(f, "it has revision {given}, where {in_force} is in force: somebody else changed it meanwhile")
            }
            HeaderRefused::NotNow(why) => write!(f, "not now, for {why}"),
            HeaderRefused::MoreThanSlots => f.write_str("it differs from the one in force in more than key slots"),
        }
    }
}

/// The paths of segments in the vault, for people; the rest of many is counted.
pub fn names_of(segments: &[SegmentId]) -> String {
    let mut names: Vec<String> = segments.iter().take(SEGMENTS_NAMED_MAX).map(|id| path(*id)).collect();
    let more = segments.len() - names.len();
    if more > 0 {
        names.push(format!("{more} more segments"));
    }
    names.join(", ")
}

impl fmt::Display for VaultFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VaultFault::QuotaBytes => f.write_str("the vault's quota of bytes is reached"),
            VaultFault::QuotaInodes => f.write_str("the vault's quota of inodes is reached"),
            VaultFault::BackingFull => f.write_str("the filesystem of the backing directory is full"),
            VaultFault::Damaged { ino, segment, position_bytes } => {
                write!(f, "inode {ino}: the frame at segment {segment}, byte {position_bytes} does not open")
            }
            VaultFault::Index(why) => write!(f, "index: {why}"),
            VaultFault::Log(why) => write!(f, "log: {why}"),
            VaultFault::KeyMissing { segment, key } => {
                write!(f, "segment {segment} is under key {key}, which the header does not have")
            }
            VaultFault::Unfinished(why) => f.write_str(why),
            VaultFault::Panicked => f.write_str("the operation panicked; this is a fault of strongroom"),
            VaultFault::Backing(e) => write!(f, "backing directory: {e}"),
            VaultFault::Stopped(why) | VaultFault::Failed(why) => write!(f, "writing stopped: {why}"),
            VaultFault::SegmentsLost(segments) => {
                let names = names_of(segments);
                write!(
                    f,
                    "another program removed {names} of the vault while it was mounted: the data in there is lost. \
                     Restore the files that strongroom check names"
                )
            }
            VaultFault::ReadOnly => f.write_str("the vault is mounted for reading only"),
            VaultFault::Closed => f.write_str("the vault is being closed"),
            VaultFault::Header(why) => write!(f, "the header is refused: {why}"),
        }
    }
}

impl VaultFault {
    /// What happened, for a text that says by itself where it was, or that writing stopped.
    pub(super) fn cause(&self) -> String {
        match self {
            VaultFault::Backing(e) => e.to_string(),
            VaultFault::Failed(why) => why.to_string(),
            other => other.to_string(),
        }
    }
}

impl std::error::Error for VaultFault {}

impl From<io::Error> for VaultFault {
    fn from(e: io::Error) -> Self {
        VaultFault::Backing(Arc::new(e))
    }
}

impl From<Malformed> for VaultFault {
    fn from(e: Malformed) -> Self {
        VaultFault::Index(e.what.into())
    }
}

impl From<IndexFault> for VaultFault {
    fn from(e: IndexFault) -> Self {
        match e {
            IndexFault::Io(e) => VaultFault::Backing(Arc::new(e)),
            IndexFault::Damaged(why) => VaultFault::Index(why.into()),
        }
    }
}

/// Whether bytes are damaged or could not be had is decided here, for everything that reads frames.
impl From<Unreadable> for VaultFault {
    fn from(e: Unreadable) -> Self {
        match e {
            Unreadable::Io(e) => VaultFault::Backing(Arc::new(e)),
            Unreadable::Damaged { .. } => VaultFault::Log(e.to_string().into()),
        }
    }
}

/// Why a vault could not be made or opened.
#[derive(Debug)]
pub enum OpenFault {
    /// The directory for a new vault has something in it.
    NotEmpty,
    /// There is no vault here.
    NotAVault,
    /// Another process has it open.
    InUse {
        /// What that process wrote into the lock file.
        holder: String,
    },
    /// No key slot opens with this passphrase, key file or recovery key.
    WrongKey,
    /// The header does not hold.
    Header(HeaderFault),
    /// The backing directory answered with an error.
    Backing(io::Error),
    /// What is stored contradicts itself.
    Damaged(String),
    /// The index, which the log can give anew, holds something that cannot be, or its pages are not the ones that were written.
    Index(String),
    /// Neither root holds; they can be made anew.
    RootsLost,
    /// The emergency directory that the vault was last used with is not there, and may hold what was acknowledged.
    EmergencyNeeded {
        /// Its path.
        path: String,
    },
    /// An older copy of the vault, or one of another history, is in its place.
    RolledBack {
        /// The generation that is remembered outside the vault.
        from: Generation,
        /// The one that was found.
        to: Generation,
        /// The place that remembers.
        known_in: String,
    },
    /// The header is of before a rekey that the vault, or what is remembered of it, knows of.
    OlderKey {
        /// The number of the header's key.
        header: KeyNumber,
        /// The generation of its roots, if one holds under that key.
        found: Option<Generation>,
    },
    /// A segment is under a master key that the header does not have.
    KeyMissing {
        /// The segment.
        segment: SegmentId,
        /// The number of the key.
        key: KeyNumber,
    },
    /// The header is older than the one that the root names, or of another history.
    HeaderPutBack {
        /// The revision that the root names.
        known: u64,
        /// The one that was found.
        found: u64,
    },
}

impl fmt::Display for OpenFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenFault::NotEmpty => f.write_str("the directory is not empty"),
            OpenFault::NotAVault => f.write_str("there is no vault here (no vault.toml)"),
            OpenFault::InUse { holder } => write!(f, "the vault is in use (process {holder})"),
            OpenFault::WrongKey => f.write_str("the passphrase or key is wrong"),
            OpenFault::Header(e) => write!(f, "vault.toml: {e}"),
            OpenFault::Backing(e) => write!(f, "the backing directory: {e}"),
            OpenFault::Damaged(why) => {
                write!(
                    f,
                    "the vault is damaged: {why}; strongroom check --repair on the vault keeps what is left of it"
                )
            }
            OpenFault::Index(why) => {
                write!(
                    f,
                    "the index is damaged: {why}; strongroom check --repair on the vault makes it anew from the log"
                )
            }
            OpenFault::EmergencyNeeded { path } => write!(
                f,
                "it was last used with the emergency directory {path}, which may hold data of it and is not there: bring it \
                 back and name it with --emergency-dir, or go without what it holds with --emergency-dir=none"
            ),
            OpenFault::RootsLost => f.write_str(
                "neither root.a nor root.b holds; strongroom check --repair on the vault makes them anew from its log",
            ),
            OpenFault::OlderKey { header, found } => {
                write!(
                    f,
                    "vault.toml is of before a rekey (its key is number {header}): who kept the old key could read what is \
                     written now; put the newer vault.toml back"
                )?;
                match found {
                    Some(found) => write!(
                        f,
                        "; to look at an older copy, mount it with -o ro; or if this older copy of the vault is meant to take its place, say --accept-rollback={found}"
                    ),
                    None => Ok(()),
                }
            }
            OpenFault::KeyMissing { segment, key } => write!(
                f,
                "segment {segment} is under key {key}, which vault.toml does not have: is it an older one, put back?"
            ),
            OpenFault::HeaderPutBack { known, found } => write!(
                f,
                "vault.toml is an older one, or of another history: revision {found}, where the vault knows of {known}, so a \
                 key that was removed may open it again; put the newer one back, or take this one with strongroom key \
                 import-header"
            ),
            OpenFault::RolledBack { from, to, known_in } => {
                match from == to {
                    true => write!(
                        f,
                        "this is another history of the vault: its generation {to} is not the one that is remembered in \
                         {known_in}, so that copies of the vault were written to apart from each other"
                    )?,
                    false => write!(
                        f,
                        "this is an older copy of the vault, or another history of it: generation {to}, and generation \
                         {from} is remembered in {known_in}"
                    )?,
                }
                write!(
                    f,
                    "; to look at it, mount it with -o ro, which changes nothing; if it is meant to take the vault's place \
                     for good, say --accept-rollback={to} (the newer one is refused from then on)"
                )
            }
        }
    }
}

impl std::error::Error for OpenFault {}

impl From<io::Error> for OpenFault {
    fn from(e: io::Error) -> Self {
        OpenFault::Backing(e)
    }
}

/// Only what a decoder refused, or what did not open under its key, becomes `Damaged`: a repair drops data on the strength of it.
impl From<VaultFault> for OpenFault {
    fn from(fault: VaultFault) -> Self {
        match fault {
            VaultFault::Damaged { .. } | VaultFault::Log(_) => OpenFault::Damaged(fault.to_string()),
            VaultFault::Index(why) => OpenFault::Index(why.to_string()),
            VaultFault::KeyMissing { segment, key } => OpenFault::KeyMissing { segment, key },
            VaultFault::Backing(e) => OpenFault::Backing(same_error(&e)),
            VaultFault::BackingFull => OpenFault::Backing(io::Error::from_raw_os_error(libc::ENOSPC)),
            VaultFault::QuotaBytes
            | VaultFault::QuotaInodes
            | VaultFault::Stopped(_)
            | VaultFault::Failed(_)
            | VaultFault::ReadOnly
            | VaultFault::Closed
            | VaultFault::Header(_)
            | VaultFault::Unfinished(_)
            | VaultFault::SegmentsLost(_)
            | VaultFault::Panicked => OpenFault::Backing(io::Error::other(fault.to_string())),
        }
    }
}

impl From<IndexFault> for OpenFault {
    fn from(e: IndexFault) -> Self {
        OpenFault::from(VaultFault::from(e))
    }
}

impl From<Malformed> for OpenFault {
    fn from(e: Malformed) -> Self {
        OpenFault::from(VaultFault::from(e))
    }
}

impl From<Unreadable> for OpenFault {
    fn from(e: Unreadable) -> Self {
        OpenFault::from(VaultFault::from(e))
    }
}

/// An error of the operating system once more, with its number.
fn same_error(e: &io::Error) -> io::Error {
    match e.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(e.kind(), e.to_string()),
    }
}

impl From<HeaderFault> for OpenFault {
    fn from(e: HeaderFault) -> Self {
        match e {
            HeaderFault::WrongKey => OpenFault::WrongKey,
            other => OpenFault::Header(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_names_no_place_for_whoever_names_it() {
        let eio = io::Error::from_raw_os_error(libc::EIO);
        let text = eio.to_string();
        let fault = VaultFault::from(eio);
        assert_eq!((fault.cause(), fault.to_string()), (text.clone(), format!("backing directory: {text}")));
        let stopped = VaultFault::Failed("x".into());
        assert_eq!((stopped.cause().as_str(), stopped.to_string().as_str()), ("x", "writing stopped: x"));
    }

    #[test]
    fn an_error_of_the_disk_stays_one_with_its_number_whatever_it_passes_through() {
        let eio = || io::Error::from_raw_os_error(libc::EIO);
        let all = [
            OpenFault::from(eio()),
            VaultFault::from(eio()).into(),
            IndexFault::Io(eio()).into(),
            Unreadable::Io(eio()).into(),
        ];
        for fault in all {
            assert!(matches!(&fault, OpenFault::Backing(e) if e.raw_os_error() == Some(libc::EIO)), "{fault:?}");
        }
        for fault in [VaultFault::BackingFull, VaultFault::Closed, VaultFault::Failed("x".into()), VaultFault::Panicked]
        {
            assert!(matches!(OpenFault::from(fault), OpenFault::Backing(_)), "nothing of it is damage");
        }
        let damaged = Unreadable::Damaged { position_bytes: 0, what: "the frame's tag" };
        assert!(matches!(OpenFault::from(damaged), OpenFault::Damaged(_)));
        assert!(matches!(OpenFault::from(IndexFault::Damaged("x".to_owned())), OpenFault::Index(_)));
    }
}
