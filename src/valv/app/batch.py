"""Many small files at once: the same as one after another, with one transaction before the first byte is written and
one after the last is durable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec

from valv.app.deposit import PARTICIPANTS, Received, check_path, drop_bodies, free, new_row, open_for, receive, received
from valv.app.node import Node, Who, refuse
from valv.errors import ConflictFault, Fault, RefusedFault
from valv.formats import crypt4gh, paths
from valv.formats.batch import Record
from valv.formats.seal import sidecar
from valv.ports.records import Unit
from valv.vault.encrypt import Encryptor

WRITERS: Final = 8
"""Files written at a time: the medium's waits are what takes long."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one file. `state`: received or refused; `code`, `reason`: why it was refused."""

    path: str
    state: str
    size: int = 0
    sha256: str = ""
    code: str = ""
    reason: str = ""


def receive_batch(node: Node, who: Who, deposit_id: str, records: Sequence[Record]) -> list[Result]:
    """Take files as `receive` does, each with its own result. Raises what concerns all of them."""
    results: dict[int, Result] = {}
    small: list[tuple[int, Record]] = []
    seen: set[str] = set()
    with node.records.reading() as unit:
        open_for(node, who, unit, deposit_id)
    for number, record in enumerate(records):
        try:
            check_path(record.path)
            if paths.folded(record.path) in seen:
                raise refuse("path_wrong", f"{record.path[:80]!r} is in the batch twice, or looks like another")
            seen.add(paths.folded(record.path))
            if record.content.startswith(crypt4gh.MAGIC) or record.path == PARTICIPANTS:
                got = receive(node, who, deposit_id, record.path, [record.content], declared=record.sha256)
                results[number] = _result(got)
                continue
            found = hashlib.sha256(record.content).hexdigest()
            if record.sha256 not in ("", found):
                raise refuse("checksum", f"received {found[:16]}…, declared {record.sha256[:16]}…")
            small.append((number, Record(record.path, record.content, found)))
        except RefusedFault as fault:
            results[number] = _refused(record.path, fault)
        except Fault as fault:
            if fault.row.status >= 500:
                raise
            results[number] = _refused(record.path, fault)
    results |= _receive(node, who, deposit_id, small)
    return [results[number] for number in range(len(records))]


def _receive(node: Node, who: Who, deposit_id: str, small: Sequence[tuple[int, Record]]) -> dict[int, Result]:
    results: dict[int, Result] = {}
    rows: dict[int, dict[str, Any]] = {}
    at = node.clock()
    with node.records.writing() as unit:
        state = open_for(node, who, unit, deposit_id)
        met = _met(unit, deposit_id, [record.path for _, record in small])
        for number, record in small:
            try:
                known = None
                if not met.isdisjoint(_above(record.path)):
                    known = free(node, unit, deposit_id, record.path, record.sha256)
            except RefusedFault as fault:
                results[number] = _refused(record.path, fault)
                continue
            if known is not None:
                results[number] = _result(known)
            else:
                rows[number] = new_row(state, record.path, at)
        unit.insert("file", rows.values())
    if not rows:
        return results
    try:
        public = node.keys.create(state.key_id, state.claimed)
        contents = {number: record.content for number, record in small if number in rows}

        def write(number: int) -> dict[str, Any]:
            return _write(node, rows[number]["body"], contents[number], public)

        with ThreadPoolExecutor(WRITERS, "batch") as pool:
            values = list(pool.map(write, rows))
        at = node.clock()
        with node.records.writing() as unit:
            open_for(node, who, unit, deposit_id)
            changes = [
                ({"id": row["id"], "state": "arriving"}, made | {"state": "received", "received": at})
                for row, made in zip(rows.values(), values, strict=True)
            ]
            unit.update_each("file", changes)
            there = {row["id"] for row in unit.rows("file", {"id": [row["id"] for row in rows.values()]})}
    except BaseException:
        _forget(node, rows.values())
        raise
    # Another sender of the same file took its place meanwhile: what nobody points to must not stay.
    _forget(node, [row for row in rows.values() if row["id"] not in there])
    for (number, row), made in zip(rows.items(), values, strict=True):
        if row["id"] in there:
            results[number] = _result(received(row | made | {"state": "received"}))
        else:
            results[number] = _refused(row["path"], ConflictFault("it was sent twice at the same time"))
    return results


def _above(path: str) -> list[str]:
    """What a path would meet: itself, and each folder above it as a file."""
    ends = [end for end, letter in enumerate(path) if letter == "/"]
    return [paths.folded(path[:end]) for end in [*ends, len(path)]]


def _met(unit: Unit, deposit_id: str, names: Sequence[str]) -> set[str]:
    wanted = sorted({one for name in names for one in _above(name)})
    return {row["folded"] for row in unit.rows("file", {"deposit": deposit_id, "folded": wanted})} if wanted else set()


def _write(node: Node, body: str, content: bytes, public: bytes) -> dict[str, Any]:
    writer = node.storage.writer(body)
    try:
        sink = Encryptor(writer, node.storage.writer(sidecar(body)), public)
    except BaseException:
        writer.abort()
        raise
    try:
        sink.write(content)
        made = sink.finish()
    except BaseException:
        sink.abort()
        raise
    return {
        "header": made.header,
        "size": made.size,
        "cipher_size": made.cipher_size,
        "segments": made.segments,
        "seal_root": made.seal_root,
        "sha256": made.sha256,
        "sent_sha256": made.sha256,
        "tree_root": made.tree_root,
        "known_outside": False,
    }


def _forget(node: Node, rows: Iterable[dict[str, Any]]) -> None:
    """Bodies first, so that a fault here leaves rows to find them by."""
    rows = list(rows)
    for row in rows:
        drop_bodies(node, row)
    if rows:
        with node.records.writing() as unit:
            unit.delete("file", {"id": [row["id"] for row in rows], "state": "arriving"})


def _result(found: Received) -> Result:
    return Result(path=found.path, state="received", size=found.size, sha256=found.sha256)


def _refused(path: str, fault: Fault) -> Result:
    code = fault.refusal.code if isinstance(fault, RefusedFault) else fault.code
    return Result(path=path, state="refused", code=code, reason=fault.detail or fault.row.title)
