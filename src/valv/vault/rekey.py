"""A stored body encrypted anew: the same plain bytes under a data key that nobody knew, with a seal and a hash tree of
its own, beside the old body, which stays as it is.

No segment is taken over that was not checked: against the old seal, where `tree_root` is given against the old hash
tree, and by its own tag. The old roots are held against what the sidecar said when all of it was read, so that nothing
of the sidecar need be kept; until then nothing is committed. Workers take batches in turn and write in order. A plain
segment lies only in its worker's one buffer, from where it is encrypted while the processor's cache still holds it.
Memory does not grow with the file.

Where there are copies of the old body, what does not hold is read from another one. A sidecar of which there are copies
is read once more before, so that it is one that holds.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from valv.errors import Fault, FormatFault, IntegrityFault
from valv.formats import hashtree, seal
from valv.formats.crypt4gh import (
    CIPHER_SEGMENT,
    KEY,
    NONCE,
    OVERHEAD,
    SEGMENT,
    TAG,
    build_header,
    cipher_size,
    generate_keypair,
    open_header,
    segments,
)
from valv.formats.hashtree import HASH, TreeBuilder
from valv.formats.seal import LEAF_PAIRS, PAIR, SealBuilder, sidecar, sidecar_size
from valv.ports.compute import DAMAGE, MountedFile, Rekeyed
from valv.ports.storage import Body, BodyWriter, Copied, Storage
from valv.vault.bulk import cores
from valv.vault.copies import among, holding

BATCH: Final = 16
"""Segments that a worker takes at a time: few enough that they stay in the cache between reading and writing. A group
of the sidecar is a whole number of batches."""


class Facts(msgspec.Struct, frozen=True):
    """What a record says of a body. `size`: plain bytes; `seal_root`, `tree_root`: 32 bytes each, `tree_root` empty
    where the body need not be held against it."""

    size: int
    seal_root: bytes
    tree_root: bytes = b""


def rekey_each(
    storage: Storage,
    files: Sequence[tuple[MountedFile, str]],
    reseal: Callable[[MountedFile, bytes], bytes],
    *,
    public_key: bytes,
) -> Generator[Rekeyed | Fault, None, None]:
    """`rekey` for each file and the name of its new body, in order; where the file itself is at fault (`DAMAGE`), the
    fault is its answer. `reseal(file, public)` gives a file's header for a public key that was made for this call. It
    is asked for all of them first, so that leave to ask need not last longer than that. Other faults are raised."""
    keys = generate_keypair()
    headers: list[bytes | Fault] = []
    for file, _ in files:
        try:
            headers.append(reseal(file, keys.public))
        except DAMAGE as fault:
            headers.append(fault)
    for (file, body), header in zip(files, headers, strict=True):
        if isinstance(header, Fault):
            yield header
            continue
        made: Rekeyed | Fault
        try:
            made = rekey(storage, file, header, keys.private, public_key=public_key, body=body)
        except DAMAGE as fault:
            made = fault
        yield made


def rekey(
    storage: Storage, file: MountedFile, header: bytes, private_key: bytes, *, public_key: bytes, body: str
) -> Rekeyed:
    """Encrypt a stored file anew, into the same store under the name `body` and its sidecar.

    `header` (in place of the file's own) must open with `private_key`; the new header is for `public_key`, both raw.
    What was written is looked at again: its size, its whole sidecar, its first and last segment. Durable when this
    returns. After a fault nothing that this call wrote is left. Raises `KeyFault` where the header does not open,
    `FormatFault` where it has an edit list, `InputFault` for a key or name that cannot be used, `IntegrityFault` where
    the old body is not the one that was stored, `MissingFault` and storage faults.
    """
    opened = open_header(header, [private_key])
    if opened.edit_list is not None:
        raise FormatFault("the Crypt4GH header has an edit list, which shows only parts of the file")
    data_key = secrets.token_bytes(KEY)
    new_header = build_header(data_key, [public_key])
    facts = Facts(file.size, file.seal_root, file.tree_root)
    writers: list[BodyWriter] = []
    committed: list[str] = []
    try:
        # In this order also committed: a body that is there has its sidecar.
        seal_writer, writer = (_add(writers, storage.writer(name)) for name in (sidecar(body), body))
        with _Opened(storage, file.body) as old:
            made = reencrypt(old.body, old.sidecar, facts, opened.data_keys, writer, seal_writer, data_key)
        for name, one in ((sidecar(body), seal_writer), (body, writer)):
            one.commit()
            committed.append(name)
        _look_back(storage, body, made, data_key)
    except BaseException:
        for one in writers:
            one.abort()
        for name in committed:
            with suppress(Fault):
                storage.delete(name)
        raise
    return Rekeyed(new_header, cipher_size(made.size), segments(made.size), made.seal_root, made.tree_root)


def reencrypt(
    body: Body,
    seal_body: Body,
    facts: Facts,
    data_keys: Sequence[bytes],
    writer: BodyWriter,
    seal_writer: BodyWriter,
    data_key: bytes,
    *,
    workers: int | None = None,
) -> Facts:
    """Write what `body` and its sidecar `seal_body` hold, encrypted under `data_key`; commits and closes nothing.

    `data_keys`: any of which may have sealed a segment of `body`. Returns what the record of the new body shall say.
    Raises `IntegrityFault` naming the earliest segment that does not hold, and storage faults; what was written is then
    void.
    """
    holding(body, lambda copy: _check_size(copy, facts))
    if isinstance(seal_body, Copied):
        holding(seal_body, lambda copy: _Listed(copy, facts).check_all())
    listed = _Listed(seal_body, facts)
    made = _Made(writer, seal_writer)
    crew = _Crew(body, facts.size, listed, made, held=bool(facts.tree_root))
    most = max(1, -(-segments(facts.size) // BATCH))
    crew.run([_Keys(data_keys, data_key) for _ in range(min(workers or cores(), most))])
    listed.check()
    return made.finish(facts.size)


def _check_size(body: Body, facts: Facts) -> None:
    if body.size != cipher_size(facts.size):
        raise IntegrityFault(f"the stored body has {body.size} bytes, not {cipher_size(facts.size)}")


def _add(writers: list[BodyWriter], writer: BodyWriter) -> BodyWriter:
    writers.append(writer)
    return writer


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


class _Batch(msgspec.Struct, frozen=True):
    """Segments from number `first` on, and what the sidecar lists for them."""

    number: int
    first: int
    pairs: bytes
    hashes: bytes

    @property
    def last(self) -> int:
        return self.first + len(self.pairs) // PAIR - 1


class _Listed:
    """What a sidecar lists, batch by batch; once all were taken, `check` holds it against the record."""

    def __init__(self, seal_body: Body, facts: Facts) -> None:
        self._count = segments(facts.size)
        if seal_body.size != sidecar_size(self._count):
            raise IntegrityFault(f"the seal has {seal_body.size} bytes, not {sidecar_size(self._count)}")
        self._seal_body = seal_body
        self._facts = facts
        self._seal = SealBuilder()
        self._tree = TreeBuilder()

    def batches(self) -> Iterator[_Batch]:
        for start in range(0, self._count, LEAF_PAIRS):
            group = bytearray(sidecar_size(min(LEAF_PAIRS, self._count - start)))
            if self._seal_body.pread_into(group, sidecar_size(start)) != len(group):
                raise IntegrityFault("the seal is truncated")
            pairs, hashes = seal.split(bytes(group))
            self._seal.add(pairs)
            self._tree.add(hashes)
            for low in range(0, len(pairs) // PAIR, BATCH):
                high = low + BATCH
                first = start + low
                yield _Batch(first // BATCH, first, pairs[PAIR * low : PAIR * high], hashes[HASH * low : HASH * high])

    def check_all(self) -> None:
        for _ in self.batches():
            pass
        self.check()

    def check(self) -> None:
        facts = self._facts
        if not hmac.compare_digest(self._seal.finish(facts.size), facts.seal_root):
            raise IntegrityFault("the seal's list of segments is not the one that was sealed")
        found = self._tree.finish(cipher_size(facts.size))
        if facts.tree_root and not hmac.compare_digest(found, facts.tree_root):
            raise IntegrityFault("the hash tree's list of segments is not the one that was made at intake")


class _Made:
    """The new body, written in order by one thread at a time."""

    def __init__(self, writer: BodyWriter, seal_writer: BodyWriter) -> None:
        self._writer = writer
        self._seal_writer = seal_writer
        self._seal = SealBuilder()
        self._tree = TreeBuilder()
        self._pairs = bytearray()
        self._hashes = bytearray()

    def add(self, cipher: memoryview, hashes: bytes) -> None:
        self._writer.write(cipher)
        self._pairs += seal.pairs_of(cipher)
        self._hashes += hashes
        if len(self._pairs) == PAIR * LEAF_PAIRS:
            self._end_group()

    def finish(self, size: int) -> Facts:
        if self._pairs:
            self._end_group()
        return Facts(size, self._seal.finish(size), self._tree.finish(cipher_size(size)))

    def _end_group(self) -> None:
        pairs, hashes = bytes(self._pairs), bytes(self._hashes)
        self._seal.add(pairs)
        self._tree.add(hashes)
        self._seal_writer.write(pairs + hashes)
        self._pairs.clear()
        self._hashes.clear()


class _Keys:
    """The ciphers of one worker, and its one buffer of plain bytes."""

    def __init__(self, data_keys: Sequence[bytes], data_key: bytes | None) -> None:
        self._openers = [ChaCha20Poly1305(key).decrypt_into for key in data_keys]
        self._seal = ChaCha20Poly1305(data_key).encrypt_into if data_key is not None else None
        self._plain = memoryview(bytearray(SEGMENT))

    def take(self, batch: _Batch, number: int, sealed: memoryview, *, held: bool) -> memoryview:
        """The plain bytes of segment `number`, good until the next call. `held`: against its hash, too."""
        at = number - batch.first
        nonce = bytes(sealed[:NONCE])
        if batch.pairs[PAIR * at : PAIR * (at + 1)] != nonce + bytes(sealed[-TAG:]):
            raise IntegrityFault(f"segment {number} is not the one that was sealed at this place")
        if held and batch.hashes[HASH * at : HASH * (at + 1)] != hashtree.hashes(sealed):
            raise IntegrityFault(f"segment {number} is not, byte for byte, the one that was stored at this place")
        plain = self._plain[: len(sealed) - OVERHEAD]
        for turn, opener in enumerate(self._openers):
            try:
                opener(nonce, sealed[NONCE:], None, plain)
            except InvalidTag:
                continue
            if turn:  # the next segment most likely has the same key
                self._openers.insert(0, self._openers.pop(turn))
            return plain
        raise IntegrityFault(f"segment {number} does not decrypt: it was altered, or the data key is another file's")

    def put(self, nonce: bytes, plain: memoryview, sealed: memoryview) -> None:
        assert self._seal is not None
        sealed[:NONCE] = nonce
        self._seal(nonce, plain, None, sealed[NONCE:])

    def wipe(self) -> None:
        self._plain[:] = bytes(SEGMENT)


class _Crew:
    """Workers on one body. After a fault none begins a new batch, and the fault of the earliest batch is raised."""

    def __init__(self, body: Body, size: int, listed: _Listed, made: _Made, *, held: bool) -> None:
        self._body = body
        self._copied = body if isinstance(body, Copied) else None
        self._size = cipher_size(size)
        self._batches = listed.batches()
        self._made = made
        self._held = held
        self._taking = threading.Lock()
        self._turn = threading.Condition()
        self._next = 0
        self._failures: list[tuple[int, BaseException]] = []

    def run(self, crew: Sequence[_Keys]) -> None:
        if len(crew) == 1:
            self._work(crew[0])
        else:
            threads = [threading.Thread(target=self._work, args=(keys,), daemon=True) for keys in crew]
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    thread.join()
            except BaseException as failure:  # Ctrl-C
                self._fail(-1, failure)
                for thread in threads:
                    thread.join()
        if self._failures:
            raise min(self._failures, key=lambda failure: failure[0])[1]

    def _work(self, keys: _Keys) -> None:
        number = -1
        try:
            room = min(BATCH * CIPHER_SEGMENT, self._size)  # making more takes longer than a small file's work
            read, made = (memoryview(bytearray(room)) for _ in range(2))
            while (batch := self._take()) is not None:
                number = batch.number
                self._finish(batch, *self._encrypt(batch, keys, read, made))
        except BaseException as failure:
            self._fail(number, failure)
        finally:
            keys.wipe()

    def _take(self) -> _Batch | None:
        with self._taking:
            return None if self._failures else next(self._batches, None)

    def _encrypt(self, batch: _Batch, keys: _Keys, read: memoryview, made: memoryview) -> tuple[memoryview, bytes]:
        """The new segments of a batch, and their hashes."""
        if self._copied is not None:
            return among(self._copied, lambda copy: self._encrypt_copy(copy, batch, keys, read, made))
        return self._encrypt_copy(self._body, batch, keys, read, made)

    def _encrypt_copy(
        self, body: Body, batch: _Batch, keys: _Keys, read: memoryview, made: memoryview
    ) -> tuple[memoryview, bytes]:
        old = _read(body, self._size, batch.first, batch.last, read)
        new = made[: len(old)]
        nonces = secrets.token_bytes(NONCE * BATCH)
        hashes = []
        for turn, at in enumerate(range(0, len(old), CIPHER_SEGMENT)):
            plain = keys.take(batch, batch.first + turn, old[at : at + CIPHER_SEGMENT], held=self._held)
            sealed = new[at : at + CIPHER_SEGMENT]
            keys.put(nonces[NONCE * turn : NONCE * (turn + 1)], plain, sealed)
            hashes.append(hashtree.hashes(sealed))
        return new, b"".join(hashes)

    def _finish(self, batch: _Batch, cipher: memoryview, hashes: bytes) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._next == batch.number or self._failures)
            if self._failures:
                return
        self._made.add(cipher, hashes)  # nobody else's turn comes before `_next` is raised
        with self._turn:
            self._next += 1
            self._turn.notify_all()

    def _fail(self, number: int, failure: BaseException) -> None:
        with self._turn:
            self._failures.append((number, failure))
            self._turn.notify_all()


def _read(body: Body, size: int, first: int, last: int, buffer: memoryview) -> memoryview:
    """The stored segments from `first` to `last`, both included, of a body of `size` stored bytes."""
    start = first * CIPHER_SEGMENT
    found = buffer[: min((last + 1) * CIPHER_SEGMENT, size) - start]
    if body.pread_into(found, start) != len(found):
        raise IntegrityFault(f"the stored body ends within segments {first} to {last}")
    return found


def _look_back(storage: Storage, name: str, facts: Facts, data_key: bytes) -> None:
    """Raises `IntegrityFault` where the store does not give back what was written: the sizes, the whole sidecar, the
    first and the last segment, which hold what was true of every one when it was made."""
    keys = _Keys([data_key], None)
    buffer = memoryview(bytearray(CIPHER_SEGMENT))
    last = segments(facts.size) - 1
    with _Opened(storage, name) as new:
        if new.body.size != cipher_size(facts.size):
            raise IntegrityFault(f"the store kept {new.body.size} bytes of a body of {cipher_size(facts.size)}")
        listed = _Listed(new.sidecar, facts)
        for batch in listed.batches():
            for number in {0, last} & set(range(batch.first, batch.last + 1)):
                keys.take(batch, number, _read(new.body, new.body.size, number, number, buffer), held=True)
        listed.check()
    keys.wipe()
