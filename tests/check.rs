//! Method: make a healthy vault through the filesystem, on a disk in memory; plant one damage at a time, for each kind of
//! finding there is; and run random programs, some of which end in a power cut.
//! Promise: `check` finds nothing in a healthy vault, whatever was done to it through the filesystem, and names what is
//! damaged in a damaged one.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/rng.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod rng;

use rng::Rng;
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use strongroom::backing::{Backing, Cache, MemoryBacking, Open, read_file};
use strongroom::base::id::{Ino, ROOT_INO, SegmentId};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::check::{Finding, Place, Share, check};
use strongroom::format::extent::Extent;
use strongroom::format::inode::{CookieEntry, Inode, NameEntry};
use strongroom::format::key;
use strongroom::format::segment::SegmentInfo;
use strongroom::fs::{Caller, Fallocate, FileSystem, FsFault, FsOptions, RenameHow, SetAttr, WriteHow, XattrHow};
use strongroom::seal::Unlock;
use strongroom::vault::{CreateOptions, LOCK, OpenOptions, Vault, create, open};

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![7; 64]))
}

fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

fn fresh() -> MemoryBacking {
    let disk = MemoryBacking::default();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    create(&backing, &unlock(), &CreateOptions::default(), &world()).expect("an empty directory takes a vault");
    disk
}

fn opened(disk: &MemoryBacking) -> Arc<Vault> {
    let options = OpenOptions { budget_bytes: 16 << 20, workers: 2, ..OpenOptions::default() };
    open(Arc::new(disk.clone()), &unlock(), &options, world()).expect("a vault that was made opens")
}

fn checked(disk: &MemoryBacking, read_data: bool) -> Vec<Finding> {
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    check(&backing, &unlock(), &world(), read_data, &|done, total| assert!(total == 0 || done <= total))
        .expect("a vault in memory can be looked at")
}

/// The same disk once more, at rest.
fn copy(disk: &MemoryBacking) -> MemoryBacking {
    disk.crash(|_, _| true)
}

fn file(fs: &FileSystem, parent: Ino, name: &str, data: &[u8]) -> Ino {
    let attr = fs.mknod(&Caller::default(), parent, name.as_bytes(), 0o644, 0).unwrap();
    fs.write(attr.ino, 0, data, WriteHow::default()).unwrap();
    fs.forget(attr.ino, 1);
    attr.ino
}

fn dir(fs: &FileSystem, parent: Ino, name: &str) -> Ino {
    let ino = fs.mkdir(&Caller::default(), parent, name.as_bytes(), 0o755).unwrap().ino;
    fs.forget(ino, 1);
    ino
}

/// Takes the room off that segments were given in advance: copies are faster without.
fn trim(disk: &MemoryBacking) {
    for name in disk.list("segments").unwrap() {
        let file = disk.open(&format!("segments/{name}"), Open::Write, Cache::Buffered).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut bytes, 0).unwrap();
        let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
        file.set_len(used.next_multiple_of(4096) as u64).unwrap();
        file.sync_data().unwrap();
    }
}

/// A vault with something of everything, and the inodes that tests hurt.
struct Healthy {
    disk: MemoryBacking,
    docs: Ino,
    sub: Ino,
    /// `/docs/sub/b.bin`.
    b: Ino,
    /// `/link`, a symbolic one.
    link: Ino,
}

const B_BYTES: usize = 500_000;

fn healthy() -> &'static Healthy {
    static HEALTHY: OnceLock<Healthy> = OnceLock::new();
    HEALTHY.get_or_init(|| {
        let disk = fresh();
        let vault = opened(&disk);
        let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
        let mut rng = Rng(5);
        let docs = dir(&fs, ROOT_INO, "docs");
        let sub = dir(&fs, docs, "sub");
        let a = file(&fs, docs, "a.txt", &rng.text(300_000));
        fs.link(a, ROOT_INO, b"hard").unwrap();
        fs.setxattr(a, b"user.colour", b"green", XattrHow::Set).unwrap();
        let b = file(&fs, sub, "b.bin", &rng.bytes(B_BYTES));
        fs.sync_wait().unwrap();
        fs.write(b, 100_000, &rng.text(50_000), WriteHow::default()).unwrap();
        let link = fs.symlink(&Caller::default(), ROOT_INO, b"link", b"docs/a.txt").unwrap().ino;
        fs.mknod(&Caller::default(), ROOT_INO, b"pipe", libc::S_IFIFO | 0o600, 0).unwrap();
        let sparse = file(&fs, docs, "sparse", b"begin");
        fs.write(sparse, 10 << 20, &rng.bytes(200_000), WriteHow::default()).unwrap();
        fs.fallocate(sparse, (10 << 20) + 5000, 100_000, Fallocate::PunchHole).unwrap();
        fs.setattr(&Caller::default(), sparse, &SetAttr { size: Some(1 << 40), ..SetAttr::default() }).unwrap();
        file(&fs, docs, "gone", &rng.text(200_000));
        file(&fs, docs, "moved", &rng.bytes(70_000));
        fs.sync_wait().unwrap();
        fs.unlink(docs, b"gone").unwrap();
        file(&fs, ROOT_INO, "replaced", &rng.text(1000));
        fs.rename(docs, b"moved", ROOT_INO, b"replaced", RenameHow::Replace).unwrap();
        // Unlinked while in use, and never let go: the next mount's to remove.
        let used = fs.mknod(&Caller::default(), ROOT_INO, b"used", 0o644, 0).unwrap().ino;
        fs.write(used, 0, &rng.bytes(9000), WriteHow::default()).unwrap();
        fs.setxattr(used, b"user.x", b"y", XattrHow::Set).unwrap();
        fs.unlink(ROOT_INO, b"used").unwrap();
        drop(fs);
        vault.close().unwrap();
        trim(&disk);
        Healthy { disk, docs, sub, b, link }
    })
}

#[test]
fn a_healthy_vault_has_no_findings() {
    let disk = copy(&healthy().disk);
    assert_eq!(checked(&disk, false), []);
    assert_eq!(checked(&disk, true), []);
    let vault = opened(&disk);
    drop(FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap());
    vault.close().unwrap();
    assert_eq!(checked(&disk, true), [], "after a mount has removed what was unlinked while in use");
}

#[test]
fn a_vault_that_was_never_mounted_has_no_findings() {
    assert_eq!(checked(&fresh(), true), []);
}

/// Every file of a disk but the lock, whole.
fn files(disk: &MemoryBacking) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for dir in ["", "segments/", "index/"] {
        for name in disk.list(dir.trim_end_matches('/')).unwrap() {
            if ![LOCK, "segments", "index"].contains(&name.as_str()) {
                let path = format!("{dir}{name}");
                let bytes = read_file(disk, &path, 1 << 30).unwrap();
                all.push((path, bytes));
            }
        }
    }
    all
}

#[test]
fn looking_changes_no_byte_on_disk() {
    let disk = copy(&healthy().disk);
    let before = files(&disk);
    assert!(before.len() >= 5, "{:?}", before.iter().map(|(path, _)| path).collect::<Vec<_>>());
    assert_eq!(checked(&disk, true), []);
    assert!(files(&disk) == before);
    // Nor after a crash, when there is a tail to take in …
    let vault = opened(&disk);
    let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
    file(&fs, ROOT_INO, "late", &Rng(3).text(300_000));
    fs.sync_wait().unwrap();
    let cut = copy(&disk);
    trim(&cut);
    let before = files(&cut);
    assert_eq!(checked(&cut, true), []);
    assert!(files(&cut) == before);
    // … nor when the index is lost.
    for name in cut.list("index").unwrap() {
        cut.remove(&format!("index/{name}")).unwrap();
    }
    let before = files(&cut);
    assert_eq!(checked(&cut, true).iter().map(Finding::kind).collect::<Vec<_>>(), ["index-lost"]);
    assert!(files(&cut) == before);
}

#[test]
fn the_parts_of_the_data_together_find_what_reading_all_finds() {
    let Healthy { b, .. } = *healthy();
    let disk = damaged(|p| {
        let all = p.extents(b);
        let (_, extent) = all.iter().find(|(at, _)| *at >= 256 << 10).unwrap();
        let path = format!("segments/{:016x}", extent.run.segment.0);
        p.disk.flip_bit(&path, (extent.run.position_bytes + 100) * 8);
    });
    let backing: Arc<dyn Backing> = Arc::new(disk);
    let found = |share: Share| check(&backing, &unlock(), &world(), share, &|_, _| ()).unwrap();
    let all = found(Share::All);
    assert_eq!(all.len(), 1);
    let parts: Vec<Finding> = (1..=3).flat_map(|part| found(Share::Part { part, of: 3 })).collect();
    assert_eq!(parts, all);
    assert_eq!(found(Share::Percent(100.0)), all);
    assert_eq!(found(Share::Percent(1e-9)), []);
}

// ---------------------------------------------------------------------------------------------------------------------
// One damage at a time.

struct Plant {
    vault: Arc<Vault>,
    disk: MemoryBacking,
}

impl Plant {
    fn put(&self, entries: &[(Vec<u8>, Vec<u8>)]) {
        let mut op = self.vault.begin();
        entries.iter().for_each(|(k, v)| op.put(k.clone(), v.clone()));
        op.commit();
    }
    fn delete(&self, keys: &[Vec<u8>]) {
        let mut op = self.vault.begin();
        keys.iter().for_each(|k| op.delete(k.clone()));
        op.commit();
    }
    fn inode(&self, ino: Ino, change: impl FnOnce(&mut Inode)) {
        let mut inode = Inode::decode(&self.vault.get(&key::inode(ino)).unwrap().unwrap()).unwrap();
        change(&mut inode);
        self.put(&[(key::inode(ino), inode.encode())]);
    }
    fn entry(&self, dir: Ino, name: &[u8]) -> NameEntry {
        NameEntry::decode(&self.vault.get(&key::name(dir, name)).unwrap().unwrap()).unwrap()
    }
    fn put_name(&self, dir: Ino, name: &[u8], e: NameEntry) {
        let line = CookieEntry { ino: e.ino, kind: e.kind, name: name.to_vec() };
        self.put(&[(key::name(dir, name), e.encode()), (key::cookie(dir, e.cookie), line.encode())]);
    }
    fn delete_name(&self, dir: Ino, name: &[u8]) {
        let cookie = self.entry(dir, name).cookie;
        self.delete(&[key::name(dir, name), key::cookie(dir, cookie)]);
    }
    /// The extents of a file.
    fn extents(&self, ino: Ino) -> Vec<(u64, Extent)> {
        let all = self.vault.scan(&key::prefix(key::EXTENT, ino.0), &[], 1000).unwrap();
        let extent = |(k, v): &(Vec<u8>, Vec<u8>)| {
            (key::tail_u64(key::split(k).unwrap().2).unwrap(), Extent::decode(v).unwrap())
        };
        all.iter().map(extent).collect()
    }
    fn segment(&self, id: SegmentId) -> SegmentInfo {
        SegmentInfo::decode(&self.vault.get(&key::segment(id)).unwrap().unwrap()).unwrap()
    }
    fn number(&self, key: &[u8]) -> u64 {
        u64::from_le_bytes(self.vault.get(key).unwrap().unwrap().try_into().unwrap())
    }
}

fn place(ino: Ino, path: &str) -> Place {
    Place { ino, path: (!path.is_empty()).then(|| path.as_bytes().to_vec()) }
}

/// A healthy vault with a damage.
fn damaged(plant: impl FnOnce(&Plant)) -> MemoryBacking {
    let disk = copy(&healthy().disk);
    let p = Plant { vault: opened(&disk), disk };
    plant(&p);
    p.vault.close().unwrap();
    p.disk
}

/// What is found after a damage was planted, without reading data.
fn after(plant: impl FnOnce(&Plant)) -> Vec<Finding> {
    checked(&damaged(plant), false)
}

/// Kinds of findings that tests have planted.
fn kind(f: &Finding) -> String {
    format!("{f:?}").chars().take_while(|c| c.is_alphanumeric()).collect()
}

/// Every kind there is, by the source.
fn kinds() -> BTreeSet<String> {
    let source = include_str!("../src/check/finding.rs");
    let body = source.split_once("pub enum Finding {").unwrap().1.split_once("\n}").unwrap().0;
    let variants = body.lines().map(|l| l.strip_prefix("    ").unwrap_or(l));
    let variants = variants.filter(|l| l.starts_with(|c: char| c.is_ascii_uppercase()));
    variants.map(|l| l.chars().take_while(|c| c.is_alphanumeric()).collect()).collect()
}

#[test]
fn each_planted_damage_is_found_and_named() {
    let Healthy { docs, sub, b, link, .. } = *healthy();
    let b_at = || place(b, "/docs/sub/b.bin");
    let sub_at = || place(sub, "/docs/sub");
    let b_name = || b"b.bin".to_vec();
    let mut seen = BTreeSet::new();
    let mut exactly = |want: Vec<Finding>, plant: &dyn Fn(&Plant)| {
        let found = after(plant);
        assert_eq!(found, want);
        seen.extend(found.iter().map(kind));
    };

    let why = "kind of key";
    exactly(vec![Finding::StrayEntry { key: b"Zjunk".to_vec(), why }], &|p| p.put(&[(b"Zjunk".to_vec(), vec![1])]));
    exactly(vec![Finding::InodeMalformed { at: b_at(), why: "inode" }], &|p| p.put(&[(key::inode(b), vec![1])]));
    exactly(vec![Finding::InodeMalformed { at: b_at(), why: "file type" }], &|p| p.inode(b, |i| i.mode = 0o644));
    exactly(
        vec![
            Finding::NameMalformed { dir: sub_at(), name: b_name(), why: "name inode" },
            Finding::Nameless { at: place(b, "") },
        ],
        &|p| p.put(&[(key::name(sub, b"b.bin"), vec![1])]),
    );
    exactly(
        vec![
            Finding::NameOfNothing { dir: sub_at(), name: b_name(), ino: b },
            Finding::WithoutInode { ino: b, what: "data" },
        ],
        &|p| {
            let mut op = p.vault.begin();
            op.delete(key::inode(b));
            op.inodes(-1);
            op.commit();
        },
    );
    exactly(vec![Finding::NameType { dir: sub_at(), name: b_name() }], &|p| {
        let e = p.entry(sub, b"b.bin");
        p.put_name(sub, b"b.bin", NameEntry { kind: 10, ..e });
    });
    exactly(vec![Finding::NotListed { dir: sub_at(), name: b_name() }], &|p| {
        p.delete(&[key::cookie(sub, p.entry(sub, b"b.bin").cookie)]);
    });
    exactly(vec![Finding::ListedOtherwise { dir: sub_at(), name: b_name() }], &|p| {
        let e = p.entry(sub, b"b.bin");
        let line = CookieEntry { ino: docs, kind: e.kind, name: b_name() };
        p.put(&[(key::cookie(sub, e.cookie), line.encode())]);
    });
    let cookie = Plant { vault: opened(&copy(&healthy().disk)), disk: fresh() }.entry(sub, b"b.bin").cookie;
    exactly(vec![Finding::ListingMalformed { dir: sub_at(), cookie, why: "cookie inode" }], &|p| {
        p.put(&[(key::cookie(sub, cookie), vec![1])]);
    });
    exactly(vec![Finding::ListedWithoutName { dir: sub_at(), name: b"ghost".to_vec() }], &|p| {
        let line = CookieEntry { ino: b, kind: 8, name: b"ghost".to_vec() };
        p.put(&[(key::cookie(sub, p.vault.next_cookie()), line.encode())]);
    });
    exactly(vec![Finding::EntryCount { at: sub_at(), stored: 9, counted: 1 }], &|p| p.inode(sub, |i| i.size = 9));
    exactly(vec![Finding::LinkCount { at: b_at(), stored: 2, counted: 1 }], &|p| p.inode(b, |i| i.nlink = 2));
    exactly(vec![Finding::LinkCount { at: sub_at(), stored: 3, counted: 2 }], &|p| p.inode(sub, |i| i.nlink = 3));
    exactly(vec![Finding::Nameless { at: place(b, "") }], &|p| {
        p.delete_name(sub, b"b.bin");
        p.inode(sub, |i| i.size = 0);
    });
    exactly(vec![Finding::OrphanInUse { at: b_at() }], &|p| p.put(&[(key::orphan(b), Vec::new())]));
    exactly(vec![Finding::ParentPointer { at: sub_at(), stored: ROOT_INO, found: docs }], &|p| {
        p.inode(sub, |i| i.parent = ROOT_INO);
    });
    exactly(
        vec![
            Finding::ParentPointer { at: place(sub, "/again"), stored: docs, found: ROOT_INO },
            Finding::NamedTwice { at: place(sub, "/again") },
        ],
        &|p| {
            p.put_name(ROOT_INO, b"again", NameEntry { ino: sub, cookie: p.vault.next_cookie(), kind: 4 });
            p.inode(ROOT_INO, |i| (i.size, i.nlink) = (i.size + 1, i.nlink + 1));
        },
    );
    exactly(vec![Finding::Cycle { at: place(docs, "") }], &|p| {
        p.delete_name(ROOT_INO, b"docs");
        p.inode(ROOT_INO, |i| (i.size, i.nlink) = (i.size - 1, i.nlink - 1));
        p.put_name(sub, b"docs", NameEntry { ino: docs, cookie: p.vault.next_cookie(), kind: 4 });
        p.inode(sub, |i| (i.size, i.nlink) = (i.size + 1, i.nlink + 1));
        p.inode(docs, |i| i.parent = sub);
    });
    exactly(vec![Finding::WithoutInode { ino: Ino(9999), what: "extended attributes" }], &|p| {
        p.put(&[(key::xattr(Ino(9999), b"user.x"), vec![1]), (key::xattr(Ino(9999), b"user.y"), vec![1])]);
    });
    exactly(vec![Finding::WrongType { at: b_at(), what: "a link's target" }], &|p| {
        p.put(&[(key::target(b), b"x".to_vec())]);
    });
    exactly(vec![Finding::TargetMissing { at: place(link, "/link") }], &|p| p.delete(&[key::target(link)]));
    exactly(vec![Finding::TargetLength { at: place(link, "/link"), stored: 10, counted: 1 }], &|p| {
        p.put(&[(key::target(link), b"x".to_vec())]);
    });
    let (end_bytes, size_bytes) = (B_BYTES as u64, B_BYTES as u64 - 1);
    exactly(vec![Finding::ExtentBeyondEnd { at: b_at(), end_bytes, size_bytes }], &|p| {
        p.inode(b, |i| i.size -= 1);
    });
    let total = {
        let vault = opened(&copy(&healthy().disk));
        u64::from_le_bytes(vault.get(&key::total("bytes")).unwrap().unwrap().try_into().unwrap())
    };
    exactly(
        vec![
            Finding::Allocated { at: b_at(), stored: 1, counted: B_BYTES as u64 },
            Finding::TotalBytes { stored: total, counted: total - B_BYTES as u64 + 1 },
        ],
        &|p| p.put(&[(key::allocated(b), 1u64.to_le_bytes().to_vec())]),
    );
    exactly(vec![Finding::TotalBytes { stored: total + 1, counted: total }], &|p| {
        p.put(&[(key::total("bytes"), (p.number(&key::total("bytes")) + 1).to_le_bytes().to_vec())]);
    });
    let counted = opened(&copy(&healthy().disk)).usage().unwrap().inodes;
    exactly(vec![Finding::InodeCount { stored: counted + 1, counted }], &|p| {
        let mut op = p.vault.begin();
        op.inodes(1);
        op.commit();
    });
    let used = 1 << 40;
    exactly(vec![Finding::NumberInUse { what: "cookie", next: next_cookie(), used }], &|p| {
        let e = p.entry(sub, b"b.bin");
        p.delete(&[key::cookie(sub, e.cookie)]);
        p.put_name(sub, b"b.bin", NameEntry { cookie: used, ..e });
    });
    exactly(
        {
            let place = place(b, "/docs/sub/b.bin");
            vec![Finding::Allocated { at: place, stored: B_BYTES as u64, counted: 0 }]
        },
        &|p| {
            // All data gone from the index, counted as it should be in the segments.
            for (at, extent) in p.extents(b) {
                let info = p.segment(extent.run.segment);
                let live: u64 = extent.run.sealed_lens.iter().map(|&n| u64::from(n)).sum();
                let rest = SegmentInfo { live_bytes: info.live_bytes.saturating_sub(live), ..info };
                p.put(&[(key::segment(extent.run.segment), rest.encode())]);
                p.delete(&[key::extent(b, at)]);
            }
            // An overwrite left two extents of one run: what they share was taken off twice.
            correct_live(p);
        },
    );
    let (segment, info) = {
        let disk = copy(&healthy().disk);
        let p = Plant { vault: opened(&disk), disk };
        let segment = p.extents(b)[0].1.run.segment;
        (segment, p.segment(segment))
    };
    let (live, data) = (info.live_bytes, info.data_bytes);
    assert!(live < data, "something was deleted and overwritten");
    exactly(vec![Finding::SegmentLive { segment, stored: live + 1, counted: live }], &|p| {
        p.put(&[(key::segment(segment), SegmentInfo { live_bytes: live + 1, ..info }.encode())]);
    });
    exactly(vec![Finding::SegmentOverfull { segment, live_bytes: live, data_bytes: live - 1 }], &|p| {
        p.put(&[(key::segment(segment), SegmentInfo { data_bytes: live - 1, ..info }.encode())]);
    });

    // Damage that shows in more than one place.
    let mut among_others = |want: Finding, plant: &dyn Fn(&Plant)| {
        let found = after(plant);
        assert!(found.contains(&want), "{want:?} is not in {found:#?}");
        seen.insert(kind(&want));
    };
    among_others(Finding::NoRoot, &|p| p.delete(&[key::inode(ROOT_INO)]));
    among_others(Finding::NoRoot, &|p| p.inode(ROOT_INO, |i| i.mode = libc::S_IFREG | 0o644));
    for name in [&b"a/b"[..], b"..", b"", &[b'x'; 256]] {
        among_others(Finding::NameInvalid { dir: sub_at(), name: name.to_vec() }, &|p| {
            p.put_name(sub, name, NameEntry { ino: b, cookie: p.vault.next_cookie(), kind: 8 });
        });
    }
    among_others(Finding::NameOutsideDirectory { dir: b_at(), name: b"x".to_vec() }, &|p| {
        p.put_name(b, b"x", NameEntry { ino: link, cookie: p.vault.next_cookie(), kind: 10 });
    });
    among_others(Finding::ExtentMalformed { at: b_at(), offset_bytes: 0, why: "extent codec" }, &|p| {
        p.put(&[(key::extent(b, 0), vec![9; 9])]);
    });
    among_others(Finding::ExtentsOverlap { at: b_at(), offset_bytes: 4096 }, &|p| {
        let (_, first) = p.extents(b).remove(0);
        let second = Extent { skip_bytes: 4096, len_bytes: 10, ..first };
        p.put(&[(key::extent(b, 4096), second.encode())]);
    });
    for offset in [5, (128 << 10) - 10] {
        among_others(Finding::ExtentMisplaced { at: b_at(), offset_bytes: offset }, &|p| {
            let (_, first) = p.extents(b).remove(0);
            let skip_bytes = if offset == 5 { 6 } else { 0 };
            p.put(&[(key::extent(b, offset), Extent { skip_bytes, len_bytes: 10, ..first }.encode())]);
        });
    }
    among_others(Finding::NumberInUse { what: "inode", next: 1000, used: 1000 }, &|p| {
        while p.vault.next_ino().0 < 999 {}
        p.put(&[(key::inode(Ino(1000)), p.vault.get(&key::inode(b)).unwrap().unwrap())]);
    });
    among_others(Finding::SegmentUnknown { segment }, &|p| p.delete(&[key::segment(segment)]));
    let why = std::io::Error::from(std::io::ErrorKind::NotFound).to_string();
    let lost = |p: &Plant| p.disk.remove(&format!("segments/{:016x}", segment.0)).unwrap();
    among_others(Finding::SegmentMissing { segment, why }, &lost);
    among_others(Finding::DataLost { at: b_at(), segment }, &lost);
    let cut = |p: &Plant| {
        let path = format!("segments/{:016x}", segment.0);
        p.disk.open(&path, Open::Write, Cache::Buffered).unwrap().set_len(8192).unwrap();
    };
    among_others(Finding::DataLost { at: b_at(), segment }, &cut);
    let short = after(cut).into_iter().find(|f| kind(f) == "SegmentShort");
    assert!(matches!(short, Some(Finding::SegmentShort { len_bytes: 8192, .. })));
    among_others(Finding::More { count: 3 }, &|p| {
        let many: Vec<_> = (0..10_003).map(|i| (key::xattr(Ino(10_000 + i), b"user.x"), vec![1])).collect();
        p.put(&many);
    });

    among_others(Finding::IndexLost { why: "there is no index file".to_owned() }, &|p| {
        p.vault.close().unwrap();
        for name in p.disk.list("index").unwrap() {
            p.disk.remove(&format!("index/{name}")).unwrap();
        }
    });

    seen.insert("SegmentShort".to_owned());
    // The first is planted in a test of its own. The second needs an index too large for opening it to notice: which of
    // its pages are read first is the database's to decide.
    seen.extend(["Unreadable", "IndexUnreadable"].map(str::to_owned));
    assert_eq!(seen, kinds(), "every kind of finding has its mutant");
}

/// Sets all segments' live bytes to what `check` counts.
fn correct_live(p: &Plant) {
    p.vault.sync_wait().unwrap();
    p.vault.checkpoint().unwrap();
    let at_rest = copy(&p.disk);
    for finding in checked(&at_rest, false) {
        if let Finding::SegmentLive { segment, counted, .. } = finding {
            p.put(&[(key::segment(segment), SegmentInfo { live_bytes: counted, ..p.segment(segment) }.encode())]);
        }
    }
}

/// The next cookie that a vault opened twice more gives out.
fn next_cookie() -> u64 {
    opened(&copy(&healthy().disk)).next_cookie()
}

#[test]
fn a_flipped_bit_is_found_only_by_reading_and_named_to_the_frame() {
    let Healthy { b, .. } = *healthy();
    let disk = damaged(|p| {
        let all = p.extents(b);
        let (_, extent) = all.iter().find(|(at, _)| *at >= 256 << 10).unwrap();
        let path = format!("segments/{:016x}", extent.run.segment.0);
        p.disk.flip_bit(&path, (extent.run.position_bytes + 100) * 8);
    });
    assert_eq!(checked(&disk, false), []);
    let read = checked(&disk, true);
    let [Finding::Unreadable { at, from_bytes, to_bytes, why }] = &read[..] else { panic!("found {read:#?}") };
    assert_eq!(*at, place(b, "/docs/sub/b.bin"));
    assert_eq!((*from_bytes, *to_bytes), (256 << 10, (256 << 10) + (16 << 10)), "one raw frame");
    assert!(why.contains("does not open"), "{why}");
}

#[test]
fn data_that_lies_in_a_missing_segment_does_not_read() {
    let disk = damaged(|p| {
        for name in p.disk.list("segments").unwrap() {
            p.disk.remove(&format!("segments/{name}")).unwrap();
        }
    });
    let read = checked(&disk, true);
    let hurt: BTreeSet<&[u8]> = read
        .iter()
        .filter_map(|f| match f {
            Finding::Unreadable { at, .. } => at.path.as_deref(),
            _ => None,
        })
        .collect();
    assert_eq!(hurt, BTreeSet::from([&b"/hard"[..], b"/docs/sub/b.bin", b"/docs/sparse", b"/replaced"]));
}

#[test]
fn a_damaged_index_is_rebuilt_or_said_and_never_a_panic() {
    let disk = &healthy().disk;
    let [name] = &disk.list("index").unwrap()[..] else { panic!("one index file") };
    let path = format!("index/{name}");
    let pages = disk.open(&path, Open::Read, Cache::Buffered).unwrap().len().unwrap() / 4096;
    assert!(pages >= 10);
    for page in 0..pages {
        let hurt = copy(disk);
        hurt.flip_bit(&path, (page * 4096 + 1000) * 8);
        let found = checked(&hurt, false);
        assert!(found.iter().all(|f| f.kind().starts_with("index-")), "page {page}: {found:?}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Random programs.

/// A name that a program made, and what it leads to.
#[derive(Clone)]
struct Made {
    dir: Ino,
    name: Vec<u8>,
    ino: Ino,
    is_dir: bool,
}

/// What a program knows of its tree; it may be wrong after a refusal, which is part of the program.
struct Program<'a> {
    fs: &'a FileSystem,
    rng: &'a mut Rng,
    made: Vec<Made>,
    /// Look-ups not yet forgotten.
    held: Vec<Ino>,
    /// Names to make at most: few files are written to the more often.
    most: usize,
    /// Whether nobody else is at work: then what is in use may be forgotten, too. A kernel never does that.
    alone: bool,
}

impl Program<'_> {
    fn dir(&mut self) -> Ino {
        let dirs: Vec<Ino> = self.made.iter().filter(|m| m.is_dir).map(|m| m.ino).collect();
        if dirs.is_empty() || self.rng.below(3) == 0 { ROOT_INO } else { *self.rng.pick(&dirs) }
    }
    fn any(&mut self) -> Option<Made> {
        if self.made.is_empty() { None } else { Some(self.rng.pick(&self.made).clone()) }
    }
    fn file(&mut self) -> Option<Ino> {
        self.any().filter(|m| !m.is_dir).map(|m| m.ino)
    }
    fn name(&mut self) -> Vec<u8> {
        format!("n{}", self.rng.below(40)).into_bytes()
    }
    fn data(&mut self) -> Vec<u8> {
        let most = *self.rng.pick(&[100u64, 5000, 70_000, 400_000]);
        let len = 1 + self.rng.below(most) as usize;
        if self.rng.below(2) == 0 { self.rng.bytes(len) } else { self.rng.text(len) }
    }
    fn offset(&mut self) -> u64 {
        let most = *self.rng.pick(&[1u64, 4096, 150_000, 1_000_000, 1 << 33]);
        self.rng.below(most)
    }

    fn make(&mut self) -> Result<(), FsFault> {
        if self.made.len() >= self.most {
            return Ok(());
        }
        let (dir, name, caller) = (self.dir(), self.name(), Caller::default());
        let (attr, is_dir) = match self.rng.below(6) {
            0 | 1 => (self.fs.mkdir(&caller, dir, &name, 0o755)?, true),
            2 => (self.fs.symlink(&caller, dir, &name, b"some/where")?, false),
            _ => (self.fs.mknod(&caller, dir, &name, 0o644, 0)?, false),
        };
        self.held.push(attr.ino);
        self.made.push(Made { dir, name, ino: attr.ino, is_dir });
        Ok(())
    }

    fn step(&mut self) -> Result<(), FsFault> {
        let caller = Caller::default();
        match self.rng.below(20) {
            0..4 => self.make()?,
            4..8 => {
                let (Some(ino), offset, data) = (self.file(), self.offset(), self.data()) else { return Ok(()) };
                self.fs.write(ino, offset, &data, WriteHow { stamp: true, drop_set_id: false })?;
            }
            8 => {
                let (Some(ino), size) = (self.file(), self.offset()) else { return Ok(()) };
                self.fs.setattr(&caller, ino, &SetAttr { size: Some(size), ..SetAttr::default() })?;
            }
            9 => {
                let what = *self.rng.pick(&[Fallocate::PunchHole, Fallocate::ZeroRange, Fallocate::ZeroKeepSize]);
                let (Some(ino), offset, len) = (self.file(), self.offset(), 1 + self.offset()) else { return Ok(()) };
                self.fs.fallocate(ino, offset, len, what)?;
            }
            10 | 11 => {
                let Some(m) = self.any() else { return Ok(()) };
                if m.is_dir {
                    self.fs.rmdir(m.dir, &m.name)?
                } else {
                    self.fs.unlink(m.dir, &m.name)?
                }
                self.made.retain(|o| (o.dir, &o.name) != (m.dir, &m.name));
            }
            12 | 13 => {
                let Some(m) = self.any() else { return Ok(()) };
                let (dir, name) = match (self.rng.below(2), self.any()) {
                    (0, Some(other)) => (other.dir, other.name),
                    _ => (self.dir(), self.name()),
                };
                let how = *self.rng.pick(&[RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange]);
                self.fs.rename(m.dir, &m.name, dir, &name, how)?;
                let at = |made: &[Made], d, n: &[u8]| made.iter().position(|o| (o.dir, &o.name[..]) == (d, n));
                let (from, to) = (at(&self.made, m.dir, &m.name), at(&self.made, dir, &name));
                match (from, to, how) {
                    (Some(from), Some(to), _) if self.made[from].ino == self.made[to].ino => {}
                    (Some(from), Some(to), RenameHow::Exchange) => {
                        let (a, b) = (self.made[from].clone(), self.made[to].clone());
                        (self.made[from].ino, self.made[from].is_dir) = (b.ino, b.is_dir);
                        (self.made[to].ino, self.made[to].is_dir) = (a.ino, a.is_dir);
                    }
                    (Some(from), to, _) => {
                        (self.made[from].dir, self.made[from].name) = (dir, name);
                        if let Some(to) = to {
                            self.made.remove(to);
                        }
                    }
                    (None, ..) => {}
                }
            }
            14 => {
                let (Some(ino), dir, name) = (self.file(), self.dir(), self.name()) else { return Ok(()) };
                self.held.push(self.fs.link(ino, dir, &name)?.ino);
                self.made.push(Made { dir, name, ino, is_dir: false });
            }
            15 => {
                let (Some(m), name) = (self.any(), format!("user.{}", self.rng.below(4))) else { return Ok(()) };
                match self.rng.below(3) {
                    0 => self.fs.removexattr(m.ino, name.as_bytes())?,
                    _ => self.fs.setxattr(m.ino, name.as_bytes(), &name.repeat(9).into_bytes(), XattrHow::Set)?,
                }
            }
            16 | 17 => {
                for _ in 0..self.held.len() / 2 {
                    let i = self.rng.below(self.held.len() as u64) as usize;
                    if self.alone || self.made.iter().all(|m| m.ino != self.held[i]) {
                        self.fs.forget(self.held.swap_remove(i), 1);
                    }
                }
            }
            18 => self.fs.sync_wait()?,
            _ if self.rng.below(5) == 0 => self.fs.vault().checkpoint()?,
            _ => {
                let (Some(ino), offset) = (self.file(), self.offset()) else { return Ok(()) };
                self.fs.read(ino, offset, 100_000, &mut Vec::new())?;
            }
        }
        Ok(())
    }
}

/// Runs a program over a few mounts of one disk; the last may end in a power cut. Gives the disk as it is then.
fn ran(seed: u64, steps: u64) -> MemoryBacking {
    let mut disk = fresh();
    let mut rng = Rng(seed);
    let (mut made, most) = (Vec::new(), *rng.pick(&[4, 40]));
    for mount in 0..3 {
        let vault = opened(&disk);
        let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
        let mut program = Program { fs: &fs, rng: &mut rng, made, held: Vec::new(), most, alone: true };
        for step in 0..steps {
            if let Err(fault) = program.step() {
                assert_ne!(fault.errno(), libc::EIO, "seed {seed}, mount {mount}, step {step}: {fault:?}");
            }
        }
        made = program.made;
        if rng.below(2) == 0 {
            let mut keep = Rng(seed);
            disk = disk.crash(|_, _| keep.below(2) == 0);
            // What was lost is not in the program's memory any more, either: it begins anew.
            made.clear();
            drop(fs);
        } else {
            drop(fs);
            vault.close().unwrap();
        }
    }
    disk
}

#[test]
fn whatever_the_filesystem_was_asked_to_do_there_are_no_findings() {
    for seed in 1..=40 {
        let disk = ran(seed, 150);
        assert_eq!(checked(&disk, true), [], "seed {seed}");
        for name in disk.list("index").unwrap() {
            disk.remove(&format!("index/{name}")).unwrap();
        }
        let found: Vec<_> = checked(&disk, true).iter().map(Finding::kind).collect();
        assert_eq!(found, ["index-lost"], "seed {seed}, with the index rebuilt from the log");
    }
}

#[test]
fn nor_after_several_threads_at_once() {
    for seed in 1..=10 {
        let disk = fresh();
        let vault = opened(&disk);
        let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
        std::thread::scope(|threads| {
            for thread in 0..3u64 {
                let fs = &fs;
                threads.spawn(move || {
                    let mut rng = Rng(seed * 100 + thread);
                    let mut program =
                        Program { fs, rng: &mut rng, made: Vec::new(), held: Vec::new(), most: 30, alone: false };
                    for step in 0..200 {
                        if let Err(fault) = program.step() {
                            assert_ne!(
                                fault.errno(),
                                libc::EIO,
                                "seed {seed}, thread {thread}, step {step}: {fault:?}"
                            );
                        }
                    }
                    program.held.iter().for_each(|&ino| fs.forget(ino, 1));
                });
            }
        });
        drop(fs);
        vault.close().unwrap();
        assert_eq!(checked(&disk, true), [], "seed {seed}");
    }
}
