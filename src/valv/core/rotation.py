"""Rotation: a dataset version gets a new key pair, and its files follow, one after the other, while it is used.

`rotate` seals the files' headers to the new pair. `rekey` encrypts their bodies anew as well, under data keys that
nobody knew. The pair before stays until nobody reads by it; every file opens with exactly one pair at every moment. One
that is stopped leaves files of both pairs, all of them readable; the next one takes them all along.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias, assert_never

import msgspec

from valv.core.process import NODE, Command, Event, Table, guard
from valv.errors import Refusal

KIND = "rotation"
Phase: TypeAlias = Literal["going", "retiring", "done", "failed", "stopped"]
Aim: TypeAlias = Literal["rotate", "rekey"]


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """`pair`: number of the new key pair; `made`: the key holder has it; `bodies`: how many were encrypted anew;
    `files`: how many are of the new pair, once all are; `readers`: runs that went on then and may still read by the
    pair before; `reason`, `why`: ids of texts: what it is for, and what it failed at."""

    rotation_id: str
    dataset_id: str
    version: int
    key_id: str
    aim: Aim
    pair: int
    reason: str
    by: str
    started: datetime
    phase: Phase = "going"
    made: bool = False
    bodies: int = 0
    files: int = 0
    readers: tuple[str, ...] = ()
    ended: datetime | None = None
    why: str = ""


# --- commands ---
class Start(Command, frozen=True, kw_only=True):
    rotation_id: str
    dataset_id: str
    version: int
    key_id: str
    aim: Aim
    reason: str


class RecordPair(Command, frozen=True, kw_only=True):
    """The key holder has made the new pair. From now on files may be of it."""


class RecordBody(Command, frozen=True, kw_only=True):
    """A file has another body. `before`, `after`: roots of the two hash trees, hex: the manifest of what was handed in
    speaks of the first."""

    file_id: str
    before: str
    after: str


class Settle(Command, frozen=True, kw_only=True):
    """All files are of the new pair."""


class Retire(Command, frozen=True, kw_only=True):
    """The key holder has forgotten the pairs before."""


class Stop(Command, frozen=True, kw_only=True):
    pass


class Fail(Command, frozen=True, kw_only=True):
    why: str


Commands: TypeAlias = Start | RecordPair | RecordBody | Settle | Retire | Stop | Fail


# --- events ---
class Started(Event, frozen=True, kw_only=True, tag="rotation.started"):
    rotation_id: str
    dataset_id: str
    version: int
    key_id: str
    aim: Aim
    pair: int
    reason: str
    by: str
    at: datetime


class PairMade(Event, frozen=True, kw_only=True, tag="rotation.pair_made"):
    pass


class BodyReplaced(Event, frozen=True, kw_only=True, tag="rotation.body_replaced"):
    file_id: str
    before: str
    after: str


class Settled(Event, frozen=True, kw_only=True, tag="rotation.settled"):
    files: int
    readers: tuple[str, ...]


class Retired(Event, frozen=True, kw_only=True, tag="rotation.retired"):
    at: datetime


class Stopped(Event, frozen=True, kw_only=True, tag="rotation.stopped"):
    at: datetime


class Failed(Event, frozen=True, kw_only=True, tag="rotation.failed"):
    why: str
    at: datetime


Events: TypeAlias = Started | PairMade | BodyReplaced | Settled | Retired | Stopped | Failed


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`operator`, `custodian`: the actor operates the node, answers for the dataset; `going`: another rotation of this
    key is under way; `pair`: the newest pair that the key holder is known to have; `left`: files that are not of the
    new pair yet, `files`: all of them; `readers`: runs on the dataset that go on."""

    operator: bool = False
    custodian: bool = False
    going: bool = False
    pair: int = 1
    left: int = 0
    files: int = 0
    readers: tuple[str, ...] = ()


TABLE: Table = {
    "new": {"operator": frozenset({Start}), "custodian": frozenset({Start})},
    "going": {NODE: frozenset({RecordPair, RecordBody, Settle, Fail}), "operator": frozenset({Stop})},
    "retiring": {NODE: frozenset({Retire, Fail})},
    "done": {},
    "failed": {},
    "stopped": {},
}


def roles(_state: Rotation | None, by: str, facts: Facts) -> frozenset[str]:
    if by == NODE:
        return frozenset({NODE})
    held = {"operator": facts.operator, "custodian": facts.custodian}
    return frozenset(role for role, has in held.items() if has)


def decide(state: Rotation | None, command: Commands, facts: Facts) -> list[Events] | Refusal:
    refusal = guard(TABLE, state.phase if state else "new", roles(state, command.by, facts), command)
    if refusal:
        return refusal
    match command:
        case Start():
            return _start(command, facts)
        case RecordPair():
            return [] if state and state.made else [PairMade()]
        case RecordBody():
            if state is None or not state.made or state.aim != "rekey":
                return Refusal("body_stays", command.file_id)
            return [BodyReplaced(file_id=command.file_id, before=command.before, after=command.after)]
        case Settle():
            if state is None or not state.made or facts.left:
                return Refusal("files_left", f"{facts.left} of {facts.files}")
            return [Settled(files=facts.files, readers=facts.readers)]
        case Retire():
            reading = still_reading(state, facts.readers) if state else ()
            if reading:
                return Refusal("key_in_use", f"{len(reading)} runs that began before still go on")
            return [Retired(at=command.at)]
        case Stop():
            return [Stopped(at=command.at)]
        case Fail():
            return [Failed(why=command.why, at=command.at)]
        case _:
            assert_never(command)


def _start(command: Start, facts: Facts) -> list[Events] | Refusal:
    if not command.reason:
        return Refusal("reason_missing")
    if facts.going:
        return Refusal("rotation_going", f"version {command.version}")
    return [
        Started(
            rotation_id=command.rotation_id,
            dataset_id=command.dataset_id,
            version=command.version,
            key_id=command.key_id,
            aim=command.aim,
            pair=facts.pair + 1,
            reason=command.reason,
            by=command.by,
            at=command.at,
        )
    ]


def still_reading(state: Rotation, going: tuple[str, ...]) -> tuple[str, ...]:
    """Of the runs that go on, those that may still read by the pair before."""
    return tuple(run_id for run_id in going if run_id in state.readers)


def evolve(state: Rotation | None, event: Events) -> Rotation:
    if isinstance(event, Started):
        return Rotation(
            rotation_id=event.rotation_id,
            dataset_id=event.dataset_id,
            version=event.version,
            key_id=event.key_id,
            aim=event.aim,
            pair=event.pair,
            reason=event.reason,
            by=event.by,
            started=event.at,
        )
    if state is None:
        raise ValueError(f"{type(event).__name__} before Started")
    match event:
        case PairMade():
            return msgspec.structs.replace(state, made=True)
        case BodyReplaced():
            return msgspec.structs.replace(state, bodies=state.bodies + 1)
        case Settled():
            return msgspec.structs.replace(state, phase="retiring", files=event.files, readers=event.readers)
        case Retired():
            return msgspec.structs.replace(state, phase="done", ended=event.at)
        case Stopped():
            return msgspec.structs.replace(state, phase="stopped", ended=event.at)
        case Failed():
            return msgspec.structs.replace(state, phase="failed", ended=event.at, why=event.why)
        case _:
            assert_never(event)
