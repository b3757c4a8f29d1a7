"""Stores that a confined process reaches through the worker: the client's side of `bodies.sock`."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from typing_extensions import Buffer

from valv.compute import bodies_wire as wire
from valv.compute.lease import peer_uid
from valv.errors import Fault, InputFault, MissingFault, StorageFault, UnreachableFault
from valv.ports.storage import Body, BodyWriter, Place, Usage

PATIENCE: Final = 120.0
"""Seconds for one answer: a store may try several times, or be slow."""
RESTART: Final = 5.0
"""Seconds for which a worker that is being started again is waited for."""
HINT: Final = 2.0
"""Seconds for a hint to arrive."""
_PAUSE: Final = 0.1
_READERS: Final = 6
"""Most connections that read at once; more threads wait."""


class Client:
    """The worker's bodies, for one process. Safe for several threads. `server_uid`: whose answers count."""

    def __init__(self, path: str | Path, server_uid: int | None = None) -> None:
        self._path = str(path)
        self._server_uid = server_uid
        self._idle: list[socket.socket] = []
        self._room = threading.BoundedSemaphore(_READERS)
        self._mutex = threading.Lock()
        self._written: dict[tuple[str, str], _Writing] = {}
        self._resting: list[_Writing] = []

    def store(self, name: str, place: Place) -> RemoteStorage:
        return RemoteStorage(self, name, place)

    def suspect(self, name: str, store: str, fault: Fault) -> None:
        """Tell of a copy that does not hold. Whether it arrives makes no difference here, and nobody waits long."""
        with contextlib.suppress(Fault, OSError), self.connect(restart=0.0) as connection:
            exchange(connection, wire.Suspect(store, name, fault.code), patience=HINT)

    def ask(self, request: wire.Size | wire.Read, target: memoryview | None = None) -> Any:
        """The answer's value; `target` is filled with what follows it. May be asked anew where a connection breaks.
        Raises `UnreachableFault` where the worker does not answer, and the faults of the store."""
        with self._room:
            kept = True
            while True:
                try:
                    with self._mutex:
                        connection = self._idle.pop() if self._idle else None
                    if connection is None:
                        kept = False
                        connection = self.connect()
                    return self._ask(connection, request, target)
                except OSError as error:
                    if not kept or isinstance(error, TimeoutError):
                        raise UnreachableFault(f"the store cannot be asked: {error}") from None
                    # It broke while nobody used it: the worker was started again.

    def connect(self, restart: float | None = None) -> socket.socket:
        """Raises `OSError` where nobody listens for so many seconds (`RESTART` if None)."""
        until = time.monotonic() + (RESTART if restart is None else restart)
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(PATIENCE)
                connection.connect(self._path)
                if self._server_uid not in (None, peer_uid(connection)):
                    raise PermissionError("somebody else answers there")
                return connection
            except (ConnectionRefusedError, FileNotFoundError):
                connection.close()
                if time.monotonic() >= until:
                    raise
            except BaseException:
                connection.close()
                raise
            time.sleep(_PAUSE)

    def _ask(self, connection: socket.socket, request: wire.Request, target: memoryview | None) -> Any:
        whole = False
        try:
            try:
                value = exchange(connection, request)
            except Fault:
                whole = True
                raise
            if target is not None:
                if not isinstance(value, int) or not 0 <= value <= len(target):
                    raise ConnectionAbortedError("what came is no answer")
                wire.fill(connection, target[:value], time.monotonic() + PATIENCE)
            whole = True
            return value
        finally:
            if whole:
                with self._mutex:
                    self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        with self._mutex:
            for connection in self._idle:
                connection.close()
            self._idle.clear()
            for writing in {*self._resting, *self._written.values()}:
                writing.close()

    # --- writing ---

    def begin(self, store: str, name: str) -> _Writing:
        with self._mutex:
            writing = self._resting.pop() if self._resting else None
        if writing is None:
            try:
                writing = _Writing(self.connect())
            except OSError as error:
                raise UnreachableFault(f"the store cannot be asked: {error}") from None
        try:
            writing.ask(wire.Write(store, name))
        except Fault:
            self.rest(writing)
            raise
        return writing

    def rest(self, writing: _Writing, written: tuple[str, str] | None = None) -> None:
        """Nothing is being written on it any more. `written`: what just was, and may be deleted on it."""
        with self._mutex:
            if not writing.broken:
                self._resting.append(writing)
                if written is not None:
                    self._written[written] = writing

    def delete(self, store: str, name: str) -> None:
        with self._mutex:
            writing = self._written.pop((store, name), None)
        if writing is not None:
            writing.ask(wire.Delete(store, name))
            return
        with contextlib.suppress(MissingFault):
            self.ask(wire.Size(store, name))
            raise StorageFault(f"{name} was not written by this process", "only the worker may delete it")


class _Writing:
    """A connection on which bodies are written, one after another."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._mutex = threading.Lock()
        self.broken = False

    def ask(self, request: wire.Request, data: memoryview | None = None) -> None:
        with self._mutex:
            if self.broken:
                raise UnreachableFault("the connection to the store broke")
            try:
                exchange(self._connection, request, data)
            except OSError as error:
                self.broken = True
                self._connection.close()
                raise UnreachableFault(f"the store cannot be asked: {error}") from None

    def close(self) -> None:
        self._connection.close()


def exchange(
    connection: socket.socket, request: wire.Request, data: memoryview | None = None, patience: float = PATIENCE
) -> Any:
    """The value of the answer. Raises `OSError` where none came, and the fault that was answered."""
    connection.settimeout(patience)
    connection.sendall(wire.frame(request))
    if data is not None:
        connection.sendall(data)
    try:
        answer = wire.receive(connection, patience, patience)
    except InputFault as fault:
        raise ConnectionAbortedError(str(fault)) from None
    if answer is None:
        raise ConnectionResetError("it closed the connection")
    return wire.decode_answer(answer)


class RemoteStorage:
    """Implements what a confined process needs of `valv.ports.storage.Storage`; what concerns a whole store is the
    worker's, and a `StorageFault` here."""

    def __init__(self, client: Client, store: str, place: Place) -> None:
        self._client = client
        self._store = store
        self._place = place

    @property
    def place(self) -> Place:
        return self._place

    def writer(self, name: str) -> BodyWriter:
        return RemoteWriter(self._client, self._store, name)

    def open(self, name: str) -> Body:
        return RemoteBody(self._client, self._store, name, self.size(name))

    def size(self, name: str) -> int:
        found = self._client.ask(wire.Size(self._store, name))
        if not isinstance(found, int):
            raise StorageFault(f"{name}: its size was not told")
        return found

    def delete(self, name: str) -> None:
        """Only what this process wrote. Raises `StorageFault` for others that there are."""
        self._client.delete(self._store, name)

    def names(self) -> Iterator[str]:
        raise _not_here()

    def usage(self) -> Usage:
        raise _not_here()

    def sweep(self) -> int:
        raise _not_here()


class RemoteBody:
    """One body, read in pieces."""

    def __init__(self, client: Client, store: str, name: str, size: int) -> None:
        self._client = client
        self._store = store
        self._name = name
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def pread_into(self, target: Buffer, offset: int) -> int:
        view = memoryview(target).cast("B")
        done = 0
        while done < len(view) and offset + done < self._size:
            part = view[done : done + wire.PIECE]
            count: int = self._client.ask(wire.Read(self._store, self._name, offset + done, len(part)), part)
            done += count
            if count < len(part):
                break
        return done

    def close(self) -> None:
        """Nothing is kept for it here; the worker closes its own after a while."""


class RemoteWriter:
    """Sequential writer of one body."""

    def __init__(self, client: Client, store: str, name: str) -> None:
        self._client = client
        self._written = (store, name)
        self._writing: _Writing | None = client.begin(store, name)

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        for at in range(0, len(view), wire.PIECE):
            part = view[at : at + wire.PIECE]
            self._open().ask(wire.Piece(len(part)), part)

    def commit(self) -> None:
        writing = self._open()
        try:
            writing.ask(wire.Commit())
        except Fault:
            self.abort()
            raise
        self._writing = None
        self._client.rest(writing, self._written)

    def abort(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            with contextlib.suppress(Fault):
                writing.ask(wire.Abort())
            self._client.rest(writing)

    def _open(self) -> _Writing:
        if self._writing is None:
            raise StorageFault("this body is not being written any more")
        return self._writing


def _not_here() -> StorageFault:
    return StorageFault("a confined process sees single bodies only")
