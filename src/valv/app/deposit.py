"""Deposit: receiving files encrypted from the first byte, and publishing a dataset version all at once."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import msgspec

from valv.app import copying, placement, streams, text
from valv.app import dataset as datasets
from valv.app.node import Node, Who, allow, derived_id, new_id, refuse
from valv.app.streams import DATASET, DEPOSIT, Step, retried
from valv.core import deposit
from valv.core.authorize import Resource
from valv.core.classes import DataClass
from valv.core.custody import PERSONS
from valv.errors import ConflictFault, FormatFault, Refusal, RefusedFault
from valv.formats import crypt4gh, duo, participants, paths
from valv.formats.seal import sidecar
from valv.ports.records import Unit
from valv.vault.encrypt import Encryptor, Sealed
from valv.vault.take import Taker

PARTICIPANTS = "participants.tsv"
BATCH = 5000
"""Bodies in one query."""
ALIVE = timedelta(seconds=60)
"""How often a sender that goes on is noted; intake drops what was not noted for an hour."""


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """One file as its custodian sees it. `state`: arriving, received, verified, archived (it is part of a published
    version, and every copy that the dataset's rule wants was made) or refused (`reason` says why); `sha256`: hex, of
    the plain bytes ('' until an already encrypted file was opened)."""

    path: str
    state: str
    size: int
    sha256: str = ""
    reason: str = ""


class View(msgspec.Struct, frozen=True, kw_only=True):
    deposit_id: str
    dataset: str
    state: deposit.Deposit
    files: list[Received]


def resource(state: deposit.Deposit) -> Resource:
    return Resource(kind="deposit", id=state.deposit_id, custodian=state.custodian, owner=state.custodian)


@retried
def open_deposit(
    node: Node,
    who: Who,
    *,
    name: str,
    claimed: DataClass,
    consent: Iterable[str],
    committee: str,
    about: datasets.Description,
    command: str,
) -> str:
    """Begin a deposit for the dataset `name`, which is made where there is none. Returns the deposit's id."""
    statements = duo.parse_consent(list(consent))
    ident, at = derived_id(who.account_id, "deposit", command), node.clock()
    key_id = f"version-{ident}"
    with node.records.writing() as unit:
        state, number, new = datasets.ensure(node, who, unit, name=name, committee=committee, about=about)
        allow(node, who, "deposit.open", datasets.resource(state))
        placement.check_main(node, state)
        if streams.load(unit, DEPOSIT, ident).state is not None:
            return ident
        order = deposit.Open(
            by=who.account_id,
            at=at,
            deposit_id=ident,
            dataset_id=state.dataset_id,
            key_id=key_id,
            claimed=claimed,
            consent=tuple(str(statement) for statement in statements),
        )
        facts = deposit.Facts(owner=state.custodian == who.account_id, one_person=_one_person(node, claimed))
        events = deposit.decide(None, order, facts)
        if not isinstance(events, Refusal):
            node.keys.create(key_id, claimed)
        step = Step(DEPOSIT, ident, 0, None, events)
        streams.commit(
            unit,
            [step],
            by=who.account_id,
            at=at,
            command=f"open:{ident}",
            asserts={DATASET.stream(state.dataset_id): number},
        )
        if about != datasets.Description() and not new and about.title:
            values = {key: value for key, value in msgspec.to_builtins(about).items() if value}
            unit.update("dataset", {"id": state.dataset_id}, values)
    return ident


def _one_person(node: Node, claimed: DataClass) -> bool:
    """Whether one person alone can unseal this node, where that matters."""
    return claimed == "identifiable" and not node.config.node.demo and node.keys.status().persons < PERSONS


def receive(
    node: Node, who: Who, deposit_id: str, path: str, chunks: Iterable[bytes], *, declared: str = ""
) -> Received:
    """Take one file. `declared`: hex SHA-256 of the bytes as they are sent. A file that is already Crypt4GH for the
    node's public key is kept as it is; everything else is encrypted before the first write."""
    check_path(path)
    with node.records.reading() as unit:
        open_for(node, who, unit, deposit_id)  # before the first byte is waited for
    stream = iter(chunks)
    first = _at_least(stream, len(crypt4gh.MAGIC))
    taken = first.startswith(crypt4gh.MAGIC)
    if taken and path.endswith(".c4gh"):
        path = path.removesuffix(".c4gh")
        check_path(path)  # of '...c4gh' is left '..'
    with node.records.writing() as unit:
        state = open_for(node, who, unit, deposit_id)
        existing = free(node, unit, deposit_id, path, declared)
        if existing:
            return existing
        row = new_row(state, path, node.clock())
        unit.insert("file", [row])
    try:
        chunks = _limited(node, first, _kept_alive(node, row["id"], stream))
        values = _keep(node, str(row["body"]), state.key_id, state.claimed, chunks, taken, declared, path)
    except BaseException:
        forget(node, row)
        raise
    try:
        with node.records.writing() as unit:
            open_for(node, who, unit, deposit_id)  # what was handed in meanwhile takes no further file
            kept = unit.update("file", {"id": row["id"]}, values | {"state": "received", "received": node.clock()})
    except RefusedFault:
        forget(node, row)
        raise
    if not kept:
        # Another sender of the same file took its place meanwhile: what nobody points to must not stay.
        forget(node, row)
        raise ConflictFault(f"{path[:80]!r} was sent twice at the same time", "look which one was kept")
    return received(row | values | {"state": "received"})


def check_path(path: str) -> None:
    """Raises the refusal `path_wrong` for a path that no file of a deposit can have."""
    wrong = paths.fault(path)
    if wrong:
        raise RefusedFault(wrong)
    if paths.folded(path) == PARTICIPANTS and path != PARTICIPANTS:
        raise refuse("path_wrong", f"{path!r}: the table of participants is named {PARTICIPANTS}")


def new_row(state: deposit.Deposit, path: str, at: datetime) -> dict[str, Any]:
    """A row of `file` for what is about to come."""
    return {
        "id": new_id(),
        "dataset": state.dataset_id,
        "deposit": state.deposit_id,
        "version": None,
        "path": path,
        "folded": paths.folded(path),
        "body": new_id(),
        "header": None,
        "key_id": state.key_id,
        "size": None,
        "cipher_size": 0,
        "segments": 0,
        "seal_root": b"",
        "sha256": None,
        "sent_sha256": None,
        "tree_root": b"",
        "state": "arriving",
        "reason": "",
        "received": at,
    }


def open_for(node: Node, who: Who, unit: Unit, deposit_id: str) -> deposit.Deposit:
    """The deposit, where it takes files of this person now."""
    state, _ = streams.need(unit, DEPOSIT, deposit_id)
    allow(node, who, "deposit.receive", resource(state))
    if state.phase != "open":
        raise refuse("wrong_phase", f"this deposit is {state.phase}")
    return state


def check_open(node: Node, who: Who, deposit_id: str) -> None:
    """Raises `RefusedFault` where the deposit takes no files of this person now."""
    with node.records.reading() as unit:
        open_for(node, who, unit, deposit_id)


def _kept_alive(node: Node, file_id: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks; while they come, the file's row says that its sender lives."""
    told = node.clock()
    for chunk in chunks:
        if node.clock() - told >= ALIVE:
            told = node.clock()
            with node.records.writing() as unit:
                unit.update("file", {"id": file_id, "state": "arriving"}, {"received": told})
        yield chunk


def free(node: Node, unit: Unit, deposit_id: str, path: str, declared: str = "") -> Received | None:
    """None where a file of this name may come. Of one that is there already the answer again where it is the same
    (`declared`: hex SHA-256 of what is to come), else a refusal."""
    above = [paths.folded(path[:end]) for end, letter in enumerate(path) if letter == "/"]
    if above and unit.count("file", {"deposit": deposit_id, "folded": above}):
        raise refuse("path_wrong", f"{path[:80]!r} lies beneath another file")
    rows = unit.rows("file", {"deposit": deposit_id, "folded": paths.folded(path)})
    if not rows:
        return None
    row = rows[0]
    if row["path"] != path:
        raise refuse("path_wrong", f"{path[:80]!r} differs from another file only in letter case or look")
    if row["state"] == "arriving":
        # A sender that died, or one that is slower than this: the newest sender wins.
        drop_bodies(node, row)
        unit.delete("file", {"id": row["id"]})
        return None
    if declared and (row["sent_sha256"] or b"").hex() == declared.lower():
        return received(row)
    raise refuse("file_known", repr(path[:80]))


def _keep(
    node: Node,
    body: str,
    key_id: str,
    claimed: DataClass,
    chunks: Iterator[bytes],
    taken: bool,
    declared: str,
    path: str,
) -> dict[str, Any]:
    """Write body and seal; returns the columns of the file's row. Nothing is kept where a check fails."""
    whole = hashlib.sha256()
    public = node.keys.create(key_id, claimed)
    writer = node.storage.writer(body)
    try:
        seal_writer = node.storage.writer(sidecar(body))
    except BaseException:
        writer.abort()
        raise
    sink: Taker | Encryptor
    sink = Taker(writer, seal_writer) if taken else Encryptor(writer, seal_writer, public)
    content = bytearray()
    try:
        for chunk in chunks:
            if taken:
                whole.update(chunk)
            sink.write(chunk)
            if path == PARTICIPANTS and not taken:
                content += chunk
                if len(content) > participants.LARGEST:
                    raise FormatFault("participants.tsv is too large", f"at most {participants.LARGEST} bytes")
        if path == PARTICIPANTS and not taken:
            participants.parse(bytes(content))
        made = sink.finish()
    except BaseException:
        sink.abort()
        raise
    digest = made.sha256 if isinstance(made, Sealed) else None
    sent = whole.digest() if digest is None else digest
    if declared and sent.hex() != declared.lower():
        raise refuse("checksum", f"{path}: received {sent.hex()[:16]}…, declared {declared[:16].lower()}…")
    return {
        "header": made.header if digest is not None else node.keys.adopt(made.header, key_id),
        "size": made.size,
        "cipher_size": made.cipher_size,
        "segments": made.segments,
        "seal_root": made.seal_root,
        "sha256": digest,
        "sent_sha256": sent,
        "tree_root": made.tree_root,
        "known_outside": taken,
    }


def _limited(node: Node, first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    seen = 0
    for chunk in itertools.chain([first] if first else [], rest):
        seen += len(chunk)
        if seen > node.config.serve.max_upload:
            raise refuse("file_larger", f"at most {node.config.serve.max_upload} bytes")
        yield chunk


def _at_least(stream: Iterator[bytes], count: int) -> bytes:
    """The beginning of a stream, `count` bytes or more where it has so many."""
    first = b""
    for chunk in stream:
        first += chunk
        if len(first) >= count:
            break
    return first


def forget(node: Node, row: dict[str, Any]) -> None:
    """Drop a file that did not arrive whole: bodies first, so that a fault here leaves a row to find them by."""
    drop_bodies(node, row)
    with node.records.writing() as unit:
        copying.forget(unit, [row["body"]])
        unit.delete("file", {"id": row["id"]})


def drop_bodies(node: Node, row: dict[str, Any]) -> None:
    for name in (row["body"], sidecar(row["body"])):
        node.storage.delete(name)


def received(row: dict[str, Any]) -> Received:
    return Received(
        path=row["path"],
        state=row["state"],
        size=row["size"] or 0,
        sha256=(row["sha256"] or b"").hex(),
        reason=row["reason"],
    )


def _arriving(row: dict[str, Any]) -> Received:
    """A file that comes in pieces. Once every byte is there it was received, joined or not."""
    state = {"open": "arriving", "whole": "received"}.get(row["state"], row["state"])
    return Received(path=row["path"], state=state, size=row["offset"], reason=row["reason"])


@retried
def submit(
    node: Node,
    who: Who,
    deposit_id: str,
    *,
    expected: Sequence[str],
    command: str,
    sums: Mapping[str, str] = MappingProxyType({}),
) -> View:
    """Hand the deposit in. `expected`: the paths that the custodian meant to send; one that is missing is a refusal.
    `sums`: SHA-256, hex, of files as they were sent, by path; each is compared with what was received."""
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, DEPOSIT, deposit_id)
        allow(node, who, "deposit.submit", resource(state))
        if streams.done(unit, who.account_id, command):
            return _show(unit, state)
        if unit.count("upload", {"deposit": deposit_id, "state": "whole"}):
            raise refuse("not_yet", "files that came in pieces are being joined: try again in a few seconds")
        rows = [row for row in unit.rows("file", {"deposit": deposit_id}) if row["state"] != "arriving"]
        _compare(rows, sums)
        data = [row for row in rows if row["path"] != PARTICIPANTS]
        come = {row["path"] for row in rows}
        folders = {paths.folded(str(above)) for path in come for above in PurePosixPath(path).parents}
        both = next((row["path"] for row in rows if row["folded"] in folders), "")
        if both:
            raise refuse("path_wrong", f"{both[:80]!r} is both a file and a folder; cancel the deposit and begin anew")
        facts = deposit.Facts(
            owner=state.custodian == who.account_id,
            files=len(data),
            size=sum(row["size"] for row in data),
            manifest=manifest(rows),
            missing=tuple(path for path in expected if path not in come and path.removesuffix(".c4gh") not in come),
        )
        events = deposit.decide(state, deposit.Submit(by=who.account_id, at=at), facts)
        step = Step(DEPOSIT, deposit_id, version, state, events)
        streams.commit(unit, [step], by=who.account_id, at=at, command=command)
        return _show(unit, step.after)


def _compare(rows: Iterable[dict[str, Any]], sums: Mapping[str, str]) -> None:
    """Raises the refusal `checksum` naming files that are not those that were sent."""
    if not sums:
        return
    there = {row["path"]: row["sent_sha256"] or b"" for row in rows}
    wrong = []
    for path, digest in sums.items():
        found = there.get(path, there.get(path.removesuffix(".c4gh")))
        if found is not None and found.hex() != digest.lower():
            wrong.append(path)
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise refuse("checksum", ", ".join(repr(path[:80]) for path in wrong[:5]) + more)


def drop_file(node: Node, who: Who, deposit_id: str, path: str) -> None:
    """Take a file out of an open deposit, so that another may be sent in its place."""
    with node.records.writing() as unit:
        open_for(node, who, unit, deposit_id)
        rows = unit.rows("file", {"deposit": deposit_id, "path": path})
        if not rows:
            raise refuse("no_file", repr(path[:80]))
        # The name is free from now on; the row stays until the body is gone.
        aside = {"state": "arriving", "path": "", "folded": f"/{rows[0]['id']}"}
        unit.update("file", {"id": rows[0]["id"]}, aside)
    forget(node, rows[0])


def manifest(rows: Iterable[dict[str, Any]]) -> str:
    """SHA-256, hex, over the files' paths, sizes and hash trees in the order of their paths. The trees' roots are
    random to an outsider (random data keys), so that it tells nothing of the content."""
    whole = hashlib.sha256()
    for row in sorted(rows, key=lambda row: str(row["path"])):
        whole.update(msgspec.json.encode([row["path"], row["size"], row["tree_root"].hex()]))
    return whole.hexdigest()


@retried
def cancel(node: Node, who: Who, deposit_id: str, command: str) -> None:
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, DEPOSIT, deposit_id)
        allow(node, who, "deposit.cancel", resource(state))
        if streams.done(unit, who.account_id, command):
            return
        order = deposit.Cancel(by=who.account_id, at=at)
        facts = deposit.Facts(owner=state.custodian == who.account_id)
        step = Step(DEPOSIT, deposit_id, version, state, deposit.decide(state, order, facts))
        streams.commit(unit, [step], by=who.account_id, at=at, command=command)


def show(node: Node, who: Who, deposit_id: str) -> View:
    with node.records.reading() as unit:
        state, _ = streams.need(unit, DEPOSIT, deposit_id)
        allow(node, who, "deposit.see", resource(state))
        return _show(unit, state)


def _show(unit: Unit, state: deposit.Deposit) -> View:
    rows = unit.rows("file", {"deposit": state.deposit_id}, order="path")
    name = unit.rows("dataset", {"id": state.dataset_id})[0]["name"]
    kept = _archived(unit, state, rows)
    files = [received(row | ({"state": "archived"} if row["id"] in kept else {})) for row in rows if row["path"]]
    files += [_arriving(row) for row in unit.rows("upload", {"deposit": state.deposit_id}) if row["state"] != "done"]
    files.sort(key=lambda file: file.path)
    state = msgspec.structs.replace(state, reason=text.get(unit, state.reason))
    return View(deposit_id=state.deposit_id, dataset=name, state=state, files=files)


def _archived(unit: Unit, state: deposit.Deposit, rows: Sequence[dict[str, Any]]) -> set[str]:
    """Ids of the files that rest where the dataset's rule wants them."""
    if state.phase != "published":
        return set()
    wanted, there = placement.rule_of(unit, state.dataset_id).copies, Counter[str]()
    for start in range(0, len(rows), BATCH):
        bodies = [row["body"] for row in rows[start : start + BATCH]]
        there.update(row["body"] for row in unit.rows("copy", {"body": bodies, "state": "whole"}))
    return {row["id"] for row in rows if row["state"] == "verified" and there[row["body"]] >= wanted}


def mine(node: Node, who: Who) -> list[View]:
    """The actor's deposits, newest first, without their files."""
    with node.records.reading() as unit:
        states = streams.find(unit, DEPOSIT, link=("custodian", who.account_id), limit=100)
        states = [msgspec.structs.replace(state, reason=text.get(unit, state.reason)) for state in states]
        found = unit.rows("dataset", {"id": sorted({state.dataset_id for state in states})}) if states else []
    name = {row["id"]: row["name"] for row in found}
    return [View(deposit_id=s.deposit_id, dataset=name[s.dataset_id], state=s, files=[]) for s in states]
