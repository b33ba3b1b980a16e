//! The bounds hold: memory, quota, time to be at rest, who may enter; and the numbers shown are well formed.
//!
//! Method: each bound is pushed against on a real mount. The parser of Prometheus text below is stricter than
//! Prometheus, and is itself tried on planted faults.
//! Promise: DESIGN's limits as a user meets them: the daemon's resident memory stays within its budget and 64 MiB, a
//! full quota is ENOSPC and deleting makes room, 6 s after the last write nothing is pending.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::rng::Rng;
use common::{TestVault, eventually, memory_high_water_bytes, needs_root, run, setting, shell, strongroom};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const MIB: u64 = 1 << 20;

#[test]
fn memory_stays_within_the_budget_whatever_is_written() {
    let budget = 64 * MIB;
    let v = TestVault::mounted_with(&[&format!("budget={budget}")]);
    let size = setting("STRONGROOM_LIMIT_MIB", 1024, 400) * MIB;
    let (noise, text) = (Rng(1).bytes(MIB as usize), Rng(2).text(MIB as usize));
    std::thread::scope(|s| {
        for writer in 0..4u64 {
            let (v, noise, text) = (&v, &noise, &text);
            s.spawn(move || {
                let mut f = File::create(v.path(format!("big-{writer}"))).unwrap();
                for n in 0..size / MIB / 4 {
                    f.write_all(if n % 3 == 0 { text } else { noise }).unwrap();
                }
                f.sync_all().unwrap();
            });
        }
    });
    for writer in 0..4 {
        let mut f = File::open(v.path(format!("big-{writer}"))).unwrap();
        assert_eq!(io::copy(&mut f, &mut io::sink()).unwrap(), size / 4 / MIB * MIB);
    }
    let high = memory_high_water_bytes(v.pid());
    assert!(high <= budget + 64 * MIB, "the daemon held {} MiB with a budget of {} MiB", high / MIB, budget / MIB);
}

/// Writes and syncs until refused; gives how much was taken, and the refusal.
fn write_until_refused(path: &Path, most_bytes: u64) -> (u64, Option<io::Error>) {
    let mut rng = Rng(3);
    let mut f = match File::create(path) {
        Ok(f) => f,
        Err(e) => return (0, Some(e)),
    };
    let mut taken = 0;
    while taken < most_bytes {
        // With the kernel's write-back cache a refusal may come with the write or with the sync.
        if let Err(e) = f.write_all(&rng.bytes(256 << 10)).and_then(|()| f.sync_data()) {
            return (taken, Some(e));
        }
        taken += 256 << 10;
    }
    (taken, None)
}

#[test]
fn a_full_quota_is_enospc_and_deleting_makes_room() {
    let quota = 24 * MIB;
    let v = TestVault::init_with(&["--quota", &quota.to_string()]);
    v.mount();
    for round in 0..3 {
        let (taken, refusal) = write_until_refused(&v.path("fill"), 4 * quota);
        let refusal = refusal.unwrap_or_else(|| panic!("{taken} bytes were taken with a quota of {quota}"));
        assert_eq!(refusal.raw_os_error(), Some(libc::ENOSPC), "round {round}: {refusal}");
        assert!(taken <= quota, "round {round}: {taken} bytes were acknowledged with a quota of {quota}");
        assert!(taken >= quota / 2, "round {round}: refused after {taken} bytes of {quota}");
        assert_eq!(write_until_refused(&v.path("more"), MIB).1.and_then(|e| e.raw_os_error()), Some(libc::ENOSPC));
        let space = statvfs(&v.mnt);
        assert!(space.f_bavail * space.f_frsize < quota / 4, "statvfs tells of room that is not there");
        fs::remove_file(v.path("fill")).expect("deleting works when full");
        let _ = fs::remove_file(v.path("more"));
        let (taken, refusal) = write_until_refused(&v.path("again"), 4 * MIB);
        assert!(refusal.is_none(), "round {round}: no room after deleting: {refusal:?} after {taken}");
        fs::remove_file(v.path("again")).unwrap();
        if round == 1 {
            v.remount();
        }
    }
    let space = statvfs(&v.mnt);
    let total = space.f_blocks * space.f_frsize;
    assert!(total <= quota + MIB && total >= quota - MIB, "statvfs tells {total} bytes in all with a quota of {quota}");
}

#[test]
fn pages_that_do_not_fit_are_said_at_umount_and_do_not_hold_the_mount_for_ever() {
    let v = TestVault::init_with(&["--quota", &(8 * MIB).to_string()]);
    v.mount();
    let len = 32 * MIB as usize;
    let file = File::options().read(true).write(true).create(true).truncate(true).open(v.path("mapped")).unwrap();
    file.set_len(len as u64).unwrap();
    let (prot, fd) = (libc::PROT_READ | libc::PROT_WRITE, std::os::fd::AsRawFd::as_raw_fd(&file));
    // SAFETY: a new mapping of a file that is long enough.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, 0) };
    assert_ne!(map, libc::MAP_FAILED);
    // Closed before it is changed, so that no close can tell of the pages.
    drop(file);
    let bytes = Rng(9).bytes(len);
    // SAFETY: the mapping has `len` bytes, and nobody else knows it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), map.cast(), len) };
    let umount = || common::output(std::process::Command::new(common::strongroom()).arg("umount").arg(&v.mnt));
    let first = umount();
    let said = String::from_utf8_lossy(&first.stderr).into_owned();
    assert_eq!(first.status.code(), Some(12), "written pages were lost without a word: {said}");
    assert!(said.contains("No space left") && v.is_mounted(), "{said}");
    // SAFETY: it is not used any more.
    assert_eq!(unsafe { libc::munmap(map, len) }, 0);
    let second = umount();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    // It goes, but no fsync has told anybody, and nothing is left that could be saved.
    assert!(second.status.code() == Some(12) && !v.is_mounted(), "{said}");
    assert!(said.contains("unmounted, but") && said.contains("not saved: /mapped (inode "), "{said}");
    v.mount();
    assert_eq!(fs::metadata(v.path("mapped")).unwrap().len(), len as u64);
}

fn statvfs(path: &Path) -> libc::statvfs {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let mut s = std::mem::MaybeUninit::uninit();
    // SAFETY: a terminated string, and room for the answer.
    assert_eq!(unsafe { libc::statvfs(path.as_ptr(), s.as_mut_ptr()) }, 0);
    // SAFETY: the call succeeded, so it is filled.
    unsafe { s.assume_init() }
}

#[test]
fn nothing_is_pending_six_seconds_after_the_last_write() {
    let v = TestVault::mounted();
    let mut rng = Rng(4);
    for n in 0..40 {
        let len = rng.below(900_000) as usize;
        fs::write(v.path(format!("file-{n}")), rng.bytes(len)).unwrap();
    }
    eventually("pending 0", Duration::from_secs(6), || v.pending() == 0);
    eventually("ready", Duration::from_secs(1), || v.storage("state").trim() == "ready");
}

#[test]
fn storage_is_complete_finite_and_not_in_the_way() {
    let v = TestVault::mounted();
    fs::write(v.path("file"), Rng(5).bytes(3_000_000)).unwrap();
    File::open(v.path("file")).unwrap().sync_all().unwrap();
    const FILES: [&str; 11] = [
        "state",
        "pending",
        "status",
        "stats.json",
        "metrics",
        "history",
        "errors",
        "buffers",
        "workers",
        "quota",
        "config",
    ];
    for name in FILES.into_iter().chain(["version", "scrub"]) {
        let text = v.storage(name);
        assert!(!text.is_empty() || name == "errors", "/.storage/{name} is empty");
        let mode = fs::metadata(v.path(".storage").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "/.storage/{name} may be read by others: {mode:o}");
    }
    let stats: serde_json::Value = serde_json::from_str(&v.storage("stats.json")).expect("stats.json is JSON");
    assert!(stats.is_object());
    let listed: Vec<_> = fs::read_dir(&v.mnt).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(listed, ["file"], "the root lists what a program did not put there");
    let inside: BTreeSet<_> =
        fs::read_dir(v.path(".storage")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    for name in FILES.into_iter().chain(["version", "scrub", "control", "unsaved"]) {
        assert!(inside.contains(name), "/.storage does not list {name}: {inside:?}");
    }
    for refused in [fs::remove_dir_all(v.path(".storage")), fs::write(v.path(".storage/state"), "ready")] {
        assert!(refused.is_err(), "/.storage lets itself be changed");
    }
    fs::write(v.path(".storage/control"), "flush\n").expect("control takes 'flush'");
    // Where the kernel holds writes back, the answer comes at fsync (and at close, where `fs::write` does not look).
    let nonsense = File::options().write(true).open(v.path(".storage/control")).and_then(|mut control| {
        control.write_all(b"no such command\n")?;
        control.sync_all()
    });
    let answer = nonsense.expect_err("control takes anything").raw_os_error();
    assert_eq!(answer, Some(libc::EINVAL));
}

#[test]
fn metrics_are_prometheus_text() {
    let v = TestVault::mounted();
    fs::write(v.path("file"), Rng(6).bytes(2_000_000)).unwrap();
    File::open(v.path("file")).unwrap().sync_all().unwrap();
    let before = prometheus(&v.storage("metrics")).unwrap_or_else(|e| panic!("{e}"));
    assert!(before.len() >= 20, "few metrics: {:?}", before.keys().collect::<Vec<_>>());
    assert!(before.keys().all(|k| k.starts_with("strongroom_")), "a metric without the program's name");
    fs::write(v.path("second"), Rng(7).bytes(2_000_000)).unwrap();
    File::open(v.path("second")).unwrap().sync_all().unwrap();
    let after = prometheus(&v.storage("metrics")).unwrap_or_else(|e| panic!("{e}"));
    let mut grew = 0;
    for (name, value) in &before {
        if name.contains("_total") || name.contains("_bucket") || name.ends_with("_count") {
            assert!(after[name] >= *value, "{name} only grows, and fell from {value} to {}", after[name]);
            grew += usize::from(after[name] > *value);
        }
    }
    assert!(grew > 5, "2 MB were written and synced, and only {grew} counters moved");
}

#[test]
fn a_program_keeps_a_storage_directory_of_its_own_beside_ours() {
    let v = TestVault::mounted();
    let dir = v.dir.path();
    let script = r#"
        mkdir -p ha/.storage/deep; echo '{}' >ha/.storage/core.config; echo x >ha/.storage/deep/x; chmod 750 ha/.storage
        touch -d '2001-02-03 04:05:06' ha/.storage
        mkdir -p mnt/.storage; echo 1 >mnt/.storage/first; mv mnt/.storage/first mnt/.storage/second
        ln mnt/.storage/second mnt/.storage/third; ln -s second mnt/.storage/fourth
        test "$(ls -A mnt)" = .storage; test "$(ls mnt/.storage | tr '\n' ' ')" = 'fourth second third '
        rm -r mnt/.storage; test "$(ls -A mnt)" = ''
        cat mnt/.storage/version >/dev/null
        tar -C ha -cf t.tar .; tar -C mnt -xf t.tar; diff -r ha mnt
        test "$(stat -c '%a %Y' mnt/.storage)" = "$(stat -c '%a %Y' ha/.storage)"
        rm -r mnt/.storage; cp -a ha/. mnt/; diff -r ha mnt
        test "$(stat -c '%a %Y' mnt/.storage)" = "$(stat -c '%a %Y' ha/.storage)"
    "#;
    shell(dir, script, &[""]);
    // Ours are there all the same, also after a remount, and our own commands find them.
    for _ in 0..2 {
        assert!(v.storage("version").starts_with("strongroom "));
        v.order("flush").unwrap();
        assert_eq!(fs::read_to_string(v.path(".storage/core.config")).unwrap(), "{}\n");
        v.checked_remount();
    }
    // A file of the program's own that has a name of ours is its own.
    fs::write(v.path(".storage/mine"), "mine").unwrap();
    fs::rename(v.path(".storage/mine"), v.path(".storage/state")).unwrap();
    assert_eq!(v.storage("state"), "mine");
    assert!(run(Command::new(strongroom()).arg("status").arg(&v.mnt)).contains("state"));
    for refused in [
        fs::remove_file(v.path(".storage/version")),
        fs::write(v.path(".strongroom-storage/version"), ""),
        fs::rename(v.path(".storage"), v.path(".strongroom-storage")),
    ] {
        assert!(refused.is_err());
    }
}

#[test]
fn the_storage_directory_has_another_name_or_none_and_every_command_finds_it() {
    let mut v = TestVault::init_keyed();
    for name in ["odd name", "none"] {
        v.options = vec![format!("storage-name={name}")];
        let mut mount = v.mount_command();
        mount.stdout(Stdio::null()).stderr(Stdio::null());
        assert!(mount.status().unwrap().success());
        fs::create_dir_all(v.path(".storage")).unwrap();
        fs::write(v.path(".storage/state"), "a program's").unwrap();
        assert_eq!(fs::read_to_string(v.path(".storage/state")).unwrap(), "a program's");
        assert_eq!(v.path(name).join("version").exists(), name != "none");
        assert!(fs::read_dir(&v.mnt).unwrap().all(|entry| entry.unwrap().file_name() == ".storage"));
        let own = |words: &[&str], place: &Path, more: &[&str]| {
            let mut c = Command::new(strongroom());
            c.env("STRONGROOM_STATE_DIR", v.outside("state"));
            run(c.args(words).arg(place).args(more))
        };
        let key = ["--key-file", v.password.to_str().unwrap()];
        assert!(own(&["status"], &v.mnt, &[]).contains("not yet safe"));
        assert!(own(&["status", "--json"], &v.mnt, &[]).contains("counters"));
        own(&["scrub"], &v.mnt, &[]);
        own(&["quota", "set"], &v.mnt, &["--tree", "/.storage", "--bytes", "1G"]);
        assert!(own(&["quota", "show"], &v.mnt, &[]).contains("/.storage"));
        own(&["key", "add"], &v.vault, &[&key[..], &["--new-recovery-key"]].concat());
        own(&["umount"], &v.mnt, &[]);
        assert!(!v.is_mounted());
        own(&["check", "--read-data"], &v.vault, &key);
    }
}

#[test]
fn a_listed_storage_directory_can_be_archived_and_copied() {
    let v = TestVault::mounted_with(&["show-storage"]);
    fs::write(v.path("file"), Rng(8).bytes(200_000)).unwrap();
    // Somebody writes all the while, so that the numbers move.
    let script = r#"
        (while :; do head -c 300000 /dev/urandom >mnt/busy; done) & writer=$!
        trap 'kill $writer' EXIT
        for n in 1 2 3 4 5; do
            tar -cf t.tar mnt/.storage; rm -rf copy; cp -a mnt/.storage copy
            tar -tf t.tar | grep -c stats.json >/dev/null; tail -1 copy/status >/dev/null
        done
    "#;
    shell(v.dir.path(), script, &[""]);
    let stats: serde_json::Value = serde_json::from_slice(&fs::read(v.outside("copy/stats.json")).unwrap()).unwrap();
    assert!(stats["counters"].is_object());
    // One number for each file, which a 32-bit program can read.
    let numbers = || -> BTreeMap<_, _> {
        let all = fs::read_dir(v.path(".storage")).unwrap().map(|entry| entry.unwrap());
        all.map(|entry| (entry.file_name(), entry.metadata().unwrap().ino())).collect()
    };
    let (once, again) = (numbers(), numbers());
    assert_eq!(once, again);
    assert!(once.values().all(|shown| *shown <= u64::from(u32::MAX)), "{once:?}");
    let different: BTreeSet<_> = once.values().collect();
    assert_eq!(different.len(), once.len());
    // A process that reads twice sees two states; a look that nobody read is given again.
    let path = v.path(".storage/stats.json");
    let text = || fs::read_to_string(&path).unwrap();
    assert_ne!(text(), text());
    let (first, second) = (fs::metadata(&path).unwrap(), fs::metadata(&path).unwrap());
    assert_eq!(first.modified().unwrap(), second.modified().unwrap());
    assert_eq!(text().len() as u64, second.len());
}

#[test]
fn the_metrics_of_two_mounts_are_scraped_together() {
    let (one, two) = (TestVault::mounted(), TestVault::mounted());
    let texts = [&one, &two].map(|v| prometheus(&v.storage("metrics")).unwrap_or_else(|e| panic!("{e}")));
    let both: Vec<_> = texts[0].keys().filter(|series| texts[1].contains_key(*series)).collect();
    assert!(both.is_empty(), "a collector has these twice: {both:?}");
    for (v, text) in [&one, &two].into_iter().zip(&texts) {
        let own = format!("{{vault=\"{}\",mountpoint=\"{}\"", v.vault.display(), v.mnt.display());
        assert!(text.keys().all(|series| series.contains(&own)), "{own}: {:?}", text.keys().next());
    }
}

#[test]
fn nobody_else_may_enter_unless_allowed() {
    needs_root("act as another user");
    // A place that everyone can reach: what refuses must be the mount.
    let open_to_all = |v: &TestVault| {
        for path in [v.dir.path(), &v.mnt] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    };
    let as_nobody = |line: &str, path: &Path| {
        let mut c = Command::new("sh");
        c.args(["-c", line, "sh"]).arg(path).uid(65534).gid(65534).current_dir("/");
        c.output().unwrap()
    };
    let v = TestVault::init_in(Path::new("/tmp"), &[]);
    open_to_all(&v);
    assert!(as_nobody("ls \"$1\"", &v.mnt).status.success(), "the place itself is closed: the test says nothing");
    v.mount();
    fs::set_permissions(&v.mnt, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(v.path("file"), "text").unwrap();
    for line in ["ls \"$1\"", "cat \"$1/file\"", "cat \"$1/.storage/state\"", "touch \"$1/new\""] {
        assert!(!as_nobody(line, &v.mnt).status.success(), "another user did: {line}");
    }
    v.umount();

    let mut v = v;
    v.options = vec!["allow_other".into()];
    v.mount();
    fs::write(v.path("secret"), "text").unwrap();
    fs::set_permissions(v.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(v.path("file"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(as_nobody("cat \"$1/file\"", &v.mnt).stdout, b"text", "allow_other lets others in");
    for line in [
        "cat \"$1/secret\"",
        "echo x > \"$1/file\"",
        "touch \"$1/new\"",
        "rm -f \"$1/file\"",
        "chmod 777 \"$1/file\"",
        "cat \"$1/.storage/status\"",
        "echo flush > \"$1/.storage/control\"",
    ] {
        assert!(!as_nobody(line, &v.mnt).status.success(), "another user did, against the modes: {line}");
    }
    fs::create_dir(v.path("shared")).unwrap();
    fs::set_permissions(v.path("shared"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(v.path("shared/roots"), "").unwrap();
    assert!(as_nobody("echo mine > \"$1/shared/mine\" && cat \"$1/shared/mine\"", &v.mnt).status.success());
    assert!(!as_nobody("rm -f \"$1/shared/roots\"", &v.mnt).status.success(), "the sticky bit keeps nothing");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(v.path("shared/mine")).unwrap());
    assert_eq!(owner, 65534, "a file belongs to who made it");
}

// ---------------------------------------------------------------------------------------------------------------------

/// Reads Prometheus' text format; refuses what Prometheus would, and what it would only frown at. Gives every sample.
fn prometheus(text: &str) -> Result<BTreeMap<String, f64>, String> {
    let mut samples = BTreeMap::new();
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut current = "";
    if !text.ends_with('\n') {
        return Err("the last line does not end".into());
    }
    for (n, line) in text.lines().enumerate() {
        let fault = |what: &str| Err(format!("line {}: {what}: {line}", n + 1));
        if line.is_empty() {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let Some((name, help)) = rest.split_once(' ') else { return fault("help without text") };
            if help.trim().is_empty() || !helped.insert(name) {
                return fault("help is empty or given twice");
            }
            current = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else { return fault("type without kind") };
            if !["counter", "gauge", "histogram", "summary", "untyped"].contains(&kind) {
                return fault("unknown type");
            }
            if kinds.insert(name, kind).is_some() {
                return fault("type given twice, or samples of one family apart");
            }
            current = name;
        } else if line.starts_with('#') {
            return fault("a comment that is neither help nor type");
        } else {
            let (series, value) = sample(line).ok_or_else(|| format!("line {}: no sample: {line}", n + 1))?;
            let name = series.split('{').next().unwrap_or_default();
            let Some(kind) = kinds.get(current) else { return fault("sample before its type") };
            let part =
                name.strip_prefix(current).ok_or_else(|| format!("line {}: belongs elsewhere: {line}", n + 1))?;
            let allowed: &[&str] = if *kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            if !allowed.contains(&part) || !helped.contains(current) {
                return fault("not a sample of its family, or a family without help");
            }
            if *kind == "counter" && (!name.ends_with("_total") || value < 0.0) {
                return fault("a counter is named _total and not negative");
            }
            if samples.insert(series, value).is_some() {
                return fault("the same sample twice");
            }
        }
    }
    for (name, _) in kinds.iter().filter(|(_, kind)| **kind == "histogram") {
        histogram(name, text)?;
    }
    match kinds.keys().find(|name| !samples.keys().any(|s| s.starts_with(**name))) {
        Some(name) => Err(format!("{name} has no sample")),
        None => Ok(samples),
    }
}

/// `name{label="value",…} number`: the series, and the number.
fn sample(line: &str) -> Option<(String, f64)> {
    let word = |s: &str, colon: bool| {
        s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || (colon && c == ':'))
    };
    let (series, value) = match line.split_once('{') {
        None => line.split_once(' ')?,
        Some((name, rest)) => {
            let mut rest = rest;
            loop {
                let (label, after) = rest.split_once("=\"")?;
                let mut escaped = false;
                let end = after.find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                })?;
                if !word(label, false) {
                    return None;
                }
                rest = &after[end + 1..];
                match rest.strip_prefix(',') {
                    Some(more) => rest = more,
                    None => break,
                }
            }
            let value = rest.strip_prefix("} ")?;
            if !word(name, true) {
                return None;
            }
            (&line[..line.len() - value.len() - 1], value)
        }
    };
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        number if number.starts_with(|c: char| c.is_ascii_digit() || c == '-') => number.parse().ok()?,
        _ => return None,
    };
    word(series.split('{').next()?, true).then(|| (series.to_owned(), value))
}

/// Buckets grow, the last is `+Inf` and equals the count, and there is a sum: for each set of other labels.
fn histogram(name: &str, text: &str) -> Result<(), String> {
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let (mut counts, mut sums) = (BTreeMap::new(), BTreeSet::new());
    for (series, value) in text.lines().filter(|l| !l.starts_with('#')).filter_map(sample) {
        let (full, labels) = series.split_once('{').unwrap_or((&series, "}"));
        let labels: Vec<&str> = labels.trim_end_matches('}').split(',').filter(|l| !l.is_empty()).collect();
        let (le, others): (Vec<&str>, Vec<&str>) = labels.into_iter().partition(|l| l.starts_with("le="));
        let key = others.join(",");
        match full.strip_prefix(name) {
            Some("_bucket") => {
                let edge = le.first().ok_or_else(|| format!("{series}: a bucket without le"))?;
                let edge = match edge.trim_start_matches("le=").trim_matches('"') {
                    "+Inf" => f64::INFINITY,
                    number => number.parse().map_err(|_| format!("{series}: le is no number"))?,
                };
                buckets.entry(key).or_default().push((edge, value));
            }
            Some("_count") => drop(counts.insert(key, value)),
            Some("_sum") => drop(sums.insert(key)),
            _ => {}
        }
    }
    if buckets.is_empty() {
        return Err(format!("{name}: a histogram without buckets"));
    }
    for (key, b) in &buckets {
        let grows = b.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1);
        let (edge, all) = b[b.len() - 1];
        if !grows || edge != f64::INFINITY || counts.get(key) != Some(&all) || !sums.contains(key) {
            return Err(format!("{name}{{{key}}}: buckets do not grow to +Inf, or count or sum do not fit"));
        }
    }
    Ok(())
}

#[test]
fn a_lone_root_may_not_execute_what_has_no_x_bit() {
    needs_root("see what root may not do");
    let v = TestVault::mounted();
    let file = v.path("script");
    fs::write(&file, "#!/bin/sh\n").unwrap();
    for (mode, may) in [(0o600, false), (0o644, false), (0o755, true), (0o001, true)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        // What `access(2)` says, and what the kernel does.
        assert_eq!(
            Command::new("test").arg("-x").arg(&file).status().unwrap().success(),
            may,
            "test -x, mode {mode:o}"
        );
        assert_eq!(Command::new(&file).status().is_ok(), may, "run, mode {mode:o}");
    }
}

#[test]
fn the_parser_refuses_what_is_not_prometheus_text() {
    let good = "# HELP a_total What.\n# TYPE a_total counter\na_total 1\n\
                # HELP g What.\n# TYPE g gauge\ng{x=\"1, \\\" }\",y=\"\"} -1.5e3\ng{x=\"2\"} NaN\n\
                # HELP h What.\n# TYPE h histogram\nh_bucket{s=\"a\",le=\"0.1\"} 1\nh_bucket{s=\"a\",le=\"+Inf\"} 3\n\
                h_sum{s=\"a\"} 2.5\nh_count{s=\"a\"} 3\n";
    assert_eq!(prometheus(good).unwrap().len(), 7);
    for (from, to) in [
        ("a_total 1\n", "a_total one\n"),
        ("a_total 1\n", "a_total 1\na_total 1\n"),
        ("a_total 1\n", "a_total -1\n"),
        ("a_total 1\n", ""),
        ("a_total", "a"),
        ("# TYPE a_total counter\n", ""),
        ("# HELP a_total What.\n", ""),
        ("counter", "number"),
        ("g{x=\"2\"}", "g{x=2}"),
        ("g{x=\"2\"}", "g{2x=\"2\"}"),
        ("g{x=\"2\"}", "other{x=\"2\"}"),
        ("h_bucket{s=\"a\",le=\"0.1\"} 1", "h_bucket{s=\"a\",le=\"0.1\"} 4"),
        ("h_bucket{s=\"a\",le=\"+Inf\"} 3\n", ""),
        ("h_count{s=\"a\"} 3", "h_count{s=\"a\"} 4"),
        ("h_sum{s=\"a\"} 2.5\n", ""),
        ("h_count{s=\"a\"} 3\n", "h_count{s=\"a\"} 3"),
    ] {
        let bad = good.replacen(from, to, if from == "a_total" { 9 } else { 1 });
        assert!(bad != good && prometheus(&bad).is_err(), "was let pass: {from:?} -> {to:?}");
    }
}
