//! Brings home what lies in an emergency directory, without mounting.
//!
//! Promise: 0 means that everything the vault ever acknowledged is in its backing directory, verified, and nothing of it
//! in the emergency directory any more. Called by: a person. On failure: as for `mount`; 20 if it could not all come home.

use super::exit::{Exit, Failure};
use super::options::{self, Emergency};
use super::print::{self, Progress};
use super::{derive, emergency, key, pins, places};
use crate::base::id::Generation;
use crate::base::world::{RealWorld, World};
use crate::vault::{self, OpenOptions, State};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a backing directory that takes nothing is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Copy back what lies in an emergency directory, without mounting.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vault's directory; it must not be mounted
    vault: PathBuf,
    #[command(flatten)]
    key: key::Source,
    /// The emergency directory [default: the one that the vault was last used with]
    #[arg(long, value_name = "DIR", value_parser = options::emergency)]
    emergency_dir: Option<Emergency>,
    /// Take an older copy of the vault although a newer one was known, if it is of this generation
    #[arg(long, value_name = "GEN", value_parser = options::generation)]
    accept_rollback: Option<Generation>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let (path, backing) = places::vault(&args.vault)?;
    let unlock = key::read(&args.key, false)?;
    let world: Arc<dyn World> = Arc::new(RealWorld::default());
    let mut options = OpenOptions::default();
    emergency::choose(args.emergency_dir.as_ref(), &path, &mut options)?;
    let refused = |fault| Failure::open(&path, &fault);
    let locked = vault::lock(backing).map_err(refused)?;
    let unlock = derive::master_key(&path, locked.headers(), unlock)?;
    let locked = locked.remembered(pins::stores(&path, None), args.accept_rollback).finding(emergency::find);
    let vault = locked.open(&unlock, &options, Arc::clone(&world)).map_err(refused)?;
    let progress = Progress::new("bringing home");
    let until = world.elapsed() + PATIENCE;
    while vault.is_away() && (vault.state() == State::Recovering || world.elapsed() < until) {
        if vault.state() == State::Recovering && world.elapsed() >= until && !vault.stats().errors().is_empty() {
            break;
        }
        progress.at(vault.stats().segments_home.get(), 0);
        world.sleep(Duration::from_millis(50));
    }
    drop(progress);
    let came = vault.stats().segments_home.get();
    let exit = emergency::close(&vault, &path).exit;
    if args.json {
        print::json(&serde_json::json!({ "ok": exit == Exit::Ok, "vault": path.to_string_lossy(), "segments": came }))?;
    } else if exit == Exit::Ok {
        let at = path.display();
        print::answer(&match came {
            0 => format!("{at}: nothing lay elsewhere"),
            1 => format!("{at}: 1 segment came home"),
            n => format!("{at}: {n} segments came home"),
        })?;
    }
    Ok(exit)
}
