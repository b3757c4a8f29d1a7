"""What a mount process tells the launcher: reports, one line of JSON each, over a socket pair."""

from __future__ import annotations

import socket
import threading
from typing import Final

import msgspec

from valv.errors import UnreachableFault

_LONGEST: Final = 1 << 24


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """`ready`: files can be read. `failed`: why not. `reads`: plain bytes by file id, those that grew. `granted`: the
    last answer about the permit; None: there was none."""

    ready: bool = False
    failed: str = ""
    reads: dict[str, int] = {}
    granted: bool | None = None


class Reporter:
    """The mount process's end. For several threads."""

    def __init__(self, descriptor: int) -> None:
        self._connection = socket.socket(fileno=descriptor)
        self._lock = threading.Lock()
        self._told: dict[str, int] = {}

    def ready(self) -> None:
        self._send(Report(ready=True))

    def failed(self, why: str) -> None:
        self._send(Report(failed=why))

    def reads(self, reads: dict[str, int], granted: bool | None) -> None:
        """Raises `UnreachableFault` where the launcher is gone."""
        with self._lock:
            news = {file_id: count for file_id, count in reads.items() if self._told.get(file_id) != count}
            self._told.update(news)
        self._send(Report(reads=news, granted=granted))

    def _send(self, report: Report) -> None:
        try:
            with self._lock:
                self._connection.sendall(msgspec.json.encode(report) + b"\n")
        except OSError:
            raise UnreachableFault("the launcher is gone") from None


class Reports:
    """The launcher's end; never waits. `over`: the mount process has ended, or said something that is no report."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._pending = b""
        self.over = False

    def fileno(self) -> int:
        return self._connection.fileno()

    def take(self) -> list[Report]:
        """Reports that have arrived since the last call."""
        try:
            while not self.over:
                data = self._connection.recv(1 << 16)
                self._pending += data
                self.over = not data or len(self._pending) > _LONGEST
        except BlockingIOError:
            pass
        except OSError:
            self.over = True
        *lines, self._pending = self._pending.split(b"\n")
        try:
            return [msgspec.json.decode(line, type=Report) for line in lines]
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.over = True
            return []

    def close(self) -> None:
        self._connection.close()
