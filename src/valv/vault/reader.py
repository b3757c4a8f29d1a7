"""The one decrypting reader. Mount, download, htsget and intake all read through it.

No byte leaves it that was not checked: against the seal (order and number of segments) and against the segment's tag;
where somebody outside may know the data key, against the hash tree too. What does not hold is read from another copy,
where there is one (`valv.vault.copies`), the seal's sidecar as well as the body.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from typing_extensions import Buffer

from valv.errors import Fault, FormatFault, InputFault, IntegrityFault
from valv.formats import hashtree, seal
from valv.formats.crypt4gh import (
    CIPHER_SEGMENT,
    NONCE,
    OVERHEAD,
    SEGMENT,
    TAG,
    cipher_size,
    open_header,
    segments,
)
from valv.formats.seal import PAIR
from valv.ports.storage import Body, Copied
from valv.vault.copies import among, holding
from valv.vault.fixity import read_sidecar

_BATCH: Final = 16
"""Segments fetched at a time: the 1 MiB that the kernel asks a mount for at most."""
_CHUNK: Final = 4 << 20


class _Scratch(threading.local):
    """Each thread's own buffers, kept from read to read."""

    def __init__(self) -> None:
        self.cipher = memoryview(bytearray(_BATCH * CIPHER_SEGMENT))
        self.plain = memoryview(bytearray(SEGMENT))


_scratch: Final = _Scratch()


class SealedReader:
    """Reads one stored file. Safe for several threads at once; takes over `body`.

    `pairs`: of all segments (28 bytes each, held in memory); `seal_root` and `size` (plain bytes) are from the record;
    `data_keys`: those of the header. `hashes`: of all segments, already held against the hash tree's root; each segment
    that is read must then have its own. Raises `IntegrityFault` where pairs or length are not those sealed.
    """

    def __init__(
        self,
        body: Body,
        pairs: bytes,
        seal_root: bytes,
        size: int,
        data_keys: Sequence[bytes],
        hashes: bytes | None = None,
    ) -> None:
        seal.verify(seal_root, pairs, size)
        _check_size(body, size)
        self._body = body
        self._copied = body if isinstance(body, Copied) else None
        self._cipher_size = cipher_size(size)
        self._pairs = memoryview(pairs)
        self._hashes = hashes
        self._size = size
        self._aeads = [ChaCha20Poly1305(key) for key in data_keys]

    @property
    def size(self) -> int:
        """Plain bytes."""
        return self._size

    def read_into(self, target: Buffer, offset: int) -> int:
        """Fill `target` with plain bytes from `offset`; returns how many, short only at the end of the file.

        Raises `IntegrityFault` naming the segment that does not hold; `target` is then zeroed as far as it was used.
        """
        if offset < 0:
            raise InputFault("a read cannot begin before the file")
        view = memoryview(target).cast("B")
        length = max(0, min(len(view), self._size - offset))
        done = 0
        try:
            while done < length:
                done += self._read_some(view[done:length], offset + done)
        except Fault:
            view[:length] = bytes(length)
            raise
        return length

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` plain bytes from `offset`. Faults as `read_into`."""
        target = bytearray(max(0, min(size, self._size - offset)))
        self.read_into(target, offset)
        return bytes(target)

    def chunks(self, offset: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The plain bytes from `offset` up to `end` (the file's end if None) in pieces of 4 MiB."""
        end = self._size if end is None else min(end, self._size)
        for start in range(offset, end, _CHUNK):
            yield self.read(start, min(_CHUNK, end - start))

    def close(self) -> None:
        """Not while a read goes on."""
        self._body.close()

    def _read_some(self, view: memoryview, offset: int) -> int:
        if self._copied is not None:
            return among(self._copied, lambda copy: self._read_batch(copy, view, offset))
        return self._read_batch(self._body, view, offset)

    def _read_batch(self, body: Body, view: memoryview, offset: int) -> int:
        """At most `_BATCH` segments' worth of `view`, which lies within the file; returns the bytes filled."""
        first = offset // SEGMENT
        last = min((offset + len(view) - 1) // SEGMENT, first + _BATCH - 1)
        start = first * CIPHER_SEGMENT
        cipher = _scratch.cipher[: min((last + 1) * CIPHER_SEGMENT, self._cipher_size) - start]
        if body.pread_into(cipher, start) != len(cipher):
            raise IntegrityFault(f"the stored body ends within segments {first} to {last}")
        done = 0
        for number in range(first, last + 1):
            at = (number - first) * CIPHER_SEGMENT
            sealed = cipher[at : at + CIPHER_SEGMENT]
            length = len(sealed) - OVERHEAD
            skip = offset + done - number * SEGMENT  # beyond 0 only where the read begins within a segment
            count = min(length - skip, len(view) - done)
            if count == length:
                self._open(number, sealed, view[done : done + count])
            else:
                plain = _scratch.plain[:length]
                self._open(number, sealed, plain)
                view[done : done + count] = plain[skip : skip + count]
            done += count
        return done

    def _open(self, number: int, sealed: memoryview, plain: memoryview) -> None:
        """Decrypt segment `number` into `plain`, or fault."""
        pair = self._pairs[PAIR * number : PAIR * (number + 1)]
        nonce = bytes(sealed[:NONCE])
        if pair[:NONCE] != nonce or pair[NONCE:] != sealed[-TAG:]:
            raise IntegrityFault(f"segment {number} is not the one that was sealed at this place")
        if self._hashes is not None:
            hashtree.check_segment(number, sealed, self._hashes)
        for aead in self._aeads:
            try:
                aead.decrypt_into(nonce, sealed[NONCE:], None, plain)
                return
            except InvalidTag:
                continue
        raise IntegrityFault(f"segment {number} does not decrypt: it was altered, or the data key is another file's")


def open_reader(
    open_body: Callable[[str], Body],
    name: str,
    header: bytes,
    private_key: bytes,
    *,
    size: int,
    seal_root: bytes,
    tree_root: bytes = b"",
) -> SealedReader:
    """A reader for the body `name` and its sidecar in a store.

    `open_body` is the store's `open`; `header` must open with `private_key` (raw). `tree_root`: given where somebody
    outside may know the data key; each segment that is read is then held against the hash tree. Raises `KeyFault` where
    the header does not open, `FormatFault` where it has an edit list, `MissingFault` and storage faults,
    `IntegrityFault` as `SealedReader`.
    """
    opened = open_header(header, [private_key])
    if opened.edit_list is not None:
        raise FormatFault(
            "the Crypt4GH header has an edit list, which shows only parts of the file",
            "decrypt the file and encrypt the part that is meant as a file of its own",
        )
    return open_with_keys(open_body, name, opened.data_keys, size=size, seal_root=seal_root, tree_root=tree_root)


def open_with_keys(
    open_body: Callable[[str], Body],
    name: str,
    data_keys: Sequence[bytes],
    *,
    size: int,
    seal_root: bytes,
    tree_root: bytes = b"",
) -> SealedReader:
    """As `open_reader`, with the data keys of a header that is already open."""
    count = segments(size)

    def sealed(sidecar: Body) -> SealedReader:
        pairs, hashes = read_sidecar(sidecar, count)
        if tree_root:
            hashtree.verify(tree_root, hashes, cipher_size(size))
        return SealedReader(body, pairs, seal_root, size, data_keys, hashes if tree_root else None)

    sidecar = open_body(seal.sidecar(name))
    try:
        body = open_body(name)
        try:
            _check_size(body, size)  # so that what is wrong then is wrong with the sidecar
            return holding(sidecar, sealed)
        except Fault:
            body.close()
            raise
    finally:
        sidecar.close()


def _check_size(body: Body, size: int) -> None:
    """Of `size` plain bytes. Leaves a copy that has it before those that do not."""

    def check(copy: Body) -> None:
        if copy.size != cipher_size(size):
            raise IntegrityFault(f"the stored body has {copy.size} bytes, not {cipher_size(size)}")

    holding(body, check)
