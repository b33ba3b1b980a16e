//! Attributes and times, from our words into `fuser`'s and back.
//!
//! Promise: nothing is lost on the way: nanoseconds, times before 1970, and which names may be remembered.
//! Called by: `requests`. Cannot fail.

use crate::base::id::Ino;
use crate::base::world::Time;
use crate::fs::{Attr, SetTime};
use fuser::{FileAttr, FileType, Generation, INodeNo, TimeOrNow};
use std::time::{Duration, SystemTime};

/// Inode numbers are never used again, so one generation is enough.
pub(super) const GENERATION: Generation = Generation(0);
/// How long the kernel may keep what it was told: nobody else changes the vault.
pub(super) const KEEP: Duration = Duration::from_secs(24 * 3600);

pub(super) fn file_type(kind: u8) -> FileType {
    match u32::from(kind) << 12 {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFSOCK => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

pub(super) fn file_attr(a: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino.0),
        size: a.size,
        blocks: a.blocks,
        atime: a.atime.into(),
        mtime: a.mtime.into(),
        ctime: a.ctime.into(),
        crtime: a.btime.into(),
        kind: file_type((a.mode >> 12) as u8),
        perm: (a.mode & 0o7777) as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// Inode 0 with a lifetime: the kernel may remember that there is no such name.
pub(super) fn no_entry() -> FileAttr {
    file_attr(&no_attr())
}

/// The attributes of inode 0, which there is not.
pub(super) fn no_attr() -> Attr {
    let none = Time::default();
    let (size, blocks, mode, nlink, uid, gid, rdev) = (0, 0, libc::S_IFREG, 0, 0, 0, 0);
    let (atime, mtime, ctime, btime) = (none, none, none, none);
    let ino = Ino(0);
    Attr { ino, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime, btime, cacheable: true }
}

pub(super) fn ttl(a: &Attr) -> Duration {
    if a.cacheable { KEEP } else { Duration::ZERO }
}

/// A time as the kernel sent it. Before 1970 `fuser` 0.18 takes the nanoseconds away where they are to be added, so what
/// it hands over is the right moment mirrored at a whole second; what goes out it converts rightly.
pub(super) fn sent(time: SystemTime) -> Time {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(_) => time.into(),
        Err(before) => {
            let mirrored = before.duration();
            let seconds = 0i64.saturating_sub_unsigned(mirrored.as_secs());
            Time { seconds, nanos: mirrored.subsec_nanos() }
        }
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::SpecificTime(at) => SetTime::At(sent(at)),
        TimeOrNow::Now => SetTime::Now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How `fuser` 0.18 builds the time of a request; should a later one do it rightly, the test on a real mount
    /// (`mount_differential`) fails, and `sent` goes.
    fn as_fuser_builds_it(seconds: i64, nanos: u32) -> SystemTime {
        match u64::try_from(seconds) {
            Ok(after) => SystemTime::UNIX_EPOCH + Duration::new(after, nanos),
            Err(_) => SystemTime::UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), nanos),
        }
    }

    #[test]
    fn times_before_1970_arrive_as_they_were_sent() {
        for seconds in [i64::from(i32::MIN), -1_048_400_773, -2, -1, 0, 1, 1_800_000_000] {
            for nanos in [0, 1, 171_056_379, 500_000_000, 999_999_999] {
                assert_eq!(sent(as_fuser_builds_it(seconds, nanos)), Time { seconds, nanos });
            }
        }
    }
}
