"""The whole loop on PostgreSQL, with the node's processes under users of their own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port, node_missing
from valv.assemble import demo
from valv.assemble.doctor import doctor


def test_the_loop_runs_on_postgresql(postgres_server: Any, tmp_path: Path) -> None:
    if node_missing():
        pytest.skip(node_missing())
    directory = tmp_path / "node"
    (directory / "secrets").mkdir(parents=True)
    shutil.copy(postgres_server.password_file, directory / "secrets" / "database")
    (directory / "secrets" / "database").chmod(0o600)
    name = postgres_server.create()
    try:
        config = demo.prepare(directory, free_port(), postgres_server.tcp_url(name), "secrets/database")
        assert config.database_url.startswith("postgresql")
        with demo.running(directory, config) as url, tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            walk = demo.Walk(url, directory, Path(folder))
            proven = [step() for _, step in walk.steps()]
        assert len(proven) == len(walk.steps())
        assert all(proven)
        assert doctor(directory) == 0
    finally:
        postgres_server.drop(name)
