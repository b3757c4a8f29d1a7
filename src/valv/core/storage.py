"""Storage: the rule by which a dataset's files are placed, and its moves from one store to another.

A move is a change of the rule (`valv.core.placement.moved`), with its beginning and end on record. A dataset that
nobody ever gave a rule has no such process; for it the empty rule holds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias, assert_never

import msgspec

from valv.core import placement
from valv.core.process import NODE, Command, Event, Table, guard
from valv.errors import Refusal

KIND = "storage"
Phase: TypeAlias = Literal["resting", "moving"]


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """`rule`: as `placement.write` writes it; while it moves, `source` and `target` are names of stores, `since` when
    the move began and `by` who ordered it."""

    dataset_id: str
    rule: str
    phase: Phase = "resting"
    source: str = ""
    target: str = ""
    since: datetime | None = None
    by: str = ""


# --- commands ---
class SetRule(Command, frozen=True, kw_only=True):
    """A move that goes on is given up: the new rule says where the files are to be."""

    dataset_id: str
    rule: str


class Move(Command, frozen=True, kw_only=True):
    dataset_id: str
    source: str
    target: str


class EndMove(Command, frozen=True, kw_only=True):
    """All files are in the target, and none is left in the source."""


Commands: TypeAlias = SetRule | Move | EndMove


# --- events ---
class RuleSet(Event, frozen=True, kw_only=True, tag="storage.rule_set"):
    dataset_id: str
    rule: str


class MoveBegun(Event, frozen=True, kw_only=True, tag="storage.move_begun"):
    """`rule`: the one that holds from now on."""

    source: str
    target: str
    rule: str
    by: str
    at: datetime


class MoveEnded(Event, frozen=True, kw_only=True, tag="storage.move_ended"):
    files: int


class MoveGivenUp(Event, frozen=True, kw_only=True, tag="storage.move_given_up"):
    pass


Events: TypeAlias = RuleSet | MoveBegun | MoveEnded | MoveGivenUp


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`operator`, `custodian`: the actor operates the node, answers for the dataset; `stores`: names of all stores;
    `forbidden`: those of them where the policies let no file of the dataset rest; `countries`: of each store; `left`:
    how many files are not where the rule wants them; `files`: all of them."""

    operator: bool = False
    custodian: bool = False
    stores: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()
    countries: tuple[tuple[str, str], ...] = ()
    left: int = 0
    files: int = 0


TABLE: Table = {
    "new": {"operator": frozenset({SetRule, Move}), "custodian": frozenset({SetRule})},
    "resting": {"operator": frozenset({SetRule, Move}), "custodian": frozenset({SetRule})},
    "moving": {
        NODE: frozenset({EndMove}),
        "operator": frozenset({SetRule}),
        "custodian": frozenset({SetRule}),
    },
}


def roles(_state: Storage | None, by: str, facts: Facts) -> frozenset[str]:
    if by == NODE:
        return frozenset({NODE})
    held = {"operator": facts.operator, "custodian": facts.custodian}
    return frozenset(role for role, has in held.items() if has)


def decide(state: Storage | None, command: Commands, facts: Facts) -> list[Events] | Refusal:
    refusal = guard(TABLE, state.phase if state else "new", roles(state, command.by, facts), command)
    if refusal:
        return refusal
    match command:
        case SetRule():
            return _set_rule(state, command, facts)
        case Move():
            return _move(state, command, facts)
        case EndMove():
            if facts.left:
                return Refusal("files_moving", f"{facts.left} of {facts.files}")
            return [MoveEnded(files=facts.files)]
        case _:
            assert_never(command)


def _set_rule(state: Storage | None, command: SetRule, facts: Facts) -> list[Events] | Refusal:
    rule = placement.parse(command.rule)
    if isinstance(rule, Refusal):
        return rule
    unknown = next((name for name in (*rule.inside, *rule.outside) if name not in facts.stores), None)
    if unknown is not None:
        return Refusal("store_unknown", _unknown(unknown, facts))
    barred = next((name for name in rule.inside if name in facts.forbidden), None)
    if barred is not None:
        return Refusal("wrong_place", barred)
    written: Events = RuleSet(dataset_id=command.dataset_id, rule=placement.write(rule))
    return [MoveGivenUp(), written] if state and state.phase == "moving" else [written]


def _move(state: Storage | None, command: Move, facts: Facts) -> list[Events] | Refusal:
    for name in (command.source, command.target):
        if name not in facts.stores:
            return Refusal("store_unknown", _unknown(name, facts))
    if command.source == command.target:
        return Refusal("same_store", command.source)
    if command.target in facts.forbidden:
        return Refusal("wrong_place", command.target)
    rule = placement.parse(state.rule if state else "")
    if isinstance(rule, Refusal):
        return rule
    country = dict(facts.countries).get(command.target, "")
    if rule.only_in and country not in rule.only_in:
        return Refusal(
            "wrong_place", f"{command.target} is in {country}, the rule says only in {' '.join(rule.only_in)}"
        )
    begun = MoveBegun(
        source=command.source,
        target=command.target,
        rule=placement.write(placement.moved(rule, command.source, command.target)),
        by=command.by,
        at=command.at,
    )
    return [begun] if state else [RuleSet(dataset_id=command.dataset_id, rule=placement.write(rule)), begun]


def _unknown(name: str, facts: Facts) -> str:
    return f"{name[:60]!r}; there are {', '.join(sorted(facts.stores))}"


def evolve(state: Storage | None, event: Events) -> Storage:
    if isinstance(event, RuleSet) and state is None:
        return Storage(dataset_id=event.dataset_id, rule=event.rule)
    if state is None:
        raise ValueError(f"{type(event).__name__} before RuleSet")
    match event:
        case RuleSet():
            return msgspec.structs.replace(state, rule=event.rule)
        case MoveBegun():
            return msgspec.structs.replace(
                state,
                rule=event.rule,
                phase="moving",
                source=event.source,
                target=event.target,
                since=event.at,
                by=event.by,
            )
        case MoveEnded() | MoveGivenUp():
            return msgspec.structs.replace(state, phase="resting", source="", target="", since=None, by="")
        case _:
            assert_never(event)
