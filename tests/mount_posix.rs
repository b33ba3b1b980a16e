//! What an application may ask of ext4 beyond reading and writing, asked of the mount: the answers must be the same.
//!
//! Method: the same shell lines and system calls on the mount and on the disk's own filesystem, compared word for word,
//! where that is an ext4 (else on one in a file); what has no counterpart there is compared with what POSIX says.
//! Promise: access control lists, holes, handles, synchronous and appending writes, shared mappings, listings beside changes
//! and mount options are those of an ordinary filesystem. Where they are not, `mount_semantics` says so.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::aio::Aio;
use common::disk::Disk;
use common::rng::Rng;
use common::{TestVault, needs_root, run, setting, shell};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const NO_ARGUMENTS: [&str; 0] = [];

/// A directory on ext4, and the disk it is on if it had to be made.
fn ext4(v: &TestVault) -> (PathBuf, Option<Disk>) {
    let here = v.outside("ext4");
    fs::create_dir(&here).unwrap();
    if run(Command::new("stat").args(["-f", "-c", "%T"]).arg(&here)).trim().starts_with("ext2") {
        return (here, None);
    }
    let disk = Disk::ext4(64);
    (disk.at.clone(), Some(disk))
}

/// Both trees run the same lines; what they print must be the same.
fn alike(v: &TestVault, lines: &str) {
    let (plain, _disk) = ext4(v);
    let said = |dir: &Path| {
        let inner = dir.join("work");
        fs::create_dir(&inner).unwrap();
        let all = format!("set +e +o pipefail\nexec 2>&1\nr() {{ echo \"## $*\"; \"$@\"; echo \"-> $?\"; }}\n{lines}");
        shell(&inner, &all, &NO_ARGUMENTS).replace(inner.to_str().unwrap(), "DIR")
    };
    let (ours, theirs) = (said(&v.mnt), said(&plain));
    for (n, (a, b)) in ours.lines().zip(theirs.lines()).enumerate() {
        assert_eq!(a, b, "line {n}, after\n{}", ours.lines().take(n).collect::<Vec<_>>().join("\n"));
    }
    assert_eq!(ours.lines().count(), theirs.lines().count());
    assert!(ours.lines().count() > 20, "the lines said nothing:\n{ours}");
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn open_to_all(v: &TestVault) {
    for path in [v.dir.path(), &v.mnt] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// How often the kernel asked for something.
fn asked(v: &TestVault, what: &str) -> u64 {
    let all: serde_json::Value = serde_json::from_str(&v.storage("stats.json")).unwrap();
    let op = &all["operations"][what];
    op["count"].as_u64().or(op.as_u64()).unwrap_or_else(|| panic!("no {what} in stats.json"))
}

#[test]
fn access_control_lists_are_those_of_ext4() {
    needs_root("act as other users");
    let v = TestVault::mounted_with(&["allow_other", "dev", "suid"]);
    open_to_all(&v);
    fs::set_permissions(env!("CARGO_TARGET_TMPDIR"), fs::Permissions::from_mode(0o755)).unwrap();
    alike(
        &v,
        r#"umask 022; chmod 755 .
        g() { getfacl -cn --omit-header "$@"; stat -c '%A %u %g %n' "$@"; getfattr -m- "$@"; }
        as() { id=$1; shift; setpriv --reuid $id --regid $id --clear-groups "$@"; }
        echo x > f; mkdir d
        r setfacl -m u:1000:rw f; g f
        r chmod 640 f; g f
        r setfacl -m g:1001:rwx,m::r f; g f
        r chmod 777 f; g f
        r setfacl -b f; g f
        r setfacl -m u::rw,g::r,o::- f; g f
        r setfacl -m m::r f; g f
        r setfacl -x m f; g f
        r setfacl -d -m u:1000:rwx,g::rx,o::- d; g d
        (umask 077; touch d/f; mkdir d/s; mkfifo d/p; ln -s x d/l; mknod d/c c 1 3; g d/f d/s d/p d/c; stat -c %A d/l)
        r cp f d/copied; g d/copied
        r setfacl -k d; g d; touch d/after; g d/after
        r setfacl -d -m u::rwx,g::rx,o::rx d; touch d/plain; mkdir d/pd; g d/plain d/pd
        r setfacl -d -m u:1000:rwx f
        r setfattr -n system.posix_acl_access -v 0x0200 f
        r setfattr -n system.posix_acl_access -v 0x0100000001000600ffffffff f
        r setfattr -n system.posix_acl_access -v 0x0200000001000600ffffffff f
        r setfattr -n system.posix_acl_access -v 0x02000000 f
        for name in system.posix_acl_access system.posix_acl_default user.none; do r setfattr -x $name f; done
        r setfattr -x system.posix_acl_default d; g d
        for what in "user.x d/l" "user.x d/p" "trusted.x d/p" "security.x d/l" "system.x f" "foo.x f" "user. f" \
            "user.$(printf %0250d 1) f" "user.$(printf %0251d 1) f"; do set -- $what; r setfattr -h -n $1 -v 1 $2; done
        r as 65534 setfattr -n user.x -v 1 f
        r as 65534 setfattr -n trusted.x -v 1 f
        r setfacl -m u:1000:r d/p; g d/p
        chgrp 1001 f; chmod 2755 f; r setfacl -m u:1000:rw f; g f
        chown 65534:1001 f; chmod 2755 f; r as 65534 setfacl -m u:1000:rwx f; g f
        chmod 2755 f; r setpriv --reuid 65534 --regid 65534 --groups 5,1001 setfacl -m u:1000:r f; g f
        chmod 2755 f; r setpriv --reuid 65534 --regid 1001 --clear-groups setfacl -m u:1000:x f; g f
        echo s > k; chmod 600 k; setfacl -m u:1000:r k; r as 1000 cat k; chmod 600 k; r as 1000 cat k
        setfacl -m u:1000:rw k; r as 1000 sh -c 'echo t >> k'; r as 1001 cat k
        setfacl -m g:77:r k; r setpriv --reuid 1001 --regid 1000 --groups 77 cat k
        r as 1000 setfacl -m u:1000:rw k; r as 1000 chmod 777 k
        mkdir deep; chmod 700 deep; echo in > deep/file; chmod 644 deep/file; r as 1000 cat deep/file
        setfacl -m u:1000:x deep; r as 1000 cat deep/file; r as 1000 ls deep; setfacl -m u:1000:rx deep; r as 1000 ls deep
        setfacl -b deep; r as 1000 cat deep/file"#,
    );
    v.remount();
    assert_eq!(
        shell(&v.path("work"), "getfacl -cn k | grep -c :", &NO_ARGUMENTS).trim(),
        "6",
        "they outlive the mount"
    );
    v.umount();
    v.check();
}

#[test]
fn tools_carry_access_control_lists_and_attributes_there_and_back() {
    needs_root("give files to other users");
    let v = TestVault::mounted();
    let (plain, _disk) = ext4(&v);
    shell(
        &plain,
        "mkdir -p from/sub; cd from; echo one > one; ln one two; chown 5:6 one; setfacl -m u:1000:rw,g:7:r one
         setfacl -R -d -m u:1000:rwx,g:7:rx sub; echo in > sub/in; mkdir sub/deeper; ln -s one link
         setfattr -n user.colour -v green one; setfattr -n trusted.kept -v yes sub; chmod 4755 sub/in",
        &NO_ARGUMENTS,
    );
    let facts = |dir: &Path| {
        let lines = "find . -exec stat -c '%n %A %u %g %s %h %Y' {} + | grep -v '^. ' | sed 's/ [0-9]* [0-9]* \\([0-9]*\\)$/ \\1/' | sort
             find . -mindepth 1 ! -type l | LC_ALL=C sort | while read f; do getfacl -n $f; getfattr -dm- $f; done";
        shell(dir, lines, &NO_ARGUMENTS)
    };
    let from = plain.join("from");
    let wanted = facts(&from);
    assert!(wanted.contains("user:1000:rwx") && wanted.contains("trusted.kept"), "nothing to carry:\n{wanted}");
    for (tool, there, back) in [
        ("cp", "cp -a \"$1\" \"$2\"", "cp -a \"$1\" \"$2\""),
        ("rsync", "rsync -aHAX \"$1/\" \"$2\"", "rsync -aHAX \"$1/\" \"$2\""),
        (
            "tar",
            "mkdir \"$2\"; tar --acls --xattrs --xattrs-include='*' -C \"$1\" -cf - . | tar --acls --xattrs --xattrs-include='*' -C \"$2\" -xpf -",
            "mkdir \"$2\"; tar --acls --xattrs --xattrs-include='*' -C \"$1\" -cf - . | tar --acls --xattrs --xattrs-include='*' -C \"$2\" -xpf -",
        ),
    ] {
        let (inside, again) = (v.path(tool), plain.join(tool));
        shell(&plain, there, &[from.as_os_str(), inside.as_os_str()]);
        assert_eq!(facts(&inside), wanted, "{tool}, into the mount");
        v.remount();
        shell(&plain, back, &[inside.as_os_str(), again.as_os_str()]);
        assert_eq!(facts(&again), wanted, "{tool}, out of the mount");
    }
}

#[test]
fn an_owner_pays_nothing_for_access_control_lists() {
    needs_root("mount for others");
    let v = TestVault::mounted_with(&["allow_other"]);
    fs::create_dir(v.path("d")).unwrap();
    let life = |n: usize| {
        let path = v.path(format!("d/{n}"));
        fs::write(&path, "some bytes").unwrap();
        fs::metadata(&path).unwrap();
        fs::read(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        fs::remove_file(&path).unwrap();
    };
    life(0);
    let before = asked(&v, "getxattr");
    (1..=50).for_each(life);
    // One each: the kernel asks for security.capability before it writes.
    let more = asked(&v, "getxattr") - before;
    assert!(more <= 52, "{more} questions for attributes in 50 lives of a file");
}

/// The ranges of data that `lseek` tells of.
fn map(file: &File) -> Vec<(u64, u64)> {
    let seek = |at: u64, how| {
        // SAFETY: plain numbers, and a descriptor that lives through the call.
        let found = unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, how) };
        if found < 0 { Err(io::Error::last_os_error()) } else { Ok(found as u64) }
    };
    let mut all = Vec::new();
    let mut at = 0;
    loop {
        match seek(at, libc::SEEK_DATA) {
            Ok(data) => {
                at = seek(data, libc::SEEK_HOLE).expect("behind data there is a hole, at the end at the latest");
                all.push((data, at));
            }
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::ENXIO));
                return all;
            }
        }
    }
}

#[test]
fn holes_are_where_ext4_has_them() {
    let v = TestVault::mounted_with(&["flush-interval=0.2"]);
    let (plain, _disk) = ext4(&v);
    let open = |p: PathBuf| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(p).unwrap();
    const BLOCK: u64 = 4096;
    for seed in 0..setting("STRONGROOM_SEEDS", 6, 2) {
        let rng = &mut Rng(seed + 1);
        let both = [open(v.path(format!("f{seed}"))), open(plain.join(format!("f{seed}")))];
        let mut sizes = 0;
        for step in 0..120 {
            let (what, at, len) = (rng.below(12), rng.below(700) * BLOCK, (1 + rng.below(40)) * BLOCK);
            let data_len = 1 + rng.below(3 * BLOCK) as usize;
            let data = rng.bytes(data_len);
            for f in &both {
                match what {
                    0..6 => f.write_all_at(&data, at + data.len() as u64 % BLOCK).unwrap(),
                    6..9 => {
                        let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                        // SAFETY: plain numbers, and a descriptor that lives through the call.
                        assert_eq!(unsafe { libc::fallocate(f.as_raw_fd(), how, at as i64, len as i64) }, 0);
                    }
                    9 => f.set_len(at).unwrap(),
                    10 => f.sync_all().unwrap(),
                    _ => {}
                }
            }
            if what == 11 {
                std::thread::sleep(std::time::Duration::from_millis(rng.below(300)));
            }
            assert_eq!(map(&both[0]), map(&both[1]), "seed {seed}, step {step}");
            sizes += both[0].metadata().unwrap().len();
        }
        assert!(sizes > 0);
    }
    v.umount();
    v.check();
}

#[test]
fn much_that_the_kernel_has_not_written_back_is_no_hole() {
    let v = TestVault::mounted_with(&["flush-interval=60"]);
    const SIZE: u64 = 4 << 20;
    for len in [4096, 32 << 10, 36 << 10, 64 << 10, 128 << 10, 1 << 20, 3 << 20] {
        for at in [0, 8192, 1 << 20, SIZE - 4096, 9 << 20] {
            for mapped in [false, true] {
                let path = v.path(format!("{len}.{at}.{mapped}"));
                let f = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
                f.set_len(SIZE).unwrap();
                let data = vec![b'a'; len as usize];
                if !mapped {
                    f.write_all_at(&data, at).unwrap();
                } else if at + len <= SIZE {
                    // SAFETY: a new mapping of so many bytes of the file, which nobody else changes.
                    unsafe {
                        let (rights, fd) = (libc::PROT_READ | libc::PROT_WRITE, f.as_raw_fd());
                        let p = libc::mmap(std::ptr::null_mut(), len as usize, rights, libc::MAP_SHARED, fd, at as i64);
                        assert_ne!(p, libc::MAP_FAILED);
                        std::ptr::copy_nonoverlapping(data.as_ptr(), p.cast(), data.len());
                        libc::munmap(p, len as usize);
                    }
                } else {
                    continue;
                }
                // The hole is asked for first, while all of it is dirty.
                // SAFETY: plain numbers, and a descriptor that lives through the call.
                let hole = unsafe { libc::lseek(f.as_raw_fd(), at as i64, libc::SEEK_HOLE) };
                assert_eq!(hole as u64, at + len, "{len} bytes at {at}, mapped: {mapped}");
                assert_eq!(map(&f), [(at, at + len)], "{len} bytes at {at}, mapped: {mapped}");
            }
        }
    }
}

#[test]
fn what_the_kernel_has_not_written_back_is_no_hole() {
    let v = TestVault::mounted_with(&["flush-interval=60"]);
    let f = OpenOptions::new().read(true).write(true).create_new(true).open(v.path("f")).unwrap();
    f.set_len(64 << 20).unwrap();
    assert_eq!(map(&f), []);
    f.write_all_at(b"x", 20 << 20).unwrap();
    assert_eq!(map(&f), [(20 << 20, (20 << 20) + 4096)]);
    // Behind the end as the filesystem knows it, and through a mapping.
    f.write_all_at(b"y", 100 << 20).unwrap();
    let memory = Mapping::of(&f, 64 << 20, libc::MAP_SHARED);
    memory.put(30 << 20, b'z');
    let found = map(&f);
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found[1], (30 << 20, (30 << 20) + 4096));
    assert_eq!(found[2], (100 << 20, (100 << 20) + 1));
}

#[test]
fn sparse_copies_stay_sparse_and_the_same() {
    let v = TestVault::mounted();
    shell(
        &v.mnt,
        "truncate -s 200M sparse; for at in 0 7 99 150; do printf data-%s $at | dd of=sparse bs=1M seek=$at conv=notrunc status=none; done
         cp --sparse=always sparse copied; cp sparse automatic; tar -cSf archive.tar sparse; mkdir out; tar -xSf archive.tar -C out
         head -c 30M /dev/zero > zeros; cp --sparse=always zeros holes
         for f in copied automatic out/sparse; do cmp sparse $f; done; cmp zeros holes",
        &NO_ARGUMENTS,
    );
    v.remount();
    let kib = |name: &str| fs::metadata(v.path(name)).unwrap().blocks() / 2;
    for name in ["sparse", "copied", "automatic", "out/sparse", "holes"] {
        assert!(kib(name) <= 64, "{name} takes {} KiB", kib(name));
    }
    assert!(kib("archive.tar") < 100, "the archive holds the holes: {} KiB", kib("archive.tar"));
    assert!(kib("zeros") >= 30 << 10, "zeros that were written are data");
    assert_eq!(map(&File::open(v.path("copied")).unwrap()).len(), 4);
}

#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    id: [u8; 128],
}

fn handle_of(path: &Path) -> Handle {
    let mut handle = Handle { bytes: 128, kind: 0, id: [0; 128] };
    let mut mount = 0;
    let at = c(path);
    // SAFETY: the handle says how much room it has.
    let done =
        unsafe { libc::name_to_handle_at(libc::AT_FDCWD, at.as_ptr(), (&raw mut handle).cast(), &raw mut mount, 0) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    handle
}

fn open_handle(mount: &Path, handle: &mut Handle) -> io::Result<File> {
    use std::os::fd::FromRawFd;
    let mount = File::open(mount)?;
    // SAFETY: a handle that the kernel made, and a descriptor that lives through the call.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), std::ptr::from_mut(handle).cast(), libc::O_RDONLY) };
    // SAFETY: the kernel just made the descriptor for us.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { File::from_raw_fd(fd) }) }
}

#[test]
fn a_handle_leads_to_its_file_wherever_it_went() {
    needs_root("open files by handle");
    let v = TestVault::mounted();
    fs::create_dir_all(v.path("a/b")).unwrap();
    fs::write(v.path("a/b/file"), "content").unwrap();
    let (mut file, mut dir) = (handle_of(&v.path("a/b/file")), handle_of(&v.path("a/b")));
    let ino = fs::metadata(v.path("a/b/file")).unwrap().ino();
    fs::rename(v.path("a/b/file"), v.path("moved")).unwrap();
    let drop_caches = || fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    for round in ["at once", "with nothing cached", "mounted anew"] {
        match round {
            "with nothing cached" => drop_caches(),
            "mounted anew" => v.remount(),
            _ => {}
        }
        let found = open_handle(&v.mnt, &mut file).unwrap_or_else(|e| panic!("{round}: {e}"));
        assert_eq!(io::read_to_string(&found).unwrap(), "content", "{round}");
        assert_eq!(found.metadata().unwrap().ino(), ino, "{round}: a number is for life");
        assert!(open_handle(&v.mnt, &mut dir).unwrap().metadata().unwrap().is_dir(), "{round}");
    }
    fs::remove_file(v.path("moved")).unwrap();
    drop_caches();
    let gone = open_handle(&v.mnt, &mut file).expect_err("it was deleted").raw_os_error();
    assert_eq!(gone, Some(libc::ESTALE));
}

#[test]
fn synchronous_writes_are_durable_when_they_return() {
    let v = TestVault::mounted_with(&["flush-interval=60"]);
    let open = |name: &str, flags| {
        OpenOptions::new().write(true).create(true).truncate(false).custom_flags(flags).open(v.path(name)).unwrap()
    };
    for (name, flags) in [("sync", libc::O_SYNC), ("dsync", libc::O_DSYNC)] {
        let mut f = open(name, flags);
        let before = asked(&v, "fsync");
        for _ in 0..4 {
            f.write_all(b"ten bytes.").unwrap();
        }
        assert_eq!(asked(&v, "fsync") - before, 4, "{name}: each write is an fsync");
    }
    #[repr(align(4096))]
    struct Block([u8; 4096]);
    let block = Box::new(Block([7; 4096]));
    open("direct", libc::O_DIRECT | libc::O_DSYNC).write_all_at(&block.0, 0).unwrap();
    v.kill9();
    v.mount();
    for name in ["sync", "dsync"] {
        assert_eq!(fs::read_to_string(v.path(name)).unwrap(), "ten bytes.".repeat(4), "{name}");
    }
    assert_eq!(fs::read(v.path("direct")).unwrap(), [7; 4096]);
}

#[test]
fn appenders_do_not_write_over_each_other() {
    let v = TestVault::mounted();
    let line = "for i in $(seq 400); do printf '%s %04d %s\\n' \"$1\" $i abcdefghijklmnopqrstuvwxyz; done >> log";
    let writers: Vec<_> = (0..4)
        .map(|n| Command::new("bash").args(["-c", line, "bash", &n.to_string()]).current_dir(&v.mnt).spawn().unwrap())
        .collect();
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    v.remount();
    let text = fs::read_to_string(v.path("log")).unwrap();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        assert!(words.len() == 3 && words[2].len() == 26, "{line:?}");
        let next = counts.entry(words[0].to_owned()).or_insert(1);
        assert_eq!(words[1].parse(), Ok(*next), "a writer's lines stay in order");
        *next += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<i32>>(), [401; 4]);
}

/// A file in memory.
struct Mapping(*mut u8, usize);

impl Mapping {
    fn of(file: &File, len: usize, how: i32) -> Mapping {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, of a file of at least that length, wherever the kernel likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, both, how, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Mapping(at.cast(), len)
    }
    fn put(&self, at: usize, byte: u8) {
        assert!(at < self.1);
        // SAFETY: within the mapping; volatile, for others see it.
        unsafe { self.0.add(at).write_volatile(byte) };
    }
    fn get(&self, at: usize) -> u8 {
        assert!(at < self.1);
        // SAFETY: within the mapping; volatile, for others change it.
        unsafe { self.0.add(at).read_volatile() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses after this.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

#[test]
fn shared_mappings_and_files_show_the_same() {
    let v = TestVault::mounted();
    let f = OpenOptions::new().read(true).write(true).create_new(true).open(v.path("f")).unwrap();
    f.write_all_at(&[b'a'; 20_000], 0).unwrap();
    let (one, two) = (Mapping::of(&f, 20_000, libc::MAP_SHARED), Mapping::of(&f, 20_000, libc::MAP_SHARED));
    let own = Mapping::of(&f, 20_000, libc::MAP_PRIVATE);
    one.put(5000, b'b');
    assert_eq!(two.get(5000), b'b');
    let mut byte = [0];
    f.read_exact_at(&mut byte, 5000).unwrap();
    assert_eq!(byte, *b"b", "read(2) shows what a mapping holds");
    f.write_all_at(b"c", 9000).unwrap();
    assert_eq!(one.get(9000), b'c', "a mapping shows what write(2) wrote");
    own.put(100, b'p');
    assert_eq!((own.get(100), one.get(100)), (b'p', b'a'), "what is private stays so");
    // SAFETY: our own mapping, which is there.
    assert_eq!(unsafe { libc::msync(one.0.cast(), one.1, libc::MS_SYNC) }, 0);
    v.kill9();
    drop((one, two, own, f));
    v.mount();
    let stored = fs::read(v.path("f")).unwrap();
    assert_eq!((stored[100], stored[5000], stored[9000]), (b'a', b'b', b'c'), "msync is an fsync");
}

#[test]
fn a_listing_beside_changes_shows_what_stays_once() {
    let v = TestVault::mounted();
    let dir = v.path("d");
    fs::create_dir(&dir).unwrap();
    const STAY: usize = 1500;
    for n in 0..STAY {
        File::create(dir.join(format!("stay {n}"))).unwrap();
        File::create(dir.join(format!("go {n}"))).unwrap();
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let rng = &mut Rng(5);
            while !done.load(SeqCst) {
                let n = rng.below(STAY as u64);
                match rng.below(3) {
                    0 => drop(File::create(dir.join(format!("new {n}")))),
                    1 => drop(fs::remove_file(dir.join(format!("go {n}")))),
                    _ => drop(fs::rename(dir.join(format!("new {n}")), dir.join(format!("go {n}")))),
                }
            }
        });
        let rng = &mut Rng(6);
        for round in 0..setting("STRONGROOM_ROUNDS", 12, 4) {
            let mut seen = BTreeMap::new();
            let path = c(&dir);
            // SAFETY: a terminated string.
            let stream = unsafe { libc::opendir(path.as_ptr()) };
            assert!(!stream.is_null());
            let mut steps = 0;
            loop {
                // SAFETY: an open stream that only this thread uses; the entry is read before the next call.
                let entry = unsafe { libc::readdir(stream).as_ref() };
                let Some(entry) = entry else { break };
                // SAFETY: the kernel terminates names.
                let name = unsafe { std::ffi::CStr::from_ptr(entry.d_name.as_ptr()) }.to_string_lossy().into_owned();
                *seen.entry(name).or_insert(0) += 1;
                steps += 1;
                if rng.below(40) == 0 {
                    // Away and back: the place is where it was.
                    // SAFETY: the same stream; the place is its own.
                    unsafe {
                        let here = libc::telldir(stream);
                        libc::rewinddir(stream);
                        libc::readdir(stream);
                        libc::seekdir(stream, here);
                    }
                }
            }
            // SAFETY: nobody uses it any more.
            unsafe { libc::closedir(stream) };
            for n in 0..STAY {
                let times = seen.get(&format!("stay {n}")).copied().unwrap_or(0);
                assert_eq!(times, 1, "round {round}: 'stay {n}' was seen {times} times in {steps} entries");
            }
        }
        done.store(true, SeqCst);
    });
}

/// Every file of a vault with its length, its content's sum and its times.
fn trace(vault: &Path) -> String {
    let lines = "find . -type f ! -name lock -exec md5sum {} + | sort; find . ! -name lock -printf '%p %s %b %T@ %C@\\n' | sort";
    shell(vault, lines, &NO_ARGUMENTS)
}

#[test]
fn a_mount_for_reading_only_leaves_no_trace() {
    let mut v = TestVault::mounted();
    fs::write(v.path("file"), "content").unwrap();
    fs::create_dir(v.path("dir")).unwrap();
    v.umount();
    for ended in ["cleanly", "by a kill"] {
        if ended == "by a kill" {
            v.options.clear();
            v.mount();
            let f = File::create(v.path("late")).unwrap();
            (&f).write_all(b"acknowledged").unwrap();
            f.sync_all().unwrap();
            v.kill9();
        }
        let before = trace(&v.vault);
        v.options = vec!["ro".into()];
        v.mount();
        assert_eq!(fs::read_to_string(v.path("file")).unwrap(), "content");
        if ended == "by a kill" {
            assert_eq!(fs::read_to_string(v.path("late")).unwrap(), "acknowledged");
        }
        let file = c(&v.path("file"));
        let refused = |what: &str, done: io::Result<()>| {
            assert_eq!(done.expect_err(what).raw_os_error(), Some(libc::EROFS), "{what}");
        };
        refused("create", File::create(v.path("new")).map(drop));
        refused("write", OpenOptions::new().write(true).open(v.path("file")).map(drop));
        refused("mkdir", fs::create_dir(v.path("new")));
        refused("unlink", fs::remove_file(v.path("file")));
        refused("rmdir", fs::remove_dir(v.path("dir")));
        refused("rename", fs::rename(v.path("file"), v.path("new")));
        refused("link", fs::hard_link(v.path("file"), v.path("new")));
        refused("symlink", std::os::unix::fs::symlink("x", v.path("new")));
        refused("chmod", fs::set_permissions(v.path("file"), fs::Permissions::from_mode(0o600)));
        refused("chown", std::os::unix::fs::chown(v.path("file"), Some(1), None));
        // SAFETY: terminated strings; no times means now.
        let last = |done: i32| if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        // SAFETY: as above.
        refused("utimes", last(unsafe { libc::utimes(file.as_ptr(), std::ptr::null()) }));
        // SAFETY: as above; a value of one byte.
        let set = unsafe { libc::setxattr(file.as_ptr(), c"user.x".as_ptr(), c"1".as_ptr().cast(), 1, 0) };
        refused("setxattr", last(set));
        // SAFETY: as above.
        refused("truncate", last(unsafe { libc::truncate(file.as_ptr(), 0) }));
        v.umount();
        assert_eq!(trace(&v.vault), before, "ended {ended}");
    }
    v.options.clear();
    v.mount();
    assert_eq!(fs::read_to_string(v.path("late")).unwrap(), "acknowledged");
}

#[test]
fn a_vault_on_a_medium_for_reading_only_can_be_read() {
    needs_root("mount a directory for reading only");
    let v = TestVault::mounted();
    fs::write(v.path("file"), "content").unwrap();
    v.umount();
    let fixed = v.outside("fixed");
    fs::create_dir(&fixed).unwrap();
    run(Command::new("mount").arg("--bind").arg(&v.vault).arg(&fixed));
    run(Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&fixed));
    let mount = |o: &str| {
        let mut c = Command::new(common::strongroom());
        c.env("STRONGROOM_STATE_DIR", v.outside("state")).args(["mount", "-o", o, "--password-file"]).arg(&v.password);
        common::output(c.arg(&fixed).arg(&v.mnt))
    };
    let refused = mount("rw").status.success();
    let read = mount("ro").status.success() && fs::read_to_string(v.path("file")).is_ok_and(|text| text == "content");
    if v.is_mounted() {
        run(Command::new(common::strongroom()).arg("umount").arg(&v.mnt));
    }
    run(Command::new("umount").arg(&fixed));
    assert!(!refused, "mounted for writing on a medium for reading");
    assert!(read);
}

#[test]
fn owners_and_permissions_are_shown_as_asked() {
    let mut v = TestVault::mounted();
    fs::write(v.path("file"), "content").unwrap();
    fs::create_dir(v.path("dir")).unwrap();
    fs::set_permissions(v.path("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    v.umount();
    let shown = |v: &TestVault, name: &str| {
        let m = fs::metadata(v.path(name)).unwrap();
        (m.uid(), m.gid(), m.mode() & 0o7777)
    };
    v.options = vec!["uid=1234".into(), "gid=2345".into(), "umask=027".into(), "fmask=137".into()];
    v.mount();
    for _ in 0..2 {
        assert_eq!(shown(&v, "file"), (1234, 2345, 0o640));
        assert_eq!(shown(&v, "dir"), (1234, 2345, 0o750));
        assert_eq!(shown(&v, "."), (1234, 2345, 0o750));
        fs::read_dir(&v.mnt).unwrap().for_each(|e| drop(e.unwrap().metadata()));
    }
    fs::write(v.path("new"), "").unwrap();
    assert_eq!(shown(&v, "new"), (1234, 2345, 0o640));
    v.umount();
    v.options.clear();
    v.mount();
    let m = fs::metadata(v.path("file")).unwrap();
    assert_eq!(m.mode() & 0o7777, 0o4751, "what is stored is as it was");
    assert_eq!(fs::metadata(v.path("new")).unwrap().uid(), m.uid(), "what is new belongs to who made it");
}

#[test]
fn access_times_move_as_the_options_say() {
    let mut v = TestVault::init();
    let day = 24 * 3600;
    for (option, file, dir, again) in [
        ("relatime", true, true, false),
        ("noatime", false, false, false),
        ("strictatime", true, true, true),
        ("nodiratime", true, false, false),
        ("lazytime", true, true, false),
    ] {
        v.options = vec![option.into()];
        v.mount();
        let (f, d) = (v.path(format!("f-{option}")), v.path(format!("d-{option}")));
        fs::write(&f, "content").unwrap();
        fs::create_dir(&d).unwrap();
        let old = format!("@{}", fs::metadata(&f).unwrap().mtime() - 2 * day);
        let age = |p: &Path| drop(run(Command::new("touch").args(["-a", "-d", &old]).arg(p)));
        let look = || {
            fs::read(&f).unwrap();
            fs::read_dir(&d).unwrap().for_each(drop);
        };
        let at = |p: &Path| fs::metadata(p).unwrap().atime_nsec() + fs::metadata(p).unwrap().atime() * 1_000_000_000;
        age(&f);
        age(&d);
        v.remount();
        let before = (at(&f), at(&d));
        look();
        let after = (at(&f), at(&d));
        assert_eq!((after.0 > before.0, after.1 > before.1), (file, dir), "{option}");
        v.remount();
        look();
        assert_eq!(at(&f) > after.0, again, "{option}, newer than the last change");
        v.umount();
    }
}

#[test]
fn the_kernel_is_told_what_it_is_to_keep() {
    needs_root("choose freely");
    let mut v = TestVault::init();
    let shown = |v: &TestVault| {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|l| l.split(' ').nth(4) == v.mnt.to_str()).unwrap().to_owned();
        line.split(' ').nth(5).unwrap().to_owned()
    };
    for (options, wanted) in [
        ("rw", "rw,nosuid,nodev,relatime"),
        ("suid,dev,noexec,noatime", "rw,noexec,noatime"),
        ("nodev,suid,exec,nodiratime", "rw,nodev,nodiratime,relatime"),
        ("ro,strictatime", "ro,nosuid,nodev"),
    ] {
        v.options = vec![options.into()];
        v.mount();
        assert_eq!(shown(&v), wanted, "{options}");
        v.umount();
    }
    v.options = vec!["rw,frobnicate=7".into()];
    let (code, said) = v.try_mount().expect_err("it is refused");
    assert_eq!((code, said.trim()), (Some(2), "strongroom: unknown mount option 'frobnicate=7'"));
}

#[test]
fn fstab_words_go_through_the_mount_script() {
    needs_root("mount as mount(8) does");
    let v = TestVault::init();
    let bin = v.outside("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(common::strongroom(), bin.join("strongroom")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-scripts/mount.strongroom");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let words = format!(
        "rw,nosuid,nodev,noexec,lazytime,noatime,uid=0,gid=0,umask=022,noacl,allow_other,_netdev,nofail,x-systemd.automount,password-file={}",
        v.password.display()
    );
    let mut c = Command::new("sh");
    c.arg(script).arg(&v.vault).arg(&v.mnt).args(["-o", &words]).env("PATH", &path);
    run(c.env("STRONGROOM_STATE_DIR", v.outside("state")));
    assert!(v.is_mounted());
    run(Command::new(common::strongroom()).arg("umount").arg(&v.mnt));
}

#[test]
fn statfs_tells_what_a_writer_can_write() {
    let mut v = TestVault::init_with(&["--quota", "24M", "--quota-inodes", "40"]);
    v.options = vec!["compression=none".into()];
    v.mount();
    let space = || {
        let path = c(&v.mnt);
        // SAFETY: statvfs is plain data for which zeros are a valid value.
        let mut s: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: a terminated string, and room for the answer.
        assert_eq!(unsafe { libc::statvfs(path.as_ptr(), &raw mut s) }, 0);
        s
    };
    let before = space();
    let f = File::create(v.path("f")).unwrap();
    let block = Rng(1).bytes(4096);
    let mut blocks = 0;
    while f.write_all_at(&block, blocks * 4096).and_then(|()| f.sync_data()).is_ok() {
        blocks += 1;
    }
    assert!(before.f_bavail.abs_diff(blocks) <= 1, "{} blocks were said to be free, {blocks} were", before.f_bavail);
    assert!(space().f_bavail <= 1, "{} blocks are said to be free, none is", space().f_bavail);
    f.set_len(0).unwrap();
    drop(f);
    fs::remove_file(v.path("f")).unwrap();
    // The inode goes when the kernel has forgotten it.
    common::eventually("all inodes but the root are free", std::time::Duration::from_secs(10), || {
        space().f_ffree == 39
    });
    let free = space().f_ffree;
    let made = (0..).take_while(|n| File::create(v.path(format!("n{n}"))).is_ok()).count();
    assert_eq!((made as u64, space().f_ffree, space().f_files), (free, 0, 40));
}

#[test]
fn an_overlay_finds_its_whiteouts() {
    needs_root("make devices");
    let v = TestVault::mounted();
    fs::create_dir(v.path("dir")).unwrap();
    let rename = |from: &str, to: &str, flags: u32| {
        let (from, to) = (c(&v.path(from)), c(&v.path(to)));
        // SAFETY: terminated strings.
        let done = unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
        if done < 0 { Err(io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(()) }
    };
    for (from, to) in [("one", "two"), ("three", "dir/four")] {
        fs::write(v.path(from), from).unwrap();
        rename(from, to, libc::RENAME_WHITEOUT).unwrap();
    }
    fs::write(v.path("five"), "five").unwrap();
    assert_eq!(rename("five", "two", libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE), Err(libc::EEXIST));
    assert_eq!(rename("five", "two", libc::RENAME_WHITEOUT | libc::RENAME_EXCHANGE), Err(libc::EINVAL));
    for _ in 0..2 {
        for (from, to) in [("one", "two"), ("three", "dir/four")] {
            let m = fs::symlink_metadata(v.path(from)).unwrap();
            assert_eq!((m.mode(), m.rdev(), m.nlink()), (libc::S_IFCHR, 0, 1));
            assert_eq!(fs::read_to_string(v.path(to)).unwrap(), from);
        }
        v.remount();
    }
    v.umount();
    v.check();
}

#[test]
fn cached_pages_do_not_outlive_asynchronous_direct_writes() {
    let v = TestVault::mounted();
    let path = v.path("f");
    const SIZE: u64 = 16 << 20;
    const QUARTER: u64 = SIZE / 4;
    fs::write(&path, vec![0; SIZE as usize]).unwrap();
    let buffered = File::open(&path).unwrap();
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 1..=3 {
            let (path, stop) = (&path, &stop);
            scope.spawn(move || {
                let (file, rng) = (File::open(path).unwrap(), &mut Rng(reader));
                let mut out = vec![0; 256 << 10];
                while !stop.load(SeqCst) {
                    let len = 4096 * (1 + rng.below(64) as usize);
                    file.read_at(&mut out[..len], 4096 * rng.below(SIZE / 4096)).unwrap();
                }
            });
        }
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let (aio, rng) = (Aio::new(), &mut Rng(9));
            let begun = Instant::now();
            let mut byte: u8 = 0;
            while begun.elapsed() < Duration::from_secs(2) {
                let len = if rng.below(2) == 0 { 640 << 10 } else { 64 << 10 };
                let writes: Vec<(u64, usize, u8)> = (0..4)
                    .map(|q| {
                        byte = byte.wrapping_add(1);
                        (q * QUARTER + 4096 * rng.below((QUARTER - len) / 4096), len as usize, byte)
                    })
                    .collect();
                aio.write(&direct, &writes);
                for (at, len, byte) in writes {
                    let mut back = vec![0; len];
                    buffered.read_exact_at(&mut back, at).unwrap();
                    let stale = back.iter().filter(|b| **b != byte).count();
                    assert_eq!(stale, 0, "bytes of {len} at {at} are older than the write that was answered");
                }
            }
        }));
        stop.store(true, SeqCst);
        checked.unwrap_or_else(|panic| resume_unwind(panic));
    });
    // SAFETY: plain numbers, and a descriptor that lives through the call.
    let aligned =
        unsafe { std::slice::from_raw_parts_mut(libc::memalign(4096, SIZE as usize).cast::<u8>(), SIZE as usize) };
    direct.read_exact_at(aligned, 0).unwrap();
    assert!(fs::read(&path).unwrap() == *aligned, "buffered and direct reading differ");
}

/// A reader locks pages and then waits for its turn among the kernel's background requests. Direct writes that wait for those pages
/// must not take all turns.
#[test]
fn queued_direct_writes_and_buffered_readers_do_not_wait_for_each_other() {
    const SIZE: u64 = 16 << 20;
    const LEN: u64 = 640 << 10;
    let v = TestVault::mounted();
    let path = v.path("f");
    fs::write(&path, vec![0; SIZE as usize]).unwrap();
    let (stop, ended) = (AtomicBool::new(false), AtomicUsize::new(0));
    let abort = format!("/sys/fs/fuse/connections/{}/abort", libc::minor(fs::metadata(&path).unwrap().dev()));
    let direct = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    std::thread::scope(|scope| {
        for reader in 1..=3 {
            let (path, stop, ended) = (&path, &stop, &ended);
            scope.spawn(move || {
                let (file, rng, mut out) = (File::open(path).unwrap(), &mut Rng(reader), vec![0; 4096]);
                // Each read that misses the cache is a background request of its own.
                // SAFETY: plain numbers.
                unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
                while !stop.load(SeqCst) && file.read_at(&mut out, 4096 * rng.below(SIZE / 4096)).is_ok() {}
                ended.fetch_add(1, SeqCst);
            });
        }
        for writer in 11..=13 {
            let (stop, ended, file) = (&stop, &ended, direct());
            scope.spawn(move || {
                let (aio, rng) = (Aio::new(), &mut Rng(writer));
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_secs(4) {
                    let at = |_| (4096 * rng.below((SIZE - LEN) / 4096), LEN as usize, 7);
                    aio.write(&file, &(0..16).map(at).collect::<Vec<_>>());
                }
                stop.store(true, SeqCst);
                ended.fetch_add(1, SeqCst);
            });
        }
        let begun = Instant::now();
        while ended.load(SeqCst) < 6 {
            std::thread::sleep(Duration::from_millis(50));
            if begun.elapsed() > Duration::from_secs(60) {
                // Not even the daemon's death would end the threads.
                fs::write(&abort, "1").unwrap();
                panic!("after {:?}, {} of 6 programs have ended", begun.elapsed(), ended.load(SeqCst));
            }
        }
    });
    // SAFETY: plain numbers, and a descriptor that lives through the call.
    let aligned =
        unsafe { std::slice::from_raw_parts_mut(libc::memalign(4096, SIZE as usize).cast::<u8>(), SIZE as usize) };
    direct().read_exact_at(aligned, 0).unwrap();
    common::eventually("buffered and direct reading agree", Duration::from_secs(10), || {
        fs::read(&path).unwrap() == *aligned
    });
}
