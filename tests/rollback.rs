//! Attacks a vault with its own past: an older copy of all of it, of its roots, of its index, put in its place.
//!
//! Method: live through several mounts on a disk in memory with pins on disks of their own, keeping copies on the way; put
//! copies back, whole or in part, and open. Promise: what is older than any pin remembers is refused with both generations,
//! and opened only if its own is named; then it goes on above both histories, and no key meets a nonce twice over both.
//! What a crash, a lost pin or another machine leaves is never refused.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/small.rs"]
mod small;

use small::{check_all, has, made, overwrite, unlock, write};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;
use strongroom::backing::{Backing, Cache, MemoryBacking, Open, read_file};
use strongroom::base::id::{Generation, Slot};
use strongroom::base::world::{RealWorld, Time, World};
use strongroom::seal::{VaultKeys, open_header};
use strongroom::segment::{Walk, parse_file_name, path};
use strongroom::vault::{EmergencyDir, HEADER, OpenFault, OpenOptions, PinStore, Vault, lock};

/// Where a machine remembers: the user's state directory, and the emergency directory.
#[derive(Clone, Default)]
struct Machine {
    state: MemoryBacking,
    emergency: MemoryBacking,
}

impl Machine {
    fn copy(&self) -> Machine {
        Machine { state: self.state.copy(), emergency: self.emergency.copy() }
    }

    fn pins(&self) -> Vec<PinStore> {
        let state = PinStore::among_others(Arc::new(self.state.clone()), "the state directory");
        vec![state, PinStore::alone(Arc::new(self.emergency.clone()), "the emergency directory")]
    }

    fn open_in(
        &self,
        disk: &MemoryBacking,
        accepted: Option<u64>,
        options: &OpenOptions,
        world: Arc<dyn World>,
    ) -> Result<Arc<Vault>, OpenFault> {
        let locked = lock(Arc::new(disk.clone()))?.remembered(self.pins(), accepted.map(Generation));
        locked.open(&unlock(), options, world)
    }

    fn open(&self, disk: &MemoryBacking, accepted: Option<u64>) -> Result<Arc<Vault>, OpenFault> {
        self.open_in(disk, accepted, &OpenOptions::default(), Arc::new(RealWorld::default()))
    }

    /// One mount that writes one file.
    fn lives(&self, disk: &MemoryBacking, ino: u64) {
        let vault = self.open(disk, None).unwrap();
        write(&vault, ino);
        vault.close().unwrap();
    }

    /// The two generations of a refusal.
    #[track_caller]
    fn refuses(&self, disk: &MemoryBacking, accepted: Option<u64>) -> (u64, u64) {
        let before = everything(disk);
        let fault = self.open(disk, accepted).map(|_| ()).expect_err("an older copy is refused");
        let OpenFault::RolledBack { from, to, .. } = fault else { panic!("{fault}") };
        let said = fault.to_string();
        assert!(said.contains(&format!("generation {to}")) && said.contains(&from.to_string()), "{said}");
        assert!(said.contains(&format!("--accept-rollback={to}")), "{said}");
        assert!(everything(disk) == before, "a refusal changes nothing");
        (from.0, to.0)
    }
}

/// Every file with its content, the lock left out.
fn everything(disk: &MemoryBacking) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for dir in ["", "segments", "index", "snapshots"] {
        for name in disk.list(dir).unwrap() {
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if !["lock", "segments", "index", "snapshots"].contains(&&*path) {
                let bytes = read_file(disk, &path, 1 << 30).unwrap();
                all.push((path, bytes));
            }
        }
    }
    all
}

fn generation(machine: &Machine, disk: &MemoryBacking) -> u64 {
    let vault = machine.open(&disk.copy(), None).unwrap();
    // Opening has written two: the lease, and the first checkpoint.
    vault.gauges().generation - 2
}

#[test]
fn an_older_copy_of_everything_is_refused_and_opened_only_by_its_generation() {
    for mounts_between in 1..4 {
        let (disk, machine) = (made(), Machine::default());
        machine.lives(&disk, 10);
        machine.lives(&disk, 11);
        let old = disk.copy();
        let old_generation = generation(&machine.copy(), &old);
        (0..mounts_between).for_each(|n| machine.lives(&disk, 12 + n));
        let newest = generation(&machine.copy(), &disk);

        assert_eq!(machine.refuses(&old, None), (newest, old_generation));
        for wrong in [0, old_generation - 1, old_generation + 1, newest] {
            assert_eq!(machine.refuses(&old, Some(wrong)), (newest, old_generation), "{wrong}");
        }
        let vault = machine.open(&old, Some(old_generation)).unwrap();
        assert!(has(&vault, 11) && !has(&vault, 12));
        assert!(vault.gauges().generation > newest, "the pins move on");
        write(&vault, 30);
        vault.close().unwrap();
        drop(vault);
        // From now on this is the vault, and the other is the older one.
        let vault = machine.open(&old, None).unwrap();
        assert!(has(&vault, 30));
        drop(vault);
        machine.refuses(&disk, None);
        machine.refuses(&disk, Some(old_generation));
        let vault = machine.open(&disk, Some(newest)).unwrap();
        assert!(has(&vault, 12) && !has(&vault, 30));
    }
}

#[test]
fn a_copy_from_within_a_mount_is_refused_too() {
    let (disk, machine) = (made(), Machine::default());
    let vault = machine.open(&disk, None).unwrap();
    write(&vault, 10);
    vault.sync_wait().unwrap();
    let early = disk.copy();
    write(&vault, 11);
    vault.checkpoint().unwrap();
    let later = disk.copy();
    vault.close().unwrap();
    drop(vault);
    machine.refuses(&early, None);
    machine.refuses(&later, None);
    check_all(&machine.open(&disk, None).unwrap(), 2);
}

#[test]
fn older_roots_alone_are_refused_and_cost_nothing_when_accepted() {
    let (disk, machine) = (made(), Machine::default());
    machine.lives(&disk, 10);
    let old = disk.copy();
    machine.lives(&disk, 11);
    machine.lives(&disk, 12);
    for name in ["root.a", "root.b"] {
        overwrite(&disk, name, &read_file(&old, name, 4096).unwrap());
    }
    let (_, found) = machine.refuses(&disk, None);
    // The index and the log are as they were, and know better than the roots.
    check_all(&machine.open(&disk, Some(found)).unwrap(), 3);
}

#[test]
fn one_older_root_is_only_a_damaged_copy() {
    for name in ["root.a", "root.b"] {
        let (disk, machine) = (made(), Machine::default());
        machine.lives(&disk, 10);
        let old = read_file(&disk, name, 4096).unwrap();
        machine.lives(&disk, 11);
        overwrite(&disk, name, &old);
        check_all(&machine.open(&disk, None).unwrap(), 2);
    }
}

#[test]
fn an_older_index_alone_is_rebuilt_from_the_log() {
    let (disk, machine) = (made(), Machine::default());
    machine.lives(&disk, 10);
    let index = format!("index/{}", disk.list("index").unwrap()[0]);
    let old = read_file(&disk, &index, 1 << 30).unwrap();
    machine.lives(&disk, 11);
    machine.lives(&disk, 12);
    overwrite(&disk, &index, &old);
    check_all(&machine.open(&disk, None).unwrap(), 3);
}

#[test]
fn an_older_log_without_roots_is_refused_when_it_is_mended() {
    let (disk, machine) = (made(), Machine::default());
    machine.lives(&disk, 10);
    let old = disk.copy();
    machine.lives(&disk, 11);
    let mending = OpenOptions { rebuild_roots: true, ..OpenOptions::default() };
    let mended = |disk: &MemoryBacking, accepted| {
        disk.remove("root.a").unwrap();
        disk.remove("root.b").unwrap();
        machine.open_in(disk, accepted, &mending, Arc::new(RealWorld::default()))
    };
    let refused = mended(&old.copy(), None).map(|_| ()).unwrap_err();
    assert!(matches!(refused, OpenFault::RolledBack { to: Generation(0), .. }), "{refused}");
    assert!(has(&mended(&old, Some(0)).unwrap(), 10));
    // The newest log is whole, and its new root is above the pins.
    let machine = Machine::default();
    let disk = made();
    machine.lives(&disk, 10);
    disk.remove("root.a").unwrap();
    disk.remove("root.b").unwrap();
    drop(machine.open_in(&disk, None, &mending, Arc::new(RealWorld::default())).unwrap());
    check_all(&machine.open(&disk, None).unwrap(), 1);
}

#[test]
fn what_a_crash_leaves_is_never_refused() {
    // The pins as they were before, between and after the roots of a mount: a crash leaves pins of any earlier moment, for
    // each is written after its root.
    let (disk, machine) = (made(), Machine::default());
    machine.lives(&disk, 10);
    let mut earlier = vec![Machine::default(), machine.copy()];
    let vault = machine.open(&disk, None).unwrap();
    earlier.push(machine.copy());
    for ino in 11..14 {
        write(&vault, ino);
        vault.checkpoint().unwrap();
        earlier.push(machine.copy());
        for (n, pins) in earlier.iter().enumerate() {
            let crashed = disk.crash(|_, _| false);
            let opened = pins.copy().open(&crashed, None).unwrap_or_else(|e| panic!("pins {n}, file {ino}: {e}"));
            check_all(&opened, ino - 9);
        }
    }
}

#[test]
fn no_power_cut_leaves_a_pin_ahead_of_its_vault() {
    // Both lie on one disk here, so that every cut falls on both at one moment.
    let disk = made();
    disk.make_dir("pins").unwrap();
    disk.sync_dir("").unwrap();
    let store = |disk: &MemoryBacking| PinStore::alone(Arc::new(Below(disk.clone())), "pins");
    let open = |disk: &MemoryBacking| {
        let locked = lock(Arc::new(disk.clone())).unwrap().remembered(vec![store(disk)], None);
        locked.open(&unlock(), &OpenOptions::default(), Arc::new(RealWorld::default()))
    };
    disk.record();
    let vault = open(&disk).unwrap();
    write(&vault, 10);
    vault.checkpoint().unwrap();
    vault.close().unwrap();
    drop(vault);
    let (mut cuts, mut tried) = (disk.cuts(), 0);
    loop {
        let about =
            cuts.calls().get(cuts.cut()).is_none_or(|next| next.path.contains("pin") || next.path.contains("root"));
        for coins in 0..if about { 6 } else { 1 } {
            let after = cuts.image(&mut |_| strongroom::backing::Fate::Torn { unit_bytes: 512, coins });
            tried += 1;
            if let Err(fault) = open(&after) {
                panic!("cut {}, coins {coins}: {fault}", cuts.cut());
            }
        }
        if !cuts.advance() {
            break;
        }
    }
    assert!(tried > 100, "{tried} cuts");
}

/// The directory `pins` of a disk.
struct Below(MemoryBacking);

impl Below {
    fn path(path: &str) -> String {
        if path.is_empty() { "pins".to_owned() } else { format!("pins/{path}") }
    }
}

impl Backing for Below {
    fn open(&self, path: &str, how: Open, cache: Cache) -> std::io::Result<Arc<dyn strongroom::backing::BackingFile>> {
        self.0.open(&Below::path(path), how, cache)
    }
    fn make_dir(&self, path: &str) -> std::io::Result<()> {
        self.0.make_dir(&Below::path(path))
    }
    fn list(&self, path: &str) -> std::io::Result<Vec<String>> {
        self.0.list(&Below::path(path))
    }
    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.0.rename(&Below::path(from), &Below::path(to))
    }
    fn remove(&self, path: &str) -> std::io::Result<()> {
        self.0.remove(&Below::path(path))
    }
    fn sync_dir(&self, path: &str) -> std::io::Result<()> {
        self.0.sync_dir(&Below::path(path))
    }
    fn space(&self) -> std::io::Result<Option<strongroom::backing::Space>> {
        self.0.space()
    }
    fn lock(&self, path: &str) -> std::io::Result<Box<dyn Send + Sync>> {
        self.0.lock(&Below::path(path))
    }
}

#[test]
fn one_pin_is_enough_and_no_pin_is_the_first_use() {
    let (disk, machine) = (made(), Machine::default());
    machine.lives(&disk, 10);
    let old = disk.copy();
    machine.lives(&disk, 11);
    let nowhere = MemoryBacking::default();
    Machine { emergency: nowhere.copy(), ..machine.copy() }.refuses(&old, None);
    Machine { state: nowhere.copy(), ..machine.copy() }.refuses(&old, None);
    assert!(has(&Machine::default().open(&old.copy(), None).unwrap(), 10), "another machine cannot know");
    // A pin that does not hold keeps nobody out, and is put right.
    let spoiled = machine.copy();
    for (place, name) in
        [(&spoiled.state, spoiled.state.list("").unwrap().remove(0)), (&spoiled.emergency, "pin".into())]
    {
        overwrite(place, &name, b"strongroom pin 1\n");
    }
    drop(spoiled.open(&disk, None).unwrap());
    spoiled.refuses(&old, None);
}

#[test]
fn looking_leaves_pins_and_vault_as_they_are_and_sees_the_older_copy() {
    let (disk, machine) = (made(), Machine::default());
    machine.lives(&disk, 10);
    let old = disk.copy();
    machine.lives(&disk, 11);
    let look = |disk: &MemoryBacking| {
        let locked = lock(Arc::new(disk.clone())).unwrap().shadow().remembered(machine.pins(), None);
        strongroom::check::check_locked(
            locked,
            &unlock(),
            &(Arc::new(RealWorld::default()) as Arc<dyn World>),
            strongroom::check::Share::Nothing,
            &|_, _| {},
        )
    };
    let pins = read_file(&machine.emergency, "pin", 4096).unwrap();
    // What is found is not the question: these files have no names.
    assert!(look(&disk).is_ok());
    assert!(matches!(look(&old), Err(OpenFault::RolledBack { .. })));
    assert_eq!(read_file(&machine.emergency, "pin", 4096).unwrap(), pins);
    check_all(&machine.open(&disk, None).unwrap(), 2);
}

/// Entropy that begins anew with every mount, as after a virtual machine was put back.
struct Repeating(AtomicU8);

impl World for Repeating {
    fn now(&self) -> Time {
        Time::default()
    }
    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
    fn fill(&self, out: &mut [u8]) {
        out.fill_with(|| self.0.fetch_add(1, Relaxed));
    }
}

/// What a frame's nonce is used under, and the nonce: lease, segment, salt; slot.
type Nonce = (u64, u64, [u8; 16], Slot);

/// Every frame of a vault, by its nonce; the tag stands for what was encrypted.
fn frames(disk: &MemoryBacking) -> HashMap<Nonce, [u8; 16]> {
    let text = read_file(disk, HEADER, 1 << 16).unwrap();
    let (header, master) = open_header(&text, &unlock()).unwrap();
    let mut all = HashMap::new();
    for id in disk.list("segments").unwrap().iter().filter_map(|name| parse_file_name(name)) {
        let file = disk.open(&path(id), Open::Read, Cache::Direct).unwrap();
        let mut walk = Walk::new(file, id, header.suite, header.vault);
        let keys = VaultKeys::of(&header, &master).unwrap();
        while let Some(group) = walk.next(&keys).unwrap() {
            for frame in &group.frames {
                let nonce = (group.header.epoch.0, id.0, group.header.salt, frame.entry.slot);
                assert!(all.insert(nonce, walk.tag(frame)).is_none(), "a nonce twice in one history: {nonce:?}");
            }
        }
    }
    all
}

/// Nonces that two histories used for different things.
fn used_twice(one: &MemoryBacking, other: &MemoryBacking) -> usize {
    let (one, other) = (frames(one), frames(other));
    assert!(one.len() > 10 && other.len() > 10);
    one.iter().filter(|(nonce, tag)| other.get(*nonce).is_some_and(|t| t != *tag)).count()
}

#[test]
fn no_nonce_is_used_twice_over_both_histories() {
    // With `broken` entropy the salts repeat: without pins the harness must then see nonces repeat. With pins the lease alone
    // keeps the histories apart.
    for (broken, remembers) in [(false, true), (false, false), (true, true), (true, false)] {
        let world = || -> Arc<dyn World> {
            if broken { Arc::new(Repeating(AtomicU8::new(9))) } else { Arc::new(RealWorld::default()) }
        };
        let (disk, machine) = (made(), Machine::default());
        let mut accepted = None;
        let lives = |disk: &MemoryBacking, ino: u64, accepted: Option<u64>| {
            let machine = if remembers { machine.clone() } else { Machine::default() };
            let vault = machine.open_in(disk, accepted, &OpenOptions::default(), world()).unwrap();
            for n in 0..4 {
                write(&vault, ino + n);
                vault.sync_wait().unwrap();
            }
            vault.close().unwrap();
        };
        lives(&disk, 10, None);
        let other = disk.copy();
        lives(&disk, 20, None);
        lives(&disk, 30, None);
        if remembers {
            accepted = Some(machine.refuses(&other, None).1);
        }
        lives(&other, 40, accepted);
        lives(&other, 50, None);
        let twice = used_twice(&disk, &other);
        match (broken, remembers) {
            (true, false) => assert!(twice > 0, "the harness sees nothing"),
            _ => assert_eq!(twice, 0, "broken entropy: {broken}, pins: {remembers}"),
        }
    }
}

#[test]
fn the_emergency_directory_remembers_too() {
    let (disk, away) = (made(), MemoryBacking::default());
    let reach = away.clone();
    let emergency =
        EmergencyDir { path: "/e".to_owned(), reach: Arc::new(move |_| Ok(Arc::new(reach.clone()))), is_shadow: false };
    let armed = OpenOptions { emergency: Some(emergency), ..OpenOptions::default() };
    let open = |disk: &MemoryBacking, accepted: Option<u64>| {
        let locked = lock(Arc::new(disk.clone())).unwrap().remembered(Vec::new(), accepted.map(Generation));
        locked.open(&unlock(), &armed, Arc::new(RealWorld::default()))
    };
    let lives = |ino| {
        let vault = open(&disk, None).unwrap();
        write(&vault, ino);
        vault.close().unwrap();
    };
    lives(10);
    let old = disk.copy();
    lives(11);
    assert!(away.list("").unwrap().iter().any(|name| name == "pin"));
    let refused = open(&old, None).map(|_| ()).unwrap_err();
    let OpenFault::RolledBack { to, .. } = refused else { panic!("{refused}") };
    assert!(has(&open(&old, Some(to.0)).unwrap(), 10));
}
