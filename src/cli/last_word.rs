//! Carries the daemon's last word to `umount`, by a way that does not need the backing directory.
//!
//! The daemon writes it into a pipe. The mounter process keeps the other end, outlives the daemon, and passes everything on to
//! each client of an abstract unix socket: several `umount` at once, also where umount(8) ended the mount.
//! Promise: a word is given only if the daemon wrote all of it; a daemon that was killed gives none. Trust: the mounter
//! answers root and its own user alone; a client believes root, itself and the mount's owner alone (`SO_PEERCRED`).
//! Called by: `mounter` (serves), `mount` (writes), `umount`, `status`. On failure: no word, which nobody may take for success.

use super::exit::Exit;
use super::mounts::Mount;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Begins the name of every socket; the mount's device number and the daemon's process number follow.
const NAME: &str = "strongroom/";
/// Where the kernel lists the sockets of this network namespace.
const SOCKETS: &str = "/proc/net/unix";
/// Begins every answer.
const GREETING: &str = "strongroom";
/// The vault is being closed.
const CLOSING: &[u8] = b"closing\n";
/// Longest word in bytes: it must fit into the buffers of the pipe and of each socket, so that nobody waits for a reader.
const WORD_BYTES_MAX: usize = 48 << 10;
/// Most clients at a time.
const CLIENTS_MAX: usize = 64;
/// How long a client waits for the greeting.
const GREETING_WAIT: Duration = Duration::from_secs(1);

/// How the daemon closed the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastWord {
    /// The daemon's exit code; `Exit::Ok` means that everything is in the vault, flushed and verified.
    pub exit: Exit,
    /// What a person should read: the fault, and each file that was not saved.
    pub lines: Vec<String>,
}

impl LastWord {
    /// `end CODE`, the lines, and a zero byte that shows that nothing is missing.
    fn encode(&self) -> Vec<u8> {
        let mut text = format!("end {}\n", self.exit as u8);
        for (n, line) in self.lines.iter().enumerate() {
            let left = self.lines.len() - n;
            if text.len() + line.len() > WORD_BYTES_MAX {
                text.push_str(&format!("and {left} more lines, which the log has\n"));
                break;
            }
            text.push_str(&line.replace('\n', " "));
            text.push('\n');
        }
        text.push('\0');
        text.into_bytes()
    }

    fn decode(heard: &[u8]) -> Option<LastWord> {
        let whole = heard.strip_prefix(CLOSING).unwrap_or(heard).strip_suffix(b"\0")?;
        let text = String::from_utf8_lossy(whole);
        let mut lines = text.lines();
        let code = lines.next()?.strip_prefix("end ")?.parse().ok()?;
        Some(LastWord { exit: Exit::from_u8(code)?, lines: lines.map(str::to_owned).collect() })
    }
}

/// The daemon's end of the pipe.
#[derive(Debug)]
pub struct Speaker(File);

impl Speaker {
    /// Wraps the writing end, which nobody but the daemon may hold: its end is the daemon's.
    pub fn new(pipe: File) -> Speaker {
        Speaker(pipe)
    }

    /// Reports that the mount has ended and that the vault is being closed.
    pub fn closing(&self) {
        // If the mounter has gone, `umount` hears nothing and says so.
        let _ = (&self.0).write_all(CLOSING);
    }

    /// Reports how the vault was closed. Nothing may follow.
    pub fn end(&self, word: &LastWord) {
        let _ = (&self.0).write_all(&word.encode());
    }
}

/// Listens for those who want a mount's last word.
pub fn listen(device: &str, daemon: i32) -> io::Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(format!("{NAME}{device}/{daemon}"))?;
    let listener = UnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Passes on what the daemon says, until the daemon has ended and every client has heard it.
pub fn serve(listener: &UnixListener, mut daemon: File, pid: i32, mountpoint: &Path) {
    let mut heard = format!("{GREETING} {pid} ").into_bytes();
    heard.extend_from_slice(mountpoint.as_os_str().as_bytes());
    heard.push(0);
    let mut clients: Vec<UnixStream> = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let ready = readable(&[daemon.as_raw_fd(), listener.as_raw_fd()], None);
        accept(listener, &heard, &mut clients);
        if !ready.contains(&0) {
            continue;
        }
        match daemon.read(&mut chunk) {
            Ok(0) => return,
            Ok(n) => {
                heard.extend_from_slice(&chunk[..n]);
                clients.retain_mut(|client| client.write_all(&chunk[..n]).is_ok());
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Takes in whoever has come and may know, and tells them what was heard so far.
fn accept(listener: &UnixListener, heard: &[u8], clients: &mut Vec<UnixStream>) {
    while let Ok((mut client, _)) = listener.accept() {
        // A client that has gone reads as the end; one that is there sends nothing.
        clients.retain_mut(|c| matches!(c.read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock));
        let may_know = peer(&client).is_some_and(|who| who.uid == 0 || who.uid == own_uid());
        if may_know
            && clients.len() < CLIENTS_MAX
            && client.set_nonblocking(true).is_ok()
            && client.write_all(heard).is_ok()
        {
            clients.push(client);
        }
    }
}

/// How far a daemon's end has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// It serves a mount.
    Serving,
    /// It closes the vault.
    Closing,
    /// It has ended, with these words; `None` if it was killed before it had said them.
    Ended(Option<LastWord>),
}

/// A connection to the mounter of a mount.
#[derive(Debug)]
pub struct Witness {
    socket: UnixStream,
    /// The mount's device number.
    pub device: String,
    /// The daemon's process number; `None` where it cannot be seen from here (another process namespace).
    pub daemon: Option<i32>,
    /// Where the mount was made.
    pub mountpoint: PathBuf,
    /// What the daemon has said so far.
    heard: Vec<u8>,
    has_ended: bool,
}

impl Witness {
    /// The one of a mount that is served; `None` if there is none that can be reached from here and trusted.
    pub fn of(mount: &Mount) -> Option<Witness> {
        // A device number comes back as soon as its mount is gone, while the daemon of that is still closing.
        Witness::all(&mount.device, mount.owner.map(|(uid, _)| uid)).find_map(Witness::serving)
    }

    /// The one of a mount whose daemon takes no requests any more; it may still be closing the vault.
    pub fn of_cut_off(mount: &Mount) -> Option<Witness> {
        let mut all = Witness::all(&mount.device, mount.owner.map(|(uid, _)| uid));
        // Another mount may have had the device number before; its daemon may still be closing.
        all.find(|witness| witness.mountpoint == mount.mountpoint)
    }

    /// The one of a mount that is gone from its place, whose daemon still has to end.
    pub fn left_behind(mountpoint: &Path) -> Option<Witness> {
        Witness::all("", None).find(|witness| witness.mountpoint == mountpoint)
    }

    /// All that are trusted: root's, this user's, and those of the mount's owner; of one device, or of any.
    fn all(device: &str, owner: Option<u32>) -> impl Iterator<Item = Witness> {
        let prefix = if device.is_empty() { NAME.to_owned() } else { format!("{NAME}{device}/") };
        let is_trusted = move |uid| uid == 0 || uid == own_uid() || Some(uid) == owner;
        let names = names(&std::fs::read(SOCKETS).unwrap_or_default());
        names
            .into_iter()
            .filter(move |name| name.starts_with(&prefix))
            .filter_map(move |n| Witness::meet(&n, is_trusted))
    }

    fn serving(mut self) -> Option<Witness> {
        (self.stage(Duration::ZERO) == Stage::Serving).then_some(self)
    }

    fn meet(name: &str, is_trusted: impl Fn(u32) -> bool) -> Option<Witness> {
        let socket = connect(name).ok()?;
        let mounter = peer(&socket)?;
        if !is_trusted(mounter.uid) {
            return None;
        }
        let device = name.strip_prefix(NAME)?.split('/').next()?.to_owned();
        let stranger =
            Witness { socket, device, daemon: None, mountpoint: PathBuf::new(), heard: Vec::new(), has_ended: false };
        stranger.greeted(mounter.pid)
    }

    /// Reads the greeting: whose mounter it is.
    fn greeted(mut self, mounter: i32) -> Option<Witness> {
        let mut rounds = 0;
        loop {
            if let Some(end) = self.heard.iter().position(|&b| b == 0) {
                let rest = self.heard.split_off(end + 1);
                let greeting = std::mem::replace(&mut self.heard, rest);
                let mut words = greeting[..end].splitn(3, |&b| b == b' ');
                if words.next()? != GREETING.as_bytes() {
                    return None;
                }
                let pid: i32 = str::from_utf8(words.next()?).ok()?.parse().ok()?;
                // In another process namespace the number is another's: here, the mounter must be the child of the daemon.
                self.daemon = Some(pid).filter(|pid| parent(mounter) == Some(*pid));
                self.mountpoint = OsString::from_vec(words.next()?.to_vec()).into();
                return Some(self);
            }
            rounds += 1;
            if self.has_ended || rounds > 16 || readable(&[self.socket.as_raw_fd()], Some(GREETING_WAIT)).is_empty() {
                return None;
            }
            self.read();
        }
    }

    /// How far the daemon's end has come; waits for news as long as it is told.
    pub fn stage(&mut self, wait: Duration) -> Stage {
        if !self.has_ended && !readable(&[self.socket.as_raw_fd()], Some(wait)).is_empty() {
            self.read();
        }
        match self.has_ended {
            true => Stage::Ended(LastWord::decode(&self.heard)),
            false if self.heard.is_empty() => Stage::Serving,
            false => Stage::Closing,
        }
    }

    /// Takes in what has come. A mounter that breaks off is no word.
    fn read(&mut self) {
        let mut chunk = [0; 4096];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => self.has_ended = true,
                // The mounter sends no more than a word; anything else is not one.
                Ok(_) if self.heard.len() > 2 * WORD_BYTES_MAX => self.has_ended = true,
                Ok(n) => {
                    self.heard.extend_from_slice(&chunk[..n]);
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.has_ended = true,
            }
            return;
        }
    }
}

/// The names of the listening sockets that may be mounters: anybody can take any name.
fn names(table: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(table);
    let name = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let is_listening = fields.nth(3)? == "00010000";
        let name = fields.nth(3)?.strip_prefix('@')?;
        (is_listening && name.starts_with(NAME)).then(|| name.to_owned())
    };
    text.lines().filter_map(name).collect()
}

/// Connects, and waits for nobody: a stranger's socket may have a queue that is full.
fn connect(name: &str) -> io::Result<UnixStream> {
    // SAFETY: a plain call.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeros is a valid value of plain data.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // The zero byte in front, which is left, makes it abstract.
    let room = address.sun_path.get_mut(1..=name.len()).ok_or(io::ErrorKind::InvalidInput)?;
    room.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    let len = size_of::<libc::sa_family_t>() + 1 + name.len();
    // SAFETY: the address lives, and its length is true.
    let done = unsafe { libc::connect(fd, (&raw const address).cast(), len as libc::socklen_t) };
    if done == 0 { Ok(UnixStream::from(socket)) } else { Err(io::Error::last_os_error()) }
}

/// Who is at the other end: a client as of connecting, a server as of listening.
fn peer(socket: &UnixStream) -> Option<libc::ucred> {
    let mut who = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let (fd, at) = (socket.as_raw_fd(), (&raw mut who).cast());
    // SAFETY: the kernel fills at most `len` bytes of what lives.
    let done = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, at, &raw mut len) };
    (done == 0).then_some(who)
}

/// The parent of a process: the second field behind the name in `12 (a name) S 7 …`.
fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn own_uid() -> u32 {
    // SAFETY: only asks, and cannot fail.
    unsafe { libc::geteuid() }
}

/// Which of some descriptors can be read, by their places; waits for one, for ever with `None`.
pub fn readable(descriptors: &[RawFd], wait: Option<Duration>) -> Vec<usize> {
    let mut polls: Vec<libc::pollfd> =
        descriptors.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    let milliseconds = wait.map_or(-1, |wait| wait.as_millis().min(1 << 30) as i32);
    loop {
        // SAFETY: as many entries as are said, which live.
        let ready = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, milliseconds) };
        if ready >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return polls.iter().enumerate().filter(|(_, p)| p.revents != 0).map(|(n, _)| n).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::daemon::pipe;
    use super::*;
    use std::thread;

    fn mount(device: &str) -> Mount {
        Mount {
            device: device.to_owned(),
            root: "/".into(),
            mountpoint: "/m".into(),
            kind: b"fuse.strongroom".to_vec(),
            source: "/v".into(),
            owner: None,
        }
    }

    /// A mounter that is a thread, and the daemon's end of its pipe.
    fn with_mounter(device: &str) -> (Speaker, thread::JoinHandle<()>) {
        let (reader, writer) = pipe().unwrap();
        let listener = listen(device, 42).unwrap();
        (Speaker::new(writer), thread::spawn(move || serve(&listener, reader, 42, Path::new("/a place"))))
    }

    fn word() -> LastWord {
        LastWord { exit: Exit::FlushFailed, lines: vec!["the disk is gone".to_owned(), "not saved: /a".to_owned()] }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn every_client_hears_the_word_whenever_it_came() {
        // A device of its own: several of these tests may run at once.
        let mine = mount(&format!("test-{}-1", std::process::id()));
        let (speaker, mounter) = with_mounter(&mine.device);
        let mut early = Witness::of(&mine).expect("it listens");
        let other = "this process is no child of process 42";
        assert_eq!((early.daemon, early.mountpoint.as_path()), (None, Path::new("/a place")), "{other}");
        assert_eq!(early.stage(Duration::ZERO), Stage::Serving);
        speaker.closing();
        assert_eq!(early.stage(LONG), Stage::Closing);
        assert!(Witness::of(&mine).is_none(), "the next mount may have this device number by now");
        // Nor is this word that of the next mount, if that one's daemon was killed.
        assert!(Witness::of_cut_off(&mine).is_none(), "it is mounted at another place");
        assert!(Witness::of_cut_off(&Mount { mountpoint: "/a place".into(), ..mine.clone() }).is_some());
        let mut late = Witness::left_behind(Path::new("/a place")).expect("it is not over");
        // It may have heard so when it connected, and then there is no news to wait for.
        assert!((0..6000).any(|_| late.stage(Duration::from_millis(10)) == Stage::Closing));
        speaker.end(&word());
        drop(speaker);
        mounter.join().unwrap();
        for witness in [&mut early, &mut late] {
            while witness.stage(LONG) == Stage::Closing {}
            assert_eq!(witness.stage(LONG), Stage::Ended(Some(word())));
        }
        assert!(Witness::left_behind(Path::new("/a place")).is_none());
    }

    #[test]
    fn a_daemon_that_is_killed_has_said_nothing() {
        let whole = word().encode();
        for said in [&b""[..], CLOSING, &whole[..whole.len() - 1], b"end 0\n", b"end 999\n\0", b"\0"] {
            let mine = mount(&format!("test-{}-2-{}", std::process::id(), said.len()));
            let (speaker, mounter) = with_mounter(&mine.device);
            let mut witness = Witness::of(&mine).expect("it listens");
            (&speaker.0).write_all(said).unwrap();
            drop(speaker);
            mounter.join().unwrap();
            while !matches!(witness.stage(LONG), Stage::Ended(_)) {}
            assert_eq!(witness.stage(LONG), Stage::Ended(None), "{:?}", String::from_utf8_lossy(said));
        }
    }

    #[test]
    fn a_word_that_is_too_long_says_what_it_leaves_out() {
        let lines: Vec<String> = (0..3000).map(|n| format!("not saved: /{n}/{}", "x".repeat(80))).collect();
        let encoded = LastWord { exit: Exit::FlushFailed, lines }.encode();
        assert!(encoded.len() < WORD_BYTES_MAX + 4096, "{}", encoded.len());
        let came = LastWord::decode(&encoded).unwrap();
        let last = came.lines.last().unwrap();
        assert_eq!(*last, format!("and {} more lines, which the log has", 3000 - (came.lines.len() - 1)));
    }

    #[test]
    fn strangers_are_not_believed() {
        let mine = mount(&format!("test-{}-3", std::process::id()));
        let (speaker, mounter) = with_mounter(&mine.device);
        let name = format!("{NAME}{}/42", mine.device);
        assert!(Witness::meet(&name, |uid| uid != own_uid()).is_none());
        assert!(Witness::meet(&name, |uid| uid == own_uid()).is_some());
        drop(speaker);
        mounter.join().unwrap();
    }

    #[test]
    fn only_those_who_listen_are_asked() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            ffff: 00000002 00000000 00010000 0001 01 123 @strongroom/0:57/42\n\
            ffff: 00000003 00000000 00000000 0001 03 124 @strongroom/0:58/43\n\
            ffff: 00000002 00000000 00010000 0001 01 125 /run/strongroom/0:59/44\n\
            ffff: 00000002 00000000 00010000 0001 01 126\n";
        assert_eq!(names(table).into_iter().collect::<Vec<_>>(), ["strongroom/0:57/42"]);
    }
}
