//! Mounting: the kernel's end of the filesystem. `fuser` is used in this folder only.
//!
//! Promise: `mount` returns when the mount is live and serves it once `wait` is called; `wait` returns when someone,
//! anyone, unmounted it. What the vault holds is not touched by unmounting: whoever opened the vault closes it.
//! Called by: `cli`. On failure: the `io::Error` of the mount.

mod helper;
mod requests;

use crate::fs::FileSystem;
use fuser::{Config, MountOption, Session, SessionACL};
use requests::Requests;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Requests that the kernel may have in the background (readahead, writeback) at a time.
pub(crate) const MAX_BACKGROUND: u16 = 16;
/// Threads beyond those, so that blocked writers never take all of them.
const SPARE_THREADS: usize = 8;
/// What `df` and `mount` show as the type, after `fuse.`.
const SUBTYPE: &str = "strongroom";

/// How to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// What `df` and `mount` show as the source.
    pub fsname: String,
    /// Whether other users reach the mount.
    pub allow_other: bool,
    /// Whether the kernel checks permissions; always on where anyone but root can reach the mount.
    pub default_permissions: bool,
    /// Whether the mount is for reading only.
    pub read_only: bool,
    /// Options for the kernel as they are: `nodev`, `nosuid`, `noexec`, `noatime`, `dev`, `suid`, `sync`, `dirsync` …
    pub kernel: Vec<String>,
    /// Threads that serve requests; at least `threads_min()`.
    pub threads: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            fsname: SUBTYPE.to_owned(),
            allow_other: false,
            default_permissions: false,
            read_only: false,
            kernel: Vec::new(),
            threads: threads_min(),
        }
    }
}

/// Fewest threads with which no request waits behind blocked writers.
#[must_use]
pub fn threads_min() -> usize {
    usize::from(MAX_BACKGROUND) + SPARE_THREADS
}

/// A live mount.
pub struct Mounted {
    session: Session<Requests>,
    unmounter: Unmounter,
}

/// Unmounts, from any thread.
#[derive(Debug, Clone)]
pub struct Unmounter {
    mountpoint: PathBuf,
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn kernel_option(option: &str) -> MountOption {
    match option {
        "nodev" => MountOption::NoDev,
        "dev" => MountOption::Dev,
        "nosuid" => MountOption::NoSuid,
        "suid" => MountOption::Suid,
        "noexec" => MountOption::NoExec,
        "exec" => MountOption::Exec,
        "noatime" => MountOption::NoAtime,
        "atime" => MountOption::Atime,
        "sync" => MountOption::Sync,
        "async" => MountOption::Async,
        "dirsync" => MountOption::DirSync,
        other => MountOption::CUSTOM(other.to_owned()),
    }
}

/// Mounts `fs` at `mountpoint`.
pub fn mount(fs: Arc<FileSystem>, mountpoint: &Path, options: &MountOptions) -> io::Result<Mounted> {
    let mountpoint = mountpoint.canonicalize()?;
    let root = is_root();
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(threads_min()));
    config.clone_fd = true;
    config.mount_options = vec![
        MountOption::FSName(options.fsname.clone()),
        MountOption::Subtype(SUBTYPE.to_owned()),
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    if options.default_permissions || options.allow_other || !root {
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    config.mount_options.extend(options.kernel.iter().map(|o| kernel_option(o)));
    // The kernel's writeback comes with uid 0 and carries times that must not be refused. As root, `Owner` lets it
    // through. For another owner, `fuser` has no choice that does and yet mounts for the owner alone: so the mount is
    // made here, the kernel keeps other users out, and the session asks no more questions.
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let requests = Requests::new(fs);
    let session = if root || options.allow_other {
        Session::new(requests, &mountpoint, &config)?
    } else {
        let device = helper::mount(&mountpoint, &options.fsname, SUBTYPE, options.read_only, &options.kernel)?;
        let mounted = Session::from_fd(requests, device, SessionACL::All, config);
        if mounted.is_err() {
            let _ = unmount(&mountpoint);
        }
        mounted?
    };
    Ok(Mounted { session, unmounter: Unmounter { mountpoint } })
}

impl Mounted {
    /// Something that unmounts from another thread.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Serves requests until the mount is gone.
    pub fn wait(self) -> io::Result<()> {
        self.session.run()
    }
}

impl Unmounter {
    /// Unmounts; fails while the mount is in use, and may then be tried again.
    pub fn unmount(&self) -> io::Result<()> {
        unmount(&self.mountpoint)
    }
}

fn unmount(mountpoint: &Path) -> io::Result<()> {
    let path = CString::new(mountpoint.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: `path` is a zero-terminated string that outlives the call.
    if unsafe { libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW) } == 0 {
        return Ok(());
    }
    let cause = io::Error::last_os_error();
    if cause.raw_os_error() != Some(libc::EPERM) {
        return Err(cause);
    }
    let helper = helper::program().ok_or(cause)?;
    let run = Command::new(helper).arg("-u").arg("--").arg(mountpoint).stdin(Stdio::null()).output()?;
    if run.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&run.stderr).trim().to_owned()))
    }
}
