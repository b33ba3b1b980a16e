//! Content of files: read, write, allocate.
//!
//! Promise: a write that returned is whole in the buffers; room for it was taken before it was promised.
//! The kernel's write-back cache owns the times of a file it writes back: `WriteHow::stamp` says whether we do.
//! Called by: `fuse`, tests. On failure: nothing was changed.

use super::attr::without_set_id;
use super::attribute_cache::Discarded;
use super::node::is;
use super::{FileSystem, FsFault, Pin};
use crate::base::id::Ino;
use crate::base::limits::FILE_BYTES_MAX;
use crate::format::inode::Inode;
use crate::vault::{Admit, VaultFault};

/// Where the bytes of a write come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteFrom {
    /// A program, which waits for the answer.
    Program,
    /// The kernel's cache, which accepted them from a program before: they may use the room that is kept for it.
    Cache,
    /// The kernel's cache, and they were held because an earlier try failed: deleted room is waited for.
    HeldCache,
}

/// How a write is meant.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteHow {
    /// The set-id bits must go.
    pub drop_set_id: bool,
    /// Whether the write moves the times; not when the kernel will send them itself.
    pub stamp: bool,
}

/// What `fallocate` is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallocate {
    /// Room, and the size at least that far.
    Extend,
    /// Room, the size as it is.
    KeepSize,
    /// A hole, the size as it is.
    PunchHole,
    /// Zeros, and the size at least that far.
    ZeroRange,
    /// Zeros, the size as it is.
    ZeroKeepSize,
}

impl Fallocate {
    /// Reads the mode bits of the system call; `None` for what is not offered.
    #[must_use]
    pub fn from_mode(mode: i32) -> Option<Fallocate> {
        const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        match mode {
            0 => Some(Fallocate::Extend),
            libc::FALLOC_FL_KEEP_SIZE => Some(Fallocate::KeepSize),
            PUNCH => Some(Fallocate::PunchHole),
            libc::FALLOC_FL_ZERO_RANGE => Some(Fallocate::ZeroRange),
            ZERO_KEEP => Some(Fallocate::ZeroKeepSize),
            _ => None,
        }
    }
}

impl FileSystem {
    pub(super) fn pin_file(&self, ino: Ino) -> Result<Pin<'_>, FsFault> {
        let pin = self.pin(ino)?;
        match pin.inode().mode & libc::S_IFMT {
            libc::S_IFREG => Ok(pin),
            libc::S_IFDIR => Err(FsFault::IsDirectory),
            _ => Err(FsFault::Invalid),
        }
    }

    /// Appends up to `len` bytes from `offset` to `out`; fewer only at the end of the file.
    pub fn read(&self, ino: Ino, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<(), FsFault> {
        if let Some(read) = self.storage_read(ino, offset, len, out) {
            return read;
        }
        let pin = self.pin_file(ino)?;
        let size = pin.inode().size;
        if offset >= size {
            return Ok(());
        }
        let len = (len as u64).min(size - offset) as usize;
        self.vault.read(pin.file(&self.vault), offset, len, out)?;
        self.touch_atime(&pin);
        Ok(())
    }

    /// Writes all of `data`; waits while the byte budget is used up.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], how: WriteHow) -> Result<(), FsFault> {
        self.write_from(WriteFrom::Program, ino, offset, data, how)
    }

    /// Writes all of `data`, which comes from `from`; waits while the byte budget is used up.
    pub fn write_from(
        &self,
        from: WriteFrom,
        ino: Ino,
        offset: u64,
        data: &[u8],
        how: WriteHow,
    ) -> Result<(), FsFault> {
        if let Some(written) = self.storage_write(ino, offset, data) {
            return written;
        }
        match from {
            WriteFrom::Program => self.writable()?,
            // `reserve_from_kernel` decides about the rest.
            WriteFrom::Cache | WriteFrom::HeldCache if self.options.read_only => {
                return Err(VaultFault::ReadOnly.into());
            }
            WriteFrom::Cache | WriteFrom::HeldCache => {}
        }
        let pin = self.pin_file(ino)?;
        if data.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(data.len() as u64).filter(|&end| end <= FILE_BYTES_MAX);
        let end = end.ok_or(FsFault::FileTooLarge)?;
        self.decide_compression(&pin);
        let file = pin.file(&self.vault);
        let len = data.len() as u64;
        let room = match from {
            WriteFrom::Program => self.vault.reserve(file, offset, len),
            WriteFrom::Cache => self.vault.reserve_from_kernel(file, offset, len, false),
            WriteFrom::HeldCache => self.vault.reserve_from_kernel(file, offset, len, true),
        }?;
        let mut state = pin.state();
        // While the log is stopped, the times that the kernel sends later are refused.
        let now = (how.stamp || self.vault.is_stopped()).then(|| self.now());
        let mut op = self.vault.begin();
        let before = state.inode;
        let after = Inode { size: before.size.max(end), ..before };
        op.charge(ino, Some(&before), Some(&after), Admit::WithinLimits)?;
        op.write(file, offset, data, room);
        let inode = &mut state.inode;
        inode.size = inode.size.max(end);
        if let Some(now) = now {
            (inode.mtime, inode.ctime) = (now, now);
        }
        if how.drop_set_id {
            inode.mode = without_set_id(inode.mode);
        }
        let after = *inode;
        if after != before {
            Self::store(&mut op, ino, &state);
        }
        op.commit();
        drop(state);
        self.settle(ino, &before, &after, Discarded::Content);
        Ok(())
    }

    /// Refuses if a program may not add data now; waits until deleted room is given back.
    pub fn admit_write(&self) -> Result<(), FsFault> {
        self.vault.admit(0)?;
        Ok(self.vault.make_room(0)?)
    }

    /// Room, holes or zeros in a range. Nothing is kept for the room: what is written is compressed and lies elsewhere
    /// each time. More than there is room for, or than a quota allows, is refused.
    pub fn fallocate(&self, ino: Ino, offset: u64, len: u64, what: Fallocate) -> Result<(), FsFault> {
        self.fallocate_by(ino, offset, len, what, false)
    }

    /// The same by somebody whose change takes the set-id bits, if so asked: with this call the kernel leaves it to us, as with
    /// `write`, and has no flag to say so.
    pub fn fallocate_by(
        &self,
        ino: Ino,
        offset: u64,
        len: u64,
        what: Fallocate,
        drop_set_id: bool,
    ) -> Result<(), FsFault> {
        if self.storage_attr(ino).is_some() {
            return Err(FsFault::NotPermitted);
        }
        self.writable()?;
        let pin = self.pin_file(ino)?;
        if len == 0 {
            return Err(FsFault::Invalid);
        }
        let end = offset.checked_add(len).filter(|&end| end <= FILE_BYTES_MAX).ok_or(FsFault::FileTooLarge)?;
        if matches!(what, Fallocate::Extend | Fallocate::KeepSize) {
            self.vault.admit(0)?;
            self.vault.admit_range(pin.file(&self.vault), offset, end)?;
        }
        let file = pin.file(&self.vault);
        let mut state = pin.state();
        let now = self.now();
        let mut op = self.vault.begin();
        debug_assert!(is(&state.inode, libc::S_IFREG), "pin_file gives regular files only");
        let before = state.inode;
        let mut after = before;
        if matches!(what, Fallocate::Extend | Fallocate::ZeroRange) {
            after.size = after.size.max(end);
        }
        op.charge(ino, Some(&before), Some(&after), Admit::WithinLimits)?;
        if matches!(what, Fallocate::PunchHole | Fallocate::ZeroRange | Fallocate::ZeroKeepSize) {
            // Behind the end there is nothing to take away.
            op.punch(file, offset, end.min(before.size));
        }
        state.inode.size = after.size;
        // As ext4: the call changes the file, whether or not it had anything to change.
        (state.inode.mtime, state.inode.ctime) = (now, now);
        if drop_set_id {
            state.inode.mode = without_set_id(state.inode.mode);
        }
        let after = state.inode;
        Self::store(&mut op, ino, &state);
        op.commit();
        drop(state);
        self.settle(ino, &before, &after, Discarded::Content);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_modes_are_taken() {
        assert_eq!(Fallocate::from_mode(0), Some(Fallocate::Extend));
        assert_eq!(Fallocate::from_mode(libc::FALLOC_FL_PUNCH_HOLE), None, "punching must keep the size");
        assert_eq!(Fallocate::from_mode(libc::FALLOC_FL_COLLAPSE_RANGE), None);
    }
}
