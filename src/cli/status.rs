//! Shows how a mount or a vault is doing.
//!
//! Promise: nothing is changed and no key is needed; of a vault that is not mounted only what an onlooker sees is told.
//! Called by: a person, a monitor (`--json`). On failure: `Exit::NotMounted`, `NotAVault`, `Io`, `Damaged`.

use super::exit::{Exit, Failure};
use super::mounts::{self, Mount};
use super::{print, size};
use crate::backing::{Backing, DirBacking};
use crate::base::lock::Held;
use crate::base::world::Time;
use crate::seal::Header;
use crate::vault::{self, HEADER, HeaderTexts, OpenFault};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Show how a mount or a vault is doing; without an argument, list the mounts.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A mountpoint, or a vault's directory
    place: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let Some(place) = &args.place else { return list(args.json) };
    let path = mounts::whole_path(place).map_err(|e| Failure::io(place, &e))?;
    if mounts::at(&path)?.is_some() || path.join(".storage/version").is_file() {
        return of_mount(&path, args.json);
    }
    if mounts::is_vault(&path) {
        return of_vault(&path, args.json);
    }
    let at = path.display();
    Err(Failure::new(Exit::NotMounted, format!("{at} is neither a vault nor where one is mounted")))
}

/// The header of a vault, as anybody can read it.
pub fn header(backing: &dyn Backing, path: &Path) -> Result<Header, Failure> {
    let texts = HeaderTexts::read(backing).map_err(|e| Failure::io(&path.join(HEADER), &e))?;
    let texts = texts.ok_or_else(|| Failure::open(path, &OpenFault::NotAVault))?;
    texts.shown().map_err(|fault| Failure::new(Exit::Damaged, format!("{}: {fault}", path.display())))
}

fn list(json: bool) -> Result<Exit, Failure> {
    let all = mounts::strongrooms()?;
    if json {
        let one = |m: &Mount| {
            serde_json::json!({
                "mountpoint": m.mountpoint.to_string_lossy(),
                "source": m.source.to_string_lossy(),
            })
        };
        print::json(&serde_json::json!({ "ok": true, "mounts": all.iter().map(one).collect::<Vec<_>>() }))?;
    } else if all.is_empty() {
        print::answer("no strongroom is mounted")?;
    } else {
        for mount in &all {
            print::answer(&format!("{} on {}", mount.source.display(), mount.mountpoint.display()))?;
        }
    }
    Ok(Exit::Ok)
}

fn of_mount(mountpoint: &Path, json: bool) -> Result<Exit, Failure> {
    let path = mountpoint.join(if json { ".storage/stats.json" } else { ".storage/status" });
    let text = std::fs::read_to_string(&path).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOTCONN) => {
            let at = mountpoint.display();
            Failure::new(Exit::Io, format!("{at}: its daemon has died; strongroom umount it, then mount again"))
        }
        _ => Failure::io(&path, &e),
    })?;
    print::answer(&text)?;
    Ok(Exit::Ok)
}

fn of_vault(path: &Path, json: bool) -> Result<Exit, Failure> {
    let backing = DirBacking::open(path).map_err(|e| Failure::io(path, &e))?;
    let header = header(&backing, path)?;
    let (segments, _) = amount(&path.join("segments"))?;
    let (_, bytes) = amount(path)?;
    let in_use = is_locked(path)?;
    let mountpoint = mounts::strongrooms()?.into_iter().find(|m| m.source == path).map(|m| m.mountpoint);
    let created = print::utc(Time { seconds: header.created_s, nanos: 0 });
    let unfinished = !header.old_keys.is_empty();
    let left = match unfinished {
        true => vault::under_old_keys(&backing, header.key).map_err(|e| Failure::io(path, &e))?,
        false => (0, 0),
    };
    if json {
        print::json(&serde_json::json!({
            "ok": true,
            "vault": path.to_string_lossy(),
            "id": header.vault.to_string(),
            "cipher": header.suite.to_string(),
            "compression": header.compression.to_string(),
            "created": created,
            "key_slots": header.slots.len(),
            "key": header.key.0,
            "rekey_unfinished": unfinished,
            "rekey_left_bytes": left.1,
            "quota_bytes": header.quota_bytes,
            "quota_inodes": header.quota_inodes,
            "segments": segments,
            "disk_bytes": bytes,
            "in_use": in_use,
            "mountpoint": mountpoint.as_ref().map(|m| m.to_string_lossy()),
        }))?;
        return Ok(Exit::Ok);
    }
    let state = match (&mountpoint, in_use) {
        (Some(m), _) => format!("mounted on {}", m.display()),
        (None, true) => "in use".to_owned(),
        (None, false) => "not mounted".to_owned(),
    };
    let quota_bytes = header.quota_bytes.map_or("none".to_owned(), size::show);
    let quota_inodes = header.quota_inodes.map_or("none".to_owned(), |n| n.to_string());
    let rows = [
        ("vault", format!("{} ({})", path.display(), header.vault)),
        ("state", state),
        ("created", created),
        ("cipher", header.suite.to_string()),
        ("compression", header.compression.to_string()),
        ("key slots", header.slots.len().to_string()),
        ("quota of bytes", quota_bytes),
        ("quota of inodes", quota_inodes),
        ("segments", segments.to_string()),
        ("on disk", size::show(bytes)),
    ];
    rows.iter().try_for_each(|(name, value)| print::answer(&format!("{name:<16} {value}")))?;
    if unfinished {
        let (segments, bytes) = (left.0, size::show(left.1));
        let left = format!("unfinished: {bytes} in {segments} segments are under an old key; strongroom rekey goes on");
        print::answer(&format!("{:<16} {left}", "rekey"))?;
    }
    Ok(Exit::Ok)
}

/// Files in a directory and below, and the bytes they take on disk (holes not counted).
fn amount(dir: &Path) -> Result<(u64, u64), Failure> {
    let (mut files, mut bytes) = (0, 0);
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        let entries = match std::fs::read_dir(&dir) {
            // A mounted vault removes files while we look.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|e| Failure::io(&dir, &e))?,
        };
        for entry in entries {
            let entry = entry.map_err(|e| Failure::io(&dir, &e))?;
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                // What root alone may see in an ext4 is none of the vault's.
                if entry.file_name() != "lost+found" {
                    todo.push(entry.path());
                }
            } else {
                files += 1;
                bytes += meta.blocks() * 512;
            }
        }
    }
    Ok((files, bytes))
}

/// Whether someone holds the vault's lock. Asking takes a shared hold for an instant: `mount` bears with that.
pub fn is_locked(vault: &Path) -> Result<bool, Failure> {
    // One glance at a time: two threads of one process would see each other.
    static GLANCE: Mutex<()> = Mutex::new(());
    let _one = GLANCE.held();
    let path = vault.join("lock");
    // Whatever was put in its place is not waited for.
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Failure::io(&path, &e)),
    };
    // SAFETY: the descriptor is ours; closing it, below, gives the hold back.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) } == 0 {
        return Ok(false);
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::WouldBlock => Ok(true),
        e => Err(Failure::io(&path, &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_is_seen_and_a_free_one_is_left_free() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(!is_locked(dir.path()).unwrap());
        let backing = DirBacking::open(dir.path()).unwrap();
        let held = backing.lock("lock").unwrap();
        assert!(is_locked(dir.path()).unwrap());
        drop(held);
        assert!(!is_locked(dir.path()).unwrap());
        drop(backing.lock("lock").unwrap());
    }

    #[test]
    fn bytes_on_disk_are_counted_without_holes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("segments")).unwrap();
        let sparse = std::fs::File::create(dir.path().join("segments/1")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        std::fs::write(dir.path().join("x"), [1; 5000]).unwrap();
        let (files, bytes) = amount(dir.path()).unwrap();
        assert_eq!(files, 2);
        assert!(bytes < 1 << 20, "{bytes}");
        assert_eq!(amount(&dir.path().join("none")).unwrap(), (0, 0));
    }
}
