//! Shows how a mount or a vault is doing.
//!
//! Promise: nothing is changed and no key is needed; of a vault that is not mounted only what an onlooker sees is told.
//! Called by: a person, a monitor (`--json`). On failure: `Exit::NotMounted`, `NotAVault`, `Io`, `Damaged`.

use super::exit::{Exit, Failure};
use super::last_word::Witness;
use super::mounts::{self, Mount};
use super::reach::{self, Errand};
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
use std::time::Duration;

/// How long a mount may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// How long one may take where all are listed.
const LIST_WAIT: Duration = Duration::from_secs(1);

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
    if let Some(mount) = mounts::at(&path)? {
        mount.must_be_whole()?;
        return of_mount(&path, Some(&mount), args.json);
    }
    // A mount whose kind does not tell, as any other that may not answer.
    if mounts::topmost(&path).is_ok_and(|top| top.is_some()) && read(&path, "version", None)?.is_ok() {
        return of_mount(&path, None, args.json);
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
    // All at once, so that many which do not answer take no longer than one.
    let asked: Vec<_> = all.iter().map(ask).collect();
    let asked: Vec<Life> = asked.into_iter().map(life).collect();
    if json {
        let one = |(m, life): (&Mount, &Life)| {
            serde_json::json!({
                "mountpoint": m.mountpoint.to_string_lossy(),
                "source": m.source.to_string_lossy(),
                "daemon": life.word(),
            })
        };
        let mounts = all.iter().zip(&asked).map(one).collect::<Vec<_>>();
        print::json(&serde_json::json!({ "ok": true, "mounts": mounts }))?;
    } else if all.is_empty() {
        print::answer("no strongroom is mounted")?;
    } else {
        for (mount, life) in all.iter().zip(&asked) {
            let at = mount.mountpoint.display();
            let more = match life {
                _ if mount.root != Path::new("/") => {
                    format!(": a bind mount of its directory {}", mount.root.display())
                }
                Life::Lives | Life::Unknown => String::new(),
                Life::Dead => format!(": its daemon is dead; strongroom umount {at}, then mount it again"),
                Life::Silent => format!(": {}", reach::obstacle(daemon(mount))),
            };
            print::answer(&format!("{} on {at}{more}", mount.source.display()))?;
        }
    }
    Ok(Exit::Ok)
}

/// Whether the daemon of a mount lives.
enum Life {
    Lives,
    Dead,
    /// It does not answer.
    Silent,
    /// This user may not ask.
    Unknown,
}

impl Life {
    fn word(&self) -> &'static str {
        match self {
            Life::Lives => "alive",
            Life::Dead => "dead",
            Life::Silent => "silent",
            Life::Unknown => "unknown",
        }
    }
}

fn ask(mount: &Mount) -> io::Result<Errand> {
    let version = mounts::storage(&mount.mountpoint).join("version");
    reach::begin(&[], || std::fs::read(version))
}

fn life(asked: io::Result<Errand>) -> Life {
    match asked.and_then(|errand| reach::finish(errand, LIST_WAIT, || ())) {
        Ok(Some(Ok(_))) => Life::Lives,
        Ok(Some(Err(e))) if mounts::daemon_died(&e) => Life::Dead,
        Ok(None) => Life::Silent,
        Ok(Some(Err(_))) | Err(_) => Life::Unknown,
    }
}

fn daemon(mount: &Mount) -> Option<i32> {
    Witness::of(mount)?.daemon
}

/// Reads a file of `.storage`; after a moment it is said on stderr what is waited for.
fn read(mountpoint: &Path, name: &str, mount: Option<&Mount>) -> Result<io::Result<String>, Failure> {
    let at = mountpoint.display();
    let path = mounts::storage(mountpoint).join(name);
    let notice = || print::complain(&format!("{at}: waiting: {}", reach::obstacle(mount.and_then(daemon))));
    let read =
        reach::within(ANSWER_WAIT, &[], || std::fs::read(path), notice).map_err(|e| Failure::io(mountpoint, &e))?;
    let text = read.map(|read| read.map(|text| String::from_utf8_lossy(&text).into_owned()));
    text.ok_or_else(|| {
        let (seconds, why) = (ANSWER_WAIT.as_secs(), reach::obstacle(mount.and_then(daemon)));
        Failure::new(
            Exit::NoAnswer,
            format!("{at}: no answer for {seconds} s: {why}; strongroom umount --force {at} ends it"),
        )
    })
}

fn of_mount(mountpoint: &Path, mount: Option<&Mount>, json: bool) -> Result<Exit, Failure> {
    let name = if json { "stats.json" } else { "status" };
    let at = mountpoint.display();
    let mut text = read(mountpoint, name, mount)?;
    // The kernel keeps root out of a user's mount.
    let is_refused = text.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EACCES));
    if is_refused && mount.is_some_and(Mount::act_as_owner) {
        text = read(mountpoint, name, mount)?;
    }
    let text = text.map_err(|e| match mounts::daemon_died(&e) {
        true => Failure::new(Exit::Io, format!("{at}: its daemon has died; strongroom umount it, then mount again")),
        false => Failure::io(&mountpoint.join(".storage").join(name), &e),
    })?;
    print::answer(&text)?;
    if !json {
        let state = read(mountpoint, "state", mount)?.unwrap_or_default();
        if let Some(advice) = advice(state.trim()) {
            print::answer(&format!("what to do   {}", advice.replace("MNT", &at.to_string())))?;
        }
    }
    Ok(Exit::Ok)
}

/// What a person can do about a state that is not one of work.
fn advice(state: &str) -> Option<&'static str> {
    match state {
        "error" => Some(
            "nothing can be saved now: MNT/.storage/errors says why, MNT/.storage/unsaved lists the files. Bring the vault's disk back; \
             it is tried again every few seconds. strongroom umount --discard MNT gives up what is not saved",
        ),
        "full" => Some(
            "the vault's disk is full: free room on it, or delete files in MNT; writing goes on by itself. \
             strongroom umount --discard MNT gives up what is not saved (MNT/.storage/unsaved)",
        ),
        "backup" => Some(
            "everything is safe, in part in the emergency directory, for the vault's disk fails (MNT/.storage/errors): leave both \
             where they are, and bring the vault's disk back",
        ),
        "recovering" => {
            Some("what lies in the emergency directory is brought home: leave it where it is until the state is ready")
        }
        _ => None,
    }
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
    fn a_state_that_needs_somebody_says_what_to_do() {
        for state in crate::vault::State::ALL {
            let is_trouble = matches!(state.word(), "error" | "full" | "backup" | "recovering");
            assert_eq!(advice(state.word()).is_some(), is_trouble, "{state}");
        }
        assert!(advice("error").is_some_and(|text| text.contains("--discard")));
    }

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
