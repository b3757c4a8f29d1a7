"""The encryptor takes pieces of any size, and what it was given may change as soon as `write` returns."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valv.formats import crypt4gh
from valv.formats.crypt4gh import SEGMENT, generate_keypair
from valv.formats.hashtree import hashes, tree_root
from valv.formats.seal import pairs_of, seal_root, split
from valv.vault import bulk, sealing
from valv.vault.encrypt import Encryptor
from valv.vault.endpoints import Memory
from valv.vault.sealing import BATCH

WHOLE = BATCH * SEGMENT
KEYS = generate_keypair()


class Kept(bytearray):
    """A writer that keeps what it was given."""

    committed = False

    def write(self, data: memoryview) -> None:
        self += data

    def commit(self) -> None:
        self.committed = True

    def abort(self) -> None:
        self.clear()


def _hold(plain: bytes, cuts: list[int]) -> None:
    body, side = Kept(), Kept()
    encryptor = Encryptor(body, side, KEYS.public)
    lent = bytearray(max([0, *cuts]))
    at = 0
    for cut in cuts:
        piece = memoryview(lent)[: len(plain[at : at + cut])]
        piece[:] = plain[at : at + cut]
        encryptor.write(piece)
        piece[:] = bytes(len(piece))
        at += cut
    encryptor.write(plain[at:])
    sealed = encryptor.finish()
    assert body.committed and side.committed
    assert sealed.sha256 == hashlib.sha256(plain).digest()
    assert (sealed.size, sealed.cipher_size) == (len(plain), len(body))
    back = bytearray(len(plain))
    opened = crypt4gh.open_header(sealed.header, [KEYS.private])
    bulk.decrypt(Memory(body), Memory(back), opened.data_keys)
    assert back == plain
    assert split(bytes(side)) == (pairs_of(body), hashes(body))
    assert sealed.seal_root == seal_root(pairs_of(body), len(plain))
    assert sealed.tree_root == tree_root(hashes(body), len(body))


@pytest.mark.parametrize("cores", [1, 4])
@pytest.mark.parametrize(
    "cuts",
    [
        [],
        [WHOLE],
        [WHOLE, WHOLE],
        [WHOLE - 1, 1, WHOLE],
        [1, WHOLE - 1, WHOLE],
        [1, WHOLE, WHOLE - 1],
        [2 * WHOLE + 5],
        [0, 3 * WHOLE, 0],
    ],
)
def test_whole_batches_and_pieces_of_them(cuts: list[int], cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a thread of its own for the hash tree and without."""
    monkeypatch.setattr(sealing, "cores", lambda: cores)
    _hold(random.Random(7).randbytes(3 * WHOLE + 2 * SEGMENT + 3), cuts)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 2 * WHOLE), max_size=4), st.integers(0, 3 * WHOLE))
def test_pieces_of_any_size(cuts: list[int], size: int) -> None:
    _hold(random.Random(size).randbytes(size), cuts)
