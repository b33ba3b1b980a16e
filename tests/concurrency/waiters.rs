//! Who waits for the log, and whether it acknowledges.
//!
//! Promise: whatever stops, goes on, gives up, closes and ends at the same time, every waiter gets exactly one answer, and
//! "durable" only for a batch that is; the budget takes writers in exactly while writing has neither stopped nor closed;
//! what gave up stays so.

use crate::buffer::Budget;
use crate::explore::{Fault, Harness, planted};
use crate::vault::VaultFault;
use crate::vault::progress::{Progress, Stop, Waiter};
use shuttle::sync::atomic::{AtomicU64, Ordering::SeqCst};
use shuttle::thread;
use std::sync::Arc;
use std::time::Duration;

pub const ALL: &[Harness] = &[
    Harness {
        name: "every_waiter_for_the_log_gets_one_answer_whatever_stops",
        run: one_answer,
        faults: &[Fault::TellsNobody],
    },
    Harness {
        name: "who_waits_for_free_buffers_is_woken",
        run: retired,
        faults: &[Fault::WakesNobody, Fault::WakesOne],
    },
    Harness {
        name: "what_gave_up_or_closed_takes_no_writer_in_whatever_comes_to_rest",
        run: for_good,
        faults: &[Fault::OpensLate],
    },
    Harness { name: "what_stopped_goes_on_and_takes_writers_in", run: goes_on, faults: &[Fault::OpensLate] },
];

const LIMIT: u64 = 10;
const BATCHES: u64 = 3;

fn answer_all(waiters: Vec<Waiter>, answer: &Result<(), VaultFault>) {
    for w in waiters {
        (w.reply)(answer.clone());
    }
}

fn stop(progress: &Progress, for_good: bool, budget: &Budget) {
    let how = if for_good { Stop::ForGood } else { Stop::ForNow };
    let (_, waiters) = progress.stop("no place", how, budget);
    if planted() != Some(Fault::TellsNobody) {
        answer_all(waiters, &Err(VaultFault::Failed("no place".into())));
    }
}

/// A batch came to rest.
fn go_on(progress: &Progress, budget: &Budget) {
    if planted() == Some(Fault::OpensLate) {
        if progress.go_on(&Budget::new(LIMIT)) {
            budget.open();
        }
    } else {
        progress.go_on(budget);
    }
}

fn one_answer() {
    let (progress, budget) = (Arc::new(Progress::default()), Arc::new(Budget::new(LIMIT)));
    let durable = Arc::new(AtomicU64::new(0));
    let log = {
        let (progress, budget, durable) = (Arc::clone(&progress), Arc::clone(&budget), Arc::clone(&durable));
        thread::spawn(move || {
            for batch in 1..BATCHES {
                durable.store(batch, SeqCst);
                let due = progress.durable_to(batch);
                progress.go_on(&budget);
                answer_all(due, &Ok(()));
            }
        })
    };
    let stopper = {
        let (progress, budget) = (Arc::clone(&progress), Arc::clone(&budget));
        thread::spawn(move || stop(&progress, false, &budget))
    };
    let answers: Vec<Arc<AtomicU64>> = (0..4).map(|_| Arc::default()).collect();
    let syncs: Vec<_> = [1, 2, BATCHES, 1]
        .into_iter()
        .zip(&answers)
        .map(|(batch, answers)| {
            let (progress, durable, answers) = (Arc::clone(&progress), Arc::clone(&durable), Arc::clone(answers));
            thread::spawn(move || {
                let reply = move |answer: Result<(), VaultFault>| {
                    answers.fetch_add(1, SeqCst);
                    assert!(answer.is_err() || durable.load(SeqCst) >= batch, "acknowledged before it was durable");
                };
                let waiter = Waiter { batch, since: Duration::ZERO, reply: Box::new(reply) };
                if let Some((waiter, answer)) = progress.enlist(waiter) {
                    (waiter.reply)(answer);
                }
            })
        })
        .collect();
    log.join().unwrap();
    // The last batch never comes to rest: the vault is closed before.
    progress.close(&budget);
    answer_all(progress.end(), &Err(VaultFault::Closed));
    stopper.join().unwrap();
    syncs.into_iter().for_each(|s| s.join().unwrap());
    for (n, answers) in answers.iter().enumerate() {
        assert_eq!(answers.load(SeqCst), 1, "waiter {n} has one answer");
    }
}

fn retired() {
    let progress = Arc::new(Progress::default());
    let waiters = [1, BATCHES].map(|batch| {
        let progress = Arc::clone(&progress);
        thread::spawn(move || {
            let mut held = progress.held();
            while held.retired < batch {
                held = progress.wait(held, Duration::from_millis(50));
            }
        })
    });
    for batch in 1..=BATCHES {
        answer_all(progress.durable_to(batch), &Ok(()));
        progress.retired_to(batch);
    }
    waiters.into_iter().for_each(|w| w.join().unwrap());
}

/// What two threads at once do to a log that has stopped for the moment.
fn meanwhile(first: fn(&Progress, &Budget), second: fn(&Progress, &Budget)) -> (Arc<Progress>, Arc<Budget>) {
    let (progress, budget) = (Arc::new(Progress::default()), Arc::new(Budget::new(LIMIT)));
    stop(&progress, false, &budget);
    let both = [first, second].map(|act| {
        let (progress, budget) = (Arc::clone(&progress), Arc::clone(&budget));
        thread::spawn(move || act(&progress, &budget))
    });
    both.into_iter().for_each(|t| t.join().unwrap());
    (progress, budget)
}

fn for_good() {
    let (progress, budget) = meanwhile(go_on, |progress, budget| stop(progress, true, budget));
    go_on(&progress, &budget);
    assert!(progress.has_given_up() && progress.is_stopped() && progress.check().is_err());
    assert!(budget.take(1, || ()).is_none(), "it has given up and takes a writer in");
    let (progress, budget) = meanwhile(go_on, |progress, budget| progress.close(budget));
    assert!(!progress.is_stopped() && progress.check().is_ok());
    assert!(budget.take(1, || ()).is_none(), "it is closed and takes a writer in");
}

fn goes_on() {
    let (progress, budget) = meanwhile(go_on, |progress, budget| stop(progress, false, budget));
    assert_eq!(progress.is_stopped(), budget.take(1, || ()).is_none(), "the budget is open exactly while it goes on");
    go_on(&progress, &budget);
    assert!(!progress.is_stopped() && budget.take(1, || ()).is_some());
}
