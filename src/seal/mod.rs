//! The only cipher, key derivation and compression in strongroom.
//!
//! Promise: what is sealed here opens only with the same key at the same address, and whatever does not open says
//! `Forged` and nothing more; no key is ever printed, and each is wiped when dropped. The constructions are written down
//! byte by byte in format.md. Called by: `segment`, `index`, `vault`, `check`. On failure: `Forged`, `Malformed` or a
//! `HeaderFault`; sealing itself cannot fail.

mod chain;
mod codec;
mod derive;
mod digest;
mod header;
mod key;
mod keys;
mod pin;
mod recovery;
mod slot;
mod suite;

pub use chain::Chain;
pub use codec::{Compressor, decompress};
pub use digest::Digest;
pub use header::{
    HeaderFault, NewVault, UnlockedHeader, create_header, header_mark, open_header, read_header, unlock_header,
    write_header,
};
pub use key::{MasterKey, PageKey, SegmentKey};
pub use keys::{NEXT_KEY_BYTES, VaultKeys, open_next_key, seal_next_key, wrap_old_key};
pub use pin::{moved_lines, open_pin, says_moved, write_pin, write_pins};
pub use recovery::RecoveryKey;
pub use slot::{KEY_FILE_BYTES_MIN, Unlock, add_slot, fitting_slots, replace_slot};
pub use suite::preferred_suite;

pub use crate::format::header::{Header, KeySlot, LABEL_BYTES_MAX, OLD_KEYS_MAX, SLOTS_MAX, SlotKind};
pub use crate::format::recovery::Typo;
pub use crate::format::root::HeaderMark;

use std::fmt;

/// Bytes that do not open: another key, another place, or changed since they were sealed. Which one cannot be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forged;

impl fmt::Display for Forged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("does not open with this key at this place")
    }
}

impl std::error::Error for Forged {}
