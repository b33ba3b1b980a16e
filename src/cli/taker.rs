//! Takes a mount away in a process of its own, so that nobody has to wait for the kernel's tidying.
//!
//! Promise: `take_away` returns when the mount is gone from its place and its daemon has ended, or when the kernel refused. It does not
//! wait until the kernel has forgotten every inode that it remembered of the mount: two microseconds each, two seconds
//! for a million, and nothing depends on it: the daemon is told of the end before that, and closes the vault meanwhile.
//! Why a process: `umount2` comes back only after the tidying, and a process ends only when all of its threads have. The one left
//! behind holds nothing that anyone waits for: no descriptors, no directory; the system's first process reaps it.
//! Called by: `umount`. On failure: the `io::Error` of `umount2`, or of what it takes to call it elsewhere.

use super::daemon::{leave, pipe};
use super::exit::Exit;
use super::mounts::{self, Mount};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// A process, held by a descriptor that becomes readable when it has ended.
pub struct Process(OwnedFd);

impl Process {
    /// `None` where it cannot be seen (another process namespace, an old kernel).
    pub fn of(pid: i32) -> Option<Process> {
        // SAFETY: a plain call with two numbers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        // SAFETY: the kernel just gave us this descriptor, and descriptors fit.
        (fd >= 0).then(|| Process(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Sends it a signal; another process that has its number by now gets none.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let nothing = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a plain call; no further information is given.
        let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, nothing, 0) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Whether it has ended, or does so within a while.
    pub fn has_ended(&self, wait: Duration) -> bool {
        first_of(&[self.0.as_raw_fd()], wait.as_millis() as i32).is_some()
    }
}

/// What shows that a mount is gone, though whoever takes it away is still at it.
pub struct End<'a> {
    /// The mount.
    pub mount: &'a Mount,
    /// Its daemon.
    pub daemon: &'a Process,
}

impl End<'_> {
    /// Whether it has come: a daemon may also end by itself, and then the mount is still there.
    fn has_come(&self) -> bool {
        let gone = || {
            mounts::topmost(&self.mount.mountpoint).is_ok_and(|top| top.is_none_or(|m| m.device != self.mount.device))
        };
        self.daemon.has_ended(Duration::ZERO) && gone()
    }

    /// Waits for `done`, or for this end; says whether it was this.
    fn comes_before(&self, done: RawFd) -> bool {
        // After the daemon's end without the mount's there is one thing to wait for.
        first_of(&[done, self.daemon.0.as_raw_fd()], -1) == Some(1) && self.has_come()
    }
}

/// Unmounts; without an `end` to look for it waits for all of it.
pub fn take_away(path: &Path, flags: libc::c_int, end: Option<&End<'_>>) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let (mut told, tell) = pipe()?;
    // SAFETY: the child makes system calls, on memory that it has, and ends; it takes no lock that another thread may hold.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => unmount_in_child(&name, flags, &tell),
        child => {
            drop(tell);
            if end.is_some_and(|end| end.comes_before(told.as_raw_fd())) {
                return Ok(());
            }
            let mut code = [0; 4];
            let heard = told.read_exact(&mut code);
            let mut status = 0;
            // SAFETY: `child` is ours, and `status` lives. It has said its last word.
            unsafe { libc::waitpid(child, &mut status, 0) };
            heard.map_err(|_| io::Error::other("the process that unmounts has died"))?;
            match i32::from_ne_bytes(code) {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
    }
}

fn unmount_in_child(name: &CString, flags: libc::c_int, tell: &File) -> ! {
    // SAFETY: plain calls; the string and the four bytes live. What the caller's caller waits to see closed (the end of a pipe)
    // is closed; an old kernel refuses, and they wait as long as the tidying takes.
    unsafe {
        libc::dup2(tell.as_raw_fd(), 0);
        libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0);
        libc::chdir(c"/".as_ptr());
        let code = if libc::umount2(name.as_ptr(), flags) == 0 { 0 } else { *libc::__errno_location() };
        let _ = libc::write(0, (&raw const code).cast(), 4);
    }
    leave(Exit::Ok)
}

/// Runs a command that unmounts; `None` if the end came before the command's.
pub fn run_until(command: &mut Command, end: Option<&End<'_>>) -> io::Result<Option<Output>> {
    let child: Child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    if let (Some(end), Some(helper)) = (end, Process::of(child.id() as i32))
        && end.comes_before(helper.0.as_raw_fd())
    {
        return Ok(None);
    }
    child.wait_with_output().map(Some)
}

/// The first of some descriptors that can be read, in their order; `None` after so many milliseconds (-1: never).
fn first_of(descriptors: &[RawFd], milliseconds: i32) -> Option<usize> {
    let mut polls: Vec<libc::pollfd> =
        descriptors.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    loop {
        // SAFETY: as many entries as are said, which live.
        let ready = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, milliseconds) };
        if ready >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return polls.iter().position(|p| p.revents != 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Mount {
        mounts::topmost(Path::new("/proc")).unwrap().expect("it is mounted")
    }

    fn ended() -> Process {
        let mut child = Command::new("sleep").arg("0.05").spawn().expect("sleep runs");
        let process = Process::of(child.id() as i32).expect("it is there");
        child.wait().unwrap();
        process
    }

    fn alive() -> Process {
        Process::of(std::process::id() as i32).expect("it is there")
    }

    #[test]
    fn a_process_that_ends_is_noticed() {
        let mut child = Command::new("sleep").arg("0.2").spawn().expect("sleep runs");
        let process = Process::of(child.id() as i32).expect("it is there");
        assert!(!process.has_ended(Duration::ZERO));
        while !process.has_ended(Duration::from_secs(5)) {}
        child.wait().unwrap();
    }

    #[test]
    fn a_mount_is_gone_only_with_its_daemon_and_from_its_place() {
        let (there, gone) = (here(), Mount { device: "0:999999".to_owned(), ..here() });
        let (dead, alive) = (ended(), alive());
        let come = |mount: &Mount, daemon: &Process| End { mount, daemon }.has_come();
        assert!(come(&gone, &dead));
        assert!(!come(&there, &dead), "a daemon that died leaves its mount");
        assert!(!come(&gone, &alive), "one that is gone from its place may still be closing the vault");
    }

    #[test]
    fn what_the_kernel_refuses_is_told_also_when_the_daemon_has_died() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (mount, daemon) = (here(), ended());
        for end in [None, Some(End { mount: &mount, daemon: &daemon })] {
            let e = take_away(dir.path(), libc::UMOUNT_NOFOLLOW, end.as_ref()).unwrap_err();
            assert!(matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EPERM)), "{e}");
        }
    }

    #[test]
    fn a_command_is_waited_for_unless_the_end_comes_first() {
        let (gone, dead) = (Mount { device: "0:999999".to_owned(), ..here() }, ended());
        let refused = || {
            let mut command = Command::new("sh");
            command.args(["-c", "echo busy >&2; exit 1"]);
            command
        };
        let output = run_until(&mut refused(), None).unwrap().expect("it is waited for");
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(1), &b"busy\n"[..]));
        let (there, end) = (here(), End { mount: &gone, daemon: &dead });
        let output = run_until(&mut refused(), Some(&End { mount: &there, daemon: &dead })).unwrap();
        assert!(output.is_some(), "its daemon has died, and the mount is there");
        assert!(run_until(Command::new("sleep").arg("5"), Some(&end)).unwrap().is_none());
    }
}
