"""Log-in, log-out, and the second factor."""

from __future__ import annotations

from fastapi import APIRouter, Response

from valv.app import account
from valv.app.operation import performs
from valv.errors import RefusedFault
from valv.web.form import EMPTY, Form, Sent
from valv.web.problem import FIXABLE, Problem, sentence
from valv.web.visit import SESSION, Member, Visit, Visiting, local

router = APIRouter()
FACTOR = {"code_wrong": "code"}


@router.get("/login")
@performs("session.open")
def ask(visit: Visiting, next: str = "/") -> Response:
    if visit.who.account_id:
        return visit.go(local(next))
    return _login(visit, EMPTY, next)


@router.post("/login")
@performs("session.open")
def log_in(visit: Visiting, form: Sent) -> Response:
    try:
        opened = account.log_in(
            visit.node, name=form.text("name"), password=form.exact("password"), code=form.text("code"), kind="page"
        )
    except RefusedFault as fault:
        field = FACTOR.get(fault.refusal.code, "name")
        return _login(visit, form, form.text("next"), [Problem(field, sentence(fault))], fault.row.status)
    response = visit.go(local(form.text("next")))
    visit.keep(response, SESSION, opened.token)
    return response


def _login(visit: Visit, form: Form, next: str, problems: list[Problem] | None = None, status: int = 200) -> Response:
    return visit.page("login.html", status, problems=problems, form=form, next=local(next))


@router.post("/logout")
@performs("session.close")
def log_out(visit: Member, _: Sent) -> Response:
    account.log_out(visit.node, visit.who)
    response = visit.go("/")
    response.delete_cookie(SESSION, path="/", httponly=True, samesite="strict", secure=visit.door.secure)
    return response


@router.get("/step-up")
@performs("session.see")
def ask_factor(visit: Member, next: str = "/") -> Response:
    return visit.page("step_up.html", next=local(next))


@router.post("/step-up")
@performs("session.see")
def step_up(visit: Member, form: Sent) -> Response:
    back = local(form.text("next"))
    try:
        account.step_up(visit.node, visit.who, form.text("code"))
    except FIXABLE as fault:
        return visit.page("step_up.html", fault.row.status, problems=[Problem("code", sentence(fault))], next=back)
    return visit.go(back)
