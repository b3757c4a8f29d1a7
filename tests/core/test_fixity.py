"""Which copy a scrub reads next, and when the node begins one."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valv.core import fixity
from valv.core.fixity import DAILY, SOON, Copy, Scrub, begins, in_order, is_due
from valv.core.process import NODE

NOW = datetime(2031, 5, 1, tzinfo=UTC)
times = st.integers(-400, 1).map(lambda days: NOW + timedelta(days=days))
copies = st.lists(
    st.builds(
        Copy,
        body=st.sampled_from("abcdef"),
        store=st.sampled_from(["main", "archive", "tape"]),
        state=st.sampled_from(["whole", "suspect", "bad", "coming", "going"]),
        since=times,
        checked=st.none() | times,
    ),
    max_size=30,
    unique_by=lambda one: (one.body, one.store),
)


@given(copies, st.integers(0, 365))
def test_a_scrub_ends_after_it_read_every_due_copy_once(found, days):
    """Each copy that is read is checked after the beginning, and is not due again; none that is old is left out."""
    left, seen = {(one.body, one.store): one for one in found}, []
    while order := in_order(left.values(), NOW, days):
        seen.append(order[0])
        key = (order[0].body, order[0].store)
        left[key] = Copy(**{**_fields(order[0]), "checked": NOW})
        assert len(seen) <= len(found)
    assert {(one.body, one.store) for one in seen} == {(one.body, one.store) for one in found if is_due(one, NOW, days)}
    for one in found:
        if one.state in ("suspect", "bad") and (one.checked is None or one.checked < NOW):
            assert one in seen
        if one.state == "whole" and (one.checked or one.since) < NOW - timedelta(days=days):
            assert one in seen
        if one.state in ("coming", "going"):
            assert one not in seen


@given(copies, st.integers(0, 365))
def test_the_most_urgent_comes_first(found, days):
    order = in_order(found, NOW, days)
    ranks = [("suspect", "bad", "whole").index(one.state) for one in order]
    assert ranks == sorted(ranks)
    for state in ("suspect", "bad", "whole"):
        looked = [one.checked or one.since for one in order if one.state == state]
        assert looked == sorted(looked)
    assert in_order(reversed(found), NOW, days) == order


def _fields(one):
    return {name: getattr(one, name) for name in one.__struct_fields__}


def scrub(**more):
    given = {"scrub_id": "x", "by": NODE, "begun": NOW, "dataset_id": "", "store": "", "days": 90, "tape": False}
    return Scrub(**(given | {"expected": 1} | more))


def test_the_node_begins_one_a_day_and_sooner_for_suspects():
    assert begins(None, NOW, suspects=False)
    assert not begins(scrub(), NOW + 9 * DAILY, suspects=True), "one goes on"
    ended = scrub(phase="done", ended=NOW + timedelta(hours=1))
    assert not begins(ended, NOW + timedelta(hours=2), suspects=False)
    assert begins(ended, NOW + timedelta(hours=2), suspects=True)
    assert not begins(ended, NOW + timedelta(hours=1) + SOON / 2, suspects=True)
    assert begins(ended, NOW + DAILY, suspects=False)


BEGIN = fixity.Begin(by="o", at=NOW, scrub_id="x", days=90, expected=3)


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (fixity.Facts(), "not_yours"),
        (fixity.Facts(operator=True, going=True), "scrub_going"),
        (fixity.Facts(operator=True, store_known=False), "store_unknown"),
    ],
)
def test_refusals(refused, facts, code):
    assert refused(fixity, None, BEGIN, facts) == code


def test_counts(follow):
    state = follow(fixity, None, BEGIN, fixity.Facts(operator=True))
    facts, who = fixity.Facts(), {"by": NODE, "at": NOW, "body": "b", "file_id": "f"}
    for order in (
        fixity.RecordDamage(**who, store="main", fault="altered"),
        fixity.RecordRepair(**who, store="main", source="archive"),
        fixity.RecordDamage(**who, store="archive", fault="missing"),
        fixity.RecordLoss(**who),
        fixity.Finish(by=NODE, at=NOW + DAILY, copies=3, size=9, unreached=1, left=2),
    ):
        state = follow(fixity, state, order, facts)
    assert (state.damaged, state.repaired, state.lost) == (2, 1, 1)
    assert (state.copies, state.size, state.unreached, state.left) == (3, 9, 1, 2)
    assert (state.phase, state.ended) == ("done", NOW + DAILY)
