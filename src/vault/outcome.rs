//! How something ended that several threads wait for.
//!
//! Promise: it is told once; who tells it again changes nothing, and everyone who waits gets the same. A waiter that has had
//! enough tells its own trouble, and that is then the outcome for all, whatever comes of the thing itself.
//! Called by: `flusher` (tells), `commit` and `verifier` (wait, or look again later). Takes: its own lock, nothing else inside. Cannot fail.

use crate::base::lock::Held;
use crate::base::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Looks whether it is late this often while waiting.
const LOOK: Duration = Duration::from_millis(100);

/// The end, once it is known.
pub struct Outcome<F> {
    result: Mutex<Option<Result<(), F>>>,
    set: Condvar,
}

impl<F> Default for Outcome<F> {
    fn default() -> Self {
        Outcome { result: Mutex::new(None), set: Condvar::new() }
    }
}

impl<F: Clone> Outcome<F> {
    /// Waits for the end, or until `late` has a trouble to tell.
    pub fn wait(&self, late: impl Fn() -> Option<F>) -> Result<(), F> {
        loop {
            if let Some(result) = self.poll(&late) {
                return result;
            }
            let result = self.result.held();
            if result.is_none() {
                drop(self.set.wait_timeout(result, LOOK).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// The end if it is known, or else what `late` has to tell.
    pub fn poll(&self, late: impl Fn() -> Option<F>) -> Option<Result<(), F>> {
        let mut result = self.result.held();
        if result.is_none() {
            *result = late().map(Err);
        }
        result.clone()
    }

    /// Tells how it ended, unless that is known.
    pub fn tell(&self, told: Result<(), F>) {
        self.result.held().get_or_insert(told);
        self.set.notify_all();
    }
}
