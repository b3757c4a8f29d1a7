"""The Merkle tree of the ledger: RFC 9162 section 2.1 with SHA-256.

A leaf hash is SHA-256(0x00 || data), a node hash SHA-256(0x01 || left || right), the root of the empty tree SHA-256 of
nothing. The node at `(level, index)` covers the leaves from `index << level` up to `(index + 1) << level`; it is
complete when all of them exist, and from then on it never changes. Complete nodes are stored; proofs and roots are put
together from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from valv.errors import FormatFault, InputFault, IntegrityFault

HASH_SIZE: Final = 32
EMPTY_ROOT: Final = hashlib.sha256().digest()

Lookup = Callable[[int, int], bytes]
"""Gives the 32-byte hash of the complete node at (level, index)."""


def leaf_hash(data: bytes) -> bytes:
    """The 32-byte hash of one leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The 32-byte hash of an inner node from those of its two children."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: the roots of its largest complete subtrees, from left to right.

    It holds one hash for each bit set in `size`, which is all that appending and the root need.
    """

    __slots__ = ("_peaks", "_size")

    def __init__(self, size: int = 0, peaks: bytes = b"") -> None:
        """`peaks`: what `encode` gave for this size. Raises `FormatFault` where the two do not belong together."""
        if size < 0 or len(peaks) != size.bit_count() * HASH_SIZE:
            raise FormatFault(f"a Merkle frontier of size {size} cannot have {len(peaks)} bytes")
        self._size = size
        self._peaks = [peaks[start : start + HASH_SIZE] for start in range(0, len(peaks), HASH_SIZE)]

    @property
    def size(self) -> int:
        """How many leaves the tree has."""
        return self._size

    def encode(self) -> bytes:
        """The hashes, 32 bytes each, largest subtree first."""
        return b"".join(self._peaks)

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Add one leaf hash. Returns the nodes that it completes as (level, index, hash), the leaf itself first."""
        level, index, node = 0, self._size, leaf
        completed = [(level, index, node)]
        while index & 1:
            node = node_hash(self._peaks.pop(), node)
            level, index = level + 1, index >> 1
            completed.append((level, index, node))
        self._peaks.append(node)
        self._size += 1
        return completed

    def root(self) -> bytes:
        return _fold(self._peaks) if self._peaks else EMPTY_ROOT


def node_count(size: int) -> int:
    """How many complete nodes, leaves included, a tree of `size` leaves has."""
    return 2 * size - size.bit_count()


def root_at(size: int, lookup: Lookup) -> bytes:
    """The root of the first `size` leaves."""
    return _subtree(0, size, lookup) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, lookup: Lookup) -> list[bytes]:
    """PATH(index, D_size) of RFC 9162 section 2.1.3.1, the lowest node first."""
    if not 0 <= index < size:
        raise InputFault(f"there is no leaf {index} in a tree of size {size}")
    start, end = 0, size
    siblings: list[tuple[int, int]] = []
    while end - start > 1:
        middle = start + _left_width(end - start)
        if index < middle:
            siblings.append((middle, end))
            end = middle
        else:
            siblings.append((start, middle))
            start = middle
    return [_subtree(low, high, lookup) for low, high in reversed(siblings)]


def consistency_proof(old: int, new: int, lookup: Lookup) -> list[bytes]:
    """PROOF(old, D_new) of RFC 9162 section 2.1.4.1; empty where `old` is 0 or `new`."""
    if not 0 <= old <= new:
        raise InputFault(f"a tree of size {new} cannot continue one of size {old}")
    if old == 0:
        return []
    start, end = 0, new
    parts: list[tuple[int, int]] = []
    while old < end:
        middle = start + _left_width(end - start)
        if old <= middle:
            parts.append((middle, end))
            end = middle
        else:
            parts.append((start, middle))
            start = middle
    if start:  # the verifier does not know this subtree yet; at start 0 it is the old tree itself
        parts.append((start, end))
    return [_subtree(low, high, lookup) for low, high in reversed(parts)]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """RFC 9162 section 2.1.3.2. Raises `IntegrityFault` unless leaf hash `leaf` is leaf `index` of this tree."""
    if not 0 <= index < size:
        raise IntegrityFault(f"there is no leaf {index} in a tree of size {size}")
    position, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise IntegrityFault("the inclusion proof is too long")
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        position, last = position >> 1, last >> 1
    if last or node != root:
        raise IntegrityFault(f"the inclusion proof of leaf {index} does not lead to the root of size {size}")


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """RFC 9162 section 2.1.4.2. Raises `IntegrityFault` unless the new tree only adds leaves to the old one."""
    if not 0 <= old <= new:
        raise IntegrityFault(f"the tree shrank from {old} to {new} leaves")
    if old in (0, new):
        if proof or old_root != (EMPTY_ROOT if old == 0 else new_root):
            raise IntegrityFault(f"the trees of sizes {old} and {new} do not agree")
        return
    path = [old_root, *proof] if old.bit_count() == 1 else list(proof)
    if not path:
        raise IntegrityFault("the consistency proof is empty")
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old_node = new_node = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise IntegrityFault("the consistency proof is too long")
        if position & 1 or position == last:
            old_node = node_hash(sibling, old_node)
            new_node = node_hash(sibling, new_node)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            new_node = node_hash(new_node, sibling)
        position, last = position >> 1, last >> 1
    if last or old_node != old_root or new_node != new_root:
        raise IntegrityFault(f"the tree of size {new} does not continue the one of size {old}")


def _left_width(width: int) -> int:
    """The largest power of two below `width` (two or more)."""
    return 1 << ((width - 1).bit_length() - 1)


def _subtree(start: int, end: int, lookup: Lookup) -> bytes:
    """The hash over leaves `start` to `end`, where `start` is a multiple of a power of two not below the width."""
    peaks: list[bytes] = []
    while start < end:
        level = (end - start).bit_length() - 1
        peaks.append(lookup(level, start >> level))
        start += 1 << level
    return _fold(peaks)


def _fold(peaks: Sequence[bytes]) -> bytes:
    node = peaks[-1]
    for peak in reversed(peaks[:-1]):
        node = node_hash(peak, node)
    return node
