"""The hash tree, version 1: binds every stored byte of a Crypt4GH body. Specified in `docs/formats/hashtree.md`.

Nonces and tags, which the seal binds, do not fix a segment against whoever knows its data key: Poly1305 is no hash. The
hash tree does, because it is made of hashes of the segments as they are stored (nonce, ciphertext, tag).

    hash   BLAKE3 of one stored segment, 32 bytes
    leaf   SHA-256(0x00 | up to 64 consecutive hashes)
    node   SHA-256(0x01 | left | right), shaped as in RFC 9162, section 2.1.1
    root   SHA-256(0x02 | "valv-tree-v1" | segments u64 | stored bytes u64 | tree's root), big-endian

The hashes lie beside the body, with the seal's pairs (`valv.formats.seal`). Whoever has the root can check them, and
with them each segment alone: a range read hashes nothing but what it reads.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import sha256
from typing import Final

from blake3 import blake3
from typing_extensions import Buffer

from valv.errors import IntegrityFault
from valv.formats.crypt4gh import CIPHER_SEGMENT
from valv.formats.merkle import Frontier, leaf_hash

HASH: Final = 32
LEAF_HASHES: Final = 64
LABEL: Final = b"valv-tree-v1"


def hashes(cipher: Buffer) -> bytes:
    """The hashes of consecutive stored segments, all full but the last."""
    view = memoryview(cipher).cast("B")
    return b"".join(blake3(view[at : at + CIPHER_SEGMENT]).digest() for at in range(0, len(view), CIPHER_SEGMENT))


class TreeBuilder:
    """Builds a root as hashes arrive; holds one unfinished leaf and one hash per level of the tree."""

    def __init__(self) -> None:
        self._open_leaf = b""
        self._leaves = Frontier()
        self._segments = 0

    def add(self, found: bytes) -> None:
        """Any whole number of hashes, in order."""
        self._segments += len(found) // HASH
        found = self._open_leaf + found
        size = HASH * LEAF_HASHES
        whole = len(found) - len(found) % size
        for at in range(0, whole, size):
            self._leaves.append(leaf_hash(found[at : at + size]))
        self._open_leaf = found[whole:]

    def finish(self, cipher_size: int) -> bytes:
        """The root, 32 bytes, of a body of `cipher_size` stored bytes. The builder is spent."""
        if self._open_leaf:
            self._leaves.append(leaf_hash(self._open_leaf))
        head = b"\x02" + LABEL + struct.pack(">QQ", self._segments, cipher_size)
        return sha256(head + self._leaves.root()).digest()


def tree_root(found: bytes, cipher_size: int) -> bytes:
    """The root of all hashes of a body of `cipher_size` stored bytes."""
    builder = TreeBuilder()
    builder.add(found)
    return builder.finish(cipher_size)


def verify(root: bytes, found: bytes, cipher_size: int) -> None:
    """Raises `IntegrityFault` unless `found` are the hashes of the body that has this root and this size."""
    expected = -(-cipher_size // CIPHER_SEGMENT)
    if len(found) != HASH * expected:
        raise IntegrityFault(f"the hash tree lists {len(found) / HASH:g} segments, the body has {expected}")
    if not hmac.compare_digest(tree_root(found, cipher_size), root):
        raise IntegrityFault("the hash tree's list of segments is not the one that was made at intake")


def check_segment(number: int, stored: Buffer, found: Buffer) -> None:
    """Raises `IntegrityFault` unless the stored segment `number` is the one that `found`, all hashes, lists."""
    listed = memoryview(found)[HASH * number : HASH * (number + 1)]
    if listed != blake3(stored).digest():
        raise IntegrityFault(f"segment {number} is not, byte for byte, the one that was stored at this place")
