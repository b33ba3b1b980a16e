//! Quotas as stored (format.md §5, "Quotas"): what each account has used, what it may use, and which trees there are.
//!
//! Promise: fixed lengths, refused unless every byte is accounted for; one value has one encoding.
//! Called by: `vault::quota`, `check`. On failure: `Malformed`, which names the field.

use super::inode::Inode;
use super::key;
use super::wire::{Malformed, Reader, malformed};
use crate::base::id::Ino;
use std::fmt;

/// Whatever is charged for an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// All that carries this tree's number, or that of a tree within it. 0 is no tree.
    Tree(u32),
    /// All that this user owns.
    User(u32),
    /// All that belongs to this group.
    Group(u32),
}

/// What an account has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Used {
    /// Sum of the sizes: sparse files whole, so it may not fit in 64 bits.
    pub bytes: u128,
    /// Inodes.
    pub inodes: u64,
}

/// What an account may use; `None` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// More bytes than this are refused.
    pub bytes: Option<u64>,
    /// More inodes than this are refused.
    pub inodes: Option<u64>,
    /// More bytes than this are told.
    pub soft_bytes: Option<u64>,
    /// More inodes than this are told.
    pub soft_inodes: Option<u64>,
}

/// What is being done to all inodes of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Walk {
    /// Nothing.
    #[default]
    Done,
    /// What lies below the root is being given the tree's number.
    Tagging,
    /// What has the tree's number is being given that of the tree around it.
    Untagging,
}

/// A tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tree {
    /// What it may use.
    pub limits: Limits,
    /// The directory that it begins with; 0 when that is gone, and only what is still open is charged.
    pub root: Ino,
    /// The tree around it; 0 for none.
    pub parent: u32,
    /// What is being done to it.
    pub walk: Walk,
}

/// What there is of quotas beside accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaState {
    /// Whether users and groups are counted.
    pub owners: bool,
    /// The next number to be given to a tree; from 1 on.
    pub next_tree: u32,
}

impl Default for QuotaState {
    fn default() -> QuotaState {
        QuotaState { owners: false, next_tree: 1 }
    }
}

/// What is charged for an inode, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    /// The tree whose number it carries; 0 for none.
    pub tree: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The length of a file or of a link's target; 0 for all else.
    pub bytes: u64,
}

impl From<&Inode> for Charge {
    fn from(inode: &Inode) -> Charge {
        let has_bytes = matches!(inode.mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFLNK);
        let bytes = if has_bytes { inode.size } else { 0 };
        Charge { tree: inode.tree, uid: inode.uid, gid: inode.gid, bytes }
    }
}

/// What stands behind the number in a key.
const TREE_USED: &[u8] = b"tu";
const TREE: &[u8] = b"tr";
const USER_USED: &[u8] = b"uu";
const USER_LIMITS: &[u8] = b"ul";
const GROUP_USED: &[u8] = b"gu";
const GROUP_LIMITS: &[u8] = b"gl";

/// An entry of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Beside accounts.
    State(QuotaState),
    /// A tree.
    Tree(u32, Tree),
    /// What a user or a group may use.
    Limits(Account, Limits),
    /// What an account has used.
    Used(Account, Used),
}

impl Account {
    /// Key of what it has used.
    #[must_use]
    pub fn used_key(self) -> Vec<u8> {
        match self {
            Account::Tree(n) => key::quota(n, TREE_USED),
            Account::User(n) => key::quota(n, USER_USED),
            Account::Group(n) => key::quota(n, GROUP_USED),
        }
    }

    /// Key of what it may use; of a tree, of all that is said of it.
    #[must_use]
    pub fn limits_key(self) -> Vec<u8> {
        match self {
            Account::Tree(n) => key::quota(n, TREE),
            Account::User(n) => key::quota(n, USER_LIMITS),
            Account::Group(n) => key::quota(n, GROUP_LIMITS),
        }
    }
}

impl Used {
    /// The stored value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&self.bytes.to_le_bytes()[..], &self.inodes.to_le_bytes()].concat()
    }
    fn read(r: &mut Reader<'_>) -> Result<Used, Malformed> {
        let bytes = u128::from_le_bytes(r.array("quota bytes used")?);
        Ok(Used { bytes, inodes: r.u64("quota inodes used")? })
    }
}

impl Limits {
    /// The stored value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(36);
        for limit in [self.bytes, self.inodes, self.soft_bytes, self.soft_inodes] {
            b.push(u8::from(limit.is_some()));
            b.extend_from_slice(&limit.unwrap_or(0).to_le_bytes());
        }
        b
    }
    fn read(r: &mut Reader<'_>) -> Result<Limits, Malformed> {
        let mut limit = || match (r.u8("quota limit")?, r.u64("quota limit")?) {
            (0, 0) => Ok(None),
            (1, limit) => Ok(Some(limit)),
            _ => malformed("quota limit"),
        };
        Ok(Limits { bytes: limit()?, inodes: limit()?, soft_bytes: limit()?, soft_inodes: limit()? })
    }
    /// Whether there is none at all.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Limits::default()
    }
}

impl Tree {
    /// The stored value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = self.limits.encode();
        b.extend_from_slice(&self.root.0.to_le_bytes());
        b.extend_from_slice(&self.parent.to_le_bytes());
        b.push(match self.walk {
            Walk::Done => 0,
            Walk::Tagging => 1,
            Walk::Untagging => 2,
        });
        b
    }
    fn read(r: &mut Reader<'_>) -> Result<Tree, Malformed> {
        let limits = Limits::read(r)?;
        let (root, parent) = (Ino(r.u64("quota tree's root")?), r.u32("quota tree's parent")?);
        let walk = match r.u8("quota tree's walk")? {
            0 => Walk::Done,
            1 => Walk::Tagging,
            2 => Walk::Untagging,
            _ => return malformed("quota tree's walk"),
        };
        Ok(Tree { limits, root, parent, walk })
    }
}

impl QuotaState {
    /// The stored value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&[u8::from(self.owners)][..], &self.next_tree.to_le_bytes()].concat()
    }
    fn read(r: &mut Reader<'_>) -> Result<QuotaState, Malformed> {
        match (r.u8("quota owners")?, r.u32("quota's next tree")?) {
            (owners @ (0 | 1), next_tree @ 1..) => Ok(QuotaState { owners: owners == 1, next_tree }),
            _ => malformed("quota state"),
        }
    }
}

impl Entry {
    /// Reads an entry of the index whose key is of kind `QUOTA`.
    pub fn decode(k: &[u8], value: &[u8]) -> Result<Entry, Malformed> {
        let (_, number, rest) = key::split(k)?;
        let Ok(number) = u32::try_from(number) else { return malformed("quota key") };
        let mut r = Reader::new(value);
        let entry = match (rest, number) {
            (b"", 0) => Entry::State(QuotaState::read(&mut r)?),
            (TREE | TREE_USED, 0) => return malformed("quota key"),
            (TREE, n) => Entry::Tree(n, Tree::read(&mut r)?),
            (USER_LIMITS, n) => Entry::Limits(Account::User(n), Limits::read(&mut r)?),
            (GROUP_LIMITS, n) => Entry::Limits(Account::Group(n), Limits::read(&mut r)?),
            (TREE_USED, n) => Entry::Used(Account::Tree(n), Used::read(&mut r)?),
            (USER_USED, n) => Entry::Used(Account::User(n), Used::read(&mut r)?),
            (GROUP_USED, n) => Entry::Used(Account::Group(n), Used::read(&mut r)?),
            _ => return malformed("quota key"),
        };
        r.end("quota tail")?;
        Ok(entry)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Account::Tree(n) => write!(f, "tree {n}"),
            Account::User(n) => write!(f, "user {n}"),
            Account::Group(n) => write!(f, "group {n}"),
        }
    }
}

/// Key of what there is beside accounts.
#[must_use]
pub fn state_key() -> Vec<u8> {
    key::quota(0, b"")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGED: &str = "on-disk bytes changed: bump FORMAT_VERSION and add a vault to tests/vaults/";

    #[test]
    fn golden_quotas() {
        let limits = Limits { bytes: Some(0), inodes: None, soft_bytes: Some(258), soft_inodes: None };
        let coded = b"\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x02\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let tree = Tree { limits, root: Ino(7), parent: 3, walk: Walk::Tagging };
        let tree_coded = [&coded[..], b"\x07\0\0\0\0\0\0\0\x03\0\0\0\x01"].concat();
        let used = Used { bytes: (1 << 64) + 5, inodes: 6 };
        let used_coded = b"\x05\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0";
        let state = QuotaState { owners: true, next_tree: 4 };
        for (k, golden_key, golden, entry) in [
            (state_key(), &b"Q\0\0\0\0\0\0\0\0"[..], &b"\x01\x04\0\0\0"[..], Entry::State(state)),
            (Account::Tree(2).limits_key(), b"Q\0\0\0\0\0\0\0\x02tr", &tree_coded, Entry::Tree(2, tree)),
            (Account::User(0).limits_key(), b"Q\0\0\0\0\0\0\0\0ul", coded, Entry::Limits(Account::User(0), limits)),
            (Account::Group(9).limits_key(), b"Q\0\0\0\0\0\0\0\x09gl", coded, Entry::Limits(Account::Group(9), limits)),
            (Account::Tree(2).used_key(), b"Q\0\0\0\0\0\0\0\x02tu", used_coded, Entry::Used(Account::Tree(2), used)),
            (Account::User(2).used_key(), b"Q\0\0\0\0\0\0\0\x02uu", used_coded, Entry::Used(Account::User(2), used)),
            (Account::Group(2).used_key(), b"Q\0\0\0\0\0\0\0\x02gu", used_coded, Entry::Used(Account::Group(2), used)),
        ] {
            assert_eq!(k, golden_key, "{CHANGED}");
            let value = match entry {
                Entry::State(state) => state.encode(),
                Entry::Tree(_, tree) => tree.encode(),
                Entry::Limits(_, limits) => limits.encode(),
                Entry::Used(_, used) => used.encode(),
            };
            assert_eq!(value, golden, "{CHANGED}");
            assert_eq!(Entry::decode(&k, &value), Ok(entry));
            assert!(
                Entry::decode(&k, &value[1..]).is_err() && Entry::decode(&k, &[&value[..], &[0]].concat()).is_err()
            );
        }
    }

    #[test]
    fn what_is_no_quota_is_refused() {
        let refused = |k: Vec<u8>, value: &[u8]| assert!(Entry::decode(&k, value).is_err(), "{k:?} {value:?}");
        refused(state_key(), b"\x02\x04\0\0\0");
        refused(state_key(), b"\x01\0\0\0\0");
        refused(key::quota(1, b""), b"\x01\x04\0\0\0");
        refused(key::quota(1, b"xx"), &[0; 24]);
        refused(Account::Tree(0).used_key(), &[0; 24]);
        refused([&b"Q\0\0\0\x01\0\0\0\0"[..], b"uu"].concat(), &[0; 24]);
        let mut limits = Limits::default().encode();
        limits[1] = 1;
        refused(Account::User(1).limits_key(), &limits);
        let mut tree = Tree::default().encode();
        tree[48] = 3;
        refused(Account::Tree(1).limits_key(), &tree);
    }
}
