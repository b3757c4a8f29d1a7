"""Files of a form, taken as they come. Plain bytes go straight to the encryption: no file and no buffer of the whole.

The fields of the form come before its files (as in our page), so that its token is checked before the first byte of a
file is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from valv.app import deposit
from valv.errors import Fault, InputFault
from valv.web import token
from valv.web.multipart import Part, parts
from valv.web.problem import FIXABLE, sentence
from valv.web.visit import Member, Visit

LARGEST_FIELD = 4096
AHEAD = 8
"""Pieces (of at most 64 KiB, as the server reads them) that may wait in memory for the encryption."""


@dataclass
class Taken:
    """What came of an upload: paths that were stored, and a sentence for each file that was not."""

    received: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    status: int = 400


async def uploaded(request: Request, visit: Member, deposit_id: str) -> Taken:
    """Store the files of a multipart form. A file that is refused does not keep the others from being taken."""
    token.check_origin(request.headers, visit.node.config.public_url)
    fields: dict[str, str] = {}
    taken = Taken()
    async for part in parts(request):
        if part.filename is None:
            fields[part.name] = (await part.text(LARGEST_FIELD)).strip()
            continue
        token.check(visit.door.key, visit.mark, fields.get("token", ""))
        if not part.filename:
            continue  # a browser's empty file field
        folder = fields.get("folder", "").strip("/")
        path = f"{folder}/{part.filename}" if folder else part.filename
        try:
            await _store(visit, deposit_id, path, part)
        except FIXABLE as fault:
            taken.faults.append(f"{path}: {sentence(fault)}")
            taken.status = fault.row.status
        else:
            taken.received.append(path)
    token.check(visit.door.key, visit.mark, fields.get("token", ""))
    return taken


Uploaded = Annotated[Taken, Depends(uploaded)]


async def _store(visit: Visit, deposit_id: str, path: str, part: Part) -> None:
    """Carry one file from the connection to `deposit.receive`, which runs in a thread and pulls at its own pace."""
    send, pull = anyio.create_memory_object_stream[bytes | None](AHEAD)
    failed: list[Fault] = []

    def take() -> None:
        try:
            deposit.receive(visit.node, visit.who, deposit_id, path, _pulled(pull))
        except Fault as fault:
            failed.append(fault)

    async def store() -> None:
        with pull:
            await anyio.to_thread.run_sync(take, limiter=visit.door.uploads)

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(store)
            await _feed(part, send)
    except* ClientDisconnect:
        raise InputFault("the upload broke off", "send the file again") from None
    if failed:
        raise failed[0]


async def _feed(part: Part, send: MemoryObjectSendStream[bytes | None]) -> None:
    """Send the part's bytes, then None. Where nobody takes them any more (the file was refused) the rest is read and
    dropped, so that the browser gets to hear why."""
    wanted = True
    with send:
        async for piece in part.pieces():
            if wanted:
                try:
                    await send.send(piece)
                except anyio.BrokenResourceError:
                    wanted = False
        if wanted:
            try:
                await send.send(None)
            except anyio.BrokenResourceError:
                return


def _pulled(pull: MemoryObjectReceiveStream[bytes | None]) -> Iterator[bytes]:
    """In the thread: the pieces until None. An end without it means that the sender is gone: nothing may be kept."""
    while True:
        try:
            piece = anyio.from_thread.run(pull.receive)
        except anyio.EndOfStream:
            raise InputFault("the upload broke off", "send the file again") from None
        if piece is None:
            return
        yield piece
