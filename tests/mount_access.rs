//! Who gets in: the owner alone, root, some users, some groups, everybody; and who may look at `/.storage`.
//!
//! Method: one mount for each choice, and several users who try the same list of things, each in a process of its own; before
//! that the owner has done all of it, so that the kernel has it in its caches. Each refusal has its control: the same user, where
//! everybody is let in, gets through.
//! Promise: who is not on the list reaches nothing, not the name of a file, not the room that is left, also of what lies in the
//! kernel's caches; who is on it works as with `allow_other`. Needs root.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::{TestVault, needs_root, output, run, strongroom};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// Who tries: user, group, and the groups beside it.
#[derive(Clone, Copy)]
struct Person(u32, u32, &'static [u32]);

const ANN: Person = Person(1001, 1001, &[]);
const BOB: Person = Person(1002, 1002, &[]);
/// Of the group 2000 by name of it, and by the way.
const CAROL: Person = Person(1003, 2000, &[]);
const DAVE: Person = Person(1004, 1004, &[77, 2000]);
const ROOT: Person = Person(0, 0, &[]);

/// What each tries; `@` is the mount.
const TRIES: [&str; 9] = [
    "stat @",
    "ls @",
    "stat -f @",
    "cat @/file",
    "ls @/dir",
    "cat @/dir/deep/file",
    "cat @/seen-by-nobody-yet",
    "touch @/open/$$ && rm @/open/$$",
    "cp @/file @/open/copy-$$ && rm @/open/copy-$$",
];

/// A vault whose files are for everybody, by their modes.
fn vault(options: &[&str]) -> TestVault {
    needs_root("be several users");
    let v = TestVault::mounted();
    fs::create_dir_all(v.path("dir/deep")).unwrap();
    fs::create_dir(v.path("open")).unwrap();
    for name in ["file", "dir/deep/file", "seen-by-nobody-yet"] {
        fs::write(v.path(name), name).unwrap();
    }
    fs::set_permissions(v.path("open"), fs::Permissions::from_mode(0o777)).unwrap();
    // The way to the mount, too.
    for dir in v.mnt.ancestors().skip(1).take_while(|dir| dir.starts_with(env!("CARGO_TARGET_TMPDIR"))) {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let v = again(v, options);
    for attempt in TRIES.iter().filter(|attempt| !attempt.contains("nobody")) {
        assert_eq!(tries(&v, ROOT, attempt), Ok(()), "the owner");
    }
    v
}

fn again(mut v: TestVault, options: &[&str]) -> TestVault {
    v.umount();
    v.options = options.iter().map(|&o| o.to_owned()).collect();
    v.mount();
    v
}

/// One line of a shell, in a process of that person's; `@` is the mount.
fn tries(v: &TestVault, Person(user, group, others): Person, line: &str) -> Result<(), String> {
    let mut c = Command::new("setpriv");
    c.arg(format!("--reuid={user}")).arg(format!("--regid={group}")).env("LC_ALL", "C");
    match others {
        [] => c.arg("--clear-groups"),
        others => c.arg(format!("--groups={}", others.iter().map(u32::to_string).collect::<Vec<_>>().join(","))),
    };
    let out = output(c.args(["--", "sh", "-c", &line.replace('@', v.mnt.to_str().unwrap())]));
    match out.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
    }
}

fn gets_in(v: &TestVault, person: Person) {
    for attempt in TRIES {
        assert_eq!(tries(v, person, attempt), Ok(()), "{attempt}");
    }
}

fn stays_out(v: &TestVault, person: Person) {
    for attempt in TRIES {
        let said = tries(v, person, attempt).expect_err(attempt);
        assert!(said.contains("Permission denied"), "{attempt}: {said}");
    }
}

#[test]
fn users_on_the_list_get_in_and_others_reach_nothing() {
    let v = vault(&["allow_users=1001:65534"]);
    // First who may not, then who may, then who may not again: now everything is in the kernel's caches.
    stays_out(&v, BOB);
    gets_in(&v, ANN);
    gets_in(&v, ROOT);
    for person in [BOB, CAROL, DAVE] {
        stays_out(&v, person);
    }
    // The control: the list is what keeps them out.
    let v = again(v, &["allow_other"]);
    for person in [ANN, BOB, CAROL, DAVE, ROOT] {
        gets_in(&v, person);
    }
}

#[test]
fn members_of_groups_on_the_list_get_in_by_whichever_of_their_groups() {
    let v = vault(&["allow_groups=2000", "allow_users=1001"]);
    for person in [CAROL, DAVE, ANN, ROOT] {
        gets_in(&v, person);
    }
    stays_out(&v, BOB);
    stays_out(&v, Person(1003, 1003, &[77]));
}

#[test]
fn a_daemon_without_the_sandbox_keeps_the_same_door() {
    let v = vault(&["allow_groups=2000", "sandbox=off"]);
    gets_in(&v, DAVE);
    stays_out(&v, BOB);
}

#[test]
fn with_allow_root_nobody_comes_in_beside_owner_and_root() {
    let v = vault(&["allow_root"]);
    gets_in(&v, ROOT);
    for person in [ANN, BOB, DAVE] {
        stays_out(&v, person);
    }
    drop(v);

    // And into a user's own mount root comes with it, and without it not.
    let place = tempfile::Builder::new().prefix("user-").tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(strongroom(), place.path().join("strongroom")).unwrap();
    // In a mount namespace of its own, so that the machine's configuration stays as it is. Mounts of other tests, which the
    // namespace begins with as well, are not held.
    let script = r#"
        set -eu; cd "$0"
        awk '/ - fuse.strongroom / { print $5 }' /proc/self/mountinfo | xargs -r -n1 umount -l
        echo user_allow_other > fuse.conf; mount --bind fuse.conf /etc/fuse.conf
        mknod -m 666 fuse c 10 229; mount --bind fuse /dev/fuse
        mkdir mnt state; echo 'a passphrase for a user' > password; chmod 600 password
        mkdir vault; chown 65534:65534 mnt state password vault
        as() { setpriv --reuid="$1" --regid="$1" --clear-groups env STRONGROOM_STATE_DIR="$PWD/state" "${@:2}"; }
        as 65534 ./strongroom init --argon2 65536,3,4 --password-file password vault > recovery
        as 65534 ./strongroom mount --password-file password vault mnt
        as 65534 sh -c 'echo text > mnt/file; chmod 644 mnt/file'
        ! cat mnt/file 2> /dev/null || { echo root came in without it; exit 7; }
        as 65534 ./strongroom umount mnt
        as 65534 ./strongroom mount --allow-root --password-file password vault mnt
        as 65534 cat mnt/file
        ! as 1002 cat mnt/file 2> /dev/null || { echo somebody else came in; exit 8; }
        cat mnt/file
        as 65534 ./strongroom umount mnt
    "#;
    let said = run(Command::new("unshare").args(["-m", "bash", "-c", script]).arg(place.path()));
    assert_eq!(said, "text\ntext\n");
}

#[test]
fn storage_is_the_owners_and_one_groups() {
    let v = vault(&["allow_other", "storage-group=2000"]);
    let looks = ["cat @/.storage/status", "cat @/.storage/metrics", "ls @/.storage", "echo flush > @/.storage/control"];
    let all = |person: Person| looks.map(|line| tries(&v, person, line));
    for person in [ROOT, CAROL, DAVE] {
        assert!(all(person).iter().all(Result::is_ok), "{:?}", all(person));
    }
    for person in [ANN, BOB] {
        for said in all(person) {
            assert!(said.as_ref().is_err_and(|said| said.contains("Permission denied")), "{said:?}");
        }
        assert_eq!(tries(&v, person, "cat @/file"), Ok(()), "the rest is open to everybody");
    }
    let v = again(v, &["allow_other"]);
    for person in [CAROL, DAVE] {
        assert!(looks.iter().all(|line| tries(&v, person, line).is_err()));
    }
}
