//! The master key and what is derived from it: one key per segment and per snapshot, one per file of pages.
//!
//! Promise: a segment's key is its own (fresh random salt), so slot numbers are nonces that never repeat; a key of one
//! vault, suite, epoch, segment or purpose opens nothing of another. No key is printed; each is wiped when dropped.
//! Called by: `segment` (frames), `index` and `vault` (pages, root). On failure: `Forged`.

use super::Forged;
use super::derive::derive;
use super::suite::{self, Suite};
use crate::base::choice::SuiteId;
use crate::base::id::{Epoch, SegmentId, VaultId};
use crate::base::limits::TAG_BYTES;
use crate::base::secret::Secret;
use crate::base::world::World;
use crate::format::frame::Address;
use crate::format::header::suite_number;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305};
use std::fmt;

/// The vault's one secret; everything else is derived from it.
#[derive(Clone)]
pub struct MasterKey(pub(super) Secret);

impl MasterKey {
    /// A new one.
    #[must_use]
    pub fn generate(world: &dyn World) -> Self {
        let mut key = Secret::zeroed();
        world.fill(&mut key[..]);
        MasterKey(key)
    }

    /// A key that came from `secret` in another process; whether it is a vault's, `open_header` finds out.
    #[must_use]
    pub fn from_secret(secret: Secret) -> Self {
        MasterKey(secret)
    }

    /// The key itself, to hand it to another process of ours.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.0
    }

    /// Whether it is the same.
    #[must_use]
    pub fn is(&self, other: &MasterKey) -> bool {
        verify_slices_are_equal(&self.0[..], &other.0[..]).is_ok()
    }

    /// The key of one segment (format.md §7).
    #[must_use]
    pub fn segment(
        &self,
        suite: SuiteId,
        vault: VaultId,
        epoch: Epoch,
        segment: SegmentId,
        salt: &[u8; 16],
    ) -> SegmentKey {
        self.of_file(b"strongroom segment 1", (suite, vault, epoch, segment), salt)
    }

    /// The key of one snapshot (format.md §7): a snapshot never opens as a segment with its number, nor the other way round.
    #[must_use]
    pub fn snapshot(
        &self,
        suite: SuiteId,
        vault: VaultId,
        epoch: Epoch,
        number: SegmentId,
        salt: &[u8; 16],
    ) -> SegmentKey {
        self.of_file(b"strongroom snapshot 1", (suite, vault, epoch, number), salt)
    }

    fn of_file(
        &self,
        what: &[u8],
        (suite, vault, epoch, segment): (SuiteId, VaultId, Epoch, SegmentId),
        salt: &[u8; 16],
    ) -> SegmentKey {
        let bound: [&[u8]; 5] =
            [what, &[suite_number(suite)], &vault.0, &epoch.0.to_le_bytes(), &segment.0.to_le_bytes()];
        let key = derive(&self.0[..], salt, &bound);
        SegmentKey { suite: suite::with_key(suite, &key), vault, epoch, segment }
    }

    /// The key of pages that are rewritten in place: the purpose ("root", "index") keeps uses apart, the salt files.
    #[must_use]
    pub fn pages(&self, vault: VaultId, purpose: &str, salt: &[u8; 16]) -> PageKey {
        let count = u8::try_from(purpose.len()).expect("purposes are short words in the source");
        let key = derive(&self.0[..], salt, &[b"strongroom pages 1", &vault.0, &[count], purpose.as_bytes()]);
        PageKey(key)
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(…)")
    }
}

/// Seals and opens the frames of one segment, or of one snapshot.
pub struct SegmentKey {
    suite: Box<dyn Suite>,
    vault: VaultId,
    epoch: Epoch,
    segment: SegmentId,
}

impl SegmentKey {
    /// Encrypts `buf[from..]` in place and appends the tag. The slot of `at` must never have been sealed before.
    pub fn seal(&self, at: &Address, buf: &mut Vec<u8>, from: usize) {
        debug_assert_eq!((at.vault, at.epoch, at.segment), (self.vault, self.epoch, self.segment));
        let tag = self.suite.seal(at.nonce(), &at.aad(), &mut buf[from..]);
        buf.extend_from_slice(&tag);
    }

    /// The same where there is room for the tag already: encrypts all but the last bytes of `buf` and puts the tag there.
    pub fn seal_in_place(&self, at: &Address, buf: &mut [u8]) {
        debug_assert_eq!((at.vault, at.epoch, at.segment), (self.vault, self.epoch, self.segment));
        let (body, tag) = buf.split_at_mut(buf.len() - TAG_BYTES);
        tag.copy_from_slice(&self.suite.seal(at.nonce(), &at.aad(), body));
    }

    /// Decrypts ciphertext and tag in place; when `Forged`, what is left there is of no use.
    pub fn open<'a>(&self, at: &Address, sealed: &'a mut [u8]) -> Result<&'a [u8], Forged> {
        let body_len = sealed.len().checked_sub(TAG_BYTES).ok_or(Forged)?;
        let (body, tag) = sealed.split_at_mut(body_len);
        self.suite.open(at.nonce(), &at.aad(), body, tag)?;
        Ok(body)
    }
}

impl fmt::Debug for SegmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentKey(of segment {}, …)", self.segment)
    }
}

/// Seals and opens pages with XChaCha20-Poly1305, whose nonces are long enough to be drawn at random each time.
pub struct PageKey(Secret);

impl PageKey {
    /// A key that tests choose.
    #[cfg(test)]
    pub fn of(key: [u8; 32]) -> Self {
        PageKey(Secret::from(key))
    }

    /// Encrypts in place; gives the tag. The nonce must be fresh random bytes.
    #[must_use]
    pub fn seal(&self, aad: &[u8], nonce: &[u8; 24], data: &mut [u8]) -> [u8; TAG_BYTES] {
        XChaCha20Poly1305::new((&*self.0).into())
            .encrypt_inout_detached(nonce.into(), aad, data.into())
            .expect("a page is far shorter than what one nonce can encrypt")
            .into()
    }

    /// Decrypts in place; when `Forged`, `data` is as it was.
    pub fn open(&self, aad: &[u8], nonce: &[u8; 24], data: &mut [u8], tag: &[u8; TAG_BYTES]) -> Result<(), Forged> {
        XChaCha20Poly1305::new((&*self.0).into())
            .decrypt_inout_detached(nonce.into(), aad, data.into(), tag.into())
            .map_err(|_| Forged)
    }

    /// For wraps, whose key is derived elsewhere.
    pub(super) fn from_secret(key: Secret) -> Self {
        PageKey(key)
    }
}

impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::choice::Codec;
    use crate::base::id::{Ino, Slot};
    use crate::format::frame::Kind;

    const VAULT: VaultId = VaultId([0xAA; 16]);

    fn master() -> MasterKey {
        MasterKey(Secret::from(std::array::from_fn(|i| i as u8)))
    }

    fn address() -> Address {
        Address {
            vault: VAULT,
            epoch: Epoch(2),
            segment: SegmentId(3),
            slot: Slot(4),
            kind: Kind::Data,
            codec: Codec::Raw,
            plain_len_bytes: 5,
            ino: Ino(6),
            offset_bytes: 7,
        }
    }

    fn key(suite: SuiteId) -> SegmentKey {
        master().segment(suite, VAULT, Epoch(2), SegmentId(3), &[0x55; 16])
    }

    #[test]
    fn golden_frames() {
        let golden: [(SuiteId, &[u8]); 2] = [
            (
                SuiteId::Aes256Gcm,
                b"\x5b\xb0\xcf\x2a\x6c\x0a\x72\xb0\x74\x79\x4e\x77\x37\x83\xa3\x58\x4b\x0a\xcf\x76\xaa",
            ),
            (
                SuiteId::ChaCha20Poly1305,
                b"\x6b\xcc\xd5\x75\x38\x4d\x89\x0c\x47\x01\xc3\x90\x52\x21\xa0\xcc\x56\xfb\x30\x85\xa3",
            ),
        ];
        for (suite, want) in golden {
            let mut buf = b"before".to_vec();
            buf.extend_from_slice(b"hello");
            key(suite).seal(&address(), &mut buf, 6);
            assert_eq!(&buf[..6], b"before");
            assert_eq!(&buf[6..], want, "sealed bytes changed: bump FORMAT_VERSION and add a vault to tests/vaults/");
            assert_eq!(key(suite).open(&address(), &mut buf[6..]), Ok(&b"hello"[..]));
            key(suite).seal_in_place(&address(), &mut buf[6..]);
            assert_eq!(&buf[6..], want);
        }
    }

    #[test]
    fn a_frame_opens_nowhere_else() {
        let at = address();
        let elsewhere = [
            Address { vault: VaultId([0xAB; 16]), ..at },
            Address { epoch: Epoch(3), ..at },
            Address { segment: SegmentId(4), ..at },
            Address { slot: Slot(5), ..at },
            Address { kind: Kind::Records, ..at },
            Address { codec: Codec::Lz4, ..at },
            Address { plain_len_bytes: 6, ..at },
            Address { ino: Ino(7), ..at },
            Address { offset_bytes: 8, ..at },
        ];
        for &suite in SuiteId::ALL {
            let mut sealed = b"hello".to_vec();
            key(suite).seal(&at, &mut sealed, 0);
            for other in &elsewhere {
                assert_eq!(key(suite).open(other, &mut sealed.clone()), Err(Forged), "{other:?}");
            }
            for bit in 0..sealed.len() * 8 {
                let mut changed = sealed.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(key(suite).open(&at, &mut changed), Err(Forged), "bit {bit}");
            }
            for len in 0..sealed.len() {
                assert_eq!(key(suite).open(&at, &mut sealed.clone()[..len]), Err(Forged), "cut to {len}");
            }
            assert_eq!(key(suite).open(&at, &mut sealed), Ok(&b"hello"[..]));
        }
    }

    #[test]
    fn everything_that_names_a_segment_changes_its_key() {
        let at = address();
        let aes = SuiteId::Aes256Gcm;
        let others = [
            MasterKey(Secret::zeroed()).segment(aes, VAULT, Epoch(2), SegmentId(3), &[0x55; 16]),
            master().segment(SuiteId::ChaCha20Poly1305, VAULT, Epoch(2), SegmentId(3), &[0x55; 16]),
            master().segment(aes, VaultId([0; 16]), Epoch(2), SegmentId(3), &[0x55; 16]),
            master().segment(aes, VAULT, Epoch(1), SegmentId(3), &[0x55; 16]),
            master().segment(aes, VAULT, Epoch(2), SegmentId(2), &[0x55; 16]),
            master().segment(aes, VAULT, Epoch(2), SegmentId(3), &[0x54; 16]),
        ];
        let mut sealed = b"hello".to_vec();
        key(aes).seal(&at, &mut sealed, 0);
        for other in others {
            assert_eq!(other.open(&at, &mut sealed.clone()), Err(Forged));
        }
    }

    /// draft-irtf-cfrg-xchacha-03, appendix A.3.1.
    #[test]
    fn known_answer_of_the_page_cipher() {
        let key = PageKey::of(std::array::from_fn(|i| 0x80 + i as u8));
        let nonce: [u8; 24] = std::array::from_fn(|i| 0x40 + i as u8);
        let aad = b"\x50\x51\x52\x53\xc0\xc1\xc2\xc3\xc4\xc5\xc6\xc7";
        let plain = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
                      sunscreen would be it.";
        let mut data = plain.to_vec();
        let tag = key.seal(aad, &nonce, &mut data);
        assert_eq!(tag, *b"\xc0\x87\x59\x24\xc1\xc7\x98\x79\x47\xde\xaf\xd8\x78\x0a\xcf\x49");
        assert_eq!(data[..16], *b"\xbd\x6d\x17\x9d\x3e\x83\xd4\x3b\x95\x76\x57\x94\x93\xc0\xe9\x39");
        assert_eq!(key.open(b"", &nonce, &mut data, &tag), Err(Forged));
        assert_eq!(key.open(aad, &[0; 24], &mut data, &tag), Err(Forged));
        assert_eq!(key.open(aad, &nonce, &mut data, &[0; 16]), Err(Forged));
        assert_eq!(key.open(aad, &nonce, &mut data, &tag), Ok(()), "a refusal leaves the page as it was");
        assert_eq!(data, plain);
    }

    #[test]
    fn page_keys_differ_by_vault_purpose_and_salt() {
        let sealed_by = |key: PageKey| key.seal(b"", &[0; 24], &mut []);
        let base = sealed_by(master().pages(VAULT, "root", &[1; 16]));
        assert_ne!(base, sealed_by(master().pages(VaultId([0; 16]), "root", &[1; 16])));
        assert_ne!(base, sealed_by(master().pages(VAULT, "index", &[1; 16])));
        assert_ne!(base, sealed_by(master().pages(VAULT, "root", &[2; 16])));
        assert_eq!(base, *b"\x09\x21\x2e\x13\x21\x08\xa1\xe3\x6b\x8d\xb9\xfd\x54\xa5\x1c\x2d", "page keys changed");
    }

    #[test]
    fn nothing_prints_a_key() {
        let master = MasterKey(Secret::from([0xC3; 32]));
        let shown = format!(
            "{master:?} {:?} {:?}",
            master.segment(SuiteId::Aes256Gcm, VAULT, Epoch(1), SegmentId(9), &[0; 16]),
            master.pages(VAULT, "root", &[0; 16])
        );
        assert_eq!(shown, "MasterKey(…) SegmentKey(of segment 9, …) PageKey(…)");
    }
}
