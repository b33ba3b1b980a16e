//! A running SHA-256, for what must be found to be whole.
//!
//! Promise: equal values mean equal bytes in equal order. Called by: `segment::snapshot`. Cannot fail.

use aws_lc_rs::digest::{Context, SHA256};

/// SHA-256 over everything that was added.
#[derive(Clone)]
pub struct Digest(Context);

impl Digest {
    /// Begins with some bytes.
    #[must_use]
    pub fn begun_with(bytes: &[u8]) -> Digest {
        let mut digest = Digest(Context::new(&SHA256));
        digest.add(bytes);
        digest
    }

    /// Takes in some bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The value over everything so far; more may follow.
    #[must_use]
    pub fn value(&self) -> [u8; 32] {
        self.0.clone().finish().as_ref().try_into().expect("SHA-256 gives 32 bytes")
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digest(…)")
    }
}
