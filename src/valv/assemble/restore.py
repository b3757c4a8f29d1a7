"""Restoring a node from a backup, opening it again, and trying a backup out (`valv restore`, `valv drill restore`).

The order on an empty machine: `valv restore` (configuration, database, files, outside record), then the keys (`valv
keys recover`, or their folder), `valv up`, `valv restore open`. Each step can be repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import msgspec

from valv import config as configuration
from valv.app import backup, outside, restoring, saving
from valv.app.backup import Manifest
from valv.app.node import Node
from valv.app.saving import Saver
from valv.assemble import node as nodes
from valv.assemble.backend import backend
from valv.assemble.create import write
from valv.cli.operator import Opened, Restored, Verified
from valv.config import MAIN, BackupPlace, Config
from valv.core.backup import BackupMade
from valv.db.database import Database
from valv.errors import (
    ConfigFault,
    ConflictFault,
    Fault,
    IntegrityFault,
    MissingFault,
    StorageFault,
)
from valv.formats import note
from valv.keys import folder as key_folder
from valv.ports.storage import Place, Storage
from valv.vault import fixity, parcel

MARKER: Final = ".restoring"
"""A file in a node's folder that is not whole yet."""
Progress = Callable[[int], None]


# --- finding a backup ---


def open_place(path: Path) -> Storage:
    """The place of a node's backups: its folder, the folder above (where there is one node), or a TOML file with the
    settings of a section [backup.places.NAME]."""
    if path.is_file():
        try:
            settings = msgspec.convert(tomllib.loads(path.read_text("utf-8")), BackupPlace)
        except (msgspec.ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigFault(f"{path}: {error}") from None
        made: Storage = backend("storage", settings.backend)(
            settings, path.parent, Place(settings.country, settings.unit)
        )
        return made
    if not path.is_dir():
        raise MissingFault(f"{path} is not there", "name the folder in which the backups are")
    if not (path / "bodies").is_dir():
        found = sorted(path.glob("valv-backup-*"))
        if len(found) != 1:
            raise MissingFault(f"{path} holds the backups of {len(found)} nodes", "name the folder of one")
        path = found[0]
    local: Storage = backend("storage", "local")(BackupPlace(path=str(path)), path, Place("", ""))
    return local


@dataclass(frozen=True)
class Found:
    """A backup whose proof and manifest hold."""

    place: Storage
    private: bytes = field(repr=False)
    made: BackupMade
    manifest: Manifest

    def part(self, kind: str) -> str:
        return backup.part(self.manifest.generation, kind)


def find(place: Storage, private: bytes, generation: int = 0, log_key: str = "") -> Found:
    """The newest backup of a place, or the one of this number. `log_key`: what must have signed it; '' trusts the
    manifest, and who asks compares."""
    there = backup.in_force(place)
    if not there or (generation and generation not in there):
        raise MissingFault("there is no backup in force", f"there are {there or 'none'}")
    number = generation or there[-1]
    proof = backup.read_proof(place, number)
    manifest = backup.read_manifest(place, number, private, backup.told(proof).manifest)
    made = backup.check_proof(proof, log_key or manifest.log_key)
    same = (made.generation, made.size, made.root) == (manifest.generation, manifest.size, manifest.root)
    if not same or manifest.generation != number or manifest.format != backup.FORMAT:
        raise IntegrityFault(f"the parts of backup {number} do not belong together")
    return Found(place, private, made, manifest)


def fill(found: Found, database: Database) -> None:
    """The records into an empty database, which is closed from its first moment on: all of them or none. Raises
    `IntegrityFault` where their ledger is not the one that was signed."""
    database.create()
    about = found.manifest
    with database.writing() as unit:
        unit.fill(parcel.lines(parcel.read(found.place, found.part("records"), found.private, about.records)))
        head = unit.head()
        if (head.size, head.root.hex()) != (about.size, about.root):
            raise IntegrityFault("the ledger in the backup is not the one that was signed")
        mark = restoring.Mark(
            place=about.place,
            generation=about.generation,
            size=about.size,
            epoch=about.epoch,
            log_key=about.log_key,
        )
        restoring.mark(unit, mark)
    report = database.verify()
    if not report.ok or report.root.hex() != about.root:
        raise IntegrityFault(f"the ledger in the backup does not hold: {report.fault}")


def listed(found: Found) -> Iterator[str]:
    """The lines of the list of files, held against the manifest at the end."""
    digest, about = hashlib.sha256(), found.manifest.names
    for line in parcel.lines(backup.pieces(found.place, found.part("names"))):
        digest.update(line + b"\n")
        yield line.decode("ascii", "replace")
    if digest.hexdigest() != about.sha256:
        raise IntegrityFault("the list of files in the backup is not what was written")


def files(found: Found, database: Database) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Every file that the records name, and whether it lies in the place; the list must say the same."""
    missing = set(found.manifest.missing)
    with database.reading() as unit:
        rows = (row for row in saving.bodies(unit) if row["body"] not in missing)
        for row, line in zip_longest(rows, listed(found)):
            kind, _, name = (line or "").partition(" ")
            if row is None or row["body"] != name or kind not in ("here", "there"):
                raise IntegrityFault("the list of files in the backup does not fit its records")
            yield kind == "here", row


# --- trying it out ---


def verify(
    place: Storage,
    private: bytes,
    *,
    generation: int = 0,
    log_key: str = "",
    node: Node | None = None,
    progress: Progress = lambda _: None,
    within: Path | None = None,
) -> tuple[Verified, BackupMade]:
    """Restore into a folder that goes away again, and read every file. `node`: whose stores have the files that the
    place has not; None leaves these aside. `within`: where that folder is made; memory where there is some."""
    began = time.monotonic()
    found = find(place, private, generation, log_key)
    wrong: list[str] = []
    bodies = 0
    with _scratch(within) as scratch:
        database = Database(f"sqlite:///{scratch / 'records.sqlite'}")
        try:
            fill(found, database)
            for here, row in files(found, database):
                record = saving.record_of(row)
                if here:
                    fault = fixity.look(place, row["body"], record, progress).fault
                    if fault is not None:
                        wrong.append(f"{row['body']}: {fault.detail}")
                elif node is not None and not saving.whole(node.storage, row["body"], record):
                    wrong.append(f"{row['body']} is in no store of the node")
                bodies += 1
        finally:
            database.close()
    for segment in outside.segments(place):
        if segment.epoch == found.manifest.epoch and segment.end > found.manifest.size:
            outside.read_note(place, segment, found.manifest.log_key)
    about = found.manifest
    done = Verified(
        node=about.node,
        generation=about.generation,
        at=about.at.isoformat(),
        size=about.size,
        root=about.root,
        log_key=about.log_key,
        bodies=bodies,
        missing=len(about.missing),
        wrong=wrong,
        seconds=round(time.monotonic() - began, 3),
    )
    return done, found.made


@contextlib.contextmanager
def _scratch(within: Path | None) -> Iterator[Path]:
    """A folder of our own that is removed afterwards. It holds the records in plain: memory where there is some."""
    memory = Path("/dev/shm")  # noqa: S108 - mode 700, a random name
    with tempfile.TemporaryDirectory(prefix="valv-drill-", dir=within or (memory if memory.is_dir() else None)) as made:
        yield Path(made)


# --- restoring ---


def restore(
    place: Storage,
    directory: Path,
    private: bytes,
    *,
    database: str = "",
    password_file: str = "",
    generation: int = 0,
    log_key: str = "",
    progress: Progress = lambda _: None,
) -> Restored:
    """Make the node's folder anew. Repeating goes on where it was interrupted. Raises `ConflictFault` where there is
    something else."""
    began = time.monotonic()
    found = find(place, private, generation, log_key)
    _prepare(directory, found, database, password_file)
    config = configuration.load(directory)
    node = nodes.build(config).node
    records = node.records
    assert isinstance(records, Database)
    try:
        _fill_once(found, records)
        came, gone = _bring(found, node, records, progress)
        took, gap = apply(node, place, private)
        size, root = restoring.reached(node)[1:]
    finally:
        records.close()
    (directory / MARKER).unlink()
    return Restored(
        node=found.manifest.node,
        generation=found.manifest.generation,
        at=found.manifest.at.isoformat(),
        backup_size=found.manifest.size,
        backup_root=found.manifest.root,
        size=size,
        root=root.hex(),
        taken=took,
        gap=gap,
        log_key=found.manifest.log_key,
        bodies=came,
        missing=gone,
        seconds=round(time.monotonic() - began, 3),
    )


def _prepare(directory: Path, found: Found, database: str, password_file: str) -> None:
    marker = directory / MARKER
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not marker.exists():
            if any(path.name != "keys" and path.name != "secrets" for path in directory.iterdir()):
                raise ConflictFault(f"{directory} is not empty", "restore into an empty folder")
            write(marker, b"", 0o600)
        for part in ("db", "store", "log", "mail"):
            (directory / part).mkdir(exist_ok=True, mode=0o770)
        (directory / "secrets").mkdir(exist_ok=True, mode=0o700)
        text = with_database(found.manifest.configuration, database, password_file)
        toml = directory / "valv.toml"
        toml.unlink(missing_ok=True)
        write(toml, text.encode(), 0o644)
    except OSError as error:
        raise StorageFault(f"{directory}: {error.strerror}") from None


def with_database(text: str, url: str, password_file: str) -> str:
    """A valv.toml with another database; the same where `url` is ''. `sqlite` is the embedded one."""
    if not url:
        return text
    kept = re.sub(r"(?m)^\[database\][^\n]*\n(?:(?!\[)[^\n]*\n?)*", "", text)
    if url == "sqlite":
        return kept
    quoted = [msgspec.json.encode(one).decode() for one in (url, password_file)]
    return f"{kept.rstrip()}\n\n[database]\nurl = {quoted[0]}\npassword_file = {quoted[1]}\n"


def _fill_once(found: Found, records: Database) -> None:
    """A killed attempt left an empty database or a whole one."""
    if records.version() is not None:
        with records.reading() as unit:
            mark, size = restoring.marked(unit), unit.head().size
        if mark is not None and mark.generation == found.manifest.generation:
            return
        if mark is not None or size:
            raise ConflictFault("the database holds a node already", "restore into an empty one")
    fill(found, records)


def _bring(found: Found, node: Node, records: Database, progress: Progress) -> tuple[int, list[str]]:
    """The files into the node's first store, as far as no store has them. How many are there, and what is not."""
    main = node.each_store()[MAIN]
    main.sweep()
    policy = Saver(node, main, by_value=True)
    came, gone = 0, list(found.manifest.missing)
    for here, row in files(found, records):
        name, record = row["body"], saving.record_of(row)
        try:
            if not saving.whole(node.storage, name, record):
                with records.reading() as unit:
                    allowed = policy.may_rest(unit, row)
                if not here or not allowed:
                    gone.append(name)
                    continue
                saving.bring([found.place], main, name, record)
                _note_copy(records, name, record.cipher_size, node)
        except (MissingFault, IntegrityFault):
            gone.append(name)
            continue
        came += 1
        progress(record.cipher_size)
    return came, gone


def _note_copy(records: Database, name: str, size: int, node: Node) -> None:
    """Where copies are known, the new one is too; the other stores are looked through by fixity."""
    with records.writing() as unit:
        if unit.count("copy", {"body": name}):
            row = {"body": name, "store": MAIN, "state": "whole", "size": size, "since": node.clock()}
            unit.upsert("copy", row | {"checked": None, "fault": ""})


# --- what came after ---


def apply(node: Node, place: Storage, private: bytes) -> tuple[int, str]:
    """Take over the outside record of a place, as far as it goes on from the ledger. Returns how many events came, and
    what is in the way of more, '' for nothing. Raises `IntegrityFault` where it is of another ledger."""
    mark, size, _ = restoring.reached(node)
    if mark is None:
        return 0, ""
    took = 0
    for segment in outside.segments(place):
        if segment.epoch != mark.epoch or segment.end <= size:
            continue
        if segment.first > size:
            return took, f"positions {size} to {segment.first - 1} are not in the outside record"
        signed = outside.read_note(place, segment, mark.log_key)
        if signed.size != segment.end:
            raise IntegrityFault(f"{segment.name('note')} covers {signed.size} events")
        leaves = outside.leaves(place, segment, private)
        took += restoring.take(node, leaves, signed, outside.note_of(place, segment))
        size = segment.end
    return took, ""


def known_size(config: Config, places: dict[str, Storage], mark: restoring.Mark) -> tuple[int, str, str]:
    """How far the ledger is known to have been signed, the newest note of that ('' where only the key holder says so),
    and who knows. Raises `ConflictFault` where a place has a later epoch."""
    size, text, who = 0, "", ""
    for name, place in places.items():
        for segment in outside.segments(place):
            if segment.epoch > mark.epoch:
                raise ConflictFault(
                    f"{name} has the ledger of a later restoring", "restore the newest backup of that place"
                )
            if segment.epoch == mark.epoch and segment.end > size:
                signed = outside.read_note(place, segment, mark.log_key)
                size, text, who = signed.size, outside.note_of(place, segment), name
        for number in backup.in_force(place):
            proof = backup.read_proof(place, number)
            if backup.told(proof).size < size:
                continue
            with contextlib.suppress(IntegrityFault):  # of another ledger, or an earlier epoch
                backup.check_proof(proof, mark.log_key)
                signed = note.Checkpoint.decode(note.read(proof.note)[0])
                if signed.size > size and number >= mark.generation:
                    size, text, who = signed.size, proof.note, name
    for path in (config.path(config.keys.path), *(config.key_place(one) for one in config.keys.backup)):
        signed_size = _signed_by(path)
        if signed_size > size:
            size, text, who = signed_size, "", str(path)
    return size, text, who


def _signed_by(path: Path) -> int:
    """How many events the keys in this folder last signed for; 0 where that cannot be read. The file is plain."""
    with contextlib.suppress(Fault, OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
        living = path / f"generation-{key_folder.newest(path):06d}"
        return int(msgspec.json.decode((living / "checkpoint.json").read_bytes())["content"]["size"])
    return 0


def open_restored(
    directory: Path, *, places: list[Path], private: bytes | None = None, accept_loss: bool = False
) -> Opened:
    """Take over what is left of the outside record, hold the ledger against everything that is known of it, and open
    the node. Raises `RefusedFault` (`ledger_short`) where its end is missing and that is not accepted."""
    config = configuration.load(directory)
    node = nodes.build(config).node
    records = node.records
    assert isinstance(records, Database)
    try:
        mark, before, _ = restoring.reached(node)
        if mark is None:
            return Opened(open=True, size=before, taken=0, lost_events=0, lost=[], known_by="")
        known = dict(node.places) | {str(path): open_place(path) for path in places}
        if not known:
            raise MissingFault("no place of backups is there", "name one: --place FOLDER")
        took = 0
        for place in known.values() if private is not None else ():
            took += apply(node, place, private or b"")[0]
        size, text, who = known_size(config, known, mark)
        reached = restoring.reached(node)[1]
        if text and size <= reached:
            report = records.verify(text, mark.log_key)
            if not report.ok:
                raise IntegrityFault(report.fault, "this is not the ledger that was signed: keep everything as it is")
        lost_events = restoring.open_node(node, size, accepted=accept_loss)
        with records.reading() as unit:
            after = restoring.lost_versions(unit)
            lost = restoring.names(unit, [f"{ident}/{number}" for ident, number in sorted(after)])
            reached = unit.head().size
    finally:
        records.close()
    return Opened(open=True, size=reached, taken=took, lost_events=lost_events, lost=lost, known_by=who)
