//! The locks, waits and atomics that threads meet at.
//!
//! Promise: they are the standard library's. Code that imports them from here can also be compiled over primitives that try
//! every order of the threads: `tests/concurrency` does so with the very files that the vault runs.
//! Called by: `base::lock`, and the files of `buffer` and `vault` whose protocols are tried so. Cannot fail.

pub use std::sync::{
    Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicBool, AtomicU64},
};
