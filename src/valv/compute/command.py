"""One command in its sandbox, from start to end."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from valv.compute import box
from valv.compute.cgroup import Group
from valv.compute.process import Child, bound, die_with_parent, kill, readable
from valv.compute.wire import memory_file
from valv.errors import ComputeFault
from valv.ports.compute import Limits, RunEnd

_GONE: Final = 5.0
"""Seconds to wait for a killed process; in truth it takes milliseconds."""
_NOT_FOUND: Final = 127
_TELL: Final = 500


class _Said(msgspec.Struct, frozen=True, rename="kebab"):
    """What bubblewrap says about itself, a line of JSON each (bwrap(1), --json-status-fd)."""

    child_pid: int | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    end: RunEnd
    exit_code: int | None = None
    detail: str = ""


class Command:
    """A started command. `child`: bubblewrap; `init`: pid of the sandbox's first process once it is known, else 0.

    The sandbox has its own process-id namespace: when its first process is dead, the kernel has killed all of it.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folders: box.Folders,
        outbox: int,
        uid: int | None,
        seccomp: bytes,
        environment: Mapping[str, str],
        limits: Limits,
        group: Group | None,
    ) -> None:
        """`outbox`: descriptor of the outbox, for the standard streams; `uid`: the run's user, None for ours. Without
        `group` the limits are set on each process. Raises `ComputeFault`."""
        self.init = 0
        self._name = command[0]
        self._said = b""
        self._exit_code: int | None = None
        self._init_pidfd = -1
        self._ours: list[int] = []
        theirs: list[int] = []
        try:
            self._status, status = self._pipe(theirs)
            self._missing, missing = self._pipe(theirs)
            streams = [_stream(outbox, name, uid) for name in ("stdout.txt", "stderr.txt")]
            theirs += streams
            self._errors = os.dup(streams[1])
            self._ours.append(self._errors)
            given = {name: memory_file(name, data) for name, data in box.small_files().items()}
            theirs += given.values()
            theirs.append(seccomp_file := memory_file("seccomp", seccomp))
            descriptors = box.Descriptors(seccomp=seccomp_file, status=status, **given)
            options = box.options(folders, descriptors, environment, limits.scratch)
            # By a descriptor, so that the environment of a run does not show in the host's list of processes.
            theirs.append(told := memory_file("options", b"".join(os.fsencode(word) + b"\0" for word in options)))
            parent = os.getpid()

            def before() -> None:
                die_with_parent(parent)
                if group is not None:
                    group.enter()
                bound(limits, memory=group is None)

            self.child = Child(
                [
                    *(_as_user(uid) if uid is not None else ()),
                    *("bwrap", "--args", str(told), "--"),
                    *box.inside(command, processes=limits.processes if group is None else None),
                ],
                (told, seccomp_file, status, *given.values()),
                stdin=missing,
                stdout=streams[0],
                stderr=streams[1],
                before=before,
            )
        except OSError as error:
            self.close()
            raise ComputeFault(f"the sandbox cannot be made: {error.strerror}") from None
        except BaseException:
            self.close()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    @property
    def status(self) -> int:
        """Becomes readable when bubblewrap has something to say; then call `listen`."""
        return self._status

    def listen(self) -> bool:
        """Take in what bubblewrap said; False when it will say no more."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._status, 4096):
                self._said += data
                *lines, self._said = self._said.split(b"\n")
                for line in lines:
                    self._take(line)
            return False
        return True

    def end(self) -> None:
        """Kill the whole tree and wait until it is dead."""
        self.listen()
        self.child.kill()
        self.child.wait(_GONE)
        self.listen()
        if self._init_pidfd >= 0:
            kill(self._init_pidfd)
            readable(self._init_pidfd, _GONE)

    def outcome(self) -> Outcome:
        """How it ended by itself. After `end`."""
        with contextlib.suppress(BlockingIOError):
            if self._exit_code == _NOT_FOUND and os.read(self._missing, 64) == box.MISSING:
                return Outcome("not_started", detail=f"the sandbox has no program {self._name!r}")
        if self._exit_code is None:
            why = os.pread(self._errors, _TELL, 0).decode("utf-8", "replace").strip()
            return Outcome("not_started", detail=f"the sandbox cannot be made: {why or 'bubblewrap was killed'}")
        return Outcome("exited", self._exit_code)

    def close(self) -> None:
        for descriptor in self._ours:
            os.close(descriptor)
        self._ours.clear()
        if hasattr(self, "child"):
            self.child.close()

    def _take(self, line: bytes) -> None:
        said = msgspec.json.decode(line, type=_Said)
        if said.exit_code is not None:
            self._exit_code = said.exit_code
        if said.child_pid is not None and not self.init:
            self.init = said.child_pid
            with contextlib.suppress(ProcessLookupError):  # dead already
                self._init_pidfd = os.pidfd_open(self.init)
                self._ours.append(self._init_pidfd)

    def _pipe(self, theirs: list[int]) -> tuple[int, int]:
        ours, other = os.pipe2(os.O_CLOEXEC)
        self._ours.append(ours)
        theirs.append(other)
        os.set_blocking(ours, False)
        return ours, other


def check() -> None:
    """Raises `ComputeFault` where a program that is needed is missing."""
    for program, package in (("bwrap", "bubblewrap"), ("setpriv", "util-linux"), ("prlimit", "util-linux")):
        if shutil.which(program, path=box.PATH) is None:
            raise ComputeFault(f"runs need the program {program!r}", f"install the package {package}")


def _as_user(uid: int) -> list[str]:
    return ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--inh-caps=-all", "--"]


def _stream(outbox: int, name: str, uid: int | None) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_APPEND
    descriptor = os.open(name, flags, 0o600, dir_fd=outbox)
    if uid is not None:
        os.fchown(descriptor, uid, uid)
    return descriptor
