"""Where bytes rest. A store holds opaque, already encrypted bodies under random names; it never sees a plain byte.

Duties of every store:

1. `writer(name).commit()` makes the whole body appear under `name` or not at all, and returns only when it would
   survive a power cut. Before that nothing is visible under `name`; an aborted or killed writer leaves nothing that
   `names()` lists.
2. A name is written once. Writing a name that exists raises `StorageFault`.
3. `delete` of a missing name is no error (all verbs are idempotent).
4. A full or failing medium raises `FullFault` / `StorageFault`, never a bare `OSError`; a missing name `MissingFault`.
   A store that is away raises `UnreachableFault`, after as many attempts as make sense.
5. What a server answers is not believed: after a write the stored size and digest are compared with what was sent, and
   `commit` raises `StorageFault` where they differ; a read that ends early is read again, then a `StorageFault`.
6. `sweep` removes what killed writers left behind; living writers are not touched.

What only some stores can do is a protocol of its own (`Tape`, `Pulls`), asked for with `isinstance`; so is what only
some bodies are (`Copied`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, runtime_checkable

from typing_extensions import Buffer

from valv.errors import Fault

NAME: Final = r"[a-z0-9_-][a-z0-9._-]{0,199}"
"""A regular expression of the names that bodies may have; anything else raises `InputFault`."""


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


@runtime_checkable
class Copied(Protocol):
    """A body of which there are copies in several stores. Its `pread_into` takes another copy where one cannot be read;
    whether what it gave holds, only the reader can say, who goes through the copies one by one
    (`valv.vault.copies.holding`)."""

    def copies(self) -> Iterator[Body]:
        """Each copy, that which held last before the others. They may be absent, which their use then tells, and are
        closed with the whole."""
        ...

    def broken(self, copy: Body, fault: Fault) -> None:
        """This copy cannot be read, or does not hold: from now on it is read last."""
        ...


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

    def usage(self) -> Usage:
        """`used` counts whole bodies."""
        ...

    def sweep(self) -> int:
        """Remove what killed writers left; returns how many things were removed."""
        ...


class Locality(StrEnum):
    """Where a body lies in a store with tapes: what dCache and CTA call it."""

    ONLINE = "online"
    NEARLINE = "nearline"
    UNAVAILABLE = "unavailable"
    LOST = "lost"


@runtime_checkable
class Tape(Protocol):
    """A store whose bodies may lie on tape, from where they must be staged before they can be read."""

    def locality(self, name: str) -> Locality: ...

    def stage(self, names: Sequence[str]) -> None:
        """Ask for these bodies on disk; returns at once. Repeating is no error. `locality` tells how far it is."""
        ...


@runtime_checkable
class Pulls(Protocol):
    """A store that can fetch a body from another one by itself, so that the bytes need not pass through the node."""

    def pull(self, name: str, source: Storage) -> bool:
        """Copy `name` from `source`; False where these two cannot. Duties 1, 2, 4 and 5 of a writer hold. What has
        come is still to be held against its hash tree."""
        ...
