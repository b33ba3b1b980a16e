//! Reads everything of a vault or a mount, and says which of it is not as it was written.
//!
//! Promise: nothing of a vault is changed. 0 means that everything was read and is well; without the key it says what cannot be told.
//! Of a mount, the daemon does the reading, and this waits for it. Called by: a person, a timer.
//! On failure: damage found and a place that could not be looked at have different codes.

use super::check::{described, quoted};
use super::exit::{Exit, Failure};
use super::print::Progress;
use super::{derive, emergency, key, mounted, mounts, pins, print};
use crate::backing::{Backing, DirBacking};
use crate::base::world::{RealWorld, World};
use crate::check::{Damage, Finding, Media, Share, check_locked, scrub_media};
use crate::vault::{self, Locked, OpenFault};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often a mount is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Read everything and compare it with its checksums.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A vault's directory, not mounted; or a mountpoint
    place: PathBuf,
    /// Look at a vault without its key
    #[arg(long)]
    no_key: bool,
    #[command(flatten)]
    key: key::Source,
    /// Of a mount: most that is read in a second, in MiB; 0 for no limit
    #[arg(long, value_name = "MIB")]
    rate: Option<u32>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let path = mounts::whole_path(&args.place).map_err(|e| could_not_look(args, &e.to_string()))?;
    if mounts::at(&path)?.is_some() || mounts::answers(&path) {
        return of_mount(args, &path);
    }
    if mounts::is_vault(&path) {
        return of_vault(args, &path);
    }
    Err(Failure::new(Exit::NotAVault, format!("{} is neither a vault nor where one is mounted", path.display())))
}

fn of_vault(args: &Args, path: &Path) -> Result<Exit, Failure> {
    let refused = |fault| match fault {
        OpenFault::Backing(e) => could_not_look(args, &e.to_string()),
        other => Failure::open(path, &other),
    };
    let unlock = if args.no_key { None } else { Some(key::read(&args.key, false)?) };
    let backing = DirBacking::open(path).map_err(|e| could_not_look(args, &e.to_string()))?;
    let locked = vault::lock(Arc::new(backing)).map_err(refused)?;
    let Some(unlock) = unlock else {
        let media = look(args, &locked, |backing, tell| scrub_media(backing, None, tell))?;
        return answer(args, path, &media, &[]);
    };
    let unlock = derive::master_key(path, locked.headers(), unlock)?;
    let headers = locked.headers();
    let opened = headers.open(&unlock).map_err(|fault| Failure::open(path, &headers.or_unread(fault)))?;
    let media = look(args, &locked, |backing, tell| scrub_media(backing, Some((&opened.header, &opened.keys)), tell))?;
    let world: Arc<dyn World> = Arc::new(RealWorld::default());
    let progress = Progress::new("reading");
    // What was read above of files that no checksum names is what their frames' tags and the index say now.
    let locked = locked.remembered(pins::stores(path, None), None).finding(emergency::find);
    let findings = check_locked(locked, &unlock, &world, Share::All, &|done, total| progress.at(done, total));
    drop(progress);
    answer(args, path, &media, &findings.map_err(refused)?)
}

fn look(
    args: &Args,
    locked: &Locked,
    scrub: impl FnOnce(&Arc<dyn Backing>, &dyn Fn(u64, u64)) -> std::io::Result<Media>,
) -> Result<Media, Failure> {
    let progress = Progress::new("scrubbing");
    let looked = scrub(locked.backing(), &|done, total| progress.at(done, total));
    looked.map_err(|e| could_not_look(args, &e.to_string()))
}

fn answer(args: &Args, path: &Path, media: &Media, findings: &[Finding]) -> Result<Exit, Failure> {
    let (vault, keyed) = (quoted(path), !args.no_key);
    let clean = media.damage.is_empty() && findings.is_empty();
    if args.json {
        let damage = |d: &Damage| {
            let bytes = d.bytes();
            serde_json::json!({
                "kind": d.kind(),
                "file": d.file(),
                "from_bytes": bytes.map(|b| b.0),
                "to_bytes": bytes.and_then(|b| b.1),
                "text": d.to_string(),
                "mend": d.mend(&vault, keyed),
            })
        };
        print::json(&serde_json::json!({
            "ok": clean,
            "vault": path.to_string_lossy(),
            "key": keyed,
            "segments": media.segments,
            "snapshots": media.snapshots,
            "groups": media.groups,
            "bytes": media.bytes,
            "hole_bytes": media.hole_bytes,
            "untold_groups": media.untold_groups,
            "unfinished_segments": media.unfinished_segments,
            "damage": media.damage.iter().map(damage).collect::<Vec<_>>(),
            "findings": findings.iter().map(|f| described(f, path)).collect::<Vec<_>>(),
        }))?;
    } else {
        for d in &media.damage {
            print::answer(&format!("{d}\n    mend: {}", d.mend(&vault, keyed)))?;
        }
        for f in findings {
            print::answer(&format!("{f}\n    mend: {}", f.mend(&vault)))?;
        }
        let (at, Media { segments, groups, .. }) = (path.display(), media);
        if media.untold_groups > 0 && !keyed {
            let n = media.untold_groups;
            print::answer(&format!(
                "{at}: of {n} groups of format 1, holes cannot be told from damage without the key"
            ))?;
        }
        let n = media.damage.len() + findings.len();
        let looked = format!("{at}: {groups} groups in {segments} segments were read");
        print::answer(&match n {
            0 => format!("{looked}: clean"),
            1 => format!("{looked}: 1 finding"),
            _ => format!("{looked}: {n} findings"),
        })?;
    }
    // What the disk did not give is no damage.
    let damaged = !media.damage.is_empty() || findings.iter().any(|finding| !finding.is_unread());
    Ok(match (clean, damaged) {
        (true, _) => Exit::Ok,
        (false, true) => Exit::Findings,
        (false, false) => Exit::CouldNotLook,
    })
}

fn of_mount(args: &Args, mountpoint: &Path) -> Result<Exit, Failure> {
    if args.no_key {
        return Err(Failure::new(Exit::Usage, "--no-key is for a vault that is not mounted; a mount has its key"));
    }
    let rate = args.rate.map_or(String::new(), |rate| format!(" {rate}"));
    let order = format!("scrub{rate}");
    let refused = |e| could_not_look(args, &mounted::refusal(mountpoint, &order, &e));
    mounted::order(mountpoint, order.as_bytes()).map_err(refused)?;
    let failed = |e: &std::io::Error| could_not_look(args, &e.to_string());
    let progress = Progress::new("scrubbing");
    let shown = loop {
        let text = std::fs::read_to_string(mounts::storage(mountpoint).join("scrub")).map_err(|e| failed(&e))?;
        let shown = Shown::of(&text);
        progress.at(shown.done_bytes, shown.total_bytes.max(1));
        if shown.state != "running" {
            break shown;
        }
        std::thread::sleep(ASK_EVERY);
    };
    drop(progress);
    if shown.state != "done" {
        return Err(could_not_look(args, &format!("the scrub did not come to its end: it is {}", shown.state)));
    }
    if args.json {
        print::json(&serde_json::json!({
            "ok": shown.damaged == 0 && shown.unread == 0,
            "state": shown.state,
            "done_bytes": shown.done_bytes,
            "total_bytes": shown.total_bytes,
            "damaged": shown.damaged,
            "unread": shown.unread,
            "finished": shown.finished,
            "findings": shown.findings,
        }))?;
    } else {
        shown.findings.iter().try_for_each(|line| print::answer(line))?;
        let at = mountpoint.display();
        print::answer(&match (shown.damaged, shown.unread) {
            (0, 0) => format!("{at}: all data was read: clean"),
            (0, n) => {
                format!("{at}: the disk answers with an error for {n} ranges: look at the disk, then scrub again")
            }
            (n, _) => format!("{at}: {n} ranges do not read: restore these files from a backup, or delete them"),
        })?;
    }
    Ok(match (shown.damaged, shown.unread) {
        (0, 0) => Exit::Ok,
        (0, _) => Exit::CouldNotLook,
        (_, _) => Exit::Findings,
    })
}

/// What `.storage/scrub` says.
#[derive(Debug, Default, PartialEq)]
struct Shown {
    state: String,
    done_bytes: u64,
    total_bytes: u64,
    damaged: u64,
    unread: u64,
    finished: String,
    findings: Vec<String>,
}

impl Shown {
    fn of(text: &str) -> Shown {
        let mut shown = Shown::default();
        for line in text.lines() {
            let (name, value) = line.split_once(' ').unwrap_or((line, ""));
            let (value, number) = (value.trim(), || value.trim().parse().unwrap_or(0));
            match name {
                "state" => shown.state = value.to_owned(),
                "done_bytes" => shown.done_bytes = number(),
                "total_bytes" => shown.total_bytes = number(),
                "damaged" => shown.damaged = number(),
                "unread" => shown.unread = number(),
                "finished" => shown.finished = value.to_owned(),
                "finding" => shown.findings.push(value.to_owned()),
                _ => {}
            }
        }
        shown
    }
}

fn could_not_look(args: &Args, why: &str) -> Failure {
    Failure::new(Exit::CouldNotLook, format!("{} could not be looked at: {why}", args.place.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mount_says_is_understood() {
        let shown =
            Shown::of("state done\ndone_bytes 7\ntotal_bytes 9\ndamaged 1\nfinished x y\nfinding /a b\nnew 1\n");
        assert_eq!((shown.state.as_str(), shown.done_bytes, shown.total_bytes, shown.damaged), ("done", 7, 9, 1));
        assert_eq!((shown.finished.as_str(), shown.findings), ("x y", vec!["/a b".to_owned()]));
    }
}
