//! The recovery key: what opens a vault when everything else is lost, drawn by us and kept on paper.
//!
//! Promise: 256 random bits, so it needs no slow derivation; its text is made once, for printing, and wiped when dropped.
//! Called by: `slot`, `cli`. On failure: the `Typo` of what was typed.

use crate::base::secret::Secret;
use crate::base::world::World;
use crate::format::recovery::{self, Typo};
use zeroize::Zeroizing;

/// What a slot of kind recovery key is opened with.
#[derive(Debug, Clone)]
pub struct RecoveryKey(pub(super) Secret);

impl RecoveryKey {
    /// A new one.
    #[must_use]
    pub fn generate(world: &dyn World) -> RecoveryKey {
        let mut key = Secret::zeroed();
        world.fill(&mut key[..]);
        RecoveryKey(key)
    }

    /// Reads what was typed.
    pub fn parse(typed: &str) -> Result<RecoveryKey, Typo> {
        let mut key = Secret::zeroed();
        recovery::read(typed, &mut key)?;
        Ok(RecoveryKey(key))
    }

    /// Whether what was typed can only be meant as one, well or badly typed.
    #[must_use]
    pub fn is_meant(typed: &str) -> bool {
        recovery::is_meant(typed)
    }

    /// What is printed, and typed back one day.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(recovery::write(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::world::RealWorld;

    #[test]
    fn it_is_random_comes_back_as_printed_and_shows_nowhere_else() {
        let key = RecoveryKey::generate(&RealWorld::default());
        assert_ne!(*key.0, *RecoveryKey::generate(&RealWorld::default()).0);
        assert_eq!(*RecoveryKey::parse(&key.text()).unwrap().0, *key.0);
        assert_eq!(format!("{key:?}"), "RecoveryKey(Secret(…))");
    }
}
