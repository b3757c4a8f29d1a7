"""The outside record: what the ledger got since the newest backup, kept where the backups are, a minute behind at most.

A node that is restored takes it over, event by event, and so does not forget what was revoked, ended, narrowed or
destroyed after its backup. Each segment is a pair of bodies, whole ones only:

    after-<epoch>-<first>-<end>.leaves   the leaves of positions first … end - 1, a line each, encrypted
    after-<epoch>-<first>-<end>.note     the signed checkpoint of the ledger's first `end` events, plain

The note comes last, so that a segment with a note is whole. Segments may overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from valv.app import backup
from valv.app.node import Node, each
from valv.errors import FormatFault, MissingFault
from valv.formats import note
from valv.formats.note import Checkpoint
from valv.ports.records import Records
from valv.ports.storage import Storage
from valv.vault import parcel

_PAGE: Final = 500


class Segment(msgspec.Struct, frozen=True, order=True):
    """Positions `first` up to `end`, that one not included."""

    epoch: int
    first: int
    end: int

    def name(self, kind: str) -> str:
        return f"after-{self.epoch:04d}-{self.first:012d}-{self.end:012d}.{kind}"


def segments(place: Storage) -> list[Segment]:
    """The whole ones, in order."""
    found = []
    for name in place.names():
        if (match := backup.SPAN.fullmatch(name)) and match[4] == "note":
            found.append(Segment(int(match[1]), int(match[2]), int(match[3])))
    return sorted(found)


def read_note(place: Storage, segment: Segment, log_key: str) -> Checkpoint:
    """The checkpoint of a segment. Raises `IntegrityFault`, `FormatFault` where it is not one of this ledger."""
    return Checkpoint.decode(note.verify(note_of(place, segment), log_key))


def note_of(place: Storage, segment: Segment) -> str:
    try:
        return backup.read_small(place, segment.name("note")).decode()
    except UnicodeDecodeError:
        raise FormatFault(f"{segment.name('note')} is no note", "the place was altered or damaged") from None


def leaves(place: Storage, segment: Segment, private: bytes) -> Iterator[bytes]:
    """Unchecked: that they lead to the root of the note tells whether they are right."""
    return parcel.lines(parcel.read(place, segment.name("leaves"), private, None))


# --- the node's own step ---


def flush(node: Node) -> None:
    """Bring every place with a backup up to the newest checkpoint; also those behind one that fails."""
    each(list(node.places), lambda name: _flush(node, name))


def _flush(node: Node, name: str) -> None:
    place, _ = backup.place_of(node, name)
    with node.records.reading() as unit:
        state, newest = backup.state_of(unit), unit.checkpoint()
    made = state.places.get(name)
    if made is None or newest is None:
        return
    known = backup.recall(node, name)
    went = known.get("outside", 0) if known.get("epoch") == state.epoch else 0
    size, signed = newest
    segment = Segment(state.epoch, went or made.size, size)
    if size <= segment.first:
        return
    if not _there(place, segment.name("leaves")):
        parcel.write(place, segment.name("leaves"), _lines(node.records, segment), backup.recipient(node))
    if not _there(place, segment.name("note")):
        writer = place.writer(segment.name("note"))
        try:
            writer.write(signed.encode())
            writer.commit()
        except BaseException:
            writer.abort()
            raise
    backup.remember(node, name, outside=size, epoch=state.epoch)


def _there(place: Storage, name: str) -> bool:
    try:
        return place.size(name) > 0
    except MissingFault:
        return False


def _lines(records: Records, segment: Segment) -> Iterator[bytes]:
    after = segment.first - 1
    while after < segment.end - 1:
        with records.reading() as unit:
            page = unit.follow(after, min(_PAGE, segment.end - 1 - after))
        for record in page:
            yield record.leaf + b"\n"
        after = page[-1].position
