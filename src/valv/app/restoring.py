"""A restored node: it is closed until it has taken over what came after its backup.

The outside record holds the ledger's own leaves, so the restored ledger becomes the one that was lost, root by root,
and the key holder goes on signing it. What the events mean for plain rows (files of destroyed keys, ended keys of
accounts, the catalogue) is done again here. Rows that no backup has cannot come back: the files of versions that were
published after the backup, texts, people who came later. The versions are named.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any, Final

import msgspec

from valv.app import dataset as datasets
from valv.app import destruction, outbox, streams
from valv.app.node import Node, new_id
from valv.app.streams import BACKUP, DATASET, PROCESSES, RESTORED, Step
from valv.core import account, backup, custody, dataset, rotation
from valv.core.backup import STREAM_ID
from valv.core.process import NODE, Event, encode_state
from valv.errors import FormatFault, IntegrityFault
from valv.formats.ledger import Entry, decode_leaf
from valv.formats.note import Checkpoint
from valv.ports.records import Change, Records, Unit

FOREIGN: Final = "these events are not those of this ledger"


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Why a node is closed: the backup that it came from. `epoch`: of the outside record that goes on from it."""

    place: str
    generation: int
    size: int
    epoch: int
    log_key: str
    lost: tuple[str, ...] = ()


class Closed:
    """Whether a node is closed. Asked at every action; once it is open it stays so for this process, because restoring
    begins with a folder in which nothing runs."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._lock = threading.Lock()
        self._opened = False

    def __call__(self) -> bool:
        if self._opened:
            return False
        with self._lock:
            if not self._opened:
                with self._records.reading() as unit:
                    self._opened = not streams.closed(unit)
            return not self._opened


def mark(unit: Unit, about: Mark) -> None:
    """Close the node, in the transaction that fills its records."""
    unit.upsert("setting", {"name": RESTORED, "value": msgspec.to_builtins(about)})


def marked(unit: Unit) -> Mark | None:
    rows = unit.rows("setting", {"name": RESTORED})
    return msgspec.convert(rows[0]["value"], Mark) if rows else None


# --- taking over what came after ---


def take(node: Node, leaves: Iterable[bytes], signed: Checkpoint, text: str) -> int:
    """Append the leaves that the ledger does not have, all or none: they must lead to what was signed. `text`: the note
    of that. Returns how many came. Raises `IntegrityFault` where they do not fit."""
    with node.records.writing() as unit:
        before = unit.head().size
        lost: list[str] = []
        new = [entry for leaf in leaves if (entry := _new(unit, leaf, before)) is not None]
        for _, group in groupby(new, key=lambda pair: pair[1].command):
            _append(unit, list(group), lost)
        head = unit.head()
        if (head.size, head.root) != (signed.size, signed.root):
            raise IntegrityFault(f"{FOREIGN}: they do not lead to the root that was signed")
        unit.put_checkpoint(head.size, text)
        about = marked(unit)
        if about is not None and lost:
            both = tuple(dict.fromkeys((*about.lost, *lost)))
            mark(unit, msgspec.structs.replace(about, lost=both))
    return head.size - before


def _new(unit: Unit, leaf: bytes, size: int) -> tuple[bytes, Entry] | None:
    entry = decode_leaf(leaf)
    if entry.position >= size:
        return leaf, entry
    known = unit.follow(entry.position - 1, 1)
    if not known or known[0].leaf != leaf:
        raise IntegrityFault(f"{FOREIGN}: position {entry.position} is another one")
    return None


def _append(unit: Unit, group: Sequence[tuple[bytes, Entry]], lost: list[str]) -> None:
    """One append of the node that was lost, once more."""
    first, size = group[0][1], unit.head().size
    if first.position != size:
        raise IntegrityFault(f"the outside record has a gap: position {size} is missing")
    at = datetime.fromisoformat(first.at)
    changes = []
    states: dict[str, Any] = {}
    decoded: list[tuple[str, Event, Any]] = []
    for stream, run in groupby((entry for _, entry in group), key=lambda entry: entry.stream):
        entries = list(run)
        kind, _, ident = stream.partition("/")
        process = PROCESSES.get(kind)
        if process is None:
            raise FormatFault(f"this release does not know what a {kind} is", "use the release that the node had")
        state: Any = states[stream] if stream in states else streams.load(unit, process, ident).state
        for entry in entries:
            event = msgspec.json.decode(bytes(entry.data), type=process.events)
            state = process.evolve(state, event)
            decoded.append((ident, event, state))
        states[stream] = state
        changes.append(
            Change(
                stream=stream,
                kind=kind,
                expected=entries[0].version - 1,
                events=tuple((entry.tag, bytes(entry.data)) for entry in entries),
                phase=state.phase,
                state=encode_state(state),
                links=process.links(state),
            )
        )
    recorded = unit.append(changes, actor=first.actor, at=at, command=first.command)
    if [record.leaf for record in recorded] != [leaf for leaf, _ in group]:
        raise IntegrityFault(f"{FOREIGN}: position {first.position} comes out differently")
    for ident, event, state in decoded:
        _follow(unit, ident, event, state, at, lost)


def _follow(unit: Unit, ident: str, event: Event, state: Any, at: datetime, lost: list[str]) -> None:
    """What an event means for the plain rows that the backup had."""
    match event:
        case custody.Destroyed():
            for key_id in event.key_ids:
                _forget(unit, key_id, at)
        case dataset.KeyDestroyed():
            _certify(unit, state, event, at)
        case account.KeyEnded():
            unit.update("account_key", {"id": event.key_id, "ended": None}, {"ended": at})
        case dataset.VersionAdded():
            lost.append(f"{ident}/{event.number}")
        case rotation.Retired():
            lost.append(f"{state.dataset_id}/{state.version}")
        case _:
            pass
    if isinstance(state, dataset.Dataset):
        datasets.refresh(unit, state, at)


def _forget(unit: Unit, key_id: str, at: datetime) -> None:
    """The key holder has not got this key. What the backup had of its files goes as it did the first time."""
    destruction.note_copies(unit, key_id)
    unit.update("file", {"key_id": key_id}, {"header": None, "state": "destroyed"})
    outbox.put(unit, at, topic="body.delete", key=f"body.delete:{key_id}", body={"key_id": key_id})


def _certify(unit: Unit, state: dataset.Dataset, event: dataset.KeyDestroyed, at: datetime) -> None:
    version = state.version(event.version)
    assert version is not None
    key_id = version.key_id
    body = {"key_id": key_id, "dataset": state.dataset_id, "version": event.version, "generation": event.generation}
    outbox.put(unit, at, topic="destruction.certify", key=f"destruction.certify:{key_id}", body=body)


# --- opening ---


def reached(node: Node) -> tuple[Mark | None, int, bytes]:
    """Why the node is closed, None where it is not; size and root of its ledger."""
    with node.records.reading() as unit:
        head = unit.head()
        return marked(unit), head.size, head.root


def open_node(node: Node, known: int, *, accepted: bool) -> int:
    """End the closing, with the event that says so. `known`: events that the newest checkpoint of any place covers.
    Returns the events that are lost for good. Raises `RefusedFault` (`ledger_short`) where there are some and that was
    not `accepted`. Repeating is no error."""
    at = node.clock()
    with node.records.writing() as unit:
        about = marked(unit)
        if about is None:
            return 0
        unit.delete("setting", {"name": RESTORED})
        now, head = streams.load(unit, BACKUP, STREAM_ID), unit.head()
        order = backup.RecordRestore(
            by=NODE,
            at=at,
            place=about.place,
            generation=about.generation,
            size=about.size,
            reached=head.size,
            root=head.root.hex(),
            known=known,
            lost=about.lost,
        )
        decided = backup.decide(now.state, order, backup.Facts(accepted=accepted))
        step = Step(BACKUP, STREAM_ID, now.version, now.state, decided)
        streams.commit(unit, [step], by=NODE, at=at, command=new_id())
    return max(0, known - head.size)


def lost_versions(unit: Unit) -> frozenset[tuple[str, int]]:
    """Dataset versions whose files, or their headers, no backup had."""
    state = streams.load(unit, BACKUP, STREAM_ID).state
    found = (one.rpartition("/") for one in (state.lost if state else ()))
    return frozenset((ident, int(number)) for ident, _, number in found)


def names(unit: Unit, lost: Iterable[str]) -> list[str]:
    """Lost versions as people call them."""
    found = []
    for one in lost:
        ident, _, number = one.rpartition("/")
        state = streams.load(unit, DATASET, ident).state
        found.append(f"{state.name if state else ident} version {number}")
    return found
