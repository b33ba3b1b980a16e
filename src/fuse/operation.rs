//! Runs one operation of the filesystem for one request.
//!
//! Promise: the operation is counted and timed, and its fault becomes an errno; a panic becomes EIO.
//! Called by: `requests`, `seek`, `synchronous`. On failure: the errno that `fs::errno` decided.

use crate::base::id::Ino;
use crate::fs::{FileSystem, FsFault, OpKind, Seek, Sought};
use fuser::{Errno, INodeNo};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A result, its fault already an errno.
pub(super) type Answer<T> = Result<T, Errno>;

/// Runs one operation: counted, timed, its fault turned into an errno; one that panicked is EIO.
pub(super) fn run<T>(
    fs: &FileSystem,
    kind: OpKind,
    ino: INodeNo,
    call: impl FnOnce(&FileSystem, Ino) -> Result<T, FsFault>,
) -> Answer<T> {
    let world = fs.vault().world();
    let start = world.elapsed();
    fs.ops().begin(kind);
    let ino = Ino(ino.0);
    let result = catch_unwind(AssertUnwindSafe(|| call(fs, ino))).unwrap_or_else(|_| {
        log::error!("{} on inode {ino} panicked", kind.name());
        Err(FsFault::Vault(crate::vault::VaultFault::Panicked))
    });
    fs.ops().record(kind, world.elapsed().saturating_sub(start), result.is_err());
    result.map_err(|fault| Errno::from_i32(fs.answer(kind, ino, &fault)))
}

/// Repeats questions about data and holes.
pub(super) struct Asker(pub(super) Arc<FileSystem>);

impl Asker {
    pub(super) fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Answer<Sought> {
        run(&self.0, OpKind::Lseek, INodeNo(ino.0), |fs, ino| fs.seek(ino, offset, what))
    }
    pub(super) fn errno(&self, ino: Ino, fault: &FsFault) -> Errno {
        Errno::from_i32(self.0.answer(OpKind::Lseek, ino, fault))
    }
}
