//! A pin: how far a vault had come, written down outside of it (architecture.md, "Older copies").
//!
//! Promise: a text has one spelling, and gives back what it was made from. It is plain, so that a person can read it.
//! Called by: `seal::pin`, which authenticates it. On failure: `Malformed`, which names the field.

use super::wire::{Malformed, malformed};
use crate::base::id::{CommitSeq, Epoch, Generation, VaultId};

/// Longest text.
pub const PIN_BYTES_MAX: usize = 512;
/// The first line.
const FIRST: &str = "strongroom pin 1";

/// The newest root of a vault, as far as somebody remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// Which vault.
    pub vault: VaultId,
    /// The root's generation.
    pub generation: Generation,
    /// The lease that it named.
    pub epoch: Epoch,
    /// The newest commit that its checkpoint covered.
    pub commit: CommitSeq,
}

impl Pin {
    /// The lines that are authenticated.
    #[must_use]
    pub fn lines(&self) -> String {
        let Pin { vault, generation, epoch, commit } = self;
        format!("{FIRST}\nvault {vault}\ngeneration {generation}\nepoch {epoch}\ncommit {commit}\n")
    }

    /// The whole text, with the authentication code of the lines.
    #[must_use]
    pub fn to_text(&self, mac: &[u8; 32]) -> String {
        let hex: String = mac.iter().map(|b| format!("{b:02x}")).collect();
        format!("{}mac {hex}\n", self.lines())
    }

    /// Reads a text; gives the pin and the code that it carries.
    pub fn parse(text: &[u8]) -> Result<(Pin, [u8; 32]), Malformed> {
        let wrong = |what| Malformed { what };
        let lines = str::from_utf8(text).map_err(|_| wrong("pin text"))?;
        let mut lines = lines.lines();
        if lines.next() != Some(FIRST) {
            return malformed("pin version");
        }
        let mut value = |name: &'static str| {
            let line = lines.next().and_then(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.strip_prefix(' ')).ok_or(wrong(name))
        };
        let vault = VaultId(unhex(value("vault")?).ok_or(wrong("vault"))?);
        let mut number = |name| value(name)?.parse::<u64>().map_err(|_| wrong(name));
        let (generation, epoch) = (Generation(number("generation")?), Epoch(number("epoch")?));
        let commit = CommitSeq(number("commit")?);
        let mac = unhex(value("mac")?).ok_or(wrong("mac"))?;
        let pin = Pin { vault, generation, epoch, commit };
        // One spelling: no other case, no leading zeros, nothing behind.
        if pin.to_text(&mac).as_bytes() == text { Ok((pin, mac)) } else { malformed("pin spelling") }
    }
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (byte, at) in out.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = "strongroom pin 1\nvault abababababababababababababababab\ngeneration 12\nepoch 3\ncommit 45\n\
                          mac 0909090909090909090909090909090909090909090909090909090909090909\n";

    #[test]
    fn golden_pin() {
        let (generation, epoch, commit) = (Generation(12), Epoch(3), CommitSeq(45));
        let pin = Pin { vault: VaultId([0xab; 16]), generation, epoch, commit };
        assert_eq!(pin.to_text(&[9; 32]), GOLDEN);
        assert_eq!(Pin::parse(GOLDEN.as_bytes()), Ok((pin, [9; 32])));
        let most = Pin { generation: Generation(u64::MAX), epoch: Epoch(u64::MAX), commit: CommitSeq(u64::MAX), ..pin };
        assert!(most.to_text(&[9; 32]).len() <= PIN_BYTES_MAX);
    }

    #[test]
    fn another_spelling_is_refused() {
        for (from, to) in [
            ("pin 1", "pin 2"),
            ("generation 12", "generation 012"),
            ("generation 12", "generation +12"),
            ("epoch 3", "epoch  3"),
            ("epoch 3\n", ""),
            ("commit 45", "commit -1"),
            ("commit 45", "commit 99999999999999999999"),
            ("vault ab", "vault AB"),
            ("vault ab", "vault a"),
            ("mac 09", "mac \u{e9}"),
            ("09\n", "09"),
            ("09\n", "09\n\n"),
            ("\nepoch", "\r\nepoch"),
        ] {
            assert!(GOLDEN.contains(from));
            assert!(Pin::parse(GOLDEN.replacen(from, to, 1).as_bytes()).is_err(), "{from:?} -> {to:?}");
        }
        assert!(Pin::parse(b"").is_err() && Pin::parse(&[0xff; 200]).is_err());
        (0..GOLDEN.len()).for_each(|len| assert!(Pin::parse(&GOLDEN.as_bytes()[..len]).is_err(), "cut to {len}"));
    }
}
