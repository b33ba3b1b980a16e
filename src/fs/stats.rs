//! How often each operation was asked for, how long it took, how often it failed.
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
    Removexattr = "removexattr", Fallocate = "fallocate",
}

/// The numbers of one kind of operation.
#[derive(Debug, Default)]
pub struct OpStat {
    /// How long each took.
    pub latency: Histogram,
    /// How many ended in an error.
    pub failures: Counter,
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
    /// Counts one operation.
    pub fn record(&self, kind: OpKind, took: Duration, failed: bool) {
        let stat = self.of(kind);
        stat.latency.record(took);
        if failed {
            stat.failures.add(1);
        }
    }
}
