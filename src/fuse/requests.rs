//! Requests in, replies out: each request of the kernel becomes one call of `fs`, each result one reply.
//!
//! Promise: decides nothing; every request is answered, also when the call panics (the reply, dropped, answers EIO).
//! What is not offered is answered with ENOSYS once, and the kernel then does it by itself or does without: open,
//! opendir, create (the kernel makes the file with MKNOD, since we are the only writer nothing can come between), flush,
//! access, copy_file_range. Called by: `fuser`'s threads. On failure: the errno that `fs::errno` decided.

use super::attr::{KEEP, file_attr, file_type, no_entry, sent, set_time, ttl};
use super::door::Door;
use super::seek::{self, Kernel, Seeker};
use super::set_id::{self, SetIds};
use super::{groups, privileges};
use crate::base::id::{Ino, ROOT_INO};
use crate::base::limits::{FUSE_BACKGROUND_MAX, request_bytes};
use crate::fs::{
    Attr, Caller, Fallocate, FileSystem, FsFault, OpKind, RenameHow, Seek, SetAttr, Sought, WriteHow, XattrHow,
    XattrReply,
};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

/// Inode numbers are never used again, so one generation is enough.
const GENERATION: Generation = Generation(0);

thread_local! {
    /// What a READ answers with; each thread has its own, kept at the size of the largest so far.
    static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The kernel's requests, put to a filesystem.
pub(super) struct Requests {
    fs: Arc<FileSystem>,
    /// Whether the kernel caches writes, and with them owns the times.
    writeback: AtomicBool,
    /// Whether the kernel is to ask for access control lists.
    acl: bool,
    seeker: Seeker,
    /// Who is let in, where the kernel lets everybody.
    door: Option<Door>,
    /// Whether the mount may be shown elsewhere with other owners. The kernel then names the user only where a request makes
    /// something, which the door could not do with.
    idmap: bool,
    set_ids: SetIds,
}

/// Asks the filesystem for others of this folder.
pub(super) struct Asker(Arc<FileSystem>);

impl Asker {
    pub(super) fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Answer<Sought> {
        run(&self.0, OpKind::Lseek, INodeNo(ino.0), |fs, ino| fs.seek(ino, offset, what))
    }
    pub(super) fn errno(&self, ino: Ino, fault: &FsFault) -> Errno {
        Errno::from_i32(self.0.answer(OpKind::Lseek, ino, fault))
    }
}

/// Runs one operation: counted, timed, its fault turned into an errno; one that panicked is EIO.
fn run<T>(
    fs: &FileSystem,
    kind: OpKind,
    ino: INodeNo,
    call: impl FnOnce(&FileSystem, Ino) -> Result<T, FsFault>,
) -> Answer<T> {
    let world = fs.vault().world();
    let start = world.elapsed();
    fs.ops().begin(kind);
    let ino = Ino(ino.0);
    let result = catch_unwind(AssertUnwindSafe(|| call(fs, ino))).unwrap_or_else(|_| {
        log::error!("{} on inode {ino} panicked", kind.name());
        Err(FsFault::Vault(crate::vault::VaultFault::Panicked))
    });
    fs.ops().record(kind, world.elapsed().saturating_sub(start), result.is_err());
    result.map_err(|fault| Errno::from_i32(fs.answer(kind, ino, &fault)))
}

/// A fault with the errno already decided.
type Answer<T> = Result<T, Errno>;

fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask }
}

impl Requests {
    /// `acl`: whether the kernel is to check permissions by access control lists.
    pub(super) fn new(
        fs: Arc<FileSystem>,
        acl: bool,
        idmap: bool,
        kernel: Kernel,
        door: Option<Door>,
    ) -> io::Result<Requests> {
        let seeker = Seeker::start(Asker(Arc::clone(&fs)), kernel)?;
        Ok(Requests { fs, writeback: AtomicBool::new(false), acl, seeker, door, idmap, set_ids: SetIds::default() })
    }

    /// Runs an operation for whoever the door lets in.
    fn run<T>(
        &self,
        request: &Request,
        kind: OpKind,
        ino: INodeNo,
        call: impl FnOnce(&FileSystem, Ino) -> Result<T, FsFault>,
    ) -> Answer<T> {
        self.admit(request)?;
        run(&self.fs, kind, ino, call)
    }

    fn admit(&self, request: &Request) -> Answer<()> {
        match &self.door {
            Some(door) if !door.lets_in(request, self.fs.vault().world().elapsed()) => {
                Err(Errno::from_i32(FsFault::NotLetIn.errno()))
            }
            _ => Ok(()),
        }
    }

    /// How long the kernel may keep attributes. With a door it must ask for the root's at each step through it, so that every
    /// path is walked past the door, also to what the kernel has in its caches.
    fn ttl(&self, a: &Attr) -> Duration {
        if self.door.is_some() && a.ino == ROOT_INO { Duration::ZERO } else { ttl(a) }
    }

    fn entry(&self, reply: ReplyEntry, made: Answer<Attr>) {
        match made {
            Ok(a) => reply.entry(&self.ttl(&a), &file_attr(&a), GENERATION),
            Err(e) => reply.error(e),
        }
    }

    /// Answers when everything acknowledged so far is safe; this thread is free meanwhile.
    fn sync(&self, request: &Request, kind: OpKind, ino: INodeNo, reply: ReplyEmpty) {
        if let Err(e) = self.admit(request) {
            return reply.error(e);
        }
        let fs = self.fs.clone();
        let start = fs.vault().world().elapsed();
        fs.ops().begin(kind);
        let started = catch_unwind(AssertUnwindSafe(|| {
            self.fs.sync(Box::new(move |result| {
                fs.ops().record(kind, fs.vault().world().elapsed().saturating_sub(start), result.is_err());
                match result {
                    Ok(()) => reply.ok(),
                    Err(fault) => reply.error(Errno::from_i32(fs.answer(kind, Ino(ino.0), &FsFault::Vault(fault)))),
                }
            }));
        }));
        if started.is_err() {
            log::error!("{} on inode {ino} panicked", kind.name());
        }
    }
}

fn empty(reply: ReplyEmpty, done: Answer<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

fn xattr(reply: ReplyXattr, found: Answer<XattrReply>) {
    match found {
        Ok(XattrReply::Length(n)) => reply.size(n),
        Ok(XattrReply::Bytes(bytes)) => reply.data(&bytes),
        Err(e) => reply.error(e),
    }
}

impl Filesystem for Requests {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Where a quota may refuse bytes, each write asks us, and is told: what the cache cannot give away later it tells with
        // fsync, and with close as EIO, and many programs look at neither.
        let keeps_writes = !self.fs.vault().limits_bytes();
        // No ATOMIC_O_TRUNC: with open unanswered, truncation must come as SETATTR.
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
            // What is made in a directory with a default list does not go by the umask.
            InitFlags::FUSE_DONT_MASK,
            // A handle outlives the kernel's memory of an inode: it asks for "." of the number.
            InitFlags::FUSE_EXPORT_SUPPORT,
        ]
        .into_iter()
        .chain(keeps_writes.then_some(InitFlags::FUSE_WRITEBACK_CACHE))
        // Where root mounts for root the kernel checks nothing, lists neither; with this it would, and it would ask for a
        // directory's attributes again after each change in it.
        .chain(self.acl.then_some(InitFlags::FUSE_POSIX_ACL))
        .chain(self.idmap.then_some(InitFlags::FUSE_ALLOW_IDMAP))
        {
            if let Err(missing) = config.add_capabilities(wanted) {
                log::info!("this kernel does without {missing:?}");
            }
        }
        // What the kernel could do, whether or not it was asked to.
        let could = config.capabilities().contains(InitFlags::FUSE_WRITEBACK_CACHE);
        self.writeback.store(keeps_writes && could, Relaxed);
        self.fs.kernel_keeps_writes(self.writeback.load(Relaxed));
        let most = request_bytes(self.fs.vault().gauges().budget_bytes);
        // Refusals name the nearest value that is allowed.
        if let Err(nearest) = config.set_max_write(most) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(most) {
            let _ = config.set_max_readahead(nearest);
        }
        if let Err(nearest) = config.set_max_background(FUSE_BACKGROUND_MAX) {
            let _ = config.set_max_background(nearest);
        }
        // As many as those: with fewer, what readers have under way would keep the kernel from writing back.
        if let Err(nearest) = config.set_congestion_threshold(FUSE_BACKGROUND_MAX) {
            let _ = config.set_congestion_threshold(nearest);
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.run(request, OpKind::Lookup, parent, |fs, ino| match fs.lookup(ino, name.as_bytes()) {
            Ok(attr) => Ok(Some(attr)),
            // In `/.storage` nothing is to be remembered, but there the names are fixed.
            Err(FsFault::NoEntry) => Ok(None),
            Err(fault) => Err(fault),
        });
        match found {
            Ok(Some(a)) => reply.entry(&self.ttl(&a), &file_attr(&a), GENERATION),
            Ok(None) => reply.entry(&KEEP, &no_entry(), GENERATION),
            Err(e) => reply.error(e),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        let _ = run(&self.fs, OpKind::Forget, ino, |fs, ino| {
            fs.forget(ino, count);
            Ok(())
        });
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.run(request, OpKind::Getattr, ino, |fs, ino| fs.getattr(ino)) {
            Ok(a) => reply.attr(&self.ttl(&a), &file_attr(&a)),
            Err(e) => reply.error(e),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (atime, mtime, ctime) = (atime.map(set_time), mtime.map(set_time), ctime.map(sent));
        let mut set = SetAttr { mode, uid, gid, size, atime, mtime, ctime, ..SetAttr::default() };
        let task = request.pid();
        self.set_ids.decide(&self.fs, task, Ino(ino.0), &mut set);
        // Who asks was just looked up, since the request may not name the user.
        match self.run(request, OpKind::Setattr, ino, |fs, ino| fs.setattr(&Caller::default(), ino, &set)) {
            Ok(a) => {
                self.set_ids.note(task, &set, &a);
                reply.attr(&self.ttl(&a), &file_attr(&a));
            }
            Err(e) => reply.error(e),
        }
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.run(request, OpKind::Readlink, ino, |fs, ino| fs.readlink(ino)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(e),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let call = |fs: &FileSystem, ino| fs.mknod(&caller(request, umask), ino, name.as_bytes(), mode, rdev);
        self.entry(reply, self.run(request, OpKind::Mknod, parent, call));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let call = |fs: &FileSystem, ino| fs.mkdir(&caller(request, umask), ino, name.as_bytes(), mode);
        self.entry(reply, self.run(request, OpKind::Mkdir, parent, call));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.run(request, OpKind::Unlink, parent, |fs, ino| fs.unlink(ino, name.as_bytes())));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.run(request, OpKind::Rmdir, parent, |fs, ino| fs.rmdir(ino, name.as_bytes())));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        let call = |fs: &FileSystem, ino| fs.symlink(&caller(request, 0), ino, name.as_bytes(), target);
        self.entry(reply, self.run(request, OpKind::Symlink, parent, call));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let call = |fs: &FileSystem, ino| {
            let how = RenameHow::from_flags(flags.bits(), &caller(request, 0)).ok_or(FsFault::Invalid)?;
            fs.rename(ino, name.as_bytes(), Ino(new_parent.0), new_name.as_bytes(), how)
        };
        empty(reply, self.run(request, OpKind::Rename, parent, call));
    }

    fn link(&self, request: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let call = |fs: &FileSystem, ino| fs.link(ino, Ino(new_parent.0), new_name.as_bytes());
        self.entry(reply, self.run(request, OpKind::Link, ino, call));
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ.with_borrow_mut(|out| {
            out.clear();
            match self.run(request, OpKind::Read, ino, |fs, ino| fs.read(ino, offset, size as usize, out)) {
                Ok(()) => reply.data(out),
                Err(e) => reply.error(e),
            }
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _open_flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let drop_set_id = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let how = WriteHow { drop_set_id, stamp: !self.writeback.load(Relaxed) };
        match self.run(request, OpKind::Write, ino, |fs, ino| fs.write(ino, offset, data, how)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(e),
        }
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(request, OpKind::Fsync, ino, reply);
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(request, OpKind::Fsyncdir, ino, reply);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.run(request, OpKind::Readdir, ino, |fs, ino| {
            fs.readdir(ino, offset, |e| {
                !reply.add(INodeNo(e.ino.0), e.offset, file_type(e.kind), OsStr::from_bytes(&e.name))
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut given = Vec::new();
        let listed = self.run(request, OpKind::Readdirplus, ino, |fs, ino| {
            fs.readdirplus(ino, offset, |e| {
                let Some(a) = e.attr else { return false };
                let name = OsStr::from_bytes(&e.name);
                let full = reply.add(INodeNo(e.ino.0), e.offset, name, &self.ttl(&a), &file_attr(&a), GENERATION);
                if !full && !matches!(&*e.name, b"." | b"..") {
                    given.push(e.ino);
                }
                !full
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => {
                // The kernel never hears of these, so it will not forget them.
                given.into_iter().for_each(|ino| self.fs.forget(ino, 1));
                reply.error(e);
            }
        }
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.run(request, OpKind::Statfs, ino, |fs, ino| fs.statfs_at(ino)) {
            Ok(s) => reply.statfs(
                s.blocks,
                s.blocks_free,
                s.blocks_free,
                s.inodes,
                s.inodes_free,
                s.block_bytes,
                s.name_bytes_max,
                s.block_bytes,
            ),
            Err(e) => reply.error(e),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let call = |fs: &FileSystem, ino| {
            let how = XattrHow::from_flags(flags).ok_or(FsFault::Invalid)?;
            let may_keep = |gid| groups::has(request, gid) || privileges::may_keep_set_id(request.pid());
            fs.setxattr_by(ino, name.as_bytes(), value, how, may_keep)
        };
        empty(reply, self.run(request, OpKind::Setxattr, ino, call));
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.set_ids.interrupt(Ino(ino.0));
        xattr(reply, self.run(request, OpKind::Getxattr, ino, |fs, ino| fs.getxattr(ino, name.as_bytes(), size)));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let sees_trusted = || request.uid() == 0 || privileges::sees_trusted(request.pid());
        xattr(reply, self.run(request, OpKind::Listxattr, ino, |fs, ino| fs.listxattr_for(ino, size, sees_trusted)));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.run(request, OpKind::Removexattr, ino, |fs, ino| fs.removexattr(ino, name.as_bytes())));
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let drop_set_id = set_id::dropped_by(&self.fs, request.pid(), Ino(ino.0));
        let call = |fs: &FileSystem, ino| {
            let what = Fallocate::from_mode(mode).ok_or(FsFault::Unsupported)?;
            fs.fallocate_by(ino, offset, length, what, drop_set_id)
        };
        empty(reply, self.run(request, OpKind::Fallocate, ino, call));
    }

    fn lseek(&self, request: &Request, ino: INodeNo, _handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        // The kernel does the other kinds by itself, and knows that no file has bytes before the first.
        let (Some(what), Ok(offset)) = (Seek::from_whence(whence), u64::try_from(offset)) else {
            return reply.error(Errno::ENXIO);
        };
        let found = self.run(request, OpKind::Lseek, ino, |fs, ino| {
            let sought = fs.seek(ino, offset, what)?;
            Ok((seek::sure(&sought).transpose()?, sought))
        });
        match found {
            Ok((Some(at), _)) => reply.offset(at as i64),
            // Also where it keeps no writes: what is written through a mapping it has in any case.
            Ok((None, sought)) => self.seeker.answer(Ino(ino.0), offset, what, sought, reply),
            Err(e) => reply.error(e),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        _handle_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _handle_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel says of a write whether the set-id bits must go, and not of a copy.
        let how = WriteHow {
            drop_set_id: set_id::dropped_by(&self.fs, request.pid(), Ino(ino_out.0)),
            stamp: !self.writeback.load(Relaxed),
        };
        // The answer has 32 bits.
        let len = len.min(u64::from(u32::MAX));
        let call =
            |fs: &FileSystem, ino_out| fs.copy_file_range(Ino(ino_in.0), offset_in, ino_out, offset_out, len, how);
        match self.run(request, OpKind::CopyFileRange, ino_out, call) {
            Ok(copied) => reply.written(copied as u32),
            Err(e) => reply.error(e),
        }
    }
}
