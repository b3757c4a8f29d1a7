from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valv.errors import FormatFault
from valv.formats.ledger import canonical_data, decode_leaf, encode_leaf, time_text, verify_export

CASES = json.loads((Path(__file__).parents[2] / "vectors/merkle/ledger.json").read_text("utf-8"))["cases"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_vector(case: dict[str, Any]) -> None:
    report = verify_export([line.encode() for line in case["lines"]], case["note"], case["verifier_key"])
    assert ("valid" if report.ok else "invalid") == case["outcome"]
    assert report.ok == (report.fault == "")


@given(st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), JSON))
def test_canonical_data_has_one_spelling(value: dict[str, Any]) -> None:
    plain = canonical_data(json.dumps(value).encode())
    assert canonical_data(plain) == plain
    assert canonical_data(json.dumps(value, indent=3, ensure_ascii=False).encode()) == plain
    assert json.loads(plain) == value


@given(st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), JSON), st.integers(0, 1 << 40))
def test_a_leaf_comes_back(value: dict[str, Any], position: int) -> None:
    data = canonical_data(json.dumps(value).encode())
    at = datetime(2031, 2, 3, 4, 5, 6, 7, timezone(timedelta(hours=-5)))
    entry = decode_leaf(encode_leaf(position, "box/1", 3, "box.made", at, "account/1", "c", data))
    assert (entry.position, entry.version, bytes(entry.data), entry.at) == (
        position,
        3,
        data,
        "2031-02-03T09:05:06.000007Z",
    )


@given(st.binary())
def test_no_bytes_break_the_reader(leaf: bytes) -> None:
    with pytest.raises(FormatFault):
        decode_leaf(leaf)


def test_times_need_a_zone() -> None:
    assert time_text(datetime(2031, 2, 3, tzinfo=UTC)) == "2031-02-03T00:00:00.000000Z"
    with pytest.raises(FormatFault):
        time_text(datetime(2031, 2, 3))


def test_the_deepest_nesting_is_a_fault_not_a_crash() -> None:
    with pytest.raises(FormatFault):
        canonical_data(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
