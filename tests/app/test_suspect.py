"""Suspicion of a copy: a hint, noted once, that nobody can flood the records with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from valv.app import suspect as module
from valv.app.suspect import BURST, Suspicions, suspect
from valv.db.database import Database
from valv.errors import FullFault, IntegrityFault, MissingFault, StorageFault, UnreachableFault
from valv.formats.seal import sidecar

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'valv.sqlite'}")
    made.create()
    yield made
    made.close()


def put(records: Database, *bodies: str, store: str = "main", state: str = "whole") -> None:
    with records.writing() as unit:
        unit.insert(
            "copy",
            [
                {"body": body, "store": store, "state": state, "size": 1, "since": NOW, "checked": None, "fault": ""}
                for body in bodies
            ],
        )


def row(records: Database, body: str, store: str = "main") -> dict[str, Any]:
    with records.reading() as unit:
        (found,) = unit.rows("copy", {"body": body, "store": store})
    return found


def test_a_whole_copy_becomes_suspect_once(records: Database) -> None:
    put(records, "body")
    put(records, "body", store="far")
    assert suspect(records, "body", "main", "segment 3 does not hold")
    assert not suspect(records, "body", "main", "segment 4 does not hold")
    found = row(records, "body")
    assert (found["state"], found["fault"], found["checked"]) == ("suspect", "segment 3 does not hold", None)
    assert row(records, "body", "far")["state"] == "whole"


def test_a_sidecar_is_part_of_the_copy(records: Database) -> None:
    put(records, "body")
    assert suspect(records, sidecar("body"), "main", "x" * 10_000)
    assert len(row(records, "body")["fault"]) == module.TOLD


@pytest.mark.parametrize("state", ["coming", "suspect", "bad", "going"])
def test_only_what_counted_as_whole_changes(records: Database, state: str) -> None:
    put(records, "body", state=state)
    assert not suspect(records, "body", "main", "x")
    assert not suspect(records, "other", "main", "x")
    assert not suspect(records, "body", "nowhere", "x")
    assert (row(records, "body")["state"], row(records, "body")["fault"]) == (state, "")


def test_what_readers_tell_is_noted_in_a_thread_of_its_own(records: Database) -> None:
    put(records, "a", "b", "c", "d", "e")
    told = Suspicions(records)
    told.told("a", "main", IntegrityFault("segment 3 is not the one that was sealed at this place"))
    told.told(sidecar("b"), "main", MissingFault("b.seal: not in the store"))
    told.told("c", "main", UnreachableFault("the store is away"))  # which says nothing of its copies
    told.told("d", "main", FullFault("no room"))
    told.told("e", "main", StorageFault("an input or output error"))
    assert told.settle()
    assert [row(records, body)["state"] for body in "abcde"] == ["suspect", "suspect", "whole", "whole", "suspect"]
    assert "segment 3" in row(records, "a")["fault"]


def test_of_a_confined_process_nothing_is_kept_that_it_wrote(records: Database) -> None:
    put(records, "a", "b")
    told = Suspicions(records)
    told.hinted("a", "main", "fault.integrity", 610100)
    told.hinted("b", "main", "what the patient said", 610100)
    assert told.settle()
    assert row(records, "a")["fault"] == "The bytes are not the ones that were sealed (a confined process met it)"
    assert row(records, "b")["state"] == "whole"


def test_a_flood_of_one_leaves_the_others_their_share(records: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    names = [f"f{number}" for number in range(BURST + 100)]
    put(records, *names, "mine")
    told = Suspicions(records)
    for name in names:
        told.hinted(name, "main", "fault.integrity", 1)
    told.hinted("mine", "main", "fault.integrity", 2)
    told._queue.join()
    assert sum(row(records, name)["state"] == "suspect" for name in names) == BURST
    assert row(records, "mine")["state"] == "suspect"
    now += 10
    for name in names[BURST:]:
        told.hinted(name, "main", "fault.integrity", 1)
    told._queue.join()
    assert sum(row(records, name)["state"] == "suspect" for name in names) == BURST + int(10 * module.RATE)


def test_the_same_copy_costs_nothing_for_a_while(records: Database) -> None:
    put(records, "body", "other")
    told = Suspicions(records)
    for _ in range(10 * BURST):
        told.told("body", "main", IntegrityFault("x"))
    told.told("other", "main", IntegrityFault("x"))
    assert told.settle()
    assert row(records, "other")["state"] == "suspect"


def test_memory_is_bounded_and_nobody_waits(records: Database) -> None:
    """Many sources at once, while the database is held by somebody else."""
    told = Suspicions(records)
    with records.writing():
        threads = [
            threading.Thread(
                target=lambda uid=uid: [told.hinted(f"b{uid}-{n}", "main", "fault.integrity", uid) for n in range(300)]
            )
            for uid in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
        assert told._queue.qsize() <= module.WAITING
        assert len(told._recent) <= module.WAITING
        assert len(told._allowances) <= module.SOURCES
    assert told.settle(60)


def test_a_database_that_fails_ends_nothing(records: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    put(records, "a", "b")
    told = Suspicions(records)
    real = records.reading
    monkeypatch.setattr(records, "reading", lambda: (_ for _ in ()).throw(StorageFault("the disk is full")))
    told.told("a", "main", IntegrityFault("x"))
    assert told.settle()
    monkeypatch.setattr(records, "reading", real)
    told.told("b", "main", IntegrityFault("x"))
    assert told.settle()
    assert [row(records, body)["state"] for body in "ab"] == ["whole", "suspect"]
