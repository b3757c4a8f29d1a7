"""What outlived a launcher that was killed.

A sandbox asks the kernel to end it with its parent. Where the launcher dies in the moment before that was asked, its
sandbox lives on, without data: the mount is gone. It still has the files of its output open, and that tells it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from valv.compute import process

PROC: Final = Path("/proc")


def end(folder: Path) -> int:
    """Kill every process, but not this one, that has a file below a run's `folder` open; returns how many. Inside its
    own mounts a process sees that folder at another place, so that its last two names decide."""
    mark = f"/{folder.parent.name}/{folder.name}/"
    killed = 0
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            pidfd = os.pidfd_open(int(entry.name))  # opened first: it names this process and no later one
            try:
                if any(mark in link for link in _open_files(entry)):
                    process.kill(pidfd)
                    killed += 1
            finally:
                os.close(pidfd)
    return killed


def _open_files(entry: Path) -> Iterator[str]:
    for descriptor in (entry / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield str(descriptor.readlink())
