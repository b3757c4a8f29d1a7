"""Answers: what a use case returns, as JSON or as a stream of bytes, and their part of the OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import msgspec
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.responses import Response, StreamingResponse

Operation = TypeVar("Operation", bound=Callable[..., Any])
_MARK = "__valv_answer__"
BYTES = "application/octet-stream"


@dataclass(frozen=True)
class Told:
    """What an operation answers with. `kind`: a msgspec type for JSON, None for no body or for bytes of `media`."""

    status: int
    summary: str
    kind: Any = None
    media: str = ""


def answers(
    kind: Any = None, status: int = 200, summary: str = "done", media: str = ""
) -> Callable[[Operation], Operation]:
    """Mark an operation with its answer; `valv.api.document` writes it down."""

    def mark(operation: Operation) -> Operation:
        setattr(operation, _MARK, Told(status, summary, kind, media))
        return operation

    return mark


def told_of(operation: Callable[..., Any]) -> Told:
    """Raises `AttributeError` where the operation was not marked."""
    told: Told = getattr(operation, _MARK)
    return told


class Created(msgspec.Struct, frozen=True, omit_defaults=True):
    """The id of what was made; the field that fits is there."""

    deposit_id: str = ""
    access_id: str = ""
    permit_id: str = ""
    run_id: str = ""


def answer(value: Any, status: int = 200) -> Response:
    """JSON. Times are RFC 3339 in UTC, bytes base64, sets are sorted."""
    return Response(msgspec.json.encode(value, order="deterministic"), status, media_type="application/json")


def nothing() -> Response:
    return Response(status_code=204)


def stream(
    chunks: Iterator[bytes], media: str = BYTES, *, size: int | None = None, name: str = ""
) -> StreamingResponse:
    """Bytes as they come. Called in a worker thread: the first piece is fetched here, so that a refusal still becomes
    a problem. A fault after that cuts the connection. `size`: of the whole, where it is known."""
    first = next(chunks, b"")
    headers = {"Content-Disposition": disposition(name)} if name else {}
    if size is not None:
        headers["Content-Length"] = str(size)
    return StreamingResponse(_passed(first, chunks), media_type=media, headers=headers)


def disposition(path: str) -> str:
    """`attachment` with the last part of a path as file name (RFC 6266; other letters as in RFC 8187)."""
    name = path.rsplit("/", 1)[-1]
    plain = "".join(letter if (letter.isascii() and letter.isalnum()) or letter in "._- " else "_" for letter in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


async def _passed(first: bytes, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for chunk in iterate_in_threadpool(chain((first,), chunks)):
            yield chunk
    finally:
        # What the iterator holds open (a body, a grant) ends with the answer, also where the client went away.
        close = getattr(chunks, "close", None)
        if close is not None:
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(close)
