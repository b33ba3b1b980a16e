//! Finds the mount of a vault, and hands its daemon the next header.
//!
//! Promise: when the hand-over returns 0, the header is in force and at rest. It comes to the daemon in one piece, past the page
//! cache, and its refusal comes back as the write's own error. No secret is in it: what it holds lies in `vault.toml` for anybody,
//! but for a new master key, which comes sealed under the one in force. Called by: `slots` and `rekey`, where the vault's lock is held. On failure: `SlotFault::Overtaken` if somebody else was first, else
//! `NotTaken` with the kernel's or the daemon's errno (`fs::errno`).

use super::exit::Failure;
use super::{ending, mounts};
use crate::fs::{HEADER_ORDER, KEY_ORDER};
use crate::vault::{HandOver, SlotFault};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where a vault is mounted, as far as it can be seen from here.
pub fn mountpoint(vault: &Path) -> Result<Option<PathBuf>, Failure> {
    let mounts = mounts::strongrooms()?;
    if let Some(named) = mounts.iter().rfind(|mount| mount.source == vault) {
        return Ok(Some(named.mountpoint.clone()));
    }
    // `fsname=` gave it another name: then the number of its daemon tells, which stands in the lock file.
    let Some(holder) = ending::holder(vault) else { return Ok(None) };
    let is_its = |mountpoint: &Path| {
        let config = std::fs::read_to_string(mounts::storage(mountpoint).join("config"));
        config.is_ok_and(|config| ending::pid(&config) == Some(holder))
    };
    let others = mounts.into_iter().filter(|mount| mount.vault().is_none()).map(|mount| mount.mountpoint);
    Ok(others.into_iter().rfind(|mountpoint| is_its(mountpoint)))
}

/// Hands a header to the daemon of a mount.
pub fn hand_over(mountpoint: &Path) -> HandOver {
    let mountpoint = mountpoint.to_owned();
    Box::new(move |text| order(&mountpoint, &[HEADER_ORDER, text].concat()))
}

/// The same of one with another master key, which comes sealed.
pub fn hand_over_key(mountpoint: &Path, sealed: &[u8], text: &[u8]) -> Result<(), SlotFault> {
    order(mountpoint, &[KEY_ORDER, sealed, text].concat())
}

fn order(mountpoint: &Path, order: &[u8]) -> Result<(), SlotFault> {
    let give = || -> io::Result<()> {
        // Through the page cache it could come in pieces.
        let control = mounts::storage(mountpoint).join("control");
        let mut file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(control)?;
        match file.write(order)? {
            all if all == order.len() => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    };
    give().map_err(|e| match e.raw_os_error() {
        Some(libc::ESTALE) => SlotFault::Overtaken,
        _ => SlotFault::NotTaken(e),
    })
}
