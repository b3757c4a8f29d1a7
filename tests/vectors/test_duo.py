"""Consent held against purpose: the cases of `vectors/duo`, one expected outcome each."""

import json
from datetime import date
from pathlib import Path

import msgspec
import pytest

from valv.core.consent import Purpose, match
from valv.errors import FormatFault
from valv.formats import duo

RANK = {"permitted": 0, "human": 1, "refused": 2}
VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "duo"


def cases(*files):
    for name in files:
        for case in json.loads((VECTORS / name).read_text("utf-8"))["cases"]:
            yield pytest.param(case, id=f"{name.removesuffix('.json')}: {case.get('name', case.get('text'))}")


MATCHES = list(cases("permissions.json", "diseases.json", "modifiers.json", "combinations.json"))


def held(case):
    consent = tuple(dict.fromkeys(duo.parse(text) for text in case["consent"]))
    purpose = msgspec.convert(case["purpose"], Purpose)
    starts = date.fromisoformat(case.get("starts", "2026-01-01"))
    ancestors = {term: frozenset(above) for term, above in case.get("ancestors", {}).items()}
    return consent, match(consent, purpose, starts=starts, days=case.get("days", 30), ancestors=ancestors)


@pytest.mark.parametrize("case", MATCHES)
def test_verdict(case):
    consent, found = held(case)
    assert found.verdict == case["verdict"], [(f.statement, f.verdict, f.why) for f in found.findings]
    assert {finding.statement for finding in found.findings} <= {str(statement) for statement in consent}
    assert all(finding.why and finding.sentence for finding in found.findings)
    if any(statement.code in duo.PERMISSIONS for statement in consent):
        assert max(RANK[finding.verdict] for finding in found.findings) >= RANK[found.verdict]


@pytest.mark.parametrize("case", MATCHES)
def test_a_narrower_time_or_one_more_modifier_never_widens(case):
    """Adding any modifier to a consent never turns a refusal or an open question into a yes."""
    consent, found = held(case)
    for text in ("NPU", "NCU", "IRB", "US", "NMDS", "NPOA", "PUB"):
        more = {**case, "consent": [*case["consent"], text]}
        if duo.parse(text) not in consent:
            assert RANK[held(more)[1].verdict] >= RANK[found.verdict]


def test_there_is_a_case_for_every_term_and_every_outcome():
    seen = {}
    for parameter in MATCHES:
        for finding in held(parameter.values[0])[1].findings:
            seen.setdefault(duo.parse(finding.statement).short, set()).add(finding.verdict)
    assert set(seen) == {short for short, _ in duo.TERMS.values()}
    yes, human, no = "permitted", "human", "refused"
    expected = {short: {yes, human, no} for short in seen}
    expected |= {short: {yes, no} for short in ("GSO", "NPU", "NCU", "NPUNCU", "PUB", "RTN", "TS")}
    expected |= {short: {human, no} for short in ("COL", "IRB")}
    expected |= {short: {human} for short in ("US", "RS", "METHODS")}
    expected |= {"NRES": {yes}, "CC": {yes}, "GRU": {yes, human}, "MOR": {yes, human}}
    assert seen == expected


def test_there_are_enough():
    assert len(MATCHES) >= 120


@pytest.mark.parametrize("case", list(cases("syntax.json")))
def test_syntax(case):
    if case["code"] is None:
        with pytest.raises(FormatFault):
            duo.parse(case["text"])
    else:
        assert duo.parse(case["text"]) == duo.Statement(case["code"], case["value"])
        assert duo.parse(str(duo.parse(case["text"]))) == duo.parse(case["text"])


def test_a_date_that_does_not_exist_is_left_to_people():
    consent = (duo.Statement(duo.GRU), duo.Statement("DUO:0000024", "2027-02-31"))
    found = match(consent, Purpose(aim="health"), starts=date(2026, 1, 1), days=30)
    assert found.verdict == "human"
