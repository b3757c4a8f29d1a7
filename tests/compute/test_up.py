"""`valv up`: the node's real processes come up, are kept going, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compute import stand
from valv import config as configuration
from valv.assemble import confine
from valv.assemble.confine import Users, View
from valv.assemble.create import create_node
from valv.assemble.prepare import views
from valv.assemble.up import running
from valv.config import Config
from valv.errors import ConfigFault

SECONDS = 120.0


class Up:
    """A supervisor in a process of its own."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.process = subprocess.Popen(
            [sys.executable, "-m", "valv.assemble.up", "--node", config.home],
            stdout=subprocess.DEVNULL,
            stderr=(Path(config.home) / "up.log").open("ab"),
        )

    def log(self) -> str:
        return (Path(self.config.home) / "up.log").read_text()

    def wait_up(self) -> None:
        until = time.monotonic() + SECONDS
        while "the node is up" not in self.log():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.05)

    def processes(self) -> dict[str, int]:
        """The node's own Python processes by module name, wherever they are."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                if self.config.home in words and "-m" in words and "bwrap" not in words[0]:
                    name = words[words.index("-m") + 1].rpartition(".")[2]
                    if name != "up" and int(entry.name) != os.getpid():
                        found[name] = int(entry.name)
        return found

    def none_left(self) -> None:
        until = time.monotonic() + 30
        while self.processes():
            assert time.monotonic() < until, self.processes()
            time.sleep(0.05)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    stand.skip_unless_able()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("node")
    create_node(home, name="node.test", country="SE", unit="test", port=port, demo=True)
    return configuration.load(home)


@pytest.fixture
def up(config: Config) -> Iterator[Up]:
    made = Up(config)
    try:
        made.wait_up()
        yield made
    finally:
        made.end()


def test_it_comes_up_and_ends_in_order(up: Up) -> None:
    assert set(up.processes()) == {"keyd", "launcher", "worker", "serve"}
    assert running(up.config) == up.process.pid
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(60) == 0
    assert not up.processes()
    assert running(up.config) is None
    ends = [line.split()[-2] for line in up.log().splitlines() if line.endswith(" ended")]
    assert ends == ["serve", "worker", "launcher", "keyd"]
    assert "killed" not in up.log()
    assert not up.config.runtime.exists()
    assert not confine.runs(up.config).exists()


def hidden(path: Path) -> bool:
    """Not there, or nothing of it can be read."""
    try:
        return path.read_bytes() == b""
    except OSError:
        return True


def test_each_process_has_its_own_user_and_no_rights(up: Up) -> None:
    if os.geteuid() != 0:
        pytest.skip("users differ only where root starts the node")
    users = Users.of(up.config)
    expected = {"keyd": users.keyd, "serve": users.serve, "worker": users.worker, "launcher": 0}
    for name, pid in up.processes().items():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        assert set(status["Uid"]) == {str(expected[name])}, name
        assert status["NoNewPrivs"] == ["1"], name
        rights = {int(status[key][0], 16) for key in ("CapEff", "CapPrm", "CapInh", "CapAmb")}
        if name == "launcher":
            assert max(rights) < 1 << 22  # no CAP_SYS_BOOT, CAP_SYSLOG, CAP_BPF and what comes after
        else:
            assert rights == {0}, name
        root = Path(f"/proc/{pid}/root")
        home = root / up.config.home.lstrip("/")
        assert (home / "keys").exists() == (name == "keyd"), name
        assert (home / "db").exists() == (name in ("serve", "worker")), name
        assert not (root / "root" / ".ssh").exists()
        assert hidden(root / "etc" / "shadow")
        net = os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net")
        assert net == (name in ("serve", "worker")), name


def test_only_the_key_holder_sees_the_passphrase(up: Up) -> None:
    secret = (Path(up.config.home) / up.config.keys.passphrase_file).read_bytes().strip()
    for name, pid in up.processes().items():
        path = Path(f"/proc/{pid}/root", up.config.home.lstrip("/"), up.config.keys.passphrase_file)
        if os.geteuid() == 0:
            assert path.exists() == (name == "keyd"), name
        for what in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{pid}/{what}").read_bytes()
    for log in Path(up.config.home, "log").glob("*.log"):
        assert secret not in log.read_bytes()
    assert secret not in up.log().encode()


@pytest.mark.parametrize("name", ["keyd", "launcher", "worker", "serve"])
def test_a_process_that_dies_is_started_again(up: Up, name: str) -> None:
    before = up.processes()
    os.kill(before[name], signal.SIGKILL)
    until = time.monotonic() + SECONDS
    while up.processes().get(name) in (None, before[name]):
        assert time.monotonic() < until, up.log()
        time.sleep(0.05)
    after = up.processes()
    assert {key: pid for key, pid in after.items() if key != name} == {
        key: pid for key, pid in before.items() if key != name
    }
    assert f"{name} ended" in up.log()


def test_killing_the_supervisor_leaves_nothing_running(config: Config) -> None:
    first = Up(config)
    try:
        first.wait_up()
        first.process.kill()
        first.process.wait()
        first.none_left()
    finally:
        first.end()
    (Path(config.home) / "up.log").unlink()
    second = Up(config)  # and it comes up again, over what the first one left
    try:
        second.wait_up()
    finally:
        second.end()
    assert second.process.returncode == 0


def test_a_second_one_is_refused(up: Up) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "valv.assemble.up", "--node", up.config.home],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 75
    assert f"process {up.process.pid}" in done.stderr
    assert up.process.poll() is None


def test_a_process_that_cannot_start_ends_all(config: Config) -> None:
    (Path(config.home) / config.keys.passphrase_file).write_bytes(b"wrong\n")
    made = Up(config)
    assert made.process.wait(SECONDS) == 69
    assert "keyd ended at its start" in made.log()
    assert "log/keyd.log" in made.log()
    assert not made.processes()


def test_views_name_only_what_is_needed(config: Config) -> None:
    seen = views(config, Users.of(config))
    keys, db = Path(config.home, "keys"), Path(config.home, "db")
    for name, view in seen.items():
        paths = {host for host, _ in (*view.write, *view.read)}
        assert (keys in paths) == (name == "keyd")
        assert (db in paths) == (name in ("serve", "worker"))
        assert Path(config.home) not in paths
    assert not seen["keyd"].network


def test_users_do_not_meet() -> None:
    config = configuration.Config(
        node=configuration.Node("n", "SE", "u"), compute=configuration.Compute(slots=400), home="/x"
    )
    users = Users.of(config)
    if not users.root:
        pytest.skip("users differ only where root starts the node")
    everyone = [users.group, users.keyd, users.serve, users.worker, *users.readers]
    everyone += [uid for slot in users.slots for uid in (slot.mount_uid, slot.run_uid)]
    assert len(set(everyone)) == len(everyone)
    assert max(everyone) < users.group + 1000
    low = configuration.Config(node=config.node, processes=configuration.Processes(uid_base=500), home="/x")
    with pytest.raises(ConfigFault):
        Users.of(low).check()


def test_a_view_hides_everything_else(tmp_path: Path) -> None:
    stand.skip_unless_able()
    (tmp_path / "seen").write_text("seen")
    (tmp_path / "hidden").write_text("hidden")
    view = View(uid=None, read=confine.same(tmp_path / "seen"))
    line = confine.command(
        view, ["sh", "-c", f"cat {tmp_path}/seen; ls {tmp_path}; touch {tmp_path}/seen || echo no; id -u"]
    )
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["seenseen", "no", str(os.geteuid())]
