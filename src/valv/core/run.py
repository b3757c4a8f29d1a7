"""Run: one command over permitted dataset versions, in a sandbox without a way out.

A research run hangs off a permit. A scan (the node's own search for identifiers) hangs off a dataset version and is the
node's; both run the same way.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias, assert_never

import msgspec

from valv.core.access import Wanted
from valv.core.process import NODE, Command, Event, Table, guard
from valv.errors import Refusal

KIND = "run"
Phase: TypeAlias = Literal["queued", "running", "stopping", "ended", "collected", "cancelled"]
Aim: TypeAlias = Literal["research", "scan"]
End: TypeAlias = Literal["exited", "time", "memory", "stopped", "revoked", "lost", "not_started"]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Limits as in `ports.compute.Limits`: wall seconds, bytes, count, bytes."""

    seconds: int
    memory: int
    processes: int
    scratch: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """`command`: id of the text that holds the command line. `stop`: why it was
    asked to end early, '' where it was not; `success`: exit code 0; all that doors show of it."""

    run_id: str
    owner: str
    aim: Aim
    permit_id: str
    datasets: tuple[Wanted, ...]
    command: str
    limits: Asked
    result_key: str
    phase: Phase = "queued"
    queued: datetime
    started: datetime | None = None
    ended: datetime | None = None
    stop: str = ""
    end: End | None = None
    success: bool = False
    outputs: int = 0
    skipped: int = 0


# --- commands ---
class Queue(Command, frozen=True, kw_only=True):
    run_id: str
    aim: Aim
    permit_id: str
    datasets: tuple[Wanted, ...]
    command: str
    limits: Asked
    result_key: str


class Start(Command, frozen=True, kw_only=True):
    pass


class Stop(Command, frozen=True, kw_only=True):
    """`why`: `stopped` by its owner, `revoked` because the permit ended."""

    why: Literal["stopped", "revoked"]


class Finish(Command, frozen=True, kw_only=True):
    end: End
    success: bool


class RecordReads(Command, frozen=True, kw_only=True):
    """Evidence: plain bytes read since the last record, by file id."""

    reads: dict[str, int]


class Collect(Command, frozen=True, kw_only=True):
    outputs: int
    skipped: int


Commands: TypeAlias = Queue | Start | Stop | Finish | RecordReads | Collect


# --- events ---
class Queued(Event, frozen=True, kw_only=True, tag="run.queued"):
    run_id: str
    owner: str
    aim: Aim
    permit_id: str
    datasets: tuple[Wanted, ...]
    command: str
    limits: Asked
    result_key: str
    at: datetime


class Started(Event, frozen=True, kw_only=True, tag="run.started"):
    at: datetime


class StopAsked(Event, frozen=True, kw_only=True, tag="run.stop_asked"):
    why: str


class Cancelled(Event, frozen=True, kw_only=True, tag="run.cancelled"):
    why: str


class Read(Event, frozen=True, kw_only=True, tag="run.read"):
    reads: dict[str, int]


class Ended(Event, frozen=True, kw_only=True, tag="run.ended"):
    end: End
    success: bool
    at: datetime


class Collected(Event, frozen=True, kw_only=True, tag="run.collected"):
    outputs: int
    skipped: int


Events: TypeAlias = Queued | Started | StopAsked | Cancelled | Read | Ended | Collected


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`permit`: what `core.permit.permits` says for the actor and every dataset (None: yes), checked at queueing and
    again at the start; where it was not asked the answer is no. The node's own scans need none. `ceiling`: the node's
    upper bounds."""

    permit: Refusal | None = Refusal("no_permit")
    ceiling: Asked | None = None
    command_empty: bool = False


TABLE: Table = {
    "new": {"holder": frozenset({Queue}), NODE: frozenset({Queue})},
    "queued": {NODE: frozenset({Start, Stop, Finish}), "owner": frozenset({Stop})},
    "running": {NODE: frozenset({Stop, Finish, RecordReads}), "owner": frozenset({Stop})},
    "stopping": {NODE: frozenset({Finish, RecordReads})},
    "ended": {NODE: frozenset({Collect, RecordReads})},
    "collected": {},
    "cancelled": {},
}


def roles(state: Run | None, by: str, facts: Facts) -> frozenset[str]:
    if by == NODE:
        return frozenset({NODE})
    if state is None:
        return frozenset({"holder"}) if facts.permit is None else frozenset()
    return frozenset({"owner"}) if by == state.owner else frozenset()


def decide(state: Run | None, command: Commands, facts: Facts) -> list[Events] | Refusal:
    aim = command.aim if isinstance(command, Queue) else state.aim if state else None
    own = aim == "scan" and command.by == NODE
    if isinstance(command, Queue | Start) and facts.permit is not None and not own:
        return facts.permit
    refusal = guard(TABLE, state.phase if state else "new", roles(state, command.by, facts), command)
    if refusal:
        return refusal
    match command:
        case Queue():
            return _queue(command, facts)
        case Start():
            return [Started(at=command.at)]
        case Stop():
            why = command.why if command.by == NODE else "stopped"
            if state and state.phase == "queued":
                return [Cancelled(why=why)]
            return [StopAsked(why=why)]
        case Finish():
            return [Ended(end=command.end, success=command.success, at=command.at)]
        case RecordReads():
            return [Read(reads=command.reads)] if command.reads else []
        case Collect():
            return [Collected(outputs=command.outputs, skipped=command.skipped)]
        case _:
            assert_never(command)


def _queue(command: Queue, facts: Facts) -> list[Events] | Refusal:
    if facts.command_empty:
        return Refusal("command_missing")
    if command.aim == "scan" and command.by != NODE:
        return Refusal("not_yours", "scans are the node's own")
    if not command.datasets:
        return Refusal("dataset_missing", "name at least one dataset of the permit")
    for name in Asked.__struct_fields__ if facts.ceiling else ():
        asked, most = getattr(command.limits, name), getattr(facts.ceiling, name)
        if not 0 < asked <= most:
            return Refusal("over_limit", f"{name}: between 1 and {most}, not {asked}")
    return [
        Queued(
            run_id=command.run_id,
            owner=command.by,
            aim=command.aim,
            permit_id=command.permit_id,
            datasets=command.datasets,
            command=command.command,
            limits=command.limits,
            result_key=command.result_key,
            at=command.at,
        )
    ]


def evolve(state: Run | None, event: Events) -> Run:
    if isinstance(event, Queued):
        return Run(
            run_id=event.run_id,
            owner=event.owner,
            aim=event.aim,
            permit_id=event.permit_id,
            datasets=event.datasets,
            command=event.command,
            limits=event.limits,
            result_key=event.result_key,
            queued=event.at,
        )
    if state is None:
        raise ValueError(f"{type(event).__name__} before Queued")
    match event:
        case Started():
            return msgspec.structs.replace(state, phase="running", started=event.at)
        case StopAsked():
            return msgspec.structs.replace(state, phase="stopping", stop=event.why)
        case Cancelled():
            return msgspec.structs.replace(state, phase="cancelled")
        case Read():
            return state
        case Ended():
            return msgspec.structs.replace(state, phase="ended", ended=event.at, end=event.end, success=event.success)
        case Collected():
            return msgspec.structs.replace(state, phase="collected", outputs=event.outputs, skipped=event.skipped)
        case _:
            assert_never(event)
