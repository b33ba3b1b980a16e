//! What the kernel is asked to do, and how much of it at once.
//!
//! Promise: nothing is asked for that this kernel does not know; what it does not know is reported, and done without.
//! Called by: `requests`, once for each mount. Cannot fail.

use crate::base::limits::{FUSE_BACKGROUND_MAX, request_bytes};
use crate::fs::FileSystem;
use fuser::{InitFlags, KernelConfig};

/// Says whether the kernel will cache writes; `acl`: whether it is to check permissions by access control lists; `idmap`:
/// whether the mount may be shown elsewhere with other owners.
pub(super) fn negotiate(config: &mut KernelConfig, fs: &FileSystem, acl: bool, idmap: bool) -> bool {
    // Where a quota may refuse bytes, each write asks us, and is told: what the cache cannot give away later it tells with
    // fsync, and with close as EIO, and many programs look at neither.
    let keeps_writes = !fs.vault().limits_bytes();
    let could = config.capabilities().contains(InitFlags::FUSE_WRITEBACK_CACHE);
    let writeback = keeps_writes && could;
    // No ATOMIC_O_TRUNC: with open unanswered, truncation must come as SETATTR.
    for wanted in [
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_NO_OPEN_SUPPORT,
        InitFlags::FUSE_NO_OPENDIR_SUPPORT,
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        InitFlags::FUSE_CACHE_SYMLINKS,
        // What is made in a directory with a default list does not go by the umask.
        InitFlags::FUSE_DONT_MASK,
        // A handle outlives the kernel's memory of an inode: it asks for "." of the number.
        InitFlags::FUSE_EXPORT_SUPPORT,
    ]
    .into_iter()
    // Where each write asks us, pages are dropped by nobody while one is under way: then direct ones come one by one.
    .chain(keeps_writes.then_some(InitFlags::FUSE_WRITEBACK_CACHE))
    .chain(writeback.then_some(InitFlags::FUSE_ASYNC_DIO))
    // Where root mounts for root the kernel checks nothing, lists neither; with this it would, and it would ask for a
    // directory's attributes again after each change in it.
    .chain(acl.then_some(InitFlags::FUSE_POSIX_ACL))
    .chain(idmap.then_some(InitFlags::FUSE_ALLOW_IDMAP))
    {
        if let Err(missing) = config.add_capabilities(wanted) {
            log::info!("this kernel does without {missing:?}");
        }
    }
    let most = request_bytes(fs.vault().gauges().budget_bytes);
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
    writeback
}
