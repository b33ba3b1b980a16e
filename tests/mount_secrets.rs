//! What secrets the daemon's memory holds, while it serves and when it is done: looked for byte by byte, as root can.
//!
//! Method: the test opens the vault's header itself, so it knows the passphrase, what Argon2 makes of it and the master key;
//! then it reads every page of the daemon through `/proc/PID/mem`. The end is looked at while `strace` holds the daemon's
//! last system call back. A copy of the key is leaked on purpose, as a file that passes through the daemon, and must be found.
//! Promise: while mounted the master key lies in locked pages that no dump has, and nowhere else; passphrase and Argon2's
//! output lie nowhere; after the unmount none of them does. The process that mounts for the daemon never has any of them.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use argon2::{Algorithm, Argon2, Params, Version};
use common::inject::Injection;
use common::{TestVault, eventually, needs_root, strongroom};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;
use strongroom::base::secret::Passphrase;
use strongroom::format::header::SlotKind;
use strongroom::seal::{Unlock, open_header};

struct Secrets {
    passphrase: Vec<u8>,
    stretched: [u8; 32],
    master: [u8; 32],
}

fn secrets(v: &TestVault) -> Secrets {
    let mut passphrase = fs::read(&v.password).unwrap();
    assert_eq!(passphrase.pop(), Some(b'\n'));
    let text = fs::read(v.vault.join("vault.toml")).unwrap();
    let (header, master) = open_header(&text, &Unlock::Passphrase(Passphrase(passphrase.clone()))).unwrap();
    let slot = &header.slots[0];
    let SlotKind::Passphrase { memory_kib, passes, lanes } = slot.kind else { panic!("a passphrase's slot") };
    let mut stretched = [0; 32];
    let cost = Params::new(memory_kib, passes, lanes, Some(32)).unwrap();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, cost);
    argon2.hash_password_into(&passphrase, &slot.salt, &mut stretched).unwrap();
    Secrets { passphrase, stretched, master: **master.secret() }
}

/// The flags of each mapping in which `wanted` lies, once for each place.
fn found(pid: i32, wanted: &[u8]) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let (mut all, mut here, mut scanned) = (Vec::new(), Vec::new(), 0usize);
    for line in maps.lines() {
        let number = |s: &str| usize::from_str_radix(s, 16).ok();
        let range = line.split(' ').next().and_then(|r| r.split_once('-'));
        if let Some((from, to)) = range.and_then(|(from, to)| Some((number(from)?, number(to)?))) {
            here = vec![0; if line.contains("[v") || to - from > 1 << 32 { 0 } else { to - from }];
            // What may not be read (a guard page) holds nothing.
            let read = memory.read_at(&mut here, from as u64).unwrap_or(0);
            here.truncate(read);
            scanned += read;
        }
        if line.starts_with("VmFlags:") {
            all.extend(here.windows(wanted.len()).filter(|w| *w == wanted).map(|_| line.to_owned()));
        }
    }
    assert!(scanned > 4 << 20, "only {scanned} bytes of the daemon were read: the scan says nothing");
    all
}

#[test]
fn the_master_key_lies_in_locked_pages_only_and_is_gone_at_the_end() {
    needs_root("read another process' memory");
    let v = TestVault::mounted();
    let s = secrets(&v);
    fs::write(v.path("file"), common::rng::Rng(1).bytes(5 << 20)).unwrap();
    File::open(v.path("file")).unwrap().sync_all().unwrap();
    let pid = v.pid();
    let nowhere = |what: &str, bytes: &[u8]| assert_eq!(found(pid, bytes), Vec::<String>::new(), "{what} lies about");
    let kept = found(pid, &s.master);
    assert!(!kept.is_empty(), "the daemon has no key: the scan sees nothing");
    for flags in &kept {
        assert!(flags.contains(" lo") && flags.contains(" dd"), "a master key outside the locked pages: {flags}");
    }
    nowhere("the passphrase", &s.passphrase);
    nowhere("what Argon2 made of it", &s.stretched);

    // Held back at its very last call, when all that is wiped has been.
    let held: common::inject::Calls = &[("exit_group", "delay_enter=60000000")];
    let strace = Injection::begin(pid, held, &[], v.outside("strace"));
    let mut umount = Command::new(strongroom()).arg("umount").arg(&v.mnt).spawn().unwrap();
    eventually("the vault is closed", Duration::from_secs(60), || {
        fs::read_to_string(v.vault.join("lock")).is_ok_and(|word| word.trim() == "closed")
    });
    eventually("the daemon is at its last call", Duration::from_secs(60), || {
        fs::read_to_string(format!("/proc/{pid}/syscall"))
            .is_ok_and(|at| at.starts_with("231 ") || at.starts_with("94 "))
    });
    nowhere("the passphrase", &s.passphrase);
    nowhere("what Argon2 made of it", &s.stretched);
    nowhere("the master key", &s.master);
    drop(strace);
    assert!(umount.wait().unwrap().success());
}

/// The process that mounts for a daemon: its only child.
fn mounter(pid: i32) -> i32 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().parse().expect("one child")
}

#[test]
fn the_process_that_mounts_never_had_a_key() {
    needs_root("read another process' memory");
    let v = TestVault::init();
    let s = secrets(&v);
    let looked = |pid: i32| {
        // What it does have is seen, so that what is not seen is not there.
        assert!(!found(pid, v.mnt.to_str().unwrap().as_bytes()).is_empty(), "the scan does not see where it mounts");
        for (what, bytes) in [("passphrase", &s.passphrase[..]), ("stretched", &s.stretched), ("master key", &s.master)]
        {
            assert_eq!(found(pid, bytes), Vec::<String>::new(), "the {what} lies in the process that mounts");
        }
    };
    v.mount();
    looked(mounter(v.pid()));
    v.umount();
    // In the foreground it is split off from the process that reads the passphrase.
    let mut daemon = v.mount_command().arg("-f").spawn().unwrap();
    eventually("the mount is live", Duration::from_secs(60), || v.is_mounted());
    looked(mounter(daemon.id() as i32));
    // SAFETY: a signal to a child that was not waited for yet.
    unsafe { libc::kill(daemon.id() as i32, libc::SIGTERM) };
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn a_key_that_leaks_is_found() {
    needs_root("read another process' memory");
    let v = TestVault::mounted();
    let s = secrets(&v);
    let honest = found(v.pid(), &s.master).len();
    let leak = [&[7; 1000][..], &s.master, &[7; 1000]].concat();
    fs::write(v.path("leak"), leak).unwrap();
    File::open(v.path("leak")).unwrap().sync_all().unwrap();
    let now = found(v.pid(), &s.master);
    assert!(now.len() > honest, "a copy of the key passed through the daemon, and the scan found none");
    assert!(now.iter().any(|flags| !flags.contains(" lo")), "it lies where only keys may");
}

#[test]
fn the_daemon_leaves_no_dump_and_its_user_cannot_look_into_it() {
    needs_root("mount, and look without the capability that lets root look into everything");
    let v = TestVault::init_with(&[]);
    let without_ptrace = |program: &OsStr| {
        let mut c = Command::new("setpriv");
        c.args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", "--"]).arg(program);
        c
    };
    // In the foreground, so that the child is the daemon.
    let plain = v.mount_command();
    let mut mount = without_ptrace(plain.get_program());
    mount.args(plain.get_args()).arg("-f");
    mount.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut daemon = mount.spawn().unwrap();
    eventually("the mount is live", Duration::from_secs(60), || v.is_mounted());
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.id())).unwrap();
    let core: Vec<&str> = limits.lines().find(|l| l.starts_with("Max core")).unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "{limits}");
    // What may be traced may be opened here.
    let looks = |pid: u32| {
        let mut look = without_ptrace("head".as_ref());
        look.args(["-c0", &format!("/proc/{pid}/mem")]).stdout(Stdio::null()).stderr(Stdio::null());
        look.status().unwrap().success()
    };
    let seen = looks(daemon.id());
    let mut idle = without_ptrace("sleep".as_ref()).arg("60").spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let control = looks(idle.id());
    idle.kill().unwrap();
    idle.wait().unwrap();
    // SAFETY: a signal to a child that was not waited for yet.
    unsafe { libc::kill(daemon.id() as i32, libc::SIGTERM) };
    assert!(daemon.wait().unwrap().success());
    // Yama, where it is on, forbids both.
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").is_ok_and(|scope| scope.trim() != "0");
    assert!(control || yama, "not even an ordinary process can be looked into: the test says nothing");
    assert!(!seen, "the daemon's user can look into it");
}
