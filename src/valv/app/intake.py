"""The node's own steps with deposits: verify what was handed in, publish it all at once, clear away what died."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

from valv.app import dataset as datasets
from valv.app import outbox, reading, streams, text
from valv.app.deposit import PARTICIPANTS, drop_bodies, forget, manifest
from valv.app.node import Node, each
from valv.app.streams import DATASET, DEPOSIT, Step, retried
from valv.core import dataset, deposit
from valv.core.process import NODE
from valv.errors import Fault, FormatFault, IntegrityFault, KeyFault, MissingFault
from valv.formats import participants
from valv.formats.seal import sidecar, sidecar_size
from valv.ports.compute import Reader

AT_FAULT = (IntegrityFault, FormatFault, KeyFault, MissingFault)
"""What is wrong with the custodian's files, and not with the moment."""


def process_submitted(node: Node, reader: Reader) -> int:
    """Verify and publish every deposit that was handed in. Returns how many were dealt with."""
    with node.records.reading() as unit:
        waiting = streams.find(unit, DEPOSIT, phases=("submitted",), newest_first=False, limit=20)
    each(waiting, lambda state: _process(node, reader, state))
    return len(waiting)


def _process(node: Node, reader: Reader, state: deposit.Deposit) -> None:
    try:
        _verify(node, reader, state)
        _publish(node, state)
    except AT_FAULT as fault:
        # The custodian's files are at fault; storage or a process that is away is retried instead.
        _fail(node, state, str(fault))


def _verify(node: Node, reader: Reader, state: deposit.Deposit) -> None:
    """Open every file that came encrypted (the node has not seen it plain yet), and look that all bodies are there."""
    with node.records.reading() as unit:
        rows = unit.rows("file", {"deposit": state.deposit_id}, order="path")
    for row in rows:
        if row["state"] != "received":
            continue
        try:
            values = _verified(node, reader, row)
        except AT_FAULT as fault:
            with node.records.writing() as unit:
                unit.update("file", {"id": row["id"]}, {"state": "refused", "reason": str(fault)[:1000]})
            raise
        with node.records.writing() as unit:
            unit.update("file", {"id": row["id"]}, values)


def _verified(node: Node, reader: Reader, row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a file that was looked at. Raises what is wrong with it."""
    values: dict[str, Any] = {"state": "verified"}
    for name, size in ((row["body"], row["cipher_size"]), (sidecar(row["body"]), sidecar_size(row["segments"]))):
        if node.storage.size(name) != size:
            raise IntegrityFault(f"{row['path']}: the stored body does not have the size that was received")
    if row["sha256"] is None:
        values["sha256"] = _digest(node, reader, row)
    return values


def _digest(node: Node, reader: Reader, row: dict[str, Any]) -> bytes:
    whole, table = hashlib.sha256(), bytearray()
    try:
        for chunk in reading.plain(node, reader, reading.mounted(row, row["path"])):
            whole.update(chunk)
            if row["path"] == PARTICIPANTS:
                table += chunk
                if len(table) > participants.LARGEST:
                    raise FormatFault("the table is too large", f"at most {participants.LARGEST} bytes")
        if row["path"] == PARTICIPANTS:
            participants.parse(bytes(table))
    except Fault as fault:
        fault.detail = f"{row['path']}: {fault.detail}"
        raise
    return whole.digest()


@retried
def _fail(node: Node, state: deposit.Deposit, reason: str) -> None:
    at = node.clock()
    with node.records.writing() as unit:
        now, version = streams.need(unit, DEPOSIT, state.deposit_id)
        # It may name a file, and that may name a person: the journal gets the id of the text.
        said = text.put(unit, DEPOSIT.stream(state.deposit_id), "reason", reason[: text.LONGEST], at)
        events = deposit.decide(now, deposit.Fail(by=NODE, at=at, reason=said), deposit.Facts())
        step = Step(DEPOSIT, state.deposit_id, version, now, events)
        streams.commit(unit, [step], by=NODE, at=at, command=f"fail:{state.deposit_id}")
        outbox.mail(
            unit,
            at,
            key=f"deposit-failed:{state.deposit_id}",
            account=state.custodian,
            subject="A deposit could not be taken",
            body=f"Deposit {state.deposit_id} was not published: {reason}. Nothing of it is visible.",
        )


@retried
def _publish(node: Node, state: deposit.Deposit) -> None:
    """All or nothing: the version, its files, the catalogue row, and the scan that a claim of anonymity needs."""
    at = node.clock()
    with node.records.writing() as unit:
        now, version = streams.need(unit, DEPOSIT, state.deposit_id)
        if now.phase != "submitted":
            return
        # Only what was handed in: a file that was still arriving then is no part of the version.
        rows = unit.rows("file", {"deposit": state.deposit_id, "state": "verified"}, order="path")
        if manifest(rows) != now.manifest:
            raise IntegrityFault("the files are not those that were handed in")
        owner, owner_version = streams.need(unit, DATASET, state.dataset_id)
        add = dataset.AddVersion(
            by=NODE,
            at=at,
            deposit_id=state.deposit_id,
            key_id=state.key_id,
            claimed=state.claimed,
            consent=state.consent,
            files=state.files,
            size=state.size,
            manifest=now.manifest,
            participants=int(any(row["path"] == PARTICIPANTS for row in rows)),
        )
        added = Step(DATASET, state.dataset_id, owner_version, owner, dataset.decide(owner, add, dataset.Facts()))
        current = added.after.current
        assert current is not None
        publish = deposit.Publish(by=NODE, at=at, version=current.number)
        published = Step(DEPOSIT, state.deposit_id, version, now, deposit.decide(now, publish, deposit.Facts()))
        streams.commit(unit, [added, published], by=NODE, at=at, command=f"publish:{state.deposit_id}")
        unit.update("file", {"deposit": state.deposit_id, "state": "verified"}, {"version": current.number})
        unit.insert(
            "dataset_version_file",
            [
                {"dataset": state.dataset_id, "version": current.number, "file": row["id"]}
                for row in rows
                if row["path"] != PARTICIPANTS
            ],
        )
        datasets.refresh(unit, added.after, at)


def clear_dead(node: Node) -> int:
    """Drop files of deposits that ended without being published, and of senders that died an hour ago. Of a file that
    was refused the row stays, and says why."""
    dropped = 0
    old = node.clock() - timedelta(hours=1)
    with node.records.reading() as unit:
        ended = [s.deposit_id for s in streams.find(unit, DEPOSIT, phases=("failed", "cancelled"), limit=1000)]
        rows = unit.rows("file", {"deposit": ended}) if ended else []
        rows += [row for row in unit.rows("file", {"state": "arriving"}) if row["received"] < old]
    for row in rows:
        if row["state"] != "refused":
            forget(node, row)
        elif row["header"] is not None:
            drop_bodies(node, row)
            with node.records.writing() as unit:
                unit.update("file", {"id": row["id"]}, {"header": None})
        else:
            continue
        dropped += 1
    return dropped
