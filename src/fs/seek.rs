//! Where a file has data and where holes.
//!
//! Promise: what is data is never called a hole; a part of a block that is data makes the block data, as on ext4.
//! A difficulty: the kernel asks without writing back first what it holds in its own cache, and only a hole can be wrong
//! for that. So an answer that rests on a hole says which bytes it rests on; whoever has a kernel above writes those back
//! and asks again, until the answer stays (`fuse::seek`). Called by: `fuse`, tests. On failure: nothing was changed.

use super::{FileSystem, FsFault};
use crate::base::id::Ino;
use crate::base::limits::FILE_BYTES_MAX;

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is not in a hole.
    Data,
    /// The next byte of a hole; the end of the file counts as one.
    Hole,
}

impl Seek {
    /// Reads the argument of the system call; `None` for what is none of our business.
    #[must_use]
    pub fn from_whence(whence: i32) -> Option<Seek> {
        match whence {
            libc::SEEK_DATA => Some(Seek::Data),
            libc::SEEK_HOLE => Some(Seek::Hole),
            _ => None,
        }
    }
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sought {
    /// Where; `None` if there is no such byte in the file any more.
    pub at: Option<u64>,
    /// Bytes it takes for a hole: from, to before. Nothing newer may be known of them for the answer to hold.
    pub rests_on: Option<(u64, u64)>,
}

impl Sought {
    /// The answer of the system call, once nothing newer is known.
    pub fn found(&self) -> Result<u64, FsFault> {
        self.at.ok_or(FsFault::NothingThere)
    }
}

impl FileSystem {
    /// Looks for data or a hole from `offset` on.
    pub fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<Sought, FsFault> {
        if let Some(attr) = self.storage_attr(ino) {
            let size = attr?.size;
            let at = match what {
                Seek::Data => offset,
                Seek::Hole => size,
            };
            return Ok(Sought { at: (offset < size).then_some(at), rests_on: None });
        }
        let pin = self.pin_file(ino)?;
        let size = pin.inode().size;
        if offset >= size {
            return Ok(Sought { at: None, rests_on: Some((offset, FILE_BYTES_MAX)) });
        }
        let file = pin.file(&self.vault);
        Ok(match what {
            Seek::Data => match self.vault.next_data(file, offset, size)? {
                Some(at) if at == offset => Sought { at: Some(at), rests_on: None },
                Some(at) => Sought { at: Some(at), rests_on: Some((offset, at)) },
                None => Sought { at: None, rests_on: Some((offset, FILE_BYTES_MAX)) },
            },
            Seek::Hole => {
                let at = self.vault.next_hole(file, offset, size)?;
                // Where this is the end, the kernel may know of a later one.
                let to = if at < size { at + 1 } else { FILE_BYTES_MAX };
                Sought { at: Some(at), rests_on: Some((at, to)) }
            }
        })
    }
}
