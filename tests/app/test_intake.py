"""Publishing: all or nothing, whatever fails in between; and clearing away what died."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.app.faults import Interfering
from valv.app import dataset, deposit, intake
from valv.app.node import new_id
from valv.errors import StorageFault
from valv.formats.seal import sidecar


def handed_in(s: Any, files: dict[str, bytes] | None = None) -> tuple[str, str]:
    name = s.fresh()
    ident = s.open(name)
    for path, content in (files or {"a": b"1", "b": b"2"}).items():
        s.send(ident, path, content)
    s.submit(ident)
    return name, ident


def nothing_is_visible(s: Any, name: str, ident: str) -> None:
    assert s.deposit(ident).phase == "submitted"
    assert s.dataset(name).versions == ()
    (row,) = s.rows("dataset", name=name)
    assert (row["visible"], row["version"], row["files"]) == (False, None, 0)
    assert s.rows("dataset_version_file", dataset=row["id"]) == []
    assert dataset.catalogue(s.node, s.who("rikard"), query=name).total == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_fault_in_between_leaves_nothing_visible(s: Any, when: str) -> None:
    name, ident = handed_in(s)

    def fail() -> None:
        raise StorageFault("the power is gone")

    records = Interfering(s.worker.records, fail, when)
    with pytest.raises(StorageFault):
        intake.process_submitted(replace(s.worker, records=records), s.reader)
    assert records.done
    nothing_is_visible(s, name, ident)
    intake.process_submitted(s.worker, s.reader)
    assert s.deposit(ident).phase == "published"
    assert len(s.rows("dataset_version_file", dataset=s.dataset(name).dataset_id)) == 2
    assert dataset.catalogue(s.node, s.who("rikard"), query=name).total == 1


def test_publishing_twice_makes_one_version(s: Any) -> None:
    name, ident = handed_in(s)
    state = s.deposit(ident)
    intake.process_submitted(s.worker, s.reader)
    before = s.size()
    intake._publish(s.worker, state)
    intake.process_submitted(s.worker, s.reader)
    assert s.size() == before
    assert len(s.dataset(name).versions) == 1


@pytest.mark.parametrize("what", ["body", "seal", "short"])
def test_a_body_that_is_gone_fails_the_deposit(s: Any, what: str) -> None:
    name, ident = handed_in(s, {"Anna Andersson.txt": b"content", "b": b"2"})
    body = next(row["body"] for row in s.rows("file", deposit=ident) if row["path"].startswith("Anna"))
    if what == "short":
        path = next((s.world.folder / "store").rglob(body))
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1])
    else:
        s.node.storage.delete(body if what == "body" else sidecar(body))
    intake.process_submitted(s.worker, s.reader)
    view = deposit.show(s.node, s.who("carin"), ident)
    assert view.state.phase == "failed"
    assert view.state.reason
    assert s.dataset(name).versions == ()
    # The journal cannot be erased, so that it holds no file's name: it may be a person's.
    with s.node.records.reading() as unit:
        assert all(b"Anna" not in record.leaf for record in unit.follow(-1, 1_000_000))
    mails = [row["body"] for row in s.rows("outbox", key=f"deposit-failed:{ident}")]
    assert len(mails) == 1


def test_one_deposit_that_cannot_be_looked_at_keeps_no_other_waiting(s: Any) -> None:
    _, first = handed_in(s)
    _, second = handed_in(s)
    body = s.rows("file", deposit=first)[0]["body"]

    class Away:
        def size(self, name: str) -> int:
            if name == body:
                raise StorageFault("the disk does not answer")
            return int(s.worker.storage.size(name))

        def __getattr__(self, name: str) -> Any:
            return getattr(s.worker.storage, name)

    with pytest.raises(StorageFault):
        intake.process_submitted(replace(s.worker, storage=Away()), s.reader)
    assert (s.deposit(first).phase, s.deposit(second).phase) == ("submitted", "published")
    intake.process_submitted(s.worker, s.reader)
    assert s.deposit(first).phase == "published"


def test_a_second_version(s: Any) -> None:
    name = s.fresh()
    s.publish(name, {"a": b"1"})
    s.publish(name, {"a": b"2", "c": b"3"})
    assert [version.files for version in s.dataset(name).versions] == [1, 2]
    (row,) = s.rows("dataset", name=name)
    assert (row["version"], row["files"]) == (2, 2)


def test_participants_are_no_file_of_the_version(s: Any) -> None:
    name = s.fresh()
    s.publish(name, {"a": b"1", "participants.tsv": b"pseudonym\tconsent_group\nP-1\tmain\n"})
    assert len(s.rows("dataset_version_file", dataset=s.dataset(name).dataset_id)) == 1
    assert s.dataset(name).versions[0].participants == 1


# --- clearing away ---


def test_the_files_of_a_deposit_that_ended_are_dropped(s: Any) -> None:
    before = s.bodies()
    _, ident = handed_in(s)
    deposit.cancel(s.node, s.who("carin"), ident, new_id())
    intake.process_submitted(s.worker, s.reader)
    assert intake.clear_dead(s.worker) >= 2
    assert s.rows("file", deposit=ident) == []
    assert s.bodies() <= before


def test_a_dead_sender_is_cleared_away_and_a_slow_one_is_not(s: Any) -> None:
    """A file that takes three hours to come is not taken for dead, as long as it comes."""
    ident = s.open(s.fresh())

    def slow() -> Iterator[bytes]:
        for _ in range(18):
            yield b"words"
            s.clock.forward(minutes=10)
            intake.clear_dead(s.worker)

    assert deposit.receive(s.node, s.who("carin"), ident, "slow", slow()).state == "received"

    def dies() -> Iterator[bytes]:
        yield b"words, a few of them"
        with s.node.records.reading() as unit:
            rows.extend(unit.rows("file", {"deposit": ident, "state": "arriving"}))
        raise SystemExit

    rows: list[dict[str, Any]] = []
    with pytest.raises(SystemExit):
        deposit.receive(s.node, s.who("carin"), ident, "dead", dies())
    with s.node.records.writing() as unit:  # as after a kill: the row is left
        unit.insert("file", rows)
    s.clock.forward(minutes=50)
    intake.clear_dead(s.worker)
    assert s.rows("file", deposit=ident, path="dead")
    s.clock.forward(minutes=20)
    intake.clear_dead(s.worker)
    assert not s.rows("file", deposit=ident, path="dead")
    assert [row["path"] for row in s.rows("file", deposit=ident)] == ["slow"]
