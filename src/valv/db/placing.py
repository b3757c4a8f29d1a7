"""Copies and the work on them, many files at a time: statements that a row at a time would be too slow for."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from valv.db.schema import copy, file, placing, release_file
from valv.db.statements import Insert, Statements
from valv.formats.crypt4gh import OVERHEAD, SEGMENT

_KEPT: Final = (file.c.version.is_not(None), file.c.state == "verified")
"""Files that belong to a version and have a body."""
_STORED: Final = {
    "file": file.c.cipher_size,
    "release_file": release_file.c.size + OVERHEAD * ((release_file.c.size + SEGMENT - 1) // SEGMENT),
}
"""Stored bytes of a body, by table."""


class Placing(Statements):
    """The part of a unit that places bodies; see `valv.ports.records.Unit`."""

    def enrol(self, table: str, where: dict[str, Any], store: str, at: datetime) -> int:
        source, chosen = _chosen(table, where)
        unknown = ~sa.exists().where(copy.c.body == source.c.body)
        found = sa.select(
            source.c.body,
            sa.literal(store),
            sa.literal("whole"),
            _STORED[table],
            sa.literal(at, copy.c.since.type),
            sa.literal(""),
        ).where(*chosen, unknown)
        columns = ["body", "store", "state", "size", "since", "fault"]
        return self.run(_counted(sa.insert(copy).from_select(columns, found))).rowcount

    def queue_bodies(self, table: str, where: dict[str, Any], at: datetime) -> int:
        source, chosen = _chosen(table, where)
        dataset = source.c.dataset if table == "file" else sa.literal("")
        found = sa.select(
            source.c.body,
            sa.literal(table),
            source.c.id,
            dataset,
            sa.literal(at, placing.c.due.type),
            sa.literal(0),
            sa.literal(""),
        ).where(*chosen)
        columns = ["body", "source", "file", "dataset", "due", "tries", "fault"]
        insert = self.insert_or_update(placing).from_select(columns, found)
        again = {"due": insert.excluded.due, "tries": 0, "fault": ""}
        return self.run(_counted(insert.on_conflict_do_update(index_elements=["body"], set_=again))).rowcount

    def copies_of(self, dataset_id: str) -> list[dict[str, Any]]:
        query = (
            sa.select(file.c.version, copy.c.store, copy.c.state, *_SUMS)
            .join(copy, copy.c.body == file.c.body)
            .where(file.c.dataset == dataset_id, *_KEPT)
            .group_by(file.c.version, copy.c.store, copy.c.state)
            .order_by(file.c.version, copy.c.store, copy.c.state)
        )
        return [dict(row) for row in self.run(query).mappings()]

    def copy_totals(self) -> list[dict[str, Any]]:
        query = (
            sa.select(copy.c.store, copy.c.state, *_SUMS)
            .group_by(copy.c.store, copy.c.state)
            .order_by(copy.c.store, copy.c.state)
        )
        return [dict(row) for row in self.run(query).mappings()]

    def placing_faults(self, dataset_id: str = "") -> list[dict[str, Any]]:
        chosen = [placing.c.fault != ""]
        if dataset_id:
            chosen.append(placing.c.dataset == dataset_id)
        count = sa.func.count().label("count")
        query = sa.select(placing.c.fault, count).where(*chosen).group_by(placing.c.fault)
        return [dict(row) for row in self.run(query.order_by(count.desc(), placing.c.fault).limit(_MOST)).mappings()]

    def due_bodies(self, at: datetime, limit: int) -> list[dict[str, Any]]:
        query = sa.select(placing).where(placing.c.due <= at).order_by(placing.c.due, placing.c.body).limit(limit)
        return [dict(row) for row in self.run(query).mappings()]


_SUMS: Final = (
    sa.func.count().label("count"),
    sa.cast(sa.func.coalesce(sa.func.sum(copy.c.size), 0), sa.BigInteger).label("bytes"),
)
_MOST: Final = 20


def _counted(insert: Insert | sa.Insert) -> sa.Insert:
    """The statement with its count of rows, which is kept of an INSERT only where it is asked for."""
    return insert.execution_options(preserve_rowcount=True)


def _chosen(table: str, where: dict[str, Any]) -> tuple[sa.Table, list[sa.ColumnElement[bool]]]:
    source = {"file": file, "release_file": release_file}[table]
    kept = list(_KEPT) if table == "file" else [sa.true()]
    return source, [*(source.c[name] == value for name, value in where.items()), *kept]
