//! Lets this process open what is below some paths, and nothing else (Landlock).
//!
//! Promise: whatever is opened, made, renamed or removed from now on lies below a path that was named, with the rights named for
//! it; nothing is executed, no device made or asked anything but the one that was named; no TCP port is opened or reached, no
//! process outside is traced, and (from Linux 6.12 on) none is signalled and no abstract socket reached. What is open already stays usable.
//! A rule is tied to the inode that a path names now, and lost when that goes: so what may be unmounted and come back
//! is named by the directory above its mountpoint (`cli::sandbox` does).
//! Called by: `confine`. On failure: the crate's sentence; `Unknown` where the kernel has no Landlock.

use super::Missing;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, make_bitflags,
};
use std::path::PathBuf;

/// The newest that this was tried on: Linux 6.18. An older kernel does what it can.
const KNOWN: ABI = ABI::V7;

/// What may be done below a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading files whose names are known.
    Read,
    /// Reading files and listing directories.
    Look,
    /// Both, and making, writing, renaming and removing regular files and making directories.
    Change,
    /// Reading and writing this device, and ioctl.
    Device,
}

/// A path, and what may be done below it. One that is not there is passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// The path.
    pub path: PathBuf,
    /// The rights.
    pub access: Access,
}

impl Access {
    fn flags(self) -> BitFlags<AccessFs> {
        match self {
            Access::Read => AccessFs::ReadFile.into(),
            Access::Look => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
            Access::Change => {
                // `Refer` for renaming from one directory to another: the reserve becomes a segment.
                make_bitflags!(AccessFs::{
                    ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | Refer
                })
            }
            Access::Device => make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev}),
        }
    }
}

/// Restricts this thread.
pub(super) fn restrict(allowed: &[Allowed]) -> Result<String, Missing> {
    let failed = |e: &dyn std::fmt::Display| Missing::Failed(e.to_string());
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(|r| r.handle_access(AccessNet::from_all(KNOWN)))
        .and_then(|r| r.scope(Scope::from_all(KNOWN)))
        .and_then(Ruleset::create)
        .map_err(|e| failed(&e))?;
    for Allowed { path, access } in allowed {
        // Not there is no reason to go without the rest: then there is nothing to allow either.
        let Ok(place) = PathFd::new(path) else {
            log::debug!("{}: not there, so not allowed", path.display());
            continue;
        };
        // Rights for a directory are refused for what is a file or device.
        let flags = match path.is_dir() {
            true => access.flags(),
            false => access.flags() & AccessFs::from_file(KNOWN),
        };
        ruleset = ruleset.add_rule(PathBeneath::new(place, flags)).map_err(|e| failed(&e))?;
    }
    let done = ruleset.restrict_self().map_err(|e| failed(&e))?;
    let whole = allowed.iter().any(|a| a.access == Access::Change && a.path.parent().is_none());
    let version = match done.landlock {
        LandlockStatus::NotEnabled => return Err(Missing::Unknown("this kernel has Landlock switched off".to_owned())),
        LandlockStatus::NotImplemented => return Err(Missing::Unknown("this kernel has no Landlock".to_owned())),
        LandlockStatus::Available { effective_abi, .. } => effective_abi as i32,
    };
    match done.ruleset {
        RulesetStatus::NotEnforced => Err(Missing::Unknown("this kernel enforced no rule".to_owned())),
        _ if whole => Ok(format!(
            "on (version {version}), but every file may be opened: the emergency directory's filesystem is mounted right below /"
        )),
        RulesetStatus::PartiallyEnforced => Ok(format!("on, as far as this kernel goes (version {version})")),
        RulesetStatus::FullyEnforced => Ok(format!("on (version {version})")),
    }
}
