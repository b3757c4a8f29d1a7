"""Scrubs over two real stores: every kind of damage is found in one of them, repaired where another copy is whole, and
reported where none is; a healthy copy is never lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.app.stores import SECOND, TwoStores
from tests.world import world
from valv.app import fixity, inspection, streams
from valv.app.node import new_id
from valv.app.repairing import REPAIR, tidy
from valv.app.scrubbing import Scrubber
from valv.core.fixity import DAILY
from valv.errors import FullFault, RefusedFault, StorageFault, UnreachableFault
from valv.formats.crypt4gh import cipher_size, generate_keypair
from valv.ports.storage import Locality, Storage
from valv.vault.encrypt import Encryptor
from valv.vault.fixity import Rate

LARGE = os.urandom(300_000)


@pytest.fixture(scope="module")
def two() -> Iterator[TwoStores]:
    before = os.umask(0o022)
    try:
        with world() as made:
            yield TwoStores(made)
    finally:
        os.umask(before)


def flip(two: TwoStores, store: str, row: dict[str, Any]) -> None:
    path = two.path(store, row["body"])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_seal(two: TwoStores, store: str, row: dict[str, Any]) -> None:
    path = two.path(store, f"{row['body']}.seal")
    content = bytearray(path.read_bytes())
    content[3] ^= 0x80
    path.write_bytes(content)


def cut(two: TwoStores, store: str, row: dict[str, Any]) -> None:
    path = two.path(store, row["body"])
    path.write_bytes(path.read_bytes()[:-1])


def cut_seal(two: TwoStores, store: str, row: dict[str, Any]) -> None:
    path = two.path(store, f"{row['body']}.seal")
    path.write_bytes(path.read_bytes()[:-60])


def remove(two: TwoStores, store: str, row: dict[str, Any]) -> None:
    two.path(store, row["body"]).unlink()


def remove_seal(two: TwoStores, store: str, row: dict[str, Any]) -> None:
    two.path(store, f"{row['body']}.seal").unlink()


def remove_both(two: TwoStores, store: str, row: dict[str, Any]) -> None:
    remove(two, store, row)
    remove_seal(two, store, row)


def lengthen(two: TwoStores, store: str, row: dict[str, Any]) -> None:
    path = two.path(store, row["body"])
    path.write_bytes(path.read_bytes() + b"\0")


def other(two: TwoStores, store: str, row: dict[str, Any]) -> None:
    """As an older version of the file, with its own seal: both are in themselves whole."""
    _, [old] = two.two_copies({"a.bin": os.urandom(300_000)})
    for end in ("", ".seal"):
        two.path(store, f"{row['body']}{end}").write_bytes(two.path(store, f"{old['body']}{end}").read_bytes())


DAMAGE = [flip, flip_seal, cut, cut_seal, remove, remove_seal, remove_both, lengthen, other]
ONLY_SEAL = {flip_seal, cut_seal, remove_seal}


@pytest.mark.parametrize("store", ["main", SECOND])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda one: one.__name__)
def test_damage_of_one_copy_is_found_and_repaired(
    two: TwoStores, damage: Callable[[TwoStores, str, dict[str, Any]], None], store: str
) -> None:
    name, [row] = two.two_copies({"a.bin": LARGE})
    good = two.bytes_of(row)
    damage(two, store, row)
    assert two.bytes_of(row) != good
    done = two.scrub(name)
    assert two.bytes_of(row) == good
    assert (done.state.phase, done.copies, done.state.left, done.state.unreached) == ("done", 2, 0, 0)
    assert (done.state.damaged, done.state.repaired, done.state.lost) == (1, 1, 0)
    tags = [tag for tag, _ in two.events(done.state.scrub_id)]
    assert tags == ["fixity.begun", "fixity.damaged", "fixity.repaired", "fixity.finished"]
    said = dict(two.events(done.state.scrub_id))
    gone = damage in (remove, remove_seal, remove_both)
    assert said["fixity.damaged"]["fault"] == ("missing" if gone else "altered")
    assert said["fixity.damaged"]["body"] == row["body"] and said["fixity.damaged"]["store"] == store
    beside = store if damage in ONLY_SEAL else ({"main", SECOND} - {store}).pop()
    assert said["fixity.repaired"]["source"] == beside
    assert two.state(row, store) == "whole"
    again = two.scrub(name).state
    assert (again.copies, again.damaged, again.repaired) == (2, 0, 0)


def test_bodies_of_two_files_that_changed_places(two: TwoStores) -> None:
    name, [one, another] = two.two_copies({"a.bin": LARGE, "b.bin": LARGE[::-1]})
    good = two.bytes_of(one), two.bytes_of(another)
    for end in ("", ".seal"):
        first, second = (two.path(SECOND, f"{row['body']}{end}") for row in (one, another))
        kept = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(kept)
    done = two.scrub(name).state
    assert (done.damaged, done.repaired, done.left) == (2, 2, 0)
    assert (two.bytes_of(one), two.bytes_of(another)) == good


def test_where_both_are_damaged_it_is_said_and_nothing_is_overwritten(two: TwoStores) -> None:
    name, [row] = two.two_copies({"a.bin": LARGE})
    good = two.bytes_of(row)
    flip(two, "main", row)
    cut(two, SECOND, row)
    bad = two.bytes_of(row)
    done = two.scrub(name)
    assert two.bytes_of(row) == bad
    assert (done.state.damaged, done.state.repaired, done.state.lost, done.state.left) == (2, 0, 1, 2)
    assert two.state(row, "main") == two.state(row, SECOND) == "bad"
    with two.node.records.reading() as unit:
        mails = [one["body"] for one in unit.rows("outbox", {"topic": "mail"}) if row["body"] in one["key"]]
    assert {one["account"] for one in mails} == {two.world.ids[who] for who in ("olle", "alma", "carin")}
    shown = fixity.health(two.node, two.who("olle"))
    mine = [one for one in shown.damaged if one.body == row["body"]]
    assert {(one.store, one.dataset, one.whole) for one in mine} == {("main", name, 0), (SECOND, name, 0)}
    # The next scrub looks again, and says nothing twice.
    again = two.scrub(name).state
    assert (again.damaged, again.lost, again.left, again.copies) == (0, 0, 2, 2)
    # Somebody puts a whole copy back: the other is made anew from it.
    for end in ("", ".seal"):
        two.path("main", f"{row['body']}{end}").write_bytes(good["main", f"{row['body']}{end}"] or b"")
    healed = two.scrub(name).state
    assert (healed.repaired, healed.left) == (2, 0)
    assert two.bytes_of(row) == good


def test_a_body_of_one_store_and_the_seal_of_the_other_are_damaged(two: TwoStores) -> None:
    name, [row] = two.two_copies({"a.bin": LARGE})
    good = two.bytes_of(row)
    flip(two, "main", row)
    flip_seal(two, SECOND, row)
    done = two.scrub(name).state
    assert (done.damaged, done.repaired, done.left) == (2, 2, 0) and two.bytes_of(row) == good


def test_an_empty_file(two: TwoStores) -> None:
    name, [row] = two.two_copies({"empty": b""})
    two.path("main", row["body"]).unlink()
    done = two.scrub(name).state
    assert (done.damaged, done.repaired) == (1, 1) and two.path("main", row["body"]).exists()


def test_a_file_with_one_copy_is_never_removed(two: TwoStores) -> None:
    name = two.fresh()
    two.publish(name, {"a.bin": LARGE})
    [row] = two.rows("file", dataset=two.dataset(name).dataset_id)
    assert two.rows("copy", body=row["body"]) == []
    flip(two, "main", row)
    bad = two.path("main", row["body"]).read_bytes()
    done = two.scrub(name).state
    assert (done.expected, done.lost, done.left) == (1, 1, 1)
    assert two.path("main", row["body"]).read_bytes() == bad


def test_released_outputs_are_read_too(two: TwoStores) -> None:
    body = new_id()
    store = two.stores["main"]
    encryptor = Encryptor(store.writer(body), store.writer(f"{body}.seal"), generate_keypair().public)
    encryptor.write(LARGE)
    made = encryptor.finish()
    row = {"id": new_id(), "release": "r", "path": "x", "body": body, "header": made.header, "key_id": "k"}
    row |= {"size": made.size, "sha256": made.sha256, "seal_root": made.seal_root, "tree_root": made.tree_root}
    with two.node.records.writing() as unit:
        unit.insert("release_file", [row])
    done = two.scrub()
    assert done.state.damaged == 0
    assert two.rows("copy", body=body)[0]["checked"] == two.clock.now
    assert two.rows("copy", body=body)[0]["size"] == cipher_size(len(LARGE))
    flip(two, "main", {"body": body})
    assert two.scrub().state.lost == 1
    with two.node.records.writing() as unit:
        unit.delete("release_file", {"id": row["id"]})
        unit.delete("copy", {"body": body})
    for end in ("", ".seal"):
        store.delete(body + end)


# --- stores that fail ---


class Failing:
    """A store of which some verbs fail."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.faults: dict[str, Exception] = {}

    def __getattr__(self, name: str) -> Any:
        if name in self.faults:
            raise self.faults[name]
        return getattr(self.inner, name)


@pytest.fixture
def failing(two: TwoStores) -> Iterator[Failing]:
    real = two.stores[SECOND]
    made = Failing(real)
    two.stores[SECOND] = made  # type: ignore[assignment]
    yield made
    two.stores[SECOND] = real


def test_what_cannot_be_reached_is_not_bad(two: TwoStores, failing: Failing) -> None:
    name, [row] = two.two_copies({"a.bin": LARGE})
    failing.faults = {"open": UnreachableFault("away")}
    done = two.scrub(name).state
    assert (done.copies, done.damaged, done.unreached, done.phase) == (1, 0, 1, "done")
    assert two.state(row, SECOND) == "whole"
    # Nothing is called lost while a copy may hold that is only away.
    flip(two, "main", row)
    done = two.scrub(name).state
    assert (done.damaged, done.repaired, done.lost, done.left) == (1, 0, 0, 1)
    failing.faults = {}
    done = two.scrub(name).state
    assert (done.repaired, done.left) == (1, 0)


def test_a_medium_that_cannot_be_read_does_not_hold_up_the_rest(two: TwoStores, failing: Failing) -> None:
    name, rows = two.two_copies({"a.bin": LARGE, "b.bin": b"b"})
    failing.faults = {"open": StorageFault("Input/output error"), "delete": StorageFault("Read-only file system")}
    done = two.scrub(name).state
    assert (done.copies, done.damaged, done.repaired, done.lost, done.left) == (4, 2, 0, 0, 2)
    said = [data["fault"] for tag, data in two.events(done.scrub_id) if tag == "fixity.damaged"]
    assert said == ["unreadable"] * 2
    failing.faults = {}
    done = two.scrub(name).state
    assert (done.repaired, done.left) == (2, 0) and {two.state(row, SECOND) for row in rows} == {"whole"}


def test_a_full_store_stays_damaged_and_is_tried_again(two: TwoStores, failing: Failing) -> None:
    name, [row] = two.two_copies({"a.bin": LARGE})
    good = two.bytes_of(row)
    flip(two, SECOND, row)
    failing.faults = {"writer": FullFault("full")}
    done = two.scrub(name).state
    assert (done.damaged, done.repaired, done.lost, done.left) == (1, 0, 0, 1)
    assert "full" in two.rows("copy", body=row["body"], store=SECOND)[0]["fault"]
    failing.faults = {}
    assert two.scrub(name).state.repaired == 1 and two.bytes_of(row) == good


def test_a_store_whose_medium_is_not_mounted_is_away(two: TwoStores) -> None:
    name, _ = two.two_copies({"a.bin": LARGE, "b.bin": b"b"})
    bodies = two.folders[SECOND] / "bodies"
    bodies.rename(bodies.with_name("elsewhere"))
    bodies.mkdir()
    try:
        done = two.scrub(name).state
        assert (done.damaged, done.copies, done.unreached) == (0, 2, 2)
        assert list(bodies.iterdir()) == []
    finally:
        bodies.rmdir()
        bodies.with_name("elsewhere").rename(bodies)
    assert two.scrub(name).state.copies == 4


class OnTape(Failing):
    """A store with tapes, of which every body is on tape until it was asked for."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.staged: set[str] = set()
        self.arrived: set[str] = set()

    def locality(self, name: str) -> Locality:
        return Locality.ONLINE if name in self.arrived else Locality.NEARLINE

    def stage(self, names: Any) -> None:
        self.staged |= set(names)


def test_tape_is_read_only_where_that_was_asked_for(two: TwoStores) -> None:
    name, [row] = two.two_copies({"a.bin": LARGE})
    real, tape = two.stores[SECOND], OnTape(two.stores[SECOND])
    two.stores[SECOND] = tape  # type: ignore[assignment]
    try:
        done = two.scrub(name).state
        assert (done.phase, done.copies, done.unreached) == ("done", 1, 1) and not tape.staged
        going = two.scrub(name, tape=True).state
        assert going.phase == "going" and tape.staged == {row["body"], f"{row['body']}.seal"}
        tape.arrived = tape.staged
        two.scrubber.turn()
        done = fixity.show(two.node, two.who("olle"), going.scrub_id).state
        assert (done.phase, done.copies, done.unreached) == ("done", 2, 0)
    finally:
        two.stores[SECOND] = real


# --- who comes and goes meanwhile ---


def test_a_file_whose_body_is_replaced_meanwhile_is_not_called_damaged(two: TwoStores, failing: Failing) -> None:
    name, [row] = two.two_copies({"a.bin": LARGE})

    def replaced(count: int) -> None:
        with two.node.records.writing() as unit:
            unit.update("file", {"id": row["id"]}, {"body": "another"})
        for end in ("", ".seal"):
            two.stores["main"].delete(row["body"] + end)

    scrubber = Scrubber(two.worker, replaced)
    two.clock.forward(seconds=1)
    ident = fixity.run(two.node, two.who("olle"), name, every=True, command=new_id())
    two.clock.forward(seconds=1)
    scrubber.turn()
    with two.node.records.writing() as unit:
        unit.update("file", {"id": row["id"]}, {"body": row["body"]})
    assert not {tag for tag, _ in two.events(ident)} & {"fixity.damaged", "fixity.not_repaired"}
    assert two.scrub(name).state.left == 0


def test_what_is_destroyed_while_it_is_repaired_is_removed_again(two: TwoStores) -> None:
    name, [row] = two.two_copies({"a.bin": LARGE})
    flip(two, SECOND, row)
    reads = 0

    def destroyed(count: int) -> None:
        nonlocal reads
        reads += 1
        if two.rows("copy", body=row["body"], store=SECOND, fault=REPAIR):
            with two.node.records.writing() as unit:
                unit.update("file", {"id": row["id"]}, {"state": "destroyed"})

    scrubber = Scrubber(two.worker, destroyed)
    two.clock.forward(seconds=1)
    fixity.run(two.node, two.who("olle"), name, every=True, command=new_id())
    two.clock.forward(seconds=1)
    scrubber.turn()
    assert two.rows("file", id=row["id"])[0]["state"] == "destroyed"
    assert not two.path(SECOND, row["body"]).exists() and not two.path(SECOND, f"{row['body']}.seal").exists()
    assert two.rows("copy", body=row["body"], store=SECOND) == []
    with two.node.records.writing() as unit:
        unit.update("file", {"id": row["id"]}, {"state": "verified"})
    assert two.path("main", row["body"]).exists()


def test_a_repair_that_was_cut_off_is_taken_up(two: TwoStores) -> None:
    name, [row] = two.two_copies({"a.bin": LARGE})
    good = two.bytes_of(row)
    for end in ("", ".seal"):
        two.stores[SECOND].delete(row["body"] + end)
    with two.node.records.writing() as unit:
        unit.update("copy", {"body": row["body"], "store": SECOND}, {"state": "bad", "fault": REPAIR})
    assert tidy(two.worker) == 1 and two.rows("copy", fault=REPAIR) == []
    assert two.scrub(name).state.repaired == 1 and two.bytes_of(row) == good


# --- when, how fast, and who ---


def test_every_copy_once_in_so_many_days(two: TwoStores) -> None:
    two.scrub()
    _, [row] = two.two_copies({"a.bin": LARGE})
    days = two.node.config.fixity.days
    two.clock.forward(days=1)
    two.scrubber.turn()  # nothing is old
    before = {one["checked"] for one in two.rows("copy", body=row["body"])}
    assert before == {None}
    with two.node.records.writing() as unit:
        unit.update("copy", {"body": row["body"], "store": SECOND}, {"state": "suspect", "fault": "a read failed"})
    flip(two, SECOND, row)
    two.clock.forward(days=1)
    two.scrubber.turn()
    assert two.state(row, SECOND) == "whole" and two.rows("copy", body=row["body"], store="main")[0]["checked"] is None
    two.clock.forward(days=days)
    two.scrubber.turn()
    assert {one["checked"] for one in two.rows("copy", body=row["body"])} == {two.clock.now}
    with two.node.records.reading() as unit:
        mine = [one for one in streams.find(unit, streams.FIXITY, limit=1000) if one.by == "node"]
    assert [one.repaired for one in mine if one.damaged] == [1]
    count = len(mine)
    two.clock.forward(hours=1)
    two.scrubber.turn()
    with two.node.records.reading() as unit:
        assert len([one for one in streams.find(unit, streams.FIXITY, limit=1000) if one.by == "node"]) == count
    assert timedelta(days=1) == DAILY


def test_the_rate_holds(two: TwoStores) -> None:
    """Bytes against a clock that only waiting moves."""
    name, _ = two.two_copies({"a.bin": os.urandom(6_000_000), "b.bin": LARGE})
    now, waited, read = 0.0, 0.0, 0

    def wait(seconds: float) -> None:
        nonlocal now, waited
        now, waited = now + seconds, waited + seconds

    rate = Rate(1_000_000, wait, lambda: now)

    def spend(count: int) -> None:
        nonlocal read
        rate(count)
        read += count
        assert read <= 1_000_000 * (now + 1) + 1

    two.clock.forward(seconds=1)
    fixity.run(two.node, two.who("olle"), name, every=True, command=new_id())
    Scrubber(two.worker, spend).turn()
    assert read > 12_000_000 and abs(waited - (read / 1_000_000 - 1)) < 0.01


def test_health_says_when_copies_were_read(two: TwoStores) -> None:
    two.scrub()
    shown = fixity.health(two.node, two.who("audun"))
    assert {one.name for one in shown.stores} == {"main", SECOND}
    for store in shown.stores:
        whole = store.states["whole"]
        assert (store.recent, store.timely, store.late, store.never) == (whole, 0, 0, 0)
        assert store.oldest is not None and store.oldest >= two.clock.now - timedelta(minutes=2)
    two.two_copies({"a.bin": b"new"})
    two.clock.forward(days=40)
    main = fixity.health(two.node, two.who("olle")).stores[0]
    assert (main.recent, main.timely, main.never) == (0, main.states["whole"] - 1, 1)
    two.clock.forward(days=60)
    main = fixity.health(two.node, two.who("olle")).stores[0]
    assert (main.late, main.timely) == (main.states["whole"] - 1, 0)


def test_who_may(two: TwoStores) -> None:
    for name in ("carin", "rikard", "audun"):
        with pytest.raises(RefusedFault):
            fixity.run(two.node, two.who(name), every=True, command=new_id())
    for name in ("carin", "rikard"):
        with pytest.raises(RefusedFault):
            fixity.health(two.node, two.who(name))
    with pytest.raises(RefusedFault) as why:
        fixity.run(two.node, two.who("olle"), store="nowhere", command=new_id())
    assert why.value.refusal.code == "store_unknown"
    name, _ = two.two_copies({"a.bin": b"x"})
    command = new_id()
    ident = fixity.run(two.node, two.who("olle"), name, command=command)
    assert fixity.run(two.node, two.who("olle"), name, command=command) == ident
    with pytest.raises(RefusedFault) as why:
        fixity.run(two.node, two.who("olle"), name, command=new_id())
    assert why.value.refusal.code == "scrub_going"
    two.scrubber.turn()


def test_records_hold_after_all_that(two: TwoStores) -> None:
    assert list(inspection.snapshots(two.node)) == []
    assert list(inspection.outbox(two.node)) == []
