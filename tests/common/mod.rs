//! A vault in a temporary directory, mounted by the real program, for tests that use it as any program would.
//!
//! Promise: what a test leaves mounted or running is gone when its `TestVault` is dropped, also when the test panics;
//! a test that hangs on the mount is ended by killing the daemon, and says so.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may")]

pub mod aio;
pub mod disk;
pub mod inject;
pub mod load;
pub mod rng;
pub mod stream;
pub mod tools;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// The program under test: the one just built, unless `STRONGROOM` names another.
pub fn strongroom() -> PathBuf {
    std::env::var_os("STRONGROOM").map_or_else(|| env!("CARGO_BIN_EXE_strongroom").into(), PathBuf::from)
}

/// Most time one command inside a test may take, unless `STRONGROOM_COMMAND_SECONDS_MAX` says more.
const COMMAND_SECONDS_MAX: u64 = 900;

/// A number from the environment, or what the build's speed suggests.
pub fn setting(name: &str, in_release: u64, in_debug: u64) -> u64 {
    match std::env::var(name) {
        Ok(v) => v.parse().unwrap_or_else(|_| panic!("{name}={v} is no number")),
        Err(_) if cfg!(debug_assertions) => in_debug,
        Err(_) => in_release,
    }
}

/// Says how long mounting took after each kill.
pub fn say_times(mut took: Vec<Duration>) {
    took.sort_unstable();
    let Some(most) = took.last() else { return };
    eprintln!("{} kills; mounted again in {:.0?} (median), {most:.0?} at most", took.len(), took[took.len() / 2]);
}

/// Whether the test runs as root.
pub fn is_root() -> bool {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// For tests that cannot say anything without root: fails with one clear sentence.
pub fn needs_root(why: &str) {
    assert!(is_root(), "this test needs root, to {why}: run it as root, or leave it out with --skip");
}

/// What the daemon may need beside its budget: its code, stacks, the allocator's slack.
pub const BESIDE_BUDGET_BYTES: u64 = 64 << 20;

/// Highest resident memory of a process, in bytes.
pub fn memory_high_water_bytes(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).expect("the kernel tells the high-water mark");
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// A vault, its mountpoint and what is needed to mount it.
pub struct TestVault {
    /// Everything below is in here; also free for a test's own files, outside the vault.
    pub dir: tempfile::TempDir,
    /// The backing directory.
    pub vault: PathBuf,
    /// The mountpoint.
    pub mnt: PathBuf,
    /// The file that holds the passphrase, or is the key.
    pub password: PathBuf,
    /// Which of them: the option that names it.
    opened_by: &'static str,
    /// Given to `mount -o`.
    pub options: Vec<String>,
    /// The daemon, or 0.
    daemon: Arc<AtomicI32>,
    _watchdog: mpsc::Sender<()>,
}

impl TestVault {
    /// Makes a vault on the disk that holds the build, and mounts it.
    pub fn mounted() -> TestVault {
        Self::mounted_with(&[])
    }

    /// The same with mount options.
    pub fn mounted_with(options: &[&str]) -> TestVault {
        let mut v = Self::init();
        v.options = options.iter().map(|&o| o.to_owned()).collect();
        v.mount();
        v
    }

    /// Makes a vault and does not mount it.
    pub fn init() -> TestVault {
        Self::init_with(&[])
    }

    /// The same with more arguments to `init`.
    pub fn init_with(arguments: &[&str]) -> TestVault {
        Self::init_in(Path::new(env!("CARGO_TARGET_TMPDIR")), arguments)
    }

    /// The same in a given place, with more arguments to `init`.
    pub fn init_in(place: &Path, arguments: &[&str]) -> TestVault {
        Self::init_apart(place, None, "--password-file", arguments)
    }

    /// A vault that is opened by a key file: deriving a key from a passphrase takes time and memory of its own.
    pub fn init_keyed() -> TestVault {
        Self::init_apart(Path::new(env!("CARGO_TARGET_TMPDIR")), None, "--key-file", &[])
    }

    /// A vault on a disk of its own, everything else where the build is.
    pub fn init_on(disk: &disk::Disk) -> TestVault {
        Self::init_apart(Path::new(env!("CARGO_TARGET_TMPDIR")), Some(disk.at.join("vault")), "--password-file", &[])
    }

    /// The same in a directory that is somewhere else.
    pub fn init_at(vault: PathBuf) -> TestVault {
        Self::init_apart(Path::new(env!("CARGO_TARGET_TMPDIR")), Some(vault), "--password-file", &[])
    }

    fn init_apart(place: &Path, vault: Option<PathBuf>, opened_by: &'static str, arguments: &[&str]) -> TestVault {
        assert!(Path::new("/dev/fuse").exists(), "there is no /dev/fuse: these tests need FUSE (see .ci/setup)");
        let dir = tempfile::Builder::new().prefix("vault-").tempdir_in(place).unwrap();
        let vault = vault.unwrap_or_else(|| dir.path().join("vault"));
        let (mnt, password) = (dir.path().join("mnt"), dir.path().join("password"));
        fs::create_dir(&mnt).unwrap();
        // As a key it is long enough to be let pass.
        fs::write(&password, "a passphrase, or 32 bytes and more, for tests\n").unwrap();
        // The cheapest passphrase that is let pass: these tests mount often.
        run(Command::new(strongroom())
            .args(["init", "--argon2", "65536,3,4", opened_by])
            .arg(&password)
            .args(arguments)
            .arg(&vault));
        let daemon = Arc::new(AtomicI32::new(0));
        let _watchdog = watchdog(Arc::clone(&daemon));
        TestVault { dir, vault, mnt, password, opened_by, options: Vec::new(), daemon, _watchdog }
    }

    /// The command that mounts it; what it prints goes to a file, which a daemon may keep open.
    pub fn mount_command(&self) -> Command {
        let mut c = Command::new(strongroom());
        // What it remembers of the vault goes when the vault does.
        c.env("STRONGROOM_STATE_DIR", self.dir.path().join("state"));
        c.args(["mount", self.opened_by]).arg(&self.password);
        if !self.options.is_empty() {
            c.arg("-o").arg(self.options.join(","));
        }
        c.arg(&self.vault).arg(&self.mnt).stdin(Stdio::null());
        c
    }

    /// Mounts and says what went wrong, if something did.
    pub fn try_mount(&self) -> Result<(), (Option<i32>, String)> {
        let said = self.dir.path().join("mount.out");
        let out = fs::File::create(&said).unwrap();
        let status = self.mount_command().stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
        if !status.success() {
            return Err((status.code(), fs::read_to_string(said).unwrap_or_default()));
        }
        assert!(self.is_mounted(), "mount returned 0 and nothing is mounted");
        self.daemon.store(self.find_daemon(), SeqCst);
        Ok(())
    }

    /// Mounts.
    pub fn mount(&self) {
        if let Err((code, said)) = self.try_mount() {
            panic!("mount failed with exit code {code:?}: {said}");
        }
    }

    /// Unmounts as a person would; when this returns, all is in the backing directory and the daemon is gone.
    pub fn umount(&self) {
        run(Command::new(strongroom()).arg("umount").arg(&self.mnt));
        assert!(!self.is_mounted(), "umount returned 0 and it is still mounted");
        self.wait_for_end();
    }

    /// Unmounts and mounts again.
    pub fn remount(&self) {
        self.umount();
        self.mount();
    }

    /// Unmounts, reads and verifies every byte of the vault, and mounts it again.
    pub fn checked_remount(&self) {
        self.umount();
        self.check();
        self.mount();
    }

    /// Kills the daemon as a crash would, and takes the dead mount away.
    pub fn kill9(&self) {
        let pid = self.daemon.load(SeqCst);
        assert!(pid > 1, "no daemon to kill");
        // SAFETY: a signal to the daemon this test started.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "the daemon {pid} had died by itself");
        self.wait_for_end();
        self.detach();
    }

    /// The daemon's process id.
    pub fn pid(&self) -> i32 {
        self.daemon.load(SeqCst)
    }

    /// A path in the mount.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mnt.join(name)
    }

    /// A path beside the vault, on the plain disk.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The text of a file of `/.storage`.
    pub fn storage(&self, name: &str) -> String {
        let path = self.mnt.join(".storage").join(name);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// The vault's state.
    pub fn state(&self) -> String {
        self.storage("state").trim().to_owned()
    }

    /// The states of the history since `init`, this mount's and earlier ones'.
    pub fn states(&self) -> Vec<String> {
        let word = |l: &str| l.split_once(' ')?.1.split(':').next().map(str::to_owned);
        self.storage("history").lines().filter_map(word).filter(|w| w != "init").collect()
    }

    /// Gives an order to the vault.
    pub fn order(&self, order: &str) -> io::Result<()> {
        fs::write(self.mnt.join(".storage/control"), order)
    }

    /// `strongroom check --read-data` of the vault, which is not mounted: nothing is wrong.
    pub fn check(&self) {
        let mut c = Command::new(strongroom());
        c.env("STRONGROOM_STATE_DIR", self.dir.path().join("state"));
        run(c.args(["check", "--read-data", self.opened_by]).arg(&self.password).arg(&self.vault));
    }

    /// Bytes not yet safe.
    pub fn pending(&self) -> u64 {
        let text = self.storage("pending");
        text.trim().parse().unwrap_or_else(|_| panic!("pending is no number: {text:?}"))
    }

    /// Whether the kernel knows the mount.
    pub fn is_mounted(&self) -> bool {
        let mnt = self.mnt.to_str().unwrap();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().any(|l| l.split(' ').nth(4) == Some(mnt))
    }

    /// Segment files of the backing directory.
    pub fn segments(&self) -> Vec<PathBuf> {
        let mut all: Vec<_> = fs::read_dir(self.vault.join("segments"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.is_file())
            .collect();
        all.sort();
        all
    }

    fn find_daemon(&self) -> i32 {
        let said = fs::read_to_string(self.mnt.join(".storage/config")).unwrap_or_default();
        for line in said.lines() {
            if let Some((key, value)) = line.split_once(char::is_whitespace)
                && key == "pid"
                && let Ok(pid) = value.trim().parse()
            {
                return pid;
            }
        }
        let mnt = self.mnt.to_str().unwrap().as_bytes();
        let mine = std::process::id() as i32;
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
            let words: Vec<&[u8]> = line.split(|&b| b == 0).collect();
            if pid != mine && words.first().is_some_and(|w| w.ends_with(b"strongroom")) && words.contains(&mnt) {
                return pid;
            }
        }
        panic!("the mount has no daemon: neither .storage/config nor /proc names one");
    }

    fn wait_for_end(&self) {
        let pid = self.daemon.swap(0, SeqCst);
        let until = Instant::now() + Duration::from_secs(30);
        while pid > 0 && alive(pid) {
            assert!(Instant::now() < until, "the daemon {pid} is still there 30 s after its end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn detach(&self) {
        let mnt = std::ffi::CString::new(self.mnt.to_str().unwrap()).unwrap();
        // SAFETY: a terminated string.
        if unsafe { libc::umount2(mnt.as_ptr(), libc::MNT_DETACH) } != 0 {
            let _ = Command::new("fusermount3").args(["-u", "-z"]).arg(&self.mnt).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for TestVault {
    fn drop(&mut self) {
        if std::thread::panicking() && self.is_mounted() {
            let errors = fs::read_to_string(self.mnt.join(".storage/errors")).unwrap_or_default();
            eprintln!("/.storage/errors at the end:\n{errors}");
        }
        if self.is_mounted() {
            self.detach();
        }
        let pid = self.daemon.swap(0, SeqCst);
        // The daemon flushes and ends by itself once nobody holds the mount; it is not waited for longer than this.
        let until = Instant::now() + Duration::from_secs(20);
        while pid > 1 && alive(pid) {
            if Instant::now() > until {
                // SAFETY: a signal to the daemon this test started.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Whether the process runs (a zombie does not).
fn alive(pid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X'])),
        Err(_) => false,
    }
}

/// Kills the daemon after a long time, so that system calls which hang on the mount come back with an error.
fn watchdog(daemon: Arc<AtomicI32>) -> mpsc::Sender<()> {
    let limit = Duration::from_secs(setting("STRONGROOM_TEST_SECONDS_MAX", 1200, 1200));
    let (keep, dropped) = mpsc::channel();
    std::thread::spawn(move || {
        if dropped.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            let pid = daemon.load(SeqCst);
            eprintln!("the test takes longer than {limit:?}: killing the daemon {pid}");
            if pid > 1 {
                // SAFETY: a signal to the daemon this test started.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    });
    keep
}

/// Runs a command under a time limit; gives its output whatever its exit code.
pub fn output(command: &mut Command) -> Output {
    let mut limited = Command::new("timeout");
    let seconds = setting("STRONGROOM_COMMAND_SECONDS_MAX", COMMAND_SECONDS_MAX, COMMAND_SECONDS_MAX);
    limited.args(["-k", "10", &seconds.to_string()]).arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        limited.current_dir(dir);
    }
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(key, value),
            None => limited.env_remove(key),
        };
    }
    limited.stdin(Stdio::null());
    limited.output().unwrap_or_else(|e| panic!("{command:?}: {e} (.ci/setup installs what these tests need)"))
}

/// Runs a command that must succeed; gives what it printed.
pub fn run(command: &mut Command) -> String {
    let out = output(command);
    let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?}\n{}\n{said}\n{complained}", out.status);
    said.into_owned()
}

/// A shell line that must succeed, in `dir`; `$1`, `$2`… are the arguments.
pub fn shell<A: AsRef<OsStr>>(dir: &Path, line: &str, arguments: &[A]) -> String {
    run(Command::new("bash").args(["-euo", "pipefail", "-c", line, "bash"]).args(arguments).current_dir(dir))
}

/// Waits until it holds.
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Real source files to work with: directories with at least `files` files in all, from the cargo registry, else from
/// the system's headers and documents.
pub fn real_tree(files: usize) -> Vec<PathBuf> {
    let mut roots = Vec::new();
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cargo"));
    for base in [cargo, home].into_iter().flatten() {
        roots.extend(fs::read_dir(base.join("registry/src")).into_iter().flatten().flatten().map(|e| e.path()));
    }
    roots.extend(["/usr/include", "/usr/share/doc", "/usr/share"].map(PathBuf::from));
    let (mut chosen, mut count) = (Vec::new(), 0);
    for root in roots {
        let mut dirs: Vec<PathBuf> =
            fs::read_dir(&root).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
        dirs.sort();
        for dir in dirs {
            if count >= files {
                return chosen;
            }
            // A directory of a name already taken (a crate in two registries) would be copied into the first.
            if chosen.iter().any(|c: &PathBuf| c.file_name() == dir.file_name()) {
                continue;
            }
            count += walk(&dir).map_or(0, |w| w.len());
            chosen.push(dir);
        }
    }
    assert!(count > 100, "no real files were found to work with");
    chosen
}

/// Every path below `root`, relative to it, in order; symlinks are not followed.
pub fn walk(root: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut dirs) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                dirs.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
