"""What a run uses, where the kernel gives us no control groups: counted in /proc, a few times a second.

Weaker than a control group: memory may pass the limit between two looks, and what ended before a look is not counted.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from valv.compute.cgroup import Use

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Watch:
    """Looks at the tree of processes under one process. `limit`: bytes of memory for all together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._peak = 0
        self._cpu: dict[tuple[int, int], float] = {}
        self._over = False

    def look(self, root: int) -> bool:
        """Count once; whether the tree of `root` is over its memory limit."""
        memory = 0
        for pid, start, seconds, resident in tree(root):
            self._cpu[pid, start] = seconds
            memory += resident
        self._peak = max(self._peak, memory)
        self._over = self._over or memory > self._limit
        return self._over

    def use(self) -> Use:
        return Use(cpu=sum(self._cpu.values()), memory=self._peak, out_of_memory=self._over)


def tree(root: int) -> list[tuple[int, int, float, int]]:
    """`root` and all its descendants: (pid, start in ticks since boot, CPU seconds, resident bytes)."""
    children: dict[int, list[int]] = {}
    seen: dict[int, tuple[int, float, int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - names only, many times a second
        if not name.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):
            # The command's name is in brackets and may hold anything; fields are counted after it (proc(5)).
            fields = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()
            pid = int(name)
            children.setdefault(int(fields[1]), []).append(pid)
            cpu = (int(fields[11]) + int(fields[12])) / _TICKS
            seen[pid] = (int(fields[19]), cpu, int(fields[21]) * _PAGE)
    found: list[tuple[int, int, float, int]] = []
    pending = [root]
    while pending:
        pid = pending.pop()
        if pid in seen:
            found.append((pid, *seen[pid]))
            pending += children.get(pid, [])
    return found


def size(folder: Path, bound: int) -> int:
    """Bytes on disk in the folder, links not followed; more than `bound` as soon as it is clear that they are more, or
    where they cannot be counted: a folder that is closed to us or nested too deeply."""
    total = 0
    pending = [str(folder)]
    while pending and total <= bound:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # removed while we count
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return bound + 1
    return total
