"""What is fuzzed: each parser that reads bytes from outside, as one function of bytes.

A target returns, or raises a `Fault` that says what is wrong with the input; anything else is a finding, an
`InternalFault` too. `TARGETS` makes each target and its seeds, the seeds from `vectors/` where there are any.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tests.fuzz import services
from tests.keys.officers import People, ordered
from valv.core import custody
from valv.errors import Fault, InternalFault
from valv.formats import (
    crypt4gh,
    duo,
    edit_list,
    keyfile,
    ledger,
    minutes,
    note,
    officer,
    order,
    participants,
    seal,
    shares,
)
from valv.formats.crypt4gh import CIPHER_SEGMENT, OVERHEAD, SEGMENT
from valv.keys import recovery
from valv.keys.file import SecretRoot
from valv.keys.memory import Secret
from valv.keys.orders import sign_minutes
from valv.vault import fuse_wire
from valv.vault.reader import SealedReader

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "vectors"

Made = tuple[Callable[[bytes], None], Sequence[bytes]]

_CASES = json.loads((VECTORS / "crypt4gh/headers.json").read_text())
_KEYS = sorted({bytes.fromhex(key) for case in _CASES for key in case["private_keys"]})
_WRITER, _READER, _KEY = bytes(range(32)), bytes(range(1, 33)), bytes(range(2, 34))


def tried(parse: Callable[..., Any], *args: Any) -> Any:
    """What `parse` gives, None where it refuses its input by a fault."""
    try:
        return parse(*args)
    except InternalFault:
        raise
    except Fault as fault:
        assert str(fault)
        return None


def _header() -> Made:
    def run(data: bytes) -> None:
        length = crypt4gh.header_length(data)
        assert length is None or 16 <= length <= min(len(data), crypt4gh.MAX_HEADER)
        crypt4gh.open_header(data, _KEYS)

    return run, [bytes.fromhex(case["header"]) for case in _CASES]


class _Packets:
    """Headers whose packets open with our key, so that the fuzzer reaches what lies inside them."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        self._writer = crypt4gh.public_key(_WRITER)
        key = crypt4gh._packet_key(
            X25519PrivateKey.from_private_bytes(_WRITER),
            crypt4gh.public_key(_READER),
            reader=crypt4gh.public_key(_READER),
            writer=self._writer,
        )
        self._aead = ChaCha20Poly1305(key)

    def header(self, payloads: Sequence[bytes]) -> bytes:
        packets = b""
        for payload in payloads:
            sealed = self._writer + bytes(12) + self._aead.encrypt(bytes(12), payload, None)
            packets += (len(sealed) + 8).to_bytes(4, "little") + bytes(4) + sealed
        return b"crypt4gh" + (1).to_bytes(4, "little") + len(payloads).to_bytes(4, "little") + packets


def _split(data: bytes) -> list[bytes]:
    """Pieces, each after its length in one byte."""
    pieces = []
    while data:
        pieces.append(data[1 : 1 + data[0]])
        data = data[1 + data[0] :]
    return pieces


def _joined(*pieces: bytes) -> bytes:
    return b"".join(bytes([len(piece)]) + piece for piece in pieces)


_DATA = bytes(8) + _KEY


def _edit(count: int, *lengths: int) -> bytes:
    numbers = b"".join(length.to_bytes(8, "little") for length in lengths)
    return (1).to_bytes(4, "little") + count.to_bytes(4, "little") + numbers


def _packets() -> Made:
    packets = _Packets()

    def run(data: bytes) -> None:
        opened = crypt4gh.open_header(packets.header(_split(data)[:20]), [_READER])
        again = crypt4gh._build(opened.data_keys, [crypt4gh.public_key(_READER)], opened.edit_list)
        assert crypt4gh.open_header(again, [_READER]) == opened
        spans = edit_list.spans(opened.edit_list)
        assert edit_list.spans(edit_list.lengths(spans)) == spans
        assert edit_list.cut(spans, 0, None) == spans

    edits = [_edit(2, 1, 2), _edit(0), _edit(2**32 - 1, 1), _edit(1, 2**64 - 1), _edit(3, 0, 0, 65536)]
    others = [_DATA[:8], bytes([0, 0, 0, 0, 9, 0, 0, 0]) + _KEY, bytes([7]) + bytes(40), b""]
    return run, [_joined(_DATA), *(_joined(_DATA, one) for one in edits), *(_joined(_DATA, one) for one in others)]


def _keyfile() -> Made:
    def run(data: bytes) -> None:
        text = data.decode("latin-1")
        for read in (keyfile.read_public, keyfile.is_locked, lambda one: keyfile.read_private(one, lambda: "pass")):
            tried(read, text)

    plain = keyfile.write_private(_READER, comment="a comment")
    locked = keyfile.write_private(_READER, "pass")
    named = locked.replace("PRIVATE", "ENCRYPTED PRIVATE")
    texts = [plain, locked, named, keyfile.write_public(_KEY), _old(b"bcrypt", 1), _old(b"pbkdf2_hmac_sha256", 1000)]
    return run, [text.encode() for text in texts]


def _old(kdf: bytes, rounds: int) -> str:
    strings = [kdf, rounds.to_bytes(4, "big") + bytes(16), b"chacha20_poly1305", bytes(60)]
    return keyfile._wrap(b"c4gh-v1" + b"".join(len(one).to_bytes(2, "big") + one for one in strings), "PRIVATE")


class _Memory:
    """A stored body."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    @property
    def size(self) -> int:
        return len(self._data)

    def pread_into(self, target: memoryview, offset: int) -> int:
        piece = self._data[offset : offset + len(target)]
        target[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        pass


def _seal() -> Made:
    """A sidecar and a body against a record: the first 8 bytes say the size, the 9th how many bytes are pairs."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    sealed = bytes(12) + ChaCha20Poly1305(_KEY).encrypt(bytes(12), b"what is sealed", None)
    root = seal.seal_root(sealed[:12] + sealed[-16:], 14)

    def run(data: bytes) -> None:
        size, cut = int.from_bytes(data[:8], "big"), 9 + 28 * int.from_bytes(data[8:9], "big")
        pairs, body = data[9:cut], data[cut:]
        own = seal.seal_root(pairs, size)
        assert len(own) == 32
        for known in (root, own):
            reader = tried(SealedReader, _Memory(body), pairs, known, size, [_KEY])
            if reader is not None:
                assert tried(reader.read, 0, 1 << 20) in (None, b"", b"what is sealed")

    good = (14).to_bytes(8, "big") + b"\1" + sealed[:12] + sealed[-16:] + sealed
    two = (SEGMENT + 1).to_bytes(8, "big") + b"\2" + bytes(56) + bytes(CIPHER_SEGMENT + OVERHEAD + 1)
    return run, [good, two, bytes(9), (2**64 - 1).to_bytes(8, "big") + bytes(40)]


def _note() -> Made:
    cases = json.loads((VECTORS / "note/checkpoint.json").read_text())["cases"]

    def run(data: bytes) -> None:
        vkey, _, text = data.decode("utf-8", "surrogateescape").partition("\n")
        key = tried(note.read_verifier_key, vkey)
        if key is None:
            vkey = cases[0]["verifier_keys"][0]
        else:
            assert note.verifier_key(key[0], key[2]) == vkey
        signed, signatures = tried(note.read, text) or (text, [])
        assert len(signatures) <= note.MAX_SIGNATURES
        checkpoint = tried(note.Checkpoint.decode, signed)
        assert checkpoint is None or checkpoint.encode() == signed
        note.verify(text, vkey)

    return run, [f"{case['verifier_keys'][0]}\n{case['note']}".encode("utf-8", "surrogatepass") for case in cases]


def _ledger() -> Made:
    cases = json.loads((VECTORS / "merkle/ledger.json").read_text())["cases"]

    def run(data: bytes) -> None:
        chain = ledger.Chain()
        for line in data.split(b"\n"):
            plain = tried(ledger.canonical_data, line)
            assert plain is None or ledger.canonical_data(plain) == plain
            chain.add(line)

    return run, ["\n".join(case["lines"]).encode("utf-8", "surrogatepass") for case in cases]


def _participants() -> Made:
    def run(data: bytes) -> None:
        found = participants.parse(data)
        assert len({one.pseudonym for one in found}) == len(found)

    head = "\t".join(participants.COLUMNS)
    rows = ["", "P-1\tmain\ta.vcf;b.dcm\tHG00096", "P-1\tmain\t\t\nP-1\tmain\t\t", "P-1\tmain", "\r\n\u2028\t\t\t"]
    return run, [f"{head}\n{row}\n".encode() for row in rows] + [
        b"\xef\xbb\xbfpseudonym\tconsent_group\nx\ty\n",
        b"\xff",
    ]


def _duo() -> Made:
    def run(data: bytes) -> None:
        texts = data.decode("utf-8", "surrogateescape").split("\n")
        for statement in duo.parse_consent(texts):
            assert duo.parse(str(statement)) == statement
            assert statement.short and statement.sentence

    cases = json.loads((VECTORS / "duo/syntax.json").read_text())["cases"]
    return run, [f"GRU\n{case['text']}".encode() for case in cases]


def _order() -> Made:
    """An order, and its signatures if it has any."""
    people = People("anna", "bo")
    orders = [
        ordered("ceremony", officers=people.named("anna", "bo"), threshold=2, persons=1),
        ordered("destroy", key_ids=("ds-1", "ds-2"), reason="withdrawn"),
        ordered("drill"),
        ordered("recover"),
    ]
    keys = [people[name].sign_key for name in ("anna", "bo")]

    def run(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        wanted = tried(order.decode, text)
        if wanted is not None:
            assert wanted.encode() == text and text.replace("\n", "").isprintable()
        told = tried(minutes.read, text)
        if told is not None:
            assert told.wanted == order.decode(note.read(told.order)[0])
        signed = tried(note.read, text)
        if signed is not None and tried(order.decode, signed[0]) is not None:
            assert text in signed_before or tried(note.verify, text, *keys) is None

    signed_before = [people.signed(one, "anna", "bo") for one in orders]
    event = custody.DrillHeld(at=orders[0].at, generation=2, signers=("anna", "bo"))
    told = sign_minutes("valv.example", bytes(32), event, signed_before[1])
    return run, [text.encode() for text in (*signed_before, *(one.encode() for one in orders), told)]


def _officer() -> Made:
    def run(data: bytes) -> None:
        line = data.decode("utf-8", "surrogateescape")
        made = officer.Officer.read(line)
        assert made.written == line.removesuffix("\n") and made.name.isascii() and len(made.sign_public) == 32

    lines = [People(name)[name].written for name in ("anna", "b.o-2", "x" * 64)]
    return run, [*(line.encode() for line in lines), f"{lines[0]}\n".encode(), b"anna  +", b""]


def _shares() -> Made:
    """A sealed share, and words, one share to a line."""
    words = shares.split(_KEY, 2, 3)

    def run(data: bytes) -> None:
        opened = tried(shares.unseal, data, _READER)
        assert opened is None or tried(shares.combine, [opened]) is None
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        for line in lines[:16]:
            tried(shares.check, line)
        found = tried(shares.combine, lines[:16])
        assert found is None or found == _KEY

    sealed = [shares.seal(one, crypt4gh.public_key(_READER)) for one in (words[0], "", "x" * 500)]
    texts = [words[0], "\n".join(words[:2]), "\n".join(words), f"{words[0]}\n{words[0].upper()}", "academic acid"]
    return run, [*sealed, sealed[0][:-20], *(text.encode() for text in texts)]


def _share_files() -> Made:
    """`recovery.json` and `unseal.json` of a key folder or a place of the key backup."""
    people = People("anna", "bo")
    root = SecretRoot(Secret(_KEY))
    folder = Path(tempfile.mkdtemp(prefix="valv-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    given = recovery.Recovery.deal(people.named("anna", "bo"), 2, root)
    unsealing = recovery.Unsealing.deal(people.named("anna", "bo"), 2, b"a passphrase")
    words = [people.opened(unsealing.shares[name], name) for name in ("anna", "bo")]

    def run(data: bytes) -> None:
        for name, read in ((recovery.FILE, recovery.read), (recovery.UNSEAL, recovery.read_unsealing)):
            (folder / name).write_bytes(data)
            found = tried(read, folder)
            (folder / name).unlink()
            if isinstance(found, recovery.Recovery):
                tried(found.key, root)
                tried(found.check, words, root)
            if isinstance(found, recovery.Unsealing):
                assert tried(found.passphrase, words) in (None, b"a passphrase")

    files = [msgspec.json.encode(given), given.outside(), msgspec.json.encode(unsealing)]
    return run, [*files, b"{}", b"[]", b"null", files[0].replace(b"2", b"-1")]


def _fuse() -> Made:
    parsers: list[Callable[[memoryview], Any]] = [
        fuse_wire.parse_init,
        fuse_wire.parse_open,
        fuse_wire.parse_read,
        fuse_wire.parse_access,
        fuse_wire.parse_name,
    ]

    def run(data: bytes) -> None:
        request = fuse_wire.parse_request(memoryview(data))
        for parse in parsers:
            tried(parse, request.data)

    return run, [bytes(40), bytes(40) + b"name\0", bytes(104), bytes(39), b""]


TARGETS: dict[str, Callable[[], Made]] = {
    "crypt4gh_header": _header,
    "crypt4gh_packets": _packets,
    "keyfile": _keyfile,
    "seal": _seal,
    "note": _note,
    "ledger": _ledger,
    "participants": _participants,
    "duo": _duo,
    "multipart": services.multipart,
    "order": _order,
    "officer": _officer,
    "shares": _shares,
    "share_files": _share_files,
    "fuse": _fuse,
    "keyd_frames": services.keyd_frames,
    "keyd": services.keyd,
}


def made(name: str) -> Made:
    target, seeds = TARGETS[name]()
    return lambda data: tried(target, data), seeds


def found(name: str) -> Iterator[tuple[str, bytes]]:
    """What earlier runs have found: its name and the input."""
    for path in sorted((Path(__file__).parent / "found").glob(f"{name}-*.hex")):
        yield path.stem, bytes.fromhex(path.read_text())
