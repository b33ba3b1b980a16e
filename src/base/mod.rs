//! Words that every layer shares: identifiers, limits, time and chance, secrets, choices, histograms, descriptors.
//!
//! Promise: nothing in here knows of disks, keys' uses, formats or kernels; it imports no other layer.
//! Called by: everyone. On failure: only the entropy source can fail, and that is fatal to the caller (`World::fill`).

pub mod choice;
pub mod descriptor;
mod file_clock;
pub mod histogram;
pub mod id;
pub mod limits;
pub mod lock;
pub mod secret;
pub mod sync;
pub mod world;
