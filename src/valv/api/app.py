"""The HTTP door as one ASGI application."""

from __future__ import annotations

from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from valv import __version__
from valv.api import (
    account,
    applications,
    certificates,
    custody,
    datasets,
    deposits,
    fixity,
    ledger,
    permits,
    problem,
    releases,
    rotations,
    runs,
    sessions,
    storage,
    uploads,
    withdrawals,
)
from valv.api import node as nodes
from valv.api.document import openapi, operations
from valv.api.guard import Guard
from valv.app.node import Node
from valv.errors import Fault
from valv.ports.compute import Reader

NOUNS = (
    nodes,
    sessions,
    account,
    datasets,
    deposits,
    uploads,
    applications,
    permits,
    runs,
    releases,
    rotations,
    withdrawals,
    storage,
    ledger,
    fixity,
    certificates,
    custody,
)


def create(node: Node, reader: Reader) -> FastAPI:
    """The API of a node. `reader` opens plain bytes for those who may see them."""
    app = build()
    app.state.node, app.state.reader = node, reader
    app.state.uploads = anyio.CapacityLimiter(deposits.UPLOADS)
    app.state.batches = anyio.CapacityLimiter(deposits.BATCHES)
    app.state.senders = uploads.Senders()
    return app


def build() -> FastAPI:
    """The operations without a node behind them, for the document."""
    app = Door(
        title="Valv",
        version=__version__,
        description="Secure storage and computation on sensitive bio-medical data: the API of one node.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    for router in (*(noun.router for noun in NOUNS), nodes.health):
        app.router.routes.extend(router.routes)
    app.add_middleware(Guard)
    app.add_exception_handler(Fault, _fault)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    return app


class Door(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = openapi(self)
        return self.openapi_schema


async def _fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, Fault)
    return problem.of_fault(error, problem.where(request))


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem.of_validation(error, problem.where(request))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        fitting = [route for route in operations(request.app) if route.matches(request.scope)[0] != Match.NONE]
        headers["Allow"] = ", ".join(sorted({method for route in fitting for method in route.methods or ()}))
    return problem.of_http(error, problem.where(request), headers)
