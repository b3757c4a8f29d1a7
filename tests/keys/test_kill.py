"""`kill -9` of a running key holder at random moments of all that changes its keys: what it acknowledged holds.

After each restart exactly one generation lives, every header opens with it, what was destroyed never does, each act is
there once, and the key backup agrees with the node once it was brought up to date.
"""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from valv_tests_keys_running import KEYD, WORKER, Running, running

from tests.keys.officers import DATA_KEY, People, ordered
from valv.errors import KeyFault, RefusedFault, UnreachableFault
from valv.formats import crypt4gh, note, shares
from valv.keys import folder, recover
from valv.keys.file import SecretRoot
from valv.keys.memory import Secret
from valv.keys.mirror import generations, leftovers
from valv.keys.store import Store
from valv.ports.keys import Held

NAMES = ("anna", "bo", "eva", "lisa")


class Work:
    """Random changes, each noted before it is asked for and after it was acknowledged."""

    def __init__(self, holder: Running, seed: int) -> None:
        self.holder = holder
        self.choose = random.Random(seed)
        self.people = People(*NAMES)
        self.officers: list[str] = ["anna", "bo"]
        self.headers: dict[str, bytes] = {}
        """key → a header that must open; it is the newest one that was acknowledged."""
        self.destroyed: set[str] = set()
        self.told: dict[str, str] = {}
        """order → minutes."""
        self.doubtful: tuple[str, Any] | None = None
        self.numbers = 0
        self.verbs = [self.create, self.create, self.rotate, self.result, self.ceremony, self.destroy, self.drill]

    def begin(self) -> None:
        self.worker, self.operator = self.holder.client(WORKER), self.holder.client(0)

    def name(self, kind: str) -> str:
        self.numbers += 1
        return f"{kind}-{self.numbers}"

    def forever(self) -> None:
        """Until the key holder is gone."""
        try:
            while True:
                self.choose.choice(self.verbs)()
        except UnreachableFault:
            pass

    def create(self, kind: Any = "identifiable") -> str:
        key = self.name("out" if kind == "result" else "ds")
        self.doubtful = ("create", key)
        self.headers[key] = crypt4gh.build_header(DATA_KEY, [self.worker.create(key, kind)])
        self.doubtful = None
        return key

    def result(self) -> None:
        """A result that is made and destroyed: the root key is made anew."""
        self.gone([self.create("result")], lambda key: self.worker.destroy(key))

    def rotate(self) -> None:
        """A whole rotation, as the worker does it."""
        keys = [key for key in self.headers if key.startswith("ds-")]
        if not keys:
            return
        key = self.choose.choice(keys)
        pair = 2
        while True:  # its number is looked for, as after a crash
            try:
                self.worker.rotate(key, pair)
                break
            except Exception as fault:
                if "has pair" not in str(fault):
                    raise
                pair += 1
        [self.headers[key]] = self.worker.reseal_within(key, [self.headers[key]])
        self.worker.retire(key, pair)

    def ordered(self, signed: str, words: list[str] | None = None) -> None:
        told = self.operator.order(signed, words or [])
        self.told[signed] = told

    def ceremony(self) -> None:
        new = self.choose.sample(NAMES, self.choose.choice([2, 3, 4]))
        by = " ".join({*new[:2], *self.officers[:2]})
        signed = self.people.ceremony(*new, by=by)
        self.doubtful = ("ceremony", (signed, new))
        self.ordered(signed)
        self.officers = new
        self.doubtful = None

    def destroy(self) -> None:
        keys = [key for key in self.headers if key.startswith("ds-")]
        if len(keys) > 3:
            gone = self.choose.sample(keys, self.choose.choice([1, 2]))
            signed = self.people.signed(ordered("destroy", key_ids=tuple(gone)), *self.officers[:2])
            self.gone(gone, lambda _: self.ordered(signed))

    def gone(self, keys: list[str], destroy: Any) -> None:
        self.doubtful = ("destroy", keys)
        destroy(keys[0])
        for key in keys:
            del self.headers[key]
        self.destroyed |= set(keys)
        self.doubtful = None

    def drill(self) -> None:
        words = [self.people.opened(self.operator.shares(name).recovery, name) for name in self.officers[:2]]
        self.ordered(self.people.signed(ordered("drill"), *self.officers[:2]), words)

    # --- after a restart ---

    def check(self) -> None:
        self.settle()
        custody = self.operator.custody()
        assert custody.state is not None
        assert custody.state.officers == self.people.named(*self.officers)
        for key, header in self.headers.items():
            [again] = self.worker.reseal_within(key, [header])
            assert again
        for key in self.destroyed:
            with pytest.raises((KeyFault, RefusedFault), match="destroyed"):
                self.worker.create(key, "identifiable")
        held = self.held()
        assert [one.number for one in held] == list(range(1, len(held) + 1))
        minutes = [one.minutes for one in held]
        assert len(set(minutes)) == len(minutes)
        for signed, told in self.told.items():
            assert told in minutes and self.operator.order(signed, []) == told
        assert len(self.held()) == len(held), "nothing is done twice"
        vkey = self.operator.status().log_key
        for one in minutes:
            note.verify(one, vkey)
        status = self.operator.status()
        assert generations(self.holder.keys) == [status.generation] and not leftovers(self.holder.keys)
        assert [(one.generation, one.fault) for one in self.operator.back_up()] == [(status.generation, "")] * len(
            self.holder.places
        )
        self.compare()

    def held(self) -> list[Held]:
        found: list[Held] = []
        while more := self.operator.held(len(found)):
            found += more
        return found

    def settle(self) -> None:
        """What was not acknowledged is done or not, and in both cases can be done again."""
        if self.doubtful is None:
            return
        what, about = self.doubtful
        self.doubtful = None
        if what == "create":
            self.headers[about] = crypt4gh.build_header(DATA_KEY, [self.worker.create(about, _class(about))])
        elif what == "ceremony":
            signed, new = about
            state = self.operator.custody().state
            if state.officers == self.people.named(*new):
                self.officers = new
                self.told[signed] = self.operator.order(signed, [])
        elif what == "destroy":
            states = {self.is_destroyed(key) for key in about}
            assert len(states) == 1, "all or nothing"
            if states == {True}:
                self.destroyed |= set(about)
                for key in about:
                    del self.headers[key]

    def is_destroyed(self, key: str) -> bool:
        try:
            self.worker.reseal_within(key, [self.headers[key]])
        except KeyFault:
            return True
        return False

    def compare(self) -> None:
        """Each place of the key backup, opened with shares, has the same keys."""
        for place in self.holder.places:
            assert len(generations(place)) == 1 and not leftovers(place)
            words = [self.people.opened(recover.sealed_share(place, name), name) for name in self.officers[:2]]
            store = Store(
                place / f"generation-{folder.newest(place):06d}",
                SecretRoot(Secret(shares.combine(words))),
                read_only=True,
            )
            try:
                assert set(self.headers) <= set(store.key_ids) and self.destroyed == store.destroyed
                for key, header in self.headers.items():
                    _, privates = store.unlock(key)
                    assert crypt4gh.open_header(header, privates).data_keys == (DATA_KEY,)
                assert len(store.acts) == self.operator.custody().held
            finally:
                store.close()


def _class(key: str) -> Any:
    return "result" if key.startswith("out-") else "identifiable"


def kill_often(times: int, seed: int) -> None:
    with running(KEYD, places=2) as holder:
        work = Work(holder, seed)
        work.begin()
        for _ in range(6):
            work.create()
        work.ordered(work.people.ceremony("anna", "bo"))
        for _ in range(times):
            assert holder.process is not None
            timer = threading.Timer(work.choose.uniform(0.0, 0.4), holder.process.kill)
            timer.start()
            work.forever()
            timer.join()
            holder.process.wait(60)
            holder.start()
            work.begin()
            work.check()
        assert work.destroyed and len(work.told) > 1 and work.operator.status().generation > times / 5


def test_kill_9_at_any_moment(needs_root: None) -> None:
    kill_often(12, 20261123)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_at_many_moments(needs_root: None) -> None:
    kill_often(100, 8)
