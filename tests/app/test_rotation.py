"""Rotation and rekeying on a real database, store and key holder: files stay readable, readers are left alone, and what
was cut off is taken up again."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.app.rotated import TURNS, clear, finish, order, readable, refused, rows_of, sound, stored, turn
from valv.app import inspection, reading, rotating, rotation, streams
from valv.app.node import new_id
from valv.app.streams import ROTATION
from valv.core import dataset as core
from valv.core.process import NODE
from valv.errors import Fault, FullFault, KeyFault, RefusedFault
from valv.formats.seal import sidecar


@pytest.fixture
def name(s: Any) -> str:
    return stored(s)


# --- what they do ---


def test_headers_are_of_the_new_pair_and_of_no_other(s: Any, name: str) -> None:
    before = {row["id"]: row for row in rows_of(s, name)}
    ident = order(s, name)
    done = finish(s, ident)
    assert (done.phase, done.pair, done.files, done.bodies) == ("done", 2, 4, 0)
    for row in rows_of(s, name):
        old = before[row["id"]]
        assert row["pair"] == 2 and row["header"] != old["header"]
        kept = ("body", "seal_root", "tree_root", "size", "sha256", "sent_sha256", "known_outside", "rekeyed")
        assert [row[column] for column in kept] == [old[column] for column in kept]
        with pytest.raises(KeyFault):
            s.worker.keys.reseal_within(row["key_id"], [old["header"]])
    readable(s, name)
    sound(s)
    assert finish(s, order(s, name)).pair == 3
    readable(s, name)


def test_bodies_are_encrypted_under_data_keys_that_nobody_knew(s: Any, name: str) -> None:
    before = {row["id"]: row for row in rows_of(s, name)}
    sent = next(row for row in before.values() if row["path"] == "sent")
    assert sent["known_outside"] and reading.mounted(sent, "p").tree_root
    done = finish(s, order(s, name, "rekey", who="carin"))
    assert (done.phase, done.pair, done.files, done.bodies) == ("done", 2, 4, 4)
    store = s.world.storage
    for row in rows_of(s, name):
        old = before[row["id"]]
        changed = ("body", "header", "seal_root", "tree_root") if row["size"] else ("body", "header")
        assert all(row[column] != old[column] for column in changed)
        assert row["pair"] == 2 and row["rekeyed"] == s.clock.now and not row["known_outside"]
        assert (row["size"], row["sha256"], row["sent_sha256"]) == (old["size"], old["sha256"], old["sent_sha256"])
        assert store.size(row["body"]) == row["cipher_size"] and store.size(old["body"]) == old["cipher_size"]
        assert reading.mounted(row, "p").tree_root == b""
    readable(s, name)
    sound(s)
    assert {row["body"] for row in s.rows("stale_body")} >= {row["body"] for row in before.values()}
    clear(s)
    assert not {row["body"] for row in before.values()} & s.bodies()
    assert not {sidecar(row["body"]) for row in before.values()} & s.bodies()
    readable(s, name)
    assert inspection.bodies(s.node) == (set(), set())


def test_a_manifest_still_tells_an_altered_row(s: Any, name: str) -> None:
    finish(s, order(s, name, "rekey"))
    sound(s)
    row = next(row for row in rows_of(s, name) if row["path"] == "a.txt")
    for forged in (b"\1" * 32, bytes(32)):
        with s.node.records.writing() as unit:
            unit.update("file", {"id": row["id"]}, {"tree_root": forged})
        assert [name in finding.what for finding in inspection.manifests(s.node)] == [True]
    with s.node.records.writing() as unit:
        unit.update("file", {"id": row["id"]}, {"tree_root": row["tree_root"]})
    finish(s, order(s, name, "rekey"))
    sound(s)


# --- who may ---


def test_who_may_order_and_who_may_look(s: Any, name: str) -> None:
    for nobody in ("rikard", "dagny", "kerttu", "audun", "nemo"):
        with refused("not_allowed"):
            order(s, name, who=nobody)
    ident = order(s, name)
    for person in ("olle", "carin", "audun"):
        shown = rotation.show(s.node, s.who(person), ident)
        assert (shown.dataset, shown.files, shown.done, shown.reason) == (name, 4, 0, "It is time.")
        assert shown.may_stop == (person == "olle")
        assert ident in [view.state.rotation_id for view in rotation.mine(s.node, s.who(person))]
    for nobody in ("rikard", "dagny", "kerttu", "nemo"):
        with refused("not_allowed"):
            rotation.show(s.node, s.who(nobody), ident)
        assert rotation.mine(s.node, s.who(nobody)) == []
    with refused("not_yours"):
        rotation.stop(s.node, s.who("carin"), ident, command=new_id())
    with refused("not_allowed"):
        rotation.stop(s.node, s.who("audun"), ident, command=new_id())
    finish(s, ident)


def test_orders_that_cannot_be(s: Any, name: str) -> None:
    with refused("reason_missing"):
        rotation.start(s.node, s.who("olle"), name, aim="rotate", reason=" ", command=new_id())
    with refused("no_version"):
        order(s, name, version=2)
    with refused("not_found"):
        order(s, "no-such-dataset")
    ident = order(s, name)
    with refused("rotation_going"):
        order(s, name, "rekey")
    finish(s, ident)


def test_a_repeated_order_gives_the_same_rotation(s: Any, name: str) -> None:
    command = new_id()
    ident = order(s, name, command=command)
    assert order(s, name, command=command) == ident
    finish(s, ident)
    assert order(s, name, command=command) == ident


def test_every_live_version_at_once(s: Any, name: str) -> None:
    other = s.fresh()
    s.publish(other, {"x": b"1"})
    s.publish(other, {"x": b"2"})
    going = order(s, name)
    with pytest.raises(RefusedFault):
        rotation.start(s.node, s.who("nemo"), "", every=True, aim="rotate", reason="All.", command=new_id())
    command = new_id()
    begun = rotation.start(s.node, s.who("olle"), "", every=True, aim="rotate", reason="All.", command=command)
    again = rotation.start(s.node, s.who("olle"), "", every=True, aim="rotate", reason="All.", command=command)
    assert set(again) == set(begun)
    states = [s.state(ROTATION, ident) for ident in begun]
    assert s.dataset(name).dataset_id not in {state.dataset_id for state in states}
    own = [state for state in states if state.dataset_id == s.dataset(other).dataset_id]
    assert sorted((state.version, state.aim) for state in own) == [(1, "rotate"), (2, "rotate")]
    for ident in (going, *(state.rotation_id for state in own)):
        assert finish(s, ident).phase == "done"
    readable(s, name)
    for state in states:  # those of other tests, whose runs may still go on
        if s.state(ROTATION, state.rotation_id).phase == "going":
            rotation.stop(s.node, s.who("olle"), state.rotation_id, command=new_id())


# --- stopping, and what cannot be taken along ---


class Watched:
    """A real reader. `batches`: paths of the files that each `rekey` was asked for; `closed`: how many of them ended
    before their last answer; `between` is called before each answer is given, with its number."""

    def __init__(self, inner: Any, between: Callable[[int], None] = lambda _: None) -> None:
        self._inner, self._between = inner, between
        self.batches: list[list[str]] = []
        self.closed = 0

    def rekey(self, token: str, grant_id: str, files: Any, public_key: bytes) -> Iterator[Any]:
        self.batches.append([file.path for file, _ in files])
        with contextlib.closing(self._inner.rekey(token, grant_id, files, public_key)) as answers:
            try:
                for number, made in enumerate(answers):
                    self._between(number)
                    yield made
            except GeneratorExit:
                self.closed += 1
                raise

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._inner, verb)


@pytest.fixture
def watched(s: Any) -> Any:
    return Watched(s.reader)


def test_one_process_takes_many_files(s: Any, name: str, watched: Any) -> None:
    ident = order(s, name, "rekey")
    turn(s, reader=watched)
    ((*paths,),) = watched.batches
    assert sorted(paths) == sorted(row["path"] for row in rows_of(s, name)) and not watched.closed
    assert rotation.show(s.node, s.who("olle"), ident).done == 4
    assert s.rows("rotation_file") == []
    assert finish(s, ident).phase == "done"
    readable(s, name)


@pytest.mark.parametrize(("most", "sizes"), [(1, [1, 1, 1, 1]), (30, [3, 1])])
def test_a_batch_has_no_more_than_so_many_bytes(
    s: Any, name: str, watched: Any, monkeypatch: pytest.MonkeyPatch, most: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(rotating, "BODIES", most)
    ident = order(s, name, "rekey")
    for _ in range(8):
        turn(s, reader=watched)
    assert sorted(map(len, watched.batches), reverse=True) == sizes or most > 1
    assert sum(map(len, watched.batches)) == 4 and len(watched.batches) <= 4
    lengths = {row["path"]: row["size"] for row in rows_of(s, name)}
    for batch in watched.batches:
        assert len(batch) == 1 or sum(lengths[path] for path in batch) <= most
    assert finish(s, ident).phase == "done"
    readable(s, name)


def test_a_stopped_rekeying_leaves_a_mix_that_the_next_one_takes_along(s: Any, name: str) -> None:
    """It is stopped while the answer for the third file is under way: nothing of this one and those after it stays."""
    clear(s)
    ident, command = order(s, name, "rekey"), new_id()
    before = s.bodies()

    def stop(number: int) -> None:
        for _ in range(2 * (number == 2)):
            rotation.stop(s.node, s.who("olle"), ident, command=command)

    stopping: Any = Watched(s.reader, stop)
    turn(s, reader=stopping)
    assert stopping.closed == 1
    assert finish(s, ident).phase == "stopped"
    assert s.rows("rotation_file") == []
    clear(s)
    taken = {row["body"] for row in rows_of(s, name) if row["pair"] == 2}
    assert s.bodies() - before == taken | {sidecar(body) for body in taken}
    assert sorted(row["pair"] for row in rows_of(s, name)) == [1, 1, 2, 2]
    readable(s, name)
    sound(s)
    shown = rotation.show(s.node, s.who("olle"), ident)
    assert (shown.done, shown.may_stop) == (2, False)
    done = finish(s, order(s, name))
    assert (done.phase, done.pair) == ("done", 3)
    assert {row["pair"] for row in rows_of(s, name)} == {3}
    readable(s, name)


def test_one_that_was_stopped_before_its_pair_was_used_up(s: Any, name: str) -> None:
    """The pair's number is used by the next one, whether the key holder has made it or not."""
    for made in (False, True):
        ident = order(s, name)
        if made:
            s.worker.keys.rotate(s.dataset(name).current.key_id, 2)
        rotation.stop(s.node, s.who("olle"), ident, command=new_id())
        assert s.state(ROTATION, ident).pair == 2
    assert finish(s, order(s, name)).pair == 2
    readable(s, name)


def test_a_header_that_does_not_open_is_named_and_the_others_go_on(s: Any, name: str) -> None:
    row = next(row for row in rows_of(s, name) if row["path"] == "b/d.txt")
    broken = row["header"][:-1] + bytes([row["header"][-1] ^ 1])
    with s.node.records.writing() as unit:
        unit.update("file", {"id": row["id"]}, {"header": broken})
    ident = order(s, name)
    failed = finish(s, ident)
    assert failed.phase == "failed"
    shown = rotation.show(s.node, s.who("olle"), ident)
    assert shown.why.startswith("1 files stay as they are.\nb/d.txt: ") and shown.done == 3
    assert sorted(row["pair"] for row in rows_of(s, name)) == [1, 2, 2, 2]
    with s.node.records.writing() as unit:
        unit.update("file", {"id": row["id"]}, {"header": row["header"]})
    assert s.rows("rotation_file") == []
    readable(s, name)
    assert finish(s, order(s, name)).phase == "done"
    readable(s, name)


def test_a_damaged_body_is_not_sealed_anew(s: Any, name: str) -> None:
    row = next(row for row in rows_of(s, name) if row["path"] == "a.txt")
    path = next((s.world.folder / "store").rglob(row["body"]))
    whole = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(whole[:70_000] + bytes([whole[70_000] ^ 1]) + whole[70_001:])
    before = s.bodies()
    ident, watched = order(s, name, "rekey"), Watched(s.reader)
    turn(s, reader=watched)
    assert [len(batch) for batch in watched.batches] == [4] and not watched.closed, "the others go on without it"
    failed = finish(s, ident)
    assert failed.phase == "failed" and failed.bodies == 3
    shown = rotation.show(s.node, s.who("olle"), ident)
    assert shown.why.startswith("1 files stay as they are.\na.txt: ") and "segment 1 " in shown.why
    assert len(s.bodies() - before) == 6, "nothing is left of the one that failed"
    path.write_bytes(whole)
    assert finish(s, order(s, name, "rekey")).phase == "done"
    readable(s, name)
    sound(s)


def destroy(s: Any, name: str) -> None:
    """What the ledger says once officers have had the key destroyed. (The key itself is here still.)"""
    owner = s.dataset(name)
    with s.node.records.writing() as unit:
        state, number = streams.need(unit, streams.DATASET, owner.dataset_id)
        gone = core.RecordDestruction(by=NODE, at=s.clock.now, version=1, generation=2)
        step = streams.Step(streams.DATASET, owner.dataset_id, number, state, core.decide(state, gone, core.Facts()))
        streams.commit(unit, [step], by=NODE, at=s.clock.now, command=new_id())


@pytest.mark.parametrize("aim", ["rotate", "rekey"])
def test_a_destroyed_version_is_left_alone(s: Any, name: str, aim: str) -> None:
    """Also where that happens while a body is being encrypted anew: the new one is nobody's, and goes."""
    clear(s)  # what other tests have left
    ident = order(s, name, aim)
    before, bodies = s.bodies(), {row["body"] for row in rows_of(s, name)}

    if aim == "rekey":
        slow: Any = Watched(s.reader, lambda _: destroy(s, name))
        rotating.encrypt(s.worker, slow)
        assert slow.closed == 1
    else:
        destroy(s, name)
    assert {row["body"] for row in rows_of(s, name)} == bodies
    failed = finish(s, ident)
    assert failed.phase == "failed" and failed.bodies == 0
    assert rotation.show(s.node, s.who("olle"), ident).why == "The key of the version was destroyed."
    clear(s)
    assert s.bodies() == before
    with refused("version_destroyed"):
        order(s, name, aim)


# --- cut off anywhere ---


class Killed(BaseException):
    """The process ends here."""


class Dying:
    """Real parts that are cut off at one moment: before or after the `nth` thing that they do."""

    def __init__(self, nth: int) -> None:
        self._left = nth
        self.struck = False

    def passing(self, do: Callable[..., Any]) -> Callable[..., Any]:
        def through(*args: Any, **kwargs: Any) -> Any:
            self.strike()
            found = do(*args, **kwargs)
            self.strike()
            return self.each(found) if isinstance(found, Generator) else found

        return through

    def each(self, answers: Generator[Any, None, None]) -> Iterator[Any]:
        with contextlib.closing(answers):
            for answer in answers:
                self.strike()
                yield answer
                self.strike()

    def strike(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.struck = True
            raise Killed

    def wrap(self, part: Any, *verbs: str) -> Any:
        dying = self

        class Wrapped:
            def __getattr__(self, verb: str) -> Any:
                found = getattr(part, verb)
                return dying.passing(found) if verb in verbs else found

        return Wrapped()

    def records(self, records: Any) -> Any:
        dying = self

        class Wrapped:
            def reading(self) -> Any:
                return records.reading()

            @contextlib.contextmanager
            def writing(self) -> Iterator[Any]:
                with records.writing() as unit:
                    yield unit
                    dying.strike()  # nothing of it is kept
                dying.strike()

        return Wrapped()


@pytest.mark.parametrize("aim", ["rotate", "rekey"])
def test_cut_off_before_or_after_anything(s: Any, name: str, aim: str) -> None:
    """One rotation for every moment; after each cut all files open, and the work is taken up again."""
    for nth in itertools.count(1):
        dying = Dying(nth)
        worker = replace(
            s.worker,
            records=dying.records(s.worker.records),
            keys=dying.wrap(s.worker.keys, "rotate", "reseal_within", "retire", "grant", "revoke"),
        )
        reader = dying.wrap(s.reader, "reserve", "rekey")
        ident = order(s, name, aim)
        with contextlib.suppress(Killed):
            for _ in range(TURNS):
                turn(s, worker, reader)
                if s.state(ROTATION, ident).phase == "done":
                    break
        if not dying.struck:
            break
        readable(s, name)
        assert finish(s, ident).phase == "done"
        if nth % 5 == 0:
            readable(s, name)
            sound(s)
    assert nth > (10 if aim == "rotate" else 40)
    readable(s, name)
    sound(s)
    clear(s)
    assert s.rows("rotation_file") == [] and s.rows("stale_body") == []
    assert inspection.bodies(s.node) == (set(), set())


def test_a_key_holder_that_is_away_is_waited_for(s: Any, name: str) -> None:
    from valv.errors import UnreachableFault

    ident = order(s, name)

    class Away:
        def __getattr__(self, verb: str) -> Any:
            def away(*_: Any) -> None:
                raise UnreachableFault("the key holder is away")

            return away

    away: Any = Away()
    for _ in range(3):
        with pytest.raises(Fault):
            rotating.seal(replace(s.worker, keys=away))
    assert s.state(ROTATION, ident).phase == "going"
    assert finish(s, ident).phase == "done"


def test_a_fault_that_passes_leaves_nothing(s: Any, name: str) -> None:
    from tests.app.faults import FailingStorage
    from tests.world import DirectReader

    ident = order(s, name, "rekey")
    before = s.bodies()
    for verb, nth in (("writer", 1), ("writer", 2), ("write", 1), ("commit", 1), ("commit", 2), ("commit", 3)):
        storage: Any = FailingStorage(s.world.storage, verb, nth)
        reader = DirectReader(storage, s.reader._keys, s.reader._uid)
        with pytest.raises(FullFault):
            rotating.encrypt(s.worker, reader)
        assert storage.failed
    assert {row["fault"] for row in s.rows("rotation_file")} == {""}
    rotating._give_up_begun(s.worker)
    clear(s)
    taken = {row["body"] for row in rows_of(s, name) if row["pair"] == 2}
    assert 0 < len(taken) < 4, "what was done before a fault stands"
    assert s.bodies() - before == taken | {sidecar(body) for body in taken}
    assert finish(s, ident).phase == "done"
    readable(s, name)
