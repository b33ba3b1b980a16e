//! Attacks the command line with the real program: exit codes, sentences, and what is left behind.
//!
//! Method: each test makes a vault in a temporary directory of its own, mounts it with the real binary through /dev/fuse,
//! and looks at it as a person would. Promise: what docs/cli.md says of `init`, `mount`, `umount`, `status`, `check`.
//! Without /dev/fuse these tests fail and say so: a mount that was not tried is not known to work.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_strongroom");
const OK: i32 = 0;
const UNEXPECTED: i32 = 1;
const USAGE: i32 = 2;
const WRONG_KEY: i32 = 3;
const NOT_A_VAULT: i32 = 4;
const IN_USE: i32 = 5;
const MOUNTPOINT: i32 = 6;
const NOT_EMPTY: i32 = 7;
const DAMAGED: i32 = 8;
const FINDINGS: i32 = 9;
const BUSY: i32 = 11;
const FLUSH_FAILED: i32 = 12;
const IO: i32 = 13;
const NO_KEY: i32 = 15;
const NOT_MOUNTED: i32 = 16;
const ROLLED_BACK: i32 = 17;
const MENDED: i32 = 18;
/// Longer than anything here takes on a machine that is shared and slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory with a vault, its passphrase and a mountpoint; unmounted and removed when dropped.
struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    /// Everything but the vault.
    fn bare() -> Desk {
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse, and it is not there");
        let desk = Desk { dir: tempfile::tempdir().expect("a temporary directory") };
        desk.secret("pass", b"correct horse\n");
        fs::create_dir(desk.mnt()).expect("a mountpoint");
        desk
    }

    fn new() -> Desk {
        let desk = Desk::bare();
        // The floor of the passphrase's cost: these tests open vaults often.
        ok(&desk.run(&["init", "--argon2", "65536,3,4", "--password-file", "pass", "vault"]));
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    fn secret(&self, name: &str, bytes: &[u8]) {
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(self.path(name)).expect("a secret");
        file.write_all(bytes).expect("a secret's bytes");
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(words).current_dir(self.dir.path()).stdin(Stdio::null()).env_remove("CREDENTIALS_DIRECTORY");
        // What it remembers of a vault goes when the vault does.
        command.env("STRONGROOM_STATE_DIR", self.path("state"));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the program runs")
    }

    fn mount(&self) -> Output {
        self.run(&["mount", "--password-file", "pass", "vault", "mnt"])
    }

    fn is_mounted(&self) -> bool {
        let mnt = self.mnt().canonicalize().unwrap_or_else(|_| self.mnt());
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the kernel's list of mounts");
        mounts.lines().any(|line| line.split(' ').nth(4) == mnt.to_str())
    }

    /// The daemon's process, as the mount itself tells it.
    fn daemon(&self) -> i32 {
        let config = fs::read_to_string(self.mnt().join(".storage/config")).expect("the mount's settings");
        let line = config.lines().find(|l| l.trim_start().starts_with("pid")).expect("the settings name the process");
        let digits: String = line.chars().filter(char::is_ascii_digit).collect();
        digits.parse().expect("a process number")
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if self.is_mounted() {
            let _ = Command::new("umount").arg("-l").arg(self.mnt()).output();
            let _ = Command::new("fusermount3").arg("-uz").arg(self.mnt()).output();
        }
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn ok(output: &Output) {
    ends_with(output, OK, "");
}

/// Checks the code, and that stderr is one sentence (or nothing) with this in it.
#[track_caller]
fn ends_with(output: &Output, want: i32, sentence: &str) {
    let said = stderr(output);
    assert_eq!(code(output), want, "{said}");
    assert!(said.contains(sentence), "'{sentence}' is not in: {said}");
    if want != OK {
        assert!(!said.trim().is_empty(), "a failure is said");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "still waiting: {what}");
        sleep(Duration::from_millis(20));
    }
}

fn lives(pid: i32) -> bool {
    // A process that has ended but is not yet reaped by its parent is `Z`.
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'),
        Err(_) => false,
    }
}

fn kill(signal: i32, pid: i32) {
    // SAFETY: a plain call with two numbers; the process is one that this test started.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("one JSON value on stdout")
}

#[test]
fn init_refuses_a_directory_with_something_in_it() {
    let desk = Desk::bare();
    fs::create_dir(desk.path("vault")).unwrap();
    fs::write(desk.path("vault/letter"), "dear").unwrap();
    ends_with(&desk.run(&["init", "--password-file", "pass", "vault"]), NOT_EMPTY, "not empty");
    assert_eq!(fs::read_dir(desk.path("vault")).unwrap().count(), 1, "it is left as it was");
}

#[test]
fn init_refuses_a_vault_and_tolerates_lost_and_found() {
    let desk = Desk::bare();
    fs::create_dir_all(desk.path("vault/lost+found")).unwrap();
    let init = ["init", "--argon2", "65536,3,4", "--password-file", "pass", "--json", "vault"];
    let made = desk.run(&init);
    ok(&made);
    assert_eq!((json(&made)["ok"].as_bool(), json(&made)["quota_bytes"].is_null()), (Some(true), true));
    let again = desk.run(&init);
    ends_with(&again, NOT_EMPTY, "already");
    assert_eq!(json(&again)["exit"], NOT_EMPTY);
    ok(&desk.mount());
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn init_without_a_key_leaves_nothing_behind() {
    let desk = Desk::bare();
    desk.secret("empty", b"\n");
    ends_with(&desk.run(&["init", "--password-file", "empty", "vault"]), NO_KEY, "empty");
    ends_with(&desk.run(&["init", "--password-file", "absent", "vault"]), NO_KEY, "absent");
    assert!(!desk.path("vault").exists());
    ends_with(&desk.run(&["init", "--password", "hunter2", "vault"]), USAGE, "--password");
    ends_with(&desk.run(&["init", "--quota", "10X", "--password-file", "pass", "vault"]), USAGE, "10X");
}

#[test]
fn init_that_is_interrupted_at_its_question_leaves_nothing_behind() {
    let desk = Desk::bare();
    let mut init = desk.command(&["init", "vault"]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let pid = init.id();
    // Asleep: it waits for the passphrase on standard input.
    wait_until("init asks", || {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .unwrap()
            .rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('S')
    });
    kill(libc::SIGINT, pid as i32);
    assert!(!init.wait().unwrap().success());
    assert!(!desk.path("vault").exists());
}

#[test]
fn a_path_that_cannot_be_used_is_told_with_its_purpose_and_a_way_out() {
    let desk = Desk::new();
    let at = desk.dir.path().display();
    ends_with(&desk.run(&["init", "none/vault"]), IO, "none/vault cannot be made: none does not exist. Make it first");
    let mount = |options: &[&str]| desk.run(&[&["mount", "vault", "mnt"], options].concat());
    let missing = |what: &str, file: &str| format!("the {what} {file} does not exist");
    ends_with(&mount(&["--password-file", "none"]), NO_KEY, &missing("passphrase file", "none"));
    ends_with(&mount(&["--key-file", "none"]), NO_KEY, &missing("key file", "none"));
    ends_with(&mount(&["--password-file", "mnt"]), NO_KEY, "the passphrase file mnt is a directory");
    let opened = |option: &str| mount(&["--password-file", "pass", "-o", option]);
    let wanted = format!("emergency directory {at}/none: it does not exist");
    ends_with(&opened(&format!("emergency-dir={at}/none")), IO, &wanted);
    ends_with(&opened("log=none/log"), IO, "none/log cannot be made: its directory");
    // The vault has no slot of a key file: all the same the rule is told.
    desk.secret("short", &[7; 31]);
    ends_with(&mount(&["--key-file", "short"]), NO_KEY, "has 31 bytes; at least 32");
    desk.secret("other", &[7; 33]);
    ends_with(&mount(&["--key-file", "other"]), WRONG_KEY, "this one has 33 bytes, and every byte");
}

#[test]
fn a_wrong_passphrase_and_a_missing_vault_have_their_codes() {
    let desk = Desk::new();
    desk.secret("wrong", b"battery staple\n");
    let mount = |key: &str, vault: &str| desk.run(&["mount", "--password-file", key, vault, "mnt"]);
    ends_with(&mount("wrong", "vault"), WRONG_KEY, "vault");
    ends_with(&mount("pass", "nowhere"), NOT_A_VAULT, "nowhere");
    fs::create_dir(desk.path("plain")).unwrap();
    ends_with(&mount("pass", "plain"), NOT_A_VAULT, "plain");
    ends_with(&desk.run(&["check", "--password-file", "wrong", "vault"]), WRONG_KEY, "vault");
    assert!(!desk.is_mounted());
}

#[test]
fn what_was_written_is_there_after_the_round_trip() {
    let desk = Desk::new();
    ok(&desk.mount());
    let body: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    fs::create_dir(desk.mnt().join("d")).unwrap();
    fs::write(desk.mnt().join("d/body"), &body).unwrap();
    let daemon = desk.daemon();
    let status = desk.run(&["status", "mnt"]);
    ok(&status);
    assert!(!status.stdout.is_empty());
    json(&desk.run(&["status", "--json", "mnt"]));
    ok(&desk.run(&["umount", "mnt"]));
    assert!(!lives(daemon), "umount returns after the daemon's end");
    assert_eq!(fs::read_dir(desk.mnt()).unwrap().count(), 0);
    let checked = desk.run(&["check", "--read-data", "--json", "--password-file", "pass", "vault"]);
    ok(&checked);
    assert_eq!(json(&checked)["findings"], serde_json::json!([]));
    ok(&desk.mount());
    assert_eq!(fs::read(desk.mnt().join("d/body")).unwrap(), body);
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn check_reads_a_share_and_refuses_what_is_none() {
    let desk = Desk::new();
    ok(&desk.mount());
    fs::write(desk.mnt().join("x"), vec![7; 100_000]).unwrap();
    ok(&desk.run(&["umount", "mnt"]));
    let check = |share: &str| desk.run(&["check", "--json", share, "--password-file", "pass", "vault"]);
    for (share, said) in [("--read-data", "all"), ("--read-data=2/3", "2/3"), ("--read-data=50%", "50%")] {
        let checked = check(share);
        ok(&checked);
        assert_eq!((&json(&checked)["share"], &json(&checked)["read_data"]), (&said.into(), &true.into()));
    }
    for share in ["4/3", "0%", "some", ""] {
        ends_with(&check(&format!("--read-data={share}")), USAGE, share);
    }
    fs::remove_dir_all(desk.path("vault/index")).unwrap();
    fs::create_dir(desk.path("vault/index")).unwrap();
    let checked = check("--read-data");
    assert_eq!(checked.status.code(), Some(FINDINGS));
    let finding = &json(&checked)["findings"][0];
    assert_eq!(finding["kind"], "index-lost");
    assert_eq!(finding["path"], serde_json::Value::Null);
    assert!(finding["mend"].as_str().unwrap().starts_with("strongroom check --rebuild /"), "{finding}");
}

#[test]
fn scrub_finds_a_turned_bit_with_and_without_the_key() {
    let desk = Desk::new();
    ok(&desk.mount());
    let body: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(i.wrapping_mul(2_654_435_761)) >> 13) as u8).collect();
    fs::write(desk.mnt().join("film"), &body).unwrap();
    ends_with(&desk.run(&["scrub", "--no-key", "vault"]), IN_USE, "in use");
    ok(&desk.run(&["umount", "mnt"]));
    let keyless = || desk.run(&["scrub", "--no-key", "--json", "vault"]);
    let keyed = || desk.run(&["scrub", "--json", "--password-file", "pass", "vault"]);
    for (scrubbed, key) in [(keyless(), false), (keyed(), true)] {
        ok(&scrubbed);
        let said = json(&scrubbed);
        assert_eq!((&said["ok"], &said["key"], &said["damage"]), (&true.into(), &key.into(), &serde_json::json!([])));
        assert!(said["groups"].as_u64() > Some(0) && said["bytes"].as_u64() > Some(300_000), "{said}");
    }
    let segment = desk.path("vault/segments/0000000000000001");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[150_000] ^= 4;
    fs::write(&segment, bytes).unwrap();
    for scrubbed in [keyless(), keyed()] {
        assert_eq!(scrubbed.status.code(), Some(FINDINGS));
        let damage = json(&scrubbed)["damage"][0].clone();
        assert_eq!((&damage["kind"], &damage["file"]), (&"blocks-rotten".into(), &"segments/0000000000000001".into()));
        assert_eq!((&damage["from_bytes"], &damage["to_bytes"]), (&147_456.into(), &151_552.into()));
    }
    assert_eq!(json(&keyed())["findings"][0]["path"], "/film");
    ends_with(&desk.run(&["scrub", "--no-key", "mnt"]), NOT_A_VAULT, "mnt");
}

#[test]
fn what_check_advises_helps() {
    let desk = Desk::new();
    ok(&desk.mount());
    let body: Vec<u8> = (0..900_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    fs::write(desk.mnt().join("x"), &body).unwrap();
    ok(&desk.run(&["umount", "mnt"]));
    let check = |more: &[&str]| {
        let out = desk.run(&[&["check", "--json", "--password-file", "pass", "vault"], more].concat());
        (out.status.code().unwrap(), json(&out))
    };
    let kinds = |value: &serde_json::Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|f| f["kind"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(check(&["--repair"]).0, OK, "nothing to mend");
    assert_eq!(check(&["--emergency-dir", "none"]).0, OK);
    // A root and the index: mended, and said to be.
    fs::write(desk.path("vault/root.b"), "rubble").unwrap();
    fs::remove_dir_all(desk.path("vault/index")).unwrap();
    fs::create_dir(desk.path("vault/index")).unwrap();
    let (code, told) = check(&[]);
    assert_eq!((code, kinds(&told["findings"])), (FINDINGS, vec!["copy-spoiled".into(), "index-lost".into()]));
    let (code, told) = check(&["--repair"]);
    assert_eq!((code, kinds(&told["mended"])), (MENDED, vec!["copy-spoiled".into(), "index-lost".into()]));
    assert_eq!((&told["ok"], &told["findings"]), (&true.into(), &serde_json::json!([])));
    assert_eq!(check(&["--read-data"]).0, OK);
    // Both roots: refused by a sentence whose command helps.
    for root in ["vault/root.a", "vault/root.b"] {
        fs::remove_file(desk.path(root)).unwrap();
    }
    ends_with(&desk.mount(), DAMAGED, "strongroom check --repair");
    assert_eq!(check(&["--repair"]).0, MENDED);
    assert_eq!(check(&["--rebuild"]).0, OK);
    // A segment with data: lost, and named by path, whatever is done; with its copy put back it is there again.
    let segment = desk.path("vault/segments/0000000000000001");
    fs::copy(&segment, desk.path("copy")).unwrap();
    fs::remove_file(&segment).unwrap();
    let (code, told) = check(&["--repair"]);
    assert_eq!((code, kinds(&told["findings"])), (FINDINGS, vec!["segment-missing".into(), "data-lost".into()]));
    assert_eq!(told["findings"][1]["path"], "/x");
    assert_eq!(check(&["--rebuild"]).0, DAMAGED, "the old index stays");
    assert_eq!(kinds(&check(&[]).1["findings"]), ["segment-missing", "data-lost"]);
    fs::copy(desk.path("copy"), &segment).unwrap();
    assert_eq!(check(&["--read-data"]).0, OK);
    assert_eq!(desk.run(&["check", "--repair", "--rebuild", "vault"]).status.code(), Some(USAGE));
    ok(&desk.mount());
    assert!(fs::read(desk.mnt().join("x")).unwrap() == body);
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn scrub_of_a_mount_waits_and_names_what_is_hurt() {
    let desk = Desk::new();
    ok(&desk.mount());
    let body: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(i.wrapping_mul(2_654_435_761)) >> 13) as u8).collect();
    fs::create_dir(desk.mnt().join("films")).unwrap();
    fs::write(desk.mnt().join("films/film"), &body).unwrap();
    fs::File::open(desk.mnt().join("films/film")).unwrap().sync_all().unwrap();
    let clean = desk.run(&["scrub", "--json", "--rate", "0", "mnt"]);
    ok(&clean);
    let said = json(&clean);
    assert_eq!((&said["ok"], &said["state"], &said["done_bytes"]), (&true.into(), &"done".into(), &300_000.into()));
    let segment = desk.path("vault/segments/0000000000000001");
    let file = fs::OpenOptions::new().read(true).write(true).open(&segment).unwrap();
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 150_000).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[byte[0] ^ 4], 150_000).unwrap();
    file.sync_all().unwrap();
    let hurt = desk.run(&["scrub", "mnt"]);
    assert_eq!(hurt.status.code(), Some(FINDINGS));
    assert!(String::from_utf8_lossy(&hurt.stdout).contains("/films/film (inode"), "{hurt:?}");
    fs::write(desk.mnt().join(".storage/control"), "scrub pause\n").unwrap();
    assert!(fs::read_to_string(desk.mnt().join(".storage/scrub")).unwrap().starts_with("state"));
    ends_with(&desk.run(&["scrub", "--no-key", "mnt"]), USAGE, "--no-key");
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn a_copy_made_after_umount_is_a_vault() {
    let desk = Desk::new();
    ok(&desk.mount());
    fs::write(desk.mnt().join("x"), "before the copy").unwrap();
    ok(&desk.run(&["umount", "mnt"]));
    let copied = Command::new("cp").arg("-r").arg(desk.path("vault")).arg(desk.path("copy")).status().unwrap();
    assert!(copied.success());
    ok(&desk.run(&["mount", "--password-file", "pass", "copy", "mnt"]));
    assert_eq!(fs::read_to_string(desk.mnt().join("x")).unwrap(), "before the copy");
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn mountpoints_that_will_not_do_are_refused() {
    let desk = Desk::new();
    fs::create_dir_all(desk.path("full/x")).unwrap();
    fs::create_dir(desk.path("vault/inside")).unwrap();
    for (mountpoint, why) in [
        ("full", "not empty"),
        ("absent", "no such directory"),
        ("pass", "not a directory"),
        ("vault/inside", "inside the vault"),
        (".", "the vault lies inside"),
    ] {
        let refused = desk.run(&["mount", "--password-file", "pass", "vault", mountpoint]);
        ends_with(&refused, MOUNTPOINT, why);
    }
}

#[test]
fn a_mounted_vault_is_not_mounted_twice() {
    let desk = Desk::new();
    ok(&desk.mount());
    fs::create_dir(desk.path("other")).unwrap();
    // It is said where, and before anybody is asked for a passphrase: there is none here.
    let at = desk.mnt().canonicalize().unwrap().display().to_string();
    for words in [&["mount", "vault", "other"][..], &["check", "vault"]] {
        let refused = desk.run(words);
        ends_with(&refused, IN_USE, "is mounted on");
        assert!(stderr(&refused).contains(&at), "it names the mountpoint: {}", stderr(&refused));
    }
    ends_with(&desk.mount(), MOUNTPOINT, "already");
    let status = desk.run(&["status", "--json", "vault"]);
    assert_eq!(json(&status)["in_use"], true);
    fs::write(desk.mnt().join("x"), "still works").unwrap();
    ok(&desk.run(&["umount", "mnt"]));
    assert_eq!(json(&desk.run(&["status", "--json", "vault"]))["in_use"], false);
}

#[test]
fn a_vault_can_be_mounted_the_moment_it_is_unmounted() {
    let desk = Desk::new();
    for round in 0..3 {
        ok(&desk.mount());
        let name = desk.mnt().join(format!("{round}"));
        fs::write(&name, vec![round; 1 << 20]).unwrap();
        // Once by our command, which waits, and once by the system's, which does not.
        if round == 1 {
            assert!(Command::new("umount").arg(desk.mnt()).status().unwrap().success());
        } else {
            ok(&desk.run(&["umount", "mnt"]));
        }
    }
    ok(&desk.mount());
    for round in 0..3 {
        assert_eq!(fs::read(desk.mnt().join(format!("{round}"))).unwrap(), vec![round; 1 << 20]);
    }
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn sigterm_flushes_and_unmounts() {
    let desk = Desk::new();
    ok(&desk.mount());
    fs::write(desk.mnt().join("x"), "written just before").unwrap();
    let daemon = desk.daemon();
    kill(libc::SIGTERM, daemon);
    // A second one does not cut the flush short; it may come when all is over.
    // SAFETY: a plain call with two numbers; the process is one that this test started.
    unsafe { libc::kill(daemon, libc::SIGTERM) };
    wait_until("the daemon ends", || !lives(daemon));
    assert!(!desk.is_mounted());
    ok(&desk.mount());
    assert_eq!(fs::read_to_string(desk.mnt().join("x")).unwrap(), "written just before");
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn the_foreground_ends_with_zero_after_a_signal() {
    let desk = Desk::new();
    let mut child: Child = desk
        .command(&["mount", "-f", "--password-file", "pass", "vault", "mnt"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    wait_until("the mount is live", || desk.mnt().join(".storage/version").exists());
    assert_eq!(desk.daemon(), child.id() as i32);
    fs::write(desk.mnt().join("x"), "x").unwrap();
    kill(libc::SIGINT, child.id() as i32);
    assert_eq!(child.wait().unwrap().code(), Some(OK));
    assert!(!desk.is_mounted());
}

#[test]
fn a_busy_mount_stays_and_says_so() {
    let desk = Desk::new();
    ok(&desk.mount());
    let path = desk.mnt().join("x");
    let mut open = fs::File::create(&path).unwrap();
    open.write_all(b"half").unwrap();
    ends_with(&desk.run(&["umount", "mnt"]), BUSY, "EBUSY");
    open.write_all(b" and half").unwrap();
    drop(open);
    ok(&desk.run(&["umount", "mnt"]));
    ok(&desk.mount());
    assert_eq!(fs::read_to_string(path).unwrap(), "half and half");
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn a_mount_that_is_let_go_in_a_moment_is_unmounted_with_what_was_written_last() {
    let desk = Desk::new();
    ok(&desk.mount());
    let path = desk.mnt().join("x");
    let mut open = fs::File::create(&path).unwrap();
    std::thread::scope(|s| {
        s.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(300));
            open.write_all(b"at the last moment").unwrap();
            drop(open);
        });
        ok(&desk.run(&["umount", "mnt"]));
    });
    ok(&desk.mount());
    assert_eq!(fs::read_to_string(path).unwrap(), "at the last moment");
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn a_signal_while_busy_keeps_what_was_written() {
    let desk = Desk::new();
    ok(&desk.mount());
    let mut open = fs::File::create(desk.mnt().join("x")).unwrap();
    open.write_all(b"kept").unwrap();
    open.sync_all().unwrap();
    let daemon = desk.daemon();
    kill(libc::SIGTERM, daemon);
    wait_until("it is detached", || !desk.is_mounted());
    drop(open);
    wait_until("the daemon ends", || !lives(daemon));
    ok(&desk.mount());
    assert_eq!(fs::read_to_string(desk.mnt().join("x")).unwrap(), "kept");
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn a_mount_whose_daemon_was_killed_is_taken_away_and_recovers() {
    let desk = Desk::new();
    ok(&desk.mount());
    let file = fs::File::create(desk.mnt().join("x")).unwrap();
    (&file).write_all(b"synced").unwrap();
    file.sync_all().unwrap();
    drop(file);
    let daemon = desk.daemon();
    kill(libc::SIGKILL, daemon);
    wait_until("the daemon is gone", || !lives(daemon));
    ends_with(&desk.mount(), MOUNTPOINT, "died");
    ends_with(&desk.run(&["umount", "mnt"]), FLUSH_FAILED, "died");
    assert!(!desk.is_mounted());
    ok(&desk.mount());
    assert_eq!(fs::read_to_string(desk.mnt().join("x")).unwrap(), "synced");
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn nonsense_after_o_is_named() {
    let desk = Desk::new();
    let mount = |options: &str| desk.run(&["mount", "-o", options, "--password-file", "pass", "vault", "mnt"]);
    ends_with(&mount("noatime,frobnicate"), USAGE, "'frobnicate'");
    ends_with(&mount("budget=lots"), USAGE, "budget=lots");
    ends_with(&mount("compression=rar"), USAGE, "zstd");
    assert!(!desk.is_mounted());
    ok(&mount("_netdev,nofail,x-systemd.automount,defaults,noatime,budget=32M,workers=1,verify=cache"));
    ok(&desk.run(&["umount", "mnt"]));
    ends_with(&desk.run(&["umount", "mnt"]), NOT_MOUNTED, "mnt");
}

#[test]
fn a_read_only_mount_reads_only() {
    let desk = Desk::new();
    ok(&desk.mount());
    fs::write(desk.mnt().join("x"), "x").unwrap();
    ok(&desk.run(&["umount", "mnt"]));
    ok(&desk.run(&["mount", "-o", "ro,password-file=pass", "vault", "mnt"]));
    assert_eq!(fs::read_to_string(desk.mnt().join("x")).unwrap(), "x");
    let refused = fs::write(desk.mnt().join("y"), "y").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn a_key_file_and_a_credential_open_what_they_made() {
    let desk = Desk::bare();
    desk.secret("short", &[7; 31]);
    ends_with(&desk.run(&["init", "--key-file", "short", "vault"]), NO_KEY, "at least 32");
    assert!(!desk.path("vault").exists(), "a refused init leaves nothing");
    // Every byte counts, the newline at the end included.
    desk.secret("key", &[&[0, 1, 2, b'\n', 255][..], &[7; 40], b"\n"].concat());
    ok(&desk.run(&["init", "--argon2", "65536,3,4", "--key-file", "key", "vault"]));
    desk.secret("stripped", &[&[0, 1, 2, b'\n', 255][..], &[7; 40]].concat());
    ends_with(&desk.run(&["mount", "--key-file", "stripped", "vault", "mnt"]), WRONG_KEY, "vault");
    ends_with(&desk.run(&["mount", "--key-file", "short", "vault", "mnt"]), NO_KEY, "at least 32");
    ok(&desk.run(&["mount", "--key-file", "key", "vault", "mnt"]));
    ok(&desk.run(&["umount", "mnt"]));
    fs::create_dir(desk.path("credentials")).unwrap();
    fs::set_permissions(desk.path("credentials"), fs::Permissions::from_mode(0o700)).unwrap();
    desk.secret("credentials/strongroom.passphrase", b"correct horse");
    let with_credential = |words: &[&str]| {
        let output = desk.command(words).env("CREDENTIALS_DIRECTORY", desk.path("credentials")).output();
        output.expect("the program runs")
    };
    ok(&with_credential(&["init", "--argon2", "65536,3,4", "second"]));
    ok(&desk.run(&["mount", "--password-file", "pass", "second", "mnt"]));
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn mounts_are_listed() {
    let desk = Desk::new();
    ok(&desk.mount());
    let listed = json(&desk.run(&["status", "--json"]));
    let mnt = desk.mnt().canonicalize().unwrap();
    let vault = desk.path("vault").canonicalize().unwrap();
    let ours = listed["mounts"].as_array().unwrap().iter().find(|m| m["mountpoint"] == mnt.to_str().unwrap());
    assert_eq!(ours.expect("it is in the list")["source"], vault.to_str().unwrap());
    ok(&desk.run(&["umount", "mnt"]));
    ends_with(&desk.run(&["status", "mnt"]), NOT_MOUNTED, "mnt");
}

#[test]
fn the_program_says_its_version() {
    let desk = Desk::bare();
    let said = desk.run(&["--version"]);
    ok(&said);
    assert_eq!(String::from_utf8_lossy(&said.stdout), format!("strongroom {}\n", env!("CARGO_PKG_VERSION")));
    ends_with(&desk.run(&["frobnicate"]), USAGE, "frobnicate");
}

/// Makes a vault whose passphrase costs 512 MiB.
fn heavy() -> Desk {
    let desk = Desk::bare();
    ok(&desk.run(&["init", "--argon2", "524288,3,4", "--password-file", "pass", "vault"]));
    desk
}

#[test]
fn deriving_the_key_leaves_the_daemon_small_and_tells_nobody() {
    let desk = heavy();
    ok(&desk.run(&["mount", "-o", "budget=64M", "--password-file", "pass", "vault", "mnt"]));
    let daemon = desk.daemon();
    let of = |name: &str| fs::read(format!("/proc/{daemon}/{name}")).unwrap();
    let status = String::from_utf8(of("status")).unwrap();
    let high = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("the kernel tells the high-water mark");
    let high_kib: u64 = high.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(high_kib < 72 << 10, "the daemon has held {high_kib} KiB");
    for place in ["cmdline", "environ"] {
        let told = of(place);
        assert!(!told.windows(13).any(|w| w == b"correct horse"), "the passphrase stands in {place}");
    }
    fs::write(desk.mnt().join("x"), "the right key").unwrap();
    ok(&desk.run(&["umount", "mnt"]));
    ok(&desk.run(&["check", "--read-data", "--password-file", "pass", "vault"]));
    desk.secret("wrong", b"battery staple\n");
    ends_with(&desk.run(&["mount", "--password-file", "wrong", "vault", "mnt"]), WRONG_KEY, "wrong");
}

/// The processes that a process started and that still live, but for the one that mounts for it.
fn children(parent: u32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mounts = stat.contains("(strongroom-mntr)");
        !mounts && stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) == Some(&parent.to_string())
    };
    processes.filter(is_child).collect()
}

#[test]
fn a_killed_derivation_is_one_sentence() {
    let desk = heavy();
    let mut mount = desk.command(&["mount", "-f", "--password-file", "pass", "vault", "mnt"]);
    let mount = mount.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs");
    let mut found = Vec::new();
    wait_until("a process derives the key", || {
        found = children(mount.id());
        !found.is_empty()
    });
    kill(libc::SIGKILL, found[0]);
    let output = mount.wait_with_output().unwrap();
    ends_with(&output, UNEXPECTED, "deriving the key needs 512 MiB of memory; the process that did it was killed");
    assert_eq!(stderr(&output).trim().lines().count(), 1);
    assert!(!desk.is_mounted());
    ok(&desk.mount());
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn a_vault_that_could_not_be_closed_is_told_at_umount() {
    let desk = Desk::new();
    ok(&desk.mount());
    fs::write(desk.mnt().join("x"), "flushed").unwrap();
    // The flush needs neither root file; the last checkpoint writes one, and finds a directory in its place.
    for root in ["root.a", "root.b"] {
        fs::rename(desk.path("vault").join(root), desk.path(root)).unwrap();
        fs::create_dir(desk.path("vault").join(root)).unwrap();
    }
    ends_with(&desk.run(&["umount", "mnt"]), FLUSH_FAILED, "unmounted, but not everything could be brought to rest");
    assert!(!desk.is_mounted());
    for root in ["root.a", "root.b"] {
        fs::remove_dir(desk.path("vault").join(root)).unwrap();
        fs::rename(desk.path(root), desk.path("vault").join(root)).unwrap();
    }
    ok(&desk.mount());
    assert_eq!(fs::read_to_string(desk.mnt().join("x")).unwrap(), "flushed", "it recovers");
    ok(&desk.run(&["umount", "mnt"]));
}

/// A copy of a directory, as a person's backup makes it.
fn copy_tree(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).output().expect("cp runs");
    assert!(copied.status.success(), "{}", stderr(&copied));
}

#[test]
fn an_older_copy_in_the_vaults_place_is_refused_until_it_is_named() {
    let desk = Desk::new();
    let lives = |name: &str, more: &[&str]| {
        let words = [&["mount", "--password-file", "pass"], more, &["vault", "mnt"]].concat();
        ok(&desk.run(&words));
        fs::write(desk.mnt().join(name), name).unwrap();
        ok(&desk.run(&["umount", "mnt"]));
    };
    lives("one", &[]);
    copy_tree(&desk.path("vault"), &desk.path("backup"));
    lives("two", &[]);
    fs::rename(desk.path("vault"), desk.path("newest")).unwrap();
    copy_tree(&desk.path("backup"), &desk.path("vault"));

    let refused = desk.mount();
    ends_with(&refused, ROLLED_BACK, "an older copy of the vault");
    let said = stderr(&refused);
    let flag = said.split_whitespace().find(|word| word.starts_with("--accept-rollback=")).unwrap().to_owned();
    assert!(said.contains(&desk.path("vault").display().to_string()), "it names the vault: {said}");
    ends_with(&desk.run(&["check", "--password-file", "pass", "vault"]), ROLLED_BACK, &flag);
    ends_with(
        &desk.run(&["mount", "--accept-rollback=1", "--password-file", "pass", "vault", "mnt"]),
        ROLLED_BACK,
        &flag,
    );
    ok(&desk.run(&["check", &flag, "--password-file", "pass", "vault"]));
    // Looking accepted nothing for good.
    ends_with(&desk.mount(), ROLLED_BACK, &flag);
    lives("three", &["-o", flag.trim_start_matches("--")]);
    ok(&desk.mount());
    let names = |dir: &Path| {
        let mut all: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    };
    assert_eq!(names(&desk.mnt()), ["one", "three"]);
    let config = fs::read_to_string(desk.mnt().join(".storage/config")).unwrap();
    assert!(config.lines().any(|line| line.contains("pins") && line.contains("/state")), "{config}");
    ok(&desk.run(&["umount", "mnt"]));
    let pins = names(&desk.path("state"));
    assert!(pins.len() == 1 && pins[0].len() == 36 && pins[0].ends_with(".pin"), "{pins:?}");
    let pin = desk.path("state").join(&pins[0]);
    assert_eq!(fs::metadata(&pin).unwrap().permissions().mode() & 0o777, 0o600);
    // Elsewhere nobody knows of a newer one.
    fs::remove_file(pin).unwrap();
    ok(&desk.run(&["check", "--password-file", "pass", "newest"]));
}

#[test]
fn a_vault_without_its_header_file_is_a_vault_still() {
    let desk = Desk::new();
    for damage in [None, Some("rubble")] {
        match damage {
            None => fs::remove_file(desk.path("vault/vault.toml")).unwrap(),
            Some(text) => fs::write(desk.path("vault/vault.toml"), text).unwrap(),
        }
        ok(&desk.run(&["status", "vault"]));
        // Looking mends nothing, and says what it saw.
        let checked = desk.run(&["check", "--json", "--password-file", "pass", "vault"]);
        assert_eq!(checked.status.code(), Some(FINDINGS));
        assert_eq!(json(&checked)["findings"][0]["kind"], "copy-spoiled");
        ends_with(&desk.run(&["init", "--password-file", "pass", "vault"]), NOT_EMPTY, "is a vault already");
        ok(&desk.mount());
        ok(&desk.run(&["umount", "mnt"]));
        let both = ["vault/vault.toml", "vault/vault.toml.copy"].map(|name| fs::read(desk.path(name)).unwrap());
        assert_eq!(both[0], both[1], "it is restored");
    }
    fs::write(desk.path("vault/lock"), "rubble").unwrap();
    ok(&desk.mount());
    ok(&desk.run(&["umount", "mnt"]));
}

#[test]
fn an_older_copy_is_looked_at_without_a_word_about_accepting_it() {
    let desk = Desk::new();
    let lives = |vault: &str, name: &str| {
        ok(&desk.run(&["mount", "--password-file", "pass", vault, "mnt"]));
        fs::write(desk.mnt().join(name), name).unwrap();
        ok(&desk.run(&["umount", "mnt"]));
    };
    lives("vault", "one");
    copy_tree(&desk.path("vault"), &desk.path("backup"));
    lives("vault", "two");
    let refused = desk.run(&["mount", "--password-file", "pass", "backup", "mnt"]);
    ends_with(&refused, ROLLED_BACK, "an older copy of the vault");
    let said = stderr(&refused);
    let (look, replace) = (said.find("-o ro").unwrap(), said.find("--accept-rollback").unwrap());
    assert!(look < replace, "the way that harms nothing comes first: {said}");
    assert!(said.contains("remembered in") && said.contains("/state"), "it says who knows better: {said}");

    let looked = desk.run(&["mount", "-o", "ro", "--password-file", "pass", "backup", "mnt"]);
    ends_with(&looked, OK, "strongroom: warning: what is shown is an older state of the vault: generation ");
    assert!(desk.mnt().join("one").exists() && !desk.mnt().join("two").exists());
    let status = fs::read_to_string(desk.mnt().join(".storage/status")).unwrap();
    assert!(status.lines().any(|line| line.starts_with("older state")), "{status}");
    ok(&desk.run(&["umount", "mnt"]));
    // Looking changed neither what is remembered nor the copy.
    ends_with(&desk.run(&["mount", "--password-file", "pass", "backup", "mnt"]), ROLLED_BACK, "an older copy");
    lives("vault", "three");
}

#[test]
fn root_has_one_memory_with_and_without_an_environment() {
    let desk = Desk::new();
    // SAFETY: only asks.
    assert_eq!(unsafe { libc::geteuid() }, 0, "this test needs root");
    fs::create_dir(desk.path("home")).unwrap();
    fs::write(desk.path("home/.profile"), "").unwrap();
    let run = |words: &[&str], home: bool| {
        let mut command = desk.command(words);
        command.env_remove("STRONGROOM_STATE_DIR").env_remove("XDG_STATE_HOME").env_remove("HOME");
        if home {
            command.env("HOME", desk.path("home"));
        }
        command.output().unwrap()
    };
    let status = json(&desk.run(&["status", "--json", "vault"]));
    let pin = Path::new("/var/lib/strongroom").join(format!("{}.pin", status["id"].as_str().unwrap()));
    let lives = |home| {
        ok(&run(&["mount", "--password-file", "pass", "vault", "mnt"], home));
        ok(&run(&["umount", "mnt"], home));
    };
    lives(true);
    copy_tree(&desk.path("vault"), &desk.path("backup"));
    // As at boot.
    lives(false);
    let refused = run(&["mount", "--password-file", "pass", "backup", "mnt"], true);
    ends_with(&refused, ROLLED_BACK, "/var/lib/strongroom");
    fs::remove_file(pin).unwrap();
}

#[test]
fn a_vault_over_the_home_of_who_mounts_it_leaves_the_bare_home_empty() {
    let desk = Desk::new();
    let vault = desk.path("vault");
    let run = |words: &[&str], home: &Path| {
        let mut command = desk.command(words);
        command.env_remove("STRONGROOM_STATE_DIR").env_remove("XDG_STATE_HOME").env("HOME", home);
        command.output().unwrap()
    };
    ok(&run(&["check", "--password-file", "pass", "vault"], &desk.mnt()));
    for home in [desk.mnt(), desk.mnt(), vault.join("segments")] {
        ok(&run(&["mount", "--password-file", "pass", "vault", "mnt"], &home));
        fs::write(desk.mnt().join("x"), "x").unwrap();
        ok(&run(&["umount", "mnt"], &home));
        assert_eq!(fs::read_dir(desk.mnt()).unwrap().count(), 0, "something was written below the mount");
        assert!(!vault.join("segments/.local").exists());
    }
    let mnt = desk.mnt().display().to_string();
    for (option, why, exit) in [
        (format!("log={mnt}/log"), "the mount would hide it", USAGE),
        (format!("log={}/log", vault.display()), "the vault", USAGE),
        (format!("emergency-dir={mnt}"), "the mount would hide it", 13),
        (format!("emergency-dir={mnt}/e"), "the mount would hide it", 13),
        (format!("emergency-dir={}/segments", vault.display()), "must not lie in each other", 13),
    ] {
        let refused = desk.run(&["mount", "-o", &option, "--password-file", "pass", "vault", "mnt"]);
        ends_with(&refused, exit, why);
        assert_eq!(fs::read_dir(desk.mnt()).unwrap().count(), 0, "{option}");
    }
    let id = json(&desk.run(&["status", "--json", "vault"]))["id"].as_str().unwrap().to_owned();
    // SAFETY: only asks.
    if unsafe { libc::geteuid() } == 0 {
        fs::remove_file(format!("/var/lib/strongroom/{id}.pin")).unwrap();
    }
}

#[test]
fn a_log_file_from_fstab_is_opened_anew_after_it_was_rotated() {
    let desk = Desk::new();
    let log = desk.path("log");
    let option = format!("rw,log={}", log.display());
    let mut mount = desk.command(&["mount", "-o", &option, "--password-file", "pass", "vault", "mnt"]);
    ok(&mount.env("STRONGROOM_LOG", "info").output().unwrap());
    let daemon = desk.daemon();
    fs::rename(&log, desk.path("log.1")).unwrap();
    kill(libc::SIGHUP, daemon);
    wait_until("the log is made anew", || log.exists());
    fs::write(desk.mnt().join("x"), "x").unwrap();
    assert!(desk.is_mounted(), "SIGHUP unmounts nothing");
    ok(&desk.run(&["umount", "mnt"]));
    let (old, new) = (fs::read_to_string(desk.path("log.1")).unwrap(), fs::read_to_string(&log).unwrap());
    assert!(old.contains("is mounted on") && !old.contains("unmounted and closed"), "{old}");
    assert!(new.contains("unmounted and closed") && !new.contains("is mounted on"), "{new}");
}

#[test]
fn programs_that_ask_for_a_terminal_leave_no_line_in_the_log() {
    let desk = Desk::new();
    let log = desk.path("log");
    let words = ["mount", "--log", "log", "--password-file", "pass", "vault", "mnt"];
    ok(&desk.command(&words).env("STRONGROOM_LOG", "debug").output().unwrap());
    let file = fs::File::create(desk.mnt().join("x")).unwrap();
    for request in [libc::TCGETS, libc::FIONREAD, 0x8008_6601, 0x1234_5678] {
        let mut answer = [0_u8; 64];
        // SAFETY: the descriptor is ours, and no request of these writes more than 64 bytes, which are there.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), request as _, answer.as_mut_ptr()) };
        let e = std::io::Error::last_os_error();
        // FIONREAD the kernel answers by itself.
        assert!(done == 0 || e.raw_os_error() == Some(libc::ENOTTY), "{request:#x}: {e}");
    }
    drop(file);
    ok(&desk.run(&["umount", "mnt"]));
    let said = fs::read_to_string(log).unwrap();
    assert!(!said.to_lowercase().contains("ioctl"), "{said}");
}

/// A daemon in a mount namespace of its own, whose /dev/log is a socket of this test's.
#[test]
fn a_daemon_without_a_log_file_is_heard_by_the_system_log_also_after_that_was_restarted() {
    use std::os::unix::net::UnixDatagram;
    let desk = Desk::new();
    let heard = |socket: &UnixDatagram| {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut message = [0; 4096];
        let len = socket.recv(&mut message).expect("a message within the time");
        String::from_utf8_lossy(&message[..len]).into_owned()
    };
    let socket = UnixDatagram::bind(desk.path("syslog")).unwrap();
    // Mounts of other tests, which the namespace begins with as well, are not held.
    let script = r#"
        awk '/ - fuse.strongroom / { print $5 }' /proc/self/mountinfo | xargs -r -n1 umount -l
        mount -t tmpfs none /dev
        mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9; mknod -m 666 /dev/fuse c 10 229
        ln -s "$PWD/syslog" /dev/log
        "$0" mount --password-file pass vault mnt
        echo mounted; read -r _
        "$0" umount mnt
    "#;
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-euc", script, PROGRAM]).current_dir(desk.dir.path());
    command.env("STRONGROOM_LOG", "info").env("STRONGROOM_STATE_DIR", desk.path("state"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare runs");
    let first = heard(&socket);
    let vault = desk.path("vault").display().to_string();
    assert!(first.starts_with("<30>strongroom[") && first.contains(&vault), "{first}");
    let mut mounted = [0; 8];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut mounted).unwrap();
    // The system log is restarted.
    drop(socket);
    fs::remove_file(desk.path("syslog")).unwrap();
    let socket = UnixDatagram::bind(desk.path("syslog")).unwrap();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    while !heard(&socket).contains("is unmounted and closed") {}
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_the_parser_refuses_is_a_complaint_of_ours_and_json_if_asked() {
    let desk = Desk::bare();
    let refused = desk.run(&["status", "--json", "--nonsense"]);
    ends_with(&refused, USAGE, "strongroom: unexpected argument '--nonsense'");
    assert_eq!((&json(&refused)["ok"], &json(&refused)["exit"]), (&false.into(), &USAGE.into()));
    assert!(desk.run(&["status", "--nonsense"]).stdout.is_empty());
}

#[test]
fn the_callers_limits_do_not_bind_the_daemon() {
    let desk = Desk::new();
    let script = r#"
        ulimit -S -n 20; ulimit -S -f 8; ulimit -S -v 150000; ulimit -S -d 100000; umask 0777
        "$0" mount --password-file pass vault mnt
        ulimit -S -f unlimited
        head -c 3000000 /dev/zero | tr '\0' x >mnt/big; chmod 600 mnt/big; cmp <(head -c 3000000 /dev/zero | tr '\0' x) mnt/big
        "$0" umount mnt
        "$0" check --read-data --password-file pass vault
    "#;
    let mut command = Command::new("bash");
    command
        .args(["-euc", script, PROGRAM])
        .current_dir(desk.dir.path())
        .env("STRONGROOM_STATE_DIR", desk.path("state"));
    ok(&command.output().unwrap());
    for name in ["vault/root.a", "vault/lock", "vault/vault.toml"] {
        let mode = fs::metadata(desk.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}: {mode:o}");
    }
}

#[test]
fn a_backup_by_hard_links_stays_as_it_was_and_the_vault_goes_on() {
    let desk = Desk::new();
    let noise: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    ok(&desk.mount());
    fs::write(desk.mnt().join("a"), &noise).unwrap();
    ok(&desk.run(&["umount", "mnt"]));
    let linked = |to: &str| {
        let done = Command::new("cp").arg("-al").args([desk.path("vault"), desk.path(to)]).output().unwrap();
        assert!(done.status.success(), "{}", stderr(&done));
    };
    let sums = |of: &str| {
        let script = "cd \"$0\"; find . -type f ! -name lock | sort | xargs sha256sum";
        let done = Command::new("bash").args(["-euc", script]).arg(desk.path(of)).output().unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    for round in 0..2 {
        let backup = format!("backup-{round}");
        linked(&backup);
        let before = sums(&backup);
        assert!(before.lines().count() > 5, "{before}");
        ok(&desk.mount());
        // The lock is not shared either.
        let mut check = desk.command(&["check", "--read-data", "--password-file", "pass", &backup]);
        ok(&check.env("STRONGROOM_STATE_DIR", desk.path("another-machine")).output().unwrap());
        fs::remove_file(desk.mnt().join("a")).unwrap();
        fs::write(desk.mnt().join("a"), &noise[round..]).unwrap();
        fs::write(desk.mnt().join(".storage/control"), "checkpoint").unwrap();
        fs::write(desk.mnt().join(".storage/control"), "clean").unwrap();
        ok(&desk.run(&["umount", "mnt"]));
        assert_eq!(sums(&backup), before, "the backup was changed");
    }
    ok(&desk.run(&["check", "--read-data", "--password-file", "pass", "vault"]));
}

#[test]
fn a_vault_without_the_right_to_write_is_looked_at_and_the_way_out_is_named() {
    let desk = Desk::new();
    // SAFETY: only asks.
    if unsafe { libc::geteuid() } != 0 {
        return;
    }
    let script = r#"
        chown -R 12345 . ; chmod 711 . ; mkdir state; chown 12345 state
        as() { setpriv --reuid=12345 --regid=12345 --clear-groups env HOME=/nonexistent STRONGROOM_STATE_DIR="$PWD/state" "$@"; }
        chmod -R a-w vault
        as "$0" mount --password-file pass vault mnt && exit 9
        chmod u+w vault vault/segments vault/index
        as "$0" mount --password-file pass vault mnt && exit 9
        as "$0" check --password-file pass vault
    "#;
    let mut command = Command::new("bash");
    command.args(["-uc", script, PROGRAM]).current_dir(desk.dir.path()).env("STRONGROOM_STATE_DIR", desk.path("state"));
    let done = command.output().unwrap();
    assert_eq!(code(&done), OK, "{}", stderr(&done));
    let said = stderr(&done);
    assert!(said.lines().count() >= 2 && said.matches("chmod u+w").count() >= 2, "{said}");
}

#[test]
fn a_passphrase_file_of_a_windows_editor_opens_or_says_why_not() {
    let desk = Desk::new();
    let passphrase = fs::read(desk.path("pass")).unwrap();
    let line = passphrase.strip_suffix(b"\n").unwrap_or(&passphrase);
    desk.secret("crlf", &[line, b"\r\n"].concat());
    ok(&desk.run(&["check", "--password-file", "crlf", "vault"]));
    desk.secret("marked", &[&b"\xef\xbb\xbf"[..], line, b"\r\n"].concat());
    let marked = desk.run(&["check", "--password-file", "marked", "vault"]);
    assert_eq!(code(&marked), WRONG_KEY, "{}", stderr(&marked));
    assert!(stderr(&marked).contains("warning: marked begins with a byte order mark"), "{}", stderr(&marked));
}

#[test]
fn root_ends_and_looks_at_the_mount_of_a_user() {
    // SAFETY: only asks.
    if unsafe { libc::geteuid() } != 0 {
        return;
    }
    let desk = Desk::new();
    // Mounts of other tests, which the namespace begins with as well, are not held.
    let script = r#"
        awk '/ - fuse.strongroom / { print $5 }' /proc/self/mountinfo | xargs -r -n1 umount -l
        mknod -m 666 fuse c 10 229; mount --bind fuse /dev/fuse
        chown -R 65534:65534 vault mnt pass; chmod 711 . ; mkdir state; chown 65534 state
        as() { setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/nonexistent STRONGROOM_STATE_DIR="$PWD/state" "$@"; }
        as "$0" mount --password-file pass vault mnt
        as sh -c 'echo kept > mnt/file'
        ls mnt 2>/dev/null && exit 9
        "$0" status mnt | grep -q ^state
        "$0" umount --json mnt
        mountpoint -q mnt && exit 9
        as "$0" mount --password-file pass vault mnt
        as cat mnt/file
        "$0" umount mnt
    "#;
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "bash", "-euc", script, PROGRAM]).current_dir(desk.dir.path());
    let done = command.output().unwrap();
    assert_eq!(code(&done), OK, "{}", stderr(&done));
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.contains("\"ok\": true") && said.ends_with("kept\n"), "{said}");
}

/// The fields of a file of `/.storage`, as `docs/storage.md` names them.
fn fields_of(file: &str, text: &str) -> Vec<String> {
    let first_column = |line: &str| line.split("  ").next().unwrap_or_default().to_owned();
    match file {
        "stats.json" => {
            let json: serde_json::Value = serde_json::from_str(text).expect("it is JSON");
            let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            [&json, &json["counters"], &json["gauges"], &json["latencies"]].into_iter().flat_map(keys).collect()
        }
        "metrics" => {
            // Counters and gauges are listed once, by the names that `stats.json` gives them.
            let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
            let listed = |name: &str| {
                let short = name.strip_prefix("strongroom_").expect("each name begins so");
                let ends = ["_total", "_seconds", ""];
                ends.iter().find_map(|end| short.strip_suffix(end)).expect("the last one always fits").to_owned()
            };
            names.flat_map(|name| [listed(name), name.to_owned()]).collect()
        }
        "status" | "buffers" | "workers" | "quota" | "config" | "scrub" => text.lines().map(first_column).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn every_file_and_field_of_storage_is_in_the_document() {
    let document = include_str!("../docs/storage.md");
    let names: Vec<&str> = document.split('`').skip(1).step_by(2).collect();
    let desk = Desk::new();
    ok(&desk.run(&["mount", "--password-file", "pass", "-o", "show-storage", "vault", "mnt"]));
    let (mut seen, mut missing) = (0, Vec::new());
    for file in fs::read_dir(desk.mnt().join(".storage")).unwrap() {
        let file = file.unwrap().file_name().into_string().unwrap();
        let text = fs::read_to_string(desk.mnt().join(".storage").join(&file)).unwrap();
        let fields = fields_of(&file, &text);
        seen += fields.len();
        // A metric is in a table by its short name, or in the list of all others by its whole one.
        let is_known = |field: &String| names.contains(&field.as_str());
        match file.as_str() {
            "metrics" => {
                let lacks = fields.chunks(2).filter(|pair| !pair.iter().any(is_known)).map(|pair| pair[1].clone());
                missing.extend(lacks);
            }
            _ => missing.extend(fields.into_iter().filter(|field| !is_known(field)).map(|f| format!("{file}: {f}"))),
        }
        if !document.contains(&format!("| `{file}` |")) {
            missing.push(file);
        }
    }
    ok(&desk.run(&["umount", "mnt"]));
    assert!(missing.is_empty() && seen > 200, "docs/storage.md lacks {missing:#?}; {seen} fields were seen");
}
