"""Where encrypted segments go: into the store, past the seal and the hash tree of the body, in one pass."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import msgspec

from valv.errors import Fault
from valv.formats import crypt4gh, hashtree, seal
from valv.formats.crypt4gh import CIPHER_SEGMENT
from valv.formats.hashtree import TreeBuilder
from valv.formats.seal import LEAF_PAIRS, SealBuilder
from valv.ports.storage import BodyWriter

BATCH: Final = LEAF_PAIRS
"""Segments that are worked on at a time, one group of the sidecar: large enough that Python's share of the work
vanishes."""
_INLINE: Final = 1 << 20


class SealedBody(msgspec.Struct, frozen=True):
    """A body in the store, without header. Sizes in bytes; `tree_root` is that of the hash tree over the stored
    bytes."""

    size: int
    cipher_size: int
    segments: int
    seal_root: bytes
    tree_root: bytes


class SealingWriter:
    """Writes segments to `writer`, their pairs and hashes to `seal_writer`. For one thread; it hashes in another."""

    def __init__(self, writer: BodyWriter, seal_writer: BodyWriter) -> None:
        self._writer = writer
        self._seal_writer = seal_writer
        self._seal = SealBuilder()
        self._tree = TreeBuilder()
        self._thread: ThreadPoolExecutor | None = None
        self._hashing: Future[bytes] | None = None
        self._pairs = b""
        self._cipher_size = 0
        self._buffer = memoryview(bytearray(BATCH * CIPHER_SEGMENT))

    def buffer(self) -> memoryview:
        """Room for `BATCH` segments, to be filled and given to `put`; the same memory each time."""
        self._settle()
        return self._buffer

    def put(self, length: int) -> None:
        """Take the first `length` bytes of the buffer: `BATCH` full segments, only the body's last batch may have
        fewer and its last segment be shorter."""
        cipher = self._buffer[:length]
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "hash-tree")
        self._hashing = self._thread.submit(hashtree.hashes, cipher)
        self._pairs = seal.pairs_of(cipher)
        self._seal.add(self._pairs)
        self._cipher_size += length
        self._writer.write(cipher)

    def finish(self) -> SealedBody:
        """Commit the sidecar, then the body: a body that is there has its sidecar. After a fault nothing counts as
        written; the caller deletes both names, of which the sidecar may already be there."""
        try:
            size = crypt4gh.plain_size(self._cipher_size)
            self._settle()
            self._close()
            self._seal_writer.commit()
            self._writer.commit()
        except Fault:
            self.abort()
            raise
        return SealedBody(
            size=size,
            cipher_size=self._cipher_size,
            segments=crypt4gh.segments(size),
            seal_root=self._seal.finish(size),
            tree_root=self._tree.finish(self._cipher_size),
        )

    def abort(self) -> None:
        self._close()
        self._writer.abort()
        self._seal_writer.abort()

    def _settle(self) -> None:
        """Wait until the last batch is hashed, and write its group of the sidecar."""
        if self._hashing is not None:
            hashes = self._hashing.result()
            self._hashing = None
            self._tree.add(hashes)
            self._seal_writer.write(self._pairs + hashes)

    def _close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None


class Digest:
    """SHA-256 of a stream, computed in a thread beside the caller's own work. What is given to `update` must stay as it
    is until the next `wait`, `update` or `finish`."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def update(self, data: memoryview) -> None:
        self.wait()
        if len(data) < _INLINE:
            self._sha256.update(data)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "digest")
        self._pending = self._thread.submit(self._sha256.update, data)

    def wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def finish(self) -> bytes:
        self.wait()
        self.close()
        return self._sha256.digest()

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
