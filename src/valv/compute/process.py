"""Child processes of the launcher: started with what a sandbox needs, waited for without polling."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from valv.errors import ComputeFault
from valv.ports.compute import Limits

_PR_SET_PDEATHSIG: Final = 1
_OPEN_FILES: Final = 4096
_LOCKED_BYTES: Final = 1 << 16
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Child:
    """A started process and a descriptor (`pidfd`) that becomes readable when it has ended."""

    def __init__(
        self,
        arguments: Sequence[str],
        descriptors: Sequence[int] = (),
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        """`descriptors` stay open in the child under their numbers; `before` runs in it before the program.

        Raises `ComputeFault` where the program cannot be started.
        """
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=tuple(descriptors),
                preexec_fn=before,  # safe, because the launcher has one thread
                env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"},
                cwd="/",
                umask=0o022,
                start_new_session=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ComputeFault(f"{arguments[0]} cannot be started: {error}", "look at 'valv doctor'") from None
        self.pid: Final = self._process.pid
        self.pidfd: Final = os.pidfd_open(self.pid)

    def wait(self, seconds: float) -> int | None:
        """The exit code (negative for a signal) if it ends within so long."""
        if readable(self.pidfd, seconds):
            return self._process.wait()
        return None

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Give the descriptor back; the process has ended."""
        os.close(self.pidfd)


def readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0, int(seconds * 1000))))


def kill(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def die_with_parent(parent: int) -> None:
    """End this process when its parent, which must still be `parent`, ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def bound(limits: Limits, *, memory: bool) -> None:
    """Set this process's resource limits, which its children inherit. `memory`: also the size of each address space."""
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_MEMLOCK: _LOCKED_BYTES,
        resource.RLIMIT_FSIZE: limits.scratch,
    }
    if memory:
        bounds[resource.RLIMIT_AS] = limits.memory
    for kind, value in bounds.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    # Where the whole machine runs out of memory, a run goes first.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
