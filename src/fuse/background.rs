//! How many background requests the kernel may have under way: more of them while writes are held for room.
//!
//! Promise: a read that the kernel makes in the background does not wait behind held writes. The kernel counts both, and what it
//! has queued, against one limit, and makes a reader wait at the limit.
//! Why it stays bounded: what the kernel may hold back for this mount is bounded in bytes (`mounter`), so held data is too.
//! Called by: `held`. On failure (no control filesystem, or not ours to set): the limit stays, and such a read waits for the
//! deadline of what is held.

use crate::base::limits::FUSE_BACKGROUND_MAX;
use crate::base::lock::Held;
use std::io::Write;
use std::sync::{Arc, Mutex};

/// Limits to try, the widest first: the kernel grants an ordinary user only a share of the memory.
const WIDE: [u16; 4] = [u16::MAX, 8 << 10, 1 << 10, 256];

/// The kernel's setting for this mount, once it is known where that lies.
#[derive(Clone, Default)]
pub(super) struct Background(Arc<Mutex<Option<Box<dyn Write + Send>>>>);

impl Background {
    /// Takes the file that holds the setting.
    pub(super) fn connect(&self, setting: Box<dyn Write + Send>) {
        *self.0.held() = Some(setting);
    }

    /// Gives the file up, which belongs to a mount that is gone.
    pub(super) fn disconnect(&self) {
        self.0.held().take();
    }

    /// Lets the kernel have as many under way as it wants. Says whether it does.
    pub(super) fn widen(&self) -> bool {
        WIDE.into_iter().any(|limit| self.set(limit))
    }

    /// Goes back to what was negotiated.
    pub(super) fn narrow(&self) {
        self.set(FUSE_BACKGROUND_MAX);
    }

    fn set(&self, limit: u16) -> bool {
        let mut setting = self.0.held();
        // Such a file has no position: each write is the whole number. `pwrite` is refused.
        setting.as_mut().is_some_and(|setting| setting.write(limit.to_string().as_bytes()).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn without_a_setting_nothing_is_widened_and_with_one_it_is_set_and_set_back() {
        let background = Background::default();
        assert!(!background.widen());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("max_background");
        background.connect(Box::new(fs::File::create(&path).unwrap()));
        assert!(background.widen());
        background.narrow();
        // A plain file has them all, one behind the other.
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("65535{FUSE_BACKGROUND_MAX}"));
        background.disconnect();
        assert!(!background.widen());
    }
}
