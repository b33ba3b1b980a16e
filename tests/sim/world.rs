//! Clock and chance of a simulated world: time stands still unless the harness moves it or the vault waits, and chance is a
//! seed.

use std::cell::RefCell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use strongroom::backing::mix;
use strongroom::base::world::{Time, World};

/// When every world begins, in seconds since 1970.
const DAWN_SECONDS: i64 = 1_800_000_000;

/// No world lives so long, unless something in it waits for what nobody brings about.
const LIFE_MAX: Duration = Duration::from_secs(30 * 86_400);

thread_local! {
    /// What this thread does, to be told where it cannot be said otherwise.
    pub static DOING: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The world.
pub struct Simulated {
    nanos: AtomicU64,
    chance: Mutex<u64>,
}

impl Simulated {
    pub fn new(seed: u64) -> Simulated {
        Simulated { nanos: AtomicU64::new(0), chance: Mutex::new(mix(seed)) }
    }
    /// Who goes next, of so many. What that one does takes time: without that, a vault that finds something to do for ever
    /// would never see a deadline.
    pub fn choose(&self, of: usize) -> usize {
        self.pass(Duration::from_millis(1));
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % of as u64) as usize
    }
    /// Lets time go by.
    pub fn pass(&self, time: Duration) {
        self.nanos.fetch_add(time.as_nanos() as u64, SeqCst);
    }
}

impl World for Simulated {
    fn now(&self) -> Time {
        let at = self.elapsed();
        Time { seconds: DAWN_SECONDS + at.as_secs() as i64, nanos: at.subsec_nanos() }
    }
    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(SeqCst))
    }
    fn sleep(&self, time: Duration) {
        self.pass(time);
        if self.elapsed() > LIFE_MAX {
            // A panic would wait in the vault's destructor, for ever again.
            eprintln!("something waits for ever: {}", DOING.with_borrow(Clone::clone));
            std::process::abort();
        }
    }
    fn fill(&self, out: &mut [u8]) {
        let mut chance = self.chance.lock().unwrap();
        for piece in out.chunks_mut(8) {
            *chance = chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
            piece.copy_from_slice(&mix(*chance).to_le_bytes()[..piece.len()]);
        }
    }
}
