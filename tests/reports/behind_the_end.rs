//! Bytes that a program writes through a mapping behind the end of a file.
//!
//! ext4 hides them when the file grows. Linux shows them on every FUSE filesystem when no write-back came first.
//! Method: the same program runs on the mount, on a FUSE filesystem of a hundred lines that keeps files in memory, and
//! on ext4. The mount must agree with the small filesystem; `docs/semantics.md` states where that differs from ext4.

use crate::common::disk::Disk;
use crate::common::{TestVault, needs_root};
use fuser::{
    BackgroundSession, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite,
    Request, WriteFlags,
};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

/// Length of a page, and so of the mapping.
const PAGE: usize = 4096;
/// The file's length after it grew.
const GROWN: u64 = 9000;

/// A call that makes a file longer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Grow {
    Truncate,
    Write,
    Fallocate,
    ZeroRange,
    CopyFileRange,
}

const CALLS: [Grow; 5] = [Grow::Truncate, Grow::Write, Grow::Fallocate, Grow::ZeroRange, Grow::CopyFileRange];

/// What happens to the mapping between the stray bytes and the call that grows the file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Between {
    Nothing,
    Fsync,
    MsyncAndUnmap,
}

const BETWEEN: [Between; 3] = [Between::Nothing, Between::Fsync, Between::MsyncAndUnmap];
/// Lengths of the file at first.
const LENGTHS: [usize; 2] = [1, 100];
/// The file that `CopyFileRange` copies from has the number behind those of the files that grow.
const FILES: usize = CALLS.len() * BETWEEN.len() * LENGTHS.len();

/// One trial: what was done, and whether the stray bytes are now in the file.
#[derive(Debug, PartialEq)]
struct Outcome {
    grow: Grow,
    between: Between,
    len: usize,
    stray_bytes_are_seen: bool,
}

/// Makes every trial below `dir`, in which the files `0` to `FILES` may exist and are empty.
fn outcomes(dir: &Path) -> Vec<Outcome> {
    let open = |n: usize| {
        let create = !dir.join(n.to_string()).exists();
        OpenOptions::new().create(create).read(true).write(true).truncate(false).open(dir.join(n.to_string())).unwrap()
    };
    let source = open(FILES);
    source.write_all_at(&[b's'; GROWN as usize], 0).unwrap();
    let mut found = Vec::new();
    for grow in CALLS {
        for between in BETWEEN {
            for len in LENGTHS {
                let file = open(found.len());
                file.write_all_at(&vec![b'a'; len], 0).unwrap();
                stray(&file, len, between);
                make_longer(&file, &source, grow);
                let mut read = vec![0; GROWN as usize];
                let n = file.read_at(&mut read, 0).unwrap();
                assert!(n > PAGE, "{grow:?} made the file {n} bytes long");
                // A zeroed range and a copied one begin at the page's end, so that what lies before is untouched.
                let stray_bytes_are_seen = read[len..PAGE - 96].contains(&b'X');
                found.push(Outcome { grow, between, len, stray_bytes_are_seen });
            }
        }
    }
    found
}

/// Writes `X` through a mapping, from the file's end to the end of its page.
fn stray(file: &File, len: usize, between: Between) {
    // SAFETY: a new mapping of a page in which the file has at least one byte; it is unmapped below, where nothing refers to it.
    unsafe {
        let (fd, may) = (file.as_raw_fd(), libc::PROT_READ | libc::PROT_WRITE);
        let page = libc::mmap(std::ptr::null_mut(), PAGE, may, libc::MAP_SHARED, fd, 0);
        assert_ne!(page, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        std::ptr::write_bytes(page.cast::<u8>().add(len), b'X', PAGE - len);
        if between == Between::MsyncAndUnmap {
            assert_eq!(libc::msync(page, PAGE, libc::MS_SYNC), 0);
        }
        libc::munmap(page, PAGE);
    }
    if between == Between::Fsync {
        file.sync_all().unwrap();
    }
}

fn make_longer(file: &File, source: &File, grow: Grow) {
    let (fd, rest) = (file.as_raw_fd(), GROWN as i64 - PAGE as i64);
    let done = match grow {
        Grow::Truncate => return file.set_len(GROWN).unwrap(),
        Grow::Write => return file.write_all_at(b"w", GROWN - 1).unwrap(),
        // SAFETY: plain numbers.
        Grow::Fallocate => unsafe { libc::fallocate(fd, 0, 0, GROWN as i64) },
        // SAFETY: plain numbers.
        Grow::ZeroRange => unsafe { libc::fallocate(fd, libc::FALLOC_FL_ZERO_RANGE, 4000, GROWN as i64 - 4000) },
        Grow::CopyFileRange => {
            let (mut from, mut to) = (0, PAGE as i64);
            // SAFETY: both offsets live through the call.
            let n =
                unsafe { libc::copy_file_range(source.as_raw_fd(), &raw mut from, fd, &raw mut to, rest as usize, 0) };
            -i32::from(n as i64 != rest)
        }
    };
    assert_eq!(done, 0, "{grow:?}: {}", io::Error::last_os_error());
}

/// A FUSE filesystem that keeps `FILES` + 1 files in memory; their names are their numbers.
struct InMemory(Mutex<Vec<Vec<u8>>>);

const KEEP: Duration = Duration::from_secs(3600);

fn attr(ino: u64, len: usize) -> FileAttr {
    let (kind, perm) = if ino == 1 { (FileType::Directory, 0o755) } else { (FileType::RegularFile, 0o644) };
    FileAttr {
        ino: INodeNo(ino),
        size: len as u64,
        blocks: len.div_ceil(512) as u64,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: PAGE as u32,
        flags: 0,
    }
}

impl InMemory {
    fn with<T>(&self, ino: INodeNo, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        work(&mut self.0.lock().unwrap()[ino.0 as usize - 2])
    }

    fn mounted(at: &Path) -> BackgroundSession {
        let files = InMemory(Mutex::new(vec![Vec::new(); FILES + 1]));
        fuser::spawn_mount(files, at, &Config::default()).expect("a FUSE filesystem is mounted")
    }

    fn put(&self, ino: INodeNo, offset: u64, data: &[u8]) {
        self.with(ino, |f| {
            let end = offset as usize + data.len();
            f.resize(f.len().max(end), 0);
            f[offset as usize..end].copy_from_slice(data);
        });
    }
}

impl Filesystem for InMemory {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.add_capabilities(InitFlags::FUSE_WRITEBACK_CACHE);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str().and_then(|n| n.parse::<u64>().ok()).filter(|n| *n <= FILES as u64) {
            Some(n) => {
                let len = self.with(INodeNo(n + 2), |f| f.len());
                reply.entry(&KEEP, &attr(n + 2, len), Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let len = if ino.0 == 1 { PAGE } else { self.with(ino, |f| f.len()) };
        reply.attr(&KEEP, &attr(ino.0, len));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<fuser::TimeOrNow>,
        _: Option<fuser::TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let len = self.with(ino, |f| {
            f.resize(size.map_or(f.len(), |n| n as usize), 0);
            f.len()
        });
        reply.attr(&KEEP, &attr(ino.0, len));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.with(ino, |f| {
            let from = f.len().min(offset as usize);
            reply.data(&f[from..f.len().min(from + size as usize)]);
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.put(ino, offset, data);
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode & libc::FALLOC_FL_ZERO_RANGE != 0 {
            self.put(ino, offset, &vec![0; length as usize]);
        } else {
            self.with(ino, |f| f.resize(f.len().max((offset + length) as usize), 0));
        }
        reply.ok();
    }

    fn copy_file_range(
        &self,
        _: &Request,
        from: INodeNo,
        _: FileHandle,
        offset_from: u64,
        to: INodeNo,
        _: FileHandle,
        offset_to: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let data = self.with(from, |f| f[offset_from as usize..][..len as usize].to_vec());
        self.put(to, offset_to, &data);
        reply.written(len as u32);
    }
}

#[test]
fn stray_bytes_behind_the_end_are_seen_where_linux_shows_them_on_fuse() {
    needs_root("mount an ext4");
    let v = TestVault::mounted();
    let small = v.outside("small");
    fs::create_dir(&small).unwrap();
    let on_fuse = {
        let _session = InMemory::mounted(&small);
        outcomes(&small)
    };
    let disk = Disk::ext4(64);
    let on_ext4 = outcomes(&disk.at);
    let here = outcomes(&v.mnt);

    assert!(on_ext4.iter().all(|o| !o.stray_bytes_are_seen), "on ext4: {on_ext4:#?}");
    let differ: Vec<_> = here.iter().zip(&on_fuse).filter(|(a, b)| a != b).collect();
    assert!(differ.is_empty(), "the mount and another FUSE filesystem: {differ:#?}");
    // Stated in docs/semantics.md: write-back comes first, or the call does not take the kernel's page as it is.
    for o in &here {
        let safe = o.between != Between::Nothing || o.grow == Grow::ZeroRange;
        assert!(!safe || !o.stray_bytes_are_seen, "{o:?}");
    }
    // The vault keeps what the program saw.
    v.checked_remount();
    for (n, o) in here.iter().enumerate() {
        let kept = fs::read(v.path(n.to_string())).unwrap();
        assert_eq!(kept.contains(&b'X'), o.stray_bytes_are_seen, "after a remount, {o:?}");
    }
}
