"""Several stores as one. A body may lie in any number of them, under the same name; the nearest copy is read.

Where a read fails, or what was read does not hold, the next copy is taken, and who looks after the copies is told. That
a store has a name is no promise that its bytes are right: the seal says that, and the reader asks for another copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from typing_extensions import Buffer

from valv.errors import Fault, MissingFault, StorageFault, UnreachableFault
from valv.ports.storage import Body, BodyWriter, Place, Storage, Usage

Told = Callable[[str, str, Fault], None]
"""Called with a body's name, the store and what was wrong with the copy there. From any thread; must not raise."""


def _silent(_name: str, _store: str, _fault: Fault) -> None:
    pass


class Copies:
    """Implements `valv.ports.storage.Storage` over `stores`, of which the first is where new bodies are put. `order`:
    the names of all of them, the nearest first. `told`: who is told of copies that do not hold."""

    def __init__(self, stores: Mapping[str, Storage], order: Sequence[str], told: Told = _silent) -> None:
        self._stores = stores
        self._order = order
        self._told = told

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
        if len(self._stores) == 1:
            return self._first.open(name)
        return CopiedBody(self._stores, self._order, name, self._told)

    def size(self, name: str) -> int:
        """Of the nearest copy that there is. Raises `MissingFault` only where every store says that it has none."""
        fault: Fault | None = None
        for store in self._order:
            try:
                return self._stores[store].size(name)
            except MissingFault as missing:
                fault = fault or missing
            except StorageFault as broken:
                fault = broken
            except UnreachableFault as away:
                fault = away
        assert fault is not None
        raise fault

    def delete(self, name: str) -> None:
        """In every store; where one fails the others are done, and its fault is raised then."""
        fault: Fault | None = None
        for store in self._stores.values():
            try:
                store.delete(name)
            except (StorageFault, UnreachableFault) as found:
                fault = fault or found
        if fault is not None:
            raise fault

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


class CopiedBody:
    """One body, read from the nearest copy that holds. Safe for concurrent `pread_into`."""

    def __init__(self, stores: Mapping[str, Storage], order: Sequence[str], name: str, told: Told) -> None:
        self._stores = stores
        self._name = name
        self._told = told
        self._left = list(order)
        self._mutex = threading.Lock()
        self._opened: list[Body] = []
        self._fault: Fault | None = None
        self._store = ""
        with self._mutex:
            self._body = self._next()
        self._size = self._body.size

    @property
    def size(self) -> int:
        return self._size

    def pread_into(self, target: Buffer, offset: int) -> int:
        """As `Body.pread_into`. Where the copy fails, or is shorter than it said, the next one is read."""
        expected = max(0, min(len(memoryview(target).cast("B")), self._size - offset))
        while True:
            body = self._body
            try:
                count = body.pread_into(target, offset)
            except (StorageFault, UnreachableFault, MissingFault) as fault:
                self._turn(body, fault)
                continue
            if count >= expected:
                return count
            self._turn(body, StorageFault(f"{self._name}: the copy ends before its byte {offset + expected}"))

    def another(self, fault: Fault) -> bool:
        """What this copy gave does not hold (`fault`): read another one from now on. False where there is none left."""
        try:
            self._turn(self._body, fault)
        except Fault:
            return False
        return True

    def close(self) -> None:
        """Not while a read goes on."""
        with self._mutex:
            for body in self._opened:
                body.close()
            self._opened.clear()

    def _turn(self, body: Body, fault: Fault) -> None:
        """Away from `body`, unless another thread has turned away from it. Raises `fault` where no copy is left."""
        with self._mutex:
            if body is not self._body:
                return
            self._told(self._name, self._store, fault)
            self._fault = fault
            self._body = self._next()

    def _next(self) -> Body:
        """The nearest copy that was not tried yet and, once one was read, has the same size."""
        while self._left:
            store = self._left.pop(0)
            try:
                body = self._stores[store].open(self._name)
            except MissingFault as missing:
                self._fault = self._fault or missing
                continue
            except (StorageFault, UnreachableFault) as fault:
                self._told(self._name, store, fault)
                self._fault = fault
                continue
            self._opened.append(body)
            if len(self._opened) == 1 or body.size == self._size:
                self._store = store
                return body
            self._fault = StorageFault(f"{self._name}: the copy has {body.size} bytes, not {self._size}")
            self._told(self._name, store, self._fault)
        assert self._fault is not None
        raise self._fault
