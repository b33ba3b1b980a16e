//! The vault header: made, opened, authenticated.
//!
//! Promise: `open_header` gives values that someone with the master key wrote, every one of them; `read_header` gives
//! what the text says, for showing only. Called by: `vault`, `cli`. On failure: `HeaderFault`.

use super::derive::derive;
use super::key::MasterKey;
use super::keys::VaultKeys;
use super::recovery::RecoveryKey;
use super::slot::{Unlock, add_slot, check_cost, unwrap_master};
use crate::base::choice::{Compression, SuiteId};
use crate::base::id::{KeyNumber, VaultId};
use crate::base::world::World;
use crate::format::FORMAT_VERSION;
use crate::format::header::{Header, HeaderText};
use crate::format::root::HeaderMark;
use aws_lc_rs::hmac;
use std::fmt;

/// What a new vault is to be.
#[derive(Debug, Clone)]
pub struct NewVault {
    /// Its identity, random.
    pub vault: VaultId,
    /// Its cipher.
    pub suite: SuiteId,
    /// How it compresses unless a mount says otherwise.
    pub compression: Compression,
    /// Most bytes that files may hold together.
    pub quota_bytes: Option<u64>,
    /// Most inodes.
    pub quota_inodes: Option<u64>,
    /// Memory in KiB, passes and lanes of Argon2id; `None` measures this machine and takes about a second's worth.
    pub argon2: Option<(u32, u32, u32)>,
}

/// Why a header was not made or not opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderFault {
    /// No slot opens with this passphrase, key file or recovery key.
    WrongKey,
    /// Not a header; one sentence says why.
    Malformed(String),
    /// A slot's Argon2id cost (memory in KiB, passes, lanes) is below the floor.
    Weak((u32, u32, u32)),
    /// A slot's Argon2id cost is above the ceiling, or this machine's memory.
    MemoryBomb((u32, u32, u32)),
    /// It needs something that this version does not know.
    UnknownFeature(String),
    /// The key is right, but the header is not as it was written.
    Tampered,
    /// A key file needs 32 bytes or more.
    KeyFileTooShort {
        /// How many it has.
        len_bytes: usize,
    },
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderFault::WrongKey => f.write_str("no key slot opens with this passphrase or key"),
            HeaderFault::Malformed(why) => f.write_str(why),
            HeaderFault::Weak((memory_kib, passes, lanes)) => {
                write!(f, "Argon2id with {memory_kib} KiB, {passes} passes, {lanes} lanes is below the floor")
            }
            HeaderFault::MemoryBomb((memory_kib, passes, lanes)) => {
                write!(f, "Argon2id with {memory_kib} KiB, {passes} passes, {lanes} lanes is more than we will spend")
            }
            HeaderFault::UnknownFeature(what) => write!(f, "the vault needs a newer strongroom ({what})"),
            HeaderFault::Tampered => f.write_str("vault.toml was changed by someone without the key"),
            HeaderFault::KeyFileTooShort { len_bytes } => {
                write!(f, "the key file has {len_bytes} bytes, at least 32 are needed")
            }
        }
    }
}

impl std::error::Error for HeaderFault {}

impl From<HeaderText> for HeaderFault {
    fn from(fault: HeaderText) -> Self {
        match fault {
            HeaderText::Malformed(why) => HeaderFault::Malformed(why),
            HeaderText::UnknownFeature(what) => HeaderFault::UnknownFeature(what),
        }
    }
}

/// A header that somebody with a key opened.
pub struct UnlockedHeader {
    /// Its values.
    pub header: Header,
    /// The key in force.
    pub master: MasterKey,
    /// It, and those of before that segments are still under.
    pub keys: VaultKeys,
    /// The slots that what it was opened with fits; none for a master key.
    pub fitting: Vec<u32>,
}

/// Makes a `vault.toml` with one slot, and perhaps another for a recovery key; and the master key that is in them.
pub fn create_header(
    world: &dyn World,
    new: &NewVault,
    unlock: &Unlock,
    recovery: Option<&RecoveryKey>,
) -> Result<(Vec<u8>, MasterKey), HeaderFault> {
    let master = MasterKey::generate(world);
    let mut header = Header {
        format: FORMAT_VERSION,
        revision: 0,
        vault: new.vault,
        suite: new.suite,
        compression: new.compression,
        quota_bytes: new.quota_bytes,
        quota_inodes: new.quota_inodes,
        created_s: world.now().seconds,
        slots: Vec::new(),
        key: KeyNumber(0),
        old_keys: Vec::new(),
    };
    add_slot(world, &mut header, &master, unlock, "first", new.argon2)?;
    if let Some(key) = recovery {
        add_slot(world, &mut header, &master, &Unlock::Recovery(key.clone()), "recovery", None)?;
    }
    Ok((write_header(&header, &master)?, master))
}

/// The text of a header, authenticated.
pub fn write_header(header: &Header, master: &MasterKey) -> Result<Vec<u8>, HeaderFault> {
    header.slots.iter().try_for_each(check_cost)?;
    Ok(header.to_text(&header_mark(header, master).mac)?)
}

/// What tells a header from every other that the vault ever had.
#[must_use]
pub fn header_mark(header: &Header, master: &MasterKey) -> HeaderMark {
    let mac = hmac::sign(&mac_key(header, master), &header.canonical());
    let mac = mac.as_ref().try_into().expect("HMAC-SHA256 gives 32 bytes");
    HeaderMark { revision: header.revision, mac }
}

/// Reads, unlocks and authenticates a `vault.toml`.
pub fn open_header(text: &[u8], unlock: &Unlock) -> Result<(Header, MasterKey), HeaderFault> {
    unlock_header(text, unlock).map(|unlocked| (unlocked.header, unlocked.master))
}

/// The same, with what else was learnt of it.
pub fn unlock_header(text: &[u8], unlock: &Unlock) -> Result<UnlockedHeader, HeaderFault> {
    let (header, mac) = Header::parse(text)?;
    let (master, fitting) = unwrap_master(&header, unlock)?;
    match hmac::verify(&mac_key(&header, &master), &header.canonical(), &mac) {
        Ok(()) => {
            let keys = VaultKeys::of(&header, &master)?;
            Ok(UnlockedHeader { header, master, keys, fitting })
        }
        // A slot vouches for the key it holds; for this one only the header does.
        Err(_) if matches!(unlock, Unlock::Master(_)) => Err(HeaderFault::WrongKey),
        Err(_) => Err(HeaderFault::Tampered),
    }
}

/// Reads a `vault.toml` without a key. Nothing in it is authenticated: for showing only.
pub fn read_header(text: &[u8]) -> Result<Header, HeaderFault> {
    let (header, _) = Header::parse(text)?;
    header.slots.iter().try_for_each(check_cost)?;
    Ok(header)
}

fn mac_key(header: &Header, master: &MasterKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &derive(&master.0[..], &header.vault.0, &[b"strongroom header 1"])[..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::ARGON2_FLOOR;
    use crate::base::secret::Passphrase;
    use crate::base::world::Time;
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
    use std::time::Duration;

    /// A world in which random bytes count up and time stands still.
    struct Scripted(AtomicU8);

    impl World for Scripted {
        fn now(&self) -> Time {
            Time { seconds: 1_800_000_000, nanos: 5 }
        }
        fn elapsed(&self) -> Duration {
            Duration::ZERO
        }
        fn fill(&self, out: &mut [u8]) {
            out.fill_with(|| self.0.fetch_add(1, Relaxed));
        }
    }

    fn world() -> Scripted {
        Scripted(AtomicU8::new(0))
    }

    fn new_vault() -> NewVault {
        NewVault {
            vault: VaultId([0xAA; 16]),
            suite: SuiteId::Aes256Gcm,
            compression: Compression::Auto,
            quota_bytes: Some(1 << 40),
            quota_inodes: None,
            argon2: Some(ARGON2_FLOOR),
        }
    }

    fn passphrase(text: &str) -> Unlock {
        Unlock::Passphrase(Passphrase(text.as_bytes().to_vec()))
    }

    fn key_file() -> Unlock {
        Unlock::KeyFile(Passphrase(vec![0x4B; 32]))
    }

    /// The same text with the first `from` turned into `to`.
    fn edited(text: &[u8], from: &str, to: &str) -> Vec<u8> {
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(text.contains(from), "no {from} in {text}");
        text.replacen(from, to, 1).into_bytes()
    }

    /// The codes that the two below had in formats 1 to 4.
    const OLDER_MACS: [[&str; 2]; 4] = [
        [
            "0cbf247427bf51ce83d16508d7079d45c91a0567e448cdec5b9c6d0e627fd3fa",
            "b424dcb4886b17d5150134fd250312f3bf4f1941ca897c91557fc8132b085c9c",
        ],
        [
            "1b29892cd1c10239147060e392e312d47dc5c6b3905755ad5909a45d699f9849",
            "d19ac7143107bff233f5b6ab449194e1f2e44ef61c96a0592372bd243bc6069b",
        ],
        [
            "f132f9a747e2b2e7b37888b38d7972af53c9cece210f73267b356dbab57d6e1e",
            "086e27b4878a595fe7ba44333dd2cde8b98b1386b5775775bb2ff68132fdb01f",
        ],
        [
            "17d0edfc4994352daeafdedf2bf276bedda59e4a3b3ebefaedd15701f8f4218d",
            "dc2709e44e2f230bdc6dae20725344e273fb51218d7650b244d8f4c8b2da3618",
        ],
    ];
    const GOLDEN_PASSPHRASE: &str = r#"format = 5
vault = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
suite = "aes-256-gcm"
compression = "auto"
quota_bytes = 1099511627776
created = 1800000000
features = []
mac = "e421abae03e74782d4058f318c3a5a543f4481558555c9d1d0dab4670b8c5de5"

[[slot]]
id = 1
kind = "passphrase"
label = "first"
created = 1800000000
memory_kib = 65536
passes = 3
lanes = 4
salt = "202122232425262728292a2b2c2d2e2f"
nonce = "303132333435363738393a3b3c3d3e3f4041424344454647"
commitment = "79f556706a94fd38702aa322f886a9577e0844465d37879b601669bbcbd43d50"
wrapped = "5c9ef38a4617a59b9174d530b469c25f0c7b2316c3fd29213e63a371c73b105cf6f3e856427add80aaea45aa8139d0e1"
"#;
    const GOLDEN_KEY_FILE: &str = r#"format = 5
vault = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
suite = "aes-256-gcm"
compression = "auto"
quota_bytes = 1099511627776
created = 1800000000
features = []
mac = "9546a2be0fe4e8b53186169750d5ba00fd80b486d0955f53e80def259618133a"

[[slot]]
id = 1
kind = "key-file"
label = "first"
created = 1800000000
salt = "202122232425262728292a2b2c2d2e2f"
nonce = "303132333435363738393a3b3c3d3e3f4041424344454647"
commitment = "789e0fbd661cb3ce5537d89d54b83a4380cd4892d74393ef75c045965b48f461"
wrapped = "e248bfb61634256b10bf1674a535822bcda37ac1de3fd18d646a535985b9cd53843808097275aece43d3b1a971dd2be9"
"#;

    const GOLDEN_ABOVE: &str = r#"format = 5
revision = 2
key = 258
vault = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
suite = "aes-256-gcm"
compression = "auto"
quota_bytes = 1099511627776
created = 1800000000
features = []
mac = "1f6a55dbca137db066e0b17c208ed27dac5eaedc0876c5d62220031b3412ca0b"

"#;
    const GOLDEN_OLD_KEYS: &str = r#"
number = 0
nonce = "28292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
wrapped = "9e77434430fbcd4ff2f3ab8f8e357fe308dc02af3daaab8b6f6addf76d5deb30aab2026a8efe90bede5f0a4312d8cfb5"

[[old_key]]
number = 257
nonce = "404142434445464748494a4b4c4d4e4f5051525354555657"
wrapped = "5e079f73b37a23aacac9607f6ed4ee9e3e58aefb9b788df919754eb61c810980962c93f12830bea5f89a322a5dc6b186"
"#;

    const GOLDEN_NEXT_KEY: &str = "000102030405060708090a0b0c0d0e0f10111213141516178291299f1343f141f7733baf0e40e618b89e918d95921b84\
        b8762e3af31579085788f05371d87eeb955a6de9d8c3a039";

    #[test]
    fn golden_headers() {
        for (unlock, golden) in [(passphrase("correct horse"), GOLDEN_PASSPHRASE), (key_file(), GOLDEN_KEY_FILE)] {
            let (text, master) = create_header(&world(), &new_vault(), &unlock, None).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert_eq!(text, golden, "header changed: bump FORMAT_VERSION and add a vault to tests/vaults/");
            let (header, opened) = open_header(golden.as_bytes(), &unlock).unwrap();
            assert_eq!(*opened.0, *master.0);
            assert_eq!(*opened.0, std::array::from_fn(|i| i as u8));
            assert_eq!(read_header(golden.as_bytes()), Ok(header.clone()));
            assert_eq!(
                (header.vault, header.quota_bytes, header.quota_inodes),
                (VaultId([0xAA; 16]), Some(1 << 40), None)
            );
            assert_eq!(header.created_s, 1_800_000_000);
        }
    }

    #[test]
    fn golden_header_with_old_keys() {
        let (mut header, first) = open_header(GOLDEN_KEY_FILE.as_bytes(), &key_file()).unwrap();
        let (world, second) = (world(), MasterKey(crate::base::secret::Secret::from([0xB7; 32])));
        (header.revision, header.key) = (2, KeyNumber(258));
        super::super::replace_slot(&world, &mut header, &second, 1, &key_file(), "first", None).unwrap();
        let wrapped = |number| crate::seal::wrap_old_key(&world, &header, &second, KeyNumber(number), &first);
        header.old_keys = vec![wrapped(0), wrapped(257)];
        let text = String::from_utf8(write_header(&header, &second).unwrap()).unwrap();
        let (above, behind) = text.split_once("[[slot]]").unwrap();
        let old = behind.split_once("[[old_key]]").expect("old keys stand behind the slots").1;
        assert_eq!(above, GOLDEN_ABOVE, "header changed: bump FORMAT_VERSION and add a vault to tests/vaults/");
        assert_eq!(old, GOLDEN_OLD_KEYS, "header changed: bump FORMAT_VERSION and add a vault to tests/vaults/");
        let canonical = header.canonical();
        assert_eq!(canonical[209..223], *b"\x02\0\0\0\0\0\0\0KEYS\x02\x01", "behind a header of one slot");
        assert_eq!(canonical.len(), 209 + 8 + 8 + 2 * 74);
        let opened = unlock_header(text.as_bytes(), &key_file()).unwrap();
        assert_eq!(*opened.master.0, [0xB7; 32]);
        for number in [0, 257] {
            assert_eq!(*opened.keys.get(KeyNumber(number)).unwrap().0, *first.0);
        }
        assert!(opened.keys.get(KeyNumber(1)).is_none() && opened.keys.number() == KeyNumber(258));
    }

    #[test]
    fn golden_key_that_is_handed_over_and_it_opens_for_its_header_only() {
        let (mut header, current) = open_header(GOLDEN_KEY_FILE.as_bytes(), &key_file()).unwrap();
        let next = MasterKey(crate::base::secret::Secret::from([0xB7; 32]));
        header.key = KeyNumber(258);
        let sealed = crate::seal::seal_next_key(&world(), &header, &current, &next);
        let shown: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(shown, GOLDEN_NEXT_KEY, "another version's daemon does not understand it any more");
        use crate::seal::open_next_key as open;
        assert!(open(&header, &current, &sealed).unwrap().is(&next));
        assert!(open(&header, &next, &sealed).is_err());
        for other in [
            Header { key: KeyNumber(259), ..header.clone() },
            Header { vault: VaultId([0xAB; 16]), ..header.clone() },
            Header { suite: SuiteId::ChaCha20Poly1305, ..header.clone() },
        ] {
            assert!(open(&other, &current, &sealed).is_err());
        }
        for at in 0..sealed.len() {
            let mut changed = sealed;
            changed[at] ^= 1;
            assert!(open(&header, &current, &changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_header_of_an_older_format_opens_and_becomes_one_of_ours() {
        let both = [(passphrase("correct horse"), GOLDEN_PASSPHRASE), (key_file(), GOLDEN_KEY_FILE)];
        for (format, macs) in (1..).zip(OLDER_MACS) {
            for ((unlock, golden), old_mac) in both.iter().zip(macs) {
                let at = golden.find("mac = \"").unwrap() + 7;
                let claimed = edited(golden.as_bytes(), "format = 5", &format!("format = {format}"));
                let fault = open_header(&claimed, unlock).unwrap_err();
                assert_eq!(fault, HeaderFault::Tampered, "the format is authenticated");
                let old = edited(&claimed, &golden[at..at + 64], old_mac);
                let (mut header, master) = open_header(&old, unlock).unwrap();
                assert_eq!(header.format, format);
                assert_eq!(write_header(&header, &master).unwrap(), old, "as it was");
                header.format = FORMAT_VERSION;
                assert_eq!(write_header(&header, &master).unwrap(), golden.as_bytes());
            }
        }
    }

    #[test]
    fn a_wrong_passphrase_or_key_file_is_said_to_be_wrong() {
        let wrong = |text: &str, unlock: Unlock| open_header(text.as_bytes(), &unlock).map(|_| ()).unwrap_err();
        assert_eq!(wrong(GOLDEN_PASSPHRASE, passphrase("correct horsf")), HeaderFault::WrongKey);
        assert_eq!(wrong(GOLDEN_PASSPHRASE, key_file()), HeaderFault::WrongKey);
        assert_eq!(wrong(GOLDEN_KEY_FILE, passphrase("correct horse")), HeaderFault::WrongKey);
        assert_eq!(wrong(GOLDEN_KEY_FILE, Unlock::KeyFile(Passphrase(vec![0x4C; 32]))), HeaderFault::WrongKey);
        let short = Unlock::KeyFile(Passphrase(vec![0x4B; 31]));
        assert_eq!(wrong(GOLDEN_KEY_FILE, short.clone()), HeaderFault::KeyFileTooShort { len_bytes: 31 });
        let made = create_header(&world(), &new_vault(), &short, None).map(|_| ()).unwrap_err();
        assert_eq!(made, HeaderFault::KeyFileTooShort { len_bytes: 31 });
    }

    #[test]
    fn every_changed_field_is_refused() {
        let fields = open_header(GOLDEN_KEY_FILE.as_bytes(), &key_file()).unwrap().0;
        type Edit = fn(&mut Header);
        let edits: [(&str, Edit); 16] = [
            ("format", |h| h.format = 1),
            ("vault", |h| h.vault.0[15] ^= 1),
            ("suite", |h| h.suite = SuiteId::ChaCha20Poly1305),
            ("compression", |h| h.compression = Compression::None),
            ("quota_bytes", |h| h.quota_bytes = Some(1 << 41)),
            ("quota_bytes gone", |h| h.quota_bytes = None),
            ("quota_inodes", |h| h.quota_inodes = Some(0)),
            ("created", |h| h.created_s += 1),
            ("slot id", |h| h.slots[0].id = 2),
            ("slot label", |h| h.slots[0].label.push('!')),
            ("slot created", |h| h.slots[0].created_s -= 1),
            ("slot salt", |h| h.slots[0].salt[0] ^= 1),
            ("slot nonce", |h| h.slots[0].nonce[23] ^= 1),
            ("slot commitment", |h| h.slots[0].commitment[31] ^= 1),
            ("slot wrapped", |h| h.slots[0].wrapped[47] ^= 1),
            ("slot copied", |h| h.slots.push(crate::format::header::KeySlot { id: 2, ..h.slots[0].clone() })),
        ];
        let mac = Header::parse(GOLDEN_KEY_FILE.as_bytes()).unwrap().1;
        for (name, edit) in edits {
            let mut header = fields.clone();
            edit(&mut header);
            let fault = open_header(&header.to_text(&mac).unwrap(), &key_file()).map(|_| ()).unwrap_err();
            assert!(matches!(fault, HeaderFault::Tampered | HeaderFault::WrongKey), "{name}: {fault:?}");
        }
        let text = fields
            .to_text(&{
                let mut m = mac;
                m[0] ^= 1;
                m
            })
            .unwrap();
        assert_eq!(open_header(&text, &key_file()).map(|_| ()).unwrap_err(), HeaderFault::Tampered);
        for (from, to) in
            [("memory_kib = 65536", "memory_kib = 65537"), ("passes = 3", "passes = 4"), ("lanes = 4", "lanes = 5")]
        {
            let text = edited(GOLDEN_PASSPHRASE.as_bytes(), from, to);
            assert_eq!(
                open_header(&text, &passphrase("correct horse")).map(|_| ()).unwrap_err(),
                HeaderFault::WrongKey
            );
        }
    }

    #[test]
    fn weak_costs_and_memory_bombs_are_refused_before_any_work() {
        let reads = |from: &str, to: &str| {
            let text = edited(GOLDEN_PASSPHRASE.as_bytes(), from, to);
            let fault = open_header(&text, &passphrase("correct horse")).map(|_| ()).unwrap_err();
            assert_eq!(read_header(&text), Err(fault.clone()));
            fault
        };
        assert_eq!(reads("memory_kib = 65536", "memory_kib = 65535"), HeaderFault::Weak((65535, 3, 4)));
        assert_eq!(reads("passes = 3", "passes = 2"), HeaderFault::Weak((65536, 2, 4)));
        assert_eq!(reads("lanes = 4", "lanes = 3"), HeaderFault::Weak((65536, 3, 3)));
        let most = (4 << 20) + 1;
        assert_eq!(reads("memory_kib = 65536", &format!("memory_kib = {most}")), HeaderFault::MemoryBomb((most, 3, 4)));
        assert_eq!(reads("passes = 3", "passes = 65"), HeaderFault::MemoryBomb((65536, 65, 4)));
        assert_eq!(reads("lanes = 4", "lanes = 65"), HeaderFault::MemoryBomb((65536, 3, 65)));
        for (cost, weak) in [((1 << 10, 3, 4), true), ((8 << 20, 3, 4), false)] {
            let new = NewVault { argon2: Some(cost), ..new_vault() };
            let fault = create_header(&world(), &new, &passphrase("x"), None).map(|_| ()).unwrap_err();
            assert_eq!(fault, if weak { HeaderFault::Weak(cost) } else { HeaderFault::MemoryBomb(cost) });
        }
    }

    #[test]
    fn what_is_unknown_or_malformed_is_refused() {
        let fault = |from: &str, to: &str| {
            open_header(&edited(GOLDEN_KEY_FILE.as_bytes(), from, to), &key_file()).map(|_| ()).unwrap_err()
        };
        assert_eq!(fault("features = []", "features = ['x']"), HeaderFault::UnknownFeature("x".into()));
        assert_eq!(fault("format = 5", "format = 6"), HeaderFault::UnknownFeature("format 6".into()));
        assert!(matches!(fault("\"key-file\"", "\"tpm\""), HeaderFault::UnknownFeature(_)));
        for (from, to) in [
            ("format = 5", "format = 5\nextra = 1"),
            ("[[slot]]", "[[slot]]\nextra = 1"),
            ("aes-256-gcm", "AES-256-GCM"),
            ("\"auto\"", "\"best\""),
            ("quota_bytes = 1", "quota_bytes = -1"),
            ("created = 1800000000\n", ""),
            ("vault = \"aa", "vault = \"AA"),
            ("salt = \"", "salt = \"00"),
            ("kind = \"key-file\"", "kind = \"key-file\"\npasses = 3"),
            ("kind = \"key-file\"", "kind = \"passphrase\""),
        ] {
            assert!(matches!(fault(from, to), HeaderFault::Malformed(_)), "{from} -> {to}");
        }
        assert!(matches!(read_header(&vec![b'#'; (64 << 10) + 1]), Err(HeaderFault::Malformed(_))));
    }

    #[test]
    fn slots_are_added_and_removed_and_any_of_them_opens() {
        let world = world();
        let (text, _) = create_header(&world, &new_vault(), &key_file(), None).unwrap();
        let (mut header, master) = open_header(&text, &key_file()).unwrap();
        let second = Unlock::KeyFile(Passphrase(vec![9; 40]));
        assert_eq!(add_slot(&world, &mut header, &master, &second, "spare", None), Ok(2));
        let text = write_header(&header, &master).unwrap();
        for unlock in [&key_file(), &second] {
            assert_eq!(open_header(&text, unlock).unwrap().1.secret()[..], master.secret()[..]);
        }
        header.slots.remove(0);
        let text = write_header(&header, &master).unwrap();
        assert_eq!(open_header(&text, &key_file()).map(|_| ()), Err(HeaderFault::WrongKey));
        assert!(open_header(&text, &second).is_ok());
        while header.slots.len() < 32 {
            add_slot(&world, &mut header, &master, &second, "more", None).unwrap();
        }
        assert!(write_header(&header, &master).is_ok());
        assert!(add_slot(&world, &mut header, &master, &second, "too many", None).is_err());
        header.slots.clear();
        assert!(write_header(&header, &master).is_err(), "a vault that nothing opens is not written");
    }

    #[test]
    fn a_master_key_from_elsewhere_opens_its_own_header_only() {
        let (world, new) = (world(), new_vault());
        let (text, master) = create_header(&world, &new, &key_file(), None).unwrap();
        // Where the header is opened need not be where the key is derived.
        let (_, derived) = open_header(&text, &key_file()).unwrap();
        assert_eq!(derived.secret()[..], master.secret()[..]);
        let handed_over = Unlock::Master(MasterKey::from_secret(derived.secret().clone()));
        let (header, opened) = open_header(&text, &handed_over).unwrap();
        assert_eq!((header.vault, **opened.secret()), (new.vault, **master.secret()));
        let (other, _) = create_header(&world, &new, &key_file(), None).unwrap();
        assert_eq!(open_header(&other, &handed_over).unwrap_err(), HeaderFault::WrongKey);
        let changed = edited(&text, "quota_bytes = 1", "quota_bytes = 2");
        assert_eq!(open_header(&changed, &handed_over).unwrap_err(), HeaderFault::WrongKey);
        let fault = open_header(&changed, &key_file()).unwrap_err();
        assert_eq!(fault, HeaderFault::Tampered, "whoever has a slot's key knows");
        let mut header = header;
        assert!(
            add_slot(&world, &mut header, &master, &handed_over, "x", None).is_err(),
            "a slot needs a secret to wrap"
        );
    }
}
