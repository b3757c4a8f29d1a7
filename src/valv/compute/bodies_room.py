"""What the worker keeps in hand while it reads bodies for others: a bounded amount of memory, and open bodies."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from valv.errors import StorageFault
from valv.ports.storage import Body, Storage


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: `idle` between two requests, `transfer` for one piece either way, `open` for which a body that nobody
    reads is kept open. `connections`, `room` (bytes in hand): of all together, and of each user. `bodies` kept open;
    `written`: bodies written on one connection."""

    idle: float = 600.0
    transfer: float = 20.0
    open: float = 60.0
    connections: int = 512
    connections_each: int = 16
    room: int = 64 << 20
    room_each: int = 16 << 20
    bodies: int = 128
    written: int = 4096


LIMITS: Final = Limits()


class NoRoom(Exception):
    """Others have all that there is, and kept it for too long."""


class Room:
    """Memory for what is read and written: `total` bytes, of which each user has at most `each`. Who finds none free
    waits, at most `patience` seconds."""

    def __init__(self, total: int, each: int, patience: float) -> None:
        self._total = total
        self._each = each
        self._patience = patience
        self._taken: Counter[int] = Counter()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, uid: int, count: int) -> Iterator[None]:
        with self._changed:
            if not self._changed.wait_for(lambda: self._fits(uid, count), self._patience):
                raise NoRoom("too many bodies are being read at once")
            self._taken[uid] += count
        try:
            yield
        finally:
            with self._changed:
                self._taken[uid] -= count
                if not self._taken[uid]:
                    del self._taken[uid]
                self._changed.notify_all()

    def _fits(self, uid: int, count: int) -> bool:
        return self._taken[uid] + count <= self._each and self._taken.total() + count <= self._total


@dataclass(slots=True)
class _Opened:
    body: Body
    users: int = 0
    since: float = 0.0


class Bodies:
    """Open bodies, kept from one read to the next."""

    def __init__(self, stores: Mapping[str, Storage], limits: Limits) -> None:
        self._stores = stores
        self._limits = limits
        self._mutex = threading.Lock()
        self._open: OrderedDict[tuple[str, str], _Opened] = OrderedDict()

    @contextlib.contextmanager
    def use(self, store: str, name: str) -> Iterator[Body]:
        """Raises what the store's `open` raises. After any fault the body is opened anew for the next."""
        if store not in self._stores:
            raise StorageFault(
                f"the store {store} is not read here", "start the node again after a change of its stores"
            )
        opened = self._take(store, name)
        good = False
        try:
            yield opened.body
            good = True
        finally:
            self._give_back((store, name), opened, good)

    def drop(self, store: str, name: str) -> None:
        with self._mutex:
            opened = self._open.pop((store, name), None)
            unused = opened is not None and not opened.users
        if opened is not None and unused:
            opened.body.close()

    def close(self) -> None:
        """Those that are in use are closed by who uses them."""
        with self._mutex:
            idle = [opened for opened in self._open.values() if not opened.users]
            self._open.clear()
        for opened in idle:
            opened.body.close()

    def _take(self, store: str, name: str) -> _Opened:
        key = (store, name)
        with self._mutex:
            opened = self._open.get(key)
            if opened is not None:
                opened.users += 1
                return opened
        made = _Opened(self._stores[store].open(name), users=1)  # it may take long, and others need not wait
        with self._mutex:
            if key not in self._open:  # another one that was opened meanwhile stays, and this is for this use alone
                self._open[key] = made
        return made

    def _give_back(self, key: tuple[str, str], opened: _Opened, good: bool) -> None:
        now = time.monotonic()
        with self._mutex:
            opened.users -= 1
            opened.since = now
            if self._open.get(key) is opened:
                self._open.move_to_end(key)
                if not good:
                    del self._open[key]
            unused = [] if self._open.get(key) is opened or opened.users else [opened]
            for other, found in list(self._open.items()):
                stale = now - found.since > self._limits.open or len(self._open) > self._limits.bodies
                if stale and not found.users:
                    unused.append(self._open.pop(other))
        for found in unused:
            found.body.close()
