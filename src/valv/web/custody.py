"""The page of the node's keys, for operators and auditors: who guards them, and what officers ordered."""

from __future__ import annotations

from fastapi import APIRouter, Response

from valv.app import custody, rotation
from valv.app.operation import performs
from valv.web.visit import Member

router = APIRouter()


@router.get("/keys")
@performs("key.see")
def show(visit: Member) -> Response:
    view = custody.show(visit.node, visit.who)
    going = [one for one in rotation.mine(visit.node, visit.who) if one.state.phase in rotation.GOING]
    return visit.page("keys.html", view=view, going=going)
