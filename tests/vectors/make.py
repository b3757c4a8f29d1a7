"""Makes the files in `vectors/` of Crypt4GH, the seal and the hash tree, from their specifications and not from the
node's own code.

Everything is derived from labels, so that making them again gives the same bytes (a test compares).
Run `python tests/vectors/make.py` after adding a case.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

VECTORS = Path(__file__).parents[2] / "vectors"


def derived(label: str, length: int = 32) -> bytes:
    return hashlib.shake_256(label.encode()).digest(length)


def public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


ALICE, BOB, EVE = (derived(name) for name in ("alice", "bob", "eve"))
DATA_KEY, OTHER_KEY = derived("data key"), derived("other data key")


def packet(payload: bytes, reader: bytes, label: str, method: int = 0) -> bytes:
    writer = derived(f"writer {label}")
    nonce = derived(f"nonce {label}", 12)
    secret = X25519PrivateKey.from_private_bytes(writer).exchange(X25519PublicKey.from_public_bytes(public(reader)))
    key = hashlib.blake2b(secret + public(reader) + public(writer)).digest()[:32]
    sealed = public(writer) + nonce + ChaCha20Poly1305(key).encrypt(nonce, payload, None)
    return struct.pack("<II", len(sealed) + 8, method) + sealed


def data_packet(reader: bytes, label: str, key: bytes = DATA_KEY, method: int = 0) -> bytes:
    return packet(struct.pack("<II", 0, method) + key, reader, label)


def edit_packet(reader: bytes, label: str, lengths: list[int], claim: int | None = None) -> bytes:
    count = len(lengths) if claim is None else claim
    return packet(struct.pack(f"<II{len(lengths)}Q", 1, count, *lengths), reader, label)


def header(*packets: bytes, magic: bytes = b"crypt4gh", version: int = 1, claim: int | None = None) -> bytes:
    return magic + struct.pack("<II", version, len(packets) if claim is None else claim) + b"".join(packets)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def header_cases() -> list[dict[str, Any]]:
    one = data_packet(BOB, "1")
    good = header(one)
    opens = {"data_keys": [DATA_KEY.hex()], "edit_list": None}
    broken, locked = {"fault": "fault.format"}, {"fault": "fault.key"}
    low_order = struct.pack("<II", 108, 0) + bytes(32) + derived("low", 68)
    cases: list[tuple[str, bytes, list[bytes], dict[str, Any]]] = [
        ("one recipient", good, [BOB], opens),
        ("the second of our keys fits", good, [ALICE, BOB], opens),
        ("two recipients, the first", header(data_packet(ALICE, "2"), one), [ALICE], opens),
        ("two recipients, the second", header(data_packet(ALICE, "2"), one), [BOB], opens),
        (
            "two data keys",
            header(one, data_packet(BOB, "3", OTHER_KEY)),
            [BOB],
            {"data_keys": [DATA_KEY.hex(), OTHER_KEY.hex()], "edit_list": None},
        ),
        ("the same data key twice", header(one, data_packet(BOB, "3")), [BOB], opens),
        (
            "an edit list",
            header(one, edit_packet(BOB, "4", [10, 65536, 7])),
            [BOB],
            {"data_keys": [DATA_KEY.hex()], "edit_list": [10, 65536, 7]},
        ),
        (
            "an edit list of another reader does not count",
            header(one, edit_packet(ALICE, "4", [1]), edit_packet(ALICE, "5", [2])),
            [BOB],
            opens,
        ),
        ("a packet of an unknown method is ignored", header(packet(b"????", BOB, "6", method=9), one), [BOB], opens),
        ("a packet with a public key of low order is ignored", header(low_order, one), [BOB], opens),
        ("two edit lists", header(one, edit_packet(BOB, "4", [1]), edit_packet(BOB, "5", [2])), [BOB], broken),
        ("an edit list that claims more than it has", header(one, edit_packet(BOB, "4", [1], 2)), [BOB], broken),
        ("an edit list that claims 2^32 - 1", header(one, edit_packet(BOB, "4", [1], 2**32 - 1)), [BOB], broken),
        ("an edit list alone", header(edit_packet(BOB, "4", [1])), [BOB], locked),
        ("not our key", good, [EVE], locked),
        ("no key at all", good, [], locked),
        ("a flipped bit in the ciphertext", flipped(good, len(good) - 20), [BOB], locked),
        ("a flipped bit in the tag", flipped(good, len(good) - 1), [BOB], locked),
        ("a flipped bit in the nonce", flipped(good, 16 + 8 + 32), [BOB], locked),
        ("a flipped bit in the writer's key", flipped(good, 16 + 8), [BOB], locked),
        ("an unknown packet type", header(packet(struct.pack("<II", 7, 0), BOB, "7"), one), [BOB], broken),
        ("an unknown data method", header(data_packet(BOB, "8", method=1)), [BOB], broken),
        ("a data key that is too short", header(data_packet(BOB, "9", DATA_KEY[:31])), [BOB], broken),
        ("a data key that is too long", header(data_packet(BOB, "9", DATA_KEY + b"x")), [BOB], broken),
        ("wrong magic", header(one, magic=b"crypt4gH"), [BOB], broken),
        ("version 0", header(one, version=0), [BOB], broken),
        ("version 2", header(one, version=2), [BOB], broken),
        ("no packets", header(), [BOB], broken),
        ("one packet claimed too many", header(one, claim=2), [BOB], broken),
        ("one packet claimed too few", header(one, data_packet(BOB, "3"), claim=1), [BOB], broken),
        ("2^32 - 1 packets claimed", header(one, claim=2**32 - 1), [BOB], broken),
        ("a packet of 2^32 - 1 bytes claimed", header(struct.pack("<I", 2**32 - 1) + one[4:]), [BOB], broken),
        ("a packet of no bytes claimed", header(struct.pack("<I", 0) + one[4:]), [BOB], broken),
        ("a packet of three bytes claimed", header(struct.pack("<I", 3) + one[4:]), [BOB], broken),
        ("a packet without room for a payload", header(struct.pack("<I", 68) + one[4:68]), [BOB], broken),
        ("truncated by a byte", good[:-1], [BOB], broken),
        ("truncated in the preamble", good[:15], [BOB], broken),
        ("empty", b"", [BOB], broken),
        ("a byte follows", good + b"x", [BOB], broken),
    ]
    return [
        {"name": name, "header": data.hex(), "private_keys": [key.hex() for key in keys], "expect": expect}
        for name, data, keys, expect in cases
    ]


def segment(plain: bytes, label: str, key: bytes = DATA_KEY) -> bytes:
    nonce = derived(f"segment {label}", 12)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, None)


def file_cases() -> list[dict[str, Any]]:
    """Whole files of one short segment: larger ones are made from these by the tests."""
    top = header(data_packet(BOB, "1"))
    plain = b"the quick brown fox"
    body = segment(plain, "1")
    both = header(data_packet(BOB, "1"), data_packet(BOB, "3", OTHER_KEY))
    cases: list[tuple[str, bytes, dict[str, Any]]] = [
        ("short", top + body, {"plain": plain.hex()}),
        ("empty", top, {"plain": ""}),
        ("one byte", top + segment(b"x", "2"), {"plain": b"x".hex()}),
        ("sealed under the second data key", both + segment(plain, "3", OTHER_KEY), {"plain": plain.hex()}),
        ("sealed under no data key of the header", top + segment(plain, "3", OTHER_KEY), {"fault": "fault.integrity"}),
        ("a flipped bit in the segment", top + flipped(body, 15), {"fault": "fault.integrity"}),
        ("a flipped bit in the nonce", top + flipped(body, 0), {"fault": "fault.integrity"}),
        ("a flipped bit in the tag", top + flipped(body, len(body) - 1), {"fault": "fault.integrity"}),
        ("a segment cut short", top + body[:-1], {"fault": "fault.integrity"}),
        ("a segment of 28 bytes", top + segment(b"", "4"), {"fault": "fault.format"}),
        ("a segment of 27 bytes", top + body[:27], {"fault": "fault.format"}),
        ("a segment of one byte", top + body[:1], {"fault": "fault.format"}),
        ("it ends in the header", top[:-10], {"fault": "fault.format"}),
        (
            "an edit list",
            header(data_packet(BOB, "1"), edit_packet(BOB, "4", [4, 5])) + body,
            {"fault": "fault.format"},
        ),
        ("no Crypt4GH file", b"BAM\1" + bytes(200), {"fault": "fault.format"}),
        ("nothing", b"", {"fault": "fault.format"}),
    ]
    return [
        {"name": name, "file": data.hex(), "private_key": BOB.hex(), "expect": expect} for name, data, expect in cases
    ]


def pair(number: int) -> bytes:
    return hashlib.sha256(struct.pack(">Q", number)).digest()[:28]


def tree(leaves: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, over leaf hashes."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + tree(leaves[:split]) + tree(leaves[split:])).digest()


def root(pairs: list[bytes], size: int) -> bytes:
    leaves = [hashlib.sha256(b"\0" + b"".join(pairs[at : at + 64])).digest() for at in range(0, len(pairs), 64)]
    return hashlib.sha256(b"\2valv-seal-v1" + struct.pack(">QQ", len(pairs), size) + tree(leaves)).digest()


def seal_cases() -> list[dict[str, Any]]:
    cases = []
    for count, last in ((0, 0), (1, 1), (1, 65536), (2, 1), (63, 9), (64, 65536), (65, 1), (128, 7), (129, 7)):
        cases.append((count, last))
    cases += [(192, 65536), (193, 1), (320, 5), (448, 5), (449, 5), (1000, 40_000), (5000, 65535)]
    found = []
    for count, last in cases:
        size = max(0, count - 1) * 65536 + last
        sealed = root([pair(number) for number in range(count)], size)
        found.append({"segments": count, "plain_size": size, "root": sealed.hex()})
    return found


def tree_root(hashes: list[bytes], stored: int) -> bytes:
    leaves = [hashlib.sha256(b"\0" + b"".join(hashes[at : at + 64])).digest() for at in range(0, len(hashes), 64)]
    return hashlib.sha256(b"\2valv-tree-v1" + struct.pack(">QQ", len(hashes), stored) + tree(leaves)).digest()


def tree_root_cases() -> list[dict[str, Any]]:
    """Hash *i* is SHA-256 over *i*: the shape of the tree, without bodies."""
    found = []
    for count, last in (
        (0, 0),
        (1, 29),
        (1, 65564),
        (2, 29),
        (64, 65564),
        (65, 30),
        (128, 99),
        (193, 65564),
        (449, 40),
    ):
        stored = max(0, count - 1) * 65564 + last
        hashes = [hashlib.sha256(struct.pack(">Q", number)).digest() for number in range(count)]
        found.append({"segments": count, "stored_bytes": stored, "root": tree_root(hashes, stored).hex()})
    return found


def tree_body_cases() -> list[dict[str, Any]]:
    """The body is so many bytes of SHAKE-256 over "body"."""
    found = []
    for stored in (29, 1000, 65564, 65564 + 29, 3 * 65564, 3 * 65564 + 4321):
        body = derived("body", stored)
        hashes = [blake3(body[at : at + 65564]).digest() for at in range(0, stored, 65564)]
        listed = [one.hex() for one in hashes]
        found.append({"stored_bytes": stored, "hashes": listed, "root": tree_root(hashes, stored).hex()})
    return found


def contents() -> dict[str, str]:
    """Each vector file's text, by its path in `vectors`."""
    made = {
        "crypt4gh/headers.json": header_cases(),
        "crypt4gh/files.json": file_cases(),
        "seal/roots.json": seal_cases(),
        "hashtree/roots.json": tree_root_cases(),
        "hashtree/bodies.json": tree_body_cases(),
    }
    return {path: json.dumps(cases, indent=1) + "\n" for path, cases in made.items()}


if __name__ == "__main__":
    for path, text in contents().items():
        target = VECTORS / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
