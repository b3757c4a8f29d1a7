"""The journal: append-only events, their Merkle tree, and the snapshots folded from them.

Every append first locks the one row of `head`. What it reads after that (versions, command ids) cannot change until it
commits, and positions and leaves are assigned in the order of commits, so a follower never meets a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from valv.db.schema import checkpoint, command, head, journal, link, merkle, snapshot
from valv.db.statements import Statements
from valv.errors import ConflictFault, InputFault, IntegrityFault
from valv.formats.ledger import canonical_data, encode_leaf
from valv.formats.merkle import Frontier, consistency_proof, inclusion_proof, leaf_hash, root_at
from valv.ports.records import Change, Head, Recorded, RepeatedCommand, Snapshot

_HEAD: Final = sa.select(head.c.size, head.c.frontier, head.c.root).where(head.c.id == 1)
_LOCKED_HEAD: Final = _HEAD.with_for_update()
_COMMAND: Final = sa.select(command.c.first_position, command.c.count).where(command.c.id == sa.bindparam("command"))
_VERSIONS: Final = sa.select(snapshot.c.stream, snapshot.c.version).where(
    snapshot.c.stream.in_(sa.bindparam("streams", expanding=True))
)
_LINKS: Final = sa.select(link.c.stream, link.c.relation, link.c.target).where(
    link.c.stream.in_(sa.bindparam("streams", expanding=True))
)
_SNAPSHOT_COLUMNS: Final = (
    snapshot.c.stream,
    snapshot.c.kind,
    snapshot.c.version,
    snapshot.c.phase,
    snapshot.c.state,
    snapshot.c.changed,
)
_LOAD: Final = sa.select(*_SNAPSHOT_COLUMNS).where(snapshot.c.stream == sa.bindparam("stream"))
_NODE: Final = sa.select(merkle.c.hash).where(merkle.c.level == sa.bindparam("l"), merkle.c.idx == sa.bindparam("i"))
_SET_SNAPSHOT: Final = (
    sa.update(snapshot)
    .where(snapshot.c.stream == sa.bindparam("this"))
    .values({name: sa.bindparam(name) for name in ("version", "phase", "state", "changed")})
)
_SET_HEAD: Final = (
    sa.update(head).where(head.c.id == 1).values({name: sa.bindparam(name) for name in ("size", "frontier", "root")})
)
_ADD_EVENT: Final = sa.insert(journal)
_ADD_NODE: Final = sa.insert(merkle)
_ADD_COMMAND: Final = sa.insert(command)
_ADD_SNAPSHOT: Final = sa.insert(snapshot)
_ADD_LINK: Final = sa.insert(link)
_UNLINK: Final = sa.delete(link).where(
    link.c.stream == sa.bindparam("this"),
    link.c.relation == sa.bindparam("of"),
    link.c.target == sa.bindparam("to"),
)


class Journal(Statements):
    """The journal's half of a unit; see `valv.ports.records.Unit`."""

    def load(self, stream: str) -> Snapshot | None:
        row = self.run(_LOAD, {"stream": stream}).one_or_none()
        return _snapshot(row) if row else None

    def find(
        self,
        kind: str,
        *,
        phases: Sequence[str] = (),
        link: tuple[str, str] | None = None,
        newest_first: bool = True,
        offset: int = 0,
        limit: int = 100,
    ) -> list[Snapshot]:
        query = sa.select(*_SNAPSHOT_COLUMNS).where(snapshot.c.kind == kind)
        if phases:
            query = query.where(snapshot.c.phase.in_(phases))
        if link:
            query = query.where(snapshot.c.stream.in_(_linked(kind, *link)))
        order: tuple[sa.ColumnElement[Any], ...] = (snapshot.c.changed, snapshot.c.stream)
        if newest_first:
            order = tuple(column.desc() for column in order)
        return [_snapshot(row) for row in self.run(query.order_by(*order).offset(offset).limit(limit))]

    def events(self, stream: str) -> list[Recorded]:
        rows = self.run(sa.select(journal).where(journal.c.stream == stream).order_by(journal.c.version))
        return [_recorded(row) for row in rows]

    def follow(self, after: int, limit: int = 500) -> list[Recorded]:
        query = sa.select(journal).where(journal.c.position > after).order_by(journal.c.position).limit(limit)
        return [_recorded(row) for row in self.run(query)]

    # --- append ---

    def append(
        self,
        changes: Sequence[Change],
        *,
        actor: str,
        at: datetime,
        command: str,
        asserts: dict[str, int] | None = None,
    ) -> list[Recorded]:
        if not command:
            raise ValueError("an append needs a command id")
        size, peaks, _ = self.run(_LOCKED_HEAD).one()
        self._refuse_repeated(command)
        versions = self._refuse_conflict(changes, asserts or {})
        frontier = Frontier(size, peaks)
        recorded: list[Recorded] = []
        nodes: list[tuple[int, int, bytes]] = []
        for change in changes:
            for step, (tag, data) in enumerate(change.events, start=1):
                event = _record(frontier.size, change.stream, change.expected + step, tag, at, actor, command, data)
                recorded.append(event)
                nodes.extend(frontier.append(leaf_hash(event.leaf)))
        self._write_events(recorded, nodes)
        self._write_command(command, size, len(recorded))
        self._write_snapshots(changes, versions, at)
        self._write_links(changes, versions)
        self.run(_SET_HEAD, {"size": frontier.size, "frontier": frontier.encode(), "root": frontier.root()})
        return recorded

    def repeated(self, command: str) -> bool:
        return self.run(_COMMAND, {"command": command}).one_or_none() is not None

    def _refuse_repeated(self, command_id: str) -> None:
        before = self.run(_COMMAND, {"command": command_id}).one_or_none()
        if before:
            first, count = before
            raise RepeatedCommand(self.follow(first - 1, count) if count else [])

    def _refuse_conflict(self, changes: Sequence[Change], asserts: dict[str, int]) -> dict[str, int]:
        """The versions of all streams named, as they stand under the lock. Raises `ConflictFault` on a wrong guess."""
        streams = {*asserts, *(change.stream for change in changes)}
        stored: dict[str, int] = {row.stream: row.version for row in self.run(_VERSIONS, {"streams": sorted(streams)})}
        now = dict(stored)
        for stream, expected in asserts.items():
            _compare(stream, now.get(stream, 0), expected)
        for change in changes:
            _compare(change.stream, now.get(change.stream, 0), change.expected)
            now[change.stream] = change.expected + len(change.events)
        return stored

    def _write_events(self, recorded: list[Recorded], nodes: list[tuple[int, int, bytes]]) -> None:
        if recorded:
            columns = Recorded.__struct_fields__
            rows = [{name: getattr(event, name) for name in columns} for event in recorded]
            self.run(_ADD_EVENT, rows)
            self.run(_ADD_NODE, [{"level": level, "idx": idx, "hash": node} for level, idx, node in nodes])

    def _write_command(self, command_id: str, first: int, count: int) -> None:
        self.run(_ADD_COMMAND, {"id": command_id, "first_position": first, "count": count})

    def _write_snapshots(self, changes: Sequence[Change], stored: dict[str, int], at: datetime) -> None:
        for change in {change.stream: change for change in changes}.values():  # the last of a stream stands
            version = change.expected + len(change.events)
            values = {"version": version, "phase": change.phase, "state": change.state, "changed": at}
            if change.stream in stored:
                self.run(_SET_SNAPSHOT, {"this": change.stream, **values})
            else:
                self.run(_ADD_SNAPSHOT, {"stream": change.stream, "kind": change.kind, **values})

    def _write_links(self, changes: Sequence[Change], stored: dict[str, int]) -> None:
        wanted = {
            change.stream: {(relation, target) for relation, targets in change.links.items() for target in targets}
            for change in changes
        }
        kinds = {change.stream: change.kind for change in changes}
        there: dict[str, set[tuple[str, str]]] = {stream: set() for stream in wanted}
        if known := sorted(stored.keys() & wanted.keys()):
            for stream, relation, target in self.run(_LINKS, {"streams": known}):
                there[stream].add((relation, target))
        gone = [
            {"this": stream, "of": relation, "to": target}
            for stream in wanted
            for relation, target in sorted(there[stream] - wanted[stream])
        ]
        new = [
            {"stream": stream, "kind": kinds[stream], "relation": relation, "target": target}
            for stream in wanted
            for relation, target in sorted(wanted[stream] - there[stream])
        ]
        if gone:
            self.run(_UNLINK, gone)
        if new:
            self.run(_ADD_LINK, new)

    # --- the tree ---

    def head(self) -> Head:
        size, _, root = self.run(_HEAD).one()
        return Head(size, root)

    def inclusion(self, position: int, size: int) -> list[bytes]:
        self._check_size(size)
        return inclusion_proof(position, size, self._node)

    def root(self, size: int) -> bytes:
        self._check_size(size)
        return root_at(size, self._node)

    def consistency(self, old: int, new: int) -> list[bytes]:
        self._check_size(new)
        return consistency_proof(old, new, self._node)

    def put_checkpoint(self, size: int, note: str) -> None:
        self._check_size(size)
        insert = self.insert_or_update(checkpoint).values(size=size, note=note)
        self.run(insert.on_conflict_do_update(index_elements=["size"], set_={"note": note}))

    def checkpoint(self) -> tuple[int, str] | None:
        row = self.run(sa.select(checkpoint).order_by(checkpoint.c.size.desc()).limit(1)).one_or_none()
        return (row.size, row.note) if row else None

    def _check_size(self, size: int) -> None:
        known = self.head().size
        if size > known:
            raise InputFault(f"the ledger has {known} events, not {size}")

    def _node(self, level: int, index: int) -> bytes:
        node: bytes | None = self.run(_NODE, {"l": level, "i": index}).scalar_one_or_none()
        if node is None:
            raise IntegrityFault(f"the ledger lacks the node {index} of level {level}", "run 'valv ledger verify'")
        return node


def _record(
    position: int, stream: str, version: int, tag: str, at: datetime, actor: str, command_id: str, data: bytes
) -> Recorded:
    plain = canonical_data(data)
    leaf = encode_leaf(position, stream, version, tag, at, actor, command_id, plain)
    return Recorded(position, stream, version, tag, at.astimezone(UTC), actor, command_id, plain, leaf)


def _compare(stream: str, version: int, expected: int) -> None:
    if version != expected:
        raise ConflictFault(f"{stream} is at version {version}, not {expected}")


def _linked(kind: str, relation: str, target: str) -> sa.Select[tuple[str]]:
    return sa.select(link.c.stream).where(link.c.kind == kind, link.c.relation == relation, link.c.target == target)


def _recorded(row: sa.Row[*tuple[Any, ...]]) -> Recorded:
    return Recorded(**row._mapping)


def _snapshot(row: sa.Row[*tuple[Any, ...]]) -> Snapshot:
    return Snapshot(**row._mapping)
