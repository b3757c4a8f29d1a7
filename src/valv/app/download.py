"""Download of anonymised data: the header re-sealed to the researcher's registered key, the body as it rests."""

from __future__ import annotations

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
from valv.errors import RefusedFault
from valv.ports.lease import TERM
from valv.ports.records import Unit

CHUNK = 1 << 20
"""Bytes sent between two looks at the clock."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A file that a permit lets its holder download. `size`: plain bytes; `sha256`: hex, of the plain bytes."""

    file_id: str
    dataset: str
    version: int
    path: str
    size: int
    sha256: str


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """An encrypted download: `header` sealed to the holder's key, then `body_size` bytes of body."""

    path: str
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
                    )
                )
    return sorted(found, key=lambda item: (item.dataset, item.path))


@retried
def open_file(node: Node, who: Who, permit_id: str, file_id: str, *, key_id: str, start: int = 0) -> Opened:
    """Begin a download of one file, from byte `start` of header and body together. `key_id`: one of the account's
    registered keys. The body ends early where the permit ends meanwhile."""
    at = node.clock()
    with node.records.writing() as unit:
        state = _permitted(node, who, unit, permit_id)
        rows = [
            row
            for wanted in state.datasets
            for row in reading.files(unit, wanted.dataset_id, wanted.version)
            if row["id"] == file_id
        ]
        if not rows:
            raise refuse("no_file")
        keys = unit.rows("account_key", {"id": key_id, "account": who.account_id, "ended": None})
        if not keys:
            raise refuse("no_key")
        version = streams.need(unit, PERMIT, permit_id)[1]
        order = permit.RecordDownload(
            by=who.account_id, at=at, file_id=file_id, key=keys[0]["fingerprint"], start=start
        )
        step = Step(PERMIT, permit_id, version, state, permit.decide(state, order, permit.Facts()))
        streams.commit(unit, [step], by=who.account_id, at=at, command=new_id())
    row = rows[0]
    header = _resealed(node, row, keys[0]["public"])
    if not 0 <= start <= len(header) + row["cipher_size"]:
        raise refuse("no_file", "the range begins outside the file")
    wanted = Wanted(row["dataset"], row["version"])
    return Opened(
        path=f"{row['path']}.c4gh",
        header=header,
        body_size=row["cipher_size"],
        chunks=_leased(node, who, permit_id, wanted, header, row, start),
    )


def _resealed(node: Node, row: dict[str, Any], public: bytes) -> bytes:
    try:
        return node.keys.reseal_outside(row["key_id"], row["header"], public)
    except RefusedFault as fault:
        if fault.refusal.code == "key_stays_inside":
            # The records say anonymised and the key holder not yet: the worker tells it within a second or two.
            raise refuse("not_yet", "the assessment is just being taken over: try again in a few seconds") from None
        raise


def _leased(
    node: Node, who: Who, permit_id: str, wanted: Wanted, header: bytes, row: dict[str, Any], start: int
) -> Iterator[bytes]:
    """Header and body from `start`. At least every half lease term the permit is asked again."""
    asked = -TERM
    if start < len(header):
        yield header[start:]
    offset = max(0, start - len(header))
    body = node.storage.open(row["body"])
    try:
        while offset < row["cipher_size"]:
            now = time.monotonic()
            if now - asked >= TERM / 2:
                _still(node, who, permit_id, wanted)
                asked = now
            chunk = bytearray(min(CHUNK, row["cipher_size"] - offset))
            count = body.pread_into(chunk, offset)
            if count == 0:
                return
            offset += count
            yield bytes(chunk[:count])
    finally:
        body.close()


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
