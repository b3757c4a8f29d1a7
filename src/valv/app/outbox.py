"""The outbox: what must happen outside the database, once it is written there; retried with back-off, never dropped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from valv.app.node import Node
from valv.errors import Fault, InternalFault, UnreachableFault
from valv.ports.records import Unit

log = logging.getLogger("valv.outbox")

LONGEST = timedelta(hours=1)
"""The longest pause between two tries."""


def put(unit: Unit, at: datetime, *, topic: str, key: str, body: Mapping[str, Any]) -> None:
    """Ask for a delivery, in the transaction that is its reason. The same `key` is asked for once only."""
    if not unit.count("outbox", {"key": key}):
        row = {"topic": topic, "key": key, "body": dict(body), "created": at, "due": at, "tries": 0, "error": ""}
        unit.insert("outbox", [row | {"done": None}])


def mail(unit: Unit, at: datetime, *, key: str, account: str, subject: str, body: str) -> None:
    put(unit, at, topic="mail", key=key, body={"account": account, "subject": subject, "body": body})


def deliver(node: Node, topics: Mapping[str, Callable[[Node, dict[str, Any]], None]]) -> int:
    """Try everything that is due, of a topic whose peer is away one delivery only. Returns how much was delivered."""
    at, delivered = node.clock(), 0
    away: set[str] = set()
    with node.records.reading() as unit:
        rows = unit.rows("outbox", {"done": None}, order="id")
    for row in rows:
        topic = row["topic"]
        if row["due"] > at or topic not in topics or topic in away:
            continue
        values: dict[str, Any]
        try:
            topics[topic](node, row["body"])
        except Fault as fault:
            values = _again(row, at, fault.code)
            if isinstance(fault, UnreachableFault):
                away.add(topic)
        except Exception:
            # A delivery that breaks must not keep those behind it from being made.
            log.exception("delivery %s (%s) broke", row["id"], topic)
            values = _again(row, at, InternalFault.code)
        else:
            values, delivered = {"done": at, "error": ""}, delivered + 1
        with node.records.writing() as unit:
            unit.update("outbox", {"id": row["id"]}, values)
    return delivered


def _again(row: dict[str, Any], at: datetime, error: str) -> dict[str, Any]:
    tries = row["tries"] + 1
    return {"tries": tries, "due": at + min(LONGEST, timedelta(seconds=2 ** min(tries, 12))), "error": error}
