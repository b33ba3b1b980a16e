//! The vault that a command names.
//!
//! Promise: what is given back is a vault's directory, as a whole path, and opened; nothing in it was read or changed.
//! Called by: `slots`, `rekey`, `recover`, `check`. On failure: `Exit::NotAVault`, or `Exit::Io`.

use super::exit::{Exit, Failure};
use super::{ending, mounted, mounts};
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

/// Refuses a vault that is mounted, and names the mountpoint: to be called before anybody is asked for a passphrase. One
/// that is only locked is left to whoever takes the lock, for that may be for a moment only.
pub fn refuse_mounted(vault: &Path) -> Result<(), Failure> {
    // A dead daemon holds nothing, and one that is closing names no process any more.
    let holder = ending::holder(vault).filter(|pid| Path::new(&format!("/proc/{pid}")).exists());
    let Some(holder) = holder else { return Ok(()) };
    match mounted::mountpoint(vault)? {
        None => Ok(()),
        Some(mountpoint) => {
            let (at, mountpoint) = (vault.display(), mountpoint.display());
            let why =
                format!("{at}: it is mounted on {mountpoint} (by process {holder}): strongroom umount that first");
            Err(Failure::new(Exit::InUse, why))
        }
    }
}

fn whole(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize().map_err(|e| Failure::io(path, &e))
}

fn opened(path: PathBuf) -> Result<(PathBuf, Arc<dyn Backing>), Failure> {
    let backing = DirBacking::open(&path).map_err(|e| Failure::io(&path, &e))?;
    Ok((path, Arc::new(backing)))
}
