"""Backups: made while the node runs, each a frozen view of all records and every file that it names.

A place is a store of its own (docs/formats/backup.md). A backup comes into force by its proof, the last thing that is
written: that the ledger, signed, holds the digest of its manifest. What is there without one is no backup.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from valv import __version__
from valv.app import ledger, streams
from valv.app.node import Node, new_id, refuse
from valv.app.saving import Saved, Saver
from valv.app.streams import BACKUP, ROTATION, Step, retried
from valv.config import BackupPlace
from valv.core import backup
from valv.core.backup import STREAM_ID, BackupMade
from valv.core.process import NODE
from valv.errors import ConflictFault, Fault, FormatFault, IntegrityFault, MissingFault, RefusedFault, UnreachableFault
from valv.formats import note
from valv.formats.ledger import decode_leaf
from valv.formats.merkle import leaf_hash, verify_consistency, verify_inclusion
from valv.ports.records import Unit
from valv.ports.storage import Storage
from valv.vault import parcel
from valv.vault.parcel import Parcel

FORMAT: Final = "valv backup 1"
PAUSE: Final = 60
"""Seconds after which one that failed is tried again."""
TRIES: Final = 5
"""Times that a view of the records is taken anew, because a file that it names went away meanwhile."""
SMALL: Final = 64 << 20
"""Bytes of a manifest or proof at most."""
_PARTS: Final = ("proof", "manifest", "names", "records")
_PART: Final = re.compile(rf"backup-(\d{{6,}})\.({'|'.join(_PARTS)})")

Told = Callable[[int, int], None]
"""Called with the bytes done and those there are, as the work goes on."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a backup holds. `size`, `root` (hex): of the ledger in it; `log_key`: verifier key of the ledger; `epoch`:
    see `core.backup`; `bodies`: files that lie in the place, `held_back`: those of which it has the names alone;
    `missing`: bodies that no store had; `configuration`: the node's valv.toml, which holds no secret."""

    format: str
    node: str
    generation: int
    at: datetime
    release: str
    place: str
    epoch: int
    size: int
    root: str
    log_key: str
    records: Parcel
    names: Parcel
    bodies: int
    held_back: int
    missing: tuple[str, ...]
    configuration: str


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """That a signed ledger holds the manifest's digest: the leaf of `backup.made`, its inclusion in the tree of the
    checkpoint `note`, and that this tree continues the ledger in the backup (RFC 9162, section 2.1)."""

    leaf: str
    inclusion: tuple[bytes, ...]
    consistency: tuple[bytes, ...]
    note: str


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A backup in force, by its proof."""

    made: BackupMade
    manifest: str


def part(generation: int, kind: str) -> str:
    return f"backup-{generation:06d}.{kind}"


# --- reading a place; no node is needed ---


def generations(place: Storage) -> dict[int, set[str]]:
    """What is there of each backup."""
    found: dict[int, set[str]] = {}
    for name in place.names():
        if match := _PART.fullmatch(name):
            found.setdefault(int(match[1]), set()).add(match[2])
    return found


def in_force(place: Storage) -> list[int]:
    """The backups that have a proof, ascending."""
    return sorted(number for number, parts in generations(place).items() if "proof" in parts)


def read_small(place: Storage, name: str) -> bytes:
    body = place.open(name)
    try:
        if body.size > SMALL:
            raise FormatFault(f"{name} is too long", "the backup was altered or damaged")
        buffer = bytearray(body.size)
        if body.pread_into(buffer, 0) != len(buffer):
            raise IntegrityFault(f"{name} is truncated", "the backup was altered or damaged")
        return bytes(buffer)
    finally:
        body.close()


def read_proof(place: Storage, generation: int) -> Proof:
    try:
        return msgspec.json.decode(read_small(place, part(generation, "proof")), type=Proof)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise FormatFault(f"the proof of backup {generation} cannot be read", "take another backup") from None


def check_proof(proof: Proof, log_key: str) -> BackupMade:
    """What the signed ledger says of this backup. Raises `IntegrityFault`, `FormatFault` where the proof fails."""
    signed = note.Checkpoint.decode(note.verify(proof.note, log_key))
    leaf = proof.leaf.encode()
    entry, event = decode_leaf(leaf), told(proof)
    if entry.tag != "backup.made" or entry.stream != BACKUP.stream(STREAM_ID):
        raise IntegrityFault("the proof of the backup speaks of something else")
    verify_inclusion(leaf_hash(leaf), entry.position, signed.size, list(proof.inclusion), signed.root)
    try:
        root = bytes.fromhex(event.root)
    except ValueError:
        raise FormatFault("the proof of the backup cannot be read") from None
    verify_consistency(event.size, root, signed.size, signed.root, list(proof.consistency))
    return event


def told(proof: Proof) -> BackupMade:
    """What a proof says, unverified."""
    try:
        return msgspec.json.decode(bytes(decode_leaf(proof.leaf.encode()).data), type=BackupMade)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise FormatFault("the proof of the backup cannot be read") from None


def read_manifest(place: Storage, generation: int, private: bytes, digest: str) -> Manifest:
    """Open and check the manifest: `digest` is what the ledger says (hex SHA-256 of its plain bytes)."""
    data = b"".join(parcel.read(place, part(generation, "manifest"), private, None))
    if hashlib.sha256(data).hexdigest() != digest:
        raise IntegrityFault(f"the manifest of backup {generation} is not the one that the ledger names")
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise FormatFault(f"the manifest of backup {generation} cannot be read") from None


def names_in(place: Storage, generation: int) -> Iterator[str]:
    """The bodies that a backup has in its place, by name."""
    for line in parcel.lines(pieces(place, part(generation, "names"))):
        kind, _, name = line.decode("ascii", "replace").partition(" ")
        if kind == "here":
            yield name


def pieces(place: Storage, name: str) -> Iterator[bytes]:
    """The stored bytes of a body."""
    body = place.open(name)
    try:
        for at in range(0, body.size, 1 << 20):
            buffer = bytearray(min(1 << 20, body.size - at))
            if body.pread_into(buffer, at) != len(buffer):
                raise IntegrityFault(f"{name} is truncated", "the backup was altered or damaged")
            yield bytes(buffer)
    finally:
        body.close()


# --- making one ---


def place_of(node: Node, name: str) -> tuple[Storage, BackupPlace]:
    settings = node.config.backup.places.get(name)
    if settings is None:
        raise refuse("not_found", f"the configuration has no place {name!r} for backups")
    if name not in node.places:
        raise UnreachableFault(f"the place {name} is away", "bring it back, then start the node again")
    return node.places[name], settings


def recipient(node: Node) -> bytes:
    return base64.b64decode(node.config.backup.recipient)


def state_of(unit: Unit) -> backup.Backup:
    return streams.load(unit, BACKUP, STREAM_ID).state or backup.Backup()


def make(node: Node, name: str, progress: Told = lambda _done, _all: None) -> int:
    """Make a backup in the place `name`; returns its generation. The one before stays as it is until this one is in
    force. Repeating after a crash begins anew, but files that came already stay."""
    place, settings = place_of(node, name)
    prove(node, name)
    with node.records.reading() as unit:
        state = state_of(unit)
    _clear(place)
    # A place can know of backups that a restored ledger lost.
    number = max([state.generation, *in_force(place)]) + 1
    saver = Saver(node, place, by_value=settings.bodies == "value", progress=progress)
    saver.save_all()
    for attempt in range(1, TRIES + 1):
        try:
            manifest, stored = _write(node, place, name, number, saver, last=attempt == TRIES)
            break
        except ConflictFault:
            _remove(place, number)
    _record(node, name, manifest, stored)
    prove(node, name)
    return number


def _write(
    node: Node, place: Storage, name: str, number: int, saver: Saver, *, last: bool
) -> tuple[tuple[Manifest, bytes], Saved]:
    """Write one view of the records with the files that it names. Raises `ConflictFault` where one of them went away
    meanwhile, which means that the records have moved on; `last`: it is noted as missing instead."""
    key, at = recipient(node), node.clock()
    log_key = node.keys.status().log_key
    with node.records.reading() as unit:
        head, state = unit.head(), state_of(unit)
        records = parcel.write(place, part(number, "records"), unit.dump(), key)
        saved = Saved()
        names = _write_names(place, part(number, "names"), saver.lines(unit, saved, strict=not last))
    manifest = Manifest(
        format=FORMAT,
        node=node.config.node.name,
        generation=number,
        at=at,
        release=__version__,
        place=name,
        epoch=state.epoch,
        size=head.size,
        root=head.root.hex(),
        log_key=log_key,
        records=records,
        names=names,
        bodies=saved.bodies,
        held_back=saved.held_back,
        missing=tuple(saved.missing),
        configuration=node.config.path("valv.toml").read_text("utf-8"),
    )
    data = msgspec.json.encode(manifest)
    parcel.write(place, part(number, "manifest"), [data], key)
    return (manifest, data), saved


def _write_names(place: Storage, name: str, lines: Iterator[bytes]) -> Parcel:
    """The list of files is plain: names are random, and the node, which cannot open its backups, prunes by it."""
    digest, size = hashlib.sha256(), 0
    writer = place.writer(name)
    try:
        for line in lines:
            writer.write(line)
            digest.update(line)
            size += len(line)
        writer.commit()
    except BaseException:
        writer.abort()
        raise
    return Parcel(size, digest.hexdigest())


@retried
def _record(node: Node, name: str, manifest: tuple[Manifest, bytes], saved: Saved) -> None:
    about, data = manifest
    at = node.clock()
    with node.records.writing() as unit:
        now = streams.load(unit, BACKUP, STREAM_ID)
        order = backup.RecordBackup(
            by=NODE,
            at=at,
            place=name,
            generation=about.generation,
            size=about.size,
            root=about.root,
            manifest=hashlib.sha256(data).hexdigest(),
            bodies=about.bodies,
            held_back=about.held_back,
            missing=len(about.missing),
            stored=saved.stored,
        )
        step = Step(BACKUP, STREAM_ID, now.version, now.state, backup.decide(now.state, order, backup.Facts()))
        streams.commit(unit, [step], by=NODE, at=at, command=new_id())


def prove(node: Node, name: str) -> bool:
    """Bring the newest backup of this place into force, where it is not: have the ledger signed and write the proof.
    Returns whether it is in force. Raises `SealedFault` where the node's keys are locked."""
    place, settings = place_of(node, name)
    with node.records.reading() as unit:
        made = state_of(unit).places.get(name)
    if made is None:
        return False
    number = made.generation
    if _there(place, part(number, "proof")):
        return True
    if not all(_there(place, part(number, kind)) for kind in _PARTS[1:]):
        return False  # somebody took it away
    _sign(node)
    with node.records.reading() as unit:
        record = next(
            one
            for one in reversed(unit.events(BACKUP.stream(STREAM_ID)))
            if one.tag == "backup.made" and msgspec.json.decode(one.data)["generation"] == number
        )
        event = msgspec.json.decode(record.data, type=BackupMade)
        size, signed = unit.checkpoint() or (0, "")
        if size <= record.position:
            raise UnreachableFault("the ledger is not signed yet", "the node goes on by itself")
        proof = Proof(
            leaf=record.leaf.decode(),
            inclusion=tuple(unit.inclusion(record.position, size)),
            consistency=tuple(unit.consistency(event.size, size)),
            note=signed,
        )
    check_proof(proof, node.keys.status().log_key)
    writer = place.writer(part(number, "proof"))
    try:
        writer.write(msgspec.json.encode(proof))
        writer.commit()
    except BaseException:
        writer.abort()
        raise
    prune(node, name, settings.keep)
    return True


def _there(place: Storage, name: str) -> bool:
    try:
        return place.size(name) >= 0
    except MissingFault:
        return False


def _sign(node: Node) -> None:
    """Another thread signs too, each second; where it was quicker, what it signed will do."""
    try:
        ledger.checkpoint(node)
    except RefusedFault as fault:
        if fault.refusal.code != "ledger_forked":
            raise
        ledger.checkpoint(node)


def _clear(place: Storage) -> None:
    """Remove what makers that were killed left behind."""
    place.sweep()
    for number, parts in generations(place).items():
        if "proof" not in parts:
            _remove(place, number)


def _remove(place: Storage, number: int) -> None:
    for kind in _PARTS:
        place.delete(part(number, kind))


def prune(node: Node, name: str, keep: int) -> None:
    """Drop backups but the newest `keep`, and what only they needed: bodies, and the outside record before them.
    Memory: about 100 bytes for each body that stays."""
    place, _ = place_of(node, name)
    known = in_force(place)
    kept, gone = known[-keep:], known[:-keep]
    if not gone:
        return
    for number in gone:
        _remove(place, number)
    wanted = {one for number in kept for one in names_in(place, number)}
    first = min(told(read_proof(place, number)).size for number in kept)
    epoch = read_epoch(node)
    for found in list(place.names()):
        if _PART.fullmatch(found) or found.removesuffix(".seal") in wanted:
            continue
        span = SPAN.fullmatch(found)
        if span and not (int(span[1]) == epoch and int(span[3]) <= first):
            continue
        place.delete(found)


SPAN: Final = re.compile(r"after-(\d{4})-(\d{12})-(\d{12})\.(leaves|note)")
"""Names of the outside record: epoch, first position, size of the ledger at its end (`app.outside`)."""


def read_epoch(node: Node) -> int:
    with node.records.reading() as unit:
        return state_of(unit).epoch


# --- when one is due ---


def due(node: Node, name: str) -> bool:
    """Whether the place has no backup that is young enough, or none since keys were rotated: the headers in an older
    one open with keys that the node forgot."""
    with node.records.reading() as unit:
        made = state_of(unit).places.get(name)
        if made is None:
            return True
        done = streams.find(unit, ROTATION, phases=("done",), limit=1)
    if done and done[0].ended is not None and done[0].ended > made.at:
        return True
    return node.clock() - made.at >= timedelta(hours=node.config.backup.hours)


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A place. `made`: its newest backup, None for none; `late`: it is older than twice what is configured; `fault`:
    what was wrong the last time; `done`, `all`: bytes, while one is being made."""

    name: str
    bodies: str
    made: backup.Made | None
    late: bool
    fault: str
    busy: bool
    done: int
    all: int
    outside: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    places: list[Standing]
    drilled: datetime | None
    drill_due: bool
    epoch: int
    size: int


def status(node: Node) -> Status:
    """How the backups are. For the operator on the node itself."""
    at = node.clock()
    with node.records.reading() as unit:
        state, size = state_of(unit), unit.head().size
        notes: dict[str, dict[str, Any]] = {
            name: (unit.rows("setting", {"name": f"backup.{name}"}) or [{"value": {}}])[0]["value"]
            for name in node.config.backup.places
        }
    late = timedelta(hours=2 * node.config.backup.hours)
    places = []
    for name, settings in node.config.backup.places.items():
        made, known = state.places.get(name), notes[name]
        places.append(
            Standing(
                name=name,
                bodies=settings.bodies,
                made=made,
                late=made is None or at - made.at > late,
                fault=known.get("fault", ""),
                busy=known.get("busy", False),
                done=known.get("done", 0),
                all=known.get("all", 0),
                outside=known.get("outside", 0),
            )
        )
    return Status(places=places, drilled=state.drilled, drill_due=state.drill_due(at), epoch=state.epoch, size=size)


def remember(node: Node, name: str, **values: Any) -> None:
    """Keep what `status` tells of a place beside the ledger."""
    with node.records.writing() as unit:
        rows = unit.rows("setting", {"name": f"backup.{name}"})
        unit.upsert("setting", {"name": f"backup.{name}", "value": {**(rows[0]["value"] if rows else {}), **values}})


def recall(node: Node, name: str) -> dict[str, Any]:
    with node.records.reading() as unit:
        rows = unit.rows("setting", {"name": f"backup.{name}"})
    return dict(rows[0]["value"]) if rows else {}


@retried
def record_drill(node: Node, made: BackupMade, *, bodies: int, wrong: int, milliseconds: int) -> None:
    """Evidence that a backup was restored for trial."""
    at = node.clock()
    with node.records.writing() as unit:
        now = streams.load(unit, BACKUP, STREAM_ID)
        order = backup.RecordDrill(
            by=NODE,
            at=at,
            place=made.place,
            generation=made.generation,
            size=made.size,
            root=made.root,
            bodies=bodies,
            wrong=wrong,
            milliseconds=milliseconds,
        )
        step = Step(BACKUP, STREAM_ID, now.version, now.state, backup.decide(now.state, order, backup.Facts()))
        streams.commit(unit, [step], by=NODE, at=at, command=new_id())


# --- the node's own step ---


def step(node: Node, name: str, clock: Callable[[], float]) -> None:
    """Make a backup where one is wanted or due. What goes wrong is kept for `status`, and raised."""
    known = recall(node, name)
    wanted, at = known.get("wanted", ""), node.clock()
    asked = wanted != known.get("answered", "")
    if not asked and known.get("fault") and at.timestamp() - known.get("tried", 0) < PAUSE:
        return
    try:
        if not asked and not due(node, name):
            prove(node, name)
            return
        seen = [clock()]

        def progress(done: int, whole: int) -> None:
            if clock() - seen[0] > 1:
                seen[0] = clock()
                remember(node, name, busy=True, done=done, all=whole)

        remember(node, name, busy=True, done=0, all=0)
        make(node, name, progress)
    except Fault as fault:
        remember(node, name, busy=False, fault=str(fault), answered=wanted, tried=int(at.timestamp()))
        raise
    remember(node, name, busy=False, fault="", answered=wanted)


def ask(node: Node, name: str) -> str:
    """Have the worker make a backup now. Returns what it will answer with."""
    wanted = new_id()
    remember(node, name, wanted=wanted)
    return wanted
