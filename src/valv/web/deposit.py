"""Deposits: begin one, send its files, hand it in, see it published."""

from __future__ import annotations

from fastapi import APIRouter, Response

from valv.app import deposit
from valv.app.node import allow, refuse
from valv.app.operation import performs
from valv.core.authorize import Resource
from valv.core.classes import DataClass
from valv.errors import FormatFault
from valv.formats import duo
from valv.web.dataset import description
from valv.web.form import Form, Sent
from valv.web.problem import FIXABLE, Problem, told
from valv.web.upload import Uploaded
from valv.web.visit import Member, Visit

router = APIRouter()
OPENING = {"name_wrong": "name", "name_taken": "name", "fault.format": "permission", "not_yours": "name"}
PARAMETERS = {
    "GS": "region",
    "TS": "months",
    "MOR": "moratorium",
    "IS": "institution",
    "PS": "project",
    "RS": "research",
}
"""DUO terms with a value → the input for it."""
PLAIN = tuple(
    (short, label)
    for code, (short, label) in duo.TERMS.items()
    if code not in duo.PERMISSIONS and code not in duo.WITH_PARAMETER and code != duo.METHODS
)
"""Conditions that are ticked."""


@router.get("/deposits")
@performs("deposit.see")
def mine(visit: Member) -> Response:
    return visit.page("deposits.html", deposits=deposit.mine(visit.node, visit.who))


@router.get("/deposits/new")
@performs("deposit.open")
def begin(visit: Member, dataset: str = "") -> Response:
    allow(visit.node, visit.who, "dataset.register", Resource(kind="dataset"))
    return _form(visit, Form({"name": [dataset]}))


def _form(visit: Visit, form: Form, problems: list[Problem] | None = None, status: int = 200) -> Response:
    return visit.page("deposit_new.html", status, problems=problems, form=form, plain=PLAIN)


@router.post("/deposits")
@performs("deposit.open")
def open_deposit(visit: Member, form: Sent) -> Response:
    try:
        ident = deposit.open_deposit(
            visit.node,
            visit.who,
            name=form.text("name"),
            claimed=_claimed(form),
            consent=consent(form),
            committee=_committee(form),
            about=description(form),
            command=form.command,
        )
    except FIXABLE as fault:
        return _form(visit, form, [told(fault, OPENING)], fault.row.status)
    return visit.go(f"/deposits/{ident}")


def _claimed(form: Form) -> DataClass:
    match form.text("class"):
        case "anonymised":
            return "anonymised"
        case "identifiable":
            return "identifiable"
        case _:
            raise FormatFault("the class of the data is not named", "choose identifiable or anonymised")


def _committee(form: Form) -> str:
    name = form.text("committee")
    if not name:
        raise FormatFault("no committee is named", "write the name of the committee that decides on access")
    return name


def consent(form: Form) -> list[str]:
    """The form's consent as DUO statements. Raises `FormatFault`."""
    permission = form.text("permission")
    terms: list[str] = []
    if permission == "DS":
        named = form.items("consent_diseases")
        if not named:
            raise FormatFault("no disease is named", "add for example MONDO:0005147")
        terms.extend(f"DS={disease}" for disease in named)
    elif permission:
        terms.append(permission)
    terms.extend(form.all("condition"))
    for short, field in PARAMETERS.items():
        terms.extend(f"{short}={value}" for value in form.items(field))
    return terms


@router.get("/deposits/{deposit_id}")
@performs("deposit.see")
def show(visit: Member, deposit_id: str, still: str = "") -> Response:
    return _page(visit, deposit_id, still=still)


def _page(
    visit: Visit, deposit_id: str, problems: list[Problem] | None = None, status: int = 200, *, still: str = ""
) -> Response:
    view = deposit.show(visit.node, visit.who, deposit_id)
    return visit.page(
        "deposit.html", status, problems=problems, view=view, still=still, busy=view.state.phase == "submitted"
    )


@router.post("/deposits/{deposit_id}/files")
@performs("deposit.receive")
def receive(visit: Member, deposit_id: str, uploaded: Uploaded) -> Response:
    """The files are stored when this is called: `upload` took them as they came."""
    if not uploaded.faults and uploaded.received:
        return visit.go(f"/deposits/{deposit_id}")
    problems = [Problem("files", text) for text in uploaded.faults] or [Problem("files", "Choose at least one file.")]
    return _page(visit, deposit_id, problems, uploaded.status)


@router.post("/deposits/{deposit_id}/submit")
@performs("deposit.submit")
def submit(visit: Member, deposit_id: str, form: Sent) -> Response:
    try:
        if not form.ticked("sure"):
            raise refuse("files_missing", "confirm first that every file is there")
        deposit.submit(visit.node, visit.who, deposit_id, expected=(), command=form.command)
    except FIXABLE as fault:
        return _page(
            visit, deposit_id, [told(fault, {"files_missing": "sure", "deposit_empty": "files"})], fault.row.status
        )
    return visit.go(f"/deposits/{deposit_id}")


@router.post("/deposits/{deposit_id}/cancel")
@performs("deposit.cancel")
def cancel(visit: Member, deposit_id: str, form: Sent) -> Response:
    try:
        deposit.cancel(visit.node, visit.who, deposit_id, form.command)
    except FIXABLE as fault:
        return _page(visit, deposit_id, [told(fault, {})], fault.row.status)
    return visit.go(f"/deposits/{deposit_id}")
