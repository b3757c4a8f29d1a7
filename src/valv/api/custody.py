"""Custody of the node's keys: the officers, the key backup, and the signed minutes of what officers ordered."""

from __future__ import annotations

from starlette.responses import Response

from valv.api.answer import answer, answers
from valv.api.asking import Known
from valv.api.routes import PREFIX, routes
from valv.app import custody
from valv.app.operation import performs

router = routes("custody", f"{PREFIX}/custody")


@router.get("")
@performs("key.see")
@answers(custody.View, summary="how the node's keys are kept")
def show_custody(ask: Known) -> Response:
    """Officers, key backup, when the next drill is due, and everything that officers ordered with its signed minutes,
    newest first."""
    return answer(custody.show(ask.node, ask.who))
