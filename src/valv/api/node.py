"""What node this is, and whether it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec
from fastapi import Request
from starlette.responses import Response

from valv import __version__
from valv.api.answer import answer, answers
from valv.api.asking import Anyone
from valv.api.routes import routes
from valv.app.node import NOBODY, allow
from valv.app.operation import performs
from valv.core.authorize import Resource
from valv.errors import Fault, SealedFault
from valv.formats import keyfile

router = routes("node")
health = routes("node", "")


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`node_key`: the Crypt4GH public key for deposits, as the text of a key file; `log_key`: the verifier key of the
    ledger (C2SP). Both empty while the node's keys are locked."""

    name: str
    title: str
    country: str
    unit: str
    version: str
    demo: bool
    node_key: str
    log_key: str


class Health(msgspec.Struct, frozen=True):
    """`parts`: `ok`, or the code of what is wrong, for `database`, `keys` and, where it can be asked, `compute`."""

    status: Literal["ok", "degraded"]
    parts: dict[str, str]


@runtime_checkable
class Probed(Protocol):
    """A reader that can tell whether its other half is there."""

    def probe(self) -> None:
        """Raises a `Fault` where it is not."""
        ...


@router.get("/node")
@performs("node.see")
@answers(NodeInfo, summary="the node")
def show_node(ask: Anyone) -> Response:
    """What node this is, and its public keys."""
    allow(ask.node, NOBODY, "node.see", Resource("node"))
    about, keys = ask.node.config.node, ask.node.keys.status()
    return answer(
        NodeInfo(
            name=about.name,
            title=about.title,
            country=about.country,
            unit=about.unit,
            version=__version__,
            demo=about.demo,
            node_key=keyfile.write_public(keys.node_key) if keys.node_key else "",
            log_key=keys.log_key,
        )
    )


@router.get("/openapi.json")
@performs("node.see")
@answers(dict[str, Any], summary="OpenAPI 3.1")
async def show_openapi(request: Request) -> Response:
    """This document."""
    return answer(request.app.openapi())


@health.get("/health")
@performs("node.see")
@answers(Health, summary="the node works; 503 with the same body where a part of it does not")
def show_health(ask: Anyone) -> Response:
    """Whether the node works."""

    def database() -> None:
        with ask.node.records.reading() as unit:
            unit.head()

    def keys() -> None:
        if not ask.node.keys.status().open:
            raise SealedFault()

    checks: dict[str, Callable[[], None]] = {"database": database, "keys": keys}
    if isinstance(ask.reader, Probed):
        checks["compute"] = ask.reader.probe
    parts = {name: _checked(check) for name, check in checks.items()}
    good = set(parts.values()) == {"ok"}
    return answer(Health("ok" if good else "degraded", parts), 200 if good else 503)


def _checked(check: Callable[[], None]) -> str:
    try:
        check()
    except Fault as fault:
        return fault.code
    return "ok"
