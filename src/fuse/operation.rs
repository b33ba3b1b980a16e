//! Runs one operation of the filesystem for one request.
//!
//! Promise: the operation is counted and timed, and its fault becomes an errno; a panic becomes EIO.
//! Called by: `requests`, `seek`, `held`, `synchronous`. On failure: the errno that `fs::errno` decided.

use crate::base::id::{Ino, ROOT_INO};
use crate::base::limits::FREE_INOS;
use crate::fs::{self, FileSystem, FsFault, OpKind, Seek, Sought, WriteFrom, WriteHow};
use crate::vault::Unwritten;
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

/// What became of a write.
pub(super) enum Written {
    Now,
    /// The vault cannot take what the kernel's cache handed over, and may take it later. It counts as under way since
    /// then, until `end_held`.
    NotYet {
        fault: FsFault,
        since: Duration,
    },
}

/// Runs a write as `run` does. With `may_hold`, a write whose fault may pass is neither answered nor recorded.
pub(super) fn run_write(
    fs: &FileSystem,
    ino: Ino,
    may_hold: bool,
    call: impl FnOnce(&FileSystem) -> Result<(), FsFault>,
) -> Answer<Written> {
    let world = fs.vault().world();
    let since = world.elapsed();
    fs.ops().begin(OpKind::Write);
    match caught(OpKind::Write, ino, || call(fs)) {
        Err(fault) if may_hold && fault.may_pass() => Ok(Written::NotYet { fault, since }),
        result => {
            // A refused order to `control` loses no data: who unmounts asks whether any write was refused.
            let is_failure = result.is_err() && !FREE_INOS.contains(&ino.0);
            fs.ops().record(OpKind::Write, world.elapsed().saturating_sub(since), is_failure);
            let answered = result.map_err(|fault| Errno::from_i32(fs.answer(OpKind::Write, ino, &fault)));
            answered.map(|()| Written::Now)
        }
    }
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

    /// Counts a write that was held as answered. Until then it counts as under way: whoever unmounts waits for those.
    pub(super) fn end_held(&self, held: Duration, is_refused: bool) {
        self.0.ops().record(OpKind::Write, held, is_refused);
    }

    /// What the kernel's cache handed over and the vault does not have.
    pub(super) fn unwritten(&self) -> &Unwritten {
        &self.0.vault().stats().unwritten
    }

    /// Counts bytes of the kernel's cache that were refused after they had been held.
    pub(super) fn count_refused(&self, bytes: u64) {
        self.0.vault().stats().refused_cached_bytes.add(bytes);
    }

    /// Adds a line to the error list, and logs it, for each file of which held bytes were refused. Finding the paths
    /// takes a pass over all names.
    pub(super) fn report_refused(&self, files: &[(Ino, u64)]) {
        let vault = self.0.vault();
        for file in fs::with_paths(vault, files) {
            let text = format!(
                "{file} after they had been held for the deadline, since there was no room or the backing directory failed: \
                 the file lacks them. Its fsync says so; write them again."
            );
            vault.stats().error(vault.world().now(), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::{Backing, MemoryBacking};
    use crate::base::secret::Passphrase;
    use crate::base::world::{RealWorld, World};
    use crate::fs::FsOptions;
    use crate::seal::Unlock;
    use crate::vault::{CreateOptions, OpenOptions, VaultFault, create, open};

    fn mounted() -> Arc<FileSystem> {
        let (disk, world) = (Arc::new(MemoryBacking::default()) as Arc<dyn Backing>, Arc::new(RealWorld::default()));
        let (unlock, world) = (Unlock::KeyFile(Passphrase(vec![7; 64])), world as Arc<dyn World>);
        create(&disk, &unlock, &CreateOptions::default(), &world).unwrap();
        let vault = open(disk, &unlock, &OpenOptions::default(), world).unwrap();
        Arc::new(FileSystem::new(vault, FsOptions::default()).unwrap())
    }

    #[test]
    fn a_held_write_is_under_way_until_its_end_and_counts_once() {
        let fs = mounted();
        let counts = || {
            let stat = fs.ops().of(OpKind::Write);
            (stat.under_way(), stat.latency.snapshot().count(), stat.failures.get())
        };
        let full = |_: &FileSystem| Err(FsFault::Vault(VaultFault::BackingFull));
        let held = run_write(&fs, ROOT_INO, true, full);
        let Ok(Written::NotYet { since, .. }) = held else { panic!("it is to be held") };
        assert_eq!(counts(), (1, 0, 0));
        let asker = Asker(Arc::clone(&fs));
        asker.end_held(asker.elapsed().saturating_sub(since), false);
        assert_eq!(counts(), (0, 1, 0));
        assert!(run_write(&fs, ROOT_INO, false, full).is_err(), "a program's own write is told");
        assert_eq!(counts(), (0, 2, 1));
        fs.vault().close().unwrap();
    }
}
