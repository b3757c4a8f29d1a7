"""A body and its sidecar copied from one store to another. No key is needed.

No byte counts as copied that was not held against the record: each segment against its hash in the sidecar and against
its pair, both lists against the roots of the record before anything is committed. Memory does not grow with the file.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from valv.errors import Fault, IntegrityFault, StorageFault
from valv.formats import hashtree, seal
from valv.formats.crypt4gh import CIPHER_SEGMENT, segments
from valv.formats.hashtree import TreeBuilder
from valv.formats.seal import LEAF_PAIRS, SealBuilder, sidecar, sidecar_size
from valv.ports.storage import Body, BodyWriter, Locality, Pulls, Storage, Tape
from valv.vault.fixity import Sealed, Spend

_GROUP: Final = LEAF_PAIRS * CIPHER_SEGMENT
"""Stored bytes of a whole group of the sidecar, which are read at a time: 4 MiB."""


def _freely(_count: int) -> None:
    pass


def staged(source: Storage, name: str) -> bool:
    """Whether the body and its sidecar can be read now. What lies on tape is asked for; it comes later."""
    if not isinstance(source, Tape):
        return True
    names = (name, sidecar(name))
    found = [source.locality(one) for one in names]
    if Locality.LOST in found:
        raise StorageFault(f"{name}: the store says that it is lost")
    if all(one == Locality.ONLINE for one in found):
        return True
    source.stage(names)
    return False


def copy_body(source: Storage, target: Storage, name: str, record: Sealed, spend: Spend = _freely) -> None:
    """Copy `name` with its sidecar into `target`, where neither is yet. Durable when this returns; after a fault none
    of them is there.

    `spend` is called before so many bytes are read. Raises `IntegrityFault` naming the first segment that is not the
    one of the record, `MissingFault` and storage faults, and what `spend` raises.
    """
    names = (sidecar(name), name)  # in this order also committed: a body that is there has its sidecar
    try:
        if not _pulled(source, target, name, record, spend):
            _streamed(source, target, name, record, spend)
        for one, size in zip(names, (sidecar_size(segments(record.size)), record.cipher_size), strict=True):
            if target.size(one) != size:
                raise StorageFault(f"{one}: the new copy does not have the size that was written")
    except BaseException:
        for one in reversed(names):
            with suppress(Fault):
                target.delete(one)
        raise


def remove_body(store: Storage, name: str) -> None:
    """Delete the body, then its sidecar. Repeating is no error."""
    for one in (name, sidecar(name)):
        store.delete(one)


def _pulled(source: Storage, target: Storage, name: str, record: Sealed, spend: Spend) -> bool:
    """Have the target fetch both by itself, where these two can; what came is read back from there."""
    if not isinstance(target, Pulls):
        return False
    if not (target.pull(sidecar(name), source) and target.pull(name, source)):
        remove_body(target, name)
        return False
    with _Opened(target, name) as made:
        for _ in _held(made.body, made.sidecar, record, spend):
            pass
    return True


def _streamed(source: Storage, target: Storage, name: str, record: Sealed, spend: Spend) -> None:
    writers: list[BodyWriter] = []
    try:
        for one in (sidecar(name), name):
            writers.append(target.writer(one))
        seal_writer, writer = writers
        with _Opened(source, name) as old:
            for group, cipher in _held(old.body, old.sidecar, record, spend):
                seal_writer.write(group)
                writer.write(cipher)
        for made in writers:
            made.commit()
    except BaseException:
        for made in writers:
            made.abort()
        raise


def _held(body: Body, seal_body: Body, record: Sealed, spend: Spend) -> Iterator[tuple[bytes, memoryview]]:
    """Each group of the sidecar with the stored bytes of its segments, which hold against it; at the end all groups are
    held against the record. The memory of the stored bytes is used again for the next group."""
    count = segments(record.size)
    for what, one, size in (("body", body, record.cipher_size), ("seal", seal_body, sidecar_size(count))):
        if one.size != size:
            raise IntegrityFault(f"the stored {what} has {one.size} bytes, not {size}")
    pair_root, tree = SealBuilder(), TreeBuilder()
    buffer = memoryview(bytearray(min(_GROUP, record.cipher_size)))
    for first in range(0, count, LEAF_PAIRS):
        start = first * CIPHER_SEGMENT
        group = bytearray(sidecar_size(min(LEAF_PAIRS, count - first)))
        cipher = buffer[: min(_GROUP, record.cipher_size - start)]
        spend(len(group) + len(cipher))
        if seal_body.pread_into(group, sidecar_size(first)) != len(group):
            raise IntegrityFault("the seal is truncated")
        if body.pread_into(cipher, start) != len(cipher):
            raise IntegrityFault(f"the stored body ends before its byte {start + len(cipher)}")
        pairs, hashes = seal.split(bytes(group))
        for number, at in enumerate(range(0, len(cipher), CIPHER_SEGMENT)):
            _check(first + number, number, cipher[at : at + CIPHER_SEGMENT], hashes)
        if seal.pairs_of(cipher) != pairs:
            raise IntegrityFault(f"a segment from number {first} on is not the one that was sealed at its place")
        pair_root.add(pairs)
        tree.add(hashes)
        yield bytes(group), cipher
    if not hmac.compare_digest(tree.finish(record.cipher_size), record.tree_root):
        raise IntegrityFault("the hash tree's list of segments is not the one that was made at intake")
    if not hmac.compare_digest(pair_root.finish(record.size), record.seal_root):
        raise IntegrityFault("the seal's list of segments is not the one that was sealed")


def _check(number: int, place: int, stored: memoryview, hashes: bytes) -> None:
    try:
        hashtree.check_segment(place, stored, hashes)
    except IntegrityFault:
        raise IntegrityFault(f"segment {number} is not, byte for byte, the one that was stored at this place") from None


class _Opened:
    """A body and its sidecar, open."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.sidecar = storage.open(sidecar(name))
        try:
            self.body = storage.open(name)
        except BaseException:
            self.sidecar.close()
            raise

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.body.close()
        self.sidecar.close()
