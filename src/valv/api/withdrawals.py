"""Withdrawals of participants, and consent that is narrowed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from valv.api.answer import answer, answers, nothing
from valv.api.asking import Body, Command, Id, Known, Line, Text
from valv.api.routes import PREFIX, routes
from valv.app import narrowing, withdrawal
from valv.app.operation import performs

router = routes("withdrawals", PREFIX)


class NewWithdrawal(Body):
    """`pseudonyms`: as in participants.tsv. `version`: 0 for every version that is not replaced. `runs_end`: runs that
    go on are stopped."""

    dataset: Line
    pseudonyms: list[Line] = Field(max_length=withdrawal.MOST)
    version: int = Field(default=0, ge=0, le=1_000_000)
    runs_end: bool = True
    reason: Text


class NewConsent(Body):
    """What these people consent to from now on: DUO terms."""

    pseudonyms: list[Line] = Field(max_length=withdrawal.MOST)
    consent: list[Line] = Field(min_length=1, max_length=50)
    reason: Text


class Fate(Body):
    fate: Literal["drop", "keep"]


class Begun(msgspec.Struct, frozen=True):
    withdrawal_ids: list[str]


@router.post("/withdrawals")
@performs("dataset.withdraw")
@answers(Begun, 201, "the versions are closed; the node makes their successors by itself")
def start_withdrawal(ask: Known, command: Command, body: NewWithdrawal) -> Response:
    """Take participants out of a dataset. Its versions are closed for new runs and downloads at once."""
    found = withdrawal.start(
        ask.node,
        ask.who,
        body.dataset,
        pseudonyms=body.pseudonyms,
        reason=body.reason,
        version=body.version,
        runs_end=body.runs_end,
        command=command,
    )
    return answer(Begun(found), 201)


@router.get("/withdrawals")
@performs("dataset.withdrawals")
@answers(list[withdrawal.View], summary="newest first")
def list_withdrawals(ask: Known, dataset: Annotated[str, Query(max_length=200)] = "") -> Response:
    """The withdrawals from datasets that one answers for, or from one of them."""
    return answer(withdrawal.mine(ask.node, ask.who, dataset))


@router.get("/withdrawals/{withdrawal_id}")
@performs("dataset.withdrawals")
@answers(withdrawal.View, summary="the withdrawal")
def show_withdrawal(ask: Known, withdrawal_id: Id) -> Response:
    """How a withdrawal goes on."""
    return answer(withdrawal.show(ask.node, ask.who, withdrawal_id))


@router.post("/withdrawals/{withdrawal_id}/cancellation")
@performs("dataset.withdraw")
@answers(status=204)
def cancel_withdrawal(ask: Known, command: Command, withdrawal_id: Id) -> Response:
    """Make no successor. The version stays closed; another withdrawal may be asked for."""
    withdrawal.cancel(ask.node, ask.who, withdrawal_id, command=command)
    return nothing()


@router.post("/withdrawals/{withdrawal_id}/files/{file_id}")
@performs("dataset.withdraw")
@answers(status=204)
def settle_file(ask: Known, command: Command, withdrawal_id: Id, file_id: Id, body: Fate) -> Response:
    """Say what becomes of a file that no program can rewrite."""
    withdrawal.settle(ask.node, ask.who, withdrawal_id, file_id, fate=body.fate, command=command)
    return nothing()


@router.post("/datasets/{name}/consents")
@performs("dataset.withdraw")
@answers(narrowing.Narrowed, 201, "permits that no longer fit are suspended")
def narrow_consent(ask: Known, command: Command, name: Line, body: NewConsent) -> Response:
    """Narrow what participants consent to."""
    made = narrowing.narrow(
        ask.node,
        ask.who,
        name,
        pseudonyms=body.pseudonyms,
        consent=body.consent,
        reason=body.reason,
        command=command,
    )
    return answer(made, 201)


@router.get("/datasets/{name}/consents")
@performs("dataset.withdrawals")
@answers(list[dict[str, Any]], summary="by version")
def list_consents(ask: Known, name: Line) -> Response:
    """What participants consent to besides the version's own consent, without who they are."""
    return answer(narrowing.consents(ask.node, ask.who, name))
