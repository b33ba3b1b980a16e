//! What each finding is called, and what helps.
//!
//! Promise: a kind, once given, never changes: scripts compare it; `docs/cli.md` lists them all (a test compares). The advice
//! names a command that mends it, or says that only a backup can, because the bytes are gone.
//! Called by: `cli::check`, `repair`, tests. Cannot fail.

use super::finding::{Finding, Place, Text};

macro_rules! kinds {
    ($($variant:ident = $kind:literal,)*) => {
        impl Finding {
            /// Every kind there is.
            pub const KINDS: &'static [&'static str] = &[$($kind),*];
            /// What kind of damage it is: a stable name.
            #[must_use]
            pub fn kind(&self) -> &'static str {
                match self { $(Finding::$variant { .. } => $kind),* }
            }
        }
    };
}

kinds! {
    IndexUnreadable = "index-unreadable",
    IndexLost = "index-lost",
    CopySpoiled = "copy-spoiled",
    RootsLost = "roots-lost",
    RecordsLost = "records-lost",
    StrayEntry = "stray-entry",
    NoRoot = "no-root",
    InodeMalformed = "inode-malformed",
    NameMalformed = "name-malformed",
    NameInvalid = "name-invalid",
    NameOutsideDirectory = "name-outside-directory",
    NameOfNothing = "name-of-nothing",
    NameType = "name-type",
    NotListed = "not-listed",
    ListedOtherwise = "listed-otherwise",
    ListingMalformed = "listing-malformed",
    ListedWithoutName = "listed-without-name",
    EntryCount = "entry-count",
    LinkCount = "link-count",
    Nameless = "nameless",
    OrphanInUse = "orphan-in-use",
    ParentPointer = "parent-pointer",
    NamedTwice = "named-twice",
    Cycle = "cycle",
    WithoutInode = "without-inode",
    WrongType = "wrong-type",
    TargetMissing = "target-missing",
    TargetLength = "target-length",
    ExtentMalformed = "extent-malformed",
    ExtentsOverlap = "extents-overlap",
    ExtentBeyondEnd = "extent-beyond-end",
    ExtentMisplaced = "extent-misplaced",
    Allocated = "allocated",
    TotalBytes = "total-bytes",
    InodeCount = "inode-count",
    NumberInUse = "number-in-use",
    HoldersWrong = "holders-wrong",
    SharedCount = "shared-count",
    SegmentUnknown = "segment-unknown",
    SegmentLive = "segment-live",
    SegmentOverfull = "segment-overfull",
    SegmentMissing = "segment-missing",
    SegmentShort = "segment-short",
    DataLost = "data-lost",
    Unreadable = "unreadable",
    StrayFile = "stray-file",
    FileUnread = "file-unread",
    RangeUnread = "range-unread",
    TreeNumber = "tree-number",
    QuotaCount = "quota-count",
    SnapshotSpoiled = "snapshot-spoiled",
    More = "more",
}

impl Finding {
    /// Whether bytes are gone that no repair brings back: what is left is kept, and only a backup helps.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        use Finding::*;
        matches!(
            self,
            SegmentMissing { .. } | SegmentShort { .. } | DataLost { .. } | Unreadable { .. } | TargetMissing { .. }
        )
    }

    /// Whether it says only that the disk did not give something. That is no damage: once the disk does, all may be well.
    #[must_use]
    pub fn is_unread(&self) -> bool {
        matches!(self, Finding::FileUnread { .. } | Finding::RangeUnread { .. })
    }

    /// What helps, as one command or one sentence; `vault` is what the person called the vault, ready for a shell.
    #[must_use]
    pub fn mend(&self, vault: &str) -> String {
        use Finding::*;
        match self {
            IndexUnreadable { .. } | IndexLost { .. } => format!("strongroom check --rebuild {vault}"),
            StrayFile { file } => {
                format!("remove {file} from {vault}: strongroom makes no such file, and repair removes none")
            }
            FileUnread { .. } | RangeUnread { .. } => format!(
                "look at the disk and its cables, then look again (strongroom check {vault}); if the error stays, copy the vault to a \
                 good disk"
            ),
            DataLost { at, .. } | Unreadable { at, .. } | TargetMissing { at } => restore(at, vault),
            SegmentMissing { segment, .. } | SegmentShort { segment, .. } => format!(
                "put segments/{:016x} back from a copy of the vault, or restore the files that lost data with it",
                segment.0
            ),
            _ => format!("strongroom check --repair {vault}"),
        }
    }
}

fn restore(at: &Place, vault: &str) -> String {
    match &at.path {
        Some(path) => format!("restore {} from a backup, or delete it", Text(path)),
        None => {
            format!("strongroom check --repair {vault} gives it a name; then restore it from a backup, or delete it")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NameOfNothing` → `name-of-nothing`.
    fn kebab(name: &str) -> String {
        let mut out = String::new();
        for c in name.chars() {
            if c.is_ascii_uppercase() && !out.is_empty() {
                out.push('-');
            }
            out.push(c.to_ascii_lowercase());
        }
        out
    }

    #[test]
    fn each_variant_is_called_what_it_is() {
        let source = include_str!("finding.rs");
        let body = source.split_once("pub enum Finding {").unwrap().1.split_once("\n}").unwrap().0;
        let variants = body.lines().filter_map(|l| l.strip_prefix("    "));
        let variants = variants.filter(|l| l.starts_with(|c: char| c.is_ascii_uppercase()));
        let names = variants.map(|l| l.chars().take_while(|c| c.is_alphanumeric()).collect::<String>());
        assert_eq!(names.map(|n| kebab(&n)).collect::<Vec<_>>(), Finding::KINDS);
    }

    #[test]
    fn the_document_lists_every_kind() {
        let document = include_str!("../../docs/cli.md");
        let listed: Vec<&str> = document
            .split_once("### Findings")
            .expect("the document has a section of findings")
            .1
            .lines()
            .skip_while(|l| !l.starts_with("| `"))
            .take_while(|l| l.starts_with("| `"))
            .filter_map(|l| l.split('`').nth(1))
            .collect();
        assert_eq!(listed, Finding::KINDS, "docs/cli.md lists the kinds in this order");
    }
}
