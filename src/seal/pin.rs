//! Pins, authenticated: only who can open a vault can say how far it had come.
//!
//! Promise: a pin that opens was written by someone with the vault's master key, for that vault. It can be removed or put
//! back by whoever may write where it lies; that is why there may be several. Called by: `vault::pin`.
//! On failure: `Forged`.

use super::derive::derive;
use super::{Forged, MasterKey, VaultKeys};
use crate::base::id::{KeyNumber, VaultId};
use crate::format::pin::{MOVED_MAX, Moved, Pin};
use aws_lc_rs::hmac;

/// The text of a pin, and behind it the lines that say which master keys the vault has moved on from: those that are `known`,
/// and one for each old key that the header has.
#[must_use]
pub fn write_pins(pin: &Pin, keys: &VaultKeys, known: &[Moved]) -> Vec<u8> {
    let lines: String = moved_lines(pin.vault, keys, known).iter().map(Moved::to_line).collect();
    [write_pin(pin, keys.current()), lines.into_bytes()].concat()
}

/// Those lines: the newest ones, if there are too many.
#[must_use]
pub fn moved_lines(vault: VaultId, keys: &VaultKeys, known: &[Moved]) -> Vec<Moved> {
    let mut moved: Vec<Moved> = known.iter().filter(|line| line.key < keys.number()).cloned().collect();
    for (number, key) in keys.old() {
        moved.retain(|line| line.key != number);
        moved.push(moved_on(vault, number, key));
    }
    moved.sort_by_key(|line| line.key);
    moved.split_off(moved.len().saturating_sub(MOVED_MAX))
}

/// Whether a line says, with the key itself, that the vault has moved on from the key of this number.
#[must_use]
pub fn says_moved(line: &Moved, vault: VaultId, number: KeyNumber, key: &MasterKey) -> bool {
    let lines = Moved::lines(vault, number);
    line.key == number && hmac::verify(&moved_key(vault, key), lines.as_bytes(), &line.mac).is_ok()
}

fn moved_on(vault: VaultId, number: KeyNumber, key: &MasterKey) -> Moved {
    let mac = hmac::sign(&moved_key(vault, key), Moved::lines(vault, number).as_bytes());
    Moved { key: number, mac: mac.as_ref().try_into().expect("HMAC-SHA256 gives 32 bytes") }
}

fn moved_key(vault: VaultId, key: &MasterKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &derive(&key.0[..], &vault.0, &[b"strongroom pin moved 1"])[..])
}

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
