"""Looking over a node's own records: what should be true of them at every moment, and what is not."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from valv.app import streams
from valv.app.node import Node
from valv.formats.seal import sidecar

PAGE = 500


class Finding(msgspec.Struct, frozen=True):
    """Something that is wrong, and what to do about it."""

    what: str
    hint: str


def snapshots(node: Node) -> Iterator[Finding]:
    """Kept states that are not what their events fold to."""
    for process in streams.PROCESSES.values():
        offset = 0
        while True:
            with node.records.reading() as unit:
                kept = unit.find(process.kind, newest_first=False, offset=offset, limit=PAGE)
                for snapshot in kept:
                    if process.fold(unit.events(snapshot.stream)) != process.decode(snapshot):
                        yield Finding(f"{snapshot.stream}: its state is not what its events say", "restore a backup")
            offset += len(kept)
            if len(kept) < PAGE:
                break


def bodies(node: Node) -> tuple[set[str], set[str]]:
    """(Names that records point to and the store does not have; names in the store that no record points to.)"""
    with node.records.reading() as unit:
        rows = unit.rows("file") + unit.rows("release_file")
    wanted = {name for row in rows for name in (row["body"], sidecar(row["body"]))}
    arriving = {name for row in rows if row.get("state") == "arriving" for name in (row["body"], sidecar(row["body"]))}
    there = set(node.storage.names())
    return wanted - there - arriving, there - wanted


def outbox(node: Node) -> Iterator[Finding]:
    """Deliveries that have been failing."""
    with node.records.reading() as unit:
        late = [row for row in unit.rows("outbox", {"done": None}) if row["tries"] > 3]
    if late:
        topics = ", ".join(sorted({f"{row['topic']} ({row['error']})" for row in late}))
        yield Finding(f"{len(late)} deliveries fail again and again: {topics}", "look at the worker's log")
