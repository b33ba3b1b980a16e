//! Bytes that writers have handed over and that are not yet at rest.
//!
//! Promise: what is in here is what reads see, newest first; its size is charged to the byte budget until it is durable
//! and verified. Called by: `vault`. On failure: nothing here fails; a writer over the budget waits.

mod budget;
mod chunk;
mod file;
mod layer;
mod pool;

pub use budget::{Budget, Room};
pub use chunk::Chunk;
pub use file::{FileBuffer, Part, Piece, Rest, Shown, Written};
pub use pool::Pool;
