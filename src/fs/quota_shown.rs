//! What quotas look like: the lines of `/.storage/quota`, of the status and of the metrics; and the count that proves them.
//!
//! Promise: a line for each account, its fields `name=value` with a path at most at the end, which `cli::quota` reads back;
//! metrics carry numbers of trees, users and groups, and no names. A check changes nothing: it counts all inodes beside whatever
//! is at work, then looks at each name whether it lies in the tree that its inode is charged to.
//! Called by: `render`, `storage`, `cli::quota`, tests. On failure: the vault's.

use super::{FileSystem, FsFault, paths_of, printable};
use crate::base::id::Ino;
use crate::base::lock::Held;
use crate::base::world::Time;
use crate::format::inode::{Inode, NameEntry};
use crate::format::key;
use crate::format::quota::{Account, Used, Walk};
use crate::vault::AccountReport;
use std::fmt::Write as _;

/// Strays listed; the rest is counted.
const STRAYS_LISTED: usize = 1000;
/// Accounts over a soft limit that the status names.
const WARNINGS_SHOWN: usize = 8;

/// An inode that carries the number of another tree than the directory of one of its names does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// The inode.
    pub ino: Ino,
    /// The tree that it is charged to.
    pub tree: u32,
    /// The directory of the name.
    pub dir: Ino,
    /// The tree that the directory is in.
    pub dir_tree: u32,
    /// Whether it is a directory, which has one name: damage. A file may have had names in both when the tree was begun.
    pub is_dir: bool,
    /// A path that leads to it.
    pub path: Option<Vec<u8>>,
}

/// What a count of all inodes came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QuotaCheck {
    /// When.
    pub at: Time,
    /// Accounts whose count is another: what is on record, what was counted.
    pub drift: Vec<(Account, Used, Used)>,
    /// Inodes of another tree than their directory, the first so many.
    pub strays: Vec<Stray>,
    /// How many there are.
    pub strays_count: u64,
}

impl QuotaCheck {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.drift.is_empty() && !self.strays.iter().any(|stray| stray.is_dir)
    }
}

fn limit(limit: Option<u64>) -> String {
    limit.map_or("none".to_owned(), |limit| limit.to_string())
}

/// Kind and number, as fields.
fn fields(account: Account) -> (&'static str, u32) {
    match account {
        Account::Tree(n) => ("tree", n),
        Account::User(n) => ("user", n),
        Account::Group(n) => ("group", n),
    }
}

fn over(a: &AccountReport) -> &'static str {
    match (a.is_full(), a.is_over_soft()) {
        (true, _) => "hard",
        (false, true) => "soft",
        (false, false) => "no",
    }
}

impl FileSystem {
    /// Counts everything anew, and remembers what it came to.
    pub fn check_quotas(&self) -> Result<QuotaCheck, FsFault> {
        let mut found = QuotaCheck { at: self.now(), drift: self.vault.recount_quotas()?, ..QuotaCheck::default() };
        if self.vault.counts_quotas() {
            self.scan_all(&[key::NAME], |k, value| {
                let (_, dir, name) = key::split(k)?;
                let entry = NameEntry::decode(value)?;
                if let Some(stray) = self.stray(Ino(dir), name, entry)? {
                    found.strays_count += 1;
                    if found.strays.len() < STRAYS_LISTED {
                        found.strays.push(stray);
                    }
                }
                Ok(())
            })?;
        }
        let paths = paths_of(&self.vault, &found.strays.iter().map(|stray| stray.ino).collect::<Vec<_>>());
        for (stray, (_, path)) in found.strays.iter_mut().zip(paths) {
            stray.path = path;
        }
        *self.quota_checked.held() = Some(found.clone());
        Ok(found)
    }

    fn stray(&self, dir: Ino, name: &[u8], entry: NameEntry) -> Result<Option<Stray>, FsFault> {
        let stored = |ino| -> Result<Option<Inode>, FsFault> {
            Ok(self.vault.get(&key::inode(ino))?.map(|value| Inode::decode(&value)).transpose()?)
        };
        let look = || -> Result<Option<Stray>, FsFault> {
            let (Some(above), Some(inode)) = (stored(dir)?, stored(entry.ino)?) else { return Ok(None) };
            let stray = Stray {
                ino: entry.ino,
                tree: inode.tree,
                dir,
                dir_tree: above.tree,
                is_dir: super::node::is(&inode, libc::S_IFDIR),
                path: None,
            };
            Ok(self.may_come(entry.ino, &inode, &above).is_err().then_some(stray))
        };
        if look()?.is_none() {
            return Ok(None);
        }
        // Once more, with nothing moving: a walk or a rename may have been between the two.
        let _namespace = self.namespace.held();
        if self.find(dir, name)? == Some(entry) { look() } else { Ok(None) }
    }

    /// A line for each account, then what the last check came to.
    pub(super) fn quota_lines(&self) -> String {
        let accounts = self.vault.accounts();
        let checked = self.quota_checked.held().clone();
        let path = |path: Option<Vec<u8>>| match path.as_deref() {
            Some(b"") => "/".to_owned(),
            path => printable(path.unwrap_or_default()),
        };
        let mut out = String::new();
        for a in &accounts {
            let (kind, id) = fields(a.account);
            let l = &a.limits;
            let _ = write!(
                out,
                "account kind={kind} id={id} bytes={} inodes={} hard_bytes={} hard_inodes={} soft_bytes={} soft_inodes={} over={}",
                a.used.bytes,
                a.used.inodes,
                limit(l.bytes),
                limit(l.inodes),
                limit(l.soft_bytes),
                limit(l.soft_inodes),
                over(a),
            );
            if let Some(tree) = &a.tree {
                let walk = match tree.walk {
                    Walk::Done if tree.root == Ino(0) => "ended",
                    Walk::Done => "settled",
                    Walk::Tagging => "tagging",
                    Walk::Untagging => "untagging",
                };
                let _ = write!(
                    out,
                    " state={walk} within={} root={} path={}",
                    tree.parent,
                    tree.root,
                    path(self.vault.path_of_directory(tree.root))
                );
            }
            out.push('\n');
        }
        if let Some(c) = &checked {
            let _ = writeln!(out, "checked at={} drift={} strays={}", c.at.seconds, c.drift.len(), c.strays_count);
            for (account, stored, counted) in &c.drift {
                let (kind, id) = fields(*account);
                let _ = writeln!(
                    out,
                    "drift kind={kind} id={id} bytes={} inodes={} counted_bytes={} counted_inodes={}",
                    stored.bytes, stored.inodes, counted.bytes, counted.inodes
                );
            }
            for s in &c.strays {
                let what = if s.is_dir { "directory" } else { "file" };
                let (tree, dir_tree) = (s.tree, s.dir_tree);
                let _ = writeln!(
                    out,
                    "stray what={what} inode={} charged={tree} lies={dir_tree} path={}",
                    s.ino,
                    path(s.path.clone())
                );
            }
        }
        out
    }

    /// Who is over a soft limit, or has used up a hard one; a sentence each.
    pub(super) fn quota_warnings(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let over: Vec<AccountReport> =
            self.vault.accounts().into_iter().filter(|a| a.is_full() || a.is_over_soft()).collect();
        for a in over.iter().take(WARNINGS_SHOWN) {
            let of = |used: String, soft: Option<u64>, hard: Option<u64>| match (soft, hard) {
                (None, None) => None,
                (soft, hard) => Some(format!("{used} (soft {}, hard {})", limit(soft), limit(hard))),
            };
            let l = &a.limits;
            let bytes = of(format!("{} bytes", a.used.bytes), l.soft_bytes, l.bytes);
            let inodes = of(format!("{} inodes", a.used.inodes), l.soft_inodes, l.inodes);
            let used: Vec<String> = bytes.into_iter().chain(inodes).collect();
            let word = if a.is_full() { "full" } else { "over its soft limit" };
            all.push(format!("{} is {word}: {}", a.account, used.join(", ")));
        }
        if over.len() > WARNINGS_SHOWN {
            all.push(format!("{} more", over.len() - WARNINGS_SHOWN));
        }
        all
    }

    /// (metric, help, labels, value) of each account that has a limit, and of each tree.
    pub(super) fn quota_metrics(&self) -> Vec<(&'static str, &'static str, Vec<(String, String)>)> {
        let accounts = self.vault.accounts();
        let shown = accounts.iter().filter(|a| a.tree.is_some() || !a.limits.is_none());
        let shown: Vec<&AccountReport> = shown.collect();
        let label = |a: &AccountReport| {
            let (kind, id) = fields(a.account);
            format!("kind=\"{kind}\",id=\"{id}\"")
        };
        let every = |value: &dyn Fn(&AccountReport) -> String| shown.iter().map(|a| (label(a), value(a))).collect();
        let limits = |which: &dyn Fn(&AccountReport) -> [(&'static str, Option<u64>); 2]| {
            let of = |a: &&AccountReport| {
                let given = which(a).into_iter().filter_map(|(limit, n)| n.map(|n| (limit, n)));
                given.map(|(limit, n)| (format!("{},limit=\"{limit}\"", label(a)), n.to_string())).collect::<Vec<_>>()
            };
            shown.iter().flat_map(of).collect()
        };
        vec![
            ("quota_used_bytes", "Bytes charged to a tree, user or group.", every(&|a| a.used.bytes.to_string())),
            ("quota_used_inodes", "Inodes charged to it.", every(&|a| a.used.inodes.to_string())),
            (
                "quota_limit_bytes",
                "Bytes that it may use.",
                limits(&|a| [("hard", a.limits.bytes), ("soft", a.limits.soft_bytes)]),
            ),
            (
                "quota_limit_inodes",
                "Inodes that it may use.",
                limits(&|a| [("hard", a.limits.inodes), ("soft", a.limits.soft_inodes)]),
            ),
            ("quota_over_soft", "Whether it is over a soft limit.", every(&|a| u8::from(a.is_over_soft()).to_string())),
        ]
    }
}
