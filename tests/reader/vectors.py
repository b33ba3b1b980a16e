"""Makes tests/vectors: known answers of every derivation and sealing step, computed by reader.py and not by strongroom.

Promise: the same bytes each time it runs (tests/independent_reader.rs compares). Most cases are to be *refused*: they hold
what an attacker could write who has everything but the key, or who knows a key and moves what it sealed.

    vectors.py FOLDER
"""

import copy
import hashlib
import json
import os
import struct
import sys

import lz4.block

import reader as r

MASTER = bytes(range(32))
VAULT = bytes([0xAA] * 16)
FLOOR = {"memory_kib": 65536, "passes": 3, "lanes": 4}


def noise(what, length):
    """Bytes that look drawn, and are the same each time."""
    return hashlib.shake_128(what.encode()).digest(length)


def shown(value):
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: shown(inner) for name, inner in value.items()}
    return [shown(inner) for inner in value] if isinstance(value, list) else value


# --- headers and slots

SECRETS = {
    "passphrase": ("passphrase", "correct horse".encode()),
    "umlaut": ("passphrase", "schöner Schlüssel".encode()),
    "key file": ("key-file", noise("key file", 40)),
    "recovery key": ("recovery-key", noise("recovery key", 32)),
}


def slot(header, number, name, label):
    kind, secret = SECRETS[name]
    made = {"id": number, "kind": kind, "label": label, "created": 1_800_000_000 + number}
    if kind == "passphrase":
        made |= FLOOR
    made |= {"salt": noise(f"salt {number}", 16), "nonce": noise(f"nonce {number}", 24)}
    derived = r.slot_secret(made, secret)
    made["commitment"] = r.commitment(made, derived)
    made["wrapped"] = r.xchacha_seal(r.wrap_key(made, derived), made["nonce"], r.slot_address(header, made), MASTER)
    return made


def header(**changed):
    made = {"format": 3, "vault": VAULT, "suite": "aes-256-gcm", "compression": "auto", "quota_bytes": 1 << 40}
    made |= {"created": 1_800_000_000} | changed
    made["slot"] = []
    for number, name in enumerate(SECRETS, 1):
        made["slot"].append(slot(made, number, name, f"{name} ✓" if number == 2 else name))
    return made


def text(made, mac=None):
    mac = r.header_mac(made, MASTER) if mac is None else mac

    def spelled(value):
        if isinstance(value, bytes):
            return f'"{value.hex()}"'
        return json.dumps(value, ensure_ascii=False)

    lines = [f"{name} = {spelled(value)}" for name, value in made.items() if name not in ("slot", "old_key")]
    lines += ["features = []", f"mac = {spelled(mac)}"]
    for one in made.get("old_key", []):
        lines += ["", "[[old_key]]"] + [f"{name} = {spelled(value)}" for name, value in one.items()]
    for one in made["slot"]:
        lines += ["", "[[slot]]"] + [f"{name} = {spelled(value)}" for name, value in one.items()]
    return "\n".join(lines) + "\n"


def headers():
    good = header(revision=5)
    mac = r.header_mac(good, MASTER)
    steps = []
    for one, (kind, secret) in zip(good["slot"], SECRETS.values()):
        derived = r.slot_secret(one, secret)
        step = {"slot": one["id"], "secret": secret, "salt": one["salt"], "cost": list(r.cost(one)), "slot_secret": derived}
        step |= {"wrap_key": r.wrap_key(one, derived), "commitment": one["commitment"], "address": r.slot_address(good, one)}
        steps.append(step | {"nonce": one["nonce"], "wrapped": one["wrapped"]})
    cases = []

    def case(what, words, name="key file", secret=None, **want):
        kind, right = SECRETS[name]
        cases.append({"what": what, "text": words, "kind": kind, "secret": secret or right} | want)

    for name in SECRETS:
        case(f"opened with the {name}", text(good), name, master=MASTER)
    for changed in ({"revision": None}, {"format": 1, "revision": None}, {"format": 2, "revision": None}):
        plain = header(**{name: value for name, value in changed.items() if value is not None})
        case(f"without a revision, format {plain['format']}", text(plain), master=MASTER)
    case("the other suite", text(header(suite="chacha20-poly1305")), master=MASTER)

    for name, (kind, secret) in SECRETS.items():
        wrong = bytes([secret[0] ^ 1]) + secret[1:]
        case(f"a wrong {name}", text(good), name, secret=wrong, refused="wrong key")
    case("a key file's bytes as a recovery key", text(good), "recovery key", SECRETS["key file"][1], refused="wrong key")
    case("a recovery key's bytes as a key file", text(good), "key file", SECRETS["recovery key"][1], refused="wrong key")
    case("a passphrase with a newline", text(good), "passphrase", b"correct horse\n", refused="wrong key")

    def edited(what, edit, name="key file", refused="tampered", sealed_again=False):
        other = copy.deepcopy(good)
        edit(other, other["slot"])
        case(what, text(other, None if sealed_again else mac), name, refused=refused)

    edited("a later revision claimed", lambda h, s: h.update(revision=6))
    edited("an earlier revision claimed", lambda h, s: h.update(revision=4))
    edited("no revision claimed", lambda h, s: h.pop("revision"))
    edited("another quota", lambda h, s: h.update(quota_bytes=1 << 41))
    edited("no quota", lambda h, s: h.pop("quota_bytes"))
    edited("another compression", lambda h, s: h.update(compression="none"))
    edited("another date", lambda h, s: h.update(created=1))
    edited("another label", lambda h, s: s[2].update(label="key-file"))
    edited("another slot's label", lambda h, s: s[0].update(label="x"))
    edited("a slot taken away", lambda h, s: s.pop(0))
    edited("a slot twice", lambda h, s: s.append(s[2] | {"id": 9}), refused="tampered")
    edited("slots in another order", lambda h, s: s.reverse())
    # With the master key somebody can make any mac: the wraps bind what they are for all the same.
    edited("another vault, mac made anew", lambda h, s: h.update(vault=bytes(16)), sealed_again=True)
    edited("another suite, mac made anew", lambda h, s: h.update(suite="chacha20-poly1305"), sealed_again=True)
    edited("another slot's number, mac made anew", lambda h, s: s[2].update(id=7), sealed_again=True)
    edited("another slot's wrap, mac made anew", lambda h, s: s[2].update(wrapped=s[3]["wrapped"]), sealed_again=True)
    edited("another slot's nonce, mac made anew", lambda h, s: s[2].update(nonce=s[3]["nonce"]), sealed_again=True)
    change = {"kind": "recovery-key"}
    edited("a key file called a recovery key", lambda h, s: s[2].update(change), refused="wrong key", sealed_again=True)
    edited("another commitment", lambda h, s: s[2].update(commitment=s[3]["commitment"]), refused="wrong key")
    edited("another salt", lambda h, s: s[2].update(salt=s[3]["salt"]), refused="wrong key")
    edited("more passes", lambda h, s: s[0].update(passes=4), "passphrase", refused="wrong key")
    edited("more memory", lambda h, s: s[0].update(memory_kib=65544), "passphrase", refused="wrong key")
    for cost, refused in (
        ({"memory_kib": 65535}, "weak"),
        ({"passes": 2}, "weak"),
        ({"lanes": 3}, "weak"),
        ({"memory_kib": 4194305}, "bomb"),
        ({"passes": 65}, "bomb"),
        ({"lanes": 65}, "bomb"),
    ):
        edited(f"{cost} in a slot that nobody uses", lambda h, s: s[0].update(cost), refused=refused, sealed_again=True)
    for what, change, refused in (
        ("a format of the future", {"format": 6}, "newer"),
        ("a revision in format 2", {"format": 2}, "malformed"),
        ("a revision of 0", {"revision": 0}, "malformed"),
        ("something unknown", {"surprise": 1}, "malformed"),
    ):
        edited(what, lambda h, s: h.update(change), refused=refused)
    # Old keys: segments may be under them.
    before = {number: noise(f"old key {number}", 32) for number in (0, 2)}
    rekeyed = header(format=4, revision=5, key=3)
    rekeyed["old_key"] = []
    for number, old in before.items():
        nonce, address = noise(f"old key nonce {number}", 24), r.old_key_address(rekeyed, number)
        wrapped = r.xchacha_seal(r.old_key_wrap(MASTER, VAULT), nonce, address, old)
        rekeyed["old_key"].append({"number": number, "nonce": nonce, "wrapped": wrapped})
    for name in ("key file", "recovery key"):
        all_keys = [[3, MASTER]] + [[number, old] for number, old in before.items()]
        case(f"with old keys, opened with the {name}", text(rekeyed), name, master=MASTER, keys=all_keys)
    case("with a numbered key alone", text(header(format=4, revision=5, key=3)), master=MASTER, keys=[[3, MASTER]])
    mac_of_rekeyed = r.header_mac(rekeyed, MASTER)

    def edited_keys(what, edit, refused="tampered", sealed_again=False):
        other = copy.deepcopy(rekeyed)
        edit(other, other["old_key"])
        case(what, text(other, None if sealed_again else mac_of_rekeyed), refused=refused)

    edited_keys("an old key taken away", lambda h, o: o.pop(0))
    edited_keys("all old keys taken away", lambda h, o: o.clear())
    edited_keys("another number in force", lambda h, o: h.update(key=4))
    edited_keys("another number of an old key", lambda h, o: o[0].update(number=1))
    edited_keys("another nonce of an old key", lambda h, o: o[0].update(nonce=o[1]["nonce"]))
    edited_keys("another number of an old key, mac made anew", lambda h, o: o[0].update(number=1), sealed_again=True)
    edited_keys("wraps exchanged, mac made anew", lambda h, o: o[0].update(wrapped=o[1]["wrapped"]), sealed_again=True)
    edited_keys("another nonce, mac made anew", lambda h, o: o[1].update(nonce=bytes(24)), sealed_again=True)
    flipped = {"wrapped": bytes([rekeyed["old_key"][1]["wrapped"][0] ^ 1]) + rekeyed["old_key"][1]["wrapped"][1:]}
    edited_keys("a bit of a wrap turned, mac made anew", lambda h, o: o[1].update(flipped), sealed_again=True)
    for what, edit in (
        ("a key of 0", lambda h, o: h.update(key=0)),
        ("a key beyond its range", lambda h, o: h.update(key=65536)),
        ("a key in format 3", lambda h, o: h.update(format=3)),
        ("a key without a revision", lambda h, o: h.pop("revision")),
        ("old keys without a key", lambda h, o: h.pop("key")),
        ("old keys out of order", lambda h, o: o.reverse()),
        ("an old key twice", lambda h, o: o.append(o[1])),
        ("an old key with the number in force", lambda h, o: o[1].update(number=3)),
        ("an old key above the one in force", lambda h, o: o[1].update(number=4)),
        ("nine old keys", lambda h, o: (h.update(key=9), o.clear(), o.extend(rekeyed["old_key"][0] | {"number": n} for n in range(9)))),
        ("a short wrap of an old key", lambda h, o: o[0].update(wrapped=o[0]["wrapped"][1:])),
        ("something unknown in an old key", lambda h, o: o[0].update(surprise=1)),
    ):
        edited_keys(what, edit, refused="malformed")
    good_text = text(good)
    case("a feature", good_text.replace("features = []", 'features = ["x"]'), refused="newer")
    case("an unknown kind of slot", good_text.replace('"recovery-key"', '"tpm"'), refused="newer")
    case("a mac cut short", text(good, mac[:-1]), refused="malformed")
    case("a mac of zeros", text(good, bytes(32)), refused="tampered")
    case("another header's mac", text(good, r.header_mac(header(revision=6), MASTER)), refused="tampered")
    case("cut off in the last slot", good_text[:-40], refused="malformed")
    case("nothing", "", refused="malformed")
    for one in cases:
        # The reader must judge as it says that a reader must.
        try:
            opened, master = r.unlock(one["text"].encode(), one["kind"], one["secret"])
            if "keys" in one:
                assert r.master_keys(opened, master) == dict(one["keys"]), one["what"]
        except (r.Refused, KeyError, ValueError):
            master = None
        assert master == one.get("master"), one["what"]
    return {"steps": steps, "mac_key": r.header_key(MASTER, VAULT), "canonical": r.canonical(good), "mac": mac, "cases": cases}


# --- keys, frames, pages, chain, pins, recovery keys


def keys():
    salt = noise("segment salt", 16)
    made = []
    for suite in (1, 2):
        for epoch, segment in ((1, 1), (2, 0xFFFF_FFFF_FF)):
            info = b"strongroom segment 1" + bytes([suite]) + VAULT + struct.pack("<QQ", epoch, segment)
            key = r.segment_key(MASTER, suite, VAULT, epoch, segment, salt)
            made.append({"what": f"suite {suite}, epoch {epoch}, segment {segment}", "salt": salt, "info": info, "key": key})
    for suite in (1, 2):
        info = b"strongroom snapshot 1" + bytes([suite]) + VAULT + struct.pack("<QQ", 1, 1)
        key = r.snapshot_key(MASTER, suite, VAULT, 1, 1, salt)
        made.append({"what": f"suite {suite}, epoch 1, snapshot of commit 1", "salt": salt, "info": info, "key": key})
    for purpose in ("root", "index"):
        info = b"strongroom pages 1" + VAULT + bytes([len(purpose)]) + purpose.encode()
        made.append({"what": purpose, "salt": bytes(16), "info": info, "key": r.page_key(MASTER, VAULT, purpose)})
    made.append({"what": "header", "salt": VAULT, "info": b"strongroom header 1", "key": r.header_key(MASTER, VAULT)})
    made.append({"what": "pin", "salt": VAULT, "info": b"strongroom pin 1", "key": r.pin_key(MASTER, VAULT)})
    for what, info, key in (
        ("old key wrap", b"strongroom old key wrap 1", r.old_key_wrap(MASTER, VAULT)),
        ("pin moved", b"strongroom pin moved 1", r.moved_key(MASTER, VAULT)),
    ):
        made.append({"what": what, "salt": VAULT, "info": info, "key": key})
    return {"master": MASTER, "cases": made}


def frames():
    salt, cases = noise("segment salt", 16), []
    words = b"words that repeat, " * 40
    bodies = [(r.DATA, r.RAW, b"hello", b"hello"), (r.DATA, r.LZ4, words, lz4.block.compress(words, store_size=False))]
    position = struct.pack("<Q", 3) + noise("chain", 32)
    bodies.append((r.START, r.RAW, position + b"\0", position + b"\0"))
    for suite in (1, 2):
        for number, (kind, codec, plain, body) in enumerate(bodies):
            place = {"suite": suite, "vault": VAULT, "epoch": 2, "segment": 3, "salt": salt, "slot": 4 + number}
            place |= {"kind": kind, "codec": codec, "plain_len": len(plain)}
            place |= {"inode": 6, "offset": 131072} if kind == r.DATA else {"inode": 0, "offset": 0}
            cases += moved(place, body, plain)
        # A group's directory: one data frame, 21 sealed bytes, in a group of 4096 bytes and no padding.
        directory = b"\x01" + bytes([r.DATA]) + b"\x04" + b"\x15" + b"\x05" + b"\x06" + r.varint(131072)
        place = {"suite": suite, "vault": VAULT, "epoch": 2, "segment": 3, "salt": salt, "slot": 0x80000001}
        place |= {"kind": r.DIRECTORY, "codec": r.RAW, "plain_len": len(directory), "inode": 0, "offset": 4096}
        cases += moved(place, directory, directory)
        # And of a group that was sealed anew: its flags stand for an inode.
        cases += moved(place | {"inode": 1}, directory, directory)[:1]
    return {"master": MASTER, "cases": cases}


def moved(place, body, plain):
    """A frame, and the same elsewhere, changed and cut."""

    def sealed_at(p):
        key = r.segment_key(MASTER, p["suite"], p["vault"], p["epoch"], p["segment"], p["salt"])
        address = r.frame_address(*(p[n] for n in ("vault", "epoch", "segment", "slot", "kind", "codec", "plain_len", "inode", "offset")))
        return r.seal_frame(p["suite"], key, address, p["slot"], body)

    sealed = sealed_at(place)
    what = f"suite {place['suite']}, kind {place['kind']}, codec {place['codec']}"
    cases = [{"what": what, "at": place, "sealed": sealed, "body": body, "plain": plain}]
    elsewhere = {"suite": 3 - place["suite"], "vault": bytes(16), "epoch": 3, "segment": 4, "salt": bytes(16)}
    elsewhere |= {"slot": place["slot"] + 1, "kind": r.RECORDS, "plain_len": len(plain) + 1, "inode": 7, "offset": 8192}
    elsewhere["codec"] = r.ZSTD
    for name, value in elsewhere.items():
        cases.append({"what": f"{what}: another {name}", "at": place | {name: value}, "sealed": sealed, "refused": True})
    for name, bad in (
        ("its first bit turned", bytes([sealed[0] ^ 1]) + sealed[1:]),
        ("its last bit turned", sealed[:-1] + bytes([sealed[-1] ^ 128])),
        ("its tail cut off", sealed[:-1]),
        ("only its tag", sealed[-16:]),
        ("fifteen bytes", sealed[:15]),
        ("a byte behind it", sealed + b"\0"),
    ):
        cases.append({"what": f"{what}: {name}", "at": place, "sealed": bad, "refused": True})
    return cases


def pages():
    mark = {"revision": 5, "mac": noise("mac", 32)}
    path = "/srv/é".encode()
    plain = struct.pack("<QQQ", 7, 2, 3) + noise("chain", 32) + struct.pack("<QBQ", 1, 1, mark["revision"]) + mark["mac"]
    plain += r.varint(len(path)) + path
    plain += bytes(4048 - len(plain))
    nonce, aad = noise("root nonce", 24), b"SRR1\x03\0\0\0"
    key = r.page_key(MASTER, VAULT, "root")
    sealed = r.xchacha_seal(key, nonce, aad, plain)
    image = aad + nonce + sealed
    assert r.open_root(image, MASTER, VAULT)["mac"] == mark["mac"]
    root = {"generation": 7, "epoch": 2, "number": 3, "index_file": 1, "clean": True, "emergency": path.decode()} | mark
    index = b"an index page".ljust(64, b".")
    index_aad = noise("file id", 16) + struct.pack("<Q", 9)
    index_sealed = r.xchacha_seal(r.page_key(MASTER, VAULT, "index"), nonce, index_aad, index)
    cases = [
        {"what": "a root", "purpose": "root", "vault": VAULT, "nonce": nonce, "aad": aad, "sealed": sealed, "plain": plain},
        {"what": "an index page", "purpose": "index", "vault": VAULT, "nonce": nonce, "aad": index_aad, "sealed": index_sealed, "plain": index},
    ]
    for one in cases[:2]:
        for name, value in (
            ("purpose", "index" if one["purpose"] == "root" else "root"),
            ("vault", bytes(16)),
            ("nonce", bytes(24)),
            ("aad", one["aad"][:4] + b"\x02" + one["aad"][5:]),
            ("sealed", one["sealed"][:-1] + b"\0"),
            ("sealed", one["sealed"][1:]),
        ):
            bad = {key: was for key, was in one.items() if key != "plain"}
            cases.append(bad | {"what": f"{one['what']}: another {name}", name: value, "refused": True})
    return {"master": MASTER, "root": root, "cases": cases}


def chain():
    links = [[1, 0, noise("tag 0", 16)], [1, 0x40000000, noise("tag 1", 16)], [2, 5, noise("tag 2", 16)]]
    before = noise("chain", 32)
    value = r.chain_value(before, links)
    others = [links[:2], links[1:], [links[1], links[0], links[2]], [[1, 1, links[0][2]]] + links[1:]]
    others.append([[2, 0, links[0][2]]] + links[1:])
    cases = [{"what": "three frames", "before": before, "links": links, "value": value}]
    cases.append({"what": "the beginning", "before": bytes(32), "links": [], "value": r.chain_value(bytes(32), [])})
    cases += [{"what": "other frames", "before": before, "links": other, "value": value, "refused": True} for other in others]
    cases.append({"what": "another beginning", "before": bytes(32), "links": links, "value": value, "refused": True})
    return {"cases": cases}


def pins():
    def pin(generation, mac=None, vault=VAULT, master=MASTER):
        lines = f"strongroom pin 1\nvault {vault.hex()}\ngeneration {generation}\nepoch 2\ncommit 30\n"
        mac = mac or r.hmac.digest(r.pin_key(master, vault), lines.encode(), "sha256")
        return f"{lines}mac {mac.hex()}\n"

    good = pin(7)
    cases = [{"what": "a pin", "text": good, "generation": 7, "epoch": 2, "commit": 30}]
    for what, bad in (
        ("another generation under its code", pin(8, bytes.fromhex(good[-65:-1]))),
        ("another vault's", pin(7, vault=bytes(16))),
        ("another key's", pin(7, master=bytes(32))),
        ("its last line cut", good[: good.rindex("mac")]),
        ("its newline cut", good[:-1]),
        ("upper case", good.replace("aaaa", "AAAA")),
        ("a leading zero", good.replace("generation 7", "generation 07")),
        ("another version", good.replace("pin 1", "pin 2")),
    ):
        cases.append({"what": what, "text": bad, "refused": True})
    # Behind a pin: that the vault has moved on from a key, said with that key.
    lines = f"strongroom pin moved 1\nvault {VAULT.hex()}\nkey 2\n"
    code = r.hmac.digest(r.moved_key(MASTER, VAULT), lines.encode(), "sha256").hex()
    moved = [{"what": "moved on", "key": 2, "text": f"{good}moved 2 {code}\n"}]
    for what, line in (
        ("another key's number", f"moved 3 {code}\n"),
        ("another code", f"moved 2 {good[-65:-1]}\n"),
        ("cut short", f"moved 2 {code}"),
        ("a leading zero", f"moved 02 {code}\n"),
        ("twice", f"moved 2 {code}\n" * 2),
    ):
        moved.append({"what": what, "key": 2, "text": good + line, "refused": True})
    return {"master": MASTER, "vault": VAULT, "cases": cases, "moved": moved}


def recovery_keys():
    key = SECRETS["recovery key"][1]
    good = r.recovery_text(key)
    groups = good.split("-")
    cases = [
        {"what": what, "text": typed, "key": key}
        for what, typed in (
            ("as printed", good),
            ("lower case", good.lower()),
            ("without gaps", "".join(groups)),
            ("on lines", "\n".join(groups) + "\n"),
            ("lookalikes", good.replace("0", "o").replace("1", "l")),
        )
    ]
    cases.append({"what": "zeros", "text": r.recovery_text(bytes(32)), "key": bytes(32)})
    exchanged = groups[:2] + [groups[3], groups[2]] + groups[4:]
    other = "7" if groups[4][3] != "7" else "8"
    for what, typed, refused in (
        ("two groups exchanged", "-".join(exchanged), "group 3"),
        ("a wrong character", "-".join(groups[:4] + [groups[4][:3] + other + groups[4][4:]] + groups[5:]), "group 5"),
        ("a character left out", "-".join(groups[:7] + [groups[7][:-1]]), "group 8"),
        ("a character that no key has", "-".join(["U" + groups[0][1:]] + groups[1:]), "group 1"),
        ("seven groups", "-".join(groups[:7]), "7"),
        ("nine groups", good + "-" + groups[0], "9"),
        ("nothing", "", "0"),
    ):
        try:
            r.recovery_key(typed)
            raise SystemExit(f"{what}: it was taken")
        except r.Refused as told:
            assert refused in str(told), (what, told)
        cases.append({"what": what, "text": typed, "refused": refused})
    return {"cases": cases}


def main():
    made = {"headers": headers, "keys": keys, "frames": frames, "pages": pages, "chain": chain, "pins": pins}
    made["recovery-keys"] = recovery_keys
    for name, make in made.items():
        with open(os.path.join(sys.argv[1], f"{name}.json"), "w", encoding="utf-8") as file:
            json.dump(shown(make()), file, indent=1, ensure_ascii=False)
            file.write("\n")


if __name__ == "__main__":
    main()
