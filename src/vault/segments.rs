//! The segments that are open: their keys and files.
//!
//! Promise: a segment is opened once and kept while it is used; at most `OPEN_MAX` are kept. Called by: `log` (which adds
//! the one it writes), `read`, `verifier`, `apply`. Takes: its own lock, and the disk only outside it.
//! On failure: the fault names the segment.

use super::VaultFault;
use super::rekey::{Found, look};
use crate::backing::{Backing, BackingFile, Cache, Open};
use crate::base::choice::SuiteId;
use crate::base::id::{SegmentId, VaultId};
use crate::base::lock::{Held, Shared as _};
use crate::format::segment::SegmentInfo;
use crate::seal::VaultKeys;
use crate::segment::{SegmentContext, path};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, RwLock};

/// Most segments kept open.
const OPEN_MAX: usize = 256;

/// A segment whose file is open.
pub struct OpenSegment {
    /// Its key and identity.
    pub context: Arc<SegmentContext>,
    /// Its file.
    pub file: Arc<dyn BackingFile>,
}

/// The master keys of the open vault. The one in force gives way to another when somebody asks for that (`new_key`).
pub struct Keyring(RwLock<Arc<VaultKeys>>);

impl Keyring {
    /// Those that the header gave.
    pub fn new(keys: VaultKeys) -> Keyring {
        Keyring(RwLock::new(Arc::new(keys)))
    }

    /// As they are now.
    pub fn keys(&self) -> Arc<VaultKeys> {
        Arc::clone(&self.0.shared())
    }

    /// From now on these: what is open is open, and what is opened or begun is under them. For who holds the header's lock.
    pub fn go_on_under(&self, keys: VaultKeys) {
        *self.0.alone() = Arc::new(keys);
    }
}

/// The table.
pub struct Segments {
    /// Both places as one: a segment is read wherever it lies.
    pub everywhere: Arc<dyn Backing>,
    pub keyring: Arc<Keyring>,
    pub suite: SuiteId,
    pub vault: VaultId,
    open: Mutex<HashMap<SegmentId, Arc<OpenSegment>>>,
    /// Segments begun since the mount: the index learns of one only when the first commit with data in it retires.
    written: Mutex<HashMap<SegmentId, SegmentInfo>>,
}

impl Segments {
    /// An empty table.
    pub fn new(everywhere: Arc<dyn Backing>, keyring: Arc<Keyring>, suite: SuiteId, vault: VaultId) -> Self {
        Segments { everywhere, keyring, suite, vault, open: Mutex::default(), written: Mutex::default() }
    }

    /// The master keys, as they are now.
    pub fn keys(&self) -> Arc<VaultKeys> {
        self.keyring.keys()
    }

    /// Whether segments may be under another key than the one in force.
    pub fn has_old_keys(&self) -> bool {
        self.keys().old().next().is_some()
    }

    /// Whether a segment is under another key than the one in force, or nobody can tell. One that was prepared is under none.
    pub fn is_under_old_key(&self, id: SegmentId) -> io::Result<bool> {
        let found = look(&self.everywhere, &self.keys(), (self.suite, self.vault), id)?;
        Ok(!matches!(found, Found::Current))
    }

    /// Takes in a segment that was just begun.
    pub fn begin(&self, segment: &Arc<OpenSegment>) {
        let c = &segment.context;
        self.written.held().insert(c.id, c.info());
        self.add(segment);
    }

    /// Epoch and salt of a segment begun since the mount.
    pub fn written(&self, id: SegmentId) -> Option<SegmentInfo> {
        self.written.held().get(&id).copied()
    }

    /// A segment that is open already.
    fn known(&self, id: SegmentId) -> Option<Arc<OpenSegment>> {
        self.open.held().get(&id).cloned()
    }

    /// A segment, opened for reading if need be with what the index knows of it.
    pub fn get(
        &self,
        id: SegmentId,
        info: impl FnOnce() -> Result<SegmentInfo, VaultFault>,
    ) -> Result<Arc<OpenSegment>, VaultFault> {
        if let Some(segment) = self.known(id) {
            return Ok(segment);
        }
        let info = info()?;
        let file = self.everywhere.open(&path(id), Open::Read, Cache::Direct)?;
        let context = SegmentContext::new(&self.keys(), self.suite, self.vault, id, &info)
            .ok_or(VaultFault::KeyMissing { segment: id, key: info.key })?;
        let segment = Arc::new(OpenSegment { context: Arc::new(context), file });
        self.add(&segment);
        Ok(segment)
    }

    /// Forgets an open segment: the next reader opens it where it lies then.
    pub fn forget(&self, id: SegmentId) {
        self.open.held().remove(&id);
    }

    /// Forgets every open segment: their directory was opened anew.
    pub fn forget_all(&self) {
        self.open.held().clear();
    }

    /// Adds a segment; if there are too many, forgets some that no one is using at the moment.
    fn add(&self, segment: &Arc<OpenSegment>) {
        let mut open = self.open.held();
        if open.len() >= OPEN_MAX {
            let mut spare = open.len() - OPEN_MAX / 2;
            open.retain(|_, s| {
                let keep = spare == 0 || Arc::strong_count(s) > 1;
                spare -= usize::from(!keep);
                keep
            });
        }
        open.entry(segment.context.id).or_insert_with(|| Arc::clone(segment));
    }
}
