//! The byte budget.
//!
//! Promise (I8): what is inside never exceeds the limit, but for one write that is larger than all of it and passes alone;
//! waiters are served in the order of their arrival; every waiter ends; closing refuses all of them, opening takes in again.

use crate::buffer::Budget;
use crate::explore::{Fault, Harness, planted};
use shuttle::sync::Mutex;
use shuttle::sync::atomic::{AtomicU64, Ordering::SeqCst};
use shuttle::thread;
use std::sync::Arc;

pub const ALL: &[Harness] = &[
    Harness {
        name: "budget_never_lets_in_more_than_its_limit_and_everyone_gets_through",
        run: limit,
        faults: &[Fault::WakesNobody, Fault::WakesOne, Fault::NotAdmitted],
    },
    Harness { name: "budget_serves_in_order_of_arrival", run: order, faults: &[Fault::JumpsTheQueue, Fault::WakesOne] },
    Harness {
        name: "closing_the_budget_ends_every_wait_and_opening_takes_in_again",
        run: close_and_open,
        faults: &[Fault::WakesNobody],
    },
];

const LIMIT: u64 = 10;

fn limit() {
    let (budget, inside) = (Arc::new(Budget::new(LIMIT)), Arc::new(AtomicU64::new(0)));
    let writers = [4, 7, 25, 3].map(|bytes| {
        let (budget, inside) = (Arc::clone(&budget), Arc::clone(&inside));
        thread::spawn(move || {
            for round in 0..2 {
                let room = match planted() {
                    Some(Fault::NotAdmitted) => {
                        budget.add(bytes);
                        None
                    }
                    _ if round == 1 && bytes == 3 => {
                        let Some(room) = budget.try_take(bytes) else { continue };
                        Some(room)
                    }
                    _ => Some(budget.take(bytes, || ()).expect("it is not closed")),
                };
                let now = inside.fetch_add(bytes, SeqCst) + bytes;
                assert!(now <= LIMIT || now == bytes, "{now} bytes are inside");
                thread::yield_now();
                inside.fetch_sub(bytes, SeqCst);
                match room {
                    // Unspent, and what is spent and given back later.
                    Some(room) if round == 0 => drop(room),
                    Some(room) => {
                        room.spend(bytes - 1);
                        budget.give_back(bytes - 1);
                    }
                    None => budget.give_back(bytes),
                }
            }
        })
    });
    writers.into_iter().for_each(|w| w.join().unwrap());
    assert_eq!((budget.used_bytes(), budget.waiting()), (0, 0));
}

fn order() {
    let (budget, served) = (Arc::new(Budget::new(LIMIT)), Arc::new(Mutex::new(Vec::new())));
    budget.add(LIMIT);
    let mut waiters = Vec::new();
    for n in 0..3 {
        let (mine, served) = (Arc::clone(&budget), Arc::clone(&served));
        waiters.push(thread::spawn(move || {
            let room = match planted() {
                Some(Fault::JumpsTheQueue) => loop {
                    if let Some(room) = mine.try_take(LIMIT) {
                        break room;
                    }
                    thread::yield_now();
                },
                _ => mine.take(LIMIT, || ()).expect("it is not closed"),
            };
            // Room for one only: what is noted here is the order of service.
            served.lock().unwrap().push(n);
            drop(room);
        }));
        while planted() != Some(Fault::JumpsTheQueue) && budget.waiting() <= n {
            thread::yield_now();
        }
    }
    budget.give_back(LIMIT);
    waiters.into_iter().for_each(|w| w.join().unwrap());
    assert_eq!(*served.lock().unwrap(), [0, 1, 2]);
}

fn close_and_open() {
    let budget = Arc::new(Budget::new(LIMIT));
    budget.add(LIMIT);
    let waiters = [1, 5, 10].map(|bytes| {
        let budget = Arc::clone(&budget);
        thread::spawn(move || budget.take(bytes, || ()).is_none())
    });
    let closer = {
        let budget = Arc::clone(&budget);
        thread::spawn(move || budget.close())
    };
    for waiter in waiters {
        assert!(waiter.join().unwrap(), "there was never room");
    }
    closer.join().unwrap();
    assert!(budget.take(0, || ()).is_none() && budget.try_take(0).is_none(), "it is closed");
    budget.open();
    budget.give_back(LIMIT);
    assert!(budget.take(LIMIT, || ()).is_some(), "it is open again, and all of it is free");
}
