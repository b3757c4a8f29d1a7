"""Looking over a node's own records: what should be true of them at every moment, and what is not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from valv.app import deposit, reading, restoring, streams, text
from valv.app.custody import OLDER
from valv.app.node import Node
from valv.app.streams import ACCOUNT, CUSTODY, DATASET, ROTATION, Process
from valv.core import rotation
from valv.core.custody import STREAM_ID
from valv.formats import crypt4gh
from valv.formats.seal import sidecar
from valv.ports.records import Recorded, Snapshot, Unit

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
        parts = unit.rows("upload_part")
        rows = unit.rows("file") + unit.rows("release_file") + [part for part in parts if part["state"] == "whole"]
        # What comes or goes: it may be in the store or not.
        passing = [row for row in rows if row.get("state") in ("arriving", "destroyed", "refused")]
        passing += [part for part in parts if part["state"] != "whole"]
        passing += [row for row in unit.rows("upload") if row["body"]]
        passing += unit.rows("stale_body") + [row for row in unit.rows("rotation_file") if row["body"]]
    wanted, known = _names(rows), _names(passing)
    there = set(node.storage.names())
    return wanted - there - known, there - wanted - known


def _names(rows: Iterable[dict[str, Any]]) -> set[str]:
    return {name for row in rows for name in (row["body"], sidecar(row["body"]))}


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
    """Versions whose list of files is not the one that was handed in, but for those that a restored node has lost."""
    with node.records.reading() as unit:
        lost = restoring.lost_versions(unit)
        for snapshot in unit.find(DATASET.kind, limit=1_000_000):
            state = DATASET.decode(snapshot)
            for version in state.versions:
                if (state.dataset_id, version.number) in lost:
                    continue
                rows = unit.rows("file", {"deposit": version.deposit_id, "version": version.number})
                rows = _handed_in(unit, version.key_id, rows)
                named = {row["id"] for row in rows if row["path"] != deposit.PARTICIPANTS}
                listed = {row["id"] for row in reading.files(unit, state.dataset_id, version.number)}
                if deposit.manifest(rows) != version.manifest or named != listed:
                    yield Finding(f"{state.name} version {version.number}: its files are not those handed in", INTRUDED)


def _handed_in(unit: Unit, key_id: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as the manifest speaks of them. Of a body that a rekeying replaced the ledger has the hash tree before
    and the one after: a row that is not at the end of that chain keeps its own, which fits nothing."""
    first: dict[str, str] = {}
    last: dict[str, str] = {}
    found = streams.find(unit, ROTATION, link=("key", key_id), limit=1_000_000)
    for state in sorted(found, key=lambda state: state.pair):
        for record in unit.events(ROTATION.stream(state.rotation_id)) if state.bodies else ():
            event = msgspec.json.decode(record.data, type=rotation.Events)
            if isinstance(event, rotation.BodyReplaced) and last.get(event.file_id, event.before) == event.before:
                first.setdefault(event.file_id, event.before)
                last[event.file_id] = event.after
    fitting = {row["id"] for row in rows if row["tree_root"].hex() == last.get(row["id"])}
    return [{**row, "tree_root": bytes.fromhex(first[row["id"]])} if row["id"] in fitting else row for row in rows]


def signed(node: Node) -> Iterator[Finding]:
    """A ledger that is shorter than the key holder remembers, or whose newest signature is gone; a key holder that
    knows of fewer orders than the ledger. Only while the key holder answers."""
    status = node.keys.status()
    remembered = status.signed_size
    with node.records.reading() as unit:
        head, newest = unit.head(), unit.checkpoint()
        ordered = streams.load(unit, CUSTODY, STREAM_ID).version
    if status.open and node.keys.custody().held < ordered:
        yield Finding(OLDER, "recover the keys: 'valv keys recover'")
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
