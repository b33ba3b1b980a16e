//! How a mount ends, and what `umount` and `status` say of it, where something is wrong.
//!
//! Method: the backing filesystem is shut down, removed or replaced under a live mount; the daemon is stopped or killed; programs, bind
//! mounts and other mount namespaces hold the filesystem; several end the mount at once.
//! Promise: `umount` answers 0 only where the vault was closed with everything in it; each other answer has its documented code
//! within its bound, names the process or the files it is about, and costs nothing that was synced. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::disk::Disk;
use common::inject::{EIO, Injection};
use common::{TestVault, eventually, needs_root, output, run, strongroom};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

const BUSY: i32 = 11;
const FLUSH_FAILED: i32 = 12;
const IO: i32 = 13;
const NOT_MOUNTED: i32 = 16;
const AWAY: i32 = 20;
const HELD: i32 = 23;
const NO_ANSWER: i32 = 24;
const DISCARDED: i32 = 25;
const PATIENCE: Duration = Duration::from_secs(60);

fn umount(v: &TestVault, options: &[&str]) -> Output {
    output(Command::new(strongroom()).arg("umount").args(options).arg(&v.mnt))
}

fn status(v: &TestVault) -> Output {
    output(Command::new(strongroom()).arg("status").arg(&v.mnt))
}

/// Checks the code, and that stderr says each of these.
#[track_caller]
fn says(out: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "'{word}' is not in: {said}");
    }
}

fn write_synced(path: &Path, data: &[u8]) {
    fs::write(path, data).unwrap();
    File::open(path).unwrap().sync_all().unwrap();
}

/// A mounted vault with a synced file, and its daemon.
fn mounted_with_file() -> (TestVault, i32) {
    let v = TestVault::mounted();
    let pid = v.pid();
    write_synced(&v.path("file"), b"data");
    (v, pid)
}

/// Mounts the vault again, finds in the file what it must hold, and unmounts it.
#[track_caller]
fn keeps(v: &TestVault, name: &str, data: &[u8]) {
    v.mount();
    assert_eq!(fs::read(v.path(name)).unwrap(), data);
    v.umount();
}

fn signal(signal: i32, pid: i32) {
    // SAFETY: a signal to a process that this test started.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Whether it runs (a zombie does not).
fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

fn ends(pid: i32) {
    eventually("the daemon ends", PATIENCE, || !lives(pid));
}

/// A process that does nothing, ended when dropped.
struct Idle(Child);

impl Idle {
    fn start(command: &mut Command) -> Idle {
        Idle(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it runs"))
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process in a mount namespace of its own, whose copy of the mount nobody takes away.
fn in_another_namespace(v: &TestVault) -> Idle {
    run(Command::new("mount").arg("--make-private").arg(&v.mnt));
    // Mounts of other tests, which the namespace begins with as well, are not held.
    let line =
        "awk '/ - fuse.strongroom / && $5 != mnt { print $5 }' mnt=\"$0\" /proc/self/mountinfo | xargs -r -n1 umount -l
        exec sleep 120";
    let unshare = ["-m", "--propagation", "private", "sh", "-c", line];
    let idle = Idle::start(Command::new("unshare").args(unshare).arg(&v.mnt));
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    let pid = idle.0.id();
    let is_away = || fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|ns| ns != own);
    eventually("another namespace", PATIENCE, is_away);
    eventually("it idles", PATIENCE, || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() == "sleep");
    idle
}

#[test]
fn a_dead_disk_with_an_emergency_directory_is_20_and_without_one_12() {
    needs_root("shut a filesystem down");
    for with in [true, false] {
        let (disk, away) = (Disk::ext4(200), tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let mut v = TestVault::init_on(&disk);
        let elsewhere = if with { away.path().to_str().unwrap() } else { "none" };
        v.options = vec![format!("emergency-dir={elsewhere}")];
        v.mount();
        let pid = v.pid();
        write_synced(&v.path("before"), b"before");
        disk.shut_down();
        fs::write(v.path("after"), b"after").unwrap();
        let synced = File::open(v.path("after")).unwrap().sync_all();
        assert_eq!(synced.is_ok(), with, "{synced:?}");
        if with {
            says(&umount(&v, &[]), AWAY, &["emergency directory"]);
        } else {
            says(&umount(&v, &[]), FLUSH_FAILED, &["it stays mounted", "--discard"]);
            assert!(v.is_mounted());
            let told = status(&v);
            let text = String::from_utf8_lossy(&told.stdout);
            assert!(text.contains("what to do") && text.contains("--discard"), "{text}");
            let asked = umount(&v, &["--discard"]);
            says(&asked, 2, &["not saved: /after", "--yes"]);
            assert!(v.is_mounted(), "nobody agreed");
            let given_up = umount(&v, &["--discard", "--yes"]);
            says(&given_up, DISCARDED, &["not saved: /after"]);
            let said = String::from_utf8_lossy(&given_up.stderr);
            assert!(!said.contains("it stays mounted"), "{said}");
            assert_eq!(said.matches("not saved: /after").count(), 1, "{said}");
        }
        assert!(!v.is_mounted());
        ends(pid);
        disk.detach();
        disk.give_back();
        v.mount();
        assert_eq!(fs::read(v.path("before")).unwrap(), b"before");
        assert_eq!(fs::read(v.path("after")).is_ok_and(|data| data == b"after"), with);
        v.umount();
    }
}

#[test]
fn a_vault_that_is_removed_or_replaced_is_12() {
    for replaced in [false, true] {
        let (v, pid) = mounted_with_file();
        if replaced {
            // A copy that was closed cleanly takes its place: its lock file must not speak for ours.
            let copy = v.outside("copy");
            run(Command::new("cp").arg("-a").arg(&v.vault).arg(&copy));
            fs::write(copy.join("lock"), "closed\n").unwrap();
            fs::remove_dir_all(&v.vault).unwrap();
            fs::rename(copy, &v.vault).unwrap();
        } else {
            fs::remove_dir_all(&v.vault).unwrap();
        }
        let file = File::create(v.path("file")).unwrap();
        (&file).write_all(b"more data").unwrap();
        let refused = file.sync_all().expect_err("the next mount would not find it");
        assert_eq!(refused.raw_os_error(), Some(libc::EIO));
        drop(file);
        says(&umount(&v, &[]), FLUSH_FAILED, &["it stays mounted"]);
        let errors = v.storage("errors");
        assert!(errors.contains("was removed or replaced by another program"), "{errors}");
        assert_eq!(errors.contains("another directory lies there now"), replaced, "{errors}");
        says(&umount(&v, &["--discard", "--yes"]), DISCARDED, &["what could not be saved is given up"]);
        ends(pid);
    }
}

#[test]
fn a_full_disk_says_what_is_not_saved_and_umount_is_0_once_there_is_room() {
    needs_root("fill a filesystem");
    let disk = Disk::ext4(200);
    let v = TestVault::init_on(&disk);
    v.mount();
    write_synced(&v.path("before"), b"before");
    let filler = disk.fill(0);
    // The last room in every block that is the vault's already is used up by and by.
    let mut refused = false;
    for n in 0..200 {
        let path = v.path(format!("file-{n}"));
        refused = fs::write(&path, vec![n as u8; 1 << 20]).and_then(|()| File::open(&path)?.sync_all()).is_err();
        if refused {
            break;
        }
    }
    assert!(refused, "the disk was never full");
    fs::remove_file(&filler).unwrap();
    eventually("there is room", PATIENCE, || {
        fs::write(v.path("last"), b"last").and_then(|()| File::open(v.path("last"))?.sync_all()).is_ok()
    });
    assert_eq!(umount(&v, &[]).status.code(), Some(0));
    v.mount();
    assert_eq!(fs::read(v.path("before")).unwrap(), b"before");
    assert_eq!(fs::read(v.path("last")).unwrap(), b"last");
    v.umount();
}

#[test]
fn a_daemon_that_is_killed_at_the_end_is_12_though_the_mount_is_gone() {
    let (v, pid) = mounted_with_file();
    // It cannot end before it is killed: a stopped process does nothing.
    let holder = in_another_namespace(&v);
    let mut command = Command::new(strongroom());
    command.arg("umount").arg(&v.mnt).stdin(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    eventually("it is unmounted here", PATIENCE, || !v.is_mounted());
    signal(libc::SIGKILL, pid);
    drop(holder);
    let out = child.wait_with_output().unwrap();
    says(&out, FLUSH_FAILED, &["ended without a word"]);
    keeps(&v, "file", b"data");
}

#[test]
fn whoever_comes_second_learns_how_it_ended() {
    // Both at once: one unmounts, both wait for the end.
    let v = TestVault::mounted();
    fs::write(v.path("file"), vec![7; 30 << 20]).unwrap();
    let outs: Vec<Output> = std::thread::scope(|scope| {
        let both: Vec<_> = (0..2).map(|_| scope.spawn(|| umount(&v, &[]))).collect();
        both.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let codes: Vec<_> = outs.iter().map(|out| out.status.code().unwrap()).collect();
    // One that begins when all is over finds nothing.
    assert!(codes.contains(&0) && codes.iter().all(|code| [0, NOT_MOUNTED].contains(code)), "{outs:?}");
    // umount(8) first, which does not wait; its daemon cannot close the vault, and that is told to whoever asks.
    v.mount();
    // Written under the injection: a vault that was quiet for 0.2 s has committed.
    let fails = Injection::begin(v.pid(), EIO, &[], v.outside("strace.log"));
    fs::write(v.path("file"), vec![8; 1 << 20]).unwrap();
    run(Command::new("umount").arg(&v.mnt));
    says(&umount(&v, &[]), FLUSH_FAILED, &["unmounted, but not everything", "not saved: /file"]);
    drop(fails);
    says(&umount(&v, &[]), NOT_MOUNTED, &[]);
}

#[test]
fn a_busy_mount_names_the_programs_and_force_takes_it_from_them() {
    let (v, pid) = mounted_with_file();
    let inside = Idle::start(Command::new("sleep").arg("120").current_dir(&v.mnt));
    let reader = Idle::start(Command::new("tail").arg("-f").arg(v.path("file")).stderr(Stdio::null()));
    let open = |pid| {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|file| file == v.path("file")))
    };
    eventually("the file is open", PATIENCE, || open(reader.0.id()));
    let sleep = format!("sleep (process {}): its directory is", inside.0.id());
    let tail = format!("tail (process {}): it has {}", reader.0.id(), v.path("file").display());
    says(&umount(&v, &[]), BUSY, &["EBUSY", &sleep, &tail]);
    assert!(v.is_mounted());
    assert_eq!(umount(&v, &["--force"]).status.code(), Some(0), "everything is flushed, and the vault is closed");
    assert!(!v.is_mounted());
    ends(pid);
    keeps(&v, "file", b"data");
}

#[test]
fn where_another_namespace_holds_the_mount_umount_says_who_and_force_ends_it() {
    for force in [false, true] {
        let v = TestVault::mounted();
        let pid = v.pid();
        fs::write(v.path("file"), b"data").unwrap();
        let holder = in_another_namespace(&v);
        let who = format!("in the mount namespace of sleep (process {})", holder.0.id());
        let began = Instant::now();
        let held = umount(&v, &[]);
        says(&held, HELD, &["unmounted here, and flushed", &who, "--force"]);
        let said = String::from_utf8_lossy(&held.stderr);
        assert!(!said.contains("may not look"), "the holder was found: {said}");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        assert!(!v.is_mounted() && lives(pid));
        // Asked again, though nothing is mounted here any more, or never was: that is not known.
        let again = umount(&v, &[]);
        says(&again, HELD, &["nothing is mounted there in this mount namespace", &who]);
        let said = String::from_utf8_lossy(&again.stderr);
        assert!(!said.contains("unmounted"), "{said}");
        if force {
            assert_eq!(umount(&v, &["--force"]).status.code(), Some(0));
        } else {
            drop(holder);
        }
        ends(pid);
        keeps(&v, "file", b"data");
    }
}

#[test]
fn a_bind_mount_holds_the_filesystem_and_a_signal_takes_that_as_well() {
    let (v, pid) = mounted_with_file();
    fs::create_dir(v.path("dir")).unwrap();
    fs::write(v.path("dir/file"), b"data").unwrap();
    let place = v.outside("bound");
    fs::create_dir(&place).unwrap();
    run(Command::new("mount").arg("--bind").arg(v.path("dir")).arg(&place));
    for command in ["umount", "status"] {
        let part = output(Command::new(strongroom()).arg(command).arg(&place));
        let whole = format!("The whole strongroom is mounted at {}", v.mnt.display());
        says(&part, NOT_MOUNTED, &["only the directory /dir", &whole, "umount(8)"]);
    }
    says(&umount(&v, &[]), HELD, &[&format!("it is mounted at {}", place.display())]);
    fs::write(place.join("file"), b"newer").unwrap();
    signal(libc::SIGTERM, pid);
    ends(pid);
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(place.to_str().unwrap()));
    keeps(&v, "dir/file", b"newer");
}

#[test]
fn a_mount_that_was_moved_is_unmounted_by_a_signal_and_by_its_new_place() {
    needs_root("move a mount");
    let mut v = TestVault::init();
    // A mount is moved only within one that is private.
    let stage = v.outside("stage");
    fs::create_dir(&stage).unwrap();
    run(Command::new("mount").arg("--bind").args([&stage, &stage]));
    run(Command::new("mount").arg("--make-private").arg(&stage));
    let moved = stage.join("moved");
    v.mnt = stage.join("mnt");
    fs::create_dir(&v.mnt).unwrap();
    fs::create_dir(&moved).unwrap();
    for by_signal in [true, false] {
        v.mount();
        let pid = v.pid();
        run(Command::new("mount").arg("--move").args([&v.mnt, &moved]));
        fs::write(moved.join(format!("file-{by_signal}")), b"data").unwrap();
        if by_signal {
            signal(libc::SIGTERM, pid);
        } else {
            let new_place = format!("strongroom umount {}", moved.display());
            says(&umount(&v, &[]), NOT_MOUNTED, &["nothing is mounted there any more", &new_place]);
            run(Command::new(strongroom()).arg("umount").arg(&moved));
        }
        ends(pid);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(moved.to_str().unwrap()), "a dead mount is left");
    }
    v.mount();
    for by_signal in [true, false] {
        assert_eq!(fs::read(v.path(format!("file-{by_signal}"))).unwrap(), b"data");
    }
    v.umount();
    run(Command::new("umount").arg(&stage));
}

/// Runs until its first line on stderr, and says how long that took.
fn first_words(command: &mut Command) -> (Child, String, Duration) {
    let (child, line, mut rest, took) = begin(command);
    std::thread::spawn(move || std::io::copy(&mut rest, &mut std::io::sink()));
    (child, line, took)
}

/// Runs until its first line on stderr; the rest of it can still be read.
fn begin(command: &mut Command) -> (Child, String, BufReader<ChildStderr>, Duration) {
    let began = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    (child, line, stderr, began.elapsed())
}

#[test]
fn a_stopped_daemon_is_named_at_once_and_force_loses_nothing() {
    let v = TestVault::mounted();
    let pid = v.pid();
    fs::write(v.path("file"), b"data").unwrap();
    signal(libc::SIGSTOP, pid);
    let wanted = format!("process {pid}) is stopped; kill -CONT {pid}");
    let (mut waiting, line, took) = first_words(Command::new(strongroom()).arg("status").arg(&v.mnt));
    assert!(line.contains(&wanted) && took < Duration::from_secs(5), "{took:?} {line}");
    let (mut unmounting, line, took) = first_words(Command::new(strongroom()).arg("umount").arg(&v.mnt));
    assert!(line.contains(&wanted) && took < Duration::from_secs(5), "{took:?} {line}");
    assert_eq!(waiting.wait().unwrap().code(), Some(NO_ANSWER));
    let list = output(Command::new(strongroom()).arg("status"));
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.lines().any(|l| l.contains(v.mnt.to_str().unwrap()) && l.contains(&wanted)), "{list}");
    unmounting.kill().unwrap();
    unmounting.wait().unwrap();
    says(&umount(&v, &["--force"]), 0, &["it is let go on"]);
    ends(pid);
    keeps(&v, "file", b"data");
}

#[test]
fn a_daemon_that_dies_while_it_is_asked_is_told_as_dead() {
    let v = TestVault::mounted();
    let pid = v.pid();
    signal(libc::SIGSTOP, pid);
    let ask = |command: &str| begin(Command::new(strongroom()).arg(command).arg(&v.mnt));
    let (asked, unmounting) = (ask("status"), ask("umount"));
    signal(libc::SIGKILL, pid);
    for ((mut child, _, mut rest, _), code, word) in [(asked, IO, "has died"), (unmounting, FLUSH_FAILED, "died")] {
        let mut said = String::new();
        rest.read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{said}");
        assert!(said.contains(word), "{said}");
    }
    ends(pid);
}

#[test]
fn a_dead_daemon_is_listed_as_dead() {
    let v = TestVault::mounted();
    let pid = v.pid();
    signal(libc::SIGKILL, pid);
    ends(pid);
    let list = output(Command::new(strongroom()).arg("status"));
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let line = list.lines().find(|l| l.contains(v.mnt.to_str().unwrap())).unwrap_or_default();
    assert!(line.contains("dead"), "{list}");
    let json = output(Command::new(strongroom()).args(["status", "--json"]));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let its = |mount: &&serde_json::Value| mount["mountpoint"] == v.mnt.to_str().unwrap();
    assert_eq!(json["mounts"].as_array().unwrap().iter().find(its).unwrap()["daemon"], "dead");
    says(&umount(&v, &[]), FLUSH_FAILED, &["died"]);
}

#[test]
fn a_daemon_that_hangs_with_a_request_in_its_hands_holds_nobody() {
    needs_root("trace the daemon");
    let v = TestVault::mounted();
    write_synced(&v.path("safe"), b"safe");
    fs::write(v.path("later"), b"later").unwrap();
    // No answer leaves it: whoever asked is held in the kernel, where not even SIGKILL reaches it.
    let hangs = [("write", "delay_enter=900000000"), ("writev", "delay_enter=900000000")];
    let hangs: &'static [_] = Box::leak(Box::new(hangs));
    let hangs = Injection::begin(v.pid(), hangs, &[], v.outside("strace.log"));
    says(&status(&v), NO_ANSWER, &[&format!("process {}", v.pid())]);
    says(&umount(&v, &["--force"]), 2, &["cannot be listed", "--yes"]);
    assert!(v.is_mounted(), "nobody agreed");
    drop(hangs);
    assert_eq!(umount(&v, &[]).status.code(), Some(0));
    v.mount();
    assert_eq!(
        (fs::read(v.path("safe")).unwrap(), fs::read(v.path("later")).unwrap()),
        (b"safe".into(), b"later".into())
    );
    v.umount();
}

#[test]
fn the_shell_that_stands_in_the_mount_is_told_to_leave_it() {
    let (v, _) = mounted_with_file();
    let line = format!("cd '{}' && '{}' umount . ; exit $?", v.mnt.display(), strongroom().display());
    let out = output(Command::new("sh").args(["-c", &line]));
    says(&out, BUSY, &["sh (process", "from which this command was started", "which `cd /` leaves"]);
    assert!(v.is_mounted());
    let line = format!("cd '{}' && cd / && '{}' umount '{}'", v.mnt.display(), strongroom().display(), v.mnt.display());
    assert_eq!(output(Command::new("sh").args(["-c", &line])).status.code(), Some(0));
    keeps(&v, "file", b"data");
}

#[test]
fn a_program_that_opens_files_for_moments_is_named_or_waited_for() {
    let (v, _) = mounted_with_file();
    // Where the mount is gone, it ends.
    let line = format!("while [ -e '{0}/file' ]; do echo more >> '{0}/appended'; done", v.mnt.display());
    let appending = Idle::start(Command::new("sh").args(["-c", &line]).current_dir("/"));
    eventually("it appends", PATIENCE, || v.path("appended").exists());
    let out = umount(&v, &[]);
    if out.status.code() != Some(0) {
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let its = format!("sh (process {})", appending.0.id());
        assert_eq!(out.status.code(), Some(BUSY), "{said}");
        assert!(said.contains(&its) || said.contains("opens files there for a moment at a time"), "{said}");
    }
}

#[test]
fn a_vault_given_for_a_mountpoint_is_told_where_it_is_mounted() {
    let (v, _) = mounted_with_file();
    let given = output(Command::new(strongroom()).arg("umount").arg(&v.vault));
    says(&given, NOT_MOUNTED, &["this is a vault", &format!("strongroom umount {}", v.mnt.display())]);
}

#[test]
fn umount_answers_in_json() {
    let (v, _) = mounted_with_file();
    let json = |out: &Output| serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap();
    let inside = Idle::start(Command::new("sleep").arg("120").current_dir(&v.mnt));
    let busy = json(&umount(&v, &["--json"]));
    assert_eq!((&busy["ok"], &busy["exit"]), (&false.into(), &BUSY.into()), "{busy}");
    assert!(busy["error"].as_str().unwrap().contains("EBUSY"), "{busy}");
    drop(inside);
    let done = json(&umount(&v, &["--json"]));
    assert_eq!((&done["ok"], &done["mountpoint"]), (&true.into(), &v.mnt.to_str().unwrap().into()), "{done}");
}
