"""Faults that are planted in records and store, and the looks that must find them; the ledger's export."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa

from valv.app import dataset, inspection, ledger
from valv.app.node import new_id
from valv.app.streams import DATASET
from valv.errors import RefusedFault
from valv.formats import ledger as format
from valv.formats.seal import sidecar


@pytest.fixture
def published(s: Any) -> str:
    name = s.fresh()
    s.publish(name, {"a": b"1"})
    return name


def edit(s: Any, statement: str, **values: Any) -> None:
    """Write into the database as somebody who has its file."""
    engine = sa.create_engine(s.world.config.database_url)
    with engine.begin() as connection:
        assert connection.execute(sa.text(statement), values).rowcount == 1
    engine.dispose()


# --- snapshots ---


@pytest.mark.parametrize("what", ["state", "not JSON"])
def test_an_altered_state_is_found(s: Any, published: str, what: str) -> None:
    stream = DATASET.stream(s.dataset(published).dataset_id)
    assert list(inspection.snapshots(s.node)) == []
    with s.node.records.reading() as unit:
        kept = bytes(unit.load(stream).state)
    altered = kept.replace(b'"committee":"dac"', b'"committee":"own"') if what == "state" else b"{]"
    assert altered != kept
    statement = "UPDATE snapshot SET state = :state WHERE stream = :stream"
    edit(s, statement, state=altered, stream=stream)
    try:
        found = list(inspection.snapshots(s.node))
        assert [stream in finding.what for finding in found] == [True]
        assert found[0].hint
    finally:
        edit(s, statement, state=kept, stream=stream)
    assert list(inspection.snapshots(s.node)) == []


# --- bodies ---


def test_missing_and_left_bodies_are_found(s: Any, published: str) -> None:
    assert inspection.bodies(s.node) == (set(), set())
    (row,) = s.rows("file", dataset=s.dataset(published).dataset_id)
    names = (row["body"], sidecar(row["body"]))
    kept = {}
    for name in names:
        path = next((s.world.folder / "store").rglob(name))
        kept[path] = path.read_bytes()
        path.unlink()
    stray = new_id()
    writer = s.node.storage.writer(stray)
    writer.write(b"of a step that was killed")
    writer.commit()
    try:
        assert inspection.bodies(s.node) == (set(names), {stray})
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
        s.node.storage.delete(stray)
    assert inspection.bodies(s.node) == (set(), set())


def test_a_file_that_is_arriving_is_not_missing(s: Any) -> None:
    from valv.app import deposit

    ident = s.open(s.fresh())
    looked = []

    def slow() -> Any:
        yield b"12345678"
        looked.append(inspection.bodies(s.node))
        yield b"9"

    deposit.receive(s.node, s.who("carin"), ident, "a", slow())
    assert looked == [(set(), set())]
    assert inspection.bodies(s.node) == (set(), set())


# --- ledger ---


def exported(s: Any, upto: int) -> list[bytes]:
    return b"".join(ledger.export(s.node, s.who("audun"), upto)).splitlines()


def test_a_checkpoint_is_signed_once_for_each_size(s: Any, published: str) -> None:
    s.who("audun")
    size = ledger.checkpoint(s.worker)
    assert size == s.size()
    assert ledger.checkpoint(s.worker) is None
    proof = ledger.proof(s.node, s.who("audun"))
    assert (proof.size, proof.checkpoint_size) == (size, size)
    report = format.verify_export(exported(s, size), proof.checkpoint, proof.log_key)
    assert report.ok, report.fault
    dataset.describe(s.node, s.who("carin"), published, dataset.Description(title="x"))
    s.publish(s.fresh(), {"a": b"1"})
    assert ledger.checkpoint(s.worker) == s.size() > size


def test_an_export_that_was_tampered_with_is_found(s: Any, published: str) -> None:
    s.who("audun")
    ledger.checkpoint(s.worker)
    proof = ledger.proof(s.node, s.who("audun"))
    lines = exported(s, proof.checkpoint_size)
    for altered in (
        lines[:-1],
        [*lines, lines[-1]],
        [lines[1], lines[0], *lines[2:]],
        [lines[0].replace(b"account", b"Account", 1), *lines[1:]],
    ):
        assert not format.verify_export(altered, proof.checkpoint, proof.log_key).ok


@pytest.mark.parametrize(("upto", "count"), [(0, 0), (-5, 0), (1, 1), (3, 3)])
def test_parts_of_an_export(s: Any, published: str, upto: int, count: int) -> None:
    assert len(exported(s, upto)) == count


def test_an_export_ends_where_the_ledger_does(s: Any, published: str) -> None:
    assert len(exported(s, 10**9)) == s.size()


def test_who_reads_the_ledger(s: Any, published: str) -> None:
    for name in ("rikard", "carin", "dagny", "kerttu", "nemo"):
        for call in (ledger.show, ledger.proof):
            with pytest.raises(RefusedFault):
                call(s.node, s.who(name))
        with pytest.raises(RefusedFault):
            list(ledger.export(s.node, s.who(name), 10))


@pytest.mark.parametrize("limit", [-1, 0, 1, 5, 10**9])
def test_pages_of_the_ledger(s: Any, published: str, limit: int) -> None:
    audun = s.who("audun")
    shown = ledger.show(s.node, audun, newest=True, limit=limit)
    assert 1 <= len(shown) <= 1000
    assert shown[-1].position == s.size() - 1
    assert [entry.position for entry in shown] == list(range(shown[0].position, shown[-1].position + 1))
    assert len(ledger.show(s.node, audun, after=-1, limit=limit)) == len(shown)


def test_history_tells_who_touched_a_dataset(s: Any, published: str) -> None:
    permit = s.permit(published)
    told = dataset.history(s.node, s.who("audun"), published)
    assert [entry["position"] for entry in told] == sorted(entry["position"] for entry in told)
    events = [(entry["event"], entry["actor"]) for entry in told]
    for expected in (
        ("dataset.registered", "carin"),
        ("deposit.opened", "carin"),
        ("access.submitted", "rikard"),
        ("access.approved", "dagny"),
        ("permit.issued", "dagny"),
    ):
        assert expected in events
    assert f"permit/{permit}" in {entry["stream"] for entry in told}
    other = s.fresh()
    s.publish(other, {"a": b"1"})
    assert not any(entry["stream"].endswith(permit) for entry in dataset.history(s.node, s.who("audun"), other))
    with pytest.raises(RefusedFault):
        dataset.history(s.node, s.who("rikard"), published)


@pytest.mark.parametrize("limit", [-1, 0, 10**9])
def test_a_catalogue_page_is_bounded(s: Any, published: str, limit: int) -> None:
    found = dataset.catalogue(s.node, s.who("rikard"), limit=limit, offset=-5)
    assert 0 <= len(found.rows) <= 200
    assert limit > 0 or len(found.rows) <= 1
    assert all("participants" not in row for row in found.rows)
    assert json.dumps(found.rows, default=str)
