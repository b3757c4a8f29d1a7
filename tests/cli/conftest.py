"""The command line in this process, against a real node behind a real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.world import PASSWORD, World, world
from valv.cli.app import build
from valv.cli.operator import Operator


@dataclass
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def line(self) -> str:
        return self.out.strip().splitlines()[-1]


@dataclass
class Calls:
    """An operator's functions that write down how they were called."""

    made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def function(self, name: str, answer: Any) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            self.made.append((name, given, named))
            return answer

        return call

    def operator(self) -> Operator:
        answers = {"create_account": "SECRET", "up": 0, "demo": 7, "doctor": 0}
        return Operator(**{one.name: self.function(one.name, answers.get(one.name)) for one in fields(Operator)})


class Valv:
    """The `valv` command with a profile of its own."""

    def __init__(self, profile: Path, calls: Calls) -> None:
        self.profile = profile
        self._app = build(calls.operator())

    def run(self, *arguments: object, feed: bytes | None = None) -> Ran:
        words = ["--profile", str(self.profile), *map(str, arguments)]
        ended = CliRunner().invoke(self._app, words, input=feed, prog_name="valv")
        assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
        return Ran(ended.exit_code, ended.stdout, ended.stderr, ended.stdout_bytes)

    def good(self, *arguments: object, feed: bytes | None = None) -> Ran:
        ran = self.run(*arguments, feed=feed)
        assert ran.code == 0, (arguments, ran.out, ran.err)
        return ran

    def bad(self, code: int, *arguments: object) -> Ran:
        """Fails with this exit code, one error line and a next step, and never with a traceback."""
        ran = self.run(*arguments)
        assert ran.code == code, (arguments, ran.code, ran.out, ran.err)
        assert "Error: " in ran.err, ran.err
        assert "Traceback" not in ran.err
        return ran


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def valv(tmp_path: Path, calls: Calls) -> Valv:
    return Valv(tmp_path / "profile.json", calls)


@pytest.fixture(scope="session")
def node_world() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture(scope="session")
def logged_in(node_world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Valv]:
    """`valv` of a person who is logged in, with a second factor."""
    known: dict[str, Valv] = {}
    folder = tmp_path_factory.mktemp("profiles")
    secret = folder / "password"
    secret.write_text(PASSWORD + "\n")

    def log_in(name: str) -> Valv:
        if name not in known:
            code = folder / f"{name}.code"
            code.write_text(node_world.code(name))
            person = Valv(folder / f"{name}.json", Calls())
            files = ("--password-file", secret, "--code-file", code)
            person.good("login", node_world.server.url, "--account", name, *files)
            known[name] = person
        return known[name]

    return log_in


@contextmanager
def working(w: World, outputs: Mapping[str, bytes] = {}) -> Iterator[None]:
    """The node's worker goes on while the block runs."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.2):
            w.work(outputs)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
