//! Opens the backing directory anew, by its path, when it has failed: a disk that was unplugged and plugged in again is another
//! filesystem to the kernel, and what is open on the old one stays dead.
//!
//! Promise: only this vault, as this mount left it, takes the place: its header and root open under the key, its lease is ours, its
//! root is none older than the last one that was durable, its index is the one that the last checkpoint wrote, and its lock
//! is free. Anything else is left untouched and named in the error list, once.
//! Why nothing is lost: what was durable lies on the disk, and everything later is still in its buffers (`failover`).
//! Called by: `failover` and `checkpoint`, in place of a test write. Takes: the header's lock, if it is free. On failure: the probe's error.

use super::handover::InForce;
use super::open::judge_header;
use super::place::{LOCK, Place};
use super::shared::Shared;
use super::{HeaderTexts, root};
use crate::backing::{Backing, Replaceable};
use crate::base::lock::Held;
use crate::seal::Unlock;
use std::io;
use std::sync::{Arc, Mutex};

/// Opens the vault's directory by its path, as that leads now.
pub type Reopen = Arc<dyn Fn() -> io::Result<Arc<dyn Backing>> + Send + Sync>;

/// Where the vault lies, for whoever can open it anew.
#[derive(Clone)]
pub struct HomeDir {
    /// Its path, as a person would type it.
    pub path: String,
    /// How to get at it.
    pub reopen: Reopen,
}

impl std::fmt::Debug for HomeDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HomeDir({})", self.path)
    }
}

/// The backing directory, where it can be opened anew.
pub struct Home {
    dir: HomeDir,
    backing: Arc<Replaceable>,
    /// Why it was refused last.
    refused: Mutex<String>,
}

impl Home {
    /// The directory at a path, and what stands for it in the vault.
    pub fn new(dir: HomeDir, backing: Arc<Replaceable>) -> Home {
        Home { dir, backing, refused: Mutex::default() }
    }
}

impl Shared {
    /// Makes a test write in a place. Where that fails, the backing directory is opened anew, and tried once more.
    pub fn probe(&self, place: Place) -> io::Result<()> {
        let probed = self.places.probe(place);
        let Some(home) = self.home.as_ref().filter(|_| place == Place::Primary && probed.is_err()) else {
            return probed;
        };
        match self.reopen(home) {
            Ok(true) => self.places.probe(place),
            Ok(false) => probed,
            Err(why) => {
                let said = format!("{}: {why}", home.dir.path);
                let mut refused = home.refused.held();
                if *refused != said {
                    self.stats.error(self.world.now(), said.clone());
                    *refused = said;
                }
                probed
            }
        }
    }

    /// Puts the directory that the path leads to in the place of the one that failed; false if it is still that one, is not there,
    /// or nothing can be decided now.
    fn reopen(&self, home: &Home) -> Result<bool, String> {
        // Nobody may write a root or the header meanwhile; who does so now may wait for the disk that failed.
        let Ok(in_force) = self.header.try_lock() else { return Ok(false) };
        let Ok(next) = (home.dir.reopen)() else { return Ok(false) };
        let before = home.backing.now();
        let is_same = match (next.identity(), before.identity()) {
            (Ok(Some(next)), Ok(Some(before))) => next == before,
            // What is open keeps its numbers for as long as it is open, so that they cannot be another's.
            (Ok(None), _) | (_, Ok(None)) => Arc::ptr_eq(&next, &before),
            (Err(_), _) => return Ok(false),
            (_, Err(_)) => false,
        };
        if is_same {
            return Ok(false);
        }
        if let (Ok(Some((next, _))), Ok(Some((before, _)))) = (next.identity(), before.identity())
            && next == before
        {
            // The filesystem was never away, so this is a copy, which may lack what was written after it was made.
            return Err(
                "another directory lies there now, and the vault's own was moved or removed. Unmount".to_owned()
            );
        }
        self.judge(&*next, &in_force)?;
        let lock = match next.lock(LOCK) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err("the vault is there again, but another process has it open".to_owned());
            }
            other => other.map_err(|e| format!("the vault is there again, but its lock cannot be had: {e}"))?,
        };
        home.backing.replace(next);
        if let Err(fault) = self.index.reopen() {
            home.backing.replace(before);
            return Err(format!("the vault is there again, but not its index as it was: {fault}"));
        }
        *self.lock.held() = Some(lock);
        self.segments.forget_all();
        self.reserve.look_again();
        self.space.forget();
        home.refused.held().clear();
        self.stats.event(self.world.now(), format!("{}: the vault is there again, and was opened anew", home.dir.path));
        Ok(true)
    }

    /// Says why what lies there cannot go on as this vault.
    fn judge(&self, there: &dyn Backing, in_force: &InForce) -> Result<(), String> {
        let broken = |e: io::Error| format!("what lies there now cannot be read: {e}");
        // An empty mountpoint, for instance: there is nothing to say of it.
        let Some(texts) = HeaderTexts::read(there).map_err(broken)? else {
            return Err("no vault lies there now. Mount its filesystem there again".to_owned());
        };
        let vault = self.segments.vault;
        if let Ok(claimed) = texts.shown()
            && claimed.vault != vault
        {
            let theirs = claimed.vault;
            return Err(format!("another vault lies there now ({theirs}), which is left alone. Put {vault} back"));
        }
        let keys = self.segments.keys();
        let opened = texts.open(&Unlock::Master(keys.current().clone()));
        let opened =
            opened.map_err(|fault| format!("the header that lies there now is not the one in force: {fault}"))?;
        let known = self.root.held().clone();
        let older = "an older copy of the vault lies there now, which is left alone. Put back the one that was mounted";
        let is_newer = opened.header.revision > in_force.header().revision && in_force.is_shown();
        if judge_header(&known, &opened.header, keys.current()).is_err() {
            return Err(older.to_owned());
        }
        let Some(found) = root::read(there, &keys, vault).map_err(broken)? else {
            return Err(
                "neither root of the vault that lies there now holds. Unmount, and see strongroom check".to_owned()
            );
        };
        if is_newer || found.epoch > known.epoch || found.generation > known.generation {
            return Err(
                "the vault that lies there now was used elsewhere meanwhile, and is left alone. Unmount".to_owned()
            );
        }
        if found.epoch < known.epoch || found.generation < self.pins.newest() {
            return Err(older.to_owned());
        }
        Ok(())
    }
}
