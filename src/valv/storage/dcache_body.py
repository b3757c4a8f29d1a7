"""One body of a WebDAV store: read in ranges, written once and checked."""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from typing_extensions import Buffer

from valv.errors import Fault, FullFault, StorageFault, UnreachableFault
from valv.storage.dcache_door import ATTEMPTS, PASSING, Door, line_fault, pause, repeat
from valv.storage.dcache_line import REDIRECTS, Broken, Head, Line, for_origin, redirected

HELD: Final = 1 << 20
"""Bytes kept until the size is known, or a connection is worth it; a body no larger can be sent again."""
_BLOCK: Final = 1 << 18
_STREAMS: Final = 4


class _Stream:
    """An answer that is being read: `line` stands at the byte `at` of the body."""

    def __init__(self, line: Line, at: int) -> None:
        self.line = line
        self.at = at

    def read_into(self, target: memoryview) -> int:
        done = 0
        while done < len(target) and (count := self.line.read_into(target[done:])):
            done += count
            self.at += count
        return done


class DcacheBody:
    """`path` below the door's folder, of the size that the door told. What lies there is never another body.

    A read that goes on where another ended is served by one answer to the end of the body, any other by its own."""

    def __init__(self, door: Door, path: str, name: str, size: int) -> None:
        self._door = door
        self._path = path
        self._name = name
        self._size = size
        self._streams: list[_Stream] = []
        self._ends: deque[int] = deque(maxlen=16)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def size(self) -> int:
        return self._size

    def pread_into(self, target: Buffer, offset: int) -> int:
        view = memoryview(target).cast("B")
        view = view[: max(0, min(len(view), self.size - offset))]
        done, attempt, broken = 0, 0, ""
        while done < len(view):
            if attempt == ATTEMPTS:
                raise UnreachableFault(f"{self._name}: the store does not answer: {broken}")
            try:
                if attempt:
                    pause(attempt)
                done += self._read(view[done:], offset + done)
                attempt = 0
            except Broken as error:
                attempt, broken = attempt + 1, str(error)
        return done

    def close(self) -> None:
        with self._lock:
            streams, self._streams, self._closed = self._streams, [], True
        for stream in streams:
            stream.line.close()

    def _read(self, view: memoryview, offset: int) -> int:
        """At least one byte, or `Broken`."""
        stream = self._take(offset) or self._begin(offset, len(view))
        try:
            count = stream.read_into(view)
        except Broken:
            stream.line.close()
            if stream.at > offset:
                return stream.at - offset  # what came is right; the rest is asked for anew
            raise
        except BaseException:
            stream.line.close()
            raise
        self._give(stream)
        if not count:
            raise Broken("the answer is empty")
        return count

    def _take(self, offset: int) -> _Stream | None:
        with self._lock:
            for stream in self._streams:
                if stream.at == offset:
                    self._streams.remove(stream)
                    return stream
        return None

    def _give(self, stream: _Stream) -> None:
        spare: _Stream | None = stream
        with self._lock:
            self._ends.append(stream.at)
            if stream.line.left and not self._closed:
                self._streams.append(stream)
                spare = self._streams.pop(0) if len(self._streams) > _STREAMS else None
        if spare is not None:
            if spare.line.left:
                spare.line.close()
            else:
                self._door.give(spare.line)

    def _begin(self, offset: int, length: int) -> _Stream:
        """Ask for a range: `length` bytes, or all the rest where somebody reads on."""
        with self._lock:
            to_end = offset in self._ends
        last = self.size - 1 if to_end else offset + length - 1
        line, head = fetch(self._door, self._path, {"Range": f"bytes={offset}-{last}"})
        try:
            self._check(line, head, offset, last)
        except BaseException:
            line.close()
            raise
        return _Stream(line, offset)

    def _check(self, line: Line, head: Head, offset: int, last: int) -> None:
        """The answer must be this range of a body of this size; else another one has come under the name."""
        if head.status in PASSING:
            raise Broken(f"status {head.status}")
        if head.status not in (200, 206):
            raise line_fault(line, head, self._name)
        whole = head.status == 200 and offset == 0 and last == self.size - 1
        wanted = f"bytes {offset}-{last}/{self.size}"
        if not whole and (head.status != 206 or head.headers.get("content-range", "") != wanted):
            raise StorageFault(f"{self._name}: the store answers with another part, or of a body of another size")
        if line.left != last - offset + 1:
            raise StorageFault(f"{self._name}: the store answers with {line.left} bytes of {last - offset + 1}")


class DcacheWriter:
    """Sends one body to `path`, a temporary one; `settle` then gives it its name. After a fault nothing is left under
    the name. `drop` removes what lies at `path`."""

    def __init__(
        self, door: Door, path: str, name: str, settle: Callable[[int, str], None], drop: Callable[[], object]
    ) -> None:
        self._door = door
        self._path = path
        self._name = name
        self._settle = settle
        self._drop = drop
        self._held = bytearray()
        self._line: Line | None = None
        self._size = 0
        self._adler = zlib.adler32(b"")
        self._open = True

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        if not self._open:
            raise StorageFault(f"{self._name}: the writer has ended")
        if self._line is None and len(self._held) + len(view) <= HELD:
            self._held += view
            return
        with self._told():
            if self._line is None:
                self._line = begin_put(self._door, self._path, self._name, None)
            if len(self._held) + len(view) < _BLOCK:
                self._held += view
                return
            self._flush()
            self._chunk(view)

    def commit(self) -> None:
        if not self._open:
            raise StorageFault(f"{self._name}: the writer has ended")
        try:
            if self._line is None:
                with memoryview(bytes(self._held)) as whole:
                    self._count(whole)
                    put_whole(self._door, self._path, self._name, whole)
            else:
                with self._told():
                    self._flush()
                    self._line.send_end()
                    end_put(self._line, self._name)
            self._settle(self._size, f"{self._adler:08x}")
        except BaseException:
            self.abort()
            raise
        self._end()

    def abort(self) -> None:
        if not self._open:
            return
        self._end()
        with suppress(Fault):  # what stays is swept
            self._drop()

    def _end(self) -> None:
        self._open = False
        self._held = bytearray()
        if self._line is not None:
            self._line.close()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, bytearray()
            with memoryview(held) as view:
                self._chunk(view)

    def _chunk(self, view: memoryview) -> None:
        if view:
            assert self._line is not None
            self._line.send_chunk(view)
            self._count(view)

    def _count(self, view: memoryview) -> None:
        self._size += len(view)
        self._adler = zlib.adler32(view, self._adler)

    def _told(self) -> _Told:
        return _Told(self)

    def broken(self, error: Broken) -> Fault:
        """What a break while sending means: a server that refuses the rest says why before it hangs up."""
        assert self._line is not None
        try:
            head = self._line.answer()
        except Broken:
            return self._try_another(error)
        return line_fault(self._line, head, self._name)

    def _try_another(self, error: Broken) -> Fault:
        """XRootD hangs up without a word when its disk is full. So does a network that fails; but then a small body
        beside goes through."""
        path = f"{self._path}.try"
        try:
            put_whole(self._door, path, self._name, memoryview(bytes(_BLOCK)))
            self._door.remove(path)
        except Fault as fault:
            return fault
        return UnreachableFault(f"{self._name}: the store broke off: {error}")


class _Told:
    """Turns a break of the connection while sending into what the server says of it."""

    def __init__(self, writer: DcacheWriter) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Broken):
            raise self._writer.broken(error) from None


def fetch(door: Door, path: str, headers: dict[str, str]) -> tuple[Line, Head]:
    """GET, to the server that the door names. The connection is the caller's. Raises `Broken`."""
    line, head = _follow(door, "GET", path, headers, door.new_line, Line.answer)
    assert head is not None
    return line, head


def begin_put(door: Door, path: str, name: str, length: int | None) -> Line:
    """A connection on which the body may be sent, in chunks where its length is not known. Repeated while the door is
    away: nothing was sent yet. An empty body is sent, and answered."""
    framing = {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}
    if length != 0:  # XRootD never answers to the promise of nothing
        framing["Expect"] = "100-continue"

    def once() -> Line:
        step = Line.answer if length == 0 else Line.continues
        headers = {"Want-Digest": "adler32", **framing}
        line, head = _follow(door, "PUT", path, headers, lambda url: Line(url, door.context), step)
        if head is None or (length == 0 and head.status < 300):
            return line
        try:
            if head.status in PASSING:
                raise Broken(f"status {head.status}")
            raise line_fault(line, head, name)
        finally:
            line.close()

    return repeat(once, name)


def end_put(line: Line, name: str) -> None:
    """What the server says of the body it was sent. That it says yes is no proof: it is looked at afterwards."""
    head = line.answer()
    if head.status >= 300:
        raise line_fault(line, head, name)


def put_whole(door: Door, path: str, name: str, data: memoryview) -> None:
    """A small body, sent again where the connection breaks: nobody else writes to a temporary path. Raises `FullFault`
    where the server asks for it each time, and then hangs up: XRootD says nothing when its disk is full."""
    for attempt in range(ATTEMPTS):
        if attempt:
            pause(attempt)
        line = begin_put(door, path, name, len(data))
        try:
            if data:
                line.send_whole(data)
                end_put(line, name)
            return
        except Broken:
            continue
        finally:
            line.close()
    raise FullFault(f"{name}: the store takes no bytes", "its disks are full, or fail")


def _follow(
    door: Door,
    method: str,
    path: str,
    headers: dict[str, str],
    connect: Callable[[str], Line],
    step: Callable[[Line], Head | None],
) -> tuple[Line, Head | None]:
    """Send the head of a request to the door, then to where it sends on, until an answer is none of that."""
    first = url = door.url(path)
    sent = door.headers(**headers)
    for _ in range(REDIRECTS):
        line = connect(url)
        try:
            line.start(method, url, for_origin(sent, first, url))
            head = step(line)
            target = redirected(head, url) if head is not None else ""
        except BaseException:
            line.close()
            raise
        if not target:
            return line, head
        line.close()
        url = target
    raise StorageFault("the store sends from one server to the next")
