//! Finds out, before a mount is taken away, of which refused data an `fsync` has told a program.
//!
//! Promise: what the kernel has not reported to anybody stays in the daemon's list, and so in its last word.
//! How: each file that lacks refused bytes is opened and synced. Where no `fsync` has reported the error, the kernel reports it to this
//! one, and sends nothing to the daemon, which is told to keep the file in its list: the kernel will not report it again to a file that is
//! opened later. Where one has, the FSYNC reaches the daemon, which takes the file off its list.
//! Called by: `umount`. On failure (a file that this user may not open, no answer in time): the file stays in the list.

use super::{mounted, mounts, reach};
use crate::fs::{REFUSED_ORDER, RefusedFile};
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// How long it may take.
const WAIT: Duration = Duration::from_secs(30);

/// Asks for each file that the daemon lists.
pub fn ask_the_kernel(mountpoint: &Path) {
    let ask = || ask_all(mountpoint).map(|()| Vec::new());
    // By another process, for the daemon may not answer.
    let _ = reach::within(WAIT, &[], ask, || ());
}

fn ask_all(mountpoint: &Path) -> io::Result<()> {
    let text = std::fs::read(mounts::storage(mountpoint).join("unsaved"))?;
    for file in String::from_utf8_lossy(&text).lines().filter_map(RefusedFile::read) {
        let Some(path) = file.path.as_deref().and_then(|path| path.strip_prefix(b"/")) else { continue };
        let path = mountpoint.join(OsStr::from_bytes(path));
        // Whatever was put in its place is not followed and not waited for.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        if opened.is_ok_and(|opened| opened.sync_all().is_err()) {
            // The daemon is to go on naming it.
            mounted::order(mountpoint, &[REFUSED_ORDER, file.ino.to_string().as_bytes()].concat())?;
        }
    }
    Ok(())
}
