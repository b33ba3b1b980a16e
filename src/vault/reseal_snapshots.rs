//! Seals the snapshots of the index anew under the key in force, each beside the old one and then in its place.
//!
//! Promise: a snapshot under the new key has the number and the entries of the one under the old key, and gets its name as any does:
//! once it was read back whole. When `seal_all` has returned, none is under an old key any more; one that does not hold goes, for it is
//! good for nothing. If none is left of those that were there, one is taken of the index.
//! Called by: `rekey`, after the segments. On failure: a `RekeyFault`; the old one is as it was.

use super::VaultFault;
use super::place::remove_if_there;
use super::rekey::RekeyFault;
use super::snapshot::{self, Making};
use crate::backing::{Backing, Cache, Open, Space};
use crate::base::id::{CommitSeq, Epoch};
use crate::base::world::World;
use crate::format::key;
use crate::format::segment::Covered;
use crate::index::Index;
use crate::seal::{Header, VaultKeys};
use crate::segment::{SNAPSHOTS, SnapshotReader, Unreadable, snapshot_path};
use std::io;
use std::sync::Arc;

/// Entries of the index that are looked up at a time.
const SCAN: usize = 64;
/// Room beside a snapshot for what else is written meanwhile.
const ROOM_BESIDE_BYTES: u64 = 1 << 20;

/// What it takes.
pub(super) struct Sealing<'a> {
    pub backing: &'a Arc<dyn Backing>,
    pub header: &'a Header,
    pub keys: &'a VaultKeys,
    pub index: &'a Index,
    pub epoch: Epoch,
    pub world: &'a dyn World,
}

impl Sealing<'_> {
    /// Seals every snapshot anew that is under an old key.
    pub(super) fn seal_all(&self) -> Result<(), RekeyFault> {
        let numbers = snapshot::list(&**self.backing)?;
        let mut left = 0;
        for number in &numbers {
            let name = snapshot_path(*number);
            match self.seal(*number)? {
                None => left += 1,
                Some(why) => {
                    log::warn!("{name} does not hold ({why}): it is removed");
                    remove_if_there(&**self.backing, &name)?;
                    self.backing.sync_dir(SNAPSHOTS)?;
                }
            }
        }
        if left > 0 || numbers.is_empty() {
            return Ok(());
        }
        let covered = self.index.get(&key::total("log")).map_err(VaultFault::from)?;
        let covered = Covered::decode(&covered.unwrap_or_default()).map_err(VaultFault::from)?;
        let mut making = self.begin(&covered)?;
        let mut next = Vec::new();
        loop {
            let page = self.index.scan(&[], &next, SCAN).map_err(VaultFault::from)?;
            let Some((last, _)) = page.last() else { break };
            next = [&last[..], &[0]].concat();
            page.iter().for_each(|(k, v)| making.add(k, v));
            making.write(&|_| Ok(()))?;
        }
        self.finish(making)
    }

    /// Seals one anew, if it is under an old key; why it could not be, if it does not hold.
    fn seal(&self, number: CommitSeq) -> Result<Option<String>, RekeyFault> {
        let file = self.backing.open(&snapshot_path(number), Open::Read, Cache::Direct)?;
        let need_bytes = file.len()? + ROOM_BESIDE_BYTES;
        let mut reader = SnapshotReader::new(file, number, self.header.suite, self.header.vault);
        let (mut making, mut gathered) = (None, Vec::new());
        loop {
            let read = reader.next(self.keys, &mut |k, v| gathered.push((k.to_vec(), v.to_vec())));
            let whole = match read {
                Ok(whole) => whole,
                Err(Unreadable::Io(e)) => {
                    // It may be as good as ever, so it is not removed; nor can it stay under a key that is to be forgotten.
                    let why = format!(
                        "{} could not be read: {e}; if that persists, remove the file and go on with rekey --resume",
                        snapshot_path(number)
                    );
                    return Err(io::Error::new(e.kind(), why).into());
                }
                Err(e) => return Ok(Some(e.to_string())),
            };
            let key = reader.walk().context().map(|context| context.key_number);
            let (Some(covered), Some(key)) = (reader.covered(), key) else { return Ok(Some("it is empty".to_owned())) };
            if key == self.keys.number() {
                return Ok(None);
            }
            let is_short = |space: Space| space.free_bytes < need_bytes;
            if making.is_none() && self.backing.space()?.is_some_and(is_short) {
                return Err(RekeyFault::NoRoom { need_bytes });
            }
            let mut going_on = match making.take() {
                Some(going_on) => going_on,
                None => self.begin(covered)?,
            };
            gathered.drain(..).for_each(|(k, v): (Vec<u8>, Vec<u8>)| going_on.add(&k, &v));
            going_on.write(&|_| Ok(()))?;
            if whole.is_some() {
                // Over the one under the old key, in one step.
                return self.finish(going_on).map(|()| None);
            }
            making = Some(going_on);
        }
    }

    fn begin(&self, covered: &Covered) -> Result<Making, RekeyFault> {
        let of = (self.header.suite, self.header.vault);
        Ok(Making::begin(self.backing, self.keys, of, self.epoch, covered, self.world)?)
    }

    fn finish(&self, mut making: Making) -> Result<(), RekeyFault> {
        making.end(&|_| Ok(()))?;
        let mut reader = making.reader();
        loop {
            let read = reader.next(self.keys, &mut |_, _| ());
            if let Some(whole) = read.map_err(|e| io::Error::other(e.to_string()))? {
                making.give_name(&whole)?;
                return Ok(());
            }
        }
    }
}
