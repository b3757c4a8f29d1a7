"""Datasets: every refusal, once, and what the class of a version is."""

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from valv.core import dataset
from valv.core.process import NODE

NOW = datetime(2026, 3, 1, tzinfo=UTC)
VERSION = dataset.Version(
    number=1,
    deposit_id="x",
    key_id="k",
    claimed="anonymised",
    consent=("GRU",),
    files=1,
    size=1,
    manifest="m",
    participants=0,
)
EMPTY = dataset.Dataset(dataset_id="d", name="d", custodian="c", committee="k", country="SE", unit="u")
CUSTODIAN, ASSESSOR, NOBODY = dataset.Facts(custodian=True), dataset.Facts(assessor=True), dataset.Facts()


def live(**changes):
    return replace(EMPTY, phase="live", versions=(replace(VERSION, **changes),))


def assess(by="a", confirm=True, reason="r", version=1):
    return dataset.Assess(by=by, at=NOW, version=version, confirm=confirm, reason=reason)


def scan(version=1, findings=0):
    return dataset.RecordScan(by=NODE, at=NOW, version=version, findings=findings, report="r")


def narrow(by="c", version=1):
    return dataset.Narrow(by=by, at=NOW, version=version, reason="r")


def register(by="c"):
    return dataset.Register(by=by, at=NOW, dataset_id="d", name="d", committee="k", country="SE", unit="u")


def destroy(version=1):
    return dataset.RecordDestruction(by=NODE, at=NOW, version=version, generation=3)


def certify(version=1):
    return dataset.Certify(by=NODE, at=NOW, version=version, certificate="t")


AGAIN = dataset.AddVersion(
    by=NODE,
    at=NOW,
    deposit_id="x",
    key_id="k",
    claimed="anonymised",
    consent=("GRU",),
    files=1,
    size=1,
    manifest="m",
    participants=0,
)
CASES = [
    ("name_taken", None, register(), replace(CUSTODIAN, name_taken=True)),
    ("already_published", live(), AGAIN, NOBODY),
    ("no_version", live(), scan(version=2), NOBODY),
    ("not_claimed", live(claimed="identifiable"), scan(), NOBODY),
    ("already_scanned", live(findings=0), scan(), NOBODY),
    ("own_claim", live(findings=0), assess(by="c"), replace(ASSESSOR, custodian=True)),
    ("no_version", live(), assess(version=2), ASSESSOR),
    ("not_claimed", live(claimed="identifiable"), assess(), ASSESSOR),
    ("not_scanned", live(), assess(), ASSESSOR),
    ("already_assessed", live(findings=0, confirmed=False), assess(), ASSESSOR),
    ("reason_missing", live(findings=3), assess(reason=""), ASSESSOR),
    ("no_version", live(), narrow(version=2), CUSTODIAN),
    ("already_identifiable", live(claimed="identifiable"), narrow(), CUSTODIAN),
    ("no_version", live(), destroy(version=2), NOBODY),
    ("version_destroyed", live(destroyed=True), destroy(), NOBODY),
    ("version_destroyed", live(destroyed=True), scan(), NOBODY),
    ("version_destroyed", live(destroyed=True, findings=0), assess(), ASSESSOR),
    ("version_destroyed", live(destroyed=True), narrow(), CUSTODIAN),
    ("no_version", live(), certify(version=2), NOBODY),
    ("not_yet", live(), certify(), NOBODY),
    ("not_yours", live(), replace(destroy(), by="c"), CUSTODIAN),
    (
        "version_replaced",
        live(successor=2),
        dataset.CloseVersion(by="c", at=NOW, version=1, withdrawal_id="w", runs_end=True),
        CUSTODIAN,
    ),
    ("not_yours", None, register(), NOBODY),
    ("not_yours", live(findings=0), assess(), NOBODY),
    ("not_yours", live(), narrow(by="c2"), CUSTODIAN),
    ("not_yours", live(), dataset.Close(by="a", at=NOW, reason="r"), ASSESSOR),
    ("wrong_phase", EMPTY, scan(), NOBODY),
    ("wrong_phase", replace(EMPTY, phase="closed"), AGAIN, NOBODY),
]


@pytest.mark.parametrize(("code", "state", "command", "facts"), CASES)
def test_refusals(refused, code, state, command, facts):
    assert refused(dataset, state, command, facts) == code


def test_every_refusal_has_a_case(codes_of):
    assert codes_of(dataset) <= {case[0] for case in CASES}


def test_a_version_is_anonymised_only_after_scan_and_assessment(follow):
    state = live()
    assert state.current.effective == "identifiable"
    state = follow(dataset, state, scan(findings=2), NOBODY)
    assert state.current.effective == "identifiable"
    denied = follow(dataset, state, assess(confirm=False), ASSESSOR)
    assert denied.current.effective == "identifiable"
    state = follow(dataset, state, assess(), ASSESSOR)
    assert state.current.effective == "anonymised"
    state = follow(dataset, state, narrow(), CUSTODIAN)
    assert state.current.effective == "identifiable"


def test_a_destroyed_version_stays_destroyed_and_is_certified_once(follow):
    closed = follow(dataset, live(), dataset.Close(by="c", at=NOW, reason="r"), CUSTODIAN)
    for state in (live(), closed):
        gone = follow(dataset, state, destroy(), NOBODY)
        assert gone.versions[0].destroyed and gone.phase == state.phase
        certified = follow(dataset, gone, certify(), NOBODY)
        assert certified.versions[0].certificate == "t"
        assert dataset.decide(certified, certify(), NOBODY) == []


def test_a_new_version_starts_as_identifiable(follow):
    state = live(findings=0, confirmed=True)
    state = follow(dataset, state, replace(AGAIN, deposit_id="y"), NOBODY)
    assert [version.effective for version in state.versions] == ["anonymised", "identifiable"]
