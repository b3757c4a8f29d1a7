"""A node of several real stores, for tests of placement: `main`, `second` beside it, `abroad`, and `other` of another
unit; and the steps of its worker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from tests.world import DirectReader
from valv.app import copying, placement, reading
from valv.app.node import Node, new_id
from valv.config import Storage as Settings
from valv.formats.seal import sidecar
from valv.ports.storage import Place, Storage
from valv.storage.local import LocalStorage
from valv.vault.copies import Copies

PLACES = {
    "main": Place("SE", "test"),
    "second": Place("SE", "test"),
    "third": Place("SE", "test"),
    "abroad": Place("NO", "test"),
    "other": Place("SE", "another"),
}


@dataclass
class Stores:
    """`node` is the server's, `worker` the worker's; `s` the stage that they are of. `kinds`: other stores in place of
    the real ones, by name."""

    s: Any
    folder: Path
    stores: dict[str, Storage]
    node: Node
    worker: Node
    reader: Any

    def with_store(self, name: str, store: Any, **settings: Any) -> Stores:
        """The same with another store under a name."""
        return make(self.s, self.folder, {**self.stores, name: store}, {name: settings})

    # --- orders ---

    def rule(self, name: str, rule: str, who: str = "carin") -> placement.View:
        return placement.set_rule(self.node, self.s.who(who), name, rule, command=new_id())

    def move(self, name: str, source: str, target: str, who: str = "olle") -> placement.View:
        return placement.move(self.node, self.s.who(who), name, source=source, target=target, command=new_id())

    def show(self, name: str, who: str = "olle") -> placement.View:
        return placement.show(self.node, self.s.who(who), name)

    # --- the worker ---

    def follow(self) -> None:
        while copying.follow(self.worker):
            pass

    def turn(self) -> int:
        return copying.turn(self.worker)

    def settle(self, turns: int = 60) -> None:
        """Work, with time going on, until there is nothing more to do but what must wait for somebody."""
        self.follow()
        for _ in range(turns):
            if not self.turn():
                if not self._waits():
                    break
                self.s.clock.forward(seconds=10)
        placement.end_moves(self.worker)

    def _waits(self) -> bool:
        return any(not row["fault"] for row in self.s.rows("placing"))

    # --- looking ---

    def rows(self, name: str) -> list[dict[str, Any]]:
        return sorted(self.s.rows("file", dataset=self.s.dataset(name).dataset_id), key=lambda row: str(row["path"]))

    def where(self, name: str) -> dict[str, int]:
        """How many whole copies of the dataset each store has: as the records say, and as the stores do."""
        bodies = [row["body"] for row in self.rows(name)]
        copies = self.s.rows("copy", body=bodies)
        assert all(row["state"] == "whole" for row in copies), copies
        said = Counter(row["store"] for row in copies)
        for store, storage in self.stores.items():
            there = set(storage.names())
            assert sum({body, sidecar(body)} <= there for body in bodies) == said[store], store
            assert sum(body in there or sidecar(body) in there for body in bodies) == said[store], store
        return dict(said)

    def read(self, row: dict[str, Any], reader: Any = None) -> bytes:
        return b"".join(reading.plain(self.worker, reader or self.reader, reading.mounted(row, "p")))

    def events(self, name: str) -> list[str]:
        with self.node.records.reading() as unit:
            return [event.tag for event in unit.events(f"storage/{self.s.dataset(name).dataset_id}")]


def make(s: Any, folder: Path, stores: dict[str, Any], settings: dict[str, dict[str, Any]] | None = None) -> Stores:
    given = settings or {}
    config = msgspec.structs.replace(
        s.node.config,
        stores={
            name: Settings(
                path=str(folder / name), distance=distance, country=PLACES[name].country, unit=PLACES[name].unit
            )
            for distance, name in enumerate(stores)
            if name != "main"
        },
    )
    config = msgspec.structs.replace(
        config,
        stores={name: msgspec.structs.replace(one, **given.get(name, {})) for name, one in config.stores.items()},
    )
    copies = Copies(stores, list(stores))
    node = replace(s.node, config=config, storage=copies, stores=stores)
    worker = replace(s.worker, config=config, storage=copies, stores=stores)
    reader = DirectReader(copies, s.reader._keys, s.reader._uid)
    return Stores(s, folder, dict(stores), node, worker, reader)


def stores(s: Any, folder: Path, names: tuple[str, ...] = tuple(PLACES)) -> Stores:
    made: dict[str, Any] = {name: LocalStorage(folder / name, PLACES[name]) for name in names if name != "main"}
    return make(s, folder, {"main": s.world.storage, **made})
