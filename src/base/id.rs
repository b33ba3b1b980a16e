//! Identifiers that must not be mixed up, each a type of its own.
//!
//! Promise: a segment number never passes for an inode number. Called by: every layer. Cannot fail.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta] $name:ident($inner:ty);)*) => {$(
        #[$doc]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    )*};
}

number! {
    /// An inode number; never reused while the vault lives.
    Ino(u64);
    /// A segment's number; it only grows, and names the file in `segments/`.
    SegmentId(u64);
    /// A frame's place in the nonce space of its segment; used once.
    Slot(u32);
    /// One writer's lease of the vault; grows by one at each mount.
    Epoch(u64);
    /// The number of the newest root; grows with each root written, for ever.
    Generation(u64);
    /// The number of a commit; the first is 1.
    CommitSeq(u64);
    /// The number of a master key of a vault; the first is 0, and each `rekey` takes the next.
    KeyNumber(u16);
}

/// The root directory's inode number (FUSE fixes it).
pub const ROOT_INO: Ino = Ino(1);

/// A vault's random identity, bound into every frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VaultId(pub [u8; 16]);

impl fmt::Display for VaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
