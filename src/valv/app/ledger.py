"""The ledger: reading it, proving it, and signing its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from valv.app.node import Node, Who, allow
from valv.core.authorize import Resource
from valv.ports.records import Recorded


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One event for a reader. `actor`: the account's name where it still has one, else its id."""

    position: int
    at: str
    event: str
    stream: str
    version: int
    actor: str
    data: dict[str, Any]


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What an auditor needs to check the ledger elsewhere: the newest signed checkpoint and the node's verifier key."""

    size: int
    root: str
    checkpoint: str
    checkpoint_size: int
    log_key: str


def show(node: Node, who: Who, *, after: int = -1, limit: int = 100, newest: bool = False) -> list[Entry]:
    """Events after a position, oldest first; or the `limit` newest."""
    allow(node, who, "ledger.show", Resource(kind="ledger"))
    limit = max(1, min(limit, 1000))
    with node.records.reading() as unit:
        if newest:
            after = unit.head().size - 1 - limit
        records = unit.follow(after, limit)
        rows = unit.rows("account", {"id": sorted({record.actor for record in records})})
    people = {row["id"]: row["name"] for row in rows}
    return [_entry(record, people) for record in records]


def _entry(record: Recorded, people: dict[str, str]) -> Entry:
    return Entry(
        position=record.position,
        at=record.at.isoformat(timespec="milliseconds"),
        event=record.tag,
        stream=record.stream,
        version=record.version,
        actor=people.get(record.actor, record.actor),
        data=msgspec.json.decode(record.data),
    )


def proof(node: Node, who: Who) -> Proof:
    allow(node, who, "ledger.verify", Resource(kind="ledger"))
    with node.records.reading() as unit:
        head, newest = unit.head(), unit.checkpoint()
    size, note = newest or (0, "")
    return Proof(
        size=head.size,
        root=head.root.hex(),
        checkpoint=note,
        checkpoint_size=size,
        log_key=node.keys.status().log_key,
    )


def export(node: Node, who: Who, upto: int) -> Iterator[bytes]:
    """The leaves up to a size, a line each: what an auditor's own `valv ledger verify` reads."""
    allow(node, who, "ledger.verify", Resource(kind="ledger"))
    after = -1
    while after + 1 < upto:
        with node.records.reading() as unit:
            records = unit.follow(after, min(500, upto - after - 1))
        if not records:
            return
        after = records[-1].position
        yield b"".join(record.leaf + b"\n" for record in records)


# --- the node's own step ---


def checkpoint(node: Node) -> int | None:
    """Sign the ledger as it stands, where it grew since the last time. Returns the size that was signed."""
    with node.records.reading() as unit:
        head, newest = unit.head(), unit.checkpoint()
        if head.size == 0 or (newest and newest[0] == head.size):
            return None
        # The key holder knows what it signed last; the answer of a signature may have been lost in a crash.
        signed = node.keys.status().signed_size
        proof = unit.consistency(signed, head.size) if 0 < signed < head.size else []
    note = node.keys.sign(head.size, head.root, proof)
    with node.records.writing() as unit:
        unit.put_checkpoint(head.size, note)
    return head.size
