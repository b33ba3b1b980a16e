//! The root: which generation, lease, checkpoint, header and emergency directory are the vault's (format.md §2).
//!
//! Promise: a root that decodes was written whole by someone with the key (the sealing is `vault::root`'s); every value has
//! one spelling. Called by: `vault`. On failure: `Malformed`, which names the field.

use super::leases::Leases;
use super::segment::LogPosition;
use super::wire::{Malformed, Reader, Write, malformed};
use crate::base::id::{Epoch, Generation};
use crate::base::limits::EMERGENCY_PATH_BYTES_MAX;

/// Length of a root file.
pub const ROOT_BYTES: usize = 4096;
/// First bytes of a root file.
pub const MAGIC: [u8; 4] = *b"SRR1";
/// The version that is written; it is the root's own and not the vault's.
pub const ROOT_VERSION: u16 = 3;
/// The version that does not know its header, which is still read.
pub const ROOT_VERSION_2: u16 = 2;
/// The version without an emergency directory, which is still read.
pub const ROOT_VERSION_1: u16 = 1;
/// Length of a root's plaintext: all that the nonce before it and the tag behind it leave, so that nothing shows how long
/// the path in it is.
pub const PLAIN_BYTES: usize = ROOT_BYTES - 32 - 16;
/// Length of the plaintext in version 1.
pub const PLAIN_BYTES_1: usize = 73;

/// Which header belongs to the vault: what is older than this one was put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderMark {
    /// Its revision.
    pub revision: u64,
    /// Its authentication code, for two may have one revision: one of them was being written when the power went.
    pub mac: [u8; 32],
}

/// The plaintext of a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Grows by one with each root.
    pub generation: Generation,
    /// The newest lease given out.
    pub epoch: Epoch,
    /// What the newest checkpoint covers.
    pub covered: LogPosition,
    /// The file in `index/` that is the newest checkpoint.
    pub index_file: u64,
    /// Whether the vault was closed with nothing pending.
    pub clean: bool,
    /// The header in force when this was written; `None` where nobody said so yet (older versions, a root made anew).
    pub header: Option<HeaderMark>,
    /// The emergency directory that was armed when this was written, at most `EMERGENCY_PATH_BYTES_MAX` bytes; empty if
    /// there was none.
    pub emergency: String,
    /// Leases of other histories of this vault: it was an older copy when they were given out.
    pub other_leases: Leases,
}

impl Root {
    /// The plaintext, zeros behind it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(
            self.emergency.len() <= EMERGENCY_PATH_BYTES_MAX,
            "whoever arms an emergency directory bounds its path"
        );
        let mut b = Vec::with_capacity(PLAIN_BYTES);
        b.extend_from_slice(&self.generation.0.to_le_bytes());
        b.extend_from_slice(&self.epoch.0.to_le_bytes());
        b.extend_from_slice(&self.covered.encode());
        b.extend_from_slice(&self.index_file.to_le_bytes());
        b.push(u8::from(self.clean));
        let HeaderMark { revision, mac } = self.header.unwrap_or(UNKNOWN);
        b.extend_from_slice(&revision.to_le_bytes());
        b.extend_from_slice(&mac);
        b.counted(self.emergency.as_bytes());
        self.other_leases.encode_to(&mut b);
        b.resize(PLAIN_BYTES, 0);
        b
    }

    /// Reads the plaintext.
    pub fn decode(bytes: &[u8]) -> Result<Root, Malformed> {
        Root::decode_long(bytes, true)
    }

    /// Reads the plaintext of version 2.
    pub fn decode_2(bytes: &[u8]) -> Result<Root, Malformed> {
        Root::decode_long(bytes, false)
    }

    fn decode_long(bytes: &[u8], knows_header: bool) -> Result<Root, Malformed> {
        let mut r = Reader::new(bytes);
        let (generation, epoch) = (Generation(r.u64("root generation")?), Epoch(r.u64("root epoch")?));
        let covered = LogPosition::decode(r.take(40, "root position")?)?;
        let (index_file, clean) = (r.u64("root index")?, flag(&mut r)?);
        let header = if knows_header { mark(&mut r)? } else { None };
        let path = r.counted("root emergency directory")?;
        let emergency = match str::from_utf8(path) {
            Ok(path) if path.len() <= EMERGENCY_PATH_BYTES_MAX => path.to_owned(),
            _ => return malformed("root emergency directory"),
        };
        let other_leases = if knows_header { Leases::decode(&mut r)? } else { Leases::default() };
        if bytes.len() != PLAIN_BYTES || r.rest().iter().any(|b| *b != 0) {
            return malformed("root tail");
        }
        Ok(Root { generation, epoch, covered, index_file, clean, header, emergency, other_leases })
    }

    /// Reads the plaintext of version 1.
    pub fn decode_1(bytes: &[u8]) -> Result<Root, Malformed> {
        let mut r = Reader::new(bytes);
        let (generation, epoch) = (Generation(r.u64("root generation")?), Epoch(r.u64("root epoch")?));
        let covered = LogPosition::decode(r.take(40, "root position")?)?;
        // The first segment to replay: nobody ever read it, for the index knows it too.
        r.u64("root segment")?;
        let (index_file, clean) = (r.u64("root index")?, flag(&mut r)?);
        r.end("root tail")?;
        let (emergency, other_leases) = (String::new(), Leases::default());
        Ok(Root { generation, epoch, covered, index_file, clean, header: None, emergency, other_leases })
    }
}

/// What stands for a header that is not known.
const UNKNOWN: HeaderMark = HeaderMark { revision: 0, mac: [0; 32] };

fn mark(r: &mut Reader<'_>) -> Result<Option<HeaderMark>, Malformed> {
    let revision = r.u64("root header revision")?;
    let mac = r.take(32, "root header code")?.try_into().expect("32 bytes were taken");
    Ok(Some(HeaderMark { revision, mac }).filter(|mark| *mark != UNKNOWN))
}

fn flag(r: &mut Reader<'_>) -> Result<bool, Malformed> {
    match r.u8("root clean")? {
        0 => Ok(false),
        1 => Ok(true),
        _ => malformed("root clean"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::CommitSeq;

    fn root() -> Root {
        Root {
            generation: Generation(1),
            epoch: Epoch(2),
            covered: LogPosition { seq: CommitSeq(3), chain: [4; 32] },
            index_file: 6,
            clean: true,
            header: Some(HeaderMark { revision: 7, mac: [8; 32] }),
            emergency: "/srv/é".to_owned(),
            other_leases: Leases::default(),
        }
    }

    #[test]
    fn golden_root() {
        let mut want = b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0".to_vec();
        want.extend_from_slice(&[4; 32]);
        want.extend_from_slice(b"\x06\0\0\0\0\0\0\0\x01\x07\0\0\0\0\0\0\0");
        want.extend_from_slice(&[8; 32]);
        want.extend_from_slice(b"\x07/srv/\xc3\xa9");
        want.resize(4048, 0);
        assert_eq!(root().encode(), want, "on-disk bytes changed: raise ROOT_VERSION and keep reading the old one");
        assert_eq!(Root::decode(&want), Ok(root()));
        let mut forked = root();
        forked.other_leases.add(Epoch(4), Epoch(6));
        let mut with_leases = want.clone();
        with_leases[113..116].copy_from_slice(b"\x01\x05\x06");
        assert_eq!((forked.encode(), Root::decode(&with_leases)), (with_leases, Ok(forked)));
        want[65..105].fill(0);
        let unknown = Root { header: None, ..root() };
        assert_eq!((unknown.encode(), Root::decode(&want)), (want, Ok(unknown)));
    }

    #[test]
    fn golden_root_of_version_2() {
        let mut bytes = b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0".to_vec();
        bytes.extend_from_slice(&[4; 32]);
        bytes.extend_from_slice(b"\x06\0\0\0\0\0\0\0\x01\x07/srv/\xc3\xa9");
        bytes.resize(4048, 0);
        assert_eq!(Root::decode_2(&bytes), Ok(Root { header: None, ..root() }));
    }

    #[test]
    fn golden_root_of_version_1() {
        let mut bytes = b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0".to_vec();
        bytes.extend_from_slice(&[4; 32]);
        bytes.extend_from_slice(b"\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x01");
        assert_eq!(bytes.len(), PLAIN_BYTES_1);
        assert_eq!(Root::decode_1(&bytes), Ok(Root { header: None, emergency: String::new(), ..root() }));
        bytes.push(0);
        assert_eq!(Root::decode_1(&bytes), malformed("root tail"));
    }

    #[test]
    fn what_no_writer_writes_is_refused() {
        let with = |at: usize, byte: u8| {
            let mut b = root().encode();
            b[at] = byte;
            Root::decode(&b)
        };
        assert_eq!(with(64, 2), malformed("root clean"));
        assert_eq!(with(111, 0xff), malformed("root emergency directory"), "not UTF-8");
        assert_eq!(with(PLAIN_BYTES - 1, 1), malformed("root tail"));
        assert_eq!(Root::decode(&root().encode()[..PLAIN_BYTES - 1]), malformed("root tail"));
        let longest = Root { emergency: "x".repeat(EMERGENCY_PATH_BYTES_MAX), ..root() };
        assert_eq!(Root::decode(&longest.encode()), Ok(longest.clone()));
        let mut b = longest.encode();
        (b[105], b[106], b[107 + EMERGENCY_PATH_BYTES_MAX]) = (0xb9, 0x17, b'x');
        assert_eq!(Root::decode(&b), malformed("root emergency directory"), "one byte too long");
    }
}
