//! A chunk: data on its way to the disk, and where the log put it.
//!
//! Promise: its bytes do not change. Called by: `layer`, `vault` (workers, log, failover). Takes: its own lock. Cannot fail.

use super::Pool;
use crate::base::choice::Compression;
use crate::base::id::Ino;
use crate::base::lock::Held;
use crate::base::sync::Mutex;
use crate::format::extent::Run;

/// Data on its way to the disk: it does not change any more.
pub struct Chunk {
    /// The file.
    pub ino: Ino,
    /// Offset of the first byte.
    pub offset_bytes: u64,
    /// The file's own choice, if it has one.
    pub compression: Option<Compression>,
    data: Vec<u8>,
    pool: Pool,
    placed: Mutex<Placement>,
}

/// What a chunk has of its file.
#[derive(Clone, Copy)]
pub(super) struct Of {
    pub ino: Ino,
    pub compression: Option<Compression>,
}

/// Where a chunk is in the log.
enum Placement {
    /// With the workers, or on its way to the log.
    OnItsWay,
    /// In the log.
    At(Run),
    /// It was in a segment that failed, or on its way there.
    Lost,
}

impl Chunk {
    /// One that is on its way.
    pub(super) fn new(of: Of, offset_bytes: u64, data: Vec<u8>, pool: &Pool) -> Chunk {
        let Of { ino, compression } = of;
        Chunk { ino, offset_bytes, compression, data, pool: pool.clone(), placed: Mutex::new(Placement::OnItsWay) }
    }
    /// One of bytes that are at rest already, to be sealed again for the same address.
    #[must_use]
    pub fn again(ino: Ino, offset_bytes: u64, data: Vec<u8>, compression: Compression, pool: &Pool) -> Chunk {
        Chunk::new(Of { ino, compression: Some(compression) }, offset_bytes, data, pool)
    }
    /// The bytes.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }
    /// Says where the log put it.
    pub fn place(&self, run: Run) {
        let before = std::mem::replace(&mut *self.placed.held(), Placement::At(run));
        debug_assert!(matches!(before, Placement::OnItsWay), "only what is on its way arrives");
    }
    /// Where the log put it.
    #[must_use]
    pub fn placed(&self) -> Option<Run> {
        match &*self.placed.held() {
            Placement::At(run) => Some(run.clone()),
            Placement::OnItsWay | Placement::Lost => None,
        }
    }
    /// It did not arrive, or where it arrived has failed.
    pub fn lose(&self) {
        *self.placed.held() = Placement::Lost;
    }
    /// Sends it on its way again, if it is not on its way already; says whether it is to be sent.
    pub fn send_again(&self) -> bool {
        let mut placed = self.placed.held();
        let gone = !matches!(*placed, Placement::OnItsWay);
        *placed = Placement::OnItsWay;
        gone
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.data));
    }
}
