//! A directory that another process opens for us, since this one may not: after the sandbox, only what a rule names may be opened,
//! and a rule is tied to an inode that goes when its filesystem is unmounted.
//!
//! Promise: the broker opens the one directory that it was started for, by its path, and below it only what `beneath` opens: regular
//! files and directories. Each call is made once, and its error comes back as it was. Open files come as descriptors and are
//! read and written here.
//! Called by: `cli::mounter` (`serve`, in a thread of a process that never has a key), `cli::mount` (`Broker`).
//! Takes: the socket's lock, for one call. On failure: the `io::Error`; `UnexpectedEof` if the broker is gone.

use super::dir::{DirBacking, DirFile, identity_of, space_of};
use super::{Backing, BackingFile, Cache, Open, Space};
use crate::base::descriptor;
use crate::base::lock::Held;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// Longest message; a listing of a vault with a million segments is shorter.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const DONE: u8 = b'.';
const REFUSED: u8 = b'!';

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Call {
    Reopen = b'o',
    Close = b'c',
    Open = b'f',
    MakeDir = b'm',
    List = b'l',
    Rename = b'r',
    Remove = b'u',
    SyncDir = b's',
    Lock = b'k',
}

const CALLS: [Call; 9] = [
    Call::Reopen,
    Call::Close,
    Call::Open,
    Call::MakeDir,
    Call::List,
    Call::Rename,
    Call::Remove,
    Call::SyncDir,
    Call::Lock,
];

/// A request: the call, a number (of a directory), another (how; a process), and up to two names.
struct Request {
    call: Call,
    dir: u64,
    how: u32,
    names: Vec<String>,
}

impl Request {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.call as u8];
        out.extend_from_slice(&self.dir.to_le_bytes());
        out.extend_from_slice(&self.how.to_le_bytes());
        out.extend_from_slice(self.names.join("\0").as_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Request> {
        let (head, names) = bytes.split_at_checked(13)?;
        let call = CALLS.into_iter().find(|call| *call as u8 == head[0])?;
        let dir = u64::from_le_bytes(head[1..9].try_into().ok()?);
        let how = u32::from_le_bytes(head[9..13].try_into().ok()?);
        let names = str::from_utf8(names).ok()?.split('\0').map(str::to_owned).collect();
        Some(Request { call, dir, how, names })
    }

    fn name(&self, at: usize) -> io::Result<&str> {
        self.names.get(at).map(String::as_str).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

fn send(mut socket: &UnixStream, message: &[u8]) -> io::Result<()> {
    socket.write_all(&[&(message.len() as u32).to_le_bytes(), message].concat())
}

fn status(mut socket: &UnixStream, status: u8) -> io::Result<()> {
    socket.write_all(&[status])
}

fn receive(mut socket: &UnixStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    socket.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MESSAGE_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; len];
    socket.read_exact(&mut message)?;
    Ok(message)
}

/// Opens what is asked for below `path`, until nobody is left to ask.
pub fn serve(socket: &UnixStream, path: &Path) {
    let mut dirs = HashMap::new();
    let mut last = 0;
    while let Ok(message) = receive(socket) {
        let done = match Request::decode(&message) {
            Some(request) => follow(&request, path, &mut dirs, &mut last),
            None => Err(io::ErrorKind::InvalidInput.into()),
        };
        let sent = match done {
            Ok((Some(file), text)) => {
                let handed_over = descriptor::send(socket, DONE, file.as_fd());
                // Closed before the answer is whole: a lock goes with its last descriptor, and that is the asker's from then on.
                drop(file);
                handed_over.and_then(|()| send(socket, text.as_bytes()))
            }
            Ok((None, text)) => status(socket, DONE).and_then(|()| send(socket, text.as_bytes())),
            Err(e) => status(socket, REFUSED).and_then(|()| {
                let code = e.raw_os_error().unwrap_or(0);
                let sentence = if code == 0 { e.to_string() } else { String::new() };
                send(socket, &[&code.to_le_bytes()[..], sentence.as_bytes()].concat())
            }),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// What comes of a request: a descriptor, perhaps, and a text.
type Answer = (Option<OwnedFd>, String);

fn follow(request: &Request, path: &Path, dirs: &mut HashMap<u64, DirBacking>, last: &mut u64) -> io::Result<Answer> {
    if request.call == Call::Reopen {
        let dir = DirBacking::open(path)?;
        let descriptor = dir.top().try_clone_to_owned()?;
        *last += 1;
        dirs.insert(*last, dir);
        return Ok((Some(descriptor), last.to_string()));
    }
    if request.call == Call::Close {
        dirs.remove(&request.dir);
        return Ok((None, String::new()));
    }
    let dir = dirs.get(&request.dir).ok_or(io::ErrorKind::NotFound)?;
    let name = request.name(0)?;
    let nothing = |()| (None, String::new());
    match request.call {
        Call::Reopen | Call::Close => unreachable!("answered above"),
        Call::Open => {
            let how = match request.how & 3 {
                0 => Open::Read,
                1 => Open::Write,
                3 => Open::WriteUnshared,
                _ => Open::Create,
            };
            let cache = if request.how & 4 == 0 { Cache::Buffered } else { Cache::Direct };
            let (file, direct) = dir.open_file(name, how, cache)?;
            Ok((Some(file.into()), if direct { "direct" } else { "" }.to_owned()))
        }
        Call::Lock => Ok((Some(dir.lock_file(name, request.how)?.into()), String::new())),
        Call::MakeDir => dir.make_dir(name).map(nothing),
        Call::List => Ok((None, dir.list(name)?.join("\0"))),
        Call::Rename => dir.rename(name, request.name(1)?).map(nothing),
        Call::Remove => dir.remove(name).map(nothing),
        Call::SyncDir => dir.sync_dir(name).map(nothing),
    }
}

/// The way to the broker.
#[derive(Debug)]
pub struct Broker {
    socket: Mutex<UnixStream>,
}

impl Broker {
    /// By a socket whose other end `serve` has.
    #[must_use]
    pub fn new(socket: UnixStream) -> Arc<Broker> {
        Arc::new(Broker { socket: Mutex::new(socket) })
    }

    /// Opens the directory by its path, as that leads now.
    pub fn reopen(self: &Arc<Self>) -> io::Result<BrokeredDir> {
        let request = Request { call: Call::Reopen, dir: 0, how: 0, names: Vec::new() };
        let (top, text) = self.ask(&request)?;
        let (Some(top), Ok(number)) = (top, text.parse()) else { return Err(io::ErrorKind::InvalidData.into()) };
        Ok(BrokeredDir { broker: Arc::clone(self), top, number, refuses_direct: Arc::default() })
    }

    fn ask(&self, request: &Request) -> io::Result<Answer> {
        let socket = self.socket.held();
        send(&socket, &request.encode())?;
        let (status, descriptor) = descriptor::receive(&socket)?;
        let text = receive(&socket)?;
        if status == DONE {
            let text = String::from_utf8(text).map_err(|_| io::ErrorKind::InvalidData)?;
            return Ok((descriptor, text));
        }
        let Some((code, sentence)) = text.split_first_chunk() else { return Err(io::ErrorKind::InvalidData.into()) };
        Err(match i32::from_le_bytes(*code) {
            0 => io::Error::other(String::from_utf8_lossy(sentence).into_owned()),
            code => io::Error::from_raw_os_error(code),
        })
    }
}

/// A directory that the broker has opened.
pub struct BrokeredDir {
    broker: Arc<Broker>,
    top: OwnedFd,
    number: u64,
    refuses_direct: Arc<AtomicBool>,
}

impl BrokeredDir {
    fn ask(&self, call: Call, how: u32, names: &[&str]) -> io::Result<Answer> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.broker.ask(&Request { call, dir: self.number, how, names })
    }

    fn file(&self, call: Call, how: u32, path: &str) -> io::Result<(File, String)> {
        let (descriptor, text) = self.ask(call, how, &[path])?;
        Ok((File::from(descriptor.ok_or(io::ErrorKind::InvalidData)?), text))
    }
}

impl Drop for BrokeredDir {
    fn drop(&mut self) {
        // A broker that is gone has closed it already.
        let _ = self.ask(Call::Close, 0, &[]);
    }
}

impl Backing for BrokeredDir {
    fn open(&self, path: &str, how: Open, cache: Cache) -> io::Result<Arc<dyn BackingFile>> {
        let how = match how {
            Open::Read => 0,
            Open::Write => 1,
            Open::Create => 2,
            Open::WriteUnshared => 3,
        };
        let direct = cache == Cache::Direct && !self.refuses_direct.load(SeqCst);
        let (file, text) = self.file(Call::Open, how | if direct { 4 } else { 0 }, path)?;
        Ok(Arc::new(DirFile::new(file, text == "direct", &self.refuses_direct)))
    }
    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.ask(Call::MakeDir, 0, &[path]).map(drop)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let (_, text) = self.ask(Call::List, 0, &[path])?;
        Ok(text.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.ask(Call::Rename, 0, &[from, to]).map(drop)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.ask(Call::Remove, 0, &[path]).map(drop)
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.ask(Call::SyncDir, 0, &[path]).map(drop)
    }
    fn space(&self) -> io::Result<Option<Space>> {
        space_of(self.top.as_fd())
    }
    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        // The lock goes with the open file, which is ours alone once the broker has closed its descriptor.
        let (file, _) = self.file(Call::Lock, std::process::id(), path)?;
        Ok(Box::new(file))
    }
    fn identity(&self) -> io::Result<Option<(u64, u64)>> {
        identity_of(self.top.as_fd()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::{AlignedBuf, read_file, replace_file};
    use std::time::{Duration, Instant};

    #[test]
    fn a_brokered_directory_is_the_one_that_the_path_leads_to_when_it_is_opened() {
        let top = tempfile::tempdir().expect("a temporary directory");
        let path = top.path().join("vault");
        std::fs::create_dir(&path).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let served = path.clone();
        let server = std::thread::spawn(move || serve(&theirs, &served));
        let broker = Broker::new(ours);
        let first = broker.reopen().unwrap();
        first.make_dir("d").unwrap();
        replace_file(&first, "d", "a", b"one").unwrap();
        assert_eq!(
            (first.list("d").unwrap(), read_file(&first, "d/a", 9).unwrap()),
            (vec!["a".to_owned()], b"one".to_vec())
        );
        let own = DirBacking::open(&path).unwrap();
        assert_eq!(Backing::identity(&own).unwrap(), first.identity().unwrap());
        assert_eq!(own.space().unwrap().map(|s| s.total_bytes), first.space().unwrap().map(|s| s.total_bytes));

        let lock = first.lock("lock").unwrap();
        assert_eq!(own.lock("lock").err().unwrap().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(read_file(&own, "lock", 99).unwrap(), format!("{}\n", std::process::id()).as_bytes());
        drop(lock);
        // Processes that other tests fork have a copy of the descriptor until they exec or end; a broker would keep its own for ever.
        let begun = Instant::now();
        while let Err(e) = own.lock("lock") {
            assert!(begun.elapsed() < Duration::from_secs(30), "the broker keeps the lock: {e}");
            std::thread::sleep(Duration::from_millis(10));
        }

        let file = first.open("d/direct", Open::Create, Cache::Direct).unwrap();
        let mut out = AlignedBuf::with_capacity(4096);
        out.set_len(4096);
        out.fill(7);
        file.write_all_at(&out, 0).unwrap();
        let mut back = AlignedBuf::with_capacity(4096);
        back.set_len(4096);
        assert_eq!((file.read_device(&mut back, 0).unwrap(), back[..] == out[..]), (4096, true));

        // Another directory at the same path.
        std::fs::rename(&path, top.path().join("old")).unwrap();
        std::fs::create_dir(&path).unwrap();
        let second = broker.reopen().unwrap();
        assert_ne!(first.identity().unwrap(), second.identity().unwrap());
        assert!(second.list("").unwrap().is_empty() && first.list("").unwrap() == ["d", "lock"]);
        assert_eq!(second.remove("x").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(first.remove("../vault").is_err() && first.open("../vault", Open::Read, Cache::Buffered).is_err());
        drop((first, second, broker));
        server.join().unwrap();
    }
}
