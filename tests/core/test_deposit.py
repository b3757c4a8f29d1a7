"""Deposits: every refusal, once."""

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from valv.core import deposit
from valv.core.process import NODE

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OPEN = deposit.Deposit(
    deposit_id="x", dataset_id="d", custodian="c", key_id="k", claimed="identifiable", consent=("GRU",)
)
SUBMITTED = replace(OPEN, phase="submitted")
RECEIVED = deposit.Facts(owner=True, files=2, size=9, manifest="m")
SUBMIT = deposit.Submit(by="c", at=NOW)
PUBLISH = deposit.Publish(by=NODE, at=NOW, version=1)
BEGIN = deposit.Open(
    by="c", at=NOW, deposit_id="x", dataset_id="d", key_id="k", claimed="identifiable", consent=("GRU",)
)

CASES = [
    ("files_missing", OPEN, SUBMIT, replace(RECEIVED, missing=("a.vcf",))),
    ("deposit_empty", OPEN, SUBMIT, deposit.Facts(owner=True)),
    ("persons_missing", None, replace(BEGIN, claimed="identifiable"), deposit.Facts(owner=True, one_person=True)),
    ("not_yours", None, BEGIN, deposit.Facts()),
    ("not_yours", OPEN, replace(SUBMIT, by="b"), deposit.Facts()),
    ("not_yours", SUBMITTED, replace(PUBLISH, by="c"), RECEIVED),
    ("wrong_phase", OPEN, PUBLISH, RECEIVED),
    ("wrong_phase", SUBMITTED, SUBMIT, RECEIVED),
    ("wrong_phase", replace(OPEN, phase="published"), deposit.Cancel(by="c", at=NOW), RECEIVED),
]


@pytest.mark.parametrize(("code", "state", "command", "facts"), CASES)
def test_refusals(refused, code, state, command, facts):
    assert refused(deposit, state, command, facts) == code


def test_every_refusal_has_a_case(codes_of):
    assert codes_of(deposit) <= {case[0] for case in CASES}


def test_one_person_may_open_a_node_for_anonymised_data(follow):
    alone = deposit.Facts(owner=True, one_person=True)
    assert follow(deposit, None, replace(BEGIN, claimed="anonymised"), alone).claimed == "anonymised"


def test_all_or_nothing(follow):
    handed_in = follow(deposit, OPEN, SUBMIT, RECEIVED)
    assert (handed_in.files, handed_in.size, handed_in.manifest) == (2, 9, "m")
    assert follow(deposit, handed_in, PUBLISH, deposit.Facts()).version == 1
    failed = follow(deposit, handed_in, deposit.Fail(by=NODE, at=NOW, reason="r"), deposit.Facts())
    assert (failed.phase, failed.version, failed.reason) == ("failed", None, "r")
