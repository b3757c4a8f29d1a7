"""Access: applications, the consent match beside them, and the committee's decision, which issues a permit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec

from valv.app import account, outbox, streams, text
from valv.app import dataset as datasets
from valv.app import permit as permits
from valv.app.node import Node, Who, allow, derived_id, permitted, refuse
from valv.app.streams import ACCESS, DATASET, PERMIT, Step, retried
from valv.core import access, consent, permit
from valv.core.authorize import Context, Resource
from valv.core.classes import Mode, strictest
from valv.core.process import NODE
from valv.errors import FormatFault
from valv.formats import duo
from valv.ports.records import Unit


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """What an applicant fills in. `datasets`: names, each with `@version` or the newest; `purpose`: DUO terms
    (`HMB`, `DS=MONDO:0005147`, `NPU` …: what the use is, and what the applicant promises); `people`: account names;
    `for_profit`, `commercial`: None is not declared."""

    title: str
    summary: str = ""
    datasets: tuple[str, ...]
    purpose: tuple[str, ...]
    country: str = ""
    institution: str = ""
    project: str = ""
    for_profit: bool | None = None
    commercial: bool | None = None
    people: tuple[str, ...] = ()
    mode: Mode = "compute"
    days: int = 365
    licence: bool = False


class View(msgspec.Struct, frozen=True, kw_only=True):
    """An application for its page, with the consent match of each dataset beside it. `people`: display names by id, of
    those named besides the applicant; `people_names`: their account names."""

    state: access.Access
    title: str
    summary: str
    datasets: list[access.DatasetFact]
    people: dict[str, str]
    people_names: tuple[str, ...]
    applicant: str
    reason: str
    may: frozenset[str]


def purpose(form: Form) -> consent.Purpose:
    """The DUO terms of a form as a purpose. Raises `FormatFault` where they name no aim, or two."""
    terms = [duo.parse(text) for text in form.purpose]
    codes = {term.short for term in terms}
    aims: dict[str, consent.Aim] = {
        "NRES": "general",
        "GRU": "general",
        "HMB": "health",
        "DS": "disease",
        "POA": "ancestry",
        "METHODS": "methods",
    }
    named = {aims[code] for code in codes if code in aims}
    if len(named) != 1:
        raise FormatFault(
            "the purpose names no aim" if not named else "the purpose names several aims",
            "name one of GRU, HMB, DS=<disease>, POA, METHODS",
        )
    return consent.Purpose(
        aim=named.pop(),
        diseases=tuple(term.value for term in terms if term.code == duo.DS),
        genetic="GSO" in codes,
        for_profit=form.for_profit,
        commercial=form.commercial,
        clinical_care="CC" in codes,
        will_publish="PUB" in codes,
        will_collaborate="COL" in codes,
        will_return="RTN" in codes,
        ethics_approval="IRB" in codes,
        country=form.country.strip().upper(),
        institution=form.institution.strip(),
        project=form.project.strip(),
    )


@retried
def draft(node: Node, who: Who, form: Form, *, command: str) -> str:
    """Begin an application. Returns its id."""
    ident = derived_id(who.account_id, "access", command)
    with node.records.writing() as unit:
        allow(node, who, "access.draft", Resource(kind="access", owner=who.account_id))
        if streams.load(unit, ACCESS, ident).state is not None:
            return ident
        request, facts = _request(node, who, unit, ident, form)
        order = access.Draft(by=who.account_id, at=node.clock(), access_id=ident, request=request)
        _commit(node, unit, who, Step(ACCESS, ident, 0, None, access.decide(None, order, facts)), command)
    return ident


@retried
def save(node: Node, who: Who, access_id: str, form: Form, *, command: str) -> None:
    with node.records.writing() as unit:
        state, version = streams.need(unit, ACCESS, access_id)
        allow(node, who, "access.save", _resources(unit, state)[0])
        if streams.done(unit, who.account_id, command):
            return
        request, facts = _request(node, who, unit, access_id, form)
        order = access.Save(by=who.account_id, at=node.clock(), request=request)
        _commit(node, unit, who, Step(ACCESS, access_id, version, state, access.decide(state, order, facts)), command)


def submit(node: Node, who: Who, access_id: str, *, command: str) -> None:
    _decide(node, who, access_id, "access.submit", lambda at, _: access.Submit(by=who.account_id, at=at), "", command)


def withdraw(node: Node, who: Who, access_id: str, *, command: str) -> None:
    _decide(
        node, who, access_id, "access.withdraw", lambda at, _: access.Withdraw(by=who.account_id, at=at), "", command
    )


def send_back(node: Node, who: Who, access_id: str, *, reason: str, command: str) -> None:
    _decide(
        node,
        who,
        access_id,
        "access.return",
        lambda at, said: access.ReturnForChanges(by=who.account_id, at=at, reason=said),
        reason,
        command,
    )


def reject(node: Node, who: Who, access_id: str, *, reason: str, command: str) -> None:
    _decide(
        node,
        who,
        access_id,
        "access.reject",
        lambda at, said: access.Reject(by=who.account_id, at=at, reason=said),
        reason,
        command,
    )


@retried
def approve(node: Node, who: Who, access_id: str, *, reason: str, days: int | None, command: str) -> str:
    """Approve, for the days applied for or fewer. Returns the id of the permit that this issues."""
    at = node.clock()
    permit_id = derived_id(access_id, "permit", access_id)
    with node.records.writing() as unit:
        state, version = streams.need(unit, ACCESS, access_id)
        permits.allow_every(node, who, "access.approve", _resources(unit, state), _context(who, state.request))
        if streams.done(unit, who.account_id, command):
            return state.permit_id
        facts = _facts(node, who, unit, state.request)
        if days is not None and not 1 <= days <= state.request.days:
            raise refuse("duration", f"between 1 and the {state.request.days} days applied for")
        granted = min(days or state.request.days, node.config.policy.permit_days)
        ends = at + timedelta(days=granted)
        said = text.put(unit, ACCESS.stream(access_id), "reason", reason, at)
        order = access.Approve(by=who.account_id, at=at, permit_id=permit_id, starts=at, ends=ends, reason=said)
        approved = Step(ACCESS, access_id, version, state, access.decide(state, order, facts))
        issue = permit.Issue(
            by=NODE,
            at=at,
            permit_id=permit_id,
            access_id=access_id,
            people=(state.applicant, *(p for p in state.request.people if p != state.applicant)),
            datasets=_living(unit, state.request.wanted),
            purpose=state.request.purpose,
            mode=state.request.mode,
            starts=at,
            ends=ends,
        )
        issued = Step(PERMIT, permit_id, 0, None, permit.decide(None, issue, permit.Facts()))
        versions = _versions(unit, state.request)
        streams.commit(unit, [approved, issued], by=who.account_id, at=at, command=command, asserts=versions)
        for person in state.people:
            outbox.mail(
                unit,
                at,
                key=f"permit-issued:{permit_id}:{person}",
                account=person,
                subject="A permit was issued",
                body=f"Permit {permit_id} allows you to {state.request.mode} until {ends:%Y-%m-%d}.",
            )
    return permit_id


def show(node: Node, who: Who, access_id: str) -> View:
    with node.records.reading() as unit:
        state, _ = streams.need(unit, ACCESS, access_id)
        permits.allow_any(node, who, "access.see", _resources(unit, state))
        return _view(node, who, unit, state)


def mine(node: Node, who: Who) -> list[View]:
    """The actor's applications, and those that wait for the actor's committees; newest first."""
    allow(node, who, "access.list", Resource(kind="access"))
    with node.records.reading() as unit:
        states = {s.access_id: s for s in streams.find(unit, ACCESS, link=("person", who.account_id), limit=200)}
        for committee in sorted(who.principal.committees):
            for found in streams.find(unit, DATASET, link=("committee", committee), limit=500):
                for state in streams.find(unit, ACCESS, link=("dataset", found.dataset_id), limit=200):
                    if state.phase != "draft":
                        states.setdefault(state.access_id, state)
        seen = [
            state
            for state in states.values()
            if any(permitted(node, who, "access.see", found) is None for found in _resources(unit, state))
        ]
        return [_view(node, who, unit, state) for state in seen]


def _view(node: Node, who: Who, unit: Unit, state: access.Access) -> View:
    resources = _resources(unit, state)
    asked = ("save", "submit", "withdraw", "return", "approve", "reject")
    # What only lacks a fresh second factor or a declaration is offered: the answer then says what is missing.
    fresh = Context(country=who.principal.country, second_factor=True, ethics=True)
    may = frozenset(
        action
        for action in asked
        if all(permitted(node, who, f"access.{action}", found, fresh) is None for found in resources)
        and action in _POSSIBLE[state.phase]
    )
    shown = account.names(unit, state.request.people)
    return View(
        state=state,
        title=text.get(unit, state.request.title),
        summary=text.get(unit, state.request.summary),
        datasets=list(_facts(node, who, unit, state.request).datasets),
        people={person: shown.get(person, "") for person in state.request.people},
        people_names=account.account_names(unit, state.request.people),
        applicant=account.names(unit, [state.applicant]).get(state.applicant, ""),
        reason=text.get(unit, state.reason),
        may=may,
    )


_POSSIBLE: dict[str, frozenset[str]] = {
    "draft": frozenset({"save", "submit", "withdraw"}),
    "returned": frozenset({"save", "submit", "withdraw"}),
    "submitted": frozenset({"return", "approve", "reject", "withdraw"}),
    "approved": frozenset(),
    "rejected": frozenset(),
    "withdrawn": frozenset(),
}


def _context(who: Who, request: access.Request) -> Context:
    """What the policies must know of an application: its mode, and whether an ethics approval is declared."""
    return Context(country=who.principal.country, mode=request.mode, ethics=request.purpose.ethics_approval)


def _resources(unit: Unit, state: access.Access) -> list[Resource]:
    pairs = permits.behind(unit, state.request.wanted)
    strict = strictest(tuple(version.effective for _, version in pairs))
    return [
        msgspec.structs.replace(
            datasets.resource(found, version.number),
            kind="access",
            id=state.access_id,
            owner=state.applicant,
            people=state.people,
            data_class=strict,
        )
        for found, version in pairs
    ]


def _request(node: Node, who: Who, unit: Unit, ident: str, form: Form) -> tuple[access.Request, access.Facts]:
    """The form as a request (texts kept aside, names made ids) and the facts about it."""
    at, stream = node.clock(), ACCESS.stream(ident)
    if not form.title.strip():
        raise FormatFault("the application has no title", "write one line")
    people, unknown = account.by_name(unit, form.people)
    request = access.Request(
        title=text.put(unit, stream, "title", form.title, at),
        summary=text.put(unit, stream, "summary", form.summary, at),
        wanted=_wanted(unit, form.datasets),
        purpose=purpose(form),
        people=people,
        mode=form.mode,
        days=form.days,
        licence=form.licence,
    )
    facts = _facts(node, who, unit, request)
    return request, msgspec.structs.replace(facts, unknown_people=unknown)


def _living(unit: Unit, wanted: Sequence[access.Wanted]) -> tuple[access.Wanted, ...]:
    """The versions that a permit is for: where participants withdrew, the one that took the place."""
    found = (
        access.Wanted(owner.dataset_id, (owner.living(asked.number) or asked).number)
        for owner, asked in permits.behind(unit, wanted)
    )
    return tuple(dict.fromkeys(found))


def _wanted(unit: Unit, names: Sequence[str]) -> tuple[access.Wanted, ...]:
    found = []
    for item in names:
        name, _, number = item.partition("@")
        rows = unit.rows("dataset", {"name": name, "visible": True})
        if not rows or (number and not number.isdecimal()):
            raise refuse("dataset_unknown", item[:80])
        found.append(access.Wanted(rows[0]["id"], int(number or rows[0]["version"])))
    return tuple(found)


def _facts(node: Node, who: Who, unit: Unit, request: access.Request) -> access.Facts:
    facts = []
    committees = set()
    for found, asked in permits.behind(unit, request.wanted):
        committees.add(found.committee)
        version = found.living(asked.number) or asked  # a version that took its place is meant by now
        facts.append(
            access.DatasetFact(
                dataset_id=found.dataset_id,
                version=asked.number,
                name=found.name,
                visible=found.phase == "live" and not version.destroyed,
                effective=version.effective,
                country=found.country,
                match=consent.match_all(
                    [tuple(duo.parse(term) for term in terms) for terms in version.consents],
                    request.purpose,
                    starts=node.clock().date(),
                    days=request.days,
                ),
            )
        )
    return access.Facts(
        datasets=tuple(facts),
        committee=committees <= who.principal.committees,
        researcher="researcher" in who.principal.roles,
    )


@retried
def _decide(node: Node, who: Who, access_id: str, action: str, order: Any, reason: str, command: str) -> None:
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, ACCESS, access_id)
        permits.allow_every(node, who, action, _resources(unit, state), _context(who, state.request))
        if streams.done(unit, who.account_id, command):
            return
        facts = _facts(node, who, unit, state.request)
        said = text.put(unit, ACCESS.stream(access_id), "reason", reason, at)
        step = Step(ACCESS, access_id, version, state, access.decide(state, order(at, said), facts))
        _commit(node, unit, who, step, command)
        if action in ("access.return", "access.reject"):
            outbox.mail(
                unit,
                at,
                key=f"{action}:{access_id}:{version}",
                account=state.applicant,
                subject="The committee answered your application",
                body=f"Application {access_id} was {'returned' if action == 'access.return' else 'rejected'}: {reason}",
            )


def _commit(node: Node, unit: Unit, who: Who, step: Step[access.Access], command: str) -> None:
    versions = _versions(unit, step.after.request)
    streams.commit(unit, [step], by=who.account_id, at=node.clock(), command=command, asserts=versions)


def _versions(unit: Unit, request: access.Request) -> dict[str, int]:
    """The streams that the facts came from, at the versions they were read at."""
    found = {}
    for wanted in request.wanted:
        stream = DATASET.stream(wanted.dataset_id)
        snapshot = unit.load(stream)
        found[stream] = snapshot.version if snapshot else 0
    return found
