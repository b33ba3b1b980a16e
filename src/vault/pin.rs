//! Pins: what is remembered outside the vault of how far it had come, so that an older copy in its place is noticed.
//!
//! Promise: a pin is written after the root that it remembers is durable, so no crash leaves a pin ahead of its vault; a vault
//! that is behind a pin, or of another history, is not opened unless its generation was named. What is opened then goes on
//! above every pin in generation and lease, so that no history uses what another one did. Called by: `open`, `checkpoint`.
//! On failure: `RolledBack`. A pin that is missing is trust on first use; one that does not hold, cannot be read or cannot be
//! written is said, and keeps nobody out: whoever can spoil it could as well remove it.

use super::OpenFault;
use super::header_file::HEADER;
use super::place::EmergencyDir;
use crate::backing::{Backing, read_file, replace_file};
use crate::base::id::{CommitSeq, Generation, VaultId};
use crate::base::lock::Held;
use crate::format::header::HEADER_BYTES_MAX;
use crate::format::pin::{Moved, PIN_BYTES_MAX, Pin, parse_moved};
use crate::format::root::Root;
use crate::seal::{VaultKeys, moved_lines, open_pin, says_moved, write_pins};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

/// A place for a vault's pin: a directory that is none of the vault's.
#[derive(Clone)]
pub struct PinStore {
    backing: Arc<dyn Backing>,
    /// Whether the directory is this vault's alone.
    own: bool,
    /// Whether it may only be looked at.
    sealed: bool,
    /// What a person calls it.
    shown: String,
}

impl PinStore {
    /// In a directory that holds the pins of many vaults: `<vault id>.pin`.
    #[must_use]
    pub fn among_others(backing: Arc<dyn Backing>, shown: impl Into<String>) -> PinStore {
        PinStore { backing, own: false, sealed: false, shown: shown.into() }
    }

    /// In a directory for this vault alone: `pin`.
    #[must_use]
    pub fn alone(backing: Arc<dyn Backing>, shown: impl Into<String>) -> PinStore {
        PinStore { backing, own: true, sealed: false, shown: shown.into() }
    }

    fn name(&self, vault: VaultId) -> String {
        if self.own { "pin".to_owned() } else { format!("{vault}.pin") }
    }
}

impl fmt::Debug for PinStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinStore({})", self.shown)
    }
}

/// What is remembered of a vault that is to be opened.
#[derive(Default)]
pub struct Remembered {
    /// Where, all of them outside the vault.
    pub pins: Vec<PinStore>,
    /// Open the vault although it is behind a pin, if this is its generation.
    pub accepted: Option<Generation>,
    /// Open the vault although it is behind a pin, whatever its generation: nothing will be written to it.
    pub only_looks: bool,
}

impl Remembered {
    /// The same, and in the vault's part of the emergency directory; one that cannot be reached now remembers nothing until
    /// the next mount.
    pub fn and_in(mut self, emergency: Option<&EmergencyDir>, vault: VaultId) -> Remembered {
        let reached = emergency.and_then(|dir| (dir.reach)(vault).ok().map(|backing| (dir, backing)));
        self.pins.extend(reached.map(|(dir, backing)| PinStore::alone(backing, dir.path.clone())));
        self
    }

    /// The same, only to be looked at: for whoever leaves the vault as it is.
    pub fn read_only(self) -> Remembered {
        let seal = |store| PinStore { sealed: true, ..store };
        Remembered { pins: self.pins.into_iter().map(seal).collect(), ..self }
    }
}

/// A place, and what of it is to stay.
struct Kept {
    store: PinStore,
    /// Whether the last write failed.
    failed: AtomicBool,
    /// Its lines about keys of before: only who had such a key could make one, so they are carried along.
    moved: Mutex<Vec<Moved>>,
}

/// The pins of an open vault.
pub struct Pins {
    stores: Vec<Kept>,
    keys: Mutex<VaultKeys>,
    vault: VaultId,
    accepted: Option<Generation>,
    /// Whether one says that the vault has moved on from the key that it is being opened with.
    moved_on: bool,
    /// Whether an older copy is shown rather than refused.
    only_looks: bool,
    /// What they held when the vault was opened, and where.
    held: Vec<(Pin, String)>,
    /// What there is to say of an older copy that is shown all the same.
    older: OnceLock<String>,
    /// The generation of the newest root that is durable.
    newest: AtomicU64,
}

impl Pins {
    /// Reads all pins; those that do not hold are said.
    pub fn read(remembered: Remembered, keys: &VaultKeys, vault: VaultId) -> Pins {
        let mut moved_on = false;
        let mut read = |store: &PinStore| match read_file(&*store.backing, &store.name(vault), PIN_BYTES_MAX) {
            Ok(text) => {
                // A rekey that is not finished, or was finished elsewhere: what was remembered under an old key still counts.
                let known = std::iter::once(keys.current()).chain(keys.old().map(|(_, key)| key));
                let pin = known.filter_map(|key| open_pin(&text, vault, key).ok()).next();
                let moved = parse_moved(&text).unwrap_or_default();
                let behind = moved.iter().any(|line| says_moved(line, vault, keys.number(), keys.current()));
                moved_on |= behind;
                if pin.is_none() && !behind {
                    log::warn!(
                        "the pin in {} does not hold: whether the vault is an older copy is not known",
                        store.shown
                    );
                }
                (pin, moved)
            }
            Err(e) => {
                // The first use of this vault here, unless it cannot be told.
                if e.kind() != io::ErrorKind::NotFound {
                    log::warn!("the pin in {} cannot be read: {e}", store.shown);
                }
                (None, Vec::new())
            }
        };
        let Remembered { pins, accepted, only_looks } = remembered;
        let (mut stores, mut held) = (Vec::new(), Vec::new());
        for store in pins {
            let (pin, moved) = read(&store);
            held.extend(pin.map(|pin| (pin, store.shown.clone())));
            stores.push(Kept { store, failed: AtomicBool::new(false), moved: Mutex::new(moved) });
        }
        let (keys, older, newest) = (Mutex::new(keys.clone()), OnceLock::new(), AtomicU64::new(0));
        Pins { stores, keys, vault, accepted, moved_on, only_looks, held, older, newest }
    }

    /// From now on what is remembered is written under these keys.
    pub fn go_on_under(&self, keys: &VaultKeys) {
        let mut now = self.keys.held();
        for kept in &self.stores {
            // While their keys are at hand.
            let mut moved = kept.moved.held();
            *moved = moved_lines(self.vault, &now, &moved);
        }
        *now = keys.clone();
    }

    /// Refuses a root that is behind a pin, or of another history, unless it was accepted.
    pub fn judge(&self, root: &Root) -> Result<(), OpenFault> {
        if self.moved_on && self.accepted != Some(root.generation) {
            if self.only_looks {
                self.show_older(format!("generation {}, of before a rekey", root.generation));
                return Ok(());
            }
            return Err(OpenFault::OlderKey { header: self.keys.held().number(), found: Some(root.generation) });
        }
        // One root was written under each number: the same number with anything else in it is another vault's life.
        let (commit, epoch) = (root.covered.seq, root.epoch);
        let same = |pin: &Pin| pin.epoch == epoch && pin.commit == commit;
        let behind = |(pin, _): &&(Pin, String)| {
            root.generation < pin.generation || root.generation == pin.generation && !same(pin)
        };
        let Some(pin) = self.held.iter().filter(behind).max_by_key(|(pin, _)| pin.generation) else { return Ok(()) };
        self.accept(pin, root.generation)
    }

    /// Raises a root that is accepted, or was made anew, to what was reached before: what follows is above every history.
    pub fn raise(&self, root: &mut Root) {
        for (pin, _) in &self.held {
            root.generation = root.generation.max(pin.generation);
            root.epoch = root.epoch.max(pin.epoch);
        }
    }

    /// For a root made anew: refuses a log that ends before what was once covered. Its generation counts as 0.
    pub fn judge_log(&self, newest: CommitSeq) -> Result<(), OpenFault> {
        if self.moved_on && self.accepted != Some(Generation(0)) {
            return Err(OpenFault::OlderKey { header: self.keys.held().number(), found: Some(Generation(0)) });
        }
        match self.held.iter().filter(|(pin, _)| pin.commit > newest).max_by_key(|(pin, _)| pin.generation) {
            Some(pin) => self.accept(pin, Generation(0)),
            None => Ok(()),
        }
    }

    fn accept(&self, (pin, known_in): &(Pin, String), found: Generation) -> Result<(), OpenFault> {
        let from = pin.generation;
        if self.accepted == Some(found) {
            log::warn!(
                "an older copy of the vault takes its place: generation {found}; {from} is remembered in {known_in}"
            );
            return Ok(());
        }
        if self.only_looks {
            self.show_older(match from == found {
                true => format!("generation {found} of another history than the one remembered in {known_in}"),
                false => format!("generation {found}; generation {from} is remembered in {known_in}"),
            });
            return Ok(());
        }
        Err(OpenFault::RolledBack { from, to: found, known_in: known_in.clone() })
    }

    /// Reports that what is shown is not the newest.
    fn show_older(&self, which: String) {
        log::warn!("what is shown is an older state of the vault: {which}");
        let _ = self.older.set(which);
    }

    /// Which older state is shown, if it is one.
    pub fn older(&self) -> Option<&str> {
        self.older.get().map(String::as_str)
    }

    /// Remembers a root that is durable now. A pin that cannot be written stays behind, which is said once and harms nobody.
    pub fn remember(&self, root: &Root) {
        self.newest.fetch_max(root.generation.0, SeqCst);
        let pin = Pin { vault: self.vault, generation: root.generation, epoch: root.epoch, commit: root.covered.seq };
        let keys = self.keys.held();
        for Kept { store, failed, moved } in self.stores.iter().filter(|kept| !kept.store.sealed) {
            let text = write_pins(&pin, &keys, &moved.held());
            match replace_file(&*store.backing, "", &store.name(self.vault), &text) {
                Ok(()) => failed.store(false, Relaxed),
                Err(e) => {
                    if !failed.swap(true, Relaxed) {
                        log::warn!("the pin in {} cannot be written: {e}", store.shown);
                    }
                }
            }
        }
    }

    /// The generation of the newest root that this mount knows to be durable.
    pub fn newest(&self) -> Generation {
        Generation(self.newest.load(SeqCst))
    }

    /// Keeps the header that is in force beside the pins, where the place is this vault's alone: whoever loses both of its files
    /// has it there (`key import-header`). One that cannot be written is said, and harms nobody.
    pub fn keep_header(&self, text: &[u8]) {
        for Kept { store, .. } in self.stores.iter().filter(|kept| kept.store.own && !kept.store.sealed) {
            let kept = read_file(&*store.backing, HEADER, HEADER_BYTES_MAX);
            if kept.is_ok_and(|kept| kept == text) {
                continue;
            }
            if let Err(e) = replace_file(&*store.backing, "", HEADER, text) {
                log::warn!("the copy of the header in {} cannot be written: {e}", store.shown);
            }
        }
    }

    /// Where they are and whether the last write to each succeeded, for a person.
    pub fn shown(&self) -> String {
        if self.stores.is_empty() {
            return "none".to_owned();
        }
        let one = |kept: &Kept| match kept.failed.load(Relaxed) {
            true => format!("{} (not written)", kept.store.shown),
            false => kept.store.shown.clone(),
        };
        self.stores.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::{Fate, MemoryBacking};
    use crate::base::id::Epoch;
    use crate::base::secret::Secret;
    use crate::format::leases::Leases;
    use crate::format::segment::LogPosition;
    use crate::seal::MasterKey;

    const VAULT: VaultId = VaultId([3; 16]);

    fn keys() -> VaultKeys {
        VaultKeys::first(MasterKey::from_secret(Secret::from([4; 32])))
    }

    fn root(generation: u64, epoch: u64, commit: u64) -> Root {
        let covered = LogPosition { seq: CommitSeq(commit), chain: [1; 32] };
        let (generation, epoch, other_leases) = (Generation(generation), Epoch(epoch), Leases::default());
        let emergency = String::new();
        Root { generation, epoch, covered, index_file: 1, clean: true, header: None, emergency, other_leases }
    }

    fn pins(places: &[&MemoryBacking], accept: Option<u64>) -> Pins {
        let store = |place: &&MemoryBacking| PinStore::among_others(Arc::new((*place).clone()), "a place");
        let (pins, accepted) = (places.iter().map(store).collect(), accept.map(Generation));
        Pins::read(Remembered { pins, accepted, only_looks: false }, &keys(), VAULT)
    }

    fn judged(pins: &Pins, mut root: Root) -> Result<(u64, u64), (u64, u64)> {
        match pins.judge(&root) {
            Ok(()) => {
                pins.raise(&mut root);
                Ok((root.generation.0, root.epoch.0))
            }
            Err(OpenFault::RolledBack { from, to, .. }) => Err((from.0, to.0)),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn only_what_is_not_behind_its_pin_is_opened() {
        let place = MemoryBacking::default();
        assert_eq!(judged(&pins(&[&place], None), root(1, 1, 0)), Ok((1, 1)), "first use");
        pins(&[&place], None).remember(&root(10, 3, 40));
        for (generation, epoch, commit, fine) in [
            (10, 3, 40, true),
            (11, 3, 40, true),
            (11, 4, 50, true),
            (9, 3, 40, false),
            (9, 9, 99, false),
            (10, 2, 40, false),
            (10, 4, 40, false),
            (10, 3, 39, false),
            (10, 3, 41, false),
        ] {
            let want = if fine { Ok((generation, epoch)) } else { Err((10, generation)) };
            assert_eq!(judged(&pins(&[&place], None), root(generation, epoch, commit)), want);
        }
    }

    #[test]
    fn an_equal_generation_is_never_called_older() {
        let place = MemoryBacking::default();
        pins(&[&place], None).remember(&root(10, 3, 40));
        let said = |found| pins(&[&place], None).judge(&found).unwrap_err().to_string();
        let (older, other) = (said(root(9, 3, 40)), said(root(10, 4, 40)));
        assert!(older.contains("older copy") && older.contains("generation 9, and generation 10"), "{older}");
        assert!(!other.contains("older") && other.matches("generation 10").count() == 1, "{other}");
        for text in [older, other] {
            assert!(text.find("-o ro") < text.find("--accept-rollback=") && text.contains("a place"), "{text}");
        }
    }

    #[test]
    fn who_only_looks_is_told_of_an_older_copy_and_not_refused() {
        let place = MemoryBacking::default();
        pins(&[&place], None).remember(&root(10, 3, 40));
        let stores = vec![PinStore::among_others(Arc::new(place.clone()), "a place")];
        let looking = Remembered { pins: stores, accepted: None, only_looks: true }.read_only();
        let looking = Pins::read(looking, &keys(), VAULT);
        looking.judge(&root(9, 3, 40)).expect("it is shown");
        assert_eq!(looking.older(), Some("generation 9; generation 10 is remembered in a place"));
        let newest = Pins::read(Remembered { only_looks: true, ..Remembered::default() }, &keys(), VAULT);
        newest.judge(&root(9, 3, 40)).unwrap();
        assert_eq!(newest.older(), None);
    }

    #[test]
    fn acceptance_names_what_it_accepts_and_goes_on_above_every_pin() {
        let (here, there) = (MemoryBacking::default(), MemoryBacking::default());
        pins(&[&here], None).remember(&root(10, 3, 40));
        pins(&[&there], None).remember(&root(12, 2, 50));
        let both = [&here, &there];
        for wrong in [None, Some(8), Some(10), Some(12)] {
            assert_eq!(judged(&pins(&both, wrong), root(9, 1, 30)), Err((12, 9)), "{wrong:?}");
        }
        assert_eq!(judged(&pins(&both, Some(9)), root(9, 1, 30)), Ok((12, 3)));
        assert_eq!(judged(&pins(&both, Some(9)), root(13, 4, 60)), Ok((13, 4)), "nothing to accept");
    }

    #[test]
    fn one_pin_of_several_is_enough() {
        let places = [(); 3].map(|()| MemoryBacking::default());
        let (here, rubble, empty) = (&places[0], &places[1], &places[2]);
        pins(&[here], None).remember(&root(10, 3, 40));
        let name = format!("{VAULT}.pin");
        for text in [&b""[..], b"strongroom pin 1\n", &[0xff; 600]] {
            replace_file(rubble, "", &name, text).unwrap();
            assert_eq!(judged(&pins(&[rubble, empty], None), root(1, 1, 1)), Ok((1, 1)), "damaged is not refused");
            assert_eq!(judged(&pins(&[empty, rubble, here], None), root(9, 3, 40)), Err((10, 9)));
        }
        let all = pins(&[here, rubble, empty], None);
        all.remember(&root(11, 4, 41));
        for place in &places {
            assert_eq!(judged(&pins(&[place], None), root(10, 3, 40)), Err((11, 10)), "all were rewritten");
        }
    }

    #[test]
    fn a_log_that_ends_before_what_was_covered_is_an_older_one() {
        let place = MemoryBacking::default();
        pins(&[&place], None).remember(&root(10, 3, 40));
        assert!(pins(&[&place], None).judge_log(CommitSeq(40)).is_ok());
        let refused = pins(&[&place], Some(10)).judge_log(CommitSeq(39));
        assert!(matches!(refused, Err(OpenFault::RolledBack { from: Generation(10), to: Generation(0), .. })));
        assert!(pins(&[&place], Some(0)).judge_log(CommitSeq(39)).is_ok());
    }

    #[test]
    fn a_place_that_refuses_keeps_nobody_out() {
        let place = MemoryBacking::default();
        let kept = pins(&[&place], None);
        kept.remember(&root(10, 3, 40));
        place.fail_next_writes(1);
        kept.remember(&root(11, 3, 41));
        assert_eq!(kept.shown(), "a place (not written)");
        assert_eq!(judged(&pins(&[&place], None), root(11, 3, 41)), Ok((11, 3)), "the pin is behind, and whole");
        kept.remember(&root(12, 3, 42));
        assert_eq!(kept.shown(), "a place");
        assert_eq!(judged(&pins(&[&place], None), root(11, 3, 41)), Err((12, 11)));
        let pins = vec![PinStore::alone(Arc::new(place.clone()), "x")];
        let looking = Remembered { pins, accepted: None, only_looks: false }.read_only();
        Pins::read(looking, &keys(), VAULT).remember(&root(20, 9, 99));
        assert_eq!(place.list("").unwrap(), [format!("{VAULT}.pin")], "only looked at");
    }

    #[test]
    fn a_power_cut_while_a_pin_is_written_leaves_the_old_or_the_new_one() {
        let place = MemoryBacking::default();
        pins(&[&place], None).remember(&root(10, 3, 40));
        place.record();
        pins(&[&place], None).remember(&root(11, 3, 41));
        let mut cuts = place.cuts();
        loop {
            for coins in 0..10 {
                let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
                let pin = pins(&[&after], None).held.pop().expect("one of the two");
                assert!(matches!((pin.0.generation.0, pin.0.commit.0), (10, 40) | (11, 41)), "{pin:?}");
            }
            if !cuts.advance() {
                break;
            }
        }
    }

    #[test]
    fn a_power_cut_while_the_copy_of_the_header_is_written_leaves_the_old_or_the_new_one() {
        let place = MemoryBacking::default();
        let alone = |place: &MemoryBacking| {
            let pins = vec![PinStore::alone(Arc::new(place.clone()), "a place")];
            Pins::read(Remembered { pins, accepted: None, only_looks: false }, &keys(), VAULT)
        };
        let texts = [vec![b'o'; 700], vec![b'n'; 900]];
        alone(&place).keep_header(&texts[0]);
        pins(&[&place], None).keep_header(&texts[1]);
        let kept = |place: &MemoryBacking| read_file(place, HEADER, HEADER_BYTES_MAX).expect("one is there");
        assert_eq!(kept(&place), texts[0], "not where the pins of many vaults lie");
        place.record();
        alone(&place).keep_header(&texts[1]);
        let calls = place.calls();
        alone(&place).keep_header(&texts[1]);
        assert_eq!(
            (kept(&place), place.calls()),
            (texts[1].clone(), calls),
            "and what is there already is not written"
        );
        let (mut cuts, mut seen) = (place.cuts(), [0, 0]);
        loop {
            for coins in 0..10 {
                let found = kept(&cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins }));
                seen[texts.iter().position(|text| *text == found).expect("one of the two, whole")] += 1;
            }
            if !cuts.advance() {
                break;
            }
        }
        assert!(seen.iter().all(|n| *n > 0), "{seen:?}");
    }
}
