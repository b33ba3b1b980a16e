//! Takes over a header that a command made for the vault while it is open, so that key slots change beside whatever is at work.
//!
//! Promise: that of `slots`. At every moment, and after a power cut at any of them, the vault opens with the old slots or with the
//! new ones, as a whole; once `take_header` has returned, what was removed opens it no more. What is not the next header, made by
//! somebody who knows the key in force, changes nothing. After an error of the disk the vault goes on, with either.
//! Why it holds: the order is that of `slots`: both files, then the roots, then the pins. A root names no header that is not in
//! both files, for who writes a root and who changes the header hold the same lock; what the files show after a write of them
//! failed is the old one or the new one, so roots go on naming the old one, and it is written again before the next is taken.
//! No secret passes: who made the header knew one, and its code proves it.
//! Called by: `fs::storage` (an order), `checkpoint`. Takes: the header's lock, then the root's. On failure: a `VaultFault`.

use super::shared::Shared;
use super::writer::is_full;
use super::{HEADER, HEADER_COPY, HeaderRefused, Vault, VaultFault, header_file, root};
use crate::backing::read_file;
use crate::base::id::Generation;
use crate::base::lock::Held;
use crate::format::header::HEADER_BYTES_MAX;
use crate::seal::{Header, HeaderFault, MasterKey, Unlock, header_mark, open_header, read_header, write_header};
use std::io;
use std::sync::atomic::Ordering::SeqCst;

/// The header in force.
pub struct InForce {
    header: Header,
    /// Whether its files may show another one: a write of them failed.
    unsure: bool,
}

impl InForce {
    /// The one that the vault was opened with; both files show it.
    pub fn new(header: Header) -> InForce {
        InForce { header, unsure: false }
    }

    /// Writes it into its files again if a write of them failed. Until that succeeds, a crash may leave the one or the other.
    pub fn settle(&mut self, shared: &Shared) {
        if self.unsure
            && let Err(fault) = self.restore(shared)
        {
            log::warn!("the header could not be written again: {fault}");
        }
    }

    /// The same, and whatever else somebody has put in its place goes.
    fn restore(&mut self, shared: &Shared) -> Result<(), VaultFault> {
        let text = text_of(&self.header, shared.segments.keys.current())?;
        let shows = |name| read_file(&*shared.backing, name, HEADER_BYTES_MAX).is_ok_and(|found| found == text);
        if self.unsure || !shows(HEADER) || !shows(HEADER_COPY) {
            self.unsure = true;
            store(shared, &text)?;
            self.unsure = false;
        }
        Ok(())
    }

    /// The header that a text is, if it is the next one.
    fn judge(&self, text: &[u8], master: &MasterKey) -> Result<Header, HeaderRefused> {
        let now = &self.header;
        let claimed = read_header(text).map_err(|_| HeaderRefused::Malformed)?;
        if claimed.vault != now.vault {
            return Err(HeaderRefused::OtherVault(claimed.vault));
        }
        let opened = open_header(text, &Unlock::Master(master.clone()));
        let (next, _) = opened.map_err(|_| HeaderRefused::OtherKey)?;
        if Some(next.revision) != now.revision.checked_add(1) {
            return Err(HeaderRefused::NotNext { in_force: now.revision, given: next.revision });
        }
        let but_slots = |header: &Header| Header { revision: 0, slots: Vec::new(), ..header.clone() };
        if but_slots(&next) != but_slots(now) {
            return Err(HeaderRefused::MoreThanSlots);
        }
        Ok(next)
    }
}

impl Vault {
    /// Puts a header in the place of the one in force: with other key slots, one revision further, and otherwise the same.
    pub fn take_header(&self, text: &[u8]) -> Result<(), VaultFault> {
        let s = &self.shared;
        let mut in_force = s.header.held();
        // Under the lock that closing waits for.
        self.admitted()?;
        if !s.takes_checkpoints() {
            return Err(VaultFault::Failed("the header lies in the backing directory, which has failed".into()));
        }
        let keys = &s.segments.keys;
        in_force.restore(s)?;
        let next = in_force.judge(text, keys.current()).map_err(VaultFault::Header)?;
        // As we write it: what else stands in the text is nobody's word.
        let text = text_of(&next, keys.current())?;
        if let Err(e) = store(s, &text) {
            in_force.unsure = true;
            in_force.settle(s);
            return Err(e.into());
        }
        let mark = header_mark(&next, keys.current());
        log::info!("the key slots were changed: the header has revision {}", mark.revision);
        in_force.header = next;
        let mut root = s.root.held();
        root.generation = Generation(root.generation.0 + 1);
        // Also if the write fails: it is in both files, and the next root may name it.
        root.header = Some(mark);
        let written = root::write(&*s.backing, &root, keys, s.segments.vault, &*s.world).map(|()| root.clone());
        drop(root);
        s.pins.keep_header(&text);
        match written {
            Ok(written) => s.pins.remember(&written),
            Err(e) => {
                s.checkpoint_wanted.store(true, SeqCst);
                s.wake_log();
                return Err(e.into());
            }
        }
        Ok(())
    }
}

/// Into both files; from the reserve, if there is no room.
fn store(shared: &Shared, text: &[u8]) -> io::Result<()> {
    match header_file::store(&*shared.backing, text) {
        Err(e) if is_full(&e) && shared.release_reserve() => header_file::store(&*shared.backing, text),
        other => other,
    }
}

fn text_of(header: &Header, master: &MasterKey) -> Result<Vec<u8>, VaultFault> {
    write_header(header, master).map_err(|_: HeaderFault| VaultFault::Header(HeaderRefused::Malformed))
}
