"""Permit: the root object. No permit, no bytes.

People, mounts, downloads and runs hang off it; each asks `permits` again at least every half second.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias, assert_never

import msgspec

from valv.core.access import Wanted
from valv.core.classes import Mode
from valv.core.consent import Purpose
from valv.core.process import NODE, Command, Event, Table, guard
from valv.errors import Refusal

KIND = "permit"
Phase: TypeAlias = Literal["issued", "suspended", "revoked", "expired", "given_back"]
LIVE = ("issued", "suspended")
"""Phases of permits that may be used, or may be again."""


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a dataset was replaced by another under a permit."""

    dataset_id: str
    before: int
    after: int
    at: datetime


class Permit(msgspec.Struct, frozen=True, kw_only=True):
    """`people`: account ids; `datasets`: the exact versions; `starts`, `ends`: aware UTC times."""

    permit_id: str
    access_id: str
    people: tuple[str, ...]
    datasets: tuple[Wanted, ...]
    purpose: Purpose
    mode: Mode
    starts: datetime
    ends: datetime
    phase: Phase = "issued"
    reason: str = ""
    moves: tuple[Moved, ...] = ()


# --- commands ---
class Issue(Command, frozen=True, kw_only=True):
    """Follows from `access.approved`, in the same transaction."""

    permit_id: str
    access_id: str
    people: tuple[str, ...]
    datasets: tuple[Wanted, ...]
    purpose: Purpose
    mode: Mode
    starts: datetime
    ends: datetime


class Revoke(Command, frozen=True, kw_only=True):
    reason: str


class Expire(Command, frozen=True, kw_only=True):
    pass


class GiveBack(Command, frozen=True, kw_only=True):
    """The holder needs it no more."""


class Move(Command, frozen=True, kw_only=True):
    """Participants withdrew from a version: from now on the permit is for the version that took its place. People,
    end and conditions stay as they are."""

    dataset_id: str
    before: int
    after: int


class Suspend(Command, frozen=True, kw_only=True):
    """It no longer fits what participants consent to. `reason`: id of a text."""

    reason: str


class Resume(Command, frozen=True, kw_only=True):
    """It may be used again: the committee said so, or the successor version fits."""

    reason: str


class RecordDownload(Command, frozen=True, kw_only=True):
    """Evidence: a holder begins to download a file, sealed to the key of this fingerprint, from byte `start`."""

    file_id: str
    key: str
    start: int


Commands: TypeAlias = Issue | Revoke | Expire | GiveBack | Move | Suspend | Resume | RecordDownload


# --- events ---
class Issued(Event, frozen=True, kw_only=True, tag="permit.issued"):
    permit_id: str
    access_id: str
    people: tuple[str, ...]
    datasets: tuple[Wanted, ...]
    purpose: Purpose
    mode: Mode
    starts: datetime
    ends: datetime


class Revoked(Event, frozen=True, kw_only=True, tag="permit.revoked"):
    reason: str


class Expired(Event, frozen=True, kw_only=True, tag="permit.expired"):
    pass


class GivenBack(Event, frozen=True, kw_only=True, tag="permit.given_back"):
    pass


class VersionMoved(Event, frozen=True, kw_only=True, tag="permit.moved"):
    dataset_id: str
    before: int
    after: int
    at: datetime


class Suspended(Event, frozen=True, kw_only=True, tag="permit.suspended"):
    reason: str


class Resumed(Event, frozen=True, kw_only=True, tag="permit.resumed"):
    reason: str


class Downloaded(Event, frozen=True, kw_only=True, tag="permit.downloaded"):
    file_id: str
    account: str
    key: str
    start: int


Events: TypeAlias = Issued | Revoked | Expired | GivenBack | VersionMoved | Suspended | Resumed | Downloaded


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`committee`: the actor sits on the committee of one of the datasets; `custodian`: is custodian of one."""

    committee: bool = False
    custodian: bool = False


TABLE: Table = {
    "new": {NODE: frozenset({Issue})},
    "issued": {
        "committee": frozenset({Revoke}),
        "custodian": frozenset({Revoke}),
        "holder": frozenset({GiveBack, RecordDownload}),
        NODE: frozenset({Expire, Revoke, Move, Suspend}),
    },
    "suspended": {
        "committee": frozenset({Revoke, Resume}),
        "custodian": frozenset({Revoke}),
        "holder": frozenset({GiveBack}),
        NODE: frozenset({Expire, Revoke, Move, Suspend, Resume}),
    },
    "revoked": {},
    "expired": {},
    "given_back": {},
}


def roles(state: Permit | None, by: str, facts: Facts) -> frozenset[str]:
    if by == NODE:
        return frozenset({NODE})
    found = set()
    if facts.committee:
        found.add("committee")
    if facts.custodian:
        found.add("custodian")
    if state and by in state.people:
        found.add("holder")
    return frozenset(found)


def permits(
    state: Permit | None,
    *,
    account: str,
    dataset: Wanted | None,
    mode: Mode | None,
    at: datetime,
    since: datetime | None = None,
) -> Refusal | None:
    """Does this permit let `account` use `dataset` in this mode now? None means yes. `since`: of a run that goes on,
    when it began: what the permit covered then counts."""
    if state is None or account not in state.people:
        return Refusal("no_permit")
    if state.phase == "suspended":
        return Refusal("permit_suspended")
    if state.phase != "issued":
        return Refusal("permit_ended", f"this permit is {state.phase.replace('_', ' ')}")
    if at < state.starts:
        return Refusal("permit_not_begun", f"it begins {state.starts:%Y-%m-%d %H:%M} UTC")
    if at >= state.ends:
        return Refusal("permit_ended", f"it ended {state.ends:%Y-%m-%d %H:%M} UTC")
    if dataset is not None and dataset not in state.datasets and not _covered(state, dataset, since):
        return Refusal("no_permit", "this permit does not cover that dataset version")
    if mode is not None and mode != state.mode:
        return Refusal("other_mode", f"this permit is for the mode '{state.mode}'")
    return None


def _covered(state: Permit, dataset: Wanted, since: datetime | None) -> bool:
    """Whether the permit was for this version when the run began, and moved on later."""
    return since is not None and any(
        (move.dataset_id, move.before) == (dataset.dataset_id, dataset.version) and since < move.at
        for move in state.moves
    )


def decide(state: Permit | None, command: Commands, facts: Facts) -> list[Events] | Refusal:
    refusal = guard(TABLE, state.phase if state else "new", roles(state, command.by, facts), command)
    if refusal:
        return refusal
    match command:
        case Issue():
            return [
                Issued(
                    permit_id=command.permit_id,
                    access_id=command.access_id,
                    people=command.people,
                    datasets=command.datasets,
                    purpose=command.purpose,
                    mode=command.mode,
                    starts=command.starts,
                    ends=command.ends,
                )
            ]
        case Revoke():
            return [Revoked(reason=command.reason)] if command.reason else Refusal("reason_missing")
        case Expire():
            if state and command.at < state.ends:
                return Refusal("not_yet", "the permit has not reached its end")
            return [Expired()]
        case GiveBack():
            return [GivenBack()]
        case Move():
            before = Wanted(command.dataset_id, command.before)
            if state is None or before not in state.datasets:
                return Refusal("no_permit", "this permit does not cover that dataset version")
            return [
                VersionMoved(dataset_id=command.dataset_id, before=command.before, after=command.after, at=command.at)
            ]
        case Suspend():
            return [Suspended(reason=command.reason)] if command.reason else Refusal("reason_missing")
        case Resume():
            return [Resumed(reason=command.reason)] if command.reason else Refusal("reason_missing")
        case RecordDownload():
            wrong = permits(state, account=command.by, dataset=None, mode="download", at=command.at)
            if wrong:
                return wrong
            return [Downloaded(file_id=command.file_id, account=command.by, key=command.key, start=command.start)]
        case _:
            assert_never(command)


def evolve(state: Permit | None, event: Events) -> Permit:
    if isinstance(event, Issued):
        return Permit(
            permit_id=event.permit_id,
            access_id=event.access_id,
            people=event.people,
            datasets=event.datasets,
            purpose=event.purpose,
            mode=event.mode,
            starts=event.starts,
            ends=event.ends,
        )
    if state is None:
        raise ValueError(f"{type(event).__name__} before Issued")
    match event:
        case Revoked():
            return msgspec.structs.replace(state, phase="revoked", reason=event.reason)
        case Expired():
            return msgspec.structs.replace(state, phase="expired")
        case GivenBack():
            return msgspec.structs.replace(state, phase="given_back")
        case VersionMoved():
            return _moved(state, event)
        case Suspended():
            return msgspec.structs.replace(state, phase="suspended", reason=event.reason)
        case Resumed():
            return msgspec.structs.replace(state, phase="issued", reason="")
        case Downloaded():
            return state
        case _:
            assert_never(event)


def _moved(state: Permit, event: VersionMoved) -> Permit:
    """A permit that names the successor already names it once."""
    before, after = Wanted(event.dataset_id, event.before), Wanted(event.dataset_id, event.after)
    datasets = tuple(dict.fromkeys(after if wanted == before else wanted for wanted in state.datasets))
    move = Moved(dataset_id=event.dataset_id, before=event.before, after=event.after, at=event.at)
    return msgspec.structs.replace(state, datasets=datasets, moves=(*state.moves, move))
