"""Joins configuration and backends into what the use cases need."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from valv.app.node import Node
from valv.app.restoring import Closed
from valv.app.suspect import Suspicions
from valv.assemble.backend import backend
from valv.assemble.bodies import nearest, place
from valv.assemble.policies import load_policies
from valv.config import MAIN, BackupPlace, Config
from valv.errors import StorageFault
from valv.ports.compute import Compute, Reader
from valv.ports.storage import Storage
from valv.vault.copies import Copies
from valv.vault.late import LateStorage


def stores(config: Config) -> dict[str, Storage]:
    """Every store of the node by its name, `main` first. Nothing is opened before its first use but folders: where one
    of these cannot be, its store is away, and the node goes on with the others."""
    made: dict[str, Storage] = {}
    for name, settings in config.all_stores.items():
        stands = place(config, settings)
        connect: Callable[[], Storage] = functools.partial(
            backend("storage", settings.backend), settings, Path(config.home), stands
        )
        try:
            made[name] = connect()
        except StorageFault:
            if name == MAIN:
                raise
            made[name] = LateStorage(connect, stands)
    return made


def places(config: Config) -> dict[str, Storage]:
    """The places of backups by name, those that are there: a folder that is away is not made anew elsewhere. Nor is a
    place there for a process that does not see its credentials: of the node's processes only the worker does."""
    made = {}
    for name in config.backup.places:
        settings = config.backup_place(name)
        if settings.credentials and not config.path(settings.credentials).is_file():
            continue
        if settings.backend != "local" or Path(settings.path).is_dir():
            made[name] = place_for_backups(config, settings)
    return made


def place_for_backups(config: Config, settings: BackupPlace) -> Storage:
    made: Storage = backend("storage", settings.backend)(settings, Path(config.home), place(config, settings))
    return made


@dataclass(frozen=True, slots=True)
class Parts:
    """A node's parts as its server and worker hold them."""

    node: Node
    compute: Compute
    reader: Reader
    suspicions: Suspicions


def build(config: Config) -> Parts:
    """Everything that the use cases need, for one process. Nothing is opened before its first use."""
    from valv.compute.client import LauncherClient
    from valv.compute.sandbox import SandboxReader
    from valv.db.database import Database
    from valv.keys.client import KeydClient

    every = stores(config)
    launcher = LauncherClient(config.runtime / "launcher.sock")
    password = str(config.path(config.database.password_file)) if config.database.password_file else ""
    records = Database(config.database_url, password)
    suspicions = Suspicions(records)
    store = Copies(every, nearest(config), suspicions.told)
    node = Node(
        config=config,
        records=records,
        storage=store,
        stores=every,
        keys=KeydClient(config.runtime / "keyd.sock"),
        policies=load_policies(config.node.country, config.policy.overlays),
        login=backend("login", config.login.backend)(),
        clock=lambda: datetime.now(UTC),
        places=places(config),
        closed=Closed(records),
    )
    compute: Compute = backend("compute", config.compute.backend)(launcher, store)
    return Parts(node, compute, SandboxReader(launcher), suspicions)
