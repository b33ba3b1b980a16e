//! Gives a vault that nobody has open a new master key, and seals everything anew that lies under the old one.
//!
//! Promise: at every moment, and after a power cut at any of them, the vault opens with the old slots or with the new ones, as a
//! whole, and holds what it held. Once `begin` has returned, nothing is written any more that the old key opens; once `run` says
//! that it is finished, nothing that lies in the vault opens under it, and a header of before is refused.
//! Why it holds: a root counts only under the key in force. So the root of after is staged in one file while the other holds the
//! one of before; then the header changes, each file in one step; then both roots follow, then the pins. Old keys stay in the
//! header, wrapped under the new one, until no segment is under them (`decisions/rekey-seals-segments-anew-in-place.md`).
//! Called by: `cli::rekey`, after the vault was opened and closed, so that a checkpoint covers all of it. Takes: the vault's lock.
//! On failure: a `RekeyFault`; the vault opens as before, and what was begun goes on with the next call.

use super::alive::{self, Alive};
use super::apply::known_segment;
use super::open::{NotCovered, covered, index_path, keys_learnt};
use super::pin::Pins;
use super::place::{open_if_there, remove_if_there};
use super::recover::{last_commits, list_segments};
use super::reseal::{Resealed, Wanted, reseal};
use super::reseal_snapshots::Sealing;
use super::scrub::Hurt;
use super::slots::Judged;
use super::writer::is_full;
use super::{Locked, OpenFault, VaultFault, header_file, paths, root, snapshot};
use crate::backing::{Backing, Cache, Open};
use crate::base::choice::SuiteId;
use crate::base::id::{CommitSeq, Generation, KeyNumber, SegmentId, Slot, VaultId};
use crate::base::world::World;
use crate::format::FORMAT_VERSION;
use crate::format::key;
use crate::format::root::Root;
use crate::format::segment::SegmentInfo;
use crate::index::{Index, RedbTable, copy};
use crate::seal::{
    Header, HeaderFault, KeySlot, MasterKey, OLD_KEYS_MAX, RecoveryKey, SlotKind, Unlock, VaultKeys, fitting_slots,
    header_mark, replace_slot, wrap_old_key, write_header,
};
use crate::segment::{Shapes, Unreadable, Walk, first_header, path};
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;

/// Memory for the pages of an index that is only copied and looked through.
const INDEX_CACHE_BYTES: usize = 32 << 20;
/// The index is told of segments sealed anew when they have so many bytes: a transaction for each small one would take longer
/// than the sealing, and what a crash leaves untold is learnt when the vault is opened.
const TELL_BYTES: u64 = 64 << 20;
/// Room beside a segment for what else is written meanwhile.
const ROOM_BESIDE_BYTES: u64 = 1 << 20;

/// Why a vault has no new key, or not everything is under it.
#[derive(Debug)]
pub enum RekeyFault {
    /// The vault did not open, or its disk failed.
    Open(OpenFault),
    /// What was asked for cannot be; one sentence says why.
    Unfit(String),
    /// There is no room beside a segment.
    NoRoom {
        /// Bytes that must be free.
        need_bytes: u64,
    },
}

impl fmt::Display for RekeyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RekeyFault::Open(fault) => write!(f, "{fault}"),
            RekeyFault::Unfit(why) => f.write_str(why),
            RekeyFault::NoRoom { need_bytes } => write!(
                f,
                "{need_bytes} bytes must be free in the backing directory, for a segment is sealed anew beside the old one"
            ),
        }
    }
}

impl std::error::Error for RekeyFault {}

impl<F: Into<OpenFault>> From<F> for RekeyFault {
    fn from(fault: F) -> Self {
        RekeyFault::Open(fault.into())
    }
}

/// Which slots a new key is put into.
pub struct Plan {
    /// Those whose secret is known, with it.
    stay: Vec<(u32, Unlock)>,
    /// The one that gets a recovery key of its own.
    recovery: Option<u32>,
    /// Those that go.
    gone: Vec<KeySlot>,
}

impl Plan {
    /// The slots that are not in the new header.
    pub fn gone(&self) -> &[KeySlot] {
        &self.gone
    }

    /// Whether a recovery key is to be drawn.
    pub fn wants_recovery(&self) -> bool {
        self.recovery.is_some()
    }

    /// Which slots of a header can stay: those that one of the secrets fits, the first of which must fit one; and with
    /// `recovery` one for a recovery key, if there is any.
    pub fn of(header: &Header, secrets: &[Unlock], recovery: bool) -> Result<Plan, RekeyFault> {
        let mut stay: Vec<(u32, Unlock)> = Vec::new();
        for (n, secret) in secrets.iter().enumerate() {
            let fitting = match fitting_slots(header, secret) {
                Err(HeaderFault::WrongKey) if n > 0 => {
                    let why = format!("what was given beside fits no key slot ({n} of {})", secrets.len() - 1);
                    return Err(RekeyFault::Unfit(why));
                }
                Ok(none) if none.is_empty() => return Err(HeaderFault::WrongKey.into()),
                other => other?,
            };
            for id in fitting {
                if stay.iter().all(|(known, _)| *known != id) {
                    stay.push((id, secret.clone()));
                }
            }
        }
        if stay.is_empty() {
            return Err(RekeyFault::Unfit("nothing would open the vault any more".to_owned()));
        }
        let (kept, others): (Vec<_>, Vec<_>) =
            header.slots.iter().partition(|slot| stay.iter().any(|(id, _)| *id == slot.id));
        let is_recovery = |slot: &&&KeySlot| slot.kind == SlotKind::RecoveryKey;
        // One that was shown keeps opening the vault; another one would only be one more to keep.
        let none_kept = kept.iter().find(is_recovery).is_none();
        let recovery = others.iter().find(is_recovery).filter(|_| recovery && none_kept).map(|slot| slot.id);
        let gone = others.into_iter().filter(|slot| Some(slot.id) != recovery).cloned().collect();
        Ok(Plan { stay, recovery, gone })
    }

    /// The header that this makes of the one in force, with a new master key, and that key. The old one is in it, wrapped.
    pub fn next(
        &self,
        header: &Header,
        keys: &VaultKeys,
        (recovery, argon2): (Option<&RecoveryKey>, Option<(u32, u32, u32)>),
        world: &dyn World,
    ) -> Result<(Header, MasterKey), RekeyFault> {
        if keys.old().count() >= OLD_KEYS_MAX {
            let why =
                format!("segments are still under {OLD_KEYS_MAX} old keys: let an earlier rekey come to its end first");
            return Err(RekeyFault::Unfit(why));
        }
        let Some(number) = header.key.0.checked_add(1).map(KeyNumber) else {
            return Err(RekeyFault::Unfit("the numbers of master keys are used up".to_owned()));
        };
        let master = MasterKey::generate(world);
        let mut next = header.clone();
        (next.key, next.revision) = (number, next.revision + 1);
        let new_recovery = self.recovery.zip(recovery).map(|(id, key)| (id, Unlock::Recovery(key.clone())));
        let secrets: Vec<&(u32, Unlock)> = self.stay.iter().chain(&new_recovery).collect();
        next.slots.retain(|slot| secrets.iter().any(|(id, _)| *id == slot.id));
        for (id, unlock) in secrets {
            let Some(slot) = next.slots.iter().find(|slot| slot.id == *id) else { continue };
            let cost = match slot.kind {
                SlotKind::Passphrase { memory_kib, passes, lanes } => argon2.or(Some((memory_kib, passes, lanes))),
                SlotKind::KeyFile | SlotKind::RecoveryKey => None,
            };
            let label = slot.label.clone();
            replace_slot(world, &mut next, &master, *id, unlock, &label, cost)?;
        }
        let before = keys.old().chain([(keys.number(), keys.current())]);
        next.old_keys = before.map(|(n, old)| wrap_old_key(world, &next, &master, n, old)).collect();
        Ok((next, master))
    }
}

/// What became of the segments under old keys.
#[derive(Debug, Default)]
pub struct RekeyReport {
    /// Segments that were sealed anew now.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Segments that stay under an old key, each with the reason.
    pub stay: Vec<(SegmentId, String)>,
    /// Ranges of files that do not read, and keep them there; or that were left out, if that was asked for.
    pub hurt: Vec<Hurt>,
    /// Frames of the log that were left out because that was asked for.
    pub log_left_out: u64,
    /// Whether the old keys are gone.
    pub finished: bool,
}

/// A vault that gets a new key.
pub struct Rekey {
    backing: Arc<dyn Backing>,
    _lock: Box<dyn Send + Sync>,
    header: Header,
    keys: VaultKeys,
    root: Root,
    pins: Pins,
    index: Index,
    world: Arc<dyn World>,
}

impl Locked {
    /// Opens a vault to give it a new key. It must have been closed in order: what follows is about what a checkpoint covers.
    pub fn rekey(self, unlock: &Unlock, world: Arc<dyn World>) -> Result<Rekey, RekeyFault> {
        let Judged { backing, lock, opened, root, pins } = self.judged(unlock)?;
        let unsettled = |why: &str| Err(RekeyFault::Unfit(format!("{why}: mount the vault and unmount it first")));
        if opened.header.format != FORMAT_VERSION || !root.clean || root.index_file == 0 {
            return unsettled("the vault was not closed in order");
        }
        let key = opened.master.pages(opened.header.vault, "index", &[0; 16]);
        let name = index_path(root.index_file);
        let table =
            RedbTable::open(&backing, &name, key, Arc::clone(&world), INDEX_CACHE_BYTES).map_err(VaultFault::from)?;
        let index = Index::new(Box::new(table));
        match covered(&index, &root) {
            Ok(Some(from)) if from.covered == root.covered => {}
            Err(NotCovered::Unread(fault)) => return Err(fault.into()),
            Err(NotCovered::Doubt(why)) => return unsettled(&format!("the index cannot be used ({why})")),
            Ok(_) | Err(NotCovered::Nothing) => return unsettled("the index is not the one that the root names"),
        }
        keys_learnt(&index, &backing, &opened.header, &opened.keys)?;
        clear_away(&*backing, root.index_file, root.covered.seq)?;
        let (header, keys) = (opened.header, opened.keys);
        Ok(Rekey { backing, _lock: lock, header, keys, root, pins, index, world })
    }
}

/// Removes what an earlier rekey was making when it was stopped, and the index under the old key, durably.
fn clear_away(backing: &dyn Backing, index_file: u64, newest: CommitSeq) -> io::Result<()> {
    for name in backing.list("segments")?.iter().filter(|name| name.ends_with(".new")) {
        remove_if_there(backing, &format!("segments/{name}"))?;
    }
    snapshot::make_ready(backing, newest)?;
    backing.sync_dir("segments")?;
    remove_other_indexes(backing, index_file)
}

/// Removes every index file but the one of this number, durably.
pub(super) fn remove_other_indexes(backing: &dyn Backing, index_file: u64) -> io::Result<()> {
    let own = index_path(index_file);
    for name in backing.list("index")?.iter().map(|name| format!("index/{name}")).filter(|name| *name != own) {
        remove_if_there(backing, &name)?;
    }
    backing.sync_dir("index")
}

impl Rekey {
    /// The header, authenticated.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Whether an earlier rekey has left segments to be sealed anew, or the old keys to be removed.
    pub fn is_unfinished(&self) -> bool {
        self.keys.old().next().is_some()
    }

    /// Which slots can stay: those that one of the secrets fits, and with `recovery` one for a recovery key, if there is any.
    pub fn plan(&self, secrets: &[Unlock], recovery: bool) -> Result<Plan, RekeyFault> {
        Plan::of(&self.header, secrets, recovery)
    }

    /// Gives the vault a new master key. Everything that is written from now on is under it; what lies there is still under
    /// the old one, which the header keeps for that. `recovery` is for the slot that the plan has for one.
    pub fn begin(
        &mut self,
        plan: &Plan,
        recovery: Option<&RecoveryKey>,
        argon2: Option<(u32, u32, u32)>,
    ) -> Result<(), RekeyFault> {
        let (next, master) = plan.next(&self.header, &self.keys, (recovery, argon2), &*self.world)?;
        self.go_over_to(next, &master)
    }

    /// Makes a header with another master key the one in force, and root, index and pins its own.
    fn go_over_to(&mut self, next: Header, master: &MasterKey) -> Result<(), RekeyFault> {
        let (keys, vault) = (VaultKeys::of(&next, master)?, next.vault);
        let text = write_header(&next, master)?;
        let mut root = self.root.clone();
        root.index_file += 1;
        root.header = Some(header_mark(&next, master));
        let index = self.copy_index(root.index_file, master)?;
        root.generation = Generation(root.generation.0 + 1);
        root::stage(&*self.backing, (&self.keys, vault), &root, &keys, &*self.world)?;
        header_file::store(&*self.backing, &text)?;
        root.generation = Generation(root.generation.0 + 1);
        root::write(&*self.backing, &root, &keys, vault, &*self.world)?;
        self.pins.go_on_under(&keys);
        self.pins.remember(&root);
        self.index.put_away();
        remove_other_indexes(&*self.backing, root.index_file)?;
        (self.header, self.keys, self.root, self.index) = (next, keys, root, index);
        Ok(())
    }

    /// The index under another key, in a file of its own: every entry is copied. Rebuilding it from the log would take as long
    /// as reading all metadata that was ever written, and would give up what `check --repair` had to set in place.
    fn copy_index(&self, number: u64, master: &MasterKey) -> Result<Index, RekeyFault> {
        let key = master.pages(self.header.vault, "index", &[0; 16]);
        let name = index_path(number);
        let table = RedbTable::create(&self.backing, &name, key, Arc::clone(&self.world), INDEX_CACHE_BYTES)
            .map_err(VaultFault::from)?;
        copy(|next, count| self.index.scan(&[], next, count), &table).map_err(VaultFault::from)?;
        Ok(Index::new(Box::new(table)))
    }

    /// Seals every segment anew that is under an old key; when there is none any more, removes the old keys. What is damaged
    /// stays as it is, and keeps its key there, unless `leave_out_damage` says that what does not open may go.
    /// `progress` is told bytes of bytes in all.
    pub fn run(&mut self, leave_out_damage: bool, progress: &dyn Fn(u64, u64)) -> Result<RekeyReport, RekeyFault> {
        let mut report = RekeyReport::default();
        let ids = list_segments(&*self.backing)?;
        let ends = last_commits(&self.backing, &self.keys, self.header.suite, self.header.vault, &ids)?;
        let mut todo = Vec::new();
        for (id, end) in ids.into_iter().zip(ends) {
            match look(&self.backing, &self.keys, (self.header.suite, self.header.vault), id)? {
                Found::Current => {}
                Found::Old { len_bytes } => todo.push((id, end.min(self.root.covered.seq), len_bytes)),
                Found::Unreadable(why) => report.stay.push((id, why)),
            }
        }
        let (total, mut done, mut untold) = (todo.iter().map(|(.., len)| len).sum(), 0, 0);
        let (mut alive, mut bad) = (Alive::default(), BTreeSet::new());
        for (id, last, len_bytes) in todo {
            progress(done, total);
            self.one(id, (last, len_bytes, leave_out_damage), &mut alive, &mut bad, &mut report)?;
            (done, untold) = (done + len_bytes, untold + len_bytes);
            if untold >= TELL_BYTES {
                self.tell_index()?;
                untold = 0;
            }
        }
        self.tell_index()?;
        progress(done, total);
        report.hurt = self.named(&bad)?;
        let from = Sealing {
            backing: &self.backing,
            header: &self.header,
            keys: &self.keys,
            index: &self.index,
            epoch: self.root.epoch,
            world: &*self.world,
        };
        from.seal_all()?;
        if report.stay.is_empty() && self.is_unfinished() {
            self.forget_old_keys()?;
        }
        report.finished = !self.is_unfinished();
        Ok(report)
    }

    /// Seals one segment anew, if it is whole.
    fn one(
        &self,
        id: SegmentId,
        (last, len_bytes, leave_out_damage): (CommitSeq, u64, bool),
        alive: &mut Alive,
        bad: &mut BTreeSet<(SegmentId, Slot)>,
        report: &mut RekeyReport,
    ) -> Result<(), RekeyFault> {
        let need_bytes = len_bytes + ROOM_BESIDE_BYTES;
        if self.backing.space()?.is_some_and(|space| space.free_bytes < need_bytes) {
            return Err(RekeyFault::NoRoom { need_bytes });
        }
        let live_bytes = known_segment(&self.index, id)?.map_or(0, |info| info.live_bytes);
        let wanted = Wanted { alive: alive.of(&self.index, id)?, live_bytes, last, leave_out_damage };
        let sealed = reseal(&*self.backing, (&self.header, &self.keys), id, &wanted, &*self.world);
        let hurt = match sealed {
            Err(e) if is_full(&e) => return Err(RekeyFault::NoRoom { need_bytes }),
            Err(e) => return Err(e.into()),
            Ok(Resealed::Done(info, hurt)) => {
                self.learn(id, info)?;
                (report.segments, report.bytes) = (report.segments + 1, report.bytes + len_bytes);
                report.log_left_out += hurt.log;
                hurt
            }
            Ok(Resealed::Stays(hurt)) => {
                let why = match (&hurt.unread, hurt.log) {
                    (Some(e), _) => format!("it cannot be read: {e}"),
                    _ if hurt.miscounted => {
                        "the index counts other data in it than it names: strongroom check says more".to_owned()
                    }
                    (None, 0) => "data of files in it does not open".to_owned(),
                    (None, n) => format!("{n} frames or groups of the log in it do not open"),
                };
                report.stay.push((id, why));
                hurt
            }
        };
        bad.extend(hurt.data.into_iter().map(|slot| (id, slot)));
        Ok(())
    }

    /// What the index says of a segment that was sealed anew, once it is told.
    fn learn(&self, id: SegmentId, info: SegmentInfo) -> Result<(), RekeyFault> {
        let name = key::segment(id);
        // One that held nothing but records is not in the index.
        let Some(known) = self.index.get(&name).map_err(VaultFault::from)? else { return Ok(()) };
        let SegmentInfo { data_bytes, live_bytes, .. } = SegmentInfo::decode(&known).map_err(VaultFault::from)?;
        self.index.change(vec![(name, Some(SegmentInfo { data_bytes, live_bytes, ..info }.encode()))]);
        Ok(())
    }

    fn tell_index(&self) -> Result<(), RekeyFault> {
        self.index.seal_derived();
        Ok(self.index.apply_sealed(&[]).map_err(VaultFault::from)?)
    }

    /// The ranges of files that some frames hold, each with a path.
    fn named(&self, bad: &BTreeSet<(SegmentId, Slot)>) -> Result<Vec<Hurt>, RekeyFault> {
        if bad.is_empty() {
            return Ok(Vec::new());
        }
        let ranges = alive::ranges(&self.index, bad)?;
        let paths = paths::of(&self.index, &ranges.iter().map(|(ino, ..)| *ino).collect())?;
        let hurt = |(ino, from_bytes, to_bytes)| {
            let path = paths.get(&ino).cloned();
            Hurt { ino, path, from_bytes, to_bytes, is_unread: false }
        };
        Ok(ranges.into_iter().map(hurt).collect())
    }

    /// Nothing is under them any more.
    fn forget_old_keys(&mut self) -> Result<(), RekeyFault> {
        let (next, keys) = without_old_keys(&self.header, &self.keys)?;
        header_file::store(&*self.backing, &write_header(&next, keys.current())?)?;
        self.root.generation = Generation(self.root.generation.0 + 1);
        self.root.header = Some(header_mark(&next, keys.current()));
        root::write(&*self.backing, &self.root, &keys, next.vault, &*self.world)?;
        self.pins.go_on_under(&keys);
        self.pins.remember(&self.root);
        (self.header, self.keys) = (next, keys);
        Ok(())
    }
}

impl Drop for Rekey {
    fn drop(&mut self) {
        // The database writes when it is dropped, and the lock goes before it.
        self.index.put_away();
    }
}

/// Which key a segment is under.
pub(super) fn look(
    backing: &Arc<dyn Backing>,
    keys: &VaultKeys,
    (suite, vault): (SuiteId, VaultId),
    id: SegmentId,
) -> io::Result<Found> {
    let file = backing.open(&path(id), Open::Read, Cache::Direct)?;
    let len_bytes = file.len()?;
    let mut walk = Walk::new(Arc::clone(&file), id, suite, vault);
    match walk.next(keys) {
        Err(Unreadable::Io(e)) => return Ok(Found::Unreadable(format!("it cannot be read: {e}"))),
        Ok(_) | Err(Unreadable::Damaged { .. }) => {}
    }
    match (walk.context(), walk.missing_key()) {
        (Some(context), _) if context.key_number == keys.number() => Ok(Found::Current),
        (Some(_), _) => Ok(Found::Old { len_bytes }),
        (None, Some(key)) => Ok(Found::Unreadable(format!("it is under key {key}, which the header does not have"))),
        (None, None) if is_blank(&*file)? => Ok(Found::Current),
        (None, None) => Ok(Found::Unreadable("no group in it can be read".to_owned())),
    }
}

/// The header without the keys of before, and the keys that it gives: nothing is under them any more.
pub(super) fn without_old_keys(header: &Header, keys: &VaultKeys) -> Result<(Header, VaultKeys), HeaderFault> {
    let next = Header { revision: header.revision + 1, old_keys: Vec::new(), ..header.clone() };
    let keys = VaultKeys::of(&next, keys.current())?;
    Ok((next, keys))
}

/// What is known of a segment.
pub(super) enum Found {
    /// The one in force, or it was prepared and never begun.
    Current,
    /// One of before.
    Old { len_bytes: u64 },
    /// Nobody can tell, and why.
    Unreadable(String),
}

/// Whether a file has nothing but zeros in its first block.
fn is_blank(file: &dyn crate::backing::BackingFile) -> io::Result<bool> {
    let mut block = crate::backing::AlignedBuf::with_capacity(crate::base::limits::BLOCK_BYTES);
    block.set_len(crate::base::limits::BLOCK_BYTES);
    let got = file.read_at(&mut block, 0)?;
    Ok(block[..got].iter().all(|byte| *byte == 0))
}

/// Segments that are under another key than the one in force, and their bytes with those of snapshots, as anybody can see without a
/// key.
pub fn under_old_keys(backing: &dyn Backing, current: KeyNumber) -> io::Result<(u64, u64)> {
    let (mut segments, mut bytes) = (0, 0);
    for id in list_segments(backing)? {
        let Some(file) = open_if_there(backing, &path(id))? else { continue };
        let first = match first_header(&*file, id)? {
            None => Shapes::new(Arc::clone(&file), id).next(|_, _| true)?.map(|group| group.header),
            found => found,
        };
        if first.is_some_and(|header| header.key != current) {
            (segments, bytes) = (segments + 1, bytes + file.len()?);
        }
    }
    bytes += snapshots_under_old_keys(backing, current)?.into_iter().sum::<u64>();
    Ok((segments, bytes))
}

/// The lengths of the snapshots that are under another key than the one in force.
pub(super) fn snapshots_under_old_keys(backing: &dyn Backing, current: KeyNumber) -> io::Result<Vec<u64>> {
    let mut lens = Vec::new();
    for (number, file) in snapshot::list_open(backing)? {
        let first = Shapes::of_snapshot(Arc::clone(&file), SegmentId(number.0)).next(|_, _| true)?;
        if first.is_some_and(|group| group.header.key != current) {
            lens.push(file.len()?);
        }
    }
    Ok(lens)
}
