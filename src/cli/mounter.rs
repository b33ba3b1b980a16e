//! A process beside the daemon that mounts and unmounts for it, for the daemon itself may not: it is confined, and it has the keys.
//!
//! Promise: it never holds a passphrase or key, for it is split off before one is read; it mounts the one mountpoint that was
//! planned, once, with the options that were planned, and takes nothing away but that very mount. Beside that it opens the vault's
//! directory anew, by its path, and files below it (`backing::serve`). By itself it only has the kernel
//! hand over what is dirty (`write_back`), and it ends
//! when the daemon has ended, however that came: a daemon that was killed leaves a dead mount, as ever, for
//! `strongroom umount` to clear.
//! Why a process: setting up and taking down mounts is what Landlock, dropped capabilities and seccomp forbid, and the set-uid
//! `fusermount3` does not work under no_new_privs.
//! One order is a byte; the answer is a byte (with the mount's descriptor, if it has one to give), and for an error a number and a sentence.
//! A thread of it passes on the daemon's last word (`last_word`), however long an order takes.
//! Called by: `mount`, before the key. Takes: the socket's lock, for one order and its answer. On failure: the `io::Error`
//! as the mounting process had it; `UnexpectedEof` if that is gone.

use super::daemon;
use super::exit::{Exit, Failure};
use super::last_word::{self, LastWord, Speaker};
use super::mounts;
use super::write_back;
use crate::backing::{self, Backing, Broker, BrokeredDir, DirBacking};
use crate::base::descriptor;
use crate::base::limits::{KERNEL_ROOM_BYTES, kernel_dirty_bytes};
use crate::base::lock::Held;
use crate::fuse::{self, MountOptions};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// Read-ahead of the mount in KiB: one request of the largest size.
const READ_AHEAD_KIB: &str = "1024";
/// Most bytes that the kernel may hold back where all of them may come to be held by the daemon.
const BACKGROUND_DIRTY_BYTES_MAX: u64 = 2 * KERNEL_ROOM_BYTES;
/// As `ps` shows it; the daemon has the program's name.
const NAME: &std::ffi::CStr = c"strongroom-mntr";
/// Longest sentence of an error.
const SENTENCE_BYTES_MAX: usize = 4096;

const MOUNT: u8 = b'm';
const READ_AHEAD: u8 = b'r';
const BACKGROUND: u8 = b'b';
const UNMOUNT: u8 = b'u';
const DETACH: u8 = b'd';
const OPEN_LOG: u8 = b'l';

const DONE: u8 = b'.';
const REFUSED: u8 = b'!';

/// The daemon's way to the process that mounts for it.
#[derive(Debug)]
pub struct Mounter {
    socket: Mutex<UnixStream>,
    speaker: Speaker,
    /// Opens the vault's directory anew, where the daemon may not.
    broker: Arc<Broker>,
}

impl Mounter {
    /// Splits the process off; there must be one thread, and no key in memory.
    pub fn start(
        mountpoint: &Path,
        vault: &Path,
        options: &MountOptions,
        log: Option<&Path>,
    ) -> Result<Mounter, Failure> {
        let failed = |what: &str, e: io::Error| {
            Failure::new(Exit::Unexpected, format!("no process to mount with could be had: {what}: {e}"))
        };
        let (ours, theirs) = UnixStream::pair().map_err(|e| failed("socketpair", e))?;
        let (word, say) = daemon::pipe().map_err(|e| failed("pipe", e))?;
        let (disk, disk_theirs) = UnixStream::pair().map_err(|e| failed("socketpair", e))?;
        let null = daemon::open_null().map_err(|e| failed("/dev/null", e))?;
        // SAFETY: there is one thread, so no lock is held for ever in the child, which may do anything.
        match unsafe { libc::fork() } {
            -1 => Err(failed("fork", io::Error::last_os_error())),
            0 => {
                settle_in(&[theirs.as_raw_fd(), word.as_raw_fd(), disk_theirs.as_raw_fd()], &null);
                let (vault, served) = (vault.to_owned(), vault.to_owned());
                // Beside the orders, for a disk may not answer. Without it, a disk that comes back is not found.
                let serve = move || backing::serve(&disk_theirs, &served);
                drop(thread::Builder::new().name("disk".to_owned()).spawn(serve));
                let attendant = Attendant {
                    mountpoint: mountpoint.to_owned(),
                    vault,
                    options,
                    log,
                    device: None,
                    word: Some(word),
                    relay: None,
                };
                let work = || attend(theirs, attendant);
                // A panic must not run on into what the daemon does.
                let _ = catch_unwind(AssertUnwindSafe(work));
                daemon::leave(Exit::Ok)
            }
            _ => Ok(Mounter { socket: Mutex::new(ours), speaker: Speaker::new(say), broker: Broker::new(disk) }),
        }
    }

    /// Opens the vault's directory by its path, as that leads now.
    pub fn reopen(&self) -> io::Result<BrokeredDir> {
        self.broker.reopen()
    }

    /// Mounts, and gives the connection.
    pub fn mount(&self) -> io::Result<OwnedFd> {
        self.ask(MOUNT)?.ok_or_else(|| io::Error::other("the mount came without a descriptor"))
    }

    /// Widens the kernel's read-ahead, which it offers only root to do. Without it, reads are only slower.
    pub fn read_further_ahead(&self) -> io::Result<()> {
        self.ask(READ_AHEAD).map(drop)
    }

    /// Opens the kernel's limit of background requests for the mount.
    pub fn background_limit(&self) -> io::Result<File> {
        let setting = self.ask(BACKGROUND)?;
        setting.map(File::from).ok_or_else(|| io::Error::other("the setting came without a descriptor"))
    }

    /// Unmounts; fails while the mount is in use, and may then be tried again.
    pub fn unmount(&self) -> io::Result<()> {
        self.ask(UNMOUNT).map(drop)
    }

    /// Takes the mount away from those who do not use it yet; the others may finish.
    pub fn detach(&self) -> io::Result<()> {
        self.ask(DETACH).map(drop)
    }

    /// Reports to whoever unmounts that the mount has ended and the vault is being closed.
    pub fn report_closing(&self) {
        self.speaker.closing();
    }

    /// Reports to whoever unmounts how the vault was closed.
    pub fn report_end(&self, word: &LastWord) {
        self.speaker.end(word);
    }

    /// Opens the log file that was planned, which the sandbox keeps from the daemon.
    pub fn open_log(&self) -> io::Result<File> {
        self.ask(OPEN_LOG)?.map(File::from).ok_or_else(|| io::Error::other("the log came without a descriptor"))
    }

    fn ask(&self, order: u8) -> io::Result<Option<OwnedFd>> {
        let mut socket = self.socket.held();
        socket.write_all(&[order])?;
        let (answer, device) = descriptor::receive(&socket)?;
        if answer == DONE {
            return Ok(device);
        }
        let mut head = [0; 6];
        socket.read_exact(&mut head)?;
        let code = i32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let mut sentence = vec![0; usize::from(u16::from_le_bytes([head[4], head[5]]))];
        socket.read_exact(&mut sentence)?;
        Err(match code {
            0 => io::Error::other(String::from_utf8_lossy(&sentence).into_owned()),
            code => io::Error::from_raw_os_error(code),
        })
    }
}

/// Lets go of all that the daemon, its caller and their terminal have.
fn settle_in(kept: &[RawFd], null: &File) {
    // SAFETY: plain settings of this process. Whoever signals all of a session or service means the daemon, which then has
    // something to ask.
    unsafe {
        libc::setsid();
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
            libc::signal(signal, libc::SIG_IGN);
        }
        libc::prctl(libc::PR_SET_NAME, NAME.as_ptr());
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        for fd in 0..=2 {
            libc::dup2(null.as_raw_fd(), fd);
        }
    }
    daemon::close_all_but(kept);
    let _ = std::env::set_current_dir("/");
}

/// What the process knows.
struct Attendant<'a> {
    mountpoint: PathBuf,
    /// The vault's directory.
    vault: PathBuf,
    options: &'a MountOptions,
    /// The log file, if there is one.
    log: Option<&'a Path>,
    /// The mount's device number, once it was made.
    device: Option<String>,
    /// Where the daemon's last word comes from, until a thread has it.
    word: Option<File>,
    /// The thread that passes that on.
    relay: Option<JoinHandle<()>>,
}

/// Follows orders until there is nobody to give them, and everybody has heard the last word.
fn attend(socket: UnixStream, mut attendant: Attendant<'_>) {
    follow_all(socket, &mut attendant);
    if let Some(relay) = attendant.relay.take() {
        let _ = relay.join();
    }
}

fn follow_all(mut socket: UnixStream, attendant: &mut Attendant<'_>) {
    let mut order = [0];
    loop {
        match socket.read(&mut order) {
            Ok(1..) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => return,
        }
        let said = match attendant.follow(order[0]) {
            Ok(Some(device)) => descriptor::send(&socket, DONE, device.as_fd()),
            Ok(None) => socket.write_all(&[DONE]),
            Err(e) => socket.write_all(&refusal(&e)),
        };
        if said.is_err() {
            return;
        }
    }
}

/// `!`, the system's number or 0, and a sentence if it is 0.
fn refusal(e: &io::Error) -> Vec<u8> {
    let code = e.raw_os_error().unwrap_or(0);
    let mut sentence = if code == 0 { e.to_string().into_bytes() } else { Vec::new() };
    sentence.truncate(SENTENCE_BYTES_MAX);
    let len = sentence.len() as u16;
    [&[REFUSED][..], &code.to_le_bytes(), &len.to_le_bytes(), &sentence].concat()
}

/// Bounds what the kernel accepts for this mount before it hands it over, however much memory the machine has: the vault
/// keeps room for so much on the backing filesystem, whose size this goes by. What cannot be set stays as the kernel has
/// it, a share of the memory.
fn bound_dirty(bdi: &Path, vault: &Path) {
    let total = DirBacking::open(vault).and_then(|dir| dir.space()).ok().flatten().map(|space| space.total_bytes);
    // Of a filesystem that does not tell its size, no room is kept.
    let bound = total.map_or(KERNEL_ROOM_BYTES, kernel_dirty_bytes);
    let most = std::fs::read_to_string(bdi.join("max_bytes")).ok().and_then(|text| text.trim().parse::<u64>().ok());
    // 0 stands for a share that is not bounded.
    if most.is_some_and(|most| most == 0 || most > bound) {
        let _ = std::fs::write(bdi.join("max_bytes"), bound.to_string());
    }
    // Without it the bound counts only once the whole machine has much to write back.
    let _ = std::fs::write(bdi.join("strict_limit"), "1");
}

/// Opens the kernel's limit of background requests of a mount by its device number, `major:minor`, if what the daemon may then
/// have to hold is bounded.
fn open_background_limit(device: &str) -> io::Result<File> {
    let most = std::fs::read_to_string(format!("/sys/class/bdi/{device}/max_bytes"))?;
    if !most.trim().parse::<u64>().is_ok_and(|most| (1..=BACKGROUND_DIRTY_BYTES_MAX).contains(&most)) {
        return Err(io::Error::other(format!("the kernel may hold {} bytes back", most.trim())));
    }
    // The kernel calls a connection by the device number as it keeps it; the major number of these is 0.
    let minor = device.strip_prefix("0:").ok_or(io::ErrorKind::InvalidInput)?;
    File::options().write(true).open(format!("/sys/fs/fuse/connections/{minor}/max_background"))
}

impl Attendant<'_> {
    fn follow(&mut self, order: u8) -> io::Result<Option<OwnedFd>> {
        match order {
            MOUNT if self.device.is_some() => Err(io::Error::other("it was mounted already")),
            MOUNT => self.mount().map(Some),
            OPEN_LOG => {
                let path = self.log.ok_or(io::ErrorKind::NotFound)?;
                super::log::open(path).map(|file| Some(file.into()))
            }
            READ_AHEAD => {
                let device = self.device.as_deref().ok_or(io::ErrorKind::NotFound)?;
                let bdi = PathBuf::from(format!("/sys/class/bdi/{device}"));
                bound_dirty(&bdi, &self.vault);
                std::fs::write(bdi.join("read_ahead_kb"), READ_AHEAD_KIB)?;
                Ok(None)
            }
            BACKGROUND => {
                let device = self.device.as_deref().ok_or(io::ErrorKind::NotFound)?;
                open_background_limit(device).map(|setting| Some(setting.into()))
            }
            UNMOUNT | DETACH => self.unmount(order == DETACH).map(|()| None),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn mount(&mut self) -> io::Result<OwnedFd> {
        let connection = fuse::attach(&self.mountpoint, self.options)?;
        let seen = mounts::topmost(&self.mountpoint)
            .and_then(|top| top.ok_or_else(|| io::Error::other("the mount cannot be seen")));
        let ready = seen.and_then(|mount| {
            self.relay = self.begin_relay(&mount.device)?;
            if let Some(interval) = self.options.write_back_every {
                // Without it, what files that stay open have got comes when the kernel sends it.
                let _ = write_back::start(mount.device.clone(), interval);
            }
            self.device = Some(mount.device);
            Ok(connection)
        });
        if ready.is_err() {
            let _ = fuse::detach(&self.mountpoint, true);
        }
        ready
    }

    /// Where no such socket can be had, the mount is made all the same, and `umount` goes by the lock file.
    fn begin_relay(&mut self, device: &str) -> io::Result<Option<JoinHandle<()>>> {
        // SAFETY: only asks, and cannot fail. The daemon split this process off.
        let daemon = unsafe { libc::getppid() };
        let (Some(word), Ok(listener)) = (self.word.take(), last_word::listen(device, daemon)) else { return Ok(None) };
        let mountpoint = self.mountpoint.clone();
        let relay = move || last_word::serve(&listener, word, daemon, &mountpoint);
        thread::Builder::new().name("last-word".to_owned()).spawn(relay).map(Some)
    }

    /// Takes the mount away, wherever it was moved, and every bind mount of it that this process sees: the daemon that orders this
    /// is about to end, and its mount must not stay behind dead.
    fn unmount(&self, lazily: bool) -> io::Result<()> {
        let nothing = || io::Error::from_raw_os_error(libc::EINVAL);
        let device = self.device.as_deref().ok_or_else(nothing)?;
        let places = mounts::places_of(device)?;
        if places.is_empty() {
            return match mounts::topmost(&self.mountpoint)? {
                Some(_) => Err(io::Error::other("something else is mounted there by now")),
                None => Err(nothing()),
            };
        }
        let mut refused = None;
        for place in &places {
            match fuse::detach(place, lazily) {
                Ok(()) => {}
                Err(e) if lazily => refused = refused.or(Some(e)),
                Err(e) => return Err(e),
            }
        }
        refused.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A mounter whose process is a thread.
    fn with_attendant(mountpoint: &Path) -> (Mounter, thread::JoinHandle<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mountpoint = mountpoint.to_owned();
        let attendant = thread::spawn(move || {
            let options = MountOptions::default();
            attend(
                theirs,
                Attendant {
                    mountpoint,
                    vault: "/".into(),
                    options: &options,
                    log: None,
                    device: None,
                    word: None,
                    relay: None,
                },
            );
        });
        (with_socket(ours), attendant)
    }

    /// One that has nobody to say a last word to.
    fn with_socket(socket: UnixStream) -> Mounter {
        let (nobody, _) = UnixStream::pair().unwrap();
        let speaker = Speaker::new(daemon::open_null().unwrap());
        Mounter { socket: Mutex::new(socket), speaker, broker: Broker::new(nobody) }
    }

    #[test]
    fn what_it_did_not_mount_it_takes_from_nobody() {
        // Something is mounted at both, and not by us.
        for place in ["/proc", "/"] {
            let (mounter, attendant) = with_attendant(Path::new(place));
            assert_eq!(mounter.unmount().unwrap_err().raw_os_error(), Some(libc::EINVAL));
            assert_eq!(mounter.detach().unwrap_err().raw_os_error(), Some(libc::EINVAL));
            assert!(mounter.read_further_ahead().is_err());
            assert!(mounts::topmost(Path::new(place)).unwrap().is_some());
            drop(mounter);
            attendant.join().unwrap();
        }
    }

    #[test]
    fn the_kernel_may_hold_back_no_more_than_the_vault_keeps_room_for() {
        let bdi = tempfile::tempdir().expect("a temporary directory");
        let total = DirBacking::open(bdi.path()).unwrap().space().unwrap().unwrap().total_bytes;
        let file = bdi.path().join("max_bytes");
        for before in ["0\n".to_owned(), (1_u64 << 40).to_string()] {
            std::fs::write(&file, before).unwrap();
            bound_dirty(bdi.path(), bdi.path());
            let after: u64 = std::fs::read_to_string(&file).unwrap().parse().unwrap();
            assert_eq!(after, kernel_dirty_bytes(total));
            assert!(after < crate::base::limits::kernel_room_bytes(total));
        }
        std::fs::write(&file, "4096").unwrap();
        bound_dirty(bdi.path(), bdi.path());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "4096", "a bound that is lower stays");
        assert_eq!(std::fs::read_to_string(bdi.path().join("strict_limit")).unwrap(), "1");
    }

    #[test]
    fn another_mount_in_the_place_of_its_own_is_let_be() {
        let options = MountOptions::default();
        let (mountpoint, device) = ("/proc".into(), Some("0:999999".to_owned()));
        let mut attendant =
            Attendant { mountpoint, vault: "/".into(), options: &options, log: None, device, word: None, relay: None };
        for order in [UNMOUNT, DETACH] {
            assert!(attendant.follow(order).unwrap_err().to_string().contains("something else"));
        }
        assert!(attendant.follow(MOUNT).unwrap_err().to_string().contains("already"));
    }

    #[test]
    fn it_ends_with_whoever_gave_the_orders_and_an_unknown_one_is_refused() {
        let (mounter, attendant) = with_attendant(Path::new("/nowhere"));
        assert!(mounter.ask(b'x').is_err());
        assert!(mounter.mount().is_err(), "there is no such directory");
        drop(mounter);
        attendant.join().unwrap();
    }

    #[test]
    fn an_attendant_that_is_gone_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(with_socket(ours).unmount().is_err());
    }

    #[test]
    fn an_error_comes_as_it_was() {
        for e in [io::Error::from_raw_os_error(libc::EBUSY), io::Error::other("a sentence")] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&refusal(&e)).unwrap();
            let came = with_socket(ours).unmount().unwrap_err();
            assert_eq!((came.raw_os_error(), came.to_string()), (e.raw_os_error(), e.to_string()));
        }
    }
}
