//! Requests in, replies out: each request of the kernel becomes one call of `fs`, each result one reply.
//!
//! Promise: decides nothing; every request is answered, also when the call panics (the reply, dropped, answers EIO).
//! What is not offered is answered with ENOSYS once, and the kernel then does it by itself or does without: open,
//! opendir, create (the kernel makes the file with MKNOD, since we are the only writer nothing can come between), flush,
//! access. Called by: `fuser`'s threads. On failure: the errno that `fs::errno` decided.

use super::attr::{GENERATION, KEEP, file_attr, no_entry, sent, set_time};
use super::background::Background;
use super::door::Door;
use super::ground::Ground;
use super::groups::Member;
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
use super::{MountOptions, listing, privileges};
use crate::base::id::Ino;
use crate::base::limits::FREE_INOS;
use crate::fs::{Attr, Caller, Fallocate, FileSystem, FsFault, OpKind, RenameHow, Seek, SetAttr, WriteHow, XattrHow};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::SystemTime;

/// The kernel's requests, put to a filesystem.
pub(super) struct Requests {
    ground: Arc<Ground>,
    /// Whether the kernel is to ask for access control lists.
    acl: bool,
    /// Who is let in, where the kernel lets everybody.
    door: Option<Door>,
    /// Whether the mount may be shown elsewhere with other owners. The kernel then names the user only where a request makes
    /// something, which the door could not do with.
    idmap: bool,
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
        let ground = Ground { fs, seeker, writes: Arc::new(writes), spare, set_ids, has_door: door.is_some() };
        Ok(Requests { ground: Arc::new(ground), acl, door, idmap })
    }

    /// The kernel's limit of background requests.
    pub(super) fn background(&self) -> Background {
        self.ground.writes.holder.background()
    }

    /// Whether the door lets whoever asks in.
    fn admit(&self, request: &Request) -> Answer<()> {
        match &self.door {
            Some(door) if !door.lets_in(request, self.ground.fs.vault().world().elapsed()) => {
                Err(Errno::from_i32(FsFault::NotLetIn.errno()))
            }
            _ => Ok(()),
        }
    }

    /// Answers a request about an inode. `job` is told whether the door lets whoever asks in. It may wait for the disk or for
    /// room, so it runs here only if enough other threads do not; what is about `/.storage` never waits.
    fn answer(
        &self,
        request: &Request,
        waits: Waits,
        ino: INodeNo,
        job: impl FnOnce(&Ground, Answer<()>) + Send + 'static,
    ) {
        let admitted = self.admit(request);
        let ground = &self.ground;
        if FREE_INOS.contains(&ino.0) {
            return job(ground, admitted);
        }
        if let Some(_permit) = ground.spare.permit() {
            return job(ground, admitted);
        }
        let kept = Arc::clone(ground);
        ground.spare.hand_over(waits, move || job(&kept, admitted));
    }

    /// Makes an inode and answers with it.
    fn make(
        &self,
        request: &Request,
        kind: OpKind,
        parent: INodeNo,
        reply: ReplyEntry,
        make: impl FnOnce(&FileSystem, Ino) -> Result<Attr, FsFault> + Send + 'static,
    ) {
        self.answer(request, Waits::Changing, parent, move |ground, admitted| {
            let made = ground.run(admitted, kind, parent, make);
            entry(&ground.fs, ground.writes.synchronous.names, kind, reply, made);
        });
    }

    /// Changes a directory.
    fn change_names(
        &self,
        request: &Request,
        kind: OpKind,
        parent: INodeNo,
        reply: ReplyEmpty,
        change: impl FnOnce(&FileSystem, Ino) -> Result<(), FsFault> + Send + 'static,
    ) {
        self.answer(request, Waits::Changing, parent, move |ground, admitted| {
            let done = ground.run(admitted, kind, parent, change);
            changed(&ground.fs, ground.writes.synchronous.names, kind, parent, reply, done);
        });
    }

    /// Changes something else of an inode.
    fn change(
        &self,
        request: &Request,
        kind: OpKind,
        ino: INodeNo,
        reply: ReplyEmpty,
        change: impl FnOnce(&FileSystem, Ino) -> Result<(), FsFault> + Send + 'static,
    ) {
        self.answer(request, Waits::Changing, ino, move |ground, admitted| {
            let done = ground.run(admitted, kind, ino, change);
            changed(&ground.fs, ground.writes.synchronous.changes, kind, ino, reply, done);
        });
    }

    /// Answers when everything acknowledged so far is durable; no thread waits meanwhile.
    fn sync(&self, request: &Request, kind: OpKind, ino: INodeNo, reply: ReplyEmpty) {
        match self.admit(request) {
            Ok(()) => sync(&self.ground.fs, kind, Ino(ino.0), reply),
            Err(e) => reply.error(e),
        }
    }
}

impl Filesystem for Requests {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let Ground { fs, writes, .. } = &*self.ground;
        let writeback = negotiate(config, fs, self.acl, self.idmap);
        writes.writeback.store(writeback, Relaxed);
        fs.kernel_keeps_writes(writeback);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (task, name) = (request.pid(), name.as_bytes().to_vec());
        self.answer(request, Waits::Reading, parent, move |ground, admitted| {
            let found = ground.run(admitted, OpKind::Lookup, parent, |fs, ino| {
                match fs.lookup_by(task, ino, &name) {
                    Ok(attr) => Ok(Some(attr)),
                    // In `/.storage` nothing is to be remembered, but there the names are fixed.
                    Err(FsFault::NoEntry) => Ok(None),
                    Err(fault) => Err(fault),
                }
            });
            match found {
                Ok(Some(a)) => reply.entry(&ground.ttl(&a), &file_attr(&a), GENERATION),
                // What a program makes in `/.storage` comes to lie in another directory, where this one's memory is no use.
                Ok(None) if FREE_INOS.contains(&parent.0) => reply.error(Errno::ENOENT),
                Ok(None) => reply.entry(&KEEP, &no_entry(), GENERATION),
                Err(e) => reply.error(e),
            }
        });
    }

    fn forget(&self, request: &Request, ino: INodeNo, count: u64) {
        // What has no name any more is removed, for which room and the disk may be waited for.
        self.answer(request, Waits::Changing, ino, move |ground, _| {
            let _ = run(&ground.fs, OpKind::Forget, ino, |fs, ino| {
                fs.forget(ino, count);
                // With the inode, the kernel forgets the error that it had for it.
                fs.vault().stats().unwritten.keep(ino);
                Ok(())
            });
        });
    }

    fn getattr(&self, request: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(request, Waits::Reading, ino, move |ground, admitted| {
            let holder = &ground.writes.holder;
            let is_marked = holder.is_marked(Ino(ino.0));
            match ground.run(admitted, OpKind::Getattr, ino, |fs, ino| fs.getattr(ino)) {
                // A program is about to write, and its file is marked.
                Ok(a) if is_marked && handle.is_some() => holder.ask(a, ground.ttl(&a), reply),
                Ok(a) => reply.attr(&ground.ttl(&a), &file_attr(&a)),
                Err(e) => reply.error(e),
            }
            if is_marked && handle.is_none() {
                holder.mark(Ino(ino.0));
            }
        });
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
        self.answer(request, Waits::Changing, ino, move |ground, admitted| {
            let Ground { fs, writes, set_ids, .. } = ground;
            set_ids.decide(fs, writes.writeback.load(Relaxed), task, Ino(ino.0), &mut set);
            // Who asks was just looked up, since the request may not name the user.
            match ground.run(admitted, OpKind::Setattr, ino, |fs, ino| fs.setattr(&Caller::default(), ino, &set)) {
                Ok(a) => {
                    if let Some(len) = size {
                        fs.vault().stats().unwritten.cut(a.ino, len);
                    }
                    set_ids.note(task, &set, &a);
                    let ttl = ground.ttl(&a);
                    let wait = writes.synchronous.changes;
                    when_durable(wait, fs, OpKind::Setattr, a.ino, move |durable| match durable {
                        Ok(()) => reply.attr(&ttl, &file_attr(&a)),
                        Err(e) => reply.error(e),
                    });
                }
                Err(e) => reply.error(e),
            }
            if writes.holder.is_marked(Ino(ino.0)) {
                writes.holder.mark(Ino(ino.0));
            }
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.answer(request, Waits::Reading, ino, move |ground, admitted| {
            match ground.run(admitted, OpKind::Readlink, ino, |fs, ino| fs.readlink(ino)) {
                Ok(target) => reply.data(&target),
                Err(e) => reply.error(e),
            }
        });
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
        let name = name.as_bytes().to_vec();
        self.change_names(request, OpKind::Unlink, parent, reply, move |fs, ino| fs.unlink(ino, &name));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.change_names(request, OpKind::Rmdir, parent, reply, move |fs, ino| fs.rmdir(ino, &name));
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
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        let how = RenameHow::from_flags(flags.bits(), &caller(request, 0)).ok_or(FsFault::Invalid);
        self.change_names(request, OpKind::Rename, parent, reply, move |fs, ino| {
            fs.rename(ino, &name, Ino(new_parent.0), &new_name, how?)
        });
    }

    fn link(&self, request: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let new_name = new_name.as_bytes().to_vec();
        self.make(request, OpKind::Link, ino, reply, move |fs, ino| fs.link(ino, Ino(new_parent.0), &new_name));
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
            self.ground.writes.page_cache.filled(Ino(ino.0), offset, size as usize);
        }
        self.answer(request, Waits::Reading, ino, move |ground, admitted| {
            ground.read(admitted, ino, offset, size as usize, reply);
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
        self.ground.writes.write(WriteRequest { ino, offset, data, cached, direct, drop_set_id, open_flags, reply });
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.ground.fs.vault().stats().unwritten.synced(Ino(ino.0));
        self.sync(request, OpKind::Fsync, ino, reply);
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(request, OpKind::Fsyncdir, ino, reply);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.answer(request, Waits::Reading, ino, move |ground, admitted| {
            listing::names(ground, admitted, ino, offset, reply);
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.answer(request, Waits::Reading, ino, move |ground, admitted| {
            listing::entries(ground, admitted, ino, offset, reply);
        });
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.answer(request, Waits::Reading, ino, move |ground, admitted| {
            statfs(reply, ground.run(admitted, OpKind::Statfs, ino, |fs, ino| fs.statfs_at(ino)));
        });
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
        let (who, name, value) = (Member::of(request), name.as_bytes().to_vec(), value.to_vec());
        self.change(request, OpKind::Setxattr, ino, reply, move |fs, ino| {
            let how = XattrHow::from_flags(flags).ok_or(FsFault::Invalid)?;
            let may_keep = |gid| who.belongs_to(gid) || privileges::may_keep_set_id(who.task);
            fs.setxattr_by(ino, &name, &value, how, may_keep)
        });
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.as_bytes().to_vec();
        self.answer(request, Waits::Reading, ino, move |ground, admitted| {
            ground.set_ids.interrupt(Ino(ino.0));
            xattr(reply, ground.run(admitted, OpKind::Getxattr, ino, |fs, ino| fs.getxattr(ino, &name, size)));
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (uid, task) = (request.uid(), request.pid());
        self.answer(request, Waits::Reading, ino, move |ground, admitted| {
            let sees_trusted = || uid == 0 || privileges::sees_trusted(task);
            let listed = |fs: &FileSystem, ino| fs.listxattr_for(ino, size, sees_trusted);
            xattr(reply, ground.run(admitted, OpKind::Listxattr, ino, listed));
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.change(request, OpKind::Removexattr, ino, reply, move |fs, ino| fs.removexattr(ino, &name));
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
        let task = request.pid();
        self.change(request, OpKind::Fallocate, ino, reply, move |fs, ino| {
            let what = Fallocate::from_mode(mode).ok_or(FsFault::Unsupported)?;
            fs.fallocate_by(ino, offset, length, what, set_id::dropped_by(fs, task, ino))
        });
    }

    fn lseek(&self, request: &Request, ino: INodeNo, _handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        // The kernel does the other kinds by itself, and knows that no file has bytes before the first.
        let (Some(what), Ok(offset)) = (Seek::from_whence(whence), u64::try_from(offset)) else {
            return reply.error(Errno::ENXIO);
        };
        self.answer(request, Waits::Reading, ino, move |ground, admitted| {
            let found = ground.run(admitted, OpKind::Lseek, ino, |fs, ino| {
                let sought = fs.seek(ino, offset, what)?;
                Ok((seek::sure(&sought).transpose()?, sought))
            });
            match found {
                Ok((Some(at), _)) => reply.offset(at as i64),
                // Also where it keeps no writes: what is written through a mapping it has in any case.
                Ok((None, sought)) => ground.seeker.answer(Ino(ino.0), offset, what, sought, reply),
                Err(e) => reply.error(e),
            }
        });
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
        let task = request.pid();
        // The answer has 32 bits.
        let len = len.min(u64::from(u32::MAX));
        self.answer(request, Waits::Changing, ino_out, move |ground, admitted| {
            let Ground { fs, writes, .. } = ground;
            let copied = ground.run(admitted, OpKind::CopyFileRange, ino_out, |fs, ino_out| {
                // The kernel says of a write whether the set-id bits must go, and not of a copy.
                let drop_set_id = set_id::dropped_by(fs, task, ino_out);
                let how = WriteHow { drop_set_id, stamp: !writes.writeback.load(Relaxed) };
                fs.copy_file_range(Ino(ino_in.0), offset_in, ino_out, offset_out, len, how)
            });
            match copied {
                Ok(copied) => {
                    let wait = writes.synchronous.changes;
                    when_durable(wait, fs, OpKind::CopyFileRange, Ino(ino_out.0), move |durable| {
                        written(reply, copied as u32, durable);
                    });
                }
                Err(e) => reply.error(e),
            }
        });
    }
}
