//! The alphabet: little-endian integers, LEB128 varints, counted bytes (format.md §1).
//!
//! Promise: a `Reader` never reads past its input and every refusal names the field. Called by: the rest of `format`.

use std::fmt;

/// Stored bytes that this version must refuse; `what` names the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// The field or structure that does not hold.
    pub what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed {}", self.what)
    }
}

impl std::error::Error for Malformed {}

/// Refuses, naming the field.
pub fn malformed<T>(what: &'static str) -> Result<T, Malformed> {
    Err(Malformed { what })
}

/// Takes fields off the front of some bytes.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Begins at the front of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }
    /// What has not been read.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
    /// Whether everything has been read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The next `n` bytes.
    pub fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let Some((head, tail)) = self.0.split_at_checked(n) else { return malformed(what) };
        self.0 = tail;
        Ok(head)
    }
    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        Ok(self.take(N, what)?.try_into().expect("take gives as many bytes as were asked for"))
    }
    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(self.array::<1>(what)?[0])
    }
    /// Two bytes, little-endian.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }
    /// Four bytes, little-endian.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }
    /// Eight bytes, little-endian.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }
    /// A varint of at most 64 bits, in its shortest form only.
    pub fn varint(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            let bits = u64::from(byte & 0x7f);
            if (shift == 63 && bits > 1) || (byte == 0 && shift > 0) {
                return malformed(what);
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        malformed(what)
    }
    /// A varint that must fit 32 bits.
    pub fn varint_u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        u32::try_from(self.varint(what)?).map_err(|_| Malformed { what })
    }
    /// A varint length and that many bytes.
    pub fn counted(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let n = self.varint(what)?;
        self.take(usize::try_from(n).map_err(|_| Malformed { what })?, what)
    }
    /// Refuses if anything is left.
    pub fn end(&self, what: &'static str) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { malformed(what) }
    }
}

/// Appends fields to a vector.
pub trait Write {
    /// Appends a varint.
    fn varint(&mut self, value: u64);
    /// Appends a varint length and the bytes.
    fn counted(&mut self, bytes: &[u8]);
}

impl Write for Vec<u8> {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }
    fn counted(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_read_back_and_only_in_shortest_form() {
        for v in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut b = Vec::new();
            b.varint(v);
            assert_eq!(Reader::new(&b).varint("v"), Ok(v));
        }
        assert_eq!(Reader::new(&[0x80, 0x00]).varint("v"), malformed("v"));
        assert_eq!(Reader::new(&[0xff; 10]).varint("v"), malformed("v"));
        assert_eq!(Reader::new(&[0x80]).varint("v"), malformed("v"));
    }
}
