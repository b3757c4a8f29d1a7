"""Several processes at once, and `kill -9` of one that appends."""

from __future__ import annotations

import os
import random
import signal
import time
from datetime import UTC, datetime

from valv.db.database import Database
from valv.ports.records import Change

KILLS = 30
APPENDS = 30


def _write(url: str, told: int, life: int) -> None:
    """Append for ever; after each commit tell the parent the command's number."""
    database = Database(url)
    with database.reading() as unit:
        state = unit.load("box/1")
    version = state.version if state else 0
    for number in range(1_000_000):
        events = tuple((tag, b'{"n":%d}' % number) for tag in ("box.opened", "box.filled", "box.shut"))
        change = Change("box/1", "box", version, events, "shut", b'{"n":%d}' % number, {"life": (str(life),)})
        command = f"{life}-{number}"
        with database.writing() as unit:
            unit.append([change], actor="account/1", at=datetime.now(UTC), command=command)
            unit.upsert("setting", {"name": "newest", "value": command})
        version += len(events)
        os.write(told, f"{command}\n".encode())


def _one_life(url: str, life: int, seconds: float) -> list[str]:
    """Start a writer, kill it some time after its first commit; returns the commands that it had been told are kept."""
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(heard)
            _write(url, told, life)
        finally:
            os._exit(1)
    os.close(told)
    said = os.read(heard, 1 << 16)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while more := os.read(heard, 1 << 16):
        said += more
    os.close(heard)
    assert os.WIFSIGNALED(status), "the writer failed before it was killed"
    return said.decode().rpartition("\n")[0].split("\n")


def test_nothing_acknowledged_is_lost(database_url: str) -> None:
    """What the killed process was told is kept is there, once, and the ledger verifies."""
    builder = Database(database_url)
    builder.create()
    builder.close()
    chance = random.Random(7)
    told: list[str] = []
    for life in range(KILLS):
        told.extend(_one_life(database_url, life, chance.uniform(0, 0.15)))
        after = Database(database_url)
        report = after.verify()
        assert report.ok, report.fault
        with after.reading() as unit:
            events = unit.follow(-1, 1_000_000)
            newest = unit.rows("setting", {"name": "newest"})[0]["value"]
            found = unit.find("box", link=("life", str(life)))
        after.close()
        commands = [event.command for event in events]
        counts = {command: commands.count(command) for command in {*told[-50:], newest}}
        assert set(counts.values()) == {3}, "each append is there whole and once"
        assert commands[-1] == newest, "rows and events of one unit stand together"
        assert found
    assert set(told) <= set(commands)
    assert len(set(commands)) - len(set(told)) <= KILLS, "at most the last append of each life was kept unheard"


def _append_some(url: str, who: int) -> None:
    database = Database(url)
    for number in range(APPENDS):
        change = Change(f"box/{who}-{number}", "box", 0, (("box.made", b"{}"),), "open", b"{}")
        with database.writing() as unit:
            unit.append([change], actor=str(who), at=datetime.now(UTC), command=f"{who}-{number}")
    database.close()


def test_processes_append_side_by_side(database_url: str) -> None:
    builder = Database(database_url)
    builder.create()
    builder.close()
    children = []
    for who in range(3):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _append_some(database_url, who)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    after = Database(database_url)
    with after.reading() as unit:
        assert [event.position for event in unit.follow(-1)] == list(range(3 * APPENDS))
    assert after.verify().ok
    after.close()
