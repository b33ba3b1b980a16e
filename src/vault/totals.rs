//! Statistics and history that outlive the mount (format.md §5).
//!
//! Promise: what is shown as a total counts since the vault was made, as far as it was closed or checkpointed; a crash loses
//! at most what was counted since. A rebuilt index goes back to what the log has of them. They are statistics: nothing but
//! what people are shown depends on them. Called by: `open` (load), `checkpoint` and `log` (store), `Vault` (show).
//! On failure: what cannot be read counts as nothing.

use super::batch::Batch;
use super::shared::Shared;
use super::state::State;
use super::stats::{Line, Stats};
use crate::base::limits::HISTORY_LINES_STORED;
use crate::base::lock::Held;
use crate::base::world::Time;
use crate::format::key;
use crate::format::record::Record;
use crate::index::{Index, IndexFault};
use std::collections::BTreeMap;
use std::fmt::Write as _;

const TOTALS: &str = "totals";
const HISTORY: &str = "history";

/// Names and numbers.
pub type Totals = BTreeMap<String, u64>;

/// Reads what earlier mounts counted, and puts their history before ours.
pub fn load(index: &Index, stats: &Stats) -> Result<Totals, IndexFault> {
    let text = |name| {
        let value = index.get(&key::setting(name))?.unwrap_or_default();
        Ok::<_, IndexFault>(String::from_utf8_lossy(&value).into_owned())
    };
    stats.remember(text(HISTORY)?.lines().filter_map(line).collect());
    let number = |l: &str| l.split_once(' ').and_then(|(name, n)| Some((name.to_owned(), n.parse().ok()?)));
    Ok(text(TOTALS)?.lines().filter_map(number).collect())
}

fn line(text: &str) -> Option<Line> {
    let mut parts = text.splitn(3, ' ');
    let (seconds, nanos) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(Line::new(Time { seconds, nanos }, parts.next()?.to_owned()))
}

/// All totals as of now: those of earlier mounts and ours.
pub fn now(shared: &Shared) -> Totals {
    let mut all = shared.earlier.clone();
    let mut add = |name: String, n: u64| {
        let sum = all.entry(name).or_default();
        *sum = sum.saturating_add(n);
    };
    for (name, _, n) in shared.stats.counters() {
        add(name.to_owned(), n);
    }
    let held = shared.machine.held().held(shared.world.elapsed());
    for (state, held) in State::ALL.into_iter().zip(held) {
        add(format!("state_{state}_entered"), held.entered);
        add(format!("state_{state}_ms"), held.time.as_millis() as u64);
    }
    all
}

/// The entries of the index that hold them.
pub fn entries(shared: &Shared) -> Vec<(Vec<u8>, Vec<u8>)> {
    let totals = now(shared).iter().fold(String::new(), |mut text, (name, n)| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name} {n}");
        text
    });
    let lines = shared.stats.history();
    let newest = &lines[lines.len().saturating_sub(HISTORY_LINES_STORED)..];
    let history = newest.iter().fold(String::new(), |mut text, l| {
        let _ = writeln!(text, "{} {} {}", l.at.seconds, l.at.nanos, l.text.replace('\n', " "));
        text
    });
    vec![(key::setting(TOTALS), totals.into_bytes()), (key::setting(HISTORY), history.into_bytes())]
}

/// Puts them into a batch that is being cut, so that the log has them.
pub fn store(shared: &Shared, batch: &mut Batch) {
    let entries = entries(shared);
    for (key, value) in &entries {
        batch.record(&Record::Put { key, value });
    }
    shared.index.change(entries.into_iter().map(|(k, v)| (k, Some(v))).collect());
}
