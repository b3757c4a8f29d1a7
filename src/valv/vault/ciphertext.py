"""A stored body as it is given away: encrypted, and every segment held against the hash tree. No key is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from valv.errors import IntegrityFault
from valv.formats import hashtree, seal
from valv.formats.crypt4gh import CIPHER_SEGMENT
from valv.ports.storage import Body
from valv.vault.copies import holding
from valv.vault.fixity import read_sidecar

BATCH: Final = 16
"""Segments read at a time: 1 MiB, after which a download looks whether it may go on."""


class CheckedBody:
    """One stored body. For one thread. Where there are several copies, the first that holds is given.

    `open_body`: the store's `open`; `cipher_size` (stored bytes) and `tree_root` are from the record. Raises
    `IntegrityFault` where no copy holds, and storage faults.
    """

    def __init__(self, open_body: Callable[[str], Body], name: str, *, cipher_size: int, tree_root: bytes) -> None:
        self._size = cipher_size
        self._hashes = self._read_hashes(open_body, name, tree_root)
        self._body = open_body(name)
        self._buffer = memoryview(bytearray(min(BATCH * CIPHER_SEGMENT, cipher_size)))

    def read(self, offset: int, end: int) -> bytes:
        """Stored bytes from `offset`, up to `end` (not included) or as many as make up a batch of segments."""
        first = offset // CIPHER_SEGMENT * CIPHER_SEGMENT
        last = min(-(-min(end, self._size) // CIPHER_SEGMENT) * CIPHER_SEGMENT, first + len(self._buffer), self._size)
        if last <= offset:
            return b""
        cipher = self._buffer[: last - first]
        holding(self._body, lambda body: self._fill(body, cipher, first))
        return bytes(cipher[offset - first : min(end, last) - first])

    def close(self) -> None:
        self._body.close()

    def _fill(self, body: Body, cipher: memoryview, start: int) -> None:
        if body.pread_into(cipher, start) != len(cipher):
            raise IntegrityFault(f"the stored body ends before its byte {start + len(cipher)}")
        for at in range(0, len(cipher), CIPHER_SEGMENT):
            number = (start + at) // CIPHER_SEGMENT
            hashtree.check_segment(number, cipher[at : at + CIPHER_SEGMENT], self._hashes)

    def _read_hashes(self, open_body: Callable[[str], Body], name: str, tree_root: bytes) -> bytes:
        def read(sidecar: Body) -> bytes:
            _, hashes = read_sidecar(sidecar, -(-self._size // CIPHER_SEGMENT))
            hashtree.verify(tree_root, hashes, self._size)
            return hashes

        sidecar = open_body(seal.sidecar(name))
        try:
            return holding(sidecar, read)
        finally:
            sidecar.close()
