"""The key folder: what was acknowledged stays, what was altered is found, and no crash leaves it half done."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from valv_tests_keys_running import CHEAP, Tree

from valv.config import Keys
from valv.errors import ConflictFault, Fault, FullFault, InputFault, KeyFault, MissingFault, RefusedFault, SealedFault
from valv.formats import crypt4gh
from valv.keys import disk
from valv.keys.file import FileKeyring
from valv.keys.store import Act, Store

PASSPHRASE = b"a passphrase"
KEYRING = FileKeyring(Keys(), CHEAP)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    make(path)
    return path


def make(path: Path) -> None:
    path.mkdir(mode=0o700)
    root = KEYRING.create(path, PASSPHRASE)
    Store.create(path, "valv.example", root)
    root.wipe()


def opened(path: Path) -> Store:
    return Store(path, KEYRING.open(path, PASSPHRASE))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_files_are_for_their_owner_only(folder: Path) -> None:
    store = opened(folder)
    store.create_key("v1", "result")
    assert {file.stat().st_mode & 0o777 for file in folder.rglob("*.json")} == {0o600}
    assert (folder / "keys").stat().st_mode & 0o777 == 0o700
    store.close()
    folder.chmod(0o750)
    with pytest.raises(KeyFault, match="entered by others"):
        opened(folder)


def test_one_process_at_a_time(folder: Path) -> None:
    first = opened(folder)
    with pytest.raises(ConflictFault):
        opened(folder)
    first.close()
    opened(folder).close()


def test_another_root_key_opens_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyFault):
        Store(folder, KEYRING.create(tmp_path, PASSPHRASE))


@pytest.mark.parametrize(
    "changes",
    [
        {"key_class": "anonymised", "confirmed": True},
        {"confirmed": True},
        {"key_class": "anonymised"},
        {"key_class": "result"},
        {"version": 2},
        {"version": 0},
        {"key_id": "v2"},
        {"pairs": []},
        {"pairs": [{"number": 1, "public": "A" * 43 + "=", "wrapped": "A" * 80}]},
        {"pairs": [{"number": 1, "public": "A" * 43 + "=", "wrapped": ""}]},
        {"key_class": "something"},
        {"more": 1},
    ],
)
def test_an_edited_record_is_found(folder: Path, changes: dict[str, object]) -> None:
    store = opened(folder)
    store.create_key("v1", "identifiable")
    edit(folder / "keys" / "v1.json", **changes)
    for use in (store.unlock, store.confirm, store.narrow):
        with pytest.raises(KeyFault):
            use("v1")
    store.close()
    opened(folder).close()


@pytest.mark.parametrize(
    "bend",
    [
        lambda pairs: pairs[1:],
        lambda pairs: pairs[:1],
        lambda pairs: pairs[::-1],
        lambda pairs: [pairs[0], {**pairs[1], "wrapped": pairs[0]["wrapped"]}],
        lambda pairs: [pairs[0], {**pairs[1], "public": pairs[0]["public"]}],
        lambda pairs: [{**pairs[0], "number": 2}, {**pairs[1], "number": 1}],
        lambda pairs: [*pairs, {**pairs[1], "number": 3}],
    ],
)
def test_edited_pairs_are_found(folder: Path, bend: Callable[[Any], Any]) -> None:
    store = opened(folder)
    store.create_key("v1", "identifiable")
    store.rotate("v1", 2)
    record = folder / "keys" / "v1.json"
    edit(record, pairs=bend(json.loads(record.read_text())["pairs"]))
    for use in (lambda: store.unlock("v1"), lambda: store.rotate("v1", 3), lambda: store.retire("v1", 2)):
        with pytest.raises(KeyFault):
            use()


def test_rotating_and_retiring(folder: Path) -> None:
    """A header opens with exactly one pair at any time; both verbs may be repeated."""
    store = opened(folder)
    first = store.create_key("v1", "identifiable")
    second = store.rotate("v1", 2)
    assert second != first and store.rotate("v1", 2) == second == store.create_key("v1", "identifiable")
    for number in (1, 4, 0, -1):
        with pytest.raises(InputFault):
            store.rotate("v1", number)
    assert [crypt4gh.public_key(private) for private in store.unlock("v1")[1]] == [second, first]
    third = store.rotate("v1", 3)
    with pytest.raises(InputFault):
        store.retire("v1", 2)
    before = (folder / "keys" / "v1.json").read_bytes()
    for _ in range(2):
        store.retire("v1", 3)
        assert [crypt4gh.public_key(private) for private in store.unlock("v1")[1]] == [third]
    (folder / "keys" / "v1.json").write_bytes(before)
    with pytest.raises(KeyFault, match="older copy"):
        store.unlock("v1")


def rolled(store: Store, folder: Path, *without: str) -> Path:
    """Go on with a copy of the folder under a new root key, without these keys."""
    fresh = folder.with_name(f"{folder.name}-{store.generation + 1}")
    fresh.mkdir(mode=0o700)
    root = KEYRING.create(fresh, PASSPHRASE)
    copied = store.copy_keys(fresh, root, frozenset(without))
    store.copy(fresh, root, copied, generation=store.generation + 1, without=frozenset(without))
    store.switch(fresh, root)
    return fresh


def test_a_record_moved_to_another_id_is_found(folder: Path) -> None:
    store = opened(folder)
    store.create_key("secret", "identifiable")
    store.create_key("open", "anonymised")
    store.confirm("open")
    stolen = (folder / "keys" / "secret.json").read_bytes()
    (folder / "keys" / "open.json").write_bytes(stolen)
    with pytest.raises(KeyFault):
        store.unlock("open")
    (folder / "keys" / "open.json").write_bytes(stolen.replace(b'"secret"', b'"open"'))
    with pytest.raises(KeyFault):
        store.unlock("open")


def test_an_older_copy_of_a_record_is_found(folder: Path) -> None:
    """Otherwise who kept the file from before `narrow` could undo it."""
    store = opened(folder)
    store.create_key("v1", "anonymised")
    store.confirm("v1")
    record = folder / "keys" / "v1.json"
    before = record.read_bytes()
    store.narrow("v1")
    record.write_bytes(before)
    with pytest.raises(KeyFault, match="older copy"):
        store.unlock("v1")
    store.close()
    store = opened(folder)
    with pytest.raises(KeyFault, match="older copy"):
        store.unlock("v1")


def test_a_destroyed_record_put_back_stays_destroyed(folder: Path) -> None:
    store = opened(folder)
    store.create_key("v1", "anonymised")
    before = (folder / "keys" / "v1.json").read_bytes()
    folder = rolled(store, folder, "v1")
    record = folder / "keys" / "v1.json"
    assert not record.exists()
    record.write_bytes(before)
    with pytest.raises(KeyFault, match="destroyed"):
        store.unlock("v1")
    store.close()
    store = opened(folder)
    assert not record.exists()
    with pytest.raises(KeyFault, match="destroyed"):
        store.unlock("v1")


def test_a_change_cut_off_before_the_index_is_completed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the older copy would open again, although the repeated `narrow` was acknowledged."""
    store = opened(folder)
    store.create_key("v1", "anonymised")
    store.confirm("v1")
    before = (folder / "keys" / "v1.json").read_bytes()

    def cut_off(*_: object) -> None:
        raise FullFault

    monkeypatch.setattr(store, "_put_version", cut_off)
    with pytest.raises(FullFault):
        store.narrow("v1")
    store.close()
    store = opened(folder)
    store.narrow("v1")
    (folder / "keys" / "v1.json").write_bytes(before)
    with pytest.raises(KeyFault, match="older copy"):
        store.unlock("v1")


def test_a_copy_takes_over_a_change_that_was_cut_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the version in the copy's index would be that of the older record. Read only, nothing is written."""
    store = opened(folder)
    store.create_key("v1", "anonymised")

    def cut_off(*_: object) -> None:
        raise FullFault

    monkeypatch.setattr(store, "_put_version", cut_off)
    with pytest.raises(FullFault):
        store.narrow("v1")
    store.close()
    before = {file: file.read_bytes() for file in folder.rglob("*.json")}
    (folder / "keys" / ".v2.json.left").write_text("half written")
    looking = Store(folder, KEYRING.open(folder, PASSPHRASE), read_only=True)
    assert looking.unlock("v1")[0].key_class == "identifiable"
    looking.close()
    assert {file: file.read_bytes() for file in folder.rglob("*.json")} == before
    assert (folder / "keys" / ".v2.json.left").exists()
    fresh = rolled(opened(folder), folder)
    versions = json.loads((fresh / "index.json").read_text())["content"]["versions"]
    assert versions == {"v1": json.loads((fresh / "keys" / "v1.json").read_text())["version"]}


def test_a_closed_store_changes_nothing(folder: Path) -> None:
    root = KEYRING.open(folder, PASSPHRASE)
    store = Store(folder, root)
    store.create_key("v1", "anonymised")
    root.wipe()
    store.close()
    store.close()
    before = {file: file.read_bytes() for file in folder.rglob("*.json")}
    for act in (
        lambda: store.create_key("v2", "result"),
        lambda: store.narrow("v1"),
        lambda: store.rotate("v1", 2),
        lambda: store.advance(3, Tree(3).root(3), []),
    ):
        with pytest.raises(SealedFault):
            act()
    assert {file: file.read_bytes() for file in folder.rglob("*.json")} == before


@pytest.mark.parametrize("name", ["index.json", "checkpoint.json", "node.json", "root.json", "custody.json"])
def test_an_altered_file_stops_the_opening(folder: Path, name: str) -> None:
    store = opened(folder)
    store.create_key("v1", "anonymised")
    store.advance(5, Tree(5).root(5), [])
    store.add_act(Act("an-order", b"{}", "minutes"))
    store.close()
    good = (folder / name).read_bytes()
    for number in range(0, len(good), 7):
        bad = bytearray(good)
        bad[number] ^= 1
        (folder / name).write_bytes(bad)
        with pytest.raises(Fault):
            opened(folder)
    (folder / name).write_bytes(b"")
    with pytest.raises(Fault):
        opened(folder)
    (folder / name).unlink()
    with pytest.raises(MissingFault):
        opened(folder)
    (folder / name).write_bytes(good)
    opened(folder).close()


def test_files_of_one_kind_are_not_taken_for_another(folder: Path) -> None:
    (folder / "checkpoint.json").write_bytes((folder / "index.json").read_bytes())
    with pytest.raises(KeyFault):
        opened(folder)


def test_the_old_private_half_is_overwritten(folder: Path) -> None:
    store = opened(folder)
    store.create_key("v1", "anonymised")
    record = folder / "keys" / "v1.json"
    for change in (
        lambda: store.confirm("v1"),
        lambda: store.narrow("v1"),
        lambda: store.rotate("v1", 2),
        lambda: store.retire("v1", 2),
    ):
        with record.open("rb") as before:
            size = len(before.read())
            change()
            before.seek(0)
            assert before.read() == bytes(size)


def test_a_full_disk_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(folder)
    public = store.create_key("v1", "anonymised")
    real = os.fsync
    failing = False

    def fsync(descriptor: int) -> None:
        if failing:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(disk.os, "fsync", fsync)
    failing = True
    for act in (
        lambda: store.create_key("v2", "result"),
        lambda: store.confirm("v1"),
        lambda: store.rotate("v1", 2),
        lambda: store.add_act(Act("an-order", b"{}", "minutes")),
        lambda: store.advance(3, Tree(3).root(3), []),
    ):
        with pytest.raises(FullFault):
            act()
    failing = False
    assert store.unlock("v1")[0].public == public and not store.unlock("v1")[0].confirmed
    assert store.unlock("v1")[0].newest.number == 1
    assert store.checkpoint.size == 0 and store.acts == ()
    assert not list(folder.rglob(".*"))
    with pytest.raises(MissingFault):
        store.unlock("v2")


def test_a_record_that_is_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    store = opened(folder)
    store.create_key("v1", "result")
    record = folder / "keys" / "v1.json"
    record.rename(tmp_path / "elsewhere")
    record.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Fault):
        store.unlock("v1")


# --- a model ---------------------------------------------------------------------------------------------------------

IDS = st.sampled_from(["a", "b", "c"])


class Model(RuleBasedStateMachine):
    """Any order of verbs and restarts, against a plain description of what a key is."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name, "keys")
        make(self.path)
        self.store = opened(self.path)
        self.keys: dict[str, tuple[str, bool, bytes]] = {}
        self.pairs: dict[str, tuple[int, int]] = {}
        """Numbers of the oldest and the newest pair."""
        self.generation = 1
        self.destroyed: set[str] = set()
        self.size = 0
        self.tree = Tree(64)

    def teardown(self) -> None:
        self.store.close()
        self._folder.cleanup()

    @rule(key=IDS, kind=st.sampled_from(["identifiable", "anonymised", "result", "intake"]))
    def create(self, key: str, kind: str) -> None:
        try:
            public = self.store.create_key(key, kind)  # type: ignore[arg-type]
        except RefusedFault as fault:
            expected = "key_destroyed" if key in self.destroyed else "key_class"
            assert fault.refusal.code == expected
            assert key in self.destroyed or self.keys[key][0] not in (kind, "identifiable")
            return
        if key in self.keys:
            assert public == self.keys[key][2]
        else:
            assert key not in self.destroyed
            self.keys[key] = (kind, False, public)
            self.pairs[key] = (1, 1)

    @rule(key=IDS)
    def confirm(self, key: str) -> None:
        if self._acts(self.store.confirm, key):
            self.keys[key] = ("anonymised", True, self.keys[key][2])

    @rule(key=IDS)
    def narrow(self, key: str) -> None:
        if self._acts(self.store.narrow, key):
            self.keys[key] = ("identifiable", False, self.keys[key][2])

    def _acts(self, act: Callable[[str], None], key: str) -> bool:
        try:
            act(key)
        except RefusedFault:
            assert self.keys[key][0] != "anonymised"
        except KeyFault:
            assert key in self.destroyed
        except MissingFault:
            assert key not in self.keys and key not in self.destroyed
        else:
            return True
        return False

    @rule(keys=st.sets(IDS))
    def roll(self, keys: set[str]) -> None:
        gone = keys & set(self.keys)
        self.path = rolled(self.store, self.path, *gone)
        self.generation += 1
        self.destroyed |= gone
        for key in gone:
            del self.keys[key], self.pairs[key]

    @rule(key=IDS, step=st.sampled_from([0, 1, 1, 2]))
    def rotate(self, key: str, step: int) -> None:
        if key in self.keys:
            oldest, newest = self.pairs[key]
            if step == 2:
                with pytest.raises(InputFault):
                    self.store.rotate(key, newest + step)
                return
            self.keys[key] = (*self.keys[key][:2], self.store.rotate(key, newest + step))
            self.pairs[key] = (oldest, newest + step)

    @rule(key=IDS)
    def retire(self, key: str) -> None:
        if key in self.keys:
            newest = self.pairs[key][1]
            self.store.retire(key, newest)
            self.pairs[key] = (newest, newest)

    @precondition(lambda self: self.size < 64)
    @rule(data=st.data())
    def advance(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(self.size, 64))
        self.store.advance(size, self.tree.root(size), self.tree.proof(self.size, size))
        self.size = size

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = opened(self.path)

    @invariant()
    def agrees(self) -> None:
        for key, (kind, confirmed, public) in self.keys.items():
            record, privates = self.store.unlock(key)
            assert (record.key_class, record.confirmed, record.public) == (kind, confirmed, public)
            assert [crypt4gh.public_key(one) for one in privates[::-1]] == [pair.public for pair in record.pairs]
            assert record.public == public and len(set(privates)) == len(privates)
            oldest, newest = self.pairs[key]
            assert [pair.number for pair in record.pairs] == list(range(oldest, newest + 1))
            assert record.may_leave == (kind == "anonymised" and confirmed)
        assert self.store.checkpoint.size == self.size
        assert (self.store.generation, self.store.destroyed) == (self.generation, self.destroyed)
        assert {file.stem for file in (self.path / "keys").iterdir()} == set(self.keys)


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def work(path: Path, seed: int, say: Callable[[str], None]) -> None:
    """Change things for ever; say each change before it begins (`?`) and when it was acknowledged (`!`)."""
    choose = random.Random(seed)
    store, tree = opened(path), Tree(4096)
    alive: list[str] = []
    number = size = 0
    size = store.checkpoint.size
    while True:
        verb = choose.choice(["create", "create", "confirm", "narrow", "rotate", "retire", "sign"])
        if verb == "create":
            key = f"k{seed}-{number}"
            number += 1
            say(f"? create {key}")
            public = store.create_key(key, "anonymised")
            alive.append(key)
            say(f"! create {key} {public.hex()}")
        elif verb == "sign":
            new = min(size + choose.randrange(1, 5), 4096)
            store.advance(new, tree.root(new), tree.proof(size, new))
            size = new
            say(f"! sign {new}")
        elif alive:
            key = choose.choice(alive)
            say(f"? {verb} {key}")
            newest = store.unlock(key)[0].newest.number
            try:
                if verb == "rotate":
                    public = store.rotate(key, newest + 1)
                elif verb == "retire":
                    store.retire(key, newest)
                else:
                    getattr(store, verb)(key)
            except RefusedFault:
                continue
            say(f"! {verb} {key}" + (f" {public.hex()}" if verb == "rotate" else ""))


def kill_while_working(path: Path, seed: int) -> list[str]:
    """What the worker said until it was killed at a random moment."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(path, seed, lambda line: void(os.write(writing, line.encode() + b"\n")))
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(random.Random(seed).uniform(0.0, 0.08))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the worker failed by itself"
    with os.fdopen(reading) as said:
        return said.read().splitlines()


def void(_: object) -> None:
    """Drop a value."""


class Expected:
    """What must be true after the lines that were said; `doubtful`: the key whose last change was not acknowledged."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[str, str]] = {}
        self.size = 0

    def hear(self, lines: list[str]) -> str:
        doubtful = ""
        for line in lines:
            mark, verb, *rest = line.split()
            if mark == "?":
                doubtful = rest[0]
                continue
            doubtful = ""
            if verb == "sign":
                self.size = int(rest[0])
            elif verb in ("create", "rotate"):
                self.keys[rest[0]] = (self.keys.get(rest[0], ("new", ""))[0], rest[1])
            elif verb != "retire":
                self.keys[rest[0]] = (verb, self.keys[rest[0]][1])
        return doubtful

    def check(self, store: Store, doubtful: str) -> None:
        for key, (change, public) in self.keys.items():
            record, privates = store.unlock(key)
            assert public in {crypt4gh.public_key(one).hex() for one in privates} or key == doubtful
            assert crypt4gh.public_key(privates[0]) == record.public
            if key != doubtful:
                assert record.public.hex() == public
                assert record.may_leave == (change == "confirm")
                assert (record.key_class == "identifiable") == (change == "narrow")
        assert store.checkpoint.size >= self.size


def settle(store: Store, expected: Expected, doubtful: str) -> None:
    """Bring the key in doubt to a known state: all that was done to it can be done again."""
    if doubtful:
        store.create_key(doubtful, "anonymised")
        store.narrow(doubtful)
        record, _ = store.unlock(doubtful)
        store.retire(doubtful, record.newest.number)
        expected.keys[doubtful] = ("narrow", record.public.hex())


def kill_often(path: Path, times: int) -> None:
    expected = Expected()
    for seed in range(times):
        doubtful = expected.hear(kill_while_working(path, seed))
        store = opened(path)
        expected.check(store, doubtful)
        expected.size = store.checkpoint.size
        settle(store, expected, doubtful)
        assert not list(path.rglob(".*")), "half-written files are left"
        store.close()
    assert expected.keys and expected.size


def test_kill_9_at_any_moment(folder: Path) -> None:
    kill_often(folder, 25)


@pytest.mark.slow
def test_kill_9_at_many_moments(folder: Path) -> None:
    kill_often(folder, 500)


def test_names(folder: Path) -> None:
    store = opened(folder)
    for name in ("../root", "", "a/b", ".index", "a\n"):
        for act in (store.unlock, store.confirm, store.narrow, lambda one: store.rotate(one, 2)):
            with pytest.raises(InputFault):
                act(name)
