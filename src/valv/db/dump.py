"""All records as lines of text, the same whatever the database: what a backup holds, and how it comes back.

    {"format":"valv records 1","schema":"0003"}
    {"table":"account","columns":["id","name",…]}
    ["…","…",…]                                      one line a row
    …
    {"end":true,"rows":1234}

Tables come in the order in which they point to each other. Bytes are base64, times RFC 3339 in UTC, the rest is JSON as
it is. What belongs to a moment is left out: sessions, challenges, attempts to log in, answers to repeated requests.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec
import sqlalchemy as sa

from valv.db.engine import fault_of
from valv.db.schema import SCHEMA, UtcTime, head, metadata
from valv.db.statements import Statements
from valv.errors import ConfigFault, ConflictFault, FormatFault

FORMAT: Final = "valv records 1"
PASSING: Final = frozenset({"session", "key_challenge", "login_attempt", "idempotency", "open_body"})
"""Tables that no backup has."""
_STEP: Final = 1000
"""Rows that are read and written at a time."""
_BAD: Final = "the backup was altered or damaged"
T = TypeVar("T")


class Dumping(Statements):
    """What a unit can do with all records at once."""

    def dump(self) -> Iterator[bytes]:
        return dump(self)

    def fill(self, given: Iterable[bytes]) -> int:
        return load(self, given)


def tables() -> list[sa.Table]:
    """Those that a backup has, in the order in which they point to each other."""
    return [table for table in metadata.sorted_tables if table.name not in PASSING]


def dump(unit: Statements) -> Iterator[bytes]:
    """The lines, each with its end, of one frozen view. Flat memory."""
    rows = 0
    yield _line({"format": FORMAT, "schema": SCHEMA})
    for table in tables():
        yield _line({"table": str(table.name), "columns": [str(column.name) for column in table.c]})
        query = sa.select(table).order_by(*table.primary_key).execution_options(stream_results=True, yield_per=_STEP)
        for row in _fetched(unit.run(query)):
            yield _line([_plain(value) for value in row])
            rows += 1
    yield _line({"end": True, "rows": rows})


def _fetched(result: Iterable[T]) -> Iterator[T]:
    try:
        yield from result
    except sa.exc.SQLAlchemyError as error:
        raise fault_of(error) from None


def load(unit: Statements, given: Iterable[bytes]) -> int:
    """Fill the empty tables of `unit` with `given`, lines without their ends; returns how many rows came. Raises
    `FormatFault` where they are not what `dump` gives, `ConfigFault` where they are of another schema, `ConflictFault`
    where the database is not empty."""
    found = iter(given)
    _check_head(next(found, b""))
    if unit.run(sa.select(head.c.size)).scalar_one_or_none():
        raise ConflictFault("the database holds a node already", "restore into an empty one")
    unit.run(sa.delete(head))
    known = {table.name: table for table in tables()}
    rows, put = 0, _Rows(unit)
    for line in found:
        value = _decoded(line)
        if isinstance(value, list):
            put.add(value)
            rows += 1
        elif isinstance(value, dict) and value.get("table") in known:
            put.begin(known.pop(value["table"]), value.get("columns"))
        elif value == {"end": True, "rows": rows} and not known:
            put.flush()
            if next(found, None) is not None:
                break
            _set_counters(unit)
            return rows
        else:
            break
    raise FormatFault("the records in the backup are not whole", _BAD)


class _Rows:
    """Collects the rows of a table and inserts many at a time."""

    def __init__(self, unit: Statements) -> None:
        self._unit = unit
        self._table: sa.Table | None = None
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []

    def begin(self, table: sa.Table, columns: Any) -> None:
        self.flush()
        self._table, self._columns = table, _columns(table, columns)

    def add(self, values: list[Any]) -> None:
        if self._table is None:
            raise FormatFault("a row of the backup belongs to no table", _BAD)
        self._rows.append(_row(self._table, self._columns, values))
        if len(self._rows) == _STEP:
            self.flush()

    def flush(self) -> None:
        if self._rows and self._table is not None:
            self._unit.run(sa.insert(self._table), self._rows)
        self._rows = []


def _check_head(line: bytes) -> None:
    value = _decoded(line)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise FormatFault("these are no records of a node", _BAD)
    if value.get("schema") != SCHEMA:
        raise ConfigFault(
            f"the backup has schema {value.get('schema')}, this release {SCHEMA}",
            "restore it with the release that made it, then upgrade the node",
        )


def _columns(table: sa.Table, columns: Any) -> list[str]:
    if not isinstance(columns, list) or set(columns) != {column.name for column in table.c}:
        raise FormatFault(f"the table {table.name} of the backup has other columns", _BAD)
    return columns


def _row(table: sa.Table, columns: list[str], values: Any) -> dict[str, Any]:
    if not isinstance(values, list) or len(values) != len(columns):
        raise FormatFault(f"a row of {table.name} in the backup is not whole", _BAD)
    return {name: _typed(table.c[name].type, value) for name, value in zip(columns, values, strict=True)}


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes | memoryview) else value


def _typed(kind: Any, value: Any) -> Any:
    reading: Callable[[Any], Any] | None = None
    if isinstance(kind, sa.LargeBinary):
        reading = _blob
    elif isinstance(kind, UtcTime):
        reading = datetime.fromisoformat
    if value is None or reading is None:
        return value
    try:
        return reading(value)
    except (ValueError, TypeError, binascii.Error):
        raise FormatFault("a value in the backup has the wrong form", _BAD) from None


def _blob(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


def _line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _decoded(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise FormatFault("a line of the backup is no JSON", _BAD) from None


def _set_counters(unit: Statements) -> None:
    """PostgreSQL counts generated ids by itself, and does not see those that were given."""
    for table in tables():
        column = table.autoincrement_column
        if column is None or unit.dialect != "postgresql":
            continue
        newest = sa.select(sa.func.coalesce(sa.func.max(column), 0) + 1).scalar_subquery()
        counter = sa.func.pg_get_serial_sequence(table.name, column.name)
        unit.run(sa.select(sa.func.setval(counter, newest, False)))
