"""What was erased leaves the files of the database, its write-ahead log too."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from valv.db.database import Database

NOW = datetime(2031, 2, 3, tzinfo=UTC)
NAME = "CANARY-e4f1"


@pytest.fixture
def database(tmp_path: Path) -> Database:
    made = Database(f"sqlite:///{tmp_path / 'valv.sqlite'}")
    made.create()
    assert made.settle(), "nothing was erased yet"
    return made


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if NAME.encode() in path.read_bytes())


def write(database: Database) -> None:
    row = {"id": "t1", "body": NAME * 50, "owner_stream": "box/1", "kind": "note", "created": NOW}
    row |= {"salt": b"s" * 16, "digest": b"d" * 32}
    with database.writing() as unit:
        unit.insert("text", [row])


def erase(database: Database) -> None:
    with database.writing() as unit:
        assert unit.update("text", {"id": "t1"}, {"body": None, "erased": NOW}) == 1


def test_nothing_is_left_of_what_was_erased(database: Database, tmp_path: Path) -> None:
    write(database)
    assert held(tmp_path), "the search does not see it"
    erase(database)
    assert held(tmp_path), "no log is kept: this test shows nothing"
    assert database.settle() and not held(tmp_path)
    assert database.settle(), "there is nothing more to do"
    database.close()


def test_a_reader_is_not_waited_for(database: Database, tmp_path: Path) -> None:
    write(database)
    with database.reading() as reader:
        assert reader.rows("text")[0]["body"]
        erase(database)
        assert not database.settle(), "the reader still sees the old text"
        assert reader.rows("text")[0]["body"]
    assert database.settle() and not held(tmp_path)
    database.close()


def test_it_is_made_good_after_a_crash(database: Database, tmp_path: Path) -> None:
    """A process that erased, and died before it could settle."""
    write(database)
    kept = database.reading()
    assert kept.__enter__().rows("text")
    erase(database)
    later = Database(f"sqlite:///{tmp_path / 'valv.sqlite'}")
    assert not later.settle()
    kept.__exit__(None, None, None)
    assert later.settle() and not held(tmp_path)
    later.close()
    database.close()
