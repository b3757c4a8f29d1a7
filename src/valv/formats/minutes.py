"""Minutes of what officers ordered: a text that the node's ledger key signs, as a C2SP signed note.

    valv minutes 1
    node: uu.valv
    done: 2026-11-23T18:00:04Z
    generation: 4                     of the root key, afterwards
    signed: anna bo                   the officers whose signatures counted
    order:
      valv order 1
      …

Below `order:` stands the whole order with its signatures (`valv.formats.order`), each line indented by two spaces; an
empty line stays empty.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec

from valv.errors import FormatFault
from valv.formats import note, order
from valv.formats.order import Order

HEAD: Final = "valv minutes 1"
_FIELDS: Final = ("node", "done", "generation", "signed")
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


class Minutes(msgspec.Struct, frozen=True, kw_only=True):
    """`order`: the note that the officers signed; `wanted`: what it orders."""

    node: str
    done: datetime
    generation: int
    signers: tuple[str, ...]
    order: str
    wanted: Order


def read(text: str) -> Minutes:
    """Read minutes. No signature is verified (`note.verify` does, and so for `order`). Raises `FormatFault`."""
    content, _ = note.read(text)
    head, *lines = content.removesuffix("\n").split("\n")
    found = dict(line.split(": ", 1) for line in lines[: len(_FIELDS)] if ": " in line)
    inner = lines[len(_FIELDS) + 1 :]
    if head != HEAD or tuple(found) != _FIELDS or lines[len(_FIELDS) : len(_FIELDS) + 1] != ["order:"]:
        raise FormatFault(f"these are no minutes: they do not begin with '{HEAD}' and its four lines")
    if any(line and not line.startswith("  ") for line in inner):
        raise FormatFault("a line of the order within the minutes is not indented")
    signed = "".join(f"{line[2:]}\n" for line in inner)
    try:
        done, generation = datetime.strptime(found["done"], _TIME).replace(tzinfo=UTC), int(found["generation"])
    except ValueError:
        raise FormatFault("the time or the generation in the minutes is none") from None
    return Minutes(
        node=found["node"],
        done=done,
        generation=generation,
        signers=tuple(found["signed"].split()),
        order=signed,
        wanted=order.decode(note.read(signed)[0]),
    )
