//! A vault gives memory back while the machine is short of it, loses nothing by that, and takes it again.
//!
//! Method: a stepped vault in a world whose clock and memory the test sets. Promise: the limits of buffers and caches follow
//! the memory that is left, within their bounds; writers beyond the smaller limit wait and come through; what they wrote is right.

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "common/small.rs"]
mod small;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use strongroom::backing::{Backing, Effect, Fault, MUTATING, MemoryBacking};
use strongroom::base::limits::{MEMORY_BESIDE_BYTES, MEMORY_PARTS, MEMORY_PARTS_MIN, MEMORY_TRIM_PAUSE};
use strongroom::base::world::{Memory, RealWorld, Time, World};
use strongroom::vault::{EmergencyDir, OpenOptions, Vault, open};

const MACHINE_BYTES: u64 = 1 << 30;
const BUDGET_BYTES: u64 = 16 << 20;

/// A clock that moves when it is waited for, and memory that is had or not.
#[derive(Default)]
struct Scripted {
    now: Mutex<Duration>,
    available_bytes: AtomicU64,
    resident_bytes: AtomicU64,
    trimmed: AtomicUsize,
}

impl World for Scripted {
    fn now(&self) -> Time {
        Time { seconds: self.elapsed().as_secs() as i64, nanos: 0 }
    }
    fn elapsed(&self) -> Duration {
        *self.now.lock().unwrap()
    }
    fn fill(&self, out: &mut [u8]) {
        RealWorld::default().fill(out);
    }
    fn sleep(&self, time: Duration) {
        *self.now.lock().unwrap() += time;
    }
    fn memory(&self) -> Option<Memory> {
        Some(Memory { total_bytes: MACHINE_BYTES, available_bytes: self.available_bytes.load(SeqCst) })
    }
    fn resident_bytes(&self) -> Option<u64> {
        Some(self.resident_bytes.load(SeqCst))
    }
    fn trim(&self) {
        self.trimmed.fetch_add(1, SeqCst);
    }
}

impl Scripted {
    /// Lets some seconds go by, with so much memory left.
    fn seconds(&self, vault: &Vault, seconds: u64, available_bytes: u64) {
        self.available_bytes.store(available_bytes, SeqCst);
        for _ in 0..seconds {
            self.sleep(Duration::from_secs(1));
            while vault.step() {}
        }
    }
}

fn opened(disk: &MemoryBacking) -> (Arc<Scripted>, Arc<Vault>) {
    opened_beside(disk, None)
}

fn opened_beside(disk: &MemoryBacking, emergency: Option<EmergencyDir>) -> (Arc<Scripted>, Arc<Vault>) {
    let world = Arc::new(Scripted { available_bytes: MACHINE_BYTES.into(), ..Scripted::default() });
    let first: strongroom::vault::Choose = Arc::new(|_| 0);
    let stepped = Some(first);
    let options = OpenOptions { budget_bytes: BUDGET_BYTES, stepped, emergency, ..OpenOptions::default() };
    let as_world: Arc<dyn World> = world.clone();
    (world, open(Arc::new(disk.clone()), &small::unlock(), &options, as_world).unwrap())
}

/// The limits of buffers and of the cache.
fn limits(vault: &Vault) -> (u64, u64) {
    let gauges = vault.gauges();
    (gauges.dirty_limit_bytes, gauges.cache_limit_bytes)
}

#[test]
fn limits_follow_the_memory_that_is_left() {
    let (world, vault) = opened(&small::made());
    let whole = limits(&vault);
    world.seconds(&vault, 3, MACHINE_BYTES / 2);
    assert_eq!((limits(&vault), world.trimmed.load(SeqCst)), (whole, 0), "with plenty of it, nothing moves");
    world.seconds(&vault, 1, MACHINE_BYTES / 20);
    assert_eq!(limits(&vault), (whole.0 / 2, whole.1 / 2));
    world.seconds(&vault, 5, MACHINE_BYTES / 20);
    let least = (whole.0 / MEMORY_PARTS * MEMORY_PARTS_MIN, whole.1 / MEMORY_PARTS * MEMORY_PARTS_MIN);
    assert_eq!(limits(&vault), least, "and no further");
    assert!(world.trimmed.load(SeqCst) >= 2, "what was freed goes back to the machine");
    world.seconds(&vault, 5, MACHINE_BYTES / 10);
    assert_eq!(limits(&vault), least, "neither short nor plenty");
    world.seconds(&vault, MEMORY_PARTS, MACHINE_BYTES / 2);
    assert_eq!(limits(&vault), whole);
    let said = vault.stats().history();
    assert!(said.iter().any(|line| line.text.contains("51 MiB of memory are left")), "{said:?}");
    vault.close().unwrap();
}

#[test]
fn what_nobody_uses_goes_back_when_it_is_much_and_at_rest() {
    let (world, vault) = opened(&small::made());
    let after = |seconds, resident_bytes| {
        let before = world.trimmed.load(SeqCst);
        world.resident_bytes.store(resident_bytes, SeqCst);
        (0..seconds).for_each(|n| {
            small::write(&vault, 10 + n);
            world.seconds(&vault, 1, MACHINE_BYTES / 2);
        });
        world.trimmed.load(SeqCst) - before
    };
    assert_eq!(after(60, BUDGET_BYTES + MEMORY_BESIDE_BYTES), 0, "as much as may be");
    let pause = MEMORY_TRIM_PAUSE.as_secs();
    assert_eq!(after(3 * pause, BUDGET_BYTES + MEMORY_BESIDE_BYTES + 1), 3, "too much, and it is not enough each time");
    assert_eq!(after(60, BUDGET_BYTES), 0, "no longer");
    let before = world.trimmed.load(SeqCst);
    world.seconds(&vault, 200, MACHINE_BYTES / 2);
    assert_eq!(world.trimmed.load(SeqCst) - before, 1, "once, when it came to rest");
    vault.close().unwrap();
}

#[test]
fn the_memory_of_this_process_is_known() {
    let world = RealWorld::default();
    let before = world.resident_bytes().unwrap();
    let touched = std::hint::black_box(vec![1u8; 64 << 20]);
    let more = world.resident_bytes().unwrap() - before;
    assert!((60 << 20..100 << 20).contains(&more), "{more} bytes more, with {} of them touched", touched.len());
}

#[test]
fn what_is_buffered_when_memory_gets_short_is_kept_and_comes_to_rest() {
    let disk = small::made();
    let (world, vault) = opened(&disk);
    // As much as fits without anyone asking for a cut, then short: the limit is far below what is buffered.
    (10..60).for_each(|ino| small::write(&vault, ino));
    let buffered = vault.gauges().dirty_bytes;
    world.seconds(&vault, 3, 0);
    let (limit, _) = limits(&vault);
    assert!(buffered > limit, "{buffered} bytes were buffered, and the limit became {limit}");
    assert_eq!(vault.gauges().dirty_bytes, 0, "what was buffered beyond the limit came to rest by itself");
    (60..200).for_each(|ino| small::write(&vault, ino));
    assert!(vault.gauges().dirty_bytes <= limit, "writers wait at the smaller limit");
    vault.sync_wait().unwrap();
    vault.close().unwrap();
    let again = small::opened(&disk);
    small::check_all(&again, 190);
    again.close().unwrap();
}

#[test]
fn limits_follow_also_while_the_log_lies_in_the_emergency_directory() {
    let (home, away) = (small::made(), MemoryBacking::default());
    let reach = Arc::new(move |_| Ok(Arc::new(away.clone()) as Arc<dyn Backing>));
    let (world, vault) =
        opened_beside(&home, Some(EmergencyDir { path: "/emergency".to_owned(), reach, is_shadow: false }));
    let whole = limits(&vault);
    home.plant(Fault::of(MUTATING, Effect::Error(libc::EIO)));
    small::write(&vault, 10);
    vault.sync_wait().unwrap();
    assert!(vault.is_away());
    world.seconds(&vault, 1, 0);
    assert_eq!(limits(&vault), (whole.0 / 2, whole.1 / 2));
    home.lift_all();
    world.seconds(&vault, 120, MACHINE_BYTES / 2);
    assert_eq!((limits(&vault), vault.is_away()), (whole, false));
    vault.close().unwrap();
}
