//! Each knob of the faulty disk does what it says, and the disk is no crueller than a real one may be.

use super::super::read_file;
use super::*;

fn file(disk: &MemoryBacking, path: &str) -> Arc<dyn BackingFile> {
    let file = disk.open(path, Open::Create, Cache::Direct).unwrap();
    disk.sync_dir(parent(path)).unwrap();
    file
}

fn bytes(disk: &MemoryBacking, path: &str) -> Vec<u8> {
    read_file(disk, path, 1 << 30).unwrap()
}

fn lost(_: &Unsynced<'_>) -> Fate {
    Fate::Lost
}

fn kept(_: &Unsynced<'_>) -> Fate {
    Fate::Kept
}

fn errno(result: io::Result<()>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

#[test]
fn a_power_cut_takes_what_was_not_synced_and_only_that() {
    let b = MemoryBacking::default();
    let f = file(&b, "f");
    f.write_all_at(b"old", 0).unwrap();
    f.sync_data().unwrap();
    f.write_all_at(b"new", 0).unwrap();
    assert_eq!(bytes(&b.crash(|_, _| false), "f"), b"old");
    assert_eq!(bytes(&b.crash(|_, _| true), "f"), b"new");
    assert!(b.open("g", Open::Create, Cache::Direct).is_ok());
    assert!(b.crash(|_, _| true).open("g", Open::Read, Cache::Direct).is_err(), "its name was never synced");
    assert_eq!(bytes(&b.cut(&mut kept), "g"), b"", "a name may be kept without the bytes");
}

#[test]
fn the_lying_disk_loses_what_it_said_was_safe() {
    let b = MemoryBacking::default();
    let f = file(&b, "f");
    b.lie_about_sync();
    f.write_all_at(b"x", 0).unwrap();
    f.sync_data().unwrap();
    assert_eq!(bytes(&b.crash(|_, _| false), "f"), b"");
}

#[test]
fn a_lie_about_some_paths_leaves_the_others_true() {
    let b = MemoryBacking::default();
    b.make_dir("s").unwrap();
    b.sync_dir("").unwrap();
    let (f, g) = (file(&b, "s/f"), file(&b, "g"));
    b.plant(Fault::of(&[Kind::SyncData], Effect::Lie).on("s/"));
    for f in [&f, &g] {
        f.write_all_at(b"x", 0).unwrap();
        f.sync_data().unwrap();
    }
    let after = b.cut(&mut lost);
    assert_eq!((bytes(&after, "s/f"), bytes(&after, "g")), (vec![], vec![b'x']));
    b.lift_all();
    b.plant(Fault::of(&[Kind::SyncDir], Effect::Lie).on("s"));
    f.sync_data().unwrap();
    let _ = (file(&b, "s/new"), file(&b, "new"));
    let after = b.cut(&mut lost);
    assert_eq!((bytes(&after, "s/f"), after.list("s").unwrap()), (vec![b'x'], vec!["f".to_owned()]));
    assert_eq!(after.list("").unwrap(), ["g", "new", "s"]);
}

#[test]
fn unsynced_writes_survive_in_any_subset() {
    let b = MemoryBacking::default();
    let f = file(&b, "f");
    f.write_all_at(&[0; 4096], 0).unwrap();
    f.sync_data().unwrap();
    for i in 0..3 {
        f.write_all_at(&[i as u8 + 1; 512], i * 512).unwrap();
    }
    f.write_all_at(&[9; 512], 0).unwrap();
    let mut seen = BTreeSet::new();
    for subset in 0..16u32 {
        let mut i = 0;
        let image = b.cut(&mut |u| {
            assert!(u.is_write && !u.of_names && u.path == "f");
            i += 1;
            if subset & 1 << (i - 1) != 0 { Fate::Kept } else { Fate::Lost }
        });
        let got = bytes(&image, "f");
        let first = [(subset & 8 != 0, 9), (subset & 1 != 0, 1), (true, 0)];
        assert_eq!(got[0], first.iter().find(|(there, _)| *there).unwrap().1, "the later of two writes wins");
        assert_eq!((got[512] == 2, got[1024] == 3), (subset & 2 != 0, subset & 4 != 0));
        seen.insert(got);
    }
    assert_eq!(seen.len(), 12);
}

#[test]
fn a_torn_write_is_whole_in_each_sector() {
    let b = MemoryBacking::default();
    let f = file(&b, "f");
    f.write_all_at(&[1; 16384], 0).unwrap();
    f.sync_data().unwrap();
    // Both begin and end in the midst of a sector.
    f.write_all_at(&[2; 8000], 100).unwrap();
    f.write_all_at(&[3; 8000], 4200).unwrap();
    let sector = |n: usize, level: u8| {
        let mut bytes = [1; 512];
        for (i, byte) in bytes.iter_mut().enumerate() {
            let at = n * 512 + i;
            if level >= 1 && (100..8100).contains(&at) {
                *byte = 2;
            }
            if level >= 2 && (4200..12200).contains(&at) {
                *byte = 3;
            }
        }
        bytes
    };
    let mut torn = 0;
    for coins in 0..200 {
        let image = b.cut(&mut |u| Fate::Torn { unit_bytes: 512, coins: mix(coins) ^ u.call as u64 });
        let got = bytes(&image, "f");
        for (n, have) in got.chunks(512).enumerate() {
            assert!((0..3).any(|level| have == sector(n, level)), "sector {n} is as some write left it");
        }
        torn += u32::from((1..15).any(|n| got[n * 512 + 300] == 1) && (1..15).any(|n| got[n * 512 + 300] == 2));
        let blocks = b.cut(&mut |_| Fate::Torn { unit_bytes: 4096, coins });
        let got = bytes(&blocks, "f");
        let mid = &got[4608..8192];
        assert!(mid.iter().all(|b| *b == mid[0]), "tearing by blocks leaves blocks whole");
    }
    assert!(torn > 100, "writes are torn: {torn}");
}

#[test]
fn growth_may_be_lost_without_the_bytes_and_the_bytes_without_growth() {
    let b = MemoryBacking::default();
    let f = file(&b, "f");
    f.write_all_at(&[1; 512], 0).unwrap();
    f.sync_data().unwrap();
    f.write_all_at(&[2; 512], 512).unwrap();
    let images: BTreeSet<Vec<u8>> =
        (0..64).map(|coins| bytes(&b.cut(&mut |_| Fate::Torn { unit_bytes: 512, coins }), "f")).collect();
    let short = vec![1; 512];
    let (zeros, all) = ([&short[..], &[0; 512]].concat(), [&short[..], &[2; 512]].concat());
    assert_eq!(images, BTreeSet::from([short, zeros, all]));
    // And holes and lengths, of their own.
    f.sync_data().unwrap();
    f.set_len(100).unwrap();
    assert_eq!((bytes(&b.cut(&mut lost), "f").len(), bytes(&b.cut(&mut kept), "f").len()), (1024, 100));
    f.write_all_at(&[3; 8192], 0).unwrap();
    f.sync_data().unwrap();
    f.punch(4096, 4096).unwrap();
    assert_eq!((bytes(&b.cut(&mut lost), "f")[5000], bytes(&b.cut(&mut kept), "f")[5000]), (3, 0));
    f.preallocate(1 << 20).unwrap();
    assert_eq!((bytes(&b.cut(&mut lost), "f").len(), bytes(&b.cut(&mut kept), "f").len()), (8192, 1 << 20));
}

#[test]
fn a_rename_is_one_step_and_lost_until_its_directory_is_synced() {
    let b = MemoryBacking::default();
    let (old, new) = (file(&b, "a"), b.open("a.new", Open::Create, Cache::Direct).unwrap());
    old.write_all_at(b"old", 0).unwrap();
    old.sync_data().unwrap();
    new.write_all_at(b"new", 0).unwrap();
    new.sync_data().unwrap();
    b.rename("a.new", "a").unwrap();
    for (of_creation, of_rename) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut fates = [of_creation, of_rename].into_iter();
        let image = b.cut(&mut |_| if fates.next().unwrap() { Fate::Kept } else { Fate::Lost });
        assert_eq!(bytes(&image, "a"), if of_rename { b"new" } else { b"old" });
        assert_eq!(image.list("").unwrap().len(), if of_creation && !of_rename { 2 } else { 1 });
    }
    b.sync_dir("").unwrap();
    assert_eq!(bytes(&b.cut(&mut lost), "a"), b"new");
    b.remove("a").unwrap();
    assert_eq!(bytes(&b.cut(&mut lost), "a"), b"new", "a removal is lost as any change of names");
    b.sync_dir("").unwrap();
    assert!(b.cut(&mut lost).list("").unwrap().is_empty());
}

#[test]
fn a_directory_that_is_lost_takes_its_files_along() {
    let b = MemoryBacking::default();
    b.make_dir("d").unwrap();
    file(&b, "d/f").sync_data().unwrap();
    assert!(b.cut(&mut lost).list("").unwrap().is_empty());
    b.sync_dir("").unwrap();
    assert_eq!(b.cut(&mut lost).list("d").unwrap(), ["f"]);
    assert!(b.open("e/f", Open::Create, Cache::Direct).is_err() && b.make_dir("d").is_err());
}

#[test]
fn a_sync_that_failed_is_made_good_by_no_later_one() {
    let b = MemoryBacking::default();
    let f = file(&b, "f");
    f.write_all_at(&[1; 64 * 512], 0).unwrap();
    f.sync_data().unwrap();
    for i in 0..64 {
        f.write_all_at(&[2; 512], i * 512).unwrap();
    }
    b.plant(Fault::of(&[Kind::SyncData], Effect::Error(libc::EIO)).times(1));
    assert_eq!(errno(f.sync_data()), Some(libc::EIO));
    f.write_all_at(&[3; 512], 0).unwrap();
    f.sync_data().unwrap();
    let cached = bytes(&b, "f");
    assert!(cached[0] == 3 && cached[512..].iter().all(|b| *b == 2), "who reads through the cache sees all of it");
    let after = bytes(&b.cut(&mut lost), "f");
    let reached = after[512..].chunks(512).filter(|sector| sector[0] == 2).count();
    assert!(after[0] == 3 && (10..53).contains(&reached), "some of it reached the disk: {reached}");
    let mut device = vec![0; 64 * 512];
    f.read_device(&mut device, 0).unwrap();
    assert_eq!(device, after, "who reads past the cache sees what is there");
}

#[test]
fn calls_fail_by_kind_path_and_number() {
    let b = MemoryBacking::default();
    b.make_dir("s").unwrap();
    let (f, g) = (file(&b, "s/f"), file(&b, "g"));
    let number = b.plant(Fault::of(&[Kind::Write], Effect::Error(libc::EROFS)).on("s/").after(1).times(2));
    assert_eq!(errno(f.write_all_at(b"x", 0)), None);
    for _ in 0..2 {
        assert_eq!((errno(f.write_all_at(b"x", 0)), errno(g.write_all_at(b"x", 0))), (Some(libc::EROFS), None));
    }
    assert_eq!((errno(f.write_all_at(b"x", 0)), b.struck()), (None, 2));
    b.lift(number);
    let number = b.plant(Fault::of(&[], Effect::Error(libc::EIO)));
    let all = [
        f.read_at(&mut [0], 0).map(|_| ()),
        f.set_len(1),
        f.preallocate(1),
        f.punch(0, 4096),
        f.sync_data(),
        b.make_dir("t"),
        b.list("").map(|_| ()),
        b.rename("g", "h"),
        b.remove("g"),
        b.sync_dir(""),
        b.space().map(|_| ()),
        b.open("g", Open::Read, Cache::Direct).map(|_| ()),
        b.open("n", Open::Create, Cache::Direct).map(|_| ()),
        b.lock("lock").map(|_| ()),
    ];
    assert!(all.into_iter().all(|result| errno(result) == Some(libc::EIO)));
    b.lift(number);
    assert_eq!(b.list("").unwrap(), ["g", "s"], "what failed did nothing");
    f.sync_data().unwrap();
}

#[test]
fn a_short_write_stores_its_beginning_and_fails() {
    let b = MemoryBacking::default();
    let f = file(&b, "f");
    b.plant(Fault::of(&[Kind::Write], Effect::Short { bytes: 3, errno: libc::ENOSPC }).times(1));
    assert_eq!(errno(f.write_all_at(b"abcdef", 0)), Some(libc::ENOSPC));
    assert_eq!(bytes(&b, "f"), b"abc");
}

#[test]
fn a_write_may_go_astray() {
    let b = MemoryBacking::default();
    let (f, _g) = (file(&b, "f"), file(&b, "g"));
    b.plant(Fault::of(&[Kind::Write], Effect::Astray { by_bytes: 4096 }).times(1));
    f.write_all_at(b"x", 0).unwrap();
    assert_eq!((bytes(&b, "f").len(), bytes(&b, "f")[4096]), (4097, b'x'));
    b.plant(Fault::of(&[Kind::Write], Effect::AstrayFile).times(1));
    f.write_all_at(b"y", 0).unwrap();
    assert_eq!((bytes(&b, "f")[0], bytes(&b, "g")), (0, vec![b'y']));
}

#[test]
fn a_spoiled_write_differs_and_a_flipped_bit_too() {
    let b = MemoryBacking::default();
    let f = file(&b, "f");
    b.spoil_next_writes(1);
    f.write_all_at(&[0; 200], 0).unwrap();
    assert_eq!(bytes(&b, "f").iter().filter(|b| **b != 0).count(), 1);
    f.write_all_at(&[0; 200], 0).unwrap();
    f.sync_data().unwrap();
    b.record();
    b.flip_bit("f", 9);
    for image in [b.clone(), b.cut(&mut lost), b.image_after(1, &mut lost)] {
        assert_eq!(bytes(&image, "f")[..3], [0, 2, 0]);
    }
    assert_eq!(bytes(&b.image_after(0, &mut lost), "f")[1], 0);
}

#[test]
fn a_disk_that_is_full_refuses_and_takes_again_what_was_given_back() {
    let b = MemoryBacking::default();
    b.limit(Some(10 * 4096));
    let f = file(&b, "f");
    f.preallocate(8 * 4096).unwrap();
    assert_eq!(b.space().unwrap(), Some(Space { total_bytes: 40960, free_bytes: 8192, free_inodes: u64::MAX }));
    f.write_all_at(&[1; 4096], 4096).unwrap();
    let g = file(&b, "g");
    assert_eq!(errno(g.write_all_at(&[1; 3 * 4096], 0)), Some(libc::ENOSPC));
    assert_eq!(errno(g.preallocate(3 * 4096)), Some(libc::ENOSPC));
    g.write_all_at(&[1; 2 * 4096], 0).unwrap();
    assert_eq!(errno(g.write_all_at(b"x", 8192)), Some(libc::ENOSPC));
    f.punch(4096, 4096).unwrap();
    g.write_all_at(b"x", 8192).unwrap();
    b.remove("g").unwrap();
    assert_eq!(b.space().unwrap().unwrap().free_bytes, 3 * 4096);
    f.set_len(0).unwrap();
    assert_eq!(b.space().unwrap().unwrap().free_bytes, 40960);
}

#[test]
fn the_journal_gives_each_cut_of_the_run() {
    let b = MemoryBacking::default();
    let f = file(&b, "f");
    b.record();
    for i in 0..5u8 {
        f.write_all_at(&[i + 1], 0).unwrap();
        f.sync_data().unwrap();
    }
    b.rename("f", "g").unwrap();
    assert_eq!(b.calls(), 11);
    let mut cuts = b.cuts();
    let mut seen = Vec::new();
    loop {
        let image = cuts.image(&mut lost);
        seen.push(bytes(&image, "f").first().copied().unwrap_or(0));
        assert_eq!(bytes(&image, "f"), bytes(&b.image_after(cuts.cut(), &mut lost), "f"));
        if !cuts.advance() {
            break;
        }
    }
    assert_eq!(seen, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
    assert_eq!(cuts.image(&mut kept).list("").unwrap(), ["g"]);
    assert_eq!(cuts.hash(), b.cuts().hash());
    b.record();
    assert_ne!(cuts.hash(), b.cuts().hash());
}

#[test]
fn an_image_is_a_disk_of_its_own() {
    let b = MemoryBacking::default();
    let f = file(&b, "f");
    f.write_all_at(&[1; 5000], 0).unwrap();
    f.sync_data().unwrap();
    let image = b.cut(&mut lost);
    let g = image.open("f", Open::Write, Cache::Direct).unwrap();
    g.write_all_at(&[2; 5000], 0).unwrap();
    assert_eq!((bytes(&b, "f")[0], bytes(&image.cut(&mut lost), "f")[0], bytes(&image, "f")[0]), (1, 1, 2));
    let held = image.lock("lock").unwrap();
    assert!(image.lock("lock").is_err() && b.lock("lock").is_ok());
    drop(held);
    assert!(image.lock("lock").is_ok());
    assert_eq!(bytes(&image.copy().cut(&mut lost), "f")[0], 2);
}

#[test]
fn a_killed_process_leaves_what_it_wrote_on_its_way() {
    let b = MemoryBacking::default();
    let f = file(&b, "f");
    let held = b.lock("lock").unwrap();
    f.write_all_at(b"x", 0).unwrap();
    let after = b.fork();
    f.sync_data().unwrap();
    drop(held);
    assert!(after.lock("lock").is_ok());
    assert_eq!((bytes(&after, "f"), bytes(&after.cut(&mut lost), "f")), (vec![b'x'], vec![]));
    after.open("f", Open::Read, Cache::Direct).unwrap().sync_data().unwrap();
    assert_eq!(bytes(&after.cut(&mut lost), "f"), b"x", "a sync by another process makes it durable");
}
