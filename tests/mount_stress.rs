//! stress-ng's filesystem class, working on the mount.
//!
//! Method: every stressor of the class, and those of mappings and copies beside it, is run by two processes in a directory
//! of the mount, verifying what it does. What says that it cannot run here is asked again on the disk's own filesystem.
//! Promise: none fails; none that runs on the disk's own filesystem is refused by the mount; the vault is whole afterwards, and the
//! daemon's memory stayed within its budget and what is promised beside it.
//! `STRONGROOM_STRESS_SECONDS` (of each) asks for more.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may")]

mod common;

use common::disk::Disk;
use common::tools::on_path;
use common::{BESIDE_BUDGET_BYTES, TestVault, memory_high_water_bytes, output, run, setting};
use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

/// Beside the class: mappings, copies and caches of files.
const BESIDE: [&str; 9] =
    ["mmap", "mmapfork", "mmapmany", "msync", "readahead", "seek", "sendfile", "splice", "vm-splice"];

/// Of the class, but nothing that a mounted directory could be blamed for: they work on other filesystems.
const ELSEWHERE: [&str; 4] = ["binderfs", "bind-mount", "ioprio", "procfs"];

/// The default of a machine with half a GiB.
const BUDGET_BYTES: u64 = 64 << 20;

/// How much each may write, so that the time is what bounds them.
const SIZES: [&str; 20] = [
    "--hdd-bytes",
    "16m",
    "--mmap-bytes",
    "8m",
    "--iomix-bytes",
    "8m",
    "--fallocate-bytes",
    "8m",
    "--seek-size",
    "8m",
    "--sendfile-size",
    "1m",
    "--readahead-bytes",
    "8m",
    "--copy-file-bytes",
    "128m",
    "--sync-file-bytes",
    "8m",
    "--dentries",
    "200",
];

/// What a stressor says at its end.
#[derive(Debug, PartialEq)]
enum Verdict {
    Passed,
    /// It cannot run here, it says.
    Refused,
    Failed,
}

/// By its exit code: 3 stands for missing resources, 4 for what is not implemented.
fn verdict(code: Option<i32>) -> Verdict {
    match code {
        Some(0) => Verdict::Passed,
        Some(3 | 4) => Verdict::Refused,
        _ => Verdict::Failed,
    }
}

/// Two processes of one stressor in a directory; what they said.
fn stress(name: &str, dir: &Path) -> (Verdict, String) {
    fs::create_dir_all(dir).unwrap();
    let seconds = format!("{}s", setting("STRONGROOM_STRESS_SECONDS", 2, 1));
    let mut c = Command::new(on_path("stress-ng"));
    c.args([&format!("--{name}"), "2", "-t", &seconds, "--verify", "--temp-path"]).arg(dir).args(SIZES);
    // What it drops in its working directory lands where it works.
    let out = output(c.current_dir(dir));
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (verdict(out.status.code()), said)
}

/// What is wrong with a stressor's run on the mount, the disk being asked if it says that it cannot run there.
fn fault(name: &str, on_mount: (Verdict, String), on_disk: impl FnOnce() -> (Verdict, String)) -> Option<String> {
    match on_mount {
        (Verdict::Passed, _) => None,
        (Verdict::Failed, said) => Some(format!("{name} fails:\n{said}")),
        (Verdict::Refused, said) => match on_disk() {
            (Verdict::Refused, _) => None,
            (on_disk, _) => Some(format!("{name} says it cannot run on the mount; on the disk: {on_disk:?}\n{said}")),
        },
    }
}

/// The stressors of the class that this stress-ng has, and those beside it.
fn stressors() -> VecDeque<String> {
    let said = run(Command::new(on_path("stress-ng")).args(["--class", "filesystem?"]));
    let class = said.split_once("stressors:").unwrap_or_else(|| panic!("no list of stressors: {said}")).1;
    let all = class.split_whitespace().chain(BESIDE).filter(|s| !ELSEWHERE.contains(s));
    all.map(str::to_owned).collect()
}

#[test]
fn no_stressor_of_filesystems_fails() {
    let v = TestVault::mounted_with(&[&format!("budget={BUDGET_BYTES}")]);
    let todo = Mutex::new(stressors());
    let count = todo.lock().unwrap().len();
    assert!(count > 40, "only {count} stressors: it is not the class that was meant");
    let (found, passed) = (Mutex::new(Vec::new()), Mutex::new(0));
    std::thread::scope(|s| {
        for lane in 0..2 {
            let (v, todo, found, passed) = (&v, &todo, &found, &passed);
            s.spawn(move || {
                while let Some(name) = { todo.lock().unwrap().pop_front() } {
                    let on_mount = stress(&name, &v.path(format!("lane-{lane}")));
                    *passed.lock().unwrap() += usize::from(on_mount.0 == Verdict::Passed);
                    let on_disk = || stress(&name, &v.outside(&format!("lane-{lane}")));
                    found.lock().unwrap().extend(fault(&name, on_mount, on_disk));
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    assert!(found.is_empty(), "{}", found.join("\n"));
    let passed = passed.into_inner().unwrap();
    assert!(passed > 40, "only {passed} of {count} ran");
    let high = memory_high_water_bytes(v.pid());
    eprintln!("VmHWM {} MiB, budget {} MiB", high >> 20, BUDGET_BYTES >> 20);
    assert!(high <= BUDGET_BYTES + BESIDE_BUDGET_BYTES, "the daemon held {} MiB", high >> 20);
    v.umount();
    v.check();
}

#[test]
fn a_filesystem_that_refuses_is_noticed() {
    let v = TestVault::mounted();
    let disk = Disk::ext4(32);
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(&disk.at));
    for name in ["rename", "hdd", "link"] {
        let on_mount = stress(name, &disk.at);
        assert_ne!(on_mount.0, Verdict::Passed, "{name} on a disk that takes no writes");
        assert!(fault(name, on_mount, || stress(name, &v.path("plain"))).is_some(), "{name}");
    }
    let said = |v| (v, String::new());
    assert!(fault("x", said(verdict(Some(2))), || unreachable!()).is_some());
    assert!(fault("x", said(verdict(None)), || unreachable!()).is_some(), "killed");
    assert_eq!(fault("x", said(verdict(Some(4))), || said(Verdict::Refused)), None);
}
