//! Does the steps of a program on the vault and on the reference, and notes when each began and what was acknowledged.
//!
//! Promise: without planted faults every step does what the reference says; with them, what a step refuses it left undone.

use super::judge::History;
use super::place::{Manner, Place};
use super::program::Step;
use super::tree::Tree;
use super::world::Simulated;
use std::sync::Arc;
use strongroom::backing::MemoryBacking;
use strongroom::base::id::Ino;

/// Does steps on a vault and on the reference.
pub struct Player {
    pub disk: MemoryBacking,
    pub world: Arc<Simulated>,
    manner: Manner,
    place: Option<Place>,
    pub tree: Tree,
    held: Option<Ino>,
    pub history: History,
    /// Whether the disk has faults, so that errors are not the vault's.
    pub faulty: bool,
    told: bool,
    /// Whether a sync was acknowledged, and with it the root directory is durable.
    rooted: bool,
}

impl Player {
    /// Goes on in an open vault that holds this tree.
    pub fn new(disk: &MemoryBacking, world: &Arc<Simulated>, manner: Manner, place: Place, mut tree: Tree) -> Player {
        place.show_times(&mut tree);
        let mut history = History::default();
        history.push(&tree, 0, "the beginning".to_owned());
        let (disk, world) = (disk.clone(), world.clone());
        let told = super::from_environment("STRONGROOM_SIM_TRACE").is_some();
        Player {
            disk,
            world,
            manner,
            place: Some(place),
            tree,
            held: None,
            history,
            faulty: false,
            told,
            rooted: false,
        }
    }

    pub fn place(&self) -> &Place {
        self.place.as_ref().expect("the vault is open between steps")
    }

    pub fn held(&self) -> Option<Ino> {
        self.held
    }

    /// Does one step; `Err` says what the vault did wrong. With `STRONGROOM_SIM_TRACE=1` it says what it does.
    pub fn step(&mut self, step: &Step) -> Result<(), String> {
        let did = self.attempt(step);
        if let Some(place) = &self.place {
            // The vault works on for a while, or not.
            for _ in 0..self.world.choose(8) {
                place.vault.step();
            }
        }
        if self.told {
            let (calls, struck) = (self.disk.calls(), self.disk.struck());
            let newest = self.history.newest();
            eprintln!(
                "call {calls}, {struck} struck, state {newest}: {step:?} {}",
                did.as_ref().err().map_or("", |e| e)
            );
        }
        did.map(|_| ())
    }

    fn attempt(&mut self, step: &Step) -> Result<(), String> {
        let newest = self.history.newest();
        if newest % 3 == 1 && self.manner.clean_bytes.is_some() {
            self.place().vault.clean();
        }
        let synced = match step {
            // Some syncs, and every second checkpoint, with a snapshot behind them.
            Step::Fsync if newest % 4 == 3 => self.place().vault.snapshot().map_err(|e| format!("snapshot: {e}")),
            Step::Fsync => self.place().fs.sync_wait().map_err(|e| format!("fsync: {e:?}")),
            Step::Checkpoint if newest % 2 == 1 => self.place().vault.snapshot().map_err(|e| format!("snapshot: {e}")),
            Step::Checkpoint => self.place().vault.checkpoint().map_err(|e| format!("checkpoint: {e}")),
            Step::Reopen => self.reopen(),
            Step::Kill => return self.kill(),
            Step::SyncSoon => {
                let (acknowledged, disk) = (self.history.acknowledged.clone(), self.disk.clone());
                self.place().fs.sync(Box::new(move |result| {
                    if result.is_ok() {
                        acknowledged.lock().unwrap().push((newest, disk.calls()));
                    }
                }));
                return Ok(());
            }
            Step::Wait(time) => {
                self.world.pass(*time);
                while self.place().vault.step() {}
                return Ok(());
            }
            _ => return self.change(step),
        };
        match synced {
            Ok(()) => {
                self.rooted = true;
                self.history.acknowledge(newest, self.disk.calls());
            }
            Err(e) if self.faulty && !matches!(step, Step::Reopen) => self.tell(&e),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    pub fn tell(&self, what: &str) {
        if self.told {
            eprintln!("    {what}");
        }
    }

    fn change(&mut self, step: &Step) -> Result<(), String> {
        let begun = self.disk.calls();
        let did = self.place().perform(step, &self.tree, self.held);
        let mut tree = self.tree.clone();
        let made = did.unwrap_or(None);
        if self.faulty && did.is_err_and(|e| [libc::EIO, libc::ENOSPC, libc::EROFS].contains(&e)) {
            // Refused, and so left undone.
            self.tell(&format!("{did:?}"));
            return Ok(());
        }
        let should = match did {
            // What was not made has no number; only the refusal counts.
            Err(_) if matches!(step, Step::Create(_) | Step::Mkdir(_) | Step::Symlink(..)) => {
                tree.step(step, Some(Ino(u64::MAX)), self.held)
            }
            _ => tree.step(step, made, self.held),
        };
        let did = did.map(|_| ());
        if did != should {
            return Err(format!("{step:?} gave {did:?}, and should give {should:?}"));
        }
        if did.is_ok() {
            match step {
                Step::Hold(_) => self.held = made,
                Step::Release => self.held = None,
                _ => {}
            }
            tree.bury(self.held);
            self.place().show_times(&mut tree);
            self.tree = tree;
            if step.changes() {
                self.history.push(&self.tree, begun, format!("{step:?}"));
            }
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), String> {
        let place = self.place.take().expect("the vault is open between steps");
        if let Some(ino) = self.held.take() {
            place.fs.forget(ino, 1);
            self.tree.bury(None);
        }
        let closed = place.close();
        if closed.is_ok() {
            self.history.acknowledge(self.history.newest(), self.disk.calls());
        } else if !self.faulty {
            return closed;
        }
        self.open_again(closed.is_ok())
    }

    /// Another process takes over. What the killed one still does happens to a disk that nobody will see again.
    fn kill(&mut self) -> Result<(), String> {
        if !self.rooted {
            // A root directory that was never durable is made anew at the next opening, with other times.
            self.attempt(&Step::Fsync)?;
        }
        let disk = self.disk.fork();
        // Answers that come to the dead process count for nobody.
        self.history = self.history.copy(disk.calls());
        self.disk = disk;
        self.held = None;
        self.tree.bury(None);
        self.place().count();
        drop(self.place.take());
        self.open_again(false)
    }

    /// Opens the vault; `all` if nothing may be missing.
    fn open_again(&mut self, all: bool) -> Result<(), String> {
        let mut begun = self.disk.calls();
        let opened = match self.open() {
            Err(_) if self.faulty => {
                self.disk.lift_all();
                begun = self.disk.calls();
                self.open()
            }
            opened => opened,
        };
        let (place, found) = opened?;
        self.place = Some(place);
        if all {
            return self.same(&found);
        }
        // What was buffered and not acknowledged may be gone with the process.
        let state = self.history.judge(&found, begun)?;
        self.tree = found;
        self.history.push(&self.tree, begun, format!("opened again, with state {state}"));
        Ok(())
    }

    fn open(&self) -> Result<(Place, Tree), String> {
        let place = Place::open(&self.disk, &self.world, &self.manner).map_err(|e| format!("{e:?}"))?;
        let found = place.observe()?;
        Ok((place, found))
    }

    /// Compares all that there is with the reference.
    pub fn compare(&self) -> Result<(), String> {
        self.same(&self.place().observe()?)
    }

    fn same(&self, found: &Tree) -> Result<(), String> {
        if found.hash() == self.tree.hash() {
            return Ok(());
        }
        Err(format!("with no power cut, the tree is not as it should be:{}", self.tree.differences(found)))
    }

    /// Closes the vault, and acknowledges all if that went well.
    pub fn close(&mut self) -> Result<(), String> {
        let Some(place) = self.place.take() else { return Ok(()) };
        match place.close() {
            Ok(()) => self.history.acknowledge(self.history.newest(), self.disk.calls()),
            Err(_) if self.faulty => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}
