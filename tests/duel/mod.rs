//! Two filesystems given the same calls by the same threads, and compared at every one.
//!
//! Promise: the seed alone says which calls are made by which thread as which user. While threads work at once, each has a
//! subtree and open files of its own and, in a directory that all share, names, ranges and records of its own, so that what is there at the
//! end does not depend on who was quicker; between such phases all work on one subtree and each other's files, taking turns.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may")]

pub mod calls;
pub mod world;

use crate::common::rng::Rng;
use calls::{SLOTS, Step, THREADS, begin, step};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};
use world::{Answer, World, stand_alone, tree};

/// Calls of each thread in each phase.
const AT_ONCE: usize = 200;
const IN_TURN: usize = 120;

/// A record of the common log.
const RECORD_BYTES: usize = 100;

/// Bytes that a thread may write before the next thread's begin, in the file that all share.
const STRIPE_BYTES: u64 = 1000;

/// The two worlds: the one that is right, and the one that is tried.
pub struct Duel {
    pub right: World,
    pub tried: World,
    /// Calls made, and those that succeeded.
    pub made: AtomicUsize,
    pub succeeded: AtomicUsize,
}

impl Duel {
    /// Makes what every program finds there.
    pub fn prepare(&self) {
        for world in [&self.right, &self.tried] {
            fs::create_dir(&world.root).unwrap();
            let dirs = (0..THREADS).map(|t| format!("own-{t}")).chain(["common".into(), "turns".into()]);
            for dir in dirs.map(|d| world.root.join(d)) {
                fs::create_dir(&dir).unwrap();
                fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
            }
            fs::set_permissions(&world.root, fs::Permissions::from_mode(0o755)).unwrap();
            for file in ["ranges", "log", "linked"] {
                fs::write(world.root.join("common").join(file), "").unwrap();
            }
            world.enter();
        }
    }

    /// One round of a seed's program: all at once, then in turns.
    pub fn round(&self, seed: u64, round: u64) -> Result<(), String> {
        let mut rngs: Vec<Rng> = (0..THREADS as u64).map(|t| Rng(seed << 20 ^ round << 8 ^ t)).collect();
        let turns: Vec<(usize, Step)> = {
            let mut rng = Rng(seed << 20 ^ round << 8 ^ 0xff);
            let all: Vec<usize> = (0..THREADS * SLOTS).collect();
            let steps = (0..IN_TURN * THREADS).map(|n| begin(&all, n).unwrap_or_else(|| step(&mut rng, &all)));
            steps.enumerate().map(|(n, step)| (n * 7 % 5 % THREADS, step)).collect()
        };
        let (turn, found) = (Turn::default(), Mutex::new(Vec::new()));
        let barrier = std::sync::Barrier::new(THREADS);
        std::thread::scope(|s| {
            for (thread, rng) in rngs.iter_mut().enumerate() {
                let (turns, turn, found, barrier) = (&turns, &turn, &found, &barrier);
                s.spawn(move || {
                    stand_alone();
                    let slots: Vec<usize> = (thread * SLOTS..(thread + 1) * SLOTS).collect();
                    barrier.wait();
                    for n in 0..AT_ONCE {
                        if !found.lock().unwrap().is_empty() {
                            break;
                        }
                        // First there is something to work with.
                        let step = begin(&slots, n).unwrap_or_else(|| step(rng, &slots));
                        let what = self.both(&format!("own-{thread}"), &step);
                        found.lock().unwrap().extend(what.map(|w| format!("thread {thread}, call {n}: {w}")));
                        self.share(thread, round, n as u64, rng);
                    }
                    barrier.wait();
                    for (n, (whose, step)) in turns.iter().enumerate() {
                        if *whose != thread {
                            continue;
                        }
                        turn.wait(n);
                        if found.lock().unwrap().is_empty() {
                            let what = self.both("turns", step);
                            found.lock().unwrap().extend(what.map(|w| format!("turn {n}, thread {thread}: {w}")));
                        }
                        turn.done();
                    }
                });
            }
        });
        match found.into_inner().unwrap().first() {
            Some(what) => Err(what.clone()),
            None => self.compare(),
        }
    }

    /// The same call in both; what differs in the answers.
    fn both(&self, below: &str, step: &Step) -> Option<String> {
        let (want, got): (Answer, Answer) = (self.right.make(below, step), self.tried.make(below, step));
        self.made.fetch_add(1, SeqCst);
        if std::env::var_os("STRONGROOM_FUZZ_TRACE").is_some() {
            eprintln!("{below} {step:?}: {want:?} {got:?}");
        }
        self.succeeded.fetch_add(usize::from(want.is_ok()), SeqCst);
        let told = |a: &Answer| match a {
            Ok(text) => text.clone(),
            Err(-1) => "nothing open there".into(),
            Err(e) => std::io::Error::from_raw_os_error(*e).to_string(),
        };
        (want != got).then(|| format!("{below}, {step:?}: right is '{}', found '{}'", told(&want), told(&got)))
    }

    /// What this thread does to things that all share, in either world.
    fn share(&self, thread: usize, round: u64, n: u64, rng: &mut Rng) {
        let what = rng.below(12);
        let (a, b, bytes) = (rng.below(300), rng.below(STRIPE_BYTES), rng.next());
        for world in [&self.right, &self.tried] {
            let common = world.root.join("common");
            match what {
                0..3 => {
                    let at = (a * THREADS as u64 + thread as u64) * STRIPE_BYTES + b;
                    let file = OpenOptions::new().write(true).open(common.join("ranges")).unwrap();
                    file.write_all_at(&Rng(bytes).bytes((STRIPE_BYTES - b) as usize), at).unwrap();
                }
                3..5 => {
                    let mut record = format!("thread {thread} round {round} record {n} ").into_bytes();
                    record.resize(RECORD_BYTES - 1, b'=');
                    record.push(b'\n');
                    let mut log = OpenOptions::new().append(true).open(common.join("log")).unwrap();
                    assert_eq!(log.write(&record).unwrap(), RECORD_BYTES);
                }
                5 => drop(fs::write(common.join(format!("made-{thread}-{}", a % 4)), Rng(bytes).text(b as usize))),
                6 => drop(fs::rename(
                    common.join(format!("made-{thread}-{}", a % 4)),
                    common.join(format!("made-{thread}-{}", b % 4)),
                )),
                7 => drop(fs::remove_file(common.join(format!("made-{thread}-{}", a % 4)))),
                8 => drop(fs::hard_link(common.join("linked"), common.join(format!("link-{thread}-{}", a % 3)))),
                9 => drop(fs::remove_file(common.join(format!("link-{thread}-{}", a % 3)))),
                _ => {}
            }
        }
    }

    /// Whole trees; the common log by its records, whose order is the threads' own.
    pub fn compare(&self) -> Result<(), String> {
        let [right, tried] = [&self.right, &self.tried].map(|world| {
            let mut all = tree(&world.root);
            let log = fs::read(world.root.join("common/log")).unwrap();
            let mut threads: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
            for record in log.chunks(RECORD_BYTES) {
                threads.entry(record.get(..8).unwrap_or(record)).or_default().push(record);
            }
            let ordered: Vec<u8> = threads.values().flatten().copied().flatten().copied().collect();
            all.insert("common/log".into(), format!("{} bytes, crc {:08x}", log.len(), crc32fast::hash(&ordered)));
            all
        });
        for (path, want) in &right {
            match tried.get(path) {
                Some(got) if got == want => {}
                got => return Err(format!("{path}: right is '{want}', found '{}'", got.map_or("nothing", |g| g))),
            }
        }
        match tried.keys().find(|p| !right.contains_key(*p)) {
            Some(path) => Err(format!("{path}: found, and should not be there")),
            None => Ok(()),
        }
    }
}

/// Whose turn it is.
#[derive(Default)]
struct Turn {
    next: Mutex<usize>,
    moved: Condvar,
}

impl Turn {
    fn wait(&self, n: usize) {
        let mut next = self.next.lock().unwrap();
        while *next != n {
            next = self.moved.wait(next).unwrap();
        }
    }

    fn done(&self) {
        *self.next.lock().unwrap() += 1;
        self.moved.notify_all();
    }
}
