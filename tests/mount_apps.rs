//! Larger pieces of work inside the mount: fio in every way of writing, a repository of some thousand files, cargo.
//!
//! Method: each does a real job, judges the result with its own checker, and judges it again after the vault was
//! unmounted, read and verified as a whole, and mounted anew (`mount_tools` has the quicker jobs, `mount_tree_copies` copying).
//! Promise: no program has to know that it works in a vault, nor by which calls it does.
//! `STRONGROOM_FIO_MIB` and `STRONGROOM_GIT_FILES` ask for more.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::tools::on_path;
use common::{TestVault, output, real_tree, run, setting, shell};
use std::fs;
use std::path::Path;
use std::process::Command;

const NO_ARGUMENTS: [&str; 0] = [];

/// A way of writing that fio verifies.
const JOBS: [(&str, &[&str]); 6] = [
    ("queued", &["--ioengine=libaio", "--iodepth=16", "--rw=randwrite", "--bs=4k"]),
    ("queued-direct", &["--ioengine=libaio", "--iodepth=16", "--direct=1", "--rw=randwrite", "--bs=8k"]),
    ("direct", &["--ioengine=psync", "--direct=1", "--rw=randwrite", "--bsrange=4k-128k", "--numjobs=2"]),
    ("vectored", &["--ioengine=pvsync", "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=1"]),
    ("mapped", &["--ioengine=mmap", "--rw=randwrite", "--bs=4k", "--fsync=128"]),
    ("synchronous", &["--ioengine=psync", "--sync=1", "--rw=write", "--bs=64k"]),
];

fn fio(v: &TestVault, name: &str, flags: &[&str], more: &[&str]) -> std::process::Output {
    let size = format!("{}m", setting("STRONGROOM_FIO_MIB", 64, 12));
    let mut c = Command::new(on_path("fio"));
    c.current_dir(v.dir.path()).args(["--name", name, "--directory"]).arg(&v.mnt).args(["--size", &size]);
    output(c.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=11"]).args(flags).args(more))
}

#[test]
fn fio_verifies_every_way_of_writing() {
    let v = TestVault::mounted();
    let passes = |name: &str, flags: &[&str], more: &[&str]| {
        let out = fio(&v, name, flags, more);
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "fio {name} {more:?}: {said}{}", String::from_utf8_lossy(&out.stderr));
    };
    for (name, flags) in JOBS {
        passes(name, flags, &[]);
    }
    v.checked_remount();
    for (name, flags) in JOBS {
        passes(name, flags, &["--verify_only=1"]);
    }
    // The check is worth something: a changed byte is seen.
    let file = v.path("vectored.0.0");
    shell(&v.mnt, "printf x | dd of=\"$1\" bs=1 seek=50000 conv=notrunc status=none", &[&file]);
    let (name, flags) = JOBS[3];
    assert!(!fio(&v, name, flags, &["--verify_only=1"]).status.success(), "fio verified a changed byte");
}

#[test]
fn git_works_on_a_repository_of_some_thousand_files() {
    let v = TestVault::mounted();
    let git = |dir: &Path, line: &str| {
        let identity = "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a \
                        GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
                        git() { command git -c core.fsync=all -c gc.auto=0 -c protocol.file.allow=always \"$@\"; }\n";
        shell(dir, &format!("{identity}{line}"), &NO_ARGUMENTS)
    };
    let repository = v.path("repository");
    fs::create_dir(&repository).unwrap();
    git(&repository, "git init -q -b main .");
    for (n, source) in real_tree(setting("STRONGROOM_GIT_FILES", 10_000, 1500) as usize).iter().enumerate() {
        run(Command::new("cp").arg("-a").arg(source).arg(&repository));
        git(&repository, &format!("git add -A -f . && git commit -q -m 'part {n}'"));
    }
    git(
        &repository,
        "find . -name .git -prune -o -type f -name '*.rs' -print | sed -n 1,200p | xargs -r sed -i '1s/^/ /'; echo x > more
                      git add -A -f .; git commit -q -m changed; git tag -a -m tag v1",
    );
    git(
        &repository,
        "git gc -q --prune=now; git repack -a -d -f -q --window=5; git fsck --full --strict --no-progress",
    );
    git(
        &repository,
        "git worktree add -q ../worktree HEAD~1; git -C ../worktree status --porcelain | wc -l | grep -qx 0",
    );
    git(
        &repository,
        "git checkout -q -b side HEAD~1; echo side > side; git add side; git commit -q -m side; git rebase -q main
         git stash list; echo y >> more; git stash -q; git stash pop -q; git commit -q -a -m popped
         git mv more moved; git commit -q -m moved; git bundle create -q ../all.bundle --all",
    );
    git(&v.mnt, "git clone -q --bare --no-local repository mirror.git; git clone -q all.bundle unbundled -b side");
    for round in ["at once", "mounted anew"] {
        for name in ["repository", "mirror.git", "unbundled"] {
            git(&v.path(name), "git fsck --full --strict --no-progress");
        }
        assert_eq!(git(&repository, "git status --porcelain"), "", "{round}");
        assert_eq!(git(&v.path("worktree"), "git status --porcelain"), "", "{round}");
        let heads = ["repository", "mirror.git", "unbundled"].map(|n| git(&v.path(n), "git rev-parse side"));
        assert!(heads.iter().all(|h| *h == heads[0]), "{round}: {heads:?}");
        // Every blob is what the working tree has: hashed anew, not believed by its times.
        git(
            &v.path("unbundled"),
            "git ls-files -s | sed -n 1,400p | while read -r _ want _ path; do
                test -L \"$path\" || test \"$(git hash-object --no-filters -- \"$path\")\" = \"$want\"; done",
        );
        v.checked_remount();
    }
}

/// A workspace with no dependency from outside, so that no network is needed: six crates, one with a build script.
fn workspace(dir: &Path) {
    const CRATES: u32 = 6;
    let put = |name: String, text: String| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("Cargo.toml".into(), "[workspace]\nresolver = \"3\"\nmembers = [\"part*\", \"program\"]\n".into());
    let mut main = String::from("fn main() {\n    let mut sum = part0::FROM_BUILD;\n");
    let mut needs = String::new();
    for n in 0..CRATES {
        put(
            format!("part{n}/Cargo.toml"),
            format!("[package]\nname = \"part{n}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n"),
        );
        let mut text = format!(
            "pub fn value(x: u64) -> u64 {{ x * {n} + {n} }}\n#[test]\nfn right() {{ assert_eq!(value(2), {n} * 3); }}\n"
        );
        if n == 0 {
            put("part0/build.rs".into(), "fn main() {\n    let out = std::env::var(\"OUT_DIR\").unwrap();\n    std::fs::write(format!(\"{out}/c.rs\"), \"pub const FROM_BUILD: u64 = 7;\").unwrap();\n    println!(\"cargo::rerun-if-changed=build.rs\");\n}\n".into());
            text += "include!(concat!(env!(\"OUT_DIR\"), \"/c.rs\"));\n";
        }
        put(format!("part{n}/src/lib.rs"), text);
        main += &format!("    sum += part{n}::value(2);\n");
        needs += &format!("part{n} = {{ path = \"../part{n}\" }}\n");
    }
    main += "    println!(\"{sum}\");\n}\n";
    put("program/src/main.rs".into(), main);
    put(
        "program/Cargo.toml".into(),
        format!("[package]\nname = \"program\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[dependencies]\n{needs}"),
    );
}

#[test]
fn cargo_builds_tests_and_sees_what_changed() {
    let v = TestVault::mounted();
    let dir = v.path("workspace");
    fs::create_dir(&dir).unwrap();
    workspace(&dir);
    let cargo = |arguments: &[&str]| {
        let mut c = Command::new(env!("CARGO"));
        c.current_dir(&dir).env("CARGO_TARGET_DIR", dir.join("target")).env("CARGO_INCREMENTAL", "1");
        c.env_remove("RUSTFLAGS").env("CARGO_TERM_COLOR", "never").args(arguments).args(["--offline"]);
        let out = output(&mut c);
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "cargo {arguments:?}: {said}");
        said
    };
    let compiled = |said: &str| said.matches("Compiling").count();
    assert_eq!(compiled(&cargo(&["build"])), 7);
    let runs = || run(&mut Command::new(dir.join("target/debug/program"))).trim().to_owned();
    assert_eq!(runs(), (7 + 3 * (1 + 2 + 3 + 4 + 5)).to_string());
    assert_eq!(compiled(&cargo(&["build"])), 0, "cargo sees times that are not those of the files");
    assert_eq!(cargo(&["test"]).matches("test right ... ok").count(), 6);
    v.checked_remount();
    assert_eq!(compiled(&cargo(&["build"])), 0, "cargo sees other times, mounted anew");
    assert_eq!(runs(), "52");
    let lib = dir.join("part3/src/lib.rs");
    fs::write(&lib, fs::read_to_string(&lib).unwrap().replace("x * 3 + 3", "x * 3 + 4")).unwrap();
    assert_eq!(compiled(&cargo(&["build"])), 2, "a changed crate and the program that uses it");
    assert_eq!(runs(), "53");
    v.umount();
    v.check();
}
