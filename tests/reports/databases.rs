//! Databases that reach their files in unusual ways: MariaDB with direct, asynchronous I/O and punched holes, LMDB through
//! a writable mapping.
//!
//! Method: a client counts what it was told is committed while the server or the writer is killed.
//! Promise: every acknowledged commit is there, and the database's own checker finds nothing.

use crate::common::tools::on_path;
use crate::common::{TestVault, eventually, output, run};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A MariaDB server; its socket and its log lie outside the vault.
struct MariaDb {
    data: PathBuf,
    beside: tempfile::TempDir,
    server: Option<Child>,
}

impl MariaDb {
    fn install(data: PathBuf) -> MariaDb {
        // A socket's path has room for 107 bytes only.
        let beside = tempfile::tempdir_in("/tmp").unwrap();
        fs::create_dir(&data).unwrap();
        let mut c = Command::new(on_path("mariadb-install-db"));
        c.args(["--no-defaults", "--user=root", "--skip-test-db", "--auth-root-authentication-method=normal"]);
        run(c.arg(format!("--datadir={}", data.display())));
        MariaDb { data, beside, server: None }
    }

    fn socket(&self) -> PathBuf {
        self.beside.path().join("socket")
    }

    /// Starts it with direct I/O and the kernel's asynchronous I/O; every commit is synced.
    fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.beside.path().join("log")).unwrap();
        let mut c = Command::new(on_path("mariadbd"));
        c.args(["--no-defaults", "--user=root", "--skip-networking", "--innodb-flush-method=O_DIRECT"])
            .args(["--innodb-use-native-aio=1", "--innodb-flush-log-at-trx-commit=1", "--innodb-buffer-pool-size=16M"])
            .arg(format!("--datadir={}", self.data.display()))
            .arg(format!("--socket={}", self.socket().display()))
            .arg(format!("--pid-file={}", self.beside.path().join("pid").display()));
        c.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut server = c.spawn().unwrap();
        let log = || fs::read_to_string(self.beside.path().join("log")).unwrap_or_default();
        eventually("MariaDB answers", Duration::from_secs(120), || {
            assert!(server.try_wait().unwrap().is_none(), "MariaDB does not start:\n{}", log());
            output(self.client().args(["-e", "SELECT 1"])).status.success()
        });
        self.server = Some(server);
    }

    fn client(&self) -> Command {
        let mut c = Command::new(on_path("mariadb"));
        c.args(["--no-defaults", "-u", "root", "-N", "-B", "-S"]).arg(self.socket());
        c
    }

    fn ask(&self, sql: &str) -> String {
        run(self.client().args(["-e", sql])).trim().to_owned()
    }

    fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    fn stop(&mut self) {
        self.ask("SHUTDOWN");
        assert!(self.server.take().unwrap().wait().unwrap().success(), "MariaDB ended with an error");
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Rows whose text is not what its checksum says, rows that are missing, and the checker's two answers.
const MARIADB_FAULTS: &str = "SELECT sum(h <> convert(md5(v) USING latin1)) FROM x.t; CHECK TABLE x.t EXTENDED; \
                              CHECK TABLE x.a EXTENDED;";
const MARIADB_CLEAN: &str = "0\nx.t\tcheck\tstatus\tOK\nx.a\tcheck\tstatus\tOK";

#[test]
fn mariadb_with_direct_io_and_punched_holes_survives_its_crash() {
    let v = TestVault::mounted();
    let mut db = MariaDb::install(v.path("data"));
    db.start();
    db.ask(
        "CREATE DATABASE x; USE x;
         CREATE TABLE t(id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(2000), h CHAR(32)) ENGINE=InnoDB PAGE_COMPRESSED=1;
         CREATE TABLE a(id INT PRIMARY KEY AUTO_INCREMENT, v BLOB) ENGINE=Aria;
         INSERT INTO a(v) SELECT repeat('a', seq) FROM seq_1_to_300;",
    );
    for _ in 0..5 {
        db.ask(
            "USE x; INSERT INTO t(v, h) SELECT repeat(md5(rand()), 1 + floor(rand() * 40)), '' FROM seq_1_to_200;
             UPDATE t SET h = md5(v) WHERE h = '';",
        );
    }
    // A client whose statements are committed one by one, and that prints the number of each when it is.
    let mut client = db.client();
    let mut client =
        client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).arg("--unbuffered").spawn().unwrap();
    let mut statements = client.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || {
        for n in 1..1_000_000 {
            let line = format!("INSERT INTO x.t(v, h) VALUES('k{n}', md5('k{n}')); SELECT {n};\n");
            if statements.write_all(line.as_bytes()).is_err() {
                return;
            }
        }
    });
    std::thread::sleep(Duration::from_millis(1500));
    db.kill();
    let told = client.wait_with_output().unwrap().stdout;
    feeder.join().unwrap();
    let acknowledged = String::from_utf8(told).unwrap().lines().filter_map(|l| l.parse::<u64>().ok()).max();
    let acknowledged = acknowledged.expect("nothing was acknowledged: nothing was tried");
    db.start();
    let there: u64 = db.ask("SELECT count(*) - 1000 FROM x.t").parse().unwrap();
    assert!(there >= acknowledged, "{there} of {acknowledged} acknowledged rows are there");
    assert_eq!(db.ask(MARIADB_FAULTS), MARIADB_CLEAN);
    db.stop();
    v.checked_remount();
    db.start();
    assert_eq!(db.ask(MARIADB_FAULTS), MARIADB_CLEAN, "after a remount");
    db.stop();
    // The judge is worth something: a changed page is seen.
    let table = v.path("data/x/t.ibd");
    run(Command::new("bash")
        .args(["-c", "printf abc | dd of=\"$1\" bs=1 seek=81950 conv=notrunc status=none", "-"])
        .arg(table));
    db.start();
    let judged = output(db.client().args(["-e", MARIADB_FAULTS]));
    assert_ne!(String::from_utf8_lossy(&judged.stdout).trim(), MARIADB_CLEAN, "MariaDB took a changed page");
    db.kill();
}

/// Fills a database in each way that LMDB writes, then kills a writer beside another; prints the killed one's last commit.
const LMDB: &str = r"
import hashlib, lmdb, os, random, signal, sys, time
where = sys.argv[1]
def value(i): return hashlib.sha256(b'%d' % i).digest() * random.Random(i).randrange(1, 60)
def opened(**how): return lmdb.open(where, map_size=256 << 20, **how)
def holds(env, present, absent=()):
    env.reader_check()
    with env.begin() as t:
        for i in present: assert t.get(b'%d' % i) == value(i), 'row %d' % i
        for i in absent: assert t.get(b'%d' % i) is None, 'deleted row %d' % i
if sys.argv[2] == 'check':
    last = int(sys.argv[3])
    holds(opened(), [i for i in range(1200) if i % 7] + list(range(10000, last + 1)), range(0, 1200, 7))
    sys.exit()
for how in (dict(writemap=True), dict(writemap=True, map_async=True), dict()):
    env = opened(**how)
    for base in range(0, 1200, 300):
        with env.begin(write=True) as t:
            for i in range(base, base + 300): t.put(b'%d' % i, value(i))
        with env.begin(write=True) as t:
            for i in range(base, base + 300):
                if i % 7 == 0: t.delete(b'%d' % i)
    env.sync(True); env.close()
take, give = os.pipe(); writer = os.fork()
if writer == 0:
    env = opened(writemap=True); i = 10000
    while True:
        with env.begin(write=True) as t: t.put(b'%d' % i, value(i))
        os.write(give, b'%d\n' % i); i += 1
os.close(give); os.read(take, 1); time.sleep(0.5)
env = opened(writemap=True)
for k in range(5):
    with env.begin(write=True) as t: t.put(b'other%d' % k, b'x' * k)
os.kill(writer, signal.SIGKILL); os.waitpid(writer, 0)
print((b'1' + b''.join(iter(lambda: os.read(take, 1 << 16), b''))).split()[-1].decode())
";

#[test]
fn lmdb_keeps_what_it_committed_through_a_writable_mapping() {
    let v = TestVault::mounted();
    // Debian's own, which has python3-lmdb; a python that comes first on the PATH may not.
    let lmdb = |arguments: &[&str]| {
        let mut c = Command::new("/usr/bin/python3");
        output(c.args(["-c", LMDB]).arg(v.path("data")).args(arguments))
    };
    let passes = |arguments: &[&str]| {
        let out = lmdb(arguments);
        assert!(out.status.success(), "LMDB {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    let last = passes(&["fill"]);
    assert!(last.parse::<u64>().unwrap() > 10_000, "the killed writer committed nothing: {last}");
    passes(&["check", &last]);
    let sum = |path: &Path| run(Command::new("sha256sum").arg(path));
    let before = sum(&v.path("data/data.mdb"));
    v.checked_remount();
    assert_eq!(sum(&v.path("data/data.mdb")), before, "the mapped file after a remount");
    passes(&["check", &last]);
    // The check is worth something: a row that was not committed is missed.
    let one_more = (last.parse::<u64>().unwrap() + 2).to_string();
    assert!(!lmdb(&["check", &one_more]).status.success(), "the check missed a row that was never written");
}

#[test]
fn room_is_reserved_before_a_file_is_made_longer() {
    // libmdbx calls posix_fallocate on a new file and maps it before it knows its length.
    let v = TestVault::mounted();
    let path = v.path("data");
    let line = "import mmap, os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR, 0o600)
os.posix_fallocate(fd, 0, 1 << 20)
assert os.fstat(fd).st_size == 1 << 20
m = mmap.mmap(fd, 0); m[100000:100004] = b'text'; m.flush(); os.ftruncate(fd, 2 << 20)
assert os.pread(fd, 4, 100000) == b'text' and os.pread(fd, 1 << 20, 1 << 20) == bytes(1 << 20)";
    run(Command::new("/usr/bin/python3").args(["-c", line]).arg(&path));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    v.remount();
    assert_eq!(&fs::read(&path).unwrap()[100_000..100_004], b"text");
}
