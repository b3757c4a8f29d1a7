"""Datasets: the catalogue, a dataset's page, the assessment of anonymity, and who touched it."""

from __future__ import annotations

import contextlib
import re
from datetime import datetime
from typing import Any

import msgspec

from valv.app import outbox, streams, text
from valv.app.node import Node, Who, allow, derived_id, permitted, refuse
from valv.app.reading import BATCH
from valv.app.streams import DATASET, Step, retried
from valv.core import dataset
from valv.core.authorize import Resource
from valv.core.process import NODE
from valv.errors import Fault, RefusedFault
from valv.formats import certificate, duo
from valv.ports.records import Unit

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{1,63}")


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What the catalogue says of a dataset: no data, no personal detail."""

    title: str = ""
    description: str = ""
    diseases: tuple[str, ...] = ()
    data_types: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()


def resource(state: dataset.Dataset, version: int | None = None) -> Resource:
    """The dataset as the policies see it: with the class of one version, the newest unless named."""
    found = state.version(version) if version else state.current
    return Resource(
        kind="dataset",
        id=state.dataset_id,
        custodian=state.custodian,
        committee=state.committee,
        data_class=found.effective if found else "identifiable",
        country=state.country,
        unit=state.unit,
    )


def ensure(
    node: Node, who: Who, unit: Unit, *, name: str, committee: str, about: Description
) -> tuple[dataset.Dataset, int, bool]:
    """The dataset of this name, made where there is none. Returns it, its version, and whether it is new."""
    if not NAME.fullmatch(name):
        raise refuse("name_wrong", f"{name[:80]!r}: 2 to 64 small letters, digits, '-' and '_'")
    rows = unit.rows("dataset", {"name": name})
    if rows:
        state, version = streams.need(unit, DATASET, rows[0]["id"])
        return state, version, False
    ident, at = derived_id("dataset", "dataset", name), node.clock()
    allow(node, who, "dataset.register", Resource(kind="node"))
    register = dataset.Register(
        by=who.account_id,
        at=at,
        dataset_id=ident,
        name=name,
        committee=committee,
        country=node.config.node.country,
        unit=node.config.node.unit,
    )
    events = dataset.decide(None, register, dataset.Facts(custodian="custodian" in who.principal.roles))
    step = Step(DATASET, ident, 0, None, events)
    streams.commit(unit, [step], by=who.account_id, at=at, command=f"register:{ident}")
    row = {
        "id": ident,
        "name": name,
        "title": about.title or name,
        "description": about.description,
        "diseases": list(about.diseases),
        "data_types": list(about.data_types),
        "keywords": list(about.keywords),
        "consent": [],
        "class": "identifiable",
        "claimed": "",
        "custodian": who.account_id,
        "committee": committee,
        "country": node.config.node.country,
        "unit": node.config.node.unit,
        "version": None,
        "visible": False,
        "files": 0,
        "bytes": 0,
        "participants": 0,
        "published": None,
        "changed": at,
    }
    unit.insert("dataset", [row])
    return step.after, 1, True


def describe(node: Node, who: Who, name: str, about: Description) -> None:
    with node.records.writing() as unit:
        state, _ = allowed(node, who, unit, name, "dataset.describe")
        values: dict[str, Any] = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in msgspec.structs.asdict(about).items()
        }
        unit.update("dataset", {"id": state.dataset_id}, values | {"changed": node.clock()})


def named(unit: Unit, name: str) -> tuple[dataset.Dataset, int]:
    """The dataset of this name (or id) and its stream's version."""
    rows = unit.rows("dataset", {"name": name}) or unit.rows("dataset", {"id": name})
    if not rows:
        raise refuse("not_found", f"dataset {name[:80]!r}")
    return streams.need(unit, DATASET, rows[0]["id"])


def allowed(
    node: Node, who: Who, unit: Unit, name: str, action: str, version: int | None = None
) -> tuple[dataset.Dataset, int]:
    """The dataset, where the actor may do this with it. One that is not published is not there for outsiders."""
    state, number = named(unit, name)
    found = resource(state, version)
    refusal = permitted(node, who, action, found)
    if refusal is not None and state.phase != "live" and permitted(node, who, "dataset.report", found) is not None:
        raise refuse("not_found", f"dataset {name[:80]!r}")
    if refusal is not None:
        raise RefusedFault(refusal)
    return state, number


def refresh(unit: Unit, state: dataset.Dataset, at: Any) -> None:
    """Bring the catalogue row in line with the dataset's state."""
    version = state.current
    values: dict[str, Any] = {"visible": state.phase == "live", "changed": at}
    if version and version.destroyed:
        values["visible"] = False  # until there is another version
    if version:
        values |= {
            "version": version.number,
            "class": version.effective,
            "claimed": version.claimed,
            # Found by the whole statement and by its term alone.
            "consent": [{"id": term, "label": duo.parse(term).code} for term in version.consent],
            "files": version.files,
            "bytes": version.size,
            "participants": version.participants,
        }
        if version.number == 1:
            values["published"] = at
    unit.update("dataset", {"id": state.dataset_id}, values)


class Found(msgspec.Struct, frozen=True):
    """One page of the catalogue; `total` counts all that fit."""

    total: int
    rows: list[dict[str, Any]]


PUBLIC = (
    "name",
    "title",
    "description",
    "diseases",
    "data_types",
    "keywords",
    "consent",
    "class",
    "claimed",
    "country",
    "unit",
    "version",
    "files",
    "bytes",
    "published",
)


def catalogue(
    node: Node,
    who: Who,
    *,
    query: str = "",
    disease: str = "",
    data_type: str = "",
    consent: str = "",
    offset: int = 0,
    limit: int = 50,
) -> Found:
    """Search the catalogue. Counts of participants are not shown: they could single somebody out."""
    allow(node, who, "catalogue.find", Resource(kind="node"))
    wanted = ""
    if consent:
        wanted = str(duo.parse(consent)) if "=" in consent else duo.code(consent)
    with node.records.reading() as unit:
        total, rows = unit.search_catalogue(
            text=query,
            disease=disease,
            data_type=data_type,
            consent=wanted,
            offset=max(0, offset),
            limit=max(1, min(limit, 200)),
        )
    return Found(total, [_public(row) for row in rows])


def _public(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in PUBLIC} | {"consent": [term["id"] for term in row["consent"]]}


class Copies(msgspec.Struct, frozen=True, kw_only=True):
    """Copies of a dataset's files: how many, how many of them are damaged, and when the one that was not read for the
    longest time was read (None: one was not yet)."""

    copies: int
    damaged: int
    oldest: datetime | None


class Page(msgspec.Struct, frozen=True):
    """A dataset for its page. `report`, `certificates` (of destroyed versions, by number), and in `state` what a scan
    found, only for those who may read the report."""

    row: dict[str, Any]
    sentences: list[str]
    state: dataset.Dataset
    may_assess: bool
    report: str
    certificates: tuple[tuple[int, str], ...] = ()
    fixity: Copies | None = None


def show(node: Node, who: Who, name: str) -> Page:
    with node.records.reading() as unit:
        state, _ = named(unit, name)
        inside = permitted(node, who, "dataset.report", resource(state)) is None
        if state.phase != "live" and not inside:
            raise refuse("not_found", f"dataset {name[:80]!r}")
        allow(node, who, "dataset.see", resource(state))
        row = unit.rows("dataset", {"id": state.dataset_id})[0]
        rows = unit.rows("text", {"owner_stream": DATASET.stream(state.dataset_id), "kind": "scan"}, order="-created")
        copies = _copies(unit, state.dataset_id) if inside else None
        kept = [(v.number, text.get(unit, v.certificate)) for v in state.versions if v.certificate and inside]
    shown = _public(row)
    sentences = [duo.parse(term).sentence for term in shown["consent"]]
    may = permitted(node, who, "dataset.assess", resource(state)) is None
    report = str(rows[0]["body"] or "") if rows and inside else ""
    if not inside:
        bare = tuple(msgspec.structs.replace(found, findings=None, participants=0) for found in state.versions)
        state = msgspec.structs.replace(state, versions=bare)
    told = tuple((number, certificate.readable(one)) for number, one in kept)
    return Page(shown, sentences, state, may, report, told, copies)


def _copies(unit: Unit, dataset_id: str) -> Copies | None:
    bodies = [row["body"] for row in unit.rows("file", {"dataset": dataset_id, "state": ("received", "verified")})]
    rows = [row for at in range(0, len(bodies), BATCH) for row in unit.rows("copy", {"body": bodies[at : at + BATCH]})]
    if not rows:
        return None
    checked = [row["checked"] for row in rows]
    oldest = min(checked) if None not in checked else None
    return Copies(copies=len(rows), damaged=sum(row["state"] == "bad" for row in rows), oldest=oldest)


def assess(node: Node, who: Who, name: str, *, version: int, confirm: bool, reason: str, command: str) -> None:
    """A second person's word on the claim that a version is anonymised."""
    _step(node, who, name, "dataset.assess", version, reason, command, confirm=confirm)


def narrow(node: Node, who: Who, name: str, *, version: int, reason: str, command: str) -> None:
    """The version is identifiable after all. Downloads end with this transaction."""
    _step(node, who, name, "dataset.narrow", version, reason, command)


@retried
def _step(
    node: Node, who: Who, name: str, action: str, version: int, reason: str, command: str, confirm: bool | None = None
) -> None:
    at = node.clock()
    with node.records.writing() as unit:
        state, number = allowed(node, who, unit, name, action, version)
        if streams.done(unit, who.account_id, command):
            return
        if not reason.strip():
            raise refuse("reason_missing")
        said = text.put(unit, DATASET.stream(state.dataset_id), "reason", reason, at)
        order: dataset.Assess | dataset.Narrow = (
            dataset.Narrow(by=who.account_id, at=at, version=version, reason=said)
            if confirm is None
            else dataset.Assess(by=who.account_id, at=at, version=version, confirm=confirm, reason=said)
        )
        roles = who.principal.roles
        assessor = bool(roles & {"committee", "checker"})
        facts = dataset.Facts(custodian="custodian" in roles, assessor=assessor)
        step = Step(DATASET, state.dataset_id, number, state, dataset.decide(state, order, facts))
        streams.commit(unit, [step], by=who.account_id, at=at, command=command)
        refresh(unit, step.after, at)
        changed = step.after.version(version)
        assert changed is not None
        topic = "key.confirm" if changed.effective == "anonymised" else "key.narrow"
        if confirm is not False:
            outbox.put(unit, at, topic=topic, key=f"{topic}:{changed.key_id}", body={"key_id": changed.key_id})
    if confirm is None:
        # At once where the key holder answers; the outbox sees to it in any case. (To confirm is the worker's alone.)
        with contextlib.suppress(Fault):
            node.keys.narrow(changed.key_id)


@retried
def record_scan(node: Node, dataset_id: str, version: int, findings: int, report: str) -> None:
    """The node's own step after the identifier scan."""
    at = node.clock()
    with node.records.writing() as unit:
        state, number = streams.need(unit, DATASET, dataset_id)
        said = text.put(unit, DATASET.stream(dataset_id), "scan", report or "no finding", at)
        order = dataset.RecordScan(by=NODE, at=at, version=version, findings=findings, report=said)
        step = Step(DATASET, dataset_id, number, state, dataset.decide(state, order, dataset.Facts()))
        streams.commit(unit, [step], by=NODE, at=at, command=f"scan:{dataset_id}:{version}")


def history(node: Node, who: Who, name: str) -> list[dict[str, Any]]:
    """Who touched this dataset: every event of it and of what hangs off it, oldest first, with names for the reader."""
    with node.records.reading() as unit:
        state, _ = allowed(node, who, unit, name, "dataset.history")
        records = unit.events(DATASET.stream(state.dataset_id))
        for process in (
            streams.DEPOSIT,
            streams.ACCESS,
            streams.PERMIT,
            streams.RUN,
            streams.RELEASE,
            streams.ROTATION,
            streams.WITHDRAWAL,
            streams.STORAGE,
        ):
            for snapshot in unit.find(process.kind, link=("dataset", state.dataset_id), limit=10_000):
                records.extend(unit.events(snapshot.stream))
        records.sort(key=lambda record: record.position)
        people = {row["id"]: row["name"] for row in unit.rows("account", {"id": sorted({r.actor for r in records})})}
    return [
        {
            "position": record.position,
            "at": record.at,
            "event": record.tag,
            "actor": people.get(record.actor, record.actor),
            "stream": record.stream,
        }
        for record in records
    ]
