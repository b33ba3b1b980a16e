//! Gives up capabilities: what root may do beyond its own files.
//!
//! Promise: afterwards the permitted, effective, inheritable and ambient sets are empty, but for `CAP_DAC_OVERRIDE` if it is to
//! be kept; so is the bounding set, where this process may empty it (an ordinary user's may not, and has nothing to gain
//! from it under no_new_privs). What locking memory needed the capability for is left as a limit.
//! Called by: `confine`, before Landlock and seccomp. On failure: the system's error.

use super::Missing;
use std::io;

/// From `linux/capability.h`: two words for each set.
const VERSION_3: u32 = 0x2008_0522;
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_SETPCAP: u32 = 8;
const CAP_IPC_LOCK: u32 = 14;
/// Sets have 64 bits; the kernel says where its own end.
const CAP_MOST: u32 = 63;
/// Keys take a page for 128 of them.
const LOCKED_BYTES: libc::rlim_t = 8 << 20;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up all but what is to be kept.
pub(super) fn drop_all(keep_dac_override: bool) -> Result<String, Missing> {
    let held = current()?;
    let has = |cap: u32| held[(cap / 32) as usize].effective & (1 << (cap % 32)) != 0;
    if has(CAP_IPC_LOCK) {
        keep_locking();
    }
    // SAFETY: plain settings of this thread.
    unsafe {
        // A kernel before 4.3 has no ambient set, and nothing in it.
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    }
    if has(CAP_SETPCAP) {
        for cap in 0..=CAP_MOST {
            // SAFETY: as above.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0) } != 0 {
                match io::Error::last_os_error() {
                    e if e.raw_os_error() == Some(libc::EINVAL) => break,
                    e => return Err(Missing::Failed(format!("PR_CAPBSET_DROP {cap}: {e}"))),
                }
            }
        }
    }
    let kept = if keep_dac_override && has(CAP_DAC_OVERRIDE) { 1 << CAP_DAC_OVERRIDE } else { 0 };
    let sets = [Sets { effective: kept, permitted: kept, inheritable: 0 }, Sets::default()];
    let header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: the header and both words of each set live through the call.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) } != 0 {
        return Err(Missing::failed("capset"));
    }
    Ok(if kept == 0 { "on" } else { "on, but for CAP_DAC_OVERRIDE: not all files are the daemon's own user's" }
        .to_owned())
}

fn current() -> Result<[Sets; 2], Missing> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: the kernel reads the header and fills both words of each set.
    match unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) } {
        0 => Ok(sets),
        _ => Err(Missing::failed("capget")),
    }
}

/// Who had the capability could lock keys into memory beyond any limit; from now on the limit must do.
fn keep_locking() {
    // SAFETY: plain numbers, for which zero is a value.
    let mut limit: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills `limit`, and reads it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) == 0 && limit.rlim_cur < LOCKED_BYTES {
            limit.rlim_cur = LOCKED_BYTES;
            limit.rlim_max = limit.rlim_max.max(LOCKED_BYTES);
            // Refused without CAP_SYS_RESOURCE: then `key::tell_of_locks` says what could not be locked.
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit);
        }
    }
}
