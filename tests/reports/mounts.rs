//! Unusual mounts: remounted read-only as at shutdown, a vault in a vault, a vault in a container image's layer, and an
//! `init` or `mount` that is interrupted.

use crate::common::rng::Rng;
use crate::common::{TestVault, eventually, needs_root, output, run, strongroom};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// `mount -o remount,…` by the kernel alone: `-i` calls no helper.
fn remount(at: &Path, how: &str) -> bool {
    output(Command::new("mount").args(["-i", "-o", &format!("remount,{how}")]).arg(at)).status.success()
}

fn refused_as_read_only(path: &Path) -> bool {
    fs::write(path, "x").is_err_and(|e| e.raw_os_error() == Some(libc::EROFS))
}

#[test]
fn a_mount_made_read_only_and_back_keeps_what_was_written() {
    needs_root("remount");
    let mut v = TestVault::mounted();
    fs::write(v.path("before"), "before").unwrap();
    assert!(remount(&v.mnt, "ro"), "remount,ro");
    assert!(refused_as_read_only(&v.path("never")), "a write after remount,ro");
    assert_eq!(fs::read_to_string(v.path("before")).unwrap(), "before");
    assert!(remount(&v.mnt, "rw"), "remount,rw");
    fs::write(v.path("between"), "between").unwrap();
    // Shutdown remounts with data that only the kernel has, and then unmounts.
    fs::write(v.path("last"), "last").unwrap();
    assert!(remount(&v.mnt, "ro"), "remount,ro with unwritten data");
    v.remount();
    for name in ["before", "between", "last"] {
        assert_eq!(fs::read_to_string(v.path(name)).unwrap(), name, "after a remount");
    }
    assert!(!v.path("never").exists());
    v.umount();

    // A mount that its owner made read-only stays so, whatever the kernel is told.
    v.options = vec!["ro".into()];
    v.mount();
    remount(&v.mnt, "rw");
    assert!(refused_as_read_only(&v.path("never")), "a write to a mount with -o ro after remount,rw");
    v.umount();
    v.check();
}

#[test]
fn a_vault_in_a_vault_is_synced_and_unmounted_from_the_inside() {
    let outer = TestVault::mounted_with(&["budget=16M"]);
    let mut inner = TestVault::init_in(&outer.mnt, &[]);
    inner.options = vec!["budget=16M".into()];
    inner.mount();
    let content = |n: u64| Rng(n).bytes(20 << 20);
    std::thread::scope(|s| {
        for (n, at) in [(1, inner.path("one")), (2, inner.path("two")), (3, outer.path("three"))] {
            s.spawn(move || {
                fs::write(&at, content(n)).unwrap();
                File::open(&at).unwrap().sync_all().unwrap();
            });
        }
        for _ in 0..3 {
            // Each filesystem's own sync, as sync(1) makes one after the other: others' mounts are none of the test's business.
            for at in [&inner.mnt, &outer.mnt] {
                let dir = File::open(at).unwrap();
                // SAFETY: a descriptor of ours.
                let done = unsafe { libc::syncfs(dir.as_raw_fd()) };
                assert_eq!(done, 0, "{}", io::Error::last_os_error());
            }
        }
    });
    inner.umount();
    outer.checked_remount();
    inner.check();
    inner.mount();
    for (n, at) in [(1, inner.path("one")), (2, inner.path("two")), (3, outer.path("three"))] {
        assert!(fs::read(&at).unwrap() == content(n), "{}", at.display());
    }
    inner.umount();
    drop(inner);
    outer.umount();
}

/// An overlay whose upper directory is in memory, as of a container that starts from an image; unmounted when dropped.
struct Container(PathBuf);

impl Container {
    fn on(image: &Path, at: &Path) -> Container {
        for dir in ["memory", "merged"] {
            fs::create_dir_all(at.join(dir)).unwrap();
        }
        let memory = at.join("memory");
        run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&memory));
        let container = Container(at.to_owned());
        for dir in ["upper", "work"] {
            fs::create_dir(memory.join(dir)).unwrap();
        }
        let (lower, upper, work) = (image.display(), memory.join("upper"), memory.join("work"));
        let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
        run(Command::new("mount").args(["-t", "overlay", "-o", &options, "none"]).arg(at.join("merged")));
        container
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        for dir in ["merged", "memory"] {
            let _ = Command::new("umount").arg("-l").arg(self.0.join(dir)).stderr(Stdio::null()).status();
        }
    }
}

#[test]
fn a_vault_in_an_image_layer_works_through_the_overlay() {
    needs_root("mount an overlay");
    let mut v = TestVault::init();
    // The layer holds nothing but the vault, as an image's would.
    let (image, place) = (v.outside("image"), v.outside("container"));
    fs::create_dir(&image).unwrap();
    fs::rename(&v.vault, image.join("vault")).unwrap();
    v.vault = image.join("vault");
    v.mount();
    let content = Rng(1).bytes(3_000_000);
    fs::write(v.path("from-the-image"), &content).unwrap();
    v.umount();
    let files = |v: &TestVault| {
        run(Command::new("bash").args(["-c", "cd \"$1\"; sha256sum $(find . -type f | sort)", "-"]).arg(&v.vault))
    };
    let before = files(&v);

    let container = Container::on(&image, &place);
    v.vault = place.join("merged/vault");
    for round in 0..3 {
        v.mount();
        assert!(fs::read(v.path("from-the-image")).unwrap() == content, "content in round {round}");
        let path = v.path(format!("round-{round}"));
        fs::write(&path, "kept").unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        if round == 1 { v.kill9() } else { v.umount() }
    }
    v.check();
    v.mount();
    for round in 0..3 {
        assert_eq!(fs::read_to_string(v.path(format!("round-{round}"))).unwrap(), "kept");
    }
    v.umount();
    drop(container);
    // The layer itself was not touched, and other containers may start from it.
    v.vault = image.join("vault");
    assert_eq!(files(&v), before, "the image's layer was changed");
}

/// System calls by which `init` changes the disk.
const CHANGES: [&str; 7] = ["mkdir", "openat", "pwrite64", "write", "fsync", "fdatasync", "rename"];

#[test]
fn an_init_killed_at_any_call_can_be_run_again() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (vault, mnt, key) = (dir.path().join("vault"), dir.path().join("mnt"), dir.path().join("key"));
    fs::create_dir(&mnt).unwrap();
    fs::write(&key, "thirty-two bytes, or some more than that").unwrap();
    let strongroom = |words: &[&str]| {
        let mut c = Command::new(strongroom());
        c.env("XDG_STATE_HOME", dir.path().join("state")).args(words).arg("--key-file").arg(&key);
        c
    };
    let init = || {
        let mut c = strongroom(&["init", "--no-recovery-key"]);
        c.arg(&vault);
        c
    };
    let mount = || output(strongroom(&["mount"]).arg(&vault).arg(&mnt));
    let (mut killed, mut left_something) = (0, 0);
    for call in CHANGES {
        // The first calls of a kind are many and alike (libraries are opened): a step that grows comes to the end soon.
        let mut nth = 1;
        loop {
            let _ = fs::remove_dir_all(&vault);
            let mut traced = Command::new("strace");
            traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
            traced.args(["-e", &format!("inject={call}:signal=KILL:when={nth}")]).arg(init().get_program());
            traced.args(init().get_args()).env("XDG_STATE_HOME", dir.path().join("state"));
            let out = output(&mut traced);
            if out.status.success() {
                break;
            }
            assert!(out.status.code().is_none_or(|c| c > 128), "strace: {}", String::from_utf8_lossy(&out.stderr));
            killed += 1;
            left_something += u32::from(vault.exists());
            let when = format!("killed at {call} number {nth}");
            // Either the vault is there, or init makes one, or it says what to do, which helps.
            let mounted = mount();
            if !mounted.status.success() {
                let mut again = output(&mut init());
                let said = String::from_utf8_lossy(&again.stderr).into_owned();
                if again.status.code() == Some(7) {
                    assert!(said.contains("interrupted init"), "{when}, init again: {said}");
                    assert!(said.contains("Remove the directory, then run init again"), "{when}: {said}");
                    fs::remove_dir_all(&vault).unwrap();
                    again = output(&mut init());
                }
                assert!(again.status.success(), "{when}, init again: {said}");
                assert!(mount().status.success(), "{when}: the second init's vault does not mount");
            }
            fs::write(mnt.join("file"), "x").unwrap();
            run(Command::new(crate::common::strongroom()).arg("umount").arg(&mnt));
            nth += 1 + nth / 3;
        }
    }
    assert!(killed > 20 && left_something > 5, "{killed} times killed, {left_something} times something was left");
}

#[test]
fn a_mount_that_is_interrupted_leaves_nobody_in_the_vault() {
    let v = TestVault::init();
    for wait in [10, 60, 150, 250, 400, 600] {
        let mut mount = v.mount_command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        // SAFETY: a signal to a child that was not waited for yet.
        unsafe { libc::kill(mount.id() as i32, libc::SIGINT) };
        mount.wait().unwrap();
        // The mount may have been there already.
        if v.is_mounted() {
            run(Command::new(strongroom()).arg("umount").arg(&v.mnt));
        }
        eventually("nobody has the vault's lock", Duration::from_secs(30), || {
            let lock = File::open(v.vault.join("lock"));
            !v.is_mounted() && lock.map_or(true, |l| l.try_lock().is_ok())
        });
    }
    v.mount();
    fs::write(v.path("file"), "x").unwrap();
    v.umount();
    v.check();
}
