"""Download of anonymised data: the header re-sealed to the researcher's registered key, the body as it rests."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from valv.app import permit as permits
from valv.app import reading, streams
from valv.app.node import Node, Who, allow, new_id, refuse
from valv.app.streams import DATASET, PERMIT, Step, retried
from valv.core import permit
from valv.core.access import Wanted
from valv.core.authorize import Context
from valv.errors import ConflictFault, KeyFault, RefusedFault
from valv.ports.lease import TERM
from valv.ports.records import Unit
from valv.vault.ciphertext import CheckedBody

SEEN = 30.0
"""Seconds after which a download that goes on is noted again, so that a rotation leaves its body alone."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a permit lets its holder download. `size`: plain bytes; `sha256`: hex, of the plain bytes; `etag`:
    another one once the stored body is another; `body_root`: root of the hash tree over the body as it is downloaded
    (docs/formats/hashtree.md), hex."""

    file_id: str
    dataset: str
    version: int
    path: str
    size: int
    sha256: str
    etag: str
    body_root: str


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """An encrypted download: `header` sealed to the holder's key, then `body_size` bytes of body. `chunks` begin at
    byte `start` of both together, and go up to `end`, which is not included."""

    path: str
    etag: str
    start: int
    end: int
    header: bytes
    body_size: int
    chunks: Iterator[bytes]

    @property
    def size(self) -> int:
        return len(self.header) + self.body_size


def files(node: Node, who: Who, permit_id: str) -> list[Listed]:
    with node.records.reading() as unit:
        state = _permitted(node, who, unit, permit_id)
        found = []
        for wanted in state.datasets:
            owner, _ = streams.need(unit, DATASET, wanted.dataset_id)
            for row in reading.files(unit, wanted.dataset_id, wanted.version):
                digest = (row["sha256"] or b"").hex()
                found.append(
                    Listed(
                        file_id=row["id"],
                        dataset=owner.name,
                        version=wanted.version,
                        path=row["path"],
                        size=row["size"],
                        sha256=digest,
                        etag=etag(row),
                        body_root=row["tree_root"].hex(),
                    )
                )
    return sorted(found, key=lambda item: (item.dataset, item.path))


def etag(row: dict[str, Any]) -> str:
    """What tells this body of a file from those before and after it. It says nothing of where the body lies."""
    return hashlib.sha256(str(row["body"]).encode()).hexdigest()[:32]


@retried
def open_file(
    node: Node,
    who: Who,
    permit_id: str,
    file_id: str,
    *,
    key_id: str,
    start: int = 0,
    end: int | None = None,
    seen: str = "",
    lenient: bool = False,
) -> Opened:
    """Begin a download of one file, from byte `start` of header and body together up to `end` (not included). `key_id`:
    one of the account's registered keys; `seen`: the etag of the part that is there already. The file comes whole where
    that part is of another body, or ends within the header, which is sealed anew each time. The body ends early where
    the permit ends meanwhile. `lenient`: a start behind the end is the end, and no refusal."""
    at = node.clock()
    with node.records.writing() as unit:
        state = _permitted(node, who, unit, permit_id)
        row = _row(unit, state, file_id)
        keys = unit.rows("account_key", {"id": key_id, "account": who.account_id, "ended": None})
        if not keys:
            raise refuse("no_key")
        if seen != etag(row) if seen else row["rekeyed"] is not None:
            start = 0
        version = streams.need(unit, PERMIT, permit_id)[1]
        order = permit.RecordDownload(
            by=who.account_id, at=at, file_id=file_id, key=keys[0]["fingerprint"], start=start
        )
        step = Step(PERMIT, permit_id, version, state, permit.decide(state, order, permit.Facts()))
        streams.commit(unit, [step], by=who.account_id, at=at, command=new_id())
        unit.update("file", {"id": file_id, "known_outside": False}, {"known_outside": True})
        reading_id = new_id()
        unit.insert("open_body", [{"id": reading_id, "body": row["body"], "seen": at}])
    header = _header(node, row, keys[0]["public"])
    if lenient:
        start = min(start, len(header) + row["cipher_size"])
    if not 0 <= start <= len(header) + row["cipher_size"]:
        raise refuse("no_file", "the range begins outside the file")
    if start < len(header):
        start, end = 0, None
    size = len(header) + row["cipher_size"]
    end = size if end is None else min(end, size)
    wanted = Wanted(row["dataset"], row["version"])
    chunks = _leased(node, who, permit_id, wanted, header, row, (start, end), reading_id)
    next(chunks)  # it has the body open from now on, and closes it whatever becomes of the answer
    return Opened(
        path=f"{row['path']}.c4gh",
        etag=etag(row),
        start=start,
        end=end,
        header=header,
        body_size=row["cipher_size"],
        chunks=chunks,
    )


def _row(unit: Unit, state: permit.Permit, file_id: str) -> dict[str, Any]:
    for wanted in state.datasets:
        for row in reading.files(unit, wanted.dataset_id, wanted.version):
            if row["id"] == file_id:
                return row
    raise refuse("no_file")


def _header(node: Node, row: dict[str, Any], public: bytes) -> bytes:
    try:
        return _resealed(node, row, public)
    except KeyFault:
        # A rotation may have sealed it to a newer pair since, and retired the one that this header is for.
        with node.records.reading() as unit:
            now = unit.rows("file", {"id": row["id"], "body": row["body"]})
        if not now:
            raise ConflictFault("the file was encrypted anew at this moment") from None
        if now[0]["header"] == row["header"]:
            raise
        return _resealed(node, now[0], public)


def _resealed(node: Node, row: dict[str, Any], public: bytes) -> bytes:
    try:
        return node.keys.reseal_outside(row["key_id"], row["header"], public)
    except RefusedFault as fault:
        if fault.refusal.code == "key_stays_inside":
            # The records say anonymised and the key holder not yet: the worker tells it within a second or two.
            raise refuse("not_yet", "the assessment is just being taken over: try again in a few seconds") from None
        raise


def _leased(
    node: Node,
    who: Who,
    permit_id: str,
    wanted: Wanted,
    header: bytes,
    row: dict[str, Any],
    span: tuple[int, int],
    reading_id: str,
) -> Iterator[bytes]:
    """First nothing, with the body open; then of header and body what lies in `span`. At least every half lease term
    the permit is asked again. What does not hold against the hash tree ends the answer before it is given."""
    asked, noted = -TERM, time.monotonic()
    start, last = span[0], span[1] - len(header)
    offset = max(0, start - len(header))
    body = CheckedBody(node.storage.open, row["body"], cipher_size=row["cipher_size"], tree_root=row["tree_root"])
    try:
        yield b""
        if start < len(header):
            yield header[start:]
        while offset < last:
            now = time.monotonic()
            if now - asked >= TERM / 2:
                _still(node, who, permit_id, wanted)
                asked = now
            if now - noted >= SEEN:
                _note(node, reading_id)
                noted = now
            chunk = body.read(offset, last)
            offset += len(chunk)
            yield chunk
    finally:
        body.close()


def _note(node: Node, reading_id: str) -> None:
    with node.records.writing() as unit:
        unit.update("open_body", {"id": reading_id}, {"seen": node.clock()})


def _still(node: Node, who: Who, permit_id: str, wanted: Wanted) -> None:
    with node.records.reading() as unit:
        refusal = permits.stands(
            unit, permit_id, account_id=who.account_id, wanted=wanted, mode="download", at=node.clock()
        )
    if refusal is not None:
        raise RefusedFault(refusal)


def _permitted(node: Node, who: Who, unit: Unit, permit_id: str) -> permit.Permit:
    state, _ = streams.need(unit, PERMIT, permit_id)
    context = Context(country=who.principal.country, mode="download", outside=True)
    for resource in permits.resources(unit, state):
        allow(node, who, "data.download", resource, context)
    refusal = permits.stands(unit, permit_id, account_id=who.account_id, wanted=None, mode="download", at=node.clock())
    if refusal is not None:
        raise RefusedFault(refusal)
    return state
