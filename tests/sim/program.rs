//! The operations of a simulated program, and random ones.

use super::tree::{Body, Tree};
use std::time::Duration;
use strongroom::base::id::{Ino, ROOT_INO};

/// Bytes that a seed makes.
#[derive(Debug, Clone, Copy)]
pub struct Data {
    pub seed: u64,
    pub len: usize,
    /// Whether no codec makes them shorter.
    pub noise: bool,
}

impl Data {
    pub fn make(self) -> Vec<u8> {
        let mut dice = Dice(self.seed);
        if self.noise {
            let mut out = Vec::with_capacity(self.len + 8);
            while out.len() < self.len {
                out.extend_from_slice(&dice.next().to_le_bytes());
            }
            out.truncate(self.len);
            out
        } else {
            let word = (dice.next() | 0x0101_0101_0101_0101).to_le_bytes();
            (0..self.len).map(|i| word[i % 8].wrapping_add((i / 300) as u8)).collect()
        }
    }
}

/// One operation. Paths are relative to the root.
#[derive(Debug, Clone)]
pub enum Step {
    Create(String),
    Mkdir(String),
    Symlink(String, String),
    Write(String, u64, Data),
    /// Into the file that is held open, whether it has a name or not.
    WriteHeld(u64, Data),
    Truncate(String, u64),
    Punch(String, u64, u64),
    /// From a file at an offset, to one at an offset, so many bytes.
    Copy(String, u64, String, u64, u64),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String),
    Exchange(String, String),
    SetXattr(String, String, String),
    RemoveXattr(String, String),
    Chmod(String, u32),
    Hold(String),
    Release,
    Fsync,
    /// Asks for a sync and does not wait.
    SyncSoon,
    Checkpoint,
    Reopen,
    /// The process is killed, and the vault opened by another one; the power stays on.
    Kill,
    Wait(Duration),
}

impl Step {
    /// Whether it changes the tree.
    pub fn changes(&self) -> bool {
        use Step::{Checkpoint, Fsync, Hold, Kill, Release, Reopen, SyncSoon, Wait};
        !matches!(self, Hold(_) | Release | Fsync | SyncSoon | Checkpoint | Reopen | Kill | Wait(_))
    }
}

/// SplitMix64.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        strongroom::backing::mix(self.0)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

/// What kind of program a world runs.
pub struct Habits {
    /// Largest write.
    write_bytes_max: u64,
    /// Farthest offset.
    offset_max: u64,
    /// One step in so many is a sync.
    sync_one_in: u64,
    /// Whether one step in four or so is a copy.
    copies: bool,
}

impl Habits {
    pub fn of(dice: &mut Dice) -> Habits {
        let (write_bytes_max, offset_max) = match dice.below(16) {
            0..=9 => (3000, 9000),
            10..=12 => (20_000, 70_000),
            13 | 14 => (140_000, 200_000),
            _ => (400_000, 600_000),
        };
        let sync_one_in = *dice.pick(&[3, 5, 8, 20]);
        // Aside, so that the worlds without copies are those that they were before there were any.
        let copies = Dice(dice.0 ^ 1).one_in(2);
        Habits { write_bytes_max, offset_max, sync_one_in, copies }
    }

    fn data(&self, dice: &mut Dice) -> Data {
        let most = *dice.pick(&[10, 600, self.write_bytes_max, self.write_bytes_max]);
        Data { seed: dice.next(), len: 1 + dice.below(most) as usize, noise: dice.one_in(2) }
    }

    fn offset(&self, dice: &mut Dice) -> u64 {
        match dice.below(4) {
            0 => 0,
            1 => dice.below(self.offset_max / 4096 + 1) * 4096,
            _ => dice.below(self.offset_max),
        }
    }

    /// A random step. Most can be done in the tree as it is; some cannot, and must be refused.
    pub fn step(&self, dice: &mut Dice, tree: &Tree, held: Option<Ino>) -> Step {
        if dice.one_in(self.sync_one_in) {
            return match dice.below(12) {
                0 => Step::Checkpoint,
                1 => Step::Reopen,
                6 => Step::Kill,
                2 | 3 => Step::SyncSoon,
                4 | 5 => Step::Wait(Duration::from_millis(*dice.pick(&[10, 3000, 6000, 40_000]))),
                _ => Step::Fsync,
            };
        }
        let all = paths(tree);
        let files: Vec<_> = all.iter().filter(|(_, ino)| is_file(tree, *ino)).map(|(p, _)| p.clone()).collect();
        let any = |dice: &mut Dice| if all.is_empty() { "a".to_owned() } else { dice.pick(&all).0.clone() };
        let file = |dice: &mut Dice| if files.is_empty() { None } else { Some(dice.pick(&files).clone()) };
        let new = |dice: &mut Dice| {
            let dirs: Vec<_> = all.iter().filter(|(_, ino)| tree.is_dir(*ino)).collect();
            let name = *dice.pick(&["a", "b", "c", "d", "ünï"]);
            match dirs.is_empty() || dice.one_in(2) {
                true => name.to_owned(),
                false => format!("{}/{name}", dice.pick(&dirs).0),
            }
        };
        if self.copies && dice.one_in(4) && !files.is_empty() {
            let (from, to) = (dice.pick(&files).clone(), dice.pick(&files).clone());
            // Mostly of what is there.
            let size = tree.find(&from).ok().and_then(|ino| tree.get(ino)).map_or(0, |t| match &t.body {
                Body::File(data) => data.len() as u64,
                Body::Link(_) | Body::Dir(_) => 0,
            });
            let at = if dice.one_in(8) { self.offset(dice) } else { dice.below(size.max(1)) };
            let most = *dice.pick(&[600, self.write_bytes_max, 2 * self.offset_max]);
            return Step::Copy(from, at, to, self.offset(dice), 1 + dice.below(most));
        }
        let step = match dice.below(24) {
            0..=2 => Some(Step::Create(new(dice))),
            3 => Some(Step::Mkdir(new(dice))),
            4 => Some(Step::Symlink(new(dice), format!("to/{}", dice.below(1000)))),
            5..=10 => file(dice).map(|path| Step::Write(path, self.offset(dice), self.data(dice))),
            11 => held.map(|_| Step::WriteHeld(self.offset(dice), self.data(dice))),
            12 => file(dice).map(|path| Step::Truncate(path, self.offset(dice))),
            13 => file(dice).map(|path| Step::Punch(path, self.offset(dice), 1 + dice.below(self.offset_max))),
            14 => Some(Step::Link(any(dice), new(dice))),
            15 | 16 => Some(Step::Unlink(any(dice))),
            17 => Some(Step::Rmdir(any(dice))),
            18 | 19 => Some(Step::Rename(any(dice), if dice.one_in(2) { any(dice) } else { new(dice) })),
            20 => Some(Step::Exchange(any(dice), any(dice))),
            21 => {
                let name = format!("user.{}", dice.below(3));
                Some(match dice.one_in(3) {
                    true => Step::RemoveXattr(any(dice), name),
                    false => Step::SetXattr(any(dice), name, format!("value {}", dice.next())),
                })
            }
            22 => Some(Step::Chmod(any(dice), *dice.pick(&[0o600, 0o644, 0o755]))),
            _ => match held {
                None => file(dice).map(Step::Hold),
                Some(_) => Some(Step::Release),
            },
        };
        step.unwrap_or_else(|| Step::Create(new(dice)))
    }
}

fn is_file(tree: &Tree, ino: Ino) -> bool {
    tree.get(ino).is_some_and(|t| matches!(t.body, Body::File(_)))
}

/// All names, the root left out.
pub fn paths(tree: &Tree) -> Vec<(String, Ino)> {
    let (mut out, mut todo) = (Vec::new(), vec![(String::new(), ROOT_INO)]);
    while let Some((path, dir)) = todo.pop() {
        let Some(Body::Dir(names)) = tree.get(dir).map(|t| &t.body) else { continue };
        for (name, ino) in names {
            let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            if tree.is_dir(*ino) {
                todo.push((path.clone(), *ino));
            }
            out.push((path, *ino));
        }
    }
    out
}
