//! Method: write what `docs/format.md` §10 adds up into a vault, walk the segment, compare every length.
//! Promise: the sums in that section are those of real vaults, of both suites.
#![allow(clippy::unwrap_used)] // tests may

use std::sync::Arc;
use std::time::Duration;
use strongroom::backing::{Backing, Cache, MemoryBacking, Open};
use strongroom::base::choice::{Codec, Compression, SuiteId};
use strongroom::base::id::{ROOT_INO, SegmentId};
use strongroom::base::secret::Passphrase;
use strongroom::base::world::{RealWorld, World};
use strongroom::format::frame::Kind;
use strongroom::fs::{Caller, FileSystem, FsOptions, WriteHow};
use strongroom::seal::{Unlock, VaultKeys, open_header};
use strongroom::segment::{Walk, path};
use strongroom::vault::{self, CreateOptions, OpenOptions};

#[derive(Debug, PartialEq)]
struct Frame(Kind, Codec, u32, u32);

#[derive(Debug, PartialEq)]
struct Group {
    frames: Vec<Frame>,
    directory: u32,
    len: u32,
    padded: u64,
}

fn unlock() -> Unlock {
    Unlock::KeyFile(Passphrase(vec![7; 32]))
}

fn length(disk: &MemoryBacking, path: &str) -> u64 {
    disk.open(path, Open::Read, Cache::Buffered).unwrap().len().unwrap()
}

fn groups(disk: &MemoryBacking, id: SegmentId) -> Vec<Group> {
    let text = strongroom::backing::read_file(disk, "vault.toml", 1 << 16).unwrap();
    let (header, master) = open_header(&text, &unlock()).unwrap();
    let file = disk.open(&path(id), Open::Read, Cache::Direct).unwrap();
    let mut walk = Walk::new(file, id, header.suite, header.vault);
    let (mut all, keys) = (Vec::new(), VaultKeys::of(&header, &master).unwrap());
    while let Some(g) = walk.next(&keys).unwrap() {
        assert!(g.checksum_holds);
        let frame = |f: &strongroom::segment::WalkedFrame| {
            Frame(f.entry.kind, f.entry.codec, f.entry.sealed_len_bytes, f.entry.plain_len_bytes)
        };
        all.push(Group {
            frames: g.frames.iter().map(frame).collect(),
            directory: g.header.directory_len_bytes,
            len: g.header.len_bytes,
            padded: walk.position_bytes() - g.position_bytes,
        });
    }
    all
}

/// Bytes without pattern (SplitMix64).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Sum of a group's sealed frames.
fn sealed(group: &Group) -> u32 {
    group.frames.iter().map(|f| f.2).sum()
}

#[test]
fn the_worked_sizes_are_those_of_a_real_vault() {
    use Codec::{Raw, Zstd};
    use Kind::{Commit, Data, Start};
    for (suite, header_bytes) in [(SuiteId::Aes256Gcm, 567), (SuiteId::ChaCha20Poly1305, 573)] {
        let disk = MemoryBacking::default();
        let backing: Arc<dyn Backing> = Arc::new(disk.clone());
        let world: Arc<dyn World> = Arc::new(RealWorld::default());
        let create = CreateOptions { suite: Some(suite), compression: Compression::Zstd, ..CreateOptions::default() };
        vault::create(&backing, &unlock(), &create, &world).unwrap();
        assert_eq!(
            disk.list("").unwrap(),
            ["index", "root.a", "root.b", "segments", "snapshots", "vault.toml", "vault.toml.copy"]
        );
        let top = ["vault.toml", "vault.toml.copy", "root.a", "root.b"].map(|name| length(&disk, name));
        assert_eq!(top, [header_bytes, header_bytes, 4096, 4096]);

        let options = OpenOptions { flush_interval: Duration::from_secs(3600), ..OpenOptions::default() };
        let vault = vault::open(Arc::clone(&backing), &unlock(), &options, Arc::clone(&world)).unwrap();
        let fs = FileSystem::new(vault, FsOptions::default()).unwrap();
        let how = WriteHow { stamp: true, ..WriteHow::default() };
        let file = |name: &[u8]| {
            fs.sync_wait().unwrap();
            let ino = fs.mknod(&Caller::default(), ROOT_INO, name, 0o644, 0).unwrap().ino;
            fs.sync_wait().unwrap();
            ino
        };
        let write = |ino, at, data: &[u8]| {
            fs.write(ino, at, data, how).unwrap();
            fs.sync_wait().unwrap();
        };
        write(file(b"notes.txt"), 0, &[b'n'; 5000]);
        let log = file(b"log");
        write(log, 0, &noise(4096));
        write(log, 4096, &noise(4096));
        write(file(b"film"), 0, &noise(131_072));
        fs.vault().close().unwrap();
        drop(fs);

        let all = groups(&disk, SegmentId(1));
        for g in &all {
            let table = 4 * (g.padded / 4096) as u32;
            assert_eq!(
                g.len,
                64 + sealed(g) + g.directory + table,
                "header, frames, directory, four bytes for each block"
            );
            assert_eq!(g.padded, u64::from(g.len).next_multiple_of(4096));
        }
        let [start, make, text, _, append, append_again, _, film] = &all[..] else { panic!("{all:?}") };
        let expected = |frames: Vec<Frame>, directory, len, padded| Group { frames, directory, len, padded };
        let commit = |plain| Frame(Commit, Raw, plain + 16, plain);
        let raw = |plain| Frame(Data, Raw, plain + 16, plain);
        // A new vault's first commit: the root directory.
        assert_eq!(*start, expected(vec![Frame(Start, Raw, 57, 41), commit(168)], 35, 344, 4096));
        // One created file: what zstd makes of 344 bytes depends on times and its version.
        let Frame(kind, codec, _, plain) = make.frames[0];
        assert_eq!((kind, codec, plain, make.directory, make.padded), (Commit, Zstd, 344, 27, 4096));
        // 5,000 bytes that compress.
        let Frame(kind, codec, shrunk, plain) = text.frames[0];
        assert_eq!((kind, codec, plain), (Data, Zstd, 5000));
        assert!(shrunk < 64, "{shrunk}");
        assert_eq!((&text.frames[1], text.padded), (&commit(184), 4096));
        assert_eq!(text.directory, 34);
        // 4 KiB, and 4 KiB more.
        assert_eq!(*append, expected(vec![raw(4096), commit(184)], 35, 4419, 8192));
        assert_eq!(*append_again, expected(vec![raw(4096), commit(185)], 36, 4421, 8192));
        // A whole chunk that does not compress.
        let mut frames: Vec<Frame> = (0..8).map(|_| raw(16_384)).collect();
        frames.push(commit(186));
        assert_eq!(*film, expected(frames, 121, 131_719, 135_168));

        assert_eq!(disk.list("segments").unwrap(), ["0000000000000001"]);
        assert_eq!(length(&disk, &path(SegmentId(1))), all.iter().map(|g| g.padded).sum::<u64>());
        assert_eq!(length(&disk, "index/0000000000000001"), 90_792, "an empty table, and room in it for a few files");
    }
}
