//! Many users write at once against a small budget: each gets its share, and the daemon's memory stays within the budget.
//!
//! Method: writers run as different users on a real mount until enough was written for the shares to say something, and for some
//! seconds at least; what each user's writes came to is compared with an equal share. `STRONGROOM_FAIR_SECONDS=n` writes for longer.
//! Promise: with equally many writers no user gets less than half of an equal share, whatever size their writes and files have, nor
//! beside somebody who writes to one file from several threads (`docs/decisions/fairness-is-the-kernels.md` says what is not
//! promised). The daemon's memory never exceeds the budget and 64 MiB, also with readers among the writers.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may")]

mod common;

use common::{BESIDE_BUDGET_BYTES, TestVault, memory_high_water_bytes, needs_root, setting};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, chown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};
use strongroom::base::limits::BUDGET_BYTES_DEFAULT;

const MIB: u64 = 1 << 20;
/// A writer begins anew when its files have grown so far, so that the disk does not fill.
const FILE_BYTES: u64 = 64 * MIB;
/// What a user has got on average when the shares are compared. The kernel takes hold of writers only once its pages are full, and
/// then in pauses of up to 200 ms, so that the first MiBs go to whoever was quicker (measured beside readers, the smallest part of
/// an equal share: 0.4 where a user got 7 MiB, 0.7 at 35 MiB, 0.9 at 110 MiB; with 0.6 of a core, 0.53 to 0.80 at 64 MiB).
const ENOUGH_BYTES: u64 = 128 * MIB;
/// Who has not got that by then beside others is starved, whatever the shares are.
const LONGEST: Duration = Duration::from_secs(900);
/// As small as a small budget is.
const BUDGET_BYTES: u64 = 32 * MIB;

/// Two mounts at once would share the disk and the kernel's room for dirty pages, and each would be dealt more, or less, from one
/// moment to the next (measured, the smallest part of an equal share: 0.60 to 0.96 beside another, 0.85 to 0.97 alone).
static ALONE: Mutex<()> = Mutex::new(());

/// What a user does: how many writers, how much in a call, how large files get, and whether all write to one.
#[derive(Clone, Copy)]
struct Habit {
    writers: usize,
    call_bytes: usize,
    file_bytes: u64,
    one_file: bool,
}

/// One writer, 64 KiB a call.
const ORDINARY: Habit = Habit { writers: 1, call_bytes: 64 << 10, file_bytes: FILE_BYTES, one_file: false };

/// Makes the calling thread, and it alone, act as a user.
fn become_user(id: u32) {
    // SAFETY: the raw calls change this thread only, which ends as that user; they read one list that outlives them.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()), 0);
        assert_eq!(libc::syscall(libc::SYS_setresgid, id, id, id), 0);
        assert_eq!(libc::syscall(libc::SYS_setresuid, id, id, id), 0);
    }
}

/// Bytes that each user got written.
fn written(v: &TestVault, name: &str, users: &[Habit]) -> Vec<u64> {
    let writers = users.iter().map(|u| u.writers).sum();
    let (least, enough, all) = (time(), users.len() as u64 * ENOUGH_BYTES, AtomicU64::new(0));
    let (begin, totals) = (Barrier::new(writers), users.iter().map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
    std::thread::scope(|s| {
        for (n, (habit, total)) in users.iter().zip(&totals).enumerate() {
            let id = 2001 + n as u32;
            let dir = v.path(format!("user-{id}"));
            fs::create_dir(&dir).unwrap();
            chown(&dir, Some(id), Some(id)).unwrap();
            for writer in 0..habit.writers {
                let (dir, begin, all) = (dir.clone(), &begin, &all);
                s.spawn(move || {
                    become_user(id);
                    let data = common::rng::Rng(u64::from(id)).bytes(habit.call_bytes);
                    let (name, first) = if habit.one_file { (0, writer as u64 * FILE_BYTES) } else { (writer, 0) };
                    let open = |n: u64| {
                        let mut how = File::options();
                        how.create(true).write(true).truncate(false).open(dir.join(format!("{name}-{n}"))).unwrap()
                    };
                    let (mut n, mut at, mut file) = (0, 0, open(0));
                    begin.wait();
                    let began = Instant::now();
                    while began.elapsed() < least || all.load(SeqCst) < enough && began.elapsed() < LONGEST {
                        file.write_all_at(&data, first + at).unwrap();
                        total.fetch_add(data.len() as u64, SeqCst);
                        all.fetch_add(data.len() as u64, SeqCst);
                        at += data.len() as u64;
                        if at >= habit.file_bytes {
                            n = (n + 1) % (FILE_BYTES / habit.file_bytes).max(1);
                            (at, file) = (0, open(n));
                        }
                    }
                });
            }
        }
    });
    let totals: Vec<u64> = totals.into_iter().map(AtomicU64::into_inner).collect();
    eprintln!("{name}: MiB by user {:?}", totals.iter().map(|t| t / MIB).collect::<Vec<_>>());
    assert!(all.into_inner() >= enough, "after {LONGEST:?} the users have written no more than {totals:?} bytes");
    totals
}

/// Users who got less than half of an equal share, each with what part of an equal share it was.
fn starved(totals: &[u64]) -> Vec<(usize, f64)> {
    let equal = totals.iter().sum::<u64>() as f64 / totals.len() as f64;
    let parts = totals.iter().map(|&t| t as f64 / equal).enumerate();
    // A share of nothing at all is no number.
    parts.filter(|&(_, part)| part < 0.5 || part.is_nan()).collect()
}

#[test]
fn a_share_below_half_is_found() {
    assert_eq!(starved(&[10, 9, 11, 10]), []);
    assert_eq!(starved(&[10, 10, 4, 16]), [(2, 0.4)]);
    assert_eq!(starved(&[0, 0]).len(), 2, "nobody wrote anything");
}

fn is_fair(name: &str, users: &[Habit]) {
    needs_root("act as several users");
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let v = TestVault::mounted_with(&[&format!("budget={BUDGET_BYTES}"), "allow_other"]);
    let totals = written(&v, name, users);
    assert_eq!(starved(&totals), [], "bytes by user: {totals:?}");
    stays_within(&v, BUDGET_BYTES);
    v.umount();
}

fn time() -> Duration {
    Duration::from_secs(setting("STRONGROOM_FAIR_SECONDS", 8, 4))
}

fn stays_within(v: &TestVault, budget_bytes: u64) {
    let high = memory_high_water_bytes(v.pid());
    eprintln!("  VmHWM {} MiB, budget {} MiB", high / MIB, budget_bytes / MIB);
    assert!(high <= budget_bytes + BESIDE_BUDGET_BYTES, "the daemon held {} MiB", high / MIB);
}

/// Tells the readers to stop, also where a writer failed.
struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Reads a file from the vault again and again, not from the kernel's cache, until told to stop; gives the bytes.
fn read_over_and_over(path: &Path, stop: &AtomicBool) -> u64 {
    let (file, mut buffer, mut total) = (File::open(path).unwrap(), vec![0; MIB as usize], 0);
    while !stop.load(SeqCst) {
        // SAFETY: the descriptor is open.
        assert_eq!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
        let mut at = 0;
        loop {
            let n = file.read_at(&mut buffer, at).unwrap() as u64;
            if n == 0 {
                break;
            }
            at += n;
        }
        total += at;
    }
    total
}

#[test]
fn thirty_two_writers_of_eight_users_share_a_small_budget() {
    is_fair("eight users with four writers each", &[Habit { writers: 4, call_bytes: 128 << 10, ..ORDINARY }; 8]);
}

#[test]
fn a_user_who_writes_in_large_pieces_starves_nobody() {
    let mut users = [Habit { writers: 2, call_bytes: 16 << 10, ..ORDINARY }; 8];
    users[0].call_bytes = 4 << 20;
    is_fair("one of eight users writes 4 MiB at a time", &users);
}

#[test]
fn one_greedy_file_starves_nobody() {
    let mut users = [ORDINARY; 8];
    users[0] = Habit { writers: 4, call_bytes: 1 << 20, one_file: true, ..ORDINARY };
    is_fair("one of eight users writes to one file from four threads", &users);
}

#[test]
fn one_huge_file_starves_none_of_thirty_one_who_write_small_ones() {
    let mut users = [Habit { call_bytes: 16 << 10, file_bytes: MIB, ..ORDINARY }; 32];
    users[0] = Habit { call_bytes: 1 << 20, file_bytes: 1 << 40, ..ORDINARY };
    is_fair("one of 32 users writes a file that only grows, the others files of 1 MiB", &users);
}

#[test]
fn readers_among_the_writers_leave_the_memory_within_the_budget() {
    readers_and_writers(BUDGET_BYTES);
}

#[test]
fn readers_among_the_writers_leave_the_memory_within_the_default_budget() {
    readers_and_writers(BUDGET_BYTES_DEFAULT);
}

fn readers_and_writers(budget_bytes: u64) {
    needs_root("act as several users");
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let v = TestVault::mounted_with(&[&format!("budget={budget_bytes}"), "allow_other"]);
    // Half of it shrinks: then what is read from the disk is short, and read ahead of.
    let text = |n: u64| (0u64..).flat_map(move |i| format!("{n} and {i}\n").into_bytes()).take(24 << 20).collect();
    let noise = |n: u64| common::rng::Rng(n).bytes(24 << 20);
    let files: Vec<_> = (0..12).map(|n| v.path(format!("to-read-{n}"))).collect();
    for (n, path) in (0..).zip(&files) {
        let content: Vec<u8> = if n % 2 == 0 { text(n) } else { noise(n) };
        fs::write(path, content).unwrap();
        File::open(path).unwrap().sync_all().unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        let readers: Vec<_> = files.iter().map(|path| s.spawn(|| read_over_and_over(path, &stop))).collect();
        let stopping = StopWhenDropped(&stop);
        let totals = written(&v, "twelve readers among twenty writers", &[ORDINARY; 20]);
        drop(stopping);
        assert_eq!(starved(&totals), [], "bytes by user: {totals:?}");
        let read: Vec<u64> = readers.into_iter().map(|r| r.join().unwrap() / MIB).collect();
        eprintln!("  MiB by reader {read:?}");
        assert!(read.iter().all(|&mib| mib >= 24), "each read its file at least once: {read:?}");
    });
    stays_within(&v, budget_bytes);
    v.umount();
}
