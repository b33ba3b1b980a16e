//! A directory as it is, under changes that stay in memory: for looking at a vault without touching it.
//!
//! Promise: nothing below is ever written, renamed, made or removed; whoever works on the shadow sees its own changes and,
//! where there are none, what lies below. What is changed takes memory, a block at a time, and is gone with the shadow.
//! Called by: `check`, which opens a vault as a mount would, and must not destroy evidence, and mounts for reading only.
//! Takes: the lock below is a real one, for others must keep out meanwhile, and so is what is written into its file.
//! On failure: the `io::Error` of what lies below, as it came.

use super::{AlignedBuf, Backing, BackingFile, Cache, Open, Space};
use crate::base::limits::BLOCK_BYTES;
use crate::base::lock::Held;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// The directory.
pub struct ShadowBacking {
    under: Arc<dyn Backing>,
    /// A file that is no part of what is shadowed.
    real: Option<String>,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    /// What was opened, made or renamed; `None` for what was removed.
    files: BTreeMap<String, Option<Arc<Shadow>>>,
    dirs: BTreeSet<String>,
}

/// A file: where it lies below, and what was changed since.
struct Shadow {
    /// Its path below; `None` for one that is new.
    origin: Option<String>,
    state: Mutex<State>,
}

struct State {
    len: u64,
    /// Bytes from the start that still show what lies below, where no block was changed.
    shown: u64,
    /// Changed blocks by number; `None` for zeros.
    blocks: BTreeMap<u64, Option<Box<[u8; BLOCK_BYTES]>>>,
}

impl ShadowBacking {
    /// A shadow of a directory, with nothing changed yet.
    #[must_use]
    pub fn new(under: Arc<dyn Backing>) -> ShadowBacking {
        ShadowBacking { under, real: None, names: Mutex::default() }
    }

    /// The same; this file is the one below, also for writing.
    #[must_use]
    pub fn but(self, path: &str) -> ShadowBacking {
        ShadowBacking { real: Some(path.to_owned()), ..self }
    }

    /// The file of that name, if there is one.
    fn find(&self, names: &mut Names, path: &str) -> io::Result<Option<Arc<Shadow>>> {
        if let Some(known) = names.files.get(path) {
            return Ok(known.clone());
        }
        let len = match self.under.open(path, Open::Read, Cache::Buffered) {
            Ok(file) => file.len()?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let state = Mutex::new(State { len, shown: len, blocks: BTreeMap::new() });
        let file = Arc::new(Shadow { origin: Some(path.to_owned()), state });
        names.files.insert(path.to_owned(), Some(Arc::clone(&file)));
        Ok(Some(file))
    }

    fn must_find(&self, names: &mut Names, path: &str) -> io::Result<Arc<Shadow>> {
        self.find(names, path)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Backing for ShadowBacking {
    fn open(&self, path: &str, how: Open, cache: Cache) -> io::Result<Arc<dyn BackingFile>> {
        if self.real.as_deref() == Some(path) {
            return self.under.open(path, how, cache);
        }
        let mut names = self.names.held();
        let file = match (self.find(&mut names, path)?, how) {
            (Some(_), Open::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, Open::Read | Open::Write | Open::WriteUnshared) => return Err(io::ErrorKind::NotFound.into()),
            (Some(file), Open::Read | Open::Write | Open::WriteUnshared) => file,
            (None, Open::Create) => {
                let state = Mutex::new(State { len: 0, shown: 0, blocks: BTreeMap::new() });
                let file = Arc::new(Shadow { origin: None, state });
                names.files.insert(path.to_owned(), Some(Arc::clone(&file)));
                file
            }
        };
        let under = match &file.origin {
            Some(origin) => Some(self.under.open(origin, Open::Read, cache)?),
            None => None,
        };
        Ok(Arc::new(ShadowFile { file, under }))
    }

    fn make_dir(&self, path: &str) -> io::Result<()> {
        let there = self.under.list(parent(path))?.iter().any(|n| path.rsplit('/').next() == Some(n));
        if there || !self.names.held().dirs.insert(path.to_owned()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let names = self.names.held();
        let mut all: BTreeSet<String> = match self.under.list(path) {
            Ok(below) => below.into_iter().collect(),
            Err(e) if e.kind() == io::ErrorKind::NotFound && names.dirs.contains(path) => BTreeSet::new(),
            Err(e) => return Err(e),
        };
        let last = |p: &str| p.rsplit('/').next().unwrap_or(p).to_owned();
        for (p, file) in names.files.iter().filter(|(p, _)| parent(p) == path) {
            match file {
                Some(_) => all.insert(last(p)),
                None => all.remove(&last(p)),
            };
        }
        all.extend(names.dirs.iter().filter(|p| parent(p) == path).map(|p| last(p)));
        Ok(all.into_iter().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut names = self.names.held();
        let file = self.must_find(&mut names, from)?;
        names.files.insert(from.to_owned(), None);
        names.files.insert(to.to_owned(), Some(file));
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut names = self.names.held();
        self.must_find(&mut names, path)?;
        names.files.insert(path.to_owned(), None);
        Ok(())
    }

    fn sync_dir(&self, _path: &str) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<Option<Space>> {
        self.under.space()
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.under.lock(path)
    }
}

/// An open file of the shadow.
struct ShadowFile {
    file: Arc<Shadow>,
    under: Option<Arc<dyn BackingFile>>,
}

impl ShadowFile {
    /// What lies below of a range, zeros where that is not shown or not there.
    fn read_under(&self, state: &State, buf: &mut [u8], offset: u64, device: bool) -> io::Result<()> {
        let shown = (state.shown.saturating_sub(offset) as usize).min(buf.len());
        let got = match &self.under {
            Some(under) if shown > 0 && device => under.read_device(buf, offset)?,
            Some(under) if shown > 0 => under.read_at(buf, offset)?,
            Some(_) | None => 0,
        };
        buf[got.min(shown)..].fill(0);
        Ok(())
    }

    fn read(&self, buf: &mut [u8], offset: u64, device: bool) -> io::Result<usize> {
        let state = self.file.state.held();
        let len = (state.len.saturating_sub(offset) as usize).min(buf.len());
        if len == 0 {
            return Ok(0);
        }
        if state.blocks.is_empty() && state.shown == state.len {
            // Nothing of it was changed: readers need not wait for each other.
            let under = self.under.as_ref().expect("what lies below is shown, so there is something");
            drop(state);
            let got = if device { under.read_device(buf, offset)? } else { under.read_at(buf, offset)? };
            return Ok(got.min(len));
        }
        // The whole buffer, though less of it may count: direct reads want whole blocks.
        self.read_under(&state, buf, offset, device)?;
        let end = offset + len as u64;
        for (number, block) in state.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)) {
            let (from, to) = ((number * BLOCK).max(offset), ((number + 1) * BLOCK).min(end));
            let out = &mut buf[(from - offset) as usize..(to - offset) as usize];
            match block {
                Some(b) => out.copy_from_slice(&b[(from - number * BLOCK) as usize..(to - number * BLOCK) as usize]),
                None => out.fill(0),
            }
        }
        Ok(len)
    }

    /// The block, as one of those changed.
    fn block<'a>(&self, state: &'a mut State, number: u64) -> io::Result<&'a mut [u8; BLOCK_BYTES]> {
        if !state.blocks.contains_key(&number) {
            let mut was = AlignedBuf::with_capacity(BLOCK_BYTES);
            was.set_len(BLOCK_BYTES);
            self.read_under(state, &mut was, number * BLOCK, false)?;
            let mut block = Box::new([0; BLOCK_BYTES]);
            block.copy_from_slice(&was);
            state.blocks.insert(number, Some(block));
        }
        Ok(&mut **state.blocks.entry(number).or_default().get_or_insert_with(|| Box::new([0; BLOCK_BYTES])))
    }
}

impl BackingFile for ShadowFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read(buf, offset, false)
    }
    fn read_device(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read(buf, offset, true)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.file.state.held();
        let end = offset + buf.len() as u64;
        for number in offset / BLOCK..end.div_ceil(BLOCK) {
            let (from, to) = ((number * BLOCK).max(offset), ((number + 1) * BLOCK).min(end));
            let data = &buf[(from - offset) as usize..(to - offset) as usize];
            let at = (from - number * BLOCK) as usize;
            self.block(&mut state, number)?[at..at + data.len()].copy_from_slice(data);
        }
        state.len = state.len.max(end);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.state.held().len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.file.state.held();
        if len < state.len {
            state.shown = state.shown.min(len);
            state.blocks.split_off(&len.div_ceil(BLOCK));
            if let Some(Some(last)) = state.blocks.get_mut(&(len / BLOCK)) {
                last[(len % BLOCK) as usize..].fill(0);
            }
        }
        state.len = len;
        Ok(())
    }
    fn preallocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.file.state.held();
        state.len = state.len.max(len);
        Ok(())
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.file.state.held();
        let end = (offset + len).min(state.len.next_multiple_of(BLOCK));
        for number in offset / BLOCK..end.div_ceil(BLOCK) {
            let (from, to) = ((number * BLOCK).max(offset), ((number + 1) * BLOCK).min(end));
            if to - from == BLOCK {
                state.blocks.insert(number, None);
            } else {
                let at = (from - number * BLOCK) as usize;
                self.block(&mut state, number)?[at..at + (to - from) as usize].fill(0);
            }
        }
        Ok(())
    }
    fn is_direct(&self) -> bool {
        self.under.as_ref().is_some_and(|under| under.is_direct())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MemoryBacking, read_file};
    use super::*;

    fn contents(b: &dyn Backing) -> Vec<(String, Vec<u8>)> {
        let names = b.list("d").unwrap();
        names.into_iter().map(|n| (n.clone(), read_file(b, &format!("d/{n}"), 1 << 20).unwrap())).collect()
    }

    /// Small numbers out of a seed, enough to choose operations by.
    struct Dice(u64);
    impl Dice {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % n
        }
    }

    #[test]
    fn a_shadow_behaves_as_the_directory_would_and_leaves_it_alone() {
        for seed in 0..300 {
            let mut dice = Dice(seed);
            let below = MemoryBacking::default();
            below.make_dir("d").unwrap();
            for name in ["d/0", "d/1"] {
                let file = below.open(name, Open::Create, Cache::Buffered).unwrap();
                let len = dice.below(20_000) as usize;
                file.write_all_at(&vec![dice.below(255) as u8 + 1; len], 0).unwrap();
                file.sync_data().unwrap();
            }
            below.sync_dir("").unwrap();
            below.sync_dir("d").unwrap();
            // The same directory once more: what a change there does, a change in the shadow must do.
            let model = below.crash(|_, _| true);
            let before = contents(&below);
            let shadow = ShadowBacking::new(Arc::new(below.clone()));
            let pair: [&dyn Backing; 2] = [&model, &shadow];
            for step in 0..40 {
                let (name, other) = (format!("d/{}", dice.below(3)), format!("d/{}", dice.below(3)));
                let (what, at, len, byte) = (dice.below(8), dice.below(20_000), dice.below(9000), dice.below(256));
                let done = pair.map(|b| -> Result<(), io::ErrorKind> {
                    let open = |how| b.open(&name, how, Cache::Buffered).map_err(|e| e.kind());
                    match what {
                        0 => drop(open(Open::Create)?),
                        1 => b.remove(&name).map_err(|e| e.kind())?,
                        2 => b.rename(&name, &other).map_err(|e| e.kind())?,
                        3 => open(Open::Write)?.set_len(at).unwrap(),
                        4 => open(Open::Write)?.punch(at / 4096 * 4096, (len / 4096 + 1) * 4096).unwrap(),
                        5 => open(Open::Write)?.preallocate(at).unwrap(),
                        _ => open(Open::Write)?.write_all_at(&vec![byte as u8; len as usize], at).unwrap(),
                    }
                    Ok(())
                });
                assert_eq!(done[0], done[1], "seed {seed}, step {step}");
                assert_eq!(contents(&model), contents(&shadow), "seed {seed}, step {step}");
                let piece = pair.map(|b| {
                    let mut out = vec![0; len as usize];
                    let n = b.open(&name, Open::Read, Cache::Direct).ok()?.read_at(&mut out, at).unwrap();
                    Some(out[..n].to_vec())
                });
                assert_eq!(piece[0], piece[1], "seed {seed}, step {step}");
            }
            assert_eq!(contents(&below), before, "seed {seed}: what lies below was touched");
        }
    }
}
