"""Placement: the rule's language, and that following the plan ends where the rule wants, never with too few copies."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from valv import config
from valv.core import storage
from valv.core.placement import (
    LONGEST,
    MOST_COPIES,
    SETTLE,
    STORE_NAME,
    Copy,
    Drop,
    Make,
    Rule,
    StoreFacts,
    chosen,
    cold,
    fits,
    moved,
    parse,
    plan,
    write,
)
from valv.core.process import NODE
from valv.errors import Refusal

NOW = datetime(2026, 6, 1, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=200)
NAMES = ("main", "near", "far", "vault", "tape-1")

rules = st.builds(
    Rule,
    copies=st.integers(1, MOST_COPIES),
    tape_after=st.none() | st.integers(0, 400),
    only_in=st.lists(st.sampled_from(["SE", "NO", "FI"]), unique=True).map(tuple),
    inside=st.lists(st.sampled_from(NAMES[:3]), unique=True, max_size=2).map(tuple),
    outside=st.lists(st.sampled_from(NAMES[3:]), unique=True, max_size=2).map(tuple),
)
stores = st.lists(
    st.builds(
        StoreFacts,
        name=st.sampled_from(NAMES),
        country=st.sampled_from(["SE", "NO"]),
        tape=st.booleans(),
        distance=st.integers(0, 2),
        allowed=st.booleans(),
        room=st.booleans(),
        away=st.booleans(),
    ),
    unique_by=lambda store: store.name,
    min_size=1,
)
held = st.dictionaries(
    st.sampled_from([*NAMES, "forgotten"]),
    st.builds(
        Copy,
        st.sampled_from(["coming", "whole", "suspect", "bad", "going"]),
        st.sampled_from([LONG_AGO, NOW - timedelta(seconds=1), NOW]),
    ),
)
used = st.sampled_from([NOW, LONG_AGO])


# --- the language ---
@given(rules)
def test_a_rule_that_was_written_is_read_back(rule):
    assert parse(write(rule)) == rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", Rule()),
        (" , ", Rule()),
        ("copies=2", Rule(copies=2)),
        ("Copies = 2, tape after 90 d, only in NO", Rule(copies=2, tape_after=90, only_in=("NO",))),
        ("tape after 0 days", Rule(tape_after=0)),
        ("only in no or se", Rule(only_in=("NO", "SE"))),
        ("in archive,  not  in main", Rule(inside=("archive",), outside=("main",))),
    ],
)
def test_what_rules_mean(text, rule):
    assert parse(text) == rule


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("copies = 0", "'copies = 0': from 1 to 9"),
        ("copies = 10", "from 1 to 9"),
        ("copies = two", "'copies = two' is not understood; there are 'copies = N'"),
        ("copies = 2, copies = 3", "said before"),
        ("tape after 99999 d", "at most 36500 days"),
        ("tape after 3 weeks", "not understood"),
        ("only in Norway", "'NORWAY' is not the two letters of a country"),
        ("in ../x", "'../x' is not the name of a store"),
        ("in main, not in main", "contradict"),
        ("only in or", "from 1 to 20 names, not 0"),
        (f"in {' '.join(f'a{n}' for n in range(21))}", "from 1 to 20 names, not 21"),
        ("x" * (LONGEST + 1), "501 letters"),
    ],
)
def test_what_is_wrong_with_a_rule_is_named(text, says):
    refusal = parse(text)
    assert isinstance(refusal, Refusal) and refusal.code == "rule_wrong"
    assert says in refusal.detail
    assert not isinstance(parse(refusal.row.hint.rpartition(": ")[2]), Refusal), "the hint is an example that works"


@given(st.text(max_size=60))
def test_no_text_breaks_the_reader(text):
    found = parse(text)
    assert isinstance(found, Refusal) or parse(write(found)) == found


def test_rules_know_the_names_that_stores_can_have():
    assert STORE_NAME == config.STORE_NAME


# --- the plan ---
def walk(rule, used, stores, copies, now, faults=lambda step: False):
    """Take every step of every plan until there is nothing to do. Yields the state after each step."""
    copies = dict(copies)
    for _ in range(100):
        found = plan(rule, used, stores, copies, now)
        if not found.steps:
            if found.wait is None or found.lacks.endswith("answer"):
                yield copies, found, None
                return
            now = max(now, found.wait)
            continue
        for step in found.steps:
            if isinstance(step, Make):
                assert copies[step.source].state in ("whole", "suspect")
                copies[step.store] = Copy("whole", now)
            else:
                del copies[step.store]
            yield copies, found, step
    raise AssertionError("it never ends")


def whole(copies, known):
    return {name for name, copy in copies.items() if copy.state == "whole" and name in known}


@settings(max_examples=400)
@given(rules, used, stores, held)
def test_following_the_plan_ends_where_the_rule_wants(rule, used, stores, copies):
    known = {store.name: store for store in stores}
    *_, (end, last, _) = walk(rule, used, stores, copies, NOW)
    wanted, lacks = chosen(rule, stores, {n: c for n, c in end.items() if n in known}, tape=cold(rule, used, NOW))
    names = {store.name for store in wanted}
    assert names == {store.name for store in wanted if fits(rule, store)}
    if last.lacks:
        return
    assert not lacks
    held = {name for name, copy in end.items() if name in known and copy.state != "going"}
    damaged = {name for name, copy in end.items() if name in known and copy.state in ("suspect", "bad")}
    assert names <= held
    if not damaged & names:
        assert held == names == whole(end, known) and len(names) >= rule.copies
        assert set(rule.inside) <= names and not set(rule.outside) & held
        assert all(known[name].allowed for name in held)


@settings(max_examples=400)
@given(rules, used, stores, held)
def test_at_no_moment_are_there_fewer_whole_copies_than_before_or_wanted(rule, used, stores, copies):
    known = {store.name: store for store in stores}
    before = len(whole(copies, known))
    readable = {name for name, copy in copies.items() if copy.state in ("whole", "suspect", "bad") and name in known}
    for state, _, step in walk(rule, used, stores, copies, NOW):
        wanted, _ = chosen(rule, stores, {n: c for n, c in state.items() if n in known}, tape=cold(rule, used, NOW))
        assert len(whole(state, known)) >= min(before, len(wanted) or before)
        if readable:
            assert any(copy.state in ("whole", "suspect", "bad") for name, copy in state.items() if name in known), step


@given(rules, used, stores, held)
def test_a_plan_makes_nothing_where_it_may_not_and_touches_no_unknown_store(rule, used, stores, copies):
    known = {store.name: store for store in stores}
    for step in plan(rule, used, stores, copies, NOW).steps:
        assert step.store in known and not known[step.store].away
        if isinstance(step, Make):
            assert fits(rule, known[step.store]) and known[step.store].room
            assert not known[step.source].away and step.source != step.store


@given(rules, used, stores, held)
def test_planning_is_deterministic_and_its_end_is_stable(rule, used, stores, copies):
    assert plan(rule, used, stores, copies, NOW) == plan(rule, used, stores[::-1], dict(reversed(copies.items())), NOW)
    *_, (end, last, _) = walk(rule, used, stores, copies, NOW)
    later = NOW + timedelta(minutes=5)
    assert plan(rule, used, stores, end, later if not cold(rule, used, later) ^ cold(rule, used, NOW) else NOW) == last


# --- examples ---
MAIN, NEAR = StoreFacts(name="main", country="SE"), StoreFacts(name="near", country="SE", distance=1)
ABROAD, TAPE = StoreFacts(name="abroad", country="NO"), StoreFacts(name="tape", country="SE", tape=True)
HERE = {"main": Copy("whole", LONG_AGO)}


def test_a_dataset_without_a_rule_stays_where_it_is():
    assert plan(Rule(), NOW, [MAIN, StoreFacts(name="nearer", distance=-1)], HERE, NOW).steps == ()


def test_a_move():
    rule = moved(Rule(), "main", "near")
    assert write(rule) == "copies = 1, in near, not in main"
    assert plan(rule, NOW, [MAIN, NEAR], HERE, NOW).steps == (Make("near", "main"),)
    both = HERE | {"near": Copy("whole", NOW)}
    waiting = plan(rule, NOW, [MAIN, NEAR], both, NOW)
    assert waiting.steps == () and waiting.wait == NOW + SETTLE
    assert plan(rule, NOW, [MAIN, NEAR], both, NOW + SETTLE).steps == (Drop("main"),)
    assert write(moved(rule, "near", "main")) == "copies = 1, in main, not in near"


def test_tape_after_a_while_and_back_to_disk_when_used():
    rule = Rule(tape_after=90)
    assert plan(rule, NOW, [MAIN, TAPE], HERE, NOW).steps == ()
    assert plan(rule, LONG_AGO, [MAIN, TAPE], HERE, NOW).steps == (Make("tape", "main"),)
    archived = {"tape": Copy("whole", LONG_AGO)}
    assert plan(rule, LONG_AGO, [MAIN, TAPE], archived, NOW).steps == ()
    assert plan(rule, NOW, [MAIN, TAPE], archived, NOW).steps == (Make("main", "tape"),)


def test_what_cannot_be_satisfied_is_said():
    two = Rule(copies=2)
    barred = replace(ABROAD, allowed=False)
    assert plan(two, NOW, [MAIN, barred], HERE, NOW).lacks == "2 copies are wanted, and only one store may hold it"
    assert plan(Rule(only_in=("FI",)), NOW, [MAIN], HERE, NOW).lacks == "1 copy is wanted, and no store may hold it"
    assert plan(two, NOW, [MAIN, replace(NEAR, room=False)], HERE, NOW).lacks == "near is full"
    assert plan(two, NOW, [MAIN, replace(NEAR, away=True)], HERE, NOW).lacks == "near does not answer"
    assert "no copy may rest in abroad" in plan(Rule(inside=("abroad",)), NOW, [MAIN, barred], HERE, NOW).lacks
    assert plan(Rule(), NOW, [MAIN], {"main": Copy("coming", NOW)}, NOW).lacks == "no whole copy can be read"


def test_narrowed_data_come_home():
    """A copy where the data may not rest any more goes, once one is whole where they may."""
    barred = replace(ABROAD, allowed=False)
    there = {"abroad": Copy("whole", LONG_AGO)}
    assert plan(Rule(), NOW, [MAIN, barred], there, NOW).steps == (Make("main", "abroad"),)
    both = there | HERE
    assert plan(Rule(), NOW, [MAIN, barred], both, NOW).steps == (Drop("abroad"),)
    assert plan(Rule(), NOW, [barred], there, NOW).steps == ()


def test_a_damaged_copy_holds_drops_up_and_is_left_to_its_repair():
    rule = moved(Rule(), "main", "near")
    waiting = plan(rule, NOW, [MAIN, NEAR], HERE | {"near": Copy("bad", LONG_AGO)}, NOW)
    assert waiting.steps == () and waiting.lacks == "the copy in near is to be repaired first"


# --- the process ---
FACTS = storage.Facts(
    operator=True,
    stores=frozenset({"main", "near", "abroad"}),
    forbidden=frozenset({"abroad"}),
    countries=(("main", "SE"), ("near", "SE"), ("abroad", "NO")),
)
SET = storage.SetRule(by="c", at=NOW, dataset_id="d", rule="copies = 2")
MOVE = storage.Move(by="o", at=NOW, dataset_id="d", source="main", target="near")
END = storage.EndMove(by=NODE, at=NOW)
MOVING = storage.Storage(dataset_id="d", rule="copies = 1", phase="moving", source="main", target="near")


@pytest.mark.parametrize(
    ("code", "state", "command", "facts"),
    [
        ("rule_wrong", None, replace(SET, rule="many"), FACTS),
        ("store_unknown", None, replace(SET, rule="in nowhere"), FACTS),
        ("wrong_place", None, replace(SET, rule="in abroad"), FACTS),
        ("store_unknown", None, replace(MOVE, target="nowhere"), FACTS),
        ("same_store", None, replace(MOVE, target="main"), FACTS),
        ("wrong_place", None, replace(MOVE, target="abroad"), FACTS),
        ("wrong_place", storage.Storage(dataset_id="d", rule="only in NO"), MOVE, FACTS),
        ("not_yours", None, MOVE, replace(FACTS, operator=False, custodian=True)),
        ("wrong_phase", MOVING, MOVE, FACTS),
        ("files_moving", MOVING, END, replace(FACTS, left=1, files=2)),
        ("not_yours", MOVING, replace(END, by="o"), FACTS),
        ("wrong_phase", None, END, FACTS),
    ],
)
def test_refusals(refused, code, state, command, facts):
    assert refused(storage, state, command, facts) == code


def test_a_move_from_its_beginning_to_its_end(follow):
    moving = follow(storage, None, MOVE, FACTS)
    assert (moving.phase, moving.rule, moving.by) == ("moving", "copies = 1, in near, not in main", "o")
    assert follow(storage, moving, END, FACTS).phase == "resting"
    given_up = follow(storage, moving, SET, FACTS)
    assert (given_up.phase, given_up.rule, given_up.target) == ("resting", "copies = 2", "")
