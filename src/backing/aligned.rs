//! A buffer whose address and capacity suit direct I/O.
//!
//! Promise: the address is a multiple of a block, and so is the capacity. Called by: `segment`, `vault`. Cannot fail but
//! by running out of memory, as any allocation.

use crate::base::limits::BLOCK_BYTES;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes at a block-aligned address; grows never, so its address stays.
pub struct AlignedBuf {
    at: NonNull<u8>,
    capacity: usize,
    len: usize,
}

// SAFETY: the buffer owns its memory alone, like a `Vec<u8>`.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared references only read.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// An empty buffer with room for at least `capacity` bytes, rounded up to whole blocks.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES);
        let layout = Self::layout(capacity);
        // SAFETY: the layout's size is not zero.
        let at = unsafe { alloc_zeroed(layout) };
        let Some(at) = NonNull::new(at) else { handle_alloc_error(layout) };
        AlignedBuf { at, capacity, len: 0 }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BLOCK_BYTES).expect("a buffer is far below the address space")
    }

    /// Bytes it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes it `len` bytes long; bytes that were not set before are whatever an earlier use left, never uninitialised.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity, "a buffer never grows");
        self.len = len;
    }

    /// Appends bytes; the caller has checked that there is room.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let from = self.len;
        self.set_len(from + bytes.len());
        self[from..].copy_from_slice(bytes);
    }

    /// Appends zeros up to a multiple of a block.
    pub fn pad(&mut self) {
        let from = self.len;
        self.set_len(from.next_multiple_of(BLOCK_BYTES));
        self[from..].fill(0);
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `with_capacity` with this layout.
        unsafe { dealloc(self.at.as_ptr(), Self::layout(self.capacity)) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes from `at` are ours and initialised (zeroed at the start).
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes us the only one.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}
