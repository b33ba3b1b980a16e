//! Where the passphrase or key comes from.
//!
//! Promise: never from the command line or the environment's text; a passphrase file's one trailing newline is no part
//! of the passphrase; an empty secret is refused, and so is a mistyped recovery key, before anything is derived. In order:
//! the option that names a file or descriptor, a credential that systemd hands over, standard input or a prompt (`prompt`).
//! Called by: every command that opens a vault; `mount` reads it in the process that a person started, and hands it to the daemon
//! through a pipe. On failure: `Exit::NoKey`.

use super::exit::{Exit, Failure};
use super::{print, prompt};
use crate::base::secret::{self, Passphrase};
use crate::base::world::World;
use crate::seal::{KEY_FILE_BYTES_MIN, RecoveryKey, Unlock};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroize;

/// Most bytes taken from a passphrase or key file: more is a mistake (a disk image, `/dev/zero`), not a key.
const SECRET_BYTES_MAX: u64 = 1 << 20;
/// What some editors put in front of a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// The names of credentials in `$CREDENTIALS_DIRECTORY`. A credential is no kind of its own: it is one of these, handed over.
const CREDENTIALS: [(&str, Kind); 3] = [
    ("strongroom.passphrase", Kind::Passphrase),
    ("strongroom.key", Kind::KeyFile),
    ("strongroom.recovery-key", Kind::Recovery),
];
/// And of what a slot is to be made for.
const NEW_CREDENTIALS: [(&str, Kind); 2] =
    [("strongroom.new-passphrase", Kind::Passphrase), ("strongroom.new-key", Kind::KeyFile)];

/// What bytes from a file are taken for.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Passphrase,
    KeyFile,
    Recovery,
}

/// The options that say where the key is.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(multiple = false)]
pub struct Source {
    /// Read the passphrase from this file, or from standard input if it is `-`; one trailing newline is not part of it
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Use this file's content as the key
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Read the passphrase from this open file descriptor
    #[arg(long, value_name = "N")]
    pub password_fd: Option<i32>,
    /// Read the recovery key from this file
    #[arg(long, value_name = "FILE")]
    pub recovery_key_file: Option<PathBuf>,
}

/// The options that say what a slot is to be made for.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(multiple = false)]
pub struct NewSource {
    /// Read the new passphrase from this file; one trailing newline is not part of it
    #[arg(long, value_name = "FILE")]
    pub new_password_file: Option<PathBuf>,
    /// Use this file's content as the new key
    #[arg(long, value_name = "FILE")]
    pub new_key_file: Option<PathBuf>,
    /// Read the new passphrase from this open file descriptor
    #[arg(long, value_name = "N")]
    pub new_password_fd: Option<i32>,
    /// Draw a recovery key, and show it this once
    #[arg(long)]
    pub new_recovery_key: bool,
}

/// The options that say what else opens the vault.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AlsoSource {
    /// Keep the slot of the passphrase in this file, too; repeatable
    #[arg(long, value_name = "FILE")]
    pub also_password_file: Vec<PathBuf>,
    /// Keep the slot of this key file, too; repeatable
    #[arg(long, value_name = "FILE")]
    pub also_key_file: Vec<PathBuf>,
    /// Keep the slot of the recovery key in this file, too; repeatable
    #[arg(long, value_name = "FILE")]
    pub also_recovery_key_file: Vec<PathBuf>,
}

impl Kind {
    fn noun(self) -> &'static str {
        match self {
            Kind::Passphrase => "passphrase file",
            Kind::KeyFile => "key file",
            Kind::Recovery => "recovery key file",
        }
    }

    /// A file of this kind that could not be read.
    fn unreadable(self, path: &Path, e: &io::Error) -> Failure {
        let (noun, at) = (self.noun(), path.display());
        let why = match e.kind() {
            io::ErrorKind::NotFound => "does not exist".to_owned(),
            io::ErrorKind::IsADirectory => "is a directory".to_owned(),
            _ => format!("could not be read: {e}"),
        };
        Failure::new(Exit::NoKey, format!("the {noun} {at} {why}; name a file that holds it"))
    }
}

impl Source {
    /// Whether nothing was said.
    pub fn is_unsaid(&self) -> bool {
        let Source { password_file, key_file, password_fd, recovery_key_file } = self;
        password_file.is_none() && key_file.is_none() && password_fd.is_none() && recovery_key_file.is_none()
    }
}

/// Reads the key; `new` asks twice at the prompt.
pub fn read(source: &Source, new: bool) -> Result<Unlock, Failure> {
    let files = [
        (&source.key_file, Kind::KeyFile),
        (&source.password_file, Kind::Passphrase),
        (&source.recovery_key_file, Kind::Recovery),
    ];
    read_from(&files, source.password_fd, &CREDENTIALS, new)
}

/// Reads what a slot is to be made for; a recovery key is drawn here.
pub fn read_new(source: &NewSource, world: &dyn World) -> Result<Unlock, Failure> {
    if source.new_recovery_key {
        return Ok(Unlock::Recovery(RecoveryKey::generate(world)));
    }
    let files = [(&source.new_key_file, Kind::KeyFile), (&source.new_password_file, Kind::Passphrase)];
    read_from(&files, source.new_password_fd, &NEW_CREDENTIALS, true)
}

/// Reads what else opens the vault.
pub fn read_also(source: &AlsoSource) -> Result<Vec<Unlock>, Failure> {
    let files = |paths: &[PathBuf], kind: Kind| {
        paths.iter().map(|path| of_kind(kind, from_path(kind, path)?, path)).collect::<Result<Vec<_>, _>>()
    };
    let mut all = files(&source.also_password_file, Kind::Passphrase)?;
    all.extend(files(&source.also_key_file, Kind::KeyFile)?);
    all.extend(files(&source.also_recovery_key_file, Kind::Recovery)?);
    Ok(all)
}

fn read_from(
    files: &[(&Option<PathBuf>, Kind)],
    fd: Option<i32>,
    credentials: &[(&str, Kind)],
    new: bool,
) -> Result<Unlock, Failure> {
    if let Some((path, kind)) = files.iter().find_map(|(path, kind)| Some((path.as_ref()?, *kind))) {
        return of_kind(kind, from_path(kind, path)?, path);
    }
    if let Some(fd) = fd {
        let name = PathBuf::from(format!("file descriptor {fd}"));
        return of_kind(Kind::Passphrase, from_fd(fd, &name)?, &name);
    }
    if let Some(dir) = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from) {
        let there = |(name, kind): &(&str, Kind)| Some((dir.join(name), *kind)).filter(|(path, _)| path.is_file());
        if let Some((path, kind)) = credentials.iter().find_map(there) {
            return of_kind(kind, from_path(kind, &path)?, &path);
        }
    }
    prompted(new)
}

fn of_kind(kind: Kind, bytes: Passphrase, from: &Path) -> Result<Unlock, Failure> {
    match kind {
        Kind::KeyFile => {
            let key = some(bytes, from)?;
            match key.0.len() {
                len if len < KEY_FILE_BYTES_MIN => {
                    let rule = format!("at least {KEY_FILE_BYTES_MIN} are needed, and each of them counts");
                    let why = format!("the key file {} has {len} bytes; {rule}", from.display());
                    Err(Failure::new(Exit::NoKey, why))
                }
                _ => Ok(Unlock::KeyFile(key)),
            }
        }
        Kind::Passphrase => {
            if bytes.0.starts_with(BYTE_ORDER_MARK) {
                let mark = "begins with a byte order mark (EF BB BF), which counts as part of the passphrase";
                print::complain(&format!("warning: {} {mark}; save it as UTF-8 without one", from.display()));
            }
            Ok(Unlock::Passphrase(some(without_newline(bytes), from)?))
        }
        Kind::Recovery => recovery(&some(bytes, from)?, from),
    }
}

/// What was typed or stored as a recovery key; which group of it is wrong is told, for whoever copies it from paper.
fn recovery(typed: &Passphrase, from: &Path) -> Result<Unlock, Failure> {
    let named = |why: String| Failure::new(Exit::NoKey, format!("{}: {why}", from.display()));
    let text = str::from_utf8(&typed.0).map_err(|_| named("a recovery key is text, and this is not".to_owned()))?;
    RecoveryKey::parse(text).map(Unlock::Recovery).map_err(|typo| named(typo.to_string()))
}

fn prompted(new: bool) -> Result<Unlock, Failure> {
    let terminal = Path::new("the terminal or standard input");
    let answer = prompt::ask(if new { "New passphrase: " } else { "Passphrase, or recovery key: " })?;
    let first = some(answer.secret, terminal)?;
    if new && answer.is_typed && prompt::ask("The same again: ")?.secret.0 != first.0 {
        return Err(Failure::new(Exit::NoKey, "the two passphrases differ"));
    }
    // Nothing that is meant as a recovery key is tried as a passphrase: that would take long, and hide the typo.
    match str::from_utf8(&first.0) {
        Ok(text) if !new && RecoveryKey::is_meant(text) => recovery(&first, terminal),
        _ => Ok(Unlock::Passphrase(first)),
    }
}

fn from_path(kind: Kind, path: &Path) -> Result<Passphrase, Failure> {
    if path == Path::new("-") {
        return from_fd(0, Path::new("standard input"));
    }
    let unreadable = |e: io::Error| kind.unreadable(path, &e);
    let mut file = File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if meta.is_dir() {
        return Err(unreadable(io::ErrorKind::IsADirectory.into()));
    }
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

fn all(file: &mut impl Read, name: &Path) -> Result<Passphrase, Failure> {
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

/// The kinds, as they go through a pipe.
const HANDED: [(u8, Kind); 3] = [(b'p', Kind::Passphrase), (b'k', Kind::KeyFile), (b'r', Kind::Recovery)];

/// Writes what was read into a pipe that only the reader of `take_over` knows: a letter, then what was typed or stored.
pub fn hand_over(unlock: &Unlock, pipe: &mut impl Write) -> io::Result<()> {
    let text;
    let (letter, bytes) = match unlock {
        Unlock::Passphrase(held) => (b'p', &held.0[..]),
        Unlock::KeyFile(held) => (b'k', &held.0[..]),
        Unlock::Recovery(key) => {
            text = key.text();
            (b'r', text.as_bytes())
        }
        Unlock::Master(_) => return Err(io::Error::other("a master key is not handed about")),
    };
    pipe.write_all(&[letter])?;
    pipe.write_all(bytes)
}

/// Reads what `hand_over` wrote, up to the pipe's end; `None` if the other side had none, and has said why.
pub fn take_over(mut pipe: impl Read) -> Result<Option<Unlock>, Failure> {
    let from = Path::new("the caller");
    let mut letter = [0];
    match pipe.read_exact(&mut letter) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(Failure::io(from, &e)),
    }
    let kind = HANDED.iter().find(|(known, _)| *known == letter[0]).map(|(_, kind)| *kind);
    let kind = kind.ok_or_else(|| Failure::new(Exit::Unexpected, "the caller handed over no key"))?;
    let bytes = some(all(&mut pipe, from)?, from)?;
    match kind {
        // As it was read, newlines and all: what was not part of it is gone already.
        Kind::Passphrase => Ok(Some(Unlock::Passphrase(bytes))),
        Kind::KeyFile => Ok(Some(Unlock::KeyFile(bytes))),
        Kind::Recovery => recovery(&bytes, from).map(Some),
    }
}

/// Locks what was typed or read into memory, in the process that will use it; keys lock themselves.
pub fn lock(unlock: &Unlock) {
    let locked = match unlock {
        Unlock::Passphrase(held) | Unlock::KeyFile(held) => held.lock(),
        Unlock::Master(_) | Unlock::Recovery(_) => Ok(()),
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
    use crate::base::world::RealWorld;

    fn bytes(unlock: Unlock) -> Vec<u8> {
        match unlock {
            Unlock::Passphrase(p) | Unlock::KeyFile(p) => p.0.clone(),
            Unlock::Recovery(_) | Unlock::Master(_) => panic!("neither a passphrase nor a key file"),
        }
    }

    #[test]
    fn one_newline_is_stripped_from_a_passphrase_and_none_from_a_key() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("p");
        let passphrase = Source { password_file: Some(path.clone()), ..Source::default() };
        let key = Source { key_file: Some(path.clone()), ..Source::default() };
        let long = "k".repeat(KEY_FILE_BYTES_MIN);
        for (file, stripped) in [("a b\n", "a b"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a"), (" a ", " a ")] {
            std::fs::write(&path, file).unwrap();
            assert_eq!(bytes(read(&passphrase, false).unwrap()), stripped.as_bytes());
            let file = long.clone() + file;
            std::fs::write(&path, &file).unwrap();
            assert_eq!(bytes(read(&key, false).unwrap()), file.as_bytes());
        }
        std::fs::write(&path, &long[1..]).unwrap();
        let short = read(&key, false).unwrap_err();
        assert_eq!(short.exit, Exit::NoKey);
        assert!(short.sentence.contains("has 31 bytes; at least 32 are needed"), "{short}");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_with_its_purpose() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let source = |path: &Path| Source { password_file: Some(path.to_owned()), ..Source::default() };
        let missing = read(&source(&dir.path().join("none")), false).unwrap_err();
        assert_eq!(missing.exit, Exit::NoKey);
        let at = dir.path().display();
        let wanted = format!("the passphrase file {at}/none does not exist; name a file that holds it");
        assert_eq!(missing.sentence, wanted);
        let directory = read(&source(dir.path()), false).unwrap_err().sentence;
        assert!(directory.contains("is a directory"), "{directory}");
    }

    #[test]
    fn what_is_handed_over_is_what_was_read() {
        let through = |unlock: &Unlock| {
            let mut pipe = Vec::new();
            hand_over(unlock, &mut pipe).unwrap();
            take_over(&pipe[..]).unwrap().unwrap()
        };
        let text = |n: usize| Passphrase((0..n).map(|i| i as u8).collect());
        for n in [1, 11, 4096, SECRET_BYTES_MAX as usize] {
            assert!(matches!(through(&Unlock::Passphrase(text(n))), Unlock::Passphrase(p) if p.0 == text(n).0), "{n}");
            assert!(matches!(through(&Unlock::KeyFile(text(n))), Unlock::KeyFile(p) if p.0 == text(n).0), "{n}");
        }
        let key = RecoveryKey::generate(&RealWorld::default());
        assert!(matches!(through(&Unlock::Recovery(key.clone())), Unlock::Recovery(k) if k.text() == key.text()));
        assert!(take_over(&[][..]).unwrap().is_none());
        for wrong in [&b"x"[..], b"p", b"m0123", b"rABC"] {
            assert!(take_over(wrong).is_err(), "{wrong:?}");
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
    fn a_recovery_key_is_read_from_a_file_and_a_typo_is_told_by_its_group() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("r");
        let source = Source { recovery_key_file: Some(path.clone()), ..Source::default() };
        let key = RecoveryKey::generate(&RealWorld::default());
        let text = key.text().to_lowercase().replace('-', "  ");
        std::fs::write(&path, format!("{text}\n")).unwrap();
        assert!(matches!(read(&source, false).unwrap(), Unlock::Recovery(read) if *read.text() == *key.text()));
        let mut wrong = text.into_bytes();
        wrong[30..38].reverse();
        wrong[31] = if wrong[31] == b'7' { b'8' } else { b'7' };
        for (bytes, said) in [(&wrong[..], "group 4"), (b"\xff", "text"), (b"ABC", "group 1")] {
            std::fs::write(&path, bytes).unwrap();
            let failure = read(&source, false).unwrap_err();
            assert_eq!(failure.exit, Exit::NoKey);
            assert!(failure.sentence.contains(said), "{failure}");
        }
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
