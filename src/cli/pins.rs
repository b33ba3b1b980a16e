//! Where a person's machine remembers how far each vault had come.
//!
//! Promise: one directory per user, made when it is needed, that only the user can read: `$XDG_STATE_HOME/strongroom`, else
//! `~/.local/state/strongroom`, else, for a root without a home, `/var/lib/strongroom`.
//! Called by: `mount`, `check`. On failure: it is logged, and the vault is opened without: an older copy then goes unnoticed.

use crate::backing::DirBacking;
use crate::vault::PinStore;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The places where this user's vaults are remembered; none if there is no telling where.
pub fn stores() -> Vec<PinStore> {
    let Some(dir) = place() else {
        log::warn!("neither XDG_STATE_HOME nor HOME is set: an older copy of the vault would go unnoticed");
        return Vec::new();
    };
    match store(&dir) {
        Ok(store) => vec![store],
        Err(e) => {
            log::warn!("{}: {e}: an older copy of the vault would go unnoticed", dir.display());
            Vec::new()
        }
    }
}

/// The directory that they lie in, if there is telling where.
pub fn place() -> Option<PathBuf> {
    // SAFETY: only asks, and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    directory(|name| std::env::var_os(name), is_root)
}

fn store(dir: &Path) -> io::Result<PinStore> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    Ok(PinStore::among_others(Arc::new(DirBacking::open(dir)?), dir.display().to_string()))
}

fn directory(variable: impl Fn(&str) -> Option<OsString>, is_root: bool) -> Option<PathBuf> {
    // The XDG specification: a path that is not absolute counts as not set. `/` is what init gives who has no home.
    let path = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute() && path.parent().is_some());
    let state = path("XDG_STATE_HOME").or_else(|| Some(path("HOME")?.join(".local/state")));
    state.or_else(|| is_root.then(|| "/var/lib".into())).map(|state| state.join("strongroom"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_user_has_a_place_and_a_root_at_boot_too() {
        let at = |xdg: Option<&str>, home: Option<&str>, is_root| {
            let variable = |name: &str| if name == "HOME" { home } else { xdg }.map(OsString::from);
            directory(variable, is_root).map(|path| path.to_string_lossy().into_owned())
        };
        assert_eq!(at(Some("/s"), Some("/home/a"), false).as_deref(), Some("/s/strongroom"));
        assert_eq!(at(Some("s"), Some("/home/a"), false).as_deref(), Some("/home/a/.local/state/strongroom"));
        assert_eq!(at(None, Some("/root"), true).as_deref(), Some("/root/.local/state/strongroom"));
        for home in [None, Some(""), Some("/")] {
            assert_eq!(at(None, home, true).as_deref(), Some("/var/lib/strongroom"));
            assert_eq!(at(Some(""), home, false), None);
        }
    }

    #[test]
    fn the_directory_is_made_for_its_owner_alone() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let deep = dir.path().join("a/b/strongroom");
        store(&deep).unwrap();
        assert_eq!(deep.metadata().unwrap().mode() & 0o777, 0o700);
        store(&deep).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(store(&dir.path().join("file/strongroom")).is_err());
    }
}
