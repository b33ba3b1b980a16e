//! What the daemon may still do, from outside and from within; and that everything it is there for works all the same.
//!
//! Method: of each thread of a real daemon the kernel is asked what rights it has. What those rights come to is tried in a child
//! process that confines itself with the library's own `confine`: it opens, runs, connects, traces, mounts, and says what came of
//! each. Every look has its control: a daemon, or child, without the sandbox must be seen to have what the other has not.
//! Promise: who takes the daemon over reaches the vault, and nothing else of this machine; the process that mounts for it has
//! no key, follows it into its end, and is no way out. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::{TestVault, eventually, needs_root, output, run, strongroom};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use strongroom::confine::{Access, Allowed, Confinement, Wanted, confine};

const SOON: Duration = Duration::from_secs(20);
/// What every thread must say of itself; the last is not an ordinary user's to change.
const CONFINED: [(&str, &str); 6] = [
    ("NoNewPrivs", "1"),
    ("Seccomp", "2"),
    ("CapEff", "0000000000000000"),
    ("CapPrm", "0000000000000000"),
    ("CapInh", "0000000000000000"),
    ("CapBnd", "0000000000000000"),
];

/// Where threads of a process have more rights than they should; and how many threads there are.
fn rights(pid: i32, wanted: &[(&str, &str)]) -> (Vec<String>, usize) {
    let (mut found, mut threads) = (Vec::new(), 0);
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        // A thread that has just ended has no rights.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        threads += 1;
        let fields: BTreeMap<&str, &str> =
            status.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key, value.trim())).collect();
        for (key, value) in wanted {
            if fields[key] != *value {
                found.push(format!("{} {key} {}", fields["Name"], fields[key]));
            }
        }
    }
    (found, threads)
}

/// The rows of `/.storage/config` about the sandbox.
fn shown(v: &TestVault) -> BTreeMap<String, String> {
    let text = v.storage("config");
    let rows = text.lines().filter(|line| line.starts_with("sandbox")).filter_map(|line| line.split_once(' '));
    rows.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

/// Some of everything: what is written is there, also after a scrub and another mount.
fn work(v: &TestVault) {
    let bytes = common::rng::Rng(7).bytes(3 << 20);
    fs::create_dir_all(v.path("dir/deep")).unwrap();
    fs::write(v.path("dir/file"), &bytes).unwrap();
    File::open(v.path("dir/file")).unwrap().sync_all().unwrap();
    fs::copy(v.path("dir/file"), v.path("dir/deep/copy")).unwrap();
    fs::rename(v.path("dir/deep/copy"), v.path("copy")).unwrap();
    fs::remove_file(v.path("dir/file")).unwrap();
    run(Command::new(strongroom()).args(["scrub", "--rate", "0"]).arg(&v.mnt));
    v.order("checkpoint").unwrap();
    for name in ["status", "stats.json", "metrics", "errors", "buffers"] {
        assert!(!v.storage(name).is_empty() || name == "errors");
    }
    v.remount();
    assert!(fs::read(v.path("copy")).unwrap() == bytes);
}

fn children(pid: i32) -> Vec<i32> {
    let mut all = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap();
        all.extend(text.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
    }
    all
}

/// The process that mounts for a daemon.
fn mounter(v: &TestVault) -> i32 {
    let all = children(v.pid());
    assert_eq!(all.len(), 1, "a daemon has one child");
    all[0]
}

fn runs(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X'])))
}

#[test]
fn every_thread_of_the_daemon_has_given_up_its_rights() {
    needs_root("mount with rights to give up");
    let mut v = TestVault::mounted();
    work(&v);
    let (found, threads) = rights(v.pid(), &CONFINED);
    assert_eq!(found, Vec::<String>::new());
    assert!(threads > 12, "only {threads} threads were looked at");
    let said = shown(&v);
    assert_eq!(said.len(), 4, "{said:?}");
    assert!(
        said.values().all(|word| word == "on" || word == "on (version 7)" || word.contains("this kernel")),
        "{said:?}"
    );

    // For reading only, too.
    v.umount();
    v.options = vec!["ro".to_owned()];
    v.mount();
    assert_eq!(rights(v.pid(), &CONFINED).0, Vec::<String>::new());
    assert_eq!(fs::read(v.path("copy")).unwrap().len(), 3 << 20);
    v.umount();

    // In part, as it was asked for.
    v.options = vec!["sandbox=caps+landlock".to_owned()];
    v.mount();
    let (found, threads) = rights(v.pid(), &CONFINED);
    assert!(found.len() == threads && found.iter().all(|f| f.ends_with("Seccomp 0")), "{found:?}");
    assert_eq!(shown(&v)["sandbox_seccomp"], "off: not asked for");
    v.umount();

    // And the fault that all this must find: none of it.
    v.options = vec!["sandbox=off".to_owned()];
    v.mount();
    let (found, threads) = rights(v.pid(), &CONFINED);
    assert_eq!(found.len(), threads * 5, "what is not confined is seen: {found:?}");
    assert_eq!(shown(&v), BTreeMap::from([("sandbox".to_owned(), "off: asked for".to_owned())]));
    work(&v);
}

/// The kernel's FUSE device, open to everybody.
struct OpenDevice(fs::Permissions);

const DEVICE: &str = "/dev/fuse";

impl OpenDevice {
    fn begin() -> OpenDevice {
        let before = OpenDevice(fs::metadata(DEVICE).unwrap().permissions());
        fs::set_permissions(DEVICE, fs::Permissions::from_mode(0o666)).unwrap();
        before
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        let _ = fs::set_permissions(DEVICE, self.0.clone());
    }
}

#[test]
fn an_ordinary_user_is_confined_as_well_and_mounts_by_the_set_uid_helper() {
    needs_root("become somebody else");
    // fusermount3 asks for a name: nobody has one.
    const USER: u32 = 65534;
    // As every distribution has it; what it was comes back.
    let _open = OpenDevice::begin();
    let place = tempfile::Builder::new().prefix("user-").tempdir_in("/var/tmp").unwrap();
    let at = |name: &str| place.path().join(name);
    // What the build lies in may be closed to others.
    fs::copy(strongroom(), at("strongroom")).unwrap();
    fs::write(at("password"), "a passphrase for an ordinary user\n").unwrap();
    for dir in ["mnt", "state"] {
        fs::create_dir(at(dir)).unwrap();
    }
    for name in ["", "mnt", "state", "password"] {
        chown(at(name), Some(USER), Some(USER)).unwrap();
    }
    fs::set_permissions(at("password"), fs::Permissions::from_mode(0o600)).unwrap();
    let user = |words: &[&str]| {
        let mut c = Command::new("setpriv");
        c.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups", "--"]);
        c.args(
            words
                .iter()
                .map(|w| if let Some(name) = w.strip_prefix('@') { at(name).into() } else { w.into() })
                .collect::<Vec<std::ffi::OsString>>(),
        );
        c.env("STRONGROOM_STATE_DIR", at("state")).current_dir("/");
        c
    };
    run(&mut user(&["@strongroom", "init", "--argon2", "65536,3,4", "--password-file", "@password", "@vault"]));
    let mount =
        user(&["@strongroom", "mount", "--password-file", "@password", "@vault", "@mnt"]).stdin(Stdio::null()).status();
    assert!(mount.unwrap().success());
    // Root may not look into a user's mount; the user may.
    let config = run(&mut user(&["cat", "@mnt/.storage/config"]));
    let value = |key: &str| {
        let line = config.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_once(' ').unwrap().1.trim().to_owned()
    };
    let pid: i32 = value("pid").parse().unwrap();
    // The bounding set is not an ordinary user's to empty; nothing comes of it without new privileges.
    let (found, threads) = rights(pid, &CONFINED[..5]);
    assert_eq!((found, threads > 12), (Vec::new(), true));
    assert!(value("sandbox_seccomp") == "on" && value("sandbox_capabilities") == "on", "{config}");
    run(&mut user(&["sh", "-c", "echo some text > \"$0\"/file && sync -f \"$0\"/file && cat \"$0\"/file", "@mnt"]));
    let helper = children(pid);
    run(&mut user(&["@strongroom", "umount", "@mnt"]));
    eventually("both processes have ended", SOON, || !runs(pid) && helper.iter().all(|&pid| !runs(pid)));
    // SIGTERM unmounts by the helper, which the daemon itself could not.
    let mut daemon =
        user(&["@strongroom", "mount", "-f", "--password-file", "@password", "@vault", "@mnt"]).spawn().unwrap();
    let is_mounted = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains(at("mnt").to_str().unwrap());
    eventually("the mount is live", SOON, is_mounted);
    eventually("it answers", SOON, || user(&["test", "-s", "@mnt/file"]).status().unwrap().success());
    // SAFETY: a signal to a child that was not waited for yet.
    unsafe { libc::kill(daemon.id() as i32, libc::SIGTERM) };
    assert!(daemon.wait().unwrap().success());
    assert!(!is_mounted());
}

/// What came of each attempt: the system's error number, 0 if it was let.
type Outcomes = BTreeMap<String, i32>;

/// In a child of one thread that confines itself as told: tries what a program that was taken over might.
fn attempts(to: &Confinement, dir: &Path) -> Outcomes {
    let mut ends = [0; 2];
    // SAFETY: the kernel fills two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: the kernel just gave us both.
    let [mut reader, mut writer] = ends.map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
    // SAFETY: the child has one thread, and the allocator is made for this; it ends without running anything of ours.
    match unsafe { libc::fork() } {
        0 => {
            let told = match confine(to) {
                Ok(_) => try_all(dir).into_iter().map(|(name, errno)| format!("{name} {errno}\n")).collect(),
                Err(fault) => format!("{fault}\n").replace(' ', "_") + " 1\n",
            };
            let written = writer.write_all(told.as_bytes());
            // SAFETY: it does not return.
            unsafe { libc::_exit(i32::from(written.is_err())) }
        }
        child => {
            assert!(child > 0);
            drop(writer);
            let mut told = String::new();
            reader.read_to_string(&mut told).unwrap();
            let mut status = 0;
            // SAFETY: the child is ours, and `status` lives.
            unsafe { libc::waitpid(child, &mut status, 0) };
            assert_eq!(status, 0, "the child ended with {status}: {told}");
            let line = |line: &str| line.rsplit_once(' ').map(|(n, e)| (n.to_owned(), e.parse().unwrap()));
            told.lines().filter_map(line).collect()
        }
    }
}

fn try_all(dir: &Path) -> Vec<(&'static str, i32)> {
    let of_io = |done: io::Result<()>| done.map_or_else(|e| e.raw_os_error().unwrap_or(-1), |()| 0);
    let of_call = |done: libc::c_long| if done < 0 { of_io(Err(io::Error::last_os_error())) } else { 0 };
    let nowhere = c"/nonexistent".as_ptr();
    let inside = CString::new(dir.join("link").to_str().unwrap()).unwrap();
    let page = 4096;
    let (read, write, exec) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let mut all = vec![
        // What it is there for.
        ("let: read what is allowed", of_io(fs::read(dir.join("file")).map(drop))),
        ("let: write what is allowed", of_io(fs::write(dir.join("new"), "text"))),
        ("let: rename and remove there", of_call(rename_and_remove(dir).into())),
        ("let: a thread", of_io(std::thread::Builder::new().spawn(|| {}).map(|thread| thread.join().unwrap()))),
        (
            "let: a backtrace with names",
            i32::from(!std::backtrace::Backtrace::force_capture().to_string().contains("try_all")),
        ),
        ("let: groups of others", of_io(fs::read("/proc/1/status").map(drop))),
        // Files.
        ("read /etc/passwd", of_io(fs::read("/etc/passwd").map(drop))),
        ("list /etc", of_io(fs::read_dir("/etc").map(drop))),
        ("write beside", of_io(fs::write(dir.join("../beside"), "text"))),
        ("leave by ..", of_io(fs::read(dir.join("../outside")).map(drop))),
        (
            "read /etc/passwd by a thread",
            of_io(std::thread::spawn(|| fs::read("/etc/passwd").map(drop)).join().unwrap()),
        ),
        ("write own memory by /proc", of_io(File::options().write(true).open("/proc/self/mem").map(drop))),
        ("symlink", of_io(std::os::unix::fs::symlink("/etc/passwd", dir.join("symlink")))),
    ];
    // SAFETY: calls with plain numbers and terminated strings, each of which the kernel judges; memory that comes of them is
    // not used. The child ends after them, whatever they have done to it.
    unsafe {
        let byte = libc::mmap(std::ptr::null_mut(), page, read | write, private, -1, 0);
        all.extend([
            ("link", of_call(libc::link(inside.as_ptr(), inside.as_ptr()).into())),
            ("mknod", of_call(libc::mknod(inside.as_ptr(), libc::S_IFCHR | 0o600, 0x0101).into())),
            ("chmod", of_call(libc::chmod(inside.as_ptr(), 0o4755).into())),
            // Programs and processes.
            ("exec", of_call(libc::execve(nowhere, [std::ptr::null()].as_ptr(), [std::ptr::null()].as_ptr()).into())),
            ("memory made executable", of_call(libc::mprotect(byte, page, read | exec).into())),
            ("executable memory", {
                let got = libc::mmap(std::ptr::null_mut(), page, read | exec, private, -1, 0);
                if got == libc::MAP_FAILED { of_io(Err(io::Error::last_os_error())) } else { 0 }
            }),
            ("memory from a file", of_call(libc::syscall(libc::SYS_memfd_create, c"x".as_ptr(), 0))),
            ("signal another", of_call(libc::kill(libc::getppid(), 0).into())),
            ("ptrace", of_call(libc::ptrace(libc::PTRACE_PEEKDATA, libc::getppid(), 0, 0))),
            (
                "process_vm_readv",
                of_call(libc::process_vm_readv(libc::getpid(), std::ptr::null(), 0, std::ptr::null(), 0, 0) as _),
            ),
            (
                "fork",
                match libc::fork() {
                    0 => libc::_exit(0),
                    child => of_call(child.into()),
                },
            ),
            // The machine.
            ("mount", of_call(libc::mount(c"none".as_ptr(), nowhere, c"tmpfs".as_ptr(), 0, std::ptr::null()).into())),
            ("umount", of_call(libc::umount2(nowhere, 0).into())),
            ("namespace", of_call(libc::unshare(libc::CLONE_NEWUTS).into())),
            ("keyring", of_call(libc::syscall(libc::SYS_keyctl, 0, -3, 1))),
            ("io_uring", of_call(libc::syscall(libc::SYS_io_uring_setup, 1, [0u64; 15].as_ptr()))),
            ("reset limits", {
                let limit = libc::rlimit { rlim_cur: 7, rlim_max: 8 };
                of_call(libc::setrlimit(libc::RLIMIT_CORE, &limit).into())
            }),
            ("terminal", of_call(libc::ioctl(0, libc::FIONREAD, byte).into())),
            // The network.
            ("socket of the internet", of_call(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0).into())),
            ("socket of this machine", of_call(libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).into())),
            ("packet socket", of_call(libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).into())),
        ]);
    }
    all
}

/// By the calls that the vault makes.
fn rename_and_remove(dir: &Path) -> libc::c_int {
    let [from, to] = ["new", "newer"].map(|name| CString::new(dir.join(name).to_str().unwrap()).unwrap());
    // SAFETY: terminated strings.
    unsafe {
        match libc::renameat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr()) {
            0 => libc::unlinkat(libc::AT_FDCWD, to.as_ptr(), 0),
            failed => failed,
        }
    }
}

fn playground() -> (tempfile::TempDir, std::path::PathBuf) {
    let top = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = top.path().join("allowed");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "text").unwrap();
    fs::write(top.path().join("outside"), "text").unwrap();
    (top, dir)
}

fn confinement(wanted: &str, dir: &Path) -> Confinement {
    let allow = |path: &Path, access| Allowed { path: path.to_owned(), access };
    // As the daemon's, but for its device.
    let files = vec![
        allow(dir, Access::Change),
        allow(Path::new("/proc"), Access::Read),
        allow(&std::env::current_exe().unwrap(), Access::Read),
    ];
    Confinement { wanted: wanted.parse::<Wanted>().unwrap(), files, keep_dac_override: false }
}

#[test]
fn from_within_nothing_else_can_be_reached() {
    needs_root("have rights to give up");
    let (_top, dir) = playground();
    let free = attempts(&confinement("off", &dir), &dir);
    let confined = attempts(&confinement("auto", &dir), &dir);
    assert!(free.len() > 30 && confined.len() == free.len(), "{} and {} attempts", free.len(), confined.len());
    let mut wrong = Vec::new();
    for (name, &errno) in &confined {
        let right = match name.strip_prefix("let: ") {
            Some(_) => errno == 0,
            // The control had to get past every lock: what it met was at most the attempt's own nonsense.
            None => matches!(errno, libc::EPERM | libc::EACCES) && !matches!(free[name], libc::EPERM | libc::EACCES),
        };
        if !right {
            wrong.push(format!("{name}: {errno}, and without the sandbox {}", free[name]));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn each_part_refuses_what_is_its_own() {
    needs_root("have rights to give up");
    let refused = |outcomes: &Outcomes, name: &str| matches!(outcomes[name], libc::EPERM | libc::EACCES);
    for (parts, yes, no) in [
        (
            "landlock",
            ["read /etc/passwd", "leave by ..", "read /etc/passwd by a thread"],
            ["socket of this machine", "exec"],
        ),
        ("seccomp", ["exec", "fork", "socket of this machine"], ["read /etc/passwd", "write beside"]),
        ("caps", ["namespace", "mknod", "packet socket"], ["read /etc/passwd", "fork"]),
    ] {
        let (_top, dir) = playground();
        let outcomes = attempts(&confinement(parts, &dir), &dir);
        for name in yes {
            assert!(refused(&outcomes, name), "{parts}: {name}: {}", outcomes[name]);
        }
        for name in no {
            assert!(!refused(&outcomes, name), "{parts}: {name}: {}", outcomes[name]);
        }
    }
}

#[test]
fn where_only_a_rule_for_everything_would_do_it_is_said() {
    needs_root("mount a disk right below /");
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    // In a mount namespace of its own. Mounts of other tests, which it begins with as well, are not held.
    let script = r#"
        set -eu; cd "$0"; export STRONGROOM_STATE_DIR="$PWD/state"
        awk '/ - fuse.strongroom / { print $5 }' /proc/self/mountinfo | xargs -r -n1 umount -l
        mount -t tmpfs none /mnt; mkdir -p "/mnt/$1" mnt; echo 'a passphrase for a test' > password; chmod 600 password
        [ "$1" = e ] || mount -t tmpfs none "/mnt/$1"
        mkdir -p "/mnt/$1/away"
        "$2" init --argon2 65536,3,4 --password-file password "vault-$1" > recovery
        "$2" mount --log "log-$1" --password-file password -o "emergency-dir=/mnt/$1/away" "vault-$1" mnt
        grep sandbox_landlock mnt/.storage/config; grep "right below" "log-$1" || echo nothing in the log
        "$2" umount mnt
    "#;
    let said = |dir: &str| {
        let mut c = Command::new("unshare");
        run(c.args(["-m", "bash", "-c", script]).arg(place.path()).arg(dir).arg(strongroom()))
    };
    let everything = said("e");
    assert!(everything.contains("every file may be opened") && everything.contains("/mnt/e/away: its"), "{everything}");
    // One level deeper, and it is not so.
    let deeper = said("disk");
    assert!(deeper.contains("on (version") && !deeper.contains("every file"), "{deeper}");
}

#[test]
fn killing_the_daemon_ends_the_process_that_mounts_for_it() {
    needs_root("look at another's processes");
    let v = TestVault::mounted();
    let (pid, helper) = (v.pid(), mounter(&v));
    // Whoever ends a session or service means the daemon.
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: a signal to a process of this test's daemon.
        assert_eq!(unsafe { libc::kill(helper, signal) }, 0);
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(runs(helper) && runs(pid));
    // It keeps nothing open that others wait for, and no directory from being unmounted.
    let open: Vec<_> = fs::read_dir(format!("/proc/{helper}/fd"))
        .unwrap()
        .flatten()
        .map(|e| fs::read_link(e.path()).unwrap())
        .collect();
    let count = |begin: &str| open.iter().filter(|to| to.to_str().unwrap().starts_with(begin)).count();
    // Orders come over one socket, and files of a disk that comes back go over another. At the third, whoever unmounts asks
    // for the daemon's last word, which comes through the pipe.
    assert_eq!((count("socket:"), count("pipe:"), count("/dev/null"), open.len()), (3, 1, 3, 7), "{open:?}");
    assert_eq!(fs::read_link(format!("/proc/{helper}/cwd")).unwrap(), Path::new("/"));
    // SAFETY: a signal to this test's daemon.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    eventually("the other has ended, too", SOON, || !runs(helper));
    // The dead mount stays, to be cleared by hand.
    assert!(v.is_mounted());
    let out = output(Command::new(strongroom()).arg("umount").arg(&v.mnt));
    assert_eq!(out.status.code(), Some(12), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(!v.is_mounted());
}

#[test]
fn without_the_process_that_mounts_the_data_is_safe_all_the_same() {
    needs_root("kill another's process");
    let v = TestVault::mounted();
    fs::write(v.path("file"), "what must stay").unwrap();
    let (pid, helper) = (v.pid(), mounter(&v));
    // SAFETY: signals to processes of this test.
    unsafe {
        libc::kill(helper, libc::SIGKILL);
        libc::kill(pid, libc::SIGTERM);
    }
    eventually("the daemon has closed the vault", Duration::from_secs(40), || !runs(pid));
    let word = fs::read_to_string(v.vault.join("lock")).unwrap();
    assert!(word.starts_with("closed"), "{word}");
    run(Command::new("umount").arg("-l").arg(&v.mnt));
    v.mount();
    assert_eq!(fs::read_to_string(v.path("file")).unwrap(), "what must stay");
}

#[test]
fn root_serves_the_vault_of_another_and_keeps_no_more_rights_than_that_takes() {
    needs_root("own what is another's");
    let v = TestVault::init();
    let all = common::walk(&v.vault).unwrap();
    for path in all.iter().map(|path| v.vault.join(path)).chain([v.vault.clone()]) {
        chown(&path, Some(4712), Some(4712)).unwrap();
        let mode = if path.is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    v.mount();
    const DAC_OVERRIDE: &str = "0000000000000002";
    let one = CONFINED.map(|(key, value)| (key, if matches!(key, "CapEff" | "CapPrm") { DAC_OVERRIDE } else { value }));
    assert_eq!(rights(v.pid(), &one).0, Vec::<String>::new());
    assert!(shown(&v)["sandbox_capabilities"].contains("CAP_DAC_OVERRIDE"));
    work(&v);
    assert_eq!(v.vault.metadata().unwrap().uid(), 4712);
}

/// Makes a program's kernel look as if it had no such call.
fn without_call(command: &mut Command, call: libc::c_long) {
    let filter = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, equal, give) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let program = [
        filter(load, 0, 0, 0),
        filter(equal, 0, 1, call as u32),
        filter(give, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        filter(give, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        // SAFETY: plain calls; the kernel copies the program, whose length is true. Root needs no no_new_privs for it.
        let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: it runs between fork and exec, and makes one system call.
    unsafe { command.pre_exec(install) };
}

#[test]
fn an_older_kernel_is_told_of_and_one_that_lacks_what_was_demanded_is_refused() {
    needs_root("hide a system call");
    let mut v = TestVault::init();
    let mut command = v.mount_command();
    without_call(&mut command, libc::SYS_landlock_create_ruleset);
    assert!(command.status().unwrap().success());
    let said = shown(&v);
    assert!(said["sandbox_landlock"].starts_with("off: this kernel has no Landlock"), "{said:?}");
    assert_eq!((said["sandbox_seccomp"].as_str(), said["sandbox_capabilities"].as_str()), ("on", "on"));
    run(Command::new(strongroom()).arg("umount").arg(&v.mnt));

    v.options = vec!["sandbox=landlock+seccomp".to_owned()];
    let mut command = v.mount_command();
    without_call(&mut command, libc::SYS_landlock_create_ruleset);
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(14), "{said}");
    assert!(said.contains("no Landlock"), "{said}");
    assert!(!v.is_mounted());
    // Nobody is left behind, and the vault is free.
    v.mount();
}

#[test]
fn a_caller_that_goes_away_before_the_key_leaves_nobody_behind() {
    let v = TestVault::init();
    let mut command = v.mount_command();
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut with_fd = Command::new(command.get_program());
    let mut skip = 0;
    for argument in arguments {
        // The key comes from a pipe that never gives one.
        if argument == "--password-file" {
            with_fd.args(["--password-fd", "0"]);
            skip = 1;
        } else if skip == 1 {
            skip = 0;
        } else {
            with_fd.arg(argument);
        }
    }
    command = with_fd;
    let mut caller = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mnt = v.mnt.to_str().unwrap().to_owned();
    let ours = || {
        let named = |e: &fs::DirEntry| {
            let pid = e.file_name().to_str()?.parse::<i32>().ok()?;
            let line = fs::read(e.path().join("cmdline")).ok()?;
            let names = String::from_utf8_lossy(&line).contains(&mnt) && runs(pid);
            names.then_some(pid)
        };
        fs::read_dir("/proc").unwrap().flatten().filter_map(|e| named(&e)).collect::<Vec<_>>()
    };
    eventually("caller, daemon and mounter wait for the key", SOON, || ours().len() == 3);
    caller.kill().unwrap();
    caller.wait().unwrap();
    eventually("the others have ended, too", SOON, || ours().is_empty());
    assert!(!v.is_mounted());
    let _ = caller.stdin.take().map(|s| s.as_raw_fd());
}
