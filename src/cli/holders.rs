//! Names what keeps a filesystem: the programs that use it, and its further mounts, in every mount namespace.
//!
//! Promise: looking sends no request to the filesystem, whose daemon may stand still: it reads `/proc`, and of a file it asks
//! the device number alone, which the kernel knows. What this user may not see is reported as such.
//! Called by: `umount`, when a mount is busy or its daemon goes on. On failure: what could not be read counts as unseen.

use super::mounts;
use crate::fs::printable;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Most programs and mounts that a sentence names.
const NAMED_MOST: usize = 6;
/// The flag of a kernel thread in `/proc/PID/stat` (PF_KTHREAD of `linux/sched.h`).
const KERNEL_THREAD: u32 = 0x0020_0000;
/// The name of the process that mounts for a daemon.
const MOUNTER: &str = "strongroom-mntr";

/// What keeps a filesystem.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// A phrase for each mount and program.
    pub all: Vec<String>,
    /// Whether there are processes that this user may not look at.
    pub some_unseen: bool,
}

impl Holders {
    /// Those of the filesystem with this device number, as the kernel writes it (`0:57`).
    pub fn of(device: &str) -> Holders {
        let mut holders = Holders::default();
        let processes = processes();
        holders.add_mounts(device, &processes);
        let own = std::process::id() as i32;
        let callers = ancestors(own);
        for &pid in processes.iter().filter(|pid| **pid != own) {
            holders.add_program(device, pid, callers.contains(&pid));
        }
        holders
    }

    /// A line for each, behind one that says whether some were unseen.
    pub fn encode(&self) -> Vec<u8> {
        let first = if self.some_unseen { "unseen" } else { "" };
        self.all.iter().fold(first.to_owned(), |text, one| text + "\n" + one).into_bytes()
    }

    /// What `encode` wrote.
    pub fn decode(text: &[u8]) -> Holders {
        let text = String::from_utf8_lossy(text);
        let mut lines = text.lines();
        let some_unseen = lines.next() == Some("unseen");
        Holders { all: lines.map(str::to_owned).collect(), some_unseen }
    }

    /// All of it in words, for the end of a sentence.
    pub fn phrase(&self) -> String {
        let more = self.all.len().saturating_sub(NAMED_MOST);
        let mut words: Vec<String> = self.all.iter().take(NAMED_MOST).cloned().collect();
        if more > 0 {
            words.push(format!("{more} more"));
        }
        if words.is_empty() {
            let nobody = match self.some_unseen {
                true => "no holder was found, but this user may not look at every process",
                false => "nobody who could be found",
            };
            words.push(nobody.to_owned());
        }
        words.join("; ")
    }

    /// Other places where it is mounted: here (bind mounts), and once for each other mount namespace.
    fn add_mounts(&mut self, device: &str, processes: &[i32]) {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt"));
        let places = |table: &str| -> Vec<PathBuf> {
            let all = mounts::of_table(Path::new(table)).unwrap_or_default();
            all.into_iter().filter(|mount| mount.device == device).map(|mount| mount.mountpoint).collect()
        };
        let shown = |place: &Path| printable(place.as_os_str().as_bytes());
        let own = namespace("self").ok();
        self.all
            .extend(places("/proc/self/mountinfo").iter().map(|place| format!("it is mounted at {}", shown(place))));
        let mut namespaces: BTreeMap<PathBuf, i32> = BTreeMap::new();
        for &pid in processes {
            match namespace(&pid.to_string()) {
                Ok(ns) if Some(&ns) != own.as_ref() => {
                    namespaces.entry(ns).or_insert(pid);
                }
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => self.some_unseen = true,
                // Of this namespace, or it has ended.
                _ => {}
            }
        }
        for pid in namespaces.into_values() {
            for place in places(&format!("/proc/{pid}/mountinfo")) {
                let whose = match is_kernel_thread(pid) {
                    true => "the mount namespace that the machine was started with".to_owned(),
                    false => format!("the mount namespace of {} (process {pid})", name(pid)),
                };
                self.all.push(format!("it is mounted at {} in {whose}", shown(&place)));
            }
        }
    }

    /// Adds a program if it uses the filesystem; `is_caller` says that this command was started from it.
    fn add_program(&mut self, device: &str, pid: i32, is_caller: bool) {
        let at = |what: &str| PathBuf::from(format!("/proc/{pid}/{what}"));
        let shown = |link: &Path| {
            std::fs::read_link(link).map_or("a file".to_owned(), |path| printable(path.as_os_str().as_bytes()))
        };
        let mut uses = Vec::new();
        for (what, phrase) in [("cwd", "its directory is"), ("root", "its root directory is"), ("exe", "it runs")] {
            if lies_on(&at(what), device) {
                uses.push(format!("{phrase} {}", shown(&at(what))));
            }
        }
        match std::fs::read_dir(at("fd")) {
            Ok(descriptors) => {
                let open = descriptors.flatten().map(|d| d.path()).filter(|link| lies_on(link, device));
                uses.extend(open.map(|link| format!("it has {} open", shown(&link))));
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => self.some_unseen = true,
            Err(_) => {}
        }
        // The process that mounts for the daemon syncs the mount now and then; it lets go by itself.
        if name(pid) == MOUNTER {
            return;
        }
        if uses.is_empty() {
            let maps = std::fs::read(at("maps")).unwrap_or_default();
            uses.extend(mapped(&maps, device).map(|path| format!("it maps {path}")));
        }
        if let Some(first) = uses.first() {
            let more = match uses.len() {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            };
            let (which, way_out) = match is_caller {
                true => (", from which this command was started", ", which `cd /` leaves"),
                false => ("", ""),
            };
            self.all.push(format!("{} (process {pid}{which}): {first}{more}{way_out}", name(pid)));
        }
    }
}

fn processes() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut all: Vec<i32> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    all.sort_unstable();
    all
}

/// The processes that started this one, nearest first.
fn ancestors(pid: i32) -> Vec<i32> {
    let parent = |pid: i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name, which may hold anything: state and parent.
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    std::iter::successors(parent(pid), |pid| parent(*pid)).take_while(|pid| *pid > 0).collect()
}

/// Whether a process is one of the kernel's own, which live in the mount namespace of the machine's start.
fn is_kernel_thread(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat_flags(&stat).is_some_and(|flags| flags & KERNEL_THREAD != 0)
}

/// The flags in a line of `/proc/PID/stat`: the seventh field behind the name, which may hold anything.
fn stat_flags(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(6)?.parse().ok()
}

fn name(pid: i32) -> String {
    let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    printable(name.trim_ascii())
}

/// Whether what a link of `/proc` leads to lies on a device. Nothing but that is asked for, so the kernel need not ask a daemon.
fn lies_on(link: &Path, device: &str) -> bool {
    let Ok(path) = CString::new(link.as_os_str().as_bytes()) else { return false };
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
    // SAFETY: a terminated string, and room for the answer.
    let done = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, 0, found.as_mut_ptr()) };
    // SAFETY: all of it is plain data, which was zero before.
    let found = unsafe { found.assume_init() };
    done == 0 && format!("{}:{}", found.stx_dev_major, found.stx_dev_minor) == device
}

/// The first file of a device in a table of mappings: `7f00-7f01 r--p 00000000 00:39 1234   /m/a`, the device in hexadecimal.
fn mapped(maps: &[u8], device: &str) -> Option<String> {
    let is_its = |field: &str| {
        let (major, minor) = field.split_once(':')?;
        let number = |n: &str| u32::from_str_radix(n, 16).ok();
        Some(format!("{}:{}", number(major)?, number(minor)?) == device)
    };
    let text = String::from_utf8_lossy(maps);
    text.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let is_its = is_its(fields.nth(3)?)?;
        let path = line.find('/').map_or("a file", |at| &line[at..]);
        is_its.then(|| printable(path.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::process::{Command, Stdio};

    #[test]
    fn programs_are_named_by_what_they_use() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a temporary directory");
        let file = dir.path().join("a file");
        std::fs::write(&file, "x").unwrap();
        let mut command = Command::new("sleep");
        command.arg("60").stdin(File::open(&file).unwrap()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("sleep runs");
        let mount = mounts::of_table(Path::new("/proc/self/mountinfo"))
            .unwrap()
            .into_iter()
            .rfind(|m| lies_on(&file, &m.device));
        let device = mount.expect("its filesystem is mounted").device;
        let mut holders = Holders::default();
        // Its directory lies there as well: the first use is named, the others are counted.
        holders.add_program(&device, child.id() as i32, false);
        let nowhere = {
            let mut holders = Holders::default();
            holders.add_program("0:999999", child.id() as i32, false);
            holders
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(holders.all[0].starts_with(&format!("sleep (process {})", child.id())), "{holders:?}");
        assert_eq!(nowhere, Holders::default());
    }

    #[test]
    fn kernel_threads_are_told_by_their_flags() {
        let thread = "2 (a )b) S 0 0 0 0 -1 2129984 0 0";
        assert_eq!(stat_flags(thread).map(|flags| flags & KERNEL_THREAD), Some(KERNEL_THREAD));
        assert_eq!(stat_flags("7 (cut) S 0"), None);
        assert!(!is_kernel_thread(std::process::id() as i32));
    }

    #[test]
    fn mappings_are_told_by_their_device() {
        let maps = b"7f00-7f01 r--p 00000000 00:39 12                 /m/a b\n7f00-7f01 rw-p 00000000 00:00 0 [heap]\n";
        assert_eq!(mapped(maps, "0:57").as_deref(), Some("/m/a b"));
        assert_eq!(mapped(maps, "0:39"), None);
    }

    #[test]
    fn many_are_counted_and_nobody_is_said() {
        let holders = Holders { all: (0..8).map(|n| n.to_string()).collect(), some_unseen: true };
        assert_eq!(holders.phrase(), "0; 1; 2; 3; 4; 5; 2 more", "whoever was found is enough");
        assert_eq!(Holders::default().phrase(), "nobody who could be found");
        let unseen = Holders { all: Vec::new(), some_unseen: true };
        assert!(unseen.phrase().contains("this user may not look at every process"));
        for one in [holders, unseen, Holders::default()] {
            assert_eq!(Holders::decode(&one.encode()), one);
        }
    }
}
