"""The ledger: reading it, and what proves it elsewhere."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from valv.api.answer import answer, answers, stream
from valv.api.asking import Known
from valv.api.routes import PREFIX, routes
from valv.app import ledger
from valv.app.operation import performs

router = routes("ledger", f"{PREFIX}/ledger")

_MOST = 1 << 53
LINES = "application/jsonl"


@router.get("")
@performs("ledger.show")
@answers(list[ledger.Entry], summary="oldest first")
def show_ledger(
    ask: Known,
    after: Annotated[int, Query(ge=-1, le=_MOST)] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    newest: bool = False,
) -> Response:
    """Events after a position, or the newest ones."""
    return answer(ledger.show(ask.node, ask.who, after=after, limit=limit, newest=newest))


@router.get("/proof")
@performs("ledger.verify")
@answers(ledger.Proof, summary="the ledger's size and root, and its newest signed checkpoint")
def show_proof(ask: Known) -> Response:
    """What an auditor needs to check an export."""
    return answer(ledger.proof(ask.node, ask.who))


@router.get("/export")
@performs("ledger.verify")
@answers(summary="the leaves, a line each", media=LINES)
def export_ledger(ask: Known, size: Annotated[int, Query(ge=0, le=_MOST)] = _MOST) -> Response:
    """The ledger's leaves up to a size, all of them by default: what 'valv ledger verify' reads."""
    return stream(ledger.export(ask.node, ask.who, size), LINES, name="ledger.jsonl")
