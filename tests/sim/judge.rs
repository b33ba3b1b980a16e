//! What may be found after a power cut: exactly one state of the history, not older than the last acknowledged sync, not
//! newer than the last operation begun.

use super::tree::Tree;
use std::sync::{Arc, Mutex};
use strongroom::backing::{Fate, Unsynced, mix};

/// A state of the reference, and when the operation that made it began.
#[derive(Debug, Clone)]
pub struct State {
    pub tree: Tree,
    pub hash: u64,
    /// Calls that the disk had got by then.
    pub begun: usize,
    pub said: String,
}

/// States in order, and what was acknowledged when.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub states: Vec<State>,
    /// A state that is durable, and the calls that the disk had got when that was said.
    pub acknowledged: Arc<Mutex<Vec<(usize, usize)>>>,
}

impl History {
    pub fn push(&mut self, tree: &Tree, begun: usize, said: String) {
        self.states.push(State { tree: tree.clone(), hash: tree.hash(), begun, said });
    }
    /// The same up to so many calls; what is acknowledged later to whoever held the old one is not seen here.
    pub fn copy(&self, calls: usize) -> History {
        let told = self.acknowledged.lock().unwrap().iter().filter(|(_, at)| *at <= calls).copied().collect();
        History { states: self.states.clone(), acknowledged: Arc::new(Mutex::new(told)) }
    }
    pub fn newest(&self) -> usize {
        self.states.len() - 1
    }
    pub fn acknowledge(&self, state: usize, calls: usize) {
        self.acknowledged.lock().unwrap().push((state, calls));
    }

    /// Oldest and newest state that may be found.
    pub fn allowed(&self, cut: usize) -> (usize, usize) {
        let acknowledged = self.acknowledged.lock().unwrap();
        let oldest = acknowledged.iter().filter(|(_, at)| *at <= cut).map(|(state, _)| *state).max().unwrap_or(0);
        let newest = (0..self.states.len()).rev().find(|i| self.states[*i].begun < cut).unwrap_or(0);
        (oldest, newest.max(oldest))
    }

    /// The state that was found, or what is wrong with it.
    pub fn judge(&self, found: &Tree, cut: usize) -> Result<usize, String> {
        let (oldest, newest) = self.allowed(cut);
        let hash = found.hash();
        if let Some(state) = (oldest..=newest).rev().find(|i| self.states[*i].hash == hash) {
            return Ok(state);
        }
        let known = self.states.iter().position(|s| s.hash == hash);
        Err(match known {
            Some(n) if n < oldest => {
                format!("state {n} was found, but state {oldest} was acknowledged{}", self.told(n, oldest))
            }
            Some(n) => format!("state {n} was found, which nobody had asked for yet: at most {newest}"),
            None => {
                let near = |i: &usize| self.states[*i].tree.differences(found).len();
                let nearest = (oldest..=newest).min_by_key(near).expect("a range of one at least");
                let differences = self.states[nearest].tree.differences(found);
                format!(
                    "none of the states {oldest} to {newest} was found; nearest is {nearest}:{differences}{}",
                    self.told(oldest, newest)
                )
            }
        })
    }

    fn told(&self, from: usize, to: usize) -> String {
        let line =
            |i: usize| format!("\n    state {i}, begun at call {}: {}", self.states[i].begun, self.states[i].said);
        (from..=to).map(line).collect()
    }
}

/// What a power cut leaves of each change that was not synced: a pure function of a number.
#[derive(Debug, Clone, Copy)]
pub struct Fates(pub u64);

impl Fates {
    pub fn of(self, u: &Unsynced<'_>, cut: usize) -> Fate {
        let coins = mix(self.0 ^ mix(u.call as u64));
        let torn = |unit_bytes| Fate::Torn { unit_bytes, coins };
        let kept = |yes: bool| if yes { Fate::Kept } else { Fate::Lost };
        match self.0 % 12 {
            0 => Fate::Lost,
            1 => Fate::Kept,
            2 | 3 => kept(coins & 2 == 0),
            4 => torn(512),
            5 => torn(4096),
            // In order, up to some call; that one torn.
            6 => match (u.call as u64).cmp(&((self.0 >> 8) % (cut as u64 + 1))) {
                std::cmp::Ordering::Less => Fate::Kept,
                std::cmp::Ordering::Equal => torn(512),
                std::cmp::Ordering::Greater => Fate::Lost,
            },
            // Only the newest is missing, or torn.
            7 => kept(u.call + 1 != cut),
            8 if u.call + 1 == cut => torn(512),
            8 => Fate::Kept,
            9 => kept(u.of_names),
            10 => kept(!u.of_names),
            _ => match coins % 4 {
                0 => Fate::Lost,
                1 => Fate::Kept,
                2 => torn(512),
                _ => torn(4096),
            },
        }
    }
}
