"""Deposits: open one, send its files, hand it in."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Annotated, Final

import anyio
import anyio.to_thread
from fastapi import Header, Request
from pydantic import Field
from starlette.responses import Response

from valv.api.answer import BYTES, Created, answer, answers, nothing
from valv.api.asking import Body, Command, Id, Known, Line, Text
from valv.api.incoming import Sender
from valv.api.routes import PREFIX, routes
from valv.app import batch, deposit
from valv.app.dataset import Description
from valv.app.node import refuse
from valv.app.operation import performs
from valv.core.classes import DataClass
from valv.errors import FormatFault, InputFault
from valv.formats import batch as batches

router = routes("deposits", f"{PREFIX}/deposits")

UPLOADS: Final = 64
"""Files that arrive at the same time; further ones wait for a place."""
BATCHES: Final = 8
"""Batches in memory at the same time."""
IDLE: Final = 120.0
"""Seconds without a byte after which a sender counts as gone."""
_SHA256: Final = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]+=*):")


class NewDeposit(Body):
    """`consent`: DUO terms such as `GRU` or `DS=MONDO:0005147`; `committee`: who decides on access."""

    dataset: Line
    claimed: DataClass = Field(alias="class")
    consent: list[Line] = Field(max_length=100)
    committee: Line
    title: Line = ""
    description: Text = ""
    diseases: list[Line] = Field(default=[], max_length=100)
    data_types: list[Line] = Field(default=[], max_length=100)
    keywords: list[Line] = Field(default=[], max_length=100)


class Submission(Body):
    """`expected`: the paths that were meant to be sent; one that is missing is a refusal. `sums`: SHA-256, hex, of
    files as they were sent, by path; one that is not that of what was received is a refusal."""

    expected: list[Annotated[str, Field(max_length=1024)]] = Field(default=[], max_length=100_000)
    sums: dict[Annotated[str, Field(max_length=1024)], Annotated[str, Field(pattern="^[0-9A-Fa-f]{64}$")]] = Field(
        default={}, max_length=100_000
    )


@router.post("")
@performs("deposit.open")
@answers(Created, 201, "the deposit is open")
def open_deposit(ask: Known, command: Command, body: NewDeposit) -> Response:
    """Begin a deposit. A dataset of this name is made where there is none."""
    ident = deposit.open_deposit(
        ask.node,
        ask.who,
        name=body.dataset,
        claimed=body.claimed,
        consent=body.consent,
        committee=body.committee,
        about=Description(
            title=body.title,
            description=body.description,
            diseases=tuple(body.diseases),
            data_types=tuple(body.data_types),
            keywords=tuple(body.keywords),
        ),
        command=command,
    )
    return answer(Created(deposit_id=ident), 201)


@router.get("")
@performs("deposit.see")
@answers(list[deposit.View], summary="newest first, without their files")
def list_deposits(ask: Known) -> Response:
    """One's own deposits."""
    return answer(deposit.mine(ask.node, ask.who))


@router.get("/{deposit_id}")
@performs("deposit.see")
@answers(deposit.View, summary="the deposit with its files")
def show_deposit(ask: Known, deposit_id: Id) -> Response:
    """A deposit and what has arrived."""
    return answer(deposit.show(ask.node, ask.who, deposit_id))


@router.put(
    "/{deposit_id}/files/{path:path}",
    openapi_extra={"requestBody": {"required": True, "content": {BYTES: {"schema": {"type": "string"}}}}},
)
@performs("deposit.receive")
@answers(deposit.Received, summary="the file is kept, encrypted")
async def receive_file(
    request: Request,
    ask: Known,
    deposit_id: Id,
    path: str,
    content_digest: Annotated[
        str | None,
        Header(description="RFC 9530: `sha-256=:BASE64:`, held against the bytes as they arrive.", max_length=1000),
    ] = None,
) -> Response:
    """Send one file, plain or as Crypt4GH for the node's public key. Nothing is kept of a file that does not arrive
    whole, or whose checksum is not the declared one."""
    declared = _declared(content_digest)
    if "\N{REPLACEMENT CHARACTER}" in path:
        raise refuse("path_wrong", "the file name is not UTF-8")

    def receive(chunks: Iterator[bytes]) -> deposit.Received:
        return deposit.receive(ask.node, ask.who, deposit_id, path, chunks, declared=declared)

    return answer(await Sender(request, IDLE).taken(receive, request.app.state.uploads))


@router.post(
    "/{deposit_id}/batch",
    openapi_extra={"requestBody": {"required": True, "content": {batches.MEDIA: {"schema": {"type": "string"}}}}},
)
@performs("deposit.receive")
@answers(list[batch.Result], summary="what came of each file, in order")
async def receive_batch(request: Request, ask: Known, deposit_id: Id) -> Response:
    """Send many small files in one go (docs/formats/batch.md). Each is taken or refused by itself."""
    await anyio.to_thread.run_sync(lambda: deposit.check_open(ask.node, ask.who, deposit_id))
    async with request.app.state.batches:
        body, sender = bytearray(), Sender(request, IDLE)
        while piece := await sender.more():
            body += piece
            if len(body) > batches.MOST_BYTES:
                raise FormatFault(f"a batch has at most {batches.MOST_BYTES} bytes", "send several")

        def receive() -> list[batch.Result]:
            return batch.receive_batch(ask.node, ask.who, deposit_id, list(batches.decode(bytes(body))))

        return answer(await anyio.to_thread.run_sync(receive, limiter=request.app.state.uploads))


@router.delete("/{deposit_id}/files/{path:path}")
@performs("deposit.receive")
@answers(status=204)
def drop_file(ask: Known, deposit_id: Id, path: str) -> Response:
    """Take a file out of an open deposit, so that another may be sent in its place."""
    deposit.drop_file(ask.node, ask.who, deposit_id, path)
    return nothing()


@router.post("/{deposit_id}/submission")
@performs("deposit.submit")
@answers(deposit.View, summary="handed in; the node verifies and publishes it")
def submit_deposit(ask: Known, command: Command, deposit_id: Id, body: Submission) -> Response:
    """Hand a deposit in."""
    return answer(
        deposit.submit(ask.node, ask.who, deposit_id, expected=body.expected, sums=body.sums, command=command)
    )


@router.delete("/{deposit_id}")
@performs("deposit.cancel")
@answers(status=204)
def cancel_deposit(ask: Known, command: Command, deposit_id: Id) -> Response:
    """Cancel an open deposit; its files are dropped."""
    deposit.cancel(ask.node, ask.who, deposit_id, command)
    return nothing()


def _declared(header: str | None) -> str:
    """The SHA-256 of a Content-Digest header, hex; '' without one. One that cannot be checked is a fault: the sender
    relies on it."""
    if header is None:
        return ""
    found = _SHA256.search(header)
    try:
        digest = base64.b64decode(found[1], validate=True) if found else b""
    except binascii.Error:
        digest = b""
    if len(digest) != 32:
        raise InputFault(
            "Content-Digest: names no SHA-256", "write 'sha-256=:BASE64:' with the digest of the bytes sent"
        )
    return digest.hex()
