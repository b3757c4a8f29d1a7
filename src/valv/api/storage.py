"""Stores, the rules by which datasets are placed in them, and moves from one to another."""

from __future__ import annotations

from starlette.responses import Response

from valv.api.answer import answer, answers
from valv.api.asking import Body, Command, Id, Known, Line
from valv.api.routes import PREFIX, routes
from valv.app import placement
from valv.app.operation import performs

router = routes("storage", f"{PREFIX}/storage")


class NewRule(Body):
    """`rule`: clauses with commas between them, for example `copies = 2, tape after 90 d, only in NO`; '' is the
    default, one copy."""

    rule: Line


class NewMove(Body):
    """Names of stores."""

    source: Line
    target: Line


@router.get("")
@performs("storage.see")
@answers(placement.Stores, summary="the stores")
def show_storage(ask: Known) -> Response:
    """Usage, quota, copies and health of every store, and the moves that go on. The worker has looked; no store is
    asked."""
    return answer(placement.status(ask.node, ask.who))


@router.get("/datasets/{name}")
@performs("storage.rule")
@answers(placement.View, summary="where the dataset's files are")
def show_placement(ask: Known, name: Id) -> Response:
    """A dataset's rule, its copies by store, and its move where one goes on."""
    return answer(placement.show(ask.node, ask.who, name))


@router.post("/datasets/{name}/rule")
@performs("storage.rule")
@answers(placement.View, summary="the rule is in force; the node goes on by itself")
def set_placement_rule(ask: Known, command: Command, name: Id, body: NewRule) -> Response:
    """Say how many copies of a dataset there are to be, and where. A move that goes on is given up."""
    return answer(placement.set_rule(ask.node, ask.who, name, body.rule, command=command))


@router.post("/datasets/{name}/move")
@performs("storage.move")
@answers(placement.View, summary="the move has begun and goes on by itself")
def move_dataset(ask: Known, command: Command, name: Id, body: NewMove) -> Response:
    """Move a dataset's files from one store to another. They stay readable all the while."""
    return answer(placement.move(ask.node, ask.who, name, source=body.source, target=body.target, command=command))
