"""Whoever alters the ledger in the database is found: each kind of alteration, on both databases."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from valv.db.database import Database
from valv.db.engine import open_engine, read_url
from valv.db.schema import command, head, journal, merkle, snapshot
from valv.formats.ledger import Report, encode_leaf, verify_export
from valv.formats.merkle import Frontier, leaf_hash
from valv.formats.note import Checkpoint, public_bytes, sign, verifier_key
from valv.ports.records import Change

NAME = "node.example/ledger"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
VKEY = verifier_key(NAME, public_bytes(KEY))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
NOW = datetime(2031, 2, 3, tzinfo=UTC)
SIZE = 45
SIGNED = 40


@pytest.fixture
def note(database: Database) -> str:
    """A ledger of 45 events in 9 streams, 40 of them under a signed checkpoint."""
    signed = ""
    for number in range(SIZE):
        stream, version = f"box/{number % 9}", number // 9
        event = ("box.filled", json.dumps({"n": number}).encode())
        with database.writing() as unit:
            unit.append(
                [Change(stream, "box", version, (event,), "open", b"{}")],
                actor="account/1",
                at=NOW + timedelta(seconds=number),
                command=f"c{number}",
            )
            if number + 1 == SIGNED:
                at = unit.head()
                signed = sign(KEY, NAME, Checkpoint(NAME, at.size, at.root).encode())
                unit.put_checkpoint(at.size, signed)
    return signed


def alter(url: str, *statements: sa.Executable) -> None:
    engine = open_engine(read_url(url), "", writes=True, pooled=False)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)
    engine.dispose()


def test_a_good_ledger_passes(database: Database, note: str) -> None:
    with database.reading() as unit:
        root = unit.head().root
    assert database.verify() == Report(SIZE, root)
    assert database.verify(note, VKEY) == Report(SIZE, root, SIGNED, NAME)
    assert database.verify(vkey=VKEY) == Report(SIZE, root, SIGNED, NAME)


def test_the_empty_ledger_passes(database: Database) -> None:
    assert database.verify().ok
    assert database.verify(vkey=VKEY).signed_size == 0


def _event(position: int) -> sa.ColumnElement[bool]:
    return journal.c.position == position


def _swap() -> list[sa.Executable]:
    """Two rows change places, and nothing else."""
    move = [(20, -1), (21, 20), (-1, 21)]
    return [sa.update(journal).where(_event(old)).values(position=new) for old, new in move]


ALTERATIONS: dict[str, tuple[list[sa.Executable], str]] = {
    "data of a row": ([sa.update(journal).where(_event(20)).values(data=b'{"n":99}')], "position 20: the row differs"),
    "actor of a row": ([sa.update(journal).where(_event(20)).values(actor="other")], "position 20: the row differs"),
    "time of a row": ([sa.update(journal).where(_event(20)).values(at=NOW)], "position 20: the row differs"),
    "tag of a row": ([sa.update(journal).where(_event(20)).values(tag="box.emptied")], "position 20: the row differs"),
    "command of a row": ([sa.update(journal).where(_event(20)).values(command="c1")], "position 20: the row differs"),
    "leaf of a row": ([sa.update(journal).where(_event(20)).values(leaf=b"{}")], "position 20: the row differs"),
    "row deleted": ([sa.delete(journal).where(_event(20))], "position 20: the event is missing"),
    "first row deleted": ([sa.delete(journal).where(_event(0))], "position 0: the event is missing"),
    "last row deleted": ([sa.delete(journal).where(_event(SIZE - 1))], "nodes"),
    "all rows deleted": ([sa.delete(journal)], "nodes"),
    "rows swapped": (_swap(), "position 20: the row differs"),
    "row before the first": (
        [sa.update(journal).where(_event(0)).values(position=-3)],
        "position 0: the event is missing",
    ),
    "leaf hash altered": (
        [sa.update(merkle).where(merkle.c.level == 0, merkle.c.idx == 20).values(hash=bytes(32))],
        "position 20: the leaf's hash",
    ),
    "inner node altered": (
        [sa.update(merkle).where(merkle.c.level == 3, merkle.c.idx == 2).values(hash=bytes(32))],
        "position 23: the node 2 of level 3",
    ),
    "inner node deleted": (
        [sa.delete(merkle).where(merkle.c.level == 5)],
        "position 31: the node 0 of level 5",
    ),
    "node too many": ([sa.insert(merkle).values(level=7, idx=3, hash=bytes(32))], "nodes"),
    "root of the head": ([sa.update(head).values(root=bytes(32))], "the head's root"),
    "frontier of the head": ([sa.update(head).values(frontier=bytes(32))], "the head's root"),
    "size of the head": ([sa.update(head).values(size=44)], "the head says that there are 44 events, there are 45"),
    "head deleted": ([sa.delete(head)], "head of the ledger is missing"),
    "state behind its stream": (
        [sa.update(snapshot).where(snapshot.c.stream == "box/4").values(version=4)],
        "box/4 has 5 events, its state says 4",
    ),
    "state deleted": ([sa.delete(snapshot).where(snapshot.c.stream == "box/4")], "1 streams have events but no state"),
    "command deleted": ([sa.delete(command).where(command.c.id == "c20")], "position 20: command c20"),
    "command moved": (
        [sa.update(command).where(command.c.id == "c20").values(first_position=3)],
        "position 20: command c20",
    ),
    "command invented": (
        [sa.insert(command).values(id="cx", first_position=20, count=1)],
        "position 20: command cx is recorded with another number",
    ),
}


@pytest.mark.parametrize("what", ALTERATIONS)
def test_an_alteration_is_found(database: Database, database_url: str, note: str, what: str) -> None:
    statements, fault = ALTERATIONS[what]
    alter(database_url, *statements)
    report = database.verify(note, VKEY)
    assert not report.ok
    assert fault in report.fault


def _forge(url: str, database: Database, rewrite: Callable[[int, bytes], bytes | None]) -> None:
    """Rewrite the ledger as one who knows all of it would: rows, leaves, nodes and head agree with each other."""
    with database.reading() as unit:
        events = unit.follow(-1)
    frontier = Frontier()
    statements: list[sa.Executable] = [sa.delete(merkle), sa.delete(journal)]
    for event in events:
        data = rewrite(event.position, event.data)
        if data is None:
            break
        leaf = encode_leaf(
            event.position, event.stream, event.version, event.tag, event.at, event.actor, event.command, data
        )
        values = {name: getattr(event, name) for name in event.__struct_fields__}
        statements.append(sa.insert(journal).values({**values, "data": data, "leaf": leaf}))
        for level, index, node in frontier.append(leaf_hash(leaf)):
            statements.append(sa.insert(merkle).values(level=level, idx=index, hash=node))
    statements.append(sa.update(head).values(size=frontier.size, frontier=frontier.encode(), root=frontier.root()))
    alter(url, *statements)


def test_a_consistent_forgery_is_found_by_the_signature(database: Database, database_url: str, note: str) -> None:
    _forge(database_url, database, lambda position, data: b'{"n":0}' if position == 20 else data)
    assert database.verify().ok, "nothing but the signature tells"
    assert "do not lead to the root that node.example/ledger signed" in database.verify(note, VKEY).fault
    assert "do not lead to the root" in database.verify(vkey=VKEY).fault


def test_a_cut_off_end_is_found_by_the_checkpoint(database: Database, database_url: str, note: str) -> None:
    _forge(database_url, database, lambda position, data: data if position < 30 else None)
    assert "the checkpoint covers 40 events, the ledger has only 30" in database.verify(note, VKEY).fault


def test_wrong_signatures_are_found(database: Database, note: str) -> None:
    with database.reading() as unit:
        at = unit.head()
    by_other = sign(OTHER, NAME, Checkpoint(NAME, at.size, at.root).encode())
    assert "not signed by the key" in database.verify(by_other, VKEY).fault
    altered = note.replace("\n40\n", "\n41\n")
    assert "does not fit the note" in database.verify(altered, VKEY).fault
    assert "not a signed note" in database.verify("", VKEY).fault
    assert database.verify(note, "nonsense").fault


def test_a_time_that_is_none_is_found(tmp_path_factory: pytest.TempPathFactory) -> None:
    """SQLite would keep any text in a column of times."""
    url = f"sqlite:///{tmp_path_factory.mktemp('odd') / 'valv.sqlite'}"
    database = Database(url)
    database.create()
    with database.writing() as unit:
        change = Change("box/1", "box", 0, (("box.made", b"{}"),), "open", b"{}")
        unit.append([change], actor="a", at=NOW, command="c")
    alter(url, sa.text("UPDATE journal SET at = 'yesterday'"))
    assert database.verify().fault == "position 0 or after: a row cannot be read"
    database.close()


# --- without the database --------------------------------------------------------------------------------------------


def test_an_export_is_checked_offline(database: Database, note: str) -> None:
    with database.reading() as unit:
        lines = [event.leaf + b"\n" for event in unit.follow(-1)]
        root = unit.head().root
    assert verify_export(lines, note, VKEY) == Report(SIZE, root, SIGNED, NAME)
    assert verify_export(lines[:SIGNED], note, VKEY).ok
    cases = {
        "altered": [*lines[:20], lines[20].replace(b'"n":20', b'"n":21'), *lines[21:]],
        "deleted": [*lines[:20], *lines[21:]],
        "swapped": [*lines[:20], lines[21], lines[20], *lines[22:]],
        "repeated": [*lines[:21], *lines[20:]],
        "cut off": lines[:30],
        "spaced": [*lines[:20], lines[20].replace(b'"n":', b'"n": '), *lines[21:]],
        "no JSON": [*lines[:20], b"{\n", *lines[21:]],
        "version": [*lines[:20], lines[20].replace(b'"version":3', b'"version":4'), *lines[21:]],
        "nothing": [],
    }
    faults = {name: verify_export(forged, note, VKEY).fault for name, forged in cases.items()}
    assert faults == {
        "altered": "the first 40 events do not lead to the root that node.example/ledger signed",
        "deleted": "position 20: the leaf says that it is position 21",
        "swapped": "position 20: the leaf says that it is position 21",
        "repeated": "position 21: the leaf says that it is position 20",
        "cut off": "the checkpoint covers 40 events, the ledger has only 30",
        "spaced": "position 20: a line of the ledger is not canonical JSON",
        "no JSON": "position 20: a line of the ledger is not a leaf",
        "version": "position 20: stream box/2 goes from version 2 to 4",
        "nothing": "the checkpoint covers 40 events, the ledger has only 0",
    }
    assert verify_export(lines, "", VKEY).fault
    assert verify_export(lines, note, verifier_key(NAME, public_bytes(OTHER))).fault
