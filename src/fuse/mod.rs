//! Mounting: the kernel's end of the filesystem. `fuser` is used in this folder only.
//!
//! Promise: `attach` gives the connection of a mount that now exists, `serve` answers it once `wait` is called; `wait` returns when
//! someone, anyone, unmounted it. What the vault holds is not touched by unmounting: whoever opened the vault closes it.
//! Called by: `cli::mounter` (`attach`, `detach`: in a process of its own, for the one that serves may not mount), `cli::mount`.
//! On failure: the `io::Error` of the mount.

mod attr;
mod background;
mod door;
mod ground;
mod groups;
mod held;
mod helper;
mod listing;
mod negotiate;
mod operation;
mod page_cache;
mod privileges;
mod reply;
mod requests;
mod seek;
mod set_id;
mod spare;
mod synchronous;
mod writes;

pub use door::Admitted;

use crate::base::id::Ino;
use crate::base::limits::{FULL_DEADLINE, FUSE_THREADS};
use crate::fs::{AttributeCache, FileSystem};
use background::Background;
use door::Door;
use fuser::{Config, INodeNo, Session, SessionACL};
use requests::Requests;
use seek::Kernel;
use std::ffi::{CStr, CString};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// What `df` and `mount` show as the type, after `fuse.`.
const SUBTYPE: &str = "strongroom";
const KERNEL_TYPE: &CStr = c"fuse.strongroom";
const DEVICE: &str = "/dev/fuse";

/// How to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// What `df` and `mount` show as the source.
    pub fsname: String,
    /// Whether other users reach the mount.
    pub allow_other: bool,
    /// Who else does, root and owner aside, if not everybody.
    pub admitted: Option<Admitted>,
    /// Whether the kernel checks permissions; always on where anyone but root can reach the mount.
    pub default_permissions: bool,
    /// Whether the mount is for reading only.
    pub read_only: bool,
    /// Whether the kernel, where it checks permissions, goes by access control lists, too.
    pub acl: bool,
    /// Options for the kernel as they are: `nodev`, `nosuid`, `noexec`, `noatime`, `dev`, `suid`, `sync`, `dirsync` …
    pub kernel: Vec<String>,
    /// How often the kernel is made to hand over what programs have written to files that are still open, if at all.
    pub write_back_every: Option<Duration>,
    /// Threads that serve requests; more than background requests, so that blocked writers never take all of them.
    pub threads: usize,
    /// How long a write of the kernel's cache is held while there is no room for it.
    pub full_deadline: Duration,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            fsname: SUBTYPE.to_owned(),
            allow_other: false,
            admitted: None,
            default_permissions: false,
            read_only: false,
            acl: true,
            kernel: Vec::new(),
            write_back_every: None,
            threads: FUSE_THREADS,
            full_deadline: FULL_DEADLINE,
        }
    }
}

/// A live mount; dropped without `wait`, it is unmounted.
pub struct Mounted {
    session: Option<Session<Requests>>,
    unmount: Unmount,
    background: Background,
}

/// Unmounts, from any thread; fails while the mount is in use, and may then be tried again.
pub type Unmount = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// Mounts, and gives the connection: the kernel keeps its requests until `serve` takes them.
///
/// The mount is made here and not by `fuser`: the kernel's writeback comes with uid 0 and carries times, and `fuser`
/// can only pair a mount for its owner alone with a session that answers those with EACCES. So the kernel keeps other
/// users out, and the session asks no more questions.
pub fn attach(mountpoint: &Path, options: &MountOptions) -> io::Result<OwnedFd> {
    let mut words = Vec::new();
    if options.kernel_checks() {
        words.push("default_permissions");
    }
    if options.lets_others() {
        words.push("allow_other");
    }
    if options.read_only {
        words.push("ro");
    }
    words.extend(options.kernel.iter().map(String::as_str));
    let direct = if is_root() { mount_directly(mountpoint, &options.fsname, &words) } else { Err(denied()) };
    match direct {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            // Not every helper knows this word, and it is for us to follow.
            words.retain(|word| *word != "strictatime");
            helper::mount(mountpoint, &options.fsname, SUBTYPE, &words)
        }
        device => device,
    }
}

/// Serves `fs` to a mount that `attach` made; `unmount` takes it away again.
pub fn serve(fs: Arc<FileSystem>, device: OwnedFd, options: &MountOptions, unmount: Unmount) -> io::Result<Mounted> {
    let mut config = Config::default();
    config.n_threads = Some(options.threads);
    // Each thread opens the device anew, which an ordinary user may not be allowed to.
    config.clone_fd = OpenOptions::new().read(true).write(true).open(DEVICE).is_ok();
    let kernel = Kernel::default();
    fs.set_attribute_cache(Arc::new(kernel.clone()));
    let door = options.admitted.clone().map(Door::new);
    let session = Requests::new(fs, options, kernel.clone(), door).and_then(|requests| {
        let background = requests.background();
        Ok((Session::from_fd(requests, device, SessionACL::All, config)?, background))
    });
    match session {
        Ok((session, background)) => {
            kernel.connect(session.notifier());
            Ok(Mounted { session: Some(session), unmount, background })
        }
        Err(e) => {
            let _ = unmount();
            Err(e)
        }
    }
}

impl AttributeCache for Kernel {
    /// Takes no lock of a file in the kernel and waits for no page, so the thread that answers a request for a file may
    /// call it for that file. A negative offset leaves the file's pages alone; waiting for those could wait for ourselves.
    fn discard(&self, ino: Ino) {
        const NO_PAGES: i64 = -1;
        if let Some(notifier) = self.notifier()
            && let Err(e) = notifier.inval_inode(INodeNo(ino.0), NO_PAGES, 0)
        {
            log::error!("inode {ino}: the kernel did not discard its attributes, and may show old ones: {e}");
        }
    }
}

impl MountOptions {
    /// Whether the kernel is to check permissions by access control lists.
    fn has_lists(&self) -> bool {
        self.acl && self.kernel_checks()
    }

    fn kernel_checks(&self) -> bool {
        self.default_permissions || self.lets_others() || !is_root()
    }

    /// Whether the kernel is to let in everybody: to everything, or as far as the door.
    fn lets_others(&self) -> bool {
        self.allow_other || self.admitted.is_some()
    }
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn denied() -> io::Error {
    io::ErrorKind::PermissionDenied.into()
}

fn mount_directly(mountpoint: &Path, fsname: &str, words: &[&str]) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let mut flags = libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: getuid and getgid have no preconditions and cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", device.as_raw_fd());
    for &word in words {
        match word {
            "nodev" => flags |= libc::MS_NODEV,
            "dev" => flags &= !libc::MS_NODEV,
            "nosuid" => flags |= libc::MS_NOSUID,
            "suid" => flags &= !libc::MS_NOSUID,
            "noexec" => flags |= libc::MS_NOEXEC,
            "noatime" => flags |= libc::MS_NOATIME,
            "nodiratime" => flags |= libc::MS_NODIRATIME,
            "strictatime" => flags |= libc::MS_STRICTATIME,
            "sync" => flags |= libc::MS_SYNCHRONOUS,
            "dirsync" => flags |= libc::MS_DIRSYNC,
            "ro" => flags |= libc::MS_RDONLY,
            // What a mount is anyway.
            "exec" | "atime" | "diratime" | "relatime" | "async" | "rw" => {}
            other => {
                data.push(',');
                data.push_str(other);
            }
        }
    }
    let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::other);
    let (source, at, data) =
        (text(fsname.as_bytes())?, text(mountpoint.as_os_str().as_bytes())?, text(data.as_bytes())?);
    // SAFETY: all pointers are to zero-terminated strings that outlive the call.
    let done = unsafe { libc::mount(source.as_ptr(), at.as_ptr(), KERNEL_TYPE.as_ptr(), flags, data.as_ptr().cast()) };
    if done == 0 { Ok(device.into()) } else { Err(io::Error::last_os_error()) }
}

impl Mounted {
    /// Takes the file in which the kernel keeps its limit of background requests for this mount.
    pub fn connect_background(&self, setting: Box<dyn Write + Send>) {
        self.background.connect(setting);
    }

    /// Serves requests until the mount is gone.
    pub fn wait(mut self) -> io::Result<()> {
        let session = self.session.take().expect("only wait takes the session, and it takes the mount with it");
        let served = session.run();
        if served.is_err() {
            // Nobody serves it any more.
            let _ = (self.unmount)();
        }
        served
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.session.take().is_some()
            && let Err(e) = (self.unmount)()
        {
            log::error!("unmounting: {e}");
        }
    }
}

/// Unmounts. `lazily`: also while it is in use, so that nothing new begins to use it.
pub fn detach(mountpoint: &Path, lazily: bool) -> io::Result<()> {
    let path = CString::new(mountpoint.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let flags = libc::UMOUNT_NOFOLLOW | if lazily { libc::MNT_DETACH } else { 0 };
    // SAFETY: `path` is a zero-terminated string that outlives the call.
    if unsafe { libc::umount2(path.as_ptr(), flags) } == 0 {
        return Ok(());
    }
    let cause = io::Error::last_os_error();
    if cause.raw_os_error() != Some(libc::EPERM) {
        return Err(cause);
    }
    let helper = helper::program().ok_or(cause)?;
    let mut command = Command::new(helper);
    command.arg("-u").args(lazily.then_some("-z")).arg("--").arg(mountpoint).stdin(Stdio::null());
    let run = command.output()?;
    if run.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&run.stderr).trim().to_owned()))
    }
}
