//! Attacks every change of a vault's key slots: with power cuts, with a disk that fails, and with older headers put back.
//!
//! Method: a vault with a slot of each kind on a disk in memory; a table of changes; for each, the power is cut before every
//! call to the disk in turn, with the unsynced writes lost, kept and torn, and every secret that was ever in a slot is tried
//! on what is left. Promise: it opens with the old slots or with the new ones, as a whole, and with none but the new ones
//! once the change has returned, whichever of the header's files somebody then puts back as it was.
//! The planted fault: a disk that lies about sync must be caught.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/opening.rs"]
mod opening;
#[path = "common/small.rs"]
mod small;

use opening::{
    BOTH, COST, Change, OLD, Opener, changes, headers, key_file, made, make, passphrase, recovery, secret, secrets,
    slots,
};
use small::{check_all, overwrite, unlock, world};
use std::sync::Arc;
use strongroom::backing::{Backing, Effect, Fate, Fault, MUTATING, MemoryBacking, read_file};
use strongroom::base::id::Generation;
use strongroom::base::secret::Passphrase;
use strongroom::seal::{HeaderFault, RecoveryKey, SlotKind, Unlock};
use strongroom::vault::{
    CreateOptions, HEADER, HEADER_COPY, HeaderTexts, Import, OpenFault, OpenOptions, PinStore, SlotFault, create, lock,
};

/// Cuts the power before every call of a change; how often the old and the new slots were found, and if any image had neither.
fn cut(disk: &MemoryBacking, change: &Change) -> Result<[usize; 2], String> {
    let opener = Opener::of(change);
    let (old, new) = (opener.those(&OLD), opener.those(change.new));
    disk.record();
    (change.does)(&mut slots(disk, &unlock()).unwrap()).unwrap();
    let (mut cuts, mut seen) = (disk.cuts(), [0; 2]);
    let calls = cuts.calls().len();
    loop {
        let finished = cuts.cut() == calls;
        for coins in 0..6 {
            let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
            let opening = opener.opening(&after).map_err(|e| format!("{}: cut {}: {e}", change.what, cuts.cut()))?;
            match (opening == old, opening == new) {
                (true, _) if !finished => seen[0] += 1,
                (_, true) => seen[1] += 1,
                _ => return Err(format!("{}: cut {} of {calls}: {opening:?} open it", change.what, cuts.cut())),
            }
            if coins == 0 {
                // In use it is the same, and what was in it is there.
                let name = opening[0];
                let key = opener.open(&after, name).unwrap();
                let vault =
                    lock(Arc::new(after.clone())).unwrap().open(&key, &OpenOptions::default(), world()).unwrap();
                check_all(&vault, 1);
                drop(vault);
                let now = opener.opening(&after);
                assert_eq!(now, Ok(opening), "{}: cut {}: opening it has changed it", change.what, cuts.cut());
            }
        }
        if !cuts.advance() {
            return Ok(seen);
        }
    }
}

#[test]
fn a_power_cut_leaves_the_old_slots_or_the_new_and_an_answer_only_the_new() {
    for change in changes() {
        let seen = cut(&made(), &change).unwrap();
        assert!(seen[0] > 10 && seen[1] > 10, "{}: the cuts fell on both sides: {seen:?}", change.what);
    }
}

#[test]
fn a_disk_that_lies_about_sync_is_caught() {
    let caught = changes().iter().filter(|change| !Opener::of(change).with_words).any(|change| {
        let disk = made();
        disk.lie_about_sync();
        cut(&disk, change).is_err()
    });
    assert!(caught, "this harness sees nothing");
}

#[test]
fn a_disk_that_fails_leaves_either_and_the_next_try_succeeds() {
    for change in changes().iter().filter(|change| !Opener::of(change).with_words) {
        let opener = Opener::of(change);
        let (old, new) = (opener.those(&OLD), opener.those(change.new));
        for skip in 0.. {
            let disk = made();
            let mut opened = slots(&disk, &unlock()).unwrap();
            disk.plant(Fault::of(MUTATING, Effect::Error(libc::EIO)).after(skip).times(1));
            let done = (change.does)(&mut opened);
            drop(opened);
            let struck = disk.struck() > 0;
            disk.lift_all();
            let opening = opener.opening(&disk).unwrap();
            if done.is_ok() {
                assert_eq!(opening, new, "{}: call {skip}", change.what);
            } else {
                assert!(opening == old || opening == new, "{}: call {skip}: {opening:?}", change.what);
                let again = opener.open(&disk, opening[0]).unwrap();
                let added = slots(&disk, &again).unwrap().add(&key_file(9), "y", None);
                assert!(added.is_ok(), "{}: call {skip}", change.what);
                assert_eq!(opener.opening(&disk), Ok(opening));
            }
            if !struck {
                assert!(skip > 10, "the faults fell into the change");
                break;
            }
        }
    }
}

#[test]
fn a_removed_slot_stays_removed_whichever_file_is_put_back() {
    let before = made();
    for change in changes() {
        let (disk, opener) = (made(), Opener::of(&change));
        let new = opener.those(change.new);
        (change.does)(&mut slots(&disk, &unlock()).unwrap()).unwrap();
        for in_between in [false, true] {
            if in_between {
                let key = opener.open(&disk, change.new[0]).unwrap();
                drop(lock(Arc::new(disk.clone())).unwrap().open(&key, &OpenOptions::default(), world()).unwrap());
            }
            for (n, name) in BOTH.iter().enumerate() {
                let attacked = disk.copy();
                overwrite(&attacked, name, &headers(&before)[n]);
                assert_eq!(opener.opening(&attacked).as_ref(), Ok(&new), "{}: {name} put back", change.what);
                for root in ["root.a", "root.b"] {
                    let attacked = attacked.copy();
                    overwrite(&attacked, root, &read_file(&before, root, 4096).unwrap());
                    assert_eq!(
                        opener.opening(&attacked).as_ref(),
                        Ok(&new),
                        "{}: {name} and {root} put back",
                        change.what
                    );
                }
            }
            // Both: nobody is let in by mistake, whatever they know.
            let attacked = disk.copy();
            let [first, copy] = headers(&before);
            overwrite(&attacked, HEADER, &first);
            overwrite(&attacked, HEADER_COPY, &copy);
            for (name, unlock) in secrets().into_iter().filter(|(name, _)| opener.tries(name)) {
                let fault = slots(&attacked, &unlock).map(|_| ()).unwrap_err();
                let want = if OLD.contains(&name) { "key import-header" } else { "wrong" };
                assert!(fault.to_string().contains(want), "{}: {name}: {fault}", change.what);
                if OLD.contains(&name) {
                    assert!(matches!(fault, OpenFault::HeaderPutBack { known: 4, found: 3 }), "{fault:?}");
                    let key =
                        Unlock::Master(HeaderTexts::read(&attacked).unwrap().unwrap().open(&unlock).unwrap().master);
                    let open = lock(Arc::new(attacked.clone())).unwrap().open(&key, &OpenOptions::default(), world());
                    assert!(matches!(open.map(|_| ()), Err(OpenFault::HeaderPutBack { .. })));
                }
            }
        }
    }
}

#[test]
fn older_roots_and_headers_together_are_an_older_copy_which_pins_tell() {
    let (disk, state) = (made(), MemoryBacking::default());
    let pins = || vec![PinStore::among_others(Arc::new(state.clone()) as Arc<dyn Backing>, "the state directory")];
    let open = |disk: &MemoryBacking, accepted: Option<u64>| {
        let locked = lock(Arc::new(disk.clone()))?.remembered(pins(), accepted.map(Generation));
        locked.slots(&unlock(), world())
    };
    let before = disk.copy();
    open(&disk, None).unwrap().remove(&[2]).unwrap();
    let fault = open(&before, None).map(|_| ()).unwrap_err();
    let OpenFault::RolledBack { to, .. } = fault else { panic!("{fault}") };
    // Only whoever means it.
    let mut slots = open(&before, Some(to.0)).unwrap();
    assert_eq!(slots.header().slots.len(), 4);
    slots.remove(&[4]).unwrap();
    drop(slots);
    assert!(
        matches!(open(&disk, None).map(|_| ()), Err(OpenFault::RolledBack { .. })),
        "now the other is the older one"
    );
}

#[test]
fn a_header_that_a_power_cut_left_unfinished_is_not_taken_for_a_later_one() {
    // Both have the same revision: the one was never acknowledged, the other is the vault's.
    let disk = made();
    let before = disk.copy();
    slots(&disk, &unlock()).unwrap().add(&secret("other file"), "x", None).unwrap();
    let unfinished = headers(&disk);
    slots(&before, &unlock()).unwrap().remove(&[2]).unwrap();
    for name in BOTH {
        overwrite(&before, name, &unfinished[0]);
    }
    let fault = slots(&before, &unlock()).map(|_| ()).unwrap_err();
    assert!(matches!(fault, OpenFault::HeaderPutBack { known: 4, found: 4 }), "{fault:?}");
}

#[test]
fn the_last_slot_stays_and_what_cannot_be_is_refused_without_a_trace() {
    let disk = made();
    let before = headers(&disk);
    let mut slots = slots(&disk, &secret("file")).unwrap();
    assert_eq!(slots.fitting(), [2]);
    assert!(matches!(slots.remove(&[1, 2, 3, 4]), Err(SlotFault::LastSlot)));
    assert!(matches!(slots.remove(&[1, 9]), Err(SlotFault::NoSuchSlot(id)) if id == "9"));
    assert!(matches!(slots.change(9, &key_file(5), None, None), Err(SlotFault::NoSuchSlot(_))));
    assert!(matches!(slots.add(&key_file(5), "words", None), Err(SlotFault::LabelTaken(_))));
    assert!(matches!(slots.change(1, &key_file(5), Some("words"), None), Err(SlotFault::LabelTaken(_))));
    assert!(matches!(slots.add(&key_file(5), &"x".repeat(256), None), Err(SlotFault::Unfit(_))));
    let short = Unlock::KeyFile(Passphrase(vec![1; 31]));
    assert!(matches!(slots.add(&short, "", None), Err(SlotFault::Open(_))));
    for cost in [(1024, 3, 4), (65_536, 2, 4), (65_536, 3, 1), (8 << 20, 3, 4), (65_536, 65, 4), (65_536, 3, 65)] {
        assert!(matches!(slots.add(&passphrase("x"), "", Some(cost)), Err(SlotFault::Open(_))), "{cost:?}");
    }
    assert_eq!(headers(&disk), before);
    assert!(slots.leaves_no_passphrase(&[3]) && !slots.leaves_no_passphrase(&[1, 2]));
    slots.remove(&[3]).unwrap();
    assert!(!slots.leaves_no_passphrase(&[1]), "there is none to lose");
    assert_eq!(slots.named("paper").unwrap().id, 4);
    assert_eq!(slots.named("2").unwrap().label, "file");
    assert!(matches!(slots.named("words"), Err(SlotFault::NoSuchSlot(_))));
    assert!(matches!(slots.named(""), Err(SlotFault::NoSuchSlot(_))));
    while slots.header().slots.len() < 32 {
        slots.add(&key_file(5), "", None).unwrap();
    }
    assert!(matches!(slots.add(&key_file(5), "", None), Err(SlotFault::Unfit(_))));
    // What fits several slots is removed from all of them, or it would still open the vault.
    drop(slots);
    let mut slots = self::slots(&disk, &key_file(5)).unwrap();
    let fitting = slots.fitting().to_vec();
    assert_eq!(fitting.len(), 29);
    slots.remove(&fitting).unwrap();
    drop(slots);
    assert!(matches!(self::slots(&disk, &key_file(5)).map(|_| ()), Err(OpenFault::WrongKey)));
}

#[test]
fn a_slot_that_is_changed_keeps_its_number_label_and_place() {
    let disk = made();
    let mut slots = slots(&disk, &unlock()).unwrap();
    let old = slots.header().slots[1].clone();
    slots.change(2, &secret("other words"), None, COST).unwrap();
    let new = &slots.header().slots[1];
    assert_eq!((new.id, &*new.label), (2, "file"));
    assert!(matches!(new.kind, SlotKind::Passphrase { .. }));
    assert!(new.salt != old.salt && new.nonce != old.nonce && new.commitment != old.commitment);
    slots.change(2, &secret("other paper"), Some("drawer"), None).unwrap();
    assert_eq!((slots.header().slots[1].kind, &*slots.header().slots[1].label), (SlotKind::RecoveryKey, "drawer"));
}

#[test]
fn a_vault_in_use_keeps_its_slots() {
    let disk = made();
    let vault = small::opened(&disk);
    assert!(matches!(slots(&disk, &unlock()).map(|_| ()), Err(OpenFault::InUse { .. })));
    vault.close().unwrap();
    drop(vault);
    slots(&disk, &unlock()).unwrap().remove(&[2]).unwrap();
}

fn import(disk: &MemoryBacking, text: &[u8], unlock: &Unlock) -> Result<Import, SlotFault> {
    Import::of(Arc::new(disk.clone()), text, unlock, (Vec::new(), None), world())
}

#[test]
fn a_kept_header_comes_back_only_to_its_own_vault_and_with_its_own_key() {
    let (disk, opener) = (made(), Opener { with_words: true });
    let [kept, _] = headers(&disk);
    slots(&disk, &unlock()).unwrap().remove(&[2, 4]).unwrap();
    let other = make();
    assert!(matches!(import(&other, &kept, &unlock()).map(|_| ()), Err(SlotFault::OtherVault { .. })));
    for name in BOTH {
        other.remove(name).unwrap();
    }
    assert!(matches!(import(&other, &kept, &unlock()).map(|_| ()), Err(SlotFault::OtherVault { .. })));
    let wrong = import(&disk, &kept, &key_file(9)).map(|_| ());
    assert!(matches!(wrong, Err(SlotFault::Open(OpenFault::WrongKey))));
    let mut forged = String::from_utf8(kept.clone()).unwrap();
    forged = forged.replace("label = \"file\"", "label = \"fiel\"");
    let refused = import(&disk, forged.as_bytes(), &unlock()).map(|_| ());
    assert!(matches!(refused, Err(SlotFault::Open(OpenFault::Header(HeaderFault::Tampered)))));
    assert_eq!(opener.opening(&disk).unwrap(), ["first", "words"], "refusals change nothing");

    // In the place of a newer one; of none; of rubble; where the roots are lost, too.
    type Spoil = fn(&MemoryBacking);
    let spoils: [Spoil; 4] = [
        |_| {},
        |disk| BOTH.iter().for_each(|name| disk.remove(name).unwrap()),
        |disk| BOTH.iter().for_each(|name| overwrite(disk, name, b"rubble")),
        |disk| [HEADER, HEADER_COPY, "root.a", "root.b"].iter().for_each(|name| disk.remove(name).unwrap()),
    ];
    for (n, spoil) in spoils.into_iter().enumerate() {
        let disk = disk.copy();
        spoil(&disk);
        let mut import = import(&disk, &kept, &secret("paper")).unwrap();
        let back: Vec<u32> = import.brings_back().iter().map(|slot| slot.id).collect();
        assert_eq!(back, if n == 0 { vec![2, 4] } else { vec![1, 2, 3, 4] });
        assert!(import.takes_away().is_empty());
        import.store().unwrap();
        drop(import);
        let rebuild_roots = n == 3;
        let options = OpenOptions { rebuild_roots, ..OpenOptions::default() };
        check_all(&small::try_open(&disk, &options).unwrap(), 1);
        assert_eq!(opener.opening(&disk).unwrap(), OLD);
        // What it replaced is the older one now.
        let newest = headers(&disk);
        assert!(String::from_utf8_lossy(&newest[0]).contains(&format!("revision = {}", if n == 3 { 4 } else { 5 })));
    }
}

#[test]
fn a_power_cut_while_a_kept_header_comes_back_leaves_the_old_slots_or_the_new() {
    let (disk, opener) = (made(), Opener { with_words: false });
    let [kept, _] = headers(&disk);
    slots(&disk, &unlock()).unwrap().remove(&[2]).unwrap();
    disk.record();
    import(&disk, &kept, &unlock()).unwrap().store().unwrap();
    let (mut cuts, mut seen) = (disk.cuts(), [0; 2]);
    loop {
        for coins in 0..6 {
            let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
            let opening = opener.opening(&after).unwrap();
            let is_old = opening == opener.those(&OLD);
            assert!(is_old || opening == ["first", "paper"], "cut {}: {opening:?}", cuts.cut());
            seen[usize::from(is_old)] += 1;
        }
        if !cuts.advance() {
            break;
        }
    }
    assert!(seen[0] > 10 && seen[1] > 10, "the cuts fell on both sides: {seen:?}");
}

#[test]
fn a_vault_whose_roots_are_lost_keeps_its_slots_until_it_is_mended() {
    let disk = made();
    ["root.a", "root.b"].iter().for_each(|root| disk.remove(root).unwrap());
    assert!(matches!(slots(&disk, &unlock()).map(|_| ()), Err(OpenFault::RootsLost)));
}

#[test]
fn a_recovery_key_made_with_the_vault_opens_it() {
    let disk = MemoryBacking::default();
    let Unlock::Recovery(key) = recovery(5) else { panic!() };
    let options = CreateOptions { recovery: Some(key), ..CreateOptions::default() };
    create(&(Arc::new(disk.clone()) as Arc<dyn Backing>), &unlock(), &options, &world()).unwrap();
    let slots = slots(&disk, &recovery(5)).unwrap();
    assert_eq!(slots.fitting(), [2]);
    let shown: Vec<_> = slots.header().slots.iter().map(|slot| (slot.id, slot.kind, &*slot.label)).collect();
    assert_eq!(shown, [(1, SlotKind::KeyFile, "first"), (2, SlotKind::RecoveryKey, "recovery")]);
    assert!(matches!(self::slots(&disk.copy(), &recovery(6)).map(|_| ()), Err(OpenFault::WrongKey)));
}

/// What the frozen vault opens with: a passphrase, a key file and a recovery key, in slots 1 to 4 but 2, which was removed.
fn frozen_secrets() -> [(u32, Unlock); 3] {
    let key = std::fs::read(frozen("key")).unwrap();
    let paper = "000G40XD-0G2GC1R6-104GM2X8-1G6GW3TD-Y3RZ5WSR-YKTZDXWK-Z3WZNYSX-ZKYZXZT4";
    [
        (1, Unlock::KeyFile(Passphrase(key))),
        (3, passphrase("sch\u{f6}ner Schl\u{fc}ssel")),
        (4, Unlock::Recovery(RecoveryKey::parse(paper).unwrap())),
    ]
}

fn frozen(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vaults").join(name)
}

const FROZEN_FILES: [&str; 4] = [HEADER, HEADER_COPY, "root.a", "root.b"];

#[test]
#[ignore = "makes the vault that the next test opens; run by hand when a format is born"]
fn make_the_frozen_vault() {
    let (dir, [(_, file), (_, words), (_, paper)]) = (frozen("slots-3"), frozen_secrets());
    std::fs::create_dir(&dir).expect("one that exists is never replaced");
    let disk = MemoryBacking::default();
    create(&(Arc::new(disk.clone()) as Arc<dyn Backing>), &file, &CreateOptions::default(), &world()).unwrap();
    let mut slots = slots(&disk, &file).unwrap();
    slots.add(&key_file(1), "removed", None).unwrap();
    slots.add(&words, "words \u{2713}", COST).unwrap();
    slots.add(&paper, "", None).unwrap();
    slots.remove(&[2]).unwrap();
    for name in FROZEN_FILES {
        std::fs::write(dir.join(name), read_file(&disk, name, 1 << 16).unwrap()).unwrap();
    }
}

#[test]
fn a_frozen_vault_with_slots_of_every_kind_opens_for_ever() {
    let disk = MemoryBacking::default();
    for name in FROZEN_FILES {
        overwrite(&disk, name, &std::fs::read(frozen("slots-3").join(name)).unwrap());
    }
    // An archive of the source keeps no empty directories.
    disk.make_dir("segments").unwrap();
    disk.make_dir("index").unwrap();
    for (id, unlock) in frozen_secrets() {
        let slots = slots(&disk, &unlock).unwrap();
        assert_eq!((slots.fitting(), slots.header().revision), (&[id][..], 4));
        let labels: Vec<_> = slots.header().slots.iter().map(|slot| (slot.id, &*slot.label)).collect();
        assert_eq!(labels, [(1, "first"), (3, "words \u{2713}"), (4, "")]);
    }
    assert!(matches!(slots(&disk, &key_file(1)).map(|_| ()), Err(OpenFault::WrongKey)), "it was removed");
    // A root of version 3 is what refuses an older header here.
    let older = disk.copy();
    let (_, unlock) = &frozen_secrets()[0];
    slots(&disk, unlock).unwrap().remove(&[4]).unwrap();
    for name in BOTH {
        overwrite(&disk, name, &read_file(&older, name, 1 << 16).unwrap());
    }
    assert!(matches!(slots(&disk, unlock).map(|_| ()), Err(OpenFault::HeaderPutBack { known: 5, found: 4 })));
    let vault = lock(Arc::new(older)).unwrap().open(unlock, &OpenOptions::default(), world()).unwrap();
    vault.close().unwrap();
}
