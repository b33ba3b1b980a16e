//! Counters and latency histograms that cost one atomic addition.
//!
//! Promise: recording never blocks and never allocates; reading gives totals that only grow.
//! Called by: `vault::stats` and `fs::stats` while working, `/.storage` when read. Cannot fail.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    /// The total so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper edges of the buckets, in microseconds; the last bucket has none.
pub const EDGES_US: [u64; 20] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 10_000_000,
];

/// Durations counted in buckets, 1–2–5 per decade from 1 µs to 10 s.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; EDGES_US.len() + 1],
    sum_ns: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Count per bucket (not cumulative); one more than there are edges.
    pub buckets: [u64; EDGES_US.len() + 1],
    /// All durations added, in nanoseconds.
    pub sum_ns: u64,
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, took: Duration) {
        let us = took.as_micros() as u64;
        let bucket = EDGES_US.partition_point(|&edge| edge < us);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(took.as_nanos() as u64, Relaxed);
    }
    /// The counts now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { buckets: std::array::from_fn(|i| self.buckets[i].load(Relaxed)), sum_ns: self.sum_ns.load(Relaxed) }
    }
}

impl Snapshot {
    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
    /// The upper edge of the bucket in which the given share (0 to 1) of the counts is reached, in microseconds.
    pub fn quantile_us(&self, share: f64) -> u64 {
        let want = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (i, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= want && seen > 0 {
                return EDGES_US.get(i).copied().unwrap_or(u64::MAX);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lands_under_its_edge() {
        let h = Histogram::default();
        h.record(Duration::from_micros(5));
        h.record(Duration::from_micros(6));
        let s = h.snapshot();
        assert_eq!((s.buckets[2], s.buckets[3], s.count()), (1, 1, 2));
        assert_eq!((s.quantile_us(0.5), s.quantile_us(1.0)), (5, 10));
    }
}
