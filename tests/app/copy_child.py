"""A process that takes a worker's steps with copies until it is killed: `copy_child FOLDER`."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from valv.app import copying, placement
from valv.app.node import Node
from valv.assemble.policies import load_policies
from valv.config import Config
from valv.config import Node as About
from valv.config import Storage as Settings
from valv.core import placement as core
from valv.db.database import Database
from valv.ports.storage import Place
from valv.storage.local import LocalStorage
from valv.vault.copies import Copies

NAMES = ("main", "second", "third")
SETTLE = core.SETTLE / 50


def node(folder: Path) -> Node:
    """What the steps with copies need of a node: no key holder, no log-in."""
    stores = {name: LocalStorage(folder / name, Place("SE", "test")) for name in NAMES}
    settings = {name: Settings(path=name, distance=number) for number, name in enumerate(NAMES) if number}
    away: Any = None
    return Node(
        config=Config(About("killed", "SE", "test"), stores=settings, home=str(folder)),
        records=Database(f"sqlite:///{folder / 'valv.sqlite'}"),
        storage=Copies(stores, NAMES),
        stores=stores,
        keys=away,
        policies=load_policies("SE"),
        login=away,
        clock=lambda: datetime.now(UTC),
    )


def hasten() -> None:
    """Little patience, so that many kills fit into a test."""
    core.SETTLE = SETTLE  # type: ignore[misc]
    copying.FIRST_PAUSE = SETTLE  # type: ignore[misc]


if __name__ == "__main__":
    hasten()
    worker = node(Path(sys.argv[1]))
    copying.look(worker)
    print("begun", flush=True)
    while True:
        copying.follow(worker)
        if not copying.turn(worker):
            placement.end_moves(worker)
            time.sleep(0.01)
