"""The stores as a confined process has them: folders it reads itself, all others through the worker, which alone has
their credentials and a network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from valv.assemble.confine import Users
from valv.assemble.sockets import BODIES
from valv.compute.bodies import Client
from valv.compute.bodies_server import Served
from valv.config import MAIN, Config
from valv.config import Storage as Settings
from valv.ports.storage import Place, Storage
from valv.storage.local import LocalStorage
from valv.vault.copies import Copies

LOCAL: Final = "local"


def confined(config: Config) -> Copies:
    """What a mount, a reader or who encrypts files anew reads from and writes to."""
    client = Client(config.runtime / BODIES, worker_uid(config))
    found: dict[str, Storage] = {}
    for name, settings in config.all_stores.items():
        stands = place(config, settings)
        if settings.backend == LOCAL:
            found[name] = LocalStorage(config.path(settings.path), stands)
        else:
            found[name] = client.store(name, stands)
    return Copies(found, nearest(config), client.suspect)


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
