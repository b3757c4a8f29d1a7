"""The node's own steps with copies: learn of new bodies, make and drop copies as the rules want, look at the stores.

What is to be done for a body is written down before it is done (`coming`, `going`), and what was done after it. So a
step that was cut off anywhere is found again: what comes is deleted and made anew, what goes is deleted once more. A
body that waits in `placing` is looked at again and again, until the plan for it is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from valv.app import placement as placements
from valv.app import streams
from valv.app.node import Node
from valv.app.streams import STORAGE
from valv.config import MAIN
from valv.core import dataset, placement, release, rotation
from valv.core.placement import Copy, Drop, Make, Plan, StoreFacts
from valv.core.process import tag
from valv.errors import Fault, IntegrityFault, MissingFault
from valv.formats.crypt4gh import cipher_size
from valv.formats.seal import sidecar, sidecar_size
from valv.ports.records import Recorded, Unit
from valv.vault import copying
from valv.vault.fixity import Sealed

SEEN: Final = "placement.seen"
"""The row of `setting` that holds the position up to which the ledger was followed."""
STORES: Final = "placement.stores"
"""The same for the stores as they were when all bodies were last placed."""
COLD: Final = "placement.cold"
"""The same for the dataset versions that are for tapes now."""
EVENTS: Final = 500
LOOKED_AT: Final = 1000
"""Bodies that are planned for in one turn."""
BATCH: Final = 64
SIZE: Final = 256 << 20
"""Copies that are made or dropped in one turn, and bytes of them; a larger file has a turn for itself."""
HANDS: Final = 4
"""Copies that are made at once."""
FIRST_PAUSE: Final = timedelta(seconds=5)
LONGEST_PAUSE: Final = timedelta(hours=1)
TAPE_PAUSE: Final = timedelta(seconds=30)
MEASURED: Final = timedelta(minutes=10)
"""How often a store is asked how much room it has left."""
SWEPT: Final = timedelta(hours=1)
"""How often what killed writers left in a store is looked for."""
PROBE: Final = "valv-probe"
"""A name that no body has: a store that answers says so."""


# --- what there is to do ---


def follow(node: Node) -> int:
    """Learn from the ledger which bodies are new, and which may have to lie elsewhere. Returns how many events were
    read."""
    with node.records.reading() as unit:
        position = _setting(unit, SEEN, -1)
        if not unit.follow(position, 1):
            return 0
    with node.records.writing() as unit:
        position = _setting(unit, SEEN, -1)
        events = unit.follow(position, EVENTS)
        for event in events:
            _heed(node, unit, event)
        if events:
            unit.upsert("setting", {"name": SEEN, "value": events[-1].position})
    return len(events)


_ADDED, _ASSESSED, _NARROWED = tag(dataset.VersionAdded), tag(dataset.Assessed), tag(dataset.Narrowed)
_REPLACED, _SEALED = tag(rotation.BodyReplaced), tag(release.Sealed)


def _heed(node: Node, unit: Unit, event: Recorded) -> None:
    ident, at = event.stream.partition("/")[2], node.clock()
    if event.tag in (_ADDED, _ASSESSED, _NARROWED):
        data = msgspec.json.decode(event.data)
        version = data["number"] if event.tag == _ADDED else data["version"]
        _learn(node, unit, "file", {"dataset": ident, "version": version}, at, again=event.tag != _ADDED)
    elif event.tag == _REPLACED:
        _learn(node, unit, "file", {"id": msgspec.json.decode(event.data)["file_id"]}, at)
    elif event.tag == _SEALED:
        _learn(node, unit, "release_file", {"release": ident}, at)


def _learn(node: Node, unit: Unit, table: str, where: dict[str, Any], at: datetime, *, again: bool = False) -> None:
    """New bodies lie in `main`. Where nothing is to be done for such a one, or there is one store only, they are done
    with at once; `again`: they may lie elsewhere."""
    unit.enrol(table, where, MAIN, at)
    rows = unit.rows(table, where, limit=1)
    if not rows:
        return
    if not again:
        facts = placements.facts_of(node, unit, rows[0].get("dataset", ""), rows[0].get("version"), at)
        stores = placements.store_facts(node, placements.health(unit), facts.allowed)
        fresh = placement.plan(facts.rule, facts.used, stores, {MAIN: Copy("whole", at)}, at)
        if fresh == Plan(()) and _only_in_main(unit, rows[0]["body"]):
            return
    unit.queue_bodies(table, where, at)


def _only_in_main(unit: Unit, body: str) -> bool:
    return [row["store"] for row in unit.rows("copy", {"body": body})] == [MAIN]


def chill(node: Node) -> int:
    """Queue the versions that have become old enough for tapes, and those that were used again. Returns how many."""
    at = node.clock()
    with node.records.reading() as unit:
        before = set(_setting(unit, COLD, []))
        now = {
            f"{state.dataset_id}:{number}"
            for state in streams.find(unit, STORAGE, limit=placements.MOST)
            for number in _cold_versions(unit, state.dataset_id, at)
        }
    if now == before:
        return 0
    with node.records.writing() as unit:
        for ident, _, number in (one.partition(":") for one in now ^ before):
            unit.queue_bodies("file", {"dataset": ident, "version": int(number)}, at)
        unit.upsert("setting", {"name": COLD, "value": sorted(now)})
    return len(now ^ before)


def _cold_versions(unit: Unit, dataset_id: str, at: datetime) -> list[int]:
    rule = placements.rule_of(unit, dataset_id)
    if rule.tape_after is None:
        return []
    state, _ = streams.need(unit, streams.DATASET, dataset_id)
    numbers = [version.number for version in state.versions if not version.destroyed]
    return [
        number for number in numbers if placement.cold(rule, placements.last_used(unit, dataset_id, number, at), at)
    ]


def look(node: Node) -> None:
    """See how each store is; where the stores are not those of the last time, place everything anew."""
    at = node.clock()
    with node.records.reading() as unit:
        before, known = placements.health(unit), _setting(unit, STORES, None)
    now = {name: _see(node, name, before.get(name, {}), at) for name in node.each_store()}
    kinds = [msgspec.to_builtins(one) for one in placements.store_facts(node, {}, frozenset())]
    back = {name for name, seen in now.items() if before.get(name, {}).get("fault") and not seen["fault"]}
    with node.records.writing() as unit:
        unit.upsert("setting", {"name": placements.HEALTH, "value": now})
        if kinds != known:
            unit.upsert("setting", {"name": STORES, "value": kinds})
        if (known is not None and kinds != known) or (known is None and len(kinds) > 1):
            for table in ("file", "release_file"):
                unit.enrol(table, {}, MAIN, at)
                unit.queue_bodies(table, {}, at)
        elif back:  # what waited for them need not wait longer
            for reason in unit.placing_faults():
                unit.update("placing", {"fault": reason["fault"]}, {"due": at})


def _see(node: Node, name: str, before: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    store = node.each_store()[name]
    free, measured, swept = before.get("free"), before.get("measured"), before.get("swept")
    try:
        with suppress(MissingFault):
            store.size(PROBE)
        if not measured or datetime.fromisoformat(measured) + MEASURED <= at:
            free, measured = store.usage().free, at.isoformat()
        if not swept or datetime.fromisoformat(swept) + SWEPT <= at:
            store.sweep()
            swept = at.isoformat()
        fault = ""
    except Fault as found:
        fault = (found.detail or found.row.title)[:500]
    return {"fault": fault, "at": at.isoformat(), "free": free, "measured": measured, "swept": swept}


def _setting(unit: Unit, name: str, default: Any) -> Any:
    rows = unit.rows("setting", {"name": name})
    return rows[0]["value"] if rows else default


# --- doing it ---


class Work(msgspec.Struct, frozen=True):
    """One step for one body, as it was written down."""

    body: str
    step: Make | Drop
    record: Sealed
    tries: int


class Outcome(msgspec.Struct, frozen=True):
    """`fault`: why it was not done; `damaged`: because the copy that was read does not hold; `tape`: it was asked for,
    and comes later; `kept`: nothing was dropped, as no other copy is whole any more."""

    work: Work
    fault: Fault | None = None
    damaged: bool = False
    tape: bool = False
    kept: bool = False


def turn(node: Node) -> int:
    """Look at the bodies that are due, and take the next steps for some of them. Returns how many were looked at or
    changed: 0 where nothing is due."""
    at = node.clock()
    with node.records.reading() as unit:
        if not unit.due_bodies(at, 1):
            return 0
    with node.records.writing() as unit:
        looked_at, works = _Claim(node, unit, at).take(unit.due_bodies(at, LOOKED_AT))
    kept = _last_ones(node, works)
    works = [work for work in works if work not in kept]
    outcomes = [Outcome(work, kept=True) for work in kept]
    if len(works) > 1:
        with ThreadPoolExecutor(HANDS, "copy") as hands:
            outcomes += hands.map(lambda work: _do(node, work), works)
    else:
        outcomes += [_do(node, work) for work in works]
    with node.records.writing() as unit:
        unknown = [outcome.work for outcome in outcomes if not _record(unit, outcome, node.clock())]
    for work in unknown:  # the body was deleted meanwhile
        copying.remove_body(node.each_store()[work.step.store], work.body)
    return looked_at


def _last_ones(node: Node, works: Sequence[Work]) -> list[Work]:
    """Drops of bodies of which no copy is whole any more. A read of another copy may have failed while the drop was
    written down, or since a step that was cut off."""
    drops = [work for work in works if isinstance(work.step, Drop)]
    if not drops:
        return []
    with node.records.reading() as unit:
        rows = unit.rows("copy", {"body": [work.body for work in drops], "state": "whole"})
    whole = {row["body"] for row in rows}
    return [work for work in drops if work.body not in whole]


class _Claim:
    """The choice of a turn's work, in one transaction that writes it down."""

    def __init__(self, node: Node, unit: Unit, at: datetime) -> None:
        self._node, self._unit, self._at = node, unit, at
        self._facts: dict[tuple[str, int | None], placements.Facts] = {}
        self._stores: dict[frozenset[str], list[StoreFacts]] = {}
        self._health = placements.health(unit)
        self._room = self._rooms()
        self._copies: dict[str, dict[str, Copy]] = {}
        self._done: list[str] = []
        self._later: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._works: list[Work] = []

    def take(self, due: Sequence[dict[str, Any]]) -> tuple[int, list[Work]]:
        files = self._files(due)
        for copy in self._unit.rows("copy", {"body": [row["body"] for row in due]}):
            self._copies.setdefault(copy["body"], {})[copy["store"]] = Copy(copy["state"], copy["since"])
        size, looked_at = 0, 0
        for row in due:
            file = files.get((row["source"], row["file"]))
            looked_at += 1
            if file is None or file["body"] != row["body"]:
                self._done.append(row["body"])
                continue
            record = _record_of(file)
            works = self._plan(row, file, record)
            size += sum(record.cipher_size for work in works if isinstance(work.step, Make))
            self._works += works
            if size >= SIZE or len(self._works) >= BATCH:
                break
        self._write()
        return looked_at, self._works

    def _files(self, due: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        found = {}
        for table in ("file", "release_file"):
            wanted = [row["file"] for row in due if row["source"] == table]
            for file in self._unit.rows(table, {"id": wanted}) if wanted else ():
                if file.get("state", "verified") == "verified":
                    found[table, file["id"]] = file
        return found

    def _plan(self, row: dict[str, Any], file: dict[str, Any], record: Sealed) -> list[Work]:
        facts = self._facts_of(file.get("dataset", ""), file.get("version"))
        body, tries = row["body"], row["tries"]
        size = record.cipher_size + sidecar_size(-(-record.cipher_size // 65564))
        stores = [
            msgspec.structs.replace(store, room=self._room.get(store.name, size) >= size)
            for store in self._stores_of(facts.allowed)
        ]
        plan = placement.plan(facts.rule, facts.used, stores, self._copies.get(body, {}), self._at)
        if plan.steps:
            for step in plan.steps:
                if isinstance(step, Make) and step.store in self._room:
                    self._room[step.store] -= size
            if plan.lacks:
                self._wait(body, tries, plan.lacks, self._at)
            return [Work(body, step, record, tries) for step in plan.steps]
        if plan.wait is not None:
            self._wait(body, tries, plan.lacks, plan.wait)
        elif plan.lacks:
            self._wait(body, tries + 1, plan.lacks, self._at + _pause(tries))
        else:
            self._done.append(body)
        return []

    def _wait(self, body: str, tries: int, fault: str, due: datetime) -> None:
        self._later.append(({"body": body}, {"tries": tries, "fault": fault, "due": due}))

    def _facts_of(self, dataset_id: str, version: int | None) -> placements.Facts:
        key = (dataset_id, version)
        if key not in self._facts:
            self._facts[key] = placements.facts_of(self._node, self._unit, dataset_id, version, self._at)
        return self._facts[key]

    def _stores_of(self, allowed: frozenset[str]) -> list[StoreFacts]:
        if allowed not in self._stores:
            self._stores[allowed] = placements.store_facts(self._node, self._health, allowed)
        return self._stores[allowed]

    def _rooms(self) -> dict[str, int]:
        """Bytes that may still be put into each store that has a bound."""
        settings = self._node.config.all_stores
        quotas = {name: settings[name].quota for name in self._node.each_store() if name in settings}
        found = {name: int(seen["free"]) for name, seen in self._health.items() if seen.get("free") is not None}
        if any(quotas.values()):
            used: dict[str, int] = {}
            for row in self._unit.copy_totals():
                used[row["store"]] = used.get(row["store"], 0) + row["bytes"]
            for name, quota in quotas.items():
                if quota:
                    left = quota - used.get(name, 0)
                    found[name] = min(found.get(name, left), left)
        return found

    def _write(self) -> None:
        unit = self._unit
        coming = [work for work in self._works if isinstance(work.step, Make)]
        again = [work for work in coming if work.step.store in self._copies.get(work.body, {})]
        unit.insert("copy", [_coming(work, self._at) for work in coming if work not in again])
        for work in again:
            unit.update("copy", _of(work), {"state": "coming", "since": self._at})
        going = [work for work in self._works if isinstance(work.step, Drop)]
        unit.update_each("copy", ((_of(work), {"state": "going", "since": self._at}) for work in going))
        for start in range(0, len(self._done), 500):
            unit.delete("placing", {"body": self._done[start : start + 500]})
        unit.update_each("placing", self._later)


def _coming(work: Work, at: datetime) -> dict[str, Any]:
    size = work.record.cipher_size
    return {"body": work.body, "store": work.step.store, "state": "coming", "size": size, "since": at}


def _of(work: Work) -> dict[str, Any]:
    return {"body": work.body, "store": work.step.store}


def _record_of(file: dict[str, Any]) -> Sealed:
    stored = file["cipher_size"] if "cipher_size" in file else cipher_size(file["size"])
    return Sealed(size=file["size"], cipher_size=stored, seal_root=file["seal_root"], tree_root=file["tree_root"])


def _pause(tries: int) -> timedelta:
    return min(FIRST_PAUSE * (1 << min(tries, 20)), LONGEST_PAUSE)


def _do(node: Node, work: Work) -> Outcome:
    stores, step = node.each_store(), work.step
    try:
        target = stores[step.store]
        copying.remove_body(target, work.body)
        if isinstance(step, Make):
            source = stores[step.source]
            if not copying.staged(source, work.body):
                return Outcome(work, tape=True)
            copying.copy_body(source, target, work.body, work.record)
    except (IntegrityFault, MissingFault) as fault:
        return Outcome(work, fault, damaged=isinstance(step, Make))
    except Fault as fault:
        return Outcome(work, fault)
    return Outcome(work)


def _record(unit: Unit, outcome: Outcome, at: datetime) -> bool:
    """Write down how a step ended. Returns False where nobody knows of the copy any more, which must then go."""
    work, step = outcome.work, outcome.work.step
    row = {"body": work.body}
    if outcome.kept:
        unit.update("copy", _of(work) | {"state": "going"}, {"state": "suspect"})
        return True
    if outcome.tape:
        assert isinstance(step, Make)
        unit.update("placing", row, {"due": at + TAPE_PAUSE, "fault": f"it comes from tape in {step.source}"})
        return True
    if outcome.fault is not None:
        unit.update("copy", _of(work), {"fault": str(outcome.fault)[:1000]})
        said = f"{step.store}: {outcome.fault.row.title.lower()}"
        if outcome.damaged:
            assert isinstance(step, Make)
            said = f"{step.source}: the copy does not hold"
            seen = {"state": "suspect", "fault": str(outcome.fault)[:1000]}
            unit.update("copy", row | {"store": step.source, "state": "whole"}, seen)
        later = {"due": at + _pause(work.tries), "tries": work.tries + 1, "fault": said}
        unit.update("placing", row, later)
        return True
    if isinstance(step, Drop):
        unit.delete("copy", _of(work) | {"state": "going"})
        return True
    made = {"state": "whole", "since": at, "checked": None, "fault": ""}
    return bool(unit.update("copy", _of(work) | {"state": "coming"}, made))


# --- what is left behind ---


def forget(unit: Unit, bodies: Iterable[str]) -> None:
    """Of these bodies nothing is in any store any more."""
    wanted = list(bodies)
    for start in range(0, len(wanted), 500):
        part = {"body": wanted[start : start + 500]}
        unit.delete("placing", part)
        unit.delete("copy", part)


def stray(node: Node) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Copies that the records and a store tell differently of: (store, body) of whole ones that are not there, and
    (store, name) of what is there without being known. Only of bodies that have a known copy somewhere."""
    with node.records.reading() as unit:
        rows = unit.rows("copy")
    known: dict[str, dict[str, str]] = {}
    for row in rows:
        known.setdefault(row["body"], {})[row["store"]] = row["state"]
    missing, left = [], []
    for store, storage in node.each_store().items():
        there = set(storage.names())
        for name in there:
            body = name.removesuffix(sidecar(""))
            if body in known and store not in known[body]:
                left.append((store, name))
        whole = (body for body, states in known.items() if states.get(store) == "whole")
        missing += [(store, body) for body in whole if not {body, sidecar(body)} <= there]
    return sorted(missing), sorted(left)
