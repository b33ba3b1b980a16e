//! Looks a vault over and lists what is wrong; mends it if asked to.
//!
//! Promise: without `--repair` and `--rebuild` nothing is changed; 0 means that everything that was looked at is well, and `--read-data` that it was all.
//! Each finding comes with the command that mends it, or the word that only a backup does.
//! Called by: a person. On failure: damage found and a vault that could not be looked at have different codes.

use super::exit::{Exit, Failure};
use super::print::Progress;
use super::{derive, emergency, key, options, pins, places, print};
use crate::backing::{Backing, DirBacking};
use crate::base::id::Generation;
use crate::base::world::{RealWorld, World};
use crate::check::{self, Finding, Mended, Owner, Repaired, Share};
use crate::vault::{self, Locked, OpenFault, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Check a vault for damage, and repair it if asked to.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vault's directory; it must not be mounted
    vault: PathBuf,
    #[command(flatten)]
    key: key::Source,
    /// Read, decrypt and verify the data, too: all of it, the n-th of t parts (2/7), or a random share (10%)
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "all")]
    read_data: Option<String>,
    /// Repair what can be repaired; what lost its name goes to /lost+found, what is lost is listed
    #[arg(long, conflicts_with = "rebuild")]
    repair: bool,
    /// Throw the index away and make it anew from the log, then look
    #[arg(long)]
    rebuild: bool,
    /// Look at an older copy of the vault although a newer one was known, if it is of this generation
    #[arg(long, value_name = "GEN", value_parser = options::generation)]
    accept_rollback: Option<Generation>,
    /// The emergency directory, or `none` to do without it [default: the one that the vault was last used with]
    #[arg(long, value_name = "DIR", value_parser = options::emergency)]
    emergency_dir: Option<options::Emergency>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let share = share(args)?;
    let path = args.vault.canonicalize().map_err(|e| could_not_look(args, &e.to_string()))?;
    places::must_be_vault(&path)?;
    places::refuse_mounted(&path)?;
    let unlock = key::read(&args.key, false)?;
    let backing = DirBacking::open(&path).map_err(|e| could_not_look(args, &e.to_string()))?;
    let backing: Arc<dyn Backing> = Arc::new(backing);
    let world: Arc<dyn World> = Arc::new(RealWorld::default());
    let refused = |fault| match fault {
        OpenFault::Backing(e) => could_not_look(args, &e.to_string()),
        other => Failure::open(&path, &other),
    };
    let locked = vault::lock(Arc::clone(&backing)).map_err(refused)?;
    let unlock = derive::master_key(&path, locked.headers(), unlock)?;
    let mut places = OpenOptions::default();
    emergency::choose(args.emergency_dir.as_ref(), &path, &mut places)?;
    let prepared = |locked: Locked| {
        let locked = locked.remembered(pins::stores(&path, None), args.accept_rollback).finding(emergency::find);
        locked.beside(places.emergency.clone(), places.without_emergency)
    };
    let locked = prepared(locked);
    let again = || Ok(prepared(vault::lock(Arc::clone(&backing))?));
    let progress = Progress::new("checking");
    let look = |done, total| progress.at(done, total);
    let looked = match (args.repair, args.rebuild) {
        (true, _) => check::repair(locked, &again, &unlock, &world, owner(), share, &look),
        (false, true) => found(check::rebuild(locked, &unlock, &world, share, &look)),
        (false, false) => found(check::check_locked(locked, &unlock, &world, share, &look)),
    };
    drop(progress);
    let Repaired { mended, left } = looked.map_err(refused)?;
    if args.json {
        print::json(&serde_json::json!({
            "ok": left.is_empty(),
            "vault": path.to_string_lossy(),
            "read_data": share != Share::Nothing,
            "share": share.to_string(),
            "mended": mended.iter().map(|m| mended_json(m, &path)).collect::<Vec<_>>(),
            "findings": left.iter().map(|f| described(f, &path)).collect::<Vec<_>>(),
        }))?;
    } else {
        for Mended { finding, did } in &mended {
            print::answer(&format!("{finding}\n    mended: {did}"))?;
        }
        for finding in &left {
            print::answer(&format!("{finding}\n    mend: {}", finding.mend(&quoted(&path))))?;
        }
        print::answer(&format!("{}: {}", path.display(), summary(mended.len(), left.len(), share)))?;
    }
    // What the disk did not give is no damage.
    let damaged = left.iter().any(|finding| !finding.is_unread());
    Ok(match (mended.len(), left.len()) {
        (0, 0) => Exit::Ok,
        (_, 0) => Exit::Mended,
        (_, _) if damaged => Exit::Findings,
        (_, _) => Exit::CouldNotLook,
    })
}

/// The last line of the answer.
fn summary(mended: usize, left: usize, share: Share) -> String {
    let findings = |n: usize| if n == 1 { "1 finding".to_owned() } else { format!("{n} findings") };
    match (mended, left, share) {
        (0, 0, Share::All) => "nothing wrong, every byte was read".to_owned(),
        (0, 0, Share::Nothing) => "nothing wrong (--read-data reads the data, too)".to_owned(),
        (0, 0, _) => format!("nothing wrong, {share} of the data was read"),
        (0, _, _) => findings(left),
        (_, 0, _) => format!("{} mended, nothing is wrong any more", findings(mended)),
        (_, _, _) => format!("{} mended, {left} left: only a backup helps where bytes are lost", findings(mended)),
    }
}

fn found(looked: Result<Vec<Finding>, OpenFault>) -> Result<Repaired, OpenFault> {
    Ok(Repaired { mended: Vec::new(), left: looked? })
}

/// Who repairs owns what has to be made anew.
fn owner() -> Owner {
    // SAFETY: only ask, and cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    Owner { uid, gid }
}

fn mended_json(mended: &Mended, vault: &Path) -> serde_json::Value {
    let mut value = described(&mended.finding, vault);
    value["did"] = mended.did.clone().into();
    value
}

fn share(args: &Args) -> Result<Share, Failure> {
    match &args.read_data {
        None => Ok(Share::Nothing),
        Some(text) => text.parse().map_err(|why| Failure::new(Exit::Usage, format!("--read-data: {why}"))),
    }
}

/// A finding for a program.
pub fn described(finding: &Finding, vault: &Path) -> serde_json::Value {
    let place = finding.place();
    let path = place.as_ref().and_then(|p| p.path.as_deref()).map(String::from_utf8_lossy);
    serde_json::json!({
        "kind": finding.kind(),
        "path": path,
        "inode": place.map(|p| p.ino.0),
        "text": finding.to_string(),
        "mend": finding.mend(&quoted(vault)),
    })
}

/// A path as one word of a shell's line.
pub fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "/._-+,@%=".contains(c);
    if text.chars().all(plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

fn could_not_look(args: &Args, why: &str) -> Failure {
    Failure::new(Exit::CouldNotLook, format!("{} could not be looked at: {why}", args.vault.display()))
}
