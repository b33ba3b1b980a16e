//! Known answers of every derivation and sealing step, and what must be refused.
//!
//! Method: `tests/vectors/*.json` were computed by another program in another language (`tests/reader/vectors.py`), which knows
//! `docs/format.md` and none of this code; each case is tried here. Most are to be refused: moved, exchanged, changed, cut.
//! The steps that the library shows to nobody are compared in `seal::slot` and `seal::derive`, with the same files.
//! Promise: a vault that is written today is read tomorrow, by whoever follows the document, and forgeries are not.

#![allow(clippy::unwrap_used, reason = "a test may")]

use serde_json::Value;
use std::path::Path;
use strongroom::base::choice::{Codec, SuiteId};
use strongroom::base::id::{Epoch, Ino, KeyNumber, SegmentId, Slot, VaultId};
use strongroom::base::secret::{Passphrase, Secret};
use strongroom::format::frame::{Address, Kind};
use strongroom::format::pin::parse_moved;
use strongroom::format::root::{HeaderMark, Root};
use strongroom::seal::{
    Chain, HeaderFault, MasterKey, RecoveryKey, Unlock, decompress, open_header, open_pin, says_moved, unlock_header,
    write_header,
};

fn vectors(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/vectors/{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The cases, and whether so many of them are refused that the file is worth its name.
fn cases(vectors: &Value) -> &[Value] {
    let cases = vectors["cases"].as_array().unwrap();
    let refused = cases.iter().filter(|case| !case["refused"].is_null()).count();
    assert!(refused * 2 > cases.len(), "most are to be refused");
    cases
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    let digits = text(value).as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

fn master(value: &Value) -> MasterKey {
    MasterKey::from_secret(Secret::from(array(value)))
}

/// A recovery key of these bytes: it is read from its text, as everybody's.
fn recovery(bytes: [u8; 32]) -> RecoveryKey {
    RecoveryKey::parse(&strongroom::format::recovery::write(&bytes)).unwrap()
}

#[test]
fn headers_open_for_what_their_slots_were_made_for_and_for_nothing_else() {
    let vectors = vectors("headers");
    for case in cases(&vectors) {
        let (what, header) = (text(&case["what"]), text(&case["text"]).as_bytes());
        let secret = bytes(&case["secret"]);
        let unlock = match text(&case["kind"]) {
            "passphrase" => Unlock::Passphrase(Passphrase(secret)),
            "key-file" => Unlock::KeyFile(Passphrase(secret)),
            "recovery-key" => Unlock::Recovery(recovery(array32(&secret))),
            other => panic!("{other}"),
        };
        match (unlock_header(header, &unlock), case["refused"].as_str()) {
            (Ok(opened), None) => {
                assert_eq!(opened.master.secret()[..], array::<32>(&case["master"]), "{what}");
                for key in case["keys"].as_array().into_iter().flatten() {
                    let got = opened.keys.get(KeyNumber(number(&key[0]) as u16)).expect("a key of that number");
                    assert_eq!(got.secret()[..], array::<32>(&key[1]), "{what}");
                }
                let named = case["keys"].as_array().map_or(1, Vec::len);
                assert_eq!(opened.keys.old().count() + 1, named, "{what}");
                let again = write_header(&opened.header, &opened.master).unwrap();
                assert_eq!(open_header(&again, &unlock).unwrap().0, opened.header, "{what}: written by us");
            }
            (Err(fault), Some(refused)) => {
                let said = match fault {
                    HeaderFault::WrongKey => "wrong key",
                    HeaderFault::Malformed(_) => "malformed",
                    HeaderFault::Weak(_) => "weak",
                    HeaderFault::MemoryBomb(_) => "bomb",
                    HeaderFault::UnknownFeature(_) => "newer",
                    HeaderFault::Tampered => "tampered",
                    HeaderFault::KeyFileTooShort { .. } => "short",
                };
                assert_eq!(said, refused, "{what}");
            }
            (opened, want) => panic!("{what}: {:?}, where {want:?} was to be said", opened.map(|o| o.header)),
        }
    }
}

fn array32(bytes: &[u8]) -> [u8; 32] {
    // A key file's bytes in the place of a recovery key: as many of them as a recovery key has.
    bytes[..32].try_into().unwrap()
}

#[test]
fn a_header_is_the_bytes_that_its_code_is_over() {
    let vectors = vectors("headers");
    let case = &vectors["cases"][0];
    let (header, _) = strongroom::format::header::Header::parse(text(&case["text"]).as_bytes()).unwrap();
    assert_eq!(header.canonical(), bytes(&vectors["canonical"]));
    let mark = strongroom::seal::header_mark(&header, &master(&case["master"]));
    assert_eq!(mark, HeaderMark { revision: 5, mac: array(&vectors["mac"]) });
}

#[test]
fn frames_and_directories_open_where_they_were_sealed_and_nowhere_else() {
    let vectors = vectors("frames");
    let master = master(&vectors["master"]);
    for case in cases(&vectors) {
        let (what, at) = (text(&case["what"]), &case["at"]);
        let suite = [SuiteId::Aes256Gcm, SuiteId::ChaCha20Poly1305][number(&at["suite"]) as usize - 1];
        let (vault, epoch, segment) =
            (VaultId(array(&at["vault"])), Epoch(number(&at["epoch"])), SegmentId(number(&at["segment"])));
        let address = Address {
            vault,
            epoch,
            segment,
            slot: Slot(number(&at["slot"]) as u32),
            kind: Kind::from_u8(number(&at["kind"]) as u8).unwrap(),
            codec: [Codec::Raw, Codec::Lz4, Codec::Zstd][number(&at["codec"]) as usize],
            plain_len_bytes: number(&at["plain_len"]) as u32,
            ino: Ino(number(&at["inode"])),
            offset_bytes: number(&at["offset"]),
        };
        let key = master.segment(suite, vault, epoch, segment, &array(&at["salt"]));
        let mut sealed = bytes(&case["sealed"]);
        if !case["refused"].is_null() {
            assert!(key.open(&address, &mut sealed).is_err(), "{what}");
            continue;
        }
        let body = bytes(&case["body"]);
        let mut again = body.clone();
        key.seal(&address, &mut again, 0);
        assert_eq!(again, sealed, "{what}: sealed by us");
        assert_eq!(key.open(&address, &mut sealed).unwrap(), body, "{what}");
        let (mut plain, want) = (Vec::new(), bytes(&case["plain"]));
        decompress(address.codec, &body, want.len(), &mut plain).unwrap();
        assert_eq!(plain, want, "{what}");
    }
}

#[test]
fn pages_open_with_their_key_nonce_and_place() {
    let vectors = vectors("pages");
    let master = master(&vectors["master"]);
    for case in cases(&vectors) {
        let (what, aad, nonce) = (text(&case["what"]), bytes(&case["aad"]), array(&case["nonce"]));
        let key = master.pages(VaultId(array(&case["vault"])), text(&case["purpose"]), &[0; 16]);
        let sealed = bytes(&case["sealed"]);
        let (body, tag) = sealed.split_last_chunk::<16>().unwrap();
        let mut page = body.to_vec();
        let opened = key.open(&aad, &nonce, &mut page, tag);
        if !case["refused"].is_null() {
            assert!(opened.is_err(), "{what}");
            continue;
        }
        assert!(opened.is_ok() && page == bytes(&case["plain"]), "{what}");
        assert_eq!(key.seal(&aad, &nonce, &mut page), *tag, "{what}: sealed by us");
        assert_eq!(page, body, "{what}: sealed by us");
    }
    let (root, want) = (Root::decode(&bytes(&vectors["cases"][0]["plain"])).unwrap(), &vectors["root"]);
    assert_eq!((root.generation.0, root.epoch.0), (number(&want["generation"]), number(&want["epoch"])));
    assert_eq!((root.covered.seq.0, root.index_file), (number(&want["number"]), number(&want["index_file"])));
    let mark = HeaderMark { revision: number(&want["revision"]), mac: array(&want["mac"]) };
    assert_eq!((root.header, root.clean, &*root.emergency), (Some(mark), true, text(&want["emergency"])));
}

#[test]
fn the_chain_is_over_these_frames_in_this_order() {
    let vectors = vectors("chain");
    for case in cases(&vectors) {
        let mut chain = Chain::after(&array(&case["before"]));
        for link in case["links"].as_array().unwrap() {
            chain.add(SegmentId(number(&link[0])), Slot(number(&link[1]) as u32), &array(&link[2]));
        }
        assert_eq!(chain.value() == array::<32>(&case["value"]), case["refused"].is_null(), "{}", case["what"]);
    }
}

#[test]
fn pins_hold_for_their_vault_and_key_and_in_one_spelling() {
    let vectors = vectors("pins");
    let (master, vault) = (master(&vectors["master"]), VaultId(array(&vectors["vault"])));
    for case in cases(&vectors) {
        match open_pin(text(&case["text"]).as_bytes(), vault, &master) {
            Ok(pin) => {
                let said = (pin.generation.0, pin.epoch.0, pin.commit.0);
                assert_eq!(said, (number(&case["generation"]), number(&case["epoch"]), number(&case["commit"])));
            }
            Err(_) => assert!(!case["refused"].is_null(), "{}", case["what"]),
        }
    }
    for case in vectors["moved"].as_array().expect("an array of what stands behind a pin") {
        let (line, key) = (text(&case["text"]).as_bytes(), KeyNumber(number(&case["key"]) as u16));
        assert!(open_pin(line, vault, &master).is_ok(), "{}: the pin before it holds", case["what"]);
        let moved = parse_moved(line).unwrap_or_default();
        let says = moved.iter().any(|moved| says_moved(moved, vault, key, &master));
        assert_eq!(says, case["refused"].is_null(), "{}", case["what"]);
        let other = MasterKey::from_secret(Secret::from([9; 32]));
        assert!(!moved.iter().any(|moved| says_moved(moved, vault, key, &other)), "said with that key alone");
        assert!(!moved.iter().any(|moved| says_moved(moved, VaultId([9; 16]), key, &master)), "of that vault alone");
    }
}

#[test]
fn recovery_keys_are_read_as_they_were_printed_and_a_typo_is_told() {
    for case in cases(&vectors("recovery-keys")) {
        let (what, typed) = (text(&case["what"]), text(&case["text"]));
        match RecoveryKey::parse(typed) {
            Ok(key) => assert_eq!(*key.text(), strongroom::format::recovery::write(&array(&case["key"])), "{what}"),
            Err(typo) => assert!(typo.to_string().contains(text(&case["refused"])), "{what}: {typo}"),
        }
    }
}
