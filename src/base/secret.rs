//! Key material: locked, left out of dumps, wiped when dropped, never printed.
//!
//! Promise: a `Secret` has one place for all its life. Moving it moves a pointer and leaves no copy of the key behind; it
//! shows itself in no message. Its page is locked, so that it never gets to swap, and marked to be left out of core dumps.
//! Where the system refuses to lock, `refusal` says so, and work goes on: a vault that does not open protects nobody's files.
//! Why a page of our own: a key within another value is copied by every move of that value, and what it lay in is not wiped;
//! and pages can be locked only as a whole. Pages are kept for the next keys, for there are few and they come and go.
//! Called by: `seal`, `vault`, `cli`. Takes: the pool's lock, then nothing. On failure: memory that cannot be had ends the
//! process, as everywhere.

use super::lock::Held;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Mutex;
use zeroize::{Zeroize, ZeroizeOnDrop};

const KEY_BYTES: usize = 32;

/// 256 bits of key.
pub struct Secret {
    at: NonNull<[u8; KEY_BYTES]>,
}

// SAFETY: a secret owns its place alone, like a box.
unsafe impl Send for Secret {}
// SAFETY: shared references only read.
unsafe impl Sync for Secret {}

/// A place that no secret has; all zeros.
struct Free(NonNull<[u8; KEY_BYTES]>);

// SAFETY: whoever holds it is the only one who knows the place.
unsafe impl Send for Free {}

struct Pool {
    free: Vec<Free>,
    refusal: Option<String>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { free: Vec::new(), refusal: None });

impl Secret {
    /// Zeros, to be filled where they are.
    #[must_use]
    pub fn zeroed() -> Secret {
        let mut pool = POOL.held();
        let Free(at) = pool.free.pop().unwrap_or_else(|| pool.another_page());
        Secret { at }
    }

    /// The same bytes in a place of their own; what they are copied from is the caller's to wipe.
    #[must_use]
    pub fn copy_of(bytes: &[u8; KEY_BYTES]) -> Secret {
        let mut secret = Secret::zeroed();
        secret.copy_from_slice(bytes);
        secret
    }
}

impl Pool {
    /// Takes one more page, and from it one place.
    fn another_page(&mut self) -> Free {
        // SAFETY: only asks.
        let len = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, anywhere.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED, "a page of memory can be had");
        if let Err(e) = guard(page.cast(), len) {
            self.refusal = Some(e.to_string());
        }
        let mut places = (0..len / KEY_BYTES).map(|n| {
            // SAFETY: within the page, which is never given back.
            let at = unsafe { page.cast::<[u8; KEY_BYTES]>().add(n) };
            Free(NonNull::new(at).expect("a mapping does not begin at 0"))
        });
        let first = places.next().expect("a page holds more than one key");
        self.free.extend(places);
        first
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.zeroize();
        POOL.held().free.push(Free(self.at));
    }
}

impl Deref for Secret {
    type Target = [u8; KEY_BYTES];
    fn deref(&self) -> &[u8; KEY_BYTES] {
        // SAFETY: the place is ours alone, initialised (zeros at first), and never given back.
        unsafe { self.at.as_ref() }
    }
}

impl DerefMut for Secret {
    fn deref_mut(&mut self) -> &mut [u8; KEY_BYTES] {
        // SAFETY: as above, and `&mut self` makes us the only one.
        unsafe { self.at.as_mut() }
    }
}

impl Clone for Secret {
    fn clone(&self) -> Secret {
        Secret::copy_of(self)
    }
}

impl ZeroizeOnDrop for Secret {}

/// For keys that are no secret: those of tests.
impl From<[u8; KEY_BYTES]> for Secret {
    fn from(bytes: [u8; KEY_BYTES]) -> Secret {
        Secret::copy_of(&bytes)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a person typed or a key file held.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Passphrase(pub Vec<u8>);

impl Passphrase {
    /// Locks the memory that it lies in, with whatever lies beside it. Locks are a process's own: after a fork it takes
    /// another call.
    pub fn lock(&self) -> io::Result<()> {
        guard(self.0.as_ptr(), self.0.capacity())
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// Why keys could not be locked into memory, if they could not.
pub fn refusal() -> Option<String> {
    POOL.held().refusal.clone()
}

/// Locks the pages of a range and leaves them out of dumps.
fn guard(at: *const u8, len: usize) -> io::Result<()> {
    // SAFETY: only asks.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let from = at as usize / page * page;
    let whole = at as usize + len - from;
    // SAFETY: both only mark pages; a range that is not mapped is refused.
    let refused = unsafe {
        libc::madvise(from as *mut libc::c_void, whole, libc::MADV_DONTDUMP) != 0
            || libc::mlock(from as *const libc::c_void, whole) != 0
    };
    if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_keeps_its_place_and_leaves_it_wiped() {
        let secret = Secret::from([7; 32]);
        let place = |s: &Secret| s.as_ptr() as usize;
        let at = place(&secret);
        let moved = Box::new(secret);
        assert_eq!(place(&moved), at, "a move copies no key");
        let copy = moved.clone();
        assert!(copy[..] == [7; 32] && place(&copy) != at, "a copy has a place of its own");
        drop(moved);
        let again: Vec<Secret> = (0..300).map(|_| Secret::zeroed()).collect();
        assert!(again.iter().all(|s| **s == [0; 32]), "what was there is gone");
        assert!(copy[..] == [7; 32]);
        assert_eq!(format!("{copy:?}"), "Secret(…)");
    }

    #[test]
    fn its_page_is_locked_and_left_out_of_dumps() {
        let secret = Secret::zeroed();
        let at = secret.as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut flags = None;
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|r| r.split_once('-'));
            let number = |s: &str| usize::from_str_radix(s, 16).ok();
            if let Some((from, to)) = range.and_then(|(from, to)| Some((number(from)?, number(to)?))) {
                inside = (from..to).contains(&at);
            }
            if inside && line.starts_with("VmFlags:") {
                flags = Some(line.to_owned());
            }
        }
        let flags = flags.expect("the kernel tells what it does with a page");
        assert!(flags.contains(" dd"), "{flags}");
        assert!(flags.contains(" lo") || refusal().is_some(), "neither locked nor said: {flags}");
    }
}
