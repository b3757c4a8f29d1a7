"""Memory with keys in it that could reach a disk: the doctor warns of swap space in plain, and of a root key that is
not locked."""

from __future__ import annotations

import io
import os
import resource
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import free_port, node_missing
from valv.assemble import demo
from valv.assemble.doctor import doctor, swap


class Machine:
    """What the kernel tells of swap spaces, as files of the same form in `folder`; the devices are described there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.swaps = folder / "swaps"
        self.swaps.write_text("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")
        (folder / "devices").mkdir()
        (folder / "dev" / "block").mkdir(parents=True)

    def device(self, name: str, uuid: str = "", slaves: tuple[Path, ...] = ()) -> Path:
        path = self.folder / "devices" / name
        (path / "slaves").mkdir(parents=True)
        if uuid:
            (path / "dm").mkdir()
            (path / "dm" / "uuid").write_text(f"{uuid}\n")
        for slave in slaves:
            (path / "slaves" / slave.name).symlink_to(slave)
        return path

    def swap_on(self, device: Path | None, name: str = "swapfile") -> None:
        """A swap file in this folder, whose file system lies on `device`."""
        path = self.folder / name
        path.touch()
        number = path.stat().st_dev
        if device is not None:
            (self.folder / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}").symlink_to(device)
        shown = str(path).replace(" ", "\\040")
        with self.swaps.open("a") as file:
            file.write(f"{shown}                               file\t\t1048572\t\t0\t\t-2\n")

    def found(self) -> list[str]:
        return [finding.what for finding in swap(self.swaps, self.folder)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_no_swap_space(machine: Machine, tmp_path: Path) -> None:
    assert machine.found() == []
    assert list(swap(tmp_path / "no-such-file", tmp_path)) == []


def test_a_plain_disk_is_warned_of(machine: Machine) -> None:
    machine.swap_on(machine.device("vda1"), "swap file")
    [what] = machine.found()
    assert f"{machine.folder}/swap file is not encrypted" in what


def test_a_device_that_cannot_be_told_is_warned_of(machine: Machine) -> None:
    machine.swap_on(None)
    assert len(machine.found()) == 1


@pytest.mark.parametrize("behind", ["", "none\n", "/dev/vda2\n"])
def test_compressed_memory_is_fine_unless_a_device_is_behind_it(machine: Machine, behind: str) -> None:
    device = machine.device("zram0")
    if behind:
        (device / "backing_dev").write_text(behind)
    machine.swap_on(device)
    assert len(machine.found()) == ("/dev" in behind)


def test_an_encrypted_device_is_fine_also_under_others(machine: Machine) -> None:
    crypt = machine.device("dm-0", "CRYPT-PLAIN-swap", (machine.device("vda2"),))
    machine.swap_on(machine.device("dm-1", "LVM-x", (crypt,)))
    assert machine.found() == []


def test_a_volume_that_is_encrypted_in_part_is_warned_of(machine: Machine) -> None:
    crypt = machine.device("dm-0", "CRYPT-LUKS2-x", (machine.device("vda2"),))
    machine.swap_on(machine.device("dm-1", "LVM-x", (crypt, machine.device("vdb"))))
    assert len(machine.found()) == 1


def test_this_machine_s_own_files_are_understood() -> None:
    lines = Path("/proc/swaps").read_text().splitlines()[1:]
    assert len(list(swap())) <= len(lines)


def test_an_unlocked_root_key_is_warned_of(tmp_path: Path) -> None:
    """A node whose limit on locked memory is zero: the log and the doctor say so, and nothing else is wrong."""
    if node_missing():
        pytest.skip(node_missing())
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    config = demo.prepare(tmp_path / "node", free_port())
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    try:
        with demo.running(tmp_path / "node", config):
            said = io.StringIO()
            code = doctor(tmp_path / "node", Console(file=said, width=200, color_system=None))
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    assert "the root key's memory is not locked" in said.getvalue()
    assert code == 0, said.getvalue()
    assert "may be swapped out" in (tmp_path / "node" / "log" / "keyd.log").read_text()
