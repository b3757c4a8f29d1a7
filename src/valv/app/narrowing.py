"""Participants who narrow their consent: permits that no longer fit are suspended in the same transaction. They may be
used again when the committee says so, or when a version without these people took the place and fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from valv.app import account, carrying, outbox, streams, text
from valv.app import dataset as datasets
from valv.app import withdrawal as withdrawals
from valv.app.node import Node, Who, permitted, refuse
from valv.app.streams import DATASET, PERMIT, Step, retried
from valv.core import dataset, permit
from valv.core.process import NODE
from valv.errors import Refusal
from valv.formats import duo
from valv.ports.records import Unit


class Narrowed(msgspec.Struct, frozen=True, kw_only=True):
    """`versions`: that the consent now holds for; `permits`: that were suspended because of it."""

    versions: tuple[int, ...]
    permits: tuple[str, ...]


@retried
def narrow(
    node: Node,
    who: Who,
    name: str,
    *,
    pseudonyms: Sequence[str],
    consent: Iterable[str],
    reason: str,
    command: str,
) -> Narrowed:
    """From now on these people consent to `consent` (DUO terms) only, in every version of the dataset that is not
    replaced. Who they are stands in an erasable text. New applications must fit it too."""
    at = node.clock()
    people = withdrawals.checked(pseudonyms)
    terms = tuple(str(statement) for statement in duo.parse_consent(list(consent)))
    with node.records.writing() as unit:
        owner, number = datasets.allowed(node, who, unit, name, "dataset.withdraw")
        if streams.done(unit, who.account_id, command):
            return _known(unit, owner, f"{who.account_id}:{command}")
        if not reason.strip():
            raise refuse("reason_missing")
        chosen = [found.number for found in owner.versions if not found.destroyed and not found.successor]
        if not chosen:
            raise refuse("no_version", owner.name)
        stream = DATASET.stream(owner.dataset_id)
        body = msgspec.json.encode(withdrawals.Persons(people)).decode()
        said = text.put(unit, stream, "narrowed", body, at, longest=withdrawals.LONGEST)
        why = text.put(unit, stream, "reason", reason, at)
        narrower = dataset.Narrower(consent=terms, people=said, count=len(people))
        facts = dataset.Facts(custodian=owner.custodian == who.account_id)
        events: list[dataset.Events] = []
        for version in chosen:
            order = dataset.NarrowConsent(by=who.account_id, at=at, version=version, narrower=narrower)
            decided = dataset.decide(owner, order, facts)
            if isinstance(decided, Refusal):
                raise refuse(decided.code, decided.detail)
            events += decided
        changed = Step(DATASET, owner.dataset_id, number, owner, events)
        suspended = _suspended(unit, changed.after, chosen, why, at)
        streams.commit(unit, [changed, *suspended], by=who.account_id, at=at, command=command)
        for step in suspended:
            _tell(unit, owner, step, at)
    return Narrowed(versions=tuple(chosen), permits=tuple(step.ident for step in suspended))


def _suspended(
    unit: Unit, owner: dataset.Dataset, versions: Sequence[int], why: str, at: datetime
) -> list[Step[permit.Permit]]:
    """Permits that name one of these versions and fit its consents no longer."""
    steps: dict[str, Step[permit.Permit]] = {}
    for number in versions:
        version = owner.version(number)
        for known in withdrawals.live(unit, owner.dataset_id, number) if version else ():
            if known.phase != "issued" or known.permit_id in steps or version is None:
                continue
            if not carrying.fits_consents(version, known):
                found, place = streams.need(unit, PERMIT, known.permit_id)
                order = permit.Suspend(by=NODE, at=at, reason=why)
                steps[known.permit_id] = Step(
                    PERMIT, known.permit_id, place, found, permit.decide(found, order, permit.Facts())
                )
    return list(steps.values())


def _known(unit: Unit, owner: dataset.Dataset, command: str) -> Narrowed:
    """What the same command did when it was given before."""
    records = [one for one in unit.events(DATASET.stream(owner.dataset_id)) if one.command == command]
    events = [msgspec.json.decode(one.data, type=dataset.Events) for one in records]
    named = streams.find(unit, PERMIT, link=("dataset", owner.dataset_id), limit=withdrawals.MOST)
    return Narrowed(
        versions=tuple(event.version for event in events if isinstance(event, dataset.ConsentNarrowed)),
        permits=tuple(
            one.permit_id
            for one in named
            if any(record.command == command for record in unit.events(PERMIT.stream(one.permit_id)))
        ),
    )


def _tell(unit: Unit, owner: dataset.Dataset, step: Step[permit.Permit], at: datetime) -> None:
    for person in step.after.people:
        outbox.mail(
            unit,
            at,
            key=f"permit-suspended:{step.ident}:{step.version}:{person}",
            account=person,
            subject="A permit was suspended",
            body=f"Participants of {owner.name} narrowed their consent, and permit {step.ident} does not fit it. Runs"
            " and downloads ended. The committee looks at it again, or the custodian makes a version without these"
            " people.",
        )
    for person in account.members(unit, owner.committee):
        outbox.mail(
            unit,
            at,
            key=f"permit-suspended-committee:{step.ident}:{step.version}:{person}",
            account=person,
            subject="A permit was suspended: please look at it",
            body=f"Participants of {owner.name} narrowed their consent. Permit {step.ident} does not fit it and is"
            " suspended. Resume it on its page where it fits after all, or revoke it.",
        )


def consents(node: Node, who: Who, name: str) -> list[dict[str, Any]]:
    """What participants of each version consent to besides the version's own consent, without who they are."""
    with node.records.reading() as unit:
        owner, _ = datasets.named(unit, name)
        refusal = permitted(node, who, "dataset.withdrawals", datasets.resource(owner))
        if refusal is not None:
            raise refuse(refusal.code, refusal.detail)
    return [
        {"version": version.number, "people": one.count, "consent": list(one.consent)}
        for version in owner.versions
        for one in version.narrower
        if not version.successor
    ]
