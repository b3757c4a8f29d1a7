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
    command = [sys.executable, "-m", "valv.assemble", "demo", str(tmp_path / "node"), "--once"]
    for _ in range(2):
        port = ["--port", str(free_port())]
        done = subprocess.run([*command, *port], capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        for step in ("Deposit", "Review", "Compute", "Release", "Revoke", "Ledger"):
            assert step in done.stdout
