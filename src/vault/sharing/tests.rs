//! Random commits of writes, holes and copies, applied to an index and counted anew from nothing.
//!
//! Method: files are arrays of blocks, each empty or a block of a run. A commit is what `commit` would make of a batch: what
//! each file shows at its end, file by file in any order. After each, every derived key and every dead range is compared with
//! what the arrays say; each commit is also applied, taken back and applied again, and all of them replayed.
//! Promise: a frame dies in the commit after which no block of it is held, and in no other. The planted fault, an index that does
//! not know that anything is shared, is caught.

use super::TOTAL;
use crate::base::choice::Codec;
use crate::base::id::{Epoch, Ino, KeyNumber, SegmentId, Slot};
use crate::format::extent::{Extent, Origin, Run};
use crate::format::holders::{Holder, Holders};
use crate::format::key;
use crate::format::record::Record;
use crate::format::segment::SegmentInfo;
use crate::index::{Index, MemoryTable};
use crate::vault::apply::apply;
use crate::vault::shared::DeadRange;
use std::collections::{BTreeMap, BTreeSet};

const BLOCK: u64 = 512;
const CHUNK_BLOCKS: usize = 256;
const BLOCKS: usize = 3 * CHUNK_BLOCKS;
const FILES: usize = 3;
const SEGMENT: SegmentId = SegmentId(4);

/// A block of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cell {
    run: usize,
    block: usize,
    copied: bool,
}

type File = Vec<Option<Cell>>;

#[derive(Default)]
struct Model {
    files: Vec<File>,
    runs: Vec<(Run, Origin)>,
    position: u64,
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

impl Model {
    fn new() -> Model {
        Model { files: vec![vec![None; BLOCKS]; FILES], ..Model::default() }
    }

    /// A run for a range within a chunk of a file.
    fn fresh(&mut self, file: usize, from: usize, len: usize, dice: &mut Dice) -> usize {
        let (plain, unit_log2) = ((len as u64 * BLOCK) as u32, [12, 14, 16][dice.below(3)]);
        let unit = 1u32 << unit_log2;
        let sealed_lens: Vec<u32> = (0..plain.div_ceil(unit)).map(|i| unit.min(plain - i * unit) + 16).collect();
        let origin = Origin { ino: ino(file), start_bytes: from as u64 * BLOCK };
        let run = Run {
            segment: SEGMENT,
            position_bytes: self.position,
            slot: Slot(0),
            codec: Codec::Raw,
            unit_log2,
            plain_len_bytes: plain,
            sealed_lens,
        };
        self.position += run.sealed_len_bytes() + 100;
        self.runs.push((run, origin));
        self.runs.len() - 1
    }

    fn extent(&self, first: Cell, blocks: usize) -> Extent {
        let (run, origin) = &self.runs[first.run];
        Extent {
            len_bytes: (blocks as u64 * BLOCK) as u32,
            skip_bytes: (first.block as u64 * BLOCK) as u32,
            run: run.clone(),
            copied: first.copied.then_some(*origin),
        }
    }

    /// The frames held, as run and number.
    fn frames(&self) -> BTreeSet<(usize, usize)> {
        let cells = self.files.iter().flatten().flatten();
        cells.map(|c| (c.run, (c.block * BLOCK as usize) >> self.runs[c.run].0.unit_log2)).collect()
    }

    /// One batch; gives its records.
    fn batch(&mut self, dice: &mut Dice) -> Vec<u8> {
        let at_rest = self.runs.len();
        let mut layers: Vec<Vec<Option<Option<Cell>>>> = vec![vec![None; BLOCKS]; FILES];
        for _ in 0..1 + dice.below(6) {
            let (file, from) = (dice.below(FILES), dice.below(BLOCKS));
            let most = if dice.below(2) == 0 { 20 } else { CHUNK_BLOCKS };
            let len = (1 + dice.below(most)).min(BLOCKS - from);
            match dice.below(8) {
                0..=2 => {
                    let len = len.min(CHUNK_BLOCKS - from % CHUNK_BLOCKS);
                    let run = self.fresh(file, from, len, dice);
                    (0..len).for_each(|i| layers[file][from + i] = Some(Some(Cell { run, block: i, copied: false })));
                }
                3 => layers[file][from..from + len].fill(Some(None)),
                _ => {
                    // What is at rest, or copied in this very batch; what is new in it is copied as bytes, and left out here.
                    let (to_file, to) = (dice.below(FILES), dice.below(BLOCKS));
                    let shown: Vec<_> = (from..from + len.min(BLOCKS - to))
                        .map(|i| layers[file][i].unwrap_or(self.files[file][i]))
                        .collect();
                    for (i, cell) in shown.into_iter().enumerate() {
                        if cell.is_none_or(|c| c.run < at_rest) {
                            layers[to_file][to + i] = Some(cell.map(|c| Cell { copied: true, ..c }));
                        }
                    }
                }
            }
        }
        let mut order: Vec<usize> = (0..FILES).collect();
        order.rotate_left(dice.below(FILES));
        let mut records = Vec::new();
        for file in order {
            let mut at = 0;
            while at < BLOCKS {
                let Some(first) = layers[file][at] else {
                    at += 1;
                    continue;
                };
                let follows = |i: usize| match (first, layers[file].get(at + i)) {
                    (None, Some(Some(None))) => true,
                    (Some(c), Some(Some(Some(n)))) => *n == Cell { block: c.block + i, ..c },
                    _ => false,
                };
                let len = 1 + (1..).take_while(|i| follows(*i)).count();
                let offset_bytes = at as u64 * BLOCK;
                match first {
                    None => {
                        let to_bytes = offset_bytes + len as u64 * BLOCK;
                        Record::Punch { ino: ino(file), from_bytes: offset_bytes, to_bytes }.encode_to(&mut records);
                    }
                    Some(cell) => {
                        let extent = self.extent(cell, len).encode();
                        Record::Install { ino: ino(file), offset_bytes, extent: &extent }.encode_to(&mut records);
                    }
                }
                at += len;
            }
            for (cell, new) in self.files[file].iter_mut().zip(&layers[file]) {
                *cell = new.unwrap_or(*cell);
            }
        }
        records
    }

    /// Compares all derived keys with what the arrays say.
    fn compare(&self, index: &Index) -> Result<(), String> {
        let mut total = 0;
        let mut holders: BTreeMap<usize, BTreeMap<Holder, u32>> = BTreeMap::new();
        for (file, cells) in self.files.iter().enumerate() {
            let mut shown: File = vec![None; BLOCKS];
            for (k, v) in index.scan(&key::prefix(key::EXTENT, ino(file).0), &[], 10_000).unwrap() {
                let at = key::tail_u64(key::split(&k).unwrap().2).unwrap();
                let e = Extent::decode(&v).unwrap();
                let run = self.runs.iter().position(|(run, _)| *run == e.run).ok_or("an unknown run")?;
                for i in 0..(u64::from(e.len_bytes) / BLOCK) as usize {
                    let block = e.skip_bytes as usize / BLOCK as usize + i;
                    let place = &mut shown[(at / BLOCK) as usize + i];
                    if place.replace(Cell { run, block, copied: e.copied.is_some() }).is_some() {
                        return Err(format!("file {file}: a block twice"));
                    }
                }
                *holders.entry(run).or_default().entry(Holder::of(ino(file), at, &e)).or_default() |=
                    e.frames_touched();
            }
            if shown != *cells {
                return Err(format!("file {file} shows something else"));
            }
            let allocated = cells.iter().flatten().count() as u64 * BLOCK;
            total += allocated;
            if number(index, &key::allocated(ino(file))) != allocated {
                return Err(format!("file {file}: allocated"));
            }
        }
        if number(index, &key::total("bytes")) != total {
            return Err("total of bytes".to_owned());
        }
        let live: u64 = self.frames().iter().map(|(run, i)| u64::from(self.runs[*run].0.sealed_lens[*i])).sum();
        let info = index.get(&key::segment(SEGMENT)).unwrap().map(|v| SegmentInfo::decode(&v).unwrap());
        let stored = info.map_or(0, |info| info.live_bytes);
        if stored != live {
            return Err(format!("{stored} live bytes, and should be {live}"));
        }
        let shared = holders.into_iter().map(|(run, all)| {
            let (run, origin) = &self.runs[run];
            let all = Holders { origin: *origin, all: all.into_iter().collect() };
            (key::holders(SEGMENT, run.position_bytes), all)
        });
        let shared: BTreeMap<_, _> = shared.filter(|(_, h)| h.is_shared()).map(|(k, h)| (k, h.encode())).collect();
        let stored: BTreeMap<_, _> = index.scan(&[key::HOLDERS], &[], 10_000).unwrap().into_iter().collect();
        if stored != shared {
            return Err("holders".to_owned());
        }
        if number(index, &key::total(TOTAL)) != shared.len() as u64 {
            return Err("total of shared runs".to_owned());
        }
        Ok(())
    }
}

fn ino(file: usize) -> Ino {
    Ino(10 + file as u64)
}

fn number(index: &Index, k: &[u8]) -> u64 {
    index.get(k).unwrap().map_or(0, |v| u64::from_le_bytes(v.try_into().unwrap()))
}

fn everything(index: &Index) -> Vec<(Vec<u8>, Vec<u8>)> {
    index.scan(&[], &[], 100_000).unwrap()
}

fn empty() -> Index {
    Index::new(Box::new(MemoryTable::default()))
}

fn take_in(index: &Index, records: &[u8]) -> Vec<DeadRange> {
    let info = |_| Ok(SegmentInfo::empty(Epoch(1), [1; 16], KeyNumber(0)));
    let mut dead = Vec::new();
    apply(index, &info, records, &mut dead).unwrap();
    dead
}

/// Runs one world; `blind` plants the fault.
fn world(seed: u64, commits: usize, blind: bool) -> Result<(), String> {
    let (mut dice, mut model, index) = (Dice(seed), Model::new(), empty());
    let mut log = Vec::new();
    for n in 0..commits {
        let before = model.frames();
        let records = model.batch(&mut dice);
        if blind {
            index.change(vec![(key::total(TOTAL), None)]);
        }
        let (kept, undoable) = (everything(&index), index.begin_undoable());
        take_in(&index, &records);
        index.undo(undoable);
        if everything(&index) != kept {
            return Err(format!("commit {n}: taken back, and something is left"));
        }
        let dead = take_in(&index, &records);
        model.compare(&index).map_err(|e| format!("commit {n}: {e}"))?;
        let mut died = vec![];
        for (run, i) in before.difference(&model.frames()) {
            let frame = model.runs[*run].0.frames().nth(*i).unwrap();
            let (from, sealed) = (frame.position_bytes, u64::from(frame.sealed_len_bytes));
            died.push((from, from + sealed));
        }
        // Ranges that touch come as one.
        let bytes = |ranges: &mut dyn Iterator<Item = (u64, u64)>| ranges.flat_map(|(a, b)| a..b).collect::<Vec<_>>();
        let (mut want, mut got) =
            (bytes(&mut died.into_iter()), bytes(&mut dead.iter().map(|range| (range.from, range.to))));
        want.sort_unstable();
        got.sort_unstable();
        if want != got {
            return Err(format!("commit {n}: {} bytes died, and {} should have", got.len(), want.len()));
        }
        log.push(records);
    }
    let again = empty();
    log.iter().for_each(|records| drop(take_in(&again, records)));
    if everything(&again) == everything(&index) { Ok(()) } else { Err("replayed, it is another index".to_owned()) }
}

#[test]
fn what_is_counted_is_what_counting_anew_gives() {
    for seed in 1..60 {
        world(seed, 25, false).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn an_index_that_takes_shared_frames_for_dead_is_caught() {
    let caught = (1..20)
        .find_map(|seed| std::panic::catch_unwind(|| world(seed, 25, true)).map_or(Some(()), |r| r.err().map(drop)));
    assert!(caught.is_some(), "none of these worlds showed it");
}

#[test]
fn an_original_overwritten_in_the_very_commit_that_copies_it_lives_on() {
    for copy_first in [true, false] {
        let (mut dice, mut model, index) = (Dice(7), Model::new(), empty());
        let run = model.fresh(0, 0, 32, &mut dice);
        let old = Cell { run, block: 0, copied: false };
        let install = |file: usize, at: u64, e: &Extent, out: &mut Vec<u8>| {
            Record::Install { ino: ino(file), offset_bytes: at, extent: &e.encode() }.encode_to(out);
        };
        let (mut first, mut copy, mut over) = (Vec::new(), Vec::new(), Vec::new());
        install(0, 0, &model.extent(old, 32), &mut first);
        assert_eq!(take_in(&index, &first), []);
        // Without its first blocks, to the beginning of a file: the run would begin before it.
        install(1, 0, &model.extent(Cell { block: 8, copied: true, ..old }, 24), &mut copy);
        Record::Punch { ino: ino(0), from_bytes: 0, to_bytes: u64::MAX }.encode_to(&mut over);
        let records = if copy_first { [copy, over].concat() } else { [over, copy].concat() };
        let dead = take_in(&index, &records);
        let frame_blocks = (1 << model.runs[run].0.unit_log2) / BLOCK as usize;
        assert_eq!(dead.is_empty(), frame_blocks > 8, "only what the copy left out");
        model.files[1][..24]
            .copy_from_slice(&(8..32).map(|block| Some(Cell { run, block, copied: true })).collect::<Vec<_>>());
        model.compare(&index).unwrap();
        let mut gone = Vec::new();
        Record::Punch { ino: ino(1), from_bytes: 0, to_bytes: u64::MAX }.encode_to(&mut gone);
        assert!(!take_in(&index, &gone).is_empty());
        model.files[1].fill(None);
        model.compare(&index).unwrap();
    }
}
