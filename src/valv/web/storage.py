"""The page of the stores, for operators and auditors; and where a dataset's files are kept, for its custodian too."""

from __future__ import annotations

from fastapi import APIRouter, Response

from valv.app import placement
from valv.app.operation import performs
from valv.errors import RefusedFault
from valv.web.form import EMPTY, Form, Sent
from valv.web.problem import FIXABLE, Problem, told
from valv.web.visit import Member, Visit

router = APIRouter()
RULE = {"rule_wrong": "rule", "store_unknown": "rule", "wrong_place": "rule"}
MOVE = {"same_store": "target", "store_unknown": "target", "wrong_place": "target", "wrong_phase": "target"}


@router.get("/storage")
@performs("storage.see")
def show(visit: Member) -> Response:
    return visit.page("storage.html", status=placement.status(visit.node, visit.who))


@router.get("/datasets/{name}/storage")
@performs("storage.rule")
def show_placement(visit: Member, name: str) -> Response:
    return _page(visit, name)


def _page(
    visit: Visit, name: str, form: Form = EMPTY, problems: list[Problem] | None = None, status: int = 200
) -> Response:
    view = placement.show(visit.node, visit.who, name)
    return visit.page("placement.html", status, problems=problems, view=view, form=form)


@router.post("/datasets/{name}/rule")
@performs("storage.rule")
def set_rule(visit: Member, name: str, form: Sent) -> Response:
    try:
        placement.set_rule(visit.node, visit.who, name, form.text("rule"), command=form.command)
    except FIXABLE as fault:
        return _again(visit, name, form, fault, RULE)
    return visit.go(f"/datasets/{name}/storage")


@router.post("/datasets/{name}/move")
@performs("storage.move")
def move(visit: Member, name: str, form: Sent) -> Response:
    source, target = form.text("source"), form.text("target")
    try:
        placement.move(visit.node, visit.who, name, source=source, target=target, command=form.command)
    except FIXABLE as fault:
        return _again(visit, name, form, fault, MOVE)
    return visit.go(f"/datasets/{name}/storage")


def _again(visit: Visit, name: str, form: Form, fault: RefusedFault | Exception, fields: dict[str, str]) -> Response:
    assert isinstance(fault, FIXABLE)
    if isinstance(fault, RefusedFault) and fault.refusal.code == "not_allowed":
        raise fault
    return _page(visit, name, form, [told(fault, fields)], fault.row.status)
