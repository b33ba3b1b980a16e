//! Gives memory back while the machine has little left, and takes it again when there is enough; gives back what nobody uses when
//! this process holds more than its budget, and when it rests.
//!
//! Promise: buffers and caches may use between a quarter and all of their shares of the byte budget. What is buffered is
//! never dropped for it: writers wait, as they do at the whole share.
//! Called by: `checkpoint`'s housekeeper, every second. Takes: locks of the budget and the caches, one at a time. Cannot fail.

use super::shared::Shared;
use crate::base::limits::{
    MEMORY_BESIDE_BYTES, MEMORY_PARTS as PARTS, MEMORY_PARTS_MIN, MEMORY_PLENTY_ONE_IN, MEMORY_SHORT_ONE_IN,
    MEMORY_TRIM_PAUSE,
};
use crate::base::lock::Held;
use crate::base::world::Memory;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// What part of their shares buffers and caches may use, and what was given back last.
pub struct Pressure {
    part: u64,
    trimmed_at: Duration,
    /// The operation after which it rests, and has given back what it does not need then.
    rests_after_ms: Option<u64>,
}

impl Pressure {
    /// All of it.
    pub fn none() -> Pressure {
        Pressure { part: PARTS, trimmed_at: Duration::ZERO, rests_after_ms: None }
    }

    /// Looks how much memory there is, and how much of it is ours.
    pub fn mind(&mut self, shared: &Shared) {
        self.mind_the_machine(shared);
        self.mind_our_own(shared);
    }

    /// What is freed stays with the allocator, in holes between what is used. It must not come to more than may be held beside the
    /// budget; and at rest nobody needs it.
    fn mind_our_own(&mut self, shared: &Shared) {
        let (now, last) = (shared.world.elapsed(), shared.last_op_ms.load(Relaxed));
        let rests = shared.is_idle();
        let most = shared.shares.budget_bytes + MEMORY_BESIDE_BYTES;
        let is_much =
            now >= self.trimmed_at + MEMORY_TRIM_PAUSE && shared.world.resident_bytes().is_some_and(|held| held > most);
        if rests || is_much {
            shared.pool.leave(shared.shares.idle_pool_bytes());
        }
        if is_much || rests && self.rests_after_ms != Some(last) {
            shared.world.trim();
            self.trimmed_at = now;
        }
        self.rests_after_ms = rests.then_some(last);
    }

    /// Divides the shares anew.
    fn mind_the_machine(&mut self, shared: &Shared) {
        let Some(memory) = shared.world.memory() else { return };
        let before = self.part;
        let part = part_after(before, memory);
        if part == before {
            return;
        }
        self.part = part;
        let of = |bytes: u64| bytes / PARTS * part;
        shared.dirty.set_limit(of(shared.shares.dirty_bytes));
        shared.cache.set_limit(of(shared.shares.cache_bytes));
        shared.pool.keep(of(shared.shares.dirty_bytes));
        if part < before {
            shared.pool.leave(of(shared.shares.idle_pool_bytes()));
            let spare = std::mem::take(&mut *shared.group_buffers.held());
            drop(spare);
            // What is buffered beyond the new limit goes to rest now.
            shared.cut_wanted.store(true, Relaxed);
            shared.wake_log();
            shared.world.trim();
        }
        if part < before || part == PARTS {
            let left = memory.available_bytes >> 20;
            let said = format!(
                "{left} MiB of memory are left: buffers and caches may use {part} of {PARTS} parts of their shares"
            );
            shared.stats.event(shared.world.now(), said);
        }
    }
}

/// Down by half at once, up step by step.
fn part_after(part: u64, memory: Memory) -> u64 {
    let Memory { total_bytes, available_bytes } = memory;
    if available_bytes < total_bytes / MEMORY_SHORT_ONE_IN {
        (part / 2).max(MEMORY_PARTS_MIN)
    } else if available_bytes > total_bytes / MEMORY_PLENTY_ONE_IN {
        (part + 1).min(PARTS)
    } else {
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_halves_plenty_adds_and_between_nothing_moves() {
        let after = |part, available_bytes| part_after(part, Memory { total_bytes: 1600, available_bytes });
        assert_eq!([8, 4, 3, 2].map(|part| after(part, 99)), [4, 2, 2, 2]);
        assert_eq!([2, 7, 8].map(|part| after(part, 201)), [3, 8, 8]);
        assert_eq!([2, 5, 8].map(|part| after(part, 100)), [2, 5, 8]);
        assert_eq!([2, 5, 8].map(|part| after(part, 200)), [2, 5, 8]);
    }
}
