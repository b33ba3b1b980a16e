//! Writers that keep, outside the vault, what it has acknowledged.
//!
//! Promise: each appends a stream that its number determines and fsyncs it; an error makes it go back to what was
//! acknowledged and write from there again, as a database does. What was acknowledged must be there from then on.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use super::rng::Rng;
use super::stream::{stream, stream_fault};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What one writer has achieved.
#[derive(Default)]
pub struct Achieved {
    pub acknowledged: AtomicU64,
    pub begun: AtomicU64,
    /// Names made and fsynced.
    pub marks: AtomicU64,
    pub errors: AtomicU64,
}

/// Writers at work.
pub struct Load {
    dir: PathBuf,
    pub done: Vec<Arc<Achieved>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `writers` of them in a directory, which is made.
    pub fn start(dir: PathBuf, writers: u64) -> Load {
        fs::create_dir(&dir).unwrap();
        let (stop, mut threads) = (Arc::new(AtomicBool::new(false)), Vec::new());
        let done: Vec<Arc<Achieved>> = (0..writers).map(|_| Arc::default()).collect();
        for (id, done) in done.iter().enumerate() {
            let (dir, done, stop) = (dir.clone(), Arc::clone(done), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || {
                let mut rng = Rng(id as u64 + 1);
                while !stop.load(SeqCst) {
                    if write(&dir, id as u64, &done, &stop, &mut rng).is_err() {
                        done.errors.fetch_add(1, SeqCst);
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            }));
        }
        Load { dir, done, stop, threads }
    }

    /// Bytes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.done.iter().map(|d| d.acknowledged.load(SeqCst)).sum()
    }

    /// Errors met so far.
    pub fn errors(&self) -> u64 {
        self.done.iter().map(|d| d.errors.load(SeqCst)).sum()
    }

    /// Waits until every writer was acknowledged something that it began after now.
    pub fn await_progress(&self, limit: Duration) {
        let before: Vec<u64> = self.done.iter().map(|d| d.begun.load(SeqCst)).collect();
        let until = Instant::now() + limit;
        while self.done.iter().zip(&before).any(|(d, b)| d.acknowledged.load(SeqCst) <= *b) {
            assert!(Instant::now() < until, "some writers had nothing acknowledged in {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops them.
    pub fn stop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }

    /// Everything acknowledged that is not there, and everything there that was not written.
    pub fn faults(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (id, done) in self.done.iter().enumerate() {
            // In this order, for the writers may be at work.
            let acknowledged = done.acknowledged.load(SeqCst);
            let read = fs::read(self.dir.join(format!("stream-{id}")));
            let begun = done.begun.load(SeqCst);
            match read {
                Ok(bytes) => found.extend(stream_fault(id as u64, &bytes, acknowledged, begun)),
                Err(_) if acknowledged == 0 => {}
                Err(e) => found.push(format!("stream {id}, {acknowledged} bytes acknowledged: {e}")),
            }
            let mark = done.marks.load(SeqCst);
            let there = |m: u64| self.dir.join(format!("mark-{id}-{m}")).exists();
            if mark > 0 && !there(mark) && !there(mark + 1) && done.marks.load(SeqCst) == mark {
                found.push(format!("the name made before fsync {mark} of stream {id} is gone"));
            }
        }
        found
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

/// Writes until there is an error; begins at what was acknowledged.
fn write(dir: &Path, id: u64, done: &Achieved, stop: &AtomicBool, rng: &mut Rng) -> io::Result<()> {
    let path = dir.join(format!("stream-{id}"));
    let mut file = File::options().create(true).write(true).truncate(false).open(path)?;
    let mut at = done.acknowledged.load(SeqCst);
    file.seek(SeekFrom::Start(at))?;
    while !stop.load(SeqCst) {
        for _ in 0..1 + rng.below(4) {
            let len = 1 + if rng.below(8) == 0 { rng.below(300_000) } else { rng.below(9_000) };
            done.begun.fetch_max(at + len, SeqCst);
            file.write_all(&stream(id, at, len))?;
            at += len;
        }
        let mark = done.marks.load(SeqCst) + 1;
        File::create(dir.join(format!("mark-{id}-{mark}")))?;
        match fs::remove_file(dir.join(format!("mark-{id}-{}", mark - 1))) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        if rng.below(2) == 0 {
            file.sync_all()?
        } else {
            file.sync_data()?
        };
        done.acknowledged.store(at, SeqCst);
        done.marks.store(mark, SeqCst);
    }
    Ok(())
}
