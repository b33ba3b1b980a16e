//! Leaves direct I/O where a filesystem takes it when a file is opened, and refuses it when the file is read.
//!
//! Promise: a read or write that is refused with EINVAL because it was direct is made once more through the page cache, and from
//! then on so is every other one of that file and of files that are opened later in the same directory.
//! Why: FUSE filesystems such as bindfs hand the flag to a filesystem that wants another alignment than they keep.
//! Called by: `dir`, `memory`. On failure: the error of the second attempt.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// How one open file is read and written.
pub(super) struct Directness {
    direct: AtomicBool,
    /// Of the directory: whether direct I/O was refused there.
    refused: Arc<AtomicBool>,
}

impl Directness {
    pub(super) fn new(direct: bool, refused: &Arc<AtomicBool>) -> Directness {
        Directness { direct: AtomicBool::new(direct), refused: Arc::clone(refused) }
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct.load(SeqCst)
    }

    /// Whether direct I/O was refused in the directory.
    pub(super) fn has_refused(&self) -> bool {
        self.refused.load(SeqCst)
    }

    /// Makes a call that is told whether it is direct; if the filesystem refuses that, makes it again, after `leave` has told the
    /// kernel.
    pub(super) fn attempt<T>(
        &self,
        mut call: impl FnMut(bool) -> io::Result<T>,
        leave: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<T> {
        let direct = self.is_direct();
        match call(direct) {
            Err(e) if direct && e.raw_os_error() == Some(libc::EINVAL) => {
                leave()?;
                self.direct.store(false, SeqCst);
                if !self.refused.swap(true, SeqCst) {
                    log::warn!(
                        "the backing filesystem refuses direct I/O ({e}): files are read and written through its cache"
                    );
                }
                call(false)
            }
            other => other,
        }
    }
}
