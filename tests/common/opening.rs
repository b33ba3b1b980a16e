//! A vault with a slot of each kind, the changes of them that tests attack, and who opens what is left.
//!
//! Promise: `made` gives the same vault each time, with slots 1 `first`, 2 `file`, 3 `words`, 4 `paper`; `Opener` tries every secret
//! that is ever in a slot here, and tells a wrong one from a vault that does not open.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use crate::small::{self, unlock, world, write};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use strongroom::backing::{MemoryBacking, read_file};
use strongroom::base::limits::ARGON2_FLOOR;
use strongroom::base::secret::Passphrase;
use strongroom::seal::{HeaderFault, MasterKey, RecoveryKey, Unlock};
use strongroom::vault::{HEADER, HEADER_COPY, HeaderTexts, OpenFault, SlotFault, Slots, lock};

pub const COST: Option<(u32, u32, u32)> = Some(ARGON2_FLOOR);
pub const BOTH: [&str; 2] = [HEADER, HEADER_COPY];

pub fn key_file(byte: u8) -> Unlock {
    Unlock::KeyFile(Passphrase(vec![byte; 40]))
}

pub fn passphrase(text: &str) -> Unlock {
    Unlock::Passphrase(Passphrase(text.as_bytes().to_vec()))
}

pub fn recovery(byte: u8) -> Unlock {
    let group = |n: usize| format!("group {n} of the recovery key is mistyped");
    // Whatever byte: the checksums are found by asking.
    let mut text: Vec<Vec<u8>> = vec![vec![b"0123456789ABCDEF"[usize::from(byte)]; 8]; 8];
    for n in 0..8 {
        let alphabet = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        let fits = alphabet.iter().flat_map(|a| alphabet.iter().map(move |b| (*a, *b))).find(|(a, b)| {
            text[n][6..].copy_from_slice(&[*a, *b]);
            let joined = String::from_utf8(text.join(&b'-')).unwrap();
            RecoveryKey::parse(&joined).map_or_else(|typo| typo.to_string() != group(n + 1), |_| true)
        });
        fits.expect("one of all endings holds");
    }
    Unlock::Recovery(RecoveryKey::parse(&String::from_utf8(text.join(&b'-')).unwrap()).unwrap())
}

/// Every secret that is ever in a slot here, by name.
pub fn secrets() -> Vec<(&'static str, Unlock)> {
    vec![
        ("first", unlock()),
        ("file", key_file(1)),
        ("other file", key_file(2)),
        ("words", passphrase("correct horse")),
        ("other words", passphrase("battery staple")),
        ("paper", recovery(3)),
        ("other paper", recovery(4)),
    ]
}

pub fn secret(name: &str) -> Unlock {
    secrets().into_iter().find(|(known, _)| *known == name).unwrap().1
}

/// A vault that has lived, with slots 1 `first`, 2 `file`, 3 `words`, 4 `paper`: a copy of the same one each time, so that its
/// keys are derived once.
pub fn made() -> MemoryBacking {
    static MADE: OnceLock<MemoryBacking> = OnceLock::new();
    MADE.get_or_init(make).copy()
}

pub fn make() -> MemoryBacking {
    let disk = small::made();
    let vault = small::opened(&disk);
    write(&vault, 10);
    vault.close().unwrap();
    drop(vault);
    let mut slots = slots(&disk, &unlock()).unwrap();
    for name in ["file", "words", "paper"] {
        slots.add(&secret(name), name, COST).unwrap();
    }
    disk
}

pub fn slots(disk: &MemoryBacking, unlock: &Unlock) -> Result<Slots, OpenFault> {
    lock(Arc::new(disk.clone()))?.slots(unlock, world())
}

/// Which secrets open what is on a disk.
pub struct Opener {
    /// A passphrase costs a good tenth of a second: they are tried only where they are what it is about.
    pub with_words: bool,
}

/// What the two texts gave for a secret: each key is derived once.
type Derived = HashMap<(Vec<u8>, &'static str), Result<MasterKey, HeaderFault>>;

impl Opener {
    pub fn of(change: &Change) -> Opener {
        Opener { with_words: change.what.contains("passphrase") }
    }

    pub fn tries(&self, name: &str) -> bool {
        self.with_words || !name.contains("words")
    }

    pub fn those(&self, names: &[&'static str]) -> Vec<&'static str> {
        names.iter().copied().filter(|name| self.tries(name)).collect()
    }

    /// What a mount does: the key in one process, the rest in another.
    pub fn open(&self, disk: &MemoryBacking, name: &'static str) -> Result<Unlock, OpenFault> {
        static DERIVED: Mutex<Option<Derived>> = Mutex::new(None);
        let texts = BOTH.map(|file| read_file(disk, file, 1 << 16).unwrap_or_default());
        let at = (texts.concat(), name);
        let known = DERIVED.lock().unwrap().get_or_insert_default().get(&at).cloned();
        let derived = known.unwrap_or_else(|| {
            let texts = HeaderTexts::read(disk).unwrap().ok_or(HeaderFault::Malformed("gone".to_owned()))?;
            texts.open(&secret(name)).map(|opened| opened.master)
        });
        DERIVED.lock().unwrap().get_or_insert_default().insert(at, derived.clone());
        let unlock = Unlock::Master(derived?);
        slots(disk, &unlock).map(|_| unlock)
    }

    /// The secrets that open it; an error if one is refused for anything but being wrong.
    pub fn opening(&self, disk: &MemoryBacking) -> Result<Vec<&'static str>, String> {
        let mut opening = Vec::new();
        for (name, _) in secrets().into_iter().filter(|(name, _)| self.tries(name)) {
            match self.open(&disk.copy(), name) {
                Ok(_) => opening.push(name),
                Err(OpenFault::WrongKey) => {}
                Err(other) => return Err(format!("{name}: {other}")),
            }
        }
        Ok(opening)
    }
}

pub const OLD: [&str; 4] = ["first", "file", "words", "paper"];

pub struct Change {
    pub what: &'static str,
    pub does: fn(&mut Slots) -> Result<(), SlotFault>,
    pub new: &'static [&'static str],
}

pub fn changes() -> [Change; 11] {
    let change = |what, does, new| Change { what, does, new };
    [
        change(
            "add a key file",
            |s| s.add(&secret("other file"), "x", COST).map(|_| ()),
            &["first", "file", "other file", "words", "paper"],
        ),
        change(
            "add a passphrase",
            |s| s.add(&secret("other words"), "x", COST).map(|_| ()),
            &["first", "file", "words", "other words", "paper"],
        ),
        change(
            "add a recovery key",
            |s| s.add(&secret("other paper"), "x", COST).map(|_| ()),
            &["first", "file", "words", "paper", "other paper"],
        ),
        change("remove a key file", |s| s.remove(&[2]), &["first", "words", "paper"]),
        change("remove a passphrase", |s| s.remove(&[3]), &["first", "file", "paper"]),
        change("remove a recovery key", |s| s.remove(&[4]), &["first", "file", "words"]),
        change("remove what it was opened with, and more", |s| s.remove(&[1, 4]), &["file", "words"]),
        change(
            "change a key file",
            |s| s.change(2, &secret("other file"), None, COST),
            &["first", "other file", "words", "paper"],
        ),
        change(
            "change a passphrase",
            |s| s.change(3, &secret("other words"), None, COST),
            &["first", "file", "other words", "paper"],
        ),
        change(
            "change a recovery key",
            |s| s.change(4, &secret("other paper"), None, COST),
            &["first", "file", "words", "other paper"],
        ),
        change(
            "change a key file to a passphrase",
            |s| s.change(1, &secret("other words"), None, COST),
            &["file", "words", "other words", "paper"],
        ),
    ]
}

/// The texts of both files, to be put back.
pub fn headers(disk: &MemoryBacking) -> [Vec<u8>; 2] {
    BOTH.map(|name| read_file(disk, name, 1 << 16).unwrap())
}
