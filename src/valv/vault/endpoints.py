"""Where bulk encryption reads from and writes to: memory, files at any place, and streams in their order."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import BinaryIO, Final, Protocol

from typing_extensions import Buffer

_PEEK: Final = 1 << 16
_PIPE: Final = 1 << 20
"""What a pipe is asked to hold, the most that Linux gives anybody: its two ends then take turns seldom."""


class Source(Protocol):
    """`size`: bytes from the start, None where only the end will tell. `in_order`: `fetch` must be called with growing
    places, one call at a time; else from any thread."""

    size: int | None
    in_order: bool

    def fetch(self, buffer: memoryview, at: int) -> memoryview:
        """The bytes from `at`, as many as `buffer` holds, fewer only at the end. They may lie in `buffer` or not."""

    def head(self, count: int) -> bytes:
        """At least the first `count` bytes, fewer only at the end; nothing is taken away by it."""

    def drop(self, count: int) -> None:
        """Let the source begin `count` bytes later. Before the first `fetch`, and within what `head` has shown."""


class Sink(Protocol):
    """`in_order`: `put` must be called with places that follow each other, one call at a time."""

    in_order: bool

    def direct(self, at: int, length: int, /) -> memoryview | None:
        """The memory that `length` bytes at `at` may be written to straight away; None: give them to `put`."""

    def put(self, pieces: Sequence[memoryview], at: int, /) -> None:
        """Write the pieces one after another from `at`."""


class Memory:
    """A buffer to read from or to write to."""

    in_order = False

    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data).cast("B")
        self.size: int | None = len(self._view)

    def fetch(self, buffer: memoryview, at: int) -> memoryview:
        return self._view[at : at + len(buffer)]

    def head(self, count: int) -> bytes:
        return bytes(self._view[:count])

    def drop(self, count: int) -> None:
        self._view = self._view[count:]
        self.size = len(self._view)

    def direct(self, at: int, length: int, /) -> memoryview | None:
        return self._view[at : at + length]

    def put(self, pieces: Sequence[memoryview], at: int, /) -> None:
        for piece in pieces:
            self._view[at : at + len(piece)] = piece
            at += len(piece)


class FileSource:
    """A regular file, from `base` to the end that it has now."""

    in_order = False

    def __init__(self, descriptor: int, base: int = 0) -> None:
        self._descriptor = descriptor
        self._base = base
        self.size: int | None = max(0, os.fstat(descriptor).st_size - base)

    def fetch(self, buffer: memoryview, at: int) -> memoryview:
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done:]], self._base + at + done)
            if count == 0:
                break
            done += count
        return buffer[:done]

    def head(self, count: int) -> bytes:
        return bytes(self.fetch(memoryview(bytearray(max(count, _PEEK))), 0))

    def drop(self, count: int) -> None:
        self._base += count
        self.size = max(0, (self.size or 0) - count)


class StreamSource:
    """What can only be read once: a pipe, a socket, a terminal, or a Python stream."""

    in_order = True

    def __init__(self, stream: BinaryIO | int) -> None:
        _widen(stream)
        self._stream = stream
        self._ahead = b""
        self._at = 0
        self.size: int | None = None

    def fetch(self, buffer: memoryview, at: int) -> memoryview:
        while self._at < at:
            skipped = self._read(buffer[: at - self._at])
            if skipped == 0:
                return buffer[:0]
        done = 0
        while done < len(buffer):
            count = self._read(buffer[done:])
            if count == 0:
                break
            done += count
        return buffer[:done]

    def head(self, count: int) -> bytes:
        while len(self._ahead) < count:
            room = memoryview(bytearray(_PEEK))
            more = self._readinto(room)
            if more == 0:
                break
            self._ahead += room[:more]
        return self._ahead

    def drop(self, count: int) -> None:
        self._ahead = self._ahead[count:]

    def _read(self, room: memoryview) -> int:
        if self._ahead:
            count = min(len(room), len(self._ahead))
            room[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
        else:
            count = self._readinto(room)
        self._at += count
        return count

    def _readinto(self, room: memoryview) -> int:
        if isinstance(self._stream, int):
            return os.readv(self._stream, [room])
        data = self._stream.read(len(room))
        room[: len(data)] = data
        return len(data)


class FileSink:
    """A regular file, written from `base` on at any place."""

    in_order = False

    def __init__(self, descriptor: int, base: int = 0) -> None:
        self._descriptor = descriptor
        self._base = base

    def direct(self, _at: int, _length: int, /) -> memoryview | None:
        return None

    def put(self, pieces: Sequence[memoryview], at: int, /) -> None:
        at += self._base
        for piece in pieces:
            while piece:
                count = os.pwritev(self._descriptor, [piece], at)
                piece, at = piece[count:], at + count

    def leave_after(self, count: int) -> None:
        """Set the file's own position behind the first `count` bytes, where the next program goes on."""
        os.lseek(self._descriptor, self._base + count, os.SEEK_SET)


class StreamSink:
    """What can only be written in order: a pipe, a socket, a terminal, a file opened to append, a Python stream."""

    in_order = True

    def __init__(self, stream: BinaryIO | int) -> None:
        _widen(stream)
        self._stream = stream

    def direct(self, _at: int, _length: int, /) -> memoryview | None:
        return None

    def put(self, pieces: Sequence[memoryview], _at: int, /) -> None:
        for piece in pieces:
            if isinstance(self._stream, int):
                while piece:
                    piece = piece[os.writev(self._stream, [piece]) :]
            else:
                self._stream.write(piece)


class Digesting:
    """A sink that also computes the SHA-256 of what passes, and counts it."""

    in_order = True

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._sha256 = hashlib.sha256()

    def direct(self, _at: int, _length: int, /) -> memoryview | None:
        return None

    def put(self, pieces: Sequence[memoryview], at: int, /) -> None:
        for piece in pieces:
            self._sha256.update(piece)
        self._sink.put(pieces, at)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def source_of(stream: BinaryIO) -> Source:
    """The fastest way to read `stream`, of which nothing was read yet where it is not a regular file."""
    descriptor = _descriptor(stream)
    if descriptor is None:
        return StreamSource(stream)
    found = os.fstat(descriptor)
    # A file of /proc has size 0 and content: what seems empty is read as a stream.
    if stat.S_ISREG(found.st_mode) and found.st_size:
        return FileSource(descriptor, stream.tell())
    return StreamSource(descriptor)


def sink_of(stream: BinaryIO) -> Sink:
    """The fastest way to write to `stream` from its current place. A file's own position stays where it is."""
    stream.flush()
    descriptor = _descriptor(stream)
    if descriptor is None:
        return StreamSink(stream)
    appends = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
    if stat.S_ISREG(os.fstat(descriptor).st_mode) and not appends:
        return FileSink(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR))
    return StreamSink(descriptor)


def _widen(stream: BinaryIO | int) -> None:
    """Where it is a pipe, and the system lets it grow."""
    if isinstance(stream, int):
        with suppress(OSError):
            fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, _PIPE)


def _descriptor(stream: BinaryIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError):
        return None
