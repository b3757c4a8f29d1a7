"""Poly1305 does not commit: whoever knows a data key makes another segment with the same nonce and tag. The seal and
the cipher accept it; the hash tree finds it."""

from __future__ import annotations

import io
import random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from typing_extensions import Buffer

from tests.vault.forging import forge
from valv.errors import IntegrityFault
from valv.formats import hashtree, seal
from valv.formats.crypt4gh import CIPHER_SEGMENT, NONCE, SEGMENT, TAG
from valv.vault.fixity import check_body, read_sidecar
from valv.vault.reader import SealedReader, open_with_keys
from valv.vault.sealing import BATCH, SealingWriter


class MemoryBody:
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def pread_into(self, target: memoryview, offset: int) -> int:
        piece = self._data[offset : offset + len(target)]
        target[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        pass


class MemoryWriter:
    def __init__(self, stream: io.BytesIO) -> None:
        self._stream = stream

    def write(self, data: Buffer) -> None:
        self._stream.write(data)

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass


KEY = random.Random(1).randbytes(32)
PLAIN = b"BRCA1 c.68_69del: not found     " * (3 * SEGMENT // 32)
TOLD = b"BRCA1 c.68_69del: FOUND         "


def body_of(plain: bytes) -> bytes:
    draw = random.Random(2)
    pieces = []
    for at in range(0, len(plain), SEGMENT):
        nonce = draw.randbytes(NONCE)
        pieces.append(nonce + ChaCha20Poly1305(KEY).encrypt(nonce, plain[at : at + SEGMENT], None))
    return b"".join(pieces)


def pairs_of(body: bytes) -> bytes:
    segments = [body[at : at + CIPHER_SEGMENT] for at in range(0, len(body), CIPHER_SEGMENT)]
    return b"".join(segment[:NONCE] + segment[-TAG:] for segment in segments)


@pytest.fixture(scope="module")
def body() -> bytes:
    return body_of(PLAIN)


@pytest.fixture(scope="module")
def forged(body: bytes) -> bytes:
    """The body with a forged segment 1."""
    other = forge(KEY, body[CIPHER_SEGMENT : 2 * CIPHER_SEGMENT], 4096, TOLD)
    return body[:CIPHER_SEGMENT] + other + body[2 * CIPHER_SEGMENT :]


def test_the_seal_and_the_cipher_accept_a_forged_segment(body: bytes, forged: bytes) -> None:
    assert forged != body and len(forged) == len(body)
    pairs = pairs_of(body)
    assert pairs_of(forged) == pairs
    root = seal.seal_root(pairs, len(PLAIN))
    reader = SealedReader(MemoryBody(forged), pairs, root, len(PLAIN), [KEY])
    assert reader.read(SEGMENT + 4096, 32) == TOLD != PLAIN[SEGMENT + 4096 : SEGMENT + 4096 + 32]
    assert reader.read(0, SEGMENT) + reader.read(2 * SEGMENT, SEGMENT) == PLAIN[: 2 * SEGMENT]


def test_the_hash_tree_finds_it(body: bytes, forged: bytes) -> None:
    hashes = hashtree.hashes(body)
    root = hashtree.tree_root(hashes, len(body))
    hashtree.verify(root, hashes, len(body))
    with pytest.raises(IntegrityFault):
        hashtree.verify(root, hashtree.hashes(forged), len(forged))
    for number in (0, 2):
        at = number * CIPHER_SEGMENT
        hashtree.check_segment(number, forged[at : at + CIPHER_SEGMENT], hashes)
    with pytest.raises(IntegrityFault, match="segment 1 "):
        hashtree.check_segment(1, forged[CIPHER_SEGMENT : 2 * CIPHER_SEGMENT], hashes)


def test_reads_that_hold_to_the_hash_tree_find_it(body: bytes, forged: bytes) -> None:
    pairs, hashes = pairs_of(body), hashtree.hashes(body)
    root, tree_root = seal.seal_root(pairs, len(PLAIN)), hashtree.tree_root(hashes, len(body))

    def opened(data: bytes, tree_root: bytes) -> SealedReader:
        store = {"b": data, "b.seal": pairs + hashes}
        return open_with_keys(
            lambda name: MemoryBody(store[name]), "b", [KEY], size=len(PLAIN), seal_root=root, tree_root=tree_root
        )

    assert opened(body, tree_root).read(0, len(PLAIN)) == PLAIN
    reader = opened(forged, tree_root)
    assert reader.read(0, SEGMENT) + reader.read(2 * SEGMENT, SEGMENT) == PLAIN[: 2 * SEGMENT]
    for offset, size in ((SEGMENT, 1), (2 * SEGMENT - 1, 1), (SEGMENT - 1, 2), (0, len(PLAIN))):
        with pytest.raises(IntegrityFault, match="segment 1 "):
            reader.read(offset, size)
    with pytest.raises(IntegrityFault, match="hash tree"):
        opened(body, bytes(32))


def test_fixity_finds_it_without_a_key(body: bytes, forged: bytes) -> None:
    hashes = hashtree.hashes(body)
    root, sidecar = hashtree.tree_root(hashes, len(body)), MemoryBody(pairs_of(body) + hashes)
    check_body(MemoryBody(body), sidecar, cipher_size=len(body), tree_root=root)
    with pytest.raises(IntegrityFault, match="segment 1 "):
        check_body(MemoryBody(forged), sidecar, cipher_size=len(body), tree_root=root)
    for wrong in (body[:-1], body + b"x", b""):
        with pytest.raises(IntegrityFault):
            check_body(MemoryBody(wrong), sidecar, cipher_size=len(body), tree_root=root)
    with pytest.raises(IntegrityFault):
        check_body(MemoryBody(body), MemoryBody(sidecar._data[:-1]), cipher_size=len(body), tree_root=root)
    swapped = MemoryBody(pairs_of(forged) + hashtree.hashes(forged))
    with pytest.raises(IntegrityFault, match="hash tree"):
        check_body(MemoryBody(forged), swapped, cipher_size=len(body), tree_root=root)


def test_an_empty_body_and_one_of_many_groups() -> None:
    for size in (0, 64 * SEGMENT, 130 * SEGMENT + 5):
        data = body_of(bytes(size))
        store = {"b": io.BytesIO(), "b.seal": io.BytesIO()}
        out = SealingWriter(MemoryWriter(store["b"]), MemoryWriter(store["b.seal"]))
        for at in range(0, len(data), BATCH * CIPHER_SEGMENT):
            piece = data[at : at + BATCH * CIPHER_SEGMENT]
            out.buffer()[: len(piece)] = piece
            out.put(len(piece))
        sealed = out.finish()
        bodies = {name: MemoryBody(stream.getvalue()) for name, stream in store.items()}
        assert bodies["b.seal"].size == seal.sidecar_size(sealed.segments)
        check_body(bodies["b"], bodies["b.seal"], cipher_size=len(data), tree_root=sealed.tree_root)
        pairs, hashes = read_sidecar(bodies["b.seal"], sealed.segments)
        assert (pairs, hashes) == (pairs_of(data), hashtree.hashes(data))
        reader = SealedReader(bodies["b"], pairs, sealed.seal_root, size, [KEY], hashes)
        assert reader.read(0, size) == bytes(size)
