"""The launcher as the node's processes see it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from valv.compute import wire
from valv.compute.lease import peer_uid
from valv.compute.rewriting import Work
from valv.errors import ComputeFault, UnreachableFault
from valv.ports.compute import Job, MountedFile, RunSpec, RunStatus

_HINT: Final = "start the node with 'valv up', or look at the log of its launcher"
SECONDS: Final = 30.0

T = TypeVar("T")


class LauncherClient:
    """Verbs of the launcher at the socket `path`. Safe for several threads: each request has its own connection.

    Faults of the launcher are raised here as what they were there; `UnreachableFault` where it does not answer.
    """

    def __init__(self, path: str | Path, seconds: float = SECONDS) -> None:
        self._path = str(path)
        self._seconds = seconds

    def reserve(self, run_id: str) -> int:
        return self._ask(wire.Reserve(run_id), int)

    def start(self, spec: RunSpec) -> None:
        files = wire.files_descriptor(spec.files)
        try:
            request = wire.Start(spec.run_id, spec.grant_id, spec.command, spec.limits, spec.environment)
            self._ask(request, None, (files,))
        finally:
            os.close(files)

    def status(self, run_id: str) -> RunStatus:
        return self._ask(wire.Status(run_id), RunStatus)

    def stop(self, run_id: str) -> None:
        self._ask(wire.Stop(run_id), None)

    def discard(self, run_id: str) -> None:
        self._ask(wire.Discard(run_id), None)

    def runs(self) -> list[str]:
        return self._ask(wire.Runs(), list[str])

    @contextmanager
    def collect(self, run_id: str, public_key: bytes) -> Iterator[socket.socket]:
        """Where the outputs arrive, as frames (`stream`)."""
        ours, theirs = socket.socketpair()
        with closing(ours):
            with closing(theirs):
                self._ask(wire.Collect(run_id, public_key), None, (theirs.fileno(),))
            yield ours

    def reserve_reader(self) -> tuple[str, int]:
        return self._ask(wire.ReserveReader(), tuple[str, int])

    @contextmanager
    def read(self, token: str, grant_id: str, file: MountedFile) -> Iterator[socket.socket]:
        """Where the plain bytes arrive, as frames (`stream`)."""
        with self._on_files(wire.Read(token, grant_id), (file,)) as connection:
            yield connection

    @contextmanager
    def rekey(
        self, token: str, grant_id: str, files: Sequence[tuple[MountedFile, str]], public_key: bytes
    ) -> Iterator[socket.socket]:
        """Where the answers arrive, as frames (`stream`). Leaving the context before they came ends the work."""
        request = wire.Rekey(token, grant_id, public_key, tuple(body for _, body in files))
        wire.check_rekey(request)
        with self._on_files(request, tuple(file for file, _ in files)) as connection:
            yield connection

    @contextmanager
    def join(
        self, token: str, grant_id: str, parts: Sequence[MountedFile], body: str, public_key: bytes
    ) -> Iterator[socket.socket]:
        """Where the answer arrives, as a frame (`stream`). Leaving the context before it came ends the work."""
        request = wire.Join(token, grant_id, public_key, body)
        wire.check_join(request)
        with self._on_files(request, tuple(parts)) as connection:
            yield connection

    @contextmanager
    def rewrite(
        self, token: str, grant_id: str, file: MountedFile, job: Job, *, public_key: bytes, body: str
    ) -> Iterator[socket.socket]:
        """Where the answer arrives, as a frame (`stream`). Leaving the context before it came ends the work."""
        request = wire.Rewrite(token, grant_id, public_key, body)
        wire.check_rewrite(request)
        with self._described(request, wire.memory_file("work", msgspec.json.encode(Work(file, job)))) as connection:
            yield connection

    @contextmanager
    def _on_files(self, request: wire.Request, files: tuple[MountedFile, ...]) -> Iterator[socket.socket]:
        with self._described(request, wire.files_descriptor(files)) as connection:
            yield connection

    @contextmanager
    def _described(self, request: wire.Request, description: int) -> Iterator[socket.socket]:
        """`description` is closed."""
        ours, theirs = socket.socketpair()
        with closing(ours):
            try:
                with closing(theirs):
                    self._ask(request, None, (description, theirs.fileno()))
            finally:
                os.close(description)
            yield ours

    def _ask(self, request: wire.Request, kind: type[T] | None, descriptors: tuple[int, ...] = ()) -> T:
        data = wire.frame(request)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self._seconds)
                connection.connect(self._path)
                if peer_uid(connection) not in (0, os.geteuid()):
                    raise ComputeFault(f"{self._path} belongs to a stranger", "stop the node and look who made it")
                sent = socket.send_fds(connection, [data], list(descriptors))
                if sent < len(data):
                    connection.sendall(data[sent:])
                answer = _receive(connection)
        except TimeoutError:
            raise UnreachableFault(f"the launcher did not answer within {self._seconds:.0f} s", _HINT) from None
        except OSError as error:
            raise UnreachableFault(f"the launcher at {self._path}: {error.strerror or error}", _HINT) from None
        if answer.fault is not None:
            raise answer.fault.exception()
        return msgspec.convert(answer.value, type=kind)


def _receive(connection: socket.socket) -> wire.Answer:
    data = b""
    length = wire.LENGTH.size
    while len(data) < length:
        more = connection.recv(min(1 << 20, length - len(data)))
        if not more:
            raise ConnectionResetError("it hung up: this process may not ask it, or it was restarted")
        data += more
        if len(data) == wire.LENGTH.size:
            (size,) = wire.LENGTH.unpack(data)
            if size > wire.ANSWER:
                raise ConnectionAbortedError("it sent something that is no answer")
            length += size
    return msgspec.msgpack.decode(data[wire.LENGTH.size :], type=wire.Answer)
