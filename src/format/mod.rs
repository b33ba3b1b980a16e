//! Bytes to values and back: pure, total, and nothing else. `docs/format.md` is the contract; each file names its section.
//!
//! Promise: decoding any bytes gives a value or a `Malformed`, never a panic, an endless loop or more memory than the
//! input accounts for; encoding is canonical, and golden tests freeze it. Called by: everything above.

pub mod extent;
pub mod frame;
pub mod group;
pub mod header;
pub mod inode;
pub mod key;
pub mod pin;
pub mod record;
pub mod root;
pub mod segment;
pub mod wire;

pub use wire::Malformed;

/// The on-disk format this version writes, and the only one it reads.
pub const FORMAT_VERSION: u16 = 1;
