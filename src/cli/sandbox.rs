//! What the daemon may still do once it serves: which paths, and whether it must pass over permissions.
//!
//! Promise: the vault's directory, the emergency directory, the place of the pins, the kernel's FUSE device and a glance
//! at who calls (`/proc`): nothing else is opened from then on. What may be unmounted and come back while the mount lives is reached
//! when it is back.
//! Called by: `mount`, after the key was derived and before the vault is opened. On failure: `Exit::Fuse`, for it is the kernel
//! that refuses; of a kernel that is too old only where the parts were named one by one.

use super::exit::{Exit, Failure};
use crate::confine::{Access, Allowed, Confinement, Report, Wanted, confine};
use crate::vault::LOCK;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a mount needs.
pub struct Needs<'a> {
    /// The vault's directory.
    pub vault: &'a Path,
    /// Whether nothing of it is to be changed.
    pub read_only: bool,
    /// The emergency directory.
    pub emergency: Option<PathBuf>,
    /// Where the pins lie.
    pub pins: Vec<PathBuf>,
}

/// Confines this process to what it needs; gives what `/.storage/config` says of it.
pub fn enter(wanted: Wanted, needs: &Needs<'_>) -> Result<Report, Failure> {
    let confinement =
        Confinement { wanted, files: files(needs), keep_dac_override: has_strangers(needs, effective_uid()) };
    confine(&confinement).map_err(|fault| Failure::new(Exit::Fuse, format!("{}: {fault}", needs.vault.display())))
}

fn files(needs: &Needs<'_>) -> Vec<Allowed> {
    let allow = |path: &Path, access| Allowed { path: path.to_owned(), access };
    let vault = if needs.read_only { Access::Look } else { Access::Change };
    let mut files = vec![
        allow(needs.vault, vault),
        // What was held is written into it at the end, also of a mount for reading only.
        allow(&needs.vault.join(LOCK), Access::Change),
        // Each thread that serves the kernel opens it.
        allow(Path::new("/dev/fuse"), Access::Device),
        // Which groups a caller belongs to; how much memory is left; and our own maps, for a backtrace.
        allow(Path::new("/proc"), Access::Read),
        // How much of it a container has.
        allow(Path::new("/sys/fs/cgroup"), Access::Read),
    ];
    files.extend(needs.pins.iter().map(|path| allow(path, Access::Change)));
    if let Some(emergency) = needs.emergency.as_deref() {
        let place = rule_place(emergency, needs.vault, device);
        if place.parent().is_none() {
            let at = emergency.display();
            log::warn!(
                "{at}: its filesystem is mounted right below /, so the sandbox must let the daemon open every file"
            );
        }
        files.push(allow(&place, Access::Change));
    }
    // A backtrace names its lines from it.
    files.extend(std::env::current_exe().ok().map(|path| allow(&path, Access::Read)));
    files
}

/// Where a rule for the emergency directory must lie. A rule is tied to an inode, and one on a filesystem goes when that
/// is unmounted: so it lies on the directory above the mountpoint, and holds for whatever is mounted there next. The
/// root filesystem stays; and what shares the vault's goes with the vault.
fn rule_place(emergency: &Path, vault: &Path, device: impl Fn(&Path) -> Option<u64>) -> PathBuf {
    let own = device(emergency);
    let same = |path: &Path| own.is_some() && device(path) == own;
    if same(vault) || same(Path::new("/")) {
        return emergency.to_owned();
    }
    match emergency.ancestors().find(|path| !same(path)) {
        Some(above) => above.to_owned(),
        None => emergency.to_owned(),
    }
}

fn device(path: &Path) -> Option<u64> {
    Some(path.metadata().ok()?.dev())
}

/// Whether root is to serve files of others, which it may only because it passes over permissions.
fn has_strangers(needs: &Needs<'_>, own: u32) -> bool {
    let is_strange = |path: &Path| path.symlink_metadata().is_ok_and(|meta| meta.uid() != own);
    let below = |path: &Path| {
        let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        entries(path).collect::<Vec<_>>()
    };
    let places = [Some(needs.vault), needs.emergency.as_deref()].into_iter().flatten();
    let mut places = places.chain(needs.pins.iter().map(PathBuf::as_path));
    // A vault is two directories deep. Of a shared emergency directory only what is the vault's matters, and that is made by us.
    own == 0
        && (places.any(is_strange)
            || below(needs.vault)
                .iter()
                .any(|path| is_strange(path) || below(path).iter().any(|path| is_strange(path))))
}

fn effective_uid() -> u32 {
    // SAFETY: only asks, and cannot fail.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_for_what_may_be_unmounted_lies_above_its_mountpoint() {
        // The root, a disk, and a disk on that disk.
        let device = |path: &Path| {
            let on = |top: &str| path.starts_with(top);
            Some(if on("/media/usb/deep") {
                3
            } else if on("/media/usb") || on("/disk") {
                2
            } else {
                1
            })
        };
        let place = |emergency: &str, vault: &str| {
            rule_place(Path::new(emergency), Path::new(vault), device).to_str().map(str::to_owned)
        };
        assert_eq!(place("/media/usb/x/y", "/srv/vault").as_deref(), Some("/media"));
        assert_eq!(place("/media/usb", "/srv/vault").as_deref(), Some("/media"));
        assert_eq!(place("/media/usb/deep/x", "/srv/vault").as_deref(), Some("/media/usb"));
        assert_eq!(place("/disk/x", "/srv/vault").as_deref(), Some("/"), "nothing else would do");
        // What stays as long as the machine runs, and what goes with the vault.
        assert_eq!(place("/var/emergency", "/media/usb/vault").as_deref(), Some("/var/emergency"));
        assert_eq!(place("/media/usb/x", "/media/usb/vault").as_deref(), Some("/media/usb/x"));
    }

    #[test]
    fn root_keeps_its_way_into_the_files_of_others_only_where_there_are_some() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let vault = dir.path().join("vault");
        std::fs::create_dir_all(vault.join("segments")).unwrap();
        let needs = Needs { vault: &vault, read_only: false, emergency: None, pins: Vec::new() };
        if effective_uid() != 0 {
            return assert!(!has_strangers(&needs, effective_uid()), "an ordinary user has no such right");
        }
        assert!(!has_strangers(&needs, 0));
        let file = vault.join("segments/1");
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
        assert!(has_strangers(&needs, 0));
        assert!(!has_strangers(&needs, 12345), "only root has it");
    }
}
