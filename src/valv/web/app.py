"""The portal as one application: its pages, the headers of every answer, and what is shown when something fails."""

from __future__ import annotations

import logging
import secrets
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from valv.app.node import NOBODY, Node
from valv.errors import Fault, InternalFault, RefusedFault
from valv.ports.compute import Reader
from valv.web import (
    access,
    account,
    catalogue,
    certificate,
    custody,
    dataset,
    deposit,
    fixity,
    home,
    ledger,
    permit,
    release,
    run,
    session,
    storage,
)
from valv.web.door import open_door
from valv.web.problem import code_of, hint_of
from valv.web.visit import Visit, visit

log = logging.getLogger("valv.web")

HEADERS = {
    b"content-security-policy": (
        b"default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
        b"frame-ancestors 'none'; base-uri 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    # Not `no-referrer`: with it browsers send `Origin: null`, and forms could not be told from foreign ones.
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
    b"cache-control": b"no-store",
}
NOUNS = (
    home,
    session,
    catalogue,
    dataset,
    deposit,
    access,
    permit,
    run,
    release,
    account,
    ledger,
    custody,
    fixity,
    certificate,
    storage,
)


def create(node: Node, reader: Reader) -> FastAPI:
    """The portal of `node`. `reader` opens outputs for checkers and authors."""
    app = FastAPI(title=node.config.node.title, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.door = open_door(node, reader)
    for noun in NOUNS:
        app.include_router(noun.router)
    app.add_exception_handler(Fault, _fault)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _wrong_request)
    app.add_exception_handler(Exception, _unforeseen)
    app.add_middleware(Guarded)
    return app


class Guarded:
    """Puts the headers that keep pages safe on every answer. Streams pass through as they are."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                missing = [(name, value) for name, value in HEADERS.items() if name not in there]
                message["headers"] = [*message["headers"], *missing]
            await send(message)

        await self._app(scope, receive, guarded)


def _fault(request: Request, fault: Exception) -> Response:
    """Strangers are sent to the log-in, who lacks a fresh second factor to where it is asked for; both come back."""
    assert isinstance(fault, Fault)
    found = _visit(request)
    code = code_of(fault)
    back = quote(found.here if request.method == "GET" else _before(request), safe="")
    if code == "login_needed" and request.method == "GET":
        return found.go(f"/login?next={back}")
    if code == "second_factor":
        return found.go(f"/step-up?next={back}")
    reference = secrets.token_hex(4)
    if not isinstance(fault, RefusedFault):
        log.warning("%s %s (reference %s)", code, request.method, reference)
    return _page(found, fault.row.status, fault.row.title, fault.detail, hint_of(fault), code, reference)


def _before(request: Request) -> str:
    """The page that a form was on, as a local path."""
    _, _, rest = request.headers.get("referer", "").partition("://")
    host, slash, path = rest.partition("/")
    return f"/{path}" if slash and host == request.headers.get("host", "") else "/"


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = {404: "There is no such page", 405: "This page cannot be used this way"}.get(
        error.status_code, "Not possible"
    )
    return _page(_visit(request), error.status_code, title, "", "Begin at the home page.", "http", secrets.token_hex(4))


def _wrong_request(request: Request, _: Exception) -> Response:
    return _page(
        _visit(request), 400, "The address is not complete", "", "Begin at the home page.", "http", secrets.token_hex(4)
    )


def _unforeseen(request: Request, error: Exception) -> Response:
    """The server logs what it was; the person gets the reference to find it by."""
    reference = secrets.token_hex(4)
    log.error("unforeseen %s (reference %s)", type(error).__name__, reference)
    row = InternalFault().row
    response = _page(_visit(request), row.status, row.title, "", row.hint, InternalFault.code, reference)
    # This answer is made outside of `Guarded`: the framework makes it last of all.
    response.headers.update({name.decode(): value.decode() for name, value in HEADERS.items()})
    return response


def _page(found: Visit, status: int, title: str, detail: str, hint: str, code: str, reference: str) -> HTMLResponse:
    return found.page(
        "error.html", status, title=title, detail=detail, hint=hint.rstrip("."), code=code, reference=reference
    )


def _visit(request: Request) -> Visit:
    """The visit as far as it is known; where the records are away, that of a stranger."""
    known: Visit | None = getattr(request.state, "visit", None)
    if known is not None:
        return known
    try:
        return visit(request)
    except Fault:
        return Visit(request, request.app.state.door, NOBODY, secrets.token_urlsafe(32), begun=False)
