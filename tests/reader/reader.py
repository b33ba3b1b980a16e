"""Reads a strongroom vault with nothing but docs/format.md: no index, and none of strongroom's own code.

Promise: what it gives was opened with the vault's key at the place where the format says it lies, commit by commit along the
chain; anything else ends in Refused. It mends nothing: a vault that was not closed in order may be refused here and recovered
by strongroom. Section numbers in comments are those of docs/format.md.
Called by: tests/independent_reader.rs, which compares bytes; vectors.py, which makes tests/vectors. Needs requirements.txt.

    reader.py VAULT (--password-file F | --key-file F | --recovery-key-file F) [PATH]

writes the file at PATH to stdout; without PATH, a line for each file: its size and path.
"""

import argparse
import hashlib
import hmac
import os
import struct
import sys
import tomllib
import zlib

import argon2.low_level
import lz4.block
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SUITES = {"aes-256-gcm": 1, "chacha20-poly1305": 2}
COMPRESSIONS = {"auto": 1, "zstd": 2, "lz4": 3, "none": 4}
KINDS = {"passphrase": 1, "key-file": 2, "recovery-key": 3}
DATA, RECORDS, COMMIT, DIRECTORY, START, COVERED, ENTRIES, END = 1, 2, 3, 4, 5, 6, 7, 8
RAW, LZ4, ZSTD = 0, 1, 2
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
CHUNK = 131072


class Refused(Exception):
    """What a reader must refuse."""


class WrongKey(Refused):
    """No slot opens."""


def refuse_unless(holds, why):
    if not holds:
        raise Refused(why)


# --- §7: derivations and ciphers


def hkdf(secret, salt, info):
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(secret)


def segment_key(master, suite, vault, epoch, segment, salt):
    info = b"strongroom segment 1" + bytes([suite]) + vault + struct.pack("<QQ", epoch, segment)
    return hkdf(master, salt, info)


def snapshot_key(master, suite, vault, epoch, commit, salt):
    info = b"strongroom snapshot 1" + bytes([suite]) + vault + struct.pack("<QQ", epoch, commit)
    return hkdf(master, salt, info)


def page_key(master, vault, purpose):
    name = purpose.encode()
    return hkdf(master, bytes(16), b"strongroom pages 1" + vault + bytes([len(name)]) + name)


def header_key(master, vault):
    return hkdf(master, vault, b"strongroom header 1")


def pin_key(master, vault):
    return hkdf(master, vault, b"strongroom pin 1")


def moved_key(master, vault):
    return hkdf(master, vault, b"strongroom pin moved 1")


def old_key_wrap(master, vault):
    return hkdf(master, vault, b"strongroom old key wrap 1")


def rotated(x, n):
    return ((x << n) | (x >> (32 - n))) & 0xFFFFFFFF


def hchacha20(key, nonce):
    """The subkey of XChaCha20 (draft-irtf-cfrg-xchacha-03, 2.2), which the library lacks."""
    s = list(struct.unpack("<4I", b"expand 32-byte k")) + list(struct.unpack("<8I", key)) + list(struct.unpack("<4I", nonce))

    def quarter(a, b, c, d):
        for x, y, z, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            s[z] = rotated(s[z] ^ s[x], n)

    for _ in range(10):
        quarter(0, 4, 8, 12), quarter(1, 5, 9, 13), quarter(2, 6, 10, 14), quarter(3, 7, 11, 15)
        quarter(0, 5, 10, 15), quarter(1, 6, 11, 12), quarter(2, 7, 8, 13), quarter(3, 4, 9, 14)
    return struct.pack("<8I", *s[:4], *s[12:])


def xchacha_seal(key, nonce, aad, plain):
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])).encrypt(bytes(4) + nonce[16:], plain, aad)


def xchacha_open(key, nonce, aad, sealed):
    try:
        return ChaCha20Poly1305(hchacha20(key, nonce[:16])).decrypt(bytes(4) + nonce[16:], sealed, aad)
    except InvalidTag:
        raise Refused("a page does not open") from None


def cipher(suite, key):
    return AESGCM(key) if suite == 1 else ChaCha20Poly1305(key)


def frame_address(vault, epoch, segment, slot, kind, codec, plain_len, inode, offset):
    return (
        b"SRF1" + vault + struct.pack("<QQIBBxxIQQ", epoch, segment, slot, kind, codec, plain_len, inode, offset)
    )


def seal_frame(suite, key, address, slot, body):
    return cipher(suite, key).encrypt(struct.pack("<I8x", slot), body, address)


def open_frame(suite, key, address, slot, sealed):
    refuse_unless(len(sealed) >= 16, "a frame is too short")
    try:
        return cipher(suite, key).decrypt(struct.pack("<I8x", slot), sealed, address)
    except InvalidTag:
        raise Refused("a frame does not open") from None


def decompressed(codec, body, plain_len):
    if codec == RAW:
        plain = body
    elif codec == LZ4:
        plain = lz4.block.decompress(body, uncompressed_size=plain_len)
    elif codec == ZSTD:
        refuse_unless(body[:4] == b"\x28\xb5\x2f\xfd", "not a zstd frame")
        plain = zstandard.ZstdDecompressor().decompress(body, max_output_size=plain_len)
    else:
        raise Refused(f"codec {codec}")
    refuse_unless(len(plain) == plain_len, "a frame has another length than its address says")
    return plain


def chain_value(before, links):
    text = b"SRC1" + before + b"".join(struct.pack("<QI", segment, slot) + tag for segment, slot, tag in links)
    return hashlib.sha256(text).digest()


# --- §8: the header


def crc8(begin, data):
    crc = begin
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = ((crc << 1) ^ 0x1D if crc & 0x80 else crc << 1) & 0xFF
    return crc


def recovery_text(key):
    groups = []
    for n in range(8):
        four = key[4 * n : 4 * n + 4]
        bits = int.from_bytes(four + bytes([crc8(n + 1, four)]))
        groups.append("".join(ALPHABET[bits >> (35 - 5 * i) & 31] for i in range(8)))
    return "-".join(groups)


def recovery_key(text):
    for gap in "-_.\u2010\u2011\u2012\u2013\u2014\u2015":
        text = text.replace(gap, " ")
    groups = text.split()
    if len(groups) != 8:
        whole = "".join(groups)
        groups = [whole[i : i + 8] for i in range(0, len(whole), 8)]
    key = b""
    for n, group in enumerate(groups[:8]):
        group = group.upper().replace("O", "0").replace("I", "1").replace("L", "1")
        wrong = f"group {n + 1}"
        refuse_unless(len(group) == 8 and all(c in ALPHABET for c in group), wrong)
        bits = 0
        for c in group:
            bits = bits << 5 | ALPHABET.index(c)
        data = bits.to_bytes(5)
        refuse_unless(crc8(n + 1, data[:4]) == data[4], wrong)
        key += data[:4]
    refuse_unless(len(groups) == 8, f"{len(groups)} groups")
    return key


def cost(slot):
    return tuple(slot.get(name, 0) for name in ("memory_kib", "passes", "lanes"))


def slot_bound(slot):
    return struct.pack("<IB3I", slot["id"], KINDS[slot["kind"]], *cost(slot)) + slot["salt"]


def slot_secret(slot, secret):
    if slot["kind"] != "passphrase":
        return secret
    memory_kib, passes, lanes = cost(slot)
    return argon2.low_level.hash_secret_raw(
        secret, slot["salt"], passes, memory_kib, lanes, 32, argon2.low_level.Type.ID, 0x13
    )


def wrap_key(slot, derived):
    return hkdf(derived, slot["salt"], b"strongroom slot wrap 1")


def commitment(slot, derived):
    return hkdf(derived, slot["salt"], b"strongroom slot commit 1")


def slot_address(header, slot):
    return b"strongroom slot 1" + header["vault"] + bytes([SUITES[header["suite"]]]) + slot_bound(slot)


def canonical(header):
    out = b"SRH1" + struct.pack("<H", header["format"]) + header["vault"]
    out += bytes([SUITES[header["suite"]], COMPRESSIONS[header["compression"]]])
    for quota in ("quota_bytes", "quota_inodes"):
        out += struct.pack("<BQ", quota in header, header.get(quota, 0))
    out += struct.pack("<qII", header["created"], 0, len(header["slot"]))
    for slot in header["slot"]:
        label = slot["label"].encode()
        out += slot_bound(slot) + struct.pack("<q", slot["created"]) + varint(len(label)) + label
        out += slot["nonce"] + slot["commitment"] + slot["wrapped"]
    if "revision" in header:
        out += struct.pack("<Q", header["revision"])
    if "key" in header:
        old_keys = header.get("old_key", [])
        out += b"KEYS" + struct.pack("<HH", header["key"], len(old_keys))
        for old in old_keys:
            out += struct.pack("<H", old["number"]) + old["nonce"] + old["wrapped"]
    return out


def old_key_address(header, number):
    return b"strongroom old key 1" + header["vault"] + bytes([SUITES[header["suite"]]]) + struct.pack("<H", number)


def master_keys(header, master):
    """All master keys of a header, by number; the one in force is the one that its slots gave."""
    keys = {header.get("key", 0): master}
    wrap = old_key_wrap(master, header["vault"])
    for old in header.get("old_key", []):
        keys[old["number"]] = xchacha_open(wrap, old["nonce"], old_key_address(header, old["number"]), old["wrapped"])
    return keys


def header_mac(header, master):
    return hmac.digest(header_key(master, header["vault"]), canonical(header), "sha256")


HEADER = {"format", "vault", "suite", "compression", "created", "features", "mac", "slot"}
SLOT = {"id", "kind", "label", "created", "salt", "nonce", "commitment", "wrapped"}


def parse_header(text):
    refuse_unless(len(text) <= 65536, "the header is too long")
    header = tomllib.loads(text.decode())
    refuse_unless(header.keys() - {"revision", "quota_bytes", "quota_inodes", "key", "old_key"} == HEADER, "its keys")
    refuse_unless(header["format"] in (1, 2, 3, 4, 5) and header["features"] == [], "it needs a newer strongroom")
    refuse_unless(header.get("revision", 1) > 0 and (header["format"] > 2 or "revision" not in header), "revision")
    key, old_keys = header.get("key", 0), header.get("old_key", [])
    refuse_unless("key" not in header or 1 <= key <= 65535 and header["format"] > 3 and "revision" in header, "key")
    numbers = [old["number"] for old in old_keys]
    refuse_unless(len(numbers) <= 8 and numbers == sorted(set(numbers)) and all(0 <= n < key for n in numbers), "old keys")
    for old in old_keys:
        refuse_unless(old.keys() == {"number", "nonce", "wrapped"}, "an old key's keys")
        old["nonce"], old["wrapped"] = bytes.fromhex(old["nonce"]), bytes.fromhex(old["wrapped"])
        refuse_unless((len(old["nonce"]), len(old["wrapped"])) == (24, 48), "a length is wrong")
    header["vault"] = bytes.fromhex(header["vault"])
    header["mac"] = bytes.fromhex(header["mac"])
    refuse_unless(len(header["vault"]) == 16 and len(header["mac"]) == 32, "a length is wrong")
    refuse_unless(1 <= len(header["slot"]) <= 32, "slots")
    refuse_unless(len({slot["id"] for slot in header["slot"]}) == len(header["slot"]), "two slots have one id")
    for slot in header["slot"]:
        refuse_unless(slot["kind"] in KINDS, "it needs a newer strongroom")
        costs = {"memory_kib", "passes", "lanes"} if slot["kind"] == "passphrase" else set()
        refuse_unless(slot.keys() == SLOT | costs, "a slot's keys")
        for name, length in (("salt", 16), ("nonce", 24), ("commitment", 32), ("wrapped", 48)):
            slot[name] = bytes.fromhex(slot[name])
            refuse_unless(len(slot[name]) == length, "a length is wrong")
        if slot["kind"] == "passphrase":
            pairs = zip(cost(slot), (65536, 3, 4), (4194304, 64, 64))
            refuse_unless(all(low <= n <= high for n, low, high in pairs), "the cost is too small or too great")
    return header


def unlock(text, kind, secret):
    """The header and the master key."""
    header = parse_header(text)
    for slot in header["slot"]:
        if slot["kind"] != kind:
            continue
        derived = slot_secret(slot, secret)
        if not hmac.compare_digest(commitment(slot, derived), slot["commitment"]):
            continue
        master = xchacha_open(wrap_key(slot, derived), slot["nonce"], slot_address(header, slot), slot["wrapped"])
        refuse_unless(hmac.compare_digest(header_mac(header, master), header["mac"]), "the header was changed")
        master_keys(header, master)
        return header, master
    raise WrongKey("no slot opens")


# --- §1: the alphabet


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


class Bytes:
    """Takes values off the front of some bytes."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        refuse_unless(self.at + count <= len(self.data), "cut off")
        self.at += count
        return self.data[self.at - count : self.at]

    def numbers(self, form):
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def varint(self, bits=64):
        n, shift = 0, 0
        while True:
            byte = self.take(1)[0]
            n |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                refuse_unless(n < 1 << bits and (byte > 0 or shift == 7), "a varint that is too long")
                return n

    def counted(self):
        return self.take(self.varint())

    def rest(self):
        return self.take(len(self.data) - self.at)

    def ends(self):
        return self.at == len(self.data)


# --- §2: the root


def open_root(image, master, vault, key=0):
    refuse_unless(len(image) == 4096 and image[:4] == b"SRR1", "not a root")
    refuse_unless(image[6:8] == struct.pack("<H", key), "a root under another key")
    version = image[4]
    end = 121 if version == 1 else 4096
    refuse_unless(image[5] == 0 and version in (1, 2, 3), "another root version")
    plain = Bytes(xchacha_open(page_key(master, vault, "root"), image[8:32], image[:8], image[32:end]))
    root = dict(zip(("generation", "epoch", "number"), plain.numbers("QQQ")))
    root["chain"] = plain.take(32)
    if version == 1:
        plain.take(8)
    root["index_file"], root["clean"] = plain.numbers("QB")
    if version == 3:
        root["revision"], root["mac"] = plain.numbers("Q32s")
    if version > 1:
        root["emergency"] = plain.counted().decode()
    if version == 3:
        last = -1
        for _ in range(plain.varint()):
            first, end_of_range = plain.varint(), plain.varint()
            refuse_unless(0 < first <= end_of_range and first > last + 1, "ranges of leases out of order")
            last = end_of_range
    refuse_unless(not any(plain.rest()) and root["clean"] < 2, "a root with something behind it")
    return root


def root_in_force(folder, master, vault, key):
    roots, claimed = [], 0
    for name in ("root.a", "root.b"):
        try:
            with open(os.path.join(folder, name), "rb") as file:
                image = file.read()
            if image[:4] == b"SRR1":
                claimed = max(claimed, *struct.unpack("<H", image[6:8]))
            roots.append(open_root(image, master, vault, key))
        except (OSError, Refused):
            pass
    refuse_unless(roots or claimed <= key, "the header is of before a rekey")
    refuse_unless(roots, "neither root holds")
    return max(roots, key=lambda root: root["generation"])


def refuse_header_put_back(root, header):
    """§8, "Changing it"."""
    mac = root.get("mac", bytes(32))
    if mac == bytes(32) and root.get("revision", 0) == 0:
        return
    revision = header.get("revision", 0)
    refuse_unless(revision >= root["revision"], "an older header was put back")
    refuse_unless(revision > root["revision"] or header["mac"] == mac, "another header was put back")


# --- §3: segments, groups, directories


class Segment:
    versions, kinds, derived = (1, 2, 3), (DATA, RECORDS, COMMIT, START), staticmethod(segment_key)

    def __init__(self, number, data, suite, vault, masters):
        self.number, self.data, self.suite, self.vault, self.masters = number, data, suite, vault, masters
        self.epoch = self.salt = self.key = self.key_number = None

    def begin(self, epoch, salt, key_number):
        refuse_unless(key_number in self.masters, f"{self.number} is under key {key_number}, which is not there")
        self.epoch, self.salt, self.key_number = epoch, salt, key_number
        self.key = self.derived(self.masters[key_number], self.suite, self.vault, epoch, self.number, salt)

    def groups(self):
        """Of each group whether it was sealed anew, and its frames: (kind, codec, slot, sealed, plain length, inode, offset)."""
        at, expected = 0, 0
        while at + 64 <= len(self.data):
            h = self.data[at : at + 64]
            magic, version, flags, segment, epoch, group, length, directory_len, table_crc, salt, key_number, zero = (
                struct.unpack("<4sHHQQIIII16sHH", h[:60])
            )
            holds = magic == b"SRG1" and struct.unpack("<I", h[60:])[0] == zlib.crc32(h[:60])
            if not holds or version not in self.versions or (segment, group) != (self.number, expected):
                break
            refuse_unless(zero == 0 and flags in ((0, 1, 3) if version == 3 else (0,)), "a group's flags")
            refuse_unless(version == 4 or (key_number > 0) == (version == 3), "a group's key")
            if self.epoch is None:
                self.begin(epoch, salt, key_number)
            life = (self.epoch, self.salt, self.key_number)
            refuse_unless((epoch, salt, key_number) == life, "a group of another life")
            refuse_unless(length <= 1 << 20 and at + length <= len(self.data), "a group is cut off")
            has_table = version > 1 and not flags & 2
            table = length - (4 * -(-length // 4096) if has_table else 0)
            seed = zlib.crc32(salt)
            if has_table:
                refuse_unless(zlib.crc32(self.data[at + table : at + length], seed) == table_crc, "a table is rotten")
            sealed = self.data[at + table - directory_len : at + table]
            slot = 0x80000000 + group
            plain_len = directory_len - 16
            address = frame_address(self.vault, epoch, segment, slot, DIRECTORY, RAW, plain_len, flags, length)
            entries = Bytes(open_frame(self.suite, self.key, address, slot, sealed))
            place, frames = at + 64, []
            for _ in range(entries.varint()):
                both = entries.take(1)[0]
                slot, sealed_len, plain_len = entries.varint(32), entries.varint(32), entries.varint(32)
                kind = both & 15
                refuse_unless(kind in self.kinds, "a frame of another kind")
                inode, offset = (entries.varint(), entries.varint()) if kind == DATA else (0, 0)
                frames.append((kind, both >> 4, slot, self.data[place : place + sealed_len], plain_len, inode, offset))
                place += sealed_len
            refuse_unless(entries.ends() and place == at + table - directory_len, "a directory does not add up")
            yield flags & 1, frames
            at += -(-length // 4096) * 4096
            expected += 1

    def open(self, kind, codec, slot, sealed, plain_len, inode, offset):
        address = frame_address(self.vault, self.epoch, self.number, slot, kind, codec, plain_len, inode, offset)
        return decompressed(codec, open_frame(self.suite, self.key, address, slot, sealed), plain_len)


# --- §13: snapshots of the index


class Snapshot(Segment):
    versions, kinds, derived = (4,), (COVERED, ENTRIES, END), staticmethod(snapshot_key)

    def entries(self):
        """What it covers, and all entries; refused unless it is whole."""
        digest, stream, covered, count = hashlib.sha256(b"SRN1"), b"", None, 0
        for _, frames in self.groups():
            for frame in frames:
                kind, _, slot = frame[:3]
                plain = self.open(*frame)
                refuse_unless(slot == count and (kind == COVERED) == (count == 0), "a snapshot out of order")
                count += 1
                if kind == END:
                    refuse_unless(frame is frames[-1], "something behind the end of a snapshot")
                    found = self.split(stream)
                    refuse_unless(plain == struct.pack("<Q", len(found)) + digest.digest(), "a snapshot's digest")
                    return covered, found
                digest.update(plain)
                if kind == COVERED:
                    refuse_unless(len(plain) == 72, "what a snapshot covers")
                    covered = struct.unpack("<Q32sQQQQ", plain)
                    refuse_unless(covered[0] == self.number, "a snapshot of another commit")
                else:
                    stream += plain
        raise Refused("a snapshot that is cut off")

    @staticmethod
    def split(stream):
        b, found, last = Bytes(stream), {}, b""
        while not b.ends():
            key = b.counted()
            refuse_unless((key > last or not found) and key != b"Tlog", "a snapshot's keys")
            found[key] = b.counted()
            last = key
        return found


# --- §4 to §6: the log, and what it says


class Extent:
    def __init__(self, value):
        b = Bytes(value)
        first, self.unit = b.take(1)[0], 1 << b.take(1)[0]
        self.codec, copied = first & 0x7F, first & 0x80
        self.length, self.skip, self.segment, self.position = b.varint(32), b.varint(32), b.varint(), b.varint()
        self.slot, self.run = b.varint(32), b.varint(32)
        refuse_unless(self.codec in (RAW, LZ4, ZSTD) and 1 << 12 <= self.unit <= 1 << 17, "an extent")
        plains = [min(self.unit, self.run - at) for at in range(0, self.run, self.unit)]
        self.frames = [(plain, plain + 16 if self.codec == RAW else b.varint()) for plain in plains]
        # Where the run was sealed, if not here: inode and offset of its first byte.
        self.origin = (b.varint(), b.varint()) if copied else None
        refuse_unless(b.ends() and self.length > 0 and self.skip + self.length <= self.run <= CHUNK, "an extent")


class Vault:
    def __init__(self, folder, kind, secret, by_snapshot=False):
        with open(os.path.join(folder, "vault.toml"), "rb") as file:
            self.header, self.master = unlock(file.read(), kind, secret)
        self.suite, vault = SUITES[self.header["suite"]], self.header["vault"]
        self.root = root_in_force(folder, self.master, vault, self.header.get("key", 0))
        masters = master_keys(self.header, self.master)
        refuse_header_put_back(self.root, self.header)
        self.keys, self.files, self.segments = {}, {}, {}
        names = os.path.join(folder, "segments")
        for name in sorted(os.listdir(names)):
            if len(name) == 16 and all(c in "0123456789abcdef" for c in name):
                with open(os.path.join(names, name), "rb") as file:
                    self.segments[int(name, 16)] = Segment(int(name, 16), file.read(), self.suite, vault, masters)
        # The log alone does, if all of it is there.
        snapshots, numbers = os.path.join(folder, "snapshots"), sorted(self.segments)
        gaps = numbers != list(range(1, len(numbers) + 1)) and os.path.isdir(snapshots) and os.listdir(snapshots)
        if by_snapshot or gaps:
            self.walk(*self.load(snapshots, vault, masters))
        else:
            self.walk()

    def load(self, folder, vault, masters):
        """Takes over the newest snapshot that holds; gives its commit, chain value, and the segment to go on with."""
        why = "there is none"
        for name in sorted(os.listdir(folder), reverse=True):
            if len(name) != 16 or int(name, 16) > self.root["number"]:
                continue
            with open(os.path.join(folder, name), "rb") as file:
                snapshot = Snapshot(int(name, 16), file.read(), self.suite, vault, masters)
            try:
                (number, chain, _, _, _, replay_from), self.keys = snapshot.entries()
            except Refused as refusal:
                why = refusal
                continue
            for key, value in self.keys.items():
                if key[:1] == b"E":
                    offset, extent = int.from_bytes(key[9:]), Extent(value)
                    place = (offset, offset + extent.length, offset - extent.skip, extent)
                    self.files.setdefault(int.from_bytes(key[1:9]), []).append(place)
                elif key[:1] == b"S" and int.from_bytes(key[1:]) in self.segments:
                    epoch, salt, _, _ = struct.unpack("<Q16sQQ", value[:40])
                    self.segments[int.from_bytes(key[1:])].begin(epoch, salt, *struct.unpack("<H", value[40:] or bytes(2)))
            return number, chain, replay_from
        raise Refused(f"no snapshot holds: {why}")

    def walk(self, number=0, chain=bytes(32), replay_from=0):
        links, count, records, epoch, joined = [], 0, b"", None, number == 0
        # Whether a group since the last commit, or that one's, was sealed anew: then its tags are not those that were chained.
        anew = 0
        for at, segment in sorted(self.segments.items()):
            if at < replay_from:
                continue
            first = True
            for sealed_anew, frames in segment.groups():
                anew |= sealed_anew
                for frame in frames:
                    kind, _, slot, sealed = frame[:4]
                    if kind == START:
                        refuse_unless(first, "a Start frame in the middle")
                        plain = segment.open(*frame)
                        named, value, restarts = struct.unpack("<Q32sB", plain if len(plain) == 41 else plain + b"\0")
                        if segment.epoch != epoch or restarts:
                            # What the lease before, or the failed segment, left behind its newest commit counts for nothing.
                            # Up to the commit that a snapshot covers, nothing is taken in.
                            passed = not joined and named < number
                            refuse_unless(passed or (named, value) == (number, chain), "a lease continues another history")
                            joined = not passed
                            links, count, records, epoch = [], 0, b"", segment.epoch
                            anew = sealed_anew
                    first = False
                    link = (at, slot, sealed[-16:])
                    if kind == COMMIT:
                        plain = Bytes(segment.open(*frame))
                        new, frame_count, value, _, _, _ = plain.numbers("QI32sQQQ")
                        if not joined and new <= number:
                            joined = new == number
                            refuse_unless(not joined or value == chain, "the snapshot is of another history")
                            links, count, records, anew = [link], 0, b"", sealed_anew
                            continue
                        refuse_unless(new == number + 1 and frame_count == count, f"commit {new} does not follow")
                        # Holes are punched behind a checkpoint: of commits that the root covers, the chain need not hold.
                        sound = anew or value == chain_value(chain, links)
                        refuse_unless(sound or new <= self.root["number"], f"the chain breaks at commit {new}")
                        self.apply(records + plain.rest())
                        self.quotas_add_up(new)
                        number, chain, links, count, records = new, value, [link], 0, b""
                        anew = sealed_anew
                        continue
                    links.append(link)
                    count += 1
                    if kind == RECORDS:
                        records += segment.open(*frame)
        refuse_unless(number >= self.root["number"], "acknowledged commits are missing")

    def apply(self, records):
        b, moves = Bytes(records), []
        while not b.ends():
            tag = b.take(1)[0]
            if tag == 1:
                key = b.counted()
                self.keys[key] = b.counted()
            elif tag == 2:
                self.keys.pop(b.counted(), None)
            elif tag == 3:
                inode, offset = b.varint(), b.varint()
                extent = Extent(b.counted())
                self.punch(inode, offset, offset + extent.length)
                self.files[inode].append((offset, offset + extent.length, offset - extent.skip, extent))
            elif tag == 4:
                inode, begin, end = b.varint(), b.varint(), b.varint()
                refuse_unless(begin < end, "a Punch of nothing")
                self.punch(inode, begin, end)
            elif tag == 5:
                moves.append((b.varint(), b.varint(), b.varint(), Extent(b.counted())))
            elif tag == 6:
                # The segment's counts are all that this would change.
                b.varint()
            else:
                raise Refused(f"record {tag}")
        for segment, position, first, to in moves:
            self.move(segment, position, first, to)

    def move(self, segment, position, first, to):
        """§4: what lay in some frames of a run lies in another run, whoever holds it."""
        refuse_unless(to.origin and to.skip == 0 and to.length == to.run, "a Move to part of a run")
        for inode, places in self.files.items():
            for n, (low, high, run_at, old) in enumerate(places):
                if (old.segment, old.position) != (segment, position):
                    continue
                # Where the moved frames begin in the file, if all of the run were there.
                run_to = run_at + first * old.unit
                if run_to <= low and high <= run_to + to.run:
                    sealed_for, sealed_at = old.origin or (inode, run_at)
                    refuse_unless(to.origin == (sealed_for, sealed_at + first * old.unit), "a Move to another address")
                    places[n] = (low, high, run_to, to)

    def quotas_add_up(self, commit):
        """§5: in every commit, what is used is the sum over the inodes of that commit."""
        stored, around = {}, {}
        for key, value in self.keys.items():
            if key[:1] == b"Q" and key[9:] == b"tr":
                around[key[1:9]] = struct.unpack("<I", value[44:48])[0].to_bytes(8)
            elif key[:1] == b"Q" and key[10:] == b"u":
                stored[key[1:]] = int.from_bytes(value[:16], "little"), struct.unpack("<Q", value[16:])[0]
        owners = self.keys.get(b"Q" + bytes(8), b"\0")[0]
        counted = {}
        for key, value in self.keys.items():
            if key[:1] != b"I":
                continue
            mode, uid, gid, _, _, tree, size = struct.unpack("<6IQ", value[:32])
            accounts, tree = [], tree.to_bytes(8)
            while any(tree):
                accounts.append(tree + b"tu")
                tree = around[tree]
            if owners:
                accounts += [uid.to_bytes(8) + b"uu", gid.to_bytes(8) + b"gu"]
            for account in accounts:
                used, inodes = counted.get(account, (0, 0))
                counted[account] = used + (size if mode >> 12 in (8, 10) else 0), inodes + 1
        refuse_unless(stored == counted, f"quotas that do not add up in commit {commit}")

    def punch(self, inode, begin, end):
        left = []
        for low, high, run_at, extent in self.files.get(inode, []):
            left += [(a, b, run_at, extent) for a, b in ((low, min(high, begin)), (max(low, end), high)) if a < b]
        self.files[inode] = left

    def read(self, inode):
        size = struct.unpack("<Q", self.keys[b"I" + inode.to_bytes(8)][24:32])[0]
        out = bytearray(size)
        for low, high, run_at, extent in self.files.get(inode, []):
            run, segment, place = b"", self.segments[extent.segment], extent.position
            sealed_for, sealed_at = extent.origin or (inode, run_at)
            for n, (plain_len, sealed_len) in enumerate(extent.frames):
                codec = RAW if sealed_len == plain_len + 16 else extent.codec
                begin = run_at + n * extent.unit
                if begin < high and begin + plain_len > low:
                    sealed = segment.data[place : place + sealed_len]
                    run += segment.open(DATA, codec, extent.slot + n, sealed, plain_len, sealed_for, sealed_at + n * extent.unit)
                else:
                    # Nobody needs it any more, and it may be a hole.
                    run += bytes(plain_len)
                place += sealed_len
            end = min(high, size)
            if low < end:
                out[low:end] = run[low - run_at : end - run_at]
        return bytes(out)

    def names(self, directory):
        prefix = b"N" + directory.to_bytes(8)
        for key, value in self.keys.items():
            if key.startswith(prefix):
                yield key[9:], struct.unpack("<Q", value[:8])[0], value[16]

    def find(self, path):
        inode = 1
        for part in filter(None, path.split(b"/")):
            found = [child for name, child, _ in self.names(inode) if name == part]
            refuse_unless(found, "there is no such file")
            inode = found[0]
        return inode

    def all_files(self, directory=1, path=b""):
        for name, inode, kind in sorted(self.names(directory)):
            if kind == 4:
                yield from self.all_files(inode, path + b"/" + name)
            elif kind == 8:
                yield path + b"/" + name, inode


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("vault")
    parser.add_argument("path", nargs="?")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--password-file")
    source.add_argument("--key-file")
    source.add_argument("--recovery-key-file")
    parser.add_argument("--by-snapshot", action="store_true")
    args = parser.parse_intermixed_args()
    with open(args.password_file or args.key_file or args.recovery_key_file, "rb") as file:
        secret = file.read()
    try:
        if args.password_file:
            vault = Vault(args.vault, "passphrase", secret.removesuffix(b"\n").removesuffix(b"\r"), args.by_snapshot)
        elif args.key_file:
            vault = Vault(args.vault, "key-file", secret, args.by_snapshot)
        else:
            vault = Vault(args.vault, "recovery-key", recovery_key(secret.decode()), args.by_snapshot)
        if args.path:
            sys.stdout.buffer.write(vault.read(vault.find(os.fsencode(args.path))))
        else:
            for path, inode in vault.all_files():
                sys.stdout.buffer.write(b"%d %s\n" % (len(vault.read(inode)), path))
    except WrongKey as refusal:
        sys.exit(f"reader: wrong key: {refusal}")
    except Refused as refusal:
        sys.exit(f"reader: refused: {refusal}")


if __name__ == "__main__":
    main()
