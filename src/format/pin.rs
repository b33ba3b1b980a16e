//! A pin: how far a vault had come, written down outside of it (architecture.md, "Older copies").
//!
//! Promise: a text has one spelling, and gives back what it was made from. It is plain, so that a person can read it.
//! Called by: `seal::pin`, which authenticates it. On failure: `Malformed`, which names the field.

use super::wire::{Malformed, malformed};
use crate::base::id::{CommitSeq, Epoch, Generation, KeyNumber, VaultId};

/// Longest text.
pub const PIN_BYTES_MAX: usize = 4096;
/// Most lines that say which master keys the vault has moved on from.
pub const MOVED_MAX: usize = 32;
/// The first line.
const FIRST: &str = "strongroom pin 1";
/// Lines of the pin itself.
const PIN_LINES: usize = 6;

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

/// That a vault has moved on from a master key: who opens it with that one has an older header before him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The number of the key.
    pub key: KeyNumber,
    /// What only that key gives.
    pub mac: [u8; 32],
}

impl Moved {
    /// The lines that are authenticated with the key itself.
    #[must_use]
    pub fn lines(vault: VaultId, key: KeyNumber) -> String {
        format!("strongroom pin moved 1\nvault {vault}\nkey {key}\n")
    }

    /// The line behind a pin.
    #[must_use]
    pub fn to_line(&self) -> String {
        format!("moved {} {}\n", self.key, hex(&self.mac))
    }

    fn parse(line: &str) -> Option<Moved> {
        let (key, mac) = line.strip_prefix("moved ")?.split_once(' ')?;
        let moved = Moved { key: KeyNumber(key.parse().ok()?), mac: unhex(mac)? };
        (moved.to_line().strip_suffix('\n') == Some(line)).then_some(moved)
    }
}

/// Reads the lines behind a pin, each with a greater key than the one before; none of them counts if one is wrong.
pub fn parse_moved(text: &[u8]) -> Result<Vec<Moved>, Malformed> {
    let wrong = Malformed { what: "pin moved" };
    let behind = str::from_utf8(split(text).1).map_err(|_| wrong)?;
    if !behind.is_empty() && !behind.ends_with('\n') {
        return Err(wrong);
    }
    let moved =
        behind.split_terminator('\n').map(|line| Moved::parse(line).ok_or(wrong)).collect::<Result<Vec<_>, _>>()?;
    let in_order = moved.iter().zip(moved.iter().skip(1)).all(|(a, b)| a.key < b.key);
    if in_order && moved.len() <= MOVED_MAX { Ok(moved) } else { Err(wrong) }
}

/// The pin's own lines, and those behind.
fn split(text: &[u8]) -> (&[u8], &[u8]) {
    let ends = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    text.split_at(ends.map(|(at, _)| at + 1).nth(PIN_LINES - 1).unwrap_or(text.len()))
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
        format!("{}mac {}\n", self.lines(), hex(mac))
    }

    /// Reads a text; gives the pin and the code that it carries. What stands behind it is for `parse_moved`.
    pub fn parse(text: &[u8]) -> Result<(Pin, [u8; 32]), Malformed> {
        let text = split(text).0;
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
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
        assert_eq!(parse_moved(GOLDEN.as_bytes()), Ok(Vec::new()));
        let moved = [0, 300].map(|key| Moved { key: KeyNumber(key), mac: [7; 32] });
        let sevens = "07".repeat(32);
        let golden = format!("{GOLDEN}moved 0 {sevens}\nmoved 300 {sevens}\n");
        assert_eq!(GOLDEN.to_owned() + &moved.iter().map(Moved::to_line).collect::<String>(), golden);
        assert_eq!(Pin::parse(golden.as_bytes()), Ok((pin, [9; 32])));
        assert_eq!(parse_moved(golden.as_bytes()), Ok(moved.to_vec()));
        for (from, to) in [
            ("moved 0 ", "moved 300 "),
            ("moved 0 ", "moved 00 "),
            ("moved 0 ", "moved +0 "),
            ("moved 300", "moved 65536"),
            ("moved 0 ", "moved 0  "),
            ("07\nmoved", "0\nmoved"),
            ("07\nmoved", "07\r\nmoved"),
            ("moved 0", "\nmoved 0"),
        ] {
            assert!(parse_moved(golden.replacen(from, to, 1).as_bytes()).is_err(), "{from:?} -> {to:?}");
        }
        assert!(parse_moved(&golden.as_bytes()[..golden.len() - 1]).is_err());
        let line = |key| Moved { key: KeyNumber(key), mac: [7; 32] }.to_line();
        let many = |count: u16| GOLDEN.to_owned() + &(0..count).map(line).collect::<String>();
        assert!(parse_moved(many(MOVED_MAX as u16).as_bytes()).is_ok());
        assert!(parse_moved(many(MOVED_MAX as u16 + 1).as_bytes()).is_err());
        assert!(many(MOVED_MAX as u16).len() + 100 < PIN_BYTES_MAX);
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
            ("\nepoch", "\r\nepoch"),
        ] {
            assert!(GOLDEN.contains(from));
            assert!(Pin::parse(GOLDEN.replacen(from, to, 1).as_bytes()).is_err(), "{from:?} -> {to:?}");
        }
        assert!(Pin::parse(b"").is_err() && Pin::parse(&[0xff; 200]).is_err());
        (0..GOLDEN.len()).for_each(|len| assert!(Pin::parse(&GOLDEN.as_bytes()[..len]).is_err(), "cut to {len}"));
    }
}
