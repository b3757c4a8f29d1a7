"""Around every operation: limits on what comes in, headers on what goes out, and no traceback for strangers."""

from __future__ import annotations

import re
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from valv.api import problem
from valv.errors import Fault, InputFault

BODY: Final = 1 << 20
"""Bytes of a request that is not an upload."""
LISTING: Final = 64 << 20
"""Bytes of a request that lists the files of a deposit."""
HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_UPLOAD: Final = {
    "PUT": re.compile(r"/api/v1/deposits/[^/]+/files/"),
    "PATCH": re.compile(r"/api/v1/deposits/[^/]+/uploads/[^/]+"),
    "POST": re.compile(r"/api/v1/deposits/[^/]+/batch"),
}
"""What takes bytes of files: it counts them itself."""
_SUBMISSION: Final = re.compile(r"/api/v1/deposits/[^/]+/submission")
_TUS: Final = re.compile(r"/api/v1/deposits/[^/]+/uploads(?:/[^/]+)?")
_METHODS: Final = frozenset({"PATCH", "DELETE", "HEAD"})
_ONCE: Final = frozenset(
    {b"authorization", b"content-digest", b"content-length", b"content-type", b"host", b"idempotency-key", b"range"}
)
"""Headers that come once or not at all: two of them would leave open which one counts."""


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        tus = _TUS.fullmatch(scope["path"])
        if tus:
            scope = _meant(scope)

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if tus:
                    headers["Tus-Resumable"] = "1.0.0"
            await send(message)

        fault = _fault(scope)
        if fault is not None:
            await problem.of_fault(fault, scope["method"])(scope, receive, answer)
            return
        upload = _UPLOAD.get(scope["method"])
        most = LISTING if _SUBMISSION.fullmatch(scope["path"]) else BODY
        free = upload is not None and upload.match(scope["path"])
        try:
            await self._app(scope, receive if free else _limited(receive, most), answer)
        except Exception as error:
            if started:
                # The status is out already. To cut the connection is the one way left to say that this is not all.
                cause = error.__cause__ if isinstance(error.__cause__, Fault) else error
                code = problem.code_of(cause) if isinstance(cause, Fault) else type(cause).__name__
                problem.log.warning("an answer was cut: %s", code)
                raise
            await problem.of_error(error, scope["method"])(scope, receive, answer)


def _meant(scope: Scope) -> Scope:
    """For senders that know only GET and POST, tus lets a header name the method that is meant."""
    said = [value.decode("latin-1").upper() for name, value in scope["headers"] if name == b"x-http-method-override"]
    if scope["method"] == "POST" and len(said) == 1 and said[0] in _METHODS:
        return {**scope, "method": said[0]}
    return scope


def _fault(scope: Scope) -> Fault | None:
    if any(letter < " " for letter in scope["path"]):
        # A line end at the end of an address would be lost on the way to its operation.
        return InputFault("the address holds a control character")
    names = [name for name, _ in scope["headers"]]
    twice = next((name for name in names if name in _ONCE and names.count(name) > 1), None)
    if twice is not None:
        return InputFault(f"the header '{twice.decode('latin-1')}' comes twice", "send it once")
    return None


def _limited(receive: Receive, most: int) -> Receive:
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise HTTPException(413, f"at most {most} bytes")
        return message

    return counted
