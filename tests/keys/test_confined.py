"""The key holder as a node starts it, confined and under its own user, with its root key in a token."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.peers.softhsm import PIN, SoftHsm
from valv import config as configuration
from valv.assemble import keyd
from valv.assemble.confine import Users
from valv.assemble.prepare import bound, views
from valv.config import Config, Keys
from valv.errors import ConfigFault, KeyFault, UnreachableFault
from valv.formats import crypt4gh
from valv.keys.client import KeydClient

SUPERVISE = """
import sys
from valv import config as configuration
from valv.assemble.confine import Users
from valv.assemble.prepare import clear, prepare
from valv.assemble.up import Supervisor
config = configuration.load(sys.argv[1])
users = Users.of(config)
prepare(config, users)
supervisor = Supervisor(config, users, ("keyd",))
try:
    supervisor.run(lambda: print("ready", flush=True))
finally:
    supervisor.end()
    clear(config)
"""


def made(home: Path, keys: Keys, binds: list[str], *, kept: bool) -> Config:
    passphrase = home / "passphrase"
    passphrase.write_text(PIN + "\n")
    passphrase.chmod(0o600)
    (home / "valv.toml").write_text(
        '[node]\nname = "valv.example"\ncountry = "SE"\nunit = "test"\n[processes]\nuid_base = 780000\n'
        f'[keys]\nbackend = "pkcs11"\nmodule = "{keys.module}"\ntoken = "{keys.token}"\nkey = "{keys.key}"\n'
        f"binds = {binds}\n" + ('passphrase_file = "passphrase"\n' if kept else "")
    )
    return configuration.load(home)


@contextmanager
def supervised(config: Config) -> Iterator[KeydClient]:
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, config.home], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            log = Path(config.home, "log", "keyd.log")
            raise AssertionError(log.read_text() if log.exists() else process.communicate()[1])
        client = KeydClient(config.runtime / "keyd.sock", seconds=60)
        yield client
        client.close()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="valv-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def binds(softhsm: SoftHsm) -> list[str]:
    """SoftHSM is told by its settings file where its tokens are; inside it stands at its usual place."""
    return [f"{softhsm.settings_file}:/etc/softhsm/softhsm2.conf", str(softhsm.tokens)]


def test_confined_and_opened_by_a_person(needs_root: None, softhsm: SoftHsm, binds: list[str], home: Path) -> None:
    config = made(home, softhsm.settings(), binds, kept=False)
    keyd.create(config, PIN.encode())
    softhsm.give(Users.of(config).keyd)
    with supervised(config) as client:
        assert not client.status().open
        with pytest.raises(KeyFault, match="the PIN is wrong"):
            client.unseal(b"another PIN")
        client.unseal(PIN.encode())
        assert client.status().open
        node = client.status().node_key
    with supervised(config) as client:
        client.unseal(PIN.encode())
        assert client.status().node_key == node
    assert crypt4gh.build_header(bytes(32), [node])
    assert PIN not in (home / "log" / "keyd.log").read_text()


def test_confined_and_opened_by_itself(needs_root: None, softhsm: SoftHsm, binds: list[str], home: Path) -> None:
    config = made(home, softhsm.settings(), binds, kept=True)
    keyd.create(config, PIN.encode())
    softhsm.give(Users.of(config).keyd)
    with supervised(config) as client:
        until = time.monotonic() + 60
        while not client.status().open and time.monotonic() < until:
            time.sleep(0.05)
        assert client.status().open


def test_without_its_files_the_token_is_not_seen(needs_root: None, softhsm: SoftHsm, home: Path) -> None:
    config = made(home, softhsm.settings(), [], kept=False)
    keyd.create(config, PIN.encode())
    with supervised(config) as client, pytest.raises((ConfigFault, UnreachableFault), match=r"keys\.binds"):
        client.unseal(PIN.encode())


def test_only_the_key_holder_sees_the_token(softhsm: SoftHsm, binds: list[str], home: Path) -> None:
    config = made(home, softhsm.settings(), binds, kept=False)
    for name, view in views(config, Users.of(config)).items():
        assert (softhsm.tokens in {path for path, _ in (*view.read, *view.write)}) == (name == "keyd")
    with pytest.raises(ConfigFault, match=r"keys\.binds: /nowhere does not exist"):
        bound(made(home, softhsm.settings(), ["/nowhere"], kept=False))
