"""Rotations: new key pairs for dataset versions, and bodies that are encrypted anew."""

from __future__ import annotations

from typing import Literal

import msgspec
from pydantic import Field
from starlette.responses import Response

from valv.api.answer import answer, answers, nothing
from valv.api.asking import Body, Command, Id, Known, Line, Text
from valv.api.routes import PREFIX, routes
from valv.app import rotation
from valv.app.operation import performs
from valv.errors import InputFault

router = routes("rotations", f"{PREFIX}/rotations")


class NewRotation(Body):
    """`dataset` and its `version` (0: the newest), or `every` live version that one may rotate. `aim`: `rotate` seals
    the headers to a new key pair, `rekey` encrypts the bodies anew too."""

    dataset: Line = ""
    version: int = Field(default=0, ge=0, le=1_000_000)
    every: bool = False
    aim: Literal["rotate", "rekey"]
    reason: Text


class Begun(msgspec.Struct, frozen=True):
    rotation_ids: list[str]


@router.post("")
@performs("key.rotate")
@answers(Begun, 201, "the rotations go on by themselves")
def start_rotation(ask: Known, command: Command, body: NewRotation) -> Response:
    """Rotate the keys of a dataset version. Its files stay readable all the while."""
    if body.every == bool(body.dataset):
        raise InputFault("name a dataset, or ask for every one")
    found = rotation.start(
        ask.node,
        ask.who,
        body.dataset,
        version=body.version,
        every=body.every,
        aim=body.aim,
        reason=body.reason,
        command=command,
    )
    return answer(Begun(found), 201)


@router.get("")
@performs("key.see")
@answers(list[rotation.View], summary="newest first")
def list_rotations(ask: Known) -> Response:
    """The rotations of datasets that one answers for; all of them for operators and auditors."""
    return answer(rotation.mine(ask.node, ask.who))


@router.get("/{rotation_id}")
@performs("key.see")
@answers(rotation.View, summary="the rotation")
def show_rotation(ask: Known, rotation_id: Id) -> Response:
    """How a rotation goes on."""
    return answer(rotation.show(ask.node, ask.who, rotation_id))


@router.post("/{rotation_id}/stop")
@performs("key.rotate")
@answers(status=204)
def stop_rotation(ask: Known, command: Command, rotation_id: Id) -> Response:
    """Stop a rotation. All files stay readable; the next one takes the rest along."""
    rotation.stop(ask.node, ask.who, rotation_id, command=command)
    return nothing()
