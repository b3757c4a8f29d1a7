"""The ledger for an auditor: its newest events, and what it takes to prove them elsewhere."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Response

from valv.app import ledger
from valv.app.node import permitted
from valv.app.operation import performs
from valv.core.authorize import Resource
from valv.web.visit import Member

router = APIRouter()
PAGE = 50


@router.get("/ledger")
@performs("ledger.show")
def show(visit: Member, before: str = "") -> Response:
    """Events before the position `before`, newest first; without it the newest. An operator sees the proof alone."""
    entries: list[ledger.Entry] = []
    reads = permitted(visit.node, visit.who, "ledger.show", Resource(kind="ledger")) is None
    proof = ledger.proof(visit.node, visit.who)
    limit = min(int(before), proof.size) if before.isdecimal() and len(before) < 16 else proof.size
    if reads:
        found = ledger.show(visit.node, visit.who, after=max(-1, limit - PAGE - 1), limit=PAGE)
        entries = [entry for entry in found if entry.position < limit][::-1]
    said = {
        entry.position: msgspec.json.format(msgspec.json.encode(entry.data), indent=2).decode() for entry in entries
    }
    return visit.page("ledger.html", entries=entries, said=said, reads=reads, proof=proof, limit=limit, page=PAGE)
