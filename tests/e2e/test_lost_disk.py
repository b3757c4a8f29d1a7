"""A node with two stores that are folders, of which one is lost while it runs: runs read the other, and it is known."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RunningNode, free_port, node_missing
from tests.e2e import work
from tests.e2e.test_copies import EXPECTED, deposited, digests, rekeyed, rows, states, until
from valv import config as configuration
from valv.assemble import demo
from valv.assemble.bodies import confined
from valv.errors import UnreachableFault


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """`second`: a folder, nearer than `main`, so that it is read first."""
    if node_missing():
        pytest.skip(node_missing())
    with tempfile.TemporaryDirectory(prefix="valv-node-") as name:
        directory = Path(name)
        demo.prepare(directory, free_port())
        toml = directory / "valv.toml"
        with toml.open("a") as file:
            file.write('\n[storage]\ndistance = 1\n\n[stores.second]\npath = "second"\n')
        accounts = json.loads(demo.accounts_file(directory).read_text("utf-8"))
        with demo.running(directory, configuration.load(directory, secrets=True)) as url:
            yield RunningNode(url, directory, accounts)


@contextlib.contextmanager
def lost(folder: Path) -> Iterator[None]:
    """A disk that cannot be read: by nobody but root, as whom no process of the node runs."""
    mode = folder.stat().st_mode
    folder.chmod(0)
    try:
        yield
    finally:
        folder.chmod(mode & 0o7777)


def test_runs_go_on_with_the_other_copies(node: RunningNode, tmp_path: Path) -> None:
    name, bodies = deposited(node, tmp_path / "in", "lost")
    node.person("carin").post(f"/storage/datasets/{name}/rule", {"rule": "copies = 2"})
    until(lambda: all(states(node, body) == {"main": "whole", "second": "whole"} for body in bodies.values()), node)
    permit = work.permit(node, name, "compute")
    with lost(node.directory / "second"):
        assert digests(node, permit).items() >= EXPECTED.items()
        rekeyed(node, name, bodies)  # so do those who encrypt files anew
        assert digests(node, permit).items() >= EXPECTED.items()
        until(lambda: any(fault for (fault,) in rows(node, "SELECT fault FROM placing")), node)
    assert digests(node, permit).items() >= EXPECTED.items()


def test_a_process_starts_without_the_disk_of_another_store(node: RunningNode) -> None:
    """The parts that confined processes have: none of them makes a folder anew where a disk should be."""
    config = configuration.load(node.directory)
    there = node.directory / "second"
    aside = node.directory / "aside"
    there.rename(aside)
    try:
        stores = confined(config).stores
        with pytest.raises(UnreachableFault):
            stores["second"].size("x")
        assert not there.exists()
        os.symlink("/dev/null", there)  # no folder, and none can be made
        with pytest.raises(UnreachableFault):
            stores["second"].open("x")
        there.unlink()
    finally:
        aside.rename(there)
    body = rows(node, "SELECT body FROM copy WHERE store = 'main' AND state = 'whole'")[0][0]
    assert stores["main"].size(str(body)) > 0
    assert next(iter(stores["second"].names()), "") != ""
