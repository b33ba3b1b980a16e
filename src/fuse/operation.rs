//! Runs one operation of the filesystem for one request.
//!
//! Promise: the operation is counted and timed, and its fault becomes an errno; a panic becomes EIO.
//! Called by: `requests`, `seek`, `held`, `synchronous`. On failure: the errno that `fs::errno` decided.

use crate::base::id::{Ino, ROOT_INO};
use crate::fs::{FileSystem, FsFault, OpKind, Seek, Sought, WriteFrom, WriteHow};
use fuser::{Errno, INodeNo};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

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
    let result = caught(kind, ino, || call(fs, ino));
    fs.ops().record(kind, world.elapsed().saturating_sub(start), result.is_err());
    result.map_err(|fault| Errno::from_i32(fs.answer(kind, ino, &fault)))
}

fn caught<T>(kind: OpKind, ino: Ino, call: impl FnOnce() -> Result<T, FsFault>) -> Result<T, FsFault> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        log::error!("{} on inode {ino} panicked", kind.name());
        Err(FsFault::Vault(crate::vault::VaultFault::Panicked))
    })
}

/// Puts questions and held writes to the filesystem for the other threads of this folder.
#[derive(Clone)]
pub(super) struct Asker(pub(super) Arc<FileSystem>);

impl Asker {
    pub(super) fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Answer<Sought> {
        run(&self.0, OpKind::Lseek, INodeNo(ino.0), |fs, ino| fs.seek(ino, offset, what))
    }
    pub(super) fn errno(&self, kind: OpKind, ino: Ino, fault: &FsFault) -> Errno {
        Errno::from_i32(self.0.answer(kind, ino, fault))
    }

    /// Writes what the kernel's cache handed over and what was held; one that panicked is a fault.
    pub(super) fn write_held(&self, ino: Ino, offset: u64, data: &[u8], how: WriteHow) -> Result<(), FsFault> {
        caught(OpKind::Write, ino, || self.0.write_from(WriteFrom::HeldCache, ino, offset, data, how))
    }

    /// Whether a program may add data now.
    pub(super) fn admit_write(&self) -> Result<(), FsFault> {
        caught(OpKind::Getattr, ROOT_INO, || self.0.admit_write())
    }

    /// Time on the vault's clock.
    pub(super) fn elapsed(&self) -> Duration {
        self.0.vault().world().elapsed()
    }

    /// Counts a write that is held as under way: whoever unmounts waits for those.
    pub(super) fn begin_held(&self) {
        self.0.ops().begin(OpKind::Write);
    }

    /// Counts a write that was held as answered.
    pub(super) fn end_held(&self, held: Duration, is_refused: bool) {
        self.0.ops().record(OpKind::Write, held, is_refused);
    }

    /// Counts bytes of the kernel's cache that were refused.
    pub(super) fn count_refused(&self, bytes: u64) {
        self.0.vault().stats().refused_cached_bytes.add(bytes);
    }

    /// Adds a line to the error list, and logs it.
    pub(super) fn report(&self, text: String) {
        let vault = self.0.vault();
        vault.stats().error(vault.world().now(), text);
    }
}
