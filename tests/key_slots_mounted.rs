//! Attacks every change of the key slots of a vault that is at work: with power cuts, with a disk that fails, with checkpoints in
//! between, with two who change at once, and with headers that are not the next one.
//!
//! Method: a vault is open on a disk in memory; the next header is made as the command makes it and handed over. The power is cut
//! before every call to the disk in turn, also of what the vault does after, and every secret that was ever in a slot is tried on what
//! is left. Promise: it opens with the old slots or with the new ones, as a whole, and with none but the new ones once the change has
//! returned; a disk that fails meanwhile leaves a vault that goes on; what is not the next header changes nothing.
//! The planted fault: a disk that lies about sync must be caught.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/held.rs"]
mod held;
#[path = "common/opening.rs"]
mod opening;
#[path = "common/small.rs"]
mod small;

use held::{Call, HeldDisk};
use opening::{BOTH, Change, OLD, Opener, changes, headers, key_file, made, make, secret};
use small::{check_all, has, overwrite, unlock, world, write};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use strongroom::backing::{Backing, Effect, Fate, Fault, MUTATING, MemoryBacking, read_file};
use strongroom::seal::{Header, MasterKey, Unlock, add_slot, write_header};
use strongroom::vault::{
    HEADER, HandOver, HeaderRefused, HeaderTexts, Import, OpenFault, OpenOptions, PinStore, SlotFault, Slots, Vault,
    VaultFault, lock,
};

fn hand_over(vault: &Arc<Vault>) -> HandOver {
    let vault = Arc::clone(vault);
    Box::new(move |text| {
        vault.take_header(text).map_err(|fault| match fault {
            VaultFault::Header(HeaderRefused::NotNext { .. }) => SlotFault::Overtaken,
            other => SlotFault::NotTaken(io::Error::other(other)),
        })
    })
}

fn texts(disk: &MemoryBacking) -> HeaderTexts {
    HeaderTexts::read(disk).unwrap().unwrap()
}

/// The slots of a vault that is open, as the command reads them.
fn slots(disk: &MemoryBacking, vault: &Arc<Vault>, unlock: &Unlock) -> Slots {
    Slots::of_mounted(&texts(disk), unlock, hand_over(vault), world()).unwrap()
}

/// Does it, and once more if somebody was first.
fn persist<T>(mut change: impl FnMut() -> Result<T, SlotFault>) -> Result<T, SlotFault> {
    match change() {
        Err(SlotFault::Overtaken) => change(),
        other => other,
    }
}

/// A vault that has files 10 and 11, nothing pending, and is open.
fn at_work(disk: &MemoryBacking) -> Arc<Vault> {
    let vault = small::opened(disk);
    write(&vault, 11);
    vault.sync_wait().unwrap();
    vault.checkpoint().unwrap();
    vault
}

/// The changes that cost no passphrase each time; and one that does.
fn some_changes() -> impl Iterator<Item = Change> {
    changes().into_iter().filter(|change| !change.what.contains("passphrase") || change.what == "change a passphrase")
}

/// Cuts the power before every call of a change and of what the vault does next; how often the old and the new slots were found.
fn cut(disk: &MemoryBacking, change: &Change) -> Result<[usize; 2], String> {
    let opener = Opener::of(change);
    let (old, new) = (opener.those(&OLD), opener.those(change.new));
    let vault = at_work(disk);
    disk.record();
    (change.does)(&mut slots(disk, &vault, &unlock())).unwrap();
    let answered = disk.calls();
    write(&vault, 12);
    vault.sync_wait().unwrap();
    let synced = disk.calls();
    vault.checkpoint().unwrap();
    drop(vault);
    let (mut cuts, mut seen) = (disk.cuts(), [0; 2]);
    loop {
        let at = cuts.cut();
        for coins in 0..4 {
            let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
            let opening = opener.opening(&after).map_err(|e| format!("{}: cut {at}: {e}", change.what))?;
            match (opening == old, opening == new) {
                (true, _) if at < answered => seen[0] += 1,
                (_, true) => seen[1] += 1,
                _ => return Err(format!("{}: cut {at}, answered at {answered}: {opening:?} open it", change.what)),
            }
            if coins == 0 {
                // In use it is the same, and what was in it is there.
                let key = opener.open(&after, opening[0]).unwrap();
                let vault =
                    lock(Arc::new(after.clone())).unwrap().open(&key, &OpenOptions::default(), world()).unwrap();
                check_all(&vault, 2);
                assert!(has(&vault, 12) || at < synced, "{}: cut {at}: what was synced is lost", change.what);
                drop(vault);
                assert_eq!(opener.opening(&after), Ok(opening), "{}: cut {at}: opening it has changed it", change.what);
            }
        }
        if !cuts.advance() {
            assert!(answered > 10 && at > answered + 10, "{}: cuts fell before and after the answer", change.what);
            return Ok(seen);
        }
    }
}

#[test]
fn a_power_cut_leaves_the_old_slots_or_the_new_and_an_answer_only_the_new() {
    for change in some_changes() {
        let seen = cut(&made(), &change).unwrap();
        assert!(seen[0] > 10 && seen[1] > 10, "{}: the cuts fell on both sides: {seen:?}", change.what);
    }
}

#[test]
fn a_disk_that_lies_about_sync_is_caught() {
    let caught = some_changes().filter(|change| !change.what.contains("passphrase")).any(|change| {
        let disk = made();
        // The opened vault is at rest before the lies begin.
        small::opened(&disk).close().unwrap();
        disk.plant(Fault::of(strongroom::backing::SYNCS, Effect::Lie).on("vault.toml"));
        disk.plant(Fault::of(strongroom::backing::SYNCS, Effect::Lie).on("root"));
        disk.plant(Fault::of(&[strongroom::backing::Kind::SyncDir], Effect::Lie));
        cut(&disk, &change).is_err()
    });
    assert!(caught, "this harness sees nothing");
}

#[test]
fn a_checkpoint_in_the_midst_of_a_change_names_no_header_that_is_not_there() {
    let disk = made();
    let (naming, named) = crossbeam_channel::bounded(1);
    // It is slow to give the header its name, and says when it is about to.
    let slow = HeldDisk::new(&disk, move |call, to| {
        if (call, to) == (Call::Rename, HEADER) {
            naming.send(()).unwrap();
            // Long enough for a checkpoint that nothing holds up.
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let slow: Arc<dyn Backing> = Arc::new(slow);
    let vault = lock(slow).unwrap().open(&unlock(), &OpenOptions::default(), world()).unwrap();
    write(&vault, 11);
    vault.checkpoint().unwrap();
    disk.record();
    // (calls when it was answered, revision) …
    let mut answered = Vec::new();
    for _ in 0..3 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                write(&vault, 20);
                named.recv().unwrap();
                vault.checkpoint().unwrap();
            });
            let mut mine = slots(&disk, &vault, &unlock());
            mine.add(&key_file(9), "", None).unwrap();
            answered.push((disk.calls(), mine.header().revision));
        });
    }
    vault.close().unwrap();
    drop(vault);
    let mut cuts = disk.cuts();
    loop {
        let at = cuts.cut();
        let known = answered.iter().rfind(|(calls, _)| *calls <= at).map_or(0, |(_, revision)| *revision);
        for coins in 0..3 {
            let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
            let opened = lock(Arc::new(after)).unwrap().slots(&unlock(), world());
            let opened = opened.unwrap_or_else(|fault| panic!("cut {at}: {fault}"));
            assert!(opened.header().revision >= known, "cut {at}: {} after {known}", opened.header().revision);
        }
        if !cuts.advance() {
            break;
        }
    }
}

#[test]
fn a_disk_that_fails_leaves_a_vault_that_goes_on_with_either() {
    let some = ["add a key file", "remove what it was opened with, and more", "change a key file"];
    for change in changes().into_iter().filter(|change| some.contains(&change.what)) {
        let opener = Opener::of(&change);
        let (old, new) = (opener.those(&OLD), opener.those(change.new));
        // Any call, once; or all of a kind, for as long as the change lasts.
        for (path, times) in [("", 1), ("vault.toml", u64::MAX), ("root", u64::MAX)] {
            for skip in 0.. {
                let at = format!("{}: call {skip} on '{path}', {times} times", change.what);
                let disk = made();
                let vault = at_work(&disk);
                disk.record();
                let mut opened = slots(&disk, &vault, &unlock());
                disk.plant(Fault::of(MUTATING, Effect::Error(libc::EIO)).on(path).after(skip).times(times));
                let done = (change.does)(&mut opened);
                let struck = disk.struck() > 0;
                disk.lift_all();
                // The power may go at once, too.
                let in_the_middle = disk.copy();
                write(&vault, 12);
                vault.sync_wait().unwrap_or_else(|fault| panic!("{at}: {fault}"));
                // One may have failed with the change.
                let stored = (0..3).find_map(|_| vault.checkpoint().ok());
                assert!(stored.is_some(), "{at}");
                let opening = opener.opening(&disk.copy()).unwrap_or_else(|e| panic!("{at}: {e}"));
                assert!(opening == new || done.is_err() && opening == old, "{at}: {opening:?}");
                let again = opener.open(&disk.copy(), opening[0]).unwrap();
                let added = persist(|| slots(&disk, &vault, &again).add(&key_file(9), "y", None));
                assert!(added.is_ok(), "{at}: {added:?}");
                vault.close().unwrap();
                drop(vault);
                assert_eq!(opener.opening(&disk).as_ref(), Ok(&opening), "{at}");
                assert!(lock(Arc::new(disk.clone())).unwrap().slots(&key_file(9), world()).is_ok(), "{at}");
                let opening = opener.opening(&in_the_middle).unwrap();
                assert!(opening == new || done.is_err() && opening == old, "{at}: {opening:?}");
                let mut cuts = disk.cuts();
                while cuts.advance() {
                    let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins: skip });
                    let opening = opener.opening(&after).unwrap_or_else(|e| panic!("{at}: cut {}: {e}", cuts.cut()));
                    assert!(opening == old || opening == new, "{at}: cut {}: {opening:?}", cuts.cut());
                }
                if !struck {
                    assert!(skip > if path.is_empty() { 10 } else { 3 }, "{at}: the faults fell into the change");
                    break;
                }
            }
        }
    }
}

#[test]
fn a_removed_slot_stays_removed_with_older_files_put_back_and_pins_tell_an_older_copy() {
    let (disk, state, away) = (made(), MemoryBacking::default(), MemoryBacking::default());
    let pins = || {
        let (state, away): (Arc<dyn Backing>, Arc<dyn Backing>) = (Arc::new(state.clone()), Arc::new(away.clone()));
        vec![PinStore::among_others(state, "the state directory"), PinStore::alone(away, "the emergency directory")]
    };
    let open = |disk: &MemoryBacking| {
        let locked = lock(Arc::new(disk.clone()))?.remembered(pins(), None);
        locked.open(&unlock(), &OpenOptions::default(), world())
    };
    let vault = open(&disk).unwrap();
    let before = disk.copy();
    slots(&disk, &vault, &unlock()).remove(&[2]).unwrap();
    assert_eq!(read_file(&away, HEADER, 1 << 16).unwrap(), headers(&disk)[0], "the copy follows at once");
    // Somebody takes both away from the running vault, and puts the older ones in their place: they open nothing in it.
    let older = headers(&before);
    let copy = disk.copy();
    BOTH.iter().zip(&older).for_each(|(name, text)| overwrite(&copy, name, text));
    let opened = lock(Arc::new(copy)).unwrap().slots(&secret("file"), world());
    assert!(matches!(opened.map(|_| ()), Err(OpenFault::HeaderPutBack { known: 4, found: 3 })));
    // An older copy of all of it is one, though the newer is still open.
    assert!(matches!(open(&before).map(|_| ()), Err(OpenFault::RolledBack { .. })));
    // The running vault does not take what was made from them, and puts its own right: the second try is made from that.
    BOTH.iter().zip(&older).for_each(|(name, text)| overwrite(&disk, name, text));
    let mut with_old = slots(&disk, &vault, &secret("file"));
    assert!(matches!(with_old.add(&key_file(9), "", None), Err(SlotFault::Overtaken)));
    assert!(matches!(texts(&disk).open(&secret("file")).map(|_| ()), Err(strongroom::seal::HeaderFault::WrongKey)));
    let mut again = slots(&disk, &vault, &unlock());
    again.add(&key_file(9), "", None).unwrap();
    assert_eq!(again.header().revision, 5);
    vault.close().unwrap();
}

#[test]
fn of_two_who_change_at_once_the_second_begins_anew() {
    let disk = made();
    let vault = at_work(&disk);
    let (mut mine, mut yours) = (slots(&disk, &vault, &unlock()), slots(&disk, &vault, &unlock()));
    mine.add(&key_file(8), "mine", None).unwrap();
    let before = headers(&disk);
    assert!(matches!(yours.add(&key_file(9), "yours", None), Err(SlotFault::Overtaken)));
    assert_eq!(headers(&disk), before);
    // And now by chance. Two at a time, so that one of them always goes ahead.
    for round in 0..10u8 {
        std::thread::scope(|scope| {
            for n in [0, 1] {
                let (disk, vault) = (&disk, &vault);
                scope.spawn(move || {
                    persist(|| slots(disk, vault, &unlock()).add(&key_file(20 + 2 * round + n), "", None)).unwrap()
                });
            }
        });
    }
    let mut all: Vec<u32> = slots(&disk, &vault, &unlock()).header().slots.iter().map(|slot| slot.id).collect();
    all.sort_unstable();
    assert_eq!(all, (1..=25).collect::<Vec<u32>>(), "none was lost, and none made twice");
    vault.close().unwrap();
    drop(vault);
    for n in 0..20 {
        assert!(lock(Arc::new(disk.clone())).unwrap().slots(&key_file(20 + n), world()).is_ok(), "{n}");
    }
}

/// The header of a disk, changed by somebody who has a key, and written under another or the same.
fn forged(disk: &MemoryBacking, change: impl FnOnce(&mut Header), other: Option<&MasterKey>) -> Vec<u8> {
    let opened = texts(disk).open(&unlock()).unwrap();
    let mut header = opened.header;
    header.revision += 1;
    add_slot(&*world(), &mut header, &opened.master, &key_file(9), "x", None).unwrap();
    change(&mut header);
    write_header(&header, other.unwrap_or(&opened.master)).unwrap()
}

#[test]
fn what_is_not_the_next_header_is_refused_in_a_sentence_and_changes_nothing() {
    let (disk, other) = (made(), make());
    let vault = at_work(&disk);
    let before = (headers(&disk), disk.calls());
    let stranger = MasterKey::generate(&*world());
    let junk = forged(&disk, |_| {}, None)[..200].to_vec();
    let mut changed = String::from_utf8(forged(&disk, |_| {}, None)).unwrap();
    changed = changed.replace("label = \"file\"", "label = \"fiel\"");
    let refused = [
        (forged(&other, |_| {}, None), "of another vault"),
        (forged(&disk, |_| {}, Some(&stranger)), "not made with the master key in force"),
        (changed.into_bytes(), "not made with the master key in force"),
        (forged(&disk, |h| h.revision -= 1, None), "has revision 3, where 3 is in force"),
        (forged(&disk, |h| h.revision += 1, None), "has revision 5, where 3 is in force"),
        (forged(&disk, |h| h.quota_bytes = Some(1 << 30), None), "more than key slots"),
        (forged(&disk, |h| h.quota_inodes = Some(9), None), "more than key slots"),
        (forged(&disk, |h| h.created_s += 1, None), "more than key slots"),
        (forged(&disk, |h| h.key.0 += 1, None), "more than key slots"),
        (forged(&disk, |h| h.format -= 1, None), "more than key slots"),
        (junk, "is no header"),
        (Vec::new(), "is no header"),
    ];
    for (text, said) in refused {
        let fault = vault.take_header(&text).unwrap_err();
        assert!(matches!(fault, VaultFault::Header(_)) && fault.to_string().contains(said), "{said}: {fault}");
        assert_eq!((headers(&disk), disk.calls()), before, "{said}");
    }
    let honest = forged(&disk, |_| {}, None);
    vault.take_header(&honest).unwrap();
    assert_eq!(headers(&disk), [honest.clone(), honest.clone()]);
    assert!(matches!(
        vault.take_header(&honest),
        Err(VaultFault::Header(HeaderRefused::NotNext { in_force: 4, given: 4 }))
    ));
    vault.close().unwrap();
    // Closed, and open for looking only.
    let next = forged(&disk, |_| {}, None);
    assert!(matches!(vault.take_header(&next), Err(VaultFault::Closed)));
    let reading = small::try_open(&disk, &OpenOptions { read_only: true, ..OpenOptions::default() }).unwrap();
    assert!(matches!(reading.take_header(&next), Err(VaultFault::ReadOnly)));
    reading.close().unwrap();
    assert_eq!(headers(&disk), [honest.clone(), honest]);
}

#[test]
fn a_vault_that_closes_meanwhile_has_the_change_or_refuses_it() {
    let (mut taken, mut refused) = (0, 0);
    for wait_us in (0..40).map(|n| n * 50) {
        let disk = made();
        let vault = small::opened(&disk);
        write(&vault, 11);
        let mut mine = slots(&disk, &vault, &unlock());
        let closing = std::thread::spawn({
            let vault = Arc::clone(&vault);
            move || vault.close().unwrap()
        });
        std::thread::sleep(Duration::from_micros(wait_us));
        let done = mine.add(&key_file(9), "", None);
        closing.join().unwrap();
        let opened = lock(Arc::new(disk.clone())).unwrap().slots(&key_file(9), world());
        assert_eq!(opened.is_ok(), done.is_ok(), "{done:?}");
        *if done.is_ok() { &mut taken } else { &mut refused } += 1;
        drop(opened);
        check_all(&small::opened(&disk), 2);
    }
    assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
}

#[test]
fn the_slots_of_a_kept_header_come_back_to_the_vault_at_work_and_to_no_other() {
    let (disk, opener) = (made(), Opener { with_words: true });
    let [kept, _] = headers(&disk);
    let vault = at_work(&disk);
    slots(&disk, &vault, &unlock()).remove(&[2, 4]).unwrap();
    slots(&disk, &vault, &unlock()).add(&key_file(9), "new", None).unwrap();
    let import = |disk: &MemoryBacking, vault: &Arc<Vault>, unlock: &Unlock| {
        Import::of_mounted(&texts(disk), &kept, unlock, hand_over(vault), world())
    };
    let other = make();
    let others = small::opened(&other);
    assert!(matches!(import(&other, &others, &unlock()).map(|_| ()), Err(SlotFault::OtherVault { .. })));
    let wrong = import(&disk, &vault, &key_file(5)).map(|_| ());
    assert!(matches!(wrong, Err(SlotFault::Open(OpenFault::WrongKey))));
    let mut import = import(&disk, &vault, &secret("paper")).unwrap();
    let ids = |slots: Vec<&strongroom::seal::KeySlot>| slots.iter().map(|slot| slot.id).collect::<Vec<_>>();
    assert_eq!((ids(import.brings_back()), ids(import.takes_away())), (vec![2, 4], vec![4]), "a number is given again");
    import.store().unwrap();
    vault.close().unwrap();
    drop(vault);
    assert_eq!(opener.opening(&disk).unwrap(), OLD);
    assert!(matches!(lock(Arc::new(disk)).unwrap().slots(&key_file(9), world()).map(|_| ()), Err(OpenFault::WrongKey)));
}
