//! Reads the clock that the kernel uses for the times of files.
//!
//! Promise: a stamp read here is not older than any stamp that the kernel has given to a file before, and not younger
//! than any that it gives afterwards.
//! Why a file: the kernel stamps with its coarse clock, but not below the latest fine stamp it has given on any filesystem
//! (Linux 6.13 and later), and no clock that a program can read shows that floor. A file in memory is stamped by it.
//! Called by: `world`. On failure: without such a file, the coarse clock, which may be up to one tick older.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

const NAME: &CStr = c"strongroom-clock";

/// A file in memory that is written to and looked at.
#[derive(Debug)]
pub(super) struct FileClock(Option<File>);

impl Default for FileClock {
    fn default() -> FileClock {
        // The second for kernels before 6.3.
        let made = [libc::MFD_CLOEXEC | libc::MFD_NOEXEC_SEAL, libc::MFD_CLOEXEC].into_iter().find_map(|flags| {
            // SAFETY: a terminated string, and flags.
            match unsafe { libc::memfd_create(NAME.as_ptr(), flags) } {
                -1 => None,
                // SAFETY: the descriptor was just made, and nobody else has it.
                fd => Some(unsafe { File::from_raw_fd(fd) }),
            }
        });
        FileClock(made)
    }
}

impl FileClock {
    /// Seconds since 1970, and nanoseconds.
    pub(super) fn read(&self) -> (i64, u32) {
        self.stamped().unwrap_or_else(coarse)
    }

    /// Once the change time has been looked at, the kernel gives the next one from its fine clock and raises the floor.
    fn stamped(&self) -> Option<(i64, u32)> {
        let file = self.0.as_ref()?;
        file.write_all_at(b"x", 0).ok()?;
        let at = file.metadata().ok()?;
        Some((at.ctime(), at.ctime_nsec() as u32))
    }
}

fn coarse() -> (i64, u32) {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills `at`; the clock has been there since Linux 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut at) };
    (at.tv_sec, at.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_of_files_and_of_this_clock_are_in_one_order() {
        let (clock, other) = (FileClock::default(), FileClock::default());
        assert!(clock.0.is_some(), "there is a file to look at");
        for _ in 0..10_000 {
            let stamps = [clock.read(), other.read(), clock.read()];
            assert!(stamps.is_sorted(), "{stamps:?}");
        }
    }

    #[test]
    fn without_a_file_the_coarse_clock_serves() {
        let fine = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as i128;
        let (seconds, nanos) = FileClock(None).read();
        let apart = fine - (i128::from(seconds) * 1_000_000_000 + i128::from(nanos));
        assert!((0..1_000_000_000).contains(&apart), "{apart} ns");
    }
}
