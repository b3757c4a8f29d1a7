from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valv.errors import FormatFault, InputFault, IntegrityFault
from valv.formats.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_count,
    root_at,
    verify_consistency,
    verify_inclusion,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors/merkle/tree.json").read_text())["cases"]
LEAVES = [number.to_bytes(2, "big") for number in range(200)]
# Published with Certificate Transparency, and by now in the tests of most implementations of the tree.
KNOWN_ROOT = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


# RFC 9162 section 2.1, written down as the text defines it: recursive, slow, and sharing no line with the product.


def mth(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def naive_path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*naive_path(m, leaves[:k]), mth(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), mth(leaves[:k])]


def naive_proof(m: int, leaves: list[bytes]) -> list[bytes]:
    return subproof(m, leaves, True)


def subproof(m: int, leaves: list[bytes], known: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if known else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], known), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def grow(leaves: list[bytes]) -> tuple[Frontier, dict[tuple[int, int], bytes]]:
    frontier, nodes = Frontier(), {}
    for leaf in leaves:
        nodes.update({(level, index): node for level, index, node in frontier.append(leaf_hash(leaf))})
    return frontier, nodes


FRONTIER, NODES = grow(LEAVES)


def lookup(level: int, index: int) -> bytes:
    return NODES[level, index]


@pytest.mark.parametrize("case", VECTORS, ids=[f"{case['operation']}: {case['name']}" for case in VECTORS])
def test_vector(case: dict[str, Any]) -> None:
    try:
        check(case)
        outcome = "valid"
    except IntegrityFault:
        outcome = "invalid"
    assert outcome == case["outcome"]


def check(case: dict[str, Any]) -> None:
    match case["operation"]:
        case "root":
            assert grow([bytes.fromhex(leaf) for leaf in case["leaves"]])[0].root().hex() == case["root"]
        case "inclusion":
            verify_inclusion(
                bytes.fromhex(case["leaf_hash"]),
                case["index"],
                case["size"],
                [bytes.fromhex(one) for one in case["proof"]],
                bytes.fromhex(case["root"]),
            )
        case "consistency":
            verify_consistency(
                case["old_size"],
                bytes.fromhex(case["old_root"]),
                case["new_size"],
                bytes.fromhex(case["new_root"]),
                [bytes.fromhex(one) for one in case["proof"]],
            )
        case other:
            raise AssertionError(other)


def test_the_vectors_end_in_the_published_root() -> None:
    assert [case["root"] for case in VECTORS if case["operation"] == "root"][8] == KNOWN_ROOT


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=70))
def test_the_frontier_has_the_root_of_the_definition(leaves: list[bytes]) -> None:
    frontier, nodes = grow(leaves)
    assert frontier.root() == mth(leaves)
    assert len(nodes) == node_count(len(leaves))
    again = Frontier(frontier.size, frontier.encode())
    assert again.append(leaf_hash(b"next")) == frontier.append(leaf_hash(b"next"))
    assert again.root() == frontier.root() == mth([*leaves, b"next"])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_inclusion_proofs_are_those_of_the_definition(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(LEAVES)))
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, lookup)
    assert proof == naive_path(index, LEAVES[:size])
    verify_inclusion(leaf_hash(LEAVES[index]), index, size, proof, root_at(size, lookup))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_consistency_proofs_are_those_of_the_definition(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, len(LEAVES)))
    old = data.draw(st.integers(1, new))
    proof = consistency_proof(old, new, lookup)
    assert proof == naive_proof(old, LEAVES[:new])
    verify_consistency(old, root_at(old, lookup), new, root_at(new, lookup), proof)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_altered_proof_is_believed(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 64))
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, lookup)
    where = data.draw(st.integers(0, len(proof) - 1))
    bit = data.draw(st.integers(0, 255))
    altered = (int.from_bytes(proof[where], "big") ^ (1 << bit)).to_bytes(32, "big")
    with pytest.raises(IntegrityFault):
        verify_inclusion(
            leaf_hash(LEAVES[index]),
            index,
            size,
            [*proof[:where], altered, *proof[where + 1 :]],
            root_at(size, lookup),
        )


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_rewritten_history_is_never_consistent(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, 64))
    old = data.draw(st.integers(1, new))
    rewritten = data.draw(st.integers(0, old - 1))
    forged, nodes = grow([*LEAVES[:rewritten], b"forged", *LEAVES[rewritten + 1 : new]])
    proof = consistency_proof(old, new, lambda level, index: nodes[level, index])
    with pytest.raises(IntegrityFault):
        verify_consistency(old, root_at(old, lookup), new, forged.root(), proof)


def test_the_empty_tree() -> None:
    assert Frontier().root() == root_at(0, lookup) == EMPTY_ROOT
    assert consistency_proof(0, 9, lookup) == []


def test_a_frontier_of_another_size_is_refused() -> None:
    with pytest.raises(FormatFault, match="size 3 cannot have 32 bytes"):
        Frontier(3, bytes(32))


def test_proofs_outside_the_tree_are_refused() -> None:
    with pytest.raises(InputFault, match="no leaf 5"):
        inclusion_proof(5, 5, lookup)
    with pytest.raises(InputFault, match="cannot continue"):
        consistency_proof(6, 5, lookup)
