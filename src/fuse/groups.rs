//! Which groups a program belongs to: a request names only one of them.
//!
//! Promise: who is not known to belong to a group does not. Called by: `door`; and `requests`, where a set-group-ID bit depends on
//! it, for `fuser` 0.18 does not hand over that the kernel has looked already (`FUSE_SETXATTR_EXT`).
//! On failure: no groups.

use fuser::Request;

/// Whoever sent a request.
#[derive(Clone, Copy)]
pub(super) struct Member {
    pub(super) task: u32,
    uid: u32,
    gid: u32,
}

impl Member {
    pub(super) fn of(request: &Request) -> Member {
        Member { task: request.pid(), uid: request.uid(), gid: request.gid() }
    }

    /// Whether they belong to `gid`, or are root and need not.
    pub(super) fn belongs_to(self, gid: u32) -> bool {
        self.uid == 0 || has_any(self.task, self.gid, &[gid])
    }
}

/// Whether a process, of whose groups a request named `own`, belongs to one of these.
pub(super) fn has_any(pid: u32, own: u32, gids: &[u32]) -> bool {
    gids.contains(&own)
        || !gids.is_empty()
            && std::fs::read_to_string(format!("/proc/{pid}/status"))
                .is_ok_and(|status| gids.iter().any(|&gid| lists(&status, gid)))
}

/// `Groups:\t4 24 27` is one line of many; the last of `Gid:\t1 2 3 4` is the group that files are asked for with.
fn lists(status: &str, gid: u32) -> bool {
    let line = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().split_whitespace();
    line("Gid:").last().into_iter().chain(line("Groups:")).any(|group| group.parse() == Ok(gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_their_line() {
        let status = "Name:\tcat\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t9\nGroups:\t4 24 1000 \nNStgid:\t27\n";
        assert!(lists(status, 4) && lists(status, 1000) && lists(status, 9));
        assert!(
            !lists(status, 27) && !lists(status, 7) && !lists(status, 8) && !lists("", 0) && !lists("Groups:\t\n", 0)
        );
    }
}
