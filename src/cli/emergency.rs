//! The emergency directory, as a person names it; and what is said of a vault that could not bring everything home.
//!
//! Promise: a directory that is named must be there when a vault is mounted; one that the vault was last used with, and may
//! need, is found by the path that the vault remembers. Nothing that is not safe goes unnamed at the end.
//! Called by: `mount`, `recover`, `check`. On failure: a sentence and `Exit::EmergencyNeeded` or `Exit::Io`.

use super::exit::{Exit, Failure};
use super::last_word::LastWord;
use super::mounts;
use super::options::Emergency;
use super::print;
use crate::backing::{Backing, DirBacking};
use crate::base::id::Ino;
use crate::fs::{self, RefusedFile};
use crate::vault::{EmergencyDir, OpenOptions, Vault, VaultFault};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// Names listed of what could not be saved; the rest is counted.
const NAMED_MOST: usize = 100;

/// Begins each line that names what could not be saved.
pub const NOT_SAVED: &str = "not saved: ";
/// Stands before the lines about files that lack refused bytes.
pub const REFUSED_WHY: &str =
    "programs wrote data that was refused, mostly for want of room, and no fsync has told them (close may have)";

/// Fills in what was said of an emergency directory.
pub fn choose(said: Option<&Emergency>, vault: &Path, options: &mut OpenOptions) -> Result<(), Failure> {
    match said {
        None => {}
        Some(Emergency::None) => options.without_emergency = true,
        Some(Emergency::Dir(path)) => {
            let refuse = |why: &str| Failure::new(Exit::Io, format!("emergency directory {}: {why}", path.display()));
            let whole = path.canonicalize().map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => refuse("it does not exist; make it, or mount its filesystem, and try again"),
                _ => refuse(&e.to_string()),
            })?;
            if !whole.is_dir() {
                return Err(refuse("it is not a directory"));
            }
            if mounts::lies_in(&whole, vault) || mounts::lies_in(vault, &whole) {
                return Err(refuse("it and the vault must not lie in each other"));
            }
            let device = |p: &Path| p.metadata().map(|m| m.dev()).ok();
            if device(&whole) == device(vault) {
                log::warn!("{}: it is on the vault's own filesystem, and fails when that does", path.display());
            }
            options.emergency = Some(dir(&whole));
        }
    }
    Ok(())
}

/// Refuses an emergency directory that the mount would hide.
pub fn refuse_hidden(path: &Path, mountpoint: &Path) -> Result<(), Failure> {
    if mounts::lies_in(&mounts::whole_path_of_new(path), mountpoint) {
        let why = "it lies in the mountpoint, where the mount would hide it";
        return Err(Failure::new(Exit::Io, format!("emergency directory {}: {why}", path.display())));
    }
    Ok(())
}

/// The directory at a path.
fn dir(path: &Path) -> EmergencyDir {
    let base = path.to_owned();
    let look = |path: &Path| DirBacking::open(path).and_then(|base| base.identity());
    let seen = look(path).ok();
    let reach = move |vault: crate::base::id::VaultId| -> io::Result<Arc<dyn Backing>> {
        let (base, own) = (DirBacking::open(&base)?, vault.to_string());
        // Made in the directory that was there at first, and in no other of its name: while its filesystem is away, the
        // empty place where it is mounted must not take the log, for it is hidden when the filesystem is back.
        if base.identity().ok() == seen {
            match base.make_dir(&own) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                Err(_) => {}
                // Or it would not be there when its disk is plugged in again.
                Ok(()) => base.sync_dir("")?,
            }
        }
        // The directory may be one that others write to as well: a link in the place of ours is refused.
        Ok(Arc::new(base.inside(&own)?))
    };
    EmergencyDir { path: path.to_string_lossy().into_owned(), reach: Arc::new(reach), is_shadow: false }
}

/// The emergency directory that a vault remembers, if it is there: nobody need name it again.
pub fn find(path: &str) -> Option<EmergencyDir> {
    let path = Path::new(path);
    path.is_dir().then(|| {
        log::warn!("the vault was last used with the emergency directory {}: it is used again", path.display());
        dir(path)
    })
}

/// Closes a vault and reports what that came to: to the log, on stderr, and as the daemon's last word.
pub fn close(vault: &Vault, path: &Path) -> LastWord {
    // While there is still an index to look into.
    let (mut names, mut refused) = (Vec::new(), Vec::new());
    let result = vault.close_after(|| {
        names = fs::paths_of(vault, &vault.unsaved());
        refused = fs::refused_files(vault);
        // A line about refused bytes says more.
        names.retain(|(ino, _)| refused.iter().all(|file| file.ino != *ino));
    });
    let word = judge(result, &names, &refused, vault.is_away());
    // A log may be that of many vaults.
    word.lines.iter().for_each(|line| report(&format!("{}: {line}", path.display())));
    word
}

fn judge(
    result: Result<(), VaultFault>,
    names: &[(Ino, Option<Vec<u8>>)],
    refused: &[RefusedFile],
    is_away: bool,
) -> LastWord {
    // A segment that is gone is gone wherever the rest lies.
    let is_lost = matches!(result, Err(VaultFault::SegmentsLost(_))) || result.is_err() && !is_away;
    if !names.is_empty() || !refused.is_empty() || is_lost {
        let fault = result.err().map(|fault| format!("not everything could be brought to rest: {fault}"));
        let lines = fault.into_iter().chain(not_saved(names)).chain(not_taken(refused));
        return LastWord { exit: Exit::FlushFailed, lines: lines.collect() };
    }
    if is_away {
        let line = "everything is safe, but part of it is in the emergency directory until the next mount";
        return LastWord { exit: Exit::Away, lines: vec![line.to_owned()] };
    }
    LastWord { exit: Exit::Ok, lines: Vec::new() }
}

/// A line for each file that was not saved.
fn not_saved(names: &[(Ino, Option<Vec<u8>>)]) -> Vec<String> {
    let line = |(ino, name): &(Ino, Option<Vec<u8>>)| format!("{NOT_SAVED}{}", fs::named(*ino, name.as_deref()));
    let more = names.len().saturating_sub(NAMED_MOST);
    let rest = (more > 0).then(|| format!("{NOT_SAVED}{more} more"));
    names.iter().take(NAMED_MOST).map(line).chain(rest).collect()
}

/// A line for each file that lacks bytes which were refused, after one that explains them.
fn not_taken(files: &[RefusedFile]) -> Vec<String> {
    let line = |file: &RefusedFile| format!("{NOT_SAVED}{file}");
    let more = files.len().saturating_sub(NAMED_MOST);
    let rest = (more > 0).then(|| format!("{NOT_SAVED}{more} more"));
    let first = (!files.is_empty()).then(|| REFUSED_WHY.to_owned());
    first.into_iter().chain(files.iter().take(NAMED_MOST).map(line)).chain(rest).collect()
}

/// To the log, and to whoever reads stderr: a daemon has none.
fn report(sentence: &str) {
    log::error!("{sentence}");
    print::complain(sentence);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_names_what_was_not_saved_and_where_the_rest_is() {
        let word = |result, names: &[_], is_away| judge(result, names, &[], is_away);
        assert_eq!(word(Ok(()), &[], false), LastWord { exit: Exit::Ok, lines: Vec::new() });
        assert_eq!(word(Ok(()), &[], true).exit, Exit::Away);
        assert_eq!(word(Err(VaultFault::Closed), &[], true).exit, Exit::Away, "the next mount finds all of it");
        assert_eq!(word(Err(VaultFault::Closed), &[], false).exit, Exit::FlushFailed);
        let names: Vec<_> = (0..102).map(|n| (Ino(n), (n > 0).then(|| b"/a\n".to_vec()))).collect();
        for is_away in [false, true] {
            let lost = word(Ok(()), &names, is_away);
            assert_eq!((lost.exit, lost.lines.len()), (Exit::FlushFailed, 101));
            assert_eq!(lost.lines[0], "not saved: inode 0, which has no name");
            assert_eq!((lost.lines[1].as_str(), lost.lines[100].as_str()), ("not saved: /a\\n", "not saved: 2 more"));
        }
        let refused: Vec<_> =
            (0..101).map(|n| RefusedFile { ino: Ino(n), path: (n > 0).then(|| b"/a\n".to_vec()), bytes: 5 }).collect();
        for is_away in [false, true] {
            let lost = judge(Ok(()), &[], &refused, is_away);
            assert_eq!((lost.exit, lost.lines.len()), (Exit::FlushFailed, 102));
            assert_eq!(lost.lines[1], "not saved: inode 0, which has no name: 5 bytes were refused");
            assert_eq!(lost.lines[2], "not saved: /a\\n (inode 1): 5 bytes were refused");
            assert_eq!(lost.lines[101], "not saved: 1 more");
        }
    }
}
