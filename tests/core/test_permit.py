"""Permits: every refusal, once, and what a permit allows at which moment."""

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from valv.core import permit
from valv.core.access import Wanted
from valv.core.consent import Purpose
from valv.core.process import NODE
from valv.errors import Refusal

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
PERMIT = permit.Permit(
    permit_id="p",
    access_id="x",
    people=("r", "s"),
    datasets=(Wanted("d", 1),),
    purpose=Purpose(aim="health"),
    mode="download",
    starts=NOW,
    ends=NOW + 30 * DAY,
)
NOBODY = permit.Facts()


def download(by="r", at=NOW):
    return permit.RecordDownload(by=by, at=at, file_id="f", key="k", start=0)


CASES = [
    ("reason_missing", PERMIT, permit.Revoke(by="m", at=NOW, reason=""), permit.Facts(committee=True)),
    ("not_yet", PERMIT, permit.Expire(by=NODE, at=NOW + 30 * DAY - timedelta(microseconds=1)), NOBODY),
    ("other_mode", replace(PERMIT, mode="compute"), download(), NOBODY),
    ("permit_not_begun", PERMIT, download(at=NOW - DAY), NOBODY),
    ("permit_ended", PERMIT, download(at=NOW + 30 * DAY), NOBODY),
    ("no_permit", PERMIT, permit.Move(by=NODE, at=NOW, dataset_id="d", before=2, after=3), NOBODY),
    ("wrong_phase", replace(PERMIT, phase="suspended"), download(), NOBODY),
    ("reason_missing", replace(PERMIT, phase="suspended"), permit.Resume(by=NODE, at=NOW, reason=""), NOBODY),
    ("not_yours", PERMIT, download(by="m"), permit.Facts(committee=True)),
    ("not_yours", PERMIT, permit.Revoke(by="r", at=NOW, reason="r"), NOBODY),
    ("not_yours", PERMIT, permit.GiveBack(by="m", at=NOW), permit.Facts(committee=True, custodian=True)),
    ("wrong_phase", replace(PERMIT, phase="revoked"), permit.GiveBack(by="r", at=NOW), NOBODY),
    ("wrong_phase", replace(PERMIT, phase="expired"), download(), NOBODY),
]
USE = [
    (None, {}),
    ("no_permit", {"account": "m"}),
    ("no_permit", {"dataset": Wanted("d", 2)}),
    ("no_permit", {"dataset": Wanted("e", 1)}),
    ("other_mode", {"mode": "compute"}),
    ("permit_not_begun", {"at": NOW - timedelta(microseconds=1)}),
    (None, {"at": NOW + 30 * DAY - timedelta(microseconds=1)}),
    ("permit_ended", {"at": NOW + 30 * DAY}),
]


@pytest.mark.parametrize(("code", "state", "command", "facts"), CASES)
def test_refusals(refused, code, state, command, facts):
    assert refused(permit, state, command, facts) == code


@pytest.mark.parametrize(("code", "changes"), USE)
def test_what_it_allows(code, changes):
    asked = {"account": "r", "dataset": Wanted("d", 1), "mode": "download", "at": NOW, **changes}
    refusal = permit.permits(PERMIT, **asked)
    assert (refusal.code if refusal else None) == code


@pytest.mark.parametrize("phase", ["revoked", "expired", "given_back"])
def test_an_ended_permit_allows_nothing(phase):
    refusal = permit.permits(replace(PERMIT, phase=phase), account="r", dataset=None, mode=None, at=NOW)
    assert isinstance(refusal, Refusal) and refusal.code == "permit_ended"


def test_a_suspended_permit_allows_nothing():
    refusal = permit.permits(replace(PERMIT, phase="suspended"), account="r", dataset=None, mode=None, at=NOW)
    assert isinstance(refusal, Refusal) and refusal.code == "permit_suspended"


def test_no_permit_allows_nothing():
    refusal = permit.permits(None, account="r", dataset=None, mode=None, at=NOW)
    assert isinstance(refusal, Refusal) and refusal.code == "no_permit"


def test_every_refusal_has_a_case(codes_of):
    tried = {case[0] for case in CASES} | {code for code, _ in USE} | {"permit_suspended"}
    assert codes_of(permit) <= tried


def test_only_the_node_issues(refused):
    order = permit.Issue(
        by="m",
        at=NOW,
        permit_id="p",
        access_id="x",
        people=("r",),
        datasets=(Wanted("d", 1),),
        purpose=Purpose(aim="health"),
        mode="compute",
        starts=NOW,
        ends=NOW + DAY,
    )
    assert refused(permit, None, order, permit.Facts(committee=True, custodian=True)) == "not_yours"
