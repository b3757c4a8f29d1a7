"""A key holder that really runs: its own process and user, asked over its socket by processes of other users."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.peers.softhsm import PIN, SoftHsm
from valv.assemble import keyd
from valv.config import Config, load
from valv.formats import merkle
from valv.keys.client import KeydClient
from valv.keys.file import Cost, FileKeyring

BASE = 770_000
PASSPHRASE = b"correct horse battery staple"
CHEAP = Cost(passes=1, lanes=1, memory=64)
KEYD, SERVE, WORKER, RUN, OTHER_RUN, STRANGER = (BASE + n for n in (1, 2, 3, 100, 101, 5000))

# The imports come before the change of user, so that it works where that user cannot read the Python installation: what
# the standard library imports late is imported here too.
LAUNCH = """
import _strptime, contextlib, encodings.idna, linecache, locale, os, sys
from importlib import metadata
from valv.assemble import keyd
with contextlib.suppress(ImportError):
    import pkcs11._pkcs11
points = metadata.entry_points(group="valv.keys")
for point in points:
    point.load()
metadata.entry_points = lambda **_: points
uid = int(sys.argv[1])
if uid >= 0:
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
sys.exit(keyd.main(sys.argv[2:]))
"""


class Recording(socket.socket):
    """A connection that keeps all that it receives."""

    seen: list[bytes]

    def recv(self, *args: int) -> bytes:
        data = super().recv(*args)
        self.seen.append(data)
        return data


class ClientAs(KeydClient):
    """A client whose connections are made by a process of user `uid` (the kernel notes the user at connect)."""

    def __init__(self, path: Path, uid: int | None, seconds: float = 60.0) -> None:
        super().__init__(path, seconds)
        self._uid = uid
        self.seen: list[bytes] = []

    def _connect(self, seconds: float) -> socket.socket:
        connection = Recording(fileno=connect_as(self._path, self._uid).detach())
        connection.seen = self.seen
        connection.settimeout(seconds)
        return connection


def connect_as(path: str | Path, uid: int | None) -> socket.socket:
    """Connect as another user: a child takes that user's id, connects, and hands the connection back."""
    if uid is None:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        return connection
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.setgroups([KEYD])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(path))
            socket.send_fds(theirs, [b"x"], [connection.fileno()])
            status = 0
        os._exit(status)
    theirs.close()
    with ours:
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(child, 0)
    if not descriptors:
        raise ConnectionRefusedError(f"user {uid} cannot connect to {path}")
    return socket.socket(fileno=descriptors[0])


class Running:
    """A node's key folder and the process that holds it. `uid`: the process's user, None for ours. `softhsm`: where
    the root key is made; None for a file. `places`: how many places of the key backup."""

    def __init__(
        self,
        folder: Path,
        uid: int | None,
        *,
        unsealed: bool = True,
        softhsm: SoftHsm | None = None,
        places: int = 0,
    ) -> None:
        self.folder = folder
        self.uid = uid
        self.socket = folder / "run" / "keyd.sock"
        self.log = folder / "keyd.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: list[KeydClient] = []
        passphrase = folder / "passphrase"
        assert PASSPHRASE.decode() == PIN
        passphrase.write_bytes(PASSPHRASE + b"\n")
        passphrase.chmod(0o600)
        (folder / "run").mkdir(mode=0o755)
        extra = 'passphrase_file = "passphrase"\n' if unsealed else ""
        extra += f"backup = {[f'place-{number}' for number in range(places)]}\n"
        if softhsm is not None:
            keys = softhsm.settings()
            extra += f'backend = "pkcs11"\nmodule = "{keys.module}"\ntoken = "{keys.token}"\nkey = "{keys.key}"\n'
        (folder / "valv.toml").write_text(
            f'[node]\nname = "valv.example"\ncountry = "SE"\nunit = "test"\ndemo = true\n[keys]\n{extra}'
            f'[processes]\nuid_base = {BASE}\nruntime = "run"\n'
        )
        self.config: Config = load(folder)
        keyd.create(self.config, PASSPHRASE, None if softhsm else FileKeyring(self.config.keys, CHEAP))
        self.places = [self.config.key_place(place) for place in self.config.keys.backup]
        for place in self.places:
            place.mkdir(mode=0o700, parents=True)
        if uid is not None:
            for path in (passphrase, folder / "run", folder / "keys", *(folder / "keys").rglob("*"), *self.places):
                os.chown(path, uid, uid)
            if softhsm is not None:
                softhsm.give(uid)

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    def start(self) -> Running:
        uid = -1 if self.uid is None else self.uid
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCH, str(uid), "--node", str(self.folder)], stderr=log, stdout=log
            )
        deadline = time.monotonic() + 60
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the key holder did not start: {self.log.read_text()}")
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
                return self
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(60)

    def client(self, uid: int | None = None) -> ClientAs:
        client = ClientAs(self.socket, uid)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self.process is not None and self.process.poll() is None:
            self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def running(
    uid: int | None, *, unsealed: bool = True, softhsm: SoftHsm | None = None, places: int = 0
) -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="keyd-"))
    folder.chmod(0o755)
    holder = Running(folder, uid, unsealed=unsealed, softhsm=softhsm, places=places)
    try:
        yield holder.start()
    finally:
        holder.close()


class Tree:
    """A ledger's tree, all leaves at hand."""

    def __init__(self, leaves: int, flavour: bytes = b"leaf") -> None:
        self._leaves = [merkle.leaf_hash(b"%s %d" % (flavour, number)) for number in range(leaves)]

    def _node(self, level: int, index: int) -> bytes:
        if level == 0:
            return self._leaves[index]
        return merkle.node_hash(self._node(level - 1, 2 * index), self._node(level - 1, 2 * index + 1))

    def root(self, size: int) -> bytes:
        return merkle.root_at(size, self._node)

    def proof(self, old: int, new: int) -> list[bytes]:
        return merkle.consistency_proof(old, new, self._node)
