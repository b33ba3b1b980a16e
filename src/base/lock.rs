//! Locks that survive a panicking thread.
//!
//! Promise: `held` gives the data even if another thread panicked while it held the lock: the operation that panicked
//! is answered with EIO by the FUSE layer, and one operation's bug must not take every file with it. What must not be
//! seen half-changed (a batch, the overlay) is changed by statements that do not panic in the middle.
//! Called by: every layer with shared state. Cannot fail.

use super::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// `lock()` without the poison.
pub trait Held<T> {
    /// Waits for the lock and holds it.
    fn held(&self) -> MutexGuard<'_, T>;
}

impl<T> Held<T> for Mutex<T> {
    fn held(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `read()` and `write()` without the poison.
pub trait Shared<T> {
    /// Waits for a shared hold.
    fn shared(&self) -> RwLockReadGuard<'_, T>;
    /// Waits for the only hold.
    fn alone(&self) -> RwLockWriteGuard<'_, T>;
}

impl<T> Shared<T> for RwLock<T> {
    fn shared(&self) -> RwLockReadGuard<'_, T> {
        self.read().unwrap_or_else(PoisonError::into_inner)
    }
    fn alone(&self) -> RwLockWriteGuard<'_, T> {
        self.write().unwrap_or_else(PoisonError::into_inner)
    }
}
