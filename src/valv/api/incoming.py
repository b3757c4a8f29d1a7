"""Bytes that come in: from the connection to the thread that encrypts them. It pulls at its own pace, so that what is
not encrypted yet stays with the sender."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from valv.errors import InputFault

PIECE: Final = 1 << 18
"""Bytes that are gathered before they are handed over."""
Taken = TypeVar("Taken")


class Sender:
    """The body of a request. `idle`: seconds without a byte after which the sender counts as gone."""

    def __init__(self, request: Request, idle: float) -> None:
        self._body = request.stream()
        self._idle = idle
        self._scope: anyio.CancelScope | None = None
        self._stopped = False
        self._rest = bytearray()

    def stop(self) -> None:
        """What did not come until now counts as cut off. Called on the event loop."""
        self._stopped = True
        if self._scope is not None:
            self._scope.cancel()

    async def more(self) -> bytes:
        """The next piece; empty at the end. Raises `InputFault` where the sender is gone; what came before the cut has
        been handed over then."""
        piece = self._rest
        self._rest = bytearray()
        while len(piece) < PIECE:
            try:
                chunk = await self._next()
            except InputFault:
                if not piece:
                    raise
                return bytes(piece)  # the next call finds out again
            if chunk is None:
                break
            piece += chunk
        return bytes(piece)

    async def _next(self) -> bytes | None:
        cut = InputFault("the file ended early", "send it again")
        if self._stopped:
            raise cut
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + self._idle) as self._scope:
                return await anext(self._body, None)
        except ClientDisconnect:
            pass
        self._stopped = True
        raise cut

    async def taken(self, take: Callable[[Iterator[bytes]], Taken], places: anyio.CapacityLimiter) -> Taken:
        """Run `take` in a thread, with the pieces as they come."""

        def chunks() -> Iterator[bytes]:
            while piece := anyio.from_thread.run(self.more):
                yield piece

        def run() -> Taken:
            return take(chunks())

        return await anyio.to_thread.run_sync(run, limiter=places)
