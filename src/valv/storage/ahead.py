"""Reading ahead in remote bodies: who reads on finds the next bytes on their way, or there already.

A read that goes on where another ended counts as reading on; from then on the pieces behind it are fetched, which get
larger the longer that lasts. Other reads cost what they cost without it. All bodies of a process share some memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Final

from valv.errors import Fault

LEAST: Final = 1 << 20
PIECE: Final = 16 << 20
"""Bytes of the first and of the largest piece: each costs the server the work of one request."""
AHEAD: Final = 2
"""Pieces that are fetched behind a read."""
BUDGET: Final = 8
"""Pieces in memory, of all bodies of the process: 128 MiB."""
_READERS: Final = 16

Fetch = Callable[[memoryview, int], object]
"""Fills a part of memory with the bytes from an offset, wholly, or raises a `Fault`."""

_room: Final = threading.Semaphore(BUDGET)
_spare: Final[list[memoryview]] = []
"""Memory of pieces that were read: the system takes its time to give new one."""
_fetching: Final = ThreadPoolExecutor(BUDGET, "read-ahead")


class ReadAhead:
    """In one body of `size` bytes, which `fetch` reads. Safe for several threads, each of which may read on by
    itself."""

    def __init__(self, fetch: Fetch, size: int) -> None:
        self._fetch = fetch
        self._size = size
        self._pieces: list[_Piece] = []
        self._runs: OrderedDict[int, int] = OrderedDict()  # where a read ended: how many bytes were read on till there
        self._mutex = threading.Lock()
        self._closed = False

    def read(self, view: memoryview, offset: int) -> None:
        """Fill `view`, which lies within the body. Raises what `fetch` raises, of a read of its own."""
        self._go_on(offset, offset + len(view))
        done = 0
        while done < len(view):
            at = offset + done
            piece, free = self._at(at)
            if piece is not None:
                done += self._take(piece, view[done:], at)
                continue
            count = min(len(view) - done, free)
            self._fetch(view[done : done + count], at)
            done += count

    def close(self) -> None:
        with self._mutex:
            self._closed = True
            while self._pieces:
                self._pieces.pop().free()

    def _at(self, offset: int) -> tuple[_Piece | None, int]:
        """The piece that has this byte, or how many bytes there are before the next one."""
        with self._mutex:
            for piece in self._pieces:
                if piece.start <= offset < piece.end:
                    return piece, 0
            behind = [piece.start for piece in self._pieces if piece.start > offset]
        return None, min(behind, default=self._size) - offset

    def _take(self, piece: _Piece, view: memoryview, offset: int) -> int:
        """Fill `view` from the piece; 0 where it is of no use: what is wrong shows when it is asked for again."""
        there = piece.there()
        with self._mutex:  # while its memory belongs to it
            if piece not in self._pieces:
                return 0
            count = min(len(view), piece.end - offset) if there else 0
            view[:count] = piece.memory[offset - piece.start : offset - piece.start + count]
            if not there or offset + count == piece.end:
                self._pieces.remove(piece)
                piece.free()
        return count

    def _go_on(self, start: int, end: int) -> None:
        """Have the pieces behind a read fetched, where somebody reads on."""
        with self._mutex:
            before = self._runs.pop(start, 0)
            self._runs[end] = before + end - start
            if len(self._runs) > _READERS:
                self._runs.popitem(last=False)
            if not before or self._closed:
                return
            length, at = max(LEAST, min(PIECE, before)), end
            for _ in range(AHEAD):
                there = next((piece for piece in self._pieces if piece.start <= at < piece.end), None)
                if there is not None:
                    at = there.end
                    continue
                upto = min([self._size, at + length, *(one.start for one in self._pieces if one.start > at)])
                if upto == at or not self._has_room(end):
                    return
                self._pieces.append(_Piece(self._fetch, at, upto))
                at = upto

    def _has_room(self, end: int) -> bool:
        """Room for one more piece: of this body's own where nobody reads on, or of what all bodies share."""
        if len(self._pieces) >= 2 * AHEAD:
            left = next((piece for piece in self._pieces if piece.end <= end), self._pieces[0])
            self._pieces.remove(left)
            left.free()
        return _room.acquire(blocking=False)


class _Piece:
    """The bytes from `start` to `end`, in `memory` once they are `there`. `free`, once, gives that to others."""

    def __init__(self, fetch: Fetch, start: int, end: int) -> None:
        self.start = start
        self.end = end
        try:
            self.memory = _spare.pop()
        except IndexError:
            self.memory = memoryview(bytearray(PIECE))
        self._future: Future[object] = _fetching.submit(fetch, self.memory[: end - start], start)

    def there(self) -> bool:
        """Waits for it; False where it could not be fetched."""
        try:
            self._future.result()
        except (Fault, CancelledError):
            return False
        return True

    def free(self) -> None:
        self._future.cancel()
        self._future.add_done_callback(self._return)

    def _return(self, _done: Future[object]) -> None:
        _spare.append(self.memory)
        _room.release()
