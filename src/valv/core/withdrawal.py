"""Withdrawal: some participants leave a dataset version after its release.

Asking closes the version at once, for new runs and downloads, and unless the custodian says otherwise ends the runs
that go on. The node then makes a successor without these people: files of theirs alone are dropped, files that others
share are rewritten, all others are taken over as they are. When the successor is there, the permits of the old version
move to it. Whatever fails, the old version stays closed.

Who withdrew stands in an erasable text; events hold its id, which is a salted digest.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias, assert_never

import msgspec

from valv.core.process import NODE, Command, Event, Table, guard
from valv.errors import Refusal

KIND = "withdrawal"
Phase: TypeAlias = Literal["asked", "rewriting", "waiting", "carrying", "finished", "nobody", "failed", "cancelled"]
Outcome: TypeAlias = Literal["dropped", "rewritten", "kept"]
GOING = ("asked", "rewriting", "waiting", "carrying")


class Withdrawal(msgspec.Struct, frozen=True, kw_only=True):
    """`persons`: id of the text that names them, `count`: how many they are; `reason`: id of a text; `key_id`: of the
    successor; `files`: of the old version. `taken` … `kept`: how many files came to what, `kept` by the custodian's
    word; `successor`: number of the new version, 0 before it is there; `permits`: how many moved to it; `why`: id of
    the text that says what it failed at."""

    withdrawal_id: str
    dataset_id: str
    version: int
    key_id: str
    persons: str
    count: int
    reason: str
    runs_end: bool
    by: str
    asked: datetime
    phase: Phase = "asked"
    files: int = 0
    taken: int = 0
    dropped: int = 0
    rewritten: int = 0
    kept: int = 0
    successor: int = 0
    permits: int = 0
    ended: datetime | None = None
    why: str = ""


# --- commands ---
class Ask(Command, frozen=True, kw_only=True):
    """`count`: of the people who withdraw; `runs_end`: runs that go on are stopped."""

    withdrawal_id: str
    dataset_id: str
    version: int
    key_id: str
    persons: str
    count: int
    reason: str
    runs_end: bool


class Plan(Command, frozen=True, kw_only=True):
    """The node has read who is in which file."""

    files: int


class RecordFile(Command, frozen=True, kw_only=True):
    """A file came to its outcome. `before`, `after`: roots of the hash trees of the two bodies, hex; `after` is empty
    where there is none."""

    file_id: str
    outcome: Outcome
    before: str
    after: str


class RecordTaken(Command, frozen=True, kw_only=True):
    """Files of others were taken over as they are."""

    files: int


class Wait(Command, frozen=True, kw_only=True):
    """The node cannot rewrite `files` files by itself: the custodian must say what becomes of them."""

    files: int


class GoOn(Command, frozen=True, kw_only=True):
    """The custodian has said it for each of them."""


class Publish(Command, frozen=True, kw_only=True):
    """The successor is there."""

    successor: int


class Carry(Command, frozen=True, kw_only=True):
    """Permits moved to the successor."""

    permits: int


class Finish(Command, frozen=True, kw_only=True):
    pass


class FindNobody(Command, frozen=True, kw_only=True):
    """The version's table of participants names none of them: the version opens again."""


class Fail(Command, frozen=True, kw_only=True):
    why: str


class Cancel(Command, frozen=True, kw_only=True):
    """Make no successor. The old version stays closed."""


Commands: TypeAlias = (
    Ask | Plan | RecordFile | RecordTaken | Wait | GoOn | Publish | Carry | Finish | FindNobody | Fail | Cancel
)


# --- events ---
class Asked(Event, frozen=True, kw_only=True, tag="withdrawal.asked"):
    withdrawal_id: str
    dataset_id: str
    version: int
    key_id: str
    persons: str
    count: int
    reason: str
    runs_end: bool
    by: str
    at: datetime


class Planned(Event, frozen=True, kw_only=True, tag="withdrawal.planned"):
    files: int


class FileSettled(Event, frozen=True, kw_only=True, tag="withdrawal.file_settled"):
    file_id: str
    outcome: Outcome
    before: str
    after: str


class FilesTaken(Event, frozen=True, kw_only=True, tag="withdrawal.files_taken"):
    files: int


class Waited(Event, frozen=True, kw_only=True, tag="withdrawal.waited"):
    files: int


class WentOn(Event, frozen=True, kw_only=True, tag="withdrawal.went_on"):
    pass


class Published(Event, frozen=True, kw_only=True, tag="withdrawal.published"):
    successor: int


class Carried(Event, frozen=True, kw_only=True, tag="withdrawal.carried"):
    permits: int


class Finished(Event, frozen=True, kw_only=True, tag="withdrawal.finished"):
    at: datetime


class NobodyFound(Event, frozen=True, kw_only=True, tag="withdrawal.nobody_found"):
    at: datetime


class Failed(Event, frozen=True, kw_only=True, tag="withdrawal.failed"):
    why: str
    at: datetime


class Cancelled(Event, frozen=True, kw_only=True, tag="withdrawal.cancelled"):
    at: datetime


Events: TypeAlias = (
    Asked
    | Planned
    | FileSettled
    | FilesTaken
    | Waited
    | WentOn
    | Published
    | Carried
    | Finished
    | NobodyFound
    | Failed
    | Cancelled
)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`custodian`: the actor answers for the dataset; `going`: another withdrawal of the version is under way; `left`:
    files that came to no outcome yet, `asking`: those of them that wait for the custodian; `named`: live permits that
    still name the old version."""

    custodian: bool = False
    going: bool = False
    left: int = 0
    asking: int = 0
    named: int = 0


TABLE: Table = {
    "new": {"custodian": frozenset({Ask})},
    "asked": {NODE: frozenset({Plan, FindNobody, Fail}), "custodian": frozenset({Cancel})},
    "rewriting": {NODE: frozenset({RecordFile, RecordTaken, Wait, Publish, Fail}), "custodian": frozenset({Cancel})},
    "waiting": {NODE: frozenset({GoOn, Fail}), "custodian": frozenset({RecordFile, Cancel})},
    "carrying": {NODE: frozenset({Carry, Finish})},
    "finished": {},
    "nobody": {},
    "failed": {},
    "cancelled": {},
}


def roles(_state: Withdrawal | None, by: str, facts: Facts) -> frozenset[str]:
    if by == NODE:
        return frozenset({NODE})
    return frozenset({"custodian"}) if facts.custodian else frozenset()


def decide(state: Withdrawal | None, command: Commands, facts: Facts) -> list[Events] | Refusal:
    refusal = guard(TABLE, state.phase if state else "new", roles(state, command.by, facts), command)
    if refusal:
        return refusal
    match command:
        case Ask():
            return _ask(command, facts)
        case Plan():
            return [Planned(files=command.files)]
        case RecordFile():
            return [
                FileSettled(
                    file_id=command.file_id, outcome=command.outcome, before=command.before, after=command.after
                )
            ]
        case RecordTaken():
            return [FilesTaken(files=command.files)] if command.files else []
        case Wait():
            return [Waited(files=command.files)] if command.files else Refusal("not_yet", "no file waits for anybody")
        case GoOn():
            return Refusal("files_open", f"{facts.asking} files") if facts.asking else [WentOn()]
        case Publish():
            if facts.left:
                return Refusal("files_open", f"{facts.left} files")
            return [Published(successor=command.successor)]
        case Carry():
            return [Carried(permits=command.permits)] if command.permits else []
        case Finish():
            if facts.named:
                return Refusal("permits_left", f"{facts.named} permits")
            return [Finished(at=command.at)]
        case FindNobody():
            return [NobodyFound(at=command.at)]
        case Fail():
            return [Failed(why=command.why, at=command.at)]
        case Cancel():
            return [Cancelled(at=command.at)]
        case _:
            assert_never(command)


def _ask(command: Ask, facts: Facts) -> list[Events] | Refusal:
    if not command.persons or not command.count:
        return Refusal("person_missing")
    if not command.reason:
        return Refusal("reason_missing")
    if facts.going:
        return Refusal("withdrawal_going", f"version {command.version}")
    return [
        Asked(
            withdrawal_id=command.withdrawal_id,
            dataset_id=command.dataset_id,
            version=command.version,
            key_id=command.key_id,
            persons=command.persons,
            count=command.count,
            reason=command.reason,
            runs_end=command.runs_end,
            by=command.by,
            at=command.at,
        )
    ]


def evolve(state: Withdrawal | None, event: Events) -> Withdrawal:
    if isinstance(event, Asked):
        return Withdrawal(
            withdrawal_id=event.withdrawal_id,
            dataset_id=event.dataset_id,
            version=event.version,
            key_id=event.key_id,
            persons=event.persons,
            count=event.count,
            reason=event.reason,
            runs_end=event.runs_end,
            by=event.by,
            asked=event.at,
        )
    if state is None:
        raise ValueError(f"{type(event).__name__} before Asked")
    match event:
        case Planned():
            return msgspec.structs.replace(state, phase="rewriting", files=event.files)
        case FileSettled():
            return msgspec.structs.replace(state, **{event.outcome: getattr(state, event.outcome) + 1})
        case FilesTaken():
            return msgspec.structs.replace(state, taken=state.taken + event.files)
        case Waited():
            return msgspec.structs.replace(state, phase="waiting")
        case WentOn():
            return msgspec.structs.replace(state, phase="rewriting")
        case Published():
            return msgspec.structs.replace(state, phase="carrying", successor=event.successor)
        case Carried():
            return msgspec.structs.replace(state, permits=state.permits + event.permits)
        case Finished():
            return msgspec.structs.replace(state, phase="finished", ended=event.at)
        case NobodyFound():
            return msgspec.structs.replace(state, phase="nobody", ended=event.at)
        case Failed():
            return msgspec.structs.replace(state, phase="failed", ended=event.at, why=event.why)
        case Cancelled():
            return msgspec.structs.replace(state, phase="cancelled", ended=event.at)
        case _:
            assert_never(event)
