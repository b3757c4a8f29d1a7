"""Access: an application for datasets, from draft to the committee's decision. An approval issues a permit."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal, TypeAlias, assert_never

import msgspec

from valv.core.classes import DataClass, Mode
from valv.core.consent import Match, Purpose
from valv.core.process import Command, Event, Table, guard
from valv.errors import Refusal

KIND = "access"
Phase: TypeAlias = Literal["draft", "submitted", "returned", "approved", "rejected", "withdrawn"]
LONGEST_DAYS = 3650


class Wanted(msgspec.Struct, frozen=True):
    """One dataset version that is applied for."""

    dataset_id: str
    version: int


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is applied for. `people`: account ids besides the applicant; `title`, `summary`: ids of texts; `days`: how
    long; `licence`: the applicant accepts the terms of use."""

    title: str
    summary: str
    wanted: tuple[Wanted, ...]
    purpose: Purpose
    people: tuple[str, ...]
    mode: Mode
    days: int
    licence: bool


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """`reason`: id of the text that the committee gave last; `rounds`: how often it was handed in."""

    access_id: str
    applicant: str
    request: Request
    phase: Phase = "draft"
    rounds: int = 0
    reason: str = ""
    permit_id: str = ""

    @property
    def people(self) -> frozenset[str]:
        return frozenset((self.applicant, *self.request.people))


# --- commands ---
class Draft(Command, frozen=True, kw_only=True):
    access_id: str
    request: Request


class Save(Command, frozen=True, kw_only=True):
    request: Request


class Submit(Command, frozen=True, kw_only=True):
    pass


class ReturnForChanges(Command, frozen=True, kw_only=True):
    reason: str


class Approve(Command, frozen=True, kw_only=True):
    """`permit_id`: id of the permit that this issues; where the consent
    match leaves it to a human a reason is needed; against a refused match nobody can approve."""

    permit_id: str
    starts: datetime
    ends: datetime
    reason: str


class Reject(Command, frozen=True, kw_only=True):
    reason: str


class Withdraw(Command, frozen=True, kw_only=True):
    pass


Commands: TypeAlias = Draft | Save | Submit | ReturnForChanges | Approve | Reject | Withdraw


# --- events ---
class Drafted(Event, frozen=True, kw_only=True, tag="access.drafted"):
    access_id: str
    applicant: str
    request: Request


class Saved(Event, frozen=True, kw_only=True, tag="access.saved"):
    request: Request


class Submitted(Event, frozen=True, kw_only=True, tag="access.submitted"):
    request: Request
    verdicts: dict[str, str]


class Returned(Event, frozen=True, kw_only=True, tag="access.returned"):
    reason: str


class Approved(Event, frozen=True, kw_only=True, tag="access.approved"):
    permit_id: str
    starts: datetime
    ends: datetime
    reason: str
    verdicts: dict[str, str]


class Rejected(Event, frozen=True, kw_only=True, tag="access.rejected"):
    reason: str


class Withdrawn(Event, frozen=True, kw_only=True, tag="access.withdrawn"):
    pass


Events: TypeAlias = Drafted | Saved | Submitted | Returned | Approved | Rejected | Withdrawn


class DatasetFact(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one wanted dataset version. `match`: the consent held against the purpose."""

    dataset_id: str
    version: int
    name: str
    visible: bool
    effective: DataClass
    country: str
    match: Match


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`committee`: the actor sits on the committee of *every* wanted dataset; `unknown_people`: names that have no
    account."""

    datasets: tuple[DatasetFact, ...] = ()
    committee: bool = False
    researcher: bool = False
    unknown_people: tuple[str, ...] = ()


TABLE: Table = {
    "new": {"researcher": frozenset({Draft})},
    "draft": {"applicant": frozenset({Save, Submit, Withdraw})},
    "submitted": {"committee": frozenset({ReturnForChanges, Approve, Reject}), "applicant": frozenset({Withdraw})},
    "returned": {"applicant": frozenset({Save, Submit, Withdraw})},
    "approved": {},
    "rejected": {},
    "withdrawn": {},
}


def roles(state: Access | None, by: str, facts: Facts) -> frozenset[str]:
    """Nobody decides on an application that they are part of."""
    if state is None:
        return frozenset({"researcher"}) if facts.researcher else frozenset()
    found = set()
    if by == state.applicant:
        found.add("applicant")
    if facts.committee and by not in state.people:
        found.add("committee")
    return frozenset(found)


def decide(state: Access | None, command: Commands, facts: Facts) -> list[Events] | Refusal:
    if isinstance(command, ReturnForChanges | Approve | Reject) and state and command.by in state.people:
        return Refusal("own_application", "somebody of the committee who is not part of the application decides")
    refusal = guard(TABLE, state.phase if state else "new", roles(state, command.by, facts), command)
    if refusal:
        return refusal
    match command:
        case Draft():
            wrong = _formal(command.request, facts)
            if wrong:
                return wrong
            return [Drafted(access_id=command.access_id, applicant=command.by, request=command.request)]
        case Save():
            return _formal(command.request, facts) or [Saved(request=command.request)]
        case Submit():
            assert state is not None
            request = state.request
            wrong = _formal(request, facts) or _complete(request, facts)
            return wrong or [Submitted(request=request, verdicts=_verdicts(facts))]
        case ReturnForChanges():
            return [Returned(reason=command.reason)] if command.reason else Refusal("reason_missing")
        case Approve():
            assert state is not None
            return _approve(state, command, facts)
        case Reject():
            return [Rejected(reason=command.reason)] if command.reason else Refusal("reason_missing")
        case Withdraw():
            return [Withdrawn()]
        case _:
            assert_never(command)


def _formal(request: Request, facts: Facts) -> Refusal | None:
    """Faults that even a draft must not have."""
    if not request.wanted:
        return Refusal("dataset_missing", "name at least one dataset")
    if len(set(request.wanted)) != len(request.wanted):
        return Refusal("dataset_twice")
    known = {(fact.dataset_id, fact.version) for fact in facts.datasets if fact.visible}
    if any((wanted.dataset_id, wanted.version) not in known for wanted in request.wanted):
        return Refusal("dataset_unknown")
    if facts.unknown_people:
        return Refusal("person_unknown", ", ".join(facts.unknown_people))
    if not 1 <= request.days <= LONGEST_DAYS:
        return Refusal("duration", f"between 1 and {LONGEST_DAYS} days, not {request.days}")
    return None


def _complete(request: Request, facts: Facts) -> Refusal | None:
    if not request.licence:
        return Refusal("licence", "accept the terms of use")
    if request.purpose.aim == "disease" and not request.purpose.diseases:
        return Refusal("disease_missing")
    if not request.purpose.country:
        return Refusal("place_missing")
    return _class_allows(request, facts)


def _class_allows(request: Request, facts: Facts) -> Refusal | None:
    for fact in facts.datasets:
        if fact.effective == "identifiable":
            if request.mode == "download":
                return Refusal("download_identifiable", f"{fact.name} is identifiable: choose the mode 'compute'")
            if request.purpose.country != fact.country:
                return Refusal(
                    "abroad", f"{fact.name} may be used in {fact.country} only; the work would be in another country"
                )
    return None


def _approve(state: Access, command: Approve, facts: Facts) -> list[Events] | Refusal:
    # The datasets and people are looked at again: since it was handed in one may have been closed or have left.
    wrong = _formal(state.request, facts) or _class_allows(state.request, facts)
    if wrong:
        return wrong
    for fact in facts.datasets:
        if fact.match.verdict == "refused":
            no = next((finding for finding in fact.match.findings if finding.verdict == "refused"), None)
            return Refusal("against_consent", f"{fact.name}: {no.sentence}: {no.why}" if no else fact.name)
        if fact.match.verdict == "human" and not command.reason:
            return Refusal("reason_missing", f"{fact.name}: the consent match leaves it to the committee: say why")
    if command.ends <= command.at or command.ends <= command.starts:
        return Refusal("ends_before_start")
    if command.ends - command.starts > timedelta(days=state.request.days):
        return Refusal("duration", f"{state.request.days} days were applied for, and held against the consent")
    return [
        Approved(
            permit_id=command.permit_id,
            starts=command.starts,
            ends=command.ends,
            reason=command.reason,
            verdicts=_verdicts(facts),
        )
    ]


def _verdicts(facts: Facts) -> dict[str, str]:
    return {fact.dataset_id: fact.match.verdict for fact in facts.datasets}


def evolve(state: Access | None, event: Events) -> Access:
    if isinstance(event, Drafted):
        return Access(access_id=event.access_id, applicant=event.applicant, request=event.request)
    if state is None:
        raise ValueError(f"{type(event).__name__} before Drafted")
    match event:
        case Saved():
            return msgspec.structs.replace(state, request=event.request)
        case Submitted():
            return msgspec.structs.replace(state, phase="submitted", request=event.request, rounds=state.rounds + 1)
        case Returned():
            return msgspec.structs.replace(state, phase="returned", reason=event.reason)
        case Approved():
            return msgspec.structs.replace(state, phase="approved", reason=event.reason, permit_id=event.permit_id)
        case Rejected():
            return msgspec.structs.replace(state, phase="rejected", reason=event.reason)
        case Withdrawn():
            return msgspec.structs.replace(state, phase="withdrawn")
        case _:
            assert_never(event)
