//! What the library's sources find as `crate::base::sync` here: shuttle's primitives, and a condition variable that can be
//! told to forget.
//!
//! Promise: with no fault planted, nothing is added to shuttle's. Called by: the library's sources, the harnesses.

use crate::explore::{Fault, planted};
use shuttle::sync;
pub use shuttle::sync::atomic::{AtomicBool, AtomicU64};
pub use shuttle::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::sync::LockResult;
pub use std::sync::PoisonError;
use std::time::Duration;

/// A condition variable.
#[derive(Default)]
pub struct Condvar(sync::Condvar);

impl Condvar {
    pub fn new() -> Condvar {
        Condvar(sync::Condvar::new())
    }
    pub fn wait<'a, T>(&self, held: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.0.wait(held)
    }
    pub fn wait_timeout<'a, T>(
        &self,
        held: MutexGuard<'a, T>,
        most: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, sync::WaitTimeoutResult)> {
        self.0.wait_timeout(held, most)
    }
    pub fn notify_all(&self) {
        match planted() {
            Some(Fault::WakesNobody) => {}
            Some(Fault::WakesOne) => self.0.notify_one(),
            _ => self.0.notify_all(),
        }
    }
}
