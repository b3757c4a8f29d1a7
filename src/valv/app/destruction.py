"""What becomes of the copies of a file whose key was destroyed, and the certificate that says so.

The copies are written down in the transaction in which the destruction comes into the ledger; they are deleted in every
store, each store is asked whether it has any of them left, and then the certificate lists them all.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from valv.app import copying, printing, streams, text
from valv.app import dataset as datasets
from valv.app.fixity import KEPT
from valv.app.node import Node, Who, refuse
from valv.app.reading import BATCH, shared
from valv.app.repairing import REPAIR
from valv.app.streams import BACKUP, DATASET
from valv.config import MAIN
from valv.core import backup, custody, dataset
from valv.errors import FormatFault, MissingFault, UnreachableFault
from valv.formats import certificate, minutes
from valv.formats.certificate import Certificate
from valv.formats.crypt4gh import CIPHER_SEGMENT
from valv.formats.seal import sidecar, sidecar_size
from valv.ports.keys import Backup
from valv.ports.records import Unit
from valv.ports.storage import Storage

LONGEST = 1 << 30
"""Letters of a certificate: a line for each copy."""
PATIENCE = timedelta(days=1)
"""For how long a copy that is being made is waited for, before it counts as left by a crash."""


class Doomed(msgspec.Struct, frozen=True, kw_only=True):
    """What the destruction of a version takes. `size`: plain bytes; `copies`: (store, how many, stored bytes)."""

    version: int
    key_id: str
    files: int
    size: int
    copies: tuple[tuple[str, int, int], ...]
    destroyed: bool


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`key_backups`: places of the key backup, from which the key goes too; `backups`: places of ordinary backups,
    which may keep files that nothing opens."""

    node: str
    dataset: str
    versions: tuple[Doomed, ...]
    key_backups: tuple[str, ...]
    backups: tuple[certificate.Backup, ...]


# --- what people see ---


def plan(node: Node, who: Who, name: str) -> Plan:
    """What a destruction of the dataset's versions takes, before it is ordered."""
    with node.records.reading() as unit:
        state, _ = datasets.allowed(node, who, unit, name, "dataset.certificate")
        found = []
        for version in state.versions:
            counted: dict[str, list[int]] = {}
            for copy in (*_copies(unit, version.key_id),) if not version.destroyed else ():
                counted.setdefault(copy["store"], []).append(_stored(copy["size"]))
            found.append(
                Doomed(
                    version=version.number,
                    key_id=version.key_id,
                    files=version.files,
                    size=version.size,
                    copies=tuple((store, len(sizes), sum(sizes)) for store, sizes in sorted(counted.items())),
                    destroyed=version.destroyed,
                )
            )
        return Plan(
            node=node.config.node.name,
            dataset=state.name,
            versions=tuple(found),
            key_backups=node.config.keys.backup,
            backups=backups_before(unit, node.clock()),
        )


def bundle(node: Node, who: Who, name: str, version: int) -> bytes:
    """A version's certificate with what proves it offline. Raises the refusal `not_yet` until the node has signed
    it."""
    with node.records.reading() as unit:
        state, found = _certified(node, who, unit, name, version)
        event = next(
            record
            for record in unit.events(DATASET.stream(state.dataset_id))
            if record.tag == certificate.EVENT and msgspec.json.decode(record.data)["version"] == version
        )
        size, note = unit.checkpoint() or (0, "")
        if size <= event.position:
            raise refuse("not_yet", "the node signs it in a moment")
        told = certificate.Bundle(
            certificate=certificate.encode(found).decode(),
            leaf=event.leaf.decode(),
            proof=tuple(base64.b64encode(one).decode() for one in unit.inclusion(event.position, size)),
            checkpoint=note,
            minutes=minutes_of(unit, found.order.minutes),
        )
    return certificate.encode(told)


def pdf(node: Node, who: Who, name: str, version: int) -> bytes:
    """A version's certificate, to be printed."""
    with node.records.reading() as unit:
        _, found = _certified(node, who, unit, name, version)
    return printing.pdf(found)


def _certified(node: Node, who: Who, unit: Unit, name: str, number: int) -> tuple[dataset.Dataset, Certificate]:
    state, _ = datasets.allowed(node, who, unit, name, "dataset.certificate")
    version = state.version(number)
    if version is None:
        raise refuse("no_version", f"{state.name} version {number}")
    try:
        return state, certificate.decode(text.get(unit, version.certificate))
    except FormatFault:  # none yet, or one of a time before they were of this form
        raise refuse("no_certificate", f"{state.name} version {number}") from None


def minutes_of(unit: Unit, number: int) -> str:
    """The signed minutes of an act of the key custody, '' where they were lost."""
    owner = f"{streams.CUSTODY.stream(custody.STREAM_ID)}/{number}"
    rows = unit.rows("text", {"owner_stream": owner, "kind": "minutes"})
    return f"{rows[0]['body']}\n" if rows and rows[0]["body"] else ""


# --- the node's own steps ---


def note_copies(unit: Unit, key_id: str) -> None:
    """Write down where the files of a key lie now. Repeating changes nothing."""
    if not unit.count("destroyed_copy", {"key_id": key_id}):
        unit.insert("destroyed_copy", (copy | {"key_id": key_id, "gone": None} for copy in _copies(unit, key_id)))


def _copies(unit: Unit, key_id: str) -> Iterable[dict[str, Any]]:
    """body, store, file and size of every copy of a key's files, also of bodies that another took the place of. One
    that no store is known of lies in `main`."""
    files = unit.rows("file", {"key_id": key_id, "state": KEPT})
    of = {row["body"]: (row["id"], row["cipher_size"]) for row in files}
    sizes = dict(of.values())
    for stale in _stale(unit, sizes):
        of.setdefault(stale["body"], (stale["file"], sizes[stale["file"]]))
    for body in shared(unit, list(of), but=key_id):  # another version has it too, and keeps it
        del of[body]
    known: dict[str, list[dict[str, Any]]] = {}
    for part in _parts(list(of)):
        for row in unit.rows("copy", {"body": part}):
            known.setdefault(row["body"], []).append(row)
    for body, (file, size) in of.items():
        for row in known.get(body) or [{"store": MAIN, "size": size}]:
            yield {"body": body, "store": row["store"], "file": file, "size": row["size"]}


def _stale(unit: Unit, files: Iterable[str]) -> Iterable[dict[str, Any]]:
    for part in _parts(list(files)):
        yield from unit.rows("stale_body", {"file": part})


def delete(node: Node, key_id: str) -> None:
    """Delete the files of a destroyed key in every store. Repeating is no error. Raises `UnreachableFault` while a copy
    of one is just being made: it would come back."""
    at = node.clock()
    with node.records.reading() as unit:
        rows = unit.rows("file", {"key_id": key_id, "state": "destroyed"})
        held = shared(unit, [row["body"] for row in rows], but=key_id)
        bodies = [row["body"] for row in rows if row["body"] not in held]
        made = [row for part in _parts(bodies) for row in unit.rows("copy", {"body": part}) if _being_made(row, at)]
    if made:
        raise UnreachableFault(f"{len(made)} copies of its files are just being made", "the node tries again by itself")
    for body in bodies:
        for name in (body, sidecar(body)):
            node.storage.delete(name)
    with node.records.writing() as unit:
        copying.forget(unit, bodies)


def _being_made(row: dict[str, Any], at: datetime) -> bool:
    coming = row["state"] == "coming" and row["since"] + PATIENCE > at
    return bool(coming or (row["state"] == "bad" and row["fault"] == REPAIR))


def verify(node: Node, key_id: str) -> list[str]:
    """Ask every store whether it has any copy of the key's files left; names of those that have. What they say is noted
    for the certificate. Raises `UnreachableFault` where one cannot be asked."""
    with node.records.reading() as unit:
        rows = unit.rows("destroyed_copy", {"key_id": key_id})
        files = unit.rows("file", {"key_id": key_id})
        named = {row["body"] for row in (*rows, *files)}
        bodies = named - shared(unit, sorted(named), but=key_id)
    left = []
    for name, store in node.each_store().items():
        if any(_there(store, one) for body in bodies for one in (body, sidecar(body))):
            left.append(name)
            continue
        with node.records.writing() as unit:
            unit.update("destroyed_copy", {"key_id": key_id, "store": name, "gone": None}, {"gone": node.clock()})
    return left


def _there(store: Storage, name: str) -> bool:
    try:
        store.size(name)
    except MissingFault:
        return False
    return True


def write(
    node: Node,
    unit: Unit,
    state: dataset.Dataset,
    version: dataset.Version,
    act: tuple[int, custody.Destroyed],
    key_backups: Sequence[Backup],
) -> str:
    """The certificate of a version, of which no store has anything left. `act`: number and event of the order."""
    number, event = act
    kept = minutes_of(unit, number)
    told = minutes.read(kept).wanted if kept else None
    rows = sorted(unit.rows("destroyed_copy", {"key_id": version.key_id}), key=lambda row: (row["file"], row["store"]))
    at = node.clock()
    made = Certificate(
        node=node.config.node.name,
        country=node.config.node.country,
        unit=node.config.node.unit,
        dataset=state.name,
        dataset_id=state.dataset_id,
        version=version.number,
        files=version.files,
        bytes=version.size,
        manifest=version.manifest,
        key=version.key_id,
        generation=event.generation,
        destroyed=certificate.time_text(event.at),
        order=certificate.Order(
            ident=told.ident if told else "",
            reason=told.reason if told else "",
            signers=event.signers,
            minutes=number,
            minutes_sha256=certificate.digest(kept) if kept else "",
        ),
        stores=tuple(_stores(node, rows, at)),
        copies=tuple(certificate.Copy(row["file"], row["body"], row["store"], _stored(row["size"])) for row in rows),
        key_backups=tuple(certificate.KeyBackup(one.path, one.generation) for one in key_backups),
        backups=backups_before(unit, event.at),
        completed=certificate.time_text(at),
    )
    unit.delete("destroyed_copy", {"key_id": version.key_id})
    return certificate.encode(made).decode()


def _stores(node: Node, rows: Sequence[dict[str, Any]], at: datetime) -> Iterable[certificate.Store]:
    settings = node.config.all_stores
    for name, store in node.each_store().items():
        mine = [row for row in rows if row["store"] == name]
        seen = max((row["gone"] for row in mine if row["gone"]), default=at)
        yield certificate.Store(
            name=name,
            backend=settings[name].backend if name in settings else "",
            country=store.place.country,
            unit=store.place.unit,
            copies=len(mine),
            bytes=sum(_stored(row["size"]) for row in mine),
            verified=certificate.time_text(seen),
        )


def backups_before(unit: Unit, at: datetime) -> tuple[certificate.Backup, ...]:
    """The places of ordinary backups, each with the newest backup that was made before that time."""
    found: dict[str, certificate.Backup] = {}
    for record in unit.events(BACKUP.stream(backup.STREAM_ID)):
        event = msgspec.json.decode(record.data, type=backup.Events)
        if isinstance(event, backup.BackupMade) and event.at <= at:
            found[event.place] = certificate.Backup(event.place, event.generation, certificate.time_text(event.at))
    return tuple(found[place] for place in sorted(found))


def _stored(size: int) -> int:
    """Bytes of a body of `size` stored bytes and of its seal."""
    return size + sidecar_size(-(-size // CIPHER_SEGMENT))


def _parts(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + BATCH] for start in range(0, len(values), BATCH))
