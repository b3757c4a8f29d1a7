"""A `multipart/form-data` body, read part by part as it arrives (RFC 7578)."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from valv.errors import InputFault

_Event = tuple[str, bytes]


class Part:
    """One part. `filename`: None for a plain field, '' for a file field that was left empty."""

    def __init__(self, source: _Source, name: str, filename: str | None) -> None:
        self._source = source
        self._ended = False
        self.name = name
        self.filename = filename

    async def pieces(self) -> AsyncIterator[bytes]:
        """The part's bytes as they come."""
        while not self._ended:
            kind, data = await self._source.next()
            if kind == "end":
                self._ended = True
            else:
                yield data

    async def text(self, limit: int) -> str:
        content = bytearray()
        async for piece in self.pieces():
            content += piece
            if len(content) > limit:
                raise InputFault(f"a field of the form is longer than {limit} bytes", "shorten it")
        return content.decode("utf-8", "replace")


async def parts(request: Request) -> AsyncIterator[Part]:
    """The parts in order; what was not read of one is passed over. Raises `InputFault` for a body that is no such form
    or ends early."""
    source = _Source(request)
    while True:
        headers: dict[str, bytes] = {}
        while (event := await source.next())[0] != "begin":
            if event[0] == "over":
                return
            name, _, value = event[1].partition(b":")
            headers[name.decode("latin-1").strip().lower()] = value
        _, options = parse_options_header(headers.get("content-disposition", b"").decode("latin-1"))
        filename = options.get(b"filename")
        part = Part(source, _decoded(options.get(b"name", b"")), None if filename is None else _decoded(filename))
        yield part
        async for _ in part.pieces():
            pass


def _decoded(raw: bytes) -> str:
    """A name as browsers write it: UTF-8, with quotes and line ends as %22, %0D, %0A (HTML, multipart/form-data)."""
    text = raw.decode("utf-8", "replace")
    return text.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")


class _Source:
    """The parser's events, pulled one at a time: `header` (name:value), `begin` of a body, `data`, `end`, `over`."""

    def __init__(self, request: Request) -> None:
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise InputFault("this is not a form with files")
        self._events: deque[_Event] = deque()
        self._header = bytearray()
        self._stream = request.stream()
        self._over = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_header_field": self._on_header_name,
                    "on_header_value": self._on_header,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": lambda: self._events.append(("begin", b"")),
                    "on_part_data": lambda data, start, end: self._events.append(("data", data[start:end])),
                    "on_part_end": lambda: self._events.append(("end", b"")),
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise InputFault("this is not a form with files") from error

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        if b":" not in self._header:
            self._header += b":"
        self._header += data[start:end]

    def _on_header_end(self) -> None:
        self._events.append(("header", bytes(self._header)))
        self._header.clear()

    def _on_end(self) -> None:
        self._over = True

    async def next(self) -> _Event:
        while not self._events:
            if self._over:
                return _OVER
            try:
                chunk = await anext(self._stream)
            except StopAsyncIteration:
                raise InputFault("the form ended early", "send it again") from None
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise InputFault("the form with files could not be read", "send it again") from error
        return self._events.popleft()


_OVER: Final[_Event] = ("over", b"")
