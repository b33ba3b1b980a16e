//! Quotas on a real mount, with the programs that people use.
//!
//! Method: limits are set with `strongroom quota`; dd, cp, mv, df and the shell do the rest, as root and as a user.
//! Promise: who is over a limit is told "Disk quota exceeded" by the call that writes; df shows a tree's limit; what is moved between
//! trees is copied; counts are the same after a remount and after a SIGKILL, and a recount agrees. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::{TestVault, needs_root, output, shell, strongroom};
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

const MIB: u64 = 1 << 20;

/// `strongroom quota` with these arguments; `at` is a mountpoint, or the vault with its key.
fn quota(v: &TestVault, command: &str, mounted: bool, arguments: &[&str]) -> Output {
    let mut c = Command::new(strongroom());
    c.env("STRONGROOM_STATE_DIR", v.dir.path().join("state"));
    c.args(["quota", command]);
    if mounted {
        c.arg(&v.mnt);
    } else {
        c.arg(&v.vault).arg("--password-file").arg(&v.password);
    }
    output(c.args(arguments))
}

fn done(out: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{:?}: {}{}", out.status, text(&out.stdout), text(&out.stderr));
    text(&out.stdout)
}

fn set(v: &TestVault, arguments: &[&str]) {
    done(&quota(v, "set", true, arguments));
}

/// A count of everything finds what is on record.
fn is_clean(v: &TestVault, mounted: bool) {
    let json = done(&quota(v, "check", mounted, &["--json"]));
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&value["ok"], &value["drift"]), (&true.into(), &serde_json::json!([])), "{json}");
}

/// (bytes, inodes) used by a tree, user or group.
fn used(v: &TestVault, mounted: bool, kind: &str, id: u64) -> (u64, u64) {
    let json = done(&quota(v, "show", mounted, &["--json"]));
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    let all = value["accounts"].as_array().unwrap();
    let one = all.iter().find(|a| a["kind"] == kind && a["id"] == id);
    one.map_or((0, 0), |a| (a["bytes"].as_u64().unwrap(), a["inodes"].as_u64().unwrap()))
}

#[test]
fn a_tree_is_named_by_any_path_that_leads_there() {
    let v = TestVault::mounted();
    for name in ["a", "b", "c", "d/a"] {
        fs::create_dir_all(v.path(name)).unwrap();
    }
    std::os::unix::fs::symlink(&v.mnt, v.outside("link")).unwrap();
    let name = v.mnt.file_name().unwrap().to_str().unwrap();
    let at = |dir: &std::path::Path, place: &str, tree: &str| {
        let mut c = Command::new(strongroom());
        c.args(["quota", "set", place, "--bytes", "50G", "--tree", tree]).current_dir(dir);
        done(&output(&mut c));
    };
    at(v.dir.path(), name, &format!("{name}/a"));
    at(v.dir.path(), "link", "link/b");
    at(&v.path("d"), "..", "a");
    at(v.dir.path(), name, "c");
    let shown = done(&quota(&v, "show", true, &["--json"]));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let mut paths: Vec<_> = shown["accounts"].as_array().unwrap().iter().map(|a| a["path"].clone()).collect();
    paths.sort_by_key(|path| path.to_string());
    assert_eq!(paths, ["/a", "/b", "/c", "/d/a"]);
}

/// Runs it; says whether it failed, and what it said.
fn refused(command: &mut Command) -> String {
    let out = command.env("LC_ALL", "C").output().unwrap();
    assert!(!out.status.success(), "{command:?} was not refused");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn dd_cp_and_mv_are_told_and_df_shows_the_limit() {
    let v = TestVault::mounted();
    fs::create_dir(v.path("t")).unwrap();
    fs::write(v.path("t/before"), vec![1; 1000]).unwrap();
    let out = quota(&v, "set", true, &["--tree", "/t", "--bytes", "10M", "--inodes", "20"]);
    done(&out);
    assert!(String::from_utf8_lossy(&out.stderr).contains("until the next mount"), "the first one, on a live mount");
    assert_eq!(used(&v, true, "tree", 1), (1000, 2));
    // From the next mount on, each write asks.
    v.remount();
    assert!(v.storage("quota").contains("write_back    off\n"), "{}", v.storage("quota"));
    let out = quota(&v, "set", true, &["--tree", "/t", "--bytes", "10M"]);
    assert!(done(&out).is_empty() && out.stderr.is_empty(), "{out:?}");
    let mut dd = Command::new("dd");
    let said = refused(
        dd.args(["if=/dev/zero", "bs=1M", "count=20", "status=none"]).arg(format!("of={}", v.path("t/dd").display())),
    );
    assert!(said.contains("Disk quota exceeded"), "{said}");
    let taken = fs::metadata(v.path("t/dd")).unwrap().len();
    assert_eq!(taken, 9 * MIB, "what fitted is there");
    assert_eq!(used(&v, true, "tree", 1), (1000 + taken, 3));
    fs::write(v.path("big"), vec![7; 5 << 20]).unwrap();
    let said = refused(Command::new("cp").arg(v.path("big")).arg(v.path("t/cp")));
    assert!(said.contains("Disk quota exceeded"), "{said}");
    fs::remove_file(v.path("t/cp")).unwrap();
    let said = refused(Command::new("mv").arg(v.path("big")).arg(v.path("t/big")));
    assert!(said.contains("Disk quota exceeded"), "{said}");
    assert_eq!(fs::read(v.path("big")).unwrap(), vec![7; 5 << 20], "what was not moved is where it was");
    // Where the kernel does not keep writes, nor does it keep their time: it is ours to move.
    let file = fs::File::options().write(true).open(v.path("big")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    (&file).write_all(&[7]).unwrap();
    assert!(fs::metadata(v.path("big")).unwrap().mtime() > 0);
    drop(file);
    // df of the tree is the tree's; of the mount, the vault's.
    let df = |path: &str| {
        let text = shell(&v.mnt, "df -B1 --output=size,avail,itotal,iavail $1 | tail -1", &[path]);
        text.split_whitespace().map(|n| n.parse().unwrap()).collect::<Vec<u64>>()
    };
    let tree = df("t");
    assert_eq!((tree[0], tree[2]), (10 * MIB, 20), "{tree:?}");
    assert!(tree[1] < MIB && tree[3] == 17 - u64::from(v.path("t/big").exists()), "{tree:?}");
    assert!(df(".")[0] > 100 * MIB);
    // Room comes back at once.
    fs::remove_file(v.path("t/dd")).unwrap();
    shell(&v.mnt, "mv big t/big && test -s t/big && ! test -e big", &[""; 0]);
    assert_eq!(fs::read(v.path("t/big")).unwrap(), vec![7; 5 << 20]);
    // And out again: a copy, then.
    let before = fs::metadata(v.path("t/big")).unwrap().ino();
    shell(&v.mnt, "mv t/big out", &[""; 0]);
    assert_ne!(fs::metadata(v.path("out")).unwrap().ino(), before);
    for n in 0..18 {
        fs::write(v.path(format!("t/{n}")), "").unwrap();
    }
    assert_eq!(fs::write(v.path("t/one more"), "").unwrap_err().raw_os_error(), Some(libc::EDQUOT));
    assert_eq!(fs::create_dir(v.path("t/dir")).unwrap_err().raw_os_error(), Some(libc::EDQUOT));
    is_clean(&v, true);
    v.umount();
    is_clean(&v, false);
    v.check();
}

#[test]
fn users_and_groups_are_charged_what_they_own() {
    needs_root("acts as another user");
    let v = TestVault::mounted_with(&["allow_other"]);
    fs::create_dir(v.path("open")).unwrap();
    fs::set_permissions(v.path("open"), fs::Permissions::from_mode(0o777)).unwrap();
    set(&v, &["--user", "4321", "--bytes", "1M", "--soft-bytes", "500K"]);
    set(&v, &["--group", "daemon", "--inodes", "0"]);
    v.remount();
    // The test's own directory is closed to others; the mount is open by a path of its own.
    let write = |name: &str, len: usize| {
        let mut c = Command::new("dd");
        c.args(["if=/dev/zero", "status=none", "count=1"]).arg(format!("bs={len}"));
        let file = fs::File::create(v.path("open").join(name)).unwrap();
        std::os::unix::fs::chown(v.path("open").join(name), Some(4321), Some(4321)).unwrap();
        c.stdout(file).uid(4321).gid(4321);
        c
    };
    assert!(write("a", 600_000).status().unwrap().success());
    assert!(v.storage("status").contains("user 4321 is over its soft limit"), "{}", v.storage("status"));
    let said = refused(&mut write("b", 600_000));
    assert!(said.contains("Disk quota exceeded"), "{said}");
    assert_eq!(used(&v, true, "user", 4321), (600_000, 2));
    // Root writes to the user's file, and it is the user's charge.
    let mut file = fs::File::options().append(true).open(v.path("open/a")).unwrap();
    assert_eq!(file.write_all(&[1; 500_000]).unwrap_err().raw_os_error(), Some(libc::EDQUOT));
    drop(file);
    // The kernel may have handed it over in pieces, and some fitted.
    let (bytes, _) = used(&v, true, "user", 4321);
    assert!((600_000..=MIB).contains(&bytes), "{bytes}");
    assert_eq!(fs::metadata(v.path("open/a")).unwrap().len(), bytes);
    // A group that may have nothing takes nothing over.
    let given = std::os::unix::fs::chown(v.path("open/a"), None, Some(1));
    assert_eq!(given.unwrap_err().raw_os_error(), Some(libc::EDQUOT), "daemon is group 1");
    is_clean(&v, true);
    set(&v, &["--group", "1", "--inodes", "none"]);
    std::os::unix::fs::chown(v.path("open/a"), None, Some(1)).unwrap();
    assert_eq!(used(&v, true, "group", 1), (bytes, 1));
    v.umount();
    assert_eq!(used(&v, false, "group", 1), (bytes, 1));
    is_clean(&v, false);
    v.check();
}

#[test]
fn counts_are_the_same_after_a_remount_and_after_a_sigkill() {
    let v = TestVault::mounted();
    shell(&v.mnt, "mkdir -p t/sub && for i in $(seq 200); do echo $i > t/sub/$i; done", &[""; 0]);
    set(&v, &["--tree", "t", "--bytes", "100M"]);
    set(&v, &["--tree", "t/sub", "--inodes", "1000"]);
    let want: u64 = (1..=200u64).map(|n| n.to_string().len() as u64 + 1).sum();
    assert_eq!((used(&v, true, "tree", 1), used(&v, true, "tree", 2)), ((want, 202), (want, 201)));
    v.remount();
    assert_eq!((used(&v, true, "tree", 1), used(&v, true, "tree", 2)), ((want, 202), (want, 201)));
    let mut file = fs::File::create(v.path("t/sub/synced")).unwrap();
    file.write_all(&[1; 5000]).unwrap();
    file.sync_all().unwrap();
    for n in 0..100 {
        fs::write(v.path(format!("t/more{n}")), vec![1; 100 * n]).unwrap();
    }
    v.kill9();
    drop(file);
    v.mount();
    is_clean(&v, true);
    let now = used(&v, true, "tree", 2);
    assert_eq!(now, (want + 5000, 202), "what was synced is charged");
    let outer = used(&v, true, "tree", 1);
    let listed =
        shell(&v.mnt, "find t -type f -printf '%s\\n' | awk '{s+=$1} END {print s}'; find t | wc -l", &[""; 0]);
    let listed: Vec<u64> = listed.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!(vec![outer.0, outer.1], listed, "what is there is charged, and nothing else");
    v.umount();
    is_clean(&v, false);
    // Without a mount, too: the limit goes, and with it the tree.
    done(&quota(&v, "set", false, &["--tree", "/t/sub", "--inodes", "none"]));
    assert_eq!(used(&v, false, "tree", 2), (0, 0));
    assert_eq!(used(&v, false, "tree", 1), outer);
    // The whole vault's is in its header.
    assert_eq!(quota(&v, "set", false, &["--bytes", "0"]).status.code(), Some(2));
    done(&quota(&v, "set", false, &["--inodes", "400"]));
    v.mount();
    assert!(v.storage("quota").contains("quota_inodes  400\n"), "{}", v.storage("quota"));
    assert_eq!(quota(&v, "set", true, &["--inodes", "none"]).status.code(), Some(5), "while it is mounted");
    v.umount();
    done(&quota(&v, "set", false, &["--inodes", "none"]));
    let wrong = quota(&v, "set", false, &["--tree", "/not there", "--inodes", "1"]);
    assert_eq!(wrong.status.code(), Some(13), "{}", String::from_utf8_lossy(&wrong.stderr));
    assert_eq!(quota(&v, "set", false, &["--tree", "/t"]).status.code(), Some(2), "it must say which limit");
    v.check();
}

#[test]
fn what_is_written_through_a_mapping_has_its_room_and_is_no_hole() {
    const LEN: usize = 1 << 20;
    let v = TestVault::mounted();
    fs::create_dir(v.path("t")).unwrap();
    set(&v, &["--tree", "t", "--bytes", "1M"]);
    v.remount();
    let file = fs::File::options().read(true).write(true).create_new(true).open(v.path("t/f")).unwrap();
    file.set_len(LEN as u64).unwrap();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a mapping of a file that is open and as long as that; unmapped below.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), LEN, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: within the mapping.
    unsafe { at.cast::<u8>().add(LEN / 2).write(7) };
    // SAFETY: only asks.
    let data = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_DATA) };
    assert_eq!(data, LEN as i64 / 2);
    // SAFETY: the mapping above; nobody uses it any more.
    assert_eq!(unsafe { (libc::msync(at, LEN, libc::MS_SYNC), libc::munmap(at, LEN)) }, (0, 0));
    // The size was charged when it was set, so a mapping has its room; growing the file has none.
    assert_eq!(used(&v, true, "tree", 1), (LEN as u64, 2));
    assert_eq!(file.set_len(LEN as u64 + 1).unwrap_err().raw_os_error(), Some(libc::EDQUOT));
    drop(file);
    v.remount();
    assert_eq!(fs::read(v.path("t/f")).unwrap()[LEN / 2], 7);
    is_clean(&v, true);
}
