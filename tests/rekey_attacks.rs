//! Attacks the change of a vault's master key: with power cuts, with a disk that fails, with damage, and with what somebody kept.
//!
//! Method: a vault with holes, shared frames and several leases on a disk in memory is given a new key; the power is cut before
//! every call to the disk in turn, with the unsynced writes lost, kept and torn, and what is left is opened, compared byte for
//! byte, checked, and given to the same command to go on with. Everything that lies in the finished vault is tried with the old
//! key, at every place where something was under it before.
//! Promise: it opens with the old slots or with the new ones, as a whole; what was begun comes to its end; then the old key opens
//! nothing, a header of before is refused, and no nonce was used twice.
//! The planted faults: a disk that lies about sync, a segment left behind, a file put back, salts left out of the nonces.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/rekeyed.rs"]
mod vault;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use strongroom::backing::{Backing, Cache, Effect, Fate, Fault, MUTATING, MemoryBacking, Open};
use strongroom::base::id::{KeyNumber, SegmentId, Slot};
use strongroom::format::group::{SEALED_ANEW, TABLE_ENTRY_BYTES};
use strongroom::format::segment::SegmentInfo;
use strongroom::seal::{Header, MasterKey, Unlock, VaultKeys, open_header};
use strongroom::segment::{
    SNAPSHOTS, SegmentContext, SnapshotReader, Walk, WalkedGroup, parse_file_name, parse_snapshot_name, path,
    snapshot_path,
};
use strongroom::vault::{
    HEADER, HEADER_COPY, Import, OpenFault, OpenOptions, PinStore, RekeyFault, lock, under_old_keys,
};
use vault::{
    ROOTS, all_files, bytes, closed, files, first, holds_all, key_file, key_number, made, master, mounted, noise,
    opened, put, read, rekeyed, rekeyed_telling, rekeyed_with, second, world, write,
};

fn segments(disk: &MemoryBacking) -> Vec<SegmentId> {
    disk.list("segments").unwrap().iter().filter_map(|name| parse_file_name(name)).collect()
}

/// Walks all segments with keys, whatever they are.
fn walk(disk: &MemoryBacking, header: &Header, keys: &VaultKeys, mut each: impl FnMut(&mut Walk, &WalkedGroup)) {
    for id in segments(disk) {
        let mut walk =
            Walk::new(disk.open(&path(id), Open::Read, Cache::Direct).unwrap(), id, header.suite, header.vault);
        while let Some(group) = walk.next(keys).unwrap() {
            each(&mut walk, &group);
        }
    }
}

fn header(disk: &MemoryBacking) -> (Header, VaultKeys) {
    let (header, master) = open_header(&bytes(disk, HEADER), &first()).unwrap();
    let keys = VaultKeys::of(&header, &master).unwrap();
    (header, keys)
}

/// What a frame's nonce is used under, and the nonce: key, lease, segment, salt; slot. (A directory's slot is its group's number.)
type Nonce = (KeyNumber, u64, u64, [u8; 16], Slot);

/// Everything sealed in a vault's segments, by its nonce; the tag stands for what was encrypted. Frames of zeros were not sealed.
fn frames(disk: &MemoryBacking) -> HashMap<Nonce, [u8; 16]> {
    let (header, keys) = header(disk);
    let mut all = HashMap::new();
    walk(disk, &header, &keys, |walk, group| {
        let h = &group.header;
        let nonce = |slot| (h.key, h.epoch.0, h.segment.0, h.salt, slot);
        for frame in &group.frames {
            let tag = walk.tag(frame);
            if tag != [0; 16] {
                let twice = all.insert(nonce(frame.entry.slot), tag);
                assert!(
                    twice.is_none(),
                    "a nonce twice in one history: segment {}, slot {}",
                    h.segment,
                    frame.entry.slot
                );
            }
        }
        let image = bytes(disk, &path(h.segment));
        let end = group.position_bytes as usize + h.table_start();
        all.insert(nonce(Slot(0x8000_0000 + h.group)), image[end - 16..end].try_into().unwrap());
    });
    assert!(all.len() > 20);
    all
}

fn assert_no_nonce_twice(one: &HashMap<Nonce, [u8; 16]>, other: &HashMap<Nonce, [u8; 16]>) {
    for (nonce, tag) in one {
        assert!(other.get(nonce).is_none_or(|same| same == tag), "a nonce was used twice: {nonce:?}");
    }
}

/// What the old key was ever used for, and how much of a vault opens under it.
struct OldKey {
    master: MasterKey,
    header: Header,
    /// Segments, leases and salts under it.
    lives: HashSet<(SegmentId, u64, [u8; 16])>,
    tags: HashSet<[u8; 16]>,
    frames: Vec<(strongroom::format::group::Entry, u64, SegmentId)>,
}

impl OldKey {
    fn of(disk: &MemoryBacking) -> OldKey {
        let (header, keys) = header(disk);
        let (mut lives, mut tags, mut frames) = (HashSet::new(), HashSet::new(), Vec::new());
        walk(disk, &header, &keys, |walk, group| {
            lives.insert((group.header.segment, group.header.epoch.0, group.header.salt));
            tags.extend(group.frames.iter().map(|frame| walk.tag(frame)).filter(|tag| *tag != [0; 16]));
            frames.extend(group.frames.iter().map(|f| (f.entry, f.position_bytes, group.header.segment)));
        });
        OldKey { master: keys.current().clone(), header, lives, tags, frames }
    }

    /// How much opens under it: frames where they were, groups of any place that claim to be under it, roots, the index, the
    /// header; and tags of what it had sealed, wherever they lie.
    fn opens(&self, disk: &MemoryBacking) -> usize {
        let (keys, vault, suite) = (VaultKeys::first(self.master.clone()), self.header.vault, self.header.suite);
        let mut opened = 0;
        let current = header(disk).0;
        // Whatever the groups say of their key, with every salt that is known: theirs, and those of before.
        let mut lives = self.lives.clone();
        walk(disk, &current, &header(disk).1, |_, group| {
            lives.insert((group.header.segment, group.header.epoch.0, group.header.salt));
        });
        for (id, epoch, salt) in &lives {
            let image = bytes(disk, &path(*id));
            let info = SegmentInfo::empty(strongroom::base::id::Epoch(*epoch), *salt, KeyNumber(0));
            let context = SegmentContext::new(&keys, suite, vault, *id, &info).unwrap();
            for (e, at, _) in self.frames.iter().filter(|(_, _, segment)| segment == id) {
                let (at, len) = (*at as usize, e.sealed_len_bytes as usize);
                let Some(sealed) = image.get(at..at + len) else { continue };
                let address =
                    context.address(e.slot, e.kind, e.codec, e.plain_len_bytes as usize, e.ino, e.offset_bytes);
                opened += usize::from(context.key.open(&address, &mut sealed.to_vec()).is_ok());
            }
        }
        walk(disk, &self.header, &keys, |_, _| opened += 1);
        for number in disk.list(SNAPSHOTS).unwrap().iter().filter_map(|name| parse_snapshot_name(name)) {
            let file = disk.open(&snapshot_path(number), Open::Read, Cache::Direct).unwrap();
            let read = SnapshotReader::new(file, number, suite, vault).next(&keys, &mut |_, _| ());
            opened += usize::from(read.is_ok());
        }
        for root in ROOTS {
            let image = bytes(disk, root);
            for bound in [image[..8].to_vec(), [&image[..6], &[0, 0]].concat()] {
                let (nonce, tag) = (image[8..32].try_into().unwrap(), image[4080..].try_into().unwrap());
                let page = self.master.pages(vault, "root", &[0; 16]);
                opened += usize::from(page.open(&bound, nonce, &mut image[32..4080].to_vec(), tag).is_ok());
            }
        }
        for name in disk.list("index").unwrap() {
            let key = self.master.pages(vault, "index", &[0; 16]);
            let backing: Arc<dyn Backing> = Arc::new(disk.copy());
            let table = strongroom::index::RedbTable::open(&backing, &format!("index/{name}"), key, world(), 1 << 20);
            opened += usize::from(table.is_ok());
        }
        let unlock = Unlock::Master(self.master.clone());
        opened += [HEADER, HEADER_COPY].iter().filter(|name| open_header(&bytes(disk, name), &unlock).is_ok()).count();
        for file in all_files(disk) {
            opened += bytes(disk, &file).windows(16).filter(|window| self.tags.contains(*window)).count();
        }
        opened
    }
}

#[test]
fn after_a_rekey_everything_is_there_and_the_old_key_opens_nothing() {
    let disk = made();
    let (old, before) = (OldKey::of(&disk), frames(&disk));
    assert!(old.opens(&disk) > 60, "this harness sees nothing: {}", old.opens(&disk));
    assert!(old.frames.len() > 20 && old.lives.len() > 1, "{} {}", old.frames.len(), old.lives.len());
    let report = rekeyed(&disk).unwrap();
    assert!(report.finished && report.stay.is_empty() && report.hurt.is_empty() && report.segments > 1);
    assert_eq!((key_number(&disk), under_old_keys(&disk, header(&disk).0.key).unwrap()), (1, (0, 0)));
    assert_eq!(old.opens(&disk), 0);
    assert_no_nonce_twice(&before, &frames(&disk));
    let lives = |all: &HashMap<Nonce, [u8; 16]>| -> HashSet<(u64, [u8; 16])> {
        all.keys().map(|nonce| (nonce.2, nonce.3)).collect()
    };
    let (was, now) = (lives(&before), lives(&frames(&disk)));
    let salts = |lives: &HashSet<(u64, [u8; 16])>| lives.iter().map(|life| life.1).collect::<HashSet<_>>();
    assert!(salts(&now).len() == now.len() && salts(&now).is_disjoint(&salts(&was)), "each salt is drawn anew");
    holds_all(&disk, &first());
    assert!(matches!(mounted(&disk, &second()).map(|_| ()), Err(OpenFault::WrongKey)), "its secret was not given");
    // It is an ordinary vault.
    let fs = mounted(&disk, &first()).unwrap();
    write(&fs, "new", 0, &noise(9, 100_000));
    write(&fs, "over", 0, &noise(3, 10));
    closed(fs);
    assert_eq!(old.opens(&disk), 0);
    assert_no_nonce_twice(&before, &frames(&disk));
    holds_all(&disk, &first());
    // And gets another key, and another.
    let again = OldKey::of(&disk);
    for number in 2..5 {
        let mut rekey = opened(&disk, &first(), &[]).unwrap();
        let plan = rekey.plan(&[first()], true).unwrap();
        rekey.begin(&plan, None, None).unwrap();
        assert!(rekey.run(false, &|_, _| {}).unwrap().finished);
        drop(rekey);
        assert_eq!((key_number(&disk), old.opens(&disk), again.opens(&disk)), (number, 0, 0));
        holds_all(&disk, &first());
    }
}

/// Cuts the power before every call of a rekey; how often the old and the new vault were found.
fn cut(disk: &MemoryBacking, coins_at_each: u64) -> Result<[usize; 2], String> {
    let (old, before) = (OldKey::of(disk), frames(disk));
    disk.record();
    rekeyed(disk).map_err(|fault| fault.to_string())?;
    let (mut cuts, mut seen, mut newer) = (disk.cuts(), [0; 2], false);
    let calls = cuts.calls().len();
    loop {
        for coins in 0..coins_at_each {
            let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
            let at = |what: &str| format!("cut {} of {calls}, {coins}: {what}", cuts.cut());
            // The one whose secret was not given: either the whole vault of before is there, or it opens nothing.
            let was = match mounted(&after.copy(), &second()) {
                Ok(fs) => {
                    closed(fs);
                    true
                }
                Err(OpenFault::WrongKey) => false,
                Err(other) => return Err(at(&other.to_string())),
            };
            if was && cuts.cut() == calls {
                return Err(at("the old slot opens it after the end"));
            }
            if cuts.cut() == calls && old.opens(&after) > 0 {
                return Err(at("the old key opens something after the end, if the power is cut then"));
            }
            seen[usize::from(!was)] += 1;
            let fs = mounted(&after, &first()).map_err(|fault| at(&fault.to_string()))?;
            for (name, body) in files() {
                if read(&fs, name) != Some(body) {
                    return Err(at(name));
                }
            }
            closed(fs);
            if coins > 0 {
                continue;
            }
            holds_all(&after, &first());
            // In the middle it is lived in, too.
            let fs = mounted(&after, &first()).unwrap();
            write(&fs, "meanwhile", 0, &noise(7, 30_000));
            closed(fs);
            let middle = frames(&after);
            newer |= key_number(&after) == 1 && middle.keys().any(|nonce| nonce.0.0 == 0);
            let report = rekeyed(&after).map_err(|fault| at(&fault.to_string()))?;
            if !report.finished || key_number(&after) != 1 {
                return Err(at("it does not come to its end"));
            }
            let end = frames(&after);
            assert_no_nonce_twice(&before, &end);
            assert_no_nonce_twice(&middle, &end);
            if old.opens(&after) > 0 {
                return Err(at("the old key opens something after the end"));
            }
            holds_all(&after, &first());
            let fs = mounted(&after, &first()).unwrap();
            assert!(read(&fs, "meanwhile") == Some(noise(7, 30_000)));
            closed(fs);
            let left: Vec<String> = all_files(&after).into_iter().filter(|name| name.ends_with(".new")).collect();
            assert!(left.is_empty() && after.list("index").unwrap().len() == 1, "{left:?}");
        }
        if !cuts.advance() {
            assert!(newer, "some cuts left segments of both keys");
            return Ok(seen);
        }
    }
}

#[test]
fn a_power_cut_at_any_call_leaves_the_old_vault_or_the_new_and_it_comes_to_its_end() {
    let seen = cut(&made(), 3).unwrap();
    assert!(seen[0] > 30 && seen[1] > 30, "the cuts fell on both sides: {seen:?}");
}

#[test]
fn a_disk_that_lies_about_sync_is_caught() {
    let disk = made();
    disk.lie_about_sync();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cut(&disk, 3)));
    assert!(caught.is_err() || caught.is_ok_and(|found| found.is_err()), "this harness sees nothing");
}

#[test]
fn a_disk_that_fails_leaves_a_vault_that_opens_and_the_next_try_succeeds() {
    let mut failed = 0;
    for skip in (0..).step_by(3) {
        let disk = made();
        closed(mounted(&disk, &first()).unwrap());
        disk.plant(Fault::of(MUTATING, Effect::Error(libc::EIO)).after(skip).times(1));
        let done = rekeyed(&disk);
        let struck = disk.struck() > 0;
        disk.lift_all();
        failed += usize::from(done.is_err());
        holds_all(&disk, &first());
        assert!(rekeyed(&disk).unwrap().finished, "call {skip}");
        holds_all(&disk, &first());
        if !struck {
            break;
        }
    }
    assert!(failed > 20, "the faults fell into it");
}

#[test]
fn without_room_beside_a_segment_it_says_how_much_and_goes_on_when_there_is() {
    let disk = made();
    let mut rekey = opened(&disk, &first(), &[]).unwrap();
    let plan = rekey.plan(&[first()], false).unwrap();
    rekey.begin(&plan, None, None).unwrap();
    disk.limit(Some(1));
    let fault = rekey.run(false, &|_, _| {}).map(|_| ()).unwrap_err();
    let RekeyFault::NoRoom { need_bytes } = fault else { panic!("{fault}") };
    assert!(need_bytes > 1 << 20 && fault.to_string().contains("must be free"));
    disk.limit(None);
    drop(rekey);
    holds_all(&disk, &first());
    assert!(rekeyed(&disk).unwrap().finished);
    holds_all(&disk, &first());
    // The disk may also say so later than its figures.
    let disk = made();
    closed(mounted(&disk, &first()).unwrap());
    let mut rekey = opened(&disk, &first(), &[]).unwrap();
    let plan = rekey.plan(&[first()], false).unwrap();
    rekey.begin(&plan, None, None).unwrap();
    disk.plant(Fault::of(MUTATING, Effect::Error(libc::ENOSPC)).on("segments/").after(2).times(1));
    assert!(matches!(rekey.run(false, &|_, _| {}), Err(RekeyFault::NoRoom { .. })));
    disk.lift_all();
    drop(rekey);
    assert!(rekeyed(&disk).unwrap().finished);
    holds_all(&disk, &first());
}

#[test]
fn what_somebody_kept_of_before_opens_nothing_and_the_right_file_is_not_lost_over_it() {
    let state = MemoryBacking::default();
    let pins = [PinStore::among_others(Arc::new(state.clone()), "the state directory")];
    let disk = made();
    let open = |disk: &MemoryBacking, unlock: &Unlock, pins: &[PinStore]| {
        let locked = lock(Arc::new(disk.clone())).unwrap().remembered(pins.to_vec(), None);
        locked.open(unlock, &OpenOptions::default(), world()).map(|vault| vault.close().unwrap())
    };
    open(&disk, &first(), &pins).unwrap();
    let before = disk.copy();
    assert!(rekeyed_with(&disk, &pins, false).unwrap().finished);
    let take = |disk: &MemoryBacking, names: &[&str]| {
        names.iter().for_each(|name| put(disk, name, &bytes(&before, name)));
    };
    let good = bytes(&disk, HEADER);
    for names in [&[HEADER][..], &[HEADER_COPY]] {
        // One of the two: the other counts, and puts it right.
        let attacked = disk.copy();
        take(&attacked, names);
        for _ in 0..2 {
            // Who has an old key cannot make the vault throw away the header that counts, either.
            let fault = open(&attacked, &second(), &pins).unwrap_err();
            assert!(matches!(fault, OpenFault::OlderKey { .. }), "{names:?}: {fault}");
        }
        holds_all(&attacked, &first());
        assert_eq!([HEADER, HEADER_COPY].map(|name| bytes(&attacked, name)), [good.clone(), good.clone()]);
        // With the roots gone, nothing but the header's own word says that it is newer: it is not thrown away for that.
        let attacked = disk.copy();
        take(&attacked, names);
        ROOTS.iter().for_each(|name| attacked.remove(name).unwrap());
        for rebuild_roots in [false, true] {
            let options = OpenOptions { rebuild_roots, ..OpenOptions::default() };
            let fault = lock(Arc::new(attacked.clone())).unwrap().open(&second(), &options, world()).map(|_| ());
            assert!(matches!(fault, Err(OpenFault::RootsLost | OpenFault::KeyMissing { .. })), "{names:?}: {fault:?}");
        }
        let other = if names == [HEADER] { HEADER_COPY } else { HEADER };
        assert!(bytes(&attacked, other) == good, "{names:?}");
        let options = OpenOptions { rebuild_roots: true, ..OpenOptions::default() };
        drop(lock(Arc::new(attacked.clone())).unwrap().open(&first(), &options, world()).unwrap());
        holds_all(&attacked, &first());
    }
    for names in [
        &[HEADER, HEADER_COPY][..],
        &[HEADER, HEADER_COPY, ROOTS[0]],
        &[HEADER, HEADER_COPY, ROOTS[1]],
        &[HEADER, HEADER_COPY, ROOTS[0], ROOTS[1]],
    ] {
        let attacked = disk.copy();
        take(&attacked, names);
        for unlock in [first(), second()] {
            for pins in [&pins[..], &[]] {
                let fault = match open(&attacked.copy(), &unlock, pins) {
                    Err(fault) => fault,
                    Ok(()) => panic!("{names:?}: a header that was put back opens the vault"),
                };
                let shown = fault.to_string();
                assert!(
                    matches!(fault, OpenFault::OlderKey { .. } | OpenFault::KeyMissing { .. } | OpenFault::Damaged(_)),
                    "{names:?}: {shown}"
                );
                assert!(pins.is_empty() || matches!(fault, OpenFault::OlderKey { .. }), "{names:?}: {shown}");
            }
        }
    }
    // All of it: an older copy of the vault. Who has no pin is shown it, as ever (this harness sees what it should); who has one is not.
    assert!(open(&before.copy(), &second(), &[]).is_ok());
    for unlock in [first(), second()] {
        let fault = open(&before.copy(), &unlock, &pins).unwrap_err();
        assert!(matches!(fault, OpenFault::OlderKey { header: KeyNumber(0), .. }), "{fault}");
        assert!(fault.to_string().contains("--accept-rollback="));
    }
    // Not even if who kept the old key makes newer roots with it.
    let forged = before.copy();
    (0..20).for_each(|_| open(&forged, &second(), &[]).unwrap());
    let fault = open(&forged, &first(), &pins).unwrap_err();
    assert!(matches!(fault, OpenFault::OlderKey { .. }), "{fault}");
    // Whoever means it can have it, and then it is the vault.
    let OpenFault::OlderKey { found: Some(found), .. } = fault else { panic!("{fault}") };
    let accept = |accepted| {
        let locked = lock(Arc::new(forged.clone())).unwrap().remembered(pins.to_vec(), accepted);
        locked.open(&first(), &OpenOptions::default(), world()).map(|vault| vault.close().unwrap())
    };
    assert!(accept(Some(strongroom::base::id::Generation(found.0 + 1))).is_err());
    accept(Some(found)).unwrap();
    accept(None).unwrap();
    // The old header is not taken back by hand either.
    let (text, backing): (_, Arc<dyn Backing>) = (bytes(&before, HEADER), Arc::new(disk.clone()));
    let import = Import::of(backing, &text, &first(), (Vec::new(), None), world()).map(|_| ()).unwrap_err();
    assert!(import.to_string().contains("before a rekey"), "{import}");
    holds_all(&disk, &first());
}

#[test]
fn a_pin_of_another_machine_still_counts_while_the_old_key_is_known_and_none_is_believed_too_long() {
    let (here, there) = (MemoryBacking::default(), MemoryBacking::default());
    let pins = |place: &MemoryBacking| [PinStore::among_others(Arc::new(place.clone()), "a place")];
    let open = |disk: &MemoryBacking, place: &MemoryBacking| {
        let locked = lock(Arc::new(disk.clone())).unwrap().remembered(pins(place).to_vec(), None);
        locked.open(&first(), &OpenOptions::default(), world()).map(|vault| vault.close().unwrap())
    };
    let disk = made();
    let older = disk.copy();
    open(&disk, &there).unwrap();
    let kept = there.copy();
    let mut rekey = opened(&disk, &first(), &pins(&here)).unwrap();
    let plan = rekey.plan(&[first()], false).unwrap();
    rekey.begin(&plan, None, None).unwrap();
    drop(rekey);
    // Unfinished: what the other machine remembers is under the old key, and goes on counting.
    open(&disk, &there).unwrap();
    assert!(matches!(open(&older.copy(), &there), Err(OpenFault::OlderKey { .. })), "it has learnt of the new one");
    assert!(
        matches!(open(&older.copy(), &kept), Err(OpenFault::RolledBack { .. })),
        "this one has not, and knows its own"
    );
    assert!(rekeyed(&disk).unwrap().finished);
    for place in [&here, &there, &kept] {
        open(&disk, place).unwrap();
        open(&disk, place).unwrap();
    }
    for place in [&here, &there] {
        assert!(
            matches!(open(&older.copy(), place), Err(OpenFault::OlderKey { .. })),
            "it is remembered after the end, too"
        );
    }
}

/// A place in a segment, and what lies there.
fn places(disk: &MemoryBacking) -> Vec<(strongroom::format::frame::Kind, SegmentId, u64, Slot)> {
    let (header, keys) = header(disk);
    let mut all = Vec::new();
    walk(disk, &header, &keys, |walk, group| {
        for frame in group.frames.iter().filter(|frame| group.frame_holds(frame) == Some(true)) {
            let _ = walk.tag(frame);
            all.push((frame.entry.kind, group.header.segment, frame.position_bytes, frame.entry.slot));
        }
    });
    all
}

#[test]
fn what_is_damaged_keeps_its_segment_under_the_old_key_and_is_named_until_it_may_go() {
    use strongroom::format::frame::Kind;
    let (mut data, mut log) = (0, 0);
    for (kind, segment, at, _) in places(&made()) {
        let disk = made();
        disk.flip_bit(&path(segment), (at + 3) * 8);
        let old = OldKey::of(&disk);
        let report = rekeyed(&disk).unwrap();
        if report.finished {
            // Nobody needed it.
            assert!(kind == Kind::Data && report.hurt.is_empty());
            holds_all(&disk, &first());
            assert_eq!(old.opens(&disk), 0);
            continue;
        }
        assert_eq!(report.stay.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [segment], "{kind:?} at {at}");
        assert!(
            key_number(&disk) == 1
                && old.opens(&disk) > 0
                && under_old_keys(&disk, header(&disk).0.key).unwrap().0 == 1
        );
        let hurt: Vec<String> =
            report.hurt.iter().map(|h| String::from_utf8(h.path.clone().unwrap()).unwrap()).collect();
        let fs = mounted(&disk, &first()).unwrap();
        for (name, body) in files() {
            let damaged = hurt.contains(&format!("/{name}"));
            assert_eq!(read(&fs, name).is_none(), damaged, "{name}: {hurt:?}");
            assert!(damaged || read(&fs, name) == Some(body));
        }
        closed(fs);
        match kind {
            Kind::Data => data += usize::from(!hurt.is_empty()),
            _ => log += usize::from(hurt.is_empty()),
        }
        // It does not come to its end by itself; if what is lost may be left out, it does, and no more is lost.
        assert!(!rekeyed(&disk).unwrap().finished);
        let report = rekeyed_with(&disk, &[], true).unwrap();
        assert!(report.finished && (report.log_left_out > 0) == (kind != Kind::Data), "{report:?}");
        assert_eq!((report.hurt.len(), old.opens(&disk)), (hurt.len(), 0));
        let fs = mounted(&disk, &first()).unwrap();
        for (name, body) in files() {
            let damaged = hurt.contains(&format!("/{name}"));
            assert!(if damaged { read(&fs, name).is_none() } else { read(&fs, name) == Some(body) }, "{name}");
        }
        closed(fs);
    }
    assert!(data > 3 && log > 5, "both kinds were met: {data} {log}");
}

#[test]
fn what_a_power_cut_left_of_an_unfinished_commit_keeps_nothing_under_the_old_key() {
    let disk = made();
    let fs = mounted(&disk, &first()).unwrap();
    write(&fs, "kept", 0, &noise(5, 40_000));
    fs.sync_wait().unwrap();
    disk.record();
    write(&fs, "dropped", 0, &noise(6, 200_000));
    fs.sync_wait().unwrap();
    let mut cuts = disk.cuts();
    let mut torn = 0;
    loop {
        for coins in 0..4 {
            let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
            let old = OldKey::of(&after);
            let (h, keys) = header(&after);
            walk(&after, &h, &keys, |_, group| torn += usize::from(!group.checksum_holds));
            assert!(rekeyed(&after).unwrap().finished, "cut {}", cuts.cut());
            assert_eq!(old.opens(&after), 0);
            let fs = mounted(&after, &first()).unwrap();
            assert!(read(&fs, "kept") == Some(noise(5, 40_000)));
            closed(fs);
            holds_all(&after, &first());
        }
        if !cuts.advance() {
            break;
        }
    }
    assert!(torn > 0, "some groups were torn");
    drop(fs);
}

#[test]
fn a_lost_index_and_lost_roots_come_back_from_what_was_sealed_anew_in_the_middle_and_at_the_end() {
    let disk = made();
    let mut middle = None;
    {
        let mut rekey = opened(&disk, &first(), &[]).unwrap();
        let plan = rekey.plan(&[first()], false).unwrap();
        rekey.begin(&plan, None, None).unwrap();
        let seen = std::cell::RefCell::new(None);
        rekey
            .run(false, &|done, total| {
                if done > 0 && done < total && seen.borrow().is_none() {
                    *seen.borrow_mut() = Some(disk.crash(|_, _| true));
                }
            })
            .unwrap();
        middle.replace(seen.into_inner().expect("there is a middle"));
    }
    let middle = middle.unwrap();
    let (segments, _) = under_old_keys(&middle, header(&middle).0.key).unwrap();
    assert!(segments > 0 && (segments as usize) < self::segments(&middle).len(), "{segments} are left");
    for (what, disk) in [("middle", middle), ("end", disk)] {
        for (lost_index, lost_roots) in [(true, false), (false, true), (true, true)] {
            let disk = disk.copy();
            if lost_index {
                disk.list("index").unwrap().iter().for_each(|name| disk.remove(&format!("index/{name}")).unwrap());
            }
            if lost_roots {
                ROOTS.iter().for_each(|name| disk.remove(name).unwrap());
            }
            let options = OpenOptions { rebuild_roots: lost_roots, ..OpenOptions::default() };
            let vault = lock(Arc::new(disk.clone())).unwrap().open(&first(), &options, world()).unwrap();
            assert_eq!(vault.lost_records(), 0, "{what}: nothing of the log counts as damaged");
            vault.close().unwrap();
            drop(vault);
            holds_all(&disk, &first());
            assert!(rekeyed(&disk).unwrap().finished);
            holds_all(&disk, &first());
        }
    }
}

#[test]
fn a_segment_left_behind_under_a_key_that_is_gone_is_a_finding_that_names_it() {
    let disk = made();
    let (old, before) = (OldKey::of(&disk), disk.copy());
    assert!(rekeyed(&disk).unwrap().finished);
    assert_eq!(old.opens(&disk), 0);
    let snapshot = format!("{SNAPSHOTS}/{}", disk.list(SNAPSHOTS).unwrap()[0]);
    let anew = bytes(&disk, &snapshot);
    put(&disk, &snapshot, &bytes(&before, &snapshot));
    assert_eq!(old.opens(&disk), 1, "the harness sees a snapshot of before");
    put(&disk, &snapshot, &anew);
    put(&disk, &path(SegmentId(1)), &bytes(&before, &path(SegmentId(1))));
    assert!(old.opens(&disk) > 0, "the harness sees it");
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    let (header, keys) = header(&disk);
    let media = strongroom::check::scrub_media(&backing, Some((&header, &keys)), &|_, _| {}).unwrap();
    let told: Vec<String> = media.damage.iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|line| line.contains("under key 0, which the header does not have")), "{told:?}");
    let findings = strongroom::check::check(&backing, &first(), &world(), true, &|_, _| {}).unwrap();
    let told: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|line| line.contains("under key 0, which the header does not have")), "{told:?}");
    // Where recovery would meet it, nothing is taken for the end of the log. By a snapshot it does not.
    disk.list(SNAPSHOTS).unwrap().iter().for_each(|name| disk.remove(&format!("{SNAPSHOTS}/{name}")).unwrap());
    disk.list("index").unwrap().iter().for_each(|name| disk.remove(&format!("index/{name}")).unwrap());
    let fault = mounted(&disk, &first()).map(|_| ()).unwrap_err();
    assert!(matches!(fault, OpenFault::KeyMissing { segment: SegmentId(1), key: KeyNumber(0) }), "{fault}");
}

#[test]
fn a_group_that_says_it_was_sealed_anew_and_was_not_does_not_open() {
    let disk = made();
    assert!(rekeyed(&disk).unwrap().finished);
    let fs = mounted(&disk, &first()).unwrap();
    write(&fs, "new", 0, &noise(9, 1000));
    closed(fs);
    let (header, keys) = header(&disk);
    let mut tried = [0; 2];
    walk(&disk, &header, &keys, |_, group| {
        let attacked = disk.copy();
        let mut image = bytes(&attacked, &path(group.header.segment));
        let at = group.position_bytes as usize;
        let flags = group.header.flags ^ SEALED_ANEW;
        let lie = strongroom::format::group::Header { flags, ..group.header };
        image[at..at + 64].copy_from_slice(&lie.encode());
        put(&attacked, &path(group.header.segment), &image);
        let mut still = 0;
        walk(&attacked, &header, &keys, |_, other| {
            still += usize::from((other.header.segment, other.position_bytes) == (group.header.segment, at as u64));
        });
        assert_eq!(still, 0, "segment {}, byte {at}", group.header.segment);
        tried[usize::from(group.header.is_sealed_anew())] += 1;
        assert!(group.header.has_table() && group.header.blocks() * TABLE_ENTRY_BYTES > 0);
    });
    assert!(tried[0] > 0 && tried[1] > 5, "{tried:?}");
}

#[test]
fn nonces_without_their_salts_would_repeat_so_the_harness_sees() {
    let disk = made();
    let before = frames(&disk);
    assert!(rekeyed(&disk).unwrap().finished);
    let bare = |all: &HashMap<Nonce, [u8; 16]>| -> HashMap<(u64, u64, Slot), [u8; 16]> {
        all.iter().map(|((_, epoch, segment, _, slot), tag)| ((*epoch, *segment, *slot), *tag)).collect()
    };
    let (one, other) = (bare(&before), bare(&frames(&disk)));
    assert!(one.iter().filter(|(nonce, tag)| other.get(*nonce).is_some_and(|t| t != *tag)).count() > 20);
}

#[test]
fn a_recovery_key_is_drawn_anew_and_only_slots_whose_secret_is_known_stay() {
    use strongroom::seal::{RecoveryKey, SlotKind};
    let disk = made();
    let paper = RecoveryKey::generate(&*world());
    let mut slots = lock(Arc::new(disk.clone())).unwrap().slots(&first(), world()).unwrap();
    slots.add(&Unlock::Recovery(paper.clone()), "paper", None).unwrap();
    slots.add(&key_file(3), "third", None).unwrap();
    drop(slots);
    let mut rekey = opened(&disk, &first(), &[]).unwrap();
    assert!(matches!(rekey.plan(&[key_file(9)], true), Err(RekeyFault::Open(OpenFault::WrongKey))));
    assert!(matches!(rekey.plan(&[], true), Err(RekeyFault::Unfit(_))));
    let beside = rekey.plan(&[first(), key_file(3), key_file(9)], true).map(|_| ()).unwrap_err();
    assert!(beside.to_string().contains("fits no key slot (2 of 2)"), "{beside}");
    let plan = rekey.plan(&[first(), key_file(3)], true).unwrap();
    let gone = |plan: &strongroom::vault::Plan| plan.gone().iter().map(|slot| slot.label.clone()).collect::<Vec<_>>();
    assert_eq!((gone(&plan), plan.wants_recovery()), (vec!["second".to_owned()], true));
    let without = rekey.plan(&[first()], false).unwrap();
    assert_eq!((gone(&without).len(), without.wants_recovery()), (3, false));
    let kept = rekey.plan(&[first(), Unlock::Recovery(paper.clone())], true).unwrap();
    assert_eq!((gone(&kept).len(), kept.wants_recovery()), (2, false), "it was shown, and stays");
    let new_paper = RecoveryKey::generate(&*world());
    rekey.begin(&plan, Some(&new_paper), None).unwrap();
    let labels: Vec<_> = rekey.header().slots.iter().map(|slot| (slot.id, slot.kind, slot.label.as_str())).collect();
    assert_eq!(
        labels,
        [(1, SlotKind::KeyFile, "first"), (3, SlotKind::RecoveryKey, "paper"), (4, SlotKind::KeyFile, "third")]
    );
    drop(rekey);
    for (unlock, opens) in [
        (first(), true),
        (key_file(3), true),
        (Unlock::Recovery(new_paper), true),
        (second(), false),
        (Unlock::Recovery(paper), false),
    ] {
        assert_eq!(mounted(&disk, &unlock).map(closed).is_ok(), opens, "{unlock:?}");
    }
}

#[test]
fn old_keys_are_at_most_eight_and_all_go_at_the_end() {
    let disk = made();
    let old = OldKey::of(&disk);
    let mut rekey = opened(&disk, &first(), &[]).unwrap();
    for number in 1..=8 {
        let plan = rekey.plan(&[first()], false).unwrap();
        rekey.begin(&plan, None, None).unwrap();
        assert_eq!((rekey.header().key.0, rekey.header().old_keys.len()), (number, usize::from(number)));
    }
    let plan = rekey.plan(&[first()], false).unwrap();
    let fault = rekey.begin(&plan, None, None).unwrap_err();
    assert!(fault.to_string().contains("come to its end first"), "{fault}");
    drop(rekey);
    holds_all(&disk, &first());
    assert!(old.opens(&disk) > 0);
    assert!(rekeyed(&disk).unwrap().finished);
    assert_eq!((key_number(&disk), old.opens(&disk)), (8, 0));
    holds_all(&disk, &first());
    assert_ne!(master(&disk).secret()[..], old.master.secret()[..]);
}

#[test]
fn no_nonce_is_used_twice_over_histories_that_part_in_the_middle_of_a_rekey() {
    let disk = made();
    let before = frames(&disk);
    let half = std::cell::RefCell::new(None);
    let tell = |done: u64, total: u64| {
        if done > 0 && done < total && half.borrow().is_none() {
            *half.borrow_mut() = Some(disk.crash(|_, _| true));
        }
    };
    assert!(rekeyed_telling(&disk, &first(), &[], false, &tell).unwrap().finished);
    let half = half.into_inner().expect("there is a middle");
    let middle = frames(&half);
    let lives = |seed: u64| {
        let disk = half.copy();
        let fs = mounted(&disk, &first()).unwrap();
        write(&fs, "parted", 0, &noise(seed, 50_000));
        write(&fs, "text", 100, &noise(seed, 10));
        closed(fs);
        assert!(rekeyed(&disk).unwrap().finished);
        let fs = mounted(&disk, &first()).unwrap();
        write(&fs, "after", 0, &noise(seed + 1, 50_000));
        closed(fs);
        frames(&disk)
    };
    let histories = [before, middle, frames(&disk), lives(20), lives(30)];
    for (n, one) in histories.iter().enumerate() {
        histories[n + 1..].iter().for_each(|other| assert_no_nonce_twice(one, other));
    }
    assert!(histories[3].keys().filter(|nonce| !histories[4].contains_key(*nonce)).count() > 8, "they did part");
}

#[test]
fn an_index_of_more_than_one_transaction_is_copied_whole() {
    use strongroom::base::id::ROOT_INO;
    use strongroom::fs::{Caller, XattrHow, XattrReply};
    let disk = made();
    let fs = mounted(&disk, &first()).unwrap();
    let value = |n: u64| noise(n, 3500);
    let caller = Caller { uid: 1000, gid: 100, umask: 0 };
    for n in 0..2500 {
        let ino = fs.mknod(&caller, ROOT_INO, format!("file-{n}").as_bytes(), 0o644, 0).unwrap().ino;
        fs.setxattr(ino, b"user.much", &value(n), XattrHow::Set).unwrap();
    }
    closed(fs);
    assert!(rekeyed(&disk).unwrap().finished);
    let fs = mounted(&disk, &first()).unwrap();
    assert!(fs.vault().index_lost().is_none());
    for n in 0..2500 {
        let ino = vault::find(&fs, &format!("file-{n}")).unwrap();
        let XattrReply::Bytes(got) = fs.getxattr(ino, b"user.much", 4000).unwrap() else { panic!("a length alone") };
        assert!(got == value(n), "{n}");
    }
    closed(fs);
    holds_all(&disk, &first());
}

#[test]
fn where_the_index_does_not_add_up_nothing_is_taken_for_needless() {
    let disk = made();
    let fs = mounted(&disk, &first()).unwrap();
    let ino = vault::find(&fs, "random").unwrap();
    let extents = fs.vault().scan(&strongroom::format::key::prefix(b'E', ino.0), &[], 100).unwrap();
    assert!(!extents.is_empty());
    // One of its extents is gone from the index, and the log still knows it.
    fs.vault().set_derived(vec![(extents[0].0.clone(), None)]).unwrap();
    closed(fs);
    for leave_out in [false, true] {
        let report = rekeyed_with(&disk, &[], leave_out).unwrap();
        assert!(
            !report.finished && report.stay.len() == 1 && report.stay[0].1.contains("counts other data"),
            "{report:?}"
        );
    }
    disk.list("index").unwrap().iter().for_each(|name| disk.remove(&format!("index/{name}")).unwrap());
    closed(mounted(&disk, &first()).unwrap());
    holds_all(&disk, &first());
    assert!(rekeyed(&disk).unwrap().finished);
    holds_all(&disk, &first());
}

#[test]
fn slots_change_in_the_middle_and_a_header_of_the_middle_that_was_kept_comes_back_whole() {
    let disk = made();
    let old = OldKey::of(&disk);
    let mut rekey = opened(&disk, &first(), &[]).unwrap();
    let plan = rekey.plan(&[first()], false).unwrap();
    rekey.begin(&plan, None, None).unwrap();
    drop(rekey);
    let kept = bytes(&disk, HEADER);
    let slots = |disk: &MemoryBacking| lock(Arc::new(disk.clone())).unwrap().slots(&first(), world());
    slots(&disk).unwrap().add(&key_file(5), "fifth", None).unwrap();
    holds_all(&disk, &key_file(5));
    assert!(rekeyed(&disk).unwrap().finished);
    holds_all(&disk, &key_file(5));
    // The one of the middle has the old key in it; put back, it is an older header as any other.
    let attacked = disk.copy();
    [HEADER, HEADER_COPY].iter().for_each(|name| put(&attacked, name, &kept));
    let fault = mounted(&attacked, &first()).map(|_| ()).unwrap_err();
    assert!(matches!(fault, OpenFault::HeaderPutBack { .. }), "{fault}");
    // Brought back on purpose it serves, and what it still knows goes again.
    let backing: Arc<dyn Backing> = Arc::new(disk.clone());
    Import::of(backing, &kept, &first(), (Vec::new(), None), world()).unwrap().store().unwrap();
    assert_eq!(header(&disk).0.old_keys.len(), 1);
    holds_all(&disk, &first());
    assert!(matches!(mounted(&disk, &key_file(5)).map(|_| ()), Err(OpenFault::WrongKey)));
    assert!(rekeyed(&disk).unwrap().finished);
    assert_eq!((header(&disk).0.old_keys.len(), old.opens(&disk)), (0, 0));
    holds_all(&disk, &first());
}

#[test]
fn a_disk_that_writes_other_bytes_is_noticed_before_the_old_segment_goes() {
    let disk = made();
    let mut rekey = opened(&disk, &first(), &[]).unwrap();
    let plan = rekey.plan(&[first()], false).unwrap();
    rekey.begin(&plan, None, None).unwrap();
    let before: Vec<Vec<u8>> = segments(&disk).into_iter().map(|id| bytes(&disk, &path(id))).collect();
    disk.spoil_next_writes(1);
    let fault = rekey.run(false, &|_, _| {}).map(|_| ()).unwrap_err();
    assert!(fault.to_string().contains("does not read back as it was sealed"), "{fault}");
    drop(rekey);
    let after: Vec<Vec<u8>> = segments(&disk).into_iter().map(|id| bytes(&disk, &path(id))).collect();
    assert!(before == after, "the old ones are untouched");
    holds_all(&disk, &first());
    assert!(rekeyed(&disk).unwrap().finished);
    holds_all(&disk, &first());
}
