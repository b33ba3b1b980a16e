//! Disks that fail under a mount, with an emergency directory and without.
//!
//! Method: `strace` makes the running daemon's writes and flushes fail under writers that keep, outside, what was
//! acknowledged; the disk of the emergency directory is pulled and given back; the daemon is killed while part of the
//! vault lies elsewhere. `STRONGROOM_FAILURE_MS` says how long a failure lasts.
//! Promise: what was acknowledged is there, at once, after a kill and after a clean unmount; the vault comes back by itself
//! and its history says how; with a healthy emergency directory no writer meets an error at all. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::disk::Disk;
use common::inject::{Calls, EIO, ENOSPC, FLUSH, Injection, SLOW, copies_of, files_of};
use common::load::Load;
use common::{TestVault, eventually, needs_root, output, run, setting, strongroom};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const WRITERS: u64 = 4;
/// Most time to come back; a probe is due every five seconds, or thirty when the log lies elsewhere.
const HEALING: Duration = Duration::from_secs(90);

fn failure_time() -> Duration {
    Duration::from_millis(setting("STRONGROOM_FAILURE_MS", 2500, 2500))
}

/// A mounted vault with an emergency directory beside it.
fn with_emergency(place: &Path) -> TestVault {
    let mut v = TestVault::init();
    v.options = vec![format!("emergency-dir={}", place.display())];
    v.mount();
    v
}

/// Segments that lie in an emergency directory.
fn segments_away(place: &Path) -> usize {
    let vaults = fs::read_dir(place).into_iter().flatten().flatten();
    vaults.map(|e| fs::read_dir(e.path().join("segments")).map_or(0, Iterator::count)).sum()
}

fn await_state(v: &TestVault, state: &str) {
    eventually(&format!("state {state}"), HEALING, || v.state() == state);
}

fn is_work(state: &str) -> bool {
    ["ready", "writing", "flushing", "verifying"].contains(&state)
}

fn write_synced(path: &Path, data: &[u8]) -> io::Result<()> {
    fs::write(path, data)?;
    File::open(path)?.sync_all()
}

/// Nothing is lost: now, after a kill, after a clean unmount.
fn nothing_is_lost(v: &TestVault, loads: &[&Load]) {
    let look = |when: &str| {
        for load in loads {
            assert_eq!(load.faults(), Vec::<String>::new(), "{when}");
        }
    };
    look("live");
    v.kill9();
    v.mount();
    look("after a kill");
    v.umount();
    v.check();
    v.mount();
    look("after a clean unmount");
}

/// Everything the daemon writes fails for a while.
fn all_fails(calls: Calls, emergency: Option<&Path>) {
    let v = emergency.map_or_else(TestVault::mounted, with_emergency);
    let mut load = Load::start(v.path("load"), WRITERS);
    load.await_progress(HEALING);
    let fails = Injection::begin(v.pid(), calls, &[], v.outside("strace.log"));
    // What lacks nothing but room is no fault.
    let stopped = if calls == ENOSPC { "full" } else { "error" };
    await_state(&v, stopped);
    std::thread::sleep(failure_time());
    assert_eq!(v.state(), stopped, "it says so as long as it is so");
    assert!(load.errors() > 0, "writers are told");
    // Reads go on.
    let acknowledged = load.done[0].acknowledged.load(std::sync::atomic::Ordering::SeqCst);
    assert!(fs::read(v.path("load/stream-0")).unwrap().len() as u64 >= acknowledged);
    assert!(fails.lift() > 0, "nothing was injected");
    eventually("coming back", HEALING, || is_work(&v.state()));
    load.await_progress(HEALING);
    load.stop();
    // What a failure leaves behind does not stop checkpoints.
    v.order("checkpoint").unwrap();
    let states = v.states();
    match emergency {
        None => {
            let mut expected = vec!["ready", stopped, "recovering", "ready"];
            if calls == ENOSPC {
                // A disk that refused though `statfs` showed room is called full until it has taken as much again.
                let again = ["full", "ready"];
                expected.extend(again.into_iter().take(states.len().saturating_sub(expected.len())));
            }
            assert_eq!(states, expected);
        }
        Some(place) => {
            assert_eq!((states[0].as_str(), states[states.len() - 1].as_str()), ("ready", "ready"), "{states:?}");
            assert!(states.iter().any(|s| s == "error"), "{states:?}");
            assert_eq!(segments_away(place), 0);
        }
    }
    nothing_is_lost(&v, &[&load]);
}

#[test]
fn with_every_write_and_flush_failing_it_waits_and_heals() {
    all_fails(EIO, None);
}

#[test]
fn with_every_write_finding_the_disk_full_it_waits_and_heals() {
    all_fails(ENOSPC, None);
}

#[test]
fn with_every_flush_failing_it_waits_and_heals() {
    all_fails(FLUSH, None);
}

#[test]
fn with_both_places_failing_it_waits_and_heals() {
    let away = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    all_fails(EIO, Some(away.path()));
}

/// The backing directory alone fails for a while: nobody notices but by looking.
fn goes_away_and_comes_home(calls: Calls) {
    let away = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let v = with_emergency(away.path());
    let mut load = Load::start(v.path("load"), WRITERS);
    load.await_progress(HEALING);
    let fails = Injection::begin(v.pid(), calls, &files_of(&v.vault), v.outside("strace.log"));
    await_state(&v, "backup");
    load.await_progress(HEALING);
    assert!(segments_away(away.path()) > 0, "what is acknowledged must lie somewhere");
    std::thread::sleep(failure_time());
    load.await_progress(HEALING);
    assert_eq!(v.state(), "backup", "as long as it fails");
    assert_eq!(load.faults(), Vec::<String>::new(), "live, while away");
    assert!(fails.lift() > 0, "nothing was injected");
    eventually("coming home", HEALING, || is_work(&v.state()) && segments_away(away.path()) == 0);
    load.await_progress(HEALING);
    load.stop();
    assert_eq!(load.errors(), 0, "no writer was to notice");
    v.order("checkpoint").unwrap();
    assert_eq!(v.states(), ["ready", "backup", "recovering", "ready"]);
    assert_eq!(segments_away(away.path()), 0, "nothing goes there once all is well");
    nothing_is_lost(&v, &[&load]);
}

#[test]
fn with_errors_at_home_alone_nobody_notices() {
    goes_away_and_comes_home(EIO);
}

#[test]
fn with_a_full_disk_at_home_alone_nobody_notices() {
    goes_away_and_comes_home(ENOSPC);
}

#[test]
fn with_flushes_failing_at_home_alone_nobody_notices() {
    goes_away_and_comes_home(FLUSH);
}

#[test]
fn an_emergency_disk_pulled_and_given_back_in_each_state_costs_nothing() {
    let disk = Disk::ext4(300);
    let v = with_emergency(&disk.at);
    let mut load = Load::start(v.path("load"), WRITERS);
    load.await_progress(HEALING);

    // Ready: nobody misses it.
    disk.pull();
    load.await_progress(HEALING);
    assert!(is_work(&v.state()), "{}", v.state());
    disk.give_back();

    // Backup: the last place is gone, until it is back.
    let fails = Injection::begin(v.pid(), EIO, &files_of(&v.vault), v.outside("strace-1.log"));
    await_state(&v, "backup");
    load.await_progress(HEALING);
    assert_eq!(load.errors(), 0, "so far one place always took it");
    disk.pull();
    await_state(&v, "error");
    disk.give_back();
    await_state(&v, "backup");
    load.await_progress(HEALING);

    // Error: gone, and the backing directory is back first.
    disk.pull();
    await_state(&v, "error");
    assert!(fails.lift() > 0);
    eventually("going on at home", HEALING, || v.state() != "error");
    load.await_progress(HEALING);
    assert_eq!(v.state(), "recovering", "part of it is on the disk that is gone");
    disk.give_back();
    eventually("coming home", HEALING, || is_work(&v.state()));
    assert_eq!(segments_away(&disk.at), 0);

    // Recovering: gone while it is read.
    let fails = Injection::begin(v.pid(), EIO, &files_of(&v.vault), v.outside("strace-2.log"));
    await_state(&v, "backup");
    load.await_progress(HEALING);
    std::thread::sleep(failure_time());
    fails.lift();
    let slow = Injection::begin(v.pid(), SLOW, &copies_of(&v.vault), v.outside("strace-3.log"));
    eventually("recovering", HEALING, || v.state() == "recovering");
    disk.pull();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(v.state(), "recovering", "it cannot have come home");
    drop(slow);
    load.await_progress(HEALING);
    disk.give_back();
    eventually("coming home", HEALING, || is_work(&v.state()));
    load.await_progress(HEALING);
    load.stop();
    assert_eq!(segments_away(&disk.at), 0);
    nothing_is_lost(&v, &[&load]);
}

fn recover(v: &TestVault) -> Output {
    let mut c = Command::new(strongroom());
    c.env("STRONGROOM_STATE_DIR", v.dir.path().join("state"));
    output(c.args(["recover", "--password-file"]).arg(&v.password).arg(&v.vault))
}

#[test]
fn killed_while_away_the_next_mount_finds_both_places() {
    let top = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (place, hidden) = (top.path().join("emergency"), top.path().join("hidden"));
    fs::create_dir(&place).unwrap();
    let mut v = with_emergency(&place);
    let mut loads = Vec::new();
    // Each way of bringing it home: told of the directory, by what the vault remembers, by hand.
    for way in ["told", "remembered", "by hand"] {
        let mut load = Load::start(v.path(format!("load-{way}")), WRITERS);
        load.await_progress(HEALING);
        let fails = Injection::begin(v.pid(), EIO, &files_of(&v.vault), v.outside("strace.log"));
        await_state(&v, "backup");
        load.await_progress(HEALING);
        v.kill9();
        load.stop();
        drop(fails);
        loads.push(load);
        let told = std::mem::take(&mut v.options);
        // Without what it needs, a vault says where that was.
        fs::rename(&place, &hidden).unwrap();
        let (code, said) = v.try_mount().expect_err("what was acknowledged is not there");
        assert_eq!(code, Some(19), "{said}");
        assert!(said.contains(place.to_str().unwrap()), "{said}");
        let out = recover(&v);
        assert_eq!(out.status.code(), Some(19), "{}", String::from_utf8_lossy(&out.stderr));
        fs::rename(&hidden, &place).unwrap();
        match way {
            "told" => v.options = told.clone(),
            "remembered" => {}
            _ => {
                let out = recover(&v);
                let said = String::from_utf8_lossy(&out.stderr).into_owned();
                assert_eq!((out.status.code(), segments_away(&place)), (Some(0), 0), "{said}");
                // Now it is not needed any more.
                fs::rename(&place, &hidden).unwrap();
            }
        }
        v.mount();
        for load in &loads {
            assert_eq!(load.faults(), Vec::<String>::new(), "{way}, just mounted");
        }
        eventually("coming home", HEALING, || is_work(&v.state()) && segments_away(&place) == 0);
        if way == "by hand" {
            fs::rename(&hidden, &place).unwrap();
        }
        v.umount();
        v.options = told;
        v.mount();
    }
    nothing_is_lost(&v, &loads.iter().collect::<Vec<_>>());
}

#[test]
fn killed_while_coming_home_the_next_mount_goes_on() {
    let away = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let v = with_emergency(away.path());
    let (mut loads, mut hits) = (Vec::new(), 0);
    for attempt in 0..6 {
        let mut load = Load::start(v.path(format!("load-{attempt}")), WRITERS);
        load.await_progress(HEALING);
        let fails = Injection::begin(v.pid(), EIO, &files_of(&v.vault), v.outside("strace-1.log"));
        await_state(&v, "backup");
        load.await_progress(HEALING);
        std::thread::sleep(failure_time());
        fails.lift();
        let slow = Injection::begin(v.pid(), SLOW, &copies_of(&v.vault), v.outside("strace-2.log"));
        eventually("recovering", HEALING, || v.state() != "backup");
        std::thread::sleep(Duration::from_millis(200 * attempt));
        hits += usize::from(v.state() == "recovering");
        v.kill9();
        load.stop();
        drop(slow);
        loads.push(load);
        v.mount();
        for load in &loads {
            assert_eq!(load.faults(), Vec::<String>::new(), "attempt {attempt}");
        }
        eventually("coming home", HEALING, || is_work(&v.state()) && segments_away(away.path()) == 0);
        if hits >= 2 {
            break;
        }
    }
    assert!(hits > 0, "it was never killed while coming home: nothing was tried");
    nothing_is_lost(&v, &loads.iter().collect::<Vec<_>>());
}

#[test]
fn a_signal_while_nothing_takes_the_log_ends_in_time_and_names_what_is_lost() {
    needs_root("trace the daemon");
    let v = TestVault::init();
    let said = v.outside("stderr");
    let mut command = v.mount_command();
    command.arg("--foreground").stdout(Stdio::null()).stderr(File::create(&said).unwrap());
    let mut daemon = command.spawn().unwrap();
    eventually("mounted", Duration::from_secs(20), || v.is_mounted());
    write_synced(&v.path("saved"), b"this is safe").unwrap();
    let fails = Injection::begin(daemon.id() as i32, EIO, &[], v.outside("strace.log"));
    // Closed, so the daemon has it, and the kernel not any more.
    fs::write(v.path("a lost file"), b"this is not").unwrap();
    fs::create_dir(v.path("dir")).unwrap();
    fs::write(v.path("dir/another"), vec![7; 100_000]).unwrap();
    let began = Instant::now();
    // SAFETY: a signal to a child that was not waited for yet.
    unsafe { libc::kill(daemon.id() as i32, libc::SIGTERM) };
    let status = daemon.wait().unwrap();
    let took = began.elapsed();
    drop(fails);
    let said = fs::read_to_string(said).unwrap();
    assert_eq!(status.code(), Some(12), "{said}");
    assert!(took < Duration::from_secs(30), "it took {took:?}");
    for name in ["a lost file", "dir/another"] {
        let line = said.lines().find(|l| l.contains("not saved") && l.contains(name));
        assert!(line.is_some(), "{name} is not named:\n{said}");
    }
    assert!(!said.lines().any(|l| l.ends_with("not saved: /saved")), "what is safe is named:\n{said}");
    v.mount();
    assert_eq!(fs::read(v.path("saved")).unwrap(), b"this is safe");
    run(Command::new("ls").arg(&v.mnt));
}

/// The vault's disk is pulled under writers and comes back as another device; what was synced and what was only written is there.
#[test]
fn a_scrub_that_the_daemon_refuses_is_reported() {
    let disk = Disk::ext4(64);
    let v = TestVault::init_on(&disk);
    v.mount();
    write_synced(&v.path("file"), b"all is well").unwrap();
    let scrub = || output(Command::new(strongroom()).arg("scrub").arg(&v.mnt));
    assert!(scrub().status.success(), "there is an earlier answer, which is not this one's");
    disk.shut_down();
    write_synced(&v.path("file"), b"no more").expect_err("the disk has died");
    await_state(&v, "error");
    let errors = v.storage("errors");
    for line in errors.lines() {
        assert!(["backing directory", "writing stopped"].iter().all(|said| line.matches(said).count() <= 1), "{line}");
    }
    let out = scrub();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(10), "{out:?}");
    assert!(said.contains("the daemon did not carry out the order \"scrub\"") && said.lines().count() == 1, "{said}");
    assert!(v.storage("errors").contains("write on /.storage: writing stopped"), "{}", v.storage("errors"));
    // A program that tries again and again, in turns, does not flood the list.
    for _ in 0..3 {
        scrub();
        write_synced(&v.path("file"), b"no more").expect_err("the disk has died");
    }
    let errors = v.storage("errors");
    let of_control = errors.lines().filter(|line| line.contains("write on /.storage"));
    assert!(of_control.count() == 1 && errors.contains("(4 times, last "), "{errors}");
}

fn unplugged_and_plugged_in_again(emergency: Option<&Path>) {
    let disk = Disk::ext4(400);
    let mut v = TestVault::init_on(&disk);
    if let Some(place) = emergency {
        v.options = vec![format!("emergency-dir={}", place.display())];
    }
    v.mount();
    assert!(
        fs::read_to_string(v.path(".storage/config")).unwrap().contains("sandbox_landlock"),
        "the sandbox is to be on"
    );
    let data: Vec<u8> =
        (0..3_000_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).take(3 << 20).collect();
    write_synced(&v.path("synced"), &data).unwrap();
    v.order("checkpoint").unwrap();
    write_synced(&v.path("synced in the log"), &data).unwrap();
    disk.pull();
    let while_away = write_synced(&v.path("while it was away"), &data);
    await_state(&v, if emergency.is_some() { "backup" } else { "error" });
    assert_eq!(while_away.is_ok(), emergency.is_some(), "{while_away:?}");
    // Another vault there: refused by name, and left as it is.
    let elsewhere = TestVault::init();
    fs::create_dir_all(&v.vault).unwrap();
    run(Command::new("mount").arg("--bind").arg(&elsewhere.vault).arg(&v.vault));
    let before = fs::read_dir(&elsewhere.vault).unwrap().count();
    eventually("naming the other vault", HEALING, || {
        fs::read_to_string(v.path(".storage/errors")).unwrap().contains("another vault lies there now")
    });
    assert_eq!(fs::read_dir(&elsewhere.vault).unwrap().count(), before);
    // It may just be looked at.
    eventually("taking it away", HEALING, || Command::new("umount").arg(&v.vault).status().unwrap().success());
    fs::remove_dir(&v.vault).unwrap();
    disk.give_back();
    eventually("going on", HEALING, || is_work(&v.state()));
    let names = ["synced", "synced in the log", "while it was away", "after"];
    write_synced(&v.path("after"), &data).unwrap();
    v.order("checkpoint").unwrap();
    let all_there = |when: &str| {
        for name in names {
            assert!(fs::read(v.path(name)).unwrap() == data, "{name}, {when}");
        }
    };
    all_there("live");
    if let Some(place) = emergency {
        eventually("coming home", HEALING, || segments_away(place) == 0);
    }
    v.kill9();
    v.mount();
    all_there("after a kill");
    v.umount();
    v.check();
}

#[test]
fn a_disk_that_was_unplugged_heals_when_it_is_back() {
    unplugged_and_plugged_in_again(None);
}

#[test]
fn a_disk_that_was_unplugged_heals_when_it_is_back_beside_an_emergency_directory() {
    let away = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    unplugged_and_plugged_in_again(Some(away.path()));
}

/// A mounted vault on a disk that was pulled: no place takes the log. Beside it the named files, empty and still open.
fn stopped_with_open_files(options: &[&str], names: &[&str]) -> (Disk, TestVault, Vec<File>) {
    let disk = Disk::ext4(400);
    let mut v = TestVault::init_on(&disk);
    v.options = options.iter().map(|&option| option.to_owned()).collect();
    v.mount();
    let files: Vec<File> = names.iter().map(|name| File::create(v.path(name)).unwrap()).collect();
    for file in &files {
        file.sync_all().unwrap();
    }
    disk.pull();
    // Without a change the log would not find out.
    write_synced(&v.path("change"), b"something").expect_err("the disk is gone");
    await_state(&v, "error");
    (disk, v, files)
}

/// Bytes that no codec makes smaller.
fn incompressible(mib: u32) -> Vec<u8> {
    (0..mib << 18).flat_map(|i| i.wrapping_mul(2_654_435_761).rotate_left(i % 31).to_le_bytes()).collect()
}

/// Waits until the next `write` of a program to a file is told that the vault fails. It changes nothing if it is not.
fn is_told_by_write(file: &File, body: &[u8]) {
    eventually("write is told", Duration::from_secs(30), || match file.write_at(&body[..1], 0) {
        Ok(_) => false,
        Err(e) => {
            assert_eq!(e.raw_os_error(), Some(libc::EIO), "{e}");
            true
        }
    });
}

#[test]
fn what_was_written_while_the_disk_was_away_is_saved_when_it_is_back() {
    let names = ["synced", "only written", "more than the budget"];
    let (disk, v, mut files) = stopped_with_open_files(&["budget=16M", "full-deadline=120"], &names);
    let bodies = [incompressible(1), incompressible(1), incompressible(24)];
    // The close of a file waits for what is held of it, and each command that this test runs begins with closing its copies.
    drop(files.pop());
    // The kernel's cache takes all of it: each is one call, and the kernel does not ask before the first to a file.
    for (mut file, body) in files.iter().zip(&bodies) {
        file.write_all(body).unwrap();
    }
    let synced = files[0].sync_all().expect_err("nothing takes it");
    assert_eq!(synced.raw_os_error(), Some(libc::EIO), "{synced}");
    is_told_by_write(&files[0], &bodies[0]);
    is_told_by_write(&files[1], &bodies[1]);
    let (source, target) = (v.outside("source"), v.path(names[2]));
    fs::write(&source, &bodies[2]).unwrap();
    let mut dd = Command::new("dd");
    dd.args(["bs=24M", "conv=notrunc,fsync", "status=none"]).stdin(File::open(&source).unwrap());
    let mut writing = dd.arg(format!("of={}", target.display())).spawn().unwrap();
    eventually("some of it is held", HEALING, || {
        let text = v.storage("buffers");
        text.lines().any(|l| l.strip_prefix("held_bytes").is_some_and(|n| n.trim().parse::<u64>().unwrap() > 0))
    });
    // Everybody else is served meanwhile.
    assert!(v.storage("status").contains("error"));
    assert_eq!(fs::read_dir(&v.mnt).unwrap().count(), names.len() + 1);
    assert!(fs::read(v.path("synced")).unwrap() == bodies[0]);
    let unsaved = v.storage("unsaved");
    assert!(names.iter().all(|name| unsaved.lines().any(|line| line == format!("/{name}"))), "{unsaved}");
    disk.give_back();
    eventually("going on", HEALING, || is_work(&v.state()));
    assert!(writing.wait().unwrap().success(), "what was held is durable now");
    for file in &files {
        eventually("a write is taken again", HEALING, || file.write_at(&bodies[0][..1], 0).is_ok());
        file.sync_all().unwrap();
    }
    drop(files);
    assert_eq!(v.storage("unsaved"), "");
    v.umount();
    v.check();
    v.mount();
    for (name, body) in names.iter().zip(&bodies) {
        assert!(fs::read(v.path(name)).unwrap() == *body, "{name}");
    }
}

#[test]
fn what_was_written_while_the_disk_stays_away_is_told_and_named() {
    let names = ["synced", "only written", "more than the budget"];
    let (_disk, v, files) = stopped_with_open_files(&["budget=16M", "full-deadline=2"], &names);
    let bodies = [incompressible(1), incompressible(1), incompressible(24)];
    for (mut file, body) in files.iter().zip(&bodies) {
        file.write_all(body).unwrap();
    }
    for (file, body) in files.iter().zip(&bodies) {
        is_told_by_write(file, body);
    }
    for file in [&files[0], &files[2]] {
        let synced = file.sync_all().expect_err("nothing takes it");
        assert_eq!(synced.raw_os_error(), Some(libc::EIO), "{synced}");
    }
    eventually("the loss is named", HEALING, || v.storage("errors").contains("the file lacks them"));
    assert!(fs::read(v.path("only written")).unwrap() == bodies[1]);
    drop(files);
    let unmount = |how: &[&str], code: i32| {
        let begun = Instant::now();
        let said = output(Command::new(strongroom()).arg("umount").args(how).arg(&v.mnt));
        let words = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(code), "{words}");
        assert!(begun.elapsed() < Duration::from_secs(60), "it took {:?}", begun.elapsed());
        words
    };
    let words = unmount(&[], 12);
    assert!(v.is_mounted() && words.contains("--discard"), "{words}");
    let words = unmount(&["--discard", "--yes"], 25);
    for name in names {
        assert!(words.lines().any(|line| line.contains(&format!("not saved: /{name}"))), "{name}: {words}");
    }
    assert!(!v.is_mounted());
}

/// Many more than there are threads that serve the kernel.
const MANY: usize = 40;

#[test]
fn while_the_disk_answers_no_read_under_many_who_look_names_up_everybody_else_is_answered() {
    needs_root("drop the kernel's caches");
    let below = TestVault::mounted();
    let mut v = TestVault::init_at(below.path("vault"));
    // So that the index is larger than what is kept of it.
    v.options = vec!["budget=16M".into()];
    v.mount();
    for dir in 0..MANY {
        fs::create_dir(v.path(format!("dir-{dir}"))).unwrap();
        for file in 0..200 {
            File::create(v.path(format!("dir-{dir}/a-file-with-a-name-of-some-length-{file}"))).unwrap();
        }
    }
    write_synced(&v.path("seen"), b"seen").unwrap();
    v.remount();
    assert_eq!(fs::read(v.path("seen")).unwrap(), b"seen");
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    let below_pid = below.pid();
    // SAFETY: signals to a process that this test started.
    let signal = move |signal| assert_eq!(unsafe { libc::kill(below_pid, signal) }, 0);
    signal(libc::SIGSTOP);
    let looking: Vec<_> = (0..MANY)
        .map(|dir| {
            let path = v.path(format!("dir-{dir}/a-file-with-a-name-of-some-length-{}", dir * 3));
            std::thread::spawn(move || fs::symlink_metadata(path).map(|_| ()))
        })
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    let waiting = looking.iter().filter(|thread| !thread.is_finished()).count();
    let (answer, answers) = channel();
    let mnt = v.mnt.clone();
    let asking = std::thread::spawn(move || {
        answer.send(fs::read_to_string(mnt.join(".storage/status")).map(|status| !status.is_empty())).unwrap();
        answer.send(fs::metadata(mnt.join("seen")).map(|seen| seen.len() == 4)).unwrap();
    });
    let told: Vec<_> =
        (0..2).map(|_| answers.recv_timeout(Duration::from_secs(30)).map(|told| told.unwrap())).collect();
    signal(libc::SIGCONT);
    assert!(waiting > MANY / 2, "{waiting} wait: nothing was tried");
    assert_eq!(told, [Ok(true), Ok(true)], "with {waiting} who look names up");
    asking.join().unwrap();
    for thread in looking {
        thread.join().unwrap().unwrap();
    }
    v.umount();
    below.umount();
}

#[test]
fn while_the_disk_hangs_under_many_writers_everybody_else_is_answered() {
    let disk = Disk::ext4(400);
    let mut v = TestVault::init_on(&disk);
    v.options = vec!["budget=16M".into()];
    v.mount();
    // With such a quota each write comes as a request of its own, as many at once as there are writers.
    fs::create_dir(v.path("dir")).unwrap();
    let mut quota = Command::new(strongroom());
    run(quota.args(["quota", "set"]).arg(&v.mnt).arg("--tree").arg(v.path("dir")).args(["--bytes", "300M"]));
    v.remount();
    let body: Vec<u8> =
        (0..1u32 << 20).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).take(4 << 20).collect();
    write_synced(&v.path("seen"), &body).unwrap();
    let files: Vec<File> = (0..MANY).map(|n| File::create(v.path(format!("dir/file-{n}"))).unwrap()).collect();
    File::open(&v.mnt).unwrap().sync_all().unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let hanging = disk.hang();
    let writers: Vec<_> = files
        .into_iter()
        .map(|mut file| {
            let (body, written) = (body.clone(), Arc::clone(&written));
            std::thread::spawn(move || -> io::Result<()> {
                for piece in body.chunks(64 << 10) {
                    file.write_all(piece)?;
                    written.fetch_add(1, SeqCst);
                }
                Ok(())
            })
        })
        .collect();
    // They have come to a halt.
    let mut before = u64::MAX;
    while written.load(SeqCst) != before {
        before = written.load(SeqCst);
        std::thread::sleep(Duration::from_secs(2));
    }
    let waiting = writers.iter().filter(|w| !w.is_finished()).count();
    assert!(waiting > MANY / 2, "{waiting} wait: nothing was tried");
    let (answer, answers) = channel();
    let (mnt, whole) = (v.mnt.clone(), body.clone());
    let asking = std::thread::spawn(move || {
        let send = |what: &'static str| answer.send(what).unwrap();
        assert!(!fs::read(mnt.join(".storage/status")).unwrap().is_empty());
        send("/.storage");
        assert_eq!(fs::metadata(mnt.join("seen")).unwrap().len(), 4 << 20);
        send("stat");
        assert_eq!(fs::read_dir(mnt.join("dir")).unwrap().count(), MANY);
        send("a directory");
        let mut file = File::open(mnt.join("seen")).unwrap();
        // SAFETY: the descriptor is the file's.
        assert_eq!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert!(read == whole);
        send("a read");
    });
    let told: Vec<_> = (0..4).map(|_| answers.recv_timeout(Duration::from_secs(30))).collect();
    drop(hanging);
    assert_eq!(told, ["/.storage", "stat", "a directory", "a read"].map(Ok), "with {MANY} writers that wait");
    asking.join().unwrap();
    for writer in writers {
        writer.join().unwrap().unwrap();
    }
    for n in 0..MANY {
        assert!(fs::read(v.path(format!("dir/file-{n}"))).unwrap() == body, "file-{n}");
    }
    v.umount();
    v.check();
}

fn remove_all(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        fs::remove_file(entry.path()).unwrap();
    }
}

#[test]
fn segments_that_another_program_removes_below_a_mount_are_written_again_or_named() {
    let v = TestVault::init();
    v.mount();
    let segments = v.vault.join("segments");
    let data = vec![b'd'; 1_000_000];
    write_synced(&v.path("before"), &data).unwrap();
    remove_all(&segments);
    write_synced(&v.path("after"), &data).unwrap();
    let errors = || v.storage("errors");
    assert!(errors().contains("was removed or replaced by another program"), "{}", errors());
    eventually("written again", HEALING, || errors().contains("was written again from the open file"));
    // All that was acknowledged is on the disk, wherever it lay.
    v.kill9();
    v.mount();
    for name in ["before", "after"] {
        assert!(fs::read(v.path(name)).unwrap() == data, "{name}");
    }
    v.umount();
    v.check();
    // Of what is not open, there is nothing to write it again from.
    v.mount();
    remove_all(&segments);
    write_synced(&v.path("later"), &data).unwrap();
    let out = output(Command::new(strongroom()).arg("umount").arg(&v.mnt));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(12) && said.contains("segments/0000000000000001"), "{:?}: {said}", out.status);
    v.mount();
    let errors = v.storage("errors");
    assert!(errors.contains("missing from the vault") && errors.contains("segments/0000000000000001"), "{errors}");
    assert!(fs::read(v.path("later")).unwrap() == data && fs::read(v.path("before")).is_err());
    v.umount();
    assert_eq!(checked(&v), Some(9));
}

/// The code of `check`.
fn checked(v: &TestVault) -> Option<i32> {
    let mut check = Command::new(strongroom());
    check
        .env("STRONGROOM_STATE_DIR", v.outside("state"))
        .args(["check", "--password-file"])
        .arg(&v.password)
        .arg(&v.vault);
    output(&mut check).status.code()
}
