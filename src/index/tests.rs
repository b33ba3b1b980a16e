//! Method: a random program runs on the index and on a map; every look must agree, whatever has been sealed or applied.
//! Promise: the newest change wins, removals hide, ranges are whole, and a failed apply loses nothing.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// One step of the program.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Change(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    SealDirect,
    SealDerived,
    Apply { fails: bool },
    Move,
    Get(Vec<u8>),
    Scan { prefix: Vec<u8>, from: Vec<u8>, limit: usize },
    LastBefore { prefix: Vec<u8>, before: Vec<u8> },
}

/// Few and short keys of both classes, so that they collide.
pub(super) fn any_key() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(&b"EINT\xff"[..]);
    let byte = prop::sample::select(&[0u8, 1, 2, 0xfe, 0xff][..]);
    let long = prop::bool::weighted(0.1);
    (kind, prop::collection::vec(byte, 0..4), long).prop_map(|(kind, mut rest, long)| {
        rest.insert(0, kind);
        if long {
            rest.resize(30, 7);
        }
        rest
    })
}

fn any_bound() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![9 => any_key(), 1 => Just(Vec::new())]
}

pub(super) fn any_step() -> impl Strategy<Value = Step> {
    let value = prop::option::weighted(0.6, prop::collection::vec(any::<u8>(), 0..6));
    prop_oneof![
        8 => prop::collection::vec((any_key(), value), 1..8).prop_map(Step::Change),
        1 => Just(Step::SealDirect),
        1 => Just(Step::SealDerived),
        1 => prop::bool::weighted(0.3).prop_map(|fails| Step::Apply { fails }),
        1 => Just(Step::Move),
        3 => any_key().prop_map(Step::Get),
        4 => (any_bound(), any_bound(), 0..40usize)
            .prop_map(|(prefix, from, limit)| Step::Scan { prefix, from, limit }),
        4 => (any_bound(), any_bound()).prop_map(|(prefix, before)| Step::LastBefore { prefix, before }),
    ]
}

/// Shortens a range's prefix so that it often holds something.
fn cut(prefix: &[u8]) -> &[u8] {
    &prefix[..prefix.len().min(2)]
}

pub(super) type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Runs one step on both and compares. `Apply` is left to the caller, who knows the table.
pub(super) fn run(index: &Index, model: &mut Model, step: Step) {
    match step {
        Step::Change(changes) => {
            for (key, value) in &changes {
                match value {
                    Some(value) => drop(model.insert(key.clone(), value.clone())),
                    None => drop(model.remove(key)),
                }
            }
            index.change(changes);
        }
        Step::SealDirect => index.seal_direct(),
        Step::SealDerived => index.seal_derived(),
        Step::Apply { .. } | Step::Move => {}
        Step::Get(key) => assert_eq!(index.get(&key).unwrap(), model.get(&key).cloned()),
        Step::Scan { prefix, from, limit } => {
            let prefix = cut(&prefix);
            let expected = model.iter().filter(|(k, _)| k.starts_with(prefix) && **k >= from);
            let expected: Vec<Entry> = expected.take(limit).map(|(k, v)| (k.clone(), v.clone())).collect();
            assert_eq!(index.scan(prefix, &from, limit).unwrap(), expected);
            // Any key will do for an end.
            let end = model.keys().nth(model.len() / 2).cloned().unwrap_or_default();
            let below: Vec<Entry> = expected.into_iter().filter(|(k, _)| *k < end).collect();
            assert_eq!(index.scan_below(prefix, &from, Some(&end), limit).unwrap(), below);
        }
        Step::LastBefore { prefix, before } => {
            let prefix = cut(&prefix);
            let expected = model.iter().rfind(|(k, _)| k.starts_with(prefix) && **k < before);
            let expected = expected.map(|(k, v)| (k.clone(), v.clone()));
            assert_eq!(index.scan_last_before(prefix, &before).unwrap(), expected);
        }
    }
}

/// Everything an index holds.
pub(super) fn contents(index: &Index) -> Model {
    index.scan(b"", b"", usize::MAX).unwrap().into_iter().collect()
}

/// A memory table whose failures the test commands while the index owns it.
struct Commanded(Arc<MemoryTable>);

impl Table for Commanded {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexFault> {
        self.0.get(key)
    }
    fn scan(&self, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Entry>, IndexFault> {
        self.0.scan(prefix, from, limit)
    }
    fn scan_last_before(&self, prefix: &[u8], before: &[u8]) -> Result<Option<Entry>, IndexFault> {
        self.0.scan_last_before(prefix, before)
    }
    fn freeze(&self) -> Result<Box<dyn Frozen>, IndexFault> {
        self.0.freeze()
    }
    fn apply(&self, changes: &mut Changes<'_>) -> Result<(), IndexFault> {
        self.0.apply(changes)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_index_is_an_ordered_map(steps in prop::collection::vec(any_step(), 1..120)) {
        let mut table = Arc::new(MemoryTable::default());
        let index = Index::new(Box::new(Commanded(Arc::clone(&table))));
        let mut model = Model::new();
        for step in steps {
            if let Step::Move = step {
                let next = Arc::new(MemoryTable::default());
                let moved = index.begin_move(Box::new(Commanded(Arc::clone(&next)))).unwrap();
                // What is changed meanwhile stays in front of either table.
                let value = Some(vec![model.len() as u8]);
                run(&index, &mut model, Step::Change(vec![(b"Imeanwhile".to_vec(), value)]));
                prop_assert_eq!(&contents(&index), &model);
                moved.finish();
                // Nobody looks at the old one any more.
                table.apply(&mut [(&b"Istray"[..], Some(&b"x"[..]))].into_iter()).unwrap();
                table = next;
                prop_assert_eq!(&contents(&index), &model);
            }
            if let Step::Apply { fails } = step {
                table.fail_next_applies(u64::from(fails));
                let nothing_sealed = {
                    let o = index.overlays.shared();
                    o.direct.sealed.is_empty() && o.derived.sealed.is_empty()
                };
                assert_eq!(index.apply_sealed(&[]).is_ok(), !fails || nothing_sealed);
                table.fail_next_applies(0);
            }
            run(&index, &mut model, step);
        }
        prop_assert_eq!(&contents(&index), &model);
        index.seal_direct();
        index.seal_derived();
        index.apply_sealed(&[(b"Vextra".to_vec(), b"1".to_vec())]).unwrap();
        model.insert(b"Vextra".to_vec(), b"1".to_vec());
        prop_assert_eq!((index.overlay_entries(), index.overlay_bytes()), (0, 0));
        prop_assert_eq!(&contents(&index), &model);
    }
}

#[test]
fn readers_see_all_of_a_change_or_nothing_while_it_moves_into_the_table() {
    let index = Index::new(Box::new(MemoryTable::default()));
    let pair = |n: u64| {
        let value = Some(n.to_be_bytes().to_vec());
        // The removals pile up behind the two: before them, they would part the two into two rounds of a scan, which are
        // two moments.
        vec![(b"Ia".to_vec(), value.clone()), (b"Ib".to_vec(), value), (format!("Ic{n}").into_bytes(), None)]
    };
    index.change(pair(0));
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..20_000 {
                index.change(pair(n));
                if n % 3 == 0 {
                    index.seal_direct();
                }
            }
            done.store(true, SeqCst);
        });
        scope.spawn(|| {
            while !done.load(SeqCst) {
                index.apply_sealed(&[]).unwrap();
                index.begin_move(Box::new(MemoryTable::default())).unwrap().finish();
            }
        });
        let mut newest = 0;
        while !done.load(SeqCst) {
            let seen = index.scan(b"I", b"", 10).unwrap();
            assert_eq!(seen.len(), 2);
            assert_eq!(seen[0].1, seen[1].1);
            let last = index.scan_last_before(b"I", b"Iz").unwrap().unwrap();
            let value = u64::from_be_bytes(last.1.try_into().unwrap());
            assert!(value >= newest, "{value} after {newest}");
            newest = value;
        }
    });
}

/// As an extent whose beginning is overwritten moves to where the rest of it begins: the read found neither, and zeros.
#[test]
fn an_entry_that_moves_to_a_higher_key_is_never_missed() {
    let index = Index::new(Box::new(MemoryTable::default()));
    let value = || Some(vec![1]);
    index.change(vec![(b"Ea".to_vec(), value()), (b"Ec".to_vec(), None)]);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..30_000 {
                index.change(vec![(b"Ea".to_vec(), None), (b"Ec".to_vec(), value())]);
                index.change(vec![(b"Ea".to_vec(), value()), (b"Ec".to_vec(), None)]);
                if n % 100 == 0 {
                    index.seal_derived();
                    index.apply_sealed(&[]).unwrap();
                }
            }
            done.store(true, SeqCst);
        });
        while !done.load(SeqCst) {
            assert!(index.scan_last_before(b"E", b"Ez").unwrap().is_some(), "it was always there");
        }
    });
}

#[test]
fn what_is_weighed_goes_down_when_it_is_applied_and_up_only_once_per_key() {
    let index = Index::new(Box::new(MemoryTable::default()));
    for _ in 0..3 {
        index.change(vec![(b"Ikey".to_vec(), Some(vec![1; 100])), (b"Ekey".to_vec(), Some(vec![1; 100]))]);
    }
    assert_eq!(index.overlay_entries(), 2);
    let weight = index.overlay_bytes();
    assert!((300..500).contains(&weight), "{weight}");
    index.seal_derived();
    index.apply_sealed(&[]).unwrap();
    assert_eq!((index.overlay_entries(), index.overlay_bytes()), (1, weight / 2));
}
