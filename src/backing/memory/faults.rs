//! The knobs of the faulty disk: which calls, on which paths, from which one on, how often, and what happens to them.
//!
//! Promise: a planted fault strikes exactly the calls that it names, in the order they come, until it has struck as often as
//! it may or is lifted. Called by: `memory`, before each call. Cannot fail.

/// The calls of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Opening what exists.
    Open,
    /// Making a file.
    Create,
    /// Reading, also from the device.
    Read,
    /// Writing.
    Write,
    /// Cutting or growing.
    SetLen,
    /// Taking room.
    Preallocate,
    /// Giving room back.
    Punch,
    /// Making a file durable.
    SyncData,
    /// Making a directory.
    MakeDir,
    /// Listing.
    List,
    /// Renaming; the path is the new one.
    Rename,
    /// Removing.
    Remove,
    /// Making names durable; the path is the directory's.
    SyncDir,
    /// Asking for room.
    Space,
    /// Taking the lock.
    Lock,
}

/// All calls that change something.
pub const MUTATING: &[Kind] = &[
    Kind::Create,
    Kind::Write,
    Kind::SetLen,
    Kind::Preallocate,
    Kind::Punch,
    Kind::SyncData,
    Kind::MakeDir,
    Kind::Rename,
    Kind::Remove,
    Kind::SyncDir,
];
/// Both syncs.
pub const SYNCS: &[Kind] = &[Kind::SyncData, Kind::SyncDir];

/// What happens to a call that is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It fails, and does nothing (a sync that fails leaves nobody knowing what is durable).
    Error(i32),
    /// A write stores so many of its bytes, and fails.
    Short {
        /// What it stores, from its beginning.
        bytes: usize,
        /// What it says.
        errno: i32,
    },
    /// A write's bytes land so far from where they belong, in the same file, and it says that all is well.
    Astray {
        /// Forward, or back.
        by_bytes: i64,
    },
    /// A write's bytes land at the same place of another file of the directory, and it says that all is well.
    AstrayFile,
    /// A write stores one byte otherwise, and says that all is well.
    Spoil,
    /// A sync does nothing, and says that all is well.
    Lie,
}

/// A fault to plant.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The calls it strikes; none: all of them.
    pub calls: &'static [Kind],
    /// What their path begins with.
    pub path: String,
    /// Calls that it lets go by before it strikes.
    pub skip: u64,
    /// Calls that it strikes.
    pub times: u64,
    /// What happens to them.
    pub effect: Effect,
}

impl Fault {
    /// A fault that strikes every one of these calls, everywhere, until it is lifted.
    #[must_use]
    pub fn of(calls: &'static [Kind], effect: Effect) -> Fault {
        Fault { calls, path: String::new(), skip: 0, times: u64::MAX, effect }
    }
    /// The same, on paths that begin so.
    #[must_use]
    pub fn on(self, path: &str) -> Fault {
        Fault { path: path.to_owned(), ..self }
    }
    /// The same, from the call after the first `skip` ones on.
    #[must_use]
    pub fn after(self, skip: u64) -> Fault {
        Fault { skip, ..self }
    }
    /// The same, so many times.
    #[must_use]
    pub fn times(self, times: u64) -> Fault {
        Fault { times, ..self }
    }
}

/// The faults that are planted.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    planted: Vec<(u64, Fault)>,
    next: u64,
    /// Calls struck so far.
    pub struck: u64,
}

impl Faults {
    /// Plants one more; gives its number.
    pub fn plant(&mut self, fault: Fault) -> u64 {
        self.next += 1;
        self.planted.push((self.next, fault));
        self.next
    }
    /// Lifts one.
    pub fn lift(&mut self, number: u64) {
        self.planted.retain(|(n, _)| *n != number);
    }
    /// Lifts all.
    pub fn lift_all(&mut self) {
        self.planted.clear();
    }
    /// What strikes this call, if anything does.
    pub fn strike(&mut self, kind: Kind, path: &str) -> Option<Effect> {
        let mut found = None;
        for (_, fault) in &mut self.planted {
            let names = (fault.calls.is_empty() || fault.calls.contains(&kind)) && path.starts_with(&fault.path);
            if !names || fault.times == 0 {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if found.is_none() {
                fault.times -= u64::from(fault.times != u64::MAX);
                found = Some(fault.effect);
            }
        }
        self.struck += u64::from(found.is_some());
        found
    }
}
