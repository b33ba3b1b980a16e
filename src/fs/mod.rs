//! POSIX meaning: names, inodes, attributes, data, extended attributes, and `/.storage`. Usable with no mount.
//!
//! Promise: each operation that changes something is one operation of the vault, so a crash shows all of it or nothing;
//! what an operation refuses, it left untouched. Permissions are the kernel's to check (`default_permissions`), which
//! knows the caller's groups; without it only root reaches the mount.
//! Locks, in this order: namespace (operations that change directories), state of a node, the vault's gate
//! (`Vault::begin`), shard of the table. Nothing waits for the disk or the byte budget while holding one, except that a
//! read of the index under the namespace lock may, when what was just read has already been evicted again.
//! Called by: `fuse`, `cli`, tests. On failure: an `FsFault`, which `errno` turns into what a program sees.

mod acl;
mod attr;
mod attribute_cache;
mod copy;
mod data;
mod directory;
mod errno;
mod name;
mod node;
mod paths;
mod quota;
mod quota_shown;
mod rename;
mod render;
mod seek;
mod stats;
mod storage;
mod table;
mod xattr;

pub use attr::{Attr, SetAttr, SetTime, Shown};
pub use attribute_cache::AttributeCache;
pub use data::{Fallocate, WriteFrom, WriteHow};
pub use directory::{DirEntry, Space};
pub use errno::FsFault;
pub use paths::{RefusedFile, named, paths_of, printable, refused_files, with_paths};
pub use quota::{LimitChange, LimitOf};
pub use quota_shown::{QuotaCheck, Stray};
pub use rename::RenameHow;
pub use seek::{Seek, Sought};
pub use stats::{OpKind, OpStat, OpStats};
pub use storage::{HEADER_ORDER, KEY_ORDER, REFUSED_ORDER, STORAGE_ALWAYS, STORAGE_INO, STORAGE_NAME};
pub use xattr::{XattrHow, XattrReply};

use crate::base::id::{Ino, ROOT_INO};
use crate::base::world::Time;
use crate::format::inode::Inode;
use crate::format::key;
use crate::vault::{Admit, SyncReply, Vault, VaultFault};
use node::{Pin, State};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use table::Nodes;

/// How the filesystem shows itself.
#[derive(Debug, Clone, Copy)]
pub struct FsOptions {
    /// Owner of the mount: of a new root directory and of `/.storage`.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// A group whose members may use `/.storage` as the owner may.
    pub storage_group: Option<u32>,
    /// Whether listing the root shows `.storage`.
    pub show_storage: bool,
    /// Whether every change is refused.
    pub read_only: bool,
    /// When reading moves the access time.
    pub atime: Atime,
    /// Whether listing a directory does, too.
    pub dir_atime: bool,
    /// Whether there are access control lists. Without them those that are stored are neither shown nor given on.
    pub acl: bool,
    /// Owner and permissions shown instead of those that are stored.
    pub shown: Shown,
    /// Most inodes held in memory beside those at work; what the byte budget allows unless told.
    pub nodes_max: Option<usize>,
}

/// When reading moves the access time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atime {
    /// Never.
    Never,
    /// When it is not newer than the last change, or a day old.
    Relative,
    /// Whenever a read gets here.
    Always,
}

impl Default for FsOptions {
    fn default() -> Self {
        FsOptions {
            uid: 0,
            gid: 0,
            storage_group: None,
            show_storage: false,
            read_only: false,
            atime: Atime::Relative,
            dir_atime: true,
            acl: true,
            shown: Shown::default(),
            nodes_max: None,
        }
    }
}

/// On whose behalf.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits that new inodes do not get.
    pub umask: u32,
}

/// The filesystem in a vault.
pub struct FileSystem {
    vault: Arc<Vault>,
    options: FsOptions,
    nodes: Nodes,
    /// What must hear of attributes that change unasked.
    above: attribute_cache::Above,
    /// Held by whoever changes directories.
    namespace: Mutex<()>,
    /// Held by whoever gives trees their numbers.
    walks: Mutex<()>,
    /// While such a walk is at work: directories renamed in its sight, where it may have been already; it looks into them, too.
    renamed_meanwhile: Mutex<Option<Vec<Ino>>>,
    /// What the last count of all inodes came to.
    quota_checked: Mutex<Option<QuotaCheck>>,
    /// Whether the kernel keeps writes back, so that who is over a quota is not told by the write.
    keeps_writes: AtomicBool,
    /// Changes of directories so far; moves only under `namespace`.
    changes: AtomicU64,
    storage: storage::Storage,
    ops: OpStats,
    /// What `/.storage/config` says beside the vault's own settings.
    told: Vec<(&'static str, String)>,
    /// Labels of every metric.
    labels: String,
}

impl FileSystem {
    /// The filesystem in an open vault; makes the root directory in a new one, and removes what a crash left unnamed.
    pub fn new(vault: Arc<Vault>, options: FsOptions) -> Result<FileSystem, VaultFault> {
        let fs = FileSystem {
            storage: storage::Storage::new(vault.world().now()),
            nodes: options.nodes_max.map_or_else(|| Nodes::within(vault.gauges().budget_bytes), Nodes::new),
            vault,
            options,
            above: attribute_cache::Above::default(),
            namespace: Mutex::new(()),
            walks: Mutex::new(()),
            renamed_meanwhile: Mutex::default(),
            keeps_writes: AtomicBool::new(false),
            quota_checked: Mutex::new(None),
            changes: AtomicU64::new(0),
            ops: OpStats::default(),
            told: Vec::new(),
            labels: String::new(),
        };
        match fs.prepare() {
            Ok(()) => Ok(fs),
            Err(FsFault::Vault(fault)) => Err(fault),
            Err(_) => Err(VaultFault::Unfinished("the root directory could not be prepared".into())),
        }
    }

    /// The same, with more rows for `/.storage/config`: what is in force that the vault does not know of.
    #[must_use]
    pub fn telling(self, rows: Vec<(&'static str, String)>) -> FileSystem {
        FileSystem { told: rows, ..self }
    }

    /// Calls `/.storage` by another name, or by none.
    #[must_use]
    pub fn storage_named(mut self, name: Option<Vec<u8>>) -> FileSystem {
        self.storage.name = name;
        self
    }

    /// Lets every metric name the vault and the mountpoint.
    #[must_use]
    pub fn labelled(self, vault: &Path, mountpoint: &Path) -> FileSystem {
        let bytes = |path: &Path| path.as_os_str().as_encoded_bytes().to_vec();
        FileSystem { labels: render::labels(&bytes(vault), &bytes(mountpoint)), ..self }
    }

    fn prepare(&self) -> Result<(), FsFault> {
        let root = match self.pin(ROOT_INO) {
            Ok(root) => root,
            Err(FsFault::NoEntry) => self.make_root(),
            Err(fault) => return Err(fault),
        };
        // The root is in use for as long as the filesystem is.
        root.keep();
        if !self.options.read_only {
            self.purge_orphans()?;
            // What cannot go on now is still on record, and no reason to keep everything else from its owner.
            if let Err(fault) = self.finish_walks() {
                errno::answer(&self.vault, "numbering a quota tree", ROOT_INO, &fault);
            }
        }
        Ok(())
    }

    fn make_root(&self) -> Pin<'_> {
        let now = self.now();
        let inode = Inode {
            mode: libc::S_IFDIR | 0o755,
            uid: self.options.uid,
            gid: self.options.gid,
            nlink: 2,
            rdev: 0,
            size: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            parent: ROOT_INO,
            tree: 0,
        };
        let pin = self.pin_new(ROOT_INO, inode);
        // A vault that was never written to, mounted for reading only: an empty root that is not stored.
        if !self.options.read_only {
            let mut op = self.vault.begin();
            // A new vault has no limits yet.
            let _ = op.charge(ROOT_INO, None, Some(&inode), Admit::Always);
            op.put(key::inode(ROOT_INO), inode.encode());
            op.inodes(1);
            op.commit();
        }
        pin
    }

    /// Says whether the kernel keeps writes back.
    pub fn kernel_keeps_writes(&self, keeps: bool) {
        self.keeps_writes.store(keeps, SeqCst);
        if keeps {
            self.vault.keep_room_for_kernel();
        }
    }

    /// The vault underneath.
    #[must_use]
    pub fn vault(&self) -> &Arc<Vault> {
        &self.vault
    }

    /// Counts and latencies of the operations.
    #[must_use]
    pub fn ops(&self) -> &OpStats {
        &self.ops
    }

    /// The errno of a failed operation; what means harm is noted in the error list, once, here.
    pub fn answer(&self, kind: OpKind, ino: Ino, fault: &FsFault) -> i32 {
        errno::answer(&self.vault, kind.name(), ino, fault)
    }

    /// Makes everything acknowledged so far durable and verified; `done` runs when it is, on another thread or at once.
    /// One file's data cannot be durable without the records before it, so every sync is a sync of all.
    pub fn sync(&self, done: SyncReply) {
        self.vault.sync(done);
    }

    /// The same, waiting.
    pub fn sync_wait(&self) -> Result<(), FsFault> {
        Ok(self.vault.sync_wait()?)
    }

    /// The time for a change of an inode. Read it with the inode's state locked, so that no later change is stamped older.
    fn now(&self) -> Time {
        self.vault.world().stamp()
    }

    /// Refuses changes of a vault that is mounted for reading only.
    fn writable(&self) -> Result<(), FsFault> {
        if self.options.read_only {
            return Err(VaultFault::ReadOnly.into());
        }
        Ok(self.vault.admit_change()?)
    }

    /// Stores a node's attributes as they are now.
    fn store(op: &mut crate::vault::Op<'_>, ino: Ino, state: &State) {
        op.put(key::inode(ino), state.inode.encode());
    }
}
