"""The outbox: what must happen outside the database, once it is written there; retried with back-off, never dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from valv.app.node import Node
from valv.errors import Fault
from valv.ports.records import Unit

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
    """Try everything that is due. Returns how much was delivered."""
    at, delivered = node.clock(), 0
    with node.records.reading() as unit:
        rows = unit.rows("outbox", {"done": None}, order="id", limit=200)
    for row in rows:
        if row["due"] > at or row["topic"] not in topics:
            continue
        try:
            topics[row["topic"]](node, row["body"])
        except Fault as fault:
            tries = row["tries"] + 1
            due = at + min(LONGEST, timedelta(seconds=2 ** min(tries, 12)))
            values: dict[str, Any] = {"tries": tries, "due": due, "error": fault.code}
        else:
            values, delivered = {"done": at, "error": ""}, delivered + 1
        with node.records.writing() as unit:
            unit.update("outbox", {"id": row["id"]}, values)
    return delivered
