//! Has the kernel hand over, every so often, what programs have written to files that are still open.
//!
//! Promise: dirty pages of the mount reach the daemon within `interval`, wherever the mount has been moved to.
//! Why a thread of the process that mounts: the daemon must not wait for the kernel, which waits for the daemon. Here a
//! call that hangs, since the daemon is stopped, holds nothing up but itself, and ends with the daemon.
//! A descriptor keeps a mount busy. So it lives for one call only, and as root it belongs to a copy of the mount that is in
//! no namespace: then `umount` does not find the mount in use because of it. Called by: `mounter`. On failure: the next round.

use super::mounts;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Rounds are never closer than this.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Starts the rounds over the mount of this device (`0:57`); they end with the process.
pub fn start(device: String, interval: Duration) -> io::Result<()> {
    let interval = interval.max(INTERVAL_MIN);
    let rounds = move || {
        loop {
            thread::sleep(interval);
            // The daemon learns of a failed write by itself, and the program from its own fsync.
            let _ = hand_over(&device);
        }
    };
    thread::Builder::new().name("write-back".to_owned()).spawn(rounds).map(drop)
}

/// Hands over what is dirty now. `syncfs` of a FUSE filesystem sends the pages, and may return before they were taken.
fn hand_over(device: &str) -> io::Result<()> {
    let root = open_root(device)?;
    // SAFETY: a descriptor that lives through the call.
    if unsafe { libc::syncfs(root.as_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Opens the root of the mount, at whichever of its places it is not covered by another mount.
fn open_root(device: &str) -> io::Result<File> {
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for mountpoint in mounts::places_of(device)? {
        match copy(&mountpoint).and_then(|copy| open_dir(&copy_path(&copy))).or_else(|_| open_dir(&mountpoint)) {
            Ok(root) if number(root.metadata()?.dev()) == device => return Ok(root),
            Ok(_) => {}
            Err(e) => failed = e,
        }
    }
    Err(failed)
}

/// A copy of the mount that no namespace has; it ends with the last descriptor.
fn copy(mountpoint: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(mountpoint.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_SYMLINK_NOFOLLOW as libc::c_uint;
    // SAFETY: a zero-terminated string that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// What leads into the copy: its descriptor itself is for paths only.
fn copy_path(copy: &OwnedFd) -> std::path::PathBuf {
    format!("/proc/self/fd/{}/.", copy.as_raw_fd()).into()
}

fn open_dir(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)
}

/// A device number as the kernel writes it into the list of mounts.
fn number(device: u64) -> String {
    format!("{}:{}", libc::major(device), libc::minor(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_device_and_left_as_it_was() {
        let device = number(std::fs::metadata("/proc").unwrap().dev());
        let root = open_root(&device).unwrap();
        assert!(root.metadata().unwrap().is_dir());
        hand_over(&device).unwrap();
        assert!(mounts::places_of(&device).unwrap().contains(&"/proc".into()));
        assert_eq!(hand_over("0:999999").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
