"""Making damaged copies anew from whole ones, and telling of those that cannot be.

A damaged copy is removed, because a name is written once, only after another one was read whole in the same repair; a
killed repair leaves at least that other one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from valv.app import fixity as scrubs
from valv.app import outbox, streams
from valv.app.fixity import KEPT, Kept
from valv.app.node import Node
from valv.app.streams import DATASET
from valv.core import fixity
from valv.core.process import NODE
from valv.errors import Fault, IntegrityFault, MissingFault, UnreachableFault
from valv.formats.seal import sidecar
from valv.ports.records import Unit
from valv.ports.storage import Locality, Storage, Tape
from valv.vault import copying
from valv.vault import fixity as vault
from valv.vault.fixity import Seen, Spend

REPAIR = "being made anew"
"""`copy.fault` of a damaged copy (state `bad`) while a repair writes it: whoever destroys the file waits for that."""
Row = dict[str, Any]


class Repairs:
    """What a scrub does with damaged copies. `spend`: called with the bytes that are about to be read."""

    def __init__(self, node: Node, spend: Spend) -> None:
        self._node = node
        self._spend = spend
        self._lost: set[tuple[str, str]] = set()

    def ended(self, state: fixity.Scrub) -> None:
        """The scrub is over: what was said in it is forgotten."""
        self._lost = {one for one in self._lost if one[0] != state.scrub_id}

    def damaged(self, state: fixity.Scrub, row: Row, kept: Kept, fault: Fault) -> None:
        """Write down that the copy does not hold; once, until it was repaired."""

        def decide(at: datetime, unit: Unit) -> fixity.Commands | None:
            values = {"state": "bad", "checked": at, "fault": str(fault.detail)[:500]}
            if not _stands(unit, row, kept) or not unit.update("copy", as_read(row), values):
                return None
            count(unit, state, 1, row["size"])
            if row["state"] == "bad":
                return None
            return fixity.RecordDamage(
                by=NODE, at=at, body=row["body"], file_id=kept.file_id, store=row["store"], fault=_kind(fault)
            )

        scrubs.record(self._node, state.scrub_id, decide)

    def good_again(self, state: fixity.Scrub, row: Row, kept: Kept) -> None:
        """What could not be read before holds now; a copy that was damaged counts as repaired."""

        def decide(at: datetime, unit: Unit) -> fixity.Commands | None:
            if not unit.update("copy", as_read(row), {"state": "whole", "checked": at, "fault": ""}):
                return None
            count(unit, state, 1, row["size"])
            return _repaired(at, row, kept, row["store"]) if row["state"] == "bad" else None

        scrubs.record(self._node, state.scrub_id, decide)

    def repair(self, state: fixity.Scrub, row: Row, kept: Kept, store: Storage, seen: Seen) -> None:
        name, source = row["body"], row["store"]
        if seen.body is not None:
            source, later = self._source(state, row, kept)
            if not source:
                if not later and row["state"] != "bad":
                    self._not_repaired(state, row, kept)
                return
        if not self._begin(row, kept):
            return
        try:
            if seen.body is not None:
                copying.remove_body(store, name)
                copying.copy_body(self._node.each_store()[source], store, name, kept.sealed, self._spend)
            else:
                assert seen.listed is not None
                store.delete(sidecar(name))
                vault.write_sidecar(store, name, seen.listed)
        except Fault as fault:
            self._give_up(row, fault)
            return
        self._end(state, row, kept, store, source)

    def _source(self, state: fixity.Scrub, row: Row, kept: Kept) -> tuple[str, bool]:
        """The store of another copy that was read whole just now, '' for none; and whether there is one that could not
        be reached, and that may hold."""
        later = False
        with self._node.records.reading() as unit:
            others = unit.rows("copy", {"body": row["body"], "state": list(fixity.LOOKED_AT)})
        stores, settings = self._node.each_store(), self._node.config.all_stores
        rank = {"whole": 0, "suspect": 1, "bad": 2}
        known = [one for one in others if one["store"] in stores and one["store"] != row["store"]]
        known.sort(key=lambda one: (rank[one["state"]], settings[one["store"]].tape, settings[one["store"]].distance))
        for other in known:
            try:
                if not online(stores[other["store"]], row["body"], fetch=state.tape):
                    later = True
                    continue
                seen = vault.look(stores[other["store"]], row["body"], kept.sealed, self._spend)
            except UnreachableFault:
                later = True
                continue
            if seen.body is None:
                if seen.sidecar is not None:  # its own body has told what the seal lists
                    self.damaged(state, other, kept, seen.sidecar)
                    self.repair(state, other, kept, stores[other["store"]], seen)
                return other["store"], False
            if other["state"] == "whole":
                self._suspect(other, seen.body)
        return "", later

    def _suspect(self, row: Row, fault: Fault) -> None:
        with self._node.records.writing() as unit:
            unit.update("copy", as_read(row), {"state": "suspect", "fault": str(fault.detail)[:500]})

    def _not_repaired(self, state: fixity.Scrub, row: Row, kept: Kept) -> None:
        """No copy holds: said once in a scrub, to those who can do something about it."""
        if (state.scrub_id, row["body"]) in self._lost:
            return
        self._lost.add((state.scrub_id, row["body"]))

        def decide(at: datetime, unit: Unit) -> fixity.Commands | None:
            if not _stands(unit, row, kept):
                return None
            _mail(unit, at, state, row, kept)
            return fixity.RecordLoss(by=NODE, at=at, body=row["body"], file_id=kept.file_id)

        scrubs.record(self._node, state.scrub_id, decide)

    def _begin(self, row: Row, kept: Kept) -> bool:
        """From here on the copy is being written: whoever deletes the body waits for the end."""
        with self._node.records.writing() as unit:
            where = {"body": row["body"], "store": row["store"], "state": "bad"}
            return _stands(unit, row, kept) and bool(unit.update("copy", where, {"fault": REPAIR}))

    def _give_up(self, row: Row, fault: Fault) -> None:
        with self._node.records.writing() as unit:
            unit.update("copy", _repairing(row), {"fault": str(fault.detail)[:500]})

    def _end(self, state: fixity.Scrub, row: Row, kept: Kept, store: Storage, source: str) -> None:
        gone = False

        def decide(at: datetime, unit: Unit) -> fixity.Commands | None:
            nonlocal gone
            values = {"state": "whole", "checked": at, "fault": ""}
            gone = not (_stands(unit, row, kept) and unit.update("copy", _repairing(row), values))
            return None if gone else _repaired(at, row, kept, source)

        scrubs.record(self._node, state.scrub_id, decide)
        if gone:
            self._remove(store, row)

    def _remove(self, store: Storage, row: Row) -> None:
        """The file, or this copy of it, was given up while it was made anew: what was written goes too."""
        copying.remove_body(store, row["body"])
        with self._node.records.writing() as unit:
            unit.delete("copy", _repairing(row))


def tidy(node: Node) -> int:
    """Repairs that were cut off: what is there is looked at again by the next scrub, and nobody waits for their end.
    Only while no repair goes on. Returns how many."""
    where = {"state": "bad", "fault": REPAIR}
    with node.records.reading() as unit:
        if not unit.count("copy", where):
            return 0
    with node.records.writing() as unit:
        return unit.update("copy", where, {"fault": "its repair was cut off", "checked": None})


def online(store: Storage, name: str, *, fetch: bool) -> bool:
    """Whether a copy can be read now without waiting for tape. `fetch`: have it come where it cannot."""
    if not isinstance(store, Tape):
        return True
    found = store.locality(name)
    if found is Locality.NEARLINE and fetch:
        store.stage([name, sidecar(name)])
    return found in (Locality.ONLINE, Locality.LOST)


def _kind(fault: Fault) -> fixity.Fault:
    if isinstance(fault, MissingFault):
        return "missing"
    return "altered" if isinstance(fault, IntegrityFault) else "unreadable"


def as_read(row: Row) -> dict[str, Any]:
    """The row as it was read: who changed it meanwhile was right."""
    return {"body": row["body"], "store": row["store"], "state": row["state"]}


def _repairing(row: Row) -> dict[str, Any]:
    return {"body": row["body"], "store": row["store"], "state": "bad", "fault": REPAIR}


def _stands(unit: Unit, row: Row, kept: Kept) -> bool:
    """Whether the record has this body still."""
    files = {"id": kept.file_id, "body": row["body"]}
    return bool(unit.count("file", {**files, "state": KEPT}) or unit.count("release_file", files))


def _repaired(at: datetime, row: Row, kept: Kept, source: str) -> fixity.RecordRepair:
    return fixity.RecordRepair(
        by=NODE, at=at, body=row["body"], file_id=kept.file_id, store=row["store"], source=source
    )


def count(unit: Unit, state: fixity.Scrub, copies: int, size: int) -> None:
    now = scrubs.progress(unit, state)
    value = {"copies": now["copies"] + copies, "size": now["size"] + size}
    unit.upsert("setting", {"name": scrubs.tally(state.scrub_id), "value": value})


def _mail(unit: Unit, at: datetime, state: fixity.Scrub, row: Row, kept: Kept) -> None:
    """To the operators, and to the custodian of the dataset."""
    people = {one["id"] for one in unit.rows("account", {"erased": None}) if "operator" in one["roles"]}
    what = "a released output"
    if kept.dataset_id:
        owner = streams.need(unit, DATASET, kept.dataset_id)[0]
        people.add(owner.custodian)
        what = f"a file of dataset {owner.name}"
    for person in sorted(people):
        outbox.mail(
            unit,
            at,
            key=f"fixity:{state.scrub_id}:{row['body']}:{person}",
            account=person,
            subject="A file is damaged and could not be repaired",
            body=f"No copy of {what} (file {kept.file_id}, body {row['body']}) is the one that was stored. Nothing was"
            " overwritten. An operator looks at the page 'Fixity'; if a copy exists elsewhere, it can be put back.",
        )
