//! Seals a group anew under another key: in its place, with its length, frame by frame (format.md §3, "Sealed anew").
//!
//! Promise: what comes out has every frame where it was, of the same length, slot and address, so whoever names one goes on
//! finding it; frames that nobody needs are zeros, and so is what was asked for and did not open, which is told.
//! Called by: `vault::reseal`. Cannot fail; whoever calls it proves with `is_same` what then lies on the disk.

use super::{SegmentContext, Walk, WalkedFrame, WalkedGroup};
use crate::backing::AlignedBuf;
use crate::base::choice::Codec;
use crate::base::id::Slot;
use crate::base::limits::{BLOCK_BYTES, TAG_BYTES};
use crate::format::frame::{DIRECTORY_SLOTS, Kind};
use crate::format::group::{
    Entry, GROUP_VERSION_KEYED, HEADER_BYTES, Header, NO_TABLE, SEALED_ANEW, TABLE_ENTRY_BYTES, block_crc, crc_seed,
    encode_directory, table_crc,
};

/// Seals the group that the walk gave last under `to`, into `out`. `each` is told of every frame in order, with its body as it
/// was sealed; without, if it was asked for and does not open. It is asked for if `needed` says so.
pub fn seal_anew(
    walk: &mut Walk,
    group: &WalkedGroup,
    to: &SegmentContext,
    out: &mut AlignedBuf,
    needed: impl Fn(&Entry) -> bool,
    mut each: impl FnMut(&WalkedFrame, Option<&[u8]>),
) {
    let len = group.header.len_bytes as usize;
    out.set_len(len.next_multiple_of(BLOCK_BYTES));
    out.fill(0);
    for frame in group.frames.iter().filter(|frame| needed(&frame.entry)) {
        let Ok(body) = walk.open_body(frame) else {
            each(frame, None);
            continue;
        };
        each(frame, Some(body));
        let e = &frame.entry;
        let at = to.address(e.slot, e.kind, e.codec, e.plain_len_bytes as usize, e.ino, e.offset_bytes);
        let sealed = &mut out[frame.bytes()];
        sealed[..body.len()].copy_from_slice(body);
        to.key.seal_in_place(&at, sealed);
    }
    let flags = if group.header.has_table() { SEALED_ANEW } else { SEALED_ANEW | NO_TABLE };
    let (version, salt, key) = (GROUP_VERSION_KEYED, to.salt, to.key_number);
    let mut header = Header { version, flags, salt, key, body_crc: 0, ..group.header };
    let entries: Vec<Entry> = group.frames.iter().map(|frame| frame.entry).collect();
    let directory = encode_directory(&entries);
    let (slot, (ino, offset)) = (Slot(DIRECTORY_SLOTS + header.group), header.bound());
    let at = to.address(slot, Kind::Directory, Codec::Raw, directory.len(), ino, offset);
    let sealed = &mut out[header.directory()];
    // There is one spelling of a directory, so it has the length that it was read with.
    sealed[..directory.len()].copy_from_slice(&directory);
    debug_assert_eq!(directory.len() + TAG_BYTES, sealed.len());
    to.key.seal_in_place(&at, sealed);
    let (seed, table_start) = (crc_seed(&salt), header.table_start());
    if header.has_table() {
        for block in 0..header.blocks() {
            let crc = block_crc(out, block, table_start, seed);
            let entry = table_start + block * TABLE_ENTRY_BYTES;
            out[entry..entry + TABLE_ENTRY_BYTES].copy_from_slice(&crc.to_le_bytes());
        }
        header.body_crc = table_crc(&out[table_start..len], seed);
    } else {
        header.body_crc = table_crc(&out[HEADER_BYTES..len], seed);
    }
    out[..HEADER_BYTES].copy_from_slice(&header.encode());
}

/// Whether two groups, each given last by its walk, hold the same: the same frames in the same places, and in those that are
/// `needed` the same bytes once they are opened; and whether every checksum of the second holds.
pub fn is_same(
    (old, was): (&mut Walk, &WalkedGroup),
    (new, now): (&mut Walk, &WalkedGroup),
    needed: impl Fn(&Entry) -> bool,
) -> bool {
    let place = |group: &WalkedGroup| (group.position_bytes, group.header.group, group.header.len_bytes);
    let same_frame = |(a, b): (&WalkedFrame, &WalkedFrame)| {
        (a.entry, a.position_bytes) == (b.entry, b.position_bytes)
            && (!needed(&a.entry)
                || matches!((old.open_body(a), new.open_body(b)), (Ok(before), Ok(after)) if before == after))
    };
    place(was) == place(now)
        && now.checksum_holds
        && was.frames.len() == now.frames.len()
        && was.frames.iter().zip(&now.frames).all(same_frame)
}
