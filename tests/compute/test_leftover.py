"""A process of a run that outlived its launcher is found by its open files, and no other is."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from valv.compute import leftover


def start(file: Path) -> subprocess.Popen[bytes]:
    file.parent.mkdir(parents=True)
    with file.open("wb") as out:
        return subprocess.Popen(["sleep", "1000"], stdout=out)


def test_only_the_processes_of_this_run_are_ended(tmp_path: Path) -> None:
    lost, other = tmp_path / "node.runs" / "lost", tmp_path / "node.runs" / "lost2"
    children = [start(lost / "scratch" / "stdout.txt"), start(other / "stdout.txt")]
    try:
        with (lost / "mine").open("wb"):  # this process has a file of the run open, too
            assert leftover.end(lost) == 1
        assert children[0].wait(10) == -9
        assert children[1].poll() is None
        time.sleep(0.05)
        assert leftover.end(lost) == 0
    finally:
        for child in children:
            child.kill()
            child.wait()
