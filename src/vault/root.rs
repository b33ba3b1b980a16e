//! Writes and reads the two roots, and makes them anew from the log (format.md §2).
//!
//! Promise: both files carry the newest root whenever `write` has returned, and at every moment one of them holds: the one
//! that is good alone is written last, and the other is synced before. What is read back was written with the key.
//! Called by: `create`, `open`, `checkpoint`. On failure: the disk's error; where no root holds, `read` gives none, and
//! `rebuild` is for whoever was asked to mend.

use super::OpenFault;
use super::header_file::Spoiled;
use super::recover::list_segments;
use crate::backing::{Backing, Cache, Open, read_file};
use crate::base::choice::SuiteId;
use crate::base::id::{Epoch, Generation, KeyNumber, VaultId};
use crate::base::world::World;
use crate::format::leases::Leases;
use crate::format::root::{
    MAGIC, PLAIN_BYTES, PLAIN_BYTES_1, ROOT_BYTES, ROOT_VERSION, ROOT_VERSION_1, ROOT_VERSION_2, Root,
};
use crate::format::segment::LogPosition;
use crate::seal::VaultKeys;
use crate::segment::{Unreadable, Walk, parse_file_name, path};
use std::io;
use std::ops::Range;

const KEY: Range<usize> = 6..8;
const NONCE: Range<usize> = 8..32;
const SEALED_AT: usize = 32;
const TAG_BYTES: usize = 16;

/// The names of the two files.
pub const NAMES: [&str; 2] = ["root.a", "root.b"];

/// The bytes of a root file.
fn seal(root: &Root, keys: &VaultKeys, vault: VaultId, world: &dyn World) -> Vec<u8> {
    let mut b = vec![0; ROOT_BYTES];
    b[..4].copy_from_slice(&MAGIC);
    b[4..6].copy_from_slice(&ROOT_VERSION.to_le_bytes());
    b[KEY].copy_from_slice(&keys.number().0.to_le_bytes());
    let mut nonce = [0; 24];
    world.fill(&mut nonce);
    b[NONCE].copy_from_slice(&nonce);
    let sealed = SEALED_AT..SEALED_AT + PLAIN_BYTES;
    b[sealed.clone()].copy_from_slice(&root.encode());
    let (bound, rest) = b.split_at_mut(NONCE.start);
    let in_rest = sealed.start - NONCE.start..sealed.end - NONCE.start;
    let tag = keys.current().pages(vault, "root", &[0; 16]).seal(bound, &nonce, &mut rest[in_rest]);
    b[sealed.end..].copy_from_slice(&tag);
    b
}

fn open(b: &[u8], keys: &VaultKeys, vault: VaultId) -> Option<Root> {
    // Only the key in force: one under an older key is of before a rekey, or made by someone who kept that key.
    if claimed_key(b) != Some(keys.number()) {
        return None;
    }
    type Decode = fn(&[u8]) -> Result<Root, crate::format::Malformed>;
    let (len, decode): (usize, Decode) = match u16::from_le_bytes([b[4], b[5]]) {
        ROOT_VERSION => (PLAIN_BYTES, Root::decode),
        ROOT_VERSION_2 => (PLAIN_BYTES, Root::decode_2),
        ROOT_VERSION_1 => (PLAIN_BYTES_1, Root::decode_1),
        _ => return None,
    };
    let (plain, tag) = b[SEALED_AT..].split_at(len);
    let mut plain = plain.to_vec();
    let (nonce, tag) = (b[NONCE].try_into().ok()?, tag[..TAG_BYTES].try_into().ok()?);
    keys.current().pages(vault, "root", &[0; 16]).open(&b[..NONCE.start], nonce, &mut plain, tag).ok()?;
    decode(&plain).ok()
}

/// The number of the master key that a root file says it is under, if it has the shape of one. Anybody can have written it.
fn claimed_key(b: &[u8]) -> Option<KeyNumber> {
    (b.len() == ROOT_BYTES && b[..4] == MAGIC).then(|| KeyNumber(u16::from_le_bytes([b[KEY.start], b[KEY.start + 1]])))
}

/// The greatest number of a master key that a root file claims, if it is above what a header has: then the header, and whatever
/// opens it, is of before a rekey. To be asked only where no root holds.
fn newer_key(backing: &dyn Backing, keys: &VaultKeys) -> Option<KeyNumber> {
    let claims = NAMES.iter().filter_map(|name| claimed_key(&read_file(backing, name, ROOT_BYTES).ok()?));
    claims.max().filter(|claimed| *claimed > keys.number())
}

/// What the two files hold; an error only where the disk could not say.
fn both(backing: &dyn Backing, keys: &VaultKeys, vault: VaultId) -> [io::Result<Option<Root>>; 2] {
    NAMES.map(|name| match read_file(backing, name, ROOT_BYTES) {
        Ok(bytes) => Ok(open(&bytes, keys, vault)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(None),
        Err(e) => Err(e),
    })
}

/// Writes a root into both files, each synced before the next is touched.
pub fn write(
    backing: &dyn Backing,
    root: &Root,
    keys: &VaultKeys,
    vault: VaultId,
    world: &dyn World,
) -> io::Result<()> {
    let image = seal(root, keys, vault, world);
    let order = make_ready(backing, keys, vault)?;
    order.iter().try_for_each(|name| write_copy(backing, name, &image))
}

/// Writes a root under other keys into one file, synced, while the other goes on holding the one that is in force under those
/// of now: so that the header can change from the one to the other in one step, and finds its root on either side of it.
pub fn stage(
    backing: &dyn Backing,
    (now, vault): (&VaultKeys, VaultId),
    root: &Root,
    next: &VaultKeys,
    world: &dyn World,
) -> io::Result<()> {
    let [first, _] = make_ready(backing, now, vault)?;
    write_copy(backing, first, &seal(root, next, vault, world))
}

/// The order in which the files are to be written; the one to be written last holds the root in force, durably.
fn make_ready(backing: &dyn Backing, keys: &VaultKeys, vault: VaultId) -> io::Result<[&'static str; 2]> {
    let held = both(backing, keys, vault).map(|copy| copy.ok().flatten().map(|root| root.generation));
    // A power cut spoils the file that it meets: that must not be the only one in force.
    let order = if held[0] > held[1] { [NAMES[1], NAMES[0]] } else { NAMES };
    // Nor must it be in force by the grace of the page cache: after a sync that failed, of this process or one before, what a
    // file shows may never have reached the disk, and a sync that succeeds says nothing about it. So it gets its own bytes
    // once more, which harm nothing however they are torn.
    if held[0].max(held[1]).is_some() {
        let bytes = read_file(backing, order[1], ROOT_BYTES)?;
        write_copy(backing, order[1], &bytes)?;
    }
    Ok(order)
}

fn write_copy(backing: &dyn Backing, name: &str, image: &[u8]) -> io::Result<()> {
    let (file, new) = match backing.open(name, Open::Write, Cache::Buffered) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => (backing.open(name, Open::Create, Cache::Buffered)?, true),
        other => (other?, false),
    };
    file.write_all_at(image, 0)?;
    // Someone else's bytes may lie behind ours.
    if file.len()? != ROOT_BYTES as u64 {
        file.set_len(ROOT_BYTES as u64)?;
    }
    file.sync_data()?;
    if new { backing.sync_dir("") } else { Ok(()) }
}

/// The newest root that holds. A file that the disk does not give is as good as lost while the other holds: a root in force
/// was in both before anything relied on it.
pub fn read(backing: &dyn Backing, keys: &VaultKeys, vault: VaultId) -> io::Result<Option<Root>> {
    let (mut newest, mut unread): (Option<Root>, _) = (None, None);
    for copy in both(backing, keys, vault) {
        match copy {
            Ok(root) => newest = newest.into_iter().chain(root).max_by_key(|r| r.generation),
            Err(e) => unread = Some(e),
        }
    }
    match (newest, unread) {
        (None, Some(e)) => Err(e),
        (newest, _) => Ok(newest),
    }
}

/// The same; where none holds, a header of before a rekey is said to be one.
pub fn read_or_say(backing: &dyn Backing, keys: &VaultKeys, vault: VaultId) -> Result<Option<Root>, OpenFault> {
    match read(backing, keys, vault)? {
        None if newer_key(backing, keys).is_some() => Err(OpenFault::OlderKey { header: keys.number(), found: None }),
        found => Ok(found),
    }
}

/// The files that are missing, do not hold or could not be read, while the other holds: the next `write` writes them anew.
pub fn spoiled(backing: &dyn Backing, keys: &VaultKeys, vault: VaultId) -> Vec<Spoiled> {
    let both = both(backing, keys, vault);
    if !both.iter().any(|copy| matches!(copy, Ok(Some(_)))) {
        return Vec::new();
    }
    let spoiled = |(file, copy)| match copy {
        Ok(Some(_)) => None,
        Ok(None) => Some(Spoiled { file, unread: None }),
        Err(e) => Some(Spoiled { file, unread: Some(format!("{file} could not be read: {e}")) }),
    };
    NAMES.into_iter().zip(both).filter_map(spoiled).collect()
}

/// A root for a vault that has lost both, from what the log and the names of the index files tell. Nothing is written; its
/// generation is 0, and for the pins to raise.
///
/// It vouches for no commit: how far the log goes is for its own chain to say, and commits that are missing at its very end
/// cannot be told from commits that never were. The lease is above every one that a group was written under.
pub fn rebuild(backing: &dyn Backing, keys: &VaultKeys, suite: SuiteId, vault: VaultId) -> io::Result<Root> {
    let mut epoch = Epoch(0);
    for id in list_segments(backing)? {
        let mut walk = Walk::new(backing.open(&path(id), Open::Read, Cache::Direct)?, id, suite, vault);
        // By its directory, which only the key could make: anyone can write a large number into a header.
        match walk.next(keys) {
            Ok(Some(group)) => epoch = epoch.max(group.header.epoch),
            Ok(None) | Err(Unreadable::Damaged { .. }) => {}
            Err(Unreadable::Io(e)) => return Err(e),
        }
    }
    // Index files are named like segments: sixteen digits.
    let index_file = backing.list("index")?.iter().filter_map(|name| parse_file_name(name)).max().map_or(0, |n| n.0);
    let (covered, emergency) = (LogPosition::START, String::new());
    let (generation, other_leases) = (Generation(0), Leases::default());
    Ok(Root { generation, epoch, covered, index_file, clean: false, header: None, emergency, other_leases })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::{Fate, MemoryBacking};
    use crate::base::secret::Secret;
    use crate::base::world::RealWorld;
    use crate::seal::MasterKey;

    const VAULT: VaultId = VaultId([7; 16]);

    fn keys() -> VaultKeys {
        VaultKeys::first(MasterKey::from_secret(Secret::from([5; 32])))
    }

    fn root(generation: u64) -> Root {
        let (epoch, covered, emergency) = (Epoch(1), LogPosition::START, "/mnt/é".to_owned());
        Root {
            generation: Generation(generation),
            epoch,
            covered,
            index_file: 0,
            clean: false,
            header: None,
            emergency,
            other_leases: Leases::default(),
        }
    }

    fn put(disk: &MemoryBacking, generation: u64) {
        write(disk, &root(generation), &keys(), VAULT, &RealWorld::default()).unwrap();
    }

    fn newest(disk: &MemoryBacking) -> Option<u64> {
        read(disk, &keys(), VAULT).unwrap().map(|r| r.generation.0)
    }

    fn overwrite(disk: &MemoryBacking, name: &str, bytes: &[u8]) {
        let file = disk.open(name, Open::Write, Cache::Buffered).unwrap();
        file.set_len(0).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.sync_data().unwrap();
    }

    #[test]
    fn either_file_alone_has_the_newest_root_and_the_next_write_mends_the_other() {
        let damages: [fn(&MemoryBacking, &str); 4] = [
            |disk, name| disk.remove(name).unwrap(),
            |disk, name| overwrite(disk, name, b""),
            |disk, name| overwrite(disk, name, &[0x5a; 9000]),
            |disk, name| disk.flip_bit(name, 8 * 4095),
        ];
        for damage in damages {
            for name in NAMES {
                let disk = MemoryBacking::default();
                (1..=3).for_each(|generation| put(&disk, generation));
                damage(&disk, name);
                assert_eq!(read(&disk, &keys(), VAULT).unwrap(), Some(root(3)), "{name}");
                put(&disk, 4);
                for lost in NAMES {
                    let disk = disk.crash(|_, _| false);
                    disk.remove(lost).unwrap();
                    assert_eq!(newest(&disk), Some(4), "{name} was damaged, then {lost}");
                }
            }
        }
    }

    #[test]
    fn a_power_cut_at_any_call_leaves_the_old_root_or_the_new() {
        for damaged in [None, Some(NAMES[0]), Some(NAMES[1])] {
            let disk = MemoryBacking::default();
            put(&disk, 1);
            if let Some(name) = damaged {
                overwrite(&disk, name, &[1; 5000]);
            }
            disk.record();
            put(&disk, 2);
            let (mut cuts, mut seen) = (disk.cuts(), [0; 2]);
            loop {
                for coins in 0..30 {
                    let after = cuts.image(&mut |_| Fate::Torn { unit_bytes: 512, coins });
                    match newest(&after) {
                        Some(generation @ 1..=2) => seen[generation as usize - 1] += 1,
                        other => panic!("{other:?} after cut {}, {damaged:?} damaged", cuts.cut()),
                    }
                }
                if !cuts.advance() {
                    break;
                }
            }
            assert!(seen[0] > 30 && seen[1] > 30, "the cuts fell on both sides: {seen:?}");
        }
    }

    #[test]
    fn the_only_good_copy_is_written_last() {
        for (bad, good) in [(NAMES[0], NAMES[1]), (NAMES[1], NAMES[0])] {
            let disk = MemoryBacking::default();
            put(&disk, 1);
            overwrite(&disk, bad, b"");
            // The first write that is tried fails: the good copy must not have been touched.
            disk.fail_next_writes(1);
            assert!(write(&disk, &root(2), &keys(), VAULT, &RealWorld::default()).is_err());
            disk.remove(bad).unwrap();
            assert_eq!(newest(&disk), Some(1), "{good} was put at risk first");
        }
    }

    #[test]
    fn a_root_of_an_older_version_is_read_and_the_next_is_of_ours() {
        let disk = MemoryBacking::default();
        put(&disk, 4);
        let mut b = vec![0; ROOT_BYTES];
        b[..4].copy_from_slice(&MAGIC);
        b[4] = 1;
        let old = root(5).encode();
        // Version 1: the segment to replay from before the index file, and no path.
        let mut plain = [&old[..56], &9u64.to_le_bytes(), &old[56..65]].concat();
        let tag = keys().current().pages(VAULT, "root", &[0; 16]).seal(&b[..8], &[0; 24], &mut plain);
        b[32..105].copy_from_slice(&plain);
        b[105..121].copy_from_slice(&tag);
        overwrite(&disk, NAMES[1], &b);
        assert_eq!(read(&disk, &keys(), VAULT).unwrap(), Some(Root { emergency: String::new(), ..root(5) }));
        b[4] = 2;
        let mut plain = [&old[..65], &old[105..], &[0; 40]].concat();
        let tag = keys().current().pages(VAULT, "root", &[0; 16]).seal(&b[..8], &[0; 24], &mut plain);
        b[32..4080].copy_from_slice(&plain);
        b[4080..].copy_from_slice(&tag);
        overwrite(&disk, NAMES[1], &b);
        assert_eq!(read(&disk, &keys(), VAULT).unwrap(), Some(root(5)));
        put(&disk, 6);
        for name in NAMES {
            assert_eq!(read_file(&disk, name, ROOT_BYTES).unwrap()[4..6], [3, 0]);
        }
    }

    #[test]
    fn another_key_vault_or_version_is_no_root() {
        let disk = MemoryBacking::default();
        put(&disk, 1);
        let image = read_file(&disk, NAMES[0], ROOT_BYTES).unwrap();
        assert!(open(&image, &keys(), VAULT).is_some());
        assert!(open(&image, &keys(), VaultId([8; 16])).is_none());
        assert!(open(&image, &VaultKeys::first(MasterKey::from_secret(Secret::from([6; 32]))), VAULT).is_none());
        for (at, byte) in [(0, b'X'), (4, 4), (4, 2), (4, 1), (6, 1), (8, image[8] ^ 1), (4095, image[4095] ^ 1)] {
            let mut b = image.clone();
            b[at] = byte;
            assert!(open(&b, &keys(), VAULT).is_none(), "byte {at}");
        }
    }
}
