"""Limits that the kernel keeps for a whole tree of processes: control groups, version 2 or 1.

Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{memory,pids,cpuacct}.rst of the kernel.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

_NEEDED: Final = ("memory", "pids")
_REMOVE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Use:
    """CPU seconds, peak bytes of memory, and whether the memory limit killed something."""

    cpu: float
    memory: int
    out_of_memory: bool


class Group(Protocol):
    """The control group of one run."""

    def enter(self) -> None:
        """Move the calling process in. Called between fork and exec."""
        ...

    def use(self) -> Use: ...

    def remove(self) -> None:
        """Kill whatever is left inside and remove the group."""
        ...


class Groups(Protocol):
    """Where the groups of a node's runs are made."""

    def create(self, name: str, memory: int, processes: int) -> Group: ...

    def sweep(self) -> None:
        """Remove what an earlier life left behind."""
        ...

    def close(self) -> None: ...


def find(name: str) -> Groups | None:
    """The best kind of control groups that this process may use for memory and processes; None where it may use none.

    `name` sets the groups of this node apart from others.
    """
    mounts = list(_mounts())
    own = _own()
    for point, kind, _ in mounts:
        if kind == "cgroup2":
            for parent in (point / own.get("", "").lstrip("/"), point):
                if (unified := Unified.at(parent / name)) is not None:
                    return unified
    folders: dict[str, Path] = {}
    for point, kind, options in mounts:
        for controller in ("memory", "pids", "cpuacct"):
            if kind == "cgroup" and controller in options and controller not in folders:
                parent = point / own.get(controller, "").lstrip("/")
                folders[controller] = (parent if parent.is_dir() else point) / name
    return Legacy.at(folders) if all(controller in folders for controller in _NEEDED) else None


@dataclass(frozen=True, slots=True)
class Unified:
    """Version 2: one folder per run."""

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> Unified | None:
        """None where the memory and pids controllers cannot be had below `folder`."""
        wanted = " ".join(f"+{controller}" for controller in _NEEDED)
        made = False
        try:
            with suppress(OSError):  # often switched on already, or not ours to switch
                (folder.parent / "cgroup.subtree_control").write_text(wanted)
            made = not folder.exists()
            folder.mkdir(exist_ok=True)
            (folder / "cgroup.subtree_control").write_text(wanted)
        except OSError:
            if made:
                with suppress(OSError):
                    folder.rmdir()
            return None
        return cls(folder)

    def create(self, name: str, memory: int, processes: int) -> UnifiedGroup:
        folder = self.folder / name
        folder.mkdir()
        (folder / "memory.max").write_text(str(memory))
        (folder / "pids.max").write_text(str(processes))
        with suppress(OSError):  # kernels without swap accounting; plain bytes must not reach a disk
            (folder / "memory.swap.max").write_text("0")
        (folder / "memory.oom.group").write_text("1")
        return UnifiedGroup(folder)

    def sweep(self) -> None:
        for folder in _folders(self.folder):
            UnifiedGroup(folder).remove()

    def close(self) -> None:
        self.sweep()
        with suppress(OSError):
            self.folder.rmdir()


@dataclass(frozen=True, slots=True)
class UnifiedGroup:
    folder: Path

    def enter(self) -> None:
        (self.folder / "cgroup.procs").write_text("0")

    def use(self) -> Use:
        return Use(
            cpu=_keyed(self.folder / "cpu.stat", "usage_usec") / 1e6,
            memory=_number(self.folder / "memory.peak"),
            out_of_memory=_keyed(self.folder / "memory.events", "oom_kill") > 0,
        )

    def remove(self) -> None:
        with suppress(OSError):
            (self.folder / "cgroup.kill").write_text("1")
        _remove([self.folder])


@dataclass(frozen=True, slots=True)
class Legacy:
    """Version 1: one folder per controller and run."""

    folders: dict[str, Path]

    @classmethod
    def at(cls, folders: dict[str, Path]) -> Legacy | None:
        """None where a folder cannot be made."""
        made: list[Path] = []
        try:
            for folder in folders.values():
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
        except OSError:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
            return None
        return cls(folders)

    def create(self, name: str, memory: int, processes: int) -> LegacyGroup:
        folders = {controller: folder / name for controller, folder in self.folders.items()}
        for folder in folders.values():
            folder.mkdir()
        (folders["memory"] / "memory.limit_in_bytes").write_text(str(memory))
        with suppress(OSError):  # absent without swap accounting
            (folders["memory"] / "memory.memsw.limit_in_bytes").write_text(str(memory))
        with suppress(OSError):
            (folders["memory"] / "memory.swappiness").write_text("0")
        (folders["pids"] / "pids.max").write_text(str(processes))
        return LegacyGroup(folders)

    def sweep(self) -> None:
        names = {folder.name for parent in self.folders.values() for folder in _folders(parent)}
        for name in names:
            LegacyGroup({controller: folder / name for controller, folder in self.folders.items()}).remove()

    def close(self) -> None:
        self.sweep()
        for folder in self.folders.values():
            with suppress(OSError):
                folder.rmdir()


@dataclass(frozen=True, slots=True)
class LegacyGroup:
    folders: dict[str, Path]

    def enter(self) -> None:
        for folder in self.folders.values():
            (folder / "cgroup.procs").write_text("0")

    def use(self) -> Use:
        memory = self.folders["memory"]
        return Use(
            cpu=_number(self.folders["cpuacct"] / "cpuacct.usage") / 1e9 if "cpuacct" in self.folders else 0.0,
            memory=_number(memory / "memory.max_usage_in_bytes"),
            out_of_memory=_keyed(memory / "memory.oom_control", "oom_kill") > 0,
        )

    def remove(self) -> None:
        _remove(list(self.folders.values()))


def _remove(folders: list[Path]) -> None:
    """Kill what is inside and remove the folders; a group can be removed once its last process has been reaped."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    for folder in folders:
        while True:
            try:
                folder.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    break
            with suppress(OSError):
                for pid in map(int, (folder / "cgroup.procs").read_text().split()):
                    if pid > 0:  # 0: a process of another pid namespace
                        with suppress(ProcessLookupError, PermissionError):
                            os.kill(pid, 9)
            time.sleep(0.005)


def _folders(parent: Path) -> list[Path]:
    try:
        return [entry for entry in parent.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _mounts() -> Iterator[tuple[Path, str, list[str]]]:
    """Mount points of control groups: where, `cgroup` or `cgroup2`, options."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split(" ")
        if kind in ("cgroup", "cgroup2"):
            yield Path(point), kind, options.split(",")


def _own() -> dict[str, str]:
    """This process's group by controller; the unified one under the empty name."""
    own: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    return own


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def _keyed(file: Path, key: str) -> int:
    """The value of `key` in a file of `key value` lines; 0 where there is none."""
    try:
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0
