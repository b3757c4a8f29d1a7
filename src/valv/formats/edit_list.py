"""Crypt4GH edit lists: which parts of the plain bytes a file shows.

A list gives lengths that skip and keep in turn, beginning with a skip. What follows the last length is kept where that
was a skip (an odd number of lengths) and dropped where it was kept bytes (an even number). Without a list all is kept.

A `Span` is (start, end) in plain bytes, the end not included, None for the end of the file. Spans are in order, not
empty, and do not touch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

Span = tuple[int, int | None]
WHOLE: Final[tuple[Span, ...]] = ((0, None),)


def spans(lengths: Sequence[int] | None) -> tuple[Span, ...]:
    """What a header's edit list keeps; `None` for a header without one."""
    if lengths is None:
        return WHOLE
    found: list[Span] = []
    at = 0
    for turn, length in enumerate(lengths):
        if turn % 2:
            found.append((at, at + length))
        at += length
    if len(lengths) % 2:
        found.append((at, None))
    return _joined(found)


def cut(kept: Iterable[Span], start: int, end: int | None) -> tuple[Span, ...]:
    """The part of `kept` that shows as the bytes `start` to `end` (None: to the last) of what `kept` shows."""
    found: list[Span] = []
    shown = 0
    for first, last in kept:
        low = first + max(0, start - shown)
        high = last if end is None else _least(last, first + max(0, end - shown))
        if high is None or low < high:
            found.append((low, high))
        if last is None:
            break
        shown += last - first
    return tuple(found)


def lengths(kept: Sequence[Span]) -> tuple[int, ...]:
    """The edit list that keeps `kept`."""
    found: list[int] = []
    at = 0
    for start, end in kept:
        found.append(start - at)
        if end is not None:
            found.append(end - start)
            at = end
    return tuple(found) or (0, 0)


def gather(kept: Sequence[Span], segment: int) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """The segments of `segment` bytes that hold `kept`, as spans of segment numbers, and `kept` as it lies in these
    segments when nothing else is between them."""
    runs: list[Span] = []
    moved: list[Span] = []
    before = 0
    for start, end in kept:
        first, last = start // segment, None if end is None else -(-end // segment)
        if runs and runs[-1][1] is not None and first < runs[-1][1]:
            run = runs.pop()
            before -= (run[1] or 0) - run[0]
            first = run[0]
        shift = (before - first) * segment
        runs.append((first, last))
        moved.append((start + shift, None if end is None else end + shift))
        before += 0 if last is None else last - first
    return _joined(runs), tuple(moved)


def _least(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)


def _joined(found: Iterable[Span]) -> tuple[Span, ...]:
    """Without empty spans, and with those that touch made one."""
    joined: list[Span] = []
    for start, end in found:
        if end is not None and start >= end:
            continue
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return tuple(joined)
