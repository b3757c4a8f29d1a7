"""Writing bodies to Swift, so that a name appears at once, whole, and once.

A body up to one segment is a single PUT. A longer one is sent as segments, in parallel, under names that are no bodies;
then a manifest (a Static Large Object) with the size and MD5 of each makes the body, and Swift compares both with what
it holds. A manifest names at most `fan` parts; above that, manifests of manifests.

Swift keeps `If-None-Match: *` against what lies there already, but of two writers at the same moment both may pass. So
whoever makes a name is alone at it: it puts a *claim* `claims/NAME/MARK` and then lists the claims of this name. Only
who finds no other one goes on; of several the first in order stays and waits, the others step back.

Every answer is checked: each ETag is the MD5 of what was sent, and at the end a HEAD must show size, ETag and the mark
of this writer, which tells after a lost answer whose body it is.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from typing_extensions import Buffer

from valv.errors import Fault, StorageFault
from valv.storage.swift_session import SwiftSession

MARK: Final = "x-object-meta-valv-writer"
ONCE: Final = {"if-none-match": "*"}
CLAIM_SECONDS: Final = 30.0
"""So long a writer waits for others that are making the same name."""
_RANDOM: Final = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class Making:
    """What the writers of one store share. `top`: container and prefix of everything, with `/` at the end; `prefix`:
    the prefix alone."""

    session: SwiftSession
    container: str
    prefix: str
    segment: int
    lanes: int
    fan: int
    living: set[str] = field(default_factory=set)  # marks of writers of this process

    @property
    def top(self) -> str:
        return f"{self.container}/{self.prefix}"

    @contextmanager
    def claim(self, name: str, mark: str) -> Iterator[None]:
        """While this writer alone may make `name`. Raises `StorageFault` where it exists, or another one is at it."""
        ask, until = self.session.ask, time.monotonic() + CLAIM_SECONDS
        own, listed = f"claims/{name}/{mark}", {"prefix": f"{self.prefix}claims/{name}/", "format": "json"}
        try:
            there = False
            while True:
                if ask("HEAD", f"{self.top}bodies/{name}", allowed=(404,)).status != 404:
                    raise exists(name)
                if not there:
                    ask("PUT", f"{self.top}{own}")
                    there = True
                found = sorted(str(one["name"]) for one in json.loads(ask("GET", self.container, query=listed).content))
                if found == [self.prefix + own]:
                    break
                if time.monotonic() > until:
                    raise StorageFault(f"{name} is being written by another writer", "the sweep removes its claim")
                if found and found[0] != self.prefix + own:
                    ask("DELETE", f"{self.top}{own}", allowed=(404,))
                    there = False
                time.sleep(_RANDOM.uniform(0.02, 0.1))
            if ask("HEAD", f"{self.top}bodies/{name}", allowed=(404,)).status != 404:
                raise exists(name)
            yield
        finally:
            with suppress(Fault):  # else the sweep removes it
                ask("DELETE", f"{self.top}{own}", allowed=(404,))


@dataclass(frozen=True, slots=True)
class Part:
    """A segment, or a manifest of some. `path`: without the container."""

    path: str
    etag: str
    size: int


class SwiftWriter:
    """Sequential writer of one body: up to `lanes` segments go out while one is filled. `abort` after any fault."""

    def __init__(self, making: Making, name: str) -> None:
        self._making = making
        self._session = making.session
        self._name = name
        self._mark = secrets.token_hex(16)
        self._folder = f"{making.prefix}segments/{name}/{self._mark}/"
        self._buffer = bytearray()
        self._size = 0
        self._count = 0
        self._parts: dict[int, Part] = {}
        self._made: list[str] = []
        self._lanes: ThreadPoolExecutor | None = None
        self._sent: set[Future[None]] = set()
        self._ended = False
        self._unsure = False  # whether the name may be there, with this writer's segments

    def write(self, data: Buffer) -> None:
        """Raises `StorageFault` once a segment before could not be stored."""
        if self._ended:
            raise StorageFault(f"{self._name}: the writer has ended")
        rest = memoryview(data).cast("B")
        while rest:
            if len(self._buffer) == self._making.segment:
                self._send_segment()
            taken = rest[: self._making.segment - len(self._buffer)]
            self._buffer += taken
            self._size += len(taken)
            rest = rest[len(taken) :]

    def commit(self) -> None:
        if self._ended:
            raise StorageFault(f"{self._name}: the writer has ended")
        try:
            if self._lanes is None:
                etag, query = hashlib.md5(self._buffer, usedforsecurity=False).hexdigest(), {}
                body = memoryview(self._buffer)
            else:
                body, etag = self._manifest(), self._etag
                query = {"multipart-manifest": "put"}
            with self._making.claim(self._name, self._mark):
                self._appear(body, etag, query)
        except BaseException:
            self.abort()
            raise
        self._made.clear()
        self._end()

    def abort(self) -> None:
        """Frees what was stored. Where the server is away, or does not tell whether the body is there, `sweep` does it
        later."""
        for future in self._sent:
            future.cancel()
        if not self._ended and self._sent:
            wait(self._sent)
        for path in [] if self._unsure else self._made:
            with suppress(Fault):
                self._session.ask("DELETE", f"{self._making.container}/{path}", allowed=(404,))
        self._made.clear()
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._buffer = bytearray()
        if self._lanes is not None:
            self._lanes.shutdown()
            self._lanes = None
        self._making.living.discard(self._mark)

    def _send_segment(self) -> None:
        """The full buffer goes out, once there is a lane for it. Raises the fault of an earlier one."""
        if self._lanes is None:
            self._making.living.add(self._mark)
            self._lanes = ThreadPoolExecutor(self._making.lanes, "swift-segment")
        self._await(self._making.lanes)
        data, self._buffer = self._buffer, bytearray()
        path = f"{self._folder}{self._count:08}"
        self._made.append(path)
        self._sent.add(self._lanes.submit(self._store_segment, self._count, path, data))
        self._count += 1

    def _await(self, fewer: int) -> None:
        """Until fewer than `fewer` segments are on their way."""
        while len(self._sent) >= max(1, fewer):
            done, self._sent = wait(self._sent, return_when="FIRST_COMPLETED")
            for future in done:
                future.result()

    def _store_segment(self, number: int, path: str, data: bytearray) -> None:
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        self._store(path, memoryview(data), etag)
        self._parts[number] = Part(path, etag, len(data))

    def _store(self, path: str, body: memoryview, etag: str, query: dict[str, str] | None = None) -> None:
        """A segment, or a manifest of some. Swift refuses what has another digest than `etag`."""
        headers = {"etag": etag}
        answer = self._session.ask("PUT", f"{self._making.container}/{path}", query=query, headers=headers, body=body)
        if answer.etag != etag:
            raise StorageFault(f"{self._name}: the Swift server stored other bytes than were sent")

    def _manifest(self) -> memoryview:
        """Of the whole body; sets `_etag`, which Swift gives to a body with this manifest."""
        if self._buffer:
            self._send_segment()
        while self._sent:
            self._await(1)
        parts, level = [self._parts[number] for number in range(self._count)], 0
        while len(parts) > self._making.fan:
            level += 1
            groups = [parts[at : at + self._making.fan] for at in range(0, len(parts), self._making.fan)]
            parts = [self._group(f"{self._folder}{level}-{number:08}", group) for number, group in enumerate(groups)]
        self._etag = _etag(parts)
        return self._written(parts)

    def _group(self, path: str, parts: list[Part]) -> Part:
        self._made.append(path)
        etag = _etag(parts)
        self._store(path, self._written(parts), etag, {"multipart-manifest": "put"})
        return Part(path, etag, sum(part.size for part in parts))

    def _written(self, parts: list[Part]) -> memoryview:
        container = self._making.container
        entries = [{"path": f"/{container}/{one.path}", "etag": one.etag, "size_bytes": one.size} for one in parts]
        return memoryview(json.dumps(entries).encode())

    def _appear(self, body: memoryview, etag: str, query: dict[str, str]) -> None:
        path = f"{self._making.top}bodies/{self._name}"
        headers = ONCE | {"etag": etag, MARK: self._mark}
        self._unsure = True
        try:
            said = self._session.ask("PUT", path, query=query, headers=headers, body=body, allowed=(412,)).status != 412
        except StorageFault:
            with suppress(Fault):
                self._unsure = self._session.ask("HEAD", path, allowed=(404,)).headers.get(MARK) == self._mark
            raise
        shown = self._session.ask("HEAD", path, allowed=(404,))
        if shown.status == 404:
            self._unsure = False
            what = "said that it stored it, and has not" if said else "would not store it"
            raise StorageFault(f"{self._name}: the Swift server {what}")
        if shown.headers.get(MARK) != self._mark:
            self._unsure = False
            raise exists(self._name)
        if shown.etag != etag or shown.headers.get("content-length") != str(self._size):
            with suppress(Fault):  # it is this writer's own
                self._session.ask("DELETE", path, allowed=(404,))
                self._unsure = False
            raise StorageFault(f"{self._name}: the Swift server stored other bytes than were sent")


def _etag(parts: list[Part]) -> str:
    return hashlib.md5("".join(part.etag for part in parts).encode(), usedforsecurity=False).hexdigest()


def exists(name: str) -> StorageFault:
    return StorageFault(f"{name} exists already", "a body is written once; use a new name")
