//! Pins, authenticated: only who can open a vault can say how far it had come.
//!
//! Promise: a pin that opens was written by someone with the vault's master key, for that vault. It can be removed or put
//! back by whoever may write where it lies; that is why there may be several. Called by: `vault::pin`.
//! On failure: `Forged`.

use super::derive::derive;
use super::{Forged, MasterKey};
use crate::base::id::VaultId;
use crate::format::pin::Pin;
use aws_lc_rs::hmac;

/// The text of a pin.
#[must_use]
pub fn write_pin(pin: &Pin, master: &MasterKey) -> Vec<u8> {
    let mac = hmac::sign(&key(pin.vault, master), pin.lines().as_bytes());
    pin.to_text(mac.as_ref().try_into().expect("HMAC-SHA256 gives 32 bytes")).into_bytes()
}

/// Reads and authenticates the text of a vault's pin.
pub fn open_pin(text: &[u8], vault: VaultId, master: &MasterKey) -> Result<Pin, Forged> {
    let (pin, mac) = Pin::parse(text).map_err(|_| Forged)?;
    hmac::verify(&key(vault, master), pin.lines().as_bytes(), &mac).map_err(|_| Forged)?;
    if pin.vault == vault { Ok(pin) } else { Err(Forged) }
}

fn key(vault: VaultId, master: &MasterKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &derive(&master.0[..], &vault.0, &[b"strongroom pin 1"])[..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::{CommitSeq, Epoch, Generation};
    use crate::base::secret::Secret;

    #[test]
    fn a_pin_opens_only_as_it_was_written() {
        let (master, vault) = (MasterKey(Secret::from([1; 32])), VaultId([2; 16]));
        let pin = Pin { vault, generation: Generation(7), epoch: Epoch(2), commit: CommitSeq(30) };
        let text = write_pin(&pin, &master);
        assert_eq!(open_pin(&text, vault, &master), Ok(pin));
        assert_eq!(open_pin(&text, VaultId([3; 16]), &master), Err(Forged));
        assert_eq!(open_pin(&text, vault, &MasterKey(Secret::from([9; 32]))), Err(Forged));
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 1;
            assert_eq!(open_pin(&changed, vault, &master), Err(Forged), "byte {at}");
        }
        let other = write_pin(&Pin { generation: Generation(8), ..pin }, &master);
        let spliced = [&other[..other.len() - 69], &text[text.len() - 69..]].concat();
        assert!(Pin::parse(&spliced).is_ok(), "the splice is well-formed");
        assert_eq!(open_pin(&spliced, vault, &master), Err(Forged), "another generation under this code");
    }
}
