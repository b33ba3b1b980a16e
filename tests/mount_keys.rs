//! Attacks `strongroom key` on a vault that is mounted, with the real program: while files are written, by two at once, with older
//! headers put back, and where nobody is to take the change.
//!
//! Method: each test mounts a vault of its own that a key file opens, changes its slots as a person would, unmounts, and asks what
//! opens it. Promise: what docs/cli.md says of `key`: 0 means that the new slots are in force and at rest, mounted or not.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::{TestVault, output, strongroom};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

const OK: i32 = 0;
const WRONG_KEY: i32 = 3;
const IN_USE: i32 = 5;
const ROLLED_BACK: i32 = 17;
const SLOT_REFUSED: i32 = 21;
/// What it came to is its answer then.
const UNFINISHED: i32 = 22;
const HEADERS: [&str; 2] = ["vault.toml", "vault.toml.copy"];

/// A vault that the key file `password` opens.
fn keyed() -> TestVault {
    let v = TestVault::init_keyed();
    fs::set_permissions(&v.password, fs::Permissions::from_mode(0o600)).unwrap();
    v
}

/// A key file beside the vault, made if it is not there.
fn key(v: &TestVault, n: u8) -> PathBuf {
    let path = v.outside(&format!("key-{n}"));
    if !path.exists() {
        fs::write(&path, [n; 40]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    path
}

/// `strongroom` with words, then the key that opens the vault, then the rest.
fn command(v: &TestVault, words: &[&str], opened_with: &PathBuf) -> Command {
    let mut c = Command::new(strongroom());
    c.env("STRONGROOM_STATE_DIR", v.outside("state"));
    c.args(words).arg(&v.vault).arg("--key-file").arg(opened_with);
    c
}

fn add(v: &TestVault, opened_with: &PathBuf, new: &PathBuf) -> Output {
    output(command(v, &["key", "add"], opened_with).arg("--new-key-file").arg(new))
}

#[track_caller]
fn ends_with(out: &Output, want: i32, sentence: &str) {
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(want), "{said}");
    assert!(said.contains(sentence), "'{sentence}' is not in: {said}");
    assert!([OK, UNFINISHED].contains(&want) || said.lines().count() == 1, "one sentence: {said}");
}

/// The code that `check` ends with, opened with this.
fn opens(v: &TestVault, with: &PathBuf) -> i32 {
    output(&mut command(v, &["check", "--read-data"], with)).status.code().unwrap()
}

fn headers(v: &TestVault) -> [Vec<u8>; 2] {
    HEADERS.map(|name| fs::read(v.vault.join(name)).unwrap())
}

fn put_back(v: &TestVault, texts: &[Vec<u8>; 2]) {
    HEADERS.iter().zip(texts).for_each(|(name, text)| fs::write(v.vault.join(name), text).unwrap());
}

fn errors(v: &TestVault) -> String {
    v.storage("errors")
}

/// Ends the writer, also where the test fails.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn slots_change_while_files_are_written_and_what_was_removed_opens_it_no_more() {
    let v = &keyed();
    v.mount();
    let before = headers(v);
    let (stop, synced) = (AtomicBool::new(false), AtomicUsize::new(0));
    let stopping = Stopping(&stop);
    let body = |n: usize| vec![n as u8; 30_000 + n];
    let (stop, synced) = (&stop, &synced);
    std::thread::scope(|scope| {
        let stopping = stopping;
        scope.spawn(move || {
            while !stop.load(SeqCst) {
                let n = synced.load(SeqCst);
                let mut file = fs::File::create(v.path(format!("{n}"))).unwrap();
                file.write_all(&body(n)).unwrap();
                file.sync_all().unwrap();
                synced.store(n + 1, SeqCst);
            }
        });
        let more = || {
            let so_far = synced.load(SeqCst);
            common::eventually("files are written on", Duration::from_secs(30), || synced.load(SeqCst) > so_far + 5);
        };
        more();
        ends_with(&add(v, &v.password, &key(v, 1)), OK, "");
        more();
        let drawn =
            command(v, &["key", "add", "--json", "--new-recovery-key", "--label", "paper"], &key(v, 1)).output();
        let drawn: serde_json::Value = serde_json::from_slice(&drawn.unwrap().stdout).unwrap();
        assert_eq!((&drawn["ok"], &drawn["slot"]), (&true.into(), &4.into()));
        fs::write(v.outside("paper"), drawn["recovery_key"].as_str().unwrap()).unwrap();
        more();
        let change = output(command(v, &["key", "change"], &key(v, 1)).arg("--new-key-file").arg(key(v, 2)));
        ends_with(&change, OK, "");
        assert!(String::from_utf8_lossy(&change.stdout).contains("key slot 3 is now for a key file"));
        // The first: what the vault was mounted with. The mount works on.
        let removed = output(command(v, &["key", "remove", "--slot", "1"], &key(v, 2)).arg("--json"));
        ends_with(&removed, OK, "");
        more();
        drop(stopping);
    });
    assert_eq!(errors(v), "");
    ends_with(&add(v, &v.password, &key(v, 3)), WRONG_KEY, "wrong");
    v.umount();
    assert_eq!([opens(v, &v.password), opens(v, &key(v, 1))], [WRONG_KEY, WRONG_KEY]);
    assert_eq!(opens(v, &key(v, 2)), OK);
    let mut paper = Command::new(strongroom());
    paper.env("STRONGROOM_STATE_DIR", v.outside("state")).arg("check").arg(&v.vault).arg("--recovery-key-file");
    assert_eq!(output(paper.arg(v.outside("paper"))).status.code(), Some(OK));
    // The header of before, put back.
    let newest = headers(v);
    put_back(v, &before);
    let (code, said) = v.try_mount().unwrap_err();
    assert!(code == Some(ROLLED_BACK) && said.contains("revision 0, where the vault knows of 4"), "{code:?}: {said}");
    put_back(v, &newest);
    fs::copy(key(v, 2), &v.password).unwrap();
    v.mount();
    for n in 0..synced.load(SeqCst) {
        assert_eq!(fs::read(v.path(format!("{n}"))).unwrap(), body(n), "{n}");
    }
    v.umount();
    v.check();
}

#[test]
fn two_at_once_lose_nothing_and_a_header_of_32_slots_passes_through() {
    let mut v = keyed();
    // Under a name that does not tell the vault.
    v.options = vec!["fsname=something".to_owned()];
    v.mount();
    for n in (0..30).step_by(2) {
        let keys = [key(&v, 100 + n), key(&v, 101 + n)];
        let done: Vec<Output> = std::thread::scope(|scope| {
            let both = keys.each_ref().map(|new| scope.spawn(|| add(&v, &v.password, new)));
            both.map(|one| one.join().unwrap()).into()
        });
        done.iter().for_each(|one| ends_with(one, OK, ""));
    }
    ends_with(&add(&v, &v.password, &key(&v, 1)), SLOT_REFUSED, "at most 32");
    assert!(headers(&v)[0].len() > 8192, "more than two pages");
    assert_eq!(headers(&v)[0], headers(&v)[1]);
    v.umount();
    for n in 0..30 {
        let removed = output(&mut command(&v, &["key", "remove", "--itself"], &key(&v, 100 + n)));
        ends_with(&removed, OK, "");
    }
    assert_eq!(opens(&v, &v.password), OK);
}

#[test]
fn where_nobody_is_to_take_the_change_nothing_is_changed() {
    let mut v = keyed();
    v.options = vec!["ro".to_owned()];
    v.mount();
    let before = headers(&v);
    ends_with(&add(&v, &v.password, &key(&v, 1)), IN_USE, "mounted for reading only: unmount it");
    v.umount();
    v.options.clear();
    v.mount();
    // A header of another vault in its place, which the same key opens.
    let other = keyed();
    put_back(&v, &headers(&other));
    ends_with(&add(&v, &v.password, &key(&v, 1)), ROLLED_BACK, "not of the vault that is mounted");
    assert!(errors(&v).contains("a header was refused: it is of another vault"), "{}", errors(&v));
    // Its own, in an order that is none.
    let order = |text: &[u8]| {
        let control = v.path(".storage/control");
        let mut file = fs::OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(control).unwrap();
        file.write(text).unwrap_err().raw_os_error()
    };
    assert_eq!(order(b"key header\nformat = 4\n"), Some(libc::EINVAL));
    assert_eq!(order(&[b"key header\n", &before[0][..]].concat()), Some(libc::ESTALE));
    assert_eq!(errors(&v).lines().count(), 2, "who was overtaken is told, and nothing is wrong: {}", errors(&v));
    // What an order finds in the place of the vault's own header, it has put right.
    assert_eq!(headers(&v), before);
    fs::write(v.path("x"), "still at work").unwrap();
    ends_with(&add(&v, &v.password, &key(&v, 1)), OK, "");
    v.umount();
    assert_eq!([opens(&v, &v.password), opens(&v, &key(&v, 1))], [OK, OK]);
}

#[test]
fn the_slots_of_an_exported_header_come_back_to_the_mounted_vault() {
    let v = keyed();
    v.mount();
    let kept = v.outside("kept");
    let mut export = Command::new(strongroom());
    ends_with(&output(export.args(["key", "export-header"]).arg(&v.vault).arg(&kept)), OK, "");
    ends_with(&output(&mut command(&v, &["key", "remove", "--slot", "recovery"], &v.password)), OK, "");
    ends_with(&add(&v, &v.password, &key(&v, 1)), OK, "");
    let import = |with: &PathBuf| {
        let mut c = Command::new(strongroom());
        c.env("STRONGROOM_STATE_DIR", v.outside("state")).args(["key", "import-header", "--json"]);
        output(c.arg(&v.vault).arg(&kept).arg("--key-file").arg(with))
    };
    ends_with(&import(&key(&v, 1)), WRONG_KEY, "wrong");
    let done = import(&v.password);
    ends_with(&done, OK, "");
    let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&json["back"][0]["label"], &json["gone"][0]["kind"]), (&"recovery".into(), &"key-file".into()));
    v.umount();
    assert_eq!([opens(&v, &v.password), opens(&v, &key(&v, 1))], [OK, WRONG_KEY]);
}

#[test]
fn a_mounted_vault_gets_another_master_key_while_files_are_written_and_the_rest_follows() {
    let mut v = keyed();
    // The rest waits.
    v.options.push("clean=off".to_owned());
    let v = &v;
    v.mount();
    fs::write(v.path("early"), vec![7; 300_000]).unwrap();
    ends_with(&add(v, &v.password, &key(v, 1)), OK, "");
    let before = headers(v);
    let rekey = |with: &PathBuf, more: &[&str]| output(command(v, &["rekey"], with).args(more));
    ends_with(&rekey(&v.password, &[]), SLOT_REFUSED, "say --drop-slots");
    assert_eq!(headers(v), before);
    let (stop, synced) = (AtomicBool::new(false), AtomicUsize::new(0));
    let stopping = Stopping(&stop);
    let (stop, synced) = (&stop, &synced);
    std::thread::scope(|scope| {
        let stopping = stopping;
        scope.spawn(move || {
            while !stop.load(SeqCst) {
                let n = synced.load(SeqCst);
                let mut file = fs::File::create(v.path(format!("{n}"))).unwrap();
                file.write_all(&vec![n as u8; 20_000 + n]).unwrap();
                file.sync_all().unwrap();
                assert_eq!(fs::read(v.path("early")).unwrap(), vec![7; 300_000]);
                synced.store(n + 1, SeqCst);
            }
        });
        let more = || {
            let so_far = synced.load(SeqCst);
            common::eventually("files are written on", Duration::from_secs(30), || synced.load(SeqCst) > so_far + 5);
        };
        more();
        let done = rekey(&v.password, &["--drop-slots", "--json"]);
        ends_with(&done, UNFINISHED, "");
        let lines = serde_json::Deserializer::from_slice(&done.stdout).into_iter::<serde_json::Value>();
        let [begun, end] = &lines.map(Result::unwrap).collect::<Vec<_>>()[..] else { panic!("{done:?}") };
        assert_eq!((&begun["key"], &begun["dropped"]), (&1.into(), &serde_json::json!([3])));
        assert_eq!((&end["ok"], &end["finished"], &end["key"]), (&false.into(), &false.into(), &1.into()));
        fs::write(v.outside("paper"), begun["recovery_key"].as_str().unwrap()).unwrap();
        more();
        // Slots change under the new key as ever; and what is left of the old one waits.
        ends_with(&add(v, &v.password, &key(v, 2)), OK, "");
        ends_with(&rekey(&v.password, &[]), UNFINISHED, "in the background of the mount");
        ends_with(&rekey(&v.password, &["--resume"]), UNFINISHED, "in the background of the mount");
        more();
        drop(stopping);
    });
    assert_eq!(errors(v), "");
    assert!(v.storage("status").contains("under an old key"), "{}", v.storage("status"));
    v.umount();
    v.check();
    assert_eq!([opens(v, &key(v, 1)), opens(v, &key(v, 2)), opens(v, &v.password)], [WRONG_KEY, OK, OK]);
    let mut paper = Command::new(strongroom());
    paper.env("STRONGROOM_STATE_DIR", v.outside("state")).arg("check").arg(&v.vault).arg("--recovery-key-file");
    assert_eq!(output(paper.arg(v.outside("paper"))).status.code(), Some(OK));
    // The header of before opens nothing.
    let newest = headers(v);
    put_back(v, &before);
    let (code, said) = v.try_mount().unwrap_err();
    assert!(code == Some(ROLLED_BACK) && said.contains("before a rekey"), "{code:?}: {said}");
    put_back(v, &newest);
    ends_with(&rekey(&v.password, &["--resume"]), OK, "");
    v.mount();
    for n in 0..synced.load(SeqCst) {
        assert_eq!(fs::read(v.path(format!("{n}"))).unwrap(), vec![n as u8; 20_000 + n], "{n}");
    }
    v.umount();
    v.check();
}

#[test]
fn what_lies_under_the_old_key_is_sealed_anew_beside_whatever_goes_on() {
    let v = &keyed();
    v.mount();
    for n in 0..20 {
        fs::write(v.path(format!("{n}")), vec![n; 100_000]).unwrap();
    }
    let rekey = |more: &[&str]| output(command(v, &["rekey"], &v.password).args(more));
    ends_with(&rekey(&["--resume"]), OK, "");
    let done = rekey(&["--drop-slots", "--no-recovery-key"]);
    ends_with(&done, UNFINISHED, "");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.contains("in the background"), "{said}");
    common::eventually("nothing is under the old key", Duration::from_secs(60), || {
        fs::write(v.path("beside"), "it goes on").unwrap();
        v.storage("history").contains("nothing is under an old key")
    });
    ends_with(&rekey(&["--resume"]), OK, "");
    assert_eq!(errors(v), "");
    for n in 0..20 {
        assert!(fs::read(v.path(format!("{n}"))).unwrap() == vec![n; 100_000], "{n}");
    }
    v.umount();
    v.check();
    let shown = output(Command::new(strongroom()).args(["status", "--json"]).arg(&v.vault));
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&shown["key"], &shown["rekey_unfinished"]), (&1.into(), &false.into()), "{shown}");
}
