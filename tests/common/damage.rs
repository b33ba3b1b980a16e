//! Healthy vaults, and a damage of each kind to plant in them.
//!
//! Promise: what is planted is what rot or a bug would leave: records through the log as any operation's, derived keys behind
//! its back, files on the disk itself. Called by: tests of `check`, and by the generator of `tests/vaults/damaged`.

#![allow(clippy::unwrap_used, reason = "a test may")]
#![allow(dead_code, reason = "shared with tests that use less of it")]

use super::rng::Rng;
use std::sync::{Arc, OnceLock};
use strongroom::backing::{Backing, Cache, MemoryBacking, Open};
use strongroom::base::id::{CommitSeq, Ino, ROOT_INO, SegmentId};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::check::{Finding, Place, check};
use strongroom::format::extent::Extent;
use strongroom::format::holders::{Holder, Holders};
use strongroom::format::inode::{CookieEntry, Inode, NameEntry};
use strongroom::format::key;
use strongroom::format::quota::{Account, Tree, Used};
use strongroom::format::segment::SegmentInfo;
use strongroom::fs::{Caller, Fallocate, FileSystem, FsOptions, RenameHow, SetAttr, WriteHow, XattrHow};
use strongroom::seal::Unlock;
use strongroom::segment::{SNAPSHOTS, snapshot_path};
use strongroom::vault::{CreateOptions, OpenOptions, Vault, VaultFault, create, open};

pub fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![7; 64]))
}

pub fn world() -> Arc<dyn World> {
    Arc::new(RealWorld::default())
}

pub fn fresh() -> MemoryBacking {
    let disk = MemoryBacking::default();
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    create(&backing, &unlock(), &CreateOptions::default(), &world()).expect("an empty directory takes a vault");
    disk
}

pub fn opened(disk: &MemoryBacking) -> Arc<Vault> {
    let options = OpenOptions { budget_bytes: 16 << 20, workers: 2, ..OpenOptions::default() };
    open(Arc::new(disk.clone()), &unlock(), &options, world()).expect("a vault that was made opens")
}

pub fn checked(disk: &MemoryBacking, read_data: bool) -> Vec<Finding> {
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    check(&backing, &unlock(), &world(), read_data, &|done, total| assert!(total == 0 || done <= total))
        .expect("a vault in memory can be looked at")
}

/// The same disk once more, at rest.
pub fn copy(disk: &MemoryBacking) -> MemoryBacking {
    disk.crash(|_, _| true)
}

pub fn file(fs: &FileSystem, parent: Ino, name: &str, data: &[u8]) -> Ino {
    let attr = fs.mknod(&Caller::default(), parent, name.as_bytes(), 0o644, 0).unwrap();
    fs.write(attr.ino, 0, data, WriteHow::default()).unwrap();
    fs.forget(attr.ino, 1);
    attr.ino
}

pub fn dir(fs: &FileSystem, parent: Ino, name: &str) -> Ino {
    let ino = fs.mkdir(&Caller::default(), parent, name.as_bytes(), 0o755).unwrap().ino;
    fs.forget(ino, 1);
    ino
}

/// Takes the room off that segments were given in advance: copies are faster without.
pub fn trim(disk: &MemoryBacking) {
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
pub struct Healthy {
    pub disk: MemoryBacking,
    pub docs: Ino,
    pub sub: Ino,
    /// `/docs/sub/b.bin`.
    pub b: Ino,
    /// `/link`, a symbolic one.
    pub link: Ino,
    /// Length of `/docs/sub/b.bin`.
    pub b_bytes: usize,
}

/// One of some megabytes.
pub fn healthy() -> &'static Healthy {
    static HEALTHY: OnceLock<Healthy> = OnceLock::new();
    HEALTHY.get_or_init(|| made(500_000, Rng::bytes))
}

/// One as small as it can be for each damage to have its place.
pub fn tiny() -> &'static Healthy {
    static TINY: OnceLock<Healthy> = OnceLock::new();
    TINY.get_or_init(|| made(140_000, Rng::text))
}

pub fn made(b_bytes: usize, data: fn(&mut Rng, usize) -> Vec<u8>) -> Healthy {
    let disk = fresh();
    let vault = opened(&disk);
    let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
    let mut rng = Rng(5);
    let docs = dir(&fs, ROOT_INO, "docs");
    let sub = dir(&fs, docs, "sub");
    let a = file(&fs, docs, "a.txt", &rng.text(300_000));
    fs.link(a, ROOT_INO, b"hard").unwrap();
    fs.setxattr(a, b"user.colour", b"green", XattrHow::Set).unwrap();
    let b = file(&fs, sub, "b.bin", &data(&mut rng, b_bytes));
    fs.sync_wait().unwrap();
    fs.write(b, 100_000, &rng.text(b_bytes / 10), WriteHow::default()).unwrap();
    let link = fs.symlink(&Caller::default(), ROOT_INO, b"link", b"docs/a.txt").unwrap().ino;
    fs.mknod(&Caller::default(), ROOT_INO, b"pipe", libc::S_IFIFO | 0o600, 0).unwrap();
    let sparse = file(&fs, docs, "sparse", b"begin");
    fs.write(sparse, 10 << 20, &data(&mut rng, 200_000), WriteHow::default()).unwrap();
    fs.fallocate(sparse, (10 << 20) + 5000, 100_000, Fallocate::PunchHole).unwrap();
    fs.setattr(&Caller::default(), sparse, &SetAttr { size: Some(1 << 40), ..SetAttr::default() }).unwrap();
    file(&fs, docs, "gone", &rng.text(200_000));
    file(&fs, docs, "moved", &data(&mut rng, 70_000));
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
    Healthy { disk, docs, sub, b, link, b_bytes }
}

pub struct Plant {
    pub vault: Arc<Vault>,
    pub disk: MemoryBacking,
}

impl Plant {
    /// Derived keys never come from records: they are set behind the log's back, as rot of the index would.
    pub fn change(&self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
        let (derived, logged): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(k, _)| key::is_derived(k));
        let mut op = self.vault.begin();
        for (k, v) in logged {
            match v {
                Some(v) => op.put(k, v),
                None => op.delete(k),
            }
        }
        op.commit();
        if !derived.is_empty() {
            self.vault.set_derived(derived).unwrap();
        }
    }
    pub fn put(&self, entries: &[(Vec<u8>, Vec<u8>)]) {
        self.change(entries.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect());
    }
    pub fn delete(&self, keys: &[Vec<u8>]) {
        self.change(keys.iter().map(|k| (k.clone(), None)).collect());
    }
    pub fn inode(&self, ino: Ino, change: impl FnOnce(&mut Inode)) {
        let mut inode = Inode::decode(&self.vault.get(&key::inode(ino)).unwrap().unwrap()).unwrap();
        change(&mut inode);
        self.put(&[(key::inode(ino), inode.encode())]);
    }
    pub fn entry(&self, dir: Ino, name: &[u8]) -> NameEntry {
        NameEntry::decode(&self.vault.get(&key::name(dir, name)).unwrap().unwrap()).unwrap()
    }
    pub fn put_name(&self, dir: Ino, name: &[u8], e: NameEntry) {
        let line = CookieEntry { ino: e.ino, kind: e.kind, name: name.to_vec() };
        self.put(&[(key::name(dir, name), e.encode()), (key::cookie(dir, e.cookie), line.encode())]);
    }
    pub fn delete_name(&self, dir: Ino, name: &[u8]) {
        let cookie = self.entry(dir, name).cookie;
        self.delete(&[key::name(dir, name), key::cookie(dir, cookie)]);
    }
    /// The extents of a file.
    pub fn extents(&self, ino: Ino) -> Vec<(u64, Extent)> {
        let all = self.vault.scan(&key::prefix(key::EXTENT, ino.0), &[], 1000).unwrap();
        let extent = |(k, v): &(Vec<u8>, Vec<u8>)| {
            (key::tail_u64(key::split(k).unwrap().2).unwrap(), Extent::decode(v).unwrap())
        };
        all.iter().map(extent).collect()
    }
    pub fn segment(&self, id: SegmentId) -> SegmentInfo {
        SegmentInfo::decode(&self.vault.get(&key::segment(id)).unwrap().unwrap()).unwrap()
    }
    pub fn number(&self, key: &[u8]) -> u64 {
        u64::from_le_bytes(self.vault.get(key).unwrap().unwrap().try_into().unwrap())
    }
}

pub fn place(ino: Ino, path: &str) -> Place {
    Place { ino, path: (!path.is_empty()).then(|| path.as_bytes().to_vec()) }
}

/// A healthy vault with a damage.
pub fn damaged(plant: impl FnOnce(&Plant)) -> MemoryBacking {
    let disk = copy(&healthy().disk);
    let p = Plant { vault: opened(&disk), disk };
    plant(&p);
    match p.vault.close() {
        // Some of them remove segments.
        Ok(()) | Err(VaultFault::SegmentsLost(_)) => {}
        Err(fault) => panic!("{fault}"),
    }
    p.disk
}

/// What is found after a damage was planted, without reading data.
pub fn after(plant: impl FnOnce(&Plant)) -> Vec<Finding> {
    checked(&damaged(plant), false)
}

/// A damage, and what it is found as: exactly that, or that among other things.
pub struct Damage {
    pub want: Vec<Finding>,
    pub exactly: bool,
    pub plant: Box<dyn Fn(&Plant)>,
}

/// One of each kind at least, but for those that a test of their own plants.
pub fn damages(healthy: &'static Healthy) -> Vec<Damage> {
    let Healthy { docs, sub, b, link, b_bytes, .. } = *healthy;
    let b_at = || place(b, "/docs/sub/b.bin");
    let sub_at = || place(sub, "/docs/sub");
    let b_name = || b"b.bin".to_vec();
    let mut all: Vec<Damage> = Vec::new();
    fn add(all: &mut Vec<Damage>, want: Vec<Finding>, exactly: bool, plant: impl Fn(&Plant) + 'static) {
        all.push(Damage { want, exactly, plant: Box::new(plant) });
    }
    macro_rules! exactly {
        ($want:expr, $plant:expr $(,)?) => {
            add(&mut all, $want, true, $plant)
        };
    }
    macro_rules! among_others {
        ($want:expr, $plant:expr $(,)?) => {
            add(&mut all, vec![$want], false, $plant)
        };
    }

    exactly!(vec![Finding::TreeNumber { at: b_at(), stored: 9, expected: 0 }], move |p: &Plant| p
        .inode(b, |i| i.tree = 9));
    let (account, stored, counted) = (Account::Tree(1), Used { bytes: 5, inodes: 1 }, Used::default());
    exactly!(vec![Finding::QuotaCount { account, stored, counted }], move |p: &Plant| {
        p.put(&[(account.limits_key(), Tree::default().encode()), (account.used_key(), stored.encode())]);
    });
    let account = Account::User(0);
    exactly!(vec![Finding::StrayEntry { key: account.used_key(), why: "quota bytes used" }], move |p: &Plant| p
        .put(&[(account.used_key(), vec![1])]),);
    let tree = Tree { root: b, ..Tree::default() };
    let account = Account::Tree(1);
    exactly!(
        vec![Finding::StrayEntry { key: account.limits_key(), why: "quota tree without its directory" }],
        move |p: &Plant| p.put(&[(account.limits_key(), tree.encode())]),
    );
    let ring = |n: u32| (Account::Tree(n).limits_key(), Tree { parent: 3 - n, ..Tree::default() }.encode());
    let why = "quota tree in trees that are not there";
    let ends = |n: u32| Finding::StrayEntry { key: Account::Tree(n).limits_key(), why };
    exactly!(vec![ends(1), ends(2)], move |p: &Plant| p.put(&[ring(1), ring(2)]));

    let why = "kind of key";
    exactly!(vec![Finding::StrayEntry { key: b"Zjunk".to_vec(), why }], move |p: &Plant| p
        .put(&[(b"Zjunk".to_vec(), vec![1])]));
    exactly!(vec![Finding::InodeMalformed { at: b_at(), why: "inode" }], move |p: &Plant| p
        .put(&[(key::inode(b), vec![1])]));
    exactly!(vec![Finding::InodeMalformed { at: b_at(), why: "file type" }], move |p: &Plant| p
        .inode(b, |i| i.mode = 0o644));
    exactly!(
        vec![
            Finding::NameMalformed { dir: sub_at(), name: b_name(), why: "name inode" },
            Finding::Nameless { at: place(b, "") },
        ],
        move |p: &Plant| p.put(&[(key::name(sub, b"b.bin"), vec![1])]),
    );
    exactly!(
        vec![
            Finding::NameOfNothing { dir: sub_at(), name: b_name(), ino: b },
            Finding::WithoutInode { ino: b, what: "data" },
        ],
        move |p: &Plant| {
            let mut op = p.vault.begin();
            op.delete(key::inode(b));
            op.inodes(-1);
            op.commit();
        },
    );
    exactly!(vec![Finding::NameType { dir: sub_at(), name: b_name() }], move |p: &Plant| {
        let e = p.entry(sub, b"b.bin");
        p.put_name(sub, b"b.bin", NameEntry { kind: 10, ..e });
    });
    exactly!(vec![Finding::NotListed { dir: sub_at(), name: b_name() }], move |p: &Plant| {
        p.delete(&[key::cookie(sub, p.entry(sub, b"b.bin").cookie)]);
    });
    exactly!(vec![Finding::ListedOtherwise { dir: sub_at(), name: b_name() }], move |p: &Plant| {
        let e = p.entry(sub, b"b.bin");
        let line = CookieEntry { ino: docs, kind: e.kind, name: b_name() };
        p.put(&[(key::cookie(sub, e.cookie), line.encode())]);
    });
    let cookie = Plant { vault: opened(&copy(&healthy.disk)), disk: fresh() }.entry(sub, b"b.bin").cookie;
    exactly!(vec![Finding::ListingMalformed { dir: sub_at(), cookie, why: "cookie inode" }], move |p: &Plant| {
        p.put(&[(key::cookie(sub, cookie), vec![1])]);
    });
    exactly!(vec![Finding::ListedWithoutName { dir: sub_at(), name: b"ghost".to_vec() }], move |p: &Plant| {
        let line = CookieEntry { ino: b, kind: 8, name: b"ghost".to_vec() };
        p.put(&[(key::cookie(sub, p.vault.next_cookie()), line.encode())]);
    });
    exactly!(vec![Finding::EntryCount { at: sub_at(), stored: 9, counted: 1 }], move |p: &Plant| p
        .inode(sub, |i| i.size = 9));
    exactly!(vec![Finding::LinkCount { at: b_at(), stored: 2, counted: 1 }], move |p: &Plant| p
        .inode(b, |i| i.nlink = 2));
    exactly!(vec![Finding::LinkCount { at: sub_at(), stored: 3, counted: 2 }], move |p: &Plant| p
        .inode(sub, |i| i.nlink = 3));
    exactly!(vec![Finding::Nameless { at: place(b, "") }], move |p: &Plant| {
        p.delete_name(sub, b"b.bin");
        p.inode(sub, |i| i.size = 0);
    });
    exactly!(vec![Finding::OrphanInUse { at: b_at() }], move |p: &Plant| p.put(&[(key::orphan(b), Vec::new())]));
    exactly!(vec![Finding::ParentPointer { at: sub_at(), stored: ROOT_INO, found: docs }], move |p: &Plant| {
        p.inode(sub, |i| i.parent = ROOT_INO);
    });
    exactly!(
        vec![
            Finding::ParentPointer { at: place(sub, "/again"), stored: docs, found: ROOT_INO },
            Finding::NamedTwice { at: place(sub, "/again") },
        ],
        move |p: &Plant| {
            p.put_name(ROOT_INO, b"again", NameEntry { ino: sub, cookie: p.vault.next_cookie(), kind: 4 });
            p.inode(ROOT_INO, |i| (i.size, i.nlink) = (i.size + 1, i.nlink + 1));
        },
    );
    exactly!(vec![Finding::Cycle { at: place(docs, "") }], move |p: &Plant| {
        p.delete_name(ROOT_INO, b"docs");
        p.inode(ROOT_INO, |i| (i.size, i.nlink) = (i.size - 1, i.nlink - 1));
        p.put_name(sub, b"docs", NameEntry { ino: docs, cookie: p.vault.next_cookie(), kind: 4 });
        p.inode(sub, |i| (i.size, i.nlink) = (i.size + 1, i.nlink + 1));
        p.inode(docs, |i| i.parent = sub);
    });
    exactly!(vec![Finding::WithoutInode { ino: Ino(9999), what: "extended attributes" }], move |p: &Plant| {
        p.put(&[(key::xattr(Ino(9999), b"user.x"), vec![1]), (key::xattr(Ino(9999), b"user.y"), vec![1])]);
    });
    exactly!(vec![Finding::WrongType { at: b_at(), what: "a link's target" }], move |p: &Plant| {
        p.put(&[(key::target(b), b"x".to_vec())]);
    });
    exactly!(vec![Finding::TargetMissing { at: place(link, "/link") }], move |p: &Plant| p
        .delete(&[key::target(link)]));
    exactly!(vec![Finding::TargetLength { at: place(link, "/link"), stored: 10, counted: 1 }], move |p: &Plant| {
        p.put(&[(key::target(link), b"x".to_vec())]);
    });
    let (end_bytes, size_bytes) = (b_bytes as u64, b_bytes as u64 - 1);
    exactly!(vec![Finding::ExtentBeyondEnd { at: b_at(), end_bytes, size_bytes }], move |p: &Plant| {
        p.inode(b, |i| i.size -= 1);
    });
    let total = {
        let vault = opened(&copy(&healthy.disk));
        u64::from_le_bytes(vault.get(&key::total("bytes")).unwrap().unwrap().try_into().unwrap())
    };
    exactly!(
        vec![
            Finding::Allocated { at: b_at(), stored: 1, counted: b_bytes as u64 },
            Finding::TotalBytes { stored: total, counted: total - b_bytes as u64 + 1 },
        ],
        move |p: &Plant| p.put(&[(key::allocated(b), 1u64.to_le_bytes().to_vec())]),
    );
    exactly!(vec![Finding::TotalBytes { stored: total + 1, counted: total }], move |p: &Plant| {
        p.put(&[(key::total("bytes"), (p.number(&key::total("bytes")) + 1).to_le_bytes().to_vec())]);
    });
    let counted = opened(&copy(&healthy.disk)).usage().inodes;
    exactly!(vec![Finding::InodeCount { stored: counted + 1, counted }], move |p: &Plant| {
        let mut op = p.vault.begin();
        op.inodes(1);
        op.commit();
    });
    let used = 1 << 40;
    exactly!(vec![Finding::NumberInUse { what: "cookie", next: next_cookie(healthy), used }], move |p: &Plant| {
        let e = p.entry(sub, b"b.bin");
        p.delete(&[key::cookie(sub, e.cookie)]);
        p.put_name(sub, b"b.bin", NameEntry { cookie: used, ..e });
    });
    exactly!(
        {
            let place = place(b, "/docs/sub/b.bin");
            vec![Finding::Allocated { at: place, stored: b_bytes as u64, counted: 0 }]
        },
        move |p: &Plant| {
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
    exactly!(vec![Finding::SharedCount { stored: 1, counted: 0 }], move |p: &Plant| {
        p.put(&[(key::total("shared"), 1u64.to_le_bytes().to_vec())]);
    });
    let shared = {
        let p = Plant { vault: opened(&copy(&healthy.disk)), disk: fresh() };
        let run = p.extents(b)[0].1.run.clone();
        (run.segment, run.position_bytes)
    };
    exactly!(
        vec![Finding::HoldersWrong { at: place(link, "/link"), segment: shared.0, position_bytes: shared.1 }],
        move |p: &Plant| {
            // A holder that holds nothing, beside the one that there is.
            let all = p.extents(b);
            let origin = all[0].1.origin(b, all[0].0).unwrap();
            let (mut holders, mut frames) = (Holders { origin, all: Vec::new() }, 0);
            for (at, e) in all.iter().filter(|(_, e)| e.run == all[0].1.run) {
                frames |= e.frames_touched();
                holders.set(Holder::of(b, *at, e), frames);
            }
            holders.set(Holder { ino: link, place: 131_072 }, 1);
            let count = (key::total("shared"), 1u64.to_le_bytes().to_vec());
            p.put(&[(key::holders(shared.0, shared.1), holders.encode()), count]);
        },
    );
    let (segment, info) = {
        let disk = copy(&healthy.disk);
        let p = Plant { vault: opened(&disk), disk };
        let segment = p.extents(b)[0].1.run.segment;
        (segment, p.segment(segment))
    };
    let (live, data) = (info.live_bytes, info.data_bytes);
    assert!(live < data, "something was deleted and overwritten");
    exactly!(vec![Finding::SegmentLive { segment, stored: live + 1, counted: live }], move |p: &Plant| {
        p.put(&[(key::segment(segment), SegmentInfo { live_bytes: live + 1, ..info }.encode())]);
    });
    exactly!(vec![Finding::SegmentOverfull { segment, live_bytes: live, data_bytes: live - 1 }], move |p: &Plant| {
        p.put(&[(key::segment(segment), SegmentInfo { data_bytes: live - 1, ..info }.encode())]);
    });

    // Damage that shows in more than one place.
    among_others!(Finding::NoRoot, move |p: &Plant| p.delete(&[key::inode(ROOT_INO)]));
    among_others!(Finding::NoRoot, move |p: &Plant| p.inode(ROOT_INO, |i| i.mode = libc::S_IFREG | 0o644));
    for name in [&b"a/b"[..], b"..", b"", &[b'x'; 256]] {
        among_others!(Finding::NameInvalid { dir: sub_at(), name: name.to_vec() }, move |p: &Plant| {
            p.put_name(sub, name, NameEntry { ino: b, cookie: p.vault.next_cookie(), kind: 8 });
        });
    }
    among_others!(Finding::NameOutsideDirectory { dir: b_at(), name: b"x".to_vec() }, move |p: &Plant| {
        p.put_name(b, b"x", NameEntry { ino: link, cookie: p.vault.next_cookie(), kind: 10 });
    });
    among_others!(Finding::ExtentMalformed { at: b_at(), offset_bytes: 0, why: "extent codec" }, move |p: &Plant| {
        p.put(&[(key::extent(b, 0), vec![9; 9])]);
    });
    among_others!(Finding::ExtentsOverlap { at: b_at(), offset_bytes: 4096 }, move |p: &Plant| {
        let (_, first) = p.extents(b).remove(0);
        let second = Extent { skip_bytes: 4096, len_bytes: 10, ..first };
        p.put(&[(key::extent(b, 4096), second.encode())]);
    });
    for offset in [5, (128 << 10) - 10] {
        among_others!(Finding::ExtentMisplaced { at: b_at(), offset_bytes: offset }, move |p: &Plant| {
            let (_, first) = p.extents(b).remove(0);
            let skip_bytes = if offset == 5 { 6 } else { 0 };
            p.put(&[(key::extent(b, offset), Extent { skip_bytes, len_bytes: 10, ..first }.encode())]);
        });
    }
    among_others!(Finding::NumberInUse { what: "inode", next: 1000, used: 1000 }, move |p: &Plant| {
        while p.vault.next_ino().0 < 999 {}
        p.put(&[(key::inode(Ino(1000)), p.vault.get(&key::inode(b)).unwrap().unwrap())]);
    });
    among_others!(Finding::SegmentUnknown { segment }, move |p: &Plant| p.delete(&[key::segment(segment)]));
    let why = std::io::Error::from(std::io::ErrorKind::NotFound).to_string();
    let lost = move |p: &Plant| p.disk.remove(&format!("segments/{:016x}", segment.0)).unwrap();
    among_others!(Finding::SegmentMissing { segment, why }, lost);
    among_others!(Finding::DataLost { at: b_at(), segment }, lost);
    let cut = move |p: &Plant| {
        let path = format!("segments/{:016x}", segment.0);
        p.disk.open(&path, Open::Write, Cache::Buffered).unwrap().set_len(8192).unwrap();
    };
    among_others!(Finding::DataLost { at: b_at(), segment }, cut);
    among_others!(Finding::More { count: 3 }, move |p: &Plant| {
        let many: Vec<_> = (0..10_003).map(|i| (key::xattr(Ino(10_000 + i), b"user.x"), vec![1])).collect();
        p.put(&many);
    });

    among_others!(Finding::IndexLost { why: "there is no index file".to_owned() }, move |p: &Plant| {
        p.vault.close().unwrap();
        for name in p.disk.list("index").unwrap() {
            p.disk.remove(&format!("index/{name}")).unwrap();
        }
    });

    let (commit, why) = (CommitSeq(1), "the end of the snapshot at byte 0 does not hold".to_owned());
    exactly!(vec![Finding::SnapshotSpoiled { commit, why }], |p: &Plant| {
        let file = p.disk.open(&snapshot_path(CommitSeq(1)), Open::Create, Cache::Buffered).unwrap();
        file.write_all_at(&[0x5a; 4096], 0).unwrap();
        file.sync_data().unwrap();
        p.disk.sync_dir(SNAPSHOTS).unwrap();
    });

    for file in ["root.a", "root.b", "vault.toml", "vault.toml.copy"] {
        exactly!(vec![Finding::CopySpoiled { file }], move |p: &Plant| {
            p.vault.close().unwrap();
            p.disk.flip_bit(file, 8 * 50 + 1);
        });
    }
    all
}

/// Sets all segments' live bytes to what `check` counts.
pub fn correct_live(p: &Plant) {
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
pub fn next_cookie(healthy: &Healthy) -> u64 {
    opened(&copy(&healthy.disk)).next_cookie()
}
