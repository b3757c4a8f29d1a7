"""Makes the files in `vectors/custody` from docs/formats/orders.md, and not from the node's own code.

All but the words of the shares is derived from labels, so that making them again gives the same bytes (a test
compares). The words were made once with the reference implementation of SLIP-39. Run
`python tests/vectors/make_custody.py` after adding a case.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from base64 import b64encode
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

VECTORS = Path(__file__).parents[2] / "vectors"
NODE = "node.example"
NAMES = ("anna", "bo", "eva")
KEY = "version-abcdefgh"
WORDS = (
    "testify spend academic acid already victim primary puny leaf frozen exact orbit smith obesity twin nail float"
    " husky laden obtain regret humidity income program valuable cargo kernel blue nylon glen profile material tidy",
    "testify spend academic agency advocate bracelet hobo custody swimming vexed ending depict headset quarter intimate"
    " aspect indicate idea black change material solution syndrome desert platform ranked artist peasant render index"
    " deadline vampire born",
    "testify spend academic always award inform diagnose timber counter marathon float pink diet mental shrimp pencil"
    " beam quick profile triumph glimpse family density omit teammate skin music laden style elder reward cleanup"
    " election",
)
"""Three shares of which two give the secret `derived("recovery key")`."""


def derived(label: str, length: int = 32) -> bytes:
    return hashlib.shake_256(label.encode()).digest(length)


def text64(data: bytes) -> str:
    return b64encode(data).decode()


# --- officers ---


def private(name: str) -> bytes:
    return derived(f"officer {name}")


def public(key: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()


def seed(key: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) without salt, 32 bytes: one block."""
    extracted = hmac.digest(bytes(32), key, "sha256")
    return hmac.digest(extracted, b"valv officer 1 orders\x01", "sha256")


def signing(key: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seed(key))


def key_id(name: str, verifying: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n\x01" + verifying).digest()[:4]


def verifier(name: str, key: Ed25519PrivateKey) -> str:
    verifying = key.public_key().public_bytes_raw()
    return f"{name}+{key_id(name, verifying).hex()}+{text64(bytes([1]) + verifying)}"


def line(name: str) -> str:
    return f"{name} {public(private(name)).hex()} {verifier(name, signing(private(name)))}"


def officers() -> list[dict[str, str]]:
    return [
        {"name": name, "private": private(name).hex(), "sign_seed": seed(private(name)).hex(), "line": line(name)}
        for name in NAMES
    ]


# --- orders and minutes ---


def signature(name: str, key: Ed25519PrivateKey, text: str) -> str:
    blob = key_id(name, key.public_key().public_bytes_raw()) + key.sign(text.encode())
    return f"\u2014 {name} {text64(blob)}\n"


def signed(text: str, *names: str) -> str:
    return text + "\n" + "".join(signature(name, signing(private(name)), text) for name in names)


def order(deed: str, *lines: str, ident: str = "0011") -> str:
    head = ["valv order 1", f"node: {NODE}", f"order: {ident}", "at: 2026-11-23T18:00:00Z", f"do: {deed}"]
    return "".join(f"{one}\n" for one in (*head, *lines))


CEREMONY = order("ceremony", "threshold: 2", "persons: 2", *(f"officer: {line(name)}" for name in NAMES))
DESTROY = order("destroy", f"key: {KEY}", "key: version-ijklmnop", "reason: Withdrawn by the donors.", ident="0022")
DRILL, RECOVER = order("drill"), order("recover")


def orders() -> list[dict[str, Any]]:
    """`fields`: what a good one says; None for one that must be refused."""
    common = {"node": NODE, "at": "2026-11-23T18:00:00Z"}
    ceremony = {"order": "0011", "do": "ceremony", "threshold": 2, "persons": 2, "officers": list(NAMES)}
    destroy = {"order": "0022", "do": "destroy", "reason": "Withdrawn by the donors."}
    good: list[tuple[str, str, dict[str, Any]]] = [
        ("a ceremony", CEREMONY, ceremony),
        ("a destruction", DESTROY, destroy | {"keys": [KEY, "version-ijklmnop"]}),
        ("a drill", DRILL, {"order": "0011", "do": "drill"}),
        ("a recovery", RECOVER, {"order": "0011", "do": "recover"}),
    ]
    bad = [
        ("nothing", ""),
        ("another version", DRILL.replace("order 1", "order 2")),
        ("no last line break", DRILL.removesuffix("\n")),
        ("an empty line", DRILL + "\n"),
        ("an unknown deed", order("pause")),
        ("an unknown line", DRILL + "note: x\n"),
        ("a line of another deed", DRILL + f"key: {KEY}\n"),
        ("a line twice", DRILL + "do: drill\n"),
        ("lines in another order", DRILL.replace(f"node: {NODE}\norder: 0011\n", f"order: 0011\nnode: {NODE}\n")),
        ("two spaces after a colon", DRILL.replace("do: ", "do:  ")),
        ("a space at the end of a line", DRILL.replace("0011", "0011 ")),
        ("a time with a fraction", DRILL.replace("00Z", "00.5Z")),
        ("a time of another zone", DRILL.replace("00Z", "00+01:00")),
        ("a number with a zero before it", CEREMONY.replace("threshold: 2", "threshold: 02")),
        ("an officer whose verifier key is another's", CEREMONY.replace(" anna+", " bo+", 1)),
        ("a control character", DESTROY.replace("donors", "don\tors")),
        ("a character that turns the direction of writing", DESTROY.replace("donors", "don\u202eors")),
        ("no node", DRILL.replace(f"node: {NODE}\n", "")),
        ("a key with a slash", DESTROY.replace(KEY, "../x")),
    ]
    found: list[dict[str, Any]] = [{"case": case, "text": text, "fields": common | more} for case, text, more in good]
    return found + [{"case": case, "text": text, "fields": None} for case, text in bad]


def notes() -> list[dict[str, Any]]:
    """`signed_by`: officers whose signatures are right."""
    both = signed(DESTROY, "anna", "eva")
    return [
        {"case": "two officers", "note": both, "signed_by": ["anna", "eva"]},
        {"case": "one officer", "note": signed(DESTROY, "bo"), "signed_by": ["bo"]},
        {"case": "a word changed", "note": both.replace("donors", "Donors"), "signed_by": []},
        {"case": "signatures of another order", "note": DRILL + both.removeprefix(DESTROY), "signed_by": []},
        {
            "case": "a name on another's signature",
            "note": signed(DESTROY, "anna").replace("\u2014 anna", "\u2014 eva"),
            "signed_by": [],
        },
    ]


def minutes() -> list[dict[str, Any]]:
    key = Ed25519PrivateKey.from_private_bytes(derived("ledger key"))
    inner = signed(DESTROY, "anna", "eva")
    head = ["valv minutes 1", f"node: {NODE}", "done: 2026-11-23T18:00:04Z", "generation: 4", "signed: anna eva"]
    indented = [f"  {one}" if one else "" for one in inner.removesuffix("\n").split("\n")]
    text = "".join(f"{one}\n" for one in (*head, "order:", *indented))
    told = {"node": NODE, "done": "2026-11-23T18:00:04Z", "generation": 4, "signed": ["anna", "eva"], "order": inner}
    note = f"{text}\n{signature(NODE, key, text)}"
    return [{"case": "a destruction", "log_key": verifier(NODE, key), "minutes": note, "fields": told}]


# --- shares ---


def sealed(words: str, name: str) -> bytes:
    """A Crypt4GH file of one segment."""
    writer, nonce = derived(f"writer {name}"), derived(f"nonce {name}", 12)
    reader, data_key = public(private(name)), derived(f"data key {name}")
    secret = X25519PrivateKey.from_private_bytes(writer).exchange(X25519PublicKey.from_public_bytes(reader))
    shared = hashlib.blake2b(secret + reader + public(writer)).digest()[:32]
    packet = public(writer) + nonce + ChaCha20Poly1305(shared).encrypt(nonce, bytes(8) + data_key, None)
    header = b"crypt4gh" + struct.pack("<II", 1, 1) + struct.pack("<II", len(packet) + 8, 0) + packet
    inside = derived(f"segment nonce {name}", 12)
    return header + inside + ChaCha20Poly1305(data_key).encrypt(inside, words.encode(), None)


def shares() -> list[dict[str, Any]]:
    return [
        {
            "threshold": 2,
            "secret": derived("recovery key").hex(),
            "shares": [
                {"officer": name, "words": words, "sealed": text64(sealed(words, name))}
                for name, words in zip(NAMES, WORDS, strict=True)
            ],
        }
    ]


# --- the key backup ---


def wrapped(secret: bytes, context: bytes, label: str) -> str:
    nonce = derived(f"wrap {label}", 12)
    return text64(nonce + ChaCha20Poly1305(derived("recovery key")).encrypt(nonce, secret, context))


def context(*parts: Any) -> bytes:
    plain = [text64(part) if isinstance(part, bytes) else part for part in parts]
    return b"valv key store 1 " + json.dumps(plain, separators=(",", ":")).encode()


def authentic(name: str, content: Any) -> str:
    text = json.dumps(content, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).digest()
    return f'{{"content":{text},"seal":"{wrapped(digest, context("file", name), name)}"}}'


def backup() -> list[dict[str, Any]]:
    intake, log = derived("intake key"), Ed25519PrivateKey.from_private_bytes(derived("ledger key"))
    log_public = log.public_key().public_bytes_raw()
    bound = (NODE, public(intake), log_public)
    node = {
        "name": NODE,
        "intake_public": text64(public(intake)),
        "log_public": text64(log_public),
        "intake_wrapped": wrapped(intake, context("node", "intake", *bound), "intake"),
        "log_wrapped": wrapped(derived("ledger key"), context("node", "ledger", *bound), "log"),
    }
    pairs = [derived("pair 1"), derived("pair 2")]
    stated = ("key", KEY, "identifiable", False, 3, *(x for n, k in enumerate(pairs, 1) for x in (n, public(k))))
    record = {
        "key_id": KEY,
        "key_class": "identifiable",
        "confirmed": False,
        "version": 3,
        "pairs": [
            {"number": n, "public": text64(public(k)), "wrapped": wrapped(k, context(*stated, n), f"pair {n}")}
            for n, k in enumerate(pairs, 1)
        ],
    }
    index = {"generation": 4, "versions": {KEY: 3}, "destroyed": ["version-ijklmnop"]}
    empty = {"size": 0, "root": text64(hashlib.sha256(b"").digest())}
    given = {"threshold": 2, "shares": {s["officer"]: s["sealed"] for s in shares()[0]["shares"]}, "wrapped": ""}
    files = {
        "node.json": json.dumps(node),
        "index.json": authentic("index.json", index),
        "checkpoint.json": authentic("checkpoint.json", empty),
        "custody.json": authentic("custody.json", []),
        "recovery.json": json.dumps(given),
        f"keys/{KEY}.json": json.dumps(record),
    }
    return [
        {
            "recovery_key": derived("recovery key").hex(),
            "files": files,
            "intake": intake.hex(),
            "ledger": derived("ledger key").hex(),
            "keys": {KEY: [key.hex() for key in reversed(pairs)]},
            "destroyed": ["version-ijklmnop"],
        }
    ]


def contents() -> dict[str, str]:
    """Each vector file's text, by its path in `vectors`."""
    made: dict[str, Any] = {
        "custody/officers.json": officers(),
        "custody/orders.json": orders(),
        "custody/notes.json": notes(),
        "custody/minutes.json": minutes(),
        "custody/shares.json": shares(),
        "custody/backup.json": backup(),
    }
    return {path: json.dumps(cases, indent=1) + "\n" for path, cases in made.items()}


if __name__ == "__main__":
    for path, text in contents().items():
        target = VECTORS / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
