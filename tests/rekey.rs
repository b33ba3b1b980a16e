//! `strongroom rekey` with the real program on a vault that is mounted before, in between and after.
//!
//! Method: a vault with a passphrase, a key file and a recovery key is filled over several mounts; it is given a new key, killed
//! with SIGKILL as soon as some segments are under it, mounted and used as it is, and given to the same command again.
//! Promise: exit codes and sentences are those of docs/cli.md; every file is there at every stage; what was left out opens it no
//! more, and a header that was kept is refused.
//! The planted fault: a header of before, put back, must keep the vault from being mounted.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::stream::stream;
use common::{TestVault, eventually, strongroom};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const OK: i32 = 0;
const WRONG_KEY: i32 = 3;
const ROLLED_BACK: i32 = 17;
const EMERGENCY_NEEDED: i32 = 19;
const SLOT_REFUSED: i32 = 21;
const UNFINISHED: i32 = 22;

const FILE_BYTES: usize = 20 << 20;
const MOUNTS: u64 = 5;

fn command(vault: &TestVault, words: &[&str]) -> Command {
    let mut command = Command::new(strongroom());
    command
        .env("STRONGROOM_STATE_DIR", vault.outside("state"))
        .env_remove("CREDENTIALS_DIRECTORY")
        .stdin(Stdio::null());
    command.args(words).arg(&vault.vault);
    command
}

fn keyed(vault: &TestVault, words: &[&str]) -> Command {
    let mut command = command(vault, words);
    command.arg("--password-file").arg(&vault.password);
    command
}

#[track_caller]
fn ends_with(output: &Output, want: i32, sentence: &str) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(want), "{said}");
    assert!(said.contains(sentence), "'{sentence}' is not in: {said}");
    assert!(!said.contains("panicked"), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn secret(vault: &TestVault, name: &str, bytes: &[u8]) -> String {
    fs::write(vault.outside(name), bytes).unwrap();
    fs::set_permissions(vault.outside(name), fs::Permissions::from_mode(0o600)).unwrap();
    vault.outside(name).to_str().unwrap().to_owned()
}

fn status(vault: &TestVault) -> serde_json::Value {
    let said = ends_with(&command(vault, &["status", "--json"]).output().unwrap(), OK, "");
    serde_json::from_str(&said).unwrap()
}

fn body(n: u64) -> Vec<u8> {
    stream(n, 0, FILE_BYTES as u64)
}

fn holds_all(vault: &TestVault, files: u64) {
    vault.mount();
    for n in 0..files {
        assert!(fs::read(vault.path(format!("file-{n}"))).unwrap() == body(n), "file-{n}");
    }
    vault.umount();
    vault.check();
}

/// Segments whose first group names a key.
fn under_a_named_key(vault: &TestVault) -> usize {
    let first = |path: &Path| fs::read(path).ok().and_then(|bytes| bytes.get(4..6).map(<[u8]>::to_vec));
    vault.segments().iter().filter(|path| path.extension().is_none() && first(path) == Some(vec![3, 0])).count()
}

#[test]
fn a_vault_is_used_before_in_the_middle_and_after_and_what_was_left_out_opens_it_no_more() {
    let vault = TestVault::init();
    let key = secret(&vault, "key", &[7; 40]);
    let thief = secret(&vault, "thief", &[8; 40]);
    for file in [&key, &thief] {
        ends_with(
            &keyed(&vault, &["key", "add", "--new-key-file", file, "--label", "a key"]).output().unwrap(),
            OK,
            "",
        );
        // One label is one slot's.
        ends_with(&command(&vault, &["key", "list"]).output().unwrap(), OK, "");
        if file == &key {
            ends_with(
                &keyed(&vault, &["key", "change", "--slot", "a key", "--label", "mine", "--new-key-file", file])
                    .output()
                    .unwrap(),
                OK,
                "",
            );
        }
    }
    for n in 0..MOUNTS {
        vault.mount();
        fs::write(vault.path(format!("file-{n}")), body(n)).unwrap();
        if n == 1 {
            // What the slots say is said before the daemon is asked; and there is nothing to go on with.
            ends_with(&keyed(&vault, &["rekey"]).output().unwrap(), SLOT_REFUSED, "--drop-slots");
            ends_with(&keyed(&vault, &["rekey", "--resume"]).output().unwrap(), OK, "");
        }
        vault.umount();
    }
    let kept = ["vault.toml", "vault.toml.copy"].map(|name| fs::read(vault.vault.join(name)).unwrap());

    // What cannot be is refused, without a trace.
    ends_with(&command(&vault, &["rekey", "--password-file", &thief]).output().unwrap(), WRONG_KEY, "");
    let refused = keyed(&vault, &["rekey", "--also-key-file", &key]).output().unwrap();
    let recovery = status(&vault)["key_slots"] == 4;
    ends_with(&refused, SLOT_REFUSED, "'a key'");
    ends_with(&refused, SLOT_REFUSED, "--drop-slots");
    ends_with(&keyed(&vault, &["rekey", "--resume"]).output().unwrap(), OK, "");
    assert_eq!(status(&vault)["key"], 0);
    assert_eq!(status(&vault)["rekey_unfinished"], false);

    // Killed in the middle.
    let out = fs::File::create(vault.outside("rekey.out")).unwrap();
    let mut begun = keyed(&vault, &["rekey", "--also-key-file", &key, "--drop-slots"]).stdout(out).spawn().unwrap();
    eventually("some segments are under the new key", Duration::from_secs(120), || under_a_named_key(&vault) >= 2);
    begun.kill().unwrap();
    begun.wait().unwrap();
    let said = fs::read_to_string(vault.outside("rekey.out")).unwrap();
    assert!(said.contains("number 1") && said.contains("opens it no more: ") && said.contains("'a key'"), "{said}");
    assert_eq!(said.contains("Recovery key, shown this once"), recovery, "{said}");
    let shown = status(&vault);
    assert!(shown["rekey_unfinished"] == true && shown["key"] == 1, "{shown}");
    let left = shown["rekey_left_bytes"].as_u64().unwrap();
    assert!(left > 0 && left < FILE_BYTES as u64 * MOUNTS, "{left}");
    let shown = ends_with(&command(&vault, &["status"]).output().unwrap(), OK, "");
    assert!(shown.contains("rekey            unfinished: "), "{shown}");
    holds_all(&vault, MOUNTS);
    vault.mount();
    let counted = || {
        let stats: serde_json::Value = serde_json::from_str(&vault.storage("stats.json")).unwrap();
        stats["rekey_left_bytes"].as_u64()
    };
    assert!(vault.storage("status").contains("unfinished"), "{}", vault.storage("status"));
    // Counted in the background: nothing is said before. Not waited for, since the mount goes on with the rekey meanwhile.
    if let Some(now) = counted() {
        assert!(now <= left, "what the mount writes is under the new key: {now} of {left}");
    }
    fs::write(vault.path(format!("file-{MOUNTS}")), body(MOUNTS)).unwrap();
    vault.umount();
    let stolen = command(&vault, &["check", "--key-file", &thief]).output().unwrap();
    ends_with(&stolen, WRONG_KEY, "");

    // And on.
    let done = keyed(&vault, &["rekey", "--json"]).output().unwrap();
    let told: serde_json::Value = serde_json::from_str(&ends_with(&done, OK, "")).unwrap();
    assert!(told["finished"] == true && told["ok"] == true && told["segments"].as_u64() > Some(0), "{told}");
    assert_eq!((&status(&vault)["rekey_unfinished"], &status(&vault)["rekey_left_bytes"]), (&false.into(), &0.into()));
    holds_all(&vault, MOUNTS + 1);
    ends_with(&command(&vault, &["check", "--key-file", &key]).output().unwrap(), OK, "");
    vault.mount();
    assert!(!vault.storage("status").contains("unfinished"));
    vault.umount();

    // A header that was kept.
    let good = fs::read(vault.vault.join("vault.toml")).unwrap();
    for (name, text) in ["vault.toml", "vault.toml.copy"].iter().zip(&kept) {
        fs::write(vault.vault.join(name), text).unwrap();
    }
    let (code, said) = vault.try_mount().unwrap_err();
    assert!(code == Some(ROLLED_BACK) && said.contains("before a rekey"), "{code:?} {said}");
    let stolen = command(&vault, &["check", "--key-file", &thief]).output().unwrap();
    ends_with(&stolen, ROLLED_BACK, "before a rekey");
    fs::write(vault.vault.join("vault.toml"), good).unwrap();
    holds_all(&vault, MOUNTS + 1);
}

#[test]
fn damage_is_named_by_its_file_and_keeps_the_old_key_until_the_file_is_gone() {
    let vault = TestVault::init();
    vault.mount();
    for name in ["whole", "hurt"] {
        fs::write(vault.path(name), stream(3, 0, 300_000)).unwrap();
        fs::File::open(vault.path(name)).unwrap().sync_all().unwrap();
    }
    vault.umount();
    let path = vault.segments().pop().unwrap();
    let mut image = fs::read(&path).unwrap();
    let at = image.len() * 3 / 4;
    image[at] ^= 1;
    fs::write(&path, image).unwrap();
    let report = keyed(&vault, &["rekey", "--drop-slots", "--json"]).output().unwrap();
    let said = ends_with(&report, UNFINISHED, "");
    let last: serde_json::Value =
        serde_json::Deserializer::from_str(&said).into_iter().last().expect("two objects").unwrap();
    assert!(
        last["finished"] == false && last["damaged"][0]["path"] == "/hurt" && last["stay"][0]["segment"] == 1,
        "{last}"
    );
    let said = ends_with(&keyed(&vault, &["rekey"]).output().unwrap(), UNFINISHED, "");
    assert!(said.contains("/hurt: bytes ") && said.contains("--leave-out-damage"), "{said}");
    vault.mount();
    assert!(fs::read(vault.path("hurt")).is_err());
    assert!(fs::read(vault.path("whole")).unwrap() == stream(3, 0, 300_000));
    fs::remove_file(vault.path("hurt")).unwrap();
    vault.umount();
    let said = ends_with(&keyed(&vault, &["rekey", "--resume"]).output().unwrap(), OK, "");
    assert!(said.contains("no old key opens anything in it"), "{said}");
    vault.mount();
    assert!(fs::read(vault.path("whole")).unwrap() == stream(3, 0, 300_000));
    vault.umount();
    vault.check();
}

#[test]
fn what_may_lie_elsewhere_is_to_be_brought_home_first() {
    let mut vault = TestVault::init();
    let elsewhere = vault.outside("emergency");
    fs::create_dir(&elsewhere).unwrap();
    vault.options = vec![format!("emergency-dir={}", elsewhere.display())];
    vault.mount();
    fs::write(vault.path("file"), stream(4, 0, 300_000)).unwrap();
    fs::File::open(vault.path("file")).unwrap().sync_all().unwrap();
    vault.kill9();
    let refused = keyed(&vault, &["rekey", "--drop-slots"]).output().unwrap();
    ends_with(&refused, EMERGENCY_NEEDED, "bring it home first with strongroom recover");
    assert_eq!(status(&vault)["key"], 0);
    ends_with(&keyed(&vault, &["recover"]).output().unwrap(), OK, "");
    ends_with(&keyed(&vault, &["rekey", "--drop-slots"]).output().unwrap(), OK, "");
    assert_eq!(status(&vault)["key"], 1);
    vault.mount();
    assert!(fs::read(vault.path("file")).unwrap() == stream(4, 0, 300_000));
    vault.umount();
    vault.check();
}
