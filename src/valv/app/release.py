"""Release: the author asks, a checker looks and decides file by file, the author fetches what was approved."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from valv.app import account, outbox, reading, streams, text
from valv.app import dataset as datasets
from valv.app import permit as permits
from valv.app.node import Node, Who, allow, new_id, permitted, refuse
from valv.app.running import manifest
from valv.app.streams import DATASET, RELEASE, RUN, Step, retried
from valv.core import release
from valv.core.authorize import Context, Resource
from valv.core.classes import strictest
from valv.ports.compute import Reader
from valv.ports.records import Unit


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One output as author and checker see it. `sha256`: hex, of the plain bytes; `verdict`: approved, rejected, ''."""

    file_id: str
    path: str
    size: int
    sha256: str
    verdict: str
    reason: str


class View(msgspec.Struct, frozen=True, kw_only=True):
    """`skipped`: what the run left that cannot be released, a line each; `may`: request, withdraw, check, fetch."""

    state: release.Release
    author: str
    context: str
    datasets: list[str]
    files: list[File]
    skipped: str
    may: frozenset[str]


def _resource(unit: Unit, state: release.Release) -> Resource:
    """With the class of the very versions that the run read."""
    done = streams.need(unit, RUN, state.run_id)[0]
    pairs = permits.behind(unit, done.datasets)
    found, version = pairs[0]
    return msgspec.structs.replace(
        datasets.resource(found, version.number),
        kind="release",
        id=state.release_id,
        owner=state.author,
        people=frozenset(state.people),
        data_class=strictest(tuple(version.effective for _, version in pairs)),
    )


def show(node: Node, who: Who, release_id: str) -> View:
    with node.records.reading() as unit:
        state, _ = streams.need(unit, RELEASE, release_id)
        resource = _resource(unit, state)
        allow(node, who, "release.see", resource)
        return _view(node, who, unit, state, resource)


def mine(node: Node, who: Who) -> list[View]:
    """The actor's releases and, for a checker, those that wait for a check; newest first."""
    with node.records.reading() as unit:
        states = {s.release_id: s for s in streams.find(unit, RELEASE, link=("author", who.account_id), limit=100)}
        if "checker" in who.principal.roles:
            waiting = streams.find(unit, RELEASE, phases=("in_review", "released", "rejected"), limit=100)
            states.update({s.release_id: s for s in waiting})
        views = []
        for state in states.values():
            resource = _resource(unit, state)
            if permitted(node, who, "release.see", resource) is None:
                views.append(_view(node, who, unit, state, resource))
        return views


def _view(node: Node, who: Who, unit: Unit, state: release.Release, resource: Resource) -> View:
    rows = {row["id"]: row for row in unit.rows("release_file", {"release": state.release_id}, order="path")}
    items = {item.file_id: item for item in state.items}
    fresh = Context(country=who.principal.country, second_factor=True)
    phases = {"request": "sealed", "withdraw": "in_review", "check": "in_review", "fetch": "released"}
    may = frozenset(
        action
        for action, phase in phases.items()
        if state.phase == phase and permitted(node, who, f"release.{action}", resource, fresh) is None
    )
    skipped = unit.rows("text", {"owner_stream": RELEASE.stream(state.release_id), "kind": "skipped"})
    # Names, sizes and digests are outputs too: of identifiable data the author sees them once a file is approved.
    # A checker sees them while they wait for a check, with a fresh second factor.
    checks = state.phase != "sealed" and permitted(node, who, "release.inspect", resource) is None
    blind = resource.data_class == "identifiable" and not checks
    out = {item.file_id for item in state.released}
    files = [_file(unit, row, items[ident]) for ident, row in rows.items()]
    if blind:
        files = [
            file if file.file_id in out else msgspec.structs.replace(file, path=f"output {number}", size=0, sha256="")
            for number, file in enumerate(files, 1)
        ]
        hidden = tuple(
            item if item.file_id in out else msgspec.structs.replace(item, size=0, seal_root="") for item in state.items
        )
        state = msgspec.structs.replace(state, items=hidden)
    return View(
        state=state,
        author=account.names(unit, [state.author]).get(state.author, ""),
        context=text.get(unit, state.context),
        datasets=[streams.need(unit, DATASET, ident)[0].name for ident in state.datasets],
        files=files,
        skipped=str(skipped[0]["body"] or "") if skipped and not blind else "",
        may=may,
    )


def _file(unit: Unit, row: dict[str, Any], item: release.Item) -> File:
    verdict = "" if item.approved is None else "approved" if item.approved else "rejected"
    return File(
        file_id=row["id"],
        path=row["path"],
        size=row["size"],
        sha256=row["sha256"].hex(),
        verdict=verdict,
        reason=text.get(unit, item.reason),
    )


@retried
def request(node: Node, who: Who, release_id: str, *, context: str, command: str) -> None:
    """Ask for the outputs. `context`: what they are, for the checker."""
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, RELEASE, release_id)
        allow(node, who, "release.request", _resource(unit, state))
        if streams.done(unit, who.account_id, command):
            return
        said = text.put(unit, RELEASE.stream(release_id), "context", context, at)
        order = release.Request(by=who.account_id, at=at, context=said)
        step = Step(RELEASE, release_id, version, state, release.decide(state, order, release.Facts()))
        streams.commit(unit, [step], by=who.account_id, at=at, command=command)


@retried
def withdraw(node: Node, who: Who, release_id: str, *, command: str) -> None:
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, RELEASE, release_id)
        allow(node, who, "release.withdraw", _resource(unit, state))
        if streams.done(unit, who.account_id, command):
            return
        order = release.Withdraw(by=who.account_id, at=at)
        step = Step(RELEASE, release_id, version, state, release.decide(state, order, release.Facts()))
        streams.commit(unit, [step], by=who.account_id, at=at, command=command)


@retried
def check(
    node: Node, who: Who, release_id: str, *, file_id: str, approve: bool, reason: str, seen: str, command: str
) -> None:
    """A checker's word on one file. `seen`: the manifest that the checker's page showed."""
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, RELEASE, release_id)
        allow(node, who, "release.check", _resource(unit, state))
        if streams.done(unit, who.account_id, command):
            return
        rows = unit.rows("release_file", {"release": release_id})
        said = text.put(unit, RELEASE.stream(release_id), "reason", reason, at)
        order = release.Check(by=who.account_id, at=at, file_id=file_id, approve=approve, reason=said, manifest=seen)
        facts = release.Facts(checker="checker" in who.principal.roles, manifest=manifest(rows))
        step = Step(RELEASE, release_id, version, state, release.decide(state, order, facts))
        streams.commit(unit, [step], by=who.account_id, at=at, command=command)
        if step.after.phase in ("released", "rejected"):
            outbox.mail(
                unit,
                at,
                key=f"release-done:{release_id}",
                account=state.author,
                subject="Your outputs were checked",
                body=f"Release {release_id}: {len(step.after.released)} of {len(state.items)} files were approved.",
            )


def inspect(node: Node, who: Who, reader: Reader, release_id: str, file_id: str) -> tuple[File, Iterator[bytes]]:
    """The plain bytes of an output for its checker. The look is evidence: it is in the ledger as a read."""
    return _open(node, who, reader, release_id, file_id, "release.inspect")


def fetch(node: Node, who: Who, reader: Reader, release_id: str, file_id: str) -> tuple[File, Iterator[bytes]]:
    """A released output for its author."""
    return _open(node, who, reader, release_id, file_id, "release.fetch")


@retried
def _open(
    node: Node, who: Who, reader: Reader, release_id: str, file_id: str, action: str
) -> tuple[File, Iterator[bytes]]:
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, RELEASE, release_id)
        allow(node, who, action, _resource(unit, state))
        rows = unit.rows("release_file", {"release": release_id, "id": file_id})
        if not rows:
            raise refuse("no_file")
        order: release.Fetch | release.Inspect
        if action == "release.fetch":
            order = release.Fetch(by=who.account_id, at=at, file_id=file_id)
        else:
            order = release.Inspect(by=who.account_id, at=at, file_id=file_id)
        facts = release.Facts(checker="checker" in who.principal.roles)
        step = Step(RELEASE, release_id, version, state, release.decide(state, order, facts))
        streams.commit(unit, [step], by=who.account_id, at=at, command=new_id())
        item = next(item for item in state.items if item.file_id == file_id)
        shown = _file(unit, rows[0], item)
    return shown, reading.plain(node, reader, reading.mounted(rows[0], rows[0]["path"]))


def preview(chunks: Iterator[bytes], limit: int = 64 << 10) -> tuple[str | None, bool]:
    """The beginning of an output as text for a page (None where it is not text), and whether more follows."""
    content = bytearray()
    with contextlib.closing(chunks):  # type: ignore[type-var]
        for chunk in chunks:
            content += chunk
            if len(content) > limit:
                break
    more = len(content) > limit
    try:
        # Strict, so that nothing is hidden from the checker; only a letter that the limit cuts through may be missing.
        shown = codecs.getincrementaldecoder("utf-8")().decode(bytes(content[:limit]), final=not more)
    except UnicodeDecodeError:
        return None, more
    return (None if "\0" in shown else shown), more
