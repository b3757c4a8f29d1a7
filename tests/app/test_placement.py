"""Placement on real stores: copies come and go as the rules say, never where the policies forbid it, and whatever
breaks on the way leaves every file readable."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import Stage
from tests.app.faults import FailingStorage
from tests.app.placed import PLACES, Stores, make, stores
from tests.app.rotated import clear, finish, order, refused
from tests.world import world
from valv.app import copying, custody, dataset, intake, placement
from valv.app.node import new_id
from valv.core import placement as core
from valv.errors import MissingFault, UnreachableFault
from valv.formats.seal import sidecar
from valv.ports.storage import Locality
from valv.storage.local import LocalStorage

FILES = {"a.txt": b"alpha " * 40_000, "b/empty.txt": b"", "c.txt": b"gamma"}


@pytest.fixture(scope="module")
def made() -> Iterator[Stage]:
    """A world of these tests' own: of what they move, others would find nothing in the one store that they have."""
    before = os.umask(0o022)
    try:
        with world() as found:
            yield Stage(found)
    finally:
        os.umask(before)


@pytest.fixture
def p(s: Any, tmp_path: Path) -> Iterator[Stores]:
    """Every test has stores of its own; what others left in the queue is none of its business."""
    with s.node.records.writing() as unit:
        for table, key in (("placing", "body"), ("copy", "body"), ("setting", "name")):
            for row in unit.rows(table):
                unit.delete(table, {key: row[key]})
        unit.upsert("setting", {"name": copying.SEEN, "value": unit.head().size - 1})
    yield stores(s, tmp_path)


@pytest.fixture
def name(s: Any, p: Stores) -> str:
    found = str(s.fresh())
    s.publish(found, FILES)
    p.follow()
    return found


def intact(p: Stores, name: str) -> None:
    for row in p.rows(name):
        assert p.read(row) == FILES[row["path"]]


# --- the usual ---


def test_new_bodies_are_known_and_stay_where_they_are(p: Stores, name: str) -> None:
    assert p.where(name) == {"main": 3}
    assert p.s.rows("placing", dataset=p.s.dataset(name).dataset_id) == []
    assert p.turn() == 0
    (first, *_) = p.s.rows("copy", body=p.rows(name)[0]["body"])
    assert (first["state"], first["size"]) == ("whole", p.rows(name)[0]["cipher_size"])


def test_a_second_copy_and_back_to_one(p: Stores, name: str) -> None:
    view = p.rule(name, "copies = 2")
    assert (view.rule, view.wanted, view.copies, view.waiting) == ("copies = 2", 2, 1, 3)
    p.settle()
    assert p.where(name) == {"main": 3, "second": 3}
    view = p.show(name, "carin")
    assert (view.copies, view.files, view.waiting, view.reasons) == (2, 3, 0, [])
    assert [(held.store, held.whole, held.others) for held in view.stores] == [("main", 3, 0), ("second", 3, 0)]
    for row in p.rows(name):  # the copy is the same bytes
        for part in (row["body"], sidecar(row["body"])):
            assert contents(p.stores["second"], part) == contents(p.stores["main"], part)
    p.rule(name, "copies = 1")
    p.settle()
    assert p.where(name) == {"main": 3}
    assert p.events(name) == ["storage.rule_set"] * 2


def contents(store: Any, name: str) -> bytes:
    body = store.open(name)
    try:
        buffer = bytearray(body.size)
        assert body.pread_into(buffer, 0) == body.size
        return bytes(buffer)
    finally:
        body.close()


def test_a_new_version_follows_the_rule(p: Stores, name: str) -> None:
    p.rule(name, "copies = 2")
    p.settle()
    p.s.publish(name, {"d.txt": b"delta"})
    p.settle()
    assert p.where(name) == {"main": 4, "second": 4}


def test_a_copy_is_dropped_only_a_while_after_the_others_are_whole(p: Stores, name: str) -> None:
    p.move(name, "main", "second")
    p.turn()
    assert p.where(name) == {"main": 3, "second": 3}
    p.turn()
    assert p.where(name) == {"main": 3, "second": 3}
    p.s.clock.forward(seconds=core.SETTLE.total_seconds())
    p.turn()
    assert p.where(name) == {"second": 3}


def test_outputs_are_known_and_stay(p: Stores) -> None:
    release = new_id()
    body = new_id()
    row = {"id": new_id(), "release": release, "path": "o", "body": body, "header": b"", "key_id": "k", "size": 70_000}
    with p.node.records.writing() as unit:
        unit.insert("release_file", [row | {"sha256": b"", "seal_root": b"", "tree_root": b""}])
        copying._learn(p.worker, unit, "release_file", {"release": release}, p.s.clock())
        (copy,) = unit.rows("copy", {"body": body})
        assert (copy["store"], copy["size"]) == ("main", 70_000 + 2 * 28)
        unit.delete("release_file", {"id": row["id"]})
        copying.forget(unit, [body])


# --- what the policies forbid ---


def test_identifiable_data_rest_in_their_own_country_and_unit_only(p: Stores, name: str) -> None:
    with refused("wrong_place"):
        p.rule(name, "in abroad")
    for target in ("abroad", "other"):
        with refused("wrong_place"):
            p.move(name, "main", target)
    p.rule(name, "copies = 5")
    p.settle()
    assert p.where(name) == {"main": 3, "second": 3, "third": 3}
    assert p.show(name).reasons == [
        placement.Waiting(text="5 copies are wanted, and only 3 stores may hold it", files=3)
    ]


@pytest.mark.parametrize("data_class", ["identifiable", ""])
def test_may_rest(p: Stores, data_class: str) -> None:
    data = {"id": "d", "class": data_class, "country": "SE", "unit": "test"}
    assert {store for store in PLACES if placement.may_rest(p.node, data, store) is None} == {"main", "second", "third"}
    refusal = placement.may_rest(p.node, data, "abroad")
    assert refusal is not None and refusal.code == "wrong_place" and "country and unit" in refusal.detail
    for unknown in ({"country": ""}, {"unit": ""}):
        assert placement.may_rest(p.node, data | unknown, "main") is not None
    assert placement.may_rest(p.node, data | {"class": "anonymised"}, "abroad") is None


def test_anonymised_data_may_rest_anywhere_until_they_are_narrowed(p: Stores) -> None:
    name = p.s.fresh()
    p.s.publish(name, FILES, claimed="anonymised")
    with refused("wrong_place"):
        p.move(name, "main", "abroad")  # not assessed yet
    dataset.record_scan(p.worker, p.s.dataset(name).dataset_id, 1, 0, "nothing")
    kerttu = p.s.who("kerttu")
    dataset.assess(p.node, kerttu, name, version=1, confirm=True, reason="No names.", command=new_id())
    p.move(name, "main", "abroad")
    p.settle()
    assert p.where(name) == {"abroad": 3}
    dataset.narrow(p.node, kerttu, name, version=1, reason="A name was found.", command=new_id())
    p.rule(name, "not in main")
    p.settle()
    assert p.where(name) == {"second": 3}
    intact(p, name)


def test_nothing_arrives_where_it_may_not_rest(p: Stores) -> None:
    misplaced = make(p.s, p.folder, {"main": LocalStorage(p.folder / "elsewhere", PLACES["abroad"])})
    before = p.s.node
    p.s.node = misplaced.node
    try:
        with refused("wrong_place"):
            p.s.open(p.s.fresh())
    finally:
        p.s.node = before


def test_who_may_what(p: Stores, name: str) -> None:
    with refused("not_allowed"):
        p.rule(name, "copies = 2", who="rikard")
    with refused("not_allowed"):
        p.move(name, "main", "second", who="carin")
    with refused("not_allowed"):
        p.show(name, "rikard")
    with refused("not_allowed"):
        placement.status(p.node, p.s.who("carin"))
    for who in ("carin", "olle", "audun"):
        p.show(name, who)
    with refused("not_found"):
        p.show("no-such-set")
    assert p.show(name, "carin").may_change and not p.show(name, "carin").may_move
    assert not p.show(name, "audun").may_change


# --- moves ---


def test_a_move_is_on_record_from_its_beginning_to_its_end(p: Stores, name: str) -> None:
    view = p.move(name, "main", "second")
    assert view.moving and (view.moving.files, view.moving.done, view.moving.by) == (3, 0, "Olle Operator")
    assert placement.end_moves(p.worker) >= 1
    with refused("wrong_phase"):
        p.move(name, "main", "third")
    p.turn()
    assert p.show(name).moving
    p.settle()
    view = p.show(name)
    assert view.moving is None and view.rule == "copies = 1, in second, not in main"
    assert p.events(name) == ["storage.rule_set", "storage.move_begun", "storage.move_ended"]
    intact(p, name)
    p.s.publish(name, {"d.txt": b"delta"})  # a new version follows the move
    p.settle()
    assert p.where(name) == {"second": 4}


def test_a_rule_that_is_set_meanwhile_gives_the_move_up(p: Stores, name: str) -> None:
    p.move(name, "main", "second")
    p.turn()
    p.rule(name, "in main", who="olle")
    p.settle()
    assert p.where(name) == {"main": 3}
    assert p.events(name)[-2:] == ["storage.move_given_up", "storage.rule_set"]


def test_an_order_that_is_repeated_is_carried_out_once(p: Stores, name: str) -> None:
    command = new_id()
    for _ in range(2):
        placement.move(p.node, p.s.who("olle"), name, source="main", target="second", command=command)
    assert p.events(name) == ["storage.rule_set", "storage.move_begun"]


class Remote(LocalStorage):
    """A store that is asked anew for each read, as over a network: a body that is deleted is gone for its readers."""

    def open(self, name: str) -> Any:
        return RemoteBody(super().open, self.size(name), name)


class RemoteBody:
    def __init__(self, opener: Any, size: int, name: str) -> None:
        self._opener, self.size, self._name = opener, size, name

    def pread_into(self, target: Any, offset: int) -> int:
        body = self._opener(self._name)
        try:
            return int(body.pread_into(target, offset))
        finally:
            body.close()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("kind", [LocalStorage, Remote])
def test_nobody_who_reads_notices_a_move(p: Stores, kind: type[LocalStorage], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read over and over, from a reader that was opened before and from fresh ones, while they move to and
    fro; nothing is waited for."""
    folders = {"main": p.s.world.folder / "store", "second": p.folder / "second", "third": p.folder / "third"}
    p = make(p.s, p.folder, {name: kind(path, PLACES[name]) for name, path in folders.items()})
    name = p.s.fresh()
    content = {f"f{n}": bytes([n]) * 300_000 for n in range(4)}
    p.s.publish(name, content)
    p.follow()
    monkeypatch.setattr(core, "SETTLE", core.SETTLE / 50)
    rows = p.rows(name)
    grant = new_id()
    p.worker.keys.grant(grant, [rows[0]["key_id"]], p.s.world.compute.uid, 600.0)
    faults: list[BaseException] = []
    reads = [0]
    over = threading.Event()

    def read_on() -> None:
        from valv.formats.crypt4gh import generate_keypair
        from valv.vault.reader import open_reader

        pair = generate_keypair()
        header = p.s.reader._keys.reseal(grant, rows[0]["key_id"], rows[0]["header"], pair.public)
        facts = {"size": rows[0]["size"], "seal_root": rows[0]["seal_root"], "tree_root": rows[0]["tree_root"]}

        def opened() -> Any:
            return open_reader(p.node.storage.open, rows[0]["body"], header, pair.private, **facts)

        held = opened()
        try:
            while not over.is_set():
                assert held.read(0, 300_000) == content["f0"]
                fresh = opened()
                assert fresh.read(100_000, 1000) == content["f0"][:1000]
                fresh.close()
                for row in rows[1:]:
                    assert p.read(row) == content[row["path"]]
                reads[0] += 1
        except BaseException as fault:
            faults.append(fault)
        finally:
            held.close()

    readers = [threading.Thread(target=read_on) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for source, target in (("main", "second"), ("second", "third"), ("third", "main")) * 2:
            p.move(name, source, target)
            end = time.monotonic() + 30
            while p.show(name).moving:
                assert time.monotonic() < end and not faults, faults
                p.turn()
                p.s.clock.forward(seconds=0.06)
                placement.end_moves(p.worker)
                time.sleep(0.01)
            assert p.where(name) == {target: 4}
    finally:
        over.set()
        for reader in readers:
            reader.join(60)
    assert not faults and reads[0] > 5


# --- what goes away ---


def test_bodies_that_were_encrypted_anew_leave_every_store(p: Stores, name: str) -> None:
    p.rule(name, "copies = 2")
    p.settle()
    old = {row["body"] for row in p.rows(name)}
    assert finish(p.s, order(p.s, name, "rekey")).phase == "done"
    p.settle()
    assert p.where(name) == {"main": 3, "second": 3}
    assert len(p.s.rows("copy", body=sorted(old))) == 6
    whole, p.s.worker = p.s.worker, p.worker
    try:
        clear(p.s)
    finally:
        p.s.worker = whole
    assert p.s.rows("copy", body=sorted(old)) == []
    assert not old & {*p.stores["main"].names(), *p.stores["second"].names()}
    intact(p, name)


def test_destroyed_files_leave_every_store(p: Stores, name: str) -> None:
    p.rule(name, "copies = 2")
    p.settle()
    rows = p.rows(name)
    with p.node.records.writing() as unit:
        unit.update("file", {"key_id": rows[0]["key_id"]}, {"state": "destroyed", "header": None})
    custody.delete_bodies(p.worker, {"key_id": rows[0]["key_id"]})
    assert p.where(name) == {}
    with p.node.records.writing() as unit:
        unit.queue_bodies("file", {"dataset": rows[0]["dataset"]}, p.s.clock())
    p.settle()
    assert p.where(name) == {}


def test_a_body_that_is_deleted_while_it_is_copied_leaves_nothing(p: Stores, name: str) -> None:
    p.rule(name, "copies = 2")
    bodies = [row["body"] for row in p.rows(name)]

    class Late(LocalStorage):
        def writer(self, name: str) -> Any:
            with p.node.records.writing() as unit:
                copying.forget(unit, bodies)
            return super().writer(name)

    q = p.with_store("second", Late(p.folder / "second", PLACES["second"]))
    q.turn()
    assert set(q.stores["second"].names()) == set()


# --- faults ---


@pytest.mark.parametrize("verb", ["writer", "write", "commit"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_full_store_is_tried_again_later(p: Stores, name: str, verb: str, nth: int) -> None:
    failing = FailingStorage(p.stores["second"], verb, nth)
    q = p.with_store("second", failing)
    q.rule(name, "copies = 2, in second")
    q.turn()
    assert failing.failed
    coming = p.s.rows("copy", store="second", state="coming")
    assert len(coming) == 1 and "no space left" in coming[0]["fault"]
    assert {coming[0]["body"], sidecar(coming[0]["body"])}.isdisjoint(p.stores["second"].names())
    (reason,) = q.show(name).reasons
    assert reason.text.startswith("second: ") and reason.files == 1
    assert p.s.rows("placing", dataset=p.s.dataset(name).dataset_id)
    q.turn()
    assert p.s.rows("copy", store="second", state="coming"), "it waits before it is tried again"
    p.s.clock.forward(seconds=30)
    q.settle()
    assert q.where(name) == {"main": 3, "second": 3}


def test_a_store_that_is_away_is_waited_for(p: Stores, name: str) -> None:
    class Away(LocalStorage):
        away = True

        def size(self, name: str) -> int:
            if self.away:
                raise UnreachableFault("no route")
            return super().size(name)

    store = Away(p.folder / "second", PLACES["second"])
    q = p.with_store("second", store)
    copying.look(q.worker)
    seen = placement.status(q.node, p.s.who("olle"))
    assert "no route" in next(one.fault for one in seen.stores if one.name == "second")
    q.rule(name, "in second")
    q.settle()
    assert q.where(name) == {"main": 3}
    assert q.show(name).reasons == [placement.Waiting(text="second does not answer", files=3)]
    store.away = False
    copying.look(q.worker)
    q.settle()
    assert q.where(name) == {"second": 3}


def test_a_damaged_copy_is_not_copied(p: Stores, name: str) -> None:
    row = p.rows(name)[0]
    path = next((p.s.world.folder / "store").rglob(row["body"]))
    damaged = bytearray(path.read_bytes())
    damaged[70_000] ^= 1
    path.chmod(0o600)
    path.write_bytes(damaged)
    p.rule(name, "copies = 2")
    p.settle(10)
    assert "second" not in {one["store"] for one in p.s.rows("copy", body=row["body"], state="whole")}
    (source,) = p.s.rows("copy", body=row["body"], store="main")
    assert source["state"] == "suspect" and "segment 1" in source["fault"]
    assert p.show(name).reasons == [placement.Waiting(text="main: the copy does not hold", files=1)]


def test_the_last_copy_is_kept_where_the_others_turned_out_bad(
    p: Stores, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody cannot read the new copies at the very moment at which the old ones are to go."""
    p.move(name, "main", "second")
    p.turn()
    p.s.clock.forward(seconds=10)
    look = copying._last_ones

    def late(node: Any, works: Any) -> Any:
        with p.node.records.writing() as unit:
            unit.update("copy", {"store": "second", "state": "whole"}, {"state": "suspect"})
        return look(node, works)

    monkeypatch.setattr(copying, "_last_ones", late)
    p.turn()
    monkeypatch.undo()
    p.turn()
    states = {(row["store"], row["state"]) for row in p.s.rows("copy")}
    assert states == {("main", "suspect"), ("second", "suspect")}
    intact(p, name)
    with p.node.records.writing() as unit:  # fixity has looked
        unit.update("copy", {"state": "suspect"}, {"state": "whole"})
    p.s.clock.forward(minutes=1)
    p.settle()
    assert p.where(name) == {"second": 3}


def test_a_quota_is_kept_to(p: Stores, name: str) -> None:
    q = p.with_store("second", p.stores["second"], quota=1000)
    q.rule(name, "in second")
    q.settle()
    there = p.s.rows("copy", store="second", state="whole")
    assert 0 < sum(row["size"] for row in there) <= 1000
    assert q.show(name).reasons == [placement.Waiting(text="second is full", files=1)]
    intact(q, name)


def test_other_stores_are_taken_into_account(p: Stores, name: str) -> None:
    """A store that is gone from the configuration is one that has no copy; all bodies are looked at again."""
    q = make(p.s, p.folder, {one: p.stores[one] for one in ("main", "second")})
    copying.look(q.worker)
    q.rule(name, "copies = 3")
    q.settle()
    assert q.where(name) == {"main": 3, "second": 3}
    copying.look(p.worker)
    p.settle()
    assert p.where(name) == {"main": 3, "second": 3, "third": 3}


# --- tape ---


class TapeStore(LocalStorage):
    """A store whose bodies lie on tape until they were asked for twice."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.asked: list[str] = []

    def locality(self, name: str) -> Locality:
        self.size(name)
        return Locality.ONLINE if self.asked.count(name) > 1 else Locality.NEARLINE

    def stage(self, names: Any) -> None:
        self.asked += names


def test_tape_after_a_while_and_back_when_it_is_used(p: Stores, name: str) -> None:
    tape = TapeStore(p.folder / "third", PLACES["third"])
    q = p.with_store("third", tape, tape=True)
    q.rule(name, "tape after 90 d")
    q.settle()
    assert q.where(name) == {"main": 3}
    p.s.clock.forward(days=91)
    assert copying.chill(q.worker) == 1
    assert copying.chill(q.worker) == 0
    q.settle()
    assert q.where(name) == {"third": 3}
    q.rule(name, "copies = 1, not in third")
    q.turn()
    assert len(p.s.rows("copy", store="third", state="whole")) == 3
    assert q.show(name).reasons == [placement.Waiting(text="it comes from tape in third", files=3)]
    assert len(tape.asked) == 6
    q.turn()
    assert len(tape.asked) == 6, "the tape is not asked all the time"
    for _ in range(3):
        p.s.clock.forward(seconds=31)
        q.settle()
    assert q.where(name) == {"main": 3}
    intact(q, name)


# --- cut off anywhere ---


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(1, 26))
def test_a_step_that_is_cut_off_is_taken_up_again(p: Stores, name: str, at: int) -> None:
    """Cut off at its nth touch of a store or of the records, as by a kill; then another worker goes on."""
    left = [at]

    def touch() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    class Dying(LocalStorage):
        def writer(self, name: str) -> Any:
            touch()
            inner = super().writer(name)
            commit, inner.abort = inner.commit, lambda: None  # type: ignore[method-assign]

            def dying() -> None:
                touch()
                commit()
                touch()

            inner.commit = dying  # type: ignore[method-assign]
            return inner

        def delete(self, name: str) -> None:
            if left[0] > 0:
                touch()
                super().delete(name)
                touch()

    dying = p.with_store("second", Dying(p.folder / "second", PLACES["second"]))
    dying.move(name, "main", "second")
    try:
        for _ in range(6):
            dying.turn()
            p.s.clock.forward(seconds=3)
    except Killed:
        pass
    for row in p.rows(name):
        assert p.read(row) == FILES[row["path"]]
        for copy in p.s.rows("copy", body=row["body"], state="whole"):
            store = p.stores[copy["store"]]
            assert store.size(row["body"]) == row["cipher_size"] and store.size(sidecar(row["body"])) >= 0
    p.settle()
    assert p.where(name) == {"second": 3}
    assert copying.stray(p.worker)[1] == []
    for store in p.stores.values():
        store.sweep()
    intact(p, name)


def test_what_no_record_knows_is_found(p: Stores, name: str) -> None:
    row = p.rows(name)[0]
    writer = p.stores["third"].writer(row["body"])
    writer.write(b"x")
    writer.commit()
    assert ("third", row["body"]) in copying.stray(p.worker)[1]
    p.stores["third"].delete(row["body"])
    p.stores["main"].delete(sidecar(row["body"]))
    assert ("main", row["body"]) in copying.stray(p.worker)[0]
    with pytest.raises(MissingFault):
        p.read(row)


def test_many_files_are_learnt_of_in_a_moment(p: Stores, name: str) -> None:
    """10 000 rows: enrolled and queued by a statement each, and found done with in batches."""
    template = p.rows(name)[1]
    with p.node.records.writing() as unit:
        rows = [
            {**template, "id": new_id(), "body": new_id(), "path": f"x{n}", "folded": f"x{n}", "cipher_size": n}
            for n in range(10_000)
        ]
        unit.insert("file", rows)
    began = time.monotonic()
    p.rule(name, "copies = 1")
    while p.turn():
        pass
    took = time.monotonic() - began
    assert p.s.rows("placing", dataset=template["dataset"]) == []
    with p.node.records.writing() as unit:
        for start in range(0, len(rows), 1000):
            unit.delete("file", {"id": [row["id"] for row in rows[start : start + 1000]]})
        copying.forget(unit, [row["body"] for row in rows])
    assert took < 20, took


def test_intake_goes_on_beside(p: Stores) -> None:
    name = p.s.fresh()
    ident = p.s.open(name)
    p.s.send(ident, "a.txt", FILES["a.txt"])
    p.s.submit(ident)
    copying.look(p.worker)
    p.settle()
    intake.process_submitted(p.worker, p.reader)
    p.settle()
    assert p.where(name) == {"main": 1}
