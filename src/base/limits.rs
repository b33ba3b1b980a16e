//! Every limit, in one place, with its unit in its name.
//!
//! Promise: no other file invents a bound. Called by: every layer; shown in `/.storage/config`. Cannot fail.

use std::ops::Range;
use std::time::Duration;

/// A segment file's nominal length; the last group may reach past it by less than one group.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// The greatest number of a segment: 16 ZiB of log, or 65,536 mounts that leave an emergency directory behind.
pub const SEGMENT_NUMBER_MAX: u64 = 1 << 48;
/// Room is taken for a segment in steps of this much: writes into room taken before sync faster, and a vault of a few
/// files must not look like one of 64 MiB.
pub const ALLOCATE_STEP_BYTES: u64 = 4 << 20;
/// With many small commits, so much of a segment is filled with zeros ahead of them: a flush after writing over blocks
/// that were written before needs no journal commit of the backing filesystem (390 µs down to 170, measured on ext4).
pub const ZERO_STEP_BYTES: u64 = 1 << 20;
/// Commits within one such step from which on it pays.
pub const ZERO_STEP_COMMITS: u32 = 32;
/// Most bytes one group (one disk write) holds before padding, its header and directory included.
pub const GROUP_BYTES_MAX: usize = 1 << 20;
/// Disk block that groups begin on: the alignment of direct I/O.
pub const BLOCK_BYTES: usize = 4096;
/// A file's data is buffered and sealed in pieces that never cross a multiple of this.
pub const CHUNK_BYTES: usize = 128 << 10;
/// Plaintext bytes per frame where the data compresses.
pub const UNIT_COMPRESSED_BYTES: usize = 64 << 10;
/// Plaintext bytes per frame where it does not.
pub const UNIT_RAW_BYTES: usize = 16 << 10;
/// Most frames of one chunk (raw).
pub const CHUNK_FRAMES_MAX: u32 = (CHUNK_BYTES / UNIT_RAW_BYTES) as u32;
/// Poly1305 and GCM tags.
pub const TAG_BYTES: usize = 16;
/// Most plaintext bytes of a frame of records.
pub const RECORDS_FRAME_BYTES: usize = 128 << 10;

/// Longest file name, as on ext4.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symlink target, as on Linux (PATH_MAX without the terminator).
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Largest value of one extended attribute (the kernel's own bound).
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;
/// Most bytes of all attribute names of a file together, each with its terminator (the kernel's bound on a list).
pub const XATTR_LIST_BYTES_MAX: usize = 64 << 10;
/// Most hard links to one file, as on ext4.
pub const LINKS_MAX: u32 = 65_000;
/// Inode numbers that the vault gives to nobody, for what a mount shows beside it. They fit in 32 bits, because programs of
/// 32 bits can list no directory with larger ones in it.
pub const FREE_INOS: Range<u64> = 0xff00_0000..0x1_0000_0000;
/// Largest file: what a signed 64-bit offset can address. The kernel takes writes up to there into its cache without
/// asking, so a smaller bound would be told to nobody who could do something about it.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// Byte budget unless told otherwise: buffers, frames in flight, caches and overlay together.
pub const BUDGET_BYTES_DEFAULT: u64 = 256 << 20;
/// Smallest budget that still works.
pub const BUDGET_BYTES_MIN: u64 = 16 << 20;
/// Buffers and caches may use so many parts of their shares, and while memory is short fewer, …
pub const MEMORY_PARTS: u64 = 8;
/// … but never fewer than this. Each second that it is short halves the parts, …
pub const MEMORY_PARTS_MIN: u64 = 2;
/// … which it is while less than one in so many bytes of the machine's (or the container's) memory can be had; …
pub const MEMORY_SHORT_ONE_IN: u64 = 16;
/// … and each second that there is plenty, which is more than one in so many, gives one part back.
pub const MEMORY_PLENTY_ONE_IN: u64 = 8;
/// When the process holds so much more than its budget, what nobody uses goes back to the machine (64 MiB beside the budget are
/// promised, and 34 were seen to come within two seconds), …
pub const MEMORY_BESIDE_BYTES: u64 = 16 << 20;
/// … but no more often than this, for it is faulted in again.
pub const MEMORY_TRIM_PAUSE: Duration = Duration::from_secs(5);
/// Inodes kept as nodes (some 400 bytes each with their buffers) are one for so many bytes of the budget, …
pub const NODES_PER_BUDGET_BYTES: u64 = 8 << 10;
/// … and never fewer than this, …
pub const NODES_MIN: u64 = 4096;
/// … nor more than this. The kernel may remember many more, at some 30 bytes each.
pub const NODES_MAX: u64 = 64 << 10;
/// Background requests (write-back, read-ahead) the kernel may have under way at once …
pub const FUSE_BACKGROUND_MAX: u16 = 6;
/// … and the threads that serve: always some left when every background write waits for the budget. No more than that:
/// the kernel wakes them in turn, and each has a buffer of its own to keep warm (24 threads halve 4 KiB appends).
pub const FUSE_THREADS: usize = FUSE_BACKGROUND_MAX as usize + 4;
/// Largest WRITE and READ (the kernel's own limit is 256 pages) …
const REQUEST_BYTES_MAX: u64 = 1 << 20;
/// … and the least that large ones are cut down to, …
const REQUEST_BYTES_MIN: u64 = 256 << 10;
/// … for they are one in so many of the byte budget: a thread that serves keeps what it takes in, what it gives out and what it
/// reads from the disk, each at the size of the largest request.
const REQUESTS_PER_BUDGET: u64 = 64;

/// Largest WRITE and READ with a byte budget.
#[must_use]
pub fn request_bytes(budget_bytes: u64) -> u32 {
    let part = budget_bytes / REQUESTS_PER_BUDGET;
    // Whole pages, whatever the budget.
    (part.clamp(REQUEST_BYTES_MIN, REQUEST_BYTES_MAX) as u32).next_multiple_of(BLOCK_BYTES as u32)
}

/// Oldest that acknowledged bytes become before they are flushed.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(5);
/// A checkpoint is due when the overlay holds this many entries …
pub const CHECKPOINT_ENTRIES: usize = 400_000;
/// … or this many bytes of log have been written since the last …
pub const CHECKPOINT_LOG_BYTES: u64 = 512 << 20;
/// … or there has been no operation for this long and there is something to store.
pub const CHECKPOINT_IDLE: Duration = Duration::from_secs(30);
/// Old segments are cleaned when they take so many bytes more than what is alive in them, …
pub const CLEAN_BYTES_MIN: u64 = 32 << 20;
/// … and more than one in so many of what is alive; …
pub const CLEAN_ONE_IN: u64 = 4;
/// … but while less than one in so many bytes of the backing filesystem is free, as soon as it is a quarter of `CLEAN_BYTES_MIN`.
pub const CLEAN_SHORT_ONE_IN: u64 = 16;
/// A segment is worth emptying if no more than so many of a hundred of its bytes are alive.
pub const CLEAN_ALIVE_PERCENT_MAX: u64 = 75;
/// The same where it was asked to clean.
pub const CLEAN_ORDERED_ALIVE_PERCENT_MAX: u64 = 94;
/// Most bytes that the cleaner reads in a second, unless it was asked to clean: it must not be felt.
pub const CLEAN_RATE_BYTES: u64 = 64 << 20;
/// Plaintext that it takes into the buffers at a time.
pub const CLEAN_STEP_BYTES: u64 = 512 << 10;
/// A snapshot of the index is due when so many bytes of log were written since the last …
pub const SNAPSHOT_LOG_BYTES_MIN: u64 = 256 << 20;
/// … and so many times its size: then reading it is worth it, and writing one costs a small part of the log.
pub const SNAPSHOT_LOG_TIMES: u64 = 4;
/// Most bytes of one that are written or read in a second: it must not be felt.
pub const SNAPSHOT_RATE_BYTES: u64 = 32 << 20;
/// Generations of them that are kept.
pub const SNAPSHOTS_KEPT: usize = 2;
/// Room kept for what the kernel's write-back cache accepts before we see it, so that a program is refused by `write`
/// and what it wrote before still fits, …
pub const KERNEL_ROOM_BYTES: u64 = 64 << 20;
/// … and the part of a small backing filesystem that it may be at most: one in so many.
const KERNEL_ROOM_SHARE: u64 = 16;

/// Room kept for the kernel's write-back cache on a backing filesystem of this size.
#[must_use]
pub fn kernel_room_bytes(total_bytes: u64) -> u64 {
    KERNEL_ROOM_BYTES.min(total_bytes / KERNEL_ROOM_SHARE)
}

/// Most bytes that the kernel may hold back for a mount: three quarters of the room kept for them. A write that the
/// kernel has let in may go over its limit, and data takes a little more room in the log than it has bytes.
#[must_use]
pub fn kernel_dirty_bytes(total_bytes: u64) -> u64 {
    kernel_room_bytes(total_bytes) / 4 * 3
}

/// With fewer inodes left on the backing filesystem it is tried out whether it makes new files.
pub const SPARE_INODES: u64 = 8;
/// How long a write that the kernel's cache hands over is held while there is no room, before it is refused, …
pub const FULL_DEADLINE: Duration = Duration::from_secs(5);
/// … and how long at most while a quota refuses it: whoever could make room is the one who is told, …
pub const QUOTA_DEADLINE: Duration = Duration::from_secs(1);
/// … and after so many deadlines in a row in which nothing held found room, nothing is held any more: an fsync, and a
/// read that misses the kernel's cache, wait for what the kernel queued before them.
pub const FULL_DEADLINES_MOST: u32 = 2;
/// Shortest time between two lines of the error list about a full backing filesystem.
pub const FULL_REPORT_PAUSE: Duration = Duration::from_secs(60);
/// Bytes of the backing filesystem that ordinary writes may not take, so that deletes and checkpoints always work.
pub const RESERVE_BYTES: u64 = 192 << 20;
/// Most bytes that a scrub of a mount reads in a second unless told otherwise: it must not be felt.
pub const SCRUB_RATE_BYTES: u64 = 64 << 20;
/// Room that a file in the backing directory really takes, for the moment when the disk is full …
pub const RESERVE_FILE_BYTES: u64 = 32 << 20;
/// … and the part of the filesystem that it may be at most: one in so many.
pub const RESERVE_FILE_SHARE: u64 = 32;
/// Bytes of the emergency directory's filesystem that ordinary writes may not take.
pub const AWAY_RESERVE_BYTES: u64 = 8 << 20;
/// Lines of the history that outlive the mount.
pub const HISTORY_LINES_STORED: usize = 200;
/// A flush of the backing directory that takes longer counts as stalled, where there is an emergency directory.
pub const FLUSH_DEADLINE: Duration = Duration::from_secs(30);
/// How long closing goes on trying while no place takes what is left.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(10);
/// Of a hundred groups read back, so many are also opened and compared with their plaintext, unless told.
pub const VERIFY_OPEN_PERCENT: u32 = 2;
/// Most lines kept of the error list and of the state history.
pub const HISTORY_LINES_MAX: usize = 1000;

/// Longest path of an emergency directory: it is written down in the root, whose file is one block.
pub const EMERGENCY_PATH_BYTES_MAX: usize = 3000;

/// Ranges of leases of other histories that a root remembers: with the longest path, its block holds more than twice as many.
pub const OTHER_LEASES_MAX: usize = 32;

/// Floor of Argon2id: memory in KiB, passes, lanes. Weaker parameters are refused, also on reading.
pub const ARGON2_FLOOR: (u32, u32, u32) = (64 << 10, 3, 4);
/// Ceiling of Argon2id: a header that asks for more is a memory bomb, and refused.
pub const ARGON2_CEILING: (u32, u32, u32) = (4 << 20, 64, 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_holds_back_less_than_is_kept_for_it() {
        let mib = |total: u64| (kernel_room_bytes(total << 20) >> 20, kernel_dirty_bytes(total << 20) >> 20);
        assert_eq!([320, 1024, 1 << 20].map(mib), [(20, 15), (64, 48), (64, 48)]);
    }

    #[test]
    fn requests_are_as_large_as_the_budget_lets_the_threads_keep() {
        let kib = |budget: u64| request_bytes(budget) >> 10;
        assert_eq!([BUDGET_BYTES_MIN, 32 << 20, 48 << 20].map(kib), [256, 512, 768]);
        assert_eq!([64 << 20, BUDGET_BYTES_DEFAULT, 1 << 40].map(kib), [1024; 3]);
        assert_eq!(request_bytes((48 << 20) + 77) % BLOCK_BYTES as u32, 0);
    }
}
