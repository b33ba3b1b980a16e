//! Changes the header of a vault: its key slots, or all of it from a copy that was kept.
//!
//! Promise: at every moment, and after a power cut at any of them, the vault opens with the old slots or with the new
//! ones, as a whole. Once a change has returned, what it removed opens the vault no more, also with an older `vault.toml`
//! put back in the place of both files.
//! Why it holds: each file of the header is replaced as a whole, one after the other (`header_file`); of two that hold the
//! newer counts. Only then do the roots name the new one, so no crash leaves them naming one that is not there; from then on
//! an older one is refused (`open::judge_header`). Older roots are told by the pins. A vault of a format that knows no
//! revisions goes without the last step, until it is opened for use. Of a vault that is mounted, the next header is made here
//! and stored by whoever has it open (`handover`), in the same order.
//! Called by: `cli::slots`. Takes: the vault's lock. On failure: a `SlotFault`; a disk that failed leaves either set.

use super::open::judge_header;
use super::pin::{PinStore, Pins, Remembered};
use super::place::LOCK;
use super::{HeaderTexts, Locked, OpenFault, header_file, root};
use crate::backing::Backing;
use crate::base::id::{Generation, VaultId};
use crate::base::world::World;
use crate::format::FORMAT_VERSION;
use crate::format::header::REVISION_FORMAT;
use crate::format::root::Root;
use crate::seal::{
    Header, HeaderFault, KeySlot, SlotKind, Unlock, VaultKeys, add_slot, header_mark, replace_slot, unlock_header,
    write_header,
};
use std::fmt;
use std::io;
use std::sync::Arc;

/// Why the slots are not as they were asked to be.
#[derive(Debug)]
pub enum SlotFault {
    /// The vault did not open, or its disk failed.
    Open(OpenFault),
    /// No slot has this number or label.
    NoSuchSlot(String),
    /// Another slot has this label.
    LabelTaken(String),
    /// Nothing would open the vault any more.
    LastSlot,
    /// What is asked for cannot be a slot; one sentence says why.
    Unfit(String),
    /// The header is of another vault.
    OtherVault {
        /// Of this one.
        theirs: VaultId,
    },
    /// Somebody else has changed the slots of the mounted vault since they were read.
    Overtaken,
    /// Whoever has the vault open did not take the header.
    NotTaken(io::Error),
}

impl fmt::Display for SlotFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SlotFault::Open(fault) => write!(f, "{fault}"),
            SlotFault::NoSuchSlot(which) => write!(f, "there is no key slot '{}'", which.escape_debug()),
            SlotFault::LabelTaken(label) => write!(f, "another key slot has the label '{}'", label.escape_debug()),
            SlotFault::LastSlot => f.write_str("the last key slot stays: without it nobody could open the vault"),
            SlotFault::Unfit(why) => f.write_str(why),
            SlotFault::OtherVault { theirs } => {
                write!(f, "that header is of another vault, {theirs}: nothing here opens with its key")
            }
            SlotFault::Overtaken => f.write_str("somebody else has changed the key slots meanwhile"),
            SlotFault::NotTaken(e) => write!(f, "the mount did not take the change: {e}"),
        }
    }
}

impl std::error::Error for SlotFault {}

impl From<OpenFault> for SlotFault {
    fn from(fault: OpenFault) -> Self {
        SlotFault::Open(fault)
    }
}

impl From<io::Error> for SlotFault {
    fn from(e: io::Error) -> Self {
        SlotFault::Open(e.into())
    }
}

/// What a new slot's secret or label is refused for is no fault of the vault's.
fn unfit(fault: HeaderFault) -> SlotFault {
    match fault {
        HeaderFault::Malformed(why) => SlotFault::Unfit(why),
        other => SlotFault::Open(other.into()),
    }
}

/// Gives the text of the next header to whoever has the vault open; when it returns, that is in force and at rest.
pub type HandOver = Box<dyn FnMut(&[u8]) -> Result<(), SlotFault>>;

/// The key slots of a vault.
pub struct Slots {
    header: Header,
    keys: VaultKeys,
    fitting: Vec<u32>,
    hand: Hand,
    world: Arc<dyn World>,
}

/// Who puts the next header in the place of the one in force.
enum Hand {
    /// This value: nobody else can open the vault while it lives.
    Own(Box<Own>),
    /// Whoever has the vault open.
    Theirs(HandOver),
}

struct Own {
    backing: Arc<dyn Backing>,
    _lock: Box<dyn Send + Sync>,
    /// The root in force. Only while an import mends a vault that has none may it be missing.
    root: Option<Root>,
    pins: Pins,
}

/// A vault of which header and root are open, judged, and nothing else.
pub(super) struct Judged {
    pub backing: Arc<dyn Backing>,
    pub lock: Box<dyn Send + Sync>,
    pub opened: header_file::OpenedHeader,
    pub root: Root,
    pub pins: Pins,
}

impl Locked {
    /// Opens header and root, refuses what was put back, and puts the header's other file right.
    pub(super) fn judged(self, unlock: &Unlock) -> Result<Judged, OpenFault> {
        let opened = self.opened(unlock)?;
        let vault = opened.header.vault;
        let mut root = root::read_or_say(&*self.backing, &opened.keys, vault)?.ok_or(OpenFault::RootsLost)?;
        let pins = Pins::read(self.remembered, &opened.keys, vault);
        pins.judge(&root)?;
        judge_header(&root, &opened.header, &opened.master)?;
        pins.raise(&mut root);
        self.headers.mend(&*self.backing, &opened, true);
        Ok(Judged { backing: self.backing, lock: self.lock, opened, root, pins })
    }

    /// Opens the header alone, to change it.
    pub fn slots(self, unlock: &Unlock, world: Arc<dyn World>) -> Result<Slots, OpenFault> {
        let Judged { backing, lock, opened, root, pins } = self.judged(unlock)?;
        let header_file::OpenedHeader { header, keys, fitting, .. } = opened;
        let hand = Hand::Own(Box::new(Own { backing, _lock: lock, root: Some(root), pins }));
        Ok(Slots { header, keys, fitting, hand, world })
    }
}

impl Slots {
    /// Those of a vault that somebody else has open: who that is judges whether the header is the one in force.
    pub fn of_mounted(
        texts: &HeaderTexts,
        unlock: &Unlock,
        hand_over: HandOver,
        world: Arc<dyn World>,
    ) -> Result<Slots, OpenFault> {
        let header_file::OpenedHeader { header, keys, fitting, .. } = texts.open(unlock)?;
        Ok(Slots { header, keys, fitting, hand: Hand::Theirs(hand_over), world })
    }

    /// The header, authenticated.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The slots that what the vault was opened with fits.
    pub fn fitting(&self) -> &[u32] {
        &self.fitting
    }

    /// The slot that a person means: by its number, or else by its label.
    pub fn named(&self, which: &str) -> Result<&KeySlot, SlotFault> {
        let slots = &self.header.slots;
        let by_id = which.parse().ok().and_then(|id: u32| slots.iter().find(|slot| slot.id == id));
        let by_label = || slots.iter().filter(|slot| slot.label == which && !which.is_empty());
        match (by_id, by_label().count()) {
            (Some(slot), _) => Ok(slot),
            (None, 2..) => {
                Err(SlotFault::Unfit(format!("several key slots have the label '{}'", which.escape_debug())))
            }
            (None, _) => by_label().next().ok_or_else(|| SlotFault::NoSuchSlot(which.to_owned())),
        }
    }

    /// Whether a passphrase opens the vault now, and none would without these slots.
    pub fn leaves_no_passphrase(&self, without: &[u32]) -> bool {
        let is_passphrase = |slot: &&KeySlot| matches!(slot.kind, SlotKind::Passphrase { .. });
        let mut passphrases = self.header.slots.iter().filter(is_passphrase).peekable();
        passphrases.peek().is_some() && passphrases.all(|slot| without.contains(&slot.id))
    }

    /// Adds a slot; gives its number.
    pub fn add(&mut self, unlock: &Unlock, label: &str, argon2: Option<(u32, u32, u32)>) -> Result<u32, SlotFault> {
        self.refuse_taken(label, None)?;
        let mut next = self.header.clone();
        let id = add_slot(&*self.world, &mut next, self.keys.current(), unlock, label, argon2).map_err(unfit)?;
        self.store(next)?;
        Ok(id)
    }

    /// Makes a slot anew for another secret; its label stays unless another is given.
    pub fn change(
        &mut self,
        id: u32,
        unlock: &Unlock,
        label: Option<&str>,
        argon2: Option<(u32, u32, u32)>,
    ) -> Result<(), SlotFault> {
        let Some(old) = self.header.slots.iter().find(|slot| slot.id == id) else {
            return Err(SlotFault::NoSuchSlot(id.to_string()));
        };
        let label = label.unwrap_or(&old.label).to_owned();
        if label != old.label {
            self.refuse_taken(&label, Some(id))?;
        }
        let mut next = self.header.clone();
        replace_slot(&*self.world, &mut next, self.keys.current(), id, unlock, &label, argon2).map_err(unfit)?;
        self.store(next)
    }

    /// Removes slots.
    pub fn remove(&mut self, ids: &[u32]) -> Result<(), SlotFault> {
        if let Some(id) = ids.iter().find(|id| self.header.slots.iter().all(|slot| slot.id != **id)) {
            return Err(SlotFault::NoSuchSlot(id.to_string()));
        }
        let mut next = self.header.clone();
        next.slots.retain(|slot| !ids.contains(&slot.id));
        if next.slots.is_empty() {
            return Err(SlotFault::LastSlot);
        }
        self.store(next)
    }

    /// Changes the whole vault's quotas: `None` leaves one as it is, `Some(None)` takes it away.
    pub fn limit(&mut self, bytes: Option<Option<u64>>, inodes: Option<Option<u64>>) -> Result<(), SlotFault> {
        let mut next = self.header.clone();
        next.quota_bytes = bytes.unwrap_or(next.quota_bytes);
        next.quota_inodes = inodes.unwrap_or(next.quota_inodes);
        self.store(next)
    }

    fn refuse_taken(&self, label: &str, but: Option<u32>) -> Result<(), SlotFault> {
        let taken = |slot: &KeySlot| !label.is_empty() && slot.label == label && Some(slot.id) != but;
        if self.header.slots.iter().any(taken) { Err(SlotFault::LabelTaken(label.to_owned())) } else { Ok(()) }
    }

    /// Puts a header in the place of the one in force, then binds the vault to it.
    fn store(&mut self, mut next: Header) -> Result<(), SlotFault> {
        let revised = next.format >= REVISION_FORMAT;
        next.revision += u64::from(revised);
        let text = write_header(&next, self.keys.current()).map_err(unfit)?;
        match &mut self.hand {
            Hand::Own(own) => {
                let Own { backing, root, pins, .. } = &mut **own;
                header_file::store(&**backing, &text)?;
                if let Some(root) = root.as_mut().filter(|_| revised) {
                    root.generation = Generation(root.generation.0 + 1);
                    root.header = Some(header_mark(&next, self.keys.current()));
                    root::write(&**backing, root, &self.keys, next.vault, &*self.world)?;
                    pins.remember(root);
                }
            }
            Hand::Theirs(hand_over) => hand_over(&text)?,
        }
        self.header = next;
        Ok(())
    }
}

/// A header that was kept outside the vault, and that is the vault's.
pub struct Import {
    slots: Slots,
    /// What the vault's own files show now, unauthenticated; `None` if neither is a header.
    before: Option<Header>,
}

impl Import {
    /// Checks that a text is a header of this vault, and that `unlock` opens it. The vault's own may be lost.
    pub fn of(
        backing: Arc<dyn Backing>,
        text: &[u8],
        unlock: &Unlock,
        (pins, accepted): (Vec<PinStore>, Option<Generation>),
        world: Arc<dyn World>,
    ) -> Result<Import, SlotFault> {
        let opened = unlock_header(text, unlock).map_err(|fault| SlotFault::Open(fault.into()))?;
        let vault = opened.header.vault;
        let (mut header, master, keys) = (opened.header, opened.master, opened.keys);
        let lock = match backing.lock(LOCK) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(OpenFault::InUse { holder: String::new() }.into());
            }
            other => other?,
        };
        let texts = HeaderTexts::read(&*backing)?;
        let before = texts.as_ref().and_then(|texts| texts.shown().ok());
        if before.as_ref().is_some_and(|before| before.key > header.key) {
            // Of before a rekey: nothing of what was written since opens with its key.
            return Err(OpenFault::OlderKey { header: header.key, found: None }.into());
        }
        let known =
            texts.and_then(|texts| texts.open(&Unlock::Master(master.clone())).ok()).map(|opened| opened.header);
        let mut root = root::read_or_say(&*backing, &keys, vault)?;
        // Its own word for its vault's id is worth nothing: something of the vault must open with its key.
        let is_ours = || -> io::Result<bool> {
            // Where roots and header are lost, the log's first directories say so.
            Ok(root::rebuild(&*backing, &keys, header.suite, vault)?.epoch.0 > 0)
        };
        if root.is_none() && known.is_none() && !is_ours()? {
            return Err(SlotFault::OtherVault { theirs: vault });
        }
        let pins = Pins::read(Remembered { pins, accepted, only_looks: false }, &keys, vault);
        if let Some(root) = &mut root {
            pins.judge(root)?;
            pins.raise(root);
        }
        // Above everything that the vault knows of, so that it is the newest from now on.
        let named = root.as_ref().and_then(|root| root.header).map_or(0, |mark| mark.revision);
        header.revision = header.revision.max(named).max(known.as_ref().map_or(0, |known| known.revision));
        // What lies in the vault may be of a later format than what was kept.
        header.format = header.format.max(before.as_ref().map_or(FORMAT_VERSION, |before| before.format));
        if header.format < REVISION_FORMAT {
            header.revision = 0;
        }
        let hand = Hand::Own(Box::new(Own { backing, _lock: lock, root, pins }));
        Ok(Import { slots: Slots { header, keys, fitting: opened.fitting, hand, world }, before })
    }

    /// The same of a vault that somebody else has open: of the header that was kept, its slots take the place of those in force.
    pub fn of_mounted(
        texts: &HeaderTexts,
        text: &[u8],
        unlock: &Unlock,
        hand_over: HandOver,
        world: Arc<dyn World>,
    ) -> Result<Import, SlotFault> {
        let kept = unlock_header(text, unlock).map_err(|fault| SlotFault::Open(fault.into()))?;
        let Header { vault, key, slots, .. } = kept.header;
        if texts.shown().is_ok_and(|shown| shown.vault == vault && shown.key > key) {
            return Err(OpenFault::OlderKey { header: key, found: None }.into());
        }
        let opened = texts.open(&Unlock::Master(kept.master)).map_err(|fault| match fault {
            HeaderFault::WrongKey => SlotFault::OtherVault { theirs: vault },
            other => SlotFault::Open(other.into()),
        })?;
        let before = Some(opened.header.clone());
        let (header, keys) = (Header { slots, ..opened.header }, opened.keys);
        let hand = Hand::Theirs(hand_over);
        Ok(Import { slots: Slots { header, keys, fitting: kept.fitting, hand, world }, before })
    }

    /// The slots that it has and the vault's own header has not: those that it brings back.
    pub fn brings_back(&self) -> Vec<&KeySlot> {
        let gone = |slot: &&KeySlot| !self.before.as_ref().is_some_and(|before| before.slots.contains(slot));
        self.slots.header.slots.iter().filter(gone).collect()
    }

    /// The slots that the vault's own header has and it has not.
    pub fn takes_away(&self) -> Vec<&KeySlot> {
        let before = self.before.iter().flat_map(|before| &before.slots);
        before.filter(|slot| !self.slots.header.slots.contains(slot)).collect()
    }

    /// Puts it in its place.
    pub fn store(&mut self) -> Result<(), SlotFault> {
        self.slots.store(self.slots.header.clone())
    }
}
