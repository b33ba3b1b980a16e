//! Mount options: what stands after `-o`, and the long options that say the same.
//!
//! Promise: an option that is not known is refused by name, never ignored (unless `--sloppy`); of two that contradict
//! each other the later counts, and a long option counts over `-o`; the words that fstab keeps for mount(8) and systemd
//! are passed over. Called by: `mount`. On failure: `Exit::Usage`.

use super::exit::{Exit, Failure};
use super::{names, size};
use crate::base::choice::{Compression, Verify};
use crate::base::id::Generation;
use crate::base::limits::{BUDGET_BYTES_MIN, NAME_BYTES_MAX};
use crate::confine::Wanted;
use crate::fs::{Atime, Shown};
use crate::fuse::Admitted;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Longest `flush-interval`: an hour of work is more than anybody means to risk.
const FLUSH_INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// What was asked for; `None` where nothing was said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Reading only.
    pub read_only: bool,
    /// Other users may use the mount.
    pub allow_other: bool,
    /// Root may use the mount, beside the owner.
    pub allow_root: bool,
    /// These users may.
    pub allow_users: Option<Vec<u32>>,
    /// Members of these groups may.
    pub allow_groups: Option<Vec<u32>>,
    /// Members of this group may use `/.storage`.
    pub storage_group: Option<u32>,
    /// Accepted for whoever writes it: the kernel always checks permissions.
    pub default_permissions: bool,
    /// `/.storage` is listed in the root.
    pub show_storage: bool,
    /// The name shown in `mount` and `df`.
    pub fsname: Option<String>,
    /// The byte budget.
    pub budget_bytes: Option<u64>,
    /// The compression.
    pub compression: Option<Compression>,
    /// The verification.
    pub verify: Option<Verify>,
    /// The age at which bytes are flushed.
    pub flush_interval: Option<Duration>,
    /// The emergency directory.
    pub emergency: Option<Emergency>,
    /// Longest that a flush may take, where there is an emergency directory.
    pub flush_deadline: Option<Duration>,
    /// How long a write of the kernel's cache is held while there is no room for it.
    pub full_deadline: Option<Duration>,
    /// The share of what is read back that is opened, too.
    pub verify_open_percent: Option<u32>,
    /// Sealing threads.
    pub workers: Option<usize>,
    /// What there must be to gain for old segments to be cleaned; nothing if they never are.
    pub clean_bytes: Option<Option<u64>>,
    /// Most that a scrub reads in a second.
    pub scrub_rate_bytes: Option<u64>,
    /// The passphrase's file.
    pub password_file: Option<PathBuf>,
    /// The key file.
    pub key_file: Option<PathBuf>,
    /// The recovery key's file.
    pub recovery_key_file: Option<PathBuf>,
    /// The generation of an older copy that is meant to be mounted.
    pub accept_rollback: Option<Generation>,
    /// No access control lists.
    pub no_acl: bool,
    /// Owner and permissions shown instead of those that are stored.
    pub shown: Shown,
    /// Words for the kernel, as they are: at most one of a family.
    pub kernel: Vec<String>,
    /// Which parts of the sandbox.
    pub sandbox: Option<Wanted>,
    /// The file that the log is appended to.
    pub log: Option<PathBuf>,
    /// What `/.storage` is called in the root.
    pub storage_name: Option<StorageName>,
}

/// Kernel words that exclude each other.
const KERNEL_FAMILIES: &[&[&str]] = &[
    &["dev", "nodev"],
    &["suid", "nosuid"],
    &["exec", "noexec"],
    &["atime", "noatime", "relatime", "norelatime", "strictatime", "nostrictatime"],
    &["diratime", "nodiratime"],
    &["sync", "async"],
    &["dirsync"],
    &["lazytime", "nolazytime"],
];

/// Words of those families that name what happens anyway: they undo, and are not passed on. All times are lazy here: they
/// reach the disk with what else is flushed.
const KERNEL_DEFAULTS: &[&str] =
    &["atime", "relatime", "norelatime", "nostrictatime", "diratime", "async", "lazytime", "nolazytime"];

/// Words that fstab keeps for others.
const NOT_OURS: &[&str] =
    &["_netdev", "nofail", "noauto", "auto", "user", "nouser", "users", "owner", "group", "defaults", "loud", "silent"];
const NOT_OURS_PREFIXES: &[&str] = &["x-", "X-", "comment=", "user=", "uhelper=", "helper="];

impl Options {
    /// Reads one `-o` argument, a list with commas, on top of what was said before.
    pub fn add(&mut self, list: &str, sloppy: bool) -> Result<(), Failure> {
        for word in list.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            match self.add_word(word) {
                Err(Refused::Unknown) if sloppy => {}
                Err(Refused::Unknown) => return Err(usage(format!("unknown mount option '{word}'"))),
                Err(Refused::Wrong(why)) => return Err(usage(format!("mount option '{word}': {why}"))),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Whether there are access control lists: what is shown in place of owners and permissions leaves no sense in them.
    pub fn acl(&self) -> bool {
        !self.no_acl && self.shown == Shown::default()
    }

    /// Who may enter beside root, if not everybody and not the owner alone.
    pub fn admitted(&self, owner: u32) -> Result<Option<Admitted>, Failure> {
        let listed = self.allow_root || self.allow_users.is_some() || self.allow_groups.is_some();
        if listed && self.allow_other {
            let which = "allow_other lets everybody in, and allow_root, allow_users and allow_groups do not: say one";
            return Err(usage(which.to_owned()));
        }
        if self.storage_group.is_some() && !listed && !self.allow_other {
            let which = "storage-group is for those who may enter, and that is the owner alone: say who else may, \
                         as with allow_groups";
            return Err(usage(which.to_owned()));
        }
        let (users, groups) = (self.allow_users.clone(), self.allow_groups.clone());
        let admitted = || Admitted { owner, users: users.unwrap_or_default(), groups: groups.unwrap_or_default() };
        Ok(listed.then(admitted))
    }

    /// When reading moves a file's access time.
    pub fn atime(&self) -> Atime {
        match self.kernel.iter().find(|word| word.ends_with("atime") && *word != "nodiratime").map(String::as_str) {
            Some("noatime") => Atime::Never,
            Some("strictatime") => Atime::Always,
            _ => Atime::Relative,
        }
    }

    /// Whether listing a directory moves its access time, where reading a file does.
    pub fn dir_atime(&self) -> bool {
        !self.kernel.iter().any(|word| word == "nodiratime")
    }

    fn add_word(&mut self, word: &str) -> Result<(), Refused> {
        if NOT_OURS.contains(&word) || NOT_OURS_PREFIXES.iter().any(|p| word.starts_with(p)) {
            return Ok(());
        }
        if let Some(family) = KERNEL_FAMILIES.iter().find(|family| family.contains(&word)) {
            self.kernel.retain(|w| !family.contains(&w.as_str()));
            if !KERNEL_DEFAULTS.contains(&word) {
                self.kernel.push(word.to_owned());
            }
            return Ok(());
        }
        match word.split_once('=') {
            None => match word {
                "ro" => self.read_only = true,
                "rw" => self.read_only = false,
                "allow_other" => self.allow_other = true,
                "allow_root" => self.allow_root = true,
                "default_permissions" => self.default_permissions = true,
                "show-storage" => self.show_storage = true,
                "acl" => self.no_acl = false,
                "noacl" => self.no_acl = true,
                _ => return Err(Refused::Unknown),
            },
            Some((key, value)) => self.set(key, value)?,
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Refused> {
        if value.is_empty() {
            return Err(Refused::Wrong("it needs a value".to_owned()));
        }
        match key {
            "fsname" => self.fsname = Some(value.to_owned()),
            "budget" => self.budget_bytes = Some(budget(value).map_err(Refused::Wrong)?),
            "compression" => self.compression = Some(Compression::from_str(value).map_err(Refused::Wrong)?),
            "verify" => self.verify = Some(Verify::from_str(value).map_err(Refused::Wrong)?),
            "flush-interval" => self.flush_interval = Some(seconds(value).map_err(Refused::Wrong)?),
            "flush-deadline" => self.flush_deadline = Some(seconds(value).map_err(Refused::Wrong)?),
            "full-deadline" => self.full_deadline = Some(seconds(value).map_err(Refused::Wrong)?),
            "emergency-dir" => self.emergency = Some(emergency(value).map_err(Refused::Wrong)?),
            "verify-open" => self.verify_open_percent = Some(percent(value).map_err(Refused::Wrong)?),
            "workers" => self.workers = Some(workers(value).map_err(Refused::Wrong)?),
            "clean" => self.clean_bytes = Some(clean(value).map_err(Refused::Wrong)?),
            "scrub-rate" => self.scrub_rate_bytes = Some(mib(value).map_err(Refused::Wrong)?),
            "uid" => self.shown.uid = Some(id(value).map_err(Refused::Wrong)?),
            "gid" => self.shown.gid = Some(id(value).map_err(Refused::Wrong)?),
            "umask" => {
                let mask = Some(mask(value).map_err(Refused::Wrong)?);
                (self.shown.file_mask, self.shown.dir_mask) = (mask, mask);
            }
            "fmask" => self.shown.file_mask = Some(mask(value).map_err(Refused::Wrong)?),
            "dmask" => self.shown.dir_mask = Some(mask(value).map_err(Refused::Wrong)?),
            "accept-rollback" => self.accept_rollback = Some(generation(value).map_err(Refused::Wrong)?),
            "password-file" => self.password_file = Some(value.into()),
            "key-file" => self.key_file = Some(value.into()),
            "recovery-key-file" => self.recovery_key_file = Some(value.into()),
            "allow_users" => self.allow_users = Some(names::users(value).map_err(Refused::Wrong)?),
            "allow_groups" => self.allow_groups = Some(names::groups(value).map_err(Refused::Wrong)?),
            "storage-group" => self.storage_group = Some(names::group(value).map_err(Refused::Wrong)?),
            "sandbox" => self.sandbox = Some(Wanted::from_str(value).map_err(Refused::Wrong)?),
            "log" => self.log = Some(value.into()),
            "storage-name" => self.storage_name = Some(storage_name(value).map_err(Refused::Wrong)?),
            _ => return Err(Refused::Unknown),
        }
        Ok(())
    }
}

enum Refused {
    Unknown,
    Wrong(String),
}

fn usage(sentence: String) -> Failure {
    Failure::new(Exit::Usage, sentence)
}

/// Reads a byte budget.
pub fn budget(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        n if n < BUDGET_BYTES_MIN => Err(format!("the budget is at least {}", size::show(BUDGET_BYTES_MIN))),
        n => Ok(n),
    }
}

/// Reads a number of seconds, perhaps with a fraction.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a number of seconds above 0 and up to {}", FLUSH_INTERVAL_MAX.as_secs());
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let number: f64 = text.parse().ok().filter(|_| plain).ok_or_else(wrong)?;
    let duration = Duration::try_from_secs_f64(number).map_err(|_| wrong())?;
    if duration.is_zero() || duration > FLUSH_INTERVAL_MAX { Err(wrong()) } else { Ok(duration) }
}

/// Users or groups from the command line. A type of its own: of a plain list it would take one value for each entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed(pub Vec<u32>);

impl Listed {
    /// Reads users.
    pub fn users(text: &str) -> Result<Listed, String> {
        names::users(text).map(Listed)
    }

    /// Reads groups.
    pub fn groups(text: &str) -> Result<Listed, String> {
        names::groups(text).map(Listed)
    }
}

/// Where the log goes on when the backing directory fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Emergency {
    /// In this directory.
    Dir(PathBuf),
    /// Nowhere, though the vault was used with one.
    None,
}

/// Reads the name of an emergency directory, or `none`.
pub fn emergency(text: &str) -> Result<Emergency, String> {
    match text {
        "none" => Ok(Emergency::None),
        path if path.starts_with('/') => Ok(Emergency::Dir(path.into())),
        path => Err(format!("'{path}' is neither an absolute path nor none")),
    }
}

/// What the directory of the vault's state is called in the root of the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageName(pub Option<Vec<u8>>);

/// Reads a name for `/.storage`, or `none`.
pub fn storage_name(text: &str) -> Result<StorageName, String> {
    match text {
        "none" => Ok(StorageName(None)),
        "." | ".." => Err(format!("'{text}' is no name")),
        name if name.contains('/') || name.len() > NAME_BYTES_MAX => Err(format!("'{name}' is no name")),
        name => Ok(StorageName(Some(name.as_bytes().to_vec()))),
    }
}

/// Reads a whole number of percent, with or without its sign.
pub fn percent(text: &str) -> Result<u32, String> {
    match text.strip_suffix('%').unwrap_or(text).parse() {
        Ok(n @ 0..=100) => Ok(n),
        _ => Err(format!("'{text}' is not a whole number of percent from 0 to 100")),
    }
}

/// Reads a number of threads.
pub fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=256) => Ok(n),
        _ => Err(format!("'{text}' is not a number of workers from 1 to 256")),
    }
}

/// Reads a rate in MiB a second; gives bytes.
pub fn mib(text: &str) -> Result<u64, String> {
    match text.parse::<u32>() {
        Ok(n) => Ok(u64::from(n) << 20),
        Err(_) => Err(format!("'{text}' is not a number of MiB")),
    }
}

/// Reads what there must be to gain for old segments to be cleaned.
pub fn clean(text: &str) -> Result<Option<u64>, String> {
    match text {
        "off" => Ok(None),
        _ => mib(text).map(Some).map_err(|_| format!("'{text}' is neither a number of MiB nor 'off'")),
    }
}

/// Reads the number of a user or group.
pub fn id(text: &str) -> Result<u32, String> {
    match text.parse() {
        // The last number stands for nobody at all.
        Ok(n) if n != u32::MAX => Ok(n),
        _ => Err(format!("'{text}' is not the number of a user or group")),
    }
}

/// Reads permission bits in octal.
pub fn mask(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(n) if n <= 0o777 && !text.starts_with('+') => Ok(n),
        _ => Err(format!("'{text}' is not a mask of permissions in octal, from 0 to 777")),
    }
}

/// Reads the number of a generation.
pub fn generation(text: &str) -> Result<Generation, String> {
    text.parse().map(Generation).map_err(|_| format!("'{text}' is not the number of a generation"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lists: &[&str]) -> Result<Options, Failure> {
        let mut options = Options::default();
        lists.iter().try_for_each(|list| options.add(list, false))?;
        Ok(options)
    }

    #[test]
    fn every_option_is_understood() {
        let o = read(&[
            "allow_other,fsname=X,ro,nodev,nosuid,noexec,noatime,nodiratime,sync,dirsync,default_permissions",
            "show-storage,budget=64M,compression=zstd,verify=cache,flush-interval=2.5,workers=3",
            "password-file=/p,key-file=/k,accept-rollback=17,emergency-dir=/e,flush-deadline=7,full-deadline=2.5,verify-open=5%",
        ])
        .unwrap();
        assert!(o.allow_other && o.read_only && o.default_permissions && o.show_storage);
        assert_eq!(o.kernel, ["nodev", "nosuid", "noexec", "noatime", "nodiratime", "sync", "dirsync"]);
        assert_eq!((o.fsname.as_deref(), o.budget_bytes, o.workers), (Some("X"), Some(64 << 20), Some(3)));
        assert_eq!((o.compression, o.verify), (Some(Compression::Zstd), Some(Verify::Cache)));
        assert_eq!(o.flush_interval, Some(Duration::from_millis(2500)));
        assert_eq!(o.accept_rollback, Some(Generation(17)));
        assert_eq!((o.password_file, o.key_file), (Some("/p".into()), Some("/k".into())));
        assert_eq!(o.emergency, Some(Emergency::Dir("/e".into())));
        assert_eq!((o.flush_deadline, o.verify_open_percent), (Some(Duration::from_secs(7)), Some(5)));
        assert_eq!(o.full_deadline, Some(Duration::from_millis(2500)));
        assert_eq!(read(&["emergency-dir=/e,emergency-dir=none"]).unwrap().emergency, Some(Emergency::None));
        assert_eq!(read(&["sandbox=caps,sandbox=off"]).unwrap().sandbox, Some(Wanted::OFF));
        let o = read(&["log=/l,storage-name=.vault"]).unwrap();
        assert_eq!((o.log, o.storage_name), (Some("/l".into()), Some(StorageName(Some(b".vault".to_vec())))));
        assert_eq!(read(&["storage-name=none"]).unwrap().storage_name, Some(StorageName(None)));
    }

    #[test]
    fn the_later_of_two_that_contradict_counts() {
        let o = read(&["ro,dev,noatime,sync,suid", "rw,nodev,relatime,async"]).unwrap();
        assert!(!o.read_only);
        assert_eq!(o.kernel, ["suid", "nodev"]);
    }

    #[test]
    fn what_is_shown_is_read() {
        let o = read(&["uid=7,gid=8,fmask=133,umask=022,dmask=0027"]).unwrap();
        assert_eq!(o.shown, Shown { uid: Some(7), gid: Some(8), file_mask: Some(0o022), dir_mask: Some(0o027) });
        assert!(!o.acl(), "lists would contradict what is shown");
        assert!(read(&["noacl,acl"]).unwrap().acl() && !read(&["noacl"]).unwrap().acl());
    }

    #[test]
    fn times_of_access_are_as_the_words_say() {
        for (words, atime, dir_atime) in [
            ("rw", Atime::Relative, true),
            ("noatime", Atime::Never, true),
            ("strictatime,nodiratime", Atime::Always, false),
            ("noatime,strictatime,relatime,lazytime", Atime::Relative, true),
            ("nodiratime", Atime::Relative, false),
        ] {
            let o = read(&[words]).unwrap();
            assert_eq!((o.atime(), o.dir_atime()), (atime, dir_atime), "{words}");
        }
    }

    #[test]
    fn who_may_enter_is_all_or_a_list_or_the_owner() {
        let admitted = |list: &str| read(&[list]).unwrap().admitted(5);
        assert_eq!(admitted("allow_other").unwrap(), None);
        assert_eq!(admitted("rw").unwrap(), None);
        let only =
            |users: &[u32], groups: &[u32]| Some(Admitted { owner: 5, users: users.to_vec(), groups: groups.to_vec() });
        assert_eq!(admitted("allow_root").unwrap(), only(&[], &[]));
        assert_eq!(admitted("allow_users=7:root,allow_groups=9").unwrap(), only(&[7, 0], &[9]));
        assert_eq!(admitted("allow_root,allow_users=7,storage-group=9").unwrap(), only(&[7], &[]));
        for contradiction in ["allow_other,allow_root", "allow_users=7,allow_other", "storage-group=9"] {
            assert_eq!(admitted(contradiction).unwrap_err().exit, Exit::Usage, "{contradiction}");
        }
    }

    #[test]
    fn words_for_others_are_passed_over() {
        let all =
            "_netdev,nofail,noauto,auto,user,users,user=me,defaults,x-systemd.automount,x-gvfs-show,comment=a b,,";
        assert_eq!(read(&[all]).unwrap(), Options::default());
    }

    #[test]
    fn what_is_unknown_is_named() {
        for word in ["frobnicate", "budgte=1G", "ro=1", "budget", "show_storage"] {
            let failure = read(&[&format!("rw,{word},noatime")]).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert_eq!(failure.sentence, format!("unknown mount option '{word}'"));
        }
        let mut options = Options::default();
        options.add("frobnicate,ro", true).unwrap();
        assert!(options.read_only);
    }

    #[test]
    fn wrong_values_are_refused() {
        for word in [
            "budget=1M",
            "budget=",
            "compression=rar",
            "verify=yes",
            "flush-interval=0",
            "flush-interval=-1",
            "workers=0",
            "clean=some",
            "scrub-rate=fast",
            "accept-rollback=-1",
            "uid=root",
            "gid=4294967295",
            "umask=8",
            "fmask=1000",
            "dmask=+7",
            "sandbox=on",
            "allow_users=",
            "allow_users=root:",
            "allow_groups=no such group",
            "storage-group=a:b",
            "storage-name=a/b",
            "storage-name=..",
        ] {
            let failure = read(&[word]).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.sentence.contains(word), "{failure}");
        }
        for text in ["inf", "nan", "1e3", "", "3601"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
