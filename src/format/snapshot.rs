//! A snapshot of the index: the entries as of one commit, as a stream of bytes, and what its last frame says (format.md §13).
//!
//! Promise: what is decoded has its keys in strictly ascending order, ends where an entry ends, and does not hold the position, which
//! has a frame of its own; pieces may be cut anywhere, and no more is kept than has come. Called by: `segment::snapshot`.
//! On failure: `Malformed`, which names the field.

use super::key;
use super::wire::{Malformed, Reader, Write, malformed};

/// Plaintext bytes of a frame of entries, but for the last one: the stream is cut wherever that falls.
pub const PIECE_BYTES: usize = 64 << 10;
/// What the digest begins with.
pub const DIGEST_TEXT: [u8; 4] = *b"SRN1";
/// Longest varint.
const VARINT_BYTES_MAX: usize = 10;

/// Whether an entry of the index belongs into a snapshot: all but the position, which stands in front. So an index that was only
/// half filled from one never says that it covers anything.
#[must_use]
pub fn holds(entry_key: &[u8]) -> bool {
    entry_key != key::total("log").as_slice()
}

/// Appends an entry to the stream.
pub fn push_entry(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.counted(key);
    out.counted(value);
}

/// The plaintext of the last frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Entries in the snapshot.
    pub entries: u64,
    /// SHA-256 over `DIGEST_TEXT`, the position and all entries, as they stand in the frames.
    pub digest: [u8; 32],
}

impl End {
    /// The stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&self.entries.to_le_bytes()[..], &self.digest].concat()
    }

    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<End, Malformed> {
        let mut r = Reader::new(bytes);
        let end = End { entries: r.u64("snapshot entries")?, digest: r.array("snapshot digest")? };
        r.end("snapshot end")?;
        Ok(end)
    }
}

/// Takes pieces of the stream and gives its entries.
#[derive(Debug, Default)]
pub struct Entries {
    /// What has come of an entry that is not whole yet.
    rest: Vec<u8>,
    last: Option<Vec<u8>>,
    count: u64,
}

impl Entries {
    /// Takes the next piece; hands over each entry that is whole with it.
    pub fn take(&mut self, piece: &[u8], each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), Malformed> {
        self.rest.extend_from_slice(piece);
        let mut at = 0;
        while let Some((key, value, len)) = entry(&self.rest[at..])? {
            if self.last.as_deref().is_some_and(|last| last >= key) {
                return malformed("snapshot order");
            }
            if !holds(key) {
                return malformed("snapshot key");
            }
            each(key, value);
            let last = self.last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
            (at, self.count) = (at + len, self.count + 1);
        }
        self.rest.drain(..at);
        Ok(())
    }

    /// How many there were; refuses a stream that ends inside one.
    pub fn end(&self) -> Result<u64, Malformed> {
        if self.rest.is_empty() { Ok(self.count) } else { malformed("snapshot entry") }
    }
}

/// The entry that some bytes begin with, and its length; `None` if more of it is to come.
fn entry(bytes: &[u8]) -> Result<Option<(&[u8], &[u8], usize)>, Malformed> {
    let mut r = Reader::new(bytes);
    let Some(key) = counted(&mut r, "snapshot key")? else { return Ok(None) };
    let Some(value) = counted(&mut r, "snapshot value")? else { return Ok(None) };
    Ok(Some((key, value, bytes.len() - r.rest().len())))
}

fn counted<'a>(r: &mut Reader<'a>, what: &'static str) -> Result<Option<&'a [u8]>, Malformed> {
    let rest = r.rest();
    if rest.len() < VARINT_BYTES_MAX && rest.iter().all(|byte| *byte >= 0x80) {
        return Ok(None);
    }
    let len = r.varint(what)?;
    if len > r.rest().len() as u64 {
        return Ok(None);
    }
    r.take(len as usize, what).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

    fn decoded(stream: &[u8], piece: usize) -> Result<(Pairs, u64), Malformed> {
        let (mut entries, mut found) = (Entries::default(), Pairs::new());
        for piece in stream.chunks(piece) {
            entries.take(piece, &mut |k, v| found.push((k.to_vec(), v.to_vec())))?;
        }
        entries.end().map(|count| (found, count))
    }

    #[test]
    fn golden_snapshot_entries() {
        let mut stream = Vec::new();
        push_entry(&mut stream, b"Ia", b"one");
        push_entry(&mut stream, b"Ib", b"");
        let long = vec![b'v'; 200];
        push_entry(&mut stream, b"N", &long);
        let want = [&b"\x02Ia\x03one\x02Ib\x00\x01N\xc8\x01"[..], &long].concat();
        assert_eq!(stream, want, "on-disk bytes changed: bump FORMAT_VERSION and add a vault to tests/vaults/");
        let pairs: Pairs = vec![(b"Ia".to_vec(), b"one".to_vec()), (b"Ib".to_vec(), Vec::new()), (b"N".to_vec(), long)];
        for piece in 1..stream.len() + 1 {
            assert_eq!(decoded(&stream, piece), Ok((pairs.clone(), 3)), "cut every {piece} bytes");
        }
    }

    #[test]
    fn golden_snapshot_end() {
        let end = End { entries: 0x0102, digest: [7; 32] };
        let want = [&b"\x02\x01\0\0\0\0\0\0"[..], &[7; 32]].concat();
        assert_eq!(end.encode(), want, "on-disk bytes changed: bump FORMAT_VERSION");
        assert_eq!(End::decode(&want), Ok(end));
        assert!(End::decode(&want[1..]).is_err() && End::decode(&[&want[..], &[0]].concat()).is_err());
    }

    #[test]
    fn what_is_out_of_order_twice_there_cut_off_or_the_position_is_refused() {
        let stream = |keys: &[&[u8]]| {
            let mut out = Vec::new();
            keys.iter().for_each(|key| push_entry(&mut out, key, b"value"));
            out
        };
        assert!(decoded(&stream(&[b"a", b"b"]), 3).is_ok() && decoded(&[], 1) == Ok((Pairs::new(), 0)));
        for keys in [[&b"b"[..], b"a"], [b"a", b"a"], [b"ab", b"a"]] {
            assert_eq!(decoded(&stream(&keys), 3), malformed("snapshot order"));
        }
        let position = key::total("log");
        assert_eq!(decoded(&stream(&[&position]), 3), malformed("snapshot key"));
        let whole = stream(&[b"a", b"b"]);
        for cut in 1..whole.len() {
            let got = decoded(&whole[..cut], 3);
            assert!(got == malformed("snapshot entry") || cut == whole.len() / 2 && got.is_ok(), "cut at {cut}");
        }
        assert_eq!(decoded(&[0x80, 0], 3), malformed("snapshot key"), "a length in a longer form");
        assert_eq!(decoded(&[0xff; 11], 11), malformed("snapshot key"), "a length beyond 64 bits");
    }
}
