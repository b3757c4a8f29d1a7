"""More stores for a world of the doors' tests, and the steps that its worker takes with copies."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from tests.world import DirectReader, World
from valv.app import copying, placement
from valv.app.node import Node
from valv.config import Storage as Settings
from valv.core import placement as core
from valv.ports.storage import Place, Storage
from valv.storage.local import LocalStorage
from valv.vault.copies import Copies


@dataclass
class Worker:
    node: Node
    stores: dict[str, Storage]

    @classmethod
    @contextlib.contextmanager
    def beside(cls, w: World, folder: Path) -> Iterator[Worker]:
        """The world's node gets the stores `second` and `abroad` besides `main`, until the end."""
        places = {"second": Place("SE", "test"), "abroad": Place("NO", "test")}
        stores: dict[str, Storage] = {"main": w.storage}
        stores |= {name: LocalStorage(folder / name, place) for name, place in places.items()}
        settings = {
            name: Settings(path=str(folder / name), country=place.country, unit=place.unit, distance=distance)
            for distance, (name, place) in enumerate(places.items(), 1)
        }
        more: dict[str, Any] = {
            "config": msgspec.structs.replace(w.config, stores=settings),
            "storage": Copies(stores, list(stores)),
            "stores": stores,
        }
        before = (w.node, w.worker, w.reader, w.app.state.node, core.SETTLE)
        w.node, w.worker = replace(w.node, **more), replace(w.worker, **more)
        w.reader = DirectReader(w.node.storage, w.reader._keys, w.reader._uid)
        w.app.state.node = w.node
        core.SETTLE = core.SETTLE / 50  # type: ignore[misc]
        try:
            yield cls(w.worker, stores)
        finally:
            w.node, w.worker, w.reader, w.app.state.node, core.SETTLE = before  # type: ignore[misc]

    def step(self) -> int:
        copying.look(self.node)
        copying.follow(self.node)
        done = copying.turn(self.node)
        placement.end_moves(self.node)
        return done

    def settle(self) -> None:
        """Until nothing is left to do but what waits for somebody."""
        end = time.monotonic() + 60
        while self.step() or self._left():
            assert time.monotonic() < end
            time.sleep(0.02)

    def _left(self) -> bool:
        with self.node.records.reading() as unit:
            return any(not row["fault"] for row in unit.rows("placing"))

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """It goes on while the block runs."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.05):
                self.step()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)
