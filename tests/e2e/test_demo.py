"""`make demo ONCE=1` twice: the loop passes, and again on the node that is there already."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import free_port, node_missing


def test_the_demonstration_passes_twice(tmp_path: Path) -> None:
    if node_missing():
        pytest.skip(node_missing())
    valv = str(Path(sys.executable).parent / "valv")
    command = [valv, "demo", str(tmp_path / "node"), "--once", "--port", str(free_port())]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        for step in ("Deposit", "Review", "Compute", "Release", "Revoke", "Ledger"):
            assert step in done.stdout
