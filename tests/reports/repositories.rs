//! Repositories of backup and deployment programs in the mount, with the mount as their source as well.
//!
//! Method: a second run after a remount must find nothing changed, the program's checker reads all data, and what is
//! taken out is compared with what was put in.

use crate::common::rng::Rng;
use crate::common::tools::on_path;
use crate::common::{TestVault, output, run, shell};
use std::fs;
use std::process::{Command, Output};

/// Files of many lengths, a hard link, a symbolic link, a sparse file, an attribute, a set-user-ID bit.
fn fill(v: &TestVault) {
    fs::create_dir(v.path("source")).unwrap();
    for n in 0..50 {
        fs::write(v.path(format!("source/file-{n}")), Rng(n).bytes(1 + n as usize * 1777)).unwrap();
    }
    let line = "cd source; ln file-1 hard; ln -s file-2 soft; setfattr -n user.colour -v green file-3
                truncate -s 5M sparse; chmod 4755 file-4; mkdir empty";
    shell(&v.mnt, line, &[""; 0]);
    // Programs do not trust a file that changed in the second in which they looked.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    fs::write(v.path("source/newest"), "").unwrap();
}

/// `diff -r` of the source and a copy, links compared as links.
fn same(v: &TestVault, copy: &str) {
    run(Command::new("diff").args(["-r", "--no-dereference"]).arg(v.path("source")).arg(v.path(copy)));
}

/// Changes one byte of the largest file below a directory.
fn flip_a_byte(v: &TestVault, below: &str) {
    let line = "f=$(find \"$1\" -type f -printf '%s %p\\n' | sort -n | tail -1 | cut -d' ' -f2-); chmod u+w \"$f\"
                printf x | dd of=\"$f\" bs=1 seek=\"$(($(stat -c %s \"$f\") / 2))\" conv=notrunc status=none";
    shell(&v.mnt, line, &[below]);
}

#[test]
fn borg_finds_nothing_changed_after_a_remount() {
    let v = TestVault::mounted();
    fill(&v);
    let borg = |words: &[&str]| -> Output {
        let mut c = Command::new(on_path("borg"));
        c.env("HOME", v.dir.path()).env("BORG_BASE_DIR", v.dir.path().join("borg"));
        c.env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes").current_dir(&v.mnt);
        output(c.args(words))
    };
    let passes = |words: &[&str]| {
        let out = borg(words);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "borg {words:?}: {text}");
        text
    };
    passes(&["init", "-e", "none", "repository"]);
    passes(&["create", "repository::first", "source"]);
    v.checked_remount();
    let list = passes(&["create", "--list", "--filter", "AMC", "repository::second", "source"]);
    let changed: Vec<_> = list.lines().filter(|l| !l.ends_with("newest")).collect();
    assert!(changed.is_empty(), "borg sees changes after a remount: {changed:?}");
    passes(&["check", "--verify-data", "repository"]);
    fs::create_dir(v.path("out")).unwrap();
    let mut extract = Command::new(on_path("borg"));
    extract.env("HOME", v.dir.path()).env("BORG_BASE_DIR", v.dir.path().join("borg")).current_dir(v.path("out"));
    run(extract.env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes").args(["extract", "../repository::first"]));
    same(&v, "out/source");
    flip_a_byte(&v, "repository/data");
    assert!(!borg(&["check", "--verify-data", "repository"]).status.success(), "borg took a changed byte");
}

#[test]
fn restic_finds_nothing_changed_after_a_remount() {
    let v = TestVault::mounted();
    fill(&v);
    let restic = |words: &[&str]| -> Output {
        let mut c = Command::new(on_path("restic"));
        c.env("HOME", v.dir.path()).env("RESTIC_CACHE_DIR", v.dir.path().join("cache"));
        c.env("RESTIC_PASSWORD", "x").env("RESTIC_REPOSITORY", v.path("repository")).current_dir(&v.mnt);
        output(c.args(words))
    };
    let passes = |words: &[&str]| {
        let out = restic(words);
        assert!(out.status.success(), "restic {words:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    passes(&["init"]);
    passes(&["backup", "source"]);
    v.checked_remount();
    let said = passes(&["backup", "--json", "source"]);
    let summary = said.lines().find(|l| l.contains("\"summary\"")).expect("restic sums up");
    let summary: serde_json::Value = serde_json::from_str(summary).unwrap();
    assert_eq!((&summary["files_changed"], &summary["files_new"]), (&0.into(), &0.into()), "{summary}");
    passes(&["check", "--read-data"]);
    passes(&["restore", "latest", "--target", v.path("out").to_str().unwrap()]);
    let restored = shell(&v.path("out"), "dirname \"$(find . -name newest)\"", &[""; 0]);
    same(&v, &format!("out/{}", restored.trim()));
    flip_a_byte(&v, "repository/data");
    assert!(!restic(&["check", "--read-data"]).status.success(), "restic took a changed byte");
}

#[test]
fn ostree_keeps_its_repositories_of_every_kind() {
    let v = TestVault::mounted();
    fill(&v);
    let ostree = |mode: &str, words: &[&str]| -> Output {
        let mut c = Command::new(on_path("ostree"));
        output(c.current_dir(&v.mnt).arg(format!("--repo=repository-{mode}")).args(words))
    };
    let passes = |mode: &str, words: &[&str]| {
        let out = ostree(mode, words);
        assert!(out.status.success(), "ostree {mode} {words:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let modes = [("bare", "-H"), ("bare-user", "-UH"), ("archive", "-U")];
    for (mode, _) in modes {
        passes(mode, &["init", &format!("--mode={mode}")]);
        passes(mode, &["commit", "-b", "main", "source"]);
    }
    fs::write(v.path("source/file-5"), "another content").unwrap();
    for (mode, _) in modes {
        passes(mode, &["commit", "-b", "main", "source"]);
    }
    v.checked_remount();
    for (mode, how) in modes {
        passes(mode, &["fsck", "-q"]);
        passes(mode, &["checkout", how, "main", &format!("out-{mode}")]);
        same(&v, &format!("out-{mode}"));
        passes(mode, &["prune", "--refs-only", "--depth=0"]);
        passes(mode, &["fsck", "-q"]);
    }
    flip_a_byte(&v, "repository-archive/objects");
    assert!(!ostree("archive", &["fsck", "-q"]).status.success(), "ostree took a changed byte");
}
