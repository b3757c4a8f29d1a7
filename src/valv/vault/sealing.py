"""Where encrypted segments go: into the store, past the seal and the hash tree of the body, in one pass."""

from __future__ import annotations

import hashlib
import mmap
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import msgspec

from valv.errors import Fault
from valv.formats import crypt4gh, hashtree, seal
from valv.formats.crypt4gh import CIPHER_SEGMENT
from valv.formats.hashtree import TreeBuilder
from valv.formats.seal import LEAF_PAIRS, SealBuilder
from valv.ports.storage import BodyWriter
from valv.vault.bulk import cores

BATCH: Final = LEAF_PAIRS
"""Segments that are worked on at a time, one group of the sidecar: large enough that Python's share of the work
vanishes."""
_INLINE: Final = 1 << 20


def room(size: int) -> memoryview:
    """Zeroed memory of this process alone, which costs nothing before it is written to: a small file must not pay for
    the buffers of a large one."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class SealedBody(msgspec.Struct, frozen=True):
    """A body in the store, without header. Sizes in bytes; `tree_root` is that of the hash tree over the stored
    bytes."""

    size: int
    cipher_size: int
    segments: int
    seal_root: bytes
    tree_root: bytes


class SealingWriter:
    """Writes segments to `writer`, their pairs and hashes to `seal_writer`. For one thread; it hashes in another where
    there is a core for it beside the caller's and that of a `Digest`. On two cores a third thread would take from the
    digest, which is the slowest part: an intake lost a tenth of its speed by it."""

    def __init__(self, writer: BodyWriter, seal_writer: BodyWriter) -> None:
        self._writer = writer
        self._seal_writer = seal_writer
        self._seal = SealBuilder()
        self._tree = TreeBuilder()
        self._apart = cores() > 2
        self._thread: ThreadPoolExecutor | None = None
        self._hashing: deque[tuple[bytes, Future[bytes]]] = deque()  # the pairs and hashes of each batch
        self._cipher_size = 0
        self._buffers: deque[memoryview] = deque()  # one or two; the first is free

    def buffer(self) -> memoryview:
        """Room for `BATCH` segments, to be filled and given to `put`; the same memory until then."""
        self._settle(1)
        if len(self._buffers) <= len(self._hashing):  # the last batch may still be hashed in the only one
            self._buffers.appendleft(room(BATCH * CIPHER_SEGMENT))
        return self._buffers[0]

    def put(self, length: int) -> None:
        """Take the first `length` bytes of the buffer: `BATCH` full segments, only the body's last batch may have
        fewer and its last segment be shorter."""
        cipher = self._buffers[0][:length]
        self._buffers.rotate(-1)
        pairs = seal.pairs_of(cipher)
        if self._apart:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "hash-tree")
            self._hashing.append((pairs, self._thread.submit(hashtree.hashes, cipher)))
        else:
            self._list(pairs, hashtree.hashes(cipher))
        self._seal.add(pairs)
        self._cipher_size += length
        self._writer.write(cipher)

    def finish(self) -> SealedBody:
        """Commit the sidecar, then the body: a body that is there has its sidecar. After a fault nothing counts as
        written; the caller deletes both names, of which the sidecar may already be there."""
        try:
            size = crypt4gh.plain_size(self._cipher_size)
            self._settle(0)
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

    def _settle(self, left: int) -> None:
        """Wait until no more than `left` batches are to be hashed, and write the sidecar's groups of the others."""
        while len(self._hashing) > left:
            pairs, hashing = self._hashing.popleft()
            self._list(pairs, hashing.result())

    def _list(self, pairs: bytes, hashes: bytes) -> None:
        self._tree.add(hashes)
        self._seal_writer.write(pairs + hashes)

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
