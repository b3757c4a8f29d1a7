"""A process that scrubs two stores until it is killed, or until all is read: `scrub_child FOLDER SLOWNESS`."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from valv.app import fixity as scrubs
from valv.app import streams
from valv.app.node import Node, new_id
from valv.app.scrubbing import Scrubber
from valv.app.streams import FIXITY, Step
from valv.config import Config
from valv.config import Node as About
from valv.config import Storage as Settings
from valv.core import fixity
from valv.core.process import NODE
from valv.db.database import Database
from valv.ports.storage import Place
from valv.storage.local import LocalStorage
from valv.vault.copies import Copies


def node(folder: Path) -> Node:
    """What a scrub needs of a node: no key holder, no log-in, no policies."""
    stores = {name: LocalStorage(folder / name, Place("SE", "test")) for name in ("main", "second")}
    away: Any = None
    return Node(
        config=Config(About("killed", "SE", "test"), stores={"second": Settings(path="second")}, home=str(folder)),
        records=Database(f"sqlite:///{folder / 'valv.sqlite'}"),
        storage=Copies(stores, list(stores)),
        stores=stores,
        keys=away,
        policies=away,
        login=away,
        clock=lambda: datetime.now(UTC),
    )


def begin(made: Node) -> None:
    """A scrub of everything, unless one goes on."""
    with made.records.writing() as unit:
        if not streams.find(unit, FIXITY, phases=("going",)):
            at = made.clock()
            order = fixity.Begin(by=NODE, at=at, scrub_id=new_id(), days=0, expected=1)
            step = Step(FIXITY, order.scrub_id, 0, None, fixity.decide(None, order, fixity.Facts()))
            streams.commit(unit, [step], by=NODE, at=at, command=new_id())


if __name__ == "__main__":
    worker = node(Path(sys.argv[1]))
    scrubs.enrol(worker)
    begin(worker)
    print("begun", flush=True)
    Scrubber(worker, lambda count: time.sleep(float(sys.argv[2]) * count / 1e6)).turn()
