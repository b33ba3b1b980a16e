//! What somebody planted in the backing directory is refused by name: no byte leaves the directory, nothing waits.
//!
//! Method: symbolic links, FIFOs, hard links and directories in the place of every kind of file of a vault, before a mount and
//! during one; each link leads to a victim outside that would be harmed if it were followed. One mount is watched by `strace`.
//! Promise: the program ends in time, says which name it refused and what that is, and the victim is as it was; when the
//! plant is taken away the vault is whole.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::{TestVault, eventually, needs_root, output, strongroom};
use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Longer than any mount of these small vaults takes; a FIFO that is opened waits for ever.
const IN_TIME: Duration = Duration::from_secs(90);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plant {
    Symlink,
    Fifo,
    HardLink,
    Directory,
}

const ALL: [Plant; 4] = [Plant::Symlink, Plant::Fifo, Plant::HardLink, Plant::Directory];

impl Plant {
    /// Puts it at `path`; what was there goes to `aside`, which is the victim that a link leads to.
    fn at(self, path: &Path, aside: &Path) {
        if path.exists() {
            fs::rename(path, aside).unwrap();
        } else {
            fs::write(aside, "what is not the vault's").unwrap();
        }
        match self {
            Plant::Symlink => std::os::unix::fs::symlink(aside, path).unwrap(),
            Plant::HardLink => fs::hard_link(aside, path).unwrap(),
            Plant::Directory => fs::create_dir(path).unwrap(),
            Plant::Fifo => {
                let path = CString::new(path.to_str().unwrap()).unwrap();
                // SAFETY: a terminated string.
                assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
            }
        }
    }

    /// What the sentence calls it.
    fn named(self) -> &'static str {
        match self {
            Plant::Symlink => "a symbolic link",
            Plant::Fifo => "a FIFO",
            Plant::HardLink => "hard links",
            Plant::Directory => "a directory",
        }
    }
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// A vault with a file in it, closed.
fn vault() -> TestVault {
    let v = TestVault::mounted();
    fs::write(v.path("file"), "what was written before").unwrap();
    v.umount();
    v
}

fn only(dir: PathBuf) -> String {
    let mut names: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    format!("{}/{}", dir.file_name().unwrap().to_str().unwrap(), names.last().expect("there is one"))
}

#[test]
fn a_plant_at_each_name_is_refused_before_a_mount() {
    let mut v = vault();
    let log = v.outside("log");
    v.options = vec!["show-storage".into()];
    let (segment, index) = (only(v.vault.join("segments")), only(v.vault.join("index")));
    for name in ["vault.toml", "root.a", &segment, &index, "lock", "reserve"] {
        for plant in ALL {
            let (path, aside) = (v.vault.join(name), v.outside("aside"));
            plant.at(&path, &aside);
            let before = (fs::read(&aside).unwrap(), fs::metadata(&aside).unwrap().len());
            let begun = Instant::now();
            let mut mount = v.mount_command();
            mount.args(["--log"]).arg(&log);
            let ran = output(&mut mount);
            assert!(begun.elapsed() < IN_TIME, "{name}, {plant:?}: it waited {:?}", begun.elapsed());
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            // A segment is opened when something in it is read.
            if ran.status.success() && name == segment {
                let read = fs::read(v.path("file"));
                assert_eq!(read.is_ok(), plant == Plant::HardLink, "{plant:?}: {read:?}");
            }
            let logged = fs::read_to_string(&log).unwrap_or_default();
            let refusal = |text: &str| text.lines().any(|l| l.contains(name) && l.contains(plant.named()));
            // A file with other names is replaced by a copy before anything is written to it.
            let harmless = plant == Plant::HardLink;
            // Without its reserve a vault opens, and from the header's copy: then the log tells what was refused.
            let done_without = ["reserve", "vault.toml", &segment].contains(&name);
            if ran.status.success() {
                assert!(harmless || (done_without && refusal(&logged)), "{name}, {plant:?} was taken: {logged}");
                umount(&v);
            } else {
                assert!(refusal(&said), "{name}, {plant:?}: the sentence does not name it: {said}");
                assert!(!harmless && !done_without, "{name}, {plant:?}: {said}");
            }
            if harmless {
                assert!(ran.status.success(), "{name}: {said}");
            }
            let after = (fs::read(&aside).unwrap(), fs::metadata(&aside).unwrap().len());
            assert!(before == after, "{name}, {plant:?}: what lies elsewhere was changed");
            remove(&log);
            if harmless {
                // The vault has gone on in its own file.
                remove(&aside);
            } else {
                remove(&path);
                fs::rename(&aside, &path).unwrap();
            }
        }
    }
    // Nothing that was refused has harmed the vault.
    remove(&v.vault.join("reserve"));
    v.mount();
    assert_eq!(fs::read_to_string(v.path("file")).unwrap(), "what was written before");
    v.umount();
    v.check();
}

fn umount(v: &TestVault) {
    let ran = output(Command::new(strongroom()).arg("umount").arg(&v.mnt));
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn a_directory_of_the_vault_that_became_a_link_is_refused() {
    let v = vault();
    for name in ["segments", "index", "snapshots"] {
        let (path, aside) = (v.vault.join(name), v.outside("aside"));
        Plant::Symlink.at(&path, &aside);
        let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
        let before = names(&aside);
        let (_, said) = v.try_mount().expect_err("it was followed");
        assert!(said.contains(&format!("{name} is a symbolic link")), "{said}");
        assert_eq!(names(&aside), before, "{name}: something was made or removed elsewhere");
        remove(&path);
        fs::rename(&aside, &path).unwrap();
    }
    v.mount();
}

#[test]
fn a_plant_during_a_mount_harms_no_other_file() {
    for plant in ALL {
        let v = vault();
        v.mount();
        let aside = v.outside("aside");
        // The next segments that nobody has made yet, and a root.
        let newest = only(v.vault.join("segments"));
        let newest = u64::from_str_radix(newest.rsplit('/').next().unwrap(), 16).unwrap();
        let next = v.vault.join(format!("segments/{:016x}", newest + 1));
        plant.at(&next, &aside);
        let victim = fs::read(&aside).unwrap();
        let root = v.outside("root aside");
        plant.at(&v.vault.join("root.a"), &root);
        let known = fs::read(&root).unwrap();
        let mut file = fs::File::create(v.path("more")).unwrap();
        let piece = common::rng::Rng(7).bytes(1 << 20);
        // Past the end of one segment, so that the planted name is the next.
        for _ in 0..80 {
            let _ = file.write_all(&piece);
        }
        let synced = file.sync_all().is_ok();
        drop(file);
        assert!(v.storage("state").trim() != "", "the daemon answers");
        let begun = Instant::now();
        let ended = output(Command::new(strongroom()).arg("umount").arg(&v.mnt));
        assert!(begun.elapsed() < IN_TIME, "{plant:?}: the end waited");
        assert!(fs::read(&aside).unwrap() == victim, "{plant:?}: another file was written to through segments/");
        assert!(fs::read(&root).unwrap() == known, "{plant:?}: another file was written to through root.a");
        if v.is_mounted() {
            v.kill9();
        }
        eventually("the daemon is gone", Duration::from_secs(60), || !v.is_mounted());
        remove(&next);
        remove(&v.vault.join("root.a"));
        v.mount();
        assert_eq!(fs::read_to_string(v.path("file")).unwrap(), "what was written before", "{plant:?}");
        let more = fs::metadata(v.path("more")).map(|m| m.size()).unwrap_or(0);
        assert!(!synced || more == 80 << 20, "{plant:?}: {more} bytes are left of what was synced");
        drop(ended);
    }
}

#[test]
fn the_place_for_the_log_in_a_shared_emergency_directory_may_be_no_link() {
    let mut v = vault();
    let (emergency, elsewhere) = (v.outside("emergency"), v.outside("elsewhere"));
    for dir in [&emergency, &elsewhere] {
        fs::create_dir(dir).unwrap();
    }
    let id = fs::read_to_string(v.vault.join("vault.toml")).unwrap();
    let id = id.lines().find_map(|l| l.strip_prefix("id = ").or(l.strip_prefix("vault = "))).expect("the vault's id");
    std::os::unix::fs::symlink(&elsewhere, emergency.join(id.trim_matches('"'))).unwrap();
    v.options = vec![format!("emergency-dir={}", emergency.display())];
    let log = v.outside("log");
    let ran = output(v.mount_command().arg("--log").arg(&log));
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stderr), fs::read_to_string(&log).unwrap_or_default());
    assert!(said.contains("is a symbolic link"), "{said}");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0, "something was made where the link leads");
    if ran.status.success() {
        umount(&v);
    }
}

#[test]
fn the_kernel_is_never_asked_to_open_a_planted_link() {
    needs_root("watch a mount with strace");
    let v = vault();
    let (path, aside, trace) = (v.vault.join("root.a"), v.outside("aside"), v.outside("trace"));
    Plant::Symlink.at(&path, &aside);
    let mount = v.mount_command();
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-e", "trace=%file", "-o"]).arg(&trace).arg(mount.get_program()).args(mount.get_args());
    for (key, value) in mount.get_envs() {
        traced.env(key, value.unwrap());
    }
    let ran = output(&mut traced);
    assert!(!ran.status.success());
    let trace = fs::read_to_string(trace).unwrap();
    let asked: Vec<&str> = trace.lines().filter(|l| l.contains("\"root.a\"")).collect();
    assert!(asked.iter().any(|l| l.contains("S_IFLNK")), "it never looked: {asked:#?}");
    assert!(!asked.iter().any(|l| l.contains("open")), "it tried to open it: {asked:#?}");
    assert!(!trace.contains(aside.to_str().unwrap()), "it followed the link");
    assert!(trace.contains("RESOLVE_BENEATH"), "the strace that watches knows no openat2: {trace}");
}
