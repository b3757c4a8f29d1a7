"""A node's key holder and launcher, really running, for tests: and a process with the worker's user that drives them.

Imported by the tests of compute, of its contract and of attacks; as a program it is one of the node's processes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from valv import config as configuration
from valv.assemble import confine
from valv.assemble.confine import Users, View
from valv.assemble.keyd import create as create_keys
from valv.assemble.prepare import prepare, views
from valv.assemble.up import Supervisor, check
from valv.compute.client import LauncherClient
from valv.compute.lease import LeaseServer
from valv.compute.sandbox import SandboxCompute, SandboxReader
from valv.config import Config
from valv.errors import ComputeFault, Fault
from valv.formats.crypt4gh import generate_keypair
from valv.keys.client import KeydClient
from valv.keys.file import Cost, FileKeyring
from valv.ports.compute import Limits, MountedFile, Output, Rekeyed, RunSpec, RunStatus, Skipped
from valv.ports.lease import Beat
from valv.ports.storage import Place
from valv.storage.local import LocalStorage
from valv.vault.encrypt import Encryptor
from valv.vault.reader import open_reader

UID_BASE = 615000
PASSPHRASE = b"a passphrase for tests"


class Steward:
    """What the worker does with runs. Lives in a process with the worker's user; `Node` calls it from outside."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.keyd = KeydClient(config.runtime / "keyd.sock")
        self.storage = LocalStorage(config.path("store"), Place("SE", "test"))
        self.client = LauncherClient(config.runtime / "launcher.sock")
        self.compute = SandboxCompute(self.client, self.storage)
        self.reader = SandboxReader(self.client)
        self.denied: set[str] = set()
        self.silent = False
        self.beats: list[tuple[Beat, int]] = []
        self.result = generate_keypair()
        self.leases = LeaseServer(config.runtime / "lease.sock", self._decide)

    def _decide(self, beat: Beat, uid: int) -> bool:
        self.beats.append((beat, uid))
        if self.silent:
            time.sleep(60)
        return beat.run_id not in self.denied

    def put(self, path: str, data: bytes) -> MountedFile:
        name = f"b{os.urandom(8).hex()}"
        public = self.keyd.create(f"key-{name}", "identifiable")
        encryptor = Encryptor(self.storage.writer(name), self.storage.writer(f"{name}.seal"), public)
        encryptor.write(data)
        sealed = encryptor.finish()
        return MountedFile(name, path, name, sealed.header, f"key-{name}", sealed.size, sealed.seal_root)

    def start(self, run_id: str, command: tuple[str, ...], files: tuple[MountedFile, ...], **more: Any) -> int:
        uid = self.compute.reserve(run_id)
        keys = sorted({file.key_id for file in files})
        if keys:
            self.keyd.grant(f"run-{run_id}", keys, uid, 300.0)
        self.compute.start(RunSpec(run_id, f"run-{run_id}", command, files, **more))
        return uid

    def collect(self, run_id: str) -> tuple[dict[str, bytes], dict[str, str]]:
        """Outputs, decrypted, and what was skipped, with the reason."""
        taken, skipped = {}, {}
        for item in self.compute.collect(run_id, self.result.public):
            if isinstance(item, Skipped):
                skipped[item.path] = item.reason
            else:
                taken[item.path] = self.open(item)
        return taken, skipped

    def open(self, output: Output) -> bytes:
        reader = open_reader(
            self.storage.open,
            output.body,
            output.header,
            self.result.private,
            size=output.size,
            seal_root=output.seal_root,
        )
        return reader.read(0, output.size)

    def stored(self) -> list[str]:
        return list(self.storage.names())

    def read(self, file: MountedFile, grant: bool = True) -> bytes:
        token, uid = self.reader.reserve()
        if grant:
            self.keyd.grant(f"read-{token[:8].strip('-_')}", [file.key_id], uid, 60.0)
        return b"".join(self.reader.read(token, f"read-{token[:8].strip('-_')}", file))

    def read_all(self, token: str, grant_id: str, file: MountedFile) -> bytes:
        return b"".join(self.reader.read(token, grant_id, file))

    def rekey_all(
        self, token: str, grant_id: str, files: list[tuple[MountedFile, str]], public_key: bytes
    ) -> list[Rekeyed | Fault]:
        return list(self.reader.rekey(token, grant_id, files, public_key))

    def call(self, path: str, *arguments: Any, **named: Any) -> Any:
        """`compute.stop` and the like."""
        target: Any = self
        for name in path.split("."):
            target = getattr(target, name)
        return target(*arguments, **named) if callable(target) else target

    def set(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def deny(self, run_id: str) -> None:
        self.denied.add(run_id)


class Node:
    """A running node without doors: its supervisor with key holder and launcher, and the steward's process."""

    def __init__(self, home: Path, **compute: int) -> None:
        self.home = home
        settings = "\n".join(f"{key} = {value}" for key, value in compute.items())
        (home / "valv.toml").write_text(
            '[node]\nname = "node.test"\ncountry = "SE"\nunit = "test"\ndemo = true\n'
            '[keys]\npassphrase_file = "passphrase"\n'
            f"[processes]\nuid_base = {UID_BASE}\n[compute]\n{settings}\n"
        )
        (home / "passphrase").write_bytes(PASSPHRASE)
        (home / "passphrase").chmod(0o600)
        self.config = configuration.load(home)
        create_keys(self.config, PASSPHRASE, FileKeyring(self.config.keys, Cost(passes=1, lanes=1, memory=8 << 10)))
        self.users = Users.of(self.config)
        self.supervisor = self._spawn("supervise", None)
        assert self.supervisor.stdout is not None
        if self.supervisor.stdout.readline() != b"ready\n":
            raise AssertionError((home / "log" / "launcher.log").read_text())
        self.steward = self._spawn("steward", self.users.worker)
        self._lock = threading.Lock()
        self._answer()

    def _spawn(self, role: str, uid: int | None) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-I", "-B", str(Path(__file__).resolve()), role, str(self.home)]
        if uid is not None and os.geteuid() == 0:
            view = views(self.config, self.users)["worker"]
            here = Path(__file__).resolve().parent
            view = View(view.uid, view.groups, (*view.read, *confine.same(here)), view.write, network=True)
            program = confine.command(view, program)
        return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, path: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of the steward."""
        with self._lock:
            assert self.steward.stdin is not None
            pickle.dump((path, arguments, named), self.steward.stdin)
            self.steward.stdin.flush()
            return self._answer()

    def _answer(self) -> Any:
        assert self.steward.stdout is not None
        fault, value = pickle.load(self.steward.stdout)
        if fault is not None:
            raise fault
        return value

    def wait(self, run_id: str, seconds: float = 60.0) -> RunStatus:
        return self.until(run_id, lambda status: status.state == "ended", seconds)

    def until(self, run_id: str, good: Any, seconds: float = 60.0) -> RunStatus:
        until = time.monotonic() + seconds
        while True:
            status: RunStatus = self("compute.status", run_id)
            if good(status):
                return status
            assert time.monotonic() < until, status
            time.sleep(0.02)

    def run(
        self, *command: str, files: tuple[MountedFile, ...] = (), **more: Any
    ) -> tuple[RunStatus, dict[str, bytes], dict[str, str]]:
        """A whole run: how it ended, its outputs, what was skipped."""
        run_id = f"r{os.urandom(6).hex()}"
        self("start", run_id, command, files, **more)
        status = self.wait(run_id)
        taken, skipped = self("collect", run_id)
        self("compute.discard", run_id)
        return status, taken, skipped

    def shell(self, script: str, **more: Any) -> tuple[RunStatus, str, dict[str, bytes]]:
        """A shell script as a run: how it ended, what it printed (both streams), its outputs."""
        status, taken, _ = self.run("/bin/sh", "-c", script, **more)
        said = taken.pop("stdout.txt", b"") + taken.pop("stderr.txt", b"")
        return status, said.decode("utf-8", "replace"), taken

    def pid(self, name: str) -> int:
        """The process id of one of the supervisor's children (what confines it, where it is confined)."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
                if parent == self.supervisor.pid and f"valv.assemble.{name}".encode() in words:
                    return int(entry.name)
        raise AssertionError(f"no {name}")

    def close(self) -> None:
        for process, number in ((self.steward, signal.SIGTERM), (self.supervisor, signal.SIGTERM)):
            if process.poll() is None:
                process.send_signal(number)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        for folder in (self.config.runtime, confine.runs(self.config)):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running(**compute: int) -> Iterator[Node]:
    home = Path(tempfile.mkdtemp(prefix="valv-"))
    home.chmod(0o755)
    node = None
    try:
        node = Node(home, **{"slots": 3, **compute})
        yield node
    finally:
        if node is not None:
            node.close()
        shutil.rmtree(home, ignore_errors=True)


def skip_unless_able() -> None:
    """Skips where this machine cannot run sandboxes, with the reason."""
    home = Path(tempfile.mkdtemp(prefix="valv-"))
    try:
        (home / "valv.toml").write_text('[node]\nname = "n"\ncountry = "SE"\nunit = "t"\ndemo = true\n')
        check(configuration.load(home))
    except ComputeFault as fault:
        pytest.skip(str(fault))
    finally:
        shutil.rmtree(home)


def started() -> Iterator[Node]:
    """For a fixture."""
    skip_unless_able()
    with running() as made:
        yield made


def limits(**values: int) -> Limits:
    return Limits(**{"seconds": 60, "memory": 512 << 20, "processes": 64, "scratch": 64 << 20, **values})


def _supervise(home: str) -> int:
    logging.basicConfig(filename=Path(home, "supervisor.log"), level=logging.INFO)
    config = configuration.load(home)
    users = Users.of(config)
    prepare(config, users)
    supervisor = Supervisor(config, users, ("keyd", "launcher"))
    try:
        return supervisor.run(lambda: print("ready", flush=True))
    finally:
        supervisor.end()


def _steward(home: str) -> int:
    steward = Steward(configuration.load(home))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    out = sys.stdout.buffer

    def tell(fault: Exception | None, value: Any) -> None:
        pickle.dump((fault, value), out)
        out.flush()

    tell(None, None)
    while True:
        try:
            path, arguments, named = pickle.load(sys.stdin.buffer)
        except EOFError:
            return 0
        try:
            tell(None, steward.call(path, *arguments, **named))
        except Fault as fault:
            tell(type(fault)(fault.detail, fault.hint) if type(fault).__name__ != "RefusedFault" else fault, None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit({"supervise": _supervise, "steward": _steward}[sys.argv[1]](sys.argv[2]))
