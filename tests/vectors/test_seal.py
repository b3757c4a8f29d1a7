"""The seal against its vectors and its definition."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valv.errors import IntegrityFault
from valv.formats import seal

VECTORS = Path(__file__).parents[2] / "vectors"


def load_make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_vectors", Path(__file__).with_name("make.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()


def pairs(count: int) -> bytes:
    return b"".join(make.pair(number) for number in range(count))


def test_the_vectors_are_what_the_specification_gives() -> None:
    for path, text in make.contents().items():
        assert (VECTORS / path).read_text() == text, f"{path}: run tests/vectors/make.py"


@pytest.mark.parametrize("case", json.loads((VECTORS / "seal/roots.json").read_text()))
def test_root(case: dict[str, int | str]) -> None:
    found = pairs(int(case["segments"]))
    size = int(case["plain_size"])
    root = bytes.fromhex(str(case["root"]))
    assert seal.seal_root(found, size) == root
    seal.verify(root, found, size)
    for wrong in (size + 1, max(0, size - 1), size + 65536):
        if wrong != size:
            with pytest.raises(IntegrityFault):
                seal.verify(root, found, wrong)


@given(st.lists(st.integers(0, 300), max_size=6))
def test_it_matters_not_how_the_pairs_come(steps: list[int]) -> None:
    found = pairs(sum(steps))
    builder = seal.SealBuilder()
    at = 0
    for step in steps:
        builder.add(found[at : at + 28 * step])
        at += 28 * step
    size = sum(steps) * 65536
    assert builder.finish(size) == make.root([make.pair(number) for number in range(sum(steps))], size)


@given(st.integers(2, 400), st.data())
def test_every_change_of_the_list_is_found(count: int, data: st.DataObject) -> None:
    listed = [make.pair(number) for number in range(count)]
    size = count * 65536
    root = seal.seal_root(b"".join(listed), size)
    at, other = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, count - 1))
    swapped = list(listed)
    swapped[at], swapped[other] = swapped[other], swapped[at]
    changed = [
        listed[:at] + listed[at + 1 :],
        listed[: at + 1] + listed[at:],
        listed[:at],
        [*listed, listed[at]],
        [*listed[:at], bytes(28), *listed[at + 1 :]],
        swapped,
        [*listed[:at], listed[other], *listed[at + 1 :]],
    ]
    for other_list in changed:
        if other_list == listed:
            continue
        for other_size in (size, len(other_list) * 65536):
            with pytest.raises(IntegrityFault):
                seal.verify(root, b"".join(other_list), other_size)
