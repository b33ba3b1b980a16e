//! What went wrong with a segment that is being written, and how bad that is.
//!
//! Promise: the first trouble of a generation counts, and stops everything of that generation from being acknowledged; the
//! log hears of it at its next look. A generation is what was written between two restarts of the log.
//! Called by: `log`, `flusher`, `verifier` (raise), `failover` (decides). Cannot fail.

use super::VaultFault;
use super::place::Place;
use std::fmt;
use std::io;
use std::sync::Arc;

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The place has no room.
    Full,
    /// The place takes no writes at all (read-only, gone).
    Gone,
    /// A flush took longer than its deadline.
    Stalled,
    /// A write, flush or read failed.
    Failed,
    /// What was read back is not what was sent.
    Mismatch,
}

/// A failure while writing the log.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// The generation that it stops.
    pub generation: u64,
    /// Where.
    pub place: Place,
    /// What.
    pub kind: Kind,
    /// A sentence that does not name the place.
    pub why: Arc<str>,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place.name(), self.why)
    }
}

/// How an I/O error is to be taken. A quota of the backing filesystem, or a file that it lets grow no further, is a lack
/// of room: deleting something may help.
pub fn kind_of(e: &io::Error) -> Kind {
    match e.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Kind::Full,
        Some(libc::EROFS | libc::ENODEV | libc::ENXIO | libc::ESTALE | libc::ENOTCONN | libc::ENOENT) => Kind::Gone,
        _ if e.kind() == io::ErrorKind::NotFound => Kind::Gone,
        _ if e.kind() == io::ErrorKind::StorageFull => Kind::Full,
        _ => Kind::Failed,
    }
}

/// The same for a fault of the vault.
pub fn kind_of_fault(fault: &VaultFault) -> Kind {
    match fault {
        VaultFault::Backing(e) => kind_of(e),
        _ => Kind::Failed,
    }
}
