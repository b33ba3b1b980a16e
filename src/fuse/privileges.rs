//! Which rights the task behind a request has, where the request does not say.
//!
//! Promise: a task has a right here only if it has the capability in the machine's own user namespace. Who cannot be
//! looked up has none.
//! Why not the request: FALLOCATE and COPY_FILE_RANGE carry no flag for it, `fuser` 0.18 does not pass on the one of SETATTR
//! (`FATTR_KILL_SUIDGID`), through overlayfs a request names the user who mounted instead of the one who asks, and where
//! idmapped mounts are allowed most requests name nobody.
//! Called by: `requests`, for files with set-id bits or `trusted` attributes only: a look costs two files of `/proc`.

/// From `linux/capability.h`: set-id bits stay when the file changes.
const CAP_FSETID: u32 = 4;
/// From there too: attributes of the `trusted` namespace are visible.
const CAP_SYS_ADMIN: u32 = 21;

/// Whether a task may leave the set-id bits on a file that it changes.
pub(super) fn may_keep_set_id(task: u32) -> bool {
    has(task, CAP_FSETID)
}

/// Whether a task may see the attributes of the `trusted` namespace.
pub(super) fn sees_trusted(task: u32) -> bool {
    has(task, CAP_SYS_ADMIN)
}

fn has(task: u32, capability: u32) -> bool {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{task}/{name}")).unwrap_or_default();
    is_capable(&read("status"), capability) && is_machines_own(&read("uid_map"))
}

/// `CapEff:\t000001ffffffffff` is one line of many.
fn is_capable(status: &str, capability: u32) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set >> capability & 1 == 1)
}

/// A user namespace that maps every user to itself: the machine's own, or one that only its root could make.
fn is_machines_own(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_a_bit_of_the_effective_set() {
        let status = |set: &str| format!("Name:\tcp\nCapPrm:\t000001ffffffffff\nCapEff:\t{set}\nCapBnd:\t0\n");
        assert!(is_capable(&status("000001ffffffffff"), CAP_FSETID));
        assert!(is_capable(&status("0000000000000010"), CAP_FSETID));
        for none in ["000001ffffffffef", "0000000000000000", "", "no number"] {
            assert!(!is_capable(&status(none), CAP_FSETID), "{none}");
        }
        assert!(!is_capable("", CAP_FSETID), "the task has ended");
    }

    #[test]
    fn root_of_a_container_is_not_root_of_the_machine() {
        assert!(is_machines_own("         0          0 4294967295\n"));
        for other in ["", "0 100000 65536\n", "0 0 1\n", "0 0 4294967294\n", "0 0 4294967295\n1 1 1\n"] {
            assert!(!is_machines_own(other), "{other}");
        }
    }
}
