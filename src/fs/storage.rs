//! `/.storage`: the vault's state and numbers as files.
//!
//! Promise: each look-up of a file makes a fresh snapshot with a kernel handle of its own, so that its length is exact and
//! no cache shows an old one; a process that looks twice before it reads gets the same one. Programs see one inode number
//! per file. Owner only, but for the group that was named. A program may have a `.storage` of its own: what it makes there
//! lies in a directory of the vault, beside ours. Called by: every operation of `fs`, first. On failure: the vault's fault.

use super::attr::{Attr, SetAttr};
use super::name::{check_name, kind_of};
use super::{Caller, FileSystem, FsFault, LimitChange, LimitOf};
use crate::base::id::{Ino, ROOT_INO};
use crate::base::limits::FREE_INOS;
use crate::base::lock::Held;
use crate::base::world::Time;
use crate::vault::{HeaderRefused, VaultFault};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// The directory's name in the root, unless another was asked for.
pub const STORAGE_NAME: &[u8] = b".storage";
/// A name that always leads to it, whatever its name is: for the program's own commands. No listing shows it, and no file
/// can have it.
pub const STORAGE_ALWAYS: &str = ".strongroom-storage";
/// The directory's inode number, the first of those that the vault leaves free.
pub const STORAGE_INO: Ino = Ino(FREE_INOS.start);
/// First inode number of snapshots.
const SNAPSHOT_INO: u64 = STORAGE_INO.0 + 1024;
/// Snapshots that there may be at once.
const SNAPSHOTS_MAX: u64 = FREE_INOS.end - SNAPSHOT_INO;
/// What is added to the directory's number for the number that programs see of a file: of the first one, behind `.` and `..`.
pub(super) const FIRST_FILE: u64 = 3;
/// How long a snapshot that nobody has read is given to the process that looked it up.
const SAME_LOOK: Duration = Duration::from_secs(10);
/// Look-ups that are remembered for that.
const LOOKS_MAX: usize = 32;
/// The file that takes orders.
const CONTROL: &str = "control";
/// The orders that a person may give, for the error list.
const ORDERS: &str = "flush, checkpoint, snapshot, clean, scrub [MIB|pause], quota check";
/// Begins the order to go on naming what was refused of a file (its inode number follows): `umount` has asked the kernel, which from
/// then on takes the loss for reported.
pub const REFUSED_ORDER: &[u8] = b"refused ";
/// Begins the order to put another header in force, whose text follows. It must come in one write.
pub const HEADER_ORDER: &[u8] = b"key header\n";
/// The same of a header with another master key: before the text stands that key, sealed under the one in force.
pub const KEY_ORDER: &[u8] = b"key switch\n";
/// Every file, in order of listing.
pub(super) const FILES: [&str; 15] = [
    "state",
    "pending",
    "unsaved",
    "status",
    "stats.json",
    "metrics",
    "history",
    "errors",
    "buffers",
    "workers",
    "quota",
    "config",
    "version",
    "scrub",
    CONTROL,
];

/// Whether an inode number is one of ours.
pub(super) fn is_storage(ino: Ino) -> bool {
    FREE_INOS.contains(&ino.0)
}

struct Snapshot {
    content: Vec<u8>,
    control: bool,
    at: Time,
    holds: u64,
    /// Which of `FILES`.
    file: usize,
    /// Whether somebody has begun to read it.
    is_read: bool,
}

/// A look-up that may be repeated before the file is read: `tar` and `cp` look, open, and look again.
struct Look {
    process: u32,
    file: usize,
    ino: u64,
    /// Since the mount began.
    at: Duration,
}

/// Snapshots that the kernel knows, and what the directory is called.
pub(super) struct Storage {
    snapshots: Mutex<HashMap<u64, Snapshot>>,
    looks: Mutex<VecDeque<Look>>,
    next: AtomicU64,
    /// The name in the root; none if it was turned off.
    pub(super) name: Option<Vec<u8>>,
    /// The directory's times.
    begun: Time,
}

impl Storage {
    pub(super) fn new(begun: Time) -> Storage {
        let (snapshots, looks) = (Mutex::default(), Mutex::default());
        Storage { snapshots, looks, next: AtomicU64::new(0), name: Some(STORAGE_NAME.to_vec()), begun }
    }
}

impl Storage {
    /// Keeps a snapshot under an inode number that the kernel does not know, or knows no more.
    fn keep(&self, snapshot: Snapshot) -> Ino {
        let mut snapshots = self.snapshots.held();
        // Each snapshot takes hundreds of bytes, so there is a free number long before there is no more memory.
        loop {
            let ino = SNAPSHOT_INO + self.next.fetch_add(1, SeqCst) % SNAPSHOTS_MAX;
            if let Entry::Vacant(free) = snapshots.entry(ino) {
                free.insert(snapshot);
                return Ino(ino);
            }
        }
    }

    /// Forgets look-ups; false if the inode is not ours.
    pub(super) fn forget(&self, ino: Ino, count: u64) -> bool {
        if !is_storage(ino) {
            return false;
        }
        let mut snapshots = self.snapshots.held();
        if let Some(snapshot) = snapshots.get_mut(&ino.0) {
            snapshot.holds = snapshot.holds.saturating_sub(count);
            if snapshot.holds == 0 {
                snapshots.remove(&ino.0);
            }
        }
        true
    }
}

impl FileSystem {
    /// The look-up by a process, if it is one of ours.
    pub(super) fn storage_lookup(&self, process: u32, parent: Ino, name: &[u8]) -> Option<Result<Attr, FsFault>> {
        if parent == ROOT_INO {
            let is_ours = || Some(name) == self.storage.name.as_deref() && matches!(self.find(parent, name), Ok(None));
            return (name == STORAGE_ALWAYS.as_bytes() || is_ours()).then(|| self.storage_attr(STORAGE_INO)).flatten();
        }
        if is_storage(parent) && parent != STORAGE_INO {
            return Some(Err(FsFault::NotDirectory));
        }
        let file = FILES.into_iter().position(|file| file.as_bytes() == name);
        let own = |fs: &FileSystem| fs.own_storage_directory().ok().flatten();
        match file {
            Some(file) if parent == STORAGE_INO => Some(self.look(process, file)),
            // In a program's own directory of that name its own file counts, and else ours is there.
            Some(file) if matches!(self.find(parent, name), Ok(None)) && own(self) == Some(parent) => {
                Some(self.look(process, file))
            }
            None if parent == STORAGE_INO => Some(match own(self) {
                Some(directory) => self.lookup(directory, name),
                None => Err(FsFault::NoEntry),
            }),
            Some(_) | None => None,
        }
    }

    /// A snapshot of a file: a new one, unless this process has just looked and not read yet.
    fn look(&self, process: u32, file: usize) -> Result<Attr, FsFault> {
        let control = FILES[file] == CONTROL;
        let now = self.vault.world().elapsed();
        if let Some(ino) = self.same_look(process, file, now) {
            return self.storage_attr(Ino(ino)).unwrap_or(Err(FsFault::NoEntry));
        }
        let content = if control { Vec::new() } else { self.render(FILES[file])?.into_bytes() };
        let snapshot = Snapshot { content, control, at: self.now(), holds: 1, file, is_read: false };
        let ino = self.storage.keep(snapshot).0;
        if process != 0 {
            let mut looks = self.storage.looks.held();
            looks.retain(|look| look.process != process || look.file != file);
            if looks.len() == LOOKS_MAX {
                looks.pop_front();
            }
            looks.push_back(Look { process, file, ino, at: now });
        }
        self.storage_attr(Ino(ino)).unwrap_or(Err(FsFault::NoEntry))
    }

    /// The snapshot that a process has looked up and nobody has read yet, held once more.
    fn same_look(&self, process: u32, file: usize, now: Duration) -> Option<u64> {
        let is_same = |look: &&Look| {
            process != 0 && look.process == process && look.file == file && now.saturating_sub(look.at) < SAME_LOOK
        };
        let ino = self.storage.looks.held().iter().find(is_same)?.ino;
        let mut snapshots = self.storage.snapshots.held();
        // The number may have been given again, to another file.
        let snapshot = snapshots.get_mut(&ino).filter(|snapshot| !snapshot.is_read && snapshot.file == file)?;
        snapshot.holds += 1;
        Some(ino)
    }

    /// The inode number that programs see.
    pub fn shown_ino(&self, ino: Ino) -> Ino {
        if !is_storage(ino) {
            return ino;
        }
        let number = match ino.0 - STORAGE_INO.0 {
            number if ino.0 < SNAPSHOT_INO => number,
            _ => self.storage.snapshots.held().get(&ino.0).map_or(0, |s| FIRST_FILE + s.file as u64),
        };
        Ino(STORAGE_INO.0 + number)
    }

    /// The directory of the vault in which programs keep what they make in `/.storage`, if there is one.
    fn own_storage_directory(&self) -> Result<Option<Ino>, FsFault> {
        let Some(name) = &self.storage.name else { return Ok(None) };
        let is_directory = |kind| kind == kind_of(libc::S_IFDIR);
        Ok(self.find(ROOT_INO, name)?.filter(|entry| is_directory(entry.kind)).map(|entry| entry.ino))
    }

    /// The same, made if need be: for its owner alone, as `/.storage` is.
    pub(super) fn make_own_storage_directory(&self) -> Result<Ino, FsFault> {
        let name = self.storage.name.as_deref().ok_or(FsFault::NotPermitted)?;
        if let Some(directory) = self.own_storage_directory()? {
            return Ok(directory);
        }
        let owner = Caller { uid: self.options.uid, gid: self.options.gid, umask: 0 };
        match self.make(&owner, ROOT_INO, name, libc::S_IFDIR | 0o700, 0, None) {
            Ok(made) => {
                self.forget(made.ino, 1);
                Ok(made.ino)
            }
            // Somebody else was first.
            Err(FsFault::Exists) => self.own_storage_directory()?.ok_or(FsFault::NotDirectory),
            Err(fault) => Err(fault),
        }
    }

    /// The directory in which a name is to be changed: where `/.storage` is meant, the one that a program has there. Refuses
    /// the names that are ours.
    pub(super) fn directory_to_change(&self, parent: Ino, name: &[u8], makes: bool) -> Result<Ino, FsFault> {
        check_name(name)?;
        let is_ours = match parent {
            ROOT_INO => {
                name == STORAGE_ALWAYS.as_bytes()
                    || Some(name) == self.storage.name.as_deref() && self.find(parent, name)?.is_none()
            }
            STORAGE_INO => FILES.iter().any(|file| file.as_bytes() == name),
            _ => is_storage(parent),
        };
        match parent {
            _ if is_ours => Err(FsFault::NotPermitted),
            STORAGE_INO if makes => self.make_own_storage_directory(),
            STORAGE_INO => self.own_storage_directory()?.ok_or(FsFault::NoEntry),
            _ => Ok(parent),
        }
    }

    /// The attributes, if the inode is one of ours.
    pub(super) fn storage_attr(&self, ino: Ino) -> Option<Result<Attr, FsFault>> {
        if !is_storage(ino) {
            return None;
        }
        // What the owner may, the group that was named may, too.
        let group = |owner: u32| if self.options.storage_group.is_some() { owner | owner >> 3 } else { owner };
        let (mode, nlink, size, at) = if ino == STORAGE_INO {
            (libc::S_IFDIR | group(0o700), 2, 4096, self.storage.begun)
        } else {
            let snapshots = self.storage.snapshots.held();
            let Some(snapshot) = snapshots.get(&ino.0) else { return Some(Err(FsFault::NoEntry)) };
            let permissions = if snapshot.control { 0o600 } else { 0o400 };
            (libc::S_IFREG | group(permissions), 1, snapshot.content.len() as u64, snapshot.at)
        };
        Some(Ok(Attr {
            ino,
            mode,
            nlink,
            uid: self.options.uid,
            gid: self.options.storage_group.unwrap_or(self.options.gid),
            rdev: 0,
            size,
            blocks: size.div_ceil(512),
            atime: at,
            mtime: at,
            ctime: at,
            btime: at,
            cacheable: false,
        }))
    }

    fn is_control(&self, ino: Ino) -> bool {
        self.storage.snapshots.held().get(&ino.0).is_some_and(|s| s.control)
    }

    /// `control` may be cut to nothing, as a shell's `>` does, and have its times set; nothing else is changed here.
    pub(super) fn storage_setattr(&self, ino: Ino, set: &SetAttr) -> Result<(), FsFault> {
        if !self.is_control(ino) || set.mode.is_some() || set.uid.is_some() || set.gid.is_some() {
            return Err(FsFault::NotPermitted);
        }
        Ok(())
    }

    /// The read, if the inode is one of ours.
    pub(super) fn storage_read(
        &self,
        ino: Ino,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Option<Result<(), FsFault>> {
        if !is_storage(ino) {
            return None;
        }
        let mut snapshots = self.storage.snapshots.held();
        let Some(snapshot) = snapshots.get_mut(&ino.0) else {
            return Some(Err(if ino == STORAGE_INO { FsFault::IsDirectory } else { FsFault::NoEntry }));
        };
        snapshot.is_read = true;
        let rest = snapshot.content.get(offset.min(usize::MAX as u64) as usize..).unwrap_or_default();
        out.extend_from_slice(&rest[..len.min(rest.len())]);
        Some(Ok(()))
    }

    /// The write, if the inode is one of ours: an order.
    pub(super) fn storage_write(&self, ino: Ino, offset: u64, data: &[u8]) -> Option<Result<(), FsFault>> {
        if !is_storage(ino) {
            return None;
        }
        if !self.is_control(ino) {
            return Some(Err(FsFault::NotPermitted));
        }
        if offset != 0 {
            return Some(Err(FsFault::Invalid));
        }
        Some(self.order(data))
    }

    /// Notes why a header was refused, for the errno does not tell.
    fn refusing(&self, taken: Result<(), VaultFault>) -> Result<(), FsFault> {
        if let Err(VaultFault::Header(why)) = &taken
            // Who was overtaken begins anew.
            && !matches!(why, HeaderRefused::NotNext { .. })
        {
            self.vault.stats().error(self.now(), format!("control: a header was refused: {why}"));
        }
        Ok(taken?)
    }

    fn order(&self, data: &[u8]) -> Result<(), FsFault> {
        match data.trim_ascii() {
            // Everything flushed is verified as well.
            b"flush" | b"verify" => self.sync_wait(),
            b"checkpoint" => Ok(self.vault.checkpoint()?),
            b"clean" => {
                self.vault.clean();
                Ok(())
            }
            b"snapshot" => Ok(self.vault.snapshot()?),
            order if order.starts_with(REFUSED_ORDER) => {
                let ino = str::from_utf8(&order[REFUSED_ORDER.len()..]).ok().and_then(|n| n.parse().ok());
                self.vault.stats().unwritten.keep(Ino(ino.ok_or(FsFault::Invalid)?));
                Ok(())
            }
            b"quota check" => self.check_quotas().map(drop),
            order if order.starts_with(b"quota set ") => {
                let (of, change) = limit_order(&order[10..]).ok_or(FsFault::Invalid)?;
                self.set_limits(of, &change)
            }
            order if order.starts_with(HEADER_ORDER) => {
                self.refusing(self.vault.take_header(&order[HEADER_ORDER.len()..]))
            }
            order if order.starts_with(KEY_ORDER) => self.refusing(self.vault.take_key(&order[KEY_ORDER.len()..])),
            b"scrub pause" => {
                self.vault.scrub_pause();
                Ok(())
            }
            order if order.strip_prefix(b"scrub").is_some_and(|rate| scrub_rate(rate).is_some()) => {
                Ok(self.vault.scrub(scrub_rate(&order[5..]).flatten())?)
            }
            _ => {
                // Through the kernel's write-back cache the refusal reaches the caller at close, which shells ignore.
                self.vault
                    .stats()
                    .error(self.now(), format!("control: an unknown order was refused; known are: {ORDERS}"));
                Err(FsFault::Invalid)
            }
        }
    }
}

/// What an order to set limits names: whose (`tree INODE`, `user UID`, `group GID`), then `name=number` or `name=none`.
fn limit_order(text: &[u8]) -> Option<(LimitOf, LimitChange)> {
    let mut words = str::from_utf8(text).ok()?.split_ascii_whitespace();
    let (whose, number) = (words.next()?, words.next()?);
    let of = match whose {
        "tree" => LimitOf::Tree(Ino(number.parse().ok()?)),
        "user" => LimitOf::User(number.parse().ok()?),
        "group" => LimitOf::Group(number.parse().ok()?),
        _ => return None,
    };
    let mut change = LimitChange::default();
    for word in words {
        let (name, value) = word.split_once('=')?;
        let limit = if value == "none" { None } else { Some(value.parse().ok()?) };
        let field = match name {
            "bytes" => &mut change.bytes,
            "inodes" => &mut change.inodes,
            "soft-bytes" => &mut change.soft_bytes,
            "soft-inodes" => &mut change.soft_inodes,
            _ => return None,
        };
        if field.replace(limit).is_some() {
            return None;
        }
    }
    Some((of, change))
}

/// The rate that an order to scrub names, in bytes a second: nothing, or a space and MiB; `None` if it is something else.
fn scrub_rate(text: &[u8]) -> Option<Option<u64>> {
    if text.is_empty() {
        return Some(None);
    }
    let mib: u32 = str::from_utf8(text.strip_prefix(b" ")?).ok()?.trim().parse().ok()?;
    Some(Some(u64::from(mib) << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_to_scrub_may_name_a_rate() {
        assert_eq!(scrub_rate(b""), Some(None));
        assert_eq!((scrub_rate(b" 3"), scrub_rate(b" 0")), (Some(Some(3 << 20)), Some(Some(0))));
        for wrong in [&b"3"[..], b" x", b" -1", b"bing", b" 5000000000"] {
            assert_eq!(scrub_rate(wrong), None);
        }
    }

    #[test]
    fn an_order_to_set_limits_names_whose_and_which() {
        let change = LimitChange { bytes: Some(Some(5)), soft_inodes: Some(None), ..LimitChange::default() };
        assert_eq!(limit_order(b"tree 7 bytes=5 soft-inodes=none"), Some((LimitOf::Tree(Ino(7)), change)));
        assert_eq!(limit_order(b"group 0"), Some((LimitOf::Group(0), LimitChange::default())));
        for wrong in
            [&b""[..], b"tree", b"tree x", b"tree -1", b"user 4294967296", b"all 1", b"user 1 bytes", b"user 1 size=1"]
        {
            assert_eq!(limit_order(wrong), None);
        }
        assert_eq!(limit_order(b"user 1 bytes=1 bytes=2"), None, "said twice");
    }

    #[test]
    fn numbers_fit_in_32_bits_and_are_given_again_only_when_they_are_free() {
        let storage = Storage::new(Time::default());
        let (content, at) = (vec![1], Time::default());
        let snapshot = || Snapshot { content: content.clone(), control: false, at, holds: 1, file: 0, is_read: false };
        let new = || storage.keep(snapshot());
        let (first, second) = (new(), new());
        storage.next.store(SNAPSHOTS_MAX - 1, SeqCst);
        let last = new();
        assert!(u32::try_from(last.0).is_ok() && is_storage(last) && !is_storage(Ino(last.0 + 1)), "{last}");
        assert!(storage.forget(second, 1));
        assert_eq!(new(), second, "the first is still held");
        assert_ne!(first, second);
    }

    #[test]
    fn a_snapshot_goes_with_its_last_forget() {
        let storage = Storage::new(Time::default());
        let snapshot =
            Snapshot { content: vec![1], control: false, at: Time::default(), holds: 2, file: 0, is_read: false };
        storage.snapshots.held().insert(SNAPSHOT_INO, snapshot);
        assert!(storage.forget(Ino(SNAPSHOT_INO), 1) && storage.snapshots.held().len() == 1);
        assert!(storage.forget(Ino(SNAPSHOT_INO), 1) && storage.snapshots.held().is_empty());
        assert!(!storage.forget(Ino(7), 1), "an inode of the vault is not ours");
    }
}
