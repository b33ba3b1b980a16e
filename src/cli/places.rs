//! The vault that a command names.
//!
//! Promise: what is given back is a vault's directory, as a whole path, and opened; nothing in it was read or changed.
//! Called by: `slots`, `rekey`, `recover`, `check`. On failure: `Exit::NotAVault`, or `Exit::Io`.

use super::exit::{Exit, Failure};
use super::mounts;
use crate::backing::{Backing, DirBacking};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A directory, whether a header is in it or not.
pub fn directory(path: &Path) -> Result<(PathBuf, Arc<dyn Backing>), Failure> {
    opened(whole(path)?)
}

/// A vault.
pub fn vault(path: &Path) -> Result<(PathBuf, Arc<dyn Backing>), Failure> {
    let path = whole(path)?;
    must_be_vault(&path)?;
    opened(path)
}

/// Refuses what is no vault.
pub fn must_be_vault(path: &Path) -> Result<(), Failure> {
    if mounts::is_vault(path) {
        return Ok(());
    }
    Err(Failure::new(Exit::NotAVault, format!("{} is not a vault", path.display())))
}

fn whole(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize().map_err(|e| Failure::io(path, &e))
}

fn opened(path: PathBuf) -> Result<(PathBuf, Arc<dyn Backing>), Failure> {
    let backing = DirBacking::open(&path).map_err(|e| Failure::io(&path, &e))?;
    Ok((path, Arc::new(backing)))
}
