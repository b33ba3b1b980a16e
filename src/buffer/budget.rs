//! The share of the byte budget that unsaved data may take; writers beyond it wait, first come first served.
//!
//! Promise (I8): the bytes charged never exceed the limit by more than what writers that were already admitted grow their
//! buffers by. Why no one starves: a waiter is served strictly in order of arrival, so a greedy writer queues like all.
//! Called by: `vault::reserve` (waits, holding no lock), `vault::verifier` (gives back). Cannot fail, but for `close`.

use crate::base::lock::Held;
use crate::base::sync::{Condvar, Mutex, PoisonError};
use std::collections::VecDeque;

#[derive(Default)]
struct State {
    limit: u64,
    used: u64,
    next_ticket: u64,
    queue: VecDeque<u64>,
    closed: bool,
    over_returned: u64,
}

impl State {
    // A single write larger than the whole share must still pass, alone.
    fn fits(&self, bytes: u64) -> bool {
        self.used + bytes <= self.limit || self.used == 0
    }
}

/// The account.
pub struct Budget {
    state: Mutex<State>,
    moved: Condvar,
}

/// Bytes taken from the budget and not yet spent; what is left when dropped goes back.
pub struct Room<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Budget {
    /// An empty account.
    #[must_use]
    pub fn new(limit_bytes: u64) -> Self {
        Budget { state: Mutex::new(State { limit: limit_bytes, ..State::default() }), moved: Condvar::new() }
    }

    /// What it may hold.
    pub fn limit_bytes(&self) -> u64 {
        self.state.held().limit
    }

    /// Changes what it may hold. What is beyond that stays until it is given back.
    pub fn set_limit(&self, bytes: u64) {
        self.state.held().limit = bytes;
        self.moved.notify_all();
    }

    /// Whether it holds more than half of what it may.
    pub fn is_half_full(&self) -> bool {
        let state = self.state.held();
        state.used > state.limit / 2
    }

    /// What it holds.
    pub fn used_bytes(&self) -> u64 {
        self.state.held().used
    }

    /// What it may still take.
    pub fn left_bytes(&self) -> u64 {
        let state = self.state.held();
        state.limit.saturating_sub(state.used)
    }

    /// Bytes that were given back without having been taken. Any are a fault of ours: somebody gave them back twice.
    pub fn over_returned_bytes(&self) -> u64 {
        self.state.held().over_returned
    }

    /// How many writers wait.
    pub fn waiting(&self) -> u64 {
        self.state.held().queue.len() as u64
    }

    /// Takes `bytes`, waiting for room; `before_waiting` is called once, without the lock, if it must. `None` while closed.
    pub fn take(&self, bytes: u64, before_waiting: impl FnOnce()) -> Option<Room<'_>> {
        let mut state = self.state.held();
        if state.closed {
            return None;
        }
        if state.queue.is_empty() && state.fits(bytes) {
            state.used += bytes;
            return Some(Room { budget: self, bytes });
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.queue.push_back(ticket);
        drop(state);
        before_waiting();
        state = self.state.held();
        while !state.closed && (state.queue.front() != Some(&ticket) || !state.fits(bytes)) {
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.queue.retain(|&t| t != ticket);
        // The next in line may fit as well.
        self.moved.notify_all();
        if state.closed {
            return None;
        }
        state.used += bytes;
        Some(Room { budget: self, bytes })
    }

    /// Takes `bytes` if there is room and nobody waits; never waits.
    pub fn try_take(&self, bytes: u64) -> Option<Room<'_>> {
        self.take_if(bytes, |state| !state.closed)
    }

    /// Takes `bytes` if there is room and nobody waits, also while closed; never waits.
    pub fn take_while_closed(&self, bytes: u64) -> Option<Room<'_>> {
        self.take_if(bytes, |_| true)
    }

    fn take_if(&self, bytes: u64, is_allowed: impl Fn(&State) -> bool) -> Option<Room<'_>> {
        let mut state = self.state.held();
        let now = is_allowed(&state) && state.queue.is_empty() && state.fits(bytes);
        now.then(|| {
            state.used += bytes;
            Room { budget: self, bytes }
        })
    }

    /// Charges what buffers grew by without a reservation: splitting what was there takes room, and must not wait.
    pub fn add(&self, bytes: u64) {
        self.state.held().used += bytes;
    }

    /// Gives back what buffers held.
    pub fn give_back(&self, bytes: u64) {
        let mut state = self.state.held();
        let over = bytes.saturating_sub(state.used);
        state.over_returned += over;
        state.used -= bytes - over;
        drop(state);
        self.moved.notify_all();
        debug_assert_eq!(over, 0, "bytes are given back once");
    }

    /// Wakes and refuses every waiter, now and until `open`.
    pub fn close(&self) {
        self.state.held().closed = true;
        self.moved.notify_all();
    }

    /// Takes writers in again.
    pub fn open(&self) {
        self.state.held().closed = false;
    }
}

impl Room<'_> {
    /// The buffers grew by `bytes`: that much stays charged, the rest of the room goes back.
    pub fn spend(mut self, bytes: u64) {
        let taken = std::mem::take(&mut self.bytes);
        if bytes > taken {
            self.budget.state.held().used += bytes - taken;
        } else if bytes < taken {
            self.budget.give_back(taken - bytes);
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.give_back(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::time::Duration;

    #[test]
    fn many_writers_never_exceed_the_limit_and_all_get_through() {
        let (budget, most) = (Budget::new(100), AtomicU64::new(0));
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| {
                    for _ in 0..200 {
                        budget.take(30, || ()).expect("not closed").spend(30);
                        most.fetch_max(budget.used_bytes(), SeqCst);
                        budget.give_back(30);
                    }
                });
            }
        });
        assert_eq!(budget.used_bytes(), 0);
        let most = most.load(SeqCst);
        assert!(most <= 100, "{most}");
    }

    #[test]
    fn a_write_larger_than_the_share_passes_alone_and_closing_wakes_waiters() {
        let budget = Budget::new(10);
        budget.take(50, || ()).expect("empty, so it passes").spend(50);
        std::thread::scope(|s| {
            let waiter = s.spawn(|| budget.take(1, || ()).is_none());
            std::thread::sleep(Duration::from_millis(20));
            budget.close();
            assert!(waiter.join().unwrap(), "a closed budget refuses");
        });
    }

    #[test]
    fn a_closed_budget_refuses_at_once_and_stays_usable() {
        let budget = Budget::new(10);
        budget.close();
        assert!(budget.take(1, || ()).is_none() && budget.try_take(1).is_none());
        assert_eq!(budget.used_bytes(), 0, "and its lock is free");
        budget.take_while_closed(6).expect("there is room").spend(6);
        assert!(budget.take_while_closed(6).is_none(), "the limit holds all the same");
    }

    #[test]
    fn a_smaller_limit_holds_for_who_comes_and_a_greater_one_for_who_waits() {
        let budget = Budget::new(100);
        budget.take(60, || ()).expect("there is room").spend(60);
        budget.set_limit(50);
        assert!(budget.is_half_full() && budget.try_take(1).is_none());
        std::thread::scope(|s| {
            let waiter = s.spawn(|| budget.take(40, || ()).is_some());
            while budget.waiting() == 0 {
                std::thread::yield_now();
            }
            budget.set_limit(100);
            assert!(waiter.join().unwrap());
        });
        assert_eq!(budget.used_bytes(), 60, "and what was not spent goes back");
    }

    #[test]
    fn what_is_given_back_twice_is_counted_and_refused_in_tests() {
        let budget = Budget::new(10);
        budget.take(10, || ()).expect("there is room").spend(10);
        budget.give_back(10);
        let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| budget.give_back(3)));
        assert_eq!(again.is_err(), cfg!(debug_assertions));
        assert_eq!((budget.used_bytes(), budget.over_returned_bytes()), (0, 3));
        assert_eq!(Budget::new(10).over_returned_bytes(), 0);
    }

    #[test]
    fn unspent_room_goes_back() {
        let budget = Budget::new(10);
        drop(budget.take(10, || ()));
        assert_eq!(budget.used_bytes(), 0);
        budget.take(10, || ()).expect("there is room").spend(4);
        assert_eq!(budget.used_bytes(), 4);
    }
}
