"""Backups and restoring: what was saved, that it was shown to come back, and what a restored node lost.

There is one stream, `backup/node`. A backup is in force once the ledger says so: the event holds the digest of its
manifest, and whoever changes a stored backup changes that. What a restored node cannot bring back is named here, too: a
ledger that lost its end goes on in a new *epoch*, so that nobody takes it for the one before.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias, assert_never

import msgspec

from valv.core.process import NODE, Command, Event, Table, guard
from valv.errors import Refusal

KIND = "backup"
STREAM_ID: Final = "node"
Phase: TypeAlias = Literal["kept"]
DRILL_AFTER: Final = timedelta(days=365)
"""So long after the last one a backup is to be restored again for trial."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """The newest backup in a place. `generation` counts over the whole node; `size`: events of the ledger in it;
    `bodies`: files in it, `held_back`: files that may not rest there or are saved by name alone; `stored`: bytes that
    came with this one."""

    generation: int
    at: datetime
    size: int
    bodies: int
    held_back: int
    stored: int


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """`places`: by name; `generation`: of the newest backup anywhere; `drilled`: when one was last restored for trial,
    with success; `epoch`: how often a restored node went on without the end of its ledger; `restored`: when it last
    was; `lost`: dataset versions, as `id/number`, whose files no backup had; `signed`: size and root (hex) of what was
    left of the signed ledger when it last lost its end."""

    generation: int = 0
    places: dict[str, Made] = {}
    drilled: datetime | None = None
    epoch: int = 0
    restored: datetime | None = None
    lost: tuple[str, ...] = ()
    signed: tuple[int, str] | None = None
    phase: Phase = "kept"

    def drill_due(self, at: datetime) -> bool:
        """Where there are backups, one is to be restored for trial within a year of the first."""
        if not self.places:
            return False
        begun = self.drilled or min(made.at for made in self.places.values())
        return at - begun > DRILL_AFTER


# --- commands ---
class RecordBackup(Command, frozen=True, kw_only=True):
    """`manifest`: SHA-256, hex."""

    place: str
    generation: int
    size: int
    root: str
    manifest: str
    bodies: int
    held_back: int
    missing: int
    stored: int


class RecordDrill(Command, frozen=True, kw_only=True):
    """A backup was restored for trial. `wrong`: things that did not hold; `milliseconds`: how long it took."""

    place: str
    generation: int
    size: int
    root: str
    bodies: int
    wrong: int
    milliseconds: int


class RecordRestore(Command, frozen=True, kw_only=True):
    """The node was restored. Of the ledger `size` events came from the backup and `reached` stand now, with their root;
    the newest checkpoint known anywhere covers `known` events. `lost`: see `Backup`."""

    place: str
    generation: int
    size: int
    reached: int
    root: str
    known: int
    lost: tuple[str, ...]


Commands: TypeAlias = RecordBackup | RecordDrill | RecordRestore


# --- events ---
class Begun(Event, frozen=True, kw_only=True, tag="backup.begun"):
    """The first thing that the ledger knows of backups."""

    at: datetime


class BackupMade(Event, frozen=True, kw_only=True, tag="backup.made"):
    place: str
    generation: int
    size: int
    root: str
    manifest: str
    bodies: int
    held_back: int
    missing: int
    stored: int
    at: datetime


class Drilled(Event, frozen=True, kw_only=True, tag="backup.drilled"):
    place: str
    generation: int
    size: int
    root: str
    bodies: int
    wrong: int
    milliseconds: int
    at: datetime


class Restored(Event, frozen=True, kw_only=True, tag="backup.restored"):
    """Events `reached` up to `known`, that one not included, were signed once and are lost, where `known` is more."""

    place: str
    generation: int
    size: int
    reached: int
    root: str
    known: int
    lost: tuple[str, ...]
    at: datetime


Events: TypeAlias = Begun | BackupMade | Drilled | Restored


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`accepted`: the operator goes on without the end of the ledger."""

    accepted: bool = False


_ALL: Final = frozenset[type[Command]]((RecordBackup, RecordDrill, RecordRestore))
TABLE: Table = {"new": {NODE: _ALL}, "kept": {NODE: _ALL}}


def roles(_state: Backup | None, by: str, _facts: Facts) -> frozenset[str]:
    return frozenset({NODE}) if by == NODE else frozenset()


def decide(state: Backup | None, command: Commands, facts: Facts) -> list[Events] | Refusal:
    refusal = guard(TABLE, state.phase if state else "new", roles(state, command.by, facts), command)
    if refusal:
        return refusal
    begun: list[Events] = [] if state else [Begun(at=command.at)]
    match command:
        case RecordBackup():
            if state and command.generation <= state.generation:
                return Refusal("backup_overtaken", f"generation {command.generation}")
            return [*begun, _made(command)]
        case RecordDrill():
            return [*begun, _drilled(command)]
        case RecordRestore():
            if command.reached < command.known and not facts.accepted:
                return Refusal("ledger_short", f"{command.known} events were signed, {command.reached} are here")
            return [*begun, _restored(command)]
        case _:
            assert_never(command)


def _made(command: RecordBackup) -> BackupMade:
    return BackupMade(
        place=command.place,
        generation=command.generation,
        size=command.size,
        root=command.root,
        manifest=command.manifest,
        bodies=command.bodies,
        held_back=command.held_back,
        missing=command.missing,
        stored=command.stored,
        at=command.at,
    )


def _drilled(command: RecordDrill) -> Drilled:
    return Drilled(
        place=command.place,
        generation=command.generation,
        size=command.size,
        root=command.root,
        bodies=command.bodies,
        wrong=command.wrong,
        milliseconds=command.milliseconds,
        at=command.at,
    )


def _restored(command: RecordRestore) -> Restored:
    return Restored(
        place=command.place,
        generation=command.generation,
        size=command.size,
        reached=command.reached,
        root=command.root,
        known=command.known,
        lost=command.lost,
        at=command.at,
    )


def evolve(state: Backup | None, event: Events) -> Backup:
    if isinstance(event, Begun):
        return state or Backup()
    if state is None:
        raise ValueError(f"{type(event).__name__} before Begun")
    match event:
        case BackupMade():
            made = Made(
                generation=event.generation,
                at=event.at,
                size=event.size,
                bodies=event.bodies,
                held_back=event.held_back,
                stored=event.stored,
            )
            places = {**state.places, event.place: made}
            return msgspec.structs.replace(state, generation=event.generation, places=places)
        case Drilled():
            return state if event.wrong else msgspec.structs.replace(state, drilled=event.at)
        case Restored():
            lost = tuple(dict.fromkeys((*state.lost, *event.lost)))
            if event.reached >= event.known:
                return msgspec.structs.replace(state, restored=event.at, lost=lost)
            signed = (event.reached, event.root)
            # Backups of the ledger that was lost are none of this one.
            return msgspec.structs.replace(
                state, places={}, restored=event.at, lost=lost, epoch=state.epoch + 1, signed=signed
            )
        case _:
            assert_never(event)
