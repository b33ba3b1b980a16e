//! Gives a vault another master key while it is at work, and forgets the old ones when nothing is under them any more.
//!
//! Promise: that of `rekey`. At every moment, and after a power cut at any of them, the vault opens with the old slots or with the new
//! ones, as a whole, and holds what it held; once `take_key` has returned, nothing is written any more that the old key opens. What lies
//! under it stays readable; `Segments` tells which segments that is. After an error of the disk the vault goes on, under either key.
//! Why it holds: the order is that of `rekey`, between two checkpoints, when nothing writes to the table or a root: the index under
//! the new key, one root of after, the header, then both roots, then the pins. Until the header is in both files everything is as
//! it was, and the old header is written again before any root is. From then on the new key is in force: the log leaves its
//! segment, and the answer waits for a commit in the next one.
//! The key comes sealed under the old one, in an order; whoever could open it there could read everything anyway.
//! Called by: `fs::storage` (an order), `checkpoint` (on the housekeeper's thread), and whoever has moved data out of the last
//! segment under an old key. Takes: the header's lock, then the root's. On failure: a `VaultFault`.

use super::checkpoint::ToHousekeeper;
use super::handover::{InForce, needs_backing, text_of};
use super::open::index_path;
use super::recover::list_segments;
use super::rekey::{remove_other_indexes, snapshots_under_old_keys, without_old_keys};
use super::shared::Shared;
use super::{HeaderRefused, Vault, VaultFault, root};
use crate::base::id::{Generation, KeyNumber, SegmentId};
use crate::base::lock::Held;
use crate::index::RedbTable;
use crate::seal::{Header, MasterKey, NEXT_KEY_BYTES, OLD_KEYS_MAX, VaultKeys, header_mark, open_next_key};
use crossbeam_channel::Sender;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// Checkpoints after which the log has surely gone on in another segment: the first, unless much was on its way.
const ROUNDS_MAX: u32 = 100;

/// Another master key, to be put in force.
pub struct NewKey {
    sealed: [u8; NEXT_KEY_BYTES],
    text: Vec<u8>,
    /// Told the segment that the log leaves.
    reply: Sender<Result<SegmentId, VaultFault>>,
}

impl Vault {
    /// Puts a header with another master key in the place of the one in force. `order` is the key, sealed under the one in force,
    /// and the text of the header.
    pub fn take_key(&self, order: &[u8]) -> Result<(), VaultFault> {
        let s = &self.shared;
        self.admitted()?;
        let parts = order.split_first_chunk::<NEXT_KEY_BYTES>();
        let (sealed, text) = parts.ok_or(VaultFault::Header(HeaderRefused::Malformed))?;
        let (reply, told) = crossbeam_channel::bounded(1);
        let house = self.running.held().as_ref().map(|running| running.house_in.clone());
        let next = NewKey { sealed: *sealed, text: text.to_vec(), reply };
        // Where it has ended, or ends before it comes to this, the other end is gone.
        let sent = house.is_some_and(|house| house.send(ToHousekeeper::NewKey(Box::new(next))).is_ok());
        let left = match &s.stepper {
            _ if !sent => return Err(VaultFault::Closed),
            None => told.recv().unwrap_or(Err(VaultFault::Closed))?,
            Some(_) => loop {
                match told.try_recv() {
                    Ok(answer) => break answer?,
                    Err(_) => s.pause(Duration::from_millis(10)),
                }
            },
        };
        // The new key is in force. Now what is acknowledged is under it, too.
        for _ in 0..ROUNDS_MAX {
            self.checkpoint()?;
            if s.newest_begun.load(SeqCst) > left.0 {
                return Ok(());
            }
        }
        Err(VaultFault::Unfinished("the log did not go on under the new key".into()))
    }

    /// Whether segments may be under old keys.
    pub fn has_old_keys(&self) -> bool {
        self.shared.segments.has_old_keys()
    }

    /// Forgets the old keys, if no segment and no snapshot is under one any more; says whether there are none now. To be called when the last such
    /// segment is gone, and a checkpoint covers all that was moved out of it.
    pub fn forget_old_keys(&self) -> Result<bool, VaultFault> {
        self.admitted()?;
        forget_old_keys(&self.shared)
    }
}

/// The same, asked from within.
pub(super) fn forget_old_keys(s: &Shared) -> Result<bool, VaultFault> {
    let mut in_force = s.header.held();
    s.progress.check()?;
    if s.closing.load(SeqCst) {
        return Err(VaultFault::Closed);
    }
    needs_backing(s)?;
    if !s.segments.has_old_keys() {
        return Ok(true);
    }
    if !snapshots_under_old_keys(&*s.backing, s.segments.keys().number())?.is_empty() {
        return Ok(false);
    }
    for id in list_segments(&*s.segments.everywhere)? {
        if s.segments.is_under_old_key(id)? {
            return Ok(false);
        }
    }
    in_force.restore(s)?;
    let made = without_old_keys(in_force.header(), &s.segments.keys());
    let (next, keys) = made.map_err(|_| VaultFault::Header(HeaderRefused::Malformed))?;
    let text = text_of(&next, keys.current())?;
    in_force.store_next(s, &text, false)?;
    s.pins.go_on_under(&keys);
    s.segments.keyring.go_on_under(keys);
    in_force.put(s, next, &text)?;
    Ok(true)
}

impl NewKey {
    /// Goes over to it. Between two checkpoints: the caller is who stores them.
    pub fn put_in_force(self, shared: &Shared) {
        let done = self.go_over(shared);
        let was_refused = matches!(done, Err(VaultFault::Header(_) | VaultFault::Closed));
        if done.is_err() && !was_refused && shared.header.held().is_shown() {
            // One of two indexes is nobody's.
            let in_force = shared.root.held().index_file;
            if let Err(e) = remove_other_indexes(&*shared.backing, in_force) {
                log::warn!("an index file that is of no use stays: {e}");
            }
        }
        // Whoever asked may have been told that the vault is closing.
        let _ = self.reply.send(done);
    }

    fn go_over(&self, s: &Shared) -> Result<SegmentId, VaultFault> {
        let mut in_force = s.header.held();
        s.progress.check()?;
        if s.closing.load(SeqCst) {
            return Err(VaultFault::Closed);
        }
        needs_backing(s)?;
        if s.away.load(SeqCst) || !s.places.away().is_empty() {
            return Err(VaultFault::Header(HeaderRefused::NotNow("part of the vault is in the emergency directory")));
        }
        in_force.restore(s)?;
        let old = s.segments.keys();
        let (next, keys) = self.judge(&in_force, &old).map_err(VaultFault::Header)?;
        let text = text_of(&next, keys.current())?;
        let (backing, vault) = (&s.backing, s.segments.vault);
        let mut after = s.root.held().clone();
        // Of an earlier attempt, perhaps.
        remove_other_indexes(&**backing, after.index_file)?;
        after.index_file += 1;
        let key = keys.current().pages(vault, "index", &[0; 16]);
        let (path, world) = (index_path(after.index_file), Arc::clone(&s.world));
        let table = RedbTable::create(backing, &path, key, world, s.shares.index_cache_bytes)?;
        let moved = s.index.begin_move(Box::new(table))?;
        after.generation = Generation(after.generation.0 + 1);
        after.header = Some(header_mark(&next, keys.current()));
        root::stage(&**backing, (&old, vault), &after, &keys, &*s.world)?;
        // The moment: before, a crash leaves the vault under the old key, after it under the new one.
        in_force.store_next(s, &text, true)?;
        moved.finish();
        s.pins.go_on_under(&keys);
        s.segments.keyring.go_on_under(keys);
        let index_file = after.index_file;
        *s.root.held() = after;
        let left = s.cursor.leave_segment();
        in_force.put(s, next, &text)?;
        remove_other_indexes(&**backing, index_file)?;
        Ok(left)
    }

    /// The header and its keys, if it is the next one, under the next key, and keeps all keys of before.
    fn judge(&self, in_force: &InForce, old: &VaultKeys) -> Result<(Header, VaultKeys), HeaderRefused> {
        let (now, claimed) = (in_force.header(), in_force.claimed(&self.text)?);
        let master = open_next_key(&claimed, old.current(), &self.sealed).map_err(|_| HeaderRefused::OtherKey)?;
        let next = in_force.next(&self.text, &master)?;
        let but_keys = |header: &Header| Header {
            revision: 0,
            slots: Vec::new(),
            key: KeyNumber(0),
            old_keys: Vec::new(),
            ..header.clone()
        };
        let keys = VaultKeys::of(&next, &master).map_err(|_| HeaderRefused::OtherKey)?;
        let known: Vec<_> = old.old().chain([(old.number(), old.current())]).collect();
        let same = |(a, b): ((KeyNumber, &MasterKey), (KeyNumber, &MasterKey))| a.0 == b.0 && a.1.is(b.1);
        let keeps_all = keys.old().count() == known.len() && keys.old().zip(known).all(same);
        let is_next = Some(next.key.0) == now.key.0.checked_add(1) && keys.old().count() <= OLD_KEYS_MAX;
        match keeps_all && is_next && !master.is(old.current()) && but_keys(&next) == but_keys(now) {
            true => Ok((next, keys)),
            false => Err(HeaderRefused::MoreThanSlots),
        }
    }
}
