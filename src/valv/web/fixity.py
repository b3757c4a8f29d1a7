"""The page of fixity, for operators and auditors: how the copies are, what is damaged, and the last scrubs."""

from __future__ import annotations

from fastapi import APIRouter, Response

from valv.app import fixity
from valv.app.node import permitted
from valv.app.operation import performs
from valv.core.authorize import Resource
from valv.web.form import EMPTY, Form, Sent
from valv.web.problem import FIXABLE, Problem, told
from valv.web.visit import Member, Visit

router = APIRouter()


@router.get("/fixity")
@performs("fixity.see")
def show(visit: Member) -> Response:
    return _page(visit)


def _page(visit: Visit, form: Form = EMPTY, problems: list[Problem] | None = None, status: int = 200) -> Response:
    view = fixity.health(visit.node, visit.who)
    may_run = permitted(visit.node, visit.who, "fixity.run", Resource(kind="node")) is None
    return visit.page("fixity.html", status, problems=problems, view=view, may_run=may_run, form=form)


@router.post("/fixity")
@performs("fixity.run")
def run(visit: Member, form: Sent) -> Response:
    try:
        fixity.run(
            visit.node,
            visit.who,
            form.text("dataset"),
            store=form.text("store"),
            every=bool(form.text("every")),
            command=form.command,
        )
    except FIXABLE as fault:
        where = {"dataset_unknown": "dataset", "store_unknown": "store"}
        return _page(visit, form, [told(fault, where)], fault.row.status)
    return visit.go("/fixity")
