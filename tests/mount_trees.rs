//! Trees go in and come out as they were, over a remount; and the backing directory tells nothing of them.
//!
//! Method: real files, then the shapes that break filesystems: a large file, a deep tree, a wide directory, strange
//! names. Each is read back after the vault was unmounted and mounted again, so that nothing comes from a cache.
//! Promise: contents, names, types, modes, owners, times, links are those that were written; neither a name nor a piece
//! of content is found in the backing directory.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::rng::Rng;
use common::{TestVault, output, run, setting, shell, walk};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

/// Says where the two trees differ in more than contents.
fn metadata_differences(a: &Path, b: &Path) -> Vec<String> {
    let (left, right) = (walk(a).unwrap(), walk(b).unwrap());
    if left != right {
        return vec![format!("the trees hold {} and {} paths", left.len(), right.len())];
    }
    let mut found = Vec::new();
    for path in left {
        let (x, y) = (a.join(&path).symlink_metadata().unwrap(), b.join(&path).symlink_metadata().unwrap());
        let facts = |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec());
        if facts(&x) != facts(&y) {
            found.push(format!("{}: {:?} and {:?}", path.display(), facts(&x), facts(&y)));
        }
        if !x.is_dir() && (x.len(), x.nlink()) != (y.len(), y.nlink()) {
            found.push(format!("{}: size and links differ", path.display()));
        }
        if x.is_symlink() && fs::read_link(a.join(&path)).unwrap() != fs::read_link(b.join(&path)).unwrap() {
            found.push(format!("{}: leads elsewhere", path.display()));
        }
    }
    found
}

/// Whether any of the words, one per line in `words`, stands in a file below `dir` or in its name.
fn found_in(words: &Path, dir: &Path) -> bool {
    let grep = output(Command::new("grep").env("LC_ALL", "C").args(["-raFq", "-f"]).arg(words).arg(dir));
    assert!(grep.status.code().is_some_and(|c| c < 2), "grep failed: {grep:?}");
    let names = shell(dir, "find . | { LC_ALL=C grep -aFc -f \"$1\" || true; }", &[words]);
    grep.status.success() || names.trim() != "0"
}

#[test]
fn a_real_tree_comes_back_and_the_backing_directory_is_silent() {
    let v = TestVault::mounted();
    let plain = v.outside("plain");
    fs::create_dir(&plain).unwrap();
    let files = setting("STRONGROOM_TREE_FILES", 10_000, 3_000) as usize;
    let sources = common::real_tree(files);
    run(Command::new("cp").arg("-a").args(&sources).arg(&plain));
    shell(
        &plain,
        "mkdir 'the planted directory'; cd 'the planted directory'
         echo 'a sentence that stands nowhere else, planted' > the-planted-name
         ln the-planted-name the-planted-second-link
         ln -s ../the-planted-target the-planted-symlink
         truncate -s 5M sparse; echo end >> sparse
         mkfifo a-pipe; chmod 4751 the-planted-name; touch -d '1969-07-20 20:17:40.123456789' sparse; chmod 1700 .",
        &[""; 0],
    );
    // Words that must not be seen outside: those planted, and a sample of the real names and lines.
    let mut words: Vec<Vec<u8>> =
        ["the planted directory", "the-planted-name", "the-planted-target", "a sentence that stands nowhere else"]
            .map(|w| w.as_bytes().to_vec())
            .to_vec();
    for path in walk(&plain).unwrap().iter().step_by(37) {
        if let Some(name) = path.file_name().filter(|n| n.len() >= 14) {
            words.push(name.as_bytes().to_vec());
        }
        let text = if plain.join(path).symlink_metadata().unwrap().is_file() {
            fs::read(plain.join(path)).unwrap_or_default()
        } else {
            Vec::new()
        };
        words.extend(text.split(|&b| b == b'\n').find(|l| (30..200).contains(&l.len())).map(<[u8]>::to_vec));
    }
    let list = v.outside("words");
    fs::write(&list, words.join(&b'\n')).unwrap();
    assert!(words.len() > 50 && found_in(&list, &plain), "the search finds nothing even in the plain tree");

    let inside = v.path("tree");
    let same = || {
        run(Command::new("diff").args(["-r", "--no-dereference", "-x", "a-pipe"]).arg(&plain).arg(&inside));
        assert_eq!(metadata_differences(&plain, &inside), Vec::<String>::new());
    };
    run(Command::new("cp").arg("-a").arg(&plain).arg(&inside));
    same();
    v.remount();
    same();
    v.umount();
    assert!(!found_in(&list, &v.vault), "the backing directory tells a name or a line of the tree");
    v.mount();
    run(Command::new("rm").arg("-r").arg(&inside));
    assert_eq!(fs::read_dir(&v.mnt).unwrap().count(), 0, "something is left in the root");
}

#[test]
fn the_comparison_of_metadata_sees_a_difference() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    shell(dir.path(), "mkdir a; echo x > a/x; cp -a a b", &[""; 0]);
    assert!(metadata_differences(&a, &b).is_empty());
    shell(dir.path(), "touch -d 2001-01-01 b/x", &[""; 0]);
    assert_eq!(metadata_differences(&a, &b).len(), 1);
}

/// A block of the large file: it compresses, and no two are alike.
fn block(n: u64) -> Vec<u8> {
    let mut b = Vec::with_capacity(4096);
    while b.len() < 4096 {
        b.extend_from_slice(&n.to_le_bytes());
        b.extend_from_slice(b"of a large file ");
    }
    b.truncate(4096);
    b
}

#[test]
fn a_large_file_comes_back() {
    let v = TestVault::mounted();
    let mib = setting("STRONGROOM_BIG_MIB", 4200, 300);
    let path = v.path("large");
    let piece = |n: u64| -> Vec<u8> { (n * 256..(n + 1) * 256).flat_map(block).collect() };
    let file = File::create(&path).unwrap();
    for n in 0..mib {
        file.write_all_at(&piece(n), n << 20).unwrap();
    }
    // Beyond 4 GiB, and far beyond, whatever the size above.
    let far = [(4 << 30) - 2048, (4 << 30) + (1 << 20), (1 << 40) + 17].into_iter().filter(|&at| at > mib << 20);
    let far: Vec<u64> = far.collect();
    for &at in &far {
        file.write_all_at(&block(at), at).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    v.remount();
    let file = File::open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), far.last().map_or(mib << 20, |at| at + 4096));
    let mut got = vec![0; 1 << 20];
    for n in 0..mib {
        file.read_exact_at(&mut got, n << 20).unwrap();
        assert!(got == piece(n), "MiB {n} of the file is not what was written");
    }
    for &at in &far {
        file.read_exact_at(&mut got[..4096], at).unwrap();
        assert_eq!(got[..4096], block(at), "the block at {at}");
        file.read_exact_at(&mut got[..4096], at + 8192).unwrap_or_else(|_| got[..4096].fill(0));
        assert!(got[..4096].iter().all(|&b| b == 0), "a hole is zeros");
    }
    let held = file.metadata().unwrap().blocks() * 512;
    assert!(held <= (mib << 20) + (4 << 20), "a sparse file counts its holes: {held}");
}

#[test]
fn a_deep_tree_comes_back() {
    let v = TestVault::mounted();
    let mut path = v.path("deep");
    for level in 0..200 {
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), format!("level {level}")).unwrap();
        path.push(format!("d{level}"));
    }
    v.remount();
    let mut path = v.path("deep");
    for level in 0..200 {
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), format!("level {level}"));
        path.push(format!("d{level}"));
    }
    fs::remove_dir_all(v.path("deep")).unwrap();
}

#[test]
fn a_wide_directory_lists_everything_once_also_while_it_changes() {
    let v = TestVault::mounted();
    let count = setting("STRONGROOM_WIDE_COUNT", 100_000, 20_000);
    let dir = v.path("wide");
    fs::create_dir(&dir).unwrap();
    let name = |n: u64| format!("entry-{:08x}-{n}", Rng(n).next() as u32);
    for n in 0..count {
        fs::write(dir.join(name(n)), if n % 100 == 0 { format!("{n}") } else { String::new() }).unwrap();
    }
    let list = || -> Vec<OsString> { fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect() };
    let check = |want: BTreeSet<OsString>| {
        let got = list();
        assert_eq!(got.len(), want.len(), "entries listed");
        assert!(got.into_iter().collect::<BTreeSet<_>>() == want, "other names than were made");
    };
    check((0..count).map(|n| name(n).into()).collect());
    v.remount();
    check((0..count).map(|n| name(n).into()).collect());
    for n in (0..count).step_by(100) {
        assert_eq!(fs::read_to_string(dir.join(name(n))).unwrap(), format!("{n}"));
    }
    // Every third goes while the directory is being listed: what stays is listed exactly once.
    let gone: BTreeSet<OsString> = (0..count).step_by(3).map(|n| name(n).into()).collect();
    let mut seen = Vec::new();
    let mut to_go = gone.iter();
    for entry in fs::read_dir(&dir).unwrap() {
        seen.push(entry.unwrap().file_name());
        if let Some(n) = to_go.next() {
            fs::remove_file(dir.join(n)).unwrap();
        }
    }
    to_go.for_each(|n| fs::remove_file(dir.join(n)).unwrap());
    let mut stayed: Vec<_> = seen.into_iter().filter(|n| !gone.contains(n)).collect();
    let listed = stayed.len();
    stayed.sort();
    stayed.dedup();
    let want: BTreeSet<OsString> = (0..count).map(|n| name(n).into()).filter(|n| !gone.contains(n)).collect();
    assert_eq!((listed, stayed.len()), (want.len(), want.len()), "entries that stayed: listed, distinct");
    check(want.clone());
    v.remount();
    check(want);
}

#[test]
fn strange_names_come_back_byte_for_byte() {
    let v = TestVault::mounted();
    let dir = v.path("names");
    fs::create_dir(&dir).unwrap();
    let mut names: BTreeSet<Vec<u8>> = (1..=255u8).filter(|b| !b"/.".contains(b)).map(|b| vec![b]).collect();
    names.extend((1..=255u8).filter(|b| *b != b'/').map(|b| vec![b'x', b, b'y']));
    names.extend((1..=255u8).filter(|b| *b != b'/').map(|b| vec![b; 255]));
    for odd in
        ["...", " ", "  two", "-rf", "--", "~", "*", "a\nb\r\tc", "\u{e9}", "e\u{301}", "名前", "\u{202e}evil", "..x"]
    {
        names.insert(odd.as_bytes().to_vec());
    }
    names.insert(b"\xff\xfe\xc0\x80".to_vec());
    let mut rng = Rng(7);
    for _ in 0..300 {
        let len = 1 + rng.below(255) as usize;
        names.insert(rng.bytes(len).into_iter().map(|b| if matches!(b, 0 | b'/') { b'_' } else { b }).collect());
    }
    names.remove(b".".as_slice());
    names.remove(b"..".as_slice());
    for name in &names {
        let path = dir.join(OsStr::from_bytes(name));
        fs::write(&path, name).unwrap_or_else(|e| panic!("{name:?}: {e}"));
    }
    let check = || {
        let got: BTreeSet<Vec<u8>> =
            fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().as_bytes().to_vec()).collect();
        assert!(got == names, "other names are listed than were made");
        for name in &names {
            assert_eq!(&fs::read(dir.join(OsStr::from_bytes(name))).unwrap(), name);
        }
    };
    check();
    v.remount();
    check();
    let long = fs::write(dir.join("x".repeat(256)), "").unwrap_err();
    assert_eq!(long.raw_os_error(), Some(libc::ENAMETOOLONG));
    let long = fs::symlink_metadata(dir.join("x".repeat(256))).unwrap_err();
    assert_eq!(long.raw_os_error(), Some(libc::ENAMETOOLONG));
}
