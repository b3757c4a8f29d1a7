"""A stage whose files lie in two real stores, and ways to damage what lies there."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from tests.app.conftest import Stage
from tests.world import World
from valv.app import fixity
from valv.app.scrubbing import Scrubber
from valv.config import Storage as Settings
from valv.ports.storage import Place, Storage
from valv.storage.local import LocalStorage
from valv.vault import copying
from valv.vault.copies import Copies

SECOND = "second"


def lies(folder: Path, name: str) -> Path:
    """Where a local store in `folder` keeps a body."""
    return folder / "bodies" / hashlib.sha256(name.encode()).hexdigest()[:2] / name


class TwoStores(Stage):
    def __init__(self, made: World, second: Storage | None = None) -> None:
        super().__init__(made)
        self.folders = {"main": made.folder / "store", SECOND: made.folder / SECOND}
        self.stores: dict[str, Storage] = {
            "main": made.storage,
            SECOND: second or LocalStorage(self.folders[SECOND], Place("SE", "another")),
        }
        config = msgspec.structs.replace(made.config, stores={SECOND: Settings(path=SECOND, distance=1)})
        storage = Copies(self.stores, list(self.stores))
        more: dict[str, Any] = {"config": config, "storage": storage, "stores": self.stores}
        self.node, self.worker = replace(self.node, **more), replace(self.worker, **more)
        self.spent = 0
        self.scrubber = Scrubber(self.worker, self.spend)

    def spend(self, count: int) -> None:
        self.spent += count

    def two_copies(self, contents: dict[str, bytes]) -> tuple[str, list[dict[str, Any]]]:
        """A dataset of which each file has a copy in both stores; its name, and the rows of its files by path."""
        name = self.fresh()
        self.publish(name, contents)
        fixity.enrol(self.worker)
        rows = sorted(self.rows("file", dataset=self.dataset(name).dataset_id), key=lambda row: str(row["path"]))
        for row in rows:
            self.copy(row)
        return name, rows

    def copy(self, row: dict[str, Any]) -> None:
        with self.node.records.reading() as unit:
            record = fixity.kept(unit, [row["body"]])[row["body"]].sealed
        copying.copy_body(self.stores["main"], self.stores[SECOND], row["body"], record)
        kept = {"body": row["body"], "store": SECOND, "state": "whole", "size": row["cipher_size"]}
        with self.node.records.writing() as unit:
            unit.insert("copy", [kept | {"since": self.clock.now, "checked": None, "fault": ""}])

    def path(self, store: str, name: str) -> Path:
        return lies(self.folders[store], name)

    def bytes_of(self, row: dict[str, Any]) -> dict[tuple[str, str], bytes | None]:
        """(store, name) → the stored bytes of a file's copies, None where there are none."""
        names = (row["body"], f"{row['body']}.seal")
        found = {(store, name): self.path(store, name) for store in self.stores for name in names}
        return {key: path.read_bytes() if path.exists() else None for key, path in found.items()}

    def state(self, row: dict[str, Any], store: str) -> str:  # type: ignore[override]
        return str(self.rows("copy", body=row["body"], store=store)[0]["state"])

    def scrub(self, name: str = "", **more: Any) -> fixity.View:
        """An operator's scrub, to its end."""
        self.clock.forward(seconds=1)
        ident = fixity.run(self.node, self.who("olle"), name, every=True, command=self.fresh(), **more)
        self.clock.forward(seconds=1)
        self.scrubber.turn()
        return fixity.show(self.node, self.who("olle"), ident)

    def events(self, scrub_id: str) -> list[tuple[str, dict[str, Any]]]:
        with self.node.records.reading() as unit:
            return [(one.tag, msgspec.json.decode(one.data)) for one in unit.events(f"fixity/{scrub_id}")]
