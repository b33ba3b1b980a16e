//! Where a file has data and where holes.
//!
//! Promise: data is never reported as a hole. A block that is data in part is data as a whole, as on ext4.
//! The kernel asks without first writing back its dirty pages, so only a hole can be reported wrongly. Each answer
//! therefore names the bytes that it takes for a hole. `fuse::seek` has the kernel write those back, and asks again.
//! Called by: `fuse`, tests. On failure: nothing was changed.

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
    /// The answer that takes no byte for a hole: safe to give, and of no use for skipping anything.
    pub without_holes: Option<u64>,
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
            let at = (offset < size).then_some(at);
            return Ok(Sought { at, rests_on: None, without_holes: at });
        }
        let pin = self.pin_file(ino)?;
        let size = pin.inode().size;
        let past_the_end = Sought { at: None, rests_on: Some((offset, FILE_BYTES_MAX)), without_holes: None };
        if offset >= size {
            return Ok(past_the_end);
        }
        let file = pin.file(&self.vault);
        Ok(match what {
            Seek::Data => {
                let without_holes = Some(offset);
                match self.vault.next_data(file, offset, size)? {
                    Some(at) if at == offset => Sought { at: Some(at), rests_on: None, without_holes },
                    Some(at) => Sought { at: Some(at), rests_on: Some((offset, at)), without_holes },
                    None => Sought { without_holes, ..past_the_end },
                }
            }
            Seek::Hole => {
                let at = self.vault.next_hole(file, offset, size)?;
                // Where this is the end, the kernel may know of a later one.
                let to = if at < size { at + 1 } else { FILE_BYTES_MAX };
                Sought { at: Some(at), rests_on: Some((at, to)), without_holes: Some(size) }
            }
        })
    }
}
