//! Mounting without privileges: the set-uid helper `fusermount3` mounts and hands the device back over a socket.
//!
//! Promise: the descriptor returned is the connection of a mount that now exists.
//! Called by: `fuse::mount`. On failure: what the helper said.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
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
    let device = receive(&ours);
    let output = child.wait_with_output()?;
    match device {
        Ok(device) if output.status.success() => Ok(device),
        Ok(_) | Err(_) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(io::Error::other(if said.is_empty() { "fusermount3 did not mount".to_owned() } else { said }))
        }
    }
}

/// Takes the one descriptor that comes over the socket.
fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    const FD_BYTES: u32 = size_of::<i32>() as u32;
    let mut byte = 0u8;
    let mut slice = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // u64s, so that the control buffer is aligned for its header; 64 bytes hold the header and one descriptor.
    let mut control = [0u64; 8];
    // SAFETY: msghdr is plain data for which all zeros is a valid value.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    loop {
        // SAFETY: `message` points to a slice and a control buffer that live through the call, with their true lengths.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match n {
            -1 => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(e);
                }
            }
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => break,
        }
    }
    // SAFETY: recvmsg filled `message` and set msg_controllen to what it wrote, so the first header is whole or null.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    match header {
        Some(h)
            if h.cmsg_level == libc::SOL_SOCKET
                && h.cmsg_type == libc::SCM_RIGHTS
                // SAFETY: CMSG_LEN only computes.
                && h.cmsg_len >= unsafe { libc::CMSG_LEN(FD_BYTES) } as usize =>
        {
            // SAFETY: the length says that at least one i32 follows the header; it may be unaligned.
            let fd = unsafe { libc::CMSG_DATA(h).cast::<i32>().read_unaligned() };
            // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "fusermount3 sent no descriptor")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_without_descriptor_is_refused() {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        std::io::Write::write_all(&mut &theirs, b"x").expect("a byte fits");
        assert_eq!(receive(&ours).expect_err("no descriptor came").kind(), io::ErrorKind::InvalidData);
        drop(theirs);
        assert_eq!(receive(&ours).expect_err("the end came").kind(), io::ErrorKind::UnexpectedEof);
    }
}
