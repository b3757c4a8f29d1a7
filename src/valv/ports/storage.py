"""Where bytes rest. A store holds opaque, already encrypted bodies under random names; it never sees a plain byte.

Duties of every store:

1. `writer(name).commit()` makes the whole body appear under `name` or not at all, and returns only when it would
   survive a power cut. Before that nothing is visible under `name`; an aborted or killed writer leaves nothing that
   `names()` lists.
2. A name is written once. Writing a name that exists raises `StorageFault`.
3. `delete` of a missing name is no error (all verbs are idempotent).
4. A full or failing medium raises `FullFault` / `StorageFault`, never a bare `OSError`; a missing name `MissingFault`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store stands: ISO 3166 country code and the unit (department) that runs it."""

    country: str
    unit: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes. `free` is None where the store cannot say."""

    used: int
    free: int | None


class Body(Protocol):
    """One stored body, open for reading. Safe for concurrent `pread_into` from several threads."""

    @property
    def size(self) -> int: ...

    def pread_into(self, target: Buffer, offset: int) -> int:
        """Fill `target` from `offset`; returns the bytes read, short only at the end of the body."""
        ...

    def close(self) -> None: ...


class BodyWriter(Protocol):
    """Sequential writer of one body."""

    def write(self, data: Buffer) -> None: ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...


class Storage(Protocol):
    @property
    def place(self) -> Place: ...

    def writer(self, name: str) -> BodyWriter: ...

    def open(self, name: str) -> Body: ...

    def size(self, name: str) -> int: ...

    def delete(self, name: str) -> None: ...

    def names(self) -> Iterator[str]: ...

    def usage(self) -> Usage: ...
