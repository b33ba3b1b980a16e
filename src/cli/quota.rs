//! Sets, shows and checks quotas, of a mount or of a vault that is not mounted.
//!
//! Promise: a limit is in force when `set` has returned 0, and at rest; `show` and `check` change nothing. Of a mount, its daemon
//! does the work, asked through `/.storage`, which is its owner's alone; else the vault is opened with its key.
//! Called by: a person. On failure: `check` has different codes for what is wrong and for a place that could not be looked at.

use super::exit::{Exit, Failure};
use super::print::Progress;
use super::{derive, emergency, key, mounted, mounts, names, options, pins, print, size, slots};
use crate::backing::{Backing, DirBacking};
use crate::base::id::{Ino, ROOT_INO};
use crate::base::world::{RealWorld, World};
use crate::fs::{FileSystem, FsFault, FsOptions, LimitChange, LimitOf};
use crate::vault::{self, OpenFault, OpenOptions, Vault};
use clap::Subcommand;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Set, show and check quotas of directories, users and groups.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Limit what lies in a directory, or what a user or a group has; or, of a vault that is not mounted, all of it
    Set(Set),
    /// Show what is used and what may be used
    Show(Look),
    /// Count everything anew and compare; nothing is changed
    Check(Look),
}

#[derive(Debug, clap::Args)]
struct Place {
    /// A mountpoint; or the directory of a vault that is not mounted
    place: PathBuf,
    #[command(flatten)]
    key: key::Source,
    /// Of a vault: the emergency directory, or `none` to do without it [default: the one that it was last used with]
    #[arg(long, value_name = "DIR", value_parser = options::emergency)]
    emergency_dir: Option<options::Emergency>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Set {
    #[command(flatten)]
    at: Place,
    #[command(flatten)]
    whose: Whose,
    /// Most bytes (500M, 10G), or `none`: more are refused with EDQUOT
    #[arg(long, value_name = "SIZE", value_parser = limit_of_bytes)]
    bytes: Option<Limit>,
    /// Most files, directories and others, or `none`
    #[arg(long, value_name = "N", value_parser = limit_of_inodes)]
    inodes: Option<Limit>,
    /// Bytes from which on a warning is shown, or `none`
    #[arg(long, value_name = "SIZE", value_parser = limit_of_bytes)]
    soft_bytes: Option<Limit>,
    /// Inodes from which on a warning is shown, or `none`
    #[arg(long, value_name = "N", value_parser = limit_of_inodes)]
    soft_inodes: Option<Limit>,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Whose {
    /// Of all that lies in this directory: a path through the mountpoint, or one from the vault's root
    #[arg(long, value_name = "PATH")]
    tree: Option<PathBuf>,
    /// Of all that this user owns
    #[arg(long, value_name = "NAME|UID")]
    user: Option<String>,
    /// Of all that belongs to this group
    #[arg(long, value_name = "NAME|GID")]
    group: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Look {
    #[command(flatten)]
    at: Place,
}

/// A limit, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit(Option<u64>);

fn limit_of_bytes(text: &str) -> Result<Limit, String> {
    if text == "none" { Ok(Limit(None)) } else { size::parse(text).map(|n| Limit(Some(n))) }
}

fn limit_of_inodes(text: &str) -> Result<Limit, String> {
    let wrong = || format!("'{text}' is neither a number nor 'none'");
    if text == "none" { Ok(Limit(None)) } else { text.parse().map(|n| Limit(Some(n))).map_err(|_| wrong()) }
}

/// A line of `/.storage/quota`: its first word, and its fields; a path is the last.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    what: String,
    fields: BTreeMap<String, String>,
}

impl Line {
    fn of(text: &str) -> Option<Line> {
        let (what, mut rest) = text.split_once(' ')?;
        let mut fields = BTreeMap::new();
        while !rest.is_empty() {
            let (name, value) = rest.split_once('=')?;
            let (value, after) =
                if name == "path" { (value, "") } else { value.split_once(' ').unwrap_or((value, "")) };
            fields.insert(name.to_owned(), value.to_owned());
            rest = after;
        }
        Some(Line { what: what.to_owned(), fields })
    }
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", |value| value)
    }
    fn number(&self, name: &str) -> Option<u128> {
        self.field(name).parse().ok()
    }
    /// As an object: numbers as numbers, as far as JSON has them, and nothing for no limit.
    fn json(&self) -> serde_json::Value {
        let value = |(name, text): (&String, &String)| {
            let value = match (text.parse::<u64>(), &**text) {
                (_, "none") => serde_json::Value::Null,
                (Ok(n), _) if name != "path" => n.into(),
                (_, text) => text.into(),
            };
            (name.clone(), value)
        };
        self.fields.iter().map(value).collect::<serde_json::Map<_, _>>().into()
    }
}

impl Args {
    /// Whether the answer is to be in JSON.
    pub fn is_json(&self) -> bool {
        match &self.command {
            Command::Set(args) => args.at.json,
            Command::Show(args) | Command::Check(args) => args.at.json,
        }
    }
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    match &args.command {
        Command::Set(args) => set(args),
        Command::Show(args) => {
            let lines = read(&args.at, false)?;
            show(&args.at, &lines)
        }
        Command::Check(args) => {
            let lines = read(&args.at, true).map_err(|failure| match failure.exit {
                Exit::Io => Failure::new(Exit::CouldNotLook, failure.sentence),
                _ => failure,
            })?;
            answer_check(&args.at, &lines)
        }
    }
}

/// Where it is: a mount, or a vault.
enum Found {
    Mount(PathBuf),
    Vault(PathBuf),
}

impl Place {
    fn find(&self) -> Result<Found, Failure> {
        let path = mounts::whole_path(&self.place).map_err(|e| Failure::io(&self.place, &e))?;
        if mounts::at(&path)?.is_some() || mounts::answers(&path) {
            return Ok(Found::Mount(path));
        }
        if mounts::is_vault(&path) {
            return Ok(Found::Vault(path));
        }
        let said = format!("{} is neither a vault nor where one is mounted", path.display());
        Err(Failure::new(Exit::NotAVault, said))
    }

    /// The vault, opened; to be looked at only, in a shadow.
    fn open(&self, path: &Path, looking: bool) -> Result<FileSystem, Failure> {
        let unlock = key::read(&self.key, false)?;
        let backing = DirBacking::open(path).map_err(|e| Failure::io(path, &e))?;
        let backing: Arc<dyn Backing> = Arc::new(backing);
        let world: Arc<dyn World> = Arc::new(RealWorld::default());
        let refused = |fault: OpenFault| Failure::open(path, &fault);
        let mut options = OpenOptions { read_only: looking, ..OpenOptions::default() };
        emergency::choose(self.emergency_dir.as_ref(), path, &mut options)?;
        let locked = vault::lock(backing).map_err(refused)?;
        let unlock = derive::master_key(path, locked.headers(), unlock)?;
        let locked = locked.remembered(pins::stores(path, None), None).finding(emergency::find);
        let locked = if looking { locked.shadow() } else { locked };
        let vault = locked.open(&unlock, &options, world).map_err(refused)?;
        // SAFETY: only ask, and cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let options = FsOptions { uid, gid, read_only: looking, ..FsOptions::default() };
        FileSystem::new(vault, options).map_err(|fault| Failure::flush(path, &fault))
    }
}

fn faulted(at: &Path, fault: &FsFault) -> Failure {
    Failure::io(at, &io::Error::from_raw_os_error(fault.errno()))
}

/// The whole vault's quota is in its header, which the daemon of a mount has read.
fn set_whole(args: &Set) -> Result<Exit, Failure> {
    let path = match args.at.find()? {
        Found::Vault(path) => path,
        Found::Mount(path) => {
            let said = format!("{}: the whole vault's quota is set while it is not mounted", path.display());
            return Err(Failure::new(Exit::InUse, said));
        }
    };
    let usage = |said: &str| Failure::new(Exit::Usage, said);
    if args.soft_bytes.is_some() || args.soft_inodes.is_some() {
        return Err(usage("the whole vault has hard limits only: say whose limit, with --tree, --user or --group"));
    }
    if [args.bytes, args.inodes].contains(&Some(Limit(Some(0)))) {
        return Err(usage("0 would allow nothing: say `none` for no limit"));
    }
    let unlock = key::read(&args.at.key, false)?;
    let backing: Arc<dyn Backing> = Arc::new(DirBacking::open(&path).map_err(|e| Failure::io(&path, &e))?);
    let locked = vault::lock(backing).map_err(|fault| Failure::open(&path, &fault))?;
    let unlock = derive::master_key(&path, locked.headers(), unlock)?;
    let locked = locked.remembered(pins::stores(&path, None), None);
    let slots = locked.slots(&unlock, Arc::new(RealWorld::default()));
    let mut slots = slots.map_err(|fault| Failure::open(&path, &fault))?;
    let given = |limit: Option<Limit>| limit.map(|Limit(limit)| limit);
    slots.limit(given(args.bytes), given(args.inodes)).map_err(|fault| slots::refused(&path, fault))?;
    if args.at.json {
        print::json(&serde_json::json!({ "ok": true }))?;
    }
    Ok(Exit::Ok)
}

fn set(args: &Set) -> Result<Exit, Failure> {
    let given = |limit: Option<Limit>| limit.map(|Limit(limit)| limit);
    let change = LimitChange {
        bytes: given(args.bytes),
        inodes: given(args.inodes),
        soft_bytes: given(args.soft_bytes),
        soft_inodes: given(args.soft_inodes),
    };
    if change == LimitChange::default() {
        return Err(Failure::new(Exit::Usage, "say which limit: --bytes, --inodes, --soft-bytes or --soft-inodes"));
    }
    let Whose { tree, user, group } = &args.whose;
    if tree.is_none() && user.is_none() && group.is_none() {
        return set_whole(args);
    }
    let progress = Progress::new("setting limits");
    progress.at(0, 0);
    match args.at.find()? {
        Found::Mount(mountpoint) => {
            let whose = match whose(&args.whose)? {
                Ok(LimitOf::User(uid)) => format!("user {uid}"),
                Ok(LimitOf::Group(gid)) => format!("group {gid}"),
                Ok(LimitOf::Tree(ino)) => format!("tree {ino}"),
                Err(dir) => format!("tree {}", inode_in(&mountpoint, dir)?),
            };
            let words = [
                ("bytes", change.bytes),
                ("inodes", change.inodes),
                ("soft-bytes", change.soft_bytes),
                ("soft-inodes", change.soft_inodes),
            ];
            let words = words.into_iter().filter_map(|(name, limit)| {
                limit.map(|limit| format!(" {name}={}", limit.map_or("none".to_owned(), |limit| limit.to_string())))
            });
            order(&mountpoint, &format!("quota set {whose}{}", words.collect::<String>()))?;
            let shown = std::fs::read_to_string(mounts::storage(&mountpoint).join("quota")).unwrap_or_default();
            if matches!(change.bytes, Some(Some(_))) && shown.lines().any(|line| line.trim() == "write_back    on") {
                print::complain(
                    "until the next mount, the kernel's cache accepts writes beyond this limit: fsync or close reports them",
                );
            }
        }
        Found::Vault(path) => {
            let fs = args.at.open(&path, false)?;
            let done = match whose(&args.whose)? {
                Ok(of) => fs.set_limits(of, &change),
                Err(dir) => directory(&fs, dir).and_then(|ino| fs.set_limits(LimitOf::Tree(ino), &change)),
            };
            close(fs, &path)?;
            done.map_err(|fault| faulted(args.whose.tree.as_deref().unwrap_or(&path), &fault))?;
        }
    }
    drop(progress);
    if args.at.json {
        print::json(&serde_json::json!({ "ok": true }))?;
    }
    Ok(Exit::Ok)
}

/// Who is meant; of a directory, its path.
fn whose(whose: &Whose) -> Result<Result<LimitOf, &Path>, Failure> {
    let unknown = |why: String| Failure::new(Exit::Usage, format!("{why} on this machine; give its number"));
    Ok(match (&whose.tree, &whose.user, &whose.group) {
        (Some(dir), ..) => Err(dir),
        (_, Some(user), _) => Ok(LimitOf::User(names::user(user).map_err(unknown)?)),
        (_, _, Some(group)) => Ok(LimitOf::Group(names::group(group).map_err(unknown)?)),
        (None, None, None) => return Err(Failure::new(Exit::Usage, "say whose limit: --tree, --user or --group")),
    })
}

/// The inode of a directory in a mount. Its path leads there as it is (also a relative one, or one by links), or it begins
/// at the vault's root.
fn inode_in(mountpoint: &Path, dir: &Path) -> Result<u64, Failure> {
    let path = match dir.canonicalize() {
        Ok(whole) if mounts::lies_in(&whole, mountpoint) => whole,
        _ if dir.starts_with(mountpoint) => dir.to_owned(),
        _ => mountpoint.join(dir.strip_prefix("/").unwrap_or(dir)),
    };
    let meta = std::fs::symlink_metadata(&path).map_err(|e| Failure::io(&path, &e))?;
    let root = std::fs::symlink_metadata(mountpoint).map_err(|e| Failure::io(mountpoint, &e))?;
    if !meta.is_dir() || meta.dev() != root.dev() {
        return Err(Failure::new(Exit::Usage, format!("{} is no directory of this mount", path.display())));
    }
    Ok(meta.ino())
}

/// The same of an opened vault.
fn directory(fs: &FileSystem, dir: &Path) -> Result<Ino, FsFault> {
    let mut at = ROOT_INO;
    for part in dir.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                at = fs.lookup(at, name.as_bytes())?.ino;
                fs.forget(at, 1);
            }
            Component::ParentDir | Component::Prefix(_) => return Err(FsFault::Invalid),
        }
    }
    Ok(at)
}

/// Has a mount's daemon do something; returns when it is done and durable.
fn order(mountpoint: &Path, text: &str) -> Result<(), Failure> {
    let refused = |e| Failure::new(Exit::Io, mounted::refusal(mountpoint, text, &e));
    mounted::order(mountpoint, text.as_bytes()).map_err(refused)
}

fn close(fs: FileSystem, path: &Path) -> Result<(), Failure> {
    let vault: Arc<Vault> = Arc::clone(fs.vault());
    drop(fs);
    vault.close().map_err(|fault| Failure::flush(path, &fault))
}

/// What `/.storage/quota` says; after a check, if so asked.
fn read(at: &Place, check: bool) -> Result<Vec<Line>, Failure> {
    let text = match at.find()? {
        Found::Mount(mountpoint) => {
            if check {
                order(&mountpoint, "quota check")?;
            }
            let path = mounts::storage(&mountpoint).join("quota");
            std::fs::read_to_string(&path).map_err(|e| Failure::io(&path, &e))?
        }
        Found::Vault(path) => {
            let fs = at.open(&path, true)?;
            if check {
                fs.check_quotas().map_err(|fault| faulted(&path, &fault))?;
            }
            let text = fs.quota_text().map_err(|fault| faulted(&path, &fault))?;
            close(fs, &path)?;
            text
        }
    };
    Ok(text.lines().filter_map(Line::of).collect())
}

/// What something is called.
fn called(line: &Line) -> String {
    let (kind, id) = (line.field("kind"), line.field("id"));
    match (kind, line.field("path")) {
        ("tree", "") => format!("tree {id}"),
        ("tree", path) => format!("tree {id} ({path})"),
        _ => format!("{kind} {id}"),
    }
}

fn of_limits(line: &Line, what: &str, shown: &dyn Fn(u128) -> String) -> String {
    let used = shown(line.number(what).unwrap_or(0));
    let limit = |kind: &str| line.number(&format!("{kind}_{what}")).map(shown);
    match (limit("hard"), limit("soft")) {
        (None, None) => used,
        (Some(hard), None) => format!("{used} of {hard}"),
        (Some(hard), Some(soft)) => format!("{used} of {hard} (soft {soft})"),
        (None, Some(soft)) => format!("{used} (soft {soft})"),
    }
}

fn show(at: &Place, lines: &[Line]) -> Result<Exit, Failure> {
    let accounts: Vec<&Line> = lines.iter().filter(|line| line.what == "account").collect();
    if at.json {
        let accounts: Vec<_> = accounts.iter().map(|line| line.json()).collect();
        print::json(&serde_json::json!({ "ok": true, "accounts": accounts }))?;
        return Ok(Exit::Ok);
    }
    if accounts.is_empty() {
        print::answer("there are no quotas of directories, users or groups")?;
    }
    for line in accounts {
        let bytes = of_limits(line, "bytes", &|n| size::show(u64::try_from(n).unwrap_or(u64::MAX)));
        let inodes = of_limits(line, "inodes", &|n| n.to_string());
        let over = match line.field("over") {
            "hard" => ": full",
            "soft" => ": over the soft limit",
            _ => "",
        };
        let state = match line.field("state") {
            "" | "settled" => "",
            "ended" => " (ended: only what is still open is charged)",
            _ => " (being counted)",
        };
        print::answer(&format!("{}: {bytes}, {inodes} inodes{over}{state}", called(line)))?;
    }
    Ok(Exit::Ok)
}

fn answer_check(at: &Place, lines: &[Line]) -> Result<Exit, Failure> {
    let of = |what: &str| lines.iter().filter(|line| line.what == what).collect::<Vec<_>>();
    let (drift, strays) = (of("drift"), of("stray"));
    let (wrong, entangled): (Vec<_>, Vec<_>) = strays.into_iter().partition(|line| line.field("what") == "directory");
    let clean = drift.is_empty() && wrong.is_empty();
    if at.json {
        let all = |lines: &[&Line]| lines.iter().map(|line| line.json()).collect::<Vec<_>>();
        print::json(&serde_json::json!({
            "ok": clean,
            "accounts": of("account").len(),
            "drift": all(&drift),
            "untagged": all(&wrong),
            "entangled": all(&entangled),
        }))?;
        return Ok(if clean { Exit::Ok } else { Exit::Findings });
    }
    for line in &drift {
        let number = |name| line.number(name).unwrap_or(0);
        print::answer(&format!(
            "{}: {} bytes and {} inodes are on record, {} and {} are there\n    mend: strongroom check --repair, with the vault unmounted",
            called(line),
            number("bytes"),
            number("inodes"),
            number("counted_bytes"),
            number("counted_inodes")
        ))?;
    }
    for line in wrong {
        let (path, inode) = (line.field("path"), line.field("inode"));
        let (charged, lies) = (line.field("charged"), line.field("lies"));
        print::answer(&format!(
            "{path} (inode {inode}): the directory is charged to tree {charged}, and lies in tree {lies}\n    mend: strongroom check --repair, with the vault unmounted"
        ))?;
    }
    for line in &entangled {
        let (path, inode, charged) = (line.field("path"), line.field("inode"), line.field("charged"));
        print::answer(&format!("{path} (inode {inode}): charged to tree {charged}, and named in another; no damage"))?;
    }
    let n = of("account").len();
    print::answer(&match clean {
        true => format!("{}: {n} accounts were counted anew: nothing drifted", at.place.display()),
        false => format!("{}: {n} accounts were counted anew: some drifted", at.place.display()),
    })?;
    Ok(if clean { Exit::Ok } else { Exit::Findings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_back_whatever_the_path_is() {
        let line = Line::of(
            "account kind=tree id=3 bytes=340282366920938463463374607431768211455 hard_bytes=none path=/a b=c",
        )
        .unwrap();
        assert_eq!((line.field("kind"), line.field("path")), ("tree", "/a b=c"));
        assert_eq!((line.number("bytes"), line.number("hard_bytes")), (Some(u128::MAX), None));
        assert_eq!(line.json()["hard_bytes"], serde_json::Value::Null);
        assert_eq!(line.json()["id"], 3);
        assert_eq!(called(&line), "tree 3 (/a b=c)");
        assert_eq!(Line::of("used_bytes       17"), None, "the vault's own lines have other forms");
    }

    #[test]
    fn limits_are_sizes_numbers_or_none() {
        assert_eq!(limit_of_bytes("10M"), Ok(Limit(Some(10 << 20))));
        assert_eq!((limit_of_bytes("none"), limit_of_inodes("none")), (Ok(Limit(None)), Ok(Limit(None))));
        assert_eq!(limit_of_inodes("0"), Ok(Limit(Some(0))));
        assert!(limit_of_bytes("much").is_err() && limit_of_inodes("10M").is_err());
    }
}
