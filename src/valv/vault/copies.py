"""Several stores as one. A body may lie in any number of them, under the same name; the nearest copy is read.

Where a read fails, or what was read does not hold, the next copy is taken, and who looks after the copies is told. That
a store has a name is no promise that its bytes are right: the seal says that, and the reader asks for another copy. A
copy that failed is read last from then on, and not given up: two copies that are broken at different places are still
one whole body.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from typing_extensions import Buffer

from valv.errors import Fault, IntegrityFault, MissingFault, StorageFault, UnreachableFault
from valv.ports.storage import Body, BodyWriter, Copied, Place, Storage, Usage

Told = Callable[[str, str, Fault], None]
"""Called with a body's name, the store and what was wrong with the copy there. From any thread; must not raise, and
must be quick: somebody waits for the bytes."""

Made = TypeVar("Made")

AWAY: Final = 30.0
"""Seconds for which a store that did not answer is asked after all others."""
_BROKEN: Final = (UnreachableFault, StorageFault, IntegrityFault, MissingFault)
"""What may be wrong with one copy and not with the next. Where no copy holds, the fault that comes first here is
raised: a store that is away may be back, and then the body may be whole."""


def holding(body: Body, read: Callable[[Body], Made]) -> Made:
    """What `read` makes of `body`, or, where there are several copies, of the first of them that holds: of which `read`
    raises no fault. Only where none holds a fault is raised."""
    return among(body, read) if isinstance(body, Copied) else read(body)


def among(body: Copied, read: Callable[[Body], Made]) -> Made:
    """As `holding`, for who reads often and has asked before whether there are copies: Python is slow to say so."""
    faults: list[Fault] = []
    for copy in body.copies():
        try:
            return read(copy)
        except _BROKEN as fault:
            body.broken(copy, fault)
            faults.append(fault)
    raise _foremost(faults)


def _foremost(faults: Sequence[Fault]) -> Fault:
    return min(faults, key=lambda fault: next(rank for rank, kind in enumerate(_BROKEN) if isinstance(fault, kind)))


def _silent(_name: str, _store: str, _fault: Fault) -> None:
    pass


class Copies:
    """Implements `valv.ports.storage.Storage` over `stores`, of which the first is where new bodies are put. `order`:
    the names of all of them, the nearest first. `told`: who is told of copies that do not hold; also of those that are
    not there, as only the records know where a copy should be."""

    def __init__(self, stores: Mapping[str, Storage], order: Sequence[str], told: Told = _silent) -> None:
        self._stores = stores
        self._order = tuple(order)
        self._told = told
        self._away: dict[str, float] = {}

    @property
    def stores(self) -> Mapping[str, Storage]:
        return self._stores

    @property
    def place(self) -> Place:
        return self._first.place

    @property
    def _first(self) -> Storage:
        return next(iter(self._stores.values()))

    def writer(self, name: str) -> BodyWriter:
        return self._first.writer(name)

    def open(self, name: str) -> Body:
        if len(self._stores) == 1 and self._told is _silent:
            return self._first.open(name)
        return CopiedBody(self, name)

    def size(self, name: str) -> int:
        """Of the nearest copy that there is. Raises `MissingFault` only where every store says that it has none."""
        faults: list[Fault] = []
        for store in self.order():
            try:
                return self._stores[store].size(name)
            except _BROKEN as fault:
                self.note(store, fault)
                faults.append(fault)
        raise _foremost(faults)

    def delete(self, name: str) -> None:
        """In every store; where one fails the others are done, and its fault is raised then."""
        faults: list[Fault] = []
        for store in self._stores.values():
            try:
                store.delete(name)
            except (StorageFault, UnreachableFault) as fault:
                faults.append(fault)
        if faults:
            raise faults[0]

    def names(self) -> Iterator[str]:
        """What lies in any of the stores, each name once."""
        seen: set[str] = set()
        for store in self._stores.values():
            for name in store.names():
                if len(self._stores) == 1:
                    yield name
                elif name not in seen:
                    seen.add(name)
                    yield name

    def usage(self) -> Usage:
        """Of all stores; `free` of the first, where new bodies are put."""
        found = [store.usage() for store in self._stores.values()]
        return Usage(sum(one.used for one in found), found[0].free)

    def sweep(self) -> int:
        return sum(store.sweep() for store in self._stores.values())

    def order(self) -> list[str]:
        """The stores, the nearest first; those that did not answer just now, last."""
        now = time.monotonic()
        return sorted(self._order, key=lambda store: self._away.get(store, 0.0) > now)

    def note(self, store: str, fault: Fault) -> None:
        """What a store answered, or that it did not."""
        if isinstance(fault, UnreachableFault):
            self._away[store] = time.monotonic() + AWAY

    def tell(self, name: str, store: str, fault: Fault) -> None:
        self._told(name, store, fault)


class CopiedBody:
    """One body, read from the nearest copy that holds. Implements `Body` and `Copied`; safe for several threads."""

    def __init__(self, owner: Copies, name: str) -> None:
        self._owner = owner
        self._name = name
        self._copies = [_Copy(owner.stores[store], store, name) for store in owner.order()]
        self._told: set[str] = set()
        self._mutex = threading.Lock()
        try:
            _ = self.size  # as with any store, it is found out now whether there is one
        except Fault:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Of the copy that would be read."""
        return among(self, lambda copy: copy.size)

    def pread_into(self, target: Buffer, offset: int) -> int:
        """As `Body.pread_into`, of a copy that can be read. Whether it holds is not known here."""
        length = len(memoryview(target).cast("B"))

        def read(copy: Body) -> int:
            expected = max(0, min(length, copy.size - offset))
            count = copy.pread_into(target, offset)
            if count < expected:
                raise StorageFault(f"{self._name}: the copy ends before its byte {offset + expected}")
            return count

        return among(self, read)

    def copies(self) -> Iterator[Body]:
        return iter(tuple(self._copies))

    def broken(self, copy: Body, fault: Fault) -> None:
        with self._mutex:
            found = next(one for one in self._copies if one is copy)
            self._copies = [one for one in self._copies if one is not copy] + [found]
            first = found.store not in self._told
            self._told.add(found.store)
        self._owner.note(found.store, fault)
        if first:
            self._owner.tell(self._name, found.store, fault)

    def close(self) -> None:
        """Not while a read goes on."""
        for copy in self._copies:
            copy.close()


class _Copy:
    """The body of one store, opened when it is needed, and again where it could not be opened before."""

    def __init__(self, storage: Storage, store: str, name: str) -> None:
        self.store = store
        self._storage = storage
        self._name = name
        self._mutex = threading.Lock()
        self._body: Body | None = None

    @property
    def size(self) -> int:
        return self._opened().size

    def pread_into(self, target: Buffer, offset: int) -> int:
        return self._opened().pread_into(target, offset)

    def close(self) -> None:
        with self._mutex:
            if self._body is not None:
                self._body.close()
                self._body = None

    def _opened(self) -> Body:
        body = self._body
        if body is None:
            with self._mutex:
                body = self._body = self._body or self._storage.open(self._name)
        return body
