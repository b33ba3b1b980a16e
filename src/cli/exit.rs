//! The exit codes, and the sentence that goes with one.
//!
//! Promise: a code, once given, never changes its meaning; the table in `docs/cli.md` is this one (a test compares).
//! Called by: every command. Cannot fail.

use crate::seal::HeaderFault;
use crate::vault::{OpenFault, VaultFault};
use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

macro_rules! exits {
    ($($name:ident = $code:literal, $meaning:literal;)*) => {
        /// How a command ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Exit { $(#[doc = $meaning] $name = $code),* }
        impl Exit {
            /// Every code, in order.
            pub const ALL: &'static [Exit] = &[$(Exit::$name),*];
            /// What it says, as in `docs/cli.md`.
            pub fn meaning(self) -> &'static str {
                match self { $(Exit::$name => $meaning),* }
            }
        }
    };
}

exits! {
    Ok = 0, "done; for `check` and `scrub`: nothing wrong found";
    Unexpected = 1, "something that should not happen";
    Usage = 2, "the command line is wrong";
    WrongKey = 3, "the passphrase or key file does not open the vault";
    NotAVault = 4, "there is no vault in that directory";
    InUse = 5, "the vault is mounted or being worked on";
    Mountpoint = 6, "the mountpoint is missing, no directory, not empty, taken, or overlaps the vault";
    NotEmpty = 7, "`init`: the directory is not empty";
    Damaged = 8, "the vault is damaged so that it cannot be opened";
    Findings = 9, "`check`, `scrub`: damage was found, and is listed (with `--repair`: not all of it was mended)";
    CouldNotLook = 10, "`check`, `scrub`: the vault, or a part of it, could not be read, so nothing is known of that";
    Busy = 11, "`umount`: something still uses the mount (EBUSY); it stays mounted";
    FlushFailed = 12, "data could not be brought to rest";
    Io = 13, "a file or directory could not be read or written";
    Fuse = 14, "the kernel or fusermount3 refused to mount or unmount";
    NoKey = 15, "no passphrase or key could be had, or it is empty";
    NotMounted = 16, "no strongroom is mounted there";
    RolledBack = 17, "an older copy of the vault is in its place";
    Mended = 18, "`check --repair`: damage was found, and all of it was mended";
    EmergencyNeeded = 19, "the vault needs the emergency directory that it was last used with";
    Away = 20, "closed, and everything is safe, but part of it is in the emergency directory";
    SlotRefused = 21, "`key`, `rekey`: the key slots cannot be changed like that";
    Unfinished = 22, "`rekey`: part of the vault is still under an old key";
    Held = 23, "`umount`: nothing is mounted there, but a program or another mount still holds the filesystem; the vault is open";
    NoAnswer = 24, "`umount`, `status`: the daemon does not answer";
    Discarded = 25, "`umount --discard`, `--force`: unmounted, and what could not be saved is lost, as was agreed to";
}

impl Exit {
    /// The code of a number; `None` if it is none of ours.
    pub fn from_u8(n: u8) -> Option<Exit> {
        Exit::ALL.iter().copied().find(|e| *e as u8 == n)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// A command that did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// One sentence for a person, without the program's name.
    pub sentence: String,
}

impl Failure {
    /// A failure with its sentence.
    pub fn new(exit: Exit, sentence: impl Into<String>) -> Failure {
        Failure { exit, sentence: sentence.into() }
    }

    /// A file or directory that could not be used.
    pub fn io(path: &Path, e: &io::Error) -> Failure {
        Failure::new(Exit::Io, format!("{}: {e}", path.display()))
    }

    /// A vault that did not open.
    pub fn open(vault: &Path, fault: &OpenFault) -> Failure {
        let at = vault.display();
        match fault {
            OpenFault::NotEmpty => Failure::new(Exit::NotEmpty, format!("{at}: {fault}")),
            OpenFault::NotAVault => Failure::new(Exit::NotAVault, format!("{at}: {fault}")),
            OpenFault::InUse { holder } => {
                let by = match holder.trim() {
                    "" => String::new(),
                    "closing" | "closed" | "away" => " (its last mount is still closing)".to_owned(),
                    pid => format!(" (by process {pid})"),
                };
                Failure::new(Exit::InUse, format!("{at}: the vault is already in use{by}"))
            }
            OpenFault::WrongKey => Failure::new(Exit::WrongKey, format!("{at}: {fault}")),
            // Nothing is wrong with the vault: no key was had.
            OpenFault::Header(short @ HeaderFault::KeyFileTooShort { .. }) => {
                Failure::new(Exit::NoKey, format!("{at}: {short}"))
            }
            OpenFault::Header(_)
            | OpenFault::Damaged(_)
            | OpenFault::Index(_)
            | OpenFault::RootsLost
            | OpenFault::KeyMissing { .. } => Failure::new(Exit::Damaged, format!("{at}: {fault}")),
            OpenFault::RolledBack { .. } | OpenFault::HeaderPutBack { .. } | OpenFault::OlderKey { .. } => {
                Failure::new(Exit::RolledBack, format!("{at}: {fault}"))
            }
            OpenFault::EmergencyNeeded { .. } => Failure::new(Exit::EmergencyNeeded, format!("{at}: {fault}")),
            OpenFault::Backing(_) => Failure::new(Exit::Io, format!("{at}: {fault}")),
        }
    }

    /// Data that did not come to rest.
    pub fn flush(vault: &Path, fault: &VaultFault) -> Failure {
        let at = vault.display();
        Failure::new(Exit::FlushFailed, format!("{at}: not everything could be brought to rest: {fault}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_frozen() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|e| *e as u8).collect();
        assert_eq!(codes, (0..=25).collect::<Vec<u8>>(), "a script somewhere relies on these");
        assert_eq!(Exit::WrongKey as u8, 3);
        assert_eq!(Exit::from_u8(11), Some(Exit::Busy));
        assert_eq!(Exit::from_u8(99), None);
    }

    #[test]
    fn the_document_lists_every_code() {
        let document = include_str!("../../docs/cli.md");
        for exit in Exit::ALL {
            let row = format!("| {} | {} |", *exit as u8, exit.meaning());
            assert!(document.contains(&row), "docs/cli.md lacks: {row}");
        }
    }

    #[test]
    fn each_way_of_not_opening_has_its_code() {
        let vault = Path::new("/v");
        let code = |fault: OpenFault| Failure::open(vault, &fault).exit;
        assert_eq!(code(OpenFault::NotAVault), Exit::NotAVault);
        assert_eq!(code(OpenFault::WrongKey), Exit::WrongKey);
        assert_eq!(code(OpenFault::NotEmpty), Exit::NotEmpty);
        assert_eq!(code(OpenFault::Damaged("root".to_owned())), Exit::Damaged);
        assert_eq!(code(OpenFault::Backing(io::Error::other("x"))), Exit::Io);
        let in_use = Failure::open(vault, &OpenFault::InUse { holder: "123\n".to_owned() });
        assert_eq!(
            (in_use.exit, in_use.sentence.as_str()),
            (Exit::InUse, "/v: the vault is already in use (by process 123)")
        );
    }
}
