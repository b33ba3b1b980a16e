//! Tells the kernel which attributes an operation has changed without being asked to.
//!
//! Promise: when an operation returns, the kernel shows no attribute that is older than the operation.
//! Why it holds: after each kind of request the kernel discards some attributes by itself (`Discarded`). If any other
//! attribute of the inode differs, `settle` makes the kernel discard all of them before the reply is sent.
//! Called by: every operation of `fs` whose reply carries no attributes, with no lock held. Cannot fail.

use super::FileSystem;
use crate::base::id::Ino;
use crate::format::inode::Inode;
use std::sync::{Arc, OnceLock};

/// Remembers attributes of inodes above the filesystem: the kernel of a mount.
pub trait AttributeCache: Send + Sync {
    /// Discards the attributes of an inode. No look-up that begins afterwards shows an older state.
    ///
    /// The caller is answering a request about this inode, so the call must not wait for any other request.
    fn discard(&self, ino: Ino);
}

/// The attributes that the kernel discards by itself when a request has been answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Discarded {
    /// Size, blocks, `mtime` and `ctime`: after WRITE, FALLOCATE and the target of COPY_FILE_RANGE.
    Content,
    /// `ctime`: after SETXATTR and REMOVEXATTR.
    ChangeTime,
    /// No attribute: the source of COPY_FILE_RANGE.
    Nothing,
}

impl Discarded {
    /// Whether an attribute differs that the kernel goes on showing as it was.
    fn leaves_stale(self, before: &Inode, after: &Inode) -> bool {
        // Neither the quota tree nor the parent is an attribute that a program can see.
        let mut shown = Inode { tree: before.tree, parent: before.parent, ..*after };
        match self {
            Discarded::Content => {
                (shown.size, shown.mtime, shown.ctime) = (before.size, before.mtime, before.ctime);
            }
            Discarded::ChangeTime => shown.ctime = before.ctime,
            Discarded::Nothing => {}
        }
        shown != *before
    }
}

/// The cache above a filesystem, once there is one.
#[derive(Default)]
pub(super) struct Above(OnceLock<Arc<dyn AttributeCache>>);

impl FileSystem {
    /// Names the cache that must hear of attributes that change unasked. The first one named stays.
    pub fn set_attribute_cache(&self, cache: Arc<dyn AttributeCache>) {
        let _ = self.above.0.set(cache);
    }

    /// Makes the kernel discard an inode's attributes if this operation left it with a stale one.
    pub(super) fn settle(&self, ino: Ino, before: &Inode, after: &Inode, discarded: Discarded) {
        if discarded.leaves_stale(before, after)
            && let Some(cache) = self.above.0.get()
        {
            cache.discard(ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::world::Time;

    #[test]
    fn a_change_is_reported_unless_the_kernel_discards_it_by_itself() {
        let zero = Time::default();
        let before = Inode {
            mode: 0o106_777,
            uid: 1,
            gid: 2,
            nlink: 1,
            rdev: 0,
            size: 5,
            atime: zero,
            mtime: zero,
            ctime: zero,
            btime: zero,
            parent: Ino(0),
            tree: 0,
        };
        let now = Time { seconds: 9, nanos: 9 };
        let written = Inode { size: 9, mtime: now, ctime: now, tree: 3, parent: Ino(7), ..before };
        let changed = Inode { ctime: now, ..before };
        use Discarded::{ChangeTime, Content, Nothing};
        assert_eq!([Content, ChangeTime, Nothing].map(|d| d.leaves_stale(&before, &written)), [false, true, true]);
        assert_eq!([Content, ChangeTime, Nothing].map(|d| d.leaves_stale(&before, &changed)), [false, false, true]);
        let others = [
            Inode { mode: 0o100_777, ..written },
            Inode { nlink: 2, ..written },
            Inode { uid: 9, ..written },
            Inode { gid: 9, ..written },
            Inode { atime: now, ..written },
        ];
        for after in others {
            for discarded in [Content, ChangeTime, Nothing] {
                assert!(discarded.leaves_stale(&before, &after), "{discarded:?} {after:?}");
            }
        }
        assert!(!Nothing.leaves_stale(&before, &before));
    }
}
