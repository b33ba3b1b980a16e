//! How far the log has come, who waits for it, and whether it acknowledges anything at all.
//!
//! Promise: every waiter gets exactly one answer: that its batch is at rest, that writing has stopped, or that the vault is
//! closed; one that comes after the stop or the end gets it at once. What stopped for good does not start again, whatever
//! comes to rest meanwhile; the byte budget takes writers in exactly while writing has neither stopped nor been closed.
//! Why it holds: one lock orders stops, starts, the end and the waiters, and the budget is opened and closed under it.
//! Called by: `shared`, and everyone who waits for the log. Takes: its own lock, inside it the budget's. Cannot fail.

use super::{SyncReply, VaultFault};
use crate::base::lock::Held;
use crate::base::sync::{AtomicBool, Condvar, Mutex, MutexGuard, PoisonError};
use crate::buffer::Budget;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// Someone who waits for a batch to be durable.
pub struct Waiter {
    pub batch: u64,
    pub since: Duration,
    pub reply: SyncReply,
}

/// What the log has come to.
#[derive(Default)]
pub struct Reached {
    /// Newest batch on stable media, verified.
    pub durable: u64,
    /// Newest batch whose buffers are free again.
    pub retired: u64,
    waiters: Vec<Waiter>,
    /// Why nothing is acknowledged, while that is so.
    stopped: Option<Arc<str>>,
    for_good: bool,
    /// Whether it is only for want of room.
    no_room: bool,
    /// No writer is taken in any more.
    closing: bool,
    /// The log has ended.
    ended: bool,
}

/// How acknowledging stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Until a place takes the log again.
    ForNow,
    /// The same, and all that was wanting is room.
    NoRoom,
    /// Until the vault is opened anew.
    ForGood,
}

impl Reached {
    /// What whoever waits is told while nothing is acknowledged.
    fn fault(&self) -> VaultFault {
        match &self.stopped {
            Some(why) if self.for_good => VaultFault::Failed(Arc::clone(why)),
            Some(why) if !self.no_room => VaultFault::Stopped(Arc::clone(why)),
            _ => VaultFault::BackingFull,
        }
    }
}

/// The progress of the log.
pub struct Progress {
    reached: Mutex<Reached>,
    moved: Condvar,
    /// `stopped` and `for_good` for those who look in passing; changed under the lock only.
    is_stopped: AtomicBool,
    has_given_up: AtomicBool,
}

impl Default for Progress {
    fn default() -> Self {
        let (is_stopped, has_given_up) = (AtomicBool::new(false), AtomicBool::new(false));
        Progress { reached: Mutex::default(), moved: Condvar::new(), is_stopped, has_given_up }
    }
}

impl Progress {
    /// How far it is.
    pub fn held(&self) -> MutexGuard<'_, Reached> {
        self.reached.held()
    }

    /// Lets everyone who waits look again.
    pub fn notify(&self) {
        self.moved.notify_all();
    }

    /// Waits until something has moved, for `most` at the longest.
    pub fn wait<'a>(&self, held: MutexGuard<'a, Reached>, most: Duration) -> MutexGuard<'a, Reached> {
        self.moved.wait_timeout(held, most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Takes a waiter in; gives it back with its answer if there is one already.
    pub fn enlist(&self, waiter: Waiter) -> Option<(Waiter, Result<(), VaultFault>)> {
        let mut reached = self.reached.held();
        let answer = match &reached.stopped {
            Some(_) => Err(reached.fault()),
            None if reached.durable >= waiter.batch => Ok(()),
            None if reached.ended => Err(VaultFault::Closed),
            None => {
                reached.waiters.push(waiter);
                return None;
            }
        };
        Some((waiter, answer))
    }

    /// Everything up to `batch` is durable; whoever waited for that is to be told so.
    #[must_use]
    pub fn durable_to(&self, batch: u64) -> Vec<Waiter> {
        let mut reached = self.reached.held();
        reached.durable = reached.durable.max(batch);
        let (due, later) = std::mem::take(&mut reached.waiters).into_iter().partition(|w| w.batch <= batch);
        reached.waiters = later;
        self.moved.notify_all();
        due
    }

    /// The buffers of everything up to `batch` are free.
    pub fn retired_to(&self, batch: u64) {
        self.reached.held().retired = batch;
        self.moved.notify_all();
    }

    /// Stops acknowledging. Says whether it went on until now, and who is to be told.
    #[must_use]
    pub fn stop(&self, why: &str, how: Stop, budget: &Budget) -> (bool, Vec<Waiter>) {
        let mut reached = self.reached.held();
        let (first, for_good) = (reached.stopped.is_none(), how == Stop::ForGood);
        if first || for_good || !reached.for_good {
            reached.stopped = Some(why.into());
            reached.no_room = how == Stop::NoRoom;
        }
        reached.for_good |= for_good;
        self.has_given_up.store(reached.for_good, SeqCst);
        self.is_stopped.store(true, SeqCst);
        budget.close();
        self.moved.notify_all();
        (first, std::mem::take(&mut reached.waiters))
    }

    /// Acknowledges again, unless it stopped for good; says whether that is news.
    pub fn go_on(&self, budget: &Budget) -> bool {
        if !self.is_stopped() {
            return false;
        }
        let mut reached = self.reached.held();
        if reached.for_good || reached.stopped.take().is_none() {
            return false;
        }
        self.is_stopped.store(false, SeqCst);
        if !reached.closing {
            budget.open();
        }
        self.moved.notify_all();
        true
    }

    /// Takes no writer in any more.
    pub fn close(&self, budget: &Budget) {
        let mut reached = self.reached.held();
        reached.closing = true;
        budget.close();
        self.moved.notify_all();
    }

    /// The log has ended: whoever still waits is to be told that the vault is closed.
    #[must_use]
    pub fn end(&self) -> Vec<Waiter> {
        let mut reached = self.reached.held();
        reached.ended = true;
        self.moved.notify_all();
        std::mem::take(&mut reached.waiters)
    }

    /// Whether nothing is acknowledged at the moment.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(SeqCst)
    }

    /// Whether that is for good.
    pub fn has_given_up(&self) -> bool {
        self.has_given_up.load(SeqCst)
    }

    /// Refuses while nothing is acknowledged.
    pub fn check(&self) -> Result<(), VaultFault> {
        if !self.is_stopped() {
            return Ok(());
        }
        let reached = self.reached.held();
        match &reached.stopped {
            Some(_) => Err(reached.fault()),
            None => Ok(()),
        }
    }
}
