//! Every difference from ext4 that `docs/semantics.md` states, each with a test of its name.
//!
//! Method: the call is made in the mount and its answer compared with what the page says; where it helps, also on the disk's own
//! filesystem, so that a difference which has gone is noticed.
//! Promise: the page is true in both directions: what it states is so, and what is not so does not stay stated.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::{TestVault, eventually, is_root, needs_root, output, run, shell};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const NO_ARGUMENTS: [&str; 0] = [];

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn last<T>(done: i32, value: T) -> Result<T, i32> {
    if done < 0 { Err(io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(value) }
}

fn statx(path: &Path, wanted: u32) -> libc::statx {
    let at = c(path);
    let mut out = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: a terminated string, and room for the answer.
    let done = unsafe { libc::statx(libc::AT_FDCWD, at.as_ptr(), 0, wanted, out.as_mut_ptr()) };
    assert_eq!(done, 0);
    // SAFETY: the call filled it.
    unsafe { out.assume_init() }
}

#[test]
fn a_file_may_be_larger_than_on_ext4() {
    let v = TestVault::mounted();
    let f = OpenOptions::new().read(true).write(true).create_new(true).open(v.path("f")).unwrap();
    let most = i64::MAX as u64;
    f.set_len(most).unwrap();
    f.write_all_at(b"end", most - 4).unwrap();
    f.sync_all().unwrap();
    drop(f);
    v.remount();
    let f = File::open(v.path("f")).unwrap();
    let mut end = [1; 6];
    assert_eq!(f.read_at(&mut end, most - 6).unwrap(), 6);
    assert_eq!(&end, b"\0\0end\0");
    drop(f);
    v.umount();
    v.check();
}

#[test]
fn times_are_kept_that_ext4_cuts() {
    let v = TestVault::mounted();
    fs::write(v.path("f"), "").unwrap();
    let f = c(&v.path("f"));
    let all = [(-2_147_483_653, 7), (15_032_385_535, 3), (1 << 40, 999_999_999), (-1, 1)];
    for (tv_sec, tv_nsec) in all {
        let t = libc::timespec { tv_sec, tv_nsec };
        // SAFETY: a terminated string and two times.
        assert_eq!(unsafe { libc::utimensat(libc::AT_FDCWD, f.as_ptr(), [t, t].as_ptr(), 0) }, 0);
        v.remount();
        let m = fs::metadata(v.path("f")).unwrap();
        assert_eq!((m.mtime(), m.mtime_nsec(), m.atime()), (tv_sec, tv_nsec, tv_sec));
    }
}

#[test]
fn there_is_no_nameless_file_to_open() {
    let v = TestVault::mounted();
    let open = || OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(&v.mnt);
    for _ in 0..2 {
        assert_eq!(open().expect_err("O_TMPFILE").raw_os_error(), Some(libc::EOPNOTSUPP));
    }
    // Programs that know of it do without: the C library's own temporary file is made and unlinked.
    let said = shell(&v.mnt, "TMPDIR=. sort -S 1k --parallel=1 <(seq 50000) | tail -1; ls -A | wc -l", &NO_ARGUMENTS);
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["9999", "0"]);
}

#[test]
fn the_time_of_birth_is_not_told() {
    let v = TestVault::mounted();
    fs::write(v.path("f"), "").unwrap();
    let told = statx(&v.path("f"), libc::STATX_BASIC_STATS | libc::STATX_BTIME);
    assert_eq!(told.stx_mask & libc::STATX_BTIME, 0, "it is told: the page is out of date");
}

#[test]
fn direct_io_need_not_be_aligned() {
    let v = TestVault::mounted();
    let mut how = OpenOptions::new();
    let f = how.read(true).write(true).create(true).custom_flags(libc::O_DIRECT).open(v.path("f")).unwrap();
    f.write_all_at(b"seven b", 3).unwrap();
    let mut back = [0; 7];
    f.read_exact_at(&mut back, 3).unwrap();
    assert_eq!(&back, b"seven b");
}

#[test]
fn more_links_can_be_made_than_the_c_library_says() {
    let v = TestVault::mounted();
    let at = c(&v.mnt);
    // SAFETY: a terminated string.
    assert_eq!(unsafe { libc::pathconf(at.as_ptr(), libc::_PC_LINK_MAX) }, 127, "the C library's guess");
    fs::write(v.path("f"), "").unwrap();
    fs::create_dir(v.path("d")).unwrap();
    for n in 1..65_000 {
        fs::hard_link(v.path("f"), v.path(format!("d/{n}"))).unwrap_or_else(|e| panic!("link {n}: {e}"));
    }
    let refused = fs::hard_link(v.path("f"), v.path("one-too-many")).expect_err("one too many");
    assert_eq!(refused.raw_os_error(), Some(libc::EMLINK));
    assert_eq!(fs::metadata(v.path("f")).unwrap().nlink(), 65_000);
}

#[test]
fn there_are_no_inode_flags() {
    let v = TestVault::mounted();
    let f = File::create(v.path("f")).unwrap();
    let mut flags: libc::c_long = 0;
    // SAFETY: room for the answer.
    let done = unsafe { libc::ioctl(f.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) };
    assert_eq!(last(done, ()), Err(libc::ENOTTY));
    assert!(!output(Command::new("chattr").arg("+i").arg(v.path("f"))).status.success());
}

#[test]
fn room_is_not_kept_by_fallocate() {
    let v = TestVault::mounted();
    let f = File::create(v.path("f")).unwrap();
    for how in [0, libc::FALLOC_FL_KEEP_SIZE] {
        // SAFETY: plain numbers, and a descriptor that lives through the call.
        assert_eq!(unsafe { libc::fallocate(f.as_raw_fd(), how, 0, 8 << 20) }, 0);
    }
    drop(f);
    let m = fs::metadata(v.path("f")).unwrap();
    assert_eq!((m.len(), m.blocks()), (8 << 20, 0));
    let f = File::open(v.path("f")).unwrap();
    // SAFETY: plain numbers.
    let data = unsafe { libc::lseek(f.as_raw_fd(), 0, libc::SEEK_DATA) };
    assert_eq!(last(i32::try_from(data).unwrap_or(0), ()), Err(libc::ENXIO), "what was never written is a hole");
}

#[test]
fn blocks_of_an_open_file_are_counted_at_its_close() {
    let v = TestVault::mounted();
    // Somebody else's `sync` may make Linux ask in between, so one file of forty is enough.
    let is_stale = |n: u32| {
        let name = format!("f{n}");
        let f = File::create(v.path(&name)).unwrap();
        f.metadata().unwrap();
        f.write_all_at(&[7; 1 << 20], 0).unwrap();
        f.sync_all().unwrap();
        assert_eq!(f.metadata().unwrap().len(), 1 << 20);
        let stale = f.metadata().unwrap().blocks() < 2048;
        drop(f);
        eventually("they are counted", Duration::from_secs(10), || {
            (2048..2100).contains(&fs::metadata(v.path(&name)).unwrap().blocks())
        });
        stale
    };
    assert!((0..40).any(is_stale), "they are counted: the page is out of date");
}

#[test]
fn where_blocks_lie_is_not_told() {
    let v = TestVault::mounted();
    fs::write(v.path("f"), "content").unwrap();
    /// `_IOWR('f', 11, struct fiemap)`: what `filefrag` asks.
    const FIEMAP: libc::c_ulong = 0xC020_660B;
    let f = File::open(v.path("f")).unwrap();
    let mut all = [0u64, u64::MAX, 0, 0];
    // SAFETY: the head of a map, with room for no extent, which asks for their number.
    let done = unsafe { libc::ioctl(f.as_raw_fd(), FIEMAP, all.as_mut_ptr()) };
    assert_eq!(last(done, ()), Err(libc::EOPNOTSUPP));
}

#[test]
fn lists_and_attributes_may_be_longer_than_on_ext4() {
    let v = TestVault::mounted();
    fs::write(v.path("f"), "").unwrap();
    let f = c(&v.path("f"));
    let set = |value: &[u8]| {
        // SAFETY: terminated strings, and a value of the length given.
        last(unsafe { libc::setxattr(f.as_ptr(), c"user.x".as_ptr(), value.as_ptr().cast(), value.len(), 0) }, ())
    };
    assert_eq!(set(&[1; 64 << 10]), Ok(()));
    assert_eq!(set(&[1; (64 << 10) + 1]), Err(libc::E2BIG));
    let line = |n: u32| {
        let named: Vec<String> = (0..n).map(|n| format!("u:{}:r", 2000 + n)).collect();
        format!("u::rw,g::r,o::-,m::rw,{}", named.join(","))
    };
    let set = |n: u32| output(Command::new("setfacl").arg("--set").arg(line(n)).arg(v.path("f"))).status.success();
    assert!(set(500));
    assert!(!set(520), "the kernel reads a list into one page");
}

#[test]
fn reading_what_the_kernel_has_moves_no_time() {
    let v = TestVault::mounted_with(&["strictatime"]);
    fs::write(v.path("f"), "content").unwrap();
    let at = || {
        let m = fs::metadata(v.path("f")).unwrap();
        (m.atime(), m.atime_nsec())
    };
    v.remount();
    fs::read(v.path("f")).unwrap();
    let first = at();
    std::thread::sleep(std::time::Duration::from_millis(30));
    fs::read(v.path("f")).unwrap();
    assert_eq!(at(), first, "it moves: the page is out of date");
}

#[test]
fn sync_does_not_reach_the_vault() {
    let v = TestVault::mounted_with(&["flush-interval=600"]);
    let f = File::create(v.path("f")).unwrap();
    (&f).write_all(b"content").unwrap();
    // SAFETY: a descriptor that lives through the call.
    assert_eq!(unsafe { libc::syncfs(f.as_raw_fd()) }, 0);
    assert!(v.pending() > 0, "it does: the page is out of date");
    f.sync_all().unwrap();
    // It is answered when all is safe; the buffers are counted out a moment later. By itself nothing is flushed for minutes.
    eventually("fsync does", Duration::from_secs(20), || v.pending() == 0);
}

#[test]
fn one_name_in_the_root_is_taken() {
    let v = TestVault::mounted();
    for made in [fs::create_dir(v.path(".storage")), File::create(v.path(".storage")).map(drop)] {
        assert!(made.is_err());
    }
    assert!(fs::read_dir(&v.mnt).unwrap().next().is_none(), "it is not listed");
    fs::create_dir(v.path("d")).unwrap();
    fs::create_dir(v.path("d/.storage")).unwrap();
}

#[test]
fn devices_and_set_id_programs_need_an_option() {
    needs_root("make devices");
    let v = TestVault::mounted();
    shell(&v.mnt, "mknod null c 1 3; cp \"$(command -v id)\" id; chmod 4755 id", &NO_ARGUMENTS);
    assert!(File::open(v.path("null")).is_err());
    let mut v = v;
    v.umount();
    v.options = vec!["dev".into(), "suid".into()];
    v.mount();
    assert!(File::open(v.path("null")).is_ok());
}

#[test]
fn a_set_group_id_bit_without_execution_outlives_a_strangers_write() {
    needs_root("act as another user");
    let v = TestVault::mounted_with(&["allow_other"]);
    // Below a directory that others may enter, which tests' own temporary directory need not be.
    let mode_after = |file: &Path| {
        fs::write(file, "old").unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o2666)).unwrap();
        let written = OpenOptions::new().write(true).open(file).unwrap();
        let as_stranger = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", "printf new >&0"])
            .stdin(written)
            .status();
        assert!(as_stranger.unwrap().success());
        assert_eq!(fs::read(file).unwrap(), b"new");
        fs::metadata(file).unwrap().mode() & 0o7777
    };
    assert_eq!(mode_after(&v.outside("on-disk")), 0o666, "ext4 takes it");
    assert_eq!(mode_after(&v.path("f")), 0o2666);
}

#[test]
fn a_directory_has_always_the_same_length() {
    let v = TestVault::mounted();
    fs::create_dir(v.path("d")).unwrap();
    let len = || fs::metadata(v.path("d")).unwrap().len();
    assert_eq!(len(), 4096);
    for n in 0..500 {
        File::create(v.path(format!("d/a long name for a file, so that a directory would grow {n}"))).unwrap();
    }
    v.remount();
    assert_eq!(len(), 4096);
}

#[test]
fn the_filesystem_is_known_as_fuse() {
    let v = TestVault::mounted();
    let kind = run(Command::new("stat").args(["-f", "-c", "%T"]).arg(&v.mnt));
    assert!(kind.trim().starts_with("fuse"), "{kind}");
}

#[test]
fn with_owners_shown_chown_changes_what_is_stored() {
    if !is_root() {
        return;
    }
    let mut v = TestVault::init();
    v.options = vec!["uid=1234".into(), "umask=022".into()];
    v.mount();
    fs::write(v.path("f"), "").unwrap();
    std::os::unix::fs::chown(v.path("f"), Some(77), None).unwrap();
    fs::set_permissions(v.path("f"), fs::Permissions::from_mode(0o600)).unwrap();
    let m = fs::metadata(v.path("f")).unwrap();
    assert_eq!((m.uid(), m.mode() & 0o777), (1234, 0o755));
    assert!(!output(Command::new("setfacl").args(["-m", "u:5:r"]).arg(v.path("f"))).status.success());
    v.umount();
    v.options.clear();
    v.mount();
    let m = fs::metadata(v.path("f")).unwrap();
    assert_eq!((m.uid(), m.mode() & 0o777), (77, 0o600));
}

#[test]
fn without_access_control_lists_those_that_are_stored_rest() {
    let mut v = TestVault::mounted();
    fs::create_dir(v.path("d")).unwrap();
    shell(&v.mnt, "setfacl -m u:5:rwx d; setfacl -d -m u:5:rwx d", &NO_ARGUMENTS);
    v.umount();
    v.options = vec!["noacl".into()];
    v.mount();
    assert!(!output(Command::new("setfacl").args(["-m", "u:6:r"]).arg(v.path("d"))).status.success());
    fs::set_permissions(v.path("d"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::write(v.path("d/plain"), "").unwrap();
    assert_eq!(shell(&v.mnt, "getfattr -m- d d/plain", &NO_ARGUMENTS), "");
    v.umount();
    v.options.clear();
    v.mount();
    let said = shell(&v.mnt, "getfacl -cn d; getfacl -cn d/plain", &NO_ARGUMENTS);
    assert!(said.contains("user:5:rwx\t#effective:r-x") && said.contains("default:user:5:rwx"), "{said}");
}

/// Limits a directory of a live mount.
fn limit_bytes(v: &TestVault, dir: &str, size: &str) {
    run(Command::new(common::strongroom()).args(["quota", "set"]).arg(&v.mnt).args(["--tree", dir, "--bytes", size]));
}

#[test]
fn a_quota_binds_root_too() {
    needs_root("says what root may not");
    let v = TestVault::mounted();
    fs::create_dir(v.path("t")).unwrap();
    limit_bytes(&v, "t", "10000");
    v.remount();
    let refused = fs::write(v.path("t/f"), vec![1; 10_001]).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EDQUOT));
    fs::write(v.path("t/f"), vec![1; 10_000]).unwrap();
    assert_eq!(fs::rename(v.path("t/f"), v.path("f")).unwrap_err().raw_os_error(), Some(libc::EXDEV));
}

#[test]
fn quotas_are_set_by_our_own_command() {
    const SYS_QUOTACTL_FD: libc::c_long = 443;
    let v = TestVault::mounted();
    fs::create_dir(v.path("t")).unwrap();
    limit_bytes(&v, "t", "10000");
    let dir = File::open(&v.mnt).unwrap();
    let mut format = [0u8; 4];
    // SAFETY: Q_GETFMT for users, with room for its four bytes.
    let done = unsafe { libc::syscall(SYS_QUOTACTL_FD, dir.as_raw_fd(), 0x80_0004 << 8, 0, format.as_mut_ptr()) };
    assert_eq!(last(done as i32, ()), Err(libc::ENOSYS));
}

#[test]
fn a_first_limit_on_a_live_mount_is_told_at_fsync() {
    let v = TestVault::mounted();
    fs::create_dir(v.path("t")).unwrap();
    limit_bytes(&v, "t", "10000");
    let write = |name: &str| {
        let mut f = File::create(v.path("t").join(name)).unwrap();
        f.write_all(&[1; 20_000]).map(|()| f)
    };
    let synced = write("synced").unwrap().sync_all().unwrap_err();
    assert_eq!(synced.raw_os_error(), Some(libc::EDQUOT));
    // SAFETY: the descriptor is nobody's else.
    let closed = unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(write("closed").unwrap())) };
    assert_eq!(last(closed, ()), Err(libc::EIO));
    // Nobody can tell from outside that `close` said so, so `umount` would name the file. It knows what `fsync` said.
    assert!(v.storage("unsaved").contains("/t/closed (inode "), "{}", v.storage("unsaved"));
    fs::remove_file(v.path("t/closed")).unwrap();
    v.remount();
    assert_eq!(write("asked").map(drop).unwrap_err().raw_os_error(), Some(libc::EDQUOT));
    v.umount();
    v.check();
}
