"""What officers and operators do with a node's keys on its own machine, and what `valv doctor` says of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from valv.app import custody as custodies
from valv.app import dataset as datasets
from valv.app import streams
from valv.app.inspection import Finding
from valv.app.node import Node
from valv.app.streams import BACKUP, CUSTODY
from valv.assemble import keyd, up
from valv.cli.operator import StoredVersion
from valv.config import Config
from valv.core import backup as backups
from valv.core.custody import STREAM_ID, Custody
from valv.db.database import Database
from valv.errors import ConflictFault, Fault, IntegrityFault, MissingFault
from valv.keys import folder, recover
from valv.keys.client import KeydClient
from valv.keys.store import Checkpoint
from valv.ports.keys import KeyCustody, KeyStatus, SealedShares

RESTORE = "restore the node's database first: it says what officers did since the backup was written"


def records(config: Config) -> Database:
    password = str(config.path(config.database.password_file)) if config.database.password_file else ""
    return Database(config.database_url, password)


class Desk:
    """`valv.cli.operator.KeyDesk`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._client = KeydClient(config.runtime / keyd.SOCKET)

    @property
    def name(self) -> str:
        return self._config.node.name

    @property
    def asks_pin(self) -> bool:
        return not keyd.keyring_of(self._config).sets_passphrase

    @property
    def passphrase_file(self) -> Path | None:
        named = self._config.keys.passphrase_file
        return self._config.path(named) if named else None

    def status(self) -> KeyStatus:
        return self._client.status()

    def custody(self) -> KeyCustody:
        return self._client.custody()

    def shares(self, officer: str) -> SealedShares:
        return self._client.shares(officer)

    def create_volume(self, key_id: str) -> bytes:
        return self._client.create_volume(key_id)

    def reseal_volume(self, key_id: str, header: bytes, public_key: bytes) -> bytes:
        return self._client.reseal_volume(key_id, header, public_key)

    def unseal_share(self, words: str) -> KeyStatus:
        return self._client.unseal_share(words)

    def order(self, note: str, shares: list[str], passphrase: bytes) -> str:
        return self._client.order(note, shares, passphrase)

    def recorded(self) -> Custody | None:
        with records(self._config).reading() as unit:
            return streams.load(unit, CUSTODY, STREAM_ID).state

    def versions(self, dataset: str) -> list[StoredVersion]:
        with records(self._config).reading() as unit:
            state, _ = datasets.named(unit, dataset)
        return [
            StoredVersion(state.name, one.number, one.key_id, one.files, one.size, one.destroyed)
            for one in state.versions
        ]


class Recovery:
    """`valv.cli.operator.Recovery`. `place`: the place of the key backup, or this node's folder in it."""

    def __init__(self, config: Config, place: Path) -> None:
        """Raises `ConflictFault` where the node runs, `MissingFault` where its ledger cannot be read."""
        process = up.running(config)
        if process is not None:
            raise ConflictFault(f"the node in {config.home} runs (process {process})", "stop it first")
        if not place.is_dir():
            raise MissingFault(f"{place} is no folder", "name one of those in keys.backup")
        own = place / config.key_place(".").name
        self._place = own if own.is_dir() else place
        self._config = config
        self.name = config.node.name
        try:
            database = records(config)
            report = database.verify(vkey=recover.log_key(self._place))
            if not report.ok:
                raise IntegrityFault(f"the node's ledger is not the one that was signed: {report.fault}", RESTORE)
            with database.reading() as unit:
                events = unit.events(CUSTODY.stream(STREAM_ID))
                restored = streams.load(unit, BACKUP, backups.STREAM_ID).state
        except IntegrityFault:
            raise
        except Fault as fault:
            raise MissingFault(f"the node's ledger cannot be read: {fault.detail}", RESTORE) from None
        self._database = database
        left = restored.signed if restored else None
        self._left = Checkpoint(left[0], bytes.fromhex(left[1])) if left else None
        state = CUSTODY.fold(events)
        self._known = [record.data for record in events]
        self._keyring = keyd.keyring_of(config)
        needed = not self._keyring.sets_passphrase or state is None or state.persons == 1
        named = config.path(config.keys.passphrase_file) if config.keys.passphrase_file else None
        self._file = named if needed and named and named.is_file() else None
        self.needs_passphrase = needed and self._file is None

    def share(self, officer: str) -> bytes:
        return recover.sealed_share(self._place, officer)

    def recover(self, note: str, shares: list[str], passphrase: bytes) -> str:
        if not passphrase and self._file is not None:
            passphrase = keyd.read_passphrase(self._file)
        path = self._config.path(self._config.keys.path)
        minutes = recover.recover(
            self._place,
            path,
            self._keyring,
            note,
            shares,
            passphrase=passphrase,
            known=self._known,
            now=datetime.now(UTC),
            fits=self._fits,
            left=self._left,
        )
        if os.geteuid() == 0:
            keyd.give(path, self._config.processes.uid_base + 1)
        return minutes

    def _fits(self, signed: Checkpoint) -> bool:
        """Whether the node's ledger continues what was signed."""
        with self._database.reading() as unit:
            return signed.size <= unit.head().size and unit.root(signed.size) == signed.root


def findings(config: Config, node: Node, running: bool) -> Iterator[Finding]:
    """What an operator should know of the custody of the keys: warnings, not faults of the node."""
    with contextlib.suppress(Fault):  # a database or key holder that does not answer is a fault, told elsewhere
        yield from _findings(config, node, running)


def _findings(config: Config, node: Node, running: bool) -> Iterator[Finding]:
    path = config.path(config.keys.path)
    if path.is_dir() and not (path / folder.TAG).exists():
        hint = f"put one there (https://bford.info/cachedir/), and leave {path} out of every backup"
        yield Finding(f"{path} has no CACHEDIR.TAG: ordinary backups may copy the keys", hint)
    with node.records.reading() as unit:
        state = streams.load(unit, CUSTODY, STREAM_ID).state
    if state is None:
        yield Finding("no key ceremony was held: nobody could recover the keys", "valv keys ceremony --help")
    else:
        due = custodies.due(state)
        if state.drill_due(node.clock()):
            yield Finding(f"a key drill was due on {due:%Y-%m-%d}", "hold one with the officers: 'valv keys drill'")
        if state.persons > 1 and config.keys.passphrase_file:
            named = config.path(config.keys.passphrase_file)
            yield Finding(f"{named} opens nothing any more: officers unseal", "remove it and keys.passphrase_file")
    if not config.keys.backup:
        yield Finding("no key backup is configured: a lost disk loses the keys", "set keys.backup to two places")
    elif running and state is not None:
        yield from _behind(node)


def _behind(node: Node) -> Iterator[Finding]:
    status = node.keys.status()
    for place in node.keys.custody().backups if status.open else ():
        if place.fault or place.generation != status.generation:
            why = place.fault or f"it has generation {place.generation} of {status.generation}"
            yield Finding(f"the key backup in {place.path} is behind: {why}", "make the place writable for keyd's user")
