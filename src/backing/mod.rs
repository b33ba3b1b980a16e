//! The only hand on the disk: a directory of files, behind a trait so that tests can be a cruel disk.
//!
//! Promise: what these calls acknowledge is what the operating system acknowledged, no more; nothing is retried here.
//! Called by: `segment`, `index`, `vault`, `check`. On failure: the `io::Error` as it came.

mod aligned;
mod beneath;
mod brokered;
mod dir;
mod direct;
mod memory;
mod private;
mod replaceable;
mod shadow;

pub use aligned::AlignedBuf;
pub use brokered::{Broker, BrokeredDir, serve};
pub use dir::DirBacking;
pub use memory::{Call, Cuts, Effect, Fate, Fault, Kind, MUTATING, MemoryBacking, SYNCS, Unsynced, mix};
pub use replaceable::Replaceable;
pub use shadow::ShadowBacking;

use std::io;
use std::sync::Arc;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// It must exist; reading only.
    Read,
    /// It must exist; reading and writing. A file that has other names (hard links) is replaced by a copy first.
    Write,
    /// It must exist; reading and writing. One that has other names is `ResourceBusy`: what is given back of it frees no
    /// room, and it is not worth a copy.
    WriteUnshared,
    /// It must not exist; reading and writing.
    Create,
}

/// Whether the page cache stands between us and the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Past the page cache where the filesystem can (buffers, offsets and lengths in whole blocks), else through it.
    Direct,
    /// Through the page cache.
    Buffered,
}

/// Room on the filesystem that holds the backing directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that we may still take.
    pub free_bytes: u64,
    /// Files that can still be made; `u64::MAX` where the filesystem does not say.
    pub free_inodes: u64,
}

/// A directory of files; paths are relative, with `/` between parts.
pub trait Backing: Send + Sync {
    /// Opens a file.
    fn open(&self, path: &str, how: Open, cache: Cache) -> io::Result<Arc<dyn BackingFile>>;
    /// Makes a directory; its parent must exist. An existing one is an error.
    fn make_dir(&self, path: &str) -> io::Result<()>;
    /// Names in a directory, sorted (`""` is the top).
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// Renames over whatever has the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    /// Room left; `None` where the filesystem does not say (its `statfs` is all zeros).
    fn space(&self) -> io::Result<Option<Space>>;
    /// Takes the lock file for as long as the result lives; `WouldBlock` if another process has it.
    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>>;
    /// What tells this directory from every other that is open; `None` where there is nothing of the kind.
    fn identity(&self) -> io::Result<Option<(u64, u64)>> {
        Ok(None)
    }
}

/// An open file.
// A file is not a container: that its length is 0 is asked of `len` where it matters.
#[allow(clippy::len_without_is_empty)]
pub trait BackingFile: Send + Sync {
    /// Fills `buf` from `offset`; fewer bytes only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Like `read_at`, but from the device even if the file is not open for direct I/O (sync, drop, read).
    fn read_device(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf`.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes everything written so far durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts or grows the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the file `len` bytes long, if it is shorter, and takes the room for what it grows by now; where the filesystem
    /// cannot do that, the file grows as it is written.
    fn preallocate(&self, len: u64) -> io::Result<()>;
    /// Gives a range of whole blocks back; `Unsupported` where the filesystem cannot.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Bytes that it takes on its filesystem, as far as that says: holes take none.
    fn taken_bytes(&self) -> io::Result<u64> {
        self.len()
    }
    /// Number of names that lead to the file (hard links): 0 once somebody has removed it. 1 where nobody else can.
    fn links(&self) -> io::Result<u64> {
        Ok(1)
    }
    /// Device and inode number, which tell this file from every other that is open; `None` where there are none.
    fn identity(&self) -> io::Result<Option<(u64, u64)>> {
        Ok(None)
    }
    /// Whether reads and writes go past the page cache.
    fn is_direct(&self) -> bool;
}

/// Writes a small file so that it is either the old or the new one, whole: temporary name, sync, rename, sync.
pub fn replace_file(backing: &dyn Backing, dir: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let path = |n: &str| if dir.is_empty() { n.to_owned() } else { format!("{dir}/{n}") };
    let temporary = path(&format!("{name}.new"));
    match backing.remove(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = backing.open(&temporary, Open::Create, Cache::Buffered)?;
    file.write_all_at(bytes, 0)?;
    file.sync_data()?;
    backing.rename(&temporary, &path(name))?;
    backing.sync_dir(dir)
}

/// Reads a small file, refusing more than `most` bytes.
pub fn read_file(backing: &dyn Backing, path: &str, most: usize) -> io::Result<Vec<u8>> {
    let file = backing.open(path, Open::Read, Cache::Buffered)?;
    let len = file.len()?;
    if len > most as u64 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path} is larger than {most} bytes")));
    }
    let mut bytes = vec![0; len as usize];
    let n = file.read_at(&mut bytes, 0)?;
    bytes.truncate(n);
    Ok(bytes)
}
