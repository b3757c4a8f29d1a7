"""Taking a file that is already Crypt4GH, as it is: nothing is decrypted on the way in, nothing re-encrypted.

Two steps. `Taker` splits the header from the body, streams the body into the store and computes its seal. Then, when
somebody with the key has opened the header, `check` decrypts every segment in memory, so that a file that cannot be
read, or not whole, is refused at intake and not years later.

A header with an edit list is refused when it is opened for reading (`valv.vault.reader.open_reader`): the seal binds
whole segments and every size, checksum and range in the node counts stored plain bytes, so a file that shows only parts
of its body would have two meanings.
"""

from __future__ import annotations

from typing import Final

import msgspec
from typing_extensions import Buffer

from valv.errors import FormatFault
from valv.formats.crypt4gh import CIPHER_SEGMENT, header_length, plain_size
from valv.ports.storage import BodyWriter
from valv.vault.reader import SealedReader
from valv.vault.sealing import BATCH, Digest, SealingWriter

_BATCH_CIPHER: Final = BATCH * CIPHER_SEGMENT
_CHECK: Final = 4 << 20


class Taken(msgspec.Struct, frozen=True):
    """A body that was taken. `size` is plain bytes, known from the length alone; `tree_root` is that of the
    hash tree over the stored bytes, header not counted."""

    header: bytes
    cipher_size: int
    size: int
    segments: int
    seal_root: bytes
    tree_root: bytes


class Taker:
    """Takes a Crypt4GH stream in pieces of any size. For one thread.

    Raises `FormatFault` where the stream is no Crypt4GH file, or ends in its header or in a segment's first 28 bytes,
    and storage faults. After a fault, call `abort`.
    """

    def __init__(self, writer: BodyWriter, seal_writer: BodyWriter) -> None:
        self._out = SealingWriter(writer, seal_writer)
        self._prefix = bytearray()
        self._header: bytes | None = None
        self._filled = 0
        self._cipher_size = 0

    def write(self, data: Buffer) -> None:
        if self._header is None:
            self._prefix += memoryview(data).cast("B")
            prefix = bytes(self._prefix)
            length = header_length(prefix)
            if length is None:
                return
            self._header, data = prefix[:length], prefix[length:]
            self._prefix.clear()
        self._write_body(memoryview(data).cast("B"))

    def finish(self) -> Taken:
        """Commit the sidecar and the body; they are durable when this returns."""
        if self._header is None:
            self.abort()
            raise FormatFault("the Crypt4GH file ends within its header", "send the whole file again")
        try:
            plain_size(self._cipher_size)
        except FormatFault:
            self.abort()
            raise
        if self._filled:
            self._out.put(self._filled)
        body = self._out.finish()
        return Taken(
            header=self._header,
            cipher_size=body.cipher_size,
            size=body.size,
            segments=body.segments,
            seal_root=body.seal_root,
            tree_root=body.tree_root,
        )

    def abort(self) -> None:
        self._out.abort()

    def _write_body(self, rest: memoryview) -> None:
        self._cipher_size += len(rest)
        while rest:
            buffer = self._out.buffer()
            count = min(len(rest), _BATCH_CIPHER - self._filled)
            buffer[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == _BATCH_CIPHER:
                self._out.put(_BATCH_CIPHER)
                self._filled = 0


def check(reader: SealedReader) -> bytes:
    """Read a stored file from end to end: SHA-256 of its plain bytes. Raises `IntegrityFault` naming the segment that
    does not hold."""
    digest = Digest()
    buffers = [memoryview(bytearray(min(_CHECK, reader.size))) for _ in range(2)]
    try:
        for turn, offset in enumerate(range(0, reader.size, _CHECK)):
            buffer = buffers[turn % 2]  # the other one is still being hashed
            digest.update(buffer[: reader.read_into(buffer, offset)])
        return digest.finish()
    finally:
        digest.close()
