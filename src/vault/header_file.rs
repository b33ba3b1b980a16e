//! The header and its copy: `vault.toml` and `vault.toml.copy` (format.md §8).
//!
//! Promise: whenever `store` has returned, both files hold the header whole, and at every moment before one of them does.
//! A vault opens from whichever holds, and what is missing, damaged or behind is put right from it: losing either loses
//! nothing. Of two that hold the newer revision counts, so a slot that was removed does not come back with an older copy.
//! Called by: `create`, `open`, `slots`, `cli::status`. On failure: the disk's error, or why neither text is a header that
//! this key opens.

use super::OpenFault;
use crate::backing::{Backing, Cache, Open, replace_file};
use crate::format::header::HEADER_BYTES_MAX;
use crate::seal::{
    Header, HeaderFault, MasterKey, Unlock, UnlockedHeader, VaultKeys, open_header, read_header, unlock_header,
};
use std::io;

/// The header's name.
pub const HEADER: &str = "vault.toml";
/// The name of its copy.
pub const HEADER_COPY: &str = "vault.toml.copy";

/// Writes the header into both files, one after the other, each so that it is either the old or the new one.
///
/// The copy follows: it is never ahead of `vault.toml`.
pub fn store(backing: &dyn Backing, text: &[u8]) -> io::Result<()> {
    replace_file(backing, "", HEADER, text)?;
    replace_file(backing, "", HEADER_COPY, text)
}

/// What the two files hold, unlocked by nobody yet.
pub struct HeaderTexts {
    /// As they are in the order of `NAMES`; `None` for one that is missing or cannot be read.
    texts: [Option<Vec<u8>>; 2],
    /// Why each could not be read, though something is there.
    unread: [Option<io::Error>; 2],
}

const NAMES: [&str; 2] = [HEADER, HEADER_COPY];

/// A file kept twice of which one does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spoiled {
    /// Its name.
    pub file: &'static str,
    /// What the disk said, if it did not give the file; else it is missing or damaged.
    pub unread: Option<String>,
}

/// A header that holds.
pub struct OpenedHeader {
    /// Its values.
    pub header: Header,
    /// The key that it was opened with.
    pub master: MasterKey,
    /// It, and those of before that segments are still under.
    pub keys: VaultKeys,
    /// The slots that what it was opened with fits; none for a master key.
    pub fitting: Vec<u32>,
    /// Which of the two it was.
    from: usize,
}

impl HeaderTexts {
    /// Reads both; `None` if neither file is there.
    pub fn read(backing: &dyn Backing) -> io::Result<Option<HeaderTexts>> {
        let read = NAMES.map(|name| read_text(backing, name));
        let unread = [0, 1].map(|i| read[i].as_ref().err().map(|e| not_read(NAMES[i], e)));
        let texts = read.map(|text| text.ok().flatten());
        match (texts.iter().any(Option::is_some), unread) {
            (true, unread) => Ok(Some(HeaderTexts { texts, unread })),
            (false, [Some(e), _] | [_, Some(e)]) => Err(e),
            (false, [None, None]) => Ok(None),
        }
    }

    /// Why one of the two could not be read.
    pub(super) fn into_unread(self) -> Option<io::Error> {
        self.unread.into_iter().flatten().next()
    }

    /// Why no header opened: the disk's error where one of the files could not be read, for that one might have opened.
    pub fn or_unread(&self, fault: HeaderFault) -> OpenFault {
        match self.unread.iter().flatten().next() {
            Some(e) => OpenFault::Backing(io::Error::new(e.kind(), format!("{e}; as for the other: {fault}"))),
            None => fault.into(),
        }
    }

    /// Those that differ, the one that counts first.
    fn each(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let [first, copy] = &self.texts;
        let copy = copy.as_ref().filter(|copy| first.as_ref() != Some(copy));
        let first = first.as_deref().map(|text| (0, text));
        first.into_iter().chain(copy.map(|text| (1, &text[..])))
    }

    /// What `attempt` makes of the first text that it takes; or what it said of one that it refused.
    fn first<T>(&self, mut attempt: impl FnMut(usize, &[u8]) -> Result<T, HeaderFault>) -> Result<T, HeaderFault> {
        let mut refused: Option<HeaderFault> = None;
        for (from, text) in self.each() {
            match attempt(from, text) {
                Ok(value) => return Ok(value),
                // Another version left it, on purpose: an older copy must not be taken for the vault as it is now.
                Err(newer @ HeaderFault::UnknownFeature(_)) if from == 0 => return Err(newer),
                // Of two refusals the one that came further tells more: one text is rubble, the other wants another key.
                Err(fault) => refused = refused.into_iter().chain([fault]).max_by_key(came_far),
            }
        }
        Err(refused.unwrap_or_else(|| HeaderFault::Malformed(format!("{HEADER} cannot be read"))))
    }

    /// Unlocks and authenticates the one that holds; of two the newer, and `vault.toml` if they are of one revision.
    pub fn open(&self, unlock: &Unlock) -> Result<OpenedHeader, HeaderFault> {
        let open = |from, text: &[u8]| {
            let UnlockedHeader { header, master, keys, fitting } = unlock_header(text, unlock)?;
            Ok(OpenedHeader { header, master, keys, fitting, from })
        };
        let opened = self.first(open)?;
        // The other one may be whole, too: then only what fits no slot of it kept it from being opened. It is asked with
        // the key itself, so that rubble, or what anybody could have written, counts for nothing.
        let other = 1 - opened.from;
        let Some(text) = self.texts[other].as_ref().filter(|text| self.texts[opened.from].as_ref() != Some(*text))
        else {
            return Ok(opened);
        };
        let claimed = read_header(text).map_or(opened.header.key, |claims| claims.key);
        if claimed > opened.header.key
            && let Ok(newer) = open(other, text)
        {
            // A crash came in the middle of a rekey, or one file was put back: the newer key's has the newer state.
            return Ok(newer);
        }
        let revision = |(header, _): (Header, MasterKey)| header.revision;
        match open_header(text, &Unlock::Master(opened.master.clone())).map(revision) {
            Ok(newer) if newer > opened.header.revision || newer == opened.header.revision && other == 0 => {
                open(other, text)
            }
            _ => Ok(opened),
        }
    }

    /// The values of one that can be read, for showing: nothing in it is authenticated.
    pub fn shown(&self) -> Result<Header, HeaderFault> {
        self.first(|_, text| read_header(text))
    }

    /// The text of the same one, to be copied.
    pub fn shown_text(&self) -> Result<&[u8], HeaderFault> {
        let from = self.first(|from, text| read_header(text).map(|_| from))?;
        Ok(self.texts[from].as_deref().expect("`first` gives one that is there"))
    }

    /// The values of all that can be read, likewise.
    pub fn all_shown(&self) -> impl Iterator<Item = Header> {
        self.each().filter_map(|(_, text)| read_header(text).ok())
    }

    /// The file that does not hold what the opened one does, with the disk's error if it could not be read. A vault of format 1
    /// need not have a copy.
    pub fn spoiled(&self, opened: &OpenedHeader) -> Option<Spoiled> {
        let (other, unread) = (1 - opened.from, |e: &io::Error| e.to_string());
        let never_there = opened.header.format == 1 && other == 1 && self.texts[other].is_none();
        let is_spoiled = !never_there && self.texts[other] != self.texts[opened.from];
        is_spoiled.then(|| Spoiled { file: NAMES[other], unread: self.unread[other].as_ref().map(unread) })
    }

    /// Writes the file anew that does not hold what the opened one does. If that fails, the next mount tries again: it is logged, and
    /// does not keep a vault closed that opened.
    ///
    /// A file that the disk did not give stays: it may be the newer one of the two.
    /// One of a newer master key is another's whole vault: it goes only if a root holds under the key of the opened one
    /// (`root_holds`), which says that the step to the newer key was never done.
    pub fn mend(&self, backing: &dyn Backing, opened: &OpenedHeader, root_holds: bool) {
        let other = 1 - opened.from;
        if self.texts[other] == self.texts[opened.from] {
            return;
        }
        if let Some(e) = &self.unread[other] {
            log::error!("{e}; the vault is opened with {}", NAMES[opened.from]);
            return;
        }
        let newer = |text: &Vec<u8>| read_header(text).is_ok_and(|claims| claims.key > opened.header.key);
        if !root_holds && self.texts[other].as_ref().is_some_and(newer) {
            return;
        }
        let Some(text) = &self.texts[opened.from] else { return };
        if opened.from == 1 {
            log::warn!(
                "{HEADER} is missing or does not hold: the vault was opened from {HEADER_COPY}, and it is restored"
            );
        }
        if let Err(e) = replace_file(backing, "", NAMES[other], text) {
            log::warn!("{} could not be restored: {e}", NAMES[other]);
        }
    }
}

fn not_read(name: &str, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{name} could not be read: {e}"))
}

/// How far a text came before it was refused.
fn came_far(fault: &HeaderFault) -> u8 {
    match fault {
        HeaderFault::Malformed(_) | HeaderFault::UnknownFeature(_) => 0,
        HeaderFault::Weak(_) | HeaderFault::MemoryBomb(_) => 1,
        HeaderFault::WrongKey | HeaderFault::KeyFileTooShort { .. } => 2,
        HeaderFault::Tampered => 3,
    }
}

/// The bytes of one file, but no more than one past the most that a header has; `None` if it is not there.
fn read_text(backing: &dyn Backing, name: &str) -> io::Result<Option<Vec<u8>>> {
    let file = match backing.open(name, Open::Read, Cache::Buffered) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut text = vec![0; file.len()?.min(HEADER_BYTES_MAX as u64 + 1) as usize];
    let got = file.read_at(&mut text, 0)?;
    text.truncate(got);
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::{Fate, MemoryBacking, read_file};
    use crate::base::choice::{Compression, SuiteId};
    use crate::base::id::VaultId;
    use crate::base::secret::Passphrase;
    use crate::base::world::RealWorld;
    use crate::seal::{NewVault, add_slot, create_header, write_header};

    fn key(byte: u8) -> Unlock {
        Unlock::KeyFile(Passphrase(vec![byte; 32]))
    }

    fn header(vault: u8) -> Vec<u8> {
        let (suite, compression) = (SuiteId::ChaCha20Poly1305, Compression::Lz4);
        let vault = VaultId([vault; 16]);
        let new = NewVault { vault, suite, compression, quota_bytes: None, quota_inodes: None, argon2: None };
        create_header(&RealWorld::default(), &new, &key(7), None).unwrap().0
    }

    fn put(disk: &MemoryBacking, name: &str, text: &[u8]) {
        replace_file(disk, "", name, text).unwrap();
    }

    fn texts(disk: &MemoryBacking) -> HeaderTexts {
        HeaderTexts::read(disk).unwrap().unwrap()
    }

    /// Opens and mends; the vault that it was, by its id's first byte.
    fn opened(disk: &MemoryBacking) -> Result<u8, HeaderFault> {
        let texts = texts(disk);
        let opened = texts.open(&key(7))?;
        texts.mend(disk, &opened, true);
        let both = NAMES.map(|name| read_file(disk, name, 1 << 16).unwrap());
        assert_eq!(both[0], both[1]);
        Ok(opened.header.vault.0[0])
    }

    #[test]
    fn either_file_is_enough_and_the_other_comes_back() {
        let good = header(1);
        let mut forged = good.clone();
        let digit = String::from_utf8(good.clone()).unwrap().find("mac = \"").unwrap() + 7;
        forged[digit] = if forged[digit] == b'0' { b'1' } else { b'0' };
        let rubble: [&[u8]; 5] = [b"", &good[..100], &[0xff; 3000], &[b'#'; 70_000], &forged];
        for name in NAMES {
            let disk = MemoryBacking::default();
            store(&disk, &good).unwrap();
            disk.remove(name).unwrap();
            assert_eq!(opened(&disk), Ok(1), "{name} missing");
            for bytes in rubble {
                put(&disk, name, bytes);
                assert_eq!(opened(&disk), Ok(1), "{name} damaged");
            }
        }
        let disk = MemoryBacking::default();
        assert!(HeaderTexts::read(&disk).unwrap().is_none());
    }

    #[test]
    fn vault_toml_counts_while_it_holds() {
        let disk = MemoryBacking::default();
        put(&disk, HEADER, &header(1));
        put(&disk, HEADER_COPY, &header(2));
        assert_eq!(opened(&disk), Ok(1));
    }

    #[test]
    fn of_two_that_hold_the_newer_counts_and_what_it_has_not_opens_neither() {
        let world = RealWorld::default();
        let old = header(1);
        let (mut values, master) = open_header(&old, &key(7)).unwrap();
        let second = key(8);
        add_slot(&world, &mut values, &master, &second, "second", None).unwrap();
        values.revision = 1;
        let both = write_header(&values, &master).unwrap();
        values.slots.remove(0);
        values.revision = 2;
        let newest = write_header(&values, &master).unwrap();
        for (first, copy) in [(&newest, &old), (&old, &newest), (&newest, &both), (&both, &newest)] {
            let disk = MemoryBacking::default();
            put(&disk, HEADER, first);
            put(&disk, HEADER_COPY, copy);
            let removed = texts(&disk).open(&key(7)).map(|_| ());
            assert_eq!(removed, Err(HeaderFault::WrongKey), "the slot was removed from the newer one");
            let opened = texts(&disk).open(&second).unwrap();
            assert_eq!((opened.header.revision, opened.fitting.as_slice()), (2, &[2][..]));
            assert_eq!(texts(&disk).open(&Unlock::Master(master.clone())).unwrap().header.revision, 2);
            texts(&disk).mend(&disk, &opened, true);
            assert!(NAMES.iter().all(|name| read_file(&disk, name, 1 << 16).unwrap() == newest));
        }
        // One that does not hold does not count, whatever revision it claims.
        let forged = String::from_utf8(newest.clone()).unwrap().replace("revision = 2", "revision = 9");
        let disk = MemoryBacking::default();
        put(&disk, HEADER, &old);
        put(&disk, HEADER_COPY, forged.as_bytes());
        assert_eq!(texts(&disk).open(&key(7)).unwrap().header.revision, 0);
    }

    #[test]
    fn a_newer_vault_is_not_opened_from_an_older_copy() {
        let disk = MemoryBacking::default();
        let newer = String::from_utf8(header(1)).unwrap().replace("features = []", "features = ['x']");
        put(&disk, HEADER, newer.as_bytes());
        put(&disk, HEADER_COPY, &header(1));
        assert_eq!(opened(&disk), Err(HeaderFault::UnknownFeature("x".to_owned())));
    }

    #[test]
    fn of_two_refusals_the_one_that_came_further_is_said() {
        let disk = MemoryBacking::default();
        let fault = |disk: &MemoryBacking| texts(disk).open(&key(8)).map(|_| ()).unwrap_err();
        store(&disk, &header(1)).unwrap();
        for name in NAMES {
            put(&disk, name, b"rubble");
            assert_eq!(fault(&disk), HeaderFault::WrongKey, "{name} is rubble, but the key is what is wrong");
            put(&disk, name, &header(1));
        }
        store(&disk, b"rubble").unwrap();
        assert!(matches!(fault(&disk), HeaderFault::Malformed(_)));
    }

    #[test]
    fn a_power_cut_while_storing_leaves_the_old_or_the_new_header() {
        let (disk, old, new) = (MemoryBacking::default(), header(1), header(2));
        store(&disk, &old).unwrap();
        disk.record();
        store(&disk, &new).unwrap();
        let (mut cuts, mut seen) = (disk.cuts(), [0; 2]);
        loop {
            for coins in 0..20 {
                let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
                let found = opened(&after).expect("one of the two holds after any power cut");
                seen[usize::from(found) - 1] += 1;
            }
            if !cuts.advance() {
                break;
            }
        }
        assert!(seen[0] > 20 && seen[1] > 20, "the cuts fell on both sides: {seen:?}");
    }
}
