//! The vault without threads: its actors are run inline, one step at a time, wherever a thread would wait.
//!
//! Promise: with one chooser, one clock and one source of entropy, a run repeats to the last disk call; the code that runs
//! is the same as with threads. How: an actor that waits for another (`Shared::pause`) runs the others meanwhile, on its own
//! stack; it is itself out of the list until its step returns, so no actor runs twice at once.
//! Called by: `open` (puts the actors in), every wait of the vault, tests. On failure: a wait for what no actor can bring
//! about lets time pass, and hangs only if time cannot either.

use crate::base::lock::Held;
use std::sync::{Arc, Mutex};

/// One of the vault's activities.
pub trait Actor: Send {
    /// Does one piece of work, if there is one; says whether.
    fn step(&mut self) -> bool;
}

/// Chooses one of so many.
pub type Choose = Arc<dyn Fn(usize) -> usize + Send + Sync>;

/// The actors and who goes next.
pub struct Stepper {
    choose: Choose,
    actors: Mutex<Vec<Option<Box<dyn Actor>>>>,
}

impl Stepper {
    /// With nobody yet.
    pub fn new(choose: Choose) -> Stepper {
        Stepper { choose, actors: Mutex::default() }
    }

    /// Adds an actor.
    pub fn add(&self, actor: Box<dyn Actor>) {
        self.actors.held().push(Some(actor));
    }

    /// Takes all actors away.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *self.actors.held());
        drop(all);
    }

    /// One step of one actor, beginning the search with the chosen one; says whether anyone had something to do.
    pub fn step(&self) -> bool {
        let count = self.actors.held().len();
        let first = if count > 1 { (self.choose)(count) } else { 0 };
        for at in (0..count).map(|i| (first + i) % count) {
            let Some(mut actor) = self.actors.held().get_mut(at).and_then(Option::take) else { continue };
            let did = actor.step();
            if let Some(place) = self.actors.held().get_mut(at) {
                *place = Some(actor);
            }
            if did {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    struct Counts(Arc<AtomicUsize>, usize);

    impl Actor for Counts {
        fn step(&mut self) -> bool {
            self.1 > 0 && {
                self.1 -= 1;
                self.0.fetch_add(1, SeqCst);
                true
            }
        }
    }

    #[test]
    fn everyone_comes_to_an_end_whatever_is_chosen() {
        let steps = Arc::new(AtomicUsize::new(0));
        let stepper = Stepper::new(Arc::new(|n| n - 1));
        for work in [3, 0, 4] {
            stepper.add(Box::new(Counts(Arc::clone(&steps), work)));
        }
        while stepper.step() {}
        assert_eq!(steps.load(SeqCst), 7);
    }
}
