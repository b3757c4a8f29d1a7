"""The records of the node: the journal, the folded states, and the plain rows beside them.

One `Unit` is one database transaction. The journal is append-only; each stream's current state is folded by the core
and kept beside it as a snapshot, with links by which it is found again. Personal data and free text are plain rows that
can be erased; the journal holds random ids and salted digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

import msgspec


class Recorded(msgspec.Struct, frozen=True):
    """One event as it stands in the journal. `position` counts from 0 and is the leaf index of the Merkle tree; `data`
    is the event's JSON with its tag; `leaf` is the canonical bytes whose RFC 9162 leaf hash is in the tree."""

    position: int
    stream: str
    version: int
    tag: str
    at: datetime
    actor: str
    command: str
    data: bytes
    leaf: bytes


class Snapshot(msgspec.Struct, frozen=True):
    """The folded state of one stream. `stream` is `<kind>/<id>`; `version` counts its events; `state` is JSON."""

    stream: str
    kind: str
    version: int
    phase: str
    state: bytes
    changed: datetime


class Change(msgspec.Struct, frozen=True):
    """New events of one stream and what they lead to.

    `expected`: the version that the decision was made on. `events`: (tag, JSON) pairs. `links`: relation → targets, the
    whole set each time.
    """

    stream: str
    kind: str
    expected: int
    events: tuple[tuple[str, bytes], ...]
    phase: str
    state: bytes
    links: dict[str, tuple[str, ...]] = {}


class Head(msgspec.Struct, frozen=True):
    """Size and RFC 9162 root of the journal's tree."""

    size: int
    root: bytes


class Unit(Protocol):
    """One transaction."""

    # --- journal ---
    def load(self, stream: str) -> Snapshot | None: ...

    def find(
        self,
        kind: str,
        *,
        phases: Sequence[str] = (),
        link: tuple[str, str] | None = None,
        newest_first: bool = True,
        offset: int = 0,
        limit: int = 100,
    ) -> list[Snapshot]: ...

    def events(self, stream: str) -> list[Recorded]: ...

    def follow(self, after: int, limit: int = 500) -> list[Recorded]:
        """Events of positions greater than `after` (-1 for all), in order, without gaps."""
        ...

    def append(
        self,
        changes: Sequence[Change],
        *,
        actor: str,
        at: datetime,
        command: str,
        asserts: dict[str, int] | None = None,
    ) -> list[Recorded]:
        """Append all changes or none. Raises `ConflictFault` where a stream, or one in `asserts`, is not at the version
        that was expected (0 = has no events). A `command` id that was appended before raises `RepeatedCommand`."""
        ...

    def repeated(self, command: str) -> bool:
        """Whether this command id was appended before."""
        ...

    def head(self) -> Head: ...

    def inclusion(self, position: int, size: int) -> list[bytes]: ...

    def root(self, size: int) -> bytes:
        """The RFC 9162 root of the first `size` events."""
        ...

    def consistency(self, old: int, new: int) -> list[bytes]: ...

    def put_checkpoint(self, size: int, note: str) -> None: ...

    def checkpoint(self) -> tuple[int, str] | None:
        """The newest signed checkpoint: its size and note."""
        ...

    # --- plain rows: a table is named, a row is a mapping of its columns ---
    def insert(self, table: str, rows: Iterable[dict[str, Any]]) -> None: ...

    def upsert(self, table: str, row: dict[str, Any]) -> None: ...

    def update(self, table: str, where: dict[str, Any], values: dict[str, Any]) -> int: ...

    def update_each(self, table: str, changes: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        """Many updates in one go: (where, values) pairs, all of the same columns. `where` compares by equality with a
        value; a pair that fits no row changes nothing. Not for `dataset`, whose search columns are derived."""
        ...

    def delete(self, table: str, where: dict[str, Any]) -> int: ...

    def rows(
        self,
        table: str,
        where: dict[str, Any] | None = None,
        *,
        order: str = "",
        offset: int = 0,
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """`where` compares by equality; a list value means IN. `order` is a column, with `-` before it descending."""
        ...

    def count(self, table: str, where: dict[str, Any] | None = None) -> int: ...

    def search_catalogue(
        self,
        *,
        text: str = "",
        disease: str = "",
        data_type: str = "",
        consent: str = "",
        offset: int = 0,
        limit: int = 50,
    ) -> tuple[int, list[dict[str, Any]]]:
        """Visible catalogue rows and how many there are in all."""
        ...

    # --- copies of bodies; `table`: `file` (of published versions) or `release_file`, `where`: columns of it ---
    def enrol(self, table: str, where: dict[str, Any], store: str, at: datetime) -> int:
        """Note that `store` has a whole copy of each body of which no copy is known yet. Returns how many."""
        ...

    def queue_bodies(self, table: str, where: dict[str, Any], at: datetime) -> int:
        """Have these bodies' copies looked at from this time on. Returns how many."""
        ...

    def due_bodies(self, at: datetime, limit: int) -> list[dict[str, Any]]:
        """Rows of `placing` that are due, the longest first."""
        ...

    def copies_of(self, dataset_id: str) -> list[dict[str, Any]]:
        """How many copies of a dataset's files there are, and their bytes, by `version`, `store` and `state`."""
        ...

    def copy_totals(self) -> list[dict[str, Any]]:
        """`count` and `bytes` of all copies, by `store` and `state`."""
        ...

    def placing_faults(self, dataset_id: str = "") -> list[dict[str, Any]]:
        """Why bodies are not where they are to be: `fault` and `count`, the most frequent first."""
        ...

    # --- all records at once, for backups ---
    def dump(self) -> Iterator[bytes]:
        """Everything in this view but what belongs to a moment (sessions and the like), as lines of text that any
        database can be filled with. Flat memory."""
        ...

    def fill(self, given: Iterable[bytes]) -> int:
        """Fill an empty database with such lines, given without their ends; returns how many rows came. Raises
        `FormatFault` where they are not whole, `ConfigFault` where they are of another schema, `ConflictFault` where
        the database is not empty."""
        ...


class RepeatedCommand(Exception):
    """This command id was appended before; `recorded` are its events: the first answer still stands."""

    def __init__(self, recorded: list[Recorded]) -> None:
        super().__init__("repeated command")
        self.recorded = recorded


class Records(Protocol):
    def reading(self) -> AbstractContextManager[Unit]: ...

    def writing(self) -> AbstractContextManager[Unit]: ...

    def settle(self) -> bool:
        """Have what was erased leave the files of the database. False where that must be tried again."""
        ...
