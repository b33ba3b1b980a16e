//! The outcome of a flush.
//!
//! Promise (I6): it is told once; everyone who waits gets the same, and gets it; who has waited too long makes its own
//! trouble the outcome, and then that stays.

use crate::explore::{Fault, Harness, planted};
use crate::vault::outcome::Outcome;
use shuttle::sync::atomic::{AtomicBool, Ordering::SeqCst};
use shuttle::thread;
use std::sync::Arc;

pub const ALL: &[Harness] = &[Harness {
    name: "a_flush_ends_once_and_alike_for_all_who_wait",
    run: told_once,
    faults: &[Fault::WakesNobody, Fault::WakesOne, Fault::KeepsItsTrouble],
}];

fn told_once() {
    let (outcome, late) = (Arc::new(Outcome::<u8>::default()), Arc::new(AtomicBool::new(false)));
    let waiters = [0, 0, 9].map(|patience| {
        let (outcome, late) = (Arc::clone(&outcome), Arc::clone(&late));
        thread::spawn(move || {
            let too_late = || (patience > 0 && late.load(SeqCst)).then_some(patience);
            if planted() == Some(Fault::KeepsItsTrouble) && patience > 0 && late.load(SeqCst) {
                return Err(patience);
            }
            outcome.wait(too_late)
        })
    });
    let clock = thread::spawn(move || late.store(true, SeqCst));
    let tellers = [Ok(()), Err(1)].map(|told| {
        let outcome = Arc::clone(&outcome);
        thread::spawn(move || outcome.tell(told))
    });
    clock.join().unwrap();
    tellers.into_iter().for_each(|t| t.join().unwrap());
    let got = waiters.map(|w| w.join().unwrap());
    assert!(got[0] == got[1] && got[1] == got[2], "{got:?}");
    outcome.tell(Err(7));
    assert_eq!(outcome.wait(|| Some(8)), got[0], "and it stays");
}
