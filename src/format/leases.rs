//! Ranges of leases: those that other histories of the vault were written under (format.md §2).
//!
//! Promise: ranges ascend and neither meet nor touch, so that each set has one spelling; there are never more than a root holds.
//! Called by: `format::root`, `vault::open`. On failure: `Malformed`.

use super::wire::{Malformed, Reader, Write, malformed};
use crate::base::id::Epoch;
use crate::base::limits::OTHER_LEASES_MAX;

/// A set of leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leases(Vec<(Epoch, Epoch)>);

impl Leases {
    /// Whether a lease is in it.
    #[must_use]
    pub fn contains(&self, lease: Epoch) -> bool {
        self.0.iter().any(|(from, to)| (*from..=*to).contains(&lease))
    }

    /// Adds the leases behind one and up to another, which lie above all that are in it. Where there are too many ranges, the two
    /// oldest become one.
    pub fn add(&mut self, after: Epoch, to: Epoch) {
        let from = Epoch(after.0 + 1);
        debug_assert!(from <= to && self.0.last().is_none_or(|(_, last)| *last < from), "leases only grow");
        match self.0.last_mut() {
            Some((_, last)) if last.0 + 1 == from.0 => *last = to,
            _ => self.0.push((from, to)),
        }
        if self.0.len() > OTHER_LEASES_MAX {
            let (first, _) = self.0.remove(0);
            self.0[0].0 = first;
        }
    }

    pub(super) fn encode_to(&self, out: &mut Vec<u8>) {
        out.varint(self.0.len() as u64);
        for (from, to) in &self.0 {
            out.varint(from.0);
            out.varint(to.0);
        }
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Leases, Malformed> {
        const WHAT: &str = "root other leases";
        let count = r.varint(WHAT)?;
        let (mut all, mut above) = (Vec::new(), None::<u64>);
        for _ in 0..count {
            let (from, to) = (r.varint(WHAT)?, r.varint(WHAT)?);
            // What a lease above the last range touches would be of that range.
            let is_apart = above.is_none_or(|last| from > last.saturating_add(1));
            if from == 0 || from > to || !is_apart || all.len() == OTHER_LEASES_MAX {
                return malformed(WHAT);
            }
            all.push((Epoch(from), Epoch(to)));
            above = Some(to);
        }
        Ok(Leases(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leases(ranges: &[(u64, u64)]) -> Leases {
        let mut all = Leases::default();
        ranges.iter().for_each(|(after, to)| all.add(Epoch(*after), Epoch(*to)));
        all
    }

    fn bytes(all: &Leases) -> Vec<u8> {
        let mut out = Vec::new();
        all.encode_to(&mut out);
        out
    }

    #[test]
    fn golden_leases() {
        let all = leases(&[(1, 2), (2, 3), (300, 400)]);
        assert_eq!(bytes(&all), b"\x02\x02\x03\xad\x02\x90\x03");
        assert_eq!(Leases::decode(&mut Reader::new(&bytes(&all))), Ok(all.clone()));
        assert_eq!(
            [1, 2, 3, 4, 300, 301, 400, 401].map(|n| all.contains(Epoch(n))),
            [false, true, true, false, false, true, true, false]
        );
        assert_eq!(bytes(&Leases::default()), b"\0");
    }

    #[test]
    fn what_no_writer_writes_is_refused() {
        for wrong in
            [&b"\x01\x00\x02"[..], b"\x01\x03\x02", b"\x02\x01\x02\x02\x04", b"\x02\x01\x02\x03\x04", b"\x02\x01\x02"]
        {
            assert!(Leases::decode(&mut Reader::new(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn too_many_ranges_become_fewer_and_hide_nothing() {
        let many: Vec<_> = (1..=OTHER_LEASES_MAX as u64 + 5).map(|n| (n * 10, n * 10 + 1)).collect();
        let all = leases(&many);
        assert_eq!(all.0.len(), OTHER_LEASES_MAX);
        assert!(many.iter().all(|(_, lease)| all.contains(Epoch(*lease))));
        assert_eq!(Leases::decode(&mut Reader::new(&bytes(&all))), Ok(all));
    }
}
