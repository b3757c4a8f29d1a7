"""Everything that goes wrong, as RFC 9457 problems. Each has a reference under which the node's log tells more."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from valv.errors import Fault, InputFault, InternalFault, MissingFault, RefusedFault, Row

MEDIA = "application/problem+json"
log = logging.getLogger("valv.api")


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """`type`: `urn:valv:problem:` and the code; `hint`: what to do; `reference`: what to tell the operator."""

    type: str
    title: str
    status: int
    detail: str
    hint: str
    code: str
    reference: str


def code_of(fault: Fault) -> str:
    return fault.refusal.code if isinstance(fault, RefusedFault) else fault.code


def of_fault(
    fault: Fault, where: str, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer to a fault or refusal. `status` where HTTP has a narrower one than the catalogue's."""
    code, row = code_of(fault), fault.row
    status = status or row.status
    reference = secrets.token_hex(8)
    broken = status >= 500
    if broken:
        # What broke inside is for the log: a path or a socket's name helps nobody outside but an attacker.
        log.error("%s: %s at %s: %s", reference, code, where, fault.detail, exc_info=fault if status == 500 else None)
    else:
        log.info("%s: %s at %s", reference, code, where)
    found = Problem(
        type=f"urn:valv:problem:{code}",
        title=row.title,
        status=status,
        detail="" if broken else fault.detail,
        hint=fault.hint if fault.hint and not broken else row.hint,
        code=code,
        reference=reference,
    )
    return Response(msgspec.json.encode(found), status, {**_advice(row), **(headers or {})}, MEDIA)


def of_error(error: Exception, where: str) -> Response:
    """The answer to what should not have happened. The traceback goes to the log only."""
    fault = InternalFault(type(error).__name__)
    fault.__cause__ = error
    return of_fault(fault, where)


def of_http(error: HTTPException, where: str, headers: Mapping[str, str]) -> Response:
    """What the framework refuses: unknown addresses and methods, bodies that cannot be read."""
    fault: Fault
    match error.status_code:
        case 404:
            fault = MissingFault("there is nothing at this address", "see /api/v1/openapi.json")
        case 405:
            fault = InputFault("this address does not take this method", "see /api/v1/openapi.json")
        case 413:
            fault = InputFault("the body of the request is too large", str(error.detail))
        case _:
            fault = InputFault("the request cannot be read", "send JSON as 'application/json'")
    return of_fault(fault, where, status=error.status_code, headers=headers)


def of_validation(error: RequestValidationError, where: str) -> Response:
    """Names the fields at fault and what is wanted; never repeats a value, which might be a password."""
    found = [f"{_field(item['loc'])}: {item['msg']}" for item in error.errors()[:10]]
    return of_fault(InputFault("; ".join(found), "see /api/v1/openapi.json"), where)


def where(request: Request) -> str:
    """The operation for the log: its method and route, without the values in its path."""
    route = request.scope.get("route")
    return f"{request.method} {getattr(route, 'path', 'unknown address')}"


def _field(place: tuple[int | str, ...]) -> str:
    text = ".".join(str(part) for part in place)
    return text if len(text) <= 100 and text.isprintable() else f"a field of the {place[0]}"


def _advice(row: Row) -> dict[str, str]:
    if row.status == 401:
        return {"WWW-Authenticate": "Bearer"}
    return {"Retry-After": "60"} if row.status == 429 else {}
