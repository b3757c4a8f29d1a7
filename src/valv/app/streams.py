"""Streams: load the folded state of a process, and append what the core decided."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, ParamSpec, TypeVar

import msgspec

from valv.core import (
    access,
    account,
    backup,
    custody,
    dataset,
    deposit,
    fixity,
    permit,
    release,
    rotation,
    run,
    storage,
    withdrawal,
)
from valv.core.process import Event, encode, encode_state
from valv.errors import ConflictFault, Refusal, RefusedFault
from valv.ports.records import Change, Recorded, RepeatedCommand, Snapshot, Unit

State = TypeVar("State")
Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")
TRIES = 8
RESTORED = "restored"
"""The setting that a restored node has until it is opened."""
Links = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Process(Generic[State]):
    """How one kind of stream is folded, kept and found again. `links`: what it can be found by."""

    kind: str
    state: type[State]
    events: Any
    evolve: Callable[[Any, Any], State]
    links: Callable[[State], Links]

    def stream(self, ident: str) -> str:
        return f"{self.kind}/{ident}"

    def decode(self, snapshot: Snapshot) -> State:
        return msgspec.json.decode(snapshot.state, type=self.state)

    def fold(self, recorded: Sequence[Recorded]) -> State | None:
        """The state folded from the journal itself; what the snapshot must equal."""
        state: State | None = None
        for record in recorded:
            state = self.evolve(state, msgspec.json.decode(record.data, type=self.events))
        return state


ACCOUNT = Process(account.KIND, account.Account, account.Events, account.evolve, lambda _: {})
DATASET = Process(
    dataset.KIND,
    dataset.Dataset,
    dataset.Events,
    dataset.evolve,
    lambda s: {"custodian": (s.custodian,), "committee": (s.committee,), "name": (s.name,)},
)
DEPOSIT = Process(
    deposit.KIND,
    deposit.Deposit,
    deposit.Events,
    deposit.evolve,
    lambda s: {"custodian": (s.custodian,), "dataset": (s.dataset_id,)},
)
ACCESS = Process(
    access.KIND,
    access.Access,
    access.Events,
    access.evolve,
    lambda s: {"person": tuple(sorted(s.people)), "dataset": tuple(w.dataset_id for w in s.request.wanted)},
)
PERMIT = Process(
    permit.KIND,
    permit.Permit,
    permit.Events,
    permit.evolve,
    lambda s: {
        "person": s.people,
        "dataset": tuple(sorted({w.dataset_id for w in s.datasets})),
        "access": (s.access_id,),
    },
)
RUN = Process(
    run.KIND,
    run.Run,
    run.Events,
    run.evolve,
    lambda s: {
        "owner": (s.owner,),
        "permit": (s.permit_id,),
        "dataset": tuple(sorted({w.dataset_id for w in s.datasets})),
    },
)
RELEASE = Process(
    release.KIND,
    release.Release,
    release.Events,
    release.evolve,
    lambda s: {
        "author": (s.author,),
        "run": (s.run_id,),
        "permit": (s.permit_id,),
        "dataset": s.datasets,
    },
)
ROTATION = Process(
    rotation.KIND,
    rotation.Rotation,
    rotation.Events,
    rotation.evolve,
    lambda s: {"dataset": (s.dataset_id,), "key": (s.key_id,)},
)
STORAGE = Process(storage.KIND, storage.Storage, storage.Events, storage.evolve, lambda s: {"dataset": (s.dataset_id,)})
FIXITY = Process(fixity.KIND, fixity.Scrub, fixity.Events, fixity.evolve, lambda s: {"by": (s.by,)})
BACKUP = Process(backup.KIND, backup.Backup, backup.Events, backup.evolve, lambda _: {})
WITHDRAWAL = Process(
    withdrawal.KIND,
    withdrawal.Withdrawal,
    withdrawal.Events,
    withdrawal.evolve,
    lambda s: {"dataset": (s.dataset_id,)},
)
CUSTODY = Process(custody.KIND, custody.Custody, custody.Events, custody.evolve, lambda _: {})
PROCESSES: dict[str, Process[Any]] = {
    process.kind: process
    for process in (
        ACCOUNT,
        DATASET,
        DEPOSIT,
        ACCESS,
        PERMIT,
        RUN,
        RELEASE,
        ROTATION,
        STORAGE,
        FIXITY,
        BACKUP,
        CUSTODY,
        WITHDRAWAL,
    )
}


def retried(use_case: Callable[Asked, Answer]) -> Callable[Asked, Answer]:
    """Decide again from fresh facts where somebody else appended to the same stream meanwhile, or the same command was
    carried out by a request beside this one: then `done` finds it."""

    @functools.wraps(use_case)
    def again(*args: Asked.args, **kwargs: Asked.kwargs) -> Answer:
        for _ in range(TRIES - 1):
            try:
                return use_case(*args, **kwargs)
            except (ConflictFault, RepeatedCommand):
                continue
        return use_case(*args, **kwargs)

    return again


@dataclass(frozen=True)
class Loaded(Generic[State]):
    """A state and the version that it was folded to (0: no such stream)."""

    ident: str
    state: State | None
    version: int


def load(unit: Unit, process: Process[State], ident: str) -> Loaded[State]:
    snapshot = unit.load(process.stream(ident))
    if snapshot is None:
        return Loaded(ident, None, 0)
    return Loaded(ident, process.decode(snapshot), snapshot.version)


def need(unit: Unit, process: Process[State], ident: str) -> tuple[State, int]:
    """The state and its version, or the refusal `not_found`."""
    loaded = load(unit, process, ident)
    if loaded.state is None:
        raise RefusedFault(Refusal("not_found", f"{process.kind} {ident}"))
    return loaded.state, loaded.version


def find(unit: Unit, process: Process[State], **query: Any) -> list[State]:
    return [process.decode(snapshot) for snapshot in unit.find(process.kind, **query)]


@dataclass(frozen=True)
class Step(Generic[State]):
    """What one stream gets in a commit."""

    process: Process[State]
    ident: str
    version: int
    state: State | None
    decided: Sequence[Event] | Refusal

    @property
    def after(self) -> State:
        if isinstance(self.decided, Refusal):
            raise RefusedFault(self.decided)
        state: Any = self.state
        for event in self.decided:
            state = self.process.evolve(state, event)
        return state  # type: ignore[no-any-return]


def done(unit: Unit, by: str, command: str) -> bool:
    """Whether this command of this actor was carried out before: its first answer still stands."""
    return unit.repeated(f"{by}:{command}")


def closed(unit: Unit) -> bool:
    """Whether this is a restored node that was not opened yet. Its ledger takes nothing but what it had before: one
    event of its own, and the rest would not fit any more."""
    return bool(unit.rows("setting", {"name": RESTORED}))


def commit(
    unit: Unit,
    steps: Sequence[Step[Any]],
    *,
    by: str,
    at: datetime,
    command: str,
    asserts: dict[str, int] | None = None,
) -> list[Recorded]:
    """Append what was decided, all or nothing. `command` names the order: the same one of the same actor is carried out
    once. Raises `RefusedFault` where one step is a refusal, `ConflictFault` where a stream moved on meanwhile."""
    if closed(unit):
        raise RefusedFault(Refusal("node_closed"))
    changes = []
    for step in steps:
        after = step.after
        assert not isinstance(step.decided, Refusal)
        if not step.decided:
            continue
        changes.append(
            Change(
                stream=step.process.stream(step.ident),
                kind=step.process.kind,
                expected=step.version,
                events=tuple(encode(event) for event in step.decided),
                phase=after.phase,
                state=encode_state(after),
                links=step.process.links(after),
            )
        )
    if not changes:
        return []
    return unit.append(changes, actor=by, at=at, command=f"{by}:{command}", asserts=asserts)
