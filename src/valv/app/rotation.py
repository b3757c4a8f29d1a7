"""Rotation of a dataset version's keys: order one, look how it goes on, stop it. The worker does it: `app.rotating`."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from valv.app import account, streams, text
from valv.app import dataset as datasets
from valv.app.node import Node, Who, allow, derived_id, permitted, refuse
from valv.app.streams import DATASET, ROTATION, Step, retried
from valv.core import dataset, rotation
from valv.core.process import NODE
from valv.ports.records import Unit

GOING = ("going", "retiring")
KEPT = ("received", "verified")
"""States of files that have a header."""
MOST = 100_000


class View(msgspec.Struct, frozen=True, kw_only=True):
    """`files`: of the version, `done`: how many of them are of the new pair; `by`: who ordered it; `why`: what it
    failed at, '' where it did not."""

    state: rotation.Rotation
    dataset: str
    files: int
    done: int
    by: str
    reason: str
    why: str
    may_stop: bool


@retried
def start(
    node: Node,
    who: Who,
    name: str,
    *,
    version: int = 0,
    every: bool = False,
    aim: rotation.Aim,
    reason: str,
    command: str,
) -> list[str]:
    """Rotate the keys of a version of the dataset `name` (0: the newest), or of `every` live version that the actor may
    rotate and that is not being rotated. Returns the ids of the rotations."""
    at = node.clock()
    with node.records.writing() as unit:
        chosen = list(_every(node, who, unit) if every else [_one(node, who, unit, name, version)])
        if streams.done(unit, who.account_id, command):
            return _of_command(unit, f"{who.account_id}:{command}")
        steps, asserts = [], {}
        for owner, number, found in chosen:
            before = streams.find(unit, ROTATION, link=("key", found.key_id), limit=MOST)
            going = any(one.phase in GOING for one in before)
            if going and every:
                continue
            # The id counts those before, so that of two orders at the same moment one is too late.
            ident = derived_id(NODE, "rotation", f"{found.key_id}:{len(before) + 1}")
            order = rotation.Start(
                by=who.account_id,
                at=at,
                rotation_id=ident,
                dataset_id=owner.dataset_id,
                version=found.number,
                key_id=found.key_id,
                aim=aim,
                reason=text.put(unit, ROTATION.stream(ident), "reason", reason, at),
            )
            facts = rotation.Facts(
                operator="operator" in who.principal.roles,
                custodian=owner.custodian == who.account_id,
                going=going,
                pair=max((one.pair for one in before if one.made), default=1),
            )
            steps.append(Step(ROTATION, ident, 0, None, rotation.decide(None, order, facts)))
            asserts[DATASET.stream(owner.dataset_id)] = number
        streams.commit(unit, steps, by=who.account_id, at=at, command=command, asserts=asserts)
    return [step.ident for step in steps]


Chosen = tuple[dataset.Dataset, int, dataset.Version]


def _one(node: Node, who: Who, unit: Unit, name: str, version: int) -> Chosen:
    owner, number = datasets.allowed(node, who, unit, name, "key.rotate")
    found = owner.version(version) if version else owner.current
    if found is None:
        raise refuse("no_version", f"{owner.name} version {version or 1}")
    if found.destroyed:
        raise refuse("version_destroyed", f"{owner.name} version {found.number}")
    return owner, number, found


def _every(node: Node, who: Who, unit: Unit) -> Iterator[Chosen]:
    owners = streams.find(unit, DATASET, phases=("live",), newest_first=False, limit=MOST)
    mine = [one for one in owners if permitted(node, who, "key.rotate", datasets.resource(one)) is None]
    if not mine:
        raise refuse("not_found", "a dataset whose keys you may rotate")
    for owner in mine:
        number = streams.need(unit, DATASET, owner.dataset_id)[1]
        for found in owner.versions:
            if not found.destroyed:
                yield owner, number, found


def _of_command(unit: Unit, command: str) -> list[str]:
    """The rotations that this command began when it was given before."""
    known = (one.rotation_id for one in streams.find(unit, ROTATION, newest_first=False, limit=MOST))
    return [ident for ident in known if unit.events(ROTATION.stream(ident))[0].command == command]


@retried
def stop(node: Node, who: Who, rotation_id: str, *, command: str) -> None:
    """Take no further file along. Those that are of the new pair stay so; all are readable."""
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, ROTATION, rotation_id)
        allow(node, who, "key.rotate", datasets.resource(_owner(unit, state), state.version))
        if streams.done(unit, who.account_id, command):
            return
        facts = rotation.Facts(operator="operator" in who.principal.roles)
        events = rotation.decide(state, rotation.Stop(by=who.account_id, at=at), facts)
        step = Step(ROTATION, rotation_id, version, state, events)
        streams.commit(unit, [step], by=who.account_id, at=at, command=command)


def show(node: Node, who: Who, rotation_id: str) -> View:
    with node.records.reading() as unit:
        state, _ = streams.need(unit, ROTATION, rotation_id)
        owner = _owner(unit, state)
        allow(node, who, "key.see", datasets.resource(owner, state.version))
        return _view(who, unit, state, owner)


def mine(node: Node, who: Who) -> list[View]:
    """The rotations that the actor may see, newest first."""
    with node.records.reading() as unit:
        found = [(state, _owner(unit, state)) for state in streams.find(unit, ROTATION, limit=200)]
        return [
            _view(who, unit, state, owner)
            for state, owner in found
            if permitted(node, who, "key.see", datasets.resource(owner, state.version)) is None
        ]


def _owner(unit: Unit, state: rotation.Rotation) -> dataset.Dataset:
    return streams.need(unit, DATASET, state.dataset_id)[0]


def _view(who: Who, unit: Unit, state: rotation.Rotation, owner: dataset.Dataset) -> View:
    settled = state.phase in ("retiring", "done")
    files = state.files if settled else count(unit, state)
    return View(
        state=state,
        dataset=owner.name,
        files=files,
        done=files if settled else files - left(unit, state),
        by=account.names(unit, [state.by]).get(state.by, ""),
        reason=text.get(unit, state.reason),
        why=text.get(unit, state.why),
        may_stop=state.phase == "going" and "operator" in who.principal.roles,
    )


def count(unit: Unit, state: rotation.Rotation) -> int:
    """Files of the version, the table of participants included."""
    return unit.count("file", {"key_id": state.key_id, "state": KEPT})


def left(unit: Unit, state: rotation.Rotation) -> int:
    """How many of them are not of the new pair yet."""
    return unit.count("file", {"key_id": state.key_id, "pair": list(range(1, state.pair)), "state": KEPT})


def readers(unit: Unit, state: rotation.Rotation) -> tuple[str, ...]:
    """Runs that go on and may read the version."""
    going = streams.find(
        unit, streams.RUN, link=("dataset", state.dataset_id), phases=("running", "stopping"), limit=MOST
    )
    mine = (state.dataset_id, state.version)
    return tuple(sorted(one.run_id for one in going if mine in ((w.dataset_id, w.version) for w in one.datasets)))
