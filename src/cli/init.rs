//! Creates a vault.
//!
//! Promise: a directory with anything in it is left as it is; a vault that `init` reported is durable.
//! Called by: a person. On failure: `Exit::NotEmpty`, `NoKey`, `Io`; a directory that was made for it is removed again.

use super::exit::{Exit, Failure};
use super::{key, mounts, print, size};
use crate::backing::{Backing, DirBacking};
use crate::base::choice::{Compression, SuiteId};
use crate::base::limits::{ARGON2_CEILING, ARGON2_FLOOR};
use crate::base::world::{RealWorld, World};
use crate::seal::{RecoveryKey, Unlock};
use crate::vault::{self, CreateOptions};
use std::ffi::OsString;
use std::fs::DirEntry;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a fresh ext4 has in its root.
const TOLERATED: &str = "lost+found";

/// The directories of a vault. One that nobody ever mounted has nothing in them.
const DIRECTORIES: [&str; 3] = ["segments", "index", "snapshots"];
/// What `init` makes before the header, which is what makes a vault of a directory.
const MADE_BEFORE_THE_HEADER: [&str; 6] =
    [DIRECTORIES[0], DIRECTORIES[1], DIRECTORIES[2], "root.a", "root.b", "vault.toml.new"];

/// Create a vault in a new or empty directory.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The directory; it is made if it does not exist, and must be empty if it does
    vault: PathBuf,
    #[command(flatten)]
    key: key::Source,
    /// auto, aes-256-gcm or chacha20-poly1305; for ever [default: auto, the faster on this machine]
    #[arg(long, value_name = "SUITE", value_parser = cipher, default_value = "auto", hide_default_value = true)]
    cipher: Cipher,
    /// auto, zstd, lz4 or none; may be changed at each mount
    #[arg(long, value_name = "HOW", default_value = "auto")]
    compression: Compression,
    /// Most bytes the files may hold together, such as 10G
    #[arg(long, value_name = "SIZE", value_parser = size::parse_some)]
    quota: Option<u64>,
    /// Most files and directories together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    quota_inodes: Option<u64>,
    /// Cost of the passphrase: KiB of memory, passes, lanes [default: about a second on this machine]
    #[arg(long, value_name = "KIB,PASSES,LANES", value_parser = argon2)]
    argon2: Option<Argon2>,
    /// Make no recovery key beside the passphrase or key file
    #[arg(long)]
    no_recovery_key: bool,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// `None` is `auto`.
#[derive(Debug, Clone, Copy)]
struct Cipher(Option<SuiteId>);

/// What trying one passphrase is to cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2 {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl From<Argon2> for (u32, u32, u32) {
    fn from(cost: Argon2) -> Self {
        (cost.memory_kib, cost.passes, cost.lanes)
    }
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    if args.key.recovery_key_file.is_some() {
        let why = "a recovery key is drawn, not given: make the vault with a passphrase or key file";
        return Err(Failure::new(Exit::Usage, why));
    }
    if args.vault.symlink_metadata().is_ok() {
        refuse_full(&args.vault)?;
    } else {
        refuse_orphan(&args.vault)?;
    }
    // Before the directory is made: Ctrl-C at the prompt then leaves nothing behind.
    let unlock = key::read(&args.key, true)?;
    let made = make_dir(&args.vault)?;
    let outcome = create(args, &unlock);
    if made && outcome.is_err() {
        // Only removes it if it is empty, and then it is as it was.
        let _ = std::fs::remove_dir(&args.vault);
    }
    outcome
}

fn create(args: &Args, unlock: &Unlock) -> Result<Exit, Failure> {
    // Looked at again: the prompt may have taken long.
    refuse_full(&args.vault)?;
    let path = args.vault.canonicalize().map_err(|e| Failure::io(&args.vault, &e))?;
    let backing: Arc<dyn Backing> = Arc::new(DirBacking::open(&path).map_err(|e| Failure::io(&path, &e))?);
    let world: Arc<dyn World> = Arc::new(RealWorld::default());
    let options = CreateOptions {
        suite: args.cipher.0,
        compression: args.compression,
        quota_bytes: args.quota,
        quota_inodes: args.quota_inodes,
        argon2: args.argon2.map(Into::into),
        recovery: (!args.no_recovery_key).then(|| RecoveryKey::generate(&*world)),
    };
    vault::create(&backing, unlock, &options, &world).map_err(|fault| Failure::open(&path, &fault))?;
    let header = super::status::header(&*backing, &path)?;
    if args.json {
        print::json(&serde_json::json!({
            "ok": true,
            "vault": path.to_string_lossy(),
            "id": header.vault.to_string(),
            "cipher": header.suite.to_string(),
            "compression": header.compression.to_string(),
            "quota_bytes": header.quota_bytes,
            "quota_inodes": header.quota_inodes,
            "recovery_key": options.recovery.as_ref().map(|key| key.text().to_string()),
        }))?;
    } else {
        let (at, suite, compression) = (path.display(), header.suite, header.compression);
        let made = format!("{at} is a vault now: cipher {suite}, compression {compression}");
        print::answer(&made)?;
        if let Some(key) = &options.recovery {
            print::recovery_key(key)?;
        }
        let warning = "Without its passphrase or key nobody can read the vault, you included.";
        print::answer(&format!("\n{warning} To use it: strongroom mount {at} MOUNTPOINT"))?;
    }
    Ok(Exit::Ok)
}

/// Makes the directory; says whether it had to.
fn make_dir(path: &Path) -> Result<bool, Failure> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Failure::new(Exit::Io, format!("{} cannot be made: {e}", path.display()))),
    }
}

/// Refuses a new directory that cannot be made, before anybody is asked for a passphrase.
fn refuse_orphan(path: &Path) -> Result<(), Failure> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    let (at, above) = (path.display(), parent.display());
    match parent.metadata() {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(Failure::new(Exit::Io, format!("{at} cannot be made: {above} is not a directory"))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let sentence = format!("{at} cannot be made: {above} does not exist. Make it first: mkdir -p {above}");
            Err(Failure::new(Exit::Io, sentence))
        }
        Err(e) => Err(Failure::new(Exit::Io, format!("{at} cannot be made: {above}: {e}"))),
    }
}

fn refuse_full(path: &Path) -> Result<(), Failure> {
    let at = path.display();
    // Asked first: a directory lists its names in any order, and "not empty" would be the lesser truth.
    if mounts::is_vault(path) {
        return Err(Failure::new(Exit::NotEmpty, format!("{at} is a vault already")));
    }
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut names: Vec<_> = entries.map_err(|e| Failure::io(path, &e))?.iter().map(DirEntry::file_name).collect();
    names.retain(|name| name != TOLERATED);
    if names.is_empty() {
        return Ok(());
    }
    let fault = if is_unfinished(path, &names) {
        format!(
            "{at} is not empty: it holds what an interrupted init leaves, and no data. \
             Remove the directory, then run init again"
        )
    } else {
        format!("{at} is not empty")
    };
    Err(Failure::new(Exit::NotEmpty, fault))
}

/// Whether a directory without a header holds nothing but what `init` makes before the header, and so no data.
fn is_unfinished(path: &Path, names: &[OsString]) -> bool {
    let made = |name: &OsString| MADE_BEFORE_THE_HEADER.iter().any(|made| name == made);
    let is_bare = |dir: &&str| match std::fs::read_dir(path.join(dir)) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    };
    names.iter().all(made) && DIRECTORIES.iter().all(is_bare)
}

fn cipher(text: &str) -> Result<Cipher, String> {
    match text {
        "auto" => Ok(Cipher(None)),
        _ => text.parse().map(|suite| Cipher(Some(suite))).map_err(|e| format!("{e} auto")),
    }
}

/// Reads a cost that is within what a vault may have.
pub fn argon2(text: &str) -> Result<Argon2, String> {
    let numbers: Option<Vec<u32>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
    let Some(&[memory_kib, passes, lanes]) = numbers.as_deref() else {
        return Err("write KiB of memory, passes and lanes, such as 65536,3,4".to_owned());
    };
    let within = |n: u32, floor: u32, ceiling: u32| (floor..=ceiling).contains(&n);
    let (floor, ceiling) = (ARGON2_FLOOR, ARGON2_CEILING);
    if within(memory_kib, floor.0, ceiling.0) && within(passes, floor.1, ceiling.1) && within(lanes, floor.2, ceiling.2)
    {
        Ok(Argon2 { memory_kib, passes, lanes })
    } else {
        Err(format!("allowed are {},{},{} to {},{},{}", floor.0, floor.1, floor.2, ceiling.0, ceiling.1, ceiling.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_or_wild_costs_are_refused() {
        assert_eq!(argon2("65536,3,4"), Ok(Argon2 { memory_kib: 65536, passes: 3, lanes: 4 }));
        for text in ["", "65536", "65536,3", "65536,3,4,5", "1024,3,4", "65536,1,4", "8388608,3,4", "a,b,c"] {
            assert!(argon2(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ciphers_are_named() {
        assert!(cipher("auto").unwrap().0.is_none());
        assert_eq!(cipher("aes-256-gcm").unwrap().0, Some(SuiteId::Aes256Gcm));
        assert!(cipher("rot13").unwrap_err().contains("auto"));
    }

    #[test]
    fn only_an_empty_directory_will_do() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(!make_dir(dir.path()).unwrap());
        std::fs::create_dir(dir.path().join(TOLERATED)).unwrap();
        refuse_full(dir.path()).unwrap();
        std::fs::write(dir.path().join("x"), "").unwrap();
        assert_eq!(refuse_full(dir.path()).unwrap_err().exit, Exit::NotEmpty);
        let fresh = dir.path().join("new");
        assert!(make_dir(&fresh).unwrap());
        assert_eq!(make_dir(&dir.path().join("a/b")).unwrap_err().exit, Exit::Io);
        let orphan = refuse_orphan(&dir.path().join("a/b")).unwrap_err();
        assert_eq!(orphan.exit, Exit::Io);
        assert!(orphan.sentence.ends_with(&format!("mkdir -p {}", dir.path().join("a").display())), "{orphan}");
        let in_a_file = refuse_orphan(&dir.path().join("x/b")).unwrap_err();
        assert!(in_a_file.sentence.ends_with("is not a directory"), "{in_a_file}");
        refuse_orphan(&dir.path().join("b")).unwrap();
        refuse_orphan(Path::new("b")).unwrap();
    }
}
