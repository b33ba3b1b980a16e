//! Which strongrooms are mounted, as the kernel tells it.
//!
//! Promise: looking never touches a mount, so a dead or slow one cannot hang the look.
//! Called by: `mount`, `mounter`, `umount`, `holders`, `status`. On failure: `/proc` is named.

use super::exit::{Exit, Failure};
use crate::fs::STORAGE_ALWAYS;
use crate::vault::{HEADER, HEADER_COPY};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mounted filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its device number, as the kernel writes it: `0:57`.
    pub device: String,
    /// The directory of the filesystem that is mounted there: `/`, except for a bind mount of a subdirectory.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// `fuse.strongroom` for ours.
    pub kind: Vec<u8>,
    /// The name shown in `df`: the vault's path, unless `fsname=` said otherwise.
    pub source: PathBuf,
    /// The user and group who mounted it, if it is a FUSE mount.
    pub owner: Option<(u32, u32)>,
}

impl Mount {
    /// Whether it is one of ours.
    pub fn is_strongroom(&self) -> bool {
        match self.kind.as_slice() {
            b"fuse.strongroom" => true,
            b"fuse" => self.vault().is_some(),
            _ => false,
        }
    }

    /// Takes on the rights of the user who mounted it, for good. False where that is not possible, or changes nothing:
    /// only root may, and root's own mounts let root in.
    pub fn act_as_owner(&self) -> bool {
        let Some((uid, gid)) = self.owner.filter(|(uid, _)| *uid != 0) else { return false };
        // SAFETY: plain calls with numbers and an empty list; each applies to all threads of the process.
        unsafe {
            libc::geteuid() == 0
                && libc::setgroups(0, std::ptr::null()) == 0
                && libc::setresgid(gid, gid, gid) == 0
                && libc::setresuid(uid, uid, uid) == 0
        }
    }

    /// Refuses a bind mount of a subdirectory, which has no `.storage` to ask.
    pub fn must_be_whole(&self) -> Result<(), Failure> {
        if self.root == Path::new("/") {
            return Ok(());
        }
        let (at, dir) = (self.mountpoint.display(), self.root.display());
        let whole =
            all().unwrap_or_default().into_iter().rfind(|m| m.device == self.device && m.root == Path::new("/"));
        let which = match whole.map(|mount| mount.mountpoint) {
            Some(place) => format!("The whole strongroom is mounted at {}: name that instead", place.display()),
            None => "The whole strongroom is not mounted here any more".to_owned(),
        };
        let sentence = format!(
            "{at}: only the directory {dir} of a strongroom is mounted there (a bind mount). \
             {which}; umount(8) ends the bind mount"
        );
        Err(Failure::new(Exit::NotMounted, sentence))
    }

    /// The vault it shows, if its name tells.
    pub fn vault(&self) -> Option<&Path> {
        (self.source.is_absolute() && is_vault(&self.source)).then_some(&self.source)
    }
}

/// Whether a directory is a vault: it has a header, or at least its copy.
pub fn is_vault(path: &Path) -> bool {
    [HEADER, HEADER_COPY].iter().any(|name| path.join(name).is_file())
}

/// Where a mount's daemon answers, whatever its `/.storage` is called.
pub fn storage(mountpoint: &Path) -> PathBuf {
    mountpoint.join(STORAGE_ALWAYS)
}

/// Whether an error of a mount means that its daemon has died: nobody is connected, or nobody any more since it was asked.
pub fn daemon_died(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// Whether a daemon of ours answers below a path.
pub fn answers(mountpoint: &Path) -> bool {
    storage(mountpoint).join("version").is_file()
}

/// Every mount of ours.
pub fn strongrooms() -> Result<Vec<Mount>, Failure> {
    let mounts = all().map_err(|e| Failure::io(Path::new(MOUNTINFO), &e))?;
    Ok(mounts.into_iter().filter(Mount::is_strongroom).collect())
}

/// The topmost at a mountpoint, of whatever kind.
pub fn topmost(mountpoint: &Path) -> std::io::Result<Option<Mount>> {
    Ok(all()?.into_iter().rfind(|m| m.mountpoint == mountpoint))
}

/// Every place where this process sees a filesystem, newest first: it may have been moved, or bound to further places.
/// What another mount hides is left out, for no path leads there.
pub fn places_of(device: &str) -> std::io::Result<Vec<PathBuf>> {
    let all = all()?;
    let is_seen = |mount: &&Mount| {
        mount.device == device && all.iter().rfind(|m| m.mountpoint == mount.mountpoint) == Some(*mount)
    };
    Ok(all.iter().rev().filter(is_seen).map(|mount| mount.mountpoint.clone()).collect())
}

fn all() -> std::io::Result<Vec<Mount>> {
    of_table(Path::new(MOUNTINFO))
}

/// The mounts that a table names: this process' own, or another's.
pub fn of_table(table: &Path) -> std::io::Result<Vec<Mount>> {
    let mut text = Vec::new();
    File::open(table)?.read_to_end(&mut text)?;
    Ok(parse(&text))
}

/// The topmost of ours at a mountpoint.
pub fn at(mountpoint: &Path) -> Result<Option<Mount>, Failure> {
    Ok(strongrooms()?.into_iter().rfind(|m| m.mountpoint == mountpoint))
}

/// The whole path of a mountpoint, even if what is mounted there has died and answers nothing.
pub fn whole_path(path: &Path) -> std::io::Result<PathBuf> {
    match path.canonicalize() {
        Ok(whole) => Ok(whole),
        Err(e) => match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                Ok(parent.canonicalize()?.join(name))
            }
            _ => Err(e),
        },
    }
}

/// The whole path of what may not be there yet: that of its nearest directory, and the rest as it is.
pub fn whole_path_of_new(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for above in path.ancestors() {
        if let (Ok(whole), Ok(rest)) = (above.canonicalize(), path.strip_prefix(above)) {
            // Only names can be left of a path that does not exist; `..` among them leads nowhere.
            return if rest.as_os_str().is_empty() { whole } else { whole.join(rest) };
        }
    }
    path
}

/// `36 35 98:0 / /mnt rw,noatime master:1 - fuse.strongroom /vault rw`: fields by blanks, blanks within them in octal.
fn parse(text: &[u8]) -> Vec<Mount> {
    let mount = |line: &[u8]| {
        let mut fields = line.split(|&b| b == b' ').filter(|f| !f.is_empty());
        let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
        let (root, mountpoint) = (fields.next()?, fields.next()?);
        fields.find(|f| *f == b"-")?;
        let (kind, source) = (fields.next()?, fields.next()?);
        let options = String::from_utf8_lossy(fields.next().unwrap_or_default());
        let number = |name: &str| options.split(',').find_map(|option| option.strip_prefix(name)?.parse().ok());
        let owner = number("user_id=").zip(number("group_id="));
        let (root, mountpoint, source) = (unescape(root), unescape(mountpoint), unescape(source));
        Some(Mount { device, root, mountpoint, kind: kind.to_vec(), source, owner })
    };
    text.split(|&b| b == b'\n').filter_map(mount).collect()
}

fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|d| first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(digits) => {
                out.push(digits.iter().fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d - b'0')));
                rest = &after[3..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// Whether `inner` is `outer` or lies in it.
pub fn lies_in(inner: &Path, outer: &Path) -> bool {
    inner.as_os_str().as_bytes() == outer.as_os_str().as_bytes() || inner.starts_with(outer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_with_a_blank_in_its_name_is_read() {
        let text = b"22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n\
            90 22 0:50 / /mnt/a\\040b rw,nosuid shared:2 master:7 - fuse.strongroom /srv/v\\134x rw,user_id=0,group_id=7\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert!(!mounts[0].is_strongroom());
        assert!(mounts[1].is_strongroom());
        assert_eq!(
            (mounts[1].mountpoint.as_path(), mounts[1].source.as_path()),
            (Path::new("/mnt/a b"), Path::new("/srv/v\\x"))
        );
        assert_eq!(mounts[1].root, Path::new("/"));
        assert_eq!((mounts[0].owner, mounts[1].owner), (None, Some((0, 7))));
    }

    #[test]
    fn a_bind_mount_of_a_subdirectory_is_told_from_the_whole() {
        let text = b"90 22 0:999999 /a\\040b /bound rw - fuse.strongroom /srv/v rw,user_id=0,group_id=0\n";
        let part = &parse(text)[0];
        assert_eq!(part.root, Path::new("/a b"));
        let failure = part.must_be_whole().unwrap_err();
        assert_eq!(failure.exit, Exit::NotMounted);
        assert!(failure.sentence.starts_with("/bound: only the directory /a b of a strongroom"), "{failure}");
        assert!(Mount { root: "/".into(), ..part.clone() }.must_be_whole().is_ok());
    }

    #[test]
    fn lines_cut_short_are_passed_over() {
        assert_eq!(parse(b"\n1 2 3\n22 1 254:0 / / rw - ext4"), []);
    }

    #[test]
    fn overlap_is_by_whole_names() {
        assert!(lies_in(Path::new("/a/b"), Path::new("/a")));
        assert!(lies_in(Path::new("/a"), Path::new("/a")));
        assert!(!lies_in(Path::new("/ab"), Path::new("/a")));
    }
}
