"""The launcher: the node's one privileged process. It starts sandboxes and mounts, and does nothing else.

One thread, one loop. Callers are known by the user that the kernel reports (SO_PEERCRED); each connection carries one
request. It parses nothing that a run or a depositor wrote: lists of files, outputs and plain bytes pass it by as
descriptors.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import msgspec

from valv.compute import leftover, wire
from valv.compute.cgroup import Groups
from valv.compute.lease import peer_uid
from valv.compute.process import Child
from valv.compute.rewriter import LIMITS, Pipes, Rewriter
from valv.compute.run import Ground, MountCommand, Run, Slot
from valv.errors import ComputeFault, Fault, InputFault, InternalFault, MissingFault
from valv.ports.compute import Limits, RunStatus

_TICK: Final = 0.1
_PATIENCE: Final = 5.0
"""Seconds that a caller has for its request, and for taking the answer."""
_CALLERS: Final = 128
_TOKEN: Final = 60.0
"""Seconds that a reader's token counts."""

log: Final = logging.getLogger("valv.launcher")


class CollectCommand(Protocol):
    """The command line of the confined process that reads an outbox; `out` is a descriptor that it inherits."""

    def __call__(self, uid: int, *, outbox: Path, out: int, public_key: bytes, limit: int) -> list[str]: ...


class ReadCommand(Protocol):
    """The command line of the confined process that reads one stored file; `file` and `out` are descriptors."""

    def __call__(self, uid: int, *, file: int, out: int, grant_id: str) -> list[str]: ...


class RekeyCommand(Protocol):
    """The command line of the confined process that encrypts stored files anew; `file` (the list of them) and `out` are
    descriptors, `body` has the new names with commas between them."""

    def __call__(self, uid: int, *, file: int, out: int, grant_id: str, public_key: bytes, body: str) -> list[str]: ...


class JoinCommand(Protocol):
    """The command line of the confined process that makes one body of a file's pieces; as `RekeyCommand`."""

    def __call__(self, uid: int, *, file: int, out: int, grant_id: str, public_key: bytes, body: str) -> list[str]: ...


class RewriteCommand(Protocol):
    """The command line of the confined process between a stored file and its rewriter; as `RekeyCommand`, and `into`,
    `back` are the pipes to and from the sandbox."""

    def __call__(
        self, uid: int, *, file: int, out: int, into: int, back: int, grant_id: str, public_key: bytes, body: str
    ) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """`folder`: where the runs' folders are; `slots`, `readers`: users of runs and readers; `most`: upper bounds of any
    run; `worker_uid`, `serve_uid`: who may ask."""

    folder: Path
    root: bool
    slots: tuple[Slot, ...]
    readers: tuple[int, ...]
    worker_uid: int
    serve_uid: int
    most: Limits
    seccomp: bytes
    groups: Groups | None
    mount_command: MountCommand
    collect_command: CollectCommand
    read_command: ReadCommand
    rekey_command: RekeyCommand
    join_command: JoinCommand
    rewrite_command: RewriteCommand


@dataclass(slots=True)
class _Caller:
    connection: socket.socket
    uid: int
    until: float
    data: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Beside:
    """The sandbox of a helper that rewrites, with its user and the time at which it has to be over."""

    rewriter: Rewriter
    uid: int
    until: float


@dataclass(slots=True)
class _Helper:
    """A process that collects, reads or rekeys. `run_id`: whose outbox, empty for the user of a reader. `asker`: a
    descriptor of our own that tells when whoever asked is gone; -1 where the process itself finds out, as it writes all
    the time."""

    child: Child
    run_id: str
    uid: int
    asker: int = -1
    beside: _Beside | None = None


class Launcher:
    """Serves `listener` (a listening UNIX socket) until `stop`."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._going = True
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._runs: dict[str, Run] = {}
        self._callers: dict[int, _Caller] = {}
        self._helpers: dict[int, _Helper] = {}
        self._tokens: dict[str, tuple[int, float]] = {}
        self._ground = Ground(
            folder=settings.folder,
            root=settings.root,
            groups=settings.groups,
            seccomp=settings.seccomp,
            mount_command=settings.mount_command,
            watch=self._watch,
            unwatch=self._unwatch,
        )
        self._recover()

    def serve(self) -> None:
        self._listener.setblocking(False)
        self._watch(self._listener.fileno(), self._accept)
        self._watch(self._wake, lambda: None)
        while self._going:
            for key, _ in self._selector.select(_TICK if self._busy else None):
                with contextlib.suppress(KeyError):  # unwatched by an earlier call of this round
                    if self._selector.get_key(key.fd).data is key.data:
                        self._call(key.data)
            self._tick()
        self._end()

    def stop(self) -> None:
        """End `serve` and with it every run. Safe in a signal handler."""
        self._going = False
        os.eventfd_write(self._wake, 1)

    @property
    def _busy(self) -> bool:
        bounded = any(helper.beside is not None for helper in self._helpers.values())
        return bounded or bool(self._callers or self._tokens) or any(run.active for run in self._runs.values())

    def _tick(self) -> None:
        now = time.monotonic()
        for run in self._runs.values():
            self._call(run.tick)
        for caller in [caller for caller in self._callers.values() if now > caller.until]:
            self._hang_up(caller)
        for helper in [one for one in self._helpers.values() if one.beside is not None and now > one.beside.until]:
            self._end_beside(helper)
        self._tokens = {token: (uid, until) for token, (uid, until) in self._tokens.items() if until > now}

    def _end(self) -> None:
        for caller in list(self._callers.values()):
            self._hang_up(caller)
        for helper in list(self._helpers.values()):
            self._end_helper(helper)
        for run in self._runs.values():
            self._call(run.discard)
        if self._settings.groups is not None:
            self._settings.groups.close()

    def _call(self, handler: Callable[[], None]) -> None:
        """Nothing that goes wrong with one run or caller may end the launcher."""
        try:
            handler()
        except Fault as fault:
            log.error("%s", fault)
        except Exception:
            log.exception("a request or run failed")

    def _watch(self, descriptor: int, call: Callable[[], None]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, call)

    def _unwatch(self, descriptor: int) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(descriptor)

    def _recover(self) -> None:
        """What an earlier launcher left: its processes died with it or die now, its runs are lost."""
        if self._settings.groups is not None:
            self._settings.groups.sweep()
        for folder in self._settings.folder.iterdir():
            if wire.NAME.fullmatch(folder.name):
                if leftover.end(folder):
                    log.warning("run %s outlived its launcher and was ended", folder.name)
                run = Run(folder.name, None, self._ground)
                run.lose()
                self._runs[folder.name] = run
                log.warning("run %s was lost", folder.name)

    # --- callers ---

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        uid = peer_uid(connection)
        if (
            uid not in (self._settings.worker_uid, self._settings.serve_uid, os.geteuid())
            or len(self._callers) >= _CALLERS
        ):
            connection.close()
            return
        connection.setblocking(False)
        caller = _Caller(connection, uid, time.monotonic() + _PATIENCE)
        self._callers[connection.fileno()] = caller
        self._watch(connection.fileno(), lambda: self._hear(caller))

    def _hear(self, caller: _Caller) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(caller.connection, 1 << 16, wire.DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        caller.descriptors += descriptors
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        caller.data += data
        if not data or len(caller.descriptors) > wire.DESCRIPTORS:
            self._hang_up(caller)
            return
        head = wire.LENGTH.size
        if len(caller.data) < head:
            return
        (length,) = wire.LENGTH.unpack_from(caller.data)
        if length > wire.FRAME or len(caller.data) > head + length:
            self._hang_up(caller)
        elif len(caller.data) == head + length:
            try:
                self._reply(caller, self._answer(caller, bytes(caller.data[head:])))
            finally:
                self._hang_up(caller)

    def _hang_up(self, caller: _Caller) -> None:
        self._unwatch(caller.connection.fileno())
        self._callers.pop(caller.connection.fileno(), None)
        for descriptor in caller.descriptors:
            os.close(descriptor)
        caller.connection.close()

    def _reply(self, caller: _Caller, answer: wire.Answer) -> None:
        try:
            data = wire.frame(answer)
        except Fault as fault:
            data = wire.frame(wire.Answer(wire.Failure.of(fault)))
        caller.connection.settimeout(_PATIENCE)
        with contextlib.suppress(OSError):  # whoever asked is gone
            caller.connection.sendall(data)

    def _answer(self, caller: _Caller, data: bytes) -> wire.Answer:
        try:
            request = msgspec.msgpack.decode(data, type=wire.Request)
            reading = isinstance(request, wire.ReserveReader | wire.Read)
            if caller.uid not in (self._settings.worker_uid, os.geteuid()) and not reading:
                raise InputFault("this process may only read")
            return wire.Answer(value=self._do(request, caller.descriptors))
        except msgspec.DecodeError:
            return wire.Answer(wire.Failure.of(InputFault("the request cannot be read")))
        except Fault as fault:
            return wire.Answer(wire.Failure.of(fault))
        except Exception:
            log.exception("a request failed")
            return wire.Answer(wire.Failure.of(InternalFault("the launcher failed", "its log says why")))

    def _do(self, request: wire.Request, descriptors: list[int]) -> object:
        match request:
            case wire.Reserve():
                return self._reserve(request.run_id)
            case wire.Start():
                self._start(request, _only(descriptors, 1)[0])
            case wire.Status():
                run = self._runs.get(request.run_id)
                return run.status() if run else RunStatus(request.run_id, "unknown")
            case wire.Stop():
                if run := self._runs.get(request.run_id):
                    run.stop()
            case wire.Collect():
                self._collect(request, _only(descriptors, 1)[0])
            case wire.Discard():
                self._discard(request.run_id)
            case wire.Runs():
                return list(self._runs)
            case wire.ReserveReader():
                return self._reserve_reader()
            case wire.Read():
                file, out = _only(descriptors, 2)
                self._read(request, file, out)
            case wire.Rekey():
                file, out = _only(descriptors, 2)
                self._rekey(request, file, out)
            case wire.Join():
                file, out = _only(descriptors, 2)
                self._join(request, file, out)
            case wire.Rewrite():
                file, out = _only(descriptors, 2)
                self._rewrite(request, file, out)
        return None

    # --- runs ---

    def _reserve(self, run_id: str) -> int:
        wire.check_name(run_id)
        run = self._runs.get(run_id)
        if run is None:
            taken = [run.slot for run in self._runs.values() if run.slot is not None]
            free = [slot for slot in self._settings.slots if taken.count(slot) < self._settings.slots.count(slot)]
            if not free:
                raise ComputeFault(
                    f"all {len(self._settings.slots)} places for runs are taken",
                    "wait until a run ends, or raise compute.slots",
                )
            run = self._runs[run_id] = Run(run_id, free[0], self._ground)
        if run.slot is None:
            raise ComputeFault("this run was lost when the launcher was restarted", "discard it and start a new run")
        return run.slot.mount_uid

    def _start(self, request: wire.Start, files: int) -> None:
        wire.check_start(request)
        run = self._runs.get(request.run_id)
        if run is None:
            raise MissingFault("the run has no place", "reserve one before the start")
        most = self._settings.most
        limits = Limits(
            seconds=min(request.limits.seconds, most.seconds),
            memory=min(request.limits.memory, most.memory),
            processes=min(request.limits.processes, most.processes),
            scratch=min(request.limits.scratch, most.scratch),
        )
        run.start(msgspec.structs.replace(request, limits=limits), files)

    def _collect(self, request: wire.Collect, out: int) -> None:
        run = self._runs.get(request.run_id)
        if run is None:
            raise MissingFault("the run is not known here")
        if not run.ended:
            raise ComputeFault("the run has not ended", "stop it or wait, then collect")
        if run.slot is None or not run.outbox.exists():
            raise ComputeFault("the run left no outputs", "it was lost or never started")
        uid = run.slot.run_uid
        command = self._settings.collect_command(
            uid, outbox=run.outbox, out=out, public_key=request.public_key, limit=run.limits.scratch
        )
        self._start_helper(command, (out,), request.run_id, uid)

    def _discard(self, run_id: str) -> None:
        run = self._runs.get(run_id)
        if run is None:
            return
        for helper in [helper for helper in self._helpers.values() if helper.run_id == run_id]:
            self._end_helper(helper)
        run.discard()
        del self._runs[run_id]

    # --- readers ---

    def _reserve_reader(self) -> tuple[str, int]:
        free = self._free_readers()
        if not free:
            raise ComputeFault("too many files are being read at once", "try again in a minute")
        token = secrets.token_urlsafe(16)
        self._tokens[token] = (free[0], time.monotonic() + _TOKEN)
        return token, free[0]

    def _free_readers(self) -> list[int]:
        taken = [uid for uid, _ in self._tokens.values()] + [h.uid for h in self._helpers.values() if not h.run_id]
        taken += [helper.beside.uid for helper in self._helpers.values() if helper.beside is not None]
        return [uid for uid in self._settings.readers if taken.count(uid) < self._settings.readers.count(uid)]

    def _read(self, request: wire.Read, file: int, out: int) -> None:
        wire.check_name(request.grant_id)
        uid = self._redeem(request.token)
        command = self._settings.read_command(uid, file=file, out=out, grant_id=request.grant_id)
        self._start_helper(command, (file, out), "", uid)

    def _rekey(self, request: wire.Rekey, file: int, out: int) -> None:
        wire.check_rekey(request)
        uid = self._redeem(request.token)
        command = self._settings.rekey_command(
            uid,
            file=file,
            out=out,
            grant_id=request.grant_id,
            public_key=request.public_key,
            body=",".join(request.bodies),
        )
        self._start_rewriter(command, file, out, uid)

    def _join(self, request: wire.Join, file: int, out: int) -> None:
        wire.check_join(request)
        uid = self._redeem(request.token)
        command = self._settings.join_command(
            uid, file=file, out=out, grant_id=request.grant_id, public_key=request.public_key, body=request.body
        )
        self._start_rewriter(command, file, out, uid)

    def _rewrite(self, request: wire.Rewrite, file: int, out: int) -> None:
        wire.check_rewrite(request)
        uid = self._redeem(request.token)
        # The user of the sandbox is another one: it can do nothing to the process that holds the key.
        alone = next((free for free in self._free_readers() if free != uid), uid)
        if alone == uid and self._settings.root:
            raise ComputeFault("too many files are being read at once", "try again in a minute")
        most = self._settings.most
        limits = Limits(
            seconds=min(LIMITS.seconds, most.seconds),
            memory=min(LIMITS.memory, most.memory),
            processes=min(LIMITS.processes, most.processes),
            scratch=min(LIMITS.scratch, most.scratch),
        )
        pipes = [*os.pipe2(os.O_CLOEXEC), *os.pipe2(os.O_CLOEXEC)]
        theirs, into, back, ours = pipes
        try:
            command = self._settings.rewrite_command(
                uid,
                file=file,
                out=out,
                into=into,
                back=back,
                grant_id=request.grant_id,
                public_key=request.public_key,
                body=request.body,
            )
            rewriter = Rewriter(
                Pipes(theirs, ours),
                uid=alone if self._settings.root else None,
                seccomp=self._settings.seccomp,
                groups=self._settings.groups,
                limits=limits,
            )
            try:
                helper = self._start_rewriter(command, file, out, uid, (into, back))
            except BaseException:
                rewriter.end()
                raise
            helper.beside = _Beside(rewriter, alone, time.monotonic() + limits.seconds)
        finally:
            for descriptor in pipes:
                os.close(descriptor)

    def _start_rewriter(self, command: list[str], file: int, out: int, uid: int, more: tuple[int, ...] = ()) -> _Helper:
        # It may say nothing for hours, when a file is large: we notice for it that nobody waits any more.
        asker = os.dup(out)
        try:
            helper = self._start_helper(command, (file, out, *more), "", uid)
        except Fault:
            os.close(asker)
            raise
        helper.asker = asker
        self._watch(asker, lambda: self._end_helper(helper))
        return helper

    def _redeem(self, token: str) -> int:
        """The user id that was promised with the token."""
        uid, _ = self._tokens.pop(token, (-1, 0.0))
        if uid < 0:
            raise ComputeFault("the token was used or has expired", "reserve a new one")
        return uid

    def _start_helper(self, command: list[str], descriptors: tuple[int, ...], run_id: str, uid: int) -> _Helper:
        child = Child(command, descriptors)
        helper = _Helper(child, run_id, uid)
        self._helpers[child.pidfd] = helper
        self._watch(child.pidfd, lambda: self._end_helper(helper))
        return helper

    def _end_helper(self, helper: _Helper) -> None:
        if helper.asker >= 0:
            self._unwatch(helper.asker)
            os.close(helper.asker)
            helper.asker = -1
        self._unwatch(helper.child.pidfd)
        self._helpers.pop(helper.child.pidfd, None)
        helper.child.kill()
        helper.child.wait(_PATIENCE)
        helper.child.close()
        self._end_beside(helper)

    def _end_beside(self, helper: _Helper) -> None:
        if helper.beside is not None:
            helper.beside.rewriter.end()
            helper.beside = None


def _only(descriptors: list[int], count: int) -> list[int]:
    if len(descriptors) != count:
        raise InputFault(f"the request came with {len(descriptors)} descriptors, not {count}")
    return descriptors
