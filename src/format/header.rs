//! `vault.toml`: what the vault is and who may open it, as text (format.md §8).
//!
//! Promise: a text that parses gives values whose every field has the one right length and spelling; nothing in it is
//! trusted before `seal` has checked its authentication code over `Header::canonical`.
//! Called by: `seal`. On failure: a `HeaderText` fault with one sentence for a person.

use super::wire::Write;
use super::{FORMAT_VERSION, FORMAT_VERSION_OLDEST};
use crate::base::choice::{Compression, SuiteId};
use crate::base::id::{KeyNumber, VaultId};
use serde::{Deserialize, Serialize};

/// Longest text that is read.
pub const HEADER_BYTES_MAX: usize = 64 << 10;
/// Most key slots.
pub const SLOTS_MAX: usize = 32;
/// The first format in which a header may have a revision.
pub const REVISION_FORMAT: u16 = 3;
/// The first format in which a header may name a master key, and old ones.
pub const KEYS_FORMAT: u16 = 4;
/// Most old master keys that a header keeps.
pub const OLD_KEYS_MAX: usize = 8;
/// Longest label of a slot.
pub const LABEL_BYTES_MAX: usize = 255;

/// Why a text is not a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderText {
    /// It breaks a rule; one sentence says which.
    Malformed(String),
    /// It needs something that this version does not know.
    UnknownFeature(String),
}

/// What a slot is opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// A passphrase, through Argon2id.
    Passphrase {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes over it.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// The contents of a key file, through HKDF alone.
    KeyFile,
    /// The 32 bytes that a recovery key is made of (`format::recovery`), through HKDF alone.
    RecoveryKey,
}

impl SlotKind {
    /// What stands in the text.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SlotKind::Passphrase { .. } => "passphrase",
            SlotKind::KeyFile => "key-file",
            SlotKind::RecoveryKey => "recovery-key",
        }
    }
}

/// The master key, wrapped for one passphrase, key file or recovery key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySlot {
    /// Its number; no two slots of a vault share one.
    pub id: u32,
    /// What opens it.
    pub kind: SlotKind,
    /// What a person called it.
    pub label: String,
    /// When it was made, in seconds since 1970.
    pub created_s: i64,
    /// Salt of the derivation.
    pub salt: [u8; 16],
    /// Nonce of the wrap.
    pub nonce: [u8; 24],
    /// What only the right key gives.
    pub commitment: [u8; 32],
    /// The wrapped master key and its tag.
    pub wrapped: [u8; 48],
}

/// A master key of before, wrapped under the one in force: segments are still under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldKey {
    /// Its number; less than that of the one in force.
    pub number: KeyNumber,
    /// Nonce of the wrap.
    pub nonce: [u8; 24],
    /// The wrapped key and its tag.
    pub wrapped: [u8; 48],
}

/// The values of a `vault.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The format of what lies in the vault: from `FORMAT_VERSION_OLDEST` to `FORMAT_VERSION`.
    pub format: u16,
    /// How often it was changed since the vault was made; 0 before `REVISION_FORMAT`.
    pub revision: u64,
    /// The vault.
    pub vault: VaultId,
    /// Its cipher.
    pub suite: SuiteId,
    /// How it compresses unless a mount says otherwise.
    pub compression: Compression,
    /// Most bytes that files may hold together.
    pub quota_bytes: Option<u64>,
    /// Most inodes.
    pub quota_inodes: Option<u64>,
    /// When it was made, in seconds since 1970.
    pub created_s: i64,
    /// Its key slots, at least one.
    pub slots: Vec<KeySlot>,
    /// The number of the master key that is in them; 0 before `KEYS_FORMAT`.
    pub key: KeyNumber,
    /// Those of before that segments are still under, by number; none before `KEYS_FORMAT`.
    pub old_keys: Vec<OldKey>,
}

/// What is looked at first: a text of the future may have fields that mean nothing here.
#[derive(Deserialize)]
struct Preview {
    format: i64,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<u16>,
    vault: String,
    suite: String,
    compression: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    quota_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quota_inodes: Option<u64>,
    created: i64,
    features: Vec<String>,
    mac: String,
    slot: Vec<SlotText>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    old_key: Vec<OldKeyText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OldKeyText {
    number: u16,
    nonce: String,
    wrapped: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotText {
    id: u32,
    kind: String,
    label: String,
    created: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_kib: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    passes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lanes: Option<u32>,
    salt: String,
    nonce: String,
    commitment: String,
    wrapped: String,
}

fn malformed<T>(sentence: impl Into<String>) -> Result<T, HeaderText> {
    Err(HeaderText::Malformed(sentence.into()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Lower-case hexadecimal of exactly `N` bytes.
fn unhex<const N: usize>(text: &str, field: &str) -> Result<[u8; N], HeaderText> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    let (pairs, odd) = text.as_bytes().as_chunks::<2>();
    if pairs.len() == N && odd.is_empty() {
        let mut all = pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?));
        if out.iter_mut().all(|byte| all.next().flatten().map(|value| *byte = value).is_some()) {
            return Ok(out);
        }
    }
    malformed(format!("'{field}' must be {} lower-case hexadecimal digits", 2 * N))
}

impl Header {
    /// Reads a text; gives its values and the authentication code that it carries.
    pub fn parse(text: &[u8]) -> Result<(Header, [u8; 32]), HeaderText> {
        if text.len() > HEADER_BYTES_MAX {
            return malformed(format!("vault.toml is longer than {HEADER_BYTES_MAX} bytes"));
        }
        let Ok(text) = std::str::from_utf8(text) else { return malformed("vault.toml is not UTF-8 text") };
        let wrong = |e: toml::de::Error| HeaderText::Malformed(format!("vault.toml: {}", e.message()));
        let preview: Preview = toml::from_str(text).map_err(wrong)?;
        let known = i64::from(FORMAT_VERSION_OLDEST)..=i64::from(FORMAT_VERSION);
        if !known.contains(&preview.format) {
            return Err(HeaderText::UnknownFeature(format!("format {}", preview.format)));
        }
        if let Some(feature) = preview.features.into_iter().next() {
            return Err(HeaderText::UnknownFeature(feature));
        }
        let text: Text = toml::from_str(text).map_err(wrong)?;
        if text.slot.is_empty() || text.slot.len() > SLOTS_MAX {
            return malformed(format!("vault.toml must have 1 to {SLOTS_MAX} key slots, not {}", text.slot.len()));
        }
        let slots = text.slot.into_iter().map(KeySlot::parse).collect::<Result<Vec<_>, _>>()?;
        for (i, slot) in slots.iter().enumerate() {
            if slots[..i].iter().any(|other| other.id == slot.id) {
                return malformed(format!("two key slots have the number {}", slot.id));
            }
        }
        if text.revision.is_some_and(|revision| revision == 0 || text.format < REVISION_FORMAT) {
            return malformed("'revision' is a number from 1 on, and there is none in older formats");
        }
        if text.key.is_some_and(|key| key == 0 || text.format < KEYS_FORMAT || text.revision.is_none()) {
            return malformed(
                "'key' is a number from 1 on, of a header that has a revision, and there is none in older formats",
            );
        }
        let key = KeyNumber(text.key.unwrap_or(0));
        let old_keys = text.old_key.into_iter().map(OldKey::parse).collect::<Result<Vec<_>, _>>()?;
        let in_order = old_keys.iter().zip(old_keys.iter().skip(1)).all(|(a, b)| a.number < b.number);
        if old_keys.len() > OLD_KEYS_MAX || !in_order || old_keys.last().is_some_and(|last| last.number >= key) {
            return malformed(format!(
                "old keys are at most {OLD_KEYS_MAX}, in ascending order, and each has a number below that of the key in force"
            ));
        }
        let header = Header {
            format: text.format,
            revision: text.revision.unwrap_or(0),
            vault: VaultId(unhex(&text.vault, "vault")?),
            suite: text.suite.parse().map_err(HeaderText::Malformed)?,
            compression: text.compression.parse().map_err(HeaderText::Malformed)?,
            quota_bytes: text.quota_bytes,
            quota_inodes: text.quota_inodes,
            created_s: text.created,
            slots,
            key,
            old_keys,
        };
        Ok((header, unhex(&text.mac, "mac")?))
    }

    /// The text, carrying the authentication code.
    pub fn to_text(&self, mac: &[u8; 32]) -> Result<Vec<u8>, HeaderText> {
        let text = Text {
            format: self.format,
            revision: (self.revision > 0).then_some(self.revision),
            key: (self.key.0 > 0).then_some(self.key.0),
            vault: hex(&self.vault.0),
            suite: self.suite.to_string(),
            compression: self.compression.to_string(),
            quota_bytes: self.quota_bytes,
            quota_inodes: self.quota_inodes,
            created: self.created_s,
            features: Vec::new(),
            mac: hex(mac),
            slot: self.slots.iter().map(KeySlot::to_text).collect(),
            old_key: self.old_keys.iter().map(OldKey::to_text).collect(),
        };
        let text = toml::to_string(&text).map_err(|e| HeaderText::Malformed(e.to_string()))?.into_bytes();
        // What could not be read back must not be written.
        match Header::parse(&text)? {
            (read, code) if read == *self && code == *mac => Ok(text),
            _ => malformed("these values do not survive being written as vault.toml"),
        }
    }

    /// The bytes under the authentication code: every value, in one spelling.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        let mut b = b"SRH1".to_vec();
        b.extend_from_slice(&self.format.to_le_bytes());
        b.extend_from_slice(&self.vault.0);
        b.push(suite_number(self.suite));
        b.push(match self.compression {
            Compression::Auto => 1,
            Compression::Zstd => 2,
            Compression::Lz4 => 3,
            Compression::None => 4,
        });
        for quota in [self.quota_bytes, self.quota_inodes] {
            b.push(u8::from(quota.is_some()));
            b.extend_from_slice(&quota.unwrap_or(0).to_le_bytes());
        }
        b.extend_from_slice(&self.created_s.to_le_bytes());
        // No features are known; their count is bound so that none can be added.
        b.extend_from_slice(&0u32.to_le_bytes());
        b.extend_from_slice(&(self.slots.len() as u32).to_le_bytes());
        for slot in &self.slots {
            b.extend_from_slice(&slot.bound());
            b.extend_from_slice(&slot.created_s.to_le_bytes());
            b.counted(slot.label.as_bytes());
            b.extend_from_slice(&slot.nonce);
            b.extend_from_slice(&slot.commitment);
            b.extend_from_slice(&slot.wrapped);
        }
        // Nothing where there is none: so the code of a header that was never changed is that of older formats' bytes.
        if self.revision > 0 {
            b.extend_from_slice(&self.revision.to_le_bytes());
        }
        if self.key.0 > 0 {
            b.extend_from_slice(b"KEYS");
            b.extend_from_slice(&self.key.0.to_le_bytes());
            b.extend_from_slice(&(self.old_keys.len() as u16).to_le_bytes());
            for old in &self.old_keys {
                b.extend_from_slice(&old.number.0.to_le_bytes());
                b.extend_from_slice(&old.nonce);
                b.extend_from_slice(&old.wrapped);
            }
        }
        b
    }
}

/// The number of a suite in canonical bytes and key derivations.
#[must_use]
pub fn suite_number(suite: SuiteId) -> u8 {
    match suite {
        SuiteId::Aes256Gcm => 1,
        SuiteId::ChaCha20Poly1305 => 2,
    }
}

impl KeySlot {
    /// What both the wrap and the authentication code bind: number, kind, cost and salt (33 bytes).
    #[must_use]
    pub fn bound(&self) -> [u8; 33] {
        let (kind, memory_kib, passes, lanes) = match self.kind {
            SlotKind::Passphrase { memory_kib, passes, lanes } => (1, memory_kib, passes, lanes),
            SlotKind::KeyFile => (2, 0, 0, 0),
            SlotKind::RecoveryKey => (3, 0, 0, 0),
        };
        let mut b = [0; 33];
        b[..4].copy_from_slice(&self.id.to_le_bytes());
        b[4] = kind;
        b[5..9].copy_from_slice(&memory_kib.to_le_bytes());
        b[9..13].copy_from_slice(&passes.to_le_bytes());
        b[13..17].copy_from_slice(&lanes.to_le_bytes());
        b[17..].copy_from_slice(&self.salt);
        b
    }

    fn parse(text: SlotText) -> Result<KeySlot, HeaderText> {
        let kind = match (text.kind.as_str(), text.memory_kib, text.passes, text.lanes) {
            ("passphrase", Some(memory_kib), Some(passes), Some(lanes)) => {
                SlotKind::Passphrase { memory_kib, passes, lanes }
            }
            ("key-file", None, None, None) => SlotKind::KeyFile,
            ("recovery-key", None, None, None) => SlotKind::RecoveryKey,
            ("passphrase" | "key-file" | "recovery-key", ..) => {
                return malformed("memory_kib, passes and lanes stand in passphrase slots, and only there");
            }
            (other, ..) => return Err(HeaderText::UnknownFeature(format!("key slots of kind '{other}'"))),
        };
        if text.label.len() > LABEL_BYTES_MAX {
            return malformed(format!("a slot's label is longer than {LABEL_BYTES_MAX} bytes"));
        }
        Ok(KeySlot {
            id: text.id,
            kind,
            label: text.label,
            created_s: text.created,
            salt: unhex(&text.salt, "salt")?,
            nonce: unhex(&text.nonce, "nonce")?,
            commitment: unhex(&text.commitment, "commitment")?,
            wrapped: unhex(&text.wrapped, "wrapped")?,
        })
    }

    fn to_text(&self) -> SlotText {
        let cost = match self.kind {
            SlotKind::Passphrase { memory_kib, passes, lanes } => Some((memory_kib, passes, lanes)),
            SlotKind::KeyFile | SlotKind::RecoveryKey => None,
        };
        SlotText {
            id: self.id,
            kind: self.kind.name().to_owned(),
            label: self.label.clone(),
            created: self.created_s,
            memory_kib: cost.map(|c| c.0),
            passes: cost.map(|c| c.1),
            lanes: cost.map(|c| c.2),
            salt: hex(&self.salt),
            nonce: hex(&self.nonce),
            commitment: hex(&self.commitment),
            wrapped: hex(&self.wrapped),
        }
    }
}

impl OldKey {
    fn parse(text: OldKeyText) -> Result<OldKey, HeaderText> {
        let number = KeyNumber(text.number);
        Ok(OldKey { number, nonce: unhex(&text.nonce, "nonce")?, wrapped: unhex(&text.wrapped, "wrapped")? })
    }

    fn to_text(&self) -> OldKeyText {
        OldKeyText { number: self.number.0, nonce: hex(&self.nonce), wrapped: hex(&self.wrapped) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_has_one_spelling() {
        assert_eq!(unhex("00ff", "x"), Ok([0, 255]));
        for wrong in ["", "00f", "00FF", "0g00", "00ff00", "é0"] {
            assert!(unhex::<2>(wrong, "x").is_err(), "{wrong}");
        }
    }

    #[test]
    fn garbage_is_refused() {
        for text in [&b""[..], b"\xff", b"format = 1", b"format = 'one'", &[b'#'; HEADER_BYTES_MAX + 1]] {
            assert!(matches!(Header::parse(text), Err(HeaderText::Malformed(_))));
        }
        for (number, what) in [("0", "format 0"), ("6", "format 6"), ("-1", "format -1")] {
            let future = format!("format = {number}\nsurprise = 1");
            assert_eq!(Header::parse(future.as_bytes()), Err(HeaderText::UnknownFeature(what.into())));
        }
        let far = b"format = 70000";
        assert_eq!(Header::parse(far), Err(HeaderText::UnknownFeature("format 70000".into())));
        let feature = b"format = 1\nfeatures = ['holes']\nholes = 1";
        assert_eq!(Header::parse(feature), Err(HeaderText::UnknownFeature("holes".into())));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_header_or_a_refusal(text in "(format = [12345]\n)?([a-z_]+ = ([0-9]{1,20}|\"[0-9a-f]{0,40}\"|\\[\\])\n|\\[\\[slot\\]\\]\n|\\PC){0,20}") {
            let _ = Header::parse(text.as_bytes());
        }
    }
}
