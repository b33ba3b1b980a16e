//! The page cipher of the index.
//!
//! Promise: what does not open under its key, nonce and associated data is refused. Called by: `index`.

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};

/// Bytes that were not sealed here, or not for this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forged;

/// The key of index pages.
pub struct PageKey(XChaCha20Poly1305);

impl PageKey {
    /// From 32 bytes.
    #[must_use]
    pub fn from_bytes(key: &[u8; 32]) -> Self {
        PageKey(XChaCha20Poly1305::new(key.into()))
    }
    /// Encrypts in place and gives the tag.
    #[must_use]
    pub fn seal(&self, aad: &[u8], nonce: &[u8; 24], data: &mut [u8]) -> [u8; 16] {
        let tag = self.0.encrypt_inout_detached(&XNonce::from(*nonce), aad, data.into());
        tag.expect("a page is far below the cipher's limit").into()
    }
    /// Decrypts in place; on refusal the data is not plaintext.
    pub fn open(&self, aad: &[u8], nonce: &[u8; 24], data: &mut [u8], tag: &[u8; 16]) -> Result<(), Forged> {
        let tag = Tag::from(*tag);
        self.0.decrypt_inout_detached(&XNonce::from(*nonce), aad, data.into(), &tag).map_err(|_| Forged)
    }
}
