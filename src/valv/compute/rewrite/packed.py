"""Plain and gzipped streams; what was gzipped is written as BGZF, the blocked gzip of SAM specification 4.1, which
every gzip reader can read and genomic tools can index."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from .names import Cannot

LONGEST = 64 << 20
"""Bytes of one row."""
_BLOCK = 0xFF00
"""Plain bytes of one block: with the worst compression it still fits in 64 KiB."""
_HEAD = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0"
_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
GZIP = b"\x1f\x8b"


class Peeked(io.RawIOBase):
    """A stream of which the beginning was read already."""

    def __init__(self, head: bytes, rest: BinaryIO | io.BufferedIOBase) -> None:
        super().__init__()
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        data = self._head or self._rest.read1(len(target))  # type: ignore[union-attr]
        count = min(len(data), len(target))
        target[:count] = data[:count]
        self._head = data[count:] if self._head else b""
        return count


def peek(raw: io.BufferedIOBase, size: int) -> tuple[bytes, io.BufferedReader]:
    """The first bytes, and the stream with them still in it."""
    head = b""
    while len(head) < size:
        more = raw.read1(size - len(head))
        if not more:
            break
        head += more
    return head, io.BufferedReader(Peeked(head, raw), 1 << 20)


def unpacked(source: io.BufferedReader) -> io.BufferedReader:
    """The plain bytes of a gzipped stream, of any number of members."""
    return io.BufferedReader(gzip.GzipFile(fileobj=source, mode="rb"), 1 << 20)


def rows(source: io.BufferedReader) -> Iterator[bytes]:
    """Lines with their ends. Raises `Cannot` for one that is longer than `LONGEST`."""
    while row := source.readline(LONGEST + 1):
        if len(row) > LONGEST:
            raise Cannot("long_row")
        yield row


class Plain:
    """Gathers small writes."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._held = bytearray()

    def write(self, data: bytes) -> None:
        self._held += data
        if len(self._held) >= 1 << 18:
            self._send(bytes(self._held))
            self._held.clear()

    def close(self) -> None:
        if self._held:
            self._send(bytes(self._held))


class Blocked:
    """The same, as BGZF."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._out = Plain(send)
        self._held = bytearray()

    def write(self, data: bytes) -> None:
        self._held += data
        while len(self._held) >= _BLOCK:
            self._put(bytes(self._held[:_BLOCK]))
            del self._held[:_BLOCK]

    def close(self) -> None:
        if self._held:
            self._put(bytes(self._held))
        self._out.write(_END)
        self._out.close()

    def _put(self, data: bytes) -> None:
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = packer.compress(data) + packer.flush()
        size = len(_HEAD) + 2 + len(body) + 8
        self._out.write(_HEAD + (size - 1).to_bytes(2, "little") + body)
        self._out.write(zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little"))
