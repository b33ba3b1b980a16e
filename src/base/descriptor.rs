//! Hands an open descriptor to another process, over a socket.
//!
//! Promise: what is received is a descriptor of ours alone, that no program which is run inherits.
//! Called by: `fuse::helper` (the set-uid program hands over the mount's), `cli::mounter` (so does the process that mounts).
//! On failure: the `io::Error`; `UnexpectedEof` where the other side has gone.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

const FD_BYTES: u32 = size_of::<i32>() as u32;

/// Sends one byte, and with it a descriptor.
pub fn send(socket: &UnixStream, byte: u8, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut byte = byte;
    let mut slice = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = [0u64; 8];
    let mut message = message(&mut slice, &mut control);
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
    let (space, len) = unsafe { (libc::CMSG_SPACE(FD_BYTES), libc::CMSG_LEN(FD_BYTES)) };
    message.msg_controllen = space as _;
    // SAFETY: the control buffer is larger than one header with one descriptor, aligned for it, and zeroed.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = len as _;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(descriptor.as_raw_fd());
    }
    // SAFETY: `message` points to a slice and a control buffer that live through the call, with their true lengths.
    again(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) }).map(drop)
}

/// Takes one byte, and the descriptor that came with it, if one did.
pub fn receive(socket: &UnixStream) -> io::Result<(u8, Option<OwnedFd>)> {
    let mut byte = 0u8;
    let mut slice = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut control = [0u64; 8];
    let mut message = message(&mut slice, &mut control);
    // SAFETY: as in `send`.
    let read = || unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if again(read)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: recvmsg filled `message` and set msg_controllen to what it wrote, so the first header is whole or null.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    let came = header.filter(|h| {
        h.cmsg_level == libc::SOL_SOCKET
            && h.cmsg_type == libc::SCM_RIGHTS
            // SAFETY: CMSG_LEN only computes.
            && h.cmsg_len >= unsafe { libc::CMSG_LEN(FD_BYTES) } as usize
    });
    let descriptor = came.map(|h| {
        // SAFETY: the length says that at least one i32 follows the header; it may be unaligned. The kernel just made this
        // descriptor for us, and nobody else knows it.
        unsafe { OwnedFd::from_raw_fd(libc::CMSG_DATA(h).cast::<i32>().read_unaligned()) }
    });
    Ok((byte, descriptor))
}

/// u64s, so that the control buffer is aligned for its header; 64 bytes hold the header and one descriptor.
fn message(slice: &mut libc::iovec, control: &mut [u64; 8]) -> libc::msghdr {
    // SAFETY: msghdr is plain data for which all zeros is a valid value.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(control) as _;
    message
}

fn again(mut call: impl FnMut() -> isize) -> io::Result<isize> {
    loop {
        match call() {
            -1 => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
            n => return Ok(n),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_comes_with_its_byte_and_is_the_same_file() {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let (kept, mut far) = UnixStream::pair().expect("a pair of sockets");
        send(&theirs, b'f', kept.as_fd()).expect("it is sent");
        drop(kept);
        let (byte, came) = receive(&ours).expect("it comes");
        let mut came = UnixStream::from(came.expect("with a descriptor"));
        came.write_all(b"x").expect("it is open");
        let mut seen = [0];
        far.read_exact(&mut seen).expect("on the same socket");
        assert_eq!((byte, &seen), (b'f', b"x"));
    }

    #[test]
    fn a_byte_may_come_alone_and_an_end_is_an_error() {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        (&theirs).write_all(b"x").expect("a byte fits");
        let (byte, none) = receive(&ours).expect("a byte");
        assert!(byte == b'x' && none.is_none());
        drop(theirs);
        assert_eq!(receive(&ours).expect_err("the end came").kind(), io::ErrorKind::UnexpectedEof);
    }
}
