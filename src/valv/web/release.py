"""Releases: the author asks, a checker looks and decides, the author fetches."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from valv.app import release
from valv.app.node import refuse
from valv.app.operation import performs
from valv.web import output
from valv.web.form import EMPTY, Form, Sent
from valv.web.permit import attachment
from valv.web.problem import FIXABLE, Problem, told
from valv.web.visit import Member, Visit

router = APIRouter()


@router.get("/releases")
@performs("release.see")
def mine(visit: Member) -> Response:
    views = release.mine(visit.node, visit.who)
    return visit.page(
        "releases.html",
        own=[view for view in views if view.state.author == visit.who.account_id],
        others=[view for view in views if view.state.author != visit.who.account_id],
    )


@router.get("/releases/{release_id}")
@performs("release.see")
def show(visit: Member, release_id: str) -> Response:
    return _page(visit, release_id)


def _page(
    visit: Visit, release_id: str, form: Form = EMPTY, problems: list[Problem] | None = None, status: int = 200
) -> Response:
    view = release.show(visit.node, visit.who, release_id)
    return visit.page("release.html", status, problems=problems, view=view, form=form)


@router.post("/releases/{release_id}/request")
@performs("release.request")
def request(visit: Member, release_id: str, form: Sent) -> Response:
    try:
        release.request(visit.node, visit.who, release_id, context=form.text("context"), command=form.command)
    except FIXABLE as fault:
        return _page(visit, release_id, form, [told(fault, {"context_missing": "context"})], fault.row.status)
    return visit.go(f"/releases/{release_id}")


@router.post("/releases/{release_id}/withdraw")
@performs("release.withdraw")
def withdraw(visit: Member, release_id: str, form: Sent) -> Response:
    try:
        release.withdraw(visit.node, visit.who, release_id, command=form.command)
    except FIXABLE as fault:
        return _page(visit, release_id, form, [told(fault, {})], fault.row.status)
    return visit.go(f"/releases/{release_id}")


@router.get("/releases/{release_id}/files/{file_id}")
@performs("release.inspect")
def inspect(visit: Member, release_id: str, file_id: str, part: str = "1") -> Response:
    number = int(part) if part.isdecimal() and len(part) < 7 and int(part) > 0 else 1
    return _inspect(visit, release_id, file_id, number)


def _inspect(
    visit: Visit,
    release_id: str,
    file_id: str,
    part: int,
    form: Form = EMPTY,
    problems: list[Problem] | None = None,
    status: int = 200,
) -> Response:
    file, chunks = release.inspect(visit.node, visit.who, visit.door.reader, release_id, file_id)
    shown = output.look(file.path, file.size, chunks, part)
    view = release.show(visit.node, visit.who, release_id)
    return visit.page("output.html", status, problems=problems, view=view, file=file, shown=shown, part=part, form=form)


@router.get("/releases/{release_id}/files/{file_id}/image")
@performs("release.inspect")
def image(visit: Member, release_id: str, file_id: str) -> Response:
    """An output that is a PNG or JPEG by its first bytes, for the page of the checker."""
    file, chunks = release.inspect(visit.node, visit.who, visit.door.reader, release_id, file_id)
    media, content = output.picture(file.size, chunks)
    return StreamingResponse(content, media_type=media, headers={"content-length": str(file.size)})


@router.post("/releases/{release_id}/files/{file_id}")
@performs("release.check")
def check(visit: Member, release_id: str, file_id: str, form: Sent) -> Response:
    try:
        word = form.text("word")
        if word not in ("approve", "reject"):
            raise refuse("reason_missing", "say whether the file may leave")
        release.check(
            visit.node,
            visit.who,
            release_id,
            file_id=file_id,
            approve=word == "approve",
            reason=form.text("reason"),
            seen=form.text("manifest"),
            command=form.command,
        )
    except FIXABLE as fault:
        problem = told(fault, {"reason_missing": "reason"})
        return _inspect(visit, release_id, file_id, 1, form, [problem], fault.row.status)
    return visit.go(f"/releases/{release_id}")


@router.get("/releases/{release_id}/files/{file_id}/fetch")
@performs("release.fetch")
def fetch(visit: Member, release_id: str, file_id: str) -> Response:
    file, chunks = release.fetch(visit.node, visit.who, visit.door.reader, release_id, file_id)
    return attachment(file.path, file.size, chunks)
