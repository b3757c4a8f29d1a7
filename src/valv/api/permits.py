"""Permits: what they allow, their end, and the download of anonymised files."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import Header, Query, Request
from starlette.responses import Response

from valv.api import problem
from valv.api.answer import BYTES, answer, answers, disposition, nothing, stream
from valv.api.asking import Command, Id, Known, Reason
from valv.api.routes import PREFIX, routes
from valv.app import download, permit
from valv.app.node import refuse
from valv.app.operation import performs
from valv.errors import InputFault

router = routes("permits", f"{PREFIX}/permits")

_RANGE: Final = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")
"""The ranges that are served: from a byte to another or to the end. Others, and several at once, are answered with the
whole file (RFC 9110, 14.2)."""
_TAG: Final = re.compile(r'"([0-9a-f]{32})"')


@router.get("")
@performs("permit.see")
@answers(list[permit.View], summary="newest first")
def list_permits(ask: Known) -> Response:
    """The permits that name one, and those of datasets that one answers for."""
    return answer(permit.mine(ask.node, ask.who))


@router.get("/{permit_id}")
@performs("permit.see")
@answers(permit.View, summary="the permit")
def show_permit(ask: Known, permit_id: Id) -> Response:
    """A permit, and whether it can be used now."""
    return answer(permit.show(ask.node, ask.who, permit_id))


@router.post("/{permit_id}/revocation")
@performs("permit.revoke")
@answers(status=204)
def revoke_permit(ask: Known, command: Command, permit_id: Id, body: Reason) -> Response:
    """End a permit now; reads, runs and downloads end within a second."""
    permit.revoke(ask.node, ask.who, permit_id, reason=body.reason, command=command)
    return nothing()


@router.post("/{permit_id}/resumption")
@performs("permit.resume")
@answers(status=204)
def resume_permit(ask: Known, command: Command, permit_id: Id, body: Reason) -> Response:
    """Let a suspended permit be used again, by the committee's word."""
    permit.resume(ask.node, ask.who, permit_id, reason=body.reason, command=command)
    return nothing()


@router.post("/{permit_id}/surrender")
@performs("permit.give_back")
@answers(status=204)
def surrender_permit(ask: Known, command: Command, permit_id: Id) -> Response:
    """Give a permit back."""
    permit.give_back(ask.node, ask.who, permit_id, command)
    return nothing()


@router.get("/{permit_id}/files")
@performs("data.download")
@answers(list[download.Listed], summary="by dataset and path")
def list_files(ask: Known, permit_id: Id) -> Response:
    """The files that a permit lets its holder download."""
    return answer(download.files(ask.node, ask.who, permit_id))


@router.head("/{permit_id}/files/{file_id}")
@performs("data.download")
@answers(summary="the file can be downloaded", media=BYTES)
def look_at_file(ask: Known, permit_id: Id, file_id: Id) -> Response:
    """Whether a file can be downloaded. Its length is told by the download itself, whose header is made for one key."""
    found = next((file for file in download.files(ask.node, ask.who, permit_id) if file.file_id == file_id), None)
    if found is None:
        raise refuse("no_file")
    response = Response(
        media_type=BYTES,
        headers={
            "Accept-Ranges": "bytes",
            "Content-Disposition": disposition(f"{found.path}.c4gh"),
            "ETag": f'"{found.etag}"',
        },
    )
    del response.headers["Content-Length"]
    return response


@router.get("/{permit_id}/files/{file_id}")
@performs("data.download")
@answers(summary="Crypt4GH, sealed to the key; 206 where a rest was asked for", media=BYTES)
def download_file(
    request: Request,
    ask: Known,
    permit_id: Id,
    file_id: Id,
    key: Annotated[str, Query(pattern="^[A-Za-z0-9_-]{1,100}$", description="id of one of one's registered keys")],
    range: Annotated[
        str | None,
        Header(description="`bytes=N-` continues a download that broke off, `bytes=N-M` is a part", max_length=100),
    ] = None,
    if_range: Annotated[
        str | None,
        Header(description="the `ETag` of the part that is there; else the file comes whole", max_length=100),
    ] = None,
) -> Response:
    """Download a file, encrypted for one's own key. It breaks off where the permit ends meanwhile.

    The `ETag` is that of the body. A file that was encrypted anew has another: a part of the one before is not
    continued, the answer is the whole file. Without `If-Range` a part is continued only of a file that never was."""
    asked = _RANGE.fullmatch(range.strip()) if range else None
    if asked and asked[2] and int(asked[2]) < int(asked[1]):
        asked = None
    tag = _TAG.fullmatch(if_range.strip()) if if_range else None
    asked = asked if tag or not if_range else None
    start = int(asked[1]) if asked else 0
    end = int(asked[2]) + 1 if asked and asked[2] else None
    seen = tag[1] if tag else ""
    opened = download.open_file(
        ask.node, ask.who, permit_id, file_id, key_id=key, start=start, end=end, seen=seen, lenient=True
    )
    start = opened.start
    if start and start >= opened.size:
        fault = InputFault("the range begins at the end of the file or behind it", "the file is complete")
        where = problem.where(request)
        return problem.of_fault(fault, where, status=416, headers={"Content-Range": f"bytes */{opened.size}"})
    response = stream(opened.chunks, size=opened.end - start, name=opened.path)
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["ETag"] = f'"{opened.etag}"'
    if start:
        response.status_code = 206
        response.headers["Content-Range"] = f"bytes {start}-{opened.end - 1}/{opened.size}"
    return response
