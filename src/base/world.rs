//! Time, chance and memory: the only source of any.
//!
//! Promise: whoever holds another `World` sees the same run again; nothing else in the library reads a clock or draws
//! random bytes. Called by: `vault`, `fs`, `seal`. On failure: without entropy no nonce may be chosen, so `fill` panics;
//! the operating system's generator does not fail after boot.

use super::file_clock::FileClock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment of the wall clock: seconds since 1970 (may be negative) and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Whole seconds since 1970-01-01 UTC, rounded down.
    pub seconds: i64,
    /// The rest, 0 to 999,999,999.
    pub nanos: u32,
}

impl From<SystemTime> for Time {
    fn from(t: SystemTime) -> Time {
        match t.duration_since(UNIX_EPOCH) {
            Ok(d) => Time { seconds: d.as_secs() as i64, nanos: d.subsec_nanos() },
            Err(before) => {
                let d = before.duration();
                match d.subsec_nanos() {
                    0 => Time { seconds: -(d.as_secs() as i64), nanos: 0 },
                    n => Time { seconds: -(d.as_secs() as i64) - 1, nanos: 1_000_000_000 - n },
                }
            }
        }
    }
}

impl From<Time> for SystemTime {
    fn from(t: Time) -> SystemTime {
        let nanos = Duration::from_nanos(u64::from(t.nanos));
        if t.seconds >= 0 {
            UNIX_EPOCH + Duration::from_secs(t.seconds as u64) + nanos
        } else {
            UNIX_EPOCH - Duration::from_secs(t.seconds.unsigned_abs()) + nanos
        }
    }
}

/// Memory of the machine, or of the part of it that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it, in bytes.
    pub total_bytes: u64,
    /// What can be had without taking it from anyone.
    pub available_bytes: u64,
}

/// Clock, entropy and memory.
pub trait World: Send + Sync {
    /// The wall clock.
    fn now(&self) -> Time;
    /// The wall clock as the kernel reads it for the times of files. Stamps that the kernel gives before this call are not
    /// younger, and stamps that it gives afterwards are not older.
    fn stamp(&self) -> Time {
        self.now()
    }
    /// A clock that never goes back, for ages and durations.
    fn elapsed(&self) -> Duration;
    /// Unpredictable bytes.
    fn fill(&self, out: &mut [u8]);
    /// Lets time pass for the calling thread.
    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
    /// How much memory there is; `None` if that is not known.
    fn memory(&self) -> Option<Memory> {
        None
    }
    /// How much of it this process holds; `None` if that is not known.
    fn resident_bytes(&self) -> Option<u64> {
        None
    }
    /// Gives memory that the allocator keeps for later back to the machine.
    fn trim(&self) {}
}

/// The real world.
#[derive(Debug)]
pub struct RealWorld {
    start: Instant,
    files: FileClock,
}

impl Default for RealWorld {
    fn default() -> Self {
        RealWorld { start: Instant::now(), files: FileClock::default() }
    }
}

impl World for RealWorld {
    fn now(&self) -> Time {
        SystemTime::now().into()
    }
    fn stamp(&self) -> Time {
        let (seconds, nanos) = self.files.read();
        Time { seconds, nanos }
    }
    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
    fn fill(&self, out: &mut [u8]) {
        getrandom::fill(out).expect("the operating system's random generator works after boot");
    }
    fn memory(&self) -> Option<Memory> {
        let mut system = sysinfo::System::new().ok()?;
        system.refresh_memory();
        let (total_bytes, available_bytes) = (system.total_memory(), system.available_memory());
        let machine = Memory { total_bytes, available_bytes };
        // A container sees the machine's memory, and may use its own. What is cached there can be had.
        Some(system.cgroup_limits().filter(|c| c.total_memory < total_bytes).map_or(machine, |c| Memory {
            total_bytes: c.total_memory,
            available_bytes: c.total_memory.saturating_sub(c.rss).min(available_bytes),
        }))
    }
    fn resident_bytes(&self) -> Option<u64> {
        let (mut system, this) = (sysinfo::System::new().ok()?, sysinfo::Pid::from_u32(std::process::id()));
        let memory = sysinfo::ProcessRefreshKind::nothing().with_memory().without_tasks();
        system.refresh_processes_specifics(sysinfo::ProcessesToUpdate::Some(&[this]), false, memory);
        system.process(this).map(sysinfo::Process::memory)
    }
    fn trim(&self) {
        #[cfg(target_env = "gnu")]
        // SAFETY: may be called at any time, from any thread.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive_the_round_trip() {
        for t in [Time { seconds: -1, nanos: 999_999_999 }, Time { seconds: -315_619_200, nanos: 0 }, Time::default()] {
            assert_eq!(Time::from(SystemTime::from(t)), t);
        }
    }
}
