//! Bytes to values and back: pure, total, and nothing else. `docs/format.md` is the contract; each file names its section.
//!
//! Promise: decoding any bytes gives a value or a `Malformed`, never a panic, an endless loop or more memory than the
//! input accounts for; encoding is canonical, and golden tests freeze it. Called by: everything above.

pub mod acl;
pub mod extent;
pub mod frame;
pub mod group;
pub mod header;
pub mod holders;
pub mod inode;
pub mod key;
pub mod leases;
pub mod pin;
pub mod quota;
pub mod record;
pub mod recovery;
pub mod root;
pub mod segment;
pub mod setting;
pub mod snapshot;
pub mod wire;

pub use wire::Malformed;

/// The format that this version writes; `vault.toml` names it. What it names for itself is older than the vault, never newer.
pub const FORMAT_VERSION: u16 = 5;
/// The oldest format that is read. A vault of it is made one of `FORMAT_VERSION` when it is opened for use.
pub const FORMAT_VERSION_OLDEST: u16 = 1;
