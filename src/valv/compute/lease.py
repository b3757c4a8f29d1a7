"""The lease on a socket: the mount asks, the worker answers. Each message is one line of JSON (`ports.lease`)."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from valv.errors import UnreachableFault
from valv.ports.lease import TERM, Beat, Lease

_LINE: Final = 1 << 24
_CONNECTIONS: Final = 1024
_CREDENTIALS: Final = struct.Struct("3i")
_IDLE: Final = 30.0


class LeaseClient:
    """Asks for the lease of one run. One connection, made when it is needed. For one thread."""

    def __init__(self, path: str | Path, grant_id: str, run_id: str, server_uid: int | None = None) -> None:
        """`server_uid`: whose answers count; None: anybody's."""
        self._path = str(path)
        self._grant_id = grant_id
        self._run_id = run_id
        self._server_uid = server_uid
        self._connection: socket.socket | None = None
        self._pending = b""
        self._told: dict[str, int] = {}

    def beat(self, reads: dict[str, int]) -> bool:
        """Tell what has been read and learn whether the permit stands.

        `reads`: plain bytes since the mount began, by file id; only what grew since the last answer is sent. Raises
        `UnreachableFault` where no answer comes within the term of a lease.
        """
        news = {file_id: count for file_id, count in reads.items() if self._told.get(file_id) != count}
        line = msgspec.json.encode(Beat(self._grant_id, self._run_id, news)) + b"\n"
        try:
            answer = msgspec.json.decode(self._ask(line), type=Lease)
        except (OSError, msgspec.DecodeError) as error:
            self.close()
            self._told.clear()  # whoever answers next may not know what the last one was told
            raise UnreachableFault(f"the permit cannot be confirmed: {error}") from None
        self._told.update(news)
        return answer.granted

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, line: bytes) -> bytes:
        if self._connection is None:
            self._pending = b""
            self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._connection.settimeout(TERM)
            self._connection.connect(self._path)
            if self._server_uid not in (None, peer_uid(self._connection)):
                raise ConnectionRefusedError("somebody else answers there")
        self._connection.sendall(line)
        while b"\n" not in self._pending:
            data = self._connection.recv(4096)
            if not data:
                raise ConnectionResetError("it closed the connection")
            self._pending += data
        answer, _, self._pending = self._pending.partition(b"\n")
        return answer


class LeaseServer:
    """Answers beats on the socket `path`, one thread for each mount.

    `decide(beat, uid)` says whether the run's permit stands; `uid` is the asking process's user, by which it tells a
    run's own mount from any other process. It is called from several threads and must answer well within the term. If
    it raises, the answer is no.
    """

    def __init__(self, path: str | Path, decide: Callable[[Beat, int], bool]) -> None:
        self._path = Path(path)
        self._decide = decide
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._path.chmod(0o666)  # mounts have users of their own; `decide` judges them
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._accept, name="leases", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """From now on nobody gets an answer."""
        self._closing.set()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> LeaseServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closing.is_set() or len(self._connections) >= _CONNECTIONS:
                    connection.close()
                    continue
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="lease", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                uid = peer_uid(connection)
                connection.settimeout(_IDLE)
                pending = b""
                while not self._closing.is_set():
                    data = connection.recv(1 << 16)
                    pending += data
                    if not data or len(pending) > _LINE:
                        return
                    while b"\n" in pending:
                        line, _, pending = pending.partition(b"\n")
                        granted = self._answer(line, uid)
                        connection.sendall(msgspec.json.encode(Lease(granted)) + b"\n")
        except OSError:
            return  # the mount has ended
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _answer(self, line: bytes, uid: int) -> bool:
        try:
            return self._decide(msgspec.json.decode(line, type=Beat), uid)
        except Exception:
            return False


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end of a UNIX socket (SO_PEERCRED, unix(7))."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])
