"""A busy, full or crossed database: a clear fault, nothing half-written, no value of a statement in any text."""

from __future__ import annotations

import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from valv.db import engine
from valv.db.database import Database
from valv.errors import ConflictFault, FullFault
from valv.ports.records import Change

NOW = datetime(2031, 2, 3, tzinfo=UTC)


def change(stream: str) -> Change:
    return Change(stream, "box", 0, (("box.made", b"{}"),), "open", b"{}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "valv.sqlite"


def test_a_writer_that_never_ends_makes_others_give_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 1)
    database = Database(f"sqlite:///{file}")
    database.create()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ConflictFault, match="busy with another change"), database.writing() as unit:
        unit.head()
    with database.reading() as unit:
        assert unit.head().size == 0, "readers go on"
    other.execute("ROLLBACK")
    other.close()
    with database.writing() as unit:
        unit.append([change("box/1")], actor="a", at=NOW, command="c")
    database.close()


def test_a_unit_inside_a_unit_gives_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 1)
    database = Database(f"sqlite:///{file}")
    database.create()
    with database.writing() as unit:
        unit.append([change("box/1")], actor="a", at=NOW, command="c")
        with pytest.raises(ConflictFault, match="the database is busy"), database.writing():
            pass
    assert database.verify().size == 1
    database.close()


def test_a_full_disk(file: Path) -> None:
    database = Database(f"sqlite:///{file}")
    database.create()
    with database.writing() as unit:
        pages = unit.run(sa.text("PRAGMA page_count")).scalar_one()
        unit.run(sa.text(f"PRAGMA max_page_count = {pages + 20}"))
    with pytest.raises(FullFault) as raised, database.writing() as unit:
        unit.append([change("box/1")], actor="a", at=NOW, command="c")
        unit.insert("setting", [{"name": "large", "value": "canary" * 100_000}])
    assert "canary" not in str(raised.value)
    with database.writing() as unit:
        assert unit.head().size == 0
        unit.append([change("box/1")], actor="a", at=NOW, command="c")
    assert database.verify().size == 1
    database.close()


def test_units_that_wait_for_each_other(postgres_url: str) -> None:
    """PostgreSQL ends one of them; it gets a conflict and may be repeated, the other is kept."""
    database = Database(postgres_url)
    database.create()
    with database.writing() as unit:
        unit.insert("setting", [{"name": "x", "value": 0}])
    both = threading.Barrier(2)
    outcomes: list[str] = []

    def rows_first() -> None:
        with database.writing() as unit:
            unit.update("setting", {"name": "x"}, {"value": 1})
            both.wait()
            unit.append([change("box/1")], actor="a", at=NOW, command="c1")

    def journal_first() -> None:
        with database.writing() as unit:
            unit.append([change("box/2")], actor="a", at=NOW, command="c2")
            both.wait()
            unit.update("setting", {"name": "x"}, {"value": 2})

    def attempt(what: object) -> None:
        try:
            assert callable(what)
            what()
            outcomes.append("kept")
        except ConflictFault:
            outcomes.append("conflict")

    threads = [threading.Thread(target=attempt, args=(one,)) for one in (rows_first, journal_first)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict", "kept"]
    assert database.verify().size == 1
    database.close()


def test_a_value_is_in_no_text_of_a_fault(database: Database) -> None:
    """Not even in the chain of causes that a log would print."""
    row = {"id": "canary-id", "account": "canary-nobody", "label": "", "public": b"p", "fingerprint": "f", "added": NOW}
    with pytest.raises(ConflictFault) as raised, database.writing() as unit:
        unit.insert("account_key", [row])
    assert "canary" not in str(raised.getrepr(style="native", showlocals=False, chain=True))
