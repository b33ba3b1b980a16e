//! Programs that copy trees with everything that belongs to a file: rsync, tar, cp and unsquashfs.
//!
//! Method: a tree with every type of file, odd names, modes, owners, times, hard links, holes, extended attributes and
//! access control lists is made on an ext4, copied into the mount, within it and back by each program, and what `find`,
//! `sha256sum`, `getfattr` and `getfacl` tell of the copies is compared with the original, also after the vault was mounted anew.
//! Promise: a copy in the mount has everything that a copy on ext4 would have.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::disk::Disk;
use common::tools::on_path;
use common::{TestVault, run, shell};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const NO_ARGUMENTS: [&str; 0] = [];

/// The tree to copy.
const MAKE: &str = r#"
    mkdir -p tree/d/e/f tree/empty; cd tree
    for i in $(seq 120); do head -c $((i * 197)) /dev/urandom > d/f$i; done
    truncate -s 3M d/sparse; printf x | dd of=d/sparse bs=1 seek=2000000 conv=notrunc status=none
    head -c 6000000 /dev/urandom > d/e/big; : > d/nothing
    ln d/f1 d/e/hard1; ln d/f1 d/e/f/hard2; ln -s ../nowhere d/dangling; ln -s f1 d/link; ln -s "$(printf 'l%.0s' $(seq 1500))" d/long-link
    mkfifo d/fifo; mknod d/chr c 1 3; mknod d/blk b 7 9
    chmod 4755 d/f2; chmod 2750 d/e; chmod 1777 d/e/f; chmod 000 d/f3; chmod 2711 d/f15; chown 1:2 d/f4; chown -h 3:4 d/link; chown 70000:80000 d/f16
    printf n > "d/$(printf 'n%.0s' $(seq 255))"; printf u > "d/ünïcode ☃ name"; printf s > "d/ sp ace\"'\\q"; printf nl > $'d/new\nline'; printf b > $'d/\xff\xfe'
    touch -d '1999-12-31 23:59:59.123456789' d/f5; touch -d '2040-02-03 04:05:06.987654321' d/f6; touch -d '1960-01-01 00:00:00.000000001' d/f9
    touch -h -d '2003-04-05 06:07:08.9' d/link d/dangling d/long-link
    setfattr -n user.t -v one d/f7; setfattr -n user.big -v "$(head -c 3000 /dev/zero | tr '\0' z)" d/f7; setfattr -n user.empty d/f7
    setfattr -n user.dir -v x d/e; setfattr -n trusted.r -v y d/f8; setfattr -h -n trusted.l -v y d/link
    setfacl -m u:daemon:rw,g:bin:-,m::rx d/f10; setfacl -d -m g:bin:rx,u:1234:rwx d/e/f; setfacl -m u:daemon:x d/e; printf x > d/e/f/inherits
    # All of them: rsync lets times of directories and links be that differ by less than a second.
    touch -d '2001-01-01' d/e/f d/e d empty .
"#;

/// What programs can tell of a tree, one fact a line.
fn facts(root: &Path) -> BTreeSet<String> {
    const LINE: &str = r#"
        find . -mindepth 1 \( -type d -printf '%p d %m %U:%G %T@\0' \) -o \( -type f -printf '%p f %m %U:%G %n %s %T@\0' \) \
            -o \( -type l -printf '%p l %U:%G %l %T@\0' \) -o -printf '%p %y %m %U:%G %n\0'
        find . -type b -o -type c | sort | xargs stat -c '%n %t:%T%n' | tr '\n' '\0'
        find . -type f -print0 | sort -z | xargs -0 sha256sum -z
        find . -links +1 -type f -printf '%i %p\n' | sort | awk '{ if ($1 == last) group = group " " $2; else { if (group) printf "%s\0", group; group = "linked " $2 }; last = $1 } END { printf "%s\0", group }'
        find . -print0 | sort -z | xargs -0 getfattr -h -d -m '^(user|trusted)\.' -e hex 2>/dev/null | awk 'BEGIN { RS = ""; ORS = "\0" } { print }'
        find . ! -type l -print0 | sort -z | xargs -0 getfacl -n -p 2>/dev/null | awk 'BEGIN { RS = ""; ORS = "\0" } { print }'
    "#;
    let told = run(Command::new("bash").args(["-euc", LINE]).current_dir(root));
    told.split('\0').filter(|l| !l.trim().is_empty()).map(str::to_owned).collect()
}

/// What one tree has and the other has not, a few lines of it.
fn difference(left: &Path, right: &Path) -> Option<String> {
    let (a, b) = (facts(left), facts(right));
    assert!(a.len() > 400, "the facts of {} are only {}", left.display(), a.len());
    let cut = |l: &String| l.chars().take(300).collect::<String>();
    let only = |x: &BTreeSet<String>, y: &BTreeSet<String>| x.difference(y).take(6).map(cut).collect::<Vec<_>>();
    (a != b).then(|| {
        format!("only in {}: {:#?}\nonly in {}: {:#?}", left.display(), only(&a, &b), right.display(), only(&b, &a))
    })
}

/// The original on a disk of its own, and where copies go.
struct Work {
    disk: Disk,
    original: PathBuf,
}

impl Work {
    fn new() -> Work {
        for tool in ["setfacl", "setfattr", "rsync", "unsquashfs", "mksquashfs", "tar"] {
            on_path(tool);
        }
        // Large enough for blocks of 4 KiB, which bound how long attributes and link targets may be.
        let disk = Disk::ext4(600);
        shell(&disk.at, MAKE, &NO_ARGUMENTS);
        let original = disk.at.join("tree");
        Work { disk, original }
    }

    /// Every program's copies into `place`, within it and back.
    fn copy(&self, place: &Path) -> Vec<PathBuf> {
        let on_disk = |name: &str| self.disk.at.join(name);
        let rsync = |from: &Path, to: &Path, more: &[&str]| {
            let mut c = Command::new("rsync");
            c.args(["-aHAX", "--numeric-ids", "--checksum"]).args(more).arg(format!("{}/", from.display())).arg(to);
            run(&mut c)
        };
        let line = |line: &str, from: &Path, to: &Path| shell(place, line, &[from, to]);
        const TAR: &str = "all=(--xattrs --xattrs-include='*' --acls --numeric-owner --sparse)
            mkdir \"$2\"; tar \"${all[@]}\" -C \"$1\" -cf archive.tar .; tar \"${all[@]}\" -C \"$2\" -xpf archive.tar; rm archive.tar";
        let mut copies = Vec::new();
        let mut add = |path: PathBuf| {
            copies.push(path.clone());
            path
        };

        let inside = add(place.join("rsync"));
        rsync(&self.original, &inside, &["--sparse"]);
        let within = add(place.join("rsync-within"));
        rsync(&inside, &within, &[]);
        let back = add(on_disk("rsync-back"));
        rsync(&within, &back, &[]);
        for (from, to) in [(&self.original, &inside), (&inside, &within), (&inside, &self.original)] {
            let todo = rsync(from, to, &["-n", "-i", "--delete"]);
            assert_eq!(todo, "", "rsync would change {} by {}", to.display(), from.display());
        }

        let inside = add(place.join("tar"));
        line(TAR, &self.original, &inside);
        let back = add(on_disk("tar-back"));
        line(TAR, &inside, &back);

        let inside = add(place.join("cp"));
        line("cp -a \"$1\" \"$2\"", &self.original, &inside);
        let back = add(on_disk("cp-back"));
        line("cp -a --sparse=always \"$1\" \"$2\"", &inside, &back);

        // Squashfs keeps no access control lists and whole seconds from 1970 on: its copies are compared with each other.
        line("mksquashfs \"$1\" image -quiet -no-progress -comp gzip", &self.original, &inside);
        line("unsquashfs -q -n -d \"$2\" image; rm image", &inside, &place.join("squash"));
        copies
    }
}

#[test]
fn copies_in_the_mount_have_everything() {
    let work = Work::new();
    let v = TestVault::mounted();
    let copies = work.copy(&v.mnt);
    let plain = work.disk.at.join("plain");
    fs::create_dir(&plain).unwrap();
    // The same on ext4 alone: squashfs by squashfs.
    shell(&plain, "mksquashfs \"$1\" image -quiet -no-progress; unsquashfs -q -n -d squash image", &[&work.original]);
    for round in ["at once", "mounted anew"] {
        for copy in &copies {
            assert_eq!(difference(&work.original, copy), None, "{round}");
        }
        assert_eq!(difference(&plain.join("squash"), &v.path("squash")), None, "{round}");
        v.checked_remount();
    }
    // All of it can be taken away again.
    shell(&v.mnt, "rm -rf rsync rsync-within tar cp squash; test -z \"$(ls)\"", &NO_ARGUMENTS);
}

#[test]
fn copies_on_ext4_have_everything_and_what_one_lacks_is_found() {
    let work = Work::new();
    let place = work.disk.at.join("place");
    fs::create_dir(&place).unwrap();
    for copy in work.copy(&place) {
        assert_eq!(difference(&work.original, &copy), None, "the harness itself asks too much");
    }
    let copy = place.join("cp");
    for (change, undo) in [
        ("chmod 644 d/f2", "chmod 4755 d/f2"),
        ("chown 1:3 d/f4", "chown 1:2 d/f4"),
        ("setfattr -n user.t -v two d/f7", "setfattr -n user.t -v one d/f7"),
        ("setfattr -h -x trusted.l d/link", "setfattr -h -n trusted.l -v y d/link"),
        ("setfacl -m u:daemon:r d/f10", "setfacl -m u:daemon:rw,m::rx d/f10"),
        ("setfacl -k d/e/f", "setfacl -d -m g:bin:rx,u:1234:rwx d/e/f"),
        ("touch -d '2040-02-03 04:05:06.987654322' d/f6", "touch -d '2040-02-03 04:05:06.987654321' d/f6"),
        ("printf z | dd of=d/e/big bs=1 seek=5000000 conv=notrunc status=none", "cp -a \"$1/d/e/big\" d/e/big"),
        ("cp -a d/f1 x; mv x d/e/hard1", "ln -f d/f1 d/e/hard1; touch -d 2001-01-01 d/e .; touch -r \"$1\" ."),
    ] {
        shell(&copy, change, &[&work.original]);
        assert!(difference(&work.original, &copy).is_some(), "{change}");
        shell(&copy, undo, &[&work.original]);
        // Directories were changed by the way.
        shell(&copy, "for d in d/e/f d/e d .; do touch -r \"$1/$d\" \"$d\"; done", &[&work.original]);
        assert_eq!(difference(&work.original, &copy), None, "{undo}");
    }
}
