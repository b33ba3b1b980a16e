//! STUB of the vault's public face, replaced on main as the real thing lands. Signatures are final.
use crate::base::id::Ino;
use crate::base::world::World;
use std::sync::Arc;
pub mod fault;
pub mod stats;
pub use fault::VaultFault;
pub use stats::Stats;

/// Data of one file that is not yet at rest. One per inode; `Vault::file` gives the same one while anyone holds it.
pub struct FileBuffer {
    pub ino: Ino,
}
/// Room in the byte budget, given back when dropped or taken over by `Op::write`.
pub struct Reservation {
    pub bytes: u64,
}
pub struct Vault {
    world: Arc<dyn World>,
    stats: Stats,
}
pub type SyncReply = Box<dyn FnOnce(Result<(), VaultFault>) + Send>;

/// What the vault holds against what it may hold.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Bytes of files that are not holes, buffered ones included (an upper bound while they are buffered).
    pub bytes: u64,
    pub quota_bytes: Option<u64>,
    /// Inodes in being, root included.
    pub inodes: u64,
    pub quota_inodes: Option<u64>,
    /// Of the backing filesystem, the reserve already taken off.
    pub backing_free_bytes: u64,
    pub backing_total_bytes: u64,
}
/// How full the buffers are.
#[derive(Debug, Clone, Copy)]
pub struct Gauges {
    pub budget_bytes: u64,
    pub dirty_bytes: u64,
    pub dirty_limit_bytes: u64,
    pub in_flight_bytes: u64,
    pub cache_bytes: u64,
    pub overlay_entries: u64,
    pub overlay_bytes: u64,
    pub waiting_writers: u64,
    pub sealer_queue: u64,
    pub log_queue: u64,
    pub verify_queue: u64,
    pub workers: u64,
    pub segments: u64,
    pub epoch: u64,
    pub generation: u64,
    pub commit_seq: u64,
}
/// What is in force, for `/.storage/config` and `version` (strings ready to print).
pub type Settings = Vec<(&'static str, String)>;

impl Vault {
    pub fn world(&self) -> &dyn World {
        &*self.world
    }
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
    /// One word: init ready writing flushing verifying backup recovering error closed.
    pub fn state(&self) -> &'static str {
        unimplemented!()
    }
    /// Bytes acknowledged to writers and not yet safe.
    pub fn pending_bytes(&self) -> u64 {
        unimplemented!()
    }
    pub fn usage(&self) -> Result<Usage, VaultFault> {
        unimplemented!()
    }
    pub fn gauges(&self) -> Gauges {
        unimplemented!()
    }
    pub fn settings(&self) -> Settings {
        unimplemented!()
    }
    /// Value of a key as of now.
    pub fn get(&self, _key: &[u8]) -> Result<Option<Vec<u8>>, VaultFault> {
        unimplemented!()
    }
    /// Up to `limit` entries whose keys begin with `prefix` and are >= `from`, in order.
    pub fn scan(&self, _prefix: &[u8], _from: &[u8], _limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>, VaultFault> {
        unimplemented!()
    }
    pub fn next_ino(&self) -> Ino {
        unimplemented!()
    }
    pub fn next_cookie(&self) -> u64 {
        unimplemented!()
    }
    /// Refuses (QuotaInodes, BackingFull, ReadOnly, Failed, Closed) if `inodes` more inodes may not be made now. Call before `begin`.
    pub fn admit(&self, _inodes: u64) -> Result<(), VaultFault> {
        unimplemented!()
    }
    /// Room for `bytes` of a write to `file` at `offset`: waits while the budget is used up (call with NO lock held), refuses over quota or when the backing is full.
    pub fn reserve(&self, _file: &FileBuffer, _offset: u64, _bytes: u64) -> Result<Reservation, VaultFault> {
        unimplemented!()
    }
    pub fn file(&self, _ino: Ino) -> Arc<FileBuffer> {
        unimplemented!()
    }
    /// Begins an operation: all that is done to it becomes part of one batch, so that a crash shows all of it or nothing.
    /// Memory only between `begin` and `commit`: no reads of the index, no waiting, no second `begin` on the same thread.
    pub fn begin(&self) -> Op<'_> {
        unimplemented!()
    }
    /// Appends `len` bytes from `offset` to `out`; holes are zeros; the caller has clipped to the file's size.
    pub fn read(
        &self,
        _file: &Arc<FileBuffer>,
        _offset: u64,
        _len: usize,
        _out: &mut Vec<u8>,
    ) -> Result<(), VaultFault> {
        unimplemented!()
    }
    /// Bytes of the file that are not holes (buffered ones counted), for st_blocks.
    pub fn allocated(&self, _file: &FileBuffer) -> Result<u64, VaultFault> {
        unimplemented!()
    }
    /// Makes everything acknowledged before this call durable and verified; `done` runs on another thread (or at once when nothing is pending).
    pub fn sync(&self, _done: SyncReply) {
        unimplemented!()
    }
    /// The same, waiting.
    pub fn sync_wait(&self) -> Result<(), VaultFault> {
        unimplemented!()
    }
    /// Starts a checkpoint, for `control`.
    pub fn checkpoint(&self) -> Result<(), VaultFault> {
        unimplemented!()
    }
}
/// One operation. Dropping it without `commit` is a bug in the caller (what `write` and `punch` did stays).
pub struct Op<'a> {
    _v: &'a Vault,
}
impl Op<'_> {
    pub fn put(&mut self, _key: Vec<u8>, _value: Vec<u8>) {
        unimplemented!()
    }
    pub fn delete(&mut self, _key: Vec<u8>) {
        unimplemented!()
    }
    /// Copies data into the file's buffers.
    pub fn write(&mut self, _file: &Arc<FileBuffer>, _offset: u64, _data: &[u8], _room: Reservation) {
        unimplemented!()
    }
    /// Makes [from, to) a hole; `u64::MAX` for all that follows. On the last unlink: punch(0, MAX).
    pub fn punch(&mut self, _file: &Arc<FileBuffer>, _from: u64, _to: u64) {
        unimplemented!()
    }
    /// Counts inodes made (+) or removed (-).
    pub fn inodes(&mut self, _delta: i64) {
        unimplemented!()
    }
    pub fn commit(self) {
        unimplemented!()
    }
}
