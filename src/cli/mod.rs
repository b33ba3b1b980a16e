//! What a person types, and what they read back: the only layer that prints. `docs/cli.md` is the contract.
//!
//! Promise: every command ends in one of the exit codes of `exit::Exit`; a failure is one sentence on stderr that names
//! the thing that failed; a passphrase is never an argument, and never shown.
//! Called by: `main`. On failure: the sentence, then the code; with `--json` also an object on stdout.

mod check;
mod daemon;
mod derive;
mod emergency;
mod ending;
mod exit;
mod flush;
mod holders;
mod init;
mod key;
mod last_word;
mod log;
mod mount;
mod mounted;
mod mounter;
mod mounts;
mod names;
mod options;
mod pins;
mod places;
mod print;
mod process;
mod prompt;
mod quota;
mod reach;
mod recover;
mod refused;
mod rekey;
mod sandbox;
mod scrub;
mod size;
mod slots;
mod status;
mod taker;
mod umount;
mod write_back;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use exit::{Exit, Failure};
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// An encrypted, verified, crash-safe filesystem in a directory.
///
/// A vault is a directory of encrypted segments; mounted, it is an ordinary directory. `cat MNT/.storage/status` shows
/// what it is doing.
#[derive(Debug, Parser)]
#[command(name = "strongroom", version, arg_required_else_help = true, max_term_width = 100)]
#[command(
    after_help = "Exit codes are stable: 0 ok, 2 usage, 3 wrong key, 5 vault in use; --help lists all",
    after_long_help = exit_codes()
)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a vault in a new or empty directory
    Init(init::Args),
    /// Mount a vault; returns once the mount is live, and a daemon stays behind
    Mount(Box<mount::Args>),
    /// Flush and unmount; returns once everything is durable
    Umount(umount::Args),
    /// Show how a mount or a vault is doing; without an argument, list the mounts
    Status(status::Args),
    /// Check a vault for damage, and repair it if asked to
    Check(check::Args),
    /// Read everything and compare it with its checksums; of a vault or a mount, with or without the key
    Scrub(scrub::Args),
    /// Copy back what lies in an emergency directory, without mounting
    Recover(recover::Args),
    /// Show and change what opens a vault: its passphrases, key files and recovery keys
    Key(slots::Args),
    /// Set, show and check quotas of directories, users and groups
    Quota(quota::Args),
    /// Give a vault a new master key, and seal everything in it anew
    Rekey(rekey::Args),
}

/// Every exit code, for `--help`.
fn exit_codes() -> String {
    let line = |exit: &Exit| format!("\n  {:>2}  {}", *exit as u8, exit.meaning().replace('`', ""));
    let codes: String = Exit::ALL.iter().map(line).collect();
    format!(
        "Exit codes, which are stable:{codes}\n\nA command that a signal ends has none of these (Ctrl-C: 130 in a shell)."
    )
}

/// Does what the command line says.
pub fn run(line: impl IntoIterator<Item = OsString>) -> ExitCode {
    process::prepare();
    let words: Vec<OsString> = line.into_iter().collect();
    let line = match Line::try_parse_from(&words) {
        Ok(line) => line,
        Err(e) if e.use_stderr() && e.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let json = words.iter().any(|word| word == "--json");
            report(&Failure::new(Exit::Usage, misread(&e.render().to_string())), json);
            return Exit::Usage.into();
        }
        Err(e) => {
            // Help and version are no failures, and a closed pipe is no news.
            let _ = e.print();
            return if e.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    let json = match &line.command {
        Command::Mount(_) => false,
        Command::Umount(args) => args.json,
        Command::Init(args) => args.json,
        Command::Status(args) => args.json,
        Command::Check(args) => args.json,
        Command::Scrub(args) => args.json,
        Command::Recover(args) => args.json,
        Command::Key(args) => args.is_json(),
        Command::Quota(args) => args.is_json(),
        Command::Rekey(args) => args.json,
    };
    let run = || match &line.command {
        Command::Init(args) => init::run(args),
        Command::Mount(args) => mount::run(args),
        Command::Umount(args) => umount::run(args),
        Command::Status(args) => status::run(args),
        Command::Check(args) => check::run(args),
        Command::Scrub(args) => scrub::run(args),
        Command::Recover(args) => recover::run(args),
        Command::Key(args) => slots::run(args),
        Command::Quota(args) => quota::run(args),
        Command::Rekey(args) => rekey::run(args),
    };
    // A panic has been printed where it happened; it ends in a code of ours, too. Nothing of what it may have left half
    // done is used again.
    match catch_unwind(AssertUnwindSafe(run)) {
        Err(_) => Exit::Unexpected.into(),
        Ok(Ok(exit)) => exit.into(),
        Ok(Err(failure)) => {
            report(&failure, json);
            failure.exit.into()
        }
    }
}

/// What the parser says of a command line that is wrong, as one of our own complaints.
fn misread(rendered: &str) -> String {
    let text = rendered.trim();
    text.strip_prefix("error: ").unwrap_or(text).to_owned()
}

fn report(failure: &Failure, json: bool) {
    print::complain(&failure.sentence);
    if json {
        let told = serde_json::json!({ "ok": false, "exit": failure.exit as u8, "error": failure.sentence });
        // The sentence is on stderr already; a stdout that is gone changes nothing.
        let _ = print::json(&told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Line::command().debug_assert();
    }

    #[test]
    fn what_does_not_exist_yet_is_not_offered() {
        let names: Vec<_> = Line::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
        assert_eq!(names, ["init", "mount", "umount", "status", "check", "scrub", "recover", "key", "quota", "rekey"]);
    }

    #[test]
    fn a_passphrase_cannot_be_an_argument() {
        let line = Line::command();
        let all = line.get_subcommands().flat_map(|command| [command].into_iter().chain(command.get_subcommands()));
        for command in all {
            for argument in command.get_arguments() {
                let name = argument.get_long().unwrap_or_default();
                assert!(
                    !matches!(name, "password" | "passphrase" | "key" | "recovery-key" | "new-password"),
                    "--{name} would show in ps"
                );
            }
        }
    }
}
