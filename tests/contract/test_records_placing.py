"""What every database must do with copies and the queue of bodies, each test on SQLite and on PostgreSQL; and that it
stays quick with very many files."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from valv.db.database import Database
from valv.formats.crypt4gh import cipher_size

NOW = datetime(2031, 2, 3, 4, 5, 6, 789012, UTC)
LATER = NOW + timedelta(minutes=1)
MANY = 20_000
MANY_LONG = 100_000


def a_file(number: int, **values: Any) -> dict[str, Any]:
    row = {"id": f"f{number:06}", "dataset": "d", "deposit": "x", "version": 1, "path": f"p{number}"}
    row |= {"folded": f"p{number}", "body": f"b{number:06}", "key_id": "k", "size": number, "segments": 1}
    row |= {"cipher_size": number + 28, "seal_root": b"", "tree_root": b"", "state": "verified", "received": NOW}
    return row | values


def an_output(number: int) -> dict[str, Any]:
    row = {"id": f"o{number}", "release": "r", "path": "p", "body": f"out{number}", "header": b"", "key_id": "k"}
    return row | {"size": number, "sha256": b"", "seal_root": b"", "tree_root": b""}


def test_bodies_of_published_files_are_enrolled_once(database: Database) -> None:
    rows = [
        a_file(1),
        a_file(2, version=2),
        a_file(3, version=None),
        a_file(4, state="destroyed"),
        a_file(5, dataset="other"),
        a_file(6),
    ]
    with database.writing() as unit:
        unit.insert("file", rows)
        unit.insert("copy", [{"body": "b000006", "store": "far", "state": "whole", "size": 34, "since": NOW}])
        assert unit.enrol("file", {"dataset": "d"}, "main", LATER) == 2
        assert unit.enrol("file", {"dataset": "d"}, "main", LATER) == 0
    with database.reading() as unit:
        found = {(row["body"], row["store"]): row for row in unit.rows("copy")}
        assert set(found) == {("b000001", "main"), ("b000002", "main"), ("b000006", "far")}
        one = found["b000001", "main"]
        assert (one["state"], one["size"], one["since"], one["checked"], one["fault"]) == ("whole", 29, LATER, None, "")
        assert unit.copies_of("d") == [
            {"version": 1, "store": "far", "state": "whole", "count": 1, "bytes": 34},
            {"version": 1, "store": "main", "state": "whole", "count": 1, "bytes": 29},
            {"version": 2, "store": "main", "state": "whole", "count": 1, "bytes": 30},
        ]
        assert unit.copies_of("nothing") == []
        assert unit.copy_totals() == [
            {"store": "far", "state": "whole", "count": 1, "bytes": 34},
            {"store": "main", "state": "whole", "count": 2, "bytes": 59},
        ]


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1 << 20])
def test_stored_sizes_of_outputs_are_right(database: Database, size: int) -> None:
    with database.writing() as unit:
        unit.insert("release_file", [an_output(size)])
        assert unit.enrol("release_file", {"release": "r"}, "main", NOW) == 1
        assert unit.rows("copy")[0]["size"] == cipher_size(size)
        assert unit.queue_bodies("release_file", {"release": "r"}, NOW) == 1
        (row,) = unit.rows("placing")
        assert (row["source"], row["file"], row["dataset"]) == ("release_file", f"o{size}", "")


def test_the_queue(database: Database) -> None:
    with database.writing() as unit:
        unit.insert("file", [a_file(1), a_file(2), a_file(3, version=None)])
        assert unit.queue_bodies("file", {"dataset": "d"}, NOW) == 2
        assert [row["body"] for row in unit.due_bodies(NOW, 10)] == ["b000001", "b000002"]
        assert [row["body"] for row in unit.due_bodies(NOW, 1)] == ["b000001"]
        assert unit.due_bodies(NOW - timedelta(seconds=1), 10) == []
        unit.update("placing", {"body": "b000001"}, {"due": LATER, "tries": 3, "fault": "far is full"})
        assert [row["body"] for row in unit.due_bodies(NOW, 10)] == ["b000002"]
        assert [row["body"] for row in unit.due_bodies(LATER, 10)] == ["b000002", "b000001"]
        assert unit.placing_faults() == unit.placing_faults("d") == [{"fault": "far is full", "count": 1}]
        assert unit.placing_faults("other") == []
        unit.queue_bodies("file", {"dataset": "d", "version": 1}, NOW)
        assert {(row["tries"], row["fault"]) for row in unit.rows("placing")} == {(0, "")}
        assert len(unit.due_bodies(NOW, 10)) == 2


def test_very_many_files(database: Database, long: bool) -> None:
    """No step that is taken again and again takes longer for them."""
    many = MANY_LONG if long else MANY
    with database.writing() as unit:
        for start in range(0, many, 10_000):
            unit.insert("file", [a_file(number) for number in range(start, start + 10_000)])
    took: dict[str, float] = {}

    def timed(name: str, step: Any) -> Any:
        began = time.perf_counter()
        found = step()
        took[name] = time.perf_counter() - began
        return found

    with database.writing() as unit:
        assert timed("enrol", lambda: unit.enrol("file", {"dataset": "d"}, "main", NOW)) == many
        assert timed("queue", lambda: unit.queue_bodies("file", {"dataset": "d"}, NOW)) == many
    with database.reading() as unit:
        assert len(timed("due", lambda: unit.due_bodies(NOW, 1000))) == 1000
        assert timed("idle", lambda: unit.due_bodies(NOW - timedelta(days=1), 1)) == []
        assert timed("by dataset", lambda: unit.copies_of("d"))[0]["count"] == many
        assert timed("totals", lambda: unit.copy_totals())[0]["count"] == many
    print({name: f"{seconds:.3f} s" for name, seconds in took.items()})
    assert took["idle"] < 0.05 and took["due"] < 0.5 and max(took.values()) < 30, took
