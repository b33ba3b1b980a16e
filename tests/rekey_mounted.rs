//! Attacks the change of the master key of a vault that is at work: with power cuts, with a disk that fails, with readers and writers
//! beside it, with keys and headers that are not the next ones; and the forgetting of old keys.
//!
//! Method: a vault is open on a disk in memory; the next header and key are made as the command makes them and handed over. The power
//! is cut before every call to the disk in turn, also of what the vault does after. Promise: what is left opens with the old slots or
//! with the new ones, as a whole, and holds every file and what was synced; once the change has returned, with the new ones only, and
//! nothing is written any more under the old key; a rekey of the closed vault comes to its end.
//! The planted fault: a disk that lies about sync must be caught.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/rekeyed.rs"]
mod rekeyed;

use rekeyed::{
    closed, find, first, holds_all, key_file, key_number, made, master, mounted, put, read, second, words, world, write,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use strongroom::backing::{Backing, Effect, Fate, Fault, Kind, MUTATING, MemoryBacking, SYNCS};
use strongroom::base::id::KeyNumber;
use strongroom::base::limits::CLEAN_BYTES_MIN;
use strongroom::fs::{FileSystem, FsOptions};
use strongroom::seal::{Header, MasterKey, Unlock, VaultKeys, seal_next_key, wrap_old_key, write_header};
use strongroom::vault::{
    CreateOptions, EmergencyDir, HeaderRefused, HeaderTexts, OpenFault, OpenOptions, Plan, Reach, Slots, Vault,
    VaultFault, create, lock, under_old_keys,
};

/// The header in force, its keys, and what the command makes of them for the first slot.
fn next(disk: &MemoryBacking) -> (Header, VaultKeys, Header, MasterKey) {
    let opened = HeaderTexts::read(disk).unwrap().unwrap().open(&first()).unwrap();
    let plan = Plan::of(&opened.header, &[first()], false).unwrap();
    let (header, key) = plan.next(&opened.header, &opened.keys, (None, None), &*world()).unwrap();
    (opened.header, opened.keys, header, key)
}

/// The order: the key, sealed, and the header's text.
fn order(current: &MasterKey, header: &Header, key: &MasterKey) -> Vec<u8> {
    [&seal_next_key(&*world(), header, current, key)[..], &write_header(header, key).unwrap()].concat()
}

/// Gives the open vault a new master key; the first slot stays.
fn switch(disk: &MemoryBacking, vault: &Vault) -> Result<(), VaultFault> {
    let (_, keys, header, key) = next(disk);
    vault.take_key(&order(keys.current(), &header, &key))
}

/// What a power cut left.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// The vault, under the key of this number.
    Whole(u16),
    /// One file of the header says the one, the other the other: whoever opens it decides.
    Either,
}

/// With `whole`, all files are looked at.
fn judged(after: &MemoryBacking, whole: bool) -> Result<Left, String> {
    let opens = |disk: &MemoryBacking, unlock: &Unlock| match lock(Arc::new(disk.clone()))
        .and_then(|locked| locked.slots(unlock, world()))
    {
        Ok(slots) => Ok(Some(slots.header().key.0)),
        Err(OpenFault::WrongKey) => Ok(None),
        Err(other) => Err(other.to_string()),
    };
    let (one, two) = (after.copy(), after.copy());
    let found = (opens(&one, &first())?, opens(&one, &second())?);
    let reversed = (opens(&two, &second())?, opens(&two, &first())?);
    let left = match (found, reversed) {
        ((Some(0), Some(0)), (Some(0), Some(0))) => Left::Whole(0),
        ((Some(new), None), (None, Some(_))) if new > 0 => Left::Whole(new),
        ((Some(1), None), (Some(0), Some(0))) => Left::Either,
        other => return Err(format!("the slots open keys {other:?}")),
    };
    if whole {
        holds_all(&one, &first());
        holds_all(&two, &first());
    }
    Ok(left)
}

/// Cuts the power before every call of the change and of what follows; how often the old key and the new one were found.
fn cut(disk: &MemoryBacking) -> Result<[usize; 2], String> {
    let fs = mounted(disk, &first()).map_err(|fault| fault.to_string())?;
    write(&fs, "before", 0, &words(30_000));
    fs.sync_wait().unwrap();
    // Something that no checkpoint has.
    write(&fs, "pending", 0, &words(200_000));
    disk.record();
    switch(disk, fs.vault()).unwrap();
    let answered = disk.calls();
    write(&fs, "after", 0, &words(50_000));
    fs.sync_wait().unwrap();
    let synced = disk.calls();
    closed(fs);
    let (mut cuts, mut seen) = (disk.cuts(), [0; 2]);
    loop {
        let at = cuts.cut();
        for coins in 0..3 {
            let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
            let left = judged(&after, coins == 0).map_err(|e| format!("cut {at}: {e}"))?;
            if left != Left::Whole(1) && at >= answered {
                return Err(format!("cut {at}: answered at {answered}, and {left:?}"));
            }
            if coins == 0 {
                let fs = mounted(&after, &first()).map_err(|fault| format!("cut {at}: {fault}"))?;
                assert!(read(&fs, "before") == Some(words(30_000)), "cut {at}");
                assert!(at < answered || read(&fs, "pending") == Some(words(200_000)), "cut {at}");
                assert!(at < synced || read(&fs, "after") == Some(words(50_000)), "cut {at}");
                closed(fs);
            }
            seen[usize::from(left == Left::Whole(1))] += 1;
        }
        if !cuts.advance() {
            return Ok(seen);
        }
    }
}

#[test]
fn a_power_cut_leaves_the_old_key_or_the_new_and_an_answer_only_the_new() {
    let disk = made();
    let seen = cut(&disk).unwrap();
    assert!(seen[0] > 20 && seen[1] > 20, "the cuts fell on both sides: {seen:?}");
    // Closed, it comes to its end.
    let old = rekeyed::master(&made());
    let report = rekeyed::rekeyed(&disk).unwrap();
    assert!(report.finished && report.segments > 0, "{report:?}");
    assert_eq!((key_number(&disk), under_old_keys(&disk, KeyNumber(1)).unwrap()), (1, (0, 0)));
    holds_all(&disk, &first());
    let fault = lock(Arc::new(disk.clone())).unwrap().slots(&Unlock::Master(old), world()).map(|_| ()).unwrap_err();
    assert!(matches!(fault, OpenFault::WrongKey), "{fault}");
}

#[test]
fn a_disk_that_lies_about_sync_is_caught() {
    let disk = made();
    for path in ["vault.toml", "root"] {
        disk.plant(Fault::of(SYNCS, Effect::Lie).on(path));
    }
    disk.plant(Fault::of(&[Kind::SyncDir], Effect::Lie));
    assert!(cut(&disk).is_err(), "this harness sees nothing");
}

#[test]
fn after_the_answer_nothing_is_written_under_the_old_key() {
    let disk = made();
    let fs = mounted(&disk, &first()).unwrap();
    write(&fs, "pending", 0, &words(200_000));
    fs.sync_wait().unwrap();
    let all = rekeyed::all_files(&disk).into_iter().filter(|path| path.contains('/'));
    // One that is prepared, and not begun, is under no key.
    let old: BTreeSet<String> = all.filter(|path| rekeyed::bytes(&disk, path).iter().any(|byte| *byte != 0)).collect();
    switch(&disk, fs.vault()).unwrap();
    disk.record();
    for n in 0..20 {
        write(&fs, &format!("after-{n}"), 0, &words(50_000 + n));
        fs.sync_wait().unwrap();
    }
    fs.unlink(strongroom::base::id::ROOT_INO, b"pending").unwrap();
    fs.vault().checkpoint().unwrap();
    closed(fs);
    let writes = [Kind::Write, Kind::Create, Kind::SetLen];
    let cuts = disk.cuts();
    let calls: Vec<_> = cuts.calls().iter().filter(|call| writes.contains(&call.kind)).collect();
    assert!(calls.len() > 50);
    for call in calls {
        assert!(!old.contains(&*call.path), "{call}");
    }
    // And every segment begun since says so.
    let new = rekeyed::all_files(&disk).into_iter().filter(|path| path.starts_with("segments/") && !old.contains(path));
    let new: Vec<String> = new.collect();
    assert!(!new.is_empty());
    let before = under_old_keys(&disk, KeyNumber(1)).unwrap().0;
    new.iter().for_each(|path| disk.remove(path).unwrap());
    assert_eq!(under_old_keys(&disk, KeyNumber(1)).unwrap().0, before);
}

#[test]
fn readers_and_writers_notice_nothing_and_a_second_change_follows_the_first() {
    let disk = made();
    let fs = mounted(&disk, &first()).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(SeqCst) {
                for (name, body) in rekeyed::files() {
                    assert!(read(&fs, name) == Some(body), "{name}");
                }
                assert!(find(&fs, "nobody").is_none());
                rounds += 1;
            }
            rounds
        });
        let writer = scope.spawn(|| {
            let mut n = 0;
            while !stop.load(SeqCst) {
                write(&fs, &format!("new-{n}"), 0, &words(10_000 + n));
                if n % 5 == 0 {
                    fs.sync_wait().unwrap();
                }
                n += 1;
            }
            n
        });
        for number in 1..=3 {
            switch(&disk, fs.vault()).unwrap();
            assert_eq!(key_number(&disk), number);
            let slots = HeaderTexts::read(&disk).unwrap().unwrap();
            let vault = Arc::clone(fs.vault());
            let hand_over = Box::new(move |text: &[u8]| {
                vault.take_header(text).map_err(|e| strongroom::vault::SlotFault::NotTaken(std::io::Error::other(e)))
            });
            let mut slots = Slots::of_mounted(&slots, &first(), hand_over, world()).unwrap();
            slots.add(&key_file(40 + number as u8), "", None).unwrap();
        }
        stop.store(true, SeqCst);
        let (rounds, written) = (reader.join().unwrap(), writer.join().unwrap());
        assert!(rounds > 0 && written > 0);
        for n in 0..written {
            assert!(read(&fs, &format!("new-{n}")) == Some(words(10_000 + n)), "{n}");
        }
    });
    // Counted in the background.
    let counted = (0..1000).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs.vault().left_to_rekey()
    });
    assert!(counted.is_some_and(|(segments, _)| segments > 0) && fs.vault().has_old_keys());
    assert_eq!(fs.vault().stats().errors().iter().map(|line| line.text.clone()).collect::<Vec<_>>(), [""; 0]);
    closed(fs);
    assert!(matches!(
        lock(Arc::new(disk.clone())).unwrap().slots(&key_file(42), world()).map(|_| ()),
        Err(OpenFault::WrongKey)
    ));
    assert!(lock(Arc::new(disk.clone())).unwrap().slots(&key_file(43), world()).is_ok(), "the newest");
    holds_all(&disk, &first());
    assert!(rekeyed::rekeyed(&disk).unwrap().finished);
    holds_all(&disk, &first());
}

#[test]
fn a_disk_that_fails_leaves_a_vault_that_goes_on_under_either_key() {
    for (path, times) in [("", 1), ("vault.toml", u64::MAX), ("root", u64::MAX), ("index", 3)] {
        for skip in 0.. {
            let at = format!("call {skip} on '{path}', {times} times");
            let disk = made();
            let fs = mounted(&disk, &first()).unwrap();
            disk.record();
            disk.plant(Fault::of(MUTATING, Effect::Error(libc::EIO)).on(path).after(skip).times(times));
            let done = switch(&disk, fs.vault());
            let struck = disk.struck() > 0;
            if path == "vault.toml" {
                // The log goes on though the header cannot be written, and what it acknowledges is there whichever a crash leaves.
                write(&fs, "meanwhile", 0, &words(40_000));
                fs.sync_wait().unwrap_or_else(|fault| panic!("{at}: {fault:?}"));
                // It may not be stored now, for a root of one key beside a header of the other opens for nobody.
                let _ = fs.vault().checkpoint();
                for coins in 0..4 {
                    let after = disk.cut(&mut |_| Fate::Torn { unit_bytes: 512, coins });
                    let opened = mounted(&after, &first()).unwrap_or_else(|fault| panic!("{at}: {fault}"));
                    assert!(read(&opened, "meanwhile") == Some(words(40_000)), "{at}");
                    closed(opened);
                    holds_all(&after, &first());
                }
            }
            disk.lift_all();
            write(&fs, "after", 0, &words(50_000));
            fs.sync_wait().unwrap_or_else(|fault| panic!("{at}: {fault:?}"));
            let stored = (0..3).find_map(|_| fs.vault().checkpoint().ok());
            assert!(stored.is_some(), "{at}");
            // What the running vault has is settled by now.
            let Ok(Left::Whole(number)) = judged(&disk.copy(), false) else { panic!("{at}") };
            assert!(done.is_err() || number == 1, "{at}");
            switch(&disk, fs.vault()).unwrap_or_else(|fault| panic!("{at}: again: {fault}"));
            assert_eq!(key_number(&disk), number + 1, "{at}");
            closed(fs);
            assert_eq!(disk.list("index").unwrap().len(), 1, "{at}");
            let fs = mounted(&disk.copy(), &first()).unwrap();
            assert!(read(&fs, "after") == Some(words(50_000)), "{at}");
            closed(fs);
            let mut cuts = disk.cuts();
            while cuts.advance() {
                let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins: skip });
                let whole = cuts.cut().is_multiple_of(11);
                judged(&after, whole).unwrap_or_else(|e| panic!("{at}: cut {}: {e}", cuts.cut()));
            }
            let whole = judged(&cuts.image(&mut |_| Fate::Lost), true);
            assert_eq!(whole, Ok(Left::Whole(number + 1)), "{at}");
            if !struck {
                assert!(skip > 2, "{at}: the faults fell into the change");
                break;
            }
        }
    }
}

#[test]
fn what_is_not_the_next_key_is_refused_and_changes_nothing() {
    let disk = made();
    let fs = mounted(&disk, &first()).unwrap();
    let vault = fs.vault();
    let (now, keys, header, key) = next(&disk);
    let current = keys.current();
    let honest = order(current, &header, &key);
    let stranger = MasterKey::generate(&*world());
    let mut spoilt = honest.clone();
    spoilt[30] ^= 1;
    let with = |change: &dyn Fn(&mut Header)| {
        let mut header = header.clone();
        change(&mut header);
        order(current, &header, &key)
    };
    let other = made_elsewhere();
    let (_, other_keys, other_header, other_key) = next(&other);
    let wrapped = |number, old| wrap_old_key(&*world(), &header, &key, KeyNumber(number), old);
    let refused = [
        (Vec::new(), HeaderRefused::Malformed),
        (honest[..71].to_vec(), HeaderRefused::Malformed),
        (honest[..300].to_vec(), HeaderRefused::Malformed),
        (spoilt, HeaderRefused::OtherKey),
        (order(&stranger, &header, &key), HeaderRefused::OtherKey),
        ([&honest[..72], &write_header(&header, &stranger).unwrap()].concat(), HeaderRefused::OtherKey),
        (order(other_keys.current(), &other_header, &other_key), HeaderRefused::OtherVault(other_header.vault)),
        (with(&|h| h.revision -= 1), HeaderRefused::NotNext { in_force: now.revision, given: now.revision }),
        (with(&|h| h.revision += 1), HeaderRefused::NotNext { in_force: now.revision, given: now.revision + 2 }),
        (with(&|h| h.key.0 += 1), HeaderRefused::MoreThanSlots),
        (with(&|h| h.quota_bytes = Some(5)), HeaderRefused::MoreThanSlots),
        (with(&|h| h.created_s += 1), HeaderRefused::MoreThanSlots),
        (with(&|h| h.old_keys.clear()), HeaderRefused::MoreThanSlots),
        (with(&|h| h.old_keys = vec![wrapped(0, &stranger)]), HeaderRefused::MoreThanSlots),
        // The key of now, called another one.
        (order(current, &of_same_key(&header, current), current), HeaderRefused::MoreThanSlots),
    ];
    disk.record();
    for (n, (text, why)) in refused.iter().enumerate() {
        let fault = vault.take_key(text).unwrap_err();
        assert!(matches!(&fault, VaultFault::Header(found) if found == why), "{n}: {fault}");
        assert_eq!(disk.calls(), 0, "{n}");
    }
    vault.take_key(&honest).unwrap();
    let again = vault.take_key(&honest).unwrap_err();
    assert!(
        matches!(again, VaultFault::Header(HeaderRefused::OtherKey)),
        "it is sealed under the key of before: {again}"
    );
    let vault = Arc::clone(fs.vault());
    closed(fs);
    assert!(matches!(vault.take_key(&honest), Err(VaultFault::Closed)));
    assert_eq!(key_number(&disk), 1);
    holds_all(&disk, &first());
}

fn made_elsewhere() -> MemoryBacking {
    let disk = MemoryBacking::default();
    create(&(Arc::new(disk.clone()) as Arc<dyn Backing>), &first(), &CreateOptions::default(), &world()).unwrap();
    disk
}

/// A header with the next number, and the key of now in it.
fn of_same_key(header: &Header, current: &MasterKey) -> Header {
    let mut same = header.clone();
    same.old_keys = vec![wrap_old_key(&*world(), &same, current, KeyNumber(0), current)];
    same
}

#[test]
fn old_keys_are_forgotten_when_nothing_is_under_them_and_not_before() {
    // With data under the old key.
    let disk = made();
    let fs = mounted(&disk, &first()).unwrap();
    assert!(fs.vault().forget_old_keys().unwrap() && !fs.vault().has_old_keys(), "there are none");
    switch(&disk, fs.vault()).unwrap();
    disk.record();
    assert!(!fs.vault().forget_old_keys().unwrap() && fs.vault().has_old_keys());
    assert_eq!(disk.calls(), 0);
    closed(fs);
    holds_all(&disk, &first());

    // A vault that was never written to has no segment under the old one.
    let disk = made_elsewhere();
    let open = |disk: &MemoryBacking| {
        lock(Arc::new(disk.clone())).unwrap().open(
            &first(),
            &OpenOptions { workers: 1, ..OpenOptions::default() },
            world(),
        )
    };
    let vault = open(&disk).unwrap();
    let old = master(&disk);
    switch(&disk, &vault).unwrap();
    let with_old = rekeyed::bytes(&disk, "vault.toml");
    disk.record();
    assert!(vault.forget_old_keys().unwrap() && !vault.has_old_keys());
    let answered = disk.calls();
    let fs = FileSystem::new(Arc::clone(&vault), FsOptions::default()).unwrap();
    write(&fs, "after", 0, &words(50_000));
    closed(fs);
    drop(vault);
    let (mut cuts, mut seen) = (disk.cuts(), [0, 0]);
    loop {
        let at = cuts.cut();
        for coins in 0..3 {
            let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
            let opened = lock(Arc::new(after.clone())).unwrap().slots(&first(), world());
            let left = opened.unwrap_or_else(|fault| panic!("cut {at}: {fault}")).header().old_keys.len();
            assert!(left == 0 || at < answered, "cut {at}: answered at {answered}");
            seen[left] += 1;
            open(&after).unwrap_or_else(|fault| panic!("cut {at}: {fault}")).close().unwrap();
        }
        if !cuts.advance() {
            break;
        }
    }
    assert!(seen[0] > 10 && seen[1] > 10, "{seen:?}");
    let fault = lock(Arc::new(disk.clone())).unwrap().slots(&Unlock::Master(old), world()).map(|_| ()).unwrap_err();
    assert!(matches!(fault, OpenFault::WrongKey), "{fault}");
    // The header that still had it, put back.
    let attacked = disk.copy();
    for name in ["vault.toml", "vault.toml.copy"] {
        put(&attacked, name, &with_old);
    }
    let fault = open(&attacked).map(|_| ()).unwrap_err();
    assert!(matches!(fault, OpenFault::HeaderPutBack { .. }), "{fault}");
    let fs = mounted(&disk, &first()).unwrap();
    assert!(read(&fs, "after") == Some(words(50_000)));
    closed(fs);
}

#[test]
fn while_part_of_the_vault_is_elsewhere_neither_key_nor_slots_change_and_when_it_is_home_they_do() {
    let (disk, away) = (made(), MemoryBacking::default());
    let there = away.clone();
    let reach: Reach = Arc::new(move |_| Ok(Arc::new(there.clone()) as Arc<dyn Backing>));
    let emergency = Some(EmergencyDir { path: "/emergency".to_owned(), reach, is_shadow: false });
    let options = OpenOptions { emergency, workers: 1, ..OpenOptions::default() };
    let vault = lock(Arc::new(disk.clone())).unwrap().open(&first(), &options, world()).unwrap();
    let fs = FileSystem::new(vault, FsOptions::default()).unwrap();
    disk.plant(Fault::of(MUTATING, Effect::Error(libc::EIO)));
    write(&fs, "away", 0, &words(50_000));
    fs.sync_wait().unwrap();
    assert!(fs.vault().is_away());
    let before = rekeyed::bytes(&disk, "vault.toml");
    let (now, keys, _, _) = next(&disk);
    let slots = write_header(&Header { revision: now.revision + 1, ..now }, keys.current()).unwrap();
    for refused in [switch(&disk, fs.vault()), fs.vault().take_header(&slots), fs.vault().forget_old_keys().map(|_| ())]
    {
        let Err(VaultFault::Header(HeaderRefused::NotNow(why))) = refused else { panic!("{refused:?}") };
        assert_eq!(why, "the backing directory has failed");
    }
    assert_eq!(rekeyed::bytes(&disk, "vault.toml"), before);
    disk.lift_all();
    // It comes home by itself, and until all of it has, the key stays.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while let Err(fault) = switch(&disk, fs.vault()) {
        assert!(matches!(fault, VaultFault::Header(HeaderRefused::NotNow(_))), "{fault}");
        assert!(std::time::Instant::now() < until, "{fault}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(!fs.vault().is_away());
    assert_eq!(rekeyed::bytes(&away, "vault.toml"), rekeyed::bytes(&disk, "vault.toml"), "the copy follows at once");
    closed(fs);
    holds_all(&disk, &first());
}

/// Switches beside a writer, and waits until nothing is under the old key.
fn rewritten(disk: &MemoryBacking) {
    let options = OpenOptions { workers: 1, clean_bytes: Some(CLEAN_BYTES_MIN), ..OpenOptions::default() };
    let vault = lock(Arc::new(disk.clone())).unwrap().open(&first(), &options, world()).unwrap();
    let fs = FileSystem::new(vault, FsOptions::default()).unwrap();
    disk.record();
    switch(disk, fs.vault()).unwrap();
    let (began, mut n) = (Instant::now(), 0);
    while fs.vault().has_old_keys() && began.elapsed() < Duration::from_secs(120) {
        write(&fs, "beside", n * 1000, &words(3000));
        n += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!fs.vault().has_old_keys(), "{:?}", fs.vault().stats().errors());
    assert!(fs.vault().stats().moved_bytes.get() > 0);
    closed(fs);
}

#[test]
fn beside_whatever_goes_on_everything_comes_under_the_new_key() {
    let disk = made();
    let (old, before) = (master(&disk), under_old_keys(&disk, KeyNumber(1)).unwrap());
    assert!(before.0 > 0);
    rewritten(&disk);
    assert_eq!(under_old_keys(&disk, KeyNumber(1)).unwrap(), (0, 0));
    let opened = HeaderTexts::read(&disk).unwrap().unwrap().open(&first()).unwrap();
    assert!(opened.header.old_keys.is_empty() && opened.header.key == KeyNumber(1));
    assert!(matches!(
        lock(Arc::new(disk.copy())).unwrap().slots(&Unlock::Master(old), world()),
        Err(OpenFault::WrongKey)
    ));
    holds_all(&disk, &first());
    // After every few calls of the disk.
    let (mut cuts, mut looked) = (disk.cuts(), 0);
    loop {
        let at = cuts.cut();
        if at % 23 == 0 {
            let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins: at as u64 });
            judged(&after, true).unwrap_or_else(|e| panic!("cut {at}: {e}"));
            looked += 1;
        }
        if !cuts.advance() {
            break;
        }
    }
    assert!(looked > 10, "{looked} cuts");
}
