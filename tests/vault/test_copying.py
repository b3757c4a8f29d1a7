"""Copies from store to store: the same bytes, held against the record on the way; after a fault nothing is left."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from valv.errors import FullFault, IntegrityFault, MissingFault, StorageFault
from valv.formats.crypt4gh import CIPHER_SEGMENT, generate_keypair
from valv.formats.seal import LEAF_PAIRS, sidecar
from valv.ports.storage import Locality, Place, Storage
from valv.storage.local import LocalStorage
from valv.vault.copying import copy_body, remove_body, staged
from valv.vault.encrypt import Encryptor
from valv.vault.fixity import Sealed

PLACE = Place("SE", "test")
NAME = "body-1"
SIZES = (0, 1, 65536, 65537, LEAF_PAIRS * 65536, LEAF_PAIRS * 65536 + 70_000)


@pytest.fixture
def stores(tmp_path: Path) -> tuple[LocalStorage, LocalStorage]:
    return LocalStorage(tmp_path / "a", PLACE), LocalStorage(tmp_path / "b", PLACE)


def put(store: Storage, size: int, name: str = NAME) -> Sealed:
    encryptor = Encryptor(store.writer(name), store.writer(sidecar(name)), generate_keypair().public)
    encryptor.write(os.urandom(size))
    made = encryptor.finish()
    return Sealed(size=made.size, cipher_size=made.cipher_size, seal_root=made.seal_root, tree_root=made.tree_root)


def content(store: Storage, name: str) -> bytes:
    body = store.open(name)
    try:
        buffer = bytearray(body.size)
        assert body.pread_into(buffer, 0) == body.size
        return bytes(buffer)
    finally:
        body.close()


def altered(store: Any, folder: Path, name: str, at: int) -> None:
    path = next(path for path in folder.rglob(name) if path.is_file())
    changed = bytearray(path.read_bytes())
    changed[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(changed)


@pytest.mark.parametrize("size", SIZES)
def test_a_copy_is_the_same_bytes(stores: tuple[LocalStorage, LocalStorage], size: int) -> None:
    a, b = stores
    record = put(a, size)
    spent: list[int] = []
    copy_body(a, b, NAME, record, spent.append)
    for name in (NAME, sidecar(NAME)):
        assert content(a, name) == content(b, name)
    assert sum(spent) == record.cipher_size + a.size(sidecar(NAME))
    assert max(spent, default=0) <= LEAF_PAIRS * (CIPHER_SEGMENT + 60)
    remove_body(a, NAME)
    remove_body(a, NAME)
    assert list(a.names()) == [] and len(list(b.names())) == 2


@pytest.mark.parametrize(
    ("name", "at", "says"),
    [
        (NAME, 100, "segment 0 is not"),
        (NAME, 66 * CIPHER_SEGMENT + 5, "segment 66 is not"),
        (sidecar(NAME), 0, "segment"),
        (sidecar(NAME), LEAF_PAIRS * 28 + 3, "segment 0 is not"),
    ],
)
def test_what_does_not_hold_is_not_copied(
    stores: tuple[LocalStorage, LocalStorage], tmp_path: Path, name: str, at: int, says: str
) -> None:
    a, b = stores
    record = put(a, 68 * 65536)
    altered(a, tmp_path / "a", name, at)
    with pytest.raises(IntegrityFault, match=says):
        copy_body(a, b, NAME, record)
    assert list(b.names()) == [] and b.sweep() == 0


@pytest.mark.parametrize("field", ["seal_root", "tree_root"])
def test_another_file_in_its_place_is_not_copied(stores: tuple[LocalStorage, LocalStorage], field: str) -> None:
    """A body that is whole in itself, and not the one of the record."""
    a, b = stores
    record = put(a, 100_000)
    others = {"size": record.size, "cipher_size": record.cipher_size}
    others |= {"seal_root": record.seal_root, "tree_root": record.tree_root} | {field: bytes(32)}
    with pytest.raises(IntegrityFault):
        copy_body(a, b, NAME, Sealed(**others))  # type: ignore[arg-type]
    assert list(b.names()) == [] and b.sweep() == 0


def test_sizes_are_looked_at_first(stores: tuple[LocalStorage, LocalStorage]) -> None:
    a, b = stores
    put(a, 100_000)
    other = put(a, 200_000, "body-2")
    with pytest.raises(IntegrityFault, match="bytes, not"):
        copy_body(a, b, NAME, other)
    with pytest.raises(MissingFault):
        copy_body(a, b, "body-3", other)
    assert list(b.names()) == [] and b.sweep() == 0


class Short(LocalStorage):
    """Says of what it took that it is shorter."""

    def size(self, name: str) -> int:
        return max(0, super().size(name) - 1)


def test_a_store_that_took_less_is_found_out(stores: tuple[LocalStorage, LocalStorage], tmp_path: Path) -> None:
    a, _ = stores
    record = put(a, 100_000)
    short = Short(tmp_path / "short", PLACE)
    with pytest.raises(StorageFault, match="size"):
        copy_body(a, short, NAME, record)
    assert list(short.names()) == []


def test_what_ends_the_work_leaves_nothing(stores: tuple[LocalStorage, LocalStorage]) -> None:
    a, b = stores
    record = put(a, 5 << 20)

    def full(_: int) -> None:
        if list(a.names()):
            raise FullFault("no more")

    with pytest.raises(FullFault):
        copy_body(a, b, NAME, record, full)
    assert list(b.names()) == [] and b.sweep() == 0


class Pulling(LocalStorage):
    """Fetches bodies by itself. `spoil`: what comes is altered; `able`: whether it can."""

    spoil = False
    able = True
    pulled = 0

    def pull(self, name: str, source: Storage) -> bool:
        if not self.able or (self.able == "half" and name == NAME):
            return False
        self.pulled += 1
        found = bytearray(content(source, name))
        if self.spoil and name == NAME:
            found[50] ^= 1
        writer = self.writer(name)
        writer.write(found)
        writer.commit()
        return True


@pytest.mark.parametrize(("able", "pulled"), [(True, 2), (False, 0), ("half", 1)])
def test_a_store_that_can_fetch_does_so_where_it_can(
    stores: tuple[LocalStorage, LocalStorage], tmp_path: Path, able: Any, pulled: int
) -> None:
    a, _ = stores
    record = put(a, 300_000)
    target = Pulling(tmp_path / "pulling", PLACE)
    target.able = able
    copy_body(a, target, NAME, record)
    assert target.pulled == pulled
    for name in (NAME, sidecar(NAME)):
        assert content(a, name) == content(target, name)


def test_what_was_fetched_is_held_against_the_record(stores: tuple[LocalStorage, LocalStorage], tmp_path: Path) -> None:
    a, _ = stores
    record = put(a, 300_000)
    target = Pulling(tmp_path / "pulling", PLACE)
    target.spoil = True
    with pytest.raises(IntegrityFault, match="segment 0"):
        copy_body(a, target, NAME, record)
    assert list(target.names()) == []


class Tapes(LocalStorage):
    where = Locality.ONLINE
    asked: Sequence[str] = ()

    def locality(self, name: str) -> Locality:
        return self.where

    def stage(self, names: Sequence[str]) -> None:
        self.asked = names


def test_what_lies_on_tape_is_asked_for(stores: tuple[LocalStorage, LocalStorage], tmp_path: Path) -> None:
    assert staged(stores[0], NAME)
    tapes = Tapes(tmp_path / "tapes", PLACE)
    assert staged(tapes, NAME) and not tapes.asked
    tapes.where = Locality.NEARLINE
    assert not staged(tapes, NAME) and tuple(tapes.asked) == (NAME, sidecar(NAME))
    tapes.where = Locality.LOST
    with pytest.raises(StorageFault, match="lost"):
        staged(tapes, NAME)
