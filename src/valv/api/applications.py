"""Applications for access, and the committee's decision on them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from pydantic import Field
from starlette.responses import Response

from valv.api.answer import Created, answer, answers, nothing
from valv.api.asking import Body, Command, Id, Known, Line, Reason, Text
from valv.api.routes import PREFIX, routes
from valv.app import access
from valv.app.operation import performs
from valv.core.classes import Mode

router = routes("applications", f"{PREFIX}/applications")


class Application(Body):
    """`datasets`: names, each with `@version` or the newest; `purpose`: DUO terms of the use and of what is promised
    (`HMB`, `DS=MONDO:0005147`, `IRB` …); `country`: ISO 3166, of the place of work; `people`: account names of those
    who work on it besides the applicant. `for_profit` and `commercial` left out are undeclared."""

    title: Line
    summary: Text = ""
    datasets: list[Line] = Field(max_length=100)
    purpose: list[Line] = Field(max_length=100)
    country: Line = ""
    institution: Line = ""
    project: Line = ""
    for_profit: bool | None = None
    commercial: bool | None = None
    people: list[Line] = Field(default=[], max_length=100)
    mode: Mode = "compute"
    days: int = Field(default=365, ge=1, le=3650)
    licence: bool = False

    def form(self) -> access.Form:
        return msgspec.convert(self.model_dump(exclude_none=True), access.Form)


class Approval(Body):
    """`days`: as many as applied for, or fewer."""

    reason: Text = ""
    days: Annotated[int, Field(ge=1, le=3650)] | None = None


@router.post("")
@performs("access.draft")
@answers(Created, 201, "the draft is kept")
def draft_application(ask: Known, command: Command, body: Application) -> Response:
    """Begin an application."""
    return answer(Created(access_id=access.draft(ask.node, ask.who, body.form(), command=command)), 201)


@router.get("")
@performs("access.list")
@answers(list[access.View], summary="newest first")
def list_applications(ask: Known) -> Response:
    """One's own applications, and those that wait for one's committees."""
    return answer(access.mine(ask.node, ask.who))


@router.get("/{access_id}")
@performs("access.see")
@answers(access.View, summary="the application")
def show_application(ask: Known, access_id: Id) -> Response:
    """An application, with the consent of each dataset held against its purpose."""
    return answer(access.show(ask.node, ask.who, access_id))


@router.put("/{access_id}")
@performs("access.save")
@answers(status=204)
def save_application(ask: Known, command: Command, access_id: Id, body: Application) -> Response:
    """Change a draft, or an application that was returned."""
    access.save(ask.node, ask.who, access_id, body.form(), command=command)
    return nothing()


@router.post("/{access_id}/submission")
@performs("access.submit")
@answers(status=204)
def submit_application(ask: Known, command: Command, access_id: Id) -> Response:
    """Hand an application in."""
    access.submit(ask.node, ask.who, access_id, command=command)
    return nothing()


@router.post("/{access_id}/withdrawal")
@performs("access.withdraw")
@answers(status=204)
def withdraw_application(ask: Known, command: Command, access_id: Id) -> Response:
    """Withdraw an application."""
    access.withdraw(ask.node, ask.who, access_id, command=command)
    return nothing()


@router.post("/{access_id}/return")
@performs("access.return")
@answers(status=204)
def return_application(ask: Known, command: Command, access_id: Id, body: Reason) -> Response:
    """Return an application for changes."""
    access.send_back(ask.node, ask.who, access_id, reason=body.reason, command=command)
    return nothing()


@router.post("/{access_id}/approval")
@performs("access.approve")
@answers(Created, summary="approved; the permit is issued")
def approve_application(ask: Known, command: Command, access_id: Id, body: Approval) -> Response:
    """Approve an application, which issues a permit."""
    ident = access.approve(ask.node, ask.who, access_id, reason=body.reason, days=body.days, command=command)
    return answer(Created(permit_id=ident))


@router.post("/{access_id}/rejection")
@performs("access.reject")
@answers(status=204)
def reject_application(ask: Known, command: Command, access_id: Id, body: Reason) -> Response:
    """Reject an application."""
    access.reject(ask.node, ask.who, access_id, reason=body.reason, command=command)
    return nothing()
