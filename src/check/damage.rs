//! What can be wrong with the files of a vault, as far as their blocks tell: the words of `scrub`.
//!
//! Promise: each damage names the file and the bytes, in one sentence, and what to do about it; a kind, once given, never
//! changes (`docs/cli.md` lists them, a test compares). Called by: `media`, `cli::scrub`, tests. Cannot fail.

use crate::base::id::{CommitSeq, KeyNumber, SegmentId};
use crate::segment::{path, snapshot_path};
use std::fmt;

/// Damage to a file of the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// The header, a root or a copy of it has not the shape of one, or is missing.
    File {
        /// Which.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Where groups should be, none can be read.
    GroupsMissing {
        /// The segment.
        segment: SegmentId,
        /// First byte.
        from_bytes: u64,
        /// First byte after; `None` for the end of the file.
        to_bytes: Option<u64>,
    },
    /// Blocks hold other bytes than were written.
    BlocksRotten {
        /// The segment.
        segment: SegmentId,
        /// First byte.
        from_bytes: u64,
        /// First byte after.
        to_bytes: u64,
    },
    /// The table of a group's checksums does not hold: nothing is lost with it, and damage in the group cannot be told.
    TableRotten {
        /// The segment.
        segment: SegmentId,
        /// Byte position of the group.
        position_bytes: u64,
    },
    /// A frame of the log does not open: what it says is in the index, and nowhere else.
    LogRotten {
        /// The segment.
        segment: SegmentId,
        /// Byte position of the frame.
        position_bytes: u64,
    },
    /// A segment is under a master key that the header does not have.
    KeyMissing {
        /// The segment.
        segment: SegmentId,
        /// The number of the key.
        key: KeyNumber,
    },
    /// A snapshot of the index does not hold.
    Snapshot {
        /// The commit that it covers.
        commit: CommitSeq,
        /// What is wrong with it.
        why: String,
    },
}

impl Damage {
    /// Every kind there is.
    pub const KINDS: [&'static str; 7] = [
        "file-damaged",
        "groups-missing",
        "blocks-rotten",
        "table-rotten",
        "log-rotten",
        "key-missing",
        "snapshot-damaged",
    ];

    /// What kind it is: a stable name.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        Damage::KINDS[match self {
            Damage::File { .. } => 0,
            Damage::GroupsMissing { .. } => 1,
            Damage::BlocksRotten { .. } => 2,
            Damage::TableRotten { .. } => 3,
            Damage::LogRotten { .. } => 4,
            Damage::KeyMissing { .. } => 5,
            Damage::Snapshot { .. } => 6,
        }]
    }

    /// The file it is in, below the vault's directory.
    #[must_use]
    pub fn file(&self) -> String {
        match self {
            Damage::File { name, .. } => (*name).to_owned(),
            Damage::Snapshot { commit, .. } => snapshot_path(*commit),
            Damage::GroupsMissing { segment, .. }
            | Damage::BlocksRotten { segment, .. }
            | Damage::TableRotten { segment, .. }
            | Damage::LogRotten { segment, .. }
            | Damage::KeyMissing { segment, .. } => path(*segment),
        }
    }

    /// The bytes of that file: from, and where it is known, to.
    #[must_use]
    pub fn bytes(&self) -> Option<(u64, Option<u64>)> {
        match self {
            Damage::File { .. } | Damage::KeyMissing { .. } | Damage::Snapshot { .. } => None,
            Damage::GroupsMissing { from_bytes, to_bytes, .. } => Some((*from_bytes, *to_bytes)),
            Damage::BlocksRotten { from_bytes, to_bytes, .. } => Some((*from_bytes, Some(*to_bytes))),
            Damage::TableRotten { position_bytes, .. } | Damage::LogRotten { position_bytes, .. } => {
                Some((*position_bytes, None))
            }
        }
    }

    /// What helps, as one command or sentence; `vault` is ready for a shell, `keyed` says whether the key was had.
    #[must_use]
    pub fn mend(&self, vault: &str, keyed: bool) -> String {
        match self {
            Damage::File { .. } => format!("the next mount writes it anew: strongroom mount {vault} MNT"),
            Damage::Snapshot { .. } => format!("strongroom check --repair {vault} takes another one"),
            _ if !keyed => format!("strongroom scrub {vault} with the key says what it hurts"),
            Damage::GroupsMissing { .. } | Damage::LogRotten { .. } => {
                "the index still has what it said, as long as it is whole: copy the files elsewhere, and put the segment back \
                 from a copy of the vault if there is one"
                    .to_owned()
            }
            Damage::KeyMissing { .. } => {
                "put back the vault.toml that has the key, or the segment from a newer copy of the vault".to_owned()
            }
            Damage::BlocksRotten { .. } | Damage::TableRotten { .. } => {
                format!("no file is hurt by it unless one is named below (strongroom check --read-data {vault})")
            }
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file();
        match self {
            Damage::File { why, .. } | Damage::Snapshot { why, .. } => write!(f, "{file}: {why}"),
            Damage::GroupsMissing { from_bytes, to_bytes: Some(to), .. } => {
                write!(f, "{file}: bytes {from_bytes} to {to}: the groups that lay there cannot be read")
            }
            Damage::GroupsMissing { from_bytes, to_bytes: None, .. } => {
                write!(f, "{file}: from byte {from_bytes}: the group that lay there cannot be read")
            }
            Damage::BlocksRotten { from_bytes, to_bytes, .. } => {
                write!(f, "{file}: bytes {from_bytes} to {to_bytes} are not those that were written")
            }
            Damage::TableRotten { position_bytes, .. } => {
                write!(f, "{file}: the checksums of the group at byte {position_bytes} do not hold")
            }
            Damage::LogRotten { position_bytes, .. } => {
                write!(f, "{file}: the frame of the log at byte {position_bytes} does not open")
            }
            Damage::KeyMissing { key, .. } => write!(f, "{file} is under key {key}, which the header does not have"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_every_kind_of_damage() {
        let document = include_str!("../../docs/cli.md");
        let section = document.split_once("### Damage").expect("the document has a section of damage").1;
        let rows = section.lines().skip_while(|l| !l.starts_with("| `")).take_while(|l| l.starts_with("| `"));
        let listed: Vec<&str> = rows.filter_map(|l| l.split('`').nth(1)).collect();
        assert_eq!(listed, Damage::KINDS, "docs/cli.md lists the kinds in this order");
    }
}
