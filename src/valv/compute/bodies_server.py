"""The worker's side of `bodies.sock`: it reads stores that are not folders for processes that have no network.

Who asks is known by the user that the kernel reports (SO_PEERCRED, unix(7)). Mounts and readers may read; only readers,
as whom files are encrypted anew, may write new bodies, into one store. Memory is bounded, also for each user.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from valv.compute import bodies_wire as wire
from valv.compute.bodies_room import LIMITS, Bodies, Limits, NoRoom, Room
from valv.compute.lease import peer_uid
from valv.compute.wire import Answer, Failure
from valv.errors import Fault, InputFault, StorageFault, UnreachableFault
from valv.ports.storage import BodyWriter, Storage

log: Final = logging.getLogger("valv.bodies")

Told = Callable[[str, str, str, int], None]
"""Called with a body's name, the store, the code of a fault, and the user who told it. Must be quick and not raise."""


@dataclass(frozen=True, slots=True)
class Served:
    """`stores`: those that are read here, by name; `written`: the one of them that new bodies go to, '' where it is
    none of them; `known`: names of all stores of the node, of which a copy may be suspected. `mounts`, `readers`: users
    who may read; of these `readers` may write."""

    stores: Mapping[str, Storage]
    written: str
    known: frozenset[str]
    mounts: frozenset[int]
    readers: frozenset[int]

    @property
    def users(self) -> frozenset[int]:
        return self.mounts | self.readers


class BodiesServer:
    """Serves the socket `path`, a thread for each connection, until `close`. `told`: who is told of suspected copies.
    Where all processes have one user (nobody but root can give them several) its share is the whole."""

    def __init__(self, path: str | Path, served: Served, told: Told, limits: Limits = LIMITS) -> None:
        self._path = Path(path)
        self._served = served
        self._told = told
        self._limits = limits
        alone = len(served.users) == 1
        self._each = limits.connections if alone else limits.connections_each
        self._room = Room(limits.room, limits.room if alone else limits.room_each, limits.transfer)
        self._bodies = Bodies(served.stores, limits)
        self._connections: dict[socket.socket, int] = {}
        self._mutex = threading.Lock()
        self._closing = threading.Event()
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._path.chmod(0o666)  # mounts and readers have users of their own; who they are is judged by `served`
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._accept, name="bodies", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nobody gets an answer any more; what was being written is given up."""
        self._closing.set()
        with self._mutex:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        self._path.unlink(missing_ok=True)
        self._bodies.close()

    def __enter__(self) -> BodiesServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closing.wait(0.1):
                    return
                continue  # out of descriptors: others must finish first
            try:
                uid = peer_uid(connection)
                if not self._admit(connection, uid):
                    connection.close()
                    continue
                threading.Thread(target=self._serve, args=(connection, uid), name="body", daemon=True).start()
            except (OSError, RuntimeError):  # RuntimeError: no thread can be started
                self._forget(connection)

    def _admit(self, connection: socket.socket, uid: int) -> bool:
        with self._mutex:
            taken = sum(other == uid for other in self._connections.values())
            if self._closing.is_set() or uid not in self._served.users:
                return False
            if taken >= self._each or len(self._connections) >= self._limits.connections:
                return False
            self._connections[connection] = uid
            return True

    def _forget(self, connection: socket.socket) -> None:
        with self._mutex:
            self._connections.pop(connection, None)
        connection.close()

    def _serve(self, connection: socket.socket, uid: int) -> None:
        session = _Session(connection, uid, self._served, self._bodies, self._room, self._told, self._limits)
        try:
            while not self._closing.is_set() and session.turn():
                pass
        except OSError:
            pass  # it has ended, or is too slow
        except Exception:
            log.exception("a request for a body failed")
        finally:
            session.end()
            self._forget(connection)


class _Session:
    """One connection."""

    def __init__(
        self,
        connection: socket.socket,
        uid: int,
        served: Served,
        bodies: Bodies,
        room: Room,
        told: Told,
        limits: Limits,
    ) -> None:
        self._connection = connection
        self._uid = uid
        self._served = served
        self._bodies = bodies
        self._room = room
        self._told = told
        self._limits = limits
        self._writer: BodyWriter | None = None
        self._writing = ("", "")
        self._written: set[tuple[str, str]] = set()

    def turn(self) -> bool:
        """Answer one request; whether another may follow."""
        try:
            data = wire.receive(self._connection, self._limits.idle, self._limits.transfer)
            if data is None:
                return False
            request = wire.decode(data)
        except InputFault as fault:  # what follows it, if anything, cannot be told from the next request
            self._send(Answer(Failure.of(fault)))
            return False
        match request:
            case wire.Read():
                self._read(request)
            case wire.Piece():
                return self._piece(request)
            case _:
                self._send(self._attempt(lambda: self._do(request)))
        return True

    def end(self) -> None:
        self._give_up()

    def _do(self, request: wire.Request) -> object:
        match request:
            case wire.Size():
                with self._bodies.use(request.store, request.name) as body:
                    return body.size
            case wire.Suspect():
                if request.store in self._served.known:
                    self._told(request.name, request.store, request.why, self._uid)
            case wire.Write():
                self._begin(request)
            case wire.Commit():
                self._commit()
            case wire.Abort():
                self._give_up()
            case wire.Delete():
                self._delete(request)
            case _:
                raise InputFault("this is no request of its own")
        return None

    def _attempt(self, act: Callable[[], object]) -> Answer:
        try:
            return Answer(value=act())
        except Fault as fault:
            return Answer(Failure.of(fault))
        except Exception:
            log.exception("a store failed")
            return Answer(Failure.of(StorageFault("the store failed", "the worker's log says why")))

    def _send(self, answer: Answer, data: memoryview | None = None) -> None:
        self._connection.settimeout(self._limits.transfer)
        try:
            framed = wire.frame(answer)
        except InputFault as fault:
            framed = wire.frame(Answer(Failure(fault.code, "the answer is too long")))
        self._connection.sendall(framed)
        if data is not None:
            self._connection.sendall(data)

    def _read(self, request: wire.Read) -> None:
        data = memoryview(b"")

        def read() -> int:
            nonlocal data
            with self._bodies.use(request.store, request.name) as body:
                data = memoryview(bytearray(max(0, min(request.count, body.size - request.offset))))
                data = data[: body.pread_into(data, request.offset) if data else 0]
            return len(data)

        try:
            with self._room.taken(self._uid, request.count):
                answer = self._attempt(read)
                self._send(answer, data if answer.fault is None else None)
        except NoRoom as full:
            self._send(Answer(Failure.of(UnreachableFault(str(full), "try again"))))

    # --- writing ---

    def _begin(self, request: wire.Write) -> None:
        if self._uid not in self._served.readers:
            raise InputFault("this process may only read")
        if request.store != self._served.written or request.store not in self._served.stores:
            raise InputFault("new bodies do not go to this store")
        if self._writer is not None:
            raise InputFault("a body is being written on this connection already")
        if len(self._written) >= self._limits.written:
            raise InputFault("too many bodies were written on this connection")
        self._writer = self._served.stores[request.store].writer(request.name)
        self._writing = (request.store, request.name)

    def _piece(self, request: wire.Piece) -> bool:
        """Its bytes are taken in any case, so that the answer is heard."""
        try:
            with self._room.taken(self._uid, request.count):
                data = memoryview(bytearray(request.count))
                wire.fill(self._connection, data, time.monotonic() + self._limits.transfer)
                self._send(self._attempt(lambda: self._open_writer().write(data)))
                return True
        except NoRoom as full:
            self._send(Answer(Failure.of(UnreachableFault(str(full), "try again"))))
            return False

    def _commit(self) -> None:
        self._open_writer().commit()
        self._writer = None
        self._written.add(self._writing)

    def _delete(self, request: wire.Delete) -> None:
        if (request.store, request.name) not in self._written:
            raise InputFault("this was not written on this connection")
        self._served.stores[request.store].delete(request.name)
        self._bodies.drop(request.store, request.name)
        self._written.discard((request.store, request.name))

    def _open_writer(self) -> BodyWriter:
        if self._writer is None:
            raise InputFault("no body is being written on this connection")
        return self._writer

    def _give_up(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(Fault):
                writer.abort()
