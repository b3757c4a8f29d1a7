"""The worker's part of fixity: reads copies from end to end, and has damaged ones made anew.

Nothing is held while bytes are read: what was found is written down afterwards, where the record still has that body.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import datetime

from valv.app import fixity as scrubs
from valv.app import streams
from valv.app.fixity import Kept
from valv.app.node import Node
from valv.app.repairing import Repairs, Row, as_read, count, online, tidy
from valv.app.streams import FIXITY
from valv.core import fixity
from valv.core.process import NODE
from valv.errors import Fault, MissingFault, UnreachableFault
from valv.ports.records import Unit
from valv.ports.storage import Locality, Storage, Tape
from valv.vault import fixity as vault
from valv.vault.fixity import Spend

log = logging.getLogger("valv.worker")

BATCH = 100
WEIGHT = 1 << 30
"""Copies, and bytes of them, that are read before somebody else's scrub may come first."""

Key = tuple[str, str]
"""Body and store."""


class Scrubber:
    """Takes scrubs further. `spend`: called with the bytes that are about to be read. For one thread of one process.

    What could not be reached (copies `_away`, stores `_down`) is passed over by the scrub; that is remembered in memory
    only, so that after a restart it is tried once more."""

    def __init__(self, node: Node, spend: Spend) -> None:
        self._node = node
        self._spend = spend
        self._away: dict[str, set[Key]] = {}
        self._down: dict[str, set[str]] = {}
        self._repairs = Repairs(node, spend)

    def turn(self) -> int:
        """Begin the node's own scrub where it is time, and take all that go on to their ends. Returns how many copies
        were read. Where one waits for tape, it goes on in the next turn."""
        scrubs.begin(self._node)
        tidy(self._node)
        read = 0
        while (found := self._advance()) is not None:
            read += found
        return read

    def _advance(self) -> int | None:
        """One batch of the first scrub that has one: those that people ordered come first. None: nothing is left."""
        with self._node.records.reading() as unit:
            going = streams.find(unit, FIXITY, phases=("going",), newest_first=False, limit=scrubs.MOST)
        for state in sorted(going, key=lambda one: (one.by == NODE, one.begun)):
            rows = self._next(state)
            if rows:
                return self._read(state, rows)
            if self._waits(state):
                continue
            self._finish(state)
        return None

    # --- which copies ---

    def _next(self, state: fixity.Scrub) -> list[tuple[Row, Kept | None]]:
        """The copies to be read next, the most urgent first."""
        away = self._away.setdefault(state.scrub_id, set())
        down = self._down.setdefault(state.scrub_id, set())
        with self._node.records.reading() as unit:
            found = self._candidates(unit, state, down, BATCH + len(away))
            rows = {(row["body"], row["store"]): row for row in found}
            due = fixity.in_order(map(scrubs.copy, rows.values()), state.begun, state.days)
            chosen: list[Row] = []
            weight = 0
            for one in due:
                key = (one.body, one.store)
                if key in away:
                    continue
                weight += rows[key]["size"]
                if chosen and weight > WEIGHT:
                    break
                chosen.append(rows[key])
                if len(chosen) == BATCH:
                    break
            kept = scrubs.kept(unit, [row["body"] for row in chosen])
        return [(row, kept.get(row["body"])) for row in chosen]

    def _candidates(self, unit: Unit, state: fixity.Scrub, down: set[str], most: int) -> Iterator[Row]:
        """Rows among which the `most` most urgent ones are, without those of stores that are `down`."""
        stores = [one for one in ([state.store] if state.store else self._node.each_store()) if one not in down]
        if state.dataset_id:
            yield from (row for row in scrubs.copies_of(unit, state.dataset_id) if row["store"] in stores)
            return
        for store in stores:
            for kind in fixity.LOOKED_AT:
                where = {"store": store, "state": kind}
                never = unit.count("copy", {**where, "checked": None})
                yield from unit.rows("copy", {**where, "checked": None}, order="since", limit=most)
                # Rows without a time come first in one database and last in the other.
                yield from unit.rows("copy", where, order="checked", limit=most)
                if never:
                    yield from unit.rows("copy", where, order="checked", offset=never, limit=most)

    # --- reading ---

    def _read(self, state: fixity.Scrub, rows: list[tuple[Row, Kept | None]]) -> int:
        whole: list[Row] = []
        down = self._down[state.scrub_id]
        try:
            for row, kept in rows:
                if row["store"] in down:
                    continue
                try:
                    found = self._look(state, row, kept)
                except Fault as fault:  # whether the copy holds is not known: it is due in the next scrub
                    log.warning("body %s in store %s: %s", row["body"], row["store"], fault)
                    found = None
                    if isinstance(fault, UnreachableFault):
                        down.add(row["store"])
                if found is None:
                    self._away[state.scrub_id].add((row["body"], row["store"]))
                elif found:
                    whole.append(row)
        finally:
            self._note(state, whole)
        return len(rows)

    def _look(self, state: fixity.Scrub, row: Row, kept: Kept | None) -> bool | None:
        """Read one copy, and repair it where it does not hold. True: it holds; False: all is written down already;
        None: it cannot be reached."""
        store = self._node.each_store().get(row["store"])
        if store is None or not online(store, row["body"], fetch=state.tape):
            return None
        if kept is None:
            _forget(self._node, store, row)
            return False
        seen = vault.look(store, row["body"], kept.sealed, self._spend)
        if seen.fault is None and row["state"] == "whole":
            return True
        if isinstance(seen.fault, MissingFault) and self._empty(store, row["store"]):
            raise UnreachableFault(f"store {row['store']} has no body at all", "is its medium there?")
        if seen.fault is None:
            self._repairs.good_again(state, row, kept)
        else:
            self._repairs.damaged(state, row, kept, seen.fault)
            self._repairs.repair(state, row, kept, store, seen)
        return False

    def _empty(self, store: Storage, name: str) -> bool:
        """A store that should have several bodies and has none is more likely not mounted than damaged."""
        with self._node.records.reading() as unit:
            several = unit.count("copy", {"store": name, "state": ["whole", "suspect"]}) > 1
        return several and next(iter(store.names()), None) is None

    def _note(self, state: fixity.Scrub, whole: list[Row]) -> None:
        """These copies hold. Where somebody changed one meanwhile, that stands."""
        if not whole:
            return
        at = self._node.clock()
        with self._node.records.writing() as unit:
            unit.update_each("copy", ((as_read(row), {"checked": at, "fault": ""}) for row in whole))
            count(unit, state, len(whole), sum(row["size"] for row in whole))

    # --- the end ---

    def _waits(self, state: fixity.Scrub) -> bool:
        """Whether copies that this scrub asked for come from tape: they are looked at again in the next turn."""
        if not state.tape:
            return False
        stores = self._node.each_store()
        waiting: set[Key] = set()
        for body, name in self._away.get(state.scrub_id, set()):
            store = stores.get(name)
            if isinstance(store, Tape):
                with contextlib.suppress(Fault):
                    if store.locality(body) in (Locality.ONLINE, Locality.NEARLINE):
                        waiting.add((body, name))
        self._away[state.scrub_id] -= waiting
        return bool(waiting)

    def _finish(self, state: fixity.Scrub) -> None:
        def decide(at: datetime, unit: Unit) -> fixity.Commands | None:
            done = scrubs.progress(unit, state)
            unit.delete("setting", {"name": scrubs.tally(state.scrub_id)})
            due, bad = scrubs.due(self._node, unit, state.dataset_id, state.store, state.days, state.begun)
            return fixity.Finish(by=NODE, at=at, unreached=due, left=bad, **done)

        scrubs.record(self._node, state.scrub_id, decide)
        self._away.pop(state.scrub_id, None)
        self._down.pop(state.scrub_id, None)
        self._repairs.ended(state)


def _forget(node: Node, store: Storage, row: Row) -> None:
    """A body that no record has: whoever took it out of the record deletes it. What is gone from the store is forgotten
    here, the rest is passed over."""
    try:
        store.size(row["body"])
        there = True
    except MissingFault:
        there = False
    with node.records.writing() as unit:
        known = any(unit.count(table, {"body": row["body"]}) for table in ("file", "release_file", "stale_body"))
        if there or known:
            unit.update("copy", as_read(row), {"checked": node.clock()})
        else:
            unit.delete("copy", as_read(row))
