"""`valv up`: start the processes of a node, keep them going, end them in order.

Each process is started shut in (`confine`) and waited for until it answers. One that ends by itself is started again,
with a growing pause. When this process ends, even by SIGKILL, the kernel ends all others.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import logging
import os
import pwd
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from valv import config as configuration
from valv.assemble import confine
from valv.assemble.confine import Users, View
from valv.assemble.launcher import listen
from valv.assemble.prepare import LOG, PROCESSES, clear, prepare, views
from valv.assemble.sockets import KEYD, LAUNCHER, LEASE
from valv.compute.client import LauncherClient
from valv.compute.process import Child, die_with_parent
from valv.config import Config
from valv.errors import ComputeFault, ConfigFault, ConflictFault, Fault, StorageFault, UnreachableFault
from valv.keys.client import KeydClient
from valv.keys.memory import protect_process

LOCK: Final = "up.lock"
READY_SECONDS: Final = 60.0
"""How long a process may take until it answers."""
GRACE: Final = 10.0
"""Seconds that a process has to end by itself."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
_STEADY: Final = 60.0
"""A process that ran for so many seconds starts over with the shortest pause."""
_LOG_BYTES: Final = 10 << 20

log: Final = logging.getLogger("valv.up")


@dataclass(slots=True)
class Process:
    """One process of the node. `view`: None where it cannot be shut in. `listener`: the socket that it inherits, so
    that callers may connect while it is being restarted."""

    name: str
    view: View | None
    ready: Callable[[], bool]
    listener: socket.socket | None = None
    child: Child | None = None
    since: float = 0.0
    pause: float = _FIRST_PAUSE
    next: float = 0.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="valv up", description="Start a node and keep it going.")
    parser.add_argument("--node", type=Path, required=True, help="the node's folder")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        return up(configuration.load(options.node))
    except Fault as fault:
        log.error("%s", fault)
        return fault.row.exit


def up(config: Config, ready: Callable[[], None] | None = None) -> int:
    """Run the node until SIGTERM or SIGINT; `ready` is called when all processes answer.

    Returns 0 when it ended as asked. Raises `ConflictFault` where the node runs already, and the faults of `prepare`;
    `UnreachableFault` where a process does not come up. Call it in the main thread: it sets signal handlers.
    """
    users = Users.of(config)
    protect_process()  # it copies secrets; and what it starts inherits that no core is written
    with _lock(config):
        check(config)
        check_port(config)
        prepare(config, users)
        supervisor = Supervisor(config, users)
        try:
            return supervisor.run(ready)
        finally:
            supervisor.end()
            clear(config)


def running(config: Config) -> int | None:
    """The process id of the supervisor that runs this node; None where none does."""
    with contextlib.suppress(OSError, ValueError), Path(config.home, LOCK).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read())
    return None


def check(config: Config) -> None:
    """Raises `ComputeFault` where the machine lacks what the processes need, saying what to install or switch on."""
    for program, package in (("bwrap", "bubblewrap"), ("setpriv", "util-linux"), ("fusermount3", "fuse3")):
        if shutil.which(program) is None:
            raise ComputeFault(f"the program {program!r} is missing", f"apt-get install {package}")
    if not Path("/dev/fuse").exists():
        raise ComputeFault("/dev/fuse is missing", "load the kernel's module: modprobe fuse")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise ComputeFault("/dev/fuse may not be opened by this user", "chmod 666 /dev/fuse, or start the node as root")
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        raise ComputeFault(
            f"user {os.geteuid()} has no entry in /etc/passwd, which fusermount3 needs", "start the node as a real user"
        ) from None
    child = Child(confine.command(View(uid=None), ["true"]), stderr=sys.stderr.fileno())
    code = child.wait(GRACE)
    child.kill()
    child.close()
    if code != 0:
        raise ComputeFault(
            "bubblewrap cannot confine a process here",
            "allow user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns=0)"
            " or start the node as root",
        )
    longest = str(config.runtime / LAUNCHER)
    if len(longest.encode()) > 107:
        raise ComputeFault(f"the path {longest} is too long for a socket", "set processes.runtime to a shorter path")


def check_port(config: Config) -> None:
    """Raises `ConfigFault` where another program has the port of this node, which is down."""
    family = socket.AF_INET6 if ":" in config.serve.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.serve.host, config.serve.port))
        except OSError as error:
            place = f"{config.serve.host} port {config.serve.port}"
            raise ConfigFault(f"{place}: {error.strerror}", "stop what listens there, or set serve.port") from None


class Supervisor:
    """Starts, watches, restarts and ends the processes of one node."""

    def __init__(self, config: Config, users: Users, names: Sequence[str] = PROCESSES) -> None:
        """`names`: which processes, in the order of their start."""
        self._config = config
        self._users = users
        self._stopping = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        runtime, seen = config.runtime, views(config, users)
        group = users.group if users.root else None
        self._keyd = KeydClient(runtime / KEYD, seconds=2.0)
        self._launcher = LauncherClient(runtime / LAUNCHER, seconds=2.0)
        asks: dict[str, Callable[[], object]] = {
            "keyd": self._keyd.status,
            "launcher": self._launcher.runs,
            "worker": lambda: _connects(runtime / LEASE),
            "serve": lambda: _healthy(config),
        }
        sockets = {"keyd": KEYD, "launcher": LAUNCHER}
        self._processes = [
            Process(
                name,
                seen.get(name),
                _answers(asks[name]),
                listen(runtime / sockets[name], group) if name in sockets else None,
            )
            for name in names
        ]

    def run(self, ready: Callable[[], None] | None) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)
        for process in self._processes:
            self._start(process)
            if not self._wait_ready(process):
                return 0  # asked to stop meanwhile
        log.info("the node is up: %s", self._config.public_url)
        if ready is not None:
            ready()
        while not self._stopping:
            self._watch()
        return 0

    def end(self) -> None:
        """End all processes, those first that others do not need."""
        for process in reversed(self._processes):
            self._end(process)
            if process.listener is not None:
                process.listener.close()

    def _ask_to_stop(self, *_: object) -> None:
        self._stopping = True
        os.eventfd_write(self._wake, 1)

    def _start(self, process: Process) -> None:
        arguments = ["--node", self._config.home]
        descriptors: list[int] = []
        if process.listener is not None:
            descriptors.append(process.listener.fileno())
            arguments += ["--listen-fd", str(process.listener.fileno())]
        line = confine.python(process.name, *arguments)
        parent = os.getpid()
        with _log_file(Path(self._config.home, LOG, f"{process.name}.log")) as output:
            process.child = Child(
                line if process.view is None else confine.command(process.view, line),
                descriptors,
                stdout=output,
                stderr=output,
                before=lambda: die_with_parent(parent),
            )
        process.since = time.monotonic()
        log.info("%s started", process.name)

    def _wait_ready(self, process: Process) -> bool:
        """Whether it answers; False where we were asked to stop."""
        until = time.monotonic() + READY_SECONDS
        while not self._stopping:
            if process.child is None or process.child.wait(0) is not None:
                raise UnreachableFault(f"{process.name} ended at its start{self._last_words(process)}")
            if process.ready():
                log.info("%s is ready", process.name)
                return True
            if time.monotonic() > until:
                raise UnreachableFault(
                    f"{process.name} did not answer within {READY_SECONDS:.0f} s{self._last_words(process)}"
                )
            self._sleep(0.05)
        return False

    def _watch(self) -> None:
        """Wait until something ends or is due, and start again what ended."""
        now = time.monotonic()
        for process in self._processes:
            if process.child is not None and (code := process.child.wait(0)) is not None:
                process.child.close()
                process.child = None
                if now - process.since > _STEADY:
                    process.pause = _FIRST_PAUSE
                process.next = now + process.pause
                log.error("%s ended (%d); it starts again in %.1f s", process.name, code, process.pause)
                process.pause = min(2 * process.pause, _LONGEST_PAUSE)
            if process.child is None and now >= process.next:
                self._start(process)
        due = [process.next - now for process in self._processes if process.child is None]
        self._sleep(min(due, default=60.0))

    def _sleep(self, seconds: float) -> None:
        """Until a process ends, we are asked to stop, or so long."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for process in self._processes:
            if process.child is not None:
                poll.register(process.child.pidfd, select.POLLIN)
        poll.poll(max(1, int(seconds * 1000)))

    def _end(self, process: Process) -> None:
        child = process.child
        if child is None:
            return
        process.child = None
        if child.wait(0) is None:
            inner = child.pid if process.view is None else _inner(child.pid)
            if inner:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(inner, signal.SIGTERM)
                if child.wait(GRACE) is None:
                    log.warning("%s did not end when asked; it is killed", process.name)
            child.kill()
            child.wait(GRACE)
        child.close()
        log.info("%s ended", process.name)

    def _last_words(self, process: Process) -> str:
        path = Path(self._config.home, LOG, f"{process.name}.log")
        with contextlib.suppress(OSError):
            lines = path.read_text("utf-8", "replace").strip().splitlines()
            return f": {lines[-1][:500]} (in {path})" if lines else ""
        return ""


def _inner(outer: int) -> int:
    """The process that bubblewrap, running as `outer`, has confined: the oldest child of the namespace's first process;
    0 where there is none."""
    found = outer
    for _ in range(2):
        try:
            children = Path(f"/proc/{found}/task/{found}/children").read_text().split()
        except OSError:
            return 0
        if not children:
            return 0
        found = int(children[0])
    return found


def _answers(ask: Callable[[], object]) -> Callable[[], bool]:
    def answer() -> bool:
        try:
            ask()
        except (Fault, OSError, http.client.HTTPException):
            return False
        return True

    return answer


def _connects(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        probe.connect(str(path))


def _healthy(config: Config) -> None:
    """Raises where GET /health does not answer 200."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.serve.host, config.serve.host)  # noqa: S104 - compared
    connection = http.client.HTTPConnection(host, config.serve.port, timeout=2.0)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    finally:
        connection.close()
    if status != 200:
        raise UnreachableFault(f"/health answers {status}")


@contextlib.contextmanager
def _lock(config: Config) -> Iterator[None]:
    path = Path(config.home, LOCK)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StorageFault(f"{path}: {error.strerror}", "the node's folder must be writable") from None
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictFault(
                f"the node in {config.home} runs already (process {file.read().strip()})", "stop that one first"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _log_file(path: Path) -> IO[bytes]:
    """Opened to append; a long one is put aside first, and the one before it dropped."""
    try:
        if path.exists() and path.stat().st_size > _LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")
    except OSError as error:
        raise StorageFault(f"{path}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
