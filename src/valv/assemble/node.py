"""Joins configuration and backends into what the use cases need."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from valv.app.node import Node
from valv.assemble.backend import backend
from valv.assemble.policies import load_policies
from valv.config import Config
from valv.ports.compute import Compute, Reader
from valv.ports.storage import Place, Storage


def storage(config: Config) -> Storage:
    place = Place(config.node.country, config.node.unit)
    made: Storage = backend("storage", config.storage.backend)(config.path(config.storage.path), place)
    return made


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

    store = storage(config)
    launcher = LauncherClient(config.runtime / "launcher.sock")
    password = str(config.path(config.database.password_file)) if config.database.password_file else ""
    node = Node(
        config=config,
        records=Database(config.database_url, password),
        storage=store,
        keys=KeydClient(config.runtime / "keyd.sock"),
        policies=load_policies(config.node.country, config.policy.overlays),
        login=backend("login", config.login.backend)(),
        clock=lambda: datetime.now(UTC),
    )
    compute: Compute = backend("compute", config.compute.backend)(launcher, store)
    return Parts(node, compute, SandboxReader(launcher))
