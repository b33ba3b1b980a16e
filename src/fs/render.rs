//! The texts of `/.storage`.
//!
//! Promise: finite, made at once from one reading of the numbers, and free of content, keys and names, but for the paths in
//! `unsaved` and `scrub` and the mount's own in `metrics`, which is Prometheus text exposition. `stats.json` has every number.
//! Called by: `storage`. On failure: the vault's.

use super::paths::{named, paths_of, refused_files};
use super::{FileSystem, FsFault, OpKind};
use crate::base::histogram::{EDGES_US, Histogram, Snapshot};
use crate::base::limits;
use crate::base::world::Time;
use crate::vault::Line;
use crate::vault::{Gauges, State, Stats, Usage, Vault};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::sync::atomic::Ordering::SeqCst;

fn histograms(s: &Stats) -> Vec<(&'static str, &'static str, Snapshot)> {
    let h = Histogram::snapshot;
    vec![
        ("writer_wait", "Waits of writers for the byte budget.", h(&s.writer_wait)),
        ("compress", "Compressing one chunk.", h(&s.compress)),
        ("encrypt", "Encrypting one chunk.", h(&s.encrypt)),
        ("log_write", "One disk write of the log.", h(&s.log_write)),
        ("device_flush", "One device flush.", h(&s.device_flush)),
        ("verify", "Reading back one group.", h(&s.verify)),
        ("commit", "From the start of a commit to its durability.", h(&s.commit)),
        ("fsync", "From an fsync's arrival to its answer.", h(&s.fsync)),
        ("checkpoint", "One checkpoint.", h(&s.checkpoint)),
        ("frame_read", "Reading and opening frames for a reader.", h(&s.frame_read)),
    ]
}

fn gauges(g: &Gauges, usage: &Usage, vault: &Vault, nodes: usize) -> Vec<(&'static str, &'static str, u64)> {
    vec![
        ("pending_bytes", "Bytes handed over by the kernel and not yet durable.", vault.pending_bytes()),
        (
            "held_bytes",
            "Bytes of the kernel's cache that wait for room; part of pending_bytes.",
            vault.stats().unwritten.held_bytes(),
        ),
        ("used_bytes", "Bytes of files that are not holes.", usage.bytes),
        ("quota_bytes", "Quota of bytes; 0 for none.", usage.quota_bytes.unwrap_or(0)),
        ("used_inodes", "Inodes in being.", usage.inodes),
        ("quota_inodes", "Quota of inodes; 0 for none.", usage.quota_inodes.unwrap_or(0)),
        (
            "backing_free_bytes",
            "Room left in the backing filesystem, the reserve taken off; 0 if it does not say.",
            usage.backing.map_or(0, |space| space.free_bytes),
        ),
        (
            "backing_total_bytes",
            "Size of the backing filesystem; 0 if it does not say.",
            usage.backing.map_or(0, |space| space.total_bytes),
        ),
        ("nodes", "Inodes held in memory.", nodes as u64),
        ("budget_bytes", "The byte budget.", g.budget_bytes),
        ("dirty_bytes", "Bytes in buffers.", g.dirty_bytes),
        ("dirty_limit_bytes", "Most bytes in buffers.", g.dirty_limit_bytes),
        ("in_flight_bytes", "Bytes being sealed, written and verified.", g.in_flight_bytes),
        ("cache_bytes", "Bytes of decoded frames kept.", g.cache_bytes),
        ("cache_limit_bytes", "Most bytes of decoded frames kept.", g.cache_limit_bytes),
        ("overlay_entries", "Entries of the index not yet stored.", g.overlay_entries),
        ("overlay_bytes", "Bytes of these entries.", g.overlay_bytes),
        ("waiting_writers", "Writers waiting for the byte budget.", g.waiting_writers),
        ("over_returned_bytes", "Bytes given back to the budget twice; any are a fault.", g.over_returned_bytes),
        ("sealer_queue", "Chunks waiting for a worker.", g.sealer_queue),
        ("ahead_queue", "Pieces of files waiting to be read ahead.", g.ahead_queue),
        ("log_queue", "Frames waiting for the log writer.", g.log_queue),
        ("verify_queue", "Groups waiting to be read back.", g.verify_queue),
        ("workers", "Workers.", g.workers),
        ("segments", "Segments.", g.segments),
        ("epoch", "The lease of this mount.", g.epoch),
        ("generation", "The newest root.", g.generation),
        ("commit_seq", "The newest commit.", g.commit_seq),
        ("snapshot_commit", "The commit that the newest snapshot of the index covers; 0 for none.", g.snapshot_commit),
        ("snapshot_bytes", "Bytes of the newest snapshot of the index.", g.snapshot_bytes),
        ("snapshots_kept", "Snapshots of the index that are kept.", g.snapshots_kept),
    ]
}

impl FileSystem {
    /// The text of one file.
    pub(super) fn render(&self, file: &str) -> Result<String, FsFault> {
        let vault = &*self.vault;
        let stats = vault.stats();
        Ok(match file {
            "state" => format!("{}\n", vault.state()),
            "pending" => format!("{}\n", vault.pending_bytes()),
            "unsaved" => unsaved(vault),
            "status" => self.status()?,
            "stats.json" => self.stats_json()?,
            "metrics" => self.metrics()?,
            "history" => lines(&stats.history()),
            "errors" => lines(&stats.errors()),
            "buffers" => self.gauge_table(&[
                "pending_bytes",
                "held_bytes",
                "budget_bytes",
                "dirty_bytes",
                "dirty_limit_bytes",
                "in_flight_bytes",
                "cache_bytes",
                "cache_limit_bytes",
                "overlay_entries",
                "overlay_bytes",
                "waiting_writers",
            ])?,
            "workers" => {
                let queues =
                    self.gauge_table(&["workers", "sealer_queue", "log_queue", "verify_queue", "ahead_queue"])?;
                format!("{queues}read-back     {}\n", vault.verify_source())
            }
            "quota" => self.quota_text()?,
            "config" => {
                let mut rows = vault.settings();
                rows.extend(Self::limits());
                rows.extend(self.told.clone());
                table(&rows)
            }
            "version" => {
                format!("strongroom {}\nformat {}\n", env!("CARGO_PKG_VERSION"), crate::format::FORMAT_VERSION)
            }
            "scrub" => self.scrub()?,
            _ => return Err(FsFault::NoEntry),
        })
    }

    /// What there may be at most.
    fn limits() -> [(&'static str, String); 7] {
        [
            ("name_bytes_max", limits::NAME_BYTES_MAX.to_string()),
            ("symlink_bytes_max", limits::SYMLINK_BYTES_MAX.to_string()),
            ("xattr_value_bytes_max", limits::XATTR_VALUE_BYTES_MAX.to_string()),
            ("xattr_list_bytes_max", limits::XATTR_LIST_BYTES_MAX.to_string()),
            ("links_max", limits::LINKS_MAX.to_string()),
            ("file_bytes_max", limits::FILE_BYTES_MAX.to_string()),
            ("requests_in_background_max", limits::FUSE_BACKGROUND_MAX.to_string()),
        ]
    }

    fn gauges(&self) -> Result<Vec<(&'static str, &'static str, u64)>, FsFault> {
        let vault = &*self.vault;
        Ok(gauges(&vault.gauges(), &vault.usage(), vault, self.nodes.count()))
    }

    fn gauge_table(&self, which: &[&str]) -> Result<String, FsFault> {
        let rows: Vec<_> =
            self.gauges()?.into_iter().filter(|g| which.contains(&g.0)).map(|g| (g.0, g.2.to_string())).collect();
        Ok(table(&rows))
    }

    /// What `/.storage/quota` shows.
    pub fn quota_text(&self) -> Result<String, FsFault> {
        let usage = self.vault.usage();
        let quota = |q: Option<u64>| q.map_or("none".to_owned(), |q| q.to_string());
        let vault = table(&[
            ("used_bytes", usage.bytes.to_string()),
            ("quota_bytes", quota(usage.quota_bytes)),
            ("used_inodes", usage.inodes.to_string()),
            ("quota_inodes", quota(usage.quota_inodes)),
            ("write_back", if self.keeps_writes.load(SeqCst) { "on" } else { "off" }.to_owned()),
        ]);
        Ok(vault + &self.quota_lines())
    }

    fn scrub(&self) -> Result<String, FsFault> {
        let r = self.vault.scrub_report()?;
        let mut text = table(&[
            ("state", r.state.word().to_owned()),
            ("position", format!("inode {} byte {}", r.mark.ino, r.mark.offset_bytes)),
            ("done_bytes", r.mark.done_bytes.to_string()),
            ("total_bytes", r.total_bytes.to_string()),
            ("rate_bytes", r.rate_bytes.to_string()),
            ("damaged", r.mark.damaged.to_string()),
            ("unread", r.unread.to_string()),
            ("finished", r.finished().map_or("never".to_owned(), stamp)),
        ]);
        for h in &r.hurt {
            let named = h.path.as_ref().map(|path| format!("{} ", path.escape_ascii()));
            let (named, ino, from, to) = (named.unwrap_or_default(), h.ino, h.from_bytes, h.to_bytes);
            let what = if h.is_unread { "could not be read: the disk answers with an error" } else { "do not read" };
            text.push_str(&format!("finding {named}(inode {ino}): bytes {from} to {to} {what}\n"));
        }
        Ok(text)
    }

    fn status(&self) -> Result<String, FsFault> {
        let vault = &*self.vault;
        let (stats, usage) = (vault.stats(), vault.usage());
        let of = |used: String, quota: Option<String>| quota.map_or(used.clone(), |q| format!("{used} of {q}"));
        let (plain, sealed) = (stats.sealed_plain_bytes.get(), stats.sealed_bytes.get());
        let ratio = if sealed == 0 { "-".to_owned() } else { format!("{:.2}", plain as f64 / sealed as f64) };
        let fsync = stats.fsync.snapshot();
        let fsync = match fsync.count() {
            0 => "none yet".to_owned(),
            n => format!("{n}, p50 {}, p99 {}", latency(fsync.quantile_us(0.5)), latency(fsync.quantile_us(0.99))),
        };
        let errors = stats.errors();
        let last = errors.last().map_or(String::new(), |e| format!(", last {} {}", stamp(e.last()), e.text));
        let mut rows = vec![
            ("state", vault.state().to_string()),
            ("not yet safe", format!("{} of what the kernel has handed over", bytes(vault.pending_bytes()))),
            ("used", of(bytes(usage.bytes), usage.quota_bytes.map(bytes))),
            ("inodes", of(usage.inodes.to_string(), usage.quota_inodes.map(|q| q.to_string()))),
            ("backing free", usage.backing.map_or("not known".to_owned(), |space| bytes(space.free_bytes))),
            ("written", bytes(stats.written_bytes.get())),
            ("read", bytes(stats.read_bytes.get())),
            ("verified", bytes(stats.verified_bytes.get())),
            ("compression", ratio),
            ("fsyncs", fsync),
            ("errors", format!("{}{last}", stats.error_count())),
            (
                "emergency",
                if vault.is_away() { "segments lie in the emergency directory" } else { "not in use" }.to_owned(),
            ),
        ];
        let gauges = vault.gauges();
        let snapshot = match gauges.snapshots_kept {
            0 => "none yet".to_owned(),
            n => format!("of commit {}, {}; {n} kept", gauges.snapshot_commit, bytes(gauges.snapshot_bytes)),
        };
        rows.push(("snapshot", snapshot));
        rows.extend(vault.older_state().map(|which| ("older state", which.to_owned())));
        if vault.has_old_keys() {
            let left = match vault.left_to_rekey() {
                Some((segments, left)) => {
                    format!("unfinished: {} in {segments} segments are under an old key", bytes(left))
                }
                None => "unfinished: what is under an old key is being counted".to_owned(),
            };
            rows.push(("rekey", left));
        }
        let warnings: Vec<_> = self.quota_warnings().into_iter().map(|warning| ("quota       ", warning)).collect();
        Ok(table(&rows) + &table(&warnings))
    }

    fn stats_json(&self) -> Result<String, FsFault> {
        let vault = &*self.vault;
        let stats = vault.stats();
        let numbers = |list: Vec<(&'static str, &'static str, u64)>| -> Map<String, Value> {
            list.into_iter().map(|(name, _, n)| (name.to_owned(), n.into())).collect()
        };
        let operations: Map<String, Value> = OpKind::ALL
            .iter()
            .map(|&kind| {
                let stat = self.ops.of(kind);
                let mut value = histogram_json(&stat.latency.snapshot());
                value["failures"] = stat.failures.get().into();
                value["under_way"] = stat.under_way().into();
                (kind.name().to_owned(), value)
            })
            .collect();
        let latencies: Map<String, Value> =
            histograms(stats).iter().map(|(name, _, h)| ((*name).to_owned(), histogram_json(h))).collect();
        let states: Map<String, Value> = State::ALL
            .into_iter()
            .zip(vault.states())
            .map(|(s, held)| (s.to_string(), json!({ "entered": held.entered, "ms": held.time.as_millis() as u64 })))
            .collect();
        let text = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "state": vault.state().word(),
            "states": states,
            "totals": vault.totals(),
            "counters": numbers(stats.counters()),
            "gauges": numbers(self.gauges()?),
            "errors": stats.error_count(),
            // Not 0 while nobody has counted.
            "rekey_left_bytes": match vault.left_to_rekey() {
                Some((_, left)) => Value::from(left),
                None if vault.has_old_keys() => Value::Null,
                None => Value::from(0),
            },
            "latency_edges_us": EDGES_US,
            "latencies": latencies,
            "operations": operations,
        });
        Ok(format!("{text:#}\n"))
    }

    fn metrics(&self) -> Result<String, FsFault> {
        let vault = &*self.vault;
        let stats = vault.stats();
        let mut out = Exposition { out: String::new(), common: self.labels.clone() };
        for (name, help, n) in stats.counters() {
            out.header(&format!("{name}_total"), help, "counter");
            out.line(&format!("{name}_total"), "", &n.to_string());
        }
        for (name, help, n) in self.gauges()? {
            out.header(name, help, "gauge");
            out.line(name, "", &n.to_string());
        }
        out.header("info", "State and version.", "gauge");
        let labels = format!("state=\"{}\",version=\"{}\"", vault.state(), env!("CARGO_PKG_VERSION"));
        out.line("info", &labels, "1");
        out.header("state_entered_total", "Times that a state was entered.", "counter");
        for (state, held) in State::ALL.into_iter().zip(vault.states()) {
            out.line("state_entered_total", &format!("state=\"{state}\""), &held.entered.to_string());
        }
        out.header("state_seconds_total", "Time spent in a state.", "counter");
        for (state, held) in State::ALL.into_iter().zip(vault.states()) {
            out.line("state_seconds_total", &format!("state=\"{state}\""), &held.time.as_secs_f64().to_string());
        }
        out.header("errors", "Errors in the error list, each repetition counted.", "gauge");
        out.line("errors", "", &stats.error_count().to_string());
        for (name, help, h) in histograms(stats) {
            let name = format!("{name}_seconds");
            out.header(&name, help, "histogram");
            out.histogram(&name, "", &h);
        }
        for (name, help, values) in self.quota_metrics().into_iter().filter(|(_, _, values)| !values.is_empty()) {
            out.header(name, help, "gauge");
            values.iter().for_each(|(labels, value)| out.line(name, labels, value));
        }
        out.header("operation_seconds", "Operations asked for by the kernel.", "histogram");
        for &kind in OpKind::ALL {
            let label = format!("operation=\"{}\"", kind.name());
            out.histogram("operation_seconds", &label, &self.ops.of(kind).latency.snapshot());
        }
        out.header("operation_failures_total", "Operations answered with an error.", "counter");
        for &kind in OpKind::ALL {
            let label = format!("operation=\"{}\"", kind.name());
            out.line("operation_failures_total", &label, &self.ops.of(kind).failures.get().to_string());
        }
        Ok(out.out)
    }
}

/// A line with the path of each file that has changes which are not safe yet, or lacks bytes that were refused.
fn unsaved(vault: &Vault) -> String {
    let unsaved = paths_of(vault, &vault.unsaved()).into_iter().map(|(ino, path)| named(ino, path.as_deref()) + "\n");
    unsaved.chain(refused_files(vault).iter().map(|file| format!("{file}\n"))).collect()
}

/// Prometheus text exposition, in which every sample names the vault and the mountpoint: the files of several mounts may
/// then be scraped together.
struct Exposition {
    out: String,
    /// Labels of every sample, as text; may be empty.
    common: String,
}

impl Exposition {
    fn header(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.out, "# HELP strongroom_{name} {help}\n# TYPE strongroom_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: &str) {
        let comma = if self.common.is_empty() || labels.is_empty() { "" } else { "," };
        let all = format!("{}{comma}{labels}", self.common);
        let _ = match all.as_str() {
            "" => writeln!(self.out, "strongroom_{name} {value}"),
            all => writeln!(self.out, "strongroom_{name}{{{all}}} {value}"),
        };
    }

    fn histogram(&mut self, name: &str, labels: &str, h: &Snapshot) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut sum = 0;
        for (i, n) in h.buckets.iter().enumerate() {
            sum += n;
            let edge = EDGES_US.get(i).map_or("+Inf".to_owned(), |&us| format!("{}", us as f64 / 1e6));
            self.line(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"{edge}\""), &sum.to_string());
        }
        self.line(&format!("{name}_sum"), labels, &format!("{}", h.sum_ns as f64 / 1e9));
        self.line(&format!("{name}_count"), labels, &sum.to_string());
    }
}

/// A path as the value of a label. What is not UTF-8 is written out by its bytes, so that no two paths look alike.
fn label_value(path: &[u8]) -> String {
    let mut value = String::new();
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' | '"' => value.extend(['\\', c]),
                '\n' => value.push_str("\\n"),
                c => value.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(value, "\\\\x{byte:02x}");
        }
    }
    value
}

/// The labels of a mount's metrics.
pub(super) fn labels(vault: &[u8], mountpoint: &[u8]) -> String {
    format!("vault=\"{}\",mountpoint=\"{}\"", label_value(vault), label_value(mountpoint))
}

fn histogram_json(h: &Snapshot) -> Value {
    json!({
        "count": h.count(),
        "sum_ns": h.sum_ns,
        "p50_us": h.quantile_us(0.5),
        "p99_us": h.quantile_us(0.99),
        "buckets": h.buckets.to_vec(),
    })
}

/// Two aligned columns.
fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

fn lines(lines: &[Line]) -> String {
    let line = |l: &Line| match l.repeats {
        None => format!("{} {}\n", stamp(l.at), l.text),
        Some(_) => format!("{} {} ({} times, last {})\n", stamp(l.at), l.text, l.times(), stamp(l.last())),
    };
    lines.iter().map(line).collect()
}

fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

fn latency(us: u64) -> String {
    match us {
        u64::MAX => "over 10 s".to_owned(),
        1_000_000.. => format!("{} s", us / 1_000_000),
        1_000.. => format!("{} ms", us / 1_000),
        _ => format!("{us} µs"),
    }
}

/// RFC 3339, UTC, to the millisecond. Days to a date: the proleptic Gregorian calendar in eras of 400 years, each
/// beginning on 1 March so that the leap day comes last.
fn stamp(at: Time) -> String {
    const ERA_DAYS: i64 = 146_097;
    const DAYS_0000_03_01_TO_1970: i64 = 719_468;
    let (days, second) = (at.seconds.div_euclid(86_400), at.seconds.rem_euclid(86_400));
    let days = days + DAYS_0000_03_01_TO_1970;
    let (era, day) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", at.nanos / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn stamps_are_dates() {
        let at = |seconds| stamp(Time { seconds, nanos: 5_000_000 });
        assert_eq!(at(0), "1970-01-01T00:00:00.005Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.005Z");
        assert_eq!(at(1_795_377_599), "2026-11-22T19:59:59.005Z");
        assert_eq!(at(-1), "1969-12-31T23:59:59.005Z");
    }

    #[test]
    fn a_repeated_error_is_one_line_with_its_count() {
        let at = |seconds| Time { seconds, nanos: 0 };
        let stats = crate::vault::Stats::default();
        stats.error(at(0), "the disk".to_owned());
        assert_eq!(lines(&stats.errors()), "1970-01-01T00:00:00.000Z the disk\n");
        stats.error(at(1), "the disk".to_owned());
        stats.error(at(2), "the disk".to_owned());
        let told = "1970-01-01T00:00:00.000Z the disk (3 times, last 1970-01-01T00:00:02.000Z)\n";
        assert_eq!(lines(&stats.errors()), told);
    }

    #[test]
    fn histogram_buckets_add_up() {
        let h = Histogram::default();
        h.record(Duration::from_micros(1));
        h.record(Duration::from_secs(100));
        let mut exposition = Exposition { out: String::new(), common: String::new() };
        exposition.histogram("x_seconds", "a=\"b\"", &h.snapshot());
        let out = exposition.out;
        assert!(out.starts_with("strongroom_x_seconds_bucket{a=\"b\",le=\"0.000001\"} 1\n"), "{out}");
        assert!(out.contains("le=\"10\"} 1\n") && out.contains("le=\"+Inf\"} 2\n"), "{out}");
        assert!(out.ends_with("strongroom_x_seconds_sum{a=\"b\"} 100.000001\nstrongroom_x_seconds_count{a=\"b\"} 2\n"));
    }

    #[test]
    fn samples_name_their_mount_and_nothing_in_a_path_ends_a_label() {
        let mut exposition = Exposition { out: String::new(), common: labels(b"/v\"\\\n", b"/m\xff") };
        exposition.line("x", "", "1");
        exposition.line("y", "a=\"b\"", "2");
        let common = "vault=\"/v\\\"\\\\\\n\",mountpoint=\"/m\\\\xff\"";
        assert_eq!(exposition.out, format!("strongroom_x{{{common}}} 1\nstrongroom_y{{{common},a=\"b\"}} 2\n"));
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!((bytes(1023), bytes(1536)), ("1023 B".to_owned(), "1.5 KiB".to_owned()));
        assert_eq!(
            (latency(500), latency(2_000), latency(u64::MAX)),
            ("500 µs".into(), "2 ms".into(), "over 10 s".into())
        );
    }
}
