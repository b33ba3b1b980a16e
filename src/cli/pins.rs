//! Chooses the places where this machine remembers how far each vault has come.
//!
//! Promise: root always uses `/var/lib/strongroom`, and everybody else the home that the user database names, whatever
//! the environment says; `$XDG_STATE_HOME` or `~/.local/state` is used as well. `$STRONGROOM_STATE_DIR` replaces all of them.
//! No place lies in the vault, in the mountpoint, or in an empty home, which may be a mountpoint.
//! Called by: every command that opens a vault. On failure: a place is left out with a warning.

use super::mounts;
use crate::backing::DirBacking;
use crate::vault::PinStore;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Root's place at boot, in a shell and under sudo alike.
const OF_ROOT: &str = "/var/lib/strongroom";
/// Below a home.
const BELOW_HOME: &str = ".local/state/strongroom";

/// The places where a vault is remembered. `mountpoint` is where it is to be mounted, if it is.
pub fn stores(vault: &Path, mountpoint: Option<&Path>) -> Vec<PinStore> {
    let mut stores = Vec::new();
    for dir in places(vault, mountpoint) {
        match store(&dir) {
            Ok(store) => stores.push(store),
            Err(e) => log::warn!("{}: {e}: how far the vault has come is not remembered there", dir.display()),
        }
    }
    if stores.is_empty() {
        log::warn!("this machine does not remember how far the vault has come: an older copy of it would go unnoticed");
    }
    stores
}

/// The directories of `stores`, whether or not they can be made.
pub fn places(vault: &Path, mountpoint: Option<&Path>) -> Vec<PathBuf> {
    // SAFETY: only asks, and cannot fail.
    let uid = unsafe { libc::geteuid() };
    let candidates = candidates(|name| std::env::var_os(name), uid == 0, home_of(uid));
    candidates.into_iter().filter(|candidate| candidate.may_be_used(vault, mountpoint)).map(|c| c.dir).collect()
}

/// A place, and the home that it lies in.
#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    dir: PathBuf,
    home: Option<PathBuf>,
}

impl Candidate {
    /// Whether writing there cannot land in the vault or in a directory that a mount will hide.
    fn may_be_used(&self, vault: &Path, mountpoint: Option<&Path>) -> bool {
        let at = mounts::whole_path_of_new(&self.dir);
        if mounts::lies_in(&at, vault) || mountpoint.is_some_and(|mountpoint| mounts::lies_in(&at, mountpoint)) {
            return false;
        }
        // The home of somebody whose home is in a vault is an empty directory while that is not mounted.
        let is_bare = |home: &Path| !std::fs::read_dir(home).is_ok_and(|mut names| names.next().is_some());
        !self.home.as_deref().is_some_and(is_bare)
    }
}

fn candidates(
    variable: impl Fn(&str) -> Option<OsString>,
    is_root: bool,
    home_of_user: Option<PathBuf>,
) -> Vec<Candidate> {
    // The XDG specification: a path that is not absolute counts as not set. `/` is what init gives who has no home.
    let is_usable = |path: &PathBuf| path.is_absolute() && path.parent().is_some();
    let path = |name| variable(name).map(PathBuf::from).filter(is_usable);
    if let Some(dir) = path("STRONGROOM_STATE_DIR") {
        return vec![Candidate { dir, home: None }];
    }
    let below = |home: PathBuf| Candidate { dir: home.join(BELOW_HOME), home: Some(home) };
    let mut all = Vec::new();
    if is_root {
        all.push(Candidate { dir: OF_ROOT.into(), home: None });
    }
    match path("XDG_STATE_HOME") {
        Some(state) => all.push(Candidate { dir: state.join("strongroom"), home: None }),
        None => all.extend(path("HOME").map(below)),
    }
    let home_of_user = home_of_user.filter(|home| !is_root && is_usable(home)).map(below);
    if let Some(home) = home_of_user
        && all.iter().all(|candidate| candidate.dir != home.dir)
    {
        all.push(home);
    }
    all
}

/// The home that the user database names; mount(8) calls us with an empty environment.
fn home_of(uid: u32) -> Option<PathBuf> {
    let mut buffer = vec![0 as libc::c_char; 16 << 10];
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut found = std::ptr::null_mut();
    // SAFETY: the buffer's length is true, and all of it outlives what is read from it below.
    let failed = unsafe { libc::getpwuid_r(uid, entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found) };
    if failed != 0 || found.is_null() {
        return None;
    }
    // SAFETY: the call found an entry, so it is filled; its strings are terminated and lie in the buffer.
    let home = unsafe { CStr::from_ptr((*found).pw_dir) };
    Some(OsStr::from_bytes(home.to_bytes()).into())
}

fn store(dir: &Path) -> io::Result<PinStore> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    Ok(PinStore::among_others(Arc::new(DirBacking::open(dir)?), dir.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The places that these variables and this user's home come to.
    fn at(variables: &[(&str, &str)], is_root: bool, home_of_user: Option<&str>) -> Vec<String> {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        let all = candidates(variable, is_root, home_of_user.map(PathBuf::from));
        all.into_iter().map(|candidate| candidate.dir.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn root_remembers_in_one_place_whatever_the_environment_says() {
        let of_root = "/var/lib/strongroom";
        assert_eq!(at(&[], true, Some("/root")), [of_root]);
        assert_eq!(at(&[("HOME", "/root")], true, Some("/root")), [of_root, "/root/.local/state/strongroom"]);
        assert_eq!(at(&[("HOME", "/root"), ("XDG_STATE_HOME", "/s")], true, None), [of_root, "/s/strongroom"]);
        assert_eq!(at(&[("HOME", "/")], true, None), [of_root]);
    }

    #[test]
    fn a_user_remembers_in_the_home_of_the_user_database() {
        let home = "/home/a/.local/state/strongroom";
        assert_eq!(at(&[], false, Some("/home/a")), [home]);
        assert_eq!(at(&[("HOME", "/home/a")], false, Some("/home/a")), [home]);
        assert_eq!(at(&[("XDG_STATE_HOME", "/s")], false, Some("/home/a")), ["/s/strongroom", home]);
        assert_eq!(at(&[("XDG_STATE_HOME", "s"), ("HOME", "/h")], false, None), ["/h/.local/state/strongroom"]);
        assert_eq!(at(&[("HOME", "")], false, None), [""; 0]);
        assert_eq!(at(&[("STRONGROOM_STATE_DIR", "/only"), ("HOME", "/h")], true, None), ["/only"]);
    }

    #[test]
    fn no_place_lies_where_a_mount_would_hide_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let top = dir.path().canonicalize().unwrap();
        let make = |name: &str| std::fs::create_dir_all(top.join(name)).unwrap();
        ["vault", "bare", "home/x"].into_iter().for_each(make);
        let usable = |place: &str, home: Option<&str>| {
            let candidate = Candidate { dir: top.join(place), home: home.map(|home| top.join(home)) };
            candidate.may_be_used(&top.join("vault"), Some(&top.join("mnt")))
        };
        assert!(usable("home/.local", Some("home")) && usable("elsewhere", None));
        assert!(!usable("vault/s", None) && !usable("mnt/.local", None) && !usable("vault/../vault/a/b", None));
        assert!(!usable("bare/.local", Some("bare")), "an empty home may be a mountpoint");
        assert!(!usable("none/.local", Some("none")), "no home is made for anybody");
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
