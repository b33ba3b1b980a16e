//! Finds out, before a mount is taken away, of which refused data an `fsync` has told a program.
//!
//! Promise: what the kernel has not reported to anybody stays in the daemon's list, and so in its last word.
//! How: each file that lacks refused bytes is opened and synced. Where no `fsync` has reported the error, the kernel reports it to this
//! one, and sends nothing to the daemon, which is told to keep the file in its list: the kernel will not report it again to a file that is
//! opened later. Where one has, the FSYNC reaches the daemon, which takes the file off its list.
//! Called by: `umount`. On failure (a file that this user may not open, no answer in time): the file stays in the list.

use super::{mounted, mounts, reach};
use crate::fs::REFUSED_ORDER;
use std::fs::OpenOptions;
use std::io;
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
    for (path, ino) in String::from_utf8_lossy(&text).lines().filter_map(refused_file) {
        // Whatever was put in its place is not followed and not waited for.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(mountpoint.join(path));
        if file.is_ok_and(|file| file.sync_all().is_err()) {
            // The daemon is to go on naming it.
            mounted::order(mountpoint, &[REFUSED_ORDER, ino.to_string().as_bytes()].concat())?;
        }
    }
    Ok(())
}

/// The path, without its `/`, and the inode number in a line of `unsaved` about refused bytes. `None` for other lines, and for a path
/// that is not written as it is.
fn refused_file(line: &str) -> Option<(&str, u64)> {
    let (path, rest) = line.rsplit_once(" (inode ")?;
    let (ino, rest) = rest.split_once("): ")?;
    let is_refused = rest.ends_with(" bytes were refused") && !path.contains('\\');
    is_refused.then_some((path.strip_prefix('/')?, ino.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_refused_bytes_are_told_from_paths() {
        assert_eq!(refused_file("/a b (inode 7): 5 bytes were refused"), Some(("a b", 7)));
        for line in ["/a", "/a (inode 7)", "inode 7, which has no name", "/a\\n (inode 7): 5 bytes were refused"] {
            assert_eq!(refused_file(line), None, "{line}");
        }
        assert_eq!(refused_file("a file without a name (inode 7): 5 bytes were refused"), None);
    }
}
