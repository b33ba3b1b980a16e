//! Keeps the kernel's page cache in step with direct writes.
//!
//! Promise: once a direct write is answered, no cached page shows what its range held before; if more direct writes than
//! `WITHHELD_MAX` wait for the kernel to drop pages, the oldest is answered at once, and its pages are dropped soon after.
//! Why it is needed: the kernel drops the pages of a range before an asynchronous direct write, and not after it. A buffered
//! reader that comes between fills pages with the old bytes, and they would stay (`decisions/direct-writes-drop-pages.md`).
//! How: a thread invalidates the range, then answers. Ranges that are known to have no page are answered at once.
//! Called by: `requests`. On failure: the range counts as cached, and the write is answered.

use super::seek::Kernel;
use crate::base::id::Ino;
use crate::base::limits::FUSE_BACKGROUND_MAX;
use crate::base::lock::Held;
use crossbeam_channel::Sender;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

/// Pages are dropped, and known to be, in pieces of this many bytes: after a file of 1 GiB was written through the cache,
/// 16,384 direct writes drop pages, and those that follow find none.
const PIECE_BYTES: u64 = 64 << 10;
/// Each invalidation of a file that needs one takes so many times (as a power of two) more pieces along than the one before, until
/// pages are filled: then it begins with one piece again.
const REACH_GROWTH_LOG2: u32 = 2;
/// Most pieces taken along, as a power of two: 256 MiB.
const REACH_LOG2_MAX: u32 = 12;
/// Words of 64 pieces that are remembered of all files together: 1 TiB. With more, all is forgotten.
const WORDS_MAX: usize = 1 << 18;

/// Most answers that wait until pages are dropped. An unanswered asynchronous write is one of the background requests that the
/// kernel allows, and a reader locks pages before it waits for its turn among them: if all turns were taken by writes that wait
/// for those pages, nobody would ever go on.
const WITHHELD_MAX: usize = FUSE_BACKGROUND_MAX as usize - 1;

/// An invalidation that is to be made.
struct Job {
    ino: Ino,
    /// Its number.
    id: u64,
    /// Pieces: first, last.
    pieces: (u64, u64),
}

type Answer = Box<dyn FnOnce() + Send>;

/// The answers that wait for an invalidation, oldest first.
#[derive(Default)]
struct Withheld(VecDeque<(u64, Answer)>);

impl Withheld {
    /// Adds the answer that waits for invalidation `id`; gives the one that is not to wait any longer, if they are too many.
    fn add(&mut self, id: u64, answer: Answer) -> Option<Answer> {
        self.0.push_back((id, answer));
        if self.0.len() > WITHHELD_MAX { self.0.pop_front().map(|(_, oldest)| oldest) } else { None }
    }

    /// The answer that waited for invalidation `id`, if it still does.
    fn take(&mut self, id: u64) -> Option<Answer> {
        let at = self.0.iter().position(|(waits_for, _)| *waits_for == id)?;
        self.0.remove(at).map(|(_, answer)| answer)
    }
}

/// Takes direct writes that may have left pages behind; the thread ends when this goes.
pub(super) struct PageCache {
    bare: Arc<Mutex<Bare>>,
    /// Whether a direct write has ever been seen: before it, nothing is to be remembered.
    in_use: AtomicBool,
    withheld: Arc<Mutex<Withheld>>,
    jobs: Sender<Job>,
}

impl PageCache {
    pub(super) fn start(kernel: Kernel) -> io::Result<PageCache> {
        let bare = Arc::<Mutex<Bare>>::default();
        // As a rule one for each unanswered request of the kernel; more only while this thread waits for a locked page.
        let (jobs, taken) = crossbeam_channel::unbounded::<Job>();
        let withheld = Arc::<Mutex<Withheld>>::default();
        let (known, waiting) = (Arc::clone(&bare), Arc::clone(&withheld));
        thread::Builder::new().name("page-cache".to_owned()).spawn(move || {
            for Job { ino, id, pieces } in taken {
                let range = (pieces.0 * PIECE_BYTES, (pieces.1 + 1).saturating_mul(PIECE_BYTES));
                let dropped = kernel.invalidate(ino, range);
                known.held().end(ino, id, dropped);
                let answer = waiting.held().take(id);
                if let Some(answer) = answer {
                    answer();
                }
            }
        })?;
        Ok(PageCache { bare, in_use: AtomicBool::new(false), withheld, jobs })
    }

    /// The kernel is about to fill pages of a range, or has written some back. To be called before the bytes are read or
    /// written: the page is locked, or under write-back, from before this until the request is answered, and an invalidation
    /// waits for that.
    pub(super) fn filled(&self, ino: Ino, offset: u64, len_bytes: usize) {
        if self.in_use.load(SeqCst) {
            self.bare.held().filled(ino, pieces(offset, len_bytes));
        }
    }

    /// Runs `answer` once no page shows what a direct write has replaced. To be called after the bytes were written.
    pub(super) fn written_past(&self, ino: Ino, offset: u64, len_bytes: usize, answer: impl FnOnce() + Send + 'static) {
        if len_bytes == 0 {
            return answer();
        }
        let pieces = pieces(offset, len_bytes);
        let begun = {
            let mut bare = self.bare.held();
            self.in_use.store(true, SeqCst);
            bare.begin(ino, pieces)
        };
        match begun {
            None => answer(),
            Some((id, pieces)) => {
                let oldest = self.withheld.held().add(id, Box::new(answer));
                // The thread lives as long as we do.
                let _ = self.jobs.send(Job { ino, id, pieces });
                if let Some(answer) = oldest {
                    answer();
                }
            }
        }
    }
}

/// The first and the last piece that a range touches.
fn pieces(offset: u64, len_bytes: usize) -> (u64, u64) {
    let last = offset.saturating_add((len_bytes as u64).max(1) - 1);
    (offset / PIECE_BYTES, last / PIECE_BYTES)
}

/// Pieces of files of which the kernel has no page.
#[derive(Default)]
struct Bare {
    files: HashMap<Ino, File>,
    ids: u64,
    words: usize,
}

#[derive(Default)]
struct File {
    /// A bit for each piece, set if there is no page of it.
    words: BTreeMap<u64, u64>,
    under_way: Vec<Invalidation>,
    /// Pieces that the next invalidation takes along, as a power of two.
    reach_log2: u32,
}

struct Invalidation {
    id: u64,
    pieces: (u64, u64),
    /// Whether pages may have been filled since it began.
    overtaken: bool,
}

impl Bare {
    fn filled(&mut self, ino: Ino, (first, last): (u64, u64)) {
        let Some(file) = self.files.get_mut(&ino) else { return };
        // Somebody uses the cache: no more of it than must be is dropped.
        file.reach_log2 = 0;
        for i in file.under_way.iter_mut().filter(|i| i.pieces.0 <= last && first <= i.pieces.1) {
            i.overtaken = true;
        }
        for (word, bits) in words(first, last) {
            if let Some(known) = file.words.get_mut(&word) {
                *known &= !bits;
                if *known == 0 {
                    file.words.remove(&word);
                    self.words -= 1;
                }
            }
        }
    }

    /// The number of an invalidation that is now under way, and its pieces; `None` if the kernel has no page of those that were
    /// written.
    fn begin(&mut self, ino: Ino, (first, last): (u64, u64)) -> Option<(u64, (u64, u64))> {
        let file = self.files.entry(ino).or_default();
        if words(first, last).all(|(word, bits)| file.words.get(&word).is_some_and(|known| known & bits == bits)) {
            return None;
        }
        self.ids += 1;
        let around = (1 << file.reach_log2) - 1;
        let pieces = (first & !around, last | around);
        file.reach_log2 = (file.reach_log2 + REACH_GROWTH_LOG2).min(REACH_LOG2_MAX);
        file.under_way.push(Invalidation { id: self.ids, pieces, overtaken: false });
        Some((self.ids, pieces))
    }

    fn end(&mut self, ino: Ino, id: u64, dropped: bool) {
        let Some(file) = self.files.get_mut(&ino) else { return };
        let Some(at) = file.under_way.iter().position(|i| i.id == id) else { return };
        let Invalidation { pieces, overtaken, .. } = file.under_way.swap_remove(at);
        if dropped && !overtaken {
            for (word, bits) in words(pieces.0, pieces.1) {
                let known = file.words.entry(word).or_insert_with(|| {
                    self.words += 1;
                    0
                });
                *known |= bits;
            }
        }
        if self.words + self.files.len() > WORDS_MAX {
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.files.retain(|_, file| {
            file.words.clear();
            !file.under_way.is_empty()
        });
        self.words = 0;
    }
}

/// The words that the pieces from `first` to `last` lie in, each with their bits.
fn words(first: u64, last: u64) -> impl Iterator<Item = (u64, u64)> {
    (first / 64..=last / 64).map(move |word| {
        let from = if word == first / 64 { first % 64 } else { 0 };
        let to = if word == last / 64 { last % 64 } else { 63 };
        (word, (u64::MAX >> (63 - (to - from))) << from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(7);

    /// Whether pieces count as cached.
    fn is_cached(bare: &mut Bare, pieces: (u64, u64)) -> bool {
        match bare.begin(INO, pieces) {
            None => false,
            Some((id, _)) => {
                bare.end(INO, id, false);
                true
            }
        }
    }

    #[test]
    fn everything_counts_as_cached_until_it_was_dropped() {
        let mut bare = Bare::default();
        let (id, _) = bare.begin(INO, (60, 70)).unwrap();
        assert!(is_cached(&mut bare, (60, 70)), "it is not dropped yet");
        bare.end(INO, id, true);
        for p in 60..=70 {
            assert!(!is_cached(&mut bare, (p, p)), "{p}");
        }
        assert!(is_cached(&mut bare, (59, 60)) && is_cached(&mut bare, (70, 71)) && !is_cached(&mut bare, (61, 69)));
        bare.filled(INO, (64, 64));
        assert!(!is_cached(&mut bare, (60, 63)) && is_cached(&mut bare, (64, 64)) && !is_cached(&mut bare, (65, 70)));
        bare.filled(Ino(8), (60, 70));
        assert!(!is_cached(&mut bare, (65, 70)), "another file");
        bare.filled(INO, (0, 1000));
        assert!(is_cached(&mut bare, (60, 60)) && bare.words == 0);
    }

    #[test]
    fn pages_filled_during_an_invalidation_count_as_cached() {
        let mut bare = Bare::default();
        let (a, b) = (bare.begin(INO, (0, 9)).unwrap().0, bare.begin(INO, (5, 20)).unwrap().0);
        bare.filled(INO, (9, 9));
        let (c, _) = bare.begin(INO, (9, 9)).unwrap();
        bare.end(INO, a, true);
        bare.end(INO, b, true);
        assert!(is_cached(&mut bare, (0, 0)) && is_cached(&mut bare, (9, 9)) && is_cached(&mut bare, (20, 20)));
        bare.end(INO, c, true);
        assert!(!is_cached(&mut bare, (9, 9)), "this one began later");
        let (failed, _) = bare.begin(INO, (30, 30)).unwrap();
        bare.end(INO, failed, false);
        assert!(is_cached(&mut bare, (30, 30)));
    }

    #[test]
    fn a_file_that_only_direct_requests_touch_is_bare_after_a_few_of_them() {
        const PIECES: u64 = 100_000;
        let invalidations = |is_read: bool| {
            let mut bare = Bare::default();
            let mut count = 0;
            for n in 0..3000 {
                let piece = n * 7919 % PIECES;
                if is_read {
                    bare.filled(INO, (PIECES + 1, PIECES + 1));
                }
                if let Some((id, pieces)) = bare.begin(INO, (piece, piece)) {
                    assert!(pieces.0 <= piece && piece <= pieces.1 && (!is_read || pieces == (piece, piece)));
                    bare.end(INO, id, true);
                    count += 1;
                }
            }
            count
        };
        assert!(invalidations(false) < 50, "{}", invalidations(false));
        assert_eq!(invalidations(true), 3000, "of a file that somebody reads, nothing else is dropped");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut bare = Bare::default();
        let (held, _) = bare.begin(Ino(1), (0, 0)).unwrap();
        let words_each = (1 << REACH_LOG2_MAX) / 64;
        for n in 0..WORDS_MAX as u64 / words_each + 30 {
            let (ino, piece) = (Ino(2 + n % 3), n << REACH_LOG2_MAX);
            let (id, _) = bare.begin(ino, (piece, piece)).unwrap();
            bare.end(ino, id, true);
        }
        assert!(
            bare.words < 30 * words_each as usize
                && bare.files.values().map(|f| f.words.len()).sum::<usize>() == bare.words
        );
        bare.end(Ino(1), held, true);
        assert!(bare.begin(Ino(1), (0, 0)).is_none(), "one under way is not forgotten");
    }

    #[test]
    fn of_too_many_answers_the_oldest_waits_no_longer() {
        let (mut withheld, said) = (Withheld::default(), Arc::<Mutex<Vec<u64>>>::default());
        let answer = |id: u64| -> Answer {
            let said = Arc::clone(&said);
            Box::new(move || said.held().push(id))
        };
        let last = WITHHELD_MAX as u64;
        for id in 0..last {
            assert!(withheld.add(id, answer(id)).is_none());
        }
        withheld.add(last, answer(last)).unwrap()();
        assert_eq!(*said.held(), [0]);
        assert!(withheld.take(0).is_none(), "it was answered");
        withheld.take(2).unwrap()();
        assert!(withheld.add(last + 1, answer(last + 1)).is_none(), "one has gone");
        withheld.add(last + 2, answer(last + 2)).unwrap()();
        assert_eq!(*said.held(), [0, 2, 1]);
    }

    #[test]
    fn words_have_the_bits_of_their_pieces() {
        let all = |first, last| words(first, last).collect::<Vec<_>>();
        assert_eq!(all(0, 0), [(0, 1)]);
        assert_eq!(all(3, 4), [(0, 0b11000)]);
        assert_eq!(all(0, 63), [(0, u64::MAX)]);
        assert_eq!(all(63, 128), [(0, 1 << 63), (1, u64::MAX), (2, 1)]);
        assert_eq!(pieces(0, 1), (0, 0));
        assert_eq!(pieces(PIECE_BYTES - 1, 2), (0, 1));
        assert_eq!(pieces(PIECE_BYTES, PIECE_BYTES as usize), (1, 1));
    }
}
