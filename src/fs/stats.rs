//! How often each operation was asked for, how long it took, how often it failed, how many are under way.
//!
//! Promise: recording costs a few atomic additions. Called by: `fuse` at each request; `fs::storage` when read.
//! Cannot fail.

use crate::base::histogram::{Counter, Histogram};
use std::time::Duration;

macro_rules! kinds {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// An operation, as counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum OpKind {
            $(#[doc = concat!("`", $name, "`")] $variant),*
        }
        impl OpKind {
            /// Every kind, in order of its number.
            pub const ALL: &'static [OpKind] = &[$(OpKind::$variant),*];
            /// The name shown in `/.storage` and in messages.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(OpKind::$variant => $name),* }
            }
        }
    };
}

kinds! {
    Lookup = "lookup", Forget = "forget", Getattr = "getattr", Setattr = "setattr", Readlink = "readlink",
    Mknod = "mknod", Mkdir = "mkdir", Unlink = "unlink", Rmdir = "rmdir", Symlink = "symlink", Rename = "rename",
    Link = "link", Read = "read", Write = "write", Fsync = "fsync", Readdir = "readdir", Readdirplus = "readdirplus",
    Fsyncdir = "fsyncdir", Statfs = "statfs", Setxattr = "setxattr", Getxattr = "getxattr", Listxattr = "listxattr",
    Removexattr = "removexattr", Fallocate = "fallocate", Lseek = "lseek",
}

/// The numbers of one kind of operation.
#[derive(Debug, Default)]
pub struct OpStat {
    /// How many were begun.
    pub begun: Counter,
    /// How long each took.
    pub latency: Histogram,
    /// How many ended in an error.
    pub failures: Counter,
}

impl OpStat {
    /// How many are at work; one that begins or ends meanwhile may count, one that was at work all the time does.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        // What ended is read first: what ends in between is then still counted.
        let ended = self.latency.snapshot().count();
        self.begun.get().saturating_sub(ended)
    }
}

/// The numbers of all kinds.
#[derive(Debug)]
pub struct OpStats(Vec<OpStat>);

impl Default for OpStats {
    fn default() -> Self {
        OpStats(OpKind::ALL.iter().map(|_| OpStat::default()).collect())
    }
}

impl OpStats {
    /// The numbers of one kind.
    #[must_use]
    pub fn of(&self, kind: OpKind) -> &OpStat {
        &self.0[kind as usize]
    }
    /// Counts one operation that begins; `record` follows when it has ended.
    pub fn begin(&self, kind: OpKind) {
        self.of(kind).begun.add(1);
    }
    /// Counts one operation that has ended.
    pub fn record(&self, kind: OpKind, took: Duration, failed: bool) {
        let stat = self.of(kind);
        stat.latency.record(took);
        if failed {
            stat.failures.add(1);
        }
    }
}
