"""One's own account: keys for downloads, the second factor."""

from __future__ import annotations

from fastapi import APIRouter, Response

from valv.app import account
from valv.app.operation import performs
from valv.web.form import Sent
from valv.web.problem import FIXABLE, Problem, told
from valv.web.visit import Member, Visit

router = APIRouter()


@router.get("/account")
@performs("account.see")
def show(visit: Member) -> Response:
    return _page(visit)


def _page(visit: Visit, problems: list[Problem] | None = None, status: int = 200) -> Response:
    keys = account.keys(visit.node, visit.who)
    minutes = visit.node.config.login.step_up // 60
    return visit.page(
        "account.html", status, problems=problems, keys=keys, minutes=minutes, url=visit.node.config.public_url
    )


@router.post("/account/keys/{key_id}/end")
@performs("account.key_end")
def end_key(visit: Member, key_id: str, _: Sent) -> Response:
    try:
        account.end_key(visit.node, visit.who, key_id)
    except FIXABLE as fault:
        return _page(visit, [told(fault, {})], fault.row.status)
    return visit.go("/account")
