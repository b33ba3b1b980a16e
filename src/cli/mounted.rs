//! Finds the mount of a vault, and gives orders to its daemon.
//!
//! Promise: an order that returned `Ok` was carried out, and what it asks for is durable. It reaches the daemon in one piece and past the page
//! cache, so it does not wait for data that is held for want of room, and a refusal is the error of the write itself.
//! A header that is handed over holds no secret: it lies in `vault.toml` for anybody to read. A new master key comes sealed under the one in force.
//! Called by: every command that orders something. On failure: the kernel's or the daemon's errno (`fs::errno`).

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

/// Has the daemon of a mount carry out an order; returns when it has, or has refused.
pub fn order(mountpoint: &Path, order: &[u8]) -> io::Result<()> {
    let control = mounts::storage(mountpoint).join("control");
    let mut file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(control)?;
    match file.write(order)? {
        all if all == order.len() => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// The sentence that an order was not carried out, and why.
pub fn refusal(mountpoint: &Path, order: &str, why: &io::Error) -> String {
    let refused = format!("the daemon did not carry out the order \"{order}\": {why}");
    match why.raw_os_error() {
        Some(libc::EIO) => format!("{refused}. {}/.storage/errors says why", mountpoint.display()),
        _ => refused,
    }
}

/// Hands a header to the daemon of a mount.
pub fn hand_over(mountpoint: &Path) -> HandOver {
    let mountpoint = mountpoint.to_owned();
    Box::new(move |text| give(&mountpoint, &[HEADER_ORDER, text].concat()))
}

/// Hands a header with another master key, which comes sealed, to the daemon of a mount.
pub fn hand_over_key(mountpoint: &Path, sealed: &[u8], text: &[u8]) -> Result<(), SlotFault> {
    give(mountpoint, &[KEY_ORDER, sealed, text].concat())
}

/// `SlotFault::Overtaken` if another header was put in force first.
fn give(mountpoint: &Path, header: &[u8]) -> Result<(), SlotFault> {
    order(mountpoint, header).map_err(|e| match e.raw_os_error() {
        Some(libc::ESTALE) => SlotFault::Overtaken,
        _ => SlotFault::NotTaken(e),
    })
}
