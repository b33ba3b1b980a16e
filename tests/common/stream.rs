//! Streams of bytes that a number determines, and what may be left of one.
//!
//! Promise: what was acknowledged must be there and right; later bytes may be missing or holes, never others.

#![allow(dead_code, reason = "each test program uses a part")]

use super::rng::Rng;

/// Byte `at` of stream `id`: 4 KiB pages, each of a content of its own, every second one easy to compress.
pub fn stream(id: u64, from: u64, len: u64) -> Vec<u8> {
    let (first, last) = (from / 4096, (from + len).div_ceil(4096));
    let mut all = Vec::with_capacity(((last - first) * 4096) as usize);
    for page in first..last {
        let mut rng = Rng(id.rotate_left(32) ^ page);
        all.extend(if page % 2 == 0 { rng.bytes(4096) } else { rng.text(4096) });
    }
    // No zero in it: a zero read back is a hole, not a byte of the stream.
    all.iter_mut().filter(|b| **b == 0).for_each(|b| *b = 1);
    let skip = (from % 4096) as usize;
    all[skip..skip + len as usize].to_vec()
}

/// What is wrong with a stream's file after a crash, of which `acknowledged` bytes had been fsynced and at most
/// `written` been given to `write`.
pub fn stream_fault(id: u64, found: &[u8], acknowledged: u64, written: u64) -> Option<String> {
    let len = found.len() as u64;
    if len < acknowledged {
        return Some(format!("stream {id}: {len} bytes, {acknowledged} had been fsynced"));
    }
    if len > written {
        return Some(format!("stream {id}: {len} bytes, only {written} had ever been written"));
    }
    let want = stream(id, 0, len);
    for (at, (got, want)) in found.iter().zip(&want).enumerate() {
        // Beyond the last fsync the kernel may not yet have handed over a page before a later one: a hole.
        let may_be_hole = at as u64 >= acknowledged && *got == 0;
        if got != want && !may_be_hole {
            return Some(format!("stream {id}: byte {at} is not what was written ({acknowledged} had been fsynced)"));
        }
    }
    None
}
