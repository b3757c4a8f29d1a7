"""Encrypting, taking, sealing and reading: round trips, other implementations, and every way to tamper."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valv.errors import Fault, FormatFault, FullFault, InputFault, IntegrityFault, KeyFault, MissingFault
from valv.formats import crypt4gh, keyfile
from valv.formats.crypt4gh import CIPHER_SEGMENT, SEGMENT, KeyPair, build_header, generate_keypair, open_header
from valv.formats.hashtree import hashes, tree_root
from valv.formats.seal import seal_root, sidecar, split
from valv.ports.storage import Place
from valv.storage.local import LocalStorage
from valv.vault.encrypt import Encryptor, Sealed
from valv.vault.reader import SealedReader, open_reader
from valv.vault.take import Taken, Taker, check

ROOT = Path(__file__).parents[2]
SIZES = (0, 1, 100, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, 64 * SEGMENT, 64 * SEGMENT + 1, 9_000_001)


@pytest.fixture
def store(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store", Place("SE", "test"))


def foreign_data() -> Path:
    folder = Path(os.environ.get("VALV_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


def encrypt(store: LocalStorage, name: str, plain: bytes, public: bytes, step: int = 1_000_003) -> Sealed:
    encryptor = Encryptor(store.writer(name), store.writer(sidecar(name)), public)
    for at in range(0, len(plain), step):
        encryptor.write(memoryview(plain)[at : at + step])
    return encryptor.finish()


def take(store: LocalStorage, name: str, stream: bytes, step: int = 1_000_003) -> Taken:
    taker = Taker(store.writer(name), store.writer(sidecar(name)))
    try:
        for at in range(0, len(stream), step):
            taker.write(memoryview(stream)[at : at + step])
        return taker.finish()
    except Fault:
        taker.abort()
        raise


def stored(store: LocalStorage, name: str) -> bytes:
    body = store.open(name)
    data = bytearray(body.size)
    body.pread_into(data, 0)
    body.close()
    return bytes(data)


def reader(store: LocalStorage, name: str, sealed: Sealed | Taken, keys: KeyPair) -> SealedReader:
    return open_reader(store.open, name, sealed.header, keys.private, size=sealed.size, seal_root=sealed.seal_root)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_encrypted_comes_back(store: LocalStorage, size: int) -> None:
    keys, plain = generate_keypair(), random.Random(size).randbytes(size)
    sealed = encrypt(store, "body", plain, keys.public)
    body = stored(store, "body")
    assert sealed.size == size
    assert sealed.cipher_size == len(body) == crypt4gh.cipher_size(size)
    assert 60 * sealed.segments == len(stored(store, "body.seal"))
    assert sealed.sha256 == hashlib.sha256(plain).digest()
    assert sealed.tree_root == tree_root(hashes(body), len(body))
    opened = reader(store, "body", sealed, keys)
    assert opened.read(0, size + 10) == plain
    assert b"".join(opened.chunks()) == plain
    assert b"".join(opened.chunks(size // 3, size // 2)) == plain[size // 3 : size // 2]
    assert check(opened) == sealed.sha256
    opened.close()


def test_no_nonce_and_no_data_key_comes_twice(store: LocalStorage) -> None:
    keys = generate_keypair()
    files = [encrypt(store, f"b{n}", bytes(70 * SEGMENT), keys.public) for n in range(2)]
    pairs = b"".join(split(stored(store, f"b{n}.seal"))[0] for n in range(2))
    assert len({pairs[at : at + 12] for at in range(0, len(pairs), 28)}) == 140
    assert len({open_header(file.header, [keys.private]).data_keys for file in files}) == 2


@pytest.mark.parametrize("size", SIZES)
def test_the_reference_library_reads_what_we_write(store: LocalStorage, size: int) -> None:
    lib = pytest.importorskip("crypt4gh.lib")
    keys, plain = generate_keypair(), random.Random(size).randbytes(size)
    sealed = encrypt(store, "body", plain, keys.public)
    out = io.BytesIO()
    lib.decrypt([(0, keys.private, None)], io.BytesIO(sealed.header + stored(store, "body")), out)
    assert out.getvalue() == plain


@pytest.mark.parametrize("size", SIZES)
def test_what_the_reference_library_writes_is_taken_as_it_is(store: LocalStorage, size: int) -> None:
    lib = pytest.importorskip("crypt4gh.lib")
    keys, plain = generate_keypair(), random.Random(size).randbytes(size)
    stream = io.BytesIO()
    lib.encrypt([(0, generate_keypair().private, keys.public)], io.BytesIO(plain), stream)
    taken = take(store, "body", stream.getvalue())
    assert taken.header + stored(store, "body") == stream.getvalue()
    assert taken.size == size
    assert taken.segments == crypt4gh.segments(size)
    assert taken.cipher_size == store.size("body")
    assert taken.tree_root == tree_root(hashes(stored(store, "body")), taken.cipher_size)
    assert taken.seal_root == seal_root(split(stored(store, "body.seal"))[0], size)
    opened = reader(store, "body", taken, keys)
    assert check(opened) == hashlib.sha256(plain).digest()
    assert opened.read(0, size) == plain


def test_a_bam_of_another_implementation(store: LocalStorage) -> None:
    data = foreign_data()
    private = keyfile.read_private((data / "crypt4gh" / "bob.sec").read_text())
    public = keyfile.read_public((data / "crypt4gh" / "bob.pub").read_text())
    plain = (data / "genomes" / "NA12878.bam").read_bytes()
    taken = take(store, "body", (data / "crypt4gh" / "NA12878.bam.c4gh").read_bytes(), 65_536)
    opened = reader(store, "body", taken, KeyPair(private, public))
    assert check(opened) == hashlib.sha256(plain).digest()
    assert opened.read(1_000_000, 500_000) == plain[1_000_000:1_500_000]
    alice = keyfile.read_private((data / "crypt4gh" / "alice.sec").read_text())
    with pytest.raises(KeyFault):
        reader(store, "body", taken, KeyPair(alice, crypt4gh.public_key(alice)))


@pytest.mark.parametrize("step", [1, 7, 123, 65_564, 1 << 20])
def test_pieces_of_any_size(store: LocalStorage, step: int) -> None:
    keys, plain = generate_keypair(), random.Random(step).randbytes(70_000 if step < 100 else 300_000)
    sealed = encrypt(store, "made", plain, keys.public, step)
    stream = sealed.header + stored(store, "made")
    taken = take(store, "taken", stream, step)
    assert (taken.header, taken.seal_root, taken.tree_root) == (sealed.header, sealed.seal_root, sealed.tree_root)
    assert stored(store, "taken.seal") == stored(store, "made.seal")


@pytest.mark.parametrize(
    "case", json.loads((ROOT / "vectors/crypt4gh/files.json").read_text()), ids=lambda case: case["name"]
)
def test_file_vectors(store: LocalStorage, case: dict[str, Any]) -> None:
    private = bytes.fromhex(case["private_key"])
    keys = KeyPair(private, crypt4gh.public_key(private))

    def plain() -> bytes:
        taken = take(store, "body", bytes.fromhex(case["file"]))
        opened = reader(store, "body", taken, keys)
        assert check(opened) == hashlib.sha256(opened.read(0, taken.size)).digest()
        return opened.read(0, taken.size)

    if "plain" in case["expect"]:
        assert plain().hex() == case["expect"]["plain"]
        return
    with pytest.raises(Fault) as caught:
        plain()
    assert caught.value.code == case["expect"]["fault"]


def test_a_refused_stream_leaves_nothing(store: LocalStorage, tmp_path: Path) -> None:
    keys = generate_keypair()
    sealed = encrypt(store, "made", bytes(100_000), keys.public)
    stream = sealed.header + stored(store, "made")
    for end in (0, 5, len(sealed.header) - 1, len(sealed.header) + 1, len(sealed.header) + CIPHER_SEGMENT + 28):
        with pytest.raises(FormatFault):
            take(store, "bad", stream[:end])
    assert sorted(store.names()) == ["made", "made.seal"]
    assert list((tmp_path / "store" / "new").iterdir()) == []


def test_an_aborted_encryption_leaves_nothing(store: LocalStorage, tmp_path: Path) -> None:
    encryptor = Encryptor(store.writer("body"), store.writer("body.seal"), generate_keypair().public)
    encryptor.write(bytes(10_000_000))
    encryptor.abort()
    assert list(store.names()) == []
    assert list((tmp_path / "store" / "new").iterdir()) == []


def test_nothing_plain_is_on_the_disk_meanwhile(store: LocalStorage, tmp_path: Path) -> None:
    mark = b"PLAINTEXT-CANARY" * 1000
    encryptor = Encryptor(store.writer("body"), store.writer("body.seal"), generate_keypair().public)
    for _ in range(400):
        encryptor.write(mark)
    for path in (tmp_path / "store" / "new").iterdir():
        assert b"PLAINTEXT-CANARY" not in path.read_bytes()
    encryptor.finish()
    assert b"PLAINTEXT-CANARY" not in stored(store, "body")


class FullWriter:
    """A writer on a medium with room for one batch."""

    def __init__(self) -> None:
        self.aborted = False
        self.room = 5_000_000

    def write(self, data: memoryview) -> None:
        self.room -= len(data)
        if self.room < 0:
            raise FullFault("full")

    def commit(self) -> None:
        raise FullFault("full")

    def abort(self) -> None:
        self.aborted = True


def test_a_full_store_is_a_full_fault() -> None:
    writers = FullWriter(), FullWriter()
    encryptor = Encryptor(*writers, generate_keypair().public)  # type: ignore[arg-type]
    with pytest.raises(FullFault):
        encryptor.write(bytes(20_000_000))
    encryptor.abort()
    assert all(writer.aborted for writer in writers)
    writers = FullWriter(), FullWriter()
    encryptor = Encryptor(*writers, generate_keypair().public)  # type: ignore[arg-type]
    encryptor.write(b"x")
    with pytest.raises(FullFault):
        encryptor.finish()
    assert all(writer.aborted for writer in writers)


# --- tampering: three segments under one data key, in an older and a newer version ---

COUNT = 5
SIZE = (COUNT - 1) * SEGMENT + 4321


class MemoryBody:
    """A stored body in memory, so that it can be tampered with."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    @property
    def size(self) -> int:
        return len(self._data)

    def pread_into(self, target: memoryview, offset: int) -> int:
        piece = self._data[offset : offset + len(target)]
        memoryview(target)[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        pass


@dataclass
class Victim:
    plain: bytes
    pieces: list[bytes]
    older: list[bytes]
    pairs: bytes
    root: bytes
    data_key: bytes

    def open(self, pieces: list[bytes]) -> SealedReader:
        return SealedReader(MemoryBody(b"".join(pieces)), self.pairs, self.root, SIZE, [self.data_key])


def make_victim() -> Victim:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    draw = random.Random(7)
    key = draw.randbytes(32)

    def pieces(plain: bytes) -> list[bytes]:
        nonces = [draw.randbytes(12) for _ in range(COUNT)]
        cut = [plain[at : at + SEGMENT] for at in range(0, len(plain), SEGMENT)]
        return [n + ChaCha20Poly1305(key).encrypt(n, piece, None) for n, piece in zip(nonces, cut, strict=True)]

    plain = draw.randbytes(SIZE)
    newer, older = pieces(plain), pieces(draw.randbytes(SIZE))
    pairs = b"".join(piece[:12] + piece[-16:] for piece in newer)
    return Victim(plain, newer, older, pairs, seal_root(pairs, SIZE), key)


VICTIM = make_victim()


def tamperings() -> Iterator[tuple[str, Callable[[list[bytes], int, int], list[bytes]]]]:
    yield "drop", lambda p, i, j: p[:i] + p[i + 1 :]
    yield "repeat", lambda p, i, j: p[: i + 1] + p[i:]
    yield "truncate at a segment", lambda p, i, j: p[:i]
    yield "truncate within a segment", lambda p, i, j: [*p[:i], p[i][: len(p[i]) // 2]]
    yield "replay of an older version", lambda p, i, j: [*p[:i], VICTIM.older[i], *p[i + 1 :]]
    yield "copy over", lambda p, i, j: [*p[:j], p[i], *p[j + 1 :]]
    yield "swap", lambda p, i, j: [p[j] if n == i else p[i] if n == j else piece for n, piece in enumerate(p)]
    yield "append", lambda p, i, j: [*p, p[i]]
    yield "flip", lambda p, i, j: [*p[:i], _flip(p[i], 100), *p[i + 1 :]]
    yield "flip the nonce", lambda p, i, j: [*p[:i], _flip(p[i], 3), *p[i + 1 :]]
    yield "flip the tag", lambda p, i, j: [*p[:i], _flip(p[i], -3), *p[i + 1 :]]


def _flip(piece: bytes, at: int) -> bytes:
    changed = bytearray(piece)
    changed[at] ^= 0x40
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "change"), list(tamperings()), ids=lambda value: value if isinstance(value, str) else ""
)
@given(i=st.integers(0, COUNT - 1), j=st.integers(0, COUNT - 1), data=st.data())
@settings(max_examples=30, deadline=None)
def test_tampering_is_found(
    name: str, change: Callable[[list[bytes], int, int], list[bytes]], i: int, j: int, data: st.DataObject
) -> None:
    changed = change(list(VICTIM.pieces), i, j)
    if changed == VICTIM.pieces:
        return
    try:
        opened = VICTIM.open(changed)
    except IntegrityFault:
        return  # found at once by the body's length
    with pytest.raises(IntegrityFault, match=r"segment \d"):
        check(opened)
    body, good = b"".join(changed), b"".join(VICTIM.pieces)
    places = [slice(n * CIPHER_SEGMENT, (n + 1) * CIPHER_SEGMENT) for n in range(COUNT)]
    wrong = {n for n, place in enumerate(places) if body[place] != good[place]}
    offset = data.draw(st.integers(0, SIZE - 1))
    size = data.draw(st.integers(1, SIZE - offset))
    touched = set(range(offset // SEGMENT, (offset + size - 1) // SEGMENT + 1))
    if touched & wrong:
        target = bytearray(b"?" * size)
        with pytest.raises(IntegrityFault):
            opened.read_into(target, offset)
        assert target == bytes(size)
    else:
        assert opened.read(offset, size) == VICTIM.plain[offset : offset + size]


@given(st.integers(0, SIZE + 10), st.integers(0, SIZE + 10))
@settings(deadline=None)
def test_any_range(offset: int, size: int) -> None:
    assert VICTIM.open(VICTIM.pieces).read(offset, size) == VICTIM.plain[offset : offset + size]


def test_a_tampered_sidecar_is_found_at_open() -> None:
    pairs = VICTIM.pairs
    for wrong in (
        b"",
        pairs[:-1],
        pairs[28:],
        pairs + pairs[:28],
        _flip(pairs, 5),
        pairs[28:56] + pairs[:28] + pairs[56:],
    ):
        with pytest.raises(IntegrityFault):
            SealedReader(MemoryBody(b"".join(VICTIM.pieces)), wrong, VICTIM.root, SIZE, [VICTIM.data_key])


def test_a_wrong_data_key_is_found_and_one_of_several_is_enough() -> None:
    body = MemoryBody(b"".join(VICTIM.pieces))
    with pytest.raises(IntegrityFault):
        SealedReader(body, VICTIM.pairs, VICTIM.root, SIZE, [bytes(32)]).read(0, 1)
    opened = SealedReader(body, VICTIM.pairs, VICTIM.root, SIZE, [bytes(32), VICTIM.data_key])
    assert opened.read(0, SIZE) == VICTIM.plain


def test_a_negative_offset_is_an_input_fault() -> None:
    with pytest.raises(InputFault):
        VICTIM.open(VICTIM.pieces).read_into(bytearray(1), -1)


def test_many_threads_share_a_reader() -> None:
    opened = VICTIM.open(VICTIM.pieces)
    wrong: list[int] = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(60):
            offset = draw.randrange(SIZE)
            if opened.read(offset, 100_000) != VICTIM.plain[offset : offset + 100_000]:
                wrong.append(offset)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_missing_parts_and_edit_lists_are_told_apart(store: LocalStorage) -> None:
    keys = generate_keypair()
    sealed = encrypt(store, "body", bytes(1000), keys.public)
    (data_key,) = open_header(sealed.header, [keys.private]).data_keys
    edited = build_header(data_key, [keys.public], [5, 10])
    with pytest.raises(FormatFault, match="edit list"):
        open_reader(store.open, "body", edited, keys.private, size=1000, seal_root=sealed.seal_root)
    store.delete("body.seal")
    with pytest.raises(MissingFault):
        reader(store, "body", sealed, keys)
    with pytest.raises(MissingFault):
        reader(store, "nowhere", sealed, keys)
