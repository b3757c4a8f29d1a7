"""The host's own upkeep (an upgrade that puts new files in the place of old ones) must not hurt a running node."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import work

REPLACED = ("ld.so.cache", "passwd", "group")


def test_runs_go_on_after_files_of_the_host_were_replaced(running_node: Any, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("replacing files of the system needs root")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    name = work.fresh("host")
    work.deposit(running_node.person("carin"), tmp_path / "in", name, "identifiable", ["HMB"])
    permit = work.permit(running_node, name, "compute")
    for file in REPLACED:
        path = Path("/etc", file)
        fresh = path.with_name(f"{file}.valv-test")
        shutil.copy2(path, fresh)
        shutil.chown(fresh, path.owner(), path.group())
        fresh.replace(path)  # the same content in a new file, as package managers write
    done = work.run(running_node, permit, ["cat", f"/data/{name}/a.txt"])
    assert done["state"]["success"], done
