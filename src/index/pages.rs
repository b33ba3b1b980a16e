//! The database's pages at rest: each encrypted and bound to its place, the header page in two slots of which one is
//! always whole (format.md §9).
//!
//! Promise: nothing but lengths and numbers of pages shows on disk; a page that was not written here, for this place, is
//! noticed, and from then on nothing read from this file is believed; whatever the power cut leaves, the header page is
//! one that was written whole.
//! Why it holds: a header is only ever written to the slot that does not hold the newest header *known durable*, so a
//! torn write costs the new one alone. Opening makes the header it chose durable before anything else is written.
//! Called by: the database, through `StorageBackend`. Takes: the header's lock for page 0 and for a change of the length, none for
//! other pages.
//! On failure: after a failed write or sync nothing more is written, so the file stays as the last durable header
//! describes it and snapshots go on being readable; `failure` tells, and `RedbTable` begins again from the file.

use super::table::IndexFault;
use crate::backing::BackingFile;
use crate::base::lock::Held;
use crate::base::world::World;
use crate::seal::PageKey;
use redb::StorageBackend;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

/// A page as the database sees it.
pub(super) const PAGE_BYTES: usize = 4096;
const MAGIC: [u8; 8] = *b"SRINDEX\0";
const VERSION: u16 = 1;
/// What the preamble says, its CRC included; zeros follow.
const PREAMBLE_BYTES: usize = 36;
const SLOTS_AT: u64 = 4096;
/// Each slot begins a block of its own, so that writing one never rewrites a byte of the other.
const SLOT_STRIDE_BYTES: u64 = 8192;
const PAGES_AT: u64 = SLOTS_AT + 2 * SLOT_STRIDE_BYTES;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const SEALED_AT: usize = NONCE_BYTES + TAG_BYTES;
/// A page at rest: nonce, tag, ciphertext.
pub(super) const STRIDE_BYTES: usize = SEALED_AT + PAGE_BYTES;
/// A header at rest: nonce, tag, and encrypted the sequence number, the length and the page.
const HEADER_BYTES: usize = SEALED_AT + 16 + PAGE_BYTES;

type Page = [u8; PAGE_BYTES];

/// The header page and where it stands.
struct Header {
    page: Box<Page>,
    /// Length of the database in bytes, as it sees it.
    len: u64,
    /// Grows with each header written.
    sequence: u64,
    /// The slot whose header is known to be on the device; the other one is written next.
    durable_slot: u64,
    /// The sequence number of that header.
    durable_sequence: u64,
    /// Whether the other slot has been written since the last sync.
    unsynced: bool,
}

/// A header that is known to be on the device, and is not written over before another one is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Durable {
    slot: u64,
    sequence: u64,
}

/// The encrypted file.
pub(super) struct Pages {
    file: Arc<dyn BackingFile>,
    key: Arc<PageKey>,
    world: Arc<dyn World>,
    file_id: [u8; 16],
    header: Mutex<Header>,
    /// The header's length, for readers: they must not wait while the disk writes a header.
    len: AtomicU64,
    /// Reading, changing and writing part of a page is one step.
    partial: Mutex<()>,
    forged: AtomicBool,
    failed: AtomicBool,
    failure: Mutex<Option<io::Error>>,
    /// The newest error of the disk while reading.
    read_error: Mutex<Option<io::Error>>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pages(…)")
    }
}

fn damaged<T>(what: &str) -> Result<T, IndexFault> {
    Err(IndexFault::Damaged(what.to_owned()))
}

/// Where page `number` (not 0) begins in the file.
fn place(number: u64) -> u64 {
    PAGES_AT + (number - 1) * STRIDE_BYTES as u64
}

fn copy_io(e: &io::Error) -> io::Error {
    match e.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(e.kind(), e.to_string()),
    }
}

impl Pages {
    fn new(
        file: Arc<dyn BackingFile>,
        key: Arc<PageKey>,
        world: Arc<dyn World>,
        file_id: [u8; 16],
        header: Header,
    ) -> Self {
        Pages {
            file,
            key,
            world,
            file_id,
            len: AtomicU64::new(header.len),
            header: Mutex::new(header),
            partial: Mutex::new(()),
            forged: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            read_error: Mutex::new(None),
        }
    }

    /// Begins an empty file: preamble and an empty header, not yet synced.
    pub(super) fn create(
        file: Arc<dyn BackingFile>,
        key: Arc<PageKey>,
        world: Arc<dyn World>,
    ) -> Result<Self, IndexFault> {
        let mut file_id = [0; 16];
        world.fill(&mut file_id);
        let mut preamble = vec![0; SLOTS_AT as usize];
        preamble[..PREAMBLE_BYTES].copy_from_slice(&encode_preamble(&file_id));
        file.write_all_at(&preamble, 0)?;
        let header = Header {
            page: Box::new([0; PAGE_BYTES]),
            len: 0,
            sequence: 0,
            durable_slot: 1,
            durable_sequence: 0,
            unsynced: false,
        };
        let pages = Pages::new(file, key, world, file_id, header);
        pages.write_header(&mut pages.header.held())?;
        Ok(pages)
    }

    /// Reads what a file begins with, takes the newest whole header and makes sure that it is durable; of the given slot only,
    /// where someone knows that: after a sync that failed, the other may be in the page cache alone, or its pages.
    pub(super) fn open(
        file: Arc<dyn BackingFile>,
        key: Arc<PageKey>,
        world: Arc<dyn World>,
        durable: Option<Durable>,
    ) -> Result<Self, IndexFault> {
        let mut preamble = [0; PREAMBLE_BYTES];
        if file.read_at(&mut preamble, 0)? < PREAMBLE_BYTES {
            return damaged("the file is shorter than its preamble");
        }
        let file_id = decode_preamble(&preamble)?;
        let newest = [0, 1]
            .into_iter()
            .filter(|slot| durable.is_none_or(|durable| durable.slot == *slot))
            .map(|slot| read_slot(&*file, &key, &file_id, slot))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .flatten()
            .max_by_key(|header| header.sequence);
        let Some(header) = newest else { return damaged("neither header slot opens under this key") };
        if durable.is_some_and(|durable| durable.sequence != header.sequence) {
            return damaged("it is not as it was left: what lies in its place is older or newer");
        }
        if header.len == 0 || !header.len.is_multiple_of(PAGE_BYTES as u64) {
            return damaged("the header gives an impossible length");
        }
        let pages = Pages::new(file, key, world, file_id, header);
        // It may be here only by the grace of the page cache: a killed process wrote it and never synced.
        pages.write_header(&mut pages.header.held())?;
        pages.file.sync_data()?;
        pages.header_is_durable(&mut pages.header.held());
        Ok(pages)
    }

    /// The header that is known to be durable.
    pub(super) fn durable(&self) -> Durable {
        let header = self.header.held();
        Durable { slot: header.durable_slot, sequence: header.durable_sequence }
    }

    /// Whether something that was read is not what was written.
    pub(super) fn is_forged(&self) -> bool {
        self.forged.load(SeqCst)
    }

    /// From now on nothing in this file is believed.
    pub(super) fn distrust(&self) {
        self.forged.store(true, SeqCst);
    }

    /// Why the file has been left alone, if it has.
    pub(super) fn failure(&self) -> Option<io::Error> {
        if !self.failed.load(SeqCst) {
            return None;
        }
        Some(self.failure.held().as_ref().map_or_else(|| io::ErrorKind::Other.into(), copy_io))
    }

    /// The newest error of the disk while reading, if there was one. The database may answer it with a panic of its own.
    pub(super) fn read_error(&self) -> Option<io::Error> {
        self.read_error.held().as_ref().map(copy_io)
    }

    /// Whether nothing is written any more.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(SeqCst)
    }

    /// Writes nothing more: another database takes this file over.
    pub(super) fn leave_alone(&self) {
        self.fail(io::Error::other("an earlier read of the index failed"));
    }

    fn fail(&self, cause: io::Error) {
        self.failure.held().get_or_insert(cause);
        self.failed.store(true, SeqCst);
    }

    fn aad(&self, number: u64) -> [u8; 24] {
        aad(&self.file_id, number)
    }

    fn write_header(&self, header: &mut Header) -> io::Result<()> {
        header.sequence += 1;
        let mut out = [0; HEADER_BYTES];
        out[SEALED_AT..SEALED_AT + 8].copy_from_slice(&header.sequence.to_le_bytes());
        out[SEALED_AT + 8..SEALED_AT + 16].copy_from_slice(&header.len.to_le_bytes());
        out[SEALED_AT + 16..].copy_from_slice(&*header.page);
        self.seal(0, &mut out);
        header.unsynced = true;
        self.file.write_all_at(&out, SLOTS_AT + (1 - header.durable_slot) * SLOT_STRIDE_BYTES)
    }

    fn header_is_durable(&self, header: &mut Header) {
        if std::mem::take(&mut header.unsynced) {
            header.durable_slot = 1 - header.durable_slot;
            header.durable_sequence = header.sequence;
        }
    }

    /// Encrypts what follows the room for nonce and tag, and fills these in.
    fn seal(&self, number: u64, out: &mut [u8]) {
        let (head, data) = out.split_at_mut(SEALED_AT);
        let mut nonce = [0; NONCE_BYTES];
        self.world.fill(&mut nonce);
        head[..NONCE_BYTES].copy_from_slice(&nonce);
        head[NONCE_BYTES..].copy_from_slice(&self.key.seal(&self.aad(number), &nonce, data));
    }

    /// Reads page `number` (not 0), and refuses one that does not open: with two-phase commits the database never looks
    /// at a page that a power cut may have torn, so this is damage.
    fn read_page(&self, number: u64, out: &mut Page) -> io::Result<()> {
        let mut sealed = [0; STRIDE_BYTES];
        let got = self.file.read_at(&mut sealed, place(number)).inspect_err(|e| {
            *self.read_error.held() = Some(copy_io(e));
        })?;
        if got == STRIDE_BYTES && open(&self.key, &self.aad(number), &mut sealed) {
            out.copy_from_slice(&sealed[SEALED_AT..]);
        } else if self.has_failed() {
            // The transaction being given up may ask for what never reached the disk. An error would close the snapshot
            // too; nobody believes what comes of these zeros.
            out.fill(0);
        } else {
            self.distrust();
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a page of the index is not what was written"));
        }
        Ok(())
    }

    fn write_page(&self, number: u64, page: &[u8]) -> io::Result<()> {
        let mut out = [0; STRIDE_BYTES];
        out[SEALED_AT..].copy_from_slice(page);
        self.seal(number, &mut out);
        self.file.write_all_at(&out, place(number))
    }

    /// Changes part of page `number` (not 0); what was never written counts as zeros.
    fn write_part(&self, number: u64, within: usize, bytes: &[u8]) -> io::Result<()> {
        let _one = self.partial.held();
        let mut sealed = [0; STRIDE_BYTES];
        let got = self.file.read_at(&mut sealed, place(number))?;
        let mut page = [0; PAGE_BYTES];
        if sealed[..got].iter().any(|&b| b != 0) {
            self.read_page(number, &mut page)?;
        }
        page[within..within + bytes.len()].copy_from_slice(bytes);
        self.write_page(number, &page)
    }

    fn try_read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len.load(SeqCst)) {
            // Only a damaged database asks for this.
            self.distrust();
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a read beyond the end of the index"));
        }
        let mut page = [0; PAGE_BYTES];
        for (number, within, part) in parts_mut(offset, out) {
            match <&mut Page>::try_from(&mut *part) {
                _ if number == 0 => part.copy_from_slice(&self.header.held().page[within..within + part.len()]),
                Ok(whole) => self.read_page(number, whole)?,
                Err(_) => {
                    self.read_page(number, &mut page)?;
                    part.copy_from_slice(&page[within..within + part.len()]);
                }
            }
        }
        Ok(())
    }

    fn try_write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        for (number, within, part) in parts(offset, data) {
            if number == 0 {
                let mut header = self.header.held();
                header.page[within..within + part.len()].copy_from_slice(part);
                self.write_header(&mut header)?;
            } else if part.len() == PAGE_BYTES {
                self.write_page(number, part)?;
            } else {
                self.write_part(number, within, part)?;
            }
        }
        Ok(())
    }

    fn try_set_len(&self, len: u64) -> io::Result<()> {
        let mut header = self.header.held();
        header.len = len;
        self.len.store(len, SeqCst);
        self.write_header(&mut header)?;
        let pages = len.div_ceil(PAGE_BYTES as u64).max(1);
        self.file.set_len(place(pages))
    }

    fn try_sync(&self) -> io::Result<()> {
        let sequence = self.header.held().sequence;
        self.file.sync_data()?;
        let mut header = self.header.held();
        if header.sequence == sequence {
            self.header_is_durable(&mut header);
        }
        Ok(())
    }

    /// Runs a change unless one has failed before, and never tells the database of a failure: it would refuse to read
    /// from then on, though every snapshot is still whole. Whoever asked for the change looks at `failure`.
    fn unless_failed(&self, change: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if !self.failed.load(SeqCst)
            && let Err(cause) = change()
        {
            self.fail(cause);
        }
        Ok(())
    }
}

fn aad(file_id: &[u8; 16], number: u64) -> [u8; 24] {
    let mut aad = [0; 24];
    aad[..16].copy_from_slice(file_id);
    aad[16..].copy_from_slice(&number.to_le_bytes());
    aad
}

/// Decrypts what follows nonce and tag.
fn open(key: &PageKey, aad: &[u8; 24], sealed: &mut [u8]) -> bool {
    let (head, data) = sealed.split_at_mut(SEALED_AT);
    let (mut nonce, mut tag) = ([0; NONCE_BYTES], [0; TAG_BYTES]);
    nonce.copy_from_slice(&head[..NONCE_BYTES]);
    tag.copy_from_slice(&head[NONCE_BYTES..]);
    key.open(aad, &nonce, data, &tag).is_ok()
}

fn read_slot(file: &dyn BackingFile, key: &PageKey, file_id: &[u8; 16], slot: u64) -> io::Result<Option<Header>> {
    let mut sealed = [0; HEADER_BYTES];
    let got = file.read_at(&mut sealed, SLOTS_AT + slot * SLOT_STRIDE_BYTES)?;
    if got < HEADER_BYTES || !open(key, &aad(file_id, 0), &mut sealed) {
        return Ok(None);
    }
    let field = |at: usize| u64::from_le_bytes(sealed[at..at + 8].try_into().expect("eight bytes were cut out"));
    let mut page = Box::new([0; PAGE_BYTES]);
    page.copy_from_slice(&sealed[SEALED_AT + 16..]);
    let (sequence, len) = (field(SEALED_AT), field(SEALED_AT + 8));
    Ok(Some(Header { page, len, sequence, durable_slot: slot, durable_sequence: sequence, unsynced: false }))
}

fn encode_preamble(file_id: &[u8; 16]) -> [u8; PREAMBLE_BYTES] {
    let mut p = [0; PREAMBLE_BYTES];
    p[..8].copy_from_slice(&MAGIC);
    p[8..10].copy_from_slice(&VERSION.to_le_bytes());
    p[12..16].copy_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
    p[16..32].copy_from_slice(file_id);
    let crc = crc32fast::hash(&p[..32]);
    p[32..].copy_from_slice(&crc.to_le_bytes());
    p
}

fn decode_preamble(p: &[u8; PREAMBLE_BYTES]) -> Result<[u8; 16], IndexFault> {
    if p[..8] != MAGIC {
        return damaged("the file does not begin as an index does");
    }
    let mut file_id = [0; 16];
    file_id.copy_from_slice(&p[16..32]);
    // There is one preamble for each id; whatever differs is damage or a version that this one does not know.
    if *p == encode_preamble(&file_id) { Ok(file_id) } else { damaged("the preamble is damaged or of another version") }
}

/// A range cut at the borders of pages: number, offset in the page, bytes.
fn parts(offset: u64, mut data: &[u8]) -> impl Iterator<Item = (u64, usize, &[u8])> {
    let mut at = offset;
    std::iter::from_fn(move || {
        let (number, within) = (at / PAGE_BYTES as u64, (at % PAGE_BYTES as u64) as usize);
        let part = data.split_off(..data.len().min(PAGE_BYTES - within)).filter(|p| !p.is_empty())?;
        at += part.len() as u64;
        Some((number, within, part))
    })
}

fn parts_mut(offset: u64, mut data: &mut [u8]) -> impl Iterator<Item = (u64, usize, &mut [u8])> {
    let mut at = offset;
    std::iter::from_fn(move || {
        let (number, within) = (at / PAGE_BYTES as u64, (at % PAGE_BYTES as u64) as usize);
        let part = data.split_off_mut(..data.len().min(PAGE_BYTES - within)).filter(|p| !p.is_empty())?;
        at += part.len() as u64;
        Some((number, within, part))
    })
}

/// What the database is given: it wants to own its storage, and we want to go on asking how that fares.
#[derive(Debug, Clone)]
pub(super) struct Storage(pub(super) Arc<Pages>);

impl StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.header.held().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.try_read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.unless_failed(|| self.0.try_set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.unless_failed(|| self.0.try_sync())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.unless_failed(|| self.0.try_write(offset, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_preamble_and_places() {
        assert_eq!(
            encode_preamble(&[0xab; 16]),
            *b"SRINDEX\0\x01\0\0\0\0\x10\0\0\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\xab\x3b\x83\x60\xeb",
            "on-disk bytes changed: bump VERSION"
        );
        assert_eq!((place(1), place(8705), HEADER_BYTES), (20_480, 36_020_224, 4152));
        assert_eq!(aad(&[1; 16], 0x0203)[14..], [1, 1, 3, 2, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn ranges_are_cut_at_the_borders_of_pages() {
        let data = [7; 9000];
        let cut: Vec<_> = parts(4000, &data).map(|(number, within, part)| (number, within, part.len())).collect();
        assert_eq!(cut, [(0, 4000, 96), (1, 0, 4096), (2, 0, 4096), (3, 0, 712)]);
        assert_eq!(parts(4096, &[]).count(), 0);
    }
}
