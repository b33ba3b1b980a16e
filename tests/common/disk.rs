//! Small filesystems in files: to be filled, and pulled away, without harm to the machine's own. Needs root.
//!
//! Promise: what was mounted is unmounted and gone when its `Disk` is dropped; each function fails the test rather than
//! leave half of what it says.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use super::{needs_root, run};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A filesystem in a file, mounted.
pub struct Disk {
    dir: tempfile::TempDir,
    /// Where it is mounted.
    pub at: PathBuf,
}

impl Disk {
    /// A fresh one.
    pub fn ext4(mib: u64) -> Disk {
        // Nothing is kept for root: the last block is really the last.
        Disk::made_by(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]), mib)
    }

    /// A fresh one that holds so many files and directories.
    pub fn ext4_of_few_files(mib: u64, files: u64) -> Disk {
        Disk::made_by(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-N"]).arg(files.to_string()), mib)
    }

    fn made_by(mkfs: &mut Command, mib: u64) -> Disk {
        needs_root("mount a filesystem from a file");
        let dir = tempfile::Builder::new().prefix("disk-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = dir.path().join("at");
        fs::create_dir(&at).unwrap();
        File::create(dir.path().join("image")).unwrap().set_len(mib << 20).unwrap();
        run(mkfs.arg(dir.path().join("image")));
        let disk = Disk { dir, at };
        disk.give_back();
        disk
    }

    /// Mounts it again.
    pub fn give_back(&self) {
        // A device of its own each time: while somebody holds on to what was pulled, `mount` would take that again.
        let device = run(Command::new("losetup").args(["-f", "--show"]).arg(self.dir.path().join("image")));
        run(Command::new("mount").arg(device.trim()).arg(&self.at));
        // It goes with the mount.
        run(Command::new("losetup").args(["-d", device.trim()]));
    }

    /// As when the cable is pulled: from now on nothing reaches it, and what was not synced is lost.
    pub fn pull(&self) {
        self.shut_down();
        self.detach();
    }

    /// From now on nothing reaches it, but it stays mounted, as where a disk has died.
    pub fn shut_down(&self) {
        const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
        let at_once: u32 = 2;
        let root = File::open(&self.at).unwrap();
        // SAFETY: the descriptor is ours, the argument lives through the call.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN as _, &raw const at_once) };
        assert_eq!(done, 0, "shutting {} down: {}", self.at.display(), io::Error::last_os_error());
    }

    /// Until what is given back is dropped, every write and flush on it hangs; reads go on.
    pub fn hang(&self) -> Hanging {
        const FIFREEZE: libc::c_ulong = 0xc004_5877;
        let root = File::open(&self.at).unwrap();
        // SAFETY: the descriptor is ours, and the argument is not used.
        let done = unsafe { libc::ioctl(root.as_raw_fd(), FIFREEZE as _, 0) };
        assert_eq!(done, 0, "freezing {}: {}", self.at.display(), io::Error::last_os_error());
        Hanging(root)
    }

    /// Bytes that can still be written: what ext4 keeps for itself does not count.
    pub fn free_bytes(&self) -> u64 {
        let at = CString::new(self.at.as_os_str().as_bytes()).unwrap();
        let mut s = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: a terminated string, and room for the answer.
        assert_eq!(unsafe { libc::statvfs(at.as_ptr(), s.as_mut_ptr()) }, 0);
        // SAFETY: the call succeeded, so it is filled.
        let s = unsafe { s.assume_init() };
        s.f_bavail * s.f_frsize
    }

    /// Takes all but about `leave_bytes` for a file that is nobody's business; with 0, to the last block.
    pub fn fill(&self, leave_bytes: u64) -> PathBuf {
        let path = (0..).map(|n| self.at.join(format!("filler-{n}"))).find(|p| !p.exists()).unwrap();
        let mut file = File::create(&path).unwrap();
        let block = vec![0x5a; 1 << 20];
        let mut step = block.len();
        // What others free meanwhile is taken as well, a few times over.
        let mut again = 0;
        while self.free_bytes() > leave_bytes && again < 20 {
            let n = step.min((self.free_bytes() - leave_bytes) as usize).max(4096);
            match file.write(&block[..n]) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && step > 4096 => step = (step / 4).max(4096),
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => {
                    again += 1;
                    // Blocks that were promised and not needed come back with the sync.
                    let _ = file.sync_all();
                }
                Err(e) => panic!("{}: {e}", path.display()),
            }
        }
        let _ = file.sync_all();
        path
    }

    /// Takes all but `leave_bytes` at once, without writing it.
    pub fn take_all_but(&self, leave_bytes: u64) -> PathBuf {
        let path = self.at.join("taken");
        let file = File::create(&path).unwrap();
        let len = i64::try_from(self.free_bytes() - leave_bytes).unwrap();
        // SAFETY: the descriptor is ours.
        let done = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) };
        assert_eq!(done, 0, "taking {len} bytes: {}", io::Error::last_os_error());
        file.sync_all().unwrap();
        path
    }

    /// Takes it away, also while somebody holds on to it.
    pub fn detach(&self) {
        let at = CString::new(self.at.as_os_str().as_bytes()).unwrap();
        // SAFETY: a terminated string.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    }
}

/// A disk that hangs.
pub struct Hanging(File);

impl Drop for Hanging {
    fn drop(&mut self) {
        const FITHAW: libc::c_ulong = 0xc004_5878;
        // SAFETY: the descriptor is ours, and the argument is not used.
        unsafe { libc::ioctl(self.0.as_raw_fd(), FITHAW as _, 0) };
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let at = CString::new(self.at.as_os_str().as_bytes()).unwrap();
        for _ in 0..50 {
            // SAFETY: a terminated string.
            if unsafe { libc::umount2(at.as_ptr(), 0) } == 0 || !is_mounted(&self.at) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.detach();
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|l| l.split(' ').nth(4) == path.to_str())
}
