//! Single files and directories: what a link shows while the kernel holds unwritten data, deep trees that move, many
//! subdirectories, and the special files that a home directory holds.

use super::Stop;
use crate::common::{TestVault, eventually, output, run, setting, shell};
use std::ffi::CString;
use std::fs::{self, File, FileTimes};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, SystemTime};

#[test]
fn a_new_link_and_a_new_name_show_what_only_the_kernel_has() {
    let v = TestVault::mounted();
    let names = |i: usize| (v.path(format!("first-{i}")), v.path(format!("link-{i}")), v.path(format!("moved-{i}")));
    let len = |i: usize| 1 + i * 137;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(6);
    for i in 0..80 {
        let (first, link, moved) = names(i);
        let n = len(i);
        let mut file = File::create(&first).unwrap();
        file.write_all(&vec![b'q'; n]).unwrap();
        fs::hard_link(&first, &link).unwrap();
        let m = fs::metadata(&link).unwrap();
        assert_eq!((m.len(), m.nlink()), (n as u64, 2), "a link to file {i}");

        file.write_all(&vec![b'r'; n]).unwrap();
        fs::set_permissions(&link, fs::Permissions::from_mode(0o600)).unwrap();
        run(Command::new("setfattr").args(["-n", "user.colour", "-v", "green"]).arg(&link));
        fs::rename(&link, &moved).unwrap();
        assert_eq!(fs::metadata(&moved).unwrap().len(), 2 * n as u64, "file {i} under its new name");
        let want = [vec![b'q'; n], vec![b'r'; n]].concat();
        assert!(fs::read(&moved).unwrap() == want, "content of file {i} under its new name");

        // The writer's data reaches the daemon only when the writer closes, and must not move the time again.
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
        drop(file);
        assert_eq!(fs::metadata(&first).unwrap().mtime(), 6, "time of file {i} after its close");
    }
    v.remount();
    for i in 0..80 {
        let (first, _, moved) = names(i);
        for path in [&first, &moved] {
            let m = fs::metadata(path).unwrap();
            let facts = (m.len(), m.nlink(), m.mtime(), m.mode() & 0o777);
            assert_eq!(facts, (2 * len(i) as u64, 2, 6, 0o600), "{} after a remount", path.display());
        }
    }
}

/// Levels of each deep tree.
const LEVELS: usize = 1200;

/// A path to an open directory that stays short however deep the directory lies.
fn short(dir: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

/// Makes a chain of directories called `d`; gives the first and the last.
fn chain(at: &Path) -> (File, File) {
    fs::create_dir(at).unwrap();
    let top = File::open(at).unwrap();
    let mut last = File::open(at).unwrap();
    for _ in 0..LEVELS {
        fs::create_dir(short(&last).join("d")).unwrap();
        last = File::open(short(&last).join("d")).unwrap();
    }
    (top, last)
}

#[test]
fn deep_trees_move_below_each_other_beside_somebody_at_work() {
    let v = TestVault::mounted();
    let (stop, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|s| {
        let neighbor = s.spawn(|| {
            while !stop.load(SeqCst) {
                let name = v.path(format!("neighbor-{}", turns.fetch_add(1, SeqCst)));
                fs::create_dir(&name).unwrap();
                fs::remove_dir(&name).unwrap();
            }
        });
        // Dropped also when a move fails: a scope waits for its threads.
        let end = Stop(&stop);
        let (x, x_end) = chain(&v.path("x"));
        let (_y, y_end) = chain(&v.path("y"));
        fs::write(short(&x_end).join("at the end"), "x").unwrap();
        let (home, away) = (short(&x).join("d"), short(&y_end).join("moved"));
        let before = turns.load(SeqCst);
        for _ in 0..30 {
            fs::rename(&home, &away).unwrap();
            // The tree that was moved is now above none of its own directories, and below all of the other's.
            let refused = fs::rename(v.path("y"), short(&x_end).join("y")).expect_err("a loop");
            assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
            fs::rename(&away, &home).unwrap();
        }
        fs::rename(&home, &away).unwrap();
        assert!(turns.load(SeqCst) > before, "the neighbor was not served during 60 moves");
        drop(end);
        neighbor.join().unwrap();
    });
    v.checked_remount();
    let depth = shell(&v.mnt, "find y -name 'at the end' -printf '%d'", &[""; 0]);
    assert_eq!(depth.trim(), (2 * LEVELS + 1).to_string(), "depth of the file at the end of both trees");
    run(Command::new("rm").arg("-r").arg(v.path("y")));
    assert!(!v.path("y").exists());
}

/// A debug build takes half a minute for the 66,000 that a release build tries; `STRONGROOM_SUBDIRECTORIES=66000` asks for
/// them there as well.
#[test]
fn a_directory_takes_more_than_65000_subdirectories() {
    let count = setting("STRONGROOM_SUBDIRECTORIES", 66_000, 1_000);
    let v = TestVault::mounted();
    let dir = v.path("dir");
    fs::create_dir(&dir).unwrap();
    for i in 0..count {
        fs::create_dir(dir.join(i.to_string())).unwrap_or_else(|e| panic!("subdirectory {i}: {e}"));
    }
    v.remount();
    assert_eq!(fs::read_dir(&dir).unwrap().count() as u64, count);
    assert_eq!(fs::metadata(&dir).unwrap().nlink(), count + 2);
    let refused = fs::remove_dir(&dir).expect_err("it is not empty");
    assert_eq!(refused.raw_os_error(), Some(libc::ENOTEMPTY));
    for i in 0..count {
        fs::remove_dir(dir.join(i.to_string())).unwrap();
    }
    assert_eq!(fs::metadata(&dir).unwrap().nlink(), 2);
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn sockets_pipes_and_locks_of_a_home_work() {
    let v = TestVault::mounted();
    fs::create_dir(v.path("agent")).unwrap();
    // A socket's path has room for 107 bytes only.
    let dir = File::open(v.path("agent")).unwrap();
    let at = |name: &str| short(&dir).join(name);
    let listener = UnixListener::bind(at("stream")).unwrap();
    UnixStream::connect(at("stream")).unwrap().write_all(b"through").unwrap();
    let mut text = String::new();
    listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
    let receiver = UnixDatagram::bind(at("datagram")).unwrap();
    assert_eq!(UnixDatagram::unbound().unwrap().send_to(b"one", at("datagram")).unwrap(), 3);
    assert_eq!(receiver.recv(&mut [0; 9]).unwrap(), 3);
    fs::rename(v.path("agent"), v.path("renamed")).unwrap();
    UnixStream::connect(at("stream")).expect("a socket is found after its directory was renamed");

    let fifo = CString::new(v.path("pipe").to_str().unwrap()).unwrap();
    // SAFETY: a terminated string.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    std::thread::scope(|s| {
        s.spawn(|| fs::write(v.path("pipe"), "through").unwrap());
        assert_eq!(fs::read_to_string(v.path("pipe")).unwrap(), "through");
    });

    let lock = File::create(v.path("lock")).unwrap();
    lock.lock_shared().unwrap();
    let flock = |how: &str| output(Command::new("flock").args(["-n", how]).arg(v.path("lock")).arg("true"));
    assert!(flock("-s").status.success(), "a second shared lock");
    assert_eq!(flock("-x").status.code(), Some(1), "an exclusive lock beside a shared one");
    lock.unlock().unwrap();
    assert!(flock("-x").status.success(), "an exclusive lock on a free file");

    // Other threads of this process start programs too: they could hold a file open for a moment, so a shell does this.
    let line = "cp /bin/true program; ./program; cat program >second; chmod +x second; ./second
                if (exec 3>>second; ./second) 2>said; then echo a program ran while somebody could write to it; exit 1; fi
                grep -q 'Text file busy' said; ./second";
    shell(&v.mnt, line, &[""; 0]);
    drop((listener, receiver, lock, dir));
    v.remount();
    // Nobody listens any more, and the socket's file stays, as on every filesystem.
    let dir = File::open(v.path("renamed")).unwrap();
    let refused = UnixStream::connect(short(&dir).join("stream")).expect_err("nobody listens");
    assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED), "{refused}");
}

#[test]
fn gpg_keeps_its_home_in_the_mount() {
    let v = TestVault::mounted();
    let beside = tempfile::tempdir().unwrap();
    let gpg = |arguments: &[&str]| {
        let mut c = Command::new("gpg");
        run(c.arg("--homedir").arg(v.path("gnupg")).args(["--batch", "--no-tty"]).args(arguments))
    };
    fs::create_dir(v.path("gnupg")).unwrap();
    fs::set_permissions(v.path("gnupg"), fs::Permissions::from_mode(0o700)).unwrap();
    let text = beside.path().join("text");
    fs::write(&text, "a text\n").unwrap();
    gpg(&["--passphrase", "", "--quick-generate-key", "somebody", "ed25519", "sign"]);
    gpg(&["--sign", text.to_str().unwrap()]);
    let stop = || run(Command::new("gpgconf").arg("--homedir").arg(v.path("gnupg")).args(["--kill", "all"]));
    stop();
    eventually("gpg's agent has left the mount", Duration::from_secs(20), || {
        !output(Command::new("fuser").arg("-m").arg(&v.mnt)).status.success()
    });
    v.checked_remount();
    gpg(&["--verify", text.with_extension("gpg").to_str().unwrap()]);
    stop();
    // The judge is worth something: a changed signature is refused.
    let signed = text.with_extension("gpg");
    let mut bytes = fs::read(&signed).unwrap();
    let at = bytes.len() - 9;
    bytes[at] ^= 1;
    fs::write(&signed, bytes).unwrap();
    let mut c = Command::new("gpg");
    let judged = output(c.arg("--homedir").arg(v.path("gnupg")).args(["--batch", "--verify"]).arg(&signed));
    assert!(!judged.status.success(), "gpg took a changed signature");
    stop();
}
