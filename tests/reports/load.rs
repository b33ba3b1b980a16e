//! The mount under load with little memory: deep queues of direct I/O, and readers of `/.storage` beside a writer.

use super::Stop;
use crate::common::tools::on_path;
use crate::common::{TestVault, run};
use std::fs;
use std::io::Write;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

#[test]
fn deep_queues_on_a_small_budget_end_and_look_ups_are_answered() {
    let v = TestVault::mounted_with(&["budget=16M"]);
    let fio = |flags: &[&str]| {
        let mut c = Command::new(on_path("fio"));
        c.current_dir(v.dir.path()).arg("--directory").arg(&v.mnt);
        run(c.args(["--direct=1", "--verify=crc32c", "--verify_fatal=1", "--group_reporting"]).args(flags));
    };
    let mut slowest = Duration::ZERO;
    std::thread::scope(|s| {
        let deep = s.spawn(|| {
            let queue = ["--ioengine=libaio", "--iodepth=64", "--numjobs=6", "--size=8m"];
            fio(&[&["--name=deep", "--rw=randwrite", "--bs=64k"], &queue[..]].concat());
        });
        let many = s.spawn(|| {
            let many = ["--ioengine=psync", "--fsync=50", "--numjobs=8", "--size=2m"];
            fio(&[&["--name=many", "--rw=randrw", "--bs=4k"], &many[..]].concat());
        });
        for n in 0.. {
            if deep.is_finished() && many.is_finished() {
                break;
            }
            let before = Instant::now();
            assert!(!v.path(format!("missing-{n}")).exists());
            slowest = slowest.max(before.elapsed());
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    // An unanswered look-up makes a desktop hang; the bound is generous, for the machine is busy with fio itself.
    assert!(slowest < Duration::from_secs(20), "a look-up took {slowest:?}");
    v.umount();
    v.check();
}

/// Files of `/.storage` that are text.
const TEXTS: [&str; 9] = ["status", "state", "pending", "history", "errors", "workers", "quota", "config", "version"];

/// Resident memory of a process in KiB.
fn memory_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn storage_is_whole_at_every_look_and_looks_cost_no_memory() {
    let v = TestVault::mounted();
    let look = || {
        let json = v.storage("stats.json");
        assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok_and(|j| j.is_object()), "stats.json: {json}");
        let metrics = v.storage("metrics");
        assert!(metrics.ends_with('\n') && !metrics.contains('\0'), "metrics: {metrics}");
        for name in TEXTS {
            assert!(!v.storage(name).contains('\0'), "{name}: {}", v.storage(name));
        }
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(SeqCst) {
                let mut file = fs::File::create(v.path("busy")).unwrap();
                for _ in 0..40 {
                    file.write_all(&[7; 64 << 10]).unwrap();
                }
                file.sync_all().unwrap();
            }
        });
        // Dropped also when a look fails: a scope waits for its threads.
        let _stop = Stop(&stop);
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            look();
        }
    });
    fs::remove_file(v.path("busy")).unwrap();
    for _ in 0..100 {
        look();
    }
    let before = memory_kib(v.pid());
    for _ in 0..1500 {
        v.storage("stats.json");
    }
    let more = memory_kib(v.pid()).saturating_sub(before);
    assert!(more < 4 << 10, "1,500 looks cost {more} KiB of memory");
}
