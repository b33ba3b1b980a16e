//! POSIX, case by case, as pjdfstest knows it: on the mount as on ext4.
//!
//! Method: the whole suite runs on an ext4 and on a mount, as root and as a user; then the cases that make the filesystem
//! read-only and back, on filesystems of their own. What fails and what is skipped is compared by name.
//! Promise: no case fails but those that `tests/pjdfstest.exclude` names, each with its reason (it may name five, and one that
//! passes must be struck out); and the mount lets no case be skipped that ext4 does not.
//!
//! One thing is told to the suite: how many links a file may have. The C library knows that for ext4 by the filesystem's type
//! number and says 127 for every FUSE mount, whose number is the kernel's; the suite then skips the case. So a small library
//! is put before it that says what both promise, and the case makes all 65000.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::disk::Disk;
use common::tools::cargo_tool;
use common::{TestVault, needs_root, output, run};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use strongroom::base::limits::LINKS_MAX;

/// Fewer than this and it is not the suite that we know.
const CASES_MIN: usize = 398;

/// Most cases that may be excluded.
const EXCLUDED_MAX: usize = 5;

/// What became of each case.
#[derive(Debug, Default, PartialEq)]
struct Report {
    passed: BTreeSet<String>,
    /// With what it said.
    failed: BTreeMap<String, String>,
    skipped: BTreeMap<String, String>,
}

impl Report {
    /// Reads what the suite printed; an `Err` if it did not come to its end.
    fn read(text: &str) -> Result<Report, String> {
        let (mut report, mut lines) = (Report::default(), text.lines().peekable());
        let mut total = None;
        while let Some(line) = lines.next() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let said = |lines: &mut std::iter::Peekable<std::str::Lines<'_>>| {
                lines.next_if(|l| l.starts_with('\t')).unwrap_or_default().trim().to_owned()
            };
            match words[..] {
                [case, "ok"] => drop(report.passed.insert(case.to_owned())),
                [case, "FAILED"] => drop(report.failed.insert(case.to_owned(), said(&mut lines))),
                [case, "skipped"] => drop(report.skipped.insert(case.to_owned(), said(&mut lines))),
                ["Summary:", .., n, "total"] => total = n.parse::<usize>().ok(),
                _ => {}
            }
        }
        let seen = report.passed.len() + report.failed.len() + report.skipped.len();
        match total {
            Some(n) if n == seen => Ok(report),
            Some(n) => Err(format!("{n} cases in its summary, {seen} seen:\n{text}")),
            None => Err(format!("it did not come to its end:\n{text}")),
        }
    }

    fn cases(&self) -> usize {
        self.passed.len() + self.failed.len() + self.skipped.len()
    }
}

/// Names and reasons of the cases that may fail.
fn excluded(list: &str) -> BTreeMap<&str, &str> {
    let lines = list.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    let named: BTreeMap<&str, &str> =
        lines.map(|l| l.split_once(": ").unwrap_or_else(|| panic!("no reason is given: {l}"))).collect();
    assert!(named.len() <= EXCLUDED_MAX, "{} cases are excluded, {EXCLUDED_MAX} may be", named.len());
    named
}

/// Everything in which the mount is not as ext4.
fn faults(on_ext4: &Report, on_mount: &Report, excluded: &BTreeMap<&str, &str>) -> Vec<String> {
    let mut found = Vec::new();
    for (case, said) in &on_ext4.failed {
        found.push(format!("{case} fails on ext4, so it says nothing here: {said}"));
    }
    for (case, said) in &on_mount.failed {
        if !excluded.contains_key(case.as_str()) {
            found.push(format!("{case} fails: {said}"));
        }
    }
    for (case, why) in &on_mount.skipped {
        if !on_ext4.skipped.contains_key(case) {
            found.push(format!("{case} is skipped, and not on ext4: {why}"));
        }
    }
    for case in on_ext4.skipped.keys().filter(|c| !on_mount.skipped.contains_key(*c)) {
        found.push(format!("{case} is skipped on ext4 only: the two were not asked the same"));
    }
    for case in excluded.keys().filter(|c| on_mount.passed.contains(**c)) {
        found.push(format!("{case} passes: take it out of the list"));
    }
    found
}

/// What is needed to run the suite, in a directory that everyone may enter.
struct Suite {
    tools: tempfile::TempDir,
}

impl Suite {
    /// With a library before it that says that a file may have so many links.
    fn new(links_max: u32) -> Suite {
        needs_root("mount an ext4 and act as other users");
        let tools = tempfile::Builder::new().prefix("pjdfstest-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::copy(cargo_tool("pjdfstest"), tools.path().join("pjdfstest")).unwrap();
        let source = format!(
            "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <unistd.h>\n\
             long pathconf(const char *path, int name) {{\n\
             if (name == _PC_LINK_MAX) return {links_max};\n\
             long (*real)(const char *, int) = (long (*)(const char *, int)) dlsym(RTLD_NEXT, \"pathconf\");\n\
             return real(path, name); }}\n"
        );
        fs::write(tools.path().join("links.c"), source).unwrap();
        run(Command::new("cc")
            .args(["-shared", "-fPIC", "-o", "links.so", "links.c", "-ldl"])
            .current_dir(tools.path()));
        for (name, remount) in [("whole", false), ("remount", true)] {
            let text = format!(
                "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nutime_now = {{}}\nutimensat = {{}}\n\
                 [settings]\nnaptime = 0.01\nallow_remount = {remount}\n\
                 [dummy_auth]\nentries = [ [\"daemon\", \"daemon\"], [\"bin\", \"bin\"] ]\n"
            );
            fs::write(tools.path().join(name), text).unwrap();
        }
        Suite { tools }
    }

    /// Runs it below a directory as `daemon` or root. It sees the directory and its own files under `/mnt`, in a mount
    /// namespace of its own, for a user may not be let through to where the build lies.
    fn run(&self, at: &Path, user: &str, cases: &[&str]) -> Report {
        let dir = at.join(format!("as-{user}"));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        run(Command::new("chown").arg(user).arg(&dir));
        const LINE: &str = "mount -t tmpfs -o mode=755 none /mnt; mkdir /mnt/at /mnt/other /mnt/suite
            cp -r \"$1/.\" /mnt/suite; mount --bind \"$2\" /mnt/at; mount -t tmpfs -o mode=777 none /mnt/other; cd /
            # Mounts of other tests, which the namespace begins with as well, are not held.
            awk '/ - fuse.strongroom / && $5 != \"/mnt/at\" { print $5 }' /proc/self/mountinfo | xargs -r -n1 umount -l
            user=$3; shift 3
            exec setpriv --reuid=$user --regid=$user --clear-groups env LD_PRELOAD=/mnt/suite/links.so RUST_BACKTRACE=0 \
                /mnt/suite/pjdfstest -c /mnt/suite/whole -p /mnt/at -s /mnt/other \"$@\"";
        let mut c = Command::new("unshare");
        c.args(["--mount", "--propagation", "private", "bash", "-euc", LINE, "bash"]);
        let out = output(c.arg(self.tools.path()).arg(&dir).arg(user).args(cases));
        self.report(&out)
    }

    /// The cases that remount what they run on.
    fn run_remounting(&self, at: &Path) -> Report {
        let dir = at.join("remounted");
        fs::create_dir(&dir).unwrap();
        // The kernel's remount, with no helper between: it is the cases that are tried here, not mount(8).
        let kernel_only = self.tools.path().join("bin");
        fs::create_dir_all(&kernel_only).unwrap();
        let wrapper = "#!/bin/sh\nPATH=${PATH#*:}\nexec mount -i \"$@\"\n";
        fs::write(kernel_only.join("mount"), wrapper).unwrap();
        fs::set_permissions(kernel_only.join("mount"), fs::Permissions::from_mode(0o755)).unwrap();
        let mut path = kernel_only.into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        let mut c = Command::new(self.tools.path().join("pjdfstest"));
        c.env("PATH", path).arg("-c").arg(self.tools.path().join("remount")).arg("-p").arg(&dir).arg("erofs");
        self.report(&output(&mut c))
    }

    fn report(&self, out: &std::process::Output) -> Report {
        let said = String::from_utf8_lossy(&out.stdout);
        Report::read(&said).unwrap_or_else(|e| panic!("pjdfstest: {e}\n{}", String::from_utf8_lossy(&out.stderr)))
    }
}

fn exclude_list() -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/pjdfstest.exclude")).unwrap()
}

#[test]
fn every_case_goes_as_on_ext4() {
    let suite = Suite::new(LINKS_MAX);
    let list = exclude_list();
    let excluded = excluded(&list);
    let (disk, v) = (Disk::ext4(300), TestVault::mounted_with(&["allow_other", "dev", "suid"]));
    let root = (suite.run(&disk.at, "root", &[]), suite.run(&v.mnt, "root", &[]));
    let user = (suite.run(&disk.at, "daemon", &[]), suite.run(&v.mnt, "daemon", &[]));
    let remount = (suite.run_remounting(&disk.at), suite.run_remounting(&v.mnt));
    for (who, (on_ext4, on_mount)) in [("root", &root), ("a user", &user), ("root, remounting", &remount)] {
        let found = faults(on_ext4, on_mount, &excluded);
        assert!(found.is_empty(), "as {who}:\n{}", found.join("\n"));
    }
    for (who, (_, on_mount)) in [("root", &root), ("a user", &user)] {
        assert!(on_mount.cases() >= CASES_MIN, "as {who}: only {} cases", on_mount.cases());
    }
    // Together they leave nothing out.
    assert!(root.1.skipped.keys().all(|c| remount.1.passed.contains(c)), "{:?}", root.1.skipped);
    assert!(user.1.passed.len() > 200, "as a user only {} cases ran", user.1.passed.len());
    v.umount();
    v.check();
}

#[test]
fn a_filesystem_that_breaks_its_word_is_noticed() {
    // It says ten links and lets an eleventh be made.
    let suite = Suite::new(10);
    let v = TestVault::mounted_with(&["allow_other"]);
    let report = suite.run(&v.mnt, "root", &["link::link_count_max"]);
    assert_eq!(report.failed.keys().collect::<Vec<_>>(), ["link::link_count_max"]);
    assert_eq!(faults(&Report::default(), &report, &BTreeMap::new()).len(), 1);
}

#[test]
fn every_difference_between_two_reports_is_found() {
    let text = "open::a       ok\nopen::b      FAILED\n\twhat it said\nopen::c    skipped\n\twhy\n\n\
                Summary: 1 failed, 1 skipped, 1 passed, 0 expected failures, 3 total\nError: Some tests have failed\n";
    let report = Report::read(text).unwrap();
    assert_eq!(report.failed["open::b"], "what it said");
    assert_eq!(report.cases(), 3);
    assert!(Report::read(&text.replace("3 total", "4 total")).is_err(), "a case that left no line");
    assert!(Report::read("open::a   ok\n").is_err(), "a suite that broke off");

    let none = BTreeMap::new();
    let of = |passed: &str, failed: &str, skipped: &str| {
        let names = |s: &str| s.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let with = |s: &str| names(s).into_iter().map(|n| (n, String::new())).collect();
        Report { passed: names(passed).into_iter().collect(), failed: with(failed), skipped: with(skipped) }
    };
    let good = of("a b", "", "c");
    assert_eq!(faults(&good, &of("a b", "", "c"), &none), Vec::<String>::new());
    assert_eq!(faults(&good, &of("a", "b", "c"), &none).len(), 1, "a case that fails");
    assert_eq!(faults(&good, &of("a", "", "b c"), &none).len(), 1, "a case that is skipped");
    assert_eq!(faults(&good, &of("a b c", "", ""), &none).len(), 1, "a case that only ext4 skips");
    assert_eq!(faults(&of("a", "b", "c"), &of("a b", "", "c"), &none).len(), 1, "a case that fails on ext4");
    let list = excluded("# c\nb: because\n");
    assert_eq!(faults(&good, &of("a", "b", "c"), &list), Vec::<String>::new());
    assert_eq!(faults(&good, &of("a b", "", "c"), &list).len(), 1, "an excluded case that passes");
    assert!(std::panic::catch_unwind(|| excluded("b\n")).is_err(), "no reason");
    assert!(std::panic::catch_unwind(|| excluded("a: r\nb: r\nc: r\nd: r\ne: r\nf: r\n")).is_err(), "six");
}
