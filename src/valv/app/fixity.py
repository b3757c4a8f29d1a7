"""Fixity: order a scrub, see how one goes on and how the copies are. The worker reads them: `app.scrubbing`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from valv.app import account, streams
from valv.app.node import Node, Who, allow, derived_id, new_id, refuse
from valv.app.reading import BATCH
from valv.app.streams import FIXITY, Step, retried
from valv.config import MAIN
from valv.core import fixity
from valv.core.authorize import Resource
from valv.core.process import NODE
from valv.formats.crypt4gh import cipher_size
from valv.ports.records import Unit
from valv.vault.fixity import Sealed

KEPT = ("received", "verified")
"""States of files that have a body."""
STATES = ("whole", "suspect", "bad", "coming", "going")
RECENT = timedelta(days=30)
SHOWN = 50
"""Scrubs, and damaged copies, that are shown."""
MOST = 100_000


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """The copies in a store: how many, by state, and their bytes (`size`, without seals); and when those that are whole
    were last read from end to end.
    `recent`: within 30 days, `timely`: longer ago but as `fixity.days` asks, `late`: longer ago, `never`: not yet;
    `oldest`: the longest ago."""

    name: str
    copies: int
    size: int
    states: dict[str, int]
    recent: int
    timely: int
    late: int
    never: int
    oldest: datetime | None


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A scrub. `dataset`: name of the only one that it is about; `by`: who ordered it, '' where the node did; `copies`
    and `size`: read so far."""

    state: fixity.Scrub
    dataset: str
    by: str
    copies: int
    size: int


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """A copy that does not hold. `whole`: how many others are thought to."""

    body: str
    store: str
    dataset: str
    fault: str
    checked: datetime | None
    whole: int


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`days`, `rate`: the settings; `damaged`: the first of the copies that do not hold; `scrubs`: newest first."""

    days: int
    rate: int
    stores: tuple[Store, ...]
    damaged: tuple[Damage, ...]
    scrubs: tuple[View, ...]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Whose body it is, and what the record says of it. `dataset_id`: '' for a released output."""

    file_id: str
    dataset_id: str
    sealed: Sealed


# --- what operators do ---


@retried
def run(
    node: Node, who: Who, name: str = "", *, store: str = "", every: bool = False, tape: bool = False, command: str
) -> str:
    """Order a scrub: of the copies of the dataset `name`, or of all; in one `store` only; those that are due, or
    `every` one. `tape`: what lies on tape is fetched and read as well. Returns its id."""
    allow(node, who, "fixity.run", Resource(kind="node"))
    enrol(node)
    at = node.clock()  # what was enrolled just now came before
    with node.records.writing() as unit:
        dataset_id = _dataset(unit, name)
        ident = derived_id(who.account_id, "fixity", command)
        if streams.done(unit, who.account_id, command):
            return ident
        days = 0 if every else node.config.fixity.days
        going = streams.find(unit, FIXITY, phases=("going",), limit=MOST)
        order = fixity.Begin(
            by=who.account_id,
            at=at,
            scrub_id=ident,
            dataset_id=dataset_id,
            store=store,
            days=days,
            tape=tape,
            expected=sum(due(node, unit, dataset_id, store, days, at)),
        )
        same = (dataset_id, store)
        facts = fixity.Facts(
            operator="operator" in who.principal.roles,
            going=any(one.by != NODE and (one.dataset_id, one.store) == same for one in going),
            store_known=not store or store in node.each_store(),
        )
        step = Step(FIXITY, ident, 0, None, fixity.decide(None, order, facts))
        streams.commit(unit, [step], by=who.account_id, at=at, command=command)
    return ident


def _dataset(unit: Unit, name: str) -> str:
    """The id of the dataset of this name, '' for none."""
    rows = unit.rows("dataset", {"name": name}) if name else []
    if name and not rows:
        raise refuse("dataset_unknown", repr(name[:80]))
    return str(rows[0]["id"]) if rows else ""


def show(node: Node, who: Who, scrub_id: str) -> View:
    allow(node, who, "fixity.see", Resource(kind="node"))
    with node.records.reading() as unit:
        return _view(unit, streams.need(unit, FIXITY, scrub_id)[0])


def health(node: Node, who: Who) -> Health:
    """How the copies are, in every store, and the last scrubs."""
    allow(node, who, "fixity.see", Resource(kind="node"))
    settings, at = node.config.fixity, node.clock()
    with node.records.reading() as unit:
        going = streams.find(unit, FIXITY, phases=("going",), limit=SHOWN)
        ended = streams.find(unit, FIXITY, phases=("done",), limit=SHOWN)
        return Health(
            days=settings.days,
            rate=settings.rate,
            stores=tuple(_stores(node, unit, at)),
            damaged=tuple(_damaged(unit)),
            scrubs=tuple(_view(unit, one) for one in (*going, *ended)),
        )


def copies_of(unit: Unit, dataset_id: str) -> list[dict[str, Any]]:
    """The rows of `copy` of the files that a dataset has now."""
    bodies = [row["body"] for row in unit.rows("file", {"dataset": dataset_id, "state": KEPT})]
    return [row for part in _parts(bodies) for row in unit.rows("copy", {"body": part})]


def _view(unit: Unit, state: fixity.Scrub) -> View:
    done = progress(unit, state)
    names = unit.rows("dataset", {"id": state.dataset_id}) if state.dataset_id else []
    return View(
        state=state,
        dataset=names[0]["name"] if names else "",
        by="" if state.by == NODE else account.names(unit, [state.by]).get(state.by, ""),
        copies=done["copies"],
        size=done["size"],
    )


def _stores(node: Node, unit: Unit, at: datetime) -> Iterable[Store]:
    totals = unit.copy_totals()
    for name in node.each_store():
        mine = [row for row in totals if row["store"] == name]
        states = dict.fromkeys(STATES, 0) | {row["state"]: row["count"] for row in mine}
        yield _store(unit, name, states, sum(row["bytes"] for row in mine), at, node.config.fixity.days)


def _store(unit: Unit, name: str, states: dict[str, int], size: int, at: datetime, days: int) -> Store:
    where = {"store": name, "state": "whole"}
    never = unit.count("copy", {**where, "checked": None})
    checked = states["whole"] - never
    late = before(unit, where, "checked", at - timedelta(days=days))
    old = max(late, before(unit, where, "checked", at - RECENT))
    ends = unit.rows("copy", where, order="checked", limit=1) if checked else []
    ends += unit.rows("copy", where, order="checked", offset=never, limit=1) if checked else []
    return Store(
        name=name,
        copies=sum(states.values()),
        size=size,
        states=states,
        recent=checked - old,
        timely=old - late,
        late=late,
        never=never,
        oldest=min((row["checked"] for row in ends if row["checked"]), default=None),
    )


def _damaged(unit: Unit) -> Iterable[Damage]:
    rows = unit.rows("copy", {"state": "bad"}, order="-since", limit=SHOWN)
    found = kept(unit, [row["body"] for row in rows])
    named = {one.dataset_id for one in found.values()}
    names = {row["id"]: row["name"] for row in unit.rows("dataset", {"id": named})}
    for row in rows:
        file = found.get(row["body"])
        yield Damage(
            body=row["body"],
            store=row["store"],
            dataset=names.get(file.dataset_id, "") if file else "",
            fault=row["fault"],
            checked=row["checked"],
            whole=unit.count("copy", {"body": row["body"], "state": "whole"}),
        )


# --- what the worker's steps need too ---


def kept(unit: Unit, bodies: Sequence[str]) -> dict[str, Kept]:
    """Of these bodies, those that a record points to now, with what it says of them."""
    found = {}
    for part in _parts(bodies):
        for row in unit.rows("file", {"body": part, "state": KEPT}):
            found[row["body"]] = _kept(row, row["dataset"], row["cipher_size"])
        for row in unit.rows("release_file", {"body": part}):
            found[row["body"]] = _kept(row, "", cipher_size(row["size"]))
    return found


def _kept(row: dict[str, Any], dataset_id: str, stored: int) -> Kept:
    size = row["size"] if row["size"] is not None else -1
    sealed = Sealed(size=size, cipher_size=stored, seal_root=row["seal_root"], tree_root=row["tree_root"])
    return Kept(file_id=row["id"], dataset_id=dataset_id, sealed=sealed)


def progress(unit: Unit, state: fixity.Scrub) -> dict[str, int]:
    """What was read so far: `copies`, and their `size`."""
    if state.phase == "done":
        return {"copies": state.copies, "size": state.size}
    rows = unit.rows("setting", {"name": tally(state.scrub_id)})
    return dict(rows[0]["value"]) if rows else {"copies": 0, "size": 0}


def tally(scrub_id: str) -> str:
    """The row of `setting` in which a scrub that goes on keeps its progress."""
    return f"fixity:{scrub_id}"


def due(node: Node, unit: Unit, dataset_id: str, store: str, days: int, begun: datetime) -> tuple[int, int]:
    """How many copies a scrub that began then is still to read, apart from those that are known to be damaged; and how
    many of those there are."""
    if dataset_id:
        rows = [row for row in copies_of(unit, dataset_id) if store in ("", row["store"])]
        bad = sum(row["state"] == "bad" for row in rows)
        rest = (copy(row) for row in rows if row["state"] != "bad")
        return len(fixity.in_order(rest, begun, days)), bad
    found, bad = 0, 0
    old = begun - timedelta(days=days)
    for name in [store] if store else node.each_store():
        bad += unit.count("copy", {"store": name, "state": "bad"})
        found += unit.count("copy", {"store": name, "state": "suspect"})
        where = {"store": name, "state": "whole"}
        found += before(unit, where, "checked", old)
        found += before(unit, {**where, "checked": None}, "since", old + timedelta(microseconds=1))
    return found, bad


def copy(row: dict[str, Any]) -> fixity.Copy:
    fields = ("body", "store", "state", "since", "checked")
    return fixity.Copy(**{field: row[field] for field in fields})


def before(unit: Unit, where: dict[str, Any], column: str, at: datetime) -> int:
    """How many rows of `copy` have a time before `at` in this column. Found by halving, as rows are ordered by it;
    those without a time come first in one database and last in the other."""
    without = unit.count("copy", {**where, "checked": None}) if column == "checked" else 0
    total = unit.count("copy", where) - without

    def time(offset: int) -> datetime | None:
        rows = unit.rows("copy", where, order=column, offset=offset, limit=1)
        return rows[0][column] if rows else None

    shift = without if without and time(0) is None else 0
    low, high = 0, total
    while low < high:
        middle = (low + high) // 2
        found = time(shift + middle)
        if found is not None and found < at:
            low = middle + 1
        else:
            high = middle
    return low


def enrol(node: Node) -> int:
    """Note bodies of which no copy is known yet: they lie in the store `main`. Returns how many."""
    with node.records.writing() as unit:
        return sum(unit.enrol(table, {}, MAIN, node.clock()) for table in ("file", "release_file"))


@retried
def begin(node: Node) -> str:
    """The node's own scrub, where it is time for one and copies are due. Returns its id, or ''."""
    at, days = node.clock(), node.config.fixity.days
    with node.records.reading() as unit:
        last = _newest(unit)
        suspects = unit.count("copy", {"state": "suspect"})
    if not fixity.begins(last, at, suspects=suspects > 0):
        return ""
    enrol(node)
    with node.records.writing() as unit:
        last = _newest(unit)
        count = sum(due(node, unit, "", "", days, at))
        if not count or not fixity.begins(last, at, suspects=suspects > 0):
            return ""
        order = fixity.Begin(by=NODE, at=at, scrub_id=new_id(), days=days, expected=count)
        step = Step(FIXITY, order.scrub_id, 0, None, fixity.decide(None, order, fixity.Facts()))
        streams.commit(unit, [step], by=NODE, at=at, command=new_id())
    return order.scrub_id


def _newest(unit: Unit) -> fixity.Scrub | None:
    """The newest scrub that the node began by itself."""
    mine = streams.find(unit, FIXITY, link=("by", NODE), limit=SHOWN)
    return max(mine, key=lambda one: one.begun, default=None)


@retried
def record(node: Node, scrub_id: str, decide: Callable[[datetime, Unit], fixity.Commands | None]) -> bool:
    """One step of a scrub, in a transaction with what `decide` writes in it; it returns None where there is nothing to
    say. Returns whether there was."""
    at = node.clock()
    with node.records.writing() as unit:
        order = decide(at, unit)
        if order is None:
            return False
        state, version = streams.need(unit, FIXITY, scrub_id)
        step = Step(FIXITY, scrub_id, version, state, fixity.decide(state, order, fixity.Facts()))
        streams.commit(unit, [step], by=NODE, at=at, command=new_id())
    return True


def _parts(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + BATCH] for start in range(0, len(values), BATCH))
