//! The vault header: made, opened, authenticated.
//!
//! Promise: `open_header` gives values that someone with the master key wrote, every one of them; `read_header` gives
//! what the text says, for showing only. Called by: `vault`, `cli`. On failure: `HeaderFault`.

use super::derive::derive;
use super::key::MasterKey;
use super::slot::{Unlock, add_slot, check_cost, unwrap_master};
use crate::base::choice::{Compression, SuiteId};
use crate::base::id::VaultId;
use crate::base::world::World;
use crate::format::header::{Header, HeaderText};
use aws_lc_rs::hmac;
use std::fmt;

/// What a new vault is to be.
#[derive(Debug, Clone)]
pub struct NewVault {
    /// Its identity, random.
    pub vault: VaultId,
    /// Its cipher.
    pub suite: SuiteId,
    /// How it compresses unless a mount says otherwise.
    pub compression: Compression,
    /// Most bytes that files may hold together.
    pub quota_bytes: Option<u64>,
    /// Most inodes.
    pub quota_inodes: Option<u64>,
    /// Memory in KiB, passes and lanes of Argon2id; `None` measures this machine and takes about a second's worth.
    pub argon2: Option<(u32, u32, u32)>,
}

/// Why a header was not made or not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderFault {
    /// No slot opens with this passphrase or key file.
    WrongKey,
    /// Not a header; one sentence says why.
    Malformed(String),
    /// A slot's Argon2id cost (memory in KiB, passes, lanes) is below the floor.
    Weak((u32, u32, u32)),
    /// A slot's Argon2id cost is above the ceiling, or this machine's memory.
    MemoryBomb((u32, u32, u32)),
    /// It needs something that this version does not know.
    UnknownFeature(String),
    /// The key is right, but the header is not as it was written.
    Tampered,
    /// A key file needs 32 bytes or more.
    KeyFileTooShort {
        /// How many it has.
        len_bytes: usize,
    },
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderFault::WrongKey => f.write_str("no key slot opens with this passphrase or key file"),
            HeaderFault::Malformed(why) => f.write_str(why),
            HeaderFault::Weak((memory_kib, passes, lanes)) => {
                write!(f, "Argon2id with {memory_kib} KiB, {passes} passes, {lanes} lanes is below the floor")
            }
            HeaderFault::MemoryBomb((memory_kib, passes, lanes)) => {
                write!(f, "Argon2id with {memory_kib} KiB, {passes} passes, {lanes} lanes is more than we will spend")
            }
            HeaderFault::UnknownFeature(what) => write!(f, "the vault needs a newer strongroom ({what})"),
            HeaderFault::Tampered => f.write_str("vault.toml was changed by someone without the key"),
            HeaderFault::KeyFileTooShort { len_bytes } => {
                write!(f, "the key file has {len_bytes} bytes, at least 32 are needed")
            }
        }
    }
}

impl std::error::Error for HeaderFault {}

impl From<HeaderText> for HeaderFault {
    fn from(fault: HeaderText) -> Self {
        match fault {
            HeaderText::Malformed(why) => HeaderFault::Malformed(why),
            HeaderText::UnknownFeature(what) => HeaderFault::UnknownFeature(what),
        }
    }
}

/// Makes a `vault.toml` with one slot, and the master key that is in it.
pub fn create_header(world: &dyn World, new: &NewVault, unlock: &Unlock) -> Result<(Vec<u8>, MasterKey), HeaderFault> {
    let master = MasterKey::generate(world);
    let mut header = Header {
        vault: new.vault,
        suite: new.suite,
        compression: new.compression,
        quota_bytes: new.quota_bytes,
        quota_inodes: new.quota_inodes,
        created_s: world.now().seconds,
        slots: Vec::new(),
    };
    add_slot(world, &mut header, &master, unlock, "first", new.argon2)?;
    Ok((write_header(&header, &master)?, master))
}

/// The text of a header, authenticated.
pub fn write_header(header: &Header, master: &MasterKey) -> Result<Vec<u8>, HeaderFault> {
    header.slots.iter().try_for_each(check_cost)?;
    let mac = hmac::sign(&mac_key(header, master), &header.canonical());
    Ok(header.to_text(mac.as_ref().try_into().expect("HMAC-SHA256 gives 32 bytes"))?)
}

/// Reads, unlocks and authenticates a `vault.toml`.
pub fn open_header(text: &[u8], unlock: &Unlock) -> Result<(Header, MasterKey), HeaderFault> {
    let (header, mac) = Header::parse(text)?;
    let master = unwrap_master(&header, unlock)?;
    match hmac::verify(&mac_key(&header, &master), &header.canonical(), &mac) {
        Ok(()) => Ok((header, master)),
        Err(_) => Err(HeaderFault::Tampered),
    }
}

/// Reads a `vault.toml` without a key. Nothing in it is authenticated: for showing only.
pub fn read_header(text: &[u8]) -> Result<Header, HeaderFault> {
    let (header, _) = Header::parse(text)?;
    header.slots.iter().try_for_each(check_cost)?;
    Ok(header)
}

fn mac_key(header: &Header, master: &MasterKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &derive(&master.0.0, &header.vault.0, &[b"strongroom header 1"])[..])
}
