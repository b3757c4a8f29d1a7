"""The outbox: retried with back-off, never dropped, and nothing that fails keeps the rest waiting."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from valv.app import inspection, outbox
from valv.app.node import new_id
from valv.errors import InputFault, UnreachableFault


class Peer:
    """Takes deliveries; before that, fails as often as it is told to."""

    def __init__(self, failures: int = 0, error: Exception | None = None) -> None:
        self.got: list[Any] = []
        self.asked = 0
        self._failures, self._error = failures, error or UnreachableFault("the peer is away")

    def __call__(self, node: Any, body: dict[str, Any]) -> None:
        self.asked += 1
        if self.asked <= self._failures:
            raise self._error
        self.got.append(body)


@pytest.fixture
def put(s: Any) -> Callable[..., str]:
    def it(topic: str, key: str = "", **body: Any) -> str:
        key = key or new_id()
        with s.node.records.writing() as unit:
            outbox.put(unit, s.clock(), topic=topic, key=key, body=body)
        return key

    return it


def row(s: Any, key: str) -> dict[str, Any]:
    (found,) = s.rows("outbox", key=key)
    return dict(found)


def test_delivered_once(s: Any, put: Any) -> None:
    topic, peer = new_id(), Peer()
    put(topic, number=1)
    assert outbox.deliver(s.worker, {topic: peer}) == 1
    assert outbox.deliver(s.worker, {topic: peer}) == 0
    assert peer.got == [{"number": 1}]


def test_the_same_key_is_asked_for_once(s: Any, put: Any) -> None:
    topic, peer = new_id(), Peer()
    key = put(topic)
    put(topic, key)
    outbox.deliver(s.worker, {topic: peer})
    put(topic, key)
    outbox.deliver(s.worker, {topic: peer})
    assert len(peer.got) == 1


def test_back_off_grows_to_an_hour_and_nothing_is_dropped(s: Any, put: Any) -> None:
    topic, peer = new_id(), Peer(failures=40)
    key, pauses = put(topic, number=1), []
    for _ in range(40):
        assert outbox.deliver(s.worker, {topic: peer}) == 0
        kept = row(s, key)
        assert (kept["done"], kept["error"]) == (None, "fault.unreachable")
        pauses.append((kept["due"] - s.clock()).total_seconds())
        asked = peer.asked
        s.clock.now = kept["due"] - timedelta(milliseconds=1)
        outbox.deliver(s.worker, {topic: peer})
        assert peer.asked == asked, "tried before it was due"
        s.clock.now = kept["due"]
    assert pauses[:5] == [2, 4, 8, 16, 32]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 3600
    assert [found for found in inspection.outbox(s.node) if topic in found.what]
    assert outbox.deliver(s.worker, {topic: peer}) == 1
    assert peer.got == [{"number": 1}]
    assert row(s, key)["error"] == ""


def test_hundreds_that_fail_do_not_keep_others_waiting(s: Any, put: Any) -> None:
    """A mail server that is away for days must not delay a narrowing at the key holder."""
    away, other = new_id(), new_id()
    for number in range(400):
        put(away, number=number)
    dead, peer = Peer(failures=10**6), Peer()
    for _ in range(5):
        outbox.deliver(s.worker, {away: dead})
    put(other)
    asked = dead.asked
    assert outbox.deliver(s.worker, {away: dead, other: peer}) == 1
    assert dead.asked == asked + 1, "a peer that is away was asked again and again in one turn"
    back = Peer()
    s.clock.forward(hours=2)
    assert outbox.deliver(s.worker, {away: back}) == 400
    assert [body["number"] for body in back.got] == list(range(400))


@pytest.mark.parametrize("error", [InputFault("no such address"), ValueError("a broken body"), KeyError("account")])
def test_one_that_is_broken_does_not_stop_those_behind(s: Any, put: Any, error: Exception) -> None:
    topic, peer = new_id(), Peer(failures=1, error=error)
    broken = put(topic, number=1)
    put(topic, number=2)
    assert outbox.deliver(s.worker, {topic: peer}) == 1
    assert peer.got == [{"number": 2}]
    assert row(s, broken)["done"] is None
    s.clock.forward(hours=1)
    outbox.deliver(s.worker, {topic: peer})
    assert peer.got == [{"number": 2}, {"number": 1}]


def test_a_topic_that_this_process_does_not_know_stays(s: Any, put: Any) -> None:
    key = put(new_id())
    outbox.deliver(s.worker, {})
    assert row(s, key)["tries"] == 0


def test_nothing_is_asked_for_by_a_step_that_failed(s: Any) -> None:
    key = new_id()
    with pytest.raises(ZeroDivisionError), s.node.records.writing() as unit:
        outbox.put(unit, s.clock(), topic="x", key=key, body={})
        raise ZeroDivisionError
    assert s.rows("outbox", key=key) == []
