//! A recovery key as a person keeps it: 32 bytes in eight groups of eight characters (format.md §8).
//!
//! Promise: what is typed back in any case, with any spaces and dashes, gives the same bytes; a mistyped or exchanged
//! group is told by its number, before anything is derived from it. Any one wrong character, and any two exchanged in a
//! group, are noticed for certain, everything else but one time in 256 for each group.
//! Called by: `seal` (`RecoveryKey`). On failure: a `Typo`; nothing typed is in it.

use std::fmt;

/// Bytes that a key has.
pub const KEY_BYTES: usize = 32;
/// Groups that it is written in.
pub const GROUPS: usize = 8;
/// Characters of a group: 40 bits, of which 32 are the key's and 8 the checksum.
const GROUP_CHARS: usize = 8;
/// Crockford's base32: no I, L, O, U, so that nothing in it can be misread or reads as a word.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// x^8 + x^4 + x^3 + x^2 + 1, which is primitive: so two characters that were exchanged always show.
const POLYNOMIAL: u8 = 0x1d;

/// Why what was typed is not a recovery key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Typo {
    /// It has not eight groups.
    Groups {
        /// How many it has.
        count: usize,
    },
    /// A group is not as it was printed.
    Group {
        /// Which one, from 1.
        number: usize,
    },
}

impl fmt::Display for Typo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Typo::Groups { count } => {
                write!(f, "a recovery key has {GROUPS} groups of {GROUP_CHARS} characters, and this has {count}")
            }
            Typo::Group { number } => write!(f, "group {number} of the recovery key is mistyped"),
        }
    }
}

/// The text that is printed, groups joined with dashes.
#[must_use]
pub fn write(key: &[u8; KEY_BYTES]) -> String {
    // One allocation, so that no copy of it is left behind by growing.
    let mut text = String::with_capacity(GROUPS * (GROUP_CHARS + 1));
    for (n, four) in key.chunks_exact(4).enumerate() {
        if n > 0 {
            text.push('-');
        }
        let bits = four.iter().chain([&check(n, four)]).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        (0..GROUP_CHARS).rev().for_each(|i| text.push(char::from(ALPHABET[(bits >> (5 * i)) as usize & 31])));
    }
    text
}

/// Reads what was typed into `key`.
pub fn read(typed: &str, key: &mut [u8; KEY_BYTES]) -> Result<(), Typo> {
    let groups = groups(typed);
    // A wrong group says more than a wrong number of them.
    for (n, four) in key.chunks_exact_mut(4).enumerate().take(groups.len()) {
        let read = groups[n].and_then(|bits| held(n, bits)).ok_or(Typo::Group { number: n + 1 })?;
        four.copy_from_slice(&read);
    }
    if groups.len() == GROUPS { Ok(()) } else { Err(Typo::Groups { count: groups.len() }) }
}

/// Whether what was typed can only be meant as a recovery key: at least half of its groups are as they were printed. By
/// chance that happens to a text of as many characters once in a hundred million times.
#[must_use]
pub fn is_meant(typed: &str) -> bool {
    let groups = groups(typed);
    let holding = groups.iter().take(GROUPS).enumerate().filter(|(n, g)| g.and_then(|bits| held(*n, bits)).is_some());
    holding.count() * 2 >= GROUPS
}

/// The key's bytes of a group whose checksum holds.
fn held(n: usize, bits: u64) -> Option<[u8; 4]> {
    let four = ((bits >> 8) as u32).to_be_bytes();
    (check(n, &four) == bits as u8).then_some(four)
}

/// What was typed, in groups of 40 bits: as it was separated if that makes eight, else by counting. `None` is a group of
/// another length, or one with a character that no key has.
fn groups(typed: &str) -> Vec<Option<u64>> {
    let is_gap = |c: char| c.is_whitespace() || matches!(c, '-' | '\u{2010}'..='\u{2015}' | '_' | '.');
    let parts: Vec<&str> = typed.split(is_gap).filter(|part| !part.is_empty()).collect();
    if parts.len() == GROUPS {
        return parts.iter().map(|part| bits(part.chars())).collect();
    }
    let count = parts.iter().map(|part| part.chars().count()).sum::<usize>().div_ceil(GROUP_CHARS);
    let all = || parts.iter().flat_map(|part| part.chars());
    (0..count).map(|n| bits(all().skip(n * GROUP_CHARS).take(GROUP_CHARS))).collect()
}

fn bits(chars: impl Iterator<Item = char>) -> Option<u64> {
    let (mut bits, mut count) = (0, 0);
    for c in chars {
        // What is not in the alphabet because it looks like something that is.
        let c = match c.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            c => c,
        };
        bits = bits << 5 | ALPHABET.iter().position(|a| char::from(*a) == c)? as u64;
        count += 1;
        if count > GROUP_CHARS {
            return None;
        }
    }
    (count == GROUP_CHARS).then_some(bits)
}

/// CRC-8 of a group's bytes, begun from its number, so that groups in each other's place do not hold.
fn check(n: usize, four: &[u8]) -> u8 {
    let begin = n as u8 + 1;
    four.iter().fold(begin, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| if crc & 0x80 == 0 { crc << 1 } else { crc << 1 ^ POLYNOMIAL })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = *b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\xf0\xf1\xf2\xf3\xf4\xf5\xf6\xf7\xf8\xf9\xfa\xfb\xfc\xfd\xfe\xff";

    fn typed(text: &str) -> Result<[u8; 32], Typo> {
        let mut key = [0; 32];
        read(text, &mut key).map(|()| key)
    }

    #[test]
    fn golden_recovery_key() {
        let text = write(&KEY);
        assert_eq!(
            text, "000G40XD-0G2GC1R6-104GM2X8-1G6GW3TD-Y3RZ5WSR-YKTZDXWK-Z3WZNYSX-ZKYZXZT4",
            "printed keys must be read for ever"
        );
        assert_eq!(typed(&text), Ok(KEY));
        assert_eq!(write(&[0; 32]).len(), 71);
    }

    #[test]
    fn case_gaps_and_lookalikes_do_not_matter() {
        let text = write(&KEY);
        for same in [
            text.to_lowercase(),
            text.replace('-', ""),
            text.replace('-', " "),
            text.replace('-', " - "),
            format!("\n {}\r\n", text.replace('-', "\n")),
            text.replace('0', "O").replace('1', "l"),
            text.replace('0', "o").replace('1', "I").replace('-', "\u{2013}"),
            // In other groups than they were printed in.
            text.replace('-', "")
                .chars()
                .enumerate()
                .flat_map(|(i, c)| [c].into_iter().chain((i % 4 == 3).then_some(' ')))
                .collect(),
        ] {
            assert_eq!(typed(&same), Ok(KEY), "{same}");
            assert!(is_meant(&same));
        }
    }

    #[test]
    fn a_typo_is_told_by_its_group() {
        let text = write(&KEY);
        for at in (0..text.len()).filter(|at| text.as_bytes()[*at] != b'-') {
            let number = at / 9 + 1;
            for c in ALPHABET.iter().filter(|c| **c != text.as_bytes()[at]).chain(b"U!") {
                let mut wrong = text.clone().into_bytes();
                wrong[at] = *c;
                let wrong = String::from_utf8(wrong).unwrap();
                assert_eq!(typed(&wrong), Err(Typo::Group { number }), "{wrong}");
                assert!(is_meant(&wrong));
            }
            let (before, after) = (&text[..at], &text[at + 1..]);
            assert_eq!(typed(&format!("{before}{after}")), Err(Typo::Group { number }), "one left out");
            assert_eq!(typed(&format!("{before}77{after}")), Err(Typo::Group { number }), "one too many");
        }
    }

    #[test]
    fn exchanged_characters_and_groups_are_noticed() {
        let text = write(&KEY);
        let groups: Vec<&str> = text.split('-').collect();
        for (a, b) in (0..8).flat_map(|a| (0..a).map(move |b| (a, b))) {
            let mut other = groups.clone();
            other.swap(a, b);
            assert_eq!(typed(&other.join("-")), Err(Typo::Group { number: b + 1 }));
            for (n, group) in groups.iter().enumerate() {
                let mut chars: Vec<char> = group.chars().collect();
                chars.swap(a, b);
                let exchanged: String = chars.into_iter().collect();
                let text = groups.iter().enumerate().map(|(m, g)| if m == n { &*exchanged } else { g });
                let read = typed(&text.collect::<Vec<_>>().join("-"));
                let want = if exchanged == *group { Ok(KEY) } else { Err(Typo::Group { number: n + 1 }) };
                assert_eq!(read, want);
            }
        }
    }

    #[test]
    fn what_is_too_short_or_too_long_is_counted() {
        let text = write(&KEY);
        assert_eq!(typed(""), Err(Typo::Groups { count: 0 }));
        assert_eq!(typed(&text[..26]), Err(Typo::Groups { count: 3 }));
        assert_eq!(typed(&format!("{text}-77777777")), Err(Typo::Groups { count: 9 }));
        assert_eq!(typed(&text[..30]), Err(Typo::Group { number: 4 }));
    }

    #[test]
    fn a_passphrase_is_not_taken_for_one() {
        for passphrase in
            ["", "correct horse battery staple", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"]
        {
            assert!(!is_meant(passphrase), "{passphrase}");
        }
        assert!(is_meant(&write(&KEY)[..40]), "half a key is meant as one");
    }

    proptest::proptest! {
        #[test]
        fn every_key_is_read_back(key in proptest::prelude::any::<[u8; 32]>()) {
            proptest::prop_assert_eq!(typed(&write(&key)), Ok(key));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = (typed(&text), is_meant(&text));
        }
    }
}
