"""The files of a backup: which may rest in its place, and bringing them there, each once and held against its roots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from valv.app import streams
from valv.app.node import Node
from valv.app.placement import ITSELF
from valv.app.streams import DATASET
from valv.core.authorize import Context, Resource, authorize
from valv.core.classes import DataClass
from valv.errors import ConflictFault, Fault, IntegrityFault, MissingFault, StorageFault, UnreachableFault
from valv.formats import crypt4gh, seal
from valv.formats.crypt4gh import CIPHER_SEGMENT
from valv.formats.seal import sidecar
from valv.ports.records import Unit
from valv.ports.storage import Storage
from valv.vault.copying import copy_body
from valv.vault.fixity import Sealed

PAGE: Final = 500
KEPT: Final = ["received", "verified"]
"""States of files that have a body and a header."""


@dataclass
class Saved:
    """`bodies`: that lie in the place; `held_back`: that do not, because they may not or need not; `missing`: that no
    store has; `stored`: bytes that came."""

    bodies: int = 0
    held_back: int = 0
    missing: list[str] = field(default_factory=list)
    stored: int = 0


def record_of(row: dict[str, Any]) -> Sealed:
    """What the record says of a body. `row`: of `file` or `release_file`."""
    stored = row.get("cipher_size") or crypt4gh.cipher_size(row["size"])
    return Sealed(
        size=crypt4gh.plain_size(stored), cipher_size=stored, seal_root=row["seal_root"], tree_root=row["tree_root"]
    )


def bodies(unit: Unit) -> Iterator[dict[str, Any]]:
    """The rows of all files that have a body, a page at a time."""
    for table, where in (("file", {"state": KEPT}), ("release_file", {})):
        offset = 0
        while rows := unit.rows(table, where, order="id", offset=offset, limit=PAGE):
            yield from rows
            offset += len(rows)


def whole(store: Storage, name: str, record: Sealed) -> bool:
    """Whether a store has the body and its seal, by their sizes."""
    count = -(-record.cipher_size // CIPHER_SEGMENT)
    try:
        return store.size(name) == record.cipher_size and store.size(sidecar(name)) == seal.sidecar_size(count)
    except MissingFault:
        return False


def bring(stores: list[Storage], target: Storage, name: str, record: Sealed) -> None:
    """Copy a body with its seal into `target`, from the first store whose copy holds. Raises the fault of the last."""
    for each in (name, sidecar(name)):
        target.delete(each)  # one that a crash left alone
    wrong: Fault = MissingFault(f"{name} is in no store")
    for store in stores:
        try:
            copy_body(store, target, name, record)
            return
        except (IntegrityFault, MissingFault, StorageFault, UnreachableFault) as fault:
            if not isinstance(fault, MissingFault):
                wrong = fault
    raise wrong


class Saver:
    """Brings the files of a node into one place."""

    def __init__(
        self, node: Node, place: Storage, *, by_value: bool, progress: Callable[[int, int], None] = lambda _d, _a: None
    ) -> None:
        self._node, self._place, self._by_value, self._progress = node, place, by_value, progress
        self._allowed: dict[tuple[str, int | None], bool] = {}
        self._done = 0
        self._came: dict[str, int] = {}

    def save_all(self) -> None:
        """Bring what there is now. No view of the records is held open meanwhile: this can take hours."""
        if not self._by_value:
            return
        total = 0
        for table, where in (("file", {"state": KEPT}), ("release_file", {})):
            offset = 0
            while rows := self._page(table, where, offset):
                total += sum(record_of(row).cipher_size for row in rows)
                offset += len(rows)
                for row in rows:
                    with self._node.records.reading() as unit:
                        allowed = self.may_rest(unit, row)
                    if allowed:
                        self._save(row)
                    self._done += record_of(row).cipher_size
                    self._progress(self._done, max(total, self._done))

    def _page(self, table: str, where: dict[str, Any], offset: int) -> list[dict[str, Any]]:
        with self._node.records.reading() as unit:
            return unit.rows(table, where, order="id", offset=offset, limit=PAGE)

    def lines(self, unit: Unit, saved: Saved, *, strict: bool) -> Iterator[bytes]:
        """The list of the files that this view names, each brought into the place, or looked for, first. `saved` is
        complete at its end. Raises `ConflictFault` where one is nowhere and `strict`."""
        for row in bodies(unit):
            name, record = row["body"], record_of(row)
            if self._by_value and self.may_rest(unit, row):
                good = whole(self._place, name, record) or self._save(row)
                saved.bodies += good
            else:
                good = whole(self._node.storage, name, record)
                saved.held_back += good
            saved.stored += self._came.pop(name, 0)
            if good:
                here = self._by_value and self.may_rest(unit, row)
                yield f"{'here' if here else 'there'} {name}\n".encode()
            elif strict:
                raise ConflictFault(f"{name} went away while the backup was made")
            else:
                saved.missing.append(name)

    def _save(self, row: dict[str, Any]) -> bool:
        """Whether it is in the place now."""
        name, record = row["body"], record_of(row)
        if whole(self._place, name, record):
            return True
        try:
            bring(list(self._node.each_store().values()), self._place, name, record)
        except (MissingFault, IntegrityFault):
            return False
        self._came[name] = record.cipher_size
        return True

    def may_rest(self, unit: Unit, row: dict[str, Any]) -> bool:
        """As `placement.may_rest`, of the place. Results of runs, and versions that are not published, count as
        identifiable."""
        key = (row.get("dataset", ""), row.get("version"))
        if key not in self._allowed:
            about = self._node.config.node
            country, unit_name = about.country, about.unit
            data_class: DataClass = "identifiable"
            state = streams.load(unit, DATASET, key[0]).state if key[0] else None
            if state is not None:
                country, unit_name = state.country, state.unit
                version = state.version(key[1]) if key[1] is not None else None
                data_class = version.effective if version else data_class
            resource = Resource(kind="data", id=key[0], data_class=data_class, country=country, unit=unit_name)
            at = self._place.place
            context = Context(at.country, unit=at.unit)
            refusal = authorize(self._node.policies, ITSELF, "storage.place", resource, context)
            self._allowed[key] = refusal is None
        return self._allowed[key]
