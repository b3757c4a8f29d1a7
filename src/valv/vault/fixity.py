"""What lies beside a body, and checking bodies and copies of them against it. No key is needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import msgspec

from valv.errors import Fault, IntegrityFault, MissingFault, StorageFault
from valv.formats import hashtree, seal
from valv.formats.crypt4gh import CIPHER_SEGMENT
from valv.formats.hashtree import HASH
from valv.formats.seal import LEAF_PAIRS, PAIR
from valv.ports.storage import Body, Storage

_BATCH: Final = 64
"""Segments read at a time: 4 MiB."""
_GROUPS: Final = 256 * seal.sidecar_size(seal.LEAF_PAIRS)
"""Bytes of a sidecar read at a time: 960 KiB."""

_WRONG: Final = (IntegrityFault, MissingFault, StorageFault)
"""What is wrong with a copy, and not with the way to it."""

Spend: TypeAlias = Callable[[int], None]
"""Called before so many bytes are read. It waits as long as the rate asks, and may raise to end the work."""


def _freely(_count: int) -> None:
    pass


class Rate:
    """A `Spend` that allows `rate` bytes a second (a token bucket that holds one second's worth). `clock`: seconds;
    `wait`: waits so long. For one thread."""

    def __init__(
        self, rate: float, wait: Callable[[float], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._wait, self._clock = rate, wait, clock
        self._left, self._at = rate, clock()

    def __call__(self, count: int) -> None:
        now = self._clock()
        self._left = min(self._rate, self._left + (now - self._at) * self._rate)
        self._at = now
        self._left -= count
        self._wait(max(0.0, -self._left / self._rate))


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """What the record says of a body: plain and stored bytes, the roots of its seal and of its hash tree."""

    size: int
    cipher_size: int
    seal_root: bytes
    tree_root: bytes


class Listed(msgspec.Struct, frozen=True):
    """What a sidecar holds, held against the record: pairs (28 bytes) and hashes (32 bytes) of all segments."""

    pairs: bytes
    hashes: bytes


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What reading a copy showed. `listed`: of its sidecar, or where that does not hold, of its body; None where
    neither holds. `body`, `sidecar`: what is wrong with each."""

    listed: Listed | None
    body: Fault | None
    sidecar: Fault | None

    @property
    def fault(self) -> Fault | None:
        return self.body or self.sidecar


def read_sidecar(sidecar: Body, count: int, spend: Spend = _freely) -> tuple[bytes, bytes]:
    """The pairs and the hashes of a body of `count` segments, not yet held against a root. Does not close it.

    Raises `IntegrityFault` where the sidecar does not have their size.
    """
    size = seal.sidecar_size(count)
    if sidecar.size != size:
        raise IntegrityFault(f"the seal has {sidecar.size} bytes, not {size}")
    pairs, hashes = bytearray(), bytearray()
    for start in range(0, size, _GROUPS):
        groups = bytearray(min(_GROUPS, size - start))
        spend(len(groups))
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
    _check_size(body, cipher_size)
    _, hashes = read_sidecar(sidecar, -(-cipher_size // CIPHER_SEGMENT))
    hashtree.verify(tree_root, hashes, cipher_size)
    for _ in _held(body, hashes, cipher_size, _freely):
        pass


def look(store: Storage, name: str, record: Sealed, spend: Spend = _freely) -> Seen:
    """Read the copy of `name` in `store` from end to end, body and sidecar, and hold both against the record.

    A sidecar that does not hold is made anew from the body, which shows whether that holds. What is wrong with the copy
    is returned; that the store cannot be reached (`UnreachableFault`) and what `spend` raises is raised.
    """
    listed: Listed | None = None
    wrong: Fault | None = None
    try:
        listed = _listed(store, name, record, spend)
    except _WRONG as fault:
        wrong = fault
    try:
        body = store.open(name)
        try:
            if listed is None:
                return Seen(listed=_from_body(body, record, spend), body=None, sidecar=wrong)
            _check_size(body, record.cipher_size)
            for _ in _held(body, listed.hashes, record.cipher_size, spend):
                pass
        finally:
            body.close()
    except _WRONG as fault:
        return Seen(listed=listed, body=fault, sidecar=wrong)
    return Seen(listed=listed, body=None, sidecar=None)


def write_sidecar(target: Storage, name: str, listed: Listed) -> None:
    """Write the sidecar of the body `name`, where there is none."""
    writer = target.writer(seal.sidecar(name))
    try:
        for at in range(0, len(listed.hashes) // HASH, LEAF_PAIRS):
            writer.write(listed.pairs[PAIR * at : PAIR * (at + LEAF_PAIRS)])
            writer.write(listed.hashes[HASH * at : HASH * (at + LEAF_PAIRS)])
        writer.commit()
    except BaseException:
        writer.abort()
        raise


def _listed(store: Storage, name: str, record: Sealed, spend: Spend) -> Listed:
    """What the sidecar of `name` lists, held against both roots."""
    sidecar = store.open(seal.sidecar(name))
    try:
        listed = Listed(*read_sidecar(sidecar, -(-record.cipher_size // CIPHER_SEGMENT), spend))
    finally:
        sidecar.close()
    _check_listed(listed, record)
    return listed


def _from_body(body: Body, record: Sealed, spend: Spend) -> Listed:
    """What the sidecar of `body` must list. Raises `IntegrityFault` where the body is not the one of the record."""
    _check_size(body, record.cipher_size)
    pairs, hashes = bytearray(), bytearray()
    for cipher in _read(body, record.cipher_size, spend):
        pairs += seal.pairs_of(cipher)
        hashes += hashtree.hashes(cipher)
    listed = Listed(bytes(pairs), bytes(hashes))
    _check_listed(listed, record)
    return listed


def _check_listed(listed: Listed, record: Sealed) -> None:
    hashtree.verify(record.tree_root, listed.hashes, record.cipher_size)
    seal.verify(record.seal_root, listed.pairs, record.size)


def _check_size(body: Body, cipher_size: int) -> None:
    if body.size != cipher_size:
        raise IntegrityFault(f"the stored body has {body.size} bytes, not {cipher_size}")


def _read(body: Body, cipher_size: int, spend: Spend) -> Iterator[memoryview]:
    """The stored bytes from end to end, whole segments at a time; the memory is used again for the next."""
    buffer = memoryview(bytearray(min(_BATCH * CIPHER_SEGMENT, cipher_size)))
    for start in range(0, cipher_size, _BATCH * CIPHER_SEGMENT):
        cipher = buffer[: min(len(buffer), cipher_size - start)]
        spend(len(cipher))
        if body.pread_into(cipher, start) != len(cipher):
            raise IntegrityFault(f"the stored body ends before its byte {start + len(cipher)}")
        yield cipher


def _held(body: Body, hashes: bytes, cipher_size: int, spend: Spend) -> Iterator[memoryview]:
    """As `_read`; each segment has the hash that is listed for its place."""
    number = 0
    for cipher in _read(body, cipher_size, spend):
        for at in range(0, len(cipher), CIPHER_SEGMENT):
            hashtree.check_segment(number, cipher[at : at + CIPHER_SEGMENT], hashes)
            number += 1
        yield cipher
