"""Forms as they come in: read with a bound, checked to be from our own page, and their fields by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from valv.app.node import new_id
from valv.errors import InputFault
from valv.web import token
from valv.web.visit import Visiting

LARGEST = 256 << 10
"""Bytes of a form without files."""
FIELDS = 500


class Form:
    """The fields of a form. A name can come several times (boxes that are ticked)."""

    def __init__(self, fields: Mapping[str, list[str]]) -> None:
        self._fields = fields

    def text(self, name: str, default: str = "") -> str:
        found = self._fields.get(name)
        return found[0].strip().replace("\r\n", "\n") if found else default

    def exact(self, name: str) -> str:
        """As typed, blanks included (passwords)."""
        found = self._fields.get(name)
        return found[0] if found else ""

    def all(self, name: str) -> tuple[str, ...]:
        return tuple(self._fields.get(name, ()))

    def ticked(self, name: str) -> bool:
        return bool(self.text(name))

    def items(self, name: str) -> tuple[str, ...]:
        """A list typed with commas, semicolons or line ends between its items."""
        return tuple(part.strip() for part in re.split(r"[,;\n]", self.text(name)) if part.strip())

    def number(self, name: str, label: str) -> int:
        """A whole number. Raises `InputFault`."""
        value = self.text(name)
        if not re.fullmatch(r"[0-9]{1,9}", value):
            raise InputFault(f"{label}: {value[:20]!r} is not a whole number", "write it in digits")
        return int(value)

    @property
    def command(self) -> str:
        """The name that the page gave this form: sending it twice does it once."""
        return self.text("command")[:100] or new_id()


async def sent(request: Request, visit: Visiting) -> Form:
    """The form of a POST. The one place where forms are checked to come from our own pages (files: `upload`)."""
    token.check_origin(request.headers, visit.node.config.public_url)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST:
            raise InputFault(f"the form is larger than {LARGEST} bytes", "shorten the texts")
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=FIELDS, errors="strict")
    except ValueError as error:
        raise InputFault("the form could not be read", "load the page again and repeat") from error
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    form = Form(fields)
    token.check(visit.door.key, visit.mark, form.text("token"))
    return form


Sent = Annotated[Form, Depends(sent)]
EMPTY = Form({})
