//! Mounting without privileges: the set-uid helper `fusermount3` mounts and hands the device back over a socket.
//!
//! Promise: the descriptor returned is the connection of a mount that now exists.
//! Called by: `fuse::attach`. On failure: what the helper said.

use crate::base::descriptor;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the helper finds its end of the socket (its documented interface).
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";

/// The helper, if it is installed.
pub(super) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = ["/usr/bin", "/bin", "/usr/local/bin", "/sbin"].map(PathBuf::from);
    ["fusermount3", "fusermount"]
        .iter()
        .flat_map(|name| {
            std::env::split_paths(&path).chain(known.iter().cloned()).map(move |dir| dir.join(OsStr::new(name)))
        })
        .find(|candidate| candidate.is_file())
}

/// Mounts on behalf of the calling user and gives the device.
pub(super) fn mount(mountpoint: &Path, fsname: &str, subtype: &str, words: &[&str]) -> io::Result<OwnedFd> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "fusermount3 is not installed");
    let program = program().ok_or_else(missing)?;
    // A comma separates options; the helper takes a backslash before one that does not.
    let escaped = fsname.replace('\\', "\\\\").replace(',', "\\,");
    let mut options = format!("fsname={escaped},subtype={subtype}");
    for word in words {
        options.push(',');
        options.push_str(word);
    }
    let (ours, theirs) = UnixStream::pair()?;
    let theirs_fd = theirs.as_raw_fd();
    let mut command = Command::new(program);
    command.arg("-o").arg(options).arg("--").arg(mountpoint);
    command.env(SOCKET_VARIABLE, theirs_fd.to_string()).stdin(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: the closure runs between fork and exec and calls only fcntl, which is async-signal-safe, on a descriptor
    // that `theirs` keeps open until the child was started.
    unsafe {
        command.pre_exec(move || match libc::fcntl(theirs_fd, libc::F_SETFD, 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let child = command.spawn()?;
    drop(theirs);
    let device = descriptor::receive(&ours).map(|(_, device)| device);
    let output = child.wait_with_output()?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Ok(_) | Err(_) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(io::Error::other(if said.is_empty() { "fusermount3 did not mount".to_owned() } else { said }))
        }
    }
}
