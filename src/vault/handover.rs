//! Takes over a header that a command made for the vault while it is open, so that key slots change beside whatever is at work.
//!
//! Promise: that of `slots`. At every moment, and after a power cut at any of them, the vault opens with the old slots or with the
//! new ones, as a whole; once `take_header` has returned, what was removed opens it no more. What is not the next header, made by
//! somebody who knows the key in force, changes nothing. After an error of the disk the vault goes on, with either.
//! Why it holds: the order is that of `slots`: both files, then the roots, then the pins. A root names no header that is not in
//! both files, for who writes a root and who changes the header hold the same lock; what the files show after a write of them
//! failed is the old one or the new one, so roots go on naming the old one, and it is written again before the next is taken.
//! No secret passes: who made the header knew one, and its code proves it.
//! Called by: `fs::storage` (an order), `checkpoint`, `new_key`. Takes: the header's lock, then the root's. On failure: a `VaultFault`.

use super::shared::Shared;
use super::writer::is_full;
use super::{HEADER, HEADER_COPY, HeaderRefused, Vault, VaultFault, header_file, root};
use crate::backing::{Cache, Open, read_file};
use crate::base::lock::Held;
use crate::format::header::HEADER_BYTES_MAX;
use crate::seal::{Header, HeaderFault, MasterKey, Unlock, header_mark, open_header, read_header, write_header};
use std::io;

/// The header in force.
pub struct InForce {
    header: Header,
    shown: Shown,
}

/// What the header's files show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    /// The one in force.
    This,
    /// That, or one with other slots: a write of them failed.
    PerhapsOther,
    /// That, or one with another master key. A root of the one must not take the place of a root of the other meanwhile.
    PerhapsOtherKey,
}

impl InForce {
    /// The one that the vault was opened with; both files show it.
    pub fn new(header: Header) -> InForce {
        InForce { header, shown: Shown::This }
    }

    /// Its values.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Whether its files show it, and nothing else.
    pub fn is_shown(&self) -> bool {
        self.shown == Shown::This
    }

    /// Before a root is written: writes the header into its files again if a write of them failed, or somebody has removed
    /// one. While that does not succeed, a crash may leave the one or the other; an error only if no root may be written then.
    pub fn settle(&mut self, shared: &Shared) -> Result<(), VaultFault> {
        let is_gone = |name: &&str| {
            let opened = shared.backing.open(name, Open::Read, Cache::Buffered);
            opened.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
        };
        let gone = [HEADER, HEADER_COPY].into_iter().find(is_gone);
        if self.shown == Shown::This && gone.is_none() {
            return Ok(());
        }
        let restored = self.restore(shared);
        if let (Some(name), Ok(())) = (gone, &restored) {
            shared
                .stats
                .error(shared.world.now(), format!("{name} was gone from the backing directory: it is written again"));
        }
        match restored {
            Err(fault) if self.shown == Shown::PerhapsOther => {
                log::warn!("the header could not be written again: {fault}");
                Ok(())
            }
            settled => settled,
        }
    }

    /// Before another takes its place: the same, and whatever else somebody has put into its files goes.
    pub fn restore(&mut self, shared: &Shared) -> Result<(), VaultFault> {
        let text = text_of(&self.header, shared.segments.keys().current())?;
        let shows = |name| read_file(&*shared.backing, name, HEADER_BYTES_MAX).is_ok_and(|found| found == text);
        if self.shown != Shown::This || !shows(HEADER) || !shows(HEADER_COPY) {
            self.shown = self.shown.max(Shown::PerhapsOther);
            store(shared, &text)?;
            self.shown = Shown::This;
        }
        Ok(())
    }

    /// Writes the next header into both files. If that fails, the one of now is still in force.
    pub fn store_next(&mut self, shared: &Shared, text: &[u8], has_other_key: bool) -> Result<(), VaultFault> {
        store(shared, text).map_err(|e| {
            self.shown = if has_other_key { Shown::PerhapsOtherKey } else { Shown::PerhapsOther };
            // If not now, then before the next root.
            if let Err(fault) = self.restore(shared) {
                log::warn!("the header could not be written again: {fault}");
            }
            e.into()
        })
    }

    /// The header that is in both files now is the one in force: the roots name it, and then the pins. If that fails, the next
    /// checkpoint does it.
    pub fn put(&mut self, shared: &Shared, next: Header, text: &[u8]) -> Result<(), VaultFault> {
        let keys = shared.segments.keys();
        let mark = header_mark(&next, keys.current());
        log::info!("another header is in force: revision {}", mark.revision);
        self.header = next;
        let root = shared.next_root(|root| root.header = Some(mark));
        let written = root::write(&*shared.backing, &root, &keys, shared.segments.vault, &*shared.world);
        shared.pins.keep_header(text);
        match written {
            Ok(()) => {
                shared.pins.remember(&root);
                Ok(())
            }
            Err(e) => {
                shared.want_checkpoint();
                Err(e.into())
            }
        }
    }

    /// Whether a text claims to be of this vault, and what it claims.
    pub fn claimed(&self, text: &[u8]) -> Result<Header, HeaderRefused> {
        let claimed = read_header(text).map_err(|_| HeaderRefused::Malformed)?;
        if claimed.vault == self.header.vault { Ok(claimed) } else { Err(HeaderRefused::OtherVault(claimed.vault)) }
    }

    /// The header that a text is, if it was made with this key from the one in force.
    pub fn next(&self, text: &[u8], master: &MasterKey) -> Result<Header, HeaderRefused> {
        self.claimed(text)?;
        let opened = open_header(text, &Unlock::Master(master.clone()));
        let (next, _) = opened.map_err(|_| HeaderRefused::OtherKey)?;
        match Some(next.revision) == self.header.revision.checked_add(1) {
            true => Ok(next),
            false => Err(HeaderRefused::NotNext { in_force: self.header.revision, given: next.revision }),
        }
    }
}

impl Vault {
    /// Puts a header in the place of the one in force: with other key slots, one revision further, and otherwise the same.
    pub fn take_header(&self, text: &[u8]) -> Result<(), VaultFault> {
        let s = &self.shared;
        let mut in_force = s.header.held();
        // Under the lock that closing waits for.
        self.admitted()?;
        needs_backing(s)?;
        let keys = s.segments.keys();
        in_force.restore(s)?;
        let next = in_force.next(text, keys.current()).map_err(VaultFault::Header)?;
        let but_slots = |header: &Header| Header { revision: 0, slots: Vec::new(), ..header.clone() };
        if but_slots(&next) != but_slots(in_force.header()) {
            return Err(VaultFault::Header(HeaderRefused::MoreThanSlots));
        }
        // As we write it: what else stands in the text is nobody's word.
        let text = text_of(&next, keys.current())?;
        in_force.store_next(s, &text, false)?;
        in_force.put(s, next, &text)
    }
}

/// The header and the roots lie in the backing directory.
pub(super) fn needs_backing(shared: &Shared) -> Result<(), VaultFault> {
    match shared.takes_checkpoints() {
        true => Ok(()),
        false => Err(VaultFault::Header(HeaderRefused::NotNow("the backing directory has failed"))),
    }
}

/// Into both files; from the reserve, if there is no room.
fn store(shared: &Shared, text: &[u8]) -> io::Result<()> {
    match header_file::store(&*shared.backing, text) {
        Err(e) if is_full(&e) && shared.release_reserve() => header_file::store(&*shared.backing, text),
        other => other,
    }
}

/// The text of a header.
pub(super) fn text_of(header: &Header, master: &MasterKey) -> Result<Vec<u8>, VaultFault> {
    write_header(header, master).map_err(|_: HeaderFault| VaultFault::Header(HeaderRefused::Malformed))
}
