"""The seal, version 1: binds the order and number of a Crypt4GH body's segments. Specified in `docs/formats/seal.md`.

Crypt4GH authenticates each segment alone. The seal is a Merkle root over the segments' pairs, 28 bytes each: the nonce
(12) and the tag (16), in the body's order.

    leaf   SHA-256(0x00 | up to 64 consecutive pairs)
    node   SHA-256(0x01 | left | right), shaped as in RFC 9162, section 2.1.1
    root   SHA-256(0x02 | "valv-seal-v1" | segments u64 | plain size u64 | tree's root), big-endian

The pairs lie beside the body, in a sidecar named by `sidecar`. Whoever has the root can check the pairs, and with them
each segment that is read, ranges included. It binds against those who lack the data key; against the others, the hash
tree (`valv.formats.hashtree`) does, whose hashes lie in the same sidecar:

    sidecar  groups of 64 segments, the last one of what is left: their pairs, then their hashes (32 bytes each)
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import Final

from typing_extensions import Buffer

from valv.errors import IntegrityFault
from valv.formats.crypt4gh import CIPHER_SEGMENT, NONCE, TAG, segments
from valv.formats.hashtree import HASH

PAIR: Final = 28
LEAF_PAIRS: Final = 64
LEAF: Final = PAIR * LEAF_PAIRS
LABEL: Final = b"valv-seal-v1"


def sidecar(body: str) -> str:
    """The name in the store of the pairs and hashes of `body`."""
    return f"{body}.seal"


def sidecar_size(count: int) -> int:
    """Bytes of the sidecar of so many segments."""
    return count * (PAIR + HASH)


def pairs_of(cipher: Buffer) -> bytes:
    """The pairs of consecutive stored segments, all full but the last."""
    view = memoryview(cipher).cast("B")
    pairs = bytearray()
    for start in range(0, len(view), CIPHER_SEGMENT):
        segment = view[start : start + CIPHER_SEGMENT]
        pairs += segment[:NONCE]
        pairs += segment[-TAG:]
    return bytes(pairs)


def split(groups: bytes) -> tuple[bytes, bytes]:
    """The pairs and the hashes of whole groups of a sidecar, of which only the last may have fewer segments."""
    pairs, hashes = [], []
    for start in range(0, len(groups), sidecar_size(LEAF_PAIRS)):
        part = groups[start : start + sidecar_size(LEAF_PAIRS)]
        cut = len(part) // (PAIR + HASH) * PAIR
        pairs.append(part[:cut])
        hashes.append(part[cut:])
    return b"".join(pairs), b"".join(hashes)


class SealBuilder:
    """Builds a seal as pairs arrive; holds one unfinished leaf and one hash per level of the tree."""

    def __init__(self) -> None:
        self._open_leaf = b""
        self._leaves = 0
        self._peaks: list[bytes] = []  # roots of the perfect subtrees so far, the largest first

    def add(self, pairs: bytes) -> None:
        """Any whole number of pairs, in order."""
        pairs = self._open_leaf + pairs if self._open_leaf else pairs
        whole = len(pairs) - len(pairs) % LEAF
        for at in range(0, whole, LEAF):
            self._push(pairs[at : at + LEAF])
        self._open_leaf = pairs[whole:]

    def finish(self, plain_size: int) -> bytes:
        """The root, 32 bytes. The builder is spent."""
        count = self._leaves * LEAF_PAIRS + len(self._open_leaf) // PAIR
        if self._open_leaf:
            self._push(self._open_leaf)
        peaks = self._peaks
        tree = peaks.pop() if peaks else hashlib.sha256().digest()
        while peaks:
            tree = _node(peaks.pop(), tree)
        return hashlib.sha256(b"\x02" + LABEL + struct.pack(">QQ", count, plain_size) + tree).digest()

    def _push(self, pairs: bytes) -> None:
        peak = hashlib.sha256(b"\x00" + pairs).digest()
        merges = self._leaves
        while merges & 1:  # as many merges as the old count has trailing ones
            peak = _node(self._peaks.pop(), peak)
            merges >>= 1
        self._peaks.append(peak)
        self._leaves += 1


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def seal_root(pairs: bytes, plain_size: int) -> bytes:
    """The root of all pairs of a body with `plain_size` plain bytes."""
    builder = SealBuilder()
    builder.add(pairs)
    return builder.finish(plain_size)


def verify(root: bytes, pairs: bytes, plain_size: int) -> None:
    """Raises `IntegrityFault` unless `pairs` are those of the sealed body and `plain_size` is its size."""
    if len(pairs) != PAIR * segments(plain_size):
        raise IntegrityFault(f"the seal lists {len(pairs) / PAIR:g} segments, the file has {segments(plain_size)}")
    if not hmac.compare_digest(seal_root(pairs, plain_size), root):
        raise IntegrityFault("the seal's list of segments is not the one that was sealed")
