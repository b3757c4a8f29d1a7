"""Custody: never does one person's signature suffice."""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from valv.core import custody
from valv.core.custody import (
    AHEAD,
    DRILL_AFTER,
    FRESH,
    MOST_OFFICERS,
    CeremonyHeld,
    Custody,
    Destroy,
    Destroyed,
    DrillHeld,
    Facts,
    HoldCeremony,
    HoldDrill,
    Recover,
    Recovered,
    decide,
    evolve,
)
from valv.core.process import encode
from valv.errors import CATALOGUE, Refusal
from valv.formats import note
from valv.formats.officer import Officer

NOW = datetime(2026, 11, 23, 18, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@functools.cache
def person(name: str, number: int = 0) -> Officer:
    """An officer whose keys depend on name and number only."""
    return Officer.of(name, f"{name}-{number}".encode().ljust(32, b"."))


ANNA, BO, EVA, LISA, NILS = map(person, ("anna", "bo", "eva", "lisa", "nils"))
ALL = (ANNA, BO, EVA)


def keys(*officers: Officer) -> frozenset[str]:
    return frozenset(one.sign_key for one in officers)


def facts(*signed: Officer, now: datetime = NOW, generation: int = 3, shares: int = 0) -> Facts:
    return Facts(
        signed=keys(*signed), now=now, generation=generation, shares=frozenset(f"share {n}" for n in range(shares))
    )


def ceremony(officers: tuple[Officer, ...] = ALL, threshold: int = 2, persons: int = 1, at: datetime = NOW) -> Any:
    return HoldCeremony(by="officers", at=at, officers=officers, threshold=threshold, persons=persons)


def destroy(*key_ids: str, at: datetime = NOW) -> Destroy:
    return Destroy(by="officers", at=at, key_ids=key_ids)


def drill(at: datetime = NOW) -> HoldDrill:
    return HoldDrill(by="officers", at=at)


def recover(at: datetime = NOW) -> Recover:
    return Recover(by="officers", at=at)


def held(officers: tuple[Officer, ...] = ALL, **more: Any) -> Custody:
    """The state after a first ceremony, long ago."""
    first = {"threshold": 2, "persons": 1, "generation": 3, "ceremony_at": NOW - timedelta(days=30)}
    return Custody(**{"officers": officers, "drill_at": NOW - timedelta(days=30), **first, **more})


def code(state: Custody | None, command: Any, known: Facts) -> str:
    decided = decide(state, command, known)
    assert isinstance(decided, Refusal), decided
    assert decided.code in CATALOGUE
    return decided.code


def event(state: Custody | None, command: Any, known: Facts) -> Any:
    decided = decide(state, command, known)
    assert not isinstance(decided, Refusal), decided
    [one] = decided
    return one


# --- who signs ---


def test_the_first_ceremony() -> None:
    found = event(None, ceremony(), facts(ANNA, EVA, generation=1))
    assert found == CeremonyHeld(at=NOW, officers=ALL, threshold=2, persons=1, generation=2, signers=("anna", "eva"))
    state = evolve(None, found)
    assert state == Custody(officers=ALL, threshold=2, persons=1, generation=2, ceremony_at=NOW, drill_at=NOW)
    assert state.officer("bo") == BO and state.officer("nils") is None


@pytest.mark.parametrize("signed", [(), (ANNA,), (ANNA, LISA), (LISA, NILS), (ANNA, person("bo", 1))])
def test_two_officers_sign(signed: tuple[Officer, ...]) -> None:
    """Nobody, one, one and a stranger, two strangers, one and somebody with an officer's name and another key."""
    for state, command in (
        (None, ceremony()),
        (held(), ceremony()),
        (held(), destroy("ds-1")),
        (held(), drill()),
        (held(), recover()),
    ):
        assert code(state, command, facts(*signed, shares=2)) == "two_officers"


def test_new_officers_do_not_appoint_themselves() -> None:
    new = (LISA, NILS, EVA)
    assert code(held(), ceremony(new), facts(LISA, NILS)) == "two_officers"
    assert code(held(), ceremony(new), facts(LISA, NILS, EVA)) == "two_officers"
    assert code(held(), ceremony(new), facts(ANNA, BO)) == "two_officers"
    assert event(held(), ceremony(new), facts(ANNA, LISA, EVA)).signers == ("anna", "eva", "lisa")
    assert event(held(), ceremony(new), facts(ANNA, BO, LISA, NILS)).signers == ("anna", "bo", "lisa", "nils")


def test_nothing_before_the_first_ceremony() -> None:
    for command in (destroy("ds-1"), drill(), recover()):
        assert code(None, command, facts(ANNA, BO, shares=2)) == "ceremony_missing"


def test_nobody_is_two_officers() -> None:
    """Neither by a name, nor by a key, the signing key under another name included."""
    _, _, public = note.read_verifier_key(ANNA.sign_key)
    again = Officer("anna2", person("anna2").share_key, note.verifier_key("anna2", public))
    shared = Officer("bo2", ANNA.share_key, person("bo2").sign_key)
    for double in (ANNA, person("anna", 1), again, shared):
        for state in (None, held()):
            assert code(state, ceremony((ANNA, BO, double)), facts(ANNA, BO, double)) == "officer_twice"


# --- what can be ---


@pytest.mark.parametrize(
    ("officers", "threshold", "persons", "expected"),
    [
        ((), 2, 1, "two_officers"),
        ((ANNA,), 2, 1, "two_officers"),
        (tuple(person(f"o{n}") for n in range(MOST_OFFICERS + 1)), 2, 1, "two_officers"),
        (ALL, 1, 1, "threshold"),
        (ALL, 0, 1, "threshold"),
        (ALL, -1, 1, "threshold"),
        (ALL, 4, 1, "threshold"),
        (ALL, 2, 0, "threshold"),
        (ALL, 2, 3, "threshold"),
    ],
)
def test_what_a_ceremony_cannot_be(officers: tuple[Officer, ...], threshold: int, persons: int, expected: str) -> None:
    known = facts(*ALL, *officers)
    assert code(None, ceremony(officers, threshold, persons), known) == expected
    assert code(held(), ceremony(officers, threshold, persons), known) == expected


def test_two_persons_stay_two() -> None:
    state = held(persons=2)
    assert code(state, ceremony(persons=1), facts(*ALL)) == "threshold"
    assert event(state, ceremony(persons=2), facts(*ALL)).persons == 2
    assert event(held(), ceremony(persons=2), facts(*ALL)).persons == 2


def test_destroying() -> None:
    assert code(held(), destroy(), facts(ANNA, BO)) == "key_missing"
    found = event(held(), destroy("ds-2", "ds-1", "ds-2"), facts(ANNA, BO))
    assert found == Destroyed(at=NOW, key_ids=("ds-2", "ds-1"), generation=4, signers=("anna", "bo"))
    state = evolve(held(destroyed=("ds-0",)), found)
    assert state.destroyed == ("ds-0", "ds-2", "ds-1") and state.generation == 4


@pytest.mark.parametrize("command", [drill(), recover()])
def test_shares_are_shown(command: Any) -> None:
    state = held(threshold=3)
    for shares in range(3):
        assert code(state, command, facts(ANNA, BO, shares=shares)) == "shares_missing"
    found = event(state, command, facts(ANNA, BO, shares=3))
    assert found.signers == ("anna", "bo")
    assert found.generation == (3 if isinstance(found, DrillHeld) else 4)
    assert evolve(state, found).generation == found.generation


def test_a_drill_is_due_after_a_year() -> None:
    state = held(ceremony_at=NOW, drill_at=NOW)
    assert not state.drill_due(NOW + DRILL_AFTER)
    assert state.drill_due(NOW + DRILL_AFTER + SECOND)
    later = evolve(state, DrillHeld(at=NOW + DRILL_AFTER, generation=3, signers=("anna", "bo")))
    assert not later.drill_due(NOW + 2 * DRILL_AFTER)


# --- when ---


@pytest.mark.parametrize("ago", [FRESH + SECOND, -AHEAD - SECOND, timedelta(days=400), timedelta(days=-400)])
def test_old_and_future_orders(ago: timedelta) -> None:
    for command in (ceremony(at=NOW - ago), destroy("a", at=NOW - ago), drill(NOW - ago), recover(NOW - ago)):
        assert code(held(), command, facts(ANNA, BO, shares=2)) == "order_old"
    for edge in (FRESH, -AHEAD, timedelta(0)):
        assert event(held(), drill(NOW - edge), facts(ANNA, BO, shares=2))


def test_a_ceremony_voids_what_was_signed_before_it() -> None:
    """Else an older order, still fresh, would bring back an officer who was just dismissed. Here: one whose id nobody
    remembers, as after a recovery from the key backup."""
    state, first = held(), ceremony((ANNA, BO, NILS), at=NOW)
    state = evolve(state, event(state, first, facts(ANNA, BO, now=NOW + SECOND)))
    second = ceremony((ANNA, BO, EVA), at=NOW + 60 * SECOND)
    later = NOW + 120 * SECOND
    state = evolve(state, event(state, second, facts(ANNA, BO, now=later)))
    for stale in (first, second, destroy("ds-1", at=NOW), drill(NOW), recover(NOW)):
        assert code(state, stale, facts(*ALL, NILS, now=later, shares=2)) == "order_old"
    assert event(state, destroy("ds-1", at=later), facts(ANNA, BO, now=later))


def test_a_recovery_voids_what_was_signed_before_it() -> None:
    """The ids of what was done since the backup are lost."""
    again = ceremony((ANNA, BO, NILS), at=NOW)
    later = NOW + 60 * SECOND
    state = evolve(held(), event(held(), recover(at=later), facts(ANNA, BO, now=later, shares=2)))
    assert state.recovered_at == later
    assert code(state, again, facts(ANNA, BO, now=later)) == "order_old"
    assert event(state, ceremony(at=later), facts(ANNA, BO, now=later))


def test_a_clock_that_runs_ahead_does_not_open_a_gap() -> None:
    """The ceremony counts from the time of its order where that is later."""
    early = ceremony((ANNA, BO, NILS), at=NOW + AHEAD)
    state = evolve(held(), event(held(), early, facts(ANNA, BO)))
    assert state.ceremony_at == NOW + AHEAD
    second = ceremony(at=NOW + AHEAD + SECOND)
    state = evolve(state, event(state, second, facts(ANNA, BO, now=NOW + AHEAD + 2 * SECOND)))
    assert code(state, early, facts(ANNA, BO, NILS, now=NOW + AHEAD + 3 * SECOND)) == "order_old"


# --- wire format ---


@pytest.mark.parametrize(
    "one",
    [
        CeremonyHeld(at=NOW, officers=ALL, threshold=2, persons=2, generation=2, signers=("anna", "bo")),
        Destroyed(at=NOW, key_ids=("ds-1",), generation=3, signers=("anna", "bo")),
        DrillHeld(at=NOW, generation=3, signers=("anna", "bo")),
        Recovered(at=NOW, generation=4, signers=("anna", "bo")),
    ],
)
def test_events_come_back_the_same(one: Any) -> None:
    tag, data = encode(one)
    assert tag.startswith("custody.")
    assert msgspec.json.decode(data, type=custody.Events) == one
    if not isinstance(one, CeremonyHeld):
        with pytest.raises(ValueError, match="before CeremonyHeld"):
            evolve(None, one)


# --- any order of commands ---


PEOPLE = [person(f"p{number}") for number in range(6)]
SIGNING = st.lists(st.sampled_from(PEOPLE), unique=True)
NAMED = st.lists(st.sampled_from([*PEOPLE, person("p0", 1), person("p1", 1)]), max_size=6).map(tuple)


class Model(RuleBasedStateMachine):
    """Whatever is asked, in any order: two present officers have signed all that happened."""

    def __init__(self) -> None:
        super().__init__()
        self.state: Custody | None = None
        self.now = NOW
        self.generation = 1
        self.most_persons = 1

    @initialize()
    def first(self) -> None:
        self.give(ceremony(tuple(PEOPLE[:3])), PEOPLE[:2], 0)
        assert self.state is not None

    @rule(
        officers=NAMED,
        threshold=st.integers(0, 7),
        persons=st.integers(0, 3),
        signed=SIGNING,
        ago=st.integers(-400, 100_000),
    )
    def hold(self, officers: Any, threshold: int, persons: int, signed: list[Officer], ago: int) -> None:
        self.give(ceremony(officers, threshold, persons, at=self.now - ago * SECOND), signed, 0)

    @rule(
        which=st.sampled_from([Destroy, HoldDrill, Recover]), signed=SIGNING, shares=st.integers(0, 6), data=st.data()
    )
    def act(self, which: Any, signed: list[Officer], shares: int, data: st.DataObject) -> None:
        more = {"key_ids": tuple(data.draw(st.lists(st.sampled_from("abc"), max_size=3)))} if which is Destroy else {}
        self.give(which(by="officers", at=self.now, **more), signed, shares)

    @precondition(lambda self: self.state is not None)
    @rule(forward=st.integers(0, 90_000))
    def wait(self, forward: int) -> None:
        self.now += forward * SECOND

    @rule()
    def roll(self) -> None:
        """A result was destroyed."""
        self.generation += 1

    def give(self, command: Any, signed: list[Officer], shares: int) -> None:
        before = self.state
        decided = decide(before, command, facts(*signed, now=self.now, generation=self.generation, shares=shares))
        if isinstance(decided, Refusal):
            return
        [found] = decided
        after = self.state = evolve(before, found)
        assert len(signed) >= 2 and len(found.signers) >= 2
        assert set(found.signers) <= {one.name for one in signed}
        if before is not None:
            assert len(set(signed) & set(before.officers)) >= 2
            assert after.persons >= before.persons
            assert after.destroyed[: len(before.destroyed)] == before.destroyed
            assert found.generation >= self.generation
            assert after.ceremony_at >= before.ceremony_at and after.drill_at >= before.drill_at
            if not isinstance(found, CeremonyHeld):
                assert (after.officers, after.threshold) == (before.officers, before.threshold)
        if isinstance(found, DrillHeld | Recovered):
            assert before is not None and shares >= before.threshold
        if not isinstance(found, DrillHeld):
            assert found.generation == self.generation + 1
        self.generation = found.generation

    @invariant()
    def can_be(self) -> None:
        state = self.state
        if state is None:
            return
        count = len(state.officers)
        assert 2 <= state.threshold <= count <= MOST_OFFICERS and state.persons in (1, 2)
        assert len({one.name for one in state.officers}) == count
        assert len({one.sign_public for one in state.officers}) == count
        assert state.generation <= self.generation


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
