"""Consent that is narrowed: permits that no longer fit are suspended, and may be used again by the committee's word or
with a version without these people."""

from __future__ import annotations

from typing import Any

import pytest

from tests.app.test_withdrawal import CANARY, FILES, refused, start, work
from valv.app import access, narrowing, permit
from valv.app.node import new_id
from valv.app.streams import PERMIT
from valv.errors import FormatFault


def narrow(s: Any, name: str, *consent: str, people: tuple[str, ...] = (CANARY,)) -> narrowing.Narrowed:
    return narrowing.narrow(
        s.node, s.who("carin"), name, pseudonyms=people, consent=consent, reason="They wrote.", command=new_id()
    )


@pytest.fixture
def cohort(s: Any) -> tuple[str, str]:
    name = s.fresh()
    s.publish(name, FILES)
    return name, s.permit(name)


def test_a_permit_that_still_fits_goes_on(s: Any, cohort: tuple[str, str]) -> None:
    name, ident = cohort
    assert narrow(s, name, "HMB", "NCU") == narrowing.Narrowed(versions=(1,), permits=())
    assert s.state(PERMIT, ident).phase == "issued"
    found = narrowing.consents(s.node, s.who("dagny"), name)
    assert found == [{"version": 1, "people": 1, "consent": ["DUO:0000006", "DUO:0000046"]}]
    refused("not_allowed", narrowing.consents, s.node, s.who("rikard"), name)


def test_a_permit_that_does_not_fit_is_suspended_until_the_committee_says_so(s: Any, cohort: tuple[str, str]) -> None:
    name, ident = cohort
    assert narrow(s, name, "POA").permits == (ident,)
    view = permit.show(s.node, s.who("rikard"), ident)
    assert view.standing.code == "permit_suspended" and not view.may_resume and view.reason == "They wrote."
    mails = {row["body"]["account"] for row in s.rows("outbox", topic="mail") if ident in row["body"]["body"]}
    assert mails >= {s.who("rikard").account_id, s.who("dagny").account_id}
    for person in ("rikard", "carin", "kerttu"):
        refused("not_allowed", permit.resume, s.node, s.who(person), ident, reason="x", command=new_id())
    assert permit.show(s.node, s.who("dagny"), ident).may_resume
    refused("reason_missing", permit.resume, s.node, s.who("dagny"), ident, reason="", command=new_id())
    permit.resume(s.node, s.who("dagny"), ident, reason="It does fit.", command=new_id())
    assert permit.show(s.node, s.who("rikard"), ident).standing is None


def test_a_version_without_them_lets_it_be_used_again(s: Any, cohort: tuple[str, str]) -> None:
    name, ident = cohort
    narrow(s, name, "POA")
    narrow(s, name, "POA", people=("P-2",))
    start(s, name)
    work(s)
    found = s.state(PERMIT, ident)
    assert (found.phase, found.datasets[0].version) == ("suspended", 2)  # P-2 is still in it
    start(s, name, "P-2")
    work(s)
    found = s.state(PERMIT, ident)
    assert (found.phase, found.datasets[0].version) == ("issued", 3)
    assert s.dataset(name).current.narrower == ()


def test_new_applications_must_fit_it_too(s: Any, cohort: tuple[str, str]) -> None:
    name, _ = cohort
    waiting = s.apply(name)
    narrow(s, name, "POA")
    refused("against_consent", access.approve, s.node, s.who("dagny"), waiting, reason="x", days=None, command="c")


def test_who_may_and_how(s: Any, cohort: tuple[str, str]) -> None:
    name, _ = cohort
    with pytest.raises(FormatFault):
        narrow(s, name, "NCU")
    refused("person_missing", narrow, s, name, "HMB", people=())
    for person in ("rikard", "dagny", "olle"):
        refused(
            "not_allowed",
            narrowing.narrow,
            s.node,
            s.who(person),
            name,
            pseudonyms=("P-2",),
            consent=("HMB",),
            reason="x",
            command=new_id(),
        )
    command = new_id()
    twice = [
        narrowing.narrow(
            s.node, s.who("carin"), name, pseudonyms=("P-2",), consent=("POA",), reason="x", command=command
        )
        for _ in range(2)
    ]
    assert twice[0] == twice[1] and len(s.dataset(name).current.narrower) == 1
