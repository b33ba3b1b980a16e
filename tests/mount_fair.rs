//! Many users write at once against a small budget: each gets its share, and the daemon's memory stays within the budget.
//!
//! Method: writers run as different users for some seconds on a real mount; what each user's writes came to is compared
//! with an equal share. `STRONGROOM_FAIR_SECONDS=n` writes for longer.
//! Promise: with equally many writers no user gets less than half of an equal share, whatever size their writes have, nor beside
//! somebody who writes to one file from several threads (`docs/decisions/fairness-is-the-kernels.md` says what is not promised).

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may")]

mod common;

use common::{TestVault, memory_high_water_bytes, needs_root, setting};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, chown};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// A file begins anew when it has grown so far, so that the disk does not fill.
const FILE_BYTES: u64 = 64 * MIB;

/// What a user does: how many writers, how much in a call, and whether all write to one file.
#[derive(Clone, Copy)]
struct Habit {
    writers: usize,
    call_bytes: usize,
    one_file: bool,
}

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
fn written(v: &TestVault, users: &[Habit], time: Duration) -> Vec<u64> {
    let writers = users.iter().map(|u| u.writers).sum();
    let (begin, totals) = (Barrier::new(writers), users.iter().map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
    std::thread::scope(|s| {
        for (n, (habit, total)) in users.iter().zip(&totals).enumerate() {
            let id = 2001 + n as u32;
            let dir = v.path(format!("user-{id}"));
            fs::create_dir(&dir).unwrap();
            chown(&dir, Some(id), Some(id)).unwrap();
            for writer in 0..habit.writers {
                let (dir, begin) = (dir.clone(), &begin);
                s.spawn(move || {
                    become_user(id);
                    let data = common::rng::Rng(u64::from(id)).bytes(habit.call_bytes);
                    let (name, first) = if habit.one_file { (0, writer as u64 * FILE_BYTES) } else { (writer, 0) };
                    let mut how = File::options();
                    let file = how.create(true).write(true).truncate(false).open(dir.join(format!("{name}"))).unwrap();
                    begin.wait();
                    let (began, mut at) = (Instant::now(), 0);
                    while began.elapsed() < time {
                        file.write_all_at(&data, first + at).unwrap();
                        total.fetch_add(data.len() as u64, SeqCst);
                        at = (at + data.len() as u64) % FILE_BYTES;
                    }
                });
            }
        }
    });
    totals.into_iter().map(AtomicU64::into_inner).collect()
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
    let budget = 64 * MIB;
    let v = TestVault::mounted_with(&[&format!("budget={budget}"), "allow_other"]);
    let time = Duration::from_secs(setting("STRONGROOM_FAIR_SECONDS", 8, 4));
    let totals = written(&v, users, time);
    let mib: Vec<u64> = totals.iter().map(|t| t / MIB).collect();
    eprintln!("{name}: MiB by user {mib:?}");
    assert_eq!(starved(&totals), [], "bytes by user: {totals:?}");
    let high = memory_high_water_bytes(v.pid());
    assert!(high <= budget + 64 * MIB, "the daemon held {} MiB with a budget of {} MiB", high / MIB, budget / MIB);
    v.umount();
}

#[test]
fn thirty_two_writers_of_eight_users_share_a_small_budget() {
    is_fair("eight users with four writers each", &[Habit { writers: 4, call_bytes: 128 << 10, one_file: false }; 8]);
}

#[test]
fn a_user_who_writes_in_large_pieces_starves_nobody() {
    let mut users = [Habit { writers: 2, call_bytes: 16 << 10, one_file: false }; 8];
    users[0].call_bytes = 4 << 20;
    is_fair("one of eight users writes 4 MiB at a time", &users);
}

#[test]
fn one_greedy_file_starves_nobody() {
    let mut users = [Habit { writers: 1, call_bytes: 64 << 10, one_file: false }; 8];
    users[0] = Habit { writers: 4, call_bytes: 1 << 20, one_file: true };
    is_fair("one of eight users writes to one file from four threads", &users);
}
