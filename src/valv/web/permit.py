"""Permits: what they allow, what hangs off them, their end; and downloads, sealed to the holder's own key."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from valv.app import account, download, permit
from valv.app.operation import performs
from valv.errors import RefusedFault
from valv.web.form import Sent
from valv.web.problem import FIXABLE, Problem, sentence, told
from valv.web.visit import Member, Visit

router = APIRouter()


@router.get("/permits")
@performs("permit.see")
def mine(visit: Member) -> Response:
    return visit.page("permits.html", permits=permit.mine(visit.node, visit.who))


@router.get("/permits/{permit_id}")
@performs("permit.see")
def show(visit: Member, permit_id: str) -> Response:
    return _page(visit, permit_id)


def _page(visit: Visit, permit_id: str, problems: list[Problem] | None = None, status: int = 200) -> Response:
    view = permit.show(visit.node, visit.who, permit_id)
    holder = visit.who.account_id in view.state.people
    usable = holder and view.standing is None
    files: list[download.Listed] = []
    closed = ""
    if usable and view.state.mode == "download":
        try:
            files = download.files(visit.node, visit.who, permit_id)
        except RefusedFault as fault:
            closed = sentence(fault)
    return visit.page(
        "permit.html",
        status,
        problems=problems,
        view=view,
        holder=holder,
        usable=usable,
        files=files,
        closed=closed,
        keys=account.keys(visit.node, visit.who) if files else [],
    )


@router.post("/permits/{permit_id}/revoke")
@performs("permit.revoke")
def revoke(visit: Member, permit_id: str, form: Sent) -> Response:
    try:
        permit.revoke(visit.node, visit.who, permit_id, reason=form.text("reason"), command=form.command)
    except FIXABLE as fault:
        return _page(visit, permit_id, [told(fault, {"reason_missing": "reason"})], fault.row.status)
    return visit.go(f"/permits/{permit_id}")


@router.post("/permits/{permit_id}/resume")
@performs("permit.resume")
def resume(visit: Member, permit_id: str, form: Sent) -> Response:
    try:
        permit.resume(visit.node, visit.who, permit_id, reason=form.text("reason"), command=form.command)
    except FIXABLE as fault:
        return _page(visit, permit_id, [told(fault, {"reason_missing": "resume-reason"})], fault.row.status)
    return visit.go(f"/permits/{permit_id}")


@router.post("/permits/{permit_id}/give-back")
@performs("permit.give_back")
def give_back(visit: Member, permit_id: str, form: Sent) -> Response:
    try:
        permit.give_back(visit.node, visit.who, permit_id, form.command)
    except FIXABLE as fault:
        return _page(visit, permit_id, [told(fault, {})], fault.row.status)
    return visit.go(f"/permits/{permit_id}")


@router.get("/permits/{permit_id}/files/{file_id}")
@performs("data.download")
def fetch(visit: Member, permit_id: str, file_id: str, key: str = "") -> Response:
    opened = download.open_file(visit.node, visit.who, permit_id, file_id, key_id=key)
    return attachment(opened.path, opened.size, opened.chunks)


def attachment(path: str, size: int, chunks: Iterator[bytes]) -> StreamingResponse:
    """A file to keep, never one to open in the portal's own place."""
    name = path.rpartition("/")[2]
    headers = {
        "content-length": str(size),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
    }
    return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)
