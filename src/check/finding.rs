//! What can be wrong with a vault, one variant per kind of damage.
//!
//! Promise: each finding names what it hurts, by path where there is one, and says in one sentence what is wrong.
//! Called by: the rest of `check`, `cli`, tests. Cannot fail.

use crate::base::id::{CommitSeq, Ino, SegmentId};
use crate::format::quota::{Account, Used};
use crate::segment::snapshot_path;
use crate::vault::NOWHERE;
use std::fmt::{self, Write as _};

/// An inode, and the path that leads to it if one does.
#[derive(Clone, PartialEq, Eq)]
pub struct Place {
    /// The inode.
    pub ino: Ino,
    /// From the root, with a leading `/`; of a file with several names, one of them.
    pub path: Option<Vec<u8>>,
}

impl Place {
    pub(super) fn of(ino: Ino) -> Place {
        Place { ino, path: None }
    }
}

/// Something wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the fields are named for what they hold; the variants and their sentences say the rest"
)]
pub enum Finding {
    /// The index could be read only in part: what lies behind was not looked at.
    IndexUnreadable { why: String },
    /// The index is gone or cannot be trusted; everything in it can be had from the log.
    IndexLost { why: String },
    /// A file that a vault keeps twice is missing or damaged; the other serves.
    CopySpoiled { file: &'static str },
    /// Neither root holds: the log itself must say how far it goes.
    RootsLost,
    /// Records and commits that had been durable are lost from the log, and what they changed with them.
    RecordsLost { frames: u64 },
    /// A key or value of the index that makes no sense.
    StrayEntry { key: Vec<u8>, why: &'static str },
    /// There are inodes, but no root directory.
    NoRoot,
    /// An inode's attributes make no sense.
    InodeMalformed { at: Place, why: &'static str },
    /// What a name leads to makes no sense.
    NameMalformed { dir: Place, name: Vec<u8>, why: &'static str },
    /// A name that no file may have.
    NameInvalid { dir: Place, name: Vec<u8> },
    /// A name in what is not a directory, or not there.
    NameOutsideDirectory { dir: Place, name: Vec<u8> },
    /// A name that leads to no inode.
    NameOfNothing { dir: Place, name: Vec<u8>, ino: Ino },
    /// A name that says another file type than its inode.
    NameType { dir: Place, name: Vec<u8> },
    /// A name that listings of its directory leave out.
    NotListed { dir: Place, name: Vec<u8> },
    /// A name that listings show with another inode or type.
    ListedOtherwise { dir: Place, name: Vec<u8> },
    /// A line of a listing that makes no sense.
    ListingMalformed { dir: Place, cookie: u64, why: &'static str },
    /// A line of a listing whose name is not there.
    ListedWithoutName { dir: Place, name: Vec<u8> },
    /// A directory's stored number of entries is not the number of its names.
    EntryCount { at: Place, stored: u64, counted: u64 },
    /// The stored number of links is not the number of names (a directory's: its own two and its subdirectories).
    LinkCount { at: Place, stored: u32, counted: u64 },
    /// No name leads to an inode, and it is not on its way to being removed.
    Nameless { at: Place },
    /// An inode is marked for removal and has links.
    OrphanInUse { at: Place },
    /// A directory's `..` is not the directory that its name is in.
    ParentPointer { at: Place, stored: Ino, found: Ino },
    /// A directory with more names than the one it may have (the root: none).
    NamedTwice { at: Place },
    /// A directory is its own ancestor: it and all below cannot be reached.
    Cycle { at: Place },
    /// Something is stored for an inode that is not there.
    WithoutInode { ino: Ino, what: &'static str },
    /// Something is stored for an inode of a type that has no such thing.
    WrongType { at: Place, what: &'static str },
    /// A symbolic link that leads nowhere.
    TargetMissing { at: Place },
    /// A symbolic link's size is not the length of its target.
    TargetLength { at: Place, stored: u64, counted: u64 },
    /// What is stored of a range of a file makes no sense.
    ExtentMalformed { at: Place, offset_bytes: u64, why: &'static str },
    /// Two stored ranges of a file claim the same bytes.
    ExtentsOverlap { at: Place, offset_bytes: u64 },
    /// A stored range reaches past the end of its file.
    ExtentBeyondEnd { at: Place, end_bytes: u64, size_bytes: u64 },
    /// A stored range cannot have been sealed where it says.
    ExtentMisplaced { at: Place, offset_bytes: u64 },
    /// The stored count of a file's bytes at rest is not what its ranges add up to.
    Allocated { at: Place, stored: u64, counted: u64 },
    /// The stored count of all bytes at rest is not what the files' counts add up to.
    TotalBytes { stored: u64, counted: u64 },
    /// The stored count of inodes is not their number.
    InodeCount { stored: u64, counted: u64 },
    /// A number that will be given out next is in use already.
    NumberInUse { what: &'static str, next: u64, used: u64 },
    /// Who shares a stored run with this file is not on record as it is.
    HoldersWrong { at: Place, segment: SegmentId, position_bytes: u64 },
    /// The stored count of shared runs is not the number of those on record.
    SharedCount { stored: u64, counted: u64 },
    /// Ranges lie in a segment that the index does not know.
    SegmentUnknown { segment: SegmentId },
    /// The stored count of a segment's live bytes is not what the ranges in it need.
    SegmentLive { segment: SegmentId, stored: u64, counted: u64 },
    /// More bytes of a segment are live than were ever put there.
    SegmentOverfull { segment: SegmentId, live_bytes: u64, data_bytes: u64 },
    /// A segment that is needed cannot be opened.
    SegmentMissing { segment: SegmentId, why: String },
    /// A segment's file ends before what is needed of it.
    SegmentShort { segment: SegmentId, len_bytes: u64, needed_bytes: u64 },
    /// Bytes of a file lay in a segment that is missing, short or unknown.
    DataLost { at: Place, segment: SegmentId },
    /// A range of a file does not read.
    Unreadable { at: Place, from_bytes: u64, to_bytes: u64, why: String },
    /// A file that has the name of a segment or an index, with a number that none of the vault's can have. It is ignored.
    StrayFile { file: String },
    /// The disk did not give a file of the vault: nothing is known of what is in it.
    FileUnread { file: String, why: String },
    /// The disk did not give a range of a file: nothing is known of it.
    RangeUnread { at: Place, from_bytes: u64, to_bytes: u64, why: String },
    /// An inode carries the number of a quota tree that it is not in.
    TreeNumber { at: Place, stored: u32, expected: u32 },
    /// What an account of quotas is said to have used is not what its inodes add up to.
    QuotaCount { account: Account, stored: Used, counted: Used },
    /// A snapshot of the index does not hold.
    SnapshotSpoiled { commit: CommitSeq, why: String },
    /// More was found than is listed.
    More { count: u64 },
}

impl Finding {
    /// The inode or directory it is about, if it is about one.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        // One list of variants for both.
        self.clone().place_mut().cloned()
    }

    /// The same, to name it.
    pub(super) fn place_mut(&mut self) -> Option<&mut Place> {
        use Finding::*;
        match self {
            InodeMalformed { at, .. }
            | EntryCount { at, .. }
            | LinkCount { at, .. }
            | Nameless { at }
            | OrphanInUse { at }
            | ParentPointer { at, .. }
            | NamedTwice { at }
            | Cycle { at }
            | WrongType { at, .. }
            | TargetMissing { at }
            | TargetLength { at, .. }
            | ExtentMalformed { at, .. }
            | ExtentsOverlap { at, .. }
            | ExtentBeyondEnd { at, .. }
            | ExtentMisplaced { at, .. }
            | Allocated { at, .. }
            | HoldersWrong { at, .. }
            | DataLost { at, .. }
            | Unreadable { at, .. }
            | RangeUnread { at, .. }
            | TreeNumber { at, .. } => Some(at),
            NameMalformed { dir, .. }
            | NameInvalid { dir, .. }
            | NameOutsideDirectory { dir, .. }
            | NameOfNothing { dir, .. }
            | NameType { dir, .. }
            | NotListed { dir, .. }
            | ListedOtherwise { dir, .. }
            | ListingMalformed { dir, .. }
            | ListedWithoutName { dir, .. } => Some(dir),
            IndexUnreadable { .. }
            | IndexLost { .. }
            | CopySpoiled { .. }
            | RootsLost
            | RecordsLost { .. }
            | StrayEntry { .. }
            | NoRoot
            | WithoutInode { .. }
            | TotalBytes { .. }
            | InodeCount { .. }
            | NumberInUse { .. }
            | SharedCount { .. }
            | SegmentUnknown { .. }
            | SegmentLive { .. }
            | SegmentOverfull { .. }
            | SegmentMissing { .. }
            | SegmentShort { .. }
            | QuotaCount { .. }
            | SnapshotSpoiled { .. }
            | StrayFile { .. }
            | FileUnread { .. }
            | More { .. } => None,
        }
    }
}

/// Bytes of a name as text on one line: what is not a printable character is escaped.
pub(super) struct Text<'a>(pub &'a [u8]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.utf8_chunks() {
            for c in part.valid().chars() {
                if c.is_control() || c == '\\' { write!(f, "{}", c.escape_default())? } else { f.write_char(c)? }
            }
            part.invalid().iter().try_for_each(|b| write!(f, "\\x{b:02x}"))?;
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{} (inode {})", Text(path), self.ino),
            None => write!(f, "inode {}", self.ino),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A name in a directory.
struct Name<'a>(&'a Place, &'a [u8]);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.path.as_deref() {
            Some(b"/") => write!(f, "/{}", Text(self.1)),
            Some(path) => write!(f, "{}/{}", Text(path), Text(self.1)),
            None => write!(f, "name '{}' in inode {}", Text(self.1), self.0.ino),
        }
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Finding::*;
        match self {
            IndexUnreadable { why } => write!(f, "the index could be read only in part: {why}"),
            IndexLost { why } => write!(f, "the index must be rebuilt from the log, as the next mount does: {why}"),
            CopySpoiled { file } => {
                write!(f, "{file} is missing or does not hold; its other copy does, and the next mount restores it")
            }
            RootsLost => f.write_str("neither root.a nor root.b holds"),
            RecordsLost { frames } => write!(
                f,
                "{frames} frames of records are missing from the log or damaged: what they changed is lost, the rest is there"
            ),
            StrayEntry { key, why } => write!(f, "the index entry with key {} makes no sense: {why}", Hex(key)),
            NoRoot => f.write_str("the root directory is not there"),
            InodeMalformed { at, why } => write!(f, "{at}: its attributes make no sense: {why}"),
            NameMalformed { dir, name, why } => {
                write!(f, "{}: what it leads to makes no sense: {why}", Name(dir, name))
            }
            NameInvalid { dir, name } => write!(f, "{}: no file may have this name", Name(dir, name)),
            NameOutsideDirectory { dir, name } => write!(f, "{}: it stands in no directory", Name(dir, name)),
            NameOfNothing { dir, name, ino } => {
                write!(f, "{}: it leads to inode {ino}, which is not there", Name(dir, name))
            }
            NameType { dir, name } => write!(f, "{}: its name says another file type than its inode", Name(dir, name)),
            NotListed { dir, name } => write!(f, "{}: listings of its directory leave it out", Name(dir, name)),
            ListedOtherwise { dir, name } => {
                write!(f, "{}: listings of its directory show another inode or file type", Name(dir, name))
            }
            ListingMalformed { dir, cookie, why } => {
                write!(f, "{dir}: line {cookie} of its listing makes no sense: {why}")
            }
            ListedWithoutName { dir, name } => write!(f, "{}: it is listed, but not there", Name(dir, name)),
            EntryCount { at, stored, counted } => {
                write!(f, "{at}: {stored} entries are on record, {counted} are there")
            }
            LinkCount { at, stored, counted } => write!(f, "{at}: {stored} links are on record, {counted} are there"),
            Nameless { at } => write!(f, "{at}: no name leads to it"),
            OrphanInUse { at } => write!(f, "{at}: it is marked for removal, and has links"),
            ParentPointer { at, stored, found } => {
                write!(f, "{at}: its '..' is inode {stored}, but its name is in inode {found}")
            }
            NamedTwice { at } => write!(f, "{at}: the directory has more names than it may have"),
            Cycle { at } => {
                write!(f, "{at}: the directory is its own ancestor, and out of reach with all that is in it")
            }
            WithoutInode { ino, what } => write!(f, "inode {ino}: {what} are stored for it, but it is not there"),
            WrongType { at, what } => write!(f, "{at}: {what} are stored for it, but its file type has none"),
            TargetMissing { at } => write!(f, "{at}: the symbolic link has no target"),
            TargetLength { at, stored, counted } => {
                write!(f, "{at}: the symbolic link's size is {stored}, its target has {counted} bytes")
            }
            ExtentMalformed { at, offset_bytes, why } => {
                write!(f, "{at}: what is stored of its data at byte {offset_bytes} makes no sense: {why}")
            }
            ExtentsOverlap { at, offset_bytes } => write!(f, "{at}: its data at byte {offset_bytes} is stored twice"),
            ExtentBeyondEnd { at, end_bytes, size_bytes } => {
                write!(f, "{at}: data is stored up to byte {end_bytes}, but it ends at byte {size_bytes}")
            }
            ExtentMisplaced { at, offset_bytes } => {
                write!(f, "{at}: its data at byte {offset_bytes} cannot have been sealed where the index says")
            }
            Allocated { at, stored, counted } => {
                write!(f, "{at}: {stored} bytes at rest are on record, {counted} are there")
            }
            TotalBytes { stored, counted } => {
                write!(f, "{stored} bytes of files at rest are on record for the vault, {counted} for its files")
            }
            InodeCount { stored, counted } => write!(f, "{stored} inodes are on record, {counted} are there"),
            NumberInUse { what, next, used } => {
                write!(f, "the next {what} number to be given out is {next}, but {used} is in use already")
            }
            HoldersWrong { at, segment, position_bytes } => {
                write!(
                    f,
                    "{at}: who shares its data at byte {position_bytes} of segment {segment} is not on record as it is"
                )
            }
            SharedCount { stored, counted } => {
                write!(f, "{stored} shared pieces of data are on record as their number, {counted} are there")
            }
            SegmentUnknown { segment } => {
                write!(f, "segment {segment}: data lies in it, but the index does not know it")
            }
            SegmentLive { segment, stored, counted } => {
                write!(f, "segment {segment}: {stored} live bytes are on record, {counted} are needed")
            }
            SegmentOverfull { segment, live_bytes, data_bytes } => {
                write!(f, "segment {segment}: {live_bytes} bytes are said to be live of {data_bytes} ever put there")
            }
            SegmentMissing { segment, why } => write!(f, "segment {segment}: its file cannot be opened: {why}"),
            SegmentShort { segment, len_bytes, needed_bytes } => {
                write!(f, "segment {segment}: its file has {len_bytes} bytes, data lies up to byte {needed_bytes}")
            }
            DataLost { at, segment } if *segment == NOWHERE => {
                write!(f, "{at}: data is lost: what was stored of it made no sense")
            }
            DataLost { at, segment } => write!(f, "{at}: data is lost with segment {segment}"),
            Unreadable { at, from_bytes, to_bytes, why } => {
                write!(f, "{at}: bytes {from_bytes} to {to_bytes} do not read: {why}")
            }
            StrayFile { file } => write!(f, "{file} is no file of the vault: its number is too great; it is ignored"),
            FileUnread { file, why } => {
                write!(f, "{file} could not be read, and nothing is known of what is in it: {why}")
            }
            RangeUnread { at, from_bytes, to_bytes, why } => {
                write!(
                    f,
                    "{at}: the disk did not give bytes {from_bytes} to {to_bytes}, and nothing is known of them: {why}"
                )
            }
            TreeNumber { at, stored, expected } => {
                write!(f, "{at}: it carries the number of quota tree {stored}, but lies in {expected}")
            }
            QuotaCount { account, stored, counted } => {
                let (Used { bytes, inodes }, Used { bytes: is_bytes, inodes: is_inodes }) = (stored, counted);
                write!(
                    f,
                    "quota of {account}: {bytes} bytes and {inodes} inodes are on record, {is_bytes} and {is_inodes} are there"
                )
            }
            SnapshotSpoiled { commit, why } => {
                let file = snapshot_path(*commit);
                write!(f, "{file}, a snapshot of the index, does not hold: {why}; the index itself is not hurt by it")
            }
            More { count } => write!(f, "{count} more findings are not listed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_printable_line() {
        let dir = Place { ino: Ino(3), path: Some(b"/a\nb".to_vec()) };
        let finding = Finding::NotListed { dir, name: b"\xff\\\x1b[2J".to_vec() };
        assert_eq!(
            finding.to_string(),
            "/a\\nb/\\xff\\\\\\u{1b}[2J: listings of its directory leave it out",
            "names come from anyone: they must not steer a terminal"
        );
        let finding = Finding::NotListed { dir: Place::of(Ino(3)), name: b"x".to_vec() };
        assert_eq!(finding.to_string(), "name 'x' in inode 3: listings of its directory leave it out");
    }
}
