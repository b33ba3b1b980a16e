//! Everything that reaches the terminal.
//!
//! Promise: answers go to stdout, complaints to stderr; a progress bar is shown on a terminal only, and only once the
//! work has taken a second. Called by: every command. On failure: `Exit::Io`, except a reader who left early (`| head`).

use super::exit::{Exit, Failure};
use crate::base::world::{RealWorld, Time, World};
use crate::seal::RecoveryKey;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;
use zeroize::Zeroizing;

/// Work shorter than this shows no bar.
const BAR_AFTER: Duration = Duration::from_secs(1);

/// Writes an answer, ending its line.
pub fn answer(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{end}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(Exit::Io, format!("stdout: {e}"))),
        _ => Ok(()),
    }
}

/// Shows a recovery key, this once.
pub fn recovery_key(key: &RecoveryKey) -> Result<(), Failure> {
    let text = key.text();
    let told =
        "Recovery key, shown this once: write it down, and keep it away from the vault. It opens the vault alone.";
    answer(&Zeroizing::new(format!("{told}\n\n    {}\n", *text)))
}

/// Writes an answer for a program.
pub fn json(value: &serde_json::Value) -> Result<(), Failure> {
    answer(&format!("{value:#}"))
}

/// Writes a complaint or a warning.
pub fn complain(text: &str) {
    // There is nobody left to tell that stderr is gone.
    let _ = writeln!(io::stderr(), "strongroom: {text}");
}

/// Progress of something that may take long.
pub struct Progress {
    world: RealWorld,
    what: &'static str,
    bar: OnceLock<ProgressBar>,
}

impl Progress {
    /// Begins; nothing is shown yet.
    pub fn new(what: &'static str) -> Progress {
        Progress { world: RealWorld::default(), what, bar: OnceLock::new() }
    }

    /// Tells how many bytes of how many are done; a total of 0 means that nobody knows.
    pub fn at(&self, done_bytes: u64, total_bytes: u64) {
        if self.world.elapsed() < BAR_AFTER || !io::stderr().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_init(|| {
            let bar = if total_bytes == 0 { ProgressBar::new_spinner() } else { ProgressBar::new(total_bytes) };
            if total_bytes != 0 {
                let style = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
                bar.set_style(ProgressStyle::with_template(style).expect("the template is a constant that parses"));
            }
            bar.set_message(self.what);
            bar
        });
        if total_bytes != 0 {
            bar.set_length(total_bytes);
        }
        bar.set_position(done_bytes);
        bar.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}

/// A moment as `2026-01-31 23:59:59 UTC`.
pub fn utc(at: Time) -> String {
    let (days, second) = (at.seconds.div_euclid(86_400), at.seconds.rem_euclid(86_400));
    // Days since 0000-03-01 in eras of 400 years: the leap day is then the last of its year, and needs no exception.
    let day = days + 719_468;
    let (era, day_of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates() {
        let at = |seconds| utc(Time { seconds, nanos: 0 });
        assert_eq!(at(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(at(-1), "1969-12-31 23:59:59 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(at(1_769_903_999), "2026-01-31 23:59:59 UTC");
        assert_eq!(at(4_107_542_400), "2100-03-01 00:00:00 UTC");
    }
}
