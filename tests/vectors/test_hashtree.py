"""The hash tree against its vectors and its definition."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valv.errors import IntegrityFault
from valv.formats import hashtree
from valv.formats.crypt4gh import CIPHER_SEGMENT

VECTORS = Path(__file__).parents[2] / "vectors/hashtree"


def listed(count: int) -> bytes:
    return b"".join(hashlib.sha256(struct.pack(">Q", number)).digest() for number in range(count))


@pytest.mark.parametrize("case", json.loads((VECTORS / "roots.json").read_text()))
def test_root(case: dict[str, Any]) -> None:
    found, stored, root = listed(case["segments"]), case["stored_bytes"], bytes.fromhex(case["root"])
    assert hashtree.tree_root(found, stored) == root
    hashtree.verify(root, found, stored)
    with pytest.raises(IntegrityFault):
        hashtree.verify(root, found, stored + 1)


@pytest.mark.parametrize("case", json.loads((VECTORS / "bodies.json").read_text()))
def test_body(case: dict[str, Any]) -> None:
    body = hashlib.shake_256(b"body").digest(case["stored_bytes"])
    found = hashtree.hashes(body)
    assert found.hex() == "".join(case["hashes"])
    assert hashtree.tree_root(found, len(body)).hex() == case["root"]
    for number, at in enumerate(range(0, len(body), CIPHER_SEGMENT)):
        segment = body[at : at + CIPHER_SEGMENT]
        hashtree.check_segment(number, segment, found)
        for wrong in (segment[:-1], segment[:-1] + bytes([segment[-1] ^ 1]), b""):
            with pytest.raises(IntegrityFault, match=f"segment {number} "):
                hashtree.check_segment(number, wrong, found)
        with pytest.raises(IntegrityFault):
            hashtree.check_segment(number + 1000, segment, found)


@given(st.lists(st.integers(0, 200), max_size=6))
@settings(deadline=None)
def test_it_matters_not_how_the_hashes_come(steps: list[int]) -> None:
    found, builder, at = listed(sum(steps)), hashtree.TreeBuilder(), 0
    for step in steps:
        builder.add(found[at : at + 32 * step])
        at += 32 * step
    size = sum(steps) * CIPHER_SEGMENT
    assert builder.finish(size) == hashtree.tree_root(found, size)


@given(st.integers(2, 300), st.data())
@settings(deadline=None)
def test_every_change_of_the_list_is_found(count: int, data: st.DataObject) -> None:
    good = [listed(count)[32 * number : 32 * number + 32] for number in range(count)]
    root = hashtree.tree_root(b"".join(good), count * CIPHER_SEGMENT)
    at, other = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, count - 1))
    swapped = list(good)
    swapped[at], swapped[other] = swapped[other], swapped[at]
    for changed in (
        good[:at] + good[at + 1 :],
        good[: at + 1] + good[at:],
        good[:at],
        [*good[:at], bytes(32), *good[at + 1 :]],
        swapped,
    ):
        if changed != good:
            for size in (count * CIPHER_SEGMENT, len(changed) * CIPHER_SEGMENT):
                with pytest.raises(IntegrityFault):
                    hashtree.verify(root, b"".join(changed), size)
