//! Where the passphrase or key comes from.
//!
//! Promise: never from the command line or the environment's text; a passphrase file's one trailing newline is no part
//! of the passphrase; an empty secret is refused. In order: `--password-file`, `--key-file`, `--password-fd`, the
//! credential `strongroom.passphrase` that systemd hands over, a prompt on the terminal.
//! Called by: `init`, `mount`, `check`, before any daemon is split off. On failure: `Exit::NoKey`.

use super::exit::{Exit, Failure};
use super::print;
use crate::base::secret::{self, Passphrase};
use crate::seal::Unlock;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroize;

/// Most bytes taken from a passphrase or key file: more is a mistake (a disk image, `/dev/zero`), not a key.
const SECRET_BYTES_MAX: u64 = 1 << 20;
/// The name of the credential in `$CREDENTIALS_DIRECTORY`.
const CREDENTIAL: &str = "strongroom.passphrase";

/// The options that say where the key is.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(multiple = false)]
pub struct Source {
    /// Read the passphrase from this file; one trailing newline is not part of it
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Use this file's content as the key
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Read the passphrase from this open file descriptor
    #[arg(long, value_name = "N")]
    pub password_fd: Option<i32>,
}

impl Source {
    /// Whether nothing was said.
    pub fn is_unsaid(&self) -> bool {
        self.password_file.is_none() && self.key_file.is_none() && self.password_fd.is_none()
    }
}

/// Reads the key; `new` asks twice at the prompt.
pub fn read(source: &Source, new: bool) -> Result<Unlock, Failure> {
    if let Some(path) = &source.key_file {
        return Ok(Unlock::KeyFile(some(from_path(path)?, path)?));
    }
    if let Some(path) = &source.password_file {
        return Ok(Unlock::Passphrase(some(without_newline(from_path(path)?), path)?));
    }
    if let Some(fd) = source.password_fd {
        let name = PathBuf::from(format!("file descriptor {fd}"));
        return Ok(Unlock::Passphrase(some(without_newline(from_fd(fd, &name)?), &name)?));
    }
    if let Some(path) = credential() {
        return Ok(Unlock::Passphrase(some(without_newline(from_path(&path)?), &path)?));
    }
    prompt(new).map(Unlock::Passphrase)
}

fn credential() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join(CREDENTIAL);
    path.is_file().then_some(path)
}

fn prompt(new: bool) -> Result<Passphrase, Failure> {
    let ask = |text: &str| {
        rpassword::prompt_password(text).map(|typed| Passphrase(typed.into_bytes())).map_err(|e| {
            let other = "use --password-file, --key-file or --password-fd";
            Failure::new(Exit::NoKey, format!("no passphrase: nobody to ask on a terminal ({e}); {other}"))
        })
    };
    let first = ask(if new { "New passphrase: " } else { "Passphrase: " })?;
    if new && !first.0.is_empty() && ask("The same again: ")?.0 != first.0 {
        return Err(Failure::new(Exit::NoKey, "the two passphrases differ"));
    }
    some(first, Path::new("the terminal"))
}

fn from_path(path: &Path) -> Result<Passphrase, Failure> {
    let named = |e: &std::io::Error| Failure::new(Exit::NoKey, format!("{}: {e}", path.display()));
    let mut file = File::open(path).map_err(|e| named(&e))?;
    let meta = file.metadata().map_err(|e| named(&e))?;
    if meta.is_file() && meta.mode() & 0o044 != 0 {
        print::complain(&format!("warning: {} can be read by other users (chmod 600 it)", path.display()));
    }
    all(&mut file, path)
}

fn from_fd(fd: RawFd, name: &Path) -> Result<Passphrase, Failure> {
    // SAFETY: F_GETFD only asks whether the descriptor is open.
    if fd <= 2 && fd != 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(Failure::new(Exit::NoKey, format!("{} is not open for reading", name.display())));
    }
    // SAFETY: it is open, was given to us by number for this one use, and nothing else in this process uses it; a
    // duplicate is read, so that descriptor 0 stays taken and no later file lands there.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(Failure::new(Exit::NoKey, format!("{}: {}", name.display(), std::io::Error::last_os_error())));
    }
    // SAFETY: the kernel just gave us this descriptor.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(copy) });
    debug_assert!(file.as_raw_fd() >= 3);
    all(&mut file, name)
}

fn all(file: &mut File, name: &Path) -> Result<Passphrase, Failure> {
    // Growing a vector leaves copies behind in freed memory: read into one that never grows.
    let mut bytes = Passphrase(Vec::with_capacity(64 << 10));
    let mut piece = [0; 4096];
    loop {
        let n = match file.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failure::new(Exit::NoKey, format!("{}: {e}", name.display()))),
        };
        if bytes.0.len() + n > bytes.0.capacity() {
            if bytes.0.len() as u64 >= SECRET_BYTES_MAX {
                let at = name.display();
                return Err(Failure::new(
                    Exit::NoKey,
                    format!("{at} is larger than {SECRET_BYTES_MAX} bytes: not a key"),
                ));
            }
            let mut larger = Passphrase(Vec::with_capacity(bytes.0.capacity() * 2));
            larger.0.extend_from_slice(&bytes.0);
            bytes = larger; // The old one wipes itself.
        }
        bytes.0.extend_from_slice(&piece[..n]);
    }
    piece.zeroize();
    Ok(bytes)
}

fn without_newline(mut passphrase: Passphrase) -> Passphrase {
    if passphrase.0.last() == Some(&b'\n') {
        passphrase.0.pop();
        if passphrase.0.last() == Some(&b'\r') {
            passphrase.0.pop();
        }
    }
    passphrase
}

fn some(passphrase: Passphrase, from: &Path) -> Result<Passphrase, Failure> {
    if passphrase.0.is_empty() {
        return Err(Failure::new(Exit::NoKey, format!("the passphrase or key from {} is empty", from.display())));
    }
    Ok(passphrase)
}

/// Locks what was typed or read into memory, in the process that will use it; keys lock themselves.
pub fn lock(unlock: &Unlock) {
    let locked = match unlock {
        Unlock::Passphrase(held) | Unlock::KeyFile(held) => held.lock(),
        Unlock::Master(_) => Ok(()),
    };
    if let Err(e) = locked {
        log::warn!("the passphrase could not be locked into memory, and may get to swap until the key is derived: {e}");
    }
}

/// Says it if keys could not be locked into memory.
pub fn tell_of_locks() {
    if let Some(why) = secret::refusal() {
        log::warn!("keys could not be locked into memory, and may get to swap (see ulimit -l): {why}");
    }
}

/// A core dump would hold the master key and everybody's plaintext.
pub fn forbid_dumps() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain settings of this process; `none` lives.
    let refused = unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &none) != 0 || libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) != 0
    };
    if refused {
        log::warn!("core dumps could not be forbidden: {}", std::io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(unlock: Unlock) -> Vec<u8> {
        match unlock {
            Unlock::Passphrase(p) | Unlock::KeyFile(p) => p.0.clone(),
            Unlock::Master(_) => panic!("a master key is not read"),
        }
    }

    #[test]
    fn one_newline_is_stripped_from_a_passphrase_and_none_from_a_key() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("p");
        let passphrase = Source { password_file: Some(path.clone()), ..Source::default() };
        let key = Source { key_file: Some(path.clone()), ..Source::default() };
        for (file, stripped) in [("a b\n", "a b"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a"), (" a ", " a ")] {
            std::fs::write(&path, file).unwrap();
            assert_eq!(bytes(read(&passphrase, false).unwrap()), stripped.as_bytes());
            assert_eq!(bytes(read(&key, false).unwrap()), file.as_bytes());
        }
    }

    #[test]
    fn an_empty_or_missing_secret_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("p");
        let source = Source { password_file: Some(path.clone()), ..Source::default() };
        assert_eq!(read(&source, true).err().unwrap().exit, Exit::NoKey);
        for nothing in ["", "\n"] {
            std::fs::write(&path, nothing).unwrap();
            assert_eq!(read(&source, true).err().unwrap().exit, Exit::NoKey);
        }
        let closed = Source { password_fd: Some(9999), ..Source::default() };
        assert_eq!(read(&closed, false).err().unwrap().exit, Exit::NoKey);
    }

    #[test]
    fn a_large_key_file_is_whole_and_an_endless_one_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("k");
        let long: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
        std::fs::write(&path, &long).unwrap();
        let key = Source { key_file: Some(path), ..Source::default() };
        assert_eq!(bytes(read(&key, false).unwrap()), long);
        let endless = Source { key_file: Some("/dev/zero".into()), ..Source::default() };
        assert_eq!(read(&endless, false).err().unwrap().exit, Exit::NoKey);
    }
}
