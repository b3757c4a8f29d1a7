"""Plain rows: a table is named, a row is a mapping of its columns. A wrong name is a `ValueError`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.schema import ScalarElementColumnDefault

from valv.db import catalogue
from valv.db.schema import ROW_TABLES, dataset
from valv.db.statements import Statements
from valv.errors import InputFault


class Rows(Statements):
    """The plain half of a unit; see `valv.ports.records.Unit`. `erased`: whether a text was erased in it."""

    erased = False

    def insert(self, table: str, rows: Iterable[dict[str, Any]]) -> None:
        target = _table(table)
        batch = [_complete(target, row) for row in rows]
        if batch:
            self.run(sa.insert(target), batch)

    def upsert(self, table: str, row: dict[str, Any]) -> None:
        """Insert, or where the key is there already, set the given columns. The key is the primary key where the row
        has it, else the first unique constraint that the row fills."""
        target = _table(table)
        full = _complete(target, row)
        key = _conflict_key(target, row)
        changed = [name for name in row if name not in key]
        insert = self.insert_or_update(target).values(full)
        if changed:
            insert = insert.on_conflict_do_update(
                index_elements=key, set_={one: insert.excluded[one] for one in changed}
            )
        else:
            insert = insert.on_conflict_do_nothing(index_elements=key)
        self.run(insert)
        if target is dataset:
            self._refold([row["id"]])

    def update(self, table: str, where: dict[str, Any], values: dict[str, Any]) -> int:
        target = _table(table)
        _check(target, values)
        if not values:
            raise ValueError(f"an update of {table} needs a value to set")
        self.erased |= values.get("erased") is not None
        folded = target is dataset and not catalogue.SOURCES.isdisjoint(values)
        ids = [row["id"] for row in self.rows(table, where)] if folded else []
        count = self.run(sa.update(target).where(*_conditions(target, where)).values(values)).rowcount
        if ids:
            self._refold(ids)
        return count

    def update_each(self, table: str, changes: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        target = _table(table)
        if target is dataset:
            raise ValueError(f"rows of {table} are updated one by one")
        batch, shapes = [], set()
        for where, values in changes:
            for one in (where, values):
                _check(target, one)
            if None in where.values() or not (where and values):
                raise ValueError(f"an update of {table} needs what to look for and what to set")
            shapes.add((tuple(where), tuple(values)))
            batch.append(_prefixed("where", where) | _prefixed("set", values))
        if len(shapes) > 1:
            raise ValueError(f"the updates of {table} must all have the same columns")
        if batch:
            ((looked, given),) = shapes
            found = [_column(target, name) == sa.bindparam(f"where_{name}") for name in looked]
            setting: dict[str, Any] = {name: sa.bindparam(f"set_{name}") for name in given}
            self.run(sa.update(target).where(*found).values(setting), batch)

    def delete(self, table: str, where: dict[str, Any]) -> int:
        target = _table(table)
        return self.run(sa.delete(target).where(*_conditions(target, where))).rowcount

    def rows(
        self,
        table: str,
        where: dict[str, Any] | None = None,
        *,
        order: str = "",
        offset: int = 0,
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        target = _table(table)
        query = sa.select(*_shown(target)).where(*_conditions(target, where or {}))
        if order:
            column = _column(target, order.removeprefix("-"))
            query = query.order_by(column.desc() if order.startswith("-") else column.asc())
        query = query.order_by(*target.primary_key)  # so that pages never overlap
        if offset or limit is not None:
            query = query.limit(limit if limit is not None else _ALL).offset(offset)
        return [dict(row) for row in self.run(query).mappings()]

    def count(self, table: str, where: dict[str, Any] | None = None) -> int:
        target = _table(table)
        query = sa.select(sa.func.count()).select_from(target).where(*_conditions(target, where or {}))
        return int(self.run(query).scalar_one())

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
        conditions = catalogue.conditions(text, {"diseases": disease, "data_types": data_type, "consent": consent})
        total = self.run(sa.select(sa.func.count()).select_from(dataset).where(*conditions)).scalar_one()
        query = (
            sa.select(*_shown(dataset))
            .where(*conditions)
            .order_by(dataset.c.changed.desc(), dataset.c.id)
            .offset(offset)
            .limit(limit)
        )
        return int(total), [dict(row) for row in self.run(query).mappings()]

    def _refold(self, ids: list[str]) -> None:
        """Write the folded columns of these datasets again, from the rows as they now stand."""
        for row in self.rows("dataset", {"id": ids}):
            self.run(sa.update(dataset).where(dataset.c.id == row["id"]).values(catalogue.folded(row)))


_ALL = (1 << 63) - 1


def _table(name: str) -> sa.Table:
    if name not in ROW_TABLES:
        raise ValueError(f"there is no table {name!r}; the tables are {', '.join(sorted(ROW_TABLES))}")
    return ROW_TABLES[name]


def _shown(table: sa.Table) -> list[sa.Column[Any]]:
    return [column for column in table.c if not (table is dataset and column.name in catalogue.DERIVED)]


def _column(table: sa.Table, name: str) -> sa.Column[Any]:
    shown = {column.name: column for column in _shown(table)}
    if name not in shown:
        raise ValueError(f"table {table.name} has no column {name!r}; it has {', '.join(shown)}")
    return shown[name]


def _check(table: sa.Table, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        column = _column(table, name)
        if value is None and not column.nullable:
            raise ValueError(f"{table.name}.{name} must not be None")
        _check_value(table, name, value)


def _check_value(table: sa.Table, name: str, value: Any) -> None:
    """What one database would take and the other not is refused on both."""
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= one <= "\udfff" for one in value)):
        raise InputFault(f"{table.name}.{name} holds a character that cannot be recorded")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise InputFault(f"{table.name}.{name} holds a number that is too large")
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ValueError(f"{table.name}.{name} needs a time zone")


def _complete(table: sa.Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with the defaults of the columns that it leaves out, so that all rows of an insert have one shape."""
    _check(table, row)
    full = dict(row)
    for column in table.c:
        if column.name in full or column is table.autoincrement_column:
            continue
        if isinstance(column.default, ScalarElementColumnDefault):
            full[column.name] = column.default.arg
        elif column.nullable:
            full[column.name] = None
        else:
            raise ValueError(f"a row of {table.name} needs {column.name!r}")
    if table is dataset:
        full |= catalogue.folded(full)
    return full


def _prefixed(word: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{word}_{name}": value for name, value in values.items()}


def _conflict_key(table: sa.Table, row: Mapping[str, Any]) -> list[str]:
    unique = sorted(
        (one for one in table.constraints if isinstance(one, sa.UniqueConstraint)), key=lambda one: str(one.name)
    )
    for constraint in (table.primary_key, *unique):
        names = [column.name for column in constraint.columns]
        if all(name in row for name in names):
            return names
    raise ValueError(f"an upsert of {table.name} needs the columns of its key")


def _conditions(table: sa.Table, where: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    for name, value in where.items():
        column = _column(table, name)
        if isinstance(column.type, sa.JSON):
            raise ValueError(f"{table.name}.{name} holds JSON and cannot be compared")
        values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
        for one in values:
            _check_value(table, name, one)
        if value is None:
            found.append(column.is_(None))
        elif isinstance(value, list | tuple | set | frozenset):
            found.append(column.in_(values))
        else:
            found.append(column == value)
    return found
