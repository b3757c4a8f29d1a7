"""Runs: queue a command over permitted dataset versions; the worker starts it, watches it, and seals its outputs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from valv.app import account, streams, text
from valv.app import dataset as datasets
from valv.app import permit as permits
from valv.app.node import Node, Who, allow, derived_id, permitted
from valv.app.streams import PERMIT, RELEASE, RUN, Step, retried
from valv.core import run
from valv.core.access import Wanted
from valv.core.authorize import Resource
from valv.core.classes import DataClass, strictest
from valv.errors import FormatFault
from valv.ports.compute import Limits
from valv.ports.records import Unit


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A run as its owner sees it. For identifiable data nothing of the command's own making is in it: fixed states,
    success or not, coarse times. `release_id`: where its outputs wait, '' before; `detail`: why it did not start."""

    state: run.Run
    owner: str
    command: tuple[str, ...]
    datasets: list[str]
    data_class: DataClass
    release_id: str
    may_stop: bool
    detail: str = ""


@retried
def queue(
    node: Node,
    who: Who,
    *,
    permit_id: str,
    datasets: Sequence[str],
    command_line: Sequence[str],
    limits: Limits | None,
    command: str,
) -> str:
    """Queue a run of `command_line`. `datasets`: names covered by the permit, none for all of them. Returns its id."""
    ident, at = derived_id(who.account_id, "run", command), node.clock()
    if any("\0" in part for part in command_line):
        raise FormatFault("the command line holds a zero character")
    with node.records.writing() as unit:
        if streams.load(unit, RUN, ident).state is not None:
            return ident
        state, version = streams.need(unit, PERMIT, permit_id)
        chosen = _chosen(unit, state.datasets, datasets)
        for resource in permits.resources(unit, state):
            allow(node, who, "data.compute", resource)
            allow(node, who, "run.queue", resource)
        refusals = (
            permits.stands(unit, permit_id, account_id=who.account_id, wanted=wanted, mode="compute", at=at)
            for wanted in (None, *chosen)
        )
        refusal = next((found for found in refusals if found is not None), None)
        said = text.put(unit, RUN.stream(ident), "command", msgspec.json.encode(list(command_line)).decode(), at)
        most = node.config.compute
        ceiling = run.Asked(seconds=most.seconds, memory=most.memory, processes=most.processes, scratch=most.scratch)
        asked = limits or Limits()
        order = run.Queue(
            by=who.account_id,
            at=at,
            run_id=ident,
            aim="research",
            permit_id=permit_id,
            datasets=chosen,
            command=said,
            limits=run.Asked(**msgspec.structs.asdict(asked)) if limits else _at_most(asked, ceiling),
            result_key=f"result-{ident}",
        )
        facts = run.Facts(permit=refusal, ceiling=ceiling, command_empty=not command_line or not command_line[0])
        step = Step(RUN, ident, 0, None, run.decide(None, order, facts))
        streams.commit(
            unit, [step], by=who.account_id, at=at, command=command, asserts={PERMIT.stream(permit_id): version}
        )
    return ident


def _at_most(asked: Limits, ceiling: run.Asked) -> run.Asked:
    """The defaults, where the node allows less."""
    return run.Asked(
        **{name: min(getattr(asked, name), getattr(ceiling, name)) for name in run.Asked.__struct_fields__}
    )


def _chosen(unit: Unit, covered: Sequence[Wanted], names: Sequence[str]) -> tuple[Wanted, ...]:
    if not names:
        return tuple(covered)
    chosen = []
    for item in names:
        name, _, number = item.partition("@")
        rows = unit.rows("dataset", {"name": name}) or unit.rows("dataset", {"id": name})
        ident = rows[0]["id"] if rows else ""
        fitting = [w for w in covered if w.dataset_id == ident and number in ("", str(w.version))]
        # One that the permit does not cover stays in, whether it exists or not: the permit's own rule then refuses it.
        chosen.append(fitting[0] if fitting else Wanted(ident, 0))
    return tuple(dict.fromkeys(chosen))


def _resources(unit: Unit, state: run.Run) -> list[Resource]:
    pairs = permits.behind(unit, state.datasets)
    strict = strictest(tuple(version.effective for _, version in pairs))
    return [
        msgspec.structs.replace(
            datasets.resource(found, version.number), kind="run", id=state.run_id, owner=state.owner, data_class=strict
        )
        for found, version in pairs
    ]


def show(node: Node, who: Who, run_id: str) -> View:
    with node.records.reading() as unit:
        state, _ = streams.need(unit, RUN, run_id)
        permits.allow_every(node, who, "run.see", _resources(unit, state))
        return _view(who, unit, state)


def mine(node: Node, who: Who) -> list[View]:
    """The actor's runs, newest first; those on identifiable data only with a fresh second factor."""
    with node.records.reading() as unit:
        states = streams.find(unit, RUN, link=("owner", who.account_id), limit=100)
        return [
            _view(who, unit, state)
            for state in states
            if all(permitted(node, who, "run.see", found) is None for found in _resources(unit, state))
        ]


def _view(who: Who, unit: Unit, state: run.Run) -> View:
    pairs = permits.behind(unit, state.datasets)
    found = streams.find(unit, RELEASE, link=("run", state.run_id), limit=1)
    line = text.get(unit, state.command) if who.account_id == state.owner else ""
    data_class = strictest(tuple(version.effective for _, version in pairs))
    return View(
        state=coarse(state) if data_class == "identifiable" else state,
        owner=account.names(unit, [state.owner]).get(state.owner, ""),
        command=tuple(msgspec.json.decode(line, type=list[str])) if line else (),
        datasets=[f"{d.name}@{v.number}" for d, v in pairs],
        data_class=data_class,
        release_id=found[0].release_id if found else "",
        detail=_detail(unit, state),
        may_stop=state.phase in ("queued", "running") and who.account_id == state.owner,
    )


def _detail(unit: Unit, state: run.Run) -> str:
    if state.end != "not_started":
        return ""
    rows = unit.rows("text", {"owner_stream": RUN.stream(state.run_id), "kind": "detail"})
    return str(rows[0]["body"] or "") if rows else ""


def coarse(state: run.Run) -> run.Run:
    """What doors show of a run on identifiable data: full minutes, since times are an outlet too, and of its end only
    success or not; how much it left that cannot be released is for the checker. (That it did not start depends on the
    command alone.)"""
    return msgspec.structs.replace(
        state,
        queued=state.queued.replace(second=0, microsecond=0),
        started=state.started and state.started.replace(second=0, microsecond=0),
        ended=state.ended and state.ended.replace(second=0, microsecond=0),
        end="exited" if state.end in ("memory", "time") else state.end,
        skipped=0,
    )


@retried
def stop(node: Node, who: Who, run_id: str, command: str) -> None:
    with node.records.writing() as unit:
        state, version = streams.need(unit, RUN, run_id)
        permits.allow_every(node, who, "run.stop", _resources(unit, state))
        if not streams.done(unit, who.account_id, command):
            order = run.Stop(by=who.account_id, at=node.clock(), why="stopped")
            step = Step(RUN, run_id, version, state, run.decide(state, order, run.Facts()))
            streams.commit(unit, [step], by=who.account_id, at=node.clock(), command=command)
