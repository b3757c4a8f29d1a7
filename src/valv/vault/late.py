"""A store that may be away when a process begins: a lost disk, a folder that cannot be opened.

It is opened at its first use, and tried again at each use until it can be. A store that cannot be opened is away, and
says nothing of the copies in it: who reads goes on with the next copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from valv.errors import MissingFault, StorageFault, UnreachableFault
from valv.ports.storage import Body, BodyWriter, Place, Storage, Usage


class LateStorage:
    """Implements `valv.ports.storage.Storage` over the store that `connect` opens. Every verb raises `UnreachableFault`
    while `connect` raises `StorageFault`, `MissingFault` or `UnreachableFault`."""

    def __init__(self, connect: Callable[[], Storage], place: Place) -> None:
        self._connect = connect
        self._place = place
        self._mutex = threading.Lock()
        self._store: Storage | None = None

    @property
    def place(self) -> Place:
        return self._place

    def writer(self, name: str) -> BodyWriter:
        return self._opened().writer(name)

    def open(self, name: str) -> Body:
        return self._opened().open(name)

    def size(self, name: str) -> int:
        return self._opened().size(name)

    def delete(self, name: str) -> None:
        self._opened().delete(name)

    def names(self) -> Iterator[str]:
        return self._opened().names()

    def usage(self) -> Usage:
        return self._opened().usage()

    def sweep(self) -> int:
        return self._opened().sweep()

    def _opened(self) -> Storage:
        store = self._store
        if store is None:
            with self._mutex:
                if self._store is None:
                    try:
                        self._store = self._connect()
                    except (StorageFault, MissingFault, UnreachableFault) as fault:
                        raise UnreachableFault(fault.detail, "bring its disk back") from None
                store = self._store
        return store
