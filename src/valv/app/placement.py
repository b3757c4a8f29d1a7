"""Placement: may data rest in a store; the rule of a dataset, its moves, and how the stores are. The worker does what
the rules say: `app.copying`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from valv.app import account, streams
from valv.app import dataset as datasets
from valv.app.node import Node, Who, allow, permitted, refuse
from valv.app.streams import DATASET, PERMIT, RUN, STORAGE, Step, retried
from valv.config import MAIN
from valv.config import Storage as Settings
from valv.core import dataset, placement, storage
from valv.core.authorize import Context, Principal, Resource, authorize
from valv.core.classes import DataClass
from valv.core.placement import Rule, StoreFacts
from valv.core.process import NODE
from valv.errors import Refusal, RefusedFault
from valv.ports.records import Unit

ITSELF = Principal(NODE, frozenset({"operator"}))
"""Who asks the policies where the node places something by itself."""
HEALTH = "stores"
"""The row of `setting` in which the worker keeps how each store was when it last looked."""
MOST = 100_000


class HeldIn(msgspec.Struct, frozen=True, kw_only=True):
    """The copies of a dataset's files in one store. `others`: those that are not whole (coming, going, damaged)."""

    store: str
    country: str
    unit: str
    tape: bool
    whole: int
    others: int
    size: int


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Why so many files are not placed as the rule wants."""

    text: str
    files: int


class MoveView(msgspec.Struct, frozen=True, kw_only=True):
    """A move that goes on. `done` of `files` are in `target` and not in `source` any more."""

    dataset: str
    source: str
    target: str
    since: datetime
    by: str
    files: int
    done: int


class View(msgspec.Struct, frozen=True, kw_only=True):
    """How a dataset's files are placed. `rule`: in force, `given`: somebody set it; `copies`: how many stores have a
    whole copy of every file; `waiting`: files whose copies are still to be looked at or changed; `allowed`: stores
    where the policies let it rest."""

    dataset: str
    rule: str
    given: bool
    wanted: int
    copies: int
    files: int
    waiting: int
    stores: list[HeldIn]
    reasons: list[Waiting]
    allowed: list[str]
    moving: MoveView | None
    may_change: bool
    may_move: bool


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """A store. Bytes: `used` by copies, `quota` (0: none), `free` (None: not known). `fault`: why it did not answer
    when it was last looked at, `seen`: when (None: not yet). `copies`: how many, by state."""

    name: str
    backend: str
    country: str
    unit: str
    tape: bool
    distance: int
    used: int
    quota: int
    free: int | None
    fault: str
    seen: datetime | None
    copies: dict[str, int]


class Stores(msgspec.Struct, frozen=True, kw_only=True):
    """`waiting`: files whose copies are to be looked at or changed, `reasons`: what some of them wait for."""

    stores: list[StoreState]
    moves: list[MoveView]
    waiting: int
    reasons: list[Waiting]


# --- may it rest there ---


def may_rest(node: Node, data: Mapping[str, Any], store: str) -> Refusal | None:
    """Whether data may rest in a store: None is yes. `data` has `id`, `class`, `country` and `unit`, as a row of
    `dataset`. Asked on every placement, move, copy and restore."""
    place = node.each_store()[store].place
    resource = Resource(
        kind="data", id=data["id"], data_class=data["class"], country=data["country"], unit=data["unit"]
    )
    return authorize(node.policies, ITSELF, "storage.place", resource, Context(place.country, unit=place.unit))


def check_main(node: Node, state: dataset.Dataset) -> None:
    """Raise `RefusedFault` where files of this dataset may not arrive at this node: they rest in `main` first, and
    before they are assessed they count as identifiable."""
    refusal = may_rest(node, _data(state, "identifiable"), MAIN)
    if refusal is not None:
        raise RefusedFault(refusal)


def _data(state: dataset.Dataset, data_class: DataClass) -> dict[str, Any]:
    return {"id": state.dataset_id, "class": data_class, "country": state.country, "unit": state.unit}


def _strictest(state: dataset.Dataset) -> DataClass:
    """The class of the strictest version that has files."""
    live = [version for version in state.versions if not version.destroyed]
    return "anonymised" if live and all(one.effective == "anonymised" for one in live) else "identifiable"


# --- facts for the core ---


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for all files of a dataset version, or for all released outputs. `allowed`: the stores where they may
    rest; `used`: when they were last published or used."""

    rule: Rule
    allowed: frozenset[str]
    used: datetime


def facts_of(node: Node, unit: Unit, dataset_id: str, version: int | None, now: datetime) -> Facts:
    """The facts of a dataset version; of released outputs where `dataset_id` is ''. Outputs stay where they were
    sealed, and count as identifiable."""
    if not dataset_id:
        place = {"id": "", "country": node.config.node.country, "unit": node.config.node.unit}
        return Facts(rule=Rule(), allowed=_allowed(node, place | {"class": "identifiable"}), used=now)
    state, _ = streams.need(unit, DATASET, dataset_id)
    found = state.version(version) if version else None
    rule = rule_of(unit, dataset_id)
    return Facts(
        rule=rule,
        allowed=_allowed(node, _data(state, found.effective if found else "identifiable")),
        used=last_used(unit, dataset_id, version, now) if rule.tape_after is not None else now,
    )


def _allowed(node: Node, data: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(name for name in node.each_store() if may_rest(node, data, name) is None)


def rule_of(unit: Unit, dataset_id: str) -> Rule:
    state = streams.load(unit, STORAGE, dataset_id).state
    rule = placement.parse(state.rule if state else "")
    if isinstance(rule, Refusal):
        raise RefusedFault(rule)
    return rule


def last_used(unit: Unit, dataset_id: str, version: int | None, now: datetime) -> datetime:
    """When the newest file of the version came, or a run or permit of the dataset last changed; the latest of these."""
    where = {"dataset": dataset_id, "version": version, "state": "verified"}
    times = [row["received"] for row in unit.rows("file", where, order="-received", limit=1)]
    for process in (RUN, PERMIT):
        times += [one.changed for one in unit.find(process.kind, link=("dataset", dataset_id), limit=1)]
    return max(times, default=now)


def store_facts(node: Node, health: Mapping[str, Any], allowed: frozenset[str]) -> list[StoreFacts]:
    """`health`: what the worker saw of each store (`HEALTH`). Whether a file has room is asked for each file."""
    found = []
    for name, store in node.each_store().items():
        settings = _settings(node, name)
        found.append(
            StoreFacts(
                name=name,
                country=store.place.country,
                unit=store.place.unit,
                tape=settings.tape,
                distance=settings.distance,
                allowed=name in allowed,
                away=bool(health.get(name, {}).get("fault")),
            )
        )
    return found


def _settings(node: Node, name: str) -> Settings:
    return node.config.all_stores.get(name, Settings())


def health(unit: Unit) -> dict[str, Any]:
    rows = unit.rows("setting", {"name": HEALTH})
    return dict(rows[0]["value"] or {}) if rows else {}


# --- rules and moves ---


@retried
def set_rule(node: Node, who: Who, name: str, rule: str, *, command: str) -> View:
    """From now on this rule says how the dataset's files are placed. A move that goes on is given up."""
    order = storage.SetRule(by=who.account_id, at=node.clock(), dataset_id="", rule=rule)
    return _order(node, who, name, "storage.rule", order, command)


@retried
def move(node: Node, who: Who, name: str, *, source: str, target: str, command: str) -> View:
    """Move the dataset's files from one store to another, while they are used. It goes on in the worker."""
    order = storage.Move(by=who.account_id, at=node.clock(), dataset_id="", source=source, target=target)
    return _order(node, who, name, "storage.move", order, command)


def _order(node: Node, who: Who, name: str, action: str, order: storage.SetRule | storage.Move, command: str) -> View:
    with node.records.writing() as unit:
        owner, number = datasets.allowed(node, who, unit, name, action)
        if streams.done(unit, who.account_id, command):
            return _view(node, who, unit, owner)
        ident = owner.dataset_id
        now = streams.load(unit, STORAGE, ident)
        stores = node.each_store()
        allowed = _allowed(node, _data(owner, _strictest(owner)))
        facts = storage.Facts(
            operator="operator" in who.principal.roles,
            custodian=owner.custodian == who.account_id,
            stores=frozenset(stores),
            forbidden=frozenset(stores) - allowed,
            countries=tuple((one, store.place.country) for one, store in stores.items()),
        )
        decided = storage.decide(now.state, msgspec.structs.replace(order, dataset_id=ident), facts)
        step = Step(STORAGE, ident, now.version, now.state, decided)
        asserts = {DATASET.stream(ident): number}
        streams.commit(unit, [step], by=who.account_id, at=order.at, command=command, asserts=asserts)
        unit.update("dataset", {"id": ident}, {"placement": step.after.rule})
        unit.enrol("file", {"dataset": ident}, MAIN, order.at)
        unit.queue_bodies("file", {"dataset": ident}, order.at)
        return _view(node, who, unit, owner)


def end_moves(node: Node) -> int:
    """Record the end of moves whose files have all come. Returns how many still go on."""
    with node.records.reading() as unit:
        going = streams.find(unit, STORAGE, phases=("moving",), newest_first=False, limit=MOST)
        ended = [state for state in going if not _left(unit, state)[0]]
    for state in ended:
        _end_move(node, state.dataset_id)
    return len(going) - len(ended)


@retried
def _end_move(node: Node, dataset_id: str) -> None:
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, STORAGE, dataset_id)
        left, files = _left(unit, state)
        facts = storage.Facts(left=left, files=files)
        decided = storage.decide(state, storage.EndMove(by=NODE, at=at), facts)
        if isinstance(decided, Refusal):  # another order came between
            return
        step = Step(STORAGE, dataset_id, version, state, decided)
        streams.commit(unit, [step], by=NODE, at=at, command=f"moved:{dataset_id}:{version}")


def _left(unit: Unit, state: storage.Storage) -> tuple[int, int]:
    """How many files a move has still to bring over, and how many there are."""
    files = _files(unit, streams.need(unit, DATASET, state.dataset_id)[0])
    there = here = 0
    for row in unit.copies_of(state.dataset_id):
        there += row["count"] if (row["store"], row["state"]) == (state.target, "whole") else 0
        here += row["count"] if row["store"] == state.source else 0
    return min(files, max(files - there, here)), files


def _files(unit: Unit, owner: dataset.Dataset) -> int:
    """Of all versions, the tables of participants included."""
    versions = [version.number for version in owner.versions]
    return unit.count("file", {"dataset": owner.dataset_id, "version": versions, "state": "verified"})


# --- looking ---


def show(node: Node, who: Who, name: str) -> View:
    """How a dataset's files are placed, for its custodian and for operators."""
    with node.records.reading() as unit:
        owner, _ = datasets.named(unit, name)
        resource = datasets.resource(owner)
        if permitted(node, who, "storage.rule", resource) is not None:
            if permitted(node, who, "dataset.see", resource) is not None or owner.phase != "live":
                raise refuse("not_found", f"dataset {name[:80]!r}")
            allow(node, who, "storage.see", Resource(kind="node"))
        return _view(node, who, unit, owner)


def _view(node: Node, who: Who, unit: Unit, owner: dataset.Dataset) -> View:
    ident = owner.dataset_id
    state = streams.load(unit, STORAGE, ident).state
    rule = rule_of(unit, ident)
    files = _files(unit, owner)
    tally: dict[str, dict[str, int]] = {}
    for row in unit.copies_of(ident):
        counts = tally.setdefault(row["store"], {"whole": 0, "others": 0, "size": 0})
        counts["whole" if row["state"] == "whole" else "others"] += row["count"]
        counts["size"] += row["bytes"]
    facts = {one.name: one for one in store_facts(node, {}, frozenset())}
    held = [
        HeldIn(store=name, country=known.country, unit=known.unit, tape=known.tape, **tally[name])
        for name in sorted(tally)
        for known in [facts.get(name, StoreFacts(name=name))]
    ]
    resource = datasets.resource(owner)
    return View(
        dataset=owner.name,
        rule=placement.write(rule),
        given=state is not None,
        wanted=rule.copies,
        copies=sum(one.whole >= files for one in held) if files else 0,
        files=files,
        waiting=unit.count("placing", {"dataset": ident}),
        stores=held,
        reasons=_reasons(unit, ident),
        allowed=sorted(_allowed(node, _data(owner, _strictest(owner)))),
        moving=_moving(unit, owner, state) if state and state.phase == "moving" else None,
        may_change=permitted(node, who, "storage.rule", resource) is None,
        may_move=permitted(node, who, "storage.move", resource) is None,
    )


def _moving(unit: Unit, owner: dataset.Dataset, state: storage.Storage) -> MoveView:
    left, files = _left(unit, state)
    assert state.since is not None
    return MoveView(
        dataset=owner.name,
        source=state.source,
        target=state.target,
        since=state.since,
        by=account.names(unit, [state.by]).get(state.by, ""),
        files=files,
        done=files - left,
    )


def _reasons(unit: Unit, dataset_id: str = "") -> list[Waiting]:
    return [Waiting(text=row["fault"], files=row["count"]) for row in unit.placing_faults(dataset_id)]


def status(node: Node, who: Who) -> Stores:
    """How the stores are, for operators and auditors. No store is asked: the worker has looked."""
    allow(node, who, "storage.see", Resource(kind="node"))
    with node.records.reading() as unit:
        seen = health(unit)
        totals = unit.copy_totals()
        going = streams.find(unit, STORAGE, phases=("moving",), newest_first=False, limit=MOST)
        moves = [_moving(unit, streams.need(unit, DATASET, state.dataset_id)[0], state) for state in going]
        return Stores(
            stores=[_store(node, name, seen.get(name, {}), totals) for name in node.each_store()],
            moves=moves,
            waiting=unit.count("placing"),
            reasons=_reasons(unit),
        )


def _store(node: Node, name: str, seen: Mapping[str, Any], totals: list[dict[str, Any]]) -> StoreState:
    settings, place = _settings(node, name), node.each_store()[name].place
    mine = [row for row in totals if row["store"] == name]
    return StoreState(
        name=name,
        backend=settings.backend,
        country=place.country,
        unit=place.unit,
        tape=settings.tape,
        distance=settings.distance,
        used=sum(row["bytes"] for row in mine),
        quota=settings.quota,
        free=seen.get("free"),
        fault=str(seen.get("fault", "")),
        seen=datetime.fromisoformat(seen["at"]) if seen else None,
        copies={row["state"]: row["count"] for row in mine},
    )
