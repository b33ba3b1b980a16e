//! Requests in, replies out: each request of the kernel becomes one call of `fs`, each result one reply.
//!
//! Promise: decides nothing; every request is answered, also when the call panics (the reply, dropped, answers EIO).
//! What is not offered is answered with ENOSYS once, and the kernel then does it by itself or does without: open,
//! opendir, create (the kernel makes the file with MKNOD, since we are the only writer nothing can come between), flush,
//! access, copy_file_range. Called by: `fuser`'s threads. On failure: the errno that `fs::errno` decided.

use super::attr::{GENERATION, KEEP, file_attr, file_type, no_entry, sent, set_time, ttl};
use super::background::Background;
use super::door::Door;
use super::held::Holder;
use super::negotiate::negotiate;
use super::operation::{Answer, Asker, run};
use super::page_cache::PageCache;
use super::reply::{statfs, written, xattr};
use super::seek::{self, Kernel, Seeker};
use super::set_id::{self, SetIds};
use super::spare::{Spare, Waits};
use super::synchronous::{Synchronous, changed, entry, sync, when_durable};
use super::writes::{WriteRequest, Writes};
use super::{MountOptions, groups, privileges};
use crate::base::id::{Ino, ROOT_INO};
use crate::base::limits::FREE_INOS;
use crate::fs::{Attr, Caller, Fallocate, FileSystem, FsFault, OpKind, RenameHow, Seek, SetAttr, WriteHow, XattrHow};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

thread_local! {
    /// What a READ answers with; each thread has its own, kept at the size of the largest so far.
    static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The kernel's requests, put to a filesystem.
pub(super) struct Requests {
    fs: Arc<FileSystem>,
    /// Whether the kernel is to ask for access control lists.
    acl: bool,
    seeker: Seeker,
    writes: Arc<Writes>,
    /// Where operations run that may wait.
    spare: Arc<Spare>,
    /// Who is let in, where the kernel lets everybody.
    door: Option<Door>,
    /// Whether the mount may be shown elsewhere with other owners. The kernel then names the user only where a request makes
    /// something, which the door could not do with.
    idmap: bool,
    set_ids: SetIds,
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask }
}

impl Requests {
    pub(super) fn new(
        fs: Arc<FileSystem>,
        options: &MountOptions,
        kernel: Kernel,
        door: Option<Door>,
    ) -> io::Result<Requests> {
        let page_cache = PageCache::start(kernel.clone())?;
        let asker = Asker(Arc::clone(&fs));
        let seeker = Seeker::start(asker.clone(), kernel.clone(), options.threads)?;
        let holder = Holder::start(asker, kernel, options.full_deadline)?;
        let (acl, synchronous) = (options.has_lists(), Synchronous::of(&options.kernel));
        let idmap = options.kernel_checks() && door.is_none();
        let (writeback, set_ids) = (AtomicBool::new(false), SetIds::default());
        let spare = Arc::new(Spare::new(options.threads));
        let to = Arc::clone(&spare);
        let writes = Writes { fs: Arc::clone(&fs), writeback, page_cache, synchronous, holder, spare: to };
        Ok(Requests { fs, acl, seeker, writes: Arc::new(writes), spare, door, idmap, set_ids })
    }

    /// The kernel's limit of background requests.
    pub(super) fn background(&self) -> Background {
        self.writes.holder.background()
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

    /// Makes an inode and answers with it; may wait for room.
    fn make(
        &self,
        request: &Request,
        kind: OpKind,
        parent: INodeNo,
        reply: ReplyEntry,
        make: impl FnOnce(&FileSystem, Ino) -> Result<Attr, FsFault> + Send + 'static,
    ) {
        if let Err(e) = self.admit(request) {
            return reply.error(e);
        }
        let (fs, wait) = (Arc::clone(&self.fs), self.writes.synchronous.names);
        self.spare.run(Waits::Changing, move || {
            let made = run(&fs, kind, parent, make);
            entry(&fs, wait, kind, reply, made);
        });
    }

    /// Answers a change of a directory.
    fn name_changed(&self, kind: OpKind, parent: INodeNo, reply: ReplyEmpty, done: Answer<()>) {
        changed(&self.fs, self.writes.synchronous.names, kind, parent, reply, done);
    }

    /// Answers another change.
    fn changed(&self, kind: OpKind, ino: INodeNo, reply: ReplyEmpty, done: Answer<()>) {
        changed(&self.fs, self.writes.synchronous.changes, kind, ino, reply, done);
    }

    /// Answers when everything acknowledged so far is durable.
    fn sync(&self, request: &Request, kind: OpKind, ino: INodeNo, reply: ReplyEmpty) {
        match self.admit(request) {
            Ok(()) => sync(&self.fs, kind, Ino(ino.0), reply),
            Err(e) => reply.error(e),
        }
    }
}

impl Filesystem for Requests {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let writeback = negotiate(config, &self.fs, self.acl, self.idmap);
        self.writes.writeback.store(writeback, Relaxed);
        self.fs.kernel_keeps_writes(writeback);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.run(request, OpKind::Lookup, parent, |fs, ino| {
            match fs.lookup_by(request.pid(), ino, name.as_bytes()) {
                Ok(attr) => Ok(Some(attr)),
                // In `/.storage` nothing is to be remembered, but there the names are fixed.
                Err(FsFault::NoEntry) => Ok(None),
                Err(fault) => Err(fault),
            }
        });
        match found {
            Ok(Some(a)) => reply.entry(&self.ttl(&a), &file_attr(&a), GENERATION),
            // What a program makes in `/.storage` comes to lie in another directory, where this one's memory is no use.
            Ok(None) if FREE_INOS.contains(&parent.0) => reply.error(Errno::ENOENT),
            Ok(None) => reply.entry(&KEEP, &no_entry(), GENERATION),
            Err(e) => reply.error(e),
        }
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        let _ = run(&self.fs, OpKind::Forget, ino, |fs, ino| {
            fs.forget(ino, count);
            // With the inode, the kernel forgets the error that it had for it.
            fs.vault().stats().unwritten.keep(ino);
            Ok(())
        });
    }

    fn getattr(&self, request: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let is_marked = self.writes.holder.is_marked(Ino(ino.0));
        let found = self.run(request, OpKind::Getattr, ino, |fs, ino| fs.getattr(ino));
        match found {
            // A program is about to write, and its file is marked.
            Ok(a) if is_marked && handle.is_some() => {
                self.writes.holder.ask(a, self.ttl(&a), reply);
            }
            Ok(a) => reply.attr(&self.ttl(&a), &file_attr(&a)),
            Err(e) => reply.error(e),
        }
        if is_marked && handle.is_none() {
            self.writes.holder.mark(Ino(ino.0));
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
                if let Some(len) = size {
                    self.fs.vault().stats().unwritten.cut(a.ino, len);
                }
                self.set_ids.note(task, &set, &a);
                let ttl = self.ttl(&a);
                let wait = self.writes.synchronous.changes;
                when_durable(wait, &self.fs, OpKind::Setattr, a.ino, move |durable| match durable {
                    Ok(()) => reply.attr(&ttl, &file_attr(&a)),
                    Err(e) => reply.error(e),
                });
            }
            Err(e) => reply.error(e),
        }
        if self.writes.holder.is_marked(Ino(ino.0)) {
            self.writes.holder.mark(Ino(ino.0));
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
        let (caller, name) = (caller(request, umask), name.as_bytes().to_vec());
        let make = move |fs: &FileSystem, ino| fs.mknod(&caller, ino, &name, mode, rdev);
        self.make(request, OpKind::Mknod, parent, reply, make);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (caller, name) = (caller(request, umask), name.as_bytes().to_vec());
        self.make(request, OpKind::Mkdir, parent, reply, move |fs, ino| fs.mkdir(&caller, ino, &name, mode));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.run(request, OpKind::Unlink, parent, |fs, ino| fs.unlink(ino, name.as_bytes()));
        self.name_changed(OpKind::Unlink, parent, reply, done);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.run(request, OpKind::Rmdir, parent, |fs, ino| fs.rmdir(ino, name.as_bytes()));
        self.name_changed(OpKind::Rmdir, parent, reply, done);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (caller, name) = (caller(request, 0), name.as_bytes().to_vec());
        let target = target.as_os_str().as_bytes().to_vec();
        self.make(request, OpKind::Symlink, parent, reply, move |fs, ino| fs.symlink(&caller, ino, &name, &target));
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
        self.name_changed(OpKind::Rename, parent, reply, self.run(request, OpKind::Rename, parent, call));
    }

    fn link(&self, request: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let call = |fs: &FileSystem, ino| fs.link(ino, Ino(new_parent.0), new_name.as_bytes());
        entry(&self.fs, self.writes.synchronous.names, OpKind::Link, reply, self.run(request, OpKind::Link, ino, call));
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
        owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // Direct reads alone name an owner; O_DIRECT in the flags would also be there for a mapping of such a file.
        if owner.is_none() {
            self.writes.page_cache.filled(Ino(ino.0), offset, size as usize);
        }
        if let Err(e) = self.admit(request) {
            return reply.error(e);
        }
        let fs = Arc::clone(&self.fs);
        self.spare.run(Waits::Reading, move || {
            READ.with_borrow_mut(|out| {
                out.clear();
                match run(&fs, OpKind::Read, ino, |fs, ino| fs.read(ino, offset, size as usize, out)) {
                    Ok(()) => reply.data(out),
                    Err(e) => reply.error(e),
                }
            });
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
        open_flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if let Err(e) = self.admit(request) {
            return reply.error(e);
        }
        // Direct writes alone name an owner. Where the kernel writes through, it locks pages while it waits for the answer.
        let (direct, ino) = (owner.is_some(), Ino(ino.0));
        let drop_set_id = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let cached = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        self.writes.write(WriteRequest { ino, offset, data, cached, direct, drop_set_id, open_flags, reply });
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.fs.vault().stats().unwritten.synced(Ino(ino.0));
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
                !reply.add(INodeNo(fs.shown_ino(e.ino).0), e.offset, file_type(e.kind), OsStr::from_bytes(&e.name))
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
                let ino = INodeNo(fs.shown_ino(e.ino).0);
                let full = reply.add(ino, e.offset, name, &self.ttl(&a), &file_attr(&a), GENERATION);
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
        statfs(reply, self.run(request, OpKind::Statfs, ino, |fs, ino| fs.statfs_at(ino)));
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
        self.changed(OpKind::Setxattr, ino, reply, self.run(request, OpKind::Setxattr, ino, call));
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
        let done = self.run(request, OpKind::Removexattr, ino, |fs, ino| fs.removexattr(ino, name.as_bytes()));
        self.changed(OpKind::Removexattr, ino, reply, done);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    /// There are none. Many programs ask whether a file is a terminal, which is no news for the log.
    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
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
        if let Err(e) = self.admit(request) {
            return reply.error(e);
        }
        let (fs, wait) = (Arc::clone(&self.fs), self.writes.synchronous.changes);
        self.spare.run(Waits::Changing, move || {
            let done = run(&fs, OpKind::Fallocate, ino, |fs, ino| {
                let what = Fallocate::from_mode(mode).ok_or(FsFault::Unsupported)?;
                fs.fallocate_by(ino, offset, length, what, drop_set_id)
            });
            changed(&fs, wait, OpKind::Fallocate, ino, reply, done);
        });
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
            stamp: !self.writes.writeback.load(Relaxed),
        };
        // The answer has 32 bits.
        let len = len.min(u64::from(u32::MAX));
        let call =
            |fs: &FileSystem, ino_out| fs.copy_file_range(Ino(ino_in.0), offset_in, ino_out, offset_out, len, how);
        match self.run(request, OpKind::CopyFileRange, ino_out, call) {
            Ok(copied) => {
                let (fs, wait) = (&self.fs, self.writes.synchronous.changes);
                when_durable(wait, fs, OpKind::CopyFileRange, Ino(ino_out.0), move |durable| {
                    written(reply, copied as u32, durable);
                });
            }
            Err(e) => reply.error(e),
        }
    }
}
