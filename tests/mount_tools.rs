//! Programs that people trust with their work, working inside the mount.
//!
//! Method: each does a real job, judges the result with its own checker (`PRAGMA integrity_check`, `git fsck`,
//! `rsync --checksum`, `tar --compare`, fio's verification), and judges it again after the vault was mounted anew.
//! Promise: no program has to know that it works in a vault.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::rng::Rng;
use common::{TestVault, output, real_tree, run, setting, shell};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;

const NO_ARGUMENTS: [&str; 0] = [];

fn sqlite(db: &Path, sql: &str) -> String {
    run(Command::new("sqlite3").args(["-batch", "-bail", "-cmd", ".timeout 60000"]).arg(db).arg(sql)).trim().to_owned()
}

#[test]
fn sqlite_keeps_its_databases_whole() {
    let v = TestVault::mounted();
    const FILL: &str = "
        CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT, v BLOB);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
            INSERT INTO t SELECT i, 'key ' || (i * 7919 % 20011), zeroblob(i % 300) FROM n;
        CREATE INDEX by_k ON t(k);
        UPDATE t SET v = randomblob(200) WHERE id % 3 = 0;
        DELETE FROM t WHERE id % 5 = 0;
        VACUUM;";
    const SUM: &str = "SELECT count(*), sum(id), sum(length(v)), total(length(k)) FROM t;";
    let mut sums = Vec::new();
    for mode in ["wal", "delete", "truncate", "persist"] {
        let db = v.path(format!("{mode}.db"));
        assert_eq!(sqlite(&db, &format!("PRAGMA journal_mode={mode};")), mode);
        sqlite(&db, &format!("PRAGMA journal_mode={mode}; PRAGMA synchronous=FULL; {FILL}"));
        assert_eq!(sqlite(&db, "PRAGMA integrity_check;"), "ok");
        sums.push(sqlite(&db, SUM));
    }
    assert!(sums.iter().all(|s| *s == sums[0] && s.starts_with("16000|")), "{sums:?}");

    // Several processes at one database: locks and the shared memory of the write-ahead log.
    let db = v.path("wal.db");
    sqlite(&db, "CREATE TABLE c(writer INTEGER, n INTEGER);");
    std::thread::scope(|s| {
        for writer in 0..4 {
            let db = &db;
            s.spawn(move || {
                for n in 0..25 {
                    sqlite(db, &format!("INSERT INTO c VALUES({writer}, {n});"));
                }
            });
        }
    });
    v.remount();
    for (mode, sum) in ["wal", "delete", "truncate", "persist"].iter().zip(&sums) {
        let db = v.path(format!("{mode}.db"));
        assert_eq!(sqlite(&db, "PRAGMA integrity_check;"), "ok", "{mode}");
        assert_eq!(&sqlite(&db, SUM), sum, "{mode}");
    }
    assert_eq!(sqlite(&db, "SELECT count(*), count(DISTINCT writer * 100 + n) FROM c;"), "100|100");
}

#[test]
fn git_keeps_its_repositories_whole() {
    let v = TestVault::mounted();
    let sources = real_tree(250);
    let git = |dir: &Path, line: &str| {
        let identity = "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a \
                        GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org; ";
        shell(dir, &format!("{identity}{line}"), &NO_ARGUMENTS)
    };
    let repository = v.path("repository");
    fs::create_dir(&repository).unwrap();
    git(&repository, "git init -q -b main .");
    for (n, source) in sources.iter().enumerate() {
        run(Command::new("cp").arg("-a").arg(source).arg(&repository));
        // A source may bring a repository's own ignore rules: everything is added all the same.
        git(&repository, &format!("git add -A -f . && git commit -q -m 'part {n}'"));
    }
    git(
        &repository,
        "git checkout -q -b branch HEAD~0; echo more >> new-file; git add new-file; git commit -q -m branch",
    );
    git(&repository, "git checkout -q main; git merge -q --no-ff -m merge branch; git tag -a -m tag v1");
    git(&v.mnt, "git clone -q repository linked; git clone -q --no-local repository copied");
    for round in ["at once", "mounted anew"] {
        for name in ["repository", "linked", "copied"] {
            let dir = v.path(name);
            git(&dir, "git gc -q --prune=now");
            git(&dir, "git fsck --full --strict --no-progress");
            assert_eq!(git(&dir, "git status --porcelain"), "", "{name}, {round}");
        }
        assert_eq!(git(&v.path("copied"), "git rev-parse HEAD"), git(&repository, "git rev-parse main"));
        run(Command::new("diff").args(["-r", "-x", ".git"]).arg(&repository).arg(v.path("copied")));
        v.remount();
    }
}

#[test]
fn rsync_and_tar_find_nothing_to_do_a_second_time() {
    let v = TestVault::mounted();
    let plain = v.outside("plain");
    fs::create_dir(&plain).unwrap();
    run(Command::new("cp").arg("-a").args(real_tree(800)).arg(&plain));
    shell(
        &plain,
        "ln -s nowhere broken; echo x > one; ln one two; ln one three; truncate -s 3M sparse
         setfattr -n user.colour -v green one; setfattr -n user.empty sparse; touch -d '2001-02-03 04:05:06.7' one",
        &NO_ARGUMENTS,
    );
    let inside = v.path("tree");
    let from = format!("{}/", plain.display());
    let rsync = |flags: &[&str]| run(Command::new("rsync").args(flags).arg(&from).arg(&inside));
    rsync(&["-aHX", "--checksum", "--sparse", "--delete"]);
    assert_eq!(rsync(&["-aHX", "--checksum", "--delete", "-n", "-i"]), "", "rsync would change something");
    v.remount();
    assert_eq!(
        rsync(&["-aHX", "--checksum", "--delete", "-n", "-i"]),
        "",
        "rsync would change something, mounted anew"
    );
    // The check is worth something: one changed byte is seen.
    shell(&inside, "printf y | dd of=one conv=notrunc status=none", &NO_ARGUMENTS);
    assert_ne!(rsync(&["-aHX", "--checksum", "-n", "-i"]), "");
    rsync(&["-aHX", "--checksum", "--inplace"]);
    assert_eq!(rsync(&["-aHX", "--checksum", "--delete", "-n", "-i"]), "");

    let archive = v.outside("plain.tar");
    run(Command::new("tar").args(["--xattrs", "-cf"]).arg(&archive).arg("-C").arg(&plain).arg("."));
    let unpacked = v.path("unpacked");
    fs::create_dir(&unpacked).unwrap();
    run(Command::new("tar").args(["--xattrs", "-xpf"]).arg(&archive).arg("-C").arg(&unpacked));
    v.remount();
    run(Command::new("tar").args(["--xattrs", "--compare", "-f"]).arg(&archive).arg("-C").arg(&unpacked));
    // And the other way: packed inside, compared outside.
    run(Command::new("tar").arg("-cf").arg(v.path("back.tar")).arg("-C").arg(&inside).arg("."));
    run(Command::new("tar").arg("--compare").arg("-f").arg(v.path("back.tar")).arg("-C").arg(&plain));
}

#[test]
fn a_compiler_and_make_build_a_program() {
    let v = TestVault::mounted();
    let dir = v.path("program");
    fs::create_dir(&dir).unwrap();
    let parts = 24;
    let mut main = String::from("#include <stdio.h>\n#include \"all.h\"\nint main(void) { long sum = 0;\n");
    let mut header = String::new();
    for n in 0..parts {
        fs::write(
            dir.join(format!("part{n}.c")),
            format!("#include \"all.h\"\nlong part{n}(long x) {{ return x * {n} + {n}; }}\n"),
        )
        .unwrap();
        header += &format!("long part{n}(long);\n");
        main += &format!("sum += part{n}(2);\n");
    }
    fs::write(dir.join("all.h"), header).unwrap();
    fs::write(dir.join("main.c"), main + "printf(\"%ld\\n\", sum); return 0; }\n").unwrap();
    fs::write(
        dir.join("Makefile"),
        "OBJ := $(patsubst %.c,%.o,$(wildcard *.c))\nprogram: libparts.a main.o\n\t$(CC) -o $@ main.o -L. -lparts\n\
         libparts.a: $(filter-out main.o,$(OBJ))\n\tar rcs $@ $^\n%.o: %.c all.h\n\t$(CC) -g -O1 -pipe -c -o $@ $<\n",
    )
    .unwrap();
    let make = || shell(&dir, "make -j4", &NO_ARGUMENTS);
    make();
    let expected: i64 = (0..parts).map(|n| n * 3).sum();
    assert_eq!(shell(&dir, "./program", &NO_ARGUMENTS).trim(), expected.to_string());
    assert!(make().contains("up to date"), "make sees times that are not those of the files");
    v.remount();
    assert!(make().contains("up to date"), "make sees other times, mounted anew");
    assert_eq!(shell(&dir, "./program", &NO_ARGUMENTS).trim(), expected.to_string());
    std::thread::sleep(std::time::Duration::from_millis(20));
    shell(&dir, "touch part3.c", &NO_ARGUMENTS);
    let said = make();
    assert!(said.contains("part3.o") && !said.contains("part4.o -c") && said.contains("-o program"), "{said}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    let v = TestVault::mounted();
    let size = format!("{}m", setting("STRONGROOM_FIO_MIB", 64, 16));
    let job = |name: &str, flags: &[&str]| {
        run(Command::new("fio")
            .current_dir(v.dir.path())
            .args(["--name", name, "--directory"])
            .arg(&v.mnt)
            .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=7", "--size", &size])
            .args(flags));
    };
    job("random", &["--rw=randwrite", "--bs=4k", "--ioengine=psync", "--fsync=64", "--numjobs=2"]);
    job("mixed", &["--rw=randwrite", "--bsrange=512-96k", "--bs_unaligned=1", "--ioengine=psync", "--fdatasync=32"]);
    job("mapped", &["--rw=randwrite", "--bs=4k", "--ioengine=mmap"]);
    job("sequential", &["--rw=write", "--bs=1m", "--ioengine=psync", "--end_fsync=1"]);
    v.remount();
    for (name, flags) in
        [("random", &["--rw=randwrite", "--bs=4k", "--numjobs=2"][..]), ("sequential", &["--rw=write", "--bs=1m"][..])]
    {
        let mut only = flags.to_vec();
        only.extend(["--verify_only=1", "--ioengine=psync"]);
        job(name, &only);
    }
}

#[test]
fn two_hundred_writers_at_once() {
    const WRITERS: u64 = 200;
    const RECORDS: u64 = 40;
    let v = TestVault::mounted();
    let dir = v.path("writers");
    fs::create_dir(&dir).unwrap();
    let start = Barrier::new(WRITERS as usize);
    let record = |writer: u64, n: u64| -> Vec<u8> {
        let mut rng = Rng(writer << 32 | n);
        let len = 1 + rng.below(9000) as usize;
        if writer.is_multiple_of(2) { rng.bytes(len) } else { rng.text(len) }
    };
    std::thread::scope(|s| {
        for writer in 0..WRITERS {
            let (dir, start) = (&dir, &start);
            s.spawn(move || {
                start.wait();
                let own = dir.join(format!("writer-{writer}"));
                let mut file = fs::File::create(&own).unwrap();
                let mut common = OpenOptions::new().create(true).append(true).open(dir.join("common")).unwrap();
                for n in 0..RECORDS {
                    file.write_all(&record(writer, n)).unwrap();
                    let line = format!("writer {writer:03} record {n:03} {}\n", "=".repeat((writer % 60) as usize));
                    assert_eq!(common.write(line.as_bytes()).unwrap(), line.len());
                    if (writer + n) % 37 == 0 {
                        file.sync_all().unwrap();
                    }
                }
            });
        }
    });
    let check = || {
        for writer in 0..WRITERS {
            let want: Vec<u8> = (0..RECORDS).flat_map(|n| record(writer, n)).collect();
            assert!(fs::read(dir.join(format!("writer-{writer}"))).unwrap() == want, "the file of writer {writer}");
        }
        let mut lines: Vec<String> =
            fs::read_to_string(dir.join("common")).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        let mut want: Vec<String> = (0..WRITERS)
            .flat_map(|w| {
                (0..RECORDS).map(move |n| format!("writer {w:03} record {n:03} {}", "=".repeat((w % 60) as usize)))
            })
            .collect();
        want.sort();
        assert!(lines == want, "lines of the common file: {} of {}", lines.len(), want.len());
    };
    check();
    v.remount();
    check();
}

#[test]
fn a_failing_tool_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("broken.db"), vec![7; 8192]).unwrap();
    assert!(
        !output(Command::new("sqlite3").arg(dir.path().join("broken.db")).arg("PRAGMA integrity_check;"))
            .status
            .success()
    );
    let failed = std::panic::catch_unwind(|| shell(dir.path(), "false | true", &NO_ARGUMENTS));
    assert!(failed.is_err(), "a failure inside a pipe goes unnoticed");
}
