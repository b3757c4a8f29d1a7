"""From inside the node: what a process that was taken over can reach of the others. As the users that it would have."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.attack.scene import CANARY, Stage, connected
from tests.e2e import work
from valv.compute import wire
from valv.errors import Fault
from valv.keys.client import KeydClient
from valv.ports.compute import Limits
from valv.ports.lease import Beat, Lease

pytestmark = pytest.mark.usefixtures("as_root")

PROBE = """
import os, sys
for path in sys.argv[1:]:
    for how, flags in (("read", os.O_RDONLY), ("write", os.O_WRONLY)):
        try:
            os.close(os.open(path, flags))
            print(how, path)
        except OSError:
            pass
    try:
        os.listdir(path)
        print("list", path)
    except OSError:
        pass
"""
TRACE = """
import ctypes, sys
libc = ctypes.CDLL(None)
for pid in sys.argv[1:]:
    if libc.ptrace(16, int(pid), 0, 0) == 0:  # PTRACE_ATTACH
        print("traced", pid)
"""


def as_user(uid: int, groups: tuple[int, ...], script: str, *arguments: object) -> str:
    """Run a Python script on the host as another user, outside of every sandbox: the attacker broke out already."""
    given = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    command = ["setpriv", "--reuid", str(uid), "--regid", str(uid), *given, "--inh-caps=-all", "--bounding-set=-all"]
    done = subprocess.run(
        [*command, "/usr/bin/python3", "-I", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        check=True,
    )
    return done.stdout


@pytest.fixture
def open_folder(stage: Stage) -> Iterator[Path]:
    """The node's folder where everybody may enter it, so that its own rights have to hold."""
    before = stat.S_IMODE(stage.node.directory.stat().st_mode)
    stage.node.directory.chmod(0o755)
    yield stage.node.directory
    stage.node.directory.chmod(before)


def everything(folder: Path) -> list[Path]:
    return [folder, *sorted(folder.rglob("*"))]


def pids(stage: Stage, uid: int) -> list[int]:
    """Processes of this node with this user."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes()
            if entry.name.isdecimal() and entry.stat().st_uid == uid and bytes(stage.node.directory) in line:
                found.append(int(entry.name))
        except OSError:
            pass
    return found


def started(stage: Stage) -> dict[str, list[int]]:
    """The node's processes as the kernel has them; a key holder belongs to root for the kernel, as it is not
    dumpable."""
    found: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        named = re.search(r"valv\.assemble\.(\w+)", line)
        if named and str(stage.node.directory) in line and not line.startswith(("bwrap ", "setpriv ")):
            found.setdefault(named[1], []).append(int(entry.name))
    return found


# --- files ---


def test_the_servers_user_reads_no_key_no_secret_and_no_log(stage: Stage, open_folder: Path) -> None:
    base = stage.config.processes.uid_base
    secret = [path for name in ("keys", "secrets", "demo", "log") for path in everything(open_folder / name)]
    secret += everything(stage.config.runtime / "secrets" / "keyd")
    reached = as_user(base + 2, (base,), PROBE, *secret)
    assert reached == ""
    assert "read" in as_user(base + 2, (base,), PROBE, *everything(open_folder / "db"))  # the probe does probe
    assert "write" not in as_user(base + 2, (base,), PROBE, open_folder / "valv.toml")


@pytest.mark.parametrize("number", [100, 101, 900])
def test_users_of_runs_and_readers_reach_nothing_by_themselves(stage: Stage, open_folder: Path, number: int) -> None:
    base = stage.config.processes.uid_base
    paths = [path for path in everything(open_folder) if path != open_folder]
    assert as_user(base + number, (), PROBE, *paths, *everything(stage.config.runtime)) == ""


def test_a_mount_reads_ciphertext_and_writes_nothing(stage: Stage, open_folder: Path) -> None:
    """With the group that mounts have. Its sandbox shows it the store alone, and read-only: `prepare.views`."""
    base = stage.config.processes.uid_base
    for name in ("keys", "secrets", "demo", "log"):
        assert as_user(base + 100, (base,), PROBE, *everything(open_folder / name)) == ""


def test_modes_of_the_nodes_folder(stage: Stage) -> None:
    folder, base = stage.node.directory, stage.config.processes.uid_base
    for path in folder.iterdir():
        if path.name != "up.lock":  # holds a process id
            assert not path.lstat().st_mode & 0o007, f"{path}: {path.lstat().st_mode:o}"
    owners = {"keys": (base + 1, 0o077), "secrets": (0, 0o077), "demo": (0, 0o077)}
    for name, (owner, closed) in owners.items():
        for path in everything(folder / name):
            found = path.lstat()
            assert found.st_uid == owner and not found.st_mode & closed, path
    for name in ("db", "store"):
        for path in everything(folder / name):
            assert path.lstat().st_gid == base and not path.lstat().st_mode & 0o007, path


# --- processes ---


def test_no_process_of_the_node_can_be_looked_into(stage: Stage) -> None:
    base, found = stage.config.processes.uid_base, started(stage)
    assert {"keyd", "worker", "serve", "launcher"} <= set(found)
    others = [pid for name, ids in found.items() if name != "serve" for pid in ids]
    paths = [f"/proc/{pid}/{part}" for pid in others for part in ("mem", "environ", "maps", "fd", "root", "cwd")]
    for uid in (base + 2, base + 100, base + 101, base + 900):
        assert as_user(uid, (base,), PROBE, *paths) == ""
        assert as_user(uid, (base,), TRACE, *others) == ""
    mine = [f"/proc/{pid}/mem" for pid in found["keyd"]]
    assert as_user(base + 1, (base,), PROBE, *mine) == ""  # not even its own user
    assert as_user(base + 1, (base,), TRACE, *found["keyd"]) == ""


def test_the_key_holder_writes_no_core(stage: Stage) -> None:
    for pid in started(stage)["keyd"]:
        limits = Path(f"/proc/{pid}/limits").read_text()
        line = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        if os.readlink(f"/proc/{pid}/exe").endswith(("bwrap", "sh")):
            continue
        assert line.split()[4:6] == ["0", "0"], (pid, line)


def test_no_command_line_and_no_environment_holds_a_secret(stage: Stage) -> None:
    passphrase = (stage.node.directory / "secrets" / "passphrase").read_bytes().strip()
    secrets = [passphrase, CANARY.encode()]
    secrets += [value.encode() for one in stage.node.accounts.values() for value in (one["password"], one["totp"])]
    seen = 0
    for pid in [pid for ids in started(stage).values() for pid in ids]:
        for part in ("cmdline", "environ"):
            try:
                content = Path(f"/proc/{pid}/{part}").read_bytes()
            except OSError:
                continue
            seen += bool(content)
            assert not [secret for secret in secrets if secret in content], (pid, part)
    assert seen >= 8


# --- sockets ---


def launcher(stage: Stage, uid: int, request: Any) -> wire.Answer | None:
    """What the launcher answers this user; None where it hangs up."""
    base = stage.config.processes.uid_base
    with connected(stage.config.runtime / "launcher.sock", uid, (base,)) as connection:
        data = b""
        try:
            connection.sendall(wire.frame(request))
            while part := connection.recv(1 << 16):
                data += part
        except ConnectionError:
            pass
    return msgspec.msgpack.decode(data[wire.LENGTH.size :], type=wire.Answer) if data else None


VERBS = [
    wire.Reserve("mine"),
    wire.Start("mine", "mine", ("id",), Limits(), {}),
    wire.Status("mine"),
    wire.Stop("mine"),
    wire.Collect("mine", bytes(32)),
    wire.Discard("mine"),
    wire.Runs(),
    wire.Rekey("mine", "mine", bytes(32), ("body",)),
]


@pytest.mark.parametrize("request_", VERBS, ids=lambda one: type(one).__name__)
def test_the_server_may_only_read_at_the_launcher(stage: Stage, request_: Any) -> None:
    answer = launcher(stage, stage.config.processes.uid_base + 2, request_)
    assert answer is not None and answer.fault is not None and "only read" in answer.fault.detail
    for number in (1, 100, 101, 900):
        assert launcher(stage, stage.config.processes.uid_base + number, request_) is None


def test_a_reader_that_the_server_asks_for_reads_nothing_without_a_grant(stage: Stage) -> None:
    """It gets a process and a user for it; the key holder refuses the header."""
    base = stage.config.processes.uid_base
    answer = launcher(stage, base + 2, wire.ReserveReader())
    assert answer is not None and answer.fault is None
    token, uid = answer.value
    assert token and base + 900 <= uid < base + 1000
    with connected(stage.config.runtime / "keyd.sock", base + 2, (base,)) as connection:
        client = _Client(connection)
        with pytest.raises(Fault, match="result keys only"):
            client.grant("stolen", [f"version-{stage.deposit}"], uid, 60)


class _Client(KeydClient):
    def __init__(self, connection: socket.socket) -> None:
        super().__init__("")
        self._mine = connection

    def _connect(self, seconds: float) -> socket.socket:
        return self._mine


def _beat(stage: Stage, uid: int, run_id: str) -> bool | None:
    base = stage.config.processes.uid_base
    with connected(stage.config.runtime / "lease.sock", uid, (base,)) as connection:
        connection.sendall(msgspec.json.encode(Beat(f"run-{run_id}", run_id, {"x": 1})) + b"\n")
        data = connection.recv(4096)
    return msgspec.json.decode(data, type=Lease).granted if data else None


def test_the_lease_is_told_to_the_runs_own_mount_alone(stage: Stage) -> None:
    base, rikard = stage.config.processes.uid_base, stage.node.person("rikard")
    permit = work.permit(stage.node, stage.open, "compute", ("GRU",))
    ident = rikard.post("/runs", {"permit": permit, "command": ["sleep", "120"]})["run_id"]
    rikard.wait(f"/runs/{ident}", lambda found: found["state"]["phase"], ("running",))
    try:
        for number in (1, 2, 101, 900, 200):
            assert not _beat(stage, base + number, ident), number
        assert rikard.get(f"/runs/{ident}")["state"]["phase"] == "running"
    finally:
        rikard.post(f"/runs/{ident}/stop")


def test_made_up_runs_at_the_lease_take_no_place(stage: Stage) -> None:
    """A mount that was taken over must not keep others from computing."""
    base = stage.config.processes.uid_base
    for number in range(stage.config.compute.slots + 3):
        assert not _beat(stage, base + 100, f"madeup{number}")
    permit = work.permit(stage.node, stage.open, "compute", ("GRU",))
    assert work.run(stage.node, permit, ["true"])["state"]["success"]


@pytest.mark.parametrize("number", [101, 5000])
def test_a_commands_user_and_strangers_reach_no_socket(stage: Stage, number: int) -> None:
    base = stage.config.processes.uid_base
    for name in ("keyd.sock", "launcher.sock", "lease.sock"):
        with pytest.raises(PermissionError), connected(stage.config.runtime / name, base + number, ()):
            pass


def test_a_mounts_user_gets_no_header_without_its_grant(stage: Stage) -> None:
    base = stage.config.processes.uid_base
    with connected(stage.config.runtime / "keyd.sock", base + 104, (base,)) as connection:
        client = _Client(connection)
        for grant in ("none", f"run-{stage.run}"):
            with pytest.raises(Fault):
                client.reseal(grant, f"version-{stage.deposit}", b"crypt4gh", bytes(32))
        for ask in (
            lambda: client.grant("mine", [f"result-{stage.run}"], base + 104, 60),
            lambda: client.reseal_outside(f"version-{stage.deposit}", b"crypt4gh", bytes(32)),
            lambda: client.create("mine", "result"),
            lambda: client.sign(1, bytes(32), []),
            lambda: client.destroy(f"version-{stage.deposit}"),
        ):
            with pytest.raises(Fault):
                ask()


# --- two runs ---


def test_one_runs_users_see_nothing_of_another(stage: Stage) -> None:
    rikard, base = stage.node.person("rikard"), stage.config.processes.uid_base
    permit = work.permit(stage.node, stage.open, "compute", ("GRU",))
    idents = [
        rikard.post("/runs", {"permit": permit, "command": ["sh", "-c", "echo x > /work/x; sleep 120"]})["run_id"]
        for _ in range(2)
    ]
    try:
        for ident in idents:
            rikard.wait(f"/runs/{ident}", lambda found: found["state"]["phase"], ("running",))
        time.sleep(1)
        folder = stage.config.runtime.with_name(f"{stage.config.runtime.name}.runs")
        paths = [path for ident in idents for path in (folder / ident, *(folder / ident / n for n in _INSIDE))]
        assert all((folder / ident).is_dir() for ident in idents)
        for uid in (base + 2, base + 110, base + 111, base + 900):
            assert as_user(uid, (base,), PROBE, folder, *paths) == "", uid
    finally:
        for ident in idents:
            rikard.post(f"/runs/{ident}/stop")


_INSIDE = ("data", "work", "outbox", "scratch", "mount")
