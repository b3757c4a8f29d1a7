"""What all tests share: the real data, a really running node, and the rule that in CI nothing is skipped silently."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

pytest_plugins = [
    "tests.peers.barbican",
    "tests.peers.ceph",
    "tests.peers.postgres",
    "tests.peers.softhsm",
    "tests.peers.swift",
    "tests.peers.xrootd",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="full counts: `make test-long`")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "may_skip: skipping is allowed even in CI")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    """In CI a test that cannot start its peer is a failure, unless it says that it may be skipped."""
    report = yield
    ci = os.environ.get("CI") == "true"
    if ci and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("may_skip") is None:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr[2] if isinstance(report.longrepr, tuple) else ''}"
    node = getattr(item, "funcargs", {}).get("running_node")
    if report.failed and isinstance(node, RunningNode):
        report.sections.append(("the node's logs", node.last_words()))
    return report


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the full counts are wanted."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, beside the checkout or where VALV_TEST_DATA points."""
    folder = Path(os.environ.get("VALV_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the folder of real data is absent: {folder}")
    return folder


@dataclass(frozen=True)
class RunningNode:
    """A node whose processes really run. `accounts`: name → password, totp, display."""

    url: str
    directory: Path
    accounts: dict[str, dict[str, str]]
    people: dict[str, Any] = field(default_factory=dict)

    def last_words(self, lines: int = 15) -> str:
        """The end of each process's log."""
        parts = []
        for path in sorted((self.directory / "log").glob("*.log")):
            parts += [f"--- {path.name}", *path.read_text("utf-8", "replace").splitlines()[-lines:]]
        return "\n".join(parts)

    def person(self, name: str) -> Any:
        """Logged in once for all tests: a code of the second factor counts once, and the next is 30 seconds away."""
        from valv.assemble.demo_client import Person

        if name not in self.people:
            account = self.accounts[name]
            self.people[name] = Person(self.url, name, account["password"], account["totp"])
        return self.people[name]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def node_missing() -> str:
    """Why no node can run here, '' where one can."""
    import shutil

    missing = [name for name in ("bwrap", "setpriv", "fusermount3") if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    return ""


DAY = 24 * 3600


@pytest.fixture(scope="session")
def running_node() -> Iterator[RunningNode]:
    """One node for all tests of this process that need one: made as the demonstration makes its own."""
    from valv import config as configuration
    from valv.assemble import demo

    why = node_missing()
    if why:
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="valv-node-") as folder:
        directory = Path(folder)
        demo.prepare(directory, free_port())
        # All tests share the sessions, and together they take longer than people's own would last.
        toml = directory / "valv.toml"
        lasting = f"[login]\nidle = {DAY}\nabsolute = {DAY}\nstep_up = {DAY}\n"
        toml.write_text(toml.read_text("utf-8").replace("[login]\n", lasting), "utf-8")
        config = configuration.load(directory, secrets=True)
        accounts = json.loads(demo.accounts_file(directory).read_text("utf-8"))
        with demo.running(directory, config) as url:
            yield RunningNode(url, directory, accounts)
