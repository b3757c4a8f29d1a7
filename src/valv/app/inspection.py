"""Looking over a node's own records: what should be true of them at every moment, and what is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from valv.app import deposit, reading, streams, text
from valv.app.node import Node
from valv.app.streams import ACCOUNT, DATASET, Process
from valv.formats import crypt4gh
from valv.formats.seal import sidecar
from valv.ports.records import Recorded, Snapshot

PAGE = 500
INTRUDED = "somebody wrote into the database: keep the disk as it is and call the data-protection officer"


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
                    if not _folds(process, unit.events(snapshot.stream), snapshot):
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


def _folds(process: Process[Any], events: Sequence[Recorded], kept: Snapshot) -> bool:
    try:
        state = process.fold(events)
        return bool(state == process.decode(kept) and state is not None and state.phase == kept.phase)
    except (msgspec.DecodeError, ValueError):  # an event or a state that nobody here has written
        return False


def accounts(node: Node) -> Iterator[Finding]:
    """Rights and keys that the ledger did not give: both are plain rows, which whoever writes the database can edit."""
    with node.records.reading() as unit:
        people, keys = unit.rows("account"), unit.rows("account_key", {"ended": None})
        states = {row["id"]: streams.load(unit, ACCOUNT, row["id"]).state for row in people}
    for row in people:
        state = states[row["id"]]
        told = [*state.roles, *(f"committee:{name}" for name in state.committees)] if state else []
        if sorted(row["roles"]) != sorted(told):
            yield Finding(f"account {row['name']}: its roles are not those of the ledger", INTRUDED)
    for key in keys:
        state = states.get(key["account"])
        known = {one.key_id: one.fingerprint for one in state.keys} if state else {}
        if known.get(key["id"]) != key["fingerprint"] or crypt4gh.fingerprint(key["public"]) != key["fingerprint"]:
            yield Finding(f"key {key['id']} of account {key['account']} is not the one that was registered", INTRUDED)


def texts(node: Node) -> Iterator[Finding]:
    """Texts (reasons, command lines) that are not those whose digests the ledger holds."""
    with node.records.reading() as unit:
        for row in unit.rows("text", {"erased": None}):
            if not text.holds(row):
                yield Finding(f"text {row['id']} ({row['kind']}) of {row['owner_stream']} was altered", INTRUDED)


def manifests(node: Node) -> Iterator[Finding]:
    """Versions whose list of files is not the one that was handed in."""
    with node.records.reading() as unit:
        for snapshot in unit.find(DATASET.kind, limit=1_000_000):
            state = DATASET.decode(snapshot)
            for version in state.versions:
                rows = unit.rows("file", {"deposit": version.deposit_id, "version": version.number})
                named = {row["id"] for row in rows if row["path"] != deposit.PARTICIPANTS}
                listed = {row["id"] for row in reading.files(unit, state.dataset_id, version.number)}
                if deposit.manifest(rows) != version.manifest or named != listed:
                    yield Finding(f"{state.name} version {version.number}: its files are not those handed in", INTRUDED)


def signed(node: Node) -> Iterator[Finding]:
    """A ledger that is shorter than the key holder remembers, or whose newest signature is gone. Only while the key
    holder answers."""
    remembered = node.keys.status().signed_size
    with node.records.reading() as unit:
        head, newest = unit.head(), unit.checkpoint()
    if head.size < remembered:
        yield Finding(f"{remembered} events were signed, the ledger has {head.size}: its end was cut off", INTRUDED)
    elif remembered and newest is None:
        yield Finding("the signed checkpoints are gone", INTRUDED)


def outbox(node: Node) -> Iterator[Finding]:
    """Deliveries that have been failing."""
    with node.records.reading() as unit:
        late = [row for row in unit.rows("outbox", {"done": None}) if row["tries"] > 3]
    if late:
        topics = ", ".join(sorted({f"{row['topic']} ({row['error']})" for row in late}))
        yield Finding(f"{len(late)} deliveries fail again and again: {topics}", "look at the worker's log")
