//! Shows and changes what opens a vault: its key slots, and the header that they stand in.
//!
//! Promise: 0 means that the change is durable, and that what was removed opens the vault no more. The last slot stays,
//! and the last passphrase goes only if that is meant. A recovery key is shown once, after its slot is durable.
//! Of a vault that is mounted, the next header is made here and handed to its daemon (`mounted`); if somebody else was first, it is made
//! once more.
//! Called by: a person. On failure: `Exit::SlotRefused` for what cannot be, `InUse` where the vault is at work and no mount of it
//! takes the change, else as for `mount`; the slots are then the old ones, or after an error of the disk (13) perhaps the new ones.

use super::exit::{Exit, Failure};
use super::init::Argon2;
use super::{init, key, mounted, options, pins, places, print, status};
use crate::backing::{Backing, DirBacking, read_file};
use crate::base::id::Generation;
use crate::base::world::{RealWorld, Time, World};
use crate::fs::printable;
use crate::seal::{KeySlot, SlotKind, Unlock};
use crate::vault::{self, HeaderTexts, Import, OpenFault, SlotFault, Slots};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More than any header has.
const HEADER_BYTES_MAX: usize = 1 << 20;

/// Show and change what opens a vault.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the key slots; needs no key
    List(Place),
    /// Add a key slot
    Add(Add),
    /// Remove a key slot
    Remove(Remove),
    /// Make a key slot anew for another passphrase or key
    Change(Change),
    /// Copy the header to a file, to keep it; needs no key
    ExportHeader(Export),
    /// Put a header that was kept in the place of the vault's
    ImportHeader(ImportHeader),
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The vault's directory
    vault: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// What opens the vault now.
#[derive(Debug, clap::Args)]
struct Opened {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    key: key::Source,
    /// Take an older copy of the vault although a newer one was known, if it is of this generation
    #[arg(long, value_name = "GEN", value_parser = options::generation)]
    accept_rollback: Option<Generation>,
}

/// What a slot is to be.
#[derive(Debug, clap::Args)]
struct New {
    #[command(flatten)]
    source: key::NewSource,
    /// What to call the slot
    #[arg(long)]
    label: Option<String>,
    /// Cost of the passphrase: KiB of memory, passes, lanes [default: about a second on this machine]
    #[arg(long, value_name = "KIB,PASSES,LANES", value_parser = init::argon2)]
    argon2: Option<Argon2>,
}

#[derive(Debug, clap::Args)]
struct Add {
    #[command(flatten)]
    opened: Opened,
    #[command(flatten)]
    new: New,
}

#[derive(Debug, clap::Args)]
#[group(id = "which", required = true, multiple = false, args = ["slot", "itself"])]
struct Remove {
    #[command(flatten)]
    opened: Opened,
    /// The slot, by its number or label
    #[arg(long, value_name = "ID|LABEL")]
    slot: Option<String>,
    /// What the vault is opened with
    #[arg(long)]
    itself: bool,
    /// Remove the only passphrase, too
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
struct Change {
    #[command(flatten)]
    opened: Opened,
    #[command(flatten)]
    new: New,
    /// The slot, by its number or label [default: the one of what the vault is opened with; with a recovery key, the
    /// passphrase's]
    #[arg(long, value_name = "ID|LABEL")]
    slot: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Export {
    #[command(flatten)]
    place: Place,
    /// The file to make; it must not exist
    file: PathBuf,
}

#[derive(Debug, clap::Args)]
struct ImportHeader {
    #[command(flatten)]
    opened: Opened,
    /// The file that was kept
    file: PathBuf,
}

impl Args {
    /// Whether the answer is for a program.
    pub fn is_json(&self) -> bool {
        match &self.action {
            Action::List(place) => place.json,
            Action::Add(args) => args.opened.place.json,
            Action::Remove(args) => args.opened.place.json,
            Action::Change(args) => args.opened.place.json,
            Action::ExportHeader(args) => args.place.json,
            Action::ImportHeader(args) => args.opened.place.json,
        }
    }
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    match &args.action {
        Action::List(place) => list(place),
        Action::Add(args) => add(args),
        Action::Remove(args) => remove(args),
        Action::Change(args) => change(args),
        Action::ExportHeader(args) => export(args),
        Action::ImportHeader(args) => import(args),
    }
}

pub(super) fn refused(path: &Path, fault: SlotFault) -> Failure {
    let at = path.display();
    match fault {
        SlotFault::Open(OpenFault::InUse { .. }) => {
            Failure::new(Exit::InUse, format!("{at}: the vault is in use: unmount it, then change its key slots"))
        }
        SlotFault::Open(fault) => Failure::open(path, &fault),
        SlotFault::Overtaken => Failure::new(Exit::SlotRefused, format!("{at}: {fault}, twice: try again")),
        SlotFault::NotTaken(e) => match e.raw_os_error() {
            Some(libc::EROFS) => {
                let said = "it is mounted for reading only: unmount it, then change its key slots";
                Failure::new(Exit::InUse, format!("{at}: {said}"))
            }
            Some(libc::EBUSY) => {
                let said = "its mount cannot take the change now: the backing directory has failed, or part of the vault is in the \
                            emergency directory";
                Failure::new(Exit::InUse, format!("{at}: {said}"))
            }
            // Another version of the program may serve it.
            Some(libc::EINVAL) => {
                let said = "the vault is in use, and its mount does not take the change: unmount it, then change its key slots";
                Failure::new(Exit::InUse, format!("{at}: {said}"))
            }
            Some(libc::EKEYREJECTED) => {
                let said =
                    "vault.toml is not of the vault that is mounted, or of before a rekey: was an older one put back?";
                Failure::new(Exit::RolledBack, format!("{at}: {said}"))
            }
            _ => Failure::new(Exit::Io, format!("{at}: the mount did not take the change: {e}")),
        },
        refused @ (SlotFault::NoSuchSlot(_)
        | SlotFault::LabelTaken(_)
        | SlotFault::LastSlot
        | SlotFault::Unfit(_)
        | SlotFault::OtherVault { .. }) => Failure::new(Exit::SlotRefused, format!("{at}: {refused}")),
    }
}

/// Why a change came to its end before it was made.
enum Stop {
    Fault(SlotFault),
    Failure(Failure),
}

impl<F: Into<SlotFault>> From<F> for Stop {
    fn from(fault: F) -> Stop {
        Stop::Fault(fault.into())
    }
}

/// Opens the slots and changes them. Where a mount's were changed by somebody else meanwhile, once more, from the beginning.
fn changed<T>(
    opened: &Opened,
    mut change: impl FnMut(&Path, &mut Slots) -> Result<T, Stop>,
) -> Result<(PathBuf, T), Failure> {
    let (path, backing) = places::vault(&opened.place.vault)?;
    let world: Arc<dyn World> = Arc::new(RealWorld::default());
    let done = match vault::lock(Arc::clone(&backing)) {
        Ok(locked) => {
            // Asked only once it is known that the answer is of use.
            let unlock = key::read(&opened.key, false)?;
            let locked = locked.remembered(pins::stores(&path, None), opened.accept_rollback);
            locked.slots(&unlock, world).map_err(Stop::from).and_then(|mut slots| change(&path, &mut slots))
        }
        Err(fault) => {
            let mountpoint = mounted_at(&path, fault)?;
            let unlock = key::read(&opened.key, false)?;
            let mut attempt = || {
                let texts = HeaderTexts::read(&*backing)?.ok_or(OpenFault::NotAVault)?;
                let hand_over = mounted::hand_over(&mountpoint);
                let mut slots = Slots::of_mounted(&texts, &unlock, hand_over, Arc::clone(&world))?;
                change(&path, &mut slots)
            };
            match attempt() {
                Err(Stop::Fault(SlotFault::Overtaken)) => attempt(),
                other => other,
            }
        }
    };
    match done {
        Ok(value) => Ok((path, value)),
        Err(Stop::Fault(fault)) => Err(refused(&path, fault)),
        Err(Stop::Failure(failure)) => Err(failure),
    }
}

/// The mount of a vault that did not open because it is in use.
fn mounted_at(path: &Path, fault: OpenFault) -> Result<PathBuf, Failure> {
    let mountpoint = if let OpenFault::InUse { .. } = fault { mounted::mountpoint(path)? } else { None };
    mountpoint.ok_or_else(|| refused(path, fault.into()))
}

/// What a slot is to be made for; asked once, and a recovery key is drawn once.
fn asked<'a>(known: &'a mut Option<Unlock>, new: &New) -> Result<&'a Unlock, Stop> {
    if known.is_none() {
        *known = Some(key::read_new(&new.source, &RealWorld::default()).map_err(Stop::Failure)?);
    }
    Ok(known.as_ref().expect("it was read above"))
}

fn list(place: &Place) -> Result<Exit, Failure> {
    let (path, backing) = places::vault(&place.vault)?;
    let header = status::header(&*backing, &path)?;
    if place.json {
        let slots: Vec<Value> = header.slots.iter().map(described).collect();
        let (at, id) = (path.to_string_lossy(), header.vault.to_string());
        print::json(&json!({ "ok": true, "vault": at, "id": id, "revision": header.revision, "slots": slots }))?;
        return Ok(Exit::Ok);
    }
    header.slots.iter().try_for_each(|slot| print::answer(&row(slot)))?;
    Ok(Exit::Ok)
}

fn described(slot: &KeySlot) -> Value {
    let argon2 = match slot.kind {
        SlotKind::Passphrase { memory_kib, passes, lanes } => {
            json!({ "memory_kib": memory_kib, "passes": passes, "lanes": lanes })
        }
        SlotKind::KeyFile | SlotKind::RecoveryKey => Value::Null,
    };
    let created = print::utc(Time { seconds: slot.created_s, nanos: 0 });
    json!({ "id": slot.id, "kind": slot.kind.name(), "label": slot.label, "created": created, "argon2": argon2 })
}

fn row(slot: &KeySlot) -> String {
    let cost = match slot.kind {
        SlotKind::Passphrase { memory_kib, passes, lanes } => {
            format!("  (Argon2id: {} MiB, {passes} passes, {lanes} lanes)", memory_kib >> 10)
        }
        SlotKind::KeyFile | SlotKind::RecoveryKey => String::new(),
    };
    let created = print::utc(Time { seconds: slot.created_s, nanos: 0 });
    // Anybody may have written it: nothing in it must reach the terminal as more than text.
    let label = printable(slot.label.as_bytes());
    format!("{:<4} {:<12} {created}  {label}{cost}", slot.id, slot.kind.name())
}

/// The kind of slot that a secret makes, for a sentence.
fn called(unlock: &Unlock) -> &'static str {
    match unlock {
        Unlock::Passphrase(_) => "a passphrase",
        Unlock::KeyFile(_) => "a key file",
        Unlock::Recovery(_) => "a recovery key",
        Unlock::Master(_) => "the master key",
    }
}

/// Tells of a slot that is made, and shows its recovery key.
fn made(path: &Path, place: &Place, id: u32, unlock: &Unlock, what: &str) -> Result<Exit, Failure> {
    let drawn = match unlock {
        Unlock::Recovery(key) => Some(key),
        Unlock::Passphrase(_) | Unlock::KeyFile(_) | Unlock::Master(_) => None,
    };
    if place.json {
        let recovery = drawn.map(|key| key.text().to_string());
        let at = path.to_string_lossy();
        print::json(&json!({ "ok": true, "vault": at, "slot": id, "recovery_key": recovery }))?;
        return Ok(Exit::Ok);
    }
    print::answer(&format!("{}: key slot {id} {what} {}", path.display(), called(unlock)))?;
    drawn.map_or(Ok(()), print::recovery_key)?;
    Ok(Exit::Ok)
}

fn add(args: &Add) -> Result<Exit, Failure> {
    let mut new = None;
    let label = args.new.label.as_deref().unwrap_or_default();
    let (path, id) = changed(&args.opened, |_, slots| {
        let unlock = asked(&mut new, &args.new)?;
        Ok(slots.add(unlock, label, args.new.argon2.map(Into::into))?)
    })?;
    let unlock = new.expect("it was asked for, or there is no slot");
    made(&path, &args.opened.place, id, &unlock, "is for")
}

fn change(args: &Change) -> Result<Exit, Failure> {
    let mut new = None;
    let (label, argon2) = (args.new.label.as_deref(), args.new.argon2.map(Into::into));
    let (path, id) = changed(&args.opened, |_, slots| {
        let id = match &args.slot {
            Some(which) => slots.named(which)?.id,
            None => slot_to_change(slots, &args.new.source)?,
        };
        slots.change(id, asked(&mut new, &args.new)?, label, argon2)?;
        Ok(id)
    })?;
    let unlock = new.expect("it was asked for, or there is no slot");
    made(&path, &args.opened.place, id, &unlock, "is now for")
}

/// The slot that a change without `--slot` means: the one that opened the vault. A recovery key is for replacing a secret
/// that was lost, so opened with it, a new passphrase or key file replaces the old one, and the recovery key stays.
fn slot_to_change(slots: &Slots, new: &key::NewSource) -> Result<u32, SlotFault> {
    let all = &slots.header().slots;
    let is_recovery = |slot: &&KeySlot| slot.kind == SlotKind::RecoveryKey;
    let opened: Vec<&KeySlot> = all.iter().filter(|slot| slots.fitting().contains(&slot.id)).collect();
    let by_recovery = opened.iter().all(is_recovery) && !new.new_recovery_key;
    let candidates = if by_recovery {
        let others: Vec<&KeySlot> = all.iter().filter(|slot| !is_recovery(slot)).collect();
        let passphrases: Vec<&KeySlot> =
            others.iter().copied().filter(|slot| matches!(slot.kind, SlotKind::Passphrase { .. })).collect();
        if passphrases.is_empty() { others } else { passphrases }
    } else {
        opened
    };
    match candidates.as_slice() {
        [only] => Ok(only.id),
        [] => Err(SlotFault::Unfit(
            "only recovery keys open it, and a recovery key is not turned into something else: strongroom key add makes a \
             slot for a passphrase beside it, and --slot replaces it all the same"
                .to_owned(),
        )),
        several => {
            let named: Vec<String> = several.iter().map(|slot| named(slot)).collect();
            let why = format!("say with --slot which key slot is to be changed: {}", named.join(", "));
            Err(SlotFault::Unfit(why))
        }
    }
}

/// A slot, for a sentence.
pub(super) fn named(slot: &KeySlot) -> String {
    match slot.label.as_str() {
        "" => format!("{} ({})", slot.id, slot.kind.name()),
        // Anybody may have written it: nothing in it must reach the terminal as more than text.
        label => format!("{} ({}, '{}')", slot.id, slot.kind.name(), printable(label.as_bytes())),
    }
}

fn remove(args: &Remove) -> Result<Exit, Failure> {
    let (path, ids) = changed(&args.opened, |path, slots| {
        let ids = match &args.slot {
            Some(which) => vec![slots.named(which)?.id],
            // All that it fits: or it would still open the vault.
            None => slots.fitting().to_vec(),
        };
        let is_last = ids.len() == slots.header().slots.len();
        let leaves_none = slots.leaves_no_passphrase(&ids) && !is_last && !args.yes;
        if leaves_none && !is_meant(path).map_err(Stop::Failure)? {
            let why = "no passphrase would open the vault any more, only a key file or recovery key: if that is meant, \
                       say --yes";
            return Err(SlotFault::Unfit(why.to_owned()).into());
        }
        slots.remove(&ids)?;
        Ok(ids)
    })?;
    if args.opened.place.json {
        print::json(&json!({ "ok": true, "vault": path.to_string_lossy(), "removed": ids }))?;
        return Ok(Exit::Ok);
    }
    let said = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    print::answer(&format!("{}: key slot {said} is removed", path.display()))?;
    Ok(Exit::Ok)
}

/// Asks whoever is there.
fn is_meant(path: &Path) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(false);
    }
    let at = path.display();
    print::complain(&format!("{at}: no passphrase will open the vault any more; remove it all the same? (yes/no)"));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|e| Failure::new(Exit::Io, format!("the terminal: {e}")))?;
    Ok(matches!(answer.trim(), "yes" | "y"))
}

fn export(args: &Export) -> Result<Exit, Failure> {
    let (path, backing) = places::vault(&args.place.vault)?;
    let texts = HeaderTexts::read(&*backing).map_err(|e| Failure::io(&path, &e))?;
    let text = texts.ok_or(OpenFault::NotAVault).and_then(|texts| Ok(texts.shown_text()?.to_vec()));
    let text = text.map_err(|fault| Failure::open(&path, &fault))?;
    let failed = |e: io::Error| Failure::io(&args.file, &e);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.file);
    let mut file = file.map_err(failed)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
    if args.place.json {
        print::json(&json!({ "ok": true, "vault": path.to_string_lossy(), "file": args.file.to_string_lossy() }))?;
        return Ok(Exit::Ok);
    }
    let (at, file) = (path.display(), args.file.display());
    print::answer(&format!(
        "{at}: its header is copied to {file}; every key that opens it now opens that copy for ever"
    ))?;
    Ok(Exit::Ok)
}

fn import(args: &ImportHeader) -> Result<Exit, Failure> {
    let (path, backing) = places::directory(&args.opened.place.vault)?;
    let kept = DirBacking::open(args.file.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new(".")));
    let name = args.file.file_name().unwrap_or_default().to_string_lossy();
    let text =
        kept.and_then(|dir| read_file(&dir, &name, HEADER_BYTES_MAX)).map_err(|e| Failure::io(&args.file, &e))?;
    let unlock = key::read(&args.opened.key, false)?;
    let import = imported(args, (&path, &backing), &text, &unlock).map_err(|stop| match stop {
        Stop::Fault(fault) => refused(&path, fault),
        Stop::Failure(failure) => failure,
    })?;
    let (back, away) = (import.brings_back(), import.takes_away());
    if args.opened.place.json {
        let all = |slots: &[&KeySlot]| slots.iter().map(|slot| described(slot)).collect::<Vec<_>>();
        let at = path.to_string_lossy();
        print::json(&json!({ "ok": true, "vault": at, "back": all(&back), "gone": all(&away) }))?;
        return Ok(Exit::Ok);
    }
    print::answer(&format!("{}: the header is in its place", path.display()))?;
    for (slots, what) in [(back, "opens it again:"), (away, "opens it no more:")] {
        slots.iter().try_for_each(|slot| print::answer(&format!("{what} {}", row(slot))))?;
    }
    Ok(Exit::Ok)
}

/// Puts a header that was kept in its place; of a mounted vault, its slots.
fn imported(
    args: &ImportHeader,
    (path, backing): (&Path, &Arc<dyn Backing>),
    text: &[u8],
    unlock: &Unlock,
) -> Result<Import, Stop> {
    let world: Arc<dyn World> = Arc::new(RealWorld::default());
    let remembered = (pins::stores(path, None), args.opened.accept_rollback);
    let fault = match Import::of(Arc::clone(backing), text, unlock, remembered, Arc::clone(&world)) {
        Ok(mut import) => {
            import.store()?;
            return Ok(import);
        }
        Err(SlotFault::Open(fault @ OpenFault::InUse { .. })) => fault,
        Err(other) => return Err(other.into()),
    };
    let mountpoint = mounted_at(path, fault).map_err(Stop::Failure)?;
    let attempt = || {
        let texts = HeaderTexts::read(&**backing)?.ok_or(OpenFault::NotAVault)?;
        let hand_over = mounted::hand_over(&mountpoint);
        let mut import = Import::of_mounted(&texts, text, unlock, hand_over, Arc::clone(&world))?;
        import.store()?;
        Ok(import)
    };
    match attempt() {
        Err(Stop::Fault(SlotFault::Overtaken)) => attempt(),
        other => other,
    }
}
