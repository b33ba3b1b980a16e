//! Key material that is wiped when dropped and never printed.
//!
//! Promise: a `Secret` shows itself in no message and leaves no bytes behind where it lay.
//! Called by: `seal`, `vault`, `cli`. Cannot fail.

use zeroize::{Zeroize, ZeroizeOnDrop};

/// 256 bits of key.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a person typed or a key file held.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Passphrase(pub Vec<u8>);

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(…)")
    }
}
