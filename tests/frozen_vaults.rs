//! Method: open the vaults in `tests/vaults/`, which earlier versions wrote, from a copy, and compare every name, attribute
//! and byte with what is written down here; then damage copies of them, one thing at a time.
//! Promise: a vault that was ever written by a released format opens for ever; what must be refused is refused, with the
//! right words; what is damaged is an error where it is damaged and nowhere else, never other bytes.
//!
//! A new format adds its folders to `FROZEN`, made by `make_the_vaults` (`cargo test --test frozen_vaults -- --ignored`,
//! which never replaces one that exists), and leaves the old ones as they are.
#![allow(clippy::unwrap_used)] // tests may

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use strongroom::backing::{Backing, Cache, DirBacking, Fate, MemoryBacking, Open, read_file};
use strongroom::base::choice::{Compression, SuiteId};
use strongroom::base::id::{Ino, ROOT_INO};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, Time, World};
use strongroom::format::quota::{Account, Used};
use strongroom::fs::{
    Attr, Caller, Fallocate, FileSystem, FsFault, FsOptions, LimitChange, LimitOf, SetAttr, SetTime, WriteHow,
    XattrHow, XattrReply,
};
use strongroom::seal::{HeaderFault, Unlock};
use strongroom::vault::{self, CreateOptions, OpenFault, OpenOptions};

const FROZEN: [(&str, SuiteId, Compression); 10] = [
    ("v1-aes", SuiteId::Aes256Gcm, Compression::Zstd),
    ("v1-chacha", SuiteId::ChaCha20Poly1305, Compression::Lz4),
    ("v2-aes", SuiteId::Aes256Gcm, Compression::Zstd),
    ("v2-chacha", SuiteId::ChaCha20Poly1305, Compression::Lz4),
    ("v3-aes", SuiteId::Aes256Gcm, Compression::Zstd),
    ("v3-chacha", SuiteId::ChaCha20Poly1305, Compression::Lz4),
    ("v4-aes", SuiteId::Aes256Gcm, Compression::Zstd),
    ("v4-chacha", SuiteId::ChaCha20Poly1305, Compression::Lz4),
    ("v5-aes", SuiteId::Aes256Gcm, Compression::Zstd),
    ("v5-chacha", SuiteId::ChaCha20Poly1305, Compression::Lz4),
];

/// What lies in each: path, mode, links, owner, group, size, blocks of 512 bytes, seconds of mtime and btime.
const LISTING: &str = "\
/ 40755 3 1000 100 8 8 1800000000 1800000000
/docs 40750 2 1000 100 2 8 1800000000 1800000000
/docs/hard.bin 100640 2 1000 100 40960 80 1500000000 1800000000
/docs/words.txt 100640 1 1000 100 204800 400 1500000000 1800000000
/empty 104711 1 1000 100 0 0 -1 1800000000
/fifo 10640 1 1000 100 0 0 1800000000 1800000000
/link 120777 1 1000 100 14 0 1800000000 1800000000
/na\\xefve \\xff 100640 1 1000 100 3 1 1800000000 1800000000
/over 100640 1 1000 100 90000 137 1800000000 1800000000
/random.bin 100640 2 1000 100 40960 80 1500000000 1800000000
/sparse 100640 1 1000 100 10485763 1 1800000000 1800000000
";

/// And in those of format 3, which came with copies.
const COPIES: &str = "\
/copy-of-gone 100640 1 1000 100 20000 40 1800000000 1800000000
/copy-of-words 100640 1 1000 100 150000 293 1800000000 1800000000
";

/// What shares its data with the rest of `docs/words.txt`, overwritten and with a hole.
fn copy_of_words() -> Vec<u8> {
    let mut want = words()[50_000..200_000].to_vec();
    want[1000..2000].fill(b'c');
    want
}

/// Standing time and counted-out chance.
struct Scripted {
    start: Instant,
    state: AtomicU64,
}

impl World for Scripted {
    fn now(&self) -> Time {
        Time { seconds: 1_800_000_000, nanos: 123_456_789 }
    }
    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
    fn fill(&self, out: &mut [u8]) {
        out.fill_with(|| split_mix(self.state.fetch_add(1, Relaxed)));
    }
}

/// The low byte of the SplitMix64 of `n`.
fn split_mix(n: u64) -> u8 {
    let z = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as u8
}

fn noise(seed: u64, len: u64) -> Vec<u8> {
    (0..len).map(|i| split_mix(seed * 1_000_000 + i)).collect()
}

fn words() -> Vec<u8> {
    let mut text = String::new();
    for n in 0.. {
        writeln!(text, "line {n} of a text that compresses well, and ends where it ends").unwrap();
        if text.len() >= 204_800 {
            break;
        }
    }
    text.truncate(204_800);
    text.into_bytes()
}

fn over() -> Vec<u8> {
    let mut want = vec![b'a'; 100_000];
    want[10_000..20_000].fill(b'b');
    want[30_000..50_000].fill(0);
    want.truncate(90_000);
    want
}

fn sparse() -> Vec<u8> {
    let mut want = vec![0; (10 << 20) + 3];
    want[..5].copy_from_slice(b"begin");
    want[5 << 20..(5 << 20) + 6].copy_from_slice(b"middle");
    want[10 << 20..].copy_from_slice(b"end");
    want
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vaults")
}

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(fs::read(folder().join("key")).unwrap()))
}

fn opened_in(dir: &Path, world: Arc<dyn World>) -> Result<FileSystem, OpenFault> {
    opened_cleaning(dir, world, None)
}

fn opened_cleaning(dir: &Path, world: Arc<dyn World>, clean_bytes: Option<u64>) -> Result<FileSystem, OpenFault> {
    let flush_interval = Duration::from_secs(3600);
    let options = OpenOptions { workers: 1, flush_interval, clean_bytes, ..OpenOptions::default() };
    let vault = vault::open(Arc::new(DirBacking::open(dir).unwrap()), &unlock(), &options, world)?;
    Ok(FileSystem::new(vault, FsOptions { uid: 1000, gid: 100, ..FsOptions::default() }).unwrap())
}

fn opened(dir: &Path) -> Result<FileSystem, OpenFault> {
    opened_in(dir, Arc::new(RealWorld::default()))
}

fn fault(dir: &Path) -> OpenFault {
    opened(dir).map(|_| ()).expect_err("a damaged vault must be refused")
}

fn copied(name: &str) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                fs::create_dir(&to).unwrap();
                copy(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy(&folder().join(name), dir.path());
    dir
}

fn find(fs: &FileSystem, path: &str) -> Attr {
    let names = path.split('/').filter(|name| !name.is_empty());
    names.fold(fs.getattr(ROOT_INO).unwrap(), |at, name| fs.lookup(at.ino, name.as_bytes()).unwrap())
}

fn listing(fs: &FileSystem) -> String {
    let mut out = String::new();
    list(fs, ROOT_INO, "", &mut out);
    out
}

fn list(fs: &FileSystem, ino: Ino, path: &str, out: &mut String) {
    let a = fs.getattr(ino).unwrap();
    let shown = if path.is_empty() { "/" } else { path };
    assert!(a.rdev == 0 && a.btime.nanos == 123_456_789, "{shown}");
    let Attr { mode, nlink, uid, gid, size, blocks, .. } = a;
    let size = if mode & libc::S_IFMT == libc::S_IFDIR { entries(fs, ino).len() as u64 } else { size };
    let (mtime, btime) = (a.mtime.seconds, a.btime.seconds);
    writeln!(out, "{shown} {mode:o} {nlink} {uid} {gid} {size} {blocks} {mtime} {btime}").unwrap();
    if mode & libc::S_IFMT != libc::S_IFDIR {
        return;
    }
    let mut all = entries(fs, ino);
    all.sort();
    for (name, child, kind) in all {
        assert_eq!(u32::from(kind) << 12, fs.getattr(child).unwrap().mode & libc::S_IFMT);
        list(fs, child, &format!("{path}/{}", name.escape_ascii()), out);
    }
}

fn entries(fs: &FileSystem, ino: Ino) -> Vec<(Vec<u8>, Ino, u8)> {
    let mut all = Vec::new();
    fs.readdir(ino, 0, |e| {
        all.push((e.name.clone(), e.ino, e.kind));
        true
    })
    .unwrap();
    all.retain(|(name, ..)| name != b"." && name != b"..");
    all
}

fn read(fs: &FileSystem, ino: Ino) -> Result<Vec<u8>, FsFault> {
    let mut out = Vec::new();
    fs.read(ino, 0, fs.getattr(ino)?.size as usize, &mut out)?;
    Ok(out)
}

fn has_copies(name: &str) -> bool {
    !name.starts_with("v1") && !name.starts_with("v2")
}

/// Format 5 came with snapshots and moves: in those, what was in the first segment is elsewhere.
fn is_cleaned(name: &str) -> bool {
    name.starts_with("v5")
}

/// In those from format 4 on, which came with quotas, `docs` has a limit, and so has the user who owns everything.
fn assert_quotas(vault: &vault::Vault) {
    let of = |account| vault.accounts().into_iter().find(|a| a.account == account).unwrap();
    let (docs, owner) = (of(Account::Tree(1)), of(Account::User(1000)));
    assert_eq!((docs.used, docs.limits.bytes), (Used { bytes: 204_800 + 40_960, inodes: 3 }, Some(1 << 20)));
    assert_eq!((owner.used.inodes, owner.limits.soft_inodes, owner.is_over_soft()), (12, Some(5), true));
    assert_eq!(vault.recount_quotas().unwrap(), []);
}

/// Those of which it is known what lies in which segment.
fn of_two_segments() -> impl Iterator<Item = &'static str> {
    FROZEN.into_iter().map(|(name, ..)| name).filter(|name| !is_cleaned(name))
}

fn assert_listed(name: &str, fs: &FileSystem) {
    let mut want = LISTING.to_owned();
    if has_copies(name) {
        want = want.replace("/ 40755 3 1000 100 8 8", "/ 40755 3 1000 100 10 8") + COPIES;
    }
    let (mut want, found) = (want.lines().collect::<Vec<_>>(), listing(fs));
    let mut found: Vec<&str> = found.lines().collect();
    want.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, want);
}

/// Everything that a frozen vault holds.
fn assert_whole(name: &str, fs: &FileSystem) {
    assert_listed(name, fs);
    let content = |path: &str| read(fs, find(fs, path).ino).unwrap();
    assert!(content("docs/words.txt") == words());
    assert!(content("random.bin") == noise(1, 40_960));
    assert_eq!(find(fs, "random.bin").ino, find(fs, "docs/hard.bin").ino);
    assert!(content("over") == over());
    assert!(content("sparse") == sparse());
    assert_eq!(fs.readlink(find(fs, "link").ino).unwrap(), b"docs/words.txt");
    let odd = fs.lookup(ROOT_INO, b"na\xefve \xff").unwrap().ino;
    assert_eq!(read(fs, odd).unwrap(), b"odd");
    let random = find(fs, "random.bin").ino;
    let bytes = |b: &[u8]| XattrReply::Bytes(b.to_vec());
    assert_eq!(fs.listxattr(random, 100).unwrap(), bytes(b"user.colour\0user.empty\0"));
    assert_eq!(fs.getxattr(random, b"user.colour", 100).unwrap(), bytes(b"dark blue"));
    assert_eq!(fs.getxattr(random, b"user.empty", 100).unwrap(), bytes(b""));
    let (mut inodes, mut bytes_used) = (10, 204_800 + 40_960 + 70_000 + 14 + 3);
    if has_copies(name) {
        assert!(content("copy-of-words") == copy_of_words());
        assert!(content("copy-of-gone") == noise(9, 24_576)[4000..24_000]);
        (inodes, bytes_used) = (inodes + 2, bytes_used + 170_000);
    }
    if name.starts_with("v4") || is_cleaned(name) {
        assert_quotas(fs.vault());
    }
    let usage = fs.vault().usage();
    assert_eq!((usage.inodes, usage.bytes), (inodes, bytes_used));
    assert_eq!((usage.quota_bytes, usage.quota_inodes), (Some(1 << 40), Some(1_000_000)));
    assert!(fs.vault().stats().errors().is_empty());
}

#[test]
#[ignore = "makes the vaults that the other tests open; run by hand when a format is born"]
fn make_the_vaults() {
    for (name, suite, compression) in FROZEN {
        let dir = folder().join(name);
        if dir.exists() {
            continue;
        }
        fs::create_dir(&dir).unwrap();
        let world: Arc<dyn World> = Arc::new(Scripted { start: Instant::now(), state: AtomicU64::new(suite as u64) });
        let (quota_bytes, quota_inodes) = (Some(1 << 40), Some(1_000_000));
        let create =
            CreateOptions { suite: Some(suite), compression, quota_bytes, quota_inodes, ..CreateOptions::default() };
        vault::create(&(Arc::new(DirBacking::open(&dir).unwrap()) as _), &unlock(), &create, &world).unwrap();

        let caller = Caller { uid: 1000, gid: 100, umask: 0o027 };
        let how = WriteHow { stamp: true, ..WriteHow::default() };
        // Two lives, so that there are two leases and two segments.
        let fs = opened_in(&dir, Arc::clone(&world)).unwrap();
        let file = |fs: &FileSystem, at: Ino, name: &[u8]| fs.mknod(&caller, at, name, 0o666, 0).unwrap().ino;
        let docs = fs.mkdir(&caller, ROOT_INO, b"docs", 0o777).unwrap().ino;
        let text = file(&fs, docs, b"words.txt");
        fs.write(text, 0, &words(), how).unwrap();
        let (over, gone) = (file(&fs, ROOT_INO, b"over"), file(&fs, ROOT_INO, b"gone"));
        fs.write(over, 0, &[b'a'; 100_000], how).unwrap();
        fs.write(gone, 0, &noise(9, 24_576), how).unwrap();
        fs.sync_wait().unwrap();
        let (words_copy, gone_copy) = (file(&fs, ROOT_INO, b"copy-of-words"), file(&fs, ROOT_INO, b"copy-of-gone"));
        assert_eq!(fs.copy_file_range(text, 50_000, words_copy, 0, 150_000, how).unwrap(), 150_000);
        assert_eq!(fs.copy_file_range(gone, 4000, gone_copy, 0, 20_000, how).unwrap(), 20_000);
        fs.write(words_copy, 1000, &[b'c'; 1000], how).unwrap();
        fs.write(over, 10_000, &[b'b'; 10_000], how).unwrap();
        fs.fallocate(over, 30_000, 20_000, Fallocate::PunchHole).unwrap();
        fs.setattr(&caller, over, &SetAttr { size: Some(90_000), ..SetAttr::default() }).unwrap();
        fs.unlink(ROOT_INO, b"gone").unwrap();
        fs.forget(gone, 1);
        fs.sync_wait().unwrap();
        fs.vault().close().unwrap();
        drop(fs);

        let fs = opened_in(&dir, Arc::clone(&world)).unwrap();
        let random = file(&fs, ROOT_INO, b"random.bin");
        fs.write(random, 0, &noise(1, 40_960), how).unwrap();
        fs.link(random, find(&fs, "docs").ino, b"hard.bin").unwrap();
        fs.setxattr(random, b"user.colour", b"dark blue", XattrHow::Set).unwrap();
        fs.setxattr(random, b"user.empty", b"", XattrHow::Set).unwrap();
        let mtime = |seconds| Some(SetTime::At(Time { seconds, nanos: 5 }));
        let old = SetAttr { mtime: mtime(1_500_000_000), ..SetAttr::default() };
        fs.setattr(&caller, random, &old).unwrap();
        fs.setattr(&caller, find(&fs, "docs/words.txt").ino, &old).unwrap();
        fs.symlink(&caller, ROOT_INO, b"link", b"docs/words.txt").unwrap();
        let empty = file(&fs, ROOT_INO, b"empty");
        let set = SetAttr { mode: Some(0o4711), mtime: mtime(-1), ..SetAttr::default() };
        fs.setattr(&caller, empty, &set).unwrap();
        fs.mknod(&caller, ROOT_INO, b"fifo", libc::S_IFIFO | 0o666, 0).unwrap();
        let holes = file(&fs, ROOT_INO, b"sparse");
        fs.write(holes, 0, b"begin", how).unwrap();
        fs.write(holes, 5 << 20, b"middle", how).unwrap();
        fs.write(holes, 10 << 20, b"end", how).unwrap();
        let odd = file(&fs, ROOT_INO, b"na\xefve \xff");
        fs.write(odd, 0, b"odd", how).unwrap();
        let most = LimitChange { bytes: Some(Some(1 << 20)), ..LimitChange::default() };
        fs.set_limits(LimitOf::Tree(find(&fs, "docs").ino), &most).unwrap();
        let many = LimitChange { soft_inodes: Some(Some(5)), ..LimitChange::default() };
        fs.set_limits(LimitOf::User(1000), &many).unwrap();
        fs.vault().close().unwrap();
        drop(fs);

        let fs = opened_cleaning(&dir, Arc::clone(&world), Some(0)).unwrap();
        fs.vault().clean();
        while fs.vault().stats().segments_removed.get() == 0 {
            assert!(world.elapsed() < Duration::from_secs(60), "{:?}", fs.vault().stats().errors());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(fs.vault().stats().moved_bytes.get() > 0);
        fs.vault().close().unwrap();
        fs::remove_file(dir.join("lock")).unwrap();
        // Room for a full disk: nothing of the vault.
        let _ = fs::remove_file(dir.join("reserve"));
    }
}

#[test]
fn a_frozen_vault_opens_holds_what_it_held_and_takes_more() {
    for (name, ..) in FROZEN {
        let dir = copied(name);
        for _ in 0..2 {
            let fs = opened(dir.path()).unwrap();
            assert_whole(name, &fs);
            fs.vault().close().unwrap();
        }
        let fs = opened(dir.path()).unwrap();
        let ino = fs.mknod(&Caller::default(), ROOT_INO, b"new", 0o644, 0).unwrap().ino;
        fs.write(ino, 0, b"news", WriteHow::default()).unwrap();
        fs.sync_wait().unwrap();
        fs.vault().close().unwrap();
        drop(fs);
        let fs = opened(dir.path()).unwrap();
        assert_eq!(read(&fs, find(&fs, "new").ino).unwrap(), b"news");
        fs.unlink(ROOT_INO, b"new").unwrap();
        assert!(read(&fs, find(&fs, "docs/words.txt").ino).unwrap() == words());
    }
}

#[test]
fn the_frozen_vaults_stay_small_and_hold_what_format_md_says() {
    for (name, ..) in FROZEN {
        let dir = folder().join(name);
        let names = |sub: &str| {
            let mut all: Vec<_> = fs::read_dir(dir.join(sub)).unwrap().map(|e| e.unwrap().file_name()).collect();
            all.sort();
            all
        };
        let mut expected = vec!["index", "root.a", "root.b", "segments", "vault.toml"];
        // The header's copy came with format 2.
        expected.extend(Some("vault.toml.copy").filter(|_| !name.starts_with("v1")));
        if is_cleaned(name) {
            expected.insert(4, "snapshots");
        }
        assert_eq!(names(""), expected);
        if is_cleaned(name) {
            assert!(!names("segments").contains(&"0000000000000001".into()), "{:?}", names("segments"));
            assert_eq!(names("snapshots").len(), 2);
        } else {
            assert_eq!(names("segments"), ["0000000000000001", "0000000000000002"]);
        }
        assert_eq!(names("index"), ["0000000000000001"]);
        let len = |path: &str| fs::metadata(dir.join(path)).unwrap().len();
        assert_eq!((len("root.a"), len("root.b")), (4096, 4096));
        let of =
            |sub: &str| names(sub).iter().map(|n| len(&format!("{sub}/{}", n.to_string_lossy()))).collect::<Vec<_>>();
        let segments = of("segments");
        assert!(segments.iter().all(|len| len % 4096 == 0));
        let all = segments.into_iter().chain(of("index")).sum::<u64>();
        assert!(all < 300 << 10, "{all} bytes");
    }
}

/// A copy whose header is edited, and the header's copy with it, which would serve in its place.
fn with_header(name: &str, edit: impl Fn(String) -> String) -> tempfile::TempDir {
    let dir = copied(name);
    for file in ["vault.toml", "vault.toml.copy"] {
        let path = dir.path().join(file);
        if path.exists() {
            let (old, new) = (fs::read_to_string(&path).unwrap(), edit(fs::read_to_string(&path).unwrap()));
            assert_ne!(old, new);
            fs::write(path, new).unwrap();
        }
    }
    dir
}

/// A header's text with another format in it.
fn format_of(text: &str, format: u16) -> String {
    let (first, rest) = text.split_once('\n').unwrap();
    assert!(["format = 1", "format = 2", "format = 3", "format = 4", "format = 5"].contains(&first), "{first}");
    format!("format = {format}\n{rest}")
}

#[test]
fn a_vault_of_an_older_format_becomes_one_of_ours_before_anything_else_is_written() {
    for (name, ..) in FROZEN {
        let dir = copied(name);
        let header = || fs::read_to_string(dir.path().join("vault.toml")).unwrap();
        let before = header();
        let fs = opened(dir.path()).unwrap();
        assert!(header().starts_with("format = 5\n"), "an older strongroom must refuse what follows");
        assert_eq!(header() == before, name.starts_with("v5"), "it is rewritten once");
        let ino = fs.mknod(&Caller::default(), ROOT_INO, b"new", 0o644, 0).unwrap().ino;
        fs.write(ino, 0, &noise(4, 50_000), WriteHow::default()).unwrap();
        fs.vault().close().unwrap();
        drop(fs);
        // Groups of both formats are replayed.
        fs::remove_dir_all(dir.path().join("index")).unwrap();
        fs::create_dir(dir.path().join("index")).unwrap();
        let fs = opened(dir.path()).unwrap();
        assert!(read(&fs, find(&fs, "new").ino).unwrap() == noise(4, 50_000));
        fs.unlink(ROOT_INO, b"new").unwrap();
        assert!(read(&fs, find(&fs, "docs/words.txt").ino).unwrap() == words());
        assert!(read(&fs, find(&fs, "random.bin").ino).unwrap() == noise(1, 40_960));
        assert!(fs.vault().stats().errors().is_empty());
    }
}

/// A frozen vault on a disk in memory.
fn in_memory(name: &str) -> MemoryBacking {
    let (from, disk) = (folder().join(name), MemoryBacking::default());
    for dir in ["segments", "index"] {
        disk.make_dir(dir).unwrap();
    }
    for dir in ["", "segments", "index"] {
        for entry in fs::read_dir(from.join(dir)).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                let path = Path::new(dir).join(entry.file_name());
                let file = disk.open(path.to_str().unwrap(), Open::Create, Cache::Buffered).unwrap();
                file.write_all_at(&fs::read(entry.path()).unwrap(), 0).unwrap();
                file.sync_data().unwrap();
            }
        }
        disk.sync_dir(dir).unwrap();
    }
    disk
}

#[test]
fn a_power_cut_while_a_vault_becomes_one_of_ours_leaves_one_that_opens_and_none_that_is_misread() {
    let open_in = |disk: &MemoryBacking| {
        let options = OpenOptions { workers: 1, flush_interval: Duration::from_secs(3600), ..OpenOptions::default() };
        let vault = vault::open(Arc::new(disk.clone()), &unlock(), &options, Arc::new(RealWorld::default())).unwrap();
        FileSystem::new(vault, FsOptions { uid: 1000, gid: 100, ..FsOptions::default() }).unwrap()
    };
    let disk = in_memory("v1-aes");
    disk.record();
    let fs = open_in(&disk);
    fs.mknod(&Caller::default(), ROOT_INO, b"new", 0o644, 0).unwrap();
    fs.sync_wait().unwrap();
    fs.vault().close().unwrap();
    drop(fs);
    let (mut cuts, mut old, mut new) = (disk.cuts(), 0, 0);
    loop {
        for coins in 0..3 {
            let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
            let bytes = |path: &str| read_file(&after, path, 1 << 30).unwrap();
            let is_new = bytes("vault.toml").starts_with(b"format = 5\n");
            *if is_new { &mut new } else { &mut old } += 1;
            let roots = ["root.a", "root.b"].map(|name| bytes(name)[4]);
            let segments = after.list("segments").unwrap();
            let version = |s: &String| bytes(&format!("segments/{s}")).get(4).copied();
            let groups: Vec<u8> = segments.iter().filter_map(version).collect();
            let any_new = roots.iter().chain(&groups).any(|version| *version > 1);
            assert!(is_new || !any_new, "cut {}: an older strongroom would misread {roots:?} {groups:?}", cuts.cut());
            if coins == 0 {
                let fs = open_in(&after);
                assert!(read(&fs, find(&fs, "docs/words.txt").ino).unwrap() == words());
                assert!(read(&fs, find(&fs, "random.bin").ino).unwrap() == noise(1, 40_960));
            }
        }
        if !cuts.advance() {
            break;
        }
    }
    assert!(old > 3 && new > 30, "the cuts fell on both sides: {old} {new}");
}

#[test]
fn the_format_in_the_header_is_authenticated() {
    for (name, ..) in FROZEN {
        let dir = with_header(name, |t| format_of(&t, if t.starts_with("format = 1") { 2 } else { 1 }));
        assert!(matches!(fault(dir.path()), OpenFault::Header(HeaderFault::Tampered)));
    }
}

#[test]
fn a_header_of_the_future_is_refused_before_anything_else_is_looked_at() {
    for (name, ..) in FROZEN {
        let dir = with_header(name, |t| format_of(&t, 6) + "\nsurprise = 'yes'\n");
        assert!(matches!(fault(dir.path()), OpenFault::Header(HeaderFault::UnknownFeature(f)) if f == "format 6"));
        let dir = with_header(name, |t| t.replace("features = []", "features = ['holes']"));
        assert!(matches!(fault(dir.path()), OpenFault::Header(HeaderFault::UnknownFeature(f)) if f == "holes"));
    }
}

#[test]
fn a_header_that_was_changed_is_refused() {
    let flip = |text: String| {
        let at = text.find("mac = \"").unwrap() + 7;
        let digit = if &text[at..=at] == "0" { "1" } else { "0" };
        format!("{}{digit}{}", &text[..at], &text[at + 1..])
    };
    let quota = |text: String| text.replace("quota_bytes = 1099511627776", "quota_bytes = 1099511627777");
    let label = |text: String| text.replace("label = \"first\"", "label = \"fisrt\"");
    for (name, ..) in FROZEN {
        for dir in [with_header(name, flip), with_header(name, quota), with_header(name, label)] {
            assert!(matches!(fault(dir.path()), OpenFault::Header(HeaderFault::Tampered)));
        }
    }
    let swapped = with_header("v1-aes", |t| t.replace("aes-256-gcm", "chacha20-poly1305"));
    assert!(matches!(fault(swapped.path()), OpenFault::Header(HeaderFault::Tampered)));
}

#[test]
fn another_vaults_header_or_roots_do_not_open_this_one() {
    let (dir, other) = (copied("v1-aes"), copied("v1-chacha"));
    for name in ["root.a", "root.b"] {
        fs::copy(other.path().join(name), dir.path().join(name)).unwrap();
    }
    assert!(matches!(fault(dir.path()), OpenFault::RootsLost));
}

#[test]
fn one_root_is_enough_and_none_is_refused() {
    for (name, ..) in FROZEN {
        let cut = |dir: &Path, root: &str| {
            let bytes = fs::read(dir.join(root)).unwrap();
            fs::write(dir.join(root), &bytes[..100]).unwrap();
        };
        for root in ["root.a", "root.b"] {
            let dir = copied(name);
            cut(dir.path(), root);
            assert_whole(name, &opened(dir.path()).unwrap());
        }
        let dir = copied(name);
        cut(dir.path(), "root.a");
        cut(dir.path(), "root.b");
        assert!(matches!(fault(dir.path()), OpenFault::RootsLost));
    }
}

#[test]
fn a_lost_or_damaged_index_is_rebuilt_and_equal() {
    let index = "index/0000000000000001";
    for (name, ..) in FROZEN {
        let dir = copied(name);
        fs::remove_file(dir.path().join(index)).unwrap();
        let fs = opened(dir.path()).unwrap();
        assert_whole(name, &fs);
        fs.vault().close().unwrap();
        drop(fs);
        assert_whole(name, &opened(dir.path()).unwrap());

        // Both header slots; a page; the preamble.
        for places in [&[4096 + 50, 12_288 + 50][..], &[17]] {
            let dir = copied(name);
            let mut bytes = fs::read(dir.path().join(index)).unwrap();
            places.iter().for_each(|&at: &usize| bytes[at] ^= 1);
            fs::write(dir.path().join(index), bytes).unwrap();
            assert_whole(name, &opened(dir.path()).unwrap());
        }
    }
}

#[test]
fn an_index_of_another_vault_is_no_index() {
    let (dir, other) = (copied("v1-aes"), copied("v1-chacha"));
    let index = "index/0000000000000001";
    fs::copy(other.path().join(index), dir.path().join(index)).unwrap();
    assert_whole("v1-aes", &opened(dir.path()).unwrap());
}

#[test]
fn a_missing_segment_costs_what_lies_in_it() {
    for name in of_two_segments() {
        let dir = copied(name);
        fs::remove_file(dir.path().join("segments/0000000000000001")).unwrap();
        let fs = opened(dir.path()).unwrap();
        assert_listed(name, &fs);
        let lost = read(&fs, find(&fs, "docs/words.txt").ino).map(|_| ()).expect_err("its frames are gone");
        assert_eq!(lost.errno(), libc::EIO);
        assert!(read(&fs, find(&fs, "random.bin").ino).unwrap() == noise(1, 40_960));
    }
}

#[test]
fn a_lost_segments_number_is_not_given_to_a_new_one() {
    for name in of_two_segments() {
        let dir = copied(name);
        fs::remove_file(dir.path().join("segments/0000000000000002")).unwrap();
        let fs = opened(dir.path()).unwrap();
        let ino = fs.mknod(&Caller::default(), ROOT_INO, b"new", 0o644, 0).unwrap().ino;
        fs.write(ino, 0, &noise(3, 20_000), WriteHow::default()).unwrap();
        fs.vault().close().unwrap();
        drop(fs);
        let fs = opened(dir.path()).unwrap();
        assert!(read(&fs, find(&fs, "new").ino).unwrap() == noise(3, 20_000));
        assert_eq!(read(&fs, find(&fs, "random.bin").ino).map(|_| ()).expect_err("lost").errno(), libc::EIO);
    }
}

#[test]
fn a_flipped_bit_is_an_error_there_and_nowhere_else() {
    for name in of_two_segments() {
        let dir = copied(name);
        let path = dir.path().join("segments/0000000000000002");
        let mut bytes = fs::read(&path).unwrap();
        // The first frame of random.bin's: behind the header and the segment's Start frame.
        bytes[64 + 56 + 1000] ^= 1;
        fs::write(&path, bytes).unwrap();
        let fs = opened(dir.path()).unwrap();
        let random = find(&fs, "random.bin").ino;
        assert_eq!(read(&fs, random).map(|_| ()).expect_err("the frame does not open").errno(), libc::EIO);
        let mut rest = Vec::new();
        fs.read(random, 16_384, 24_576, &mut rest).unwrap();
        assert!(rest == noise(1, 40_960)[16_384..], "frames beside it are well");
        assert!(read(&fs, find(&fs, "docs/words.txt").ino).unwrap() == words());
    }
}

#[test]
fn a_segment_in_the_place_of_another_is_no_segment() {
    for name in of_two_segments() {
        let dir = copied(name);
        let at = |n: u8| dir.path().join(format!("segments/000000000000000{n}"));
        fs::copy(at(1), at(2)).unwrap();
        let fs = opened(dir.path()).unwrap();
        assert_eq!(read(&fs, find(&fs, "random.bin").ino).map(|_| ()).expect_err("forged").errno(), libc::EIO);
        assert!(read(&fs, find(&fs, "docs/words.txt").ino).unwrap() == words());
    }
}

#[test]
fn a_wrong_key_file_is_said_to_be_wrong() {
    for (name, ..) in FROZEN {
        let dir = copied(name);
        let wrong = Unlock::KeyFile(Passphrase(vec![b'x'; 64]));
        let backing = Arc::new(DirBacking::open(dir.path()).unwrap());
        let world: Arc<dyn World> = Arc::new(RealWorld::default());
        let opened = vault::open(backing, &wrong, &OpenOptions::default(), world).map(|_| ());
        assert!(matches!(opened, Err(OpenFault::WrongKey)));
    }
}
