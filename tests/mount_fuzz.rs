//! The same random system calls, by several threads and as several users, on the mount and on ext4: nobody can tell which is which.
//!
//! Method: `duel` (its files say how) gives both the same calls: opens with all flags, reads and writes of every kind, mappings, holes,
//! copies, names, links, owners, modes, times, attributes. Every answer is compared at once, errno and whether times moved
//! included; whole trees after each round; then again after the vault was mounted anew, or synced and its daemon killed (`kill -9`).
//! Promise: a program cannot tell the mount from ext4 by what its calls answer, also not when others work at its side.
//! `STRONGROOM_FUZZ_SECONDS=3600` goes on for longer, seed after seed from 1; `STRONGROOM_SEEDS=5,6` runs only those; `STRONGROOM_FUZZ_TRACE=1` prints every
//! call with both answers.
//!
//! What is left out differs and is known: `O_TMPFILE`, `RENAME_WHITEOUT` and collapsing ranges (EOPNOTSUPP, EINVAL), sizes and link counts of
//! directories, `st_blocks` before a flush, and that a change of a file by somebody who is not in its group takes the set-group-ID bit
//! also where the group may not execute.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may")]

mod common;
mod duel;

use common::disk::Disk;
use common::{TestVault, needs_root, run, setting};
use duel::Duel;
use duel::world::{Fault, World};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Rounds of one seed; after each the vault is mounted anew or its daemon killed.
const ROUNDS: u64 = 2;

fn duel(right: &Path, tried: &Path, seed: u64) -> Duel {
    let name = format!("seed-{seed}");
    let (right, tried) = (World::new(right.join(&name)), World::new(tried.join(&name)));
    Duel { right, tried, made: AtomicUsize::new(0), succeeded: AtomicUsize::new(0) }
}

/// All a seed's rounds; `between` is called after each, with nothing open.
fn program(duel: &Duel, seed: u64, mut between: impl FnMut(u64)) -> Result<(), String> {
    duel.prepare();
    for round in 0..ROUNDS {
        duel.round(seed, round).map_err(|e| format!("seed {seed}, round {round}: {e}"))?;
        duel.right.leave();
        duel.tried.leave();
        between(round);
        duel.compare().map_err(|e| format!("seed {seed}, round {round}, mounted anew: {e}"))?;
        duel.right.enter();
        duel.tried.enter();
    }
    duel.right.leave();
    duel.tried.leave();
    Ok(())
}

#[test]
fn nobody_can_tell_the_mount_from_ext4() {
    needs_root("mount an ext4 and act as other users");
    let disk = Disk::ext4(800);
    let v = TestVault::mounted_with(&["allow_other", "dev", "suid"]);
    let asked: Option<Vec<u64>> = std::env::var("STRONGROOM_SEEDS")
        .ok()
        .map(|s| s.split(',').map(|n| n.trim().parse().unwrap_or_else(|_| panic!("no number: {n}"))).collect());
    let until = Instant::now() + Duration::from_secs(setting("STRONGROOM_FUZZ_SECONDS", 15, 15));
    let seeds: Box<dyn Iterator<Item = u64>> = match asked {
        Some(seeds) => Box::new(seeds.into_iter()),
        None => Box::new((1..).take_while(|_| Instant::now() < until)),
    };
    let (mut run_seeds, mut made, mut succeeded) = (0, 0, 0);
    for seed in seeds {
        let duel = duel(&disk.at, &v.mnt, seed);
        let ended = program(&duel, seed, |round| {
            if (seed + round) % 2 == 0 {
                v.remount();
            } else {
                // The kernel's pages first, then what the daemon has.
                run(Command::new("sync").arg("-f").arg(&v.mnt));
                File::open(duel.tried.root.join("common/log")).unwrap().sync_all().unwrap();
                v.kill9();
                v.mount();
            }
        });
        if let Err(what) = ended {
            panic!("STRONGROOM_SEEDS={seed} runs it again: {what}");
        }
        for root in [&duel.right.root, &duel.tried.root] {
            fs::remove_dir_all(root).unwrap();
        }
        run_seeds += 1;
        made += duel.made.load(SeqCst);
        succeeded += duel.succeeded.load(SeqCst);
    }
    eprintln!("{run_seeds} seeds, {made} calls, of which {succeeded} succeeded");
    assert!(succeeded * 3 > made, "programs of which most fails say little");
    v.umount();
    v.check();
}

/// What a user may do to a file that is another's but open to all: each found by a seed, and named after what went wrong.
#[test]
fn a_users_change_takes_set_id_bits_and_trusted_names_stay_hidden() {
    needs_root("act as another user");
    let mut v = TestVault::init_in(Path::new("/tmp"), &[]);
    fs::set_permissions(v.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    v.options = vec!["allow_other".into(), "suid".into()];
    v.mount();
    let file = v.path("file");
    let as_nobody = |line: &str| {
        run(Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-ec", line, "sh"])
            .arg(&file))
    };
    for change in ["-p -o 0 -l 4096", "-z -o 4096 -l 4096", "-l 70000", "-n -l 90000"] {
        fs::write(&file, vec![7; 20_000]).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o6777)).unwrap();
        as_nobody(&format!("fallocate {change} \"$1\""));
        let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o777, "fallocate {change} by a user left set-id bits: {mode:o}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o6777)).unwrap();
        run(Command::new("sh").args(["-ec", &format!("fallocate {change} \"$1\""), "sh"]).arg(&file));
        let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o6777, "fallocate {change} by root took set-id bits: {mode:o}");
    }
    run(Command::new("setfattr").args(["-n", "trusted.secret", "-v", "x"]).arg(&file));
    run(Command::new("setfattr").args(["-n", "user.plain", "-v", "x"]).arg(&file));
    let list = "getfattr -d -m - --absolute-names \"$1\" | grep -c secret || true";
    assert_eq!(as_nobody(list).trim(), "0", "a user sees the name of a trusted attribute");
    let by_root = run(Command::new("getfattr").args(["-d", "-m", "-", "--absolute-names"]).arg(&file));
    assert!(by_root.contains("trusted.secret") && by_root.contains("user.plain"), "{by_root}");
}

#[test]
fn two_worlds_on_one_filesystem_agree_and_every_lie_is_noticed() {
    needs_root("act as other users");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let try_it = |name: &str, fault: Option<Fault>, seeds: std::ops::Range<u64>| {
        let (right, tried) = (dir.path().join(format!("{name}-right")), dir.path().join(format!("{name}-tried")));
        fs::create_dir(&right).unwrap();
        fs::create_dir(&tried).unwrap();
        seeds.into_iter().try_for_each(|seed| {
            let mut duel = duel(&right, &tried, seed);
            duel.tried.fault = fault;
            program(&duel, seed, |_| {})
        })
    };
    assert_eq!(try_it("honest", None, 100..104), Ok(()), "the harness itself is not repeatable");
    for fault in [
        Fault::LostWrite,
        Fault::WrongByte,
        Fault::LostRename,
        Fault::LostMode,
        Fault::LostOwner,
        Fault::WrongErrno,
        Fault::LostName,
        Fault::LostAttribute,
        Fault::LostTruncation,
    ] {
        let found = try_it(&format!("{fault:?}"), Some(fault), 200..206);
        assert!(found.is_err(), "{fault:?} was not noticed");
    }
}
