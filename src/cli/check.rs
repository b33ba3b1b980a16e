//! Looks a vault over and lists what is wrong.
//!
//! Promise: nothing is changed; 0 means that everything that was looked at is well, and `--read-data` that it was all.
//! Each finding comes with the command that mends it, or the word that only a backup does.
//! Called by: a person. On failure: damage found and a vault that could not be looked at have different codes.

use super::exit::{Exit, Failure};
use super::print::Progress;
use super::{derive, key, mounts, options, pins, print};
use crate::backing::{Backing, DirBacking};
use crate::base::id::Generation;
use crate::base::world::{RealWorld, World};
use crate::check::{Finding, Share};
use crate::vault::{self, OpenFault};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Look a vault over without changing it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vault's directory; it must not be mounted
    vault: PathBuf,
    #[command(flatten)]
    key: key::Source,
    /// Read, decrypt and verify the data, too: all of it, the n-th of t parts (2/7), or a random share (10%)
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "all")]
    read_data: Option<String>,
    /// Look at an older copy of the vault although a newer one was known, if it is of this generation
    #[arg(long, value_name = "GEN", value_parser = options::generation)]
    accept_rollback: Option<Generation>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let share = share(args)?;
    let path = args.vault.canonicalize().map_err(|e| could_not_look(args, &e.to_string()))?;
    if !mounts::is_vault(&path) {
        return Err(Failure::new(Exit::NotAVault, format!("{} is not a vault", path.display())));
    }
    let unlock = key::read(&args.key, false)?;
    let backing = DirBacking::open(&path).map_err(|e| could_not_look(args, &e.to_string()))?;
    let backing: Arc<dyn Backing> = Arc::new(backing);
    let world: Arc<dyn World> = Arc::new(RealWorld::default());
    let refused = |fault| match fault {
        OpenFault::Backing(e) => could_not_look(args, &e.to_string()),
        other => Failure::open(&path, &other),
    };
    let locked = vault::lock(backing).map_err(refused)?;
    let unlock = derive::master_key(&path, locked.headers(), unlock)?;
    let locked = locked.remembered(pins::stores(), args.accept_rollback);
    let progress = Progress::new("checking");
    let look = |done, total| progress.at(done, total);
    let looked = crate::check::check_locked(locked, &unlock, &world, share, &look);
    drop(progress);
    let findings = looked.map_err(refused)?;
    if args.json {
        print::json(&serde_json::json!({
            "ok": findings.is_empty(),
            "vault": path.to_string_lossy(),
            "read_data": share != Share::Nothing,
            "share": share.to_string(),
            "findings": findings.iter().map(|f| described(f, &path)).collect::<Vec<_>>(),
        }))?;
    } else {
        for finding in &findings {
            print::answer(&format!("{finding}\n    mend: {}", finding.mend(&quoted(&path))))?;
        }
        let (at, n) = (path.display(), findings.len());
        print::answer(&match (n, share) {
            (0, Share::All) => format!("{at}: nothing wrong, every byte was read"),
            (0, Share::Nothing) => format!("{at}: nothing wrong (--read-data reads the data, too)"),
            (0, _) => format!("{at}: nothing wrong, {share} of the data was read"),
            (1, _) => format!("{at}: 1 finding"),
            _ => format!("{at}: {n} findings"),
        })?;
    }
    Ok(if findings.is_empty() { Exit::Ok } else { Exit::Findings })
}

fn share(args: &Args) -> Result<Share, Failure> {
    match &args.read_data {
        None => Ok(Share::Nothing),
        Some(text) => text.parse().map_err(|why| Failure::new(Exit::Usage, format!("--read-data: {why}"))),
    }
}

/// A finding for a program.
fn described(finding: &Finding, vault: &Path) -> serde_json::Value {
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
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "/._-+,@%=".contains(c);
    if text.chars().all(plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

fn could_not_look(args: &Args, why: &str) -> Failure {
    Failure::new(Exit::CouldNotLook, format!("{} could not be looked at: {why}", args.vault.display()))
}
