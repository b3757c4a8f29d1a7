"""Fixity: how the copies of all files are, and scrubs that read them again and make damaged ones anew."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from valv.api.answer import answer, answers
from valv.api.asking import Body, Command, Id, Known, Line
from valv.api.routes import PREFIX, routes
from valv.app import fixity
from valv.app.operation import performs

router = routes("fixity", f"{PREFIX}/fixity")


class NewScrub(Body):
    """`dataset`: of this one only; `store`: in this one only; '' for all. `every`: also copies that were read a short
    while ago. `tape`: copies on tape are fetched and read too."""

    dataset: Line = ""
    store: Line = ""
    every: bool = False
    tape: bool = False


class ScrubBegun(msgspec.Struct, frozen=True):
    scrub_id: str


@router.get("")
@performs("fixity.see")
@answers(fixity.Health, summary="the copies, and the last scrubs")
def show_fixity(ask: Known) -> Response:
    """How many copies there are in each store, when they were last read from end to end, and which are damaged."""
    return answer(fixity.health(ask.node, ask.who))


@router.post("")
@performs("fixity.run")
@answers(ScrubBegun, 201, "the scrub goes on by itself")
def start_scrub(ask: Known, command: Command, body: NewScrub) -> Response:
    """Read copies again, and make damaged ones anew from whole ones."""
    found = fixity.run(
        ask.node,
        ask.who,
        body.dataset,
        store=body.store,
        every=body.every,
        tape=body.tape,
        command=command,
    )
    return answer(ScrubBegun(found), 201)


@router.get("/{scrub_id}")
@performs("fixity.see")
@answers(fixity.View, summary="the scrub")
def show_scrub(ask: Known, scrub_id: Id) -> Response:
    """How a scrub goes on."""
    return answer(fixity.show(ask.node, ask.who, scrub_id))
