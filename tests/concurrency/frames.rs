//! The cache of decoded frames.
//!
//! Promise: a frame is loaded by one thread at a time, once if the load succeeds; whoever wants it gets it; a load that
//! fails is tried by the next who wants it; every reader ends.

use crate::explore::{Fault, Harness, planted};
use crate::vault::cache::{FrameCache, FrameKey, Plain};
use shuttle::sync::atomic::{AtomicU64, Ordering::SeqCst};
use shuttle::thread;
use std::sync::Arc;
use strongroom::base::choice::Codec;
use strongroom::base::id::{Ino, SegmentId, Slot};
use strongroom::segment::FrameAt;

pub const ALL: &[Harness] = &[
    Harness {
        name: "a_frame_is_loaded_by_one_thread_and_all_who_want_it_get_it",
        run: || readers(false),
        faults: &[Fault::WakesNobody, Fault::IgnoresClaims],
    },
    Harness {
        name: "a_frame_that_did_not_load_is_tried_by_the_next_reader",
        run: || readers(true),
        faults: &[Fault::WakesNobody, Fault::KeepsItsClaim],
    },
];

const FRAMES: usize = 3;

fn key(n: usize) -> FrameKey {
    let (position_bytes, offset_bytes) = (n as u64 * 4096, 0);
    let (slot, codec) = (Slot(n as u32), Codec::Raw);
    let (sealed_len_bytes, plain_len_bytes) = (25, 9);
    let at = FrameAt { position_bytes, sealed_len_bytes, slot, codec, plain_len_bytes, ino: Ino(2), offset_bytes };
    FrameKey::of(SegmentId(1), &at)
}

#[derive(Default)]
struct Disk {
    loading: [AtomicU64; FRAMES],
    loaded: [AtomicU64; FRAMES],
    failures_left: AtomicU64,
}

impl Disk {
    fn load(&self, n: usize) -> Option<Plain> {
        assert_eq!(self.loading[n].fetch_add(1, SeqCst), 0, "two threads load frame {n}");
        thread::yield_now();
        self.loading[n].fetch_sub(1, SeqCst);
        if self.failures_left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
            return None;
        }
        self.loaded[n].fetch_add(1, SeqCst);
        Some(Arc::new(vec![n as u8; 9]))
    }
}

fn number(k: &FrameKey) -> usize {
    (0..FRAMES).find(|&n| key(n) == *k).expect("one of those asked for")
}

/// As `vault::read` does: claims, loads what it claimed, and asks again for what others were loading.
fn read(cache: &FrameCache, disk: &Disk, wanted: &[usize]) -> bool {
    let keys: Vec<FrameKey> = wanted.iter().map(|&n| key(n)).collect();
    let mut got: Vec<Option<Plain>> = vec![None; keys.len()];
    let mut right = true;
    while right && got.iter().any(Option::is_none) {
        let mine = if planted() == Some(Fault::IgnoresClaims) {
            keys.iter().zip(&got).filter(|(_, g)| g.is_none()).map(|(k, _)| *k).collect()
        } else {
            cache.claim(&keys, &mut got)
        };
        for k in &mine {
            match disk.load(number(k)) {
                Some(plain) => {
                    cache.keep(*k, Arc::clone(&plain));
                    let all = keys.iter().zip(got.iter_mut()).filter(|(other, _)| *other == k);
                    all.for_each(|(_, place)| *place = Some(Arc::clone(&plain)));
                }
                None => right = false,
            }
        }
        if right || planted() != Some(Fault::KeepsItsClaim) {
            cache.release(&mine);
        }
    }
    if right {
        for (n, plain) in wanted.iter().zip(&got) {
            assert!(plain.as_ref().unwrap().iter().all(|&b| usize::from(b) == *n), "another frame's bytes");
        }
    }
    right
}

fn readers(failing: bool) {
    let (cache, disk) = (Arc::new(FrameCache::new(1 << 20)), Arc::new(Disk::default()));
    disk.failures_left.store(u64::from(failing), SeqCst);
    let mut all: Vec<_> = [&[0, 1][..], &[1, 2, 1], &[2, 0]]
        .map(|wanted| {
            let (cache, disk) = (Arc::clone(&cache), Arc::clone(&disk));
            thread::spawn(move || read(&cache, &disk, wanted))
        })
        .into();
    // Read-ahead takes what nobody loads, and waits for nobody.
    let (ahead_cache, ahead_disk) = (Arc::clone(&cache), Arc::clone(&disk));
    all.push(thread::spawn(move || {
        let mine = ahead_cache.claim_missing(&[key(0), key(1)]);
        for k in &mine {
            if let Some(plain) = ahead_disk.load(number(k)) {
                ahead_cache.keep(*k, plain);
            }
        }
        ahead_cache.release(&mine);
        true
    }));
    let failed = all.into_iter().map(|r| r.join().unwrap()).filter(|right| !right).count();
    assert!(failed <= usize::from(failing), "a load fails once, for the one who tried it");
    assert!(read(&cache, &disk, &[0, 1, 2]), "what failed can be loaded again");
    let loaded: Vec<u64> = disk.loaded.iter().map(|n| n.load(SeqCst)).collect();
    assert_eq!(loaded, [1, 1, 1], "each is loaded once");
}
