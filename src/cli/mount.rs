//! Mounts a vault and serves it until it is unmounted.
//!
//! Promise: the command returns 0 only once the mount is live; the daemon ends only after everything was brought to rest
//! and the vault was closed, however the end came: umount(8), a signal, a second signal.
//! Why it holds: both ways to the end go through `Served::close`, which closes once and lets the second comer wait.
//! Called by: a person, `mount.strongroom`, systemd. On failure: a code of its own for each thing that can be refused.

use super::daemon::{self, Answer, Side};
use super::exit::{Exit, Failure};
use super::mounter::Mounter;
use super::mounts;
use super::options::{self, Options};
use super::process::{self, Terminals};
use super::{derive, emergency, key, names, pins, places, sandbox};
use super::{log as logging, size};
use crate::backing::{Backing, DirBacking};
use crate::base::choice::{Compression, Verify};
use crate::base::id::Generation;
use crate::base::limits::{
    BUDGET_BYTES_DEFAULT, BUDGET_BYTES_MIN, CLEAN_BYTES_MIN, FLUSH_INTERVAL, FULL_DEADLINE, FUSE_THREADS,
};
use crate::base::lock::Held;
use crate::base::world::{RealWorld, World};
use crate::confine::{Report, Wanted};
use crate::fs::{FileSystem, FsOptions};
use crate::fuse::{self, Admitted, MountOptions, Mounted};
use crate::seal::Unlock;
use crate::vault::{self, HomeDir, OpenFault, OpenOptions, Vault};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How long a vault is waited for whose last mount is still closing: `umount` returns to others before we have finished.
const CLOSING_WAIT: Duration = Duration::from_secs(60);
/// How long one is waited for that is locked but mounted nowhere: someone is only looking, has just died, or has been
/// unmounted by the kernel and not yet said that it is closing.
const GLIMPSE_WAIT: Duration = Duration::from_secs(2);
/// How long programs that still use a mount have to let go, once a signal asked us to end.
const STRAGGLER_WAIT: Duration = Duration::from_secs(10);

/// Mount a vault; returns once the mount is live, and a daemon stays behind.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vault's directory
    vault: PathBuf,
    /// An empty directory outside the vault
    mountpoint: PathBuf,
    /// Stay in the foreground, and log to stderr
    #[arg(short, long)]
    foreground: bool,
    /// Mount options, as in fstab: the long options below by their names (budget=1G, log=FILE), and ro, noatime,
    /// nodev, nosuid, noexec, sync, allow_other, default_permissions, noacl, fsname=NAME, flush-deadline=SECONDS,
    /// full-deadline=SECONDS, uid=N, gid=N, umask=OCTAL, fmask=OCTAL, dmask=OCTAL, sandbox=WHAT
    #[arg(short, value_name = "KEY=VALUE,…")]
    options: Vec<String>,
    /// Ignore mount options that are not known
    #[arg(short, long)]
    sloppy: bool,
    #[command(flatten)]
    key: key::Source,
    /// Mount for reading only
    #[arg(long)]
    read_only: bool,
    /// Let other users use the mount; the kernel then checks permissions
    #[arg(long)]
    allow_other: bool,
    /// Let root use the mount, too
    #[arg(long)]
    allow_root: bool,
    /// Let these users use the mount, and nobody else but its owner and root: names or numbers, with : between them
    #[arg(long, value_name = "LIST", value_parser = options::Listed::users)]
    allow_users: Option<options::Listed>,
    /// Let members of these groups use the mount, and nobody else but its owner and root
    #[arg(long, value_name = "LIST", value_parser = options::Listed::groups)]
    allow_groups: Option<options::Listed>,
    /// Let members of this group use .storage as the owner may
    #[arg(long, value_name = "GROUP", value_parser = names::group)]
    storage_group: Option<u32>,
    /// List .storage in the root directory
    #[arg(long)]
    show_storage: bool,
    /// Memory for buffers and caches together [default: 256M, or an eighth of the machine's if that is less]
    #[arg(long, value_name = "SIZE", value_parser = options::budget)]
    budget: Option<u64>,
    /// auto, zstd, lz4 or none [default: as the vault was made]
    #[arg(long, value_name = "HOW")]
    compression: Option<Compression>,
    /// Read what was written back from the device, from the cache, or not: device, cache or off [default: device]
    #[arg(long, value_name = "WHERE")]
    verify: Option<Verify>,
    /// Oldest that written bytes become before they are flushed [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = options::seconds)]
    flush_interval: Option<Duration>,
    /// Directory on another filesystem where the log goes on when the vault's fails: an absolute path, or none
    #[arg(long, value_name = "DIR", value_parser = options::emergency)]
    emergency_dir: Option<options::Emergency>,
    /// Of what is read back, so much is also decrypted and compared with the plaintext [default: 2%]
    #[arg(long, value_name = "PERCENT", value_parser = options::percent)]
    verify_open: Option<u32>,
    /// Threads that compress and encrypt [default: one per core]
    #[arg(long, value_name = "N", value_parser = options::workers)]
    workers: Option<usize>,
    /// Most that a scrub reads in a second, in MiB; 0 for no limit [default: 64]
    #[arg(long, value_name = "MIB", value_parser = options::mib)]
    scrub_rate: Option<u64>,
    /// Clean old segments when so many MiB are to be gained, or never [default: 32]
    #[arg(long, value_name = "MIB|off", value_parser = options::clean)]
    clean: Option<Option<u64>>,
    /// Mount an older copy of the vault although a newer one was known, if it is of this generation
    #[arg(long, value_name = "GEN", value_parser = options::generation)]
    accept_rollback: Option<Generation>,
    /// Append the log to this file (level by STRONGROOM_LOG; without it, a daemon uses the system log)
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// What .storage is called in the root of the mount, or none [default: .storage]
    #[arg(long, value_name = "NAME", value_parser = options::storage_name)]
    storage_name: Option<options::StorageName>,
    /// Leave the daemon all its rights, as -o sandbox=off does; -o sandbox=PARTS demands some of caps, landlock and
    /// seccomp, with + between them
    #[arg(long)]
    no_sandbox: bool,
}

/// What is to be mounted, where and how; everything that can be refused without the key has been.
struct Plan {
    vault: PathBuf,
    mountpoint: PathBuf,
    options: Options,
    admitted: Option<Admitted>,
    key: key::Source,
    log: logging::Place,
    foreground: bool,
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let plan = plan(args)?;
    if args.foreground {
        let mounter = mounter(&plan)?;
        let unlock = key::read(&plan.key, false)?;
        logging::start(&plan.log, false, &plan.vault)?;
        return serve(&plan, mounter, unlock, Answer::nobody());
    }
    match daemon::split()? {
        Side::Caller(caller) => caller.hand_over(key::read(&plan.key, false)?).map(|()| Exit::Ok),
        Side::Daemon(answer, key) => {
            let exit = match be_the_daemon(&plan, key) {
                Ok(Some((mounter, unlock))) => {
                    serve(&plan, mounter, unlock, answer).unwrap_or_else(|failure| failure.exit)
                }
                // The caller could not read the key, and has said so.
                Ok(None) => Exit::NoKey,
                Err(failure) => {
                    let exit = failure.exit;
                    answer.failed(&failure);
                    exit
                }
            };
            // Not back through `main`, which would print a failure that the caller has printed already.
            std::process::exit(exit as i32)
        }
    }
}

/// What a daemon begins with; `None` if there is no key to come.
fn be_the_daemon(plan: &Plan, key: File) -> Result<Option<(Arc<Mounter>, Unlock)>, Failure> {
    let mounter = mounter(plan)?;
    logging::start(&plan.log, true, &plan.vault)?;
    Ok(key::take_over(key)?.map(|unlock| (mounter, unlock)))
}

/// Before the key: the process must never have had it.
fn mounter(plan: &Plan) -> Result<Arc<Mounter>, Failure> {
    let log = match &plan.log {
        logging::Place::File(path) => Some(path.as_path()),
        logging::Place::System | logging::Place::Stderr => None,
    };
    Mounter::start(&plan.mountpoint, &plan.vault, &mount_options(plan), log).map(Arc::new)
}

fn plan(args: &Args) -> Result<Plan, Failure> {
    let options = options(args)?;
    let vault = args.vault.canonicalize().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::new(Exit::NotAVault, format!("{}: there is no such directory", args.vault.display()))
        }
        _ => Failure::io(&args.vault, &e),
    })?;
    if !mounts::is_vault(&vault) {
        let at = vault.display();
        return Err(Failure::new(Exit::NotAVault, format!("{at} is not a vault: it has no {}", crate::vault::HEADER)));
    }
    let mountpoint = usable_mountpoint(&args.mountpoint, &vault)?;
    // Before anybody is asked for a passphrase.
    places::refuse_mounted(&vault)?;
    process::refuse_narrow(&vault, options.budget_bytes.unwrap_or(BUDGET_BYTES_DEFAULT))?;
    let log = log_place(&options, args.foreground, &vault, &mountpoint)?;
    if let Some(options::Emergency::Dir(dir)) = &options.emergency {
        emergency::refuse_hidden(dir, &mountpoint)?;
    }
    let mut key = args.key.clone();
    if key.is_unsaid() {
        key.password_file = options.password_file.clone();
        key.key_file = options.key_file.clone();
        key.recovery_key_file = options.recovery_key_file.clone();
        let said = [&key.password_file, &key.key_file, &key.recovery_key_file];
        if said.iter().filter(|file| file.is_some()).count() > 1 {
            let which = "password-file, key-file and recovery-key-file exclude each other";
            return Err(Failure::new(Exit::Usage, which));
        }
    }
    // SAFETY: only asks, and cannot fail.
    let admitted = options.admitted(unsafe { libc::geteuid() })?;
    Ok(Plan { vault, mountpoint, options, admitted, key, log, foreground: args.foreground })
}

/// Where the log goes; never where the mount would hide it, nor into the vault.
fn log_place(options: &Options, foreground: bool, vault: &Path, mountpoint: &Path) -> Result<logging::Place, Failure> {
    let Some(path) = &options.log else {
        return Ok(if foreground { logging::Place::Stderr } else { logging::Place::System });
    };
    let whole = mounts::whole_path_of_new(path);
    for (place, what) in [(vault, "the vault"), (mountpoint, "the mountpoint, where the mount would hide it")] {
        if mounts::lies_in(&whole, place) {
            let why = format!("the log {} lies in {what}: name a file elsewhere", path.display());
            return Err(Failure::new(Exit::Usage, why));
        }
    }
    Ok(logging::Place::File(whole))
}

fn options(args: &Args) -> Result<Options, Failure> {
    let mut options = Options::default();
    args.options.iter().try_for_each(|list| options.add(list, args.sloppy))?;
    options.read_only |= args.read_only;
    options.allow_other |= args.allow_other;
    options.allow_root |= args.allow_root;
    options.allow_users = args.allow_users.clone().map(|list| list.0).or(options.allow_users);
    options.allow_groups = args.allow_groups.clone().map(|list| list.0).or(options.allow_groups);
    options.storage_group = args.storage_group.or(options.storage_group);
    options.show_storage |= args.show_storage;
    options.budget_bytes = args.budget.or(options.budget_bytes);
    options.compression = args.compression.or(options.compression);
    options.verify = args.verify.or(options.verify);
    options.flush_interval = args.flush_interval.or(options.flush_interval);
    options.workers = args.workers.or(options.workers);
    options.emergency = args.emergency_dir.clone().or(options.emergency);
    options.verify_open_percent = args.verify_open.or(options.verify_open_percent);
    options.scrub_rate_bytes = args.scrub_rate.or(options.scrub_rate_bytes);
    options.clean_bytes = args.clean.or(options.clean_bytes);
    options.accept_rollback = args.accept_rollback.or(options.accept_rollback);
    options.log = args.log.clone().or(options.log);
    options.storage_name = args.storage_name.clone().or(options.storage_name);
    options.sandbox = args.no_sandbox.then_some(Wanted::OFF).or(options.sandbox);
    Ok(options)
}

fn usable_mountpoint(path: &Path, vault: &Path) -> Result<PathBuf, Failure> {
    let refuse = |why: String| Failure::new(Exit::Mountpoint, format!("mountpoint {}: {why}", path.display()));
    let unusable = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => refuse("there is no such directory".to_owned()),
        _ if mounts::daemon_died(&e) => {
            refuse("a mount whose daemon has died is still there: strongroom umount it".to_owned())
        }
        _ => refuse(e.to_string()),
    };
    let whole = path.canonicalize().map_err(unusable)?;
    // A dead mount may still have its path (the kernel remembers that), and mostly no attributes any more.
    if !whole.metadata().map_err(unusable)?.is_dir() {
        return Err(refuse("it is not a directory".to_owned()));
    }
    if mounts::lies_in(&whole, vault) {
        return Err(refuse("it lies inside the vault".to_owned()));
    }
    if mounts::lies_in(vault, &whole) {
        return Err(refuse("the vault lies inside it".to_owned()));
    }
    if mounts::at(&whole)?.is_some() {
        // What the kernel remembers of a dead mount may include its attributes; of `.storage` it remembers nothing.
        if let Err(e) = mounts::storage(&whole).metadata()
            && mounts::daemon_died(&e)
        {
            return Err(unusable(e));
        }
        return Err(refuse("a strongroom is mounted there already".to_owned()));
    }
    let mut names = std::fs::read_dir(&whole).map_err(|e| refuse(e.to_string()))?;
    if names.next().is_some() {
        return Err(refuse("it is not empty".to_owned()));
    }
    Ok(whole)
}

/// A live mount.
struct Live {
    mounted: Mounted,
    served: Arc<Served>,
    signals: Signals,
}

/// What both ways to the end need.
struct Served {
    vault: Arc<Vault>,
    path: PathBuf,
    mountpoint: PathBuf,
    mounter: Arc<Mounter>,
    /// What the foreground was started on; nothing for a daemon.
    terminals: Terminals,
    closed: Mutex<Option<Exit>>,
}

fn serve(plan: &Plan, mounter: Arc<Mounter>, unlock: Unlock, answer: Answer) -> Result<Exit, Failure> {
    bound_memory();
    key::forbid_dumps();
    key::lock(&unlock);
    let live = match bring_up(plan, mounter, unlock) {
        Ok(live) => live,
        Err(failure) => {
            answer.failed(&failure);
            return Err(failure);
        }
    };
    log::info!("{} is mounted on {}", plan.vault.display(), plan.mountpoint.display());
    let Live { mounted, served, signals } = live;
    let handle = signals.handle();
    let listener = {
        let served = Arc::clone(&served);
        let listen = move || listen(signals, &served);
        thread::Builder::new().name("signals".to_owned()).spawn(listen)
    };
    let listener = listener.map_err(|e| Failure::new(Exit::Unexpected, format!("no thread for signals: {e}")));
    // A caller that has gone away (Ctrl-C) wants no mount: nobody would know that it is there.
    let unheard = answer.live().err();
    if let Some(e) = &unheard {
        log::error!("nobody waits for the mount any more: {e}");
    }
    if unheard.is_some() || listener.is_err() {
        served.unmount();
    }
    let ended = mounted.wait();
    let exit = served.close();
    handle.close();
    listener?;
    if exit != Exit::Ok {
        return Err(Failure::new(
            exit,
            format!("{}: not everything could be brought to rest (see the log)", plan.vault.display()),
        ));
    }
    if let Err(e) = ended {
        log::error!("serving the kernel ended with: {e}");
        return Err(Failure::new(Exit::Fuse, format!("{}: {e}", plan.mountpoint.display())));
    }
    log::info!("{} is unmounted and closed", plan.vault.display());
    Ok(exit)
}

fn bring_up(plan: &Plan, mounter: Arc<Mounter>, unlock: Unlock) -> Result<Live, Failure> {
    // Before the mount is live: a signal that comes early must not kill us with the vault open.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|e| Failure::new(Exit::Unexpected, format!("cannot listen for signals: {e}")))?;
    let (vault, report) = open(plan, &mounter, unlock)?;
    let mounted = match mount(plan, &mounter, Arc::clone(&vault), report) {
        Ok(mounted) => mounted,
        Err(failure) => {
            if let Err(fault) = vault.close() {
                log::error!("closing the vault after a mount that failed: {fault}");
            }
            return Err(failure);
        }
    };
    let (path, mountpoint) = (plan.vault.clone(), plan.mountpoint.clone());
    let terminals = if plan.foreground { Terminals::of_this_process() } else { Terminals::default() };
    let served = Served { vault, path, mountpoint, mounter, terminals, closed: Mutex::new(None) };
    Ok(Live { mounted, served: Arc::new(served), signals })
}

/// Opens the vault, confined from the moment that the key is known.
fn open(plan: &Plan, mounter: &Arc<Mounter>, unlock: Unlock) -> Result<(Arc<Vault>, Report), Failure> {
    let world: Arc<dyn World> = Arc::new(RealWorld::default());
    let backing: Arc<dyn Backing> = Arc::new(DirBacking::open(&plan.vault).map_err(|e| Failure::io(&plan.vault, &e))?);
    let said = &plan.options;
    let mut options = OpenOptions {
        budget_bytes: said.budget_bytes.unwrap_or_else(|| default_budget_bytes(&*world)),
        compression: said.compression,
        read_only: said.read_only,
        ..OpenOptions::default()
    };
    options.verify = said.verify.unwrap_or(options.verify);
    options.flush_interval = said.flush_interval.unwrap_or(options.flush_interval);
    options.workers = said.workers.unwrap_or(options.workers);
    options.verify_open_percent = said.verify_open_percent.unwrap_or(options.verify_open_percent);
    options.flush_deadline = said.flush_deadline.unwrap_or(options.flush_deadline);
    emergency::choose(said.emergency.as_ref(), &plan.vault, &mut options)?;
    // By the mounter: a rule of the sandbox is tied to an inode, and a disk that comes back has others.
    let by = Arc::clone(mounter);
    let reopen = move || by.reopen().map(|dir| Arc::new(dir) as Arc<dyn Backing>);
    options.home = Some(HomeDir { path: plan.vault.to_string_lossy().into_owned(), reopen: Arc::new(reopen) });
    options.clean_bytes = said.clean_bytes.unwrap_or(Some(CLEAN_BYTES_MIN));
    options.scrub_rate_bytes = said.scrub_rate_bytes.unwrap_or(options.scrub_rate_bytes);
    let begun = world.elapsed();
    let is_mounted = || mounts::strongrooms().is_ok_and(|all| all.iter().any(|m| m.source == plan.vault));
    let locked = loop {
        match vault::lock(Arc::clone(&backing)) {
            Ok(locked) => break locked,
            Err(OpenFault::InUse { holder }) if world.elapsed() - begun < patience(&holder, is_mounted) => {
                thread::sleep(Duration::from_millis(50));
            }
            Err(fault) => return Err(Failure::open(&plan.vault, &fault)),
        }
    };
    // After the wait for the lock, so once; before the vault starts its threads, so that it may fork.
    let unlock = derive::master_key(&plan.vault, locked.headers(), unlock)?;
    // Reading only leaves no trace: what opening writes (the lease, what a crash left to take in) stays in memory.
    let locked = if said.read_only { locked.showing_older() } else { locked };
    key::tell_of_locks();
    let stores = pins::stores(&plan.vault, Some(&plan.mountpoint));
    let locked = locked.remembered(stores, said.accept_rollback).finding(emergency::find);
    let failed = |fault: OpenFault| Failure::open(&plan.vault, &fault);
    let named = options.emergency.as_ref().map(|dir| PathBuf::from(&dir.path));
    let emergency = match named {
        None if !options.without_emergency => locked.needs(&unlock).map_err(failed)?.map(PathBuf::from),
        named => named,
    };
    let pins = pins::places(&plan.vault, Some(&plan.mountpoint));
    let needs = sandbox::Needs { vault: &plan.vault, read_only: said.read_only, emergency, pins };
    let report = sandbox::enter(said.sandbox.unwrap_or_default(), &needs)?;
    Ok((locked.open(&unlock, &options, world).map_err(failed)?, report))
}

/// How long a lock is worth waiting for, by what its holder wrote into it.
fn patience(holder: &str, is_mounted: impl FnOnce() -> bool) -> Duration {
    match holder.trim() {
        "closing" => CLOSING_WAIT,
        pid if pid.parse::<u32>().is_ok_and(|pid| Path::new(&format!("/proc/{pid}")).exists()) && is_mounted() => {
            Duration::ZERO
        }
        _ => GLIMPSE_WAIT,
    }
}

fn mount(plan: &Plan, mounter: &Arc<Mounter>, vault: Arc<Vault>, report: Report) -> Result<Mounted, Failure> {
    let said = &plan.options;
    // SAFETY: both calls only ask, and cannot fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let fs_options = FsOptions {
        uid,
        gid,
        storage_group: said.storage_group,
        show_storage: said.show_storage,
        read_only: said.read_only,
        atime: said.atime(),
        dir_atime: said.dir_atime(),
        acl: said.acl(),
        shown: said.shown,
        ..FsOptions::default()
    };
    let mut rows = report.rows;
    rows.push(("full_deadline_seconds", full_deadline(said).as_secs_f64().to_string()));
    let fs = FileSystem::new(vault, fs_options)
        .map_err(|fault| Failure::new(Exit::Damaged, format!("{}: {fault}", plan.vault.display())))?
        .telling(rows)
        .labelled(&plan.vault, &plan.mountpoint);
    let fs = match &said.storage_name {
        Some(name) => fs.storage_named(name.0.clone()),
        None => fs,
    };
    let failed = |e| Failure::new(Exit::Fuse, format!("cannot mount on {}: {e}", plan.mountpoint.display()));
    let device = mounter.mount().map_err(failed)?;
    let unmount = {
        let mounter = Arc::clone(mounter);
        Arc::new(move || mounter.unmount())
    };
    let mounted = fuse::serve(Arc::new(fs), device, &mount_options(plan), unmount).map_err(failed)?;
    if let Err(e) = mounter.read_further_ahead() {
        log::info!("the read-ahead stays as it is: {e}");
    }
    match mounter.background_limit() {
        Ok(setting) => mounted.connect_background(Box::new(setting)),
        Err(e) => log::info!("on a full disk, reads may wait for held writes: {e}"),
    }
    Ok(mounted)
}

fn full_deadline(said: &Options) -> Duration {
    said.full_deadline.unwrap_or(FULL_DEADLINE)
}

fn mount_options(plan: &Plan) -> MountOptions {
    let said = &plan.options;
    MountOptions {
        fsname: said.fsname.clone().unwrap_or_else(|| plan.vault.to_string_lossy().into_owned()),
        allow_other: said.allow_other,
        admitted: plan.admitted.clone(),
        // The kernel judges, which knows everyone's groups and capabilities; root too: it may not run what has no x bit.
        default_permissions: true,
        read_only: said.read_only,
        acl: said.acl(),
        kernel: said.kernel.clone(),
        // The kernel has bytes for half of the interval, the daemon for the other.
        write_back_every: (!said.read_only).then(|| said.flush_interval.unwrap_or(FLUSH_INTERVAL) / 2),
        threads: FUSE_THREADS,
        full_deadline: full_deadline(said),
    }
}

/// Runs on a thread of its own until the mount has ended.
fn listen(mut signals: Signals, served: &Arc<Served>) {
    let mut ending = false;
    for signal in signals.forever() {
        // What logrotate sends. Only to a foreground whose terminal was closed does it mean the end.
        if signal == SIGHUP && !served.terminals.are_gone() {
            logging::reopen(|| served.mounter.open_log());
            continue;
        }
        if ending {
            // Not a reason to drop what is still in memory; whoever means that has SIGKILL.
            log::warn!("signal {signal}: still flushing, {} left", size::show(served.vault.pending_bytes()));
            continue;
        }
        ending = true;
        log::info!("signal {signal}: flushing and unmounting");
        let served = Arc::clone(served);
        let end = thread::Builder::new().name("end".to_owned()).spawn(move || served.end());
        if let Err(e) = end {
            log::error!("no thread to end on: {e}; unmount by hand");
            ending = false;
        }
    }
}

impl Served {
    /// Ends the mount because a signal said so.
    fn end(&self) {
        if let Err(fault) = self.vault.sync_wait() {
            log::error!("flushing before the unmount: {fault}");
        }
        self.unmount();
        // As a rule `wait` returns now and the process ends. Programs that keep files open in a detached mount get a
        // while, then errors.
        thread::sleep(STRAGGLER_WAIT);
        let exit = self.close();
        std::process::exit(exit as i32)
    }

    /// Unmounts, and if something still uses the mount detaches it, so that nothing new begins to.
    fn unmount(&self) {
        let Err(e) = self.mounter.unmount() else { return };
        let at = self.mountpoint.display();
        log::warn!("{at}: {e}; detaching it, for those who still use it to finish");
        if let Err(e) = self.mounter.detach() {
            log::error!("{at}: {e}");
        }
    }

    /// Closes the vault once; whoever comes second waits for the first.
    fn close(&self) -> Exit {
        let mut closed = self.closed.held();
        *closed.get_or_insert_with(|| {
            self.mounter.report_closing();
            let word = emergency::close(&self.vault, &self.path);
            self.mounter.report_end(&word);
            word.exit
        })
    }
}

/// The budget unless told: the usual one, but at most an eighth of what this machine (or container) has.
fn default_budget_bytes(world: &dyn World) -> u64 {
    // What cannot be asked is taken for a usual machine.
    world.memory().map_or(BUDGET_BYTES_DEFAULT, |memory| budget_for(memory.total_bytes))
}

fn budget_for(memory_bytes: u64) -> u64 {
    (memory_bytes / 8).clamp(BUDGET_BYTES_MIN, BUDGET_BYTES_DEFAULT)
}

/// Keeps the allocator from holding far more than the budget: glibc takes up to eight arenas per core, and what is freed in
/// one is no use to another, so there is one (two held 20 MiB more and were no faster, measured on two cores); and after
/// the first large block it raises its own threshold for mapping blocks to 32 MiB, so that they fragment the heap for
/// good. Chunks and groups (128 KiB to 1 MiB) stay below the threshold: mapping those anew each time costs a page fault
/// per 4 KiB.
fn bound_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: plain settings of the allocator, before any other thread exists; a refusal leaves the defaults.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 16 << 20);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        Line::try_parse_from([&["mount"], words].concat()).expect("a good line").args
    }

    #[test]
    fn a_long_option_counts_over_the_same_in_o() {
        let o = options(&args(&["v", "m", "-o", "budget=32M,workers=3", "-o", "ro", "--budget", "64M"])).unwrap();
        assert_eq!((o.budget_bytes, o.workers, o.read_only), (Some(64 << 20), Some(3), true));
        assert!(Line::try_parse_from(["mount", "v", "m", "--budget", "1K"]).is_err());
        assert!(Line::try_parse_from(["mount", "v", "m", "--key-file", "a", "--password-file", "b"]).is_err());
    }

    #[test]
    fn a_mountpoint_that_will_not_do_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let top = dir.path().canonicalize().unwrap();
        let vault = top.join("vault");
        let make = |name: &str| std::fs::create_dir_all(top.join(name)).unwrap();
        ["vault/mnt", "full/x", "good"].into_iter().for_each(make);
        std::fs::write(top.join("file"), "").unwrap();
        for bad in ["missing", "file", "full", "vault", "vault/mnt", "."] {
            let failure = usable_mountpoint(&top.join(bad), &vault).unwrap_err();
            assert_eq!(failure.exit, Exit::Mountpoint, "{bad}: {failure}");
        }
        assert_eq!(usable_mountpoint(&top.join("good"), &vault).unwrap(), top.join("good"));
    }

    #[test]
    fn a_small_machine_has_a_small_budget() {
        assert_eq!(budget_for(64 << 30), BUDGET_BYTES_DEFAULT);
        assert_eq!(budget_for(1 << 30), 128 << 20);
        assert_eq!(budget_for(32 << 20), BUDGET_BYTES_MIN);
    }

    #[test]
    fn only_a_closing_vault_is_worth_waiting_for() {
        let me = format!("{}\n", std::process::id());
        assert_eq!(patience("closing\n", || true), CLOSING_WAIT);
        assert_eq!(patience(&me, || true), Duration::ZERO);
        assert_eq!(patience(&me, || false), GLIMPSE_WAIT, "unmounted, but not yet closing");
        assert_eq!(patience("", || true), GLIMPSE_WAIT);
        assert_eq!(patience("4294967295\n", || true), GLIMPSE_WAIT, "dead");
    }
}
