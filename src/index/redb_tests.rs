//! Method: the durable table on a disk in memory whose power is cut before each of its writes and syncs, which keeps or
//! loses every unsynced write as the seed decides, and whose bits flip.
//! Promise: after a cut, the state of the last acknowledged apply or of the one under way, whole; from damage, `Damaged`
//! or the right answer, never a wrong one; on disk, no plaintext.

use super::tests::{Model, Step, any_step, contents, run};
use super::*;
use crate::backing::{Backing, BackingFile, Cache, Effect, Fate, Fault, Kind, MemoryBacking, Open, Space, read_file};
use crate::base::id::VaultId;
use crate::base::world::{Time, World};
use crate::seal::{MasterKey, PageKey};
use proptest::prelude::*;
use std::io;
use std::time::Duration;

const PATH: &str = "index/entries";
const CACHE_BYTES: usize = 1 << 20;

/// A world in which chance is a seed.
struct Seeded(Mutex<u64>);

impl Seeded {
    fn new(seed: u64) -> Arc<Seeded> {
        Arc::new(Seeded(Mutex::new(seed)))
    }
    fn next(&self) -> u64 {
        let mut state = self.0.held();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&self, n: u64) -> u64 {
        self.next() % n
    }
}

impl World for Seeded {
    fn now(&self) -> Time {
        Time::default()
    }
    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
    fn fill(&self, out: &mut [u8]) {
        out.fill_with(|| self.next() as u8);
    }
}

/// A key for each number.
pub(super) fn key(number: u64) -> PageKey {
    MasterKey::generate(&*Seeded::new(number)).pages(VaultId([1; 16]), "index", &[2; 16])
}

fn disk() -> MemoryBacking {
    let disk = MemoryBacking::default();
    disk.make_dir("index").unwrap();
    disk.sync_dir("").unwrap();
    disk
}

fn create(disk: &Arc<dyn Backing>, world: &Arc<Seeded>) -> Result<RedbTable, IndexFault> {
    RedbTable::create(disk, PATH, key(7), world.clone(), CACHE_BYTES)
}

fn open(disk: &Arc<dyn Backing>, world: &Arc<Seeded>) -> Result<RedbTable, IndexFault> {
    RedbTable::open(disk, PATH, key(7), world.clone(), CACHE_BYTES)
}

/// A disk whose power goes before its operation number `at`; the program goes on, and what the cut left is kept aside.
#[derive(Clone)]
struct Cutting {
    disk: MemoryBacking,
    done: Arc<AtomicU64>,
    at: u64,
    image: Arc<Mutex<Option<MemoryBacking>>>,
    world: Arc<Seeded>,
}

impl Cutting {
    fn new(at: u64, world: &Arc<Seeded>) -> Self {
        Cutting { disk: disk(), done: Arc::default(), at, image: Arc::default(), world: world.clone() }
    }
    fn step(&self) {
        if self.done.fetch_add(1, SeqCst) == self.at {
            *self.image.held() = Some(self.cut());
        }
    }
    fn cut(&self) -> MemoryBacking {
        // Some cuts lose nearly everything, some nearly nothing.
        let odds = self.world.below(5);
        self.disk.crash(|_, _| self.world.below(4) < odds)
    }
    fn has_been_cut(&self) -> bool {
        self.image.held().is_some()
    }
}

impl Backing for Cutting {
    fn open(&self, path: &str, how: Open, cache: Cache) -> io::Result<Arc<dyn BackingFile>> {
        self.step();
        Ok(Arc::new(CuttingFile { file: self.disk.open(path, how, cache)?, disk: self.clone() }))
    }
    fn make_dir(&self, path: &str) -> io::Result<()> {
        self.disk.make_dir(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.step();
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.step();
        self.disk.remove(path)
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.step();
        self.disk.sync_dir(path)
    }
    fn space(&self) -> io::Result<Option<Space>> {
        self.disk.space()
    }
    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.disk.lock(path)
    }
}

struct CuttingFile {
    file: Arc<dyn BackingFile>,
    disk: Cutting,
}

impl BackingFile for CuttingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn read_device(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_device(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.disk.step();
        if self.disk.done.load(SeqCst) == self.disk.at && buf.len() > 512 {
            // The write that the cut catches may be torn: its first half is on the disk's way, the rest never comes.
            let torn = (self.disk.world.below(buf.len() as u64 / 512) as usize) * 512;
            self.file.write_all_at(&buf[..torn], offset)?;
            self.disk.step();
        }
        self.file.write_all_at(buf, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.disk.step();
        self.file.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.step();
        self.file.set_len(len)
    }
    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.file.preallocate(len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch(offset, len)
    }
    fn is_direct(&self) -> bool {
        false
    }
}

/// Changes as a filesystem makes them: new files, removals, and now and then a large value.
fn any_changes(world: &Seeded, count: u64) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    let key_count = count.max(600);
    let mut changes = BTreeMap::new();
    for _ in 0..count {
        let kind = b"INEA"[world.below(4) as usize];
        let key = [&[kind][..], &world.below(key_count).to_be_bytes()].concat();
        let len = if world.below(50) == 0 { world.below(20_000) } else { world.below(200) };
        let value = (world.below(3) > 0).then(|| vec![world.next() as u8; len as usize]);
        changes.insert(key, value);
    }
    changes
}

fn apply(table: &dyn Table, changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Result<(), IndexFault> {
    table.apply(&mut changes.iter().map(|(k, v)| (k.as_slice(), v.as_deref())))
}

fn changed(model: &Model, changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Model {
    let mut model = model.clone();
    for (key, value) in changes {
        match value {
            Some(value) => drop(model.insert(key.clone(), value.clone())),
            None => drop(model.remove(key)),
        }
    }
    model
}

fn all(table: &dyn Table) -> Result<Model, IndexFault> {
    Ok(table.scan(b"", b"", usize::MAX)?.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_index_on_disk_is_an_ordered_map(steps in prop::collection::vec(any_step(), 1..150), seed in any::<u64>()) {
        let (memory, world) = (disk(), Seeded::new(seed));
        let disk: Arc<dyn Backing> = Arc::new(memory.clone());
        let mut index = Index::new(Box::new(create(&disk, &world).unwrap()));
        let mut model = Model::new();
        for step in steps {
            if let Step::Apply { fails } = step {
                if fails {
                    memory.fail_next_writes(1 + world.below(3));
                    let _ = index.apply_sealed(&[(b"Vextra".to_vec(), b"1".to_vec())]);
                    memory.fail_next_writes(0);
                }
                index.apply_sealed(&[(b"Vextra".to_vec(), b"1".to_vec())]).unwrap();
                model.insert(b"Vextra".to_vec(), b"1".to_vec());
            }
            run(&index, &mut model, step);
        }
        index.seal_direct();
        index.seal_derived();
        index.apply_sealed(&[]).unwrap();
        prop_assert_eq!(&contents(&index), &model);
        drop(index);
        index = Index::new(Box::new(open(&disk, &world).unwrap()));
        prop_assert_eq!(&contents(&index), &model);
    }
}

/// One program and one cut. Gives whether the cut fell into it.
fn cut_once(seed: u64, at: u64) -> bool {
    let world = Seeded::new(seed);
    let cutting = Cutting::new(at, &world);
    let backing: Arc<dyn Backing> = Arc::new(cutting.clone());
    let program = Seeded::new(seed ^ 0xabcd);
    let mut acknowledged: Option<Model> = None;
    let mut under_way = Model::new();
    let mut table = create(&backing, &world).unwrap();
    if !cutting.has_been_cut() {
        acknowledged = Some(Model::new());
        for round in 0..6 {
            let changes = any_changes(&program, if round == 3 { 1500 } else { 120 });
            under_way = changed(acknowledged.as_ref().unwrap(), &changes);
            apply(&table, &changes).unwrap();
            if cutting.has_been_cut() {
                break;
            }
            acknowledged = Some(under_way.clone());
            if round == 4 {
                drop(table);
                table = open(&backing, &world).unwrap();
                if cutting.has_been_cut() {
                    break;
                }
            }
        }
    }
    let fell_into_it = cutting.has_been_cut();
    let image = cutting.image.held().take().unwrap_or_else(|| cutting.cut());
    let after: Arc<dyn Backing> = Arc::new(image.clone());
    match (open(&after, &world), acknowledged) {
        (Ok(table), Some(acknowledged)) => {
            let found = all(&table).unwrap();
            assert!(found == acknowledged || found == under_way, "seed {seed}, cut {at}: neither state");
            // It must go on from there, also through a second cut.
            let changes = any_changes(&program, 50);
            apply(&table, &changes).unwrap();
            let again: Arc<dyn Backing> = Arc::new(image.crash(|_, _| world.below(2) == 0));
            assert!(all(&open(&again, &world).unwrap()).unwrap() == changed(&found, &changes), "seed {seed}, cut {at}");
        }
        (Ok(table), None) => assert_eq!(all(&table).unwrap(), Model::new(), "seed {seed}, cut {at}"),
        // Before creation is acknowledged there may be no file, and nothing else may be wrong.
        (Err(IndexFault::Damaged(_)), None) => assert!(read_file(&*after, PATH, usize::MAX).is_err()),
        (Err(fault), _) => panic!("seed {seed}, cut {at}: {fault}"),
    }
    fell_into_it
}

/// How many seeds; `STRONGROOM_SEEDS` asks for more.
fn seeds(otherwise: u64) -> u64 {
    std::env::var("STRONGROOM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn a_power_cut_leaves_the_last_apply_or_the_one_under_way_and_never_damage() {
    let longest = 450;
    let fell_into_it = (0..seeds(150)).filter(|&seed| cut_once(seed, Seeded::new(!seed).below(longest))).count();
    assert!(fell_into_it > 100, "only {fell_into_it} cuts fell into the program: cut earlier");
}

#[test]
fn a_power_cut_while_it_is_made_leaves_no_index_or_an_empty_one() {
    for at in 0..40 {
        cut_once(at, at);
    }
}

#[test]
fn a_disk_that_lies_about_sync_is_caught() {
    let caught = (0..20).any(|seed| {
        let (memory, world) = (disk(), Seeded::new(seed));
        let backing: Arc<dyn Backing> = Arc::new(memory.clone());
        let table = create(&backing, &world).unwrap();
        memory.lie_about_sync();
        let changes = any_changes(&world, 200);
        apply(&table, &changes).unwrap();
        let after: Arc<dyn Backing> = Arc::new(memory.crash(|_, _| world.below(2) == 0));
        open(&after, &world).and_then(|t| all(&t)).ok() != Some(changed(&Model::new(), &changes))
    });
    assert!(caught, "the harness would not notice lost writes");
}

#[test]
fn a_failed_write_leaves_the_table_readable_and_the_next_apply_works() {
    for after_writes in 0..60 {
        let (memory, world) = (disk(), Seeded::new(after_writes));
        let backing: Arc<dyn Backing> = Arc::new(memory.clone());
        let table = create(&backing, &world).unwrap();
        let before = any_changes(&world, 300);
        apply(&table, &before).unwrap();
        let model = changed(&Model::new(), &before);
        memory.fail_next_writes(1 + after_writes % 7);
        // Every fifth one is larger than the cache: writes fail before the commit begins.
        let changes = any_changes(&world, if after_writes % 5 == 0 { 9000 } else { 300 });
        assert!(matches!(apply(&table, &changes), Err(IndexFault::Io(_))));
        assert!(all(&table).unwrap() == model, "reads go on");
        memory.fail_next_writes(0);
        apply(&table, &changes).unwrap();
        let model = changed(&model, &changes);
        assert!(all(&table).unwrap() == model);
        let after: Arc<dyn Backing> = Arc::new(memory.crash(|_, _| world.below(2) == 0));
        assert!(all(&open(&after, &world).unwrap()).unwrap() == model);
    }
}

/// After a sync that failed the newest header may be in the page cache alone. The index went on from it, and wrote the next one
/// over the one that was durable: a power cut then found neither.
#[test]
fn after_a_failed_sync_it_goes_on_from_what_is_durable() {
    for (sync, seed) in (0..2).flat_map(|sync| (0..6).map(move |seed| (sync, seed))) {
        let (memory, world) = (disk(), Seeded::new(seed));
        memory.record();
        let backing: Arc<dyn Backing> = Arc::new(memory.clone());
        let table = create(&backing, &world).unwrap();
        let first = any_changes(&world, 60);
        apply(&table, &first).unwrap();
        let mut states = vec![changed(&Model::new(), &first)];
        let from = memory.calls();
        memory.plant(Fault::of(&[Kind::SyncData], Effect::Error(libc::EIO)).after(sync).times(1));
        let second = any_changes(&world, 60);
        let failed = apply(&table, &second);
        assert_eq!(memory.struck(), 1, "an apply syncs twice at least");
        assert!(matches!(failed, Err(IndexFault::Io(_))));
        let third = any_changes(&world, 60);
        for changes in [&second, &third] {
            apply(&table, changes).unwrap();
            states.push(changed(&states[states.len() - 1], changes));
        }
        let mut cuts = memory.cuts();
        loop {
            for coins in if cuts.cut() < from { 0..0 } else { 0..6 } {
                let image = cuts.image(&mut |_| match coins {
                    0 => Fate::Lost,
                    _ => Fate::Torn { unit_bytes: 512, coins },
                });
                let after: Arc<dyn Backing> = Arc::new(image);
                let found = open(&after, &world).and_then(|table| all(&table));
                let cut = cuts.cut() - from;
                let found = found.unwrap_or_else(|e| panic!("sync {sync} failed, seed {seed}, cut {cut}: {e}"));
                assert!(states.contains(&found), "sync {sync} failed, seed {seed}, cut {cut}: no state of it");
            }
            if !cuts.advance() {
                break;
            }
        }
    }
}

#[test]
fn nothing_of_what_is_stored_shows_on_disk() {
    let (memory, world) = (disk(), Seeded::new(1));
    let backing: Arc<dyn Backing> = Arc::new(memory.clone());
    let table = create(&backing, &world).unwrap();
    let empty = read_file(&*backing, PATH, usize::MAX).unwrap();
    assert_eq!(empty.len(), 90_792, "the example in the format's description");
    let entry =
        |n: u32| (format!("Nplain-name-{n}").into_bytes(), Some(format!("plain-value-{n}").repeat(9).into_bytes()));
    apply(&table, &(0..500).map(entry).collect()).unwrap();
    let bytes = read_file(&*backing, PATH, usize::MAX).unwrap();
    assert!(bytes.len() > 40_000);
    for secret in [&b"plain-"[..], b"entries", b"redb\x1a\x0a"] {
        assert!(!bytes.windows(secret.len()).any(|w| w == secret), "{}", String::from_utf8_lossy(secret));
    }
}

#[test]
fn a_flipped_bit_is_damage_or_does_not_matter() {
    let (memory, world) = (disk(), Seeded::new(2));
    let backing: Arc<dyn Backing> = Arc::new(memory.clone());
    let table = create(&backing, &world).unwrap();
    let mut model = Model::new();
    for _ in 0..4 {
        let changes = any_changes(&world, 400);
        apply(&table, &changes).unwrap();
        model = changed(&model, &changes);
    }
    drop(table);
    let bits = read_file(&*backing, PATH, usize::MAX).unwrap().len() as u64 * 8;
    let (mut damaged, mut right) = (0, 0);
    let count = seeds(250);
    for n in 0..count {
        // Every second one in the preamble, the headers and the first pages.
        let bit = if n % 2 == 0 { world.below(bits) } else { world.below(60_000 * 8) };
        let copy = memory.crash(|_, _| true);
        copy.flip_bit(PATH, bit);
        let copy: Arc<dyn Backing> = Arc::new(copy);
        match open(&copy, &world).and_then(|table| all(&table)) {
            Ok(found) => {
                assert!(found == model, "bit {bit}");
                right += 1;
            }
            Err(IndexFault::Damaged(_)) => damaged += 1,
            Err(IndexFault::Io(e)) => panic!("bit {bit}: {e}"),
        }
    }
    assert!(damaged > count / 10 && right > 0, "{damaged} damaged, {right} right");
}

#[test]
fn pages_of_another_place_file_or_key_are_damage() {
    let (memory, world) = (disk(), Seeded::new(3));
    let backing: Arc<dyn Backing> = Arc::new(memory.clone());
    let table = create(&backing, &world).unwrap();
    apply(&table, &any_changes(&world, 800)).unwrap();
    drop(table);
    let other_key = RedbTable::open(&backing, PATH, key(8), world.clone(), CACHE_BYTES);
    assert!(matches!(other_key, Err(IndexFault::Damaged(_))));

    // Two pages change places.
    let bytes = read_file(&*backing, PATH, usize::MAX).unwrap();
    let at = |n: usize| 20_480 + n * super::pages::STRIDE_BYTES;
    let page = |n: usize| bytes[at(n)..at(n + 1)].to_vec();
    let used: Vec<usize> =
        (0..(bytes.len() - at(0)) / super::pages::STRIDE_BYTES).filter(|&n| page(n).iter().any(|&b| b != 0)).collect();
    let mut swapped = bytes.clone();
    for pair in used.chunks_exact(2) {
        swapped[at(pair[0])..at(pair[0] + 1)].copy_from_slice(&page(pair[1]));
        swapped[at(pair[1])..at(pair[1] + 1)].copy_from_slice(&page(pair[0]));
    }
    backing.open(PATH, Open::Write, Cache::Buffered).unwrap().write_all_at(&swapped, 0).unwrap();
    assert!(matches!(open(&backing, &world).and_then(|t| all(&t)), Err(IndexFault::Damaged(_))));

    // Pages wiped to zeros are no more believed than others.
    let mut wiped = bytes.clone();
    used.iter().for_each(|&n| wiped[at(n)..at(n + 1)].fill(0));
    backing.open(PATH, Open::Write, Cache::Buffered).unwrap().write_all_at(&wiped, 0).unwrap();
    assert!(matches!(open(&backing, &world).and_then(|t| all(&t)), Err(IndexFault::Damaged(_))));

    // And a file cut short.
    let file = backing.open(PATH, Open::Write, Cache::Buffered).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    for len in [0, 20, 5000, 20_480, 30_000] {
        file.set_len(len).unwrap();
        assert!(matches!(open(&backing, &world).and_then(|t| all(&t)), Err(IndexFault::Damaged(_))), "{len}");
        file.write_all_at(&bytes, 0).unwrap();
    }
}

#[test]
fn an_index_that_is_not_there_is_damage() {
    let backing: Arc<dyn Backing> = Arc::new(disk());
    assert!(matches!(open(&backing, &Seeded::new(1)), Err(IndexFault::Damaged(_))));
}

fn all_frozen(frozen: &dyn super::Frozen) -> Result<Model, IndexFault> {
    let (mut all, mut next) = (Model::new(), Vec::new());
    loop {
        let page = frozen.scan(&next, 7)?;
        let Some((last, _)) = page.last() else { return Ok(all) };
        next = [&last[..], &[0]].concat();
        all.extend(page);
    }
}

#[test]
fn a_frozen_moment_stays_what_it_was_while_the_table_goes_on() {
    let (memory, world) = (disk(), Seeded::new(11));
    let backing: Arc<dyn Backing> = Arc::new(memory.clone());
    let tables: [Box<dyn Table>; 2] = [Box::new(create(&backing, &world).unwrap()), Box::new(MemoryTable::default())];
    for table in &tables {
        let (mut model, mut moments) = (Model::new(), Vec::new());
        for _ in 0..12 {
            let changes = any_changes(&world, 300);
            apply(&**table, &changes).unwrap();
            model = changed(&model, &changes);
            moments.push((table.freeze().unwrap(), model.clone()));
        }
        for (frozen, then) in &moments {
            assert!(all_frozen(&**frozen).unwrap() == *then, "another moment shows");
        }
    }
}

#[test]
fn a_frozen_moment_is_given_up_before_its_pages_can_be_written_over() {
    let (memory, world) = (disk(), Seeded::new(12));
    let backing: Arc<dyn Backing> = Arc::new(memory.clone());
    let table = create(&backing, &world).unwrap();
    apply(&table, &any_changes(&world, 2000)).unwrap();
    let (frozen, then) = (table.freeze().unwrap(), all(&table).unwrap());
    assert!(all_frozen(&*frozen).unwrap() == then);
    memory.fail_next_writes(1);
    assert!(apply(&table, &any_changes(&world, 100)).is_err(), "a write failed");
    // From now on another database writes to the file.
    for _ in 0..20 {
        apply(&table, &any_changes(&world, 2000)).unwrap();
    }
    assert!(matches!(all_frozen(&*frozen), Err(IndexFault::Io(_))), "it may be a mixture");
    assert!(all_frozen(&*table.freeze().unwrap()).unwrap() == all(&table).unwrap());
}
