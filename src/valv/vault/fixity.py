"""What lies beside a body, and checking bodies and copies of them against it. No key is needed."""

from __future__ import annotations

from typing import Final

from valv.errors import IntegrityFault
from valv.formats import hashtree, seal
from valv.formats.crypt4gh import CIPHER_SEGMENT
from valv.ports.storage import Body

_BATCH: Final = 64
"""Segments read at a time: 4 MiB."""
_GROUPS: Final = 256 * seal.sidecar_size(seal.LEAF_PAIRS)
"""Bytes of a sidecar read at a time: 960 KiB."""


def read_sidecar(sidecar: Body, count: int) -> tuple[bytes, bytes]:
    """The pairs and the hashes of a body of `count` segments, not yet held against a root. Does not close it.

    Raises `IntegrityFault` where the sidecar does not have their size.
    """
    size = seal.sidecar_size(count)
    if sidecar.size != size:
        raise IntegrityFault(f"the seal has {sidecar.size} bytes, not {size}")
    pairs, hashes = bytearray(), bytearray()
    for start in range(0, size, _GROUPS):
        groups = bytearray(min(_GROUPS, size - start))
        if sidecar.pread_into(groups, start) != len(groups):
            raise IntegrityFault("the seal is truncated")
        some_pairs, some_hashes = seal.split(bytes(groups))
        pairs += some_pairs
        hashes += some_hashes
    return bytes(pairs), bytes(hashes)


def check_body(body: Body, sidecar: Body, *, cipher_size: int, tree_root: bytes) -> None:
    """Read `body` from end to end and compare each segment with its hash in `sidecar`; closes neither.

    `cipher_size` (stored bytes) and `tree_root` are from the record. Raises `IntegrityFault` naming the first segment
    that is not the one that was stored, and storage faults.
    """
    if body.size != cipher_size:
        raise IntegrityFault(f"the stored body has {body.size} bytes, not {cipher_size}")
    _, hashes = read_sidecar(sidecar, -(-cipher_size // CIPHER_SEGMENT))
    hashtree.verify(tree_root, hashes, cipher_size)
    buffer = memoryview(bytearray(_BATCH * CIPHER_SEGMENT))
    for start in range(0, cipher_size, len(buffer)):
        cipher = buffer[: min(len(buffer), cipher_size - start)]
        if body.pread_into(cipher, start) != len(cipher):
            raise IntegrityFault(f"the stored body ends before its byte {start + len(cipher)}")
        for at in range(0, len(cipher), CIPHER_SEGMENT):
            number = (start + at) // CIPHER_SEGMENT
            hashtree.check_segment(number, cipher[at : at + CIPHER_SEGMENT], hashes)
