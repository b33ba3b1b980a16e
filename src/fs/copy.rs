//! `copy_file_range`: a range of a file becomes one of another, or of the same, and both share what is at rest.
//!
//! Promise: the copy is one operation of the vault, and shows what the source showed at one moment; afterwards neither file
//! knows of the other. As POSIX allows, fewer bytes may be copied than were asked for; never none of what there is.
//! Called by: `fuse`, tests. Takes: the target's state, then the gate; what the source shows is looked up before, and the
//! look-up repeated where the source has changed meanwhile. On failure: nothing was changed.

use super::attr::without_set_id;
use super::attribute_cache::Discarded;
use super::{FileSystem, FsFault, WriteHow};
use crate::base::id::Ino;
use crate::base::limits::FILE_BYTES_MAX;
use crate::format::inode::Inode;
use crate::vault::Admit;

/// Looks at a source that is being written to …
const TRIES: usize = 4;
/// … before so much of it is read and written like any other data.
const BY_BYTES: u64 = 1 << 20;

impl FileSystem {
    /// Copies up to `len` bytes; gives how many. None is there to be copied from the end of the source on.
    pub fn copy_file_range(
        &self,
        from: Ino,
        offset_in: u64,
        to: Ino,
        offset_out: u64,
        len: u64,
        how: WriteHow,
    ) -> Result<u64, FsFault> {
        if self.storage_attr(from).is_some() || self.storage_attr(to).is_some() {
            // The kernel reads and writes instead.
            return Err(FsFault::Unsupported);
        }
        self.writable()?;
        let (source, target) = (self.pin_file(from)?, self.pin_file(to)?);
        if offset_out >= FILE_BYTES_MAX {
            return Err(FsFault::FileTooLarge);
        }
        let wanted = len.min(FILE_BYTES_MAX - offset_out);
        self.decide_compression(&target);
        let (source_file, file) = (source.file(&self.vault), target.file(&self.vault));
        for _ in 0..TRIES {
            let len = wanted.min(source.inode().size.saturating_sub(offset_in));
            if len == 0 {
                return Ok(0);
            }
            if from == to && offset_in < offset_out + len && offset_out < offset_in + len {
                return Err(FsFault::Invalid);
            }
            let content = self.vault.content(source_file, offset_in, offset_in + len)?;
            let copied = content.len_bytes();
            if source.inode().size < offset_in + copied {
                // Cut meanwhile: what was looked up are zeros that it never showed.
                continue;
            }
            let room = self.vault.reserve_copy(file, offset_out, &content)?;
            let mut state = target.state();
            let now = how.stamp.then(|| self.now());
            let mut op = self.vault.begin();
            let after = Inode { size: state.inode.size.max(offset_out + copied), ..state.inode };
            op.charge(to, Some(&state.inode), Some(&after), Admit::WithinLimits)?;
            if !op.copy(source_file, &content, file, offset_out, room) {
                continue;
            }
            let before = state.inode;
            state.inode.size = state.inode.size.max(offset_out + copied);
            if let Some(now) = now {
                (state.inode.mtime, state.inode.ctime) = (now, now);
            }
            if how.drop_set_id {
                state.inode.mode = without_set_id(state.inode.mode);
            }
            let after = state.inode;
            if after != before {
                Self::store(&mut op, to, &state);
            }
            op.commit();
            drop(state);
            self.settle(to, &before, &after, Discarded::Content);
            let read = source.inode();
            self.touch_atime(&source);
            self.settle(from, &read, &source.inode(), Discarded::Nothing);
            return Ok(copied);
        }
        // Who writes to the source without a pause gets what a reader would.
        let mut bytes = Vec::new();
        self.read(from, offset_in, wanted.min(BY_BYTES) as usize, &mut bytes)?;
        self.write(to, offset_out, &bytes, how)?;
        Ok(bytes.len() as u64)
    }
}
