//! PostgreSQL keeps its cluster in the mount, crashes, and so does the daemon below it.
//!
//! Method: `initdb` with checksums, `pgbench`, an immediate stop in the middle of it, a new start; then the same with `kill -9` of the
//! daemon in place of the stop. A client counts what it was told is committed. The judges are PostgreSQL's own: the sums that pgbench's
//! transactions keep equal, `amcheck` for the indexes and, of the stopped cluster, `pg_checksums` for every page.
//! Promise: a database that trusts its fsyncs finds its cluster whole, and every commit that it acknowledged.
//! `STRONGROOM_PGBENCH_SECONDS` asks for more.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::tools::postgres_programs;
use common::{TestVault, needs_root, output, run, setting};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The pairs of sums that each of pgbench's transactions keeps equal.
const SUMS: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches) \
                    AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history);";

const INDEXES: &str = "SELECT count(bt_index_check(c.oid, true)) FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid \
                       JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence = 'p';";

/// A cluster, and the place of its socket and its log, which is not in the vault.
struct Cluster {
    programs: PathBuf,
    data: PathBuf,
    beside: PathBuf,
}

impl Cluster {
    fn new(v: &TestVault) -> Cluster {
        let c = Cluster { programs: postgres_programs(), data: v.path("cluster"), beside: v.outside("beside") };
        for dir in [&c.data, &c.beside] {
            fs::create_dir(dir).unwrap();
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
            run(Command::new("chown").arg("postgres:").arg(dir));
        }
        run(c.program("initdb").args(["--data-checksums", "-A", "trust", "-U", "postgres", "-D"]).arg(&c.data));
        c
    }

    /// One of PostgreSQL's programs, as the user that it wants.
    fn program(&self, name: &str) -> Command {
        let mut c = Command::new("setpriv");
        c.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "env", "LC_ALL=C"]).current_dir(&self.beside);
        c.arg(self.programs.join(name));
        c
    }

    fn client(&self, name: &str) -> Command {
        let mut c = self.program(name);
        c.arg("-h").arg(&self.beside).args(["-U", "postgres"]);
        c
    }

    fn start(&self) {
        let options = format!("-c listen_addresses='' -k '{}'", self.beside.display());
        let mut c = self.program("pg_ctl");
        c.arg("-D").arg(&self.data).args(["-w", "-t", "120", "-o", &options, "-l"]).arg(self.beside.join("log"));
        let out = output(c.arg("start"));
        let log = fs::read_to_string(self.beside.join("log")).unwrap_or_default();
        assert!(out.status.success(), "PostgreSQL does not start:\n{log}");
    }

    fn stop(&self, how: &str) {
        run(self.program("pg_ctl").arg("-D").arg(&self.data).args(["-w", "-m", how, "stop"]));
    }

    fn ask(&self, sql: &str) -> String {
        run(self.client("psql").args(["-v", "ON_ERROR_STOP=1", "-qAtc", sql, "bench"])).trim().to_owned()
    }

    /// The server's process, while its file can be read.
    fn pid(&self) -> i32 {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().trim().parse().unwrap()
    }

    /// pgbench in the background, and a client that counts what it is told is committed from `first` on.
    fn load(&self, first: u64) -> Load {
        let silent = |c: &mut Command| c.stderr(Stdio::null()).spawn().unwrap();
        let mut bench = self.client("pgbench");
        let bench =
            silent(bench.args(["-n", "-c", "4", "-T", "600", "bench"]).stdin(Stdio::null()).stdout(Stdio::null()));
        let mut counter = self.client("psql");
        counter.args(["-v", "ON_ERROR_STOP=1", "-qAt", "bench"]);
        let mut counter = silent(counter.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let (mut to, mut from) = (counter.stdin.take().unwrap(), BufReader::new(counter.stdout.take().unwrap()));
        let acknowledged = std::thread::spawn(move || {
            let mut last = None;
            for n in first.. {
                let mut answer = String::new();
                if writeln!(to, "INSERT INTO counted VALUES ({n}) RETURNING n;").is_err()
                    || from.read_line(&mut answer).is_err()
                    || answer.trim() != n.to_string()
                {
                    break;
                }
                last = Some(n);
            }
            last
        });
        Load { bench, counter, acknowledged }
    }

    /// Nothing is wrong in the running server, and everything up to `acknowledged` is there.
    fn judge(&self, first: u64, acknowledged: u64, when: &str) {
        assert_eq!(self.ask(SUMS), "t", "{when}: the sums");
        self.ask(INDEXES);
        let there = self.ask(&format!("SELECT count(*) FROM counted WHERE n BETWEEN {first} AND {acknowledged};"));
        assert_eq!(
            there,
            (acknowledged + 1 - first).to_string(),
            "{when}: acknowledged commits {first} to {acknowledged}"
        );
    }
}

impl Drop for Cluster {
    /// Of a test that fails half-way nothing goes on.
    fn drop(&mut self) {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        if let Some(Ok(pid)) = text.lines().next().map(|l| l.trim().parse::<i32>()) {
            // SAFETY: a signal to the server that this test started.
            unsafe { libc::kill(pid, libc::SIGQUIT) };
        }
    }
}

struct Load {
    bench: Child,
    counter: Child,
    acknowledged: std::thread::JoinHandle<Option<u64>>,
}

impl Load {
    /// Ends it after the server is gone; the last number that was acknowledged.
    fn end(mut self) -> u64 {
        for child in [&mut self.bench, &mut self.counter] {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.acknowledged.join().unwrap().expect("nothing was acknowledged: nothing was tried")
    }
}

/// A vault that the user `postgres` can reach, wherever the build lies.
fn vault() -> TestVault {
    needs_root("run PostgreSQL as the user that it wants");
    let mut v = TestVault::init_in(Path::new("/tmp"), &[]);
    fs::set_permissions(v.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    v.options = vec!["allow_other".into()];
    v.mount();
    v
}

#[test]
fn postgresql_survives_its_own_crash_and_the_daemons() {
    let v = vault();
    let cluster = Cluster::new(&v);
    let seconds = setting("STRONGROOM_PGBENCH_SECONDS", 10, 3);
    cluster.start();
    run(cluster.client("createdb").arg("bench"));
    run(cluster.client("pgbench").args(["-i", "-q", "-s", "1", "bench"]));
    cluster.ask("CREATE EXTENSION amcheck; CREATE TABLE counted(n bigint PRIMARY KEY);");
    run(cluster.client("pgbench").args(["-c", "4", "-T", &seconds.to_string(), "bench"]));

    let load = cluster.load(1_000_000);
    std::thread::sleep(Duration::from_secs(seconds));
    cluster.stop("immediate");
    let first = load.end();
    cluster.start();
    cluster.judge(1_000_000, first, "after an immediate stop");

    let (load, server) = (cluster.load(2_000_000), cluster.pid());
    std::thread::sleep(Duration::from_secs(seconds));
    v.kill9();
    // The server finds its files gone and is stopped as in a crash: nothing of it is left in memory.
    // SAFETY: a signal to the server that this test started.
    unsafe { libc::kill(server, libc::SIGQUIT) };
    let second = load.end();
    common::eventually("the server ends", Duration::from_secs(60), || !Path::new(&format!("/proc/{server}")).exists());
    v.mount();
    cluster.start();
    cluster.judge(1_000_000, first, "after kill -9, before the first crash");
    cluster.judge(2_000_000, second, "after kill -9 of the daemon");

    cluster.stop("fast");
    run(cluster.program("pg_checksums").arg("-c").arg("-D").arg(&cluster.data));
    v.checked_remount();
    run(cluster.program("pg_checksums").arg("-c").arg("-D").arg(&cluster.data));

    // The judge is worth something: a changed page is seen.
    let base = cluster.data.join("base");
    let line = "f=$(find \"$1\" -type f -name '[0-9]*' -size +64k | sort | head -1); test -n \"$f\"
                printf '\\377\\0\\377' | dd of=\"$f\" bs=1 seek=20000 conv=notrunc status=none";
    common::shell(&base, line, &[&base]);
    let judged = output(cluster.program("pg_checksums").arg("-c").arg("-D").arg(&cluster.data));
    assert!(!judged.status.success(), "pg_checksums passed a changed page");
}
