//! Key slots: the master key wrapped for a passphrase, a key file or a recovery key.
//!
//! Promise: a slot opens only for what it was made for. It commits to its key (XChaCha20-Poly1305 alone does not: one
//! ciphertext can be made to open under two keys), and binds vault, suite, number, kind and cost. Weaker costs than the
//! floor and memory bombs are refused before any work is done. Opening takes the same work whichever slot fits, or none.
//! Called by: `header`, `vault::slots`. On failure: `HeaderFault`.

use super::derive::derive;
use super::header::HeaderFault;
use super::key::{MasterKey, PageKey};
use super::recovery::RecoveryKey;
use crate::base::limits::{ARGON2_CEILING, ARGON2_FLOOR};
use crate::base::secret::{Passphrase, Secret};
use crate::base::world::World;
use crate::format::header::{Header, KeySlot, LABEL_BYTES_MAX, SLOTS_MAX, SlotKind, suite_number};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use std::time::Duration;
use zeroize::Zeroize;

/// Fewest bytes of a key file: it goes through no slow hash, so it must be as hard to guess as a key.
pub const KEY_FILE_BYTES_MIN: usize = 32;
/// How long a calibrated Argon2id takes.
const CALIBRATED: Duration = Duration::from_secs(1);
/// Most memory that calibration chooses by itself, so that the vault still opens on a small machine.
const CALIBRATED_MEMORY_KIB_MAX: u32 = 512 << 10;

/// What opens a slot.
#[derive(Debug, Clone)]
pub enum Unlock {
    /// A passphrase.
    Passphrase(Passphrase),
    /// The contents of a key file: 32 bytes or more.
    KeyFile(Passphrase),
    /// A recovery key.
    Recovery(RecoveryKey),
    /// What `unlock` gave for one of the others, in another process perhaps: no slot is tried, nothing is derived.
    Master(MasterKey),
}

/// Adds a slot for `unlock` and gives its number; `write_header` makes the text.
/// `argon2` is memory in KiB, passes and lanes; `None` measures this machine.
pub fn add_slot(
    world: &dyn World,
    header: &mut Header,
    master: &MasterKey,
    unlock: &Unlock,
    label: &str,
    argon2: Option<(u32, u32, u32)>,
) -> Result<u32, HeaderFault> {
    if header.slots.len() >= SLOTS_MAX {
        return Err(HeaderFault::Malformed(format!("a vault has at most {SLOTS_MAX} key slots")));
    }
    let Some(id) = header.slots.iter().map(|s| s.id).max().map_or(Some(1), |id| id.checked_add(1)) else {
        return Err(HeaderFault::Malformed("the numbers of key slots are used up".to_owned()));
    };
    let slot = make_slot(world, header, master, id, unlock, label, argon2)?;
    header.slots.push(slot);
    Ok(id)
}

/// Makes a slot anew for another secret: with its number, in its place. There must be one of that number.
pub fn replace_slot(
    world: &dyn World,
    header: &mut Header,
    master: &MasterKey,
    id: u32,
    unlock: &Unlock,
    label: &str,
    argon2: Option<(u32, u32, u32)>,
) -> Result<(), HeaderFault> {
    let slot = make_slot(world, header, master, id, unlock, label, argon2)?;
    let Some(old) = header.slots.iter_mut().find(|slot| slot.id == id) else {
        return Err(HeaderFault::Malformed(format!("there is no key slot {id}")));
    };
    *old = slot;
    Ok(())
}

fn make_slot(
    world: &dyn World,
    header: &Header,
    master: &MasterKey,
    id: u32,
    unlock: &Unlock,
    label: &str,
    argon2: Option<(u32, u32, u32)>,
) -> Result<KeySlot, HeaderFault> {
    if label.len() > LABEL_BYTES_MAX {
        return Err(HeaderFault::Malformed(format!("a slot's label has at most {LABEL_BYTES_MAX} bytes")));
    }
    let kind = match unlock {
        Unlock::KeyFile(_) => SlotKind::KeyFile,
        Unlock::Recovery(_) => SlotKind::RecoveryKey,
        Unlock::Passphrase(_) => {
            let (memory_kib, passes, lanes) = match argon2 {
                Some(cost) => cost,
                None => calibrate(world)?,
            };
            SlotKind::Passphrase { memory_kib, passes, lanes }
        }
        Unlock::Master(_) => {
            return Err(HeaderFault::Malformed("a key slot is for a passphrase or a key".to_owned()));
        }
    };
    let (mut salt, mut nonce) = ([0; 16], [0; 24]);
    world.fill(&mut salt);
    world.fill(&mut nonce);
    let created_s = world.now().seconds;
    let mut slot =
        KeySlot { id, kind, label: label.to_owned(), created_s, salt, nonce, commitment: [0; 32], wrapped: [0; 48] };
    check_cost(&slot)?;
    let (wrap, commitment) = slot_keys(&slot, unlock)?;
    slot.commitment = *commitment;
    let mut key = master.0.clone();
    let tag = wrap.seal(&bound(header, &slot), &nonce, &mut key[..]);
    slot.wrapped[..32].copy_from_slice(&key[..]);
    slot.wrapped[32..].copy_from_slice(&tag);
    Ok(slot)
}

/// The master key, and the numbers of the slots that `unlock` fits; none of them if it is the master key itself.
///
/// Every slot of the kind is tried, to the end: how long it takes says nothing about which of them fits, or whether one does.
pub(super) fn unwrap_master(header: &Header, unlock: &Unlock) -> Result<(MasterKey, Vec<u32>), HeaderFault> {
    header.slots.iter().try_for_each(check_cost)?;
    if let Unlock::Master(master) = unlock {
        return Ok((master.clone(), Vec::new()));
    }
    let mut fitting = Vec::new();
    for slot in header.slots.iter().filter(|slot| is_for(slot.kind, unlock)) {
        let (wrap, commitment) = slot_keys(slot, unlock)?;
        if verify_slices_are_equal(&commitment[..], &slot.commitment).is_ok() {
            fitting.push((slot, wrap));
        }
    }
    let ids = fitting.iter().map(|(slot, _)| slot.id).collect();
    let Some((slot, wrap)) = fitting.first() else { return Err(HeaderFault::WrongKey) };
    let (key, tag) = slot.wrapped.split_at(32);
    let mut master = Secret::copy_of(key.try_into().expect("split at 32"));
    let tag = tag.try_into().expect("48 less 32 is 16");
    // The commitment held, so the key is right and the rest was changed.
    match wrap.open(&bound(header, slot), &slot.nonce, &mut master[..], tag) {
        Ok(()) => Ok((MasterKey(master), ids)),
        Err(_) => Err(HeaderFault::Tampered),
    }
}

/// The numbers of the slots that a secret fits.
pub fn fitting_slots(header: &Header, unlock: &Unlock) -> Result<Vec<u32>, HeaderFault> {
    unwrap_master(header, unlock).map(|(_, fitting)| fitting)
}

fn is_for(kind: SlotKind, unlock: &Unlock) -> bool {
    match kind {
        SlotKind::Passphrase { .. } => matches!(unlock, Unlock::Passphrase(_)),
        SlotKind::KeyFile => matches!(unlock, Unlock::KeyFile(_)),
        SlotKind::RecoveryKey => matches!(unlock, Unlock::Recovery(_)),
    }
}

/// Refuses costs outside floor and ceiling.
pub(super) fn check_cost(slot: &KeySlot) -> Result<(), HeaderFault> {
    let SlotKind::Passphrase { memory_kib, passes, lanes } = slot.kind else { return Ok(()) };
    let cost = (memory_kib, passes, lanes);
    if memory_kib < ARGON2_FLOOR.0 || passes < ARGON2_FLOOR.1 || lanes < ARGON2_FLOOR.2 {
        return Err(HeaderFault::Weak(cost));
    }
    if memory_kib > ARGON2_CEILING.0 || passes > ARGON2_CEILING.1 || lanes > ARGON2_CEILING.2 {
        return Err(HeaderFault::MemoryBomb(cost));
    }
    Ok(())
}

/// What the wrap binds.
fn bound(header: &Header, slot: &KeySlot) -> Vec<u8> {
    [b"strongroom slot 1", &header.vault.0[..], &[suite_number(header.suite)], &slot.bound()].concat()
}

/// The key that wraps, and the commitment to it.
fn slot_keys(slot: &KeySlot, unlock: &Unlock) -> Result<(PageKey, Secret), HeaderFault> {
    let stretched;
    let secret = match (unlock, slot.kind) {
        (Unlock::Passphrase(typed), SlotKind::Passphrase { memory_kib, passes, lanes }) => {
            stretched = argon2id(typed, &slot.salt, (memory_kib, passes, lanes))?;
            &stretched[..]
        }
        (Unlock::KeyFile(held), SlotKind::KeyFile) if held.0.len() < KEY_FILE_BYTES_MIN => {
            return Err(HeaderFault::KeyFileTooShort { len_bytes: held.0.len() });
        }
        (Unlock::KeyFile(held), SlotKind::KeyFile) => &held.0[..],
        (Unlock::Recovery(key), SlotKind::RecoveryKey) => &key.0[..],
        (
            Unlock::Passphrase(_) | Unlock::KeyFile(_) | Unlock::Recovery(_) | Unlock::Master(_),
            SlotKind::Passphrase { .. } | SlotKind::KeyFile | SlotKind::RecoveryKey,
        ) => return Err(HeaderFault::WrongKey),
    };
    let wrap = derive(secret, &slot.salt, &[b"strongroom slot wrap 1"]);
    Ok((PageKey::from_secret(wrap), derive(secret, &slot.salt, &[b"strongroom slot commit 1"])))
}

fn argon2id(typed: &Passphrase, salt: &[u8; 16], cost: (u32, u32, u32)) -> Result<Secret, HeaderFault> {
    let bomb = HeaderFault::MemoryBomb(cost);
    let params = Params::new(cost.0, cost.1, cost.2, Some(32)).map_err(|_| bomb.clone())?;
    // Our own memory, so that a machine without enough of it gets an answer and what was in it is wiped.
    let mut memory: Vec<Block> = Vec::new();
    memory.try_reserve_exact(params.block_count()).map_err(|_| bomb)?;
    memory.resize(params.block_count(), Block::default());
    let mut out = Secret::zeroed();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(&typed.0, salt, &mut out[..], &mut memory[..])
        .map_err(|_| HeaderFault::Malformed("the passphrase is too long for Argon2".to_owned()))?;
    memory.iter_mut().for_each(|block| AsMut::<[u64]>::as_mut(block).zeroize());
    Ok(out)
}

/// A cost that takes about a second here: first more memory, which hurts an attacker most, then more passes.
fn calibrate(world: &dyn World) -> Result<(u32, u32, u32), HeaderFault> {
    let (memory_kib, passes, lanes) = ARGON2_FLOOR;
    let begun = world.elapsed();
    argon2id(&Passphrase(b"calibration".to_vec()), &[0; 16], ARGON2_FLOOR)?;
    Ok(scale_cost((memory_kib, passes, lanes), world.elapsed().saturating_sub(begun)))
}

/// The floor, scaled from what it took to what it should take.
fn scale_cost((memory_kib, passes, lanes): (u32, u32, u32), took: Duration) -> (u32, u32, u32) {
    if took.is_zero() {
        return (memory_kib, passes, lanes);
    }
    let factor = CALIBRATED.as_secs_f64() / took.as_secs_f64();
    let memory_factor = factor.clamp(1.0, f64::from(CALIBRATED_MEMORY_KIB_MAX / memory_kib));
    let scaled_kib = (f64::from(memory_kib) * memory_factor) as u32 & !1023;
    let scaled_passes = (f64::from(passes) * (factor / memory_factor).max(1.0)) as u32;
    (scaled_kib.max(memory_kib), scaled_passes.clamp(passes, ARGON2_CEILING.1), lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with another implementation of Argon2id (RFC 9106, version 0x13).
    #[test]
    fn known_answer_of_argon2id() {
        let out = argon2id(&Passphrase(b"correct horse".to_vec()), b"0123456789abcdef", ARGON2_FLOOR).unwrap();
        assert_eq!(*out, *b"\x2f\x56\xf5\x36\x3a\x69\x52\x88\xff\x28\x81\x0e\x46\xad\x69\xa1\xfe\x30\x68\xbc\x64\x94\xcd\x26\xa8\xa6\x73\xb7\xd9\xc2\xb0\xa2");
    }

    /// Computed by another program (`tests/reader/vectors.py`).
    #[test]
    fn known_answers_of_every_step_from_a_secret_to_a_wrap() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/headers.json")).unwrap();
        let bytes = |value: &serde_json::Value| -> Vec<u8> {
            let digits = value.as_str().unwrap();
            (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
        };
        let steps = vectors["steps"].as_array().unwrap();
        let text = vectors["cases"][0]["text"].as_str().unwrap();
        let (header, _) = Header::parse(text.as_bytes()).unwrap();
        let master: [u8; 32] = bytes(&vectors["cases"][0]["master"]).try_into().unwrap();
        assert_eq!(steps.len(), header.slots.len());
        for (step, slot) in steps.iter().zip(&header.slots) {
            let typed = Passphrase(bytes(&step["secret"]));
            let secret = match slot.kind {
                SlotKind::Passphrase { memory_kib, passes, lanes } => {
                    argon2id(&typed, &slot.salt, (memory_kib, passes, lanes)).unwrap().to_vec()
                }
                SlotKind::KeyFile | SlotKind::RecoveryKey => typed.0.clone(),
            };
            assert_eq!(secret, bytes(&step["slot_secret"]));
            let wrap_key = derive(&secret, &slot.salt, &[b"strongroom slot wrap 1"]);
            assert_eq!(wrap_key[..], bytes(&step["wrap_key"]));
            let commitment = derive(&secret, &slot.salt, &[b"strongroom slot commit 1"]);
            assert_eq!(commitment[..], bytes(&step["commitment"]));
            assert_eq!(bound(&header, slot), bytes(&step["address"]));
            let mut key = master;
            let tag = PageKey::from_secret(wrap_key).seal(&bound(&header, slot), &slot.nonce, &mut key);
            assert_eq!([&key[..], &tag[..]].concat(), bytes(&step["wrapped"]));
        }
    }

    #[test]
    fn calibration_stays_between_floor_and_ceiling() {
        for took in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(90), Duration::from_secs(9)] {
            let cost = scale_cost(ARGON2_FLOOR, took);
            assert!(cost.0 >= ARGON2_FLOOR.0 && cost.1 >= ARGON2_FLOOR.1 && cost.2 >= ARGON2_FLOOR.2);
            assert!(cost.0 <= CALIBRATED_MEMORY_KIB_MAX && cost.1 <= ARGON2_CEILING.1 && cost.2 <= ARGON2_CEILING.2);
        }
        assert_eq!(scale_cost(ARGON2_FLOOR, Duration::from_millis(250)), (256 << 10, 3, 4));
        assert_eq!(scale_cost(ARGON2_FLOOR, Duration::from_micros(62_500)), (512 << 10, 6, 4));
    }
}
