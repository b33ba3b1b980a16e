//! How much of the data a look reads: nothing, all, one part of several, or a random share.
//!
//! Promise: the parts 1/t to t/t together read every byte of a vault that did not change in between, and no byte twice; a
//! random share is drawn anew each time. What is chosen is a piece of a file (`data::STEP_BYTES`), by a hash of where it
//! lies, so that a change elsewhere moves no piece from one part to another.
//! Called by: `cli::check` (reads it), `data` (asks it). On failure: one sentence that says what would have been right.

use crate::base::id::Ino;
use crate::base::world::World;
use std::fmt;
use std::str::FromStr;

/// Most parts that data may be read in.
const PARTS_MAX: u32 = 10_000;

/// How much to read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// Nothing: names, inodes and counts only.
    Nothing,
    /// Every byte.
    All,
    /// The `part`-th of `of` parts, counted from 1.
    Part {
        /// Which one.
        part: u32,
        /// How many there are.
        of: u32,
    },
    /// So many percent, above 0 and up to 100, by chance.
    Percent(f64),
}

impl FromStr for Share {
    type Err = String;
    fn from_str(text: &str) -> Result<Share, String> {
        let wrong = || format!("'{text}' is not 'all', a part like 2/7, or a share like 10%");
        if text == "all" {
            return Ok(Share::All);
        }
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if let Some(number) = text.strip_suffix('%') {
            let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
            if !digits(whole) || !digits(fraction) {
                return Err(wrong());
            }
            return match number.parse::<f64>() {
                Ok(x) if x > 0.0 && x <= 100.0 => Ok(Share::Percent(x)),
                _ => Err(format!("'{text}' is not above 0% and up to 100%")),
            };
        }
        let (part, of) = text.split_once('/').filter(|(a, b)| digits(a) && digits(b)).ok_or_else(wrong)?;
        match (part.parse(), of.parse()) {
            (Ok(part), Ok(of)) if (1..=PARTS_MAX).contains(&of) && (1..=of).contains(&part) => {
                Ok(Share::Part { part, of })
            }
            _ => Err(format!("'{text}' is no part: of t parts, 1 to {PARTS_MAX}, it is the n-th, 1 to t")),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Share::Nothing => f.write_str("nothing"),
            Share::All => f.write_str("all"),
            Share::Part { part, of } => write!(f, "{part}/{of}"),
            Share::Percent(x) => write!(f, "{x}%"),
        }
    }
}

impl From<bool> for Share {
    fn from(all: bool) -> Share {
        if all { Share::All } else { Share::Nothing }
    }
}

impl Share {
    /// Of so many bytes about so many will be read.
    #[must_use]
    pub fn of_bytes(self, bytes: u64) -> u64 {
        match self {
            Share::Nothing => 0,
            Share::All => bytes,
            Share::Part { of, .. } => bytes / u64::from(of),
            Share::Percent(x) => (bytes as f64 * x / 100.0) as u64,
        }
    }
}

/// A share with its dice thrown.
pub struct Chosen {
    share: Share,
    seed: u64,
}

impl Chosen {
    /// Throws the dice, where it takes any.
    pub fn new(share: Share, world: &dyn World) -> Chosen {
        let mut seed = [0; 8];
        if let Share::Percent(_) = share {
            world.fill(&mut seed);
        }
        Chosen { share, seed: u64::from_le_bytes(seed) }
    }

    /// What was asked for.
    pub fn share(&self) -> Share {
        self.share
    }

    /// Whether this piece of this file is to be read.
    pub fn has(&self, ino: Ino, piece: u64) -> bool {
        let hash = mixed(mixed(ino.0 ^ self.seed).wrapping_add(piece));
        match self.share {
            Share::Nothing => false,
            Share::All => true,
            Share::Part { part, of } => hash % u64::from(of) == u64::from(part - 1),
            Share::Percent(x) => (hash as f64) < u64::MAX as f64 * (x / 100.0),
        }
    }
}

/// The finaliser of `splitmix64`: every bit of the result hangs on every bit of `x`.
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::world::RealWorld;

    #[test]
    fn shares_are_read_and_shown() {
        for text in ["all", "1/1", "2/7", "10000/10000", "10%", "0.5%", "100%"] {
            assert_eq!(text.parse::<Share>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_share_is_refused_in_one_sentence() {
        for text in ["", "no", "0/3", "4/3", "1/0", "1/10001", "0%", "101%", "-1%", "1e1%", "inf%", "%", "1/", "/2"] {
            let why = text.parse::<Share>().unwrap_err();
            assert!(why.contains(text) && !why.contains('\n'), "{why}");
        }
    }

    #[test]
    fn parts_together_are_everything_once() {
        let parts: Vec<Chosen> =
            (1..=7).map(|part| Chosen::new(Share::Part { part, of: 7 }, &RealWorld::default())).collect();
        for ino in 1..40 {
            for piece in 0..40 {
                assert_eq!(parts.iter().filter(|p| p.has(Ino(ino), piece)).count(), 1);
            }
        }
    }

    #[test]
    fn a_share_by_chance_is_about_so_much_and_another_each_time() {
        let drawn = || -> Vec<u64> {
            let chosen = Chosen::new(Share::Percent(25.0), &RealWorld::default());
            (0..4000).filter(|piece| chosen.has(Ino(5), *piece)).collect()
        };
        let (a, b) = (drawn(), drawn());
        assert!((600..1400).contains(&a.len()), "{} of 4000 are not about a quarter", a.len());
        assert_ne!(a, b);
    }
}
