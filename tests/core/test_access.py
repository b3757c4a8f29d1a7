"""Applications: every refusal, once."""

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from valv.core import access
from valv.core.consent import Finding, Match, Purpose

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PURPOSE = Purpose(aim="health", country="SE")
REQUEST = access.Request(
    title="t",
    summary="s",
    wanted=(access.Wanted("d", 1),),
    purpose=PURPOSE,
    people=("p",),
    mode="compute",
    days=30,
    licence=True,
)
NO = Finding(statement="DUO:0000011", sentence="ancestry", verdict="refused", why="not that")
FACT = access.DatasetFact(
    dataset_id="d",
    version=1,
    name="d",
    visible=True,
    effective="identifiable",
    country="SE",
    match=Match("permitted", ()),
)
RESEARCHER = access.Facts(datasets=(FACT,), researcher=True)
MEMBER = access.Facts(datasets=(FACT,), committee=True)
DRAFT = access.Access(access_id="x", applicant="r", request=REQUEST)
SUBMITTED = replace(DRAFT, phase="submitted", rounds=1)


def draft(**changes):
    return access.Draft(by="r", at=NOW, access_id="x", request=replace(REQUEST, **changes))


def asked(**changes):
    return replace(DRAFT, request=replace(REQUEST, **changes))


def fact(**changes):
    return access.Facts(datasets=(replace(FACT, **changes),), researcher=True, committee=True)


def approve(by="m", reason="", days=30, starts=NOW):
    return access.Approve(
        by=by, at=NOW, permit_id="p", starts=starts, ends=starts + timedelta(days=days), reason=reason
    )


SUBMIT = access.Submit(by="r", at=NOW)
HUMAN = Match("human", ())
CASES = [
    ("dataset_missing", None, draft(wanted=()), RESEARCHER),
    ("dataset_twice", None, draft(wanted=(access.Wanted("d", 1), access.Wanted("d", 1))), RESEARCHER),
    ("dataset_unknown", None, draft(wanted=(access.Wanted("d", 2),)), RESEARCHER),
    ("dataset_unknown", None, draft(), fact(visible=False)),
    ("person_unknown", None, draft(), replace(RESEARCHER, unknown_people=("p",))),
    ("duration", None, draft(days=0), RESEARCHER),
    ("duration", None, draft(days=access.LONGEST_DAYS + 1), RESEARCHER),
    ("licence", asked(licence=False), SUBMIT, RESEARCHER),
    ("disease_missing", asked(purpose=replace(PURPOSE, aim="disease")), SUBMIT, RESEARCHER),
    ("place_missing", asked(purpose=replace(PURPOSE, country="")), SUBMIT, RESEARCHER),
    ("download_identifiable", asked(mode="download"), SUBMIT, RESEARCHER),
    ("abroad", asked(purpose=replace(PURPOSE, country="NO")), SUBMIT, RESEARCHER),
    ("dataset_unknown", DRAFT, access.Save(by="r", at=NOW, request=REQUEST), access.Facts(researcher=True)),
    ("own_application", SUBMITTED, approve(by="r"), MEMBER),
    ("own_application", SUBMITTED, approve(by="p"), MEMBER),
    ("own_application", SUBMITTED, access.Reject(by="p", at=NOW, reason="no"), MEMBER),
    ("reason_missing", SUBMITTED, access.Reject(by="m", at=NOW, reason=""), MEMBER),
    ("reason_missing", SUBMITTED, access.ReturnForChanges(by="m", at=NOW, reason=""), MEMBER),
    ("reason_missing", SUBMITTED, approve(), fact(match=HUMAN)),
    ("against_consent", SUBMITTED, approve(reason="please"), fact(match=Match("refused", (NO,)))),
    ("against_consent", SUBMITTED, approve(reason="please"), fact(match=Match("refused", ()))),
    ("ends_before_start", SUBMITTED, approve(days=0), MEMBER),
    ("ends_before_start", SUBMITTED, approve(starts=NOW - timedelta(days=60)), MEMBER),
    ("duration", SUBMITTED, approve(days=31), MEMBER),
    ("dataset_unknown", SUBMITTED, approve(), access.Facts(committee=True)),
    ("abroad", SUBMITTED, approve(), fact(country="NO")),
    ("download_identifiable", replace(SUBMITTED, request=replace(REQUEST, mode="download")), approve(), MEMBER),
    ("not_yours", SUBMITTED, approve(), replace(MEMBER, committee=False)),
    ("not_yours", DRAFT, access.Submit(by="p", at=NOW), RESEARCHER),
    ("not_yours", None, draft(), access.Facts(datasets=(FACT,))),
    ("wrong_phase", DRAFT, approve(), MEMBER),
    ("wrong_phase", replace(SUBMITTED, phase="approved"), access.Withdraw(by="r", at=NOW), RESEARCHER),
]


@pytest.mark.parametrize(("code", "state", "command", "facts"), CASES)
def test_refusals(refused, code, state, command, facts):
    assert refused(access, state, command, facts) == code


def test_every_refusal_has_a_case(codes_of):
    assert codes_of(access) <= {case[0] for case in CASES}


def test_approval_issues_what_was_asked(follow):
    state = follow(access, SUBMITTED, approve(reason="looked at"), fact(match=HUMAN))
    assert (state.phase, state.permit_id, state.reason) == ("approved", "p", "looked at")


def test_submitting_keeps_what_the_consent_said(follow):
    (event,) = access.decide(DRAFT, SUBMIT, fact(match=HUMAN))
    assert event.verdicts == {"d": "human"}
    again = follow(access, replace(DRAFT, phase="returned", rounds=1), SUBMIT, RESEARCHER)
    assert again.rounds == 2
