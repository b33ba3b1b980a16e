//! Users and groups by name or number.
//!
//! Promise: a number is taken as it is; a name must be known to the system; a list is not empty, nor is one of its entries.
//! Called by: `options`, before the sandbox, under which the system's files are out of reach; `quota`. On failure: the name.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::ptr;

/// Room for what else the system has to say of one.
const ENTRY_BYTES: usize = 64 << 10;

/// Users, with `:` or `,` between them.
pub fn users(list: &str) -> Result<Vec<u32>, String> {
    list.split([':', ',']).map(user).collect()
}

/// Groups, likewise.
pub fn groups(list: &str) -> Result<Vec<u32>, String> {
    list.split([':', ',']).map(group).collect()
}

/// One user.
pub fn user(text: &str) -> Result<u32, String> {
    by_number_or(text, "user", |name| {
        let (mut entry, mut found) = (MaybeUninit::<libc::passwd>::uninit(), ptr::null_mut());
        let mut room = vec![0; ENTRY_BYTES];
        // SAFETY: the name is terminated, the rest is room for the answer, with its true length.
        unsafe { libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), room.as_mut_ptr(), room.len(), &mut found) };
        // SAFETY: null, or the entry, filled.
        unsafe { found.as_ref() }.map(|entry| entry.pw_uid)
    })
}

/// One group.
pub fn group(text: &str) -> Result<u32, String> {
    by_number_or(text, "group", |name| {
        let (mut entry, mut found) = (MaybeUninit::<libc::group>::uninit(), ptr::null_mut());
        let mut room = vec![0; ENTRY_BYTES];
        // SAFETY: as above.
        unsafe { libc::getgrnam_r(name.as_ptr(), entry.as_mut_ptr(), room.as_mut_ptr(), room.len(), &mut found) };
        // SAFETY: as above.
        unsafe { found.as_ref() }.map(|entry| entry.gr_gid)
    })
}

fn by_number_or(text: &str, what: &str, look: impl FnOnce(&CString) -> Option<u32>) -> Result<u32, String> {
    if text.bytes().all(|b| b.is_ascii_digit())
        && let Ok(number) = text.parse::<u32>()
        && number != u32::MAX
    {
        return Ok(number);
    }
    let name = CString::new(text).ok().filter(|name| !name.is_empty());
    name.and_then(|name| look(&name)).ok_or_else(|| format!("there is no {what} '{text}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_understood() {
        assert_eq!(users("root:12,7"), Ok(vec![0, 12, 7]));
        assert_eq!(groups("0:root"), Ok(vec![0, 0]));
        assert_eq!((user("root"), group("4711")), (Ok(0), Ok(4711)));
        assert!(user("nobody of that name").is_err());
        for wrong in ["", ":", "root:", "no such one", "-1", "4294967295", "1.5"] {
            assert!(users(wrong).is_err() && groups(wrong).is_err(), "{wrong:?}");
        }
    }
}
