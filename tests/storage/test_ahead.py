"""Reading ahead: always the bytes that were asked for, whoever reads what at once; and no more memory than allowed."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valv.errors import UnreachableFault
from valv.storage import ahead
from valv.storage.ahead import ReadAhead

CONTENT = random.Random(1).randbytes(300_000)


class Remote:
    """`CONTENT`, as a server gives it. `asked`: (offset, length) of each request; `bad`: offsets at which it fails."""

    def __init__(self, pause: float = 0.0) -> None:
        self.asked: list[tuple[int, int]] = []
        self.pause = pause
        self.bad: set[int] = set()

    def fetch(self, view: memoryview, offset: int) -> None:
        self.asked.append((offset, len(view)))
        time.sleep(self.pause)
        if any(offset <= one < offset + len(view) for one in self.bad):
            raise UnreachableFault("the server is away")
        assert offset >= 0 and offset + len(view) <= len(CONTENT)
        view[:] = CONTENT[offset : offset + len(view)]


@pytest.fixture(autouse=True)
def small(monkeypatch: Any) -> None:
    monkeypatch.setattr(ahead, "LEAST", 1000)
    monkeypatch.setattr(ahead, "PIECE", 16_000)
    monkeypatch.setattr(ahead, "_spare", [])


def read(body: ReadAhead, offset: int, length: int) -> bytes:
    target = bytearray(length)
    body.read(memoryview(target), offset)
    return bytes(target)


def all_room_is_free() -> bool:
    """Once what is on its way has come."""
    end = time.monotonic() + 10
    while ahead._room._value != ahead.BUDGET and time.monotonic() < end:
        time.sleep(0.005)
    return ahead._room._value == ahead.BUDGET


def test_who_reads_on_is_served_by_fewer_and_larger_requests() -> None:
    remote = Remote()
    body = ReadAhead(remote.fetch, len(CONTENT))
    got = b"".join(read(body, at, 1000) for at in range(0, len(CONTENT), 1000))
    body.close()
    assert got == CONTENT
    assert len(remote.asked) < 60 and max(length for _, length in remote.asked) == 16_000
    assert sum(length for _, length in remote.asked) == len(CONTENT), "something was fetched twice"
    assert all_room_is_free()


def test_random_reads_fetch_nothing_else() -> None:
    remote, draw = Remote(), random.Random(2)
    body = ReadAhead(remote.fetch, len(CONTENT))
    places = draw.sample(range(0, len(CONTENT) - 500, 700), 200)
    for at in places:
        assert read(body, at, 500) == CONTENT[at : at + 500]
    assert remote.asked == [(at, 500) for at in places]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 40_000), st.integers(1, 6)), max_size=12))
def test_any_reads_give_what_is_there(reads: list[tuple[int, int, int]]) -> None:
    body = ReadAhead(Remote().fetch, len(CONTENT))
    for offset, length, times in reads:
        for _ in range(times):  # read on
            count = min(length, len(CONTENT) - offset)
            assert read(body, offset, count) == CONTENT[offset : offset + count]
            offset += count
    body.close()
    assert all_room_is_free()


def test_many_readers_of_one_body_at_once() -> None:
    """Those who share a piece, too: its memory is not given away while one still needs it."""
    remote = Remote(pause=0.0005)
    body = ReadAhead(remote.fetch, len(CONTENT))
    wrong: list[int] = []

    def through(step: int) -> None:
        for at in range(0, len(CONTENT) - step, step):
            if read(body, at, step) != CONTENT[at : at + step]:
                wrong.append(at)

    readers = [threading.Thread(target=through, args=(step,)) for step in (700, 1000, 1000, 1300, 5000, 17_000)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    body.close()
    assert not wrong and all_room_is_free()


def test_a_fault_ahead_is_raised_only_where_it_is() -> None:
    remote = Remote()
    remote.bad = {50_000}
    body = ReadAhead(remote.fetch, len(CONTENT))
    good = 0
    with pytest.raises(UnreachableFault):
        for at in range(0, len(CONTENT), 1000):
            assert read(body, at, 1000) == CONTENT[at : at + 1000]
            good += 1
    assert good == 50
    remote.bad = set()
    assert read(body, 50_000, 1000) == CONTENT[50_000:51_000]
    body.close()
    assert all_room_is_free()


def test_all_bodies_share_the_memory() -> None:
    remote = Remote()
    bodies = [ReadAhead(remote.fetch, len(CONTENT)) for _ in range(3 * ahead.BUDGET)]
    for at in (0, 1000, 2000):
        for body in bodies:
            assert read(body, at, 1000) == CONTENT[at : at + 1000]
    assert sum(len(body._pieces) for body in bodies) <= ahead.BUDGET
    for body in bodies:
        body.close()
    assert all_room_is_free() and len(ahead._spare) <= ahead.BUDGET
