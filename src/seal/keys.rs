//! The master keys of a vault: the one in force, and those of before that segments are still under (format.md §8).
//!
//! Promise: a key is had by its number or not at all, never guessed; an old one opens only under the key in force, for its
//! vault, suite and number. What is written is written under the key in force.
//! Called by: `header`, `segment`, `vault`, `check`. On failure: `HeaderFault::Tampered`, or no key of that number.

use super::Forged;
use super::derive::derive;
use super::header::HeaderFault;
use super::key::{MasterKey, PageKey};
use crate::base::id::KeyNumber;
use crate::base::secret::Secret;
use crate::base::world::World;
use crate::format::header::{Header, OldKey, suite_number};

/// All keys that a header gives to who opens it.
#[derive(Debug, Clone)]
pub struct VaultKeys {
    number: KeyNumber,
    current: MasterKey,
    old: Vec<(KeyNumber, MasterKey)>,
}

impl VaultKeys {
    /// The keys of a vault that never had another than this one.
    #[must_use]
    pub fn first(master: MasterKey) -> VaultKeys {
        VaultKeys { number: KeyNumber(0), current: master, old: Vec::new() }
    }

    /// The keys of a header whose slots gave `master`, and which it has authenticated.
    pub fn of(header: &Header, master: &MasterKey) -> Result<VaultKeys, HeaderFault> {
        let unwrap = |old: &OldKey| {
            let (key, tag) = old.wrapped.split_at(32);
            let mut secret = Secret::copy_of(key.try_into().expect("split at 32"));
            let tag = tag.try_into().expect("48 less 32 is 16");
            let opened = wrap_key(header, master).open(&bound(header, old.number), &old.nonce, &mut secret[..], tag);
            opened.map(|()| (old.number, MasterKey::from_secret(secret))).map_err(|_| HeaderFault::Tampered)
        };
        let old = header.old_keys.iter().map(unwrap).collect::<Result<_, _>>()?;
        Ok(VaultKeys { number: header.key, current: master.clone(), old })
    }

    /// The number of the key in force.
    #[must_use]
    pub fn number(&self) -> KeyNumber {
        self.number
    }

    /// The key in force.
    #[must_use]
    pub fn current(&self) -> &MasterKey {
        &self.current
    }

    /// The key of a number, if the header has it.
    #[must_use]
    pub fn get(&self, number: KeyNumber) -> Option<&MasterKey> {
        if number == self.number {
            return Some(&self.current);
        }
        self.old().find(|(known, _)| *known == number).map(|(_, key)| key)
    }

    /// Those of before that segments may still be under.
    pub fn old(&self) -> impl Iterator<Item = (KeyNumber, &MasterKey)> {
        self.old.iter().map(|(number, key)| (*number, key))
    }
}

/// A key of before, wrapped under the one that is in the header's slots now.
#[must_use]
pub fn wrap_old_key(
    world: &dyn World,
    header: &Header,
    current: &MasterKey,
    number: KeyNumber,
    old: &MasterKey,
) -> OldKey {
    let (mut nonce, mut wrapped) = ([0; 24], [0; 48]);
    world.fill(&mut nonce);
    let mut key = old.0.clone();
    let tag = wrap_key(header, current).seal(&bound(header, number), &nonce, &mut key[..]);
    wrapped[..32].copy_from_slice(&key[..]);
    wrapped[32..].copy_from_slice(&tag);
    OldKey { number, nonce, wrapped }
}

/// Bytes of a key that is handed over: nonce, key, tag.
pub const NEXT_KEY_BYTES: usize = 24 + 32 + 16;

/// The next master key for who has the vault open and knows the one in force; `header` is the next one.
#[must_use]
pub fn seal_next_key(
    world: &dyn World,
    header: &Header,
    current: &MasterKey,
    next: &MasterKey,
) -> [u8; NEXT_KEY_BYTES] {
    let mut out = [0; NEXT_KEY_BYTES];
    let mut nonce = [0; 24];
    world.fill(&mut nonce);
    let mut key = next.0.clone();
    let tag = hand_over_key(header, current).seal(&handed_over(header), &nonce, &mut key[..]);
    out[..24].copy_from_slice(&nonce);
    out[24..56].copy_from_slice(&key[..]);
    out[56..].copy_from_slice(&tag);
    out
}

/// Opens it, for the same header.
pub fn open_next_key(header: &Header, current: &MasterKey, sealed: &[u8; NEXT_KEY_BYTES]) -> Result<MasterKey, Forged> {
    let (nonce, rest) = sealed.split_first_chunk().expect("longer than a nonce");
    let (key, tag) = rest.split_at(32);
    let mut secret = Secret::copy_of(key.try_into().expect("split at 32"));
    let tag = tag.try_into().expect("what is left is a tag");
    hand_over_key(header, current).open(&handed_over(header), nonce, &mut secret[..], tag)?;
    Ok(MasterKey::from_secret(secret))
}

fn hand_over_key(header: &Header, current: &MasterKey) -> PageKey {
    PageKey::from_secret(derive(&current.0[..], &header.vault.0, &[b"strongroom next key 1"]))
}

/// What it binds: vault, suite and the new key's number.
fn handed_over(header: &Header) -> Vec<u8> {
    let suite = [suite_number(header.suite)];
    [b"strongroom next key 1", &header.vault.0[..], &suite, &header.key.0.to_le_bytes()].concat()
}

fn wrap_key(header: &Header, current: &MasterKey) -> PageKey {
    PageKey::from_secret(derive(&current.0[..], &header.vault.0, &[b"strongroom old key wrap 1"]))
}

/// What the wrap binds.
fn bound(header: &Header, number: KeyNumber) -> Vec<u8> {
    let suite = [suite_number(header.suite)];
    [b"strongroom old key 1", &header.vault.0[..], &suite, &number.0.to_le_bytes()].concat()
}
