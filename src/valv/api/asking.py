"""Who asks, and under which command id: what the operations take in besides their own values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

from fastapi import Depends, Header, Path, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, StringConstraints

from valv.app import account
from valv.app.node import NOBODY, Node, Who, derived_id, new_id, refuse
from valv.errors import InputFault
from valv.ports.compute import Reader

_TOKEN: Final = 200
_KEY: Final = re.compile(r"[!-~]{1,100}")
_bearer = HTTPBearer(auto_error=False, scheme_name="token", description="A token from `POST /sessions`.")


@dataclass(frozen=True, slots=True)
class Asking:
    """The node and the person who asks it. `reader` opens plain bytes for those who may see them."""

    node: Node
    reader: Reader
    who: Who


async def _anyone(request: Request) -> Asking:
    return Asking(request.app.state.node, request.app.state.reader, NOBODY)


def _known(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> Asking:
    """Whoever is not logged in is told so before anything is looked up. What a person may do, the use case decides."""
    node: Node = request.app.state.node
    token = credentials.credentials if credentials else ""
    who = account.who_is(node, token) if 0 < len(token) <= _TOKEN else NOBODY
    if who.session == b"":
        raise refuse("login_needed")
    return Asking(node, request.app.state.reader, who)


async def _command(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="A request that is repeated under the same key (visible ASCII) is carried out once.",
            min_length=1,
            max_length=100,
            pattern="^[!-~]+$",
        ),
    ] = None,
) -> str:
    """A key counts for one person, method and address, so that it never answers for another order."""
    if idempotency_key is None:
        return new_id()
    if not _KEY.fullmatch(idempotency_key):
        raise InputFault("Idempotency-Key: 1 to 100 visible ASCII characters")
    return derived_id(f"{request.method} {request.url.path}", "command", idempotency_key)


Anyone: TypeAlias = Annotated[Asking, Depends(_anyone)]
Known: TypeAlias = Annotated[Asking, Depends(_known)]
Command: TypeAlias = Annotated[str, Depends(_command)]

Id: TypeAlias = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,100}$")]
Words: TypeAlias = Annotated[str, Query(max_length=200, pattern="^[^\\x00]*$")]

Line: TypeAlias = Annotated[str, StringConstraints(max_length=500, pattern="^[^\\x00]*$")]
"""A name, a title, a term."""
Text: TypeAlias = Annotated[str, StringConstraints(max_length=20_000, pattern="^[^\\x00]*$")]


class Body(BaseModel):
    """A JSON body. An unknown field is a fault: it is a misspelt one, or means what this node does not do."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Reason(Body):
    reason: Text
