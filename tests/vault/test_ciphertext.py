"""What is given away encrypted is what was stored, whichever copy is broken."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from valv.errors import Fault, IntegrityFault
from valv.formats.crypt4gh import CIPHER_SEGMENT, generate_keypair
from valv.formats.seal import sidecar
from valv.ports.storage import Place
from valv.storage.local import LocalStorage
from valv.vault.ciphertext import CheckedBody
from valv.vault.copies import Copies
from valv.vault.encrypt import Encryptor

KEYS = generate_keypair()


def stored(tmp_path: Path, size: int) -> tuple[dict[str, LocalStorage], bytes, bytes]:
    """Two stores with the same file "body": the stores, its stored bytes, its hash tree's root."""
    stores = {name: LocalStorage(tmp_path / name, Place("SE", "test")) for name in ("main", "second")}
    encryptor = Encryptor(stores["main"].writer("body"), stores["main"].writer(sidecar("body")), KEYS.public)
    encryptor.write(os.urandom(size))
    sealed = encryptor.finish()
    for name in ("body", sidecar("body")):
        body = stores["main"].open(name)
        data = bytearray(body.size)
        body.pread_into(data, 0)
        body.close()
        writer = stores["second"].writer(name)
        writer.write(data)
        writer.commit()
    return stores, path(tmp_path, "main", "body").read_bytes(), sealed.tree_root


def path(tmp_path: Path, store: str, name: str) -> Path:
    (found,) = (tmp_path / store / "bodies").glob(f"*/{name}")
    return found


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 5_000_000])
def test_any_part_comes_as_it_is_stored(tmp_path: Path, size: int) -> None:
    stores, cipher, root = stored(tmp_path, size)
    checked = CheckedBody(stores["main"].open, "body", cipher_size=len(cipher), tree_root=root)
    draw = random.Random(size)
    spans = [(0, len(cipher)), *(sorted(draw.choices(range(len(cipher) + 1), k=2)) for _ in range(20))]
    for start, end in spans:
        found = bytearray()
        while start + len(found) < end:
            found += checked.read(start + len(found), end)
        assert found == cipher[start:end]
    assert checked.read(len(cipher), len(cipher) + 5) == b""
    checked.close()


@pytest.mark.parametrize("name", ["body", sidecar("body")])
def test_a_copy_that_does_not_hold_is_told_and_not_given(tmp_path: Path, name: str) -> None:
    stores, cipher, root = stored(tmp_path, 400_000)
    told: list[tuple[str, str]] = []
    copies = Copies(stores, ["main", "second"], lambda body, store, fault: told.append((body, store)))
    flip(path(tmp_path, "main", name), -1 if name != "body" else 2 * CIPHER_SEGMENT + 100)
    checked = CheckedBody(copies.open, "body", cipher_size=len(cipher), tree_root=root)
    assert checked.read(0, len(cipher)) == cipher
    checked.close()
    assert told == [(name, "main")]


def test_where_no_copy_holds_nothing_is_given(tmp_path: Path) -> None:
    stores, cipher, root = stored(tmp_path, 400_000)
    for store in stores:
        flip(path(tmp_path, store, "body"), CIPHER_SEGMENT + 5)
    checked = CheckedBody(Copies(stores, list(stores)).open, "body", cipher_size=len(cipher), tree_root=root)
    assert checked.read(0, CIPHER_SEGMENT) == cipher[:CIPHER_SEGMENT]
    with pytest.raises(IntegrityFault, match="segment 1"):
        checked.read(CIPHER_SEGMENT, len(cipher))
    checked.close()
    with pytest.raises(Fault):
        CheckedBody(stores["main"].open, "body", cipher_size=len(cipher), tree_root=bytes(32))
