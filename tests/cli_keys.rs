//! Attacks `strongroom key` and recovery keys with the real program: exit codes, sentences, and what opens the vault after.
//!
//! Method: each test makes a vault in a temporary directory of its own and changes its slots as a person or a script would;
//! what opens it is asked with `check`. Promise: what docs/cli.md says of `key` and of where keys come from; no secret is
//! shown but a recovery key, once.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_strongroom");
const OK: i32 = 0;
const USAGE: i32 = 2;
const WRONG_KEY: i32 = 3;
const NOT_A_VAULT: i32 = 4;
const IN_USE: i32 = 5;
const DAMAGED: i32 = 8;
const FINDINGS: i32 = 9;
const IO: i32 = 13;
const NO_KEY: i32 = 15;
const ROLLED_BACK: i32 = 17;
const SLOT_REFUSED: i32 = 21;

/// A directory with secrets: passphrases `pass` and `other`, key files `key` and `other-key`.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().expect("a temporary directory"));
        desk.secret("pass", b"correct horse\n");
        desk.secret("other", b"battery staple\n");
        desk.secret("key", &[7; 40]);
        desk.secret("other-key", &[8; 40]);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn secret(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(words).current_dir(self.0.path()).stdin(Stdio::null()).env_remove("CREDENTIALS_DIRECTORY");
        command.env("STRONGROOM_STATE_DIR", self.path("state"));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("the program runs")
    }

    /// Makes the vault; gives its recovery key, which is stored in `paper`, too.
    fn init(&self, key: &[&str]) -> String {
        let words = [&["init", "--json", "--argon2", "65536,3,4", "vault"], key].concat();
        let made = self.run(&words);
        ends_with(&made, OK, "");
        let recovery = json(&made)["recovery_key"].as_str().unwrap().to_owned();
        self.secret("paper", recovery.as_bytes());
        recovery
    }

    /// The code that `check` ends with, opened with this.
    fn opens(&self, key: &[&str]) -> i32 {
        self.run(&[&["check", "vault"], key].concat()).status.code().unwrap()
    }

    fn slots(&self) -> serde_json::Value {
        let listed = self.run(&["key", "list", "--json", "vault"]);
        ends_with(&listed, OK, "");
        json(&listed)["slots"].clone()
    }
}

const PASS: [&str; 2] = ["--password-file", "pass"];
const OTHER: [&str; 2] = ["--password-file", "other"];
const KEY: [&str; 2] = ["--key-file", "key"];
const PAPER: [&str; 2] = ["--recovery-key-file", "paper"];

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("one JSON value on stdout")
}

/// Checks the code, and that stderr has this in it.
#[track_caller]
fn ends_with(output: &Output, want: i32, sentence: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(want), "{said}");
    assert!(said.contains(sentence), "'{sentence}' is not in: {said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(want == OK || said.lines().count() == 1, "one sentence: {said}");
}

#[test]
fn init_shows_a_recovery_key_once_and_it_opens_the_vault_however_it_is_typed() {
    let desk = Desk::new();
    let made = desk.run(&["init", "--argon2", "65536,3,4", "--password-file", "pass", "vault"]);
    ends_with(&made, OK, "");
    let said = String::from_utf8(made.stdout).unwrap();
    let key = said.lines().find(|line| line.starts_with("    ")).expect("it is on a line of its own").trim();
    assert_eq!((key.len(), key.split('-').count()), (71, 8), "{said}");
    for typed in [key.to_owned(), key.to_lowercase().replace('-', " ") + "\n", key.replace('-', "")] {
        desk.secret("paper", typed.as_bytes());
        assert_eq!(desk.opens(&PAPER), OK);
    }
    // A typo is told by its group, at once: nothing is derived from it.
    let mut wrong = key.to_owned().into_bytes();
    wrong[9 * 4] = if wrong[9 * 4] == b'7' { b'8' } else { b'7' };
    desk.secret("paper", &wrong);
    ends_with(&desk.run(&["check", "--recovery-key-file", "paper", "vault"]), NO_KEY, "group 5");
    desk.secret("paper", &key.as_bytes()[..35]);
    ends_with(&desk.run(&["check", "--recovery-key-file", "paper", "vault"]), NO_KEY, "8 groups");
    assert_eq!(desk.slots().as_array().unwrap().len(), 2);
}

#[test]
fn init_without_one_makes_none_and_takes_none() {
    let desk = Desk::new();
    let made = desk.run(&["init", "--json", "--no-recovery-key", "--key-file", "key", "vault"]);
    ends_with(&made, OK, "");
    assert!(json(&made)["recovery_key"].is_null());
    assert_eq!(desk.slots().as_array().unwrap().len(), 1);
    desk.secret("paper", b"000G40XD-0G2GC1R6-104GM2X8-1G6GW3TD-Y3RZ5WSR-YKTZDXWK-Z3WZNYSX-ZKYZXZT4");
    assert_eq!(desk.opens(&PAPER), WRONG_KEY);
    ends_with(&desk.run(&["init", "--recovery-key-file", "paper", "elsewhere"]), USAGE, "drawn");
}

#[test]
fn slots_are_added_listed_changed_and_removed() {
    let desk = Desk::new();
    desk.init(&PASS);
    let key = |words: &[&str]| desk.run(&[&["key"], words].concat());
    let added =
        key(&["add", "vault", "--json", "--label", "stick", "--password-file", "pass", "--new-key-file", "key"]);
    ends_with(&added, OK, "");
    assert_eq!((&json(&added)["slot"], &json(&added)["recovery_key"]), (&3.into(), &serde_json::Value::Null));
    assert_eq!(desk.opens(&KEY), OK);
    let slots = desk.slots();
    let kinds: Vec<_> = slots.as_array().unwrap().iter().map(|s| s["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["passphrase", "recovery-key", "key-file"]);
    assert_eq!(
        (&slots[2]["label"], &slots[2]["argon2"], &slots[0]["argon2"]["passes"]),
        (&"stick".into(), &serde_json::Value::Null, &3.into())
    );
    assert!(slots[2]["created"].as_str().unwrap().ends_with(" UTC"));
    let listed = String::from_utf8(key(&["list", "vault"]).stdout).unwrap();
    assert!(listed.contains("Argon2id: 64 MiB, 3 passes, 4 lanes") && listed.contains("stick"), "{listed}");

    // The passphrase is changed by what it is; then the new one opens it, and the old one does not.
    ends_with(
        &key(&["change", "vault", "--argon2", "65536,3,4", "--password-file", "pass", "--new-password-file", "other"]),
        OK,
        "",
    );
    assert_eq!((desk.opens(&PASS), desk.opens(&OTHER)), (WRONG_KEY, OK));
    // A new recovery key, with the old one.
    let drawn = key(&["change", "vault", "--json", "--recovery-key-file", "paper", "--new-recovery-key"]);
    ends_with(&drawn, OK, "");
    assert_eq!(desk.opens(&PAPER), WRONG_KEY);
    desk.secret("paper", json(&drawn)["recovery_key"].as_str().unwrap().as_bytes());
    assert_eq!(desk.opens(&PAPER), OK);

    // By label, by number, by itself.
    ends_with(&key(&["remove", "vault", "--slot", "stick", "--recovery-key-file", "paper"]), OK, "");
    assert_eq!(desk.opens(&KEY), WRONG_KEY);
    ends_with(&key(&["remove", "vault", "--slot", "2", "--password-file", "other"]), OK, "");
    assert_eq!((desk.opens(&PAPER), desk.opens(&OTHER)), (WRONG_KEY, OK));
    ends_with(
        &key(&["remove", "vault", "--itself", "--password-file", "other", "--yes"]),
        SLOT_REFUSED,
        "last key slot",
    );
    assert_eq!(desk.opens(&OTHER), OK);
}

#[test]
fn what_cannot_be_is_refused_in_one_sentence_with_its_code() {
    let desk = Desk::new();
    desk.init(&PASS);
    let key = |words: &[&str]| desk.run(&[&["key"], words].concat());
    let before = fs::read(desk.path("vault/vault.toml")).unwrap();
    ends_with(&key(&["remove", "vault", "--itself", "--password-file", "pass"]), SLOT_REFUSED, "--yes");
    ends_with(&key(&["remove", "vault", "--slot", "9", "--password-file", "pass"]), SLOT_REFUSED, "no key slot '9'");
    ends_with(&key(&["remove", "vault", "--slot", "1", "--password-file", "other"]), WRONG_KEY, "wrong");
    ends_with(
        &key(&["add", "vault", "--label", "first", "--password-file", "pass", "--new-key-file", "key"]),
        SLOT_REFUSED,
        "first",
    );
    ends_with(&key(&["add", "vault", "--password-file", "pass", "--new-password-file", "absent"]), NO_KEY, "absent");
    desk.secret("short", &[1; 31]);
    ends_with(&key(&["add", "vault", "--password-file", "pass", "--new-key-file", "short"]), NO_KEY, "32");
    ends_with(&key(&["add", "vault", "--password-file", "pass"]), NO_KEY, "nobody to ask");
    ends_with(&key(&["add", "nowhere", "--password-file", "pass"]), IO, "nowhere");
    fs::create_dir(desk.path("plain")).unwrap();
    ends_with(&key(&["list", "plain"]), NOT_A_VAULT, "plain");
    for wrong in [
        &["remove", "vault"][..],
        &["remove", "vault", "--slot", "1", "--itself"],
        &["add", "vault", "--new-key-file", "key", "--new-password-file", "other"],
        &["add", "vault", "--argon2", "1024,1,1"],
        &["add", "vault", "--new-password", "hunter2"],
    ] {
        assert_eq!(key(wrong).status.code(), Some(USAGE), "{wrong:?}");
    }
    let told = key(&["remove", "vault", "--json", "--itself", "--password-file", "pass"]);
    assert_eq!((&json(&told)["ok"], &json(&told)["exit"]), (&false.into(), &SLOT_REFUSED.into()));
    // Somebody has it open.
    let lock = fs::File::open(desk.path("vault/lock")).unwrap();
    // SAFETY: the descriptor is ours.
    assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }, 0);
    for words in [&["add", "vault"][..], &["remove", "vault", "--itself"], &["change", "vault"]] {
        ends_with(&key(words), IN_USE, "unmount it");
    }
    ends_with(&key(&["list", "vault"]), OK, "");
    assert_eq!(fs::read(desk.path("vault/vault.toml")).unwrap(), before);
}

#[test]
fn the_last_passphrase_goes_if_that_is_meant() {
    let desk = Desk::new();
    desk.init(&PASS);
    ends_with(&desk.run(&["key", "remove", "vault", "--itself", "--yes", "--password-file", "pass"]), OK, "");
    assert_eq!((desk.opens(&PASS), desk.opens(&PAPER)), (WRONG_KEY, OK));
}

#[test]
fn a_header_is_kept_and_brought_back_and_an_older_one_put_back_is_refused() {
    let desk = Desk::new();
    desk.init(&PASS);
    ends_with(&desk.run(&["key", "export-header", "vault", "kept"]), OK, "");
    assert_eq!(fs::metadata(desk.path("kept")).unwrap().permissions().mode() & 0o777, 0o600);
    ends_with(&desk.run(&["key", "export-header", "vault", "kept"]), IO, "kept");
    ends_with(&desk.run(&["key", "remove", "vault", "--slot", "recovery", "--password-file", "pass"]), OK, "");
    assert_eq!(desk.opens(&PAPER), WRONG_KEY);
    let newer = fs::read(desk.path("vault/vault.toml")).unwrap();
    for name in ["vault/vault.toml", "vault/vault.toml.copy"] {
        fs::copy(desk.path("kept"), desk.path(name)).unwrap();
    }
    ends_with(&desk.run(&["check", "vault", "--recovery-key-file", "paper"]), ROLLED_BACK, "import-header");
    fs::write(desk.path("vault/vault.toml"), newer).unwrap();
    // The copy is the older one still, which is found, and mended by the next mount.
    assert_eq!((desk.opens(&PAPER), desk.opens(&PASS)), (WRONG_KEY, FINDINGS));

    let import = |key: [&str; 2]| desk.run(&[&["key", "import-header", "--json", "vault", "kept"], &key[..]].concat());
    ends_with(&import(OTHER), WRONG_KEY, "wrong");
    let back = import(PASS);
    ends_with(&back, OK, "");
    let slots = &json(&back)["back"];
    assert_eq!((slots.as_array().unwrap().len(), &slots[0]["kind"]), (1, &"recovery-key".into()));
    assert_eq!(desk.opens(&PAPER), OK);
    // Both files lost.
    fs::remove_file(desk.path("vault/vault.toml")).unwrap();
    fs::remove_file(desk.path("vault/vault.toml.copy")).unwrap();
    assert_eq!(desk.opens(&PASS), NOT_A_VAULT);
    ends_with(&import(PAPER), OK, "");
    assert_eq!((desk.opens(&PASS), desk.opens(&PAPER)), (OK, OK));
    // Another vault's.
    let other = Desk::new();
    other.init(&KEY);
    fs::copy(desk.path("kept"), other.path("kept")).unwrap();
    let refused = other.run(&["key", "import-header", "vault", "kept", "--password-file", "pass"]);
    ends_with(&refused, SLOT_REFUSED, "another vault");
    fs::write(other.path("kept"), "rubble").unwrap();
    ends_with(&other.run(&["key", "import-header", "vault", "kept", "--key-file", "key"]), DAMAGED, "toml");
    assert_eq!(other.opens(&KEY), OK);
}

#[test]
fn credentials_are_passphrases_key_files_and_recovery_keys_that_were_handed_over() {
    let desk = Desk::new();
    let recovery = desk.init(&PASS);
    fs::create_dir(desk.path("credentials")).unwrap();
    let handed = |name: &str, bytes: &[u8]| desk.secret(&format!("credentials/{name}"), bytes);
    let run = |words: &[&str]| {
        desk.command(words).env("CREDENTIALS_DIRECTORY", desk.path("credentials")).output().expect("the program runs")
    };
    handed("strongroom.passphrase", b"correct horse\n");
    handed("strongroom.new-key", &[7; 40]);
    ends_with(&run(&["key", "add", "vault"]), OK, "");
    assert_eq!(desk.opens(&KEY), OK);
    fs::remove_file(desk.path("credentials/strongroom.passphrase")).unwrap();
    handed("strongroom.key", &[7; 40]);
    ends_with(&run(&["check", "vault"]), OK, "");
    fs::remove_file(desk.path("credentials/strongroom.key")).unwrap();
    handed("strongroom.recovery-key", recovery.as_bytes());
    ends_with(&run(&["check", "vault"]), OK, "");
}

#[test]
fn a_label_reaches_the_terminal_as_text() {
    let desk = Desk::new();
    desk.init(&KEY);
    let label = "red \u{1b}[31m\nnext";
    ends_with(
        &desk.run(&["key", "add", "vault", "--label", label, "--key-file", "key", "--new-key-file", "other-key"]),
        OK,
        "",
    );
    let listed = desk.run(&["key", "list", "vault"]);
    let said = String::from_utf8(listed.stdout).unwrap();
    assert!(!said.contains('\u{1b}') && said.lines().count() == 3, "{said:?}");
    assert_eq!(desk.slots()[2]["label"], label);
}

#[test]
fn the_emergency_directory_keeps_the_header_in_force() {
    let desk = Desk::new();
    desk.init(&KEY);
    for dir in ["mnt", "away"] {
        fs::create_dir(desk.path(dir)).unwrap();
    }
    let away = desk.path("away");
    let mount = || {
        let with = ["mount", "vault", "mnt", "--emergency-dir", away.to_str().unwrap()];
        ends_with(&desk.run(&[&with[..], &KEY].concat()), OK, "");
        ends_with(&desk.run(&["umount", "mnt"]), OK, "");
    };
    let kept = || {
        let own = fs::read_dir(&away).unwrap().next().unwrap().unwrap().path();
        (own.join("vault.toml"), fs::read_to_string(own.join("vault.toml")).unwrap())
    };
    mount();
    let (at, first) = kept();
    assert_eq!(first, fs::read_to_string(desk.path("vault/vault.toml")).unwrap());
    ends_with(&desk.run(&[&["key", "add", "vault", "--new-password-file", "other"][..], &KEY].concat()), OK, "");
    mount();
    let (_, newer) = kept();
    assert_ne!(newer, first, "it follows at the next mount");
    for lost in ["vault/vault.toml", "vault/vault.toml.copy"] {
        fs::remove_file(desk.path(lost)).unwrap();
    }
    assert_eq!(desk.opens(&KEY), NOT_A_VAULT);
    let import = ["key", "import-header", "vault", at.to_str().unwrap()];
    ends_with(&desk.run(&[&import[..], &KEY].concat()), OK, "");
    assert_eq!((desk.opens(&KEY), desk.opens(&OTHER)), (OK, OK));
}

#[test]
fn a_forgotten_passphrase_is_changed_with_the_recovery_key_which_stays() {
    let desk = Desk::new();
    desk.init(&PASS);
    let key = |words: &[&str]| desk.run(&[&["key"], words].concat());
    let change = ["change", "vault", "--argon2", "65536,3,4", "--recovery-key-file", "paper", "--new-password-file"];
    let changed = key(&[&change[..], &["other"]].concat());
    ends_with(&changed, OK, "");
    assert_eq!((desk.opens(&PASS), desk.opens(&OTHER), desk.opens(&PAPER)), (WRONG_KEY, OK, OK));
    let kinds: Vec<_> = desk.slots().as_array().unwrap().iter().map(|s| s["kind"].clone()).collect();
    assert_eq!(kinds, ["passphrase", "recovery-key"]);
    // With two passphrases it must be said which; they are named.
    let add = ["add", "vault", "--argon2", "65536,3,4", "--label", "office", "--new-password-file", "pass"];
    ends_with(&key(&[&add[..], &OTHER].concat()), OK, "");
    let unsaid = key(&[&change[..], &["pass"]].concat());
    ends_with(&unsaid, SLOT_REFUSED, "--slot");
    assert!(String::from_utf8_lossy(&unsaid.stderr).contains("'office'"));
    desk.secret("third", b"third secret\n");
    ends_with(&key(&[&change[..], &["third", "--slot", "office"]].concat()), OK, "");
    let third = ["--password-file", "third"];
    let opens = (desk.opens(&PASS), desk.opens(&OTHER), desk.opens(&third), desk.opens(&PAPER));
    assert_eq!(opens, (WRONG_KEY, OK, OK, OK));
    // Where only the recovery key is left it is not turned into something else by the way.
    for slot in ["1", "office"] {
        ends_with(&key(&[&["remove", "vault", "--yes", "--slot", slot], &PAPER[..]].concat()), OK, "");
    }
    ends_with(&key(&[&change[..], &["pass"]].concat()), SLOT_REFUSED, "key add");
    assert_eq!(desk.opens(&PAPER), OK);
}

#[test]
fn a_rekey_says_that_the_old_recovery_key_is_dead() {
    let desk = Desk::new();
    desk.init(&PASS);
    let done = desk.run(&["rekey", "vault", "--argon2", "65536,3,4", "--password-file", "pass"]);
    ends_with(&done, OK, "");
    let said = String::from_utf8(done.stdout).unwrap();
    let dead = said.find("opens the vault no more").unwrap_or_else(|| panic!("{said}"));
    assert!(dead < said.find("Recovery key, shown this once").unwrap(), "{said}");
    assert_eq!(desk.opens(&PAPER), WRONG_KEY);
    // Of a vault that had none, nothing is said of any.
    let other = Desk::new();
    ends_with(&other.run(&["init", "--no-recovery-key", "--key-file", "key", "vault"]), OK, "");
    let done = other.run(&["rekey", "vault", "--key-file", "key"]);
    assert!(!String::from_utf8(done.stdout).unwrap().contains("no more"));
}

/// Runs with these bytes on standard input.
fn fed(desk: &Desk, words: &[&str], input: &str) -> Output {
    let mut command = desk.command(words);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn secrets_are_read_from_standard_input_where_it_is_no_terminal() {
    let desk = Desk::new();
    let made = fed(&desk, &["init", "--json", "--argon2", "65536,3,4", "vault"], "correct horse\n");
    ends_with(&made, OK, "");
    assert_eq!(desk.opens(&PASS), OK);
    for (words, input) in [
        (&["check", "vault"][..], "correct horse\n"),
        (&["check", "vault"], "correct horse"),
        (&["check", "vault"], json(&made)["recovery_key"].as_str().unwrap()),
        (&["check", "vault", "--password-file", "-"], "correct horse\n"),
    ] {
        ends_with(&fed(&desk, words, input), OK, "");
    }
    ends_with(&fed(&desk, &["check", "vault"], "wrong horse\n"), WRONG_KEY, "wrong");
    ends_with(&fed(&desk, &["check", "vault"], "\n"), NO_KEY, "empty");
    ends_with(&fed(&desk, &["check", "vault"], ""), NO_KEY, "standard input");
    // One line each: what opens it, and the new one.
    let words = ["key", "change", "vault", "--argon2", "65536,3,4"];
    ends_with(&fed(&desk, &words, "correct horse\nbattery staple\n"), OK, "");
    assert_eq!((desk.opens(&PASS), desk.opens(&OTHER)), (WRONG_KEY, OK));
}

/// A terminal: the end of a person, and the end of a program.
fn terminal() -> (fs::File, fs::File) {
    let (mut person, mut program) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: the call fills two descriptors, and is given no names or settings.
    let done = unsafe { libc::openpty(&mut person, &mut program, none, none.cast(), none.cast()) };
    assert_eq!(done, 0);
    // SAFETY: both were just opened, for us alone.
    unsafe { (fs::File::from_raw_fd(person), fs::File::from_raw_fd(program)) }
}

fn shows_what_is_typed(terminal: &fs::File) -> bool {
    // SAFETY: plain numbers, for which zero is a value.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and the call fills `settings`.
    assert_eq!(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut settings) }, 0);
    settings.c_lflag & libc::ECHO != 0
}

/// Starts the program on a terminal, with or without a session of its own, and waits for its question.
fn asked(desk: &Desk, (person, program): (&fs::File, &fs::File), owns_it: bool) -> Child {
    let mut command = desk.command(&["check", "vault"]);
    let end = || Stdio::from(program.try_clone().unwrap());
    command.stdin(end()).stdout(end()).stderr(end());
    // SAFETY: only calls that are allowed between fork and exec.
    unsafe {
        command.pre_exec(move || {
            // Tests that run in the background may be started with signals ignored, and so would be whom they start.
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
                libc::signal(signal, libc::SIG_DFL);
            }
            libc::setsid();
            if owns_it {
                libc::ioctl(0, libc::TIOCSCTTY, 0);
            }
            Ok(())
        });
    }
    let child = command.spawn().unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"key: ") {
        let mut byte = [0];
        (&*person).read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    child
}

#[test]
fn a_signal_at_the_prompt_gives_the_terminal_back() {
    let desk = Desk::new();
    desk.init(&PASS);
    let (person, program) = terminal();
    let both = (&person, &program);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        let mut child = asked(&desk, both, true);
        assert!(!shows_what_is_typed(&program), "a passphrase does not show");
        match signal {
            // As a person does it.
            libc::SIGINT => (&person).write_all(b"\x03").unwrap(),
            // SAFETY: a signal to the process that this test started.
            other => assert_eq!(unsafe { libc::kill(child.id() as i32, other) }, 0),
        }
        assert_eq!(child.wait().unwrap().signal(), Some(signal), "it ends as it would have");
        assert!(shows_what_is_typed(&program), "signal {signal}");
    }
    // Answered, on its own terminal and on one that belongs to somebody else (su -c).
    for owns_it in [true, false] {
        let mut child = asked(&desk, both, owns_it);
        (&person).write_all(b"correct horse\n").unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(OK));
        assert!(shows_what_is_typed(&program));
        let mut rest = [0; 4096];
        let _ = (&person).read(&mut rest).unwrap();
    }
}
