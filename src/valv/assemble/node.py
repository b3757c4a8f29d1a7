"""Joins configuration and backends into what the use cases need."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from valv.app.node import Node
from valv.assemble.backend import backend
from valv.assemble.policies import load_policies
from valv.config import Config
from valv.ports.compute import Compute, Reader
from valv.ports.storage import Place, Storage
from valv.vault.copies import Copies


def stores(config: Config) -> dict[str, Storage]:
    """Every store of the node by its name, `main` first. Nothing is opened before its first use."""
    made = {}
    for name, settings in config.all_stores.items():
        place = Place(settings.country or config.node.country, settings.unit or config.node.unit)
        made[name] = backend("storage", settings.backend)(settings, Path(config.home), place)
    return made


def nearest(config: Config) -> list[str]:
    """The names of the stores in the order in which a body is looked for."""
    known = config.all_stores
    return sorted(known, key=lambda name: (known[name].tape, known[name].distance))


@dataclass(frozen=True, slots=True)
class Parts:
    """A node's parts as its server and worker hold them."""

    node: Node
    compute: Compute
    reader: Reader


def build(config: Config) -> Parts:
    """Everything that the use cases need, for one process. Nothing is opened before its first use."""
    from valv.compute.client import LauncherClient
    from valv.compute.sandbox import SandboxReader
    from valv.db.database import Database
    from valv.keys.client import KeydClient

    places = stores(config)
    store = Copies(places, nearest(config))
    launcher = LauncherClient(config.runtime / "launcher.sock")
    password = str(config.path(config.database.password_file)) if config.database.password_file else ""
    node = Node(
        config=config,
        records=Database(config.database_url, password),
        storage=store,
        stores=places,
        keys=KeydClient(config.runtime / "keyd.sock"),
        policies=load_policies(config.node.country, config.policy.overlays),
        login=backend("login", config.login.backend)(),
        clock=lambda: datetime.now(UTC),
    )
    compute: Compute = backend("compute", config.compute.backend)(launcher, store)
    return Parts(node, compute, SandboxReader(launcher))
