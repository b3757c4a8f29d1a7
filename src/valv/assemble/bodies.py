"""The stores as a confined process has them: folders it reads itself, all others through the worker, which alone has
their credentials and a network."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from valv.assemble.confine import Users, is_there
from valv.assemble.sockets import BODIES
from valv.compute.bodies import Client
from valv.compute.bodies_server import Served
from valv.config import MAIN, Config
from valv.config import Storage as Settings
from valv.errors import UnreachableFault
from valv.ports.storage import Place, Storage
from valv.storage.local import LocalStorage
from valv.vault.copies import Copies
from valv.vault.late import LateStorage

LOCAL: Final = "local"


def confined(config: Config) -> Copies:
    """What a mount, a reader or who encrypts files anew reads from and writes to. A folder that is not there, or cannot
    be opened, is a store that is away: the other copies are read."""
    client = Client(config.runtime / BODIES, worker_uid(config))
    found: dict[str, Storage] = {}
    for name, settings in config.all_stores.items():
        stands = place(config, settings)
        if settings.backend == LOCAL:
            connect = functools.partial(folder, config.path(settings.path), stands)
            found[name] = LateStorage(connect, stands)
        else:
            found[name] = client.store(name, stands)
    return Copies(found, nearest(config), client.suspect)


def folder(path: Path, stands: Place) -> LocalStorage:
    """A store that was made before. Who is confined makes none: in an empty one every copy would seem to be lost."""
    if not is_there(path / "bodies"):
        raise UnreachableFault("the folder of a store is not there")
    return LocalStorage(path, stands)


def served(config: Config, stores: Mapping[str, Storage]) -> Served:
    """What the worker reads and writes for those who are confined, and who they are."""
    base = config.processes.uid_base
    shared_out = base < os.geteuid() < base + 1000
    users = Users.shared(config) if shared_out else Users.of(config)
    return Served(
        stores={name: store for name, store in stores.items() if config.all_stores[name].backend != LOCAL},
        written=MAIN,
        known=frozenset(stores),
        mounts=frozenset(slot.mount_uid for slot in users.slots),
        readers=frozenset(users.readers),
    )


def nearest(config: Config) -> list[str]:
    """The names of the stores in the order in which a body is looked for."""
    known = config.all_stores
    return sorted(known, key=lambda name: (known[name].tape, known[name].distance))


def place(config: Config, settings: Settings) -> Place:
    return Place(settings.country or config.node.country, settings.unit or config.node.unit)


def worker_uid(config: Config) -> int:
    """Who must be at the other end of the worker's sockets."""
    own, base = os.geteuid(), config.processes.uid_base
    return base + 3 if base < own < base + 1000 else own
