"""`valv luks`: headers of encrypted disks, against a key holder that really runs and the real cryptsetup.

Opening a disk needs dm-crypt in the kernel; that a key opens it is shown by `cryptsetup open --test-passphrase`."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import officers
from tests.cli.conftest import Calls, Valv
from tests.officers import NAMES, Officers
from valv import assemble
from valv.assemble.custody import Desk
from valv.config import load
from valv.errors import KeyFault, RefusedFault
from valv.formats import crypt4gh
from valv.keys import disks, luks
from valv.keys.luks import Volume
from valv.ports.keys import KeyHolder


class Real(Calls):
    def operator(self) -> Any:
        return assemble.operator()


class Desks:
    """A node with a running key holder, officers' files, and `valv luks`."""

    def __init__(self, directory: Path, keys: KeyHolder, folder: Path) -> None:
        self.directory = directory
        self.keys = keys
        self.folder = folder
        self.secret = Officers("valv.example").write(folder)
        self.valv = Valv(folder / "profile.json", Real())
        self.desk = Desk(load(directory))

    def luks(self, word: str, *words: object) -> Any:
        return self.valv.good("--json", "luks", word, *words).json

    def refused(self, word: str, *words: object) -> str:
        """What it says on standard error."""
        ran = self.valv.run("luks", word, *words)
        assert ran.code not in (0, 70), (ran.code, ran.out, ran.err)
        assert "Error: " in ran.err and "Traceback" not in ran.err
        return " ".join(ran.err.split())

    def disk(self, name: str) -> Path:
        device = self.folder / name
        self.luks("create", self.directory, device, "--size", "40M")
        return device

    def public(self, *names: str) -> list[object]:
        return [part for name in names for part in ("--officer", self.folder / f"{name}.officer.pub")]

    def private(self, *names: str) -> list[object]:
        keys = [part for name in names for part in ("--officer-key", self.folder / f"{name}.officer")]
        return [*keys, *(part for _ in names for part in ("--passphrase-file", self.secret))]


@pytest.fixture(scope="module")
def n(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desks]:
    if shutil.which("cryptsetup") is None:
        pytest.skip("cryptsetup is not installed: apt-get install cryptsetup-bin")
    with officers.world() as (made, _):
        yield Desks(made.folder, made.worker.keys, tmp_path_factory.mktemp("disks"))


def slots(device: Path) -> set[int]:
    return set(Volume(device).header().slots)


def test_a_disk_opens_with_the_node_s_key_alone(n: Desks) -> None:
    device = n.disk("one.img")
    told = n.luks("status", device)
    assert (told["nodes"], told["escrow"], told["others"]) == (["valv.example"], [], [])
    assert told["cipher"] == "aes-xts-plain64"
    assert device.stat().st_mode & 0o777 == 0o600
    secret = disks.secret_of(n.desk, Volume(device))
    assert Volume(device).check(secret)
    assert not Volume(device).check(bytes(32))
    assert secret not in device.read_bytes()


def test_what_is_on_a_disk_is_not_lost_by_mistake(n: Desks) -> None:
    device = n.disk("kept.img")
    before = n.luks("status", device)["uuid"]
    assert "something on" in n.refused("create", n.directory, device)
    assert n.luks("status", device)["uuid"] == before
    assert n.luks("create", n.directory, device, "--erase")["uuid"] != before
    assert "is there already" in n.refused("create", n.directory, device, "--size", "40M")


def test_rotation_ends_the_old_passphrase(n: Desks) -> None:
    device = n.disk("turned.img")
    volume = Volume(device)
    old = disks.secret_of(n.desk, volume)
    n.luks("rotate", n.directory, device)
    fresh = disks.secret_of(n.desk, volume)
    assert fresh != old
    assert volume.check(fresh) and not volume.check(old)
    assert len(slots(device)) == 1


def test_a_slot_that_nobody_accounts_for_is_shown_and_dropped(n: Desks) -> None:
    device = n.disk("strange.img")
    volume = Volume(device)
    strange = luks.new_secret()
    slot = volume.add(disks.secret_of(n.desk, volume), strange)
    assert n.luks("status", device)["others"] == [slot]
    assert "who opens them is not known" in n.valv.good("luks", "status", device).err
    n.luks("rotate", n.directory, device)
    assert n.luks("status", device)["others"] == [slot]
    assert n.luks("rotate", n.directory, device, "--drop-others")["others"] == []
    assert not volume.check(strange)


def test_officers_open_a_disk_whose_node_is_lost(n: Desks) -> None:
    device = n.disk("held.img")
    told = n.luks("escrow", n.directory, device, *n.public(*NAMES), "--threshold", 2)
    assert told["escrow"] == [{"threshold": 2, "officers": sorted(NAMES)}]
    before = disks.secret_of(n.desk, Volume(device))
    assert "2 of" in n.refused("recover", n.directory, device, *n.private("bo"))
    n.luks("recover", n.directory, device, *n.private("anna", "eva"))
    assert not Volume(device).check(before)
    assert Volume(device).check(disks.secret_of(n.desk, Volume(device)))
    # Another escrow ends the first one.
    n.luks("escrow", n.directory, device, *n.public("bo", "eva"), "--threshold", 2)
    assert "2 of bo, eva" in n.refused("recover", n.directory, device, *n.private("anna", "eva"))
    assert len(slots(device)) == 2


@pytest.mark.parametrize(("names", "threshold"), [(("anna",), 1), (("anna", "bo"), 3), (("anna", "anna"), 2)])
def test_an_escrow_that_cannot_be_is_refused_before_anything_changes(
    n: Desks, names: tuple[str, ...], threshold: int
) -> None:
    device = n.folder / "refused.img"
    if not device.exists():
        n.disk("refused.img")
    before = Volume(device).header()
    n.refused("escrow", n.directory, device, *n.public(*names), "--threshold", threshold)
    assert Volume(device).header() == before


def test_another_node_s_disk_says_whose_it_is(n: Desks) -> None:
    device = n.disk("foreign.img")
    volume = Volume(device)
    number, token, _ = next(luks.numbered(volume.header().nodes))
    volume.attach(luks.Token(token.keyslots, "elsewhere.example", token.key_id, token.header))
    subprocess.run(["cryptsetup", "token", "remove", "--token-id", str(number), device], check=True)
    assert "elsewhere.example" in n.refused("open", n.directory, device, "vault")


def test_erased_is_erased(n: Desks) -> None:
    device = n.disk("erased.img")
    secret = disks.secret_of(n.desk, Volume(device))
    n.luks("erase", device, "--yes")
    assert slots(device) == set()
    assert not Volume(device).check(secret)
    with pytest.raises(KeyFault):
        disks.secret_of(n.desk, Volume(device))


def test_only_the_operator_gets_a_disk_s_key_and_it_is_nothing_else(n: Desks) -> None:
    device = n.disk("roles.img")
    _, token, sealed = next(luks.numbered(Volume(device).header().nodes))
    once = crypt4gh.generate_keypair()
    n.keys.create("data-1", "identifiable")
    for refused in (
        lambda: n.keys.rotate(token.key_id, 2),
        lambda: n.keys.retire(token.key_id, 1),
        lambda: n.keys.narrow(token.key_id),
        lambda: n.keys.destroy(token.key_id),
        lambda: n.keys.reseal_within(token.key_id, [sealed]),
        lambda: n.keys.grant("disk", [token.key_id], 610100, 60),
        lambda: n.desk.reseal_volume("data-1", sealed, once.public),
    ):
        with pytest.raises(RefusedFault):
            refused()


def test_opening_needs_the_kernel_and_says_so(n: Desks) -> None:
    device = n.disk("opened.img")
    if "device-mapper" in Path("/proc/misc").read_text():
        name = f"valv-test-{random.randrange(10**9)}"
        path = Path(n.luks("open", n.directory, device, name)["path"])
        try:
            assert path.exists()
        finally:
            n.luks("close", name)
        assert not path.exists()
    else:
        assert "dm-crypt" in n.refused("open", n.directory, device, "vault")
    n.luks("close", "valv-never-was-open")


@pytest.mark.parametrize("name", ["", "../x", "-x", "a b", "x" * 65])
def test_names_of_open_disks(n: Desks, name: str) -> None:
    assert "cannot name a disk" in n.refused("close", "--", name)


def test_what_is_no_disk(n: Desks, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(1 << 20))
    assert "no LUKS2 volume" in n.refused("status", empty)
    assert "does not exist" in n.refused("status", tmp_path / "nothing")
    assert "32 MiB at least" in n.refused("create", n.directory, empty)


def test_a_killed_rotation_leaves_a_disk_that_opens(n: Desks, request: pytest.FixtureRequest) -> None:
    device = n.disk("killed.img")
    script = (
        "import sys; from pathlib import Path; from valv.assemble.disks import Disks; "
        "d = Disks(Path(sys.argv[1])); print('go', flush=True); "
        "[d.rotate(Path(sys.argv[2]), drop_others=False) for _ in range(1000)]"
    )
    draw = random.Random(7)
    for _ in range(50 if request.config.getoption("--long") else 6):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(n.directory), str(device)],
            stdout=subprocess.PIPE,
            start_new_session=True,
        ) as child:
            assert child.stdout is not None and child.stdout.readline() == b"go\n"
            time.sleep(draw.uniform(0.05, 0.8))
            child.send_signal(signal.SIGKILL)
        assert Volume(device).check(disks.secret_of(n.desk, Volume(device)))
    n.luks("rotate", n.directory, device, "--drop-others")
    assert len(slots(device)) == 1
    assert len(json.loads(json.dumps(n.luks("status", device)))["nodes"]) == 1
