"""Custody of the node's keys: what officers ordered comes into the ledger, and what follows from it is done."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

import msgspec

from valv.app import dataset as datasets
from valv.app import destruction, outbox, streams, text
from valv.app.node import Node, Who, allow, new_id
from valv.app.streams import CUSTODY, DATASET, Step, retried
from valv.core import custody, dataset
from valv.core.authorize import Resource
from valv.core.process import NODE, tag
from valv.errors import IntegrityFault, Refusal, SealedFault, UnreachableFault
from valv.formats import certificate, minutes
from valv.ports.keys import Backup, Held, KeyStatus
from valv.ports.records import Recorded, Unit

MINUTES = "minutes"
CERTIFICATE = "certificate"
LONGEST = 1_000_000
"""Letters of minutes: those of an order with very many keys."""
OLDER = "the key holder knows of fewer orders than the ledger: its folder is an older copy of itself"


class Destruction(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset version whose key was destroyed. `certificate`: the text that says so, '' while `left` names what is
    still there of it."""

    dataset: str
    version: int
    files: int
    size: int
    certificate: str
    left: tuple[str, ...]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """Something that officers ordered. `event`: its tag; `minutes`: '' where they were lost with an older key holder;
    `reason`: of the order."""

    number: int
    at: datetime
    event: str
    generation: int
    signers: tuple[str, ...]
    reason: str
    minutes: str
    destroyed: tuple[Destruction, ...]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """`state`: None before the first ceremony. `due`: until when the next drill or ceremony is to be held; `overdue`:
    that time is over. `status`: None where the key holder is away; `backups`: None where it is locked or away."""

    holder: Literal["open", "locked", "away"]
    state: custody.Custody | None
    due: datetime | None
    overdue: bool
    status: KeyStatus | None
    backups: tuple[Backup, ...] | None
    acts: list[Done]

    @property
    def behind(self) -> tuple[Backup, ...]:
        """Places of the key backup that do not hold the living generation whole."""
        generation = self.status.generation if self.status else 0
        return tuple(one for one in self.backups or () if one.fault or one.generation != generation)


def show(node: Node, who: Who) -> View:
    """How the keys are kept, and everything that officers ordered, newest first."""
    allow(node, who, "key.see", Resource(kind="key"))
    status, backups = _ask(node)
    with node.records.reading() as unit:
        state = streams.load(unit, CUSTODY, custody.STREAM_ID).state
        acts = [_done(unit, record, backups) for record in reversed(unit.events(CUSTODY.stream(custody.STREAM_ID)))]
    return View(
        holder="away" if status is None else "open" if status.open else "locked",
        state=state,
        due=due(state),
        overdue=state is not None and state.drill_due(node.clock()),
        status=status,
        backups=backups,
        acts=acts,
    )


def due(state: custody.Custody | None) -> datetime | None:
    """Until when the next drill or ceremony is to be held."""
    return max(state.drill_at, state.ceremony_at) + custody.DRILL_AFTER if state else None


def _ask(node: Node) -> tuple[KeyStatus | None, tuple[Backup, ...] | None]:
    try:
        status = node.keys.status()
        return status, node.keys.custody().backups if status.open else None
    except SealedFault:
        return node.keys.status(), None  # it was locked between the two questions
    except UnreachableFault:
        return None, None


def _done(unit: Unit, record: Recorded, backups: tuple[Backup, ...] | None) -> Done:
    event: custody.Events = msgspec.json.decode(record.data, type=custody.Events)
    kept = destruction.minutes_of(unit, record.version)
    found = []
    for key_id in event.key_ids if isinstance(event, custody.Destroyed) else ():
        for state, version in _versions(unit, key_id):
            found.append(
                Destruction(
                    dataset=state.name,
                    version=version.number,
                    files=version.files,
                    size=version.size,
                    certificate=certificate.readable(text.get(unit, version.certificate)),
                    left=() if version.certificate else tuple(_left(unit, key_id, event.generation, backups)),
                )
            )
    return Done(
        number=record.version,
        at=event.at,
        event=tag(event),
        generation=event.generation,
        signers=event.signers,
        reason=minutes.read(kept).wanted.reason if kept else "",
        minutes=kept,
        destroyed=tuple(found),
    )


def _owner(number: int) -> str:
    """Whose text the minutes of an act are."""
    return f"{CUSTODY.stream(custody.STREAM_ID)}/{number}"


def _versions(unit: Unit, key_id: str) -> list[tuple[dataset.Dataset, dataset.Version]]:
    """The dataset versions whose files a key protects, by what the ledger says."""
    states = streams.find(unit, DATASET, limit=1_000_000)
    return [(state, version) for state in states for version in state.versions if version.key_id == key_id]


# --- the node's own steps ---


def follow(node: Node) -> int:
    """Take over what officers ordered at the key holder since the last time. Returns how many acts."""
    taken = 0
    while True:
        with node.records.reading() as unit:
            known = streams.load(unit, CUSTODY, custody.STREAM_ID).version
        held = node.keys.held(known)
        for one in held:
            _take(node, one)
        taken += len(held)
        if not held:
            return taken


@retried
def _take(node: Node, held: Held) -> None:
    """One act, with all that follows from it, in one transaction."""
    at = node.clock()
    event: custody.Events = msgspec.json.decode(held.event, type=custody.Events)
    with node.records.writing() as unit:
        now = streams.load(unit, CUSTODY, custody.STREAM_ID)
        if now.version != held.number - 1:
            return  # taken over meanwhile
        steps: list[Step[Any]] = [Step(CUSTODY, custody.STREAM_ID, now.version, now.state, [event])]
        if isinstance(event, custody.Destroyed):
            steps += _destroyed(unit, event, at)
        streams.commit(unit, steps, by=NODE, at=at, command=f"custody:{held.number}")
        text.put(unit, _owner(held.number), MINUTES, held.minutes, at, longest=LONGEST)
        for step in steps[1:]:
            datasets.refresh(unit, step.after, at)


def _destroyed(unit: Unit, event: custody.Destroyed, at: datetime) -> list[Step[Any]]:
    """What the destruction of keys means for the datasets that they protected."""
    steps: dict[str, Step[Any]] = {}
    for key_id in event.key_ids:
        owners = _versions(unit, key_id)
        if owners:
            destruction.note_copies(unit, key_id)
        unit.update("file", {"key_id": key_id}, {"header": None, "state": "destroyed"})
        outbox.put(unit, at, topic="body.delete", key=f"body.delete:{key_id}", body={"key_id": key_id})
        for found, version in owners:
            ident = found.dataset_id
            if ident not in steps:
                state, number = streams.need(unit, DATASET, ident)
                steps[ident] = Step(DATASET, ident, number, state, [])
            before = steps[ident]
            order = dataset.RecordDestruction(by=NODE, at=at, version=version.number, generation=event.generation)
            decided = dataset.decide(before.after, order, dataset.Facts())
            if isinstance(decided, Refusal) or isinstance(before.decided, Refusal):
                continue  # it was destroyed before
            steps[ident] = replace(before, decided=[*before.decided, *decided])
            body = {"key_id": key_id, "dataset": ident, "version": version.number, "generation": event.generation}
            outbox.put(unit, at, topic="destruction.certify", key=f"destruction.certify:{key_id}", body=body)
    return list(steps.values())


def look_after(node: Node) -> list[Backup]:
    """Bring the key backup up to date, once there are officers who could recover it. Raises `IntegrityFault` where the
    key holder's folder is an older copy of itself."""
    with node.records.reading() as unit:
        known = streams.load(unit, CUSTODY, custody.STREAM_ID).version
    found = node.keys.custody()
    if found.held < known:
        raise IntegrityFault(f"{OLDER} ({found.held} of {known})", "recover the keys: 'valv keys recover'")
    return node.keys.back_up() if found.state is not None else []


def delete_bodies(node: Node, body: dict[str, Any]) -> None:
    """Delivery `body.delete`: the stored files of a destroyed key. Repeating is no error."""
    destruction.delete(node, body["key_id"])


@retried
def certify(node: Node, body: dict[str, Any]) -> None:
    """Delivery `destruction.certify`: write the certificate, once nothing is left. Raises `UnreachableFault` before:
    it is tried again until then."""
    key_id, at = body["key_id"], node.clock()
    backups = node.keys.custody().backups
    with node.records.reading() as unit:
        left = [*_left(unit, key_id, body["generation"], backups)]
    if not left:
        left = [f"files in the store {name}" for name in destruction.verify(node, key_id)]
    if left:
        raise UnreachableFault(f"of key {key_id} there are left: {', '.join(left)}", "see 'valv keys status'")
    with node.records.writing() as unit:
        state, number = streams.need(unit, DATASET, body["dataset"])
        version = state.version(body["version"])
        assert version is not None
        if version.certificate:
            return
        written = destruction.write(node, unit, state, version, _act(unit, version.key_id), backups)
        owner, longest = DATASET.stream(state.dataset_id), destruction.LONGEST
        order = dataset.Certify(
            by=NODE,
            at=at,
            version=version.number,
            certificate=text.put(unit, owner, CERTIFICATE, written, at, longest=longest),
            digest=certificate.digest(written),
        )
        step = Step(DATASET, state.dataset_id, number, state, dataset.decide(state, order, dataset.Facts()))
        streams.commit(unit, [step], by=NODE, at=at, command=new_id())
        outbox.mail(
            unit,
            at,
            key=f"destroyed:{key_id}",
            account=state.custodian,
            subject="A dataset version was destroyed",
            body=f"The key of {state.name} version {version.number} was destroyed, as two officers ordered, and nothing"
            " is left of its files. The certificate is on the dataset's page.",
        )


def _left(unit: Unit, key_id: str, generation: int, backups: tuple[Backup, ...] | None) -> list[str]:
    """What is still there of a destroyed key and its files, in words."""
    rows = unit.rows("file", {"key_id": key_id})
    names = {row["id"] for row in rows}
    left = []
    if unit.count("outbox", {"key": f"body.delete:{key_id}", "done": None}):
        left.append("files in the store")
    elif any(row["file"] in names for row in (*unit.rows("stale_body"), *unit.rows("rotation_file")) if row["body"]):
        left.append("files of a rotation in the store")
    if backups is None:
        left.append("the key backup cannot be seen while the keys are locked")
    for place in backups or ():
        if place.fault or place.generation < generation:
            left.append(f"the key backup in {place.path}: {place.fault or f'generation {place.generation}'}")
    return left


def _act(unit: Unit, key_id: str) -> tuple[int, custody.Destroyed]:
    """The act that destroyed a key, with its number."""
    for record in unit.events(CUSTODY.stream(custody.STREAM_ID)):
        event = msgspec.json.decode(record.data, type=custody.Events)
        if isinstance(event, custody.Destroyed) and key_id in event.key_ids:
            return record.version, event
    raise IntegrityFault(f"no act destroyed the key {key_id}")
