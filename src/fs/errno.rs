//! What a program sees of a fault: the one table from faults to errno.
//!
//! Promise: every fault is decided here, by name; a fault that means harm is logged here, once, with operation and
//! inode, never with names or content. Called by: `fuse` for every failed request, tests. Cannot fail.

use super::storage::is_storage;
use crate::base::id::Ino;
use crate::format::Malformed;
use crate::format::quota::Account;
use crate::vault::{HeaderRefused, OverQuota, Vault, VaultFault};

/// Why an operation was refused or failed.
#[derive(Debug, Clone)]
pub enum FsFault {
    /// The vault refused or failed.
    Vault(VaultFault),
    /// No such name or inode.
    NoEntry,
    /// The name is taken.
    Exists,
    /// A directory was needed.
    NotDirectory,
    /// A directory was given where none is allowed.
    IsDirectory,
    /// The directory has entries.
    NotEmpty,
    /// The arguments make no sense.
    Invalid,
    /// The name or link target is too long.
    NameTooLong,
    /// The file has as many names as it may have.
    TooManyLinks,
    /// Nobody may do this here.
    NotPermitted,
    /// Not with this kind of file.
    Denied,
    /// Whoever asks is not let in.
    NotLetIn,
    /// No such extended attribute.
    NoAttribute,
    /// The extended attribute's value is too large.
    ValueTooLarge,
    /// The extended attributes of the file are too many.
    TooManyAttributes,
    /// The caller's buffer is too small, or an attribute's name too long.
    Range,
    /// The file would be larger than a file may be.
    FileTooLarge,
    /// A tree, user or group may not use that much.
    QuotaReached(Account),
    /// It would come into another quota tree, or be in two.
    OtherTree,
    /// No byte of that kind from there on.
    NothingThere,
    /// Not offered.
    Unsupported,
}

impl From<VaultFault> for FsFault {
    fn from(fault: VaultFault) -> Self {
        FsFault::Vault(fault)
    }
}

impl From<OverQuota> for FsFault {
    fn from(over: OverQuota) -> Self {
        FsFault::QuotaReached(over.account)
    }
}

impl From<Malformed> for FsFault {
    fn from(e: Malformed) -> Self {
        FsFault::Vault(e.into())
    }
}

impl FsFault {
    /// An index that contradicts itself.
    pub(super) fn index(what: &'static str) -> FsFault {
        FsFault::Vault(VaultFault::Index(what.into()))
    }

    /// The number a program finds in `errno`.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            FsFault::Vault(fault) => outcome(fault).errno(),
            FsFault::NoEntry => libc::ENOENT,
            FsFault::Exists => libc::EEXIST,
            FsFault::NotDirectory => libc::ENOTDIR,
            FsFault::IsDirectory => libc::EISDIR,
            FsFault::NotEmpty => libc::ENOTEMPTY,
            FsFault::Invalid => libc::EINVAL,
            FsFault::NameTooLong => libc::ENAMETOOLONG,
            FsFault::TooManyLinks => libc::EMLINK,
            FsFault::NotPermitted => libc::EPERM,
            FsFault::Denied | FsFault::NotLetIn => libc::EACCES,
            FsFault::NoAttribute => libc::ENODATA,
            FsFault::ValueTooLarge => libc::E2BIG,
            FsFault::TooManyAttributes => libc::ENOSPC,
            FsFault::Range => libc::ERANGE,
            FsFault::FileTooLarge => libc::EFBIG,
            FsFault::QuotaReached(_) => libc::EDQUOT,
            FsFault::OtherTree => libc::EXDEV,
            FsFault::NothingThere => libc::ENXIO,
            FsFault::Unsupported => libc::EOPNOTSUPP,
        }
    }

    /// Whether the same write may succeed later: once data was deleted, or once the backing directory works again.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        self.is_no_room() || matches!(self, FsFault::Vault(VaultFault::Stopped(_) | VaultFault::Backing(_)))
    }

    /// Whether there is no room, or none within a quota, for data.
    #[must_use]
    pub fn is_no_room(&self) -> bool {
        self.is_over_quota() || matches!(self, FsFault::Vault(VaultFault::BackingFull))
    }

    /// Whether a quota refuses data.
    #[must_use]
    pub fn is_over_quota(&self) -> bool {
        matches!(self, FsFault::Vault(VaultFault::QuotaBytes) | FsFault::QuotaReached(_))
    }

    /// Whether something is broken, as opposed to refused.
    fn is_harm(&self) -> bool {
        matches!(self, FsFault::Vault(fault) if outcome(fault) == Outcome::Broken)
    }
}

/// What becomes of a fault of the vault.
#[derive(PartialEq, Eq)]
enum Outcome {
    /// The operation is refused with this errno; nothing is broken.
    Refused(i32),
    /// Something is broken: EIO, and a line in the error list.
    Broken,
}

impl Outcome {
    fn errno(&self) -> i32 {
        match self {
            Outcome::Refused(errno) => *errno,
            Outcome::Broken => libc::EIO,
        }
    }
}

fn outcome(fault: &VaultFault) -> Outcome {
    match fault {
        VaultFault::QuotaBytes | VaultFault::QuotaInodes | VaultFault::BackingFull => Outcome::Refused(libc::ENOSPC),
        VaultFault::ReadOnly => Outcome::Refused(libc::EROFS),
        // The program that wrote the order to `/.storage/control` reads there what to do about it (`cli::mounted`).
        VaultFault::Header(HeaderRefused::NotNext { .. }) => Outcome::Refused(libc::ESTALE),
        VaultFault::Header(HeaderRefused::OtherVault(_) | HeaderRefused::OtherKey) => {
            Outcome::Refused(libc::EKEYREJECTED)
        }
        VaultFault::Header(HeaderRefused::NotNow(_)) => Outcome::Refused(libc::EBUSY),
        VaultFault::Header(HeaderRefused::Malformed | HeaderRefused::MoreThanSlots) => Outcome::Refused(libc::EINVAL),
        VaultFault::Closed => Outcome::Refused(libc::EIO),
        // The program asked about its file, not about a file of the vault: a backing ENOENT or EACCES is EIO as well.
        VaultFault::Damaged { .. }
        | VaultFault::Index(_)
        | VaultFault::Log(_)
        | VaultFault::KeyMissing { .. }
        | VaultFault::Backing(_)
        | VaultFault::Stopped(_)
        | VaultFault::Failed(_)
        | VaultFault::Unfinished(_)
        | VaultFault::SegmentsLost(_)
        | VaultFault::Panicked => Outcome::Broken,
    }
}

/// The errno of a failed operation, noted in the error list if it means harm.
pub(super) fn answer(vault: &Vault, operation: &str, ino: Ino, fault: &FsFault) -> i32 {
    if let (true, FsFault::Vault(cause)) = (fault.is_harm(), fault) {
        // A file of `/.storage` has another number each time.
        let file = if is_storage(ino) { "/.storage".to_owned() } else { format!("inode {ino}") };
        vault.stats().error(vault.world().now(), format!("{operation} on {file}: {cause}"));
    }
    fault.errno()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_fault_keeps_its_errno_to_itself() {
        let e = FsFault::from(VaultFault::from(std::io::Error::from_raw_os_error(libc::ENOENT)));
        assert_eq!((e.errno(), e.is_harm()), (libc::EIO, true));
    }

    #[test]
    fn only_what_passes_is_worth_another_try() {
        let of = |fault| FsFault::Vault(fault).may_pass();
        assert!(of(VaultFault::Stopped("x".into())) && of(VaultFault::BackingFull) && of(VaultFault::QuotaBytes));
        assert!(
            of(std::io::Error::from_raw_os_error(libc::EIO).into())
                && FsFault::QuotaReached(Account::Tree(1)).may_pass()
        );
        assert!(!of(VaultFault::Failed("x".into())) && !of(VaultFault::Closed) && !FsFault::NoEntry.may_pass());
        assert_eq!(FsFault::Vault(VaultFault::Stopped("x".into())).errno(), libc::EIO);
    }

    #[test]
    fn quotas_are_no_harm() {
        let e = FsFault::Vault(VaultFault::QuotaInodes);
        assert_eq!((e.errno(), e.is_harm()), (libc::ENOSPC, false));
        let e = FsFault::QuotaReached(Account::Tree(1));
        assert_eq!((e.errno(), e.is_harm()), (libc::EDQUOT, false));
        assert_eq!(FsFault::Vault(VaultFault::ReadOnly).errno(), libc::EROFS);
        let e = FsFault::Vault(VaultFault::Header(HeaderRefused::OtherKey));
        assert_eq!((e.errno(), e.is_harm()), (libc::EKEYREJECTED, false), "nor is a header that is refused");
    }
}
