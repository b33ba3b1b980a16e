//! One way to get a key from a key: HKDF-SHA256 (RFC 5869).
//!
//! Promise: different `info` gives independent keys; every `info` in this folder begins with a text that no other use
//! has, and its parts have fixed lengths or are counted. Called by: `key`, `slot`, `header`, `pin`. Cannot fail.

use crate::base::secret::Secret;
use aws_lc_rs::hkdf;

/// 256 bits from `secret`, for the one use that `info` names.
pub(super) fn derive(secret: &[u8], salt: &[u8], info: &[&[u8]]) -> Secret {
    let mut key = Secret::zeroed();
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(secret)
        .expand(info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut key[..]))
        .expect("32 bytes are within what HKDF-SHA256 can give");
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_5869_test_case_1() {
        let salt: Vec<u8> = (0x00..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        assert_eq!(
            *derive(&[0x0b; 22], &salt, &[&info[..4], &info[4..]]),
            *b"\x3c\xb2\x5f\x25\xfa\xac\xd5\x7a\x90\x43\x4f\x64\xd0\x36\x2f\x2a\
               \x2d\x2d\x0a\x90\xcf\x1a\x5a\x4c\x5d\xb0\x2d\x56\xec\xc4\xc5\xbf"
        );
    }

    /// Computed by another program (`tests/reader/vectors.py`): every key that is derived from a master key.
    #[test]
    fn known_answers_of_every_subkey() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../../tests/vectors/keys.json")).unwrap();
        let bytes = |value: &serde_json::Value| -> Vec<u8> {
            let digits = value.as_str().unwrap();
            (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
        };
        let (master, cases) = (bytes(&vectors["master"]), vectors["cases"].as_array().unwrap());
        for (n, case) in cases.iter().enumerate() {
            let key = derive(&master, &bytes(&case["salt"]), &[&bytes(&case["info"])]);
            assert_eq!(key[..], bytes(&case["key"]), "{}", case["what"]);
            assert!(cases[..n].iter().all(|other| other["key"] != case["key"]), "no two uses share a key");
        }
    }
}
