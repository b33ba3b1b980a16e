//! Reads vaults with another program in another language, which knows `docs/format.md` and nothing of this code.
//!
//! Method: make vaults of both suites and every compression, with files of several kinds, and let `tests/reader/reader.py` give
//! their bytes from the log, with a passphrase, a key file and a recovery key; damage them, and it must refuse. It also makes
//! `tests/vectors` anew, which must come out as they are. Promise: the document is enough to get one's files back.
//! Needs python3 with venv, and the packages of `tests/reader/requirements.txt`, which are installed into the target directory at
//! the first run. Without them this test fails and says so: a reader that was not tried is not known to read.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use strongroom::backing::{Backing, DirBacking};
use strongroom::base::choice::{Compression, SuiteId};
use strongroom::base::id::ROOT_INO;
use strongroom::base::limits::ARGON2_FLOOR;
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::format::inode::Inode;
use strongroom::format::key;
use strongroom::fs::{Caller, Fallocate, FileSystem, FsOptions, LimitChange, LimitOf, WriteHow};
use strongroom::seal::{RecoveryKey, Unlock};
use strongroom::vault::{self, CreateOptions, OpenOptions};

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// Python with what the reader needs.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reader-venv");
        let (python, wanted) = (venv.join("bin/python"), fs::read(tests().join("reader/requirements.txt")).unwrap());
        // Written last: what is there without it is half made, or of other packages.
        let done = venv.join("installed");
        if fs::read(&done).ok().as_ref() != Some(&wanted) {
            let _ = fs::remove_dir_all(&venv);
            run("python3 with venv (.ci/setup installs it)", Command::new("python3").args(["-m", "venv"]).arg(&venv));
            let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
            let packages = tests().join("reader/requirements.txt");
            run("the packages of tests/reader/requirements.txt", Command::new(&python).args(install).arg(packages));
            fs::write(&done, &wanted).unwrap();
        }
        python
    })
}

fn run(what: &str, command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("this test needs {what}: {e}"));
    assert!(output.status.success(), "this test needs {what}: {}", String::from_utf8_lossy(&output.stderr));
}

fn reader(dir: &Path, key: [&str; 2], path: Option<&str>) -> Output {
    let mut command = Command::new(python());
    command.arg(tests().join("reader/reader.py")).arg(dir.join("vault")).arg(key[0]).arg(dir.join(key[1]));
    command.args(path).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap()
}

fn noise(len: u32) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(i.wrapping_mul(2_654_435_761) ^ 0x9e37) >> 13) as u8).collect()
}

fn words(len: usize) -> Vec<u8> {
    (0..).flat_map(|n| format!("line {n} of a text that compresses well\n").into_bytes()).take(len).collect()
}

/// Makes a vault with a passphrase, a key file and a recovery key, and files in it; gives their paths and bytes.
fn make(dir: &Path, suite: SuiteId, compression: Compression) -> Vec<(&'static str, Vec<u8>)> {
    fs::create_dir(dir.join("vault")).unwrap();
    let backing = || -> Arc<dyn Backing> { Arc::new(DirBacking::open(&dir.join("vault")).unwrap()) };
    let world: Arc<dyn World> = Arc::new(RealWorld::default());
    let passphrase = Unlock::Passphrase(Passphrase("schöner Schlüssel".into()));
    let key_file = Unlock::KeyFile(Passphrase(noise(100)));
    let recovery = RecoveryKey::generate(&*world);
    fs::write(dir.join("pass"), "schöner Schlüssel\n").unwrap();
    fs::write(dir.join("key"), noise(100)).unwrap();
    fs::write(dir.join("paper"), recovery.text().to_lowercase().replace('-', " ")).unwrap();
    let (suite, argon2, recovery) = (Some(suite), Some(ARGON2_FLOOR), Some(recovery));
    let create = CreateOptions { suite, compression, argon2, recovery, ..CreateOptions::default() };
    vault::create(&backing(), &key_file, &create, &world).unwrap();
    let locked = vault::lock(backing()).unwrap();
    locked.slots(&key_file, Arc::clone(&world)).unwrap().add(&passphrase, "words ✓", argon2).unwrap();

    let caller = Caller { uid: 1000, gid: 100, umask: 0o027 };
    let how = WriteHow { stamp: true, ..WriteHow::default() };
    let open = || {
        let vault = vault::open(backing(), &key_file, &OpenOptions::default(), Arc::clone(&world)).unwrap();
        FileSystem::new(vault, FsOptions { uid: 1000, gid: 100, ..FsOptions::default() }).unwrap()
    };
    // Two leases, several commits, overwriting, holes, renaming, removing: what a log has to say.
    let fs = open();
    let docs = fs.mkdir(&caller, ROOT_INO, b"docs", 0o777).unwrap().ino;
    let file = |fs: &FileSystem, at, name: &[u8]| fs.mknod(&caller, at, name, 0o666, 0).unwrap().ino;
    let (text, random) = (file(&fs, docs, b"text"), file(&fs, docs, "zufällig".as_bytes()));
    let (over, gone) = (file(&fs, ROOT_INO, b"over"), file(&fs, ROOT_INO, b"gone"));
    for (ino, body) in [(text, words(500_000)), (random, noise(300_000)), (over, words(400_000)), (gone, noise(50_000))]
    {
        for (piece, at) in body.chunks(100_000).zip((0..).step_by(100_000)) {
            fs.write(ino, at, piece, how).unwrap();
        }
        fs.sync_wait().unwrap();
    }
    // From here on counts are in the commits, and the reader adds them up at each.
    let told = LimitChange { bytes: Some(Some(1 << 30)), ..LimitChange::default() };
    for of in [LimitOf::Tree(docs), LimitOf::Tree(ROOT_INO), LimitOf::User(1000)] {
        fs.set_limits(of, &told).unwrap();
        fs.sync_wait().unwrap();
    }
    fs.unlink(ROOT_INO, b"gone").unwrap();
    fs.forget(gone, 1);
    fs.write(over, 130_000, &noise(5_000), how).unwrap();
    fs.sync_wait().unwrap();
    fs.fallocate(over, 200_000, 70_000, Fallocate::PunchHole).unwrap();
    fs.vault().close().unwrap();
    drop(fs);
    let fs = open();
    let sparse = file(&fs, ROOT_INO, b"sparse");
    fs.write(sparse, 1_000_000, b"end", how).unwrap();
    file(&fs, ROOT_INO, b"empty");
    // Frames that were sealed for another file, and in other places of it.
    let copy = file(&fs, ROOT_INO, b"copy");
    assert_eq!(fs.copy_file_range(text, 10_000, copy, 777, 300_000, how).unwrap(), 300_000);
    fs.write(over, 10, b"overwritten", how).unwrap();
    fs.vault().close().unwrap();

    let mut over = words(400_000);
    over[130_000..135_000].copy_from_slice(&noise(5_000));
    over[200_000..270_000].fill(0);
    over[10..21].copy_from_slice(b"overwritten");
    let mut sparse = vec![0; 1_000_003];
    sparse[1_000_000..].copy_from_slice(b"end");
    let mut copy = vec![0; 300_777];
    copy[777..].copy_from_slice(&words(500_000)[10_000..310_000]);
    vec![
        ("/copy", copy),
        ("/docs/text", words(500_000)),
        ("/docs/zufällig", noise(300_000)),
        ("/empty", Vec::new()),
        ("/over", over),
        ("/sparse", sparse),
    ]
}

#[track_caller]
fn refuses(output: &Output, with: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(with) && output.stdout.is_empty(), "{said}");
}

#[test]
fn another_program_reads_what_we_wrote_and_refuses_what_was_changed() {
    for &suite in SuiteId::ALL {
        for compression in [Compression::Zstd, Compression::Lz4, Compression::None] {
            let dir = tempfile::tempdir().unwrap();
            let files = make(dir.path(), suite, compression);
            let keys = [["--password-file", "pass"], ["--key-file", "key"], ["--recovery-key-file", "paper"]];
            let list: String = files.iter().map(|(path, body)| format!("{} {path}\n", body.len())).collect();
            for key in keys {
                let listed = reader(dir.path(), key, None);
                let said = String::from_utf8_lossy(&listed.stderr);
                assert_eq!(String::from_utf8_lossy(&listed.stdout), list, "{suite}, {compression}, {}: {said}", key[0]);
            }
            for (path, body) in &files {
                let got = reader(dir.path(), keys[1], Some(path)).stdout;
                assert!(got == *body, "{suite}, {compression}: {path}: {} bytes of {}", got.len(), body.len());
            }
            let wrong = reader(dir.path(), ["--key-file", "paper"], None);
            refuses(&wrong, "wrong key");
            refuses(&reader(dir.path(), keys[1], Some("/gone")), "no such file");

            // One byte of the first segment's frames, which /docs/text lies in.
            let segment = dir.path().join("vault/segments/0000000000000001");
            let whole = fs::read(&segment).unwrap();
            let mut bad = whole.clone();
            bad[64 + 57 + 100] ^= 1;
            fs::write(&segment, bad).unwrap();
            refuses(&reader(dir.path(), keys[1], Some("/docs/text")), "refused");
            // The last lease cut off: acknowledged commits are missing.
            fs::write(&segment, whole).unwrap();
            fs::remove_file(dir.path().join("vault/segments/0000000000000002")).unwrap();
            refuses(&reader(dir.path(), keys[1], None), "missing");
        }
    }
}

#[test]
fn another_program_reads_a_vault_through_a_snapshot_of_its_index() {
    for &suite in SuiteId::ALL {
        let dir = tempfile::tempdir().unwrap();
        let mut files = make(dir.path(), suite, Compression::Auto);
        let world: Arc<dyn World> = Arc::new(RealWorld::default());
        let open = || {
            let backing: Arc<dyn Backing> = Arc::new(DirBacking::open(&dir.path().join("vault")).unwrap());
            let key_file = Unlock::KeyFile(Passphrase(noise(100)));
            let vault = vault::open(backing, &key_file, &OpenOptions::default(), Arc::clone(&world)).unwrap();
            FileSystem::new(vault, FsOptions { uid: 1000, gid: 100, ..FsOptions::default() }).unwrap()
        };
        let (caller, how) = (Caller { uid: 1000, gid: 100, umask: 0o027 }, WriteHow::default());
        let fs = open();
        let late = fs.mknod(&caller, ROOT_INO, b"late", 0o666, 0).unwrap().ino;
        fs.write(late, 0, &words(50_000), how).unwrap();
        fs.vault().snapshot().unwrap();
        // In the same lease, and in the next.
        fs.write(late, 20_000, b"behind it", how).unwrap();
        fs.sync_wait().unwrap();
        fs.vault().close().unwrap();
        drop(fs);
        let fs = open();
        fs.unlink(ROOT_INO, b"sparse").unwrap();
        fs.vault().close().unwrap();
        let mut body = words(50_000);
        body[20_000..20_009].copy_from_slice(b"behind it");
        files.retain(|(path, _)| *path != "/sparse");
        files.push(("/late", body.clone()));
        files.sort();
        let key = ["--key-file", "key"];
        let list: String = files.iter().map(|(path, body)| format!("{} {path}\n", body.len())).collect();
        let by_snapshot = |path: Option<&str>| {
            let mut command = Command::new(python());
            command.arg(tests().join("reader/reader.py")).arg(dir.path().join("vault")).arg("--by-snapshot");
            command.arg(key[0]).arg(dir.path().join(key[1])).args(path);
            command.env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap()
        };
        for listed in [reader(dir.path(), key, None), by_snapshot(None)] {
            let said = String::from_utf8_lossy(&listed.stderr);
            assert_eq!(String::from_utf8_lossy(&listed.stdout), list, "{suite}: {said}");
        }
        for (path, body) in &files {
            assert!(by_snapshot(Some(path)).stdout == *body, "{suite}: {path}");
        }
        // Without the beginning of the log, what does not lie in it reads.
        fs::remove_file(dir.path().join("vault/segments/0000000000000001")).unwrap();
        assert!(reader(dir.path(), key, Some("/late")).stdout == body);
        let snapshots: Vec<_> = fs::read_dir(dir.path().join("vault/snapshots")).unwrap().collect();
        assert_eq!(snapshots.len(), 1);
        let snapshot = snapshots[0].as_ref().unwrap().path();
        let mut bytes = fs::read(&snapshot).unwrap();
        bytes[100] ^= 1;
        fs::write(&snapshot, bytes).unwrap();
        refuses(&reader(dir.path(), key, Some("/late")), "no snapshot holds");
    }
}

#[test]
fn another_program_reads_a_vault_whose_old_segments_were_emptied_and_removed() {
    for &suite in SuiteId::ALL {
        let dir = tempfile::tempdir().unwrap();
        let files = make(dir.path(), suite, Compression::Auto);
        let world: Arc<dyn World> = Arc::new(RealWorld::default());
        let backing: Arc<dyn Backing> = Arc::new(DirBacking::open(&dir.path().join("vault")).unwrap());
        let key_file = Unlock::KeyFile(Passphrase(noise(100)));
        let options = OpenOptions { clean_bytes: Some(0), ..OpenOptions::default() };
        let vault = vault::open(backing, &key_file, &options, world).unwrap();
        vault.clean();
        let began = Instant::now();
        while vault.stats().segments_removed.get() == 0 && began.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let (moved, removed) = (vault.stats().moved_bytes.get(), vault.stats().segments_removed.get());
        assert!(moved > 0 && removed > 0, "{suite}: {moved} bytes moved, {removed} segments removed");
        vault.close().unwrap();
        for (path, body) in &files {
            let got = reader(dir.path(), ["--key-file", "key"], Some(path));
            let said = String::from_utf8_lossy(&got.stderr);
            assert!(got.stdout == *body, "{suite}: {path}: {} bytes of {}: {said}", got.stdout.len(), body.len());
        }
    }
}

#[test]
fn a_count_that_does_not_add_up_is_refused_by_another_program() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), SuiteId::Aes256Gcm, Compression::Auto);
    assert!(reader(dir.path(), ["--key-file", "key"], None).status.success());
    // A size that changed, and no charge with it.
    let backing: Arc<dyn Backing> = Arc::new(DirBacking::open(&dir.path().join("vault")).unwrap());
    let (key_file, world) = (Unlock::KeyFile(Passphrase(noise(100))), Arc::new(RealWorld::default()));
    let vault = vault::open(backing, &key_file, &OpenOptions::default(), world).unwrap();
    let root = vault.get(&key::inode(ROOT_INO)).unwrap().unwrap();
    let mut inode = Inode::decode(&root).unwrap();
    inode.uid += 1;
    let mut op = vault.begin();
    op.put(key::inode(ROOT_INO), inode.encode());
    op.commit();
    vault.close().unwrap();
    refuses(&reader(dir.path(), ["--key-file", "key"], None), "do not add up");
}

#[test]
fn another_program_reads_the_vaults_of_older_formats() {
    for name in ["v1-aes", "v1-chacha", "v2-aes", "v2-chacha"] {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(tests().join("vaults/key"), dir.path().join("key")).unwrap();
        std::os::unix::fs::symlink(tests().join("vaults").join(name), dir.path().join("vault")).unwrap();
        let listed = reader(dir.path(), ["--key-file", "key"], None);
        let said = String::from_utf8_lossy(&listed.stdout);
        assert!(said.contains("204800 /docs/words.txt\n") && said.contains("10485763 /sparse\n"), "{name}: {said}");
        let read = reader(dir.path(), ["--key-file", "key"], Some("/docs/words.txt")).stdout;
        assert!(read.starts_with(b"line 0 of a text that compresses well") && read.len() == 204_800, "{name}");
    }
}

/// What lies in a folder, but locks and what is being made.
fn copy(from: &Path, to: &Path) {
    for dir in ["", "segments", "index"] {
        fs::create_dir(to.join(dir)).unwrap();
        for entry in fs::read_dir(from.join(dir)).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            if entry.file_type().unwrap().is_file() && !name.to_str().unwrap().ends_with(".new") {
                fs::copy(entry.path(), to.join(dir).join(name)).unwrap();
            }
        }
    }
}

#[test]
fn another_program_reads_a_vault_with_a_new_master_key_in_the_middle_of_it_and_after() {
    for &suite in SuiteId::ALL {
        let (dir, middle) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut files = make(dir.path(), suite, Compression::Auto);
        for name in ["key", "paper"] {
            fs::copy(dir.path().join(name), middle.path().join(name)).unwrap();
        }
        let backing = || -> Arc<dyn Backing> { Arc::new(DirBacking::open(&dir.path().join("vault")).unwrap()) };
        let (world, key_file): (Arc<dyn World>, _) =
            (Arc::new(RealWorld::default()), Unlock::KeyFile(Passphrase(noise(100))));
        let before = fs::read(dir.path().join("vault/vault.toml")).unwrap();
        let mut rekey = vault::lock(backing()).unwrap().rekey(&key_file, Arc::clone(&world)).unwrap();
        let plan = rekey.plan(std::slice::from_ref(&key_file), false).unwrap();
        rekey.begin(&plan, None, None).unwrap();
        let halfway = std::cell::Cell::new(0);
        let report = rekey.run(false, &|done, total| {
            if done > 0 && done < total && halfway.get() == 0 {
                copy(&dir.path().join("vault"), &middle.path().join("vault"));
                halfway.set(done);
            }
        });
        assert!(report.unwrap().finished && halfway.get() > 0);
        drop(rekey);
        // What is written from now on stands beside what was sealed anew.
        let vault = vault::open(backing(), &key_file, &OpenOptions::default(), world).unwrap();
        let fs = FileSystem::new(vault, FsOptions { uid: 1000, gid: 100, ..FsOptions::default() }).unwrap();
        let (caller, how) = (Caller { uid: 1000, gid: 100, umask: 0o027 }, WriteHow::default());
        let new = fs.mknod(&caller, ROOT_INO, b"written-after", 0o666, 0).unwrap().ino;
        fs.write(new, 0, &words(70_000), how).unwrap();
        fs.vault().close().unwrap();
        drop(fs);
        let reads = |dir: &Path, files: &[(&str, Vec<u8>)]| {
            for (path, body) in files {
                let got = reader(dir, ["--key-file", "key"], Some(path));
                assert!(got.stdout == *body, "{suite}: {path}: {}", String::from_utf8_lossy(&got.stderr));
            }
            refuses(&reader(dir, ["--recovery-key-file", "paper"], None), "wrong key");
        };
        reads(middle.path(), &files);
        files.push(("/written-after", words(70_000)));
        reads(dir.path(), &files);
        // In the middle the old key is needed, and after it a header that has it is refused.
        let header = middle.path().join("vault/vault.toml");
        fs::write(&header, fs::read(dir.path().join("vault/vault.toml")).unwrap()).unwrap();
        refuses(&reader(middle.path(), ["--key-file", "key"], None), "under key 0, which is not there");
        fs::write(dir.path().join("vault/vault.toml"), before).unwrap();
        refuses(&reader(dir.path(), ["--key-file", "key"], None), "of before a rekey");
    }
}

#[test]
fn an_older_header_put_back_is_refused_by_another_program_too() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), SuiteId::Aes256Gcm, Compression::Auto);
    let header = dir.path().join("vault/vault.toml");
    let old = fs::read(&header).unwrap();
    let backing: Arc<dyn Backing> = Arc::new(DirBacking::open(&dir.path().join("vault")).unwrap());
    let key_file = Unlock::KeyFile(Passphrase(noise(100)));
    let mut slots = vault::lock(backing).unwrap().slots(&key_file, Arc::new(RealWorld::default())).unwrap();
    slots.remove(&[2]).unwrap();
    refuses(&reader(dir.path(), ["--recovery-key-file", "paper"], None), "wrong key");
    fs::write(&header, old).unwrap();
    refuses(&reader(dir.path(), ["--recovery-key-file", "paper"], None), "put back");
}

#[test]
fn the_vectors_come_out_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(python());
    command.arg(tests().join("reader/vectors.py")).arg(dir.path()).env("PYTHONDONTWRITEBYTECODE", "1");
    run("tests/reader/vectors.py", &mut command);
    let mut names: Vec<_> = fs::read_dir(tests().join("vectors")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names.len(), 7);
    for name in names {
        let (made, kept) = (dir.path().join(&name), tests().join("vectors").join(&name));
        assert!(
            fs::read(made).unwrap() == fs::read(kept).unwrap(),
            "{name:?} changed: who changes it says so in format.md"
        );
    }
}
