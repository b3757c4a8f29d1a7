"""Bodies of which several stores have a copy: as long as one of them holds, what is read is right, and who looks after
the copies learns once of each that does not."""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

from valv.errors import Fault, IntegrityFault, MissingFault, StorageFault, UnreachableFault
from valv.formats.crypt4gh import CIPHER_SEGMENT, SEGMENT, KeyPair, generate_keypair
from valv.formats.seal import sidecar
from valv.ports.compute import MountedFile
from valv.ports.storage import Body, BodyWriter, Copied, Place, Storage, Usage
from valv.storage.local import LocalStorage
from valv.vault import copies
from valv.vault.copies import Copies, holding
from valv.vault.encrypt import Encryptor
from valv.vault.fuse_files import FileGate
from valv.vault.reader import SealedReader, open_reader
from valv.vault.rekey import rekey

NAME = "body"
PLACE = Place("SE", "test")
SIZE = 5 * SEGMENT + 77
FAULTS = ("away", "nothing", "other", "cut", "older", "longer", "shorter", "later", "unreadable")
"""`away`: the store does not answer; `nothing`: it says it has no such body; `other`: single bytes are others; `cut`:
it says the right size and ends before; `older`: it is a version before this; `longer`, `shorter`: than it should be;
`later`: it opens, and is away from the second read on; `unreadable`: it opens and cannot be read."""
TOLD_AS = {
    "away": UnreachableFault,
    "nothing": MissingFault,
    "later": UnreachableFault,
    "unreadable": StorageFault,
}


class FaultyBody:
    """A body as a store with this fault gives it."""

    def __init__(self, body: Body, fault: str, at: int) -> None:
        self._body = body
        self._fault = fault
        self._at = at
        self._reads = 0
        self.closed = 0

    @property
    def size(self) -> int:
        return {"longer": self._body.size + 1, "shorter": max(0, self._body.size - 1)}.get(self._fault, self._body.size)

    def pread_into(self, target: Buffer, offset: int) -> int:
        self._reads += 1
        if self._fault == "unreadable":
            raise StorageFault("an input or output error")
        if self._fault == "later" and self._reads > 1:
            raise UnreachableFault("the store is away")
        view = memoryview(target).cast("B")
        if self._fault == "cut":
            view = view[: max(0, self._at - offset)]
        count = self._body.pread_into(view, offset)
        if self._fault == "other" and offset <= self._at < offset + count:
            view[self._at - offset] ^= 1
        return count

    def close(self) -> None:
        self.closed += 1
        self._body.close()


@dataclass
class FaultyStorage:
    """A store of which some bodies have a fault: name → (fault, byte)."""

    inner: LocalStorage
    old: LocalStorage
    faults: dict[str, tuple[str, int]] = field(default_factory=dict)
    opened: list[FaultyBody] = field(default_factory=list)
    asked: int = 0

    @property
    def place(self) -> Place:
        return self.inner.place

    def open(self, name: str) -> Body:
        self.asked += 1
        fault, at = self.faults.get(name, ("", 0))
        if fault == "away":
            raise UnreachableFault("the store is away")
        if fault == "nothing":
            raise MissingFault(f"{name}: not in the store")
        body = FaultyBody((self.old if fault == "older" else self.inner).open(name), fault, at)
        self.opened.append(body)
        return body

    def size(self, name: str) -> int:
        body = self.open(name)
        body.close()
        return body.size

    def writer(self, name: str) -> BodyWriter:
        return self.inner.writer(name)

    def delete(self, name: str) -> None:
        if self.faults.get(name, ("", 0))[0] == "away":
            raise UnreachableFault("the store is away")
        self.inner.delete(name)

    def names(self) -> Iterator[str]:
        return self.inner.names()

    def usage(self) -> Usage:
        return self.inner.usage()

    def sweep(self) -> int:
        return self.inner.sweep()


@dataclass
class Scene:
    """One encrypted file in three stores, and an older version of it under the same name elsewhere."""

    folder: Path
    plain: bytes
    keys: KeyPair
    file: MountedFile

    def stores(self, faults: Mapping[str, Mapping[str, tuple[str, int]]]) -> dict[str, FaultyStorage]:
        """`faults`: store → name → fault."""
        old = LocalStorage(self.folder / "old", PLACE)
        return {
            name: FaultyStorage(LocalStorage(self.folder / name, PLACE), old, dict(faults.get(name, {})))
            for name in ("main", "near", "far")
        }


def put(store: Storage, name: str, plain: bytes, keys: KeyPair) -> MountedFile:
    encryptor = Encryptor(store.writer(name), store.writer(sidecar(name)), keys.public)
    encryptor.write(plain)
    sealed = encryptor.finish()
    return MountedFile("id", "path", name, sealed.header, "key", len(plain), sealed.seal_root, sealed.tree_root)


def copied(source: Storage, target: Storage, name: str) -> None:
    body = source.open(name)
    data = bytearray(body.size)
    body.pread_into(data, 0)
    body.close()
    writer = target.writer(name)
    writer.write(data)
    writer.commit()


@contextmanager
def scene(size: int = SIZE) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys, plain = generate_keypair(), random.Random(size).randbytes(size)
        main = LocalStorage(folder / "main", PLACE)
        file = put(main, NAME, plain, keys)
        for other in ("near", "far"):
            for one in (NAME, sidecar(NAME)):
                copied(main, LocalStorage(folder / other, PLACE), one)
        put(LocalStorage(folder / "old", PLACE), NAME, random.Random(-1).randbytes(size), keys)
        yield Scene(folder, plain, keys, file)


@pytest.fixture(scope="module")
def made() -> Iterator[Scene]:
    with scene() as it:
        yield it


Tales = list[tuple[str, str, Fault]]


def joined(stores: Mapping[str, Storage], *order: str) -> tuple[Copies, Tales]:
    told: Tales = []
    return Copies(stores, order or tuple(stores), lambda *tale: told.append(tale)), told


def opened(it: Scene, storage: Storage, *, tree: bool = True) -> SealedReader:
    file = it.file
    tree_root = file.tree_root if tree else b""
    return open_reader(
        storage.open,
        file.body,
        file.header,
        it.keys.private,
        size=file.size,
        seal_root=file.seal_root,
        tree_root=tree_root,
    )


def read(it: Scene, storage: Storage, **more: Any) -> bytes:
    reader = opened(it, storage, **more)
    try:
        return reader.read(0, it.file.size)
    finally:
        reader.close()


# --- one fault ---


@pytest.mark.parametrize("tree", [True, False])
@pytest.mark.parametrize("what", [NAME, sidecar(NAME)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_copy_that_does_not_hold_is_read_elsewhere_and_told_once(
    made: Scene, fault: str, what: str, tree: bool
) -> None:
    stores = made.stores({"main": {what: (fault, 100)}})
    storage, told = joined(stores)
    assert read(made, storage, tree=tree) == made.plain
    # A store that is away from the second read on does no harm here: all of either is read at once.
    assert [tale[:2] for tale in told] == ([] if fault == "later" else [(what, "main")])
    for _, _, tale in told:
        assert isinstance(tale, TOLD_AS.get(fault, IntegrityFault | StorageFault))
    assert all(body.closed == 1 for store in stores.values() for body in store.opened)


def test_body_and_sidecar_may_come_from_different_stores(made: Scene) -> None:
    stores = made.stores(
        {
            "main": {NAME: ("other", 3 * CIPHER_SEGMENT)},
            "near": {sidecar(NAME): ("older", 0), NAME: ("nothing", 0)},
            "far": {sidecar(NAME): ("away", 0)},
        }
    )
    storage, told = joined(stores, "near", "far", "main")
    assert read(made, storage) == made.plain
    assert {tale[:2] for tale in told} == {(sidecar(NAME), "near"), (sidecar(NAME), "far"), (NAME, "near")}


def test_two_copies_broken_at_different_places_are_one_whole_body(made: Scene) -> None:
    stores = made.stores({"main": {NAME: ("other", 10)}, "near": {NAME: ("other", 4 * CIPHER_SEGMENT + 10)}})
    stores.pop("far")
    storage, told = joined(stores)
    reader = opened(made, storage)
    for _ in range(3):
        for number in range(5):
            at = number * SEGMENT
            assert reader.read(at, 100) == made.plain[at : at + 100]
    reader.close()
    assert sorted(tale[:2] for tale in told) == [(NAME, "main"), (NAME, "near")]


def test_where_no_copy_holds_the_fault_that_may_pass_is_raised(made: Scene) -> None:
    cases: list[tuple[tuple[str, str, str], type[Fault]]] = [
        (("other", "nothing", "cut"), IntegrityFault),
        (("other", "nothing", "away"), UnreachableFault),
        (("nothing", "nothing", "nothing"), MissingFault),
        (("nothing", "other", "nothing"), IntegrityFault),
        (("other", "unreadable", "nothing"), StorageFault),
    ]
    for faults, kind in cases:
        stores = made.stores(
            {store: {NAME: (fault, 100)} for store, fault in zip(("main", "near", "far"), faults, strict=True)}
        )
        storage, _ = joined(stores)
        target = bytearray(b"x" * 100)
        with pytest.raises(kind):
            opened(made, storage).read_into(target, 0)
        assert bytes(target) in (bytes(100), b"x" * 100)  # nothing that was not checked


def test_a_store_that_comes_back_is_read_again(made: Scene) -> None:
    stores = made.stores({"main": {NAME: ("away", 0)}, "near": {NAME: ("away", 0)}})
    storage, told = joined(stores)
    reader = opened(made, storage)
    assert reader.read(0, 10) == made.plain[:10]
    stores["main"].faults.clear()
    stores["far"].faults[NAME] = ("unreadable", 0)
    stores["far"].opened[-1]._fault = "unreadable"
    assert reader.read(SEGMENT, 10) == made.plain[SEGMENT : SEGMENT + 10]
    reader.close()
    assert [tale[1] for tale in told] == ["main", "near", "far"]


def test_a_store_that_is_away_is_not_asked_first_for_a_while(made: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = made.stores({"main": {NAME: ("away", 0)}})
    storage, _ = joined(stores)
    assert read(made, storage) == made.plain
    before = stores["main"].asked
    for _ in range(5):
        assert read(made, storage) == made.plain
    assert stores["main"].asked == before
    assert storage.order()[-1] == "main"
    later = time.monotonic() + copies.AWAY + 1
    monkeypatch.setattr(copies.time, "monotonic", lambda: later)
    assert storage.order()[0] == "main"


# --- any faults, any order ---

FAULT = st.one_of(st.just(("", 0)), st.tuples(st.sampled_from(FAULTS), st.integers(0, SIZE)))
STORE = st.fixed_dictionaries({NAME: FAULT, sidecar(NAME): FAULT})


@settings(max_examples=150, deadline=None)
@given(
    faults=st.fixed_dictionaries({"main": STORE, "near": STORE, "far": STORE}),
    order=st.permutations(["main", "near", "far"]),
    ranges=st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 2 * SEGMENT)), min_size=1, max_size=5),
    good=st.tuples(st.sampled_from(["main", "near", "far"]), st.sampled_from(["main", "near", "far"])),
)
def test_as_long_as_one_copy_holds_every_read_is_right(
    made: Scene, faults: Any, order: list[str], ranges: list[tuple[int, int]], good: tuple[str, str]
) -> None:
    for store, what in zip(good, (NAME, sidecar(NAME)), strict=True):
        faults[store] = {**faults[store], what: ("", 0)}
    stores = made.stores(faults)
    storage, told = joined(stores, *order)
    reader = opened(made, storage)
    for offset, size in ranges:
        assert reader.read(offset, size) == made.plain[offset : offset + size]
    reader.close()
    tales = [tale[:2] for tale in told]
    assert len(set(tales)) == len(tales)  # each once
    assert all(faults[store][what][0] for what, store in tales)  # and none that holds
    assert all(body.closed == 1 for store in stores.values() for body in store.opened)


@settings(max_examples=40, deadline=None)
@given(
    faults=st.fixed_dictionaries({"main": STORE, "near": STORE, "far": STORE}),
    good=st.tuples(st.sampled_from(["main", "near", "far"]), st.sampled_from(["main", "near", "far"])),
    name=st.integers(0, 1 << 62),
)
def test_rekeying_takes_what_holds(made: Scene, faults: Any, good: tuple[str, str], name: int) -> None:
    for store, what in zip(good, (NAME, sidecar(NAME)), strict=True):
        faults[store] = {**faults[store], what: ("", 0)}
    # Between the two passes over the sidecar no other copy is looked for.
    faults = {
        store: {
            what: ("unreadable" if fault == "later" and what != NAME else fault, at) for what, (fault, at) in of.items()
        }
        for store, of in faults.items()
    }
    stores = made.stores(faults)
    storage, told = joined(stores)
    target, body = generate_keypair(), f"new-{name}"
    try:
        new = rekey(storage, made.file, made.file.header, made.keys.private, public_key=target.public, body=body)
        reader = open_reader(
            storage.open,
            body,
            new.header,
            target.private,
            size=made.file.size,
            seal_root=new.seal_root,
            tree_root=new.tree_root,
        )
        assert reader.read(0, SIZE) == made.plain
        reader.close()
    finally:
        for one in (body, sidecar(body)):
            stores["main"].inner.delete(one)
    tales = [tale[:2] for tale in told if tale[0] in (NAME, sidecar(NAME))]
    assert len(set(tales)) == len(tales)
    assert all(faults[store][what][0] for what, store in tales)


def test_what_rekeying_could_not_read_leaves_nothing(made: Scene) -> None:
    everywhere = {store: {NAME: ("other", 2 * CIPHER_SEGMENT)} for store in ("main", "near", "far")}
    stores = made.stores(everywhere)
    storage, told = joined(stores)
    with pytest.raises(IntegrityFault, match="segment 2"):
        rekey(storage, made.file, made.file.header, made.keys.private, public_key=made.keys.public, body="none")
    assert not {"none", "none.seal"} & set(storage.names())
    assert sorted(tale[:2] for tale in told) == [(NAME, store) for store in ("far", "main", "near")]


# --- many threads ---


def test_many_threads_read_right_bytes_and_tell_once() -> None:
    with scene(40 * SEGMENT + 5) as it:
        for round_ in range(5):
            stores = it.stores(
                {"main": {NAME: ("other", round_ * CIPHER_SEGMENT)}, "near": {NAME: ("cut", 20 * CIPHER_SEGMENT)}}
            )
            storage, told = joined(stores)
            reader = opened(it, storage)
            wrong: list[object] = []

            def work(seed: int, reader: SealedReader = reader, wrong: list[object] = wrong) -> None:
                draw = random.Random(seed)
                try:
                    for _ in range(40):
                        offset, size = draw.randrange(it.file.size), draw.choice((1, 4096, 300_000))
                        if reader.read(offset, size) != it.plain[offset : offset + size]:
                            wrong.append(offset)
                except BaseException as fault:
                    wrong.append(fault)

            threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            reader.close()
            assert not wrong
            tales = [tale[:2] for tale in told]
            assert len(set(tales)) == len(tales) and set(tales) <= {(NAME, "main"), (NAME, "near")}
            assert all(body.closed == 1 for store in stores.values() for body in store.opened)


def test_a_mounted_file_is_read_from_what_holds(made: Scene) -> None:
    stores = made.stores({"main": {NAME: ("other", 5)}, "near": {sidecar(NAME): ("other", 5)}})
    storage, told = joined(stores, "near", "main", "far")
    gate = FileGate(made.file, made.keys, storage.open, lambda file, _: file.header)
    reader = gate.acquire()
    assert reader.read(0, SIZE) == made.plain
    gate.release()
    assert [tale[:2] for tale in told] == [(sidecar(NAME), "near")]
    assert all(body.closed == 1 for store in stores.values() for body in store.opened)


# --- the stores as one ---


def test_new_bodies_go_to_the_first_store_and_are_deleted_in_all(tmp_path: Path) -> None:
    stores = {name: LocalStorage(tmp_path / name, PLACE) for name in ("main", "near")}
    storage, told = joined(stores, "near", "main")
    writer = storage.writer("x")
    writer.write(b"bytes")
    writer.commit()
    assert (list(stores["main"].names()), list(stores["near"].names())) == (["x"], [])
    assert storage.size("x") == 5
    copied(stores["main"], stores["near"], "x")
    assert list(storage.names()) == ["x"]
    assert storage.usage().used == 10
    storage.delete("x")
    assert not list(storage.names()) and not told
    storage.delete("x")
    for ask in (storage.size, storage.open):
        with pytest.raises(MissingFault):
            ask("x")


def test_deleting_goes_on_where_a_store_is_away(made: Scene) -> None:
    stores = made.stores({"main": {"gone": ("away", 0)}})
    writer = stores["near"].writer("gone")
    writer.commit()
    storage, _ = joined(stores)
    with pytest.raises(UnreachableFault):
        storage.delete("gone")
    assert "gone" not in set(stores["near"].names())


def test_a_body_that_is_away_is_not_missing(made: Scene) -> None:
    storage, _ = joined(made.stores({"near": {"never": ("away", 0)}, "main": {"never": ("nothing", 0)}}))
    for ask in (storage.size, storage.open):
        with pytest.raises(UnreachableFault):
            ask("never")


def test_one_store_is_read_without_anything_between(tmp_path: Path) -> None:
    only = LocalStorage(tmp_path, PLACE)
    only.writer("x").commit()
    body = Copies({"main": only}, ["main"]).open("x")
    assert not isinstance(body, Copied)
    assert holding(body, lambda one: one is body)
    body.close()


def test_the_only_copy_is_told_of_too(made: Scene) -> None:
    stores = made.stores({"main": {NAME: ("other", 2 * CIPHER_SEGMENT)}})
    told: Tales = []
    storage = Copies({"main": stores["main"]}, ["main"], lambda *tale: told.append(tale))
    reader = opened(made, storage)
    for _ in range(3):
        assert reader.read(0, 100) == made.plain[:100]
        with pytest.raises(IntegrityFault, match="segment 2"):
            reader.read(2 * SEGMENT, 100)
    reader.close()
    assert [tale[:2] for tale in told] == [(NAME, "main")]


def test_reading_as_it_is_takes_the_next_copy_only_where_one_cannot_be_read(made: Scene) -> None:
    """Without a reader that could tell, other bytes are other bytes."""
    right = made.stores({})["main"].inner.open(NAME)
    whole = bytearray(right.size)
    right.pread_into(whole, 0)
    right.close()
    for fault in ("away", "nothing", "cut", "unreadable", "later"):
        storage, told = joined(made.stores({"main": {NAME: (fault, 1000)}}))
        body = storage.open(NAME)
        found = bytearray()
        while len(found) < body.size:
            piece = bytearray(min(100_000, body.size - len(found)))
            assert body.pread_into(piece, len(found)) == len(piece)
            found += piece
        assert found == whole, fault
        assert body.pread_into(bytearray(5), body.size) == 0
        assert [tale[:2] for tale in told] == [(NAME, "main")]
        body.close()


def test_nothing_is_left_open_where_there_is_no_copy(made: Scene) -> None:
    count: Callable[[], int] = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731
    everywhere = {store: {NAME: ("longer", 0)} for store in ("main", "near", "far")}
    storage, _ = joined(made.stores(everywhere))
    before = count()
    for _ in range(20):
        with pytest.raises(IntegrityFault):
            read(made, storage)
    assert count() == before
