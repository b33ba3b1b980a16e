//! Looks a vault over and lists what is wrong.
//!
//! Promise: nothing is changed; 0 means that everything that was looked at is well, and `--read-data` that it was all.
//! Called by: a person. On failure: damage found and a vault that could not be looked at have different codes.

use super::exit::{Exit, Failure};
use super::print::Progress;
use super::{derive, key, mounts, print};
use crate::backing::{Backing, DirBacking};
use crate::base::world::{RealWorld, World};
use crate::vault::{self, OpenFault};
use std::path::PathBuf;
use std::sync::Arc;

/// Look a vault over without changing it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vault's directory; it must not be mounted
    vault: PathBuf,
    #[command(flatten)]
    key: key::Source,
    /// Read, decrypt and verify every byte, too
    #[arg(long)]
    read_data: bool,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
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
    let progress = Progress::new("checking");
    let look = |done, total| progress.at(done, total);
    let looked = crate::check::check_locked(locked, &unlock, &world, args.read_data, &look);
    drop(progress);
    let findings = looked.map_err(refused)?;
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    if args.json {
        print::json(&serde_json::json!({
            "ok": lines.is_empty(),
            "vault": path.to_string_lossy(),
            "read_data": args.read_data,
            "findings": lines,
        }))?;
    } else {
        for line in &lines {
            print::answer(line)?;
        }
        let (at, n) = (path.display(), lines.len());
        print::answer(&match (n, args.read_data) {
            (0, true) => format!("{at}: nothing wrong, every byte was read"),
            (0, false) => format!("{at}: nothing wrong (--read-data reads the data, too)"),
            (1, _) => format!("{at}: 1 finding"),
            _ => format!("{at}: {n} findings"),
        })?;
    }
    Ok(if lines.is_empty() { Exit::Ok } else { Exit::Findings })
}

fn could_not_look(args: &Args, why: &str) -> Failure {
    Failure::new(Exit::CouldNotLook, format!("{} could not be looked at: {why}", args.vault.display()))
}
