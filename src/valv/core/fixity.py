"""Fixity: copies of bodies are read again, from end to end, and damaged ones are made anew from whole ones.

A scrub is one such round: over all copies whose last check is old, or over those that an operator names. Which copy is
next is decided here too: one that somebody could not read comes first, then damaged ones, then the one that was not
looked at for the longest time.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias, assert_never

import msgspec

from valv.core.process import NODE, Command, Event, Table, guard
from valv.errors import Refusal

KIND = "fixity"
Phase: TypeAlias = Literal["going", "done"]
Fault: TypeAlias = Literal["altered", "missing", "unreadable"]
LOOKED_AT: Final = ("suspect", "bad", "whole")
"""States of copies that a scrub looks at, the first first."""
DAILY: Final = timedelta(days=1)
"""The node begins a scrub of its own so long after the one before."""
SOON: Final = timedelta(minutes=10)
"""So long after it, where a copy could not be read meanwhile."""


class Scrub(msgspec.Struct, frozen=True, kw_only=True):
    """`dataset_id`, `store`: the only ones that it is about, '' for all; `days`: copies whose last check is so old are
    read, 0 for all; `tape`: copies on tape are fetched and read too; `expected`: copies at the beginning. `copies`,
    `size`: read, and bytes of them; `unreached`: could not be read now; `damaged`, `repaired`, `lost`: found so;
    `left`: copies that are damaged at the end."""

    scrub_id: str
    by: str
    begun: datetime
    dataset_id: str
    store: str
    days: int
    tape: bool
    expected: int
    phase: Phase = "going"
    damaged: int = 0
    repaired: int = 0
    lost: int = 0
    copies: int = 0
    size: int = 0
    unreached: int = 0
    left: int = 0
    ended: datetime | None = None


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """One copy. `since`: when it came; `checked`: when it was last read from end to end."""

    body: str
    store: str
    state: str
    since: datetime
    checked: datetime | None


def is_due(copy: Copy, begun: datetime, days: int) -> bool:
    """Whether a scrub that began then reads this copy (again)."""
    if copy.state not in LOOKED_AT or (copy.checked is not None and copy.checked >= begun):
        return False
    if copy.state != "whole":
        return True
    return (copy.checked or copy.since) <= begun - timedelta(days=days)


def in_order(copies: Iterable[Copy], begun: datetime, days: int) -> list[Copy]:
    """Those that are due, the most urgent first."""
    due = [copy for copy in copies if is_due(copy, begun, days)]
    return sorted(due, key=lambda one: (LOOKED_AT.index(one.state), one.checked or one.since, one.body, one.store))


def begins(last: Scrub | None, now: datetime, *, suspects: bool) -> bool:
    """Whether the node begins a scrub of its own, where copies are due. `last`: its newest one."""
    if last is None:
        return True
    if last.phase == "going":
        return False
    return now - last.begun >= DAILY or (suspects and now - (last.ended or last.begun) >= SOON)


# --- commands ---
class Begin(Command, frozen=True, kw_only=True):
    scrub_id: str
    dataset_id: str = ""
    store: str = ""
    days: int
    tape: bool = False
    expected: int


class RecordDamage(Command, frozen=True, kw_only=True):
    """A copy does not hold. `file_id`: whose body it is."""

    body: str
    file_id: str
    store: str
    fault: Fault


class RecordRepair(Command, frozen=True, kw_only=True):
    """It was made anew. `source`: the store of the copy that it was made from; its own name where only its seal was
    made anew."""

    body: str
    file_id: str
    store: str
    source: str


class RecordLoss(Command, frozen=True, kw_only=True):
    """No copy holds: none is repaired."""

    body: str
    file_id: str


class Finish(Command, frozen=True, kw_only=True):
    copies: int
    size: int
    unreached: int
    left: int


Commands: TypeAlias = Begin | RecordDamage | RecordRepair | RecordLoss | Finish


# --- events ---
class Begun(Event, frozen=True, kw_only=True, tag="fixity.begun"):
    scrub_id: str
    by: str
    dataset_id: str
    store: str
    days: int
    tape: bool
    expected: int
    at: datetime


class Damaged(Event, frozen=True, kw_only=True, tag="fixity.damaged"):
    body: str
    file_id: str
    store: str
    fault: Fault


class Repaired(Event, frozen=True, kw_only=True, tag="fixity.repaired"):
    body: str
    file_id: str
    store: str
    source: str


class NotRepaired(Event, frozen=True, kw_only=True, tag="fixity.not_repaired"):
    body: str
    file_id: str


class Finished(Event, frozen=True, kw_only=True, tag="fixity.finished"):
    copies: int
    size: int
    unreached: int
    left: int
    at: datetime


Events: TypeAlias = Begun | Damaged | Repaired | NotRepaired | Finished


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`operator`: the actor operates the node; `going`: a scrub of the same is under way; `store_known`: the store that
    is named is one of the node's."""

    operator: bool = False
    going: bool = False
    store_known: bool = True


TABLE: Table = {
    "new": {"operator": frozenset({Begin}), NODE: frozenset({Begin})},
    "going": {NODE: frozenset({RecordDamage, RecordRepair, RecordLoss, Finish})},
    "done": {},
}


def roles(_state: Scrub | None, by: str, facts: Facts) -> frozenset[str]:
    if by == NODE:
        return frozenset({NODE})
    return frozenset({"operator"}) if facts.operator else frozenset()


def decide(state: Scrub | None, command: Commands, facts: Facts) -> list[Events] | Refusal:
    refusal = guard(TABLE, state.phase if state else "new", roles(state, command.by, facts), command)
    if refusal:
        return refusal
    match command:
        case Begin():
            return _begin(command, facts)
        case RecordDamage():
            damage = Damaged(body=command.body, file_id=command.file_id, store=command.store, fault=command.fault)
            return [damage]
        case RecordRepair():
            repair = Repaired(body=command.body, file_id=command.file_id, store=command.store, source=command.source)
            return [repair]
        case RecordLoss():
            return [NotRepaired(body=command.body, file_id=command.file_id)]
        case Finish():
            end = Finished(
                copies=command.copies,
                size=command.size,
                unreached=command.unreached,
                left=command.left,
                at=command.at,
            )
            return [end]
        case _:
            assert_never(command)


def _begin(command: Begin, facts: Facts) -> list[Events] | Refusal:
    if not facts.store_known:
        return Refusal("store_unknown", command.store)
    if facts.going:
        return Refusal("scrub_going")
    return [
        Begun(
            scrub_id=command.scrub_id,
            by=command.by,
            dataset_id=command.dataset_id,
            store=command.store,
            days=command.days,
            tape=command.tape,
            expected=command.expected,
            at=command.at,
        )
    ]


def evolve(state: Scrub | None, event: Events) -> Scrub:
    if isinstance(event, Begun):
        return Scrub(
            scrub_id=event.scrub_id,
            by=event.by,
            begun=event.at,
            dataset_id=event.dataset_id,
            store=event.store,
            days=event.days,
            tape=event.tape,
            expected=event.expected,
        )
    if state is None:
        raise ValueError(f"{type(event).__name__} before Begun")
    match event:
        case Damaged():
            return msgspec.structs.replace(state, damaged=state.damaged + 1)
        case Repaired():
            return msgspec.structs.replace(state, repaired=state.repaired + 1)
        case NotRepaired():
            return msgspec.structs.replace(state, lost=state.lost + 1)
        case Finished():
            return msgspec.structs.replace(
                state,
                phase="done",
                copies=event.copies,
                size=event.size,
                unreached=event.unreached,
                left=event.left,
                ended=event.at,
            )
        case _:
            assert_never(event)
