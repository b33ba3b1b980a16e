//! Who is let in, where the kernel lets in everybody (`allow_other`) and less was asked for.
//!
//! Promise: of every request that comes here, one of the owner, of root, of a user on the list or of a member of a group on it is
//! served, and any other is answered with EACCES. Which groups a process belongs to is asked of `/proc` once a second at most.
//! What the kernel answers from its caches does not come here: so `requests` lets it keep no attributes of the root directory, and it
//! asks for them on behalf of whoever takes a path through it.
//! The kernel's own write-back comes with uid 0, and is let in: it was somebody's write before.
//! Called by: `requests`, for each request. Takes: its own lock, for a look at a table. On failure: nobody is let in whose groups
//! are not known.

use super::groups;
use crate::base::lock::Held;
use fuser::Request;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

/// Who may enter beside root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admitted {
    /// Whoever mounted.
    pub owner: u32,
    /// Users.
    pub users: Vec<u32>,
    /// Groups.
    pub groups: Vec<u32>,
}

/// How long it is believed what groups a process belongs to.
const BELIEVED: Duration = Duration::from_secs(1);
/// Processes that are remembered; then it is begun anew.
const KNOWN_MOST: usize = 4096;

/// A process, its user and its group.
type Who = (u32, u32, u32);

/// Lets in, or not.
pub(super) struct Door {
    admitted: Admitted,
    /// Since when it is known of a process whether one of its groups is on the list.
    known: Mutex<HashMap<Who, (Duration, bool)>>,
}

impl Door {
    pub(super) fn new(admitted: Admitted) -> Door {
        Door { admitted, known: Mutex::default() }
    }

    /// Whether whoever asks is let in.
    pub(super) fn lets_in(&self, request: &Request, now: Duration) -> bool {
        self.judge((request.pid(), request.uid(), request.gid()), now, groups::has_any)
    }

    fn judge(&self, who: Who, now: Duration, is_member: impl FnOnce(u32, u32, &[u32]) -> bool) -> bool {
        let (pid, uid, gid) = who;
        if uid == 0 || uid == self.admitted.owner || self.admitted.users.contains(&uid) {
            return true;
        }
        if self.admitted.groups.is_empty() {
            return false;
        }
        if let Some(&(since, is_in)) = self.known.held().get(&who)
            && now.saturating_sub(since) < BELIEVED
        {
            return is_in;
        }
        // Without the lock: `/proc` may take its time.
        let is_in = is_member(pid, gid, &self.admitted.groups);
        let mut known = self.known.held();
        if known.len() >= KNOWN_MOST {
            known.clear();
        }
        known.insert(who, (now, is_in));
        is_in
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: fn(u32, u32, &[u32]) -> bool = |_, _, _| panic!("nobody had to be asked");

    #[test]
    fn owner_root_and_the_listed_come_in_and_nobody_else() {
        let door = Door::new(Admitted { owner: 10, users: vec![20, 21], groups: vec![30] });
        let now = Duration::ZERO;
        for uid in [0, 10, 20, 21] {
            assert!(door.judge((1, uid, 99), now, NEVER), "{uid}");
        }
        assert!(!door.judge((1, 22, 99), now, |_, own, gids| own == 30 && gids == [30]));
        assert!(door.judge((2, 22, 30), now, |_, own, gids| own == 30 && gids == [30]));
        let owner_only = Door::new(Admitted { owner: 10, ..Admitted::default() });
        assert!(owner_only.judge((1, 0, 0), now, NEVER) && !owner_only.judge((1, 11, 10), now, NEVER));
    }

    #[test]
    fn a_process_is_asked_after_once_a_second() {
        let door = Door::new(Admitted { owner: 10, users: Vec::new(), groups: vec![30] });
        let at = Duration::from_millis;
        assert!(door.judge((7, 1, 1), at(0), |_, _, _| true));
        assert!(door.judge((7, 1, 1), at(999), NEVER), "it is remembered");
        assert!(!door.judge((7, 1, 2), at(999), |_, _, _| false), "another group is another question");
        assert!(!door.judge((7, 1, 1), at(1000), |_, _, _| false), "it has left its group since");
        for pid in 0..2 * KNOWN_MOST as u32 {
            door.judge((pid, 1, 1), at(0), |_, _, _| false);
        }
        assert!(door.known.held().len() <= KNOWN_MOST);
    }
}
