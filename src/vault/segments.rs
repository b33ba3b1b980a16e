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
use std::collections::{BTreeSet, HashMap};
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

impl OpenSegment {
    /// Whether the segment's name in `dir` still leads to this file: nobody has removed it or put another in its place.
    /// Without `by_path` only the number of the file's names is asked, which takes a microsecond. A directory that does
    /// not answer proves nothing.
    pub fn keeps_name(&self, dir: impl FnOnce() -> io::Result<Arc<dyn Backing>>, by_path: bool) -> bool {
        let has_links = self.file.links().map_or(true, |links| links > 0);
        if has_links && !by_path {
            return true;
        }
        match dir().and_then(|dir| dir.open(&path(self.context.id), Open::Read, Cache::Buffered)) {
            Ok(there) => match (there.identity(), self.file.identity()) {
                (Ok(Some(there)), Ok(Some(ours))) => there == ours,
                _ => has_links,
            },
            Err(e) => has_links && e.kind() != io::ErrorKind::NotFound,
        }
    }
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
    names: Mutex<Names>,
}

/// Which segments should have a name.
#[derive(Default)]
struct Names {
    /// Begun since the mount, and not removed by the vault.
    begun: BTreeSet<SegmentId>,
    /// There when the vault was opened.
    present_before: BTreeSet<SegmentId>,
    /// Removed by another program since, and not written again.
    lost: BTreeSet<SegmentId>,
    /// Found by the flusher to have lost their names.
    suspects: BTreeSet<SegmentId>,
    /// Replaced by another program, and not written again.
    replaced: BTreeSet<SegmentId>,
}

impl Segments {
    /// An empty table.
    pub fn new(everywhere: Arc<dyn Backing>, keyring: Arc<Keyring>, suite: SuiteId, vault: VaultId) -> Self {
        let (open, written, names) = (Mutex::default(), Mutex::default(), Mutex::default());
        Segments { everywhere, keyring, suite, vault, open, written, names }
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
        self.names.held().begun.insert(c.id);
        self.add(segment);
    }

    /// Epoch and salt of a segment begun since the mount.
    pub fn written(&self, id: SegmentId) -> Option<SegmentInfo> {
        self.written.held().get(&id).copied()
    }

    /// A segment that is open already.
    pub fn known(&self, id: SegmentId) -> Option<Arc<OpenSegment>> {
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

    /// Replaces the file of an open segment by another with the same bytes.
    pub fn go_over_to(&self, segment: &OpenSegment, file: Arc<dyn BackingFile>) {
        let context = Arc::clone(&segment.context);
        self.open.held().insert(context.id, Arc::new(OpenSegment { context, file }));
    }

    /// Forgets an open segment: the next reader opens it where it lies then.
    pub fn forget(&self, id: SegmentId) {
        self.open.held().remove(&id);
    }

    /// Forgets a segment whose file the vault is about to remove: nobody shall look for it.
    pub fn forget_removed(&self, id: SegmentId) {
        self.names.held().begun.remove(&id);
        self.forget(id);
    }

    /// Segments begun since the mount that the vault has not removed.
    pub fn begun(&self) -> BTreeSet<SegmentId> {
        self.names.held().begun.clone()
    }

    /// Takes note that the name of a segment does not lead to its file.
    pub fn suspect(&self, id: SegmentId) {
        self.names.held().suspects.insert(id);
    }

    /// Gives the segments that were suspected since the last call, as far as the vault has not removed them itself.
    pub fn take_suspects(&self) -> BTreeSet<SegmentId> {
        let mut names = self.names.held();
        let suspects = std::mem::take(&mut names.suspects);
        suspects.intersection(&names.begun).copied().collect()
    }

    /// Takes note that another file has the name of a segment, which could not be written again.
    pub fn lose_to_another(&self, id: SegmentId) {
        self.names.held().replaced.insert(id);
    }

    /// Whether another program has removed the file of a segment that is open, or may have.
    pub fn needs_look(&self) -> bool {
        if !self.names.held().suspects.is_empty() {
            return true;
        }
        let open: Vec<_> = self.open.held().values().cloned().collect();
        open.iter().any(|segment| segment.file.links().is_ok_and(|links| links == 0))
    }

    /// Sets which segments were there when the vault was opened.
    pub fn set_present_before(&self, present: BTreeSet<SegmentId>) {
        self.names.held().present_before = present;
    }

    /// Takes note that a segment was removed by another program, and could not be written again.
    pub fn lose(&self, id: SegmentId) {
        self.names.held().lost.insert(id);
    }

    /// Keeps only those lost segments that are still absent.
    pub fn keep_lost(&self, is_absent: impl Fn(SegmentId) -> bool) {
        self.names.held().lost.retain(|id| is_absent(*id));
    }

    /// Whether the absence of a segment was reported before, or it was not there either when the vault was opened.
    pub fn is_known_absent(&self, id: SegmentId) -> bool {
        let names = self.names.held();
        names.lost.contains(&id) || !names.present_before.contains(&id) && !names.begun.contains(&id)
    }

    /// Segments that another program has removed since the mount, and whose data is lost.
    pub fn lost(&self) -> Vec<SegmentId> {
        let names = self.names.held();
        names.lost.union(&names.replaced).copied().collect()
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
