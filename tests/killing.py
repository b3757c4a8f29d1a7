"""`kill -9` at random moments, as all tests of it do it: dice that can be thrown again, processes that die and are
there again, and what must hold afterwards.

A moment costs only itself where the process that is killed is `Forked`: its module has `main(words, begun)`, which
works until it is killed and calls `begun` once it does. `Victim` is a whole node that really runs.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import secrets
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from valv.errors import Fault, RefusedFault

ROOT = Path(__file__).resolve().parents[1]
SEED = "VALV_KILL_SEED"
MOMENTS = 10
MOMENTS_LONG = 200
"""Moments in one test, in the default run and with `--long`."""
PATIENCE = 90.0
PASSING = ("fault.unreachable", "fault.sealed", "fault.internal", "fault.storage", "fault.conflict", "fault.compute")
"""What a request may meet while a part of the node is away."""
LATER = timedelta(hours=3)
"""After that a node has cleared away by itself what senders left that died."""


@contextlib.contextmanager
def dice() -> Iterator[random.Random]:
    """Where the block fails, it says how to throw the same again."""
    seed = int(os.environ.get(SEED) or secrets.randbelow(1 << 30))
    try:
        yield random.Random(seed)
    except BaseException as error:
        error.add_note(f"{SEED}={seed} throws the same dice")
        raise


def again(step: Callable[[], Any]) -> Any:
    """Repeat a step, under the same key, until the node answers it."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return step()
        except (httpx.HTTPError, Fault) as fault:
            code = fault.refusal.code if isinstance(fault, RefusedFault) else "fault.unreachable"
            if code not in PASSING or time.monotonic() > end:
                raise
            time.sleep(0.05)


# --- a process that takes steps ---


class Forked:
    """Processes of a module, one after the other, each forked from one that has imported all it needs."""

    def __init__(self, module: str, *words: object) -> None:
        line = [sys.executable, "-m", "tests.killing", module, *map(str, words)]
        self._nursery = subprocess.Popen(line, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.kills = 0

    def start(self) -> None:
        """Returns when it works."""
        assert (said := self._ask("start")) == "begun", said

    def kill(self) -> None:
        """It must not have ended by a fault of its own before."""
        assert (said := self._ask("kill")) in ("killed", "ended 0"), said
        self.kills += 1

    def wait(self) -> None:
        """Until it comes to its end by itself."""
        assert (said := self._ask("wait")) == "ended 0", said

    def close(self) -> None:
        """Whatever of it goes on dies with the process that it was forked from."""
        self._nursery.kill()
        self._nursery.wait()
        for end in (self._nursery.stdin, self._nursery.stdout):
            assert end is not None
            end.close()

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, what: str) -> str:
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        self._nursery.stdin.write(f"{what}\n".encode())
        self._nursery.stdin.flush()
        return self._nursery.stdout.readline().decode().strip()


def _nursery(module: str, words: list[str]) -> None:
    main = importlib.import_module(module).main
    child = 0
    for line in sys.stdin:
        if line == "start\n":
            child, said = _fork(main, words)
        else:
            if line == "kill\n":
                os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said = "killed" if code == -signal.SIGKILL else f"ended {code}"
        print(said, flush=True)


def _fork(main: Callable[[list[str], Callable[[], None]], None], words: list[str]) -> tuple[int, str]:
    from valv.compute.process import die_with_parent

    ours, theirs = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        code = 1
        try:
            die_with_parent(parent)
            os.close(ours)
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(2, 1)  # what we were asked on, and where we answer, is the nursery's
            main(words, lambda: _say(theirs))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours, "rb") as begun:
        return child, "begun" if begun.read(1) else "it did not begin"


def _say(pipe: int) -> None:
    os.write(pipe, b"x")
    os.close(pipe)


# --- a node that runs ---


class Victim:
    """A node that is killed and started again until `stop`."""

    def __init__(self, directory: Path, config: Any, dice: random.Random) -> None:
        self._directory, self._config, self._dice = directory, config, dice
        self.kills = 0
        self._process: subprocess.Popen[bytes] | None = None
        (directory / "log").mkdir(exist_ok=True)

    def start(self) -> None:
        from valv.assemble import demo

        with (self._directory / "log" / "up.log").open("ab") as log:
            command = [sys.executable, "-m", "valv.assemble.up", "--node", str(self._directory)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        demo._until_ready(self._config, self._process, self._directory)

    def kill(self) -> None:
        """The whole node by its supervisor, or one process, which the supervisor starts again."""
        self.kills += 1
        if self._dice.random() < 0.5:
            self.kill_all()
            self.start()
            return
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(self._dice.choice(self.children()), signal.SIGKILL)

    def kill_all(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def children(self) -> list[int]:
        assert self._process is not None
        text = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return [int(child) for child in text.split()]

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


# --- afterwards ---


def looked_over(directory: Path) -> None:
    """Of a node that is down: once it has cleared away what it clears by itself, `valv doctor` finds nothing wrong,
    and then each store has the bodies that the records know of, whole, and nothing else."""
    from valv import config as configuration
    from valv.assemble.node import build

    config = configuration.load(directory)
    node = build(config).node
    _clear(node)
    doctor(directory)
    only_what_is_known(node)
    for name, settings in config.all_stores.items():
        if settings.backend == "local":
            assert list((config.path(settings.path) / "new").iterdir()) == [], f"begun bodies are left in {name}"


def doctor(directory: Path) -> None:
    """The command itself, as an operator types it."""
    line = [sys.executable, "-c", "from valv.assemble import main; main()", "doctor", str(directory)]
    said = subprocess.run(line, capture_output=True, text=True, timeout=300, env=os.environ | {"COLUMNS": "300"})
    assert said.returncode == 0, said.stdout + said.stderr
    assert "✗" not in said.stdout and "every file is in the store" in said.stdout, said.stdout


def _clear(node: Any) -> None:
    """What the loops of a worker do, some hours later."""
    from valv.app import copying, intake, placement, rotating, upload

    late = replace(node, clock=lambda: datetime.now(UTC) + LATER)
    intake.clear_dead(late)
    upload.clear(late)
    rotating.clear(late)
    while copying.follow(late) or copying.turn(late):
        pass
    placement.end_moves(late)


def only_what_is_known(node: Any) -> None:
    from valv.formats.seal import sidecar

    with node.records.reading() as unit:
        rows = [row for row in unit.rows("file") if row["state"] != "destroyed"]
        halves = [row["path"] for row in rows if row["state"] not in ("received", "verified")]
        assert not halves, f"half there: {halves}"
        assert unit.rows("upload_part") == [] and unit.rows("stale_body") == []
        files = {row["body"] for row in rows} | {row["body"] for row in unit.rows("release_file")}
        copies = unit.rows("copy")
        assert unit.rows("placing") == []
    assert {row["state"] for row in copies} <= {"whole"}, copies
    assert {row["body"] for row in copies} <= files, "copies of what is no file"
    lies: dict[str, set[str]] = {name: set() for name in node.each_store()}
    for row in copies:
        lies[row["store"]].add(row["body"])
    lies["main"] |= files - {row["body"] for row in copies}  # nobody has placed them yet
    for name, store in node.each_store().items():
        wanted = {one for body in lies[name] for one in (body, sidecar(body))}
        found = set(store.names())
        assert found == wanted, f"{name}: left over {found - wanted}, missing {wanted - found}"


if __name__ == "__main__":
    _nursery(sys.argv[1], sys.argv[2:])
