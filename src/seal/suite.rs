//! The two ciphers that frames may be under.
//!
//! Promise: both are AEADs with a 256-bit key, a 96-bit nonce and a 128-bit tag, so that nothing outside this file
//! depends on which one a vault has. Both come from aws-lc-rs, which is 2 (ChaCha20-Poly1305) and 4 (AES-256-GCM) times
//! as fast as the portable crates; the portable ChaCha20-Poly1305 is the tests' independent witness.
//! Called by: `key`. On failure: `Forged`.

use super::Forged;
use crate::base::choice::SuiteId;
use crate::base::limits::TAG_BYTES;
use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

/// A cipher with its key.
pub(super) trait Suite: Send + Sync {
    /// Encrypts in place; gives the tag.
    fn seal(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; TAG_BYTES];
    /// Decrypts in place if the tag holds; else what `data` holds afterwards is of no use.
    fn open(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8], tag: &[u8]) -> Result<(), Forged>;
}

/// The number that stands for a suite where keys are derived and headers authenticated.
pub(super) fn number(suite: SuiteId) -> u8 {
    match suite {
        SuiteId::Aes256Gcm => 1,
        SuiteId::ChaCha20Poly1305 => 2,
    }
}

/// The cipher of a suite under a key.
pub(super) fn with_key(suite: SuiteId, key: &[u8; 32]) -> Box<dyn Suite> {
    let algorithm = match suite {
        SuiteId::Aes256Gcm => &AES_256_GCM,
        SuiteId::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    };
    Box::new(LessSafeKey::new(UnboundKey::new(algorithm, key).expect("both ciphers take 32-byte keys")))
}

/// "Less safe" because the nonce is ours to choose: it is the slot, used once under a key that is the segment's alone.
impl Suite for LessSafeKey {
    fn seal(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; TAG_BYTES] {
        self.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), data)
            .expect("a frame is far shorter than what one nonce can encrypt")
            .as_ref()
            .try_into()
            .expect("both ciphers have 16-byte tags")
    }

    fn open(&self, nonce: [u8; 12], aad: &[u8], data: &mut [u8], tag: &[u8]) -> Result<(), Forged> {
        match self.open_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), tag, data) {
            Ok(_) => Ok(()),
            Err(_) => Err(Forged),
        }
    }
}

/// AES-256-GCM where the processor has AES and carry-less multiplication, else ChaCha20-Poly1305.
#[must_use]
pub fn preferred_suite() -> SuiteId {
    #[cfg(target_arch = "x86_64")]
    let has_aes = is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has_aes = false;
    if has_aes { SuiteId::Aes256Gcm } else { SuiteId::ChaCha20Poly1305 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit};

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    fn known_answer(suite: SuiteId, key: &str, nonce: &str, aad: &str, plain: &[u8], sealed: &str, tag: &str) {
        let suite = with_key(suite, &bytes(key).try_into().unwrap());
        let nonce = bytes(nonce).try_into().unwrap();
        let mut data = plain.to_vec();
        assert_eq!(suite.seal(nonce, &bytes(aad), &mut data)[..], bytes(tag));
        assert_eq!(data, bytes(sealed));
        assert_eq!(suite.open(nonce, &bytes(aad), &mut data.clone(), &[0; 16]), Err(Forged));
        assert_eq!(suite.open(nonce, &bytes(aad), &mut data, &bytes(tag)), Ok(()));
        assert_eq!(data, plain);
    }

    /// Test case 16 of McGrew and Viega, "The Galois/Counter Mode of Operation".
    #[test]
    fn known_answer_of_aes_256_gcm() {
        known_answer(
            SuiteId::Aes256Gcm,
            "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
            "cafebabefacedbaddecaf888",
            "feedfacedeadbeeffeedfacedeadbeefabaddad2",
            &bytes(concat!(
                "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72",
                "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
            )),
            concat!(
                "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa",
                "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
            ),
            "76fc6ece0f4e1768cddf8853bb2d551b",
        );
    }

    /// RFC 8439, section 2.8.2.
    #[test]
    fn known_answer_of_chacha20_poly1305() {
        known_answer(
            SuiteId::ChaCha20Poly1305,
            "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
            "070000004041424344454647",
            "50515253c0c1c2c3c4c5c6c7",
            b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen \
              would be it.",
            concat!(
                "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6",
                "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36",
                "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc",
                "3ff4def08e4b7a9de576d26586cec64b6116"
            ),
            "1ae10b594f09e26a7e902ecbd0600691",
        );
    }

    #[test]
    fn two_implementations_of_chacha20_poly1305_agree() {
        for len in [0usize, 1, 63, 64, 65, 4096, 70_001] {
            let plain: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let (mut ours, mut theirs) = (plain.clone(), plain);
            let tag = with_key(SuiteId::ChaCha20Poly1305, &[9; 32]).seal([5; 12], b"bound", &mut ours);
            let witness = ChaCha20Poly1305::new((&[9; 32]).into());
            let its_tag =
                witness.encrypt_inout_detached((&[5; 12]).into(), b"bound", (&mut theirs[..]).into()).unwrap();
            assert_eq!((ours, tag), (theirs, its_tag.into()), "{len} bytes");
        }
    }
}
