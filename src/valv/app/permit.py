"""Permits: what they allow at this moment, the lease that open readers hold on them, and their end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from valv.app import account, outbox, streams, text
from valv.app import dataset as datasets
from valv.app.node import Node, Who, allow, new_id, permitted, refuse
from valv.app.streams import DATASET, PERMIT, RUN, Step, retried
from valv.core import dataset, permit
from valv.core.access import Wanted
from valv.core.authorize import Context, Resource
from valv.core.classes import DataClass, Mode, strictest
from valv.core.process import NODE
from valv.errors import Refusal
from valv.ports.lease import Beat
from valv.ports.records import Unit


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Since when the permit is for another version of a dataset, because participants withdrew."""

    dataset: str
    before: int
    after: int
    at: datetime


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A permit for its page. `standing`: None where it can be used now, else why not."""

    state: permit.Permit
    datasets: list[dict[str, Any]]
    people: dict[str, str]
    standing: Refusal | None
    data_class: DataClass
    may_revoke: bool
    reason: str = ""
    moves: list[Move] = []
    may_resume: bool = False


def behind(unit: Unit, wanted: Sequence[Wanted]) -> list[tuple[dataset.Dataset, dataset.Version]]:
    """The dataset versions that a permit, run or application names."""
    found = []
    for want in wanted:
        state, _ = streams.need(unit, DATASET, want.dataset_id)
        version = state.version(want.version)
        if version is None:
            raise refuse("no_version", f"{state.name} version {want.version}")
        found.append((state, version))
    return found


def resources(unit: Unit, state: permit.Permit) -> list[Resource]:
    """The permit as the policies see it: once for each dataset behind it, since each has a committee of its own."""
    pairs = behind(unit, state.datasets)
    strict = strictest(tuple(version.effective for _, version in pairs))
    return [
        msgspec.structs.replace(
            datasets.resource(found, version.number),
            kind="permit",
            id=state.permit_id,
            people=frozenset(state.people),
            data_class=strict,
        )
        for found, version in pairs
    ]


def allow_any(node: Node, who: Who, action: str, found: Sequence[Resource]) -> None:
    """Allowed where it is for one of the datasets behind (to see, to revoke)."""
    if any(permitted(node, who, action, resource) is None for resource in found[1:]):
        return
    allow(node, who, action, found[0])


def allow_every(node: Node, who: Who, action: str, found: Sequence[Resource], context: Context | None = None) -> None:
    """Allowed only where it is for every dataset behind (to decide, to compute, to download)."""
    for resource in found:
        allow(node, who, action, resource, context)


def stands(
    unit: Unit,
    permit_id: str,
    *,
    account_id: str,
    wanted: Wanted | None,
    mode: Mode,
    at: datetime,
    since: datetime | None = None,
) -> Refusal | None:
    """Whether the permit allows this now, with the datasets as they are now: one that was narrowed, closed or
    destroyed ends use. `since`: of a run that goes on, when it began; it goes on where a withdrawal lets it."""
    state = streams.load(unit, PERMIT, permit_id).state
    refusal = permit.permits(state, account=account_id, dataset=wanted, mode=mode, at=at, since=since)
    if refusal is not None or state is None:
        return refusal or Refusal("no_permit")
    for found, version in behind(unit, [wanted] if wanted else state.datasets):
        if found.phase == "closed":
            return Refusal("permit_ended", f"the dataset {found.name} was closed")
        if version.destroyed:
            return Refusal("version_destroyed", f"{found.name} version {version.number}")
        if version.closed and (version.runs_end or since is None or since >= version.closed):
            return Refusal("version_closed", f"{found.name} version {version.number}")
        if mode == "download" and version.effective == "identifiable":
            return Refusal("download_identifiable", found.name)
    return None


def show(node: Node, who: Who, permit_id: str) -> View:
    with node.records.reading() as unit:
        state, _ = streams.need(unit, PERMIT, permit_id)
        found = resources(unit, state)
        allow_any(node, who, "permit.see", found)
        return _view(node, who, unit, state, found)


def _view(node: Node, who: Who, unit: Unit, state: permit.Permit, found: list[Resource]) -> View:
    pairs = behind(unit, state.datasets)
    holder = who.account_id if who.account_id in state.people else state.people[0]
    ended = permit.permits(state, account=holder, dataset=None, mode=state.mode, at=node.clock())
    return View(
        state=state,
        datasets=[{"name": d.name, "version": v.number, "class": v.effective, "files": v.files} for d, v in pairs],
        people=account.names(unit, state.people),
        standing=ended or _unusable(pairs),
        data_class=strictest(tuple(version.effective for _, version in pairs)),
        may_revoke=state.phase in permit.LIVE
        and any(permitted(node, who, "permit.revoke", resource) is None for resource in found),
        reason=text.get(unit, state.reason),
        moves=[
            Move(dataset=found.name, before=move.before, after=move.after, at=move.at)
            for move in state.moves
            for found, _ in pairs
            if found.dataset_id == move.dataset_id
        ],
        may_resume=state.phase == "suspended"
        and all(permitted(node, who, "permit.resume", resource) is None for resource in found),
    )


def _unusable(pairs: Sequence[tuple[dataset.Dataset, dataset.Version]]) -> Refusal | None:
    gone = [f"{found.name} version {version.number}" for found, version in pairs if version.destroyed]
    if gone:
        return Refusal("version_destroyed", ", ".join(gone))
    shut = [f"{found.name} version {version.number}" for found, version in pairs if version.closed]
    return Refusal("version_closed", ", ".join(shut)) if shut else None


def mine(node: Node, who: Who) -> list[View]:
    """The permits that name the actor, and those of datasets that the actor answers for; newest first."""
    with node.records.reading() as unit:
        states = {s.permit_id: s for s in streams.find(unit, PERMIT, link=("person", who.account_id), limit=200)}
        for role, target in _answers_for(who):
            for found in streams.find(unit, DATASET, link=(role, target), limit=500):
                for state in streams.find(unit, PERMIT, link=("dataset", found.dataset_id), limit=200):
                    states.setdefault(state.permit_id, state)
        views = []
        for state in states.values():
            found_resources = resources(unit, state)
            if any(permitted(node, who, "permit.see", resource) is None for resource in found_resources):
                views.append(_view(node, who, unit, state, found_resources))
    return sorted(views, key=lambda view: view.state.starts, reverse=True)


def _answers_for(who: Who) -> list[tuple[str, str]]:
    pairs = [("committee", name) for name in sorted(who.principal.committees)]
    return [*pairs, ("custodian", who.account_id)] if "custodian" in who.principal.roles else pairs


@retried
def revoke(node: Node, who: Who, permit_id: str, *, reason: str, command: str) -> None:
    """End a permit now. Reads end within the lease's term, runs and downloads within a second."""
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, PERMIT, permit_id)
        found = resources(unit, state)
        allow_any(node, who, "permit.revoke", found)
        if streams.done(unit, who.account_id, command):
            return
        if not reason.strip():
            raise refuse("reason_missing")
        said = text.put(unit, PERMIT.stream(permit_id), "reason", reason, at)
        facts = permit.Facts(
            committee=bool({resource.committee for resource in found} & who.principal.committees),
            custodian=any(resource.custodian == who.account_id for resource in found),
        )
        order = permit.Revoke(by=who.account_id, at=at, reason=said)
        step = Step(PERMIT, permit_id, version, state, permit.decide(state, order, facts))
        streams.commit(unit, [step], by=who.account_id, at=at, command=command)
        for person in state.people:
            outbox.mail(
                unit,
                at,
                key=f"permit-revoked:{permit_id}:{person}",
                account=person,
                subject="A permit was revoked",
                body=f"Permit {permit_id} was revoked at {at:%Y-%m-%d %H:%M} UTC: {reason}",
            )


@retried
def resume(node: Node, who: Who, permit_id: str, *, reason: str, command: str) -> None:
    """The committee's word that a suspended permit may be used again."""
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, PERMIT, permit_id)
        found = resources(unit, state)
        allow_every(node, who, "permit.resume", found)
        if streams.done(unit, who.account_id, command):
            return
        said = text.put(unit, PERMIT.stream(permit_id), "reason", reason, at)
        facts = permit.Facts(committee=all(one.committee in who.principal.committees for one in found))
        order = permit.Resume(by=who.account_id, at=at, reason=said)
        step = Step(PERMIT, permit_id, version, state, permit.decide(state, order, facts))
        streams.commit(unit, [step], by=who.account_id, at=at, command=command)
        for person in state.people:
            outbox.mail(
                unit,
                at,
                key=f"permit-resumed:{permit_id}:{version}:{person}",
                account=person,
                subject="A permit may be used again",
                body=f"The committee has looked at permit {permit_id} again: it may be used from now on.",
            )


@retried
def give_back(node: Node, who: Who, permit_id: str, command: str) -> None:
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, PERMIT, permit_id)
        allow_any(node, who, "permit.give_back", resources(unit, state))
        if streams.done(unit, who.account_id, command):
            return
        order = permit.GiveBack(by=who.account_id, at=at)
        step = Step(PERMIT, permit_id, version, state, permit.decide(state, order, permit.Facts()))
        streams.commit(unit, [step], by=who.account_id, at=at, command=command)


# --- the node's own steps ---


def lease(node: Node, beat: Beat) -> bool:
    """The answer to a reader's beat: does its run still go on, and its permit still stand?"""
    with node.records.reading() as unit:
        state = streams.load(unit, RUN, beat.run_id).state
        if state is None or state.phase != "running":
            return False
        if state.aim == "scan":
            return not any(version.destroyed for _, version in behind(unit, state.datasets))
        at = node.clock()
        return all(
            stands(
                unit,
                state.permit_id,
                account_id=state.owner,
                wanted=wanted,
                mode="compute",
                at=at,
                since=state.started,
            )
            is None
            for wanted in state.datasets
        )


def expire_due(node: Node) -> int:
    """Write down the end of permits that reached it. (They ended by the clock already; this is the evidence.)"""
    at, ended = node.clock(), 0
    with node.records.reading() as unit:
        states = streams.find(unit, PERMIT, phases=permit.LIVE, limit=10_000)
    for known in states:
        if known.ends > at:
            continue
        with node.records.writing() as unit:
            state, version = streams.need(unit, PERMIT, known.permit_id)
            events = permit.decide(state, permit.Expire(by=NODE, at=at), permit.Facts())
            if not isinstance(events, Refusal):
                step = Step(PERMIT, known.permit_id, version, state, events)
                streams.commit(unit, [step], by=NODE, at=at, command=new_id())
                ended += 1
    return ended
