//! Gives a vault a new master key, and seals everything in it anew.
//!
//! Promise: 0 means that nothing that lies in the vault opens under an old key any more. Stopped at any moment, the vault mounts
//! and works as it is, and the same command goes on. Slots whose secret was not given go only if that is meant, and are named
//! before; a recovery key is shown once, as soon as its slot is durable.
//! Of a vault that is mounted, the new key is handed to its daemon (`mounted`), which puts it in force and seals the rest anew.
//! Called by: a person. On failure: as for `mount`; `Exit::Unfinished` where damage keeps an old key, `SlotRefused` for what
//! cannot be, `Io` where there is no room.

use super::exit::{Exit, Failure};
use super::init::Argon2;
use super::print::{self, Progress};
use super::{derive, init, key, mounted, options, pins, places, size, slots};
use crate::backing::Backing;
use crate::base::id::{Generation, KeyNumber};
use crate::base::world::{RealWorld, World};
use crate::fs::printable;
use crate::seal::{KeySlot, RecoveryKey, Unlock, seal_next_key, write_header};
use crate::vault::{self, HeaderTexts, OpenFault, OpenOptions, Plan, Rekey, RekeyFault, RekeyReport, SlotFault};
use serde_json::json;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Give a vault a new master key, and seal everything in it anew.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vault's directory; if it is mounted, the new key is in force at once, and the mount's daemon seals the rest anew
    vault: PathBuf,
    #[command(flatten)]
    key: key::Source,
    #[command(flatten)]
    also: key::AlsoSource,
    /// Leave out the key slots whose passphrase or key is not given
    #[arg(long)]
    drop_slots: bool,
    /// Leave out the slot for a recovery key, too, instead of drawing another one
    #[arg(long)]
    no_recovery_key: bool,
    /// Cost of the passphrases: KiB of memory, passes, lanes [default: as before]
    #[arg(long, value_name = "KIB,PASSES,LANES", value_parser = init::argon2)]
    argon2: Option<Argon2>,
    /// Only go on with a rekey that is unfinished
    #[arg(long, conflicts_with = "again")]
    resume: bool,
    /// Make another new key although an earlier rekey is unfinished
    #[arg(long)]
    again: bool,
    /// Leave out what does not open any more, so that it keeps no old key
    #[arg(long)]
    leave_out_damage: bool,
    /// Take an older copy of the vault although a newer one was known, if it is of this generation
    #[arg(long, value_name = "GEN", value_parser = options::generation)]
    accept_rollback: Option<Generation>,
    /// Answer in JSON: one object when there is a new key, and one at the end
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let (path, backing) = places::vault(&args.vault)?;
    let world: Arc<dyn World> = Arc::new(RealWorld::default());
    if let Err(fault @ OpenFault::InUse { .. }) = vault::lock(Arc::clone(&backing)).map(drop) {
        let Some(mountpoint) = mounted::mountpoint(&path)? else { return Err(refused(&path, fault.into())) };
        return of_mounted(args, &path, &*backing, &mountpoint, &*world);
    }
    let (secrets, unlock) = settle(args, &path, &backing, &world)?;
    let locked = vault::lock(backing).map_err(|fault| refused(&path, fault.into()))?;
    let locked = locked.remembered(pins::stores(&path, None), None);
    let mut rekey = locked.rekey(&unlock, Arc::clone(&world)).map_err(|fault| refused(&path, fault))?;
    if args.resume && !rekey.is_unfinished() {
        let number = rekey.header().key;
        return finished(args, &path, number, &RekeyReport { finished: true, ..RekeyReport::default() });
    }
    if !rekey.is_unfinished() || args.again {
        begin(args, &path, &mut rekey, &secrets, &*world)?;
    }
    let progress = Progress::new("sealing anew");
    let report = rekey.run(args.leave_out_damage, &|done, total| progress.at(done, total.max(1)));
    drop(progress);
    let report = report.map_err(|fault| refused(&path, fault))?;
    finished(args, &path, rekey.header().key, &report)
}

/// Opens the vault and closes it again, so that a checkpoint covers all of it; gives the secrets, and the key itself.
fn settle(
    args: &Args,
    path: &Path,
    backing: &Arc<dyn Backing>,
    world: &Arc<dyn World>,
) -> Result<(Vec<Unlock>, Unlock), Failure> {
    let locked = vault::lock(Arc::clone(backing)).map_err(|fault| refused(path, fault.into()))?;
    let mut secrets = vec![key::read(&args.key, false)?];
    secrets.extend(key::read_also(&args.also)?);
    key::forbid_dumps();
    secrets.iter().for_each(key::lock);
    let unlock = derive::master_key(path, locked.headers(), secrets[0].clone())?;
    let locked = locked.remembered(pins::stores(path, None), args.accept_rollback);
    let vault = locked.open(&unlock, &OpenOptions::default(), Arc::clone(world));
    let vault = vault.map_err(|fault| refused(path, fault.into()))?;
    vault.close().map_err(|fault| Failure::flush(path, &fault))?;
    Ok((secrets, unlock))
}

fn refused(path: &Path, fault: RekeyFault) -> Failure {
    let at = path.display();
    match fault {
        RekeyFault::Open(OpenFault::InUse { .. }) => {
            Failure::new(Exit::InUse, format!("{at}: the vault is in use: unmount it, then give it a new key"))
        }
        RekeyFault::Open(OpenFault::EmergencyNeeded { path }) => Failure::new(
            Exit::EmergencyNeeded,
            format!(
                "{at}: part of it may lie in the emergency directory {path}: bring it home first with strongroom recover"
            ),
        ),
        RekeyFault::Open(fault) => Failure::open(path, &fault),
        RekeyFault::Unfit(why) => Failure::new(Exit::SlotRefused, format!("{at}: {why}")),
        RekeyFault::NoRoom { need_bytes } => {
            let room = size::show(need_bytes);
            let why =
                "a segment is sealed anew beside the old one; the vault works as it is, and the same command goes on";
            Failure::new(Exit::Io, format!("{at}: {room} must be free: {why}"))
        }
    }
}

/// Makes the new key, with the slots that can stay.
fn begin(args: &Args, path: &Path, rekey: &mut Rekey, secrets: &[Unlock], world: &dyn World) -> Result<(), Failure> {
    let plan = rekey.plan(secrets, !args.no_recovery_key).map_err(|fault| refused(path, fault))?;
    must_be_meant(args, path, &plan)?;
    let drawn = plan.wants_recovery().then(|| RecoveryKey::generate(world));
    rekey.begin(&plan, drawn.as_ref(), args.argon2.map(Into::into)).map_err(|fault| refused(path, fault))?;
    begun(args, path, (rekey.header().key, &plan, drawn.as_ref()))
}

/// Refuses if slots would go, and nobody has said that they may.
fn must_be_meant(args: &Args, path: &Path, plan: &Plan) -> Result<(), Failure> {
    if plan.gone().is_empty() || args.drop_slots || is_meant(path, plan.gone())? {
        return Ok(());
    }
    let why = format!(
        "the key slots {} would go, for a new key can only be put into a slot whose secret is at hand: give it with \
         --also-password-file or --also-key-file, or say --drop-slots",
        named(plan.gone())
    );
    Err(refused(path, RekeyFault::Unfit(why)))
}

/// Tells of the new key, and shows the recovery key.
fn begun(
    args: &Args,
    path: &Path,
    (number, plan, drawn): (KeyNumber, &Plan, Option<&RecoveryKey>),
) -> Result<(), Failure> {
    if args.json {
        let gone: Vec<u32> = plan.gone().iter().map(|slot| slot.id).collect();
        let recovery = drawn.map(|key| key.text().to_string());
        let vault = path.to_string_lossy();
        return print::json(&json!({ "vault": vault, "key": number.0, "dropped": gone, "recovery_key": recovery }));
    }
    let at = path.display();
    print::answer(&format!("{at}: has a new master key, number {number}: what is written from now on is under it"))?;
    if !plan.gone().is_empty() {
        print::answer(&format!("opens it no more: {}", named(plan.gone())))?;
    }
    let Some(key) = drawn else { return Ok(()) };
    let dead = "The recovery key that was shown before, on paper or elsewhere, opens the vault no more. Replace it by this one.";
    print::answer(dead)?;
    print::recovery_key(key)
}

/// Gives a mounted vault a new key, which is in force and at work when this returns. What lies under the old one is sealed anew in the
/// background of the mount.
fn of_mounted(
    args: &Args,
    path: &Path,
    backing: &dyn Backing,
    mountpoint: &Path,
    world: &dyn World,
) -> Result<Exit, Failure> {
    let mut secrets = vec![key::read(&args.key, false)?];
    secrets.extend(key::read_also(&args.also)?);
    key::forbid_dumps();
    secrets.iter().for_each(key::lock);
    let mut attempt = 0;
    let number = loop {
        attempt += 1;
        let texts = HeaderTexts::read(backing).map_err(|e| Failure::io(path, &e))?;
        let texts = texts.ok_or_else(|| Failure::open(path, &OpenFault::NotAVault))?;
        let unlock = derive::master_key(path, &texts, secrets[0].clone())?;
        let opened = texts.open(&unlock).map_err(|fault| Failure::open(path, &fault.into()))?;
        let is_unfinished = opened.keys.old().next().is_some();
        if args.resume && !is_unfinished {
            return finished(args, path, opened.header.key, &RekeyReport { finished: true, ..RekeyReport::default() });
        }
        if args.resume || is_unfinished && !args.again {
            let said =
                "what is left of a rekey is done in the background of the mount: strongroom status says how much";
            return Err(Failure::new(Exit::Unfinished, format!("{}: {said}", path.display())));
        }
        let plan = Plan::of(&opened.header, &secrets, !args.no_recovery_key).map_err(|fault| refused(path, fault))?;
        must_be_meant(args, path, &plan)?;
        let drawn = plan.wants_recovery().then(|| RecoveryKey::generate(world));
        let how = (drawn.as_ref(), args.argon2.map(Into::into));
        let (next, master) =
            plan.next(&opened.header, &opened.keys, how, world).map_err(|fault| refused(path, fault))?;
        let text = write_header(&next, &master).map_err(|fault| Failure::open(path, &fault.into()))?;
        let sealed = seal_next_key(world, &next, opened.keys.current(), &master);
        match mounted::hand_over_key(mountpoint, &sealed, &text) {
            Err(SlotFault::Overtaken) if attempt == 1 => {}
            Err(fault) => {
                // After an error of the disk it may be in force all the same: then its recovery key must not be lost.
                let now = HeaderTexts::read(backing).ok().flatten();
                if now.is_some_and(|texts| texts.open(&Unlock::Master(master)).is_ok()) {
                    begun(args, path, (next.key, &plan, drawn.as_ref()))?;
                }
                return Err(slots::refused(path, fault));
            }
            Ok(()) => {
                begun(args, path, (next.key, &plan, drawn.as_ref()))?;
                break next.key;
            }
        }
    };
    if args.json {
        return finished(args, path, number, &RekeyReport::default());
    }
    print::answer(&format!(
        "{}: what was written before comes under it in the background: strongroom status says how much is left",
        path.display()
    ))?;
    Ok(Exit::Unfinished)
}

/// Slots, for a sentence.
fn named(all: &[KeySlot]) -> String {
    all.iter().map(slots::named).collect::<Vec<_>>().join(", ")
}

/// Asks whoever is there.
fn is_meant(path: &Path, gone: &[KeySlot]) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(false);
    }
    let at = path.display();
    print::complain(&format!("{at}: the key slots {} will open it no more; go on? (yes/no)", named(gone)));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(|e| Failure::new(Exit::Io, format!("the terminal: {e}")))?;
    Ok(matches!(answer.trim(), "yes" | "y"))
}

fn finished(args: &Args, path: &Path, number: KeyNumber, report: &RekeyReport) -> Result<Exit, Failure> {
    let exit = if report.finished { Exit::Ok } else { Exit::Unfinished };
    let shown = |path: &Option<Vec<u8>>| path.as_deref().map(printable);
    if args.json {
        let stay = report.stay.iter().map(|(id, why)| json!({ "segment": id.0, "why": why })).collect::<Vec<_>>();
        let hurt = report.hurt.iter().map(
            |h| json!({ "inode": h.ino.0, "path": shown(&h.path), "from_bytes": h.from_bytes, "to_bytes": h.to_bytes }),
        );
        print::json(&json!({
            "ok": report.finished,
            "vault": path.to_string_lossy(),
            "key": number.0,
            "segments": report.segments,
            "bytes": report.bytes,
            "finished": report.finished,
            "stay": stay,
            "damaged": hurt.collect::<Vec<_>>(),
            "log_left_out": report.log_left_out,
        }))?;
        return Ok(exit);
    }
    let at = path.display();
    for h in &report.hurt {
        let file = shown(&h.path).unwrap_or_else(|| format!("inode {}", h.ino));
        print::answer(&format!("{file}: bytes {} to {} do not read", h.from_bytes, h.to_bytes))?;
    }
    for (id, why) in &report.stay {
        print::answer(&format!("segment {id} stays under an old key: {why}"))?;
    }
    if report.log_left_out > 0 {
        print::answer(&format!("{} frames of the log did not open, and were left out", report.log_left_out))?;
    }
    let done = format!("{at}: {} segments ({}) were sealed anew", report.segments, size::show(report.bytes));
    print::answer(&match report.finished {
        true => format!("{done}; no old key opens anything in it"),
        false => format!(
            "{done}; the old key stays, because of what is damaged: restore or delete these files and say strongroom rekey \
             again, or let what does not open go with --leave-out-damage"
        ),
    })?;
    Ok(exit)
}
