"""Files that come in pieces: tus 1.0.0 with creation, termination, checksum and expiration.

An upload belongs to a deposit and a path in it: `filename` of `Upload-Metadata`; `sha256` there (hex) is of the whole
file. Besides what tus asks for, problems are answered as everywhere here.
"""

from __future__ import annotations

import base64
import binascii
import re
from email.utils import format_datetime
from typing import Annotated, Final

import anyio
import anyio.to_thread
from fastapi import Header, Request
from starlette.responses import Response

from valv.api import deposits, problem
from valv.api.answer import answer, answers
from valv.api.asking import Anyone, Command, Id, Known
from valv.api.incoming import Sender
from valv.api.routes import PREFIX, routes
from valv.app import upload
from valv.app.node import refuse
from valv.app.operation import performs
from valv.app.upload import CHECKSUMS, Checksum, Upload
from valv.errors import InputFault, RefusedFault

router = routes("uploads", f"{PREFIX}/deposits/{{deposit_id}}/uploads")

VERSION: Final = "1.0.0"
EXTENSIONS: Final = "creation,termination,checksum,expiration"
MEDIA: Final = "application/offset+octet-stream"
PATIENCE: Final = 10.0
"""Seconds that who asks for the offset waits until what a sender sent before is kept."""
_NUMBER: Final = re.compile(r"\d{1,18}")
_SHA256: Final = re.compile(r"[0-9A-Fa-f]{64}")

Resumable = Annotated[str | None, Header(description=f"`{VERSION}`", max_length=20)]
Number = Annotated[str | None, Header(max_length=20)]


class Senders:
    """Who is sending at the moment, by upload. Lives on the event loop."""

    def __init__(self) -> None:
        self._going: dict[str, tuple[Sender, anyio.Event]] = {}

    def begin(self, upload_id: str, sender: Sender) -> None:
        if upload_id in self._going:
            raise refuse("upload_busy")
        self._going[upload_id] = sender, anyio.Event()

    def end(self, upload_id: str) -> None:
        self._going.pop(upload_id)[1].set()

    async def stop(self, upload_id: str) -> None:
        """Who asks where to go on has lost the connection that it sent on before, also where we do not know that yet:
        what came there is kept first."""
        if upload_id in self._going:
            sender, ended = self._going[upload_id]
            sender.stop()
            with anyio.move_on_after(PATIENCE):
                await ended.wait()


@router.options("")
@performs("node.see")
@answers(status=204)
def tus_capabilities(ask: Anyone, deposit_id: Id) -> Response:  # noqa: ARG001 - of no deposit alone
    """What of tus is spoken here."""
    return Response(
        status_code=204,
        headers={
            "Tus-Resumable": VERSION,
            "Tus-Version": VERSION,
            "Tus-Extension": EXTENSIONS,
            "Tus-Checksum-Algorithm": ",".join(CHECKSUMS),
            "Tus-Max-Size": str(ask.node.config.serve.max_upload),
        },
    )


@router.post("")
@performs("deposit.receive")
@answers(status=201, summary="the upload may begin, at the address in `Location`")
def create_upload(
    request: Request,
    ask: Known,
    command: Command,
    deposit_id: Id,
    upload_length: Number = None,
    upload_metadata: Annotated[str | None, Header(max_length=8192)] = None,
    tus_resumable: Resumable = None,
) -> Response:
    """Announce a file. `Upload-Metadata`: `filename` is its path in the deposit."""
    if (wrong := _version(request, tus_resumable)) is not None:
        return wrong
    said = _metadata(upload_metadata or "")
    sha256 = said.get("sha256", "")
    if sha256 and not _SHA256.fullmatch(sha256):
        raise InputFault("Upload-Metadata: sha256 is 64 hexadecimal digits")
    if not said.get("filename"):
        raise InputFault("Upload-Metadata: filename is missing", "it is the file's path in the deposit")
    made = upload.create(
        ask.node,
        ask.who,
        deposit_id,
        path=said["filename"],
        length=_number("Upload-Length", upload_length),
        sha256=sha256.lower(),
        metadata=upload_metadata or "",
        command=command,
    )
    where = f"{PREFIX}/deposits/{deposit_id}/uploads/{made.upload_id}"
    return Response(status_code=201, headers=_told(made) | {"Location": where})


@router.get("")
@performs("deposit.receive")
@answers(list[Upload], summary="by path")
def list_uploads(ask: Known, deposit_id: Id) -> Response:
    """The uploads of a deposit that are no files yet, and how far they are."""
    return answer(upload.listed(ask.node, ask.who, deposit_id))


@router.head("/{upload_id}")
@performs("deposit.receive")
@answers(summary="`Upload-Offset` tells how many bytes are there")
async def look_at_upload(
    request: Request, ask: Known, deposit_id: Id, upload_id: Id, tus_resumable: Resumable = None
) -> Response:
    """Where to go on. A sender that is still at it is cut off, and what came of it counts."""
    if (wrong := _version(request, tus_resumable)) is not None:
        return wrong

    def show() -> Upload:
        return upload.show(ask.node, ask.who, deposit_id, upload_id)

    await anyio.to_thread.run_sync(show)
    await request.app.state.senders.stop(upload_id)
    found = await anyio.to_thread.run_sync(show)
    headers = _told(found) | {"Upload-Length": str(found.length), "Cache-Control": "no-store"}
    if found.metadata:
        headers["Upload-Metadata"] = found.metadata
    return Response(status_code=200, headers=headers)


@router.patch(
    "/{upload_id}",
    openapi_extra={"requestBody": {"required": True, "content": {MEDIA: {"schema": {"type": "string"}}}}},
)
@performs("deposit.receive")
@answers(status=204)
async def append_to_upload(
    request: Request,
    ask: Known,
    deposit_id: Id,
    upload_id: Id,
    upload_offset: Number = None,
    upload_checksum: Annotated[
        str | None, Header(description=f"algorithm ({', '.join(CHECKSUMS)}) and base64, of this body", max_length=200)
    ] = None,
    content_type: Annotated[str | None, Header(max_length=200)] = None,
    tus_resumable: Resumable = None,
) -> Response:
    """Send the rest of a file, or some of it. What arrives is kept also where the connection is cut, unless a checksum
    was declared for it. One sender at a time: another one is answered 423."""
    if (wrong := _version(request, tus_resumable)) is not None:
        return wrong
    if (content_type or "").partition(";")[0].strip().lower() != MEDIA:
        return problem.of_fault(InputFault(f"the body must be {MEDIA}"), problem.where(request), status=415)
    offset, checksum = _number("Upload-Offset", upload_offset), _checksum(upload_checksum)
    await anyio.to_thread.run_sync(lambda: upload.show(ask.node, ask.who, deposit_id, upload_id))
    sender, senders = Sender(request, deposits.IDLE), request.app.state.senders
    senders.begin(upload_id, sender)
    try:
        found = await sender.taken(
            lambda chunks: upload.append(
                ask.node, ask.who, deposit_id, upload_id, offset=offset, chunks=chunks, checksum=checksum
            ),
            request.app.state.uploads,
        )
    except RefusedFault as fault:
        if fault.refusal.code != "checksum":
            raise
        return problem.of_fault(fault, problem.where(request), status=460)
    finally:
        senders.end(upload_id)
    return Response(status_code=204, headers=_told(found))


@router.delete("/{upload_id}")
@performs("deposit.receive")
@answers(status=204)
async def drop_upload(
    request: Request, ask: Known, deposit_id: Id, upload_id: Id, tus_resumable: Resumable = None
) -> Response:
    """Give an upload up; what came of it is deleted."""
    if (wrong := _version(request, tus_resumable)) is not None:
        return wrong
    await anyio.to_thread.run_sync(lambda: upload.show(ask.node, ask.who, deposit_id, upload_id))
    await request.app.state.senders.stop(upload_id)
    await anyio.to_thread.run_sync(lambda: upload.drop(ask.node, ask.who, deposit_id, upload_id))
    return Response(status_code=204)


def _version(request: Request, said: str | None) -> Response | None:
    if said == VERSION:
        return None
    fault = InputFault(f"Tus-Resumable: {VERSION} is spoken here", f"send the header 'Tus-Resumable: {VERSION}'")
    return problem.of_fault(fault, problem.where(request), status=412, headers={"Tus-Version": VERSION})


def _told(found: Upload) -> dict[str, str]:
    headers = {"Upload-Offset": str(found.offset)}
    if found.state in ("open", "whole"):
        headers["Upload-Expires"] = format_datetime(found.expires, usegmt=True)
    return headers


def _number(name: str, said: str | None) -> int:
    if not _NUMBER.fullmatch(said or ""):
        raise InputFault(f"{name} is a number of bytes")
    return int(said or "")


def _metadata(text: str) -> dict[str, str]:
    """Pairs of a name and base64 of its value, with commas between them. Raises `InputFault`."""
    found: dict[str, str] = {}
    for pair in text.split(",") if text.strip() else ():
        name, _, value = pair.strip().partition(" ")
        if not name.isascii() or not name or name in found:
            raise InputFault("Upload-Metadata: each name is ASCII, and there once")
        try:
            found[name] = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise InputFault("Upload-Metadata: a value is base64 of UTF-8") from None
    return found


def _checksum(said: str | None) -> Checksum | None:
    if said is None:
        return None
    algorithm, _, value = said.strip().partition(" ")
    if algorithm not in CHECKSUMS:
        raise InputFault(f"Upload-Checksum: {', '.join(CHECKSUMS)} are known here")
    try:
        return Checksum(algorithm, base64.b64decode(value.strip(), validate=True))
    except binascii.Error:
        raise InputFault("Upload-Checksum: an algorithm and base64") from None
