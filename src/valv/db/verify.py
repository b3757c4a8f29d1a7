"""Recomputing the whole ledger from the journal's rows, as `valv ledger verify` does on the node itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa

from valv.db.journal import Journal
from valv.db.schema import command, head, journal, merkle, snapshot
from valv.errors import FormatFault, IntegrityFault
from valv.formats.ledger import Chain, Report, encode_leaf
from valv.formats.merkle import node_count
from valv.ports.records import Recorded

_STEP: Final = 2000
"""Events that are looked at in one go."""
_LEVELS: Final = 63


def verify_journal(unit: Journal, note: str | None, vkey: str) -> Report:
    """Hold rows, leaves, nodes, head, streams and command ids against each other and against a signed checkpoint.

    `note`: see `Database.verify`. Memory grows with the number of streams, not of events.
    """
    if note is None and vkey:
        stored = unit.checkpoint()
        note = stored[1] if stored else None
    try:
        chain = Chain(note, vkey)
    except (FormatFault, IntegrityFault) as fault:
        return Chain().report(fault.detail)
    try:
        _check_events(unit, chain)
        _check_counts(unit, chain)
        _check_head(unit, chain)
        chain.finish()
        _check_streams(unit, chain)
        _check_commands(unit)
    except (FormatFault, IntegrityFault) as fault:
        return chain.report(fault.detail)
    return chain.report()


def _check_events(unit: Journal, chain: Chain) -> None:
    """Each row says what its leaf says; each leaf and each node above it has the stored hash."""
    while events := _read(unit, chain.size):
        first, last = chain.size, events[-1].position
        stored = _nodes(unit, first, last + 1)
        for event in events:
            if event.position != chain.size:
                raise IntegrityFault(f"position {chain.size}: the event is missing")
            if event.leaf != _leaf(event):
                raise IntegrityFault(f"position {event.position}: the row differs from its leaf")
            for level, index, node in chain.add(event.leaf):
                if stored.get((level, index)) != node:
                    what = "the leaf's hash" if level == 0 else f"the node {index} of level {level}"
                    raise IntegrityFault(f"position {event.position}: {what} is not the one that is stored")


def _read(unit: Journal, position: int) -> list[Recorded]:
    try:
        return unit.follow(position - 1, _STEP)
    except ValueError:  # SQLite keeps what it is told to, even a time that is none
        raise IntegrityFault(f"position {position} or after: a row cannot be read") from None


def _leaf(event: Recorded) -> bytes:
    return encode_leaf(
        event.position, event.stream, event.version, event.tag, event.at, event.actor, event.command, event.data
    )


def _nodes(unit: Journal, start: int, end: int) -> dict[tuple[int, int], bytes]:
    """The stored nodes that become complete while the tree grows from `start` to `end` leaves."""
    found: dict[tuple[int, int], bytes] = {}
    for level in range(_LEVELS):
        low, high = start >> level, end >> level
        if high == 0:
            break
        query = sa.select(merkle.c.idx, merkle.c.hash).where(
            merkle.c.level == level, merkle.c.idx >= low, merkle.c.idx < high
        )
        found.update({(level, index): node for index, node in unit.run(query)})
    return found


def _check_counts(unit: Journal, chain: Chain) -> None:
    """Nothing stands beside what was recomputed."""
    rows = unit.run(sa.select(sa.func.count()).select_from(journal)).scalar_one()
    if rows != chain.size:
        raise IntegrityFault(f"the journal has {rows} rows, only {chain.size} of them in order from position 0")
    count = unit.run(sa.select(sa.func.count()).select_from(merkle)).scalar_one()
    if count != node_count(chain.size):
        raise IntegrityFault(f"the tree has {count} nodes, {chain.size} events make {node_count(chain.size)}")


def _check_head(unit: Journal, chain: Chain) -> None:
    row = unit.run(sa.select(head)).one_or_none()
    if row is None:
        raise IntegrityFault("the head of the ledger is missing")
    if row.size != chain.size:
        raise IntegrityFault(f"the head says that there are {row.size} events, there are {chain.size}")
    if row.root != chain.frontier.root() or row.frontier != chain.frontier.encode():
        raise IntegrityFault(f"the head's root is not the root of the {chain.size} events")


def _check_streams(unit: Journal, chain: Chain) -> None:
    """The folded state of each stream stands at the stream's newest version."""
    query = sa.select(snapshot.c.stream, snapshot.c.version).order_by(snapshot.c.stream)
    seen = 0
    for stream, version in unit.run(query):
        events = chain.versions.get(stream, 0)
        seen += events > 0
        if version != events:
            raise IntegrityFault(f"stream {stream} has {events} events, its state says {version}")
    if seen != len(chain.versions):
        raise IntegrityFault(f"{len(chain.versions) - seen} streams have events but no state")


def _check_commands(unit: Journal) -> None:
    """Each event came with a command id that is known as having appended just there."""
    for position, name, why in _strays(unit):
        raise IntegrityFault(f"position {position}: command {name} {why}")


def _strays(unit: Journal) -> Iterator[tuple[int, str, str]]:
    inside = (journal.c.position >= command.c.first_position) & (
        journal.c.position < command.c.first_position + command.c.count
    )
    strays = (
        sa.select(journal.c.position, journal.c.command)
        .select_from(journal.outerjoin(command, (command.c.id == journal.c.command) & inside))
        .where(command.c.id.is_(None))
        .order_by(journal.c.position)
        .limit(1)
    )
    for position, name in unit.run(strays):
        yield position, name, "is not recorded as having appended this event"
    events = sa.func.count(journal.c.position)
    short = (
        sa.select(command.c.first_position, command.c.id)
        .select_from(command.outerjoin(journal, journal.c.command == command.c.id))
        .group_by(command.c.first_position, command.c.id, command.c.count)
        .having(events != command.c.count)
        .order_by(command.c.first_position)
        .limit(1)
    )
    for position, name in unit.run(short):
        yield position, name, "is recorded with another number of events"
